//! Scalars: how a number, duration, size or word is read, and its one canonical form.
//!
//! An error says what is wrong and what to do, to be put behind the typed words. What is shown is
//! TOML.

use std::time::Duration;

use log::LevelFilter;

use super::typed::{Typed, Value};
use super::words::{alternatives, nearest, quote};
use crate::cli::text::parse_size;

/// The longest time there is: 1000 days.
const DURATION_MAX: Duration = Duration::from_secs(1000 * 24 * 60 * 60);

/// The least timeout: more than nothing.
const NONZERO: Duration = Duration::from_nanos(1);

/// The units of durations, the largest first, with their length in nanoseconds. Never months and years,
/// whose length varies.
const UNITS: [(&str, u128); 8] = [
    ("w", 604_800_000_000_000),
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// What a key may hold beside its range: a word that stands for "none".
type Word = Option<&'static str>;

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
    let all = alternatives(names());
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
        // As in other programs, where 0 is for ever or at once.
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
    // The library takes more units than those.
    let words = text.split(|letter: char| !letter.is_alphabetic());
    let mut units = words.filter(|word| !word.is_empty());
    let are_known = units.all(|word| UNITS.iter().any(|(unit, _)| *unit == word));
    let duration = humantime::parse_duration(text).ok().filter(|_| are_known);
    let duration = duration.ok_or_else(|| {
        format!(
            "not a duration: write e.g. \"250ms\", \"30s\" or \"10m30s\"{or_word}; the units are \
             ns, us, ms, s, m, h, d and w"
        )
    })?;
    if duration > DURATION_MAX {
        return Err(format!(
            "too long: write at most {}{or_word}",
            show_duration(DURATION_MAX)
        ));
    }
    if duration < least {
        let least = match least.as_nanos() {
            1 => "more than 0".into(),
            _ => format!("at least {}", show_duration(least)),
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

/// A time that may be nothing.
pub(super) fn time(typed: &Typed) -> Result<Duration, String> {
    duration(typed, Duration::ZERO, None).map(Option::unwrap_or_default)
}

pub(super) fn show_time(time: &Duration) -> String {
    show_duration(*time)
}

/// A time limit, or none.
pub(super) fn timeout(typed: &Typed) -> Result<Option<Duration>, String> {
    duration(typed, NONZERO, Some("off"))
}

pub(super) fn show_time_or_off(time: &Option<Duration>) -> String {
    show_or(*time, "off", show_duration)
}

/// A number from 1 on.
pub(super) fn required_number(typed: &Typed, most: u32) -> Result<u32, String> {
    number(typed, 1, most, None).map(Option::unwrap_or_default)
}

/// The size of a buffer, or the kernel's choice.
pub(super) fn buffer(typed: &Typed) -> Result<Option<u32>, String> {
    size(typed, Some("auto"))
}

pub(super) fn show_size_or_auto(bytes: &Option<u32>) -> String {
    show_or(*bytes, "auto", show_size)
}

/// How many threads or sockets: more than one for each CPU make no sense.
pub(super) fn count(typed: &Typed) -> Result<Option<u16>, String> {
    let count = number(typed, 1, 256, Some("auto"))?;
    Ok(count.and_then(|count| u16::try_from(count).ok()))
}

/// The kernel takes 1 to 32767 seconds: tcp(7), `TCP_KEEPIDLE`.
pub(super) fn keepalive(typed: &Typed) -> Result<Option<Duration>, String> {
    const KEEPALIVE_MAX: Duration = Duration::from_secs(32_767);
    match duration(typed, Duration::from_secs(1), Some("off"))? {
        Some(duration) if duration > KEEPALIVE_MAX => Err(
            "too long: the kernel takes at most 32767s: write \"9h\" or less, or \"off\"".into(),
        ),
        Some(duration) if duration.subsec_nanos() > 0 => Err(
            "not whole seconds: the kernel takes no fraction: write e.g. \"60s\", or \"off\""
                .into(),
        ),
        other => Ok(other),
    }
}

/// How long a worker spins before it sleeps.
pub(super) fn busy_poll(typed: &Typed) -> Result<Option<Duration>, String> {
    const BUSY_POLL_MAX: Duration = Duration::from_secs(1);
    if let Value::Integer(number @ 1..) = typed.value {
        return Err(format!(
            "a number without a unit: write e.g. \"{number}us\", or \"off\""
        ));
    }
    let busy_poll = duration(typed, NONZERO, Some("off"))?;
    if busy_poll.is_some_and(|time| time > BUSY_POLL_MAX) {
        return Err(
            "too long: a worker would hardly ever sleep: write at most \"1s\", e.g. \"50us\", or \"off\""
                .into(),
        );
    }
    Ok(busy_poll)
}

/// The name of a user or a group; none where it is empty.
pub(super) fn account(typed: &Typed, what: &str) -> Result<Option<String>, String> {
    match text(typed, "\"echod\"")? {
        "" => Ok(None),
        name if is_account_name(name) => Ok(Some(name.into())),
        _ => Err(format!(
            "not a {what}: write its name, as in \"echod\", or \"\""
        )),
    }
}

/// The name of a group, which is absent rather than empty.
pub(super) fn group(typed: &Typed) -> Result<Option<String>, String> {
    match text(typed, "\"echod\"")? {
        name if is_account_name(name) => Ok(Some(name.into())),
        _ => Err("not a group: write its name, as in \"echod\", or leave the key out".into()),
    }
}

/// Whether it can be the name of a user or a group.
pub(super) fn is_account_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|letter: char| letter.is_whitespace() || letter.is_control())
}

/// The least important messages to log.
pub(super) fn level(typed: &Typed) -> Result<LevelFilter, String> {
    const LEVELS: [LevelFilter; 6] = [
        LevelFilter::Off,
        LevelFilter::Error,
        LevelFilter::Warn,
        LevelFilter::Info,
        LevelFilter::Debug,
        LevelFilter::Trace,
    ];
    choice(typed, &LEVELS, level_name)
}

/// The name of a level, in lower case as all words here are.
pub(super) fn level_name(level: LevelFilter) -> &'static str {
    match level {
        LevelFilter::Off => "off",
        LevelFilter::Error => "error",
        LevelFilter::Warn => "warn",
        LevelFilter::Info => "info",
        LevelFilter::Debug => "debug",
        LevelFilter::Trace => "trace",
    }
}

/// The names of syslog(3)'s facilities.
pub(super) fn facility(typed: &Typed) -> Result<String, String> {
    const FACILITIES: [&str; 20] = [
        "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron",
        "authpriv", "ftp", "local0", "local1", "local2", "local3", "local4", "local5", "local6",
        "local7",
    ];
    choice(typed, &FACILITIES, |name| name).map(Into::into)
}

/// `"10m30s"`: the largest unit first, no spaces, and days rather than weeks.
fn show_duration(duration: Duration) -> String {
    let mut rest = duration.as_nanos();
    let mut shown = String::new();
    for (unit, scale) in UNITS.into_iter().filter(|(unit, _)| *unit != "w") {
        if rest >= scale {
            shown += &format!("{}{unit}", rest / scale);
            rest %= scale;
        }
    }
    quote(if shown.is_empty() { "0s" } else { &shown })
}

/// `"64KiB"`: in the largest unit that needs no fraction.
fn show_size(bytes: u32) -> String {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    let unit = units
        .into_iter()
        .find(|(_, scale)| bytes > 0 && bytes.is_multiple_of(*scale));
    quote(&match unit {
        Some((unit, scale)) => format!("{}{unit}", bytes / scale),
        None => format!("{bytes}B"),
    })
}

/// `"0660"`
pub(super) fn show_mode(mode: u32) -> String {
    quote(&format!("{mode:04o}"))
}

/// The value, or the word that stands for none.
pub(super) fn show_or<T>(value: Option<T>, word: &str, show: impl Fn(T) -> String) -> String {
    value.map_or_else(|| quote(word), show)
}
