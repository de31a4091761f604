//! What a service does at the edges.
//!
//! [`streams`] and [`datagrams`] have the list of checks and do what it says, by [`connection`] and
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
use super::console::Stop;
use super::figures;
use super::report::{Verdict, milliseconds};
use super::session::Session;
use super::target::Transport;
use finding::{Finding, Halt};
use record::Record;

/// One thing that a service may do right or wrong: its name, which is fixed, for programs know it;
/// and how it is found out. Why it matters is in [`record::hint`].
struct Check(&'static str, fn(&Service<'_>) -> Finding);

/// The service that is checked, and how.
#[derive(Clone, Copy)]
struct Service<'a> {
    session: &'a Session,
    /// What is to come back.
    expect: Expect,
    /// How long to wait for it.
    timeout: Duration,
}

impl Service<'_> {
    /// Looks whether the command is to end.
    fn look(&self) -> Result<(), Halt> {
        match self.session.is_interrupted() {
            true => Err(Halt::Interrupted),
            false => Ok(()),
        }
    }
}

/// Whether the command line makes sense.
pub(super) fn check(path: &Path) -> Result<(), String> {
    match path.source.is_some_and(|source| source.port != 0) {
        true => Err("--source: several clients can't share a port: write an address alone".into()),
        false => Ok(()),
    }
}

/// Does what the command line says.
pub(super) fn run(session: &Session, args: &CheckArgs) -> Result<Verdict, Stop> {
    let service = Service {
        session,
        expect: args.expect,
        timeout: args.timeout,
    };
    let console = &session.console;
    // The first finds out whether anything comes back.
    let checks = match args.url.transport {
        Transport::Stream => streams::CHECKS,
        Transport::Datagram => datagrams::CHECKS,
    };
    let echo = checks[0].1;
    let width = checks.iter().map(|check| check.0.len()).max().unwrap_or(0);
    let line = figures::spinner(console);
    let began = Instant::now();
    let mut record = Record::default();
    // The check at which the service has turned out not to echo, or not any more.
    let mut stopped = None;
    for (index, Check(name, find_out)) in checks.iter().enumerate() {
        line.set_message(format!("{name} ({} of {})", index + 1, checks.len()));
        line.tick();
        let finding = match stopped {
            None => find_out(&service),
            Some(_) => Err(Halt::NotRun),
        };
        let finding = match finding {
            Err(Halt::Unreached(trouble)) if index == 0 => return Err(trouble.into()),
            Err(Halt::Interrupted) => {
                record.end = Some(session.interrupt.cause());
                record.interrupted = true;
                break;
            }
            Err(Halt::Failed(..)) if index == 0 && is_upper(service, echo) => {
                let seen = "it answers in upper case: write --expect upper";
                Err(Halt::failed(seen, Cause::Mismatch))
            }
            finding => finding,
        };
        let has_failed = matches!(finding, Err(Halt::Failed(..) | Halt::Unreached(_)));
        let row = record.add(name, finding);
        let lines = row.lines(width, console.paint);
        line.suspend(|| console.say(&lines))?;
        // A check may leave it busy for a moment: it is asked twice.
        let answers = || echo(&service).is_ok() || echo(&service).is_ok();
        if has_failed && (index == 0 || !answers()) && !session.is_interrupted() {
            stopped = Some(name);
        }
    }
    line.finish_and_clear();
    record.duration_ms = milliseconds(began.elapsed());
    console.say(&record.summary(console.paint))?;
    if let Some(name) = stopped.filter(|name| **name != checks[0].0) {
        let service = session.route.target();
        console.warn(&format!("{service}: it stopped answering at {name}"));
    }
    console.report(&record)?;
    Ok(record.verdict())
}

/// Whether a service that was to echo does so in upper case.
fn is_upper(service: Service<'_>, echo: fn(&Service<'_>) -> Finding) -> bool {
    let upper = Service {
        expect: Expect::Upper,
        ..service
    };
    service.expect == Expect::Echo && echo(&upper).is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PAGE: &str = include_str!("../../../docs/echo-servers.md");

    #[test]
    fn every_check_has_a_name_of_its_own_a_short_hint_and_a_row_in_the_documentation() {
        for all in [streams::CHECKS, datagrams::CHECKS] {
            let names: BTreeSet<&str> = all.iter().map(|check| check.0).collect();
            assert_eq!((names.len(), all[0].0), (all.len(), "echo"));
            for Check(name, _) in all {
                let hint = record::hint(name);
                assert!((10..60).contains(&hint.len()), "{name}: {hint}");
                let head = format!("| `{name}` | ");
                let has_row = PAGE.lines().any(|line| line.starts_with(&head));
                assert!(has_row, "docs/echo-servers.md has no row of `{name}`");
            }
        }
    }
}
