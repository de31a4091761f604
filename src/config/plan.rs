//! What a reload does: the difference of two configurations, listener by listener.
//!
//! Pure: takes what runs, what is wanted and how many connections there are, and never asks the
//! kernel. Values are compared as they are shown, so a default written out is no change.

use std::collections::{BTreeMap, BTreeSet};

use crate::cli::text::counted;

use super::key::{Effect, Key};
use super::table::Section;
use super::{Change, ChangeAction, Config, Listener, address};

/// How many listeners that change are named in a summary.
const NAMED_MAX: usize = 5;

/// What becomes of each listener and of the daemon as a whole.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// One for each listener of either side, in the order of their names, then one for the daemon if
    /// it changes.
    pub changes: Vec<Change>,
    /// The keys of the daemon that differ and take effect at the next start.
    pub restart: Vec<&'static Key>,
}

impl Plan {
    /// Whether nothing changes before the next start.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        let changes = |change: &Change| match &change.listener {
            Some(_) => change.action != ChangeAction::Keep,
            None => change.keys.len() > self.restart.len(),
        };
        !self.changes.iter().any(changes)
    }

    /// `3 listeners unchanged (812 connections kept), web re-bound (41 kept), udp removed`: what becomes of
    /// the listeners and of their connections.
    #[must_use]
    pub(crate) fn summary(&self, mood: Mood) -> String {
        let listeners = self
            .changes
            .iter()
            .filter(|change| change.listener.is_some());
        let (same, others): (Vec<&Change>, Vec<&Change>) =
            listeners.partition(|change| change.action == ChangeAction::Keep);
        // What stays is of interest as a whole, what changes by name, as far as a line has room.
        let (named, more) = others.split_at(others.len().min(NAMED_MAX));
        let mut parts = Vec::new();
        if !same.is_empty() {
            let noun = match connections(&same) {
                1 => " connection",
                _ => " connections",
            };
            let listeners = counted(same.len() as u64, "listener");
            let unchanged = mood.became(ChangeAction::Keep);
            parts.push(format!("{listeners} {unchanged}{}", kept(&same, noun)));
        }
        parts.extend(named.iter().map(|change| {
            let name = change.listener.as_deref().unwrap_or_default();
            format!(
                "{name} {}{}",
                mood.became(change.action),
                kept(&[change], "")
            )
        }));
        if !more.is_empty() {
            let changed = mood.pick("changed", "would change");
            parts.push(format!("{} more {changed}{}", more.len(), kept(more, "")));
        }
        let daemon = self.changes.iter().find(|change| change.listener.is_none());
        parts.extend(daemon.map(|change| {
            if change.keys.len() == self.restart.len() {
                "daemon as it is until the next start".to_owned()
            } else {
                format!("daemon {}", mood.became(ChangeAction::Update))
            }
        }));
        parts.join(", ")
    }
}

fn connections(changes: &[&Change]) -> u64 {
    changes.iter().map(|change| change.connections).sum()
}

/// ` (812 connections kept)`, or nothing where there are none.
fn kept(changes: &[&Change], noun: &str) -> String {
    match connections(changes) {
        0 => String::new(),
        count => format!(" ({count}{noun} kept)"),
    }
}

/// Whether the plan is carried out. Its words say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// It is.
    Real,
    /// It is a dry run: the words are about what would be.
    Conditional,
}

impl Mood {
    /// That of a reload, or of a dry run of one.
    #[must_use]
    pub(crate) fn of_dry_run(dry_run: bool) -> Self {
        if dry_run {
            Self::Conditional
        } else {
            Self::Real
        }
    }

    fn pick(self, real: &'static str, conditional: &'static str) -> &'static str {
        match self {
            Self::Real => real,
            Self::Conditional => conditional,
        }
    }

    /// What became of a listener.
    fn became(self, action: ChangeAction) -> &'static str {
        match action {
            ChangeAction::Add => self.pick("added", "would be added"),
            ChangeAction::Keep => self.pick("unchanged", "would stay unchanged"),
            ChangeAction::Update => self.pick("updated", "would be updated"),
            ChangeAction::Rebind => self.pick("re-bound", "would be re-bound"),
            ChangeAction::Remove => self.pick("removed", "would be removed"),
        }
    }

    /// How a list of values that change begins.
    fn changes(self) -> &'static str {
        self.pick("", "would change: ")
    }

    /// `; 812 connections stay`, or nothing where there are none.
    fn stay(self, connections: u64, before: &str) -> String {
        match connections {
            0 => String::new(),
            1 => format!("{before}1 connection {}", self.pick("stays", "would stay")),
            many => format!(
                "{before}{many} connections {}",
                self.pick("stay", "would stay")
            ),
        }
    }
}

/// The way from one configuration to the other. `connections` counts the established ones by
/// listener.
#[must_use]
pub(crate) fn plan(
    old: &Config,
    new: &Config,
    connections: &BTreeMap<String, u64>,
    mood: Mood,
) -> Plan {
    let names: BTreeSet<&String> = old.listeners.keys().chain(new.listeners.keys()).collect();
    let mut plan = Plan::default();
    for name in names {
        let count = connections.get(name).copied().unwrap_or(0);
        let change = match (old.listeners.get(name), new.listeners.get(name)) {
            (Some(old), Some(new)) => changed(old, new, count, mood),
            (None, Some(new)) => added(new, count, mood),
            (Some(old), None) => removed(old, count, mood),
            // The names are those of the two.
            (None, None) => continue,
        };
        plan.changes.push(change);
    }
    let differences = daemon_differences(old, new);
    if !differences.is_empty() {
        plan.restart = restart_keys(old, new);
        plan.changes.push(Change {
            listener: None,
            action: ChangeAction::Update,
            keys: names_of(&differences),
            connections: 0,
            text: format!("daemon: {}{}", mood.changes(), words(&differences)),
        });
    }
    plan
}

/// The keys of the daemon that differ and take effect at the next start.
#[must_use]
pub(crate) fn restart_keys(old: &Config, new: &Config) -> Vec<&'static Key> {
    let keys = daemon_differences(old, new).into_iter();
    keys.map(|difference| difference.key)
        .filter(|key| key.effect == Effect::Restart)
        .collect()
}

/// One key that differs.
struct Difference {
    key: &'static Key,
    text: String,
}

fn changed(old: &Listener, new: &Listener, connections: u64, mood: Mood) -> Change {
    let differences: Vec<_> = Section::Listener
        .keys()
        .filter(|key| differs(old, new, key))
        .filter_map(|key| difference(key, Some(key.show_of(old)?), Some(key.show_of(new)?)))
        .collect();
    let rebind = differences
        .iter()
        .any(|difference| difference.key.effect == Effect::Rebind);
    // One key is enough to bind anew, whatever else changes at once.
    let changes = format!("{}{}", mood.changes(), words(&differences));
    let (action, words) = match rebind {
        _ if differences.is_empty() => {
            let words = mood.pick("unchanged", "would stay as it is");
            (ChangeAction::Keep, words.into())
        }
        false => (ChangeAction::Update, changes),
        true if old.protocol.is_stream() => {
            let queue = mood.pick("the old queue is served", "the old queue would be served");
            (ChangeAction::Rebind, format!("{changes}; {queue}"))
        }
        true => (ChangeAction::Rebind, changes),
    };
    Change {
        listener: Some(new.name.clone()),
        action,
        keys: names_of(&differences),
        connections,
        text: format!("{}: {words}{}", new.name, mood.stay(connections, "; ")),
    }
}

/// Whether a key has another value. The order of addresses has no meaning.
fn differs(old: &Listener, new: &Listener, key: &Key) -> bool {
    if key.name == "address" {
        let sorted = |listener: &Listener| {
            let mut shown = address::show(&listener.addresses);
            shown.sort();
            shown
        };
        return sorted(old) != sorted(new);
    }
    key.show_of(old) != key.show_of(new)
}

fn added(new: &Listener, connections: u64, mood: Mood) -> Change {
    let addresses = address::show(&new.addresses).join(", ");
    let added = mood.pick("added", "would be added");
    let protocol = new.protocol.name();
    Change {
        listener: Some(new.name.clone()),
        action: ChangeAction::Add,
        keys: Vec::new(),
        connections,
        text: format!("{}: {added} on {addresses} ({protocol})", new.name),
    }
}

fn removed(old: &Listener, connections: u64, mood: Mood) -> Change {
    let mut text = format!("{}: {}", old.name, mood.pick("removed", "would be removed"));
    if old.protocol.is_stream() {
        text += mood.pick("; its queue is served", "; its queue would be served");
    }
    text += &mood.stay(connections, ", ");
    text += match connections {
        0 => "",
        1 => " until it ends",
        _ => " until they end",
    };
    Change {
        listener: Some(old.name.clone()),
        action: ChangeAction::Remove,
        keys: Vec::new(),
        connections,
        text,
    }
}

fn daemon_differences(old: &Config, new: &Config) -> Vec<Difference> {
    [Section::Daemon, Section::Control, Section::Log]
        .into_iter()
        .flat_map(Section::keys)
        .filter_map(|key| difference(key, key.show(old), key.show(new)))
        .collect()
}

/// `backlog 1024 → 4096 (live)`, if there is a difference.
fn difference(key: &'static Key, old: Option<String>, new: Option<String>) -> Option<Difference> {
    if old == new {
        return None;
    }
    let effect = match key.effect {
        Effect::Restart => "needs a restart",
        other => other.name(),
    };
    // `mode` and `group` are keys of several sections.
    let section = match key.section {
        Section::Control | Section::Log => format!("{} ", key.section.name()),
        Section::Daemon | Section::Listener => String::new(),
    };
    let text = format!(
        "{section}{} {} → {} ({effect})",
        key.name,
        plain(old),
        plain(new)
    );
    Some(Difference { key, text })
}

/// A value without TOML's quotes, where it is a single text.
fn plain(value: Option<String>) -> String {
    let Some(value) = value else {
        return "not set".into();
    };
    let inner = value
        .strip_prefix('"')
        .and_then(|value| value.strip_suffix('"'));
    match inner {
        Some(inner) if !inner.is_empty() && !inner.contains(['"', '\\']) => inner.into(),
        _ => value,
    }
}

fn words(differences: &[Difference]) -> String {
    let words: Vec<_> = differences
        .iter()
        .map(|difference| difference.text.as_str())
        .collect();
    words.join(", ")
}

fn names_of(differences: &[Difference]) -> Vec<String> {
    let names = differences
        .iter()
        .map(|difference| difference.key.name.into());
    names.collect()
}
