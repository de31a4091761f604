//! Which peers the control plane means, and in which order it lists them.
//!
//! Knows what is known of a peer without a system call, and the round-trip time where the order needs
//! it. Never touches a socket or reads a clock. `peers` applies it to the peers of a worker.

use std::cmp::Reverse;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::driver::{Source, ip_of};

/// Which peers are meant: those that fit every field that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The peer with this id.
    pub id: Option<u64>,
    /// Those of this listener.
    pub listener: Option<String>,
    /// Those with an address in this network; an IPv4-mapped one is given as the IPv4 network.
    pub network: Option<IpNet>,
    /// Those that have been there for at least this time.
    pub older: Duration,
    /// Those that have been silent for at least this time.
    pub idle: Duration,
}

/// What is known of a peer at no cost.
#[derive(Clone, Copy, Debug)]
#[allow(
    clippy::missing_docs_in_private_items,
    reason = "the names are those of the control protocol"
)]
pub struct Candidate<'a> {
    pub id: u64,
    pub listener: &'a str,
    /// `None` for the client of a Unix stream, which has no name.
    pub source: Option<&'a Source>,
    pub opened: Instant,
    /// When it was last active.
    pub active: Instant,
    pub bytes_received: u64,
    pub bytes_sent: u64,
}

impl Selection {
    /// Whether this peer is meant.
    #[must_use]
    pub fn matches(&self, now: Instant, peer: &Candidate<'_>) -> bool {
        self.id.is_none_or(|id| id == peer.id)
            && self
                .listener
                .as_ref()
                .is_none_or(|name| name == peer.listener)
            && now.saturating_duration_since(peer.opened) >= self.older
            && now.saturating_duration_since(peer.active) >= self.idle
            && self.network.is_none_or(|network| {
                let address = peer.source.and_then(ip_of);
                address.is_some_and(|address| network.contains(&address.to_canonical()))
            })
    }
}

/// The order of a list of peers. Numbers come largest first; peers that are equal by id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// By id.
    #[default]
    Id,
    /// By the listener's name.
    Listener,
    /// IPv4, then IPv6, by number; then names, then peers without one.
    Address,
    /// By the time since the peer is there.
    Age,
    /// By the time since it was active.
    Idle,
    /// By the bytes that it has sent.
    Received,
    /// By the bytes that were sent to it.
    Sent,
    /// By the round-trip time; those of which none is known come last.
    Rtt,
}

/// The place of a peer in a list. No two peers have the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    key: Key,
    id: u64,
}

/// What a list is ordered by. In one list all are of the same variant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Nothing,
    Name(String),
    Endpoint(Endpoint),
    /// The earliest first: it has lasted longest.
    Since(Instant),
    Largest(Reverse<Option<u64>>),
}

/// An address, in the order of a list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Endpoint {
    Inet(IpAddr, u16),
    Name(String),
    None,
}

impl Order {
    /// The place of a peer in a list of this order. `rtt_us` is called if the order needs it.
    #[must_use]
    pub fn rank(self, peer: &Candidate<'_>, rtt_us: impl FnOnce() -> Option<u32>) -> Rank {
        let largest = |number| Key::Largest(Reverse(Some(number)));
        let key = match self {
            Self::Id => Key::Nothing,
            Self::Listener => Key::Name(peer.listener.to_owned()),
            Self::Address => Key::Endpoint(match peer.source {
                Some(Source::Inet(address)) => {
                    Endpoint::Inet(address.ip().to_canonical(), address.port())
                }
                Some(name @ Source::Unix(_)) => Endpoint::Name(name.to_string()),
                None => Endpoint::None,
            }),
            Self::Age => Key::Since(peer.opened),
            Self::Idle => Key::Since(peer.active),
            Self::Received => largest(peer.bytes_received),
            Self::Sent => largest(peer.bytes_sent),
            Self::Rtt => Key::Largest(Reverse(rtt_us().map(u64::from))),
        };
        Rank { key, id: peer.id }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn inet(address: &str) -> Source {
        Source::Inet(address.parse().unwrap())
    }

    /// A peer that came a minute ago, at the time that is returned, and was active 10 s ago.
    fn peer(source: Option<&Source>) -> (Instant, Candidate<'_>) {
        let opened = Instant::now();
        let now = opened + 60 * SECOND;
        let peer = Candidate {
            id: 7,
            listener: "main",
            source,
            opened,
            active: now - 10 * SECOND,
            bytes_received: 0,
            bytes_sent: 0,
        };
        (now, peer)
    }

    #[test]
    fn each_field_of_a_selection_narrows_it_down() {
        let source = inet("192.0.2.1:99");
        let (now, peer) = peer(Some(&source));
        let check = |change: fn(&mut Selection), expected: bool| {
            let mut selection = Selection::default();
            change(&mut selection);
            assert_eq!(selection.matches(now, &peer), expected, "{selection:?}");
        };
        check(|_| {}, true);
        check(|selection| selection.id = Some(7), true);
        check(|selection| selection.id = Some(8), false);
        check(|selection| selection.listener = Some("main".into()), true);
        check(|selection| selection.listener = Some("mai".into()), false);
        check(|selection| selection.older = 60 * SECOND, true);
        check(|selection| selection.older = 61 * SECOND, false);
        check(|selection| selection.idle = 10 * SECOND, true);
        check(|selection| selection.idle = 11 * SECOND, false);
        check(
            |selection| selection.network = "192.0.2.0/24".parse().ok(),
            true,
        );
        check(
            |selection| selection.network = "192.0.2.2/32".parse().ok(),
            false,
        );
        check(|selection| selection.network = "::/0".parse().ok(), false);
    }

    #[test]
    fn a_mapped_address_is_in_the_ipv4_network_and_a_name_in_none() {
        let any = Selection {
            network: "0.0.0.0/0".parse().ok(),
            ..Selection::default()
        };
        let mapped = inet("[::ffff:10.1.2.3]:7");
        let (now, mapped) = peer(Some(&mapped));
        assert!(any.matches(now, &mapped));
        let (now, nameless) = peer(None);
        assert!(!any.matches(now, &nameless));
    }

    #[test]
    fn numbers_come_largest_first_and_addresses_as_numbers() {
        let start = Instant::now();
        let sources = [
            Some(inet("10.0.0.10:7")),
            Some(inet("10.0.0.9:7")),
            None,
            Some(inet("[::1]:7")),
        ];
        let rtts = [Some(5), None, Some(50), None];
        let sorted = |order: Order| -> Vec<u64> {
            let mut ranks: Vec<Rank> = (0..4)
                .map(|index| {
                    let after = Duration::from_secs(index as u64);
                    let peer = Candidate {
                        id: index as u64 + 1,
                        listener: ["b", "b", "a", "b"][index],
                        source: sources[index].as_ref(),
                        opened: start + after,
                        active: start - after,
                        bytes_received: [1, 9, 1, 0][index],
                        bytes_sent: 4,
                    };
                    order.rank(&peer, || rtts[index])
                })
                .collect();
            ranks.sort();
            ranks.iter().map(|rank| rank.id).collect()
        };
        assert_eq!(sorted(Order::Id), [1, 2, 3, 4]);
        assert_eq!(sorted(Order::Listener), [3, 1, 2, 4]);
        assert_eq!(sorted(Order::Address), [2, 1, 4, 3]);
        assert_eq!(sorted(Order::Age), [1, 2, 3, 4]);
        assert_eq!(sorted(Order::Idle), [4, 3, 2, 1]);
        assert_eq!(sorted(Order::Received), [2, 1, 3, 4]);
        assert_eq!(sorted(Order::Sent), [1, 2, 3, 4]);
        assert_eq!(sorted(Order::Rtt), [3, 1, 2, 4]);
    }
}
