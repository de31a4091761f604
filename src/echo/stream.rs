//! A connection as a state machine: every byte back, in order, until the peer is done.
//!
//! Knows what is owed to the peer and whether either side has finished. Never sees a socket:
//! the worker reports what happened through `handle_*` and does what [`Stream::poll_step`] says
//! until it says nothing more.
//!
//! ```text
//!             peer's FIN                       owed = 0
//!   open ───────────────────▶ input finished ───────────▶ close
//!     │ one-shot answered,
//!     │ or told to finish            owed = 0                    peer's FIN, or time
//!     └────────────────────▶ input ignored ──▶ shut down, linger ───────────────────▶ close
//! ```
//!
//! The second way lingers, reading and discarding: a close with unread input would turn our FIN
//! into an RST, and the peer could lose the end of its answer (RFC 1122, section 4.2.2.13).

use serde::{Deserialize, Serialize};

use super::{Answer, Reply};

/// The most that is held for a peer that does not read, in bytes.
pub const HELD_BYTES_MAX: u32 = 64 * 1024;

/// Receiving starts again when no more than this is held, in bytes.
const RESUME_BYTES: u32 = HELD_BYTES_MAX / 4;

/// One connection: what it answers, what it owes, and which sides are still open.
#[derive(Debug)]
pub struct Stream {
    owed: u32,
    // A send has stalled, and since then `owed` has not fallen to `RESUME_BYTES`.
    stalled: bool,
    reply: Reply,
    one_shot: bool,
    intake: Intake,
    input: Input,
    shut_down: bool,
}

/// What was last said about receiving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Intake {
    Rests,
    Receives,
    Relays,
}

/// What becomes of what the peer sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// What comes is answered.
    Answered,
    /// What still comes is discarded: we have said, or are about to say, our last word.
    Ignored,
    /// The peer has half-closed; nothing more can come.
    Finished,
}

/// How far a connection has come, for who goes on with it; what it is owed is not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What it answers: its listener may have changed that for those who came later.
    pub reply: Reply,
    /// Whether it answers once.
    pub one_shot: bool,
    /// What becomes of what the peer sends.
    pub input: Input,
    /// Our side has said its last word, or was about to.
    pub shut_down: bool,
}

/// The next thing to do with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Start receiving; where relaying, return nothing unseen any more.
    Receive,
    /// Start receiving; what arrives may also be returned at once, unseen.
    Relay,
    /// Stop receiving: enough is held for this peer.
    Pause,
    /// Shut down the write side, and bound the time until the peer's FIN.
    ShutDown,
    /// Close: nothing is owed and nothing is left to read.
    Close,
}

impl Stream {
    /// A fresh connection. Its first step is [`Step::Receive`] or [`Step::Relay`].
    #[must_use]
    pub fn new(reply: Reply, one_shot: bool) -> Self {
        Self {
            owed: 0,
            stalled: false,
            reply,
            one_shot,
            intake: Intake::Rests,
            input: Input::Answered,
            shut_down: false,
        }
    }

    /// A connection that somebody else has brought so far, and that is owed so many bytes. Where it
    /// lingers, the write side is to be shut down again: the other may not have come to it.
    #[must_use]
    pub fn resume(progress: Progress, owed: u32) -> Self {
        Self {
            owed,
            // The previous driver may have reported the stall already, and a driver reports it once.
            stalled: owed > 0,
            input: progress.input,
            shut_down: progress.shut_down,
            ..Self::new(progress.reply, progress.one_shot)
        }
    }

    /// How far it has come.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            reply: self.reply,
            one_shot: self.one_shot,
            input: self.input,
            shut_down: self.shut_down,
        }
    }

    /// Bytes arrived; they are turned into their answer in place.
    pub fn handle_received(&mut self, bytes: &mut [u8]) -> Answer {
        if self.input != Input::Answered {
            return Answer::Drop;
        }
        if self.one_shot {
            self.input = Input::Ignored;
        }
        let answer = self.reply.answer(bytes);
        if answer == Answer::Send {
            self.owed += u32::try_from(bytes.len()).expect("a buffer is far below 4 GiB");
        }
        answer
    }

    /// So many bytes arrived and so many were sent, unseen. They may have been under way when the
    /// input began to be ignored, or when our last word was said; what is owed of them goes out first.
    pub fn handle_relayed(&mut self, received: u32, sent: u32) {
        debug_assert!(self.may_relay(), "only the bytes themselves are relayed");
        self.owed += received;
        self.handle_sent(sent);
    }

    /// Whether the answer is what arrives, all of it, whatever it is.
    fn may_relay(&self) -> bool {
        self.reply == Reply::Echo && !self.one_shot
    }

    /// The peer half-closed: what is owed goes out, then we are done.
    pub fn handle_end(&mut self) {
        self.input = Input::Finished;
        self.intake = Intake::Rests;
    }

    /// So many bytes, owed until now, have been sent.
    pub fn handle_sent(&mut self, len: u32) {
        debug_assert!(len <= self.owed, "no more is sent than was owed");
        self.owed -= len;
        if len > 0 && self.owed <= RESUME_BYTES {
            self.stalled = false;
        }
    }

    /// A send stalled: the peer does not read as fast as it writes. Receiving pauses until the peer
    /// has read and no more than [`RESUME_BYTES`] are unsent, however few are unsent now: each byte
    /// received from such a peer would only have to be held for it.
    pub fn handle_stalled(&mut self) {
        // Without unsent bytes no progress would ever be reported, and the pause would have no end.
        self.stalled = self.owed > 0;
    }

    /// Say no more than what is owed: a timeout or the end of the service has come.
    pub fn finish(&mut self) {
        if self.input == Input::Answered {
            self.input = Input::Ignored;
        }
    }

    /// What to do now, if anything. Call until it returns `None`.
    pub fn poll_step(&mut self) -> Option<Step> {
        let flushed = self.owed == 0;
        let must_pause = self.stalled || self.owed > HELD_BYTES_MAX;
        let may_resume = !self.stalled && self.owed <= RESUME_BYTES;
        match self.input {
            Input::Finished => flushed.then_some(Step::Close),
            // Bytes that are ignored are not read either while the peer does not read: it would
            // cost time for a peer that gets nothing from it. A pause ends relaying, too.
            _ if self.intake != Intake::Rests && must_pause => {
                self.intake = Intake::Rests;
                Some(Step::Pause)
            }
            // Ignored bytes must not be relayed by the driver.
            Input::Ignored if self.intake == Intake::Relays => {
                self.intake = Intake::Receives;
                Some(Step::Receive)
            }
            Input::Ignored if flushed && !self.shut_down => {
                self.shut_down = true;
                Some(Step::ShutDown)
            }
            Input::Answered if self.intake == Intake::Rests && may_resume && self.may_relay() => {
                self.intake = Intake::Relays;
                Some(Step::Relay)
            }
            _ if self.intake == Intake::Rests && may_resume => {
                self.intake = Intake::Receives;
                Some(Step::Receive)
            }
            _ => None,
        }
    }

    /// Bytes received and not yet sent back.
    #[must_use]
    pub fn owed(&self) -> u32 {
        self.owed
    }

    /// Whether what the peer sends is still answered.
    #[must_use]
    pub fn is_answering(&self) -> bool {
        self.input == Input::Answered
    }

    /// Whether [`Step::ShutDown`] was returned, or had been by a previous worker.
    #[must_use]
    pub fn is_shut_down(&self) -> bool {
        self.shut_down
    }

    /// Whether everything was sent, our FIN included, and only the peer's FIN is missing.
    #[must_use]
    pub fn is_lingering(&self) -> bool {
        self.shut_down && self.owed == 0
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
    fn a_half_close_waits_for_what_is_owed() {
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
            "few bytes are unsent, and none was read"
        );
        stream.handle_relayed(0, 0);
        assert_eq!(stream.poll_step(), None, "nothing was read");
        stream.handle_sent(4);
        assert_eq!(stream.poll_step(), Some(Step::Relay));
        assert_eq!(stream.poll_step(), None);
    }

    #[test]
    fn after_a_stall_receiving_resumes_when_little_is_unsent() {
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
        // What is still unsent may stall again.
        stream.handle_stalled();
        assert_eq!(stream.poll_step(), Some(Step::Pause));
    }

    #[test]
    fn a_stall_also_pauses_the_discarding_of_input_and_delays_the_shutdown() {
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
    fn a_stall_of_which_nothing_is_unsent_pauses_nothing() {
        let mut stream = open(false);
        stream.handle_stalled();
        assert_eq!(stream.poll_step(), None);
    }

    #[test]
    fn one_shot_answers_the_first_read_then_shuts_down_and_is_lingering() {
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
    fn finishing_flushes_first_and_is_said_once() {
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
    fn discard_owes_nothing() {
        let mut stream = Stream::new(Reply::Discard, false);
        assert_eq!(stream.handle_received(&mut [1; 50]), Answer::Drop);
        assert_eq!(stream.owed(), 0);
        stream.handle_end();
        assert_eq!(stream.poll_step(), Some(Step::Close));
    }

    #[test]
    fn only_who_gets_back_what_it_sent_is_relayed() {
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
    fn relayed_bytes_are_owed_until_they_are_sent() {
        let mut stream = open(false);
        stream.handle_relayed(10, 4);
        assert_eq!(stream.owed(), 6);
        stream.handle_end();
        assert_eq!(stream.poll_step(), None);
        stream.handle_relayed(0, 6);
        assert_eq!(stream.poll_step(), Some(Step::Close));
    }

    #[test]
    fn who_is_told_to_finish_is_relayed_no_more_before_our_last_word() {
        let mut stream = open(false);
        stream.finish();
        assert_eq!(stream.poll_step(), Some(Step::Receive));
        assert_eq!(stream.poll_step(), Some(Step::ShutDown));
        assert_eq!(stream.poll_step(), None);
    }

    #[test]
    fn what_was_relayed_while_our_last_word_was_said_still_goes_out() {
        let mut stream = open(false);
        stream.finish();
        while stream.poll_step().is_some() {}
        assert!(stream.is_lingering());
        stream.handle_relayed(100, 30);
        assert_eq!((stream.owed(), stream.poll_step()), (70, None));
        stream.handle_end();
        assert_eq!(stream.poll_step(), None);
        stream.handle_relayed(0, 70);
        assert_eq!(stream.poll_step(), Some(Step::Close));
    }

    #[test]
    fn a_relayed_peer_that_does_not_read_rests_and_is_relayed_again() {
        let mut stream = open(false);
        stream.handle_relayed(HELD_BYTES_MAX + 1, 0);
        assert_eq!(stream.poll_step(), Some(Step::Pause));
        stream.handle_relayed(0, HELD_BYTES_MAX + 1 - RESUME_BYTES);
        assert_eq!(stream.poll_step(), Some(Step::Relay));
        assert_eq!(stream.poll_step(), None);
    }

    #[test]
    fn who_goes_on_with_a_connection_does_what_the_other_would_have_done() {
        let resume = |stream: &Stream, owed| Stream::resume(stream.progress(), owed);
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

    proptest! {
        /// Whatever happens in whatever order: what is held is bounded by what was under way beyond
        /// the limit, receiving is paused while a send is stalled and never for another reason once
        /// little is unsent, nothing is relayed that is ignored, and the end is always reached.
        #[test]
        fn every_history_ends_in_a_close(events in proptest::collection::vec((0..7u8, 1..40_000u32), 0..200)) {
            let mut stream = Stream::new(Reply::Echo, false);
            let mut asked = Step::Pause;
            // Relayed by the driver and not yet reported.
            let mut unreported = 0;
            let mut finished = false;
            let mut stalled = false;
            let steps = |stream: &mut Stream, asked: &mut Step| {
                let mut closed = false;
                while let Some(step) = stream.poll_step() {
                    match step {
                        Step::Receive | Step::Relay | Step::Pause => *asked = step,
                        Step::ShutDown => assert_eq!(stream.owed(), 0),
                        Step::Close => { closed = true; break; }
                    }
                }
                closed
            };
            steps(&mut stream, &mut asked);
            for (kind, size) in events {
                let unsent = stream.owed();
                let mut sent = 0;
                match kind {
                    0 if asked != Step::Pause => { stream.handle_received(&mut vec![0; size as usize]); }
                    1 if asked == Step::Relay && unreported == 0 => unreported = size,
                    2 => stream.handle_relayed(std::mem::take(&mut unreported), 0),
                    3 => { sent = unsent.min(size); stream.handle_sent(sent); }
                    4 => {
                        let received = size.min(unreported);
                        unreported -= received;
                        sent = received.min(size / 2);
                        stream.handle_relayed(received, sent);
                    }
                    5 if size < 500 => { stream.finish(); finished = true; }
                    6 => { stream.handle_stalled(); stalled = unsent > 0; }
                    _ => {}
                }
                if sent > 0 && stream.owed() <= RESUME_BYTES { stalled = false; }
                prop_assert!(stream.owed() < HELD_BYTES_MAX + 80_000);
                prop_assert!(!steps(&mut stream, &mut asked), "closed before the peer was done");
                prop_assert!(!(finished && asked == Step::Relay), "what is ignored is not relayed");
                prop_assert!(!stalled || asked == Step::Pause, "paused while stalled");
                let held = stalled || stream.owed() > RESUME_BYTES;
                prop_assert!(held || asked != Step::Pause, "resumes when little is unsent");
            }
            stream.handle_relayed(unreported, 0);
            stream.handle_end();
            stream.handle_relayed(0, stream.owed());
            prop_assert!(steps(&mut stream, &mut asked));
        }
    }
}
