//! The command line, read by the crate `clap`. Help, versions and mistakes are printed as all else;
//! values that several programs take are read here.

#![forbid(unsafe_code)]

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::cli::exit::{self, Exit, print_or_end};
use crate::cli::terminal::{Color, complain};

/// The command line of a program.
///
/// # Errors
/// The exit status of [`report`].
pub(crate) fn parse<C: Parser>() -> Result<C, ExitCode> {
    C::try_parse().map_err(|error| report(&error, C::command().get_name()))
}

/// Prints the help that the command line of the program of this name asks for, or what is wrong with
/// it. Returns the exit status.
#[must_use]
pub(crate) fn report(error: &clap::Error, name: &str) -> ExitCode {
    let text = |is_terminal| {
        let text = error.render();
        if Color::Auto.paint(is_terminal).colored {
            text.ansi().to_string()
        } else {
            text.to_string()
        }
    };
    if error.use_stderr() {
        complain(&text(io::stderr().is_terminal()));
        return Exit::Usage.into();
    }
    let printed = print_or_end(text(io::stdout().is_terminal()).as_bytes());
    exit::end(name, printed)
}

/// `250ms`, `30s`, `1h 30m`.
///
/// # Errors
/// What to write instead.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    if !text.is_empty() && text.chars().all(|digit| digit.is_ascii_digit()) {
        return Err(format!(
            "a number without a unit: write e.g. {text}s or {text}m"
        ));
    }
    let parsed = humantime::parse_duration(text);
    parsed.map_err(|_| "not a time: write e.g. 250ms, 30s or 10m".into())
}
