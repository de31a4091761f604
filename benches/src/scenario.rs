//! What is measured: the scenarios, by names that documents and scripts rely on.
//!
//! If you add one, say in `about` what a reader has to know to judge its figures.

use crate::load::Load;

/// One kind of work that all servers are given.
#[derive(Debug)]
pub(crate) struct Scenario {
    /// Its name for good: `docs/performance.md` and the tests speak of it.
    pub(crate) name: &'static str,
    /// One line for people.
    pub(crate) about: &'static str,
    pub(crate) load: Load,
    /// What the picture shows of it.
    pub(crate) headline: Metric,
    /// Part of `--quick`.
    pub(crate) quick: bool,
    /// Gentle enough for servers that start a process for each client.
    pub(crate) gentle: bool,
}

/// What a figure says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metric {
    /// Messages a second, as a multiple of the base's.
    Throughput,
    /// Messages for one second of the server's CPU, as a multiple of the base's.
    Cpu,
    /// User memory for an idle connection, in KiB.
    Memory,
}

impl Scenario {
    /// Whether servers that never sleep take part: where there is one client that they answer
    /// faster.
    pub(crate) fn is_quiet(&self) -> bool {
        self.headline == Metric::Throughput
    }
}

/// A TCP scenario with messages of 64 bytes.
const fn small(connections: usize, depth: usize, spins: bool) -> Load {
    Load::Tcp {
        connections,
        bytes: 64,
        depth,
        spins,
    }
}

const fn bulk(connections: usize, depth: usize) -> Load {
    Load::Tcp {
        connections,
        bytes: 64 * 1024,
        depth,
        spins: false,
    }
}

const fn datagrams(flows: usize, bytes: usize, batches: bool) -> Load {
    Load::Udp {
        flows,
        bytes,
        depth: 16,
        batches,
    }
}

/// All there are, in the order in which they are measured and shown.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "tcp-50",
        about: "50 connections, one message of 64 bytes under way on each",
        load: small(50, 1, false),
        headline: Metric::Cpu,
        quick: true,
        gentle: true,
    },
    Scenario {
        name: "tcp-1000",
        about: "1000 connections, one message of 64 bytes under way on each",
        load: small(1000, 1, false),
        headline: Metric::Cpu,
        quick: false,
        gentle: false,
    },
    Scenario {
        name: "tcp-pipelined",
        about: "50 connections, 16 messages of 64 bytes under way on each",
        load: small(50, 16, false),
        headline: Metric::Cpu,
        quick: false,
        gentle: true,
    },
    Scenario {
        name: "tcp-bulk",
        about: "16 connections, 2 messages of 64 KiB under way on each",
        load: bulk(16, 2),
        headline: Metric::Cpu,
        quick: false,
        gentle: true,
    },
    Scenario {
        name: "tcp-bulk-single",
        about: "one connection, 4 messages of 64 KiB under way",
        load: bulk(1, 4),
        headline: Metric::Cpu,
        quick: false,
        gentle: true,
    },
    Scenario {
        name: "tcp-churn",
        about: "16 clients that connect, exchange one message of 64 bytes and close, again and again",
        load: Load::Churn {
            clients: 16,
            bytes: 64,
        },
        headline: Metric::Cpu,
        quick: true,
        gentle: false,
    },
    Scenario {
        name: "tcp-quiet",
        about: "one connection, one message of 64 bytes under way; the client sleeps while it waits",
        load: small(1, 1, false),
        headline: Metric::Throughput,
        quick: false,
        gentle: true,
    },
    Scenario {
        name: "tcp-quiet-spin",
        about: "the same, and the client never sleeps",
        load: small(1, 1, true),
        headline: Metric::Throughput,
        quick: false,
        gentle: true,
    },
    Scenario {
        name: "udp-64",
        about: "64 flows, 16 datagrams of 64 bytes under way on each",
        load: datagrams(64, 64, false),
        headline: Metric::Cpu,
        quick: true,
        gentle: false,
    },
    Scenario {
        name: "udp-batch",
        about: "the same from a client that sends and receives in batches (UDP_SEGMENT, UDP_GRO)",
        load: datagrams(64, 64, true),
        headline: Metric::Cpu,
        quick: false,
        gentle: false,
    },
    Scenario {
        name: "udp-1400",
        about: "16 flows, 16 datagrams of 1400 bytes under way on each",
        load: datagrams(16, 1400, false),
        headline: Metric::Cpu,
        quick: false,
        gentle: false,
    },
    Scenario {
        name: "tcp-idle",
        about: "memory for each of 8000 connections that have exchanged one message and are silent",
        load: Load::Idle { connections: 8000 },
        headline: Metric::Memory,
        quick: false,
        gentle: false,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_given_once_and_fits_into_a_table() {
        for (index, scenario) in SCENARIOS.iter().enumerate() {
            let found = SCENARIOS.iter().position(|one| one.name == scenario.name);
            assert_eq!(found, Some(index));
            assert!(!scenario.about.contains('|'), "{}", scenario.name);
        }
    }
}
