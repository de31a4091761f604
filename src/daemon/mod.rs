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
mod listeners;
mod log;
mod notify;
pub mod origin;
mod privileges;
mod queries;
pub mod reload;
mod signals;
mod workers;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Group, geteuid};

use crate::config::{Config, Loaded, plan, render};
use crate::control::schema::{self, Trigger};
use crate::control::{self as protocol, Effect, Outcome, Snapshot};
use crate::exit::{self, Failure};
use crate::policy::limits::LINGER;
use crate::sys::process;
use crate::worker::mailbox::{Command, Report};

use args::Args;
use control::{Call, Reply, Server};
use listeners::Listeners;
use notify::Manager;
use origin::{Origin, Texts};
use queries::Queries;
use reload::History;
use signals::{Signal, Signals};
use workers::Workers;

/// How often to look whether the last peer has gone, while stopping.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// How long the end may take after the drain: the last words of the peers, and our own.
const END_TIME_MAX: Duration = LINGER.saturating_add(Duration::from_secs(5));

/// How long after `drain-timeout` queues may still be emptied, so that also a timeout of zero serves
/// who is queued.
const QUEUES_TIME_MAX: Duration = Duration::from_secs(1);

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let result = run(&Args::parse());
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
    let origin = Origin::of(args).map_err(|message| Failure {
        code: 2,
        messages: vec![message],
    })?;
    let (texts, loaded) = reload::load(&origin).map_err(|errors| Failure {
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
    let passed = process::take_passed_sockets()
        .map_err(|error| Failure::new(format!("sockets of the service manager: {error}")))?;
    log::start(&loaded.config.log).map_err(Failure::new)?;
    let mut daemon = Daemon::start(args, origin, texts, loaded, passed, begun)?;
    daemon.serve()?;
    daemon.end();
    Ok(())
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
    // None where there is no place for it.
    server: Option<Server>,
    // None where nobody has started us who wants to know.
    manager: Option<Manager>,
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
    Ended,
}

impl Daemon {
    /// Binds everything, and only then says that it is ready.
    fn start(
        args: &Args,
        origin: Origin,
        texts: Texts,
        loaded: Loaded,
        passed: Vec<OwnedFd>,
        begun: Instant,
    ) -> Result<Self, Failure> {
        let Loaded { config, warnings } = loaded;
        if let Err(error) = process::raise_descriptor_limit() {
            ::log::warn!("the limit of descriptors stays as it is: {error}");
        }
        let identity = privileges::find(&config.daemon)?;
        let signals = Signals::new().map_err(|error| Failure::new(format!("signals: {error}")))?;
        let count = config
            .daemon
            .workers
            .map_or_else(available_cpus, usize::from);
        let has_file = !texts.built_in && !matches!(origin, Origin::Arguments(_));
        let server = open_control_socket(args, &config, has_file)?;
        let mut listeners = Listeners::default();
        let nothing = Config {
            listeners: Default::default(),
            ..config.clone()
        };
        let changes = plan(&nothing, &config, &Default::default());
        let prepared = listeners
            .prepare(&config, &changes, count, passed)
            .map_err(|messages| Failure { code: 1, messages })?;
        // What is given up here is given up by this thread and those that it starts: there must be
        // none yet.
        if let Some(identity) = &identity {
            let made = server.iter().flat_map(Server::made);
            let made: Vec<_> = made.chain(prepared.made()).collect();
            listeners.landlock = privileges::drop_to(identity, &made, origin.folders(&texts))
                .map_err(Failure::new)?;
        }
        let manager =
            Manager::find().map_err(|error| Failure::new(format!("sd_notify: {error}")))?;
        let workers = Workers::start(count, &config.daemon).map_err(Failure::new)?;
        privileges::announce(identity.as_ref(), listeners.landlock.as_ref());
        let mut warnings: Vec<_> = warnings.iter().map(reload::diagnostic).collect();
        warnings.extend(
            prepared
                .warnings
                .iter()
                .map(|warning| reload::general(warning)),
        );
        if config.daemon.busy_poll.is_some() && count > available_cpus() {
            warnings.push(reload::general(&busy_poll_warning(count, available_cpus())));
        }
        for warning in &warnings {
            ::log::warn!("{}", reload::text(warning));
        }
        let now = Instant::now();
        listeners.commit(prepared, &config, &changes, &workers, now);

        let daemon = Self {
            origin,
            files: texts
                .sources
                .into_iter()
                .map(|source| source.name)
                .collect(),
            config,
            history: History::start(warnings, &changes, begun, now),
            started: now,
            stage: Stage::Serving,
            signals,
            workers,
            listeners,
            queries: Queries::default(),
            server,
            manager,
        };
        daemon.announce(texts.built_in);
        Ok(daemon)
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
                "listener \"{name}\": {protocol} on {}, reply {reply}",
                addresses.join(", ")
            );
        }
        let workers = self.workers.count();
        ::log::info!(
            "echod {} is ready: {workers} worker(s), driver {}",
            env!("CARGO_PKG_VERSION"),
            self.workers.driver()
        );
        self.tell_manager(|manager| manager.ready(&self.status_line()));
    }

    fn tell_manager(&self, tell: impl FnOnce(&Manager)) {
        if let Some(manager) = &self.manager {
            tell(manager);
        }
    }

    fn status_line(&self) -> String {
        let (listeners, connections) = (
            self.listeners.count(),
            self.listeners.totals().connections(),
        );
        let generation = self.history.generation;
        let mut line =
            format!("{listeners} listeners, {connections} connections, generation {generation}");
        let last = &self.history.last;
        if let Some(error) = last.errors.first() {
            line += &format!("; reload {} rejected: {}", last.id, reload::text(error));
        }
        line
    }

    /// Serves until the end.
    fn serve(&mut self) -> Result<(), Failure> {
        while self.stage != Stage::Ended {
            self.turn()
                .map_err(|error| Failure::new(format!("control plane: {error}")))?;
        }
        Ok(())
    }

    fn turn(&mut self) -> std::io::Result<()> {
        self.wait()?;
        let now = Instant::now();
        for signal in self.signals.take() {
            match signal {
                Signal::Reload => _ = self.reload(Trigger::Signal, false),
                Signal::Stop => self.stop(now),
            }
        }
        for report in self.workers.take_reports() {
            self.handle_report(report, now);
        }
        let calls = self
            .server
            .as_mut()
            .map(|server| server.turn(now))
            .unwrap_or_default();
        for call in calls {
            self.handle_call(&call, now);
        }
        self.listeners.sweep(&self.workers, now);
        self.go_on_stopping(now);
        Ok(())
    }

    fn wait(&self) -> std::io::Result<()> {
        let now = Instant::now();
        let stage = match self.stage {
            Stage::Serving | Stage::Ended => None,
            Stage::Leaving { until } => Some(until),
            Stage::Draining { .. } | Stage::Finishing { .. } | Stage::Emptying { .. } => {
                Some(now + DRAIN_LOOK)
            }
        };
        let control = self.server.as_ref().and_then(Server::poll_timeout);
        let until = [stage, control, self.listeners.next_sweep(now)]
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
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn handle_report(&mut self, report: Report, now: Instant) {
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
            ::log::error!("listener \"{name}\": backlog {backlog}: {error}");
        }
        if let Some(listener) = self.config.listeners.get_mut(name) {
            listener.backlog = backlog;
        }
        let after = self.listeners.backlog(name).unwrap_or_default();
        ::log::info!(
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
        let delay = self.config.daemon.shutdown_delay;
        let time = delay + self.config.daemon.drain_timeout + END_TIME_MAX;
        self.tell_manager(|manager| manager.needs_time_to_stop(time));
        self.stage = Stage::Leaving { until: now + delay };
        let words = format!(
            "stopping; serving on for {}",
            humantime::format_duration(delay)
        );
        if !delay.is_zero() {
            ::log::info!("{words}");
            self.tell_manager(|manager| manager.status(&words));
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
                let status = format!("draining {connections} connections");
                self.tell_manager(|manager| manager.stopping(&status));
                self.listeners.retire_streams(&self.workers, now);
                self.stage = Stage::Draining {
                    until: now + timeout,
                };
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
            Self::Finishing { .. } | Self::Emptying { .. } | Self::Ended => "stopping",
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
) -> Result<Option<Server>, Failure> {
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
        return Ok(None);
    };
    match Server::bind(&path, config.control.mode, group) {
        Ok(server) => Ok(Some(server)),
        Err(error) if is_default && !has_file => {
            ::log::warn!("no control socket: {error}");
            Ok(None)
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
