//! THE SEAM: submit operations, wait for completions.
//!
//! Everything above this module speaks of [`Op`]s and [`Completion`]s and never of a system call;
//! everything below it knows sockets and never what an echo is. It is shaped after completion
//! (io_uring), because readiness (epoll) can imitate completion and not the other way round.
//!
//! # What a driver promises
//!
//! Each is a test in `conformance`, run on every driver.
//!
//! 1. [`Driver::submit`] queues: it makes no system call and never fails.
//! 2. Each `Send`, `SendStatic` and `Close` has exactly one completion, but for sends of a connection
//!    that fails, which have one `Failed` together, and of one that is closed or taken first, which
//!    have none. Each datagram of a `SendTo` is counted in exactly one `DatagramSent`, which may
//!    count many. `Accept`, `Receive`, `Relay` and `ReceiveFrom` repeat until they are ended; `Pause`
//!    and `ShutDown` have none. For `Detach` see 18.
//!    Nothing is heard of a connection before its `Accepted`.
//! 3. A `Send` completes when all of its bytes are with the kernel. If that can't be at once, it
//!    says `Stalled`, once for all that wait behind it, and goes on by itself.
//! 4. What is sent on one connection keeps its order, however many sends are queued.
//! 5. A buffer is chosen only when bytes are there. An idle connection holds none.
//! 6. When buffers run out, receiving waits; nothing fails, nothing spins. Peers that do not read
//!    can't hold so many buffers that others starve.
//! 7. After `Pause` at most the bytes that had been taken already still arrive. A driver that can
//!    tell does not read a connection while a `Send` on it is stalled.
//! 8. After `Close` nothing more is heard of the token but its `Closed`; then its buffers are home,
//!    its descriptor is gone, and that token never comes back (its slot does, a generation later).
//! 9. `Closing::WhenDrained` loses nobody: who is queued is accepted first, with a permit whether
//!    there is one or not, or received first and still answered. An accept that fails meanwhile
//!    makes the listener rest as in 10, and the next `Accept` goes on with it.
//! 10. No permit, or an accept that fails (EMFILE), is a result and not a spin: the listener rests
//!     until the next `Accept`. A peer that gave up in the queue (ECONNABORTED) is nothing at all.
//! 11. The work of one `wait` is bounded, so that no peer keeps others, timers or the mailbox
//!     waiting.
//! 12. The peer's end arrives after all of its bytes, as `Ended`, once.
//! 13. A datagram arrives whole or says how long it was. Several of one sender to one address may
//!     come in one buffer, in order; they leave one by one as they came, never merged on the way.
//!     The order between one sender and one address is kept. An answer leaves from the address that
//!     was hit. No send error ends the socket, or costs anybody else an answer. What was submitted
//!     before a `Close` is sent before it, if the kernel takes it at once.
//! 14. After `Relay` each byte is either shown or relayed, and all come back in their order, mixed as
//!     they may be. `Relayed` accounts for each relayed byte once as received, and once as sent when
//!     it is with the kernel.
//! 15. What is received and not yet sent is held, 64 KiB at most, as a `Send` is: its stall is said
//!     once, it goes on by itself, and meanwhile the connection is not read. `Send`, `ShutDown` and
//!     `Ended` come behind it, `Close` and a failure discard it.
//! 16. `Receive` and `Pause` end relaying: of what had not been taken by then nothing is relayed, and
//!     what is held still goes out.
//! 17. A driver that is dropped leaves nothing behind: when the drop returns, its descriptors are gone
//!     for the kernel too, and the next process can have their addresses.
//! 18. `Detach` takes nothing more from the kernel and sends nothing more. What had been taken is
//!     shown first: `Detached` is said in a later `wait`, so that what it is answered with is owed
//!     like the rest, and it is the last that is heard. [`Driver::take`] gives the descriptor and
//!     every byte owed, in order, none twice; buffers and pipe are home and the token is no more.
//!     One that has failed, or fails first, says no more than its `Failed`; one that is closed first
//!     no more than its `Closed`.
//! 19. [`Driver::add_connection`] goes on where another driver let go, also one of another kind. What
//!     it is given to send goes before all else, and counts as one `Send` that has said `Stalled`
//!     already.
//! 20. `SendStatic` takes no buffer and is never copied, but for `Detach`; all else is as with a
//!     `Send`, except that it is no answer: while it waits, the connection is read as ever, so that
//!     two who talk at once do not wait for each other.
//! 21. [`Driver::lease`] gives a buffer for datagrams of our own, to be cut, sent and counted as an
//!     answer is, from any datagram socket, connected or not. It leaves enough to those who receive:
//!     when buffers are scarce there is none.
//!
//! # How io_uring fits
//!
//! `Receive` is a request that repeats, and `Pause` its cancellation. A [`Buffer`]'s index is the id
//! in the kernel's buffer ring: [`Driver::bytes`] finds its memory, [`Driver::recycle`] puts it
//! back. A token's two halves and the kind of request share `user_data`. Accepting stays a call of
//! its own, made when the ring says that somebody waits: a permit has to be had first, and the call
//! brings the peer's address, which a request that repeats can not.
//!
//! # How splice fits
//!
//! Where the answer is the bytes themselves, the user asks for `Relay` instead of `Receive`. The
//! user decides (only it knows the answer), the driver chooses: what is small it shows, and is
//! answered as always; while a connection is in bulk it moves the bytes itself, from the socket
//! through a pipe to the socket (`relay`), and reports their number. To relay is an allowance: a
//! driver that shows everything keeps every promise. Pipes are few and are leased while bytes are in
//! them (`pipes`); without one, bytes are shown.
//!
//! So that nothing is overtaken, both sides keep a rule. The driver relays only when nothing of that
//! connection waits to be sent and all that it showed was said in an earlier `wait`; the user answers
//! what a relaying connection shows before its next `wait`.

mod accept;
pub mod buffers;
#[cfg(test)]
pub(crate) mod conformance;
mod datagrams;
pub mod epoll;
pub mod permits;
pub(crate) mod pipes;
pub(crate) mod relay;
#[cfg(test)]
pub(crate) mod sim;
mod table;
pub mod uring;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use nix::sys::eventfd::{EfdFlags, EventFd};

pub use permits::Permits;

pub use crate::sys::message::{Envelope, Source, UnixName};
pub use crate::sys::socket::Details;

/// A listener, connection or datagram socket of one driver.
///
/// A completion that outlives its connection carries an old generation: it is recognized, not
/// delivered to whoever has the slot now. Generations wrap at 24 bits, so that a token and a kind
/// of request fit into 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// The place in the driver's table; small, so that others may keep tables beside it.
    pub slot: u32,
    /// How often that place has been given out before.
    pub generation: u32,
}

impl Token {
    /// The generation after this one.
    #[must_use]
    pub(crate) fn next(self) -> Self {
        Self {
            slot: self.slot,
            generation: (self.generation + 1) & 0x00ff_ffff,
        }
    }
}

/// A leased piece of the driver's memory. Not `Clone`: who holds it owns the bytes, be it the
/// kernel. It goes home through [`Op::Send`], [`Op::SendTo`] or [`Driver::recycle`].
#[derive(Debug)]
#[must_use = "a buffer that is dropped never comes home"]
pub struct Buffer {
    pub(crate) index: u16,
    pub(crate) len: u32,
}

impl Buffer {
    /// How many bytes it holds.
    #[must_use]
    #[expect(
        clippy::len_without_is_empty,
        reason = "an empty datagram is data like any other"
    )]
    pub fn len(&self) -> u32 {
        self.len
    }
}

/// What a worker asks of its driver.
#[derive(Debug)]
pub enum Op {
    /// Accept connections until told otherwise.
    Accept {
        /// On this listener.
        listener: Token,
    },
    /// Receive bytes until the peer's end, an error, or `Pause`.
    Receive {
        /// On this connection.
        connection: Token,
    },
    /// Receive, and what arrives may also be sent back at once, unseen. `Receive` ends that
    /// allowance, `Pause` both.
    Relay {
        /// On this connection.
        connection: Token,
    },
    /// Stop receiving.
    Pause {
        /// On this connection.
        connection: Token,
    },
    /// Send a buffer, all of it, after what was sent before.
    Send {
        /// On this connection.
        connection: Token,
        /// Comes home by itself.
        buffer: Buffer,
    },
    /// Send bytes that live as long as the program, all of them, and read on meanwhile: they are no
    /// answer. For who never relays on this connection, and when nothing else of it waits to be sent:
    /// every `Send` and `SendStatic` before it has said `Sent`. A `Send` behind it waits its turn.
    SendStatic {
        /// On this connection.
        connection: Token,
        /// At least one, and below 2 GiB.
        bytes: &'static [u8],
    },
    /// Say FIN after what has been sent; go on receiving.
    ShutDown {
        /// This connection's write side.
        connection: Token,
    },
    /// Receive datagrams until told otherwise.
    ReceiveFrom {
        /// On this datagram socket.
        socket: Token,
    },
    /// Send all datagrams of a buffer back to where they came from, as many and of the same sizes,
    /// from the address that they were sent to; those of a [`Driver::lease`] to where it said.
    SendTo {
        /// On this datagram socket.
        socket: Token,
        /// Comes home by itself.
        buffer: Buffer,
    },
    /// Let go without closing: nothing more is taken from the kernel; what has been taken is shown
    /// first; what is owed stays owed. A `ShutDown` that waits for it is forgotten.
    Detach {
        /// Of this connection.
        connection: Token,
    },
    /// Let go.
    Close {
        /// Of this listener, connection or datagram socket.
        token: Token,
        /// In this way.
        how: Closing,
    },
}

impl Op {
    /// Whether it is a `Send` or `SendStatic` on this connection.
    pub(crate) fn is_send_on(&self, token: Token) -> bool {
        matches!(
            self,
            Self::Send { connection, .. } | Self::SendStatic { connection, .. }
                if *connection == token
        )
    }
}

/// How to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// At once; what the kernel already has to send, it sends (FIN).
    Now,
    /// At once, and tell the peer that it was cut off (RST).
    Reset,
    /// A listener or datagram socket: serve who is queued, then close.
    WhenDrained,
}

/// What has happened.
#[derive(Debug)]
pub enum Completion {
    /// A client was accepted; it is not yet received from.
    Accepted {
        /// The listener it came to.
        listener: Token,
        /// The new connection.
        connection: Token,
        /// Its address; a Unix socket's client has none.
        peer: Option<SocketAddr>,
        /// A permit was taken for it. The listener's permits may be others by now.
        has_permit: bool,
    },
    /// The listener accepts no more until the next `Accept`.
    AcceptPaused {
        /// The listener.
        listener: Token,
        /// An error of the process or the system (EMFILE …); none when no permit is left, whose
        /// return wakes the worker.
        error: Option<io::Error>,
    },
    /// Bytes arrived.
    Received {
        /// On this connection.
        connection: Token,
        /// Here they are.
        buffer: Buffer,
    },
    /// Bytes were sent back unseen.
    Relayed {
        /// On this connection.
        connection: Token,
        /// So many have arrived.
        received: u32,
        /// So many, of these and of those held before, are with the kernel.
        sent: u32,
    },
    /// The peer has half-closed.
    Ended {
        /// This connection.
        connection: Token,
    },
    /// A `Send` or `SendStatic` is done.
    Sent {
        /// On this connection.
        connection: Token,
        /// So many bytes.
        len: u32,
    },
    /// A `Send` or `SendStatic`, or what is relayed, has to wait for the peer to read.
    Stalled {
        /// On this connection.
        connection: Token,
    },
    /// The connection is broken: reset, timed out, refused. It waits to be closed.
    Failed {
        /// This connection.
        connection: Token,
        /// For this reason; a peer's fault is no error of ours.
        error: io::Error,
    },
    /// Datagrams arrived, all of one sender and to one address; [`Driver::envelope`] says which, and
    /// how many there are.
    Datagrams {
        /// On this socket.
        socket: Token,
        /// Their bytes, or of one that is too long as many as could be stored.
        buffer: Buffer,
    },
    /// Datagrams of one `SendTo` or several are done.
    DatagramSent {
        /// On this socket.
        socket: Token,
        /// So many of them.
        count: u32,
        /// Their bytes in all, or why the kernel would not take them.
        result: io::Result<u32>,
    },
    /// A `Detach` is done: [`Driver::take`] it before the next `wait`, or close it.
    Detached {
        /// This connection, of which nothing more is heard.
        connection: Token,
    },
    /// A `Close` is done.
    Closed {
        /// Of this token, which is no more.
        token: Token,
    },
    /// Somebody used the [`Waker`].
    Woken,
}

/// A connection that has left its driver.
#[derive(Debug)]
pub struct Detached<S> {
    /// Its descriptor.
    pub socket: S,
    /// All that the peer is owed, in order.
    pub unsent: Vec<u8>,
}

/// One thread's way to the kernel.
pub trait Driver {
    /// What a listener, a connection or a datagram socket is made of.
    type Socket;

    /// Takes a listening socket, nonblocking. With `permits` it takes one for each connection.
    fn add_listener(&mut self, socket: Self::Socket, permits: Option<Arc<Permits>>) -> Token;

    /// From now on the listener takes its permits here, or needs none.
    fn set_permits(&mut self, listener: Token, permits: Option<Arc<Permits>>);

    /// Takes a bound datagram socket, nonblocking.
    fn add_datagram_socket(&mut self, socket: Self::Socket) -> Token;

    /// Takes a connected stream socket, nonblocking, that is owed these bytes: they are sent before
    /// all else and complete with one `Sent`, if there are any. It is not yet received from.
    fn add_connection(&mut self, socket: Self::Socket, unsent: Vec<u8>) -> Token;

    /// Takes a connection out of the driver once it has said [`Completion::Detached`], with what was
    /// submitted to be sent until now. The token is no more. None of a connection that has not said
    /// so, or is closed.
    fn take(&mut self, connection: Token) -> Option<Detached<Self::Socket>>;

    /// Queues an operation. Never a system call, never fails. An operation on a token that is no
    /// more is nothing (its buffer comes home).
    fn submit(&mut self, op: Op);

    /// Carries out what is queued and waits until something has happened or `until` has come;
    /// appends what happened to `done`. May return early with nothing, but not again and again.
    ///
    /// # Errors
    /// Only when the driver itself can't go on.
    fn wait(&mut self, until: Option<Instant>, done: &mut Vec<Completion>) -> io::Result<()>;

    /// The time. Read it once a turn.
    fn now(&self) -> Instant;

    /// The bytes in a buffer.
    fn bytes(&mut self, buffer: &Buffer) -> &mut [u8];

    /// From whom received datagrams are, to which address they were sent, and how long each is.
    fn envelope(&self, buffer: &Buffer) -> &Envelope;

    /// Leases a buffer of so many bytes, [`buffers::BUFFER_BYTES`] at most, for datagrams of our own:
    /// fill all of it (it holds what it last held), then `SendTo` sends it to the envelope's source,
    /// from its local address if it has one, in datagrams of its size, the last may be shorter. No
    /// bytes are one empty datagram. None when buffers are scarce: try again when some have come home.
    fn lease(&mut self, envelope: &Envelope, len: usize) -> Option<Buffer>;

    /// Takes a buffer back that is not sent.
    fn recycle(&mut self, buffer: Buffer);

    /// A number that changes whenever the peer has taken bytes of what it is owed.
    fn progress(&self, connection: Token) -> u64;

    /// What the kernel knows about a connection; for people, not for the path of a message.
    fn details(&self, connection: Token) -> Details;

    /// A handle that makes `wait` return [`Completion::Woken`], from any thread.
    fn waker(&self) -> Waker;
}

/// Wakes a driver, or the control plane, out of its wait: an `eventfd(2)`.
#[derive(Clone, Debug)]
pub struct Waker(Arc<EventFd>);

impl Waker {
    /// # Errors
    /// When no descriptor is left.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(Arc::new(EventFd::from_value_and_flags(0, flags)?)))
    }

    /// Wakes, now or when it next waits. Any number of calls before that are one.
    pub fn wake(&self) {
        // It can fail only when 2^64 - 2 wakings are pending: then it is awake.
        let _ = self.0.write(1);
    }

    /// Forgets the wakings so far; says whether there was any.
    pub fn drain(&self) -> bool {
        self.0.read().is_ok()
    }

    /// For waiting: readable while a waking is pending.
    #[must_use]
    pub fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&*self.0)
    }
}

/// The address of the other side without its port, where it has one.
#[must_use]
pub fn ip_of(source: &Source) -> Option<IpAddr> {
    match source {
        Source::Inet(address) => Some(address.ip()),
        Source::Unix(_) => None,
    }
}
