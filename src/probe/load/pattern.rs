//! The bytes that are sent: noise that repeats after a prime number of them.
//!
//! Made once; pieces of it are copied into the driver's buffers.

use std::ops::Range;
use std::sync::LazyLock;

use crate::probe::args::Sizes;
use crate::probe::noise::{PERIOD, mix, noise};

/// The longest piece, in bytes, wherever it begins.
pub(super) const PIECE_BYTES_MAX: usize = 256 * 1024;

static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let period = noise(PERIOD, 0);
    let bytes = period.iter().cycle().take(PERIOD + PIECE_BYTES_MAX);
    bytes.copied().collect()
});

/// All of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pattern(&'static [u8]);

impl Pattern {
    pub(super) fn get() -> Self {
        Self(&NOISE)
    }

    /// The bytes from this position on, so many or as many as there are in one piece.
    pub(super) fn piece(self, position: u64, len: u64) -> &'static [u8] {
        let start = (position % PERIOD as u64) as usize;
        &self.0[start..][..len.min(PIECE_BYTES_MAX as u64) as usize]
    }

    /// Whether these are the bytes from this position on.
    pub(super) fn is_at(self, position: u64, bytes: &[u8]) -> bool {
        let mut position = position;
        bytes.chunks(PIECE_BYTES_MAX).all(|bytes| {
            let piece = self.piece(position, bytes.len() as u64);
            position += bytes.len() as u64;
            piece == bytes
        })
    }
}

/// How long each message is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lengths {
    least: u64,
    // How many lengths there are.
    count: u64,
    seed: u64,
}

impl Lengths {
    /// Others for each seed, if there is a choice.
    pub(super) fn new(sizes: Sizes, seed: u64) -> Self {
        Self {
            least: sizes.least as u64,
            count: (sizes.most - sizes.least) as u64 + 1,
            seed,
        }
    }

    /// Whether all are alike.
    pub(super) fn is_fixed(self) -> bool {
        self.count == 1
    }

    /// That of several messages together.
    pub(super) fn sum(self, numbers: Range<u64>) -> u64 {
        if self.is_fixed() {
            return self.least * (numbers.end - numbers.start);
        }
        numbers.map(|number| self.of(number)).sum()
    }

    /// That of a message.
    pub(super) fn of(self, number: u64) -> u64 {
        if self.is_fixed() {
            return self.least;
        }
        // The same whenever it is asked.
        self.least + mix(self.seed + number) % self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_continues_where_the_one_before_it_ends() {
        let pattern = Pattern::get();
        let long = [pattern.piece(65_000, 10_000), pattern.piece(75_000, 30_000)].concat();
        assert!(pattern.is_at(65_000, &long));
        assert!(pattern.is_at(65_000 + 7 * PERIOD as u64, &long));
        assert!(!pattern.is_at(65_001, &long));
        assert_eq!(pattern.piece(3, u64::MAX).len(), PIECE_BYTES_MAX);
    }

    #[test]
    fn one_wrong_byte_is_seen() {
        let pattern = Pattern::get();
        let mut bytes = pattern.piece(5, 1000).to_vec();
        bytes[999] ^= 1;
        assert!(!pattern.is_at(5, &bytes));
        assert!(pattern.is_at(5, &bytes[..999]));
    }

    #[test]
    fn lengths_are_all_within_their_range_and_the_same_again() {
        let sizes = Sizes { least: 3, most: 6 };
        let lengths = Lengths::new(sizes, 9);
        let some: Vec<u64> = (0..1000).map(|number| lengths.of(number)).collect();
        for length in 3..=6 {
            let count = some.iter().filter(|other| **other == length).count();
            assert!((200..300).contains(&count), "{length}: {count} of 1000");
        }
        assert_eq!(lengths.of(17), some[17]);
        assert_eq!(lengths.sum(17..20), some[17..20].iter().sum::<u64>());
        let fixed = Lengths::new(Sizes { least: 3, most: 3 }, 9);
        assert_eq!(fixed.sum(17..20), 9);
        assert!(some.iter().all(|length| (3..=6).contains(length)));
    }
}
