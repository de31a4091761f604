//! What is done when an endpoint is ready: it accepts, receives or sends, as far as it still waits for
//! that; and the queues that are emptied before a close.

use std::os::fd::AsFd;

use super::{Endpoints, Kind, Registration};
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
            Kind::Connection(_) => return self.receive(token, done),
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

    /// Accepts a burst of clients. Whether there may be more, of a listener that drains.
    fn accept(&mut self, token: Token, done: &mut Vec<Completion>) -> bool {
        // The table can't take clients while it lends the listener, so they wait in a list.
        let mut clients = std::mem::take(&mut self.clients);
        let Some(endpoint) = self.table.get_mut(token) else {
            return false;
        };
        let Kind::Listener(listener) = &mut endpoint.kind else {
            return false;
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
            Queued::More => true,
            Queued::Nothing => {
                if drains {
                    self.advance(token, Lifecycle::Closing(Closing::Now));
                }
                false
            }
            Queued::Paused(error) => {
                self.mark_changed(token);
                done.push(Completion::AcceptPaused {
                    listener: token,
                    error,
                });
                false
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

    /// Whether an endpoint drains and can get on with it, so that the driver must not sleep.
    pub(in crate::driver) fn is_draining(&self) -> bool {
        !self.draining.is_empty()
    }

    /// Serves the queues of endpoints that are to be closed, a bounded part of each.
    pub(in crate::driver) fn drain(&mut self, done: &mut Vec<Completion>) {
        let mut index = 0;
        while index < self.draining.len() {
            let token = self.draining[index];
            let stays = match self.table.get(token) {
                Some(endpoint) if endpoint.lifecycle == Lifecycle::Draining => {
                    match endpoint.kind {
                        Kind::Listener(_) => self.accept(token, done),
                        Kind::Datagrams(_) => self.drain_datagrams(token, done),
                        Kind::Connection(_) => false,
                    }
                }
                _ => false,
            };
            if stays {
                index += 1;
            } else {
                self.draining.swap_remove(index);
            }
        }
    }

    /// Whether there is more to receive or to answer, and nothing to wait for.
    fn drain_datagrams(&mut self, token: Token, done: &mut Vec<Completion>) -> bool {
        if self
            .get(token)
            .is_none_or(|endpoint| endpoint.interest().output)
        {
            return false;
        }
        let before = done.len();
        let remaining = self.receive_from(token, done);
        let Some(Kind::Datagrams(datagrams)) = self.get(token).map(|endpoint| &endpoint.kind)
        else {
            return false;
        };
        if remaining == Remaining::Starved {
            return false;
        }
        // What this turn received is answered in the next one.
        let is_empty =
            remaining == Remaining::Nothing && done.len() == before && !datagrams.has_unsent();
        if is_empty {
            self.advance(token, Lifecycle::Closing(Closing::Now));
        }
        !is_empty
    }
}
