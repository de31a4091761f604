//! The messages of one source port: sends them at their times and takes what comes back.
//!
//! Never decides what an answer is: the payload recognizes it, the ledger accounts for it.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use nix::poll::PollFd;

use super::Outcome;
use crate::probe::args::PingArgs;
use crate::probe::cause::{Cause, Trouble};
use crate::probe::event::Event;
use crate::probe::exchange::{Account, Datagrams};
use crate::probe::link::{self, Address, DATAGRAM_MEMORY, Stream};
use crate::probe::payload::{Messages, Payload, nonce};
use crate::probe::route::Route;
use crate::probe::session::Session;

/// No more than this is queued for a stream whose other side does not read: messages that are due
/// then are not sent.
const UNSENT_BYTES_MAX: usize = 1 << 20;

/// After the last answer a further copy of it is waited for at least this long.
const COPY_TIME_MIN: Duration = Duration::from_millis(10);

/// See the module.
pub(super) struct PingFlow {
    route: Route,
    account: Account<Payload>,
    link: Link,
    interval: Duration,
    timeout: Duration,
    /// Messages that are still to be sent; none: without end.
    left: Option<u64>,
    /// When the next one is due.
    due: Instant,
    port: Option<u16>,
    /// What may help against the last failure.
    hint: String,
}

enum Link {
    Datagrams(Datagrams),
    Stream(Streams),
}

/// A stream, and the next one after its end.
#[derive(Default)]
struct Streams {
    /// None: not connected yet, or no longer.
    stream: Option<Stream>,
    /// What has returned of the next message.
    part: Vec<u8>,
    /// Why the last attempt to connect has failed.
    trouble: Option<Trouble>,
}

impl PingFlow {
    /// Opens a flow, whose first message is due then. A stream is connected when there is something
    /// to send.
    ///
    /// # Errors
    /// When this host cannot open it.
    pub(super) fn open(route: Route, args: &PingArgs, due: Instant) -> Result<Self, Trouble> {
        let (link, port) = match route.target().is_stream() {
            true => (Link::Stream(Streams::default()), None),
            false => {
                let datagrams = Datagrams::open(&route, args.timeout)?;
                let port = port_of(&datagrams.flow.socket);
                (Link::Datagrams(datagrams), port)
            }
        };
        let payload = Payload::new(args.size, nonce(), args.expect);
        Ok(Self {
            route,
            account: Account::new(payload, args.timeout),
            link,
            interval: args.interval,
            timeout: args.timeout,
            left: args.count,
            due,
            port,
            hint: String::new(),
        })
    }

    /// The service with which it is connected, or to which it sends.
    pub(super) fn peer(&self) -> &Address {
        let stream = match &self.link {
            Link::Stream(streams) => streams.stream.as_ref(),
            Link::Datagrams(_) => None,
        };
        stream.map_or(self.route.address(), |stream| &stream.peer)
    }

    /// Connects a stream that is not connected.
    pub(super) fn connect(&mut self, session: &Session) {
        if let Link::Stream(streams) = &mut self.link
            && streams.stream.is_none()
        {
            match self.route.connect(self.timeout, &session.interrupt) {
                Ok(stream) => {
                    self.port = port_of(&stream.socket);
                    streams.stream = Some(stream);
                }
                Err(trouble) => {
                    self.hint.clone_from(&trouble.hint);
                    streams.trouble = Some(trouble);
                }
            }
        }
    }

    /// Sends the messages that are due by now.
    pub(super) fn send_due(&mut self, now: Instant, session: &Session) {
        self.send(now);
        if self.left == Some(0) || now < self.due || self.account.ledger.unsent() > 0 {
            return;
        }
        self.connect(session);
        if let Link::Stream(streams) = &self.link {
            let may_send = match &streams.stream {
                Some(stream) => stream.unsent() <= UNSENT_BYTES_MAX,
                // An attempt that the user has ended says nothing of the service.
                None => !session.is_interrupted(),
            };
            if !may_send {
                return;
            }
        }
        let now = Instant::now();
        self.left = self.left.map(|left| left - 1);
        self.due = next_due(self.due, self.interval, now);
        self.account.ledger.handle_due(now, 1);
        self.send(now);
    }

    /// Sends a message that is due, unless a queue has no room for it.
    fn send(&mut self, now: Instant) {
        let account = &mut self.account;
        match &mut self.link {
            Link::Datagrams(datagrams) => datagrams.send(account, now),
            Link::Stream(_) if account.ledger.unsent() == 0 => {}
            Link::Stream(streams) => {
                let number = account.ledger.handle_sent(now);
                let Some(stream) = &mut streams.stream else {
                    // Not connected: the message is lost for the reason of that.
                    let cause = streams.trouble.take().map(|trouble| trouble.cause);
                    return account.fail(number, cause.unwrap_or(Cause::Closed), None);
                };
                stream.push(&account.messages.bytes(number));
                if let Err(error) = stream.flush() {
                    self.end(&Cause::of(&error));
                }
            }
        }
    }

    /// The stream is over; the next message begins another.
    fn end(&mut self, cause: &Cause) {
        if let Link::Stream(streams) = &mut self.link {
            streams.stream = None;
            streams.part.clear();
        }
        let count = self.account.ledger.handle_end(cause);
        if count > 0 {
            let ended = Event::Ended(cause.clone(), count);
            self.account.events.push_back(ended);
        }
    }

    /// Gives up what has not come back in time.
    pub(super) fn handle_time(&mut self, now: Instant) {
        match &mut self.link {
            Link::Datagrams(datagrams) => datagrams.handle_time(&mut self.account, now),
            Link::Stream(_) => self.account.handle_time(now),
        }
    }

    /// When there is something to do, at the latest.
    pub(super) fn poll_timeout(&mut self, now: Instant) -> Instant {
        let next = match self.left {
            Some(0) => self.end_of_patience(),
            // One that a full queue keeps here comes first.
            _ if self.account.ledger.unsent() > 0 => None,
            _ => Some(self.due),
        };
        let due = match &self.link {
            Link::Datagrams(datagrams) => datagrams.poll_timeout(&mut self.account, now),
            Link::Stream(_) => self.account.ledger.poll_timeout(),
        };
        let all = [next, due].into_iter().flatten();
        all.fold(link::never(), Instant::min)
    }

    /// Until when missing messages, and copies of the last one, are waited for.
    fn end_of_patience(&self) -> Option<Instant> {
        let tally = self.account.ledger.tally();
        let copies = tally
            .last_answer
            .filter(|_| matches!(self.link, Link::Datagrams(_)));
        let time = (tally.latencies.max() * 2)
            .max(COPY_TIME_MIN)
            .min(self.timeout);
        let copies = copies.map(|last| last + time);
        self.account.ledger.poll_patience().max(copies)
    }

    /// Whether all was sent, and nothing is waited for any more.
    pub(super) fn is_done(&self, now: Instant) -> bool {
        let is_over = self.left == Some(0) && self.account.ledger.outstanding() == 0;
        is_over && self.end_of_patience().is_none_or(|until| now >= until)
    }

    /// The command ends here.
    pub(super) fn interrupt(&mut self) {
        self.account.ledger.handle_interrupt();
    }

    /// What to wait for; nothing while a stream is not connected.
    pub(super) fn polled(&self) -> Option<PollFd<'_>> {
        match &self.link {
            Link::Datagrams(datagrams) => Some(datagrams.flow.polled()),
            Link::Stream(streams) => streams.stream.as_ref().map(Stream::polled),
        }
    }

    /// What has happened since the last call.
    pub(super) fn take_events(&mut self) -> VecDeque<Event> {
        let events = std::mem::take(&mut self.account.events);
        for event in &events {
            if let Event::Failed(_, _, Some(failure)) = event {
                self.hint = self.route.undelivered(failure).hint;
            }
        }
        events
    }

    /// What became of all messages.
    pub(super) fn into_outcome(self) -> Outcome {
        Outcome {
            port: self.port,
            tally: self.account.ledger.into_tally(),
            hint: self.hint,
        }
    }

    /// Takes all that was received.
    ///
    /// # Errors
    /// When a datagram socket cannot be read.
    pub(super) fn receive(&mut self) -> io::Result<()> {
        if let Link::Datagrams(datagrams) = &mut self.link {
            return datagrams.receive(&mut self.account);
        }
        if let Err(cause) = self.receive_stream() {
            self.end(&cause);
        }
        Ok(())
    }

    /// Takes all that has returned on a stream; why it is of no more use.
    fn receive_stream(&mut self) -> Result<(), Cause> {
        let size = self.account.messages.size;
        let failed = |error: io::Error| Cause::of(&error);
        let mut memory = vec![0; DATAGRAM_MEMORY];
        while let Link::Stream(streams) = &mut self.link
            && let Some(stream) = &mut streams.stream
        {
            let part = &mut streams.part;
            stream.flush().map_err(failed)?;
            match stream.receive(&mut memory).map_err(failed)? {
                None => return Ok(()),
                Some(0) => return Err(Cause::Closed),
                Some(len) => part.extend(&memory[..len]),
            }
            let now = Instant::now();
            let mut taken = 0;
            while let Some(message) = part.get(taken..taken + size) {
                taken += size;
                if !self.account.handle_piece(now, message) {
                    return Err(Cause::Mismatch);
                }
            }
            part.drain(..taken);
        }
        Ok(())
    }
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
