//! A list that is shown again and again: what changed between two looks, and how the screen is drawn
//! anew.
//!
//! Knows counters, times and lines; never what is counted.

use std::collections::BTreeMap;
use std::time::Instant;

use unicode_width::UnicodeWidthStr;

use crate::cli::table::shortened;

/// A list as text, its lines ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct List {
    /// A header and a line for each row.
    pub table: String,
    /// What is below.
    pub footer: String,
}

impl List {
    /// All of it.
    #[must_use]
    pub(crate) fn whole(self) -> String {
        self.table + &self.footer
    }
}

/// Bytes received and sent per second since the look before, by the name of what is counted.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    at: Option<Instant>,
    counts: BTreeMap<String, [u64; 2]>,
    rates: BTreeMap<String, [u64; 2]>,
}

impl Rates {
    /// Takes what is counted now. What was not there at the look before has no rate yet, and one
    /// whose counters began anew has none either.
    pub(crate) fn update(
        &mut self,
        now: Instant,
        counts: impl IntoIterator<Item = (String, [u64; 2])>,
    ) {
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
    pub(crate) fn of(&self, name: &str) -> Option<[u64; 2]> {
        self.rates.get(name).copied()
    }
}

/// What draws a list in the place of the one before, on a terminal of this width and height: as many
/// of its lines as there is room for, and how many rows there are besides. The footer is always
/// there.
#[must_use]
pub(crate) fn redraw(list: &List, (width, height): (usize, usize)) -> String {
    let mut lines: Vec<&str> = list.table.lines().collect();
    let footer: Vec<&str> = list.footer.lines().collect();
    // One is for the cursor.
    let room = height.saturating_sub(footer.len() + 1);
    let mut more = None;
    if lines.len() > room {
        let shown = room.saturating_sub(1);
        more = Some(format!("… {} more", lines.len() - shown));
        lines.truncate(shown);
    }
    // From the top. Each line is cleared before it is written, since one as wide as the terminal
    // leaves the cursor on its last character; the end clears what was below.
    let mut drawn = String::from("\x1b[H");
    for line in lines.into_iter().chain(more.as_deref()).chain(footer) {
        drawn += "\x1b[K";
        drawn += &clip(line, width);
        drawn.push('\n');
    }
    drawn + "\x1b[J"
}

/// As much of a line as fits into the width, where sequences that set colors take no room.
fn clip(line: &str, width: usize) -> String {
    let Some(sequence) = line.find('\x1b') else {
        return shortened(line, width);
    };
    // Only whole lines are colored: `ESC [ … m` before the text and behind it.
    let (before, rest) = line.split_at(sequence);
    let start = rest.find('m').map_or(rest.len(), |end| end + 1);
    let (color, rest) = rest.split_at(start);
    let end = rest.find('\x1b').unwrap_or(rest.len());
    let (text, reset) = rest.split_at(end);
    before.to_owned() + color + &shortened(text, width.saturating_sub(before.width())) + reset
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

    fn list(rows: usize) -> List {
        let rows = (0..rows).map(|row| format!("row {row}\n"));
        List {
            table: "NAME\n".to_owned() + &rows.collect::<String>(),
            footer: "5 peers\n2 more columns: --wide\n".to_owned(),
        }
    }

    fn lines_drawn(list: &List, size: (usize, usize)) -> Vec<String> {
        let drawn = redraw(list, size);
        let drawn = drawn.strip_prefix("\x1b[H").expect("it begins at the top");
        let drawn = drawn
            .strip_suffix("\x1b[J")
            .expect("what is below is cleared");
        let lines = drawn.lines().map(|line| line.strip_prefix("\x1b[K"));
        let lines = lines.map(|line| line.expect("it is cleared first").to_owned());
        lines.collect()
    }

    #[test]
    fn a_screen_is_never_scrolled_and_keeps_the_footer() {
        assert_eq!(lines_drawn(&list(5), (80, 24)).len(), 8);
        assert_eq!(lines_drawn(&list(5), (80, 9)).len(), 8);
        assert_eq!(
            lines_drawn(&list(5), (80, 8)),
            [
                "NAME",
                "row 0",
                "row 1",
                "row 2",
                "… 2 more",
                "5 peers",
                "2 more columns: --wide"
            ]
        );
        for height in 4..12 {
            assert!(
                lines_drawn(&list(5), (80, height)).len() < height,
                "{height}"
            );
        }
        let empty = List {
            table: String::new(),
            footer: "0 peers\n".to_owned(),
        };
        assert_eq!(lines_drawn(&empty, (80, 24)), ["0 peers"]);
    }

    /// A line that the terminal broke in two took a row more than was counted, so that the screen
    /// scrolled.
    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let wide = List {
            table: "\x1b[1mNAME  ADDRESS\x1b[0m\nmain  127.0.0.1:7\n".to_owned(),
            footer: "1 listener, 0 connections\n".to_owned(),
        };
        assert_eq!(
            lines_drawn(&wide, (10, 24)),
            ["\x1b[1mNAME  ADD…\x1b[0m", "main  127…", "1 listene…"]
        );
    }
}
