//! The result: numbers for programs, and the exit status that follows from them.
//!
//! The names of the fields are fixed; fields may be added. Knows nothing of how anything was
//! measured.

use std::time::Duration;

use serde::Serialize;

use crate::cli::exit::Exit;

use super::cause::Causes;
use super::latency::Spread;

/// The fields that the commands have in common, each where it applies.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(default)]
pub struct Report {
    /// Messages sent whose fate is known; bytes, of a stream that `send` sends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent: Option<u64>,
    /// Messages that came back whole and in time; of a stream, bytes that came back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received: Option<u64>,
    /// Messages that did not come back; of a stream, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
    /// Messages that came back whole, after the timeout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late: Option<u64>,
    /// Further copies of what had come back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duplicates: Option<u64>,
    /// Messages that came back behind a later one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reordered: Option<u64>,
    /// Messages that came back with other bytes, or not as many; of a stream, wrong bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corrupt: Option<u64>,
    /// Of the lost messages: answered from another address than they were sent to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub misaddressed: Option<u64>,
    /// Answers that are no message of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strays: Option<u64>,
    /// Of the lost messages: datagrams that had come back to this host, and found its buffer full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped: Option<u64>,
    /// Messages on the way when the command was ended; `sent` does not include them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u64>,
    /// Messages that came back whole, in time or late.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<u64>,
    /// The bytes of those.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How long it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<f64>,
    /// From when a message was sent, or due, to when all of it had come back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<Spread>,
    /// How much that varies from one to the next (RFC 3550).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter_us: Option<f64>,
    /// How long connecting took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_us: Option<Spread>,
    /// What went wrong, and how often.
    pub errors: Causes,
}

/// Milliseconds, with the digits that mean something.
#[must_use]
pub fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// How a command ends; the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Verdict {
    /// All was as it should be.
    Good = Exit::Done as u8,
    /// Something was lost, late or wrong, or the command was ended before its result.
    Flawed = Exit::Failed as u8,
    /// Nothing was reached.
    Unreached = Exit::Unreached as u8,
}

#[cfg(test)]
mod tests {
    use super::super::cause::Cause;
    use super::*;

    #[test]
    fn fields_that_do_not_apply_are_left_out() {
        let mut report = Report {
            sent: Some(2),
            lost: Some(1),
            duration_ms: Some(milliseconds(Duration::from_nanos(1_234_567))),
            ..Report::default()
        };
        report.errors.count(Cause::TimedOut);
        let json = serde_json::to_string(&report).expect("numbers");
        assert_eq!(
            json,
            r#"{"sent":2,"lost":1,"duration_ms":1.235,"errors":{"timed out":1}}"#
        );
    }
}
