//! How the programs end: one table of exit statuses, and a failure as `name: where: what` on standard
//! error.
//!
//! Knows what a status means; never what a program does.

#![forbid(unsafe_code)]

use std::io;
use std::process::ExitCode;

use crate::cli::table::folded;
use crate::cli::terminal::{self, complain};
use crate::cli::text::cause;

/// The exit statuses of the three programs. Those above 63 are of `sysexits.h(3)`, so that the
/// service manager has a name for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// All was done.
    Done = 0,
    /// Something failed, or was refused. Of `echoprobe`: some messages are lost, late or wrong.
    Failed = 1,
    /// The command line is not understood.
    Usage = 2,
    /// `echoprobe` reached no service.
    Unreached = 3,
    /// The daemon is not running (`EX_UNAVAILABLE`).
    NotRunning = 69,
    /// The daemon did not answer in time (`EX_TEMPFAIL`).
    TimedOut = 75,
    /// Not permitted (`EX_NOPERM`).
    NotPermitted = 77,
    /// The configuration is rejected (`EX_CONFIG`).
    Configuration = 78,
}

/// Those of `echod`.
pub const ECHOD: &[Exit] = &[Exit::Done, Exit::Failed, Exit::Usage, Exit::Configuration];

/// Those of `echoctl`.
pub const ECHOCTL: &[Exit] = &[
    Exit::Done,
    Exit::Failed,
    Exit::Usage,
    Exit::NotRunning,
    Exit::TimedOut,
    Exit::NotPermitted,
    Exit::Configuration,
];

/// Those of `echoprobe`.
pub const ECHOPROBE: &[Exit] = &[Exit::Done, Exit::Failed, Exit::Usage, Exit::Unreached];

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a program does not do, or does no longer do, what was asked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit status.
    pub exit: Exit,
    /// All that is wrong, one message for each line: where, what, and what to do. May be empty.
    pub messages: Vec<String>,
}

impl Failure {
    /// An ordinary failure with one message.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self::with(Exit::Failed, message)
    }

    /// What failed, and why.
    #[must_use]
    pub fn of(what: &str, error: &io::Error) -> Self {
        Self::new(format!("{what}: {}", cause(error)))
    }

    /// A failure with this status and one message.
    #[must_use]
    pub fn with(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            messages: vec![message.into()],
        }
    }

    /// An end without a message.
    #[must_use]
    pub fn quiet(exit: Exit) -> Self {
        Self {
            exit,
            messages: Vec::new(),
        }
    }

    /// As the program of this name prints it, a line for each message.
    #[must_use]
    pub fn text(&self, name: &str) -> String {
        let lines = self.messages.iter();
        lines
            .map(|message| format!("{name}: {message}\n"))
            .collect()
    }

    /// Prints it on standard error, in lines that fit a terminal.
    pub fn complain(&self, name: &str) {
        let text = self.text(name);
        complain(&match terminal::width_of(&io::stderr()) {
            Some(width) => text
                .lines()
                .map(|line| folded(line, width) + "\n")
                .collect(),
            None => text,
        });
    }

    /// A configuration that is rejected for these reasons.
    #[must_use]
    pub fn configuration(messages: Vec<String>) -> Self {
        Self {
            exit: Exit::Configuration,
            messages,
        }
    }
}

/// Prints data at once, or ends the program: quietly where there is no reader any more.
///
/// # Errors
/// How the program is to end.
pub fn print_or_end(data: &[u8]) -> Result<(), Failure> {
    match terminal::print(data) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::quiet(Exit::Done)),
        Err(error) => Err(Failure::of("standard output", &error)),
    }
}

/// Reports what went wrong, if anything, and returns the exit status of the program of this name.
#[must_use]
pub fn end(name: &str, result: Result<(), Failure>) -> ExitCode {
    let Err(failure) = result else {
        return Exit::Done.into();
    };
    failure.complain(name);
    failure.exit.into()
}
