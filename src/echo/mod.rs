//! What is answered: the reply modes, and how they apply to streams and datagrams.
//!
//! Knows bytes, and neither sockets, clocks, threads nor files: a `worker` passes the bytes in and
//! carries out the decision. See [`stream`] for a connection as a state machine and [`datagram`] for
//! datagrams.

#![forbid(unsafe_code)]

pub(crate) mod datagram;
pub(crate) mod stream;

use serde::{Deserialize, Serialize};

pub use stream::Stream;

/// What a listener answers with (configuration key `reply`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The same bytes (RFC 862).
    #[default]
    Echo,
    /// The same bytes, with ASCII a–z changed to A–Z.
    Upper,
    /// Nothing; what is received is discarded (RFC 863).
    Discard,
}

impl Reply {
    /// Every mode, in the order in which messages list them.
    pub const ALL: [Self; 3] = [Self::Echo, Self::Upper, Self::Discard];

    /// The mode's name in the configuration and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Upper => "upper",
            Self::Discard => "discard",
        }
    }

    /// Turns received bytes into their answer, in place, and returns whether it is to be sent.
    pub fn answer(self, bytes: &mut [u8]) -> Answer {
        match self {
            Self::Echo => Answer::Send,
            Self::Upper => {
                bytes.make_ascii_uppercase();
                Answer::Send
            }
            Self::Discard => Answer::Drop,
        }
    }
}

/// What is to be done with received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Send them to the peer, as [`Reply::answer`] has left them.
    Send,
    /// Discard them.
    Drop,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upper_changes_ascii_letters_and_nothing_else() {
        let mut bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(Reply::Upper.answer(&mut bytes), Answer::Send);
        for (before, after) in (0..=255u8).zip(bytes) {
            let expected = if before.is_ascii_lowercase() {
                before - 32
            } else {
                before
            };
            assert_eq!(after, expected, "byte {before}");
        }
    }

    #[test]
    fn echo_changes_nothing() {
        let mut bytes: Vec<u8> = (0..=255).collect();
        assert_eq!(Reply::Echo.answer(&mut bytes), Answer::Send);
        assert!(bytes.iter().copied().eq(0..=255));
    }

    #[test]
    fn discard_answers_nothing() {
        assert_eq!(Reply::Discard.answer(&mut [1, 2, 3]), Answer::Drop);
    }
}
