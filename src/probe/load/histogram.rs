//! Latencies as a histogram in a terminal: a row for each range, with a bar, and beside it which
//! percentiles lie there. The rows are those of `hdrhistogram`, each wider than the one before by
//! the same ratio.

use std::time::Duration;

use crate::cli::text::Paint;
use crate::probe::figures;
use crate::probe::latency::Latencies;

/// At most this number of rows, so that figures and histogram fit a screen of 24 lines.
const ROWS_MAX: u32 = 12;

/// The least ratio from one row to the next.
const RATIO_MIN: f64 = 1.1;

/// Bars are between these.
const BAR_WIDTH_MIN: usize = 10;
const BAR_WIDTH_MAX: usize = 60;

/// The percentiles that are marked, and where they are.
const PERCENTILES: [(&str, f64); 5] = [
    ("p50", 0.5),
    ("p90", 0.9),
    ("p99", 0.99),
    ("p99.9", 0.999),
    ("max", 1.0),
];

/// Latencies up to a bound.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    /// Microseconds.
    up_to: f64,
    messages: u64,
    marks: Vec<&'static str>,
}

/// The histogram, each line ended; empty where there are no latencies.
pub(super) fn draw(latencies: &Latencies, paint: Paint, width: usize) -> String {
    let rows = rows(latencies);
    let most = rows.iter().map(|row| row.messages).max().unwrap_or(0);
    let marks = rows.iter().map(|row| row.marks.join(" "));
    let marks_width = marks.map(|marks| marks.len()).max().unwrap_or(0);
    let head = format!("{:>8}  {:>9}  {:>7}", "UP TO", "MESSAGES", "SHARE");
    let bar_width = width
        .saturating_sub(head.len() + 2 + 2 + marks_width)
        .clamp(BAR_WIDTH_MIN, BAR_WIDTH_MAX);
    if rows.is_empty() {
        return String::new();
    }
    let mut text = paint.bold(&head) + "\n";
    for row in &rows {
        let time = figures::time(row.up_to);
        let share = figures::share(row.messages, latencies.len());
        // What exists has a bar.
        let part = row.messages as f64 / most as f64;
        let len = (part * bar_width as f64).ceil() as usize;
        let (bar, gap) = (paint.green(&"█".repeat(len)), " ".repeat(bar_width - len));
        let (messages, marks) = (row.messages, row.marks.join(" "));
        let line = format!("{time:>8}  {messages:>9}  {share:>7}  {bar}{gap}  {marks}");
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// The rows from the shortest time to the longest.
fn rows(latencies: &Latencies) -> Vec<Row> {
    let histogram = latencies.histogram();
    if histogram.is_empty() {
        return Vec::new();
    }
    let least = histogram.min().max(1);
    let most = (latencies.max().as_nanos() as u64).max(least);
    // The first row ends behind the shortest time, the last one at the longest.
    let ratio = (most as f64 / least as f64).powf(1.0 / f64::from(ROWS_MAX - 2));
    let ratio = ratio.max(RATIO_MIN);
    let first = (least as f64 * ratio.sqrt()).ceil() as u64;
    let mut rows: Vec<Row> = histogram
        .iter_log(first, ratio)
        .map(|step| Row {
            up_to: (step.value_iterated_to().min(most)) as f64 / 1e3,
            messages: step.count_since_last_iteration(),
            marks: Vec::new(),
        })
        .collect();
    // Rounding may leave empty rows behind the longest time.
    while rows.last().is_some_and(|row| row.messages == 0) {
        rows.pop();
    }
    if let Some(last) = rows.last_mut() {
        last.up_to = last.up_to.max(most as f64 / 1e3);
    }
    for (name, share) in PERCENTILES {
        let time = latencies.quantile(share);
        let micros = time.saturating_sub(Duration::from_nanos(1)).as_secs_f64() * 1e6;
        let last = rows.len() - 1;
        let index = rows
            .iter()
            .position(|row| micros <= row.up_to && row.messages > 0);
        rows[index.unwrap_or(last)].marks.push(name);
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(micros: impl IntoIterator<Item = u64>) {
        let latencies = Latencies::of(micros);
        let rows = rows(&latencies);
        assert!(rows.len() <= ROWS_MAX as usize, "{rows:?}");
        let all: u64 = rows.iter().map(|row| row.messages).sum();
        assert_eq!(all, latencies.len(), "{rows:?}");
        let marks: Vec<&str> = rows.iter().flat_map(|row| row.marks.clone()).collect();
        assert_eq!(marks, ["p50", "p90", "p99", "p99.9", "max"], "{rows:?}");
        let last = figures::time(rows[rows.len() - 1].up_to);
        assert_eq!(last, figures::duration(latencies.max()));
    }

    #[test]
    fn however_latencies_are_spread_they_fit_and_none_is_left_out() {
        assert_eq!(rows(&Latencies::default()), []);
        assert_eq!(rows(&Latencies::of([85; 7])).len(), 1);
        check([85; 7]);
        check(1..=1000);
        check([1, 3_000_000]);
        check((0..200).map(|index| 20 + index * index));
        check((0..2000).map(|index| 1 << (index % 21)));
        for outlier in [86, 99, 200, 5000, 100_000] {
            check((0..1000).map(|_| 85).chain([outlier]));
        }
    }

    #[test]
    fn a_row_has_a_bar_and_the_percentiles_that_lie_there() {
        let latencies = Latencies::of([vec![100; 95], vec![1000; 5]].concat());
        let paint = Paint { colored: false };
        let text = draw(&latencies, paint, 80);
        let lines: Vec<&str> = text.lines().collect();
        let is_first = lines[1].contains("95 %  ███") && lines[1].ends_with("  p50 p90");
        assert!(is_first, "{text}");
        let (last, begin) = (lines[lines.len() - 1], " 1.00 ms          5      5 %  █");
        let is_last = last.starts_with(begin) && last.ends_with("p99 p99.9 max");
        assert!(is_last, "{text}");
    }
}
