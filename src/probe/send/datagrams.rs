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
use crate::probe::console::Stop;
use crate::probe::event::Event;
use crate::probe::exchange::Exchange;
use crate::probe::figures;
use crate::probe::ledger::AnswerKind;
use crate::probe::link::{self, is_transient};
use crate::probe::printable::Printable;
use crate::probe::report::{Report, Verdict, milliseconds};
use crate::probe::sent::Sent;
use crate::probe::session::Session;

/// A datagram that has not come back after this time is lost.
const TIMEOUT: Duration = Duration::from_secs(1);

/// See the module.
struct Sender<'a> {
    exchange: Exchange<'a, Sent>,
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
    let sent = Sent::new(args.expect);
    let mut sender = Sender {
        exchange: Exchange::open(session, &session.route, sent, timeout)?,
        timeout,
        text,
    };
    sender.send_all(input, args.size)?;
    session.check_output()?;
    let mut ledger = sender.exchange.account.ledger;
    // The input has not ended.
    let is_cut_short = session.is_interrupted();
    if is_cut_short {
        ledger.handle_interrupt();
        let cause = session.interrupt.cause();
        session.console.warn(&format!("{}: {cause}", args.url));
    }
    let tally = ledger.into_tally();
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
            let len = fill(input, &mut piece, self.exchange.session)?;
            // Empty input is an empty datagram.
            let is_over = len == 0 && self.exchange.account.ledger.next_sent() > 0;
            if is_over || self.exchange.session.is_interrupted() {
                return Ok(());
            }
            self.send(&piece[..len])?;
            if len < size {
                return Ok(());
            }
        }
    }

    /// Sends one, and waits until it is back or lost.
    fn send(&mut self, piece: &[u8]) -> Result<(), Stop> {
        self.exchange.account.messages.push(piece.to_vec());
        self.exchange.send()?;
        loop {
            let account = &self.exchange.account;
            if account.ledger.outstanding() == 0 && account.events.is_empty() {
                return Ok(());
            }
            match self.exchange.next_event(link::never())? {
                Some(event) => self.handle(&event)?,
                // The command is to end.
                None => return Ok(()),
            }
        }
    }

    /// Prints what came, and reports what is not as it should be.
    fn handle(&mut self, event: &Event) -> Result<(), Stop> {
        let session = self.exchange.session;
        let target = session.route.target();
        // If the first is lost, no service is there.
        let has_answers = self.exchange.account.ledger.tally().has_answers();
        match event {
            Event::Missing(_) if !has_answers => {
                let time = figures::setting(self.timeout);
                let hint = format!("nothing came back within {time}");
                return Err(Trouble::new(target, Cause::TimedOut).hint(hint).into());
            }
            Event::Failed(_, _, Some(failure)) if !has_answers => {
                return Err(session.route.undelivered(failure).into());
            }
            _ if event.is_well() => {}
            _ => {
                let words = event.words(self.timeout);
                session.console.warn(&format!("{target}: datagram {words}"));
            }
        }
        // A late one, or a copy, would be in the way of the others.
        let is_answer = |kind| matches!(kind, AnswerKind::Received | AnswerKind::Corrupt);
        match event {
            Event::Answered(came) if is_answer(came.answer.kind) => {
                session.console.print_answer(&came.bytes, self.text)
            }
            _ => Ok(()),
        }
    }
}

/// Fills a piece from the input, unless that ends or the command does.
fn fill(mut input: &File, piece: &mut [u8], session: &Session) -> Result<usize, Stop> {
    let failed = |error| Stop::of("standard input", &error);
    let mut len = 0;
    while len < piece.len() && !session.is_interrupted() {
        // A read is not ended by a signal.
        let until = link::never();
        if !link::wait_for(input.as_fd(), until, &session.interrupt).map_err(failed)? {
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
