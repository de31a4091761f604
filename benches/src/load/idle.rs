//! Connections that are silent: what does the server's memory grow by?

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::pattern::Pattern;
use super::{Request, Sample};
use crate::process;

/// How long one echo may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The number of messages that the first connection exchanges.
const WARM_UP: usize = 5000;

/// Each connection exchanges one message, so that it is known to be served and has had whatever a
/// connection is given when it first speaks.
pub(super) fn run(request: &Request, connections: usize) -> Result<Sample> {
    let pattern = Pattern::new();
    let mut sample = Sample::default();
    let start = Instant::now();
    let mut all = Vec::with_capacity(connections);
    // What the first one brings is paid once, and so are the buffers that all share.
    let mut before = 0;
    for index in 0..=connections {
        let mut stream = TcpStream::connect(request.address)
            .with_context(|| format!("connection {index} of {connections}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let message = pattern.at(index as u64, 64);
        let mut echo = [0; 64];
        for _ in 0..if index == 0 { WARM_UP } else { 1 } {
            stream.write_all(message)?;
            stream
                .read_exact(&mut echo)
                .with_context(|| format!("echo on connection {index} of {connections}"))?;
            sample.wrong += u64::from(echo != *message);
        }
        all.push(stream);
        if index == 0 {
            before = process::memory_bytes(request.server);
        }
    }
    let after = process::memory_bytes(request.server);
    sample.memory_per_connection = after.saturating_sub(before) as f64 / connections as f64;
    sample.messages = connections as u64;
    sample.messages_in_all = sample.messages;
    sample.time = start.elapsed();
    Ok(sample)
}
