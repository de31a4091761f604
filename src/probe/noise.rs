//! Bytes that look random, so that what is lost, repeated or swapped never happens to be right.
//!
//! Knows numbers and bytes; the same seed gives the same ones again, but for [`nonce`].

use std::hash::{BuildHasher, RandomState};

/// After so many bytes noise may repeat: a prime, which no size of a buffer or message is a multiple
/// of, so that a whole buffer that is lost or comes twice is seen.
pub(super) const PERIOD: usize = 65_521;

/// So many bytes, others for each seed.
pub(super) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    let mut state = mix(seed);
    while bytes.len() < len {
        state = mix(state);
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// One number from another, as if by chance (splitmix64).
pub(super) fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A number that nobody can guess, for one run.
pub(super) fn nonce() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_the_same_again_and_another_for_each_seed() {
        assert_eq!(noise(100, 7), noise(100, 7));
        assert_eq!(noise(100, 7)[..33], noise(33, 7));
        assert_ne!(noise(100, 7), noise(100, 8));
        assert_eq!(noise(0, 7), b"");
    }

    #[test]
    fn every_byte_is_as_likely_as_any_other() {
        let mut counts = [0; 256];
        for byte in noise(256 * 1000, 1) {
            counts[usize::from(byte)] += 1;
        }
        // Six standard deviations.
        assert!(
            counts.iter().all(|count| (810..=1190).contains(count)),
            "{counts:?}"
        );
    }
}
