//! What was measured: a histogram, percentiles and figures for people, fields for programs.
//!
//! Makes text, and never prints it.

use super::Measured;
use super::histogram;
use crate::cli::text::{self, Paint, counted};
use crate::probe::args::LoadArgs;
use crate::probe::figures;
use crate::probe::report::{Report, milliseconds};

/// How messages are sent: `closed loop, depth 4` or `20000/s`.
pub(super) fn pace(args: &LoadArgs) -> String {
    match args.rate {
        Some(rate) => format!("open loop, {rate}/s"),
        None => format!("closed loop, depth {}", args.depth),
    }
}

/// What is measured, and how: `tcp://…: 50 connections, closed loop, depth 4, 64 B, io_uring`.
pub(super) fn heading(args: &LoadArgs, measured: &Measured) -> String {
    let kind = match args.url.is_stream() {
        true => "connection",
        false => "flow",
    };
    format!(
        "{}: {}, {}, {}, {}",
        text::escape(&args.url.to_string()),
        counted(args.connections.into(), kind),
        pace(args),
        text::bytes(args.size as u64),
        measured.driver
    )
}

/// All of it, each line ended; the figures last, so that a small screen shows them.
pub(super) fn summary(args: &LoadArgs, measured: &Measured, paint: Paint, width: usize) -> String {
    let tally = &measured.tally;
    // The figures come last: they stay on a small screen.
    let mut text = paint.bold(&heading(args, measured)) + "\n\n";
    let histogram = histogram::draw(&tally.latencies, paint, width);
    if !histogram.is_empty() {
        text += &(histogram + "\n");
        text += &figures::spread("rtt", tally.latencies.spread());
    }
    text += &format!(
        "{} in {}: {} messages/s, {}/s\n",
        counted(tally.whole(), "message"),
        figures::duration(measured.duration),
        rate(measured.per_second(tally.whole())),
        text::bytes(measured.per_second(tally.bytes) as u64)
    );
    let line = tally.account();
    let is_flawed = tally.lost + tally.late + tally.corrupt > 0;
    text += &if is_flawed { paint.red(&line) } else { line };
    text.push('\n');
    if !tally.errors.is_empty() {
        let errors = format!("errors: {}", tally.errors);
        text += &(paint.red(&text::escape(&errors)) + "\n");
    }
    text
}

/// Whole ones, where there are enough of them.
fn rate(rate: f64) -> String {
    match rate {
        _ if rate > 0.0 && rate < 100.0 => format!("{rate:.1}"),
        _ => format!("{rate:.0}"),
    }
}

/// The result for programs.
pub(super) fn report(args: &LoadArgs, measured: &Measured) -> Report {
    let messages = measured.tally.whole();
    Report {
        rate: args.rate,
        messages: Some(messages),
        duration_ms: Some(milliseconds(measured.duration)),
        throughput: Some((measured.per_second(messages) * 10.0).round() / 10.0),
        delayed: Some(measured.tally.delayed),
        ends: Some(measured.course.ends.clone()),
        ..measured.tally.report()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;
    use crate::probe::args::{Cli, Command};
    use crate::probe::cause::{Cause, SILENT};
    use crate::probe::latency::Latencies;
    use crate::probe::tally::Tally;

    fn args(line: &str) -> LoadArgs {
        let cli = Cli::try_parse_from(line.split(' ')).expect("understood");
        let Some(Command::Load(args)) = cli.command else {
            panic!("a load: {line}");
        };
        args
    }

    fn measured(micros: impl IntoIterator<Item = u64>) -> Measured {
        let mut tally = Tally {
            latencies: Latencies::of(micros),
            ..Tally::default()
        };
        tally.received = tally.latencies.len();
        (tally.sent, tally.bytes) = (tally.received, tally.received * 64);
        Measured {
            tally,
            duration: Duration::from_secs(10),
            driver: "io_uring",
            ..Measured::default()
        }
    }

    fn check(line: &str, measured: &Measured) -> String {
        summary(&args(line), measured, Paint { colored: false }, 80)
    }

    #[test]
    fn a_measurement_fits_a_small_screen_with_its_figures_last() {
        let measured = measured((0..100_000).map(|index: u64| 15 + (index * index) % 577));
        let text = check("echoprobe load tcp://[::1]:7 -c 50 -d 4", &measured);
        let heading = "tcp://[::1]:7: 50 connections, closed loop, depth 4, 64 B, io_uring\n";
        assert!(text.starts_with(heading), "{text}");
        let figures = "100000 messages in 10.0 s: 10000 messages/s, 625.0 KiB/s\n\
                       100000 sent, 100000 received, 0 lost (0 %)\n";
        assert!(text.ends_with(figures), "{text}");
        let widths = text.lines().map(|line| line.chars().count());
        assert!(widths.clone().count() <= 22, "{text}");
        assert!(widths.max() <= Some(80), "{text}");
    }

    #[test]
    fn what_went_wrong_is_counted() {
        let mut measured = measured([85; 3]);
        measured.tally.sent = 1000;
        (measured.tally.lost, measured.tally.late) = (990, 6);
        measured.tally.corrupt = 1;
        measured.tally.errors.add(Cause::Refused, 2);
        let text = check("echoprobe load udp://192.0.2.1:7 --rate 100", &measured);
        assert!(text.contains("10 flows, open loop, 100/s, 64 B"), "{text}");
        let line =
            "\n1000 sent, 3 received, 990 lost (99 %), 6 late, 1 corrupt\nerrors: 2 refused\n";
        assert!(text.ends_with(line), "{text}");
    }

    /// It said "0 sent, 0 lost" and nothing more.
    #[test]
    fn a_load_that_sent_nothing_says_why() {
        let check = |line: &str, has_run, ends: &[Cause], words: &str| {
            let mut nothing = Measured::default();
            nothing.course.has_news = true;
            nothing.course.has_run = has_run;
            ends.iter()
                .for_each(|cause| nothing.course.ends.count(cause.clone()));
            let found = nothing.why_unsent(&args(line)).expect("a cause");
            assert_eq!(found.to_string(), format!("tcp://[::1]:7: {words}"));
        };
        let closed_loop = "echoprobe load tcp://[::1]:7";
        let words = "this process did not run in the time measured; is this machine busy?";
        check(closed_loop, false, &[], words);
        let words = "timed out; no answer since the warm-up";
        check(closed_loop, true, &[], words);
        let words = "refused; no connection since the warm-up";
        check(closed_loop, true, &[Cause::Refused], words);
        let words = "no message was due in the time measured; write a larger --rate or --time";
        check("echoprobe load tcp://[::1]:7 --rate 1", true, &[], words);
        let silent = Measured::default().why_unsent(&args(closed_loop));
        let hint = silent.map(|trouble| trouble.hint);
        assert_eq!(hint.as_deref(), Some(SILENT));
        assert_eq!(measured([85]).why_unsent(&args(closed_loop)), None);
    }

    #[test]
    fn a_measurement_without_answers_divides_by_nothing() {
        let nothing = Measured::default();
        let line = "echoprobe load tcp://[::1]:7";
        let meant = "0 sent, 0 received, 0 lost (0 %)\n";
        assert!(check(line, &nothing).ends_with(meant));
        assert_eq!(report(&args(line), &nothing).throughput, Some(0.0));
    }
}
