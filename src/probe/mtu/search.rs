//! The search for the largest size that passes: near what was told, and else by bisection.
//!
//! Knows numbers only, and never why anything did not pass. What it is told may be wrong: it is
//! tried, not believed.

/// How often somebody is listened to who tells a size. A path may have several narrow links, each
/// narrower than the one before; who tells another size each time is of no help.
const HINTS_MAX: u32 = 8;

/// The largest size that passes is not less than `passes`, and less than `fails`.
#[derive(Clone, Debug)]
pub(super) struct Search {
    passes: usize,
    fails: Option<usize>,
    /// The largest that there is any sense in trying.
    most: usize,
    /// What to try, as near as the bounds allow, and by how much more if that passes.
    aim: Option<(usize, usize)>,
    hints_left: u32,
    /// What was told last: the same word twice is no news.
    heard: Option<usize>,
}

impl Search {
    /// Of what is known to pass, up to the largest that makes sense.
    pub(super) fn new(passes: usize, most: usize) -> Self {
        Self {
            passes,
            fails: None,
            most: most.max(passes),
            aim: None,
            hints_left: HINTS_MAX,
            heard: None,
        }
    }

    /// The largest that is known to pass.
    pub(super) fn passes(&self) -> usize {
        self.passes
    }

    /// The least that is known not to.
    pub(super) fn fails(&self) -> Option<usize> {
        self.fails
    }

    /// Whether it is not known of this one that it fails or passes.
    pub(super) fn is_news(&self, size: usize) -> bool {
        size > self.passes && self.fails.is_none_or(|fails| size < fails)
    }

    /// What is to be tried: all from the first to the second may still be the limit.
    pub(super) fn open(&self) -> Option<(usize, usize)> {
        let low = self.passes + 1;
        let high = self.fails.map_or(self.most, |fails| fails - 1);
        (low <= high).then_some((low, high))
    }

    /// The size to try next; none: the limit is known.
    pub(super) fn next(&self) -> Option<usize> {
        let (low, high) = self.open()?;
        Some(match (self.aim, self.fails) {
            (Some((aim, _)), _) => aim.clamp(low, high),
            // Nothing on most paths is in the way of more than our own interface takes.
            (None, None) => high,
            (None, Some(_)) => low + (high - low) / 2,
        })
    }

    /// This one passes. If it is the one that was told, the limit is not far above it: steps that
    /// double find it in as many tries as its distance has digits.
    pub(super) fn passed(&mut self, size: usize) {
        self.passes = self.passes.max(size);
        self.most = self.most.max(size);
        self.fails = self.fails.filter(|fails| *fails > size);
        if let Some((aim, step)) = self.aim
            && size >= aim
        {
            self.aim = Some((size + step, 2 * step));
        }
    }

    /// This one does not, and perhaps somebody told which would.
    pub(super) fn failed(&mut self, size: usize, told: Option<usize>) {
        debug_assert!(size > self.passes, "it is one that was open");
        self.fails = Some(self.fails.map_or(size, |fails| fails.min(size)));
        self.aim = None;
        let is_news = told != self.heard && self.hints_left > 0;
        if let Some(told) = told.filter(|told| *told < size && is_news) {
            self.hints_left -= 1;
            self.heard = Some(told);
            self.aim = Some((told, 1));
        }
    }

    /// There is no sense in trying more than this.
    pub(super) fn limit(&mut self, most: usize) {
        self.most = self.most.min(most).max(self.passes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 65_507;

    /// Searches for a limit on a path that tells something of each size that does not pass. Returns
    /// what was found, and in how many tries.
    fn search(limit: usize, tell: impl Fn(usize) -> Option<usize>) -> (usize, usize) {
        let mut search = Search::new(0, MOST);
        let mut tries = 0;
        while let Some(size) = search.next() {
            let before = search.open().expect("it is not over");
            assert!((before.0..=before.1).contains(&size), "{size}: {search:?}");
            tries += 1;
            if size <= limit {
                search.passed(size);
            } else {
                search.failed(size, tell(size));
            }
            let after = search.open().map_or(0, |(low, high)| high - low + 1);
            assert!(after <= before.1 - before.0, "progress: {search:?}");
        }
        (search.passes(), tries)
    }

    #[test]
    fn any_limit_is_found_in_as_many_tries_as_its_number_has_digits() {
        for limit in 0..=MOST {
            let (found, tries) = search(limit, |_| None);
            assert_eq!(found, limit);
            assert!(tries <= 17, "{limit}: {tries}");
        }
    }

    #[test]
    fn a_limit_that_is_told_is_found_at_once() {
        for limit in [0, 40, 1372, 1472, 8972, MOST - 1] {
            let (found, tries) = search(limit, |_| Some(limit));
            assert_eq!(found, limit);
            assert!(tries <= 3, "{limit}: {tries}");
        }
        assert_eq!(search(MOST, |_| unreachable!()), (MOST, 1));
    }

    #[test]
    fn one_that_is_told_a_little_too_low_or_too_high_is_found_soon() {
        for limit in (0..=MOST).step_by(7) {
            for away in 0..8 {
                let (found, tries) = search(limit, |_| Some(limit.saturating_sub(away)));
                assert_eq!(found, limit);
                assert!(tries <= 12, "{limit}, {away}: {tries}");
            }
            let (found, tries) = search(limit, |_| Some(limit + 9));
            assert_eq!(found, limit);
            assert!(tries <= 34, "{limit}: {tries}");
        }
    }

    #[test]
    fn whoever_lies_costs_time_and_changes_nothing() {
        for limit in (0..=MOST).step_by(11) {
            for lie in [0, 1, 68, 1280, 40_000, MOST, usize::MAX] {
                let (found, tries) = search(limit, |_| Some(lie));
                assert_eq!(found, limit);
                assert!(tries <= 50, "{limit}, {lie}: {tries}");
            }
            // Of each size that the next smaller one would pass.
            let (found, tries) = search(limit, |size| Some(size - 1));
            assert_eq!(found, limit);
            assert!(tries <= 50, "{limit}: {tries}");
        }
    }

    #[test]
    fn what_passes_after_all_was_lost_before() {
        let mut search = Search::new(0, 100);
        search.failed(50, None);
        search.passed(60);
        assert_eq!((search.passes(), search.fails()), (60, None));
        assert_eq!(search.open(), Some((61, 100)));
    }

    #[test]
    fn more_than_makes_sense_is_not_tried() {
        let mut search = Search::new(32, MOST);
        search.limit(1472);
        assert_eq!(search.next(), Some(1472));
        search.passed(1472);
        assert_eq!((search.next(), search.fails()), (None, None));
        search.limit(100);
        assert_eq!(search.passes(), 1472, "what has passed, passes");
    }
}
