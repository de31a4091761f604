//! Whether anything comes back at all: datagrams without a service would look like a loss.

use std::time::Instant;

use crate::probe::args::LoadArgs;
use crate::probe::cause::{Cause, Trouble};
use crate::probe::console::Stop;
use crate::probe::exchange::{Account, Datagrams, Event};
use crate::probe::ledger::AnswerKind;
use crate::probe::payload::{Payload, nonce};
use crate::probe::session::Session;

/// The first datagram may be lost on the way: within the timeout it is sent this number of times.
const TRIES: u32 = 3;

/// Of a service that never answers.
pub(super) const SILENT: &str = "nothing comes back: is it an echo service?";

/// Asks a datagram service; one that is connected to needs no question.
pub(super) fn reach(session: &Session, args: &LoadArgs) -> Result<(), Stop> {
    if args.url.is_stream() {
        return Ok(());
    }
    let payload = Payload::new(args.size, nonce(), args.expect);
    let mut account = Account::new(payload, args.timeout);
    let mut datagrams = Datagrams::open(&session.route, args.timeout)?;
    let trouble = |cause| Trouble::new(&args.url, cause);
    let began = Instant::now();
    for number in 1..=TRIES {
        account.ledger.handle_due(Instant::now(), 1);
        // A full queue is answered, too.
        datagrams.send(&mut account, Instant::now());
        let until = began + args.timeout * number / TRIES;
        while Instant::now() < until {
            if session.is_interrupted() {
                return Err(trouble(Cause::Interrupted).into());
            }
            datagrams.receive(&mut account)?;
            match account.events.pop() {
                None => session.wait(&mut [datagrams.flow.polled()], until)?,
                Some(Event::Answered {
                    arrival: Some(arrival),
                    ..
                }) if !datagrams.flow.is_peer(&arrival.source) => {
                    let hint = format!("the answer came from {}", arrival.source);
                    return Err(trouble(Cause::Mismatch).hint(hint).into());
                }
                Some(Event::Failed {
                    failure: Some(failure),
                    ..
                }) => return Err(session.route.undelivered(&failure).into()),
                Some(Event::Answered { answer, .. }) if answer.kind == AnswerKind::Stray => {
                    let hint = "other bytes come back than were sent";
                    return Err(trouble(Cause::Mismatch).hint(hint).into());
                }
                Some(_) => return Ok(()),
            }
        }
    }
    Err(trouble(Cause::TimedOut).hint(SILENT).into())
}
