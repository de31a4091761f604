//! The median of some values, and how far they spread.

/// What is reported of a number of values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Figure {
    pub(crate) median: f64,
    /// Three quarters of the values are above.
    pub(crate) low: f64,
    /// Three quarters of the values are below.
    pub(crate) high: f64,
}

impl Figure {
    /// None of no values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        // Between two values, in proportion.
        let at = |share: f64| {
            let place = share * last as f64;
            let (below, above) = (
                values[place.floor() as usize],
                values[place.ceil() as usize],
            );
            below + (above - below) * place.fract()
        };
        Some(Self {
            median: at(0.5),
            low: at(0.25),
            high: at(0.75),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_is_its_own_median_and_spread() {
        let figure = Figure::of([3.0]).expect("a value");
        assert_eq!((figure.low, figure.median, figure.high), (3.0, 3.0, 3.0));
        assert_eq!(Figure::of([]), None);
    }

    #[test]
    fn quartiles_lie_between_the_values() {
        let figure = Figure::of([4.0, 1.0, 3.0, 2.0]).expect("values");
        assert_eq!((figure.low, figure.median, figure.high), (1.75, 2.5, 3.25));
    }
}
