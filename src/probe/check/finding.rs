//! What a check has found: what was seen, or why the check ended there.
//!
//! Knows words and causes, and never a socket.

use std::io;

use crate::cli::text::counted;
use crate::probe::cause::{Cause, Trouble};

/// What was seen where everything is as it should be, or why the check ended before.
pub(super) type Finding = Result<String, Halt>;

/// Why a check ends before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Halt {
    /// The service has failed it: what was seen instead, and the same for programs, where there is
    /// a word for it.
    Failed(String, Option<Cause>),
    /// It says nothing about this service, or cannot be made from here.
    NotApplicable(String),
    /// The service was not reached, or not any more.
    Unreached(Trouble),
    /// The user or the deadline has ended it.
    Interrupted,
    /// It was not begun, for the service does not answer any more.
    NotRun,
}

impl Halt {
    /// The service has failed.
    pub(super) fn failed(seen: impl Into<String>, cause: Cause) -> Self {
        Self::Failed(seen.into(), Some(cause))
    }

    /// The service does what it must not.
    pub(super) fn wrong(seen: impl Into<String>) -> Self {
        Self::Failed(seen.into(), None)
    }

    /// The same about one client among others, or about one part.
    pub(super) fn of(self, part: &str) -> Self {
        match self {
            Self::Failed(seen, cause) => Self::Failed(format!("{part}: {seen}"), cause),
            Self::Unreached(trouble) => {
                Self::failed(format!("{part}: {}", trouble.cause), trouble.cause)
            }
            other => other,
        }
    }
}

impl From<Trouble> for Halt {
    fn from(trouble: Trouble) -> Self {
        match trouble.cause {
            Cause::Interrupted => Self::Interrupted,
            _ => Self::Unreached(trouble),
        }
    }
}

/// A socket fails only because of its other end.
impl From<io::Error> for Halt {
    fn from(error: io::Error) -> Self {
        let cause = Cause::of(&error);
        Self::failed(cause.to_string(), cause)
    }
}

/// `1 byte`, `2 bytes`
pub(super) fn bytes(count: usize) -> String {
    counted(count as u64, "byte")
}
