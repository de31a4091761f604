//! What the workers of one listener share: the number of its connections, and of each source's.
//!
//! Touched when a connection is accepted and when it is closed, never on the path of a message. The
//! lock is taken only where `max-per-source` is set.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use crate::driver::Permits;
use crate::policy::Refusal;
use crate::policy::limits::Sources;

/// The counts of one listener.
#[derive(Debug)]
pub struct Gate {
    /// One permit for each connection that the listener may have.
    pub permits: Arc<Permits>,
    // Connections that are open, and the most that were at one time. The permits do not tell: one is
    // also taken for a client that is not there or is refused.
    open: AtomicU32,
    peak: AtomicU32,
    sources: Mutex<Sources>,
}

/// How a connection is counted in its listener's [`Gate`], so that the same is taken back when it is
/// closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// It was admitted; otherwise it was accepted only to be reset, and counts as none of the
    /// listener's connections.
    pub is_admitted: bool,
    /// It holds one of the permits.
    pub has_permit: bool,
    /// It is counted as a connection of its source.
    pub counts_for_source: bool,
}

impl Gate {
    /// A gate that counts no connections yet.
    #[must_use]
    pub fn new(permits: Permits) -> Self {
        Self {
            permits: Arc::new(permits),
            open: AtomicU32::new(0),
            peak: AtomicU32::new(0),
            sources: Mutex::default(),
        }
    }

    /// Continues from the peak of an earlier gate of this listener.
    #[must_use]
    pub fn with_peak(mut self, peak: u32) -> Self {
        self.peak = AtomicU32::new(peak);
        self
    }

    /// The highest number of connections at one time.
    #[must_use]
    pub fn peak(&self) -> u32 {
        self.peak.load(Relaxed)
    }

    /// Counts a connection that was admitted by an earlier gate of this listener. It stays even if
    /// the limits have become lower since then: it is only not counted.
    #[must_use]
    pub fn readmit(&self, source: Option<IpAddr>, max_per_source: Option<u32>) -> Admission {
        self.count_open();
        Admission {
            is_admitted: true,
            has_permit: self.permits.try_take(),
            counts_for_source: source
                .zip(max_per_source)
                .is_some_and(|(source, max)| self.admit(source, max).is_ok()),
        }
    }

    pub(super) fn admit(&self, source: IpAddr, max: u32) -> Result<(), Refusal> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if sources.admit(source, max) {
            Ok(())
        } else {
            Err(Refusal::PerSource)
        }
    }

    /// Counts one more open connection.
    pub(super) fn count_open(&self) {
        let open = self.open.fetch_add(1, Relaxed) + 1;
        // Rarely is it the highest number so far, and a load alone leaves the cache line to others.
        if open > self.peak.load(Relaxed) {
            self.peak.fetch_max(open, Relaxed);
        }
    }

    /// Takes back what a connection of this source was counted as.
    pub(super) fn release(&self, admission: Admission, source: Option<IpAddr>) {
        if admission.is_admitted {
            self.open.fetch_sub(1, Relaxed);
        }
        if admission.has_permit {
            self.permits.give_back();
        }
        if let Some(source) = source.filter(|_| admission.counts_for_source) {
            let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
            sources.release(source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_the_highest_number_at_one_time_over_all_workers() {
        let gate = Gate::new(Permits::new(10, vec![]));
        let open = || gate.readmit(None, None);
        let [first, second] = [open(), open()];
        gate.release(first, None);
        let third = open();
        assert_eq!(gate.peak(), 2);
        for admission in [second, third] {
            gate.release(admission, None);
        }
        assert_eq!(gate.peak(), 2);
    }

    #[test]
    fn the_peak_continues_in_a_successor_and_rises_above_its_own_connections_only() {
        let gate = Gate::new(Permits::new(10, vec![])).with_peak(1);
        assert_eq!(gate.peak(), 1);
        for peak in [1, 2] {
            assert!(gate.readmit(None, None).is_admitted);
            assert_eq!(gate.peak(), peak);
        }
    }

    #[test]
    fn a_connection_that_is_accepted_only_to_be_reset_is_not_counted() {
        let gate = Gate::new(Permits::new(10, vec![]));
        gate.count_open();
        let refused = Admission {
            is_admitted: false,
            has_permit: false,
            counts_for_source: false,
        };
        gate.release(refused, None);
        gate.count_open();
        assert_eq!(gate.peak(), 2);
    }
}
