//! When messages are due: at a rate, whatever the service does (open loop).
//!
//! Decides, over made-up time. No message waits for the one before it, and who is late is not
//! forgiven: the time of each counts from when it was due, so that a service which stops for a
//! second is seen to have kept a second's worth of messages waiting (no coordinated omission).

use std::time::{Duration, Instant};

/// The messages of one thread.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    begin: Instant,
    // Nanoseconds from one message to the next, of all threads.
    interval: f64,
    // The number of the next one, among those of all threads.
    next: u64,
    threads: u64,
}

impl Schedule {
    /// So many messages a second over all threads, of which this one sends its share.
    #[expect(clippy::cast_precision_loss, reason = "rates are small")]
    pub(super) fn new(rate: u64, begin: Instant, thread: u64, threads: u64) -> Self {
        Self {
            begin,
            interval: 1e9 / rate as f64,
            next: thread,
            threads,
        }
    }

    /// When the next message is due.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a nanosecond does not matter, and a run does not last for years"
    )]
    pub(super) fn poll_timeout(&self) -> Instant {
        self.begin + Duration::from_nanos((self.next as f64 * self.interval) as u64)
    }

    /// Takes the next message if it is due by now; says when it was.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Option<Instant> {
        let due = self.poll_timeout();
        (due <= now).then(|| {
            self.next += self.threads;
            due
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_threads_together_keep_the_rate_and_no_two_send_at_once() {
        let begin = Instant::now();
        let mut dues: Vec<Instant> = Vec::new();
        for thread in 0..3 {
            let mut schedule = Schedule::new(3000, begin, thread, 3);
            let end = begin + Duration::from_millis(999);
            dues.extend(std::iter::from_fn(|| schedule.handle_timeout(end)));
        }
        dues.sort_unstable();
        assert_eq!(dues.len(), 2998);
        for pair in dues.windows(2) {
            let gap = (pair[1] - pair[0]).as_nanos();
            assert!((333_332..333_335).contains(&gap), "{gap}");
        }
    }

    #[test]
    fn who_comes_late_gets_all_that_were_due_with_their_own_times() {
        let begin = Instant::now();
        let mut schedule = Schedule::new(100, begin, 0, 1);
        assert_eq!(schedule.handle_timeout(begin), Some(begin));
        assert_eq!(schedule.handle_timeout(begin), None);
        let later = begin + Duration::from_millis(35);
        let dues: Vec<_> = std::iter::from_fn(|| schedule.handle_timeout(later)).collect();
        let at = |millis| begin + Duration::from_millis(millis);
        assert_eq!(dues, [at(10), at(20), at(30)]);
        assert_eq!(schedule.poll_timeout(), at(40));
    }
}
