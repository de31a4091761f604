//! What one thread has measured. Only messages that were due while it was measured count: not those
//! of the warm-up, and of the last ones also those that came back a little after.
//!
//! Knows made-up time and no socket.

use std::ops::Range;
use std::time::{Duration, Instant};

use super::measured::Measured;
use crate::probe::cause::Cause;

/// See the module.
#[derive(Debug)]
pub(super) struct Sheet {
    window: Range<Instant>,
    pub(super) measured: Measured,
}

impl Sheet {
    pub(super) fn new(window: Range<Instant>) -> Self {
        Self {
            window,
            measured: Measured::default(),
        }
    }

    /// It is over, perhaps before its time.
    pub(super) fn end(&mut self, now: Instant) {
        let end = now.min(self.window.end);
        self.measured.duration = end.saturating_duration_since(self.window.start);
    }

    fn counts(&self, due: Instant) -> bool {
        self.window.contains(&due)
    }

    /// So many messages are due.
    pub(super) fn handle_due(&mut self, due: Instant, count: u64) {
        if self.counts(due) {
            self.measured.sent += count;
        }
    }

    /// So many messages have come back whole, with so many bytes in all.
    pub(super) fn handle_answers(&mut self, due: Instant, now: Instant, count: u64, bytes: u64) {
        if self.counts(now) {
            self.measured.finished += count;
        }
        if self.counts(due) {
            self.measured.messages += count;
            self.measured.bytes += bytes;
            let time = now.saturating_duration_since(due);
            self.measured.latencies.record_many(time, count);
        }
    }

    /// So many messages have not come back.
    pub(super) fn handle_loss(&mut self, due: Instant, count: u64, cause: Cause) {
        if self.counts(due) {
            self.measured.lost += count;
            self.measured.errors.add(cause, count);
        }
    }

    /// A lost one came after all. It was as long on the way as it was: that belongs to the latencies.
    pub(super) fn handle_late(&mut self, due: Instant, now: Instant, bytes: u64) {
        if self.counts(due) {
            self.measured.lost -= 1;
            self.measured.errors.uncount(&Cause::TimedOut);
            self.measured.late += 1;
            self.measured.bytes += bytes;
            self.measured
                .latencies
                .record(now.saturating_duration_since(due));
        }
    }

    /// A message came back with other bytes.
    pub(super) fn handle_corrupt(&mut self, due: Instant) {
        if self.counts(due) {
            self.handle_wrong();
        }
    }

    /// Bytes came that nobody has sent.
    pub(super) fn handle_wrong(&mut self) {
        self.measured.corrupt += 1;
        self.measured.errors.count(Cause::Mismatch);
    }

    /// A connection is gone, and nothing with it; or a message that could not be sent.
    pub(super) fn handle_end(&mut self, cause: Cause) {
        self.measured.errors.count(cause);
    }
}

impl Measured {
    /// What another thread has measured at the same time.
    pub(super) fn merge(&mut self, other: &Self) {
        self.sent += other.sent;
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.finished += other.finished;
        self.lost += other.lost;
        self.late += other.late;
        self.duplicates += other.duplicates;
        self.corrupt += other.corrupt;
        self.latencies.merge(&other.latencies);
        self.errors.merge(&other.errors);
        self.busy += other.busy;
        self.duration = self.duration.max(other.duration);
    }
}

/// When what happens.
#[derive(Clone, Debug)]
pub(super) struct Times {
    /// The first message.
    pub(super) begin: Instant,
    /// Messages that are due in this time count.
    pub(super) window: Range<Instant>,
    /// Then the last ones may still come back until here.
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
            end: start + time + timeout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_due_in_the_window_counts_however_late_it_comes() {
        let begin = Instant::now();
        let second = Duration::from_secs(1);
        let times = Times::new(begin, second, second * 10, second);
        let mut sheet = Sheet::new(times.window.clone());
        let (warm_up, first) = (begin + second / 2, begin + second);
        let (last, after) = (begin + second * 11 - second / 10, begin + second * 11);
        for due in [warm_up, first, last, after] {
            sheet.handle_due(due, 1);
            sheet.handle_answers(due, due + second / 2, 1, 64);
        }
        let measured = &sheet.measured;
        assert_eq!(
            (measured.sent, measured.messages, measured.bytes),
            (2, 2, 128)
        );
        assert_eq!(measured.latencies.max(), second / 2);
        sheet.handle_loss(warm_up, 1, Cause::TimedOut);
        sheet.handle_loss(last, 1, Cause::TimedOut);
        assert_eq!(
            (
                sheet.measured.lost,
                sheet.measured.errors.of(&Cause::TimedOut)
            ),
            (1, 1)
        );
        sheet.handle_late(last, times.end, 64);
        assert_eq!((sheet.measured.lost, sheet.measured.late), (0, 1));
        assert!(sheet.measured.errors.is_empty());
    }

    #[test]
    fn a_measurement_that_is_cut_short_says_how_long_it_was() {
        let begin = Instant::now();
        let second = Duration::from_secs(1);
        let times = Times::new(begin, second, second * 10, second);
        let mut sheet = Sheet::new(times.window.clone());
        for (now, meant) in [(begin, 0), (begin + second * 3, 2), (times.end, 10)] {
            sheet.end(now);
            assert_eq!(sheet.measured.duration, second * meant);
        }
    }
}
