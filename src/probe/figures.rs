//! Figures as people read them, the same in each line and picture: times, shares, spreads; and
//! progress on standard error.
//!
//! Knows numbers and never how they were measured.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};

use super::console::Console;
use super::latency::Spread;

/// The interval at which what is shown moves by itself.
const TICK: Duration = Duration::from_millis(100);

/// A time in microseconds, with three digits: `41.2 µs`, `1.25 ms`.
pub(super) fn time(micros: f64) -> String {
    match micros {
        _ if micros < 0.9995 => format!("{} ns", three_digits(micros * 1e3)),
        _ if micros < 999.5 => format!("{} µs", three_digits(micros)),
        _ if micros < 999_500.0 => format!("{} ms", three_digits(micros / 1e3)),
        _ => format!("{} s", three_digits(micros / 1e6)),
    }
}

/// The same of a duration.
pub(super) fn duration(time: Duration) -> String {
    self::time(time.as_secs_f64() * 1e6)
}

fn three_digits(value: f64) -> String {
    match value {
        _ if value == 0.0 => "0".to_owned(),
        _ if value < 9.995 => format!("{value:.2}"),
        _ if value < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A setting as it was typed: `1s`, `250ms`.
pub(super) fn setting(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

/// A part of all, in percent; one that exists is never shown as none.
pub(super) fn share(part: u64, all: u64) -> String {
    let percent = 100.0 * part as f64 / all.max(1) as f64;
    match percent {
        _ if part > 0 && percent < 0.1 => "<0.1 %".to_owned(),
        _ => {
            let digits = format!("{percent:.1}");
            format!("{} %", digits.trim_end_matches('0').trim_end_matches('.'))
        }
    }
}

/// Counts with the names of several: `, 2 late, 1 stray`; what there is none of is left out.
pub(super) fn counts(counts: &[(u64, &str)]) -> String {
    let some = counts.iter().filter(|(count, _)| *count > 0);
    let number = |count, what: &str| match count {
        1 => format!(", 1 {}", what.trim_end_matches('s')),
        _ => format!(", {count} {what}"),
    };
    some.map(|(count, what)| number(*count, what)).collect()
}

/// The figures of many times in two lines, each ended; of one time that time, of none nothing.
pub(super) fn spread(name: &str, spread: Option<Spread>) -> String {
    let Some(spread) = spread else {
        return String::new();
    };
    let (min, max) = (spread.0[0].1, spread.0[5].1);
    if min == max {
        return format!("{name}: {}\n", time(min));
    }
    let figures = spread.0.map(|(name, micros)| {
        let name = name.replace("p999", "p99.9");
        format!("{name} {}", time(micros))
    });
    // Six would not fit a line of 80 characters.
    let (times, rest) = (figures[..5].join(", "), figures[5..].join(", "));
    format!("{name}: {times}\n{:len$}  {rest}\n", "", len = name.len())
}

/// A bar towards this total, drawn by this template of `indicatif`; it is removed when it is
/// dropped.
pub(super) fn bar(console: &Console, total: u64, template: &str) -> ProgressBar {
    progress(console, ProgressBar::new(total), template)
}

/// A sign of life beside a text that changes, where the end is not known.
pub(super) fn spinner(console: &Console) -> ProgressBar {
    progress(console, ProgressBar::new_spinner(), "{spinner} {msg}")
}

fn progress(console: &Console, bar: ProgressBar, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the template is valid");
    bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
    if console.progress {
        bar.enable_steady_tick(TICK);
    } else {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar.with_finish(ProgressFinish::AndClear)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::latency::Latencies;

    #[test]
    fn times_have_three_digits_and_a_unit() {
        let shown = [0.0, 0.85, 1.0, 41.23, 999.6, 1254.0, 60e6].map(time);
        let meant = "0 ns, 850 ns, 1.00 µs, 41.2 µs, 1.00 ms, 1.25 ms, 60.0 s";
        assert_eq!(shown.join(", "), meant);
    }

    #[test]
    fn shares_never_hide_what_is_there() {
        let shown = [(0, 9), (1, 3_000_000), (1, 8), (9, 9), (0, 0)];
        let shown = shown.map(|(part, all)| share(part, all));
        assert_eq!(shown, ["0 %", "<0.1 %", "12.5 %", "100 %", "0 %"]);
        let all = [(2, "late"), (0, "lost"), (1, "strays")];
        assert_eq!(counts(&all), ", 2 late, 1 stray");
    }

    #[test]
    fn a_spread_is_two_lines() {
        let text = spread("rtt", Latencies::of(1..=1000).spread());
        let begin = "rtt: min 1.00 µs, p50 500 µs, p90 900 µs, p99 990 µs, p99.9 999 µs\n     \
                     max 1.00 ms, mean 50";
        assert!(text.starts_with(begin), "{text}");
        assert!(text.ends_with("stddev 289 µs\n"), "{text}");
        assert_eq!(spread("rtt", None), "");
    }

    /// The line of a message said 233 µs, and the summary 232 µs.
    #[test]
    fn one_time_is_one_figure_which_is_rounded_as_that_of_its_message() {
        let mut latencies = Latencies::default();
        let one = Duration::from_nanos(232_512);
        latencies.record(one);
        assert_eq!(spread("rtt", latencies.spread()), "rtt: 233 µs\n");
        assert_eq!(duration(one), "233 µs");
    }
}
