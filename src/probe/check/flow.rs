//! A client of a datagram service: asks, and takes the answer, wherever it comes from.
//!
//! Never judges. What may have been lost on the way is sent again; never waits longer for an answer
//! than the timeout.

use std::time::{Duration, Instant};

use super::Service;
use super::finding::Halt;
use crate::probe::cause::{Cause, Trouble};
use crate::probe::event::{Answered, Event};
use crate::probe::exchange::Exchange;
use crate::probe::figures;
use crate::probe::ledger::{self, AnswerKind};
use crate::probe::link::RETRY_INTERVAL;
use crate::probe::route::Route;
use crate::probe::sent::Sent;

/// A datagram is sent this often before it is called unanswered.
pub(super) const TRIES: u32 = 3;

/// How long to wait after a datagram was refused: the service may be back.
const PAUSE: Duration = Duration::from_millis(20);

/// A socket, and what has arrived on it.
pub(super) struct Client<'a> {
    service: &'a Service<'a>,
    exchange: Exchange<'a, Sent>,
    /// What was sent before this one is over: an answer to it is a copy, or too late.
    first: u64,
    /// Why a datagram was not delivered.
    refusal: Option<Trouble>,
}

impl<'a> Client<'a> {
    pub(super) fn open(service: &'a Service<'a>) -> Result<Self, Trouble> {
        Self::open_on(service, &service.session.route)
    }

    /// The same on another way.
    pub(super) fn open_on(service: &'a Service<'a>, route: &Route) -> Result<Self, Trouble> {
        let sent = Sent::new(service.expect);
        Ok(Self {
            service,
            exchange: Exchange::open(service.session, route, sent, service.timeout)?,
            first: 0,
            refusal: None,
        })
    }

    /// Receives no answer from here on: as if this client were closed, but it can still send.
    pub(super) fn leave(&self) -> Result<(), Halt> {
        let left = self.exchange.datagrams.flow.refuse_answers();
        left.map_err(|error| self.service.session.route.trouble(&error).into())
    }

    /// Sends a datagram, several times where that is needed, and waits for its answer.
    pub(super) fn ask(&mut self, message: &[u8]) -> Result<Answered, Halt> {
        self.send(message)?;
        self.take_answer(message)
    }

    /// Waits for the answer to a datagram that was sent once.
    pub(super) fn take_answer(&mut self, message: &[u8]) -> Result<Answered, Halt> {
        let began = Instant::now();
        let timeout = self.service.timeout;
        for attempt in 1..=TRIES {
            if attempt > 1 {
                self.send(message)?;
            }
            if let Some(answer) = self.take_until(began + timeout * attempt / TRIES)? {
                self.forget();
                return Ok(answer);
            }
        }
        if let Some(trouble) = self.refusal.take() {
            return Err(trouble.into());
        }
        let seen = format!("no answer: nothing within {}", figures::setting(timeout));
        Err(Halt::failed(seen, Cause::TimedOut))
    }

    /// No more answers are expected to what was sent until now.
    pub(super) fn forget(&mut self) {
        self.first = self.exchange.account.ledger.next_sent();
    }

    /// Sends a datagram; where a queue is full, as soon as it has room.
    pub(super) fn send(&mut self, message: &[u8]) -> Result<(), Halt> {
        self.exchange.account.messages.push(message.to_vec());
        self.exchange.send()?;
        while self.exchange.account.ledger.unsent() > 0 {
            self.service.look()?;
            let now = Instant::now();
            self.service.session.wait(&mut [], now + RETRY_INTERVAL)?;
            self.exchange.turn()?;
        }
        Ok(())
    }

    /// The next answer that comes until then. After a refusal the wait is short.
    pub(super) fn take_until(&mut self, mut deadline: Instant) -> Result<Option<Answered>, Halt> {
        self.refusal = None;
        while let Some(event) = self.exchange.next_event(deadline)? {
            match event {
                Event::Answered(answer) if self.is_expected(&answer.answer) => {
                    return Ok(Some(answer));
                }
                Event::Failed(_, _, Some(failure)) => {
                    let trouble = self.service.session.route.undelivered(&failure);
                    if trouble.cause == Cause::TooLarge {
                        return Err(Halt::NotApplicable("it can't be sent from here".into()));
                    }
                    self.refusal = Some(trouble);
                    deadline = deadline.min(Instant::now() + PAUSE);
                }
                _ => {}
            }
        }
        self.service.look()?;
        Ok(None)
    }

    /// Whether it is neither a further copy nor an answer to what is over. The network may double
    /// any, and bring it late.
    fn is_expected(&self, answer: &ledger::Answer) -> bool {
        let is_over = answer.number.is_some_and(|number| number < self.first);
        answer.kind != AnswerKind::Duplicate && !is_over
    }

    /// Whether it comes from the address that was asked.
    pub(super) fn is_asked(&self, answer: &Answered) -> bool {
        self.exchange.is_from_service(answer)
    }
}
