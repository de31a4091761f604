//! The checks of datagrams.
//!
//! Each has sockets of its own and leaves none.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use super::finding::{Finding, Halt, bytes};
use super::flow::{Client, TRIES};
use super::streams::HELLO;
use super::{Check, Service};
use crate::probe::args::DATAGRAM_BYTES_MAX_IPV4;
use crate::probe::cause::{Cause, SILENT, Trouble};
use crate::probe::compare::difference;
use crate::probe::event::Answered;
use crate::probe::figures;
use crate::probe::link::Address;
use crate::probe::payload::noise;

/// All, cheap ones first.
pub(super) const CHECKS: &[Check] = &[
    Check("echo", echo),
    Check("binary", binary),
    Check("empty-datagram", empty_datagram),
    Check("sizes", sizes),
    Check("burst", burst),
    Check("order", order),
    Check("reply-address", reply_address),
    Check("several-clients", several_clients),
    Check("gone-client", gone_client),
    Check("loop-guard", loop_guard),
];

/// What fills a packet of Ethernet over IPv4 and what exceeds it, what common buffers hold and what
/// exceeds them, and the largest datagram.
const SIZES: [usize; 9] = [
    1,
    512,
    1472,
    1473,
    2048,
    2049,
    8192,
    8193,
    DATAGRAM_BYTES_MAX_IPV4,
];

/// Sizes of datagrams that are sent at once: as many as the queue of a Unix socket holds
/// (`net.unix.max_dgram_qlen`), some alike, as those are that a kernel merges on their way.
const BURST: [usize; 8] = [200, 200, 200, 150, 30, 900, 900, 40];

/// The number of clients at once.
const CLIENTS: u64 = 8;

/// How often a client vanishes, and the number of answers it leaves behind.
const VANISHED: u64 = 3;
const UNREAD: usize = 4;

/// Ports of services that answer everything: echo (RFC 862) and chargen (RFC 864).
const LOOPING_PORTS: [u16; 2] = [7, 19];

/// How an answer differs from what was expected.
fn judge(expected: &[u8], came: &[u8]) -> Option<String> {
    if came.len() < expected.len() && expected.starts_with(came) {
        return Some(format!("cut to {}", bytes(came.len())));
    }
    let found = difference(expected, came, came.len())?;
    Some(found.to_string())
}

/// Asks, and takes the right answer.
fn ask(client: &mut Client<'_>, service: &Service<'_>, message: &[u8]) -> Result<Answered, Halt> {
    client.send(message)?;
    take_right_answer(client, service, message)
}

/// Takes the right answer to what was sent.
fn take_right_answer(
    client: &mut Client<'_>,
    service: &Service<'_>,
    message: &[u8],
) -> Result<Answered, Halt> {
    let answer = client.take_answer(message)?;
    match judge(&service.expect.of(message), &answer.bytes) {
        None => Ok(answer),
        Some(seen) => Err(Halt::failed(seen, Cause::Mismatch)),
    }
}

fn echo(service: &Service<'_>) -> Finding {
    let began = Instant::now();
    match ask(&mut Client::open(service)?, service, HELLO) {
        Ok(_) => {
            let took = figures::duration(began.elapsed());
            Ok(format!("{} in {took}", bytes(HELLO.len())))
        }
        Err(Halt::Failed(_, Some(Cause::TimedOut))) => {
            let trouble = Trouble::new(service.session.route.target(), Cause::TimedOut);
            Err(trouble.hint(SILENT).into())
        }
        Err(halt) => Err(halt),
    }
}

fn binary(service: &Service<'_>) -> Finding {
    let all: Vec<u8> = (0..=255).collect();
    ask(&mut Client::open(service)?, service, &all)?;
    Ok(bytes(all.len()))
}

fn empty_datagram(service: &Service<'_>) -> Finding {
    ask(&mut Client::open(service)?, service, b"")?;
    Ok("an empty one".into())
}

fn sizes(service: &Service<'_>) -> Finding {
    let mut client = Client::open(service)?;
    let mut passed = String::from("none came back");
    for size in SIZES {
        let message = noise(size, size as u64);
        match ask(&mut client, service, &message) {
            Ok(_) => passed = format!("up to {} came back", bytes(size)),
            Err(Halt::NotApplicable(why)) => return Ok(format!("{passed}; {size}: {why}")),
            Err(halt) => return Err(halt.of(&format!("{passed}; {size}"))),
        }
    }
    Ok(passed)
}

/// What came back of datagrams that were sent at once: the numbers of those that did, in the order
/// in which they came; or the first answer that is none of them, in words.
type Burst = Result<Vec<usize>, String>;

/// Which of these came back; each is unlike all others.
fn judge_burst(expected: &[Vec<u8>], came: &[Vec<u8>]) -> Burst {
    let mut numbers = Vec::new();
    for answer in came {
        match expected.iter().position(|expected| expected == answer) {
            // The network may double one.
            Some(number) if numbers.contains(&number) => {}
            Some(number) => numbers.push(number),
            None => return Err(describe(expected, answer)),
        }
    }
    Ok(numbers)
}

/// What a datagram that was not sent is made of: a part of one, or several.
fn describe(expected: &[Vec<u8>], answer: &[u8]) -> String {
    let (all, len) = (expected.concat(), answer.len());
    if let Some(cut) = expected.iter().find(|whole| whole.starts_with(answer)) {
        return format!("one of {}: cut to {}", bytes(cut.len()), bytes(len));
    }
    match all.windows(len).any(|part| part == answer) {
        true => format!("several came back as one of {}", bytes(len)),
        false => format!("one of {} came back that was not sent", bytes(len)),
    }
}

/// Sends datagrams at once. As a queue may be full at times, they are sent again until all came
/// back, and in order where that is asked for.
fn send_burst(service: &Service<'_>, seed: u64, in_order: bool) -> Result<Burst, Halt> {
    let mut client = Client::open(service)?;
    let mut burst = Ok(Vec::new());
    for attempt in 0..u64::from(TRIES) {
        let seeds = (seed + attempt * BURST.len() as u64)..;
        let sizes = BURST.into_iter().zip(seeds);
        let messages: Vec<Vec<u8>> = sizes.map(|(size, seed)| noise(size, seed)).collect();
        // An answer to the attempt before comes too late.
        client.forget();
        for message in &messages {
            client.send(message)?;
        }
        // A third of the time: there are three attempts.
        let deadline = Instant::now() + service.timeout / TRIES;
        let mut came = Vec::new();
        while came.len() < messages.len()
            && let Some(answer) = client.take_until(deadline)?
        {
            came.push(answer.bytes);
        }
        let expected = messages.iter().map(|message| service.expect.of(message));
        burst = judge_burst(&expected.collect::<Vec<_>>(), &came);
        let is_good =
            |came: &Vec<usize>| came.len() == messages.len() && (came.is_sorted() || !in_order);
        if burst.as_ref().map_or(true, is_good) {
            break;
        }
    }
    Ok(burst)
}

fn burst(service: &Service<'_>) -> Finding {
    let sent = BURST.len();
    match send_burst(service, 100, false)? {
        Err(seen) => Err(Halt::failed(seen, Cause::Mismatch)),
        Ok(came) if came.len() < sent => Err(Halt::failed(
            format!("{} of {sent} came back", came.len()),
            Cause::TimedOut,
        )),
        Ok(_) => Ok(format!("{sent} sent at once, {sent} came back")),
    }
}

fn order(service: &Service<'_>) -> Finding {
    let sent = BURST.len();
    match send_burst(service, 200, true)? {
        Ok(came) if !came.is_sorted() => {
            let seen = format!("in another order, {TRIES} times");
            Err(Halt::failed(seen, Cause::Mismatch))
        }
        Ok(came) if came.len() == sent => {
            Ok(format!("{sent} in the order in which they were sent"))
        }
        _ => Err(Halt::NotApplicable(
            "they did not come back as they were".into(),
        )),
    }
}

fn reply_address(service: &Service<'_>) -> Finding {
    let Address::Inet(asked) = *service.session.route.address() else {
        return Err(Halt::NotApplicable("a Unix socket has one name".into()));
    };
    let mut client = Client::open(service)?;
    let answer = ask(&mut client, service, &noise(100, 1))?;
    judge_source(&client, &answer, asked)?;
    let Some(other) = second_address(asked) else {
        return Ok(format!("{asked} answers itself"));
    };
    let mut client = Client::open_on(service, &service.session.route.to(Address::Inet(other)))?;
    match client.ask(&noise(100, 2)) {
        Ok(answer) => judge_source(&client, &answer, other)?,
        Err(Halt::Interrupted) => return Err(Halt::Interrupted),
        Err(_) => {
            return Err(Halt::NotApplicable(format!(
                "{} answers itself; {} does not answer",
                asked.ip(),
                other.ip()
            )));
        }
    }
    Ok(format!("{asked} and {other} answer themselves"))
}

/// Another address of the same host, where one is known: all of 127/8 is this host.
fn second_address(asked: SocketAddr) -> Option<SocketAddr> {
    let IpAddr::V4(ip) = asked.ip() else {
        return None;
    };
    let others = [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::LOCALHOST];
    let other = others.into_iter().find(|other| *other != ip)?;
    ip.is_loopback()
        .then(|| SocketAddr::new(other.into(), asked.port()))
}

fn judge_source(client: &Client<'_>, answer: &Answered, asked: SocketAddr) -> Result<(), Halt> {
    if client.is_asked(answer) {
        return Ok(());
    }
    let seen = format!("{asked} was asked, {} answered", answer.source());
    Err(Halt::failed(seen, Cause::Mismatch))
}

fn several_clients(service: &Service<'_>) -> Finding {
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let message = noise(100, 300 + number);
        let mut client = Client::open(service)?;
        client.send(&message)?;
        clients.push((client, message));
    }
    for (client, message) in &mut clients {
        let found = take_right_answer(client, service, message);
        found.map_err(|halt| halt.of(&format!("one of {CLIENTS} clients")))?;
    }
    Ok(format!("{CLIENTS} at once, each has its own answer"))
}

fn gone_client(service: &Service<'_>) -> Finding {
    for number in 0..VANISHED {
        let mut gone = Client::open(service)?;
        // Before it sends: a quick service would else answer before the client is gone.
        gone.leave()?;
        for _ in 0..UNREAD {
            gone.send(HELLO)?;
        }
        drop(gone);
        let message = noise(100, 400 + number);
        let found = ask(&mut Client::open(service)?, service, &message);
        found.map_err(|halt| halt.of("the next client"))?;
    }
    Ok(format!("the next client is answered, {VANISHED} times"))
}

fn loop_guard(service: &Service<'_>) -> Finding {
    if !service.session.route.target().is_inet() {
        let seen = "the name of a Unix socket cannot be forged";
        return Err(Halt::NotApplicable(seen.into()));
    }
    let mut cause = None;
    for port in LOOPING_PORTS {
        match Client::open_on(service, &service.session.route.at_port(port)) {
            Ok(client) => return ask_from(client, service, port),
            Err(trouble) => cause = Some(trouble.cause),
        }
    }
    let [one, other] = LOOPING_PORTS;
    let why = cause.map_or_else(String::new, |cause| format!(": {cause}"));
    Err(Halt::NotApplicable(format!(
        "ports {one} and {other} of this host can't be used{why}"
    )))
}

fn ask_from(mut client: Client<'_>, service: &Service<'_>, port: u16) -> Finding {
    let mut found = client.ask(HELLO);
    for _ in 1..TRIES {
        // Another service may speak to that port, and be quicker.
        if found.as_ref().is_ok_and(|answer| !client.is_asked(answer)) {
            found = client.ask(HELLO);
        }
    }
    let seen = match found {
        Ok(answer) if !client.is_asked(&answer) => {
            let seen = format!("{} speaks to port {port}", answer.source());
            return Err(Halt::NotApplicable(seen));
        }
        Ok(_) => return Err(Halt::wrong(format!("it answers port {port}"))),
        Err(Halt::Failed(seen, _)) => seen,
        Err(Halt::Unreached(trouble)) => trouble.cause.to_string(),
        Err(halt) => return Err(halt),
    };
    // Silence is no guard if the service answers no other port, either.
    echo(service)?;
    let seen = seen.trim_start_matches("no answer: ");
    Ok(format!("no answer to port {port}: {seen}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_a_datagram_is_described() {
        let check = |came: &[u8], words: Option<&str>| {
            assert_eq!(judge(b"hello", came).as_deref(), words);
        };
        check(b"hello", None);
        check(b"hel", Some("cut to 3 bytes"));
        check(b"hex", Some("3 bytes came back instead of 5"));
    }

    #[test]
    fn datagrams_that_were_sent_at_once_are_told_apart() {
        let expected: Vec<Vec<u8>> = (0..4).map(|seed| noise(20, seed)).collect();
        let judge = |came: &[&[u8]]| {
            let came: Vec<Vec<u8>> = came.iter().map(|bytes| bytes.to_vec()).collect();
            judge_burst(&expected, &came)
        };
        let [one, two, three, four] = [0, 1, 2, 3].map(|index: usize| &expected[index][..]);
        assert_eq!(judge(&[one, three, two]), Ok(vec![0, 2, 1]));
        assert_eq!(judge(&[one, two, one]), Ok(vec![0, 1]));
        let merged = [two, three].concat();
        let words = "several came back as one of 40 bytes";
        assert_eq!(judge(&[one, &merged]), Err(words.into()));
        let words = "one of 20 bytes: cut to 9 bytes";
        assert_eq!(judge(&[&four[..9]]), Err(words.into()));
        let words = "one of 5 bytes came back that was not sent";
        assert_eq!(judge(&[b"hello"]), Err(words.into()));
    }
}
