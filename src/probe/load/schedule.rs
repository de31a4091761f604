//! When messages are due: at a rate, whatever the service does (open loop).
//!
//! Decides, over simulated time. No message waits for the one before it, and the time of each counts
//! from when it was due: a service that stops for a second is seen to have kept a second's worth of
//! messages waiting (no coordinated omission).

use std::ops::Range;
use std::time::{Duration, Instant};

/// When what happens.
#[derive(Clone, Debug)]
pub(super) struct Times {
    /// The first message.
    pub(super) begin: Instant,
    /// Messages that are due in this time count.
    pub(super) window: Range<Instant>,
    /// The last of them can return until here: in time, or late.
    pub(super) end: Instant,
}

impl Times {
    pub(super) fn new(
        begin: Instant,
        warm_up: Duration,
        time: Duration,
        timeout: Duration,
    ) -> Self {
        let start = begin + warm_up;
        Self {
            begin,
            window: start..start + time,
            end: start + time + timeout * 2,
        }
    }

    /// How long an answer may take.
    pub(super) fn timeout(&self) -> Duration {
        (self.end - self.window.end) / 2
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    begin: Instant,
    /// Nanoseconds from one message to the next.
    interval: f64,
    /// The number of the next message.
    next: u64,
}

impl Schedule {
    /// Messages at this rate a second, the first at the beginning.
    pub(super) fn new(rate: u64, begin: Instant) -> Self {
        Self {
            begin,
            interval: 1e9 / rate as f64,
            next: 0,
        }
    }

    /// When the next message is due. A nanosecond more or less does not matter.
    pub(super) fn poll_timeout(&self) -> Instant {
        self.begin + Duration::from_nanos((self.next as f64 * self.interval) as u64)
    }

    /// Takes the next message if it is due by now; returns when it was.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Option<Instant> {
        let due = self.poll_timeout();
        (due <= now).then(|| {
            self.next += 1;
            due
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_evenly() {
        let begin = Instant::now();
        let mut schedule = Schedule::new(3000, begin);
        let end = begin + Duration::from_millis(999);
        let dues: Vec<Instant> = std::iter::from_fn(|| schedule.handle_timeout(end)).collect();
        assert_eq!(dues.len(), 2998);
        for pair in dues.windows(2) {
            let gap = (pair[1] - pair[0]).as_nanos();
            assert!((333_332..333_335).contains(&gap), "{gap}");
        }
    }

    #[test]
    fn after_a_delay_all_that_were_due_come_with_their_own_times() {
        let begin = Instant::now();
        let mut schedule = Schedule::new(100, begin);
        assert_eq!(schedule.handle_timeout(begin), Some(begin));
        assert_eq!(schedule.handle_timeout(begin), None);
        let later = begin + Duration::from_millis(35);
        let dues: Vec<_> = std::iter::from_fn(|| schedule.handle_timeout(later)).collect();
        let at = |millis| begin + Duration::from_millis(millis);
        assert_eq!(dues, [at(10), at(20), at(30)]);
        assert_eq!(schedule.poll_timeout(), at(40));
    }
}
