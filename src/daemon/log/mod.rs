//! Where log lines go: to the journal with their fields, to syslog, or to standard error.
//!
//! A line is made safe in [`mod@line`], and [`limiter`] says whether it is one too many. What it is
//! about is said by key-values (`listener`, `peer`, `reload_id`), which the journal keeps. Never
//! waits for the journal or for syslog.

mod journal;
mod limiter;
mod line;
mod syslog;

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ::log::{LevelFilter, Log, Metadata, Record};
use ::syslog::Facility;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::config;

use journal::Journal;
use limiter::{Class, Limiter, Suppressed, Verdict};
use line::Line;
use syslog::Syslog;

/// The only one: what the crate `log` calls, and the main loop.
static LOGGER: OnceLock<Logger> = OnceLock::new();

/// From now on lines go where the configuration says.
///
/// # Errors
/// A message for the operator: `target = "syslog"` where there is none.
pub(super) fn start(settings: &config::Log) -> Result<(), String> {
    let facility: Facility = settings.facility.parse().unwrap_or(Facility::LOG_DAEMON);
    let mut remark = None;
    let sink = match choose(settings.target, &Surroundings::look()) {
        Choice::Journal => match Journal::connect(Path::new(journal::SOCKET), code(facility)) {
            Ok(journal) => Sink::Journal(journal),
            Err(error) => {
                remark = Some(format!(
                    "log: {}: {error}: lines reach the journal without fields",
                    journal::SOCKET
                ));
                Sink::Stderr { prefixes: true }
            }
        },
        Choice::Syslog => Sink::Syslog(Syslog::connect(Path::new(syslog::SOCKET), facility)?),
        Choice::Stderr { prefixes } => Sink::Stderr { prefixes },
    };
    let logger = Logger::new(sink).map_err(|error| format!("log: timer: {error}"))?;
    ::log::set_max_level(settings.level);
    // It is set once, here; a second daemon in one process does not exist.
    let _ = ::log::set_logger(LOGGER.get_or_init(|| logger));
    if let Some(remark) = remark {
        ::log::debug!("{remark}");
    }
    Ok(())
}

/// Readable when it is time for [`tell_suppressed`].
pub(super) fn timer() -> Option<BorrowedFd<'static>> {
    LOGGER.get().map(|logger| logger.timer.as_fd())
}

/// Says how many lines were not told in the windows of time that are over.
pub(super) fn tell_suppressed(now: Instant) {
    if let Some(logger) = LOGGER.get() {
        logger.tell_suppressed(now);
    }
}

/// Changes how much is logged; returns how much was before.
pub(super) fn set_level(level: LevelFilter) -> LevelFilter {
    let before = ::log::max_level();
    ::log::set_max_level(level);
    before
}

/// What decides about `target = "auto"`.
struct Surroundings {
    journal: bool,
    terminal: bool,
    syslog: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Journal,
    Syslog,
    Stderr { prefixes: bool },
}

impl Surroundings {
    fn look() -> Self {
        Self {
            journal: stderr_is_journal(),
            terminal: io::stderr().is_terminal(),
            syslog: Path::new(syslog::SOCKET).exists(),
        }
    }
}

/// A person who watches standard error gets the lines there, also where syslog is.
fn choose(target: config::LogTarget, surroundings: &Surroundings) -> Choice {
    match target {
        config::LogTarget::Syslog => Choice::Syslog,
        config::LogTarget::Auto if surroundings.journal => Choice::Journal,
        config::LogTarget::Auto if surroundings.syslog && !surroundings.terminal => Choice::Syslog,
        config::LogTarget::Auto | config::LogTarget::Stderr => Choice::Stderr {
            prefixes: surroundings.journal,
        },
    }
}

/// Whether standard error is the journal's: `$JOURNAL_STREAM` names its device and inode
/// (`systemd.exec(5)`), which tells also after a redirection.
pub(super) fn stderr_is_journal() -> bool {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else {
        return false;
    };
    stream.to_str() == Some(&format!("{}:{}", stderr.dev(), stderr.ino()))
}

/// Its number in `syslog(3)`, which the crate has shifted into its place in a priority.
fn code(facility: Facility) -> u8 {
    (facility as u8) >> 3
}

enum Sink {
    Journal(Journal),
    Syslog(Syslog),
    Stderr { prefixes: bool },
}

impl Sink {
    fn write(&self, line: &Line) {
        match self {
            Self::Journal(journal) => journal.write(line),
            Self::Syslog(syslog) => syslog.write(line),
            Self::Stderr { prefixes: true } => {
                print(format_args!("<{}>{}", line.priority(), line.text()));
            }
            Self::Stderr { prefixes: false } => print(format_args!("echod: {}", line.text())),
        }
    }
}

/// A line to standard error, in one write so that the lines of two threads stay apart.
fn print(line: fmt::Arguments<'_>) {
    // Where nobody reads standard error there is nowhere left to say so.
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

struct Logger {
    sink: Sink,
    limiter: Mutex<Limiter<Line>>,
    // Wakes the main loop: workers suppress lines while it sleeps.
    timer: TimerFd,
}

impl Logger {
    fn new(sink: Sink) -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        Ok(Self {
            sink,
            limiter: Mutex::default(),
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?,
        })
    }

    fn limiter(&self) -> MutexGuard<'_, Limiter<Line>> {
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this line is told; counted if not.
    fn admit(&self, now: Instant, record: &Record<'_>) -> bool {
        let mut limiter = self.limiter();
        match limiter.handle_line(now, class(record), || Line::of(record)) {
            Verdict::Tell(None) => true,
            Verdict::Tell(Some(before)) => {
                self.set_timer(&limiter, now);
                drop(limiter);
                self.tell(before);
                true
            }
            Verdict::Suppress { first } => {
                if first {
                    self.set_timer(&limiter, now);
                }
                false
            }
        }
    }

    fn tell_suppressed(&self, now: Instant) {
        let mut limiter = self.limiter();
        let ended = limiter.take_ended(now);
        if ended.is_empty() {
            return;
        }
        self.set_timer(&limiter, now);
        drop(limiter);
        for suppressed in ended {
            self.tell(suppressed);
        }
    }

    fn tell(&self, suppressed: Suppressed<Line>) {
        self.sink
            .write(&suppressed.first.suppressed(suppressed.count));
    }

    /// The limiter is held meanwhile, so that the timer is set for what it says last.
    fn set_timer(&self, limiter: &Limiter<Line>, now: Instant) {
        let set = match limiter.poll_timeout() {
            None => self.timer.unset(),
            Some(until) => {
                // Zero would mean never (timerfd_settime(2)).
                let left = (until - now).max(Duration::from_nanos(1));
                self.timer.set(
                    Expiration::OneShot(TimeSpec::from_duration(left)),
                    TimerSetTimeFlags::empty(),
                )
            }
        };
        // It can't fail; if it did, the next line of the class or the end would tell.
        debug_assert_eq!(set, Ok(()));
    }
}

fn class(record: &Record<'_>) -> Class {
    let listener = record.key_values().get("listener".into());
    Class {
        module: record.module_path_static().unwrap_or_default(),
        line: record.line().unwrap_or_default(),
        listener: listener.map(|name| name.to_string()),
    }
}

/// What a reload says is told as a whole: the configuration bounds its length.
fn is_of_a_reload(record: &Record<'_>) -> bool {
    record.key_values().get("reload_id".into()).is_some()
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= ::log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata())
            && (is_of_a_reload(record) || self.admit(Instant::now(), record))
        {
            self.sink.write(&Line::of(record));
        }
    }

    /// Nothing that was suppressed is left untold.
    fn flush(&self) {
        let mut limiter = self.limiter();
        let all = limiter.take_all();
        self.set_timer(&limiter, Instant::now());
        drop(limiter);
        for suppressed in all {
            self.tell(suppressed);
        }
    }
}

#[cfg(test)]
mod tests {
    use config::LogTarget;

    use super::*;

    #[test]
    fn auto_takes_the_journal_then_the_terminal_then_syslog() {
        let choice = |target, journal, terminal, syslog| {
            let surroundings = Surroundings {
                journal,
                terminal,
                syslog,
            };
            choose(target, &surroundings)
        };
        let auto = |journal, terminal, syslog| choice(LogTarget::Auto, journal, terminal, syslog);
        assert_eq!(auto(true, false, true), Choice::Journal);
        assert_eq!(auto(false, true, true), Choice::Stderr { prefixes: false });
        assert_eq!(auto(false, false, true), Choice::Syslog);
        assert_eq!(
            auto(false, false, false),
            Choice::Stderr { prefixes: false }
        );
        // Who asks for standard error gets it, with what the journal understands.
        assert_eq!(
            choice(LogTarget::Stderr, true, false, true),
            Choice::Stderr { prefixes: true }
        );
    }

    #[test]
    fn the_facility_of_the_journal_is_that_of_syslog() {
        assert_eq!(code(Facility::LOG_DAEMON), 3);
        assert_eq!(code(Facility::LOG_LOCAL3), 19);
    }
}
