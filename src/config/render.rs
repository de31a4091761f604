//! Values shown again: the canonical form of each key, and the whole configuration as TOML.
//!
//! What is rendered loads to an equal [`Config`], and the reload plan compares and prints the
//! same forms, so that a default written out is no change.

use std::ops::RangeInclusive;

use log::LevelFilter;

use super::keys::{Section, has_meaning};
use super::value::{show_duration, show_size};
use super::{Config, Listener, address};
use crate::policy::limits::WhenFull;
use crate::policy::{RefusedPorts, SourcePorts};

/// The effective configuration: every key that has a meaning, with its value. A key whose value
/// is its absence is a comment.
#[must_use]
pub fn render(config: &Config) -> String {
    let mut text = String::new();
    for section in [Section::Daemon, Section::Control, Section::Log] {
        text += &format!("[{}]\n", section.name());
        for key in section.keys() {
            text += &match show_global(config, section, key.name) {
                Some(value) => format!("{} = {value}\n", key.name),
                None => format!("# {} is not set\n", key.name),
            };
        }
        text.push('\n');
    }
    for listener in config.listeners.values() {
        text += &format!("[listener.{}]\n", table_name(&listener.name));
        for key in Section::Listener.keys() {
            if let Some(value) = show(listener, key.name) {
                if key.name == "backlog" && !listener.backlog_is_set {
                    text += &format!("# backlog is not set: {value}, or that of a .socket unit\n");
                } else {
                    text += &format!("{} = {value}\n", key.name);
                }
            }
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

/// A listener's value for a key as it is written in TOML; `None` where the key has no meaning.
#[must_use]
pub fn show(listener: &Listener, key: &str) -> Option<String> {
    if !has_meaning(listener.protocol, key) {
        return None;
    }
    Some(match key {
        "protocol" => quote(listener.protocol.name()),
        "address" => {
            let shown = address::show(&listener.addresses);
            if let [only] = shown.as_slice() {
                quote(only)
            } else {
                list(&shown)
            }
        }
        "reply" => quote(listener.reply.name()),
        "one-shot" => listener.one_shot.to_string(),
        "sockets" => or_word(listener.sockets, "auto", |count| count.to_string()),
        "backlog" => listener.backlog.to_string(),
        "max-connections" => listener.max_connections.to_string(),
        "when-full" => quote(when_full_name(listener.when_full)),
        "max-per-source" => or_word(listener.max_per_source, "off", |count| count.to_string()),
        "idle-timeout" => or_word(listener.timeouts.idle, "off", |time| {
            quote(&show_duration(time))
        }),
        "max-lifetime" => or_word(listener.timeouts.lifetime, "off", |time| {
            quote(&show_duration(time))
        }),
        "write-stall-timeout" => or_word(listener.timeouts.write_stall, "off", |time| {
            quote(&show_duration(time))
        }),
        "no-delay" => listener.no_delay.to_string(),
        "keepalive" => or_word(listener.keepalive, "off", |time| {
            quote(&show_duration(time))
        }),
        "receive-buffer" => or_word(listener.receive_buffer, "auto", |bytes| {
            quote(&show_size(bytes))
        }),
        "send-buffer" => or_word(listener.send_buffer, "auto", |bytes| {
            quote(&show_size(bytes))
        }),
        "allow" => list(&listener.access.allow),
        "deny" => list(&listener.access.deny),
        "refuse-source-ports" => show_source_ports(&listener.source_ports),
        "mode" => show_mode(listener.mode),
        _ => return None,
    })
}

/// The same for a key of `[daemon]`, `[control]` or `[log]`; `None` where it is absent.
pub(super) fn show_global(config: &Config, section: Section, key: &str) -> Option<String> {
    let (daemon, control, log) = (&config.daemon, &config.control, &config.log);
    match (section, key) {
        (Section::Daemon, "workers") => {
            Some(or_word(daemon.workers, "auto", |count| count.to_string()))
        }
        (Section::Daemon, "driver") => Some(quote(daemon.driver.name())),
        (Section::Daemon, "drain-timeout") => Some(quote(&show_duration(daemon.drain_timeout))),
        (Section::Daemon, "shutdown-delay") => Some(quote(&show_duration(daemon.shutdown_delay))),
        (Section::Daemon, "busy-poll") => Some(or_word(daemon.busy_poll, "off", |time| {
            quote(&show_duration(time))
        })),
        (Section::Daemon, "user") => Some(quote(daemon.user.as_deref().unwrap_or_default())),
        (Section::Daemon, "group") => Some(quote(daemon.group.as_deref().unwrap_or_default())),
        (Section::Control, "socket") => control
            .socket
            .as_ref()
            .map(|path| quote(&path.to_string_lossy())),
        (Section::Control, "mode") => Some(show_mode(control.mode)),
        (Section::Control, "group") => control.group.as_deref().map(quote),
        (Section::Log, "target") => Some(quote(log.target.name())),
        (Section::Log, "level") => Some(quote(level_name(log.level))),
        (Section::Log, "facility") => Some(quote(&log.facility)),
        _ => None,
    }
}

/// A text as TOML writes it: in quotes, with escapes where they are needed.
#[must_use]
pub fn quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            control if control.is_control() => quoted += &format!("\\u{:04X}", u32::from(control)),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

/// The name of `when-full`'s value.
pub(super) fn when_full_name(when_full: WhenFull) -> &'static str {
    match when_full {
        WhenFull::Wait => "wait",
        WhenFull::Reset => "reset",
    }
}

/// The name of a level, in lower case as all words here are.
pub(super) fn level_name(level: LevelFilter) -> &'static str {
    match level {
        LevelFilter::Off => "off",
        LevelFilter::Error => "error",
        LevelFilter::Warn => "warn",
        LevelFilter::Info => "info",
        LevelFilter::Debug => "debug",
        LevelFilter::Trace => "trace",
    }
}

fn or_word<T>(value: Option<T>, word: &str, show: impl Fn(T) -> String) -> String {
    value.map_or_else(|| quote(word), show)
}

fn list(items: &[impl ToString]) -> String {
    let items: Vec<_> = items.iter().map(|item| quote(&item.to_string())).collect();
    format!("[{}]", items.join(", "))
}

fn show_source_ports(ports: &RefusedPorts) -> String {
    let ports = match ports {
        RefusedPorts::Default => return quote("default"),
        RefusedPorts::Listed(ports) => ports,
    };
    if *ports == SourcePorts::none() {
        return quote("none");
    }
    let show = |range: &RangeInclusive<u16>| match (range.start(), range.end()) {
        (first, last) if first == last => first.to_string(),
        (first, last) => quote(&format!("{first}-{last}")),
    };
    let ranges: Vec<_> = ports.ranges().iter().map(show).collect();
    format!("[{}]", ranges.join(", "))
}

fn show_mode(mode: u32) -> String {
    quote(&format!("{mode:04o}"))
}

/// A name with a dot in it needs quotes to be one name.
fn table_name(name: &str) -> String {
    if name.contains('.') {
        quote(name)
    } else {
        name.into()
    }
}
