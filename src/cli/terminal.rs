//! The standard streams: colors or none, and output that may have no reader any more.
//!
//! Knows what a stream is connected to; never what is printed. Everything that the programs print
//! passes through here, so that a closed or full output is an error and never a panic.

#![forbid(unsafe_code)]

use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;

use clap::ValueEnum;
use terminal_size::{Width, terminal_size_of};

use crate::cli::text::Paint;

/// When to use colors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
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
    pub(crate) fn paint(self, terminal: bool) -> Paint {
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

/// Prints data at once, and returns whether there is still a reader: one that closes the pipe has
/// seen enough.
///
/// # Errors
/// When it can't be written for another reason, such as a full disk.
pub(crate) fn print(data: &[u8]) -> io::Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(data).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// The columns of the terminal that a stream is; none where it is no terminal.
pub(crate) fn width_of(stream: &impl AsFd) -> Option<usize> {
    let (Width(width), _) = terminal_size_of(stream)?;
    Some(width.into())
}

/// Prints diagnostics, which do not mix with data. Where standard error takes none they are lost.
pub(crate) fn complain(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}
