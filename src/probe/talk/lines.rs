//! The input as lines, however its bytes arrive.

/// A longer line is cut: a stream does not know the difference, and no datagram is larger.
const LINE_BYTES_MAX: usize = 1 << 20;

/// Bytes of the input that become lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    pub(super) has_ended: bool,
}

/// A line of the input, without its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Text(Vec<u8>),
    End,
}

impl Lines {
    /// More bytes, or none at the end.
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.has_ended = bytes.is_empty();
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether more bytes are needed to know the next line.
    pub(super) fn next_is_unknown(&self) -> bool {
        let is_short = self.bytes.len() < LINE_BYTES_MAX;
        is_short && !self.has_ended && !self.bytes.contains(&b'\n')
    }

    /// The next whole line, or the end; none: more bytes are needed.
    pub(super) fn next(&mut self) -> Option<Line> {
        let within = &self.bytes[..self.bytes.len().min(LINE_BYTES_MAX)];
        if let Some(end) = within.iter().position(|byte| *byte == b'\n') {
            let mut line: Vec<u8> = self.bytes.drain(..=end).collect();
            line.pop();
            return Some(Line::Text(line));
        }
        if within.len() == LINE_BYTES_MAX || (self.has_ended && !within.is_empty()) {
            let piece = self.bytes.drain(..within.len()).collect();
            return Some(Line::Text(piece));
        }
        self.has_ended.then_some(Line::End)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &[u8]) -> Option<Line> {
        Some(Line::Text(text.into()))
    }

    #[test]
    fn lines_come_whole_however_their_bytes_come() {
        let mut lines = Lines::default();
        assert_eq!(lines.next(), None);
        lines.add(b"one\n\ntw");
        assert_eq!(lines.next(), line(b"one"));
        assert_eq!(lines.next(), line(b""));
        assert_eq!(lines.next(), None);
        lines.add(b"o\xff\r\nlast");
        assert_eq!(lines.next(), line(b"two\xff\r"));
        assert_eq!(lines.next(), None);
        lines.add(b"");
        assert_eq!(lines.next(), line(b"last"));
        assert_eq!(lines.next(), Some(Line::End));
        assert_eq!(lines.next(), Some(Line::End));
    }

    #[test]
    fn a_line_without_end_is_cut_into_pieces() {
        let mut lines = Lines::default();
        lines.add(&vec![7; LINE_BYTES_MAX + 3]);
        lines.add(b"\n");
        assert_eq!(lines.next(), line(&vec![7; LINE_BYTES_MAX]));
        assert_eq!(lines.next(), line(&[7; 3]));
        assert_eq!(lines.next(), None);
    }
}
