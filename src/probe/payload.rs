//! The bytes that are sent, and how an answer is recognized: the one format of all commands.
//!
//! A message begins with its number, in as many digits of base 128 as its size allows, with the
//! highest bit of each set, so that a service which answers in upper case leaves them alone. What
//! follows is a piece of noise whose place depends on the number and on this run: no other message,
//! and none of another client, is taken for it. A stream under load is that noise alone, for there
//! the order says which message it is.
//!
//! Knows bytes; never when anything was sent.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

use super::compare::{Expect, first_difference};

/// The noise repeats after this many bytes: a prime, of which no size of a buffer or message is a
/// multiple, so that a whole buffer that is lost or doubled is seen.
const PERIOD: usize = 65_521;

/// The longest piece of noise, in bytes, wherever it begins.
pub(super) const PIECE_BYTES_MAX: usize = 256 * 1024;

/// From the noise of one message to that of the next, in bytes.
const STEP: u64 = 7;

/// Messages whose number is damaged are looked for among this many of the latest.
const CANDIDATES_MAX: u64 = 1024;

/// The noise of this many bytes tells one message from another beyond doubt.
const TELLING_BYTES: usize = 4;

/// No more bytes than this are compared to find out which message it is.
const COMPARED_BYTES: usize = 256;

/// The noise as it is sent, and as a service in upper case answers it.
static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let repeats = 1 + PIECE_BYTES_MAX.div_ceil(PERIOD);
    noise(PERIOD, 0).repeat(repeats)
});
static UPPER_NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| NOISE.to_ascii_uppercase());

/// The messages of one flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Payload {
    /// The size of each message.
    pub(super) size: usize,
    nonce: u64,
    /// Where the noise of the first message begins.
    base: u64,
    expect: Expect,
}

/// The messages that are sent, by their numbers, and how they are known again.
pub(super) trait Messages {
    /// What is sent.
    fn bytes(&self, number: u64) -> Vec<u8>;
    /// What is to come back.
    fn expected(&self, number: u64) -> Vec<u8>;
    /// Which message an answer is, of those before `next`. `len` is its true length, which exceeds
    /// that of the bytes if there was no room for all.
    fn recognize(&self, bytes: &[u8], len: usize, next: u64) -> Recognized;
    /// The number that a message claims to have, if that many have been sent: the latest that fits.
    fn quoted(&self, bytes: &[u8], next: u64) -> Option<u64>;
}

/// What an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recognized {
    /// This message, as it should be.
    Whole(u64),
    /// This message with other bytes, or not as many.
    Changed(u64),
    /// No message that is known: this one, if it is waited for.
    Likely(u64),
    /// An empty datagram, where all are empty: it has no number.
    Empty,
    /// No message of ours.
    Unknown,
}

impl Payload {
    /// Messages of this size; the nonce differs from flow to flow.
    pub(super) fn new(size: usize, nonce: u64, expect: Expect) -> Self {
        prepare(expect);
        Self {
            size,
            nonce,
            base: nonce % PERIOD as u64,
            expect,
        }
    }

    /// Writes a message, whose size these bytes have.
    pub(super) fn write(self, number: u64, bytes: &mut [u8]) {
        let (digits, rest) = bytes.split_at_mut(digits(bytes.len()));
        self.write_digits(number, digits);
        let mut position = self.position(number);
        for piece in rest.chunks_mut(PIECE_BYTES_MAX) {
            let len = piece.len() as u64;
            piece.copy_from_slice(stream_piece(position, len));
            position += len;
        }
    }

    fn write_digits(self, number: u64, digits: &mut [u8]) {
        let masked = number ^ self.nonce;
        for (index, digit) in digits.iter_mut().enumerate() {
            *digit = 0x80 | (masked >> (7 * index)) as u8;
        }
    }

    /// Where the noise of a message begins. Messages on the way together are near each other, so
    /// that the processor's first cache has their noise.
    fn position(self, number: u64) -> u64 {
        self.base + number * STEP
    }

    /// Whether these bytes are the message whose number they quote.
    fn is_whole(self, number: u64, bytes: &[u8]) -> bool {
        let rest = &bytes[digits(self.size)..];
        let differs = || stream_difference(self.position(number), rest, self.expect).is_some();
        bytes.len() == self.size && !differs()
    }

    /// How many bytes of the noise behind the number are those of this message, and of how many.
    fn likeness(self, number: u64, bytes: &[u8]) -> (usize, usize) {
        let digits = digits(self.size);
        let rest = bytes.get(digits..).unwrap_or_default();
        let rest = &rest[..rest.len().min(COMPARED_BYTES)];
        let noise = &noise_from(self.position(number), self.expect)[..rest.len()];
        let same = noise.iter().zip(rest).filter(|(own, came)| own == came);
        (same.count(), rest.len())
    }
}

impl Messages for Payload {
    fn bytes(&self, number: u64) -> Vec<u8> {
        let mut bytes = vec![0; self.size];
        self.write(number, &mut bytes);
        bytes
    }

    fn expected(&self, number: u64) -> Vec<u8> {
        self.expect.of(&self.bytes(number))
    }

    fn recognize(&self, bytes: &[u8], len: usize, next: u64) -> Recognized {
        if self.size == 0 {
            return match len {
                0 => Recognized::Empty,
                _ => Recognized::Unknown,
            };
        }
        let changed = match self.expect {
            Expect::Echo | Expect::Upper => Recognized::Changed,
            Expect::Any => Recognized::Whole,
        };
        if let Some(number) = self.quoted(bytes, next) {
            if len == bytes.len() && self.is_whole(number, bytes) {
                return Recognized::Whole(number);
            }
            let (same, of) = self.likeness(number, bytes);
            if same * 2 >= of {
                return changed(number);
            }
        }
        // Where the number itself is damaged, the noise behind it tells.
        let resembles = |number: &u64| {
            let (same, of) = self.likeness(*number, bytes);
            same >= TELLING_BYTES && same * 2 >= of
        };
        let mut latest = (next.saturating_sub(CANDIDATES_MAX)..next).rev();
        latest.find(resembles).map_or(Recognized::Unknown, changed)
    }

    fn quoted(&self, bytes: &[u8], next: u64) -> Option<u64> {
        let digits = bytes.get(..digits(self.size));
        let digits = digits.filter(|digits| !digits.is_empty())?;
        if digits.iter().any(|digit| digit & 0x80 == 0) {
            return None;
        }
        let modulus = 1_u64 << (7 * digits.len());
        let read = digits.iter().rev().fold(0, |number: u64, digit| {
            number << 7 | u64::from(digit & 0x7f)
        });
        let low = (read ^ self.nonce) & (modulus - 1);
        let last = next.checked_sub(1)?;
        let behind = last.wrapping_sub(low) & (modulus - 1);
        last.checked_sub(behind)
    }
}

/// The digits of the number that a message of this size has room for beside the noise.
fn digits(size: usize) -> usize {
    match size {
        0 => 0,
        1..4 => 1,
        4..8 => 2,
        8..16 => 4,
        _ => 9,
    }
}

/// Makes the noise, so that the first message is not sent later than it says.
pub(super) fn prepare(expect: Expect) {
    noise_of(expect);
}

/// The noise as it comes back.
fn noise_of(expect: Expect) -> &'static [u8] {
    match expect {
        Expect::Upper => &UPPER_NOISE,
        Expect::Echo | Expect::Any => &NOISE,
    }
}

/// The noise as it comes back, from this position on: a piece at least.
fn noise_from(position: u64, expect: Expect) -> &'static [u8] {
    let start = (position % PERIOD as u64) as usize;
    &noise_of(expect)[start..]
}

/// The noise from this position on as it is sent: this many bytes, or as many as one piece has.
pub(super) fn stream_piece(position: u64, len: u64) -> &'static [u8] {
    &noise_from(position, Expect::Echo)[..len.min(PIECE_BYTES_MAX as u64) as usize]
}

/// The index of the first of these bytes that is not the noise from this position on.
pub(super) fn stream_difference(position: u64, bytes: &[u8], expect: Expect) -> Option<usize> {
    let offsets = (0..).step_by(PIECE_BYTES_MAX);
    let mut pieces = bytes.chunks(PIECE_BYTES_MAX).zip(offsets);
    pieces.find_map(|(piece, offset)| {
        let noise = noise_from(position + offset as u64, expect);
        Some(offset + first_difference(&noise[..piece.len()], piece)?)
    })
}

/// Bytes that look random, others for each seed.
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
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A number that cannot be guessed, for one flow.
pub(super) fn nonce() -> u64 {
    RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: u64 = 0x0123_4567_89ab_cdef;

    fn payload(size: usize) -> Payload {
        Payload::new(size, NONCE, Expect::Echo)
    }

    fn recognize(payload: Payload, bytes: &[u8], next: u64) -> Recognized {
        payload.recognize(bytes, bytes.len(), next)
    }

    #[test]
    fn a_message_has_its_size_and_is_like_no_other() {
        for size in [0, 1, 3, 4, 8, 16, 64, 65_507, 600_000] {
            let payload = payload(size);
            assert_eq!(payload.bytes(5).len(), size);
            assert_eq!(payload.bytes(5), payload.bytes(5));
            if size > 0 {
                assert_ne!(payload.bytes(5), payload.bytes(6), "size {size}");
                let other = Payload::new(size, NONCE + 1, Expect::Echo);
                assert_ne!(payload.bytes(5), other.bytes(5), "size {size}");
            }
        }
    }

    /// The second message of the first flow was the first message of the second one.
    #[test]
    fn no_message_of_one_flow_is_taken_for_one_of_another() {
        let flows = [nonce(), nonce()].map(|nonce| Payload::new(64, nonce, Expect::Echo));
        assert_ne!(flows[0].bytes(1), flows[1].bytes(0));
    }

    #[test]
    fn a_number_is_found_again_however_small_the_message() {
        for (size, window) in [(1, 128), (4, 16_384), (8, 1 << 28), (16, 1 << 40)] {
            for expect in [Expect::Echo, Expect::Upper] {
                let payload = Payload::new(size, NONCE, expect);
                for number in [0, 1, 127, 128, 100_000, 1 << 40] {
                    let back = payload.expected(number);
                    assert_eq!(back, expect.of(&payload.bytes(number)));
                    for later in [0, 1, window - 1] {
                        let found = recognize(payload, &back, number + 1 + later);
                        assert_eq!(found, Recognized::Whole(number), "size {size}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_changed_message_is_recognized_whatever_bit_is_changed() {
        for size in [16, 64, 1400] {
            let payload = payload(size);
            for byte in (0..size).step_by(7).chain(0..9) {
                let mut bytes = payload.bytes(1000);
                bytes[byte] ^= 1 << (byte % 8);
                let found = recognize(payload, &bytes, 1500);
                assert_eq!(found, Recognized::Changed(1000), "size {size}, byte {byte}");
            }
            let bytes = payload.bytes(1000);
            let cut = recognize(payload, &bytes[..size - 1], 1500);
            assert_eq!(cut, Recognized::Changed(1000));
            let longer = [&bytes[..], &[7]].concat();
            assert_eq!(recognize(payload, &longer, 1500), Recognized::Changed(1000));
            let no_room = payload.recognize(&bytes, size + 1, 1500);
            assert_eq!(no_room, Recognized::Changed(1000));
        }
    }

    #[test]
    fn other_bytes_are_no_message() {
        let payload = payload(16);
        for (bytes, next) in [
            (&payload.bytes(7)[..], 7),
            (&payload.bytes(0), 0),
            (b"GET / HTTP/1.1\r\n", 100),
            (b"", 100),
        ] {
            assert_eq!(recognize(payload, bytes, next), Recognized::Unknown);
        }
        assert_eq!(recognize(self::payload(0), b"", 1), Recognized::Empty);
    }

    #[test]
    fn a_piece_of_a_stream_continues_where_the_one_before_it_ends() {
        let long = [stream_piece(65_000, 10_000), stream_piece(75_000, 30_000)].concat();
        let at = |position, bytes: &[u8]| stream_difference(position, bytes, Expect::Echo);
        assert_eq!(at(65_000, &long), None);
        assert_eq!(at(65_000 + 7 * PERIOD as u64, &long), None);
        assert!(at(65_001, &long).is_some());
        let mut changed = long.clone();
        changed[33_000] ^= 1;
        assert_eq!(at(65_000, &changed), Some(33_000));
        let upper = long.to_ascii_uppercase();
        assert_eq!(stream_difference(65_000, &upper, Expect::Upper), None);
        assert_eq!(stream_piece(3, u64::MAX).len(), PIECE_BYTES_MAX);
    }
}
