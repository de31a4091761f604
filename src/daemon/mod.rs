//! The control plane: start → ready → serve → drain → stop.
//!
//! One thread, the main one, and one loop: [`Daemon::turn`] waits for signals, for control clients
//! and for reports of the workers, and never for any one of them alone. Never touches a message.
//! Read on in [`reload`] for how one configuration becomes another, in `listeners` for what is
//! bound, in `workers` for the pool, in `privileges` for who serves, in [`control`] for the socket
//! that `echoctl` speaks to.

#![forbid(unsafe_code)]

pub mod args;
mod bind;
pub mod control;
mod drivers;
mod handover;
mod listeners;
mod log;
mod notify;
pub mod origin;
mod passed;
mod privileges;
mod queries;
pub mod reload;
mod signals;
mod status;
mod store;
mod upgrade;
mod watchdog;
mod workers;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Group, geteuid};

use crate::config::{self, Config, Loaded, plan, render};
use crate::control::schema::{self, Trigger, UpgradeResult};
use crate::control::{self as protocol, Effect, Outcome, Snapshot};
use crate::exit::{self, Failure};
use crate::policy::limits::LINGER;
use crate::sys::process::{self, Passed};
use crate::sys::socket;
use crate::worker::mailbox::{Command, Report};

use args::Args;
use control::{Call, ClientId, Reply, Server};
use handover::{Belongings, Legacy, Predecessor};
use listeners::{Listeners, Prepared};
use notify::Manager;
use origin::{Origin, Texts};
use queries::Queries;
use reload::History;
use signals::{Signal, Signals};
use status::Status;
use store::Store;
use upgrade::{Handover, Invocation};
use watchdog::Watchdog;
use workers::Workers;

/// How often to look whether the last peer has gone, while stopping.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// How long after `drain-timeout` queues may still be emptied, so that also a timeout of zero serves
/// who is queued.
const QUEUES_TIME_MAX: Duration = Duration::from_secs(1);

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let result = run(&Args::parse());
    ::log::logger().flush();
    // The journal has to be told that this is an error; it takes the prefix away.
    let name = if log::stderr_is_journal() {
        "<3>echod"
    } else {
        "echod"
    };
    exit::end(name, result)
}

fn run(args: &Args) -> Result<(), Failure> {
    let begun = Instant::now();
    if let Some(version) = args.can_take_over {
        return can_take_over(version);
    }
    let mut passed = process::take_passed_sockets()
        .map_err(|error| Failure::new(format!("sockets of the service manager: {error}")))?;
    // What was left may be much.
    let raised = process::raise_descriptor_limit();
    let legacy = match Legacy::of_this_process() {
        Legacy::Nothing => Legacy::of_manager(&mut passed),
        executed => executed,
    };
    // Before the first thread: only this one is to be interrupted.
    signals::block_all().map_err(|error| Failure::new(format!("signals: {error}")))?;
    let origin = Origin::of(args).map_err(|message| Failure {
        code: 2,
        messages: vec![message],
    })?;
    let (texts, loaded) = reload::load(&origin)
        .or_else(|errors| match &legacy {
            // It is said as soon as there is a log; who is connected does not suffer for it.
            Legacy::Whole(predecessor) => predecessor.loaded().ok_or(errors),
            _ => Err(errors),
        })
        .map_err(|errors| Failure {
            code: exit::CONFIGURATION,
            messages: errors.iter().map(ToString::to_string).collect(),
        })?;
    if args.print_config {
        print!("{}", render(&loaded.config));
        return Ok(());
    }
    if args.check {
        check_only(&texts, &loaded);
        return Ok(());
    }
    log::start(&loaded.config.log).map_err(Failure::new)?;
    if let Err(error) = raised {
        ::log::warn!("the limit of descriptors stays as it is: {error}");
    }
    let mut daemon = Daemon::start(args, origin, texts, loaded, passed, legacy, begun)?;
    daemon.serve()?;
    if daemon.stage == Stage::HandedOver {
        // The successor's are the files of sockets, which our end would remove.
        std::mem::forget(daemon);
    } else {
        daemon.end();
    }
    Ok(())
}

/// `--can-take-over`: what a running daemon asks the program that is to be its successor.
fn can_take_over(version: u32) -> Result<(), Failure> {
    if version == handover::record::VERSION {
        return Ok(());
    }
    Err(Failure::new(format!(
        "records of version {version} are not read by echod {}, which reads version {}",
        env!("CARGO_PKG_VERSION"),
        handover::record::VERSION
    )))
}

/// `--check`: the errors have ended it already; what is left is good, or odd.
fn check_only(texts: &Texts, loaded: &Loaded) {
    for warning in &loaded.warnings {
        eprintln!("echod: warning: {warning}");
    }
    let names: Vec<&str> = texts
        .sources
        .iter()
        .map(|source| source.name.as_str())
        .collect();
    // What this machine refuses is no mistake in the file.
    if let Err(message) = privileges::check(&loaded.config.daemon) {
        eprintln!("echod: warning: {message}");
    }
    let (driver, remark) = drivers::foresee(loaded.config.daemon.driver);
    if let Some(remark) = remark {
        eprintln!("echod: warning: {remark}");
    }
    println!(
        "{}: fine; {} listener(s), driver {driver}",
        names.join(", "),
        loaded.config.listeners.len()
    );
}

/// The running service, as the control plane knows it.
#[derive(Debug)]
struct Daemon {
    invocation: Invocation,
    origin: Origin,
    // The names of the texts in force.
    files: Vec<String>,
    // What is in force, with what was overridden at run time.
    config: Config,
    history: History,
    started: Instant,
    stage: Stage,
    signals: Signals,
    workers: Workers,
    listeners: Listeners,
    queries: Queries,
    // An upgrade on its way.
    handover: Option<Handover>,
    store: Store,
    // For a successor's first look at the configuration.
    passed: Vec<Passed>,
    // None where there is no place for it.
    server: Option<Server>,
    // None where nobody has started us who wants to know.
    manager: Option<Manager>,
    status: Status,
    // None where no manager waits for it.
    watchdog: Option<Watchdog>,
}

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
        let changes = plan(&nothing, config, &Default::default());
        let prepared = Listeners::default()
            .prepare(
                config,
                &changes,
                workers,
                passed::Sockets::sort(passed, config),
            )
            .map_err(|messages| Failure { code: 1, messages })?;
        Ok(Self { changes, prepared })
    }
}

/// How far the service has come in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Serving,
    /// Told to stop, and serving on as not ready, for load balancers (`shutdown-delay`).
    Leaving {
        until: Instant,
    },
    /// Nobody new comes in; those there are go on (`drain-timeout`).
    Draining {
        until: Instant,
    },
    /// Those still there got our FIN.
    Finishing {
        until: Instant,
    },
    /// The connections are over; the datagrams that have come are answered.
    Emptying {
        until: Instant,
    },
    /// Everything is kept for the next process.
    HandedOver,
    Ended,
}

impl Daemon {
    /// Binds everything, and only then says that it is ready.
    fn start(
        args: &Args,
        origin: Origin,
        texts: Texts,
        loaded: Loaded,
        mut passed: Vec<Passed>,
        legacy: Legacy,
        begun: Instant,
    ) -> Result<Self, Failure> {
        let Loaded { config, warnings } = loaded;
        let invocation = Invocation::of_this_process()
            .map_err(|error| Failure::new(format!("where this program is: {error}")))?;
        let mut predecessor = None;
        let was_kept = legacy.was_kept();
        match legacy {
            Legacy::Nothing => {}
            Legacy::Whole(whole) => predecessor = Some(*whole),
            Legacy::Pieces {
                descriptors, error, ..
            } => {
                ::log::error!(
                    "what the predecessor left can't be read: {error}; \
                     its connections are closed, its sockets are served"
                );
                let bound = |fd: &OwnedFd| socket::is_bound(fd.as_fd());
                passed.extend(descriptors.into_iter().filter(bound).map(|fd| Passed {
                    name: String::new(),
                    fd,
                }));
            }
        }
        let identity = match (privileges::find(&config.daemon), &predecessor) {
            (Err(failure), Some(_)) => {
                // Who is connected does not suffer for it.
                for message in failure.messages {
                    ::log::error!("{message}");
                }
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
        let (server, caller) = open_control_socket(args, &config, has_file, &mut predecessor)?;
        let mut store = Store::default();
        store.know(store::names(&passed));
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
            .and_then(|predecessor| predecessor.record().landlock.clone());
        if let Some(identity) = &identity {
            let made = server.iter().flat_map(Server::made);
            let made = made.chain(first.iter().flat_map(|first| first.prepared.made()));
            let made = made.chain(predecessor.iter().flat_map(Predecessor::made));
            let made: Vec<_> = made.collect();
            landlock = privileges::drop_to(identity, &made, origin.folders(&texts))
                .map_err(Failure::new)?;
        }
        privileges::announce(identity.as_ref(), landlock.as_ref());
        let manager =
            Manager::find().map_err(|error| Failure::new(format!("sd_notify: {error}")))?;
        if let Some(manager) = manager.as_ref().filter(|_| was_kept) {
            manager.let_go(handover::STORED);
        }
        let workers = Workers::start(count, &config.daemon).map_err(Failure::new)?;
        let now = Instant::now();
        let mut daemon = Self {
            invocation,
            origin,
            files: texts
                .sources
                .into_iter()
                .map(|source| source.name)
                .collect(),
            config,
            history: History::none(),
            started: now,
            stage: Stage::Serving,
            signals,
            workers,
            listeners: Listeners::default(),
            queries: Queries::default(),
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
        let mut warnings: Vec<_> = warnings.iter().map(reload::diagnostic).collect();
        if daemon.config.daemon.busy_poll.is_some() && count > available_cpus() {
            warnings.push(reload::general(&busy_poll_warning(count, available_cpus())));
        }
        daemon.listeners.landlock = landlock;
        if let Some(first) = first {
            daemon.begin(first, warnings, begun);
        }
        let result = predecessor.map(|predecessor| daemon.succeed(predecessor));
        daemon.announce(texts.built_in);
        daemon.tell_ready(now);
        if let Some(((server, caller), result)) = daemon.server.as_mut().zip(caller).zip(result) {
            let reply = Reply::One(protocol::upgraded(result));
            server.reply(caller, reply, Instant::now());
        }
        Ok(daemon)
    }

    /// Serves what was bound.
    fn begin(&mut self, first: First, mut warnings: Vec<schema::Diagnostic>, begun: Instant) {
        let First { changes, prepared } = first;
        let more = prepared.warnings.iter();
        warnings.extend(more.map(|warning| reload::general(warning)));
        for warning in &warnings {
            ::log::warn!(
                reload_id = reload::START_ID, listener = reload::listener_of(warning);
                "{}", reload::text(warning)
            );
        }
        let now = Instant::now();
        self.listeners
            .commit(prepared, &self.config, &changes, &self.workers, now);
        self.update_store();
        self.history = History::start(warnings, &changes, begun, now);
    }

    /// Goes on where a predecessor stopped: with its configuration, and then with the one that there
    /// is now.
    fn succeed(&mut self, predecessor: Predecessor) -> UpgradeResult {
        let record = predecessor.record();
        self.history = History::resume(record.last_reload.clone(), record.generation);
        self.started = predecessor.started(Instant::now());
        let (config, result) = predecessor.restore(&mut self.listeners, &self.workers);
        self.config.listeners = config.listeners;
        // What was passed again is here already.
        self.passed
            .retain(|passed| !self.listeners.has(passed.fd.as_fd()));
        self.reload(Trigger::Start, false);
        self.update_store();
        result
    }

    fn announce(&self, built_in: bool) {
        if built_in {
            ::log::info!(
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
            ::log::info!(
                reload_id = reload::START_ID, listener = name.as_str();
                "listener \"{name}\": {protocol} on {}, reply {reply}",
                addresses.join(", ")
            );
        }
        let workers = self.workers.count();
        ::log::info!(
            reload_id = reload::START_ID;
            "echod {} is ready: {workers} worker(s), driver {}",
            env!("CARGO_PKG_VERSION"),
            self.workers.driver()
        );
    }

    fn tell_manager(&self, tell: impl FnOnce(&Manager)) {
        if let Some(manager) = &self.manager {
            tell(manager);
        }
    }

    /// Serves until the end.
    fn serve(&mut self) -> Result<(), Failure> {
        signals::unblock_all();
        while !matches!(self.stage, Stage::Ended | Stage::HandedOver) {
            self.turn()
                .map_err(|error| Failure::new(format!("control plane: {error}")))?;
        }
        Ok(())
    }

    fn turn(&mut self) -> std::io::Result<()> {
        self.wait()?;
        let now = Instant::now();
        // While everybody rests they wait: it is a moment.
        let signals = if self.is_resting() {
            Vec::new()
        } else {
            self.signals.take()
        };
        for signal in signals {
            match signal {
                Signal::Reload => _ = self.reload(Trigger::Signal, false),
                Signal::Stop => self.stop(now),
                Signal::Upgrade => self.upgrade(None, now),
            }
        }
        for report in self.workers.take_reports() {
            self.handle_report(report, now);
        }
        self.go_on_handing_over(now);
        // Who asks something then is answered by the successor.
        let is_resting = self.is_resting();
        let calls = self
            .server
            .as_mut()
            .filter(|_| !is_resting)
            .map(|server| server.turn(now))
            .unwrap_or_default();
        for call in calls {
            self.handle_call(&call, now);
        }
        self.listeners.sweep(&self.workers, now);
        self.go_on_stopping(now);
        self.keep_manager_informed(now);
        log::tell_suppressed(now);
        Ok(())
    }

    fn wait(&self) -> std::io::Result<()> {
        let now = Instant::now();
        let stage = match self.stage {
            Stage::Serving | Stage::HandedOver | Stage::Ended => None,
            Stage::Leaving { until } => Some(until),
            Stage::Draining { .. } | Stage::Finishing { .. } | Stage::Emptying { .. } => {
                Some(now + DRAIN_LOOK)
            }
        };
        let control = self.server.as_ref().and_then(Server::poll_timeout);
        let sweep = self.listeners.next_sweep(now);
        let handover = self.next_handover_step(now);
        let until = [stage, control, sweep, handover, self.next_word()]
            .into_iter()
            .flatten()
            .min();
        let timeout = until.map_or(PollTimeout::NONE, |until| {
            let left = until.saturating_duration_since(now) + Duration::from_nanos(999_999);
            PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.workers.control().as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(
            self.server
                .iter()
                .map(|server| PollFd::new(server.as_fd(), PollFlags::POLLIN)),
        );
        fds.extend(log::timer().map(|timer| PollFd::new(timer, PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn handle_report(&mut self, report: Report<OwnedFd>, now: Instant) {
        let answer = match report {
            Report::Retired { id, .. } => {
                self.listeners.handle_retired(id);
                None
            }
            Report::Peers { query, peers, last } => {
                self.queries
                    .handle_peers(query, &peers, last, &self.listeners, &self.workers)
            }
            Report::PeersClosed { query, closed } => self.queries.handle_closed(query, closed),
            Report::HandedOver {
                worker,
                connections,
                sources,
                last_id,
            } => {
                let of_worker = |(listener, source)| (worker, listener, source);
                self.collect(Belongings {
                    workers: vec![worker],
                    connections: connections
                        .into_iter()
                        .map(|connection| (worker, connection))
                        .collect(),
                    sources: sources.into_iter().map(of_worker).collect(),
                    last_peer: last_id,
                });
                None
            }
            Report::Alive { worker } => {
                self.handle_alive(worker, now);
                None
            }
        };
        if let Some(((client, reply), server)) = answer.zip(self.server.as_mut()) {
            server.reply(client, reply, now);
        }
    }

    fn handle_call(&mut self, call: &Call, now: Instant) {
        let reply = match protocol::handle(&call.request, &self.snapshot()) {
            Outcome::Reply(reply) => reply,
            Outcome::Effect(effect) => match self.carry_out(effect, call) {
                Some(reply) => reply,
                // The workers have been asked.
                None => return,
            },
        };
        if let Some(server) = &mut self.server {
            server.reply(call.id, Reply::One(reply), now);
        }
    }

    fn carry_out(&mut self, effect: Effect, call: &Call) -> Option<protocol::wire::Reply> {
        match effect {
            Effect::ListPeers(query) => {
                self.queries.list(call.id, query, &self.workers);
                None
            }
            Effect::ClosePeers { query, dry_run } => {
                if !dry_run {
                    ::log::info!(
                        listener = query.listener.as_deref();
                        "control: uid {} (pid {}) closes peers: {query:?}",
                        call.client.uid,
                        call.client.pid
                    );
                }
                self.queries.close(call.id, query, dry_run, &self.workers);
                None
            }
            Effect::SetBacklog { listener, backlog } => {
                Some(self.set_backlog(&listener, backlog, call))
            }
            Effect::Reload { dry_run } => {
                Some(protocol::reloaded(self.reload(Trigger::Control, dry_run)))
            }
            Effect::Upgrade => {
                ::log::info!(
                    "control: uid {} (pid {}) asks for an upgrade",
                    call.client.uid,
                    call.client.pid
                );
                self.upgrade(Some(call.id), Instant::now());
                None
            }
            Effect::HandOver => {
                ::log::info!(
                    "control: uid {} (pid {}) has everything left to the next process",
                    call.client.uid,
                    call.client.pid
                );
                self.hand_over_to_process(call.id, Instant::now());
                None
            }
            Effect::SetLogLevel { level } => {
                let before = log::set_level(level);
                self.config.log.level = level;
                ::log::info!(
                    "control: uid {} sets the log level: {before} → {level}",
                    call.client.uid
                );
                let name = |level: ::log::LevelFilter| level.as_str().to_ascii_lowercase();
                let reply = schema::SetLogLevelReply {
                    before: name(before),
                    after: name(level),
                };
                Some(protocol::reply(&reply))
            }
        }
    }

    fn set_backlog(&mut self, name: &str, backlog: u32, call: &Call) -> protocol::wire::Reply {
        let before = self.listeners.backlog(name).unwrap_or_default();
        if let Err(error) = self.listeners.set_backlog(name, backlog) {
            ::log::error!(listener = name; "listener \"{name}\": backlog {backlog}: {error}");
        }
        if let Some(listener) = self.config.listeners.get_mut(name) {
            listener.backlog = backlog;
            listener.backlog_is_set = true;
        }
        let after = self.listeners.backlog(name).unwrap_or_default();
        ::log::info!(
            listener = name;
            "control: uid {} (pid {}) sets the backlog of \"{name}\": {} → {backlog}, effective {}",
            call.client.uid,
            call.client.pid,
            before.requested,
            after.effective
        );
        protocol::reply(&schema::SetBacklogReply { before, after })
    }

    fn snapshot(&self) -> Snapshot {
        let totals = self.listeners.totals();
        let status = schema::Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            state: self.stage.name().into(),
            driver: self.workers.driver().name().into(),
            workers: self.workers.count() as u32,
            config: self.files.clone(),
            generation: self.history.generation,
            last_reload: self.history.last.clone(),
            listeners: self.listeners.count() as u64,
            connections: totals.connections(),
            bytes_received: totals.bytes_received,
            bytes_sent: totals.bytes_sent,
        };
        Snapshot {
            status,
            listeners: self.listeners.report(),
            config: render(&self.config),
        }
    }

    fn is_stopping(&self) -> bool {
        self.stage != Stage::Serving
    }

    /// The first time, begins to stop; the second time, stops at once.
    fn stop(&mut self, now: Instant) {
        if self.is_stopping() {
            self.stage = Stage::Ended;
            return;
        }
        self.give_up_handover(now);
        let delay = self.config.daemon.shutdown_delay;
        self.stage = Stage::Leaving { until: now + delay };
        if !delay.is_zero() {
            self.tell_status(now);
            ::log::info!(
                "stopping; serving on for {}",
                humantime::format_duration(delay)
            );
        }
    }

    fn go_on_stopping(&mut self, now: Instant) {
        match self.stage {
            Stage::Leaving { until } if now >= until => {
                let timeout = self.config.daemon.drain_timeout;
                let connections = self.listeners.totals().connections();
                ::log::info!(
                    "stopping: {connections} connection(s) have {} to finish",
                    humantime::format_duration(timeout)
                );
                self.empty_store();
                self.listeners.retire_streams(&self.workers, now);
                self.stage = Stage::Draining {
                    until: now + timeout,
                };
                self.tell_manager(Manager::stopping);
                self.tell_status(now);
            }
            // Without descriptors a queue can't be emptied, and peers that stay leave none: the end
            // does not wait for that.
            Stage::Draining { until }
                if self.listeners.all_retired() || now >= until + QUEUES_TIME_MAX =>
            {
                let connections = self.listeners.totals().connections();
                if connections == 0 {
                    self.empty(now);
                } else if now >= until {
                    ::log::info!(
                        "stopping: {connections} connection(s) did not finish in time and are closed"
                    );
                    self.workers.command_all(|_| Command::Finish);
                    self.stage = Stage::Finishing {
                        until: now + LINGER + Duration::from_secs(1),
                    };
                }
            }
            Stage::Finishing { until }
                if now >= until || self.listeners.totals().connections() == 0 =>
            {
                self.empty(now);
            }
            Stage::Emptying { until } if now >= until || self.listeners.all_retired() => {
                self.stage = Stage::Ended;
            }
            _ => {}
        }
    }

    /// Datagrams are served to the very end, and nobody who sent one in time is left without.
    fn empty(&mut self, now: Instant) {
        self.listeners.retire_all(&self.workers, now);
        self.stage = Stage::Emptying {
            until: now + Duration::from_secs(1),
        };
    }

    /// Lets go of everything, in order.
    fn end(self) {
        let totals = self.listeners.totals();
        self.workers.stop();
        // Takes the socket files with it.
        drop(self.listeners);
        ::log::info!(
            "stopped after {} connection(s), {} datagram(s); {} cut",
            totals.accepted,
            totals.datagrams_received,
            totals.connections()
        );
        if let Some(manager) = self.manager {
            manager.end();
        }
    }
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Leaving { .. } => "leaving",
            Self::Draining { .. } => "draining",
            Self::Finishing { .. } | Self::Emptying { .. } | Self::HandedOver | Self::Ended => {
                "stopping"
            }
        }
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
    let group = match &config.control.group {
        None => None,
        Some(name) => {
            let group = Group::from_name(name).ok().flatten().ok_or_else(|| Failure {
                code: exit::CONFIGURATION,
                messages: vec![format!("[control] group \"{name}\": there is no such group: groupadd --system {name}")],
            })?;
            Some(group.gid.as_raw())
        }
    };
    let asked = args
        .socket
        .clone()
        .or_else(|| config.control.socket.clone());
    let is_default = asked.is_none();
    let Some(path) = asked.or_else(default_control_socket) else {
        ::log::warn!(
            "no control socket: neither --socket nor $XDG_RUNTIME_DIR says where; echoctl can't reach this daemon"
        );
        return Ok((None, None));
    };
    let failed = |error| Failure::new(format!("control socket: {error}"));
    let adopted = predecessor
        .as_mut()
        .and_then(|predecessor| predecessor.control_socket(&path, config.control.mode, group));
    if let Some((server, caller)) = adopted.transpose().map_err(failed)? {
        return Ok((Some(server), caller));
    }
    match Server::bind(&path, config.control.mode, group) {
        Ok(server) => Ok((Some(server), None)),
        Err(error) if is_default && !has_file => {
            ::log::warn!("no control socket: {error}");
            Ok((None, None))
        }
        Err(error) => Err(failed(error)),
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
