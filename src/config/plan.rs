//! What a reload would do: the difference of two configurations, listener by listener.
//!
//! Pure: takes what runs, what is wanted and how many connections there are, and never asks the
//! kernel. Values are compared as they are shown, so a default written out is no change.

use std::collections::{BTreeMap, BTreeSet};

use super::keys::{Effect, Key, Section};
use super::render::{show, show_global};
use super::{Config, Listener, address};

/// What happens to one listener, or to the daemon as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its name; `None` is the daemon with its control socket and log.
    pub listener: Option<String>,
    /// What is done.
    pub action: Action,
    /// The keys whose values differ, in the order of the table of keys.
    pub keys: Vec<&'static str>,
    /// Those of them that only a restart takes up.
    pub restart: Vec<&'static Key>,
    /// The established connections that this is about.
    pub connections: u64,
    /// All of it in a line for people.
    pub text: String,
}

/// What is done to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is new.
    Add,
    /// Nothing; its sockets are not touched.
    Keep,
    /// New values on the same sockets.
    Update,
    /// New sockets; the old ones are served until their queues are empty.
    Rebind,
    /// Its sockets are served until their queues are empty, then closed.
    Remove,
}

impl Action {
    /// The action's name in the control protocol and in tables.
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

/// One change for each listener of either side, in the order of their names, then one for the
/// daemon if it changes. `connections` counts the established ones by listener.
#[must_use]
pub fn plan(old: &Config, new: &Config, connections: &BTreeMap<String, u64>) -> Vec<Change> {
    let names: BTreeSet<&String> = old.listeners.keys().chain(new.listeners.keys()).collect();
    let mut changes = Vec::new();
    for name in names {
        let count = connections.get(name).copied().unwrap_or(0);
        match (old.listeners.get(name), new.listeners.get(name)) {
            (Some(old), Some(new)) => changes.push(changed(old, new, count)),
            (None, Some(new)) => changes.push(added(new, count)),
            (Some(old), None) => changes.push(removed(old, count)),
            (None, None) => {}
        }
    }
    changes.extend(daemon(old, new));
    changes
}

/// One key that differs.
struct Difference {
    key: &'static Key,
    text: String,
}

fn changed(old: &Listener, new: &Listener, connections: u64) -> Change {
    let differences: Vec<_> = Section::Listener
        .keys()
        .filter(|key| differs(old, new, key.name))
        .filter_map(|key| difference(key, Some(show(old, key.name)?), Some(show(new, key.name)?)))
        .collect();
    let rebind = differences
        .iter()
        .any(|difference| difference.key.effect == Effect::Rebind);
    let stream = old.protocol.is_stream();
    let (action, words) = match rebind {
        _ if differences.is_empty() => (Action::Keep, "unchanged".into()),
        false => (Action::Update, words(&differences)),
        true => (
            Action::Rebind,
            words(&differences)
                + if stream {
                    "; the old queue is served"
                } else {
                    ""
                },
        ),
    };
    Change {
        listener: Some(new.name.clone()),
        action,
        keys: differences
            .iter()
            .map(|difference| difference.key.name)
            .collect(),
        restart: Vec::new(),
        connections,
        text: format!("{}: {words}{}", new.name, stay(connections, "; ", "")),
    }
}

/// Whether a key has another value. The order of addresses has no meaning.
fn differs(old: &Listener, new: &Listener, key: &str) -> bool {
    if key == "address" {
        let sorted = |listener: &Listener| {
            let mut shown = address::show(&listener.addresses);
            shown.sort();
            shown
        };
        return sorted(old) != sorted(new);
    }
    show(old, key) != show(new, key)
}

fn added(new: &Listener, connections: u64) -> Change {
    let addresses = address::show(&new.addresses).join(", ");
    Change {
        listener: Some(new.name.clone()),
        action: Action::Add,
        keys: Vec::new(),
        restart: Vec::new(),
        connections,
        text: format!(
            "{}: added on {addresses} ({})",
            new.name,
            new.protocol.name()
        ),
    }
}

fn removed(old: &Listener, connections: u64) -> Change {
    let stay = stay(connections, ", ", " until they end")
        .replace("stays until they end", "stays until it ends");
    let queue = if old.protocol.is_stream() {
        "; its queue is served"
    } else {
        ""
    };
    Change {
        listener: Some(old.name.clone()),
        action: Action::Remove,
        keys: Vec::new(),
        restart: Vec::new(),
        connections,
        text: format!("{}: removed{queue}{stay}", old.name),
    }
}

fn daemon(old: &Config, new: &Config) -> Option<Change> {
    let differences: Vec<_> = [Section::Daemon, Section::Control, Section::Log]
        .into_iter()
        .flat_map(Section::keys)
        .filter_map(|key| {
            let show = |config| show_global(config, key.section, key.name);
            difference(key, show(old), show(new))
        })
        .collect();
    if differences.is_empty() {
        return None;
    }
    let names = differences.iter().map(|difference| difference.key);
    Some(Change {
        listener: None,
        action: Action::Update,
        keys: names.clone().map(|key| key.name).collect(),
        restart: names.filter(|key| key.effect == Effect::Restart).collect(),
        connections: 0,
        text: format!("daemon: {}", words(&differences)),
    })
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
    // `mode` and the like are also known without their section, but not by everybody.
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

/// `; 812 connections stay`, or nothing where there are none.
fn stay(connections: u64, before: &str, after: &str) -> String {
    match connections {
        0 => String::new(),
        1 => format!("{before}1 connection stays{after}"),
        many => format!("{before}{many} connections stay{after}"),
    }
}
