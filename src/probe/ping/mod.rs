//! Small messages at an interval, and what became of each: a line for each, and a summary at the
//! end, however it ends. With `--flows` the same from several source ports at once.
//!
//! [`flow`] sends and receives, [`show`] has the words. Never decides what became of a message:
//! that is the ledger's.

mod flow;
mod show;

use std::time::{Duration, Instant};

use nix::poll::PollFd;
use serde::Serialize;

use super::args::{DATAGRAM_BYTES_MAX, Path, PingArgs};
use super::compare::Expect;
use super::console::{Console, Stop};
use super::figures;
use super::interrupt::Interrupt;
use super::latency::{Jitter, Latencies};
use super::link;
use super::report::{Report, Verdict, milliseconds};
use super::route::Route;
use super::tally::Tally;
use crate::cli::text::counted;
use flow::PingFlow;

/// What became of the messages of one flow.
#[derive(Debug)]
struct Outcome {
    /// The port of this host, where there is one.
    port: Option<u16>,
    tally: Tally,
    connects: Latencies,
    /// Datagrams that had come back to this host and found its receive buffer full.
    dropped: u64,
}

/// The object for programs: all flows, and each of several.
#[derive(Debug, Serialize)]
struct PingReport<'a> {
    #[serde(flatten)]
    sum: Report,
    #[serde(skip_serializing_if = "<[FlowReport]>::is_empty")]
    flows: &'a [FlowReport],
}

/// The part of one flow.
#[derive(Debug, Serialize)]
struct FlowReport {
    source_port: Option<u16>,
    #[serde(flatten)]
    report: Report,
}

/// Whether the command line makes sense.
pub(super) fn check(args: &PingArgs, path: &Path) -> Result<(), String> {
    let is_stream = args.url.is_stream();
    let last = path.source.map_or(0, |source| u32::from(source.port)) + u32::from(args.flows) - 1;
    match () {
        () if args.expect == Expect::Any => {
            Err("--expect any: a message is known only by its bytes: write echo or upper".into())
        }
        () if is_stream && args.size == 0 => {
            Err("--size 0: an empty message has no bytes on a stream: write 1 or more".into())
        }
        () if !is_stream && args.size > DATAGRAM_BYTES_MAX => Err(format!(
            "--size {}: a datagram has {DATAGRAM_BYTES_MAX} bytes at most",
            args.size
        )),
        () if args.flows > 1 && !args.url.is_inet() => {
            Err("--flows: a Unix socket has no ports: write tcp:// or udp://".into())
        }
        () if last > u16::MAX.into() => Err(format!(
            "--flows {}: that many ports from --source on are not all below 65536",
            args.flows
        )),
        () => Ok(()),
    }
}

/// Does what the command line says.
pub(super) fn run(
    route: &Route,
    args: &PingArgs,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Verdict, Stop> {
    let began = Instant::now();
    let mut flows = open(route, args, began)?;
    // The heading names the address with which the first flow is connected.
    flows[0].connect(interrupt);
    console.say(&show::heading(route, flows[0].peer(), args))?;
    let ended = ping(&mut flows, args, console, interrupt);
    let took = began.elapsed();
    let outcomes: Vec<Outcome> = flows.into_iter().map(PingFlow::into_outcome).collect();
    ended?;
    report(route, args, &outcomes, took, console, interrupt)
}

/// A flow for each source port, spread over the interval: all at once would be a burst.
fn open(route: &Route, args: &PingArgs, began: Instant) -> Result<Vec<PingFlow>, Stop> {
    let pause = args.interval / u32::from(args.flows);
    let open = |index: u16| {
        let route = match route.source_port() {
            Some(first) => route.from_port(first + index),
            None => route.clone(),
        };
        PingFlow::open(route, args, began + pause * u32::from(index))
    };
    Ok((0..args.flows).map(open).collect::<Result<_, _>>()?)
}

/// Sends and receives until all is done, or until the command is to end.
fn ping(
    flows: &mut [PingFlow],
    args: &PingArgs,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<(), Stop> {
    let total = args.count.unwrap_or(0) * u64::from(args.flows);
    let bar = (args.flows > 1).then(|| match total {
        0 => figures::spinner(console),
        total => figures::bar(console, total, "{bar:40} {pos}/{len} messages, {eta} left"),
    });
    loop {
        let now = Instant::now();
        for flow in flows.iter_mut() {
            flow.handle_time(now);
            if !interrupt.is_requested() {
                flow.send_due(Instant::now(), interrupt);
            }
        }
        for event in flows.iter_mut().flat_map(PingFlow::take_events) {
            match &bar {
                Some(bar) => bar.inc(event.ends()),
                None if args.quiet => {}
                None => console.say(&show::line(&event, args, console.paint))?,
            }
        }
        // After the events, so that what has happened is printed.
        let now = Instant::now();
        if interrupt.is_requested() {
            flows.iter_mut().for_each(PingFlow::interrupt);
            return Ok(());
        }
        if flows.iter().all(|flow| flow.is_done(now)) {
            return Ok(());
        }
        let until = flows.iter_mut().map(|flow| flow.poll_timeout(now)).min();
        let mut polled: Vec<PollFd<'_>> = flows.iter().filter_map(PingFlow::polled).collect();
        link::wait(&mut polled, until.unwrap_or(now), interrupt)?;
        for flow in flows.iter_mut() {
            flow.receive()?;
        }
    }
}

/// Prints what became of all messages.
fn report(
    route: &Route,
    args: &PingArgs,
    outcomes: &[Outcome],
    took: Duration,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Verdict, Stop> {
    let mut sum = outcomes[0].tally.clone();
    let mut connects = outcomes[0].connects.clone();
    for outcome in &outcomes[1..] {
        sum.merge(&outcome.tally);
        connects.merge(&outcome.connects);
    }
    if let [_, _, ..] = outcomes {
        // How times vary from one to the next is not part of a sum.
        sum.jitter = Jitter::default();
    }
    let is_interrupted = interrupt.is_requested();
    if is_interrupted && console.terminal {
        // The terminal has shown ^C.
        console.say("\n")?;
    }
    if let [_, _, ..] = outcomes {
        console.say(&show::flows(outcomes, console.paint))?;
    }
    let summary = show::summary(route.target(), &sum, &connects, took, console.paint);
    console.say(&summary)?;
    let dropped: u64 = outcomes.iter().map(|outcome| outcome.dropped).sum();
    if dropped > 0 {
        console.warn(&format!(
            "{} had come back and found the receive buffer of this host full: raise \
             net.core.rmem_max, or send less at a time",
            counted(dropped, "datagram")
        ));
    }
    let flows: Vec<FlowReport> = match outcomes {
        [_] => Vec::new(),
        several => several.iter().map(Outcome::report).collect(),
    };
    console.report(&PingReport {
        sum: Report {
            duration_ms: Some(milliseconds(took)),
            connect_us: connects.spread(),
            dropped: (dropped > 0).then_some(dropped),
            ..sum.report()
        },
        flows: &flows,
    })?;
    let meant = args.count.map(|count| count * u64::from(args.flows));
    let is_cut_short = is_interrupted && (sum.sent == 0 || meant.is_some_and(|all| sum.sent < all));
    Ok(match is_cut_short {
        true => Verdict::Flawed,
        false => sum.verdict(),
    })
}

impl Outcome {
    fn report(&self) -> FlowReport {
        FlowReport {
            source_port: self.port,
            report: Report {
                connect_us: self.connects.spread(),
                ..self.tally.report()
            },
        }
    }
}
