//! What is sent, and what is to come back of it.
//!
//! Knows bytes and never a socket. However long a stream is, no more than a block of it is held.

use std::fmt;

use crate::probe::args::Expect;
use crate::probe::noise::{PERIOD, noise};

/// A stream of bytes.
#[derive(Clone, Debug)]
pub(super) struct Material {
    sent: Vec<u8>,
    due: Vec<u8>,
    /// The block above is repeated up to so many bytes.
    len: usize,
}

impl Material {
    /// These bytes.
    pub(super) fn new(bytes: &[u8], expect: Expect) -> Self {
        Self {
            sent: bytes.to_vec(),
            due: folded(bytes, expect),
            len: bytes.len(),
        }
    }

    /// So many bytes that look random.
    pub(super) fn noise(len: usize, seed: u64, expect: Expect) -> Self {
        let block = noise(len.min(PERIOD), seed);
        Self {
            len,
            ..Self::new(&block, expect)
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// No more than so many bytes of it were sent after all.
    pub(super) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// A piece of what is to be sent; empty at its end.
    pub(super) fn sent_from(&self, offset: usize) -> &[u8] {
        self.piece(&self.sent, offset)
    }

    fn piece<'a>(&self, block: &'a [u8], offset: usize) -> &'a [u8] {
        let left = self.len - offset;
        if left == 0 {
            return &[];
        }
        let rest = &block[offset % block.len()..];
        &rest[..rest.len().min(left)]
    }

    /// Where these bytes, which came at that place, are not what is due there.
    fn difference(&self, mut offset: usize, mut came: &[u8]) -> Option<Difference> {
        while !came.is_empty() {
            let due = self.piece(&self.due, offset);
            let len = due.len().min(came.len());
            let found = first_difference(&due[..len], &came[..len]);
            let found = found.or_else(|| due.is_empty().then_some(0));
            if let Some(at) = found {
                return Some(Difference {
                    offset: offset + at,
                    due: due.get(at).copied(),
                    came: came[at],
                });
            }
            offset += len;
            came = &came[len..];
        }
        None
    }
}

/// What has come back of it so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Receipt {
    /// Bytes, right or wrong.
    pub(super) came: usize,
    /// The first that is wrong.
    pub(super) difference: Option<Difference>,
}

impl Receipt {
    /// These came, too.
    pub(super) fn handle_received(&mut self, material: &Material, bytes: &[u8]) {
        if self.difference.is_none() {
            self.difference = material.difference(self.came, bytes);
        }
        self.came += bytes.len();
    }
}

/// A byte that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Difference {
    /// So many before it are right.
    pub(super) offset: usize,
    /// What it should be; none: so many were not sent.
    pub(super) due: Option<u8>,
    /// What it is.
    pub(super) came: u8,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { offset, due, came } = self;
        match due {
            Some(due) => write!(
                f,
                "byte {offset} came back as 0x{came:02x} instead of 0x{due:02x}"
            ),
            None => write!(f, "more came back than the {offset} bytes that were sent"),
        }
    }
}

/// Where two pieces of one length differ.
pub(super) fn first_difference(due: &[u8], came: &[u8]) -> Option<usize> {
    // The comparison as a whole is many times faster, and mostly all there is to do.
    if due == came {
        return None;
    }
    due.iter().zip(came).position(|(due, came)| due != came)
}

/// What comes back of these.
pub(super) fn folded(bytes: &[u8], expect: Expect) -> Vec<u8> {
    match expect {
        Expect::Upper => bytes.to_ascii_uppercase(),
        Expect::Echo | Expect::Any => bytes.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All of it as it is sent.
    fn whole(material: &Material) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < material.len() {
            bytes.extend(material.sent_from(bytes.len()));
        }
        bytes
    }

    fn receipt(material: &Material, came: &[u8], piece: usize) -> Receipt {
        let mut receipt = Receipt::default();
        for bytes in came.chunks(piece) {
            receipt.handle_received(material, bytes);
        }
        receipt
    }

    fn said(material: &Material, came: &[u8], piece: usize) -> String {
        let difference = receipt(material, came, piece).difference;
        difference.map_or_else(String::new, |found| found.to_string())
    }

    #[test]
    fn what_comes_back_is_compared_whatever_its_pieces_are() {
        let hello = Material::new(b"hello", Expect::Echo);
        for piece in 1..6 {
            assert_eq!(said(&hello, b"hello", piece), "");
            assert_eq!(said(&hello, b"he", piece), "");
            let words = "byte 3 came back as 0x4c instead of 0x6c";
            assert_eq!(said(&hello, b"helLO and more", piece), words);
            let words = "more came back than the 5 bytes that were sent";
            assert_eq!(said(&hello, b"hello, hello", piece), words);
        }
        let upper = Material::new(b"hello", Expect::Upper);
        assert_eq!(said(&upper, b"HELLO", 2), "");
        let words = "byte 0 came back as 0x68 instead of 0x48";
        assert_eq!(said(&upper, b"hello", 2), words);
        let nothing = Material::new(b"", Expect::Echo);
        assert!(nothing.sent_from(0).is_empty());
        let words = "more came back than the 0 bytes that were sent";
        assert_eq!(said(&nothing, b"x", 1), words);
    }

    #[test]
    fn much_of_it_is_a_block_again_and_again_in_which_nothing_can_be_left_out() {
        let much = Material::noise(300_000, 1, Expect::Echo);
        let mut bytes = whole(&much);
        assert_eq!(bytes.len(), 300_000);
        assert_eq!(said(&much, &bytes, 10_007), "");
        assert_eq!(receipt(&much, &bytes, 4096).came, 300_000);
        // A buffer is lost.
        bytes.drain(70_000..70_000 + 65_536);
        let found = receipt(&much, &bytes, 4096).difference.expect("it is seen");
        assert!((70_000..70_016).contains(&found.offset), "{found:?}");
    }

    #[test]
    fn what_was_not_sent_after_all_is_not_due() {
        let mut much = Material::noise(300_000, 1, Expect::Echo);
        much.truncate(100_000);
        assert_eq!((much.len(), whole(&much).len()), (100_000, 100_000));
        assert!(much.sent_from(100_000).is_empty());
    }
}
