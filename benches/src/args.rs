//! What the command line means. Everything after [`Args::plan`] trusts it.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand};

use crate::contender::{BASE, CONTENDERS, Contender, Program};
use crate::launch;
use crate::measure::Plan;
use crate::peers::Peer;
use crate::scenario::{SCENARIOS, Scenario};

const AFTER_HELP: &str = "\
Builds echod as it is shipped, starts it and its peers, each pinned to the server's CPU, and loads one
after the other for a moment from the client's CPU, round after round. Every echoed byte is compared; a
wrong one ends the run with status 1.

How to read the table: throughput and \"per CPU\" (messages for a second of the server's CPU time) are
multiples of tokio's within the same round; the quartiles say how much to trust them. \"client\" is how
busy the client was: near 100%, throughput says little about the server, CPU time still does.

Run it as root on a machine that does nothing else: as root it may raise its priority, and a busy machine
makes the quartiles wide, not the medians wrong, as long as the rounds are many.

Examples:
  echod-bench                                     everything, about a quarter of an hour
  echod-bench --quick                             whether it all works, in seconds
  echod-bench --scenario tcp-50 --peer monoio     echod, monoio and the base in one scenario
  echod-bench --write                             everything, into docs/performance.md and .svg
  echod-bench micro                               the deciding code by itself, in nanoseconds
  echod-bench syscalls                            system calls per message, as strace counts them
  echod-bench client                              what a message costs echoprobe, the client";

/// Measures echod against its peers.
#[derive(Debug, Parser)]
#[command(
    name = "echod-bench",
    version,
    after_help = AFTER_HELP,
    args_conflicts_with_subcommands = true
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) options: Options,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// How often each server is sampled in each scenario; 9 or more for figures to be quoted
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,

    /// How long each sample takes; short ones in many rounds see less of the machine's drift
    #[arg(long, default_value_t = 0.25, value_parser = seconds)]
    seconds: f64,

    /// Only these scenarios (see `list`)
    #[arg(long, num_args = 1.., value_name = "NAME", value_parser = scenario_names())]
    scenario: Vec<String>,

    /// Only these peers beside echod and the base (see `list`)
    #[arg(long, num_args = 1.., value_name = "NAME", value_parser = peer_names())]
    peer: Vec<String>,

    /// One short round of a few scenarios, without programs of the system: does it all work?
    #[arg(long, conflicts_with_all = ["rounds", "seconds", "write"])]
    quick: bool,

    /// Write the page docs/performance.md and the picture docs/performance.svg
    #[arg(long, conflicts_with_all = ["scenario", "peer"])]
    pub(crate) write: bool,

    /// The CPU that every server is pinned to
    #[arg(long, default_value_t = 0, value_name = "CPU")]
    pub(crate) server_cpu: usize,

    /// The CPU that the client is pinned to
    #[arg(long, default_value_t = 1, value_name = "CPU")]
    client_cpu: usize,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the scenarios and the servers
    List,
    /// Measure the deciding code by itself, in nanoseconds
    Micro,
    /// Count system calls per message (needs strace)
    Syscalls(Options),
    /// Measure what a message costs echoprobe, beside the load generator of this program
    Client(Options),
    /// Be a peer.
    #[command(hide = true)]
    Serve { peer: Peer, address: SocketAddr },
    /// Be the load generator.
    #[command(hide = true)]
    Load { request: String },
    /// Be another program, on a CPU of its own.
    #[command(hide = true)]
    Launch {
        #[arg(long)]
        cpu: usize,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.01..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err("write a number from 0.01 to 60".into()),
    }
}

fn scenario_names() -> PossibleValuesParser {
    SCENARIOS
        .iter()
        .map(|scenario| scenario.name)
        .collect::<Vec<_>>()
        .into()
}

fn peer_names() -> PossibleValuesParser {
    CONTENDERS
        .iter()
        .filter(|contender| !contender.is_ours())
        .map(|contender| contender.name)
        .collect::<Vec<_>>()
        .into()
}

impl Options {
    /// What is to be measured.
    ///
    /// # Errors
    /// When the CPUs are not there.
    pub(crate) fn plan(&self) -> Result<Plan> {
        self.check_cpus()?;
        let is_asked_for = |scenario: &&'static Scenario| {
            if self.scenario.is_empty() {
                !self.quick || scenario.quick
            } else {
                self.scenario.iter().any(|name| name == scenario.name)
            }
        };
        let takes_part = |contender: &&'static Contender| {
            if contender.is_ours() || contender.name == BASE {
                true
            } else if self.peer.is_empty() {
                !self.quick || !matches!(contender.program, Program::Foreign(_))
            } else {
                self.peer.iter().any(|name| name == contender.name)
            }
        };
        let (rounds, seconds, warm_up) = if self.quick {
            (1, 0.04, 0.01)
        } else {
            (self.rounds.into(), self.seconds, 0.05)
        };
        Ok(Plan {
            scenarios: SCENARIOS.iter().filter(is_asked_for).collect(),
            contenders: CONTENDERS.iter().filter(takes_part).collect(),
            rounds,
            time: Duration::from_secs_f64(seconds),
            warm_up: Duration::from_secs_f64(warm_up),
            client_cpu: self.client_cpu,
        })
    }

    fn check_cpus(&self) -> Result<()> {
        let allowed = launch::allowed_cpus()?;
        for (option, cpu) in [
            ("--server-cpu", self.server_cpu),
            ("--client-cpu", self.client_cpu),
        ] {
            if !allowed.contains(&cpu) {
                bail!("{option} {cpu}: no such CPU for this process: choose among {allowed:?}");
            }
        }
        if self.server_cpu == self.client_cpu {
            bail!(
                "--server-cpu and --client-cpu are both {}: they would measure each other: give each one of its own",
                self.server_cpu
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_time_that_makes_no_sense_is_refused() {
        assert!(seconds("0.25").is_ok());
        for text in ["0", "-1", "nan", "inf", "1e9", "soon", ""] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }
}
