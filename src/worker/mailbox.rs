//! The messages between the control plane and a worker: two closed enums.
//!
//! Commands wait in a channel until the worker's driver is woken, reports in another until the
//! control plane is. Neither side ever waits for the other.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use crate::driver::{Details, Source, Waker};
use crate::echo::Reply;
use crate::policy::limits::{Timeouts, WhenFull};
use crate::policy::{Access, Intake, SourcePorts};
use crate::stats::Counters;

pub(crate) use super::gate::Admission;
pub use super::gate::Gate;
pub use super::ids::{ListenerId, SocketId};
pub(crate) use super::selection::{Order, Rank, Selection};
pub use super::sources::{Destination, SourceEntry};
pub(crate) use super::transfer::TransferredConnection;

/// The part of a listener's configuration that workers need.
#[derive(Clone, Debug)]
pub struct Settings {
    pub name: String,
    pub reply: Reply,
    pub one_shot: bool,
    pub timeouts: Timeouts,
    pub when_full: WhenFull,
    pub max_per_source: Option<u32>,
    pub access: Access,
    pub refuse_source_ports: SourcePorts,
    /// Set by an operator, not by the configuration.
    pub intake: Intake,
}

/// What arrives at a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SocketKind {
    /// Connections: it is a listening socket.
    Stream,
    /// Datagrams.
    Datagram,
}

/// What the control plane asks a worker to do. A `query` is repeated in the report that answers it.
#[derive(Debug)]
pub enum Command<S> {
    /// Add this listener, or change its settings: they apply from now on. The gate is shared with
    /// the other workers and must not change; the counters have this worker as their only writer.
    Configure {
        listener: ListenerId,
        settings: Settings,
        gate: Arc<Gate>,
        counters: Arc<Counters>,
    },
    /// Log each connection that is closed at this level from now on.
    LogClosed(log::Level),
    /// Serve this socket for a listener that was configured before.
    AddSocket {
        listener: ListenerId,
        id: SocketId,
        kind: SocketKind,
        socket: S,
    },
    /// Serve this socket for another listener from now on, which was configured before.
    MoveSocket { id: SocketId, listener: ListenerId },
    /// Serve all that is queued on this socket, then close it: [`Report::Retired`].
    RetireSocket { id: SocketId },
    /// All sockets of this listener have been moved or retired: [`Report::ListenerRetired`].
    ConfirmRetired { listener: ListenerId },
    /// Remove a listener that has neither sockets nor connections in any worker.
    RemoveListener { listener: ListenerId },
    /// List the first `max` peers of this selection, in this order, that come behind `after`:
    /// [`Report::Peers`].
    ListPeers {
        query: u64,
        selection: Selection,
        order: Order,
        after: Option<Rank>,
        max: usize,
    },
    /// Close the connections of this selection, or with `dry_run` only count them, and describe the
    /// first `max` of them: [`Report::PeersClosed`].
    ClosePeers {
        query: u64,
        selection: Selection,
        dry_run: bool,
        max: usize,
    },
    /// Finish every connection: send its pending output, then our FIN.
    Finish,
    /// End the connections of this listener, because it is drained.
    EndConnections { listener: ListenerId, how: Ending },
    /// Give up all sockets and connections: [`Report::HandedOver`]. The listeners stay configured.
    HandOver,
    /// Continue a connection that another worker had.
    TakeOver {
        connection: TransferredConnection<S>,
    },
    /// Add a source of datagrams that another worker has seen.
    AddSource {
        listener: ListenerId,
        source: SourceEntry,
    },
    /// Give new peers ids above `last` only.
    ContinueIdsAfter { last: u64 },
    /// Report that all commands before this one are in effect: [`Report::Confirmed`].
    Confirm { query: u64 },
    /// End the thread.
    Stop,
    /// Report that the worker is alive: [`Report::Alive`].
    Ping,
}

/// How the connections of a listener are ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Send the pending output, then our FIN.
    Finish,
    /// Reset, because the peer does not read its pending output.
    Reset,
}

/// What a worker reports to the control plane. `worker` is its index.
#[derive(Debug)]
#[allow(
    clippy::missing_docs_in_private_items,
    reason = "the documentation of a variant covers its fields"
)]
pub enum Report<S> {
    /// Everything that was queued on this socket has been served, and the worker has closed it.
    Retired { worker: usize, id: SocketId },
    /// A listener has no socket in the worker: it gets no more connections there.
    ListenerRetired { listener: ListenerId },
    /// The peers that were found, in order, and the number of all that are selected. Others come
    /// behind `more_after`, where it is given.
    Peers {
        query: u64,
        peers: Vec<Peer>,
        matched: u64,
        more_after: Option<Rank>,
    },
    /// What was closed.
    PeersClosed { query: u64, closed: ClosedPeers },
    /// The worker has no sockets left. These are all its connections and all sources of datagrams
    /// seen recently; no peer has an id above `last_id`.
    HandedOver {
        worker: usize,
        connections: Vec<TransferredConnection<S>>,
        sources: Vec<(ListenerId, SourceEntry)>,
        last_id: u64,
    },
    /// All commands before the `Confirm` of this number are in effect.
    Confirmed { query: u64 },
    /// The worker's loop is running.
    Alive { worker: usize },
}

/// What a worker, or several together, have closed or, in a dry run, only counted.
#[derive(Clone, Debug, Default)]
pub struct ClosedPeers {
    /// Connections that were found.
    pub matched: u64,
    /// Those of them that were closed.
    pub closed: u64,
    /// Sources of datagrams that were found, which have nothing to close.
    pub sources: u64,
    /// Descriptions of what was closed or would be, as far as they were asked for.
    pub peers: Vec<Peer>,
}

impl ClosedPeers {
    /// Adds what another worker has closed.
    pub fn add(&mut self, more: Self) {
        self.matched += more.matched;
        self.closed += more.closed;
        self.sources += more.sources;
        self.peers.extend(more.peers);
    }
}

/// A connection, or a source of datagrams seen recently.
#[derive(Clone, Debug)]
#[allow(
    clippy::missing_docs_in_private_items,
    reason = "the names say it; they are those of the control protocol"
)]
pub struct Peer {
    pub id: u64,
    /// Its place in the list.
    pub rank: Rank,
    pub listener: ListenerId,
    pub kind: SocketKind,
    /// `None` for the client of a Unix stream, which has no name.
    pub source: Option<Source>,
    /// `None` for a connection. For a source of datagrams, where it sent the last one.
    pub destination: Option<Destination>,
    pub age: Duration,
    pub idle: Duration,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub details: Details,
}

/// The worker's end of both channels.
#[derive(Debug)]
pub struct Mailbox<S> {
    /// Commands, in order.
    pub commands: Receiver<Command<S>>,
    /// Reports, in order.
    pub reports: Sender<Report<S>>,
    /// Wakes the control plane after a report.
    pub control: Waker,
}

impl<S> Mailbox<S> {
    /// Sends a report. If the control plane no longer receives any, the process is ending.
    pub(super) fn report(&self, report: Report<S>) {
        if self.reports.send(report).is_ok() {
            self.control.wake();
        }
    }
}
