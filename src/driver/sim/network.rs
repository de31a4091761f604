//! The simulated network: the wires between the driver and the peers, the clock, the faults.
//!
//! [`Network`] is what a test holds. The driver's side is `World`, and behaves as a kernel does:
//! bytes that nobody has received turn a close into an RST, a reset may overtake what was sent
//! before it, and a window that is full takes no more.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::driver::{Closing, Envelope, Source};

/// How far the clock moves when only a fault has kept something from happening.
const TICK: Duration = Duration::from_millis(1);

/// How many datagrams a client's queue holds.
const MAILBOX_MAX: usize = 256;

/// How many datagrams come in one buffer at most.
const PARCELS_MAX: usize = 8;

/// How many bytes a connection holds for a driver that does not receive, and for a peer that does
/// not read.
const WINDOW_BYTES: usize = 48 * 1024;

/// How likely it is that something goes wrong, each from 0 to 1. By default nothing does.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// A send takes a part only.
    pub(crate) short_write: f64,
    /// A send takes nothing although there is room.
    pub(crate) stall: f64,
    /// A receive takes a part only.
    pub(crate) split_read: f64,
    /// What arrives is returned unseen, where it may be.
    pub(crate) relay: f64,
    /// A receive finds no buffer although there are some.
    pub(crate) famine: f64,
    /// A new connection's peer offers a window of a few bytes only.
    pub(crate) small_window: f64,
    /// A connection is reset, in each turn.
    pub(crate) reset: f64,
    /// An accept finds no descriptor left.
    pub(crate) accept_error: f64,
    /// A client in the queue has given up (ECONNABORTED).
    pub(crate) abort: f64,
    /// A datagram can't be sent.
    pub(crate) send_error: f64,
    /// The longest time that something takes to arrive here.
    pub(crate) delay: Duration,
}

impl Faults {
    /// All that may happen without anybody losing anything.
    pub(crate) fn rough() -> Self {
        Self {
            short_write: 0.3,
            stall: 0.2,
            split_read: 0.3,
            relay: 0.5,
            famine: 0.2,
            small_window: 0.3,
            delay: Duration::from_millis(5),
            ..Self::default()
        }
    }

    /// And all that ends connections or refuses service.
    pub(crate) fn hostile() -> Self {
        Self {
            reset: 0.005,
            accept_error: 0.1,
            abort: 0.1,
            send_error: 0.1,
            ..Self::rough()
        }
    }
}

/// A listening or datagram socket of a [`Network`], or our end of a connection: then the number is
/// its peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Socket(pub(super) usize);

/// The far end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Peer(pub(super) usize);

/// Somebody who sends datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Client(usize);

/// How a connection ended, as the peer saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Fin,
    Reset,
}

/// The peers' side of the simulated network. Clones are handles to the same one.
#[derive(Clone)]
pub(crate) struct Network(pub(super) Rc<RefCell<World>>);

pub(super) struct World {
    seed: u64,
    pub(super) random: Random,
    pub(super) faults: Faults,
    start: Instant,
    now: Duration,
    clock_stopped: bool,
    /// A fault has kept something from happening that will happen later.
    withheld: bool,
    pub(super) sockets: Vec<Bound>,
    pub(super) wires: Vec<Wire>,
    mailboxes: Vec<Mailbox>,
}

/// A socket, of either kind.
pub(super) struct Bound {
    pub(super) address: SocketAddr,
    open: bool,
    /// Somebody else has a descriptor of it: a close leaves it as it is.
    pub(super) held: bool,
    pub(super) queue: VecDeque<(Duration, Peer)>,
    pub(super) inbox: VecDeque<Parcel>,
}

/// A datagram on its way to us; or several of one size, but for the last.
pub(super) struct Parcel {
    pub(super) due: Duration,
    pub(super) from: SocketAddr,
    pub(super) to: IpAddr,
    pub(super) size: usize,
    pub(super) bytes: Vec<u8>,
}

struct Mailbox {
    address: SocketAddr,
    gone: bool,
    inbox: VecDeque<(SocketAddr, Vec<u8>)>,
}

/// A connection, both directions.
pub(super) struct Wire {
    pub(super) address: SocketAddr,
    pub(super) local: SocketAddr,
    open: bool,
    /// The peer reads no more, ever: what it is sent is answered with an RST.
    deaf: bool,
    to_us: VecDeque<(Duration, Segment)>,
    pub(super) to_peer: VecDeque<u8>,
    window: usize,
    pub(super) taken: u64,
    end: Option<End>,
}

enum Segment {
    Bytes(VecDeque<u8>),
    Fin,
    Reset,
}

impl Network {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Rc::new(RefCell::new(World {
            seed,
            random: Random(seed),
            faults: Faults::default(),
            start: Instant::now(),
            now: Duration::ZERO,
            clock_stopped: false,
            withheld: false,
            sockets: vec![],
            wires: vec![],
            mailboxes: vec![],
        })))
    }

    pub(crate) fn set_faults(&self, faults: Faults) {
        self.0.borrow_mut().faults = faults;
    }

    /// A number below `bound`, for tests that make their choices from the same seed.
    pub(crate) fn below(&self, bound: usize) -> usize {
        self.0.borrow_mut().random.below(bound)
    }

    /// From now on only [`Self::advance`] moves the clock.
    pub(crate) fn stop_clock(&self) {
        self.0.borrow_mut().clock_stopped = true;
    }

    /// From now on waiting moves it, too, as at the beginning.
    pub(crate) fn let_clock_run(&self) {
        self.0.borrow_mut().clock_stopped = false;
    }

    pub(crate) fn advance(&self, time: Duration) {
        self.0.borrow_mut().now += time;
    }

    /// A listening socket at this address.
    pub(crate) fn listen(&self, address: SocketAddr) -> Socket {
        self.bind(address)
    }

    /// A datagram socket at this address, which may be a wildcard.
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

    /// The socket stays when the driver closes it, with who is queued there; or no longer does.
    pub(crate) fn hold(&self, socket: Socket, held: bool) {
        self.0.borrow_mut().sockets[socket.0].held = held;
    }

    /// Connects from an address. When nobody listens, the peer sees a reset.
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
            deaf: false,
            to_us: VecDeque::new(),
            to_peer: VecDeque::new(),
            window,
            taken: 0,
            end: listener.is_none().then_some(End::Reset),
        });
        if let Some(listener) = listener {
            let due = world.due(world.sockets[listener.0].queue.back().map(|(due, _)| *due));
            world.sockets[listener.0].queue.push_back((due, peer));
        }
        peer
    }

    pub(crate) fn address(&self, peer: Peer) -> SocketAddr {
        self.0.borrow().wires[peer.0].address
    }

    /// Writes as much as the connection takes; says how much that was.
    pub(crate) fn write(&self, peer: Peer, bytes: &[u8]) -> usize {
        let world = &mut *self.0.borrow_mut();
        let wire = &mut world.wires[peer.0];
        if !wire.open {
            wire.end = Some(End::Reset);
            return 0;
        }
        let len = bytes.len().min(WINDOW_BYTES - wire.unread());
        if len > 0 {
            world.arrive(peer, Segment::Bytes(bytes[..len].iter().copied().collect()));
        }
        len
    }

    /// Reads at most so many bytes.
    pub(crate) fn read(&self, peer: Peer, max: usize) -> Vec<u8> {
        let wire = &mut self.0.borrow_mut().wires[peer.0];
        let len = wire.to_peer.len().min(max);
        wire.taken += len as u64;
        wire.to_peer.drain(..len).collect()
    }

    /// How the connection ended, once all bytes have been read.
    pub(crate) fn end(&self, peer: Peer) -> Option<End> {
        let wire = &self.0.borrow().wires[peer.0];
        wire.end.filter(|_| wire.to_peer.is_empty())
    }

    pub(crate) fn half_close(&self, peer: Peer) {
        self.0.borrow_mut().arrive(peer, Segment::Fin);
    }

    /// Closes both ways: what is sent to it from now on is answered with an RST.
    pub(crate) fn close(&self, peer: Peer) {
        self.0.borrow_mut().wires[peer.0].deaf = true;
        self.half_close(peer);
    }

    pub(crate) fn reset(&self, peer: Peer) {
        self.0.borrow_mut().reset(peer);
    }

    /// How many connections our side has open, those not yet accepted included.
    pub(crate) fn open_connections(&self) -> usize {
        self.0
            .borrow()
            .wires
            .iter()
            .filter(|wire| wire.open)
            .count()
    }

    /// Somebody at this address who sends datagrams.
    pub(crate) fn client(&self, address: SocketAddr) -> Client {
        let mailboxes = &mut self.0.borrow_mut().mailboxes;
        mailboxes.push(Mailbox {
            address,
            gone: false,
            inbox: VecDeque::new(),
        });
        Client(mailboxes.len() - 1)
    }

    pub(crate) fn send_datagram(&self, client: Client, to: SocketAddr, bytes: &[u8]) {
        let world = &mut *self.0.borrow_mut();
        let from = world.mailboxes[client.0].address;
        if let Some(socket) = world.find_socket(to) {
            let due = world.due(
                world.sockets[socket.0]
                    .inbox
                    .back()
                    .map(|parcel| parcel.due),
            );
            world.sockets[socket.0].inbox.push_back(Parcel {
                due,
                from,
                to: to.ip(),
                size: bytes.len(),
                bytes: bytes.to_vec(),
            });
        }
    }

    /// The next answer, and the address that it came from.
    pub(crate) fn receive_datagram(&self, client: Client) -> Option<(SocketAddr, Vec<u8>)> {
        self.0.borrow_mut().mailboxes[client.0].inbox.pop_front()
    }

    /// The client is no more: answers to it are refused.
    pub(crate) fn leave(&self, client: Client) {
        self.0.borrow_mut().mailboxes[client.0].gone = true;
    }
}

impl World {
    pub(super) fn time(&self) -> Instant {
        self.start + self.now
    }

    pub(super) fn chance(&mut self, of: impl Fn(&Faults) -> f64) -> bool {
        let probability = of(&self.faults);
        // Without faults the history must not depend on which faults exist.
        probability > 0.0 && self.random.unit() < probability
    }

    /// As [`Self::chance`], of a fault that only delays.
    pub(super) fn withholds(&mut self, of: impl Fn(&Faults) -> f64) -> bool {
        let withholds = self.chance(of);
        self.withheld |= withholds;
        withholds
    }

    /// When something sent now arrives: not before what was sent earlier.
    fn due(&mut self, last: Option<Duration>) -> Duration {
        let delay = self.faults.delay.mul_f64(self.random.unit());
        last.unwrap_or_default().max(self.now + delay)
    }

    /// Moves the clock to when something may happen; says whether that is before `until`.
    pub(super) fn move_clock(&mut self, until: Option<Instant>) -> bool {
        if self.clock_stopped {
            return false;
        }
        let now = self.now;
        let arrivals = self
            .wires
            .iter()
            .filter(|wire| wire.open)
            .flat_map(|wire| &wire.to_us)
            .map(|(due, _)| *due);
        let bound = self.sockets.iter().filter(|bound| bound.open);
        let queued = bound
            .clone()
            .flat_map(|bound| &bound.queue)
            .map(|(due, _)| *due);
        let parcels = bound
            .flat_map(|bound| &bound.inbox)
            .map(|parcel| parcel.due);
        let tick = self.withheld.then_some(now + TICK);
        let next = arrivals
            .chain(queued)
            .chain(parcels)
            .chain(tick)
            .filter(|due| *due > now)
            .min();
        let until = until.map(|until| until.saturating_duration_since(self.start));
        let withheld = std::mem::take(&mut self.withheld);
        self.now = match (next, until) {
            (Some(next), Some(until)) => next.min(until.max(now)),
            (Some(time), None) | (None, Some(time)) => time.max(now),
            (None, None) => return false,
        };
        next == Some(self.now)
            && !(withheld && until.is_none())
            && until.is_none_or(|until| self.now < until)
    }

    fn find_socket(&self, to: SocketAddr) -> Option<Socket> {
        let fits = |bound: &Bound| {
            let ip = bound.address.ip();
            bound.open
                && bound.address.port() == to.port()
                && (ip == to.ip() || ip.is_unspecified())
        };
        self.sockets.iter().position(fits).map(Socket)
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

    /// The peer is to be accepted by somebody else, if there is anybody.
    pub(super) fn queue_again(&mut self, socket: Socket, peer: Peer) -> bool {
        let now = self.now;
        let bound = &mut self.sockets[socket.0];
        if bound.held {
            bound.queue.push_front((now, peer));
        }
        bound.held
    }

    /// The datagrams are to be received by somebody else, if there is anybody.
    pub(super) fn put_back(&mut self, socket: Socket, envelope: &Envelope, bytes: &[u8]) {
        let due = self.now;
        let bound = &mut self.sockets[socket.0];
        if let (Source::Inet(from), Some(local)) = (envelope.source, envelope.local)
            && bound.held
        {
            bound.inbox.push_front(Parcel {
                due,
                from,
                to: local.address,
                size: envelope.size,
                bytes: bytes.to_vec(),
            });
        }
    }

    /// Who is next to be accepted. One who gave up in the queue is passed over.
    pub(super) fn next_in_queue(&mut self, socket: Socket) -> Option<Peer> {
        loop {
            let (_, peer) = *self.sockets[socket.0]
                .queue
                .front()
                .filter(|(due, _)| *due <= self.now)?;
            if !self.chance(|faults| faults.abort) {
                return Some(peer);
            }
            self.leave_queue(socket);
            self.close_connection(peer, Closing::Reset);
        }
    }

    pub(super) fn leave_queue(&mut self, socket: Socket) {
        self.sockets[socket.0].queue.pop_front();
    }

    fn arrive(&mut self, peer: Peer, segment: Segment) {
        let due = self.due(self.wires[peer.0].to_us.back().map(|(due, _)| *due));
        self.wires[peer.0].to_us.push_back((due, segment));
    }

    fn reset(&mut self, peer: Peer) {
        let wire = &mut self.wires[peer.0];
        wire.end = Some(End::Reset);
        wire.to_peer.clear();
        // What is sent until the reset arrives is not taken.
        wire.window = 0;
        self.arrive(peer, Segment::Reset);
    }

    /// Whether a reset is noticed now. What arrived before it may be lost or not.
    pub(super) fn breaks(&mut self, peer: Peer) -> bool {
        if self.chance(|faults| faults.reset) {
            self.reset(peer);
        }
        let now = self.now;
        let mut due = self.wires[peer.0]
            .to_us
            .iter()
            .take_while(|(due, _)| *due <= now);
        match due.position(|(_, segment)| matches!(segment, Segment::Reset)) {
            None => false,
            Some(0) => true,
            Some(_) => {
                let overtakes = self.random.unit() < 0.5;
                self.withheld |= !overtakes;
                overtakes
            }
        }
    }

    pub(super) fn bytes_due(&self, peer: Peer) -> usize {
        let due = self.wires[peer.0]
            .to_us
            .iter()
            .take_while(|(due, _)| *due <= self.now);
        due.map_while(|(_, segment)| segment.bytes())
            .map(VecDeque::len)
            .sum()
    }

    pub(super) fn end_is_due(&self, peer: Peer) -> bool {
        let front = self.wires[peer.0].to_us.front();
        front.is_some_and(|(due, segment)| *due <= self.now && matches!(segment, Segment::Fin))
    }

    /// Sends what the peer's window takes; says how much that was.
    pub(super) fn send(&mut self, peer: Peer, bytes: &[u8]) -> usize {
        let wire = &self.wires[peer.0];
        if wire.deaf {
            self.reset(peer);
            self.withheld = true;
            return 0;
        }
        let mut len = bytes
            .len()
            .min(wire.window.saturating_sub(wire.to_peer.len()));
        if len > 0 && self.withholds(|faults| faults.stall) {
            len = 0;
        } else if len > 1 && self.withholds(|faults| faults.short_write) {
            len = 1 + self.random.below(len - 1);
        }
        self.wires[peer.0].to_peer.extend(&bytes[..len]);
        len
    }

    pub(super) fn finish(&mut self, peer: Peer) {
        self.wires[peer.0].end.get_or_insert(End::Fin);
    }

    /// As `close(2)` does: with bytes that nobody has received, it is an RST.
    pub(super) fn close_connection(&mut self, peer: Peer, how: Closing) {
        let wire = &mut self.wires[peer.0];
        wire.open = false;
        if how == Closing::Reset || wire.unread() > 0 {
            wire.to_peer.clear();
            wire.end = Some(End::Reset);
        }
        wire.to_us.clear();
        self.finish(peer);
    }

    pub(super) fn datagram_is_due(&self, socket: Socket) -> bool {
        self.sockets[socket.0]
            .inbox
            .front()
            .is_some_and(|parcel| parcel.due <= self.now)
    }

    /// The next datagram that is due, together with some of those behind it if they fit.
    pub(super) fn take_parcels(&mut self, socket: Socket, room: usize) -> Parcel {
        let more = self.random.below(PARCELS_MAX);
        let inbox = &mut self.sockets[socket.0].inbox;
        let mut parcel = inbox.pop_front().expect("one is due");
        for _ in 0..more {
            let joins = |next: &Parcel| {
                next.due <= self.now
                    && (next.from, next.to) == (parcel.from, parcel.to)
                    && (1..=parcel.size).contains(&next.size)
                    && parcel.bytes.len().is_multiple_of(parcel.size)
                    && parcel.bytes.len() + next.size <= room
            };
            if !inbox.front().is_some_and(joins) {
                break;
            }
            parcel
                .bytes
                .extend(inbox.pop_front().into_iter().flat_map(|next| next.bytes));
        }
        parcel
    }

    pub(super) fn carry_reply(
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
            // All are on one host, which talks to an address of its own from there.
            None if bound.ip().is_unspecified() => to.ip(),
            None => bound.ip(),
        };
        let mailbox = self
            .mailboxes
            .iter_mut()
            .find(|mailbox| mailbox.address == to && !mailbox.gone);
        let mailbox = mailbox.ok_or_else(|| io::Error::from_raw_os_error(libc::ECONNREFUSED))?;
        if mailbox.inbox.len() == MAILBOX_MAX {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        mailbox
            .inbox
            .push_back((SocketAddr::new(from, bound.port()), bytes.to_vec()));
        Ok(())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the simulated network's seed was {}", self.seed);
        }
    }
}

impl Wire {
    /// How many bytes are on their way to us or wait to be received.
    fn unread(&self) -> usize {
        self.to_us
            .iter()
            .filter_map(|(_, segment)| segment.bytes())
            .map(VecDeque::len)
            .sum()
    }

    /// Fills `memory` with bytes that have arrived.
    pub(super) fn take_bytes(&mut self, memory: &mut [u8]) {
        for byte in memory {
            let (_, Segment::Bytes(bytes)) = self.to_us.front_mut().expect("so many bytes are due")
            else {
                unreachable!("so many bytes are due before the end");
            };
            *byte = bytes.pop_front().expect("an empty segment is removed");
            if bytes.is_empty() {
                self.to_us.pop_front();
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

/// Seeded randomness: splitmix64.
pub(super) struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// From 0 to just below 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
