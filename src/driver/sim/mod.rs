//! The simulated driver: a network in memory, with simulated time and seeded faults.
//!
//! [`Network`] is the peers' side, held by the test; [`Sim`] is the driver on that network, owned
//! by the code under test. The clock is advanced by waiting, or by the test. The same seed gives
//! the same history, and the network prints its seed when a test fails. The driver differs from
//! epoll as much as the seam allows: completions of different connections are reported in random
//! order, few at a time; bytes that were taken before a `Pause` are still delivered after it; and
//! datagrams of one sender are delivered in one buffer or in several.
//!
//! It also checks its user, in `check`. It panics when
//! - a buffer is returned twice, or was dropped;
//! - receiving is requested twice;
//! - bytes of a relaying connection are not answered before the next `wait`;
//! - a detached connection is not taken before the next `wait`;
//! - a token is used after its connection was taken, or in a later turn than its `Close`.
//!
//! It makes no system calls, except for its waker and the start time of the clock. Its own tests
//! are in `tests`; that it keeps the promises of a driver is tested in `conformance`.

mod check;
mod connection;
mod faults;
mod network;
mod work;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use self::connection::{Connection, Outgoing};
pub(crate) use self::faults::Faults;
pub(crate) use self::network::{Client, End, Network, Peer, Socket};
use self::network::{Wire, World};
use super::buffers::{BUFFER_COUNT, Buffers, Memory};
use super::{
    Buffer, Closing, Completion, Detached, Details, Driver, Envelope, Op, Permits, Token, Waker,
};

/// The most completions that one `wait` reports.
const COMPLETIONS_PER_WAIT_MAX: usize = 64;

/// A driver on a [`Network`].
pub(crate) struct Sim {
    world: Rc<RefCell<World>>,
    slots: Vec<Slot>,
    vacant: Vec<u32>,
    queue: Vec<Op>,
    turn: u64,
    closed_this_turn: Vec<Token>,
    /// Operations on closed tokens are ignored instead of a panic.
    closed_tokens_allowed: bool,
    buffers: Buffers,
    /// For each buffer: whether the user holds it, and which token its bytes were received on; a
    /// buffer that the user leased has no token.
    held_by_user: Vec<Option<Option<Token>>>,
    envelopes: Vec<Envelope>,
    /// Buffers that are never used, because the test wants a driver with fewer.
    reserved: Vec<Buffer>,
    waker: Waker,
}

/// One entry of the driver's table. A token names a slot and its generation.
struct Slot {
    token: Token,
    resource: Resource,
    /// The user has submitted `Accept`, `Receive`, `Relay` or `ReceiveFrom`, and no completion that
    /// ends it has been reported.
    requested: bool,
    /// The request is a `Relay`.
    relay_requested: bool,
    /// The driver accepts or receives. It lags behind `requested`, which is set on submission.
    active: bool,
    /// `Close` was submitted.
    close_requested: bool,
    /// That `Close` is `WhenDrained`.
    drain_requested: bool,
    /// The driver serves this many queued clients or datagrams, then closes.
    draining: Option<usize>,
    /// How many sends were submitted whose completion is not yet reported.
    sends: usize,
    /// `Detached` has been reported.
    detached: bool,
    /// The turn in which `Ended` or `Failed` was reported.
    end_reported_in: Option<u64>,
    /// Completions that are not yet reported.
    ready: VecDeque<Completion>,
}

/// What a slot holds. The user may still use a slot whose resource is closed, until `Closed` is
/// reported.
enum Resource {
    None,
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

impl Resource {
    /// The listening or datagram socket.
    fn socket(&self) -> Option<Socket> {
        match self {
            Self::Listener { socket, .. } | Self::Datagrams { socket, .. } => Some(*socket),
            Self::None | Self::Connection(_) => None,
        }
    }
}

impl Slot {
    fn vacant(token: Token) -> Self {
        Self {
            token,
            resource: Resource::None,
            requested: false,
            relay_requested: false,
            active: false,
            close_requested: false,
            drain_requested: false,
            draining: None,
            sends: 0,
            detached: false,
            end_reported_in: None,
            ready: VecDeque::new(),
        }
    }

    /// This many of what was queued when the drain began are served.
    fn count_drained(&mut self, count: usize) {
        if let Some(left) = &mut self.draining {
            *left = left.saturating_sub(count);
        }
    }
}

impl Sim {
    pub(crate) fn new(network: &Network) -> Self {
        Self::with_buffers(network, BUFFER_COUNT)
    }

    /// A driver with `count` buffers.
    pub(crate) fn with_buffers(network: &Network, count: u16) -> Self {
        let mut buffers = Buffers::new().expect("buffer memory is available");
        let reserved = (count..BUFFER_COUNT).map(|_| buffers.lease(0)).collect();
        Self {
            world: Rc::clone(&network.0),
            slots: vec![],
            vacant: vec![],
            queue: vec![],
            turn: 0,
            closed_this_turn: vec![],
            closed_tokens_allowed: false,
            buffers,
            held_by_user: vec![None; usize::from(BUFFER_COUNT)],
            envelopes: vec![Envelope::EMPTY; usize::from(BUFFER_COUNT)],
            reserved,
            waker: Waker::new().expect("a descriptor is available"),
        }
    }

    /// From now on an operation on a closed token is ignored, as the seam says, instead of a panic.
    pub(crate) fn allow_closed_tokens(&mut self) {
        self.closed_tokens_allowed = true;
    }

    /// Panics unless every buffer has been returned to the pool.
    pub(crate) fn assert_all_returned(&self) {
        let leased = usize::from(BUFFER_COUNT) - self.reserved.len() - self.buffers.free();
        let held_by_user: Vec<usize> = (0..self.held_by_user.len())
            .filter(|&index| self.held_by_user[index].is_some())
            .collect();
        assert!(
            held_by_user.is_empty(),
            "buffers {held_by_user:?} are still held by the user, or were dropped"
        );
        assert!(leased == 0, "{leased} buffers are still held by the driver");
    }

    fn allocate(&mut self, resource: Resource) -> Token {
        let index = self.vacant.pop().unwrap_or_else(|| {
            let slot = self.slots.len() as u32;
            self.slots.push(Slot::vacant(Token {
                slot,
                generation: 0,
            }));
            slot
        });
        let slot = &mut self.slots[index as usize];
        slot.resource = resource;
        slot.token
    }

    /// Frees a slot for a new token of the next generation.
    fn release_slot(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        *slot = Slot::vacant(slot.token.next());
        self.vacant.push(index);
    }

    /// Executes an operation at the start of a `wait`. By then its connection may have failed, or
    /// have been closed by an operation before it in the queue: then it is discarded.
    fn execute(&mut self, op: Op) {
        let token = match &op {
            Op::Accept { listener: token }
            | Op::ReceiveFrom { socket: token }
            | Op::SendTo { socket: token, .. } => *token,
            Op::Receive { connection: token }
            | Op::ReceiveAlways { connection: token }
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
            return self.discard(op);
        };
        match (op, &mut slot.resource) {
            (Op::Accept { .. }, Resource::Listener { .. })
            | (Op::ReceiveFrom { .. }, Resource::Datagrams { .. }) => {
                slot.active = true;
            }
            // A connection that has failed, or is being detached, receives nothing more.
            (
                op @ (Op::Receive { .. } | Op::ReceiveAlways { .. }),
                Resource::Connection(connection),
            ) => {
                connection.receives_always |= matches!(op, Op::ReceiveAlways { .. });
                slot.active = !connection.failed && !connection.detaching;
                connection.relay_allowed = false;
            }
            (Op::Relay { .. }, Resource::Connection(connection)) => {
                slot.active = !connection.failed && !connection.detaching;
                connection.relay_allowed = true;
            }
            (Op::Pause { .. }, Resource::Connection(_)) => slot.active = false,
            (Op::Send { buffer, .. }, Resource::Connection(connection)) if !connection.failed => {
                assert!(!connection.shut_down, "Send on {token:?} after ShutDown");
                connection.outgoing.push_back(Outgoing::new(buffer));
            }
            (Op::ShutDown { .. }, Resource::Connection(connection)) => connection.shut_down = true,
            (Op::Detach { .. }, Resource::Connection(connection)) => {
                connection.detaching = true;
                slot.active = false;
            }
            (Op::SendTo { buffer, .. }, Resource::Datagrams { outgoing, .. }) => {
                outgoing.push_back(buffer)
            }
            // Drains also a paused listener; `accept` and `move_datagrams` then close it.
            (
                Op::Close {
                    how: Closing::WhenDrained,
                    ..
                },
                _,
            ) => {
                let socket = slot.resource.socket();
                slot.draining = socket.map(|socket| self.world.borrow().queued(socket));
                slot.active = true;
                slot.requested = true;
            }
            // Answers that were submitted before the `Close` are sent first (promise 13).
            (Op::Close { how, .. }, _) => {
                self.send_answers(token.slot as usize);
                self.close_resource(token.slot, how);
                self.slots[token.slot as usize]
                    .ready
                    .push_back(Completion::Closed { token });
            }
            (op, _) => self.discard(op),
        }
    }

    /// Ignores an operation, and returns its buffer to the pool.
    fn discard(&mut self, op: Op) {
        if let Op::Send { buffer, .. } | Op::SendTo { buffer, .. } = op {
            self.buffers.recycle(buffer);
        }
    }

    /// Closes the resource of a slot and discards its unreported completions. If another process
    /// holds the same listening or datagram socket, clients and datagrams that were taken from the
    /// queue and not reported are put back for that process.
    fn close_resource(&mut self, index: u32, how: Closing) {
        let slot = &mut self.slots[index as usize];
        slot.active = false;
        let ready = std::mem::take(&mut slot.ready);
        let resource = std::mem::replace(&mut slot.resource, Resource::None);
        // Backwards, because each one is put back at the front of its queue.
        for completion in ready.into_iter().rev() {
            match completion {
                Completion::Datagrams { buffer, .. } => {
                    if let Resource::Datagrams { socket, .. } = &resource {
                        let envelope = &self.envelopes[usize::from(buffer.index)];
                        let mut world = self.world.borrow_mut();
                        world.requeue_datagrams(*socket, envelope, self.buffers.bytes(&buffer));
                    }
                    self.buffers.recycle(buffer);
                }
                Completion::Received { buffer, .. } => self.buffers.recycle(buffer),
                Completion::Accepted { connection, .. } => {
                    // The user does not know this connection: it is queued again, or else reset.
                    let accepted = &mut self.slots[connection.slot as usize].resource;
                    if let (Resource::Listener { socket, .. }, Resource::Connection(client)) =
                        (&resource, &*accepted)
                        && self.world.borrow_mut().requeue_client(*socket, client.peer)
                    {
                        *accepted = Resource::None;
                    }
                    self.close_resource(connection.slot, Closing::Reset);
                    self.release_slot(connection.slot);
                    if let Resource::Listener {
                        permits: Some(permits),
                        ..
                    } = &resource
                    {
                        permits.give_back();
                    }
                }
                _ => {}
            }
        }
        match resource {
            Resource::None => {}
            Resource::Listener { socket, .. } => self.world.borrow_mut().close_socket(socket),
            Resource::Datagrams { socket, outgoing } => {
                outgoing
                    .into_iter()
                    .for_each(|buffer| self.buffers.recycle(buffer));
                self.world.borrow_mut().close_socket(socket);
            }
            Resource::Connection(mut connection) => {
                connection.drop_outgoing(&mut self.buffers);
                self.world
                    .borrow_mut()
                    .close_connection(connection.peer, how);
            }
        }
    }

    /// Reports a random number of completions from randomly chosen slots. Those of one slot keep
    /// their order.
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
            let completion = slot
                .ready
                .pop_front()
                .expect("a slot without completions is not chosen");
            if slot.ready.is_empty() {
                waiting.swap_remove(chosen);
            }
            // Record what the user knows from now on, for the checks above.
            match &completion {
                Completion::Received {
                    buffer,
                    connection: token,
                }
                | Completion::Datagrams {
                    buffer,
                    socket: token,
                } => {
                    self.held_by_user[usize::from(buffer.index)] = Some(Some(*token));
                }
                Completion::Ended { .. } | Completion::Failed { .. } => {
                    slot.requested = false;
                    slot.end_reported_in = Some(self.turn);
                    if matches!(completion, Completion::Failed { .. }) {
                        slot.sends = 0;
                    }
                }
                Completion::Sent { .. } => slot.sends -= 1,
                Completion::AcceptPaused { .. } => slot.requested = false,
                Completion::Detached { .. } => slot.detached = true,
                Completion::Closed { token } => self.release_slot(token.slot),
                _ => {}
            }
            self.mark_accept_reported(&completion);
            done.push(completion);
        }
    }

    /// From now on other completions of the new connection may be reported.
    fn mark_accept_reported(&mut self, completion: &Completion) {
        if let Completion::Accepted { connection, .. } = completion
            && let Resource::Connection(connection) =
                &mut self.slots[connection.slot as usize].resource
        {
            connection.accept_reported = true;
        }
    }

    /// Asks the network about an open connection.
    fn wire<T>(&self, connection: Token, read: impl FnOnce(&Wire) -> T) -> Option<T> {
        let slot = self
            .slots
            .get(connection.slot as usize)
            .filter(|slot| slot.token == connection)?;
        let Resource::Connection(connection) = &slot.resource else {
            return None;
        };
        Some(read(&self.world.borrow().wires[connection.peer.0]))
    }
}

impl Driver for Sim {
    type Socket = Socket;

    fn add_listener(&mut self, socket: Socket, permits: Option<Arc<Permits>>) -> Token {
        self.allocate(Resource::Listener { socket, permits })
    }

    fn set_permits(&mut self, listener: Token, new: Option<Arc<Permits>>) {
        let slot = self
            .slots
            .get_mut(listener.slot as usize)
            .filter(|slot| slot.token == listener);
        if let Some(Resource::Listener { permits, .. }) = slot.map(|slot| &mut slot.resource) {
            *permits = new;
        }
    }

    fn add_datagram_socket(&mut self, socket: Socket) -> Token {
        self.allocate(Resource::Datagrams {
            socket,
            outgoing: VecDeque::new(),
        })
    }

    fn add_connection(&mut self, socket: Socket, unsent: Vec<u8>) -> Token {
        let mut connection = Connection::new(Peer(socket.0));
        connection.accept_reported = true;
        connection.add_unsent(unsent);
        let sends = connection.outgoing.len();
        let token = self.allocate(Resource::Connection(connection));
        self.slots[token.slot as usize].sends = sends;
        token
    }

    fn take(&mut self, token: Token) -> Option<Detached<Socket>> {
        let slot = self
            .slots
            .get_mut(token.slot as usize)
            .filter(|slot| slot.token == token && slot.detached && !slot.close_requested)?;
        let resource = std::mem::replace(&mut slot.resource, Resource::None);
        let Resource::Connection(mut connection) = resource else {
            unreachable!("only a connection can be detached");
        };
        // Sends submitted since `Detached` was reported are still in the queue; they are unsent,
        // too.
        let is_send =
            |op: &mut Op| matches!(op, Op::Send { connection, .. } if *connection == token);
        for op in self.queue.extract_if(.., is_send) {
            if let Op::Send { buffer, .. } = op {
                connection.outgoing.push_back(Outgoing::new(buffer));
            }
        }
        let unsent = connection.take_outgoing(&mut self.buffers);
        self.release_slot(token.slot);
        Some(Detached {
            socket: Socket(connection.peer.0),
            unsent,
        })
    }

    fn submit(&mut self, op: Op) {
        if self.check_user(&op) {
            self.queue.push(op);
        } else {
            self.discard(op);
        }
    }

    /// Waits in simulated time: when nothing is ready, the clock is advanced to the next arrival.
    /// With no `until`, it returns with nothing once no arrival is pending.
    fn wait(&mut self, until: Option<Instant>, done: &mut Vec<Completion>) -> io::Result<()> {
        let before = done.len();
        self.turn += 1;
        self.closed_this_turn.clear();
        self.check_answered();
        self.check_taken();
        for op in std::mem::take(&mut self.queue) {
            self.execute(op);
        }
        loop {
            self.work();
            if self.waker.drain() {
                done.push(Completion::Woken);
            }
            self.deliver(done);
            if done.len() > before || !self.world.borrow_mut().advance_clock(until) {
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
            "a datagram size of 0 for a buffer that holds bytes"
        );
        self.envelopes[usize::from(buffer.index)] = *envelope;
    }

    fn lease(&mut self, len: usize) -> Option<Buffer> {
        let famine = self.world.borrow_mut().delays(|faults| faults.famine);
        if famine {
            return None;
        }
        let buffer = self.buffers.lease_for_user(len)?;
        self.held_by_user[usize::from(buffer.index)] = Some(None);
        Some(buffer)
    }

    fn recycle(&mut self, buffer: Buffer) {
        self.take_from_user(&buffer, "recycle");
        self.buffers.recycle(buffer);
    }

    fn peer_progress(&self, connection: Token) -> u64 {
        self.wire(connection, |wire| wire.read_bytes).unwrap_or(0)
    }

    fn details(&self, connection: Token) -> Details {
        let read = |wire: &Wire| (wire.local, wire.to_peer.len() as u32);
        let (local, send_queue) = self.wire(connection, read).unzip();
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
        // A failed test may still have the network borrowed: a second panic would abort.
        if !std::thread::panicking() {
            for index in 0..self.slots.len() {
                self.close_resource(index as u32, Closing::Now);
            }
        }
    }
}

mod tests;
