//! The account of every message of a flow: when it was due and sent, what came back, and so what
//! became of it.
//!
//! Each message ends as exactly one of received, late, lost and corrupt: these add up to what was
//! sent. Counted beside them are further copies, messages behind a later one, answers from another
//! address, and bytes that belong to no message.
//!
//! Decides, over numbers and times; knows neither bytes nor sockets.

use std::cell::{Ref, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::cause::Cause;
use super::payload::Recognized;
use super::tally::Tally;

/// Messages that are remembered behind one that is missing: an answer to an older one counts as a
/// further copy.
const REMEMBERED_MAX: usize = 1 << 16;

/// The delay of our own that is worth a word.
const DELAY_MIN: Duration = Duration::from_millis(1);

/// The messages of one flow.
#[derive(Debug)]
pub(super) struct Ledger {
    timeout: Duration,
    /// Only messages that were due in this time are counted; none: all are.
    window: Option<Range<Instant>>,
    entries: VecDeque<Entry>,
    /// The number of the first entry. All before it are settled.
    first: u64,
    /// No message before this one is waited for.
    waiting_from: u64,
    /// The first message that is due and not yet sent.
    unsent_from: u64,
    /// Messages that are due or waited for.
    outstanding: u64,
    /// The latest that has returned.
    latest: Option<u64>,
    /// Messages that are lost and may still come back, and when the last of them was sent.
    missing: u64,
    last_missing: Option<Instant>,
    /// The flows of a load have one account together.
    tally: Rc<RefCell<Tally>>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    due: Instant,
    /// The timeout begins here: what was due long ago may have been sent just now.
    sent: Instant,
    fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Not yet sent.
    Due,
    Waiting,
    /// Not back in time: lost, unless it still arrives.
    Missing,
    /// Answered from another address: lost, unless the service answers as well.
    Elsewhere,
    Settled,
}

/// Something that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Which message it is, if that is known.
    pub(super) number: Option<u64>,
    pub(super) kind: AnswerKind,
    /// The time since the message was due.
    pub(super) rtt: Duration,
    /// It came behind a later one.
    pub(super) reordered: bool,
}

/// What an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AnswerKind {
    Received,
    Late,
    /// A further copy.
    Duplicate,
    /// With other bytes, or not as many.
    Corrupt,
    /// Whole, from another address.
    Misaddressed,
    /// No message of ours.
    Stray,
}

impl Ledger {
    pub(super) fn new(timeout: Duration, window: Option<Range<Instant>>) -> Self {
        Self {
            timeout,
            window,
            entries: VecDeque::new(),
            first: 0,
            waiting_from: 0,
            unsent_from: 0,
            outstanding: 0,
            latest: None,
            missing: 0,
            last_missing: None,
            tally: Rc::default(),
        }
    }

    /// Another flow, with the same account.
    pub(super) fn beside(&self) -> Self {
        Self {
            tally: Rc::clone(&self.tally),
            ..Self::new(self.timeout, self.window.clone())
        }
    }

    /// More messages are due since this time.
    pub(super) fn handle_due(&mut self, due: Instant, count: u64) {
        let (sent, fate) = (due, Fate::Due);
        for _ in 0..count {
            self.entries.push_back(Entry { due, sent, fate });
        }
        self.outstanding += count;
        self.count(due, |tally| tally.sent += count);
    }

    /// The next message that is due is being sent; returns its number.
    ///
    /// # Panics
    /// If none is due.
    pub(super) fn handle_sent(&mut self, now: Instant) -> u64 {
        let number = self.unsent_from;
        let entry = self.entry(number).expect("a message is due");
        (entry.sent, entry.fate) = (now, Fate::Waiting);
        self.unsent_from += 1;
        number
    }

    /// The last messages that were sent did not leave: they are due again.
    pub(super) fn handle_unsent(&mut self, count: u64) {
        for number in self.unsent_from.saturating_sub(count)..self.unsent_from {
            let entry = self.entry(number).expect("it was sent just now");
            if entry.fate == Fate::Waiting {
                entry.fate = Fate::Due;
            }
        }
        self.unsent_from -= count;
    }

    /// The number of the next message to be sent: all before it were.
    pub(super) fn next_sent(&self) -> u64 {
        self.unsent_from
    }

    /// Messages that are due and not yet sent.
    pub(super) fn unsent(&self) -> u64 {
        self.next() - self.unsent_from
    }

    /// Messages that are due or waited for.
    pub(super) fn outstanding(&self) -> u64 {
        self.outstanding
    }

    fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Changes the account, if this time counts.
    fn count(&self, time: Instant, change: impl FnOnce(&mut Tally)) {
        let window = self.window.as_ref();
        if window.is_none_or(|window| window.contains(&time)) {
            change(&mut self.tally.borrow_mut());
        }
    }

    fn entry(&mut self, number: u64) -> Option<&mut Entry> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.entries.get_mut(index)
    }

    fn is_waiting(&mut self, number: u64) -> bool {
        self.entry(number)
            .is_some_and(|entry| entry.fate == Fate::Waiting)
    }

    /// A message was sent in vain, for a reason that is known. Whether that is news.
    pub(super) fn handle_failure(&mut self, number: u64, cause: &Cause) -> bool {
        self.lose(number, Fate::Settled, cause)
    }

    /// What is outstanding will not come back, for this reason; returns how many messages that are.
    pub(super) fn handle_end(&mut self, cause: &Cause) -> u64 {
        let before = self.outstanding;
        for number in self.waiting_from..self.next() {
            self.lose(number, Fate::Settled, cause);
        }
        self.unsent_from = self.next();
        self.retire();
        before - self.outstanding
    }

    /// The command is ended: what is outstanding is neither received nor lost. It counts as in
    /// flight, or as never sent.
    pub(super) fn handle_interrupt(&mut self) {
        for number in self.waiting_from..self.next() {
            let entry = *self.entry(number).expect("it is remembered");
            if matches!(entry.fate, Fate::Due | Fate::Waiting) {
                let is_in_flight = entry.fate == Fate::Waiting;
                self.count(entry.due, |tally| {
                    tally.sent -= 1;
                    tally.in_flight += u64::from(is_in_flight);
                });
            }
        }
        self.entries.clear();
        self.outstanding = 0;
    }

    /// Gives up a message that is due or waited for. Whether it was.
    fn lose(&mut self, number: u64, fate: Fate, cause: &Cause) -> bool {
        let Some(entry) = self.entry(number) else {
            return false;
        };
        if !matches!(entry.fate, Fate::Due | Fate::Waiting) {
            return false;
        }
        let Entry { due, sent, .. } = *entry;
        let was_due = entry.fate == Fate::Due;
        entry.fate = fate;
        self.outstanding -= 1;
        if was_due && number == self.unsent_from {
            self.unsent_from += 1;
        }
        if fate == Fate::Missing {
            self.missing += 1;
            self.last_missing = Some(sent);
        }
        self.count(due, |tally| {
            tally.lost += 1;
            tally.errors.count(cause.clone());
        });
        true
    }

    /// When the next message will be missing.
    pub(super) fn poll_timeout(&mut self) -> Option<Instant> {
        while let Some(entry) = self.entry(self.waiting_from) {
            match entry.fate {
                Fate::Waiting => return Some(entry.sent + self.timeout),
                Fate::Due => return None,
                Fate::Missing | Fate::Elsewhere | Fate::Settled => self.waiting_from += 1,
            }
        }
        None
    }

    /// The next message that has become missing by now.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Option<u64> {
        let number = (self.poll_timeout()? <= now).then_some(self.waiting_from)?;
        self.lose(number, Fate::Missing, &Cause::TimedOut);
        self.retire();
        Some(number)
    }

    /// Until when it is worth waiting for missing messages, so that late ones are not taken for
    /// lost ones: another timeout. Not where nothing at all has returned.
    pub(super) fn poll_patience(&self) -> Option<Instant> {
        let last = self.last_missing.filter(|_| self.missing > 0)?;
        let has_answers = self.tally.borrow().has_answers();
        has_answers.then(|| last + self.timeout * 2)
    }

    /// Something came, which is this, and has this length.
    pub(super) fn handle_answer(
        &mut self,
        now: Instant,
        what: Recognized,
        len: usize,
        from_service: bool,
    ) -> Answer {
        let (number, is_whole) = match what {
            Recognized::Whole(number) => (number, true),
            Recognized::Changed(number) if from_service => (number, false),
            Recognized::Empty => match self.likely_empty() {
                Some(number) => (number, true),
                None => return self.handle_stray(now, from_service),
            },
            Recognized::Likely(number) if from_service && self.is_waiting(number) => {
                (number, false)
            }
            Recognized::Changed(_) | Recognized::Likely(_) | Recognized::Unknown => {
                return self.handle_stray(now, from_service);
            }
        };
        let Some(entry) = self.entry(number) else {
            // All that is no longer remembered was settled.
            return self.handle_copy(number, now, now);
        };
        let Entry { due, fate, .. } = *entry;
        match fate {
            Fate::Due => self.handle_stray(now, from_service),
            Fate::Settled => self.handle_copy(number, due, now),
            Fate::Elsewhere if !from_service => self.handle_copy(number, due, now),
            Fate::Waiting | Fate::Missing | Fate::Elsewhere => {
                let answer = match from_service && is_whole {
                    true => self.settle_whole(number, now, len),
                    false => self.settle_wrong(number, now, from_service),
                };
                self.retire();
                answer
            }
        }
    }

    /// The message that an empty answer belongs to: the one that was sent first.
    fn likely_empty(&mut self) -> Option<u64> {
        let last = self.unsent_from.checked_sub(1);
        self.oldest().or(last)
    }

    /// The message that was sent first, of those that are waited for; else of those missing.
    pub(super) fn oldest(&mut self) -> Option<u64> {
        if self.poll_timeout().is_some() {
            return Some(self.waiting_from);
        }
        let mut entries = self.entries.iter().zip(self.first..);
        let missing = entries.find(|(entry, _)| entry.fate == Fate::Missing);
        missing.map(|(_, number)| number)
    }

    fn handle_stray(&mut self, now: Instant, from_service: bool) -> Answer {
        self.count(now, |tally| {
            tally.strays += 1;
            tally.service_strays += u64::from(from_service);
            tally.errors.add(Cause::Mismatch, u64::from(from_service));
        });
        answer(None, AnswerKind::Stray, now, now)
    }

    fn handle_copy(&mut self, number: u64, due: Instant, now: Instant) -> Answer {
        self.count(due, |tally| tally.duplicates += 1);
        answer(Some(number), AnswerKind::Duplicate, due, now)
    }

    /// Takes a message out of those outstanding or missing; returns what was known of it.
    fn settle(&mut self, number: u64, fate: Fate) -> Entry {
        let entry = self.entry(number).expect("it is remembered");
        let before = *entry;
        entry.fate = fate;
        let wrong_cause = match before.fate {
            Fate::Missing => Cause::TimedOut,
            Fate::Elsewhere => Cause::Mismatch,
            Fate::Due | Fate::Waiting | Fate::Settled => {
                self.outstanding -= 1;
                return before;
            }
        };
        self.missing -= u64::from(before.fate == Fate::Missing);
        self.count(before.due, |tally| {
            tally.lost -= 1;
            tally.errors.uncount(&wrong_cause);
        });
        before
    }

    /// It has other bytes, or comes from elsewhere.
    fn settle_wrong(&mut self, number: u64, now: Instant, from_service: bool) -> Answer {
        let (fate, kind) = match from_service {
            true => (Fate::Settled, AnswerKind::Corrupt),
            false => (Fate::Elsewhere, AnswerKind::Misaddressed),
        };
        let entry = self.settle(number, fate);
        self.count(entry.due, |tally| {
            tally.corrupt += u64::from(from_service);
            tally.lost += u64::from(!from_service);
            tally.misaddressed += u64::from(!from_service);
            tally.errors.count(Cause::Mismatch);
        });
        answer(Some(number), kind, entry.due, now)
    }

    fn settle_whole(&mut self, number: u64, now: Instant, len: usize) -> Answer {
        let entry = self.settle(number, Fate::Settled);
        let mut answer = answer(Some(number), AnswerKind::Received, entry.due, now);
        // A delay of our own is part of its time, and not of its timeout.
        let delay = entry.sent.saturating_duration_since(entry.due);
        let is_late = answer.rtt.saturating_sub(delay) > self.timeout;
        if is_late {
            answer.kind = AnswerKind::Late;
        }
        let reordered = self.latest.is_some_and(|latest| number < latest);
        answer.reordered = reordered;
        self.latest = self.latest.max(Some(number));
        self.count(entry.due, |tally| {
            tally.late += u64::from(is_late);
            tally.received += u64::from(!is_late);
            tally.reordered += u64::from(reordered);
            tally.bytes += len as u64;
            tally.latencies.record(answer.rtt);
            tally.jitter.record(answer.rtt);
            tally.last_answer = tally.last_answer.max(Some(now));
            if delay >= DELAY_MIN && delay * 2 >= answer.rtt {
                tally.delayed += 1;
                tally.longest_delay = tally.longest_delay.max(delay);
            }
        });
        answer
    }

    /// Forgets what is settled, and missing messages behind which too much is remembered.
    fn retire(&mut self) {
        while let Some(entry) = self.entries.front() {
            match entry.fate {
                Fate::Settled => {}
                Fate::Missing if self.entries.len() > REMEMBERED_MAX => self.missing -= 1,
                Fate::Elsewhere if self.entries.len() > REMEMBERED_MAX => {}
                _ => break,
            }
            self.entries.pop_front();
            self.first += 1;
        }
        self.waiting_from = self.waiting_from.max(self.first);
        self.unsent_from = self.unsent_from.max(self.first);
    }

    /// The account until now.
    pub(super) fn tally(&self) -> Ref<'_, Tally> {
        self.tally.borrow()
    }

    /// The account at its end.
    pub(super) fn into_tally(self) -> Tally {
        self.tally.take()
    }
}

fn answer(number: Option<u64>, kind: AnswerKind, due: Instant, now: Instant) -> Answer {
    Answer {
        number,
        kind,
        rtt: now.saturating_duration_since(due),
        reordered: false,
    }
}

#[cfg(test)]
mod tests;
