//! Connections that stay, over io_uring, with the daemon's own driver: for messages so small that
//! any other client would be the bottleneck.
//!
//! What has come is checked and its buffer sent again with the bytes that follow: as many bytes are
//! under way as at the start, whatever pieces they come in.

use std::collections::VecDeque;
use std::io::Write;
use std::time::Instant;

use anyhow::{Result, ensure};
use echod::driver::uring::Uring;
use echod::driver::{Buffer, Completion, Driver, Op, Token};

use super::pattern::{self, Pattern};
use super::tcp::connect;
use super::{Load, Request, Run, Sample, TICK};

/// More bytes under way on one connection would come in many pieces.
pub(super) const BYTES_MAX: usize = 4096;

struct Connection {
    // Where in the pattern it starts.
    start: u64,
    message_bytes: u64,
    // Counted from the start of the stream.
    sent: u64,
    received: u64,
    // When each message under way was sent, the oldest first.
    times: VecDeque<Instant>,
}

pub(super) fn run(request: &Request, mut driver: Uring) -> Result<Sample> {
    let Load::Tcp {
        connections,
        bytes,
        depth,
        spins,
    } = request.load
    else {
        unreachable!("the caller chose by it");
    };
    let pattern = Pattern::new();
    let mut streams = Vec::with_capacity(connections);
    for index in 0..connections {
        streams.push(connect(request.address, index)?);
    }
    let mut run = Run::start(request)?;
    let mut all = Vec::with_capacity(connections);
    for (index, mut stream) in streams.into_iter().enumerate() {
        let (start, sent) = (pattern::start_of(index), (bytes * depth) as u64);
        stream.write_all(pattern.at(start, bytes * depth))?;
        let token = driver.add_connection(stream.into());
        ensure!(token.slot as usize == index, "slots are given out in order");
        driver.submit(Op::Receive { connection: token });
        all.push(Connection {
            start,
            message_bytes: bytes as u64,
            sent,
            received: 0,
            times: VecDeque::from(vec![Instant::now(); depth]),
        });
    }
    let mut done = Vec::new();
    loop {
        let now = Instant::now();
        driver.wait(Some(if spins { now } else { now + TICK }), &mut done)?;
        for completion in done.drain(..) {
            match completion {
                Completion::Received {
                    connection: token,
                    buffer,
                } => {
                    let connection = &mut all[token.slot as usize];
                    connection.received(token, buffer, &mut driver, &pattern, &mut run);
                }
                Completion::Ended { .. } | Completion::Failed { .. } => run.sample.errors += 1,
                _ => {}
            }
        }
        if run.is_over(Instant::now()) {
            return Ok(run.finish());
        }
    }
}

impl Connection {
    /// Checks what has come, and sends the bytes that follow in its place.
    fn received(
        &mut self,
        token: Token,
        buffer: Buffer,
        driver: &mut Uring,
        pattern: &Pattern,
        run: &mut Run<'_>,
    ) {
        let bytes = driver.bytes(&buffer);
        if !pattern.matches(self.start + self.received, bytes) {
            run.sample.wrong += 1;
        }
        let len = bytes.len() as u64;
        let whole = self.received / self.message_bytes;
        self.received += len;
        if self.received > self.sent {
            run.sample.wrong += 1;
        }
        bytes.copy_from_slice(pattern.at(self.start + self.sent, bytes.len()));
        self.sent += len;
        driver.submit(Op::Send {
            connection: token,
            buffer,
        });
        let now = Instant::now();
        for _ in whole..self.received / self.message_bytes {
            // Bytes that were never sent are counted as wrong above.
            let Some(sent) = self.times.pop_front() else {
                break;
            };
            run.message(self.message_bytes as usize, now - sent);
            self.times.push_back(now);
        }
    }
}
