//! Datagrams whose bytes the user chooses, and how an answer is known among the last of them.
//!
//! Knows bytes; never when anything was sent.

use std::collections::VecDeque;

use super::compare::Expect;
use super::payload::{Messages, Recognized};

/// The last datagrams, which are remembered to know them when they come late or twice.
const REMEMBERED: usize = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Sent {
    expect: Expect,
    pieces: VecDeque<Vec<u8>>,
    /// The number of the first of them.
    first: u64,
}

impl Sent {
    pub(super) fn new(expect: Expect) -> Self {
        Self {
            expect,
            pieces: VecDeque::new(),
            first: 0,
        }
    }

    /// Remembers a datagram.
    pub(super) fn push(&mut self, piece: Vec<u8>) {
        if self.pieces.len() == REMEMBERED {
            self.pieces.pop_front();
            self.first += 1;
        }
        self.pieces.push_back(piece);
    }

    /// The last datagram of which this is so.
    fn find(&self, is_it: impl Fn(&[u8]) -> bool) -> Option<u64> {
        let is_it = |piece: &Vec<u8>| is_it(&self.expect.of(piece));
        let index = self.pieces.iter().rposition(is_it);
        index.map(|index| self.first + index as u64)
    }
}

impl Messages for Sent {
    fn bytes(&self, number: u64) -> Vec<u8> {
        let index = number.checked_sub(self.first);
        let piece = index.and_then(|index| self.pieces.get(index as usize));
        piece.cloned().unwrap_or_default()
    }

    fn expected(&self, number: u64) -> Vec<u8> {
        self.expect.of(&self.bytes(number))
    }

    /// The input has no numbers: the last that is the same, else the last that resembles it, else
    /// the one that is waited for.
    fn recognize(&self, bytes: &[u8], len: usize, next: u64) -> Recognized {
        let last = next.saturating_sub(1);
        if self.expect == Expect::Any {
            return Recognized::Whole(last);
        }
        if let Some(number) = self.find(|own| len == bytes.len() && own == bytes) {
            return Recognized::Whole(number);
        }
        let resembles = |own: &[u8]| {
            let pairs = own.iter().zip(bytes);
            pairs.filter(|(own, came)| own == came).count() * 2 > bytes.len()
        };
        match self.find(resembles) {
            Some(number) => Recognized::Changed(number),
            None => Recognized::Likely(last),
        }
    }

    /// The one that is waited for.
    fn quoted(&self, _bytes: &[u8], _next: u64) -> Option<u64> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_recognized_among_the_last_datagrams() {
        let mut sent = Sent::new(Expect::Echo);
        for number in 0..97 {
            sent.push(format!("text {number}").into_bytes());
        }
        for text in ["first", "second", "third"] {
            sent.push(text.into());
        }
        assert_eq!((sent.pieces.len(), sent.first), (REMEMBERED, 84));
        let check = |sent: &Sent, text: &str, meant| {
            let found = sent.recognize(text.as_bytes(), text.len(), 100);
            assert_eq!(found, meant, "{text}");
        };
        check(&sent, "third", Recognized::Whole(99));
        check(&sent, "first", Recognized::Whole(97));
        check(&sent, "text 90", Recognized::Whole(90));
        check(&sent, "sEcond", Recognized::Changed(98));
        check(&sent, "THIRD", Recognized::Likely(99));
        sent.expect = Expect::Any;
        check(&sent, "what", Recognized::Whole(99));
    }
}
