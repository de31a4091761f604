//! What is to be said of what came back, and what was to.
//!
//! Knows bytes, ends and times, and never a socket.

use std::io;
use std::time::Duration;

use super::material::{Receipt, first_difference};
use crate::cli::text::counted;
use crate::probe::Trouble;
use crate::probe::cause::Cause;

/// What came of a check: what was seen where all is as it should be, or why it ended there.
pub(super) type Finding = Result<String, Stop>;

/// Why a check ends before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The service has failed it.
    Failed {
        /// What was seen instead.
        seen: String,
        /// The same for programs, where there is a word for it.
        cause: Option<Cause>,
    },
    /// It says nothing of this service, or can't be made from here.
    NotApplicable(String),
    /// Nobody is there, or nobody any more.
    Unreached(Trouble),
    /// The user has asked for it.
    Interrupted,
}

impl Stop {
    /// The service has failed.
    pub(super) fn failed(seen: impl Into<String>, cause: Cause) -> Self {
        Self::Failed {
            seen: seen.into(),
            cause: Some(cause),
        }
    }

    /// The service does what it must not.
    pub(super) fn wrong(seen: impl Into<String>) -> Self {
        Self::Failed {
            seen: seen.into(),
            cause: None,
        }
    }

    /// The same, said of one client among others, or of one part.
    pub(super) fn of(self, whom: &str) -> Self {
        match self {
            Self::Failed { seen, cause } => Self::Failed {
                seen: format!("{whom}: {seen}"),
                cause,
            },
            Self::Unreached(trouble) => {
                Self::failed(format!("{whom}: {}", trouble.cause), trouble.cause)
            }
            other => other,
        }
    }
}

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Self {
        Self::Unreached(trouble)
    }
}

/// Sockets fail only by what is at their other end.
impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        let cause = Cause::of(&error);
        Self::failed(cause.to_string(), cause)
    }
}

/// How what comes back on a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It did not have to: all was there.
    Open,
    /// With a FIN.
    Closed,
    /// With an error.
    Broken(Cause),
    /// It did not, but nothing more came within so much time.
    Silent(Duration),
}

impl End {
    fn cause(&self) -> Cause {
        match self {
            Self::Open => Cause::Mismatch,
            Self::Closed => Cause::Closed,
            Self::Broken(cause) => cause.clone(),
            Self::Silent(_) => Cause::TimedOut,
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Open => "no end".into(),
            Self::Closed => "the end of the connection".into(),
            Self::Broken(Cause::Reset) => "a reset".into(),
            Self::Broken(cause) => cause.to_string(),
            Self::Silent(time) => format!("nothing within {}", shown(*time)),
        }
    }
}

/// `2s`
pub(super) fn shown(time: Duration) -> String {
    humantime::format_duration(time).to_string()
}

/// `1 byte`, `2 bytes`
pub(super) fn bytes(count: usize) -> String {
    counted(count as u64, "byte")
}

/// Whether so many bytes came back, no other ones, and then the end where it was due.
pub(super) fn judge_stream(len: usize, receipt: &Receipt, end: &End) -> Finding {
    if let Some(difference) = receipt.difference {
        return Err(Stop::failed(difference.to_string(), Cause::Mismatch));
    }
    let then = if receipt.came < len {
        format!("{} of {}, then {}", receipt.came, bytes(len), end.words())
    } else {
        match end {
            End::Open => return Ok(bytes(len)),
            End::Closed => return Ok(format!("{}, then the end of the connection", bytes(len))),
            End::Silent(time) => format!(
                "{}, but no end of the connection within {}",
                bytes(len),
                shown(*time)
            ),
            End::Broken(_) => format!(
                "{}, then {} instead of the end of the connection",
                bytes(len),
                end.words()
            ),
        }
    };
    Err(Stop::failed(then, end.cause()))
}

/// What an answer to a datagram is, against what it should be; none: the same.
pub(super) fn judge_datagram(due: &[u8], came: &[u8]) -> Option<String> {
    if came == due {
        return None;
    }
    let common = due.len().min(came.len());
    let at = first_difference(&due[..common], &came[..common]);
    Some(match at {
        None if came.len() < due.len() => format!("cut to {}", bytes(came.len())),
        _ if came.len() != due.len() => format!("{} came back", bytes(came.len())),
        None => unreachable!("they are not the same"),
        Some(at) => format!(
            "byte {at} came back as 0x{:02x} instead of 0x{:02x}",
            came[at], due[at]
        ),
    })
}

/// What came back of datagrams that were sent at once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Burst {
    /// How many came back.
    pub(super) came: usize,
    /// Whether those came in the order in which they were sent.
    pub(super) in_order: bool,
    /// What is to be said of the first that is none of them.
    pub(super) stranger: Option<String>,
}

/// Which of these came back; each is unlike all others.
pub(super) fn judge_burst(due: &[Vec<u8>], came: &[Vec<u8>]) -> Burst {
    let mut burst = Burst {
        in_order: true,
        ..Burst::default()
    };
    let mut seen = vec![false; due.len()];
    let mut last = 0;
    for answer in came {
        match due.iter().position(|due| due == answer) {
            // The network may double one.
            Some(index) if seen[index] => {}
            Some(index) => {
                seen[index] = true;
                burst.came += 1;
                burst.in_order &= index >= last;
                last = last.max(index);
            }
            None if burst.stranger.is_none() => burst.stranger = Some(describe(due, answer)),
            None => {}
        }
    }
    burst
}

/// What a datagram that nobody sent is made of.
fn describe(due: &[Vec<u8>], answer: &[u8]) -> String {
    for first in 0..due.len() {
        let mut rest = answer;
        let mut count = 0;
        while let Some(next) = due
            .get(first + count)
            .and_then(|due| rest.strip_prefix(&due[..]))
        {
            rest = next;
            count += 1;
        }
        if count > 1 && rest.is_empty() {
            return format!("{count} came back as one of {}", bytes(answer.len()));
        }
    }
    let head = answer.get(..8);
    match due
        .iter()
        .find(|due| head.is_some() && due.get(..8) == head)
    {
        Some(due) => {
            let how = judge_datagram(due, answer).unwrap_or_default();
            format!("one of {}: {how}", bytes(due.len()))
        }
        None => format!("one of {} came back that was not sent", bytes(answer.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECONDS: Duration = Duration::from_secs(2);

    fn check_stream(len: usize, came: usize, end: &End, said: Result<&str, (&str, Cause)>) {
        let receipt = Receipt {
            came,
            difference: None,
        };
        let meant = said
            .map(ToString::to_string)
            .map_err(|(seen, cause)| Stop::failed(seen, cause));
        assert_eq!(judge_stream(len, &receipt, end), meant);
    }

    #[test]
    fn a_stream_that_came_back_whole_is_all_right() {
        check_stream(5, 5, &End::Open, Ok("5 bytes"));
        let words = "1 byte, then the end of the connection";
        check_stream(1, 1, &End::Closed, Ok(words));
        let words = "0 bytes, then the end of the connection";
        check_stream(0, 0, &End::Closed, Ok(words));
    }

    #[test]
    fn what_is_missing_is_told_with_how_it_ended() {
        let check = |end: &End, words, cause| {
            check_stream(1_048_576, 57_344, end, Err((words, cause)));
        };
        check(
            &End::Silent(SECONDS),
            "57344 of 1048576 bytes, then nothing within 2s",
            Cause::TimedOut,
        );
        check(
            &End::Closed,
            "57344 of 1048576 bytes, then the end of the connection",
            Cause::Closed,
        );
        check(
            &End::Broken(Cause::Reset),
            "57344 of 1048576 bytes, then a reset",
            Cause::Reset,
        );
    }

    #[test]
    fn an_end_that_is_none_is_told() {
        check_stream(
            5,
            5,
            &End::Silent(SECONDS),
            Err((
                "5 bytes, but no end of the connection within 2s",
                Cause::TimedOut,
            )),
        );
        check_stream(
            5,
            5,
            &End::Broken(Cause::Reset),
            Err((
                "5 bytes, then a reset instead of the end of the connection",
                Cause::Reset,
            )),
        );
    }

    #[test]
    fn other_bytes_come_before_everything_else() {
        let material =
            super::super::material::Material::new(b"hello", crate::probe::args::Expect::Echo);
        let mut receipt = Receipt::default();
        receipt.handle_received(&material, b"hallo");
        assert_eq!(
            judge_stream(5, &receipt, &End::Closed),
            Err(Stop::failed(
                "byte 1 came back as 0x61 instead of 0x65",
                Cause::Mismatch
            ))
        );
    }

    #[test]
    fn what_became_of_a_datagram_is_said_in_words() {
        let check = |came: &[u8], words: Option<&str>| {
            assert_eq!(judge_datagram(b"hello", came).as_deref(), words);
        };
        check(b"hello", None);
        check(b"hel", Some("cut to 3 bytes"));
        check(b"", Some("cut to 0 bytes"));
        check(b"hello, hello", Some("12 bytes came back"));
        check(b"hex", Some("3 bytes came back"));
        check(b"hallo", Some("byte 1 came back as 0x61 instead of 0x65"));
        assert_eq!(judge_datagram(b"", b""), None);
    }

    #[test]
    fn datagrams_that_were_sent_at_once_are_told_apart() {
        let due: Vec<Vec<u8>> = (0..4)
            .map(|seed| crate::probe::noise::noise(20, seed))
            .collect();
        let judge = |came: &[Vec<u8>]| {
            let Burst {
                came,
                in_order,
                stranger,
            } = judge_burst(&due, came);
            (came, in_order, stranger.unwrap_or_default())
        };
        let [one, two, three, four] = [0, 1, 2, 3].map(|index: usize| due[index].clone());
        assert_eq!(judge(&due), (4, true, String::new()));
        let swapped = [one.clone(), three.clone(), two.clone()];
        assert_eq!(judge(&swapped), (3, false, String::new()));
        let doubled = [one.clone(), two.clone(), one.clone()];
        assert_eq!(judge(&doubled), (2, true, String::new()));
        let merged = [one, [two, three].concat()];
        assert_eq!(
            judge(&merged),
            (1, true, "2 came back as one of 40 bytes".into())
        );
        let words = "one of 20 bytes: cut to 9 bytes";
        assert_eq!(judge(&[four[..9].to_vec()]), (0, true, words.into()));
        let words = "one of 5 bytes came back that was not sent";
        assert_eq!(judge(&[b"hello".to_vec()]), (0, true, words.into()));
        assert_eq!(judge(&[]), (0, true, String::new()));
    }
}
