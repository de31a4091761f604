//! What a daemon leaves to its successor, described: everything except the descriptors.
//!
//! Knows no descriptor but by its place in a list, and no clock: times are ages, and when the record
//! was written. A record has a version of its own, apart from the program's: a successor that does
//! not know it is never executed.
//!
//! `listeners` and `control` describe what they own, and `handover` writes and reads the whole.
//!
//! ```text
//!   "echod handover 1\n"   length of the JSON, 8 bytes   JSON   the unsent bytes
//! ```

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::protocol::schema::ReloadResult;
use crate::stats::Totals;
use crate::worker::transfer::ConnectionState;

use crate::daemon::privileges::Landlock;

/// The version that is written. A field with a default may be added where a program that does not know
/// it continues all the same; whatever such a program would lose, as the state of a listener, or could
/// not read, as a new key of the configuration, takes a new version.
pub(crate) const VERSION: u32 = 2;

/// The versions that are read: all that is new in version 2 has a default.
const VERSIONS_READ: RangeInclusive<u32> = 1..=VERSION;

/// Whether a record of this version can be read.
pub(crate) fn is_read(version: u32) -> bool {
    VERSIONS_READ.contains(&version)
}

/// What a program says that reads this version.
pub(crate) const YES: &str = "echod reads these records";

const MAGIC: &str = "echod handover ";

/// See the module.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::daemon) struct Record {
    /// The version of the program that wrote it.
    pub program: String,
    /// `CLOCK_MONOTONIC` when it was written, in nanoseconds.
    pub written: u64,
    /// The same when the workers were stopped. Earlier programs know it by this name.
    #[serde(rename = "rested")]
    pub stopped: u64,
    /// How long the service has run, in nanoseconds.
    pub uptime: u64,
    /// The configuration in force, as TOML, with what was overridden at run time.
    pub config: String,
    /// Its log level was set at run time.
    #[serde(default)]
    pub log_level_overridden: bool,
    /// The names of the texts that it came from.
    pub files: Vec<String>,
    /// What tells these texts from others.
    #[serde(default)]
    pub fingerprint: Option<u64>,
    /// How many configurations have been in force.
    pub generation: u64,
    /// What came of the last reload.
    pub last_reload: ReloadResult,
    /// What a rollback restores, and when.
    #[serde(default)]
    pub trial: Trial,
    /// What closed listeners have counted.
    pub departed: Totals,
    /// The largest number of a peer.
    pub last_peer: u64,
    pub listeners: Vec<Listener>,
    pub connections: Vec<Connection>,
    pub sources: Vec<Source>,
    pub control: Option<Control>,
    /// What the service manager has passed and no listener has taken.
    #[serde(default)]
    pub passed: Vec<Passed>,
    /// What this process is held to, over an exec too.
    pub landlock: Option<Landlock>,
}

/// What a rollback restores, and when that happens by itself.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(in crate::daemon) struct Trial {
    pub before: Option<Version>,
    pub unconfirmed: Option<Unconfirmed>,
}

/// A configuration that was in force.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::daemon) struct Version {
    /// As TOML, with what was overridden at run time.
    pub config: String,
    pub files: Vec<String>,
    pub fingerprint: Option<u64>,
    pub log_level_overridden: bool,
    /// Keys by the names of listeners.
    pub overridden: Vec<(String, Vec<String>)>,
}

/// A reload that is rolled back unless it is confirmed.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::daemon) struct Unconfirmed {
    pub id: u64,
    /// How long it may still be confirmed since the record was written, in nanoseconds.
    pub left: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(in crate::daemon) struct Listener {
    /// Its name in the configuration in force.
    pub name: String,
    /// Of one that is no longer in it: the configuration that it had.
    pub retired: Option<String>,
    /// Keys that were overridden at run time.
    pub overridden: Vec<String>,
    pub totals: Totals,
    /// The highest number of connections at one time.
    #[serde(default)]
    pub peak: u32,
    #[serde(default)]
    pub standing: Standing,
    pub sockets: Vec<Socket>,
}

/// Whether a listener takes new clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::daemon) enum Standing {
    #[default]
    Listening,
    Paused,
    Holding,
    /// How much longer connections may continue, in nanoseconds.
    Draining {
        left: u64,
    },
}

/// A listening or datagram socket.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::daemon) struct Socket {
    pub id: u32,
    pub descriptor: usize,
    /// As configured.
    pub address: String,
    /// Device and inode of its file, which is removed in the end.
    pub file: Option<(u64, u64)>,
    /// The name under which the service manager keeps it.
    pub stored: Option<String>,
    /// The service manager has bound it.
    pub passed: Option<Adopted>,
}

/// What is known of a socket that the service manager has passed.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Adopted {
    /// It is here for its name, not for its address.
    pub by_name: bool,
    /// The backlog that the `.socket` unit has given it; the kernel does not report that of a Unix
    /// socket.
    pub backlog: Option<u32>,
}

/// A socket that the service manager has passed.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::daemon) struct Passed {
    pub name: String,
    pub descriptor: usize,
}

#[derive(Debug, Serialize, Deserialize)]
pub(in crate::daemon) struct Connection {
    /// Its place in the list of listeners.
    pub listener: usize,
    /// The worker that had it.
    pub worker: usize,
    pub descriptor: usize,
    /// How many of the bytes behind the record are its unsent ones.
    pub unsent: usize,
    pub state: ConnectionState,
}

/// A source of datagrams seen lately. Ages in nanoseconds.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::daemon) struct Source {
    /// Its listener's place.
    pub listener: usize,
    pub worker: usize,
    pub id: u64,
    pub source: Name,
    /// The id of the socket that it sent its last one to, and the address.
    pub socket: u32,
    pub address: Option<std::net::IpAddr>,
    pub age: u64,
    pub idle: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
}

/// The name of a source.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::daemon) enum Name {
    Inet(std::net::SocketAddr),
    Unix(Vec<u8>),
}

/// The control socket.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::daemon) struct Control {
    pub descriptor: usize,
    pub path: std::path::PathBuf,
    /// Device and inode of its file.
    pub file: Option<(u64, u64)>,
    pub clients: Vec<Client>,
}

/// A client that waits for an answer, or is idle.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::daemon) struct Client {
    pub descriptor: usize,
    /// The part of its next request that has arrived.
    pub unread: Vec<u8>,
    /// It waits for the outcome of the upgrade: whether it takes several replies (`more`), and none
    /// (`oneway`).
    pub waits: Option<(bool, bool)>,
}

impl Record {
    /// The record in bytes; the unsent bytes of the connections follow it.
    pub(super) fn encode(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).expect("names, numbers and texts");
        let mut bytes = format!("{MAGIC}{VERSION}\n").into_bytes();
        bytes.extend((json.len() as u64).to_le_bytes());
        bytes.extend(json);
        bytes
    }

    /// Reads a record; returns it with the bytes that follow it.
    ///
    /// # Errors
    /// Why it can't be read.
    pub(super) fn decode(bytes: &[u8]) -> Result<(Self, &[u8]), String> {
        let end = bytes.iter().take(64).position(|byte| *byte == b'\n');
        let (head, rest) = bytes.split_at(end.ok_or("it is not a record")? + 1);
        let version = std::str::from_utf8(head)
            .ok()
            .and_then(|head| head.trim_end().strip_prefix(MAGIC));
        let version = version.ok_or("it is not a record")?;
        if !version.parse().is_ok_and(is_read) {
            return Err(format!(
                "it is of version {version}, and this program reads versions up to {VERSION}"
            ));
        }
        let (len, rest) = rest.split_first_chunk().ok_or("it is cut short")?;
        let len = usize::try_from(u64::from_le_bytes(*len)).map_err(|error| error.to_string())?;
        let (json, unsent) = rest.split_at_checked(len).ok_or("it is cut short")?;
        let record: Self = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let described: usize = record.connections.iter().map(|client| client.unsent).sum();
        if described != unsent.len() {
            return Err(format!(
                "it describes {described} unsent bytes, and {} follow it",
                unsent.len()
            ));
        }
        Ok((record, unsent))
    }
}

#[cfg(test)]
mod tests {
    use crate::echo::stream::{Input, Progress};
    use crate::policy::limits::Phase;
    use crate::protocol::schema::{ReloadOutcome, Trigger};

    use super::*;

    fn record() -> Record {
        let state = ConnectionState {
            id: 7,
            peer: Some("192.0.2.1:5000".parse().unwrap()),
            age: 5,
            active: 3,
            waiting_since: std::num::NonZeroU64::new(4),
            phase: Phase::Open,
            progress: Progress {
                reply: crate::echo::Reply::Echo,
                one_shot: false,
                input: Input::Answered,
                shut_down: false,
            },
            bytes_received: 1,
            bytes_sent: 0,
            close_reason: None,
        };
        Record {
            program: "0.1.0".into(),
            written: 10,
            stopped: 9,
            uptime: 8,
            config: "[listener.tcp]".into(),
            log_level_overridden: false,
            files: vec!["echod.toml".into()],
            fingerprint: Some(7),
            generation: 3,
            last_reload: ReloadResult {
                id: 3,
                generation: 3,
                trigger: Trigger::Signal,
                outcome: ReloadOutcome::Applied,
                at: "now".into(),
                duration_us: 1,
                errors: Vec::new(),
                warnings: Vec::new(),
                changes: Vec::new(),
                kept: 0,
                changes_omitted: 0,
                summary: String::new(),
                rollback: false,
                confirm_within_ms: None,
                confirmed: None,
            },
            trial: Trial::default(),
            departed: Totals::default(),
            last_peer: 7,
            listeners: Vec::new(),
            connections: vec![Connection {
                listener: 0,
                worker: 1,
                descriptor: 2,
                unsent: 3,
                state,
            }],
            sources: Vec::new(),
            control: None,
            passed: Vec::new(),
            landlock: None,
        }
    }

    fn encoded() -> Vec<u8> {
        let mut bytes = record().encode();
        bytes.extend(b"abc");
        bytes
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let bytes = encoded();
        let (read, unsent) = Record::decode(&bytes).unwrap();
        assert_eq!(format!("{read:?}"), format!("{:?}", record()));
        assert_eq!(unsent, b"abc");
    }

    #[test]
    fn a_listener_that_an_earlier_program_wrote_is_read_without_its_peak_and_state() {
        let listener = Listener {
            name: "main".into(),
            retired: None,
            overridden: Vec::new(),
            totals: Totals::default(),
            peak: 0,
            standing: Standing::Listening,
            sockets: Vec::new(),
        };
        let mut written = serde_json::to_value(&listener).unwrap();
        for field in ["peak", "standing"] {
            written.as_object_mut().unwrap().remove(field).unwrap();
        }
        let read: Listener = serde_json::from_value(written).unwrap();
        assert_eq!(format!("{read:?}"), format!("{listener:?}"));
    }

    #[test]
    fn records_of_versions_that_are_known_are_read_and_others_refused_with_both_numbers() {
        let bytes = encoded();
        let rest = bytes.strip_prefix(b"echod handover 2\n").unwrap();
        let decode = |version: &str| {
            let head = format!("echod handover {version}\n").into_bytes();
            let bytes = [&head, rest].concat();
            Record::decode(&bytes).map(|(record, _)| record.program)
        };
        assert!(decode("1").is_ok() && decode("2").is_ok());
        for unknown in ["0", "3", "99", "x"] {
            let error = decode(unknown).unwrap_err();
            assert!(
                error.contains(unknown) && error.contains("up to 2"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_cut_short_or_no_record_is_refused_wherever_it_ends() {
        let bytes = encoded();
        for len in 0..bytes.len() {
            assert!(Record::decode(&bytes[..len]).is_err(), "{len} bytes");
        }
        assert!(Record::decode(&[bytes.as_slice(), b"more"].concat()).is_err());
        assert!(Record::decode(&[0xff; 200]).is_err());
    }
}
