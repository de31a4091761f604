//! A peer as clients see it: a worker's words in those of the protocol.

use std::time::Duration;

use crate::config::Protocol;
use crate::daemon::listeners::Listeners;
use crate::protocol::schema;
use crate::worker::mailbox;

/// None if its listener has been removed since the peer was found.
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
