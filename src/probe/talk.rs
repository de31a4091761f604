//! A conversation, line by line, as the tutorial's clients have it: a line goes out without its end,
//! and what comes back is printed under it.
//!
//! Turns between the service and the user, and waits for neither alone: the end of a connection is
//! told also while a line is being typed. What an answer is, is decided in [`conversation`].

mod conversation;
mod editor;
mod input;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::args::Path;
use super::cause::Cause;
use super::interrupt::{Interrupt, LOOK_INTERVAL};
use super::news::{self, DATAGRAM_MEMORY, News};
use super::printable::printable;
use super::report::Verdict;
use super::route::{Connection, Flow, RETRY_INTERVAL, Route};
use super::target::Target;
use super::{Console, Trouble};
use crate::cli::exit::Failure;
use crate::cli::terminal;
use crate::cli::text::escape;
use conversation::{Conversation, Heard, Missed};
use input::{Input, Said};

/// What ends the conversation.
const QUIT: &[u8] = b"q";

/// How much of a stream is taken at once, and how much of it in one turn.
const PIECE_BYTES: usize = 64 * 1024;
const TURN_BYTES_MAX: usize = 16 * PIECE_BYTES;

/// Does what the command line says.
///
/// # Errors
/// When the command line makes no sense for this service, or results can't be printed.
pub(super) fn run(
    url: &Target,
    timeout: Duration,
    path: &Path,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Verdict, Failure> {
    let route = match Route::resolve(url, path) {
        Ok(route) => route,
        Err(trouble) => return console.unreached(&trouble),
    };
    let link = match Link::open(&route, timeout) {
        Ok(link) => link,
        Err(trouble) => return console.unreached(&trouble),
    };
    let mut talk = Talk {
        route: &route,
        console,
        timeout,
        link,
        input: Input::open(console)?,
        conversation: Conversation::new(url.transport(), timeout),
        phase: Phase::Ready,
        memory: vec![0; PIECE_BYTES.max(DATAGRAM_MEMORY)],
        last_words: None,
    };
    let began = Instant::now();
    let went = talk.converse(interrupt);
    // Whatever has happened, the terminal is left as it was.
    talk.input.close(interrupt);
    if let Some(words) = talk.last_words.take() {
        talk.note(&words)?;
    }
    went?;
    let report = talk.conversation.report(began.elapsed());
    console.report(&report)?;
    Ok(talk.conversation.verdict())
}

/// The way to the service.
enum Link {
    Stream {
        connection: Connection,
        /// What of a line is still to be written.
        unsent: Vec<u8>,
    },
    Datagrams {
        flow: Flow,
        /// A line for which a queue has had no room yet.
        unsent: Option<Vec<u8>>,
    },
}

impl Link {
    fn open(route: &Route, timeout: Duration) -> Result<Self, Trouble> {
        if !route.target().is_stream() {
            return Ok(Self::Datagrams {
                flow: route.open()?,
                unsent: None,
            });
        }
        let connection = route.connect(timeout)?;
        let nonblocking = connection.socket.set_nonblocking(true);
        nonblocking.map_err(|error| route.trouble(&error))?;
        Ok(Self::Stream {
            connection,
            unsent: Vec::new(),
        })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Stream { connection, .. } => connection.socket.as_fd(),
            Self::Datagrams { flow, .. } => flow.socket.as_fd(),
        }
    }

    /// Whether there is something that the peer has not taken yet.
    fn has_unsent(&self) -> bool {
        match self {
            Self::Stream { unsent, .. } => !unsent.is_empty(),
            Self::Datagrams { unsent, .. } => unsent.is_some(),
        }
    }
}

/// What the conversation is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// For nothing: the next line may be asked for.
    Ready,
    /// For a line.
    Asked,
    /// For the rest and the peer's end, so long: there will be no more lines.
    Leaving(Instant),
    /// It is over.
    Over,
}

struct Talk<'a> {
    route: &'a Route,
    console: &'a Console,
    timeout: Duration,
    link: Link,
    input: Input,
    conversation: Conversation,
    phase: Phase,
    memory: Vec<u8>,
    /// What is said when the terminal is ours again.
    last_words: Option<String>,
}

impl Talk<'_> {
    fn converse(&mut self, interrupt: &Interrupt) -> Result<(), Failure> {
        while self.phase != Phase::Over {
            if interrupt.is_requested() {
                self.conversation.handle_interrupt();
                break;
            }
            self.handle_time(Instant::now())?;
            self.ask()?;
            if self.phase == Phase::Asked && self.listen()? {
                continue;
            }
            if self.wait()? || self.link.has_unsent() {
                self.exchange()?;
            }
        }
        self.conversation.handle_end(&Cause::TimedOut);
        Ok(())
    }

    /// Waits until the service or the user may have something for us; says whether the service has.
    fn wait(&self) -> Result<bool, Failure> {
        let writes = matches!(self.link, Link::Stream { .. }) && self.link.has_unsent();
        let mut wanted = PollFlags::POLLIN;
        wanted.set(PollFlags::POLLOUT, writes);
        let mut polled = vec![PollFd::new(self.link.fd(), wanted)];
        if self.phase == Phase::Asked {
            polled.push(PollFd::new(self.input.fd(), PollFlags::POLLIN));
        }
        // Rounded up, or the last millisecond would be spent in turns.
        let millis = self.time_left(Instant::now()).as_micros().div_ceil(1000);
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Failure::new(format!("poll: {}", errno.desc()))),
        }
        Ok(polled[0].any() == Some(true))
    }

    fn time_left(&self, now: Instant) -> Duration {
        let until = match self.phase {
            Phase::Leaving(until) => Some(until),
            _ => self.conversation.poll_timeout(),
        };
        let left = until.map(|until| until.saturating_duration_since(now));
        let look = match &self.link {
            Link::Datagrams {
                unsent: Some(_), ..
            } => RETRY_INTERVAL,
            _ => LOOK_INTERVAL,
        };
        left.unwrap_or(look).min(look)
    }

    fn handle_time(&mut self, now: Instant) -> Result<(), Failure> {
        if let Some(missed) = self.conversation.handle_timeout(now) {
            if let Link::Datagrams { unsent, .. } = &mut self.link {
                *unsent = None;
            }
            self.show_missed(&missed)?;
        }
        if let Phase::Leaving(until) = self.phase
            && until <= now
            && !self.conversation.is_waiting()
        {
            let time = humantime::format_duration(self.timeout);
            self.note(&format!(
                "{} has not closed the connection within {time}",
                self.route.target()
            ))?;
            self.phase = Phase::Over;
        }
        Ok(())
    }

    fn ask(&mut self) -> Result<(), Failure> {
        if self.phase == Phase::Ready && !self.conversation.is_waiting() && !self.link.has_unsent()
        {
            self.input.ask()?;
            self.phase = Phase::Asked;
        }
        Ok(())
    }

    /// Does what the user has said; says whether it was anything.
    fn listen(&mut self) -> Result<bool, Failure> {
        let Some(said) = self.input.take()? else {
            return Ok(false);
        };
        self.phase = Phase::Ready;
        match said {
            Said::Interrupt => self.phase = Phase::Over,
            Said::Line(line) if line == QUIT => self.phase = Phase::Over,
            Said::Line(line) if line.is_empty() && self.route.target().is_stream() => {}
            Said::Line(line) => self.send(line)?,
            Said::End => self.leave()?,
        }
        Ok(true)
    }

    /// There will be no more lines. A stream says so, and then waits for the peer's end.
    fn leave(&mut self) -> Result<(), Failure> {
        self.phase = Phase::Over;
        if let Link::Stream { connection, .. } = &self.link {
            match connection.socket.shutdown(Shutdown::Write) {
                Ok(()) => self.phase = Phase::Leaving(Instant::now() + self.timeout),
                Err(error) => self.end(&Cause::of(&error))?,
            }
        }
        Ok(())
    }

    fn send(&mut self, line: Vec<u8>) -> Result<(), Failure> {
        let now = Instant::now();
        match &mut self.link {
            Link::Stream { unsent, .. } => {
                unsent.clone_from(&line);
                self.conversation.handle_sent(now, line);
                self.write()
            }
            Link::Datagrams { unsent, .. } => {
                *unsent = Some(line.clone());
                self.conversation.handle_sent(now, line);
                self.send_datagram()
            }
        }
    }

    /// Sends the line that is not sent yet, if there is one and the queue has room.
    fn send_datagram(&mut self) -> Result<(), Failure> {
        let Link::Datagrams { flow, unsent } = &mut self.link else {
            return Ok(());
        };
        let Some(line) = unsent.take() else {
            return Ok(());
        };
        match flow.send(&line) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                *unsent = Some(line);
                Ok(())
            }
            Err(error) => self.fail(&self.route.trouble(&error)),
        }
    }

    fn write(&mut self) -> Result<(), Failure> {
        let Link::Stream { connection, unsent } = &mut self.link else {
            return Ok(());
        };
        while !unsent.is_empty() {
            match (&connection.socket).write(unsent) {
                Ok(len) => drop(unsent.drain(..len)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // What the peer has said before it went can still be read, and why it went.
                Err(_) => unsent.clear(),
            }
            self.conversation.handle_progress(Instant::now());
        }
        Ok(())
    }

    /// Takes what the service has for us, and gives what it has room for.
    fn exchange(&mut self) -> Result<(), Failure> {
        match &self.link {
            Link::Stream { .. } => {
                self.write()?;
                self.read()
            }
            Link::Datagrams { .. } => {
                self.send_datagram()?;
                self.receive()
            }
        }
    }

    fn read(&mut self) -> Result<(), Failure> {
        let mut heard = Vec::new();
        let mut end = None;
        let mut count = 0;
        while end.is_none() && count < TURN_BYTES_MAX {
            let Link::Stream { connection, .. } = &self.link else {
                break;
            };
            match (&connection.socket).read(&mut self.memory) {
                Ok(0) => end = Some(Cause::Closed),
                Ok(len) => {
                    count += len;
                    let bytes = &self.memory[..len];
                    heard.extend(self.conversation.handle_received(Instant::now(), bytes));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => end = Some(Cause::of(&error)),
            }
        }
        if let Phase::Leaving(until) = &mut self.phase
            && count > 0
        {
            *until = Instant::now() + self.timeout;
        }
        self.show_all(heard)?;
        match end {
            Some(cause) => self.end(&cause),
            None => Ok(()),
        }
    }

    fn receive(&mut self) -> Result<(), Failure> {
        loop {
            let Link::Datagrams { flow, .. } = &self.link else {
                return Ok(());
            };
            let news = news::next(flow, &mut self.memory);
            let news = news.map_err(|error| Failure::new(format!("receiving: {error}")))?;
            match news {
                None => return Ok(()),
                Some(News::Answer(len)) => {
                    let bytes = &self.memory[..len.min(self.memory.len())];
                    let heard = self.conversation.handle_received(Instant::now(), bytes);
                    self.show_all(heard)?;
                }
                Some(News::Stranger(len, source)) => {
                    self.conversation.handle_stranger();
                    let whose = escape(&source.to_string());
                    let service = self.route.address();
                    self.note(&format!(
                        "mismatch: {len} bytes came from {whose}, and not from {service}"
                    ))?;
                }
                Some(News::Failure(failure)) => {
                    self.fail(&news::trouble(self.route, &failure))?;
                }
            }
        }
    }

    /// A datagram was sent in vain.
    fn fail(&mut self, trouble: &Trouble) -> Result<(), Failure> {
        self.conversation.handle_failure(trouble.cause.clone());
        self.note(&escape(&trouble.to_string()))
    }

    /// The connection is over.
    fn end(&mut self, cause: &Cause) -> Result<(), Failure> {
        let has_left = match (self.phase, &self.input) {
            (Phase::Leaving(_), _) => true,
            // Who types on a terminal sees what was not sent any more.
            (Phase::Ready | Phase::Asked, Input::Plain(_)) => self.take_unsaid(cause)?,
            _ => false,
        };
        let is_expected = has_left && self.conversation.is_settled();
        let missed = self.conversation.handle_end(cause);
        let service = self.route.target();
        let mut words = match cause {
            Cause::Closed | Cause::Reset => format!("connection {cause} by {service}"),
            _ => format!("{service}: {cause}"),
        };
        if let Some(missed) = missed {
            let (part, of) = (missed.part.len(), missed.of);
            words += &format!(": {part} of {of} bytes had come back");
            self.show_part(&missed.part)?;
        }
        if !is_expected || *cause != Cause::Closed {
            self.last_words = Some(words);
        }
        self.phase = Phase::Over;
        Ok(())
    }

    /// What is still to be said can't be any more; says whether there was nothing.
    fn take_unsaid(&mut self, cause: &Cause) -> Result<bool, Failure> {
        loop {
            match self.input.take()? {
                Some(Said::Line(line)) if line.is_empty() => {}
                Some(Said::Line(line)) if line != QUIT => {
                    self.conversation.handle_unsent(cause.clone());
                    return Ok(false);
                }
                None => return Ok(false),
                Some(_) => return Ok(true),
            }
        }
    }

    fn show_missed(&mut self, missed: &Missed) -> Result<(), Failure> {
        let time = humantime::format_duration(self.timeout);
        self.show_part(&missed.part)?;
        match missed.part.len() {
            0 => self.note(&format!("no answer within {time}")),
            len => self.note(&format!(
                "no more within {time}: {len} of {} bytes came back",
                missed.of
            )),
        }
    }

    fn show_part(&mut self, part: &[u8]) -> Result<(), Failure> {
        match part {
            [] => Ok(()),
            part => self.show(part, ""),
        }
    }

    fn show_all(&mut self, heard: Vec<Heard>) -> Result<(), Failure> {
        for heard in heard {
            match heard {
                Heard::Answer(bytes) | Heard::Unasked(bytes) => self.show(&bytes, "")?,
                Heard::Late(bytes) if self.console.terminal => self.show(&bytes, "(late) ")?,
                Heard::Late(bytes) => {
                    self.show(&bytes, "")?;
                    self.note(&format!("late: {} bytes", bytes.len()))?;
                }
            }
        }
        Ok(())
    }

    /// Prints what has come on a line of its own.
    fn show(&mut self, bytes: &[u8], mark: &str) -> Result<(), Failure> {
        if self.console.json {
            return Ok(());
        }
        if self.console.terminal {
            let text = printable(bytes.strip_suffix(b"\n").unwrap_or(bytes));
            return self.print(format!("{mark}{text}\n").as_bytes());
        }
        let mut line = bytes.to_vec();
        if !line.ends_with(b"\n") {
            line.push(b'\n');
        }
        self.print(&line)
    }

    /// Says something that is no answer: among them on a terminal, else on standard error.
    fn note(&mut self, text: &str) -> Result<(), Failure> {
        if self.console.terminal && !self.console.json {
            let text = self.console.paint.yellow(&format!("({text})"));
            return self.print(format!("{text}\n").as_bytes());
        }
        self.console.warn(text);
        Ok(())
    }

    fn print(&mut self, text: &[u8]) -> Result<(), Failure> {
        if self.input.show_aside(&String::from_utf8_lossy(text)) {
            return Ok(());
        }
        match terminal::print(text) {
            Ok(true) => Ok(()),
            Ok(false) => {
                // Whoever was reading has seen enough.
                self.phase = Phase::Over;
                Ok(())
            }
            Err(error) => Err(Failure::new(format!("standard output: {error}"))),
        }
    }
}
