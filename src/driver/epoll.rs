//! The driver over `epoll(7)`: readiness, dressed as completion.
//!
//! Level-triggered, one read and one send per event. Operations are carried out at the start of
//! the next `wait`, in order; a send that the kernel takes at once costs one system call and
//! nothing more. What a socket waits for is told to the kernel lazily, once a turn, so that a
//! connection which comes and goes costs one `epoll_ctl(2)`.
//!
//! Never decides anything about an echo; never blocks but in [`Driver::wait`].

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll as Kernel, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};

use super::buffers::{BUFFER_COUNT, Buffers, Queue};
use super::{Buffer, Closing, Completion, Details, Driver, Envelope, Op, Permits, Token, Waker};
use crate::sys::{message, socket};

/// How many events are taken from the kernel at once.
const EVENTS_MAX: usize = 256;

/// A `wait` ends after so many completions. Small enough that the first peer of a batch need not
/// wait for the last one's bytes before it gets its own.
const COMPLETIONS_MAX: usize = 64;

/// A `wait` ends after so many bytes received, so that they are sent while the cache has them.
const RECEIVED_BYTES_MAX: usize = 128 * 1024;

/// So many connections or datagrams are taken from one socket before others have their turn.
const BURST_MAX: usize = 32;

/// Marks the waker's event; no token looks like it, for generations have 24 bits.
const WAKER: u64 = u64::MAX;

/// See the module.
#[derive(Debug)]
pub struct Epoll {
    kernel: Kernel,
    waker: Waker,
    slots: Vec<Slot>,
    free: Vec<u32>,
    buffers: Buffers,
    envelopes: Box<[Envelope]>,
    ops: Vec<Op>,
    // Events from the kernel, and those of them that are yet to be handled.
    events: Box<[EpollEvent]>,
    ready: Range<usize>,
    // Whose wishes may differ from what the kernel was told.
    changed: Vec<Token>,
    // Who could not receive for want of a buffer.
    starved: Vec<Token>,
    // Who is to be closed when nobody is queued any more.
    draining: Vec<Token>,
    received_bytes: usize,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    endpoint: Option<Endpoint>,
}

#[derive(Debug)]
struct Endpoint {
    fd: OwnedFd,
    // What the kernel was told; none: the descriptor is not registered.
    told: Option<EpollFlags>,
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
    Datagrams { inet: bool, unsent: Queue },
}

#[derive(Debug)]
struct Connection {
    unsent: Queue,
    // Of the first buffer in `unsent`, or of what was spilled.
    sent: u32,
    // The bytes of a stalled send, moved out when buffers are scarce.
    spilled: Option<Box<[u8]>>,
    shut_down: bool,
    ended: bool,
    // Broken, or hung up while nothing was asked of it: the kernel need not say so again.
    silent: bool,
}

impl Connection {
    fn stalled(&self) -> bool {
        !self.unsent.is_empty() || self.spilled.is_some()
    }
}

impl Endpoint {
    /// What the kernel should report, if anything.
    fn wish(&self) -> Option<EpollFlags> {
        let takes = self.takes && !self.starved;
        match &self.kind {
            // Several workers may wait on one listening socket: one of them is enough.
            Kind::Listener(_) => takes.then_some(EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE),
            Kind::Datagrams { unsent, .. } if !unsent.is_empty() => Some(EpollFlags::EPOLLOUT),
            Kind::Datagrams { .. } => takes.then_some(EpollFlags::EPOLLIN),
            Kind::Connection(connection) if connection.silent => None,
            Kind::Connection(connection) if connection.stalled() => Some(EpollFlags::EPOLLOUT),
            Kind::Connection(connection) if connection.ended => None,
            Kind::Connection(_) if takes => Some(EpollFlags::EPOLLIN),
            // Errors are always reported.
            Kind::Connection(_) => Some(EpollFlags::empty()),
        }
    }
}

/// What became of an attempt to send.
enum Flushed {
    All,
    Stalled,
    Failed(io::Error),
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
            slots: Vec::new(),
            free: Vec::new(),
            buffers: Buffers::new(),
            envelopes: vec![Envelope::EMPTY; usize::from(BUFFER_COUNT)].into_boxed_slice(),
            ops: Vec::with_capacity(COMPLETIONS_MAX * 4),
            events: vec![EpollEvent::empty(); EVENTS_MAX].into_boxed_slice(),
            ready: 0..0,
            changed: Vec::with_capacity(COMPLETIONS_MAX * 4),
            starved: Vec::new(),
            draining: Vec::new(),
            received_bytes: 0,
        })
    }

    fn insert(&mut self, fd: OwnedFd, kind: Kind) -> Token {
        let endpoint = Endpoint {
            fd,
            told: None,
            takes: false,
            starved: false,
            draining: false,
            kind,
        };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                endpoint: None,
            });
            u32::try_from(self.slots.len() - 1).expect("descriptors are far fewer than 2^32")
        });
        let place = &mut self.slots[slot as usize];
        place.endpoint = Some(endpoint);
        Token {
            slot,
            generation: place.generation,
        }
    }

    fn endpoint(&mut self, token: Token) -> Option<&mut Endpoint> {
        let slot = self.slots.get_mut(token.slot as usize)?;
        if slot.generation == token.generation {
            slot.endpoint.as_mut()
        } else {
            None
        }
    }

    fn connection_fd(&self, token: Token) -> Option<BorrowedFd<'_>> {
        let slot = self.slots.get(token.slot as usize)?;
        if slot.generation != token.generation {
            return None;
        }
        Some(slot.endpoint.as_ref()?.fd.as_fd())
    }

    /// Carries out the queued operations.
    fn perform(&mut self, done: &mut Vec<Completion>) {
        let mut ops = std::mem::take(&mut self.ops);
        for op in ops.drain(..) {
            match op {
                Op::Accept { listener: token }
                | Op::Receive { connection: token }
                | Op::ReceiveFrom { socket: token } => {
                    self.take_from(token, true);
                }
                Op::Rest { connection } => self.take_from(connection, false),
                Op::Send { connection, buffer } => self.send(connection, buffer, done),
                Op::ShutDown { connection } => self.shut_down(connection),
                Op::SendTo { socket, buffer } => self.send_to(socket, buffer, done),
                Op::Close { token, how } => self.close(token, how, done),
            }
        }
        // The queue keeps its memory.
        self.ops = ops;
    }

    fn take_from(&mut self, token: Token, takes: bool) {
        let Some(endpoint) = self.endpoint(token) else {
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

    fn send(&mut self, token: Token, buffer: Buffer, done: &mut Vec<Completion>) {
        let Self { slots, buffers, .. } = self;
        let Some(Endpoint {
            fd,
            kind: Kind::Connection(connection),
            ..
        }) = find(slots, token)
        else {
            buffers.recycle(buffer);
            return;
        };
        if connection.silent {
            // It has failed, and that has been said.
            buffers.recycle(buffer);
            return;
        }
        if connection.stalled() {
            buffers.push(&mut connection.unsent, buffer);
            return;
        }
        match send(
            fd.as_raw_fd(),
            buffers.bytes(&buffer),
            MsgFlags::MSG_NOSIGNAL,
        ) {
            Ok(sent) if sent == buffer.len as usize => {
                done.push(Completion::Sent {
                    connection: token,
                    len: buffer.len,
                });
                buffers.recycle(buffer);
            }
            Err(errno) if errno != Errno::EAGAIN => {
                buffers.recycle(buffer);
                self.fail(token, errno.into(), done);
            }
            partly => {
                connection.sent = partly.unwrap_or(0) as u32;
                buffers.push(&mut connection.unsent, buffer);
                spill_if_scarce(buffers, connection);
                done.push(Completion::Stalled { connection: token });
                self.changed.push(token);
            }
        }
    }

    /// Goes on with a stalled send.
    fn flush(&mut self, token: Token, done: &mut Vec<Completion>) {
        let Self { slots, buffers, .. } = self;
        let Some(Endpoint {
            fd,
            kind: Kind::Connection(connection),
            ..
        }) = find(slots, token)
        else {
            return;
        };
        let raw = fd.as_raw_fd();
        let flushed = loop {
            let spilled = connection.spilled.as_deref();
            let Some(bytes) = spilled.or_else(|| Some(&*buffers.front(&connection.unsent)?.1))
            else {
                break Flushed::All;
            };
            let len = bytes.len();
            match send(
                raw,
                &bytes[connection.sent as usize..],
                MsgFlags::MSG_NOSIGNAL,
            ) {
                Ok(sent) if connection.sent as usize + sent == len => {
                    connection.sent = 0;
                    if connection.spilled.take().is_none() {
                        let buffer = buffers
                            .pop(&mut connection.unsent)
                            .expect("its bytes were just sent");
                        buffers.recycle(buffer);
                    }
                    done.push(Completion::Sent {
                        connection: token,
                        len: len as u32,
                    });
                }
                Ok(sent) => {
                    connection.sent += sent as u32;
                    break Flushed::Stalled;
                }
                Err(Errno::EAGAIN) => break Flushed::Stalled,
                Err(errno) => break Flushed::Failed(errno.into()),
            }
        };
        match flushed {
            Flushed::All => {
                if connection.shut_down {
                    finish_writing(fd.as_fd());
                }
                self.changed.push(token);
            }
            Flushed::Stalled => spill_if_scarce(buffers, connection),
            Flushed::Failed(error) => self.fail(token, error, done),
        }
    }

    fn shut_down(&mut self, token: Token) {
        let Some(Endpoint {
            fd,
            kind: Kind::Connection(connection),
            ..
        }) = find(&mut self.slots, token)
        else {
            return;
        };
        connection.shut_down = true;
        if !connection.stalled() {
            finish_writing(fd.as_fd());
        }
    }

    fn fail(&mut self, token: Token, error: io::Error, done: &mut Vec<Completion>) {
        let Self { slots, buffers, .. } = self;
        let Some(Endpoint {
            kind: Kind::Connection(connection),
            takes,
            ..
        }) = find(slots, token)
        else {
            return;
        };
        buffers.clear(&mut connection.unsent);
        connection.spilled = None;
        connection.silent = true;
        *takes = false;
        self.changed.push(token);
        done.push(Completion::Failed {
            connection: token,
            error,
        });
    }

    fn send_to(&mut self, token: Token, buffer: Buffer, done: &mut Vec<Completion>) {
        let Self {
            slots,
            buffers,
            envelopes,
            ..
        } = self;
        let Some(Endpoint {
            fd,
            kind: Kind::Datagrams { inet, unsent },
            ..
        }) = find(slots, token)
        else {
            buffers.recycle(buffer);
            return;
        };
        if !unsent.is_empty() {
            buffers.push(unsent, buffer);
            return;
        }
        let envelope = &envelopes[usize::from(buffer.index)];
        let result = message::send(fd.as_fd(), buffers.bytes(&buffer), envelope);
        if *inet && would_block(&result) {
            buffers.push(unsent, buffer);
            self.changed.push(token);
            return;
        }
        buffers.recycle(buffer);
        done.push(Completion::DatagramSent {
            socket: token,
            result: result.map(|sent| sent as u32),
        });
    }

    /// Sends the datagrams that had to wait for the socket's own send buffer.
    fn flush_datagrams(&mut self, token: Token, done: &mut Vec<Completion>) {
        let Self {
            slots,
            buffers,
            envelopes,
            ..
        } = self;
        let Some(Endpoint {
            fd,
            kind: Kind::Datagrams { unsent, .. },
            ..
        }) = find(slots, token)
        else {
            return;
        };
        while let Some((index, bytes)) = buffers.front(unsent) {
            let result = message::send(fd.as_fd(), bytes, &envelopes[usize::from(index)]);
            if would_block(&result) {
                return;
            }
            let buffer = buffers.pop(unsent).expect("it was just at the front");
            buffers.recycle(buffer);
            done.push(Completion::DatagramSent {
                socket: token,
                result: result.map(|sent| sent as u32),
            });
        }
        self.changed.push(token);
    }

    fn close(&mut self, token: Token, how: Closing, done: &mut Vec<Completion>) {
        let Some(endpoint) = self.endpoint(token) else {
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
        self.let_go(token, done);
    }

    /// Closes the descriptor and ends the token.
    fn let_go(&mut self, token: Token, done: &mut Vec<Completion>) {
        let slot = &mut self.slots[token.slot as usize];
        let Some(mut endpoint) = slot.endpoint.take() else {
            return;
        };
        slot.generation = token.next().generation;
        self.free.push(token.slot);
        match &mut endpoint.kind {
            // Other workers may hold the same listening or datagram socket, and closing ours would
            // not end its registration (epoll(7), question 6).
            Kind::Listener(_) => self.forget(&endpoint),
            Kind::Datagrams { unsent, .. } => {
                self.buffers.clear(unsent);
                self.forget(&endpoint);
            }
            Kind::Connection(connection) => self.buffers.clear(&mut connection.unsent),
        }
        done.push(Completion::Closed { token });
    }

    fn forget(&self, endpoint: &Endpoint) {
        if endpoint.told.is_some() {
            // It is registered, as noted, so this can't fail.
            let _ = self.kernel.delete(&endpoint.fd);
        }
    }

    /// Tells the kernel what has changed of what we wait for.
    fn tell_kernel(&mut self, done: &mut Vec<Completion>) {
        while let Some(token) = self.changed.pop() {
            let Some(endpoint) = find(&mut self.slots, token) else {
                continue;
            };
            let wish = endpoint.wish();
            if wish == endpoint.told {
                continue;
            }
            let data = u64::from(token.generation) << 32 | u64::from(token.slot);
            let result = match (endpoint.told, wish) {
                (None, Some(flags)) => self.kernel.add(&endpoint.fd, EpollEvent::new(flags, data)),
                (_, Some(flags)) => self
                    .kernel
                    .modify(&endpoint.fd, &mut EpollEvent::new(flags, data)),
                (_, None) => self.kernel.delete(&endpoint.fd),
            };
            match result {
                Ok(()) => endpoint.told = wish,
                // Too many watches or no memory (epoll_ctl(2)): who can't be waited for can't be served.
                Err(errno) => self.refuse(token, errno.into(), done),
            }
        }
    }

    fn refuse(&mut self, token: Token, error: io::Error, done: &mut Vec<Completion>) {
        let Some(endpoint) = self.endpoint(token) else {
            return;
        };
        match endpoint.kind {
            Kind::Connection(_) => self.fail(token, error, done),
            Kind::Listener(_) => {
                endpoint.takes = false;
                done.push(Completion::AcceptRested {
                    listener: token,
                    error: Some(error),
                });
            }
            // Try again with the next turn: a datagram socket has nobody to give up.
            Kind::Datagrams { .. } => self.starve(token),
        }
    }

    fn starve(&mut self, token: Token) {
        if let Some(endpoint) = self.endpoint(token) {
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
            if let Some(endpoint) = self.endpoint(token) {
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
            let goes_on = match self.endpoint(token).map(|endpoint| &endpoint.kind) {
                Some(Kind::Listener(_)) => self.accept(token, done),
                Some(Kind::Datagrams { .. }) => self.drain_datagrams(token, done),
                _ => false,
            };
            if goes_on {
                index += 1;
            } else {
                self.draining.swap_remove(index);
            }
        }
    }

    /// Whether the socket stays: it has more, or the answers to what it had are still to be sent.
    fn drain_datagrams(&mut self, token: Token, done: &mut Vec<Completion>) -> bool {
        let before = done.len();
        let emptied = self.receive_from(token, done);
        let Some(Endpoint {
            kind: Kind::Datagrams { unsent, .. },
            ..
        }) = find(&mut self.slots, token)
        else {
            return false;
        };
        // What this turn received is answered in the next one.
        let gone = emptied && done.len() == before && unsent.is_empty();
        if gone {
            self.let_go(token, done);
        }
        !gone
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
        let Some(endpoint) = self.endpoint(token) else {
            return;
        };
        match &endpoint.kind {
            Kind::Listener(_) if endpoint.takes && !endpoint.draining => {
                _ = self.accept(token, done)
            }
            Kind::Datagrams { unsent, .. } if !unsent.is_empty() => {
                self.flush_datagrams(token, done)
            }
            Kind::Datagrams { .. } if endpoint.takes && !endpoint.draining => {
                _ = self.receive_from(token, done)
            }
            Kind::Connection(connection) if connection.silent => {}
            Kind::Connection(connection) if connection.stalled() => self.flush(token, done),
            Kind::Connection(_) if endpoint.takes => self.receive(token, done),
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

    /// Accepts a burst. Whether there may be more, for one that is being drained.
    fn accept(&mut self, token: Token, done: &mut Vec<Completion>) -> bool {
        for _ in 0..BURST_MAX {
            let Some(Endpoint {
                fd,
                kind: Kind::Listener(permits),
                takes,
                draining,
                ..
            }) = find(&mut self.slots, token)
            else {
                return false;
            };
            if let Some(permits) = &permits {
                if *draining {
                    permits.take_regardless();
                } else if !permits.take_or_be_woken() {
                    *takes = false;
                    self.changed.push(token);
                    done.push(Completion::AcceptRested {
                        listener: token,
                        error: None,
                    });
                    return false;
                }
            }
            let error = match socket::accept(fd.as_fd()) {
                Ok((fd, peer)) => {
                    self.accepted(token, fd, peer, done);
                    continue;
                }
                Err(error) => error,
            };
            if let Some(permits) = permits {
                permits.give_back();
            }
            if error.kind() == io::ErrorKind::WouldBlock {
                if *draining {
                    self.let_go(token, done);
                }
                return false;
            }
            if !concerns_one_peer(&error) {
                *takes = false;
                self.changed.push(token);
                done.push(Completion::AcceptRested {
                    listener: token,
                    error: Some(error),
                });
                return false;
            }
        }
        true
    }

    fn accepted(
        &mut self,
        listener: Token,
        fd: OwnedFd,
        peer: Option<SocketAddr>,
        done: &mut Vec<Completion>,
    ) {
        let connection = Connection {
            unsent: Queue::new(),
            sent: 0,
            spilled: None,
            shut_down: false,
            ended: false,
            silent: false,
        };
        let connection = self.insert(fd, Kind::Connection(connection));
        done.push(Completion::Accepted {
            listener,
            connection,
            peer,
        });
    }

    fn receive(&mut self, token: Token, done: &mut Vec<Completion>) {
        let Self { slots, buffers, .. } = self;
        let Some(Endpoint {
            fd,
            takes,
            kind: Kind::Connection(connection),
            ..
        }) = find(slots, token)
        else {
            return;
        };
        let Some((_, memory)) = buffers.peek() else {
            self.starve(token);
            return;
        };
        match recv(fd.as_raw_fd(), memory, MsgFlags::empty()) {
            Ok(0) => {
                *takes = false;
                connection.ended = true;
                self.changed.push(token);
                done.push(Completion::Ended { connection: token });
            }
            Ok(len) => {
                self.received_bytes += len;
                let buffer = self.buffers.lease(len);
                done.push(Completion::Received {
                    connection: token,
                    buffer,
                });
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => self.fail(token, errno.into(), done),
        }
    }

    /// An error or hang-up on a connection of which nothing was asked.
    fn hang_up(&mut self, token: Token, done: &mut Vec<Completion>) {
        let Some(Endpoint {
            fd,
            kind: Kind::Connection(connection),
            ..
        }) = find(&mut self.slots, token)
        else {
            return;
        };
        if let Some(error) = socket::take_error(fd.as_fd()) {
            self.fail(token, error, done);
        } else {
            // Both sides have finished, and there may be bytes left to read: later, when asked.
            connection.silent = true;
            self.changed.push(token);
        }
    }

    /// Receives a burst of datagrams. Whether the socket has been emptied.
    fn receive_from(&mut self, token: Token, done: &mut Vec<Completion>) -> bool {
        for _ in 0..BURST_MAX {
            let Self {
                slots,
                buffers,
                envelopes,
                ..
            } = self;
            let Some(Endpoint {
                fd,
                kind: Kind::Datagrams { inet, .. },
                ..
            }) = find(slots, token)
            else {
                return true;
            };
            let Some((index, memory)) = buffers.peek() else {
                self.starve(token);
                return false;
            };
            let room = memory.len();
            match message::receive(
                fd.as_fd(),
                *inet,
                memory,
                &mut envelopes[usize::from(index)],
            ) {
                Ok(len) => {
                    let buffer = buffers.lease(len.min(room));
                    self.received_bytes += len.min(room);
                    done.push(Completion::Datagram {
                        socket: token,
                        buffer,
                        len,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                // An error of an earlier answer, which the kernel reports when it can (udp(7)).
                Err(_) => {}
            }
        }
        false
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
        }) = self.endpoint(listener)
        {
            *old = permits;
        }
    }

    fn add_datagram_socket(&mut self, socket: OwnedFd) -> Token {
        let inet = socket::is_inet(socket.as_fd());
        self.insert(
            socket,
            Kind::Datagrams {
                inet,
                unsent: Queue::new(),
            },
        )
    }

    fn submit(&mut self, op: Op) {
        self.ops.push(op);
    }

    fn wait(&mut self, until: Option<Instant>, done: &mut Vec<Completion>) -> io::Result<()> {
        self.perform(done);
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
        &self.envelopes[usize::from(buffer.index)]
    }

    fn recycle(&mut self, buffer: Buffer) {
        self.buffers.recycle(buffer);
    }

    fn progress(&self, connection: Token) -> u64 {
        self.connection_fd(connection).map_or(0, socket::progress)
    }

    fn details(&self, connection: Token) -> Details {
        self.connection_fd(connection)
            .map(socket::details)
            .unwrap_or_default()
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

fn find(slots: &mut [Slot], token: Token) -> Option<&mut Endpoint> {
    let slot = slots.get_mut(token.slot as usize)?;
    if slot.generation == token.generation {
        slot.endpoint.as_mut()
    } else {
        None
    }
}

/// Moves the rest of a stalled send into memory of its own, of just its size, when buffers are
/// scarce: peers that do not read must not starve those that do.
fn spill_if_scarce(buffers: &mut Buffers, connection: &mut Connection) {
    if connection.spilled.is_some() || !buffers.scarce() || !connection.unsent.holds_one() {
        return;
    }
    let buffer = buffers
        .pop(&mut connection.unsent)
        .expect("the queue holds one");
    connection.spilled = Some(buffers.bytes(&buffer).into());
    buffers.recycle(buffer);
}

fn finish_writing(fd: BorrowedFd<'_>) {
    // Fails only when the peer is gone already, which the next receive will say.
    let _ = shutdown(fd.as_raw_fd(), Shutdown::Write);
}

fn would_block(result: &io::Result<usize>) -> bool {
    result
        .as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Whether an error of `accept4(2)` is about the client at the head of the queue only, so that the
/// next one may be fine. (accept(2), "Error handling": network errors that were pending on the new
/// connection are returned from accept; EPERM is a firewall's no.)
fn concerns_one_peer(error: &io::Error) -> bool {
    const OF_ONE_PEER: [i32; 12] = [
        libc::ECONNABORTED,
        libc::EINTR,
        libc::EPERM,
        libc::EPROTO,
        libc::ENETDOWN,
        libc::ENOPROTOOPT,
        libc::EHOSTDOWN,
        libc::ENONET,
        libc::EHOSTUNREACH,
        libc::EOPNOTSUPP,
        libc::ENETUNREACH,
        libc::ETIMEDOUT,
    ];
    error
        .raw_os_error()
        .is_some_and(|errno| OF_ONE_PEER.contains(&errno))
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
        assert!(size_of::<Slot>() <= 64, "{} bytes", size_of::<Slot>());
    }
}
