//! The start: everything is bound, or taken over from a predecessor, before the service manager is
//! notified that the service is ready.
//!
//! A fresh start ([`Foundation::bind`]) binds everything or nothing: a failure ends the process and
//! reports all that is wrong. A successor ([`Foundation::take_over`]) never does worse than its
//! predecessor did: what it can't do is an error in the log, and every connection is served.

use std::time::Instant;

use nix::unistd::{Gid, geteuid};

use crate::cli::exit::{Exit, Failure};
use crate::config::{self, Config, DriverChoice, Loaded, Mood, plan};
use crate::protocol;
use crate::protocol::schema::{self, Diagnostic, UpgradeResult};
use crate::sys::process::Passed;

use super::Daemon;
use super::announce;
use super::args::Args;
use super::check;
use super::control::{ClientId, Reply, SaidBy, Server, SocketPath};
use super::files::Files;
use super::handover::STORED;
use super::handover::predecessor::{Inherited, Predecessor};
use super::handover::program::CommandLine;
use super::listeners::{Listeners, Prepared, passed, survivors};
use super::origin::{Origin, Texts};
use super::privileges::{self, CreatedPath, Identity, Landlock};
use super::reload::{self, History, Reloads};
use super::roles::Roles;
use super::signals::Signals;
use super::stage::Stage;
use super::systemd::Supervision;
use super::systemd::notify::Manager;
use super::systemd::store::Store;
use super::workers::{self, Workers};

/// What a start is given: the command line, the configuration, and what the process has inherited.
pub(super) struct Start<'a> {
    pub args: &'a Args,
    pub origin: Origin,
    pub texts: Texts,
    pub loaded: Loaded,
    /// What came of reading the configuration, which may be another one than a successor starts with.
    pub read: reload::Outcome,
    pub passed: Vec<Passed>,
    pub inherited: Inherited,
    /// What a successor does not do as configured, as far as that is known before the start.
    pub warnings: Vec<String>,
    pub begun: Instant,
}

/// What the service will stand on, before any thread is started and while it may still be root.
struct Foundation {
    identity: Option<Identity>,
    roles: Roles,
    server: Option<Server>,
    // The client that waits for the outcome of an upgrade.
    caller: Option<ClientId>,
    // What a successor does not do as configured.
    warnings: Vec<String>,
    listeners: InitialListeners,
}

/// Where the listeners come from.
enum InitialListeners {
    /// They were bound.
    Fresh(First),
    /// They are a predecessor's.
    Successor(Box<Predecessor>),
}

/// The listeners of a fresh start, bound.
struct First {
    config: Box<Config>,
    changes: Vec<config::Change>,
    prepared: Prepared,
}

impl Start<'_> {
    /// Binds everything, or takes it over, and only then reports that the service is ready.
    ///
    /// # Errors
    /// All that is wrong.
    pub(super) fn run(mut self) -> Result<Daemon, Failure> {
        let command_line = CommandLine::of_this_process()
            .map_err(|error| Failure::of("where this program is", &error))?;
        let was_stored = self.inherited.was_stored();
        let predecessor = self.take_predecessor();
        let signals = Signals::new().map_err(|error| Failure::of("signals", &error))?;
        let count = workers::count(&self.loaded.config.daemon);
        let store = self.known_store(predecessor.as_deref());
        let mut foundation = match predecessor {
            None => Foundation::bind(&mut self, count)?,
            Some(predecessor) => Foundation::take_over(&self, predecessor),
        };
        // From here on there are threads: what this one gives up, they don't have either.
        let landlock = foundation.drop_privileges(&self)?;
        super::log::start_writer().map_err(|error| Failure::of("log", &error))?;
        let manager = Manager::find();
        let keeps = manager.iter().filter(|_| was_stored);
        keeps.for_each(|manager| _ = manager.remove_stored(STORED));
        let workers = foundation.start_workers(count, &self)?;
        announce::process(foundation.identity.as_ref(), landlock.as_ref(), &self.texts);
        let now = Instant::now();
        let mut daemon = Daemon {
            command_line,
            origin: self.origin,
            socket: self.args.socket.clone(),
            files: Files::of(&self.texts),
            // Its listeners are not in service yet.
            config: self.loaded.config.without_listeners(),
            roles: foundation.roles,
            log_level_overridden: false,
            history: History::none(),
            reloads: Reloads::none(),
            started: now,
            stage: Stage::Serving,
            signals,
            workers,
            listeners: Listeners::default(),
            pausing: Default::default(),
            handover: None,
            passed: self.passed,
            server: foundation.server,
            supervision: manager.map(|manager| Supervision::new(manager, store, count, now)),
        };
        daemon.listeners.landlock = landlock;
        daemon.put_log_in_force();
        let result = match foundation.listeners {
            InitialListeners::Fresh(first) => daemon
                .begin(first, self.loaded.warnings, self.begun)
                .map(|()| None)?,
            InitialListeners::Successor(before) => {
                Some(daemon.succeed(*before, self.read, foundation.warnings))
            }
        };
        daemon.announce();
        daemon.supervise(|supervision, summary| supervision.ready(summary, Instant::now()));
        daemon.answer(foundation.caller, result);
        Ok(daemon)
    }

    /// What the service manager keeps, as far as it has passed it or a predecessor has recorded it.
    fn known_store(&self, predecessor: Option<&Predecessor>) -> Store {
        let mut store = Store::default();
        store.know(survivors::stored_names(&self.passed));
        store.know(predecessor.iter().flat_map(|before| before.stored()));
        store
    }

    /// The predecessor whose record could be read. Of another one, the sockets that are configured
    /// are taken as if the service manager had passed them.
    fn take_predecessor(&mut self) -> Option<Box<Predecessor>> {
        match std::mem::replace(&mut self.inherited, Inherited::Nothing) {
            Inherited::Nothing => None,
            Inherited::State(predecessor) => Some(predecessor),
            Inherited::Descriptors {
                descriptors, error, ..
            } => {
                log::error!(
                    "what the predecessor left can't be read: {error}; \
                     its connections are closed, its sockets are served"
                );
                let sockets = survivors::left_behind(descriptors, &self.loaded.config);
                self.passed.extend(sockets);
                None
            }
        }
    }

    fn control_place(&self) -> Option<SocketPath> {
        let option = self.args.socket.as_deref();
        SocketPath::find(option, &self.loaded.config.control, geteuid().is_root())
    }

    fn refused(&self, exit: Exit, reasons: Vec<Diagnostic>) -> Failure {
        let reasons = check::located(reasons, &self.loaded, &self.origin, &self.texts);
        check::refused(exit, &reasons)
    }
}

impl Foundation {
    /// Of a fresh start.
    fn bind(start: &mut Start<'_>, workers: usize) -> Result<Self, Failure> {
        let config = &start.loaded.config;
        let place = start.control_place();
        let control = place.as_ref().map(|place| place.path.as_path());
        let mut reasons = Vec::new();
        let identity = collect(privileges::find(&config.daemon), &mut reasons);
        let group = collect(privileges::control_group(&config.control), &mut reasons);
        let (roles, unknown) = Roles::resolve(&config.control);
        let roles = unknown.is_empty().then_some(roles);
        reasons.extend(unknown);
        let shared = check::shared_files(config, control);
        // Their files would be in use when they are bound.
        if !shared.is_empty() {
            reasons.extend(shared);
            return Err(start.refused(Exit::Configuration, reasons));
        }
        let exit = if reasons.is_empty() {
            Exit::Failed
        } else {
            Exit::Configuration
        };
        // What else is wrong is reported together with that.
        let opened = open_control_socket(start, place, group.flatten(), None);
        let opened = collect(opened, &mut reasons);
        let passed = std::mem::take(&mut start.passed);
        let first = First::bind(&start.loaded.config, workers, passed);
        let first = first.map_err(|unbound| {
            let unbound = unbound.into_iter().map(Diagnostic::general);
            reasons.extend(unbound);
        });
        let (Some(identity), Some(_), Some(roles), Some((server, _)), Ok(first)) =
            (identity, group, roles, opened, first)
        else {
            return Err(start.refused(exit, reasons));
        };
        Ok(Self {
            identity,
            roles,
            server,
            caller: None,
            warnings: Vec::new(),
            listeners: InitialListeners::Fresh(first),
        })
    }

    /// Of a successor. A configuration that this machine refuses is no reason to close connections.
    fn take_over(start: &Start<'_>, mut predecessor: Box<Predecessor>) -> Self {
        let config = &start.loaded.config;
        let mut warnings = start.warnings.clone();
        let identity = privileges::find(&config.daemon).unwrap_or_else(|refusal| {
            warnings.push(refusal.message);
            None
        });
        // The default depends on the user: a predecessor may have been started by another one.
        // One that its configuration had moved goes back to the default.
        let is_moved = predecessor.configures_its_control();
        let place = start
            .control_place()
            .filter(|place| is_moved || place.said_by != SaidBy::Default);
        let before = || {
            let path = predecessor.control_path()?;
            Some(SocketPath {
                path,
                said_by: SaidBy::Default,
            })
        };
        let place = place.or_else(before).or_else(|| start.control_place());
        let opened = privileges::control_group(&config.control)
            .and_then(|group| open_control_socket(start, place, group, Some(&mut predecessor)));
        let (mut server, caller) = match opened {
            Ok(opened) => opened,
            Err(refusal) => {
                warnings.push(refusal.message);
                // Where it was before, with the group that it has.
                let opened = predecessor.control_path().and_then(|path| {
                    let mode = config.control.mode;
                    predecessor.control_socket(&path, mode, None).ok()
                });
                opened.map_or((None, None), |(server, caller)| (Some(server), caller))
            }
        };
        // As root it may be possible still.
        let lost = server.iter_mut();
        warnings.extend(lost.flat_map(|server| server.restore_file(false)));
        Self {
            identity,
            // They are known when there is a configuration in force.
            roles: Roles::default(),
            server,
            caller,
            warnings,
            listeners: InitialListeners::Successor(predecessor),
        }
    }

    /// The files of all sockets.
    fn created_paths(&self) -> Vec<CreatedPath> {
        let mut created: Vec<CreatedPath> =
            self.server.iter().flat_map(Server::created_paths).collect();
        match &self.listeners {
            InitialListeners::Fresh(first) => created.extend(first.prepared.created_paths()),
            InitialListeners::Successor(predecessor) => created.extend(predecessor.created_paths()),
        }
        created
    }

    /// Becomes the user that the service runs as. A predecessor in this very process already has:
    /// its Landlock rules are inherited.
    fn drop_privileges(&self, start: &Start<'_>) -> Result<Option<Landlock>, Failure> {
        if let Some(identity) = &self.identity {
            let readable = start.origin.folders(&start.texts);
            return privileges::drop_to(identity, &self.created_paths(), readable)
                .map_err(Failure::new);
        }
        Ok(match &self.listeners {
            InitialListeners::Fresh(_) => None,
            InitialListeners::Successor(predecessor) => predecessor.inherited_landlock(),
        })
    }

    /// Starts the workers; those of a successor on any driver rather than none.
    fn start_workers(&mut self, count: usize, start: &Start<'_>) -> Result<Workers, Failure> {
        let config = &start.loaded.config.daemon;
        let started = match (&self.listeners, Workers::start(count, config)) {
            (InitialListeners::Successor(_), Err((_, refusal))) => {
                self.warnings.push(refusal.message);
                let any = config::Daemon {
                    driver: DriverChoice::Auto,
                    ..config.clone()
                };
                Workers::start(count, &any)
            }
            (_, started) => started,
        };
        started.map_err(|(exit, refusal)| start.refused(exit, vec![refusal]))
    }
}

impl First {
    /// Binds all that is configured.
    ///
    /// # Errors
    /// All that is wrong.
    fn bind(config: &Config, workers: usize, passed: Vec<Passed>) -> Result<Self, Vec<String>> {
        let nothing = Config {
            listeners: Default::default(),
            ..config.clone()
        };
        let changes = plan(&nothing, config, &Default::default(), Mood::Real).changes;
        let passed = passed::Sockets::sort(passed, config);
        let nothing_yet = Listeners::default();
        let prepared = nothing_yet.prepare(config, &changes, workers, passed, Mood::Real)?;
        Ok(Self {
            config: Box::new(config.clone()),
            changes,
            prepared,
        })
    }
}

impl Daemon {
    /// Serves what was bound.
    fn begin(
        &mut self,
        first: First,
        mut warnings: Vec<Diagnostic>,
        begun: Instant,
    ) -> Result<(), Failure> {
        let First {
            config,
            changes,
            mut prepared,
        } = first;
        let mut more: Vec<String> = self
            .workers
            .busy_poll_warning(&self.config.daemon)
            .into_iter()
            .collect();
        more.append(&mut prepared.warnings);
        self.passed = std::mem::take(&mut prepared.left_over);
        // The last step that can fail: what was bound is not served before this.
        let now = Instant::now();
        let committed = self
            .listeners
            .commit(prepared, &config, &changes, &self.workers, now);
        more.extend(committed.map_err(|reasons| {
            let reasons = Diagnostic::list(reasons, "error").into_iter();
            Failure {
                exit: Exit::Failed,
                messages: reasons.map(|reason| reason.message).collect(),
            }
        })?);
        warnings.extend(more.iter().map(Diagnostic::general));
        for warning in &warnings {
            log::warn!(
                reload_id = reload::START_ID, listener = warning.listener();
                "{warning}"
            );
        }
        self.update_store();
        self.history = History::start(warnings, changes, begun, now);
        Ok(())
    }

    /// Continues where a predecessor stopped: with its configuration, and then with the present one.
    fn succeed(
        &mut self,
        mut predecessor: Predecessor,
        read: reload::Outcome,
        mut warnings: Vec<String>,
    ) -> UpgradeResult {
        self.passed.append(&mut predecessor.take_passed());
        let record = predecessor.record();
        self.history = History::resume(record.last_reload.clone(), record.generation);
        self.files.fingerprint = record.fingerprint;
        self.started = predecessor.started(Instant::now());
        self.reloads.resume(&record.trial, predecessor.elapsed());
        self.log_level_overridden = record.log_level_overridden;
        let (config, mut result) = predecessor.restore(&mut self.listeners, &self.workers);
        // The manager has passed sockets again that were handed over as well.
        self.listeners.drop_known(&mut self.passed);
        self.continue_with(config);
        // Finds the warnings of the configuration, too.
        self.reload_at_start(read);
        self.update_store();
        warnings.extend(self.workers.busy_poll_warning(&self.config.daemon));
        warnings.iter().for_each(|warning| log::warn!("{warning}"));
        let mut warnings: Vec<_> = warnings.iter().map(Diagnostic::general).collect();
        warnings.extend(self.history.remarks());
        result.warnings = schema::bounded(warnings, 0, "warning");
        result
    }

    /// Tells the caller of an upgrade its outcome.
    fn answer(&mut self, caller: Option<ClientId>, result: Option<UpgradeResult>) {
        if let Some(((server, caller), result)) = self.server.as_mut().zip(caller).zip(result) {
            let reply = Reply::One(protocol::upgraded(result));
            server.reply(caller, reply, Instant::now());
        }
    }
}

/// The value, or nothing and one more reason.
fn collect<T>(result: Result<T, Diagnostic>, reasons: &mut Vec<Diagnostic>) -> Option<T> {
    result.map_err(|reason| reasons.push(reason)).ok()
}

/// The control socket; none where it is not needed and its place is unavailable or unknown.
fn open_control_socket(
    start: &Start<'_>,
    place: Option<SocketPath>,
    group: Option<Gid>,
    predecessor: Option<&mut Predecessor>,
) -> Result<(Option<Server>, Option<ClientId>), Diagnostic> {
    let Some(place) = place else {
        log::warn!(
            "no control socket: neither --socket nor $XDG_RUNTIME_DIR says where; echoctl can't reach this daemon"
        );
        return Ok((None, None));
    };
    let (path, mode) = (&place.path, start.loaded.config.control.mode);
    let group = group.map(Gid::as_raw);
    let opened = match predecessor {
        Some(predecessor) => predecessor.control_socket(path, mode, group),
        None => Server::bind(path, mode, group).map(|server| (server, None)),
    };
    let is_needed = place.is_needed(start.origin.has_file(&start.texts));
    // Without a configuration file it is a trial, which may do without; an operator may not.
    match opened.map_err(|error| check::no_control_socket(&error, &place)) {
        Ok((server, caller)) => Ok((Some(server), caller)),
        Err(refusal) if is_needed => Err(refusal),
        Err(refusal) => {
            log::warn!("no {refusal}");
            Ok((None, None))
        }
    }
}
