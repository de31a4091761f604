//! Where what comes back goes: standard output, as text on a terminal.
//!
//! Never judges what it prints.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;

use super::own_descriptor;
use crate::probe::console::{Console, Stop};
use crate::probe::printable::Printable;

/// See the module.
pub(super) struct Output {
    is_terminal: bool,
    /// None: only the result is printed.
    data: Option<File>,
    printable: Printable,
}

impl Output {
    pub(super) fn open(console: &Console) -> Result<Self, Stop> {
        let data = match console.json {
            true => None,
            false => Some(own_descriptor(io::stdout().as_fd(), "standard output")?),
        };
        Ok(Self {
            is_terminal: console.terminal,
            data,
            printable: Printable::default(),
        })
    }

    /// Prints what has returned.
    pub(super) fn print(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        match self.is_terminal {
            true => {
                let text = self.printable.piece(bytes);
                self.write(text.as_bytes())
            }
            false => self.write(bytes),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let Some(data) = &mut self.data else {
            return Ok(());
        };
        data.write_all(bytes).map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => Stop::Unread,
            _ => Stop::of("standard output", &error),
        })
    }

    /// The end: prints what was begun and is not completed.
    pub(super) fn close(mut self) -> Result<(), Stop> {
        let rest = self.printable.rest();
        self.write(rest.as_bytes())
    }
}
