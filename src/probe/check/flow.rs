//! A client of a service of datagrams: asks, and takes the answer, wherever it comes from.
//!
//! Never judges. What may have been lost on the way is sent again; never waits longer for an answer
//! than it may take.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::Service;
use super::judgement::Stop;
use super::material::folded;
use crate::probe::Trouble;
use crate::probe::args::DATAGRAM_BYTES_MAX;
use crate::probe::cause::Cause;
use crate::probe::interrupt::LOOK_INTERVAL;
use crate::probe::route::{self, Route};
use crate::sys::message::Source;

/// How often a datagram is sent before it is taken for unanswered.
pub(super) const TRIES: u32 = 3;

/// How long to wait when there is no room in the queue of a Unix socket, or when somebody was not
/// there for a moment.
const PAUSE: Duration = Duration::from_millis(20);

/// So many that nobody has asked for are kept.
const ANSWERS_MAX: usize = 64;

/// A socket, and what has come to it.
pub(super) struct Client<'a> {
    service: &'a Service<'a>,
    flow: route::Flow,
    answers: VecDeque<Answer>,
    /// What is due of those that were answered, so that a second answer is not taken for one to the
    /// next.
    done: Vec<Vec<u8>>,
    /// What the network has said of what was sent.
    news: Option<Cause>,
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
    /// Not within the time, or somebody says why.
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
            news: None,
        })
    }

    /// Receives no answer from here on: as if this client were closed, but it can still send.
    pub(super) fn leave(&self) -> Result<(), Stop> {
        let left = self.flow.refuse_answers();
        left.map_err(|error| self.service.route.trouble(&error).into())
    }

    /// Sends a datagram, several times where that is needed, and waits for its answer.
    pub(super) fn ask(&mut self, message: &[u8]) -> Result<Asked, Stop> {
        match self.send(message) {
            Ok(()) => self.hear(message),
            Err(Stop::Unreached(trouble)) if trouble.cause == Cause::TooLarge => {
                Ok(Asked::TooLarge)
            }
            Err(stop) => Err(stop),
        }
    }

    /// Waits for the answer to a datagram that was sent once.
    pub(super) fn hear(&mut self, message: &[u8]) -> Result<Asked, Stop> {
        let began = Instant::now();
        for attempt in 1..=TRIES {
            if attempt > 1 {
                self.send(message)?;
            }
            let deadline = began + self.service.timeout * attempt / TRIES;
            if let Some(mut answer) = self.take_until(deadline)? {
                answer.attempt = attempt;
                self.done.push(folded(message, self.service.expect));
                return Ok(Asked::Answered(answer));
            }
        }
        Ok(Asked::Unanswered(self.why_silent()))
    }

    /// What the network says of it; otherwise that nothing came in time.
    pub(super) fn why_silent(&self) -> Cause {
        self.news.clone().unwrap_or(Cause::TimedOut)
    }

    /// Sends a datagram; where a queue is full, as soon as it has room.
    pub(super) fn send(&mut self, message: &[u8]) -> Result<(), Stop> {
        let deadline = Instant::now() + self.service.timeout;
        loop {
            match self.flow.send(message) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(self.service.route.trouble(&error).into()),
                Ok(()) => return Ok(()),
            }
            if Instant::now() >= deadline {
                let seen = "it has no room for another datagram";
                return Err(Stop::failed(seen, Cause::TimedOut));
            }
            self.listen(PAUSE)?;
        }
    }

    /// The next that comes until then. When somebody says that nobody is there, it is given a moment
    /// and no more.
    pub(super) fn take_until(&mut self, mut deadline: Instant) -> Result<Option<Answer>, Stop> {
        self.news = None;
        loop {
            while let Some(answer) = self.answers.pop_front() {
                if !self.done.contains(&answer.bytes) {
                    return Ok(Some(answer));
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let had_news = self.news.is_some();
            self.listen(left)?;
            if !had_news && self.news.is_some() {
                deadline = deadline.min(Instant::now() + PAUSE);
            }
        }
    }

    /// Waits so long, or until something has come, and keeps it.
    fn listen(&mut self, time: Duration) -> Result<(), Stop> {
        self.service.look()?;
        route::wait(self.flow.socket.as_fd(), false, time.min(LOOK_INTERVAL))?;
        let mut memory = vec![0; DATAGRAM_BYTES_MAX + 1];
        while let Some(failure) = self.flow.receive_failure(&mut memory)? {
            self.news = Some(Cause::of(&failure.error));
        }
        while self.answers.len() < ANSWERS_MAX
            && let Some(arrival) = self.flow.receive(&mut memory)?
        {
            self.answers.push_back(Answer {
                bytes: memory[..arrival.len.min(memory.len())].to_vec(),
                source: arrival.source,
                attempt: 1,
            });
        }
        Ok(())
    }

    /// Whether this is the address that was asked.
    pub(super) fn is_asked(&self, source: &Source) -> bool {
        self.flow.is_peer(source)
    }
}
