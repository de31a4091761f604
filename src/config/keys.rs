//! THE table of configuration keys: name, default, effect at a reload, and a line for people.
//!
//! Everything that lists keys is made from it or tested against it: parsing, rendering, the
//! reload plan, `etc/echod.toml` and the manual page. If you add a key, also add its arm to
//! `resolve` (how it is read) and to `render` (how it is shown); a test names what is missing.

use self::Effect::{Live, NewConnections, Rebind, Restart};
use super::Protocol;

/// One key of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The table it belongs to.
    pub section: Section,
    /// Its name, in kebab-case.
    pub name: &'static str,
    /// Its default as written in TOML; empty where the default is absence.
    pub default: &'static str,
    /// What a reload does with a new value.
    pub effect: Effect,
    /// What it is for, in a line.
    pub doc: &'static str,
}

/// The tables of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// `[daemon]`
    Daemon,
    /// `[control]`
    Control,
    /// `[log]`
    Log,
    /// `[listener.NAME]`, and `[defaults]` for all of them.
    Listener,
}

/// What a reload does with a new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It holds at once, for established connections too.
    Live,
    /// It holds for connections that come from now on.
    NewConnections,
    /// New sockets are bound; established connections stay.
    Rebind,
    /// Only a restart takes it up.
    Restart,
}

impl Section {
    /// The section's name as a table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Daemon => "daemon",
            Self::Control => "control",
            Self::Log => "log",
            Self::Listener => "listener",
        }
    }

    /// The keys of this section, in the order in which they are shown.
    pub fn keys(self) -> impl Iterator<Item = &'static Key> {
        KEYS.iter().filter(move |key| key.section == self)
    }
}

impl Effect {
    /// The effect in words, as plans and manuals say it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::NewConnections => "new connections",
            Self::Rebind => "re-bind",
            Self::Restart => "restart",
        }
    }
}

const fn daemon(
    name: &'static str,
    default: &'static str,
    effect: Effect,
    doc: &'static str,
) -> Key {
    Key {
        section: Section::Daemon,
        name,
        default,
        effect,
        doc,
    }
}

const fn control(
    name: &'static str,
    default: &'static str,
    effect: Effect,
    doc: &'static str,
) -> Key {
    Key {
        section: Section::Control,
        name,
        default,
        effect,
        doc,
    }
}

const fn log(name: &'static str, default: &'static str, effect: Effect, doc: &'static str) -> Key {
    Key {
        section: Section::Log,
        name,
        default,
        effect,
        doc,
    }
}

const fn listener(
    name: &'static str,
    default: &'static str,
    effect: Effect,
    doc: &'static str,
) -> Key {
    Key {
        section: Section::Listener,
        name,
        default,
        effect,
        doc,
    }
}

/// Every key there is.
pub const KEYS: &[Key] = &[
    daemon(
        "workers",
        "\"auto\"",
        Restart,
        "threads that serve; auto: the CPUs this process may use",
    ),
    daemon(
        "driver",
        "\"auto\"",
        Restart,
        "way to the kernel: io_uring, epoll, or auto: io_uring where the kernel allows it",
    ),
    daemon(
        "drain-timeout",
        "\"30s\"",
        Live,
        "how long connections may go on after SIGTERM",
    ),
    daemon(
        "shutdown-delay",
        "\"0s\"",
        Live,
        "how long to serve on as not ready before draining",
    ),
    daemon(
        "busy-poll",
        "\"off\"",
        Restart,
        "how long a worker spins before it sleeps: less latency, for a CPU",
    ),
    daemon(
        "user",
        "\"\"",
        Restart,
        "whom to become once everything is bound, when started as root; empty: nobody else",
    ),
    daemon(
        "group",
        "\"\"",
        Restart,
        "with which group; empty: the user's own",
    ),
    control(
        "socket",
        "",
        Restart,
        "path of the control socket; absent: in the runtime directory",
    ),
    control(
        "mode",
        "\"0660\"",
        Restart,
        "permissions of the control socket",
    ),
    control(
        "group",
        "",
        Restart,
        "group of the control socket; absent: the daemon's own",
    ),
    log(
        "target",
        "\"auto\"",
        Restart,
        "where the log goes: auto, syslog or stderr",
    ),
    log(
        "level",
        "\"info\"",
        Live,
        "the least important messages to log",
    ),
    log(
        "facility",
        "\"daemon\"",
        Restart,
        "syslog facility of the log",
    ),
    listener(
        "protocol",
        "",
        Rebind,
        "tcp, udp, unix-stream or unix-datagram; required",
    ),
    listener(
        "address",
        "",
        Rebind,
        "where to listen: an address, a path, or a list; required",
    ),
    listener(
        "reply",
        "\"echo\"",
        NewConnections,
        "what comes back: echo, upper or discard",
    ),
    listener(
        "one-shot",
        "false",
        NewConnections,
        "answer what the first read brings, then close",
    ),
    listener(
        "sockets",
        "\"auto\"",
        Rebind,
        "sockets per address; auto: one per worker",
    ),
    listener(
        "backlog",
        "1024",
        Live,
        "clients that may wait to be accepted, per socket",
    ),
    listener("max-connections", "10000", Live, "connections at one time"),
    listener(
        "when-full",
        "\"wait\"",
        Live,
        "at max-connections: wait in the backlog, or reset",
    ),
    listener(
        "max-per-source",
        "\"off\"",
        Live,
        "connections of one IPv4 address or IPv6 /64",
    ),
    listener(
        "idle-timeout",
        "\"10m\"",
        Live,
        "close a connection that sends nothing for so long",
    ),
    listener(
        "max-lifetime",
        "\"off\"",
        Live,
        "close a connection that is so old",
    ),
    listener(
        "write-stall-timeout",
        "\"30s\"",
        Live,
        "reset a peer that reads nothing for so long",
    ),
    listener(
        "no-delay",
        "true",
        NewConnections,
        "send small answers at once (TCP_NODELAY)",
    ),
    listener(
        "keepalive",
        "\"60s\"",
        NewConnections,
        "probe a silent peer after so long",
    ),
    listener(
        "receive-buffer",
        "\"auto\"",
        NewConnections,
        "kernel's receive buffer (SO_RCVBUF)",
    ),
    listener(
        "send-buffer",
        "\"auto\"",
        NewConnections,
        "kernel's send buffer (SO_SNDBUF)",
    ),
    listener("allow", "[]", Live, "networks that may come; empty: all"),
    listener(
        "deny",
        "[]",
        Live,
        "networks that may not come; the most specific entry wins",
    ),
    listener(
        "refuse-source-ports",
        "\"default\"",
        Live,
        "source ports that are not answered; default: those of services and of this daemon, so that no loop begins",
    ),
    listener(
        "mode",
        "\"0660\"",
        Live,
        "permissions of a Unix socket's file",
    ),
];

/// Keys and tables that are promised for a later version: section or table, and name.
pub(super) const LATER: &[(&str, &str)] = &[
    ("control", "operators"),
    ("control", "admins"),
    ("", "metrics"),
    ("listener", "proxy-protocol"),
    ("listener", "proxy-from"),
    ("listener", "rate"),
];

/// Whether a listener key does anything for this protocol.
#[must_use]
pub fn has_meaning(protocol: Protocol, name: &str) -> bool {
    match name {
        "backlog"
        | "max-connections"
        | "when-full"
        | "one-shot"
        | "idle-timeout"
        | "max-lifetime"
        | "write-stall-timeout" => protocol.is_stream(),
        "max-per-source" | "no-delay" | "keepalive" => protocol == Protocol::Tcp,
        "allow" | "deny" => !protocol.is_unix(),
        // Nobody connects from a source that is forged, and a Unix socket has no port.
        "refuse-source-ports" => protocol == Protocol::Udp,
        // What is received on a Unix socket is charged to its sender, and a connection does not
        // take the listening socket's buffers over (unix(7)).
        "receive-buffer" => !protocol.is_unix(),
        "send-buffer" => protocol != Protocol::UnixStream,
        "mode" => protocol.is_unix(),
        _ => true,
    }
}
