//! How values become text: units, colors, and characters that must not reach a terminal.
//!
//! Knows strings and numbers only.

#![forbid(unsafe_code)]

use std::fmt::Write;
use std::io;

use anstyle::{AnsiColor, Style};
use bytesize::ByteSize;
use nix::errno::Errno;

/// Text from the daemon or the network, so that it cannot steer a terminal: what is no printable
/// character is written as an escape.
#[must_use]
pub(crate) fn escape(text: &str) -> String {
    escape_but(text, &[])
}

/// The same for text of several lines.
#[must_use]
pub(crate) fn escape_lines(text: &str) -> String {
    escape_but(text, &['\n', '\t'])
}

fn escape_but(text: &str, kept: &[char]) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if kept.contains(&character) || !is_unprintable(character) {
            escaped.push(character);
        } else {
            escaped.extend(character.escape_default());
        }
    }
    escaped
}

/// JSON with what JSON itself lets through written as an escape; it means the same. Such a
/// character can only be within a string.
#[must_use]
pub(crate) fn escape_json(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for character in json.chars() {
        if character != '\n' && is_unprintable(character) {
            let code = u32::from(character);
            write!(escaped, "\\u{code:04x}").expect("a string takes all");
        } else {
            escaped.push(character);
        }
    }
    escaped
}

/// Control characters, and those that reorder or hide what stands beside them. All are in the
/// basic plane, so that four digits name them.
fn is_unprintable(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Why an operation failed, in the words of the system and without its number: `no such file or
/// directory`.
#[must_use]
pub(crate) fn cause(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => Errno::from_raw(errno).desc().to_lowercase(),
        None => error.to_string(),
    }
}

/// Colors, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Paint {
    /// Whether there are any.
    pub colored: bool,
}

impl Paint {
    /// Of headers and names.
    #[must_use]
    pub(crate) fn bold(self, text: &str) -> String {
        self.wrap(Style::new().bold(), text)
    }

    /// Of what is wrong.
    #[must_use]
    pub(crate) fn red(self, text: &str) -> String {
        self.wrap(AnsiColor::Red.on_default(), text)
    }

    /// Of what deserves a look.
    #[must_use]
    pub(crate) fn yellow(self, text: &str) -> String {
        self.wrap(AnsiColor::Yellow.on_default(), text)
    }

    /// Of what is well.
    #[must_use]
    pub(crate) fn green(self, text: &str) -> String {
        self.wrap(AnsiColor::Green.on_default(), text)
    }

    fn wrap(self, style: Style, text: &str) -> String {
        if self.colored {
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }
}

/// A size: `512 B`, `1.5 KiB`, `64.0 MiB`.
#[must_use]
pub(crate) fn bytes(count: u64) -> String {
    ByteSize::b(count).display().iec().to_string()
}

/// `64KiB`, `4096`; `None` for what is no size. What is too large saturates. Units of 1000, which
/// some write for units of 1024, are not accepted.
#[must_use]
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let end = text
        .find(|digit: char| !digit.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let scale: u64 = match unit.trim_start() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    if digits.is_empty() {
        return None;
    }
    Some(digits.parse().unwrap_or(u64::MAX).saturating_mul(scale))
}

/// An age: `850ms`, `12s`, `5m 12s`, `3h 4m`, `2d 5h`.
#[must_use]
pub(crate) fn age(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if seconds == 0 => format!("{milliseconds}ms"),
        () if minutes == 0 => format!("{seconds}s"),
        () if hours == 0 => format!("{minutes}m {}s", seconds % 60),
        () if days == 0 => format!("{hours}h {}m", minutes % 60),
        () => format!("{days}d {}h", hours % 24),
    }
}

/// A short time: `85 µs`, `1.25 ms`, `2.10 s`.
#[must_use]
#[expect(
    clippy::cast_precision_loss,
    reason = "two digits after the point are shown"
)]
pub(crate) fn microseconds(count: u64) -> String {
    match count {
        0..1000 => format!("{count} µs"),
        1000..1_000_000 => format!("{:.2} ms", count as f64 / 1e3),
        _ => format!("{:.2} s", count as f64 / 1e6),
    }
}

/// A number with what it counts: `1 peer`, `2 peers`.
#[must_use]
pub(crate) fn counted(count: u64, one: &str) -> String {
    plural(&count.to_string(), one)
}

/// The same for a number that is text already.
#[must_use]
pub(crate) fn plural(number: &str, one: &str) -> String {
    let end = if number == "1" { "" } else { "s" };
    format!("{number} {one}{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_gets_through() {
        assert_eq!(escape("a\x1b[31mb\r\n\u{9b}"), "a\\u{1b}[31mb\\r\\n\\u{9b}");
        assert_eq!(escape("left\u{202e}right"), "left\\u{202e}right");
        assert_eq!(escape("grüße 日本 \"quoted\""), "grüße 日本 \"quoted\"");
        assert_eq!(escape_lines("a\n\tb\x07"), "a\n\tb\\u{7}");
    }

    #[test]
    fn escaped_json_means_the_same() {
        let value = serde_json::json!({"a": "\u{9b}31m\u{7f}\u{202e}\u{1b}ü"});
        let text = escape_json(&value.to_string());
        assert!(
            text.chars().all(|character| !is_unprintable(character)),
            "{text}"
        );
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            value
        );
    }

    #[test]
    fn sizes_have_a_unit_that_people_can_read() {
        let shown = [0, 1023, 1024, 1536, 1_048_524, 1_048_576, u64::MAX].map(bytes);
        let meant = [
            "0 B",
            "1023 B",
            "1.0 KiB",
            "1.5 KiB",
            "1023.9 KiB",
            "1.0 MiB",
            "16.0 EiB",
        ];
        assert_eq!(shown, meant);
    }

    #[test]
    fn ages_have_two_units_at_most() {
        let shown = [
            0,
            999,
            1000,
            59_999,
            60_000,
            312_000,
            11_040_000,
            190_800_000,
        ]
        .map(age);
        let meant = [
            "0ms", "999ms", "1s", "59s", "1m 0s", "5m 12s", "3h 4m", "2d 5h",
        ];
        assert_eq!(shown, meant);
        assert_eq!(
            [85, 1250, 2_100_000].map(microseconds),
            ["85 µs", "1.25 ms", "2.10 s"]
        );
    }
}
