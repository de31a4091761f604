//! Sends messages of one flow at their times and takes what comes back.
//!
//! Never judges an answer: that is [`super::ledger`]'s. Of `ping`, and of `ports` many at once.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use super::Trouble;
use super::args::Pace;
use super::cause::Cause;
use super::interrupt::{Interrupt, LOOK_INTERVAL};
use super::latency::Latencies;
use super::ledger::{Answer, Difference, Kind, Ledger, Tally};
use super::noise::nonce;
use super::payload::Payload;
use super::report::{Report, milliseconds};
use super::route::{self, Connection, Flow, RETRY_INTERVAL, Route};
use crate::sys::message::Source;

/// More than this is not queued for a stream whose other side does not read: messages that are due
/// meanwhile are not sent.
const UNSENT_BYTES_MAX: usize = 1 << 20;

/// More than the largest datagram: what is longer than it should be, by a byte or by many, is seen.
const MEMORY_BYTES: usize = 64 * 1024;

/// What is sent, and when.
#[derive(Clone, Debug)]
pub(super) struct Course {
    /// How often, at which size, and how answers are judged.
    pub(super) pace: Pace,
    /// How many messages; none: without end.
    pub(super) count: Option<u64>,
    /// The end, whatever is still to come.
    pub(super) deadline: Option<Duration>,
}

/// Something that has happened.
#[derive(Debug)]
pub(super) enum Event {
    /// Something came back.
    Answered {
        answer: Answer,
        /// From where, of datagrams.
        source: Option<Source>,
        ttl: Option<u8>,
    },
    /// A message has not come back in time.
    Missing(u64),
    /// A message was sent in vain; who says so, if not we ourselves.
    Failed {
        number: u64,
        cause: Cause,
        reporter: Option<IpAddr>,
    },
    /// The stream has ended while so many messages were on the way.
    Ended { cause: Cause, count: u64 },
}

/// What came of it.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) tally: Tally,
    pub(super) connects: Latencies,
    /// Messages on the way when it was cut short.
    pub(super) in_flight: u64,
    /// Datagrams that had come back and found no room in our buffer.
    pub(super) dropped: u64,
    pub(super) duration: Duration,
}

impl Outcome {
    /// For programs.
    pub(super) fn report(&self) -> Report {
        Report {
            duration_ms: Some(milliseconds(self.duration)),
            connect_us: self.connects.spread(),
            in_flight: (self.in_flight > 0).then_some(self.in_flight),
            dropped: (self.dropped > 0).then_some(self.dropped),
            ..self.tally.report()
        }
    }
}

/// One flow.
pub(super) struct Prober<'a> {
    route: &'a Route,
    course: &'a Course,
    payload: Payload,
    ledger: Ledger,
    link: Link,
    /// A message for which a queue has had no room yet. Its time runs.
    held: Option<u64>,
    connects: Latencies,
    memory: Vec<u8>,
}

/// What messages go over.
enum Link {
    Datagrams(Flow),
    /// None: not connected yet, or any more.
    Stream(Option<Stream>),
}

/// A stream with messages on the way.
struct Stream {
    connection: Connection,
    unsent: VecDeque<u8>,
    /// What has come back of the next message.
    part: Vec<u8>,
}

impl<'a> Prober<'a> {
    /// Opens a flow. A stream is connected when there is something to send.
    ///
    /// # Errors
    /// When this host can't open it.
    pub(super) fn new(route: &'a Route, course: &'a Course) -> Result<Self, Trouble> {
        let pace = &course.pace;
        let payload = Payload::new(pace.size, nonce(), pace.expect);
        let link = match route.target().is_stream() {
            true => Link::Stream(None),
            false => Link::Datagrams(route.open()?),
        };
        Ok(Self {
            route,
            course,
            payload,
            ledger: Ledger::new(payload, pace.timeout),
            link,
            held: None,
            connects: Latencies::default(),
            memory: vec![0; MEMORY_BYTES],
        })
    }

    /// Runs the course, to its end or until it is interrupted.
    ///
    /// # Errors
    /// When the socket itself can't be waited for or read.
    pub(super) fn run(
        mut self,
        interrupt: &Interrupt,
        mut observe: impl FnMut(Event),
    ) -> io::Result<Outcome> {
        let began = Instant::now();
        let end = self.course.deadline.map(|deadline| began + deadline);
        let mut due = began;
        loop {
            let now = Instant::now();
            while let Some(number) = self.ledger.handle_timeout(now) {
                self.held.take_if(|held| *held == number);
                observe(Event::Missing(number));
            }
            if interrupt.is_requested() || end.is_some_and(|end| now >= end) {
                break;
            }
            let sent = self.ledger.tally().sent;
            let sends = self.course.count.is_none_or(|count| sent < count);
            if let Some(number) = self.held.take() {
                self.send_datagram(number, &mut observe);
            }
            if sends && now >= due && self.held.is_none() {
                self.send(&mut observe);
                due = next_due(due, self.course.pace.interval, Instant::now());
            }
            let timeout = self.ledger.poll_timeout();
            let patience = self.ledger.poll_patience();
            if !sends && timeout.is_none() && patience.is_none_or(|until| now >= until) {
                break;
            }
            let reasons = [
                match self.held {
                    Some(_) => Some(now + RETRY_INTERVAL),
                    None => sends.then_some(due),
                },
                timeout,
                patience.filter(|_| !sends),
                end,
                Some(now + LOOK_INTERVAL),
            ];
            let until = reasons.into_iter().flatten().min().unwrap_or(now);
            self.wait(until.saturating_duration_since(Instant::now()))?;
            self.receive(&mut observe)?;
        }
        Ok(Outcome {
            in_flight: self.ledger.in_flight(),
            dropped: self.link.dropped(),
            tally: self.ledger.tally().clone(),
            connects: self.connects,
            duration: began.elapsed(),
        })
    }

    fn wait(&self, timeout: Duration) -> io::Result<()> {
        match self.link.fd() {
            Some((fd, output)) => route::wait(fd, output, timeout).map(drop),
            None => {
                thread::sleep(timeout);
                Ok(())
            }
        }
    }

    /// Sends the next message.
    fn send(&mut self, observe: &mut impl FnMut(Event)) {
        if let Link::Stream(stream) = &mut self.link {
            if stream.is_none() {
                match self.route.connect(self.course.pace.timeout) {
                    Ok(connection) => {
                        self.connects.record(connection.took);
                        *stream = Stream::new(connection).ok();
                    }
                    Err(trouble) => {
                        let number = self.ledger.handle_sent(Instant::now());
                        self.fail(number, trouble.cause, None, observe);
                        return;
                    }
                }
            }
            if stream.as_ref().is_some_and(Stream::is_full) {
                return;
            }
        }
        let number = self.ledger.handle_sent(Instant::now());
        match &mut self.link {
            Link::Datagrams(_) => self.send_datagram(number, observe),
            Link::Stream(Some(stream)) => {
                stream.unsent.extend(self.payload.bytes(number));
                if let Err(error) = stream.flush() {
                    self.end(&Cause::of(&error), observe);
                }
            }
            Link::Stream(None) => self.end(&Cause::of(&ErrorKind::NotConnected.into()), observe),
        }
    }

    /// Sends a message, or holds it until the queue that is full has room.
    fn send_datagram(&mut self, number: u64, observe: &mut impl FnMut(Event)) {
        let Link::Datagrams(flow) = &self.link else {
            return;
        };
        match flow.send(&self.payload.bytes(number)) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.held = Some(number),
            Err(error) => self.fail(number, Cause::of(&error), None, observe),
        }
    }

    fn fail(
        &mut self,
        number: u64,
        cause: Cause,
        reporter: Option<IpAddr>,
        observe: &mut impl FnMut(Event),
    ) {
        if self.ledger.handle_failure(number, cause.clone()) {
            observe(Event::Failed {
                number,
                cause,
                reporter,
            });
        }
    }

    /// The stream is over; the next message begins another.
    fn end(&mut self, cause: &Cause, observe: &mut impl FnMut(Event)) {
        self.link = Link::Stream(None);
        let count = self.ledger.handle_end(cause);
        if count > 0 {
            let cause = cause.clone();
            observe(Event::Ended { cause, count });
        }
    }

    /// Takes all that has come.
    fn receive(&mut self, observe: &mut impl FnMut(Event)) -> io::Result<()> {
        match self.link {
            Link::Datagrams(_) => self.receive_datagrams(observe),
            Link::Stream(_) => {
                if let Err(error) = self.receive_stream(observe) {
                    self.end(&Cause::of(&error), observe);
                }
                Ok(())
            }
        }
    }

    fn receive_datagrams(&mut self, observe: &mut impl FnMut(Event)) -> io::Result<()> {
        let Link::Datagrams(flow) = &self.link else {
            return Ok(());
        };
        while let Some(arrival) = flow.receive(&mut self.memory)? {
            // When it reached this host, not when we came to read it.
            let arrived = Instant::now() - arrival.age.unwrap_or_default();
            let bytes = &self.memory[..arrival.len.min(self.memory.len())];
            let from_peer = flow.is_peer(&arrival.source);
            let answer = self
                .ledger
                .handle_answer(arrived, bytes, arrival.len, from_peer);
            observe(Event::Answered {
                answer,
                source: Some(arrival.source),
                ttl: arrival.ttl,
            });
        }
        let mut failed = Vec::new();
        while let Some(failure) = flow.receive_failure(&mut self.memory)? {
            let cause = Cause::of(&failure.error);
            let sent = self.ledger.tally().sent;
            let number = self.payload.claimed(&self.memory[..failure.len], sent);
            // An empty one has no number: it is the last one, most likely.
            let number = number.or(sent.checked_sub(1)).filter(|_| sent > 0);
            failed.extend(number.map(|number| (number, cause, failure.reporter)));
        }
        for (number, cause, reporter) in failed {
            self.fail(number, cause, reporter, observe);
        }
        Ok(())
    }

    fn receive_stream(&mut self, observe: &mut impl FnMut(Event)) -> io::Result<()> {
        let Link::Stream(Some(stream)) = &mut self.link else {
            return Ok(());
        };
        stream.flush()?;
        let size = self.payload.size();
        loop {
            let len = match (&stream.connection.socket).read(&mut self.memory) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let now = Instant::now();
            stream.part.extend(&self.memory[..len]);
            let mut rest = &stream.part[..];
            while let Some((message, others)) = rest.split_at_checked(size) {
                rest = others;
                let answer = self.ledger.handle_answer(now, message, size, true);
                let lost_track = has_lost_track(&answer, size);
                observe(Event::Answered {
                    answer,
                    source: None,
                    ttl: None,
                });
                if lost_track {
                    self.end(&Cause::Mismatch, observe);
                    return Ok(());
                }
            }
            let kept = rest.len();
            stream.part.drain(..stream.part.len() - kept);
        }
    }
}

/// Whether what came is so far from what should that the stream has more, or fewer, bytes than were
/// sent: where the next message begins nobody knows.
fn has_lost_track(answer: &Answer, size: usize) -> bool {
    match &answer.kind {
        Kind::Corrupt(Difference::Bytes { count, .. }) => count * 2 > size,
        Kind::Stray => true,
        _ => false,
    }
}

/// When the message after this one is due. Who has fallen behind goes on from now: to make up for it
/// would be a burst.
fn next_due(due: Instant, interval: Duration, now: Instant) -> Instant {
    (due + interval).max(now.checked_sub(interval).unwrap_or(now))
}

impl Link {
    /// What to wait for: a descriptor, and whether also for room to send.
    fn fd(&self) -> Option<(BorrowedFd<'_>, bool)> {
        match self {
            Self::Datagrams(flow) => Some((flow.socket.as_fd(), false)),
            Self::Stream(stream) => {
                let stream = stream.as_ref()?;
                let fd = stream.connection.socket.as_fd();
                Some((fd, !stream.unsent.is_empty()))
            }
        }
    }

    fn dropped(&self) -> u64 {
        match self {
            Self::Datagrams(flow) => flow.dropped(),
            Self::Stream(_) => 0,
        }
    }
}

impl Stream {
    fn new(connection: Connection) -> io::Result<Self> {
        connection.socket.set_nonblocking(true)?;
        Ok(Self {
            connection,
            unsent: VecDeque::new(),
            part: Vec::new(),
        })
    }

    fn is_full(&self) -> bool {
        self.unsent.len() > UNSENT_BYTES_MAX
    }

    /// Sends as much as the kernel takes.
    fn flush(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            let (bytes, _) = self.unsent.as_slices();
            match (&self.connection.socket).write(bytes) {
                Ok(len) => drop(self.unsent.drain(..len)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
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
