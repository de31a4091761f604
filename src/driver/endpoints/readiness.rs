//! What is done when an endpoint is ready: it accepts, receives or sends, as far as it still waits for
//! that; and the queues that are emptied before a close.

use std::os::fd::AsFd;

use super::{Drain, Endpoints, Kind, RECEIVED_BYTES_MAX, Registration};
use crate::driver::accept::Queued;
use crate::driver::buffers::{Memory, Need};
use crate::driver::connection::Reception;
use crate::driver::datagrams::Remaining;
use crate::driver::lifecycle::Lifecycle;
use crate::driver::{Closing, Completion, Token};

impl<R: Registration, M: Memory> Endpoints<R, M> {
    /// Accepts or receives, if the endpoint still waits for that. Of a connection it says what
    /// came of it.
    pub(in crate::driver) fn handle_input(
        &mut self,
        token: Token,
        done: &mut Vec<Completion>,
    ) -> Option<Reception> {
        let endpoint = self.table.get(token)?;
        if !endpoint.interest().input {
            return None;
        }
        match endpoint.kind {
            Kind::Connection(_) => return self.receive_some(token, done),
            Kind::Listener(_) => _ = self.accept(token, done),
            Kind::Datagrams(_) => _ = self.receive_from(token, done),
        }
        None
    }

    /// Sends what is stalled, if anything still is.
    pub(in crate::driver) fn handle_output(&mut self, token: Token, done: &mut Vec<Completion>) {
        let Some(endpoint) = self.table.get_mut(token) else {
            return;
        };
        if !endpoint.interest().output {
            return;
        }
        if let Kind::Datagrams(datagrams) = &mut endpoint.kind {
            let (fd, buffers) = (endpoint.fd.as_fd(), self.memory.large());
            datagrams.flush(fd, &mut self.workspace, buffers, token, done);
        } else {
            self.flush(token, done);
        }
        self.mark_changed(token);
    }

    /// Sends what is unsent on a connection.
    pub(in crate::driver) fn flush(&mut self, token: Token, done: &mut Vec<Completion>) {
        let Some(endpoint) = self.table.get_mut(token) else {
            return;
        };
        let Kind::Connection(connection) = &mut endpoint.kind else {
            return;
        };
        let (fd, memory, pipes) = (endpoint.fd.as_fd(), &mut self.memory, &mut self.pipes);
        match connection.flush(fd, memory, pipes, token, done) {
            Ok(()) => connection.shut_down_if_due(fd),
            Err(errno) => self.fail(token, errno, done),
        }
    }

    /// Receives a buffer; for a user that sends bytes of its own as many as there are in one wait:
    /// what it sends then goes out together, and wakes the other side once. Returns what the first
    /// has brought.
    fn receive_some(&mut self, token: Token, done: &mut Vec<Completion>) -> Option<Reception> {
        let first = self.receive(token, done);
        let mut last = first;
        while let Some(Reception::Received { filled: true, .. }) = last
            && self.received_bytes < RECEIVED_BYTES_MAX
            && let Kind::Connection(connection) = &self.table.get(token)?.kind
            && connection.receives_always()
        {
            last = self.receive(token, done);
        }
        first
    }

    fn receive(&mut self, token: Token, done: &mut Vec<Completion>) -> Option<Reception> {
        let endpoint = self.table.get_mut(token)?;
        let Kind::Connection(connection) = &mut endpoint.kind else {
            return None;
        };
        let (fd, buffers) = (endpoint.fd.as_fd(), self.memory.large());
        let reception = match connection.receive(fd, buffers, &mut self.pipes, token, done) {
            Ok(reception) => reception,
            Err(errno) => {
                self.fail(token, errno, done);
                return None;
            }
        };
        match reception {
            Reception::Received { len, .. } => self.received_bytes += len,
            Reception::Relayed(len) => {
                self.received_bytes += len;
                if connection.is_stalled() {
                    self.mark_changed(token);
                }
            }
            Reception::Nothing => {}
            Reception::Ended => self.mark_changed(token),
            Reception::Starved => self.starve(token, Need::Large),
        }
        Some(reception)
    }

    /// Accepts a burst of clients; says what is left in the queue.
    fn accept(&mut self, token: Token, done: &mut Vec<Completion>) -> Remaining {
        // The table can't take clients while it lends the listener, so they wait in a list.
        let mut clients = std::mem::take(&mut self.clients);
        let Some(endpoint) = self.table.get_mut(token) else {
            return Remaining::Nothing;
        };
        let Kind::Listener(listener) = &mut endpoint.kind else {
            return Remaining::Nothing;
        };
        let drains = endpoint.lifecycle == Lifecycle::Draining;
        let fd = endpoint.fd.as_fd();
        let queued = listener.accept(fd, drains, &mut self.pipes, &mut clients);
        if matches!(queued, Queued::Paused(_)) {
            endpoint.wanted = false;
        }
        for client in clients.drain(..) {
            let connection = self.add_client(client.fd, client.peer);
            done.push(Completion::Accepted {
                listener: token,
                connection,
                peer: client.peer,
                has_permit: client.has_permit,
            });
        }
        self.clients = clients;
        match queued {
            Queued::More => Remaining::More,
            Queued::Nothing => Remaining::Nothing,
            Queued::Paused(error) => {
                self.mark_changed(token);
                done.push(Completion::AcceptPaused {
                    listener: token,
                    error,
                });
                Remaining::Starved
            }
        }
    }

    fn receive_from(&mut self, token: Token, done: &mut Vec<Completion>) -> Remaining {
        let Some(endpoint) = self.table.get_mut(token) else {
            return Remaining::Nothing;
        };
        let Kind::Datagrams(datagrams) = &mut endpoint.kind else {
            return Remaining::Nothing;
        };
        let (fd, buffers) = (endpoint.fd.as_fd(), self.memory.large());
        let (bytes, remaining) = datagrams.receive(fd, &mut self.workspace, buffers, token, done);
        self.received_bytes += bytes;
        if remaining == Remaining::Starved {
            self.starve(token, Need::Datagram);
        }
        remaining
    }

    // --- Queues that are emptied before a close. ---

    /// Whether an endpoint drains and can continue, so that the driver must not sleep.
    pub(in crate::driver) fn is_draining(&self) -> bool {
        self.draining.iter().any(|drain| drain.is_ready)
    }

    /// Serves the queues of endpoints that are to be closed, a bounded part of each.
    pub(in crate::driver) fn drain(&mut self, done: &mut Vec<Completion>) {
        for index in 0..self.draining.len() {
            let drain = self.draining[index];
            if drain.is_ready {
                self.draining[index] = self.drain_part(drain, done);
            }
        }
    }

    /// Serves a part of one queue; returns what is left to be done.
    fn drain_part(&mut self, drain: Drain, done: &mut Vec<Completion>) -> Drain {
        let Drain { token, left, .. } = drain;
        let waits = Drain {
            is_ready: false,
            ..drain
        };
        let Some(endpoint) = self.table.get(token) else {
            return waits;
        };
        if endpoint.lifecycle != Lifecycle::Draining || endpoint.interest().output {
            return waits;
        }
        let has_unsent = endpoint.has_unsent_datagrams();
        let before = done.len();
        let remaining = match endpoint.kind {
            // What arrived since the drain began need not be served.
            _ if left == 0 => Remaining::Nothing,
            Kind::Listener(_) => self.accept(token, done),
            Kind::Datagrams(_) => self.receive_from(token, done),
            Kind::Connection(_) => Remaining::Nothing,
        };
        let is_served = |completion: &&Completion| {
            matches!(
                completion,
                Completion::Accepted { .. } | Completion::Datagrams { .. }
            )
        };
        let served = done[before..].iter().filter(is_served).count() as u32;
        // What this turn received is answered in the next one.
        if remaining == Remaining::Nothing && served == 0 && !has_unsent {
            self.enter(token, Lifecycle::Closing(Closing::Now));
        }
        Drain {
            left: left.saturating_sub(served),
            is_ready: remaining != Remaining::Starved,
            ..drain
        }
    }
}
