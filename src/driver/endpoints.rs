//! Everything that a driver over real sockets has: listeners, connections and datagram sockets, the
//! memory that they share, and what is done when one is readable or writable.
//!
//! Both drivers over real sockets are this, and differ in how readiness is learned (`epoll`,
//! `uring`). An operation changes the state of its endpoint and makes no system call; the endpoint
//! is then in the list of changed ones, and the driver brings the kernel up to date at its next
//! wait. [`Endpoint::interest`] is the one place that says what an endpoint waits for.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use super::accept::{Client, Listener, Queued};
use super::buffers::{Memory, Need};
use super::connection::{Connection, Reception};
use super::datagrams::{Datagrams, Remaining, Workspace};
use super::lifecycle::Lifecycle;
use super::pipes::Pipes;
use super::table::Table;
use super::{Buffer, Closing, Completion, Detached, Op, Token};
use crate::sys::socket;

/// What the kernel knows of an endpoint, in the terms of one driver.
pub trait Registration: Default {
    /// Of a connection over TCP, or over a Unix socket.
    fn of_connection(is_tcp: bool) -> Self;
}

/// A descriptor of the driver.
#[derive(Debug)]
pub(super) struct Endpoint<R> {
    pub(super) fd: OwnedFd,
    /// The user asks for connections, bytes or datagrams.
    pub(super) wanted: bool,
    /// It is in a list of those that lack a buffer.
    starved: bool,
    /// It is in the list of changed ones.
    changed: bool,
    pub(super) lifecycle: Lifecycle,
    pub(super) registration: R,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    // Boxed: there are few of these, and many connections.
    Listener(Box<Listener>),
    Connection(Connection),
    Datagrams(Box<Datagrams>),
}

/// What an endpoint waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Interest {
    /// Clients, bytes or datagrams.
    pub(super) input: bool,
    /// Room to send.
    pub(super) output: bool,
}

impl<R> Endpoint<R> {
    /// What the kernel is to report of it.
    pub(super) fn interest(&self) -> Interest {
        let is_open = self.lifecycle == Lifecycle::Open;
        let input = is_open && self.wanted && !self.starved;
        match &self.kind {
            Kind::Listener(_) => Interest {
                input,
                output: false,
            },
            Kind::Connection(connection) => Interest {
                input: input && connection.may_receive(),
                output: is_open && connection.is_stalled(),
            },
            // What is unsent goes first: a socket that received on would lease buffer after buffer
            // for answers that the network does not take. Draining ones are read every turn.
            Kind::Datagrams(datagrams) => {
                let output = datagrams.is_stalled()
                    && matches!(self.lifecycle, Lifecycle::Open | Lifecycle::Draining);
                Interest {
                    input: input && !output,
                    output,
                }
            }
        }
    }

    /// The connection, if it is one.
    pub(super) fn connection(&self) -> Option<&Connection> {
        match &self.kind {
            Kind::Connection(connection) => Some(connection),
            _ => None,
        }
    }
}

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
    /// Endpoints that drain and can get on with it.
    draining: Vec<Token>,
    /// Clients between `accept4(2)` and the table. Empty, kept for its memory.
    clients: Vec<Client>,
    /// Bytes received by calls of our own since the driver last set it to zero.
    pub(super) received_bytes: usize,
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

    // --- What the user adds and asks for: no system calls but to look at a new socket. ---

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

    /// Changes the state of an endpoint as the user asks. What takes a system call waits for
    /// [`Self::carry_out`]; an operation on a token that no longer exists is ignored.
    pub(super) fn submit(&mut self, op: Op) {
        match op {
            Op::Accept { listener: token } | Op::ReceiveFrom { socket: token } => {
                self.set_wanted(token, true);
            }
            Op::Receive { connection } => {
                self.allow_relaying(connection, false);
                self.set_wanted(connection, true);
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
                    self.advance(connection, Lifecycle::Detaching);
                }
            }
            Op::Close { token, how } => {
                if how == Closing::WhenDrained && !self.is_connection(token) {
                    self.advance(token, Lifecycle::Draining);
                    self.set_wanted(token, true);
                } else {
                    self.advance(token, Lifecycle::Closing(how));
                }
            }
        }
    }

    fn is_connection(&self, token: Token) -> bool {
        self.get(token)
            .is_some_and(|endpoint| endpoint.connection().is_some())
    }

    fn advance(&mut self, token: Token, next: Lifecycle) {
        if let Some(endpoint) = self.get_mut(token)
            && endpoint.lifecycle.advance(next)
        {
            self.mark_changed(token);
        }
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
    pub(super) fn take_detached(&mut self, token: Token) -> Option<Detached<OwnedFd>> {
        let endpoint = self.table.get_mut(token)?;
        let Kind::Connection(connection) = &mut endpoint.kind else {
            return None;
        };
        if endpoint.lifecycle != Lifecycle::Detached {
            return None;
        }
        let unsent = connection.take_unsent(&mut self.memory, &mut self.pipes);
        let socket = self.table.remove(token)?.fd;
        Some(Detached { socket, unsent })
    }

    // --- The list of changed endpoints. ---

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
                if datagrams.has_unsent() && !datagrams.is_stalled() {
                    let (fd, buffers) = (endpoint.fd.as_fd(), self.memory.large());
                    datagrams.flush(fd, &mut self.workspace, buffers, token, done);
                }
            }
        }
        let can_drain = endpoint.lifecycle == Lifecycle::Draining
            && endpoint.wanted
            && !endpoint.starved
            && !endpoint.interest().output;
        if can_drain && !self.draining.contains(&token) {
            self.draining.push(token);
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
        done.push(Completion::Closed { token });
    }

    /// The connection is broken.
    pub(super) fn fail(&mut self, token: Token, errno: Errno, done: &mut Vec<Completion>) {
        if let Some(endpoint) = self.table.get_mut(token)
            && endpoint.lifecycle.advance(Lifecycle::Failed)
        {
            endpoint.wanted = false;
            done.push(Completion::Failed {
                connection: token,
                error: errno.into(),
            });
            self.mark_changed(token);
        }
    }

    // --- Buffers that run out. ---

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

    // --- What is done when an endpoint is ready. ---

    /// Accepts or receives, if the endpoint still waits for that. Of a connection it says what
    /// came of it.
    pub(super) fn handle_input(
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
    pub(super) fn handle_output(&mut self, token: Token, done: &mut Vec<Completion>) {
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
    pub(super) fn flush(&mut self, token: Token, done: &mut Vec<Completion>) {
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
    pub(super) fn is_draining(&self) -> bool {
        !self.draining.is_empty()
    }

    /// Serves the queues of endpoints that are to be closed, a bounded part of each.
    pub(super) fn drain(&mut self, done: &mut Vec<Completion>) {
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
