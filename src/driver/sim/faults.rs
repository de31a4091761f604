//! What goes wrong in a simulation, and how often; and the random numbers that decide it.

use std::time::Duration;

/// The probability of each fault, from 0 to 1. By default there are none.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// A send takes only some of the bytes.
    pub(crate) short_write: f64,
    /// A send takes nothing although there is room.
    pub(crate) stall: f64,
    /// A receive takes only some of the bytes.
    pub(crate) split_read: f64,
    /// Bytes that arrive are relayed, if the user allows it.
    pub(crate) relay: f64,
    /// A receive finds no buffer although some are free.
    pub(crate) famine: f64,
    /// The peer of a new connection has a small receive window.
    pub(crate) small_window: f64,
    /// A connection is reset, each turn.
    pub(crate) reset: f64,
    /// An accept fails with EMFILE.
    pub(crate) accept_error: f64,
    /// A queued client was reset before it was accepted (ECONNABORTED).
    pub(crate) abort: f64,
    /// A datagram send fails with ENETUNREACH.
    pub(crate) send_error: f64,
    /// The longest delay of a client, segment or datagram on its way to the driver.
    pub(crate) delay: Duration,
}

impl Faults {
    /// Faults that delay, but lose no bytes and end no connection.
    pub(crate) fn rough() -> Self {
        Self {
            short_write: 0.3,
            stall: 0.2,
            split_read: 0.3,
            relay: 0.5,
            famine: 0.2,
            small_window: 0.3,
            delay: Duration::from_millis(5),
            ..Self::default()
        }
    }

    /// The same, and faults that break connections or fail calls.
    pub(crate) fn hostile() -> Self {
        Self {
            reset: 0.005,
            accept_error: 0.1,
            abort: 0.1,
            send_error: 0.1,
            ..Self::rough()
        }
    }
}

/// A seeded random number generator: splitmix64.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// From 0 to just below 1.
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
