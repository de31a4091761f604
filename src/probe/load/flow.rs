//! The account of one flow of datagrams under load: what was sent, what came back, what is lost.
//!
//! Decides, over bytes and made-up time; knows no socket. A datagram begins with its number, in as
//! many bytes as it has, eight at most; what follows is of the pattern.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::pattern::{Lengths, Pattern};

/// A lost one is remembered for so many timeouts, to be recognized if it still comes.
const REMEMBERED_TIMEOUTS: u32 = 4;

/// One flow.
#[derive(Debug)]
pub(super) struct Flow {
    pattern: Pattern,
    lengths: Lengths,
    base: u64,
    timeout: Duration,
    // Datagrams that are due and not yet sent.
    due: VecDeque<Instant>,
    // Those sent, from number `first` on.
    entries: VecDeque<Entry>,
    first: u64,
    // No entry before this one is on the way.
    waiting_from: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    due: Instant,
    // The timeout counts from here: who was due long ago may have been sent just now.
    sent: Instant,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Lost,
    Answered,
}

/// What a datagram that came is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The echo of one that was due then.
    Answered {
        due: Instant,
    },
    /// The same, after the timeout.
    Late {
        due: Instant,
    },
    Duplicate,
    /// One that was due then, with other bytes than it had.
    Corrupt {
        due: Instant,
    },
    /// Nothing that is on the way.
    Wrong,
}

impl Flow {
    /// The flow of this number.
    pub(super) fn new(number: u64, lengths: Lengths, timeout: Duration) -> Self {
        Self {
            pattern: Pattern::get(),
            lengths,
            base: number * 7919,
            timeout,
            due: VecDeque::new(),
            entries: VecDeque::new(),
            first: 0,
            waiting_from: 0,
        }
    }

    /// So many more datagrams are due.
    pub(super) fn handle_due(&mut self, when: Instant, count: u64) {
        self.due.extend((0..count).map(|_| when));
    }

    fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// The size of the next datagram to be sent, and how many of that size there are; none if none
    /// is due.
    pub(super) fn poll_send(&self) -> Option<(usize, usize)> {
        if self.due.is_empty() {
            return None;
        }
        let size = self.lengths.of(self.next()) as usize;
        let count = if self.lengths.is_fixed() {
            self.due.len()
        } else {
            1
        };
        Some((size, count))
    }

    /// Writes the next datagram, whose size these bytes have: it is about to be sent.
    ///
    /// # Panics
    /// If none is due.
    pub(super) fn write(&mut self, now: Instant, bytes: &mut [u8]) {
        let number = self.next();
        let due = self.due.pop_front().expect("one is due");
        self.entries.push_back(Entry {
            due,
            sent: now,
            state: State::Waiting,
        });
        let (head, rest) = bytes.split_at_mut(bytes.len().min(8));
        head.copy_from_slice(&number.to_le_bytes()[..head.len()]);
        rest.copy_from_slice(self.pattern.piece(self.base + number, rest.len() as u64));
    }

    /// The last of those written, so many, could not be sent now: they are due again.
    pub(super) fn unsend(&mut self, count: usize) {
        for _ in 0..count {
            let Some(entry) = self.entries.pop_back() else {
                return;
            };
            self.due.push_front(entry.due);
        }
        self.waiting_from = self.waiting_from.min(self.next());
    }

    /// A datagram came.
    pub(super) fn handle_arrival(&mut self, bytes: &[u8]) -> Arrival {
        let Some(number) = self.number(bytes) else {
            return Arrival::Wrong;
        };
        let rest = &bytes[bytes.len().min(8)..];
        let is_right = bytes.len() as u64 == self.lengths.of(number)
            && self.pattern.piece(self.base + number, rest.len() as u64) == rest;
        let Some(index) = number.checked_sub(self.first) else {
            // Whoever is no longer remembered had come back before.
            return if is_right {
                Arrival::Duplicate
            } else {
                Arrival::Wrong
            };
        };
        let entry = self.entries.get_mut(index as usize);
        let entry = entry.expect("no number is beyond the last");
        let due = entry.due;
        match (is_right, entry.state) {
            (true, State::Answered) => return Arrival::Duplicate,
            (false, State::Lost | State::Answered) => return Arrival::Wrong,
            _ => {}
        }
        let before = std::mem::replace(&mut entry.state, State::Answered);
        self.forget_answered();
        match before {
            _ if !is_right => Arrival::Corrupt { due },
            State::Lost => Arrival::Late { due },
            _ => Arrival::Answered { due },
        }
    }

    /// Forgets the first ones, as far as they have come back.
    fn forget_answered(&mut self) {
        while let Some(entry) = self.entries.front()
            && entry.state == State::Answered
        {
            self.entries.pop_front();
            self.first += 1;
        }
        self.waiting_from = self.waiting_from.max(self.first);
    }

    /// The number that stands in a datagram: the latest that fits what there is of it.
    fn number(&self, bytes: &[u8]) -> Option<u64> {
        let head = &bytes[..bytes.len().min(8)];
        let mut number = [0; 8];
        number[..head.len()].copy_from_slice(head);
        let number = u64::from_le_bytes(number);
        let last = self.next().checked_sub(1)?;
        match head.len() {
            0 => None,
            8 => (number <= last).then_some(number),
            len => {
                let modulus = 1_u64 << (8 * len);
                let behind = last.wrapping_sub(number) & (modulus - 1);
                last.checked_sub(behind)
            }
        }
    }

    /// Gives up those that have not come back in time, and tells when each was due.
    pub(super) fn handle_timeout(&mut self, now: Instant, mut lost: impl FnMut(Instant)) {
        let timeout = self.timeout;
        while let Some(entry) = self.oldest() {
            if entry.state == State::Waiting {
                if now < entry.sent + timeout {
                    break;
                }
                entry.state = State::Lost;
                let due = entry.due;
                lost(due);
            }
            self.waiting_from += 1;
        }
        let forgotten = self.timeout * REMEMBERED_TIMEOUTS;
        while self.first < self.waiting_from
            && let Some(entry) = self.entries.front()
            && now > entry.sent + forgotten
        {
            self.entries.pop_front();
            self.first += 1;
        }
        self.forget_answered();
    }

    fn oldest(&mut self) -> Option<&mut Entry> {
        let index = usize::try_from(self.waiting_from - self.first).ok()?;
        self.entries.get_mut(index)
    }

    /// Whatever is on the way, or has not been sent, does not come any more: tells when each of them
    /// was due.
    pub(super) fn give_up(&mut self, lost: impl FnMut(Instant)) {
        let next = self.next();
        let sent = self.entries.drain(..);
        let sent = sent.filter(|entry| entry.state == State::Waiting);
        let dues = sent.map(|entry| entry.due).chain(self.due.drain(..));
        dues.for_each(lost);
        (self.first, self.waiting_from) = (next, next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::args::Sizes;

    const TIMEOUT: Duration = Duration::from_millis(100);

    struct Desk {
        flow: Flow,
        begin: Instant,
    }

    impl Desk {
        fn new(size: usize) -> Self {
            let lengths = Lengths::new(
                Sizes {
                    least: size,
                    most: size,
                },
                1,
            );
            Self {
                flow: Flow::new(2, lengths, TIMEOUT),
                begin: Instant::now(),
            }
        }

        fn at(&self, millis: u64) -> Instant {
            self.begin + Duration::from_millis(millis)
        }

        fn send(&mut self, millis: u64) -> Vec<u8> {
            let now = self.at(millis);
            self.flow.handle_due(now, 1);
            let (size, _) = self.flow.poll_send().expect("one is due");
            let mut bytes = vec![0; size];
            self.flow.write(now, &mut bytes);
            bytes
        }

        fn in_flight(&self) -> usize {
            let entries = self.flow.entries.iter();
            entries
                .filter(|entry| entry.state == State::Waiting)
                .count()
        }

        fn lost(&mut self, millis: u64) -> usize {
            let mut count = 0;
            let now = self.at(millis);
            self.flow.handle_timeout(now, |_| count += 1);
            count
        }
    }

    #[test]
    fn each_datagram_is_answered_once_lost_once_late_once() {
        let mut desk = Desk::new(64);
        let (one, two, three) = (desk.send(0), desk.send(10), desk.send(20));
        let answered = Arrival::Answered { due: desk.at(10) };
        assert_eq!(desk.flow.handle_arrival(&two), answered);
        assert_eq!(desk.flow.handle_arrival(&two), Arrival::Duplicate);
        assert_eq!(desk.in_flight(), 2);
        assert_eq!((desk.lost(99), desk.lost(100)), (0, 1));
        let late = Arrival::Late { due: desk.at(0) };
        assert_eq!(desk.flow.handle_arrival(&one), late);
        assert_eq!(desk.flow.handle_arrival(&one), Arrival::Duplicate);
        assert_eq!((desk.lost(500), desk.in_flight()), (1, 0));
        assert_eq!(desk.flow.entries.len(), 0, "nothing is kept for ever");
        // So long ago that nobody knows any more that it was lost.
        assert_eq!(desk.flow.handle_arrival(&three), Arrival::Duplicate);
    }

    #[test]
    fn other_bytes_and_other_sizes_are_wrong() {
        let mut desk = Desk::new(64);
        let mut changed = desk.send(0);
        changed[60] ^= 1;
        assert_eq!(desk.flow.handle_arrival(&[]), Arrival::Wrong);
        assert_eq!(
            desk.flow.handle_arrival(&[7; 64]),
            Arrival::Wrong,
            "nobody's"
        );
        assert_eq!(desk.in_flight(), 1);
        let corrupt = Arrival::Corrupt { due: desk.at(0) };
        assert_eq!(desk.flow.handle_arrival(&changed), corrupt);
        assert_eq!(desk.flow.handle_arrival(&changed), Arrival::Wrong);
        assert_eq!(
            (desk.in_flight(), desk.lost(500)),
            (0, 0),
            "it is not lost as well"
        );
        let sent = desk.send(600);
        let corrupt = Arrival::Corrupt { due: desk.at(600) };
        assert_eq!(desk.flow.handle_arrival(&sent[..63]), corrupt);
    }

    #[test]
    fn a_number_is_found_again_in_a_single_byte() {
        let mut desk = Desk::new(1);
        for millis in 0..1000 {
            let sent = desk.send(millis);
            let due = desk.at(millis);
            assert_eq!(desk.flow.handle_arrival(&sent), Arrival::Answered { due });
            assert_eq!(desk.flow.handle_arrival(&sent), Arrival::Duplicate);
            assert_eq!(desk.flow.entries.len(), 0, "who is back is not kept");
        }
    }

    #[test]
    fn who_could_not_be_sent_is_due_again() {
        let mut desk = Desk::new(16);
        let sent = desk.send(0);
        desk.flow.unsend(1);
        assert_eq!(desk.in_flight(), 0);
        assert_eq!(desk.flow.due.len(), 1, "it is not forgotten");
        assert_eq!(desk.flow.poll_send(), Some((16, 1)));
        let mut again = vec![0; 16];
        desk.flow.write(desk.at(5), &mut again);
        assert_eq!(again, sent);
        let due = desk.at(0);
        assert_eq!(desk.flow.handle_arrival(&again), Arrival::Answered { due });
    }
}
