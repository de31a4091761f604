//! Handing the service over to a successor: the program that this process executes, or the process
//! that the service manager starts next.
//!
//! A record in memory describes the service ([`super::record`]); with every descriptor it travels in
//! carriers, sockets whose queues hold descriptors ([`crate::sys::handover`]). One side writes
//! ([`mod@write`]), the other finds ([`predecessor`]) and continues ([`restore`]). The successor begins
//! with the configuration that was in force and then reloads: sockets that stay are not touched,
//! those that go are emptied first, and what is wrong is logged and changes nothing. [`upgrade`]
//! decides when, [`program`] finds and executes. Nothing here knows the daemon as a whole.

pub(super) mod environment;
pub(super) mod predecessor;
pub(super) mod program;
mod restore;
pub(super) mod upgrade;
pub(super) mod write;

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// The name under which the service manager stores the carriers.
pub(super) const STORED: &str = "echod-handover";

/// `CLOCK_MONOTONIC` in nanoseconds, which is the same for all programs and processes.
pub(super) fn clock() -> u64 {
    // It always exists (clock_gettime(2)).
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
