//! Listeners and their sockets: added, retired, and paused when nothing can be accepted.
//!
//! Accepting pauses for one of three reasons. Without a permit it resumes when one is returned, which
//! wakes the worker; after an error (EMFILE, ENOMEM and the like) it resumes after a while, because
//! nothing tells when the error is gone; where an operator has new clients held, when the settings say
//! so. In all three cases clients wait in the backlog.
//!
//! Where an operator has new clients refused, they are accepted and reset at once. To refuse them in
//! the kernel, as before a start, the socket would have to stop listening: `shutdown(2)` resets those
//! that are queued without a trace in our counters, gives up a port that the kernel has chosen, lets
//! another process bind the address until then, and can't be undone on a Unix socket; an interface that
//! does not exist (as for sockets that are retired) takes a privilege to be undone. So the address
//! stays ours, each refusal is counted, and it is the same for all kinds. What it costs: a health check
//! that only connects takes it for success. One of an echo service sends something and compares, and
//! finds out at the first byte.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::driver::{Closing, Driver, Op, Permits, Token};
use crate::echo::Stream;
use crate::policy::limits::WhenFull;
use crate::policy::{Intake, Refusal};

use super::gate::Admission;
use super::ids::{ListenerId, SocketId};
use super::mailbox::{Report, SocketKind};
use super::streams::{Connection, log_about};
use super::{Listener, SlotKind, Worker};

/// How long accepting pauses after the first error. Each further error doubles the pause.
const ACCEPT_PAUSE_MIN: Duration = Duration::from_millis(10);

/// The longest pause after an error.
pub(super) const ACCEPT_PAUSE_MAX: Duration = Duration::from_secs(1);

/// How long the network may take for the last answers of a datagram socket that is retired. Less than
/// an upgrade waits for it.
pub(super) const LAST_ANSWERS_TIME_MAX: Duration = Duration::from_secs(2);

/// Accept errors of a worker are logged no more often than this.
const ACCEPT_LOG_INTERVAL: Duration = Duration::from_secs(5);

/// A socket from which connections are accepted.
#[derive(Debug)]
pub(super) struct ListeningSocket {
    pub(super) id: SocketId,
    // The length of the pause after the next error.
    next_pause: Duration,
}

impl Listener {
    /// The permits that the driver takes before it accepts. Clients of a socket that is being retired
    /// are not held: no other worker or process will serve them.
    fn driver_permits(&self, is_retired: bool) -> Option<Arc<Permits>> {
        match self.settings.intake {
            Intake::Hold if is_retired => self.permits_to_serve(),
            Intake::Serve => self.permits_to_serve(),
            // It accepts every client, and the worker refuses it.
            Intake::Refuse => None,
            // There are none, and never will be.
            Intake::Hold => Some(Arc::new(Permits::new(0, Vec::new()))),
        }
    }

    /// The same for clients that are to be served. Where a full listener resets clients, the driver
    /// takes none: it accepts every client, and the worker counts or refuses it.
    fn permits_to_serve(&self) -> Option<Arc<Permits>> {
        (self.settings.when_full == WhenFull::Wait).then(|| Arc::clone(&self.gate.permits))
    }
}

impl<D: Driver> Worker<D> {
    /// Adds a listener, or changes the settings of one that is there.
    pub(super) fn configure(&mut self, listener: Listener) {
        let Some((_, known)) = self.listener(listener.id) else {
            return self.add_listener(listener);
        };
        let before = std::mem::replace(&mut known.settings, listener.settings);
        let after = &known.settings;
        known.is_changed |= before.timeouts != after.timeouts
            || before.when_full != after.when_full
            || before.intake != after.intake;
        let is_changed = known.is_changed;
        self.settings_changed |= is_changed;
    }

    fn add_listener(&mut self, listener: Listener) {
        let index = self.free_indexes.pop().unwrap_or_else(|| {
            self.listeners.push(None);
            self.listeners.len() as u32 - 1
        });
        self.listener_indexes.insert(listener.id, index);
        self.listeners[index as usize] = Some(listener);
    }

    /// Has connections and listening sockets follow settings that have changed. Once for all commands
    /// of a turn, since it visits all slots: a reload may change thousands of listeners.
    pub(super) fn apply_settings(&mut self, now: Instant) {
        if !std::mem::take(&mut self.settings_changed) {
            return;
        }
        for slot in self.slots.iter() {
            let listener = self.listeners[slot.listener as usize].as_ref();
            let Some(listener) = listener.filter(|listener| listener.is_changed) else {
                continue;
            };
            match &slot.kind {
                // Its timeouts may be shorter now: they are checked in this turn.
                SlotKind::Connection(_) => self.timers.set(slot.token.slot, now),
                SlotKind::Listening(socket) => {
                    let is_retired = !self.sockets.contains_key(&socket.id);
                    let permits = listener.driver_permits(is_retired);
                    self.driver.set_permits(slot.token, permits);
                    // Perhaps accepting takes no permit any more.
                    if forget(&mut self.without_permit, slot.token) {
                        self.driver.submit(Op::Accept {
                            listener: slot.token,
                        });
                    }
                }
                SlotKind::Datagrams(_) | SlotKind::Empty => {}
            }
        }
        for listener in self.listeners.iter_mut().flatten() {
            listener.is_changed = false;
        }
    }

    pub(super) fn remove_listener(&mut self, id: ListenerId) {
        if let Some(index) = self.listener_indexes.remove(&id) {
            self.listeners[index as usize] = None;
            self.free_indexes.push(index);
        }
    }

    pub(super) fn add_socket(
        &mut self,
        listener: ListenerId,
        id: SocketId,
        kind: SocketKind,
        socket: D::Socket,
    ) {
        // It would be the one that is not handed over. The control plane has a descriptor, and adds
        // it again with all others when this worker is to continue.
        if self.handing_over.is_some() {
            return;
        }
        let (index, listener) = self
            .listener(listener)
            .expect("a listener is configured before it gets sockets");
        let permits = listener.driver_permits(false);
        let (token, kind) = match kind {
            SocketKind::Stream => {
                let token = self.driver.add_listener(socket, permits);
                self.driver.submit(Op::Accept { listener: token });
                let next_pause = ACCEPT_PAUSE_MIN;
                let socket = ListeningSocket { id, next_pause };
                (token, SlotKind::Listening(socket))
            }
            SocketKind::Datagram => {
                let token = self.driver.add_datagram_socket(socket);
                self.driver.submit(Op::ReceiveFrom { socket: token });
                (token, SlotKind::Datagrams(id))
            }
        };
        self.slots.fill(token, index, kind);
        self.sockets.insert(id, token);
    }

    /// Serves a socket for another listener from now on. Clients in its queue are that listener's.
    pub(super) fn move_socket(&mut self, id: SocketId, to: ListenerId) {
        let Some(&token) = self.sockets.get(&id) else {
            return;
        };
        let Some((to, permits)) = self
            .listener(to)
            .map(|(index, listener)| (index, listener.driver_permits(false)))
        else {
            return;
        };
        let Some((slot, from, driver)) = self.slot(token) else {
            return;
        };
        if slot.listener == to {
            return;
        }
        slot.listener = to;
        if matches!(slot.kind, SlotKind::Listening(_)) {
            let gate = Arc::clone(&from.gate);
            driver.set_permits(token, permits);
            self.moved.push((token, gate));
            if forget(&mut self.without_permit, token) {
                self.driver.submit(Op::Accept { listener: token });
            }
        }
    }

    /// Closes a socket when everything that is queued on it has been served; a datagram socket also
    /// when the network does not take the answers.
    pub(super) fn retire_socket(&mut self, now: Instant, id: SocketId) {
        let Some(token) = self.sockets.remove(&id) else {
            self.mailbox.report(Report::Retired {
                worker: self.index,
                id,
            });
            return;
        };
        // The driver accepts all that is queued, with permits or without. So accepting need not be
        // resumed, whatever it was paused for.
        forget(&mut self.without_permit, token);
        self.timers.clear(token.slot);
        let slot = self.slots.at(token.slot as usize);
        if matches!(slot.kind, SlotKind::Datagrams(_)) {
            self.timers.set(token.slot, now + LAST_ANSWERS_TIME_MAX);
        }
        if matches!(slot.kind, SlotKind::Listening(_))
            && let Some(listener) = &self.listeners[slot.listener as usize]
        {
            self.driver
                .set_permits(token, listener.driver_permits(true));
        }
        self.driver.submit(Op::Close {
            token,
            how: Closing::WhenDrained,
        });
    }

    /// The driver has closed a listening or datagram socket.
    pub(super) fn handle_socket_closed(&mut self, token: Token, id: SocketId) {
        forget(&mut self.without_permit, token);
        // A socket that is handed over is not retired: another worker serves it.
        if self.handing_over.is_none() {
            self.mailbox.report(Report::Retired {
                worker: self.index,
                id,
            });
        }
    }

    pub(super) fn handle_accept_paused(
        &mut self,
        now: Instant,
        token: Token,
        error: Option<io::Error>,
    ) {
        let Some((slot, listener, driver)) = self.slot(token) else {
            return;
        };
        let SlotKind::Listening(socket) = &mut slot.kind else {
            return;
        };
        let Some(error) = error else {
            // A permit that was returned before this completion was handled has woken the worker
            // too early, and by now the listener may reset clients instead. So look again, and wait
            // for a permit only if one is needed and there is still none.
            let permits = listener.driver_permits(false);
            if permits.is_none_or(|permits| permits.is_free_or_be_woken()) {
                driver.submit(Op::Accept { listener: token });
            } else {
                debug_assert!(!self.without_permit.contains(&token), "it is paused once");
                self.without_permit.push(token);
            }
            return;
        };
        let pause = socket.next_pause;
        socket.next_pause = (pause * 2).min(ACCEPT_PAUSE_MAX);
        let name = listener.settings.name.clone();
        self.timers.set(token.slot, now + pause);
        // An error of the whole process strikes every listening socket again and again, so one line
        // stands for all of them.
        if self
            .accept_error_logged
            .is_none_or(|logged| now >= logged + ACCEPT_LOG_INTERVAL)
        {
            self.accept_error_logged = Some(now);
            log::warn!(
                listener = &*name;
                "listener \"{name}\": accept: {error}; clients wait in the backlog until there is room again \
                 (LimitNOFILE= in the unit, max-connections in the configuration)"
            );
        }
    }

    /// Accepts again wherever there was no permit. It takes time in proportion to these sockets, not
    /// to the connections: at a full listener it happens whenever a connection is closed.
    pub(super) fn resume_accepting(&mut self) {
        for listener in self.without_permit.drain(..) {
            self.driver.submit(Op::Accept { listener });
        }
    }

    /// Returns the permit of a connection that was accepted while its socket had another listener,
    /// and whether it was such a one.
    fn returns_permit(&self, listening: Token) -> bool {
        let mut moved = self.moved.iter();
        let gate = moved.find(|(token, _)| *token == listening);
        gate.inspect(|(_, gate)| gate.permits.give_back()).is_some()
    }

    pub(super) fn handle_accepted(
        &mut self,
        now: Instant,
        listening: Token,
        connection: Token,
        peer: Option<SocketAddr>,
        has_permit: bool,
    ) {
        let id = self.ids.take();
        let has_permit = has_permit && !self.returns_permit(listening);
        // Nothing is reported of a socket after its `Closed`, and a listener is removed when all of its
        // sockets are closed. So there is a gate for the permit.
        let Some((slot, listener, _)) = self.slot(listening) else {
            debug_assert!(false, "a client of a listening socket that is closed");
            self.driver.submit(Op::Close {
                token: connection,
                how: Closing::Now,
            });
            return;
        };
        let index = slot.listener;
        if let SlotKind::Listening(socket) = &mut slot.kind {
            socket.next_pause = ACCEPT_PAUSE_MIN;
        }
        // The driver took none if the listener resets clients, always or when it is full.
        let needs_permit = !has_permit && listener.settings.intake != Intake::Refuse;
        let has_permit = has_permit || (needs_permit && listener.gate.permits.try_take());
        let admitted = admit(listener, peer.map(|peer| peer.ip()), has_permit);
        match admitted {
            Ok(()) => {
                listener.counters.accepted.add(1);
                listener.gate.count_open();
            }
            Err(reason) => {
                listener.count_refused(reason, 1);
                log_about(peer, listener, &format_args!("refused: {}", reason.name()));
            }
        }
        let admission = Admission {
            is_admitted: admitted.is_ok(),
            has_permit,
            counts_for_source: admitted.is_ok()
                && listener.settings.max_per_source.is_some()
                && peer.is_some(),
        };
        let stream = Stream::new(listener.settings.reply, listener.settings.one_shot);
        let accepted = Connection::new(id, peer, stream, now, admission);
        self.slots
            .fill(connection, index, SlotKind::Connection(accepted));
        if admitted.is_err() {
            self.close(connection, Closing::Reset);
        } else {
            self.check_timeouts(now, connection);
            self.run_steps(now, connection);
            // It was accepted before its listening socket was closed to be handed over.
            if self.handing_over.is_some() {
                self.driver.submit(Op::Detach { connection });
            }
        }
    }
}

/// Removes the token from the list, and says whether it was there.
fn forget(tokens: &mut Vec<Token>, token: Token) -> bool {
    let position = tokens.iter().position(|known| *known == token);
    position.map(|index| tokens.swap_remove(index)).is_some()
}

/// Whether the connection is admitted; if so, it is now counted as one of its source.
fn admit(listener: &Listener, source: Option<IpAddr>, has_permit: bool) -> Result<(), Refusal> {
    if listener.settings.intake == Intake::Refuse {
        return Err(Refusal::Paused);
    }
    if source.is_some_and(|source| !listener.settings.access.permits(source)) {
        return Err(Refusal::Denied);
    }
    if !has_permit {
        return Err(Refusal::Full);
    }
    match source.zip(listener.settings.max_per_source) {
        None => Ok(()),
        Some((source, max)) => listener.gate.admit(source, max),
    }
}
