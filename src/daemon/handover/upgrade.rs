//! A successor, step by step: it is asked whether it can, the workers come to rest, everything is
//! written down, and it goes on.
//!
//! ```text
//!   asking ──it can──▶ settling ──nothing on its way out──▶ resting ──all rest──▶ the successor
//!     └──it can't──▶ refused                                   └──one does not──▶ as before
//! ```
//!
//! Until the last step nothing is lost: whatever fails, the workers get everything back, and who
//! asked is told why.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use crate::protocol::{self, schema};
use crate::sys::handover as carriers;
use crate::worker::mailbox::Command;

use crate::daemon::control::{ClientId, Reply, Server};
use crate::daemon::handover::program::ANSWER_TIME_MAX;
use crate::daemon::handover::{self, Belongings};
use crate::daemon::systemd::notify::Manager;
use crate::daemon::{Daemon, Stage};

/// How long sockets of an earlier reload may take to be closed, and after that the workers to rest.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(3);

/// How often to look whether they are.
const LOOK: Duration = Duration::from_millis(2);

/// Who goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Successor {
    /// The program that is now where this one was started from, in this process.
    Program,
    /// The process that the service manager starts next.
    Process,
}

/// A successor on its way.
#[derive(Debug)]
pub(crate) struct Handover {
    successor: Successor,
    step: Step,
    caller: Option<ClientId>,
    until: Instant,
    // The file that has answered.
    program: PathBuf,
}

#[derive(Debug)]
enum Step {
    /// The new program is asked.
    Asking(Receiver<Result<PathBuf, String>>),
    /// Sockets are on their way out, questions are being answered.
    Settling,
    /// The workers give everything away.
    Resting {
        waits_for: usize,
        rested: u64,
        belongings: Belongings,
    },
}

impl Daemon {
    /// Begins an upgrade, if there can be one.
    pub(crate) fn upgrade(&mut self, caller: Option<ClientId>, now: Instant) {
        self.look_for_successor(Successor::Program, caller, now);
    }

    fn look_for_successor(&mut self, successor: Successor, caller: Option<ClientId>, now: Instant) {
        let step = match self.why_no_successor() {
            Some(reason) => Err(reason.to_owned()),
            None => self
                .ask_in_background(successor)
                .map(Step::Asking)
                .map_err(|error| error.to_string()),
        };
        match step {
            Ok(step) => {
                self.handover = Some(Handover {
                    successor,
                    step,
                    caller,
                    until: now + 3 * ANSWER_TIME_MAX,
                    program: PathBuf::new(),
                });
            }
            Err(reason) => self.refuse_successor(caller, &reason, now),
        }
    }

    fn ask_in_background(
        &self,
        successor: Successor,
    ) -> io::Result<Receiver<Result<PathBuf, String>>> {
        let (sender, answer) = channel();
        let (command_line, control) = (self.command_line.clone(), self.workers.control().clone());
        // The process that comes next finds out for itself what is wrong with the configuration, and
        // closes no connection for that.
        let check = successor == Successor::Program;
        std::thread::Builder::new()
            .name("upgrade".into())
            .spawn(move || {
                // It may have been given up meanwhile.
                let _ = sender.send(command_line.ask(check));
                control.wake();
            })?;
        Ok(answer)
    }

    /// Begins to leave everything to the process that the service manager starts next.
    pub(crate) fn hand_over_to_process(&mut self, caller: ClientId, now: Instant) {
        if self.manager.as_ref().is_some_and(Manager::keeps) {
            return self.look_for_successor(Successor::Process, Some(caller), now);
        }
        let reason = "no service manager keeps anything: $FDSTORE is not set \
                      (FileDescriptorStoreMax= in the unit; before systemd 254 also Environment=FDSTORE=1)";
        self.refuse_successor(Some(caller), reason, now);
    }

    fn why_no_successor(&self) -> Option<&'static str> {
        if self.is_stopping() {
            Some("the daemon is stopping")
        } else if self.handover.is_some() {
            Some("another one is on its way")
        } else {
            None
        }
    }

    /// Goes on as before, for the daemon is to stop.
    pub(crate) fn give_up_handover(&mut self, now: Instant) {
        self.give_up("the daemon is stopping", now);
    }

    fn refuse_successor(&mut self, caller: Option<ClientId>, reason: &str, now: Instant) {
        ::log::error!("no successor: {reason}");
        if let Some((server, caller)) = self.server.as_mut().zip(caller) {
            let refusal = protocol::upgrade_refused(reason.to_owned());
            server.reply(caller, Reply::One(refusal), now);
        }
    }

    /// Whether the workers rest, and nobody is to be answered.
    pub(crate) fn is_resting(&self) -> bool {
        matches!(
            self.handover,
            Some(Handover {
                step: Step::Resting { .. },
                ..
            })
        )
    }

    /// Whether the workers stop soon: no reload is begun, and searches among the peers are for the
    /// successor.
    pub(crate) fn is_settling(&self) -> bool {
        let step = self.handover.as_ref().map(|handover| &handover.step);
        matches!(step, Some(Step::Settling | Step::Resting { .. }))
    }

    /// When [`Self::go_on_handing_over`] is next due.
    pub(crate) fn next_handover_step(&self, now: Instant) -> Option<Instant> {
        let handover = self.handover.as_ref()?;
        Some(match handover.step {
            Step::Asking(_) => handover.until,
            Step::Settling | Step::Resting { .. } => now + LOOK,
        })
    }

    /// A worker has given away all that it had.
    pub(crate) fn collect(&mut self, mut more: Belongings) {
        let Some(Handover {
            step:
                Step::Resting {
                    waits_for,
                    belongings,
                    ..
                },
            ..
        }) = &mut self.handover
        else {
            // It comes too late: the upgrade was given up, and this worker is still wanted.
            return self.take_back(more);
        };
        *waits_for -= 1;
        belongings.workers.append(&mut more.workers);
        belongings.connections.append(&mut more.connections);
        belongings.sources.append(&mut more.sources);
        belongings.last_peer = belongings.last_peer.max(more.last_peer);
    }

    /// Does what is due.
    pub(crate) fn go_on_handing_over(&mut self, now: Instant) {
        let Some(handover) = &mut self.handover else {
            return;
        };
        let is_late = now >= handover.until;
        let is_search_idle = self.server.as_ref().is_none_or(Server::is_search_idle);
        let is_loading = self.reloads.is_loading();
        let failure = match &mut handover.step {
            Step::Asking(answer) => match answer.try_recv() {
                Ok(Ok(program)) => {
                    handover.program = program;
                    handover.step = Step::Settling;
                    handover.until = now + SETTLE_TIME_MAX;
                    // The next step is for the next turn, which takes the signals that have arrived
                    // first.
                    return;
                }
                Ok(Err(reason)) => reason,
                Err(TryRecvError::Disconnected) => "nobody could be asked".into(),
                Err(TryRecvError::Empty) if is_late => "no answer from the new program".into(),
                Err(TryRecvError::Empty) => return,
            },
            Step::Settling if self.listeners.all_retired() && is_search_idle && !is_loading => {
                handover.step = Step::Resting {
                    waits_for: self.workers.count(),
                    rested: handover::clock(),
                    belongings: Belongings::default(),
                };
                handover.until = now + SETTLE_TIME_MAX;
                self.workers.command_all(|_| Command::HandOver);
                return;
            }
            Step::Settling if is_late && is_loading => {
                "a reload is under way; try again later".into()
            }
            Step::Settling if is_late => {
                "sockets of an earlier reload are still being served; try again later".into()
            }
            Step::Resting { waits_for: 0, .. } => return self.hand_over(now),
            Step::Resting { .. } if is_late => "a worker does not come to rest".into(),
            Step::Settling | Step::Resting { .. } => return,
        };
        self.give_up(&failure, now);
    }

    /// Writes everything down and lets the successor begin.
    fn hand_over(&mut self, now: Instant) {
        let Some(Handover {
            successor,
            step: Step::Resting {
                rested, belongings, ..
            },
            caller,
            program,
            ..
        }) = &self.handover
        else {
            return;
        };
        let (successor, caller, program) = (*successor, *caller, program.clone());
        let connections = belongings.connections.len() as u64;
        // Who wants a process to come is told here and now; that one would answer something else.
        let waiting = caller.filter(|_| successor == Successor::Program);
        let carriers = self.leave_behind(belongings, *rested, waiting);
        let handed_over = carriers.and_then(|carriers| match successor {
            Successor::Program => self
                .execute(&program, &carriers)
                .map(|never| match never {}),
            Successor::Process => self.leave_to_manager(carriers),
        });
        match handed_over {
            Ok(()) => self.make_way(caller, connections, now),
            Err(error) => self.give_up(&error.to_string(), now),
        }
    }

    /// Becomes the successor. Returns only if that fails.
    fn execute(&self, program: &Path, carriers: &[OwnedFd]) -> io::Result<Infallible> {
        for carrier in carriers {
            carriers::survive_exec(carrier.as_fd(), true)?;
        }
        // Lines that are still queued would be lost with this program.
        ::log::logger().flush();
        self.command_line
            .execute(program, handover::environment(carriers))
            .map_err(|error| io::Error::other(format!("{}: {error}", program.display())))
    }

    /// Has the service manager keep everything for the next process.
    fn leave_to_manager(&self, carriers: Vec<OwnedFd>) -> io::Result<()> {
        let Some(manager) = &self.manager else {
            return Ok(());
        };
        manager.keep(handover::STORED, carriers);
        // A message of a process that has ended is nobody's.
        manager.wait_until_read().inspect_err(|_| {
            // It must not come back after we have gone on.
            manager.let_go(handover::STORED);
        })
    }

    /// Everything is somebody else's now.
    fn make_way(&mut self, caller: Option<ClientId>, connections: u64, now: Instant) {
        let listeners = self.listeners.count() as u64;
        ::log::info!(
            "{listeners} listener(s) and {connections} connection(s) wait for the next process"
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

    /// Goes on as before.
    fn give_up(&mut self, reason: &str, now: Instant) {
        let Some(handover) = self.handover.take() else {
            return;
        };
        if let Step::Resting { belongings, .. } = handover.step {
            self.take_back(belongings);
        }
        self.refuse_successor(handover.caller, reason, now);
    }
}
