//! Addresses that are used twice: which of them can't be served at one time.
//!
//! Takes time in proportion to their number: each one is looked up among those before it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::findings::{Findings, position_of};
use super::table::Table;
use super::typed::Place;
use super::{Address, Protocol, Source};

/// What was typed as one address.
pub(super) struct Claim {
    pub(super) place: Place,
    pub(super) quoted: String,
    pub(super) owner: Owner,
    pub(super) addresses: Vec<Address>,
}

#[derive(PartialEq, Eq)]
pub(super) enum Owner {
    Control,
    Listener(String, Protocol),
}

/// How two addresses exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Clash {
    /// They are the same.
    Same,
    /// One is part of the other.
    Overlap,
}

/// Refuses each claim that an earlier one excludes.
pub(super) fn report(mut claims: Vec<Claim>, sources: &[Source], errors: &mut Findings) {
    claims.sort_by_key(|claim| claim.place);
    let mut known = Known::default();
    for (index, late) in claims.iter().enumerate() {
        let protocol = late.owner.protocol();
        let clashes = late
            .addresses
            .iter()
            .filter_map(|address| known.clash(protocol, address));
        if let Some((early, clash)) = clashes.min() {
            errors.add_with(late.place, || {
                let message = late.message(&claims[early], clash, sources);
                (Some(late.key()), message)
            });
        }
        for address in &late.addresses {
            known.insert(protocol, address, index);
        }
    }
}

/// Addresses and the index of the first claim of each.
#[derive(Default)]
struct Known<'a> {
    /// Unix paths share one name space, whatever the kind of socket.
    paths: BTreeMap<&'a Path, usize>,
    sockets: BTreeMap<(Port, IpAddr, u32), usize>,
    /// Of each port any address, and the wildcard address.
    ports: BTreeMap<Port, (usize, Option<usize>)>,
}

/// A protocol, whether it is over IPv4, and the number.
type Port = (Protocol, bool, u16);

impl<'a> Known<'a> {
    /// The first claim that excludes this address.
    fn clash(&self, protocol: Protocol, address: &Address) -> Option<(usize, Clash)> {
        let address = match address {
            Address::Unix(path) => {
                let early = self.paths.get(path.as_path())?;
                return Some((*early, Clash::Same));
            }
            Address::Inet { address, .. } => address,
        };
        let port = port(protocol, address);
        let same = self.sockets.get(&(port, address.ip(), scope(address)));
        let same = same.map(|early| (*early, Clash::Same));
        let overlap = self.ports.get(&port).and_then(|(any, wildcard)| {
            let early = if address.ip().is_unspecified() {
                Some(*any)
            } else {
                *wildcard
            };
            Some((early?, Clash::Overlap))
        });
        same.into_iter().chain(overlap).min()
    }

    fn insert(&mut self, protocol: Protocol, address: &'a Address, index: usize) {
        let address = match address {
            Address::Unix(path) => {
                self.paths.entry(path).or_insert(index);
                return;
            }
            // Port 0 is another one each time.
            Address::Inet { address, .. } if address.port() == 0 => return,
            Address::Inet { address, .. } => address,
        };
        let port = port(protocol, address);
        let socket = (port, address.ip(), scope(address));
        self.sockets.entry(socket).or_insert(index);
        let (_, wildcard) = self.ports.entry(port).or_insert((index, None));
        if address.ip().is_unspecified() {
            wildcard.get_or_insert(index);
        }
    }
}

fn port(protocol: Protocol, address: &SocketAddr) -> Port {
    (protocol, address.is_ipv4(), address.port())
}

/// The same link-local address on another interface is another address.
fn scope(address: &SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(address) => address.scope_id(),
    }
}

impl Owner {
    fn protocol(&self) -> Protocol {
        match self {
            Self::Control => Protocol::UnixStream,
            Self::Listener(_, protocol) => *protocol,
        }
    }
}

impl Claim {
    fn key(&self) -> String {
        match &self.owner {
            Owner::Control => Table::Control.path("socket"),
            Owner::Listener(name, _) => Table::Listener(name.clone()).path("address"),
        }
    }

    fn message(&self, early: &Self, clash: Clash, sources: &[Source]) -> String {
        let subject = match &self.owner {
            Owner::Control => "control: socket".into(),
            Owner::Listener(name, _) => format!("listener \"{name}\": address"),
        };
        let owner = match &early.owner {
            owner if *owner == self.owner => "this listener".into(),
            Owner::Control => "the control socket".into(),
            Owner::Listener(name, _) => format!("listener \"{name}\""),
        };
        let source = &sources[early.place.source];
        let (line, _) = position_of(&source.text, early.place.offset.unwrap_or_default());
        let place = match early.place.source == self.place.source {
            _ if source.is_argument() => source.name.clone(),
            true => format!("line {line}"),
            false => format!("{}:{line}", source.name),
        };
        let quoted = &self.quoted;
        match clash {
            Clash::Same => format!("{subject} {quoted}: already used by {owner} ({place})"),
            Clash::Overlap => {
                let other = &early.quoted;
                format!(
                    "{subject} {quoted}: overlaps {other} of {owner} ({place}): keep one of the two"
                )
            }
        }
    }
}
