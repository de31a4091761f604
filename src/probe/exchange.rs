//! Messages to a service and back: what is sent and received, and what happened to each message.
//!
//! Never decides what an answer is: the messages are recognized by their bytes, and the ledger
//! accounts for them.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use super::cause::{Cause, Trouble};
use super::compare::difference;
use super::event::{Answered, Event};
use super::ledger::{AnswerKind, Ledger};
use super::link::{DATAGRAM_MEMORY, Flow, News, RETRY_INTERVAL};
use super::payload::{Messages, Recognized};
use super::route::Route;
use super::session::Session;
use crate::sys::measure::{Arrival, ReceiveFailure};

/// What is taken of a service that sends without end, before it is looked at.
const EVENTS_MAX: usize = 64;

/// The messages of a flow, their account, and what has happened since the last look.
pub(super) struct Account<M> {
    pub(super) messages: M,
    pub(super) ledger: Ledger,
    pub(super) events: VecDeque<Event>,
}

impl<M: Messages> Account<M> {
    pub(super) fn new(messages: M, timeout: Duration) -> Self {
        Self {
            messages,
            ledger: Ledger::new(timeout, None),
            events: VecDeque::new(),
        }
    }

    /// As many bytes as a message has came on a stream. Those of no message belong to the one that
    /// is outstanding longest; where the next one begins is unknown then, and this returns false.
    pub(super) fn handle_piece(&mut self, now: Instant, bytes: &[u8]) -> bool {
        let found = self.recognize(bytes, bytes.len());
        let is_known = found != Recognized::Unknown;
        let oldest = self.ledger.oldest().filter(|_| !is_known);
        let what = oldest.map_or(found, Recognized::Changed);
        let kind = self.handle_answer(now, what, bytes, bytes.len(), true, None);
        is_known && kind != AnswerKind::Stray
    }

    /// Which message these bytes are, of one of this length.
    pub(super) fn recognize(&self, bytes: &[u8], len: usize) -> Recognized {
        let next = self.ledger.next_sent();
        self.messages.recognize(bytes, len, next)
    }

    /// Something of this length came, which is that: what became of it.
    pub(super) fn handle_answer(
        &mut self,
        now: Instant,
        what: Recognized,
        bytes: &[u8],
        len: usize,
        from_service: bool,
        arrival: Option<Arrival>,
    ) -> AnswerKind {
        let answer = self.ledger.handle_answer(now, what, len, from_service);
        let corrupt = answer.number.filter(|_| answer.kind == AnswerKind::Corrupt);
        let differs = |number| difference(&self.messages.expected(number), bytes, len);
        self.events.push_back(Event::Answered(Answered {
            answer,
            bytes: bytes.to_vec(),
            difference: corrupt.and_then(differs),
            arrival,
        }));
        answer.kind
    }

    /// A message was sent in vain.
    pub(super) fn fail(&mut self, number: u64, cause: Cause, failure: Option<ReceiveFailure>) {
        if self.ledger.handle_failure(number, &cause) {
            self.events.push_back(Event::Failed(number, cause, failure));
        }
    }

    /// Gives up what has not come back in time.
    pub(super) fn handle_time(&mut self, now: Instant) {
        while let Some(number) = self.ledger.handle_timeout(now) {
            self.events.push_back(Event::Missing(number));
        }
    }
}

/// A socket for datagrams.
pub(super) struct Datagrams {
    pub(super) flow: Flow,
    timeout: Duration,
    /// Since when a queue has no room for the one that is due.
    full_since: Option<Instant>,
    memory: Vec<u8>,
}

impl Datagrams {
    /// Opens it. What has not come back after the timeout is missing.
    pub(super) fn open(route: &Route, timeout: Duration) -> Result<Self, Trouble> {
        Ok(Self {
            flow: route.open()?,
            timeout,
            full_since: None,
            memory: vec![0; DATAGRAM_MEMORY],
        })
    }

    /// Sends what is due, takes what was received, and gives up what is missing by now.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub(super) fn turn<M: Messages>(
        &mut self,
        account: &mut Account<M>,
        now: Instant,
    ) -> io::Result<()> {
        self.send(account, now);
        self.receive(account)?;
        self.handle_time(account, now);
        Ok(())
    }

    /// Sends the message that is due, unless a queue has no room for it.
    pub(super) fn send<M: Messages>(&mut self, account: &mut Account<M>, now: Instant) {
        if account.ledger.unsent() == 0 {
            return;
        }
        let number = account.ledger.handle_sent(now);
        match self.flow.send(&account.messages.bytes(number)) {
            Ok(true) => self.full_since = None,
            Ok(false) => {
                self.full_since.get_or_insert(now);
                account.ledger.handle_unsent(1);
            }
            Err(error) => {
                // The error queue has the same with more details, if it has it.
                let _ = self.receive(account);
                let failure = ReceiveFailure::from(error);
                account.fail(number, Cause::of_failure(&failure), Some(failure));
            }
        }
    }

    /// Gives up what has not come back in time, and what the queue had no room for in all its time.
    pub(super) fn handle_time<M: Messages>(&mut self, account: &mut Account<M>, now: Instant) {
        account.handle_time(now);
        let is_full = |since: Instant| now >= since + self.timeout;
        if self.full_since.is_some_and(is_full) {
            self.full_since = None;
            let number = account.ledger.next_sent();
            if account.ledger.handle_failure(number, &Cause::TimedOut) {
                account.events.push_back(Event::Missing(number));
            }
        }
    }

    /// Takes what was received.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub(super) fn receive<M: Messages>(&mut self, account: &mut Account<M>) -> io::Result<()> {
        while account.events.len() < EVENTS_MAX
            && let Some(news) = self.flow.receive(&mut self.memory)?
        {
            match news {
                News::Arrival(arrival) => {
                    // When it reached this host, not when this process read it.
                    let now = Instant::now() - arrival.age.unwrap_or_default();
                    let bytes = &self.memory[..arrival.len.min(self.memory.len())];
                    let (len, from_service) = (arrival.len, self.flow.is_peer(&arrival.source));
                    let what = account.recognize(bytes, len);
                    account.handle_answer(now, what, bytes, len, from_service, Some(arrival));
                }
                News::Failure(failure) => {
                    // One without its bytes is the last that was sent, most likely.
                    let next = account.ledger.next_sent();
                    let number = account.messages.quoted(&self.memory[..failure.len], next);
                    if let Some(number) = number.or(next.checked_sub(1)) {
                        account.fail(number, Cause::of_failure(&failure), Some(failure));
                    }
                }
            }
        }
        Ok(())
    }

    /// When there is something to do at the latest, for what was due until now.
    pub(super) fn poll_timeout<M: Messages>(
        &self,
        account: &mut Account<M>,
        now: Instant,
    ) -> Option<Instant> {
        match account.ledger.unsent() {
            0 => account.ledger.poll_timeout(),
            _ => Some(now + RETRY_INTERVAL),
        }
    }
}

/// A conversation with a datagram service, message by message.
pub(super) struct Exchange<'a, M> {
    pub(super) session: &'a Session,
    pub(super) account: Account<M>,
    pub(super) datagrams: Datagrams,
}

impl<'a, M: Messages> Exchange<'a, M> {
    /// Opens a socket on this way, for these messages. What has not come back after the timeout is
    /// missing.
    pub(super) fn open(
        session: &'a Session,
        route: &Route,
        messages: M,
        timeout: Duration,
    ) -> Result<Self, Trouble> {
        Ok(Self {
            session,
            account: Account::new(messages, timeout),
            datagrams: Datagrams::open(route, timeout)?,
        })
    }

    /// The next message is due, and is sent as soon as there is room for it.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub(super) fn send(&mut self) -> io::Result<()> {
        self.account.ledger.handle_due(Instant::now(), 1);
        self.turn()
    }

    /// As [`Datagrams::turn`].
    pub(super) fn turn(&mut self) -> io::Result<()> {
        self.datagrams.turn(&mut self.account, Instant::now())
    }

    /// The next that happens until this time; none: nothing does, or the command is to end.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub(super) fn next_event(&mut self, until: Instant) -> io::Result<Option<Event>> {
        loop {
            // What has arrived by then is taken, however busy this machine is.
            let now = Instant::now();
            self.datagrams.turn(&mut self.account, now)?;
            let event = self.account.events.pop_front();
            if event.is_some() || now >= until || self.session.is_interrupted() {
                return Ok(event);
            }
            let due = self.datagrams.poll_timeout(&mut self.account, now);
            let until = due.map_or(until, |due| due.min(until));
            let mut polled = [self.datagrams.flow.polled()];
            self.session.wait(&mut polled, until)?;
        }
    }

    /// Whether it came from the address that messages are sent to.
    pub(super) fn is_from_service(&self, answer: &Answered) -> bool {
        let is_peer = |arrival: &Arrival| self.datagrams.flow.is_peer(&arrival.source);
        answer.arrival.as_ref().is_some_and(is_peer)
    }
}
