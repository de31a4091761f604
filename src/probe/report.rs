//! The result: numbers for programs, and the exit status that follows from them.
//!
//! The names of the fields are fixed; fields may be added. Knows nothing of how anything was
//! measured.

use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use crate::cli::exit::Exit;

use super::cause::{Cause, Causes};
use super::latency::Spread;

/// The fields of all commands, each where it applies.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Report {
    /// Messages sent whose fate is known; bytes, of a stream that `send` sends.
    pub sent: Option<u64>,
    /// Messages that came back whole and in time; of a stream, bytes that came back.
    pub received: Option<u64>,
    /// Messages that did not come back; of a stream, bytes.
    pub lost: Option<u64>,
    /// Messages that came back whole, after the timeout.
    pub late: Option<u64>,
    /// Further copies of what had come back.
    pub duplicates: Option<u64>,
    /// Messages that came back behind a later one.
    pub reordered: Option<u64>,
    /// Messages that came back with other bytes, or not as many; of a stream, wrong bytes.
    pub corrupt: Option<u64>,
    /// Of the lost messages: answered from another address than they were sent to.
    pub misaddressed: Option<u64>,
    /// Answers that are no message of ours.
    pub strays: Option<u64>,
    /// Messages that came back whole, in time or late.
    pub messages: Option<u64>,
    /// The bytes of those.
    pub bytes: Option<u64>,
    /// How long it took.
    pub duration_ms: Option<f64>,
    /// From when a message was sent, or due, to when all of it had come back.
    pub rtt_us: Option<Spread>,
    /// How much that varies from one to the next (RFC 3550).
    pub jitter_us: Option<f64>,
    /// Of `ping` from several ports: the port, and its part.
    pub source_port: Option<u16>,
    /// See above.
    pub flows: Option<Vec<Self>>,
    /// Of `load`: messages a second that were due; absent: each followed the one before.
    pub rate: Option<u64>,
    /// Messages a second that came back.
    pub throughput: Option<f64>,
    /// Messages whose time is mostly a delay of this client.
    pub delayed: Option<u64>,
    /// How connections have ended.
    pub ends: Option<Causes>,
    /// Messages on the way when the command was interrupted; not among those sent.
    pub in_flight: Option<u64>,
    /// What went wrong, and how often.
    pub errors: Causes,
}

/// The object for programs: fields that do not apply are left out.
///
/// # Errors
/// Never, for numbers and words.
pub(crate) fn object(report: &impl Serialize) -> serde_json::Result<Value> {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|_, value| !value.is_null());
                fields.values_mut().for_each(strip);
            }
            Value::Array(values) => values.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut value = serde_json::to_value(report)?;
    strip(&mut value);
    Ok(value)
}

/// Milliseconds, with the digits that mean something.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// How a command ends; the exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Verdict {
    /// All was as it should be.
    Good = Exit::Done as u8,
    /// Something was lost, late or wrong, or the command was ended before its result.
    Flawed = Exit::Failed as u8,
    /// Nothing was reached.
    Unreached = Exit::Unreached as u8,
}

impl Verdict {
    /// Of a command that has no result for this reason. Wrong bytes come from a service that was
    /// reached, and an interruption does not show that it was not.
    pub(crate) fn without_result(cause: &Cause) -> Self {
        match cause {
            Cause::Mismatch | Cause::Interrupted | Cause::Deadline => Self::Flawed,
            _ => Self::Unreached,
        }
    }
}
