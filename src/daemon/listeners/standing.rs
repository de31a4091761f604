//! Whether a listener takes new clients: as an operator has said, until an operator says otherwise.
//!
//! It belongs to the listener and not to its configuration, so that a reload changes nothing about it,
//! and a successor continues with it. Decides when a step of a drain is due; time is an argument.
//!
//! ```text
//!   drain:  Established ──deadline──▶ Finishing ──peers had their time──▶ Cut
//!                └──────────┴── no connection is left ──┴──▶ Done
//! ```

use std::time::{Duration, Instant};

use crate::policy::Intake;
use crate::policy::limits::LINGER;
use crate::protocol::schema::ListenerState;

/// The longest time from our FIN to the end of a drain, as of a stop.
const FINISH_TIME_MAX: Duration = LINGER.saturating_add(Duration::from_secs(1));

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::daemon) enum Standing {
    #[default]
    Listening,
    /// New clients are turned away.
    Paused,
    /// New clients are left in the backlog.
    Holding,
    /// New clients are turned away, and those that are there may continue until a deadline.
    Draining(Drain),
}

/// How far a drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::daemon) struct Drain {
    /// Until when connections may continue.
    pub until: Instant,
    progress: Progress,
}

/// See the drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Established,
    Finishing,
    Cut,
    Done,
}

/// What is due in a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DrainStep {
    /// Send our FIN to those that have not finished.
    Finish,
    /// Reset those that do not read what is still to be sent.
    Cut,
    /// Nothing more: no connection is left.
    Done,
}

impl Standing {
    /// A drain that begins.
    pub(in crate::daemon) fn draining(until: Instant) -> Self {
        Self::Draining(Drain {
            until,
            progress: Progress::Established,
        })
    }

    /// What workers do about new clients.
    pub(super) fn intake(self) -> Intake {
        match self {
            Self::Listening => Intake::Serve,
            Self::Paused | Self::Draining(_) => Intake::Refuse,
            Self::Holding => Intake::Hold,
        }
    }

    /// The state of a listener in service.
    pub(in crate::daemon) fn state(self) -> ListenerState {
        match self {
            Self::Listening => ListenerState::Listening,
            Self::Paused => ListenerState::Paused,
            Self::Holding => ListenerState::Holding,
            Self::Draining(_) => ListenerState::Draining,
        }
    }

    /// The same for a listener of datagrams, which has no backlog to hold clients in.
    pub(super) fn of_datagrams(self) -> Self {
        match self {
            Self::Holding => Self::Paused,
            other => other,
        }
    }

    /// A drain that is not over.
    pub(super) fn drain(&self) -> Option<&Drain> {
        match self {
            Self::Draining(drain) if drain.progress != Progress::Done => Some(drain),
            _ => None,
        }
    }

    /// Takes the step of a drain that is due with this number of connections.
    pub(super) fn step(&mut self, connections: u64, now: Instant) -> Option<DrainStep> {
        match self {
            Self::Draining(drain) => drain.step(connections, now),
            _ => None,
        }
    }
}

impl Drain {
    /// When the next step is due, if connections stay.
    pub(super) fn next_step(&self) -> Option<Instant> {
        match self.progress {
            Progress::Established => Some(self.until),
            Progress::Finishing => Some(self.until + FINISH_TIME_MAX),
            Progress::Cut | Progress::Done => None,
        }
    }

    fn step(&mut self, connections: u64, now: Instant) -> Option<DrainStep> {
        let is_due = self.next_step().is_some_and(|at| at <= now);
        let (progress, step) = match self.progress {
            Progress::Done => return None,
            _ if connections == 0 => (Progress::Done, DrainStep::Done),
            Progress::Established if is_due => (Progress::Finishing, DrainStep::Finish),
            Progress::Finishing if is_due => (Progress::Cut, DrainStep::Cut),
            Progress::Established | Progress::Finishing | Progress::Cut => return None,
        };
        self.progress = progress;
        Some(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The steps with these numbers of connections, at each of these seconds.
    fn steps(standing: &mut Standing, begun: Instant, looks: &[(u64, u32)]) -> Vec<DrainStep> {
        let steps = looks.iter().filter_map(|(connections, second)| {
            standing.step(*connections, begun + *second * SECOND)
        });
        steps.collect()
    }

    #[test]
    fn a_drain_ends_with_its_last_connection() {
        let begun = Instant::now();
        let mut standing = Standing::draining(begun + 10 * SECOND);
        assert_eq!(steps(&mut standing, begun, &[(2, 0), (1, 5)]), []);
        assert_eq!(steps(&mut standing, begun, &[(0, 6)]), [DrainStep::Done]);
        assert_eq!(standing.drain(), None);
        assert_eq!(steps(&mut standing, begun, &[(0, 7), (0, 20)]), []);
        assert_eq!(standing.state(), ListenerState::Draining);
    }

    #[test]
    fn connections_get_our_fin_at_the_deadline_and_are_cut_when_they_do_not_take_it() {
        let begun = Instant::now();
        let mut standing = Standing::draining(begun + 10 * SECOND);
        assert_eq!(steps(&mut standing, begun, &[(2, 9)]), []);
        let found = steps(&mut standing, begun, &[(2, 10), (2, 12), (1, 13), (1, 20)]);
        assert_eq!(found, [DrainStep::Finish, DrainStep::Cut]);
        assert_eq!(steps(&mut standing, begun, &[(0, 20)]), [DrainStep::Done]);
    }

    #[test]
    fn nothing_is_due_while_a_listener_is_in_another_state() {
        let now = Instant::now();
        for mut standing in [Standing::Listening, Standing::Paused, Standing::Holding] {
            assert_eq!(standing.step(1, now), None);
            assert_eq!(standing.drain(), None);
        }
    }
}
