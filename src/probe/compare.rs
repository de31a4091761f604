//! What came back against what was sent: the first difference, too much, too little.
//!
//! Knows bytes and never a connection. Holds only what is on the way.

use std::collections::VecDeque;
use std::fmt;

use crate::cli::text::counted;

/// What is expected to come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Expect {
    /// The same bytes.
    #[default]
    Echo,
    /// The same with a to z as A to Z.
    Upper,
    /// Whatever it is.
    Any,
}

impl Expect {
    /// What comes back of these bytes.
    pub(crate) fn of(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Upper => bytes.to_ascii_uppercase(),
            Self::Echo | Self::Any => bytes.to_vec(),
        }
    }
}

/// How what came back differs from what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    /// The byte at this offset, all before it being right.
    Byte { offset: u64, expected: u8, came: u8 },
    /// A byte of a stream behind the last one that was sent.
    Excess { sent: u64 },
    /// The length of a message, in bytes.
    Length { expected: usize, came: usize },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Byte {
                offset,
                expected,
                came,
            } => write!(
                f,
                "byte {offset} came back as {} instead of {}",
                name_of(came),
                name_of(expected)
            ),
            Self::Excess { sent } => {
                write!(f, "more came back than the {} sent", counted(sent, "byte"))
            }
            Self::Length { expected, came } => write!(
                f,
                "{} came back instead of {expected}",
                counted(came as u64, "byte")
            ),
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

/// Where two pieces of one length differ.
pub(super) fn first_difference(expected: &[u8], came: &[u8]) -> Option<usize> {
    // The comparison as a whole is many times faster, and mostly all there is to do.
    if expected == came {
        return None;
    }
    let mut pairs = expected.iter().zip(came);
    pairs.position(|(one, other)| one != other)
}

/// How a message of this length differs from the one expected; `came` has the bytes of it for which
/// there was room.
pub(super) fn difference(expected: &[u8], came: &[u8], len: usize) -> Option<Difference> {
    if len != expected.len() {
        return Some(Difference::Length {
            expected: expected.len(),
            came: len,
        });
    }
    let offset = first_difference(expected, came)?;
    Some(Difference::Byte {
        offset: offset as u64,
        expected: expected[offset],
        came: came[offset],
    })
}

/// The most bytes on the way.
const WINDOW_BYTES_MAX: usize = 16 << 20;

/// A stream of bytes, and what comes back of it.
#[derive(Debug)]
pub(super) struct Comparison {
    expect: Expect,
    /// What is still to come back, as it is expected; empty after the first difference.
    window: VecDeque<u8>,
    /// Bytes that were sent, those that came back, and those of them that are right.
    pub(super) sent: u64,
    pub(super) came: u64,
    pub(super) right: u64,
    /// The first difference.
    pub(super) difference: Option<Difference>,
}

impl Comparison {
    pub(super) fn new(expect: Expect) -> Self {
        Self {
            expect,
            window: VecDeque::new(),
            sent: 0,
            came: 0,
            right: 0,
            difference: None,
        }
    }

    /// The bytes for which there is room in the window.
    pub(super) fn room(&self) -> usize {
        WINDOW_BYTES_MAX.saturating_sub(self.window.len())
    }

    /// Whether what comes back is compared: it is, up to the first difference.
    fn compares(&self) -> bool {
        self.is_exact() && self.difference.is_none()
    }

    /// These bytes were sent.
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
    }

    /// These bytes have returned.
    pub(super) fn handle_received(&mut self, bytes: &[u8]) {
        if self.compares() {
            self.difference = self.compare(bytes);
            match self.difference {
                None => drop(self.window.drain(..bytes.len())),
                Some(_) => self.window = VecDeque::new(),
            }
        }
        self.came += bytes.len() as u64;
        if self.difference.is_none() {
            self.right = self.came;
        }
    }

    fn compare(&mut self, bytes: &[u8]) -> Option<Difference> {
        let (front, back) = self.window.as_slices();
        let in_front = front.len().min(bytes.len());
        let in_back = back.len().min(bytes.len() - in_front);
        let (first, rest) = bytes.split_at(in_front);
        let (second, excess) = rest.split_at(in_back);
        let found = first_difference(&front[..in_front], first)
            .or_else(|| Some(in_front + first_difference(&back[..in_back], second)?))
            .or_else(|| (!excess.is_empty()).then_some(in_front + in_back))?;
        self.right = self.came + found as u64;
        Some(match self.window.get(found) {
            Some(expected) => Difference::Byte {
                offset: self.right,
                expected: *expected,
                came: bytes[found],
            },
            None => Difference::Excess { sent: self.sent },
        })
    }

    /// Whether what was sent has to come back.
    pub(super) fn is_exact(&self) -> bool {
        self.expect != Expect::Any
    }

    /// Whether more bytes were received than sent, right or wrong.
    pub(super) fn has_excess(&self) -> bool {
        self.is_exact() && self.came > self.sent
    }

    /// Bytes that are still to come back; none where anything is accepted.
    pub(super) fn missing(&self) -> u64 {
        match self.is_exact() {
            true => self.sent.saturating_sub(self.came),
            false => 0,
        }
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
        let difference = comparison.difference;
        let said = difference.map(|found| found.to_string());
        assert_eq!(said.unwrap_or_default(), shown, "{sent} {pieces:?}");
        assert_eq!(comparison.right, right, "{sent} {pieces:?}");
    }

    #[test]
    fn the_first_difference_is_found_wherever_pieces_begin_and_end() {
        check(Expect::Echo, "hello", &["he", "llo"], 5, "");
        check(Expect::Echo, "hello", &["he"], 2, "");
        let shown = "byte 3 came back as 0x4c 'L' instead of 0x6c 'l'";
        check(Expect::Echo, "hello", &["helLo"], 3, shown);
        check(Expect::Echo, "hello", &["hel", "LO", "more"], 3, shown);
        let shown = "more came back than the 5 bytes sent";
        check(Expect::Echo, "hello", &["hello\n"], 5, shown);
        check(Expect::Upper, "hello, ä", &["HELLO, ", "ä"], 9, "");
        let shown = "byte 0 came back as 0x68 'h' instead of 0x48 'H'";
        check(Expect::Upper, "hello", &["hello"], 0, shown);
        check(Expect::Any, "hello", &["what", "ever"], 8, "");
    }

    /// A flood of wrong bytes was received without end.
    #[test]
    fn an_excess_is_noticed_behind_a_wrong_byte_too() {
        let mut comparison = comparison(Expect::Echo, b"hello");
        comparison.handle_received(b"helLo");
        assert!(!comparison.has_excess());
        comparison.handle_received(b"!");
        assert!(comparison.has_excess());
    }

    #[test]
    fn it_holds_only_what_is_on_the_way() {
        let mut comparison = Comparison::new(Expect::Echo);
        let piece: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        // The window wraps around in its memory, so that pieces lie across its end.
        for _ in 0..50 {
            assert_eq!(comparison.room(), WINDOW_BYTES_MAX);
            comparison.handle_sent(&piece);
            comparison.handle_sent(&piece[..1000]);
            assert_eq!(comparison.room(), WINDOW_BYTES_MAX - (1 << 20) - 1000);
            comparison.handle_received(&piece[..1000]);
            comparison.handle_received(&piece[1000..]);
            comparison.handle_received(&piece[..1000]);
        }
        assert_eq!(comparison.difference, None);
        assert_eq!(comparison.right, 50 * ((1 << 20) + 1000));
        assert_eq!(comparison.missing(), 0);
    }

    #[test]
    fn a_full_window_has_no_room_until_something_comes_back() {
        let mut comparison = comparison(Expect::Echo, &vec![7; WINDOW_BYTES_MAX]);
        assert_eq!(comparison.room(), 0);
        comparison.handle_received(&[7; 10]);
        let left = WINDOW_BYTES_MAX as u64 - 10;
        assert_eq!((comparison.room(), comparison.missing()), (10, left));
        // After a difference nothing is held.
        comparison.handle_received(&[8]);
        assert_eq!(comparison.room(), WINDOW_BYTES_MAX);
        assert_eq!((comparison.right, comparison.came), (10, 11));
    }

    #[test]
    fn messages_differ_in_length_or_in_a_byte() {
        for (came, shown) in [
            ("hello", None),
            (
                "hallo",
                Some("byte 1 came back as 0x61 'a' instead of 0x65 'e'"),
            ),
            ("h", Some("1 byte came back instead of 5")),
        ] {
            let found = difference(b"hello", came.as_bytes(), came.len());
            let found = found.map(|found| found.to_string());
            assert_eq!(found.as_deref(), shown);
        }
    }
}
