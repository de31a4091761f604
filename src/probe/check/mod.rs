//! What a service does at the edges.
//!
//! [`checks`] is the list; [`streams`] and [`datagrams`] do what it says, by [`connection`] and
//! [`flow`], the only ones that know a socket. [`finding`] is what a check has found, and [`record`]
//! keeps and shows it. Why each check matters is in `docs/echo-servers.md`.
//!
//! Never holds more than a few buffers, whatever a service does. If you add a check, also write its
//! row in `docs/echo-servers.md`.

mod connection;
mod datagrams;
mod finding;
mod flow;
mod record;
mod streams;

use std::time::{Duration, Instant};

use super::args::{CheckArgs, Path};
use super::cause::Cause;
use super::compare::Expect;
use super::console::{Console, Stop};
use super::figures;
use super::interrupt::Interrupt;
use super::report::Verdict;
use super::route::Route;
use super::target::Transport;
use finding::{Finding, Halt};
use record::Record;

/// One thing that a service may do right or wrong: its name, which is fixed, for programs know it;
/// why it matters, in a few words; and how it is found out.
struct Check(&'static str, &'static str, fn(&Service<'_>) -> Finding);

/// The checks of streams, cheap ones first. The first finds out whether anything comes back.
const STREAM_CHECKS: &[Check] = &[
    Check("echo", "nothing else is worth a check", streams::echo),
    Check("binary", "files hold every byte value", streams::binary),
    Check("half-close", "clients read to the end", streams::half_close),
    Check(
        "empty-half-close",
        "health checks connect and leave",
        streams::empty_half_close,
    ),
    Check(
        "split-message",
        "networks deliver in any pieces",
        streams::split_message,
    ),
    Check(
        "pipelining",
        "clients send without waiting",
        streams::pipelining,
    ),
    Check(
        "megabyte",
        "unsent bytes are lost at the half-close",
        streams::megabyte,
    ),
    Check(
        "several-clients",
        "one client keeps out all others",
        streams::several_clients,
    ),
    Check(
        "slow-reader",
        "one client can fill its memory, or loses data",
        streams::slow_reader,
    ),
    Check(
        "beside-a-slow-reader",
        "one stalled client stops all others",
        streams::beside_a_slow_reader,
    ),
    Check("reset", "clients crash", streams::reset),
];

/// The same of datagrams.
const DATAGRAM_CHECKS: &[Check] = &[
    Check("echo", "nothing else is worth a check", datagrams::echo),
    Check("binary", "files hold every byte value", datagrams::binary),
    Check(
        "empty-datagram",
        "an empty datagram is a datagram",
        datagrams::empty_datagram,
    ),
    Check(
        "sizes",
        "it looks like a fault of the network",
        datagrams::sizes,
    ),
    Check(
        "burst",
        "it looks like a loss in the network",
        datagrams::burst,
    ),
    Check(
        "order",
        "it looks like reordering in the network",
        datagrams::order,
    ),
    Check(
        "reply-address",
        "firewalls and NATs drop such answers",
        datagrams::reply_address,
    ),
    Check(
        "several-clients",
        "one client keeps out all others",
        datagrams::several_clients,
    ),
    Check("gone-client", "clients vanish", datagrams::gone_client),
    Check(
        "loop-guard",
        "two such services can be made to answer each other for ever",
        datagrams::loop_guard,
    ),
];

/// The checks of a transport.
fn checks(of: Transport) -> &'static [Check] {
    match of {
        Transport::Stream => STREAM_CHECKS,
        Transport::Datagram => DATAGRAM_CHECKS,
    }
}

/// The service that is checked, and how.
struct Service<'a> {
    route: Route,
    /// What is to come back.
    expect: Expect,
    /// How long to wait for it.
    timeout: Duration,
    interrupt: &'a Interrupt,
}

impl Service<'_> {
    /// Looks whether the command is to end.
    fn look(&self) -> Result<(), Halt> {
        match self.interrupt.is_requested() {
            true => Err(Halt::Interrupted),
            false => Ok(()),
        }
    }

    /// Whether it still answers. A check may leave it busy for a moment: once more, then.
    fn is_alive(&self) -> Result<(), Halt> {
        let is_alive = match self.route.target().transport() {
            Transport::Stream => streams::is_alive,
            Transport::Datagram => datagrams::is_alive,
        };
        match is_alive(self) {
            Err(Halt::Interrupted) => Err(Halt::Interrupted),
            Err(_) => is_alive(self),
            Ok(()) => Ok(()),
        }
    }
}

/// The one finding about a service that answers in upper case, where that was not expected.
fn answers_in_upper_case() -> Halt {
    let seen = "it answers in upper case: write --expect upper";
    Halt::failed(seen, Cause::Mismatch)
}

/// Whether the command line makes sense.
pub(super) fn check(args: &CheckArgs, path: &Path) -> Result<(), String> {
    match () {
        () if args.expect == Expect::Any => {
            Err("--expect any: then nothing could be wrong: write echo or upper".into())
        }
        () if path.source.is_some_and(|source| source.port != 0) => {
            Err("--source: several clients can't share a port: write an address alone".into())
        }
        () => Ok(()),
    }
}

/// Does what the command line says.
pub(super) fn run(
    route: &Route,
    args: &CheckArgs,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Verdict, Stop> {
    let service = Service {
        route: route.clone(),
        expect: args.expect,
        timeout: args.timeout,
        interrupt,
    };
    let checks = checks(args.url.transport());
    let width = checks.iter().map(|check| check.0.len()).max().unwrap_or(0);
    let line = figures::spinner(console);
    let began = Instant::now();
    let mut record = Record::default();
    // Why the rest is not run: the service does not echo, or not any more.
    let mut stopped = None;
    for (index, Check(name, hint, find_out)) in checks.iter().enumerate() {
        if stopped.is_some() {
            let row = record.skip(name, hint);
            console.say(&row.lines(width, console.paint))?;
            continue;
        }
        let (number, all) = (index + 1, checks.len());
        line.set_message(format!("{name} ({number} of {all})"));
        line.tick();
        let finding = match find_out(&service) {
            Err(Halt::Unreached(trouble)) if index == 0 => return Err(trouble.into()),
            Err(Halt::Interrupted) => {
                record.interrupt();
                break;
            }
            finding => finding,
        };
        let has_failed = matches!(finding, Err(Halt::Failed { .. } | Halt::Unreached(_)));
        let row = record.add(name, hint, finding);
        let lines = row.lines(width, console.paint);
        line.suspend(|| console.say(&lines))?;
        match has_failed.then(|| service.is_alive()) {
            None => {}
            Some(_) if index == 0 => stopped = Some(String::new()),
            Some(Ok(())) => {}
            Some(Err(_)) => stopped = Some(format!("it stopped answering at {name}")),
        }
    }
    line.finish_and_clear();
    record.end(began.elapsed());
    console.say(&record.summary(console.paint))?;
    if let Some(words) = stopped.filter(|words| !words.is_empty()) {
        console.warn(&format!("{}: {words}", route.target()));
    }
    console.report(&record)?;
    Ok(record.verdict())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PAGE: &str = include_str!("../../../docs/echo-servers.md");

    #[test]
    fn every_check_has_a_name_of_its_own_a_short_hint_and_a_row_in_the_documentation() {
        for all in [STREAM_CHECKS, DATAGRAM_CHECKS] {
            let names: BTreeSet<&str> = all.iter().map(|check| check.0).collect();
            assert_eq!((names.len(), all[0].0), (all.len(), "echo"));
            for Check(name, hint, _) in all {
                assert!((10..60).contains(&hint.len()), "{name}: {hint}");
                let head = format!("| `{name}` | ");
                let has_row = PAGE.lines().any(|line| line.starts_with(&head));
                assert!(has_row, "docs/echo-servers.md has no row of `{name}`");
            }
        }
    }
}
