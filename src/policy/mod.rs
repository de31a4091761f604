//! Who may talk to us, and how much: the decision to take a connection or a datagram.
//!
//! Knows addresses and counts. Never a socket or a clock: the counts and `now` are arguments.
//! Read on in [`access`] for the address rules and in [`limits`] for counts and times.

#![forbid(unsafe_code)]

pub mod access;
pub mod limits;

pub use access::Access;

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
    /// A datagram from a sender without an address, or from port 0.
    NoAddress,
    /// A datagram larger than can be answered whole.
    Oversize,
}

impl Refusal {
    /// Every reason; the order is that of the counters.
    pub const ALL: [Self; 6] = [
        Self::Denied,
        Self::Full,
        Self::PerSource,
        Self::NotUnicast,
        Self::NoAddress,
        Self::Oversize,
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
        }
    }
}
