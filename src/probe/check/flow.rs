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
use crate::probe::figures;
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
}

impl<'a> Client<'a> {
    pub(super) fn open(service: &'a Service<'a>) -> Result<Self, Trouble> {
        Self::open_on(service, &service.session.route)
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
        left.map_err(|error| self.service.session.route.trouble(&error).into())
    }

    /// Sends a datagram, several times where that is needed, and waits for its answer.
    pub(super) fn ask(&mut self, message: &[u8]) -> Result<Answer, Halt> {
        self.send(message)?;
        self.take_answer(message)
    }

    /// Waits for the answer to a datagram that was sent once.
    pub(super) fn take_answer(&mut self, message: &[u8]) -> Result<Answer, Halt> {
        let began = Instant::now();
        let timeout = self.service.timeout;
        for attempt in 1..=TRIES {
            if attempt > 1 {
                self.send(message)?;
            }
            if let Some(answer) = self.take_until(began + timeout * attempt / TRIES)? {
                self.done.push(self.service.expect.of(message));
                return Ok(answer);
            }
        }
        Err(match &self.refusal {
            Some(cause) => Halt::failed(cause.to_string(), cause.clone()),
            None => {
                let time = figures::setting(timeout);
                let seen = format!("no answer: nothing within {time}");
                Halt::failed(seen, Cause::TimedOut)
            }
        })
    }

    /// Sends a datagram; where a queue is full, as soon as it has room.
    pub(super) fn send(&mut self, message: &[u8]) -> Result<(), Halt> {
        let deadline = Instant::now() + self.service.timeout;
        loop {
            match self.flow.send(message) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) if Cause::of(&error) == Cause::TooLarge => {
                    return Err(Halt::NotApplicable("it can't be sent from here".into()));
                }
                Err(error) => return Err(self.service.session.route.trouble(&error).into()),
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
        let interrupt = &self.service.session.interrupt;
        link::wait_for(self.flow.socket.as_fd(), until, interrupt)?;
        let mut memory = vec![0; DATAGRAM_MEMORY];
        while self.answers.len() < ANSWERS_MAX
            && let Some(news) = self.flow.receive(&mut memory)?
        {
            match news {
                News::Failure(failure) => self.refusal = Some(Cause::of_failure(&failure)),
                News::Arrival(arrival) => self.answers.push_back(Answer {
                    bytes: memory[..arrival.len.min(memory.len())].to_vec(),
                    source: arrival.source,
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
