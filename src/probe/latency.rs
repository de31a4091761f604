//! Times, many of them: their distribution, and how much they vary from one to the next.
//!
//! Knows durations and never where they come from.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Serialize, Serializer};

/// A longer time is kept as this.
const LONGEST: Duration = Duration::from_secs(3600);

/// The digits that are kept of each time.
const DIGITS: u8 = 3;

/// Times, counted in nanoseconds, with three digits of each.
#[derive(Clone, Debug)]
pub(crate) struct Latencies {
    histogram: Histogram<u64>,
    // What the histogram rounds.
    min: Duration,
    max: Duration,
}

/// The figures of many times, by their names; microseconds, for programs with one digit behind the
/// point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread(pub [(&'static str, f64); 8]);

impl Serialize for Spread {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.map(|(name, micros)| (name, rounded(micros))))
    }
}

impl Default for Latencies {
    fn default() -> Self {
        let longest = u64::try_from(LONGEST.as_nanos()).expect("an hour is short");
        let histogram = Histogram::new_with_bounds(1, longest, DIGITS);
        Self {
            histogram: histogram.expect("the bounds are in order"),
            min: Duration::MAX,
            max: Duration::ZERO,
        }
    }
}

impl Latencies {
    /// These times, in microseconds.
    #[cfg(test)]
    pub(crate) fn of(micros: impl IntoIterator<Item = u64>) -> Self {
        let mut latencies = Self::default();
        let times = micros.into_iter().map(Duration::from_micros);
        times.for_each(|time| latencies.record(time));
        latencies
    }

    /// Adds a time.
    pub(crate) fn record(&mut self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1);
        self.histogram.saturating_record(nanoseconds);
        self.min = self.min.min(time);
        self.max = self.max.max(time);
    }

    /// Adds others.
    pub(crate) fn merge(&mut self, others: &Self) {
        self.histogram += &others.histogram;
        self.min = self.min.min(others.min);
        self.max = self.max.max(others.max);
    }

    /// The number of times.
    pub(crate) fn len(&self) -> u64 {
        self.histogram.len()
    }

    /// The longest; zero if there are none.
    pub(crate) fn max(&self) -> Duration {
        self.max
    }

    /// The time that this share of them does not exceed: 0.5 is the median.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let value = self.histogram.value_at_quantile(share);
        let is_as = |time: Duration| self.histogram.equivalent(value, time.as_nanos() as u64);
        match () {
            // What the histogram does not distinguish from the longest or the shortest is shown as
            // that, so that one time never has two figures.
            () if is_as(self.max) => self.max,
            () if is_as(self.min) => self.min,
            // The middle of what it does not distinguish is nearest to the time itself.
            () => Duration::from_nanos(self.histogram.median_equivalent(value)),
        }
    }

    /// All of them, to be drawn; nanoseconds.
    pub(crate) fn histogram(&self) -> &Histogram<u64> {
        &self.histogram
    }

    /// The figures; none where there are no times.
    pub(crate) fn spread(&self) -> Option<Spread> {
        if self.len() == 0 {
            return None;
        }
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let at = |share| micros(self.quantile(share));
        Some(Spread([
            ("min", micros(self.min)),
            ("p50", at(0.5)),
            ("p90", at(0.9)),
            ("p99", at(0.99)),
            ("p999", at(0.999)),
            ("max", micros(self.max)),
            ("mean", self.histogram.mean() / 1e3),
            ("stddev", self.histogram.stdev() / 1e3),
        ]))
    }
}

/// Microseconds with as many digits as mean something.
fn rounded(micros: f64) -> f64 {
    (micros * 10.0).round() / 10.0
}

/// How much times vary from one to the next: the interarrival jitter of RFC 3550, section 6.4.1,
/// over round trips, which need no clock of another host.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Jitter {
    before: Option<Duration>,
    seconds: f64,
    count: u64,
}

impl Jitter {
    /// Adds the next time, in the order of arrival.
    pub(crate) fn record(&mut self, time: Duration) {
        if let Some(before) = self.before.replace(time) {
            let difference = time.abs_diff(before).as_secs_f64();
            self.seconds += (difference - self.seconds) / 16.0;
            self.count += 1;
        }
    }

    /// In microseconds; none of fewer than two times.
    pub(crate) fn microseconds(&self) -> Option<f64> {
        (self.count > 0).then(|| rounded(self.seconds * 1e6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_exact_ends_and_three_digits_of_the_middle() {
        assert_eq!(Latencies::default().spread(), None);
        let latencies = Latencies::of((1..=1000).map(|millis| millis * 1000));
        let spread = latencies.spread().expect("there are some").0;
        let meant = [1.0, 500.0, 900.0, 990.0, 999.0, 1000.0, 500.5, 288.675];
        assert_eq!((spread[0].1, spread[5].1), (1000.0, 1_000_000.0));
        for ((name, micros), millis) in spread.into_iter().zip(meant) {
            let is_near = (micros / 1e3 - millis).abs() <= millis / 1e3;
            assert!(is_near, "{name}: {micros}");
        }
    }

    /// The largest was 7.52 ms, and 99.9 % were below 7.51 ms.
    #[test]
    fn no_quantile_is_beyond_the_longest_nor_another_figure_for_it() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.quantile(0.5), Duration::ZERO);
        let times = [120, 130, 7_516_999].map(Duration::from_nanos);
        times.iter().for_each(|time| latencies.record(*time));
        let shown = [0.0, 0.1, 0.5, 0.9, 0.999].map(|share| latencies.quantile(share));
        let [least, middle, longest] = times;
        assert_eq!(shown, [least, least, middle, longest, longest]);
    }

    #[test]
    fn sums_are_of_all_however_long() {
        let mut one = Latencies::of([10_000_000_000]);
        one.merge(&Latencies::of([1000]));
        assert_eq!((one.len(), one.max()), (2, Duration::from_secs(10_000)));
        assert_eq!(one.spread().expect("two").0[0], ("min", 1000.0));
    }

    #[test]
    fn jitter_is_that_of_the_rfc() {
        let mut jitter = Jitter::default();
        jitter.record(Duration::from_micros(100));
        assert_eq!(jitter.microseconds(), None);
        // J = 0 + (16 - 0) / 16 = 1, then 1 + (|0| - 1) / 16 = 0.9375, rounded to 0.9.
        jitter.record(Duration::from_micros(116));
        assert_eq!(jitter.microseconds(), Some(1.0));
        jitter.record(Duration::from_micros(116));
        assert_eq!(jitter.microseconds(), Some(0.9));
    }
}
