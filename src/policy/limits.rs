//! How many and how long: connections per source, and the times after which a peer must go.
//!
//! Time is an argument. A worker keeps one [`Activity`] per connection and asks
//! [`Timeouts::judge`] when its timer fires; nothing here is touched on the path of a message
//! but [`Activity::active`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use serde::Serialize;

use super::access;

/// What to do with a client when the listener has all the connections it may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// Leave it in the backlog until a connection ends.
    #[default]
    Wait,
    /// Accept and reset it, so that it knows at once.
    Reset,
}

/// How long a connection may do what; `None` is for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Without a byte from the peer.
    pub idle: Option<Duration>,
    /// Altogether.
    pub lifetime: Option<Duration>,
    /// Without taking a byte of what it is owed.
    pub write_stall: Option<Duration>,
}

/// How long we wait, after our last word, for the peer's.
pub const LINGER: Duration = Duration::from_secs(2);

/// When a connection did what.
#[derive(Clone, Copy, Debug)]
pub struct Activity {
    /// When it was accepted.
    pub opened: Instant,
    /// When it last sent something.
    pub active: Instant,
    /// Since when it keeps us waiting, if so: it takes nothing of what it is owed, or, lingering,
    /// does not say its last word.
    pub waits: Option<Instant>,
    /// How far it has come.
    pub phase: Phase,
}

/// How far a connection has come, as far as time is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Phase {
    /// It may go on.
    #[default]
    Open,
    /// It gets what it is owed, and no more.
    Finishing,
    /// It got everything, and our FIN.
    Lingering,
}

/// The judgment on a connection at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgment {
    /// Fine; judge again at this time, or never.
    Until(Option<Instant>),
    /// It has been silent for too long.
    Idle,
    /// It has lasted for long enough.
    Expired,
    /// It reads nothing.
    Stalled,
    /// It got our FIN and does not answer.
    Lingered,
}

impl Activity {
    /// A connection that has just been accepted.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            opened: now,
            active: now,
            waits: None,
            phase: Phase::Open,
        }
    }
}

impl Timeouts {
    /// Whether the connection may go on, and when to ask again. A peer that stalls is told so
    /// before one that is idle: its silence is only what our back-pressure made of it.
    #[must_use]
    pub fn judge(&self, now: Instant, activity: &Activity) -> Judgment {
        let past = |due: Option<Instant>| due.is_some_and(|due| due <= now);
        if activity.phase == Phase::Lingering {
            let end = activity.waits.map(|since| since + LINGER);
            return if past(end) {
                Judgment::Lingered
            } else {
                Judgment::Until(end)
            };
        }
        let open = activity.phase == Phase::Open;
        let stall = self
            .write_stall
            .zip(activity.waits)
            .map(|(limit, since)| since + limit);
        let lifetime = self
            .lifetime
            .filter(|_| open)
            .map(|limit| activity.opened + limit);
        let idle = self
            .idle
            .filter(|_| open && activity.waits.is_none())
            .map(|limit| activity.active + limit);
        if past(stall) {
            Judgment::Stalled
        } else if past(lifetime) {
            Judgment::Expired
        } else if past(idle) {
            Judgment::Idle
        } else {
            // A stall is looked at four times before it counts: progress is only seen by looking.
            let look = self
                .write_stall
                .zip(activity.waits)
                .map(|(limit, _)| now + limit / 4);
            // Nothing else would set a timer for the idle time that begins when the stall is over.
            let after_stall = self
                .idle
                .filter(|_| open && activity.waits.is_some())
                .map(|limit| now + limit);
            let times = [look, stall, lifetime, idle, after_stall];
            Judgment::Until(times.into_iter().flatten().min())
        }
    }
}

/// The connections of each source prefix: an IPv4 address or an IPv6 /64.
///
/// Holds an entry only for a source that has a connection, so it is bounded by their number.
#[derive(Debug, Default)]
pub struct Sources {
    counts: HashMap<IpNet, u32>,
}

impl Sources {
    /// Counts one more connection of this source, unless it already has `max`.
    pub fn admit(&mut self, source: IpAddr, max: u32) -> bool {
        let prefix = access::source_prefix(source);
        let count = self.counts.get(&prefix).copied().unwrap_or(0);
        if count < max {
            self.counts.insert(prefix, count + 1);
        }
        count < max
    }

    /// One connection of this source has ended.
    pub fn release(&mut self, source: IpAddr) {
        let prefix = access::source_prefix(source);
        let count = self.counts.get(&prefix).copied().unwrap_or(0);
        debug_assert!(count > 0, "only what was admitted is released");
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
        let judge = |after| timeouts().judge(start + after * SECOND, &activity);
        assert_eq!(judge(14), Judgment::Until(Some(start + 15 * SECOND)));
        assert_eq!(judge(15), Judgment::Idle);
    }

    #[test]
    fn a_busy_connection_still_expires() {
        let start = Instant::now();
        let activity = Activity {
            active: start + 99 * SECOND,
            ..Activity::new(start)
        };
        assert_eq!(
            timeouts().judge(start + 100 * SECOND, &activity),
            Judgment::Expired
        );
    }

    #[test]
    fn a_stalled_connection_is_looked_at_often_and_is_not_called_idle() {
        let start = Instant::now();
        let activity = Activity {
            waits: Some(start + 9 * SECOND),
            ..Activity::new(start)
        };
        let judge = |after| timeouts().judge(start + after * SECOND, &activity);
        assert_eq!(judge(11), Judgment::Until(Some(start + 12 * SECOND)));
        assert_eq!(judge(13), Judgment::Stalled);
    }

    #[test]
    fn a_connection_that_stalls_is_checked_for_idleness_later() {
        let start = Instant::now();
        let timeouts = Timeouts {
            write_stall: None,
            ..timeouts()
        };
        let mut activity = Activity {
            waits: Some(start),
            ..Activity::new(start)
        };
        let check = |after, activity: &_| timeouts.judge(start + after * SECOND, activity);
        assert_eq!(
            check(10, &activity),
            Judgment::Until(Some(start + 20 * SECOND))
        );
        activity.waits = None;
        assert_eq!(check(20, &activity), Judgment::Idle);
    }

    #[test]
    fn who_lingers_has_two_seconds_whatever_else_is_set() {
        let start = Instant::now();
        let activity = Activity {
            waits: Some(start),
            phase: Phase::Lingering,
            ..Activity::new(start)
        };
        let judge = |after| Timeouts::default().judge(start + after, &activity);
        assert_eq!(judge(SECOND), Judgment::Until(Some(start + LINGER)));
        assert_eq!(judge(LINGER), Judgment::Lingered);
    }

    #[test]
    fn who_finishes_may_take_its_time_as_long_as_it_reads() {
        let start = Instant::now();
        let mut activity = Activity {
            phase: Phase::Finishing,
            ..Activity::new(start)
        };
        assert_eq!(
            timeouts().judge(start + 500 * SECOND, &activity),
            Judgment::Until(None)
        );
        activity.waits = Some(start + 500 * SECOND);
        assert_eq!(
            timeouts().judge(start + 504 * SECOND, &activity),
            Judgment::Stalled
        );
    }

    #[test]
    fn without_timeouts_there_is_nothing_to_wait_for() {
        let start = Instant::now();
        let activity = Activity {
            waits: Some(start),
            ..Activity::new(start)
        };
        let later = start + 1_000_000 * SECOND;
        assert_eq!(
            Timeouts::default().judge(later, &activity),
            Judgment::Until(None)
        );
    }

    #[test]
    fn sources_are_counted_apart_and_forgotten_when_gone() {
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
    fn one_ipv6_subscriber_is_one_source() {
        let mut sources = Sources::default();
        assert!(sources.admit("2001:db8::1".parse().unwrap(), 1));
        assert!(!sources.admit("2001:db8::ffff".parse().unwrap(), 1));
        assert!(sources.admit("2001:db8:0:1::1".parse().unwrap(), 1));
    }
}
