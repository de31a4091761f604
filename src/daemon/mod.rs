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
mod systemd;
mod workers;

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::geteuid;

use crate::cli::arguments;
use crate::cli::exit::{self, Exit, Failure, print_or_end};
use crate::cli::terminal::complain;
use crate::config::{self, Config, Loaded, render};
use crate::protocol::schema::{self, Trigger};
use crate::protocol::{self as protocol, Effect, Outcome, Role, Snapshot};
use crate::sys::process::{self, Passed};
use crate::worker::mailbox::Report;

use args::Args;
use control::queries::Queries;
use control::{Call, Client, Reply, Server};
use handover::upgrade::{Handover, Invocation};
use handover::{Belongings, Legacy};
use listeners::Listeners;
use origin::{Origin, Texts};
use reload::History;
use signals::{Signal, Signals};
use stop::DRAIN_LOOK;
use systemd::notify::Manager;
use systemd::status::Status;
use systemd::store::Store;
use systemd::watchdog::Watchdog;
use workers::Workers;

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let args: Args = match arguments::parse() {
        Ok(args) => args,
        Err(status) => return status,
    };
    let result = caught(|| run(&args));
    ::log::logger().flush();
    // The journal has to be told that this is an error; it takes the prefix away.
    let name = if log::stderr_is_journal() {
        "<3>echod"
    } else {
        "echod"
    };
    if !log::is_started() {
        return exit::end(name, result);
    }
    // A standard error that takes nothing must not keep a service from its end.
    let Err(failure) = result else {
        return Exit::Done.into();
    };
    log::write_last_words(&failure.text(name));
    failure.exit.into()
}

/// A panic ends the program with a status of its own table; where it was is reported by the hook.
fn caught(run: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
        let message = "the control plane panicked, which is a bug in echod; the service ends";
        Err(Failure::new(message))
    })
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
    let origin = Origin::of(args).map_err(|message| Failure::with(Exit::Usage, message))?;
    let (texts, loaded) = reload::load(&origin)
        .or_else(|errors| match &legacy {
            // It is said as soon as there is a log; who is connected does not suffer for it.
            Legacy::Whole(predecessor) => predecessor.loaded().ok_or(errors),
            _ => Err(errors),
        })
        .map_err(|errors| {
            Failure::configuration(errors.iter().map(ToString::to_string).collect())
        })?;
    if args.print_config {
        return print_or_end(render(&loaded.config).as_bytes());
    }
    if args.check {
        return check_only(&texts, &loaded);
    }
    match log::start(&loaded.config.log) {
        Err(error) if matches!(legacy, Legacy::Whole(_)) => {
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
        return print_or_end(format!("{}\n", handover::record::YES).as_bytes());
    }
    Err(Failure::new(format!(
        "records of version {version} are not read by echod {}, which reads version {}",
        env!("CARGO_PKG_VERSION"),
        handover::record::VERSION
    )))
}

/// `--check`: the errors have ended it already; what is left is good, or odd.
fn check_only(texts: &Texts, loaded: &Loaded) -> Result<(), Failure> {
    let warn = |warning: &dyn std::fmt::Display| complain(&format!("echod: warning: {warning}\n"));
    loaded.warnings.iter().for_each(|warning| warn(warning));
    let names: Vec<&str> = texts
        .sources
        .iter()
        .map(|source| source.name.as_str())
        .collect();
    // What this machine refuses is no mistake in the file.
    if let Err(message) = privileges::check(&loaded.config.daemon) {
        warn(&message);
    }
    let (driver, remark) = drivers::foresee(loaded.config.daemon.driver);
    if let Some(remark) = remark {
        warn(&remark);
    }
    let fine = format!(
        "{}: fine; {} listener(s), driver {driver}\n",
        names.join(", "),
        loaded.config.listeners.len()
    );
    print_or_end(fine.as_bytes())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_control_plane_is_a_failure() {
        let failure = caught(|| panic!("as a test")).unwrap_err();
        assert_eq!(failure.exit, Exit::Failed);
        assert!(caught(|| Ok(())).is_ok());
    }
}
