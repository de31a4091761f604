//! When the service manager may be notified that the service is alive: the watchdog
//! (`sd_watchdog_enabled(3)`).
//!
//! Decides with the time that it is given. The control thread asks every worker, and only when the
//! last of them has answered is the watchdog fed: a worker that hangs is a dead service, whatever
//! the others do, and a control thread that hangs does not ask. No worker is asked again before all
//! have answered, so that questions never pile up.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How many times within the manager's patience the workers are asked.
const ROUNDS: u32 = 4;

/// See the module.
#[derive(Debug)]
pub(crate) struct Watchdog {
    interval: Duration,
    workers: usize,
    // Those that have not answered yet.
    waits_for: BTreeSet<usize>,
    asked: Instant,
    // None while nothing is left but to wait.
    due: Option<Instant>,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Ask every worker whether it is alive.
    Ask,
    /// Tell the operator which workers have not answered, while there is time.
    Accuse {
        /// These.
        workers: Vec<usize>,
        /// The time since they were asked.
        silent: Duration,
    },
}

impl Watchdog {
    /// For a manager that ends the service when it has no sign of life for `patience`.
    pub(crate) fn new(patience: Duration, workers: usize, now: Instant) -> Self {
        Self {
            interval: patience / ROUNDS,
            workers,
            waits_for: BTreeSet::new(),
            asked: now,
            due: Some(now),
        }
    }

    /// When to call [`Self::turn`] next.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// Time has passed.
    pub(crate) fn turn(&mut self, now: Instant) -> Option<Task> {
        self.due.filter(|due| *due <= now)?;
        if !self.waits_for.is_empty() {
            self.due = None;
            return Some(Task::Accuse {
                workers: self.waits_for.iter().copied().collect(),
                silent: now - self.asked,
            });
        }
        self.waits_for = (0..self.workers).collect();
        self.asked = now;
        self.due = Some(now + self.interval);
        Some(Task::Ask)
    }

    /// A worker has answered. True when it was the last one: feed the watchdog.
    pub(crate) fn handle_alive(&mut self, worker: usize) -> bool {
        let all = self.waits_for.remove(&worker) && self.waits_for.is_empty();
        if all {
            self.due = Some(self.asked + self.interval);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(40);
    const INTERVAL: Duration = Duration::from_secs(10);

    fn new(workers: usize) -> (Watchdog, Instant) {
        let now = Instant::now();
        (Watchdog::new(PATIENCE, workers, now), now)
    }

    #[test]
    fn it_is_fed_when_the_last_worker_has_answered_and_not_before() {
        let (mut watchdog, now) = new(3);
        assert_eq!(watchdog.turn(now), Some(Task::Ask));
        assert!(!watchdog.handle_alive(2));
        assert!(!watchdog.handle_alive(0));
        assert!(watchdog.handle_alive(1));
    }

    #[test]
    fn one_worker_that_answers_often_is_not_all_of_them() {
        let (mut watchdog, now) = new(2);
        assert_eq!(watchdog.turn(now), Some(Task::Ask));
        for _ in 0..10 {
            assert!(!watchdog.handle_alive(0));
        }
        assert!(watchdog.handle_alive(1));
        // No worker was asked again.
        assert!(!watchdog.handle_alive(0));
        assert!(!watchdog.handle_alive(1));
    }

    #[test]
    fn everybody_is_asked_four_times_within_the_managers_patience() {
        let (mut watchdog, start) = new(1);
        let mut asked = Vec::new();
        for second in 0..40 {
            let now = start + Duration::from_secs(second);
            if watchdog.turn(now) == Some(Task::Ask) {
                assert_eq!(watchdog.poll_timeout(), Some(now + INTERVAL));
                assert!(watchdog.handle_alive(0));
                asked.push(second);
            }
        }
        assert_eq!(asked, [0, 10, 20, 30]);
    }

    #[test]
    fn who_does_not_answer_is_named_once_and_not_asked_again() {
        let (mut watchdog, start) = new(3);
        assert_eq!(watchdog.turn(start), Some(Task::Ask));
        assert!(!watchdog.handle_alive(1));
        let late = start + INTERVAL;
        let accused = Task::Accuse {
            workers: vec![0, 2],
            silent: INTERVAL,
        };
        assert_eq!(watchdog.turn(late), Some(accused));
        assert_eq!(watchdog.poll_timeout(), None);
        assert_eq!(watchdog.turn(late + PATIENCE), None);
    }

    #[test]
    fn a_late_answer_counts_and_the_next_round_begins_at_once() {
        let (mut watchdog, start) = new(1);
        assert_eq!(watchdog.turn(start), Some(Task::Ask));
        let late = start + INTERVAL * 2;
        assert!(matches!(watchdog.turn(late), Some(Task::Accuse { .. })));
        assert!(watchdog.handle_alive(0));
        assert_eq!(watchdog.turn(late), Some(Task::Ask));
        assert_eq!(watchdog.poll_timeout(), Some(late + INTERVAL));
    }
}
