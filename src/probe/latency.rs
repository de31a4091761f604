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

/// The figures of many times, by their names; microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread(pub [(&'static str, f64); 8]);

impl Serialize for Spread {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0)
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

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.histogram.is_empty()
    }

    /// The longest; zero if there are none.
    pub(crate) fn max(&self) -> Duration {
        self.max
    }

    /// The time that this share of them does not exceed: 0.5 is the median.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let value = self.histogram.value_at_quantile(share);
        // The middle of what the histogram does not distinguish is nearest to the time itself.
        let value = self.histogram.median_equivalent(value);
        Duration::from_nanos(value).clamp(self.min.min(self.max), self.max)
    }

    /// All of them, to be drawn; nanoseconds.
    pub(crate) fn histogram(&self) -> &Histogram<u64> {
        &self.histogram
    }

    /// The figures; none where there are no times.
    pub(crate) fn spread(&self) -> Option<Spread> {
        if self.is_empty() {
            return None;
        }
        let at = |share| microseconds(self.quantile(share).as_secs_f64());
        Some(Spread([
            ("min", microseconds(self.min.as_secs_f64())),
            ("p50", at(0.5)),
            ("p90", at(0.9)),
            ("p99", at(0.99)),
            ("p999", at(0.999)),
            ("max", microseconds(self.max.as_secs_f64())),
            ("mean", microseconds(self.histogram.mean() / 1e9)),
            ("stddev", microseconds(self.histogram.stdev() / 1e9)),
        ]))
    }
}

/// Seconds as microseconds, with as many digits as mean something.
fn microseconds(seconds: f64) -> f64 {
    (seconds * 1e7).round() / 10.0
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
        (self.count > 0).then(|| microseconds(self.seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_exact_ends_and_three_digits_of_the_middle() {
        let mut latencies = Latencies::default();
        assert_eq!(latencies.spread(), None);
        for millis in 1..=1000 {
            latencies.record(Duration::from_millis(millis));
        }
        let spread = latencies.spread().expect("there are some").0;
        let meant = [1.0, 500.0, 900.0, 990.0, 999.0, 1000.0, 500.5, 288.675];
        assert_eq!((spread[0].1, spread[5].1), (1000.0, 1_000_000.0));
        for ((name, micros), millis) in spread.into_iter().zip(meant) {
            let is_near = (micros / 1e3 - millis).abs() <= millis / 1e3;
            assert!(is_near, "{name}: {micros}");
        }
    }

    #[test]
    fn no_quantile_is_beyond_the_longest() {
        let mut latencies = Latencies::default();
        latencies.record(Duration::from_nanos(1_234_567));
        let spread = latencies.spread().expect("one").0;
        assert_eq!([1, 4, 5].map(|index: usize| spread[index].1), [1234.6; 3]);
    }

    #[test]
    fn sums_are_of_all_however_long() {
        let (mut one, mut other) = (Latencies::default(), Latencies::default());
        one.record(Duration::from_secs(10_000));
        other.record(Duration::from_millis(1));
        one.merge(&other);
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
