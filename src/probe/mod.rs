//! `echoprobe`: a client for any echo service, ours or not, that is exact about what it sees.
//!
//! What decides, over bytes, numbers and times: [`target`] reads a URL, [`cause`] has the words for
//! what went wrong; [`payload`] has the bytes that are sent, [`compare`] what differs of those that
//! come back, [`ledger`] what became of each message, [`event`] the words for that; [`latency`], [`report`] and [`figures`] the
//! numbers. What touches the network: [`route`] resolves and opens, [`link`] sends, waits and
//! receives, until [`interrupt`] ends it; [`transfer`] compares a stream, [`exchange`] accounts for
//! datagrams. Above them is a file or a folder for each command, with a [`session`] and the
//! [`console`], where results go.
//!
//! Never decides anything about a service by its maker; never needs one of ours.

#![forbid(unsafe_code)]

pub(crate) mod args;
pub(crate) mod cause;
mod check;
pub(crate) mod compare;
pub(crate) mod console;
mod event;
mod exchange;
mod figures;
pub(crate) mod interrupt;
pub(crate) mod latency;
mod ledger;
pub(crate) mod link;
mod load;
mod mtu;
pub(crate) mod payload;
mod ping;
mod printable;
pub(crate) mod report;
pub(crate) mod route;
mod send;
mod sent;
mod session;
mod talk;
mod tally;
pub(crate) mod target;
mod transfer;

use std::process::ExitCode;

use crate::cli::exit::{self, Exit, Failure};
use args::{Cli, Command};
use cause::Cause;
use console::{Console, Stop};
use interrupt::Interrupt;
use report::Verdict;
use route::Route;
use session::Session;

/// The entry point: reads the command line, carries it out, and ends with its exit status.
pub(crate) fn main() -> ExitCode {
    let cli: Cli = match args::parse() {
        Ok(cli) => cli,
        Err(status) => return status,
    };
    let console = Console::new(&cli.options);
    let interrupt = match Interrupt::new(cli.options.deadline) {
        Ok(interrupt) => interrupt,
        Err(error) => {
            return exit::end("echoprobe", Err(Failure::new(format!("signals: {error}"))));
        }
    };
    let verdict = match run(&cli, console, interrupt.clone()) {
        Err(Stop::Unreached(mut trouble)) if !interrupt.is_unread() => {
            if trouble.cause == Cause::Interrupted {
                trouble.cause = interrupt.cause();
            }
            console.unreached(&trouble)
        }
        other => other,
    };
    match verdict {
        Ok(verdict) => ExitCode::from(verdict as u8),
        // A closed output is the end, as with SIGPIPE; there is nothing left to say to its reader.
        Err(Stop::Unread | Stop::Unreached(_)) => ExitCode::from(Verdict::Flawed as u8),
        Err(Stop::Failed(failure)) => exit::end("echoprobe", Err(failure)),
    }
}

fn run(cli: &Cli, console: Console, interrupt: Interrupt) -> Result<Verdict, Stop> {
    let target = cli.target();
    let sensible = route::check(target, &cli.path).and_then(|()| match &cli.command {
        None if console.json => {
            Err("--json: a conversation has no result: write a command, such as ping".into())
        }
        None | Some(Command::Send(_)) => Ok(()),
        Some(Command::Ping(args)) => ping::check(args, &cli.path),
        Some(Command::Load(args)) => load::check(args, &cli.path),
        Some(Command::Check(_)) => check::check(&cli.path),
        Some(Command::Mtu(args)) => mtu::check(args),
    });
    // A command line that makes no sense is refused before anything is sent.
    sensible.map_err(|message: String| Failure::with(Exit::Usage, message))?;
    let session = Session {
        route: Route::resolve(target, &cli.path, &interrupt)?,
        console,
        interrupt,
    };
    match &cli.command {
        None => talk::run(&session, cli.timeout),
        Some(Command::Send(args)) => send::run(&session, args),
        Some(Command::Ping(args)) => ping::run(&session, args),
        Some(Command::Load(args)) => load::run(&session, args),
        Some(Command::Check(args)) => check::run(&session, args),
        Some(Command::Mtu(args)) => mtu::run(&session, args),
    }
}
