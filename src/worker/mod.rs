//! The data plane: one thread, one driver, nothing shared with other workers but the gates.
//!
//! Knows connections and datagram sources; decides nothing itself: `echo` says what comes back,
//! `policy` who may talk and for how long, the driver does the rest. Nothing on the path of a
//! message allocates, locks or logs. Never makes a system call but through its driver.
//!
//! A turn: wait, read the clock once, handle what is done, fire timers. [`Worker::handle`] shows
//! all that can happen. Read on in `streams` and `datagrams` for what is done about it, in
//! [`mailbox`] for the conversation with the control plane.

#![forbid(unsafe_code)]

mod datagrams;
pub mod handover;
pub mod mailbox;
mod pace;
pub mod sources;
mod streams;
pub mod timers;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use crate::driver::{Closing, Completion, Driver, Op, Token};
use crate::policy::Refusal;
use crate::stats::Counters;

use handover::HandingOver;
use mailbox::{Command, Gate, Kind, ListenerId, Mailbox, Peer, Report, Settings, SocketId};
use pace::Pace;
use sources::SourceTable;
use streams::Connection;
use timers::Timers;

/// So many slots are looked at in one turn when peers are listed, so that nobody waits for it.
const LISTED_PER_TURN: usize = 256;

/// After an accept that failed for want of descriptors or memory, the listener rests this long, and
/// longer each time it fails again.
const ACCEPT_PAUSE_MIN: Duration = Duration::from_millis(10);
const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// That is logged no more often than this.
const ACCEPT_LOG_INTERVAL: Duration = Duration::from_secs(5);

/// One worker.
#[derive(Debug)]
pub struct Worker<D: Driver> {
    index: usize,
    driver: D,
    mailbox: Mailbox<D::Socket>,
    listeners: Vec<Option<Listener>>,
    // What is in each of the driver's slots.
    places: Vec<Place>,
    timers: Timers,
    pace: Pace,
    ids: Ids,
    listings: VecDeque<Listing>,
    // All is to be given away, when what this turn has brought is answered.
    hand_over_due: bool,
    // What is being given away.
    handing_over: Option<HandingOver<D::Socket>>,
    accept_logged: Option<Instant>,
    stopped: bool,
    // Kept between turns for their memory.
    done: Vec<Completion>,
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
}

impl Listener {
    fn refuse(&self, reason: Refusal) {
        self.refuse_all(reason, 1);
    }

    fn refuse_all(&self, reason: Refusal, count: u64) {
        self.counters.refused[reason as usize].add(count);
    }
}

#[derive(Debug)]
struct Place {
    token: Token,
    // The index of its listener in this worker.
    listener: u32,
    tenant: Tenant,
}

#[derive(Debug)]
enum Tenant {
    Nobody,
    /// A listening socket.
    Door(Door),
    /// A datagram socket.
    Datagrams(SocketId),
    /// A client.
    Connection(Connection),
}

#[derive(Debug)]
struct Door {
    id: SocketId,
    // Waits for a permit.
    rests: bool,
    pause: Duration,
}

const NOWHERE: Token = Token {
    slot: u32::MAX,
    generation: 0,
};

/// Numbers for peers: unique in the process, small, and made without asking other workers.
#[derive(Debug)]
struct Ids {
    next: u64,
    step: u64,
}

impl Ids {
    fn take(&mut self) -> u64 {
        let id = self.next;
        self.next += self.step;
        id
    }
}

/// A list of peers in the making.
#[derive(Debug)]
struct Listing {
    query: u64,
    next_slot: usize,
}

impl<D: Driver> Worker<D> {
    /// The worker with this index out of so many. It spins for `busy_poll` before it sleeps.
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
            places: Vec::new(),
            timers: Timers::new(now),
            pace: Pace::new(busy_poll, now),
            ids: Ids {
                next: index as u64 + 1,
                step: workers as u64,
            },
            listings: VecDeque::new(),
            hand_over_due: false,
            handing_over: None,
            accept_logged: None,
            stopped: false,
            done: Vec::with_capacity(1024),
            due: Vec::with_capacity(1024),
        }
    }

    /// Serves until told to stop.
    ///
    /// # Errors
    /// Only when the driver can't go on.
    pub fn run(&mut self) -> io::Result<()> {
        while !self.stopped {
            self.turn()?;
        }
        Ok(())
    }

    /// One turn of the loop.
    ///
    /// # Errors
    /// Only when the driver can't go on.
    pub fn turn(&mut self) -> io::Result<()> {
        let until = self
            .pace
            .wait_until(self.timers.next(), !self.listings.is_empty());
        let mut done = std::mem::take(&mut self.done);
        self.driver.wait(until, &mut done)?;
        let now = self.driver.now();
        let event = done.iter().any(|done| !matches!(done, Completion::Woken));
        self.pace.handle_turn(now, event);
        for completion in done.drain(..) {
            self.handle(now, completion);
        }
        self.done = done;
        self.fire_timers(now);
        self.go_on_listing(now);
        if std::mem::take(&mut self.hand_over_due) {
            self.hand_over();
        }
        self.go_on_handing_over();
        Ok(())
    }

    /// All that can happen.
    fn handle(&mut self, now: Instant, completion: Completion) {
        match completion {
            Completion::Received { connection, buffer } => self.received(now, connection, buffer),
            Completion::Sent { connection, len } => self.sent(now, connection, len),
            Completion::Relayed {
                connection,
                received,
                sent,
            } => self.relayed(now, connection, received, sent),
            Completion::Datagrams { socket, buffer } => self.datagrams(now, socket, buffer),
            Completion::DatagramSent {
                socket,
                count,
                result,
            } => self.datagram_sent(socket, count, &result),
            Completion::Accepted {
                listener,
                connection,
                peer,
                has_permit,
            } => self.accepted(now, listener, connection, peer, has_permit),
            Completion::Ended { connection } => self.ended(now, connection),
            Completion::Stalled { connection } => self.stalled(now, connection),
            Completion::Failed { connection, error } => self.failed(connection, &error),
            Completion::AcceptPaused { listener, error } => {
                self.accept_rested(now, listener, error)
            }
            Completion::Closed { token } => self.closed(token),
            Completion::Detached { connection } => self.detached(now, connection),
            Completion::Woken => self.woken(now),
        }
    }

    /// Who lives in the token's slot, and its listener; none if that was another tenant.
    fn place(&mut self, token: Token) -> Option<(&mut Place, &mut Listener, &mut D)> {
        let place = self
            .places
            .get_mut(token.slot as usize)
            .filter(|place| place.token == token)?;
        let listener = self.listeners[place.listener as usize].as_mut()?;
        Some((place, listener, &mut self.driver))
    }

    fn move_in(&mut self, token: Token, listener: u32, tenant: Tenant) {
        let slot = token.slot as usize;
        if self.places.len() <= slot {
            let empty = || Place {
                token: NOWHERE,
                listener: 0,
                tenant: Tenant::Nobody,
            };
            self.places.resize_with(slot + 1, empty);
        }
        self.places[slot] = Place {
            token,
            listener,
            tenant,
        };
    }

    fn closed(&mut self, token: Token) {
        let handing_over = self.handing_over.is_some();
        let Some((place, listener, _)) = self.place(token) else {
            return;
        };
        match std::mem::replace(&mut place.tenant, Tenant::Nobody) {
            Tenant::Nobody => {}
            Tenant::Connection(connection) => connection.leave(listener),
            // It is not retired: somebody else will serve it.
            Tenant::Door(_) | Tenant::Datagrams(_) if handing_over => {}
            Tenant::Door(Door { id, .. }) | Tenant::Datagrams(id) => {
                self.mailbox.report(Report::Retired {
                    worker: self.index,
                    id,
                });
            }
        }
        self.vacate(token);
    }

    /// Nobody lives in the token's slot any more.
    fn vacate(&mut self, token: Token) {
        self.places[token.slot as usize].token = NOWHERE;
        self.timers.clear(token.slot);
    }

    fn accept_rested(&mut self, now: Instant, token: Token, error: Option<io::Error>) {
        let Some((
            Place {
                tenant: Tenant::Door(door),
                ..
            },
            listener,
            _,
        )) = self.place(token)
        else {
            return;
        };
        let Some(error) = error else {
            // The permit may have come back while this news was on its way.
            if listener.gate.permits.is_free_or_be_woken() {
                self.driver.submit(Op::Accept { listener: token });
            } else {
                door.rests = true;
            }
            return;
        };
        let pause = door.pause;
        door.pause = (pause * 2).min(ACCEPT_PAUSE_MAX);
        let name = listener.settings.name.clone();
        self.timers.set(token.slot, now + pause);
        if self
            .accept_logged
            .is_none_or(|logged| now >= logged + ACCEPT_LOG_INTERVAL)
        {
            self.accept_logged = Some(now);
            log::warn!(
                listener = &*name;
                "listener \"{name}\": accept: {error}; clients wait in the backlog until there is room again \
                 (LimitNOFILE= in the unit, max-connections in the configuration)"
            );
        }
    }

    fn fire_timers(&mut self, now: Instant) {
        let mut due = std::mem::take(&mut self.due);
        self.timers.fire(now, &mut due);
        for slot in due.drain(..) {
            let place = &self.places[slot as usize];
            let token = place.token;
            match place.tenant {
                Tenant::Connection(_) => self.judge(now, token),
                Tenant::Door(_) => self.driver.submit(Op::Accept { listener: token }),
                Tenant::Datagrams(_) | Tenant::Nobody => {}
            }
        }
        self.due = due;
    }

    /// A command has come, or a permit back.
    fn woken(&mut self, now: Instant) {
        for place in &mut self.places {
            if let Tenant::Door(door) = &mut place.tenant
                && std::mem::take(&mut door.rests)
            {
                self.driver.submit(Op::Accept {
                    listener: place.token,
                });
            }
        }
        loop {
            match self.mailbox.commands.try_recv() {
                Ok(command) => self.obey(now, command),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.stopped = true;
                    return;
                }
            }
        }
    }

    fn obey(&mut self, now: Instant, command: Command<D::Socket>) {
        match command {
            Command::Configure {
                listener,
                settings,
                gate,
                counters,
            } => {
                self.configure(
                    now,
                    Listener {
                        id: listener,
                        settings,
                        gate,
                        counters,
                        sources: SourceTable::default(),
                    },
                );
            }
            Command::AddSocket {
                listener,
                id,
                kind,
                socket,
            } => self.add_socket(listener, id, kind, socket),
            Command::RetireSocket { id } => {
                let socket = self.places.iter().find(|place| match &place.tenant {
                    Tenant::Door(door) => door.id == id,
                    Tenant::Datagrams(socket) => *socket == id,
                    _ => false,
                });
                match socket {
                    Some(place) => {
                        // Draining goes on by itself, also where an accept was to be tried again.
                        self.timers.clear(place.token.slot);
                        self.driver.submit(Op::Close {
                            token: place.token,
                            how: Closing::WhenDrained,
                        });
                    }
                    None => self.mailbox.report(Report::Retired {
                        worker: self.index,
                        id,
                    }),
                }
            }
            Command::Forget { listener } => {
                if let Some(index) = self.index_of(listener) {
                    self.listeners[index as usize] = None;
                }
            }
            Command::ListPeers { query } => self.listings.push_back(Listing {
                query,
                next_slot: 0,
            }),
            Command::ClosePeers { query, ids } => {
                let closed = self.close_peers(&ids);
                self.mailbox.report(Report::PeersClosed { query, closed });
            }
            Command::Finish => self.finish_all(now),
            Command::HandOver => self.hand_over_due = true,
            Command::TakeOver {
                connection,
                admission,
            } => self.take_over(now, connection, admission),
            Command::Remember { listener, source } => self.remember(listener, source),
            Command::NumberFrom { last } => self.number_from(last),
            Command::Stop => self.stopped = true,
            Command::Ping => self.mailbox.report(Report::Alive { worker: self.index }),
        }
    }

    fn index_of(&self, listener: ListenerId) -> Option<u32> {
        let is_it =
            |known: &Option<Listener>| known.as_ref().is_some_and(|known| known.id == listener);
        self.listeners
            .iter()
            .position(is_it)
            .map(|index| index as u32)
    }

    fn configure(&mut self, now: Instant, listener: Listener) {
        let Some(index) = self.index_of(listener.id) else {
            match self.listeners.iter().position(Option::is_none) {
                Some(index) => self.listeners[index] = Some(listener),
                None => self.listeners.push(Some(listener)),
            }
            return;
        };
        let known = self.listeners[index as usize]
            .as_mut()
            .expect("it was just found");
        known.settings = listener.settings;
        let permits = known.driver_permits();
        // All timeouts may be others now, and whether doors ask for permits.
        for place in self
            .places
            .iter_mut()
            .filter(|place| place.listener == index)
        {
            match &mut place.tenant {
                Tenant::Connection(_) => self.timers.set(place.token.slot, now),
                Tenant::Door(door) => {
                    self.driver.set_permits(place.token, permits.clone());
                    if std::mem::take(&mut door.rests) {
                        self.driver.submit(Op::Accept {
                            listener: place.token,
                        });
                    }
                }
                Tenant::Datagrams(_) | Tenant::Nobody => {}
            }
        }
    }

    fn add_socket(&mut self, listener: ListenerId, id: SocketId, kind: Kind, socket: D::Socket) {
        let index = self
            .index_of(listener)
            .expect("a listener is configured before it gets sockets");
        let known = self.listeners[index as usize]
            .as_ref()
            .expect("it was just found");
        let token = match kind {
            Kind::Stream => {
                let token = self.driver.add_listener(socket, known.driver_permits());
                self.driver.submit(Op::Accept { listener: token });
                let door = Door {
                    id,
                    rests: false,
                    pause: ACCEPT_PAUSE_MIN,
                };
                self.move_in(token, index, Tenant::Door(door));
                token
            }
            Kind::Datagram => {
                let token = self.driver.add_datagram_socket(socket);
                self.driver.submit(Op::ReceiveFrom { socket: token });
                self.move_in(token, index, Tenant::Datagrams(id));
                token
            }
        };
        self.timers.clear(token.slot);
    }

    /// Reports a part of the oldest list that was asked for.
    fn go_on_listing(&mut self, now: Instant) {
        let Some(listing) = self.listings.front() else {
            return;
        };
        let (query, from) = (listing.query, listing.next_slot);
        let to = (from + LISTED_PER_TURN).min(self.places.len());
        let mut peers: Vec<Peer> = self.places[from..to]
            .iter()
            .filter_map(|place| self.peer(now, place))
            .collect();
        let last = to == self.places.len();
        if last {
            self.listings.pop_front();
            for listener in self.listeners.iter().flatten() {
                peers.extend(
                    listener
                        .sources
                        .iter()
                        .map(|entry| datagrams::peer(now, listener.id, entry)),
                );
            }
        } else if let Some(listing) = self.listings.front_mut() {
            listing.next_slot = to;
        }
        self.mailbox.report(Report::Peers { query, peers, last });
    }
}

impl Listener {
    /// The permits that the driver has to take before it accepts. Where a full listener resets,
    /// it takes none: whoever is accepted is then counted, or refused, by the worker.
    fn driver_permits(&self) -> Option<Arc<crate::driver::Permits>> {
        use crate::policy::limits::WhenFull;
        (self.settings.when_full == WhenFull::Wait).then(|| Arc::clone(&self.gate.permits))
    }
}

#[cfg(test)]
mod tests;
