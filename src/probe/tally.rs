//! The figures of an account: how many messages met each fate, how long they took, what went wrong.
//!
//! Knows numbers; the ledger decides what is counted.

use std::time::{Duration, Instant};

use super::cause::Causes;
use super::figures;
use super::latency::{Jitter, Latencies};
use super::report::{Report, Verdict};

/// What the account says.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) late: u64,
    pub(super) lost: u64,
    pub(super) corrupt: u64,
    /// On the way when the command was interrupted; not among those sent.
    pub(super) in_flight: u64,
    /// Of those lost: answered from another address.
    pub(super) misaddressed: u64,
    pub(super) duplicates: u64,
    pub(super) reordered: u64,
    /// Answers that are no message of ours: all, and those from the service.
    pub(super) strays: u64,
    pub(super) service_strays: u64,
    /// Bytes of the messages that came back whole, in time or late.
    pub(super) bytes: u64,
    /// Messages whose time is mostly a delay of our own, and the longest such delay.
    pub(super) delayed: u64,
    pub(super) longest_delay: Duration,
    pub(super) errors: Causes,
    /// Of the messages that came back whole, in time or late.
    pub(super) latencies: Latencies,
    pub(super) jitter: Jitter,
    /// When the last of those came back.
    pub(super) last_answer: Option<Instant>,
}

impl Tally {
    /// Adds the account of another flow. How times vary from one to the next is not part of a sum.
    pub(super) fn merge(&mut self, other: &Self) {
        self.sent += other.sent;
        self.received += other.received;
        self.late += other.late;
        self.lost += other.lost;
        self.corrupt += other.corrupt;
        self.in_flight += other.in_flight;
        self.misaddressed += other.misaddressed;
        self.duplicates += other.duplicates;
        self.reordered += other.reordered;
        self.strays += other.strays;
        self.service_strays += other.service_strays;
        self.bytes += other.bytes;
        self.delayed += other.delayed;
        self.longest_delay = self.longest_delay.max(other.longest_delay);
        self.errors.merge(&other.errors);
        self.latencies.merge(&other.latencies);
        self.last_answer = self.last_answer.max(other.last_answer);
    }

    /// Messages that came back whole, in time or late.
    pub(super) fn whole(&self) -> u64 {
        self.received + self.late
    }

    /// Whether anything was returned from the service, or in its place.
    pub(super) fn has_answers(&self) -> bool {
        self.whole() + self.corrupt + self.misaddressed + self.service_strays > 0
    }

    /// `10 sent, 9 received, 1 lost (10 %)`; what else there was none of is left out.
    pub(super) fn account(&self) -> String {
        let rest = figures::counts(&[
            (self.late, "late"),
            (self.corrupt, "corrupt"),
            (self.in_flight, "in flight"),
            (self.misaddressed, "misaddressed"),
            (self.duplicates, "duplicates"),
            (self.reordered, "reordered"),
            (self.strays, "strays"),
        ]);
        let lost = figures::share(self.lost, self.sent);
        format!(
            "{} sent, {} received, {} lost ({lost}){rest}",
            self.sent, self.received, self.lost
        )
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
            strays: Some(self.strays),
            in_flight: (self.in_flight > 0).then_some(self.in_flight),
            bytes: Some(self.bytes),
            rtt_us: self.latencies.spread(),
            jitter_us: self.jitter.microseconds(),
            errors: self.errors.clone(),
            ..Report::default()
        }
    }

    /// Whether everything was as it should be. Copies and another order are no fault.
    pub(super) fn verdict(&self) -> Verdict {
        let wrong = self.lost + self.late + self.corrupt + self.service_strays;
        match (self.has_answers(), wrong) {
            (false, _) if self.sent > 0 => Verdict::Unreached,
            (_, 0) if self.errors.is_empty() => Verdict::Good,
            _ => Verdict::Flawed,
        }
    }
}
