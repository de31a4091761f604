//! Where the lines of the log go: which output is chosen, and how a line is written to standard error.
//!
//! May wait for an output: only the thread that writes calls it.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use ::syslog::Facility;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cli::text::cause;
use crate::config::{self, LogTarget};

use super::journal::{self, Journal};
use super::line::{Line, TEXT_BYTES_MAX};
use super::syslog::{self, Syslog};
use super::writer::Write;

/// For how long the end of the process waits for standard error.
const LAST_WORDS_TIME_MAX: Duration = Duration::from_secs(1);

/// Where lines go.
pub(super) enum Output {
    Journal(Journal),
    Syslog(Syslog),
    Stderr {
        /// `<N>`, for the journal, instead of the name of the program.
        prefixes: bool,
        /// A descriptor of our own, written without the lock of [`io::stderr`]: the last words of the
        /// process must not wait for a line that is stuck.
        file: File,
        /// The last line. It has room for any: where there is no memory left, that is logged.
        text: String,
    },
}

impl Output {
    /// What the configuration asks for, and a remark about it for a curious operator.
    ///
    /// # Errors
    /// A message for the operator: `target = "syslog"` where there is none, or no descriptor is left.
    pub(super) fn open(settings: &config::Log) -> Result<(Self, Option<String>), String> {
        let facility: Facility = settings.facility.parse().unwrap_or(Facility::LOG_DAEMON);
        Ok(match choose(settings.target, &Surroundings::look()) {
            Choice::Journal => match Journal::connect(Path::new(journal::SOCKET), code(facility)) {
                Ok(journal) => (Self::Journal(journal), None),
                Err(error) => {
                    let remark = format!(
                        "log: {}: {}: lines reach the journal without fields",
                        journal::SOCKET,
                        cause(&error)
                    );
                    (Self::stderr(true)?, Some(remark))
                }
            },
            Choice::Syslog => {
                let syslog = Syslog::connect(Path::new(syslog::SOCKET), facility)?;
                (Self::Syslog(syslog), None)
            }
            Choice::Stderr { prefixes } => (Self::stderr(prefixes)?, None),
        })
    }

    fn stderr(prefixes: bool) -> Result<Self, String> {
        let own = io::stderr().as_fd().try_clone_to_owned();
        let file = own.map_err(|error| format!("log: standard error: {}", cause(&error)))?;
        Ok(Self::Stderr {
            prefixes,
            file: file.into(),
            text: String::with_capacity(2 * TEXT_BYTES_MAX),
        })
    }
}

impl Write for Output {
    fn write(&mut self, line: &Line) -> io::Result<()> {
        match self {
            Self::Journal(journal) => journal.write(line),
            Self::Syslog(syslog) => syslog.write(line),
            Self::Stderr {
                prefixes,
                file,
                text,
            } => {
                text.clear();
                // A string takes everything.
                let _ = match prefixes {
                    true => writeln!(text, "<{}>{}", line.priority(), line.text()),
                    false => writeln!(text, "echod: {}", line.text()),
                };
                print(file, text)
            }
        }
    }
}

/// Writes a line in one piece where the output takes that, so that it stays apart from what other
/// processes write there.
fn print(output: &mut (impl io::Write + AsFd), line: &str) -> io::Result<()> {
    let mut rest = line.as_bytes();
    while !rest.is_empty() {
        match output.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(len) => rest = &rest[len..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another process that has the same pipe or terminal made it non-blocking, for all.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll(
                    &mut [PollFd::new(output.as_fd(), PollFlags::POLLOUT)],
                    PollTimeout::NONE,
                )?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Writes the last words of the process to standard error, or as much of them as it takes in a bounded
/// time.
pub(in crate::daemon) fn write_last_words(text: &str) {
    write_in_time(text, io::stderr, LAST_WORDS_TIME_MAX);
}

/// Writes a text to an output that may take nothing. It is written by a thread, which is left alone
/// when the time is over: another process may fill a pipe that was ready a moment ago.
fn write_in_time<O: io::Write>(
    text: &str,
    output: impl FnOnce() -> O + Copy + Send + 'static,
    time_max: Duration,
) {
    let (written, is_written) = channel();
    let owned = text.to_owned();
    let write = move || {
        let _ = output().write_all(owned.as_bytes());
        let _ = written.send(());
    };
    if thread::Builder::new().spawn(write).is_ok() {
        let _ = is_written.recv_timeout(time_max);
    } else {
        // The text may be the error that no thread can be started.
        let _ = output().write_all(text.as_bytes());
    }
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

/// A person at the terminal gets the lines there, also where syslog is.
fn choose(target: LogTarget, surroundings: &Surroundings) -> Choice {
    match target {
        LogTarget::Syslog => Choice::Syslog,
        LogTarget::Auto if surroundings.journal => Choice::Journal,
        LogTarget::Auto if surroundings.syslog && !surroundings.terminal => Choice::Syslog,
        LogTarget::Auto | LogTarget::Stderr => Choice::Stderr {
            prefixes: surroundings.journal,
        },
    }
}

/// Whether standard error is the journal's: `$JOURNAL_STREAM` names its device and inode
/// (`systemd.exec(5)`), so that a redirection is noticed.
pub(in crate::daemon) fn stderr_is_journal() -> bool {
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

#[cfg(test)]
mod tests {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};

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
        // With `target = "stderr"` the journal still finds the priority of each line.
        assert_eq!(
            choice(LogTarget::Stderr, true, false, true),
            Choice::Stderr { prefixes: true }
        );
    }

    #[test]
    fn a_pipe_that_another_process_made_non_blocking_is_waited_for() {
        use std::io::{Read, Write as _};

        let (mut reader, mut writer) = io::pipe().unwrap();
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        while writer.write(&[b'x'; 1000]).is_ok() {}
        let printing = thread::spawn(move || print(&mut writer, "the line\n"));
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert!(text.ends_with("xthe line\n"));
        assert!(printing.join().unwrap().is_ok());
    }

    /// A pipe that is ready is not so for long where other processes write to it: the end of the process
    /// waited in write(2).
    #[test]
    fn last_words_wait_for_no_output_that_gets_stuck_while_they_are_written() {
        struct Stuck;

        impl io::Write for Stuck {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                thread::park();
                Ok(0)
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        write_in_time("the last words", || Stuck, Duration::from_millis(1));
    }

    /// The end of the process waited for a line that was stuck in write(2).
    #[test]
    fn a_line_is_written_without_the_lock_of_standard_error() {
        let lock = io::stderr().lock();
        let (written, result) = channel();
        let writing = thread::spawn(move || {
            let record = log::Record::builder()
                .args(format_args!("a line of a test"))
                .build();
            let mut output = Output::stderr(false).expect("a descriptor");
            let _ = written.send(output.write(&Line::of(&record)));
        });
        let result = result.recv_timeout(Duration::from_secs(20));
        drop(lock);
        writing.join().unwrap();
        assert!(result.is_ok_and(|result| result.is_ok()));
    }

    #[test]
    fn the_facility_of_the_journal_is_that_of_syslog() {
        assert_eq!(code(Facility::LOG_DAEMON), 3);
        assert_eq!(code(Facility::LOG_LOCAL3), 19);
    }
}
