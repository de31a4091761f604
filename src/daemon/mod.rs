//! The control plane: start → ready → serve → drain → stop.
//!
//! One thread, the main one, and one loop: [`Daemon::turn`] waits for signals, for control clients
//! and for reports of the workers, and never for any one of them alone. Never touches a message.
//! Read on in `start` and `stop` for both ends of it, in [`reload`] for how one configuration becomes
//! another, in `check` for what a start refuses, in `succession` and `handover` for how a successor
//! continues, in `listeners` for what is bound, in `workers` for the pool, in `privileges` for the user of the
//! process, in `roles` for what other users may do, in `systemd` for what the service manager receives,
//! in [`control`] for the socket that `echoctl` speaks to, in `calls` for the calls of its clients, in
//! `pausing` for listeners that take no new clients, in `files` for what became of the configuration files.

#![forbid(unsafe_code)]

mod announce;
pub(crate) mod args;
mod aside;
mod calls;
mod check;
pub(crate) mod control;
mod drivers;
mod files;
mod handover;
mod listeners;
mod log;
pub(crate) mod origin;
mod pausing;
mod privileges;
mod record;
pub(crate) mod reload;
mod roles;
mod signals;
mod socket_file;
mod stage;
mod start;
mod stop;
mod succession;
mod systemd;
mod workers;

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::SigSet;

use crate::cli::arguments;
use crate::cli::exit::{self, Exit, Failure, print_or_end};
use crate::cli::text::cause;
use crate::config::{self, Config, Loaded, render};
use crate::driver::region::ensure_room;
use crate::protocol::schema::Diagnostic;
use crate::sys::process::{self, Passed};
use crate::worker::mailbox::{Command, Report};

use args::Args;
use control::Server;
use files::Files;
use handover::predecessor::{Inherited, Predecessor};
use handover::program::CommandLine;
use handover::upgrade::Handover;
use handover::write::Transferred;
use listeners::Listeners;
use origin::{Origin, Texts};
use pausing::Pausing;
use reload::{History, Reloads, Request};
use roles::Roles;
use signals::{Signal, Signals};
use stage::Stage;
use start::Start;
use stop::DRAIN_LOOK;
use systemd::Supervision;
use systemd::notify::Manager;
use systemd::status::Summary;
use workers::Workers;

/// The stacks of the threads beside the workers, for the log and for messages to the service manager.
const THREADS_BYTES: usize = 4 << 20;

/// The program.
#[must_use]
pub(crate) fn main() -> ExitCode {
    // First of all, because from here on the allocator, and a thread that begins, end the process
    // where there is no memory.
    if let Err(error) = ensure_room(THREADS_BYTES) {
        return exit::end("echod", Err(workers::no_room(&error)));
    }
    let args: Args = match arguments::parse() {
        Ok(args) => args,
        Err(status) => return status,
    };
    let result = caught(|| run(&args));
    ::log::logger().flush();
    // The journal learns from the prefix, which it takes away, that this is an error.
    let name = if log::stderr_is_journal() {
        "<3>echod"
    } else {
        "echod"
    };
    // Of a check everything is of interest, however slowly it is read.
    if args.check {
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
    if let (Some(version), false) = (args.can_take_over, args.check) {
        return can_take_over(version);
    }
    let mut passed = process::take_passed_sockets()
        .map_err(|error| Failure::of("sockets of the service manager", &error))?;
    // What was left may be much.
    let raised = process::raise_descriptor_limit();
    let inherited = Inherited::find(&mut passed);
    signals::inherit_nothing().map_err(|error| Failure::of("signals", &error))?;
    let origin = Origin::of(args).map_err(|message| Failure::with(Exit::Usage, message))?;
    let read = match inherited.predecessor() {
        // Its connections wait.
        Some(predecessor) => reload::load_in_time(&origin, &predecessor.record().files),
        None => reload::load_texts(&origin, &[])
            // A start resolves them together with all else that it takes from the machine.
            .map(|(texts, loaded)| (texts, loaded, Roles::default()))
            .map_err(|mut rejection| {
                rejection.errors = check::completed(rejection.errors, &origin);
                rejection
            }),
    };
    let (texts, loaded) = to_be_in_force(&read, &origin, &inherited)?;
    if args.print_config {
        return print_or_end(render(&loaded.config).as_bytes());
    }
    if args.check {
        return check::check_only(args, &origin, &texts, &loaded);
    }
    let succeeds = inherited.predecessor().is_some();
    let warnings = start_log(&loaded.config.log, succeeds).map_err(|error| {
        let error = check::located(vec![error], &loaded, &origin, &texts);
        check::refused(Exit::Failed, &error)
    })?;
    if let Err(error) = raised {
        ::log::warn!("the limit of descriptors stays as it is: {}", cause(&error));
    }
    let start = Start {
        args,
        origin,
        texts,
        loaded,
        read,
        passed,
        inherited,
        warnings,
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

/// What was read, or, where that is wrong, what the predecessor had. That it is wrong is logged as soon
/// as there is a log; connections do not suffer for it.
fn to_be_in_force(
    read: &reload::Outcome,
    origin: &Origin,
    inherited: &Inherited,
) -> Result<(Texts, Loaded), Failure> {
    let before = || inherited.predecessor().and_then(Predecessor::loaded);
    read.clone()
        .map(|(texts, loaded, _)| (texts, loaded))
        .or_else(|rejection| before().ok_or(rejection))
        .map_err(|rejection| Failure {
            exit: origin.rejection(),
            messages: rejection.errors.iter().map(ToString::to_string).collect(),
        })
}

/// Starts the log; that of a successor anywhere rather than nowhere, which is a warning: connections do
/// not suffer for that.
fn start_log(settings: &config::Log, succeeds: bool) -> Result<Vec<String>, Diagnostic> {
    let Err(error) = log::start(settings) else {
        return Ok(Vec::new());
    };
    if !succeeds {
        return Err(error);
    }
    let stderr = config::Log {
        target: config::LogTarget::Stderr,
        ..settings.clone()
    };
    log::start(&stderr)?;
    let warning = format!("{error}; meanwhile it goes to standard error");
    Ok(vec![warning])
}

/// `--can-take-over` alone: what a running daemon asks the program that is to be its successor.
fn can_take_over(version: u32) -> Result<(), Failure> {
    if record::is_read(version) {
        return print_or_end(format!("{}\n", record::YES).as_bytes());
    }
    Err(Failure::new(format!(
        "records of version {version} are not read by echod {}, which reads versions up to {}",
        env!("CARGO_PKG_VERSION"),
        record::VERSION
    )))
}

/// The running service, as the control plane knows it.
#[derive(Debug)]
struct Daemon {
    command_line: CommandLine,
    origin: Origin,
    // `--socket`.
    socket: Option<PathBuf>,
    // The texts in force.
    files: Files,
    // What is in force, with what was overridden at run time. Without the listeners, whose
    // configurations `listeners` has: see [`Listeners::complete`].
    config: Config,
    // The role of each user and group, as `config` says.
    roles: Roles,
    // The log level was set at run time.
    log_level_overridden: bool,
    history: History,
    reloads: Reloads,
    started: Instant,
    stage: Stage,
    signals: Signals,
    workers: Workers,
    listeners: Listeners,
    pausing: Pausing,
    // An upgrade on its way.
    handover: Option<Handover>,
    // What the service manager has passed and no listener has taken, for a later configuration.
    passed: Vec<Passed>,
    // None where there is no place for it.
    server: Option<Server>,
    // None where no service manager is to be notified.
    supervision: Option<Supervision>,
}

impl Daemon {
    fn tell_manager(&self, tell: impl FnOnce(&Manager)) {
        if let Some(supervision) = &self.supervision {
            tell(&supervision.manager);
        }
    }

    /// The same with the state of the service, where there is a manager.
    fn supervise<R>(&mut self, act: impl FnOnce(&mut Supervision, &Summary<'_>) -> R) -> Option<R> {
        let summary = Summary {
            stage: self.stage,
            listeners: &self.listeners,
            last_reload: &self.history.last,
            confirm_until: self.reloads.confirm_until(),
        };
        Some(act(self.supervision.as_mut()?, &summary))
    }

    /// Has the service manager store what is bound.
    fn update_store(&mut self) {
        if let Some(supervision) = &mut self.supervision {
            supervision.store(self.listeners.own_sockets());
        }
    }

    /// Serves until the end.
    fn serve(&mut self) -> Result<(), Failure> {
        // Those that ended before there was a handler.
        process::reap_children_of_this_thread();
        while !matches!(self.stage, Stage::Ended | Stage::HandedOver) {
            self.turn()
                .map_err(|error| Failure::of("control plane", &error))?;
        }
        Ok(())
    }

    fn turn(&mut self) -> std::io::Result<()> {
        self.wait()?;
        let now = Instant::now();
        for signal in self.signals.take() {
            match signal {
                Signal::Reload => self.request_reload(Request::SIGNAL),
                Signal::Stop => self.stop(now),
                Signal::Upgrade => self.upgrade(None, now),
                Signal::ChildEnded => process::reap_children_of_this_thread(),
            }
        }
        for report in self.workers.take_reports() {
            self.handle_report(report, now);
        }
        self.continue_handing_over(now);
        // Requests that arrive then are answered by the successor.
        let workers_are_stopped = self.workers_are_stopped();
        let calls = self
            .server
            .as_mut()
            .filter(|_| !workers_are_stopped)
            .map(|server| server.turn(now))
            .unwrap_or_default();
        for call in calls {
            self.handle_call(&call, now);
        }
        self.search_peers(now);
        self.continue_looks(now);
        self.continue_reloads(now);
        self.listeners.sweep(&self.workers, now);
        self.continue_drains(now);
        self.continue_stopping(now);
        let asks = self.supervise(|supervision, summary| supervision.turn(summary, now));
        if asks == Some(true) {
            self.workers.command_all(|_| Command::Ping);
        }
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
        // While the workers are stopped no request is read, and none may keep this from sleeping.
        let server = self.server.as_ref().filter(|_| !self.workers_are_stopped());
        let control = server.and_then(Server::poll_timeout);
        let sweep = self.listeners.next_sweep(now);
        let handover = self.next_handover_step(now);
        let supervision = self.supervision.as_ref();
        let supervision = supervision.map(|supervision| supervision.poll_timeout(self.stage));
        let reload = self.next_reload_step();
        let look = self.files.poll_timeout();
        let drain = self.next_drain_step(now);
        let until = [
            stage,
            control,
            sweep,
            handover,
            supervision,
            reload,
            look,
            drain,
        ]
        .into_iter()
        .flatten()
        .min();
        let timeout = until.map(|until| until.saturating_duration_since(now).into());
        // While the workers are stopped, signals stay pending: for the successor, or for afterwards.
        let mask = if self.workers_are_stopped() {
            signals::blocked()
        } else {
            SigSet::empty()
        };
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.workers.control().as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(
            server
                .iter()
                .map(|server| PollFd::new(server.as_fd(), PollFlags::POLLIN)),
        );
        match ppoll(&mut fds, timeout, Some(mask)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn handle_report(&mut self, report: Report<OwnedFd>, now: Instant) {
        match report {
            Report::Retired { id, .. } => self.listeners.handle_retired(id, &self.workers),
            Report::ListenerRetired { listener } => {
                self.listeners.handle_listener_retired(listener);
            }
            Report::Peers {
                query,
                peers,
                matched,
                more_after,
            } => {
                if let Some(server) = &mut self.server {
                    server.handle_peers(query, peers, matched, more_after, &self.listeners, now);
                }
            }
            Report::PeersClosed { query, closed } => {
                if let Some(server) = &mut self.server {
                    server.handle_closed(query, closed, &self.listeners, now);
                }
            }
            Report::HandedOver {
                worker,
                connections,
                sources,
                last_id,
            } => {
                // A successor's worker gets what the same one had here.
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
            }
            Report::Confirmed { query } => self.handle_confirmed(query, now),
            Report::Alive { worker } => {
                self.supervise(|supervision, summary| {
                    supervision.handle_alive(worker, summary, now);
                });
            }
        }
    }

    fn is_stopping(&self) -> bool {
        self.stage.is_stopping()
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
