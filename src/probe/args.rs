//! The command line of `echoprobe`: what can be typed, and the help that teaches it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::target::Target;
use crate::cli::terminal::Color;
use crate::cli::text::parse_size;

const EXAMPLES: &str = "\
Examples:
  echoprobe tcp://127.0.0.1:7007               talk to it, line by line; q ends
  echoprobe ping udp://192.0.2.1:7 -c 100      is anything lost, late or changed on the way?
  echoprobe send tcp://192.0.2.1:7 < big.iso > /dev/null
                                               does every byte come back?
  echoprobe check tcp://192.0.2.1:7            what does it do at the edges?
  echoprobe load tcp://127.0.0.1:7007 -c 50 --rate 20000 --svg load.svg
                                               how long does it take under load?

Exit status: 0 all as it should be, 1 some lost, late or wrong, 2 usage, 3 nothing reached.

Try it only on services that are yours, or whose owner agrees.";

/// A client for any echo service: talks, measures, checks.
#[derive(Debug, Parser)]
#[command(
    name = "echoprobe",
    version,
    after_help = EXAMPLES,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true,
    override_usage = "echoprobe [OPTIONS] URL\n       echoprobe [OPTIONS] COMMAND URL [OPTIONS]"
)]
pub struct Cli {
    /// Whom to talk to: tcp://HOST:PORT, udp://HOST:PORT, unix://PATH or unixgram://PATH
    #[arg(required = true)]
    pub url: Option<Target>,
    /// How long to wait for each answer
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// What holds for every command.
    #[command(flatten)]
    pub options: Options,
    /// How to get there.
    #[command(flatten)]
    pub path: Path,
    /// What to do; without one, a conversation.
    #[command(subcommand)]
    pub command: Option<Command>,
}

impl Cli {
    /// Whom it is about, whatever is to be done.
    ///
    /// # Panics
    /// Never: the parser asks for one.
    #[must_use]
    pub fn target(&self) -> &Target {
        let Some(command) = &self.command else {
            return self.url.as_ref().expect("it is required");
        };
        match command {
            Command::Send(args) => &args.url,
            Command::Ping(args) => &args.url,
            Command::Load(args) => &args.url,
            Command::Check(args) => &args.url,
            Command::Mtu(args) => &args.url,
            Command::Ports(args) => &args.url,
        }
    }
}

/// What holds for every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "For every command")]
pub struct Options {
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    pub json: bool,
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
}

/// How to get there.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "How to get there, for every command")]
pub struct Path {
    /// Only over IPv4
    #[arg(short = '4', long, global = true, conflicts_with = "ipv6")]
    pub ipv4: bool,
    /// Only over IPv6
    #[arg(short = '6', long, global = true)]
    pub ipv6: bool,
    /// From this address of ours, this port, or both: 192.0.2.1, :5000 or 192.0.2.1:5000
    #[arg(long, global = true, value_name = "ADDRESS", value_parser = parse_source)]
    pub source: Option<Source>,
    /// Mark packets with this DSCP, 0 to 63 (46 is EF)
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u8).range(0..64))]
    pub dscp: Option<u8>,
    /// Let packets pass so many routers at most
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub ttl: Option<u8>,
    /// Never fragment; what is too large for the path is lost
    #[arg(long, global = true)]
    pub dont_fragment: bool,
    /// Begin each stream with a PROXY protocol header: v1 or v2
    #[arg(long, global = true, value_name = "VERSION")]
    pub proxy: Option<ProxyVersion>,
    /// The client that the header names [default: ourselves]
    #[arg(long, global = true, value_name = "IP:PORT", requires = "proxy")]
    pub proxy_source: Option<SocketAddr>,
    /// The address that the header says the client has connected to [default: the service's]
    #[arg(long, global = true, value_name = "IP:PORT", requires = "proxy")]
    pub proxy_destination: Option<SocketAddr>,
}

/// An address of ours, a port, or both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// The address; none: the kernel chooses.
    pub address: Option<IpAddr>,
    /// The port; 0: the kernel chooses.
    pub port: u16,
}

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Send standard input, print what comes back, and compare
    #[command(after_help = "\
Streams are half-closed at the end of the input, as RFC 862 has it. Datagrams go one by one, each
when the one before has come back.

Examples:
  echoprobe send tcp://192.0.2.1:7 < big.iso > /dev/null
  printf hello | echoprobe send unix:///run/echo.sock --expect upper")]
    Send(SendArgs),
    /// Send small messages at an interval and tell what became of each
    #[command(after_help = "\
Each message has a number and bytes that only it has. An answer is compared byte by byte, and a
datagram also by where it comes from. Late is what comes after the timeout; what comes twice is a
duplicate; what comes behind a later one is reordered.

Examples:
  echoprobe ping tcp://192.0.2.1:7 -c 10
  echoprobe ping udp://192.0.2.1:7 -i 10ms -s 1400 --deadline 1m --json")]
    Ping(PingArgs),
    /// Send as much as it takes, or so much each second, and measure
    #[command(after_help = "\
Without --rate each connection sends the next message when one has come back (closed loop): how much
can it take? With --rate messages are due at their times, whatever the service does, and the time
counts from when a message was due (open loop): how long do users wait? Several --rate are measured
one after the other and make a curve.

Every byte that comes back is compared.

Examples:
  echoprobe load tcp://127.0.0.1:7007 -c 50
  echoprobe load udp://127.0.0.1:7007 -c 8 --rate 10000 -t 30s --svg latency.svg
  echoprobe load tcp://127.0.0.1:7007 --rate 10k,20k,40k,80k --json")]
    Load(LoadArgs),
    /// Check what a service does at the edges, and say why each matters
    #[command(after_help = "\
Each check passes, fails, or is not applicable. Why it matters is told of those that fail, and with
--json of all. There are up to nine connections at once, and a service that takes whatever it gets has
to hold up to 32 MiB for a moment.

Examples:
  echoprobe check tcp://192.0.2.1:7
  echoprobe check udp://192.0.2.1:7 --json")]
    Check(CheckArgs),
    /// Find the largest datagram that passes each way unfragmented
    #[command(after_help = "Example:\n  echoprobe mtu udp://192.0.2.1:7")]
    Mtu(MtuArgs),
    /// Ping from many source ports, to find the one bad path of several
    #[command(after_help = "\
Routers choose among parallel links by a hash that the source port goes into. If one link is bad, some
ports lose and all others don't.

Examples:
  echoprobe ports udp://192.0.2.1:7
  echoprobe ports udp://192.0.2.1:7 -n 64 --first 40000 -c 100 -i 10ms")]
    Ports(PortsArgs),
}

/// What is expected to come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Expect {
    /// The same bytes.
    #[default]
    Echo,
    /// The same with a to z as A to Z.
    Upper,
    /// Whatever it is.
    Any,
}

/// Of `send`.
#[derive(Clone, Debug, Args)]
pub struct SendArgs {
    /// Whom to send to
    pub url: Target,
    /// What is to come back: echo, upper or any
    #[arg(
        long,
        value_enum,
        value_name = "WHAT",
        default_value = "echo",
        hide_possible_values = true
    )]
    pub expect: Expect,
    /// How much of the input goes into each datagram
    #[arg(short, long, value_name = "BYTES", default_value = "1200", value_parser = parse_datagram_size)]
    pub size: usize,
    /// Give up when so long nothing comes back [default: 10s; 1s for each datagram]
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Option<Duration>,
}

/// Of `ping`.
#[derive(Clone, Debug, Args)]
pub struct PingArgs {
    /// Whom to ping
    pub url: Target,
    /// How many messages to send [default: until interrupted]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// How messages are sent and judged.
    #[command(flatten)]
    pub pace: Pace,
    /// End after so long, whatever is still to come
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub deadline: Option<Duration>,
    /// Only print the summary
    #[arg(short, long)]
    pub quiet: bool,
}

/// How messages are sent and judged: of `ping` and `ports`.
#[derive(Clone, Debug, Args)]
pub struct Pace {
    /// The time from one message to the next
    #[arg(short, long, value_name = "TIME", default_value = "100ms", value_parser = humantime::parse_duration)]
    pub interval: Duration,
    /// The size of each: 0 to 65527 for datagrams (65507 over IPv4), from 1 on for streams
    #[arg(short, long, value_name = "BYTES", default_value = "64", value_parser = parse_message_size)]
    pub size: usize,
    /// What comes later than this is late
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// What is to come back: echo or upper
    #[arg(
        long,
        value_enum,
        value_name = "WHAT",
        default_value = "echo",
        hide_possible_values = true
    )]
    pub expect: Expect,
}

/// Of `load`.
#[derive(Clone, Debug, Args)]
pub struct LoadArgs {
    /// Whom to load
    pub url: Target,
    /// How many connections, or flows of datagrams
    #[arg(short, long, value_name = "N", default_value = "10", value_parser = clap::value_parser!(u32).range(1..))]
    pub connections: u32,
    /// How many messages may be on the way on each, without --rate
    #[arg(short, long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub depth: u32,
    /// The size of each message, or a range of sizes: 64, 1KiB, 64-1400
    #[arg(short, long, value_name = "BYTES", default_value = "64", value_parser = parse_sizes)]
    pub size: Sizes,
    /// How long to measure, for each rate
    #[arg(short = 't', long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub time: Duration,
    /// How long to go before that, uncounted
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    pub warm_up: Duration,
    /// Messages a second in all, or several to be measured in turn: 5000, 10k,20k,40k
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = parse_rate)]
    pub rate: Vec<u64>,
    /// How many threads
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,
    /// The kernel's interface: auto, io_uring or epoll
    #[arg(
        long,
        value_enum,
        value_name = "DRIVER",
        default_value_t,
        hide_possible_values = true
    )]
    pub driver: DriverChoice,
    /// A datagram that has not come back after so long is lost
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// Draw the result into this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Write all latencies into this file, for HdrHistogram's tools
    #[arg(long, value_name = "FILE")]
    pub hdr: Option<PathBuf>,
}

/// The sizes of messages: all from the least to the most, alike often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Bytes.
    pub least: usize,
    /// Bytes.
    pub most: usize,
}

/// The kernel's interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DriverChoice {
    /// io_uring where the kernel allows it.
    #[default]
    Auto,
    /// Only that.
    #[value(name = "io_uring")]
    IoUring,
    /// Only that.
    Epoll,
}

impl DriverChoice {
    /// As it is typed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        }
    }
}

/// Of `check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// Whom to check
    pub url: Target,
    /// How long to wait for what should come
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// What is to come back: echo or upper
    #[arg(
        long,
        value_enum,
        value_name = "WHAT",
        default_value = "echo",
        hide_possible_values = true
    )]
    pub expect: Expect,
}

/// Of `mtu`.
#[derive(Clone, Debug, Args)]
pub struct MtuArgs {
    /// Whom to ask: a UDP service
    pub url: Target,
    /// How long to wait for each answer
    #[arg(long, value_name = "TIME", default_value = "500ms", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// How often to try a size before it is taken for too large
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u32).range(1..))]
    pub tries: u32,
}

/// Of `ports`.
#[derive(Clone, Debug, Args)]
pub struct PortsArgs {
    /// Whom to ping
    pub url: Target,
    /// From how many ports
    #[arg(short = 'n', long, value_name = "N", default_value = "16", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub ports: u16,
    /// The first of them, the others follow [default: any that are free]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub first: Option<u16>,
    /// How many messages from each
    #[arg(short, long, value_name = "N", default_value = "10", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: u64,
    /// How messages are sent and judged.
    #[command(flatten)]
    pub pace: Pace,
}

/// The largest payload of a datagram, in bytes: over IPv6, 65,535 less 8 of UDP's header.
pub const DATAGRAM_BYTES_MAX: usize = 65_527;

/// The largest over IPv4, whose packet counts its own header of 20 bytes as well.
pub const DATAGRAM_BYTES_MAX_IPV4: usize = 65_507;

/// The largest message, of streams.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

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

fn parse_sizes(text: &str) -> Result<Sizes, String> {
    let (least, most) = text.split_once('-').unwrap_or((text, text));
    let (least, most) = (parse_message_size(least)?, parse_message_size(most)?);
    match () {
        () if least > most => Err(format!("the smaller one comes first: write {most}-{least}")),
        () if least == 0 => Err("out of range: write 1 or more".into()),
        () => Ok(Sizes { least, most }),
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
    if let Ok(address) = text.trim_matches(['[', ']']).parse() {
        let address = Some(address);
        return Ok(Source { address, port: 0 });
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        let (address, port) = (Some(address.ip()), address.port());
        return Ok(Source { address, port });
    }
    if let Some(Ok(port)) = text.strip_prefix(':').map(str::parse) {
        return Ok(Source {
            address: None,
            port,
        });
    }
    Err("neither an address of ours nor a port: write 192.0.2.1, :5000 or 192.0.2.1:5000".into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
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
            for option in command.get_arguments().filter_map(clap::Arg::get_long) {
                let is_it = |word: &str| word == format!("-{option}");
                let found = section.split_whitespace().any(is_it);
                assert!(found, "{name} --{option} is not in docs/man/echoprobe.1");
            }
        }
    }

    #[test]
    fn a_url_alone_is_a_conversation_and_a_command_takes_its_own() {
        let talk = parse("echoprobe --json tcp://a:1 --timeout 3s").expect("understood");
        assert!(talk.command.is_none() && talk.url.is_some() && talk.options.json);
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
            "echoprobe ping tcp://a:1 -c 0",
            "echoprobe ping tcp://a:1 -4 -6",
            "echoprobe ping tcp://a:1 --dscp 64",
            "echoprobe load tcp://a:1 --rate 0",
            "echoprobe load tcp://a:1 -s 9-3",
            "echoprobe send udp://a:1 -s 65528",
            "echoprobe ping tcp://a:1 --proxy-source 192.0.2.1:1",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(
                error.exit_code(),
                i32::from(super::super::report::USAGE),
                "{line}"
            );
        }
    }

    #[test]
    fn rates_sizes_and_sources_are_read() {
        assert_eq!(
            ["5000", "20k", "1.5M"].map(|text| parse_rate(text).ok()),
            [Some(5000), Some(20_000), Some(1_500_000)]
        );
        assert_eq!(
            parse_sizes("64-1KiB"),
            Ok(Sizes {
                least: 64,
                most: 1024
            })
        );
        let source = |address: &str, port| {
            Ok(Source {
                address: address.parse().ok(),
                port,
            })
        };
        assert_eq!(parse_source("192.0.2.1"), source("192.0.2.1", 0));
        assert_eq!(parse_source(":5000"), source("", 5000));
        assert_eq!(parse_source("192.0.2.1:5000"), source("192.0.2.1", 5000));
        assert_eq!(parse_source("2001:db8::1"), source("2001:db8::1", 0));
        assert_eq!(
            parse_source("[2001:db8::1]:5000"),
            source("2001:db8::1", 5000)
        );
        assert!(parse_source("eth0").is_err());
    }
}
