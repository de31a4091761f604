//! Standard input through a stream and back: one loop that waits for the input and the socket.

use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};

use crate::probe::args::SendArgs;
use crate::probe::cause::Cause;
use crate::probe::compare::Comparison;
use crate::probe::console::Stop;
use crate::probe::figures;
use crate::probe::link::{self, is_transient};
use crate::probe::printable::Printable;
use crate::probe::report::{Report, Verdict, milliseconds};
use crate::probe::session::Session;
use crate::probe::transfer::{End, Transfer, judge};

/// The bytes that are read and written at once.
const PIECE_BYTES: usize = 256 * 1024;

/// Give up when nothing was returned for this time.
const TIMEOUT: Duration = Duration::from_secs(10);

/// See the module.
struct Sender<'a> {
    transfer: Transfer,
    input: &'a File,
    timeout: Duration,
    /// A piece of the input, and the part of it that is not sent yet.
    piece: Vec<u8>,
    unsent: Range<usize>,
    /// The input has ended.
    is_fed: bool,
}

pub(super) fn run(
    session: &Session,
    args: &SendArgs,
    input: &File,
    text: &mut Printable,
) -> Result<Verdict, Stop> {
    let timeout = args.timeout.unwrap_or(TIMEOUT);
    let mut sender = Sender {
        transfer: Transfer::connect(session, args.expect, timeout)?,
        input,
        timeout,
        piece: vec![0; PIECE_BYTES],
        unsent: 0..0,
        is_fed: false,
    };
    let began = Instant::now();
    let end = sender.run(session, text)?;
    session.check_output()?;
    let comparison = &sender.transfer.comparison;
    let mut report = report(comparison);
    report.duration_ms = Some(milliseconds(began.elapsed()));
    // What has a cause is not as it should be. Without a byte no service was reached, although a
    // kernel has accepted the connection.
    let is_silent = comparison.came == 0 && !matches!(end, End::Interrupted(_));
    let mut verdict = Verdict::Good;
    for (words, cause) in complaints(comparison, sender.is_fed, &end) {
        session.console.warn(&format!("{}: {words}", args.url));
        if let Some(cause) = cause {
            verdict = match is_silent {
                true => Verdict::Unreached,
                false => Verdict::Flawed,
            };
            report.errors.count(cause);
        }
    }
    session.console.report(&report)?;
    Ok(verdict)
}

impl Sender<'_> {
    /// Sends all of the input, and takes all that comes back.
    fn run(&mut self, session: &Session, text: &mut Printable) -> Result<End, Stop> {
        let mut memory = vec![0; PIECE_BYTES];
        let mut is_ready = false;
        loop {
            if session.is_interrupted() {
                return Ok(End::Interrupted(session.interrupt.cause()));
            }
            // What has returned is taken first: it makes room for more.
            match self.transfer.receive(&mut memory) {
                Ok([]) => {}
                Ok(bytes) => {
                    session.console.print_answer(bytes, text)?;
                    // Printing may have taken its time, and that was not the peer's.
                    self.transfer.last = Instant::now();
                }
                Err(end) => return Ok(end),
            }
            // A service that sends more than it got may never stop.
            if self.transfer.comparison.has_excess() {
                return Ok(End::Open);
            }
            if is_ready && self.wants_input() {
                self.feed()?;
            }
            self.unsent.start += self.transfer.send(&self.piece[self.unsent.clone()]);
            let until = self.deadline();
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(End::Silent(self.timeout));
            }
            let until = until.unwrap_or(Instant::now() + self.timeout);
            let mut polled = vec![self.transfer.polled(!self.unsent.is_empty())];
            if self.wants_input() {
                polled.push(PollFd::new(self.input.as_fd(), PollFlags::POLLIN));
            }
            session.wait(&mut polled, until)?;
            is_ready = polled.get(1).is_some_and(link::is_readable);
        }
    }

    /// Whether there is room for more input.
    fn wants_input(&self) -> bool {
        let has_room = self.unsent.is_empty() && self.transfer.comparison.room() > 0;
        has_room && !self.is_fed && self.transfer.can_send
    }

    /// When the service has been silent for too long; none while the input is waited for.
    fn deadline(&self) -> Option<Instant> {
        let is_waiting = self.transfer.comparison.missing() > 0 || !self.unsent.is_empty();
        let is_over = self.is_fed || !self.transfer.can_send;
        (is_waiting || is_over).then(|| self.transfer.last + self.timeout)
    }

    /// Takes a piece of the input.
    fn feed(&mut self) -> Result<(), Stop> {
        let room = self.transfer.comparison.room().min(PIECE_BYTES);
        match self.input.read(&mut self.piece[..room]) {
            Ok(0) => {
                self.is_fed = true;
                self.transfer.stream.half_close();
            }
            Ok(len) => self.unsent = 0..len,
            Err(error) if is_transient(&error) => return Ok(()),
            Err(error) => return Err(Stop::of("standard input", &error)),
        }
        self.transfer.last = Instant::now();
        Ok(())
    }
}

/// Everything that is to be reported: words, and the cause, if it is not as it should be.
fn complaints(comparison: &Comparison, is_fed: bool, end: &End) -> Vec<(String, Option<Cause>)> {
    let difference = comparison.difference;
    let mut all: Vec<(String, Option<Cause>)> = difference
        .map(|found| (found.to_string(), Some(Cause::Mismatch)))
        .into_iter()
        .collect();
    let is_all = comparison.missing() == 0 && comparison.came > 0;
    let is_whole = comparison.is_exact() && is_all && is_fed;
    match (end, judge(comparison.sent, comparison, end)) {
        (End::Silent(time), _) if is_whole => {
            let time = figures::setting(*time);
            let words = format!("everything came back, and the connection is open after {time}");
            all.push((words, None));
        }
        (End::Closed, Ok(words)) if !is_fed => {
            let words = format!("{words} before that of the input");
            all.push((words, Some(Cause::Closed)));
        }
        (_, Ok(_)) => {}
        (_, Err((words, cause))) => all.push((words, Some(cause))),
    }
    all
}

fn report(comparison: &Comparison) -> Report {
    let is_exact = comparison.is_exact();
    Report {
        sent: Some(comparison.sent),
        received: Some(comparison.right),
        lost: is_exact.then(|| comparison.missing()),
        corrupt: is_exact.then(|| {
            let came = comparison.came.min(comparison.sent);
            came.saturating_sub(comparison.right)
        }),
        bytes: Some(comparison.right),
        ..Report::default()
    }
}
