//! Why something did not come back, in the few words that help: refused, timed out, reset,
//! unreachable, name unknown, mismatch.
//!
//! Knows errors of the operating system, and never what was asked of it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use nix::errno::Errno;
use nix::libc;
use serde::Serialize;

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Somebody is there and says that nobody listens (RST, ICMP port unreachable).
    Refused,
    /// Nothing came in time.
    TimedOut,
    /// The peer has cut the connection off (RST).
    Reset,
    /// The peer has closed the connection before all had come back.
    Closed,
    /// There is no way to there (ICMP unreachable, no route).
    Unreachable,
    /// The name has no address.
    NameUnknown,
    /// What came back is not what was sent, or not from where it was sent to.
    Mismatch,
    /// It is larger than can be sent whole.
    TooLarge,
    /// Anything else, in the words of the operating system.
    Other(String),
}

impl Cause {
    /// The cause behind an error of a socket.
    #[must_use]
    pub fn of(error: &io::Error) -> Self {
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
            _ if error.raw_os_error() == Some(libc::EMSGSIZE) => Self::TooLarge,
            _ => Self::Other(words_of(error)),
        }
    }

    /// In a word or two; also the key in JSON.
    #[must_use]
    pub fn words(&self) -> &str {
        match self {
            Self::Refused => "refused",
            Self::TimedOut => "timed out",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Unreachable => "unreachable",
            Self::NameUnknown => "name unknown",
            Self::Mismatch => "mismatch",
            Self::TooLarge => "too large",
            Self::Other(words) => words,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

/// `permission denied`, without the number that stands behind it.
fn words_of(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => Errno::from_raw(errno).desc().to_lowercase(),
        None => error.to_string(),
    }
}

/// How often each cause was met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Causes(BTreeMap<Cause, u64>);

impl Causes {
    /// Once more.
    pub fn count(&mut self, cause: Cause) {
        self.add(cause, 1);
    }

    /// So many times more.
    pub fn add(&mut self, cause: Cause, count: u64) {
        if count > 0 {
            *self.0.entry(cause).or_default() += count;
        }
    }

    /// Once less: it was not that after all.
    pub fn uncount(&mut self, cause: &Cause) {
        if let Some(count) = self.0.get_mut(cause) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(cause);
            }
        }
    }

    /// Those of somebody else, too.
    pub fn merge(&mut self, others: &Self) {
        for (cause, count) in &others.0 {
            self.add(cause.clone(), *count);
        }
    }

    /// Whether there was none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How often this one was met.
    #[must_use]
    pub fn of(&self, cause: &Cause) -> u64 {
        self.0.get(cause).copied().unwrap_or(0)
    }

    /// The one that was met most.
    #[must_use]
    pub fn chief(&self) -> Option<&Cause> {
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
