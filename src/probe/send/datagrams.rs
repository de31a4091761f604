//! Standard input in datagrams and back, each when the one before has come back or is lost. None is
//! sent twice: what was lost is to be seen.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::ledger::Ledger;
use super::output::{Output, own_descriptor};
use crate::cli::exit::Failure;
use crate::cli::text::escape;
use crate::probe::Trouble;
use crate::probe::args::SendArgs;
use crate::probe::cause::Cause;
use crate::probe::interrupt::{Interrupt, LOOK_INTERVAL};
use crate::probe::news::{self, DATAGRAM_MEMORY, News};
use crate::probe::route::{self, Flow, RETRY_INTERVAL, Route};

/// A datagram that has not come back after so long is lost.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What ended it.
pub(super) enum End {
    /// The input, or the user, or whoever was reading what came back.
    Done,
    /// Nothing at all comes back.
    Unreached(Trouble),
}

/// Sends all of the standard input, and takes what comes back.
pub(super) struct Sender<'a> {
    pub(super) route: &'a Route,
    pub(super) flow: &'a Flow,
    pub(super) args: &'a SendArgs,
    pub(super) output: &'a mut Output,
    pub(super) interrupt: &'a Interrupt,
    pub(super) ledger: Ledger,
}

impl Sender<'_> {
    pub(super) fn send_all(&mut self) -> Result<End, Failure> {
        let stdin = own_descriptor(io::stdin(), "standard input")?;
        let mut piece = vec![0; self.args.size];
        let mut memory = vec![0; DATAGRAM_MEMORY];
        let mut is_last = false;
        while !is_last {
            let Some(len) = fill(&stdin, &mut piece, self.interrupt)? else {
                break;
            };
            is_last = len < piece.len();
            // Without any input, it is an empty one.
            if len == 0 && self.ledger.sent() > 0 {
                break;
            }
            self.ledger.handle_sent(&piece[..len]);
            match self.exchange(&piece[..len], &mut memory)? {
                Went::On => {}
                Went::Unread => return Ok(End::Done),
                Went::Vain(trouble) => return Ok(End::Unreached(trouble)),
            }
            if self.interrupt.is_requested() {
                break;
            }
        }
        if self.ledger.is_in_vain() {
            return Ok(End::Unreached(self.silence()));
        }
        Ok(End::Done)
    }

    /// Sends one, and waits until it is back or lost.
    fn exchange(&mut self, piece: &[u8], memory: &mut [u8]) -> Result<Went, Failure> {
        let timeout = self.args.timeout.unwrap_or(TIMEOUT);
        let sent = Instant::now();
        let mut is_sent = false;
        while self.ledger.is_waiting() {
            if self.interrupt.is_requested() {
                self.ledger.handle_interrupt();
                break;
            }
            if !is_sent {
                match self.flow.send(piece) {
                    Ok(()) => is_sent = true,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Ok(self.fail(self.route.trouble(&error))),
                }
            }
            let went = self.take_all(memory, sent)?;
            if !matches!(went, Went::On) || !self.ledger.is_waiting() {
                return Ok(went);
            }
            let left = timeout.saturating_sub(sent.elapsed());
            if left.is_zero() {
                return Ok(self.lose(timeout));
            }
            let at_once = if is_sent {
                LOOK_INTERVAL
            } else {
                RETRY_INTERVAL
            };
            let waited = route::wait(self.flow.socket.as_fd(), false, left.min(at_once));
            waited.map_err(|error| Failure::new(format!("poll: {error}")))?;
        }
        Ok(Went::On)
    }

    /// Takes all that is there.
    fn take_all(&mut self, memory: &mut [u8], sent: Instant) -> Result<Went, Failure> {
        loop {
            let news = news::next(self.flow, memory);
            let news = news.map_err(|error| Failure::new(format!("receiving: {error}")))?;
            let went = match news {
                None => return Ok(Went::On),
                Some(News::Answer(len)) => {
                    let bytes = &memory[..len.min(memory.len())];
                    self.take(bytes, len, sent.elapsed())?
                }
                Some(News::Stranger(len, source)) => {
                    self.ledger
                        .handle_stranger(&memory[..len.min(memory.len())], len);
                    let (number, whose) = (self.ledger.sent(), escape(&source.to_string()));
                    let service = self.route.address();
                    self.warn(&format!(
                        "datagram {number}: mismatch: {len} bytes came from {whose}, and not from {service}"
                    ));
                    Went::On
                }
                Some(News::Failure(failure)) => self.fail(news::trouble(self.route, &failure)),
            };
            if !matches!(went, Went::On) {
                return Ok(went);
            }
        }
    }

    fn take(&mut self, bytes: &[u8], len: usize, after: Duration) -> Result<Went, Failure> {
        let was_waiting = self.ledger.is_waiting();
        if let Some(words) = self.ledger.handle_received(bytes, len, after) {
            self.warn(&words);
        }
        self.output.show_progress(self.ledger.bytes());
        // What comes late or twice would be in the way of the others.
        if was_waiting && !self.ledger.is_waiting() && !self.output.print(bytes)? {
            return Ok(Went::Unread);
        }
        Ok(Went::On)
    }

    /// One was sent in vain, and it is known why.
    fn fail(&mut self, mut trouble: Trouble) -> Went {
        self.ledger.handle_loss(trouble.cause.clone());
        if self.ledger.is_in_vain() {
            return Went::Vain(trouble);
        }
        trouble.place += &format!(": datagram {}", self.ledger.sent());
        self.output.warn(&escape(&trouble.to_string()));
        Went::On
    }

    /// One has not come back in time.
    fn lose(&mut self, timeout: Duration) -> Went {
        self.ledger.handle_loss(Cause::TimedOut);
        let (number, time) = (self.ledger.sent(), humantime::format_duration(timeout));
        self.warn(&format!(
            "datagram {number}: lost: nothing came within {time}"
        ));
        match self.ledger.is_hopeless() {
            true => Went::Vain(self.silence()),
            false => Went::On,
        }
    }

    /// Nothing at all has come back.
    fn silence(&self) -> Trouble {
        let causes = self.ledger.causes();
        let cause = causes.chief().cloned().unwrap_or(Cause::TimedOut);
        let sent = crate::cli::text::counted(self.ledger.sent(), "datagram");
        Trouble::new(self.route.target().to_string(), cause)
            .hint(format!("of {sent} none came back"))
    }

    fn warn(&self, text: &str) {
        self.output
            .warn(&format!("{}: {text}", self.route.target()));
    }
}

/// How it went with one.
enum Went {
    On,
    /// Whoever was reading what comes back has seen enough.
    Unread,
    /// There is nobody.
    Vain(Trouble),
}

/// Fills a piece from the input, to its end; none: the user has ended it.
fn fill(
    mut input: &File,
    piece: &mut [u8],
    interrupt: &Interrupt,
) -> Result<Option<usize>, Failure> {
    let trouble = |error| Failure::new(format!("standard input: {error}"));
    let mut len = 0;
    while len < piece.len() {
        if interrupt.is_requested() {
            return Ok(None);
        }
        // A read is not ended by a signal.
        let ready = route::wait(input.as_fd(), false, LOOK_INTERVAL).map_err(trouble)?;
        if !ready.input {
            continue;
        }
        match input.read(&mut piece[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(trouble(error)),
        }
    }
    Ok(Some(len))
}
