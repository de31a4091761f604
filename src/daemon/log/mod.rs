//! The log: from a record of the crate `log` to a line in the journal, in syslog or on standard error.
//!
//! A record becomes a [`mod@line`], made safe; [`limiter`] decides whether it is one too many; it waits
//! in a [`queue`] for [`writer`], a thread of its own that knows the [`output`]. What a line is about
//! is in key-values (`listener`, `peer`, `caller`, `closed`, `reload_id`), which the journal keeps. A thread that logs
//! never waits for an output: lines that it does not take in time are lost, and counted.

mod journal;
mod limiter;
mod line;
mod output;
mod queue;
mod syslog;
mod writer;

use std::io;
use std::panic::PanicHookInfo;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ::log::{Level, LevelFilter, Log, Metadata, Record};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use crate::cli::text::cause;
use crate::config;
use crate::driver::Waker;
use crate::protocol::schema::Diagnostic;

use limiter::{Class, Limiter, Suppressed, Verdict};
use line::Line;
use output::Output;
pub(super) use output::{stderr_is_journal, write_last_words};
use queue::{FLUSH_TIME_MAX, Item, Queue};
use writer::Writer;

/// The stack of the thread that writes: little, where the address space is limited.
const STACK_BYTES: usize = 256 * 1024;

/// The only one: what the crate `log` calls.
static LOGGER: OnceLock<Logger> = OnceLock::new();

/// From now on lines go where the configuration says. They are written once [`start_writer`] was
/// called, or at a flush.
///
/// # Errors
/// A message for the operator: `target = "syslog"` where there is none.
pub(super) fn start(settings: &config::Log) -> Result<(), Diagnostic> {
    let (output, remark) = open(settings)?;
    let logger = Logger::new(output)
        .map_err(|error| Diagnostic::general(format!("log: {}", cause(&error))))?;
    ::log::set_max_level(settings.level);
    // It is set once, here; a second daemon in one process does not exist.
    let _ = ::log::set_logger(LOGGER.get_or_init(|| logger));
    // The standard hook would write to standard error, and wait for it.
    std::panic::set_hook(Box::new(log_panic));
    if let Some(remark) = remark {
        ::log::debug!("{remark}");
    }
    Ok(())
}

/// Whether [`start`] would succeed.
///
/// # Errors
/// As [`start`].
pub(super) fn check(settings: &config::Log) -> Result<(), Diagnostic> {
    open(settings).map(drop)
}

fn open(settings: &config::Log) -> Result<(Output, Option<String>), Diagnostic> {
    Output::open(settings).map_err(|message| Diagnostic::about("log.target", message))
}

/// Starts the thread that writes. It is not started together with the log: privileges are given up
/// by a thread for itself and for those that it starts later.
///
/// # Errors
/// When there can be no more threads.
pub(super) fn start_writer() -> io::Result<()> {
    let Some(logger) = LOGGER.get() else {
        return Ok(());
    };
    let Some(output) = logger.state().output.take() else {
        return Ok(());
    };
    let run = move || logger.run(Writer::new(output));
    let thread = thread::Builder::new().name("log".into());
    thread.stack_size(STACK_BYTES).spawn(run)?;
    Ok(())
}

/// Changes how much is logged; returns how much was before.
pub(super) fn set_level(level: LevelFilter) -> LevelFilter {
    let before = ::log::max_level();
    ::log::set_max_level(level);
    before
}

/// Begins a flush that the caller does not wait for; [`is_flushed`] says when it is over.
pub(super) fn begin_flush() {
    if let Some(logger) = LOGGER.get() {
        logger.begin_flush();
    }
}

/// Whether a flush that began at this time is over: everything has been written, or the output has
/// had the time of a flush.
pub(super) fn is_flushed(begun: Instant, now: Instant) -> bool {
    LOGGER
        .get()
        .is_none_or(|logger| logger.is_flushed(begun, now))
}

/// Flushes, for at most this long.
pub(super) fn flush_within(time_max: Duration) {
    if let Some(logger) = LOGGER.get() {
        logger.flush_within(time_max);
    }
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let name = thread.name().unwrap_or("without a name");
    let text = panic.to_string().replace('\n', " ");
    ::log::error!("thread {name} {text}");
    // It may end the process.
    ::log::logger().flush();
}

struct Logger {
    state: Mutex<State>,
    /// Wakes the writer, when a line was queued or the time changed at which it is to wake.
    waker: Waker,
    /// The writer has finished with an item.
    written: Condvar,
}

struct State {
    limiter: Limiter<Line>,
    queue: Queue<Line>,
    /// Until the writer has it.
    output: Option<Output>,
}

impl State {
    /// Queues a line of this class, or suppresses it. A line without a class is not limited.
    fn handle_line(&mut self, now: Instant, class: Option<Class>, line: Line) {
        let Some(class) = class else {
            return self.push(line);
        };
        match self.limiter.handle_line(now, class, line) {
            Verdict::Admit { before, line } => {
                before.into_iter().for_each(|before| self.report(before));
                self.push(line);
            }
            Verdict::Suppress => {}
        }
    }

    fn push(&mut self, line: Line) {
        let bytes = line.bytes();
        self.queue.push(line, bytes);
    }

    fn report(&mut self, suppressed: Suppressed<Line>) {
        self.push(suppressed.first.suppressed(suppressed.count));
    }
}

impl Logger {
    fn new(output: Output) -> io::Result<Self> {
        Ok(Self {
            state: Mutex::new(State {
                limiter: Limiter::default(),
                queue: Queue::default(),
                output: Some(output),
            }),
            waker: Waker::new()?,
            written: Condvar::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread that writes.
    fn run(&self, mut writer: Writer<Output>) {
        loop {
            let item = self.next_item();
            writer.write(item);
        }
    }

    /// Waits for the next item. The one before has been written.
    fn next_item(&self) -> Item<Line> {
        loop {
            let now = Instant::now();
            let mut state = self.state();
            for suppressed in state.limiter.take_ended(now) {
                state.report(suppressed);
            }
            let item = state.queue.pop(now);
            let timeout = state.limiter.poll_timeout();
            drop(state);
            self.written.notify_all();
            match item {
                Some(item) => return item,
                None => self.wait(timeout),
            }
        }
    }

    /// Queues what was suppressed, and has the writer write everything.
    fn begin_flush(&self) {
        let mut state = self.state();
        for suppressed in state.limiter.take_all() {
            state.report(suppressed);
        }
        drop(state);
        // A start that has failed has not come to this. Without a thread the lines are lost.
        let _ = start_writer();
        self.waker.wake();
    }

    fn is_flushed(&self, begun: Instant, now: Instant) -> bool {
        let deadline = self.state().queue.flush_deadline(begun, FLUSH_TIME_MAX);
        deadline.is_none_or(|until| now >= until)
    }

    fn flush_within(&self, time_max: Duration) {
        let begun = Instant::now();
        self.begin_flush();
        let mut state = self.state();
        while let Some(until) = state.queue.flush_deadline(begun, time_max) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.written.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until there may be something to write. Only here the writer sleeps without an item.
    fn wait(&self, until: Option<Instant>) {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let mut fds = [PollFd::new(self.waker.as_fd(), PollFlags::POLLIN)];
        // It can fail for want of memory; then the writer looks at once, as if it had been woken.
        let _ = ppoll(&mut fds, left.map(TimeSpec::from_duration), None);
        self.waker.drain();
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= ::log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // The text is formatted before the lock is taken: other threads need not wait for that, and
        // whatever it calls may log itself.
        let line = Line::of(record);
        let class = (!is_unlimited(record)).then(|| class(record));
        self.state().handle_line(Instant::now(), class, line);
        self.waker.wake();
    }

    /// Waits, for a bounded time, until all lines have been written, and with them how many were
    /// suppressed.
    fn flush(&self) {
        self.flush_within(FLUSH_TIME_MAX);
    }
}

fn class(record: &Record<'_>) -> Class {
    let values = record.key_values();
    let subject = values.get("listener".into());
    let subject = subject.or_else(|| values.get("caller".into()));
    Class {
        module: record.module_path_static().unwrap_or_default(),
        line: record.line().unwrap_or_default(),
        subject: subject.map(|name| name.to_string()),
    }
}

/// The lines of a reload are not limited: the configuration bounds their number. Nor are those about
/// the changes of a caller, of which none may be hidden behind others, and those about connections that
/// were closed where each is asked for (`[log] connections`); else they are debug lines.
fn is_unlimited(record: &Record<'_>) -> bool {
    let has = |key: &str| record.key_values().get(key.into()).is_some();
    has("reload_id") || (record.level() == Level::Info && (has("closed") || has("caller")))
}
