//! The command line of echod.

use std::path::PathBuf;

use clap::Parser;
use clap::builder::PossibleValuesParser;

use crate::echo;

/// The echo service a network can rely on: sends back what it receives over TCP, UDP and Unix
/// sockets (RFC 862).
///
/// Without --config and --listen it reads /etc/echod/echod.toml and /etc/echod/echod.d/*.toml;
/// without those it serves 127.0.0.1 and ::1, port 7007, TCP and UDP.
#[derive(Debug, Parser)]
#[command(name = "echod", version, max_term_width = 100, after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Read this file, and then *.toml in the folder echod.d beside it
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Put the control socket here; echoctl finds it with the same option
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// Check the configuration, report all that a start would refuse, and end: 0, or 78
    #[arg(long)]
    pub check: bool,

    /// Print the configuration as it was understood, every key, and end
    #[arg(long, conflicts_with = "check")]
    pub print_config: bool,

    /// Serve this without a file: tcp://HOST:PORT, udp://HOST:PORT, unix://PATH or unixgram://PATH;
    /// may be given more than once
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    pub listen: Vec<String>,

    /// What comes back where no file says
    #[arg(
        long,
        value_name = "MODE",
        conflicts_with = "config",
        value_parser = PossibleValuesParser::new(echo::Reply::ALL.map(echo::Reply::name))
    )]
    pub reply: Option<String>,

    /// Whether this program can take over from another one that writes records of this version: 0, or
    /// 1; what a running echod asks its successor. With --check it is for a successor
    #[arg(long, value_name = "VERSION", hide = true)]
    pub can_take_over: Option<u32>,
}

const AFTER_HELP: &str = "\
Examples:
  echod                                        the configured service, or the built-in one
  echod --listen tcp://127.0.0.1:7007          one listener, no file
  echod --listen udp://*:7007 --reply upper    answers in capitals
  echod --check --config new.toml              is this file right?

Signals: SIGHUP reloads the configuration; SIGUSR2 lets the program that is now installed go on
with everything; SIGTERM and SIGINT finish the peers there are and end, a second one ends at once.
Exit status: 0 done; 1 failed; 2 usage; 78 configuration rejected.
See also: echod(8), echoctl(1), echod.toml(5)";
