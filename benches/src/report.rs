//! The figures as text: for the terminal, and as the page `docs/performance.md`.
//!
//! A table of the page has a row for each scenario and a column for each server, both by name, so
//! that a script can look a figure up: the row that starts with "| `tcp-50` |", the column headed
//! "`echod-epoll`". "-" is where a server has no part.

use std::fmt::Write;
use std::time::Duration;

use crate::contender::{BASE, Contender};
use crate::measure::{Entry, Outcome, Plan};
use crate::scenario::Metric;
use crate::statistics::Figure;

/// Where there is no figure.
const NONE: &str = "-";

/// All figures, a table for each scenario.
pub(crate) fn terminal(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for outcome in outcomes {
        let scenario = outcome.scenario;
        let is_memory = scenario.headline == Metric::Memory;
        let heads: &[&str] = if is_memory {
            &["server", "KiB per connection", "quartiles"]
        } else {
            &[
                "server",
                "messages/s",
                "throughput",
                "quartiles",
                "CPU us",
                "per CPU",
                "quartiles",
                "p50 us",
                "p99 us",
                "client",
                "lost",
            ]
        };
        let mut rows = vec![heads.iter().map(|head| (*head).into()).collect()];
        for entry in &outcome.entries {
            rows.push(terminal_row(outcome, entry, is_memory));
        }
        writeln!(text, "\n{}: {}", scenario.name, scenario.about).expect("a string takes it");
        text += &aligned(&rows);
        for entry in &outcome.entries {
            if let Some(failure) = &entry.failure {
                let failed = entry.samples.iter().filter(|one| one.is_none()).count();
                let (name, all) = (entry.contender.name, entry.samples.len());
                writeln!(
                    text,
                    "  {name}: {failed} of {all} samples failed: {failure}"
                )
                .expect("a string takes it");
            }
        }
    }
    text
}

fn terminal_row(outcome: &Outcome, entry: &Entry, is_memory: bool) -> Vec<String> {
    let median = |figure: Option<Figure>, digits: usize| {
        figure.map_or(NONE.into(), |figure| format!("{:.digits$}", figure.median))
    };
    let spread = |figure: Option<Figure>| {
        figure.map_or(NONE.into(), |figure| {
            format!("{:.2}..{:.2}", figure.low, figure.high)
        })
    };
    let mut row = vec![entry.contender.name.into()];
    if is_memory {
        let memory = outcome.figure(entry, Metric::Memory);
        row.extend([median(memory, 2), spread(memory)]);
        return row;
    }
    let throughput = outcome.figure(entry, Metric::Throughput);
    let cpu = outcome.figure(entry, Metric::Cpu);
    let client =
        entry.figure(|sample| 100.0 * sample.client_cpu.as_secs_f64() / sample.time.as_secs_f64());
    row.extend([
        median(entry.figure(|sample| sample.rate()), 0),
        median(throughput, 2),
        spread(throughput),
        median(entry.figure(|sample| sample.cpu_us()), 2),
        median(cpu, 2),
        spread(cpu),
        median(entry.figure(|sample| micros(sample.p50)), 1),
        median(entry.figure(|sample| micros(sample.p99)), 1),
        median(client, 0) + "%",
        lost(entry),
    ]);
    row
}

fn lost(entry: &Entry) -> String {
    match entry.lost() {
        0.0 => "0".into(),
        share => format!("{:.2}%", 100.0 * share),
    }
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// Columns below each other: the first to the left, figures to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width_of = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width_of).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = format!("  {:<width$}", row[0], width = widths[0]);
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            write!(line, "  {cell:>width$}").expect("a string takes it");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// The page.
pub(crate) fn page(plan: &Plan, outcomes: &[Outcome], facts: &[(String, String)]) -> String {
    let contenders = |metric: fn(&Outcome) -> bool| -> Vec<&'static Contender> {
        let has_part = |contender: &&'static Contender| {
            outcomes
                .iter()
                .filter(|outcome| metric(outcome))
                .any(|outcome| outcome.entry(contender).is_some())
        };
        plan.contenders.iter().copied().filter(has_part).collect()
    };
    let is_timed = |outcome: &Outcome| outcome.scenario.headline != Metric::Memory;
    let is_memory = |outcome: &Outcome| outcome.scenario.headline == Metric::Memory;
    let timed: Vec<&Outcome> = outcomes
        .iter()
        .filter(|outcome| is_timed(outcome))
        .collect();
    let memory: Vec<&Outcome> = outcomes
        .iter()
        .filter(|outcome| is_memory(outcome))
        .collect();
    let servers = contenders(is_timed);

    let mut text = opening(plan, facts);
    text += "\n## Scenarios\n\n| scenario | what the client does |\n|---|---|\n";
    for outcome in outcomes {
        let scenario = outcome.scenario;
        text += &format!("| `{}` | {} |\n", scenario.name, scenario.about);
    }
    text += "\n## Messages per CPU second\n\n\
        How many messages the server handles in a second of its CPU, as a multiple of tokio's: \
        median (first quartile to third).\n\n";
    text += &table(&timed, &servers, |outcome, entry| {
        ratio(outcome.figure(entry, Metric::Cpu))
    });
    text += "\n## Throughput\n\n\
        Messages a second, as a multiple of tokio's: median (first quartile to third).\n\n";
    text += &table(&timed, &servers, |outcome, entry| {
        ratio(outcome.figure(entry, Metric::Throughput))
    });
    text += "\n## Latency\n\n\
        From the moment a message is sent until the last byte of its echo has arrived, p50 / p99 in µs: \
        medians of the samples.\n\
        In all scenarios but the quiet ones it is the queue that is measured.\n\n";
    text += &table(&timed, &servers, |_, entry| latency(entry));
    text += "\n## The base\n\nWhat 1.00 is.\n\n";
    text += &base_table(&timed);
    if timed.iter().any(|outcome| outcome.scenario.load.is_udp()) {
        text += "\n## Datagrams that did not come back\n\n";
        let udp: Vec<&Outcome> = timed
            .iter()
            .copied()
            .filter(|outcome| outcome.scenario.load.is_udp())
            .collect();
        let in_udp = |contender: &&&Contender| contender.serves_udp && !contender.spins;
        let servers: Vec<&Contender> = servers.iter().filter(in_udp).copied().collect();
        text += &table(&udp, &servers, |_, entry| lost(entry));
    }
    if !memory.is_empty() {
        text += "\n## Memory\n\n\
            What the server's own memory grows by for each idle connection, in KiB; the kernel's part is \
            the same for all.\n\n";
        text += &table(&memory, &contenders(is_memory), |outcome, entry| {
            outcome
                .figure(entry, Metric::Memory)
                .map_or(NONE.into(), |figure| format!("{:.2}", figure.median))
        });
    }
    text
}

fn opening(plan: &Plan, facts: &[(String, String)]) -> String {
    let mut text = format!(
        "# Performance\n\n\
        Written by the benchmark, not by hand: `cargo run --release --manifest-path benches/Cargo.toml -- --write`.\n\n\
        ![Ratios to tokio](performance.svg)\n\n\
        ## How it was measured\n\n\
        All servers run on this one machine, over loopback, each pinned to one CPU, the client to another.\n\
        The client is a closed loop: it sends a message when an echo has arrived, and compares every byte; \
        one wrong byte would have ended the run.\n\
        Small messages over TCP it receives and sends through io_uring, so that it keeps ahead of the servers.\n\
        In each of {} rounds every server was loaded for {} ms, in an order that rotates; \
        a ratio is taken within a round, and the median of the rounds is given.\n\
        CPU time is what the scheduler counted for the server's process and its children.\n\
        The client pays as much for a message as the server and is the busier of the two, \
        so that throughput says less about a server than its CPU time does.\n\
        Loopback has no network card: on a real one the kernel's part is larger and differences are smaller.\n\
        Two servers that differ by less than their quartiles do not differ.\n\
        How echod scales over several CPUs is not measured here.\n\n",
        plan.rounds,
        plan.time.as_millis()
    );
    text += "## Where it was measured\n\n| what | which |\n|---|---|\n";
    for (name, value) in facts {
        text += &format!("| {name} | {} |\n", value.replace('|', "\\|"));
    }
    text
}

/// A row for each scenario, a column for each server.
fn table(
    outcomes: &[&Outcome],
    servers: &[&Contender],
    cell: impl Fn(&Outcome, &Entry) -> String,
) -> String {
    let heads = servers.iter().map(|server| format!("`{}`", server.name));
    let mut text = row("scenario".into(), heads);
    text += &row("---".into(), servers.iter().map(|_| "--:".into()));
    for outcome in outcomes {
        let cells = servers.iter().map(|server| {
            let entry = outcome.entry(server);
            entry.map_or(NONE.into(), |entry| cell(outcome, entry))
        });
        text += &row(format!("`{}`", outcome.scenario.name), cells);
    }
    text
}

fn row(head: String, cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<String> = std::iter::once(head).chain(cells).collect();
    format!("| {} |\n", cells.join(" | "))
}

fn ratio(figure: Option<Figure>) -> String {
    figure.map_or(NONE.into(), |Figure { median, low, high }| {
        format!("{median:.2} ({low:.2}–{high:.2})")
    })
}

fn latency(entry: &Entry) -> String {
    let p50 = entry.figure(|sample| micros(sample.p50));
    let p99 = entry.figure(|sample| micros(sample.p99));
    match (p50, p99) {
        (Some(p50), Some(p99)) => format!("{:.0} / {:.0}", p50.median, p99.median),
        _ => NONE.into(),
    }
}

fn base_table(outcomes: &[&Outcome]) -> String {
    let heads = ["messages/s", "MB/s", "CPU µs per message"];
    let mut text = row(
        format!("{BASE} in"),
        heads.iter().map(|head| (*head).into()),
    );
    text += &row("---".into(), heads.iter().map(|_| "--:".into()));
    for outcome in outcomes {
        let base = outcome
            .entries
            .iter()
            .find(|entry| entry.contender.name == BASE);
        let Some(base) = base else { continue };
        let megabytes = base.figure(|sample| sample.bytes as f64 / 1e6 / sample.time.as_secs_f64());
        let cells = [
            (base.figure(|sample| sample.rate()), 0),
            (megabytes, 1),
            (base.figure(|sample| sample.cpu_us()), 2),
        ];
        let cells = cells.into_iter().map(|(figure, digits)| {
            figure.map_or(NONE.into(), |figure| format!("{:.digits$}", figure.median))
        });
        text += &row(format!("`{}`", outcome.scenario.name), cells);
    }
    text
}
