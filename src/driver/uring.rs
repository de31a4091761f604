//! The driver over `io_uring(7)`: completion as the kernel itself has it.
//!
//! One ring, made in the thread that uses it. Bytes are received by requests that repeat, into
//! buffers that the kernel takes from a ring of ours when bytes are there; they are sent from the
//! same buffers. What is submitted in a turn goes to the kernel in one system call, which also
//! brings the next results: many messages share it. Where the ring would not help (datagrams, and
//! peers that send much at a time) it only says when there is something, and the calls are made as
//! the epoll driver makes them.
//!
//! Never decides anything about an echo; never blocks but in [`Driver::wait`]. Read on in `ring`
//! for the ring, in `memory` for the buffers, and in `connection`, `listener` and `datagrams` for
//! what is done with each kind of descriptor.

mod connection;
mod datagrams;
mod listener;
pub(in crate::driver) mod memory;
mod ring;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use io_uring::cqueue;

use super::datagrams::{Datagrams, Workspace};
use super::pipes::Pipes;
use super::table::Table;
use super::{
    Buffer, Closing, Completion, Detached, Details, Driver, Envelope, Op, Permits, Token, Waker,
};
use crate::sys::socket;

use connection::Connection;
use memory::Memory;
use ring::{Kind as Request, Ring, read_name};

/// A `wait` ends after so many completions: enough for many messages to share a system call, and
/// few enough that what was received is sent while it is still in the cache.
const COMPLETIONS_MAX: usize = 128;

/// A `wait` ends after so many bytes received in large pieces, or relayed.
const RECEIVED_BYTES_MAX: usize = 256 * 1024;

/// So many connections or datagrams are taken from one socket before others have their turn.
const BURST_MAX: usize = 32;

/// Names the waker's request; no endpoint has it.
const NOBODY: Token = Token {
    slot: u32::MAX,
    generation: 0,
};

/// See the module.
#[derive(Debug)]
pub struct Uring {
    ring: Ring,
    waker: Waker,
    endpoints: Table<Endpoint>,
    memory: Memory,
    workspace: Workspace,
    pipes: Pipes,
    // Whom to look at when system calls may be made again: to close, to shut down, to send to.
    chores: Vec<Token>,
    // Who could not receive for want of a buffer.
    starved: Vec<Token>,
    // Who is to be closed when nobody is queued any more.
    draining: Vec<Token>,
    received_bytes: usize,
}

#[derive(Debug)]
struct Endpoint {
    fd: OwnedFd,
    // Accept, receive or receive from.
    takes: bool,
    // The rest is of listeners and datagram sockets. The kernel has a request to say when there is
    // something, or room to send.
    polled: bool,
    polled_output: bool,
    leaving: Leaving,
    kind: Kind,
}

/// Whether a listener or datagram socket is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    /// When nobody is queued any more.
    WhenDrained,
    /// When the kernel has no request of it.
    Now,
}

#[derive(Debug)]
enum Kind {
    Listener(Option<Arc<Permits>>),
    Connection(Connection),
    // Boxed: there are few, and many connections.
    Datagrams(Box<Datagrams>),
}

impl Uring {
    /// A driver with nothing to do. Make it in the thread that will use it: the ring belongs to
    /// that thread.
    ///
    /// # Errors
    /// When the kernel is too old (6.1 is needed) or does not allow it, or no descriptor is left.
    pub fn new() -> io::Result<Self> {
        let ring = Ring::new()?;
        let memory = Memory::new()?;
        memory.register(&ring.submitter())?;
        let mut driver = Self {
            ring,
            waker: Waker::new()?,
            endpoints: Table::new(),
            memory,
            workspace: Workspace::new(),
            pipes: Pipes::new(),
            chores: Vec::with_capacity(COMPLETIONS_MAX),
            starved: Vec::new(),
            draining: Vec::new(),
            received_bytes: 0,
        };
        driver.listen_to_waker();
        Ok(driver)
    }

    fn listen_to_waker(&mut self) {
        let fd = self.waker.as_fd();
        self.ring.poll_input(fd, Request::Woken, NOBODY);
    }

    fn insert(&mut self, fd: OwnedFd, kind: Kind) -> Token {
        self.endpoints.insert(Endpoint {
            fd,
            takes: false,
            polled: false,
            polled_output: false,
            leaving: Leaving::No,
            kind,
        })
    }

    fn take_from(&mut self, token: Token, takes: bool) {
        let Some(endpoint) = self.endpoints.get_mut(token) else {
            return;
        };
        endpoint.takes = takes;
        if matches!(endpoint.kind, Kind::Connection(_)) {
            self.attend(token);
        } else if endpoint.leaving == Leaving::WhenDrained {
            if !self.draining.contains(&token) {
                self.draining.push(token);
            }
        } else {
            self.poll(token);
        }
    }

    fn close(&mut self, token: Token, how: Closing) {
        let Some(endpoint) = self.endpoints.get_mut(token) else {
            return;
        };
        if matches!(endpoint.kind, Kind::Connection(_)) {
            self.close_connection(token, how);
        } else if how == Closing::WhenDrained {
            endpoint.leaving = Leaving::WhenDrained;
            self.take_from(token, true);
        } else {
            endpoint.leaving = Leaving::Now;
            endpoint.takes = false;
            self.chores.push(token);
        }
    }

    /// Closes a listener or datagram socket, as soon as the kernel has no request of it.
    fn close_socket(&mut self, token: Token, done: &mut Vec<Completion>) {
        let Some(endpoint) = self.endpoints.get_mut(token) else {
            return;
        };
        endpoint.leaving = Leaving::Now;
        endpoint.takes = false;
        if endpoint.polled {
            self.ring.cancel(Request::Readable, token);
        }
        if endpoint.polled_output {
            self.ring.cancel(Request::Writable, token);
        }
        if endpoint.polled || endpoint.polled_output {
            return;
        }
        if let Kind::Datagrams(datagrams) = &mut endpoint.kind {
            datagrams.clear(&mut self.memory.large);
        }
        self.endpoints.remove(token);
        done.push(Completion::Closed { token });
    }

    /// Does what was asked for and takes a system call.
    fn do_chores(&mut self, done: &mut Vec<Completion>) {
        let mut chores = std::mem::take(&mut self.chores);
        for token in chores.drain(..) {
            match self.endpoints.get(token) {
                Some(endpoint) if matches!(endpoint.kind, Kind::Connection(_)) => {
                    self.settle(token, done);
                }
                Some(endpoint) if endpoint.leaving == Leaving::Now => {
                    // What was to be sent before the close is sent before it.
                    self.flush_datagrams(token, done);
                    self.close_socket(token, done);
                }
                Some(_) => self.flush_datagrams(token, done),
                None => {}
            }
        }
        // The list keeps its memory.
        self.chores = chores;
    }

    /// Lets those go on who found no buffer, now that there are enough.
    fn feed(&mut self) {
        if self.starved.is_empty() || !self.memory.suffices() {
            return;
        }
        let mut starved = std::mem::take(&mut self.starved);
        for token in starved.drain(..) {
            match self.endpoints.get_mut(token) {
                Some(Endpoint {
                    kind: Kind::Connection(connection),
                    ..
                }) => {
                    connection.fed();
                    self.attend(token);
                }
                Some(_) => self.poll(token),
                None => {}
            }
        }
        self.starved = starved;
    }

    /// Serves the queues of those that are to be closed, a bounded part of each.
    fn drain(&mut self, done: &mut Vec<Completion>) {
        let mut index = 0;
        while index < self.draining.len() {
            let token = self.draining[index];
            let goes_on = match self.endpoints.get(token).map(|endpoint| &endpoint.kind) {
                Some(Kind::Listener(_)) => self.accept(token, done),
                Some(Kind::Datagrams(_)) => self.drain_datagrams(token, done),
                _ => false,
            };
            if goes_on {
                index += 1;
            } else {
                self.draining.swap_remove(index);
            }
        }
    }

    fn handle(&mut self, result: &cqueue::Entry, done: &mut Vec<Completion>) {
        let (request, token) = read_name(result.user_data());
        match request {
            Request::Receive => self.received(token, result, done),
            Request::Send => self.sent(token, result.result(), done),
            Request::Readable => self.ready(token, done),
            Request::Writable => self.writable(token, done),
            Request::Woken => {
                self.waker.drain();
                self.listen_to_waker();
                done.push(Completion::Woken);
            }
            // What was told to end says so itself.
            Request::Cancel => self.cancelled(token, result.result()),
        }
    }

    /// What was polled for has come, or the poll was told to end.
    fn ready(&mut self, token: Token, done: &mut Vec<Completion>) {
        let Some(endpoint) = self.endpoints.get_mut(token) else {
            return;
        };
        if matches!(endpoint.kind, Kind::Connection(_)) {
            return self.readable(token, done);
        }
        endpoint.polled = false;
        if endpoint.leaving == Leaving::Now {
            return self.close_socket(token, done);
        }
        if endpoint.leaving == Leaving::WhenDrained || !endpoint.takes {
            return;
        }
        match &endpoint.kind {
            Kind::Listener(_) => _ = self.accept(token, done),
            // What is to be sent goes first.
            Kind::Datagrams(datagrams) if datagrams.has_unsent() => return,
            _ => _ = self.receive_from(token, done),
        }
        self.poll(token);
    }
}

impl Uring {
    /// There is room to send, or the poll for it was told to end.
    fn writable(&mut self, token: Token, done: &mut Vec<Completion>) {
        let Some(endpoint) = self.endpoints.get_mut(token) else {
            return;
        };
        if matches!(endpoint.kind, Kind::Connection(_)) {
            return self.has_room(token, done);
        }
        endpoint.polled_output = false;
        if endpoint.leaving == Leaving::Now {
            self.close_socket(token, done);
        } else {
            self.flush_datagrams(token, done);
        }
    }
}

impl Driver for Uring {
    type Socket = OwnedFd;

    fn add_listener(&mut self, socket: OwnedFd, permits: Option<Arc<Permits>>) -> Token {
        self.insert(socket, Kind::Listener(permits))
    }

    fn set_permits(&mut self, listener: Token, permits: Option<Arc<Permits>>) {
        if let Some(Endpoint {
            kind: Kind::Listener(old),
            ..
        }) = self.endpoints.get_mut(listener)
        {
            *old = permits;
        }
    }

    fn add_datagram_socket(&mut self, socket: OwnedFd) -> Token {
        let datagrams = Box::new(Datagrams::new(socket.as_fd()));
        self.insert(socket, Kind::Datagrams(datagrams))
    }

    fn add_connection(&mut self, socket: OwnedFd, unsent: Vec<u8>) -> Token {
        let token = self.insert(socket, Kind::Connection(Connection::owing(unsent)));
        self.attend(token);
        token
    }

    fn take(&mut self, connection: Token) -> Option<Detached<OwnedFd>> {
        self.take_out(connection)
    }

    fn submit(&mut self, op: Op) {
        match op {
            Op::Send { connection, buffer } => self.send(connection, buffer),
            Op::SendStatic { connection, bytes } => self.send_static(connection, bytes),
            Op::Receive { connection } => {
                self.allow_relaying(connection, false);
                self.take_from(connection, true);
            }
            Op::Relay { connection } => {
                self.allow_relaying(connection, true);
                self.take_from(connection, true);
            }
            Op::Accept { listener: token } | Op::ReceiveFrom { socket: token } => {
                self.take_from(token, true);
            }
            Op::Pause { connection } => self.take_from(connection, false),
            Op::ShutDown { connection } => self.shut_down(connection),
            Op::SendTo { socket, buffer } => self.send_to(socket, buffer),
            Op::Detach { connection } => self.detach(connection),
            Op::Close { token, how } => self.close(token, how),
        }
    }

    fn wait(&mut self, until: Option<Instant>, done: &mut Vec<Completion>) -> io::Result<()> {
        self.do_chores(done);
        self.feed();
        self.drain(done);
        self.memory.publish();
        if !done.is_empty() || !self.draining.is_empty() || self.ring.has_results() {
            self.ring.submit()?;
        } else {
            let timeout = until.map(|until| until.saturating_duration_since(self.now()));
            if timeout.is_some_and(|timeout| timeout.is_zero()) {
                self.ring.submit()?;
            } else {
                self.ring.submit_and_wait(timeout)?;
            }
        }
        self.received_bytes = 0;
        while done.len() < COMPLETIONS_MAX && self.received_bytes < RECEIVED_BYTES_MAX {
            let Some(result) = self.ring.next() else {
                break;
            };
            self.handle(&result, done);
        }
        Ok(())
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn bytes(&mut self, buffer: &Buffer) -> &mut [u8] {
        self.memory.bytes(buffer)
    }

    fn envelope(&self, buffer: &Buffer) -> &Envelope {
        self.workspace.envelope(buffer)
    }

    fn lease(&mut self, envelope: &Envelope, len: usize) -> Option<Buffer> {
        self.workspace.lease(&mut self.memory.large, envelope, len)
    }

    fn recycle(&mut self, buffer: Buffer) {
        self.memory.recycle(buffer);
    }

    fn progress(&self, connection: Token) -> u64 {
        self.endpoints
            .get(connection)
            .filter(|endpoint| !endpoint.is_closing())
            .map_or(0, |endpoint| socket::progress(endpoint.fd.as_fd()))
    }

    fn details(&self, connection: Token) -> Details {
        self.endpoints
            .get(connection)
            .filter(|endpoint| !endpoint.is_closing())
            .map(|endpoint| socket::details(endpoint.fd.as_fd()))
            .unwrap_or_default()
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

impl Endpoint {
    fn is_closing(&self) -> bool {
        match &self.kind {
            Kind::Connection(connection) => connection.is_closing(),
            _ => self.leaving == Leaving::Now,
        }
    }
}

impl Drop for Uring {
    /// The kernel must neither touch our memory nor keep our sockets when they are gone: their
    /// addresses can be bound again at once.
    fn drop(&mut self) {
        if !self.ring.cancel_all() {
            log::error!("io_uring: requests could not be cancelled");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_is_small() {
        let size = size_of::<Endpoint>();
        assert!(size <= 72, "{size} bytes");
    }
}
