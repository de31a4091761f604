//! The driver over `epoll(7)`: readiness, dressed as completion.
//!
//! One read and one send per event, bulk by splice. Operations are carried out at the start of the
//! next `wait`, in order, and then the answers on datagram sockets, all of one socket together; a
//! send that the kernel takes at once costs one system call and nothing more. What a socket waits
//! for is told to the kernel lazily, once a turn, so that a connection which comes and goes costs
//! one `epoll_ctl(2)`.
//!
//! Never decides anything about an echo; never blocks but in [`Driver::wait`]. Read on in
//! `connection`, `listener` and `datagrams` for what is done with each kind of descriptor.

mod connection;
mod datagrams;
mod listener;

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll as Kernel, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::buffers::{BUFFER_COUNT, Buffers};
use super::datagrams::{Datagrams, Workspace};
use super::pipes::Pipes;
use super::table::Table;
use super::{
    Buffer, Closing, Completion, Detached, Details, Driver, Envelope, Op, Permits, Token, Waker,
};
use crate::sys::socket;

use connection::Connection;

/// How many events are taken from the kernel at once.
const EVENTS_MAX: usize = 256;

/// A `wait` ends after so many completions. Few, so that what was received is sent while it is still
/// in the cache, and the first peer of a batch need not wait for the last one's bytes: measured,
/// 16 is 1 to 3 percent cheaper than 64.
const COMPLETIONS_MAX: usize = 16;

/// A `wait` ends after so many bytes received, so that they are sent while the cache has them, and
/// the first of those peers goes on while the others have their turn.
const RECEIVED_BYTES_MAX: usize = 256 * 1024;

/// So many connections are taken from one listener before others have their turn.
const BURST_MAX: usize = 32;

/// After a read there may be more, however short it was: an end, an error, urgent data (tcp(7)).
const WARNINGS: EpollFlags = EpollFlags::EPOLLRDHUP.union(EpollFlags::EPOLLPRI);

/// Marks the waker's event; no token looks like it, for generations have 24 bits.
const WAKER: u64 = u64::MAX;

/// See the module.
#[derive(Debug)]
pub struct Epoll {
    kernel: Kernel,
    waker: Waker,
    endpoints: Table<Endpoint>,
    buffers: Buffers,
    workspace: Workspace,
    pipes: Pipes,
    ops: Vec<Op>,
    // Events from the kernel, and those of them that are yet to be handled.
    events: Box<[EpollEvent]>,
    ready: Range<usize>,
    // Whose wishes may differ from what the kernel was told.
    changed: Vec<Token>,
    // Datagram sockets that have got answers to send.
    answering: Vec<Token>,
    // Who could not receive for want of a buffer.
    starved: Vec<Token>,
    // Who is to be closed when nobody is queued any more.
    draining: Vec<Token>,
    received_bytes: usize,
}

#[derive(Debug)]
struct Endpoint {
    fd: OwnedFd,
    // What the kernel was told.
    told: Wish,
    // Accept, receive or receive from.
    takes: bool,
    starved: bool,
    draining: bool,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Listener(Option<Arc<Permits>>),
    Connection(Connection),
    // Boxed: there are few, and many connections.
    Datagrams(Box<Datagrams>),
}

impl Endpoint {
    /// What the kernel should report.
    fn wish(&self) -> Wish {
        let takes = self.takes && !self.starved;
        let input = |wish| if takes { wish } else { Wish::Nothing };
        match &self.kind {
            Kind::Listener(_) => input(Wish::Clients),
            Kind::Datagrams(datagrams) if datagrams.has_unsent() => Wish::Output,
            Kind::Datagrams(_) => input(Wish::Input),
            Kind::Connection(connection) if connection.silent => Wish::Nothing,
            Kind::Connection(connection) if connection.detached => Wish::Nothing,
            Kind::Connection(connection) if takes && connection.reads_on() => Wish::Both,
            Kind::Connection(connection) if connection.stalled() => Wish::Output,
            Kind::Connection(connection) if connection.ended => Wish::Nothing,
            Kind::Connection(connection) if takes && connection.once => Wish::InputOnce,
            Kind::Connection(_) if takes => Wish::Input,
            Kind::Connection(_) => Wish::Errors,
        }
    }
}

/// What the kernel is to report of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// Nothing: it is not registered.
    Nothing,
    /// What it always reports: errors and hang-ups.
    Errors,
    /// Bytes or datagrams, as long as there are any.
    Input,
    /// Bytes when they come, and no second time (`EPOLLET`): the kernel need not look again whether
    /// there are more. With what a read might stop before, so that its reader is warned.
    InputOnce,
    /// Clients; where several workers wait on one socket, one of them is enough.
    Clients,
    /// Room to send.
    Output,
    /// Bytes, and room to send what is no answer to them.
    Both,
}

impl Wish {
    fn flags(self) -> EpollFlags {
        match self {
            Self::Nothing | Self::Errors => EpollFlags::empty(),
            Self::Input => EpollFlags::EPOLLIN,
            Self::InputOnce => EpollFlags::EPOLLIN | EpollFlags::EPOLLET | WARNINGS,
            Self::Clients => EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE,
            Self::Output => EpollFlags::EPOLLOUT,
            Self::Both => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT,
        }
    }
}

impl Epoll {
    /// A driver with nothing to do. Make it in the thread that will use it.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn new() -> io::Result<Self> {
        let kernel = Kernel::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let waker = Waker::new()?;
        kernel.add(waker.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, WAKER))?;
        Ok(Self {
            kernel,
            waker,
            endpoints: Table::new(),
            buffers: Buffers::new(),
            workspace: Workspace::new(),
            pipes: Pipes::new(),
            ops: Vec::with_capacity(COMPLETIONS_MAX * 4),
            events: vec![EpollEvent::empty(); EVENTS_MAX].into_boxed_slice(),
            ready: 0..0,
            changed: Vec::with_capacity(COMPLETIONS_MAX * 4),
            answering: Vec::new(),
            starved: Vec::new(),
            draining: Vec::new(),
            received_bytes: 0,
        })
    }

    fn insert(&mut self, fd: OwnedFd, kind: Kind) -> Token {
        self.endpoints.insert(Endpoint {
            fd,
            told: Wish::Nothing,
            takes: false,
            starved: false,
            draining: false,
            kind,
        })
    }

    /// Carries out the queued operations.
    fn perform(&mut self, done: &mut Vec<Completion>) {
        let mut ops = std::mem::take(&mut self.ops);
        let mut detached = Vec::new();
        for op in ops.drain(..) {
            match op {
                Op::Accept { listener: token } | Op::ReceiveFrom { socket: token } => {
                    self.take_from(token, true);
                }
                Op::Receive { connection } => {
                    self.allow_relaying(connection, false);
                    self.take_from(connection, true);
                }
                Op::Relay { connection } => {
                    self.allow_relaying(connection, true);
                    self.take_from(connection, true);
                }
                Op::Pause { connection } => self.take_from(connection, false),
                Op::Send { connection, buffer } => self.send(connection, buffer, done),
                Op::SendStatic { connection, bytes } => self.send_static(connection, bytes, done),
                Op::ShutDown { connection } => self.shut_down(connection),
                Op::SendTo { socket, buffer } => self.send_to(socket, buffer),
                Op::Detach { connection } => {
                    if self.detach(connection) {
                        detached.push(connection);
                    }
                }
                Op::Close { token, how } => self.close(token, how, done),
            }
        }
        for connection in detached {
            self.say_detached(connection, done);
        }
        // The queue keeps its memory.
        self.ops = ops;
    }

    fn take_from(&mut self, token: Token, takes: bool) {
        let Some(endpoint) = self.endpoints.get_mut(token) else {
            return;
        };
        endpoint.takes = takes;
        if let Kind::Connection(connection) = &mut endpoint.kind
            && takes
            && !connection.ended
        {
            connection.silent = false;
        }
        if endpoint.draining && !self.draining.contains(&token) {
            self.draining.push(token);
        }
        self.changed.push(token);
    }

    fn close(&mut self, token: Token, how: Closing, done: &mut Vec<Completion>) {
        let Some(endpoint) = self.endpoints.get_mut(token) else {
            return;
        };
        let is_connection = matches!(endpoint.kind, Kind::Connection(_));
        if how == Closing::WhenDrained && !is_connection {
            endpoint.draining = true;
            self.take_from(token, true);
            return;
        }
        if how == Closing::Reset && is_connection {
            socket::reset_on_close(endpoint.fd.as_fd());
        }
        if self.answering.contains(&token) {
            // What was to be sent before the close is sent before it.
            self.flush_datagrams(token, done);
        }
        self.let_go(token, done);
    }

    /// Closes the descriptor and ends the token.
    fn let_go(&mut self, token: Token, done: &mut Vec<Completion>) {
        let Some(mut endpoint) = self.endpoints.remove(token) else {
            return;
        };
        match &mut endpoint.kind {
            // Other workers may hold the same listening or datagram socket, and closing ours would
            // not end its registration (epoll(7), question 6).
            Kind::Listener(_) => self.forget(&endpoint),
            Kind::Datagrams(datagrams) => {
                datagrams.clear(&mut self.buffers);
                self.forget(&endpoint);
            }
            Kind::Connection(connection) => connection.discard(&mut self.buffers, &mut self.pipes),
        }
        done.push(Completion::Closed { token });
    }

    fn forget(&self, endpoint: &Endpoint) {
        if endpoint.told != Wish::Nothing {
            // It is registered, as noted, so this can't fail.
            let _ = self.kernel.delete(&endpoint.fd);
        }
    }

    /// Tells the kernel what has changed of what we wait for.
    fn tell_kernel(&mut self, done: &mut Vec<Completion>) {
        while let Some(token) = self.changed.pop() {
            let Some(endpoint) = self.endpoints.get_mut(token) else {
                continue;
            };
            let wish = endpoint.wish();
            if wish == endpoint.told {
                continue;
            }
            let data = u64::from(token.generation) << 32 | u64::from(token.slot);
            let mut event = EpollEvent::new(wish.flags(), data);
            let result = match (endpoint.told, wish) {
                (_, Wish::Nothing) => self.kernel.delete(&endpoint.fd),
                (Wish::Nothing, _) => self.kernel.add(&endpoint.fd, event),
                _ => self.kernel.modify(&endpoint.fd, &mut event),
            };
            match result {
                Ok(()) => endpoint.told = wish,
                // Too many watches or no memory (epoll_ctl(2)): who can't be waited for can't be served.
                Err(errno) => self.refuse(token, errno.into(), done),
            }
        }
    }

    fn refuse(&mut self, token: Token, error: io::Error, done: &mut Vec<Completion>) {
        let Some(endpoint) = self.endpoints.get_mut(token) else {
            return;
        };
        match endpoint.kind {
            Kind::Connection(_) => self.fail(token, error, done),
            Kind::Listener(_) => {
                endpoint.takes = false;
                done.push(Completion::AcceptPaused {
                    listener: token,
                    error: Some(error),
                });
            }
            // Try again with the next turn: a datagram socket has nobody to give up.
            Kind::Datagrams(_) => self.starve(token),
        }
    }

    fn starve(&mut self, token: Token) {
        if let Some(endpoint) = self.endpoints.get_mut(token) {
            endpoint.starved = true;
            self.starved.push(token);
            self.changed.push(token);
        }
    }

    /// Lets those go on who found no buffer, now that there are enough.
    fn feed(&mut self) {
        if self.buffers.free() <= usize::from(BUFFER_COUNT) / 8 {
            return;
        }
        while let Some(token) = self.starved.pop() {
            if let Some(endpoint) = self.endpoints.get_mut(token) {
                endpoint.starved = false;
                self.changed.push(token);
            }
        }
    }

    /// Serves the queues of those that are to be closed, a bounded part of each.
    fn drain(&mut self, done: &mut Vec<Completion>) {
        let mut index = 0;
        while index < self.draining.len() {
            let token = self.draining[index];
            let goes_on = match self.endpoints.get_mut(token).map(|endpoint| &endpoint.kind) {
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

    fn handle(&mut self, event: EpollEvent, done: &mut Vec<Completion>) {
        if event.data() == WAKER {
            self.waker.drain();
            done.push(Completion::Woken);
            return;
        }
        let token = Token {
            slot: event.data() as u32,
            generation: (event.data() >> 32) as u32,
        };
        let Some(endpoint) = self.endpoints.get_mut(token) else {
            return;
        };
        match &endpoint.kind {
            Kind::Listener(_) if endpoint.takes && !endpoint.draining => {
                _ = self.accept(token, done)
            }
            Kind::Datagrams(datagrams) if datagrams.has_unsent() => {
                self.flush_datagrams(token, done)
            }
            Kind::Datagrams(_) if endpoint.takes && !endpoint.draining => {
                _ = self.receive_from(token, done)
            }
            Kind::Connection(connection) if connection.silent || connection.detached => {}
            Kind::Connection(connection) if endpoint.takes && connection.reads_on() => {
                self.receive_and_flush(token, event.events(), done);
            }
            Kind::Connection(connection) if connection.stalled() => self.flush(token, done),
            Kind::Connection(_) if endpoint.takes => {
                let warned = event.events().intersects(WARNINGS);
                self.receive(token, warned, done);
            }
            Kind::Connection(_)
                if event
                    .events()
                    .intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) =>
            {
                self.hang_up(token, done);
            }
            _ => {}
        }
    }
}

impl Driver for Epoll {
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
        let mut connection = Connection::new(socket::is_inet(socket.as_fd()));
        connection.owe(unsent);
        let token = self.insert(socket, Kind::Connection(connection));
        self.changed.push(token);
        token
    }

    fn take(&mut self, connection: Token) -> Option<Detached<OwnedFd>> {
        self.take_out(connection)
    }

    fn submit(&mut self, op: Op) {
        self.ops.push(op);
    }

    fn wait(&mut self, until: Option<Instant>, done: &mut Vec<Completion>) -> io::Result<()> {
        self.perform(done);
        self.send_answers(done);
        self.feed();
        self.drain(done);
        self.tell_kernel(done);
        if self.ready.is_empty() {
            if !done.is_empty() {
                return Ok(());
            }
            let timeout = if self.draining.is_empty() {
                timeout(until, self.now())
            } else {
                EpollTimeout::ZERO
            };
            self.ready = match self.kernel.wait(&mut self.events, timeout) {
                Ok(count) => 0..count,
                Err(Errno::EINTR) => 0..0,
                Err(errno) => return Err(errno.into()),
            };
        }
        self.received_bytes = 0;
        while done.len() < COMPLETIONS_MAX && self.received_bytes < RECEIVED_BYTES_MAX {
            let Some(index) = self.ready.next() else {
                break;
            };
            self.handle(self.events[index], done);
        }
        Ok(())
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn bytes(&mut self, buffer: &Buffer) -> &mut [u8] {
        self.buffers.bytes(buffer)
    }

    fn envelope(&self, buffer: &Buffer) -> &Envelope {
        self.workspace.envelope(buffer)
    }

    fn lease(&mut self, envelope: &Envelope, len: usize) -> Option<Buffer> {
        self.workspace.lease(&mut self.buffers, envelope, len)
    }

    fn recycle(&mut self, buffer: Buffer) {
        self.buffers.recycle(buffer);
    }

    fn progress(&self, connection: Token) -> u64 {
        self.endpoints
            .get(connection)
            .map_or(0, |endpoint| socket::progress(endpoint.fd.as_fd()))
    }

    fn details(&self, connection: Token) -> Details {
        self.endpoints
            .get(connection)
            .map(|endpoint| socket::details(endpoint.fd.as_fd()))
            .unwrap_or_default()
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

/// The time to wait in the kernel's terms: milliseconds, rounded up, so that a wait never ends
/// just before its time and turns into many.
fn timeout(until: Option<Instant>, now: Instant) -> EpollTimeout {
    let Some(until) = until else {
        return EpollTimeout::NONE;
    };
    let left = until.saturating_duration_since(now) + Duration::from_nanos(999_999);
    EpollTimeout::try_from(left.as_millis()).unwrap_or(EpollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_rounded_up_and_never_negative() {
        let now = Instant::now();
        let millis = |until: Duration| timeout(Some(now + until), now);
        assert_eq!(millis(Duration::ZERO), EpollTimeout::ZERO);
        assert_eq!(millis(Duration::from_nanos(1)), EpollTimeout::from(1u8));
        assert_eq!(millis(Duration::from_millis(3)), EpollTimeout::from(3u8));
        assert_eq!(
            timeout(Some(now), now + Duration::from_secs(9)),
            EpollTimeout::ZERO
        );
        assert_eq!(timeout(None, now), EpollTimeout::NONE);
    }

    #[test]
    fn an_idle_connection_is_small() {
        assert!(
            size_of::<Endpoint>() <= 48,
            "{} bytes",
            size_of::<Endpoint>()
        );
    }
}
