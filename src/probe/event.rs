//! What can happen to messages, and how a person reads it.
//!
//! Makes text, and never prints it; messages are counted from 1 there.

use std::time::Duration;

use super::cause::Cause;
use super::compare::Difference;
use super::figures;
use super::ledger::{Answer, AnswerKind};
use crate::cli::text::counted;
use crate::sys::measure::{Arrival, ReceiveFailure};

/// Something that has happened.
#[derive(Debug)]
pub(super) enum Event {
    /// An answer was received.
    Answered(Answered),
    /// The message of this number has not come back in time.
    Missing(u64),
    /// It was sent in vain for this reason; what the network or this host reports of a datagram.
    Failed(u64, Cause, Option<ReceiveFailure>),
    /// The stream has ended for this reason while this number of messages was on the way.
    Ended(Cause, u64),
}

/// An answer, and how it came.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) answer: Answer,
    pub(super) bytes: Vec<u8>,
    /// Of a corrupt one.
    pub(super) difference: Option<Difference>,
    /// Of a datagram.
    pub(super) arrival: Option<Arrival>,
}

impl Event {
    /// Whether a message came back as it should: whole, in time and in order.
    pub(super) fn is_well(&self) -> bool {
        let is_well = |answer: Answer| answer.kind == AnswerKind::Received && !answer.reordered;
        matches!(self, Self::Answered(came) if is_well(came.answer))
    }

    /// In a line; what has not come back within this time is missing.
    pub(super) fn words(&self, timeout: Duration) -> String {
        match self {
            Self::Answered(answered) => answered.words(),
            Self::Missing(number) => {
                let time = figures::setting(timeout);
                format!("{}: no answer within {time}", number + 1)
            }
            Self::Failed(number, cause, failure) => {
                let reporter = failure.as_ref().and_then(|failure| failure.reporter);
                let by = reporter.map(|reporter| format!(", reported by {reporter}"));
                format!("{}: {cause}{}", number + 1, by.unwrap_or_default())
            }
            Self::Ended(cause, count) => {
                let words = match cause {
                    Cause::Closed => "the service has closed the connection",
                    Cause::Reset => "the service has reset the connection",
                    Cause::Mismatch => "other bytes than were sent: connecting again",
                    cause => cause.words(),
                };
                format!("{words}: {} lost", counted(*count, "message"))
            }
        }
    }
}

impl Answered {
    /// Where a datagram came from.
    pub(super) fn source(&self) -> String {
        let arrival = self.arrival.as_ref();
        arrival.map_or_else(String::new, |arrival| arrival.source.to_string())
    }

    fn words(&self) -> String {
        let answer = self.answer;
        let ttl = self.arrival.as_ref().and_then(|arrival| arrival.ttl);
        let ttl = ttl.map_or_else(String::new, |ttl| format!(", ttl {ttl}"));
        let from = match self.source() {
            source if source.is_empty() => source,
            source => format!(" from {source}{ttl}"),
        };
        let Some(number) = answer.number else {
            return format!("bytes that were never sent{from}");
        };
        let what = match answer.kind {
            AnswerKind::Received | AnswerKind::Stray => String::new(),
            AnswerKind::Late => " (late)".into(),
            // When it was sent may be forgotten.
            AnswerKind::Duplicate => return format!("{}: duplicate{from}", number + 1),
            AnswerKind::Misaddressed => " (from another address than it was sent to)".into(),
            AnswerKind::Corrupt => {
                let words = self.difference.map(|found| format!(": {found}"));
                format!(" (corrupt{})", words.unwrap_or_default())
            }
        };
        let reordered = if answer.reordered { " (reordered)" } else { "" };
        let time = figures::duration(answer.rtt);
        format!("{}: {time}{what}{reordered}{from}", number + 1)
    }
}
