//! Who may talk to us, and how much: the decision to take a connection or a datagram.
//!
//! Knows addresses and counts. Never a socket or a clock: the counts and `now` are arguments.
//! Read on in [`access`] for the address rules, in [`ports`] for source ports and in [`limits`] for
//! counts and times.

#![forbid(unsafe_code)]

pub mod access;
pub mod limits;
pub mod ports;

pub use access::Access;
pub use ports::{RefusedPorts, SourcePorts};

/// Why a peer was turned away. Each reason is a counter of its own in `refused`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The address rules (`allow`, `deny`) say no.
    Denied,
    /// `max-connections` is reached, and `when-full = "reset"`.
    Full,
    /// `max-per-source` is reached.
    PerSource,
    /// A datagram to a broadcast or multicast address: one request, many answers.
    NotUnicast,
    /// A datagram from a sender without an address, or from port 0 where that is not refused as such.
    NoAddress,
    /// A datagram larger than can be answered whole.
    Oversize,
    /// A datagram from a port that is in `refuse-source-ports`.
    SourcePort,
}

impl Refusal {
    /// Every reason. The order is that of the counters, which are handed over to the next process by
    /// their number: new ones come last.
    pub const ALL: [Self; 7] = [
        Self::Denied,
        Self::Full,
        Self::PerSource,
        Self::NotUnicast,
        Self::NoAddress,
        Self::Oversize,
        Self::SourcePort,
    ];

    /// The reason's name in `refused`, in tables and in the log.
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
