//! The control socket: connections of `echoctl` and other clients, served from the main loop.
//!
//! Knows sockets, the callers at the other end, and how long each may take. Never knows what a
//! request means, and never blocks: the main loop polls one descriptor ([`Server::as_fd`]), calls
//! [`Server::turn`], answers what that hands out with [`Server::reply`], or has it answered by a
//! search ([`Server::search`]), and sleeps until [`Server::poll_timeout`] at most. Whatever a client
//! does, it costs that client its connection and no other anything: what is held for one is bounded,
//! in bytes and in time.
//!
//! Read on in `connection` for one client, in `accept` for new ones, in `searches` for what only
//! the workers can answer, in `socket` for the file in the file system, in `handover` for a
//! successor; in `daemon::calls` for what is done, and in [`crate::protocol`] for what is asked.
//!
//! While a request is worked on or its reply is written, nothing is read from that client: its
//! next request waits in the kernel, and in the end in the client.

#![forbid(unsafe_code)]

mod accept;
mod audit;
mod caller;
mod connection;
mod handover;
mod listing;
mod peer;
mod searches;
mod socket;
mod spare;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::protocol::schema::{ClosePeersReply, ListPeersReply};
use crate::protocol::wire::{self, Request};
use crate::protocol::{self, PeerQuery, SortKey};
use crate::worker::mailbox;

use super::listeners::Listeners;
use super::privileges::CreatedPath;
pub(super) use audit::Audit;
pub(crate) use caller::Caller;
use connection::{Connection, End, Next, State};
use listing::Listing;
pub(super) use searches::Search;
use searches::{Closure, Searches, Task};
pub(super) use socket::missing_directory;
pub(crate) use socket::{BindError, SaidBy, SocketPath};
use socket::{Permissions, Socket};
use spare::Spare;

/// Connections at one time. People and monitoring need a handful; the rest bounds what all of
/// them can make us hold, 2 MiB of requests.
pub(crate) const CONNECTIONS_MAX: usize = 32;

/// How many of these are kept for root and the daemon's own user: other users together must not
/// keep out those that can stop the daemon or change its configuration.
const CONNECTIONS_RESERVED: usize = 4;

/// Connections of one user at one time.
pub(crate) const CONNECTIONS_PER_USER_MAX: usize = 8;

/// The listening socket among the epoll events; connections count from 1.
const LISTENING: u64 = 0;

/// A connection, for as long as it lives and never again after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClientId(u64);

#[cfg(test)]
impl ClientId {
    pub(super) fn of(number: u64) -> Self {
        Self(number)
    }
}

/// A request to be answered with [`Server::reply`], sooner or later, also when it is `oneway`.
#[derive(Debug)]
pub(crate) struct Call {
    /// The connection that it came from.
    pub id: ClientId,
    /// The process at the other end.
    pub caller: Caller,
    /// What is asked.
    pub request: Request,
}

/// What is answered.
#[derive(Debug)]
pub(crate) enum Reply {
    /// One message.
    One(wire::Reply),
    /// One message, and others follow: see [`Server::takes_next`].
    Continued(wire::Reply),
    /// A page of a list, and the rest of it, of which the next is made when this one was taken.
    Page(wire::Reply, Box<Listing>),
}

/// The control socket and all its connections.
#[derive(Debug)]
pub(crate) struct Server {
    epoll: Epoll,
    socket: Socket,
    connections: BTreeMap<ClientId, Connection>,
    last_id: u64,
    /// Those that may have sent their next request together with the one before.
    pending: Vec<ClientId>,
    searches: Searches,
    spare: Spare,
    /// No connection is accepted until then.
    pause_until: Option<Instant>,
    per_user_max: usize,
    /// The time of the last call.
    now: Instant,
}

impl Server {
    /// Makes the socket at this path, for the owner and, if one is given, this group.
    ///
    /// # Errors
    ///
    /// [`BindError`], which says what to do about it; nothing is left behind.
    pub(crate) fn bind(path: &Path, mode: u32, group: Option<u32>) -> Result<Self, BindError> {
        Self::new(Socket::bind(path, Permissions { mode, group })?)
    }

    fn new(socket: Socket) -> Result<Self, BindError> {
        let failed = |cause| BindError::failed(socket.place().0, "epoll", cause);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, LISTENING);
        epoll.add(&socket.listener, event).map_err(failed)?;
        Ok(Self {
            epoll,
            socket,
            connections: BTreeMap::new(),
            last_id: LISTENING,
            pending: Vec::new(),
            searches: Searches::default(),
            spare: Spare::new(),
            pause_until: None,
            per_user_max: CONNECTIONS_PER_USER_MAX,
            now: Instant::now(),
        })
    }

    /// Where the socket is.
    pub(super) fn path(&self) -> &Path {
        self.socket.place().0
    }

    /// The files that were made for it.
    pub(super) fn created_paths(&self) -> Vec<CreatedPath> {
        self.socket.created_paths()
    }

    /// When [`Self::turn`] has to be called although the descriptor is not readable.
    #[must_use]
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        if !self.pending.is_empty() || self.searches.is_ready() {
            return Some(self.now);
        }
        let deadlines = self.connections.values().filter_map(Connection::deadline);
        deadlines.chain(self.pause_until).min()
    }

    /// Accepts, reads and writes what can be without waiting, closes connections that have used up
    /// their time, and returns the requests that are complete, one of each client at most.
    pub(crate) fn turn(&mut self, now: Instant) -> Vec<Call> {
        self.now = now;
        self.end_overdue();
        self.end_pause();
        let mut calls = Vec::new();
        for id in std::mem::take(&mut self.pending) {
            self.take_request(id, &mut calls);
        }
        let mut events = [EpollEvent::empty(); CONNECTIONS_MAX + 1];
        // An interrupted wait is as good as none: what is there stays there.
        let count = self
            .epoll
            .wait(&mut events, EpollTimeout::ZERO)
            .unwrap_or(0);
        let (new, others): (Vec<_>, Vec<_>) = events[..count]
            .iter()
            .map(EpollEvent::data)
            .partition(|id| *id == LISTENING);
        for id in others {
            self.handle_event(ClientId(id), &mut calls);
        }
        // They come last: a client that closes a connection and opens another has one, not two.
        if !new.is_empty() {
            self.accept();
        }
        calls
    }

    /// Answers a request. A client that is gone by now is no mistake, and one that wants no reply
    /// gets none.
    pub(crate) fn reply(&mut self, id: ClientId, reply: Reply, now: Instant) {
        self.now = now;
        if let Some(connection) = self.connections.get_mut(&id) {
            let next = connection.handle_reply(reply, now);
            self.arrange(id, next);
        }
    }

    /// Whether a client to which other replies follow has taken the last one; none if it is gone.
    pub(super) fn takes_next(&self, id: ClientId) -> Option<bool> {
        let connection = self.connections.get(&id)?;
        Some(connection.takes_more())
    }

    fn end_overdue(&mut self) {
        let overdue = |connection: &Connection| {
            let deadline = connection.deadline();
            deadline.is_some_and(|deadline| deadline <= self.now)
        };
        let ids: Vec<ClientId> = self
            .connections
            .iter()
            .filter_map(|(id, connection)| overdue(connection).then_some(*id))
            .collect();
        for id in ids {
            self.end(id, &End::TooSlow);
        }
    }

    fn handle_event(&mut self, id: ClientId, calls: &mut Vec<Call>) {
        // An earlier event of this turn may have ended it.
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        match &connection.state {
            State::Waiting { .. } => match connection.read() {
                Ok(()) => self.take_request(id, calls),
                Err(end) => self.end(id, &end),
            },
            State::Writing { .. } => {
                let next = connection.write(self.now);
                self.arrange(id, next);
            }
            State::Working { .. } => {}
        }
    }

    /// Hands out the client's next request if it is complete.
    fn take_request(&mut self, id: ClientId, calls: &mut Vec<Call>) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        match connection.take_request(self.now) {
            Ok(Next::Work(request)) => calls.push(Call {
                id,
                caller: connection.caller.clone(),
                request,
            }),
            next => self.arrange(id, next),
        }
    }

    /// Arranges for what a connection needs next, or ends it.
    fn arrange(&mut self, id: ClientId, next: Result<Next, End>) {
        let flags = match next {
            Ok(Next::Read) => EpollFlags::EPOLLIN,
            Ok(Next::Write) => EpollFlags::EPOLLOUT,
            Ok(Next::Take) => return self.pending.push(id),
            Ok(Next::Page(listing)) => return self.searches.add_listing(id, listing),
            Ok(Next::Work(_) | Next::Continue) => return,
            Err(end) => return self.end(id, &end),
        };
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        // One shot: a client that hangs up while it is not its turn would be reported over and
        // over.
        let mut event = EpollEvent::new(flags | EpollFlags::EPOLLONESHOT, id.0);
        if let Err(cause) = self.epoll.modify(&connection.stream, &mut event) {
            self.end(id, &End::Failed(cause.into()));
        }
    }

    fn end(&mut self, id: ClientId, end: &End) {
        if let Some(connection) = self.connections.remove(&id) {
            let Caller { pid, uid, .. } = connection.caller;
            log::debug!("control connection of pid {pid}, uid {uid}: {end}");
            self.spare.close(connection.stream.into());
            self.searches.forget(id);
        }
    }
}

/// What only the workers can answer.
impl Server {
    /// Answers a call with a list of peers, when its turn comes.
    pub(super) fn list_peers(
        &mut self,
        call: &Call,
        query: PeerQuery,
        sort: SortKey,
        limit: Option<u64>,
    ) {
        let listing = Listing::new(peer::selection(query), peer::order(sort), limit);
        let request = call.request.clone();
        self.searches
            .add(call.id, request, Task::List(Box::new(listing)));
    }

    /// Closes connections, or only counts them, and answers a call with how many, when its turn
    /// comes.
    pub(super) fn close_peers(
        &mut self,
        call: &Call,
        query: PeerQuery,
        dry_run: bool,
        list: bool,
        audit: Option<Audit>,
    ) {
        let closure = Closure {
            selection: peer::selection(query),
            dry_run,
            list,
            audit,
        };
        let request = call.request.clone();
        self.searches.add(call.id, request, Task::Close(closure));
    }

    /// From now on no search is begun, or again: those that wait are left to a successor.
    pub(super) fn hold_searches(&mut self, held: bool) {
        self.searches.hold(held);
    }

    /// Whether no worker is searching.
    pub(super) fn is_search_idle(&self) -> bool {
        self.searches.is_idle()
    }

    /// Answers what can be without the workers, and returns the search that they are to make next.
    pub(super) fn search(
        &mut self,
        listeners: &Listeners,
        workers: usize,
        now: Instant,
    ) -> Option<Search> {
        for (id, listing) in self.searches.take_ready() {
            self.send_page(id, listing, listeners, now);
        }
        self.searches.begin_next(workers)
    }

    /// A worker has found some peers.
    pub(super) fn handle_peers(
        &mut self,
        query: u64,
        peers: Vec<mailbox::Peer>,
        matched: u64,
        more_after: Option<mailbox::Rank>,
        listeners: &Listeners,
        now: Instant,
    ) {
        let found = self
            .searches
            .handle_peers(query, peers, matched, more_after);
        match found {
            Some((id, listing)) if listing.has_page() => {
                self.send_page(id, listing, listeners, now);
            }
            // Where one worker has nearly all that come next, a page takes several searches.
            Some((id, listing)) => self.searches.add_listing(id, listing),
            None => {}
        }
    }

    /// A worker has closed some peers.
    pub(super) fn handle_closed(
        &mut self,
        query: u64,
        closed: mailbox::ClosedPeers,
        listeners: &Listeners,
        now: Instant,
    ) {
        let Some((id, closed, list)) = self.searches.handle_closed(query, closed) else {
            return;
        };
        let peers = closed.peers.iter();
        let peers = peers.filter_map(|peer| peer::describe(peer, listeners));
        let reply = ClosePeersReply {
            matched: closed.matched,
            closed: closed.closed,
            sources: (closed.sources > 0).then_some(closed.sources),
            peers: list.then(|| peers.collect()),
        };
        self.reply(id, Reply::One(protocol::reply(&reply)), now);
    }

    fn send_page(
        &mut self,
        id: ClientId,
        mut list: Box<Listing>,
        listeners: &Listeners,
        now: Instant,
    ) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let page = list.next_page(connection.takes_more());
        let peers = page.peers.iter();
        let peers = peers.filter_map(|peer| peer::describe(peer, listeners));
        let reply = ListPeersReply {
            peers: peers.collect(),
            total: page.total,
        };
        let reply = protocol::page(&reply, page.continues);
        let reply = if page.continues {
            Reply::Page(reply, list)
        } else {
            Reply::One(reply)
        };
        self.reply(id, reply, now);
    }
}

impl AsFd for Server {
    /// Readable when there is something to do: an epoll instance of its own.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

#[cfg(test)]
mod tests;
