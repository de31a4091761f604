//! The start: everything is bound, or taken over from a predecessor, before anybody hears that we are
//! ready.
//!
//! Who has no predecessor binds all or nothing: a failure ends the process and says all that is
//! wrong. Who has one never does worse than that one did: whatever can't be had is said in the log,
//! and everybody who is connected is served.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Instant;

use nix::unistd::geteuid;

use crate::cli::exit::{Exit, Failure};
use crate::config::{self, Config, DriverChoice, Loaded, Mood, plan};
use crate::protocol;
use crate::protocol::schema::{self, UpgradeResult};
use crate::sys::process::Passed;

use super::args::Args;
use super::control::{ClientId, Reply, Server};
use super::handover::program::CommandLine;
use super::handover::{self, Legacy, Predecessor};
use super::listeners::{Listeners, Prepared, passed, survivors};
use super::origin::{Origin, Texts};
use super::reload::{self, History, Reloads};
use super::signals::Signals;
use super::systemd::notify::Manager;
use super::systemd::status::Status;
use super::systemd::store::Store;
use super::systemd::watchdog::Watchdog;
use super::workers::Workers;
use super::{Daemon, Stage, privileges};

/// What a daemon without a predecessor begins with.
struct First {
    changes: Vec<config::Change>,
    prepared: Prepared,
}

impl First {
    /// Binds all that is configured.
    fn bind(config: &Config, workers: usize, passed: Vec<Passed>) -> Result<Self, Failure> {
        let nothing = Config {
            listeners: Default::default(),
            ..config.clone()
        };
        let changes = plan(&nothing, config, &Default::default(), Mood::Real).changes;
        let prepared = Listeners::default()
            .prepare(
                config,
                &changes,
                workers,
                passed::Sockets::sort(passed, config),
            )
            .map_err(|messages| Failure {
                exit: Exit::Failed,
                messages,
            })?;
        Ok(Self { changes, prepared })
    }
}

impl Daemon {
    /// Binds everything, and only then says that it is ready.
    pub(super) fn start(
        args: &Args,
        origin: Origin,
        texts: Texts,
        loaded: Loaded,
        mut passed: Vec<Passed>,
        legacy: Legacy,
        begun: Instant,
    ) -> Result<Self, Failure> {
        let Loaded {
            config,
            mut warnings,
        } = loaded;
        let command_line = CommandLine::of_this_process()
            .map_err(|error| Failure::new(format!("where this program is: {error}")))?;
        let mut predecessor = None;
        let was_kept = legacy.was_kept();
        match legacy {
            Legacy::Nothing => {}
            Legacy::Whole(whole) => predecessor = Some(*whole),
            Legacy::Pieces {
                descriptors, error, ..
            } => {
                log::error!(
                    "what the predecessor left can't be read: {error}; \
                     its connections are closed, its sockets are served"
                );
                passed.extend(survivors::left_behind(descriptors, &config));
            }
        }
        // Whatever a successor can't do that it is told to do, who is connected does not suffer for
        // it.
        let identity = match (privileges::find(&config.daemon), &predecessor) {
            (Err(failure), Some(_)) => {
                log_all(&failure);
                None
            }
            (identity, _) => identity?,
        };
        let signals = Signals::new().map_err(|error| Failure::new(format!("signals: {error}")))?;
        let count = config
            .daemon
            .workers
            .map_or_else(available_cpus, usize::from);
        let has_file = !texts.built_in && !matches!(origin, Origin::Arguments(_));
        let opened = open_control_socket(args, &config, has_file, &mut predecessor);
        let (server, caller) = match (opened, &mut predecessor) {
            (Err(failure), Some(predecessor)) => {
                log_all(&failure);
                let before = predecessor.control_path().and_then(|path| {
                    let mode = config.control.mode;
                    predecessor.control_socket(&path, mode, None).ok()
                });
                before.map_or((None, None), |(server, caller)| (Some(server), caller))
            }
            (opened, _) => opened?,
        };
        let mut store = Store::default();
        store.know(survivors::stored_names(&passed));
        store.know(predecessor.iter().flat_map(Predecessor::stored));
        let first = match predecessor {
            Some(_) => None,
            None => {
                let passed = std::mem::take(&mut passed);
                Some(First::bind(&config, count, passed)?)
            }
        };
        // What is given up here is given up by this thread and those that it starts: there must be
        // none yet. A predecessor of this very process has given it up for us, too.
        let mut landlock = predecessor
            .as_ref()
            .and_then(Predecessor::inherited_landlock);
        if let Some(identity) = &identity {
            let made = server.iter().flat_map(Server::made);
            let made = made.chain(first.iter().flat_map(|first| first.prepared.made()));
            let made = made.chain(predecessor.iter().flat_map(Predecessor::made));
            let made: Vec<_> = made.collect();
            landlock = privileges::drop_to(identity, &made, origin.folders(&texts))
                .map_err(Failure::new)?;
        }
        super::log::start_writer().map_err(|error| Failure::new(format!("log: {error}")))?;
        let manager = Manager::find();
        if let Some(manager) = manager.as_ref().filter(|_| was_kept) {
            manager.let_go(handover::STORED);
        }
        let started = Workers::start(count, &config.daemon).map_err(Failure::new);
        let workers = match (started, &predecessor) {
            (Err(failure), Some(_)) => {
                log_all(&failure);
                let any = config::Daemon {
                    driver: DriverChoice::Auto,
                    ..config.daemon.clone()
                };
                Workers::start(count, &any).map_err(Failure::new)?
            }
            (started, _) => started?,
        };
        privileges::announce(identity.as_ref(), landlock.as_ref());
        let now = Instant::now();
        let mut daemon = Self {
            command_line,
            origin,
            files: texts
                .sources
                .into_iter()
                .map(|source| source.name)
                .collect(),
            config,
            log_level_overridden: false,
            history: History::none(),
            reloads: Reloads::none(),
            started: now,
            stage: Stage::Serving,
            signals,
            workers,
            listeners: Listeners::default(),
            handover: None,
            store,
            passed,
            server,
            status: Status::new(now),
            watchdog: manager
                .as_ref()
                .and_then(Manager::watchdog_patience)
                .map(|patience| Watchdog::new(patience, count, now)),
            manager,
        };
        let spins = daemon.config.daemon.busy_poll.is_some() && count > available_cpus();
        let warning = spins.then(|| busy_poll_warning(count, available_cpus()));
        daemon.listeners.landlock = landlock;
        let result = match (first, predecessor) {
            (Some(first), _) => {
                warnings.extend(warning.iter().map(schema::Diagnostic::general));
                daemon.begin(first, warnings, begun)?;
                None
            }
            // What else there is to warn of is found by its first look at the configuration.
            (None, predecessor) => predecessor.map(|predecessor| {
                let result = daemon.succeed(predecessor);
                warning.iter().for_each(|warning| log::warn!("{warning}"));
                result
            }),
        };
        daemon.announce(texts.built_in);
        daemon.tell_ready(now);
        if let Some(((server, caller), result)) = daemon.server.as_mut().zip(caller).zip(result) {
            let reply = Reply::One(protocol::upgraded(result));
            server.reply(caller, reply, Instant::now());
        }
        Ok(daemon)
    }

    /// Serves what was bound.
    fn begin(
        &mut self,
        first: First,
        mut warnings: Vec<schema::Diagnostic>,
        begun: Instant,
    ) -> Result<(), Failure> {
        let First {
            changes,
            mut prepared,
        } = first;
        let mut more = std::mem::take(&mut prepared.warnings);
        let now = Instant::now();
        let committed = self
            .listeners
            .commit(prepared, &self.config, &changes, &self.workers, now);
        more.extend(committed.map_err(|messages| Failure {
            exit: Exit::Failed,
            messages,
        })?);
        warnings.extend(more.iter().map(schema::Diagnostic::general));
        for warning in &warnings {
            log::warn!(
                reload_id = reload::START_ID, listener = reload::listener_of(warning);
                "{warning}"
            );
        }
        self.update_store();
        self.history = History::start(warnings, changes, begun, now);
        Ok(())
    }

    /// Goes on where a predecessor stopped: with its configuration, and then with the one that there
    /// is now.
    fn succeed(&mut self, predecessor: Predecessor) -> UpgradeResult {
        let record = predecessor.record();
        self.history = History::resume(record.last_reload.clone(), record.generation);
        self.started = predecessor.started(Instant::now());
        self.log_level_overridden = record.log_level_overridden;
        let (config, result) = predecessor.restore(&mut self.listeners, &self.workers);
        self.config.listeners = config.listeners;
        if self.log_level_overridden {
            self.config.log.level = config.log.level;
            super::log::set_level(config.log.level);
        }
        // What was passed again is here already.
        self.passed
            .retain(|passed| !self.listeners.has(passed.fd.as_fd()));
        self.reload_at_start();
        self.update_store();
        result
    }

    fn announce(&self, built_in: bool) {
        let id = self.history.last.id;
        if built_in {
            log::info!(
                "no configuration file: serving the built-in default on loopback; \
                 write /etc/echod/echod.toml, or name a file with --config"
            );
        }
        for listener in self.listeners.report() {
            let schema::Listener {
                name,
                protocol,
                addresses,
                reply,
                ..
            } = listener;
            log::info!(
                reload_id = id, listener = name.as_str();
                "listener \"{name}\": {protocol} on {}, reply {reply}",
                addresses.join(", ")
            );
        }
        let workers = self.workers.count();
        log::info!(
            reload_id = id;
            "echod {} is ready: {workers} worker(s), driver {}",
            env!("CARGO_PKG_VERSION"),
            self.workers.driver()
        );
    }
}

fn log_all(failure: &Failure) {
    for message in &failure.messages {
        log::error!("{message}");
    }
}

/// As many workers as this process may use processors, by affinity and cgroup quota.
fn available_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn busy_poll_warning(workers: usize, cpus: usize) -> String {
    format!(
        "[daemon] busy-poll: {workers} workers spin on {cpus} CPU(s) and take them from each other: \
         write workers = {cpus} or less, or busy-poll = \"off\""
    )
}

/// The control socket. A daemon that was started for a moment, without a file, does without one
/// where the usual place is not to be had; one with a configuration does not.
fn open_control_socket(
    args: &Args,
    config: &Config,
    has_file: bool,
    predecessor: &mut Option<Predecessor>,
) -> Result<(Option<Server>, Option<ClientId>), Failure> {
    let group = privileges::control_group(&config.control)
        .map_err(|message| Failure::with(Exit::Configuration, message))?
        .map(|group| group.as_raw());
    let asked = args
        .socket
        .clone()
        .or_else(|| config.control.socket.clone());
    let is_default = asked.is_none();
    // What is usual depends on who we are: a predecessor may have been somebody else.
    let asked = asked.or_else(|| predecessor.as_ref()?.control_path());
    let Some(path) = asked.or_else(default_control_socket) else {
        log::warn!(
            "no control socket: neither --socket nor $XDG_RUNTIME_DIR says where; echoctl can't reach this daemon"
        );
        return Ok((None, None));
    };
    let mode = config.control.mode;
    let opened = match predecessor {
        Some(predecessor) => predecessor.control_socket(&path, mode, group),
        None => Server::bind(&path, mode, group).map(|server| (server, None)),
    };
    match opened {
        Ok((server, caller)) => Ok((Some(server), caller)),
        Err(error) if is_default && !has_file => {
            log::warn!("no control socket: {error}");
            Ok((None, None))
        }
        Err(error) => Err(Failure::new(format!("control socket: {error}"))),
    }
}

fn default_control_socket() -> Option<PathBuf> {
    let folder = |variable| {
        let value = std::env::var(variable)
            .ok()
            .filter(|value| !value.is_empty())?;
        // systemd gives several, separated by colons, where several are configured.
        Some(PathBuf::from(value.split(':').next()?))
    };
    let runtime = folder("RUNTIME_DIRECTORY").map(|folder| folder.join("control.sock"));
    runtime.or_else(|| {
        if geteuid().is_root() {
            return Some("/run/echod/control.sock".into());
        }
        Some(folder("XDG_RUNTIME_DIR")?.join("echod/control.sock"))
    })
}
