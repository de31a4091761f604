//! The account of every message: what was sent and when, what came back, and so what became of it.
//!
//! Decides, over bytes and made-up time; knows no socket. Each message ends as exactly one of
//! received, late, corrupt, misaddressed and lost, or is still on the way, so that the numbers add
//! up to what was sent. Duplicates and reordered ones are counted beside.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::cause::{Cause, Causes};
use super::latency::{Jitter, Latencies};
use super::payload::Payload;
use super::report::{Report, Verdict};

/// So many messages are remembered: who comes back later than that is nobody known.
const REMEMBERED_MAX: usize = 1 << 17;

/// The messages of one flow.
#[derive(Debug)]
pub(super) struct Ledger {
    payload: Payload,
    timeout: Duration,
    entries: VecDeque<Entry>,
    /// The number of the first entry.
    first: u64,
    /// All before it are no longer waited for.
    waiting_from: u64,
    /// The latest that has come back.
    latest: Option<u64>,
    tally: Tally,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    sent: Instant,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    /// Not back in time: lost, unless it still comes.
    Missing,
    Settled,
}

/// What the account says.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) late: u64,
    pub(super) lost: u64,
    pub(super) corrupt: u64,
    pub(super) misaddressed: u64,
    pub(super) duplicates: u64,
    pub(super) reordered: u64,
    /// Bytes of those that came back whole, in time or not.
    pub(super) bytes: u64,
    pub(super) errors: Causes,
    /// Of those received, and of those late.
    pub(super) latencies: Latencies,
    pub(super) jitter: Jitter,
}

/// Something that came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Which message it is, if that can be told.
    pub(super) number: Option<u64>,
    pub(super) kind: Kind,
    /// Since it was sent.
    pub(super) rtt: Duration,
    /// It came behind a later one.
    pub(super) reordered: bool,
}

/// What it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Received,
    Late,
    /// A further copy.
    Duplicate,
    /// With other bytes, or not as many.
    Corrupt(Difference),
    /// From elsewhere.
    Misaddressed,
    /// Nothing that we have sent.
    Stray,
}

/// In what it differs from what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    /// It has so many bytes.
    Size(usize),
    /// The first wrong byte is at this offset, and so many are wrong.
    Bytes { first: usize, count: usize },
}

impl Ledger {
    pub(super) fn new(payload: Payload, timeout: Duration) -> Self {
        Self {
            payload,
            timeout,
            entries: VecDeque::new(),
            first: 0,
            waiting_from: 0,
            latest: None,
            tally: Tally::default(),
        }
    }

    /// A message is about to be sent; returns its number.
    pub(super) fn handle_sent(&mut self, now: Instant) -> u64 {
        if self.entries.len() == REMEMBERED_MAX {
            // It may still be waited for, if very much is sent very fast: then it is lost.
            self.give_up(self.first, State::Missing, Some(Cause::TimedOut));
            self.entries.pop_front();
            self.first += 1;
            self.waiting_from = self.waiting_from.max(self.first);
        }
        let state = State::Waiting;
        self.entries.push_back(Entry { sent: now, state });
        self.tally.sent += 1;
        self.next() - 1
    }

    /// The number of the next message.
    fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn entry(&mut self, number: u64) -> Option<&mut Entry> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.entries.get_mut(index)
    }

    /// No longer waited for: missing after the timeout, settled where it is known why.
    fn give_up(&mut self, number: u64, state: State, cause: Option<Cause>) -> bool {
        let Some(entry) = self.entry(number) else {
            return false;
        };
        if entry.state != State::Waiting {
            return false;
        }
        entry.state = state;
        self.tally.lost += 1;
        if let Some(cause) = cause {
            self.tally.errors.count(cause);
        }
        true
    }

    /// It was sent in vain. Whether that was news.
    pub(super) fn handle_failure(&mut self, number: u64, cause: Cause) -> bool {
        self.give_up(number, State::Settled, Some(cause))
    }

    /// All that are on the way were sent in vain.
    pub(super) fn handle_end(&mut self, cause: &Cause) -> u64 {
        let count = self.tally.lost;
        for number in self.waiting_from..self.next() {
            self.give_up(number, State::Settled, Some(cause.clone()));
        }
        self.tally.lost - count
    }

    /// When the next message will be missing.
    pub(super) fn poll_timeout(&mut self) -> Option<Instant> {
        while let Some(entry) = self.entry(self.waiting_from) {
            if entry.state == State::Waiting {
                let sent = entry.sent;
                return Some(sent + self.timeout);
            }
            self.waiting_from += 1;
        }
        None
    }

    /// The next message that has become missing by now.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Option<u64> {
        let number = (self.poll_timeout()? <= now).then_some(self.waiting_from)?;
        self.give_up(number, State::Missing, Some(Cause::TimedOut));
        Some(number)
    }

    /// Until when a missing one may still come: as long again after the last was sent.
    pub(super) fn poll_patience(&self) -> Option<Instant> {
        let is_missing = |entry: &Entry| entry.state == State::Missing;
        let last = self.entries.iter().rev().find(|entry| is_missing(entry))?;
        Some(last.sent + self.timeout * 2)
    }

    /// Bytes came, of which this is what there was room for.
    pub(super) fn handle_answer(
        &mut self,
        now: Instant,
        bytes: &[u8],
        len: usize,
        from_peer: bool,
    ) -> Answer {
        let claimed = self.claimed(bytes);
        let whole = claimed.filter(|number| {
            len == bytes.len() && self.payload.expected(*number).as_slice() == bytes
        });
        match whole {
            Some(number) => self.settle_whole(now, number, from_peer),
            None if from_peer => self.settle_corrupt(now, bytes, len, claimed),
            // Neither from whom nor what we have asked for.
            None => stray(),
        }
    }

    /// The message that this may be. Empty ones have no number: it is the one that was sent first.
    fn claimed(&self, bytes: &[u8]) -> Option<u64> {
        if self.payload.size() > 0 {
            return self.payload.claimed(bytes, self.next());
        }
        let find = |state| {
            let mut entries = self.entries.iter().zip(self.first..);
            entries.find(|(entry, _)| entry.state == state)
        };
        let waiting = find(State::Waiting).or_else(|| find(State::Missing));
        let number = waiting.map(|(_, number)| number);
        number.or_else(|| self.next().checked_sub(1))
    }

    fn settle_whole(&mut self, now: Instant, number: u64, from_peer: bool) -> Answer {
        let (latest, timeout) = (self.latest, self.timeout);
        let Some(entry) = self.entry(number) else {
            return stray();
        };
        let rtt = now.saturating_duration_since(entry.sent);
        let before = std::mem::replace(&mut entry.state, State::Settled);
        let answer = |kind, reordered| Answer {
            number: Some(number),
            kind,
            rtt,
            reordered,
        };
        if before == State::Settled {
            self.tally.duplicates += 1;
            return answer(Kind::Duplicate, false);
        }
        if before == State::Missing {
            self.found();
        }
        if !from_peer {
            self.tally.misaddressed += 1;
            self.tally.errors.count(Cause::Mismatch);
            return answer(Kind::Misaddressed, false);
        }
        self.tally.bytes += self.payload.size() as u64;
        self.tally.latencies.record(rtt);
        self.tally.jitter.record(rtt);
        let reordered = latest.is_some_and(|latest| number < latest);
        self.tally.reordered += u64::from(reordered);
        self.latest = self.latest.max(Some(number));
        if rtt > timeout {
            self.tally.late += 1;
            answer(Kind::Late, reordered)
        } else {
            self.tally.received += 1;
            answer(Kind::Received, reordered)
        }
    }

    fn settle_corrupt(
        &mut self,
        now: Instant,
        bytes: &[u8],
        len: usize,
        claimed: Option<u64>,
    ) -> Answer {
        let Some(number) = self.likeliest(bytes, claimed) else {
            return stray();
        };
        let expected = self.payload.expected(number);
        let kind = Kind::Corrupt(difference(&expected, bytes, len));
        let entry = self.entry(number).expect("it is one of those remembered");
        let rtt = now.saturating_duration_since(entry.sent);
        if std::mem::replace(&mut entry.state, State::Settled) == State::Missing {
            self.found();
        }
        self.tally.corrupt += 1;
        self.tally.errors.count(Cause::Mismatch);
        Answer {
            number: Some(number),
            kind,
            rtt,
            reordered: false,
        }
    }

    /// The message that has the most of these bytes, among those that have not come back: the one
    /// that they claim to be, unless the number itself is what is wrong.
    fn likeliest(&self, bytes: &[u8], claimed: Option<u64>) -> Option<u64> {
        let is_out = |number: u64| {
            let index = number.checked_sub(self.first)?;
            let entry = self.entries.get(usize::try_from(index).ok()?)?;
            (entry.state != State::Settled).then_some(number)
        };
        let alike = |number: u64| {
            let expected = self.payload.expected(number);
            let same = expected.iter().zip(bytes).filter(|(a, b)| a == b);
            same.count()
        };
        let claimed = claimed.and_then(is_out);
        if let Some(number) = claimed
            && alike(number) * 2 >= bytes.len()
        {
            return Some(number);
        }
        // The earliest of those that are alike.
        let out = (self.first..self.next()).filter_map(is_out).rev();
        out.max_by_key(|number| alike(*number))
    }

    /// What was missing has come after all.
    fn found(&mut self) {
        self.tally.lost -= 1;
        self.tally.errors.uncount(&Cause::TimedOut);
    }

    /// How many are on the way.
    pub(super) fn in_flight(&self) -> u64 {
        let index = usize::try_from(self.waiting_from - self.first).expect("it is remembered");
        let waiting = self.entries.iter().skip(index);
        waiting
            .filter(|entry| entry.state == State::Waiting)
            .count() as u64
    }

    /// The account so far.
    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }
}

impl Tally {
    /// The account of others, too. How times vary from one to the next is not of the sum.
    pub(super) fn merge(&mut self, others: &Self) {
        self.sent += others.sent;
        self.received += others.received;
        self.late += others.late;
        self.lost += others.lost;
        self.corrupt += others.corrupt;
        self.misaddressed += others.misaddressed;
        self.duplicates += others.duplicates;
        self.reordered += others.reordered;
        self.bytes += others.bytes;
        self.errors.merge(&others.errors);
        self.latencies.merge(&others.latencies);
    }

    /// For programs.
    pub(super) fn report(&self) -> Report {
        Report {
            sent: Some(self.sent),
            received: Some(self.received),
            lost: Some(self.lost),
            late: Some(self.late),
            duplicates: Some(self.duplicates),
            reordered: Some(self.reordered),
            corrupt: Some(self.corrupt),
            misaddressed: Some(self.misaddressed),
            bytes: Some(self.bytes),
            rtt_us: self.latencies.spread(),
            jitter_us: self.jitter.microseconds(),
            errors: self.errors.clone(),
            ..Report::default()
        }
    }

    /// Whether all was as it should be.
    pub(super) fn verdict(&self) -> Verdict {
        let wrong = self.late + self.corrupt + self.misaddressed;
        match (self.received, self.lost + wrong) {
            (0, _) if self.sent > 0 && wrong == 0 => Verdict::Unreached,
            (_, 0) => Verdict::Good,
            _ => Verdict::Flawed,
        }
    }
}

fn stray() -> Answer {
    Answer {
        number: None,
        kind: Kind::Stray,
        rtt: Duration::ZERO,
        reordered: false,
    }
}

/// In what bytes differ from those expected; of those that came, so many there was no room for.
fn difference(expected: &[u8], bytes: &[u8], len: usize) -> Difference {
    if len != expected.len() {
        return Difference::Size(len);
    }
    let wrong = |(a, b): &(&u8, &u8)| a != b;
    let pairs = || expected.iter().zip(bytes);
    Difference::Bytes {
        first: pairs().position(|pair| wrong(&pair)).unwrap_or(0),
        count: pairs().filter(wrong).count(),
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
