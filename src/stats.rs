//! Counters: one set per worker and listener, written by that worker alone, read by anybody.
//!
//! Knows numbers only. A writer is never stopped or slowed by a reader: each counter has one
//! writer, so an addition is a plain load and store, and readers sum up what they see.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// How many reasons of refusal a set has room for; the meaning of each is the writer's.
pub const REASONS_MAX: usize = 8;

/// A number that one thread counts up and any thread may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds, from the counter's one writer.
    pub fn add(&self, more: u64) {
        self.0
            .store(self.get().wrapping_add(more), Ordering::Relaxed);
    }

    /// The number now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one worker counts for one listener. Aligned so that two workers never share a cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters {
    /// Connections taken.
    pub accepted: Counter,
    /// Connections that have ended; those there now are `accepted - closed`.
    pub closed: Counter,
    /// Bytes that came, over whatever protocol.
    pub bytes_received: Counter,
    /// Bytes that went back.
    pub bytes_sent: Counter,
    /// Datagrams that came.
    pub datagrams_received: Counter,
    /// Datagrams that went back.
    pub datagrams_sent: Counter,
    /// Datagrams that the kernel would not send back: the peer is gone, or its queue is full.
    pub unsent: Counter,
    /// Connections that ended by the peer's fault: reset, timed out, never read.
    pub faults: Counter,
    /// Peers turned away, by reason.
    pub refused: [Counter; REASONS_MAX],
}

impl Counters {
    /// A set that goes on from these.
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
        counters
    }
}

/// The sum of some sets at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(
    missing_docs,
    reason = "each field is the sum of the counter of the same name"
)]
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
}

impl Totals {
    /// Sums up the sets of all workers.
    pub fn of<'a>(sets: impl IntoIterator<Item = &'a Counters>) -> Self {
        let mut totals = Self::default();
        for set in sets {
            // `closed` is read before `accepted`, so that the difference is never negative.
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
            });
        }
        totals
    }

    /// Adds others to these.
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
    }

    /// Connections that are there now.
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
        let mut twice = Totals::of([&ones]);
        twice.add(&Totals::of([&ones]));
        assert_eq!(twice, Totals::of([&ones, &ones]));
        assert_eq!((twice.accepted, twice.unsent, twice.refused[7]), (2, 2, 2));
        assert_eq!(Totals::of([&Counters::from_totals(&twice)]), twice);
    }

    #[test]
    fn counters_of_two_workers_never_share_a_cache_line() {
        assert_eq!(align_of::<Counters>() % 128, 0);
    }
}
