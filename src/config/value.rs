//! Scalars: how a number, duration, size or word is read, and its one canonical form.
//!
//! Each `parse` answers with what is wrong and what to do, to be put behind the typed words.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::file::{Typed, Value};
use super::render::quote;
use crate::cli::text::parse_size;

/// The longest time there is: 1000 days.
const DURATION_MAX: Duration = Duration::from_secs(1000 * 24 * 60 * 60);

/// What a key may hold beside its range: a word that stands for "none".
type Word = Option<&'static str>;

/// The nearest of these words, if it is near enough to be meant.
pub(super) fn nearest<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Only so much is compared: the words are short, and a stranger's may be long.
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

/// `true` or `false`.
pub(super) fn flag(typed: &Typed) -> Result<bool, String> {
    match &typed.value {
        Value::Flag(flag) => Ok(*flag),
        _ => Err("not a truth value: write true or false, without quotes".into()),
    }
}

/// A text, whatever it says.
pub(super) fn text<'a>(typed: &'a Typed, example: &str) -> Result<&'a str, String> {
    match &typed.value {
        Value::Text(text) => Ok(text),
        _ => Err(format!("not a text: write it in quotes, as in {example}")),
    }
}

/// One of some words.
pub(super) fn choice<T: Copy>(
    typed: &Typed,
    choices: &[T],
    name: fn(T) -> &'static str,
) -> Result<T, String> {
    let names = || choices.iter().map(|choice| name(*choice));
    let all = or(names());
    let Value::Text(text) = &typed.value else {
        return Err(format!("not a text: write {all}, in quotes"));
    };
    match choices.iter().find(|choice| name(**choice) == text) {
        Some(choice) => Ok(*choice),
        None => Err(match nearest(text, names()) {
            Some(near) => format!("unknown: did you mean \"{near}\"?"),
            None => format!("unknown: write {all}"),
        }),
    }
}

/// An integer from `least` to `most`, or the word.
pub(super) fn number(
    typed: &Typed,
    least: u32,
    most: u32,
    word: Word,
) -> Result<Option<u32>, String> {
    let allowed = match word {
        Some(word) => format!("write {least} to {most}, or \"{word}\""),
        None => format!("write {least} to {most}"),
    };
    match &typed.value {
        Value::Text(text) if word == Some(text.as_str()) => Ok(None),
        Value::Text(text) if text.parse::<i128>().is_ok() => Err(format!(
            "a text, not a number: leave out the quotes; {}",
            allowed
        )),
        Value::Integer(number) => match u32::try_from(*number) {
            Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => Err(format!("out of range: {}", allowed)),
        },
        _ => Err(format!("not an integer: {}", allowed)),
    }
}

/// A port, or a range of them in quotes.
pub(super) fn ports(typed: &Typed) -> Result<RangeInclusive<u16>, String> {
    const OUT_OF_RANGE: &str = "out of range: write ports from 0 to 65535";
    const NO_PORT: &str = "not a port: write e.g. 7, or \"1-1023\" for a range";
    let text = match &typed.value {
        Value::Integer(number) => {
            let port = u16::try_from(*number).map_err(|_| OUT_OF_RANGE)?;
            return Ok(port..=port);
        }
        Value::Text(text) => text.as_str(),
        _ => return Err(NO_PORT.into()),
    };
    let is_number =
        |text: &str| !text.is_empty() && text.chars().all(|digit| digit.is_ascii_digit());
    let (first, last) = match text.split_once('-') {
        Some((first, last)) if is_number(first) && is_number(last) => (first, last),
        None if is_number(text) => {
            return Err("a text, not a number: leave out the quotes".into());
        }
        _ => return Err(NO_PORT.into()),
    };
    let port = |text: &str| text.parse::<u16>().map_err(|_| OUT_OF_RANGE);
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(format!("backwards: write \"{last}-{first}\""));
    }
    Ok(first..=last)
}

/// A time with its unit, or the word. Zero only where `least` is.
pub(super) fn duration(
    typed: &Typed,
    least: Duration,
    word: Word,
) -> Result<Option<Duration>, String> {
    let or_word = word.map_or(String::new(), |word| format!(", or \"{word}\""));
    let text = match &typed.value {
        Value::Text(text) if word == Some(text.as_str()) => return Ok(None),
        Value::Text(text) => text.trim(),
        Value::Integer(0) if word.is_some() => {
            return Err("not a duration: write \"off\" for none".into());
        }
        Value::Integer(number) => {
            return Err(format!(
                "a number without a unit: write e.g. \"{number}s\"{or_word}"
            ));
        }
        _ => {
            return Err(format!(
                "not a duration: write e.g. \"30s\" or \"5m\"{or_word}"
            ));
        }
    };
    if !text.is_empty() && text.chars().all(|digit| digit.is_ascii_digit()) {
        return Err(format!(
            "a number without a unit: write e.g. \"{text}s\"{or_word}"
        ));
    }
    let duration = humantime::parse_duration(text).map_err(|_| {
        format!("not a duration: write e.g. \"250ms\", \"30s\" or \"10m30s\"{or_word}")
    })?;
    if duration > DURATION_MAX {
        return Err(format!(
            "too long: write at most \"{}\"{or_word}",
            show_duration(DURATION_MAX)
        ));
    }
    if duration < least {
        let least = match least.as_nanos() {
            1 => "more than 0".into(),
            _ => format!("at least \"{}\"", show_duration(least)),
        };
        return Err(format!("too short: write {least}{or_word}"));
    }
    Ok(Some(duration))
}

/// A number of bytes between 1 KiB and 1 GiB, or the word.
pub(super) fn size(typed: &Typed, word: Word) -> Result<Option<u32>, String> {
    const LEAST: u64 = 1 << 10;
    const MOST: u64 = 1 << 30;
    let or_word = word.map_or(String::new(), |word| format!(", or \"{word}\""));
    let bytes = match &typed.value {
        Value::Text(text) if word == Some(text.as_str()) => return Ok(None),
        Value::Text(text) => parse_size(text.trim()),
        Value::Integer(number) => Some(u64::try_from(*number).unwrap_or(0)),
        _ => None,
    };
    match bytes {
        None => Err(format!(
            "not a size: write e.g. \"64KiB\", \"1MiB\" or 4096 (bytes){or_word}"
        )),
        Some(bytes @ LEAST..=MOST) => Ok(u32::try_from(bytes).ok()),
        Some(_) => Err(format!("out of range: write \"1KiB\" to \"1GiB\"{or_word}")),
    }
}

/// Permissions as octal digits in quotes.
pub(super) fn mode(typed: &Typed) -> Result<u32, String> {
    let Value::Text(text) = &typed.value else {
        return Err("not a text: write the octal digits in quotes, as in \"0660\"".into());
    };
    let octal =
        (3..=4).contains(&text.len()) && text.chars().all(|digit| ('0'..='7').contains(&digit));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if octal && mode <= 0o777 => Ok(mode),
        _ => Err(
            "not permissions: write octal digits from \"0000\" to \"0777\", as in \"0660\"".into(),
        ),
    }
}

/// `"a", "b" or "c"`
fn or<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let mut words: Vec<_> = words.map(quote).collect();
    match words.pop() {
        Some(last) if words.is_empty() => last,
        Some(last) => format!("{} or {last}", words.join(", ")),
        None => String::new(),
    }
}

/// `10m30s`: the largest unit first, no spaces, and never months, whose length nobody knows.
pub(super) fn show_duration(duration: Duration) -> String {
    const UNITS: [(&str, u128); 7] = [
        ("d", 86_400_000_000_000),
        ("h", 3_600_000_000_000),
        ("m", 60_000_000_000),
        ("s", 1_000_000_000),
        ("ms", 1_000_000),
        ("us", 1_000),
        ("ns", 1),
    ];
    let mut rest = duration.as_nanos();
    let mut shown = String::new();
    for (unit, scale) in UNITS {
        if rest >= scale {
            shown += &format!("{}{unit}", rest / scale);
            rest %= scale;
        }
    }
    if shown.is_empty() { "0s".into() } else { shown }
}

/// `64KiB`: in the largest unit that needs no fraction.
pub(super) fn show_size(bytes: u32) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units
        .into_iter()
        .find(|(_, scale)| bytes > 0 && bytes.is_multiple_of(*scale))
    {
        Some((unit, scale)) => format!("{}{unit}", bytes / scale),
        None => format!("{bytes}B"),
    }
}
