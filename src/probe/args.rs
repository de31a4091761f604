//! The command line of `echoprobe`: what can be typed, and the help that teaches it.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use super::compare::Expect;
use super::target::Target;
use crate::cli::arguments::{self, parse_number, parse_span, parse_time};
use crate::cli::terminal::Color;
use crate::cli::text::parse_size;

const EXAMPLES: &str = "\
Examples:
  echoprobe tcp://127.0.0.1:7007
  echoprobe ping udp://192.0.2.1:7 -c 100
  echoprobe send tcp://192.0.2.1:7 < big.iso > /dev/null
  echoprobe check tcp://192.0.2.1:7
  echoprobe load tcp://127.0.0.1:7007 -c 50 --rate 20k --svg load.svg

Exit status: 0 all as it should be, 1 something lost, late or wrong, or interrupted before a result, \
2 usage, 3 nothing reached.

Try it only on services that are yours, or whose owner agrees.";

/// The commands; without one, it is a conversation.
const COMMANDS: [&str; 5] = ["send", "ping", "load", "check", "mtu"];

/// The heading of the options that are listed once, and apply to every command.
const PATH_OPTIONS: &str = "Path options, for every command";

/// A client for any echo service: talks, measures, checks.
#[derive(Debug, Parser)]
#[command(
    name = "echoprobe",
    version,
    after_help = EXAMPLES,
    subcommand_negates_reqs = true,
    override_usage = "echoprobe [OPTIONS] URL\n       echoprobe [OPTIONS] COMMAND URL [OPTIONS]"
)]
pub(crate) struct Cli {
    /// The service: tcp://HOST:PORT, udp://HOST:PORT, unix://PATH or unixgram://PATH; a conversation
    /// with it, line by line
    #[arg(required = true)]
    pub url: Option<Target>,
    /// How long to wait for each answer
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_span)]
    pub timeout: Duration,
    /// What applies to every command.
    #[command(flatten)]
    pub options: Options,
    /// The way to the service.
    #[command(flatten)]
    pub path: Path,
    /// What to do; without one, a conversation.
    #[command(subcommand)]
    pub command: Option<Command>,
}

impl Cli {
    /// The service, of whatever command.
    ///
    /// # Panics
    /// Never: the parser asks for one.
    pub(crate) fn target(&self) -> &Target {
        let Some(command) = &self.command else {
            return self.url.as_ref().expect("it is required");
        };
        match command {
            Command::Send(args) => &args.url,
            Command::Ping(args) => &args.url,
            Command::Load(args) => &args.url,
            Command::Check(args) => &args.url,
            Command::Mtu(args) => &args.url,
        }
    }
}

/// The command line.
///
/// # Errors
/// The exit status where it only asks for help, or is not understood; the help or the error is
/// printed.
pub(crate) fn parse() -> Result<Cli, ExitCode> {
    let words: Vec<OsString> = std::env::args_os().collect();
    parse_from(&words).map_err(|error| arguments::report(&error, "echoprobe"))
}

fn parse_from(words: &[OsString]) -> Result<Cli, clap::Error> {
    let parsed = command().try_get_matches_from(words);
    let parsed = parsed.and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.map_err(|error| {
        // A misspelled command is taken for a URL, and what follows it for an argument too many.
        let mut texts = words.iter().skip(1).filter_map(|word| word.to_str());
        let first = texts.find(|word| !word.starts_with('-'));
        match first.and_then(|word| Some((word, misspelled(word)?))) {
            Some((word, name)) if error.exit_code() != 0 => {
                let words = format!("no such command {word:?}: write {name}");
                command().error(ErrorKind::InvalidSubcommand, words)
            }
            _ => error,
        }
    })
}

/// The command that a word is close to, if it is none itself.
fn misspelled(word: &str) -> Option<&'static str> {
    let is_close = |name: &&str| (1..=2).contains(&strsim::damerau_levenshtein(name, word));
    let is_word = word.len() >= 3 && !COMMANDS.contains(&word);
    COMMANDS.into_iter().find(is_close).filter(|_| is_word)
}

/// The command line, with the path options hidden in the help of each command.
fn command() -> clap::Command {
    let command = Cli::command();
    let is_path = |arg: &&Arg| arg.get_help_heading() == Some(PATH_OPTIONS);
    let path: Vec<Arg> = command
        .get_arguments()
        .filter(is_path)
        .map(|arg| arg.clone().hide(true))
        .collect();
    COMMANDS.into_iter().fold(command, |command, name| {
        // What a command has already is not replaced by the global option of that name.
        command.mut_subcommand(name, |sub| {
            let help = sub
                .get_after_help()
                .map_or(String::new(), ToString::to_string);
            let help = format!("{help}\n\nPath options: echoprobe --help");
            sub.args(path.clone()).after_help(help)
        })
    })
}

/// What applies to every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "For every command")]
pub(crate) struct Options {
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Use colors: auto (not with NO_COLOR), always or never
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_possible_values = true, value_parser = clap::value_parser!(Color))]
    pub color: Color,
    /// End after this time, whatever is still to come
    #[arg(long, global = true, value_name = "TIME", value_parser = parse_span)]
    pub deadline: Option<Duration>,
}

/// The way to the service.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = PATH_OPTIONS)]
pub(crate) struct Path {
    /// Only over IPv4
    #[arg(short = '4', long, global = true, conflicts_with = "ipv6")]
    pub ipv4: bool,
    /// Only over IPv6
    #[arg(short = '6', long, global = true)]
    pub ipv6: bool,
    /// From this address of this host, this port, or both: 192.0.2.1, :5000 or 192.0.2.1:5000
    #[arg(long, global = true, value_name = "ADDRESS", value_parser = parse_source)]
    pub source: Option<Source>,
    /// Mark packets with this DSCP, 0 to 63 (46 is EF)
    #[arg(long, global = true, value_name = "N", value_parser = parse_number::<u8, 0, 63>)]
    pub dscp: Option<u8>,
    /// Maximum number of hops (IP TTL)
    #[arg(long, global = true, value_name = "N", value_parser = parse_number::<u8, 1, 255>)]
    pub ttl: Option<u8>,
    /// Never fragment; what is too large for the path is lost
    #[arg(long, global = true)]
    pub dont_fragment: bool,
    /// Begin each stream with a PROXY protocol header: v1 or v2
    #[arg(long, global = true, value_name = "VERSION", hide_possible_values = true, value_parser = clap::value_parser!(ProxyVersion))]
    pub proxy: Option<ProxyVersion>,
}

impl Path {
    /// Whether the service is to be reached over IPv4; none: over either family.
    pub(crate) fn family(&self) -> Option<bool> {
        let source = self.source.and_then(|source| source.address);
        match (self.ipv4, self.ipv6) {
            (false, false) => source.map(|address| address.is_ipv4()),
            (is_ipv4, _) => Some(is_ipv4),
        }
    }
}

/// An address of this host, a port, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Source {
    /// The address; none: the kernel chooses.
    pub address: Option<IpAddr>,
    /// The port; 0: the kernel chooses.
    pub port: u16,
}

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Send standard input, print what comes back, and compare
    #[command(after_help = "\
Streams are half-closed at the end of the input (RFC 862). Datagrams are sent one by one, each when \
the one before has come back.

Examples:
  echoprobe send tcp://192.0.2.1:7 < big.iso > /dev/null
  printf hello | echoprobe send unix:///run/echo.sock --expect upper")]
    Send(SendArgs),
    /// Send small messages at an interval and report the fate of each
    #[command(after_help = "\
An answer is compared byte by byte, and a datagram also by where it comes from. Late is what comes \
after the timeout; what comes twice is a duplicate; what comes behind a later one is reordered.

Routers choose among parallel links by a hash of the ports: with --flows a bad one of them shows as \
source ports that lose.

Examples:
  echoprobe ping tcp://192.0.2.1:7 -c 10
  echoprobe ping udp://192.0.2.1:7 -i 10ms -s 1400 --deadline 1m --json
  echoprobe ping udp://192.0.2.1:7 --flows 16 -c 100 -q")]
    Ping(PingArgs),
    /// Send as much as the service takes, or at a rate, and measure
    #[command(after_help = "\
Without --rate each connection sends the next message when one has come back (closed loop): how much \
can the service take? With --rate messages are due at their times, whatever the service does, and the \
time counts from when a message was due (open loop): how long do users wait?

Every byte that comes back is compared.

Examples:
  echoprobe load tcp://127.0.0.1:7007 -c 50
  echoprobe load udp://127.0.0.1:7007 -c 8 --rate 10k -t 30s --svg latency.svg")]
    Load(LoadArgs),
    /// Check what a service does at the edges
    #[command(after_help = "\
Each check passes, fails, is not applicable, or is not run because the service has stopped answering. \
There are up to nine connections at once, and a service that takes whatever it gets has to hold up to \
64 MiB for a moment.

Examples:
  echoprobe check tcp://192.0.2.1:7
  echoprobe check udp://192.0.2.1:7 --json")]
    Check(CheckArgs),
    /// Find the largest datagram that passes each way unfragmented
    #[command(after_help = "\
Example:
  echoprobe mtu udp://192.0.2.1:7")]
    Mtu(MtuArgs),
}

/// Of `send`.
#[derive(Clone, Debug, Args)]
pub(crate) struct SendArgs {
    /// The service
    pub url: Target,
    /// Expected reply: echo, upper or any
    #[arg(long, value_name = "WHAT", default_value = "echo", hide_possible_values = true, value_parser = clap::value_parser!(Expect))]
    pub expect: Expect,
    /// The part of the input in each datagram
    #[arg(short, long, value_name = "BYTES", default_value = "1200", value_parser = parse_datagram_size)]
    pub size: usize,
    /// Give up when nothing was returned for this time [default: 10s; 1s for each datagram]
    #[arg(long, value_name = "TIME", value_parser = parse_span)]
    pub timeout: Option<Duration>,
}

/// Of `ping`.
#[derive(Clone, Debug, Args)]
pub(crate) struct PingArgs {
    /// The service
    pub url: Target,
    /// The number of messages, of each flow [default: until interrupted]
    #[arg(short, long, value_name = "N", value_parser = parse_number::<u64, 1, { u64::MAX }>)]
    pub count: Option<u64>,
    /// The time from one message to the next; a number alone is seconds
    #[arg(short, long, value_name = "TIME", default_value = "100ms", value_parser = parse_time)]
    pub interval: Duration,
    /// The size of each: 0 to 65527 for datagrams (65507 over IPv4), from 1 on for streams
    #[arg(short, long, value_name = "BYTES", default_value = "64", value_parser = parse_message_size)]
    pub size: usize,
    /// What comes later than this is late
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_span)]
    pub timeout: Duration,
    /// Expected reply: echo or upper
    #[arg(long, value_name = "WHAT", default_value = "echo", hide_possible_values = true, value_parser = compared())]
    pub expect: Expect,
    /// The number of source ports to send from, with a row for each
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_number::<u16, 1, 4096>)]
    pub flows: u16,
    /// Only print the summary
    #[arg(short, long)]
    pub quiet: bool,
}

/// Of `load`.
#[derive(Clone, Debug, Args)]
pub(crate) struct LoadArgs {
    /// The service
    pub url: Target,
    /// The number of connections, or flows of datagrams
    #[arg(short, long, value_name = "N", default_value = "10", value_parser = parse_number::<u32, 1, 0xffff_ffff>)]
    pub connections: u32,
    /// The number of messages in flight on each, without --rate
    #[arg(short, long, value_name = "N", default_value = "1", value_parser = parse_number::<u32, 1, 65_536>)]
    pub depth: u32,
    /// The size of each message
    #[arg(short, long, value_name = "BYTES", default_value = "64", value_parser = parse_message_size)]
    pub size: usize,
    /// How long to measure
    #[arg(short = 't', long, value_name = "TIME", default_value = "10s", value_parser = parse_span)]
    pub time: Duration,
    /// How long to run before that, uncounted
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_time)]
    pub warm_up: Duration,
    /// Messages a second over all connections: 5000, 20k
    #[arg(long, value_name = "N", value_parser = parse_rate)]
    pub rate: Option<u64>,
    /// What comes later than this is late, or lost if it never comes
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = parse_span)]
    pub timeout: Duration,
    /// Expected reply: echo or upper
    #[arg(long, value_name = "WHAT", default_value = "echo", hide_possible_values = true, value_parser = compared())]
    pub expect: Expect,
    /// Draw the latencies by percentile into this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// Of `check`.
#[derive(Clone, Debug, Args)]
pub(crate) struct CheckArgs {
    /// The service
    pub url: Target,
    /// How long to wait for what should come
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse_span)]
    pub timeout: Duration,
    /// Expected reply: echo or upper
    #[arg(long, value_name = "WHAT", default_value = "echo", hide_possible_values = true, value_parser = compared())]
    pub expect: Expect,
}

/// Of `mtu`.
#[derive(Clone, Debug, Args)]
pub(crate) struct MtuArgs {
    /// The service, over UDP
    pub url: Target,
    /// How long to wait for each answer
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = parse_span)]
    pub timeout: Duration,
    /// The number of times to try a size before it is taken for too large
    #[arg(long, value_name = "N", default_value = "3", value_parser = parse_number::<u32, 1, 0xffff_ffff>)]
    pub tries: u32,
}

/// The largest payload of a datagram, in bytes: over IPv6, 65,535 less 8 of UDP's header.
pub(crate) const DATAGRAM_BYTES_MAX: usize = 65_527;

/// The largest over IPv4, whose packet counts its own header of 20 bytes as well.
pub(crate) const DATAGRAM_BYTES_MAX_IPV4: usize = 65_507;

/// Whether a service can be sent messages of this size.
pub(super) fn check_size(target: &Target, size: usize) -> Result<(), String> {
    match target.is_stream() {
        true if size == 0 => {
            Err("--size 0: an empty message has no bytes on a stream: write 1 or more".into())
        }
        false if size > DATAGRAM_BYTES_MAX => Err(format!(
            "--size {size}: a datagram has {DATAGRAM_BYTES_MAX} bytes at most"
        )),
        _ => Ok(()),
    }
}

/// The largest message, of streams.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// What may be returned for a message, which is known only by its bytes.
fn compared() -> impl TypedValueParser<Value = Expect> {
    let is_expected = |name: String| Expect::from_str(&name, false);
    PossibleValuesParser::new(["echo", "upper"]).try_map(is_expected)
}

fn parse_message_size(text: &str) -> Result<usize, String> {
    let size = parse_size(text).and_then(|size| usize::try_from(size).ok());
    match size {
        None => Err("not a size: write e.g. 64, 1400 or 64KiB".into()),
        Some(size) if size <= MESSAGE_BYTES_MAX => Ok(size),
        Some(_) => Err("out of range: write up to 1GiB".into()),
    }
}

fn parse_datagram_size(text: &str) -> Result<usize, String> {
    match parse_message_size(text)? {
        size @ 1..=DATAGRAM_BYTES_MAX => Ok(size),
        _ => Err(format!("out of range: write 1 to {DATAGRAM_BYTES_MAX}")),
    }
}

/// `5000`, `20k`, `1.5M`: messages a second.
fn parse_rate(text: &str) -> Result<u64, String> {
    let (number, scale) = match text.trim_end_matches(['k', 'K', 'M']) {
        number if number.len() == text.len() => (number, 1.0),
        number if text.ends_with('M') => (number, 1e6),
        number => (number, 1e3),
    };
    match number.parse::<f64>() {
        Ok(number) if (1.0..=1e9).contains(&(number * scale)) => Ok((number * scale) as u64),
        Ok(_) => Err("out of range: write 1 to 1000M messages a second".into()),
        Err(_) => Err("not a rate: write messages a second, as 5000, 20k or 1.5M".into()),
    }
}

/// `192.0.2.1`, `:5000`, `192.0.2.1:5000`, `2001:db8::1`, `[2001:db8::1]:5000`.
fn parse_source(text: &str) -> Result<Source, String> {
    let alone = text.trim_matches(['[', ']']).parse();
    let both = text
        .parse()
        .map(|both: SocketAddr| (both.ip(), both.port()));
    let (address, port) = match (alone, both, text.strip_prefix(':').map(str::parse)) {
        (Ok(address), ..) => (Some(address), 0),
        (_, Ok((address, port)), _) => (Some(address), port),
        (.., Some(Ok(port))) => (None, port),
        _ => {
            let words = "neither an address nor a port: write 192.0.2.1, :5000 or 192.0.2.1:5000";
            return Err(words.into());
        }
    };
    Ok(Source { address, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        let words: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
        parse_from(&words)
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
        command().debug_assert();
    }

    #[test]
    fn every_command_has_an_example() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string);
            let has_example = help.is_some_and(|help| help.contains("echoprobe"));
            assert!(has_example, "{}", command.get_name());
        }
    }

    #[test]
    fn the_manual_page_has_every_command_and_option() {
        let page = include_str!("../../docs/man/echoprobe.1");
        let command = Cli::command();
        let all = std::iter::once(&command).chain(command.get_subcommands());
        for command in all {
            let name = command.get_name();
            let section = match name {
                "echoprobe" => page,
                _ => {
                    let heading = format!("\n.Ss echoprobe {name}\n");
                    let behind = page.split(&heading).nth(1);
                    let behind = behind.unwrap_or_else(|| panic!("{name} has no section"));
                    behind.split("\n.S").next().expect("there is a first")
                }
            };
            for option in command.get_arguments().filter_map(Arg::get_long) {
                let is_it = |word: &str| word == format!("-{option}");
                let found = section.split_whitespace().any(is_it);
                assert!(found, "{name} --{option} is not in docs/man/echoprobe.1");
            }
        }
    }

    /// Nine options of the path stood in the help of each command.
    #[test]
    fn path_options_are_listed_once() {
        let mut all = command();
        let help = all.render_help().to_string();
        assert!(help.contains(PATH_OPTIONS), "{help}");
        assert!(help.contains("--dscp"), "{help}");
        let help = parse("echoprobe help ping").expect_err("the help");
        let help = help.to_string();
        assert!(help.contains("--interval"), "{help}");
        assert!(!help.contains("--dscp"), "{help}");
        for line in help.lines().filter(|line| !line.contains("://")) {
            assert!(line.chars().count() <= 100, "{line}");
        }
    }

    #[test]
    fn a_url_alone_is_a_conversation_and_a_command_takes_its_own() {
        let talk = parse("echoprobe tcp://a:1 --timeout 3s").expect("understood");
        assert!(talk.command.is_none() && talk.url.is_some());
        assert_eq!(talk.timeout, Duration::from_secs(3));
        let ping = parse("echoprobe -4 ping udp://a:1 -c 3 --json --ttl 3").expect("understood");
        assert!(ping.url.is_none() && ping.path.ipv4 && ping.options.json);
        assert_eq!(ping.path.ttl, Some(3));
        assert!(matches!(ping.command, Some(Command::Ping(_))));
    }

    #[test]
    fn nothing_is_guessed() {
        for line in [
            "echoprobe",
            "echoprobe ping",
            "echoprobe localhost:7",
            "echoprobe ping tcp://a:1 -s -1",
            "echoprobe ping tcp://a:1 -4 -6",
            "echoprobe ping tcp://a:1 -i -1",
            "echoprobe load tcp://a:1 --rate 0",
            "echoprobe load tcp://a:1 -s 64-128",
            "echoprobe send udp://a:1 -s 65528",
            "echoprobe ping tcp://a:1 --proxy v3",
        ] {
            assert_eq!(parse(line).expect_err(line).exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn a_misspelled_command_is_suggested() {
        for (line, words) in [
            ("echoprobe pign udp://a:1 -c 3", "\"pign\": write ping"),
            ("echoprobe lod tcp://a:1", "\"lod\": write load"),
        ] {
            let said = parse(line).expect_err("no command").to_string();
            let words = format!("no such command {words}");
            assert!(said.contains(&words), "{said}");
        }
        let error = parse("echoprobe localhost").expect_err("no URL");
        let said = error.to_string();
        assert!(said.contains("no URL: write tcp://"), "{said}");
    }

    #[test]
    fn rates_sizes_and_sources_are_read() {
        for (text, rate) in [("5000", 5000), ("20k", 20_000), ("1.5M", 1_500_000)] {
            assert_eq!(parse_rate(text), Ok(rate));
        }
        assert_eq!(parse_message_size("1KiB"), Ok(1024));
        for (text, address, port) in [
            ("192.0.2.1", "192.0.2.1", 0),
            (":5000", "", 5000),
            ("192.0.2.1:5000", "192.0.2.1", 5000),
            ("2001:db8::1", "2001:db8::1", 0),
            ("[2001:db8::1]:5000", "2001:db8::1", 5000),
        ] {
            let address = address.parse().ok();
            assert_eq!(parse_source(text), Ok(Source { address, port }));
        }
        assert!(parse_source("eth0").is_err());
    }
}
