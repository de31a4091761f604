//! Listeners that an operator pauses, resumes or drains: what the workers do then, and what is reported.
//!
//! `standing` decides when a step of a drain is due; it is carried out here.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::cli::text::counted;
use crate::config;
use crate::protocol::schema::{ListenerState, StateChange};
use crate::worker::mailbox::{Command, Ending, ListenerId};

use crate::daemon::record;
use crate::daemon::workers::Workers;

use super::standing::{Drain, DrainStep, Standing};
use super::{Listener, Listeners};

/// How often to look whether the last connection of a drain is closed.
const DRAIN_LOOK: Duration = Duration::from_secs(1);

/// The listeners, by name, that are in another state than listening.
pub(in crate::daemon) type Standings = BTreeMap<String, Standing>;

impl Listeners {
    /// Puts the listener of this name, or all, into this state; what that has changed of each.
    pub(in crate::daemon) fn set_standing(
        &mut self,
        name: Option<&str>,
        standing: Standing,
        workers: &Workers,
    ) -> Vec<(ListenerId, StateChange)> {
        let meant = self.in_service.values_mut();
        let meant = meant.filter(|listener| name.is_none_or(|name| name == listener.config.name));
        let mut changes = Vec::new();
        for listener in meant {
            let standing = standing_for(&listener.config, standing);
            let before = std::mem::replace(&mut listener.standing, standing);
            if before.intake() != standing.intake() {
                listener.configure(workers);
            }
            self.drains.remove(&listener.id);
            let change = StateChange {
                listener: listener.config.name.clone(),
                before: before.state(),
                after: standing.state(),
                connections: listener.totals().connections(),
            };
            changes.push((listener.id, change));
        }
        changes
    }

    /// The workers have the state of this listener: no new client comes that a drain would not end.
    pub(in crate::daemon) fn begin_drain(&mut self, id: ListenerId) {
        let listener = self.listener(id);
        if listener.is_some_and(|listener| listener.standing.drain().is_some()) {
            self.drains.insert(id);
        }
    }

    /// Brings up to date what became of a listener.
    pub(in crate::daemon) fn update(&self, id: ListenerId, change: &mut StateChange) {
        let listener = self.listener(id);
        let in_service = listener.filter(|_| self.names.contains_key(&id));
        change.after = in_service.map_or(ListenerState::Retired, |one| one.standing.state());
        change.connections = listener.map_or(0, |one| one.totals().connections());
    }

    /// Takes the steps of drains that are due.
    pub(in crate::daemon) fn continue_drains(&mut self, workers: &Workers, now: Instant) {
        let drains = std::mem::take(&mut self.drains);
        self.drains = drains
            .into_iter()
            .filter(|id| self.continue_drain(*id, workers, now))
            .collect();
    }

    /// Takes the step of this listener's drain that is due. False when the drain is over.
    fn continue_drain(&mut self, id: ListenerId, workers: &Workers, now: Instant) -> bool {
        let Some(listener) = self.listener_mut(id) else {
            return false;
        };
        let connections = listener.totals().connections();
        let name = &*listener.config.name;
        let how = match listener.standing.step(connections, now) {
            None => return listener.standing.drain().is_some(),
            Some(DrainStep::Done) => {
                log::info!(listener = name; "listener \"{name}\": drained");
                return false;
            }
            Some(DrainStep::Finish) => Ending::Finish,
            Some(DrainStep::Cut) => Ending::Reset,
        };
        let counted = counted(connections, "connection");
        let what = match how {
            Ending::Finish => "did not finish in time, closed now",
            Ending::Reset => "did not take our FIN, reset now",
        };
        log::info!(listener = name; "listener \"{name}\": draining: {counted} {what}");
        workers.command_all(|_| Command::EndConnections { listener: id, how });
        true
    }

    /// When [`Self::continue_drains`] is next due.
    pub(in crate::daemon) fn next_drain_step(&self, now: Instant) -> Option<Instant> {
        let drains = self.drains.iter();
        let drains = drains.filter_map(|id| self.listener(*id)?.standing.drain());
        let steps = drains.map(|drain| drain.next_step().unwrap_or(now + DRAIN_LOOK));
        steps.min().map(|step| step.min(now + DRAIN_LOOK))
    }

    fn listener_mut(&mut self, id: ListenerId) -> Option<&mut Listener> {
        match self.names.get(&id) {
            Some(name) => self.in_service.get_mut(name),
            None => self.retired.get_mut(&id),
        }
    }

    /// Those in service that are in another state than listening.
    pub(super) fn standings(&self) -> Standings {
        let others = self.in_service.iter();
        let others = others.filter(|(_, listener)| listener.standing != Standing::Listening);
        others
            .map(|(name, listener)| (name.clone(), listener.standing))
            .collect()
    }

    /// How many listeners are in each other state than listening, by its name.
    pub(in crate::daemon) fn states(&self) -> BTreeMap<String, u64> {
        let mut states = BTreeMap::new();
        for standing in self.standings().values() {
            *states
                .entry(standing.state().name().to_owned())
                .or_default() += 1;
        }
        states
    }

    /// What a reload does not change, for an operator that expects it to.
    pub(super) fn standing_warnings(&self) -> impl Iterator<Item = String> {
        self.standings().into_iter().map(|(name, standing)| {
            let state = standing.state().name();
            format!("listener \"{name}\" is still {state}: echoctl resume {name}")
        })
    }

    /// A listener of a predecessor continues in its state, `elapsed` after that was written.
    pub(super) fn restore_standing(
        &mut self,
        id: ListenerId,
        written: record::Standing,
        elapsed: Duration,
    ) {
        let standing = match written {
            record::Standing::Listening => Standing::Listening,
            record::Standing::Paused => Standing::Paused,
            record::Standing::Holding => Standing::Holding,
            record::Standing::Draining { left } => {
                let left = Duration::from_nanos(left).saturating_sub(elapsed);
                self.drains.insert(id);
                Standing::draining(Instant::now() + left)
            }
        };
        if let Some(listener) = self.listener_mut(id) {
            listener.standing = standing_for(&listener.config, standing);
        }
    }
}

/// The state of a listener, described for a successor.
pub(super) fn describe(standing: Standing) -> record::Standing {
    match standing {
        Standing::Listening => record::Standing::Listening,
        Standing::Paused => record::Standing::Paused,
        Standing::Holding => record::Standing::Holding,
        Standing::Draining(Drain { until, .. }) => {
            let left = until.saturating_duration_since(Instant::now());
            record::Standing::Draining {
                left: u64::try_from(left.as_nanos()).unwrap_or(u64::MAX),
            }
        }
    }
}

/// What a state is for a listener with this configuration.
pub(super) fn standing_for(config: &config::Listener, standing: Standing) -> Standing {
    if config.protocol.is_stream() {
        standing
    } else {
        standing.of_datagrams()
    }
}
