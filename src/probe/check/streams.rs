//! The checks of streams.
//!
//! Each opens connections of its own and leaves none. How they are listed is in the table of
//! [`super`].

use std::time::{Duration, Instant};

use super::Service;
use super::connection::{Client, PIECE_BYTES, Until};
use super::judgement::{Finding, Stop};
use super::material::Material;
use crate::cli::text;
use crate::probe::Trouble;
use crate::probe::cause::Cause;

/// A line, in case that the service waits for one.
const HELLO: &[u8] = b"Does this come back?\n";

/// Of the check with much, which no buffer holds.
const MUCH_BYTES: usize = 1 << 20;

/// So much is enough to see that a service reads on whatever happens. One that stops, stops at the
/// buffers of two kernels, which grow to some megabytes.
const STUFFING_BYTES_MAX: usize = 32 << 20;

/// A service that forgets what it owes does so only where the end overtakes it: now and then.
const HALF_CLOSES: u32 = 5;

/// How many messages are sent without waiting, and of how many bytes each.
const PIPELINED: usize = 4000;
const PIPELINED_BYTES: usize = 64;

/// How many are there at once.
const CLIENTS: u64 = 8;

/// How often a client vanishes.
const RESETS: u64 = 3;

/// How long the next byte of a split message waits where the one before was not answered.
const SPLIT_PAUSE: Duration = Duration::from_millis(5);

fn hello(service: &Service<'_>) -> Material {
    Material::new(HELLO, service.expect)
}

/// One that is like no other.
fn own_message(service: &Service<'_>, number: u64) -> Material {
    Material::noise(1000, number, service.expect)
}

fn exchange(service: &Service<'_>, material: Material, most: usize, until: Until) -> Finding {
    Client::connect(service, material)?.exchange(most, until)
}

pub(super) fn echo(service: &Service<'_>) -> Finding {
    let mut client = Client::connect(service, hello(service))?;
    let began = Instant::now();
    let found = client.exchange(PIECE_BYTES, Until::Whole);
    let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    let cause = match found {
        Ok(seen) => return Ok(format!("{seen} in {}", text::microseconds(took))),
        Err(Stop::Failed { cause, .. }) if client.came() == 0 => cause.unwrap_or(Cause::TimedOut),
        other => return other,
    };
    // Some read to the end before they answer: they do answer, only not to whoever waits.
    if cause == Cause::TimedOut {
        let at_the_end = client.exchange(PIECE_BYTES, Until::End);
        if client.came() > 0 || at_the_end == Err(Stop::Interrupted) {
            at_the_end?;
            return Err(Stop::failed("nothing before the half-close", cause));
        }
    }
    let hint = "it takes connections, but nothing comes back: is it an echo service?";
    let place = service.route.target().to_string();
    Err(Stop::Unreached(Trouble::new(place, cause).hint(hint)))
}

pub(super) fn binary(service: &Service<'_>) -> Finding {
    let all: Vec<u8> = (0..=255).collect();
    let material = Material::new(&all, service.expect);
    exchange(service, material, PIECE_BYTES, Until::Whole)
}

pub(super) fn split_message(service: &Service<'_>) -> Finding {
    let mut client = Client::connect(service, hello(service))?;
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

pub(super) fn half_close(service: &Service<'_>) -> Finding {
    let mut seen = String::new();
    for _ in 0..HALF_CLOSES {
        seen = exchange(service, hello(service), PIECE_BYTES, Until::End)?;
    }
    Ok(format!("{seen}, {HALF_CLOSES} times"))
}

pub(super) fn empty_half_close(service: &Service<'_>) -> Finding {
    let nothing = Material::new(b"", service.expect);
    exchange(service, nothing, PIECE_BYTES, Until::End)
}

pub(super) fn pipelining(service: &Service<'_>) -> Finding {
    let material = Material::noise(PIPELINED * PIPELINED_BYTES, 1, service.expect);
    let seen = exchange(service, material, PIPELINED_BYTES, Until::Whole)?;
    Ok(format!("{seen} of {PIPELINED} messages"))
}

pub(super) fn megabyte(service: &Service<'_>) -> Finding {
    let material = Material::noise(MUCH_BYTES, 2, service.expect);
    exchange(service, material, PIECE_BYTES, Until::End)
}

pub(super) fn several_clients(service: &Service<'_>) -> Finding {
    let _silent = Client::connect(service, own_message(service, 0))?;
    let found = exchange(service, own_message(service, 1), PIECE_BYTES, Until::Whole);
    found.map_err(|stop| stop.of("beside a silent client"))?;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        clients.push(Client::connect(service, own_message(service, number))?);
    }
    for client in &mut clients {
        client.send(PIECE_BYTES);
    }
    // Last come, first heard: who serves one after the other is found out.
    for client in clients.iter_mut().rev() {
        let found = client.exchange(PIECE_BYTES, Until::Whole);
        found.map_err(|stop| stop.of(&format!("one of {CLIENTS} clients")))?;
    }
    Ok(format!("{CLIENTS} at once, and one beside a silent one"))
}

/// A client that has sent, without reading, as much as it could.
fn stuffed<'a>(service: &'a Service<'a>) -> Result<(Client<'a>, usize), Stop> {
    let material = Material::noise(STUFFING_BYTES_MAX, 3, service.expect);
    let mut client = Client::connect(service, material)?;
    let taken = client.stuff(service.timeout / 4)?;
    Ok((client, taken))
}

pub(super) fn slow_reader(service: &Service<'_>) -> Finding {
    let (mut client, taken) = stuffed(service)?;
    let size = text::bytes(taken as u64);
    // Who takes everything has it still, or has thrown it away.
    client.exchange(PIECE_BYTES, Until::Whole)?;
    if taken == STUFFING_BYTES_MAX {
        let seen = format!("it took all of {size} from a client that read nothing");
        return Err(Stop::wrong(seen));
    }
    Ok(format!("it took {size}, then no more; all came back"))
}

pub(super) fn beside_a_slow_reader(service: &Service<'_>) -> Finding {
    let (_client, _) = stuffed(service)?;
    let seen = exchange(service, hello(service), PIECE_BYTES, Until::Whole)?;
    Ok(format!("{seen} for another client"))
}

pub(super) fn reset(service: &Service<'_>) -> Finding {
    for number in 0..RESETS {
        let material = Material::noise(MUCH_BYTES, number, service.expect);
        let mut client = Client::connect(service, material)?;
        // As much as goes out at once, and some of it is on its way back.
        while client.send(PIECE_BYTES) {}
        client.wait_for_answer(service.timeout)?;
        let reset = client.reset();
        reset.map_err(|error| Stop::NotApplicable(error.to_string()))?;
        let found = exchange(service, hello(service), PIECE_BYTES, Until::Whole);
        found.map_err(|stop| stop.of("the next client"))?;
    }
    Ok(format!("the next client is served, {RESETS} times"))
}
