//! Streams over io_uring: which requests the kernel should have for a connection, and what their
//! results mean.
//!
//! A connection has at most one request to receive and one to send. What they should be follows
//! from its state, and [`Uring::attend`] is the one place that says so: whoever changes the state
//! calls it.

#![expect(unsafe_code, reason = "the kernel reads what is sent while we go on")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use io_uring::cqueue;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, shutdown};

use super::memory::{GROUP, Memory, SMALL_BYTES};
use super::ring::{Kind as Request, Ring};
use super::{Endpoint, Kind, Uring};
use crate::driver::buffers::Queue;
use crate::driver::pipes::Pipes;
use crate::driver::relay::{Relay, Taken};
use crate::driver::{Buffer, Closing, Completion, Detached, Token};
use crate::sys::socket;

/// With so many buffers to send, a connection is not received from.
const QUEUE_MAX: u16 = 16;

/// With so few it is again.
const QUEUE_LOW: u16 = 4;

/// After so many small reads in a row a peer is no longer taken for one that sends much.
const PATIENCE: u8 = 16;

#[derive(Debug)]
pub(super) struct Connection {
    /// What is being sent; the kernel's, while a request to send is out.
    first: Option<Piece>,
    /// How much of it is sent.
    sent: u32,
    /// How many pieces wait behind it.
    queued: u16,
    /// Those of them that were moved out of the buffers when they were scarce.
    #[expect(clippy::box_collection, reason = "hardly anybody has any")]
    spilled: Option<Box<VecDeque<Spilled>>>,
    /// And then these.
    unsent: Queue,
    relay: Relay,
    receiving: Receiving,
    sending: Sending,
    /// How much longer it is read in large pieces.
    bulk: u8,
    stalled: bool,
    /// Has so much to send that it is not received from.
    full: bool,
    starved: bool,
    ended: bool,
    failed: bool,
    shut_down: bool,
    detaching: Detaching,
    closing: Option<Closing>,
}

/// How far it has come in leaving this driver. Once it is asked for, the kernel gets no new request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detaching {
    No,
    /// The kernel's requests are to end, and what they bring is to be shown.
    Asked,
    /// The user was told.
    Said,
}

/// What one `Send` or `SendStatic` asked for.
#[derive(Debug)]
enum Piece {
    Leased(Buffer),
    Spilled(Spilled),
    /// Its place in [`Memory::statics`].
    Static(Token),
}

/// Boxed twice: hardly anybody has one, and everybody has room for it.
type Spilled = Box<Vec<u8>>;

impl Piece {
    fn bytes<'a>(&'a self, memory: &'a mut Memory) -> &'a [u8] {
        match self {
            Self::Leased(buffer) => memory.bytes(buffer),
            Self::Spilled(bytes) => bytes,
            Self::Static(place) => memory.statics.get(*place).expect("it waits to be sent"),
        }
    }

    fn let_go(self, memory: &mut Memory) {
        match self {
            Self::Leased(buffer) => memory.recycle(buffer),
            Self::Spilled(_) => {}
            Self::Static(place) => _ = memory.statics.remove(place),
        }
    }
}

/// Moves bytes out of their buffer.
fn spill(buffer: Buffer, memory: &mut Memory) -> Spilled {
    let bytes = Box::new(memory.bytes(&buffer).to_vec());
    memory.recycle(buffer);
    bytes
}

/// The request to receive that the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    No,
    /// Bytes as they come, in small buffers.
    Repeatedly,
    /// To say when there are bytes.
    Polled,
    /// It was told to end.
    Cancelled,
}

/// The request to send that the kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sending {
    No,
    /// As much as there is room for.
    AtOnce,
    /// All of it, whenever there is room.
    Patiently,
    /// To say when there is room for what is relayed.
    Polled,
    /// It was told to end.
    Cancelled,
}

impl Connection {
    pub(super) fn new() -> Self {
        Self {
            first: None,
            sent: 0,
            queued: 0,
            spilled: None,
            unsent: Queue::new(),
            relay: Relay::new(),
            receiving: Receiving::No,
            sending: Sending::No,
            bulk: 0,
            stalled: false,
            full: false,
            starved: false,
            ended: false,
            failed: false,
            shut_down: false,
            detaching: Detaching::No,
            closing: None,
        }
    }

    /// Its peer is owed these bytes from an earlier driver.
    pub(super) fn owing(unsent: Vec<u8>) -> Self {
        let first = (!unsent.is_empty()).then(|| Piece::Spilled(Box::new(unsent)));
        Self {
            stalled: first.is_some(),
            first,
            ..Self::new()
        }
    }

    fn over(&self) -> bool {
        self.failed || self.closing.is_some()
    }

    /// Whether the kernel is to have no request of it.
    fn leaves(&self) -> bool {
        self.over() || self.detaching != Detaching::No
    }

    /// Whether it is to be received from.
    fn hungry(&self) -> bool {
        // What was shown goes back before anything is relayed.
        let waits = self.relay.is_due() && self.first.is_some();
        let stalled = self.stalled && !self.reads_on();
        !(self.leaves() || self.ended || stalled || self.full || self.starved || waits)
    }

    /// Whether it is read although something waits to be sent: that is no answer.
    fn reads_on(&self) -> bool {
        matches!(self.first, Some(Piece::Static(_))) && !self.relay.holds()
    }

    /// Whether it is read in large pieces.
    fn is_polled(&self) -> bool {
        self.bulk > 0 || self.relay.is_due()
    }

    fn has_unsent(&self) -> bool {
        self.first.is_some() || self.relay.holds()
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.is_some()
    }

    /// Whether the kernel has no request of it.
    fn at_rest(&self) -> bool {
        self.receiving == Receiving::No && self.sending == Sending::No
    }

    fn wants_shut_down(&self) -> bool {
        self.shut_down && !self.has_unsent() && !self.over()
    }

    pub(super) fn fed(&mut self) {
        self.starved = false;
    }

    /// Takes all buffers home but the one that the kernel has.
    fn drop_unsent(&mut self, memory: &mut Memory, pipes: &mut Pipes) {
        self.relay.discard(pipes);
        if self.sending == Sending::No
            && let Some(first) = self.first.take()
        {
            first.let_go(memory);
        }
        self.spilled = None;
        while let Some(buffer) = memory.links.pop(&mut self.unsent) {
            memory.recycle(buffer);
        }
        self.queued = 0;
    }

    /// Takes all that is yet to be sent, in its order.
    fn take_unsent(&mut self, memory: &mut Memory, pipes: &mut Pipes) -> Vec<u8> {
        let mut unsent = self.relay.read(pipes);
        while let Some(first) = &self.first {
            unsent.extend(&first.bytes(memory)[self.sent as usize..]);
            self.advance(memory);
        }
        unsent
    }

    /// Moves what waits to be sent into memory of its own, of just its size: peers that do not read
    /// must not starve those that do.
    fn spill(&mut self, memory: &mut Memory) {
        if self.sending == Sending::No {
            self.first = match self.first.take() {
                Some(Piece::Leased(buffer)) => Some(Piece::Spilled(spill(buffer, memory))),
                first => first,
            };
        }
        while let Some(buffer) = memory.links.pop(&mut self.unsent) {
            let bytes = spill(buffer, memory);
            self.spilled.get_or_insert_default().push_back(bytes);
        }
    }

    /// The first piece is sent; the next one is now the first.
    fn advance(&mut self, memory: &mut Memory) {
        self.sent = 0;
        if let Some(first) = self.first.take() {
            first.let_go(memory);
        }
        if self.queued == 0 {
            return;
        }
        self.queued -= 1;
        self.first = match &mut self.spilled {
            Some(spilled) => {
                let next = spilled.pop_front().map(Piece::Spilled);
                if spilled.is_empty() {
                    self.spilled = None;
                }
                next
            }
            None => memory.links.pop(&mut self.unsent).map(Piece::Leased),
        };
    }
}

/// A connection, and what of its driver is used for it.
struct Parts<'a> {
    fd: BorrowedFd<'a>,
    takes: bool,
    connection: &'a mut Connection,
    memory: &'a mut Memory,
    pipes: &'a mut Pipes,
    ring: &'a mut Ring,
}

impl Uring {
    fn connection(&mut self, token: Token) -> Option<Parts<'_>> {
        let Some(Endpoint {
            fd,
            takes,
            kind: Kind::Connection(connection),
            ..
        }) = self.endpoints.get_mut(token)
        else {
            return None;
        };
        Some(Parts {
            fd: OwnedFd::as_fd(fd),
            takes: *takes,
            connection,
            memory: &mut self.memory,
            pipes: &mut self.pipes,
            ring: &mut self.ring,
        })
    }

    /// Sees to it that the kernel has the requests that it should have.
    pub(super) fn attend(&mut self, token: Token) {
        let Some(Parts {
            fd,
            takes,
            connection,
            memory,
            ring,
            ..
        }) = self.connection(token)
        else {
            return;
        };

        let wanted = takes && connection.hungry();
        match connection.receiving {
            Receiving::No if wanted && connection.is_polled() => {
                ring.poll_input(fd, Request::Readable, token);
                connection.receiving = Receiving::Polled;
            }
            Receiving::No if wanted => {
                ring.receive(fd, GROUP, token);
                connection.receiving = Receiving::Repeatedly;
            }
            Receiving::Repeatedly if !wanted || connection.is_polled() => {
                ring.cancel(Request::Receive, token);
                connection.receiving = Receiving::Cancelled;
            }
            // What is polled for without need is looked at when it comes, except at the end.
            Receiving::Polled if connection.leaves() => {
                ring.cancel(Request::Readable, token);
                connection.receiving = Receiving::Cancelled;
            }
            _ => {}
        }

        match (connection.sending, &connection.first) {
            (Sending::No, _) if connection.leaves() => {}
            // Nothing is received while anything waits, so what is held came before all that does.
            (Sending::No, _) if connection.relay.holds() => {
                ring.poll_output(fd, Request::Writable, token);
                connection.sending = Sending::Polled;
            }
            (Sending::No, Some(first)) => {
                let bytes = &first.bytes(memory)[connection.sent as usize..];
                let (sending, flags) = if connection.stalled {
                    (Sending::Patiently, libc::MSG_WAITALL)
                } else {
                    (Sending::AtOnce, libc::MSG_DONTWAIT)
                };
                // SAFETY: while there is a request to send, the first piece stays what it is:
                // leased, spilled on the heap, or there for ever.
                unsafe { ring.send(fd, bytes, flags, token) };
                connection.sending = sending;
            }
            (Sending::Patiently, _) if connection.leaves() => {
                ring.cancel(Request::Send, token);
                connection.sending = Sending::Cancelled;
            }
            (Sending::Polled, _) if connection.leaves() => {
                ring.cancel(Request::Writable, token);
                connection.sending = Sending::Cancelled;
            }
            _ => {}
        }

        if connection.detaching == Detaching::Asked && connection.at_rest() {
            // It is said with the next wait: then all that has come is shown and answered.
            self.chores.push(token);
        }
    }

    /// Whether a request was told to end. The kernel does not find one that it is about to try
    /// again at that moment: that one is told until it hears.
    pub(super) fn cancelled(&mut self, token: Token, result: i32) {
        if ![libc::ENOENT, libc::EALREADY].contains(&-result) {
            return;
        }
        let Some(Parts {
            connection, ring, ..
        }) = self.connection(token)
        else {
            return;
        };
        if connection.receiving == Receiving::Cancelled {
            ring.cancel(Request::Receive, token);
        }
        if connection.sending == Sending::Cancelled {
            ring.cancel(Request::Send, token);
        }
    }

    pub(super) fn send(&mut self, token: Token, buffer: Buffer) {
        let Some(Parts {
            connection, memory, ..
        }) = self.connection(token)
        else {
            self.memory.recycle(buffer);
            return;
        };
        if connection.over() {
            memory.recycle(buffer);
            return;
        }
        if connection.first.is_none() {
            connection.first = Some(Piece::Leased(buffer));
        } else {
            memory.links.push(&mut connection.unsent, buffer);
            connection.queued += 1;
            if connection.stalled && memory.scarce() {
                connection.spill(memory);
            }
            if connection.queued < QUEUE_MAX {
                return;
            }
            connection.full = true;
        }
        self.attend(token);
    }

    /// Sends bytes that need no buffer.
    pub(super) fn send_static(&mut self, token: Token, bytes: &'static [u8]) {
        debug_assert!(!bytes.is_empty(), "something is to be sent");
        let Some(Parts {
            connection, memory, ..
        }) = self.connection(token)
        else {
            return;
        };
        if connection.over() {
            return;
        }
        let is_alone = connection.first.is_none();
        assert!(is_alone, "static bytes are sent when nothing else waits");
        connection.first = Some(Piece::Static(memory.statics.insert(bytes)));
        self.attend(token);
    }

    /// The result of a request to send.
    pub(super) fn sent(&mut self, token: Token, result: i32, done: &mut Vec<Completion>) {
        let Some(Parts {
            connection,
            memory,
            pipes,
            ..
        }) = self.connection(token)
        else {
            return;
        };
        connection.sending = Sending::No;
        if connection.over() {
            connection.drop_unsent(memory, pipes);
            self.settle(token, done);
            return;
        }
        match result {
            0.. => {
                connection.sent += result as u32;
                let first = connection.first.as_ref().expect("it was being sent");
                let len = first.bytes(memory).len() as u32;
                if connection.sent == len {
                    connection.advance(memory);
                    done.push(Completion::Sent {
                        connection: token,
                        len,
                    });
                } else {
                    stall(connection, memory, token, done);
                }
            }
            // There is no room; or it was told to end before it had sent anything.
            _ if [libc::EAGAIN, libc::EINTR, libc::ECANCELED].contains(&-result) => {
                stall(connection, memory, token, done);
            }
            _ => {
                self.fail(token, io::Error::from_raw_os_error(-result), done);
                return;
            }
        }
        if connection.queued <= QUEUE_LOW {
            connection.full = false;
        }
        if !connection.has_unsent() {
            connection.stalled = false;
            let goes_on = connection.receiving == Receiving::Repeatedly;
            if connection.shut_down {
                self.chores.push(token);
            }
            if goes_on {
                return;
            }
        }
        self.attend(token);
    }

    /// A result of a request to receive in small buffers.
    pub(super) fn received(
        &mut self,
        token: Token,
        result: &cqueue::Entry,
        done: &mut Vec<Completion>,
    ) {
        let len = result.result();
        let buffer = cqueue::buffer_select(result.flags())
            .map(|index| self.memory.taken(index, len.max(0) as u32));
        let Some(Parts {
            connection, memory, ..
        }) = self.connection(token)
        else {
            if let Some(buffer) = buffer {
                self.memory.recycle(buffer);
            }
            return;
        };
        let more = cqueue::more(result.flags());
        if !more {
            connection.receiving = Receiving::No;
        }
        let over = connection.over();
        match buffer {
            Some(buffer) if len > 0 && !over => {
                done.push(Completion::Received {
                    connection: token,
                    buffer,
                });
                if len as usize == SMALL_BYTES {
                    connection.bulk = PATIENCE;
                } else if more {
                    return;
                }
            }
            Some(buffer) => memory.recycle(buffer),
            None => {}
        }
        if over {
            self.settle(token, done);
            return;
        }
        match -len {
            0 => {
                connection.ended = true;
                done.push(Completion::Ended { connection: token });
            }
            libc::ENOBUFS => self.starve(token),
            // It was told to end; or it could not go on for now.
            libc::ECANCELED | libc::EAGAIN | libc::EINTR => {}
            error if error > 0 => {
                self.fail(token, io::Error::from_raw_os_error(error), done);
                return;
            }
            _ => {}
        }
        self.attend(token);
    }

    /// There are bytes for a large buffer, or an end.
    pub(super) fn readable(&mut self, token: Token, done: &mut Vec<Completion>) {
        let Some(Parts {
            takes, connection, ..
        }) = self.connection(token)
        else {
            return;
        };
        connection.receiving = Receiving::No;
        if connection.over() {
            self.settle(token, done);
            return;
        }
        if !(takes && connection.hungry()) {
            return self.attend(token);
        }
        if connection.relay.is_due() && self.relay(token, done) {
            return self.attend(token);
        }
        let Some(Parts {
            fd,
            connection,
            memory,
            ..
        }) = self.connection(token)
        else {
            return;
        };
        let Some((_, bytes)) = memory.large.peek() else {
            self.starve(token);
            return;
        };
        match recv(fd.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => {
                connection.ended = true;
                done.push(Completion::Ended { connection: token });
            }
            Ok(len) => {
                connection.relay.handle_received(len);
                connection.bulk = if len >= SMALL_BYTES {
                    PATIENCE
                } else {
                    connection.bulk.saturating_sub(1)
                };
                self.received_bytes += len;
                done.push(Completion::Received {
                    connection: token,
                    buffer: self.memory.large.lease(len),
                });
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => {
                self.fail(token, errno.into(), done);
                return;
            }
        }
        self.attend(token);
    }

    /// Takes bytes and gives them back, unseen. Whether that is all for now; if not, they are to be
    /// received.
    fn relay(&mut self, token: Token, done: &mut Vec<Completion>) -> bool {
        let Some(Parts {
            fd,
            connection,
            pipes,
            ..
        }) = self.connection(token)
        else {
            return true;
        };
        let received = match connection.relay.take(fd, pipes) {
            Taken::Bytes(received) => received,
            Taken::Nothing => return true,
            Taken::End => {
                connection.ended = true;
                done.push(Completion::Ended { connection: token });
                return true;
            }
            Taken::Copy => return false,
            Taken::Failed(errno) => {
                self.fail(token, errno.into(), done);
                return true;
            }
        };
        let given = connection.relay.give(fd, pipes);
        done.push(Completion::Relayed {
            connection: token,
            received,
            sent: given.unwrap_or(0),
        });
        if connection.relay.holds() && given.is_ok() {
            connection.stalled = true;
            done.push(Completion::Stalled { connection: token });
        }
        self.received_bytes += received as usize;
        if let Err(errno) = given {
            self.fail(token, errno.into(), done);
        }
        true
    }

    /// There is room for what is relayed.
    pub(super) fn has_room(&mut self, token: Token, done: &mut Vec<Completion>) {
        let Some(Parts {
            fd,
            connection,
            pipes,
            ..
        }) = self.connection(token)
        else {
            return;
        };
        connection.sending = Sending::No;
        if connection.over() {
            return self.settle(token, done);
        }
        match connection.relay.give(fd, pipes) {
            Ok(0) => {}
            Ok(sent) => done.push(Completion::Relayed {
                connection: token,
                received: 0,
                sent,
            }),
            Err(errno) => return self.fail(token, errno.into(), done),
        }
        if !connection.has_unsent() {
            connection.stalled = false;
            if connection.shut_down {
                self.chores.push(token);
            }
        }
        self.attend(token);
    }

    /// Whether what arrives may go back unseen from now on.
    pub(super) fn allow_relaying(&mut self, token: Token, allowed: bool) {
        if let Some(Parts { connection, .. }) = self.connection(token) {
            connection.relay.allow(allowed);
        }
    }

    fn starve(&mut self, token: Token) {
        if let Some(Parts { connection, .. }) = self.connection(token) {
            connection.starved = true;
            self.starved.push(token);
        }
    }

    pub(super) fn shut_down(&mut self, token: Token) {
        if let Some(Parts { connection, .. }) = self.connection(token) {
            connection.shut_down = true;
            self.chores.push(token);
        }
    }

    pub(super) fn fail(&mut self, token: Token, error: io::Error, done: &mut Vec<Completion>) {
        let Some(Parts {
            connection,
            memory,
            pipes,
            ..
        }) = self.connection(token)
        else {
            return;
        };
        connection.failed = true;
        connection.drop_unsent(memory, pipes);
        done.push(Completion::Failed {
            connection: token,
            error,
        });
        self.attend(token);
    }

    /// From now on the kernel gets no new request of the connection, and ends those that it has.
    pub(super) fn detach(&mut self, token: Token) {
        if let Some(Parts { connection, .. }) = self.connection(token)
            && connection.detaching == Detaching::No
        {
            connection.detaching = Detaching::Asked;
            self.attend(token);
        }
    }

    /// Takes a connection that is detached out of the table, with all that its peer is owed.
    pub(super) fn take_out(&mut self, token: Token) -> Option<Detached<OwnedFd>> {
        let Parts {
            connection,
            memory,
            pipes,
            ..
        } = self.connection(token)?;
        if connection.detaching != Detaching::Said || connection.over() {
            return None;
        }
        let unsent = connection.take_unsent(memory, pipes);
        let socket = self.endpoints.remove(token)?.fd;
        Some(Detached { socket, unsent })
    }

    pub(super) fn close_connection(&mut self, token: Token, how: Closing) {
        let Some(Parts {
            connection,
            memory,
            pipes,
            ..
        }) = self.connection(token)
        else {
            return;
        };
        connection.closing = Some(how);
        connection.drop_unsent(memory, pipes);
        self.attend(token);
        self.chores.push(token);
    }

    /// Lets go of a connection that is to be closed, once the kernel has no request of it; does what
    /// else could not be done when it was asked for, because it takes a system call.
    pub(super) fn settle(&mut self, token: Token, done: &mut Vec<Completion>) {
        let Some(Parts {
            fd,
            connection,
            memory,
            pipes,
            ..
        }) = self.connection(token)
        else {
            return;
        };
        if connection.wants_shut_down() {
            // Fails only when the peer is gone already, which the next receive will say.
            let _ = shutdown(fd.as_raw_fd(), Shutdown::Write);
        }
        if connection.detaching == Detaching::Asked && connection.at_rest() && !connection.over() {
            connection.detaching = Detaching::Said;
            done.push(Completion::Detached { connection: token });
        }
        if let Some(how) = connection.closing
            && connection.at_rest()
        {
            if how == Closing::Reset {
                socket::reset_on_close(fd.as_fd());
            }
            connection.drop_unsent(memory, pipes);
            self.endpoints.remove(token);
            done.push(Completion::Closed { token });
        }
    }
}

/// The peer has to read before the rest can go.
fn stall(
    connection: &mut Connection,
    memory: &mut Memory,
    token: Token,
    done: &mut Vec<Completion>,
) {
    if !std::mem::replace(&mut connection.stalled, true) {
        done.push(Completion::Stalled { connection: token });
    }
    if memory.scarce() {
        connection.spill(memory);
    }
}
