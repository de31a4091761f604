//! A doctor for echo services: what one does at the edges, and why each matters.
//!
//! [`CHECKS`] is the list; [`streams`] and [`datagrams`] do what it says, by [`connection`] and
//! [`flow`], the only ones that know a socket. [`judgement`] says what is to be said of what came
//! back of a [`material`], and [`record`] keeps and shows it.
//!
//! Never holds more than a few buffers, whatever a service does, and never leaves one behind that is
//! worse off than before. If you add a check, also write its row in `docs/echo-servers.md`.

mod connection;
mod datagrams;
mod flow;
mod judgement;
mod material;
mod record;
mod streams;

use std::time::{Duration, Instant};

use super::args::{CheckArgs, Expect, Path};
use super::interrupt::Interrupt;
use super::report::Verdict;
use super::route::{self, Route};
use super::target::Transport;
use super::{Console, progress};
use crate::cli::exit::Failure;
use judgement::{Finding, Stop};
use record::Record;

/// One thing that a service may do right or wrong.
struct Check {
    /// Fixed: programs know it.
    name: &'static str,
    /// Why it matters to who uses the service.
    why: &'static str,
    of: Transport,
    run: fn(&Service<'_>) -> Finding,
}

/// All of them, cheap ones first. The first of each transport finds out whether anybody is there.
const CHECKS: &[Check] = &[
    Check {
        name: "echo",
        why: "It is what an echo service is for.",
        of: Transport::Stream,
        run: streams::echo,
    },
    Check {
        name: "binary",
        why: "If a byte value is changed or swallowed, so is every file and protocol that has it.",
        of: Transport::Stream,
        run: streams::binary,
    },
    Check {
        name: "half-close",
        why: "Clients end what they send and read to the end; one that is missing keeps them \
              waiting for ever, and a reset is an error to them.",
        of: Transport::Stream,
        run: streams::half_close,
    },
    Check {
        name: "empty-half-close",
        why: "Health checks connect and leave; if that is not seen, their connections pile up.",
        of: Transport::Stream,
        run: streams::empty_half_close,
    },
    Check {
        name: "split-message",
        why: "Networks deliver a message in any pieces, and each has to come back.",
        of: Transport::Stream,
        run: streams::split_message,
    },
    Check {
        name: "pipelining",
        why: "Clients that do not wait for each answer must get them all, in order.",
        of: Transport::Stream,
        run: streams::pipelining,
    },
    Check {
        name: "megabyte",
        why: "More than all buffers hold is under way at the half-close: what is not flushed then \
              is lost.",
        of: Transport::Stream,
        run: streams::megabyte,
    },
    Check {
        name: "several-clients",
        why: "Otherwise one client, even one that says nothing, keeps all others out.",
        of: Transport::Stream,
        run: streams::several_clients,
    },
    Check {
        name: "slow-reader",
        why: "A service that reads on for who does not read fills its memory; one that drops what \
              it can't send loses data.",
        of: Transport::Stream,
        run: streams::slow_reader,
    },
    Check {
        name: "beside-a-slow-reader",
        why: "Otherwise one client with a stalled network stops the service for all.",
        of: Transport::Stream,
        run: streams::beside_a_slow_reader,
    },
    Check {
        name: "reset",
        why: "Clients crash and proxies cut connections off; nobody else may suffer from it.",
        of: Transport::Stream,
        run: streams::reset,
    },
    Check {
        name: "echo",
        why: "It is what an echo service is for.",
        of: Transport::Datagram,
        run: datagrams::echo,
    },
    Check {
        name: "binary",
        why: "If a byte value is changed or swallowed, so is every file and protocol that has it.",
        of: Transport::Datagram,
        run: datagrams::binary,
    },
    Check {
        name: "empty-datagram",
        why: "An empty datagram is a datagram, and the cheapest way to ask whether somebody is \
              there.",
        of: Transport::Datagram,
        run: datagrams::empty_datagram,
    },
    Check {
        name: "sizes",
        why: "What comes back shorter, or not at all, looks like a fault of the network.",
        of: Transport::Datagram,
        run: datagrams::sizes,
    },
    Check {
        name: "burst",
        why: "Datagrams often come several at once; one that is lost or merged then looks like a \
              fault of the network.",
        of: Transport::Datagram,
        run: datagrams::burst,
    },
    Check {
        name: "order",
        why: "Who looks for reordering in the network would find that of the service.",
        of: Transport::Datagram,
        run: datagrams::order,
    },
    Check {
        name: "reply-address",
        why: "Firewalls, NATs and connected sockets drop an answer from another address than was \
              asked: to them the service is dead.",
        of: Transport::Datagram,
        run: datagrams::reply_address,
    },
    Check {
        name: "several-clients",
        why: "Otherwise one client keeps all others out, or gets their answers.",
        of: Transport::Datagram,
        run: datagrams::several_clients,
    },
    Check {
        name: "gone-client",
        why: "What the network says of an answer that found nobody must not end the service for \
              others.",
        of: Transport::Datagram,
        run: datagrams::gone_client,
    },
    Check {
        name: "loop-guard",
        why: "One forged packet from the port of another echo service, and the two answer each \
              other for ever (CVE-2024-2169).",
        of: Transport::Datagram,
        run: datagrams::loop_guard,
    },
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
    /// Looks whether the user wants the end.
    fn look(&self) -> Result<(), Stop> {
        match self.interrupt.is_requested() {
            true => Err(Stop::Interrupted),
            false => Ok(()),
        }
    }
}

/// Does what the command line says.
///
/// # Errors
/// When the command line makes no sense for this service, or results can't be printed.
pub(super) fn run(
    args: &CheckArgs,
    path: &Path,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Verdict, Failure> {
    if args.expect == Expect::Any {
        return Err(route::usage(
            "--expect any: then nothing could be wrong: write echo or upper",
        ));
    }
    if path.source.is_some_and(|source| source.port != 0) {
        return Err(route::usage(
            "--source: several clients are needed, which can't have one port: leave it out",
        ));
    }
    let route = match Route::resolve(&args.url, path) {
        Ok(route) => route,
        Err(trouble) => return console.unreached(&trouble),
    };
    let service = Service {
        route,
        expect: args.expect,
        timeout: args.timeout,
        interrupt,
    };
    let of = args.url.transport();
    let checks: Vec<&Check> = CHECKS.iter().filter(|check| check.of == of).collect();
    let width = checks
        .iter()
        .map(|check| check.name.len())
        .max()
        .unwrap_or(0);
    let line = progress::spinner(console);
    let began = Instant::now();
    let mut record = Record::default();
    for (index, check) in checks.iter().enumerate() {
        line.set_message(format!(
            "{} ({} of {})",
            check.name,
            index + 1,
            checks.len()
        ));
        line.tick();
        match (check.run)(&service) {
            Err(Stop::Unreached(trouble)) if index == 0 => {
                line.finish_and_clear();
                return console.unreached(&trouble);
            }
            Err(Stop::Interrupted) => {
                record.interrupt();
                break;
            }
            finding => {
                let row = record.add(check.name, check.why, finding);
                line.suspend(|| console.say(&row.lines(width, console.paint)))?;
            }
        }
    }
    line.finish_and_clear();
    record.end(began.elapsed());
    console.say(&record.summary(console.paint))?;
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
    fn every_check_has_a_name_of_its_own_and_one_sentence_that_says_why() {
        for transport in [Transport::Stream, Transport::Datagram] {
            let names: BTreeSet<&str> = of(transport).map(|check| check.name).collect();
            assert_eq!(names.len(), of(transport).count());
            assert_eq!(of(transport).next().map(|check| check.name), Some("echo"));
        }
        for Check { name, why, .. } in CHECKS {
            let is_sentence = why.ends_with('.') && why.matches(". ").count() == 0;
            assert!(is_sentence, "{name}: {why}");
        }
    }

    #[test]
    fn every_check_and_why_it_matters_is_in_the_documentation() {
        for Check { name, why, .. } in CHECKS {
            let row = PAGE.lines().find(|line| {
                line.starts_with(&format!("| `{name}` | "))
                    && line.ends_with(&format!(" | {why} |"))
            });
            assert!(
                row.is_some(),
                "docs/echo-servers.md: | `{name}` | … | {why} |"
            );
        }
    }
}
