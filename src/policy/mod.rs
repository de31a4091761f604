//! Admission and limits: whether a connection is accepted or a datagram answered, and for how long
//! a connection is kept.
//!
//! Knows addresses and counts, and neither sockets nor a clock: the counts and `now` are arguments.
//! See [`access`] for the address rules, [`ports`] for source ports and [`limits`] for counts and
//! timeouts.

#![forbid(unsafe_code)]

pub mod access;
pub mod limits;
pub mod ports;

pub use access::Access;
pub use ports::{RefusedPorts, SourcePorts};

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
}

impl Refusal {
    /// Every reason, in the order of the counters. A successor takes the counters over by their
    /// index, so new reasons are added at the end.
    pub const ALL: [Self; 7] = [
        Self::Denied,
        Self::Full,
        Self::PerSource,
        Self::NotUnicast,
        Self::NoAddress,
        Self::Oversize,
        Self::SourcePort,
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
        }
    }
}
