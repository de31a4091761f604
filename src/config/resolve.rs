//! From the configuration as typed to the one that is meant, or all that is wrong with it.
//!
//! Every value that was typed is judged where it stands, also one that a later source overrides;
//! what is said about a value begins with the operator's own words.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use log::LevelFilter;

use super::address::{self, Clash};
use super::file::{self, Entries, File, Findings, Place, Table, Typed, Value};
use super::keys::{Section, has_meaning};
use super::render::{level_name, when_full_name};
use super::{
    Address, Config, Control, Daemon, Diagnostic, DriverChoice, Listener, Loaded, Log, LogTarget,
    Protocol, Source, value,
};
use crate::echo;
use crate::policy::limits::{Timeouts, WhenFull};
use crate::policy::{Access, RefusedPorts, SourcePorts};

/// The names of syslog(3)'s facilities.
const FACILITIES: [&str; 20] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv",
    "ftp", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];

const LEVELS: [LevelFilter; 6] = [
    LevelFilter::Off,
    LevelFilter::Error,
    LevelFilter::Warn,
    LevelFilter::Info,
    LevelFilter::Debug,
    LevelFilter::Trace,
];

/// The least timeout: more than nothing.
const NONZERO: Duration = Duration::from_nanos(1);

/// The kernel takes 1 to 32767 seconds: tcp(7), `TCP_KEEPIDLE`.
const KEEPALIVE_MAX: Duration = Duration::from_secs(32_767);

/// Whoever is silent for so long does not wait for microseconds.
const BUSY_POLL_MAX: Duration = Duration::from_secs(1);

/// The way of [`super::load`].
pub(super) fn load(sources: &[Source]) -> Result<Loaded, Vec<Diagnostic>> {
    let mut resolver = Resolver::default();
    let file = file::read(sources, &mut resolver.errors);
    let config = resolver.config(&file, sources);
    if resolver.errors.0.is_empty() {
        Ok(Loaded {
            config,
            warnings: resolver.warnings.diagnostics(sources),
        })
    } else {
        Err(resolver.errors.diagnostics(sources))
    }
}

/// The defaults as a text like any other, from the table of keys.
pub(super) fn default_text() -> String {
    let mut text = String::new();
    for section in [
        Section::Daemon,
        Section::Control,
        Section::Log,
        Section::Listener,
    ] {
        let name = if section == Section::Listener {
            "defaults"
        } else {
            section.name()
        };
        text += &format!("[{name}]\n");
        for key in section.keys().filter(|key| !key.default.is_empty()) {
            text += &format!("{} = {}\n", key.name, key.default);
        }
    }
    text
}

#[derive(Default)]
struct Resolver {
    errors: Findings,
    warnings: Findings,
    taken: Vec<Taken>,
}

/// An address in use, as typed.
struct Taken {
    place: Place,
    quoted: String,
    owner: Owner,
    addresses: Vec<Address>,
}

#[derive(PartialEq, Eq)]
enum Owner {
    Control,
    Listener(String, Protocol),
}

impl Owner {
    fn protocol(&self) -> Protocol {
        match self {
            Self::Control => Protocol::UnixStream,
            Self::Listener(_, protocol) => *protocol,
        }
    }
}

impl Resolver {
    fn config(&mut self, file: &File, sources: &[Source]) -> Config {
        let (mut config, base) = defaults();
        let none = Entries::new();
        let entries = |table: &Table| file.tables.get(table).unwrap_or(&none);

        self.each(&Table::Daemon, entries(&Table::Daemon), |key, typed| {
            set_daemon(&mut config.daemon, key, typed)
        });
        if config.daemon.group.is_some()
            && config.daemon.user.is_none()
            && let Some(typed) = entries(&Table::Daemon)
                .get("group")
                .and_then(|typed| typed.last())
        {
            let message = "goes with a user only: write user too, or leave it empty";
            self.refuse(&Table::Daemon, "group", typed, message);
        }
        self.each(&Table::Control, entries(&Table::Control), |key, typed| {
            set_control(&mut config.control, key, typed)
        });
        self.each(&Table::Log, entries(&Table::Log), |key, typed| {
            set_log(&mut config.log, key, typed)
        });
        if let Some(path) = &config.control.socket
            && let Some(typed) = entries(&Table::Control)
                .get("socket")
                .and_then(|typed| typed.last())
        {
            let addresses = vec![Address::Unix(path.clone())];
            self.taken.push(Taken {
                place: typed.place,
                quoted: typed.quoted.clone(),
                owner: Owner::Control,
                addresses,
            });
        }

        // The defaults are judged even where no listener makes use of them.
        self.settings(
            &Table::Defaults,
            entries(&Table::Defaults),
            &mut base.clone(),
        );
        for name in file.named.keys() {
            if let Some(listener) = self.listener(name, file, &base, entries(&Table::Defaults)) {
                config.listeners.insert(name.clone(), listener);
            }
        }
        self.clashes(sources);
        if file.named.is_empty() && !file.broken && !file.astray {
            let message = "nothing to serve: add a [listener.NAME] table".into();
            self.errors.add(Place::default(), None, message);
        }
        config
    }

    /// Brings each value to its setter, in reading order, and reports what that refuses.
    fn each(
        &mut self,
        table: &Table,
        entries: &Entries,
        mut set: impl FnMut(&str, &Typed) -> Result<(), String>,
    ) {
        for (key, all) in entries {
            for typed in all {
                if let Err(message) = set(key, typed) {
                    self.refuse(table, key, typed, &message);
                }
            }
        }
    }

    fn refuse(&mut self, table: &Table, key: &str, typed: &Typed, message: &str) {
        self.errors.add(
            typed.place,
            Some(table.path(key)),
            about(table, key, typed, message),
        );
    }

    fn warn(&mut self, table: &Table, key: &str, typed: &Typed, message: &str) {
        self.warnings.add(
            typed.place,
            Some(table.path(key)),
            about(table, key, typed, message),
        );
    }

    fn listener(
        &mut self,
        name: &str,
        file: &File,
        base: &Listener,
        defaults: &Entries,
    ) -> Option<Listener> {
        let table = Table::Listener(name.into());
        let entries = file.tables.get(&table)?;
        let missing = |key: &str| !entries.contains_key(key) && !file.broken;
        let place = file.named.get(name).copied().unwrap_or_default();
        if missing("protocol") {
            let message =
                "is missing: add protocol = \"tcp\", \"udp\", \"unix-stream\" or \"unix-datagram\"";
            let message = format!("{}: protocol: {message}", table.subject());
            self.errors
                .add(place, Some(table.path("protocol")), message);
        }
        if missing("address") {
            let message =
                "is missing: add e.g. address = \"localhost:7007\", or a path for a Unix socket";
            let message = format!("{}: address: {message}", table.subject());
            self.errors.add(place, Some(table.path("address")), message);
        }

        let Some(protocol) = self.protocol(&table, entries) else {
            self.settings(&table, entries, &mut base.clone());
            return None;
        };
        let mut listener = Listener {
            name: name.into(),
            protocol,
            ..base.clone()
        };
        let mut useful = defaults.clone();
        useful.retain(|key, _| has_meaning(protocol, key));
        self.settings(&Table::Defaults, &useful, &mut listener);
        if protocol.is_unix() && listener.sockets.is_some_and(|sockets| sockets > 1) {
            listener.sockets = None;
        }

        let mut own = entries.clone();
        own.retain(|key, all| {
            let useful = has_meaning(protocol, key);
            for typed in all.iter().filter(|_| !useful) {
                let message = format!("has no meaning for {}: remove it", protocol.name());
                self.refuse(&table, key, typed, &message);
            }
            useful
        });
        self.settings(&table, &own, &mut listener);
        listener.backlog_is_set = own.contains_key("backlog") || useful.contains_key("backlog");
        if let Some(typed) = entries.get("address").and_then(|all| all.last()) {
            listener.addresses = self.addresses(&table, typed, name, protocol);
        }
        self.judge_sockets(&table, entries, defaults, &listener);
        self.judge_source_ports(&table, entries, defaults, &listener);
        Some(listener)
    }

    fn protocol(&mut self, table: &Table, entries: &Entries) -> Option<Protocol> {
        let mut protocol = None;
        for typed in entries.get("protocol").into_iter().flatten() {
            match value::choice(typed, &Protocol::ALL, Protocol::name) {
                Ok(parsed) => protocol = Some(parsed),
                Err(message) => {
                    self.refuse(table, "protocol", typed, &message);
                    protocol = None;
                }
            }
        }
        protocol
    }

    /// All keys of a listener but its protocol and address.
    fn settings(&mut self, table: &Table, entries: &Entries, listener: &mut Listener) {
        self.each(table, entries, |key, typed| match key {
            "protocol" | "address" | "allow" | "deny" | "refuse-source-ports" => Ok(()),
            _ => set_listener(listener, key, typed),
        });
        for typed in entries.get("allow").into_iter().flatten() {
            listener.access.allow = self.networks(table, "allow", typed);
        }
        for typed in entries.get("deny").into_iter().flatten() {
            listener.access.deny = self.networks(table, "deny", typed);
        }
        for typed in entries.get("refuse-source-ports").into_iter().flatten() {
            listener.source_ports = self.source_ports(table, "refuse-source-ports", typed);
        }
    }

    fn source_ports(&mut self, table: &Table, key: &str, typed: &Typed) -> RefusedPorts {
        const WORDS: &str = "write \"default\", \"none\" or a list, e.g. [7, 19, \"1024-2047\"]";
        let items = match &typed.value {
            Value::List(items) => items,
            Value::Text(text) if text == "default" => return RefusedPorts::Default,
            Value::Text(text) if text == "none" => return RefusedPorts::Listed(SourcePorts::none()),
            Value::Text(text) => {
                let message = match value::nearest(text, ["default", "none"]) {
                    Some(near) => format!("unknown: did you mean \"{near}\"?"),
                    None => format!("unknown: {WORDS}"),
                };
                self.refuse(table, key, typed, &message);
                return RefusedPorts::Listed(SourcePorts::none());
            }
            _ => {
                self.refuse(table, key, typed, &format!("not a list: {WORDS}"));
                return RefusedPorts::Listed(SourcePorts::none());
            }
        };
        let mut ports = Vec::new();
        for item in items {
            match value::ports(item) {
                Ok(range) => ports.push(range),
                Err(message) => self.refuse(table, key, item, &message),
            }
        }
        RefusedPorts::Listed(ports.into_iter().collect())
    }

    fn networks(&mut self, table: &Table, key: &str, typed: &Typed) -> Vec<IpNet> {
        let Value::List(items) = &typed.value else {
            self.refuse(
                table,
                key,
                typed,
                "not a list: write e.g. [\"192.0.2.0/24\", \"2001:db8::/32\"]",
            );
            return Vec::new();
        };
        let mut networks = Vec::new();
        for item in items {
            match network(item) {
                Ok(network) => {
                    let meant = network.trunc();
                    if meant != network {
                        let message =
                            format!("has bits beyond its prefix: it means \"{meant}\": write that");
                        self.warn(table, key, item, &message);
                    }
                    networks.push(meant);
                }
                Err(message) => self.refuse(table, key, item, &message),
            }
        }
        // The order has no meaning: the most specific entry wins.
        networks.sort();
        networks.dedup();
        networks
    }

    fn addresses(
        &mut self,
        table: &Table,
        typed: &Typed,
        name: &str,
        protocol: Protocol,
    ) -> Vec<Address> {
        let items = match &typed.value {
            Value::List(items) if items.is_empty() => {
                self.refuse(
                    table,
                    "address",
                    typed,
                    "an empty list: write at least one address",
                );
                return Vec::new();
            }
            Value::List(items) => items.as_slice(),
            _ => std::slice::from_ref(typed),
        };
        let example = if protocol.is_unix() {
            "\"/run/echod/echo.sock\""
        } else {
            "\"localhost:7007\""
        };
        let mut all = Vec::new();
        for item in items {
            match value::text(item, example).and_then(|text| address::parse(protocol, text)) {
                Ok(addresses) => {
                    all.extend(addresses.iter().cloned());
                    let owner = Owner::Listener(name.into(), protocol);
                    self.taken.push(Taken {
                        place: item.place,
                        quoted: item.quoted.clone(),
                        owner,
                        addresses,
                    });
                }
                Err(message) => self.refuse(table, "address", item, &message),
            }
        }
        all
    }

    /// A Unix socket has one queue; and one connection at a time wants no more than one.
    fn judge_sockets(
        &mut self,
        table: &Table,
        entries: &Entries,
        defaults: &Entries,
        listener: &Listener,
    ) {
        let Some(sockets) = listener.sockets.filter(|sockets| *sockets > 1) else {
            return;
        };
        if listener.protocol.is_unix() {
            if let Some(typed) = entries.get("sockets").and_then(|all| all.last()) {
                let message = format!("has no meaning for {}: remove it", listener.protocol.name());
                self.refuse(table, "sockets", typed, &message);
            }
        } else if listener.protocol.is_stream() && listener.max_connections == 1 {
            let typed = ["sockets", "max-connections"]
                .iter()
                .find_map(|key| entries.get(*key)?.last());
            let typed = typed.or_else(|| defaults.get("sockets")?.last());
            if let Some(typed) = typed {
                let message = format!(
                    "{}: sockets {sockets} with max-connections 1: clients wait in {sockets} queues and are not \
                     served in order: write sockets = 1",
                    table.subject()
                );
                self.warnings
                    .add(typed.place, Some(table.path("sockets")), message);
            }
        }
    }

    /// Whoever answers every port can be made to talk to another service for ever.
    fn judge_source_ports(
        &mut self,
        table: &Table,
        entries: &Entries,
        defaults: &Entries,
        listener: &Listener,
    ) {
        const KEY: &str = "refuse-source-ports";
        if listener.protocol != Protocol::Udp
            || listener.reply == echo::Reply::Discard
            || listener.source_ports != RefusedPorts::Listed(SourcePorts::none())
        {
            return;
        }
        let typed = entries.get(KEY).or_else(|| defaults.get(KEY));
        if let Some(typed) = typed.and_then(|all| all.last()) {
            let message = "one forged datagram can make it and another echo service answer each other for \
                           ever: write \"default\", or the ports of such services";
            self.warn(table, KEY, typed, message);
        }
    }

    /// Refuses each address that an earlier one leaves no room for.
    fn clashes(&mut self, sources: &[Source]) {
        let mut taken = std::mem::take(&mut self.taken);
        taken.sort_by_key(|taken| taken.place);
        for (index, late) in taken.iter().enumerate() {
            let clash = |early: &Taken| {
                let pairs = late
                    .addresses
                    .iter()
                    .flat_map(|one| early.addresses.iter().map(move |other| (one, other)));
                let clashes = pairs.filter_map(|(one, other)| {
                    address::clash(
                        (late.owner.protocol(), one),
                        (early.owner.protocol(), other),
                    )
                });
                clashes.min_by_key(|clash| *clash != Clash::Same)
            };
            let found = taken[..index]
                .iter()
                .find_map(|early| Some((early, clash(early)?)));
            if let Some((early, clash)) = found {
                self.errors.add(
                    late.place,
                    Some(late.key()),
                    late.message(early, clash, sources),
                );
            }
        }
    }
}

impl Taken {
    fn key(&self) -> String {
        match &self.owner {
            Owner::Control => Table::Control.path("socket"),
            Owner::Listener(name, _) => Table::Listener(name.clone()).path("address"),
        }
    }

    fn message(&self, early: &Self, clash: Clash, sources: &[Source]) -> String {
        let subject = match &self.owner {
            Owner::Control => "control: socket".into(),
            Owner::Listener(name, _) => format!("listener \"{name}\": address"),
        };
        let owner = match &early.owner {
            owner if *owner == self.owner => "this listener".into(),
            Owner::Control => "the control socket".into(),
            Owner::Listener(name, _) => format!("listener \"{name}\""),
        };
        let line = early.place.line;
        let place = match early.place.source == self.place.source {
            true => format!("line {line}"),
            false => format!("{}:{line}", sources[early.place.source].name),
        };
        let quoted = &self.quoted;
        match clash {
            Clash::Same => format!("{subject} {quoted}: already used by {owner} ({place})"),
            Clash::Overlap => {
                let other = &early.quoted;
                format!(
                    "{subject} {quoted}: overlaps {other} of {owner} ({place}): keep one of the two"
                )
            }
        }
    }
}

/// The typed words with what there is to say about them.
fn about(table: &Table, key: &str, typed: &Typed, message: &str) -> String {
    format!("{}: {key} {}: {message}", table.subject(), typed.quoted)
}

/// What holds where nothing is typed: no listener yet, and what each one starts from.
fn defaults() -> (Config, Listener) {
    let source = Source {
        name: String::new(),
        text: default_text(),
    };
    let mut resolver = Resolver::default();
    let file = file::read(&[source], &mut resolver.errors);
    let (mut config, mut listener) = blank();
    for (table, entries) in &file.tables {
        match table {
            Table::Daemon => {
                resolver.each(table, entries, |key, typed| {
                    set_daemon(&mut config.daemon, key, typed)
                });
            }
            Table::Control => {
                resolver.each(table, entries, |key, typed| {
                    set_control(&mut config.control, key, typed)
                });
            }
            Table::Log => resolver.each(table, entries, |key, typed| {
                set_log(&mut config.log, key, typed)
            }),
            Table::Defaults | Table::Listener(_) => {
                resolver.settings(table, entries, &mut listener)
            }
        }
    }
    debug_assert!(
        resolver.errors.0.is_empty(),
        "every default is a value that may be written"
    );
    (config, listener)
}

/// Something to write the defaults over.
fn blank() -> (Config, Listener) {
    let config = Config {
        daemon: Daemon {
            workers: None,
            driver: DriverChoice::Auto,
            drain_timeout: Duration::ZERO,
            shutdown_delay: Duration::ZERO,
            busy_poll: None,
            user: None,
            group: None,
        },
        control: Control {
            socket: None,
            mode: 0,
            group: None,
        },
        log: Log {
            target: LogTarget::Auto,
            level: LevelFilter::Off,
            facility: String::new(),
        },
        listeners: BTreeMap::new(),
    };
    let listener = Listener {
        name: String::new(),
        protocol: Protocol::Tcp,
        addresses: Vec::new(),
        reply: echo::Reply::Echo,
        one_shot: false,
        sockets: None,
        backlog: 0,
        backlog_is_set: false,
        max_connections: 0,
        when_full: WhenFull::Wait,
        max_per_source: None,
        timeouts: Timeouts::default(),
        no_delay: false,
        keepalive: None,
        receive_buffer: None,
        send_buffer: None,
        access: Access::default(),
        source_ports: RefusedPorts::Listed(SourcePorts::none()),
        mode: 0,
    };
    (config, listener)
}

fn set_daemon(daemon: &mut Daemon, key: &str, typed: &Typed) -> Result<(), String> {
    match key {
        "workers" => daemon.workers = count(typed)?,
        "driver" => daemon.driver = value::choice(typed, &DriverChoice::ALL, DriverChoice::name)?,
        "drain-timeout" => {
            daemon.drain_timeout =
                value::duration(typed, Duration::ZERO, None)?.unwrap_or_default();
        }
        "shutdown-delay" => {
            daemon.shutdown_delay =
                value::duration(typed, Duration::ZERO, None)?.unwrap_or_default();
        }
        "busy-poll" => daemon.busy_poll = busy_poll(typed)?,
        "user" => daemon.user = optional_name(typed, "user")?,
        "group" => daemon.group = optional_name(typed, "group")?,
        _ => unreachable!("a test sets every key of [daemon]"),
    }
    Ok(())
}

fn set_control(control: &mut Control, key: &str, typed: &Typed) -> Result<(), String> {
    match key {
        "socket" => {
            let text = value::text(typed, "\"/run/echod/control.sock\"")?;
            control.socket = Some(address::parse_path(text)?);
        }
        "mode" => control.mode = value::mode(typed)?,
        "group" => {
            let group = value::text(typed, "\"echod\"")?;
            if !is_account_name(group) {
                return Err(
                    "not a group: write its name, as in \"echod\", or leave the key out".into(),
                );
            }
            control.group = Some(group.into());
        }
        _ => unreachable!("a test sets every key of [control]"),
    }
    Ok(())
}

/// The name of a user or a group; none where it is empty.
fn optional_name(typed: &Typed, what: &str) -> Result<Option<String>, String> {
    let name = value::text(typed, "\"echod\"")?;
    if name.is_empty() {
        return Ok(None);
    }
    if !is_account_name(name) {
        return Err(format!(
            "not a {what}: write its name, as in \"echod\", or \"\""
        ));
    }
    Ok(Some(name.into()))
}

fn is_account_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|letter: char| letter.is_whitespace() || letter.is_control())
}

fn set_log(log: &mut Log, key: &str, typed: &Typed) -> Result<(), String> {
    match key {
        "target" => log.target = value::choice(typed, &LogTarget::ALL, LogTarget::name)?,
        "level" => log.level = value::choice(typed, &LEVELS, level_name)?,
        "facility" => log.facility = value::choice(typed, &FACILITIES, |name| name)?.into(),
        _ => unreachable!("a test sets every key of [log]"),
    }
    Ok(())
}

fn set_listener(listener: &mut Listener, key: &str, typed: &Typed) -> Result<(), String> {
    const BACKLOG_MAX: u32 = i32::MAX as u32;
    const CONNECTIONS_MAX: u32 = 10_000_000;
    match key {
        "reply" => listener.reply = value::choice(typed, &echo::Reply::ALL, echo::Reply::name)?,
        "one-shot" => listener.one_shot = value::flag(typed)?,
        "sockets" => listener.sockets = count(typed)?,
        "backlog" => {
            listener.backlog = value::number(typed, 1, BACKLOG_MAX, None)?.unwrap_or_default()
        }
        "max-connections" => {
            listener.max_connections =
                value::number(typed, 1, CONNECTIONS_MAX, None)?.unwrap_or_default();
        }
        "when-full" => {
            listener.when_full =
                value::choice(typed, &[WhenFull::Wait, WhenFull::Reset], when_full_name)?;
        }
        "max-per-source" => {
            listener.max_per_source = value::number(typed, 1, CONNECTIONS_MAX, Some("off"))?;
        }
        "idle-timeout" => listener.timeouts.idle = value::duration(typed, NONZERO, Some("off"))?,
        "max-lifetime" => {
            listener.timeouts.lifetime = value::duration(typed, NONZERO, Some("off"))?
        }
        "write-stall-timeout" => {
            listener.timeouts.write_stall = value::duration(typed, NONZERO, Some("off"))?;
        }
        "no-delay" => listener.no_delay = value::flag(typed)?,
        "keepalive" => listener.keepalive = keepalive(typed)?,
        "receive-buffer" => listener.receive_buffer = value::size(typed, Some("auto"))?,
        "send-buffer" => listener.send_buffer = value::size(typed, Some("auto"))?,
        "mode" => listener.mode = value::mode(typed)?,
        _ => unreachable!("a test sets every key of a listener"),
    }
    Ok(())
}

/// Of workers, or of sockets: one for each worker at most makes sense.
fn count(typed: &Typed) -> Result<Option<u16>, String> {
    let count = value::number(typed, 1, 256, Some("auto"))?;
    Ok(count.and_then(|count| u16::try_from(count).ok()))
}

fn keepalive(typed: &Typed) -> Result<Option<Duration>, String> {
    let keepalive = value::duration(typed, Duration::from_secs(1), Some("off"))?;
    match keepalive {
        Some(duration) if duration > KEEPALIVE_MAX => Err(
            "too long: the kernel takes at most 32767s: write \"9h\" or less, or \"off\"".into(),
        ),
        Some(duration) if duration.subsec_nanos() > 0 => Err(
            "not whole seconds: the kernel takes no fraction: write e.g. \"60s\", or \"off\""
                .into(),
        ),
        other => Ok(other),
    }
}

fn busy_poll(typed: &Typed) -> Result<Option<Duration>, String> {
    if let Value::Integer(number @ 1..) = typed.value {
        return Err(format!(
            "a number without a unit: write e.g. \"{number}us\", or \"off\""
        ));
    }
    let busy_poll = value::duration(typed, NONZERO, Some("off"))?;
    if busy_poll.is_some_and(|time| time > BUSY_POLL_MAX) {
        return Err(
            "too long: a worker would hardly ever sleep: write at most \"1s\", e.g. \"50us\", or \"off\""
                .into(),
        );
    }
    Ok(busy_poll)
}

/// A network, or a single address. A mapped IPv4 network is the IPv4 network: that is what
/// sources are compared as.
fn network(typed: &Typed) -> Result<IpNet, String> {
    let text = value::text(typed, "\"192.0.2.0/24\"")?;
    let network = match text.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text
            .parse()
            .map_err(|_| "not a network: write e.g. \"192.0.2.0/24\" or \"2001:db8::/32\"")?,
    };
    if let IpNet::V6(v6) = network
        && let Some(v4) = v6.addr().to_ipv4_mapped()
        && let Some(length) = v6.prefix_len().checked_sub(96)
        && let Ok(v4) = Ipv4Net::new(v4, length)
    {
        return Ok(v4.into());
    }
    Ok(network)
}
