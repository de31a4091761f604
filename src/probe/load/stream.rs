//! A stream under load: which bytes may be sent, and which messages have returned.
//!
//! A message is a number of bytes of the noise; where it ends is known only here. Decides, over
//! bytes and times; knows no socket.

use std::time::Instant;

use crate::driver::buffers::BUFFER_BYTES;
use crate::probe::cause::Cause;
use crate::probe::compare::Expect;
use crate::probe::ledger::Ledger;
use crate::probe::payload::{self, Recognized};

/// The most pieces that are being sent at once: the kernel and the service then work on large ones,
/// and a connection leaves buffers to others.
const PIECES_MAX: u8 = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Lane {
    /// The size of each message.
    size: u64,
    expect: Expect,
    pub(super) ledger: Ledger,
    /// Where in the noise this connection begins: elsewhere than others, so that bytes of theirs
    /// are wrong.
    base: u64,
    /// The number of the first message of this connection, and how many were due on it.
    first: u64,
    begun: u64,
    /// Bytes that were given out to be sent, and how many pieces of them are still being sent.
    given: u64,
    sending: u8,
    received: u64,
}

/// What came back is not what was sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wrong;

impl Lane {
    /// The stream of this number.
    pub(super) fn new(number: u64, size: usize, expect: Expect, ledger: Ledger) -> Self {
        payload::prepare(expect);
        Self {
            size: size as u64,
            expect,
            ledger,
            base: number * 7919,
            first: 0,
            begun: 0,
            given: 0,
            sending: 0,
            received: 0,
        }
    }

    /// More messages are due since then.
    pub(super) fn handle_due(&mut self, due: Instant, now: Instant, count: u64) {
        self.begun += count;
        self.ledger.handle_due(due, count);
        for _ in 0..count {
            self.ledger.handle_sent(now);
        }
    }

    /// The bytes to be sent next, if there are any. Fewer than fit into a buffer wait for those
    /// that are being sent, so that small messages leave together.
    pub(super) fn next_send(&self) -> Option<&'static [u8]> {
        let most = BUFFER_BYTES as u64;
        let len = (self.begun * self.size - self.given).min(most);
        let pieces_max = if len == most { PIECES_MAX } else { 1 };
        let may_send = len > 0 && self.sending < pieces_max;
        may_send.then(|| payload::stream_piece(self.base + self.given, len))
    }

    /// The first `len` of these bytes are being sent.
    pub(super) fn handle_given(&mut self, len: usize) {
        self.given += len as u64;
        self.sending += 1;
    }

    /// A piece that was given out is with the kernel.
    pub(super) fn handle_sent(&mut self) {
        self.sending -= 1;
    }

    /// Bytes have returned. At the first wrong one the stream is of no more use.
    pub(super) fn handle_received(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Wrong> {
        let known = (self.given - self.received).min(bytes.len() as u64) as usize;
        let position = self.base + self.received;
        let wrong = payload::stream_difference(position, &bytes[..known], self.expect);
        let right = wrong.unwrap_or(known);
        let before = self.received / self.size;
        self.received += right as u64;
        let ended = self.received / self.size;
        for number in self.first + before..self.first + ended {
            let message = Recognized::Whole(number);
            let size = self.size as usize;
            self.ledger.handle_answer(now, message, size, true);
        }
        if right == bytes.len() {
            return Ok(());
        }
        let what = match ended < self.begun {
            true => Recognized::Changed(self.first + ended),
            false => Recognized::Unknown,
        };
        self.ledger.handle_answer(now, what, 0, true);
        Err(Wrong)
    }

    /// The connection has ended: what is outstanding is lost. The next one begins with the next
    /// message, and the noise where it is. Returns how many messages are lost.
    pub(super) fn handle_end(&mut self, cause: &Cause) -> u64 {
        self.base += self.begun * self.size;
        self.first += self.begun;
        (self.begun, self.given, self.received) = (0, 0, 0);
        self.sending = 0;
        self.ledger.handle_end(cause)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn lane(size: usize) -> Lane {
        let ledger = Ledger::new(Duration::from_secs(1), None);
        Lane::new(3, size, Expect::Echo, ledger)
    }

    fn due(lane: &mut Lane, count: u64) {
        let now = Instant::now();
        lane.handle_due(now, now, count);
    }

    /// Sends what is to be sent next.
    fn send(lane: &mut Lane) -> Option<&'static [u8]> {
        let bytes = lane.next_send()?;
        lane.handle_given(bytes.len());
        Some(bytes)
    }

    fn receive(lane: &mut Lane, bytes: &[u8]) -> Result<u64, Wrong> {
        let before = lane.ledger.tally().received;
        lane.handle_received(Instant::now(), bytes)?;
        Ok(lane.ledger.tally().received - before)
    }

    #[test]
    fn a_message_is_answered_when_its_last_byte_has_come_however_it_comes() {
        let mut lane = lane(10);
        assert_eq!(send(&mut lane), None);
        due(&mut lane, 3);
        let bytes = send(&mut lane).expect("three messages");
        assert_eq!(bytes.len(), 30);
        assert_eq!(send(&mut lane), None, "one piece at a time");
        due(&mut lane, 1);
        assert_eq!(receive(&mut lane, &bytes[..9]), Ok(0));
        assert_eq!(receive(&mut lane, &bytes[9..25]), Ok(2));
        lane.handle_sent();
        let more = send(&mut lane).expect("the fourth");
        // A fast service echoes before the sending is reported as done.
        let all = [&bytes[25..], more].concat();
        assert_eq!(receive(&mut lane, &all), Ok(2));
        assert_eq!(lane.ledger.outstanding(), 0);
        assert_eq!(lane.ledger.tally().bytes, 40);
    }

    #[test]
    fn whole_buffers_leave_one_behind_the_other_and_what_is_smaller_alone() {
        let mut lane = lane(BUFFER_BYTES);
        due(&mut lane, 5);
        for _ in 0..PIECES_MAX {
            assert_eq!(send(&mut lane).map(<[u8]>::len), Some(BUFFER_BYTES));
        }
        assert_eq!(send(&mut lane), None, "others need buffers, too");
        lane.handle_sent();
        assert_eq!(send(&mut lane).map(<[u8]>::len), Some(BUFFER_BYTES));
        let mut small = self::lane(10);
        due(&mut small, 1);
        assert_eq!(send(&mut small).map(<[u8]>::len), Some(10));
        due(&mut small, 2);
        assert_eq!(send(&mut small), None, "more may come to it");
        small.handle_sent();
        assert_eq!(send(&mut small).map(<[u8]>::len), Some(20));
    }

    #[test]
    fn more_bytes_than_were_sent_are_wrong() {
        let mut lane = lane(10);
        due(&mut lane, 1);
        let bytes = send(&mut lane).expect("a message");
        assert_eq!(receive(&mut lane, bytes), Ok(1));
        assert_eq!(receive(&mut lane, &[0]), Err(Wrong), "never sent");
        assert_eq!(lane.ledger.tally().service_strays, 1);
        let mut other = self::lane(10);
        other.base = 4 * 7919;
        due(&mut other, 1);
        send(&mut other);
        assert_eq!(receive(&mut other, bytes), Err(Wrong), "of another stream");
    }
}
