//! A conversation, line by line: a line is sent without its end, and what comes back is printed
//! under it.
//!
//! One loop waits for the input and the service, so that the end of a connection is reported while a
//! line is typed. An answer on a stream is as many bytes as the line has, a datagram is answered by
//! one. What they say is not judged.

mod lines;

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};

use super::cause::{Cause, Trouble};
use super::console::{Console, Stop};
use super::figures;
use super::interrupt::Interrupt;
use super::link::{self, DATAGRAM_MEMORY, Flow, News, RETRY_INTERVAL, Stream, is_transient};
use super::printable::Printable;
use super::report::Verdict;
use super::route::Route;
use lines::{Line, Lines};

/// The line that ends the conversation.
const QUIT: &[u8] = b"q";

/// What stands before each line on a terminal.
const PROMPT: &str = "> ";

/// Whether there is such a conversation.
pub(super) fn check(console: &Console) -> Result<(), String> {
    match console.json {
        true => Err("--json: a conversation has no result: write a command, such as ping".into()),
        false => Ok(()),
    }
}

/// Does what the command line says.
pub(super) fn run(
    route: &Route,
    timeout: Duration,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Verdict, Stop> {
    let link = match route.target().is_stream() {
        true => Link::Stream(route.connect(timeout, interrupt)?),
        false => Link::Datagrams(route.open()?, None),
    };
    // Without the buffer in front of it, of which poll(2) knows nothing.
    let input = io::stdin().as_fd().try_clone_to_owned();
    let mut talk = Talk {
        route,
        console,
        timeout,
        link,
        input: input
            .map_err(|error| Stop::of("standard input", &error))?
            .into(),
        has_prompt: console.terminal && io::stdin().is_terminal(),
        lines: Lines::default(),
        phase: Phase::Idle,
        printable: Printable::default(),
        is_midline: false,
        is_well: true,
        is_cut_short: false,
        has_sent: false,
        has_received: false,
        memory: vec![0; DATAGRAM_MEMORY],
    };
    talk.converse(interrupt)?;
    Ok(talk.verdict())
}

/// The socket, and the datagram for which a queue has had no room yet.
enum Link {
    Stream(Stream),
    Datagrams(Flow, Option<Vec<u8>>),
}

/// What the conversation is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The next line: the prompt is to be printed.
    Idle,
    /// The next line.
    Asked,
    /// An answer: this many bytes, or one datagram, until then.
    Waiting {
        left: usize,
        until: Instant,
    },
    /// The peer's end, until then: there will be no more lines.
    Leaving {
        until: Instant,
    },
    Over,
}

struct Talk<'a> {
    route: &'a Route,
    console: &'a Console,
    timeout: Duration,
    link: Link,
    input: File,
    has_prompt: bool,
    lines: Lines,
    phase: Phase,
    printable: Printable,
    /// Whether something is printed on the current line.
    is_midline: bool,
    /// Whether every line was answered.
    is_well: bool,
    /// Whether an answer was waited for when the user ended it.
    is_cut_short: bool,
    has_sent: bool,
    has_received: bool,
    memory: Vec<u8>,
}

impl Talk<'_> {
    fn converse(&mut self, interrupt: &Interrupt) -> Result<(), Stop> {
        while self.phase != Phase::Over {
            if interrupt.is_requested() {
                self.is_cut_short = matches!(self.phase, Phase::Waiting { .. });
                self.phase = Phase::Over;
                break;
            }
            self.handle_time(Instant::now())?;
            self.ask()?;
            if self.phase == Phase::Asked
                && let Some(line) = self.lines.next()
            {
                self.handle_line(line)?;
                continue;
            }
            if self.wait(interrupt)? {
                self.read_input()?;
            }
            self.receive()?;
        }
        self.end_line()
    }

    /// Waits until the service or the input is ready, or time is up; whether the input is.
    fn wait(&self, interrupt: &Interrupt) -> Result<bool, Stop> {
        let now = Instant::now();
        let far = now + Duration::from_secs(3600);
        let (fd, until) = match (&self.link, self.phase) {
            (Link::Stream(stream), Phase::Waiting { until, .. } | Phase::Leaving { until }) => {
                (stream.polled(), until)
            }
            (Link::Stream(stream), _) => (stream.polled(), far),
            (Link::Datagrams(flow, Some(_)), _) => (flow.polled(), now + RETRY_INTERVAL),
            (Link::Datagrams(flow, None), Phase::Waiting { until, .. }) => (flow.polled(), until),
            (Link::Datagrams(flow, None), _) => (flow.polled(), far),
        };
        let mut polled = vec![fd];
        if self.phase == Phase::Asked {
            polled.push(PollFd::new(self.input.as_fd(), PollFlags::POLLIN));
        }
        link::wait(&mut polled, until, interrupt)?;
        Ok(polled.get(1).is_some_and(link::is_readable))
    }

    fn handle_time(&mut self, now: Instant) -> Result<(), Stop> {
        match self.phase {
            Phase::Waiting { until, .. } if now >= until => {
                let time = figures::setting(self.timeout);
                self.phase = Phase::Idle;
                self.is_well = false;
                if let Link::Datagrams(_, unsent) = &mut self.link {
                    *unsent = None;
                }
                self.note(&format!("no answer within {time}"))
            }
            Phase::Leaving { until } if now >= until => {
                let time = figures::setting(self.timeout);
                let service = self.route.target();
                self.phase = Phase::Over;
                self.note(&format!(
                    "{service} has not closed the connection within {time}"
                ))
            }
            _ => Ok(()),
        }
    }

    /// Asks for the next line, once the last one has left.
    fn ask(&mut self) -> Result<(), Stop> {
        let has_unsent = match &self.link {
            Link::Stream(stream) => stream.unsent() > 0,
            Link::Datagrams(_, unsent) => unsent.is_some(),
        };
        if self.phase == Phase::Idle && !has_unsent {
            self.phase = Phase::Asked;
            // A line that was typed already needs no prompt.
            if self.has_prompt && !self.has_input()? {
                self.end_line()?;
                self.console.say(PROMPT)?;
                self.is_midline = true;
            }
        }
        Ok(())
    }

    fn read_input(&mut self) -> Result<(), Stop> {
        match self.input.read(&mut self.memory) {
            Ok(len) => self.lines.add(&self.memory[..len]),
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(Stop::of("standard input", &error)),
        }
        // The user has ended the line; after the end of the input the cursor is still on it.
        self.is_midline &= self.lines.has_ended;
        Ok(())
    }

    fn handle_line(&mut self, line: Line) -> Result<(), Stop> {
        self.phase = Phase::Idle;
        match line {
            Line::Text(line) if line == QUIT => self.phase = Phase::Over,
            Line::Text(line) if line.is_empty() && self.route.target().is_stream() => {}
            Line::Text(line) => self.send(line)?,
            Line::End => match &self.link {
                Link::Stream(stream) => {
                    stream.half_close();
                    let until = Instant::now() + self.timeout;
                    self.phase = Phase::Leaving { until };
                }
                Link::Datagrams(..) => self.phase = Phase::Over,
            },
        }
        Ok(())
    }

    fn send(&mut self, line: Vec<u8>) -> Result<(), Stop> {
        self.has_sent = true;
        let until = Instant::now() + self.timeout;
        match &mut self.link {
            Link::Stream(stream) => {
                let left = line.len();
                self.phase = Phase::Waiting { left, until };
                stream.push(&line);
                Ok(())
            }
            Link::Datagrams(_, unsent) => {
                self.phase = Phase::Waiting { left: 1, until };
                *unsent = Some(line);
                self.send_datagram()
            }
        }
    }

    /// Sends the datagram that is not sent yet, if the queue has room.
    fn send_datagram(&mut self) -> Result<(), Stop> {
        let Link::Datagrams(flow, unsent) = &mut self.link else {
            return Ok(());
        };
        let Some(line) = unsent.take() else {
            return Ok(());
        };
        match flow.send(&line) {
            Ok(true) => Ok(()),
            Ok(false) => {
                *unsent = Some(line);
                Ok(())
            }
            Err(error) => self.fail(&self.route.trouble(&error)),
        }
    }

    /// Takes what the service has sent, and sends what there is room for.
    fn receive(&mut self) -> Result<(), Stop> {
        match &mut self.link {
            Link::Datagrams(..) => {
                self.send_datagram()?;
                self.receive_datagrams()
            }
            Link::Stream(stream) => {
                // What the peer sent before an error can still be read, and the error itself.
                if stream.flush().is_err() {
                    stream.discard();
                }
                self.receive_stream()
            }
        }
    }

    fn receive_stream(&mut self) -> Result<(), Stop> {
        while let Link::Stream(stream) = &self.link {
            let len = match stream.receive(&mut self.memory) {
                Ok(None) => return Ok(()),
                Ok(Some(0)) => return self.end(&Cause::Closed),
                Ok(Some(len)) => len,
                Err(error) => return self.end(&Cause::of(&error)),
            };
            let bytes = self.memory[..len].to_vec();
            self.has_received = true;
            let fresh = Instant::now() + self.timeout;
            match &mut self.phase {
                Phase::Waiting { left, until } => {
                    // A long answer takes its time, as long as more of it comes.
                    *until = fresh;
                    let (answer, rest) = bytes.split_at(len.min(*left));
                    *left -= answer.len();
                    let is_whole = *left == 0;
                    self.print(answer)?;
                    if is_whole {
                        self.phase = Phase::Idle;
                        self.end_line()?;
                    }
                    self.print_unasked(rest)?;
                }
                Phase::Leaving { until } => {
                    *until = fresh;
                    self.print(&bytes)?;
                }
                _ => self.print_unasked(&bytes)?,
            }
        }
        Ok(())
    }

    fn receive_datagrams(&mut self) -> Result<(), Stop> {
        while let Link::Datagrams(flow, _) = &self.link {
            match flow.receive(&mut self.memory)? {
                None => return Ok(()),
                Some(News::Arrival(arrival)) if flow.is_peer(&arrival.source) => {
                    self.has_received = true;
                    let bytes = self.memory[..arrival.len.min(self.memory.len())].to_vec();
                    if matches!(self.phase, Phase::Waiting { .. }) {
                        self.phase = Phase::Idle;
                        self.print(&bytes)?;
                        // An empty answer is an empty line.
                        self.is_midline = true;
                        self.end_line()?;
                    } else {
                        self.print_unasked(&bytes)?;
                    }
                }
                Some(News::Arrival(arrival)) => {
                    self.is_well = false;
                    self.note(&format!(
                        "mismatch: {} bytes came from {}, and not from {}",
                        arrival.len,
                        arrival.source,
                        self.route.address()
                    ))?;
                }
                Some(News::Failure(failure)) => {
                    let mut trouble = self.route.trouble(&failure.error);
                    trouble.cause = Cause::of_failure(&failure);
                    self.fail(&trouble)?;
                }
            }
        }
        Ok(())
    }

    /// A datagram was sent in vain.
    fn fail(&mut self, trouble: &Trouble) -> Result<(), Stop> {
        self.is_well = false;
        if matches!(self.phase, Phase::Waiting { .. }) {
            self.phase = Phase::Idle;
        }
        self.note(&trouble.to_string())
    }

    /// The connection is over.
    fn end(&mut self, cause: &Cause) -> Result<(), Stop> {
        let before = std::mem::replace(&mut self.phase, Phase::Over);
        // A line that is there already cannot be sent any more; on a terminal the user sees that.
        if before == Phase::Asked && !self.has_prompt {
            while self.lines.next_is_unknown() && self.has_input()? {
                self.read_input()?;
            }
        }
        let unsent = match self.lines.next() {
            Some(Line::Text(line)) => line != QUIT,
            // The input has ended as well: this end is the answer to that.
            Some(Line::End) if *cause == Cause::Closed && before == Phase::Asked => return Ok(()),
            _ => false,
        };
        self.is_well &= !unsent;
        let service = self.route.target();
        let mut words = match cause {
            Cause::Closed | Cause::Reset => format!("connection {cause} by {service}"),
            _ => format!("{service}: {cause}"),
        };
        match before {
            Phase::Waiting { left, .. } => {
                self.is_well = false;
                words += &format!(": {left} bytes of the answer are missing");
            }
            Phase::Leaving { .. } if *cause == Cause::Closed => return Ok(()),
            _ => {}
        }
        self.note(&words)
    }

    fn has_input(&self) -> Result<bool, Stop> {
        let mut polled = [PollFd::new(self.input.as_fd(), PollFlags::POLLIN)];
        nix::poll::poll(&mut polled, nix::poll::PollTimeout::ZERO).map_err(io::Error::from)?;
        Ok(link::is_readable(&polled[0]))
    }

    /// Prints bytes of an answer: on a terminal as text, else as they are.
    fn print(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.is_midline = true;
        match self.console.terminal {
            true => {
                let text = self.printable.piece(bytes);
                self.console.say(&text)
            }
            false => self.console.print(bytes),
        }
    }

    /// Prints bytes that no line has asked for, on a line of their own, and the prompt again.
    fn print_unasked(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.end_line()?;
        self.print(bytes)?;
        self.end_line()?;
        if self.phase == Phase::Asked {
            self.phase = Phase::Idle;
        }
        Ok(())
    }

    fn end_line(&mut self) -> Result<(), Stop> {
        if !std::mem::take(&mut self.is_midline) {
            return Ok(());
        }
        let rest = self.printable.rest();
        self.console.say(&(rest + "\n"))
    }

    /// Says something that is no answer: on a terminal in parentheses, else on standard error.
    fn note(&mut self, text: &str) -> Result<(), Stop> {
        self.end_line()?;
        if !self.has_prompt {
            self.console.warn(text);
            return Ok(());
        }
        if self.phase == Phase::Asked {
            self.phase = Phase::Idle;
        }
        let text = crate::cli::text::escape(text);
        self.console
            .say(&(self.console.paint.yellow(&format!("({text})")) + "\n"))
    }

    /// How it went. A datagram service that never answers was not reached.
    fn verdict(&self) -> Verdict {
        let is_silent = self.has_sent && !self.has_received;
        match &self.link {
            _ if self.is_cut_short => Verdict::Flawed,
            Link::Datagrams(..) if is_silent && !self.is_well => Verdict::Unreached,
            _ if self.is_well => Verdict::Good,
            _ => Verdict::Flawed,
        }
    }
}
