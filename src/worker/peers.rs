//! Searches among the peers of a worker, for what `echoctl peers` and `echoctl kick` ask for: some of
//! them are listed, or closed; and for the end of a drain.
//!
//! A search takes several turns, a bounded part in each, so that thousands of peers delay no message,
//! and holds no more peers than it reports. `selection` decides which are meant, and their order.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::driver::{Closing, Details, Driver, Source, Token};
use crate::policy::CloseReason;

use super::ids::ListenerId;
use super::mailbox::{ClosedPeers, Ending, Peer, Report, SocketKind};
use super::selection::{Candidate, Order, Rank, Selection};
use super::sources::SourceEntry;
use super::streams::Connection;
use super::{SlotKind, Worker};

/// The number of slots and sources that are visited in one turn.
const VISITS_PER_TURN: usize = 256;

/// A search that is not yet complete.
#[derive(Debug)]
pub(super) struct Search {
    query: u64,
    selection: Selection,
    task: Task,
    next_slot: usize,
    // The index of the listener whose sources are visited next, after all slots.
    next_listener: usize,
}

/// What happens to the peers that are found.
#[derive(Debug)]
enum Task {
    List(Ranking),
    Close(Closure),
    /// Those of this listener are ended, and nothing is reported.
    End(ListenerId, Ending),
}

/// The first peers in an order, behind those that were listed before.
#[derive(Debug)]
struct Ranking {
    order: Order,
    after: Option<Rank>,
    max: usize,
    found: BTreeMap<Rank, Found>,
    // Others come behind those that were found.
    has_more: bool,
    matched: u64,
}

/// What is closed.
#[derive(Debug)]
struct Closure {
    dry_run: bool,
    // How many are described.
    max: usize,
    closed: ClosedPeers,
}

#[derive(Debug)]
enum Found {
    /// Described at the end: that takes system calls.
    Connection(Token),
    Source(Box<Peer>),
}

impl Ranking {
    fn add(&mut self, rank: Rank, found: impl FnOnce(&Rank) -> Found) {
        if self.after.as_ref().is_some_and(|after| rank <= *after) {
            return;
        }
        let last = self.found.last_key_value();
        let is_full = self.found.len() >= self.max;
        if is_full && last.is_none_or(|(last, _)| *last < rank) {
            self.has_more = true;
            return;
        }
        let found = found(&rank);
        self.found.insert(rank, found);
        if is_full {
            self.has_more = true;
            self.found.pop_last();
        }
    }
}

impl Search {
    fn new(query: u64, selection: Selection, task: Task) -> Self {
        Self {
            query,
            selection,
            task,
            next_slot: 0,
            next_listener: 0,
        }
    }

    /// Reports the first `max` peers in this order that come behind `after`.
    pub(super) fn list(
        query: u64,
        selection: Selection,
        order: Order,
        after: Option<Rank>,
        max: usize,
    ) -> Self {
        let ranking = Ranking {
            order,
            after,
            max,
            found: BTreeMap::new(),
            has_more: false,
            matched: 0,
        };
        Self::new(query, selection, Task::List(ranking))
    }

    /// Closes the connections, or only counts them, and describes the first `max`.
    pub(super) fn close(query: u64, selection: Selection, dry_run: bool, max: usize) -> Self {
        let closure = Closure {
            dry_run,
            max,
            closed: ClosedPeers::default(),
        };
        Self::new(query, selection, Task::Close(closure))
    }

    /// Ends the connections of a listener that is drained.
    pub(super) fn end(listener: ListenerId, how: Ending) -> Self {
        // No report repeats the number.
        Self::new(0, Selection::default(), Task::End(listener, how))
    }
}

impl<D: Driver> Worker<D> {
    /// Continues the search that was asked for first, and reports it when it is done.
    pub(super) fn continue_search(&mut self, now: Instant) {
        let Some(mut search) = self.searches.pop_front() else {
            return;
        };
        let mut left = VISITS_PER_TURN;
        while left > 0 {
            let visited = if search.next_slot < self.slots.len() {
                match search.task {
                    Task::End(listener, how) => {
                        self.end_slots(now, &mut search.next_slot, left, listener, how)
                    }
                    Task::List(_) | Task::Close(_) => self.search_slots(now, &mut search, left),
                }
            } else if search.next_listener < self.listeners.len() {
                self.search_sources(now, &mut search)
            } else {
                return self.report_search(now, search);
            };
            left = left.saturating_sub(visited);
        }
        self.searches.push_front(search);
    }

    /// Visits the next slots, `max` at most, and returns how many those were.
    fn search_slots(&mut self, now: Instant, search: &mut Search, max: usize) -> usize {
        let from = search.next_slot;
        search.next_slot = (from + max).min(self.slots.len());
        let mut to_close = Vec::new();
        for slot in self.slots.range(from..search.next_slot) {
            let SlotKind::Connection(connection) = &slot.kind else {
                continue;
            };
            let Some(listener) = &self.listeners[slot.listener as usize] else {
                continue;
            };
            let source = connection.peer.map(Source::Inet);
            let candidate = candidate_of(connection, &listener.settings.name, source.as_ref());
            if connection.is_refused() || !search.selection.matches(now, &candidate) {
                continue;
            }
            match &mut search.task {
                Task::List(ranking) => {
                    ranking.matched += 1;
                    let rtt_us = || self.driver.details(slot.token).rtt_us;
                    let rank = ranking.order.rank(&candidate, rtt_us);
                    ranking.add(rank, |_| Found::Connection(slot.token));
                }
                Task::Close(closure) => {
                    closure.closed.matched += 1;
                    // One that is being closed already is found, but not closed a second time.
                    if connection.is_closing() {
                        continue;
                    }
                    if closure.closed.peers.len() < closure.max {
                        let rank = Order::Id.rank(&candidate, || None);
                        let peer = self.connected_peer(now, rank, slot.token);
                        closure.closed.peers.extend(peer);
                    }
                    if !closure.dry_run {
                        closure.closed.closed += 1;
                        to_close.push(slot.token);
                    }
                }
                Task::End(..) => {}
            }
        }
        for token in to_close {
            self.close_for(CloseReason::Kicked, token, Closing::Now);
        }
        search.next_slot - from
    }

    /// Ends the connections of a listener in the next slots, `max` at most, and returns how many slots
    /// those were.
    fn end_slots(
        &mut self,
        now: Instant,
        next: &mut usize,
        max: usize,
        listener: ListenerId,
        how: Ending,
    ) -> usize {
        let from = *next;
        *next = (from + max).min(self.slots.len());
        let Some(&index) = self.listener_indexes.get(&listener) else {
            return *next - from;
        };
        for number in from..*next {
            let slot = self.slots.at(number);
            let token = slot.token;
            match &slot.kind {
                SlotKind::Connection(connection)
                    if slot.listener == index && !connection.is_refused() => {}
                _ => continue,
            }
            match how {
                Ending::Finish => self.finish(CloseReason::Drained, now, token),
                Ending::Reset => self.close_for(CloseReason::Drained, token, Closing::Reset),
            }
        }
        *next - from
    }

    /// Visits the sources of the next listener, of which the number is bounded, and returns how many
    /// those were. Sources have nothing to close, and are only counted then.
    fn search_sources(&mut self, now: Instant, search: &mut Search) -> usize {
        let listener = &self.listeners[search.next_listener];
        search.next_listener += 1;
        let Some(listener) = listener else {
            return 0;
        };
        let mut visited = 0;
        for entry in listener.sources.iter() {
            visited += 1;
            let candidate = candidate_of_source(entry, &listener.settings.name);
            if !search.selection.matches(now, &candidate) {
                continue;
            }
            match &mut search.task {
                Task::List(ranking) => {
                    ranking.matched += 1;
                    let rank = ranking.order.rank(&candidate, || None);
                    ranking.add(rank, |rank| {
                        Found::Source(Box::new(datagram_peer(now, listener.id, entry, rank)))
                    });
                }
                Task::Close(closure) => closure.closed.sources += 1,
                Task::End(..) => return 0,
            }
        }
        visited
    }

    fn report_search(&mut self, now: Instant, search: Search) {
        let query = search.query;
        let report = match search.task {
            Task::End(..) => return,
            Task::Close(Closure { closed, .. }) => Report::PeersClosed { query, closed },
            Task::List(ranking) => {
                let matched = ranking.matched;
                let last = ranking.found.last_key_value();
                let more_after = last
                    .filter(|_| ranking.has_more)
                    .map(|(last, _)| last.clone());
                let found = ranking.found.into_iter();
                let describe = |(rank, found)| match found {
                    Found::Connection(token) => self.connected_peer(now, rank, token),
                    Found::Source(peer) => Some(*peer),
                };
                Report::Peers {
                    query,
                    peers: found.filter_map(describe).collect(),
                    matched,
                    more_after,
                }
            }
        };
        self.mailbox.report(report);
    }

    /// The connection of this token; none if it was closed since it was found.
    fn connected_peer(&self, now: Instant, rank: Rank, token: Token) -> Option<Peer> {
        let slot = self.slots.at(token.slot as usize);
        let SlotKind::Connection(connection) = &slot.kind else {
            return None;
        };
        let listener = self.listeners[slot.listener as usize].as_ref()?;
        if slot.token != token {
            return None;
        }
        let activity = connection.activity();
        Some(Peer {
            id: connection.id,
            rank,
            listener: listener.id,
            kind: SocketKind::Stream,
            source: connection.peer.map(Source::Inet),
            destination: None,
            age: now - activity.opened,
            idle: now - activity.active,
            bytes_received: connection.bytes_received,
            bytes_sent: connection.bytes_sent,
            details: self.driver.details(token),
        })
    }
}

fn candidate_of<'a>(
    connection: &Connection,
    listener: &'a str,
    source: Option<&'a Source>,
) -> Candidate<'a> {
    let activity = connection.activity();
    Candidate {
        id: connection.id,
        listener,
        source,
        opened: activity.opened,
        active: activity.active,
        bytes_received: connection.bytes_received,
        bytes_sent: connection.bytes_sent,
    }
}

fn candidate_of_source<'a>(entry: &'a SourceEntry, listener: &'a str) -> Candidate<'a> {
    Candidate {
        id: entry.id,
        listener,
        source: Some(&entry.source),
        opened: entry.first,
        active: entry.last,
        bytes_received: entry.bytes_received,
        bytes_sent: entry.bytes_sent,
    }
}

fn datagram_peer(now: Instant, listener: ListenerId, entry: &SourceEntry, rank: &Rank) -> Peer {
    Peer {
        id: entry.id,
        rank: rank.clone(),
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
