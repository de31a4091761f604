//! The state of the service in a line, for `systemctl status`.
//!
//! The line is sent again when it has changed, and not more often than people read it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::cli::text::plural;
use crate::daemon::listeners::Listeners;
use crate::daemon::stage::Stage;
use crate::protocol::schema::{ReloadOutcome, ReloadResult};

/// How often the line is renewed.
const INTERVAL: Duration = Duration::from_secs(10);

/// The same while stopping, when an operator may wait for the end.
const INTERVAL_STOPPING: Duration = Duration::from_secs(1);

/// Where the watchdog wakes the main thread anyway, the line is renewed at that occasion, but not
/// more often than this.
const INTERVAL_MIN: Duration = Duration::from_secs(2);

/// The manager takes 4096 bytes at a time and forgets what is longer, with all that it says; a
/// character has up to four.
const LINE_CHARACTERS_MAX: usize = 500;

/// What the line is about.
#[derive(Debug)]
pub(in crate::daemon) struct Summary<'a> {
    pub stage: Stage,
    pub listeners: &'a Listeners,
    pub last_reload: &'a ReloadResult,
    /// Until when a reload may be confirmed, if one has to be.
    pub confirm_until: Option<Instant>,
}

/// The line that the manager has, and when it was last renewed.
#[derive(Debug)]
pub(super) struct Status {
    told: String,
    looked: Instant,
}

impl Status {
    /// Nothing has been sent yet.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            told: String::new(),
            looked: now,
        }
    }

    /// When the line is to be renewed.
    pub(super) fn poll_timeout(&self, stage: Stage) -> Instant {
        let interval = if stage.is_stopping() {
            INTERVAL_STOPPING
        } else {
            INTERVAL
        };
        self.looked + interval
    }

    /// Whether it may be renewed on another occasion.
    pub(super) fn may_be_renewed(&self, now: Instant) -> bool {
        now >= self.looked + INTERVAL_MIN
    }

    /// Notes the line as it is now. True if it has changed.
    pub(super) fn renew(&mut self, line: &str, now: Instant) -> bool {
        self.looked = now;
        let is_news = self.told != line;
        if is_news {
            line.clone_into(&mut self.told);
        }
        is_news
    }
}

impl Summary<'_> {
    /// The state in a line.
    pub(super) fn line(&self, now: Instant) -> String {
        let connections = self.listeners.totals().connections();
        let left = |until: Instant| until.saturating_duration_since(now);
        match self.stage {
            Stage::Serving => {
                let listeners = self.listeners.count() as u64;
                let states = self.listeners.states();
                serving(listeners, &states, connections, self.last_reload)
                    + &self
                        .confirm_until
                        .map_or(String::new(), |until| unconfirmed(left(until)))
            }
            Stage::Leaving { until } => leaving(connections, left(until)),
            Stage::Draining { until } => draining(connections, left(until)),
            Stage::HandedOver => {
                format!("{} for the next process", count(connections, "connection"))
            }
            Stage::Finishing { .. } | Stage::Emptying { .. } | Stage::Ended => closing(connections),
        }
    }
}

fn serving(
    listeners: u64,
    states: &BTreeMap<String, u64>,
    connections: u64,
    last_reload: &ReloadResult,
) -> String {
    let mut line = count(listeners, "listener");
    for (state, number) in states {
        line += &format!(", {} {state}", grouped(*number));
    }
    line += &format!(", {}", count(connections, "connection"));
    if last_reload.outcome == ReloadOutcome::Rejected
        && let [first, others @ ..] = last_reload.errors.as_slice()
    {
        let (noun, id) = (last_reload.noun(), last_reload.id);
        line += &format!("; {noun} {id} rejected: {first}");
        line = one_line(&line);
        if !others.is_empty() {
            line += &format!(" (and {} more)", grouped(others.len() as u64));
        }
    }
    line
}

fn unconfirmed(left: Duration) -> String {
    format!("; rolled back in {} unless confirmed", seconds(left))
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
    plural(&grouped(number), thing)
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
            kept: 0,
            changes_omitted: 0,
            summary: String::new(),
            rollback: false,
            confirm_within_ms: None,
            confirmed: None,
        }
    }

    #[test]
    fn listeners_that_take_no_new_clients_are_counted() {
        let states = BTreeMap::from([("draining".to_owned(), 1), ("paused".to_owned(), 2)]);
        assert_eq!(
            serving(5, &states, 8, &applied()),
            "5 listeners, 1 draining, 2 paused, 8 connections"
        );
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
            assert_eq!(
                serving(listeners, &BTreeMap::new(), connections, &applied()),
                line
            );
        }
    }

    #[test]
    fn a_rejected_reload_is_told_with_its_first_error_and_how_many_there_are() {
        assert_eq!(
            serving(
                12,
                &BTreeMap::new(),
                3_402,
                &rejected(&["backlock: unknown key"])
            ),
            "12 listeners, 3,402 connections; reload 7 rejected: echod.toml:14:9: backlock: unknown key"
        );
        assert_eq!(
            serving(1, &BTreeMap::new(), 1, &rejected(&["one", "two", "three"])),
            "1 listener, 1 connection; reload 7 rejected: echod.toml:14:9: one (and 2 more)"
        );
    }

    #[test]
    fn what_is_on_trial_is_told_with_the_time_that_is_left() {
        let left = Duration::from_millis(59_001);
        assert_eq!(
            serving(3, &BTreeMap::new(), 812, &applied()) + &unconfirmed(left),
            "3 listeners, 812 connections; rolled back in 60 s unless confirmed"
        );
    }

    #[test]
    fn a_rejected_rollback_is_told_as_one() {
        let rejected = ReloadResult {
            rollback: true,
            ..rejected(&["bind"])
        };
        let line = serving(1, &BTreeMap::new(), 1, &rejected);
        assert!(line.contains("; rollback 7 rejected: "), "{line}");
    }

    /// The manager would have taken the rest of the line for a message of its own.
    #[test]
    fn a_line_break_in_an_error_does_not_break_the_message() {
        let line = serving(
            1,
            &BTreeMap::new(),
            1,
            &rejected(&["reply \"a\nREADY=1\": not a reply"]),
        );
        assert!(line.ends_with("echod.toml:14:9: reply \"a READY=1\": not a reply"));
    }

    /// The manager would have thrown READY=1 away with it.
    #[test]
    fn an_error_of_any_length_is_cut() {
        let long = "ü".repeat(5_000);
        let line = serving(1, &BTreeMap::new(), 1, &rejected(&[&long, "another"]));
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
        assert_eq!(status.poll_timeout(Stage::Serving), later);
        assert!(!status.renew("one", later));
        // It was renewed, though nothing was sent.
        assert_eq!(status.poll_timeout(Stage::Serving), later + INTERVAL);
        assert_eq!(status.poll_timeout(Stage::Ended), later + INTERVAL_STOPPING);
        assert!(!status.may_be_renewed(later + Duration::from_secs(1)));
        assert!(status.may_be_renewed(later + INTERVAL_MIN));
        assert!(status.renew("two", later + INTERVAL));
    }
}
