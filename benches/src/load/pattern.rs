//! The bytes that every client sends: a block that looks random, repeated with a prime period.
//!
//! Each connection starts at another place of it, so that bytes which are lost, repeated, moved or
//! those of another one differ from what is expected.

/// Prime, so that no multiple of it is the size of a buffer.
const PERIOD: usize = 65_521;

/// The most that is given out as one piece.
const PIECE: usize = 256 * 1024;

/// The pattern in memory, one piece longer than its period so that any piece is one slice.
pub(crate) struct Pattern(Vec<u8>);

impl Pattern {
    pub(crate) fn new() -> Self {
        // Xorshift: no more randomness is needed than that equal stretches are short.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        };
        let block: Vec<u8> = (0..PERIOD).map(|_| next()).collect();
        Self(block.iter().copied().cycle().take(PERIOD + PIECE).collect())
    }

    /// `len` bytes from a place on, but at most a piece.
    pub(crate) fn at(&self, place: u64, len: usize) -> &[u8] {
        let start = (place % PERIOD as u64) as usize;
        &self.0[start..][..len.min(PIECE)]
    }

    /// Whether these are the bytes from a place on.
    pub(crate) fn matches(&self, place: u64, bytes: &[u8]) -> bool {
        let mut place = place;
        bytes.chunks(PIECE).all(|piece| {
            let expected = self.at(place, piece.len());
            place += piece.len() as u64;
            expected == piece
        })
    }
}

/// Where in the pattern the stream of this connection starts.
pub(crate) fn start_of(connection: usize) -> u64 {
    connection as u64 * 7919
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_byte_a_missing_one_and_those_of_a_neighbor_are_seen() {
        let pattern = Pattern::new();
        let mut bytes = pattern.at(PERIOD as u64 - 10, 1000).to_vec();
        assert!(pattern.matches(PERIOD as u64 - 10, &bytes));
        assert!(!pattern.matches(start_of(1), &bytes));
        assert!(!pattern.matches(PERIOD as u64 - 10, &bytes[1..]));
        bytes[999] ^= 1;
        assert!(!pattern.matches(PERIOD as u64 - 10, &bytes));
    }
}
