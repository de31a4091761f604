//! How a stream ended, in words and numbers.
//!
//! Knows what was compared and what ended it; never a connection.

use std::time::Duration;

use super::comparison::{Comparison, WINDOW_BYTES_MAX};
use crate::cli::text::{bytes, counted};
use crate::probe::cause::Cause;
use crate::probe::report::{Report, Verdict, milliseconds};

/// What ended it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The input, and then the peer.
    Whole,
    /// The peer, and there would have been more input.
    Closed,
    /// The connection, for this reason.
    Broken(Cause),
    /// Nothing has come for so long.
    TimedOut(Duration),
    /// Much more has come than was sent, and there is no end of it.
    Flooded,
    /// The user.
    Interrupted,
    /// Whoever was reading what came back, and has seen enough.
    Unread,
}

/// A stream that has ended.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) comparison: Comparison,
    pub(super) end: End,
    pub(super) took: Duration,
}

impl Outcome {
    /// All that was not as it should be: its cause for programs, if it counts, and words.
    pub(super) fn complaints(&self) -> Vec<(Option<Cause>, String)> {
        let different = self.comparison.difference();
        let in_the_middle = different.filter(|found| found.expected.is_some());
        let difference = in_the_middle.map(|found| (Some(Cause::Mismatch), found.to_string()));
        difference.into_iter().chain(self.complaint()).collect()
    }

    /// What is wrong with the end.
    fn complaint(&self) -> Option<(Option<Cause>, String)> {
        let (sent, came) = (self.comparison.sent(), self.comparison.came());
        let progress = format!("{came} of {} had come back", counted(sent, "byte"));
        let too_much = came.saturating_sub(sent);
        let (cause, words) = match &self.end {
            End::Unread => return None,
            End::Whole if !self.comparison.is_exact() || came == sent => return None,
            End::Whole if came < sent => {
                let missing = counted(sent - came, "byte");
                let words = format!("closed when {progress}: {missing} too few");
                (Some(Cause::Closed), words)
            }
            End::Whole => {
                let words = format!("{came} bytes came back of {sent}: {too_much} too many");
                (Some(Cause::Mismatch), words)
            }
            End::Flooded => {
                let words = format!("more than {too_much} bytes came back that were not sent");
                (Some(Cause::Mismatch), words)
            }
            End::Closed => {
                let words = format!("closed before the end of the input, when {progress}");
                (Some(Cause::Closed), words)
            }
            End::Broken(cause) => (Some(cause.clone()), format!("{cause} when {progress}")),
            End::Interrupted => (None, format!("interrupted when {progress}")),
            End::TimedOut(time) => self.silence(*time, &progress),
        };
        Some((cause, words))
    }

    fn silence(&self, time: Duration, progress: &str) -> (Option<Cause>, String) {
        let time = humantime::format_duration(time);
        if self.is_right() {
            let words = format!("all came back, but the end of the connection not within {time}");
            return (None, words);
        }
        let full = match self.comparison.room() {
            0 => format!("; {} are on the way", bytes(WINDOW_BYTES_MAX as u64)),
            _ => String::new(),
        };
        let words = format!("timed out: {progress}, and nothing more within {time}{full}");
        (Some(Cause::TimedOut), words)
    }

    /// Whether all that was sent came back, as it should.
    fn is_right(&self) -> bool {
        let comparison = &self.comparison;
        let is_all = comparison.came() == comparison.sent();
        comparison.difference().is_none() && comparison.is_exact() && is_all
    }

    pub(super) fn verdict(&self) -> Verdict {
        let is_good = match &self.end {
            End::Whole => self.is_right() || !self.comparison.is_exact(),
            End::TimedOut(_) => self.is_right(),
            End::Unread => self.comparison.difference().is_none(),
            End::Closed | End::Broken(_) | End::Flooded | End::Interrupted => false,
        };
        match is_good {
            true => Verdict::Good,
            false => Verdict::Flawed,
        }
    }

    pub(super) fn report(&self) -> Report {
        let mut report = Report {
            sent: Some(self.comparison.sent()),
            received: Some(self.comparison.came()),
            lost: self.comparison.is_exact().then(|| self.comparison.owed()),
            bytes: Some(self.comparison.right()),
            duration_ms: Some(milliseconds(self.took)),
            ..Report::default()
        };
        for (cause, _) in self.complaints() {
            cause
                .into_iter()
                .for_each(|cause| report.errors.count(cause));
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::args::Expect;

    const SECOND: Duration = Duration::from_secs(1);

    fn check(sent: &str, came: &str, end: End, verdict: Verdict, words: &[&str]) {
        check_with(Expect::Echo, sent, came, end, verdict, words);
    }

    fn check_with(
        expect: Expect,
        sent: &str,
        came: &str,
        end: End,
        verdict: Verdict,
        words: &[&str],
    ) {
        let mut comparison = Comparison::new(expect);
        comparison.handle_sent(sent.as_bytes());
        comparison.handle_received(came.as_bytes());
        let outcome = Outcome {
            comparison,
            end,
            took: SECOND,
        };
        let complaints = outcome.complaints();
        let said: Vec<&str> = complaints.iter().map(|(_, words)| words.as_str()).collect();
        assert_eq!(said, words);
        assert_eq!(outcome.verdict(), verdict, "{said:?}");
    }

    #[test]
    fn all_that_is_as_it_should_be_needs_no_words() {
        check("hello", "hello", End::Whole, Verdict::Good, &[]);
        check("", "", End::Whole, Verdict::Good, &[]);
        check("hello", "he", End::Unread, Verdict::Good, &[]);
        check_with(Expect::Any, "hello", "", End::Whole, Verdict::Good, &[]);
        check_with(Expect::Any, "a", "hello", End::Whole, Verdict::Good, &[]);
    }

    #[test]
    fn too_little_and_too_much_are_said_with_counts() {
        let words = "closed when 4 of 5 bytes had come back: 1 byte too few";
        check("hello", "hell", End::Whole, Verdict::Flawed, &[words]);
        let words = "7 bytes came back of 5: 2 too many";
        check("hello", "hello!!", End::Whole, Verdict::Flawed, &[words]);
        let words = "more than 2 bytes came back that were not sent";
        check("hello", "hello!!", End::Flooded, Verdict::Flawed, &[words]);
    }

    #[test]
    fn a_difference_is_said_and_the_count_as_well() {
        let difference = "byte 1: 0x61 'a' came back instead of 0x65 'e'";
        check("hello", "hallo", End::Whole, Verdict::Flawed, &[difference]);
        let few = "closed when 4 of 5 bytes had come back: 1 byte too few";
        check(
            "hello",
            "hall",
            End::Whole,
            Verdict::Flawed,
            &[difference, few],
        );
    }

    #[test]
    fn a_peer_that_goes_too_soon_is_said_with_how_much_had_come_back() {
        let words = "closed before the end of the input, when 5 of 5 bytes had come back";
        check("hello", "hello", End::Closed, Verdict::Flawed, &[words]);
        let words = "reset when 0 of 5 bytes had come back";
        check(
            "hello",
            "",
            End::Broken(Cause::Reset),
            Verdict::Flawed,
            &[words],
        );
        let words = "interrupted when 2 of 5 bytes had come back";
        check("hello", "he", End::Interrupted, Verdict::Flawed, &[words]);
    }

    #[test]
    fn silence_is_told_from_a_connection_that_stays_open() {
        let words = "timed out: 2 of 5 bytes had come back, and nothing more within 1s";
        check(
            "hello",
            "he",
            End::TimedOut(SECOND),
            Verdict::Flawed,
            &[words],
        );
        let words = "all came back, but the end of the connection not within 1s";
        check(
            "hello",
            "hello",
            End::TimedOut(SECOND),
            Verdict::Good,
            &[words],
        );
        let much = "x".repeat(WINDOW_BYTES_MAX);
        let words = "timed out: 0 of 16777216 bytes had come back, and nothing more within 1s; \
                     16.0 MiB are on the way";
        check(&much, "", End::TimedOut(SECOND), Verdict::Flawed, &[words]);
    }

    #[test]
    fn programs_get_bytes_and_causes() {
        let mut comparison = Comparison::new(Expect::Echo);
        comparison.handle_sent(b"hello");
        comparison.handle_received(b"hal");
        let outcome = Outcome {
            comparison,
            end: End::Broken(Cause::Reset),
            took: SECOND,
        };
        let json = serde_json::to_string(&outcome.report()).expect("numbers");
        assert_eq!(
            json,
            r#"{"sent":5,"received":3,"lost":2,"bytes":1,"duration_ms":1000.0,"errors":{"reset":1,"mismatch":1}}"#
        );
    }
}
