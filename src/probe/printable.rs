//! Bytes from the network as a terminal may show them: text as text, and everything that could control
//! the terminal, or is not text, as an escape.
//!
//! Knows bytes and never where they go.

use std::fmt::Write;

use crate::cli::text::escape_lines;

fn written_out(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text += &escape_lines(chunk.valid());
        for byte in chunk.invalid() {
            write!(text, "\\x{byte:02x}").expect("a string takes all");
        }
    }
    text
}

/// A stream that arrives in pieces, with its lines. A character may begin in one piece and end in the
/// next.
#[derive(Debug, Default)]
pub(super) struct Printable {
    begun: Vec<u8>,
}

impl Printable {
    /// What can be shown of it now.
    pub(super) fn piece(&mut self, bytes: &[u8]) -> String {
        self.begun.extend_from_slice(bytes);
        let end = match std::str::from_utf8(&self.begun) {
            Ok(text) => text.len(),
            // Three bytes at most are waited for.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            Err(_) => self.begun.len(),
        };
        let whole: Vec<u8> = self.begun.drain(..end).collect();
        written_out(&whole)
    }

    /// What was begun and is not completed.
    pub(super) fn rest(&mut self) -> String {
        written_out(&std::mem::take(&mut self.begun))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_may_come_in_two_pieces_and_a_line_stays_a_line() {
        let mut printable = Printable::default();
        assert_eq!(printable.piece(b"1 \xe2\x82"), "1 ");
        assert_eq!(printable.piece(b"\xac\n\x07"), "€\n\\u{7}");
        assert_eq!(printable.piece(b"\xff\xe2"), "\\xff\\xe2");
        assert_eq!(printable.piece(b"\xe2"), "");
        assert_eq!(printable.rest(), "\\xe2");
        assert_eq!(printable.rest(), "");
        let text = printable.piece("grüße\x1b[2J".as_bytes());
        assert_eq!(text, "grüße\\u{1b}[2J");
    }
}
