//! Where log lines go: syslog, or standard error with `<N>` prefixes that the journal understands.
//!
//! Never blocks on syslog: a line that it does not take is lost rather than a service stopped.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use log::{Level, LevelFilter, Log, Metadata, Record};
use syslog::{Facility, Formatter3164, Logger, LoggerBackend};

use crate::config;

/// The system log's socket (`syslog(3)`).
const SYSLOG_SOCKET: &str = "/dev/log";

/// From now on lines go where the configuration says.
///
/// # Errors
/// A message for the operator: `target = "syslog"` where there is none.
pub(super) fn start(settings: &config::Log) -> Result<(), String> {
    let sink = match choose(settings.target, &Surroundings::look()) {
        Choice::Syslog => Sink::Syslog(Syslog::connect(
            Path::new(SYSLOG_SOCKET),
            facility(&settings.facility),
        )?),
        Choice::Stderr { prefixes } => Sink::Stderr { prefixes },
    };
    log::set_max_level(settings.level);
    // It is set once, here; a second daemon in one process does not exist.
    let _ = log::set_boxed_logger(Box::new(sink));
    Ok(())
}

/// What decides about `target = "auto"`.
struct Surroundings {
    journal: bool,
    terminal: bool,
    syslog: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Choice {
    Syslog,
    Stderr { prefixes: bool },
}

impl Surroundings {
    fn look() -> Self {
        Self {
            journal: stderr_is_journal(),
            terminal: std::io::stderr().is_terminal(),
            syslog: Path::new(SYSLOG_SOCKET).exists(),
        }
    }
}

/// A person who watches standard error gets the lines there, also where syslog is.
fn choose(target: config::LogTarget, surroundings: &Surroundings) -> Choice {
    match target {
        config::LogTarget::Syslog => Choice::Syslog,
        config::LogTarget::Auto
            if surroundings.syslog && !surroundings.journal && !surroundings.terminal =>
        {
            Choice::Syslog
        }
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

enum Sink {
    Syslog(Syslog),
    Stderr { prefixes: bool },
}

impl Log for Sink {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        match self {
            Self::Syslog(syslog) => syslog.write(record.level(), record.args()),
            Self::Stderr { prefixes: true } => print(format_args!(
                "<{}>{}",
                priority(record.level()),
                record.args()
            )),
            Self::Stderr { prefixes: false } => print(format_args!("echod: {}", record.args())),
        }
    }

    fn flush(&self) {}
}

/// A line to standard error, in one write so that the lines of two threads stay apart.
fn print(line: fmt::Arguments<'_>) {
    // Where nobody reads standard error there is nowhere left to say so.
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// The priority of `sd-daemon(3)` and `syslog(3)`.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// A connection to the system log, made anew when the log was restarted.
struct Syslog {
    path: std::path::PathBuf,
    formatter: Formatter3164,
    logger: Mutex<Logger<LoggerBackend, Formatter3164>>,
}

impl Syslog {
    fn connect(path: &Path, facility: Facility) -> Result<Self, String> {
        let formatter = Formatter3164 {
            facility,
            hostname: None,
            process: "echod".into(),
            pid: std::process::id(),
        };
        let logger = open(path, &formatter).map_err(|error| {
            format!(
                "log: {}: {error}: is a system log running? (target = \"stderr\" needs none)",
                path.display()
            )
        })?;
        Ok(Self {
            path: path.into(),
            formatter,
            logger: Mutex::new(logger),
        })
    }

    fn write(&self, level: Level, line: &fmt::Arguments<'_>) {
        let mut logger = self.logger.lock().unwrap_or_else(PoisonError::into_inner);
        if send(&mut logger, level, line).is_err()
            && let Ok(anew) = open(&self.path, &self.formatter)
        {
            *logger = anew;
            // Lost, then: the system log is there and does not listen.
            let _ = send(&mut logger, level, line);
        }
    }
}

fn open(
    path: &Path,
    formatter: &Formatter3164,
) -> std::io::Result<Logger<LoggerBackend, Formatter3164>> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    socket.set_nonblocking(true)?;
    Ok(Logger::new(LoggerBackend::Unix(socket), formatter.clone()))
}

fn send(
    logger: &mut Logger<LoggerBackend, Formatter3164>,
    level: Level,
    line: &fmt::Arguments<'_>,
) -> Result<(), syslog::Error> {
    match level {
        Level::Error => logger.err(line),
        Level::Warn => logger.warning(line),
        Level::Info => logger.info(line),
        Level::Debug | Level::Trace => logger.debug(line),
    }
}

fn facility(name: &str) -> Facility {
    name.parse().unwrap_or(Facility::LOG_DAEMON)
}

/// Changes how much is logged; returns how much was before.
pub(super) fn set_level(level: LevelFilter) -> LevelFilter {
    let before = log::max_level();
    log::set_max_level(level);
    before
}

#[cfg(test)]
mod tests {
    use config::LogTarget;

    use super::*;

    #[test]
    fn auto_takes_the_journal_then_the_terminal_then_syslog() {
        let auto = |journal, terminal, syslog| {
            choose(
                LogTarget::Auto,
                &Surroundings {
                    journal,
                    terminal,
                    syslog,
                },
            )
        };
        assert_eq!(auto(true, false, true), Choice::Stderr { prefixes: true });
        assert_eq!(auto(false, true, true), Choice::Stderr { prefixes: false });
        assert_eq!(auto(false, false, true), Choice::Syslog);
        assert_eq!(
            auto(false, false, false),
            Choice::Stderr { prefixes: false }
        );
    }

    fn receive(socket: &UnixDatagram) -> String {
        let mut line = [0; 1024];
        let len = socket.recv(&mut line).unwrap();
        String::from_utf8(line[..len].to_vec()).unwrap()
    }

    #[test]
    fn syslog_gets_priority_name_and_pid_and_is_found_again_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let socket = UnixDatagram::bind(&path).unwrap();
        let syslog = Syslog::connect(&path, facility("daemon")).unwrap();
        syslog.write(Level::Warn, &format_args!("first line"));
        let line = receive(&socket);
        // Facility daemon is 3, severity warning 4: 3 * 8 + 4 (RFC 3164, section 4.1.1).
        assert!(line.starts_with("<28>"), "{line}");
        let end = format!("echod[{}]: first line", std::process::id());
        assert!(line.ends_with(&end), "{line}");

        drop(socket);
        std::fs::remove_file(&path).unwrap();
        syslog.write(Level::Warn, &format_args!("lost: nobody is there"));
        let socket = UnixDatagram::bind(&path).unwrap();
        syslog.write(Level::Error, &format_args!("back again"));
        let line = receive(&socket);
        assert!(
            line.starts_with("<27>") && line.ends_with("back again"),
            "{line}"
        );
    }

    #[test]
    fn a_system_log_that_does_not_read_blocks_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let _socket = UnixDatagram::bind(&path).unwrap();
        let syslog = Syslog::connect(&path, facility("daemon")).unwrap();
        for _ in 0..10_000 {
            syslog.write(Level::Info, &format_args!("nobody reads this"));
        }
    }
}
