//! The lines that wait for the output: a bounded number of bytes, in order.
//!
//! Decides only. A line that finds the queue full is lost, and counted where it would have been.
//! Time is an argument, and how a line is written is the caller's concern.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How many bytes may wait: some ten thousand lines, such as a reload of a large configuration has.
const BYTES_MAX: usize = 1024 * 1024;

/// What a line takes beside its text.
const LINE_OVERHEAD_BYTES: usize = 100;

/// For how long a flush waits for an output that takes nothing. An output that has taken nothing for
/// longer is not waited for at all.
const STALL_TIME_MAX: Duration = Duration::from_secs(1);

/// For how long a flush waits for an output that is slow, unless it is to wait for less.
pub(super) const FLUSH_TIME_MAX: Duration = Duration::from_secs(3);

/// What the output gets next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item<T> {
    Line(T),
    /// The number of lines that were lost in this place.
    Lost(u64),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Queue<T> {
    items: VecDeque<(Item<T>, usize)>,
    bytes: usize,
    /// Lines lost since the last one that was queued.
    lost: u64,
    /// Since when the output has had an item that it has not taken yet.
    writing_since: Option<Instant>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            items: VecDeque::new(),
            bytes: 0,
            lost: 0,
            writing_since: None,
        }
    }
}

impl<T> Queue<T> {
    /// Queues a line of this length, or counts it as lost.
    pub(super) fn push(&mut self, line: T, bytes: usize) {
        let bytes = bytes + LINE_OVERHEAD_BYTES;
        if self.bytes + bytes > BYTES_MAX {
            self.lost += 1;
            return;
        }
        if self.lost > 0 {
            self.items.push_back((Item::Lost(self.lost), 0));
            self.lost = 0;
        }
        self.items.push_back((Item::Line(line), bytes));
        self.bytes += bytes;
    }

    /// The next item for the output, which has taken the one before.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Item<T>> {
        let item = match self.items.pop_front() {
            Some((item, bytes)) => {
                self.bytes -= bytes;
                Some(item)
            }
            None if self.lost > 0 => Some(Item::Lost(std::mem::take(&mut self.lost))),
            None => None,
        };
        self.writing_since = item.is_some().then_some(now);
        item
    }

    /// Until when a flush that began at this time waits, and at most for this time; none when
    /// everything was taken.
    pub(super) fn flush_deadline(&self, begun: Instant, time_max: Duration) -> Option<Instant> {
        let is_empty = self.items.is_empty() && self.lost == 0;
        if is_empty && self.writing_since.is_none() {
            return None;
        }
        let stalled = self.writing_since.unwrap_or(begun) + STALL_TIME_MAX;
        Some(stalled.min(begun + time_max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many lines without text fit.
    const LINES_MAX: usize = BYTES_MAX / LINE_OVERHEAD_BYTES;

    fn drain(queue: &mut Queue<usize>) -> Vec<Item<usize>> {
        let now = Instant::now();
        std::iter::from_fn(|| queue.pop(now)).collect()
    }

    #[test]
    fn lines_leave_in_the_order_in_which_they_came() {
        let mut queue = Queue::default();
        (0..3).for_each(|line| queue.push(line, 10));
        let lines = [0, 1, 2].map(Item::Line);
        assert_eq!(drain(&mut queue), lines);
    }

    #[test]
    fn what_waits_is_bounded_in_bytes() {
        let mut queue = Queue::default();
        queue.push(0, BYTES_MAX);
        assert_eq!(drain(&mut queue), [Item::Lost(1)]);
        (0..3 * LINES_MAX).for_each(|line| queue.push(line, 0));
        let items = drain(&mut queue);
        assert_eq!(items.len(), LINES_MAX + 1);
        assert_eq!(items[LINES_MAX], Item::Lost(2 * LINES_MAX as u64));
        // All of it is free again.
        queue.push(7, BYTES_MAX - LINE_OVERHEAD_BYTES);
        assert_eq!(drain(&mut queue), [Item::Line(7)]);
    }

    #[test]
    fn lost_lines_are_counted_where_they_would_have_been() {
        let mut queue = Queue::default();
        (0..LINES_MAX + 2).for_each(|line| queue.push(line, 0));
        let now = Instant::now();
        assert_eq!(queue.pop(now), Some(Item::Line(0)));
        queue.push(LINES_MAX + 2, 0);
        queue.push(LINES_MAX + 3, 0);
        let items = drain(&mut queue);
        let end = [Item::Lost(2), Item::Line(LINES_MAX + 2), Item::Lost(1)];
        assert!(items.ends_with(&end), "{:?}", items.last_chunk::<4>());
    }

    #[test]
    fn a_flush_ends_when_everything_was_taken() {
        let now = Instant::now();
        let mut queue = Queue::default();
        assert_eq!(queue.flush_deadline(now, FLUSH_TIME_MAX), None);
        queue.push(1, 0);
        assert_eq!(
            queue.flush_deadline(now, FLUSH_TIME_MAX),
            Some(now + STALL_TIME_MAX)
        );
        queue.pop(now);
        assert!(
            queue.flush_deadline(now, FLUSH_TIME_MAX).is_some(),
            "it is being written"
        );
        assert_eq!(queue.pop(now), None);
        assert_eq!(queue.flush_deadline(now, FLUSH_TIME_MAX), None);
    }

    #[test]
    fn a_flush_does_not_wait_for_an_output_that_is_stuck() {
        let begun = Instant::now();
        let mut queue = Queue::default();
        (0..9).for_each(|line| queue.push(line, 0));
        queue.pop(begun);
        // It has been stuck for a minute when the flush begins.
        let later = begun + Duration::from_secs(60);
        assert_eq!(
            queue.flush_deadline(later, FLUSH_TIME_MAX),
            Some(begun + STALL_TIME_MAX)
        );
        // Each item that is taken gives it more time, up to a limit.
        queue.pop(later);
        assert_eq!(
            queue.flush_deadline(later, FLUSH_TIME_MAX),
            Some(later + STALL_TIME_MAX)
        );
        queue.pop(later + FLUSH_TIME_MAX);
        assert_eq!(
            queue.flush_deadline(later, FLUSH_TIME_MAX),
            Some(later + FLUSH_TIME_MAX)
        );
    }
}
