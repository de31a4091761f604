//! Small messages at an interval, and what became of each: a line for each, and a summary at the
//! end, however it ends. With `--flows` the same from several source ports at once.
//!
//! [`flow`] sends and receives, [`show`] has the words. Never decides what became of a message:
//! that is the ledger's.

mod flow;
mod show;

use std::time::{Duration, Instant};

use nix::poll::PollFd;

use super::args::{Path, PingArgs, check_size};
use super::console::Stop;
use super::figures;
use super::latency::Jitter;
use super::report::{Report, Verdict, milliseconds};
use super::route::Route;
use super::session::Session;
use super::tally::Tally;
use flow::PingFlow;

/// What became of the messages of one flow.
#[derive(Debug)]
struct Outcome {
    /// The port of this host, where there is one.
    port: Option<u16>,
    tally: Tally,
    /// What may help against its failures.
    hint: String,
}

/// Whether the command line makes sense.
pub(super) fn check(args: &PingArgs, path: &Path) -> Result<(), String> {
    let last = path.source.map_or(0, |source| u32::from(source.port)) + u32::from(args.flows) - 1;
    check_size(&args.url, args.size)?;
    match () {
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
pub(super) fn run(session: &Session, args: &PingArgs) -> Result<Verdict, Stop> {
    let began = Instant::now();
    let mut flows = open(&session.route, args, began)?;
    // The heading names the address with which the first flow is connected.
    flows[0].connect(session);
    let heading = show::heading(args, &session.route.place(flows[0].peer()));
    session.console.say(&heading)?;
    let ended = ping(&mut flows, args, session);
    let took = began.elapsed();
    let outcomes: Vec<Outcome> = flows.into_iter().map(PingFlow::into_outcome).collect();
    ended?;
    report(session, args, &outcomes, took)
}

/// A flow for each source port, spread over the interval: all at once would be a burst.
fn open(route: &Route, args: &PingArgs, began: Instant) -> Result<Vec<PingFlow>, Stop> {
    let pause = args.interval / u32::from(args.flows);
    let open = |index: u16| {
        let route = match route.source_port() {
            Some(first) => route.at_port(first + index),
            None => route.clone(),
        };
        PingFlow::open(route, args, began + pause * u32::from(index))
    };
    Ok((0..args.flows).map(open).collect::<Result<_, _>>()?)
}

/// Sends and receives until all is done, or until the command is to end.
fn ping(flows: &mut [PingFlow], args: &PingArgs, session: &Session) -> Result<(), Stop> {
    let console = &session.console;
    // The lines of several flows would be too many.
    let spinner = (args.flows > 1).then(|| figures::spinner(console));
    let mut count: u64 = 0;
    loop {
        let now = Instant::now();
        for flow in flows.iter_mut() {
            flow.handle_time(now);
            if !session.is_interrupted() {
                flow.send_due(Instant::now(), session);
            }
        }
        for event in flows.iter_mut().flat_map(PingFlow::take_events) {
            count += 1;
            match &spinner {
                Some(spinner) => spinner.set_message(format!("{count} answered or lost")),
                None if args.quiet => {}
                None => console.say(&show::line(&event, args, console.paint))?,
            }
        }
        // After the events, so that what has happened is printed.
        let now = Instant::now();
        if session.is_interrupted() {
            flows.iter_mut().for_each(PingFlow::interrupt);
            return Ok(());
        }
        if flows.iter().all(|flow| flow.is_done(now)) {
            return Ok(());
        }
        let until = flows.iter_mut().map(|flow| flow.poll_timeout(now)).min();
        let mut polled: Vec<PollFd<'_>> = flows.iter().filter_map(PingFlow::polled).collect();
        session.wait(&mut polled, until.unwrap_or(now))?;
        for flow in flows.iter_mut() {
            flow.receive()?;
        }
    }
}

/// Prints what became of all messages.
fn report(
    session: &Session,
    args: &PingArgs,
    outcomes: &[Outcome],
    took: Duration,
) -> Result<Verdict, Stop> {
    let console = &session.console;
    let is_one = outcomes.len() == 1;
    let mut sum = outcomes[0].tally.clone();
    for outcome in &outcomes[1..] {
        // How times vary from one to the next is not part of a sum.
        sum.jitter = Jitter::default();
        sum.merge(&outcome.tally);
    }
    let is_interrupted = session.is_interrupted();
    if is_interrupted && console.terminal {
        // The terminal has shown ^C.
        console.say("\n")?;
    }
    if !is_one {
        console.say(&show::flows(outcomes, console.paint))?;
    }
    let summary = show::summary(&args.url, &sum, &outcomes[0].hint, took, console.paint);
    console.say(&summary)?;
    let flow = |outcome: &Outcome| Report {
        source_port: outcome.port,
        ..outcome.tally.report()
    };
    console.report(&Report {
        duration_ms: Some(milliseconds(took)),
        flows: (!is_one).then(|| outcomes.iter().map(flow).collect()),
        ..sum.report()
    })?;
    let meant = args.count.map(|count| count * u64::from(args.flows));
    let is_cut_short = is_interrupted && (sum.sent == 0 || meant.is_some_and(|all| sum.sent < all));
    Ok(match is_cut_short {
        true => Verdict::Flawed,
        false => sum.verdict(),
    })
}
