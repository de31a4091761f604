//! Where values lie along a line, and which of them to write at it.
//!
//! Knows numbers only; what they measure and what the line is drawn with is up to others.

/// A line from one place to another along which values grow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    start: f64,
    end: f64,
    logarithmic: bool,
}

impl Axis {
    /// Equal ratios are equally far apart. The values are above 0.
    #[must_use]
    pub(super) fn logarithmic(values: (f64, f64), places: (f64, f64)) -> Self {
        debug_assert!(0.0 < values.0 && values.0 < values.1, "{values:?}");
        Self {
            low: values.0,
            high: values.1,
            start: places.0,
            end: places.1,
            logarithmic: true,
        }
    }

    /// Equal differences are equally far apart.
    #[must_use]
    pub(super) fn linear(values: (f64, f64), places: (f64, f64)) -> Self {
        debug_assert!(values.0 < values.1, "{values:?}");
        Self {
            low: values.0,
            high: values.1,
            start: places.0,
            end: places.1,
            logarithmic: false,
        }
    }

    /// Where a value lies; what is beyond an end lies at that end.
    #[must_use]
    pub(super) fn place(&self, value: f64) -> f64 {
        let value = value.clamp(self.low, self.high);
        let share = if self.logarithmic {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.start + share * (self.end - self.start)
    }

    /// By which factor values grow along so much of a logarithmic one.
    #[must_use]
    pub(super) fn growth(&self, length: f64) -> f64 {
        debug_assert!(self.logarithmic, "differences have no factor");
        (self.high / self.low).powf(length / (self.end - self.start))
    }

    /// Round values to write at it, so many at most, in order.
    #[must_use]
    pub(super) fn ticks(&self, most: usize) -> Vec<f64> {
        if !self.logarithmic {
            return self.even(most);
        }
        let choices = [&[1.0, 2.0, 5.0][..], &[1.0]];
        let ticks = choices.map(|digits| self.decades(digits, 1));
        let fitting = ticks.into_iter().find(|ticks| ticks.len() <= most);
        match fitting {
            // Within less than a decade equal steps are rounder.
            Some(few) if few.len() < 3 && self.high / self.low < 10.0 => self.even_and_apart(most),
            Some(ticks) => ticks,
            None => self.sparse(most),
        }
    }

    /// Multiples of one round step.
    fn even(&self, most: usize) -> Vec<f64> {
        let length = self.high - self.low;
        let ticks = self.multiples(length / most as f64);
        if ticks.len() <= most {
            return ticks;
        }
        // Both ends are round: there is one gap less than there are ticks.
        let mut fewer = self.multiples(length / (most - 1).max(1) as f64);
        fewer.truncate(most);
        fewer
    }

    /// Multiples of a round step that is at least so long.
    fn multiples(&self, least: f64) -> Vec<f64> {
        let step = round_up(least);
        let first = (self.low / step).ceil() as i64;
        (first..)
            .map(|index| index as f64 * step)
            .take_while(|value| *value <= self.high * (1.0 + 1e-9))
            .collect()
    }

    /// The same as far apart as so many would be: towards the end of a logarithmic line they draw
    /// together.
    fn even_and_apart(&self, most: usize) -> Vec<f64> {
        let gap = (self.end - self.start).abs() / most as f64;
        let are_apart = |ticks: &Vec<f64>| {
            let mut pairs = ticks.windows(2);
            pairs.all(|pair| (self.place(pair[1]) - self.place(pair[0])).abs() >= gap)
        };
        let mut choices = (1..=most).rev().map(|fewer| self.even(fewer));
        choices.find(are_apart).unwrap_or_default()
    }

    /// These digits of each decade, or of each so many-th.
    fn decades(&self, digits: &[f64], every: i32) -> Vec<f64> {
        let first = self.low.log10().floor() as i32;
        let last = self.high.log10().ceil() as i32;
        let decades = (first..=last).filter(|decade| decade % every == 0);
        decades
            .flat_map(|decade| digits.iter().map(move |digit| digit * 10_f64.powi(decade)))
            .filter(|value| (self.low..=self.high).contains(value))
            .collect()
    }

    /// Powers of ten with gaps.
    fn sparse(&self, most: usize) -> Vec<f64> {
        let ticks = (2..20).map(|every| self.decades(&[1.0], every));
        ticks
            .into_iter()
            .find(|ticks| ticks.len() <= most)
            .unwrap_or_default()
    }
}

/// The same or the next of 1, 2, 5, 10, 20, 50 and so on.
pub(super) fn round_up(value: f64) -> f64 {
    let decade = 10_f64.powf(value.log10().floor());
    let digit = [1.0, 2.0, 5.0]
        .into_iter()
        .find(|digit| value <= digit * decade * (1.0 + 1e-9));
    digit.unwrap_or(10.0) * decade
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(low: f64, high: f64, most: usize) -> Vec<f64> {
        Axis::logarithmic((low, high), (0.0, 1.0)).ticks(most)
    }

    #[test]
    fn ends_and_middles_are_where_they_should_be() {
        let axis = Axis::logarithmic((1.0, 100.0), (0.0, 200.0));
        let places = [0.5, 1.0, 10.0, 100.0, 1000.0].map(|value| axis.place(value));
        assert_eq!(places, [0.0, 0.0, 100.0, 200.0, 200.0]);
        let down = Axis::linear((0.0, 10.0), (100.0, 0.0));
        assert_eq!(
            [0.0, 5.0, 10.0].map(|value| down.place(value)),
            [100.0, 50.0, 0.0]
        );
    }

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(
            ticks(10.0, 1000.0, 8),
            [10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]
        );
        assert_eq!(ticks(10.0, 1000.0, 6), [10.0, 100.0, 1000.0]);
        assert_eq!(ticks(1.0, 1e6, 4), [1.0, 100.0, 10_000.0, 1_000_000.0]);
        assert_eq!(ticks(30.0, 60.0, 5), [30.0, 40.0, 50.0, 60.0]);
        assert_eq!(ticks(99.0, 101.0, 4), [99.0, 100.0, 101.0]);
        let linear = Axis::linear((0.0, 80_000.0), (0.0, 1.0));
        assert_eq!(
            linear.ticks(5),
            [0.0, 20_000.0, 40_000.0, 60_000.0, 80_000.0]
        );
    }

    #[test]
    fn there_are_never_more_ticks_than_fit_and_nearly_always_some() {
        for most in 1..10 {
            for decades in 1..40 {
                let high = 3.0 * 10_f64.powf(f64::from(decades) / 4.0);
                let ticks = ticks(3.0, high, most);
                assert!(ticks.len() <= most, "{high} {most}");
                assert!(ticks.is_sorted(), "{ticks:?}");
            }
        }
    }
}
