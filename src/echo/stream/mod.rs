//! A connection as a state machine: every byte back, in order, until the peer has finished.
//!
//! Knows how many bytes are unsent and which sides have finished. Never sees a socket or a clock:
//! the worker reports what happened through `handle_*` and carries out what [`Stream::poll_step`]
//! returns until it returns `None`.
//!
//! The states, and what identifies each of them:
//!
//! | state     | input    | shut down | unsent bytes | meaning |
//! |-----------|----------|-----------|--------------|---------|
//! | open      | answered | no        | any          | input is answered |
//! | flushing  | ignored  | no        | any          | pending output is sent before our FIN |
//! | lingering | ignored  | yes       | none         | input is discarded until the peer's FIN |
//! | trailing  | ignored  | yes       | some         | relayed bytes were under way when the FIN was requested |
//! | ending    | finished | any       | any          | pending output is sent, then the connection is closed |
//!
//! Only these events change the state; any other event leaves it as it is:
//!
//! | from      | event                                    | to        |
//! |-----------|------------------------------------------|-----------|
//! | open      | first read of a one-shot connection      | flushing  |
//! | open      | [`Stream::finish`]                       | flushing  |
//! | flushing  | nothing is unsent: [`Step::ShutDown`]    | lingering |
//! | lingering | bytes were relayed, and some are unsent  | trailing  |
//! | trailing  | the last of them was sent                | lingering |
//! | any       | the peer's FIN                           | ending    |
//! | ending    | nothing is unsent: [`Step::Close`]       | (closed)  |
//!
//! A lingering connection reads and discards because a close with unread input would turn our FIN
//! into an RST, and the peer could lose the end of its answer (RFC 1122, section 4.2.2.13). The
//! worker limits how long it may take (`policy::limits`).
//!
//! Back-pressure is independent of the state: receiving pauses when a send stalls, or when more than
//! [`HELD_BYTES_MAX`] are unsent, and resumes when the peer has read and few bytes are unsent.

use serde::{Deserialize, Serialize};

use super::{Answer, Reply};

/// The largest number of unsent bytes with which a connection is still read.
pub(crate) const HELD_BYTES_MAX: u32 = 64 * 1024;

/// Receiving resumes when no more than this number of bytes is unsent.
const RESUME_BYTES: u32 = HELD_BYTES_MAX / 4;

/// One connection. See the module for its states.
#[derive(Debug)]
pub struct Stream {
    // Bytes received, to be sent back, and not yet with the kernel.
    unsent: u32,
    // A send has stalled, and `unsent` has not fallen to `RESUME_BYTES` since then.
    stalled: bool,
    reply: Reply,
    one_shot: bool,
    intake: Intake,
    input: Input,
    // `Step::ShutDown` has been returned.
    shut_down: bool,
}

/// What the driver was last asked to do about receiving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Intake {
    Paused,
    Receiving,
    Relaying,
}

/// What becomes of the bytes that the peer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// They are answered.
    Answered,
    /// They are discarded: our FIN is sent, or will be when all pending output is.
    Ignored,
    /// None can arrive any more: the peer has half-closed.
    Finished,
}

/// The state of a connection that another worker, or another process, takes over. The unsent bytes
/// travel beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The reply mode with which the connection was accepted; its listener's may differ by now.
    pub reply: Reply,
    /// Whether only the first read is answered.
    pub one_shot: bool,
    /// What becomes of the bytes that the peer sends.
    pub input: Input,
    /// Whether the FIN was requested. The driver may not have sent it.
    pub shut_down: bool,
}

/// What the worker has to do with a connection next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Start receiving. If the driver was relaying, it stops: everything is shown from now on.
    Receive,
    /// Start receiving; the driver may also send bytes back by itself, without showing them.
    Relay,
    /// Stop receiving and relaying: the peer does not read what it is sent.
    Pause,
    /// Shut down the write side, and limit the time until the peer's FIN.
    ShutDown,
    /// Close: nothing is unsent and nothing is left to read.
    Close,
}

impl Stream {
    /// A new connection. Its first step is [`Step::Receive`] or [`Step::Relay`].
    #[must_use]
    pub fn new(reply: Reply, one_shot: bool) -> Self {
        Self {
            unsent: 0,
            stalled: false,
            reply,
            one_shot,
            intake: Intake::Paused,
            input: Input::Answered,
            shut_down: false,
        }
    }

    /// A connection in the state in which another worker had it, with this number of unsent bytes.
    /// Where [`Self::is_shut_down`], the caller shuts the write side down again, because the previous
    /// driver may have been stopped before it did.
    #[must_use]
    pub fn resume(progress: Progress, unsent: u32) -> Self {
        Self {
            unsent,
            // The previous driver may have reported the stall already, and a driver reports it once.
            stalled: unsent > 0,
            input: progress.input,
            shut_down: progress.shut_down,
            ..Self::new(progress.reply, progress.one_shot)
        }
    }

    /// The state, for [`Self::resume`].
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            reply: self.reply,
            one_shot: self.one_shot,
            input: self.input,
            shut_down: self.shut_down,
        }
    }

    /// Bytes arrived. They are turned into their answer in place.
    pub fn handle_received(&mut self, bytes: &mut [u8]) -> Answer {
        if self.input != Input::Answered {
            return Answer::Drop;
        }
        if self.one_shot {
            self.input = Input::Ignored;
        }
        let answer = self.reply.answer(bytes);
        if answer == Answer::Send {
            self.unsent += u32::try_from(bytes.len()).expect("a buffer is far below 4 GiB");
        }
        answer
    }

    /// The driver received `received` bytes without showing them, and sent `sent` of these and of
    /// earlier ones. They may have been under way when the input began to be ignored, or when the FIN
    /// was requested; they are sent before it all the same.
    pub fn handle_relayed(&mut self, received: u32, sent: u32) {
        debug_assert!(
            self.may_relay(),
            "only the received bytes themselves are relayed"
        );
        self.unsent += received;
        self.handle_sent(sent);
    }

    /// Whether the answer to any input is the input itself.
    fn may_relay(&self) -> bool {
        self.reply == Reply::Echo && !self.one_shot
    }

    /// The peer half-closed. When the pending output has been sent, the connection is closed.
    pub fn handle_end(&mut self) {
        self.input = Input::Finished;
        self.intake = Intake::Paused;
    }

    /// The kernel took `len` of the unsent bytes.
    pub fn handle_sent(&mut self, len: u32) {
        debug_assert!(len <= self.unsent, "only unsent bytes are sent");
        self.unsent -= len;
        if len > 0 && self.unsent <= RESUME_BYTES {
            self.stalled = false;
        }
    }

    /// A send stalled: the peer does not read as fast as it writes. Receiving pauses until the peer
    /// has read and no more than `RESUME_BYTES` are unsent, however few are unsent now: each byte
    /// received from such a peer would only have to be held for it.
    pub fn handle_stalled(&mut self) {
        // Without unsent bytes no progress would ever be reported, and the pause would have no end.
        self.stalled = self.unsent > 0;
    }

    /// Answers no further input: a timeout was reached, or the service stops.
    pub fn finish(&mut self) {
        if self.input == Input::Answered {
            self.input = Input::Ignored;
        }
    }

    /// What to do now, if anything. Call it until it returns `None`.
    pub fn poll_step(&mut self) -> Option<Step> {
        let is_paused = self.intake == Intake::Paused;
        let must_pause = self.stalled || self.unsent > HELD_BYTES_MAX;
        let may_resume = !self.stalled && self.unsent <= RESUME_BYTES;
        match self.input {
            Input::Finished => (self.unsent == 0).then_some(Step::Close),
            // Ignored bytes are not read either while the peer does not read: a peer that floods us
            // and reads nothing would only cost time. A pause ends relaying, too.
            _ if !is_paused && must_pause => {
                self.intake = Intake::Paused;
                Some(Step::Pause)
            }
            // Otherwise the driver would send back bytes that are to be ignored.
            Input::Ignored if self.intake == Intake::Relaying => {
                self.intake = Intake::Receiving;
                Some(Step::Receive)
            }
            Input::Ignored if self.unsent == 0 && !self.shut_down => {
                self.shut_down = true;
                Some(Step::ShutDown)
            }
            Input::Answered if is_paused && may_resume && self.may_relay() => {
                self.intake = Intake::Relaying;
                Some(Step::Relay)
            }
            _ if is_paused && may_resume => {
                self.intake = Intake::Receiving;
                Some(Step::Receive)
            }
            _ => None,
        }
    }

    /// The number of bytes received, to be sent back, and not yet sent.
    #[must_use]
    pub fn unsent(&self) -> u32 {
        self.unsent
    }

    /// Whether input is still answered.
    #[must_use]
    pub fn is_answering(&self) -> bool {
        self.input == Input::Answered
    }

    /// Whether the FIN was requested: by [`Step::ShutDown`], or by a previous worker.
    #[must_use]
    pub fn is_shut_down(&self) -> bool {
        self.shut_down
    }

    /// Whether everything was sent, our FIN included, and only the peer's FIN is missing.
    #[must_use]
    pub fn is_lingering(&self) -> bool {
        self.shut_down && self.unsent == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn open(one_shot: bool) -> Stream {
        let mut stream = Stream::new(Reply::Echo, one_shot);
        let first = if one_shot { Step::Receive } else { Step::Relay };
        assert_eq!(stream.poll_step(), Some(first));
        assert_eq!(stream.poll_step(), None);
        stream
    }

    #[test]
    fn echoes_until_the_peer_half_closes_then_closes() {
        let mut stream = open(false);
        for _ in 0..3 {
            assert_eq!(stream.handle_received(&mut [1; 10]), Answer::Send);
            assert_eq!(stream.poll_step(), None);
            stream.handle_sent(10);
            assert_eq!(stream.poll_step(), None);
        }
        stream.handle_end();
        assert_eq!(stream.poll_step(), Some(Step::Close));
    }

    #[test]
    fn after_a_half_close_pending_output_is_sent_before_the_close() {
        let mut stream = open(false);
        stream.handle_received(&mut [1; 10]);
        stream.handle_end();
        assert_eq!(stream.poll_step(), None);
        stream.handle_sent(4);
        assert_eq!(stream.poll_step(), None);
        stream.handle_sent(6);
        assert_eq!(stream.poll_step(), Some(Step::Close));
    }

    #[test]
    fn a_peer_that_does_not_read_is_no_longer_read() {
        let mut stream = open(false);
        stream.handle_received(&mut vec![1; HELD_BYTES_MAX as usize]);
        assert_eq!(stream.poll_step(), None);
        stream.handle_received(&mut [1]);
        assert_eq!(stream.poll_step(), Some(Step::Pause));
        assert_eq!(stream.poll_step(), None);
        stream.handle_sent(1);
        stream.handle_sent(HELD_BYTES_MAX / 2);
        assert_eq!(stream.poll_step(), None);
        stream.handle_sent(HELD_BYTES_MAX / 4);
        assert_eq!(stream.poll_step(), Some(Step::Relay));
        assert_eq!(stream.poll_step(), None);
    }

    #[test]
    fn a_stalled_send_pauses_receiving_until_the_peer_has_read() {
        let mut stream = open(false);
        stream.handle_received(&mut [1; 10]);
        stream.handle_stalled();
        assert_eq!(stream.poll_step(), Some(Step::Pause));
        assert_eq!(
            stream.poll_step(),
            None,
            "few bytes are unsent, but none was read"
        );
        stream.handle_relayed(0, 0);
        assert_eq!(stream.poll_step(), None, "no byte was read");
        stream.handle_sent(4);
        assert_eq!(stream.poll_step(), Some(Step::Relay));
        assert_eq!(stream.poll_step(), None);
    }

    #[test]
    fn after_a_stall_receiving_resumes_when_few_bytes_are_unsent() {
        let mut stream = open(false);
        stream.handle_received(&mut vec![1; 2 * RESUME_BYTES as usize]);
        stream.handle_stalled();
        assert_eq!(stream.poll_step(), Some(Step::Pause));
        stream.handle_sent(RESUME_BYTES - 1);
        assert_eq!(stream.poll_step(), None);
        stream.handle_sent(1);
        assert_eq!(stream.poll_step(), Some(Step::Relay));
    }

    #[test]
    fn relaying_that_stalls_pauses_and_resumes() {
        let mut stream = open(false);
        stream.handle_relayed(100, 30);
        stream.handle_stalled();
        assert_eq!(stream.poll_step(), Some(Step::Pause));
        assert_eq!(stream.poll_step(), None);
        stream.handle_relayed(0, 10);
        assert_eq!(stream.poll_step(), Some(Step::Relay));
        // The bytes that are still unsent may stall again.
        stream.handle_stalled();
        assert_eq!(stream.poll_step(), Some(Step::Pause));
    }

    #[test]
    fn a_stall_pauses_the_discarding_of_input_too_and_delays_the_shutdown() {
        let mut stream = open(false);
        stream.handle_received(&mut [1; 10]);
        stream.finish();
        stream.handle_stalled();
        assert_eq!(stream.poll_step(), Some(Step::Pause));
        assert_eq!(stream.poll_step(), None);
        stream.handle_sent(10);
        assert_eq!(stream.poll_step(), Some(Step::ShutDown));
        assert_eq!(stream.poll_step(), Some(Step::Receive));
        assert_eq!(stream.poll_step(), None);
    }

    #[test]
    fn a_stall_after_the_peer_has_finished_changes_nothing() {
        let mut stream = open(false);
        stream.handle_received(&mut [1; 10]);
        stream.handle_end();
        stream.handle_stalled();
        assert_eq!(stream.poll_step(), None);
        stream.handle_sent(10);
        assert_eq!(stream.poll_step(), Some(Step::Close));
    }

    #[test]
    fn a_stall_with_nothing_unsent_pauses_nothing() {
        let mut stream = open(false);
        stream.handle_stalled();
        assert_eq!(stream.poll_step(), None);
    }

    #[test]
    fn one_shot_answers_the_first_read_then_shuts_down_and_lingers() {
        let mut stream = open(true);
        assert_eq!(stream.handle_received(&mut [1; 5]), Answer::Send);
        assert_eq!(stream.poll_step(), None);
        assert_eq!(stream.handle_received(&mut [1; 5]), Answer::Drop);
        stream.handle_sent(5);
        assert_eq!(stream.poll_step(), Some(Step::ShutDown));
        assert!(stream.is_lingering());
        assert_eq!(stream.handle_received(&mut [1; 5]), Answer::Drop);
        assert_eq!(stream.poll_step(), None);
        stream.handle_end();
        assert_eq!(stream.poll_step(), Some(Step::Close));
    }

    #[test]
    fn finishing_sends_pending_output_first_and_shuts_down_once() {
        let mut stream = open(false);
        stream.handle_received(&mut [1; 5]);
        stream.finish();
        assert_eq!(stream.poll_step(), Some(Step::Receive));
        assert_eq!(stream.poll_step(), None);
        stream.handle_sent(5);
        assert_eq!(stream.poll_step(), Some(Step::ShutDown));
        stream.finish();
        assert_eq!(stream.poll_step(), None);
    }

    #[test]
    fn discard_leaves_nothing_to_send() {
        let mut stream = Stream::new(Reply::Discard, false);
        assert_eq!(stream.handle_received(&mut [1; 50]), Answer::Drop);
        assert_eq!(stream.unsent(), 0);
        stream.handle_end();
        assert_eq!(stream.poll_step(), Some(Step::Close));
    }

    #[test]
    fn only_unchanged_answers_are_relayed() {
        for (reply, one_shot) in [
            (Reply::Upper, false),
            (Reply::Discard, false),
            (Reply::Echo, true),
        ] {
            let step = Stream::new(reply, one_shot).poll_step();
            assert_eq!(step, Some(Step::Receive), "{reply:?} {one_shot}");
        }
    }

    #[test]
    fn relayed_bytes_are_unsent_until_the_driver_reports_them_as_sent() {
        let mut stream = open(false);
        stream.handle_relayed(10, 4);
        assert_eq!(stream.unsent(), 6);
        stream.handle_end();
        assert_eq!(stream.poll_step(), None);
        stream.handle_relayed(0, 6);
        assert_eq!(stream.poll_step(), Some(Step::Close));
    }

    #[test]
    fn a_connection_that_finishes_stops_relaying_before_it_shuts_down() {
        let mut stream = open(false);
        stream.finish();
        assert_eq!(stream.poll_step(), Some(Step::Receive));
        assert_eq!(stream.poll_step(), Some(Step::ShutDown));
        assert_eq!(stream.poll_step(), None);
    }

    #[test]
    fn bytes_relayed_while_the_fin_was_requested_are_still_sent() {
        let mut stream = open(false);
        stream.finish();
        while stream.poll_step().is_some() {}
        assert!(stream.is_lingering());
        stream.handle_relayed(100, 30);
        assert_eq!((stream.unsent(), stream.poll_step()), (70, None));
        assert!(!stream.is_lingering());
        stream.handle_end();
        assert_eq!(stream.poll_step(), None);
        stream.handle_relayed(0, 70);
        assert_eq!(stream.poll_step(), Some(Step::Close));
    }

    #[test]
    fn a_relayed_peer_that_does_not_read_is_paused_and_relayed_again() {
        let mut stream = open(false);
        stream.handle_relayed(HELD_BYTES_MAX + 1, 0);
        assert_eq!(stream.poll_step(), Some(Step::Pause));
        stream.handle_relayed(0, HELD_BYTES_MAX + 1 - RESUME_BYTES);
        assert_eq!(stream.poll_step(), Some(Step::Relay));
        assert_eq!(stream.poll_step(), None);
    }

    #[test]
    fn a_resumed_connection_does_what_the_previous_one_would_have_done() {
        let resume = |stream: &Stream, unsent| Stream::resume(stream.progress(), unsent);
        let mut stream = open(false);
        stream.handle_received(&mut [1; 10]);
        let mut resumed = resume(&stream, 10);
        assert_eq!(resumed.poll_step(), None);
        resumed.handle_sent(6);
        assert_eq!(resumed.poll_step(), Some(Step::Relay));
        resumed.handle_end();
        assert_eq!(resumed.poll_step(), None);
        let mut resumed = resume(&resumed, 4);
        assert_eq!(resumed.poll_step(), None);
        resumed.handle_sent(4);
        assert_eq!(resumed.poll_step(), Some(Step::Close));

        stream.handle_sent(10);
        stream.finish();
        while stream.poll_step().is_some() {}
        let mut resumed = resume(&stream, 0);
        assert!(resumed.is_lingering());
        assert_eq!(resumed.poll_step(), Some(Step::Receive));
        assert_eq!(resumed.handle_received(&mut [1; 5]), Answer::Drop);
        resumed.handle_end();
        assert_eq!(resumed.poll_step(), Some(Step::Close));
    }

    /// The states of the table at the top of the file.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum State {
        Open,
        Flushing,
        Lingering,
        Trailing,
        Ending,
        Closed,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Event {
        Received,
        Relayed,
        Sent,
        Stalled,
        Ended,
        Finished,
        HandedOver,
        Stepped(Step),
    }

    /// Every transition to another state: the second table at the top of the file.
    const TRANSITIONS: [(State, Event, State); 11] = [
        (State::Open, Event::Received, State::Flushing),
        (State::Open, Event::Finished, State::Flushing),
        (
            State::Flushing,
            Event::Stepped(Step::ShutDown),
            State::Lingering,
        ),
        (State::Lingering, Event::Relayed, State::Trailing),
        (State::Trailing, Event::Relayed, State::Lingering),
        // Bytes that were relayed are sent like any other after a hand-over.
        (State::Trailing, Event::Sent, State::Lingering),
        (State::Open, Event::Ended, State::Ending),
        (State::Flushing, Event::Ended, State::Ending),
        (State::Lingering, Event::Ended, State::Ending),
        (State::Trailing, Event::Ended, State::Ending),
        (State::Ending, Event::Stepped(Step::Close), State::Closed),
    ];

    fn state(stream: &Stream) -> State {
        match (stream.input, stream.shut_down, stream.unsent) {
            (Input::Answered, false, _) => State::Open,
            (Input::Ignored, false, _) => State::Flushing,
            (Input::Ignored, true, 0) => State::Lingering,
            (Input::Ignored, true, _) => State::Trailing,
            (Input::Finished, _, _) => State::Ending,
            (Input::Answered, true, _) => panic!("no state: {stream:?}"),
        }
    }

    /// A stream beside a driver that does what the steps say, a little late.
    struct History {
        stream: Stream,
        state: State,
        // The last of `Receive`, `Relay` and `Pause`.
        asked: Step,
        // Bytes that the driver relayed and has not reported.
        unreported: u32,
        // Receiving has to be paused.
        stalled: bool,
        // The driver is another one by now, which has been given what was unsent.
        was_handed_over: bool,
        transitions: Vec<(State, Event, State)>,
    }

    impl History {
        fn new(reply: Reply, one_shot: bool) -> Self {
            let mut history = Self {
                stream: Stream::new(reply, one_shot),
                state: State::Open,
                asked: Step::Pause,
                unreported: 0,
                stalled: false,
                was_handed_over: false,
                transitions: Vec::new(),
            };
            history.run_steps();
            history
        }

        fn enter(&mut self, event: Event, next: State) {
            let transition = (self.state, event, next);
            if self.state != next {
                assert!(
                    TRANSITIONS.contains(&transition),
                    "not in the table: {transition:?}"
                );
                self.transitions.push(transition);
            }
            self.state = next;
        }

        fn run_steps(&mut self) {
            while let Some(step) = self.stream.poll_step() {
                match step {
                    Step::Receive | Step::Relay | Step::Pause => {
                        assert_ne!(self.state, State::Ending, "{step:?} after the peer's end");
                        self.asked = step;
                    }
                    Step::ShutDown | Step::Close => assert_eq!(self.stream.unsent(), 0),
                }
                let next = match step {
                    Step::Close => State::Closed,
                    _ => state(&self.stream),
                };
                self.enter(Event::Stepped(step), next);
                if step == Step::Close {
                    break;
                }
            }
        }

        fn handle(&mut self, event: Event, size: u32) {
            let unsent = self.stream.unsent();
            let mut sent = 0;
            match event {
                // Bytes that were taken before a pause may still arrive after it, but not many.
                Event::Received if self.asked != Step::Pause => {
                    self.stream.handle_received(&mut vec![0; size as usize]);
                }
                Event::Relayed if self.asked == Step::Relay && self.unreported == 0 => {
                    self.unreported = size;
                }
                Event::Relayed if self.stream.may_relay() => {
                    let received = size.min(self.unreported);
                    self.unreported -= received;
                    sent = (unsent + received).min(size / 2);
                    self.stream.handle_relayed(received, sent);
                }
                // A driver reports as sent only what it was given, which is never after a shutdown.
                Event::Sent if !self.stream.is_shut_down() || self.was_handed_over => {
                    sent = unsent.min(size);
                    self.stream.handle_sent(sent);
                }
                Event::Stalled => {
                    self.stream.handle_stalled();
                    self.stalled = unsent > 0;
                }
                Event::Ended => {
                    self.stream.handle_relayed_if_any(&mut self.unreported);
                    self.enter(Event::Relayed, state(&self.stream));
                    self.stream.handle_end();
                }
                Event::Finished => self.stream.finish(),
                // What the driver has relayed is reported before it is left.
                Event::HandedOver => {
                    self.stream.handle_relayed_if_any(&mut self.unreported);
                    self.enter(Event::Relayed, state(&self.stream));
                    let unsent = self.stream.unsent();
                    self.stream = Stream::resume(self.stream.progress(), unsent);
                    self.asked = Step::Pause;
                    self.stalled = unsent > 0;
                    self.was_handed_over = true;
                }
                _ => return,
            }
            self.enter(event, state(&self.stream));
            if sent > 0 && self.stream.unsent() <= RESUME_BYTES {
                self.stalled = false;
            }
            self.run_steps();
        }

        fn check(&self) {
            assert!(self.stream.unsent() < HELD_BYTES_MAX + 80_000);
            assert!(
                self.stream.is_answering() || self.asked != Step::Relay,
                "ignored bytes are not relayed"
            );
            assert!(
                !self.stalled || self.asked == Step::Pause,
                "receiving is paused while a send is stalled"
            );
            let must_wait = self.stalled || self.stream.unsent() > RESUME_BYTES;
            assert!(
                must_wait || self.asked != Step::Pause,
                "receiving resumes when few bytes are unsent"
            );
        }

        /// The peer half-closes and reads everything.
        fn end(&mut self) {
            self.handle(Event::Ended, 0);
            if self.state != State::Closed {
                self.stream.handle_sent(self.stream.unsent());
                self.run_steps();
            }
            assert_eq!(self.state, State::Closed);
        }
    }

    impl Stream {
        fn handle_relayed_if_any(&mut self, received: &mut u32) {
            if *received > 0 {
                self.handle_relayed(std::mem::take(received), 0);
            }
        }
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => Just(Event::Received),
            6 => Just(Event::Relayed),
            4 => Just(Event::Sent),
            2 => Just(Event::Stalled),
            1 => Just(Event::Finished),
            1 => Just(Event::HandedOver),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: the state changes only as the table says, the unsent
        /// bytes are bounded by what was under way beyond the limit, receiving is paused while a send
        /// is stalled and resumes when few bytes are unsent, and the end is always reached.
        #[test]
        fn every_history_follows_the_table_and_ends_in_a_close(
            (reply, one_shot) in prop_oneof![
                4 => Just((Reply::Echo, false)),
                1 => Just((Reply::Echo, true)),
                1 => Just((Reply::Upper, false)),
                1 => Just((Reply::Discard, false)),
            ],
            events in proptest::collection::vec((event(), 1..40_000u32), 0..200),
        ) {
            let mut history = History::new(reply, one_shot);
            for (event, size) in events {
                history.handle(event, size);
                history.check();
            }
            history.end();
        }
    }

    #[test]
    fn every_transition_of_the_table_happens() {
        let mut seen = Vec::new();
        let mut record = |one_shot, events: &[(Event, u32)]| {
            let mut history = History::new(Reply::Echo, one_shot);
            for (event, size) in events {
                history.handle(*event, *size);
            }
            history.end();
            seen.append(&mut history.transitions);
        };
        record(false, &[]);
        record(true, &[(Event::Received, 10), (Event::Sent, 10)]);
        record(false, &[(Event::Received, 10), (Event::Finished, 0)]);
        // The driver relays 100 bytes, which it reports in parts after the FIN was requested.
        let trails = [
            (Event::Relayed, 100),
            (Event::Finished, 0),
            (Event::Relayed, 99),
        ];
        record(false, &trails);
        record(
            false,
            &[trails.as_slice(), &[(Event::Relayed, 1000)]].concat(),
        );
        let after = [(Event::HandedOver, 0), (Event::Sent, 1000)];
        record(false, &[trails.as_slice(), &after].concat());
        for transition in TRANSITIONS {
            assert!(seen.contains(&transition), "never seen: {transition:?}");
        }
    }
}
