//! A line of the log, made safe: the one place where text of any origin becomes part of it.
//!
//! What could end a line, begin another, or show other than it is, is escaped; what is too long is
//! cut. So no sink has to look at it again.

use std::fmt::{self, Write};

use log::kv::{Error, Key, Value, VisitSource, VisitValue};
use log::{Level, Record};

/// How long a text may be; rsyslog takes as much by default.
pub(super) const TEXT_BYTES_MAX: usize = 8 * 1024;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    level: Level,
    text: String,
    fields: Vec<(String, String)>,
    place: Option<(&'static str, u32)>,
}

impl Line {
    pub(super) fn of(record: &Record<'_>) -> Self {
        let mut fields = Fields::default();
        // Ours gives no error.
        let _ = record.key_values().visit(&mut fields);
        Self {
            level: record.level(),
            text: safe(*record.args()),
            fields: fields.fields,
            place: record.file_static().zip(record.line()),
        }
    }

    /// The number of lines that were suppressed; this is the first of them.
    pub(super) fn suppressed(self, count: u64) -> Self {
        Self {
            text: format!("{count} suppressed, the first: {}", self.text),
            ..self
        }
    }

    /// The number of lines that the output did not take.
    pub(super) fn lost(count: u64) -> Self {
        let text = match count {
            1 => "1 line of the log is lost: the output did not take it in time".into(),
            _ => format!("{count} lines of the log are lost: the output did not take them in time"),
        };
        Self {
            level: Level::Warn,
            text,
            fields: Vec::new(),
            place: None,
        }
    }

    /// The memory that it takes, beside a few words of bookkeeping.
    pub(super) fn bytes(&self) -> usize {
        let fields = self.fields.iter();
        let fields: usize = fields.map(|(name, value)| name.len() + value.len()).sum();
        self.text.len() + fields
    }

    /// For people.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn level(&self) -> Level {
        self.level
    }

    /// What the line is about, by the names that the journal is asked with.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The file and line of the source that logs it.
    pub(super) fn place(&self) -> Option<(&'static str, u32)> {
        self.place
    }

    /// The priority of `sd-daemon(3)` and `syslog(3)`.
    pub(super) fn priority(&self) -> u8 {
        match self.level {
            Level::Error => 3,
            Level::Warn => 4,
            Level::Info => 6,
            Level::Debug | Level::Trace => 7,
        }
    }
}

/// Collects key-values: `listener` becomes `ECHOD_LISTENER`. Keys are ours; a value may be from the network.
#[derive(Default)]
struct Fields {
    fields: Vec<(String, String)>,
    value: Option<String>,
}

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        value.visit(&mut *self)?;
        if let Some(value) = self.value.take() {
            let name = format!("ECHOD_{}", key.as_str().to_ascii_uppercase());
            self.fields.push((name, value));
        }
        Ok(())
    }
}

impl<'v> VisitValue<'v> for Fields {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), Error> {
        self.value = Some(safe(format_args!("{value}")));
        Ok(())
    }

    /// An optional value that is absent.
    fn visit_null(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

fn safe(text: fmt::Arguments<'_>) -> String {
    let mut safe = Safe(String::new());
    if safe.write_fmt(text).is_err() {
        safe.0.push('…');
    }
    safe.0
}

/// Takes text until there is enough of it.
struct Safe(String);

impl Write for Safe {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if self.0.len() >= TEXT_BYTES_MAX {
                return Err(fmt::Error);
            }
            match character {
                '\0'..='\x1f' | '\x7f' => write!(self.0, "\\x{:02x}", character as u32)?,
                _ if misleads(character) => write!(self.0, "\\u{{{:04x}}}", character as u32)?,
                _ => self.0.push(character),
            }
        }
        Ok(())
    }
}

/// Whether it steers a terminal, ends a line somewhere, or changes the order in which others are
/// shown (Unicode Standard Annex #9, section 2).
fn misleads(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{2028}'
                | '\u{2029}'
                | '\u{061c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{202a}'..='\u{202e}'
                | '\u{2066}'..='\u{206f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_forges_or_hides_a_line() {
        let check = |text: &str, expected: &str| assert_eq!(safe(format_args!("{text}")), expected);
        check("a\necho: b\r\t\0", "a\\x0aecho: b\\x0d\\x09\\x00");
        check("\x1b[2J\x7f", "\\x1b[2J\\x7f");
        // C1: the control sequence introducer in one character, and the next line.
        check("\u{9b}2J\u{85}", "\\u{009b}2J\\u{0085}");
        check("a\u{2028}b\u{2029}", "a\\u{2028}b\\u{2029}");
        check("\u{202e}drawkcab\u{2066}", "\\u{202e}drawkcab\\u{2066}");
        check(
            "12 → 13, \"Überall\" \\ 日本",
            "12 → 13, \"Überall\" \\ 日本",
        );
    }

    #[test]
    fn every_ascii_control_character_is_escaped() {
        for byte in 0..=0x7f_u8 {
            let text = safe(format_args!("{}", char::from(byte)));
            let is_control = byte < 0x20 || byte == 0x7f;
            assert_eq!(text == format!("\\x{byte:02x}"), is_control, "{text}");
            assert!(text.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
        }
    }

    #[test]
    fn what_is_too_long_is_cut_and_shows_it() {
        let long = safe(format_args!("{}", "\n".repeat(TEXT_BYTES_MAX)));
        assert!(long.len() < TEXT_BYTES_MAX + 16, "{}", long.len());
        assert!(long.ends_with("\\x0a…"), "{long}");
        let fits = "x".repeat(TEXT_BYTES_MAX);
        assert_eq!(safe(format_args!("{fits}")), fits);
    }

    #[test]
    fn keys_become_fields_and_their_values_are_safe() {
        let absent: Option<&str> = None;
        let values = [
            ("listener", Value::from("main\nPRIORITY=0")),
            ("reload_id", Value::from(7_u64)),
            ("peer", log::kv::ToValue::to_value(&absent)),
        ];
        let line = Line::of(
            &Record::builder()
                .args(format_args!("text"))
                .level(Level::Warn)
                .key_values(&values)
                .build(),
        );
        let fields: Vec<_> = line.fields().collect();
        assert_eq!(
            fields,
            [
                ("ECHOD_LISTENER", "main\\x0aPRIORITY=0"),
                ("ECHOD_RELOAD_ID", "7")
            ]
        );
        assert_eq!(line.priority(), 4);
    }
}
