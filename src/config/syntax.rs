//! Syntax errors: one message for each line that has one, and which text around it is not to be
//! trusted.
//!
//! What follows a syntax error is a guess, up to the next table, and is not judged, so that one
//! missing quote is one message.

use std::ops::Range;

use super::findings::Findings;
use super::typed::Place;
use super::words::shorten;

/// The bytes that a syntax error made unreadable: ranges in ascending order that do not overlap.
pub(super) struct Doubtful(Vec<Range<usize>>);

impl Doubtful {
    pub(super) fn contains(&self, place: Place) -> bool {
        let Some(offset) = place.offset else {
            return false;
        };
        let at = self.0.partition_point(|range| range.end <= offset);
        self.0.get(at).is_some_and(|range| range.contains(&offset))
    }
}

/// Reports the errors of a source, which are in the order of their places.
pub(super) fn report(
    source: usize,
    text: &str,
    errors: &[toml::de::Error],
    findings: &mut Findings,
) -> Doubtful {
    let mut doubtful: Vec<Range<usize>> = Vec::new();
    let mut line = 0..0;
    for error in errors {
        let span = error.span().unwrap_or_default();
        let message = error.message();
        // What is wrong with the rest of a line follows from its first error.
        if !line.contains(&span.start) {
            line = line_around(text, span.start);
            findings.add_with(Place::new(source, span.start), || {
                let words = text.get(span.clone()).unwrap_or_default();
                (None, explain(message, words))
            });
        }
        // A duplicate key harms no other.
        let is_trusted = doubtful.last().is_none_or(|last| last.end <= span.start);
        if is_trusted && message != "duplicate key" {
            doubtful.push(line.start..next_table(text, line.end));
        }
    }
    Doubtful(doubtful)
}

/// The line that has this byte, with its end, which the last line has in thought.
fn line_around(text: &str, offset: usize) -> Range<usize> {
    let bytes = text.as_bytes();
    let offset = offset.min(bytes.len());
    let is_end = |byte: &u8| *byte == b'\n';
    let start = bytes[..offset].iter().rposition(is_end);
    let end = bytes[offset..].iter().position(is_end);
    let end = end.map_or(bytes.len(), |length| offset + length);
    start.map_or(0, |before| before + 1)..end + 1
}

/// Where the next line begins, from this one on, that begins a table.
fn next_table(text: &str, from: usize) -> usize {
    let mut start = from;
    for line in text.get(from..).unwrap_or_default().split_inclusive('\n') {
        if line.trim_start().starts_with('[') {
            return start;
        }
        start += line.len();
    }
    usize::MAX
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
