//! The checks of datagrams.
//!
//! Each has sockets of its own and leaves none. How they are listed is in the table of [`super`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use super::Service;
use super::finding::{Finding, Halt, bytes, silence};
use super::flow::{Answer, Asked, Client, TRIES};
use super::streams::HELLO;
use crate::probe::args::DATAGRAM_BYTES_MAX_IPV4;
use crate::probe::cause::{Cause, Trouble};
use crate::probe::compare::{Expect, difference};
use crate::probe::figures;
use crate::probe::link::Address;
use crate::probe::payload::noise;

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

/// The right answer, or how it fails.
fn judged(service: &Service<'_>, message: &[u8], asked: Asked) -> Result<Answer, Halt> {
    match asked {
        Asked::Answered(answer) => match judge(&service.expect.of(message), &answer.bytes) {
            None => Ok(answer),
            Some(seen) => Err(Halt::failed(seen, Cause::Mismatch)),
        },
        Asked::Unanswered(Cause::TimedOut) => {
            let seen = format!("no answer: {}", silence(service.timeout));
            Err(Halt::failed(seen, Cause::TimedOut))
        }
        Asked::Unanswered(cause) => Err(Halt::failed(cause.to_string(), cause)),
        Asked::TooLarge => Err(Halt::NotApplicable("it can't be sent from here".into())),
    }
}

/// How an answer differs from what was expected.
fn judge(expected: &[u8], came: &[u8]) -> Option<String> {
    if came.len() < expected.len() && expected.starts_with(came) {
        return Some(format!("cut to {}", bytes(came.len())));
    }
    let found = difference(expected, came, came.len())?;
    Some(found.to_string())
}

fn ask(client: &mut Client<'_>, service: &Service<'_>, message: &[u8]) -> Result<Answer, Halt> {
    let asked = client.ask(message)?;
    judged(service, message, asked)
}

pub(super) fn echo(service: &Service<'_>) -> Finding {
    let mut client = Client::open(service)?;
    let began = Instant::now();
    let asked = client.ask(HELLO)?;
    let took = figures::duration(began.elapsed());
    match &asked {
        Asked::Unanswered(cause) => {
            let hint = match cause {
                Cause::Refused => "no service at that port",
                Cause::TimedOut => "nothing comes back: is it an echo service?",
                _ => "",
            };
            let trouble = Trouble::new(service.route.target(), cause.clone());
            return Err(trouble.hint(hint).into());
        }
        Asked::Answered(answer)
            if service.expect == Expect::Echo && answer.bytes == Expect::Upper.of(HELLO) =>
        {
            return Err(super::answers_in_upper_case());
        }
        Asked::Answered(_) | Asked::TooLarge => {}
    }
    judged(service, HELLO, asked)?;
    Ok(format!("{} in {took}", bytes(HELLO.len())))
}

pub(super) fn binary(service: &Service<'_>) -> Finding {
    let all: Vec<u8> = (0..=255).collect();
    ask(&mut Client::open(service)?, service, &all)?;
    Ok(bytes(all.len()))
}

pub(super) fn empty_datagram(service: &Service<'_>) -> Finding {
    ask(&mut Client::open(service)?, service, b"")?;
    Ok("an empty one".into())
}

pub(super) fn sizes(service: &Service<'_>) -> Finding {
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

/// What came back of datagrams that were sent at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Burst {
    /// How many came back.
    came: usize,
    /// Whether those came in the order in which they were sent.
    in_order: bool,
    /// The first answer that is none of them, in words.
    stray: Option<String>,
}

/// Which of these came back; each is unlike all others.
fn judge_burst(expected: &[Vec<u8>], came: &[Vec<u8>]) -> Burst {
    let mut burst = Burst {
        in_order: true,
        ..Burst::default()
    };
    let mut seen = vec![false; expected.len()];
    let mut last = 0;
    for answer in came {
        match expected.iter().position(|expected| expected == answer) {
            // The network may double one.
            Some(index) if seen[index] => {}
            Some(index) => {
                seen[index] = true;
                burst.came += 1;
                burst.in_order &= index >= last;
                last = last.max(index);
            }
            None if burst.stray.is_none() => burst.stray = Some(describe(expected, answer)),
            None => {}
        }
    }
    burst
}

/// What a datagram that was not sent is made of.
fn describe(expected: &[Vec<u8>], answer: &[u8]) -> String {
    for first in 0..expected.len() {
        let mut rest = answer;
        let mut count = 0;
        while let Some(next) = expected
            .get(first + count)
            .and_then(|expected| rest.strip_prefix(&expected[..]))
        {
            rest = next;
            count += 1;
        }
        if count > 1 && rest.is_empty() {
            return format!("{count} came back as one of {}", bytes(answer.len()));
        }
    }
    let head = answer.get(..8);
    let has_head = |expected: &&Vec<u8>| head.is_some() && expected.get(..8) == head;
    match expected.iter().find(has_head) {
        Some(expected) => {
            let how = judge(expected, answer).unwrap_or_default();
            format!("one of {}: {how}", bytes(expected.len()))
        }
        None => format!("one of {} came back that was not sent", bytes(answer.len())),
    }
}

/// Sends datagrams at once. As a queue may be full at times, they are sent again until what came
/// back is good enough.
fn send_burst(
    service: &Service<'_>,
    seed: u64,
    is_good: impl Fn(&Burst) -> bool,
) -> Result<Burst, Halt> {
    let mut client = Client::open(service)?;
    let mut burst = Burst::default();
    for attempt in 0..u64::from(TRIES) {
        let seeds = (seed + attempt * BURST.len() as u64)..;
        let sizes = BURST.into_iter().zip(seeds);
        let messages: Vec<Vec<u8>> = sizes.map(|(size, seed)| noise(size, seed)).collect();
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
        let expected: Vec<Vec<u8>> = messages
            .iter()
            .map(|message| service.expect.of(message))
            .collect();
        burst = judge_burst(&expected, &came);
        if is_good(&burst) || burst.stray.is_some() {
            break;
        }
    }
    Ok(burst)
}

pub(super) fn burst(service: &Service<'_>) -> Finding {
    let sent = BURST.len();
    let burst = send_burst(service, 100, |burst| burst.came == sent)?;
    match burst.stray {
        Some(seen) => Err(Halt::failed(seen, Cause::Mismatch)),
        None if burst.came < sent => Err(Halt::failed(
            format!("{} of {sent} came back", burst.came),
            Cause::TimedOut,
        )),
        None => Ok(format!("{sent} sent at once, {sent} came back")),
    }
}

pub(super) fn order(service: &Service<'_>) -> Finding {
    let sent = BURST.len();
    let burst = send_burst(service, 200, |burst| burst.in_order && burst.came == sent)?;
    if !burst.in_order {
        let seen = format!("in another order, {TRIES} times");
        return Err(Halt::failed(seen, Cause::Mismatch));
    }
    if burst.came < sent {
        let seen = format!("{} of {sent} came back as they were", burst.came);
        return Err(Halt::NotApplicable(seen));
    }
    Ok(format!("{sent} in the order in which they were sent"))
}

pub(super) fn reply_address(service: &Service<'_>) -> Finding {
    let Address::Inet(asked) = *service.route.address() else {
        return Err(Halt::NotApplicable("a Unix socket has one name".into()));
    };
    let mut client = Client::open(service)?;
    let answer = ask(&mut client, service, &noise(100, 1))?;
    judge_source(&client, &answer, asked)?;
    let Some(other) = second_address(asked) else {
        return Ok(format!("{asked} answers itself"));
    };
    let mut client = Client::open_on(service, &service.route.to(Address::Inet(other)))?;
    match client.ask(&noise(100, 2))? {
        Asked::Answered(answer) => judge_source(&client, &answer, other)?,
        Asked::Unanswered(_) | Asked::TooLarge => {
            return Err(Halt::NotApplicable(format!(
                "{asked} answers itself; {other} does not answer"
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

fn judge_source(client: &Client<'_>, answer: &Answer, asked: SocketAddr) -> Result<(), Halt> {
    if client.is_asked(&answer.source) {
        return Ok(());
    }
    let seen = format!("{asked} was asked, {} answered", answer.source);
    Err(Halt::failed(seen, Cause::Mismatch))
}

pub(super) fn several_clients(service: &Service<'_>) -> Finding {
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let message = noise(100, 300 + number);
        let mut client = Client::open(service)?;
        client.send(&message)?;
        clients.push((client, message));
    }
    let mut again = 0;
    for (client, message) in &mut clients {
        let asked = client.take_answer(message)?;
        let found = judged(service, message, asked);
        let answer = found.map_err(|halt| halt.of(&format!("one of {CLIENTS} clients")))?;
        again += u32::from(answer.attempt > 1);
    }
    let seen = format!("{CLIENTS} at once, each has its own answer");
    Ok(match again {
        0 => seen,
        _ => format!("{seen}, {again} of them after asking again"),
    })
}

pub(super) fn gone_client(service: &Service<'_>) -> Finding {
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

pub(super) fn loop_guard(service: &Service<'_>) -> Finding {
    if !service.route.target().is_inet() {
        let seen = "the name of a Unix socket cannot be forged";
        return Err(Halt::NotApplicable(seen.into()));
    }
    let mut cause = None;
    for port in LOOPING_PORTS {
        match Client::open_on(service, &service.route.from_port(port)) {
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
    let seen = match client.ask(HELLO)? {
        Asked::Answered(_) => return Err(Halt::wrong(format!("it answers port {port}"))),
        Asked::TooLarge => return Err(Halt::NotApplicable("it can't be sent from here".into())),
        Asked::Unanswered(Cause::TimedOut) => {
            let time = figures::setting(service.timeout);
            format!("no answer to port {port} within {time}")
        }
        Asked::Unanswered(cause) => format!("no answer to port {port}: {cause}"),
    };
    // Silence is no guard if the service answers no other port, either.
    is_alive(service).map_err(|halt| halt.of("it answers no other port any more"))?;
    Ok(seen)
}

/// Whether the service still answers.
pub(super) fn is_alive(service: &Service<'_>) -> Result<(), Halt> {
    ask(&mut Client::open(service)?, service, HELLO).map(drop)
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
        check(b"", Some("cut to 0 bytes"));
        check(b"hello, hello", Some("12 bytes came back instead of 5"));
        check(b"hex", Some("3 bytes came back instead of 5"));
        let words = "byte 1 came back as 0x61 'a' instead of 0x65 'e'";
        check(b"hallo", Some(words));
        assert_eq!(judge(b"", b""), None);
    }

    #[test]
    fn datagrams_that_were_sent_at_once_are_told_apart() {
        let expected: Vec<Vec<u8>> = (0..4).map(|seed| noise(20, seed)).collect();
        let judge = |came: &[Vec<u8>]| {
            let burst = judge_burst(&expected, came);
            (burst.came, burst.in_order, burst.stray.unwrap_or_default())
        };
        let [one, two, three, four] = [0, 1, 2, 3].map(|index: usize| expected[index].clone());
        assert_eq!(judge(&expected), (4, true, String::new()));
        let swapped = [one.clone(), three.clone(), two.clone()];
        assert_eq!(judge(&swapped), (3, false, String::new()));
        let doubled = [one.clone(), two.clone(), one.clone()];
        assert_eq!(judge(&doubled), (2, true, String::new()));
        let merged = [one, [two, three].concat()];
        let words = "2 came back as one of 40 bytes";
        assert_eq!(judge(&merged), (1, true, words.into()));
        let words = "one of 20 bytes: cut to 9 bytes";
        assert_eq!(judge(&[four[..9].to_vec()]), (0, true, words.into()));
        let words = "one of 5 bytes came back that was not sent";
        assert_eq!(judge(&[b"hello".to_vec()]), (0, true, words.into()));
        assert_eq!(judge(&[]), (0, true, String::new()));
    }
}
