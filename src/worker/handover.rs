//! Handing over: a worker gives up all its sockets and connections, each connection with its unsent
//! bytes; and taking over what another worker has given up.
//!
//! Listening and datagram sockets are closed here and nowhere else: the control plane has a
//! descriptor of each, so clients and datagrams wait in the kernel until another worker serves it.

use std::time::Instant;

use crate::driver::{Closing, Detached, Driver, Op, Token};

use super::ids::ListenerId;
use super::mailbox::Report;
use super::sources::SourceEntry;
use super::streams::Connection;
use super::transfer::TransferredConnection;
use super::{Slot, SlotKind, Worker};

/// The connections that a worker has given up until now.
#[derive(Debug)]
pub(super) struct HandingOver<S> {
    connections: Vec<TransferredConnection<S>>,
}

impl<D: Driver> Worker<D> {
    /// Begins to give up everything. [`Report::HandedOver`] follows when no slot is in use.
    pub(super) fn hand_over(&mut self) {
        // A second request, after an upgrade that gave up waiting, continues the first: all that there
        // is was asked for, and what has been collected must not be dropped.
        if self.handing_over.is_some() {
            return;
        }
        self.handing_over = Some(HandingOver {
            connections: Vec::new(),
        });
        // From here on nothing is accepted any more, whatever timers and permits say.
        self.without_permit.clear();
        // A socket that is to be retired from here on has been: no other report of it follows.
        self.sockets.clear();
        for slot in self.slots.iter() {
            let token = slot.token;
            match &slot.kind {
                SlotKind::Empty => {}
                SlotKind::Listening(_) | SlotKind::Datagrams(_) => {
                    self.timers.clear(token.slot);
                    self.driver.submit(Op::Close {
                        token,
                        how: Closing::Now,
                    });
                }
                SlotKind::Connection(connection) if connection.is_closing() => {}
                SlotKind::Connection(_) => self.driver.submit(Op::Detach { connection: token }),
            }
        }
    }

    /// The driver has given up a connection.
    pub(super) fn handle_detached(&mut self, now: Instant, token: Token) {
        // `None` if it was closed in this very turn: then `Closed` follows.
        let Some(Detached { socket, unsent }) = self.driver.take(token) else {
            return;
        };
        let Some(Slot {
            listener,
            kind: SlotKind::Connection(mut connection),
            ..
        }) = self.empty_slot(token)
        else {
            return;
        };
        let Some(listener) = &self.listeners[listener as usize] else {
            return;
        };
        connection.handle_detached(listener, unsent.len() as u32);
        let transferred = TransferredConnection {
            listener: listener.id,
            socket,
            unsent,
            state: connection.state(now),
            admission: connection.admission(),
        };
        if let Some(handing_over) = &mut self.handing_over {
            handing_over.connections.push(transferred);
        }
    }

    /// Reports when everything has been given up.
    pub(super) fn complete_hand_over(&mut self) {
        if !self.slots.is_empty() {
            return;
        }
        let Some(HandingOver { connections }) = self.handing_over.take() else {
            return;
        };
        let sources = self.listeners.iter().flatten().flat_map(|listener| {
            let entries = listener.sources.iter();
            entries.map(|entry| (listener.id, entry.clone()))
        });
        self.mailbox.report(Report::HandedOver {
            worker: self.index,
            connections,
            sources: sources.collect(),
            last_id: self.ids.last(),
        });
    }

    /// Continues a connection that another worker had.
    pub(super) fn take_over(
        &mut self,
        now: Instant,
        transferred: TransferredConnection<D::Socket>,
    ) {
        let (index, _) = self
            .listener(transferred.listener)
            .expect("a listener is configured before it gets connections");
        let unsent = transferred.unsent.len() as u32;
        let mut connection =
            Connection::resume(now, &transferred.state, unsent, transferred.admission);
        let is_shut_down = connection.is_shut_down();
        let token = self
            .driver
            .add_connection(transferred.socket, transferred.unsent);
        // What the peer read from an earlier worker's driver is no progress here.
        connection.note_progress(self.driver.peer_progress(token));
        self.slots
            .fill(token, index, SlotKind::Connection(connection));
        // The earlier driver may not have sent the FIN. A second shutdown is without effect.
        if is_shut_down {
            self.driver.submit(Op::ShutDown { connection: token });
        }
        self.check_timeouts(now, token);
        self.run_steps(now, token);
    }

    /// Adds a source of datagrams that another worker has seen.
    pub(super) fn add_source(&mut self, listener: ListenerId, entry: SourceEntry) {
        if let Some((_, listener)) = self.listener(listener) {
            let source = entry.source;
            listener.sources.entry(&source, || entry);
        }
    }
}
