//! `echoprobe`: a client for any echo service, ours or not, that tells the truth about it.
//!
//! What decides, over bytes, numbers and made-up time: [`target`] reads a URL, [`cause`] has the words
//! for what went wrong, [`latency`] and [`report`] the numbers; [`payload`] and [`mark`] are what
//! messages hold, made of [`noise`], [`ledger`] is what becomes of each. What speaks to the network: [`route`] resolves,
//! connects and opens, [`news`] and [`prober`] take what comes, and then there is a file or a folder
//! for each command, in which the same two halves are apart. [`Console`] is where results go.
//!
//! Never decides anything about a service by who made it; never needs one of ours.

#![forbid(unsafe_code)]

pub mod args;
pub mod cause;
mod check;
pub mod interrupt;
pub mod latency;
mod ledger;
mod load;
mod mark;
mod mtu;
mod news;
mod noise;
mod pauses;
mod payload;
mod ping;
mod ports;
mod printable;
mod prober;
mod progress;
mod proxy;
pub mod report;
pub mod route;
mod send;
mod talk;
pub mod target;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use serde::Serialize;

use crate::cli::exit::Failure;
use crate::cli::terminal::{self, complain};
use crate::cli::text::{self, Paint};

use args::{Cli, Command};
use cause::Cause;
use interrupt::Interrupt;
use report::{Report, Verdict};

/// The entry point: reads the command line, does what it says, tells how it went.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let console = Console::new(&cli);
    let verdict = Interrupt::new()
        .map_err(|error| Failure::new(format!("signals: {error}")))
        .and_then(|interrupt| run(&cli, &console, &interrupt));
    match verdict {
        Ok(verdict) => ExitCode::from(verdict as u8),
        Err(failure) => crate::cli::exit::end("echoprobe", Err(failure)),
    }
}

fn run(cli: &Cli, console: &Console, interrupt: &Interrupt) -> Result<Verdict, Failure> {
    let path = &cli.path;
    let target = cli.target();
    route::check(target, path)?;
    match &cli.command {
        None => talk::run(target, cli.timeout, path, console, interrupt),
        Some(Command::Send(args)) => send::run(args, path, console, interrupt),
        Some(Command::Ping(args)) => ping::run(args, path, console, interrupt),
        Some(Command::Load(args)) => load::run(args, path, console, interrupt),
        Some(Command::Check(args)) => check::run(args, path, console, interrupt),
        Some(Command::Mtu(args)) => mtu::run(args, path, console, interrupt),
        Some(Command::Ports(args)) => ports::run(args, path, console, interrupt),
    }
}

/// Where results and diagnostics go.
#[derive(Clone, Copy, Debug)]
pub struct Console {
    /// One JSON object instead of text.
    pub json: bool,
    /// Of what is printed.
    pub paint: Paint,
    /// Of what is said on standard error.
    pub error_paint: Paint,
    /// Whether a person looks at standard output.
    pub terminal: bool,
    /// Whether a person looks at standard error, where progress is shown.
    pub progress: bool,
}

impl Console {
    fn new(cli: &Cli) -> Self {
        let terminal = io::stdout().is_terminal();
        let progress = io::stderr().is_terminal();
        Self {
            json: cli.options.json,
            paint: cli.options.color.paint(terminal),
            error_paint: cli.options.color.paint(progress),
            terminal,
            progress,
        }
    }

    /// How wide what is drawn may be.
    #[must_use]
    pub fn width(&self) -> usize {
        const USUAL: usize = 80;
        const WIDEST: usize = 120;
        let size = terminal_size::terminal_size().filter(|_| self.terminal);
        size.map_or(USUAL, |(width, _)| usize::from(width.0).min(WIDEST))
    }

    /// Prints text for people; nothing where JSON is wanted.
    ///
    /// # Errors
    /// When standard output does not take it.
    pub fn say(&self, text: &str) -> Result<(), Failure> {
        if self.json {
            return Ok(());
        }
        self.print(text.as_bytes())
    }

    /// Prints data. A reader who has seen enough is no failure.
    ///
    /// # Errors
    /// When standard output does not take it.
    pub fn print(&self, data: &[u8]) -> Result<(), Failure> {
        match terminal::print(data) {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::new(format!("standard output: {error}"))),
        }
    }

    /// Prints the result for programs, where that is wanted.
    ///
    /// # Errors
    /// When standard output does not take it.
    pub fn report(&self, report: &impl Serialize) -> Result<(), Failure> {
        if !self.json {
            return Ok(());
        }
        let json = if self.terminal {
            serde_json::to_string_pretty(report)
        } else {
            serde_json::to_string(report)
        };
        let json = json.map_err(|error| Failure::new(format!("JSON: {error}")))?;
        self.print((text::escape_json(&json) + "\n").as_bytes())
    }

    /// Says what is wrong, or what spoils a result, on standard error.
    pub fn warn(&self, text: &str) {
        let line = format!("echoprobe: {text}");
        complain(&(self.error_paint.yellow(&line) + "\n"));
    }

    /// Says why nothing was reached, and ends so. The report has the cause, for programs.
    ///
    /// # Errors
    /// When standard output does not take the report.
    pub fn unreached(&self, trouble: &Trouble) -> Result<Verdict, Failure> {
        let mut report = Report::default();
        report.errors.count(trouble.cause.clone());
        self.report(&report)?;
        let line = format!("echoprobe: {}", text::escape(&trouble.to_string()));
        complain(&(self.error_paint.red(&line) + "\n"));
        Ok(Verdict::Unreached)
    }
}

/// What went wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// The cause, for programs.
    pub cause: Cause,
    /// Where it was: `tcp://127.0.0.1:7`.
    pub place: String,
    /// What may help, where there is something to say.
    pub hint: String,
}

impl Trouble {
    /// At this place, for this reason.
    #[must_use]
    pub fn new(place: impl Into<String>, cause: Cause) -> Self {
        Self {
            cause,
            place: place.into(),
            hint: String::new(),
        }
    }

    /// With what may help.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.place, self.cause)?;
        if !self.hint.is_empty() {
            write!(f, "; {}", self.hint)?;
        }
        Ok(())
    }
}
