//! The system log (`syslog(3)`, RFC 3164), by the crate of that name.
//!
//! Never blocks: a line that it does not take is lost rather than a service stopped.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ::log::Level;
use ::syslog::{Error, Facility, Formatter3164, Logger, LoggerBackend};

use super::line::Line;

/// The system log's socket (`syslog(3)`).
pub(super) const SOCKET: &str = "/dev/log";

/// A connection to the system log, made anew when the log was restarted.
pub(super) struct Syslog {
    path: PathBuf,
    formatter: Formatter3164,
    logger: Mutex<Logger<LoggerBackend, Formatter3164>>,
}

impl Syslog {
    /// # Errors
    /// A message for the operator.
    pub(super) fn connect(path: &Path, facility: Facility) -> Result<Self, String> {
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

    pub(super) fn write(&self, line: &Line) {
        let mut logger = self.logger.lock().unwrap_or_else(PoisonError::into_inner);
        if send(&mut logger, line).is_err()
            && let Ok(anew) = open(&self.path, &self.formatter)
        {
            *logger = anew;
            // Lost, then: the system log is there and does not listen.
            let _ = send(&mut logger, line);
        }
    }
}

fn open(
    path: &Path,
    formatter: &Formatter3164,
) -> io::Result<Logger<LoggerBackend, Formatter3164>> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
    socket.set_nonblocking(true)?;
    Ok(Logger::new(LoggerBackend::Unix(socket), formatter.clone()))
}

fn send(logger: &mut Logger<LoggerBackend, Formatter3164>, line: &Line) -> Result<(), Error> {
    match line.level() {
        Level::Error => logger.err(line.text()),
        Level::Warn => logger.warning(line.text()),
        Level::Info => logger.info(line.text()),
        Level::Debug | Level::Trace => logger.debug(line.text()),
    }
}

#[cfg(test)]
mod tests {
    use ::log::Record;

    use super::*;

    fn line(level: Level, text: &str) -> Line {
        Line::of(
            &Record::builder()
                .args(format_args!("{text}"))
                .level(level)
                .build(),
        )
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
        let syslog = Syslog::connect(&path, Facility::LOG_DAEMON).unwrap();
        syslog.write(&line(Level::Warn, "first line\n<0>no second one"));
        let received = receive(&socket);
        // Facility daemon is 3, severity warning 4: 3 * 8 + 4 (RFC 3164, section 4.1.1).
        assert!(received.starts_with("<28>"), "{received}");
        let pid = std::process::id();
        let end = format!("echod[{pid}]: first line\\x0a<0>no second one");
        assert!(received.ends_with(&end), "{received}");

        drop(socket);
        std::fs::remove_file(&path).unwrap();
        syslog.write(&line(Level::Warn, "lost: nobody is there"));
        let socket = UnixDatagram::bind(&path).unwrap();
        syslog.write(&line(Level::Error, "back again"));
        let received = receive(&socket);
        assert!(
            received.starts_with("<27>") && received.ends_with("back again"),
            "{received}"
        );
    }

    #[test]
    fn a_system_log_that_does_not_read_blocks_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let _socket = UnixDatagram::bind(&path).unwrap();
        let syslog = Syslog::connect(&path, Facility::LOG_DAEMON).unwrap();
        for _ in 0..10_000 {
            syslog.write(&line(Level::Info, "nobody reads this"));
        }
    }
}
