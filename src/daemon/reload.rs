//! One configuration becomes another: parse, plan, prepare, commit, retire, report.
//!
//! Up to the commit nothing has changed, and whatever is wrong is told with its place; after it
//! nothing can fail. The same [`ReloadResult`] goes to whoever asked, the log, the service manager
//! and `GetStatus`.

use std::time::{Duration, Instant, SystemTime};

use crate::config::{self, Config, Loaded, plan};
use crate::protocol::schema::{self, ReloadOutcome, ReloadResult, Trigger};

use super::Daemon;
use super::origin::{Origin, Texts};
use super::systemd::notify::Manager;
use super::systemd::passed;

/// The start counts as a reload, the first.
pub(super) const START_ID: u64 = 1;

/// Reads and checks the configuration; `in_force` has the names of the texts of the present one.
///
/// # Errors
/// All that is wrong with it.
pub(super) fn load(
    origin: &Origin,
    in_force: &[String],
) -> Result<(Texts, Loaded), Vec<config::Diagnostic>> {
    let texts = origin.read(in_force)?;
    let loaded = config::load(&texts.sources)?;
    Ok((texts, loaded))
}

/// What the reloads so far have come to.
#[derive(Debug)]
pub(super) struct History {
    /// Of the last one.
    pub last: ReloadResult,
    /// How many configurations have been in force, the present one included.
    pub generation: u64,
}

impl History {
    /// Of a daemon that has not begun.
    pub(super) fn none() -> Self {
        let now = Instant::now();
        Self::start(Vec::new(), &[], now, now)
    }

    /// As a predecessor had it.
    pub(super) fn resume(last: ReloadResult, generation: u64) -> Self {
        Self { last, generation }
    }

    /// The start counts as the first, with [`START_ID`].
    pub(super) fn start(
        warnings: Vec<schema::Diagnostic>,
        changes: &[config::Change],
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
            changes: changes.iter().map(change).collect(),
        };
        Self {
            last,
            generation: 1,
        }
    }
}

impl Daemon {
    /// Reloads, or only says what that would do.
    pub(super) fn reload(&mut self, trigger: Trigger, dry_run: bool) -> ReloadResult {
        let begun = Instant::now();
        if !dry_run {
            self.tell_manager(Manager::reloading);
        }
        let mut result = ReloadResult {
            id: self.history.last.id + u64::from(!dry_run),
            generation: self.history.generation,
            trigger,
            outcome: ReloadOutcome::Rejected,
            at: timestamp(),
            duration_us: 0,
            errors: Vec::new(),
            warnings: Vec::new(),
            changes: Vec::new(),
        };
        match self.attempt(dry_run, &mut result) {
            Ok(outcome) => result.outcome = outcome,
            Err(errors) => result.errors = errors,
        }
        result.generation = self.history.generation;
        result.duration_us = begun.elapsed().as_micros() as u64;
        if !dry_run {
            log_result(&result);
            self.history.last = result.clone();
            self.tell_ready(Instant::now());
        }
        result
    }

    fn attempt(
        &mut self,
        dry_run: bool,
        result: &mut ReloadResult,
    ) -> Result<ReloadOutcome, Vec<schema::Diagnostic>> {
        if self.is_stopping() {
            return Err(vec![general(
                "the daemon is stopping: start it again instead",
            )]);
        }
        let (texts, mut loaded) = load(&self.origin, &self.files)
            .map_err(|errors| errors.iter().map(diagnostic).collect::<Vec<_>>())?;
        // A successor goes on with what was overridden; a reload ends that.
        let succeeds = result.trigger == Trigger::Start;
        if succeeds && self.log_level_overridden {
            loaded.config.log.level = self.config.log.level;
        }
        let overridden = succeeds.then(|| {
            self.listeners.keep_overrides(&mut loaded.config);
            self.listeners.overridden()
        });
        result.warnings = loaded.warnings.iter().map(diagnostic).collect();
        let changes = plan(&self.config, &loaded.config, &self.listeners.connections());
        result.changes = changes.iter().map(change).collect();

        let restart = changes.iter().flat_map(|change| &change.restart);
        result.warnings.extend(restart.map(|key| {
            let (table, name) = (key.section.name(), key.name);
            general(&format!(
                "[{table}] {name}: takes effect when the daemon is next started"
            ))
        }));
        let unchanged = changes.iter().all(|change| {
            change.action == config::Action::Keep
                || change.listener.is_none() && change.keys.len() == change.restart.len()
        });
        if dry_run {
            // Binding would show more, but a socket that is bound and let go again loses clients.
            return Ok(if unchanged {
                ReloadOutcome::Unchanged
            } else {
                ReloadOutcome::Applied
            });
        }
        let prepared = self.listeners.prepare(
            &loaded.config,
            &changes,
            self.workers.count(),
            passed::Sockets::sort(std::mem::take(&mut self.passed), &loaded.config),
        );
        let prepared = prepared.map_err(|failures| {
            failures
                .iter()
                .map(|failure| general(failure))
                .collect::<Vec<_>>()
        })?;
        result
            .warnings
            .extend(prepared.warnings.iter().map(|warning| general(warning)));
        self.listeners.commit(
            prepared,
            &loaded.config,
            &changes,
            &self.workers,
            Instant::now(),
        );
        self.update_store();
        if let Some(overridden) = overridden {
            self.listeners.mark_overridden(overridden);
        }
        self.files = texts
            .sources
            .into_iter()
            .map(|source| source.name)
            .collect();
        self.log_level_overridden &= succeeds;
        super::log::set_level(loaded.config.log.level);
        let running = std::mem::replace(&mut self.config, loaded.config);
        keep_until_restart(&mut self.config, &running);
        if unchanged {
            return Ok(ReloadOutcome::Unchanged);
        }
        self.history.generation += 1;
        Ok(ReloadOutcome::Applied)
    }
}

/// What only a restart changes stays as it runs, so that the next reload says so again.
fn keep_until_restart(config: &mut Config, running: &Config) {
    config.daemon.workers = running.daemon.workers;
    config.daemon.driver = running.daemon.driver;
    config.daemon.busy_poll = running.daemon.busy_poll;
    config.daemon.user.clone_from(&running.daemon.user);
    config.daemon.group.clone_from(&running.daemon.group);
    config.control = running.control.clone();
    config.log.target = running.log.target;
    config.log.facility.clone_from(&running.log.facility);
}

/// One line for each error and warning, and one for the whole.
fn log_result(result: &ReloadResult) {
    let ReloadResult { id, generation, .. } = result;
    let id = *id;
    for warning in &result.warnings {
        log::warn!(
            reload_id = id, listener = listener_of(warning);
            "reload {id}: {}", text(warning)
        );
    }
    for error in &result.errors {
        log::error!(
            reload_id = id, listener = listener_of(error);
            "reload {id}: {}", text(error)
        );
    }
    match result.outcome {
        ReloadOutcome::Rejected => log::error!(
            reload_id = id;
            "reload {id} rejected with {} error(s); still running generation {generation}",
            result.errors.len()
        ),
        ReloadOutcome::Unchanged => {
            log::info!(
                reload_id = id;
                "reload {id}: nothing has changed; still generation {generation}"
            )
        }
        ReloadOutcome::Applied | ReloadOutcome::RolledBack => {
            for change in result
                .changes
                .iter()
                .filter(|change| change.action != schema::ChangeAction::Keep)
            {
                log::info!(
                    reload_id = id, listener = change.listener.as_deref();
                    "reload {id}: {}", change.text
                );
            }
            let duration = Duration::from_micros(result.duration_us);
            log::info!(
                reload_id = id;
                "reload {id} applied in {duration:.1?}; now generation {generation}"
            );
        }
    }
}

/// The listener that it is about: its key says so, or, where it is about no key, its text.
pub(super) fn listener_of(diagnostic: &schema::Diagnostic) -> Option<&str> {
    let of_key = || {
        let path = diagnostic.key.as_deref()?.strip_prefix("listener.")?;
        Some(path.split_once('.')?.0)
    };
    let of_text = || {
        let name = diagnostic.message.strip_prefix("listener \"")?;
        Some(name.split_once("\": ")?.0)
    };
    of_key().or_else(of_text)
}

/// `file:line:column: message`, as far as it is known.
pub(super) fn text(diagnostic: &schema::Diagnostic) -> String {
    let config = config::Diagnostic {
        file: diagnostic.file.clone(),
        line: diagnostic.line,
        column: diagnostic.column,
        key: None,
        message: diagnostic.message.clone(),
    };
    config.to_string()
}

/// A diagnostic on no particular place.
pub(super) fn general(message: &str) -> schema::Diagnostic {
    schema::Diagnostic {
        message: message.into(),
        ..schema::Diagnostic::default()
    }
}

pub(super) fn diagnostic(diagnostic: &config::Diagnostic) -> schema::Diagnostic {
    schema::Diagnostic {
        file: diagnostic.file.clone(),
        line: diagnostic.line,
        column: diagnostic.column,
        key: diagnostic.key.clone(),
        message: diagnostic.message.clone(),
    }
}

fn change(change: &config::Change) -> schema::Change {
    let action = match change.action {
        config::Action::Add => schema::ChangeAction::Add,
        config::Action::Keep => schema::ChangeAction::Keep,
        config::Action::Update => schema::ChangeAction::Update,
        config::Action::Rebind => schema::ChangeAction::Rebind,
        config::Action::Remove => schema::ChangeAction::Remove,
    };
    schema::Change {
        listener: change.listener.clone(),
        action,
        keys: change.keys.iter().map(|key| (*key).into()).collect(),
        connections: change.connections,
        text: change.text.clone(),
    }
}

fn timestamp() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diagnostic_names_its_listener_by_key_or_by_text() {
        let check = |key: Option<&str>, message: &str, expected: Option<&str>| {
            let diagnostic = schema::Diagnostic {
                key: key.map(Into::into),
                ..general(message)
            };
            assert_eq!(listener_of(&diagnostic), expected);
        };
        check(Some("listener.main.backlog"), "not a number", Some("main"));
        check(Some("daemon.workers"), "not a number", None);
        let text = "listener \"main\": bind 127.0.0.1:7: address already in use";
        check(None, text, Some("main"));
        check(None, "the daemon is stopping: start it again instead", None);
    }
}
