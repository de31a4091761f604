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
//! 2. Each `Send` and `Close` has exactly one completion, except that the sends of a connection that
//!    fails have one `Failed` together, and those of one that is closed or taken first have none.
//!    Each datagram of a `SendTo` is counted in exactly one `DatagramSent`, which may count several.
//!    `Accept`, `Receive`, `ReceiveAlways`, `Relay` and `ReceiveFrom` repeat until they are ended; `Pause` and
//!    `ShutDown` have no completion. For `Detach` see 18. Nothing is reported of a connection before
//!    its `Accepted`.
//! 3. A `Send` completes when all of its bytes are with the kernel. If that is not possible at once,
//!    `Stalled` is reported, once for all sends behind it, and the driver continues by itself.
//! 4. What is sent on one connection keeps its order, however many sends are queued.
//! 5. A buffer is chosen only when bytes have arrived. An idle connection holds none.
//! 6. When buffers run out, receiving waits; nothing fails, nothing spins, and it resumes when
//!    buffers are returned. Neither peers that do not read nor datagrams whose answers the network
//!    does not take can hold all of them: streams and datagrams always find some. While buffers are
//!    scarce, such datagrams are dropped, and reported with ENOBUFS.
//! 7. After `Pause` at most the bytes that had been taken already still arrive. A connection is
//!    received from whatever is unsent on it, up to 64 KiB: more is never held for a peer that does
//!    not read. After `ReceiveAlways` it is received from however much is unsent, so that two ends which both send
//!    before they read do not wait for each other.
//! 8. After `Close` nothing more is reported of the token except its `Closed`; then its buffers are
//!    returned, its descriptor is closed, and that token never returns (its slot does, a generation
//!    later).
//! 9. `Closing::WhenDrained` loses no client: those queued are accepted first, with a permit whether
//!    there is one or not, or received first and still answered. Some of those that arrive later may
//!    be served, too, and however many they are, the drain ends; a second `Close`, of another kind,
//!    ends it at once. An accept that fails during it pauses the listener as in 10, and the next
//!    `Accept` continues.
//! 10. No permit, or an accept that fails (EMFILE), is a result and not a spin: the listener pauses
//!     until the next `Accept`. A peer that gave up in the queue (ECONNABORTED) is not reported. Of
//!     the workers that share a listening socket, a client wakes one.
//! 11. The work of one `wait` is bounded, so that no peer delays others, timers or the mailbox.
//! 12. The peer's end is reported after all of its bytes, as `Ended`, once. TCP urgent data is in its
//!     place among them, if the socket has it in line (`SO_OOBINLINE`).
//! 13. A datagram arrives whole, or with the size that it had. Several of one sender to one address
//!     may arrive in one buffer, in order; they leave one by one as they came, never merged on the
//!     way. The order between one sender and one address is kept. An answer leaves from the address
//!     that was hit. No send error ends the socket, or costs another peer an answer; what one peer's
//!     path does not take changes nothing for others. What was submitted before a `Close` is sent
//!     before it, if the kernel takes it at once.
//! 14. After `Relay` each byte is either delivered or relayed, and all return in their order, whatever
//!     the mixture, urgent data included. `Relayed` accounts for each relayed byte once as received,
//!     and once as sent when it is with the kernel.
//! 15. What is relayed and not yet sent is held, 64 KiB at most, as a `Send` is: its stall is
//!     reported once, the driver continues by itself, and does not receive until it is sent. `Send`,
//!     `ShutDown` and `Ended` come behind it, `Close` and a failure discard it.
//! 16. `Receive` and `Pause` end relaying: of what had not been taken by then nothing is relayed, and
//!     what is held still goes out.
//! 17. A driver that is dropped leaves nothing behind: when the drop returns, its descriptors are
//!     closed for the kernel too, and the next process can bind their addresses.
//! 18. `Detach` takes nothing more from the kernel and sends nothing more. What had been taken is
//!     delivered first: `Detached` is reported in a later `wait`, so that the answers are unsent like
//!     the rest, and it is the last that is reported. [`Driver::take`] gives the descriptor and every
//!     unsent byte, in order, none twice; buffers and pipe are returned and the token no longer
//!     exists. A connection that has failed, or fails first, reports no more than its `Failed`; one
//!     that is closed first no more than its `Closed`.
//! 19. [`Driver::add_connection`] continues where another driver stopped, also one of another kind.
//!     What it is given to send is sent before all else, and counts as one `Send` that is `Stalled`
//!     already.
//! 20. [`Driver::lease`] gives a buffer for bytes of the user's own, for a `Send`, or with
//!     [`Driver::set_envelope`] for datagrams, which are cut, sent and counted as an answer is, on
//!     any datagram socket, connected or not. Enough buffers are left to receive into: when they are
//!     scarce there is none.
//!
//! # How io_uring fits
//!
//! `Receive` is a request that repeats, and `Pause` its cancellation. A [`Buffer`]'s index is the id
//! in the kernel's buffer ring: [`Driver::bytes`] finds its memory, [`Driver::recycle`] returns it. A
//! token's two halves and the kind of request share `user_data`. Accepting stays a call of its own,
//! made when the ring reports that clients are queued: a permit has to be taken first, and the call
//! brings the peer's address, which a request that repeats cannot.
//!
//! # How splice fits
//!
//! Where the answer is the bytes themselves, the user asks for `Relay` instead of `Receive`. The
//! user decides (only it knows the answer), the driver chooses: what is small it delivers, and is
//! answered as always; while a connection is in bulk it moves the bytes itself, from the socket
//! through a pipe to the socket (`relay`), and reports their number. To relay is an allowance: a
//! driver that delivers everything keeps every promise. Pipes are few and are leased while bytes are
//! in them (`pipes`); without one, bytes are delivered.
//!
//! So that nothing is overtaken, both sides keep a rule. The driver relays only when nothing of that
//! connection is unsent and all that it delivered was reported in an earlier `wait`; the user answers
//! what a relaying connection delivers before its next `wait`.

mod accept;
mod alarm;
pub(crate) mod buffers;
mod burst;
#[cfg(test)]
pub(crate) mod conformance;
mod connection;
mod datagrams;
pub(crate) mod endpoints;
pub(crate) mod epoll;
mod lifecycle;
pub(crate) mod permits;
mod pipes;
pub(crate) mod region;
mod relay;
#[cfg(test)]
pub(crate) mod sim;
pub(crate) mod sockets;
mod table;
mod unsent;
pub(crate) mod uring;
mod waker;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

pub use permits::Permits;
pub use waker::Waker;

pub(crate) use crate::sys::message::UnixName;
pub use crate::sys::message::{Envelope, Source};
pub(crate) use crate::sys::socket::Details;

/// A listener, connection or datagram socket of one driver.
///
/// A completion that outlives its connection carries an old generation: it is recognized, and not
/// taken for one of the connection that has the slot now. Generations wrap at 24 bits, so that a
/// token and a kind of request fit into 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// The index in the driver's table; small, so that a user may keep a table beside it.
    pub slot: u32,
    /// How often that slot has been used before.
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

/// A leased piece of the driver's memory. Not `Clone`: its holder, which may be the kernel, owns the
/// bytes. It is returned through [`Op::Send`], [`Op::SendTo`] or [`Driver::recycle`].
#[derive(Debug)]
#[must_use = "a buffer that is dropped is never returned to the pool"]
pub struct Buffer {
    /// Which one it is.
    pub(crate) index: u16,
    /// How many bytes of it are used.
    pub(crate) len: u32,
}

impl Buffer {
    /// How many bytes it holds.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }
}

/// What a worker asks of its driver.
#[derive(Debug)]
pub enum Op {
    /// Accept connections from a listener until it is closed or reports [`Completion::AcceptPaused`].
    Accept { listener: Token },
    /// Receive bytes until the peer's end, an error, or `Pause`.
    Receive { connection: Token },
    /// The same, and from now on however much is unsent: for a user that sends bytes of its own,
    /// and no answers.
    ReceiveAlways { connection: Token },
    /// Receive, and what arrives may also be sent back at once, unseen. `Receive` ends that
    /// allowance, `Pause` both.
    Relay { connection: Token },
    /// Stop receiving.
    Pause { connection: Token },
    /// Send a buffer, all of it, after what was sent before. The driver returns the buffer.
    Send { connection: Token, buffer: Buffer },
    /// Send FIN after what has been sent, and receive as before.
    ShutDown { connection: Token },
    /// Receive datagrams on a socket until it is closed.
    ReceiveFrom { socket: Token },
    /// Send all datagrams of a buffer back to where they came from, as many and of the same sizes,
    /// from the address that they were sent to; those of a [`Driver::lease`] to where its envelope
    /// says. The driver returns the buffer.
    SendTo { socket: Token, buffer: Buffer },
    /// Release a connection without closing it: nothing more is taken from the kernel, what has been
    /// taken is delivered first, and what is unsent stays unsent. A pending `ShutDown` is forgotten.
    Detach { connection: Token },
    /// Close a listener, connection or datagram socket.
    Close { token: Token, how: Closing },
}

/// How to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// At once; what the kernel already has to send, it sends (FIN).
    Now,
    /// At once, and the peer sees that it was cut off (RST).
    Reset,
    /// A listener or datagram socket: serve its queue, then close.
    WhenDrained,
}

/// What has happened.
#[derive(Debug)]
pub enum Completion {
    /// A client of this listener was accepted; it is not yet received from. A Unix socket's client
    /// has no address. `has_permit`: a permit was taken for it, and the listener's permits may have
    /// been replaced since.
    Accepted {
        listener: Token,
        connection: Token,
        peer: Option<SocketAddr>,
        has_permit: bool,
    },
    /// The listener accepts no more until the next `Accept`. The error is one of the process or the
    /// system (EMFILE …); none when no permit is left, whose return wakes the worker.
    AcceptPaused {
        listener: Token,
        error: Option<io::Error>,
    },
    /// Bytes arrived.
    Received { connection: Token, buffer: Buffer },
    /// Bytes were sent back unseen: how many have arrived, and how many, of these and of those held
    /// before, are with the kernel.
    Relayed {
        connection: Token,
        received: u32,
        sent: u32,
    },
    /// The peer has half-closed.
    Ended { connection: Token },
    /// A `Send` of `len` bytes is done.
    Sent { connection: Token, len: u32 },
    /// A `Send`, or what is relayed, has to wait for the peer to read.
    Stalled { connection: Token },
    /// The connection is broken: reset, timed out, refused. It is to be closed.
    Failed { connection: Token, error: io::Error },
    /// Datagrams arrived, all of one sender and to one address; [`Driver::envelope`] says which, and
    /// how many there are. Of one that is too long for a buffer, as many bytes as fit.
    Datagrams { socket: Token, buffer: Buffer },
    /// `count` datagrams of one `SendTo` or several are done: their bytes altogether, or why the
    /// kernel did not take them.
    DatagramSent {
        socket: Token,
        count: u32,
        result: io::Result<u32>,
    },
    /// A `Detach` is done: [`Driver::take`] the connection before the next `wait`, or close it.
    Detached { connection: Token },
    /// A `Close` is done, and the token no longer exists.
    Closed { token: Token },
    /// The [`Waker`] was used.
    Woken,
}

/// A connection that has left its driver.
#[derive(Debug)]
pub struct Detached<S> {
    /// Its descriptor.
    pub socket: S,
    /// Everything unsent, in order.
    pub unsent: Vec<u8>,
}

/// One thread's way to the kernel.
pub trait Driver {
    /// What a listener, a connection or a datagram socket is made of.
    type Socket;

    /// Adds a listening socket, nonblocking. With `permits` one is taken for each connection.
    fn add_listener(&mut self, socket: Self::Socket, permits: Option<Arc<Permits>>) -> Token;

    /// From now on the listener takes its permits here, or needs none.
    fn set_permits(&mut self, listener: Token, permits: Option<Arc<Permits>>);

    /// Adds a bound datagram socket, nonblocking.
    fn add_datagram_socket(&mut self, socket: Self::Socket) -> Token;

    /// Adds a connected stream socket, nonblocking, on which these bytes are unsent: they are sent
    /// before all else and complete with one `Sent`, if there are any. It is not yet received from.
    fn add_connection(&mut self, socket: Self::Socket, unsent: Vec<u8>) -> Token;

    /// Takes a connection out of the driver once [`Completion::Detached`] was reported, with what was
    /// submitted to be sent until now. The token no longer exists. None if it was not reported, or
    /// the connection is closed.
    fn take(&mut self, connection: Token) -> Option<Detached<Self::Socket>>;

    /// Queues an operation. Never a system call, never fails. An operation on a token that no longer
    /// exists is ignored, and its buffer returned to the pool.
    fn submit(&mut self, op: Op);

    /// Carries out what is queued and waits until something has happened or `until` is reached;
    /// appends what happened to `done`. May return early with nothing, but not again and again.
    ///
    /// # Errors
    /// Only when the driver itself cannot continue.
    fn wait(&mut self, until: Option<Instant>, done: &mut Vec<Completion>) -> io::Result<()>;

    /// The time when the last wait ended. A wait that only reports what was sent at once takes
    /// none.
    fn now(&self) -> Instant;

    /// The bytes in a buffer.
    fn bytes(&mut self, buffer: &Buffer) -> &mut [u8];

    /// The sender of received datagrams, the address that they were sent to, and how long each is.
    fn envelope(&self, buffer: &Buffer) -> &Envelope;

    /// Leases a buffer of `len` bytes, [`buffers::BUFFER_BYTES`] at most, for bytes of the user's own:
    /// fill all of it (it holds what it last held), then `Send` it, or `SendTo` once it has an
    /// envelope. None when buffers are scarce: try again when some have been returned.
    fn lease(&mut self, len: usize) -> Option<Buffer>;

    /// Makes a leased buffer datagrams to the envelope's source, from its local address if it has
    /// one, of its size each except the last, which may be shorter. No bytes are one empty datagram.
    fn set_envelope(&mut self, buffer: &Buffer, envelope: &Envelope);

    /// Returns a buffer that is not sent to the pool.
    fn recycle(&mut self, buffer: Buffer);

    /// A number that changes whenever the peer has taken bytes of what was sent to it.
    fn peer_progress(&self, connection: Token) -> u64;

    /// What the kernel knows about a connection; for people, not for the path of a message.
    fn details(&self, connection: Token) -> Details;

    /// A handle that makes `wait` return [`Completion::Woken`], from any thread.
    fn waker(&self) -> Waker;
}

/// The address of the other side without its port, where it has one.
#[must_use]
pub(crate) fn ip_of(source: &Source) -> Option<IpAddr> {
    match source {
        Source::Inet(address) => Some(address.ip()),
        Source::Unix(_) => None,
    }
}
