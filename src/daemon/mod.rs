//! The control plane: start → ready → serve → drain → stop.
//!
//! One thread, the main one, and one loop: [`Daemon::turn`] waits for signals, for control clients
//! and for reports of the workers, and never for any one of them alone. Never touches a message.
//! Read on in `start` and `stop` for both ends of it, in [`reload`] for how one configuration becomes
//! another, in `upgrade` and `handover` for how a successor goes on, in `listeners` for what is
//! bound, in `workers` for the pool, in `privileges` for who serves, in [`control`] for the socket
//! that `echoctl` speaks to.

#![forbid(unsafe_code)]

pub mod args;
pub mod control;
mod drivers;
mod handover;
mod listeners;
mod log;
pub mod origin;
mod privileges;
pub mod reload;
mod signals;
mod start;
mod stop;
mod succession;
mod systemd;
mod workers;

use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::SigSet;
use nix::unistd::geteuid;

use crate::cli::exit::{self, Failure};
use crate::config::{self, Config, Loaded, render};
use crate::protocol::schema::{self, Trigger};
use crate::protocol::{self as protocol, Effect, Outcome, Role, Snapshot};
use crate::sys::process::{self, Passed};
use crate::worker::mailbox::Report;

use args::Args;
use control::queries::Queries;
use control::{Call, Client, Reply, Server};
use handover::predecessor::Inherited;
use handover::program::CommandLine;
use handover::upgrade::Handover;
use handover::write::Transferred;
use listeners::Listeners;
use origin::{Origin, Texts};
use reload::History;
use signals::{Signal, Signals};
use start::Start;
use stop::DRAIN_LOOK;
use systemd::notify::Manager;
use systemd::status::Status;
use systemd::store::Store;
use systemd::watchdog::Watchdog;
use workers::Workers;

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
    let inherited = Inherited::find(&mut passed);
    signals::inherit_nothing().map_err(|error| Failure::new(format!("signals: {error}")))?;
    let origin = Origin::of(args).map_err(|message| Failure {
        code: 2,
        messages: vec![message],
    })?;
    let (texts, loaded) = reload::load(&origin)
        .or_else(|errors| match &inherited {
            // It is said as soon as there is a log; who is connected does not suffer for it.
            Inherited::State(predecessor) => predecessor.loaded().ok_or(errors),
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
        return check_only(&texts, &loaded);
    }
    match log::start(&loaded.config.log) {
        Err(error) if matches!(inherited, Inherited::State(_)) => {
            // Who is connected does not suffer for this either.
            let stderr = config::Log {
                target: config::LogTarget::Stderr,
                ..loaded.config.log.clone()
            };
            log::start(&stderr).map_err(Failure::new)?;
            ::log::error!("{error}; meanwhile it goes to standard error");
        }
        started => started.map_err(Failure::new)?,
    }
    if let Err(error) = raised {
        ::log::warn!("the limit of descriptors stays as it is: {error}");
    }
    let start = Start {
        args,
        origin,
        texts,
        loaded,
        passed,
        inherited,
        begun,
    };
    let mut daemon = start.run()?;
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
        println!("{}", handover::record::YES);
        return Ok(());
    }
    Err(Failure::new(format!(
        "records of version {version} are not read by echod {}, which reads version {}",
        env!("CARGO_PKG_VERSION"),
        handover::record::VERSION
    )))
}

/// `--check`: the errors in the text have ended it already; the rest is what a start as root would
/// refuse on this machine, without binding anything.
fn check_only(texts: &Texts, loaded: &Loaded) -> Result<(), Failure> {
    for warning in &loaded.warnings {
        eprintln!("echod: warning: {warning}");
    }
    let names: Vec<&str> = texts
        .sources
        .iter()
        .map(|source| source.name.as_str())
        .collect();
    let config = &loaded.config;
    let driver = drivers::foresee(config.daemon.driver);
    let refusals = [
        privileges::check(&config.daemon).err(),
        privileges::control_group(&config.control).err(),
        driver.as_ref().err().cloned(),
    ];
    let (driver, remark) = match driver {
        Ok(driver) if refusals.iter().all(Option::is_none) => driver,
        _ => {
            return Err(Failure {
                code: exit::CONFIGURATION,
                messages: refusals.into_iter().flatten().collect(),
            });
        }
    };
    if let Some(remark) = remark {
        eprintln!("echod: warning: {remark}");
    }
    println!(
        "{}: fine; {} listener(s), driver {driver}",
        names.join(", "),
        config.listeners.len()
    );
    Ok(())
}

/// The running service, as the control plane knows it.
#[derive(Debug)]
struct Daemon {
    command_line: CommandLine,
    origin: Origin,
    // The names of the texts in force.
    files: Vec<String>,
    // What is in force, with what was overridden at run time.
    config: Config,
    // The log level was set at run time.
    log_level_overridden: bool,
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
    fn tell_manager(&self, tell: impl FnOnce(&Manager)) {
        if let Some(manager) = &self.manager {
            tell(manager);
        }
    }

    /// Serves until the end.
    fn serve(&mut self) -> Result<(), Failure> {
        // Those that ended before there was a handler.
        process::reap_children_of_this_thread();
        while !matches!(self.stage, Stage::Ended | Stage::HandedOver) {
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
                Signal::Upgrade => self.upgrade(None, now),
                Signal::ChildEnded => process::reap_children_of_this_thread(),
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
        let timeout = until.map(|until| until.saturating_duration_since(now).into());
        // While the workers are stopped, signals stay pending: for the successor, or for afterwards.
        let mask = if self.is_resting() {
            signals::blocked()
        } else {
            SigSet::empty()
        };
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
        match ppoll(&mut fds, timeout, Some(mask)) {
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
                self.collect(Transferred {
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
        let outcome = if role(&call.client) < protocol::role(&call.request.method) {
            ::log::warn!(
                "control: uid {} (pid {}) may not call {:?}",
                call.client.uid,
                call.client.pid,
                call.request.method
            );
            Outcome::Reply(protocol::permission_denied())
        } else {
            protocol::handle(&call.request, &self.snapshot())
        };
        let reply = match outcome {
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
                    "control: uid {} (pid {}) asks to leave everything to the next process",
                    call.client.uid,
                    call.client.pid
                );
                self.hand_over_to_process(call.id, Instant::now());
                None
            }
            Effect::SetLogLevel { level } => {
                let before = log::set_level(level);
                self.config.log.level = level;
                self.log_level_overridden = true;
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
}

/// What a control client may do: who may connect may change listeners and peers, and the daemon
/// itself only those who could do that without asking.
fn role(client: &Client) -> Role {
    if client.uid == 0 || client.uid == geteuid().as_raw() {
        Role::Admin
    } else {
        Role::Operator
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
