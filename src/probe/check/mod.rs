//! What a service does at the edges.
//!
//! [`CHECKS`] is the list; [`streams`] and [`datagrams`] do what it says, by [`connection`] and
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

/// One thing that a service may do right or wrong.
struct Check {
    /// Fixed: programs know it.
    name: &'static str,
    /// Why it matters, in a few words.
    hint: &'static str,
    of: Transport,
    run: fn(&Service<'_>) -> Finding,
}

const fn stream(name: &'static str, hint: &'static str, run: fn(&Service<'_>) -> Finding) -> Check {
    Check {
        name,
        hint,
        of: Transport::Stream,
        run,
    }
}

const fn datagram(
    name: &'static str,
    hint: &'static str,
    run: fn(&Service<'_>) -> Finding,
) -> Check {
    Check {
        name,
        hint,
        of: Transport::Datagram,
        run,
    }
}

/// All of them, cheap ones first. The first of each transport finds out whether anything comes back.
const CHECKS: &[Check] = &[
    stream("echo", "nothing else is worth a check", streams::echo),
    stream("binary", "files hold every byte value", streams::binary),
    stream("half-close", "clients read to the end", streams::half_close),
    stream(
        "empty-half-close",
        "health checks connect and leave",
        streams::empty_half_close,
    ),
    stream(
        "split-message",
        "networks deliver in any pieces",
        streams::split_message,
    ),
    stream(
        "pipelining",
        "clients send without waiting",
        streams::pipelining,
    ),
    stream(
        "megabyte",
        "unsent bytes are lost at the half-close",
        streams::megabyte,
    ),
    stream(
        "several-clients",
        "one client keeps out all others",
        streams::several_clients,
    ),
    stream(
        "slow-reader",
        "one client can fill its memory, or loses data",
        streams::slow_reader,
    ),
    stream(
        "beside-a-slow-reader",
        "one stalled client stops all others",
        streams::beside_a_slow_reader,
    ),
    stream("reset", "clients crash", streams::reset),
    datagram("echo", "nothing else is worth a check", datagrams::echo),
    datagram("binary", "files hold every byte value", datagrams::binary),
    datagram(
        "empty-datagram",
        "an empty datagram is a datagram",
        datagrams::empty_datagram,
    ),
    datagram(
        "sizes",
        "it looks like a fault of the network",
        datagrams::sizes,
    ),
    datagram(
        "burst",
        "it looks like a loss in the network",
        datagrams::burst,
    ),
    datagram(
        "order",
        "it looks like reordering in the network",
        datagrams::order,
    ),
    datagram(
        "reply-address",
        "firewalls and NATs drop such answers",
        datagrams::reply_address,
    ),
    datagram(
        "several-clients",
        "one client keeps out all others",
        datagrams::several_clients,
    ),
    datagram("gone-client", "clients vanish", datagrams::gone_client),
    datagram(
        "loop-guard",
        "two such services can be made to answer each other for ever",
        datagrams::loop_guard,
    ),
];

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
    let of = args.url.transport();
    let checks: Vec<&Check> = CHECKS.iter().filter(|check| check.of == of).collect();
    let width = checks.iter().map(|check| check.name.len()).max();
    let line = figures::spinner(console);
    let began = Instant::now();
    let mut record = Record::default();
    // Why the rest is not run: the service does not echo, or not any more.
    let mut stopped = None;
    for (index, check) in checks.iter().enumerate() {
        if stopped.is_some() {
            let row = record.skip(check.name, check.hint);
            console.say(&row.lines(width.unwrap_or(0), console.paint))?;
            continue;
        }
        let (number, all) = (index + 1, checks.len());
        line.set_message(format!("{} ({number} of {all})", check.name));
        line.tick();
        let finding = match (check.run)(&service) {
            Err(Halt::Unreached(trouble)) if index == 0 => return Err(trouble.into()),
            Err(Halt::Interrupted) => {
                record.interrupt();
                break;
            }
            finding => finding,
        };
        let has_failed = matches!(finding, Err(Halt::Failed { .. } | Halt::Unreached(_)));
        let row = record.add(check.name, check.hint, finding);
        let lines = row.lines(width.unwrap_or(0), console.paint);
        line.suspend(|| console.say(&lines))?;
        match has_failed.then(|| service.is_alive()) {
            None => {}
            Some(_) if index == 0 => stopped = Some(String::new()),
            Some(Ok(())) => {}
            Some(Err(_)) => stopped = Some(format!("it stopped answering at {}", check.name)),
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

    fn of(transport: Transport) -> impl Iterator<Item = &'static Check> {
        CHECKS.iter().filter(move |check| check.of == transport)
    }

    #[test]
    fn every_check_has_a_name_of_its_own_and_a_short_hint() {
        for transport in [Transport::Stream, Transport::Datagram] {
            let names: BTreeSet<&str> = of(transport).map(|check| check.name).collect();
            assert_eq!(names.len(), of(transport).count());
            assert_eq!(of(transport).next().map(|check| check.name), Some("echo"));
        }
        for Check { name, hint, .. } in CHECKS {
            assert!((10..60).contains(&hint.len()), "{name}: {hint}");
        }
    }

    #[test]
    fn every_check_is_in_the_documentation() {
        for transport in [Transport::Stream, Transport::Datagram] {
            for Check { name, .. } in of(transport) {
                let has_row = PAGE
                    .lines()
                    .any(|line| line.starts_with(&format!("| `{name}` | ")));
                assert!(has_row, "docs/echo-servers.md has no row of `{name}`");
            }
        }
    }
}
