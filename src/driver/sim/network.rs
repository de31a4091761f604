//! The simulated network: connections between the driver and the peers, the clock, the faults.
//!
//! [`Network`] is the test's handle. The driver's side is `World`, which behaves as a kernel does:
//! a close with unreceived bytes sends an RST, a reset may overtake bytes that were sent before it,
//! and a full window takes no more bytes. It knows nothing of tokens, buffers and completions.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::faults::{Faults, Random};
use crate::driver::{Closing, Envelope, Source};

/// How far the clock is advanced when only a fault has delayed something.
const TICK: Duration = Duration::from_millis(1);

/// The most datagrams that a client's receive queue holds.
const CLIENT_QUEUE_MAX: usize = 256;

/// The most datagrams that are received into one buffer.
const DATAGRAMS_PER_BUFFER_MAX: usize = 8;

/// The most unreceived bytes on a connection, in each direction.
const WINDOW_BYTES: usize = 48 * 1024;

/// The driver's side of a [`Network`]: a listening or datagram socket, or the driver's end of a
/// connection, whose number is then that of its [`Peer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Socket(pub(super) usize);

/// The far end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Peer(pub(super) usize);

/// A peer that sends and receives datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Client(usize);

/// How a connection ended, as the peer saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Fin,
    Reset,
}

/// The peers' side of the simulated network. Clones share the same network.
#[derive(Clone)]
pub(crate) struct Network(pub(super) Rc<RefCell<World>>);

/// The state of the network, and the driver's side of it.
pub(super) struct World {
    seed: u64,
    pub(super) random: Random,
    pub(super) faults: Faults,
    start: Instant,
    now: Duration,
    clock_stopped: bool,
    /// A fault has delayed something that is possible at the next tick.
    delayed: bool,
    pub(super) sockets: Vec<Bound>,
    pub(super) wires: Vec<Wire>,
    clients: Vec<ClientSocket>,
}

/// A listening or datagram socket.
pub(super) struct Bound {
    pub(super) address: SocketAddr,
    open: bool,
    /// Another process has a descriptor of it: closing one leaves the socket open.
    pub(super) held: bool,
    pub(super) queue: VecDeque<(Duration, Peer)>,
    pub(super) inbox: VecDeque<DatagramBatch>,
}

/// A datagram on its way to the driver, or several of one size, of which the last may be shorter.
pub(super) struct DatagramBatch {
    pub(super) due: Duration,
    pub(super) from: SocketAddr,
    pub(super) to: IpAddr,
    pub(super) size: usize,
    pub(super) bytes: Vec<u8>,
}

/// A datagram peer and its receive queue.
struct ClientSocket {
    address: SocketAddr,
    closed: bool,
    inbox: VecDeque<(SocketAddr, Vec<u8>)>,
}

/// A connection, both directions.
pub(super) struct Wire {
    pub(super) address: SocketAddr,
    pub(super) local: SocketAddr,
    open: bool,
    /// The peer has closed its socket: bytes sent to it are answered with an RST.
    peer_closed: bool,
    to_driver: VecDeque<(Duration, Segment)>,
    pub(super) to_peer: VecDeque<u8>,
    window: usize,
    /// How many bytes the peer has read.
    pub(super) read_bytes: u64,
    end: Option<End>,
}

enum Segment {
    Bytes(VecDeque<u8>),
    Fin,
    /// The connection is broken, with this error code.
    Failure(i32),
}

impl Network {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Rc::new(RefCell::new(World {
            seed,
            random: Random::new(seed),
            faults: Faults::default(),
            start: Instant::now(),
            now: Duration::ZERO,
            clock_stopped: false,
            delayed: false,
            sockets: vec![],
            wires: vec![],
            clients: vec![],
        })))
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.0.borrow_mut().faults = faults;
    }

    /// A random number below `bound`, from the same seed.
    pub(crate) fn below(&self, bound: usize) -> usize {
        self.0.borrow_mut().random.below(bound)
    }

    /// From now on only [`Self::advance`] advances the clock.
    pub(crate) fn stop_clock(&self) {
        self.0.borrow_mut().clock_stopped = true;
    }

    /// From now on waiting advances the clock, too, as it does initially.
    pub(crate) fn let_clock_run(&self) {
        self.0.borrow_mut().clock_stopped = false;
    }

    pub(crate) fn advance(&self, time: Duration) {
        self.0.borrow_mut().now += time;
    }

    /// Opens a listening socket at this address.
    pub(crate) fn listen(&self, address: SocketAddr) -> Socket {
        self.bind(address)
    }

    /// Opens a datagram socket at this address, which may be a wildcard.
    pub(crate) fn bind(&self, address: SocketAddr) -> Socket {
        let sockets = &mut self.0.borrow_mut().sockets;
        sockets.push(Bound {
            address,
            open: true,
            held: false,
            queue: VecDeque::new(),
            inbox: VecDeque::new(),
        });
        Socket(sockets.len() - 1)
    }

    /// Sets whether another process has a descriptor of the socket. Then the socket and its queue
    /// outlive the driver's close.
    pub(crate) fn hold(&self, socket: Socket, held: bool) {
        self.0.borrow_mut().sockets[socket.0].held = held;
    }

    /// Connects from an address. Without a listener at `to` the peer sees a reset.
    pub(crate) fn connect(&self, from: SocketAddr, to: SocketAddr) -> Peer {
        let world = &mut *self.0.borrow_mut();
        let listener = world.find_socket(to);
        let window = if world.chance(|faults| faults.small_window) {
            64 + world.random.below(2000)
        } else {
            WINDOW_BYTES
        };
        let peer = Peer(world.wires.len());
        world.wires.push(Wire {
            address: from,
            local: to,
            open: listener.is_some(),
            peer_closed: false,
            to_driver: VecDeque::new(),
            to_peer: VecDeque::new(),
            window,
            read_bytes: 0,
            end: listener.is_none().then_some(End::Reset),
        });
        // A queue is served in order, so a client is not due before those that are queued ahead of
        // it.
        if let Some(listener) = listener {
            let due = world.due(world.sockets[listener.0].queue.back().map(|(due, _)| *due));
            world.sockets[listener.0].queue.push_back((due, peer));
        }
        peer
    }

    pub(crate) fn address(&self, peer: Peer) -> SocketAddr {
        self.0.borrow().wires[peer.0].address
    }

    /// Writes as many bytes as the window takes, and returns how many that is.
    pub(crate) fn write(&self, peer: Peer, bytes: &[u8]) -> usize {
        let world = &mut *self.0.borrow_mut();
        let wire = &mut world.wires[peer.0];
        if !wire.open {
            wire.end = Some(End::Reset);
            return 0;
        }
        let len = bytes.len().min(WINDOW_BYTES - wire.unread());
        if len > 0 {
            world.schedule(peer, Segment::Bytes(bytes[..len].iter().copied().collect()));
        }
        len
    }

    /// Reads at most `max` bytes.
    pub(crate) fn read(&self, peer: Peer, max: usize) -> Vec<u8> {
        let wire = &mut self.0.borrow_mut().wires[peer.0];
        let len = wire.to_peer.len().min(max);
        wire.read_bytes += len as u64;
        wire.to_peer.drain(..len).collect()
    }

    /// How the connection ended, once all bytes have been read.
    pub(crate) fn end(&self, peer: Peer) -> Option<End> {
        let wire = &self.0.borrow().wires[peer.0];
        wire.end.filter(|_| wire.to_peer.is_empty())
    }

    pub(crate) fn half_close(&self, peer: Peer) {
        self.0.borrow_mut().schedule(peer, Segment::Fin);
    }

    /// Closes the peer's socket: it sends a FIN, and answers further bytes with an RST.
    pub(crate) fn close(&self, peer: Peer) {
        self.0.borrow_mut().wires[peer.0].peer_closed = true;
        self.half_close(peer);
    }

    pub(crate) fn reset(&self, peer: Peer) {
        self.0.borrow_mut().fail(peer, libc::ECONNRESET);
    }

    /// The peer no longer answers: the connection times out, and no FIN or RST arrives.
    pub(crate) fn time_out(&self, peer: Peer) {
        self.0.borrow_mut().fail(peer, libc::ETIMEDOUT);
    }

    /// How many connections the driver has not closed, including those not yet accepted.
    pub(crate) fn open_connections(&self) -> usize {
        self.0
            .borrow()
            .wires
            .iter()
            .filter(|wire| wire.open)
            .count()
    }

    /// Opens a datagram peer at this address.
    pub(crate) fn client(&self, address: SocketAddr) -> Client {
        let clients = &mut self.0.borrow_mut().clients;
        clients.push(ClientSocket {
            address,
            closed: false,
            inbox: VecDeque::new(),
        });
        Client(clients.len() - 1)
    }

    pub(crate) fn send_datagram(&self, client: Client, to: SocketAddr, bytes: &[u8]) {
        let world = &mut *self.0.borrow_mut();
        let from = world.clients[client.0].address;
        if let Some(socket) = world.find_socket(to) {
            let due = world.due(world.sockets[socket.0].inbox.back().map(|batch| batch.due));
            world.sockets[socket.0].inbox.push_back(DatagramBatch {
                due,
                from,
                to: to.ip(),
                size: bytes.len(),
                bytes: bytes.to_vec(),
            });
        }
    }

    /// The next datagram in the queue, and the address that it was sent from.
    pub(crate) fn receive_datagram(&self, client: Client) -> Option<(SocketAddr, Vec<u8>)> {
        self.0.borrow_mut().clients[client.0].inbox.pop_front()
    }

    /// Closes the client's socket: datagrams to it fail with ECONNREFUSED.
    pub(crate) fn leave(&self, client: Client) {
        self.0.borrow_mut().clients[client.0].closed = true;
    }
}

impl World {
    pub(super) fn time(&self) -> Instant {
        self.start + self.now
    }

    /// Decides at random whether a fault happens.
    pub(super) fn chance(&mut self, of: impl Fn(&Faults) -> f64) -> bool {
        let probability = of(&self.faults);
        // A disabled fault draws no random number, so that a new kind of fault changes no history.
        probability > 0.0 && self.random.unit() < probability
    }

    /// As [`Self::chance`], for a fault that only delays: the clock is advanced by a tick, and the
    /// driver tries again.
    pub(super) fn delays(&mut self, of: impl Fn(&Faults) -> f64) -> bool {
        let delays = self.chance(of);
        self.delayed |= delays;
        delays
    }

    /// When something sent now arrives: after `last`, which was sent before it.
    fn due(&mut self, last: Option<Duration>) -> Duration {
        let delay = self.faults.delay.mul_f64(self.random.unit());
        last.unwrap_or_default().max(self.now + delay)
    }

    /// Advances the clock to the next arrival or to `until`. Returns whether the driver should look
    /// again: something has arrived before `until`.
    pub(super) fn advance_clock(&mut self, until: Option<Instant>) -> bool {
        if self.clock_stopped {
            return false;
        }
        let now = self.now;
        let arrivals = self
            .wires
            .iter()
            .filter(|wire| wire.open)
            .flat_map(|wire| &wire.to_driver)
            .map(|(due, _)| *due);
        let bound = self.sockets.iter().filter(|bound| bound.open);
        let queued = bound
            .clone()
            .flat_map(|bound| &bound.queue)
            .map(|(due, _)| *due);
        let datagrams = bound.flat_map(|bound| &bound.inbox).map(|batch| batch.due);
        // An operation that a fault has delayed can be tried again a tick later.
        let tick = self.delayed.then_some(now + TICK);
        let next = arrivals
            .chain(queued)
            .chain(datagrams)
            .chain(tick)
            .filter(|due| *due > now)
            .min();
        let until = until.map(|until| until.saturating_duration_since(self.start));
        let delayed = std::mem::take(&mut self.delayed);
        self.now = match (next, until) {
            (Some(next), Some(until)) => next.min(until.max(now)),
            (Some(time), None) | (None, Some(time)) => time.max(now),
            (None, None) => return false,
        };
        // Without `until`, a delayed operation ends the wait: the same fault may happen every time,
        // and the wait would never return.
        next == Some(self.now)
            && !(delayed && until.is_none())
            && until.is_none_or(|until| self.now < until)
    }

    fn find_socket(&self, to: SocketAddr) -> Option<Socket> {
        let matches = |bound: &Bound| {
            let ip = bound.address.ip();
            bound.open
                && bound.address.port() == to.port()
                && (ip == to.ip() || ip.is_unspecified())
        };
        self.sockets.iter().position(matches).map(Socket)
    }

    pub(super) fn close_socket(&mut self, socket: Socket) {
        let bound = &mut self.sockets[socket.0];
        if bound.held {
            return;
        }
        bound.open = false;
        bound.inbox.clear();
        for (_, peer) in std::mem::take(&mut bound.queue) {
            self.close_connection(peer, Closing::Reset);
        }
    }

    /// Puts a client back to the front of the queue, if another process can accept it there.
    pub(super) fn requeue_client(&mut self, socket: Socket, peer: Peer) -> bool {
        let now = self.now;
        let bound = &mut self.sockets[socket.0];
        if bound.held {
            bound.queue.push_front((now, peer));
        }
        bound.held
    }

    /// Puts datagrams back to the front of the queue, if another process can receive them there.
    pub(super) fn requeue_datagrams(&mut self, socket: Socket, envelope: &Envelope, bytes: &[u8]) {
        let due = self.now;
        let bound = &mut self.sockets[socket.0];
        if let (Source::Inet(from), Some(local)) = (envelope.source, envelope.local)
            && bound.held
        {
            bound.inbox.push_front(DatagramBatch {
                due,
                from,
                to: local.address,
                size: envelope.size,
                bytes: bytes.to_vec(),
            });
        }
    }

    /// The next client to accept. Clients that were reset in the queue are skipped, as the driver
    /// skips ECONNABORTED.
    pub(super) fn next_in_queue(&mut self, socket: Socket) -> Option<Peer> {
        loop {
            let (_, peer) = *self.sockets[socket.0]
                .queue
                .front()
                .filter(|(due, _)| *due <= self.now)?;
            if !self.chance(|faults| faults.abort) {
                return Some(peer);
            }
            self.pop_queue(socket);
            self.close_connection(peer, Closing::Reset);
        }
    }

    /// How many clients or datagrams are queued on a socket, or on their way there.
    pub(super) fn queued(&self, socket: Socket) -> usize {
        let bound = &self.sockets[socket.0];
        bound.queue.len() + bound.inbox.len()
    }

    pub(super) fn pop_queue(&mut self, socket: Socket) {
        self.sockets[socket.0].queue.pop_front();
    }

    /// Sends a segment to the driver; it arrives after those sent before it.
    fn schedule(&mut self, peer: Peer, segment: Segment) {
        let due = self.due(self.wires[peer.0].to_driver.back().map(|(due, _)| *due));
        self.wires[peer.0].to_driver.push_back((due, segment));
    }

    fn fail(&mut self, peer: Peer, errno: i32) {
        let wire = &mut self.wires[peer.0];
        wire.end = Some(End::Reset);
        wire.to_peer.clear();
        // The peer takes no bytes that are sent before the reset arrives.
        wire.window = 0;
        self.schedule(peer, Segment::Failure(errno));
    }

    /// The error code with which the driver sees the connection broken, if it does now. A reset may
    /// overtake bytes that arrived before it, which are then lost, or not.
    pub(super) fn failure_seen(&mut self, peer: Peer) -> Option<i32> {
        if self.chance(|faults| faults.reset) {
            self.fail(peer, libc::ECONNRESET);
        }
        let now = self.now;
        let due = self.wires[peer.0]
            .to_driver
            .iter()
            .take_while(|(due, _)| *due <= now);
        let failure = |segment: &Segment| match segment {
            Segment::Failure(errno) => Some(*errno),
            Segment::Bytes(_) | Segment::Fin => None,
        };
        let (position, errno) = due
            .enumerate()
            .find_map(|(position, (_, segment))| Some((position, failure(segment)?)))?;
        let overtakes = position == 0 || self.random.unit() < 0.5;
        self.delayed |= !overtakes;
        overtakes.then_some(errno)
    }

    pub(super) fn bytes_due(&self, peer: Peer) -> usize {
        let due = self.wires[peer.0]
            .to_driver
            .iter()
            .take_while(|(due, _)| *due <= self.now);
        due.map_while(|(_, segment)| segment.bytes())
            .map(VecDeque::len)
            .sum()
    }

    pub(super) fn end_is_due(&self, peer: Peer) -> bool {
        let front = self.wires[peer.0].to_driver.front();
        front.is_some_and(|(due, segment)| *due <= self.now && matches!(segment, Segment::Fin))
    }

    /// Sends as many bytes as the peer's window takes, and returns how many that is.
    pub(super) fn send(&mut self, peer: Peer, bytes: &[u8]) -> usize {
        let wire = &self.wires[peer.0];
        if wire.peer_closed {
            self.fail(peer, libc::ECONNRESET);
            self.delayed = true;
            return 0;
        }
        let mut len = bytes
            .len()
            .min(wire.window.saturating_sub(wire.to_peer.len()));
        if len > 0 && self.delays(|faults| faults.stall) {
            len = 0;
        } else if len > 1 && self.delays(|faults| faults.short_write) {
            len = 1 + self.random.below(len - 1);
        }
        self.wires[peer.0].to_peer.extend(&bytes[..len]);
        len
    }

    /// Sends a FIN, unless the connection has ended otherwise.
    pub(super) fn send_fin(&mut self, peer: Peer) {
        self.wires[peer.0].end.get_or_insert(End::Fin);
    }

    /// As `close(2)` does: sends a FIN, or an RST if there are unreceived bytes.
    pub(super) fn close_connection(&mut self, peer: Peer, how: Closing) {
        let wire = &mut self.wires[peer.0];
        wire.open = false;
        if how == Closing::Reset || wire.unread() > 0 {
            wire.to_peer.clear();
            wire.end = Some(End::Reset);
        }
        wire.to_driver.clear();
        self.send_fin(peer);
    }

    pub(super) fn datagram_is_due(&self, socket: Socket) -> bool {
        self.sockets[socket.0]
            .inbox
            .front()
            .is_some_and(|batch| batch.due <= self.now)
    }

    /// Takes the next datagram that is due, and a random number of those behind it that one buffer
    /// can hold: of the same sender and address, of one size, of which only the last may be
    /// shorter.
    pub(super) fn take_datagrams(&mut self, socket: Socket, room: usize) -> DatagramBatch {
        let more = self.random.below(DATAGRAMS_PER_BUFFER_MAX);
        let inbox = &mut self.sockets[socket.0].inbox;
        let mut batch = inbox.pop_front().expect("a datagram is due");
        for _ in 0..more {
            let fits_behind = |next: &DatagramBatch| {
                next.due <= self.now
                    && (next.from, next.to) == (batch.from, batch.to)
                    && (1..=batch.size).contains(&next.size)
                    && batch.bytes.len().is_multiple_of(batch.size)
                    && batch.bytes.len() + next.size <= room
            };
            if !inbox.front().is_some_and(fits_behind) {
                break;
            }
            batch
                .bytes
                .extend(inbox.pop_front().into_iter().flat_map(|next| next.bytes));
        }
        batch
    }

    /// Sends one datagram to a client, with the errors of `sendmsg(2)`.
    pub(super) fn deliver_reply(
        &mut self,
        socket: Socket,
        envelope: &Envelope,
        bytes: &[u8],
    ) -> io::Result<()> {
        if self.chance(|faults| faults.send_error) {
            return Err(io::Error::from_raw_os_error(libc::ENETUNREACH));
        }
        let bound = self.sockets[socket.0].address;
        let Source::Inet(to) = envelope.source else {
            return Err(io::Error::from_raw_os_error(libc::EDESTADDRREQ));
        };
        let from = match envelope.local {
            Some(local) => local.address,
            // All sockets are on one host: the kernel chooses the destination as the source
            // address.
            None if bound.ip().is_unspecified() => to.ip(),
            None => bound.ip(),
        };
        let client_socket = self
            .clients
            .iter_mut()
            .find(|client_socket| client_socket.address == to && !client_socket.closed);
        let client_socket =
            client_socket.ok_or_else(|| io::Error::from_raw_os_error(libc::ECONNREFUSED))?;
        // A client that does not read has a full queue.
        if client_socket.inbox.len() == CLIENT_QUEUE_MAX {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        client_socket
            .inbox
            .push_back((SocketAddr::new(from, bound.port()), bytes.to_vec()));
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the seed of the simulated network was {}", self.seed);
        }
    }
}

impl Wire {
    /// How many bytes are on their way to the driver or waiting to be received.
    fn unread(&self) -> usize {
        self.to_driver
            .iter()
            .filter_map(|(_, segment)| segment.bytes())
            .map(VecDeque::len)
            .sum()
    }

    /// Fills `memory` with bytes that have arrived. The caller knows that enough are due.
    pub(super) fn take_bytes(&mut self, memory: &mut [u8]) {
        for byte in memory {
            let (_, Segment::Bytes(bytes)) =
                self.to_driver.front_mut().expect("enough segments are due")
            else {
                unreachable!("a FIN or RST among the bytes that are due");
            };
            *byte = bytes.pop_front().expect("empty segments are removed");
            if bytes.is_empty() {
                self.to_driver.pop_front();
            }
        }
    }
}

impl Segment {
    fn bytes(&self) -> Option<&VecDeque<u8>> {
        if let Self::Bytes(bytes) = self {
            Some(bytes)
        } else {
            None
        }
    }
}
