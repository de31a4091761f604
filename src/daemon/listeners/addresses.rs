//! Sockets by the IP address and port that they are bound to: which have the same, and which exclude
//! each other.
//!
//! Knows addresses, never a socket. Takes time in proportion to what is found.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::worker::mailbox::{SocketId, SocketKind};

/// Ids of sockets, sorted by their addresses.
#[derive(Debug, Default)]
pub(super) struct AddressIndex(BTreeSet<(ComparedAddress, SocketId)>);

/// An address as the kernel compares it. All those of one port follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ComparedAddress {
    kind: SocketKind,
    is_ipv4: bool,
    port: u16,
    ip: IpAddr,
    /// The same link-local address on another interface is another address.
    scope: u32,
}

impl ComparedAddress {
    fn new(kind: SocketKind, address: SocketAddr) -> Self {
        Self {
            kind,
            is_ipv4: address.is_ipv4(),
            port: address.port(),
            ip: address.ip(),
            scope: match address {
                SocketAddr::V4(_) => 0,
                SocketAddr::V6(address) => address.scope_id(),
            },
        }
    }

    /// The wildcard address of the same port.
    fn wildcard(self) -> Self {
        let ip = match self.ip {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        Self {
            ip,
            scope: 0,
            ..self
        }
    }

    /// No address of the same port is greater.
    fn last_of_port(self) -> Self {
        Self {
            ip: Ipv6Addr::from_bits(u128::MAX).into(),
            scope: u32::MAX,
            ..self
        }
    }
}

impl AddressIndex {
    pub(super) fn insert(&mut self, kind: SocketKind, address: SocketAddr, id: SocketId) {
        self.0.insert((ComparedAddress::new(kind, address), id));
    }

    pub(super) fn remove(&mut self, kind: SocketKind, address: SocketAddr, id: SocketId) {
        self.0.remove(&(ComparedAddress::new(kind, address), id));
    }

    /// The sockets that have this very address, in ascending order.
    pub(super) fn at(
        &self,
        kind: SocketKind,
        address: SocketAddr,
    ) -> impl Iterator<Item = SocketId> {
        let place = ComparedAddress::new(kind, address);
        self.between(place, place)
    }

    /// The sockets for which the kernel refuses this address to another one: those that have it, and
    /// those of which one has the wildcard address and the other a part of it.
    pub(super) fn excluding(
        &self,
        kind: SocketKind,
        address: SocketAddr,
    ) -> impl Iterator<Item = SocketId> {
        let place = ComparedAddress::new(kind, address);
        let wildcard = place.wildcard();
        let last = match place == wildcard {
            true => place.last_of_port(),
            false => place,
        };
        let wider = (place != wildcard).then(|| self.between(wildcard, wildcard));
        self.between(place, last).chain(wider.into_iter().flatten())
    }

    /// The sockets that have this port, at any address.
    pub(super) fn at_port(&self, kind: SocketKind, port: u16) -> impl Iterator<Item = SocketId> {
        let families: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let first = families.map(|ip| ComparedAddress::new(kind, SocketAddr::new(ip, port)));
        first
            .into_iter()
            .flat_map(|first| self.between(first, first.last_of_port()))
    }

    fn between(
        &self,
        first: ComparedAddress,
        last: ComparedAddress,
    ) -> impl Iterator<Item = SocketId> {
        let range = (first, SocketId(0))..=(last, SocketId(u32::MAX));
        self.0.range(range).map(|(_, id)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(addresses: &[&str]) -> AddressIndex {
        let mut index = AddressIndex::default();
        for (id, address) in addresses.iter().enumerate() {
            let id = SocketId(id as u32);
            index.insert(SocketKind::Stream, address.parse().unwrap(), id);
        }
        index
    }

    fn ids(found: impl Iterator<Item = SocketId>) -> Vec<u32> {
        let mut ids: Vec<u32> = found.map(|id| id.0).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn addresses_exclude_each_other_if_they_are_the_same_or_one_is_the_wildcard() {
        let index = index(&[
            "127.0.0.1:7",
            "127.0.0.2:7",
            "0.0.0.0:7",
            "127.0.0.1:8",
            "[::1]:7",
            "[fe80::1%2]:7",
        ]);
        for (address, same, excluding) in [
            ("127.0.0.1:7", &[0][..], &[0, 2][..]),
            ("127.0.0.3:7", &[], &[2]),
            ("0.0.0.0:7", &[2], &[0, 1, 2]),
            ("0.0.0.0:9", &[], &[]),
            ("[::]:7", &[], &[4, 5]),
            ("[fe80::1%3]:7", &[], &[]),
            ("[fe80::1%2]:7", &[5], &[5]),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(ids(index.at(SocketKind::Stream, address)), same);
            let found = ids(index.excluding(SocketKind::Stream, address));
            assert_eq!(found, excluding, "{address}");
            let other = index.excluding(SocketKind::Datagram, address);
            assert_eq!(other.count(), 0, "sockets of the other kind do not matter");
        }
    }

    #[test]
    fn a_socket_that_was_removed_is_not_found() {
        let mut index = index(&["127.0.0.1:7", "127.0.0.1:7"]);
        let address = "127.0.0.1:7".parse().unwrap();
        index.remove(SocketKind::Stream, address, SocketId(0));
        assert_eq!(ids(index.at(SocketKind::Stream, address)), [1]);
    }
}
