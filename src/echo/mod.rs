//! What comes back: the reply modes, and what each kind of traffic does with them.
//!
//! Knows bytes and nothing else. Never touches a socket, a clock, a thread or a file; the
//! `worker` brings the bytes and carries out what is returned. Read on in [`stream`] for a
//! connection as a state machine and in [`datagram`] for one packet.

#![forbid(unsafe_code)]

pub mod datagram;
pub mod stream;

use serde::{Deserialize, Serialize};

pub use stream::Stream;

/// What a listener sends back (configuration key `reply`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The same bytes (RFC 862).
    #[default]
    Echo,
    /// ASCII a–z become A–Z, every other byte stays as it was.
    Upper,
    /// Nothing: what arrives is thrown away (RFC 863).
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

    /// Turns received bytes into the answer, in place; `Drop` means that there is none.
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

/// What happens to the bytes that were just received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// They go back to the peer, as they now are.
    Send,
    /// They are let go of.
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
