//! Whether anything comes back at all: datagrams without a service would look like a loss.

use std::time::Instant;

use crate::probe::args::LoadArgs;
use crate::probe::cause::{Cause, SILENT, Trouble};
use crate::probe::console::Stop;
use crate::probe::event::Event;
use crate::probe::exchange::Exchange;
use crate::probe::ledger::AnswerKind;
use crate::probe::payload::{Payload, nonce};
use crate::probe::session::Session;

/// The first datagram may be lost on the way: within the timeout it is sent this number of times.
const TRIES: u32 = 3;

/// Asks a datagram service; one that is connected to needs no question.
pub(super) fn reach(session: &Session, args: &LoadArgs) -> Result<(), Stop> {
    if args.url.is_stream() {
        return Ok(());
    }
    let payload = Payload::new(args.size, nonce(), args.expect);
    let mut exchange = Exchange::open(session, &session.route, payload, args.timeout)?;
    let trouble = |cause| Trouble::new(&args.url, cause);
    let began = Instant::now();
    for number in 1..=TRIES {
        exchange.send()?;
        let until = began + args.timeout * number / TRIES;
        while let Some(event) = exchange.next_event(until)? {
            match event {
                Event::Failed(_, _, Some(failure)) => {
                    return Err(session.route.undelivered(&failure).into());
                }
                Event::Answered(came) => {
                    let hint = match came.answer.kind {
                        _ if !exchange.is_from_service(&came) => {
                            format!("the answer came from {}", came.source())
                        }
                        AnswerKind::Stray => "other bytes come back than were sent".into(),
                        _ => return Ok(()),
                    };
                    return Err(trouble(Cause::Mismatch).hint(hint).into());
                }
                // The next try may be answered.
                _ => {}
            }
        }
        if session.is_interrupted() {
            return Err(trouble(Cause::Interrupted).into());
        }
    }
    Err(trouble(Cause::TimedOut).hint(SILENT).into())
}
