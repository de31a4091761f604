//! The messages of one source port: sends them at their times and takes what comes back.
//!
//! Never decides what an answer is: the payload recognizes it, the ledger accounts for it.

use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use nix::poll::PollFd;

use super::Outcome;
use crate::probe::args::PingArgs;
use crate::probe::cause::{Cause, Trouble};
use crate::probe::compare::Difference;
use crate::probe::interrupt::Interrupt;
use crate::probe::latency::Latencies;
use crate::probe::ledger::{Answer, AnswerKind, Ledger};
use crate::probe::link::{Address, DATAGRAM_MEMORY, Flow, News, RETRY_INTERVAL, Stream};
use crate::probe::payload::{Payload, nonce};
use crate::probe::route::Route;
use crate::sys::message::Source;

/// No more than this is queued for a stream whose other side does not read: messages that are due
/// then are not sent.
const UNSENT_BYTES_MAX: usize = 1 << 20;

/// After the last answer a further copy of it is waited for at least this long.
const COPY_TIME_MIN: Duration = Duration::from_millis(10);

/// Something that has happened.
#[derive(Debug)]
pub(super) enum Event {
    /// An answer was received.
    Answered {
        answer: Answer,
        /// Of a corrupt one.
        difference: Option<Difference>,
        /// The sender of a datagram.
        source: Option<Source>,
        ttl: Option<u8>,
    },
    /// A message has not come back in time.
    Missing(u64),
    /// A message was sent in vain; the reporter, if it is not this host.
    Failed {
        number: u64,
        cause: Cause,
        reporter: Option<IpAddr>,
    },
    /// The stream has ended while this number of messages was on the way.
    Ended { cause: Cause, count: u64 },
}

impl Event {
    /// The number of messages whose fate this is.
    pub(super) fn ends(&self) -> u64 {
        match self {
            Self::Answered { answer, .. } => u64::from(answer.kind == AnswerKind::Received),
            Self::Missing(_) | Self::Failed { .. } => 1,
            Self::Ended { count, .. } => *count,
        }
    }
}

/// See the module.
pub(super) struct PingFlow {
    route: Route,
    payload: Payload,
    ledger: Ledger,
    link: Link,
    interval: Duration,
    timeout: Duration,
    /// Messages that are still to be sent; none: without end.
    left: Option<u64>,
    /// When the next one is due.
    due: Instant,
    /// Since when a queue has no room for the one that is due.
    full_since: Option<Instant>,
    port: Option<u16>,
    connects: Latencies,
    memory: Vec<u8>,
    events: Vec<Event>,
}

enum Link {
    Datagrams(Flow),
    Stream {
        /// None: not connected yet, or no longer.
        stream: Option<Stream>,
        /// What has returned of the next message.
        part: Vec<u8>,
        /// Why the last attempt to connect has failed.
        trouble: Option<Trouble>,
    },
}

impl PingFlow {
    /// Opens a flow, whose first message is due then. A stream is connected when there is something
    /// to send.
    ///
    /// # Errors
    /// When this host cannot open it.
    pub(super) fn open(route: Route, args: &PingArgs, due: Instant) -> Result<Self, Trouble> {
        let link = match route.target().is_stream() {
            true => Link::Stream {
                stream: None,
                part: Vec::new(),
                trouble: None,
            },
            false => Link::Datagrams(route.open()?),
        };
        let port = match &link {
            Link::Datagrams(flow) => port_of(&flow.socket),
            Link::Stream { .. } => None,
        };
        Ok(Self {
            route,
            payload: Payload::fixed(args.size, nonce(), args.expect),
            ledger: Ledger::new(args.timeout, None),
            link,
            interval: args.interval,
            timeout: args.timeout,
            left: args.count,
            due,
            full_since: None,
            port,
            connects: Latencies::default(),
            memory: vec![0; DATAGRAM_MEMORY],
            events: Vec::new(),
        })
    }

    /// The service with which it is connected, or to which it sends.
    pub(super) fn peer(&self) -> &Address {
        match &self.link {
            Link::Datagrams(flow) => &flow.peer,
            Link::Stream { stream, .. } => stream
                .as_ref()
                .map_or_else(|| self.route.address(), |stream| &stream.peer),
        }
    }

    /// Connects a stream that is not connected.
    pub(super) fn connect(&mut self, interrupt: &Interrupt) {
        let Link::Stream {
            stream, trouble, ..
        } = &mut self.link
        else {
            return;
        };
        if stream.is_some() {
            return;
        }
        match self.route.connect(self.timeout, interrupt) {
            Ok(connected) => {
                self.connects.record(connected.took);
                self.port = port_of(&connected.socket);
                *stream = Some(connected);
            }
            Err(failed) => *trouble = Some(failed),
        }
    }

    /// Sends the messages that are due by now.
    pub(super) fn send_due(&mut self, now: Instant, interrupt: &Interrupt) {
        self.send_unsent(now);
        if self.left == Some(0) || now < self.due || self.ledger.unsent() > 0 {
            return;
        }
        self.connect(interrupt);
        if let Link::Stream {
            stream, trouble, ..
        } = &mut self.link
        {
            let is_full = |stream: &Stream| stream.unsent() > UNSENT_BYTES_MAX;
            match (stream, trouble.take()) {
                (Some(stream), _) if is_full(stream) => return,
                // An attempt that the user has ended says nothing of the service.
                (None, Some(trouble)) if trouble.cause == Cause::Interrupted => return,
                (None, Some(failed)) => *trouble = Some(failed),
                _ => {}
            }
        }
        let now = Instant::now();
        self.left = self.left.map(|left| left - 1);
        self.due = next_due(self.due, self.interval, now);
        self.ledger.handle_due(now, 1);
        self.send_unsent(now);
    }

    /// Sends a message that is due, unless a queue has no room for it.
    fn send_unsent(&mut self, now: Instant) {
        if self.ledger.unsent() == 0 {
            return;
        }
        let number = self.ledger.handle_sent(now);
        let bytes = self.payload.bytes(number);
        let failed = match &mut self.link {
            Link::Datagrams(flow) => match flow.send(&bytes) {
                Ok(true) => return self.full_since = None,
                Ok(false) => {
                    self.full_since.get_or_insert(now);
                    return self.ledger.handle_unsent(1);
                }
                Err(error) => Cause::of(&error),
            },
            Link::Stream {
                stream: Some(stream),
                ..
            } => {
                stream.push(&bytes);
                match stream.flush() {
                    Ok(_) => return,
                    Err(error) => return self.end(&Cause::of(&error)),
                }
            }
            // Not connected: the message is lost for the reason of that.
            Link::Stream { trouble, .. } => {
                let trouble = trouble.take().map(|trouble| trouble.cause);
                trouble.unwrap_or(Cause::Closed)
            }
        };
        self.fail(number, failed, None);
    }

    fn fail(&mut self, number: u64, cause: Cause, reporter: Option<IpAddr>) {
        if self.ledger.handle_failure(number, &cause) {
            self.events.push(Event::Failed {
                number,
                cause,
                reporter,
            });
        }
    }

    /// The stream is over; the next message begins another.
    fn end(&mut self, cause: &Cause) {
        if let Link::Stream { stream, part, .. } = &mut self.link {
            *stream = None;
            part.clear();
        }
        let count = self.ledger.handle_end(cause);
        if count > 0 {
            let cause = cause.clone();
            self.events.push(Event::Ended { cause, count });
        }
    }

    /// Gives up what has not come back in time.
    pub(super) fn handle_time(&mut self, now: Instant) {
        while let Some(number) = self.ledger.handle_timeout(now) {
            self.events.push(Event::Missing(number));
        }
        // The queue has had no room for the message in all its time.
        if self
            .full_since
            .is_some_and(|since| now >= since + self.timeout)
        {
            self.full_since = None;
            let number = self.ledger.next_sent();
            if self.ledger.handle_failure(number, &Cause::TimedOut) {
                self.events.push(Event::Missing(number));
            }
        }
    }

    /// When there is something to do, at the latest.
    pub(super) fn poll_timeout(&mut self, now: Instant) -> Instant {
        let far = now + Duration::from_secs(3600);
        let next = match self.ledger.unsent() {
            0 if self.left == Some(0) => self.end_of_patience().unwrap_or(far),
            0 => self.due,
            _ => now + RETRY_INTERVAL,
        };
        self.ledger
            .poll_timeout()
            .map_or(next, |timeout| next.min(timeout))
    }

    /// Until when missing messages, and copies of the last one, are waited for.
    fn end_of_patience(&self) -> Option<Instant> {
        let tally = self.ledger.tally();
        let copies = tally
            .last_answer
            .filter(|_| matches!(self.link, Link::Datagrams(_)));
        let time = (tally.latencies.max() * 2)
            .max(COPY_TIME_MIN)
            .min(self.timeout);
        let copies = copies.map(|last| last + time);
        self.ledger.poll_patience().max(copies)
    }

    /// Whether all was sent, and nothing is waited for any more.
    pub(super) fn is_done(&self, now: Instant) -> bool {
        let is_over = self.left == Some(0) && self.ledger.outstanding() == 0;
        is_over && self.end_of_patience().is_none_or(|until| now >= until)
    }

    /// The command ends here.
    pub(super) fn interrupt(&mut self) {
        self.ledger.handle_interrupt();
    }

    /// What to wait for; nothing while a stream is not connected.
    pub(super) fn polled(&self) -> Option<PollFd<'_>> {
        match &self.link {
            Link::Datagrams(flow) => Some(flow.polled()),
            Link::Stream { stream, .. } => stream.as_ref().map(Stream::polled),
        }
    }

    /// What has happened since the last call.
    pub(super) fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// What became of all messages.
    pub(super) fn into_outcome(self) -> Outcome {
        Outcome {
            port: self.port,
            dropped: match &self.link {
                Link::Datagrams(flow) => flow.dropped(),
                Link::Stream { .. } => 0,
            },
            tally: self.ledger.into_tally(),
            connects: self.connects,
        }
    }

    /// Takes all that was received.
    ///
    /// # Errors
    /// When a datagram socket cannot be read.
    pub(super) fn receive(&mut self) -> io::Result<()> {
        if matches!(self.link, Link::Datagrams(_)) {
            return self.receive_datagrams();
        }
        if let Err(error) = self.receive_stream() {
            self.end(&Cause::of(&error));
        }
        Ok(())
    }

    fn receive_datagrams(&mut self) -> io::Result<()> {
        while let Link::Datagrams(flow) = &self.link
            && let Some(news) = flow.receive(&mut self.memory)?
        {
            let next = self.ledger.next_sent();
            match news {
                News::Arrival(arrival) => {
                    // When it reached this host, not when this process read it.
                    let now = Instant::now() - arrival.age.unwrap_or_default();
                    let bytes = &self.memory[..arrival.len.min(self.memory.len())];
                    let from_service = flow.is_peer(&arrival.source);
                    let what = self.payload.recognize(bytes, arrival.len, next);
                    let answer = self
                        .ledger
                        .handle_answer(now, what, arrival.len, from_service);
                    let difference = difference(self.payload, &answer, bytes, arrival.len);
                    self.events.push(Event::Answered {
                        answer,
                        difference,
                        source: Some(arrival.source),
                        ttl: arrival.ttl,
                    });
                }
                News::Failure(failure) => {
                    // One without its bytes is the last that was sent, most likely.
                    let bytes = &self.memory[..failure.len];
                    let number = self.payload.claimed(bytes, next);
                    if let Some(number) = number.or(next.checked_sub(1)) {
                        self.fail(number, Cause::of_failure(&failure), failure.reporter);
                    }
                }
            }
        }
        Ok(())
    }

    fn receive_stream(&mut self) -> io::Result<()> {
        let size = self.payload.size(0);
        while let Link::Stream {
            stream: Some(stream),
            part,
            ..
        } = &mut self.link
        {
            stream.flush()?;
            let len = match stream.receive(&mut self.memory)? {
                None => return Ok(()),
                Some(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Some(len) => len,
            };
            let now = Instant::now();
            part.extend(&self.memory[..len]);
            let mut rest = &part[..];
            let mut is_lost = false;
            while !is_lost && let Some((message, others)) = rest.split_at_checked(size) {
                rest = others;
                let next = self.ledger.next_sent();
                let what = self.payload.recognize(message, size, next);
                let answer = self.ledger.handle_answer(now, what, size, true);
                // Bytes are missing or inserted: it is unknown where the next message begins.
                is_lost = answer.kind == AnswerKind::Stray;
                let difference = difference(self.payload, &answer, message, size);
                self.events.push(Event::Answered {
                    answer,
                    difference,
                    source: None,
                    ttl: None,
                });
            }
            let kept = rest.len();
            part.drain(..part.len() - kept);
            if is_lost {
                self.end(&Cause::Mismatch);
            }
        }
        Ok(())
    }
}

/// How a corrupt answer differs from its message.
fn difference(payload: Payload, answer: &Answer, bytes: &[u8], len: usize) -> Option<Difference> {
    let number = answer
        .number
        .filter(|_| answer.kind == AnswerKind::Corrupt)?;
    payload.difference(number, bytes, len)
}

fn port_of(socket: &socket2::Socket) -> Option<u16> {
    Some(socket.local_addr().ok()?.as_socket()?.port())
}

/// When the message after this one is due. After a delay the schedule continues from now: to make up
/// for it would be a burst.
fn next_due(due: Instant, interval: Duration, now: Instant) -> Instant {
    (due + interval).max(now.checked_sub(interval).unwrap_or(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_due_at_their_times_and_never_in_a_burst() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let interval = Duration::from_millis(10);
        assert_eq!(next_due(at(0), interval, at(1)), at(10), "on time");
        assert_eq!(next_due(at(10), interval, at(19)), at(20), "a little late");
        assert_eq!(next_due(at(10), interval, at(500)), at(490), "far behind");
        assert_eq!(next_due(at(10), Duration::ZERO, at(500)), at(500));
    }
}
