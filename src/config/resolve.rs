//! From the configuration as typed to the one that is meant, or all that is wrong with it.
//!
//! Every value that was typed is judged once, where it stands, also one that a later source
//! overrides: by its row in the table of keys, and then together with others. A message about a
//! value begins with the operator's own words.

use std::path::PathBuf;

use super::clashes::{self, Claim, Owner};
use super::file::{self, Entries, File};
use super::findings::{Findings, Remarks};
use super::key::{Field, Key};
use super::keys::DEFAULTS;
use super::table::{Section, Table};
use super::typed::{Place, Typed};
use super::{Address, Config, Diagnostic, Listener, Loaded, Protocol, Source, address, value};
use crate::echo;
use crate::policy::{RefusedPorts, SourcePorts};

/// The way of [`super::load`].
pub(super) fn load(sources: &[Source]) -> Result<Loaded, Vec<Diagnostic>> {
    let (loaded, errors) = judge(sources);
    if errors.is_empty() {
        Ok(loaded)
    } else {
        Err(errors.diagnostics(sources, "error"))
    }
}

/// What is meant as far as it is valid, and what is wrong.
pub(super) fn judge(sources: &[Source]) -> (Loaded, Findings) {
    let mut resolver = Resolver::default();
    let file = file::read(sources, &mut resolver.errors);
    let config = resolver.config(&file, sources);
    let warnings = resolver.warnings.diagnostics(sources, "warning");
    let loaded = Loaded {
        config,
        warnings,
        file,
    };
    (loaded, resolver.errors)
}

/// The way of [`super::control_socket`].
pub(super) fn control_socket(sources: &[Source]) -> Option<PathBuf> {
    let file = file::read(sources, &mut Findings::default());
    let typed = last(file.tables.get(&Table::Control)?, "socket")?;
    address::parse_socket_path(typed).ok()?
}

#[derive(Default)]
struct Resolver {
    errors: Findings,
    warnings: Findings,
    claims: Vec<Claim>,
}

/// What `[defaults]` says: the listener that it describes, and what was typed for it.
struct Base<'a> {
    listener: Listener,
    entries: &'a Entries,
}

/// The value that counts of all that were typed.
fn last<'a>(entries: &'a Entries, key: &str) -> Option<&'a Typed> {
    entries.get(key)?.last()
}

impl Resolver {
    fn config(&mut self, file: &File, sources: &[Source]) -> Config {
        let none = Entries::new();
        let entries = |table| file.tables.get(&table).unwrap_or(&none);
        let mut config = DEFAULTS.0.clone();
        for table in [Table::Daemon, Table::Control, Table::Log] {
            self.global(&table, entries(table.clone()), &mut config);
        }
        if config.daemon.group.is_some()
            && config.daemon.user.is_none()
            && let Some(typed) = last(entries(Table::Daemon), "group")
        {
            let message = "goes with a user only: write user too, or leave it empty";
            self.remarks(&Table::Daemon, "group").refuse(typed, message);
        }
        if let Some(path) = &config.control.socket
            && let Some(typed) = last(entries(Table::Control), "socket")
        {
            self.claim(typed, Owner::Control, vec![Address::Unix(path.clone())]);
        }

        // They are judged even where no listener makes use of them.
        let mut base = Base {
            listener: DEFAULTS.1.clone(),
            entries: entries(Table::Defaults),
        };
        for key in Section::Listener.keys() {
            self.set(&Table::Defaults, base.entries, key, &mut base.listener);
        }
        for name in file.named.keys() {
            if let Some(listener) = self.listener(name, file, &base) {
                config.listeners.insert(name.clone(), listener);
            }
        }
        clashes::report(std::mem::take(&mut self.claims), sources, &mut self.errors);
        if file.named.is_empty() && !file.broken && !file.astray {
            let message = "nothing to serve: add a [listener.NAME] table".into();
            self.errors.add(Place::default(), None, message);
        }
        config
    }

    fn remarks<'a>(&'a mut self, table: &'a Table, key: &'static str) -> Remarks<'a> {
        Remarks {
            errors: &mut self.errors,
            warnings: &mut self.warnings,
            table,
            key,
        }
    }

    fn claim(&mut self, typed: &Typed, owner: Owner, addresses: Vec<Address>) {
        self.claims.push(Claim {
            place: typed.place,
            quoted: typed.quoted.clone(),
            owner,
            addresses,
        });
    }

    /// The values of a table that exists once.
    fn global(&mut self, table: &Table, entries: &Entries, config: &mut Config) {
        for key in table.section().keys() {
            let Field::Config(lens) = &key.field else {
                continue;
            };
            for typed in entries.get(key.name).into_iter().flatten() {
                (lens.set)(config, typed, &mut self.remarks(table, key.name));
            }
        }
    }

    /// The values of one key of a listener, or of `[defaults]`.
    fn set(
        &mut self,
        table: &Table,
        entries: &Entries,
        key: &'static Key,
        listener: &mut Listener,
    ) {
        let Field::Listener(lens) = &key.field else {
            return;
        };
        for typed in entries.get(key.name).into_iter().flatten() {
            (lens.set)(listener, typed, &mut self.remarks(table, key.name));
        }
    }

    fn listener(&mut self, name: &str, file: &File, base: &Base<'_>) -> Option<Listener> {
        let table = Table::Listener(name.into());
        let entries = file.tables.get(&table)?;
        if !file.broken {
            let place = file.named.get(name).copied().unwrap_or_default();
            self.require(&table, entries, place);
        }
        let Some(protocol) = self.protocol(&table, entries) else {
            // Which keys apply is unknown; their values can be judged all the same.
            let mut scratch = base.listener.clone();
            for key in Section::Listener.keys().filter(|key| !key.is_required()) {
                self.set(&table, entries, key, &mut scratch);
            }
            return None;
        };
        let mut listener = Listener {
            name: name.into(),
            protocol,
            ..DEFAULTS.1.clone()
        };
        for key in Section::Listener
            .keys()
            .filter(|key| key.name != "protocol")
        {
            if !key.protocols.contains(&protocol) {
                for typed in entries.get(key.name).into_iter().flatten() {
                    let message = format!("has no meaning for {}: remove it", protocol.name());
                    self.remarks(&table, key.name).refuse(typed, &message);
                }
            } else if key.name == "address" {
                self.addresses(&table, entries, key, &mut listener);
            } else {
                if let Field::Listener(lens) = &key.field {
                    (lens.copy)(&mut listener, &base.listener);
                }
                self.set(&table, entries, key, &mut listener);
            }
        }
        self.check_sockets(&table, entries, base, &mut listener);
        self.check_source_ports(&table, entries, base, &listener);
        Some(listener)
    }

    /// Reports the keys that a listener can't do without and does not have.
    fn require(&mut self, table: &Table, entries: &Entries, place: Place) {
        for key in Section::Listener.keys().filter(|key| key.is_required()) {
            if entries.contains_key(key.name) {
                continue;
            }
            let example = match key.name {
                "protocol" => {
                    "add protocol = \"tcp\", \"udp\", \"unix-stream\" or \"unix-datagram\""
                }
                _ => "add e.g. address = \"localhost:7007\", or a path for a Unix socket",
            };
            let message = format!("{}: {}: is missing: {example}", table.subject(), key.name);
            self.errors.add(place, Some(table.path(key.name)), message);
        }
    }

    /// The protocol, unless the value that counts is refused.
    fn protocol(&mut self, table: &Table, entries: &Entries) -> Option<Protocol> {
        let mut protocol = None;
        for typed in entries.get("protocol").into_iter().flatten() {
            let parsed = value::choice(typed, &Protocol::ALL, Protocol::name);
            protocol = self.remarks(table, "protocol").accept(typed, parsed);
        }
        protocol
    }

    /// The addresses that count; those that are overridden may be of another protocol.
    fn addresses(
        &mut self,
        table: &Table,
        entries: &Entries,
        key: &'static Key,
        listener: &mut Listener,
    ) {
        let (Some(typed), Field::Listener(lens)) = (last(entries, key.name), &key.field) else {
            return;
        };
        (lens.set)(listener, typed, &mut self.remarks(table, key.name));
        for item in address::items(typed) {
            if let Ok(addresses) = address::parse(listener.protocol, item) {
                let owner = Owner::Listener(listener.name.clone(), listener.protocol);
                self.claim(item, owner, addresses);
            }
        }
    }

    /// A Unix socket has one queue; and one connection at a time wants no more than one.
    fn check_sockets(
        &mut self,
        table: &Table,
        entries: &Entries,
        base: &Base<'_>,
        listener: &mut Listener,
    ) {
        let Some(sockets) = listener.sockets.filter(|sockets| *sockets > 1) else {
            return;
        };
        if listener.protocol.is_unix() {
            if let Some(typed) = last(entries, "sockets") {
                let message = format!("has no meaning for {}: remove it", listener.protocol.name());
                self.remarks(table, "sockets").refuse(typed, &message);
            }
            // [defaults] may say it for the others.
            listener.sockets = None;
        } else if listener.protocol.is_stream() && listener.max_connections == 1 {
            let own = last(entries, "sockets").or_else(|| last(entries, "max-connections"));
            if let Some(typed) = own.or_else(|| last(base.entries, "sockets")) {
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

    /// A service that answers every port can be made to talk to another one without end.
    fn check_source_ports(
        &mut self,
        table: &Table,
        entries: &Entries,
        base: &Base<'_>,
        listener: &Listener,
    ) {
        const KEY: &str = "refuse-source-ports";
        if listener.protocol != Protocol::Udp
            || listener.reply == echo::Reply::Discard
            || listener.source_ports != RefusedPorts::Listed(SourcePorts::none())
        {
            return;
        }
        if let Some(typed) = last(entries, KEY).or_else(|| last(base.entries, KEY)) {
            let message = "one forged datagram can make it and another echo service answer each other for \
                           ever: write \"default\", or the ports of such services";
            self.remarks(table, KEY).warn(typed, message);
        }
    }
}
