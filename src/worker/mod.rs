//! The data plane: one thread, one driver, and nothing shared with other workers except the gates.
//!
//! Knows connections and sources of datagrams. Decides nothing itself: `echo` says what is sent
//! back, `policy` which peers are served and when a connection ends, and the driver does the rest.
//! Nothing on the path of a message allocates, locks or logs. No system call is made except through
//! the driver.
//!
//! This file is the loop and the table of slots. A turn waits, reads the clock once, handles every
//! completion, then fires timers. [`Worker::handle`] shows everything that can happen,
//! [`Worker::handle_command`] everything that the control plane can ask for. Continue in `streams`,
//! `listening` and `datagrams` for what is done about it, in [`mailbox`] for the conversation with
//! the control plane.

#![forbid(unsafe_code)]

mod ids;

mod gate;
mod pace;
pub(crate) mod sources;
pub(crate) mod timers;
pub(crate) mod transfer;

pub(crate) mod mailbox;

mod datagrams;
mod handover;
mod listening;
mod peers;
pub(crate) mod selection;
mod streams;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use crate::driver::{Closing, Completion, Driver, Op, Token};
use crate::policy::{CloseReason, Refusal};
use crate::stats::Counters;

use handover::HandingOver;
use ids::PeerIds;
use listening::ListeningSocket;
use mailbox::{Command, Gate, ListenerId, Mailbox, Report, Settings, SocketId};
use pace::Pace;
use peers::Search;
use sources::SourceTable;
use streams::Connection;
use timers::Timers;

/// One worker.
#[derive(Debug)]
pub struct Worker<D: Driver> {
    index: usize,
    driver: D,
    mailbox: Mailbox<D::Socket>,
    listeners: Vec<Option<Listener>>,
    // The index of each listener, and those that are free.
    listener_indexes: HashMap<ListenerId, u32>,
    free_indexes: Vec<u32>,
    // Settings have changed that apply to what is in the slots: see `apply_settings`.
    settings_changed: bool,
    slots: Slots,
    // Those that are neither being retired nor handed over.
    sockets: HashMap<SocketId, Token>,
    // The listening sockets that are paused because there was no permit, each once.
    without_permit: Vec<Token>,
    // The listening sockets that have another listener since this turn. What the driver has accepted
    // in this turn has a permit of the gate before.
    moved: Vec<(Token, Arc<Gate>)>,
    // Set only for slots that are not empty.
    timers: Timers,
    pace: Pace,
    ids: PeerIds,
    // Of the line about each connection that is closed.
    closed_level: log::Level,
    searches: VecDeque<Search>,
    // To be handed over once the completions of this turn are handled.
    hand_over_requested: bool,
    handing_over: Option<HandingOver<D::Socket>>,
    accept_error_logged: Option<Instant>,
    stopped: bool,
    // Kept between turns for their memory.
    completions: Vec<Completion>,
    due: Vec<u32>,
}

/// A listener as this worker knows it.
#[derive(Debug)]
struct Listener {
    id: ListenerId,
    settings: Settings,
    gate: Arc<Gate>,
    counters: Arc<Counters>,
    sources: SourceTable,
    // Its connections and sockets do not follow its settings yet.
    is_changed: bool,
}

impl Listener {
    fn new(id: ListenerId, settings: Settings, gate: Arc<Gate>, counters: Arc<Counters>) -> Self {
        Self {
            id,
            settings,
            gate,
            counters,
            sources: SourceTable::default(),
            is_changed: false,
        }
    }

    fn count_refused(&self, reason: Refusal, count: u64) {
        self.counters.refused[reason as usize].add(count);
    }

    fn count_closed(&self, reason: CloseReason) {
        self.counters.closed.add(1);
        self.counters.closed_by[reason as usize].add(1);
    }
}

/// What is in each of the driver's slots.
#[derive(Debug, Default)]
struct Slots {
    slots: Vec<Slot>,
    occupied: usize,
    // The number of slots that were visited one after the other, which takes time in proportion to
    // the number of connections.
    #[cfg(test)]
    visited: std::cell::Cell<usize>,
}

#[derive(Debug)]
struct Slot {
    token: Token,
    // The index of its listener in this worker.
    listener: u32,
    kind: SlotKind,
}

#[derive(Debug)]
enum SlotKind {
    Empty,
    Listening(ListeningSocket),
    Datagrams(SocketId),
    Connection(Connection),
}

impl Slot {
    const EMPTY: Self = Self {
        token: Token {
            slot: u32::MAX,
            generation: 0,
        },
        listener: 0,
        kind: SlotKind::Empty,
    };
}

impl Slots {
    /// The slot of this token, unless it is empty or another token's by now.
    fn get_mut(&mut self, token: Token) -> Option<&mut Slot> {
        self.slots
            .get_mut(token.slot as usize)
            .filter(|slot| slot.token == token)
    }

    /// The slot with this number.
    fn at(&self, number: usize) -> &Slot {
        &self.slots[number]
    }

    /// Puts something into the empty slot of its token.
    fn fill(&mut self, token: Token, listener: u32, kind: SlotKind) {
        let number = token.slot as usize;
        if self.slots.len() <= number {
            self.slots.resize_with(number + 1, || Slot::EMPTY);
        }
        debug_assert!(matches!(self.slots[number].kind, SlotKind::Empty));
        self.occupied += 1;
        self.slots[number] = Slot {
            token,
            listener,
            kind,
        };
    }

    /// Takes out what is in the slot of this token.
    fn take(&mut self, token: Token) -> Option<Slot> {
        let slot = self.get_mut(token)?;
        let taken = std::mem::replace(slot, Slot::EMPTY);
        self.occupied -= 1;
        Some(taken)
    }

    fn is_empty(&self) -> bool {
        self.occupied == 0
    }

    /// The number of slots, the empty ones included.
    fn len(&self) -> usize {
        self.slots.len()
    }

    /// Visits the slots with these numbers. Only for what is rare, or is done in parts.
    fn range(&self, numbers: std::ops::Range<usize>) -> impl Iterator<Item = &Slot> {
        self.count_visits(numbers.len());
        self.slots[numbers].iter()
    }

    /// Visits all slots. Only for what is rare: there may be thousands of connections.
    fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.range(0..self.len())
    }

    #[cfg(test)]
    fn count_visits(&self, count: usize) {
        self.visited.set(self.visited.get() + count);
    }

    #[cfg(not(test))]
    fn count_visits(&self, _: usize) {}
}

impl<D: Driver> Worker<D> {
    /// The worker with this index, of `workers` in all. It spins for `busy_poll` before it sleeps.
    pub fn new(
        index: usize,
        workers: usize,
        busy_poll: Duration,
        driver: D,
        mailbox: Mailbox<D::Socket>,
    ) -> Self {
        let now = driver.now();
        Self {
            index,
            driver,
            mailbox,
            listeners: Vec::new(),
            listener_indexes: HashMap::new(),
            free_indexes: Vec::new(),
            settings_changed: false,
            slots: Slots::default(),
            sockets: HashMap::new(),
            without_permit: Vec::new(),
            moved: Vec::new(),
            timers: Timers::new(now),
            pace: Pace::new(busy_poll, now),
            ids: PeerIds::new(index, workers),
            closed_level: log::Level::Debug,
            searches: VecDeque::new(),
            hand_over_requested: false,
            handing_over: None,
            accept_error_logged: None,
            stopped: false,
            // Room for most turns from the beginning.
            completions: Vec::with_capacity(1024),
            due: Vec::with_capacity(1024),
        }
    }

    /// Serves until [`Command::Stop`].
    ///
    /// # Errors
    /// Only when the driver can't continue.
    pub fn run(&mut self) -> io::Result<()> {
        while !self.stopped {
            self.turn()?;
        }
        Ok(())
    }

    /// One turn of the loop.
    ///
    /// # Errors
    /// Only when the driver can't continue.
    pub fn turn(&mut self) -> io::Result<()> {
        let until = self
            .pace
            .wait_until(self.timers.next(), !self.searches.is_empty());
        let mut completions = std::mem::take(&mut self.completions);
        self.driver.wait(until, &mut completions)?;
        let now = self.driver.now();
        let is_event = |completion: &Completion| !matches!(completion, Completion::Woken);
        self.pace.handle_turn(now, completions.iter().any(is_event));
        for completion in completions.drain(..) {
            self.handle(now, completion);
        }
        self.completions = completions;
        self.moved.clear();
        // Timers come after completions: what has just arrived puts a timeout off.
        self.fire_timers(now);
        self.continue_search(now);
        // Only now is all answered that this turn has brought.
        if std::mem::take(&mut self.hand_over_requested) {
            self.hand_over();
        }
        self.complete_hand_over();
        Ok(())
    }

    /// Everything that can happen.
    fn handle(&mut self, now: Instant, completion: Completion) {
        match completion {
            // The path of a message comes first.
            Completion::Received { connection, buffer } => {
                self.handle_received(now, connection, buffer);
            }
            Completion::Sent { connection, len } => self.handle_sent(now, connection, len),
            Completion::Relayed {
                connection,
                received,
                sent,
            } => self.handle_relayed(now, connection, received, sent),
            Completion::Datagrams { socket, buffer } => self.handle_datagrams(now, socket, buffer),
            Completion::DatagramSent {
                socket,
                count,
                result,
            } => self.handle_datagrams_sent(socket, count, &result),
            Completion::Accepted {
                listener,
                connection,
                peer,
                has_permit,
            } => self.handle_accepted(now, listener, connection, peer, has_permit),
            Completion::Ended { connection } => self.handle_ended(now, connection),
            Completion::Stalled { connection } => self.handle_stalled(now, connection),
            Completion::Failed { connection, error } => self.handle_failed(connection, &error),
            Completion::AcceptPaused { listener, error } => {
                self.handle_accept_paused(now, listener, error);
            }
            Completion::Closed { token } => self.handle_closed(now, token),
            Completion::Detached { connection } => self.handle_detached(now, connection),
            Completion::Woken => self.handle_woken(now),
        }
    }

    /// A command was sent, or a permit was returned.
    fn handle_woken(&mut self, now: Instant) {
        self.resume_accepting();
        loop {
            match self.mailbox.commands.try_recv() {
                Ok(command) => self.handle_command(now, command),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    self.stopped = true;
                    break;
                }
            }
        }
        self.apply_settings(now);
    }

    /// Everything that the control plane can ask for.
    fn handle_command(&mut self, now: Instant, command: Command<D::Socket>) {
        match command {
            // A listener is configured before it gets sockets, and again when its settings change.
            Command::Configure {
                listener,
                settings,
                gate,
                counters,
            } => self.configure(Listener::new(listener, settings, gate, counters)),
            Command::LogClosed(level) => self.closed_level = level,
            Command::AddSocket {
                listener,
                id,
                kind,
                socket,
            } => self.add_socket(listener, id, kind, socket),
            Command::MoveSocket { id, listener } => self.move_socket(id, listener),
            Command::RetireSocket { id } => self.retire_socket(now, id),
            Command::ConfirmRetired { listener } => {
                self.mailbox.report(Report::ListenerRetired { listener });
            }
            Command::RemoveListener { listener } => self.remove_listener(listener),
            Command::ListPeers {
                query,
                selection,
                order,
                after,
                max,
            } => self
                .searches
                .push_back(Search::list(query, selection, order, after, max)),
            Command::ClosePeers {
                query,
                selection,
                dry_run,
                max,
            } => self
                .searches
                .push_back(Search::close(query, selection, dry_run, max)),
            Command::Finish => self.finish_all(now),
            Command::EndConnections { listener, how } => {
                self.searches.push_back(Search::end(listener, how));
            }
            Command::HandOver => self.hand_over_requested = true,
            Command::TakeOver { connection } => self.take_over(now, connection),
            Command::AddSource { listener, source } => self.add_source(listener, source),
            Command::ContinueIdsAfter { last } => self.ids.continue_after(last, self.index),
            // Settings apply to listening sockets before anything else is accepted.
            Command::Confirm { query } => self.mailbox.report(Report::Confirmed { query }),
            Command::Stop => self.stopped = true,
            Command::Ping => self.mailbox.report(Report::Alive { worker: self.index }),
        }
    }

    fn fire_timers(&mut self, now: Instant) {
        let mut due = std::mem::take(&mut self.due);
        self.timers.fire(now, &mut due);
        for number in due.drain(..) {
            let slot = self.slots.at(number as usize);
            let token = slot.token;
            match slot.kind {
                SlotKind::Connection(_) => self.check_timeouts(now, token),
                SlotKind::Listening(_) => self.driver.submit(Op::Accept { listener: token }),
                // It is retired, and the network does not take its last answers.
                SlotKind::Datagrams(_) => self.driver.submit(Op::Close {
                    token,
                    how: Closing::Now,
                }),
                SlotKind::Empty => {}
            }
        }
        self.due = due;
    }

    fn handle_closed(&mut self, now: Instant, token: Token) {
        let Some(slot) = self.empty_slot(token) else {
            return;
        };
        match slot.kind {
            SlotKind::Empty => {}
            SlotKind::Connection(connection) => {
                if let Some(listener) = &self.listeners[slot.listener as usize] {
                    connection.handle_closed(now, listener, self.closed_level);
                }
            }
            SlotKind::Listening(ListeningSocket { id, .. }) | SlotKind::Datagrams(id) => {
                self.handle_socket_closed(token, id);
            }
        }
    }

    /// Takes out what is in the slot of this token, and stops its timer.
    fn empty_slot(&mut self, token: Token) -> Option<Slot> {
        let slot = self.slots.take(token)?;
        self.timers.clear(token.slot);
        Some(slot)
    }

    /// What is in the slot of this token, with its listener; `None` if the token was closed.
    fn slot(&mut self, token: Token) -> Option<(&mut Slot, &mut Listener, &mut D)> {
        let slot = self.slots.get_mut(token)?;
        let listener = self.listeners[slot.listener as usize].as_mut()?;
        Some((slot, listener, &mut self.driver))
    }

    /// The listener with this id and its index.
    fn listener(&mut self, id: ListenerId) -> Option<(u32, &mut Listener)> {
        let index = *self.listener_indexes.get(&id)?;
        Some((index, self.listeners[index as usize].as_mut()?))
    }
}

#[cfg(test)]
mod tests;
