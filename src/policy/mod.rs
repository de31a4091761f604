//! Admission and limits: whether a connection is accepted or a datagram answered, for how long a
//! connection is kept, and the reasons for which it is refused or closed.
//!
//! Knows addresses and counts, and neither sockets nor a clock: the counts and `now` are arguments.
//! See [`access`] for the address rules, [`ports`] for source ports and [`limits`] for counts and
//! timeouts.

#![forbid(unsafe_code)]

pub(crate) mod access;
pub(crate) mod limits;
pub(crate) mod ports;

use serde::{Deserialize, Serialize};

pub use access::Access;
pub use limits::Intake;
pub(crate) use ports::RefusedPorts;
pub use ports::SourcePorts;

/// Why a connection was not accepted, or a datagram not answered. Each reason has its own counter in
/// `refused`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The source address is refused by the address rules (`allow`, `deny`).
    Denied,
    /// The listener has `max-connections`, and `when-full = "reset"`.
    Full,
    /// The source has `max-per-source` connections.
    PerSource,
    /// The datagram was sent to a broadcast or multicast address, where many hosts would answer it.
    NotUnicast,
    /// The datagram has no source address to answer to: it is from an unbound Unix socket, or from
    /// port 0 and `refuse-source-ports` does not include that.
    NoAddress,
    /// The datagram is too large to be answered whole.
    Oversize,
    /// The datagram is from a port that `refuse-source-ports` refuses.
    SourcePort,
    /// An operator has paused the listener, or drains it.
    Paused,
}

impl Refusal {
    /// Every reason, in the order of the counters. A successor takes the counters over by their
    /// index, so new reasons are added at the end.
    pub const ALL: [Self; 8] = [
        Self::Denied,
        Self::Full,
        Self::PerSource,
        Self::NotUnicast,
        Self::NoAddress,
        Self::Oversize,
        Self::SourcePort,
        Self::Paused,
    ];

    /// The reason's name in `refused` of the control protocol, in tables and in the log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Full => "full",
            Self::PerSource => "per-source",
            Self::NotUnicast => "not-unicast",
            Self::NoAddress => "no-address",
            Self::Oversize => "oversize",
            Self::SourcePort => "source-port",
            Self::Paused => "paused",
        }
    }
}

/// Why a connection was closed: what began its end. Each reason has its own counter in `closed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CloseReason {
    /// The peer has half-closed, or the connection is `one-shot`, and everything was sent.
    Finished,
    /// The peer has reset it.
    Reset,
    /// The peer has sent nothing for `idle-timeout`.
    Idle,
    /// It has reached `max-lifetime`.
    Lifetime,
    /// The peer has read nothing for `write-stall-timeout`.
    Stalled,
    /// An operator has closed it (`echoctl kick`).
    Kicked,
    /// The service was stopping, or an operator drained the listener, and the time for that was over.
    Drained,
    /// It was lost otherwise: the peer no longer answered or was unreachable.
    Failed,
}

impl CloseReason {
    /// Every reason, in the order of the counters. A successor takes the counters over by their
    /// index, so new reasons are added at the end.
    pub const ALL: [Self; 8] = [
        Self::Finished,
        Self::Reset,
        Self::Idle,
        Self::Lifetime,
        Self::Stalled,
        Self::Kicked,
        Self::Drained,
        Self::Failed,
    ];

    /// The reason's name in `closed` of the control protocol and in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Reset => "reset",
            Self::Idle => "idle",
            Self::Lifetime => "lifetime",
            Self::Stalled => "stalled",
            Self::Kicked => "kicked",
            Self::Drained => "drained",
            Self::Failed => "failed",
        }
    }

    /// The reason as a clause that follows "because" in the log.
    #[must_use]
    pub fn clause(self) -> &'static str {
        match self {
            Self::Finished => "the conversation was finished",
            Self::Reset => "the peer reset it",
            Self::Idle => "the peer sent nothing for idle-timeout",
            Self::Lifetime => "it reached max-lifetime",
            Self::Stalled => "the peer read nothing for write-stall-timeout",
            Self::Kicked => "an operator closed it",
            Self::Drained => "it was drained and the time for that is over",
            Self::Failed => "it failed",
        }
    }
}
