//! What was measured: at one rate, or at the pace of the service.

use std::time::Duration;

use crate::probe::cause::Causes;
use crate::probe::latency::Latencies;

/// A measurement, without its warm-up.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    /// Messages a second that were due; none: each followed the one before (closed loop).
    pub(super) rate: Option<u64>,
    /// How long it took.
    pub(super) duration: Duration,
    /// Messages that were sent, or due.
    pub(super) sent: u64,
    /// Messages that came back whole.
    pub(super) messages: u64,
    /// Their bytes.
    pub(super) bytes: u64,
    /// Messages that came back while it was measured, whenever they were due: what the service has
    /// achieved in that time.
    pub(super) finished: u64,
    /// Datagrams that did not come back within the timeout.
    pub(super) lost: u64,
    /// Datagrams that came back after it.
    pub(super) late: u64,
    /// Further copies.
    pub(super) duplicates: u64,
    /// Wrong bytes: messages, or pieces of a stream.
    pub(super) corrupt: u64,
    /// From when a message was sent, or due, to when all of it had come back.
    pub(super) latencies: Latencies,
    /// What went wrong: refused, reset, mismatch.
    pub(super) errors: Causes,
    /// The longest time that this process was kept from running.
    pub(super) longest_pause: Duration,
    /// How much of its processors it used: 1.0 is all that its threads could.
    pub(super) busy: f64,
}

impl Measured {
    /// Messages a second that came back: of a service that can't keep up, less than the rate.
    #[must_use]
    pub(super) fn throughput(&self) -> f64 {
        self.finished as f64 / self.duration.as_secs_f64().max(1e-9)
    }
}
