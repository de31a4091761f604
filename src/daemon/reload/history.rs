//! The results of past reloads, and how they are logged.

use std::time::{Duration, Instant, SystemTime};

use crate::protocol::schema::{
    Change, ChangeAction, Diagnostic, ReloadOutcome, ReloadResult, Trigger,
};

/// The start counts as a reload, the first.
pub(in crate::daemon) const START_ID: u64 = 1;

/// The result of the last reload, and the count of those that were applied.
#[derive(Debug)]
pub(in crate::daemon) struct History {
    /// Of the last reload, abridged.
    pub last: ReloadResult,
    /// How many configurations have been in force, the present one included.
    pub generation: u64,
}

impl History {
    /// Of a daemon that has not begun.
    pub(in crate::daemon) fn none() -> Self {
        let now = Instant::now();
        Self::start(Vec::new(), Vec::new(), now, now)
    }

    /// As a predecessor had it.
    pub(in crate::daemon) fn resume(last: ReloadResult, generation: u64) -> Self {
        Self { last, generation }
    }

    /// What there is to say about the last reload, if it was not simply applied.
    pub(in crate::daemon) fn remarks(&self) -> Vec<Diagnostic> {
        let is_rejected = self.last.outcome == ReloadOutcome::Rejected;
        let rejection = is_rejected.then(|| Diagnostic::general(rejection(&self.last)));
        let rejection = rejection.into_iter();
        let errors = rejection.chain(self.last.errors.iter().cloned());
        errors.chain(self.last.warnings.iter().cloned()).collect()
    }

    /// The start counts as the first, with [`START_ID`].
    pub(in crate::daemon) fn start(
        warnings: Vec<Diagnostic>,
        changes: Vec<Change>,
        begun: Instant,
        now: Instant,
    ) -> Self {
        let last = ReloadResult {
            id: START_ID,
            generation: 1,
            trigger: Trigger::Start,
            outcome: ReloadOutcome::Applied,
            at: timestamp(),
            duration_us: (now - begun).as_micros() as u64,
            errors: Vec::new(),
            warnings,
            changes,
            kept: 0,
            changes_omitted: 0,
            summary: String::new(),
            rollback: false,
            confirm_within_ms: None,
            confirmed: None,
        };
        Self {
            last: last.abridged(),
            generation: 1,
        }
    }
}

/// That a configuration is not in force.
fn rejection(result: &ReloadResult) -> String {
    let ReloadResult { id, generation, .. } = result;
    let (noun, errors) = (result.noun(), result.error_count());
    format!("{noun} {id} rejected with {errors}; still running generation {generation}")
}

/// One line for each error and warning, and one for the whole.
pub(super) fn log_result(result: &ReloadResult) {
    let ReloadResult { id, generation, .. } = result;
    let (id, noun) = (*id, result.noun());
    for warning in &result.warnings {
        log::warn!(
            reload_id = id, listener = warning.listener();
            "{noun} {id}: {warning}"
        );
    }
    for error in &result.errors {
        log::error!(
            reload_id = id, listener = error.listener();
            "{noun} {id}: {error}"
        );
    }
    // Each error has a line of its own already, which tools can find by its listener.
    match result.outcome {
        ReloadOutcome::Rejected => log::error!(reload_id = id; "{}", rejection(result)),
        ReloadOutcome::Unchanged => {
            let until = if result.waits_for_start() {
                " before the next start"
            } else {
                ""
            };
            log::info!(
                reload_id = id;
                "reload {id}: nothing has changed{until}; still generation {generation}"
            )
        }
        ReloadOutcome::Applied | ReloadOutcome::RolledBack => {
            for change in result
                .changes
                .iter()
                .filter(|change| change.action != ChangeAction::Keep)
            {
                log::info!(
                    reload_id = id, listener = change.listener.as_deref();
                    "{noun} {id}: {}", change.text
                );
            }
            let duration = Duration::from_micros(result.duration_us);
            log::info!(
                reload_id = id;
                "{noun} {id} applied in {duration:.1?}; now generation {generation}: {}",
                result.summary
            );
        }
    }
    if let Some(earlier) = result.confirmed {
        log::info!(reload_id = id; "reload {id} confirms reload {earlier}");
    }
    if let Some(within) = result.confirm_within_ms.map(Duration::from_millis) {
        let within = humantime::format_duration(within);
        log::info!(reload_id = id; "reload {id} is rolled back in {within} unless it is confirmed");
    }
}

/// What came of a reload, for the line about its caller: from which generation to which.
pub(super) fn outcome_words(result: &ReloadResult, before: u64) -> String {
    let after = result.generation;
    match result.outcome {
        ReloadOutcome::Applied | ReloadOutcome::RolledBack => {
            format!("generation {before} → {after}")
        }
        ReloadOutcome::Unchanged => format!("nothing has changed, still generation {after}"),
        ReloadOutcome::Rejected => format!("rejected, still generation {after}"),
    }
}

/// The time of day, in UTC.
pub(super) fn timestamp() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}
