//! Where what comes back goes, and how far it is: standard output and a progress bar.
//!
//! Never judges what it prints.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde::Serialize;

use super::own_descriptor;
use crate::probe::console::{Console, Stop};
use crate::probe::figures;
use crate::probe::printable::Printable;

/// The progress of work that takes longer is shown.
const SHORT_WORK: Duration = Duration::from_secs(1);

/// Standard output for data, standard error for progress.
pub(super) struct Output {
    pub(super) console: Console,
    /// Standard output without its line buffer; none where JSON is asked for.
    data: Option<File>,
    printable: Printable,
    progress: Progress,
}

enum Progress {
    /// Standard error is no terminal.
    Unseen,
    /// Not shown yet: the work may be short.
    Hidden(Instant),
    Shown(ProgressBar),
}

impl Output {
    pub(super) fn open(console: &Console) -> Result<Self, Stop> {
        let data = match console.json {
            true => None,
            false => Some(own_descriptor(io::stdout().as_fd(), "standard output")?),
        };
        // Between what comes back a bar would be in the way.
        let is_seen = console.progress && !(console.terminal && data.is_some());
        let progress = match is_seen {
            true => Progress::Hidden(Instant::now()),
            false => Progress::Unseen,
        };
        Ok(Self {
            console: *console,
            data,
            printable: Printable::default(),
            progress,
        })
    }

    /// Prints what has returned.
    pub(super) fn print(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        match self.console.terminal {
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

    /// This many bytes have returned in all.
    pub(super) fn show_progress(&mut self, bytes: u64) {
        if let Progress::Hidden(began) = &self.progress
            && began.elapsed() >= SHORT_WORK
        {
            let bar = bar(&self.console, input_len());
            bar.set_position(bytes);
            // The rate of what came before it was drawn is unknown to it.
            bar.reset_eta();
            self.progress = Progress::Shown(bar);
        }
        if let Progress::Shown(bar) = &self.progress {
            bar.set_position(bytes);
        }
    }

    /// Reports a fault, above the bar.
    pub(super) fn warn(&self, text: &str) {
        match &self.progress {
            Progress::Shown(bar) => bar.suspend(|| self.console.warn(text)),
            _ => self.console.warn(text),
        }
    }

    /// The end: removes the bar, and prints the result for programs.
    pub(super) fn close(mut self, report: &impl Serialize) -> Result<(), Stop> {
        self.progress = Progress::Unseen;
        let rest = self.printable.rest();
        self.write(rest.as_bytes())?;
        self.console.report(report)
    }
}

/// The length of the input, where that is known.
fn input_len() -> Option<u64> {
    let input = own_descriptor(io::stdin(), "standard input").ok()?;
    let metadata = input.metadata().ok().filter(Metadata::is_file)?;
    Some(metadata.len())
}

fn bar(console: &Console, total: Option<u64>) -> ProgressBar {
    let template = match total {
        Some(_) => "{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta}",
        None => "{spinner} {bytes}, {bytes_per_sec}",
    };
    figures::bar(console, total.unwrap_or(0), template)
}
