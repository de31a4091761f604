//! What a user asks of endpoints: changes their state, and makes no system call.

use std::os::fd::OwnedFd;

use super::{Endpoints, Kind, Registration};
use crate::driver::buffers::Memory;
use crate::driver::lifecycle::Lifecycle;
use crate::driver::{Buffer, Closing, Detached, Op, Token};

impl<R: Registration, M: Memory> Endpoints<R, M> {
    /// Changes the state of an endpoint as the user asks. What takes a system call waits for
    /// [`Self::carry_out`]; an operation on a token that no longer exists is ignored.
    pub(in crate::driver) fn submit(&mut self, op: Op) {
        match op {
            Op::Accept { listener: token } | Op::ReceiveFrom { socket: token } => {
                self.set_wanted(token, true);
            }
            Op::Receive { connection } => {
                self.allow_relaying(connection, false);
                self.set_wanted(connection, true);
            }
            Op::ReceiveAlways { connection: token } => {
                if let Some(Kind::Connection(connection)) =
                    self.get_mut(token).map(|endpoint| &mut endpoint.kind)
                {
                    connection.receive_always();
                }
                self.allow_relaying(token, false);
                self.set_wanted(token, true);
            }
            Op::Relay { connection } => {
                self.allow_relaying(connection, true);
                self.set_wanted(connection, true);
            }
            Op::Pause { connection } => self.set_wanted(connection, false),
            Op::Send { connection, buffer } => self.queue(connection, buffer),
            Op::SendTo { socket, buffer } => self.queue(socket, buffer),
            Op::ShutDown { connection: token } => {
                if let Some(Kind::Connection(connection)) =
                    self.get_mut(token).map(|endpoint| &mut endpoint.kind)
                {
                    connection.request_shut_down();
                    self.mark_changed(token);
                }
            }
            Op::Detach { connection } => {
                if self.is_connection(connection) {
                    self.enter(connection, Lifecycle::Detaching);
                }
            }
            // A draining endpoint serves its queue whether the user has asked for that or not; a
            // connection has no queue to drain.
            Op::Close { token, how } => {
                if how == Closing::WhenDrained && !self.is_connection(token) {
                    self.enter(token, Lifecycle::Draining);
                    self.set_wanted(token, true);
                } else {
                    self.enter(token, Lifecycle::Closing(how));
                }
            }
        }
    }

    fn is_connection(&self, token: Token) -> bool {
        self.get(token)
            .is_some_and(|endpoint| endpoint.connection().is_some())
    }

    fn set_wanted(&mut self, token: Token, wanted: bool) {
        if let Some(endpoint) = self.get_mut(token) {
            endpoint.wanted = wanted;
            self.mark_changed(token);
        }
    }

    fn allow_relaying(&mut self, token: Token, allowed: bool) {
        if let Some(Kind::Connection(connection)) =
            self.get_mut(token).map(|endpoint| &mut endpoint.kind)
        {
            connection.relay.allow(allowed);
        }
    }

    /// Takes a buffer to be sent. One that comes to nothing is returned to the pool.
    fn queue(&mut self, token: Token, buffer: Buffer) {
        let endpoint = self.table.get_mut(token).filter(|endpoint| {
            !matches!(
                endpoint.lifecycle,
                Lifecycle::Failed | Lifecycle::Closing(_)
            )
        });
        match endpoint.map(|endpoint| &mut endpoint.kind) {
            Some(Kind::Connection(connection)) => connection.queue(&mut self.memory, buffer),
            Some(Kind::Datagrams(datagrams)) => datagrams.queue(self.memory.large(), buffer),
            Some(Kind::Listener(_)) | None => return self.memory.recycle(buffer),
        }
        self.mark_changed(token);
    }

    /// Takes a detached connection out, with everything that is unsent on it. None if it was not
    /// reported as detached, or is closed.
    pub(in crate::driver) fn take_detached(&mut self, token: Token) -> Option<Detached<OwnedFd>> {
        let endpoint = self.table.get_mut(token)?;
        let Kind::Connection(connection) = &mut endpoint.kind else {
            return None;
        };
        if endpoint.lifecycle != Lifecycle::Detached {
            return None;
        }
        let unsent = connection.take_unsent(&mut self.memory, &mut self.pipes);
        let endpoint = self.table.remove(token)?;
        self.forget_starved(token, endpoint.starved);
        Some(Detached {
            socket: endpoint.fd,
            unsent,
        })
    }
}
