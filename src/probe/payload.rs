//! What a message holds: its number, and bytes that only it has.
//!
//! Knows bytes; never when anything was sent. The number stands first, in as many digits of base
//! 128 as the size allows, and with the highest bit set, so that a service which answers in upper
//! case leaves it alone. What follows is noise that depends on the number and on this run, so that
//! neither another message nor somebody else's is taken for it.

use super::args::Expect;
use super::noise::noise;

/// The messages of one run, all of one size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Payload {
    size: usize,
    nonce: u64,
    expect: Expect,
}

impl Payload {
    /// Messages of so many bytes. The nonce is of this run.
    pub(super) fn new(size: usize, nonce: u64, expect: Expect) -> Self {
        Self {
            size,
            nonce,
            expect,
        }
    }

    /// The size of each.
    pub(super) fn size(self) -> usize {
        self.size
    }

    /// The bytes of a message.
    pub(super) fn bytes(self, number: u64) -> Vec<u8> {
        let digits = self.digits();
        let mut bytes = Vec::with_capacity(digits + self.size);
        let masked = number ^ self.nonce;
        bytes.extend((0..digits).map(|digit| 0x80 | (masked >> (7 * digit)) as u8));
        bytes.extend(noise(self.size, self.nonce.wrapping_add(number)));
        bytes.truncate(self.size);
        bytes
    }

    /// The bytes that are to come back.
    pub(super) fn expected(self, number: u64) -> Vec<u8> {
        let mut bytes = self.bytes(number);
        if self.expect == Expect::Upper {
            bytes.make_ascii_uppercase();
        }
        bytes
    }

    /// The number that a message claims to have, if so many have been sent: the latest that fits.
    /// None if it is none of ours, or has no number.
    pub(super) fn claimed(self, bytes: &[u8], sent: u64) -> Option<u64> {
        let digits = self.digits();
        let digits = bytes.get(..digits).filter(|digits| !digits.is_empty())?;
        if digits.iter().any(|digit| digit & 0x80 == 0) {
            return None;
        }
        let bits = 7 * digits.len();
        let read = digits.iter().rev().fold(0, |number: u64, digit| {
            number << 7 | u64::from(digit & 0x7f)
        });
        let modulus = 1_u64 << bits;
        let low = (read ^ self.nonce) & (modulus - 1);
        let last = sent.checked_sub(1)?;
        let behind = last.wrapping_sub(low) & (modulus - 1);
        last.checked_sub(behind)
    }

    /// How many digits there is room for beside the noise.
    fn digits(self) -> usize {
        match self.size {
            0 => 0,
            1..4 => 1,
            4..8 => 2,
            8..16 => 4,
            _ => 9,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: u64 = 0x0123_4567_89ab_cdef;

    #[test]
    fn a_message_has_its_size_and_is_like_no_other() {
        for size in [0, 1, 3, 4, 8, 16, 64, 65_507] {
            let payload = Payload::new(size, NONCE, Expect::Echo);
            assert_eq!(payload.bytes(5).len(), size);
            assert_eq!(payload.bytes(5), payload.bytes(5));
            if size > 0 {
                assert_ne!(payload.bytes(5), payload.bytes(6), "size {size}");
            }
            if size > 1 {
                let other = Payload::new(size, NONCE + 1, Expect::Echo);
                assert_ne!(payload.bytes(5), other.bytes(5), "size {size}");
            }
        }
    }

    #[test]
    fn a_number_is_found_again_however_small_the_message() {
        for (size, window) in [(1, 128), (4, 16_384), (8, 1 << 28), (16, 1 << 40)] {
            for expect in [Expect::Echo, Expect::Upper] {
                let payload = Payload::new(size, NONCE, expect);
                for number in [0, 1, 127, 128, 100_000, 1 << 40] {
                    let back = payload.expected(number);
                    for later in [0, 1, window - 1] {
                        let claimed = payload.claimed(&back, number + 1 + later);
                        assert_eq!(claimed, Some(number), "size {size}, {later} later");
                    }
                }
            }
        }
    }

    #[test]
    fn what_was_never_sent_is_not_claimed() {
        let payload = Payload::new(16, NONCE, Expect::Echo);
        assert_eq!(payload.claimed(&payload.bytes(7), 7), None);
        assert_eq!(payload.claimed(&payload.bytes(0), 0), None);
        assert_eq!(payload.claimed(b"GET / HTTP/1.1\r\n", 100), None);
        assert_eq!(payload.claimed(b"", 100), None);
    }
}
