//! Streams: what a worker does when something happens to a connection.
//!
//! [`Stream`] decides what is sent back and when a connection is closed, `policy` how long it may
//! take. Here their decisions are carried out and counted.

use std::fmt::{self, Display};
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use crate::driver::{Buffer, Closing, Driver, Op, Token};
use crate::echo::stream::Step;
use crate::echo::{Answer, Stream};
use crate::policy::CloseReason;
use crate::policy::limits::{Activity, Phase, TimeoutAction};

use super::gate::Admission;
use super::transfer::{ConnectionState, instant_before};
use super::{Listener, SlotKind, Worker};

/// A connection as the worker knows it. Small: most connections are idle most of the time.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: u64,
    pub(super) peer: Option<SocketAddr>,
    stream: Stream,
    opened: Instant,
    // Times of its `Activity`, in nanoseconds since it was opened: half of the size of an `Instant`.
    active: u64,
    waiting_since: Option<NonZeroU64>,
    // The low half of the driver's measure of what the peer has read, when it was last checked.
    progress: u32,
    pub(super) bytes_received: u64,
    pub(super) bytes_sent: u64,
    admission: Admission,
    // What began its end; none while it is open, and for one that was accepted only to be reset.
    close_reason: Option<CloseReason>,
    // `Op::Close` was submitted.
    closing: bool,
}

impl Connection {
    /// A connection that was just accepted.
    pub(super) fn new(
        id: u64,
        peer: Option<SocketAddr>,
        stream: Stream,
        now: Instant,
        admission: Admission,
    ) -> Self {
        Self {
            id,
            peer,
            stream,
            opened: now,
            active: 0,
            waiting_since: None,
            progress: 0,
            bytes_received: 0,
            bytes_sent: 0,
            admission,
            close_reason: None,
            closing: false,
        }
    }

    /// A connection that another worker had.
    pub(super) fn resume(
        now: Instant,
        state: &ConnectionState,
        unsent: u32,
        admission: Admission,
    ) -> Self {
        let mut connection = Self {
            id: state.id,
            peer: state.peer,
            stream: Stream::resume(state.progress, unsent),
            opened: instant_before(now, state.age),
            active: state.active,
            waiting_since: state.waiting_since,
            progress: 0,
            bytes_received: state.bytes_received,
            bytes_sent: state.bytes_sent,
            admission,
            close_reason: state.close_reason,
            closing: false,
        };
        // Its last bytes may have been sent while it was handed over. Then it begins to linger here.
        if connection.stream.is_lingering() && connection.waiting_since.is_none() {
            connection.wait_from(now);
        }
        connection
    }

    /// The state, for [`Self::resume`].
    pub(super) fn state(&self, now: Instant) -> ConnectionState {
        ConnectionState {
            id: self.id,
            peer: self.peer,
            age: self.age(now),
            active: self.active,
            waiting_since: self.waiting_since,
            phase: self.phase(),
            progress: self.stream.progress(),
            bytes_received: self.bytes_received,
            bytes_sent: self.bytes_sent,
            close_reason: self.close_reason,
        }
    }

    /// Its times, for the timeouts.
    pub(super) fn activity(&self) -> Activity {
        let at = |nanos| self.opened + Duration::from_nanos(nanos);
        Activity {
            opened: self.opened,
            active: at(self.active),
            waiting_since: self.waiting_since.map(|nanos| at(nanos.get())),
            phase: self.phase(),
        }
    }

    fn phase(&self) -> Phase {
        if self.stream.is_lingering() {
            Phase::Lingering
        } else if self.stream.is_answering() {
            Phase::Open
        } else {
            Phase::Finishing
        }
    }

    /// Whether it was accepted only to be reset.
    pub(super) fn is_refused(&self) -> bool {
        !self.admission.is_admitted
    }

    /// Whether the driver was asked to close it.
    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Whether the write side has to be shut down.
    pub(super) fn is_shut_down(&self) -> bool {
        self.stream.is_shut_down()
    }

    /// Nanoseconds since it was opened: 64 bits of them are centuries.
    fn age(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.opened).as_nanos() as u64
    }

    /// It waits for its peer, from now on.
    fn wait_from(&mut self, now: Instant) {
        self.waiting_since = NonZeroU64::new(self.age(now).max(1));
    }

    fn count_received(&mut self, now: Instant, listener: &Listener, len: u32) {
        self.active = self.age(now);
        self.bytes_received += u64::from(len);
        listener.counters.bytes_received.add(len.into());
    }

    /// Counts bytes that the stream already knows to be sent.
    fn count_sent(&mut self, now: Instant, listener: &Listener, len: u32) {
        self.bytes_sent += u64::from(len);
        listener.counters.bytes_sent.add(len.into());
        if self.stream.is_shut_down() {
            // The time for the peer's FIN begins when it has everything; until then the timeout for
            // a stall begins with each progress.
            self.wait_from(now);
        } else if self.waiting_since.is_some() {
            // Bytes that are still unsent have been waiting only since this progress.
            self.waiting_since = None;
            if self.stream.unsent() > 0 {
                self.wait_from(now);
            }
        }
    }

    /// The driver has given it up with this number of unsent bytes. All others were sent, also those
    /// of a message that was sent in part, which no completion has reported.
    pub(super) fn handle_detached(&mut self, listener: &Listener, unsent: u32) {
        let sent = self.stream.unsent().saturating_sub(unsent);
        self.stream.handle_sent(sent);
        self.bytes_sent += u64::from(sent);
        listener.counters.bytes_sent.add(sent.into());
    }

    /// Notes how much the peer has read. Says whether that is more than at the last time.
    pub(super) fn note_progress(&mut self, progress: u64) -> bool {
        // Half of the number is enough to see that it changes.
        let progress = progress as u32;
        std::mem::replace(&mut self.progress, progress) != progress
    }

    /// Notes why it ends. What began the end remains the reason, whatever follows.
    fn end_for(&mut self, reason: CloseReason) {
        self.close_reason.get_or_insert(reason);
    }

    /// It was closed.
    pub(super) fn handle_closed(self, now: Instant, listener: &Listener, level: log::Level) {
        if self.admission.is_admitted {
            debug_assert!(self.close_reason.is_some(), "it is closed for a reason");
            let reason = self.close_reason.unwrap_or(CloseReason::Failed);
            listener.count_closed(reason);
            self.log_closed(now, listener, level, reason);
        }
        self.release(listener);
    }

    /// One line, whichever level it has.
    fn log_closed(
        &self,
        now: Instant,
        listener: &Listener,
        level: log::Level,
        reason: CloseReason,
    ) {
        let name = &*listener.settings.name;
        let peer = PeerName(self.peer);
        let lifetime = Duration::from_millis(self.age(now) / 1_000_000);
        log::log!(
            level,
            listener = name, peer:% = peer, closed = reason.name();
            "listener \"{name}\": {peer}: closed after {} because {}; {} bytes received, {} bytes sent",
            humantime::format_duration(lifetime),
            reason.clause(),
            self.bytes_received,
            self.bytes_sent
        );
    }

    /// How the gate counts it.
    pub(super) fn admission(&self) -> Admission {
        self.admission
    }

    /// Returns to the gate what it took when it was admitted.
    pub(super) fn release(self, listener: &Listener) {
        let source = self.peer.map(|peer| peer.ip());
        listener.gate.release(self.admission, source);
    }
}

impl<D: Driver> Worker<D> {
    /// The connection of this token, unless it was closed.
    fn connection(&mut self, token: Token) -> Option<(&mut Connection, &mut Listener, &mut D)> {
        let (slot, listener, driver) = self.slot(token)?;
        match &mut slot.kind {
            SlotKind::Connection(connection) => Some((connection, listener, driver)),
            _ => None,
        }
    }

    pub(super) fn handle_received(&mut self, now: Instant, token: Token, buffer: Buffer) {
        let Some((connection, listener, driver)) = self.connection(token) else {
            self.driver.recycle(buffer);
            return;
        };
        connection.count_received(now, listener, buffer.len());
        match connection.stream.handle_received(driver.bytes(&buffer)) {
            Answer::Send => driver.submit(Op::Send {
                connection: token,
                buffer,
            }),
            Answer::Drop => driver.recycle(buffer),
        }
        self.run_steps(now, token);
    }

    pub(super) fn handle_sent(&mut self, now: Instant, token: Token, len: u32) {
        let Some((connection, listener, _)) = self.connection(token) else {
            return;
        };
        connection.stream.handle_sent(len);
        connection.count_sent(now, listener, len);
        // A `Send` behind our FIN exists only after a hand-over, of bytes that had been relayed.
        if connection.stream.is_shut_down() {
            self.check_timeouts(now, token);
        }
        self.run_steps(now, token);
    }

    /// The driver has received bytes and sent bytes back without showing them.
    pub(super) fn handle_relayed(&mut self, now: Instant, token: Token, received: u32, sent: u32) {
        let Some((connection, listener, _)) = self.connection(token) else {
            return;
        };
        connection.stream.handle_relayed(received, sent);
        if received > 0 {
            connection.count_received(now, listener, received);
        }
        if sent > 0 {
            connection.count_sent(now, listener, sent);
        }
        // They were under way when the FIN was requested, and the FIN follows them.
        if connection.stream.is_shut_down() {
            connection.wait_from(now);
            self.check_timeouts(now, token);
        }
        self.run_steps(now, token);
    }

    pub(super) fn handle_ended(&mut self, now: Instant, token: Token) {
        if let Some((connection, _, _)) = self.connection(token) {
            connection.stream.handle_end();
            self.run_steps(now, token);
        }
    }

    pub(super) fn handle_stalled(&mut self, now: Instant, token: Token) {
        let Some((connection, _, driver)) = self.connection(token) else {
            return;
        };
        connection.stream.handle_stalled();
        connection.wait_from(now);
        connection.note_progress(driver.peer_progress(token));
        self.check_timeouts(now, token);
        self.run_steps(now, token);
    }

    /// A broken connection is its peer's fault: a counter and a debug line.
    pub(super) fn handle_failed(&mut self, token: Token, error: &io::Error) {
        let Some((connection, listener, _)) = self.connection(token) else {
            return;
        };
        listener.counters.faults.add(1);
        let reason = match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => CloseReason::Reset,
            // The line that follows its close tells no more than that it failed.
            _ => {
                log_about(connection.peer, listener, &error);
                CloseReason::Failed
            }
        };
        self.close_for(reason, token, Closing::Now);
    }

    /// Carries out what the stream asks for, until it asks for nothing more.
    pub(super) fn run_steps(&mut self, now: Instant, token: Token) {
        loop {
            let Some((connection, _, driver)) = self.connection(token) else {
                return;
            };
            if connection.closing {
                return;
            }
            match connection.stream.poll_step() {
                None => return,
                Some(Step::Receive) => driver.submit(Op::Receive { connection: token }),
                Some(Step::Relay) => driver.submit(Op::Relay { connection: token }),
                Some(Step::Pause) => driver.submit(Op::Pause { connection: token }),
                Some(Step::ShutDown) => {
                    driver.submit(Op::ShutDown { connection: token });
                    connection.wait_from(now);
                    self.check_timeouts(now, token);
                }
                Some(Step::Close) => self.close_for(CloseReason::Finished, token, Closing::Now),
            }
        }
    }

    /// Ends the connection if it has reached a timeout, else sets its timer.
    pub(super) fn check_timeouts(&mut self, now: Instant, token: Token) {
        let Some((connection, listener, driver)) = self.connection(token) else {
            return;
        };
        if connection.closing {
            return;
        }
        // A completion reports a send when all of it is with the kernel. Until then the peer may
        // have read much of what the kernel had already, which only the driver can tell.
        if connection.phase() != Phase::Lingering
            && connection.waiting_since.is_some()
            && connection.note_progress(driver.peer_progress(token))
        {
            connection.wait_from(now);
        }
        match listener
            .settings
            .timeouts
            .check(now, &connection.activity())
        {
            TimeoutAction::CheckAt(None) => {}
            TimeoutAction::CheckAt(Some(due)) => self.timers.set(token.slot, due),
            TimeoutAction::FinishIdle => self.finish(CloseReason::Idle, now, token),
            TimeoutAction::FinishExpired => self.finish(CloseReason::Lifetime, now, token),
            TimeoutAction::ResetStalled => {
                listener.counters.faults.add(1);
                self.close_for(CloseReason::Stalled, token, Closing::Reset);
            }
            TimeoutAction::CloseLingering => {
                self.close_for(CloseReason::Finished, token, Closing::Now);
            }
        }
    }

    /// Sends the pending output of the connection, then our FIN.
    pub(super) fn finish(&mut self, reason: CloseReason, now: Instant, token: Token) {
        if let Some((connection, _, _)) = self.connection(token) {
            // One that finishes already does so for another reason.
            if connection.stream.is_answering() {
                connection.end_for(reason);
            }
            connection.stream.finish();
            self.run_steps(now, token);
            self.check_timeouts(now, token);
        }
    }

    pub(super) fn finish_all(&mut self, now: Instant) {
        for number in 0..self.slots.len() {
            self.finish(CloseReason::Drained, now, self.slots.at(number).token);
        }
    }

    /// Closes a connection that was admitted.
    pub(super) fn close_for(&mut self, reason: CloseReason, token: Token, how: Closing) {
        if let Some((connection, _, _)) = self.connection(token) {
            connection.end_for(reason);
        }
        self.close(token, how);
    }

    /// Closes a connection.
    pub(super) fn close(&mut self, token: Token, how: Closing) {
        if let Some((connection, _, driver)) = self.connection(token)
            && !std::mem::replace(&mut connection.closing, true)
        {
            driver.submit(Op::Close { token, how });
        }
    }
}

/// A debug line about a connection.
pub(super) fn log_about(peer: Option<SocketAddr>, listener: &Listener, event: &dyn Display) {
    let name = &*listener.settings.name;
    let peer = PeerName(peer);
    log::debug!(listener = name, peer:% = peer; "listener \"{name}\": {peer}: {event}");
}

/// The name of a peer in the log.
struct PeerName(Option<SocketAddr>);

impl Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("unix peer"),
        }
    }
}
