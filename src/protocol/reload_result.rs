//! What became of a configuration: how a reload ended, and what it changes.
//!
//! Knows values only, and how they are shortened to be kept.

use serde::{Deserialize, Serialize};

use super::diagnostic::{DIAGNOSTICS_MAX, Diagnostic};

/// How many changes of the last reload `GetStatus` lists.
const CHANGES_MAX: usize = 100;

/// What became of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::missing_docs_in_private_items,
    reason = "each field is explained in the interface text"
)]
pub(crate) struct ReloadResult {
    pub id: u64,
    pub generation: u64,
    pub trigger: Trigger,
    pub outcome: ReloadOutcome,
    pub at: String,
    pub duration_us: u64,
    pub errors: Vec<Diagnostic>,
    pub warnings: Vec<Diagnostic>,
    pub changes: Vec<Change>,
    #[serde(default)]
    pub kept: u64,
    #[serde(default)]
    pub changes_omitted: u64,
    #[serde(default)]
    pub summary: String,
    #[serde(default)]
    pub rollback: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_within_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<u64>,
}

/// What asked for the reload or rollback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Trigger {
    /// The daemon started.
    Start,
    /// SIGHUP.
    Signal,
    /// The control socket.
    Control,
    /// A reload on trial was not confirmed in time.
    ConfirmExpired,
}

impl Trigger {
    /// In the words of a person.
    #[must_use]
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Start => "at start",
            Self::Signal => "by signal",
            Self::Control => "by the control socket",
            Self::ConfirmExpired => "after no confirmation",
        }
    }
}

/// How a reload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReloadOutcome {
    /// The configuration is in force.
    Applied,
    /// It is the one that was in force already, except for keys that only a start reads.
    Unchanged,
    /// It has errors or can't be bound; the configuration in force stays.
    Rejected,
    /// A rollback: the previous configuration is in force again.
    RolledBack,
}

impl ReloadOutcome {
    /// In the words of a person.
    #[must_use]
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Rejected => "rejected",
            Self::RolledBack => "rolled back",
        }
    }
}

impl ReloadResult {
    /// What it is called, before its id.
    #[must_use]
    pub(crate) fn noun(&self) -> &'static str {
        if self.rollback { "rollback" } else { "reload" }
    }

    /// Whether nothing has changed but keys that only a start reads.
    #[must_use]
    pub(crate) fn waits_for_start(&self) -> bool {
        let mut changes = self.changes.iter();
        self.outcome == ReloadOutcome::Unchanged
            && changes.any(|change| change.action != ChangeAction::Keep)
    }

    /// The result as it is kept: listeners that stay as they are are counted, and of the others the first
    /// ones are listed. So `GetStatus` does not grow with the configuration.
    #[must_use]
    pub(crate) fn abridged(mut self) -> Self {
        let listed = self.changes.len();
        self.changes
            .retain(|change| change.action != ChangeAction::Keep);
        self.kept += (listed - self.changes.len()) as u64;
        self.changes_omitted += self.changes.len().saturating_sub(CHANGES_MAX) as u64;
        self.changes.truncate(CHANGES_MAX);
        self
    }

    /// `3 errors`, as far as they are counted here.
    #[must_use]
    pub(crate) fn error_count(&self) -> String {
        match self.errors.len() {
            1 => "1 error".into(),
            count if count > DIAGNOSTICS_MAX => format!("more than {DIAGNOSTICS_MAX} errors"),
            count => format!("{count} errors"),
        }
    }
}

/// What a configuration changes: of one listener, or, without a name, of the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::missing_docs_in_private_items,
    reason = "each field is explained in the interface text"
)]
pub(crate) struct Change {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener: Option<String>,
    pub action: ChangeAction,
    pub keys: Vec<String>,
    pub connections: u64,
    pub text: String,
}

/// What happens to a listener at a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeAction {
    /// It is new.
    Add,
    /// Nothing.
    Keep,
    /// Keys change, its sockets stay.
    Update,
    /// It gets new sockets; its peers stay.
    Rebind,
    /// It is taken out of service.
    Remove,
}

impl ChangeAction {
    /// The action's name on the wire and in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Keep => "keep",
            Self::Update => "update",
            Self::Rebind => "rebind",
            Self::Remove => "remove",
        }
    }
}
