//! Who owes an answer to whom: which bytes answer which line, what comes late, what never came.
//!
//! Knows lines, bytes and made-up time; never a socket or a terminal.
//!
//! An answer on a stream is as many bytes as the line has; a datagram is answered by one. What they
//! say is not judged: a service may answer with capitals, or with anything else. Only for what comes
//! behind its time is it looked at, to tell whether it is an echo of that line.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::probe::cause::{Cause, Causes};
use crate::probe::latency::Latencies;
use crate::probe::report::{Report, Verdict, milliseconds};
use crate::probe::target::Transport;

/// Lines and their answers.
#[derive(Debug)]
pub(super) struct Conversation {
    transport: Transport,
    timeout: Duration,
    /// Those that are still owed an answer, in the order in which they were sent. All are overdue
    /// but the last, which may have time.
    open: VecDeque<Line>,
    /// What has come of the answer that is waited for; a stream brings it in pieces.
    answer: Vec<u8>,
    /// How long that one has time; none: nothing is waited for.
    until: Option<Instant>,
    sent: u64,
    received: u64,
    late: u64,
    in_flight: u64,
    bytes: u64,
    strangers: u64,
    latencies: Latencies,
    causes: Causes,
}

/// A line that was sent.
#[derive(Debug)]
struct Line {
    bytes: Vec<u8>,
    /// How many of them are answered.
    answered: usize,
    sent: Instant,
}

/// What has come, and what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// The answer that was waited for, or all that there is of it.
    Answer(Vec<u8>),
    /// What should have come earlier.
    Late(Vec<u8>),
    /// What nobody has asked for.
    Unasked(Vec<u8>),
}

/// The answer to a line is no longer waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Missed {
    /// What has come of it.
    pub(super) part: Vec<u8>,
    /// How much it should have been.
    pub(super) of: usize,
}

impl Conversation {
    pub(super) fn new(transport: Transport, timeout: Duration) -> Self {
        Self {
            transport,
            timeout,
            open: VecDeque::new(),
            answer: Vec::new(),
            until: None,
            sent: 0,
            received: 0,
            late: 0,
            in_flight: 0,
            bytes: 0,
            strangers: 0,
            latencies: Latencies::default(),
            causes: Causes::default(),
        }
    }

    /// Whether an answer is waited for.
    pub(super) fn is_waiting(&self) -> bool {
        self.until.is_some()
    }

    /// Whether all that was sent is answered.
    pub(super) fn is_settled(&self) -> bool {
        self.open.is_empty()
    }

    /// How long the answer that is waited for has time.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.until
    }

    /// A line is on its way.
    pub(super) fn handle_sent(&mut self, now: Instant, bytes: Vec<u8>) {
        self.sent += 1;
        self.until = Some(now + self.timeout);
        self.open.push_back(Line {
            bytes,
            answered: 0,
            sent: now,
        });
    }

    /// The peer takes more of a long line: it has not gone silent.
    pub(super) fn handle_progress(&mut self, now: Instant) {
        if self.is_waiting() {
            self.until = Some(now + self.timeout);
        }
    }

    /// Something has come from the service.
    pub(super) fn handle_received(&mut self, now: Instant, bytes: &[u8]) -> Vec<Heard> {
        self.bytes += bytes.len() as u64;
        match self.transport {
            Transport::Datagram => vec![self.datagram(now, bytes)],
            Transport::Stream => self.stream(now, bytes),
        }
    }

    fn datagram(&mut self, now: Instant, bytes: &[u8]) -> Heard {
        let is_answer = |line: &Line| line.bytes.eq_ignore_ascii_case(bytes);
        // The last one first: an answer that comes at all mostly comes in time.
        let matching = self.open.iter().rposition(is_answer);
        let current = self.is_waiting().then(|| self.open.len() - 1);
        match matching.or(current) {
            None => Heard::Unasked(bytes.into()),
            found if found == current => {
                self.answer = bytes.into();
                Heard::Answer(self.take_answer(now))
            }
            Some(overdue) => {
                self.open.remove(overdue);
                self.late += 1;
                Heard::Late(bytes.into())
            }
        }
    }

    fn stream(&mut self, now: Instant, mut bytes: &[u8]) -> Vec<Heard> {
        let mut heard = Vec::new();
        while !bytes.is_empty() {
            let is_current = self.is_waiting() && self.open.len() == 1;
            let Some(line) = self.open.front_mut() else {
                heard.push(Heard::Unasked(bytes.into()));
                break;
            };
            let owed = &line.bytes[line.answered..];
            let len = owed.len().min(bytes.len());
            let (piece, rest) = bytes.split_at(len);
            if !is_current && !owed[..len].eq_ignore_ascii_case(piece) {
                // No echo of that line: it will not be answered any more.
                self.forget();
                continue;
            }
            line.answered += len;
            bytes = rest;
            let is_whole = line.answered == line.bytes.len();
            if is_current {
                self.answer.extend_from_slice(piece);
                self.until = Some(now + self.timeout);
                if is_whole {
                    heard.push(Heard::Answer(self.take_answer(now)));
                }
            } else {
                heard.push(Heard::Late(piece.into()));
                if is_whole {
                    self.open.pop_front();
                    self.late += 1;
                }
            }
        }
        heard
    }

    /// The line that was waited for is answered.
    fn take_answer(&mut self, now: Instant) -> Vec<u8> {
        let line = self.open.pop_back().expect("one is waited for");
        self.until = None;
        self.received += 1;
        self.latencies
            .record(now.saturating_duration_since(line.sent));
        std::mem::take(&mut self.answer)
    }

    /// The line that was sent first will never be answered.
    fn forget(&mut self) {
        self.open.pop_front();
        self.causes.count(Cause::TimedOut);
    }

    /// Its time may be over.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Option<Missed> {
        if self.until? > now {
            return None;
        }
        self.give_up()
    }

    /// What is waited for is waited for no longer, but may come later.
    fn give_up(&mut self) -> Option<Missed> {
        self.until.take()?;
        let line = self.open.back()?;
        Some(Missed {
            part: std::mem::take(&mut self.answer),
            of: line.bytes.len(),
        })
    }

    /// The line that is waited for will not be answered, for this reason.
    pub(super) fn handle_failure(&mut self, cause: Cause) {
        match self.give_up() {
            Some(_) => drop(self.open.pop_back()),
            // News of an earlier one: it has been waited for in vain.
            None if self.open.pop_front().is_none() => return,
            None => {}
        }
        self.causes.count(cause);
    }

    /// Somebody else has sent something.
    pub(super) fn handle_stranger(&mut self) {
        self.strangers += 1;
        self.causes.count(Cause::Mismatch);
    }

    /// A line could not be sent any more.
    pub(super) fn handle_unsent(&mut self, cause: Cause) {
        self.sent += 1;
        self.causes.count(cause);
    }

    /// The user wants no more: what is on the way is nobody's fault.
    pub(super) fn handle_interrupt(&mut self) {
        if self.give_up().is_some() {
            self.open.pop_back();
            self.in_flight += 1;
        }
    }

    /// Nothing more will come, for this reason.
    pub(super) fn handle_end(&mut self, cause: &Cause) -> Option<Missed> {
        let missed = self.give_up();
        if missed.is_some() {
            self.open.pop_back();
            self.causes.count(cause.clone());
        }
        while !self.open.is_empty() {
            self.forget();
        }
        missed
    }

    /// How it went; after its end.
    pub(super) fn report(&self, took: Duration) -> Report {
        let answered = self.received + self.late;
        Report {
            sent: Some(self.sent),
            received: Some(self.received),
            lost: Some(self.sent - answered - self.in_flight),
            late: Some(self.late),
            misaddressed: (self.transport == Transport::Datagram).then_some(self.strangers),
            in_flight: (self.in_flight > 0).then_some(self.in_flight),
            bytes: Some(self.bytes),
            duration_ms: Some(milliseconds(took)),
            rtt_us: self.latencies.spread(),
            errors: self.causes.clone(),
            ..Report::default()
        }
    }

    /// Whether it went well; after its end. Whoever never answers a datagram was not reached.
    pub(super) fn verdict(&self) -> Verdict {
        let asked = self.sent - self.in_flight;
        let heard_of = self.received + self.late > 0 || self.bytes > 0;
        match self.transport {
            Transport::Datagram if asked > 0 && !heard_of => Verdict::Unreached,
            _ if self.received == asked && self.strangers == 0 => Verdict::Good,
            _ => Verdict::Flawed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A conversation, and a clock that goes as it is told.
    struct Stage {
        conversation: Conversation,
        now: Instant,
    }

    impl Stage {
        fn new(transport: Transport) -> Self {
            Self {
                conversation: Conversation::new(transport, Duration::from_secs(1)),
                now: Instant::now(),
            }
        }

        fn send(&mut self, line: &str) {
            self.conversation.handle_sent(self.now, line.into());
        }

        fn hear(&mut self, bytes: &str) -> Vec<Heard> {
            self.conversation
                .handle_received(self.now, bytes.as_bytes())
        }

        fn pass(&mut self, milliseconds: u64) -> Option<Missed> {
            self.now += Duration::from_millis(milliseconds);
            self.conversation.handle_timeout(self.now)
        }

        fn end(&mut self, cause: &Cause) -> (Verdict, String) {
            self.conversation.handle_end(cause);
            let report = self.conversation.report(Duration::ZERO);
            (
                self.conversation.verdict(),
                format!(
                    "{} {} {} {} {}",
                    report.sent.unwrap_or(0),
                    report.received.unwrap_or(0),
                    report.lost.unwrap_or(0),
                    report.late.unwrap_or(0),
                    report.errors
                ),
            )
        }
    }

    fn answer(text: &str) -> Heard {
        Heard::Answer(text.into())
    }

    fn late(text: &str) -> Heard {
        Heard::Late(text.into())
    }

    fn unasked(text: &str) -> Heard {
        Heard::Unasked(text.into())
    }

    fn missed(part: &str, of: usize) -> Option<Missed> {
        let part = part.into();
        Some(Missed { part, of })
    }

    #[test]
    fn an_answer_on_a_stream_is_as_many_bytes_in_as_many_pieces_as_it_takes() {
        let mut stage = Stage::new(Transport::Stream);
        stage.send("hello");
        assert_eq!(stage.hear("HE"), []);
        assert!(stage.conversation.is_waiting());
        assert_eq!(stage.hear("LLO"), [answer("HELLO")]);
        assert!(!stage.conversation.is_waiting() && stage.conversation.is_settled());
        assert_eq!(
            stage.end(&Cause::Closed),
            (Verdict::Good, "1 1 0 0 ".into())
        );
    }

    #[test]
    fn what_comes_behind_its_time_is_late_and_the_next_answer_is_not() {
        let mut stage = Stage::new(Transport::Stream);
        stage.send("one");
        assert_eq!(stage.pass(999), None);
        assert_eq!(stage.pass(1), missed("", 3));
        stage.send("two");
        assert_eq!(stage.hear("ON"), [late("ON")]);
        assert_eq!(
            stage.hear("EtwoX"),
            [late("E"), answer("two"), unasked("X")]
        );
        assert_eq!(
            stage.end(&Cause::Closed),
            (Verdict::Flawed, "2 1 0 1 ".into())
        );
    }

    #[test]
    fn part_of_an_answer_is_shown_and_the_rest_may_still_come() {
        let mut stage = Stage::new(Transport::Stream);
        stage.send("hello");
        assert_eq!(stage.pass(900), None);
        assert_eq!(stage.hear("hel"), []);
        assert_eq!(stage.pass(900), None, "it is not silent");
        assert_eq!(stage.pass(100), missed("hel", 5));
        assert_eq!(stage.hear("lo"), [late("lo")]);
        assert_eq!(
            stage.end(&Cause::Closed),
            (Verdict::Flawed, "1 0 0 1 ".into())
        );
    }

    #[test]
    fn a_service_that_is_no_echo_is_never_called_late() {
        let mut stage = Stage::new(Transport::Stream);
        for line in ["hello", "world"] {
            stage.send(line);
            assert_eq!(stage.hear("ok"), []);
            assert_eq!(stage.pass(1000), missed("ok", 5));
        }
        assert_eq!(
            stage.end(&Cause::Closed),
            (Verdict::Flawed, "2 0 2 0 2 timed out".into())
        );
    }

    #[test]
    fn a_datagram_is_answered_by_one_and_an_empty_one_too() {
        let mut stage = Stage::new(Transport::Datagram);
        stage.send("");
        assert_eq!(stage.hear(""), [answer("")]);
        stage.send("hello");
        assert_eq!(stage.hear("anything"), [answer("anything")]);
        assert_eq!(stage.hear("hello"), [unasked("hello")]);
        assert_eq!(
            stage.end(&Cause::Closed),
            (Verdict::Good, "2 2 0 0 ".into())
        );
    }

    #[test]
    fn a_late_datagram_is_told_by_what_it_says() {
        let mut stage = Stage::new(Transport::Datagram);
        stage.send("one");
        assert_eq!(stage.pass(1000), missed("", 3));
        stage.send("two");
        assert_eq!(stage.hear("ONE"), [late("ONE")]);
        assert!(stage.conversation.is_waiting());
        assert_eq!(stage.hear("TWO"), [answer("TWO")]);
        stage.send("same");
        assert!(stage.pass(1000).is_some());
        stage.send("same");
        assert_eq!(stage.hear("same"), [answer("same")], "nobody can tell");
        assert_eq!(
            stage.end(&Cause::Closed),
            (Verdict::Flawed, "4 2 1 1 1 timed out".into())
        );
    }

    #[test]
    fn who_answers_no_datagram_was_not_reached() {
        let mut stage = Stage::new(Transport::Datagram);
        stage.send("one");
        stage.conversation.handle_failure(Cause::Refused);
        assert!(!stage.conversation.is_waiting());
        stage.send("two");
        assert!(stage.pass(1000).is_some());
        assert_eq!(
            stage.end(&Cause::TimedOut),
            (Verdict::Unreached, "2 0 2 0 1 refused, 1 timed out".into())
        );
    }

    #[test]
    fn the_end_takes_with_it_what_was_waited_for() {
        let mut stage = Stage::new(Transport::Stream);
        stage.send("hello");
        stage.hear("he");
        assert_eq!(
            stage.end(&Cause::Reset),
            (Verdict::Flawed, "1 0 1 0 1 reset".into())
        );
        let mut stage = Stage::new(Transport::Stream);
        assert_eq!(stage.end(&Cause::Reset), (Verdict::Good, "0 0 0 0 ".into()));
        stage.conversation.handle_unsent(Cause::Closed);
        assert_eq!(
            stage.end(&Cause::Closed),
            (Verdict::Flawed, "1 0 1 0 1 closed".into())
        );
    }

    #[test]
    fn what_is_on_the_way_when_the_user_ends_it_is_not_lost() {
        let mut stage = Stage::new(Transport::Stream);
        stage.send("hello");
        stage.conversation.handle_interrupt();
        assert_eq!(
            stage.end(&Cause::Closed),
            (Verdict::Good, "1 0 0 0 ".into())
        );
    }
}
