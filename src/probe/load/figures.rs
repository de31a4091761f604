//! Figures as people read them: three digits and a unit.
//!
//! Knows numbers only.

/// A time, given in microseconds: `850 ns`, `41.2 µs`, `1.25 ms`, `12.0 s`.
#[must_use]
pub(super) fn time(microseconds: f64) -> String {
    let (value, unit) = in_unit(microseconds);
    format!("{} {unit}", three_digits(value))
}

/// A round time, as it stands at an axis: `50 µs`, `1.5 ms`.
#[must_use]
pub(super) fn round_time(microseconds: f64) -> String {
    let (value, unit) = in_unit(microseconds);
    format!("{} {unit}", without_zeros(value))
}

/// How many, where a glance is to be enough: `850`, `12.4k`, `1.20M`.
#[must_use]
pub(super) fn count(number: f64) -> String {
    let (value, unit) = in_thousands(number);
    if unit.is_empty() {
        return format!("{value:.0}");
    }
    format!("{}{unit}", three_digits(value))
}

/// A round number, as it stands at an axis: `0`, `500`, `20k`, `1.5M`.
#[must_use]
pub(super) fn round_count(number: f64) -> String {
    let (value, unit) = in_thousands(number);
    format!("{}{unit}", without_zeros(value))
}

/// A part of all: `12.3 %`. What is there is never said to be nothing.
#[must_use]
pub(super) fn share(part: f64) -> String {
    let percent = part * 100.0;
    if percent > 0.0 && percent < 0.05 {
        return "<0.1 %".to_owned();
    }
    format!("{percent:.1} %")
}

fn in_unit(microseconds: f64) -> (f64, &'static str) {
    // What would be rounded to 1000 is one of the next unit.
    match microseconds {
        _ if microseconds == 0.0 => (0.0, "µs"),
        _ if microseconds < 0.999_5 => (microseconds * 1e3, "ns"),
        _ if microseconds < 999.5 => (microseconds, "µs"),
        _ if microseconds < 999_500.0 => (microseconds / 1e3, "ms"),
        _ => (microseconds / 1e6, "s"),
    }
}

fn in_thousands(number: f64) -> (f64, &'static str) {
    match number {
        _ if number < 999.5 => (number, ""),
        _ if number < 999_500.0 => (number / 1e3, "k"),
        _ if number < 999.5e6 => (number / 1e6, "M"),
        _ => (number / 1e9, "G"),
    }
}

fn three_digits(value: f64) -> String {
    match value {
        _ if value == 0.0 => "0".to_owned(),
        _ if value < 9.995 => format!("{value:.2}"),
        _ if value < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn without_zeros(value: f64) -> String {
    let digits = format!("{value:.3}");
    let digits = digits.trim_end_matches('0');
    digits.trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_a_unit() {
        let shown = [0.0, 0.85, 1.0, 41.23, 999.6, 1254.0, 60e6].map(time);
        assert_eq!(
            shown,
            [
                "0 µs", "850 ns", "1.00 µs", "41.2 µs", "1.00 ms", "1.25 ms", "60.0 s"
            ]
        );
        let round = [0.5, 50.0, 1000.0, 1500.0, 2e6].map(round_time);
        assert_eq!(round, ["500 ns", "50 µs", "1 ms", "1.5 ms", "2 s"]);
    }

    #[test]
    fn counts_are_short_and_shares_never_hide_what_is_there() {
        let shown = [0.0, 850.4, 12_391.0, 1_204_312.0, 3e9].map(count);
        assert_eq!(shown, ["0", "850", "12.4k", "1.20M", "3.00G"]);
        let round = [0.0, 500.0, 20_000.0, 1.5e6].map(round_count);
        assert_eq!(round, ["0", "500", "20k", "1.5M"]);
        let shares = [0.0, 0.000_001, 0.1234, 1.0].map(share);
        assert_eq!(shares, ["0.0 %", "<0.1 %", "12.3 %", "100.0 %"]);
    }
}
