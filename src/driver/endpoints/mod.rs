//! Everything that a driver over real sockets has: listeners, connections and datagram sockets, the
//! memory that they share, and what is done when one is readable or writable.
//!
//! Both drivers over real sockets are this, and differ in how readiness is learned (`epoll`,
//! `uring`). An operation changes the state of its endpoint and makes no system call; the endpoint
//! is then in the list of changed ones, and the driver brings the kernel up to date at its next
//! wait. [`Endpoint::interest`] is the one place that says what an endpoint waits for.
//!
//! This file is the table of endpoints, the list of changed ones, and those that lack buffers. Read
//! on in `operations` for what a user asks for, and in `readiness` for what is then done.

mod endpoint;
mod operations;
mod readiness;

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use super::accept::{Client, Listener};
use super::buffers::{Memory, Need};
use super::connection::Connection;
use super::datagrams::{Datagrams, Workspace};
use super::lifecycle::Lifecycle;
use super::pipes::Pipes;
use super::table::Table;
use super::{Closing, Completion, Token};
use crate::sys::socket;

pub(crate) use endpoint::Registration;
pub(super) use endpoint::{Endpoint, Kind};

/// A `wait` ends after this many bytes received by calls of our own, so that they are sent while the
/// cache has them, and the first of those peers can continue while the others have their turn.
pub(super) const RECEIVED_BYTES_MAX: usize = 256 * 1024;

/// See the module.
#[derive(Debug)]
pub struct Endpoints<R, M> {
    table: Table<Endpoint<R>>,
    pub(super) memory: M,
    pub(super) workspace: Workspace,
    pipes: Pipes,
    changed: Vec<Token>,
    /// For each need, the endpoints that could not receive for want of it, each once.
    starved: [Vec<Token>; Need::ALL.len()],
    /// Endpoints that drain, each once.
    draining: Vec<Drain>,
    /// Clients between `accept4(2)` and the table. Empty, kept for its memory.
    clients: Vec<Client>,
    /// Bytes received by calls of our own since the driver last set it to zero.
    pub(super) received_bytes: usize,
}

/// An endpoint whose queue is served before it is closed.
#[derive(Clone, Copy, Debug)]
struct Drain {
    token: Token,
    /// At most this many clients or messages are left of those that were queued when it began. Others
    /// may arrive as fast as they are served, and must not keep it from ending.
    left: u32,
    /// It waits neither for a buffer, nor for room to send, nor for the next `Accept`.
    is_ready: bool,
}

impl<R: Registration, M: Memory> Endpoints<R, M> {
    pub(super) fn new(memory: M) -> Self {
        Self {
            table: Table::new(),
            memory,
            workspace: Workspace::new(),
            pipes: Pipes::new(),
            changed: Vec::with_capacity(256),
            starved: [const { Vec::new() }; Need::ALL.len()],
            draining: Vec::new(),
            clients: Vec::new(),
            received_bytes: 0,
        }
    }

    pub(super) fn get(&self, token: Token) -> Option<&Endpoint<R>> {
        self.table.get(token)
    }

    pub(super) fn get_mut(&mut self, token: Token) -> Option<&mut Endpoint<R>> {
        self.table.get_mut(token)
    }

    /// The endpoint, and the memory that its bytes are in.
    pub(super) fn with_memory(&mut self, token: Token) -> Option<(&mut Endpoint<R>, &mut M)> {
        Some((self.table.get_mut(token)?, &mut self.memory))
    }

    fn insert(&mut self, fd: OwnedFd, kind: Kind, registration: R) -> Token {
        self.table.insert(Endpoint {
            fd,
            wanted: false,
            starved: false,
            changed: false,
            lifecycle: Lifecycle::Open,
            registration,
            kind,
        })
    }

    pub(super) fn add_listener(&mut self, fd: OwnedFd, listener: Listener) -> Token {
        self.insert(fd, Kind::Listener(Box::new(listener)), R::default())
    }

    pub(super) fn add_datagram_socket(&mut self, fd: OwnedFd) -> Token {
        let datagrams = Box::new(Datagrams::new(fd.as_fd()));
        self.insert(fd, Kind::Datagrams(datagrams), R::default())
    }

    pub(super) fn add_connection(&mut self, fd: OwnedFd, unsent: Vec<u8>) -> Token {
        let registration = R::of_connection(socket::is_inet(fd.as_fd()));
        let token = self.insert(fd, Kind::Connection(Connection::new(unsent)), registration);
        self.mark_changed(token);
        token
    }

    fn add_client(&mut self, fd: OwnedFd, peer: Option<SocketAddr>) -> Token {
        let registration = R::of_connection(peer.is_some());
        self.insert(
            fd,
            Kind::Connection(Connection::new(Vec::new())),
            registration,
        )
    }

    /// Takes the next step of an endpoint's life, if it is a legal one.
    fn enter(&mut self, token: Token, next: Lifecycle) {
        if let Some(endpoint) = self.get_mut(token)
            && endpoint.lifecycle.enter(next)
        {
            self.mark_changed(token);
        }
    }

    /// The kernel has to be brought up to date with this endpoint.
    pub(super) fn mark_changed(&mut self, token: Token) {
        if let Some(endpoint) = self.table.get_mut(token)
            && !std::mem::replace(&mut endpoint.changed, true)
        {
            self.changed.push(token);
        }
    }

    /// How many endpoints have changed.
    pub(super) fn changed_count(&self) -> usize {
        self.changed.len()
    }

    /// The next one that has changed; it no longer counts as such.
    pub(super) fn next_changed(&mut self) -> Option<Token> {
        let token = self.changed.pop()?;
        if let Some(endpoint) = self.table.get_mut(token) {
            endpoint.changed = false;
        }
        Some(token)
    }

    /// Does for a changed endpoint what takes system calls and is the same for every driver:
    /// answers are sent, a write side is shut down, a drain begins.
    pub(super) fn carry_out(&mut self, token: Token, done: &mut Vec<Completion>) {
        let Some(endpoint) = self.table.get_mut(token) else {
            return;
        };
        match &mut endpoint.kind {
            Kind::Listener(_) => {}
            Kind::Connection(connection) => {
                if endpoint.lifecycle == Lifecycle::Open {
                    connection.shut_down_if_due(endpoint.fd.as_fd());
                }
            }
            // Also before a close: what was submitted before it is sent before it, if the kernel
            // takes it at once.
            Kind::Datagrams(datagrams) => {
                let (fd, buffers) = (endpoint.fd.as_fd(), self.memory.large());
                if datagrams.is_stalled() {
                    datagrams.drop_while_scarce(&self.workspace, buffers, token, done);
                } else if datagrams.has_unsent() {
                    datagrams.flush(fd, &mut self.workspace, buffers, token, done);
                }
            }
        }
        let can_drain = endpoint.lifecycle == Lifecycle::Draining
            && endpoint.wanted
            && !endpoint.starved
            && !endpoint.interest().output;
        if can_drain {
            let known = self.draining.iter_mut().find(|drain| drain.token == token);
            match known {
                Some(drain) => drain.is_ready = true,
                None => self.draining.push(Drain {
                    token,
                    left: socket::queued_max(endpoint.fd.as_fd()),
                    is_ready: true,
                }),
            }
        }
    }

    /// Returns buffers and pipe of a connection that is over to their pools. Not while the kernel
    /// has a request to send.
    pub(super) fn discard(&mut self, token: Token) {
        if let Some(Kind::Connection(connection)) =
            self.table.get_mut(token).map(|endpoint| &mut endpoint.kind)
        {
            connection.discard(&mut self.memory, &mut self.pipes);
        }
    }

    /// Closes the descriptor of an endpoint of which the kernel has no request, and ends its token.
    pub(super) fn close(&mut self, token: Token, how: Closing, done: &mut Vec<Completion>) {
        let Some(mut endpoint) = self.table.remove(token) else {
            return;
        };
        match &mut endpoint.kind {
            Kind::Listener(_) => {}
            Kind::Connection(connection) => {
                connection.discard(&mut self.memory, &mut self.pipes);
                if how == Closing::Reset {
                    socket::reset_on_close(endpoint.fd.as_fd());
                }
            }
            Kind::Datagrams(datagrams) => datagrams.clear(self.memory.large()),
        }
        self.draining.retain(|drain| drain.token != token);
        self.forget_starved(token, endpoint.starved);
        done.push(Completion::Closed { token });
    }

    /// An endpoint that is taken out of the table is in no list any more.
    fn forget_starved(&mut self, token: Token, is_starved: bool) {
        if is_starved {
            for tokens in &mut self.starved {
                tokens.retain(|starved| *starved != token);
            }
        }
    }

    /// The connection is broken.
    pub(super) fn fail(&mut self, token: Token, errno: Errno, done: &mut Vec<Completion>) {
        if let Some(endpoint) = self.table.get_mut(token)
            && endpoint.lifecycle.enter(Lifecycle::Failed)
        {
            endpoint.wanted = false;
            done.push(Completion::Failed {
                connection: token,
                error: errno.into(),
            });
            self.mark_changed(token);
        }
    }

    /// The endpoint could not receive for want of a buffer: it is not looked at again before there
    /// are enough of them.
    pub(super) fn starve(&mut self, token: Token, need: Need) {
        if let Some(endpoint) = self.table.get_mut(token)
            && !std::mem::replace(&mut endpoint.starved, true)
        {
            self.starved[need as usize].push(token);
            self.mark_changed(token);
        }
    }

    /// Lets endpoints receive again for which there are now enough buffers.
    pub(super) fn resume_starved(&mut self) {
        for need in Need::ALL {
            if self.starved[need as usize].is_empty() || !self.memory.has_enough(need) {
                continue;
            }
            // The list keeps its memory.
            let mut starved = std::mem::take(&mut self.starved[need as usize]);
            for token in starved.drain(..) {
                if let Some(endpoint) = self.table.get_mut(token) {
                    endpoint.starved = false;
                    self.mark_changed(token);
                }
            }
            self.starved[need as usize] = starved;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::super::buffers::Buffers;
    use super::*;

    #[derive(Debug, Default)]
    struct Unregistered;

    impl Registration for Unregistered {
        fn of_connection(_: bool) -> Self {
            Self
        }
    }

    #[test]
    fn a_connection_that_leaves_while_it_lacks_a_buffer_is_in_no_list_any_more() {
        let buffers = Buffers::new().expect("there is memory");
        let mut endpoints = Endpoints::<Unregistered, _>::new(buffers);
        let mut starved = || {
            let (ours, _peer) = UnixStream::pair().expect("descriptors are left");
            let token = endpoints.add_connection(ours.into(), Vec::new());
            endpoints.starve(token, Need::Large);
            token
        };
        let (closed, taken) = (starved(), starved());
        endpoints.close(closed, Closing::Now, &mut vec![]);
        let endpoint = endpoints.get_mut(taken).expect("it was just added");
        endpoint.lifecycle = Lifecycle::Detached;
        assert!(endpoints.take_detached(taken).is_some());
        assert!(endpoints.starved.iter().all(Vec::is_empty));
    }
}
