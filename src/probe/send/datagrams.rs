//! Standard input in datagrams and back, each when the one before has returned or is lost. None is
//! sent twice: a loss is to be seen.
//!
//! The answers are recognized by what was sent, the ledger accounts for them; the loop reads and
//! waits.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::probe::args::SendArgs;
use crate::probe::cause::{Cause, Trouble};
use crate::probe::compare::Difference;
use crate::probe::console::Stop;
use crate::probe::exchange::{Account, Datagrams, Event};
use crate::probe::figures;
use crate::probe::ledger::{Answer, AnswerKind};
use crate::probe::link::{self, is_transient};
use crate::probe::printable::Printable;
use crate::probe::report::{Report, Verdict, milliseconds};
use crate::probe::sent::Sent;
use crate::probe::session::Session;
use crate::sys::measure::Arrival;

/// A datagram that has not come back after this time is lost.
const TIMEOUT: Duration = Duration::from_secs(1);

/// See the module.
struct Sender<'a> {
    session: &'a Session,
    account: Account<Sent>,
    datagrams: Datagrams,
    timeout: Duration,
    text: &'a mut Printable,
}

pub(super) fn run(
    session: &Session,
    args: &SendArgs,
    input: &File,
    text: &mut Printable,
) -> Result<Verdict, Stop> {
    let timeout = args.timeout.unwrap_or(TIMEOUT);
    let began = Instant::now();
    let mut sender = Sender {
        session,
        account: Account::new(Sent::new(args.expect), timeout),
        datagrams: Datagrams::open(&session.route, timeout)?,
        timeout,
        text,
    };
    sender.send_all(input, args.size)?;
    session.check_output()?;
    // The input has not ended.
    let is_cut_short = session.is_interrupted();
    if is_cut_short {
        sender.account.ledger.handle_interrupt();
        sender.warn(session.interrupt.cause().words());
    }
    let tally = sender.account.ledger.into_tally();
    session.console.report(&Report {
        duration_ms: Some(milliseconds(began.elapsed())),
        ..tally.report()
    })?;
    Ok(match is_cut_short {
        true => Verdict::Flawed,
        false => tally.verdict(),
    })
}

impl Sender<'_> {
    fn send_all(&mut self, input: &File, size: usize) -> Result<(), Stop> {
        let mut piece = vec![0; size];
        loop {
            let len = fill(input, &mut piece, self.session)?;
            // Empty input is an empty datagram.
            let is_over = len == 0 && self.account.ledger.next_sent() > 0;
            if is_over || self.session.is_interrupted() {
                return Ok(());
            }
            self.exchange(&piece[..len])?;
            if len < size {
                return Ok(());
            }
        }
    }

    /// Sends one, and waits until it is back or lost.
    fn exchange(&mut self, piece: &[u8]) -> Result<(), Stop> {
        self.account.messages.push(piece.to_vec());
        self.account.ledger.handle_due(Instant::now(), 1);
        loop {
            let now = Instant::now();
            self.datagrams.send(&mut self.account, now);
            self.datagrams.receive(&mut self.account)?;
            self.datagrams.handle_time(&mut self.account, now);
            for event in std::mem::take(&mut self.account.events) {
                self.handle(event)?;
            }
            let is_over = self.account.ledger.outstanding() == 0;
            if is_over || self.session.is_interrupted() {
                return Ok(());
            }
            let until = self.datagrams.poll_timeout(&mut self.account, now);
            let mut polled = [self.datagrams.flow.polled()];
            self.session.wait(&mut polled, until.unwrap_or(now))?;
        }
    }

    /// Prints what came, and reports what is not as it should be.
    fn handle(&mut self, event: Event) -> Result<(), Stop> {
        let time = figures::setting(self.timeout);
        let target = self.session.route.target();
        // If the first is lost, no service is there.
        let has_answers = self.account.ledger.tally().has_answers();
        match event {
            Event::Missing(_) if !has_answers => {
                let hint = format!("nothing came back within {time}");
                Err(Trouble::new(target, Cause::TimedOut).hint(hint).into())
            }
            Event::Missing(number) => {
                let number = number + 1;
                self.warn(&format!(
                    "datagram {number}: lost: nothing came back within {time}"
                ));
                Ok(())
            }
            Event::Failed {
                number, failure, ..
            } => {
                let failure = failure.expect("the network or this host reports it");
                let mut trouble = self.session.route.undelivered(&failure);
                if !has_answers {
                    return Err(trouble.into());
                }
                trouble.place += &format!(": datagram {}", number + 1);
                self.session.console.warn(&trouble.to_string());
                Ok(())
            }
            Event::Answered {
                answer,
                bytes,
                difference,
                arrival,
            } => {
                self.explain(&answer, difference, arrival);
                // A late one, or a copy, would be in the way of the others.
                match answer.kind {
                    AnswerKind::Received | AnswerKind::Corrupt => {
                        self.session.console.print_answer(&bytes, self.text)
                    }
                    _ => Ok(()),
                }
            }
            Event::Ended { .. } => Ok(()),
        }
    }

    /// Reports an answer that is not as it should be.
    fn explain(&self, answer: &Answer, difference: Option<Difference>, arrival: Option<Arrival>) {
        let source = arrival.map_or(String::new(), |arrival| arrival.source.to_string());
        let words = match answer.kind {
            AnswerKind::Received => return,
            AnswerKind::Late => "came back late".into(),
            AnswerKind::Duplicate => "came back once more".into(),
            AnswerKind::Corrupt => difference.map_or(String::new(), |found| found.to_string()),
            AnswerKind::Misaddressed => {
                let peer = &self.datagrams.flow.peer;
                format!("came back from {source} instead of {peer}")
            }
            AnswerKind::Stray => {
                return self.warn(&format!("bytes came from {source} that were not sent"));
            }
        };
        let number = answer.number.map_or(0, |number| number + 1);
        self.warn(&format!("datagram {number}: {words}"));
    }

    fn warn(&self, text: &str) {
        let target = self.session.route.target();
        self.session.console.warn(&format!("{target}: {text}"));
    }
}

/// Fills a piece from the input, unless that ends or the command does.
fn fill(mut input: &File, piece: &mut [u8], session: &Session) -> Result<usize, Stop> {
    let failed = |error| Stop::of("standard input", &error);
    let mut len = 0;
    while len < piece.len() && !session.is_interrupted() {
        // A read is not ended by a signal.
        let far = Instant::now() + Duration::from_secs(3600);
        if !link::wait_for(input.as_fd(), far, &session.interrupt).map_err(failed)? {
            continue;
        }
        match input.read(&mut piece[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(len)
}
