//! One way to end: `name: where: what` on standard error, and an exit code.

#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Exit code of a daemon whose configuration is wrong (`EX_CONFIG`, `sysexits.h(3)`).
pub const CONFIGURATION: u8 = 78;

/// Exit code after a bug of ours (`EX_SOFTWARE`).
pub const BUG: u8 = 70;

/// Why a program could not do what it was asked to.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// All that is wrong, a line each: where, what, and what to do.
    pub messages: Vec<String>,
}

impl Failure {
    /// An ordinary failure with one message.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            code: 1,
            messages: vec![message.into()],
        }
    }
}

/// Says what went wrong, if anything, and turns it into the exit code of the program of this name.
#[must_use]
pub fn end(name: &str, result: Result<(), Failure>) -> ExitCode {
    let Err(failure) = result else {
        return ExitCode::SUCCESS;
    };
    for message in failure.messages {
        eprintln!("{name}: {message}");
    }
    ExitCode::from(failure.code)
}
