//! Counters: one set for each worker and listener, written by that worker alone, read by any thread.
//!
//! Knows numbers only. Readers never delay a writer: each counter has one writer, so an addition is
//! a plain load and store. Readers add up the sets of all workers, while these continue to count;
//! between the counters of a set there is no order (see [`Totals::of`]).

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Reasons of refusal in a set at most. What each index means is defined by the writer.
pub(crate) const REASONS_MAX: usize = 8;

/// Reasons of closing in a set at most, with room for more than there are: the number of counters in a
/// hand-over record never changes.
pub(crate) const CLOSE_REASONS_MAX: usize = 16;

/// A number that one thread increases and any thread may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to the counter. To be called by its one writer only: concurrent additions would be lost.
    pub fn add(&self, more: u64) {
        self.0
            .store(self.get().wrapping_add(more), Ordering::Relaxed);
    }

    /// The current value; another thread may see an earlier one.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one worker counts for one listener.
///
/// Aligned to two cache lines of 64 bytes, which CPUs prefetch in pairs, so that the counters of two
/// workers never share one.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    /// Connections accepted.
    pub accepted: Counter,
    /// Connections closed; [`Totals::connections`] is the difference.
    pub closed: Counter,
    /// Bytes received, in streams and datagrams.
    pub bytes_received: Counter,
    /// Bytes sent, in streams and datagrams.
    pub bytes_sent: Counter,
    /// Datagrams received.
    pub datagrams_received: Counter,
    /// Datagrams sent.
    pub datagrams_sent: Counter,
    /// Answers that could not be sent as datagrams: the peer's socket is closed, or its queue full.
    pub unsent: Counter,
    /// Connections closed, by reason. An earlier program counted their sum alone, so that `closed` may
    /// be more.
    pub closed_by: [Counter; CLOSE_REASONS_MAX],
    /// Connections that ended by a fault of the peer: reset by it, stalled, or timed out.
    pub faults: Counter,
    /// Connections and datagrams refused, by reason.
    pub refused: [Counter; REASONS_MAX],
}

impl Counters {
    /// A set that continues from the totals of a predecessor.
    #[must_use]
    pub fn from_totals(totals: &Totals) -> Self {
        let counters = Self::default();
        counters.accepted.add(totals.accepted);
        counters.closed.add(totals.closed);
        counters.bytes_received.add(totals.bytes_received);
        counters.bytes_sent.add(totals.bytes_sent);
        counters.datagrams_received.add(totals.datagrams_received);
        counters.datagrams_sent.add(totals.datagrams_sent);
        counters.unsent.add(totals.unsent);
        counters.faults.add(totals.faults);
        for (counter, count) in counters.refused.iter().zip(totals.refused) {
            counter.add(count);
        }
        for (counter, count) in counters.closed_by.iter().zip(totals.closed_by) {
            counter.add(count);
        }
        counters
    }
}

/// The sum of several sets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub accepted: u64,
    pub closed: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub datagrams_received: u64,
    pub datagrams_sent: u64,
    pub unsent: u64,
    pub faults: u64,
    pub refused: [u64; REASONS_MAX],
    // Part of the hand-over record since a later version than the others.
    #[serde(default)]
    pub closed_by: [u64; CLOSE_REASONS_MAX],
}

impl Totals {
    /// Adds up sets, reading each counter once.
    ///
    /// The workers count on, and there is no order between relaxed loads: the totals are those of no
    /// single moment. A connection accepted and closed in between may be in `closed` only.
    pub fn of<'a>(sets: impl IntoIterator<Item = &'a Counters>) -> Self {
        let mut totals = Self::default();
        for set in sets {
            // Read first, so that `closed` rarely exceeds `accepted`. Relaxed loads may be reordered,
            // so it can all the same, and `connections` saturates.
            let closed = set.closed.get();
            totals.add(&Self {
                closed,
                accepted: set.accepted.get(),
                bytes_received: set.bytes_received.get(),
                bytes_sent: set.bytes_sent.get(),
                datagrams_received: set.datagrams_received.get(),
                datagrams_sent: set.datagrams_sent.get(),
                unsent: set.unsent.get(),
                faults: set.faults.get(),
                refused: set.refused.each_ref().map(Counter::get),
                closed_by: set.closed_by.each_ref().map(Counter::get),
            });
        }
        totals
    }

    /// Adds other totals to these.
    pub fn add(&mut self, more: &Self) {
        self.accepted += more.accepted;
        self.closed += more.closed;
        self.bytes_received += more.bytes_received;
        self.bytes_sent += more.bytes_sent;
        self.datagrams_received += more.datagrams_received;
        self.datagrams_sent += more.datagrams_sent;
        self.unsent += more.unsent;
        self.faults += more.faults;
        for (total, reason) in self.refused.iter_mut().zip(more.refused) {
            *total += reason;
        }
        for (total, reason) in self.closed_by.iter_mut().zip(more.closed_by) {
            *total += reason;
        }
    }

    /// Open connections; 0 if more were counted as closed than as accepted (see [`Self::of`]).
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.accepted.saturating_sub(self.closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_the_sum_of_all_workers() {
        let sets = [Counters::default(), Counters::default()];
        sets[0].accepted.add(5);
        sets[0].closed.add(2);
        sets[1].accepted.add(3);
        sets[1].refused[1].add(7);
        let totals = Totals::of(&sets);
        assert_eq!(
            (totals.accepted, totals.connections(), totals.refused[1]),
            (8, 6, 7)
        );
    }

    #[test]
    fn adding_leaves_nothing_out() {
        let ones = Counters::default();
        for counter in [
            &ones.accepted,
            &ones.closed,
            &ones.bytes_received,
            &ones.bytes_sent,
            &ones.datagrams_received,
            &ones.datagrams_sent,
            &ones.unsent,
            &ones.faults,
        ] {
            counter.add(1);
        }
        ones.refused.iter().for_each(|reason| reason.add(1));
        ones.closed_by.iter().for_each(|reason| reason.add(1));
        let mut twice = Totals::of([&ones]);
        twice.add(&Totals::of([&ones]));
        assert_eq!(twice, Totals::of([&ones, &ones]));
        assert_eq!((twice.accepted, twice.unsent, twice.refused[7]), (2, 2, 2));
        assert_eq!(twice.closed_by, [2; CLOSE_REASONS_MAX]);
        assert_eq!(Totals::of([&Counters::from_totals(&twice)]), twice);
    }

    #[test]
    fn totals_that_an_earlier_program_wrote_are_read_without_reasons_of_closing() {
        let totals = Totals {
            accepted: 7,
            closed: 5,
            ..Totals::default()
        };
        let mut written = serde_json::to_value(totals).unwrap();
        written.as_object_mut().unwrap().remove("closed_by");
        assert_eq!(serde_json::from_value::<Totals>(written).unwrap(), totals);
    }

    #[test]
    fn counters_of_two_workers_never_share_a_cache_line() {
        assert_eq!(align_of::<Counters>() % 128, 0);
    }
}
