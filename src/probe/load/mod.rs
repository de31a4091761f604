//! As much as a service takes, or messages at a rate: what it does under load, and how long that
//! takes.
//!
//! [`schedule`] says when messages are due, [`stream`] which bytes are sent; the ledger has the
//! account. [`engine`] runs it over the project's own driver, [`connector`] opens the connections,
//! [`reach`] looks whether anything answers at all. The result is drawn by [`show`], [`histogram`]
//! and [`plot`].

mod connector;
mod engine;
mod histogram;
mod lane;
mod plot;
mod reach;
mod schedule;
mod show;
mod stream;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::args::{LoadArgs, Path, check_size};
use super::cause::{Cause, Causes, SILENT, Trouble};
use super::console::{Console, Stop};
use super::figures;
use super::ledger::Ledger;
use super::link::{Address, unix_name};
use super::report::Verdict;
use super::session::Session;
use super::tally::Tally;
use crate::cli::exit::Failure;
use crate::cli::text;
use crate::driver::epoll::Epoll;
use crate::driver::uring::Uring;
use crate::driver::{Driver, Envelope, Source, UnixName};
use crate::sys::process::raise_descriptor_limit;
use connector::Connector;
use engine::{Engine, Task};
use lane::{Flow, Kind};
use schedule::{Schedule, Times};

/// Descriptors for everything except the connections.
const DESCRIPTORS_KEPT: u64 = 64;

/// What was measured.
#[derive(Clone, Debug, Default)]
struct Measured {
    /// Of the messages that were due in the time that is measured.
    tally: Tally,
    /// From the beginning of that time to its end, or to the last answer to one of these messages.
    duration: Duration,
    course: Course,
    driver: &'static str,
    /// Whether it was ended before its time.
    is_cut_short: bool,
}

/// How a load went.
#[derive(Clone, Debug, Default)]
struct Course {
    /// How connections have ended in the time that is measured.
    ends: Causes,
    /// Whether this process ran in that time.
    has_run: bool,
    /// Whether anything came back, or a connection has ended, at any time.
    has_news: bool,
}

impl Measured {
    /// This number, of what came back in all the time, as one a second.
    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.duration.as_secs_f64().max(1e-9)
    }

    fn verdict(&self) -> Verdict {
        match self.tally.verdict() {
            _ if self.is_cut_short => Verdict::Flawed,
            Verdict::Good if !self.course.ends.is_empty() => Verdict::Flawed,
            verdict => verdict,
        }
    }

    /// Why no message was due in the time that is measured; none: some were.
    fn why_unsent(&self, args: &LoadArgs) -> Option<Trouble> {
        if self.tally.sent > 0 {
            return None;
        }
        let busy = Cause::Other("this process did not run in the time measured".into());
        let (cause, hint) = match self.course.ends.chief() {
            _ if self.is_cut_short => (Cause::Interrupted, "nothing was measured"),
            _ if args.url.is_stream() && !self.course.has_news => (Cause::TimedOut, SILENT),
            _ if !self.course.has_run => (busy, "is this machine busy?"),
            _ if args.rate.is_some() => {
                let cause = Cause::Other("no message was due in the time measured".into());
                (cause, "write a larger --rate or --time")
            }
            Some(cause) => (cause.clone(), "no connection since the warm-up"),
            None => (Cause::TimedOut, "no answer since the warm-up"),
        };
        Some(Trouble::new(&args.url, cause).hint(hint))
    }
}

/// Whether the command line makes sense.
pub(super) fn check(args: &LoadArgs, path: &Path) -> Result<(), String> {
    check_size(&args.url, args.size)?;
    match () {
        () if args.size == 0 => Err("--size 0: write 1 or more".into()),
        () if args.connections > 1 && path.source.is_some_and(|source| source.port > 0) => {
            Err("--source: a port is for one connection: write an address alone, or -c 1".into())
        }
        () => Ok(()),
    }
}

/// Does what the command line says.
pub(super) fn run(session: &Session, args: &LoadArgs) -> Result<Verdict, Stop> {
    check_descriptors(args.connections)?;
    if let Some(file) = &args.svg {
        check_writable(file)?;
    }
    // Datagrams without a service would look like a loss.
    reach::reach(session, args)?;
    let sockets = connector::open_all(session, args)?;
    let measured = match Uring::new() {
        Ok(driver) => measure(driver, "io_uring", sockets, session, args)?,
        // Not every kernel has it, and some forbid it.
        Err(_) => {
            let driver = Epoll::new().map_err(|error| Stop::of("epoll", &error))?;
            measure(driver, "epoll", sockets, session, args)?
        }
    };
    if let Some(trouble) = measured.why_unsent(args) {
        return Err(trouble.into());
    }
    report(args, &measured, &session.console)?;
    Ok(measured.verdict())
}

/// Prints and draws what was measured.
fn report(args: &LoadArgs, measured: &Measured, console: &Console) -> Result<(), Stop> {
    let text = show::summary(args, measured, console.paint, console.width());
    console.say(&text)?;
    let tally = &measured.tally;
    if !measured.course.ends.is_empty() {
        console.warn(&format!(
            "connections have ended in the time measured, and were connected again: {}",
            measured.course.ends
        ));
    }
    if tally.delayed * 1000 > tally.whole() {
        console.warn(&format!(
            "this client sent {} of the messages late, by up to {}: their latencies are mostly its \
             own",
            figures::share(tally.delayed, tally.whole()),
            figures::duration(tally.longest_delay)
        ));
    }
    if let Some(file) = &args.svg
        && tally.latencies.len() > 0
    {
        let drawn = plot::svg(&show::heading(args, measured), &tally.latencies);
        std::fs::write(file, drawn).map_err(|error| unwritable(file, &error))?;
    }
    console.report(&show::report(args, measured))
}

fn check_descriptors(connections: u32) -> Result<(), Stop> {
    let limit = raise_descriptor_limit().unwrap_or(u64::MAX);
    let needed = u64::from(connections) + DESCRIPTORS_KEPT;
    if needed <= limit {
        return Ok(());
    }
    let words = format!(
        "--connections {connections}: this process may open {limit} files: raise the limit with \
         ulimit -n {needed}"
    );
    Err(Failure::new(words).into())
}

/// Finds out at once that a file cannot be written, without leaving one if nothing is measured.
fn check_writable(file: &FilePath) -> Result<(), Stop> {
    let is_new = !file.exists();
    let opened = File::options().create(true).append(true).open(file);
    opened.map_err(|error| unwritable(file, &error))?;
    if is_new {
        std::fs::remove_file(file).map_err(|error| unwritable(file, &error))?;
    }
    Ok(())
}

fn unwritable(file: &FilePath, error: &io::Error) -> Stop {
    let file = file.display();
    Failure::new(format!("{file}: can't be written: {}", text::cause(error))).into()
}

/// Loads the service through these sockets.
fn measure<D: Driver<Socket = OwnedFd>>(
    driver: D,
    name: &'static str,
    sockets: Vec<OwnedFd>,
    session: &Session,
    args: &LoadArgs,
) -> Result<Measured, Stop> {
    // A timer may be late by this, else by 50 µs (prctl(2)), which would be part of the latencies.
    let _ = nix::sys::prctl::set_timerslack(1);
    let times = Times::new(Instant::now(), args.warm_up, args.time, args.timeout);
    let account = Ledger::new(args.timeout, Some(times.window.clone()));
    let address = session.route.address();
    let numbered = sockets.into_iter().zip(0..);
    let with_lane = |(socket, number)| (socket, lane(number, address, args, account.beside()));
    let lanes = numbered.map(with_lane).collect();
    let task = Task {
        schedule: args.rate.map(|rate| Schedule::new(rate, times.begin)),
        times: times.clone(),
        depth: args.depth.into(),
        interrupt: session.interrupt.clone(),
    };
    let mut engine = Engine::new(driver, lanes, task);
    if args.url.is_stream() {
        engine.reconnect_by(|waker| {
            let waker = Arc::new(waker);
            Connector::start(session, args.timeout, 1, move || waker.wake())
        });
    }
    let ended = engine.run(progress(args, &session.console, &times, &account));
    let course = ended.map_err(|error| Stop::of("load", &error))?;
    let is_cut_short = session.is_interrupted() && Instant::now() < times.window.end;
    let tally = account.into_tally();
    let end = times.window.end.min(Instant::now());
    let end = tally.last_answer.map_or(end, |last| last.max(end));
    Ok(Measured {
        duration: end.saturating_duration_since(times.window.start),
        tally,
        course,
        driver: name,
        is_cut_short,
    })
}

/// Shows how it goes.
fn progress<'a>(
    args: &LoadArgs,
    console: &Console,
    times: &'a Times,
    account: &'a Ledger,
) -> impl FnMut(Instant) + use<'a> {
    let template = "{prefix}: {bar:30} {msg}, {eta} left";
    let total = times.window.end - times.begin;
    let bar = figures::bar(console, total.as_millis() as u64, template);
    bar.set_prefix(show::pace(args));
    let mut before = (times.begin, 0);
    move |now| {
        let count = account.tally().whole();
        let seconds = (now - before.0).as_secs_f64();
        let rate = (count - before.1) as f64 / seconds.max(1e-9);
        before = (now, count);
        bar.set_message(match now < times.window.start {
            true => "warming up".to_owned(),
            false => format!("{rate:.0} messages/s"),
        });
        bar.set_position((now - times.begin).as_millis() as u64);
    }
}

/// The lane of this number.
fn lane(number: u64, address: &Address, args: &LoadArgs, ledger: Ledger) -> Kind {
    if args.url.is_stream() {
        return Kind::Stream(stream::Lane::new(number, args.size, args.expect, ledger));
    }
    let envelope = Envelope {
        source: destination(address),
        ..Envelope::EMPTY
    };
    Kind::Flow(Flow::new(args.size, args.expect, ledger, envelope))
}

/// Where datagrams go to.
fn destination(address: &Address) -> Source {
    match address {
        Address::Inet(address) => Source::Inet(*address),
        Address::Unix(path) => {
            Source::Unix(UnixName::from_bytes(&unix_name(path)).unwrap_or(UnixName::NONE))
        }
    }
}
