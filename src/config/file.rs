//! The configuration as typed: which keys stand where, and what was written behind them.
//!
//! Knows TOML and the names in [`KEYS`]. Never judges a value; `resolve` does, by the place that
//! each value keeps. What follows a syntax error is a guess, up to the next table: nothing is
//! said about it, so that one missing quote is one message.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{KEYS, LATER, Section};
use super::value;
use super::{Diagnostic, Source};

/// A position in one of the sources; places compare in reading order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) source: usize,
    pub(super) line: u32,
    pub(super) column: u32,
}

/// A table that holds keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Table {
    Daemon,
    Control,
    Log,
    Defaults,
    Listener(String),
}

/// A value as typed.
#[derive(Clone, Debug)]
pub(super) struct Typed {
    pub(super) place: Place,
    /// The words in the file, shortened for a message.
    pub(super) quoted: String,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Integer(i128),
    Flag(bool),
    List(Vec<Typed>),
    Other,
}

/// All that was typed for each key of a table, in reading order: the last one counts.
pub(super) type Entries = BTreeMap<&'static str, Vec<Typed>>;

/// All sources together.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) tables: BTreeMap<Table, Entries>,
    /// Where each listener is first named.
    pub(super) named: BTreeMap<String, Place>,
    /// Whether something could not be read, so that what seems absent may be there.
    pub(super) broken: bool,
    /// Whether there is a table that may have been meant as a listener.
    pub(super) astray: bool,
}

/// What was found wrong or odd, with its place, until all is known.
#[derive(Debug, Default)]
pub(super) struct Findings(pub(super) Vec<(Place, Option<String>, String)>);

impl Findings {
    pub(super) fn add(&mut self, place: Place, key: Option<String>, message: String) {
        self.0.push((place, key, message));
    }

    /// In reading order, each once.
    pub(super) fn diagnostics(mut self, sources: &[Source]) -> Vec<Diagnostic> {
        self.0.sort();
        self.0.dedup();
        let diagnostic = |(place, key, message): (Place, _, _)| Diagnostic {
            file: sources
                .get(place.source)
                .map(|source| source.name.clone())
                .unwrap_or_default(),
            line: (place.line > 0).then_some(place.line),
            column: (place.column > 0).then_some(place.column),
            key,
            message,
        };
        self.0.into_iter().map(diagnostic).collect()
    }
}

impl Table {
    fn section(&self) -> Section {
        match self {
            Self::Daemon => Section::Daemon,
            Self::Control => Section::Control,
            Self::Log => Section::Log,
            Self::Defaults | Self::Listener(_) => Section::Listener,
        }
    }

    /// How messages begin: `daemon`, `listener "main"`.
    pub(super) fn subject(&self) -> String {
        match self {
            Self::Daemon => "daemon".into(),
            Self::Control => "control".into(),
            Self::Log => "log".into(),
            Self::Defaults => "defaults".into(),
            Self::Listener(name) => format!("listener \"{name}\""),
        }
    }

    /// A key with the path to it: `listener.main.backlog`.
    pub(super) fn path(&self, key: &str) -> String {
        match self {
            Self::Listener(name) => format!("listener.{name}.{key}"),
            other => format!("{}.{key}", other.subject()),
        }
    }
}

/// Reads all sources.
pub(super) fn read(sources: &[Source], findings: &mut Findings) -> File {
    let mut file = File::default();
    for (index, source) in sources.iter().enumerate() {
        let mut reader = Reader {
            text: Text::new(index, &source.text),
            file: &mut file,
            findings: Findings::default(),
        };
        let (root, mut errors) = DeTable::parse_recoverable(&source.text);
        errors.sort_by_key(|error| error.span().map_or(0, |span| span.start));
        reader.root(root.get_ref());

        let Reader {
            text,
            findings: found,
            ..
        } = reader;
        let doubtful = text.doubtful(&errors, findings);
        file.broken |= !errors.is_empty();
        for entries in file.tables.values_mut() {
            for typed in entries.values_mut() {
                typed
                    .retain(|typed| typed.place.source != index || !doubtful.contains(typed.place));
            }
        }
        findings.0.extend(
            found
                .0
                .into_iter()
                .filter(|(place, ..)| !doubtful.contains(*place)),
        );
    }
    file
}

/// One source while it is walked.
struct Reader<'a> {
    text: Text<'a>,
    file: &'a mut File,
    findings: Findings,
}

impl Reader<'_> {
    fn root(&mut self, root: &DeTable<'_>) {
        for (name, content) in root {
            let place = self.text.place(name.span().start);
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
                _ => {
                    self.file.astray |=
                        content.get_ref().is_table() && !LATER.contains(&("", name));
                    let message = unknown_table(name, content.get_ref());
                    self.findings.add(place, Some(name.into()), message);
                    continue;
                }
            };
            match content.get_ref() {
                DeValue::Table(entries) => self.entries(&table, entries),
                _ => {
                    let message =
                        format!("{name}: is a table: write a line [{name}], with its keys below");
                    self.findings.add(place, Some(name.into()), message);
                }
            }
        }
    }

    fn listeners(&mut self, place: Place, content: &Spanned<DeValue<'_>>) {
        let DeValue::Table(listeners) = content.get_ref() else {
            self.file.astray = true;
            let message = "listener: each one has a name: write [listener.NAME]".into();
            self.findings.add(place, Some("listener".into()), message);
            return;
        };
        self.file.astray |= listeners.keys().any(|name| !is_name(name.get_ref()));
        for (name, content) in listeners {
            let place = self.text.place(name.span().start);
            let name = name.get_ref().as_ref();
            let path = Some(format!("listener.{name}"));
            match content.get_ref() {
                DeValue::Table(_) if !is_name(name) => {
                    let message = format!(
                        "listener {}: not a name: use up to 64 letters, digits, \"-\", \"_\" and \".\"",
                        shorten(&format!("{name:?}"))
                    );
                    self.findings.add(place, path, message);
                }
                DeValue::Table(entries) => {
                    self.file.named.entry(name.into()).or_insert(place);
                    self.file
                        .tables
                        .entry(Table::Listener(name.into()))
                        .or_default();
                    self.entries(&Table::Listener(name.into()), entries);
                }
                _ => {
                    self.file.astray = true;
                    let message = format!(
                        "listener: {}: stands outside of a listener: put it below a line [listener.NAME]",
                        shorten(name)
                    );
                    self.findings.add(place, path, message);
                }
            }
        }
    }

    fn entries(&mut self, table: &Table, entries: &DeTable<'_>) {
        for (name, value) in entries {
            let place = self.text.place(name.span().start);
            let name = name.get_ref().as_ref();
            let own = matches!(name, "protocol" | "address");
            match table.section().keys().find(|key| key.name == name) {
                Some(_) if own && *table == Table::Defaults => {
                    let message = format!(
                        "defaults: {name}: each listener has its own: move it to [listener.NAME]"
                    );
                    self.findings.add(place, Some(table.path(name)), message);
                }
                Some(key) => {
                    let typed = self.typed(value);
                    let known = self.file.tables.entry(table.clone()).or_default();
                    known.entry(key.name).or_default().push(typed);
                }
                None => {
                    let message = unknown_key(table, name);
                    self.findings.add(place, Some(table.path(name)), message);
                }
            }
        }
    }

    fn typed(&self, value: &Spanned<DeValue<'_>>) -> Typed {
        let span = value.span();
        Typed {
            place: self.text.place(span.start),
            quoted: shorten(self.text.text.get(span).unwrap_or_default()),
            value: match value.get_ref() {
                DeValue::String(text) => Value::Text(text.clone().into_owned()),
                DeValue::Integer(number) => {
                    // Beyond what any key allows it does not matter how far.
                    let parsed = i128::from_str_radix(number.as_str(), number.radix());
                    Value::Integer(parsed.unwrap_or(i128::MAX))
                }
                DeValue::Boolean(flag) => Value::Flag(*flag),
                DeValue::Array(items) => {
                    Value::List(items.iter().map(|item| self.typed(item)).collect())
                }
                DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => Value::Other,
            },
        }
    }
}

/// One source's text, with the start of each of its lines.
struct Text<'a> {
    source: usize,
    text: &'a str,
    lines: Vec<usize>,
}

impl<'a> Text<'a> {
    fn new(source: usize, text: &'a str) -> Self {
        let ends = text.match_indices('\n').map(|(index, _)| index + 1);
        Self {
            source,
            text,
            lines: std::iter::once(0).chain(ends).collect(),
        }
    }

    /// Lines from 1, and columns in characters from 1; a byte order mark is none.
    fn place(&self, offset: usize) -> Place {
        let offset = offset.min(self.text.len());
        let line = self.lines.partition_point(|start| *start <= offset);
        let before = self
            .text
            .get(self.lines[line - 1]..offset)
            .unwrap_or_default();
        let column = before
            .chars()
            .filter(|character| *character != '\u{feff}')
            .count()
            + 1;
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Place {
            source: self.source,
            line: number(line),
            column: number(column),
        }
    }

    /// Reports the syntax errors, one for each line, and says which lines are not to be trusted:
    /// from each error to the next table. A duplicate key harms no other.
    fn doubtful(&self, errors: &[toml::de::Error], findings: &mut Findings) -> Doubtful {
        let mut doubtful = Doubtful::default();
        let mut last = 0;
        for error in errors {
            let span = error.span().unwrap_or_default();
            let place = self.place(span.start);
            let message = error.message();
            if message != "duplicate key" {
                doubtful.0.push(place.line..self.next_table(place.line));
            }
            if place.line != last {
                findings.add(
                    place,
                    None,
                    explain(message, self.text.get(span).unwrap_or_default()),
                );
            }
            last = place.line;
        }
        doubtful
    }

    /// The number of the next line that begins a table, after this one.
    fn next_table(&self, line: u32) -> u32 {
        let following = self.text.lines().enumerate().skip(line as usize);
        let table = following
            .into_iter()
            .find(|(_, text)| text.trim_start().starts_with('['));
        table.map_or(u32::MAX, |(index, _)| {
            u32::try_from(index + 1).unwrap_or(u32::MAX)
        })
    }
}

/// The lines that a syntax error made unreadable.
#[derive(Default)]
struct Doubtful(Vec<Range<u32>>);

impl Doubtful {
    fn contains(&self, place: Place) -> bool {
        self.0.iter().any(|lines| lines.contains(&place.line))
    }
}

/// A syntax error in words that tell what to do.
fn explain(message: &str, words: &str) -> String {
    let remedy = match message {
        "duplicate key" => {
            return format!(
                "{} stands here twice: remove one of the two",
                shorten(words)
            );
        }
        _ if message.starts_with("string values must be quoted") => {
            return format!(
                "{}: not a value: put quotes around a text, as in \"5m\"",
                shorten(words)
            );
        }
        _ if message.starts_with("key with no value") => "write KEY = VALUE",
        _ if message.starts_with("unexpected leading zero") => {
            "write a number without it, and permissions in quotes, as in \"0660\""
        }
        _ if message.starts_with("unclosed table") => "end the table's name with ]",
        _ if message.contains("string") => "end the text with the quote that began it",
        _ if message.contains("array") => "write a list as [\"one\", \"other\"]",
        _ => "write KEY = VALUE, and texts in quotes",
    };
    format!("not TOML: {}: {remedy}", message.replace('\n', ", "))
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
    match value::nearest(name, TABLES) {
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
    let own = |name: &str| *table == Table::Defaults && matches!(name, "protocol" | "address");
    let names: Vec<_> = section
        .keys()
        .map(|key| key.name)
        .filter(|name| !own(name))
        .collect();
    match value::nearest(name, names.iter().copied()) {
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
            Section::Listener if matches!(name, "protocol" | "address") => "[listener.NAME]".into(),
            Section::Listener => "[listener.NAME] or [defaults]".into(),
            section => format!("[{}]", section.name()),
        });
    format!("move it to {}", sections.collect::<Vec<_>>().join(" or "))
}

fn is_name(name: &str) -> bool {
    let allowed = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
    (1..=64).contains(&name.len()) && name.chars().all(allowed)
}

/// The operator's words, on one line and not too many.
pub(super) fn shorten(words: &str) -> String {
    const MOST: usize = 60;
    let words: Cow<'_, str> = match words.find(['\n', '\r']) {
        Some(end) => format!("{}…", words[..end].trim_end()).into(),
        None => words.into(),
    };
    match words.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &words[..end]),
        None => words.into_owned(),
    }
}
