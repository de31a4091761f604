//! What the workers of one listener share: the number of its connections, and of each source's.
//!
//! Touched when a connection is accepted and when it is closed, never on the path of a message. The
//! lock is taken only where `max-per-source` is set.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::driver::Permits;
use crate::policy::Refusal;
use crate::policy::limits::Sources;

/// The counts of one listener.
#[derive(Debug)]
pub struct Gate {
    /// One permit for each connection that the listener may have.
    pub permits: Arc<Permits>,
    sources: Mutex<Sources>,
}

/// How a connection is counted in its listener's [`Gate`], so that the same is taken back when it is
/// closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
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
            sources: Mutex::default(),
        }
    }

    /// Counts a connection that was admitted by an earlier gate of this listener. It stays even if
    /// the limits have become lower since then: it is only not counted.
    #[must_use]
    pub fn readmit(&self, source: Option<IpAddr>, max_per_source: Option<u32>) -> Admission {
        Admission {
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

    pub(super) fn release(&self, source: IpAddr) {
        self.sources
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .release(source);
    }
}
