//! The words of ping: a line for each event, a table of flows, a summary.
//!
//! Makes text, and never prints it.

use std::time::Duration;

use super::Outcome;
use crate::cli::table::{Column, Table};
use crate::cli::text::{Paint, counted};
use crate::probe::args::PingArgs;
use crate::probe::event::Event;
use crate::probe::figures;
use crate::probe::tally::Tally;
use crate::probe::target::Target;

/// What is sent to which address.
pub(super) fn heading(args: &PingArgs, place: &str) -> String {
    let from = match args.flows {
        1 => String::new(),
        flows => format!(" from {flows} ports"),
    };
    let pause = match args.interval.is_zero() {
        true => "without a pause".into(),
        false => format!("every {}", figures::setting(args.interval)),
    };
    format!(
        "{place}: {} {pause}{from}, late after {}\n",
        counted(args.size as u64, "byte"),
        figures::setting(args.timeout)
    )
}

/// An event as a person reads it.
pub(super) fn line(event: &Event, args: &PingArgs, paint: Paint) -> String {
    let words = event.words(args.timeout);
    // What is received in time and in order needs no color; a loss is red.
    let line = match event {
        _ if event.is_well() => words,
        Event::Answered(_) => paint.yellow(&words),
        _ => paint.red(&words),
    };
    line + "\n"
}

/// All in all. The hint is of use where nothing was reached.
pub(super) fn summary(
    target: &Target,
    tally: &Tally,
    hint: &str,
    took: Duration,
    paint: Paint,
) -> String {
    let mut text = format!("--- {}\n", paint.bold(&target.to_string()));
    text += &format!("{} in {}", tally.account(), figures::duration(took));
    if let Some(jitter) = tally.jitter.microseconds() {
        text += &format!(", jitter {}", figures::time(jitter));
    }
    text.push('\n');
    text += &figures::spread("rtt", tally.latencies.spread());
    if !tally.errors.is_empty() {
        let hint = match hint.is_empty() || tally.has_answers() {
            true => String::new(),
            false => format!("; {hint}"),
        };
        text += &paint.red(&format!("errors: {}{hint}", tally.errors));
        text.push('\n');
    }
    text
}

/// A row for each flow, and which of them lose.
pub(super) fn flows(outcomes: &[Outcome], paint: Paint) -> String {
    let headers = [
        "PORT", "SENT", "RECEIVED", "LOST", "LOSS", "LATE", "CORRUPT", "MIN", "P50", "P99", "MAX",
    ];
    let mut table = Table::new(&headers.map(|header| Column::numbers(header, 0)));
    // A column without counts is left out.
    for Outcome { port, tally, .. } in outcomes {
        let some = |count: u64| match count {
            0 => String::new(),
            count => count.to_string(),
        };
        let mut cells = vec![
            port.map_or("-".into(), |port| port.to_string()),
            tally.sent.to_string(),
            tally.received.to_string(),
            tally.lost.to_string(),
            figures::share(tally.lost, tally.sent),
            some(tally.late),
            some(tally.corrupt),
        ];
        cells.extend(match tally.latencies.spread() {
            Some(spread) => [0, 1, 3, 5].map(|index: usize| figures::time(spread.0[index].1)),
            None => Default::default(),
        });
        table.row(cells);
    }
    table.render(paint, None).text + &remarks(outcomes, paint)
}

/// The ports that lose.
fn remarks(outcomes: &[Outcome], paint: Paint) -> String {
    let losing = outcomes.iter().filter(|outcome| outcome.tally.lost > 0);
    let losing = losing.filter_map(|outcome| outcome.port);
    let losing: Vec<String> = losing.map(|port| port.to_string()).collect();
    let (some, all) = (losing.len(), outcomes.len());
    match some {
        0 => String::new(),
        _ if some == all => paint.red("all ports lose: it is not one path of several\n"),
        _ => paint.red(&format!(
            "{some} of {all} ports lose: {}\n",
            losing.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_all_ports_lose_it_is_not_one_bad_path() {
        let outcome = |port| Outcome {
            port: Some(port),
            tally: Tally {
                lost: 1,
                ..Tally::default()
            },
            hint: String::new(),
        };
        let words = "all ports lose: it is not one path of several\n";
        let all = [outcome(1), outcome(2)];
        assert_eq!(remarks(&all, Paint { colored: false }), words);
    }
}
