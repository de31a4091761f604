//! The stop, stage by stage: queues are emptied, peers finish, datagrams are answered to the last.
//! [`stage`](super::stage) decides when.

use std::time::{Duration, Instant};

use crate::cli::text::counted;
use crate::policy::limits::LINGER;
use crate::worker::mailbox::Command;

use super::Daemon;
use super::stage::{Facts, Stage, Step};
use super::systemd::notify::Manager;

/// How often to look whether the last connection is closed, while stopping.
pub(super) const DRAIN_LOOK: Duration = Duration::from_millis(20);

impl Daemon {
    /// The first time, begins to stop; the second time, stops at once.
    pub(super) fn stop(&mut self, now: Instant) {
        if self.is_stopping() {
            self.stage = Stage::Ended;
            return;
        }
        self.give_up_handover(now);
        let delay = self.config.daemon.shutdown_delay;
        self.stage = Stage::Leaving { until: now + delay };
        if !delay.is_zero() {
            self.supervise(|supervision, summary| supervision.status(summary, now));
            log::info!(
                "stopping; serving on for {}",
                humantime::format_duration(delay)
            );
        }
    }

    /// Takes the step of a stop that is due.
    pub(super) fn continue_stopping(&mut self, now: Instant) {
        if !self.is_stopping() {
            return;
        }
        let facts = Facts {
            connections: self.listeners.totals().connections(),
            all_retired: self.listeners.all_retired(),
        };
        match self.stage.next_step(facts, now) {
            Some(Step::Drain) => self.drain(facts.connections, now),
            Some(Step::Finish) => {
                log::info!(
                    "stopping: {} did not finish in time, closed now",
                    counted(facts.connections, "connection")
                );
                self.workers.command_all(|_| Command::Finish);
                self.stage = Stage::Finishing {
                    until: now + LINGER + Duration::from_secs(1),
                };
            }
            Some(Step::Empty) => self.empty(now),
            Some(Step::End) => self.stage = Stage::Ended,
            None => {}
        }
    }

    /// No new connection is accepted from here on.
    fn drain(&mut self, connections: u64, now: Instant) {
        let timeout = self.config.daemon.drain_timeout;
        log::info!(
            "stopping: {} may continue for {}; a second signal ends at once",
            counted(connections, "connection"),
            humantime::format_duration(timeout)
        );
        // There is no successor.
        if let Some(supervision) = &mut self.supervision {
            supervision.empty_store();
        }
        self.listeners.retire_streams(&self.workers, now);
        self.stage = Stage::Draining {
            until: now + timeout,
        };
        self.tell_manager(Manager::stopping);
        self.supervise(|supervision, summary| supervision.status(summary, now));
    }

    /// Datagrams are served to the very end: each that was sent in time is answered.
    fn empty(&mut self, now: Instant) {
        self.listeners.retire_all(&self.workers, now);
        self.stage = Stage::Emptying {
            until: now + Duration::from_secs(1),
        };
    }

    /// Releases everything, in order.
    pub(super) fn end(self) {
        let totals = self.listeners.totals();
        self.workers.stop();
        // Takes the socket files with it.
        drop(self.listeners);
        log::info!(
            "stopped after {}, {}; {} cut",
            counted(totals.accepted, "connection"),
            counted(totals.datagrams_received, "datagram"),
            totals.connections()
        );
        if let Some(supervision) = self.supervision {
            supervision.manager.end();
        }
    }
}
