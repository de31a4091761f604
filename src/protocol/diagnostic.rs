//! What there is to say about a configuration, with its place where it has one.
//!
//! Knows how it is written for people and sent to clients; never finds anything out.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Something to say about the configuration, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::missing_docs_in_private_items,
    reason = "each field says what it is"
)]
pub struct Diagnostic {
    pub file: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    pub message: String,
}

/// `file:line:column: message`, as far as it is known: compilers write it so, and editors find the
/// place. What is not about a place, such as a limit of the process, has its message only.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.file.is_empty() {
            return f.write_str(&self.message);
        }
        f.write_str(&self.file)?;
        for number in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{number}")?;
        }
        write!(f, ": {}", self.message)
    }
}

/// How many diagnostics of one kind a result has at most, before a count of the others.
pub(crate) const DIAGNOSTICS_MAX: usize = 100;

/// The first of a list, then a count of the others and of `more`, which are called `noun`.
#[must_use]
pub(crate) fn bounded(mut list: Vec<Diagnostic>, more: usize, noun: &str) -> Vec<Diagnostic> {
    let more = more + list.len().saturating_sub(DIAGNOSTICS_MAX);
    list.truncate(DIAGNOSTICS_MAX);
    if more > 0 {
        let s = if more == 1 { "" } else { "s" };
        list.push(Diagnostic::general(format!(
            "{more} more {noun}{s} not shown"
        )));
    }
    list
}

impl Diagnostic {
    /// A diagnostic on no particular place.
    #[must_use]
    pub fn general(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            ..Self::default()
        }
    }

    /// A diagnostic on the value of a key, given with the path to it.
    #[must_use]
    pub fn about(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            key: Some(key.into()),
            ..Self::general(message)
        }
    }

    /// Messages on no particular place, which are called `noun`: as many as are shown.
    #[must_use]
    pub fn list(messages: Vec<String>, noun: &str) -> Vec<Self> {
        let all = messages.into_iter().map(Self::general);
        bounded(all.collect(), 0, noun)
    }

    /// The listener that it is about: its key says so, or, where it is about no key, its text.
    #[must_use]
    pub fn listener(&self) -> Option<&str> {
        // A listener's name may have dots in it, the name of a key has none.
        let of_key = || {
            let path = self.key.as_deref()?.strip_prefix("listener.")?;
            Some(path.rsplit_once('.')?.0)
        };
        let of_text = || {
            let name = self.message.strip_prefix("listener \"")?;
            Some(name.split_once("\": ")?.0)
        };
        of_key().or_else(of_text)
    }
}
