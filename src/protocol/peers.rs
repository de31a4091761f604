//! Which peers a request means, and in which order it wants them.
//!
//! Knows names and values; the workers apply them to the peers that there are.

use std::fmt::{self, Display};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

/// Which peers are meant: those that fit every field that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PeerQuery {
    /// The peer with this id.
    pub id: Option<u64>,
    /// Those of this listener.
    pub listener: Option<String>,
    /// Those whose address is in this network.
    pub address: Option<IpNet>,
    /// Those that have been there for at least this time.
    pub older_ms: Option<u64>,
    /// Those that have been silent for at least this time.
    pub idle_ms: Option<u64>,
}

impl PeerQuery {
    /// Whether anything narrows it down.
    #[must_use]
    pub(crate) fn has_selector(&self) -> bool {
        *self != Self::default()
    }
}

/// The rest of a sentence that begins with "the peers".
impl Display for PeerQuery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let duration = |ms| humantime::format_duration(Duration::from_millis(ms));
        let selectors = [
            self.id.map(|id| format!("with id {id}")),
            self.listener
                .as_ref()
                .map(|name| format!("of listener \"{name}\"")),
            self.address.map(|network| format!("from {network}")),
            self.older_ms
                .map(|ms| format!("open for at least {}", duration(ms))),
            self.idle_ms
                .map(|ms| format!("idle for at least {}", duration(ms))),
        ];
        let selectors: Vec<String> = selectors.into_iter().flatten().collect();
        if !selectors.is_empty() {
            write!(f, " {}", selectors.join(", "))?;
        }
        Ok(())
    }
}

/// The order of a list of peers. Numbers come largest first; peers that are equal by id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SortKey {
    /// By id, which is the order in which they came, within a worker.
    #[default]
    Id,
    /// By the listener's name.
    Listener,
    /// IPv4, then IPv6, by number; then those without an address.
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

impl SortKey {
    /// Every key, in the order in which messages list them.
    pub(crate) const ALL: [Self; 8] = [
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
    pub(crate) fn name(self) -> &'static str {
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
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|key| key.name() == name)
    }
}

/// A network as people write it: `10.0.0.0/8`, or a single address.
#[must_use]
pub(crate) fn parse_network(text: &str) -> Option<IpNet> {
    let network = text.parse::<IpNet>().ok();
    network.or_else(|| Some(text.parse::<IpAddr>().ok()?.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_without_a_selector_is_known() {
        assert!(!PeerQuery::default().has_selector());
        let idle_ms = Some(0);
        let query = PeerQuery {
            idle_ms,
            ..PeerQuery::default()
        };
        assert!(query.has_selector());
    }

    #[test]
    fn a_network_is_a_prefix_or_an_address() {
        let check = |text: &str, expected: Option<&str>| {
            let network = parse_network(text).map(|network| network.to_string());
            assert_eq!(network.as_deref(), expected);
        };
        check("10.0.0.0/8", Some("10.0.0.0/8"));
        check("10.1.2.3", Some("10.1.2.3/32"));
        check("2001:db8::1", Some("2001:db8::1/128"));
        check("::ffff:10.0.0.0/104", Some("::ffff:10.0.0.0/104"));
        check("main", None);
        check("10.0.0.0/33", None);
    }

    #[test]
    fn a_sort_key_is_found_by_its_name() {
        for key in SortKey::ALL {
            assert_eq!(SortKey::from_name(key.name()), Some(key));
        }
        assert_eq!(SortKey::from_name("size"), None);
    }
}
