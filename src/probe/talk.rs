//! A conversation, line by line: a line is sent without its end, and what comes back is printed
//! under it.
//!
//! One loop waits for the input and the service, so that the end of a connection is reported while a
//! line is typed. An answer on a stream is as many bytes as the line has, a datagram is answered by
//! one. What they say is not judged.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::cause::Cause;
use super::compare::Expect;
use super::console::{self, Stop};
use super::event::Event;
use super::exchange::Exchange;
use super::figures;
use super::ledger::AnswerKind;
use super::link::{self, DATAGRAM_MEMORY, Stream, is_transient};
use super::printable::Printable;
use super::report::Verdict;
use super::sent::Sent;
use super::session::Session;

/// The line that ends the conversation.
const QUIT: &[u8] = b"q";

/// What stands before each line on a terminal.
const PROMPT: &str = "> ";

/// Does what the command line says.
pub(super) fn run(session: &Session, timeout: Duration) -> Result<Verdict, Stop> {
    let link = match session.route.target().is_stream() {
        true => Link::Stream(session.connect(timeout)?),
        false => {
            let sent = Sent::new(Expect::Any);
            let exchange = Exchange::open(session, &session.route, sent, timeout)?;
            Link::Datagrams(Box::new(exchange))
        }
    };
    let mut talk = Talk {
        session,
        timeout,
        link,
        input: console::input()?,
        typed: Vec::new(),
        has_ended: false,
        has_prompt: session.console.terminal && io::stdin().is_terminal(),
        phase: Phase::Idle,
        until: Instant::now(),
        printable: Printable::default(),
        is_midline: false,
        is_well: true,
        is_reached: false,
        memory: vec![0; DATAGRAM_MEMORY],
    };
    talk.converse()?;
    session.check_output()?;
    Ok(talk.verdict())
}

enum Link<'a> {
    Stream(Stream),
    Datagrams(Box<Exchange<'a, Sent>>),
}

/// What the conversation is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The next line: the prompt is to be printed.
    Idle,
    /// The next line.
    Asked,
    /// An answer: this many bytes, or one datagram.
    Waiting(usize),
    /// The peer's end: there will be no more lines.
    Leaving,
    Over,
}

struct Talk<'a> {
    session: &'a Session,
    timeout: Duration,
    link: Link<'a>,
    input: File,
    /// What was read of the input and is not sent yet, and whether there will be more.
    typed: Vec<u8>,
    has_ended: bool,
    has_prompt: bool,
    phase: Phase,
    /// Until when a stream is waited for.
    until: Instant,
    printable: Printable,
    /// Whether something is printed on the current line.
    is_midline: bool,
    /// Whether every line was answered, and whether anything came at all on a stream.
    is_well: bool,
    is_reached: bool,
    memory: Vec<u8>,
}

impl Talk<'_> {
    fn converse(&mut self) -> Result<(), Stop> {
        while self.phase != Phase::Over {
            if self.session.is_interrupted() {
                // An answer that was waited for will not come.
                self.is_well &= !matches!(self.phase, Phase::Waiting(_));
                break;
            }
            self.ask()?;
            if self.phase == Phase::Asked && self.has_line() {
                // What is sent may be answered by now.
                self.handle_line()?;
            } else if self.wait()? {
                self.read_input()?;
            }
            match &self.link {
                _ if self.phase == Phase::Over => {}
                Link::Stream(_) => self.receive_stream()?,
                Link::Datagrams(_) => self.receive_datagrams()?,
            }
        }
        self.end_line()
    }

    /// Asks for the next line.
    fn ask(&mut self) -> Result<(), Stop> {
        if self.phase != Phase::Idle {
            return Ok(());
        }
        self.phase = Phase::Asked;
        let mut polled = [PollFd::new(self.input.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).map_err(io::Error::from)?;
        // A line that was typed already needs no prompt.
        if self.has_prompt && !link::is_readable(&polled[0]) {
            self.end_line()?;
            self.session.console.say(PROMPT)?;
            self.is_midline = true;
        }
        Ok(())
    }

    /// Whether the next line is there, or the end of the input.
    fn has_line(&self) -> bool {
        self.has_ended || self.typed.contains(&b'\n')
    }

    fn handle_line(&mut self) -> Result<(), Stop> {
        let end = self.typed.iter().position(|byte| *byte == b'\n');
        let len = end.map_or(self.typed.len(), |end| end + 1);
        let mut line: Vec<u8> = self.typed.drain(..len).collect();
        let is_last = line.is_empty();
        line.truncate(end.unwrap_or(len));
        let now = Instant::now();
        self.until = now + self.timeout;
        self.phase = Phase::Waiting(line.len());
        match &mut self.link {
            _ if line == QUIT => self.phase = Phase::Over,
            Link::Datagrams(_) if is_last => self.phase = Phase::Over,
            Link::Stream(stream) if is_last => {
                stream.half_close();
                self.phase = Phase::Leaving;
            }
            Link::Stream(_) if line.is_empty() => self.phase = Phase::Idle,
            Link::Stream(stream) => stream.push(&line),
            Link::Datagrams(exchange) => {
                exchange.account.messages.push(line);
                exchange.send()?;
            }
        }
        Ok(())
    }

    /// Waits until the service or the input is ready, or time is up; whether the input is.
    fn wait(&mut self) -> Result<bool, Stop> {
        let now = Instant::now();
        let (socket, until) = match &mut self.link {
            Link::Stream(stream) => match self.phase {
                Phase::Waiting(_) | Phase::Leaving => (stream.polled(), self.until),
                _ => (stream.polled(), link::never()),
            },
            Link::Datagrams(exchange) => {
                let account = &mut exchange.account;
                let until = exchange.datagrams.poll_timeout(account, now);
                (
                    exchange.datagrams.flow.polled(),
                    until.unwrap_or_else(link::never),
                )
            }
        };
        let mut polled = vec![socket];
        if self.phase == Phase::Asked {
            polled.push(PollFd::new(self.input.as_fd(), PollFlags::POLLIN));
        }
        self.session.wait(&mut polled, until)?;
        Ok(polled.get(1).is_some_and(link::is_readable))
    }

    fn read_input(&mut self) -> Result<(), Stop> {
        match self.input.read(&mut self.memory) {
            Ok(len) => {
                self.typed.extend(&self.memory[..len]);
                self.has_ended = len == 0;
            }
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(Stop::of("standard input", &error)),
        }
        // The user has ended the line; after the end of the input the cursor is still on it.
        self.is_midline &= self.has_ended;
        Ok(())
    }

    /// Sends what there is room for, and takes what has returned on a stream.
    fn receive_stream(&mut self) -> Result<(), Stop> {
        while let Link::Stream(stream) = &mut self.link {
            // What the peer sent before an error can still be read, and the error itself.
            let _ = stream.flush();
            let len = match stream.receive(&mut self.memory) {
                Ok(None) => break,
                Ok(Some(0)) => return self.end(&Cause::Closed),
                Ok(Some(len)) => len,
                Err(error) => return self.end(&Cause::of(&error)),
            };
            let bytes = self.memory[..len].to_vec();
            self.is_reached = true;
            // A long answer takes its time, as long as more of it comes.
            self.until = Instant::now() + self.timeout;
            match self.phase {
                Phase::Waiting(left) => {
                    // More than was asked for is part of the answer, if it comes with it.
                    self.print(&bytes)?;
                    self.phase = Phase::Waiting(left.saturating_sub(len));
                    if self.phase == Phase::Waiting(0) {
                        self.phase = Phase::Idle;
                        self.end_line()?;
                    }
                }
                Phase::Leaving => self.print(&bytes)?,
                _ => self.print_unasked(&bytes)?,
            }
        }
        let time = figures::setting(self.timeout);
        match self.phase {
            _ if Instant::now() < self.until => Ok(()),
            Phase::Waiting(_) => self.fail(&format!("no answer within {time}")),
            Phase::Leaving => {
                self.phase = Phase::Over;
                let service = self.session.route.target();
                self.note(&format!(
                    "{service} has not closed the connection within {time}"
                ))
            }
            _ => Ok(()),
        }
    }

    /// Sends a datagram for which there was no room, and takes what has arrived.
    fn receive_datagrams(&mut self) -> Result<(), Stop> {
        let Link::Datagrams(exchange) = &mut self.link else {
            return Ok(());
        };
        exchange.turn()?;
        for event in std::mem::take(&mut exchange.account.events) {
            match event {
                Event::Answered(came) => match (came.answer.kind, came.arrival) {
                    (AnswerKind::Received, _) => {
                        self.phase = Phase::Idle;
                        self.print(&came.bytes)?;
                        // An empty answer is an empty line.
                        self.is_midline = true;
                        self.end_line()?;
                    }
                    (AnswerKind::Misaddressed | AnswerKind::Stray, Some(arrival)) => {
                        self.is_well = false;
                        self.note(&format!(
                            "mismatch: {} bytes came from {}, and not from {}",
                            arrival.len,
                            arrival.source,
                            self.session.route.address()
                        ))?;
                    }
                    _ => self.print_unasked(&came.bytes)?,
                },
                Event::Missing(_) => {
                    let time = figures::setting(self.timeout);
                    self.fail(&format!("no answer within {time}"))?;
                }
                Event::Failed(_, _, failure) => {
                    let failure = failure.expect("the network or this host reports it");
                    let trouble = self.session.route.undelivered(&failure);
                    self.fail(&trouble.to_string())?;
                }
                Event::Ended(..) => {}
            }
        }
        Ok(())
    }

    /// A line is not answered.
    fn fail(&mut self, text: &str) -> Result<(), Stop> {
        self.is_well = false;
        self.phase = Phase::Idle;
        self.note(text)
    }

    /// The connection is over.
    fn end(&mut self, cause: &Cause) -> Result<(), Stop> {
        let before = std::mem::replace(&mut self.phase, Phase::Over);
        let service = self.session.route.target();
        let mut words = match cause {
            Cause::Closed | Cause::Reset => format!("connection {cause} by {service}"),
            _ => format!("{service}: {cause}"),
        };
        match before {
            // This end is the answer to that of the input.
            Phase::Leaving if *cause == Cause::Closed => return Ok(()),
            Phase::Waiting(left) => {
                self.is_well = false;
                let missing = crate::cli::text::counted(left as u64, "byte");
                words += &format!(": {missing} of the answer missing");
            }
            // A line that is there already cannot be sent any more.
            _ => self.is_well &= self.typed.is_empty() || self.typed.starts_with(b"q\n"),
        }
        self.note(&words)
    }

    /// Prints bytes of an answer.
    fn print(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        self.is_midline |= !bytes.is_empty();
        let console = &self.session.console;
        console.print_answer(bytes, &mut self.printable)
    }

    /// Prints bytes that no line has asked for, on a line of their own, and the prompt again.
    fn print_unasked(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.end_line()?;
        self.print(bytes)?;
        self.ask_again()
    }

    /// Ends the line, and has the prompt printed again.
    fn ask_again(&mut self) -> Result<(), Stop> {
        if self.phase == Phase::Asked {
            self.phase = Phase::Idle;
        }
        self.end_line()
    }

    fn end_line(&mut self) -> Result<(), Stop> {
        if !std::mem::take(&mut self.is_midline) {
            return Ok(());
        }
        let rest = self.printable.rest();
        self.session.console.say(&(rest + "\n"))
    }

    /// Says something that is no answer: on a terminal in parentheses, else on standard error.
    fn note(&mut self, text: &str) -> Result<(), Stop> {
        self.ask_again()?;
        let console = &self.session.console;
        if !self.has_prompt {
            console.warn(text);
            return Ok(());
        }
        let text = crate::cli::text::escape(text);
        console.say(&(console.paint.yellow(&format!("({text})")) + "\n"))
    }

    /// How it went. A service that never answers was not reached.
    fn verdict(&self) -> Verdict {
        match &self.link {
            Link::Datagrams(exchange) if !self.session.is_interrupted() => {
                match exchange.account.ledger.tally().verdict() {
                    Verdict::Good if !self.is_well => Verdict::Flawed,
                    verdict => verdict,
                }
            }
            _ if self.is_well => Verdict::Good,
            _ if self.is_reached || self.session.is_interrupted() => Verdict::Flawed,
            _ => Verdict::Unreached,
        }
    }
}
