//! Where what comes back goes, and how far it has come: standard output and a progress bar.
//!
//! Never judges what it prints.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use crate::cli::exit::Failure;
use crate::probe::printable::Printable;
use crate::probe::{Console, progress};

/// Work that takes longer is long work: its progress is shown.
const SHORT_WORK: Duration = Duration::from_secs(1);

/// What is left of standard output for data, and of standard error for progress.
pub(super) struct Output {
    console: Console,
    /// Standard output without the buffer for lines that is in front of it; none: nobody wants it.
    data: Option<File>,
    printable: Printable,
    progress: Progress,
}

enum Progress {
    /// Nobody looks.
    Unseen,
    /// It may be done before anybody wonders.
    Hidden(Instant),
    Shown(ProgressBar),
}

impl Output {
    pub(super) fn open(console: &Console) -> Result<Self, Failure> {
        let data = match console.json {
            true => None,
            false => Some(own_descriptor(io::stdout().as_fd(), "standard output")?),
        };
        // Among what comes back a bar would be in the way.
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

    /// Prints what has come back. Says whether anybody still reads: who stops has seen enough.
    pub(super) fn print(&mut self, bytes: &[u8]) -> Result<bool, Failure> {
        let Some(data) = &mut self.data else {
            return Ok(true);
        };
        let printed = match self.console.terminal {
            true => data.write_all(self.printable.piece(bytes).as_bytes()),
            false => data.write_all(bytes),
        };
        match printed {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(Failure::new(format!("standard output: {error}"))),
        }
    }

    /// So much has come back in all.
    pub(super) fn show_progress(&mut self, bytes: u64) {
        if let Progress::Hidden(began) = &self.progress
            && began.elapsed() >= SHORT_WORK
        {
            let bar = bar(&self.console, input_len());
            bar.set_position(bytes);
            // What came before it was drawn has come at a rate that it does not know.
            bar.reset_eta();
            self.progress = Progress::Shown(bar);
        }
        if let Progress::Shown(bar) = &self.progress {
            bar.set_position(bytes);
        }
    }

    /// Says what is wrong, above the bar.
    pub(super) fn warn(&self, text: &str) {
        match &self.progress {
            Progress::Shown(bar) => bar.suspend(|| self.console.warn(text)),
            _ => self.console.warn(text),
        }
    }

    /// There is no more.
    pub(super) fn close(&mut self) -> Result<(), Failure> {
        // A bar goes with it.
        self.progress = Progress::Unseen;
        let rest = self.printable.rest();
        let Some(data) = self.data.as_mut().filter(|_| !rest.is_empty()) else {
            return Ok(());
        };
        let printed = data.write_all(rest.as_bytes());
        printed.map_err(|error| Failure::new(format!("standard output: {error}")))
    }
}

/// A descriptor of our own for a standard stream, without the buffer that is in front of it.
pub(super) fn own_descriptor(fd: impl AsFd, name: &str) -> Result<File, Failure> {
    let own = fd.as_fd().try_clone_to_owned();
    own.map(File::from)
        .map_err(|error| Failure::new(format!("{name}: {error}")))
}

/// How much input there is in all, where that is known.
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
    progress::bar(console, total.unwrap_or(0), template)
}
