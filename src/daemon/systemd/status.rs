//! What is sent to the service manager at run time: the state in a line for `systemctl status`; that
//! all threads are alive; and while stopping, that the daemon needs more time.
//!
//! The line is sent again when it has changed, and not more often than people read it. Without a
//! manager nothing is counted, and no thread is woken for it.

use std::time::{Duration, Instant};

use crate::protocol::schema::{ReloadOutcome, ReloadResult};
use crate::worker::mailbox::Command;

use crate::daemon::systemd::watchdog::Task;
use crate::daemon::{Daemon, Stage};

/// How often the line is renewed.
const INTERVAL: Duration = Duration::from_secs(10);

/// Where the watchdog wakes the main thread anyway, at that occasion, but not more often than this.
const INTERVAL_MIN: Duration = Duration::from_secs(2);

/// The same while stopping, when an operator may wait for the end.
const INTERVAL_STOPPING: Duration = Duration::from_secs(1);

/// While stopping, the manager is to wait for this time from each message on: longer than the time
/// between two messages, and short enough for a daemon that hangs to be ended soon.
const MORE_TIME: Duration = Duration::from_secs(10);

/// The manager takes 4096 bytes at a time and forgets what is longer, with all that it says; a
/// character has up to four.
const LINE_CHARACTERS_MAX: usize = 500;

/// The line that the manager has, and when it was last renewed.
#[derive(Debug)]
pub(crate) struct Status {
    told: String,
    looked: Instant,
}

impl Status {
    /// Nothing has been sent yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            told: String::new(),
            looked: now,
        }
    }

    fn is_due(&self, interval: Duration, now: Instant) -> bool {
        now >= self.looked + interval
    }

    /// Notes the line as it is now. True if it has changed.
    fn renew(&mut self, line: &str, now: Instant) -> bool {
        self.looked = now;
        let is_news = self.told != line;
        if is_news {
            line.clone_into(&mut self.told);
        }
        is_news
    }
}

impl Daemon {
    /// All is bound and served, or as before, after a reload.
    pub(crate) fn tell_ready(&mut self, now: Instant) {
        let Some(manager) = &self.manager else {
            return;
        };
        let line = self.status_line(now);
        manager.ready(&line);
        self.status.renew(&line, now);
    }

    /// When [`Self::keep_manager_informed`] has something to do, if nothing else happens.
    pub(crate) fn next_word(&self) -> Option<Instant> {
        self.manager.as_ref()?;
        let watchdog = self.watchdog.as_ref().and_then(|dog| dog.poll_timeout());
        let status = self.status.looked + self.status_interval();
        Some(watchdog.map_or(status, |watchdog| watchdog.min(status)))
    }

    fn status_interval(&self) -> Duration {
        if self.is_stopping() {
            INTERVAL_STOPPING
        } else {
            INTERVAL
        }
    }

    /// Sends the manager what is due.
    pub(crate) fn keep_manager_informed(&mut self, now: Instant) {
        match self.watchdog.as_mut().and_then(|dog| dog.turn(now)) {
            Some(Task::Ask) => self.workers.command_all(|_| Command::Ping),
            Some(Task::Accuse { workers, silent }) => {
                for worker in workers {
                    log::error!(
                        "worker {worker}: no answer for {silent:.1?}: unless it comes soon, the service manager \
                         ends the service (WatchdogSec=)"
                    );
                }
            }
            None => {}
        }
        if self.status.is_due(self.status_interval(), now) {
            self.tell_status(now);
        }
    }

    /// A worker has answered.
    pub(crate) fn handle_alive(&mut self, worker: usize, now: Instant) {
        let all_alive = self
            .watchdog
            .as_mut()
            .is_some_and(|dog| dog.handle_alive(worker));
        if let Some(manager) = self.manager.as_ref().filter(|_| all_alive) {
            manager.alive();
            if self.status.is_due(INTERVAL_MIN, now) {
                self.tell_status(now);
            }
        }
    }

    /// Sends the state, and while stopping asks for time.
    pub(crate) fn tell_status(&mut self, now: Instant) {
        let Some(manager) = &self.manager else {
            return;
        };
        let line = self.status_line(now);
        let is_news = self.status.renew(&line, now);
        if self.is_stopping() {
            manager.needs_time(&line, MORE_TIME);
        } else if is_news {
            manager.status(&line);
        }
    }

    fn status_line(&self, now: Instant) -> String {
        let connections = self.listeners.totals().connections();
        match self.stage {
            Stage::Serving => serving(
                self.listeners.count() as u64,
                connections,
                &self.history.last,
            ),
            Stage::Leaving { until } => leaving(connections, until.saturating_duration_since(now)),
            Stage::Draining { until } => {
                draining(connections, until.saturating_duration_since(now))
            }
            Stage::HandedOver => {
                format!("{} for the next process", count(connections, "connection"))
            }
            Stage::Finishing { .. } | Stage::Emptying { .. } | Stage::Ended => closing(connections),
        }
    }
}

fn serving(listeners: u64, connections: u64, last_reload: &ReloadResult) -> String {
    let mut line = format!(
        "{}, {}",
        count(listeners, "listener"),
        count(connections, "connection")
    );
    if last_reload.outcome == ReloadOutcome::Rejected
        && let [first, others @ ..] = last_reload.errors.as_slice()
    {
        line += &format!("; reload {} rejected: {first}", last_reload.id);
        line = one_line(&line);
        if !others.is_empty() {
            line += &format!(" (and {} more)", grouped(others.len() as u64));
        }
    }
    line
}

fn leaving(connections: u64, left: Duration) -> String {
    let connections = count(connections, "connection");
    format!("stopping: {connections}, serving on for {}", seconds(left))
}

fn draining(connections: u64, left: Duration) -> String {
    let connections = count(connections, "connection");
    format!("draining: {connections}, at most {} left", seconds(left))
}

fn closing(connections: u64) -> String {
    format!("stopping: closing {}", count(connections, "connection"))
}

/// A number of things: `1 listener`, `3,402 connections`.
fn count(number: u64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", grouped(number))
}

fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Whole seconds, of which the last is not over before it is.
fn seconds(time: Duration) -> String {
    let seconds = time.as_millis().div_ceil(1000);
    format!("{} s", grouped(u64::try_from(seconds).unwrap_or(u64::MAX)))
}

/// What is quoted of a configuration may have a line break in it, at which the manager would begin
/// to read another message, and may be of any length.
fn one_line(text: &str) -> String {
    let no_control = |letter: char| if letter.is_control() { ' ' } else { letter };
    let mut characters = text.chars().map(no_control);
    let mut line: String = characters.by_ref().take(LINE_CHARACTERS_MAX).collect();
    if characters.next().is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::schema::Diagnostic;

    fn rejected(messages: &[&str]) -> ReloadResult {
        let error = |message: &&str| Diagnostic {
            file: "echod.toml".into(),
            line: Some(14),
            column: Some(9),
            message: (*message).into(),
            ..Diagnostic::default()
        };
        ReloadResult {
            id: 7,
            outcome: ReloadOutcome::Rejected,
            errors: messages.iter().map(error).collect(),
            ..applied()
        }
    }

    fn applied() -> ReloadResult {
        ReloadResult {
            id: 6,
            generation: 3,
            trigger: crate::protocol::schema::Trigger::Signal,
            outcome: ReloadOutcome::Applied,
            at: String::new(),
            duration_us: 0,
            errors: Vec::new(),
            warnings: Vec::new(),
            changes: Vec::new(),
        }
    }

    #[test]
    fn numbers_are_written_for_people() {
        for (listeners, connections, line) in [
            (1, 0, "1 listener, 0 connections"),
            (2, 1, "2 listeners, 1 connection"),
            (12, 999, "12 listeners, 999 connections"),
            (12, 3_402, "12 listeners, 3,402 connections"),
            (1_000, 100_000, "1,000 listeners, 100,000 connections"),
            (3, 1_234_567, "3 listeners, 1,234,567 connections"),
        ] {
            assert_eq!(serving(listeners, connections, &applied()), line);
        }
    }

    #[test]
    fn a_rejected_reload_is_told_with_its_first_error_and_how_many_there_are() {
        assert_eq!(
            serving(12, 3_402, &rejected(&["backlock: unknown key"])),
            "12 listeners, 3,402 connections; reload 7 rejected: echod.toml:14:9: backlock: unknown key"
        );
        assert_eq!(
            serving(1, 1, &rejected(&["one", "two", "three"])),
            "1 listener, 1 connection; reload 7 rejected: echod.toml:14:9: one (and 2 more)"
        );
    }

    /// The manager would have taken the rest of the line for a message of its own.
    #[test]
    fn a_line_break_in_an_error_does_not_break_the_message() {
        let line = serving(1, 1, &rejected(&["reply \"a\nREADY=1\": not a reply"]));
        assert!(line.ends_with("echod.toml:14:9: reply \"a READY=1\": not a reply"));
    }

    /// The manager would have thrown READY=1 away with it.
    #[test]
    fn an_error_of_any_length_is_cut() {
        let long = "ü".repeat(5_000);
        let line = serving(1, 1, &rejected(&[&long, "another"]));
        assert!(line.len() < 2_100, "{}", line.len());
        assert!(line.ends_with("ü… (and 1 more)"), "{line}");
    }

    #[test]
    fn while_stopping_it_is_told_how_long_it_may_take() {
        let left = Duration::from_millis;
        for (line, expected) in [
            (
                draining(12, left(22_001)),
                "draining: 12 connections, at most 23 s left",
            ),
            (
                draining(1, left(0)),
                "draining: 1 connection, at most 0 s left",
            ),
            (
                draining(1, left(3_600_000)),
                "draining: 1 connection, at most 3,600 s left",
            ),
            (
                leaving(3_402, left(5_000)),
                "stopping: 3,402 connections, serving on for 5 s",
            ),
            (closing(1), "stopping: closing 1 connection"),
        ] {
            assert_eq!(line, expected);
        }
    }

    #[test]
    fn a_line_is_news_once() {
        let now = Instant::now();
        let mut status = Status::new(now);
        assert!(status.renew("one", now));
        let later = now + INTERVAL;
        assert!(!status.is_due(INTERVAL, later - Duration::from_millis(1)));
        assert!(status.is_due(INTERVAL, later));
        assert!(!status.renew("one", later));
        // It was renewed, though nothing was sent.
        assert!(!status.is_due(INTERVAL, later + Duration::from_secs(1)));
        assert!(status.renew("two", later + INTERVAL));
    }
}
