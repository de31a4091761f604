//! What is found wrong or odd while a configuration is judged: the first findings in reading order,
//! and how many more there are.
//!
//! Bounded, so that a file full of mistakes is neither kept nor printed whole.

use std::collections::BTreeSet;

use super::table::Table;
use super::typed::{Place, Typed};
use super::{Diagnostic, Source};
use crate::protocol::schema::{DIAGNOSTICS_MAX, bounded};

/// Errors, or warnings.
#[derive(Debug, Default)]
pub(super) struct Findings {
    first: BTreeSet<Finding>,
    more: usize,
}

/// What is found, in reading order.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    place: Place,
    key: Option<String>,
    message: String,
}

impl Findings {
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    pub(super) fn add(&mut self, place: Place, key: Option<String>, message: String) {
        self.add_with(place, || (key, message));
    }

    /// Adds what `make` returns, which is called only if it is among the first: words may cost more
    /// than finding out that there is something to say.
    pub(super) fn add_with(
        &mut self,
        place: Place,
        make: impl FnOnce() -> (Option<String>, String),
    ) {
        let is_full = self.first.len() == DIAGNOSTICS_MAX;
        if is_full && self.first.last().is_some_and(|last| last.place < place) {
            self.more += 1;
            return;
        }
        let (key, message) = make();
        self.first.insert(Finding {
            place,
            key,
            message,
        });
        if self.first.len() > DIAGNOSTICS_MAX {
            self.first.pop_last();
            self.more += 1;
        }
    }

    /// Those that are shown, then a count of the others, which are called `noun`.
    pub(super) fn diagnostics(self, sources: &[Source], noun: &str) -> Vec<Diagnostic> {
        let diagnostic = |Finding {
                              place,
                              key,
                              message,
                          }| {
            let source = sources.get(place.source);
            let file = source.filter(|source| !source.is_argument());
            let position = file.zip(place.offset);
            let position = position.map(|(source, offset)| position_of(&source.text, offset));
            Diagnostic {
                file: source.map(|source| source.name.clone()).unwrap_or_default(),
                line: position.map(|(line, _)| line),
                column: position.map(|(_, column)| column),
                key,
                message,
            }
        };
        let first: Vec<_> = self.first.into_iter().map(diagnostic).collect();
        bounded(first, self.more, noun)
    }
}

/// The line and the column in characters of a byte, both from 1. A byte order mark is no character.
pub(super) fn position_of(text: &str, offset: usize) -> (u32, u32) {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let start = before.iter().rposition(|byte| *byte == b'\n');
    let on_line = &before[start.map_or(0, |end| end + 1)..];
    // Every byte of a character but the first is 0b10xx_xxxx (RFC 3629, section 3).
    let characters = on_line.iter().filter(|byte| **byte & 0xc0 != 0x80).count();
    let marks = usize::from(start.is_none() && before.starts_with("\u{feff}".as_bytes()));
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    (number(line), number(characters - marks + 1))
}

/// Takes what is found in the values of one key.
pub(super) struct Remarks<'a> {
    pub(super) errors: &'a mut Findings,
    pub(super) warnings: &'a mut Findings,
    pub(super) table: &'a Table,
    pub(super) key: &'static str,
}

impl Remarks<'_> {
    pub(super) fn refuse(&mut self, typed: &Typed, message: &str) {
        let (table, key) = (self.table, self.key);
        self.errors
            .add_with(typed.place, || about(table, key, typed, message));
    }

    pub(super) fn warn(&mut self, typed: &Typed, message: &str) {
        let (table, key) = (self.table, self.key);
        self.warnings
            .add_with(typed.place, || about(table, key, typed, message));
    }

    /// The value, unless it is refused.
    pub(super) fn accept<T>(&mut self, typed: &Typed, parsed: Result<T, String>) -> Option<T> {
        parsed.map_err(|message| self.refuse(typed, &message)).ok()
    }
}

/// The path of the key, and the typed words with what there is to say about them.
fn about(table: &Table, key: &str, typed: &Typed, message: &str) -> (Option<String>, String) {
    let subject = table.subject();
    let message = format!("{subject}: {key} {}: {message}", typed.quoted);
    (Some(table.path(key)), message)
}
