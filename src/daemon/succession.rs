//! Carries out a handover: asks the new program, stops the workers, executes the successor or leaves
//! everything to the service manager, and otherwise gives the workers everything back.
//!
//! [`handover::upgrade`](super::handover::upgrade) decides when.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::cli::text::{cause, counted};
use crate::protocol::{self, schema};
use crate::sys::handover as carriers;
use crate::worker::mailbox::Command;

use super::Daemon;
use super::control::{ClientId, Reply, Server};
use super::handover::upgrade::{Action, Answer, Facts, Handover, Outgoing, Successor};
use super::handover::write::{Service, Transferred};
use super::handover::{STORED, environment};
use super::stage::Stage;
use super::systemd::Supervision;

/// How long the output of the log may take, while the workers are stopped, for lines that were logged
/// since the flush before.
const LAST_LINES_TIME_MAX: Duration = Duration::from_millis(50);

impl Daemon {
    /// Begins an upgrade, if there can be one.
    pub(super) fn upgrade(&mut self, caller: Option<ClientId>, now: Instant) {
        self.begin_handover(Successor::Program, caller, now);
    }

    /// Begins to leave everything to the process that the service manager starts next.
    pub(super) fn hand_over_to_process(&mut self, caller: ClientId, now: Instant) {
        let supervision = self.supervision.as_ref();
        if supervision.is_some_and(|supervision| supervision.manager.keeps()) {
            return self.begin_handover(Successor::Process, Some(caller), now);
        }
        let reason = "no service manager keeps anything: $FDSTORE is not set \
                      (FileDescriptorStoreMax= in the unit; before systemd 254 also Environment=FDSTORE=1)";
        self.refuse_successor(Some(caller), reason, now);
    }

    fn begin_handover(&mut self, successor: Successor, caller: Option<ClientId>, now: Instant) {
        let refusal = if self.is_stopping() {
            Some("the daemon is stopping")
        } else if self.handover.is_some() {
            Some("another one is on its way")
        } else {
            None
        };
        if let Some(reason) = refusal {
            return self.refuse_successor(caller, reason, now);
        }
        match self.ask_in_background(successor) {
            Ok(answer) => {
                self.handover = Some(Handover::begin(successor, caller, answer, now));
            }
            Err(error) => self.refuse_successor(caller, &cause(&error), now),
        }
    }

    fn ask_in_background(&self, successor: Successor) -> io::Result<Receiver<Answer>> {
        let (sender, answer) = channel();
        let (command_line, control) = (self.command_line.clone(), self.workers.control().clone());
        // The process that comes next finds out for itself what is wrong with the configuration, and
        // closes no connection for that.
        let check = successor == Successor::Program;
        std::thread::Builder::new()
            .name("upgrade".into())
            .spawn(move || {
                // The handover may have been given up.
                let _ = sender.send(command_line.ask(check));
                control.wake();
            })?;
        Ok(answer)
    }

    fn refuse_successor(&mut self, caller: Option<ClientId>, reason: &str, now: Instant) {
        log::error!("no successor: {reason}");
        if let Some((server, caller)) = self.server.as_mut().zip(caller) {
            let refusal = protocol::upgrade_refused(reason.to_owned());
            server.reply(caller, Reply::One(refusal), now);
        }
    }

    /// Whether the workers have stopped. Nothing else is begun then: signals and control requests
    /// are for the successor, or for afterwards.
    pub(super) fn workers_are_stopped(&self) -> bool {
        let handover = self.handover.as_ref();
        handover.is_some_and(Handover::is_transferring)
    }

    /// Whether the workers stop soon: no reload is begun, and searches among the peers are for the
    /// successor.
    pub(super) fn is_settling(&self) -> bool {
        let handover = self.handover.as_ref();
        handover.is_some_and(|handover| !handover.is_asking())
    }

    /// When [`Self::continue_handing_over`] is next due.
    pub(super) fn next_handover_step(&self, now: Instant) -> Option<Instant> {
        Some(self.handover.as_ref()?.poll_timeout(now))
    }

    /// A worker has transferred all that it had.
    pub(super) fn collect(&mut self, transferred: Transferred) {
        let late = match &mut self.handover {
            Some(handover) => handover.handle_transferred(transferred).err(),
            None => Some(transferred),
        };
        if let Some(late) = late {
            // The handover was given up, and this worker is needed.
            self.give_back(late);
        }
    }

    /// Takes the next step of a handover, if there is one.
    pub(super) fn continue_handing_over(&mut self, now: Instant) {
        let flushing = self.handover.as_ref().and_then(Handover::flushing_since);
        let facts = Facts {
            unsettled: self.unsettled(),
            is_log_flushed: flushing.is_some_and(|begun| super::log::is_flushed(begun, now)),
            workers: self.workers.count(),
        };
        let Some(handover) = &mut self.handover else {
            return;
        };
        match handover.advance(facts, now) {
            Action::Wait => {}
            Action::FlushLog => super::log::begin_flush(),
            Action::StopWorkers => {
                self.refuse_waiting_reloads();
                self.end_looks(now);
                self.workers.command_all(|_| Command::HandOver);
            }
            Action::HandOver => self.hand_over(now),
            Action::GiveUp(reason) => self.give_up(&reason, now),
        }
    }

    /// What has to end before the workers may stop.
    fn unsettled(&self) -> Option<&'static str> {
        if !self.listeners.all_retired() {
            Some("sockets of an earlier reload are still being served")
        } else if !self.server.as_ref().is_none_or(Server::is_search_idle) {
            Some("a list of peers is being read")
        } else if self.reloads.is_loading() {
            Some("a configuration is being loaded")
        } else {
            None
        }
    }

    /// Continues as before, for the daemon is to stop.
    pub(super) fn give_up_handover(&mut self, now: Instant) {
        self.give_up("the daemon is stopping", now);
    }

    fn give_up(&mut self, reason: &str, now: Instant) {
        let Some(handover) = self.handover.take() else {
            return;
        };
        let caller = handover.caller;
        if let Some(outgoing) = handover.end() {
            self.give_back(outgoing.transferred);
        }
        self.refuse_successor(caller, reason, now);
    }

    /// Lets the successor continue. Returns from this only if it is another process, or on failure.
    fn hand_over(&mut self, now: Instant) {
        let Some(handover) = self.handover.take() else {
            return;
        };
        let (successor, caller) = (handover.successor, handover.caller);
        let Some(outgoing) = handover.end() else {
            return;
        };
        // A program answers the caller itself; for a process to come, the answer is sent now.
        let waiting = caller.filter(|_| successor == Successor::Program);
        let written = self.write_down(&outgoing, waiting);
        let handed_over = written.and_then(|carriers| match successor {
            Successor::Program => self
                .execute(&outgoing.program, &carriers)
                .map(|never| match never {}),
            Successor::Process => self.leave_to_manager(carriers),
        });
        let transferred = outgoing.transferred;
        match handed_over {
            Ok(()) => self.end_for_successor(caller, transferred.connections.len() as u64, now),
            Err(error) => {
                self.give_back(transferred);
                self.refuse_successor(caller, &cause(&error), now);
            }
        }
    }

    fn write_down(
        &self,
        outgoing: &Outgoing,
        waiting: Option<ClientId>,
    ) -> io::Result<Vec<OwnedFd>> {
        let service = Service {
            config: &self.config,
            log_level_overridden: self.log_level_overridden,
            files: &self.files.names,
            fingerprint: self.files.fingerprint,
            generation: self.history.generation,
            last_reload: &self.history.last,
            trial: self.reloads.describe_trial(Instant::now()),
            started: self.started,
            listeners: &self.listeners,
            server: self.server.as_ref(),
            passed: &self.passed,
        };
        service.write(&outgoing.transferred, outgoing.stopped, waiting)
    }

    /// Becomes the successor. Returns only if that fails.
    fn execute(&self, program: &Path, carriers: &[OwnedFd]) -> io::Result<Infallible> {
        for carrier in carriers {
            carriers::survive_exec(carrier.as_fd(), true)?;
        }
        // Lines that are still queued are lost with this program. Since the flush before there are
        // few, and the workers are stopped.
        super::log::flush_within(LAST_LINES_TIME_MAX);
        self.command_line
            .execute(program, environment::of_successor(carriers))
            .map_err(|error| io::Error::other(format!("{}: {}", program.display(), cause(&error))))
    }

    /// Has the service manager store everything for the next process.
    fn leave_to_manager(&self, carriers: Vec<OwnedFd>) -> io::Result<()> {
        let Some(Supervision { manager, .. }) = &self.supervision else {
            return Err(io::Error::other("no service manager can be notified"));
        };
        // It ignores messages of a process that has ended.
        let kept = manager.keep_and_wait(STORED, carriers);
        kept.map_err(|error| {
            // It must not be passed to a later process after this one has continued.
            manager.remove_stored(STORED);
            let cause = cause(&error);
            io::Error::other(format!("the service manager's $NOTIFY_SOCKET: {cause}"))
        })
    }

    /// Everything belongs to the next process now.
    fn end_for_successor(&mut self, caller: Option<ClientId>, connections: u64, now: Instant) {
        let listeners = self.listeners.count() as u64;
        log::info!(
            "{} and {} wait for the next process",
            counted(listeners, "listener"),
            counted(connections, "connection")
        );
        if let Some((server, caller)) = self.server.as_mut().zip(caller) {
            let reply = protocol::reply(&schema::HandOverReply {
                listeners,
                connections,
            });
            server.reply(caller, Reply::One(reply), now);
        }
        self.stage = Stage::HandedOver;
    }

    /// Gives the workers everything back: there is no successor.
    fn give_back(&mut self, transferred: Transferred) {
        for (worker, connection) in transferred.connections {
            self.listeners.take_over(worker, connection, &self.workers);
        }
        self.listeners
            .serve_again(&transferred.workers, &self.workers);
    }
}
