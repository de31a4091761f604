//! Limits of connections: how many one source may have, and the timeouts that end them.
//!
//! Never reads a clock: times are arguments. A worker keeps the fields of one [`Activity`] for each
//! connection and calls [`Timeouts::check`] when the connection's timer fires. On the path of a
//! message nothing here is called; the worker only stores the time in [`Activity::active`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde::Serialize;

use super::access;

/// What to do with a client when the listener has all the connections that it may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// Leave it in the backlog until a connection ends.
    #[default]
    Wait,
    /// Accept and reset it, so that it learns at once.
    Reset,
}

impl WhenFull {
    /// Both, in the order in which messages list them.
    pub const ALL: [Self; 2] = [Self::Wait, Self::Reset];

    /// The word for it in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Reset => "reset",
        }
    }
}

/// What becomes of the new clients of a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Intake {
    /// They are served.
    #[default]
    Serve,
    /// They are turned away: a connection is accepted and reset, a datagram discarded.
    Refuse,
    /// They are left in the backlog.
    Hold,
}

/// The timeouts of a listener's connections; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// The longest time without a byte from the peer.
    pub idle: Option<Duration>,
    /// The longest time from accepting to our FIN.
    pub lifetime: Option<Duration>,
    /// The longest time in which the peer reads nothing although bytes are unsent.
    pub write_stall: Option<Duration>,
}

/// The longest time from our FIN to the peer's.
pub(crate) const LINGER: Duration = Duration::from_secs(2);

/// The times of a connection that the timeouts are about.
///
/// | phase     | `waiting_since` | timeouts that apply |
/// |-----------|-----------------|---------------------|
/// | open      | `None`          | idle, lifetime |
/// | open      | the last progress of a stalled send | write stall, lifetime |
/// | finishing | `None`          | none |
/// | finishing | the last progress of a stalled send, or of relayed bytes behind the FIN | write stall |
/// | lingering | our FIN, never `None` | [`LINGER`] |
///
/// No time is before `opened`.
#[derive(Clone, Copy, Debug)]
pub struct Activity {
    /// When it was accepted.
    pub opened: Instant,
    /// When the peer last sent something.
    pub active: Instant,
    /// Since when the connection has been waiting for the peer to read, or to send its FIN.
    pub waiting_since: Option<Instant>,
    /// Which timeouts apply.
    pub phase: Phase,
}

/// How far a connection is on its way to the end. The worker derives it from the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Phase {
    /// Input is answered.
    #[default]
    Open,
    /// Pending output is sent, and nothing else.
    Finishing,
    /// Everything was sent, our FIN included.
    Lingering,
}

/// What to do about the timeouts of a connection now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeoutAction {
    /// None was reached. Check again at this time, or never if there is none.
    CheckAt(Option<Instant>),
    /// Finish the connection: the peer has sent nothing for the idle timeout.
    FinishIdle,
    /// Finish the connection: it has reached its lifetime.
    FinishExpired,
    /// Reset the connection: the peer reads nothing.
    ResetStalled,
    /// Close the connection: the peer has had time enough for its FIN.
    CloseLingering,
}

impl Activity {
    /// A connection that has just been accepted.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            opened: now,
            active: now,
            waiting_since: None,
            phase: Phase::Open,
        }
    }
}

impl Timeouts {
    /// Whether a timeout has been reached, and when to check again.
    #[must_use]
    pub fn check(&self, now: Instant, activity: &Activity) -> TimeoutAction {
        let is_past = |due: Option<Instant>| due.is_some_and(|due| due <= now);
        let waiting_since = activity.waiting_since;
        if activity.phase == Phase::Lingering {
            debug_assert!(waiting_since.is_some(), "it waits for the peer's FIN");
            let end = waiting_since.map(|since| since + LINGER);
            return if is_past(end) {
                TimeoutAction::CloseLingering
            } else {
                TimeoutAction::CheckAt(end)
            };
        }
        let is_open = activity.phase == Phase::Open;
        let stall = self
            .write_stall
            .zip(waiting_since)
            .map(|(limit, since)| since + limit);
        let lifetime = self
            .lifetime
            .filter(|_| is_open)
            .map(|limit| activity.opened + limit);
        let idle = self
            .idle
            .filter(|_| is_open && waiting_since.is_none())
            .map(|limit| activity.active + limit);
        // A stalled peer is not idle: it sends nothing because we have paused receiving. So the
        // stall comes first, and it is the reason that is logged.
        if is_past(stall) {
            TimeoutAction::ResetStalled
        } else if is_past(lifetime) {
            TimeoutAction::FinishExpired
        } else if is_past(idle) {
            TimeoutAction::FinishIdle
        } else {
            // Progress of the peer is noticed only by checking, so a stall is checked four times
            // before it is long enough.
            let next_look = self
                .write_stall
                .zip(waiting_since)
                .map(|(limit, _)| now + limit / 4);
            // No event sets a timer for the idle timeout that applies again after a stall.
            let after_stall = self
                .idle
                .filter(|_| is_open && waiting_since.is_some())
                .map(|limit| now + limit);
            let times = [next_look, stall, lifetime, idle, after_stall];
            TimeoutAction::CheckAt(times.into_iter().flatten().min())
        }
    }
}

/// The connections of each source prefix: an IPv4 address or an IPv6 /64.
///
/// It has an entry only for a source with a connection, so their number bounds it.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    counts: HashMap<IpNet, u32>,
}

impl Sources {
    /// Counts one more connection of this source and returns true, unless it already has `max`.
    pub(crate) fn admit(&mut self, source: IpAddr, max: u32) -> bool {
        let prefix = access::source_prefix(source);
        let count = self.counts.get(&prefix).copied().unwrap_or(0);
        if count < max {
            self.counts.insert(prefix, count + 1);
        }
        count < max
    }

    /// Counts one connection of this source less.
    pub(crate) fn release(&mut self, source: IpAddr) {
        let prefix = access::source_prefix(source);
        let count = self.counts.get(&prefix).copied().unwrap_or(0);
        debug_assert!(
            count > 0,
            "a connection is released once, after it was admitted"
        );
        if count > 1 {
            self.counts.insert(prefix, count - 1);
        } else {
            self.counts.remove(&prefix);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn timeouts() -> Timeouts {
        Timeouts {
            idle: Some(10 * SECOND),
            lifetime: Some(100 * SECOND),
            write_stall: Some(4 * SECOND),
        }
    }

    #[test]
    fn a_silent_connection_is_idle_at_its_time_and_not_before() {
        let start = Instant::now();
        let activity = Activity {
            active: start + 5 * SECOND,
            ..Activity::new(start)
        };
        let check = |after| timeouts().check(start + after * SECOND, &activity);
        assert_eq!(check(14), TimeoutAction::CheckAt(Some(start + 15 * SECOND)));
        assert_eq!(check(15), TimeoutAction::FinishIdle);
    }

    #[test]
    fn a_busy_connection_still_expires() {
        let start = Instant::now();
        let activity = Activity {
            active: start + 99 * SECOND,
            ..Activity::new(start)
        };
        assert_eq!(
            timeouts().check(start + 100 * SECOND, &activity),
            TimeoutAction::FinishExpired
        );
    }

    #[test]
    fn a_stalled_connection_is_checked_often_and_is_not_idle() {
        let start = Instant::now();
        let activity = Activity {
            waiting_since: Some(start + 9 * SECOND),
            ..Activity::new(start)
        };
        let check = |after| timeouts().check(start + after * SECOND, &activity);
        assert_eq!(check(11), TimeoutAction::CheckAt(Some(start + 12 * SECOND)));
        assert_eq!(check(13), TimeoutAction::ResetStalled);
    }

    #[test]
    fn a_connection_that_stalls_is_checked_for_idleness_later() {
        let start = Instant::now();
        let timeouts = Timeouts {
            write_stall: None,
            ..timeouts()
        };
        let mut activity = Activity {
            waiting_since: Some(start),
            ..Activity::new(start)
        };
        let check = |after, activity: &_| timeouts.check(start + after * SECOND, activity);
        assert_eq!(
            check(10, &activity),
            TimeoutAction::CheckAt(Some(start + 20 * SECOND))
        );
        activity.waiting_since = None;
        assert_eq!(check(20, &activity), TimeoutAction::FinishIdle);
    }

    #[test]
    fn a_lingering_connection_has_two_seconds_whatever_else_is_set() {
        let start = Instant::now();
        let activity = Activity {
            waiting_since: Some(start),
            phase: Phase::Lingering,
            ..Activity::new(start)
        };
        let check = |after| Timeouts::default().check(start + after, &activity);
        assert_eq!(check(SECOND), TimeoutAction::CheckAt(Some(start + LINGER)));
        assert_eq!(check(LINGER), TimeoutAction::CloseLingering);
    }

    #[test]
    fn a_finishing_connection_may_be_slow_as_long_as_the_peer_reads() {
        let start = Instant::now();
        let mut activity = Activity {
            phase: Phase::Finishing,
            ..Activity::new(start)
        };
        assert_eq!(
            timeouts().check(start + 500 * SECOND, &activity),
            TimeoutAction::CheckAt(None)
        );
        activity.waiting_since = Some(start + 500 * SECOND);
        assert_eq!(
            timeouts().check(start + 504 * SECOND, &activity),
            TimeoutAction::ResetStalled
        );
    }

    #[test]
    fn without_timeouts_there_is_nothing_to_check() {
        let start = Instant::now();
        let activity = Activity {
            waiting_since: Some(start),
            ..Activity::new(start)
        };
        let later = start + 1_000_000 * SECOND;
        assert_eq!(
            Timeouts::default().check(later, &activity),
            TimeoutAction::CheckAt(None)
        );
    }

    #[test]
    fn sources_are_counted_separately_and_removed_with_their_last_connection() {
        let mut sources = Sources::default();
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        let other: IpAddr = "192.0.2.2".parse().unwrap();
        assert!(sources.admit(one, 2) && sources.admit(one, 2));
        assert!(!sources.admit(one, 2));
        assert!(sources.admit(other, 2));
        sources.release(one);
        assert!(sources.admit(one, 2));
        for source in [one, one, other] {
            sources.release(source);
        }
        assert!(sources.counts.is_empty());
    }

    #[test]
    fn one_ipv6_prefix_of_64_bits_is_one_source() {
        let mut sources = Sources::default();
        assert!(sources.admit("2001:db8::1".parse().unwrap(), 1));
        assert!(!sources.admit("2001:db8::ffff".parse().unwrap(), 1));
        assert!(sources.admit("2001:db8:0:1::1".parse().unwrap(), 1));
    }
}
