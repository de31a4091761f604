//! Latency by load in a terminal: a row for each rate, from p50 to the longest, on one scale.
//!
//! Knows measurements and never how they came about.

use super::axis::Axis;
use super::figures;
use super::histogram::PERCENTILES;
use super::measured::Measured;
use crate::cli::text::Paint;

/// How far each fill reaches, from p50 on.
const FILLS: [(&str, &str); 4] = [("█", "p90"), ("▓", "p99"), ("░", "p99.9"), ("·", "max")];

/// The scale is between these.
const WIDTH_MIN: usize = 20;
const WIDTH_MAX: usize = 80;

/// At most one tick to so many characters: its label and a gap.
const TICK_WIDTH: usize = 12;

/// The curve, each line ended; empty where nothing came back.
#[must_use]
pub(super) fn draw(all: &[Measured], paint: Paint, width: usize) -> String {
    let spreads = || all.iter().filter_map(|one| one.latencies.spread());
    if spreads().next().is_none() {
        return String::new();
    }
    let low = spreads().map(|spread| spread.p50).fold(f64::MAX, f64::min);
    let high = spreads().map(|spread| spread.max).fold(0.0, f64::max);
    let low = low.max(1e-3);
    let names: Vec<String> = all.iter().map(rate).collect();
    let name_width = names.iter().map(String::len).max().unwrap_or(0).max(4);
    let room = width
        .saturating_sub(name_width + 2)
        .clamp(WIDTH_MIN, WIDTH_MAX);
    let values = (low / 1.05, high.max(low * 1.5) * 1.05);
    let axis = Axis::logarithmic(values, (0.0, (room - 1) as f64));

    let mut text = paint.bold(&format!("{:>name_width$}  {}", "RATE", scale(&axis, room)));
    text.push('\n');
    for (one, name) in all.iter().zip(&names) {
        let line = format!("{name:>name_width$}  {}", bar(one, &axis, paint));
        text += line.trim_end();
        text.push('\n');
    }
    let legend = FILLS.map(|(fill, name)| format!("{fill} to {name}"));
    text + &format!("{:name_width$}  p50 {}\n", "", legend.join("  "))
}

fn rate(measured: &Measured) -> String {
    let rate = measured.rate.map(|rate| rate.to_string());
    rate.unwrap_or_else(|| format!("{:.0}", measured.throughput()))
}

/// The labels, each beginning where its value lies.
fn scale(axis: &Axis, width: usize) -> String {
    let mut line = String::new();
    let mut end = 0;
    for value in axis.ticks(width / TICK_WIDTH) {
        let label = format!("╷{}", figures::round_time(value));
        let place = axis.place(value).round() as usize;
        let length = label.chars().count();
        if place < end || place + length > width {
            continue;
        }
        line += &" ".repeat(place - line.chars().count());
        line += &label;
        end = place + length + 1;
    }
    line
}

fn bar(measured: &Measured, axis: &Axis, paint: Paint) -> String {
    if measured.latencies.is_empty() {
        return paint.red("nothing came back");
    }
    let place = |share| {
        let time = measured.latencies.quantile(share).as_secs_f64() * 1e6;
        axis.place(time).round() as usize
    };
    let mut end = place(0.5);
    let mut line = " ".repeat(end);
    for ((fill, _), (_, share)) in FILLS.iter().zip(&PERCENTILES[1..]) {
        let least = usize::from(*fill == "█");
        let length = (place(*share) + 1).saturating_sub(end).max(least);
        let piece = fill.repeat(length);
        line += &match *fill {
            "█" => paint.green(&piece),
            "▓" => paint.yellow(&piece),
            _ => piece,
        };
        end += length;
    }
    line
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::super::sample;
    use super::*;

    #[test]
    fn each_rate_has_its_row_on_one_scale() {
        let text = draw(&sample::curve(6), Paint { colored: false }, 72);
        expect![[r#"
             RATE         ╷100 µs         ╷1 ms           ╷10 ms           ╷100 ms
             1000  ████▓▓░░··
             2000     █████▓▓▓░░··
             4000       ██████▓▓▓░░░···
             8000         ██████▓▓▓▓▓░░░···
            16000                          ████████▓▓▓▓▓░░░░····
            32000                                            ████████▓▓▓▓▓▓░░░░░····
                   p50 █ to p90  ▓ to p99  ░ to p99.9  · to max
        "#]]
        .assert_eq(&text);
        assert!(
            text.lines().all(|line| line.chars().count() <= 72),
            "{text}"
        );
    }

    #[test]
    fn what_did_not_come_back_is_said_and_all_alike_is_a_picture() {
        let some = sample::measured(sample::equal(10, std::time::Duration::from_millis(1)));
        let none = Measured {
            rate: Some(5),
            ..Measured::default()
        };
        assert_eq!(
            draw(std::slice::from_ref(&none), Paint { colored: false }, 60),
            ""
        );
        let text = draw(&[some, none], Paint { colored: false }, 60);
        expect![[r#"
            RATE       ╷1 ms              ╷1.2 ms          ╷1.4 ms
               1       █
               5  nothing came back
                  p50 █ to p90  ▓ to p99  ░ to p99.9  · to max
        "#]]
        .assert_eq(&text);
    }
}
