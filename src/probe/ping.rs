//! Small messages at an interval, and what became of each: a line for each, and a summary at the
//! end, however it ends.

use std::time::Duration;

use super::Console;
use super::args::{DATAGRAM_BYTES_MAX, Expect, Path, PingArgs};
use super::cause::Cause;
use super::interrupt::Interrupt;
use super::latency::Spread;
use super::ledger::{Answer, Difference, Kind, Tally};
use super::pauses::{self, Pauses};
use super::prober::{Course, Event, Outcome, Prober};
use super::report::{Verdict, milliseconds};
use super::route::{Route, usage};
use super::target::Target;
use crate::cli::exit::Failure;
use crate::cli::text::{Paint, counted, microseconds};

/// How often it is looked whether this process runs. Seldom: a ping may go on for days.
const PAUSES_INTERVAL: Duration = Duration::from_millis(5);

/// Does what the command line says.
///
/// # Errors
/// When the command line makes no sense for this service, or results can't be printed.
pub(super) fn run(
    args: &PingArgs,
    path: &Path,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Verdict, Failure> {
    check_pace(&args.url, args.pace.size, args.pace.expect)?;
    let course = Course {
        pace: args.pace.clone(),
        count: args.count,
        deadline: args.deadline,
    };
    let route = match Route::resolve(&args.url, path) {
        Ok(route) => route,
        Err(trouble) => return console.unreached(&trouble),
    };
    let prober = match Prober::new(&route, &course) {
        Ok(prober) => prober,
        Err(trouble) => return console.unreached(&trouble),
    };
    console.say(&head(&route, &course))?;
    let pauses = Pauses::watch(PAUSES_INTERVAL);
    let mut printed = Ok(());
    let outcome = prober.run(interrupt, |event| {
        if !args.quiet && printed.is_ok() {
            printed = console.say(&line(&event, &course, console.paint));
        }
    });
    printed?;
    let outcome = outcome.map_err(|error| Failure::new(format!("{}: {error}", args.url)))?;
    let longest = pauses.take_longest();
    let mut report = outcome.report();
    report.pause_us = (longest > Duration::ZERO).then(|| milliseconds(longest) * 1e3);
    console.say(&summary(&args.url, &outcome, console.paint))?;
    if let Some(remark) = pauses::remark(longest, &outcome.tally.latencies) {
        console.warn(&remark);
    }
    if outcome.dropped > 0 {
        console.warn(&dropped(outcome.dropped));
    }
    console.report(&report)?;
    Ok(outcome.tally.verdict())
}

/// What was lost here and not on the way.
pub(super) fn dropped(count: u64) -> String {
    format!(
        "{} had come back and found the receive buffer of this host full: \
         raise net.core.rmem_max, or send less at a time",
        counted(count, "datagram")
    )
}

/// Whether messages of this size can be sent and told apart.
pub(super) fn check_pace(url: &Target, size: usize, expect: Expect) -> Result<(), Failure> {
    if expect == Expect::Any {
        return Err(usage(
            "--expect any: whether a message is lost or late can't be told without comparing it",
        ));
    }
    match url.is_stream() {
        true if size == 0 => Err(usage(
            "--size 0: on a stream that is nothing: write 1 or more",
        )),
        false if size > DATAGRAM_BYTES_MAX => Err(usage(format!(
            "--size {size}: a datagram has {DATAGRAM_BYTES_MAX} bytes at most"
        ))),
        _ => Ok(()),
    }
}

fn head(route: &Route, course: &Course) -> String {
    let pace = &course.pace;
    format!(
        "{} ({}): {} every {:?}, late after {:?}\n",
        route.target(),
        route.address(),
        counted(pace.size as u64, "byte"),
        pace.interval,
        pace.timeout
    )
}

/// An event as a person reads it. Messages are counted from 1.
fn line(event: &Event, course: &Course, paint: Paint) -> String {
    match event {
        Event::Answered {
            answer,
            source,
            ttl,
        } => {
            let from = source.map_or(String::new(), |source| format!(" from {source}"));
            let ttl = ttl.map_or(String::new(), |ttl| format!(", ttl {ttl}"));
            let text = format!("{}{from}{ttl}", answered(answer, course));
            let is_well = answer.kind == Kind::Received && !answer.reordered;
            let text = if is_well { text } else { paint.yellow(&text) };
            text + "\n"
        }
        Event::Missing(number) => {
            let text = format!("{}: no answer within {:?}", number + 1, course.pace.timeout);
            paint.red(&text) + "\n"
        }
        Event::Failed {
            number,
            cause,
            reporter,
        } => {
            let by = reporter.map_or(String::new(), |reporter| format!(", says {reporter}"));
            paint.red(&format!("{}: {cause}{by}", number + 1)) + "\n"
        }
        Event::Ended { cause, count } => {
            let told = match cause {
                Cause::Closed => "the service has closed the connection",
                Cause::Reset => "the service has reset the connection",
                Cause::Mismatch => "other bytes than were sent, connecting anew",
                cause => cause.words(),
            };
            let lost = counted(*count, "message");
            paint.red(&format!("{told}: {lost} lost")) + "\n"
        }
    }
}

fn answered(answer: &Answer, course: &Course) -> String {
    let number = answer
        .number
        .map_or("?".into(), |number| (number + 1).to_string());
    let time = microseconds(u64::try_from(answer.rtt.as_micros()).unwrap_or(u64::MAX));
    let size = course.pace.size;
    let what = match &answer.kind {
        Kind::Received => String::new(),
        Kind::Late => " (late)".into(),
        Kind::Duplicate => " (duplicate)".into(),
        Kind::Misaddressed => " (from another address than it was sent to)".into(),
        Kind::Stray => return "bytes that were never sent".into(),
        Kind::Corrupt(Difference::Size(len)) => {
            format!(" (corrupt: {len} bytes instead of {size})")
        }
        Kind::Corrupt(Difference::Bytes { first, count }) => format!(
            " (corrupt: {} of {size} wrong, the first at offset {first})",
            counted(*count as u64, "byte")
        ),
    };
    let reordered = if answer.reordered { " (reordered)" } else { "" };
    format!("{number}: {time}{what}{reordered}")
}

/// All in all.
fn summary(url: &Target, outcome: &Outcome, paint: Paint) -> String {
    let tally = &outcome.tally;
    let mut text = format!(
        "--- {}\n{}\n",
        paint.bold(&url.to_string()),
        account(outcome)
    );
    if let Some(spread) = tally.latencies.spread() {
        text += &times("rtt", &spread, tally.jitter.microseconds());
    }
    if let Some(spread) = outcome.connects.spread() {
        text += &times("connect", &spread, None);
    }
    if !tally.errors.is_empty() {
        text += &paint.red(&format!("errors: {}", tally.errors));
        text.push('\n');
    }
    text
}

/// `10 sent, 9 received, 1 lost (10 %)`; what there was none of is left out, but for the three.
fn account(outcome: &Outcome) -> String {
    let tally = &outcome.tally;
    let mut text = format!(
        "{} sent, {} received, {} lost ({})",
        tally.sent,
        tally.received,
        tally.lost,
        share(tally)
    );
    for (count, what) in [
        (tally.late, "late"),
        (tally.corrupt, "corrupt"),
        (tally.misaddressed, "misaddressed"),
        (outcome.in_flight, "on the way"),
        (tally.duplicates, "duplicates"),
        (tally.reordered, "reordered"),
    ] {
        if count > 0 {
            text += &format!(", {count} {what}");
        }
    }
    text + &format!(" in {:.1?}", outcome.duration)
}

/// The share of those lost.
#[expect(
    clippy::cast_precision_loss,
    reason = "a digit after the point is shown"
)]
pub(super) fn share(tally: &Tally) -> String {
    let percent = 100.0 * tally.lost as f64 / (tally.sent as f64).max(1.0);
    // Whoever has lost one of a million has not lost nothing.
    let digits = if percent > 0.0 && percent < 0.1 { 4 } else { 1 };
    let percent = format!("{percent:.digits$}");
    format!("{} %", percent.trim_end_matches('0').trim_end_matches('.'))
}

fn times(what: &str, spread: &Spread, jitter: Option<f64>) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "times are positive, and whole microseconds are shown"
    )]
    let show = |micros: f64| microseconds(micros.round() as u64);
    let Spread {
        min,
        p50,
        p90,
        p99,
        p999,
        max,
        mean,
        stddev,
    } = *spread;
    let jitter = jitter.map_or(String::new(), |jitter| format!(", jitter {}", show(jitter)));
    format!(
        "{what}: min {}, p50 {}, p90 {}, p99 {}, p99.9 {}, max {}\n{:indent$}mean {}, stddev {}{jitter}\n",
        show(min),
        show(p50),
        show(p90),
        show(p99),
        show(p999),
        show(max),
        "",
        show(mean),
        show(stddev),
        indent = what.len() + 2,
    )
}
