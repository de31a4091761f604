//! What came of a load, for programs: the fields that all commands have in common, and those of a
//! load.
//!
//! The names of the fields are fixed; fields may be added.

use serde::Serialize;

use super::header::Header;
use super::measured::Measured;
use crate::probe::cause::Causes;
use crate::probe::latency::Latencies;
use crate::probe::report::{Report, milliseconds};

/// One measurement, or all of them together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Figures {
    /// Messages a second that were due; absent: each followed the one before.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<u64>,
    #[serde(flatten)]
    report: Report,
    /// Messages a second that came back.
    throughput: f64,
    /// How much of its processors the client used, up to 1; of several, the most.
    busy: f64,
    /// Each of several rates, in the order that they were measured in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    steps: Vec<Self>,
}

/// One object: a single measurement as it is, or the totals of several with each of them.
#[must_use]
pub(super) fn report(header: &Header, all: &[Measured]) -> Figures {
    if let [one] = all {
        return figures(header, one);
    }
    let mut figures_of_all = figures(header, &total(all));
    // A distribution over several loads means nothing.
    figures_of_all.report.rtt_us = None;
    figures_of_all.steps = all.iter().map(|one| figures(header, one)).collect();
    figures_of_all
}

fn figures(header: &Header, measured: &Measured) -> Figures {
    let of_datagrams = |count| (!header.target.is_stream()).then_some(count);
    let pause = measured.longest_pause;
    Figures {
        rate: measured.rate,
        throughput: rounded(measured.throughput(), 10.0),
        busy: rounded(measured.busy, 1000.0),
        report: Report {
            sent: Some(measured.sent),
            messages: Some(measured.messages),
            bytes: Some(measured.bytes),
            lost: Some(measured.lost),
            late: of_datagrams(measured.late),
            duplicates: of_datagrams(measured.duplicates),
            corrupt: Some(measured.corrupt),
            duration_ms: Some(milliseconds(measured.duration)),
            rtt_us: measured.latencies.spread(),
            pause_us: (!pause.is_zero()).then(|| milliseconds(pause * 1000)),
            errors: measured.errors.clone(),
            ..Report::default()
        },
        steps: Vec::new(),
    }
}

fn rounded(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

fn total(all: &[Measured]) -> Measured {
    let sum = |field: fn(&Measured) -> u64| all.iter().map(field).sum();
    let mut errors = Causes::default();
    for one in all {
        errors.merge(&one.errors);
    }
    Measured {
        rate: None,
        duration: all.iter().map(|one| one.duration).sum(),
        sent: sum(|one| one.sent),
        messages: sum(|one| one.messages),
        bytes: sum(|one| one.bytes),
        finished: sum(|one| one.finished),
        lost: sum(|one| one.lost),
        late: sum(|one| one.late),
        duplicates: sum(|one| one.duplicates),
        corrupt: sum(|one| one.corrupt),
        latencies: Latencies::default(),
        errors,
        longest_pause: all
            .iter()
            .map(|one| one.longest_pause)
            .max()
            .unwrap_or_default(),
        busy: all.iter().map(|one| one.busy).fold(0.0, f64::max),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expect_test::{Expect, expect};

    use super::super::sample;
    use super::*;
    use crate::probe::cause::Cause;

    fn check(header: &Header, all: &[Measured], expect: &Expect) {
        let json = serde_json::to_string_pretty(&report(header, all)).expect("numbers");
        expect.assert_eq(&json);
    }

    #[test]
    fn a_single_measurement_is_one_flat_object() {
        let measured = sample::measured(sample::equal(7, Duration::from_millis(1)));
        check(
            &sample::header(),
            &[measured],
            &expect![[r#"
            {
              "sent": 7,
              "lost": 0,
              "corrupt": 0,
              "messages": 7,
              "bytes": 448,
              "duration_ms": 10000.0,
              "rtt_us": {
                "min": 1000.0,
                "p50": 1000.0,
                "p90": 1000.0,
                "p99": 1000.0,
                "p999": 1000.0,
                "max": 1000.0,
                "mean": 1000.2,
                "stddev": 0.0
              },
              "errors": {},
              "throughput": 0.7,
              "busy": 0.4
            }"#]],
        );
    }

    #[test]
    fn several_rates_are_steps_beside_their_totals() {
        let header = Header {
            target: "udp://[::1]:7".parse().expect("a URL"),
            ..sample::header()
        };
        let mut one = sample::measured(sample::equal(7, Duration::from_millis(1)));
        one.rate = Some(1);
        one.errors.add(Cause::Refused, 2);
        let other = Measured {
            rate: Some(2),
            lost: 3,
            longest_pause: Duration::from_micros(1500),
            ..one.clone()
        };
        check(
            &header,
            &[one, other],
            &expect![[r#"
            {
              "sent": 14,
              "lost": 3,
              "late": 0,
              "duplicates": 0,
              "corrupt": 0,
              "messages": 14,
              "bytes": 896,
              "duration_ms": 20000.0,
              "pause_us": 1500.0,
              "errors": {
                "refused": 4
              },
              "throughput": 0.7,
              "busy": 0.4,
              "steps": [
                {
                  "rate": 1,
                  "sent": 7,
                  "lost": 0,
                  "late": 0,
                  "duplicates": 0,
                  "corrupt": 0,
                  "messages": 7,
                  "bytes": 448,
                  "duration_ms": 10000.0,
                  "rtt_us": {
                    "min": 1000.0,
                    "p50": 1000.0,
                    "p90": 1000.0,
                    "p99": 1000.0,
                    "p999": 1000.0,
                    "max": 1000.0,
                    "mean": 1000.2,
                    "stddev": 0.0
                  },
                  "errors": {
                    "refused": 2
                  },
                  "throughput": 0.7,
                  "busy": 0.4
                },
                {
                  "rate": 2,
                  "sent": 7,
                  "lost": 3,
                  "late": 0,
                  "duplicates": 0,
                  "corrupt": 0,
                  "messages": 7,
                  "bytes": 448,
                  "duration_ms": 10000.0,
                  "rtt_us": {
                    "min": 1000.0,
                    "p50": 1000.0,
                    "p90": 1000.0,
                    "p99": 1000.0,
                    "p999": 1000.0,
                    "max": 1000.0,
                    "mean": 1000.2,
                    "stddev": 0.0
                  },
                  "pause_us": 1500.0,
                  "errors": {
                    "refused": 2
                  },
                  "throughput": 0.7,
                  "busy": 0.4
                }
              ]
            }"#]],
        );
    }

    #[test]
    fn nothing_is_no_reason_for_what_is_no_number() {
        let json = serde_json::to_string(&report(&sample::header(), &[])).expect("numbers");
        assert!(!json.contains("null"), "{json}");
    }
}
