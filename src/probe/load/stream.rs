//! The account of one stream under load: which bytes may be sent, which have come back, and how
//! long each message took.
//!
//! Decides, over bytes and made-up time; knows no socket. A message is so many bytes: where it ends
//! nobody but us knows.

use std::collections::VecDeque;
use std::time::Instant;

use super::pattern::{Lengths, Pattern};

/// The most bytes that are sent at once. A driver receives on a connection while no more than this
/// is unsent on it, so that two peers that both send never wait for each other.
const SEND_BYTES_MAX: u64 = 32 * 1024;

/// One stream.
#[derive(Debug)]
pub(super) struct Stream {
    pattern: Pattern,
    lengths: Lengths,
    // Where in the pattern it begins: elsewhere than others, so that bytes of theirs are wrong.
    base: u64,
    // Bytes of all messages that were due.
    due: u64,
    // How many these are.
    begun: u64,
    // Bytes that were given out to be sent, and whether the last of them are still being sent.
    given: u64,
    sending: bool,
    received: u64,
    // How many messages have come back whole, and with which byte the next one will have.
    ended: u64,
    ends_at: u64,
    // When those on the way were due, and how many at that time.
    stamps: VecDeque<(Instant, u64)>,
}

/// What came back is not what was sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong;

/// Messages that have come back whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answered {
    /// When they were due, all at once.
    pub(super) due: Instant,
    pub(super) count: u64,
    /// Of all of them.
    pub(super) bytes: u64,
}

impl Stream {
    /// The stream of this number.
    pub(super) fn new(number: u64, lengths: Lengths) -> Self {
        Self {
            pattern: Pattern::get(),
            lengths,
            base: number * 7919,
            due: 0,
            begun: 0,
            given: 0,
            sending: false,
            received: 0,
            ended: 0,
            ends_at: lengths.of(0),
            stamps: VecDeque::new(),
        }
    }

    /// So many more messages are due.
    pub(super) fn handle_due(&mut self, when: Instant, count: u64) {
        self.due += self.lengths.sum(self.begun..self.begun + count);
        self.begun += count;
        match self.stamps.back_mut() {
            Some((due, others)) if *due == when => *others += count,
            _ => self.stamps.push_back((when, count)),
        }
    }

    /// The bytes to be sent next, if there are any and none are being sent.
    pub(super) fn next_send(&self) -> Option<&'static [u8]> {
        if self.sending || self.given == self.due {
            return None;
        }
        let len = (self.due - self.given).min(SEND_BYTES_MAX);
        Some(self.pattern.piece(self.base + self.given, len))
    }

    /// The first `len` of these bytes are being sent.
    pub(super) fn handle_given(&mut self, len: usize) {
        self.given += len as u64;
        self.sending = true;
    }

    /// The bytes given out are with the kernel.
    pub(super) fn handle_sent(&mut self) {
        self.sending = false;
    }

    /// Bytes have come back: tells which messages are now whole.
    pub(super) fn handle_received(
        &mut self,
        bytes: &[u8],
        mut answered: impl FnMut(Answered),
    ) -> Result<(), Wrong> {
        let received = self.received + bytes.len() as u64;
        if received > self.given || !self.pattern.is_at(self.base + self.received, bytes) {
            return Err(Wrong);
        }
        self.received = received;
        while self.ends_at <= received
            && let Some((due, waiting)) = self.stamps.front_mut()
        {
            let due = *due;
            let (mut count, mut bytes) = (0, 0);
            while self.ends_at <= received && count < *waiting {
                count += 1;
                bytes += self.lengths.of(self.ended);
                self.ended += 1;
                self.ends_at += self.lengths.of(self.ended);
            }
            *waiting -= count;
            if *waiting == 0 {
                self.stamps.pop_front();
            }
            answered(Answered { due, count, bytes });
        }
        Ok(())
    }

    /// Whatever is on the way does not come any more: tells when how many of them were due.
    pub(super) fn give_up(&mut self, mut lost: impl FnMut(Instant, u64)) {
        let stamps = self.stamps.drain(..);
        stamps.for_each(|(due, count)| lost(due, count));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::probe::args::Sizes;

    fn stream(least: usize, most: usize) -> Stream {
        Stream::new(3, Lengths::new(Sizes { least, most }, 1))
    }

    /// Sends what is to be sent next.
    fn send(stream: &mut Stream) -> Option<&'static [u8]> {
        let bytes = stream.next_send()?;
        stream.handle_given(bytes.len());
        Some(bytes)
    }

    fn receive(stream: &mut Stream, bytes: &[u8]) -> Result<Vec<u64>, Wrong> {
        let mut told = Vec::new();
        stream.handle_received(bytes, |answered| told.push(answered.bytes))?;
        Ok(told)
    }

    #[test]
    fn a_message_is_answered_when_its_last_byte_has_come_however_it_comes() {
        let begin = Instant::now();
        let mut stream = stream(10, 10);
        assert_eq!(send(&mut stream), None);
        for millis in 0..3 {
            stream.handle_due(begin + Duration::from_millis(millis), 1);
        }
        let bytes = send(&mut stream).expect("three messages");
        assert_eq!(bytes.len(), 30);
        assert_eq!(send(&mut stream), None, "one piece at a time");
        stream.handle_due(begin, 1);
        assert_eq!(receive(&mut stream, &bytes[..9]), Ok(vec![]));
        assert_eq!(receive(&mut stream, &bytes[9..25]), Ok(vec![10, 10]));
        assert_eq!(stream.stamps.len(), 2);
        stream.handle_sent();
        let more = send(&mut stream).expect("the fourth");
        // Whoever is fast echoes before it is said that all was sent.
        let all = [&bytes[25..], more].concat();
        assert_eq!(receive(&mut stream, &all), Ok(vec![10, 10]));
        assert_eq!(stream.stamps.len(), 0);
    }

    #[test]
    fn a_message_that_is_longer_than_a_piece_is_sent_in_several() {
        let mut stream = stream(1_000_000, 1_000_000);
        stream.handle_due(Instant::now(), 1);
        let mut answered = 0;
        let mut pieces = 0;
        while let Some(bytes) = send(&mut stream) {
            stream.handle_sent();
            pieces += 1;
            answered += receive(&mut stream, bytes).expect("right").len();
        }
        assert_eq!(
            (pieces, answered),
            (1_000_000_u64.div_ceil(SEND_BYTES_MAX), 1)
        );
    }

    #[test]
    fn messages_of_many_sizes_are_each_recognized() {
        let mut stream = stream(1, 2000);
        let lengths = stream.lengths;
        let begin = Instant::now();
        for millis in 0..50 {
            stream.handle_due(begin + Duration::from_millis(millis), 1);
        }
        let mut bytes = vec![];
        while let Some(piece) = send(&mut stream) {
            bytes.extend(piece);
            stream.handle_sent();
        }
        let sizes: Vec<u64> = (0..50).map(|number| lengths.of(number)).collect();
        let parts = bytes
            .chunks(777)
            .flat_map(|part| receive(&mut stream, part).expect("right"));
        assert_eq!(parts.collect::<Vec<_>>(), sizes);
    }

    #[test]
    fn messages_that_were_due_at_once_are_told_together() {
        let begin = Instant::now();
        let later = begin + Duration::from_millis(1);
        let mut stream = stream(10, 10);
        stream.handle_due(begin, 3);
        stream.handle_due(later, 2);
        let bytes = send(&mut stream).expect("five messages");
        let mut told = Vec::new();
        for part in [&bytes[..25], &bytes[25..]] {
            let tell =
                |answered: Answered| told.push((answered.due, answered.count, answered.bytes));
            stream.handle_received(part, tell).expect("right");
        }
        assert_eq!(told, [(begin, 2, 20), (begin, 1, 10), (later, 2, 20)]);
    }

    #[test]
    fn other_bytes_or_more_of_them_are_wrong() {
        let sent = |stream: &mut Stream| {
            stream.handle_due(Instant::now(), 1);
            send(stream).expect("a message").to_vec()
        };
        let mut one = stream(10, 10);
        let mut bytes = sent(&mut one);
        bytes[4] ^= 1;
        assert_eq!(receive(&mut one, &bytes), Err(Wrong));
        let mut two = stream(10, 10);
        let bytes = sent(&mut two);
        assert_eq!(receive(&mut two, &bytes), Ok(vec![10]));
        assert_eq!(receive(&mut two, &[0]), Err(Wrong), "never sent");
        let mut other = Stream::new(4, two.lengths);
        sent(&mut other);
        assert_eq!(receive(&mut other, &bytes), Err(Wrong), "somebody else's");
    }
}
