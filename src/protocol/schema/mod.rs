//! What goes over the control socket, as types: one for each type, request and reply of
//! `io.echod.Control.varlink`.
//!
//! Knows names and values only. The interface text is the contract and these mirror it: a test
//! reads the text and compares. A client ignores the fields of a reply that it does not know;
//! a request with a parameter that is not known is refused, since ignoring it could do more
//! than was asked for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::wire::Parameters;

pub(crate) use super::diagnostic::{DIAGNOSTICS_MAX, Diagnostic, bounded};
pub use super::reload_result::ChangeAction;
pub(crate) use super::reload_result::{Change, ReloadOutcome, ReloadResult, Trigger};

/// The daemon as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::missing_docs_in_private_items,
    reason = "each field is explained in the interface text"
)]
pub(crate) struct Status {
    pub version: String,
    pub pid: u32,
    pub uptime_ms: u64,
    pub state: String,
    pub driver: String,
    pub workers: u32,
    pub config: Vec<String>,
    pub generation: u64,
    pub last_reload: ReloadResult,
    pub listeners: u64,
    pub connections: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    // A daemon of an earlier version does not report what follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_on_disk: Option<OnDisk>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected_on_disk: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_socket: Option<String>,
    #[serde(default)]
    pub log_level: String,
    #[serde(default)]
    pub max_connections: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptors: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_descriptors: Option<u64>,
    #[serde(default)]
    pub refused: BTreeMap<String, u64>,
    #[serde(default)]
    pub closed: BTreeMap<String, u64>,
    #[serde(default)]
    pub faults: u64,
    #[serde(default)]
    pub restart_required: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_in_ms: Option<u64>,
    #[serde(default)]
    pub listener_states: BTreeMap<String, u64>,
}

/// The configuration files, compared with the configuration in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnDisk {
    /// They are what was read.
    Same,
    /// A reload would read something else.
    Changed,
    /// One that was read does not exist any more.
    Missing,
    /// They can't be read.
    Unreadable,
}

/// One listener, all its sockets together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::missing_docs_in_private_items,
    reason = "each field is explained in the interface text"
)]
pub(crate) struct Listener {
    pub name: String,
    pub protocol: String,
    pub addresses: Vec<String>,
    pub reply: String,
    pub state: ListenerState,
    pub sockets: u32,
    /// Absent for datagrams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backlog: Option<Backlog>,
    pub connections: u64,
    /// A daemon of an earlier version does not say.
    #[serde(default)]
    pub max_connections: u32,
    #[serde(default)]
    pub peak: u32,
    pub accepted: u64,
    pub refused: BTreeMap<String, u64>,
    #[serde(default)]
    pub closed: BTreeMap<String, u64>,
    #[serde(default)]
    pub faults: u64,
    pub datagrams_received: u64,
    pub datagrams_sent: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub overridden: Vec<String>,
}

/// What a listener does at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListenerState {
    /// It takes new peers.
    Listening,
    /// It turns new peers away.
    Paused,
    /// It leaves new peers in the backlog.
    Holding,
    /// It takes no new peers and waits for those that are there.
    Draining,
    /// It is no longer configured; peers of it are still there.
    Retired,
}

impl ListenerState {
    /// The state's name on the wire and in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Listening => "listening",
            Self::Paused => "paused",
            Self::Holding => "holding",
            Self::Draining => "draining",
            Self::Retired => "retired",
        }
    }
}

/// What pausing, resuming or draining has changed of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::missing_docs_in_private_items,
    reason = "each field is explained in the interface text"
)]
pub(crate) struct StateChange {
    pub listener: String,
    pub before: ListenerState,
    pub after: ListenerState,
    pub connections: u64,
}

/// The queue of connections that wait to be accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Backlog {
    /// What was asked for, of each listening socket.
    pub requested: u32,
    /// What the kernel made of it.
    pub effective: u32,
    /// The kernel's cap, net.core.somaxconn.
    pub limit: u32,
    /// Connections that wait now, in all sockets.
    pub queued: u64,
    /// Connections lost because the queue was full, in all sockets.
    pub overflows: u64,
}

/// A connection, or a source of datagrams seen lately.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::missing_docs_in_private_items,
    reason = "each field is explained in the interface text"
)]
pub(crate) struct Peer {
    pub id: u64,
    pub listener: String,
    pub protocol: String,
    pub address: String,
    pub local_address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    pub age_ms: u64,
    pub idle_ms: u64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retransmits: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_queue: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
}

/// What became of an upgrade.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::missing_docs_in_private_items,
    reason = "each field is explained in the interface text"
)]
pub(crate) struct UpgradeResult {
    pub from: String,
    pub to: String,
    pub listeners: u64,
    pub connections: u64,
    pub lost: u64,
    pub pause_us: u64,
    #[serde(default)]
    pub warnings: Vec<Diagnostic>,
}

/// The parameters of a call. A field that must be there is an `Option` too: `handle` can then
/// say which one is missing.
macro_rules! request {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(crate) struct $name {
            $(
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub(crate) $field: Option<$type>,
            )*
        }
    };
}

request! {
    /// Of `ListListeners`.
    ListListeners { name: String }
}
request! {
    /// Of `ListPeers`.
    ListPeers {
        listener: String,
        address: String,
        older_ms: u64,
        idle_ms: u64,
        sort: String,
        limit: u64,
    }
}
request! {
    /// Of `SetBacklog`.
    SetBacklog { listener: String, backlog: i64 }
}
request! {
    /// Of `PauseListener`.
    PauseListener { listener: String, all: bool, hold: bool }
}
request! {
    /// Of `ResumeListener`.
    ResumeListener { listener: String, all: bool }
}
request! {
    /// Of `DrainListener`.
    DrainListener { listener: String, all: bool, deadline_ms: i64 }
}
request! {
    /// Of `ClosePeers`.
    ClosePeers {
        id: u64,
        listener: String,
        address: String,
        older_ms: u64,
        idle_ms: u64,
        dry_run: bool,
        list: bool,
    }
}
request! {
    /// Of `Reload`.
    Reload { dry_run: bool, confirm_within_ms: u64 }
}
request! {
    /// Of `Rollback`.
    Rollback { dry_run: bool }
}
request! {
    /// Of `SetLogLevel`.
    SetLogLevel { level: String }
}

/// No parameters at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

/// The values that a method returns, or that belong to an error.
macro_rules! reply {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub(crate) struct $name {
            $(pub(crate) $field: $type,)*
        }
    };
}

reply! {
    /// Of `GetStatus`.
    GetStatusReply { status: Status }
}
reply! {
    /// Of `ListListeners`.
    ListListenersReply { listeners: Vec<Listener> }
}
reply! {
    /// Of `ListPeers`: one page.
    ListPeersReply { peers: Vec<Peer>, total: u64 }
}
reply! {
    /// Of `SetBacklog`.
    SetBacklogReply { before: Backlog, after: Backlog }
}
reply! {
    /// Of `PauseListener`.
    PauseListenerReply { listeners: Vec<StateChange> }
}
reply! {
    /// Of `ResumeListener`.
    ResumeListenerReply { listeners: Vec<StateChange> }
}
reply! {
    /// Of `DrainListener`: with `more` one of several.
    DrainListenerReply { listeners: Vec<StateChange>, connections: u64, left_ms: u64 }
}

/// Of `ClosePeers`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::missing_docs_in_private_items,
    reason = "each field is explained in the interface text"
)]
pub(crate) struct ClosePeersReply {
    pub matched: u64,
    pub closed: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<Vec<Peer>>,
}

reply! {
    /// Of `Reload`, of `Rollback`, and of the error `ConfigRejected`.
    ReloadReply { result: ReloadResult }
}
reply! {
    /// Of `Confirm`.
    ConfirmReply { id: u64 }
}
reply! {
    /// Of `Upgrade`.
    UpgradeReply { result: UpgradeResult }
}
reply! {
    /// Of `HandOver`.
    HandOverReply { listeners: u64, connections: u64 }
}
reply! {
    /// Of the error `ReloadRefused`.
    ReloadRefused { reason: String }
}
reply! {
    /// Of the error `UpgradeRefused`.
    UpgradeRefused { reason: String }
}
reply! {
    /// Of `GetConfig`.
    GetConfigReply { toml: String }
}
reply! {
    /// Of `SetLogLevel`.
    SetLogLevelReply { before: String, after: String }
}
reply! {
    /// Of the error `ListenerNotFound`.
    ListenerNotFound { name: String }
}
reply! {
    /// Of the error `RequestTooLarge`.
    RequestTooLarge { bytes_max: u64 }
}
reply! {
    /// Of the error `InvalidBacklog`.
    InvalidBacklog { backlog: i64 }
}
reply! {
    /// Of the error `NothingToHold`.
    NothingToHold { listener: String }
}
reply! {
    /// Of the error `InvalidDeadline`.
    InvalidDeadline { deadline_ms: i64 }
}

/// The values of a request or reply by name, as they go over the wire.
#[must_use]
pub(crate) fn parameters(values: &impl Serialize) -> Parameters {
    match serde_json::to_value(values) {
        Ok(Value::Object(parameters)) => parameters,
        other => unreachable!("the types of this file become objects, not {other:?}"),
    }
}

#[cfg(test)]
mod tests;
