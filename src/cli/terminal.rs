//! The command line and the standard streams: what was typed, colors or none, and output that nothing
//! may read any more.
//!
//! Knows what a stream is connected to; never what is printed. Everything that the programs print
//! passes through here: a closed or full output ends a program with a status, never with a panic.

#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use crate::cli::exit::{self, Exit, Failure};
use crate::cli::text::Paint;

/// When to use colors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Color {
    /// The colors of a stream that is a terminal or not.
    #[must_use]
    pub fn paint(self, terminal: bool) -> Paint {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        Paint {
            colored: match self {
                Self::Auto => terminal && !no_color,
                Self::Always => true,
                Self::Never => false,
            },
        }
    }
}

/// The command line of a program; its exit status where it asks for help only or is not understood.
///
/// # Errors
/// The exit status, once the help or the error was printed.
pub fn parse<C: Parser>() -> Result<C, ExitCode> {
    C::try_parse().map_err(|error| {
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
        let printed = print_all(text(io::stdout().is_terminal()).as_bytes());
        exit::end(C::command().get_name(), printed)
    })
}

/// Prints data at once, and returns whether there is still a reader: one that closes the pipe has
/// seen enough.
///
/// # Errors
/// When it can't be written for another reason, such as a full disk.
pub fn print(data: &[u8]) -> io::Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(data).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// Prints data at once, or ends the program: quietly where there is no reader any more.
///
/// # Errors
/// How the program is to end.
pub fn print_all(data: &[u8]) -> Result<(), Failure> {
    match print(data) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::quiet(Exit::Done)),
        Err(error) => Err(Failure::new(format!("standard output: {error}"))),
    }
}

/// Prints diagnostics, which do not mix with data. Where standard error takes none they are lost.
pub fn complain(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}
