//! The search for how long a silence is survived: twice as long each time, and once one is not, by
//! halves between the two.
//!
//! Knows lengths of time and never a clock.

use std::time::Duration;

/// Nobody measures more exactly than this.
const RESOLUTION_MIN: Duration = Duration::from_millis(1);

/// The limit is not less than what was survived, and less than what was not.
#[derive(Clone, Debug)]
pub(super) struct Search {
    from: Duration,
    to: Duration,
    resolution: Option<Duration>,
    survived: Option<Duration>,
    failed: Option<Duration>,
    /// It was seen to end by itself just then: the limit is not far below.
    witnessed: bool,
}

impl Search {
    /// From the first silence to the longest, as exact as this, or a tenth of the limit.
    pub(super) fn new(from: Duration, to: Duration, resolution: Option<Duration>) -> Self {
        Self {
            from,
            to,
            resolution,
            survived: None,
            failed: None,
            witnessed: false,
        }
    }

    /// The longest silence that was survived.
    pub(super) fn survived(&self) -> Option<Duration> {
        self.survived
    }

    /// The shortest that was not.
    pub(super) fn failed(&self) -> Option<Duration> {
        self.failed
    }

    /// The silence to try next; none: the limit is known as exactly as was wanted.
    pub(super) fn next(&self) -> Option<Duration> {
        let Some(failed) = self.failed else {
            return match self.survived {
                None => Some(self.from.min(self.to)),
                Some(survived) if survived >= self.to => None,
                Some(survived) => Some((survived * 2).min(self.to)),
            };
        };
        let survived = self.survived.unwrap_or_default();
        let gap = failed.saturating_sub(survived);
        let wanted = self.resolution.unwrap_or(failed / 10).max(RESOLUTION_MIN);
        match () {
            () if gap <= wanted => None,
            () if self.witnessed => Some(failed - wanted),
            () => Some(survived + gap / 2),
        }
    }

    /// A flow survived so long a silence.
    pub(super) fn handle_survival(&mut self, silence: Duration) {
        self.survived = self.survived.max(Some(silence));
        self.witnessed = false;
    }

    /// A flow did not, or was seen to end after so long.
    pub(super) fn handle_end(&mut self, silence: Duration, witnessed: bool) {
        self.failed = Some(self.failed.map_or(silence, |failed| failed.min(silence)));
        self.witnessed = witnessed;
    }

    /// How long all the silences are together, at most, and how many there are then.
    pub(super) fn longest(&self) -> (Duration, u32) {
        let mut search = self.clone();
        let (mut total, mut count) = (Duration::ZERO, 0);
        while let Some(silence) = search.next() {
            total += silence;
            count += 1;
            if silence < search.to {
                search.handle_survival(silence);
            } else {
                search.handle_end(silence, false);
            }
        }
        (total, count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// Searches on a path that forgets a flow after so long, and perhaps says so at once. Returns
    /// the search, how long it was silent in all, and how often.
    fn search(mut search: Search, limit: Duration, witnessed: bool) -> (Search, Duration, u32) {
        let (mut total, mut count) = (Duration::ZERO, 0);
        while let Some(silence) = search.next() {
            assert!(silence <= search.to, "{search:?}");
            assert!(search.survived.is_none_or(|survived| silence > survived));
            assert!(search.failed.is_none_or(|failed| silence < failed));
            total += silence.min(if witnessed { limit } else { Duration::MAX });
            count += 1;
            match (silence < limit, witnessed) {
                (true, _) => search.handle_survival(silence),
                (false, false) => search.handle_end(silence, false),
                (false, true) => search.handle_end(limit, true),
            }
            assert!(count < 50, "it ends: {search:?}");
        }
        (search, total, count)
    }

    fn hours(resolution: Option<Duration>) -> Search {
        Search::new(15 * SECOND, 7200 * SECOND, resolution)
    }

    #[test]
    fn a_limit_of_any_length_is_found_to_a_tenth() {
        for limit in (1..7200).map(|seconds| seconds * SECOND) {
            let (found, total, count) = search(hours(None), limit, false);
            let (survived, failed) = (found.survived.unwrap_or_default(), found.failed);
            let failed = failed.expect("a limit");
            assert!(survived < limit && limit <= failed, "{found:?}");
            assert!(failed - survived <= failed / 10, "{found:?}");
            let longest = hours(None).longest();
            assert!(
                total <= longest.0 && count <= longest.1,
                "{limit:?}: {total:?}"
            );
        }
    }

    #[test]
    fn and_as_exactly_as_one_wants() {
        for limit in (1..7200).step_by(7).map(|seconds| seconds * SECOND) {
            let (found, total, _) = search(hours(Some(SECOND)), limit, false);
            let survived = found.survived.unwrap_or_default();
            let failed = found.failed.expect("a limit");
            assert!(survived < limit && limit <= failed, "{found:?}");
            assert!(failed - survived <= SECOND, "{found:?}");
            assert!(total <= hours(Some(SECOND)).longest().0);
        }
    }

    #[test]
    fn an_end_that_is_seen_is_found_with_one_try_more() {
        let (found, _, count) = search(hours(None), 600 * SECOND, true);
        assert_eq!(found.survived, Some(540 * SECOND));
        assert_eq!(found.failed, Some(600 * SECOND));
        // 15, 30, 60, 120, 240, 480, 960, and that one.
        assert_eq!(count, 8);
    }

    #[test]
    fn whatever_survives_the_longest_has_no_limit() {
        let (found, total, count) = search(hours(None), 7201 * SECOND, false);
        assert_eq!((found.survived, found.failed), (Some(7200 * SECOND), None));
        // 15 s to 3840 s, and 7200 s at the end.
        assert_eq!((total, count), ((7680 - 15) * SECOND + 7200 * SECOND, 10));
    }

    #[test]
    fn one_that_survives_nothing_is_told_so_too() {
        let (found, _, _) = search(hours(None), Duration::ZERO, false);
        assert_eq!(
            (
                found.survived,
                found.failed.map(|failed| failed <= RESOLUTION_MIN)
            ),
            (None, Some(true))
        );
        let (found, _, count) = search(hours(None), Duration::ZERO, true);
        assert_eq!(
            (found.survived, found.failed, count),
            (None, Some(Duration::ZERO), 1)
        );
    }

    #[test]
    fn the_longest_is_no_longer_than_was_said() {
        let one = Search::new(SECOND, SECOND, Some(SECOND));
        assert_eq!(one.longest(), (SECOND, 1));
        let more = Search::new(millis(100), millis(800), Some(millis(100)));
        // 100, 200, 400, 800; then 600 and 700.
        assert_eq!(more.longest(), (millis(2800), 6));
    }

    #[test]
    fn a_path_that_contradicts_itself_ends_the_search() {
        let mut search = hours(None);
        search.handle_survival(60 * SECOND);
        search.handle_end(40 * SECOND, true);
        assert_eq!(search.next(), None);
    }
}
