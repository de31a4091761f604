//! What a start refuses on this machine, found without binding anything: for `--check`, and for a
//! reload, which warns of what only the next start refuses.
//!
//! Judges for root, and whatever processes serve now: the user of the start, and what runs then, are
//! not known. Why a thing is refused is known where it is done; here the reasons are collected.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

use crate::cli::exit::{Exit, Failure, print_or_end};
use crate::cli::terminal::complain;
use crate::cli::text::counted;
use crate::config::{self, Address, Config, DEFAULT_FILE, Key, Loaded, Section, plan};
use crate::protocol::schema::Diagnostic;

use super::args::Args;
use super::control::{BindError, Place, missing_directory};
use super::listeners::bind;
use super::origin::{Origin, Texts};
use super::{drivers, log, privileges, socket_file};

/// `--check`, of a configuration without errors in the text.
///
/// # Errors
/// All that a start would refuse.
pub(super) fn check_only(
    args: &Args,
    origin: &Origin,
    texts: &Texts,
    loaded: &Loaded,
) -> Result<(), Failure> {
    let config = &loaded.config;
    let driver = drivers::foresee(config.daemon.driver);
    let mut findings = Findings {
        refusals: of_daemon(config, |_, _| true),
        warnings: loaded.warnings.iter().map(ToString::to_string).collect(),
    };
    findings.refusals.extend(driver.as_ref().err().cloned());
    // A successor inherits its sockets, wherever they could be bound by now.
    if args.can_take_over.is_none() {
        let place = Place::find(args.socket.as_deref(), &config.control, true);
        findings.add_sockets(config, place.as_ref(), origin.has_file(texts));
    }
    let driver = driver.map(|(driver, remark)| {
        findings.warnings.extend(remark);
        driver
    });
    for warning in Diagnostic::list(findings.warnings, "warning") {
        complain(&format!("echod: warning: {warning}\n"));
    }
    match driver {
        Ok(driver) if findings.refusals.is_empty() => {
            let none = format!("no file {DEFAULT_FILE}; ");
            let none = if texts.built_in { &none } else { "" };
            let names = none.to_owned() + &texts.names().join(", ");
            let listeners = counted(config.listeners.len() as u64, "listener");
            let fine = format!("{names}: fine; {listeners}, driver {driver}\n");
            print_or_end(fine.as_bytes())
        }
        _ => {
            let refusals = findings.refusals;
            Err(refused(Exit::Configuration, refusals, origin, texts))
        }
    }
}

/// A start that is refused for these reasons, or for the first of very many: each with the place of its
/// listener's address, where there is a file.
pub(super) fn refused(exit: Exit, reasons: Vec<String>, origin: &Origin, texts: &Texts) -> Failure {
    let mut reasons = Diagnostic::list(reasons, "error");
    if origin.has_file(texts) {
        for reason in &mut reasons {
            let listener = reason.listener();
            reason.key = listener.map(|name| format!("listener.{name}.address"));
        }
        config::locate(&texts.sources, &mut reasons);
    }
    Failure {
        exit,
        messages: reasons.iter().map(ToString::to_string).collect(),
    }
}

/// What is found out for `--check`.
struct Findings {
    refusals: Vec<String>,
    warnings: Vec<String>,
}

impl Findings {
    fn add_sockets(&mut self, config: &Config, place: Option<&Place>, has_file: bool) {
        if let Some(place) = place
            && let Err(error) = place.check()
        {
            let message = no_control_socket(&error);
            if place.is_needed(has_file) {
                self.refusals.push(message);
            } else {
                self.warnings.push(format!("no {message}"));
            }
        }
        let control = place.map(|place| place.path.as_path());
        let made = control.and_then(missing_directory);
        self.refusals.extend(shared_files(config, control));
        for listener in config.listeners.values() {
            for address in &listener.addresses {
                match bind::check(listener, address, made) {
                    Ok(warning) => self.warnings.extend(warning),
                    Err(refusal) => self.refusals.push(refusal),
                }
            }
        }
    }
}

/// Why there is no control socket, in the words of a start.
pub(super) fn no_control_socket(error: &BindError) -> String {
    format!("control socket: {error}")
}

/// What a start refuses of the sections that exist once, except for the driver and the place of the
/// control socket: of those keys that are `wanted`.
fn of_daemon(config: &Config, wanted: impl Fn(Section, &str) -> bool) -> Vec<String> {
    let mut refusals = Vec::new();
    if wanted(Section::Daemon, "user") || wanted(Section::Daemon, "group") {
        refusals.extend(privileges::check(&config.daemon).err());
    }
    if wanted(Section::Control, "group") {
        refusals.extend(privileges::control_group(&config.control).err());
    }
    if wanted(Section::Log, "target") {
        refusals.extend(log::check(&config.log).err());
    }
    refusals
}

/// Unix sockets that have the file of another one by another path, as through a symbolic link to its
/// folder: which, and whose it is. `control` is the path of the control socket.
pub(super) fn shared_files(config: &Config, control: Option<&Path>) -> Vec<String> {
    let mut owners = BTreeMap::new();
    if let Some(path) = control {
        owners.insert(socket_file::real(path), "the control socket".to_owned());
        // A start that makes it does so before it binds the listeners.
        if let Some(folder) = missing_directory(path) {
            let owner = "the folder of the control socket".to_owned();
            owners.insert(socket_file::real(folder), owner);
        }
    }
    let mut shared = Vec::new();
    for (name, listener) in &config.listeners {
        for address in &listener.addresses {
            let Address::Unix(path) = address else {
                continue;
            };
            match owners.entry(socket_file::real(path)) {
                Entry::Vacant(entry) => {
                    entry.insert(format!("listener \"{name}\""));
                }
                Entry::Occupied(owner) => shared.push(format!(
                    "listener \"{name}\": bind {address}: {} has this file, by the same or another path",
                    owner.get()
                )),
            }
        }
    }
    shared
}

/// What takes effect at a start only, as it is in force: the next start may get something else.
#[derive(Debug)]
pub(super) struct InForce {
    config: Config,
    /// `--socket`.
    socket: Option<PathBuf>,
}

impl InForce {
    pub(super) fn new(config: &Config, socket: Option<&Path>) -> Self {
        let Config {
            daemon,
            control,
            log,
            listeners: _,
        } = config;
        Self {
            config: Config {
                daemon: daemon.clone(),
                control: control.clone(),
                log: log.clone(),
                ..Config::default()
            },
            socket: socket.map(Path::to_owned),
        }
    }

    /// What the next start would refuse of a new configuration, which a reload does not notice.
    pub(super) fn warnings(&self, new: &Config) -> Vec<Diagnostic> {
        let changed = plan::restart_keys(&self.config, new);
        let has = |section: Section, name: &str| {
            let is_it = |key: &&Key| key.section == section && key.name == name;
            changed.iter().any(is_it)
        };
        let mut refusals = of_daemon(new, has);
        if has(Section::Daemon, "driver") {
            refusals.extend(drivers::foresee(new.daemon.driver).err());
        }
        if has(Section::Control, "socket") {
            let place = Place::find(self.socket.as_deref(), &new.control, true);
            let path = place.as_ref().map(|place| place.path.as_path());
            refusals.extend(shared_files(new, path));
            let checked = place.as_ref().map_or(Ok(()), Place::check);
            refusals.extend(checked.err().as_ref().map(no_control_socket));
        }
        let warnings = refusals.into_iter();
        warnings
            .map(|refusal| {
                Diagnostic::general(format!("{refusal}; the next start will be refused"))
            })
            .collect()
    }
}
