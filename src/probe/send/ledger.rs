//! Datagrams that go one by one, and what becomes of each: right, wrong, lost, late, twice, or back
//! from somebody else.
//!
//! Knows bytes and never a socket.

use std::collections::VecDeque;
use std::time::Duration;

use super::comparison::describe_difference;
use crate::probe::args::Expect;
use crate::probe::cause::{Cause, Causes};
use crate::probe::latency::Latencies;
use crate::probe::report::{Report, Verdict, milliseconds};

/// So many of the last ones are remembered, to know them when they come late or twice.
const REMEMBERED: usize = 16;

/// Nobody is there if so many have not come back, and never one.
const VAIN_MAX: u64 = 3;

/// What was sent, and what became of it.
#[derive(Debug)]
pub(super) struct Ledger {
    expect: Expect,
    /// The last ones, the one that is waited for at the end.
    entries: VecDeque<Entry>,
    sent: u64,
    received: u64,
    lost: u64,
    late: u64,
    duplicates: u64,
    corrupt: u64,
    misaddressed: u64,
    in_flight: u64,
    bytes: u64,
    latencies: Latencies,
    causes: Causes,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    expected: Vec<u8>,
    fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Awaited,
    Lost,
    Back,
}

impl Ledger {
    pub(super) fn new(expect: Expect) -> Self {
        Self {
            expect,
            entries: VecDeque::new(),
            sent: 0,
            received: 0,
            lost: 0,
            late: 0,
            duplicates: 0,
            corrupt: 0,
            misaddressed: 0,
            in_flight: 0,
            bytes: 0,
            latencies: Latencies::default(),
            causes: Causes::default(),
        }
    }

    /// How many have been sent; the number of the last one.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// Bytes that came back right.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn causes(&self) -> &Causes {
        &self.causes
    }

    /// Whether the last one may still come back.
    pub(super) fn is_waiting(&self) -> bool {
        self.last().is_some_and(|last| last.fate == Fate::Awaited)
    }

    /// Whether so many were sent in vain that nobody is there.
    pub(super) fn is_hopeless(&self) -> bool {
        self.is_in_vain() && self.lost >= VAIN_MAX
    }

    /// Whether anything was sent, and nothing at all came back.
    pub(super) fn is_in_vain(&self) -> bool {
        let came = self.received + self.late + self.corrupt + self.misaddressed;
        self.lost > 0 && came == 0
    }

    fn last(&self) -> Option<&Entry> {
        self.entries.back()
    }

    pub(super) fn handle_sent(&mut self, bytes: &[u8]) {
        self.sent += 1;
        let expected = match self.expect {
            Expect::Echo | Expect::Any => bytes.to_vec(),
            Expect::Upper => bytes.to_ascii_uppercase(),
        };
        if self.entries.len() == REMEMBERED {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry {
            number: self.sent,
            expected,
            fate: Fate::Awaited,
        });
    }

    /// A datagram of this length has come from the service, so long after the last one was sent; of
    /// its bytes as many as there was room for. Says what is wrong with it.
    pub(super) fn handle_received(
        &mut self,
        bytes: &[u8],
        len: usize,
        after: Duration,
    ) -> Option<String> {
        let differs = |entry: &Entry| match self.expect {
            Expect::Any => None,
            _ => describe_difference(&entry.expected, bytes, len),
        };
        let awaited = self.last().filter(|last| last.fate == Fate::Awaited);
        if let Some(last) = awaited
            && differs(last).is_none()
        {
            self.received += 1;
            self.bytes += len as u64;
            self.latencies.record(after);
            self.settle(Fate::Back);
            return None;
        }
        let earlier = self.entries.iter().rposition(|entry| {
            entry.fate != Fate::Awaited && len == entry.expected.len() && bytes == entry.expected
        });
        if let Some(index) = earlier {
            return Some(self.handle_again(index));
        }
        let Some(last) = awaited else {
            self.causes.count(Cause::Mismatch);
            return Some(format!("{len} bytes came that nobody waited for"));
        };
        let words = format!("datagram {}: {}", last.number, differs(last)?);
        self.corrupt += 1;
        self.causes.count(Cause::Mismatch);
        self.settle(Fate::Back);
        Some(words)
    }

    /// One that is waited for no longer has come.
    fn handle_again(&mut self, index: usize) -> String {
        let entry = &mut self.entries[index];
        let what = match std::mem::replace(&mut entry.fate, Fate::Back) {
            Fate::Lost => {
                self.lost -= 1;
                self.late += 1;
                "late"
            }
            Fate::Back | Fate::Awaited => {
                self.duplicates += 1;
                "once more"
            }
        };
        format!("datagram {}: came back {what}", entry.number)
    }

    fn settle(&mut self, fate: Fate) {
        if let Some(last) = self.entries.back_mut() {
            last.fate = fate;
        }
    }

    /// Somebody else has sent a datagram. If it is the one that is waited for, it came back, but not
    /// from where it should.
    pub(super) fn handle_stranger(&mut self, bytes: &[u8], len: usize) {
        self.causes.count(Cause::Mismatch);
        let is_it = |last: &Entry| len == last.expected.len() && bytes == last.expected;
        if self.is_waiting() && self.last().is_some_and(is_it) {
            self.misaddressed += 1;
            self.settle(Fate::Back);
        }
    }

    /// The one that is waited for will not come, or not in time.
    pub(super) fn handle_loss(&mut self, cause: Cause) {
        if self.is_waiting() {
            self.lost += 1;
            self.causes.count(cause);
            self.settle(Fate::Lost);
        }
    }

    /// The user wants no more.
    pub(super) fn handle_interrupt(&mut self) {
        if self.is_waiting() {
            self.in_flight += 1;
        }
    }

    pub(super) fn report(&self, took: Duration) -> Report {
        Report {
            sent: Some(self.sent),
            received: Some(self.received),
            lost: Some(self.lost),
            late: Some(self.late),
            duplicates: Some(self.duplicates),
            corrupt: Some(self.corrupt),
            misaddressed: Some(self.misaddressed),
            in_flight: (self.in_flight > 0).then_some(self.in_flight),
            bytes: Some(self.bytes),
            duration_ms: Some(milliseconds(took)),
            rtt_us: self.latencies.spread(),
            errors: self.causes.clone(),
            ..Report::default()
        }
    }

    /// Whether each came back once, right and in time.
    pub(super) fn verdict(&self) -> Verdict {
        let is_good = self.received == self.sent && self.duplicates == 0 && self.causes.is_empty();
        match is_good {
            true => Verdict::Good,
            false => Verdict::Flawed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_micros(50);

    fn hear(ledger: &mut Ledger, text: &str) -> String {
        let said = ledger.handle_received(text.as_bytes(), text.len(), SOON);
        said.unwrap_or_default()
    }

    fn numbers(ledger: &Ledger) -> String {
        let mut report = ledger.report(SOON);
        report.duration_ms = None;
        report.rtt_us = None;
        serde_json::to_string(&report).expect("numbers")
    }

    #[test]
    fn each_comes_back_before_the_next_one_goes() {
        let mut ledger = Ledger::new(Expect::Upper);
        for text in ["", "one", "two"] {
            ledger.handle_sent(text.as_bytes());
            assert!(ledger.is_waiting());
            assert_eq!(hear(&mut ledger, &text.to_uppercase()), "");
            assert!(!ledger.is_waiting());
        }
        assert_eq!(ledger.verdict(), Verdict::Good);
        assert_eq!((ledger.sent(), ledger.bytes()), (3, 6));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_number() {
        let mut ledger = Ledger::new(Expect::Echo);
        ledger.handle_sent(b"one");
        assert_eq!(
            hear(&mut ledger, "ONE"),
            "datagram 1: byte 0: 0x4f 'O' came back instead of 0x6f 'o'"
        );
        ledger.handle_sent(b"two");
        assert_eq!(
            hear(&mut ledger, "tw"),
            "datagram 2: 2 bytes came back instead of 3"
        );
        assert_eq!(ledger.verdict(), Verdict::Flawed);
        assert_eq!(
            numbers(&ledger),
            r#"{"sent":2,"received":0,"lost":0,"late":0,"duplicates":0,"corrupt":2,"misaddressed":0,"bytes":0,"errors":{"mismatch":2}}"#
        );
    }

    #[test]
    fn late_is_told_from_wrong_and_twice_from_both() {
        let mut ledger = Ledger::new(Expect::Echo);
        ledger.handle_sent(b"one");
        ledger.handle_loss(Cause::TimedOut);
        ledger.handle_sent(b"two");
        assert_eq!(hear(&mut ledger, "one"), "datagram 1: came back late");
        assert!(ledger.is_waiting());
        assert_eq!(hear(&mut ledger, "two"), "");
        assert_eq!(hear(&mut ledger, "two"), "datagram 2: came back once more");
        assert_eq!(
            hear(&mut ledger, "three"),
            "5 bytes came that nobody waited for"
        );
        assert_eq!(
            numbers(&ledger),
            r#"{"sent":2,"received":1,"lost":0,"late":1,"duplicates":1,"corrupt":0,"misaddressed":0,"bytes":3,"errors":{"timed out":1,"mismatch":1}}"#
        );
    }

    #[test]
    fn what_comes_from_elsewhere_has_come_back_but_not_as_it_should() {
        let mut ledger = Ledger::new(Expect::Echo);
        ledger.handle_sent(b"one");
        ledger.handle_stranger(b"other", 5);
        assert!(ledger.is_waiting(), "that was not it");
        ledger.handle_stranger(b"one", 3);
        assert!(!ledger.is_waiting());
        assert_eq!(ledger.verdict(), Verdict::Flawed);
        assert!(!ledger.is_in_vain());
        assert_eq!(
            numbers(&ledger),
            r#"{"sent":1,"received":0,"lost":0,"late":0,"duplicates":0,"corrupt":0,"misaddressed":1,"bytes":0,"errors":{"mismatch":2}}"#
        );
    }

    #[test]
    fn nobody_is_there_when_the_first_ones_are_all_lost() {
        let mut ledger = Ledger::new(Expect::Any);
        for number in 1..=3 {
            assert!(!ledger.is_hopeless(), "{number}");
            ledger.handle_sent(b"hello");
            ledger.handle_loss(Cause::TimedOut);
        }
        assert!(ledger.is_hopeless());
        assert_eq!(ledger.causes().of(&Cause::TimedOut), 3);
    }

    #[test]
    fn anything_may_be_the_answer_where_that_is_said() {
        let mut ledger = Ledger::new(Expect::Any);
        ledger.handle_sent(b"hello");
        assert_eq!(hear(&mut ledger, "good morning"), "");
        ledger.handle_sent(b"hello");
        ledger.handle_interrupt();
        assert_eq!(ledger.report(SOON).in_flight, Some(1));
    }
}
