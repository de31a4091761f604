//! At which level the workers log each closed connection: see [`Observation`].

use crate::worker::mailbox::{Command, Observation};

use super::Daemon;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Events {
    /// What the workers were last asked for.
    observed: Observation,
}

impl Daemon {
    /// Asks the workers for what is wanted of connections now, if that has changed.
    pub(super) fn observe_connections(&mut self) {
        let observation = Observation {
            log_closed: self.config.log.connections,
        };
        if std::mem::replace(&mut self.events.observed, observation) != observation {
            self.workers.command_all(|_| Command::Observe(observation));
        }
    }
}
