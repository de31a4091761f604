//! Bytes that tell which stream they belong to, and where in it.
//!
//! Each aligned word of eight bytes holds the stream's number and its own place, well mixed, so
//! that wrong bytes are not only noticed: where they are another stream's, or the same stream's
//! from another place, the failure says so.

use std::hash::{BuildHasher, RandomState};

/// The bits of a stream's number; the rest of a word is its place.
const STREAM_BITS: u32 = 24;

/// A word is believed to be a place in a stream if that is below this. It is far more than any test
/// sends on one stream, and so little that wrong bytes of other kinds look like it once in 2^17.
const BELIEVED_BYTES: u64 = 1 << 23 << 3;

/// Odd, so that multiplying by it can be undone.
const FACTOR: u64 = 0xd6e8_feb8_6659_fd93;

/// What undoes [`FACTOR`]: each round of Newton's method doubles the number of right bits.
const INVERSE: u64 = {
    let mut inverse = FACTOR;
    let mut round = 0;
    while round < 6 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(FACTOR.wrapping_mul(inverse)));
        round += 1;
    }
    inverse
};

// Tests are hardly optimized, and gigabytes come from here.
#[inline(always)]
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 32)).wrapping_mul(FACTOR);
    word = (word ^ (word >> 32)).wrapping_mul(FACTOR);
    word ^ (word >> 32)
}

fn unmix(mut word: u64) -> u64 {
    word = (word ^ (word >> 32)).wrapping_mul(INVERSE);
    word = (word ^ (word >> 32)).wrapping_mul(INVERSE);
    word ^ (word >> 32)
}

#[inline(always)]
fn word(stream: u32, index: u64) -> [u8; 8] {
    mix((index << STREAM_BITS) | u64::from(stream)).to_le_bytes()
}

/// Writes the bytes of a stream that begin at this place.
pub(super) fn fill(stream: u32, from: u64, mut bytes: &mut [u8]) {
    assert!(stream < 1 << STREAM_BITS, "a stream's number has 24 bits");
    let mut index = from / 8;
    let inside = (from % 8) as usize;
    if inside > 0 {
        let len = bytes.len().min(8 - inside);
        let (head, rest) = bytes.split_at_mut(len);
        head.copy_from_slice(&word(stream, index)[inside..inside + len]);
        (bytes, index) = (rest, index + 1);
    }
    let mut words = bytes.chunks_exact_mut(8);
    for eight in &mut words {
        eight.copy_from_slice(&word(stream, index));
        index += 1;
    }
    let rest = words.into_remainder();
    rest.copy_from_slice(&word(stream, index)[..rest.len()]);
}

/// Compares what came back with a stream's bytes that begin at this place, changed to upper case
/// if so said. `expected` is memory for it.
///
/// # Errors
/// Where they differ, in words.
pub(super) fn compare(
    stream: u32,
    from: u64,
    upper: bool,
    got: &[u8],
    expected: &mut Vec<u8>,
) -> Result<(), String> {
    expected.resize(expected.len().max(got.len()), 0);
    let expected = &mut expected[..got.len()];
    fill(stream, from, expected);
    if upper {
        expected.make_ascii_uppercase();
    }
    if got == expected {
        return Ok(());
    }
    let differs = got
        .iter()
        .zip(&*expected)
        .position(|(got, expected)| got != expected);
    let at = differs.expect("they are not the same");
    let some = |bytes: &[u8]| format!("{:02x?}", &bytes[at..bytes.len().min(at + 16)]);
    let whose = match recognize(&got[at..]) {
        Some((whose, place)) if whose == stream => format!("its own from offset {place}"),
        Some((whose, place)) => format!("those of connection {whose}, offset {place}"),
        None => "of no connection".into(),
    };
    Err(format!(
        "connection {stream}, offset {}: expected {}, got {}, which are {whose}",
        from + at as u64,
        some(expected),
        some(got),
    ))
}

/// Whose bytes these are, and from which place.
fn recognize(bytes: &[u8]) -> Option<(u32, u64)> {
    bytes
        .windows(8)
        .take(8)
        .enumerate()
        .find_map(|(skipped, eight)| {
            let word = unmix(u64::from_le_bytes(eight.try_into().expect("eight of them")));
            let stream = (word & ((1 << STREAM_BITS) - 1)) as u32;
            let place = (word >> STREAM_BITS) * 8;
            let place = (place < BELIEVED_BYTES).then(|| place.checked_sub(skipped as u64))?;
            place.map(|place| (stream, place))
        })
}

/// The seed of this run: `ECHOD_TEST_SEED`, or another one each time.
pub(super) fn seed() -> u64 {
    match std::env::var("ECHOD_TEST_SEED") {
        Ok(seed) => seed.parse().expect("ECHOD_TEST_SEED is a number"),
        Err(_) => RandomState::new().hash_one(0) >> 32,
    }
}

/// Seeded randomness: splitmix64.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True in one of `count` calls.
    pub(super) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    pub(super) fn one_of<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len() as u64) as usize]
    }

    pub(super) fn shuffle<T>(&mut self, things: &mut [T]) {
        for last in (1..things.len()).rev() {
            things.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

fn bytes_of(stream: u32, from: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(stream, from, &mut bytes);
    bytes
}

#[test]
fn a_pattern_is_the_same_in_whatever_pieces_it_is_made() {
    let whole = bytes_of(7, 0, 1000);
    let mut random = Random::new(1);
    for _ in 0..1000 {
        let from = random.below(1000);
        let len = random.below(1001 - from) as usize;
        assert_eq!(bytes_of(7, from, len), whole[from as usize..][..len]);
    }
}

#[test]
fn wrong_bytes_are_found_and_reported_with_their_connection() {
    let check = |got: &[u8], upper: bool| compare(7, 1000, upper, got, &mut Vec::new());
    let right = bytes_of(7, 1000, 100);
    assert_eq!(check(&right, false), Ok(()));
    assert_eq!(check(&right.to_ascii_uppercase(), true), Ok(()));
    assert!(check(&right, true).is_err());

    let ends_with = |got: &[u8], end: &str| {
        let said = check(got, false).expect_err("they are wrong");
        assert!(said.ends_with(end), "{said}");
    };
    let mut foreign = right.clone();
    foreign[50..].copy_from_slice(&bytes_of(99, 12_345, 50));
    ends_with(&foreign, "those of connection 99, offset 12345");
    ends_with(&bytes_of(7, 2003, 100), "its own from offset 2003");
    ends_with(&[0xaa; 100], "of no connection");
    for bit in 0..800 {
        let mut flipped = right.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let said = check(&flipped, false).expect_err("one bit is wrong");
        let place = format!("connection 7, offset {}: ", 1000 + bit / 8);
        assert!(said.starts_with(&place), "{said}");
    }
}
