//! What came of a load, for people: figures and a histogram, or, where there were several rates, a
//! table and a curve.
//!
//! Makes text of what was measured, and never prints it.

use super::curve;
use super::doubts;
use super::figures;
use super::header::Header;
use super::histogram;
use super::measured::Measured;
use crate::cli::text::{self, Align, Paint, Table};

/// All of it, each line ended.
#[must_use]
pub(super) fn summary(header: &Header, all: &[Measured], paint: Paint, width: usize) -> String {
    let head = format!("{}: {}\n\n", paint.bold(&header.service()), header.way());
    let body = match all {
        [] => return head,
        [one] => single(header, one, paint, width),
        several => {
            let curve = curve::draw(several, paint, width);
            let gap = if curve.is_empty() { "" } else { "\n" };
            table(several).render(paint) + gap + &curve
        }
    };
    head + &body
}

/// Of one measurement: figures, percentiles, histogram.
fn single(header: &Header, measured: &Measured, paint: Paint, width: usize) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| text += &format!("{name:<10}  {value}\n");
    line("answered", &messages(measured));
    line("throughput", &throughput(measured));
    for (name, count) in flaws(header, measured) {
        let value = of_all(count, measured.sent);
        line(name, &if count > 0 { paint.red(&value) } else { value });
    }
    if !measured.errors.is_empty() {
        line(
            "errors",
            &paint.red(&text::escape(&measured.errors.to_string())),
        );
    }
    if measured.latencies.is_empty() {
        return text;
    }
    let percentiles = percentiles(measured).render(paint);
    let histogram = histogram::draw(&measured.latencies, paint, width);
    text + &format!("\n{percentiles}\n{histogram}")
}

/// How many, of which size together, in which time.
#[must_use]
pub(super) fn messages(measured: &Measured) -> String {
    format!(
        "{} in {}, {}",
        text::counted(measured.messages, "message"),
        figures::time(measured.duration.as_secs_f64() * 1e6),
        text::bytes(measured.bytes)
    )
}

/// How many a second, and how many were asked for.
#[must_use]
pub(super) fn throughput(measured: &Measured) -> String {
    let asked = measured.rate.map(|rate| format!(" of {rate}"));
    format!(
        "{}{} messages/s, {}/s",
        per_second(measured.throughput()),
        asked.unwrap_or_default(),
        text::bytes(bytes_per_second(measured))
    )
}

/// What came back otherwise than it should, each kind that there can be.
#[must_use]
pub(super) fn flaws(header: &Header, measured: &Measured) -> Vec<(&'static str, u64)> {
    let mut flaws = vec![("lost", measured.lost)];
    if !header.target.is_stream() {
        flaws.push(("late", measured.late));
        flaws.push(("duplicates", measured.duplicates));
    }
    flaws.push(("corrupt", measured.corrupt));
    flaws
}

fn of_all(count: u64, all: u64) -> String {
    if count == 0 {
        return "0".to_owned();
    }
    let share = figures::share(count as f64 / all.max(1) as f64);
    format!("{count} of {all} ({share})")
}

/// Whole ones, where there are enough of them.
fn per_second(throughput: f64) -> String {
    if throughput > 0.0 && throughput < 100.0 {
        return format!("{throughput:.1}");
    }
    format!("{throughput:.0}")
}

fn bytes_per_second(measured: &Measured) -> u64 {
    (measured.bytes as f64 / measured.duration.as_secs_f64().max(1e-9)) as u64
}

const RIGHT: Align = Align::Right;

fn percentiles(measured: &Measured) -> Table {
    let mut table = Table::new(&[
        ("MIN", RIGHT),
        ("P50", RIGHT),
        ("P90", RIGHT),
        ("P99", RIGHT),
        ("P99.9", RIGHT),
        ("MAX", RIGHT),
        ("MEAN", RIGHT),
        ("STDDEV", RIGHT),
    ]);
    if let Some(spread) = measured.latencies.spread() {
        let times = [
            spread.min,
            spread.p50,
            spread.p90,
            spread.p99,
            spread.p999,
            spread.max,
            spread.mean,
            spread.stddev,
        ];
        table.row(times.map(figures::time).to_vec());
    }
    table
}

/// A row for each rate.
fn table(all: &[Measured]) -> Table {
    let mut table = Table::new(&[
        ("RATE", RIGHT),
        ("ACHIEVED", RIGHT),
        ("BYTES/S", RIGHT),
        ("P50", RIGHT),
        ("P90", RIGHT),
        ("P99", RIGHT),
        ("P99.9", RIGHT),
        ("MAX", RIGHT),
        ("LOST", RIGHT),
        ("LATE", RIGHT),
        ("DUPLICATES", RIGHT),
        ("CORRUPT", RIGHT),
        ("ERRORS", Align::Left),
        ("NOTE", Align::Left),
    ]);
    for measured in all {
        table.row(row(measured));
    }
    table
}

fn row(measured: &Measured) -> Vec<String> {
    let mut cells = vec![
        measured
            .rate
            .map(|rate| rate.to_string())
            .unwrap_or_default(),
        per_second(measured.throughput()),
        text::bytes(bytes_per_second(measured)),
    ];
    cells.extend(match measured.latencies.spread() {
        Some(spread) => {
            [spread.p50, spread.p90, spread.p99, spread.p999, spread.max].map(figures::time)
        }
        None => Default::default(),
    });
    let Measured {
        lost,
        late,
        duplicates,
        corrupt,
        ..
    } = *measured;
    cells.extend([lost, late, duplicates, corrupt].map(some));
    cells.push(text::escape(&measured.errors.to_string()));
    let notes: Vec<String> = doubts::of(measured)
        .into_iter()
        .map(doubts::Doubt::note)
        .collect();
    cells.push(notes.join(", "));
    cells
}

/// Nothing where there is none, so that the column is left out.
fn some(count: u64) -> String {
    if count == 0 {
        return String::new();
    }
    count.to_string()
}

#[cfg(test)]
mod tests {
    use std::slice;
    use std::time::Duration;

    use expect_test::{Expect, expect};

    use super::super::sample;
    use super::*;
    use crate::probe::cause::Cause;

    fn check(header: &Header, all: &[Measured], expect: &Expect) {
        expect.assert_eq(&summary(header, all, Paint { colored: false }, 80));
    }

    #[test]
    fn one_measurement_is_figures_percentiles_and_a_histogram() {
        let latencies = sample::latencies(100_000, Duration::from_micros(85), 0.4);
        check(
            &sample::header(),
            &[sample::measured(latencies)],
            &expect![[r#"
                tcp://127.0.0.1:7007: 50 connections, closed loop, depth 4, 64 B, 1 thread, io_uring

                answered    100000 messages in 10.0 s, 6.1 MiB
                throughput  10000 messages/s, 625.0 KiB/s
                lost        0
                corrupt     0

                    MIN      P50     P90     P99   P99.9     MAX     MEAN   STDDEV
                15.2 µs  84.9 µs  142 µs  214 µs  292 µs  591 µs  92.0 µs  38.3 µs

                   FROM  MESSAGES    SHARE
                14.3 µs         1   <0.1 %  ▏
                  17 µs         8   <0.1 %  ▏
                20.3 µs        82    0.1 %  ▎
                24.2 µs       256    0.3 %  ▋
                28.9 µs       855    0.9 %  ██▎
                34.6 µs      2326    2.3 %  ██████▏
                41.2 µs      5046    5.0 %  █████████████▏
                49.2 µs      9137    9.1 %  ███████████████████████▉
                58.8 µs     13831   13.8 %  ████████████████████████████████████▏
                70.2 µs     17126   17.1 %  ████████████████████████████████████████████▊
                83.8 µs     17237   17.2 %  █████████████████████████████████████████████  p50
                 100 µs     14015   14.0 %  ████████████████████████████████████▋
                 119 µs     10435   10.4 %  ███████████████████████████▎                   p90
                 143 µs      5474    5.5 %  ██████████████▎
                 170 µs      2681    2.7 %  ███████
                 203 µs      1056    1.1 %  ██▊                                            p99
                 242 µs       324    0.3 %  ▉
                 289 µs        89    0.1 %  ▎                                              p99.9
                 346 µs        21   <0.1 %  ▏                                              max
            "#]],
        );
    }

    #[test]
    fn datagrams_tell_what_became_of_each() {
        let header = Header {
            target: "udp://192.0.2.1:7".parse().expect("a URL"),
            depth: None,
            ..sample::header()
        };
        let mut measured = sample::measured(sample::equal(3, Duration::from_micros(85)));
        measured.rate = Some(1000);
        measured.sent = 1000;
        (measured.lost, measured.late, measured.corrupt) = (990, 6, 1);
        measured.errors.add(Cause::Refused, 2);
        check(
            &header,
            &[measured],
            &expect![[r#"
            udp://192.0.2.1:7: 50 flows, open loop, 64 B, 1 thread, io_uring

            answered    3 messages in 10.0 s, 192 B
            throughput  0.3 of 1000 messages/s, 19 B/s
            lost        990 of 1000 (99.0 %)
            late        6 of 1000 (0.6 %)
            duplicates  0
            corrupt     1 of 1000 (0.1 %)
            errors      2 refused

                MIN      P50      P90      P99    P99.9      MAX     MEAN  STDDEV
            85.0 µs  85.0 µs  85.0 µs  85.0 µs  85.0 µs  85.0 µs  85.0 µs    0 µs

             FROM  MESSAGES    SHARE
            85 µs         3  100.0 %  ███████████████████████████████  p50 p90 p99 p99.9 max
        "#]],
        );
    }

    #[test]
    fn several_rates_are_a_table_and_a_curve() {
        let mut all = sample::curve(4);
        all[3].lost = 12;
        all[3].busy = 0.99;
        let header = Header {
            depth: None,
            ..sample::header()
        };
        check(
            &header,
            &all,
            &expect![[r#"
            tcp://127.0.0.1:7007: 50 connections, open loop, 64 B, 1 thread, io_uring

            RATE  ACHIEVED    BYTES/S      P50      P90      P99    P99.9      MAX  LOST  NOTE
            1000      1000   62.5 KiB  39.9 µs  58.4 µs  79.4 µs   103 µs   127 µs     -  -
            2000      2000  125.0 KiB  59.7 µs  99.4 µs   150 µs   213 µs   281 µs     -  -
            4000      4000  250.0 KiB   796 µs  1.50 ms  2.51 ms  3.89 ms  5.51 ms     -  -
            8000      4000  250.0 KiB  9.94 ms  21.3 ms  39.4 ms  66.7 ms   101 ms    12  can't keep up, client 99 % busy

            RATE           ╷100 µs              ╷1 ms                ╷10 ms
            1000  █████▓▓▓░░··
            2000      ██████▓▓▓▓░░░··
            4000                              ███████▓▓▓▓▓░░░░···
            8000                                                     ████████▓▓▓▓▓▓░░░░░····
                  p50 █ to p90  ▓ to p99  ░ to p99.9  · to max
        "#]],
        );
    }

    #[test]
    fn nothing_at_all_is_told_too() {
        let nothing = Measured {
            duration: Duration::from_secs(1),
            sent: 10,
            ..Measured::default()
        };
        check(
            &sample::header(),
            slice::from_ref(&nothing),
            &expect![[r#"
                tcp://127.0.0.1:7007: 50 connections, closed loop, depth 4, 64 B, 1 thread, io_uring

                answered    0 messages in 1.00 s, 0 B
                throughput  0 messages/s, 0 B/s
                lost        0
                corrupt     0
            "#]],
        );
        check(
            &sample::header(),
            &[nothing.clone(), nothing],
            &expect![[r#"
            tcp://127.0.0.1:7007: 50 connections, closed loop, depth 4, 64 B, 1 thread, io_uring

            ACHIEVED  BYTES/S
                   0      0 B
                   0      0 B
        "#]],
        );
    }
}
