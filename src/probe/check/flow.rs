//! A client of a datagram service: asks, and takes the answer, wherever it comes from.
//!
//! Never judges. What may have been lost on the way is sent again; never waits longer for an answer
//! than the timeout.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::Service;
use super::finding::Halt;
use crate::probe::cause::{Cause, Trouble};
use crate::probe::link::{self, DATAGRAM_MEMORY, News};
use crate::probe::route::Route;
use crate::sys::message::Source;

/// A datagram is sent this often before it is called unanswered.
pub(super) const TRIES: u32 = 3;

/// How long to wait when the queue of a Unix socket has no room, or after a datagram was refused:
/// the service may be back.
const PAUSE: Duration = Duration::from_millis(20);

/// Of answers that were not asked for, this many are kept.
const ANSWERS_MAX: usize = 64;

/// A socket, and what has arrived on it.
pub(super) struct Client<'a> {
    service: &'a Service<'a>,
    flow: link::Flow,
    answers: VecDeque<Answer>,
    /// The answers that were taken, so that a copy is not taken for the answer to the next.
    done: Vec<Vec<u8>>,
    /// Why a datagram was not delivered.
    refusal: Option<Cause>,
}

/// A datagram that came.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) bytes: Vec<u8>,
    pub(super) source: Source,
    /// How often was asked for it.
    pub(super) attempt: u32,
}

/// What came of a question.
pub(super) enum Asked {
    Answered(Answer),
    /// Not within the time, or for a reason that is reported.
    Unanswered(Cause),
    /// It is larger than can be sent from here.
    TooLarge,
}

impl<'a> Client<'a> {
    pub(super) fn open(service: &'a Service<'a>) -> Result<Self, Trouble> {
        Self::open_on(service, &service.route)
    }

    /// The same on another way.
    pub(super) fn open_on(service: &'a Service<'a>, route: &Route) -> Result<Self, Trouble> {
        Ok(Self {
            service,
            flow: route.open()?,
            answers: VecDeque::new(),
            done: Vec::new(),
            refusal: None,
        })
    }

    /// Receives no answer from here on: as if this client were closed, but it can still send.
    pub(super) fn leave(&self) -> Result<(), Halt> {
        let left = self.flow.refuse_answers();
        left.map_err(|error| self.service.route.trouble(&error).into())
    }

    /// Sends a datagram, several times where that is needed, and waits for its answer.
    pub(super) fn ask(&mut self, message: &[u8]) -> Result<Asked, Halt> {
        match self.send(message) {
            Ok(()) => self.take_answer(message),
            Err(Halt::Unreached(trouble)) if trouble.cause == Cause::TooLarge => {
                Ok(Asked::TooLarge)
            }
            Err(halt) => Err(halt),
        }
    }

    /// Waits for the answer to a datagram that was sent once.
    pub(super) fn take_answer(&mut self, message: &[u8]) -> Result<Asked, Halt> {
        let began = Instant::now();
        for attempt in 1..=TRIES {
            if attempt > 1 {
                self.send(message)?;
            }
            let deadline = began + self.service.timeout * attempt / TRIES;
            if let Some(mut answer) = self.take_until(deadline)? {
                answer.attempt = attempt;
                self.done.push(self.service.expect.of(message));
                return Ok(Asked::Answered(answer));
            }
        }
        let cause = self.refusal.clone().unwrap_or(Cause::TimedOut);
        Ok(Asked::Unanswered(cause))
    }

    /// Sends a datagram; where a queue is full, as soon as it has room.
    pub(super) fn send(&mut self, message: &[u8]) -> Result<(), Halt> {
        let deadline = Instant::now() + self.service.timeout;
        loop {
            match self.flow.send(message) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => return Err(self.service.route.trouble(&error).into()),
            }
            if Instant::now() >= deadline {
                let seen = "it has no room for another datagram";
                return Err(Halt::failed(seen, Cause::TimedOut));
            }
            self.receive(Instant::now() + PAUSE)?;
        }
    }

    /// The next answer that comes until then. After a refusal the wait is short.
    pub(super) fn take_until(&mut self, mut deadline: Instant) -> Result<Option<Answer>, Halt> {
        self.refusal = None;
        loop {
            while let Some(answer) = self.answers.pop_front() {
                if !self.done.contains(&answer.bytes) {
                    return Ok(Some(answer));
                }
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            let was_refused = self.refusal.is_some();
            self.receive(deadline)?;
            if !was_refused && self.refusal.is_some() {
                deadline = deadline.min(Instant::now() + PAUSE);
            }
        }
    }

    /// Waits until then, or until something has arrived, and keeps it.
    fn receive(&mut self, until: Instant) -> Result<(), Halt> {
        self.service.look()?;
        link::wait_for(self.flow.socket.as_fd(), until, self.service.interrupt)?;
        let mut memory = vec![0; DATAGRAM_MEMORY];
        while self.answers.len() < ANSWERS_MAX
            && let Some(news) = self.flow.receive(&mut memory)?
        {
            match news {
                News::Failure(failure) => self.refusal = Some(Cause::of_failure(&failure)),
                News::Arrival(arrival) => self.answers.push_back(Answer {
                    bytes: memory[..arrival.len.min(memory.len())].to_vec(),
                    source: arrival.source,
                    attempt: 1,
                }),
            }
        }
        Ok(())
    }

    /// Whether this is the address that was asked.
    pub(super) fn is_asked(&self, source: &Source) -> bool {
        self.flow.is_peer(source)
    }
}
