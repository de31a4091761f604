//! Lists of the peers of a worker, and closing some of them: what `echoctl peers` and `echoctl kick`
//! ask for.
//!
//! A list is reported in parts, one each turn, so that thousands of peers delay no message.

use std::time::Instant;

use crate::driver::{Closing, Details, Driver, Source};
use crate::policy::CloseReason;

use super::ids::ListenerId;
use super::mailbox::{Peer, Report, SocketKind};
use super::sources::SourceEntry;
use super::{Slot, SlotKind, Worker};

/// The number of slots that are listed in one turn.
const SLOTS_PER_TURN: usize = 256;

/// A list that is being reported.
#[derive(Debug)]
pub(super) struct Listing {
    query: u64,
    next_slot: usize,
}

impl<D: Driver> Worker<D> {
    /// Begins a list. [`Self::continue_listing`] reports it.
    pub(super) fn list_peers(&mut self, query: u64) {
        self.listings.push_back(Listing {
            query,
            next_slot: 0,
        });
    }

    /// Reports the next part of the list that was asked for first.
    pub(super) fn continue_listing(&mut self, now: Instant) {
        let Some(listing) = self.listings.front_mut() else {
            return;
        };
        let query = listing.query;
        let from = listing.next_slot;
        let to = (from + SLOTS_PER_TURN).min(self.slots.len());
        listing.next_slot = to;
        let mut peers: Vec<Peer> = self
            .slots
            .range(from..to)
            .filter_map(|slot| self.connected_peer(now, slot))
            .collect();
        let last = to == self.slots.len();
        if last {
            self.listings.pop_front();
            // Sources of datagrams are few and fill no slots, so they are all in the last part.
            for listener in self.listeners.iter().flatten() {
                let entries = listener.sources.iter();
                peers.extend(entries.map(|entry| datagram_peer(now, listener.id, entry)));
            }
        }
        self.mailbox.report(Report::Peers { query, peers, last });
    }

    /// Closes the connections with these ids, and reports how many there were.
    pub(super) fn close_peers(&mut self, query: u64, ids: &[u64]) {
        let mut closed = 0;
        for number in 0..self.slots.len() {
            let slot = self.slots.at(number);
            let SlotKind::Connection(connection) = &slot.kind else {
                continue;
            };
            if ids.contains(&connection.id) && !connection.is_closing() {
                closed += 1;
                self.close_for(CloseReason::Kicked, slot.token, Closing::Now);
            }
        }
        self.mailbox.report(Report::PeersClosed { query, closed });
    }

    fn connected_peer(&self, now: Instant, slot: &Slot) -> Option<Peer> {
        let SlotKind::Connection(connection) = &slot.kind else {
            return None;
        };
        let listener = self.listeners[slot.listener as usize].as_ref()?;
        if connection.is_refused() {
            return None;
        }
        let activity = connection.activity();
        Some(Peer {
            id: connection.id,
            listener: listener.id,
            kind: SocketKind::Stream,
            source: connection.peer.map(Source::Inet),
            destination: None,
            age: now - activity.opened,
            idle: now - activity.active,
            bytes_received: connection.bytes_received,
            bytes_sent: connection.bytes_sent,
            details: self.driver.details(slot.token),
        })
    }
}

fn datagram_peer(now: Instant, listener: ListenerId, entry: &SourceEntry) -> Peer {
    Peer {
        id: entry.id,
        listener,
        kind: SocketKind::Datagram,
        source: Some(entry.source),
        destination: Some(entry.destination),
        age: now - entry.first,
        idle: now - entry.last,
        bytes_received: entry.bytes_received,
        bytes_sent: entry.bytes_sent,
        details: Details::default(),
    }
}
