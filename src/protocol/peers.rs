//! Peers: which of them a request means, in which order, and how many go into one reply.

use std::cmp::Reverse;
use std::net::{IpAddr, SocketAddr};
use std::vec;

use ipnet::IpNet;

use super::schema::{self, ListPeersReply, Peer};
use super::wire::Reply;

/// The most peers in one reply: about 100 KiB, which a client takes at once, and which the main
/// loop encodes in well under a millisecond.
pub const PAGE_PEERS_MAX: usize = 256;

/// Which peers are meant. What is not given does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerQuery {
    /// This one.
    pub id: Option<u64>,
    /// Those of this listener.
    pub listener: Option<String>,
    /// Those whose address is in this network.
    pub address: Option<IpNet>,
    /// Those that have been there for at least so long.
    pub older_ms: Option<u64>,
    /// Those that have been silent for at least so long.
    pub idle_ms: Option<u64>,
    /// Only connections: a source of datagrams cannot be closed.
    pub streams_only: bool,
    /// In which order they are listed.
    pub sort: SortKey,
    /// How many are listed at most.
    pub limit: Option<u64>,
}

impl PeerQuery {
    /// Whether anything narrows it down.
    #[must_use]
    pub fn has_selector(&self) -> bool {
        self.id.is_some()
            || self.listener.is_some()
            || self.address.is_some()
            || self.older_ms.is_some()
            || self.idle_ms.is_some()
    }

    /// Whether this peer is meant.
    #[must_use]
    pub fn matches(&self, peer: &Peer) -> bool {
        self.id.is_none_or(|id| id == peer.id)
            && self.older_ms.is_none_or(|least| peer.age_ms >= least)
            && self.idle_ms.is_none_or(|least| peer.idle_ms >= least)
            && self
                .listener
                .as_ref()
                .is_none_or(|name| *name == peer.listener)
            && self.address.is_none_or(|net| {
                let address = ip_address(&peer.address);
                address.is_some_and(|address| net.contains(&address))
            })
            && (!self.streams_only || is_stream(&peer.protocol))
    }

    /// Those that are meant, in order and no more than the limit, and how many are meant in all.
    #[must_use]
    pub fn select(&self, mut peers: Vec<Peer>) -> (Vec<Peer>, u64) {
        peers.retain(|peer| self.matches(peer));
        let total = peers.len() as u64;
        self.sort.sort(&mut peers);
        if let Some(limit) = self.limit {
            peers.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        }
        (peers, total)
    }
}

/// The order of a list of peers. Numbers come largest first; peers that are equal by id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SortKey {
    /// Those that came first.
    #[default]
    Id,
    /// By the listener's name.
    Listener,
    /// IPv4, then IPv6, by number; then those without an address.
    Address,
    /// Those that have been there longest.
    Age,
    /// Those that have been silent longest.
    Idle,
    /// Those that sent most to us.
    Received,
    /// Those that got most from us.
    Sent,
    /// Those that are farthest away; then those of which it is not known.
    Rtt,
}

impl SortKey {
    /// Every key, in the order in which messages list them.
    pub const ALL: [Self; 8] = [
        Self::Id,
        Self::Listener,
        Self::Address,
        Self::Age,
        Self::Idle,
        Self::Received,
        Self::Sent,
        Self::Rtt,
    ];

    /// The key's name on the wire and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Listener => "listener",
            Self::Address => "address",
            Self::Age => "age",
            Self::Idle => "idle",
            Self::Received => "received",
            Self::Sent => "sent",
            Self::Rtt => "rtt",
        }
    }

    /// The key of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|key| key.name() == name)
    }

    fn sort(self, peers: &mut [Peer]) {
        peers.sort_unstable_by_key(|peer| peer.id);
        // These are stable, so that peers which are equal stay in the order of their ids.
        match self {
            Self::Id => {}
            Self::Listener => peers.sort_by(|a, b| a.listener.cmp(&b.listener)),
            Self::Address => peers.sort_by_cached_key(|peer| match endpoint(&peer.address) {
                Some(endpoint) => (false, Some(endpoint), String::new()),
                None => (true, None, peer.address.clone()),
            }),
            Self::Age => peers.sort_by_key(|peer| Reverse(peer.age_ms)),
            Self::Idle => peers.sort_by_key(|peer| Reverse(peer.idle_ms)),
            Self::Received => peers.sort_by_key(|peer| Reverse(peer.bytes_received)),
            Self::Sent => peers.sort_by_key(|peer| Reverse(peer.bytes_sent)),
            Self::Rtt => peers.sort_by_key(|peer| Reverse(peer.rtt_us)),
        }
    }
}

/// A network as people write it: `10.0.0.0/8`, or a single address.
#[must_use]
pub fn parse_network(text: &str) -> Option<IpNet> {
    let network = text.parse::<IpNet>().ok();
    network.or_else(|| Some(text.parse::<IpAddr>().ok()?.to_canonical().into()))
}

/// Whether a peer of this protocol is a connection.
fn is_stream(protocol: &str) -> bool {
    matches!(protocol, "tcp" | "unix-stream")
}

/// The address and port of a peer that has them: `192.0.2.1:7`, `[2001:db8::1]:7`.
fn endpoint(text: &str) -> Option<(IpAddr, u16)> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        // ::ffff:a.b.c.d is the same host as a.b.c.d (RFC 4291, section 2.5.5.2).
        return Some((address.ip().to_canonical(), address.port()));
    }
    let address: IpAddr = text.parse().ok()?;
    Some((address.to_canonical(), 0))
}

fn ip_address(text: &str) -> Option<IpAddr> {
    endpoint(text).map(|(address, _)| address)
}

/// A list of peers as a sequence of replies, each made when it is asked for.
#[derive(Debug)]
pub struct Pages {
    peers: vec::IntoIter<Peer>,
    total: u64,
}

/// Cuts a list of peers into replies of at most [`PAGE_PEERS_MAX`].
#[must_use]
pub fn pages(peers: Vec<Peer>, total: u64) -> Pages {
    Pages {
        peers: peers.into_iter(),
        total,
    }
}

impl Pages {
    /// The next reply, and whether it is the last: without `more` the first is. An empty list is
    /// one reply too.
    pub fn next_page(&mut self, more: bool) -> Reply {
        let page = ListPeersReply {
            peers: self.peers.by_ref().take(PAGE_PEERS_MAX).collect(),
            total: self.total,
        };
        let parameters = schema::parameters(&page);
        if more && self.peers.len() > 0 {
            Reply::continued(parameters)
        } else {
            Reply::done(parameters)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(id: u64, address: &str) -> Peer {
        Peer {
            id,
            listener: "main".to_owned(),
            protocol: "tcp".to_owned(),
            address: address.to_owned(),
            ..Peer::default()
        }
    }

    fn ids(peers: &[Peer]) -> Vec<u64> {
        peers.iter().map(|peer| peer.id).collect()
    }

    fn sorted(sort: SortKey, peers: &[Peer]) -> Vec<u64> {
        let query = PeerQuery {
            sort,
            ..PeerQuery::default()
        };
        ids(&query.select(peers.to_vec()).0)
    }

    #[test]
    fn a_query_without_selectors_means_everybody() {
        assert!(PeerQuery::default().matches(&peer(1, "192.0.2.1:7")));
        assert!(!PeerQuery::default().has_selector());
    }

    #[test]
    fn each_selector_narrows_it_down() {
        let one = Peer {
            age_ms: 100,
            idle_ms: 50,
            ..peer(7, "192.0.2.1:99")
        };
        let check = |change: fn(&mut PeerQuery), expected: bool| {
            let mut query = PeerQuery::default();
            change(&mut query);
            assert_eq!(query.matches(&one), expected, "{query:?}");
        };
        check(|query| query.id = Some(7), true);
        check(|query| query.id = Some(8), false);
        check(|query| query.listener = Some("main".to_owned()), true);
        check(|query| query.listener = Some("mai".to_owned()), false);
        check(|query| query.older_ms = Some(100), true);
        check(|query| query.older_ms = Some(101), false);
        check(|query| query.idle_ms = Some(50), true);
        check(|query| query.idle_ms = Some(51), false);
        check(|query| query.address = parse_network("192.0.2.0/24"), true);
        check(|query| query.address = parse_network("192.0.2.1"), true);
        check(|query| query.address = parse_network("192.0.2.2"), false);
        check(|query| query.address = parse_network("::/0"), false);
    }

    #[test]
    fn addresses_are_found_however_they_are_written() {
        let query = |text| PeerQuery {
            address: parse_network(text),
            ..PeerQuery::default()
        };
        assert!(query("10.0.0.0/8").matches(&peer(1, "[::ffff:10.1.2.3]:7")));
        assert!(query("::ffff:10.1.2.3").matches(&peer(1, "10.1.2.3:7")));
        assert!(query("fe80::/10").matches(&peer(1, "[fe80::1%2]:7")));
        assert!(query("2001:db8::/32").matches(&peer(1, "2001:db8::1")));
        assert!(!query("0.0.0.0/0").matches(&peer(1, "/run/client.sock")));
        assert!(!query("0.0.0.0/0").matches(&peer(1, "")));
    }

    #[test]
    fn sources_of_datagrams_are_never_closed() {
        let query = PeerQuery {
            streams_only: true,
            ..PeerQuery::default()
        };
        let datagrams = Peer {
            protocol: "udp".to_owned(),
            ..peer(1, "192.0.2.1:7")
        };
        assert!(!query.matches(&datagrams));
        assert!(query.matches(&peer(1, "192.0.2.1:7")));
    }

    #[test]
    fn numbers_sort_largest_first_and_addresses_as_numbers() {
        let peers = [
            Peer {
                rtt_us: Some(5),
                idle_ms: 1,
                ..peer(1, "10.0.0.10:7")
            },
            Peer {
                rtt_us: None,
                idle_ms: 9,
                ..peer(2, "10.0.0.9:7")
            },
            Peer {
                rtt_us: Some(50),
                idle_ms: 1,
                ..peer(3, "/run/x")
            },
            peer(4, "[::1]:7"),
        ];
        assert_eq!(sorted(SortKey::Id, &peers), [1, 2, 3, 4]);
        assert_eq!(sorted(SortKey::Rtt, &peers), [3, 1, 2, 4]);
        assert_eq!(sorted(SortKey::Idle, &peers), [2, 1, 3, 4]);
        assert_eq!(sorted(SortKey::Address, &peers), [2, 1, 4, 3]);
    }

    #[test]
    fn a_limit_shortens_the_list_and_not_the_total() {
        let peers = (1..=5).map(|id| peer(id, "192.0.2.1:7")).collect();
        let query = PeerQuery {
            limit: Some(2),
            ..PeerQuery::default()
        };
        let (listed, total) = query.select(peers);
        assert_eq!((ids(&listed), total), (vec![1, 2], 5));
    }

    #[test]
    fn pages_hold_at_most_256_peers_and_the_last_says_so() {
        let all: Vec<Peer> = (0..600).map(|id| peer(id, "192.0.2.1:7")).collect();
        let mut paged = pages(all, 600);
        let mut sizes = Vec::new();
        loop {
            let reply = paged.next_page(true);
            sizes.push(reply.parameters["peers"].as_array().unwrap().len());
            assert_eq!(reply.parameters["total"], 600);
            if !reply.continues {
                break;
            }
        }
        assert_eq!(sizes, [256, 256, 88]);
    }

    #[test]
    fn without_more_there_is_one_page() {
        let all: Vec<Peer> = (0..300).map(|id| peer(id, "192.0.2.1:7")).collect();
        let reply = pages(all, 300).next_page(false);
        assert!(!reply.continues);
        assert_eq!(reply.parameters["peers"].as_array().unwrap().len(), 256);
        assert_eq!(reply.parameters["total"], 300);
    }

    #[test]
    fn nobody_is_one_empty_page() {
        let reply = pages(Vec::new(), 0).next_page(true);
        assert!(!reply.continues);
        assert_eq!(reply.parameters["total"], 0);
    }
}
