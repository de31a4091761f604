//! A connection on its way from one worker to another, in this process or the next.
//!
//! Knows the format in which it is written down. `handover` (here and in the daemon) moves it.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::echo::stream::Progress;
use crate::policy::CloseReason;
use crate::policy::limits::Phase;

use super::gate::Admission;
use super::ids::ListenerId;

/// A connection that has left one worker and has not reached another. The unsent bytes are sent
/// before anything else.
#[derive(Debug)]
#[allow(clippy::missing_docs_in_private_items, reason = "the names say it")]
pub struct TransferredConnection<S> {
    pub listener: ListenerId,
    pub socket: S,
    pub unsent: Vec<u8>,
    pub state: ConnectionState,
    /// How the gate of the listener counts it. The gate does so on the way, too: otherwise a worker
    /// that has not stopped yet could accept a client in its stead.
    pub admission: Admission,
}

/// The state of a connection apart from its bytes. Times are in nanoseconds; `active` and
/// `waiting_since` count from when the connection was opened.
///
/// It is part of the hand-over record, which programs of other versions read and write. So a field
/// keeps its name there, a new one has a default, and one that is no longer used is still written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::missing_docs_in_private_items, reason = "the names say it")]
pub struct ConnectionState {
    pub id: u64,
    pub peer: Option<SocketAddr>,
    pub age: u64,
    pub active: u64,
    #[serde(rename = "waits")]
    pub waiting_since: Option<NonZeroU64>,
    /// Written for earlier programs, which require it, and never read: it follows from `progress`
    /// and from whether anything is unsent.
    #[serde(default, skip_deserializing)]
    pub phase: Phase,
    pub progress: Progress,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    /// Why it ends, if its end has begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub close_reason: Option<CloseReason>,
}

/// The time that was `nanos` nanoseconds before `now`, or `now` where the clock does not reach back
/// that far: a machine may have booted since then.
#[must_use]
pub(crate) fn instant_before(now: Instant, nanos: u64) -> Instant {
    now.checked_sub(Duration::from_nanos(nanos)).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &str = r#"{"id":7,"peer":"192.0.2.1:5000","age":5,"active":3,"waits":4,"phase":"Lingering",
        "progress":{"reply":"Echo","one_shot":true,"input":"Ignored","shut_down":true},
        "bytes_received":1,"bytes_sent":0}"#;

    #[test]
    fn the_state_that_an_earlier_program_wrote_is_read_without_its_phase_and_unknown_fields() {
        let state: ConnectionState = serde_json::from_str(STATE).unwrap();
        assert_eq!((state.id, state.waiting_since), (7, NonZeroU64::new(4)));
        assert!(state.progress.shut_down);
        for changed in [
            STATE.replace(r#""phase":"Lingering","#, ""),
            STATE.replace("Lingering", "Unknown"),
            STATE.replace(r#""phase":"#, r#""later":[1],"phase":"#),
        ] {
            let read: ConnectionState = serde_json::from_str(&changed).unwrap();
            assert_eq!(read, state);
        }
    }

    #[test]
    fn the_state_that_an_earlier_program_reads_has_the_phase_that_it_requires() {
        let state = ConnectionState {
            phase: Phase::Lingering,
            ..serde_json::from_str(STATE).unwrap()
        };
        let written = serde_json::to_value(state).unwrap();
        let expected: serde_json::Value = serde_json::from_str(STATE).unwrap();
        assert_eq!(written, expected);
    }
}
