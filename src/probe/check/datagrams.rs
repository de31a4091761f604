//! The checks of datagrams.
//!
//! Each has sockets of its own and leaves none. How they are listed is in the table of [`super`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use super::Service;
use super::flow::{Answer, Asked, Client, TRIES};
use super::judgement::{Burst, Finding, Stop, bytes, judge_burst, judge_datagram, shown};
use super::material::folded;
use crate::cli::text;
use crate::probe::Trouble;
use crate::probe::args::DATAGRAM_BYTES_MAX_IPV4;
use crate::probe::cause::Cause;
use crate::probe::noise::noise;
use crate::probe::route::Address;

const HELLO: &[u8] = b"Does this come back?\n";

/// What fills a packet of Ethernet over IPv4 and what does not, what common buffers hold and what
/// they do not, and the largest there is.
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

/// How many are there at once.
const CLIENTS: u64 = 8;

/// How often a client vanishes, and how many answers it leaves behind.
const VANISHED: u64 = 3;
const UNREAD: usize = 4;

/// Ports of services that answer everything: echo (RFC 862) and chargen (RFC 864).
const LOOPING_PORTS: [u16; 2] = [7, 19];

/// What an answer is to be.
fn due(service: &Service<'_>, message: &[u8]) -> Vec<u8> {
    folded(message, service.expect)
}

/// The right answer, or how it fails.
fn judged(service: &Service<'_>, message: &[u8], asked: Asked) -> Result<Answer, Stop> {
    match asked {
        Asked::Answered(answer) => match judge_datagram(&due(service, message), &answer.bytes) {
            None => Ok(answer),
            Some(seen) => Err(Stop::failed(seen, Cause::Mismatch)),
        },
        Asked::Unanswered(Cause::TimedOut) => {
            let seen = format!("no answer within {}", shown(service.timeout));
            Err(Stop::failed(seen, Cause::TimedOut))
        }
        Asked::Unanswered(cause) => Err(Stop::failed(cause.to_string(), cause)),
        Asked::TooLarge => Err(Stop::NotApplicable("it can't be sent from here".into())),
    }
}

fn ask(client: &mut Client<'_>, service: &Service<'_>, message: &[u8]) -> Result<Answer, Stop> {
    let asked = client.ask(message)?;
    judged(service, message, asked)
}

pub(super) fn echo(service: &Service<'_>) -> Finding {
    let mut client = Client::open(service)?;
    let began = Instant::now();
    let asked = client.ask(HELLO)?;
    let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    if let Asked::Unanswered(cause) = asked {
        let hint = match cause {
            Cause::Refused => "nobody listens there",
            Cause::TimedOut => "nothing comes back: is it an echo service?",
            _ => "",
        };
        let place = service.route.target().to_string();
        return Err(Trouble::new(place, cause).hint(hint).into());
    }
    judged(service, HELLO, asked)?;
    let size = bytes(HELLO.len());
    Ok(format!("{size} in {}", text::microseconds(took)))
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
            Err(Stop::NotApplicable(why)) => return Ok(format!("{passed}; {size}: {why}")),
            Err(stop) => return Err(stop.of(&format!("{passed}; {size}"))),
        }
    }
    Ok(passed)
}

/// Sends datagrams at once and says what came back of them. As a queue may be full at times, they
/// are sent again until what came back is good enough.
fn send_burst(
    service: &Service<'_>,
    seed: u64,
    is_good: impl Fn(&Burst) -> bool,
) -> Result<Burst, Stop> {
    let mut client = Client::open(service)?;
    let mut burst = Burst::default();
    for attempt in 0..u64::from(TRIES) {
        let seeds = (seed + attempt * BURST.len() as u64)..;
        let messages: Vec<Vec<u8>> = BURST
            .into_iter()
            .zip(seeds)
            .map(|(size, seed)| noise(size, seed))
            .collect();
        for message in &messages {
            client.send(message)?;
        }
        let deadline = Instant::now() + service.timeout / TRIES;
        let mut came = Vec::new();
        while came.len() < messages.len()
            && let Some(answer) = client.take_until(deadline)?
        {
            came.push(answer.bytes);
        }
        let all_due: Vec<Vec<u8>> = messages
            .iter()
            .map(|message| due(service, message))
            .collect();
        burst = judge_burst(&all_due, &came);
        if is_good(&burst) || burst.stranger.is_some() {
            break;
        }
    }
    Ok(burst)
}

pub(super) fn burst(service: &Service<'_>) -> Finding {
    let sent = BURST.len();
    let burst = send_burst(service, 100, |burst| burst.came == sent)?;
    match burst.stranger {
        Some(seen) => Err(Stop::failed(seen, Cause::Mismatch)),
        None if burst.came < sent => Err(Stop::failed(
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
        return Err(Stop::failed(seen, Cause::Mismatch));
    }
    if burst.came < sent {
        let seen = format!("{} of {sent} came back as they were", burst.came);
        return Err(Stop::NotApplicable(seen));
    }
    Ok(format!("{sent} in the order in which they were sent"))
}

pub(super) fn reply_address(service: &Service<'_>) -> Finding {
    let Address::Inet(asked) = *service.route.address() else {
        return Err(Stop::NotApplicable("a Unix socket has one name".into()));
    };
    let mut client = Client::open(service)?;
    let answer = ask(&mut client, service, &noise(100, 1))?;
    judge_source(&client, &answer, asked)?;
    let Some(other) = second_address(asked) else {
        return Ok(format!("{asked} answers itself"));
    };
    let mut client = Client::open_on(service, &service.route.to(other))?;
    match client.ask(&noise(100, 2))? {
        Asked::Answered(answer) => judge_source(&client, &answer, other)?,
        Asked::Unanswered(_) | Asked::TooLarge => {
            return Err(Stop::NotApplicable(format!(
                "{asked} answers itself; nobody is at {other}"
            )));
        }
    }
    Ok(format!("{asked} and {other} answer themselves"))
}

/// Another address of the same host, where one is known: all of 127/8 is this one.
fn second_address(asked: SocketAddr) -> Option<SocketAddr> {
    let IpAddr::V4(ip) = asked.ip() else {
        return None;
    };
    let others = [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::LOCALHOST];
    let other = others.into_iter().find(|other| *other != ip)?;
    ip.is_loopback()
        .then(|| SocketAddr::new(other.into(), asked.port()))
}

fn judge_source(client: &Client<'_>, answer: &Answer, asked: SocketAddr) -> Result<(), Stop> {
    if client.is_asked(&answer.source) {
        return Ok(());
    }
    let seen = format!("{asked} was asked, {} answered", answer.source);
    Err(Stop::failed(seen, Cause::Mismatch))
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
        let asked = client.hear(message)?;
        let found = judged(service, message, asked);
        let answer = found.map_err(|stop| stop.of(&format!("one of {CLIENTS} clients")))?;
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
        // Before it sends: a service that is quick would else answer before the client is gone.
        gone.leave()?;
        for _ in 0..UNREAD {
            gone.send(HELLO)?;
        }
        drop(gone);
        let message = noise(100, 400 + number);
        let found = ask(&mut Client::open(service)?, service, &message);
        found.map_err(|stop| stop.of("the next client"))?;
    }
    Ok(format!("the next client is answered, {VANISHED} times"))
}

pub(super) fn loop_guard(service: &Service<'_>) -> Finding {
    if !service.route.target().is_inet() {
        let seen = "nobody can forge the name of a Unix socket";
        return Err(Stop::NotApplicable(seen.into()));
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
    Err(Stop::NotApplicable(format!(
        "ports {one} and {other} of this host can't be used{why}"
    )))
}

fn ask_from(mut client: Client<'_>, service: &Service<'_>, port: u16) -> Finding {
    match client.ask(HELLO)? {
        Asked::Answered(_) => Err(Stop::wrong(format!("it answers port {port}"))),
        Asked::Unanswered(Cause::TimedOut) => Ok(format!(
            "no answer to port {port} within {}",
            shown(service.timeout)
        )),
        Asked::Unanswered(cause) => Ok(format!("no answer to port {port}: {cause}")),
        Asked::TooLarge => Err(Stop::NotApplicable("it can't be sent from here".into())),
    }
}
