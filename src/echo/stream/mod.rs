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
mod tests;
