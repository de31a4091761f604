//! The checks of streams.
//!
//! Each opens connections of its own and leaves none.

use std::time::{Duration, Instant};

use super::connection::{Client, PIECE_BYTES, Until};
use super::finding::{Finding, Halt};
use super::{Check, Service};
use crate::cli::text;
use crate::probe::cause::{Cause, SILENT, Trouble};
use crate::probe::figures;
use crate::probe::payload::noise;

/// All, cheap ones first.
pub(super) const CHECKS: &[Check] = &[
    Check("echo", echo),
    Check("binary", binary),
    Check("half-close", half_close),
    Check("empty-half-close", empty_half_close),
    Check("split-message", split_message),
    Check("pipelining", pipelining),
    Check("megabyte", megabyte),
    Check("several-clients", several_clients),
    Check("slow-reader", slow_reader),
    Check("beside-a-slow-reader", beside_a_slow_reader),
    Check("reset", reset),
];

/// A line, in case the service waits for one.
pub(super) const HELLO: &[u8] = b"Does this come back?\n";

/// Of the check with much, which no buffer holds.
const MUCH_BYTES: usize = 1 << 20;

/// Enough to see that a service reads on whatever happens. One that stops, stops at the buffers of
/// two kernels, which grow to 32 MiB on the side that receives (`tcp_rmem` of Linux, tcp(7)).
const STUFFING_BYTES_MAX: usize = 64 << 20;

/// A service that drops unsent bytes does so only where the end overtakes them: now and then.
const HALF_CLOSES: u32 = 5;

/// The number of messages that are sent without waiting, and their size.
const PIPELINED: usize = 4000;
const PIPELINED_BYTES: usize = 64;

/// The number of clients at once.
const CLIENTS: u64 = 8;

/// How often a client vanishes.
const RESETS: u64 = 3;

/// How long the next byte of a split message waits where the one before was not answered.
const SPLIT_PAUSE: Duration = Duration::from_millis(5);

/// A message that is like no other.
fn own_message(number: u64) -> Vec<u8> {
    noise(1000, number)
}

fn exchange(service: &Service<'_>, bytes: Vec<u8>, most: usize, until: Until) -> Finding {
    Client::connect(service, bytes)?.exchange(most, until)
}

fn echo(service: &Service<'_>) -> Finding {
    let mut client = Client::connect(service, HELLO.to_vec())?;
    let began = Instant::now();
    let found = client.exchange(PIECE_BYTES, Until::Whole);
    let took = figures::duration(began.elapsed());
    let cause = match found {
        Ok(seen) => return Ok(format!("{seen} in {took}")),
        Err(Halt::Failed(_, cause)) if client.came() == 0 => cause.unwrap_or(Cause::TimedOut),
        other => return other,
    };
    // Some read to the end before they answer: they do answer, only not a client that waits.
    if cause == Cause::TimedOut {
        let at_the_end = client.exchange(PIECE_BYTES, Until::End);
        if client.came() > 0 || at_the_end == Err(Halt::Interrupted) {
            at_the_end?;
            return Err(Halt::failed("nothing before the half-close", cause));
        }
    }
    let trouble = Trouble::new(service.session.route.target(), cause);
    Err(trouble
        .hint(format!("it takes connections, but {SILENT}"))
        .into())
}

fn binary(service: &Service<'_>) -> Finding {
    let all: Vec<u8> = (0..=255).collect();
    exchange(service, all, PIECE_BYTES, Until::Whole)
}

fn split_message(service: &Service<'_>) -> Finding {
    let mut client = Client::connect(service, HELLO.to_vec())?;
    // Each is answered before the next, unless the service waits for more.
    let mut pause = service.timeout / 4;
    for _ in HELLO {
        client.send(1);
        if !client.wait_for_answer(pause)? {
            pause = SPLIT_PAUSE.min(pause);
        }
        client.take();
    }
    let seen = client.exchange(1, Until::Whole)?;
    Ok(format!("{seen}, sent one by one"))
}

fn half_close(service: &Service<'_>) -> Finding {
    let mut seen = String::new();
    for _ in 0..HALF_CLOSES {
        seen = exchange(service, HELLO.to_vec(), PIECE_BYTES, Until::End)?;
    }
    Ok(format!("{seen}, {HALF_CLOSES} times"))
}

fn empty_half_close(service: &Service<'_>) -> Finding {
    exchange(service, Vec::new(), PIECE_BYTES, Until::End)
}

fn pipelining(service: &Service<'_>) -> Finding {
    let bytes = noise(PIPELINED * PIPELINED_BYTES, 1);
    let seen = exchange(service, bytes, PIPELINED_BYTES, Until::Whole)?;
    Ok(format!("{seen} of {PIPELINED} messages"))
}

fn megabyte(service: &Service<'_>) -> Finding {
    exchange(service, noise(MUCH_BYTES, 2), PIECE_BYTES, Until::End)
}

fn several_clients(service: &Service<'_>) -> Finding {
    let _silent = Client::connect(service, own_message(0))?;
    let found = exchange(service, own_message(1), PIECE_BYTES, Until::Whole);
    found.map_err(|halt| halt.of("beside a silent client"))?;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        clients.push(Client::connect(service, own_message(number))?);
    }
    for client in &mut clients {
        client.send(PIECE_BYTES);
    }
    // The last first: that finds a service which serves one client after the other.
    for client in clients.iter_mut().rev() {
        let found = client.exchange(PIECE_BYTES, Until::Whole);
        found.map_err(|halt| halt.of(&format!("one of {CLIENTS} clients")))?;
    }
    Ok(format!("{CLIENTS} at once, and one beside a silent one"))
}

/// A client that has sent, without reading, as much as it could.
fn stuffed<'a>(service: &'a Service<'a>) -> Result<(Client<'a>, usize), Halt> {
    // A piece of it again and again, of a prime length, so that a buffer that is lost or doubled is
    // seen: to make all of it anew takes longer than all other checks.
    let piece = noise(65_521, 3);
    let mut bytes = piece.repeat(STUFFING_BYTES_MAX.div_ceil(piece.len()));
    bytes.truncate(STUFFING_BYTES_MAX);
    let mut client = Client::connect(service, bytes)?;
    let taken = client.stuff(service.timeout / 4)?;
    Ok((client, taken))
}

fn slow_reader(service: &Service<'_>) -> Finding {
    let (mut client, taken) = stuffed(service)?;
    let size = text::bytes(taken as u64);
    // A service that takes everything has it still, or has dropped it.
    client.exchange(PIECE_BYTES, Until::Whole)?;
    if taken == STUFFING_BYTES_MAX {
        let seen = format!("it took all of {size} from a client that read nothing");
        return Err(Halt::wrong(seen));
    }
    Ok(format!("it took {size}, then no more; all came back"))
}

fn beside_a_slow_reader(service: &Service<'_>) -> Finding {
    // That its connection has ended is what the check before this one finds.
    let _slow_reader = match stuffed(service) {
        Err(Halt::Failed { .. }) => None,
        stuffed => Some(stuffed?),
    };
    let seen = exchange(service, HELLO.to_vec(), PIECE_BYTES, Until::Whole)?;
    Ok(format!("{seen} for another client"))
}

fn reset(service: &Service<'_>) -> Finding {
    for number in 0..RESETS {
        let mut client = Client::connect(service, noise(MUCH_BYTES, number))?;
        // As much as is taken at once, and some of it is on its way back.
        while client.send(PIECE_BYTES) {}
        client.wait_for_answer(service.timeout)?;
        let reset = client.reset();
        reset.map_err(|error| Halt::NotApplicable(error.to_string()))?;
        let found = exchange(service, HELLO.to_vec(), PIECE_BYTES, Until::Whole);
        found.map_err(|halt| halt.of("the next client"))?;
    }
    Ok(format!("the next client is served, {RESETS} times"))
}
