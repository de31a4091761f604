//! How long a worker may sleep: until its next timer, unless work is left, or it spins.
//!
//! To spin (`busy-poll`) is to look for events without sleeping, for a while after the last one: the
//! kernel needs longer to wake a thread than to echo a message. Knows only times; never reads a
//! clock.

use std::time::{Duration, Instant};

/// See the module.
#[derive(Debug)]
pub(super) struct Pace {
    busy_poll: Duration,
    now: Instant,
    // When the last event came, while the worker spins.
    spins_since: Option<Instant>,
}

impl Pace {
    /// With a `busy_poll` of zero it never spins.
    pub(super) fn new(busy_poll: Duration, now: Instant) -> Self {
        Self {
            busy_poll,
            now,
            spins_since: None,
        }
    }

    /// A turn began at `now`; `event` says whether a peer caused it. Timers and commands do not
    /// count: after them no further message is likely.
    pub(super) fn handle_turn(&mut self, now: Instant, event: bool) {
        self.now = now;
        if event && !self.busy_poll.is_zero() {
            self.spins_since = Some(now);
        } else if let Some(since) = self.spins_since
            && now.saturating_duration_since(since) >= self.busy_poll
        {
            self.spins_since = None;
        }
    }

    /// When the next wait has to end. A time in the past makes the driver look for events without
    /// sleeping. `timers` is when the next timer fires, `work` whether some is left to do.
    pub(super) fn wait_until(&self, timers: Option<Instant>, work: bool) -> Option<Instant> {
        if work || self.spins_since.is_some() {
            Some(self.now)
        } else {
            timers
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECOND: Duration = Duration::from_micros(1);

    #[test]
    fn without_busy_poll_only_work_keeps_it_from_sleeping() {
        let start = Instant::now();
        let timers = Some(start + 9 * MICROSECOND);
        let mut pace = Pace::new(Duration::ZERO, start);
        for event in [false, true] {
            pace.handle_turn(start, event);
            assert_eq!(pace.wait_until(timers, false), timers);
            assert_eq!(pace.wait_until(None, false), None);
            assert_eq!(pace.wait_until(timers, true), Some(start));
        }
    }

    #[test]
    fn it_spins_after_an_event_for_its_time_and_no_longer() {
        let start = Instant::now();
        let mut pace = Pace::new(50 * MICROSECOND, start);
        assert_eq!(pace.wait_until(None, false), None);
        pace.handle_turn(start, true);
        for micros in [0, 1, 49] {
            let now = start + micros * MICROSECOND;
            pace.handle_turn(now, false);
            assert_eq!(pace.wait_until(None, false), Some(now), "{micros}");
        }
        pace.handle_turn(start + 50 * MICROSECOND, false);
        assert_eq!(pace.wait_until(None, false), None);
        // It sleeps by now, and turns without an event do not make it spin again.
        pace.handle_turn(start + 51 * MICROSECOND, false);
        assert_eq!(pace.wait_until(None, false), None);
    }

    #[test]
    fn each_event_starts_the_time_again() {
        let start = Instant::now();
        let mut pace = Pace::new(50 * MICROSECOND, start);
        for micros in [0, 40, 80] {
            pace.handle_turn(start + micros * MICROSECOND, true);
        }
        let now = start + 129 * MICROSECOND;
        pace.handle_turn(now, false);
        assert_eq!(pace.wait_until(None, false), Some(now));
        pace.handle_turn(start + 130 * MICROSECOND, false);
        assert_eq!(pace.wait_until(None, false), None);
    }
}
