//! What the control plane and a worker say to each other: a closed list, both ways.
//!
//! Commands wait in a channel until the worker's driver is woken; reports wait in another until
//! the control plane is. Neither side ever waits for the other.

use std::net::IpAddr;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::driver::{Details, Permits, Source, Waker};
use crate::echo::Reply;
use crate::policy::limits::{Sources, Timeouts, WhenFull};
use crate::policy::{Access, Refusal, SourcePorts};
use crate::stats::Counters;

use super::handover::{Admission, Carried};
use super::sources::Entry;

/// A listener, in all workers and over all reloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId(pub u32);

/// One of a listener's sockets, in all workers that hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(pub u32);

/// What a worker has to know about a listener.
#[derive(Clone, Debug)]
#[expect(
    missing_docs,
    reason = "each field is the configuration key of the same name"
)]
pub struct Settings {
    pub name: String,
    pub reply: Reply,
    pub one_shot: bool,
    pub timeouts: Timeouts,
    pub when_full: WhenFull,
    pub max_per_source: Option<u32>,
    pub access: Access,
    pub source_ports: SourcePorts,
}

/// What the workers of one listener share: how many connections it has, and whose they are.
///
/// Touched when a connection comes and when it goes, never on the path of a message; the lock is
/// taken only where `max-per-source` is set.
#[derive(Debug)]
pub struct Gate {
    /// Room for connections, all told.
    pub permits: Arc<Permits>,
    sources: Mutex<Sources>,
}

impl Gate {
    /// A gate that nobody has passed.
    #[must_use]
    pub fn new(permits: Permits) -> Self {
        Self {
            permits: Arc::new(permits),
            sources: Mutex::default(),
        }
    }

    /// Counts a connection that had passed a gate of this listener before. It stays also where there
    /// is no room for it any more.
    #[must_use]
    pub fn readmit(&self, source: Option<IpAddr>, max_per_source: Option<u32>) -> Admission {
        Admission {
            has_permit: self.permits.try_take(),
            has_place: source
                .zip(max_per_source)
                .is_some_and(|(source, max)| self.admit(source, max).is_ok()),
        }
    }

    pub(super) fn admit(&self, source: IpAddr, max: u32) -> Result<(), Refusal> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if sources.admit(source, max) {
            Ok(())
        } else {
            Err(Refusal::PerSource)
        }
    }

    pub(super) fn release(&self, source: IpAddr) {
        self.sources
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .release(source);
    }
}

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It listens, and streams are accepted from it.
    Stream,
    /// It receives datagrams.
    Datagram,
}

/// What the control plane asks of a worker.
#[derive(Debug)]
pub enum Command<S> {
    /// Know this listener, or know it better: its settings apply from now on.
    Configure {
        /// This one.
        listener: ListenerId,
        /// Its settings.
        settings: Settings,
        /// Shared with the other workers.
        gate: Arc<Gate>,
        /// This worker's own.
        counters: Arc<Counters>,
    },
    /// Serve this socket.
    AddSocket {
        /// For this listener.
        listener: ListenerId,
        /// Under this name.
        id: SocketId,
        /// In this way.
        kind: Kind,
        /// Here it is.
        socket: S,
    },
    /// Serve who is queued on this socket, then close it: [`Report::Retired`].
    RetireSocket {
        /// This one.
        id: SocketId,
    },
    /// The listener has neither sockets nor connections any more.
    Forget {
        /// This one.
        listener: ListenerId,
    },
    /// Say who is there: [`Report::Peers`].
    ListPeers {
        /// A number for the answer.
        query: u64,
    },
    /// Close those connections: [`Report::PeersClosed`].
    ClosePeers {
        /// A number for the answer.
        query: u64,
        /// Their numbers; those of other workers are nobody here.
        ids: Arc<[u64]>,
    },
    /// Give every connection what it is owed, and our FIN.
    Finish,
    /// Give everything away: [`Report::HandedOver`]. What stays are the listeners' settings.
    HandOver,
    /// Go on with a connection that another worker has had.
    TakeOver {
        /// This one; its listener is known.
        connection: Carried<S>,
        /// What it holds of its listener's gate.
        admission: Admission,
    },
    /// Know a source of datagrams that another worker has seen.
    Remember {
        /// Whose it is.
        listener: ListenerId,
        /// All that is known of it.
        source: Entry,
    },
    /// Peers' numbers go on after this one.
    NumberFrom {
        /// The last that may have been given.
        last: u64,
    },
    /// End the thread.
    Stop,
    /// Say that you are alive: [`Report::Alive`].
    Ping,
}

/// What a worker tells the control plane.
#[derive(Debug)]
pub enum Report<S> {
    /// The socket's queue has been served, and it is closed here.
    Retired {
        /// By this worker.
        worker: usize,
        /// This one.
        id: SocketId,
    },
    /// Some of the peers asked for.
    Peers {
        /// The question.
        query: u64,
        /// A part of the answer.
        peers: Vec<Peer>,
        /// Whether it was this worker's last part.
        last: bool,
    },
    /// The connections asked for are closed.
    PeersClosed {
        /// The question.
        query: u64,
        /// So many were found.
        closed: u64,
    },
    /// The worker has nobody any more.
    HandedOver {
        /// This worker.
        worker: usize,
        /// All connections that it had.
        connections: Vec<Carried<S>>,
        /// The sources of datagrams that it has seen lately.
        sources: Vec<(ListenerId, Entry)>,
        /// No peer has a larger number.
        last_id: u64,
    },
    /// Asked whether it is alive, a worker has come round to answer.
    Alive {
        /// This one.
        worker: usize,
    },
}

/// Where a datagram came in.
#[derive(Clone, Copy, Debug)]
pub struct Hit {
    /// The socket.
    pub socket: SocketId,
    /// Which of the addresses that the socket has, where it has several.
    pub address: Option<IpAddr>,
}

/// A connection, or a source of datagrams seen lately.
#[derive(Clone, Debug)]
#[expect(
    missing_docs,
    reason = "the names say it; they are those of the control protocol"
)]
pub struct Peer {
    pub id: u64,
    pub listener: ListenerId,
    pub kind: Kind,
    /// None for a Unix stream: its client has no name.
    pub source: Option<Source>,
    /// Of a datagram's source: where it sent its last one.
    pub hit: Option<Hit>,
    pub age: Duration,
    pub idle: Duration,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub details: Details,
}

/// A worker's end.
#[derive(Debug)]
pub struct Mailbox<S> {
    /// Commands, in order.
    pub commands: Receiver<Command<S>>,
    /// Where reports go.
    pub reports: Sender<Report<S>>,
    /// Wakes who reads them.
    pub control: Waker,
}

impl<S> Mailbox<S> {
    /// Reports. When nobody listens any more, the process is ending.
    pub(super) fn report(&self, report: Report<S>) {
        if self.reports.send(report).is_ok() {
            self.control.wake();
        }
    }
}
