//! How long a worker may sleep: until its next timer, unless there is work, or it spins.
//!
//! Spinning (`busy-poll`) is looking for events without sleeping for a while after the last one: the
//! kernel needs longer to wake a thread than to echo a message. Knows times only; never reads a
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
    /// To sleep at once, spin for zero.
    pub(super) fn new(busy_poll: Duration, now: Instant) -> Self {
        Self {
            busy_poll,
            now,
            spins_since: None,
        }
    }

    /// A turn began at `now`, with an event of a peer or with none. Timers and commands are no
    /// events: nobody who waits for an answer is likely to come after them.
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

    /// When the next wait has to be over; a time that has passed is a look without sleep. `timers`
    /// is when the next one fires, `work` whether there is some left to do.
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
        // It has gone to sleep; turns without an event don't wake it up for more.
        pace.handle_turn(start + 51 * MICROSECOND, false);
        assert_eq!(pace.wait_until(None, false), None);
    }

    #[test]
    fn each_event_begins_the_time_again() {
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
