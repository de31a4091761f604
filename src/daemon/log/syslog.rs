//! The system log (`syslog(3)`, RFC 3164), by the crate of that name.
//!
//! Waits while its queue is full.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use ::log::Level;
use ::syslog::{Error, Facility, Formatter3164, Logger, LoggerBackend};

use crate::cli::text::cause;

use super::line::Line;

/// The system log's socket (`syslog(3)`).
pub(super) const SOCKET: &str = "/dev/log";

/// A connection to the system log.
pub(super) struct Syslog {
    path: PathBuf,
    formatter: Formatter3164,
    logger: Logger<LoggerBackend, Formatter3164>,
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
                "log: {}: {}: is a system log running? (target = \"stderr\" needs none)",
                path.display(),
                cause(&error)
            )
        })?;
        Ok(Self {
            path: path.into(),
            formatter,
            logger,
        })
    }

    /// # Errors
    /// When there is no system log.
    pub(super) fn write(&mut self, line: &Line) -> io::Result<()> {
        if send(&mut self.logger, line).is_err() {
            // A system log that was restarted has another socket.
            self.logger = open(&self.path, &self.formatter)?;
            send(&mut self.logger, line).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

fn open(
    path: &Path,
    formatter: &Formatter3164,
) -> io::Result<Logger<LoggerBackend, Formatter3164>> {
    let socket = UnixDatagram::unbound()?;
    socket.connect(path)?;
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
        let mut syslog = Syslog::connect(&path, Facility::LOG_DAEMON).unwrap();
        syslog
            .write(&line(Level::Warn, "first line\n<0>no second one"))
            .unwrap();
        let received = receive(&socket);
        // Facility daemon is 3, severity warning 4: 3 * 8 + 4 (RFC 3164, section 4.1.1).
        assert!(received.starts_with("<28>"), "{received}");
        let pid = std::process::id();
        let end = format!("echod[{pid}]: first line\\x0a<0>no second one");
        assert!(received.ends_with(&end), "{received}");

        drop(socket);
        std::fs::remove_file(&path).unwrap();
        let lost = syslog.write(&line(Level::Warn, "lost: there is no system log"));
        assert!(lost.is_err());
        let socket = UnixDatagram::bind(&path).unwrap();
        syslog.write(&line(Level::Error, "back again")).unwrap();
        let received = receive(&socket);
        assert!(
            received.starts_with("<27>") && received.ends_with("back again"),
            "{received}"
        );
    }
}
