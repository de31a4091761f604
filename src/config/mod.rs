//! What the operator wants: a TOML text becomes a [`Config`] that can't be invalid, or a list of
//! everything that is wrong with it.
//!
//! Knows texts and values. Never opens a file, resolves a name or reads a clock: the daemon
//! brings the texts as [`Source`]s and carries out what [`plan()`] says. Read on in [`keys`] for
//! the table of all keys, then along the way of a text: `file` (as typed, with `syntax` for what is
//! not TOML) → `resolve` (as meant, with `value`, `lists` and `address` for values, `clashes` for
//! addresses, `findings` for what is wrong) → `render` (shown again) and [`mod@plan`].

#![forbid(unsafe_code)]

mod address;
mod clashes;
mod file;
mod findings;
pub(crate) mod key;
pub(crate) mod keys;
mod lists;
mod locate;
pub(crate) mod plan;
mod render;
mod resolve;
mod syntax;
mod table;
mod typed;
mod value;
mod words;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use log::LevelFilter;

use crate::echo;
use crate::policy::{self, limits};

pub(crate) use crate::protocol::schema::{Change, ChangeAction, Diagnostic};
pub(crate) use address::parse_path;
use file::File;
pub(crate) use file::is_listener_name;
pub(crate) use key::{Effect, Key};
pub(crate) use keys::KEYS;
pub(crate) use plan::{Mood, Plan, plan};
pub(crate) use render::render;
pub(crate) use table::Section;
pub(crate) use words::quote;

/// The file that is read where none is named; its drop-ins are in `echod.d` beside it.
pub(crate) const DEFAULT_FILE: &str = "/etc/echod/echod.toml";

/// What is served without any file: loopback, a port that needs no privilege, TCP and UDP.
pub(crate) const EMBEDDED: &str = r#"# Built into echod, for when there is no configuration file.
[listener.tcp]
protocol = "tcp"
address = "localhost:7007"

[listener.udp]
protocol = "udp"
address = "localhost:7007"
"#;

/// Everything that was configured, checked as a whole. The `Default` of it and of its parts is
/// empty; what holds where nothing is written is in the table of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `[daemon]`: threads, driver, and the end of the service.
    pub daemon: Daemon,
    /// `[control]`: the control socket.
    pub control: Control,
    /// `[log]`: where the log goes.
    pub log: Log,
    /// `[listener.NAME]`, by name; there is at least one.
    pub listeners: BTreeMap<String, Listener>,
}

/// `[daemon]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Daemon {
    /// Threads that serve, 1 to 256; `None` is as many as this process may use CPUs.
    pub workers: Option<u16>,
    /// The workers' way to the kernel.
    pub driver: DriverChoice,
    /// How long established connections may continue after SIGTERM.
    pub drain_timeout: Duration,
    /// How long to keep serving as not ready before that, for load balancers.
    pub shutdown_delay: Duration,
    /// How long a worker spins before it sleeps, at most a second; `None` is not at all.
    pub busy_poll: Option<Duration>,
    /// User to switch to once everything is bound; `None` is no other.
    pub user: Option<String>,
    /// Group to switch to; `None` is the user's own. Never without a user.
    pub group: Option<String>,
}

/// The workers' way to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DriverChoice {
    /// `io_uring(7)` where the kernel allows it, else `epoll(7)`.
    #[default]
    Auto,
    /// `io_uring(7)`, or no start.
    IoUring,
    /// `epoll(7)`.
    Epoll,
}

/// `[control]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Where the control socket is; `None` is the runtime directory.
    pub socket: Option<PathBuf>,
    /// Permissions of the control socket's file.
    pub mode: u32,
    /// The group that may connect; `None` is the daemon's own.
    pub group: Option<String>,
    /// Users and `@group`s that may change listeners and peers; sorted, without duplicates, as all
    /// such lists.
    pub operators: Vec<String>,
    /// Users and `@group`s that may also change the daemon.
    pub admins: Vec<String>,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Where the log goes.
    pub target: LogTarget,
    /// The least important messages to log.
    pub level: LevelFilter,
    /// The name of a syslog facility.
    pub facility: String,
    /// One info line for each connection that is closed.
    pub connections: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            target: LogTarget::default(),
            level: LevelFilter::Off,
            facility: String::new(),
            connections: false,
        }
    }
}

/// Where the log goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogTarget {
    /// stderr under the journal, else syslog where there is one, else stderr.
    #[default]
    Auto,
    /// The system log.
    Syslog,
    /// Standard error.
    Stderr,
}

/// `[listener.NAME]`. What has no meaning for the protocol is at its default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listener {
    /// The name of its table.
    pub name: String,
    /// What it speaks.
    pub protocol: Protocol,
    /// Where it listens; at least one, none of them used twice in the whole configuration.
    pub addresses: Vec<Address>,
    /// What comes back.
    pub reply: echo::Reply,
    /// Whether the first answer is also the last.
    pub one_shot: bool,
    /// Sockets per address; `None` is one per worker.
    pub sockets: Option<u16>,
    /// Clients that may wait to be accepted, per socket.
    pub backlog: u32,
    /// Whether that was written; where it was not, a socket that the service manager passes keeps
    /// its own.
    pub backlog_is_set: bool,
    /// Connections at one time.
    pub max_connections: u32,
    /// What happens to the next connection.
    pub when_full: limits::WhenFull,
    /// Connections of one source; `None` is any number.
    pub max_per_source: Option<u32>,
    /// How long a connection may be idle, open or stalled.
    pub timeouts: limits::Timeouts,
    /// Whether small answers go out at once.
    pub no_delay: bool,
    /// When to probe a silent peer, in whole seconds; `None` is never.
    pub keepalive: Option<Duration>,
    /// The kernel's receive buffer in bytes; `None` leaves it to the kernel, or on UDP to us.
    pub receive_buffer: Option<u32>,
    /// The kernel's send buffer in bytes; `None` leaves it to the kernel, or on Unix datagrams to us.
    pub send_buffer: Option<u32>,
    /// Networks that may connect or send; both lists are sorted, without duplicates.
    pub access: policy::Access,
    /// Source ports whose datagrams are not answered.
    pub source_ports: policy::RefusedPorts,
    /// Permissions of a Unix socket's file.
    pub mode: u32,
}

/// What a listener speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP over IPv4 or IPv6.
    #[default]
    Tcp,
    /// UDP over IPv4 or IPv6.
    Udp,
    /// A connection within this machine.
    UnixStream,
    /// A datagram within this machine.
    UnixDatagram,
}

/// One place to listen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Address {
    /// An IP address and a port; port 0 is any.
    Inet {
        /// The address.
        address: SocketAddr,
        /// Whether a kernel without this address family is no error: the IPv6 half of `*` and
        /// `localhost`.
        optional: bool,
    },
    /// The path of a socket file, at most 107 bytes.
    Unix(PathBuf),
}

/// A text, and the name that messages give it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// What messages call it: the path that was read, or the argument that says it.
    pub name: String,
    /// The TOML text.
    pub text: String,
}

impl Source {
    /// Whether it is an argument, as in `--listen URL`: its text was made of it, and the operator
    /// knows no lines of that.
    fn is_argument(&self) -> bool {
        self.name.starts_with("--")
    }
}

/// A valid configuration, and what is odd about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What is allowed but hardly meant.
    pub warnings: Vec<Diagnostic>,
    /// What was typed, for [`Loaded::locate`].
    file: File,
}

/// Reads the sources in order: a later one overrides an earlier one key by key, and a list is
/// replaced as a whole.
///
/// # Errors
///
/// What is wrong in all sources, in order of place: at most 100 errors, then how many more there are.
pub fn load(sources: &[Source]) -> Result<Loaded, Vec<Diagnostic>> {
    resolve::load(sources)
}

/// What [`load`] would return if the values that it refuses were not there.
#[must_use]
pub(crate) fn load_valid(sources: &[Source]) -> Loaded {
    resolve::judge(sources).0
}

/// Whether a file of this name is a drop-in: what the shell's `*.toml` matches, not the hidden files
/// that editors leave beside one.
#[must_use]
pub(crate) fn is_drop_in(name: &OsStr) -> bool {
    let bytes = name.as_encoded_bytes();
    bytes.ends_with(b".toml") && !bytes.starts_with(b".")
}

/// What `[control] socket` says, also where all else is wrong.
#[must_use]
pub(crate) fn control_socket(sources: &[Source]) -> Option<PathBuf> {
    resolve::control_socket(sources)
}

impl Config {
    /// The configuration of the daemon alone.
    #[must_use]
    pub(crate) fn without_listeners(self) -> Self {
        Self {
            listeners: BTreeMap::new(),
            ..self
        }
    }

    /// Takes over what takes effect at the next start only, so that it stays as it runs and the next
    /// reload says so again.
    pub fn keep_restart_keys_of(&mut self, running: &Self) {
        for key in KEYS.iter().filter(|key| key.effect == Effect::Restart) {
            if let key::Field::Config(lens) = &key.field {
                (lens.copy)(self, running);
            }
        }
    }
}

impl From<Config> for Loaded {
    /// A configuration that was not read from a text.
    fn from(config: Config) -> Self {
        Self {
            config,
            warnings: Vec::new(),
            file: File::default(),
        }
    }
}

#[cfg(test)]
impl Config {
    /// What [`EMBEDDED`] says.
    #[must_use]
    pub fn embedded() -> Self {
        let source = Source {
            name: "built-in configuration".into(),
            text: EMBEDDED.into(),
        };
        load(&[source])
            .expect("the built-in configuration is valid")
            .config
    }
}

impl DriverChoice {
    /// Every choice, in the order in which messages list them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::IoUring, Self::Epoll];

    /// The choice's name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        }
    }
}

impl LogTarget {
    /// Every target, in the order in which messages list them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Syslog, Self::Stderr];

    /// The target's name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Syslog => "syslog",
            Self::Stderr => "stderr",
        }
    }
}

impl Protocol {
    /// Every protocol, in the order in which messages list them.
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Udp, Self::UnixStream, Self::UnixDatagram];

    /// The protocol's name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::UnixStream => "unix-stream",
            Self::UnixDatagram => "unix-datagram",
        }
    }

    /// Whether it has connections.
    #[must_use]
    pub fn is_stream(self) -> bool {
        matches!(self, Self::Tcp | Self::UnixStream)
    }

    /// Whether its addresses are paths.
    #[must_use]
    pub fn is_unix(self) -> bool {
        matches!(self, Self::UnixStream | Self::UnixDatagram)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet { address, .. } => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests;
