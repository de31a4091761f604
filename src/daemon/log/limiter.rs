//! The limit of repeated lines: how many of one class are written in a window of time. The rest is
//! suppressed and counted.
//!
//! Decides only, over lines of any type. Time is an argument, and never earlier than the time before.
//! The cost of a line does not depend on the number of classes.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::time::{Duration, Instant};

/// How many lines of a class are written in a window.
const LINES_MAX: u32 = 100;

/// How long a window is; it begins with the first line.
const WINDOW: Duration = Duration::from_secs(10);

/// Lines of one class repeat each other: they are from one place in the source, about one listener
/// or one caller. A flood at one listener does not hide the lines about another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Class {
    pub module: &'static str,
    pub line: u32,
    pub subject: Option<String>,
}

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict<T> {
    /// It is written, after the report of those that were suppressed before it.
    Admit {
        before: Option<Suppressed<T>>,
        line: T,
    },
    /// It is counted, which may change [`Limiter::poll_timeout`].
    Suppress,
}

/// Lines of one class that are not written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Suppressed<T> {
    pub count: u64,
    pub first: T,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Limiter<T> {
    windows: HashMap<Class, Window<T>>,
    /// When each window ends that has begun, in order, for all are of one length. An end is still here
    /// when another window of the class has begun.
    ends: VecDeque<(Instant, Class)>,
    /// The ends of the windows in which lines were suppressed.
    reports: BinaryHeap<Reverse<Instant>>,
}

#[derive(Debug)]
struct Window<T> {
    ends: Instant,
    admitted: u32,
    suppressed: Option<Suppressed<T>>,
}

impl<T> Window<T> {
    fn new(now: Instant) -> Self {
        Self {
            ends: now + WINDOW,
            admitted: 0,
            suppressed: None,
        }
    }
}

impl<T> Default for Limiter<T> {
    fn default() -> Self {
        Self {
            windows: HashMap::new(),
            ends: VecDeque::new(),
            reports: BinaryHeap::new(),
        }
    }
}

impl<T> Limiter<T> {
    /// Admits a line or suppresses it.
    pub(super) fn handle_line(&mut self, now: Instant, class: Class, line: T) -> Verdict<T> {
        let mut before = None;
        let window = match self.windows.entry(class) {
            Entry::Occupied(window) if now < window.get().ends => window.into_mut(),
            entry => {
                let window = Window::new(now);
                self.ends.push_back((window.ends, entry.key().clone()));
                match entry {
                    // It is over, and its report was not taken yet: it comes before this line.
                    Entry::Occupied(mut ended) => {
                        before = ended.insert(window).suppressed;
                        ended.into_mut()
                    }
                    Entry::Vacant(none) => none.insert(window),
                }
            }
        };
        if window.admitted < LINES_MAX {
            window.admitted += 1;
            return Verdict::Admit { before, line };
        }
        match &mut window.suppressed {
            Some(suppressed) => suppressed.count += 1,
            none => {
                *none = Some(Suppressed {
                    count: 1,
                    first: line,
                });
                self.reports.push(Reverse(window.ends));
            }
        }
        Verdict::Suppress
    }

    /// When to call [`Self::take_ended`] next.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.reports.peek().map(|Reverse(end)| *end)
    }

    /// What was suppressed in the windows that are over.
    pub(super) fn take_ended(&mut self, now: Instant) -> Vec<Suppressed<T>> {
        while self.reports.peek().is_some_and(|Reverse(end)| *end <= now) {
            self.reports.pop();
        }
        let mut ended = Vec::new();
        while let Some((end, _)) = self.ends.front()
            && *end <= now
            && let Some((end, class)) = self.ends.pop_front()
        {
            if let Entry::Occupied(window) = self.windows.entry(class)
                && window.get().ends == end
            {
                ended.extend(window.remove().suppressed);
            }
        }
        ended
    }

    /// What was suppressed and is not reported yet.
    pub(super) fn take_all(&mut self) -> Vec<Suppressed<T>> {
        let windows = self.windows.values_mut();
        windows
            .filter_map(|window| window.suppressed.take())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(line: u32, listener: Option<&str>) -> Class {
        Class {
            module: "echod::worker",
            line,
            subject: listener.map(Into::into),
        }
    }

    /// Lines 1 to `count` of this class at once; how many are admitted.
    fn flood(limiter: &mut Limiter<u32>, now: Instant, class: &Class, count: u32) -> usize {
        let verdicts = (1..=count).map(|n| limiter.handle_line(now, class.clone(), n));
        verdicts
            .filter(|verdict| matches!(verdict, Verdict::Admit { .. }))
            .count()
    }

    #[test]
    fn a_flood_is_cut_short_and_counted_when_its_window_ends() {
        let begin = Instant::now();
        let mut limiter = Limiter::default();
        let class = class(1, None);
        assert_eq!(flood(&mut limiter, begin, &class, LINES_MAX), 100);
        assert_eq!(limiter.poll_timeout(), None);
        for line in [101, 102] {
            let verdict = limiter.handle_line(begin, class.clone(), line);
            assert_eq!(verdict, Verdict::Suppress);
        }
        let end = begin + WINDOW;
        assert_eq!(limiter.poll_timeout(), Some(end));
        assert_eq!(limiter.take_ended(end - Duration::from_nanos(1)), []);
        let suppressed = Suppressed {
            count: 2,
            first: 101,
        };
        assert_eq!(limiter.take_ended(end), [suppressed]);
        assert_eq!(limiter.poll_timeout(), None);
        assert_eq!(limiter.take_all(), []);
    }

    #[test]
    fn the_next_line_after_the_window_follows_the_report_of_the_one_before() {
        let begin = Instant::now();
        let mut limiter = Limiter::default();
        let class = class(1, None);
        flood(&mut limiter, begin, &class, 103);
        let before = Some(Suppressed {
            count: 3,
            first: 101,
        });
        let verdict = limiter.handle_line(begin + WINDOW, class.clone(), 0);
        assert_eq!(verdict, Verdict::Admit { before, line: 0 });
        // It was the first of a new window.
        assert_eq!(limiter.take_ended(begin + WINDOW), []);
        assert_eq!(limiter.poll_timeout(), None);
        assert_eq!(flood(&mut limiter, begin + WINDOW, &class, 200), 99);
        assert_eq!(limiter.poll_timeout(), Some(begin + WINDOW * 2));
    }

    #[test]
    fn classes_do_not_hide_each_other() {
        let now = Instant::now();
        let mut limiter = Limiter::default();
        let (main, other) = (class(1, Some("main")), class(1, Some("other")));
        flood(&mut limiter, now, &main, 200);
        assert_eq!(flood(&mut limiter, now, &other, 50), 50);
        assert_eq!(flood(&mut limiter, now, &class(2, Some("main")), 50), 50);
        let later = now + WINDOW / 2;
        flood(&mut limiter, later, &class(3, None), 101);
        assert_eq!(limiter.poll_timeout(), Some(now + WINDOW));
        assert_eq!(limiter.take_ended(now + WINDOW).len(), 1);
        assert_eq!(limiter.poll_timeout(), Some(later + WINDOW));
    }

    #[test]
    fn at_the_end_all_that_is_suppressed_is_reported_once_and_the_limit_stays() {
        let now = Instant::now();
        let mut limiter = Limiter::default();
        flood(&mut limiter, now, &class(1, None), 150);
        flood(&mut limiter, now, &class(2, None), 170);
        let mut counts: Vec<u64> = limiter.take_all().iter().map(|all| all.count).collect();
        counts.sort_unstable();
        assert_eq!(counts, [50, 70]);
        assert_eq!(limiter.take_all(), []);
        assert_eq!(flood(&mut limiter, now, &class(1, None), 10), 0);
    }

    #[test]
    fn classes_that_fell_silent_are_forgotten() {
        let now = Instant::now();
        let mut limiter: Limiter<u32> = Limiter::default();
        for line in 0..1000 {
            flood(&mut limiter, now, &class(line, None), 1);
        }
        assert_eq!(limiter.take_ended(now + WINDOW), []);
        assert!(limiter.windows.is_empty() && limiter.ends.is_empty());
    }

    /// With a look at each window for each line, under the lock of all threads that log, this takes
    /// most of a minute.
    #[test]
    fn a_line_costs_the_same_however_many_classes_there_are() {
        let begin = Instant::now();
        let mut limiter = Limiter::default();
        for line in 0..100_000 {
            let now = begin + Duration::from_micros(line.into());
            flood(&mut limiter, now, &class(line, None), 1);
            assert_eq!(limiter.take_ended(now), []);
            assert_eq!(limiter.poll_timeout(), None);
        }
        assert_eq!(limiter.windows.len(), 100_000);
    }

    #[test]
    fn a_window_that_follows_another_of_its_class_has_its_own_end() {
        let begin = Instant::now();
        let mut limiter = Limiter::default();
        let class = class(1, None);
        flood(&mut limiter, begin, &class, 101);
        let second = begin + WINDOW * 3 / 2;
        // The writer has not come to take what was suppressed.
        flood(&mut limiter, second, &class, 102);
        assert_eq!(limiter.take_ended(second), []);
        let end = second + WINDOW;
        assert_eq!(limiter.poll_timeout(), Some(end));
        let counts: Vec<u64> = limiter
            .take_ended(end)
            .iter()
            .map(|all| all.count)
            .collect();
        assert_eq!(counts, [2]);
        assert!(limiter.windows.is_empty() && limiter.ends.is_empty());
    }
}
