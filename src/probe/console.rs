//! Where results, warnings and progress go: text for people, one JSON object for programs.
//!
//! Knows standard output and standard error; never what they show.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;

use serde::Serialize;

use super::args::Options;
use super::cause::Trouble;
use super::printable::Printable;
use super::report::{self, Report, Verdict};
use crate::cli::exit::Failure;
use crate::cli::terminal::{self, complain};
use crate::cli::text::{self, Paint};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Console {
    /// One JSON object instead of text.
    pub json: bool,
    /// The colors of standard output.
    pub paint: Paint,
    /// The colors of standard error.
    pub error_paint: Paint,
    /// Whether standard output is a terminal.
    pub terminal: bool,
    /// Whether standard error is a terminal, on which progress is shown.
    pub progress: bool,
}

/// What ends a command before its result.
#[derive(Debug)]
pub(crate) enum Stop {
    /// A failure with its message.
    Failed(Failure),
    /// The reader of standard output has closed it.
    Unread,
    /// The service was not reached, or not any more.
    Unreached(Trouble),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Self {
        Self::Unreached(trouble)
    }
}

/// Where nothing more is known, it is a socket that failed.
impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::of("socket", &error)
    }
}

/// Standard input without the buffer in front of it, of which `poll(2)` knows nothing.
///
/// # Errors
/// When there is none.
pub(super) fn input() -> Result<File, Stop> {
    let own = io::stdin().as_fd().try_clone_to_owned();
    own.map(File::from)
        .map_err(|error| Stop::of("standard input", &error))
}

impl Stop {
    /// An error of a system call, which says what it was called for.
    pub(crate) fn of(what: &str, error: &io::Error) -> Self {
        Self::Failed(Failure::new(format!("{what}: {}", text::cause(error))))
    }
}

impl Console {
    /// As the command line asks.
    pub(crate) fn new(options: &Options) -> Self {
        let terminal = io::stdout().is_terminal();
        let progress = io::stderr().is_terminal();
        Self {
            json: options.json,
            paint: options.color.paint(terminal),
            error_paint: options.color.paint(progress),
            terminal,
            progress,
        }
    }

    /// The width of a picture made of characters.
    pub(crate) fn width(&self) -> usize {
        const USUAL: usize = 80;
        const WIDEST: usize = 120;
        let size = terminal_size::terminal_size().filter(|_| self.terminal);
        size.map_or(USUAL, |(width, _)| usize::from(width.0).min(WIDEST))
    }

    /// Prints text for people; nothing where JSON is asked for.
    ///
    /// # Errors
    /// When standard output is closed or cannot be written.
    pub(crate) fn say(&self, text: &str) -> Result<(), Stop> {
        if self.json {
            return Ok(());
        }
        self.print(text.as_bytes())
    }

    /// Prints what has returned: on a terminal as text, else as it is; nothing where JSON is asked
    /// for.
    ///
    /// # Errors
    /// When standard output is closed or cannot be written.
    pub(super) fn print_answer(&self, bytes: &[u8], text: &mut Printable) -> Result<(), Stop> {
        match self.terminal {
            true => self.say(&text.piece(bytes)),
            false if self.json => Ok(()),
            false => self.print(bytes),
        }
    }

    /// Prints data.
    ///
    /// # Errors
    /// When standard output is closed or cannot be written.
    fn print(&self, data: &[u8]) -> Result<(), Stop> {
        match terminal::print(data) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Stop::Unread),
            Err(error) => Err(Stop::of("standard output", &error)),
        }
    }

    /// Prints the result for programs, where that is asked for.
    ///
    /// # Errors
    /// When standard output is closed or cannot be written.
    pub(crate) fn report(&self, report: &impl Serialize) -> Result<(), Stop> {
        if !self.json {
            return Ok(());
        }
        let json = report::object(report);
        let json = json.map_err(|error| Failure::new(format!("JSON: {error}")))?;
        let json = match self.terminal {
            true => format!("{json:#}\n"),
            false => format!("{json}\n"),
        };
        self.print(text::escape_json(&json).as_bytes())
    }

    /// Reports a fault, or what spoils a result, on standard error.
    pub(crate) fn warn(&self, text: &str) {
        self.complain(text, Paint::yellow);
    }

    /// Ends a command that has not reached the service: says why, and reports the cause.
    ///
    /// # Errors
    /// When standard output is closed or cannot be written.
    pub(crate) fn unreached(&self, trouble: &Trouble) -> Result<Verdict, Stop> {
        let mut report = Report::default();
        report.errors.count(trouble.cause.clone());
        self.report(&report)?;
        self.complain(&trouble.to_string(), Paint::red);
        Ok(Verdict::without_result(&trouble.cause))
    }

    fn complain(&self, text: &str, paint: fn(Paint, &str) -> String) {
        let line = format!("echoprobe: {}", text::escape(text));
        complain(&(paint(self.error_paint, &line) + "\n"));
    }
}
