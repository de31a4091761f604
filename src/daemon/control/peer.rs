//! Peers in the words of the protocol and in those of the workers.
//!
//! A worker knows nothing of the control protocol, and the protocol nothing of workers, so which peers
//! are meant, and in which order, is a type of either. Here, and nowhere else, one becomes the other.

use std::time::Duration;

use crate::config::Protocol;
use crate::daemon::listeners::Listeners;
use crate::policy::access::canonical_network;
use crate::protocol::{PeerQuery, SortKey, schema};
use crate::worker::mailbox::{self, Order, Selection};

/// Which peers the workers are to look for.
pub(super) fn selection(query: PeerQuery) -> Selection {
    let duration = |ms: Option<u64>| Duration::from_millis(ms.unwrap_or(0));
    Selection {
        id: query.id,
        listener: query.listener,
        network: query.address.map(canonical_network),
        older: duration(query.older_ms),
        idle: duration(query.idle_ms),
    }
}

/// The order in which they are to list them.
pub(super) fn order(sort: SortKey) -> Order {
    match sort {
        SortKey::Id => Order::Id,
        SortKey::Listener => Order::Listener,
        SortKey::Address => Order::Address,
        SortKey::Age => Order::Age,
        SortKey::Idle => Order::Idle,
        SortKey::Received => Order::Received,
        SortKey::Sent => Order::Sent,
        SortKey::Rtt => Order::Rtt,
    }
}

/// A peer as clients see it; none if its listener has been removed since the peer was found.
pub(super) fn describe(peer: &mailbox::Peer, listeners: &Listeners) -> Option<schema::Peer> {
    let (listener, protocol) = listeners.describe(peer.listener)?;
    let nameless = if protocol == Protocol::UnixStream {
        "unix"
    } else {
        "unknown"
    };
    let local = match peer.destination {
        None => peer.details.local.map(|local| local.to_string()),
        Some(destination) => listeners.describe_destination(destination),
    };
    Some(schema::Peer {
        id: peer.id,
        listener: listener.into(),
        protocol: protocol.name().into(),
        address: peer
            .source
            .map_or_else(|| nameless.into(), |source| source.to_string()),
        // A Unix socket has no address for each connection, only the path of its listener.
        local_address: local
            .or_else(|| listeners.local_path(peer.listener))
            .unwrap_or_default(),
        via: None,
        age_ms: millis(peer.age),
        idle_ms: millis(peer.idle),
        bytes_received: peer.bytes_received,
        bytes_sent: peer.bytes_sent,
        rtt_us: peer.details.rtt_us.map(u64::from),
        retransmits: peer.details.retransmits.map(u64::from),
        send_queue: peer.details.send_queue.map(u64::from),
        pid: peer.details.pid.and_then(|pid| u32::try_from(pid).ok()),
        uid: peer.details.uid,
    })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
