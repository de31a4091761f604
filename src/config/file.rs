//! The configuration as typed: which keys are in which table, and what was written behind them.
//!
//! Knows TOML and the names in [`KEYS`]. Never judges a value; `resolve` does, by the place that
//! each value keeps. What a syntax error makes doubtful is left out (see `syntax`).

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::Source;
use super::findings::Findings;
use super::keys::KEYS;
use super::syntax::{self, Doubtful};
use super::table::{Section, Table};
use super::typed::{Place, Typed};
use super::words::{nearest, shorten};

/// Keys and tables that are promised for a later version: section or table, and name.
const LATER: &[(&str, &str)] = &[
    ("", "metrics"),
    ("listener", "proxy-protocol"),
    ("listener", "proxy-from"),
    ("listener", "rate"),
];

/// All that was typed for each key of a table, in reading order: the last one counts.
pub(super) type Entries = BTreeMap<&'static str, Vec<Typed>>;

/// All sources together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct File {
    pub(super) tables: BTreeMap<Table, Entries>,
    /// Where each listener is first named.
    pub(super) named: BTreeMap<String, Place>,
    /// Whether something could not be read, so that what seems absent may be there.
    pub(super) broken: bool,
    /// Whether there is a table that may have been meant as a listener.
    pub(super) astray: bool,
}

/// Reads all sources.
pub(super) fn read(sources: &[Source], findings: &mut Findings) -> File {
    let mut file = File::default();
    for (index, source) in sources.iter().enumerate() {
        let (root, mut errors) = DeTable::parse_recoverable(&source.text);
        errors.sort_by_key(|error| error.span().map_or(0, |span| span.start));
        file.broken |= !errors.is_empty();
        let mut reader = Reader {
            source: index,
            text: &source.text,
            doubtful: syntax::report(index, &source.text, &errors, findings),
            file: &mut file,
            findings,
        };
        reader.root(root.get_ref());
    }
    file
}

/// One source while it is walked, in the order in which a person reads it: then no more messages are
/// made than are kept.
struct Reader<'a> {
    source: usize,
    text: &'a str,
    doubtful: Doubtful,
    file: &'a mut File,
    findings: &'a mut Findings,
}

type Entry<'a, 'i> = (&'a Spanned<DeString<'i>>, &'a Spanned<DeValue<'i>>);

fn in_order<'a, 'i>(table: &'a DeTable<'i>) -> Vec<Entry<'a, 'i>> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries
}

impl Reader<'_> {
    fn place(&self, name: &Spanned<DeString<'_>>) -> Place {
        Place::new(self.source, name.span().start)
    }

    /// Reports what is wrong with a name, unless it is doubtful.
    fn refuse(
        &mut self,
        place: Place,
        key: impl FnOnce() -> String,
        message: impl FnOnce() -> String,
    ) {
        if !self.doubtful.contains(place) {
            self.findings.add_with(place, || (Some(key()), message()));
        }
    }

    fn root(&mut self, root: &DeTable<'_>) {
        for (name, content) in in_order(root) {
            let place = self.place(name);
            let name = name.get_ref().as_ref();
            let table = match name {
                "daemon" => Table::Daemon,
                "control" => Table::Control,
                "log" => Table::Log,
                "defaults" => Table::Defaults,
                "listener" => {
                    self.listeners(place, content);
                    continue;
                }
                // One that is promised for later is not a listener with a mistyped name.
                _ => {
                    self.file.astray |=
                        content.get_ref().is_table() && !LATER.contains(&("", name));
                    let message = || unknown_table(name, content.get_ref());
                    self.refuse(place, || name.into(), message);
                    continue;
                }
            };
            match content.get_ref() {
                DeValue::Table(entries) => self.entries(&table, entries),
                _ => self.refuse(
                    place,
                    || name.into(),
                    || format!("{name}: is a table: write a line [{name}], with its keys below"),
                ),
            }
        }
    }

    fn listeners(&mut self, place: Place, content: &Spanned<DeValue<'_>>) {
        let DeValue::Table(listeners) = content.get_ref() else {
            self.file.astray = true;
            let message = || "listener: each one has a name: write [listener.NAME]".into();
            return self.refuse(place, || "listener".into(), message);
        };
        self.file.astray |= listeners
            .keys()
            .any(|name| !is_listener_name(name.get_ref()));
        for (name, content) in in_order(listeners) {
            let place = self.place(name);
            let name = name.get_ref().as_ref();
            match content.get_ref() {
                // A path would be ambiguous: only a valid name has no key within it.
                DeValue::Table(_) if !is_listener_name(name) => self.refuse(
                    place,
                    || "listener".into(),
                    || {
                        let name = shorten(&format!("{name:?}"));
                        format!(
                            "listener {name}: not a name: use up to 64 letters, digits, \"-\", \"_\" and \".\""
                        )
                    },
                ),
                DeValue::Table(entries) => {
                    self.file.named.entry(name.into()).or_insert(place);
                    let table = Table::Listener(name.into());
                    self.file.tables.entry(table.clone()).or_default();
                    self.entries(&table, entries);
                }
                _ => {
                    self.file.astray = true;
                    let message = || {
                        let name = shorten(name);
                        format!(
                            "listener: {name}: stands outside of a listener: put it below a line [listener.NAME]"
                        )
                    };
                    self.refuse(place, || format!("listener.{name}"), message);
                }
            }
        }
    }

    fn entries(&mut self, table: &Table, entries: &DeTable<'_>) {
        for (name, value) in in_order(entries) {
            let place = self.place(name);
            let name = name.get_ref().as_ref();
            match table.section().keys().find(|key| key.name == name) {
                Some(key) if key.is_required() && *table == Table::Defaults => self.refuse(
                    place,
                    || table.path(name),
                    || {
                        format!(
                            "defaults: {name}: each listener has its own: move it to [listener.NAME]"
                        )
                    },
                ),
                Some(key) => {
                    let typed = Typed::new(self.source, self.text, value);
                    if !self.doubtful.contains(typed.place) {
                        let known = self.file.tables.entry(table.clone()).or_default();
                        known.entry(key.name).or_default().push(typed);
                    }
                }
                None => self.refuse(place, || table.path(name), || unknown_key(table, name)),
            }
        }
    }
}

fn unknown_table(name: &str, content: &DeValue<'_>) -> String {
    const TABLES: [&str; 5] = ["daemon", "control", "log", "defaults", "listener"];
    if LATER.contains(&("", name)) {
        return format!("{name}: not available in this version: remove it");
    }
    let word = shorten(name);
    if !content.is_table() && KEYS.iter().any(|key| key.name == name) {
        return format!("{word}: stands outside of a table: {}", home(name));
    }
    match nearest(name, TABLES) {
        Some("listener") => format!("{word}: unknown table: did you mean [listener.NAME]?"),
        Some(near) => format!("{word}: unknown table: did you mean [{near}]?"),
        None => format!(
            "{word}: unknown table: the tables are [daemon], [control], [log], [defaults] and [listener.NAME]"
        ),
    }
}

fn unknown_key(table: &Table, name: &str) -> String {
    let section = table.section();
    let subject = table.subject();
    if LATER.contains(&(section.name(), name)) {
        return format!("{subject}: {name}: not available in this version: remove it");
    }
    let word = shorten(name);
    if KEYS.iter().any(|key| key.name == name) {
        return format!("{subject}: {word}: does not belong here: {}", home(name));
    }
    let names: Vec<_> = section
        .keys()
        .filter(|key| *table != Table::Defaults || !key.is_required())
        .map(|key| key.name)
        .collect();
    match nearest(name, names.iter().copied()) {
        Some(near) => format!("{subject}: {word}: unknown key: did you mean {near}?"),
        None => format!(
            "{subject}: {word}: unknown key: the keys are {}",
            names.join(", ")
        ),
    }
}

/// Where a key that is known belongs.
fn home(name: &str) -> String {
    let sections = KEYS
        .iter()
        .filter(|key| key.name == name)
        .map(|key| match key.section {
            Section::Listener if key.is_required() => "[listener.NAME]".into(),
            Section::Listener => "[listener.NAME] or [defaults]".into(),
            section => format!("[{}]", section.name()),
        });
    format!("move it to {}", sections.collect::<Vec<_>>().join(" or "))
}

/// Whether a listener may have this name.
pub(crate) fn is_listener_name(name: &str) -> bool {
    let allowed = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    (1..=64).contains(&name.len()) && name.chars().all(allowed)
}
