//! What was sent against what comes back, while it flows: the first difference, too much, too
//! little.
//!
//! Knows bytes and never a connection. Holds only what is on the way.

use std::collections::VecDeque;
use std::fmt;

use crate::probe::args::Expect;

/// So much may be on the way.
pub(super) const WINDOW_BYTES_MAX: usize = 16 << 20;

/// A stream of bytes, and what comes back of it.
#[derive(Debug)]
pub(super) struct Comparison {
    expect: Expect,
    /// What is still to come back, as it is expected; nothing any more after the first difference.
    window: VecDeque<u8>,
    sent: u64,
    came: u64,
    difference: Option<Difference>,
}

/// A byte that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Difference {
    /// Of so many before it each was right.
    pub(super) offset: u64,
    /// What it should be; none: so many were not sent.
    pub(super) expected: Option<u8>,
    /// What it is.
    pub(super) came: u8,
}

impl Comparison {
    pub(super) fn new(expect: Expect) -> Self {
        Self {
            expect,
            window: VecDeque::new(),
            sent: 0,
            came: 0,
            difference: None,
        }
    }

    /// How much more may be sent now.
    pub(super) fn room(&self) -> usize {
        match self.compares() {
            true => WINDOW_BYTES_MAX - self.window.len(),
            false => WINDOW_BYTES_MAX,
        }
    }

    /// Whether what comes is looked at: it is, up to the first difference.
    fn compares(&self) -> bool {
        self.expect != Expect::Any && self.difference.is_none()
    }

    /// These are about to be sent; there has to be room.
    pub(super) fn handle_sent(&mut self, bytes: &[u8]) {
        self.sent += bytes.len() as u64;
        if !self.compares() {
            return;
        }
        let before = self.window.len();
        self.window.extend(bytes);
        if self.expect == Expect::Upper {
            let new = self.window.range_mut(before..);
            new.for_each(|byte| byte.make_ascii_uppercase());
        }
        debug_assert!(self.window.len() <= WINDOW_BYTES_MAX, "there was room");
    }

    /// The last so many could not be sent.
    pub(super) fn handle_unsent(&mut self, count: usize) {
        self.sent -= count as u64;
        self.window
            .truncate(self.window.len().saturating_sub(count));
    }

    /// These have come back.
    pub(super) fn handle_received(&mut self, bytes: &[u8]) {
        if self.compares() {
            self.difference = self.compare(bytes);
            match self.difference {
                None => drop(self.window.drain(..bytes.len())),
                Some(_) => self.window = VecDeque::new(),
            }
        }
        self.came += bytes.len() as u64;
    }

    fn compare(&self, bytes: &[u8]) -> Option<Difference> {
        let (front, back) = self.window.as_slices();
        let in_front = front.len().min(bytes.len());
        let in_back = back.len().min(bytes.len() - in_front);
        let (first, rest) = bytes.split_at(in_front);
        let (second, too_much) = rest.split_at(in_back);
        let found = first_difference(&front[..in_front], first)
            .or_else(|| Some(in_front + first_difference(&back[..in_back], second)?))
            .or_else(|| Some(bytes.len() - too_much.len()).filter(|_| !too_much.is_empty()))?;
        Some(Difference {
            offset: self.came + found as u64,
            expected: self.window.get(found).copied(),
            came: bytes[found],
        })
    }

    /// Bytes that were sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Bytes that came back, right or wrong.
    pub(super) fn came(&self) -> u64 {
        self.came
    }

    /// Bytes that came back right.
    pub(super) fn right(&self) -> u64 {
        self.difference.map_or(self.came, |found| found.offset)
    }

    /// The first that came back wrong.
    pub(super) fn difference(&self) -> Option<Difference> {
        self.difference
    }

    /// Whether as much has to come back as was sent.
    pub(super) fn is_exact(&self) -> bool {
        self.expect != Expect::Any
    }

    /// Bytes that are still to come; not known where anything may.
    pub(super) fn owed(&self) -> u64 {
        match self.is_exact() {
            true => self.sent.saturating_sub(self.came),
            false => 0,
        }
    }
}

/// Where two pieces of one length differ.
fn first_difference(expected: &[u8], came: &[u8]) -> Option<usize> {
    // The comparison as a whole is many times faster, and mostly all there is to do.
    if expected == came {
        return None;
    }
    expected
        .iter()
        .zip(came)
        .position(|(one, other)| one != other)
}

/// How a datagram differs from what was expected; none: not at all.
pub(super) fn describe_difference(expected: &[u8], came: &[u8], len: usize) -> Option<String> {
    if len != expected.len() {
        let (sent, of) = (
            expected.len(),
            crate::cli::text::counted(len as u64, "byte"),
        );
        return Some(format!("{of} came back instead of {sent}"));
    }
    let offset = first_difference(expected, came)?;
    let difference = Difference {
        offset: offset as u64,
        expected: Some(expected[offset]),
        came: came[offset],
    };
    Some(difference.to_string())
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let came = name_of(self.came);
        write!(f, "byte {}: {came} came back ", self.offset)?;
        match self.expected {
            Some(expected) => write!(f, "instead of {}", name_of(expected)),
            None => f.write_str("and nothing was sent"),
        }
    }
}

/// `0x61 'a'`
fn name_of(byte: u8) -> String {
    match byte {
        b' '..=b'~' => format!("0x{byte:02x} '{}'", char::from(byte)),
        _ => format!("0x{byte:02x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comparison(expect: Expect, sent: &[u8]) -> Comparison {
        let mut comparison = Comparison::new(expect);
        comparison.handle_sent(sent);
        comparison
    }

    fn check(expect: Expect, sent: &str, pieces: &[&str], right: u64, shown: &str) {
        let mut comparison = comparison(expect, sent.as_bytes());
        for piece in pieces {
            comparison.handle_received(piece.as_bytes());
        }
        let difference = comparison.difference();
        let said = difference.map(|found| found.to_string());
        assert_eq!(said.unwrap_or_default(), shown, "{sent} {pieces:?}");
        assert_eq!(comparison.right(), right, "{sent} {pieces:?}");
    }

    #[test]
    fn the_first_difference_is_found_wherever_pieces_begin_and_end() {
        check(Expect::Echo, "hello", &["he", "llo"], 5, "");
        check(Expect::Echo, "hello", &["he"], 2, "");
        let shown = "byte 3: 0x4c 'L' came back instead of 0x6c 'l'";
        check(Expect::Echo, "hello", &["helLo"], 3, shown);
        check(Expect::Echo, "hello", &["hel", "LO", "more"], 3, shown);
        let shown = "byte 5: 0x0a came back and nothing was sent";
        check(Expect::Echo, "hello", &["hello\n"], 5, shown);
        check(Expect::Upper, "hello, ä", &["HELLO, ", "ä"], 9, "");
        let shown = "byte 0: 0x68 'h' came back instead of 0x48 'H'";
        check(Expect::Upper, "hello", &["hello"], 0, shown);
        check(Expect::Any, "hello", &["what", "ever"], 8, "");
    }

    #[test]
    fn it_holds_only_what_is_on_the_way() {
        let mut comparison = Comparison::new(Expect::Echo);
        let piece: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        // The window goes around in its memory, so that pieces lie across its end.
        for _ in 0..50 {
            assert_eq!(comparison.room(), WINDOW_BYTES_MAX);
            comparison.handle_sent(&piece);
            comparison.handle_sent(&piece[..1000]);
            assert_eq!(comparison.room(), WINDOW_BYTES_MAX - (1 << 20) - 1000);
            comparison.handle_received(&piece[..1000]);
            comparison.handle_received(&piece[1000..]);
            comparison.handle_received(&piece[..1000]);
        }
        assert_eq!(comparison.difference(), None);
        assert_eq!(comparison.right(), 50 * ((1 << 20) + 1000));
        assert_eq!(comparison.owed(), 0);
    }

    #[test]
    fn a_full_window_has_no_room_until_something_comes_back() {
        let mut comparison = comparison(Expect::Echo, &vec![7; WINDOW_BYTES_MAX]);
        assert_eq!(comparison.room(), 0);
        comparison.handle_received(&[7; 10]);
        assert_eq!(
            (comparison.room(), comparison.owed()),
            (10, (16 << 20) - 10)
        );
        // There is nothing to hold any more.
        comparison.handle_received(&[8]);
        assert_eq!(comparison.room(), WINDOW_BYTES_MAX);
        assert_eq!((comparison.right(), comparison.came()), (10, 11));
    }

    #[test]
    fn what_could_not_be_sent_is_not_owed() {
        let mut comparison = comparison(Expect::Echo, b"hello");
        comparison.handle_unsent(2);
        assert_eq!((comparison.sent(), comparison.owed()), (3, 3));
        comparison.handle_received(b"hell");
        assert_eq!(comparison.difference().map(|found| found.offset), Some(3));
    }

    #[test]
    fn datagrams_differ_in_size_or_in_a_byte() {
        let shown = |came: &[u8]| describe_difference(b"hello", came, came.len());
        assert_eq!(shown(b"hello"), None);
        assert_eq!(
            shown(b"hallo").as_deref(),
            Some("byte 1: 0x61 'a' came back instead of 0x65 'e'")
        );
        assert_eq!(
            shown(b"h").as_deref(),
            Some("1 byte came back instead of 5")
        );
    }
}
