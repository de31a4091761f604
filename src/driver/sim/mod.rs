//! The simulated driver: a network that exists only in memory, with a clock that is moved by hand
//! or by waiting, and with seeded faults.
//!
//! [`Network`] is the peers' side, held by the test; [`Sim`] is the driver over it, owned by
//! whoever is tested. One seed is one history: the network prints its seed when a test fails. The
//! driver behaves as unlike epoll as the seam allows: completions of different connections come in
//! random order, few at a time, bytes that were taken before a `Pause` still arrive after it, and
//! datagrams of one sender come in one buffer or in many.
//!
//! It checks its user, too, and panics when a buffer is used twice, when receiving is asked for
//! twice, when a relaying connection is not answered in time, when a detached one is not taken in time, and when
//! a token is used after it was taken, or in a later turn than the one that closed it.

mod connection;
mod network;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use self::connection::{Connection, Outgoing};
pub(crate) use self::network::{Client, End, Faults, Network, Peer, Socket};
use self::network::{Wire, World};
use super::buffers::{BUFFER_COUNT, Buffers, Memory};
use super::{
    Buffer, Closing, Completion, Detached, Details, Driver, Envelope, Op, Permits, Source, Token,
    Waker,
};
use crate::sys::message::Local;

/// How many completions one `wait` brings at most.
const COMPLETIONS_PER_WAIT_MAX: usize = 64;

/// How often one listener, connection or socket is served in one turn.
const ROUNDS_PER_TURN: usize = 4;

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
    /// Whose bytes are in a buffer that the user has; nobody's, in one that it has leased.
    with_user: Vec<Option<Option<Token>>>,
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
    /// The user has asked that bytes be returned unseen.
    relay_asked: bool,
    /// The driver takes them.
    armed: bool,
    /// The user has asked for the close.
    closed: bool,
    /// The user has asked to drain first.
    drain_asked: bool,
    /// The driver serves who is queued, then closes.
    draining: bool,
    /// How many sends the user has submitted and does not know to be done.
    sends: usize,
    /// The user was told that the connection is detached.
    detached: bool,
    /// The turn in which the user was told of the peer's end.
    end_told: Option<u64>,
    /// What has happened and not yet been said.
    ready: VecDeque<Completion>,
}

enum Thing {
    Nothing,
    Listener {
        socket: Socket,
        permits: Option<Arc<Permits>>,
    },
    Connection(Connection),
    Datagrams {
        socket: Socket,
        outgoing: VecDeque<Buffer>,
    },
}

impl Slot {
    fn vacant(token: Token) -> Self {
        Self {
            token,
            thing: Thing::Nothing,
            asked: false,
            relay_asked: false,
            armed: false,
            closed: false,
            drain_asked: false,
            draining: false,
            sends: 0,
            detached: false,
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
        let mut buffers = Buffers::new().expect("there is memory");
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
            with_user: vec![None; usize::from(BUFFER_COUNT)],
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
        let with_user: Vec<usize> = (0..self.with_user.len())
            .filter(|&index| self.with_user[index].is_some())
            .collect();
        assert!(
            with_user.is_empty(),
            "buffers {with_user:?} are still held by the user, or were dropped"
        );
        assert!(away == 0, "{away} buffers are still with the driver");
    }

    fn allocate(&mut self, thing: Thing) -> Token {
        let index = self.vacant.pop().unwrap_or_else(|| {
            let slot = self.slots.len() as u32;
            self.slots.push(Slot::vacant(Token {
                slot,
                generation: 0,
            }));
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
        let slot = self
            .slots
            .get_mut(token.slot as usize)
            .filter(|slot| slot.token == token);
        // Who drains is still answered; and an accept that failed is tried again.
        let drains = slot.as_ref().is_some_and(|slot| slot.drain_asked)
            && matches!(what, "SendTo" | "Accept");
        if let Some(slot) = slot
            && (!slot.closed || drains)
        {
            return Some(slot);
        }
        let excused = self.forgiving || self.closed_this_turn.contains(&token);
        assert!(
            excused,
            "{what} on {token:?}, which was closed in an earlier turn"
        );
        None
    }

    fn take_from_user(&mut self, buffer: &Buffer, what: &str) {
        let with_user = &mut self.with_user[usize::from(buffer.index)];
        assert!(
            with_user.take().is_some(),
            "{what} of buffer {}, which the user has not got",
            buffer.index
        );
    }

    /// Nothing that was shown of a relaying connection may be overtaken by what is not.
    fn check_answered(&self) {
        for token in self.with_user.iter().flatten().flatten() {
            let slot = &self.slots[token.slot as usize];
            assert!(
                slot.token != *token || slot.closed || !slot.relay_asked,
                "{token:?} is relaying, and a wait begins before its bytes are answered"
            );
        }
    }

    /// Who was told that a connection is detached takes it at once, or closes it.
    fn check_taken(&self) {
        for slot in &self.slots {
            assert!(
                !slot.detached || slot.closed,
                "{:?} is detached, and a wait begins before it is taken",
                slot.token
            );
        }
    }

    fn ask(&mut self, token: Token, what: &str) -> bool {
        let turn = self.turn;
        let Some(slot) = self.slot_for_user(token, what) else {
            return false;
        };
        let ends_relaying = what == "Receive" && std::mem::take(&mut slot.relay_asked);
        assert!(
            !slot.asked || ends_relaying,
            "{what} asked for twice on {token:?}"
        );
        // It is excused when the end was told in this very turn, behind what made the user ask.
        assert!(
            slot.end_told.is_none_or(|told| told == turn),
            "{what} on {token:?} after the peer's end"
        );
        slot.asked = slot.end_told.is_none();
        slot.relay_asked = what == "Relay";
        true
    }

    /// The rules of submitting: says whether the operation is to be carried out.
    fn check_user(&mut self, op: &Op) -> bool {
        match op {
            Op::Accept { listener } => self.ask(*listener, "Accept"),
            Op::Receive { connection } => self.ask(*connection, "Receive"),
            Op::Relay { connection } => self.ask(*connection, "Relay"),
            Op::ReceiveFrom { socket } => self.ask(*socket, "ReceiveFrom"),
            Op::Pause { connection } => self
                .slot_for_user(*connection, "Pause")
                .map(|slot| (slot.asked, slot.relay_asked) = (false, false))
                .is_some(),
            Op::Send { connection, buffer } => {
                self.take_from_user(buffer, "Send");
                self.slot_for_user(*connection, "Send")
                    .map(|slot| slot.sends += 1)
                    .is_some()
            }
            Op::SendTo { socket, buffer } => {
                self.take_from_user(buffer, "SendTo");
                self.slot_for_user(*socket, "SendTo").is_some()
            }
            Op::ShutDown { connection } => self.slot_for_user(*connection, "ShutDown").is_some(),
            Op::Detach { connection } => self.slot_for_user(*connection, "Detach").is_some(),
            Op::Close { token, how } => {
                let Some(slot) = self.slot_for_user(*token, "Close") else {
                    return false;
                };
                let connection = matches!(slot.thing, Thing::Connection(_));
                assert!(
                    !(connection && *how == Closing::WhenDrained),
                    "a connection has no queue to drain"
                );
                slot.closed = true;
                slot.drain_asked = *how == Closing::WhenDrained;
                self.closed_this_turn.push(*token);
                true
            }
        }
    }

    fn carry_out(&mut self, op: Op) {
        let token = match &op {
            Op::Accept { listener: token }
            | Op::ReceiveFrom { socket: token }
            | Op::SendTo { socket: token, .. } => *token,
            Op::Receive { connection: token }
            | Op::Relay { connection: token }
            | Op::Pause { connection: token }
            | Op::Detach { connection: token } => *token,
            Op::Send {
                connection: token, ..
            }
            | Op::ShutDown { connection: token } => *token,
            Op::Close { token, .. } => *token,
        };
        let Some(slot) = self
            .slots
            .get_mut(token.slot as usize)
            .filter(|slot| slot.token == token)
        else {
            return self.abandon(op);
        };
        match (op, &mut slot.thing) {
            (Op::Accept { .. }, Thing::Listener { .. })
            | (Op::ReceiveFrom { .. }, Thing::Datagrams { .. }) => {
                slot.armed = true;
            }
            (Op::Receive { .. }, Thing::Connection(connection)) => {
                slot.armed = !connection.failed && !connection.detaching;
                connection.relays = false;
            }
            (Op::Relay { .. }, Thing::Connection(connection)) => {
                slot.armed = !connection.failed && !connection.detaching;
                connection.relays = true;
            }
            (Op::Pause { .. }, Thing::Connection(_)) => slot.armed = false,
            (Op::Send { buffer, .. }, Thing::Connection(connection)) if !connection.failed => {
                assert!(!connection.shut_down, "Send on {token:?} after ShutDown");
                connection.outgoing.push_back(Outgoing::new(buffer));
            }
            (Op::ShutDown { .. }, Thing::Connection(connection)) => connection.shut_down = true,
            (Op::Detach { .. }, Thing::Connection(connection)) => {
                connection.detaching = true;
                slot.armed = false;
            }
            (Op::SendTo { buffer, .. }, Thing::Datagrams { outgoing, .. }) => {
                outgoing.push_back(buffer)
            }
            (
                Op::Close {
                    how: Closing::WhenDrained,
                    ..
                },
                _,
            ) => {
                slot.draining = true;
                slot.armed = true;
                slot.asked = true;
            }
            (Op::Close { how, .. }, _) => {
                self.send_answers(token.slot as usize);
                self.let_go(token.slot, how);
                self.slots[token.slot as usize]
                    .ready
                    .push_back(Completion::Closed { token });
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
        // What goes back into a queue goes there in its order.
        for completion in ready.into_iter().rev() {
            match completion {
                Completion::Datagrams { buffer, .. } => {
                    if let Thing::Datagrams { socket, .. } = &thing {
                        let envelope = &self.envelopes[usize::from(buffer.index)];
                        let mut world = self.world.borrow_mut();
                        world.put_back(*socket, envelope, self.buffers.bytes(&buffer));
                    }
                    self.buffers.recycle(buffer);
                }
                Completion::Received { buffer, .. } => self.buffers.recycle(buffer),
                Completion::Accepted { connection, .. } => {
                    // Nobody will ever hear of this one, unless somebody else accepts it.
                    let accepted = &mut self.slots[connection.slot as usize].thing;
                    if let (Thing::Listener { socket, .. }, Thing::Connection(client)) =
                        (&thing, &*accepted)
                        && self.world.borrow_mut().queue_again(*socket, client.peer)
                    {
                        *accepted = Thing::Nothing;
                    }
                    self.let_go(connection.slot, Closing::Reset);
                    self.vacate(connection.slot);
                    if let Thing::Listener {
                        permits: Some(permits),
                        ..
                    } = &thing
                    {
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
                outgoing
                    .into_iter()
                    .for_each(|buffer| self.buffers.recycle(buffer));
                self.world.borrow_mut().close_socket(socket);
            }
            Thing::Connection(mut connection) => {
                connection.drop_outgoing(&mut self.buffers);
                self.world
                    .borrow_mut()
                    .close_connection(connection.peer, how);
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
        let Thing::Listener { socket, permits } = &slot.thing else {
            return;
        };
        let (listener, draining, socket, permits) =
            (slot.token, slot.draining, *socket, permits.clone());
        let shared = Rc::clone(&self.world);
        let mut world = shared.borrow_mut();
        for _ in 0..ROUNDS_PER_TURN {
            if !self.slots[index].armed {
                return;
            }
            let Some(peer) = world.next_in_queue(socket) else {
                break;
            };
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
                slot.ready
                    .push_back(Completion::AcceptPaused { listener, error });
                return;
            }
            world.leave_queue(socket);
            let connection = self.allocate(Thing::Connection(Connection::new(peer)));
            let peer = Some(world.wires[peer.0].address);
            self.slots[index].ready.push_back(Completion::Accepted {
                listener,
                connection,
                peer,
                has_permit: permits.is_some(),
            });
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
        let Thing::Connection(connection) = &mut slot.thing else {
            return;
        };
        if connection.failed || !connection.announced {
            return;
        }
        if connection.detaching {
            // Only now has all that was taken been shown in an earlier wait.
            if slot.ready.is_empty() && !slot.detached {
                slot.ready.push_back(Completion::Detached {
                    connection: slot.token,
                });
            }
            return;
        }
        if world.breaks(connection.peer) {
            connection.failed = true;
            connection.drop_outgoing(&mut self.buffers);
            slot.armed = false;
            let error = io::Error::from_raw_os_error(libc::ECONNRESET);
            slot.ready.push_back(Completion::Failed {
                connection: slot.token,
                error,
            });
            return;
        }
        connection.send(slot.token, &mut slot.ready, &mut world, &mut self.buffers);
        for _ in 0..ROUNDS_PER_TURN {
            if slot.armed && !connection.ended {
                connection.receive(slot.token, &mut slot.ready, &mut world, &mut self.buffers);
            }
        }
    }

    /// Sends the answers that were submitted.
    fn send_answers(&mut self, index: usize) {
        let mut world = self.world.borrow_mut();
        let slot = &mut self.slots[index];
        let Thing::Datagrams {
            socket: id,
            outgoing,
        } = &mut slot.thing
        else {
            return;
        };
        let (socket, id) = (slot.token, *id);
        while let Some(buffer) = outgoing.pop_front() {
            let envelope = &self.envelopes[usize::from(buffer.index)];
            let bytes = self.buffers.bytes(&buffer);
            let (mut count, mut sent) = (0, 0);
            for datagram in datagrams(bytes, envelope.size) {
                match world.carry_reply(id, envelope, datagram) {
                    Ok(()) => {
                        count += 1;
                        sent += datagram.len() as u32;
                    }
                    Err(error) => slot.ready.push_back(Completion::DatagramSent {
                        socket,
                        count: 1,
                        result: Err(error),
                    }),
                }
            }
            self.buffers.recycle(buffer);
            if count > 0 {
                slot.ready.push_back(Completion::DatagramSent {
                    socket,
                    count,
                    result: Ok(sent),
                });
            }
        }
    }

    fn move_datagrams(&mut self, index: usize) {
        let shared = Rc::clone(&self.world);
        let mut world = shared.borrow_mut();
        let slot = &mut self.slots[index];
        let Thing::Datagrams {
            socket: id,
            outgoing,
        } = &mut slot.thing
        else {
            return;
        };
        let (socket, id) = (slot.token, *id);
        // Who was received in the turn before has had a turn to be answered in.
        if slot.draining
            && outgoing.is_empty()
            && slot.ready.is_empty()
            && world.sockets[id.0].inbox.is_empty()
        {
            world.close_socket(id);
            slot.thing = Thing::Nothing;
            slot.ready.push_back(Completion::Closed { token: socket });
            return;
        }
        drop(world);
        self.send_answers(index);
        let mut world = shared.borrow_mut();
        let slot = &mut self.slots[index];
        for _ in 0..ROUNDS_PER_TURN {
            if !slot.armed || !world.datagram_is_due(id) || world.withholds(|faults| faults.famine)
            {
                return;
            }
            if self.buffers.free_for_datagrams() == 0 {
                return;
            }
            let Some((index, memory)) = self.buffers.peek() else {
                return;
            };
            let mut parcel = world.take_parcels(id, memory.len());
            let size = parcel.size;
            parcel.bytes.truncate(memory.len());
            memory[..parcel.bytes.len()].copy_from_slice(&parcel.bytes);
            let local = Some(Local {
                address: parcel.to,
                interface: 0,
            });
            self.envelopes[usize::from(index)] = Envelope {
                source: Source::Inet(parcel.from),
                local,
                unicast: true,
                size,
            };
            let buffer = self.buffers.lease(parcel.bytes.len());
            slot.ready
                .push_back(Completion::Datagrams { socket, buffer });
        }
    }

    /// Says some of what has happened, in any order but each connection's own.
    fn deliver(&mut self, done: &mut Vec<Completion>) {
        let mut waiting: Vec<usize> = (0..self.slots.len())
            .filter(|&index| !self.slots[index].ready.is_empty())
            .collect();
        let count = 1 + self
            .world
            .borrow_mut()
            .random
            .below(COMPLETIONS_PER_WAIT_MAX);
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
                Completion::Received {
                    buffer,
                    connection: token,
                }
                | Completion::Datagrams {
                    buffer,
                    socket: token,
                } => {
                    self.with_user[usize::from(buffer.index)] = Some(Some(*token));
                }
                Completion::Ended { .. } | Completion::Failed { .. } => {
                    slot.asked = false;
                    slot.end_told = Some(self.turn);
                    if matches!(completion, Completion::Failed { .. }) {
                        slot.sends = 0;
                    }
                }
                Completion::Sent { .. } => slot.sends -= 1,
                Completion::AcceptPaused { .. } => slot.asked = false,
                Completion::Detached { .. } => slot.detached = true,
                Completion::Closed { token } => self.vacate(token.slot),
                _ => {}
            }
            self.announce(&completion);
            done.push(completion);
        }
    }

    /// Nothing is heard of a connection before the user knows that it is there.
    fn announce(&mut self, completion: &Completion) {
        if let Completion::Accepted { connection, .. } = completion
            && let Thing::Connection(connection) = &mut self.slots[connection.slot as usize].thing
        {
            connection.announced = true;
        }
    }

    fn wire<T>(&self, connection: Token, ask: impl FnOnce(&Wire) -> T) -> Option<T> {
        let slot = self
            .slots
            .get(connection.slot as usize)
            .filter(|slot| slot.token == connection)?;
        let Thing::Connection(connection) = &slot.thing else {
            return None;
        };
        Some(ask(&self.world.borrow().wires[connection.peer.0]))
    }
}

impl Driver for Sim {
    type Socket = Socket;

    fn add_listener(&mut self, socket: Socket, permits: Option<Arc<Permits>>) -> Token {
        self.allocate(Thing::Listener { socket, permits })
    }

    fn set_permits(&mut self, listener: Token, new: Option<Arc<Permits>>) {
        let slot = self
            .slots
            .get_mut(listener.slot as usize)
            .filter(|slot| slot.token == listener);
        if let Some(Thing::Listener { permits, .. }) = slot.map(|slot| &mut slot.thing) {
            *permits = new;
        }
    }

    fn add_datagram_socket(&mut self, socket: Socket) -> Token {
        self.allocate(Thing::Datagrams {
            socket,
            outgoing: VecDeque::new(),
        })
    }

    fn add_connection(&mut self, socket: Socket, unsent: Vec<u8>) -> Token {
        let mut connection = Connection::new(Peer(socket.0));
        connection.announced = true;
        connection.owe(unsent);
        let sends = connection.outgoing.len();
        let token = self.allocate(Thing::Connection(connection));
        self.slots[token.slot as usize].sends = sends;
        token
    }

    fn take(&mut self, token: Token) -> Option<Detached<Socket>> {
        let slot = self
            .slots
            .get_mut(token.slot as usize)
            .filter(|slot| slot.token == token && slot.detached && !slot.closed)?;
        let thing = std::mem::replace(&mut slot.thing, Thing::Nothing);
        let Thing::Connection(mut connection) = thing else {
            unreachable!("only a connection is detached");
        };
        // What was submitted since it was said is owed like the rest.
        let is_send = |op: &mut Op| matches!(op, Op::Send { connection, .. } if *connection == token);
        for op in self.queue.extract_if(.., is_send) {
            if let Op::Send { buffer, .. } = op {
                connection.outgoing.push_back(Outgoing::new(buffer));
            }
        }
        let unsent = connection.take_outgoing(&mut self.buffers);
        self.vacate(token.slot);
        Some(Detached {
            socket: Socket(connection.peer.0),
            unsent,
        })
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
        self.check_answered();
        self.check_taken();
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

    fn set_envelope(&mut self, buffer: &Buffer, envelope: &Envelope) {
        assert!(
            buffer.len == 0 || envelope.size > 0,
            "bytes are cut into datagrams of some size"
        );
        self.envelopes[usize::from(buffer.index)] = *envelope;
    }

    fn lease(&mut self, len: usize) -> Option<Buffer> {
        let famine = self.world.borrow_mut().withholds(|faults| faults.famine);
        if famine {
            return None;
        }
        let buffer = self.buffers.lease_for_user(len)?;
        self.with_user[usize::from(buffer.index)] = Some(None);
        Some(buffer)
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
        Details {
            local,
            send_queue,
            ..Details::default()
        }
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        // A test that has failed may be amid the world.
        if !std::thread::panicking() {
            for index in 0..self.slots.len() {
                self.let_go(index as u32, Closing::Now);
            }
        }
    }
}

/// The datagrams that are stored in a buffer: an empty one is one as well.
fn datagrams(bytes: &[u8], size: usize) -> impl Iterator<Item = &[u8]> {
    let empty = bytes.is_empty().then_some(bytes);
    empty.into_iter().chain(bytes.chunks(size.max(1)))
}

mod tests;
