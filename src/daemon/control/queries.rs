//! Questions that only the workers can answer: who is there, and close those.
//!
//! The control plane asks all of them and goes on with other things; when the last has answered,
//! so is the client.

use std::sync::Arc;

use crate::config::Protocol;
use crate::protocol::schema::{self, ClosePeersReply};
use crate::protocol::{self, PeerQuery};
use crate::worker::mailbox::{self, Command};

use crate::daemon::control::{ClientId, Reply};
use crate::daemon::listeners::Listeners;
use crate::daemon::workers::Workers;

/// Those that are not yet answered.
#[derive(Debug, Default)]
pub(crate) struct Queries {
    open: Vec<Query>,
    last_id: u64,
}

#[derive(Debug)]
struct Query {
    id: u64,
    client: ClientId,
    // Workers that have not yet answered.
    waits_for: usize,
    asked: Asked,
}

#[derive(Debug)]
enum Asked {
    /// Say who is there, or, before closing some, find out who they are.
    Peers {
        query: PeerQuery,
        then: Then,
        found: Vec<schema::Peer>,
    },
    /// Close them.
    Close { matched: u64, closed: u64 },
}

#[derive(Clone, Copy, Debug)]
enum Then {
    List,
    Close { dry_run: bool },
}

/// A client and what it is told.
pub(crate) type Answer = (ClientId, Reply);

impl Queries {
    /// Asks who is there.
    pub(crate) fn list(&mut self, client: ClientId, query: PeerQuery, workers: &Workers) {
        self.ask_for_peers(client, query, Then::List, workers);
    }

    /// Asks that those be closed.
    pub(crate) fn close(
        &mut self,
        client: ClientId,
        query: PeerQuery,
        dry_run: bool,
        workers: &Workers,
    ) {
        self.ask_for_peers(client, query, Then::Close { dry_run }, workers);
    }

    fn ask_for_peers(&mut self, client: ClientId, query: PeerQuery, then: Then, workers: &Workers) {
        let id = self.open(
            client,
            Asked::Peers {
                query,
                then,
                found: Vec::new(),
            },
            workers,
        );
        workers.command_all(|_| Command::ListPeers { query: id });
    }

    fn open(&mut self, client: ClientId, asked: Asked, workers: &Workers) -> u64 {
        self.last_id += 1;
        self.open.push(Query {
            id: self.last_id,
            client,
            waits_for: workers.count(),
            asked,
        });
        self.last_id
    }

    /// Whether all are answered.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// A worker has found some peers.
    pub(crate) fn handle_peers(
        &mut self,
        id: u64,
        peers: &[mailbox::Peer],
        last: bool,
        listeners: &Listeners,
        workers: &Workers,
    ) -> Option<Answer> {
        let index = self.open.iter().position(|query| query.id == id)?;
        let open = &mut self.open[index];
        if let Asked::Peers { query, found, .. } = &mut open.asked {
            let peers = peers
                .iter()
                .filter_map(|peer| peer_for_people(peer, listeners));
            found.extend(peers.filter(|peer| query.matches(peer)));
        }
        open.waits_for -= usize::from(last);
        if open.waits_for > 0 {
            return None;
        }
        let Query {
            client,
            asked: Asked::Peers { query, then, found },
            ..
        } = self.open.swap_remove(index)
        else {
            return None;
        };
        let (peers, total) = query.select(found);
        match then {
            Then::List => Some((client, Reply::Pages(protocol::pages(peers, total)))),
            Then::Close { dry_run } if dry_run || total == 0 => Some(closed(client, total, 0)),
            Then::Close { .. } => {
                let ids: Arc<[u64]> = peers.iter().map(|peer| peer.id).collect();
                let id = self.open(
                    client,
                    Asked::Close {
                        matched: total,
                        closed: 0,
                    },
                    workers,
                );
                workers.command_all(|_| Command::ClosePeers {
                    query: id,
                    ids: Arc::clone(&ids),
                });
                None
            }
        }
    }

    /// A worker has closed some peers.
    pub(crate) fn handle_closed(&mut self, id: u64, count: u64) -> Option<Answer> {
        let index = self.open.iter().position(|query| query.id == id)?;
        let open = &mut self.open[index];
        let Asked::Close {
            matched,
            closed: so_far,
        } = &mut open.asked
        else {
            return None;
        };
        *so_far += count;
        let (matched, so_far) = (*matched, *so_far);
        open.waits_for -= 1;
        if open.waits_for > 0 {
            return None;
        }
        let client = self.open.swap_remove(index).client;
        Some(closed(client, matched, so_far))
    }
}

fn closed(client: ClientId, matched: u64, closed: u64) -> Answer {
    (
        client,
        Reply::One(protocol::reply(&ClosePeersReply { matched, closed })),
    )
}

fn peer_for_people(peer: &mailbox::Peer, listeners: &Listeners) -> Option<schema::Peer> {
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

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
