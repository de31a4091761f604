//! One connection's stream of messages, as its client counts and checks it.

use std::collections::VecDeque;
use std::time::Instant;

use super::Run;
use super::pattern::{self, Pattern};

pub(super) struct Stream {
    // Where in the pattern it starts.
    start: u64,
    message_bytes: u64,
    // Counted from the start of the stream.
    sent: u64,
    received: u64,
    // When each message under way was sent, the oldest first.
    times: VecDeque<Instant>,
}

impl Stream {
    /// Nothing is sent yet; this many messages are about to be.
    pub(super) fn new(connection: usize, message_bytes: usize, depth: usize) -> Self {
        Self {
            start: pattern::start_of(connection),
            message_bytes: message_bytes as u64,
            sent: 0,
            received: 0,
            times: VecDeque::from(vec![Instant::now(); depth]),
        }
    }

    /// How many bytes are sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// The bytes to be sent next.
    pub(super) fn next<'a>(&self, pattern: &'a Pattern, len: usize) -> &'a [u8] {
        pattern.at(self.start + self.sent, len)
    }

    /// This many of them are sent.
    pub(super) fn handle_sent(&mut self, len: usize) {
        self.sent += len as u64;
    }

    /// Checks what has arrived; says how many messages it completed, each of which stands for one that
    /// is sent now.
    pub(super) fn handle_received(
        &mut self,
        bytes: &[u8],
        pattern: &Pattern,
        run: &mut Run<'_>,
    ) -> u64 {
        let whole = self.received / self.message_bytes;
        let is_right = pattern.matches(self.start + self.received, bytes);
        self.received += bytes.len() as u64;
        if !is_right || self.received > self.sent {
            run.sample.wrong += 1;
        }
        let (now, mut completed) = (Instant::now(), 0);
        for _ in whole..self.received / self.message_bytes {
            // Bytes that were never sent are counted as wrong above.
            let Some(sent) = self.times.pop_front() else {
                break;
            };
            run.message(self.message_bytes as usize, now - sent);
            self.times.push_back(now);
            completed += 1;
        }
        completed
    }
}
