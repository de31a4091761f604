//! The stages in the life of the service, and what is due at the end of each stage of a stop.
//!
//! Decides only; `stop` carries out the steps, and `succession` the other way to end. Time is an
//! argument.

use std::time::{Duration, Instant};

/// How long after `drain-timeout` queues may still be emptied, so that also a timeout of zero serves
/// queued clients.
const QUEUES_TIME_MAX: Duration = Duration::from_secs(1);

/// A stage in the life of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Serving,
    /// Told to stop, and serving on as not ready, for load balancers (`shutdown-delay`).
    Leaving {
        until: Instant,
    },
    /// No new connection is accepted; the others may finish (`drain-timeout`).
    Draining {
        until: Instant,
    },
    /// Those still there got our FIN.
    Finishing {
        until: Instant,
    },
    /// All connections are closed; the datagrams that are queued are answered.
    Emptying {
        until: Instant,
    },
    /// Everything is kept for the next process.
    HandedOver,
    Ended,
}

/// What is due at the end of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Take no new connection, and let the others finish.
    Drain,
    /// Send our FIN to those that have not finished.
    Finish,
    /// Answer the datagrams that are queued.
    Empty,
    /// End.
    End,
}

/// What the end of a stage depends on, beside the time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub connections: u64,
    /// The queues of all sockets that were retired are empty.
    pub all_retired: bool,
}

impl Stage {
    /// The step that is due now, if one is.
    pub(super) fn next_step(self, facts: Facts, now: Instant) -> Option<Step> {
        match self {
            Self::Leaving { until } if now >= until => Some(Step::Drain),
            // Without descriptors a queue can't be emptied, and peers that stay leave none: the end
            // does not wait for that.
            Self::Draining { until } if facts.all_retired || now >= until + QUEUES_TIME_MAX => {
                if facts.connections == 0 {
                    Some(Step::Empty)
                } else {
                    (now >= until).then_some(Step::Finish)
                }
            }
            Self::Finishing { until } if now >= until || facts.connections == 0 => {
                Some(Step::Empty)
            }
            Self::Emptying { until } if now >= until || facts.all_retired => Some(Step::End),
            _ => None,
        }
    }

    /// Whether the end has begun, or this process's part has ended.
    pub(super) fn is_stopping(self) -> bool {
        self != Self::Serving
    }

    /// The name in the control protocol.
    pub(super) fn name(self) -> &'static str {
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

    const SECOND: Duration = Duration::from_secs(1);

    /// The step with this many connections, at each of these seconds.
    fn steps(stage: Stage, begun: Instant, facts: Facts, seconds: &[u32]) -> Vec<Option<Step>> {
        let step = |second: &u32| stage.next_step(facts, begun + *second * SECOND);
        seconds.iter().map(step).collect()
    }

    fn facts(connections: u64, all_retired: bool) -> Facts {
        Facts {
            connections,
            all_retired,
        }
    }

    #[test]
    fn it_serves_on_for_the_shutdown_delay_whatever_connections_there_are() {
        let begun = Instant::now();
        let until = begun + 5 * SECOND;
        let stage = Stage::Leaving { until };
        for connections in [0, 3] {
            let found = steps(stage, begun, facts(connections, true), &[0, 4, 5]);
            assert_eq!(found, [None, None, Some(Step::Drain)]);
        }
    }

    #[test]
    fn a_drain_ends_with_the_last_connection_or_with_its_time() {
        let begun = Instant::now();
        let until = begun + 30 * SECOND;
        let stage = Stage::Draining { until };
        let found = steps(stage, begun, facts(0, true), &[0]);
        assert_eq!(found, [Some(Step::Empty)]);
        let found = steps(stage, begun, facts(2, true), &[0, 29, 30]);
        assert_eq!(found, [None, None, Some(Step::Finish)]);
    }

    #[test]
    fn queued_clients_are_served_for_another_second_and_no_longer() {
        let begun = Instant::now();
        let stage = Stage::Draining { until: begun };
        let found = steps(stage, begun, facts(0, false), &[0, 1]);
        assert_eq!(found, [None, Some(Step::Empty)]);
        let found = steps(stage, begun, facts(2, false), &[0, 1]);
        assert_eq!(found, [None, Some(Step::Finish)]);
    }

    #[test]
    fn peers_that_do_not_take_our_fin_and_queues_that_do_not_empty_do_not_keep_it_from_its_end() {
        let begun = Instant::now();
        let until = begun + 2 * SECOND;
        let finishing = Stage::Finishing { until };
        let found = steps(finishing, begun, facts(1, false), &[1, 2]);
        assert_eq!(found, [None, Some(Step::Empty)]);
        let found = steps(finishing, begun, facts(0, false), &[1]);
        assert_eq!(found, [Some(Step::Empty)]);
        let emptying = Stage::Emptying { until };
        let found = steps(emptying, begun, facts(1, false), &[1, 2]);
        assert_eq!(found, [None, Some(Step::End)]);
        let found = steps(emptying, begun, facts(1, true), &[1]);
        assert_eq!(found, [Some(Step::End)]);
    }

    #[test]
    fn nothing_is_due_while_it_serves_or_once_it_has_ended() {
        let now = Instant::now();
        for stage in [Stage::Serving, Stage::HandedOver, Stage::Ended] {
            assert_eq!(stage.next_step(facts(0, true), now), None);
        }
    }
}
