//! As much as a service takes, or so much each second: what it does under load, and how long that
//! takes.
//!
//! What is sent and what counts is decided over made-up time: [`pattern`] has the bytes, [`stream`]
//! and [`flow`] the account of a connection, [`schedule`] says when messages are due, [`sheet`]
//! which of them count. [`engine`] runs it over the project's own driver, a thread at a time. What
//! was [`measured`] is then shown.

mod axis;
mod curve;
mod doubts;
mod engine;
mod figures;
mod flow;
mod hdr;
mod header;
mod histogram;
mod json;
mod measured;
mod pattern;
mod picture;
#[cfg(test)]
mod sample;
mod schedule;
mod sheet;
mod show;
mod stream;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path as FilePath;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use super::args::{DATAGRAM_BYTES_MAX, DriverChoice, Expect, LoadArgs, Pace, Path};
use super::cause::Cause;
use super::interrupt::{Interrupt, LOOK_INTERVAL};
use super::pauses::Pauses;
use super::prober::{Course, Prober};
use super::report::Verdict;
use super::route::{Address, Route, usage};
use super::{Console, Trouble, progress};
use crate::cli::exit::Failure;
use crate::driver::epoll::Epoll;
use crate::driver::uring::Uring;
use crate::driver::{Driver, Envelope, Source, UnixName};
use crate::stats::Counter;
use crate::sys::process::raise_descriptor_limit;

use engine::{Engine, Socket, Task};
use flow::Flow;
use header::Header;
use measured::Measured;
use pattern::Lengths;
use schedule::Schedule;
use sheet::{Sheet, Times};
use stream::Stream;

/// How often it is looked whether this process runs.
const PAUSES_INTERVAL: Duration = Duration::from_millis(2);

/// So many are connected at a time, where connecting takes its time.
const CONNECTING_MAX: usize = 32;

/// On a network that loses, the first message may be lost.
const REACH_TRIES: u32 = 3;

/// Descriptors for all but the connections.
const DESCRIPTORS_KEPT: u64 = 64;

/// From when all threads are ready to the first message of a schedule, so that none is late for it.
const HEAD_START: Duration = Duration::from_millis(5);

/// Does what the command line says.
///
/// # Errors
/// When the command line makes no sense for this service, this host can't open so many sockets, or
/// results can't be printed or written.
pub(super) fn run(
    args: &LoadArgs,
    path: &Path,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Verdict, Failure> {
    check(args)?;
    for file in [&args.svg, &args.hdr].into_iter().flatten() {
        check_writable(file)?;
    }
    let route = match Route::resolve(&args.url, path) {
        Ok(route) => route,
        Err(trouble) => return console.unreached(&trouble),
    };
    if let Err(trouble) = reach(&route, args, interrupt) {
        return console.unreached(&trouble);
    }
    let mut all = Vec::new();
    let rates: Vec<Option<u64>> = match args.rate.as_slice() {
        [] => vec![None],
        rates => rates.iter().copied().map(Some).collect(),
    };
    let driver = chosen(args.driver)?;
    for (rate, step) in rates.iter().zip(1..) {
        if interrupt.is_requested() {
            break;
        }
        let title = title(*rate, step, rates.len());
        let step = Step {
            args,
            route: &route,
            driver,
            rate: *rate,
            title,
        };
        match step.measure(console, interrupt)? {
            Ok(measured) => all.push(measured),
            Err(trouble) if all.is_empty() => return console.unreached(&trouble),
            Err(trouble) => {
                console.warn(&trouble.to_string());
                break;
            }
        }
    }
    tell(args, driver, &all, console)
}

/// Prints and draws what was measured.
fn tell(
    args: &LoadArgs,
    driver: DriverChoice,
    all: &[Measured],
    console: &Console,
) -> Result<Verdict, Failure> {
    let header = Header {
        target: args.url.clone(),
        connections: args.connections,
        depth: args.rate.is_empty().then_some(args.depth),
        sizes: args.size,
        threads: threads(args),
        driver: driver.name(),
    };
    console.say(&show::summary(&header, all, console.paint, console.width()))?;
    for warning in doubts::warnings(all) {
        console.warn(&warning);
    }
    if let Some(file) = &args.svg {
        write(file, &picture::svg(&header, all))?;
    }
    if let Some(file) = &args.hdr {
        for (file, text) in hdr::files(file, all) {
            write(&file, &text)?;
        }
    }
    console.report(&json::report(&header, all))?;
    Ok(verdict(all))
}

fn verdict(all: &[Measured]) -> Verdict {
    let messages: u64 = all.iter().map(|one| one.messages + one.late).sum();
    let flaws = |one: &Measured| one.lost + one.late + one.corrupt > 0 || !one.errors.is_empty();
    match messages {
        0 => Verdict::Unreached,
        _ if all.iter().any(flaws) => Verdict::Flawed,
        _ => Verdict::Good,
    }
}

/// Whether the command line makes sense.
fn check(args: &LoadArgs) -> Result<(), Failure> {
    if !args.url.is_stream() && args.size.most > DATAGRAM_BYTES_MAX {
        return Err(usage(format!(
            "--size {}: a datagram has {DATAGRAM_BYTES_MAX} bytes at most",
            args.size.most
        )));
    }
    if args.time.is_zero() {
        return Err(usage("--time 0s: nothing can be measured in no time"));
    }
    let may = raise_descriptor_limit().unwrap_or(u64::MAX);
    let needed = u64::from(args.connections) + DESCRIPTORS_KEPT;
    if needed > may {
        return Err(Failure::new(format!(
            "--connections {}: this process may open {may} files: raise the limit with ulimit -n {needed}",
            args.connections
        )));
    }
    Ok(())
}

/// So that a run of an hour is not lost for a typing error.
fn check_writable(file: &FilePath) -> Result<(), Failure> {
    let opened = File::options().create(true).append(true).open(file);
    opened.map(drop).map_err(|error| unwritten(file, &error))
}

fn write(file: &FilePath, text: &str) -> Result<(), Failure> {
    std::fs::write(file, text).map_err(|error| unwritten(file, &error))
}

fn unwritten(file: &FilePath, error: &io::Error) -> Failure {
    Failure::new(format!("{}: can't be written: {error}", file.display()))
}

/// Whether anything comes back at all. Datagrams that nobody takes would look like a loss.
fn reach(route: &Route, args: &LoadArgs, interrupt: &Interrupt) -> Result<(), Trouble> {
    if route.target().is_stream() {
        return Ok(());
    }
    let course = Course {
        pace: Pace {
            interval: args.timeout,
            size: args.size.least,
            timeout: args.timeout,
            expect: Expect::Echo,
        },
        count: Some(1),
        deadline: None,
    };
    let mut cause = Cause::TimedOut;
    for _ in 0..REACH_TRIES {
        let outcome = Prober::new(route, &course)?.run(interrupt, |_| {});
        let tally = outcome.map_err(|error| route.trouble(&error))?.tally;
        if tally.received + tally.late + tally.corrupt > 0 {
            return Ok(());
        }
        cause = tally.errors.chief().cloned().unwrap_or(cause);
    }
    Err(Trouble::new(route.target().to_string(), cause))
}

/// The driver that will be used.
fn chosen(asked: DriverChoice) -> Result<DriverChoice, Failure> {
    match asked {
        DriverChoice::Epoll => Ok(asked),
        DriverChoice::Auto if Uring::new().is_err() => Ok(DriverChoice::Epoll),
        DriverChoice::Auto => Ok(DriverChoice::IoUring),
        DriverChoice::IoUring => match Uring::new() {
            Ok(_) => Ok(asked),
            Err(error) => Err(Failure::new(format!(
                "--driver io_uring: {error}: use --driver epoll"
            ))),
        },
    }
}

fn threads(args: &LoadArgs) -> u32 {
    args.threads.min(args.connections)
}

fn title(rate: Option<u64>, step: usize, steps: usize) -> String {
    let what = rate.map_or("closed loop".into(), |rate| format!("{rate}/s"));
    if steps > 1 {
        format!("{step} of {steps}, {what}")
    } else {
        what
    }
}

/// One measurement.
struct Step<'a> {
    args: &'a LoadArgs,
    route: &'a Route,
    driver: DriverChoice,
    rate: Option<u64>,
    title: String,
}

impl Step<'_> {
    /// Connects, loads, and sums up what all threads have measured.
    fn measure(
        &self,
        console: &Console,
        interrupt: &Interrupt,
    ) -> Result<Result<Measured, Trouble>, Failure> {
        let mut sockets = match self.connect(console, interrupt) {
            Ok(sockets) => sockets,
            Err(trouble) => return Ok(Err(trouble)),
        };
        let args = self.args;
        let count = threads(args) as usize;
        let mut shares: Vec<Vec<Socket>> = (0..count).map(|_| Vec::new()).collect();
        for (index, socket) in sockets.drain(..).enumerate() {
            shares[index % count].push(socket);
        }
        let start = Start::new(count + 1);
        let answered: Vec<Arc<Counter>> = (0..count).map(|_| Arc::default()).collect();
        let pauses = Pauses::watch(PAUSES_INTERVAL);
        let sheets = thread::scope(|scope| {
            let threads: Vec<_> = shares
                .into_iter()
                .zip(&answered)
                .enumerate()
                .map(|(index, (share, progress))| {
                    let start = &start;
                    let task = move || {
                        let times = start.wait(|| self.times());
                        self.task(index, times, Arc::clone(progress), interrupt)
                    };
                    scope.spawn(move || run_on(self.driver, share, task))
                })
                .collect();
            self.watch(
                console,
                start.wait(|| self.times()),
                &answered,
                &pauses,
                || threads.iter().all(thread::ScopedJoinHandle::is_finished),
            );
            let ended = threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"));
            ended.collect::<io::Result<Vec<Sheet>>>()
        });
        let sheets = sheets.map_err(|error| Failure::new(format!("load: {error}")))?;
        let mut measured = Measured {
            rate: self.rate,
            longest_pause: pauses.take_longest(),
            ..Measured::default()
        };
        sheets
            .iter()
            .for_each(|sheet| measured.merge(&sheet.measured));
        measured.busy /= count as f64;
        Ok(Ok(measured))
    }

    /// The times of a measurement that begins now, or as soon as a schedule can.
    fn times(&self) -> Times {
        let head_start = self.rate.map_or(Duration::ZERO, |_| HEAD_START);
        let begin = Instant::now() + head_start;
        let args = self.args;
        Times::new(begin, args.warm_up, args.time, args.timeout)
    }

    fn task(
        &self,
        index: usize,
        times: &Times,
        progress: Arc<Counter>,
        interrupt: &Interrupt,
    ) -> Task {
        let threads = u64::from(threads(self.args));
        let schedule = |rate| Schedule::new(rate, times.begin, index as u64, threads);
        Task {
            times: times.clone(),
            schedule: self.rate.map(schedule),
            depth: self.args.depth,
            interrupt: interrupt.clone(),
            progress,
        }
    }

    /// Shows how it goes, until it is over.
    fn watch(
        &self,
        console: &Console,
        times: &Times,
        answered: &[Arc<Counter>],
        pauses: &Pauses,
        is_over: impl Fn() -> bool,
    ) {
        let all = times.window.end - times.begin;
        let template = "{prefix}: {bar:30} {msg}, {eta} left";
        let bar = progress::bar(console, all.as_millis() as u64, template);
        bar.set_prefix(self.title.clone());
        let mut before = (Instant::now(), 0);
        let mut warm = false;
        while !is_over() {
            thread::sleep(LOOK_INTERVAL);
            let now = Instant::now();
            if !warm && now >= times.window.start {
                // What was before is not measured.
                warm = true;
                pauses.take_longest();
            }
            let count = answered.iter().map(|counter| counter.get()).sum();
            let rate = (count - before.1) as f64 / (now - before.0).as_secs_f64();
            before = (now, count);
            let phase = if warm { "" } else { " (warming up)" };
            bar.set_message(format!("{rate:.0} messages/s{phase}"));
            bar.set_position((now.saturating_duration_since(times.begin)).as_millis() as u64);
        }
    }

    /// Opens all connections or flows, several at a time.
    fn connect(&self, console: &Console, interrupt: &Interrupt) -> Result<Vec<Socket>, Trouble> {
        let count = self.args.connections as usize;
        let bar = progress::bar(console, count as u64, "connecting {bar:30} {pos}/{len}");
        let next = AtomicUsize::new(0);
        let connect = || {
            let mut sockets = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count || interrupt.is_requested() {
                    return Ok(sockets);
                }
                sockets.push(self.open(number as u64)?);
                bar.inc(1);
            }
        };
        let opened: Vec<Result<Vec<Socket>, Trouble>> = thread::scope(|scope| {
            let threads: Vec<_> = (0..CONNECTING_MAX.min(count))
                .map(|_| scope.spawn(connect))
                .collect();
            let ended = threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"));
            ended.collect()
        });
        let sockets: Vec<Vec<Socket>> = opened.into_iter().collect::<Result<_, _>>()?;
        Ok(sockets.into_iter().flatten().collect())
    }

    /// Opens one.
    fn open(&self, number: u64) -> Result<Socket, Trouble> {
        let lengths = Lengths::new(self.args.size, number);
        let failed = |error: io::Error| self.route.trouble(&error);
        if self.route.target().is_stream() {
            let connection = self.route.connect(self.args.timeout)?;
            let fd = connection.into_nonblocking().map_err(failed)?;
            return Ok(Socket::Stream(fd, Stream::new(number, lengths)));
        }
        let fd = self.route.connect_datagrams()?;
        let envelope = Envelope {
            source: source(self.route.address()),
            ..Envelope::EMPTY
        };
        let flow = Flow::new(number, lengths, self.args.timeout);
        Ok(Socket::Flow(fd, flow, Box::new(envelope)))
    }
}

/// Where datagrams go to.
fn source(address: &Address) -> Source {
    match address {
        Address::Inet(address) => Source::Inet(*address),
        Address::Unix(path) => {
            // The abstract ones begin with a NUL (unix(7)).
            let mut bytes = path.as_os_str().as_bytes().to_vec();
            if bytes.first() == Some(&b'@') {
                bytes[0] = 0;
            }
            Source::Unix(UnixName::from_bytes(&bytes).unwrap_or(UnixName::NONE))
        }
    }
}

/// Lets the threads of a step begin together, when the last of them is ready. A time that was set
/// before could be over when a busy system first runs one of them.
struct Start {
    ready: Barrier,
    times: OnceLock<Times>,
}

impl Start {
    /// The number of threads includes the one that watches the others.
    fn new(threads: usize) -> Self {
        Self {
            ready: Barrier::new(threads),
            times: OnceLock::new(),
        }
    }

    /// Waits for all threads. The first one to continue says when it begins.
    fn wait(&self, times: impl FnOnce() -> Times) -> &Times {
        self.ready.wait();
        self.times.get_or_init(times)
    }
}

/// Runs a share of a load on a driver, which is made in the thread that uses it.
fn run_on(
    driver: DriverChoice,
    sockets: Vec<Socket>,
    task: impl FnOnce() -> Task,
) -> io::Result<Sheet> {
    // A timer may be late by this, else by 50 µs (prctl(2)): who measures can't have that.
    let _ = nix::sys::prctl::set_timerslack(1);
    match driver {
        DriverChoice::Epoll => begin(Epoll::new(), sockets, task),
        DriverChoice::IoUring | DriverChoice::Auto => begin(Uring::new(), sockets, task),
    }
}

fn begin<D: Driver<Socket = OwnedFd>>(
    driver: io::Result<D>,
    sockets: Vec<Socket>,
    task: impl FnOnce() -> Task,
) -> io::Result<Sheet> {
    let driver = match driver {
        Ok(driver) => driver,
        Err(error) => {
            // The barrier counts this thread, too.
            task();
            return Err(error);
        }
    };
    Engine::new(driver, sockets, task).run()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The time began while threads were still being started: on a busy machine a short one was over
    /// before the first message, and nothing was measured.
    #[test]
    fn the_time_begins_when_the_last_thread_is_ready() {
        let start = Start::new(2);
        let second = Duration::from_secs(1);
        let times = || Times::new(Instant::now(), second, second, second);
        let begins = thread::scope(|scope| {
            let threads = [(); 2].map(|()| {
                scope.spawn(|| {
                    let ready = Instant::now();
                    (ready, start.wait(times).begin)
                })
            });
            threads.map(|thread| thread.join().expect("no panic"))
        });
        assert_eq!(begins[0].1, begins[1].1, "together");
        assert!(begins.iter().all(|(ready, begin)| begin >= ready));
    }
}
