//! The stop, stage by stage: queues are emptied, peers finish, datagrams are answered to the last.

use std::time::{Duration, Instant};

use crate::policy::limits::LINGER;
use crate::worker::mailbox::Command;

use super::Daemon;
use super::stage::Stage;
use super::systemd::notify::Manager;

/// How often to look whether the last connection is closed, while stopping.
pub(super) const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// How long after `drain-timeout` queues may still be emptied, so that also a timeout of zero serves
/// queued clients.
const QUEUES_TIME_MAX: Duration = Duration::from_secs(1);

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
            self.supervise(|supervision, service| supervision.status(service, now));
            log::info!(
                "stopping; serving on for {}",
                humantime::format_duration(delay)
            );
        }
    }

    pub(super) fn go_on_stopping(&mut self, now: Instant) {
        match self.stage {
            Stage::Leaving { until } if now >= until => {
                let timeout = self.config.daemon.drain_timeout;
                let connections = self.listeners.totals().connections();
                log::info!(
                    "stopping: {connections} connection(s) have {} to finish",
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
                self.supervise(|supervision, service| supervision.status(service, now));
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
                    log::info!(
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
            "stopped after {} connection(s), {} datagram(s); {} cut",
            totals.accepted,
            totals.datagrams_received,
            totals.connections()
        );
        if let Some(supervision) = self.supervision {
            supervision.manager.end();
        }
    }
}
