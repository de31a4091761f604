//! Standard input through a service and back, compared while it flows.
//!
//! Knows what is to be done and how it went; how a stream is sent is in [`stream`], how datagrams
//! are in [`datagrams`]. Never holds more than what is on the way.

mod comparison;
mod datagrams;
mod ledger;
mod outcome;
mod output;
mod stream;

use std::time::Instant;

use super::Console;
use super::args::{Path, SendArgs};
use super::interrupt::Interrupt;
use super::report::Verdict;
use super::route::Route;
use crate::cli::exit::Failure;
use crate::cli::text::escape;
use ledger::Ledger;
use output::Output;

/// Does what the command line says.
///
/// # Errors
/// When the command line makes no sense for this service, or results can't be printed.
pub(super) fn run(
    args: &SendArgs,
    path: &Path,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Verdict, Failure> {
    let route = match Route::resolve(&args.url, path) {
        Ok(route) => route,
        Err(trouble) => return console.unreached(&trouble),
    };
    match args.url.is_stream() {
        true => send_stream(&route, args, console, interrupt),
        false => send_datagrams(&route, args, console, interrupt),
    }
}

fn send_stream(
    route: &Route,
    args: &SendArgs,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Verdict, Failure> {
    let connection = match route.connect(args.timeout.unwrap_or(stream::TIMEOUT)) {
        Ok(connection) => connection,
        Err(trouble) => return console.unreached(&trouble),
    };
    let mut output = Output::open(console)?;
    let outcome = stream::send(connection.socket, args, &mut output, interrupt);
    output.close()?;
    let outcome = outcome?;
    for (_, words) in outcome.complaints() {
        console.warn(&format!("{}: {words}", args.url));
    }
    console.report(&outcome.report())?;
    Ok(outcome.verdict())
}

fn send_datagrams(
    route: &Route,
    args: &SendArgs,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Verdict, Failure> {
    let flow = match route.open() {
        Ok(flow) => flow,
        Err(trouble) => return console.unreached(&trouble),
    };
    let mut output = Output::open(console)?;
    let began = Instant::now();
    let mut sender = datagrams::Sender {
        route,
        flow: &flow,
        args,
        output: &mut output,
        interrupt,
        ledger: Ledger::new(args.expect),
    };
    let end = sender.send_all();
    let ledger = sender.ledger;
    output.close()?;
    let end = end?;
    console.report(&ledger.report(began.elapsed()))?;
    match end {
        datagrams::End::Done => Ok(ledger.verdict()),
        datagrams::End::Unreached(trouble) => {
            console.warn(&escape(&trouble.to_string()));
            Ok(Verdict::Unreached)
        }
    }
}
