//! Latencies as a histogram in a terminal: a row for each range, with a bar, and beside it which
//! percentiles lie there.
//!
//! Latencies spread over decades, so each range is wider than the one before by the same ratio; within
//! a narrow spread all are equally wide. From p99.9 on there is one range for all: it would else take
//! most of the picture, to show a thousandth.

use super::axis;
use super::figures;
use crate::cli::text::Paint;
use crate::probe::latency::Latencies;

/// About so many rows.
const ROWS: f64 = 17.0;

/// Within this ratio ranges are equally wide.
const NARROW: f64 = 3.0;

/// A range is at least this part of its bound: times are kept to a thousandth, and ranges that hold a
/// few such steps, one more or less, would look like a comb.
const RANGE_MIN: f64 = 0.005;

/// Bars are between these.
const BAR_WIDTH_MIN: usize = 10;
const BAR_WIDTH_MAX: usize = 60;

/// What people look for, and where it is.
pub(super) const PERCENTILES: [(&str, f64); 5] = [
    ("p50", 0.5),
    ("p90", 0.9),
    ("p99", 0.99),
    ("p99.9", 0.999),
    ("max", 1.0),
];

/// Latencies from one bound to the bound of the next row.
#[derive(Clone, Debug, Default, PartialEq)]
struct Row {
    /// Nanoseconds.
    from: f64,
    messages: u64,
    marks: Vec<&'static str>,
}

/// The histogram, each line ended, none longer than the width if that is sensible; empty where there
/// are no latencies.
#[must_use]
pub(super) fn draw(latencies: &Latencies, paint: Paint, width: usize) -> String {
    let rows = rows(latencies);
    let most = rows.iter().map(|row| row.messages).max().unwrap_or(0);
    let Some(tail) = rows.iter().position(|row| row.marks.contains(&"p99")) else {
        return String::new();
    };
    let times: Vec<String> = rows
        .iter()
        .map(|row| figures::round_time(row.from / 1e3))
        .collect();
    let time_width = widest(&times).max("FROM".len());
    let messages_width = most.to_string().len().max("MESSAGES".len());
    let marks: Vec<String> = rows.iter().map(|row| row.marks.join(" ")).collect();
    let marks_width = widest(&marks);
    let head = format!(
        "{:>time_width$}  {:>messages_width$}  {:>7}",
        "FROM", "MESSAGES", "SHARE"
    );
    let bar_width = width
        .saturating_sub(head.len() + 2 + 2 + marks_width)
        .clamp(BAR_WIDTH_MIN, BAR_WIDTH_MAX);

    let mut text = paint.bold(&head) + "\n";
    for (index, (row, time)) in rows.iter().zip(&times).enumerate() {
        let share = figures::share(row.messages as f64 / latencies.len() as f64);
        text += &format!(
            "{time:>time_width$}  {:>messages_width$}  {share:>7}",
            row.messages
        );
        let bar = bar(row.messages as f64 / most as f64, bar_width);
        let gap = " ".repeat(bar_width - bar.chars().count() + 2);
        if !bar.is_empty() {
            let painted = if index < tail {
                paint.green(&bar)
            } else {
                paint.yellow(&bar)
            };
            text += &format!("  {painted}");
        }
        // A percentile always lies where there are messages, so behind a bar.
        if !row.marks.is_empty() {
            text += &format!("{gap}{}", paint.bold(&marks[index]));
        }
        text.push('\n');
    }
    text
}

fn widest(cells: &[String]) -> usize {
    let widths = cells.iter().map(|cell| cell.chars().count());
    widths.max().unwrap_or(0)
}

/// A bar for this share of the width, to an eighth of a character; never none where there is anything.
fn bar(share: f64, width: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let mut eighths = (share * width as f64 * 8.0).round() as usize;
    if share > 0.0 {
        eighths = eighths.max(1);
    }
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

fn rows(latencies: &Latencies) -> Vec<Row> {
    if latencies.is_empty() {
        return Vec::new();
    }
    let nanoseconds = |share| latencies.quantile(share).as_nanos() as f64;
    let mut rows: Vec<Row> = bounds(nanoseconds(0.0), nanoseconds(0.999))
        .into_iter()
        .map(|from| Row {
            from,
            ..Row::default()
        })
        .collect();
    let most = nanoseconds(1.0);
    for value in latencies.histogram().iter_recorded() {
        // The histogram rounds up; the longest is known exactly.
        let time = (value.value_iterated_to() as f64).min(most);
        row_of(&mut rows, time).messages += value.count_at_value();
    }
    for (name, share) in PERCENTILES {
        row_of(&mut rows, nanoseconds(share)).marks.push(name);
    }
    // The range for all that is longer may have remained empty.
    if rows.last().is_some_and(|row| row.messages == 0) {
        rows.pop();
    }
    rows
}

fn row_of(rows: &mut [Row], time: f64) -> &mut Row {
    let index = rows.partition_point(|row| row.from <= time);
    &mut rows[index.saturating_sub(1)]
}

/// Round times, from one that is no longer than the shortest to the first that is longer than the
/// longest.
fn bounds(low: f64, high: f64) -> Vec<f64> {
    let low = low.max(1.0);
    if high < low * NARROW {
        let step = axis::round_up(((high - low) / ROWS).max(low * RANGE_MIN));
        let first = (low / step).floor();
        return up_to(high, (0..).map(|index| (first + f64::from(index)) * step));
    }
    let steps = (ROWS / (high / low).log10()).floor().max(1.0);
    // One earlier, for what is rounded up beyond the shortest.
    let first = (low.log10() * steps).floor() as i32 - 1;
    let ladder = (first..).map(|index| round(10_f64.powf(f64::from(index) / steps), steps));
    let bounds = up_to(high, ladder);
    let skipped = bounds.partition_point(|bound| *bound <= low);
    bounds[skipped.saturating_sub(1)..].to_vec()
}

fn up_to(high: f64, bounds: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut is_within = true;
    bounds
        .take_while(|bound| std::mem::replace(&mut is_within, *bound <= high))
        .collect()
}

/// To as few digits as tell it from the next: with three steps to a decade these are 1, 2, 5.
fn round(value: f64, steps_per_decade: f64) -> f64 {
    let digits = match steps_per_decade {
        _ if steps_per_decade <= 3.0 => 0,
        _ if steps_per_decade <= 10.0 => 1,
        _ => 2,
    };
    let last = 10_f64.powi(value.log10().floor() as i32 - digits);
    (value / last).round() * last
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expect_test::{Expect, expect};

    use super::super::sample;
    use super::*;

    fn check(latencies: &Latencies, expect: &Expect) {
        let text = draw(latencies, Paint { colored: false }, 72);
        assert!(
            text.lines().all(|line| line.chars().count() <= 72),
            "{text}"
        );
        expect.assert_eq(&text);
    }

    #[test]
    fn a_steep_rise_and_a_long_tail() {
        let latencies = sample::latencies(100_000, Duration::from_micros(85), 0.4);
        check(
            &latencies,
            &expect![[r#"
               FROM  MESSAGES    SHARE
            14.3 µs         1   <0.1 %  ▏
              17 µs         8   <0.1 %  ▏
            20.3 µs        82    0.1 %  ▏
            24.2 µs       256    0.3 %  ▌
            28.9 µs       855    0.9 %  █▉
            34.6 µs      2326    2.3 %  █████
            41.2 µs      5046    5.0 %  ██████████▉
            49.2 µs      9137    9.1 %  ███████████████████▋
            58.8 µs     13831   13.8 %  █████████████████████████████▊
            70.2 µs     17126   17.1 %  ████████████████████████████████████▊
            83.8 µs     17237   17.2 %  █████████████████████████████████████  p50
             100 µs     14015   14.0 %  ██████████████████████████████▏
             119 µs     10435   10.4 %  ██████████████████████▍                p90
             143 µs      5474    5.5 %  ███████████▊
             170 µs      2681    2.7 %  █████▊
             203 µs      1056    1.1 %  ██▎                                    p99
             242 µs       324    0.3 %  ▊
             289 µs        89    0.1 %  ▎                                      p99.9
             346 µs        21   <0.1 %  ▏                                      max
        "#]],
        );
    }

    #[test]
    fn all_within_a_tenth() {
        let latencies = sample::latencies(10_000, Duration::from_millis(20), 0.02);
        check(
            &latencies,
            &expect![[r#"
               FROM  MESSAGES    SHARE
            18.4 ms         1   <0.1 %  ▏
            18.6 ms         6    0.1 %  ▏
            18.8 ms        35    0.4 %  ▋
              19 ms       135    1.4 %  ██▌
            19.2 ms       409    4.1 %  ███████▋
            19.4 ms       912    9.1 %  █████████████████
            19.6 ms      1474   14.7 %  ███████████████████████████▌
            19.8 ms      1981   19.8 %  █████████████████████████████████████
              20 ms      1896   19.0 %  ███████████████████████████████████▍   p50
            20.2 ms      1565   15.7 %  █████████████████████████████▎
            20.4 ms       887    8.9 %  ████████████████▋                      p90
            20.6 ms       431    4.3 %  ████████
            20.8 ms       192    1.9 %  ███▋                                   p99
              21 ms        51    0.5 %  █
            21.2 ms        19    0.2 %  ▍                                      p99.9
            21.4 ms         6    0.1 %  ▏                                      max
        "#]],
        );
    }

    #[test]
    fn six_decades() {
        let latencies = sample::latencies(10_000, Duration::from_millis(1), 2.0);
        check(
            &latencies,
            &expect![[r#"
              FROM  MESSAGES    SHARE
            300 ns         1   <0.1 %  ▏
              1 µs        19    0.2 %  ▎
              3 µs        75    0.8 %  █▎
             10 µs       289    2.9 %  ████▋
             30 µs       827    8.3 %  █████████████▎
            100 µs      1491   14.9 %  ███████████████████████▉
            300 µs      2370   23.7 %  ██████████████████████████████████████  p50
              1 ms      2048   20.5 %  ████████████████████████████████▉
              3 ms      1657   16.6 %  ██████████████████████████▋
             10 ms       790    7.9 %  ████████████▋                           p90
             30 ms       340    3.4 %  █████▌                                  p99
            100 ms        67    0.7 %  █▏
            300 ms        22    0.2 %  ▍                                       p99.9
               1 s         4   <0.1 %  ▏                                       max
        "#]],
        );
    }

    #[test]
    fn two_humps_and_nothing_between() {
        let mut latencies = sample::latencies(9_000, Duration::from_micros(50), 0.2);
        latencies.merge(&sample::latencies(1_000, Duration::from_millis(40), 0.05));
        check(
            &latencies,
            &expect![[r#"
              FROM  MESSAGES    SHARE
             16 µs         1   <0.1 %  ▏
             25 µs      1167   11.7 %  █████▎
             40 µs      6728   67.3 %  ██████████████████████████████  p50
             63 µs      1101   11.0 %  ████▉
            100 µs         3   <0.1 %  ▏                               p90
            160 µs         0    0.0 %
            250 µs         0    0.0 %
            400 µs         0    0.0 %
            630 µs         0    0.0 %
              1 ms         0    0.0 %
            1.6 ms         0    0.0 %
            2.5 ms         0    0.0 %
              4 ms         0    0.0 %
            6.3 ms         0    0.0 %
             10 ms         0    0.0 %
             16 ms         0    0.0 %
             25 ms       497    5.0 %  ██▎
             40 ms       503    5.0 %  ██▎                             p99 p99.9 max
        "#]],
        );
    }

    #[test]
    fn one_and_none_and_all_alike() {
        check(
            &sample::equal(1, Duration::from_micros(85)),
            &expect![[r#"
             FROM  MESSAGES    SHARE
            85 µs         1  100.0 %  ███████████████████████  p50 p90 p99 p99.9 max
        "#]],
        );
        check(
            &sample::equal(500, Duration::from_nanos(1)),
            &expect![[r#"
            FROM  MESSAGES    SHARE
            1 ns       500  100.0 %  ████████████████████████  p50 p90 p99 p99.9 max
        "#]],
        );
        check(&Latencies::default(), &expect![[""]]);
    }

    #[test]
    fn every_latency_is_in_one_row() {
        for spread in 0..40 {
            let spread = f64::from(spread) / 10.0;
            let latencies = sample::latencies(2000, Duration::from_micros(100), spread);
            let rows = rows(&latencies);
            let messages: u64 = rows.iter().map(|row| row.messages).sum();
            assert_eq!(messages, latencies.len());
            let marks: usize = rows.iter().map(|row| row.marks.len()).sum();
            assert_eq!(marks, PERCENTILES.len());
            assert!(rows.len() <= 21, "{spread}: {rows:?}");
            assert!(
                rows.is_sorted_by(|one, next| one.from < next.from),
                "{rows:?}"
            );
        }
    }

    #[test]
    fn bars_end_at_an_eighth_and_the_least_is_seen() {
        assert_eq!(bar(1.0, 3), "███");
        assert_eq!(bar(0.5, 3), "█▌");
        assert_eq!(bar(1e-9, 3), "▏");
        assert_eq!(bar(0.0, 3), "");
    }
}
