//! The simulated driver: a network that exists only in memory, with a clock that is moved by hand
//! or by waiting, and with seeded faults.
//!
//! [`Network`] is the peers' side, held by the test; [`Sim`] is the driver over it, owned by
//! whoever is tested. One seed is one history: the network prints its seed when a test fails. The
//! driver behaves as unlike epoll as the seam allows: completions of different connections come in
//! random order, few at a time, and bytes that were taken before a `Rest` still arrive after it.
//!
//! It checks its user, too, and panics when a buffer is used twice, when receiving is asked for
//! twice, and when a token is used in a later turn than the one that closed it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::buffers::{BUFFER_COUNT, Buffers};
use super::{Buffer, Closing, Completion, Details, Driver, Envelope, Op, Permits, Source, Token, Waker};
use crate::sys::message::Local;

/// How many completions one `wait` brings at most.
const COMPLETIONS_PER_WAIT_MAX: usize = 64;

/// How often one listener, connection or socket is served in one turn.
const ROUNDS_PER_TURN: usize = 4;

/// How many bytes a connection holds for a driver that does not receive, and for a peer that does
/// not read.
const WINDOW_BYTES: usize = 128 * 1024;

/// How many datagrams a client's queue holds.
const MAILBOX_MAX: usize = 256;

/// How far the clock moves when only a fault has kept something from happening.
const TICK: Duration = Duration::from_millis(1);

/// A driver over a [`Network`].
pub(crate) struct Sim {
    world: Rc<RefCell<World>>,
    slots: Vec<Slot>,
    vacant: Vec<u32>,
    queue: Vec<Op>,
    turn: u64,
    closed_this_turn: Vec<Token>,
    forgiving: bool,
    buffers: Buffers,
    with_user: Vec<bool>,
    envelopes: Vec<Envelope>,
    held_back: Vec<Buffer>,
    waker: Waker,
}

/// What one token stands for.
struct Slot {
    token: Token,
    thing: Thing,
    /// The user has asked for connections, bytes or datagrams and knows of no end.
    asked: bool,
    /// The driver takes them.
    armed: bool,
    /// The user has asked for the close.
    closed: bool,
    /// The user has asked to drain first.
    drain_asked: bool,
    /// The driver serves who is queued, then closes.
    draining: bool,
    /// The turn in which the user was told of the peer's end.
    end_told: Option<u64>,
    /// What has happened and not yet been said.
    ready: VecDeque<Completion>,
}

enum Thing {
    Nothing,
    Listener { socket: Socket, permits: Option<Arc<Permits>> },
    Connection(Connection),
    Datagrams { socket: Socket, outgoing: VecDeque<Buffer> },
}

struct Connection {
    peer: Peer,
    outgoing: VecDeque<Outgoing>,
    shut_down: bool,
    ended: bool,
    failed: bool,
}

/// A `Send` under way.
struct Outgoing {
    bytes: Bytes,
    len: usize,
    written: usize,
    stall_told: bool,
}

enum Bytes {
    Leased(Buffer),
    /// Copied, so that the buffer could go home.
    Copied(Vec<u8>),
}

impl Slot {
    fn vacant(token: Token) -> Self {
        Self {
            token,
            thing: Thing::Nothing,
            asked: false,
            armed: false,
            closed: false,
            drain_asked: false,
            draining: false,
            end_told: None,
            ready: VecDeque::new(),
        }
    }
}

impl Sim {
    pub(crate) fn new(network: &Network) -> Self {
        Self::with_buffers(network, BUFFER_COUNT)
    }

    /// A driver with so few buffers.
    pub(crate) fn with_buffers(network: &Network, count: u16) -> Self {
        let mut buffers = Buffers::new();
        let held_back = (count..BUFFER_COUNT).map(|_| buffers.lease(0)).collect();
        Self {
            world: Rc::clone(&network.0),
            slots: vec![],
            vacant: vec![],
            queue: vec![],
            turn: 0,
            closed_this_turn: vec![],
            forgiving: false,
            buffers,
            with_user: vec![false; usize::from(BUFFER_COUNT)],
            envelopes: vec![Envelope::EMPTY; usize::from(BUFFER_COUNT)],
            held_back,
            waker: Waker::new().expect("a descriptor is left for a test"),
        }
    }

    /// From now on the use of a dead token is nothing, as the seam says, and no panic.
    pub(crate) fn forgive(&mut self) {
        self.forgiving = true;
    }

    /// Panics unless every buffer is at home.
    pub(crate) fn assert_all_home(&self) {
        let away = usize::from(BUFFER_COUNT) - self.held_back.len() - self.buffers.free();
        let with_user: Vec<usize> = (0..self.with_user.len()).filter(|&index| self.with_user[index]).collect();
        assert!(with_user.is_empty(), "buffers {with_user:?} are still held by the user, or were dropped");
        assert!(away == 0, "{away} buffers are still with the driver");
    }

    fn allocate(&mut self, thing: Thing) -> Token {
        let index = self.vacant.pop().unwrap_or_else(|| {
            let slot = self.slots.len() as u32;
            self.slots.push(Slot::vacant(Token { slot, generation: 0 }));
            slot
        });
        let slot = &mut self.slots[index as usize];
        slot.thing = thing;
        slot.token
    }

    fn vacate(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        *slot = Slot::vacant(slot.token.next());
        self.vacant.push(index);
    }

    /// The slot of a token that the user may use. A token closed in this very turn is excused:
    /// the user may have been about to answer what came before the reason to close.
    fn slot_for_user(&mut self, token: Token, what: &str) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(token.slot as usize).filter(|slot| slot.token == token);
        // Who drains is still answered; and an accept that failed is tried again.
        let drains = slot.as_ref().is_some_and(|slot| slot.drain_asked) && matches!(what, "SendTo" | "Accept");
        if let Some(slot) = slot
            && (!slot.closed || drains)
        {
            return Some(slot);
        }
        let excused = self.forgiving || self.closed_this_turn.contains(&token);
        assert!(excused, "{what} on {token:?}, which was closed in an earlier turn");
        None
    }

    fn take_from_user(&mut self, buffer: &Buffer, what: &str) {
        let with_user = &mut self.with_user[usize::from(buffer.index)];
        assert!(*with_user, "{what} of buffer {}, which the user has not got", buffer.index);
        *with_user = false;
    }

    fn ask(&mut self, token: Token, what: &str) -> bool {
        let turn = self.turn;
        let Some(slot) = self.slot_for_user(token, what) else { return false };
        assert!(!slot.asked, "{what} asked for twice on {token:?}");
        // It is excused when the end was told in this very turn, behind what made the user ask.
        assert!(slot.end_told.is_none_or(|told| told == turn), "{what} on {token:?} after the peer's end");
        slot.asked = slot.end_told.is_none();
        true
    }

    /// The rules of submitting: says whether the operation is to be carried out.
    fn check_user(&mut self, op: &Op) -> bool {
        match op {
            Op::Accept { listener } => self.ask(*listener, "Accept"),
            Op::Receive { connection } => self.ask(*connection, "Receive"),
            Op::ReceiveFrom { socket } => self.ask(*socket, "ReceiveFrom"),
            Op::Rest { connection } => self.slot_for_user(*connection, "Rest").map(|slot| slot.asked = false).is_some(),
            Op::Send { connection, buffer } => {
                self.take_from_user(buffer, "Send");
                self.slot_for_user(*connection, "Send").is_some()
            }
            Op::SendTo { socket, buffer } => {
                self.take_from_user(buffer, "SendTo");
                self.slot_for_user(*socket, "SendTo").is_some()
            }
            Op::ShutDown { connection } => self.slot_for_user(*connection, "ShutDown").is_some(),
            Op::Close { token, how } => {
                let Some(slot) = self.slot_for_user(*token, "Close") else { return false };
                let connection = matches!(slot.thing, Thing::Connection(_));
                assert!(!(connection && *how == Closing::WhenDrained), "a connection has no queue to drain");
                slot.closed = true;
                slot.drain_asked = *how == Closing::WhenDrained;
                self.closed_this_turn.push(*token);
                true
            }
        }
    }

    fn carry_out(&mut self, op: Op) {
        let token = match &op {
            Op::Accept { listener: token } | Op::ReceiveFrom { socket: token } | Op::SendTo { socket: token, .. } => *token,
            Op::Receive { connection: token } | Op::Rest { connection: token } => *token,
            Op::Send { connection: token, .. } | Op::ShutDown { connection: token } => *token,
            Op::Close { token, .. } => *token,
        };
        let Some(slot) = self.slots.get_mut(token.slot as usize).filter(|slot| slot.token == token) else {
            return self.abandon(op);
        };
        match (op, &mut slot.thing) {
            (Op::Accept { .. }, Thing::Listener { .. }) | (Op::ReceiveFrom { .. }, Thing::Datagrams { .. }) => {
                slot.armed = true;
            }
            (Op::Receive { .. }, Thing::Connection(connection)) => slot.armed = !connection.failed,
            (Op::Rest { .. }, Thing::Connection(_)) => slot.armed = false,
            (Op::Send { buffer, .. }, Thing::Connection(connection)) if !connection.failed => {
                assert!(!connection.shut_down, "Send on {token:?} after ShutDown");
                connection.outgoing.push_back(Outgoing::new(buffer));
            }
            (Op::ShutDown { .. }, Thing::Connection(connection)) => connection.shut_down = true,
            (Op::SendTo { buffer, .. }, Thing::Datagrams { outgoing, .. }) => outgoing.push_back(buffer),
            (Op::Close { how: Closing::WhenDrained, .. }, _) => {
                slot.draining = true;
                slot.armed = true;
                slot.asked = true;
            }
            (Op::Close { how, .. }, _) => {
                self.let_go(token.slot, how);
                self.slots[token.slot as usize].ready.push_back(Completion::Closed { token });
            }
            (op, _) => self.abandon(op),
        }
    }

    /// An operation that comes to nothing gives its buffer back.
    fn abandon(&mut self, op: Op) {
        if let Op::Send { buffer, .. } | Op::SendTo { buffer, .. } = op {
            self.buffers.recycle(buffer);
        }
    }

    /// Closes what a slot stands for and forgets what was not yet said of it.
    fn let_go(&mut self, index: u32, how: Closing) {
        let slot = &mut self.slots[index as usize];
        slot.armed = false;
        let ready = std::mem::take(&mut slot.ready);
        let thing = std::mem::replace(&mut slot.thing, Thing::Nothing);
        for completion in ready {
            match completion {
                Completion::Received { buffer, .. } | Completion::Datagram { buffer, .. } => self.buffers.recycle(buffer),
                Completion::Accepted { connection, .. } => {
                    // Nobody will ever hear of this one.
                    self.let_go(connection.slot, Closing::Reset);
                    self.vacate(connection.slot);
                    if let Thing::Listener { permits: Some(permits), .. } = &thing {
                        permits.give_back();
                    }
                }
                _ => {}
            }
        }
        match thing {
            Thing::Nothing => {}
            Thing::Listener { socket, .. } => self.world.borrow_mut().close_socket(socket),
            Thing::Datagrams { socket, outgoing } => {
                outgoing.into_iter().for_each(|buffer| self.buffers.recycle(buffer));
                self.world.borrow_mut().close_socket(socket);
            }
            Thing::Connection(mut connection) => {
                connection.drop_outgoing(&mut self.buffers);
                self.world.borrow_mut().close_connection(connection.peer, how);
            }
        }
    }

    /// One turn of the driver's own work: whatever can be accepted, sent and received is.
    fn work(&mut self) {
        let count = self.slots.len();
        // Whoever is served first finds buffers: let it be somebody else each time.
        let first = self.world.borrow_mut().random.below(count.max(1));
        for index in (first..count).chain(0..first) {
            match self.slots[index].thing {
                Thing::Nothing => {}
                Thing::Listener { .. } => self.accept(index),
                Thing::Connection(_) => self.move_bytes(index),
                Thing::Datagrams { .. } => self.move_datagrams(index),
            }
        }
    }

    fn accept(&mut self, index: usize) {
        let slot = &self.slots[index];
        let Thing::Listener { socket, permits } = &slot.thing else { return };
        let (listener, draining, socket, permits) = (slot.token, slot.draining, *socket, permits.clone());
        let shared = Rc::clone(&self.world);
        let mut world = shared.borrow_mut();
        for _ in 0..ROUNDS_PER_TURN {
            if !self.slots[index].armed {
                return;
            }
            let Some(peer) = world.next_in_queue(socket) else { break };
            let failure = match &permits {
                _ if world.chance(|faults| faults.accept_error) => {
                    Some(Some(io::Error::from_raw_os_error(libc::EMFILE)))
                }
                Some(permits) if draining => {
                    permits.take_regardless();
                    None
                }
                Some(permits) => (!permits.take_or_be_woken()).then_some(None),
                None => None,
            };
            if let Some(error) = failure {
                let slot = &mut self.slots[index];
                slot.armed = false;
                slot.ready.push_back(Completion::AcceptRested { listener, error });
                return;
            }
            world.leave_queue(socket);
            let connection = self.allocate(Thing::Connection(Connection::new(peer)));
            let peer = Some(world.wires[peer.0].address);
            self.slots[index].ready.push_back(Completion::Accepted { listener, connection, peer });
        }
        if draining && world.sockets[socket.0].queue.is_empty() {
            world.close_socket(socket);
            let slot = &mut self.slots[index];
            slot.thing = Thing::Nothing;
            slot.ready.push_back(Completion::Closed { token: listener });
        }
    }

    fn move_bytes(&mut self, index: usize) {
        let shared = Rc::clone(&self.world);
        let mut world = shared.borrow_mut();
        let slot = &mut self.slots[index];
        let Thing::Connection(connection) = &mut slot.thing else { return };
        if connection.failed {
            return;
        }
        if world.breaks(connection.peer) {
            connection.failed = true;
            connection.drop_outgoing(&mut self.buffers);
            slot.armed = false;
            let error = io::Error::from_raw_os_error(libc::ECONNRESET);
            slot.ready.push_back(Completion::Failed { connection: slot.token, error });
            return;
        }
        connection.send(slot.token, &mut slot.ready, &mut world, &mut self.buffers);
        for _ in 0..ROUNDS_PER_TURN {
            if slot.armed && !connection.ended {
                connection.receive(slot.token, &mut slot.ready, &mut world, &mut self.buffers);
            }
        }
    }

    fn move_datagrams(&mut self, index: usize) {
        let shared = Rc::clone(&self.world);
        let mut world = shared.borrow_mut();
        let slot = &mut self.slots[index];
        let Thing::Datagrams { socket: id, outgoing } = &mut slot.thing else { return };
        let (socket, id) = (slot.token, *id);
        // Who was received in the turn before has had a turn to be answered in.
        if slot.draining && outgoing.is_empty() && slot.ready.is_empty() && world.sockets[id.0].inbox.is_empty() {
            world.close_socket(id);
            slot.thing = Thing::Nothing;
            slot.ready.push_back(Completion::Closed { token: socket });
            return;
        }
        while let Some(buffer) = outgoing.pop_front() {
            let envelope = &self.envelopes[usize::from(buffer.index)];
            let result = world.carry_reply(id, envelope, self.buffers.bytes(&buffer)).map(|()| buffer.len);
            self.buffers.recycle(buffer);
            slot.ready.push_back(Completion::DatagramSent { socket, result });
        }
        for _ in 0..ROUNDS_PER_TURN {
            if !slot.armed || !world.datagram_is_due(id) || world.withholds(|faults| faults.famine) {
                return;
            }
            let Some((index, memory)) = self.buffers.peek() else { return };
            let parcel = world.sockets[id.0].inbox.pop_front().expect("one is due");
            let stored = parcel.bytes.len().min(memory.len());
            memory[..stored].copy_from_slice(&parcel.bytes[..stored]);
            let local = Some(Local { address: parcel.to, interface: 0 });
            self.envelopes[usize::from(index)] = Envelope { source: Source::Inet(parcel.from), local, unicast: true };
            let buffer = self.buffers.lease(stored);
            slot.ready.push_back(Completion::Datagram { socket, buffer, len: parcel.bytes.len() });
        }
    }

    /// Says some of what has happened, in any order but each connection's own.
    fn deliver(&mut self, done: &mut Vec<Completion>) {
        let mut waiting: Vec<usize> = (0..self.slots.len()).filter(|&index| !self.slots[index].ready.is_empty()).collect();
        let count = 1 + self.world.borrow_mut().random.below(COMPLETIONS_PER_WAIT_MAX);
        for _ in 0..count {
            if waiting.is_empty() {
                return;
            }
            let chosen = self.world.borrow_mut().random.below(waiting.len());
            let slot = &mut self.slots[waiting[chosen]];
            let completion = slot.ready.pop_front().expect("something is ready");
            if slot.ready.is_empty() {
                waiting.swap_remove(chosen);
            }
            match &completion {
                Completion::Received { buffer, .. } | Completion::Datagram { buffer, .. } => {
                    self.with_user[usize::from(buffer.index)] = true;
                }
                Completion::Ended { .. } | Completion::Failed { .. } => {
                    slot.asked = false;
                    slot.end_told = Some(self.turn);
                }
                Completion::AcceptRested { .. } => slot.asked = false,
                Completion::Closed { token } => self.vacate(token.slot),
                _ => {}
            }
            done.push(completion);
        }
    }

    fn wire<T>(&self, connection: Token, ask: impl FnOnce(&Wire) -> T) -> Option<T> {
        let slot = self.slots.get(connection.slot as usize).filter(|slot| slot.token == connection)?;
        let Thing::Connection(connection) = &slot.thing else { return None };
        Some(ask(&self.world.borrow().wires[connection.peer.0]))
    }
}

impl Driver for Sim {
    type Socket = Socket;

    fn add_listener(&mut self, socket: Socket, permits: Option<Arc<Permits>>) -> Token {
        self.allocate(Thing::Listener { socket, permits })
    }

    fn set_permits(&mut self, listener: Token, new: Option<Arc<Permits>>) {
        let slot = self.slots.get_mut(listener.slot as usize).filter(|slot| slot.token == listener);
        if let Some(Thing::Listener { permits, .. }) = slot.map(|slot| &mut slot.thing) {
            *permits = new;
        }
    }

    fn add_datagram_socket(&mut self, socket: Socket) -> Token {
        self.allocate(Thing::Datagrams { socket, outgoing: VecDeque::new() })
    }

    fn submit(&mut self, op: Op) {
        if self.check_user(&op) {
            self.queue.push(op);
        } else {
            self.abandon(op);
        }
    }

    /// Waits in virtual time: when nothing can happen the clock moves on by itself. With no `until`
    /// it returns with nothing once the simulated world has come to rest.
    fn wait(&mut self, until: Option<Instant>, done: &mut Vec<Completion>) -> io::Result<()> {
        let before = done.len();
        self.turn += 1;
        self.closed_this_turn.clear();
        for op in std::mem::take(&mut self.queue) {
            self.carry_out(op);
        }
        loop {
            self.work();
            if self.waker.drain() {
                done.push(Completion::Woken);
            }
            self.deliver(done);
            if done.len() > before || !self.world.borrow_mut().move_clock(until) {
                return Ok(());
            }
        }
    }

    fn now(&self) -> Instant {
        self.world.borrow().time()
    }

    fn bytes(&mut self, buffer: &Buffer) -> &mut [u8] {
        self.buffers.bytes(buffer)
    }

    fn envelope(&self, buffer: &Buffer) -> &Envelope {
        &self.envelopes[usize::from(buffer.index)]
    }

    fn recycle(&mut self, buffer: Buffer) {
        self.take_from_user(&buffer, "recycle");
        self.buffers.recycle(buffer);
    }

    fn progress(&self, connection: Token) -> u64 {
        self.wire(connection, |wire| wire.taken).unwrap_or(0)
    }

    fn details(&self, connection: Token) -> Details {
        let ask = |wire: &Wire| (wire.local, wire.to_peer.len() as u32);
        let (local, send_queue) = self.wire(connection, ask).unzip();
        Details { local, send_queue, ..Details::default() }
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

impl Connection {
    fn new(peer: Peer) -> Self {
        Self { peer, outgoing: VecDeque::new(), shut_down: false, ended: false, failed: false }
    }

    fn send(&mut self, token: Token, ready: &mut VecDeque<Completion>, world: &mut World, buffers: &mut Buffers) {
        while let Some(send) = self.outgoing.front_mut() {
            let bytes = &send.bytes(buffers)[..];
            let taken = world.send(self.peer, &bytes[send.written..]);
            send.written += taken;
            if send.written < send.len {
                if !send.stall_told {
                    send.stall_told = true;
                    ready.push_back(Completion::Stalled { connection: token });
                }
                break;
            }
            ready.push_back(Completion::Sent { connection: token, len: send.len as u32 });
            self.outgoing.pop_front().expect("it has just been sent").go_home(buffers);
        }
        if buffers.scarce() {
            self.outgoing.iter_mut().for_each(|send| send.copy_out(buffers));
        }
        if self.shut_down && self.outgoing.is_empty() {
            world.finish(self.peer);
        }
    }

    fn receive(&mut self, token: Token, ready: &mut VecDeque<Completion>, world: &mut World, buffers: &mut Buffers) {
        let stalled = self.outgoing.front().is_some_and(|send| send.stall_told);
        if stalled && !world.chance(|faults| faults.read_on) {
            return;
        }
        if world.end_is_due(self.peer) {
            self.ended = true;
            ready.push_back(Completion::Ended { connection: token });
            return;
        }
        let len = world.bytes_due(self.peer);
        if len == 0 || world.withholds(|faults| faults.famine) {
            return;
        }
        let Some((_, memory)) = buffers.peek() else { return };
        let mut len = len.min(memory.len());
        if world.chance(|faults| faults.split_read) {
            len = 1 + world.random.below(len);
        }
        world.wires[self.peer.0].take_bytes(&mut memory[..len]);
        let buffer = buffers.lease(len);
        ready.push_back(Completion::Received { connection: token, buffer });
    }

    fn drop_outgoing(&mut self, buffers: &mut Buffers) {
        self.outgoing.drain(..).for_each(|send| send.go_home(buffers));
    }
}

impl Outgoing {
    fn new(buffer: Buffer) -> Self {
        let len = buffer.len as usize;
        Self { bytes: Bytes::Leased(buffer), len, written: 0, stall_told: false }
    }

    fn bytes<'a>(&'a self, buffers: &'a mut Buffers) -> &'a [u8] {
        match &self.bytes {
            Bytes::Leased(buffer) => buffers.bytes(buffer),
            Bytes::Copied(bytes) => bytes,
        }
    }

    fn copy_out(&mut self, buffers: &mut Buffers) {
        let copy = Bytes::Copied(self.bytes(buffers).to_vec());
        if let Bytes::Leased(buffer) = std::mem::replace(&mut self.bytes, copy) {
            buffers.recycle(buffer);
        }
    }

    fn go_home(self, buffers: &mut Buffers) {
        if let Bytes::Leased(buffer) = self.bytes {
            buffers.recycle(buffer);
        }
    }
}

/// How likely it is that something goes wrong, each from 0 to 1. By default nothing does.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// A send takes a part only.
    pub(crate) short_write: f64,
    /// A send takes nothing although there is room.
    pub(crate) stall: f64,
    /// A receive takes a part only.
    pub(crate) split_read: f64,
    /// A receive goes on although a send is stalled.
    pub(crate) read_on: f64,
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
            read_on: 0.2,
            famine: 0.2,
            small_window: 0.3,
            delay: Duration::from_millis(5),
            ..Self::default()
        }
    }

    /// And all that ends connections or refuses service.
    pub(crate) fn hostile() -> Self {
        Self { reset: 0.005, accept_error: 0.1, abort: 0.1, send_error: 0.1, ..Self::rough() }
    }
}

/// A listening or datagram socket of a [`Network`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Socket(usize);

/// The far end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Peer(usize);

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
pub(crate) struct Network(Rc<RefCell<World>>);

struct World {
    seed: u64,
    random: Random,
    faults: Faults,
    start: Instant,
    now: Duration,
    clock_stopped: bool,
    /// A fault has kept something from happening that will happen later.
    withheld: bool,
    sockets: Vec<Bound>,
    wires: Vec<Wire>,
    mailboxes: Vec<Mailbox>,
}

/// A socket, of either kind.
struct Bound {
    address: SocketAddr,
    open: bool,
    queue: VecDeque<(Duration, Peer)>,
    inbox: VecDeque<Parcel>,
}

/// A datagram on its way to us.
struct Parcel {
    due: Duration,
    from: SocketAddr,
    to: IpAddr,
    bytes: Vec<u8>,
}

struct Mailbox {
    address: SocketAddr,
    gone: bool,
    inbox: VecDeque<(SocketAddr, Vec<u8>)>,
}

/// A connection, both directions.
struct Wire {
    address: SocketAddr,
    local: SocketAddr,
    open: bool,
    /// The peer reads no more, ever: what it is sent is answered with an RST.
    deaf: bool,
    to_us: VecDeque<(Duration, Segment)>,
    to_peer: VecDeque<u8>,
    window: usize,
    taken: u64,
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
        sockets.push(Bound { address, open: true, queue: VecDeque::new(), inbox: VecDeque::new() });
        Socket(sockets.len() - 1)
    }

    /// Connects from an address. When nobody listens, the peer sees a reset.
    pub(crate) fn connect(&self, from: SocketAddr, to: SocketAddr) -> Peer {
        let world = &mut *self.0.borrow_mut();
        let listener = world.find_socket(to);
        let window = if world.chance(|faults| faults.small_window) { 64 + world.random.below(2000) } else { WINDOW_BYTES };
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
        self.0.borrow().wires.iter().filter(|wire| wire.open).count()
    }

    /// Somebody at this address who sends datagrams.
    pub(crate) fn client(&self, address: SocketAddr) -> Client {
        let mailboxes = &mut self.0.borrow_mut().mailboxes;
        mailboxes.push(Mailbox { address, gone: false, inbox: VecDeque::new() });
        Client(mailboxes.len() - 1)
    }

    pub(crate) fn send_datagram(&self, client: Client, to: SocketAddr, bytes: &[u8]) {
        let world = &mut *self.0.borrow_mut();
        let from = world.mailboxes[client.0].address;
        if let Some(socket) = world.find_socket(to) {
            let due = world.due(world.sockets[socket.0].inbox.back().map(|parcel| parcel.due));
            world.sockets[socket.0].inbox.push_back(Parcel { due, from, to: to.ip(), bytes: bytes.to_vec() });
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
    fn time(&self) -> Instant {
        self.start + self.now
    }

    fn chance(&mut self, of: impl Fn(&Faults) -> f64) -> bool {
        let probability = of(&self.faults);
        // Without faults the history must not depend on which faults exist.
        probability > 0.0 && self.random.unit() < probability
    }

    /// As [`Self::chance`], of a fault that only delays.
    fn withholds(&mut self, of: impl Fn(&Faults) -> f64) -> bool {
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
    fn move_clock(&mut self, until: Option<Instant>) -> bool {
        if self.clock_stopped {
            return false;
        }
        let now = self.now;
        let arrivals = self.wires.iter().filter(|wire| wire.open).flat_map(|wire| &wire.to_us).map(|(due, _)| *due);
        let bound = self.sockets.iter().filter(|bound| bound.open);
        let queued = bound.clone().flat_map(|bound| &bound.queue).map(|(due, _)| *due);
        let parcels = bound.flat_map(|bound| &bound.inbox).map(|parcel| parcel.due);
        let tick = self.withheld.then_some(now + TICK);
        let next = arrivals.chain(queued).chain(parcels).chain(tick).filter(|due| *due > now).min();
        let until = until.map(|until| until.saturating_duration_since(self.start));
        let withheld = std::mem::take(&mut self.withheld);
        self.now = match (next, until) {
            (Some(next), Some(until)) => next.min(until.max(now)),
            (Some(time), None) | (None, Some(time)) => time.max(now),
            (None, None) => return false,
        };
        next == Some(self.now) && !(withheld && until.is_none()) && until.is_none_or(|until| self.now < until)
    }

    fn find_socket(&self, to: SocketAddr) -> Option<Socket> {
        let fits = |bound: &Bound| {
            let ip = bound.address.ip();
            bound.open && bound.address.port() == to.port() && (ip == to.ip() || ip.is_unspecified())
        };
        self.sockets.iter().position(fits).map(Socket)
    }

    fn close_socket(&mut self, socket: Socket) {
        let bound = &mut self.sockets[socket.0];
        bound.open = false;
        bound.inbox.clear();
        for (_, peer) in std::mem::take(&mut bound.queue) {
            self.close_connection(peer, Closing::Reset);
        }
    }

    /// Who is next to be accepted. One who gave up in the queue is passed over.
    fn next_in_queue(&mut self, socket: Socket) -> Option<Peer> {
        loop {
            let (_, peer) = *self.sockets[socket.0].queue.front().filter(|(due, _)| *due <= self.now)?;
            if !self.chance(|faults| faults.abort) {
                return Some(peer);
            }
            self.leave_queue(socket);
            self.close_connection(peer, Closing::Reset);
        }
    }

    fn leave_queue(&mut self, socket: Socket) {
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
    fn breaks(&mut self, peer: Peer) -> bool {
        if self.chance(|faults| faults.reset) {
            self.reset(peer);
        }
        let now = self.now;
        let mut due = self.wires[peer.0].to_us.iter().take_while(|(due, _)| *due <= now);
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

    fn bytes_due(&self, peer: Peer) -> usize {
        let due = self.wires[peer.0].to_us.iter().take_while(|(due, _)| *due <= self.now);
        due.map_while(|(_, segment)| segment.bytes()).map(VecDeque::len).sum()
    }

    fn end_is_due(&self, peer: Peer) -> bool {
        let front = self.wires[peer.0].to_us.front();
        front.is_some_and(|(due, segment)| *due <= self.now && matches!(segment, Segment::Fin))
    }

    /// Sends what the peer's window takes; says how much that was.
    fn send(&mut self, peer: Peer, bytes: &[u8]) -> usize {
        let wire = &self.wires[peer.0];
        if wire.deaf {
            self.reset(peer);
            self.withheld = true;
            return 0;
        }
        let mut len = bytes.len().min(wire.window.saturating_sub(wire.to_peer.len()));
        if len > 0 && self.withholds(|faults| faults.stall) {
            len = 0;
        } else if len > 1 && self.withholds(|faults| faults.short_write) {
            len = 1 + self.random.below(len - 1);
        }
        self.wires[peer.0].to_peer.extend(&bytes[..len]);
        len
    }

    fn finish(&mut self, peer: Peer) {
        self.wires[peer.0].end.get_or_insert(End::Fin);
    }

    /// As `close(2)` does: with bytes that nobody has received, it is an RST.
    fn close_connection(&mut self, peer: Peer, how: Closing) {
        let wire = &mut self.wires[peer.0];
        wire.open = false;
        if how == Closing::Reset || wire.unread() > 0 {
            wire.to_peer.clear();
            wire.end = Some(End::Reset);
        }
        wire.to_us.clear();
        self.finish(peer);
    }

    fn datagram_is_due(&self, socket: Socket) -> bool {
        self.sockets[socket.0].inbox.front().is_some_and(|parcel| parcel.due <= self.now)
    }

    fn carry_reply(&mut self, socket: Socket, envelope: &Envelope, bytes: &[u8]) -> io::Result<()> {
        if self.chance(|faults| faults.send_error) {
            return Err(io::Error::from_raw_os_error(libc::ENETUNREACH));
        }
        let port = self.sockets[socket.0].address.port();
        let Envelope { source: Source::Inet(to), local: Some(local), .. } = *envelope else {
            return Err(io::Error::from_raw_os_error(libc::EDESTADDRREQ));
        };
        let mailbox = self.mailboxes.iter_mut().find(|mailbox| mailbox.address == to && !mailbox.gone);
        let mailbox = mailbox.ok_or_else(|| io::Error::from_raw_os_error(libc::ECONNREFUSED))?;
        if mailbox.inbox.len() == MAILBOX_MAX {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        mailbox.inbox.push_back((SocketAddr::new(local.address, port), bytes.to_vec()));
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
        self.to_us.iter().filter_map(|(_, segment)| segment.bytes()).map(VecDeque::len).sum()
    }

    /// Fills `memory` with bytes that have arrived.
    fn take_bytes(&mut self, memory: &mut [u8]) {
        for byte in memory {
            let (_, Segment::Bytes(bytes)) = self.to_us.front_mut().expect("so many bytes are due") else {
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
        if let Self::Bytes(bytes) = self { Some(bytes) } else { None }
    }
}

/// Seeded randomness: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// From 0 to just below 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}
