//! THE table of configuration keys: one row for each, with all that is particular to it.
//!
//! A row has the key's name, default and effect at a reload, the protocols that it applies to, and
//! how its value is read, shown and copied. Parsing, rendering, the reload plan and the tests of
//! `etc/echod.toml` and of the manual page iterate over the rows. If you add a key: its row here, its
//! field in [`Config`] or [`Listener`], `etc/echod.toml` and the manual page; a test names what is
//! missing.

use std::path::PathBuf;
use std::sync::LazyLock;

use log::LevelFilter;

use super::findings::{Findings, Remarks};
use super::key::Effect::{self, Live, NewConnections, Rebind, Restart};
use super::key::{Field, Key, Lens};
use super::lists::{self, show_texts};
use super::table::Section::{self, Control, Daemon, Log};
use super::table::Table;
use super::typed::Typed;
use super::value::{self, show_mode, show_or};
use super::words::quote;
use super::{Config, DriverChoice, Listener, LogTarget, Protocol, address};
use crate::echo::Reply;
use crate::policy::limits::WhenFull;

/// The configuration, and each listener of it, where nothing is typed.
pub(super) static DEFAULTS: LazyLock<(Config, Listener)> = LazyLock::new(|| {
    let (mut config, mut listener) = <(Config, Listener)>::default();
    let (mut errors, mut warnings) = <(Findings, Findings)>::default();
    for key in KEYS.iter().filter(|key| !key.default.is_empty()) {
        let typed = Typed::of_table(key.default);
        let mut remarks = Remarks {
            errors: &mut errors,
            warnings: &mut warnings,
            table: &Table::Defaults,
            key: key.name,
        };
        match &key.field {
            Field::Config(lens) => (lens.set)(&mut config, &typed, &mut remarks),
            Field::Listener(lens) => (lens.set)(&mut listener, &typed, &mut remarks),
        }
    }
    debug_assert!(errors.is_empty(), "every default may be written");
    listener.backlog_is_set = false;
    (config, listener)
});

impl Section {
    /// The keys of this section, in the order in which they are shown.
    pub(crate) fn keys(self) -> impl Iterator<Item = &'static Key> {
        KEYS.iter().filter(move |key| key.section == self)
    }
}

const fn global(
    section: Section,
    name: &'static str,
    default: &'static str,
    effect: Effect,
    lens: Lens<Config>,
) -> Key {
    Key {
        section,
        name,
        default,
        effect,
        protocols: ANY,
        field: Field::Config(lens),
    }
}

const fn listener(
    name: &'static str,
    default: &'static str,
    effect: Effect,
    protocols: &'static [Protocol],
    lens: Lens<Listener>,
) -> Key {
    Key {
        section: Section::Listener,
        name,
        default,
        effect,
        protocols,
        field: Field::Listener(lens),
    }
}

/// The lens of a field with a value that `$parse` reads and `$show` writes.
macro_rules! lens {
    ($($field:ident).+, $parse:expr, $show:expr) => {
        Lens {
            set: |owner, typed, remarks| {
                if let Some(value) = remarks.accept(typed, ($parse)(typed)) {
                    owner.$($field).+ = value;
                }
            },
            show: |owner| Option::from(($show)(&owner.$($field).+)),
            copy: |to, from| to.$($field).+.clone_from(&from.$($field).+),
        }
    };
}

/// The lens of a field with a list that `$read` reads, item by item, and `$show` writes.
macro_rules! list {
    ($($field:ident).+, $read:expr, $show:expr) => {
        Lens {
            set: |owner, typed, remarks| owner.$($field).+ = ($read)(typed, remarks),
            show: |owner| Some(($show)(&owner.$($field).+)),
            copy: |to, from| to.$($field).+.clone_from(&from.$($field).+),
        }
    };
}

const ANY: &[Protocol] = &Protocol::ALL;
const STREAMS: &[Protocol] = &[Protocol::Tcp, Protocol::UnixStream];
const INTERNET: &[Protocol] = &[Protocol::Tcp, Protocol::Udp];
const UNIX: &[Protocol] = &[Protocol::UnixStream, Protocol::UnixDatagram];
const TCP: &[Protocol] = &[Protocol::Tcp];
const UDP: &[Protocol] = &[Protocol::Udp];

/// What is received on a Unix socket is charged to its sender, and a connection does not inherit the
/// buffers of the listening socket (unix(7)).
const OWN_SEND_BUFFER: &[Protocol] = &[Protocol::Tcp, Protocol::Udp, Protocol::UnixDatagram];

const BACKLOG_MAX: u32 = i32::MAX as u32;
const CONNECTIONS_MAX: u32 = 10_000_000;

/// Every key there is.
pub(crate) const KEYS: &[Key] = &[
    // Threads that serve; auto: the CPUs this process may use.
    global(
        Daemon,
        "workers",
        "\"auto\"",
        Restart,
        lens!(daemon.workers, value::count, |count: &Option<u16>| show_or(
            *count,
            "auto",
            |count| count.to_string()
        )),
    ),
    // Way to the kernel: io_uring, epoll, or auto: io_uring where the kernel allows it.
    global(
        Daemon,
        "driver",
        "\"auto\"",
        Restart,
        lens!(
            daemon.driver,
            |typed| value::choice(typed, &DriverChoice::ALL, DriverChoice::name),
            |driver: &DriverChoice| quote(driver.name())
        ),
    ),
    // How long established connections may continue after SIGTERM.
    global(
        Daemon,
        "drain-timeout",
        "\"30s\"",
        Live,
        lens!(daemon.drain_timeout, value::time, value::show_time),
    ),
    // How long to keep serving as not ready before that.
    global(
        Daemon,
        "shutdown-delay",
        "\"0s\"",
        Live,
        lens!(daemon.shutdown_delay, value::time, value::show_time),
    ),
    // How long a worker spins before it sleeps: less latency, for a CPU.
    global(
        Daemon,
        "busy-poll",
        "\"off\"",
        Restart,
        lens!(daemon.busy_poll, value::busy_poll, value::show_time_or_off),
    ),
    // User to switch to after binding, when started as root; empty: no other.
    global(
        Daemon,
        "user",
        "\"\"",
        Restart,
        lens!(
            daemon.user,
            |typed| value::account(typed, "user"),
            |user: &Option<String>| quote(user.as_deref().unwrap_or_default())
        ),
    ),
    // Group to switch to; empty: the user's own.
    global(
        Daemon,
        "group",
        "\"\"",
        Restart,
        lens!(
            daemon.group,
            |typed| value::account(typed, "group"),
            |group: &Option<String>| quote(group.as_deref().unwrap_or_default())
        ),
    ),
    // Path of the control socket; absent: in the runtime directory.
    global(
        Control,
        "socket",
        "",
        Restart,
        lens!(
            control.socket,
            address::parse_socket_path,
            |path: &Option<PathBuf>| path.as_ref().map(|path| quote(&path.to_string_lossy()))
        ),
    ),
    // Permissions of the control socket.
    global(
        Control,
        "mode",
        "\"0660\"",
        Restart,
        lens!(control.mode, value::mode, |mode: &u32| show_mode(*mode)),
    ),
    // Group of the control socket; absent: the daemon's own.
    global(
        Control,
        "group",
        "",
        Restart,
        lens!(control.group, value::group, |group: &Option<String>| group
            .as_deref()
            .map(quote)),
    ),
    // Users and groups that may change listeners and peers.
    global(
        Control,
        "operators",
        "[]",
        Live,
        list!(control.operators, lists::accounts, show_texts),
    ),
    // Users and groups that may also change the daemon itself.
    global(
        Control,
        "admins",
        "[]",
        Live,
        list!(control.admins, lists::accounts, show_texts),
    ),
    // Where the log goes: auto, syslog or stderr.
    global(
        Log,
        "target",
        "\"auto\"",
        Restart,
        lens!(
            log.target,
            |typed| value::choice(typed, &LogTarget::ALL, LogTarget::name),
            |target: &LogTarget| quote(target.name())
        ),
    ),
    // The least important messages to log.
    global(
        Log,
        "level",
        "\"info\"",
        Live,
        lens!(log.level, value::level, |level: &LevelFilter| quote(
            value::level_name(*level)
        )),
    ),
    // Syslog facility of the log.
    global(
        Log,
        "facility",
        "\"daemon\"",
        Restart,
        lens!(log.facility, value::facility, |facility: &String| quote(
            facility
        )),
    ),
    // One info line for each connection that is closed.
    global(
        Log,
        "connections",
        "false",
        Live,
        lens!(log.connections, value::flag, bool::to_string),
    ),
    // Tcp, udp, unix-stream or unix-datagram; required.
    listener(
        "protocol",
        "",
        Rebind,
        ANY,
        lens!(
            protocol,
            |typed| value::choice(typed, &Protocol::ALL, Protocol::name),
            |protocol: &Protocol| quote(protocol.name())
        ),
    ),
    // Where to listen: an address, a path, or a list; required.
    listener(
        "address",
        "",
        Rebind,
        ANY,
        Lens {
            set: |listener, typed, remarks| {
                listener.addresses = address::parse_all(listener.protocol, typed, remarks);
            },
            show: |listener| Some(address::show_all(&listener.addresses)),
            copy: |to, from| to.addresses.clone_from(&from.addresses),
        },
    ),
    // What comes back: echo, upper or discard.
    listener(
        "reply",
        "\"echo\"",
        NewConnections,
        ANY,
        lens!(
            reply,
            |typed| value::choice(typed, &Reply::ALL, Reply::name),
            |reply: &Reply| quote(reply.name())
        ),
    ),
    // Answer what the first read brings, then close.
    listener(
        "one-shot",
        "false",
        NewConnections,
        STREAMS,
        lens!(one_shot, value::flag, bool::to_string),
    ),
    // Sockets per address; auto: one per worker.
    listener(
        "sockets",
        "\"auto\"",
        Rebind,
        ANY,
        lens!(sockets, value::count, |count: &Option<u16>| show_or(
            *count,
            "auto",
            |count| count.to_string()
        )),
    ),
    // Connections that may wait to be accepted, of each socket.
    listener(
        "backlog",
        "1024",
        Live,
        STREAMS,
        Lens {
            set: |listener, typed, remarks| {
                let backlog = remarks.accept(typed, value::required_number(typed, BACKLOG_MAX));
                listener.backlog = backlog.unwrap_or(listener.backlog);
                listener.backlog_is_set = true;
            },
            show: |listener| Some(listener.backlog.to_string()),
            copy: |to, from| {
                to.backlog = from.backlog;
                to.backlog_is_set = from.backlog_is_set;
            },
        },
    ),
    // Connections at one time.
    listener(
        "max-connections",
        "10000",
        Live,
        STREAMS,
        lens!(
            max_connections,
            |typed| value::required_number(typed, CONNECTIONS_MAX),
            u32::to_string
        ),
    ),
    // At max-connections: wait in the backlog, or reset.
    listener(
        "when-full",
        "\"wait\"",
        Live,
        STREAMS,
        lens!(
            when_full,
            |typed| value::choice(typed, &WhenFull::ALL, WhenFull::name),
            |when_full: &WhenFull| quote(when_full.name())
        ),
    ),
    // Connections of one IPv4 address or IPv6 /64.
    listener(
        "max-per-source",
        "\"off\"",
        Live,
        TCP,
        lens!(
            max_per_source,
            |typed| value::number(typed, 1, CONNECTIONS_MAX, Some("off")),
            |count: &Option<u32>| show_or(*count, "off", |count| count.to_string())
        ),
    ),
    // Close a connection that has sent nothing for this long.
    listener(
        "idle-timeout",
        "\"10m\"",
        Live,
        STREAMS,
        lens!(timeouts.idle, value::timeout, value::show_time_or_off),
    ),
    // Close a connection after this long.
    listener(
        "max-lifetime",
        "\"off\"",
        Live,
        STREAMS,
        lens!(timeouts.lifetime, value::timeout, value::show_time_or_off),
    ),
    // Reset a peer that has read nothing for this long.
    listener(
        "write-stall-timeout",
        "\"30s\"",
        Live,
        STREAMS,
        lens!(
            timeouts.write_stall,
            value::timeout,
            value::show_time_or_off
        ),
    ),
    // Send small answers at once (TCP_NODELAY).
    listener(
        "no-delay",
        "true",
        NewConnections,
        TCP,
        lens!(no_delay, value::flag, bool::to_string),
    ),
    // Probe a silent peer after this long.
    listener(
        "keepalive",
        "\"60s\"",
        NewConnections,
        TCP,
        lens!(keepalive, value::keepalive, value::show_time_or_off),
    ),
    // Kernel's receive buffer (SO_RCVBUF).
    listener(
        "receive-buffer",
        "\"auto\"",
        NewConnections,
        INTERNET,
        lens!(receive_buffer, value::buffer, value::show_size_or_auto),
    ),
    // Kernel's send buffer (SO_SNDBUF).
    listener(
        "send-buffer",
        "\"auto\"",
        NewConnections,
        OWN_SEND_BUFFER,
        lens!(send_buffer, value::buffer, value::show_size_or_auto),
    ),
    // Networks that may connect or send; empty: all.
    listener(
        "allow",
        "[]",
        Live,
        INTERNET,
        list!(access.allow, lists::networks, show_texts),
    ),
    // Networks that may not; the most specific entry decides.
    listener(
        "deny",
        "[]",
        Live,
        INTERNET,
        list!(access.deny, lists::networks, show_texts),
    ),
    // Source ports that are not answered; default: those of services and of this daemon, which
    // could loop.
    listener(
        "refuse-source-ports",
        "\"default\"",
        Live,
        UDP,
        list!(source_ports, lists::source_ports, lists::show_source_ports),
    ),
    // Permissions of a Unix socket's file.
    listener(
        "mode",
        "\"0660\"",
        Live,
        UNIX,
        lens!(mode, value::mode, |mode: &u32| show_mode(*mode)),
    ),
];
