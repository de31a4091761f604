//! Connections that stay, over io_uring, with the daemon's own driver: for messages so small that
//! any other client would be the bottleneck.
//!
//! What has arrived is checked and its buffer sent again with the bytes that follow: as many bytes are
//! under way as at the start, whatever pieces they come in.

use std::io::Write;
use std::time::Instant;

use anyhow::{Result, ensure};
use echod::internals::{Completion, Driver, Op, Uring};

use super::pattern::Pattern;
use super::stream::Stream;
use super::tcp::connect;
use super::{Load, Request, Run, Sample, TICK};

/// More bytes under way on one connection would come in many pieces.
pub(super) const BYTES_MAX: usize = 4096;

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
    let mut sockets = Vec::with_capacity(connections);
    for index in 0..connections {
        sockets.push(connect(request.address, index)?);
    }
    let mut run = Run::start(request)?;
    let mut all = Vec::with_capacity(connections);
    for (index, mut socket) in sockets.into_iter().enumerate() {
        let mut stream = Stream::new(index, bytes, depth);
        socket.write_all(stream.next(&pattern, bytes * depth))?;
        stream.handle_sent(bytes * depth);
        let token = driver.add_connection(socket.into(), Vec::new());
        ensure!(token.slot as usize == index, "slots are given out in order");
        driver.submit(Op::Receive { connection: token });
        all.push(stream);
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
                    let stream = &mut all[token.slot as usize];
                    let bytes = driver.bytes(&buffer);
                    stream.handle_received(bytes, &pattern, &mut run);
                    bytes.copy_from_slice(stream.next(&pattern, bytes.len()));
                    stream.handle_sent(bytes.len());
                    driver.submit(Op::Send {
                        connection: token,
                        buffer,
                    });
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
