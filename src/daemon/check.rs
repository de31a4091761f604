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
use crate::protocol::schema::{DIAGNOSTICS_MAX, Diagnostic, bounded};

use super::args::Args;
use super::control::{BindError, SaidBy, SocketPath, missing_directory};
use super::listeners::{bind, descriptors};
use super::origin::{Origin, Texts};
use super::roles::Roles;
use super::{drivers, log, privileges, socket_file, workers};

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
        warnings: loaded.warnings.clone(),
    };
    findings.refusals.extend(driver.as_ref().err().cloned());
    // A successor inherits its sockets, wherever they could be bound by now.
    if args.can_take_over.is_none() {
        let place = SocketPath::find(args.socket.as_deref(), &config.control, true);
        findings.add_sockets(config, place.as_ref(), origin.has_file(texts));
    }
    let driver = driver.map(|(driver, remark)| {
        let remark = remark.map(Diagnostic::general);
        findings.warnings.extend(remark);
        driver
    });
    for warning in bounded(findings.warnings, 0, "warning") {
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
            let refusals = located(findings.refusals, loaded, origin, texts);
            Err(refused(Exit::Configuration, &refusals))
        }
    }
}

/// A start that is refused for these reasons.
pub(super) fn refused(exit: Exit, reasons: &[Diagnostic]) -> Failure {
    Failure {
        exit,
        messages: reasons.iter().map(ToString::to_string).collect(),
    }
}

/// These errors, or the first of very many, each with its place where there is a file: that of the value
/// that it is about, which is the address where it is about a listener as a whole.
pub(super) fn located(
    errors: Vec<Diagnostic>,
    loaded: &Loaded,
    origin: &Origin,
    texts: &Texts,
) -> Vec<Diagnostic> {
    let mut errors = bounded(errors, 0, "error");
    if origin.has_file(texts) {
        for error in &mut errors {
            let address = error
                .listener()
                .map(|name| format!("listener.{name}.address"));
            error.key = error.key.take().or(address);
        }
        loaded.locate(&texts.sources, &mut errors);
    }
    errors
}

/// All errors of a configuration whose text is wrong: with what a start would refuse of the values that
/// are right, so that all errors are reported together.
pub(super) fn completed(errors: Vec<Diagnostic>, origin: &Origin) -> Vec<Diagnostic> {
    let texts = match origin.read(&[]) {
        Ok(texts) if errors.len() <= DIAGNOSTICS_MAX => texts,
        _ => return errors,
    };
    let loaded = config::load_valid(&texts.sources);
    let more = of_daemon(&loaded.config, |_, _| true);
    let more = located(more, &loaded, origin, &texts);
    let mut all = [errors, more].concat();
    let source = |error: &Diagnostic| texts.names().iter().position(|name| *name == error.file);
    // What has no place says how many more there are.
    all.sort_by_cached_key(|error| {
        (
            source(error).unwrap_or(usize::MAX),
            error.line,
            error.column,
        )
    });
    all
}

/// What is found out for `--check`.
struct Findings {
    refusals: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
}

impl Findings {
    fn add_sockets(&mut self, config: &Config, place: Option<&SocketPath>, has_file: bool) {
        if let Some(place) = place
            && let Err(error) = place.check()
        {
            let refusal = no_control_socket(&error, place);
            if place.is_needed(has_file) {
                self.refusals.push(refusal);
            } else {
                let warning = format!("no {}", refusal.message);
                self.warnings.push(Diagnostic::general(warning));
            }
        }
        let control = place.map(|place| place.path.as_path());
        let made = control.and_then(missing_directory);
        self.refusals.extend(shared_files(config, control));
        let workers = workers::count(&config.daemon);
        let enough = descriptors::check(config.listeners.values(), workers);
        self.refusals.extend(enough.err().map(Diagnostic::general));
        for listener in config.listeners.values() {
            for address in &listener.addresses {
                match bind::check(listener, address, made) {
                    Ok(warning) => self.warnings.extend(warning.map(Diagnostic::general)),
                    Err(refusal) => self.refusals.push(Diagnostic::general(refusal)),
                }
            }
        }
    }
}

/// Why there is no control socket, in the words of a start.
pub(super) fn no_control_socket(error: &BindError, place: &SocketPath) -> Diagnostic {
    let message = format!("control socket: {error}");
    match place.said_by {
        SaidBy::Configuration => Diagnostic::about("control.socket", message),
        SaidBy::CommandLine | SaidBy::Default => Diagnostic::general(message),
    }
}

/// What a start refuses of the sections that exist once, except for the driver and the place of the
/// control socket: of those keys that are `wanted`.
fn of_daemon(config: &Config, wanted: impl Fn(Section, &str) -> bool) -> Vec<Diagnostic> {
    let mut refusals = Vec::new();
    if wanted(Section::Daemon, "user") || wanted(Section::Daemon, "group") {
        refusals.extend(privileges::check(&config.daemon).err());
    }
    if wanted(Section::Control, "group") {
        refusals.extend(privileges::control_group(&config.control).err());
    }
    if wanted(Section::Control, "operators") || wanted(Section::Control, "admins") {
        refusals.extend(Roles::resolve(&config.control).1);
    }
    if wanted(Section::Log, "target") {
        refusals.extend(log::check(&config.log).err());
    }
    refusals
}

/// Unix sockets that have the file of another one by another path, as through a symbolic link to its
/// folder: which, and whose it is. `control` is the path of the control socket.
pub(super) fn shared_files(config: &Config, control: Option<&Path>) -> Vec<Diagnostic> {
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
                Entry::Occupied(owner) => shared.push(Diagnostic::general(format!(
                    "listener \"{name}\": bind {address}: {} has this file, by the same or another path",
                    owner.get()
                ))),
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
            let place = SocketPath::find(self.socket.as_deref(), &new.control, true);
            let path = place.as_ref().map(|place| place.path.as_path());
            refusals.extend(shared_files(new, path));
            if let Some(place) = &place
                && let Err(error) = place.check()
            {
                refusals.push(no_control_socket(&error, place));
            }
        }
        for refusal in &mut refusals {
            refusal.message += "; the next start will be refused";
        }
        refusals
    }
}
