//! A list that is shown again and again: what changed between two looks, and how the screen is drawn
//! anew.
//!
//! Knows counters, times and lines; never what is counted.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::cli::text::counted;

/// Bytes received and sent per second since the look before, by the name of what is counted.
#[derive(Debug, Default)]
pub struct Rates {
    at: Option<Instant>,
    counts: BTreeMap<String, [u64; 2]>,
    rates: BTreeMap<String, [u64; 2]>,
}

impl Rates {
    /// Takes what is counted now. What was not there at the look before has no rate yet, and one
    /// whose counters began anew has none either.
    pub fn update(&mut self, now: Instant, counts: impl IntoIterator<Item = (String, [u64; 2])>) {
        let counts: BTreeMap<_, _> = counts.into_iter().collect();
        self.rates.clear();
        let elapsed = self.at.map(|at| now.saturating_duration_since(at));
        if let Some(milliseconds) = elapsed.map(|elapsed| elapsed.as_millis().max(1)) {
            let rate = |new: u64, old: u64| {
                let per_second = u128::from(new.checked_sub(old)?) * 1000 / milliseconds;
                Some(u64::try_from(per_second).unwrap_or(u64::MAX))
            };
            for (name, new) in &counts {
                if let Some(old) = self.counts.get(name)
                    && let (Some(received), Some(sent)) =
                        (rate(new[0], old[0]), rate(new[1], old[1]))
                {
                    self.rates.insert(name.clone(), [received, sent]);
                }
            }
        }
        self.at = Some(now);
        self.counts = counts;
    }

    /// Received and sent, in bytes per second.
    #[must_use]
    pub fn of(&self, name: &str) -> Option<[u64; 2]> {
        self.rates.get(name).copied()
    }
}

/// What draws a text in the place of the one before, on a terminal of `height` lines: as many of its
/// lines as there is room for, and how many there are besides. The last line, which has the totals,
/// is always there.
#[must_use]
pub fn redraw(text: &str, height: usize) -> String {
    // From the top; each line clears what was behind it, and the end what was below.
    let mut drawn = String::from("\x1b[H");
    let mut lines: Vec<&str> = text.lines().collect();
    let last = lines.pop().unwrap_or_default();
    // One for the totals, and one for the cursor.
    let room = height.saturating_sub(2);
    let cut = lines.len() > room;
    let shown = if cut {
        room.saturating_sub(1)
    } else {
        lines.len()
    };
    for line in &lines[..shown] {
        drawn += line;
        drawn += "\x1b[K\n";
    }
    if cut {
        let more = counted((lines.len() - shown) as u64, "more line");
        drawn += &format!("… {more}\x1b[K\n");
    }
    drawn + last + "\x1b[K\n\x1b[J"
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_rate_is_what_was_counted_since_the_look_before() {
        let start = Instant::now();
        let mut rates = Rates::default();
        let count = |name: &str, received, sent| (name.to_owned(), [received, sent]);
        rates.update(start, [count("a", 1000, 500), count("b", 7, 7)]);
        assert_eq!(rates.of("a"), None);
        let later = start + Duration::from_millis(2000);
        rates.update(
            later,
            [count("a", 5000, 500), count("b", 3, 7), count("c", 9, 9)],
        );
        assert_eq!(rates.of("a"), Some([2000, 0]));
        assert_eq!(rates.of("b"), None, "its counters began anew");
        assert_eq!(rates.of("c"), None, "it is new");
        rates.update(later, [count("a", 6000, 500)]);
        assert_eq!(rates.of("a"), Some([1_000_000, 0]), "no division by zero");
    }

    fn lines_drawn(text: &str, height: usize) -> Vec<String> {
        let drawn = redraw(text, height);
        let drawn = drawn.strip_prefix("\x1b[H").expect("it begins at the top");
        let drawn = drawn
            .strip_suffix("\x1b[J")
            .expect("what is below is cleared");
        let lines = drawn.lines().map(|line| line.strip_suffix("\x1b[K"));
        lines
            .map(|line| line.expect("a cleared line").to_owned())
            .collect()
    }

    #[test]
    fn a_screen_is_never_scrolled_and_keeps_the_totals() {
        let text = "NAME\n1\n2\n3\n4\n5\n5 peers\n";
        assert_eq!(lines_drawn(text, 24), text.lines().collect::<Vec<_>>());
        assert_eq!(lines_drawn(text, 8).len(), 7);
        assert_eq!(
            lines_drawn(text, 7),
            ["NAME", "1", "2", "3", "… 2 more lines", "5 peers"]
        );
        for height in 3..10 {
            assert!(lines_drawn(text, height).len() < height, "{height}");
        }
        assert_eq!(lines_drawn("0 peers\n", 24), ["0 peers"]);
    }
}
