//! Whether anything comes back at all: datagrams without a service would look like a loss.

use std::os::fd::AsFd;
use std::time::Instant;

use crate::probe::args::LoadArgs;
use crate::probe::cause::{Cause, Trouble};
use crate::probe::interrupt::Interrupt;
use crate::probe::link::{self, DATAGRAM_MEMORY, News};
use crate::probe::payload::{Payload, nonce};
use crate::probe::route::Route;

/// The first datagram may be lost on the way: within the timeout it is sent this number of times.
const TRIES: u32 = 3;

/// Asks a datagram service; one that is connected to needs no question.
pub(super) fn reach(route: &Route, args: &LoadArgs, interrupt: &Interrupt) -> Result<(), Trouble> {
    if route.target().is_stream() {
        return Ok(());
    }
    let flow = route.open()?;
    let failed = |error| route.trouble(&error);
    let payload = Payload::fixed(args.size.least, nonce(), args.expect);
    let mut memory = vec![0; DATAGRAM_MEMORY];
    let began = Instant::now();
    for number in 0..u64::from(TRIES) {
        // A full queue is answered, too.
        flow.send(&payload.bytes(number)).map_err(failed)?;
        let until = began + args.timeout * (number as u32 + 1) / TRIES;
        while Instant::now() < until {
            if interrupt.is_requested() {
                return Err(Trouble::new(route.target(), Cause::Interrupted));
            }
            link::wait_for(flow.socket.as_fd(), until, interrupt).map_err(failed)?;
            match flow.receive(&mut memory).map_err(failed)? {
                None => {}
                Some(News::Arrival(arrival)) if flow.is_peer(&arrival.source) => return Ok(()),
                Some(News::Arrival(arrival)) => {
                    let trouble = Trouble::new(route.target(), Cause::Mismatch);
                    return Err(trouble.hint(format!("the answer came from {}", arrival.source)));
                }
                Some(News::Failure(failure)) => {
                    let mut trouble = route.trouble(&failure.error);
                    trouble.cause = Cause::of_failure(&failure);
                    return Err(trouble);
                }
            }
        }
    }
    let trouble = Trouble::new(route.target(), Cause::TimedOut);
    Err(trouble.hint("nothing comes back: is it an echo service?"))
}
