//! Destinations whose path does not take merged answers.
//!
//! The kernel cuts a merged message only where each datagram fits the path's MTU
//! (`UDP_SEGMENT`, udp(7)), and how wide a path is it knows for each destination. What one
//! destination has taught must not change what others get, so it is kept by destination, in a table
//! of fixed size: an entry lasts until another destination needs its slot.

use std::net::IpAddr;

use crate::driver::Source;

/// How many destinations are remembered at most.
const SLOTS: usize = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Paths {
    limits: [Option<Limit>; SLOTS],
    is_empty: bool,
}

#[derive(Clone, Copy, Debug)]
struct Limit {
    destination: IpAddr,
    /// Datagrams of this size or more are sent one by one.
    size: u16,
}

impl Paths {
    pub(super) const fn new() -> Self {
        Self {
            limits: [None; SLOTS],
            is_empty: true,
        }
    }

    /// Datagrams to this destination are merged if they are smaller than this, in bytes.
    pub(super) fn merged_below(&self, destination: &Source) -> usize {
        // Hardly any socket has met a narrow path.
        if self.is_empty {
            return usize::MAX;
        }
        let Source::Inet(address) = destination else {
            return usize::MAX;
        };
        match self.limits[slot(address.ip())] {
            Some(limit) if limit.destination == address.ip() => limit.size.into(),
            _ => usize::MAX,
        }
    }

    /// The kernel would not cut a message to this destination into datagrams of `size` bytes.
    pub(super) fn handle_not_cut(&mut self, destination: &Source, size: usize) {
        if let Source::Inet(address) = destination {
            let destination = address.ip();
            let size = u16::try_from(size).unwrap_or(u16::MAX);
            self.limits[slot(destination)] = Some(Limit { destination, size });
            self.is_empty = false;
        }
    }
}

fn slot(destination: IpAddr) -> usize {
    (fold(destination).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % SLOTS
}

/// An address in 64 bits, for hashing.
pub(super) fn fold(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            (bits >> 64) as u64 ^ bits as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;

    fn source(host: u32, port: u16) -> Source {
        Source::Inet(SocketAddr::new(Ipv4Addr::from_bits(host).into(), port))
    }

    #[test]
    fn a_narrow_path_limits_its_own_destination_only() {
        let mut paths = Paths::new();
        assert_eq!(paths.merged_below(&source(1, 7)), usize::MAX);
        paths.handle_not_cut(&source(1, 7), 1472);
        assert_eq!(paths.merged_below(&source(1, 9)), 1472, "another port");
        for host in 2..1000 {
            assert_eq!(paths.merged_below(&source(host, 7)), usize::MAX);
        }
    }

    #[test]
    fn the_table_stays_small_and_keeps_the_newest() {
        let mut paths = Paths::new();
        for host in 0..10_000 {
            paths.handle_not_cut(&source(host, 7), 1400);
            assert_eq!(paths.merged_below(&source(host, 7)), 1400);
        }
        let known = (0..10_000).filter(|&host| paths.merged_below(&source(host, 7)) == 1400);
        assert!((1..=SLOTS).contains(&known.count()));
    }
}
