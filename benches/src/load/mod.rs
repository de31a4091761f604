//! The load generator: a process that gives one server one kind of work and checks every byte.
//!
//! Closed loop: a message is sent when an echo has arrived. It is started for each sample, takes its
//! [`Request`] as JSON, and prints its [`Sample`] as JSON. The engines are in `ring`, `tcp`,
//! `churn`, `udp` and `idle`; `stream` checks what comes on a connection. Here is what all share:
//! when to measure, and what to count.

mod churn;
mod idle;
mod pattern;
mod ring;
mod stream;
mod tcp;
mod udp;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use echod::internals::Uring;
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::process;

/// How long a client waits before it gives a datagram up, and sees that time is over.
const TICK: Duration = Duration::from_millis(20);

/// The longest latency that is recorded, in nanoseconds.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// A kind of work.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Load {
    /// Connections that stay.
    Tcp {
        connections: usize,
        /// Of one message.
        bytes: usize,
        /// Messages under way on each.
        depth: usize,
        /// The client never sleeps.
        spins: bool,
    },
    /// Connections for one message each.
    Churn { clients: usize, bytes: usize },
    /// Datagrams from many sockets.
    Udp {
        flows: usize,
        /// Of one datagram.
        bytes: usize,
        /// Datagrams under way on each.
        depth: usize,
        /// Sent with `UDP_SEGMENT`, received with `UDP_GRO`.
        batches: bool,
    },
    /// Connections that are silent after one message.
    Idle { connections: usize },
}

impl Load {
    pub(crate) fn is_udp(&self) -> bool {
        matches!(self, Self::Udp { .. })
    }
}

/// What to do, to which server, and for how long.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) load: Load,
    pub(crate) address: SocketAddr,
    /// The server's process, whose time and memory are measured with those of its children.
    pub(crate) server: i32,
    pub(crate) warm_up: Duration,
    pub(crate) time: Duration,
}

/// What was seen.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// How long it is measured.
    pub(crate) time: Duration,
    /// Echoes that came whole.
    pub(crate) messages: u64,
    /// The same, warming up included.
    pub(crate) messages_in_all: u64,
    pub(crate) bytes: u64,
    /// Pieces that were not what was sent. Never anything but 0 from an echo server.
    pub(crate) wrong: u64,
    /// Connections that could not be made, or were broken.
    pub(crate) errors: u64,
    /// Datagrams that did not come back.
    pub(crate) lost: u64,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
    /// Of the server.
    pub(crate) server_cpu: Duration,
    /// Of the load generator.
    pub(crate) client_cpu: Duration,
    /// What the server grew by for one idle connection, in bytes.
    pub(crate) memory_per_connection: f64,
}

impl Sample {
    /// Messages a second.
    pub(crate) fn rate(&self) -> f64 {
        self.messages as f64 / self.time.as_secs_f64()
    }

    /// The server's CPU for one message, in microseconds.
    pub(crate) fn cpu_us(&self) -> f64 {
        self.server_cpu.as_secs_f64() * 1e6 / self.messages.max(1) as f64
    }
}

/// Runs one request, given as JSON, and prints the sample as JSON.
pub(crate) fn main(request: &str) -> Result<()> {
    let request: Request = serde_json::from_str(request).context("the request")?;
    let sample = match request.load {
        Load::Tcp { bytes, depth, .. } => match Uring::new() {
            Ok(driver) if bytes * depth <= ring::BYTES_MAX => ring::run(&request, driver)?,
            // The client has time because much is under way, or this machine has no io_uring.
            _ => tcp::run(&request)?,
        },
        Load::Churn { clients, bytes } => churn::run(&request, clients, bytes)?,
        Load::Udp { .. } => udp::run(&request)?,
        Load::Idle { connections } => idle::run(&request, connections)?,
    };
    println!("{}", serde_json::to_string(&sample)?);
    Ok(())
}

/// Counts, and knows when to.
struct Run<'a> {
    request: &'a Request,
    sample: Sample,
    latencies: Histogram<u64>,
    phase: Phase,
}

enum Phase {
    WarmsUp { until: Instant },
    Measures { since: Instant, until: Instant },
}

impl<'a> Run<'a> {
    /// From now on the server warms up.
    fn start(request: &'a Request) -> Result<Self> {
        Ok(Self {
            request,
            sample: Sample::default(),
            latencies: Histogram::new_with_max(LATENCY_MAX_NS, 3)?,
            phase: Phase::WarmsUp {
                until: Instant::now() + request.warm_up,
            },
        })
    }

    /// An echo has arrived, whole and right.
    fn message(&mut self, bytes: usize, latency: Duration) {
        self.sample.messages += 1;
        self.sample.bytes += bytes as u64;
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(LATENCY_MAX_NS);
        self.latencies.saturating_record(nanos);
    }

    /// Call it every [`TICK`] at least; says whether to stop.
    fn is_over(&mut self, now: Instant) -> bool {
        match self.phase {
            Phase::WarmsUp { until } if now >= until => {
                self.latencies.reset();
                self.sample = Sample {
                    messages_in_all: self.sample.messages,
                    wrong: self.sample.wrong,
                    errors: self.sample.errors,
                    ..Sample::default()
                };
                self.sample.server_cpu = process::cpu_time(self.request.server);
                self.sample.client_cpu = process::cpu_time_of_this_process();
                let since = Instant::now();
                self.phase = Phase::Measures {
                    since,
                    until: since + self.request.time,
                };
                false
            }
            Phase::Measures { since, until } if now >= until => {
                let sample = &mut self.sample;
                sample.time = since.elapsed();
                sample.server_cpu =
                    process::cpu_time(self.request.server).saturating_sub(sample.server_cpu);
                sample.client_cpu =
                    process::cpu_time_of_this_process().saturating_sub(sample.client_cpu);
                true
            }
            _ => false,
        }
    }

    fn finish(self) -> Sample {
        let quantile = |share| Duration::from_nanos(self.latencies.value_at_quantile(share));
        Sample {
            p50: quantile(0.5),
            p99: quantile(0.99),
            messages_in_all: self.sample.messages_in_all + self.sample.messages,
            ..self.sample
        }
    }
}
