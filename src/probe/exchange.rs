//! Messages to a service and back: what is sent and received, and what happened to each message.
//!
//! Never decides what an answer is: the messages are recognized by their bytes, and the ledger
//! accounts for them.

use std::io;
use std::time::{Duration, Instant};

use super::cause::{Cause, Trouble};
use super::compare::{Difference, difference};
use super::ledger::{Answer, AnswerKind, Ledger};
use super::link::{DATAGRAM_MEMORY, Flow, News, RETRY_INTERVAL};
use super::payload::{Messages, Recognized};
use super::route::Route;
use crate::sys::measure::{Arrival, ReceiveFailure};

/// Something that has happened.
#[derive(Debug)]
pub(super) enum Event {
    /// An answer was received.
    Answered {
        answer: Answer,
        bytes: Vec<u8>,
        /// Of a corrupt one.
        difference: Option<Difference>,
        /// Of a datagram.
        arrival: Option<Arrival>,
    },
    /// A message has not come back in time.
    Missing(u64),
    /// A message was sent in vain; what the network or this host reports of a datagram.
    Failed {
        number: u64,
        cause: Cause,
        failure: Option<ReceiveFailure>,
    },
    /// The stream has ended while this number of messages was on the way.
    Ended { cause: Cause, count: u64 },
}

/// The messages of a flow, their account, and what has happened since the last look.
pub(super) struct Account<M> {
    pub(super) messages: M,
    pub(super) ledger: Ledger,
    pub(super) events: Vec<Event>,
}

impl<M: Messages> Account<M> {
    pub(super) fn new(messages: M, timeout: Duration) -> Self {
        Self {
            messages,
            ledger: Ledger::new(timeout, None),
            events: Vec::new(),
        }
    }

    /// Something of this length came: what it is.
    pub(super) fn handle_answer(
        &mut self,
        now: Instant,
        bytes: &[u8],
        len: usize,
        from_service: bool,
        arrival: Option<Arrival>,
    ) -> AnswerKind {
        let what = self.recognize(bytes, len);
        self.handle_recognized(now, what, bytes, len, from_service, arrival)
    }

    /// As many bytes as a message has came on a stream. Those of no message belong to the one that
    /// is outstanding longest; where the next one begins is unknown then, and this returns false.
    pub(super) fn handle_piece(&mut self, now: Instant, bytes: &[u8]) -> bool {
        let found = self.recognize(bytes, bytes.len());
        let is_known = found != Recognized::Unknown;
        let oldest = self.ledger.oldest().filter(|_| !is_known);
        let what = oldest.map_or(found, Recognized::Changed);
        let kind = self.handle_recognized(now, what, bytes, bytes.len(), true, None);
        is_known && kind != AnswerKind::Stray
    }

    fn recognize(&self, bytes: &[u8], len: usize) -> Recognized {
        let next = self.ledger.next_sent();
        self.messages.recognize(bytes, len, next)
    }

    fn handle_recognized(
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
        self.events.push(Event::Answered {
            answer,
            bytes: bytes.to_vec(),
            difference: corrupt
                .and_then(|number| difference(&self.messages.expected(number), bytes, len)),
            arrival,
        });
        answer.kind
    }

    /// A message was sent in vain.
    pub(super) fn fail(&mut self, number: u64, cause: Cause, failure: Option<ReceiveFailure>) {
        if self.ledger.handle_failure(number, &cause) {
            self.events.push(Event::Failed {
                number,
                cause,
                failure,
            });
        }
    }

    /// Gives up what has not come back in time.
    pub(super) fn handle_time(&mut self, now: Instant) {
        while let Some(number) = self.ledger.handle_timeout(now) {
            self.events.push(Event::Missing(number));
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
                account.events.push(Event::Missing(number));
            }
        }
    }

    /// Takes all that was received.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub(super) fn receive<M: Messages>(&mut self, account: &mut Account<M>) -> io::Result<()> {
        while let Some(news) = self.flow.receive(&mut self.memory)? {
            match news {
                News::Arrival(arrival) => {
                    // When it reached this host, not when this process read it.
                    let now = Instant::now() - arrival.age.unwrap_or_default();
                    let bytes = &self.memory[..arrival.len.min(self.memory.len())];
                    let (len, from_service) = (arrival.len, self.flow.is_peer(&arrival.source));
                    account.handle_answer(now, bytes, len, from_service, Some(arrival));
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
