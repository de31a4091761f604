//! Words of messages: texts in quotes, the operator's own words cut to a length, and suggestions.
//!
//! Knows texts only.

use std::borrow::Cow;

/// A text as TOML writes it: in quotes, with escapes where they are needed.
#[must_use]
pub(crate) fn quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            control if control.is_control() => quoted += &format!("\\u{:04X}", u32::from(control)),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// The operator's words, on one line and not too many. Only the beginning is read: a value may be as
/// long as the file.
pub(super) fn shorten(words: &str) -> String {
    const CHARACTERS_MAX: usize = 60;
    let end = words.char_indices().nth(CHARACTERS_MAX).map(|(end, _)| end);
    let head = &words[..end.unwrap_or(words.len())];
    let shown: Cow<'_, str> = match head.find(['\n', '\r']) {
        Some(end) => format!("{}…", head[..end].trim_end()).into(),
        None if end.is_some() => format!("{head}…").into(),
        None => head.into(),
    };
    shown.into_owned()
}

/// The nearest of these words, if it is near enough to be meant.
pub(super) fn nearest<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // No key is longer, and the cost of a comparison is the product of both lengths.
    if word.len() > 64 {
        return None;
    }
    let word = word.to_lowercase();
    let distance = |other: &str| match other.starts_with(&word) || word.starts_with(other) {
        true if word.len() > 2 => 1,
        _ => strsim::damerau_levenshtein(&word, other),
    };
    let (near, distance) = words
        .into_iter()
        .map(|other| (other, distance(other)))
        .min_by_key(|(_, far)| *far)?;
    (distance <= (near.len() / 3).max(1)).then_some(near)
}

/// `"a", "b" or "c"`
pub(super) fn alternatives<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let mut words: Vec<_> = words.map(quote).collect();
    match words.pop() {
        Some(last) if words.is_empty() => last,
        Some(last) => format!("{} or {last}", words.join(", ")),
        None => String::new(),
    }
}
