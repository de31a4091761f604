//! Why something did not come back, in a few words: refused, timed out, reset, unreachable, name
//! unknown, mismatch.
//!
//! Knows errors of the operating system, and never the call that returned them.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use nix::libc;
use serde::Serialize;

use crate::cli::text;
use crate::sys::measure;

/// What may help where a service never answers.
pub(super) const SILENT: &str = "nothing comes back: is it an echo service?";

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// The host is there, and no service at that port (RST, ICMP port unreachable).
    Refused,
    /// Nothing arrived in time.
    TimedOut,
    /// The peer has cut the connection off (RST).
    Reset,
    /// The peer has closed the connection before everything had come back.
    Closed,
    /// There is no path to the host (ICMP unreachable, no route).
    Unreachable,
    /// A router has dropped the packet because its TTL or hop limit was used up (ICMP).
    TtlExceeded,
    /// The name has no address.
    NameUnknown,
    /// What came back is not what was sent, or not from where it was sent to.
    Mismatch,
    /// It is larger than can be sent whole.
    TooLarge,
    /// The user has ended it first.
    Interrupted,
    /// So has the deadline.
    Deadline,
    /// Anything else, in the words of the operating system.
    Other(String),
}

impl Cause {
    /// The cause behind an error of a socket.
    pub(crate) fn of(error: &io::Error) -> Self {
        use io::ErrorKind;
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::TimedOut,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => {
                Self::Reset
            }
            ErrorKind::UnexpectedEof => Self::Closed,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => {
                Self::Unreachable
            }
            ErrorKind::Interrupted => Self::Interrupted,
            _ if error.raw_os_error() == Some(libc::EMSGSIZE) => Self::TooLarge,
            _ => Self::Other(text::cause(error)),
        }
    }

    /// The cause behind a datagram that was not delivered.
    pub(crate) fn of_failure(failure: &measure::ReceiveFailure) -> Self {
        match failure.expired {
            true => Self::TtlExceeded,
            false => Self::of(&failure.error),
        }
    }

    /// In a word or two; also the key in JSON.
    pub(crate) fn words(&self) -> &str {
        match self {
            Self::Refused => "refused",
            Self::TimedOut => "timed out",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Unreachable => "unreachable",
            Self::TtlExceeded => "TTL exceeded",
            Self::NameUnknown => "name unknown",
            Self::Mismatch => "mismatch",
            Self::TooLarge => "too large",
            Self::Interrupted => "interrupted",
            Self::Deadline => "deadline passed",
            Self::Other(words) => words,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

/// What went wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// The cause, for programs.
    pub cause: Cause,
    /// The service: `tcp://127.0.0.1:7`.
    pub place: String,
    /// What may help, as far as it is established; empty if nothing is.
    pub hint: String,
}

impl Trouble {
    /// At this place, for this reason.
    pub(crate) fn new(place: impl fmt::Display, cause: Cause) -> Self {
        Self {
            cause,
            place: place.to_string(),
            hint: String::new(),
        }
    }

    /// With what may help.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.cause)?;
        if !self.hint.is_empty() {
            write!(f, "; {}", self.hint)?;
        }
        Ok(())
    }
}

/// The number of times that each cause was met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Causes(BTreeMap<Cause, u64>);

impl Causes {
    /// Adds one.
    pub(crate) fn count(&mut self, cause: Cause) {
        self.add(cause, 1);
    }

    /// Adds several of one cause.
    pub(crate) fn add(&mut self, cause: Cause, count: u64) {
        if count > 0 {
            *self.0.entry(cause).or_default() += count;
        }
    }

    /// Takes one back: it was not that after all.
    pub(crate) fn uncount(&mut self, cause: &Cause) {
        if let Some(count) = self.0.get_mut(cause) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(cause);
            }
        }
    }

    /// Adds others.
    pub(crate) fn merge(&mut self, others: &Self) {
        for (cause, count) in &others.0 {
            self.add(cause.clone(), *count);
        }
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one that was met most.
    pub(crate) fn chief(&self) -> Option<&Cause> {
        let most = self.0.iter().max_by_key(|(_, count)| **count);
        most.map(|(cause, _)| cause)
    }
}

impl fmt::Display for Causes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (cause, count)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{count} {cause}")?;
        }
        Ok(())
    }
}

impl Serialize for Causes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(cause, count)| (cause.words(), count)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_have_the_words_that_people_know() {
        let words = |errno| Cause::of(&io::Error::from_raw_os_error(errno)).to_string();
        assert_eq!(words(libc::ECONNREFUSED), "refused");
        assert_eq!(words(libc::ETIMEDOUT), "timed out");
        assert_eq!(words(libc::EAGAIN), "timed out");
        assert_eq!(words(libc::ECONNRESET), "reset");
        assert_eq!(words(libc::EPIPE), "reset");
        assert_eq!(words(libc::EHOSTUNREACH), "unreachable");
        assert_eq!(words(libc::ENETUNREACH), "unreachable");
        assert_eq!(words(libc::EMSGSIZE), "too large");
        assert_eq!(words(libc::EACCES), "permission denied");
    }

    #[test]
    fn causes_are_counted_each_and_written_for_people_and_programs() {
        let mut causes = Causes::default();
        causes.count(Cause::TimedOut);
        causes.add(Cause::Refused, 2);
        causes.add(Cause::Reset, 0);
        assert_eq!(causes.to_string(), "2 refused, 1 timed out");
        assert_eq!(causes.chief(), Some(&Cause::Refused));
        let json = serde_json::to_string(&causes).expect("numbers");
        assert_eq!(json, r#"{"refused":2,"timed out":1}"#);
    }
}
