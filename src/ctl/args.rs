//! The command line of `echoctl`: what can be typed, and the help that teaches it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{ArgGroup, Args, Parser, Subcommand};
use clap_complete::Shell;
use clap_complete::engine::ArgValueCandidates;

use crate::cli::arguments::{above_zero, parse_duration};
use crate::cli::terminal::Color;
use crate::config;
use crate::protocol::SortKey;
use crate::protocol::methods::{BACKLOG_MAX, CONFIRM_WITHIN_MAX, DEADLINE_MS_MAX, LEVELS};
use crate::protocol::peers::parse_network;

use super::completion;

const EXAMPLES: &str = "\
Examples:
  echoctl status                          is it up, and with which configuration?
  echoctl peers --sort idle --limit 10    which have been idle longest?
  echoctl backlog tcp 4096                a longer queue, at once
  echoctl drain tcp --deadline 5m         no new clients; the others have 5 minutes
  echoctl reload --dry-run                what would change?
  echoctl --json listeners | jq .         the same facts for programs

Exit status: 0 done, 1 refused or failed, 2 usage, 69 echod is not running,
75 timed out, 77 not permitted, 78 configuration rejected.

The socket is --socket, else $ECHOCTL_SOCKET, else [control] socket in /etc/echod/echod.toml, else
$RUNTIME_DIRECTORY/control.sock, else /run/echod/control.sock for root and
$XDG_RUNTIME_DIR/echod/control.sock, if it is there, for others.";

/// See and control a running echod.
#[derive(Debug, Parser)]
#[command(name = "echoctl", version, after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub options: Options,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What holds for every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "For every command")]
pub(crate) struct Options {
    /// The daemon's control socket
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print the reply as it came, JSON; an error as well
    #[arg(long, global = true)]
    pub json: bool,
    /// Show every column of a table, however wide it gets
    #[arg(long, global = true)]
    pub wide: bool,
    /// Use colors: auto (not with NO_COLOR), always or never
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "WHEN",
        default_value_t,
        hide_possible_values = true
    )]
    pub color: Color,
    /// How long to wait for each answer [default: 5s; 40s where a new program is asked first]
    #[arg(long, global = true, value_name = "TIME", value_parser = parse_timeout)]
    pub timeout: Option<Duration>,
}

impl Cli {
    /// How long to wait for each answer.
    #[must_use]
    pub(crate) fn patience(&self) -> Duration {
        let usual = match self.command {
            // The daemon gives up on the new program before that, and answers.
            Command::Upgrade | Command::HandOver { .. } => Duration::from_secs(40),
            _ => Duration::from_secs(5),
        };
        self.options.timeout.unwrap_or(usual)
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Version, state, configuration and totals on one screen
    #[command(after_help = "Example:\n  echoctl status")]
    Status,
    /// The listeners, or all about one
    #[command(after_help = "Examples:
  echoctl listeners
  echoctl listeners tcp                   all about one
  echoctl listeners --watch               with bytes per second")]
    Listeners {
        /// The listener to show in full
        #[arg(add = ArgValueCandidates::new(completion::listeners))]
        name: Option<String>,
        /// Whether to show them again and again
        #[command(flatten)]
        watch: WatchArgs,
    },
    /// The peers of the daemon
    #[command(after_help = "Examples:
  echoctl peers --listener tcp --address 10.0.0.0/8
  echoctl peers --older 10m --idle 30s --sort received --limit 20
  echoctl peers --watch")]
    Peers(PeersArgs),
    /// Show a listener's backlog, or set it at once
    #[command(after_help = "Example:\n  echoctl backlog tcp 4096")]
    Backlog {
        /// The listener
        #[arg(add = ArgValueCandidates::new(completion::listeners))]
        listener: String,
        /// How many connections may wait to be accepted, in each listening socket
        #[arg(value_name = "N", allow_negative_numbers = true, value_parser = parse_backlog)]
        backlog: Option<i64>,
    },
    /// Turn new clients of a listener away, until it is resumed
    #[command(after_help = "\
Connections that are there stay. A new one is accepted and reset; a datagram is discarded. Reloads,
upgrades and restarts do not resume it.

Examples:
  echoctl pause tcp
  echoctl pause tcp --hold                leave new clients in the backlog
  echoctl pause --all")]
    Pause {
        /// The listener, or all
        #[command(flatten)]
        which: OneOrAll,
        /// Leave new clients in the backlog instead, to be served later
        #[arg(long)]
        hold: bool,
    },
    /// Serve new clients of a listener again
    #[command(after_help = "Examples:
  echoctl resume tcp
  echoctl resume --all")]
    Resume(OneOrAll),
    /// Pause a listener, and end its connections in time
    #[command(after_help = "\
Connections may continue until the deadline; then their pending output is sent, then our FIN. The
listener stays draining until it is resumed. ^C ends the watching and not the drain.

Examples:
  echoctl drain tcp                       within drain-timeout
  echoctl drain --all --deadline 5m
  echoctl drain tcp --deadline 0s         at once")]
    Drain(DrainArgs),
    /// Close connections
    #[command(after_help = "Examples:
  echoctl kick 4711                       this one
  echoctl kick 192.0.2.0/24 --dry-run     how many are there of this network?
  echoctl kick 192.0.2.0/24 --verbose     and which were they?
  echoctl kick tcp --idle 1h              those of a listener that are idle")]
    Kick(KickArgs),
    /// Read the configuration again and apply it, all or nothing
    #[command(after_help = "Examples:
  echoctl reload --dry-run                what would change?
  echoctl reload
  echoctl reload --confirm 60s            rolled back after a minute unless confirmed
  echoctl reload --last                   the result of the last one, also by signal")]
    Reload {
        /// Only show what would change
        #[arg(long)]
        dry_run: bool,
        /// Roll it back after this time unless \"echoctl confirm\" comes first
        #[arg(
            long,
            value_name = "TIME",
            value_parser = parse_confirm_within,
            conflicts_with_all = ["dry_run", "last"]
        )]
        confirm: Option<Duration>,
        /// Show the result of the last reload
        #[arg(long, conflicts_with = "dry_run")]
        last: bool,
        /// Print nothing about the configuration: the daemon's log has it
        #[arg(long, conflicts_with = "last")]
        quiet: bool,
    },
    /// Keep the configuration that \"reload --confirm\" has applied
    #[command(after_help = "Example:\n  echoctl reload --confirm 60s && echoctl confirm")]
    Confirm,
    /// Go back to the previous configuration, whatever has become of its files
    #[command(after_help = "Examples:
  echoctl rollback --dry-run              what would change?
  echoctl rollback")]
    Rollback {
        /// Only show what would change
        #[arg(long)]
        dry_run: bool,
    },
    /// Check a configuration file without a daemon
    #[command(after_help = "Examples:
  echoctl check                           the one that echod would read
  echoctl check ./echod.toml")]
    Check {
        /// The file, else the one that echod would read
        file: Option<PathBuf>,
    },
    /// The configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Show what is logged, or set it until the next reload
    #[command(after_help = "Examples:
  echoctl log-level                       what is logged?
  echoctl log-level debug")]
    LogLevel {
        /// The least important messages to log
        #[arg(value_parser = PossibleValuesParser::new(LEVELS))]
        level: Option<String>,
    },
    /// Hand every listener and connection to the program that is now installed
    #[command(after_help = "\
The new program is first asked whether it can take over; if not, nothing happens. The process,
its connections and its counters stay.

Example:
  echoctl upgrade")]
    Upgrade,
    /// Leave every listener and connection to the process that systemd starts next
    #[command(after_help = "\
For ExecStop= of the unit, so that a restart drops no connection: systemd keeps everything in its
descriptor store until then. With --if-restarting nothing happens where the unit is stopped and not restarted:
systemd then ends the daemon as always.

Example:
  ExecStop=-+/usr/bin/echoctl hand-over --if-restarting %n")]
    HandOver {
        /// Only where systemd is restarting this unit
        #[arg(long, value_name = "UNIT")]
        if_restarting: Option<String>,
    },
    /// Call a method of the control protocol
    #[command(after_help = "Examples:
  echoctl call GetStatus
  echoctl call ListPeers '{\"limit\": 1}'
  echoctl call org.varlink.service.GetInfo")]
    Call {
        /// The method; the interface io.echod.Control may be left out
        method: String,
        /// Its parameters, an object
        #[arg(value_name = "JSON")]
        parameters: Option<String>,
        /// Take several replies
        #[arg(long)]
        more: bool,
    },
    /// Completions for a shell
    #[command(after_help = "Examples:
  echoctl completions bash > ~/.local/share/bash-completion/completions/echoctl
  echoctl completions fish echod > ~/.config/fish/completions/echod.fish")]
    Completions {
        /// The shell
        shell: Shell,
        /// The program to complete: echoctl, echod or echoprobe
        #[arg(default_value = "echoctl", hide_default_value = true)]
        program: String,
    },
}

/// Which listeners a command is about: never all of them because a name was forgotten.
#[derive(Clone, Debug, Default, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct OneOrAll {
    /// The listener
    #[arg(add = ArgValueCandidates::new(completion::listeners))]
    pub listener: Option<String>,
    /// All listeners
    #[arg(long)]
    pub all: bool,
}

impl OneOrAll {
    /// The parameters `listener` and `all` of a call.
    #[must_use]
    pub(crate) fn parameters(self) -> (Option<String>, Option<bool>) {
        (self.listener, self.all.then_some(true))
    }
}

/// Of `echoctl drain`.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct DrainArgs {
    #[command(flatten)]
    #[allow(
        clippy::missing_docs_in_private_items,
        reason = "its documentation would become that of the command"
    )]
    pub which: OneOrAll,
    /// How long connections may continue [default: drain-timeout]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = parse_deadline)]
    pub deadline: Option<Duration>,
}

/// Which peers a command is about.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Which {
    /// Those of this listener
    #[arg(long, value_name = "NAME", add = ArgValueCandidates::new(completion::listeners))]
    pub listener: Option<String>,
    /// Those of this address or network
    #[arg(long, value_name = "CIDR", value_parser = parse_address)]
    pub address: Option<String>,
    /// Those that are at least this old
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = parse_duration)]
    pub older: Option<Duration>,
    /// Those that have been idle for at least this time
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = parse_duration)]
    pub idle: Option<Duration>,
}

/// Of `echoctl peers`.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct PeersArgs {
    #[command(flatten)]
    #[allow(
        clippy::missing_docs_in_private_items,
        reason = "its documentation would become that of the command"
    )]
    pub which: Which,
    /// In which order; numbers come largest first
    #[arg(long, value_name = "KEY", value_parser = PossibleValuesParser::new(SortKey::ALL.map(SortKey::name)))]
    pub sort: Option<String>,
    /// How many to list
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = parse_limit)]
    pub limit: Option<u64>,
    /// Whether to list them again and again.
    #[command(flatten)]
    pub watch: WatchArgs,
}

/// Of the commands that can show their list again and again.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct WatchArgs {
    /// Show them again and again, with bytes per second; ^C ends it
    #[arg(long)]
    pub watch: bool,
    /// How often
    #[arg(long, value_name = "TIME", value_parser = parse_interval, default_value = "1s", requires = "watch")]
    pub interval: Duration,
}

/// An address or a network, which the daemon reads as well.
fn parse_address(text: &str) -> Result<String, String> {
    match parse_network(text) {
        Some(_) => Ok(text.to_owned()),
        None => Err(no_network(text)),
    }
}

/// What is wrong with a text that is neither an address nor a network.
fn no_network(text: &str) -> String {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(_) => "IPv4 address has 0 to 32",
        IpAddr::V6(_) => "IPv6 address has 0 to 128",
    };
    if let Ok(address) = text.parse::<SocketAddr>() {
        let ip = address.ip();
        return format!("not an address: no port belongs to it: write {ip}, or the id of the peer");
    }
    let address = text.split_once('/').map(|(address, _)| address.parse());
    match address {
        Some(Ok(address)) => format!("not a network: the prefix of an {} bits", bits(address)),
        _ => "not an address: write e.g. 192.0.2.1 or 192.0.2.0/24".into(),
    }
}

/// What stands for the peers that `kick` closes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selector {
    /// The one with this id.
    Id(u64),
    /// Those of this address or network.
    Network(String),
    /// Those of the listener with this name.
    Listener(String),
}

/// A number is an id, and what looks like an address has to be one: a typing error is not a listener
/// that there is none of. A listener with such a name is reached by `--listener`.
fn parse_selector(text: &str) -> Result<Selector, String> {
    let consists_of = |characters: &str| text.chars().all(|one| characters.contains(one));
    if let Ok(id) = text.parse() {
        return Ok(Selector::Id(id));
    }
    if text.contains([':', '/']) || parse_network(text).is_some() {
        return parse_address(text).map(Selector::Network);
    }
    if !config::is_listener_name(text) {
        return Err(
            "not a listener's name: these are 1 to 64 letters, digits, '-', '_' and '.'".into(),
        );
    }
    if consists_of("0123456789") {
        return Err(format!("not an id: the largest is {}", u64::MAX));
    }
    if consists_of("0123456789.") {
        return Err(no_network(text));
    }
    Ok(Selector::Listener(text.to_owned()))
}

fn parse_backlog(text: &str) -> Result<i64, String> {
    let backlog = text.parse().ok();
    let backlog = backlog.filter(|backlog| (1..=BACKLOG_MAX).contains(backlog));
    backlog.ok_or_else(|| format!("not a backlog: write a number from 1 to {BACKLOG_MAX}"))
}

fn parse_limit(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| "not a number: write e.g. 20".into())
}

fn parse_confirm_within(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text).and_then(above_zero)?;
    if time > CONFIRM_WITHIN_MAX || time.as_millis() == 0 {
        return Err("not from 1ms to 1day: write e.g. 60s".into());
    }
    Ok(time)
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    parse_duration(text).and_then(above_zero)
}

/// A daemon that is asked without a pause would have nothing else to do.
fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    if interval < Duration::from_millis(100) {
        return Err("too short: 100ms at least".into());
    }
    Ok(interval)
}

/// Of `echoctl kick`.
#[derive(Clone, Debug, Default, Args)]
#[command(group(
    ArgGroup::new("who")
        .required(true)
        .multiple(true)
        .args(["selector", "listener", "address", "older", "idle"])
))]
pub(crate) struct KickArgs {
    /// A peer's id, an address or network, or a listener's name
    #[arg(value_parser = parse_selector, add = ArgValueCandidates::new(completion::listeners))]
    pub selector: Option<Selector>,
    #[command(flatten)]
    #[allow(
        clippy::missing_docs_in_private_items,
        reason = "its documentation would become that of the command"
    )]
    pub which: Which,
    /// Only count them
    #[arg(long)]
    pub dry_run: bool,
    /// List the connections too that are closed, or would be
    #[arg(long)]
    pub verbose: bool,
}

fn parse_deadline(text: &str) -> Result<Duration, String> {
    let longest = Duration::from_millis(DEADLINE_MS_MAX.unsigned_abs());
    let deadline = parse_duration(text)?;
    if deadline > longest {
        return Err("too long: write at most 1000d".into());
    }
    Ok(deadline)
}

/// Of `echoctl config`.
#[derive(Clone, Copy, Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// The configuration in force, TOML
    #[command(after_help = "Example:\n  echoctl config show > echod.toml")]
    Show,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        for command in Cli::command().get_subcommands() {
            let has_commands = command.get_subcommands().next().is_some();
            let help = command.get_after_help().map(ToString::to_string);
            let has_example = help.is_some_and(|help| help.contains("echoctl"));
            assert!(has_commands || has_example, "{}", command.get_name());
        }
    }

    #[test]
    fn a_kick_without_a_selector_is_not_understood() {
        assert!(Cli::try_parse_from(["echoctl", "kick"]).is_err());
        assert!(Cli::try_parse_from(["echoctl", "kick", "--dry-run"]).is_err());
        assert!(Cli::try_parse_from(["echoctl", "kick", "--idle", "1h"]).is_ok());
    }
}
