//! Streams: what a worker does when something happens to a connection.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use crate::driver::{Buffer, Closing, Driver, Op, Source, Token};
use crate::echo::stream::Step;
use crate::echo::{Answer, Stream};
use crate::policy::Refusal;
use crate::policy::limits::{Activity, Judgment, Phase};

use super::handover::{self, Admission, State};
use super::mailbox::{Kind, Peer};
use super::{ACCEPT_PAUSE_MIN, Listener, Place, Tenant, Worker};

/// A client as the worker knows it. Small: most of them are idle most of the time.
#[derive(Debug)]
pub(super) struct Connection {
    id: u64,
    peer: Option<SocketAddr>,
    stream: Stream,
    opened: Instant,
    // The times of its `Activity`, in nanoseconds since it was opened: half of what an `Instant`
    // takes.
    active: u64,
    waits: Option<NonZeroU64>,
    // The end of what the driver said of the peer's progress when it was last asked.
    progress: u32,
    bytes_received: u64,
    bytes_sent: u64,
    // What it holds of the gate, to be given back: a permit, and a place among its source's.
    has_permit: bool,
    has_place: bool,
    refused: bool,
    // The driver has been told to close it.
    closing: bool,
}

impl Connection {
    /// When it did what, for the policy.
    fn activity(&self) -> Activity {
        let at = |nanos| self.opened + Duration::from_nanos(nanos);
        Activity {
            opened: self.opened,
            active: at(self.active),
            waits: self.waits.map(|nanos| at(nanos.get())),
            phase: self.phase(),
        }
    }

    /// Which timeouts apply to it: derived from the stream, where its state is.
    fn phase(&self) -> Phase {
        if self.stream.is_lingering() {
            Phase::Lingering
        } else if self.stream.is_answering() {
            Phase::Open
        } else {
            Phase::Finishing
        }
    }

    /// Whether the driver has been told to close it.
    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Nanoseconds since it was opened: 64 bits of them are centuries.
    fn age(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.opened).as_nanos() as u64
    }

    /// It keeps us waiting from now on.
    fn waits_from(&mut self, now: Instant) {
        self.waits = NonZeroU64::new(self.age(now).max(1));
    }

    fn count_received(&mut self, now: Instant, listener: &Listener, len: u32) {
        self.active = self.age(now);
        self.bytes_received += u64::from(len);
        listener.counters.bytes_received.add(len.into());
    }

    fn count_sent(&mut self, now: Instant, listener: &Listener, len: u32) {
        self.bytes_sent += u64::from(len);
        listener.counters.bytes_sent.add(len.into());
        if self.stream.is_shut_down() {
            // The peer has two seconds for its FIN from when it has everything; until then, as
            // long as the timeout for a stall from its last progress.
            self.waits_from(now);
        } else if self.waits.is_some() {
            // What still waits behind it has waited from now on.
            self.waits_from(now);
            self.waits = self.waits.filter(|_| self.stream.owed() > 0);
        }
    }

    /// It has ended.
    pub(super) fn leave(self, listener: &Listener) {
        if !self.refused {
            listener.counters.closed.add(1);
        }
        self.release(listener);
    }

    /// Gives back what it held of the gate.
    pub(super) fn release(self, listener: &Listener) {
        if self.has_permit {
            listener.gate.permits.give_back();
        }
        if let Some(peer) = self.peer.filter(|_| self.has_place) {
            listener.gate.release(peer.ip());
        }
    }

    /// So much of what it was owed is left: the rest is with the kernel.
    pub(super) fn settle(&mut self, listener: &Listener, unsent: u32) {
        let sent = self.stream.owed().saturating_sub(unsent);
        self.stream.handle_sent(sent);
        self.bytes_sent += u64::from(sent);
        listener.counters.bytes_sent.add(sent.into());
    }

    /// All that is known of it, for who goes on with it.
    pub(super) fn state(&self, now: Instant) -> State {
        State {
            id: self.id,
            peer: self.peer,
            age: self.age(now),
            active: self.active,
            waits: self.waits,
            phase: self.phase(),
            progress: self.stream.progress(),
            bytes_received: self.bytes_received,
            bytes_sent: self.bytes_sent,
        }
    }

    /// One that another worker has had.
    pub(super) fn resume(
        now: Instant,
        state: &State,
        stream: Stream,
        admission: Admission,
    ) -> Self {
        let mut connection = Self {
            id: state.id,
            peer: state.peer,
            stream,
            opened: handover::ago(now, state.age),
            active: state.active,
            waits: state.waits,
            progress: 0,
            bytes_received: state.bytes_received,
            bytes_sent: state.bytes_sent,
            has_permit: admission.has_permit,
            has_place: admission.has_place,
            refused: false,
            closing: false,
        };
        // Its last bytes may have been sent while it was handed over: then its time begins here.
        if connection.stream.is_lingering() && connection.waits.is_none() {
            connection.waits_from(now);
        }
        connection
    }

    /// The peer has come so far in reading: what it reads from now on counts.
    pub(super) fn look(&mut self, progress: u64) {
        self.progress = progress as u32;
    }
}

impl<D: Driver> Worker<D> {
    /// The connection of this token, if it is still the tenant of its slot.
    fn connection(&mut self, token: Token) -> Option<(&mut Connection, &mut Listener, &mut D)> {
        let (place, listener, driver) = self.place(token)?;
        match &mut place.tenant {
            Tenant::Connection(client) => Some((client, listener, driver)),
            _ => None,
        }
    }

    pub(super) fn accepted(
        &mut self,
        now: Instant,
        door: Token,
        connection: Token,
        peer: Option<SocketAddr>,
        has_permit: bool,
    ) {
        let id = self.ids.take();
        let Some((place, listener, _)) = self.place(door) else {
            // The door was closed in this very turn; who came through it last is still welcome to a FIN.
            self.driver.submit(Op::Close {
                token: connection,
                how: Closing::Now,
            });
            return;
        };
        let index = place.listener;
        if let Tenant::Door(door) = &mut place.tenant {
            door.pause = ACCEPT_PAUSE_MIN;
        }
        let settings = &listener.settings;
        let has_permit = has_permit || listener.gate.permits.try_take();
        let admitted = admit(listener, peer.map(|peer| peer.ip()), has_permit);
        let client = Connection {
            id,
            peer,
            stream: Stream::new(settings.reply, settings.one_shot),
            opened: now,
            active: 0,
            waits: None,
            bytes_received: 0,
            bytes_sent: 0,
            progress: 0,
            has_permit,
            has_place: admitted.is_ok() && settings.max_per_source.is_some() && peer.is_some(),
            refused: admitted.is_err(),
            closing: false,
        };
        match admitted {
            Ok(()) => listener.counters.accepted.add(1),
            Err(reason) => {
                listener.refuse(reason);
                log::debug!(
                    listener = &*settings.name, peer:% = Name(peer);
                    "listener \"{}\": {}: refused: {}",
                    settings.name,
                    Name(peer),
                    reason.name()
                );
            }
        }
        self.move_in(connection, index, Tenant::Connection(client));
        if admitted.is_err() {
            self.close(connection, Closing::Reset);
        } else {
            self.judge(now, connection);
            self.advance(now, connection);
            if self.handing_over.is_some() {
                self.driver.submit(Op::Detach { connection });
            }
        }
    }

    pub(super) fn received(&mut self, now: Instant, token: Token, buffer: Buffer) {
        let Some((client, listener, driver)) = self.connection(token) else {
            self.driver.recycle(buffer);
            return;
        };
        client.count_received(now, listener, buffer.len());
        match client.stream.handle_received(driver.bytes(&buffer)) {
            Answer::Send => driver.submit(Op::Send {
                connection: token,
                buffer,
            }),
            Answer::Drop => driver.recycle(buffer),
        }
        self.advance(now, token);
    }

    pub(super) fn sent(&mut self, now: Instant, token: Token, len: u32) {
        let Some((client, listener, _)) = self.connection(token) else {
            return;
        };
        client.stream.handle_sent(len);
        client.count_sent(now, listener, len);
        // Only of one that was handed over is anything sent after the shutdown.
        if client.stream.is_shut_down() {
            self.judge(now, token);
        }
        self.advance(now, token);
    }

    /// The driver has sent bytes back by itself.
    pub(super) fn relayed(&mut self, now: Instant, token: Token, received: u32, sent: u32) {
        let Some((client, listener, _)) = self.connection(token) else {
            return;
        };
        client.stream.handle_relayed(received, sent);
        if received > 0 {
            client.count_received(now, listener, received);
        }
        if sent > 0 {
            client.count_sent(now, listener, sent);
        }
        if client.stream.is_shut_down() {
            // They were under way when our FIN was asked for, which comes behind them.
            client.waits_from(now);
            self.judge(now, token);
        }
        self.advance(now, token);
    }

    pub(super) fn ended(&mut self, now: Instant, token: Token) {
        if let Some((client, _, _)) = self.connection(token) {
            client.stream.handle_end();
            self.advance(now, token);
        }
    }

    pub(super) fn stalled(&mut self, now: Instant, token: Token) {
        let Some((client, _, driver)) = self.connection(token) else {
            return;
        };
        client.waits_from(now);
        client.progress = driver.progress(token) as u32;
        client.stream.handle_stalled();
        self.judge(now, token);
        self.advance(now, token);
    }

    /// A broken connection is the peer's affair: a counter, and a line for who looks closely.
    pub(super) fn failed(&mut self, token: Token, error: &io::Error) {
        let Some((client, listener, _)) = self.connection(token) else {
            return;
        };
        listener.counters.faults.add(1);
        log::debug!(
            listener = &*listener.settings.name, peer:% = Name(client.peer);
            "listener \"{}\": {}: {error}",
            listener.settings.name,
            Name(client.peer),
        );
        self.close(token, Closing::Now);
    }

    /// Does what the stream's state asks for.
    pub(super) fn advance(&mut self, now: Instant, token: Token) {
        loop {
            let Some((client, _, driver)) = self.connection(token) else {
                return;
            };
            if client.closing {
                return;
            }
            match client.stream.poll_step() {
                None => return,
                Some(Step::Receive) => driver.submit(Op::Receive { connection: token }),
                Some(Step::Relay) => driver.submit(Op::Relay { connection: token }),
                Some(Step::Pause) => driver.submit(Op::Pause { connection: token }),
                Some(Step::ShutDown) => {
                    driver.submit(Op::ShutDown { connection: token });
                    client.waits_from(now);
                    self.judge(now, token);
                }
                Some(Step::Close) => self.close(token, Closing::Now),
            }
        }
    }

    /// Asks whether the connection may go on, and acts on it.
    pub(super) fn judge(&mut self, now: Instant, token: Token) {
        let Some((client, listener, driver)) = self.connection(token) else {
            return;
        };
        if client.closing {
            return;
        }
        if !client.stream.is_lingering() && client.waits.is_some() {
            let progress = driver.progress(token) as u32;
            if std::mem::replace(&mut client.progress, progress) != progress {
                client.waits_from(now);
            }
        }
        let judgment = listener.settings.timeouts.judge(now, &client.activity());
        match judgment {
            Judgment::Until(None) => {}
            Judgment::Until(Some(due)) => self.timers.set(token.slot, due),
            Judgment::Idle | Judgment::Expired => {
                log::debug!(
                    listener = &*listener.settings.name, peer:% = Name(client.peer);
                    "listener \"{}\": {}: {judgment:?}",
                    listener.settings.name,
                    Name(client.peer),
                );
                self.finish(now, token);
            }
            Judgment::Stalled => {
                listener.counters.faults.add(1);
                log::debug!(
                    listener = &*listener.settings.name, peer:% = Name(client.peer);
                    "listener \"{}\": {}: reads nothing",
                    listener.settings.name,
                    Name(client.peer),
                );
                self.close(token, Closing::Reset);
            }
            Judgment::Lingered => self.close(token, Closing::Now),
        }
    }

    /// Gives the connection what it is owed, then our FIN.
    fn finish(&mut self, now: Instant, token: Token) {
        if let Some((client, _, _)) = self.connection(token) {
            client.stream.finish();
            self.advance(now, token);
            self.judge(now, token);
        }
    }

    pub(super) fn finish_all(&mut self, now: Instant) {
        for slot in 0..self.places.len() {
            self.finish(now, self.places[slot].token);
        }
    }

    pub(super) fn close_peers(&mut self, ids: &[u64]) -> u64 {
        let mut closed = 0;
        for slot in 0..self.places.len() {
            let Place {
                token,
                tenant: Tenant::Connection(client),
                ..
            } = &self.places[slot]
            else {
                continue;
            };
            if ids.contains(&client.id) && !client.closing {
                closed += 1;
                self.close(*token, Closing::Now);
            }
        }
        closed
    }

    fn close(&mut self, token: Token, how: Closing) {
        if let Some((client, _, driver)) = self.connection(token)
            && !std::mem::replace(&mut client.closing, true)
        {
            driver.submit(Op::Close { token, how });
        }
    }

    pub(super) fn peer(&self, now: Instant, place: &Place) -> Option<Peer> {
        let Tenant::Connection(client) = &place.tenant else {
            return None;
        };
        let listener = self.listeners[place.listener as usize].as_ref()?;
        (!client.refused).then(|| Peer {
            id: client.id,
            listener: listener.id,
            kind: Kind::Stream,
            source: client.peer.map(Source::Inet),
            hit: None,
            age: now - client.opened,
            idle: now - client.activity().active,
            bytes_received: client.bytes_received,
            bytes_sent: client.bytes_sent,
            details: self.driver.details(place.token),
        })
    }
}

/// Whether the client may stay; if so, it now has a place among its source's connections.
fn admit(listener: &Listener, source: Option<IpAddr>, has_permit: bool) -> Result<(), Refusal> {
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

/// A peer's name in the log.
struct Name(Option<SocketAddr>);

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("unix peer"),
        }
    }
}
