//! A value as typed, and where it was typed.
//!
//! Knows TOML's values. Never judges one.

use toml::Spanned;
use toml::de::DeValue;

use super::words::shorten;

/// A position in one of the sources. Places compare in reading order; one without an offset means the
/// source as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) source: usize,
    /// In bytes. The line and the column follow from it, and are looked up for what is shown.
    pub(super) offset: Option<usize>,
}

/// A value as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Typed {
    pub(super) place: Place,
    /// The words in the file, shortened for a message.
    pub(super) quoted: String,
    pub(super) value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Integer(i128),
    Flag(bool),
    List(Vec<Typed>),
    Other,
}

impl Place {
    pub(super) fn new(source: usize, offset: usize) -> Self {
        Self {
            source,
            offset: Some(offset),
        }
    }
}

impl Typed {
    /// A value of this source.
    pub(super) fn new(source: usize, text: &str, value: &Spanned<DeValue<'_>>) -> Self {
        let span = value.span();
        Self {
            place: Place::new(source, span.start),
            quoted: shorten(text.get(span).unwrap_or_default()),
            value: match value.get_ref() {
                DeValue::String(text) => Value::Text(text.clone().into_owned()),
                DeValue::Integer(number) => {
                    // Beyond what any key allows it does not matter how far.
                    let parsed = i128::from_str_radix(number.as_str(), number.radix());
                    Value::Integer(parsed.unwrap_or(i128::MAX))
                }
                DeValue::Boolean(flag) => Value::Flag(*flag),
                DeValue::Array(items) => {
                    let items = items.iter().map(|item| Self::new(source, text, item));
                    Value::List(items.collect())
                }
                DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => Value::Other,
            },
        }
    }

    /// A value of the table of keys, which is TOML.
    pub(super) fn of_table(text: &'static str) -> Self {
        let value = DeValue::parse(text).expect("every default is TOML");
        Self::new(0, text, &value)
    }
}
