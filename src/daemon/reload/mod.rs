//! One configuration becomes another: load, plan, prepare, commit, retire, report.
//!
//! ```text
//!   requested ──its turn──▶ loading ──▶ planned ──▶ prepared ──▶ committed ──▶ reported
//!                              └── wrong ─┴── can't be bound ─┴── dry run ──▶ reported
//! ```
//!
//! The configuration is loaded in a thread of its own ([`loading`]) while the control thread serves;
//! all else is done by the control thread at once. Up to the commit nothing has changed, and
//! whatever is wrong is reported with its place; after it nothing can fail. The same
//! [`ReloadResult`] goes to the caller, the log, the service manager and `GetStatus`.
//!
//! A rollback is the same without loading: the previous configuration is kept ([`version`]), and
//! [`trial`] decides which that is, and when it is put in force because a reload was not confirmed.

mod history;
mod in_force;
mod loading;
mod queue;
mod trial;
mod version;

use std::fmt::Display;
use std::io;
use std::time::{Duration, Instant};

use crate::cli::text::cause;
use crate::config::{Config, Mood, Plan, plan};
use crate::protocol;
use crate::protocol::schema::{Diagnostic, ReloadOutcome, ReloadResult, Trigger};
use crate::protocol::wire;
use crate::sys::process::Passed;

use super::Daemon;
use super::check::{self, InForce};
use super::control::{Audit, ClientId, Reply, Server};
use super::listeners::passed;
use super::record;
use super::systemd::notify::Manager;
use history::{log_result, outcome_words, timestamp};
use loading::{Loading, Rejection, no_thread};
use queue::Queue;
use trial::Trial;
use version::Version;

pub(super) use history::{History, START_ID};
pub(super) use loading::{Outcome, load_in_time, load_texts};
pub(super) use queue::Wanted;

/// Why a configuration is of no use any more.
const STOPPING: &str = "the daemon is stopping: start it again instead";

/// A reload that is wanted, and the client of the control socket that waits for the result.
pub(super) type Request = queue::Request<Asker>;

/// The client that waits for the result of a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asker {
    pub id: ClientId,
    /// None of a dry run.
    pub audit: Option<Audit>,
}

/// The reload under way, requests for others, and what a rollback restores.
#[derive(Debug)]
pub(super) struct Reloads {
    current: Option<Current>,
    queue: Queue<Asker>,
    trial: Trial<Version>,
    // The configuration in force with the values that take effect at the next start; none where it
    // was read at this one.
    next_start: Option<Config>,
}

#[derive(Debug)]
struct Current {
    request: Request,
    begun: Instant,
    loading: Loading,
}

impl Reloads {
    pub(super) fn none() -> Self {
        Self {
            current: None,
            queue: Queue::new(),
            trial: Trial::none(),
            next_start: None,
        }
    }

    /// Whether a reload is under way. One that waits for its turn is not.
    pub(super) fn is_loading(&self) -> bool {
        self.current.is_some()
    }

    /// Until when a reload may be confirmed, if one has to be.
    pub(super) fn confirm_until(&self) -> Option<Instant> {
        Some(self.trial.unconfirmed()?.until)
    }

    /// What a rollback restores, and when, for a successor.
    pub(super) fn describe_trial(&self, now: Instant) -> record::Trial {
        self.trial.describe(now)
    }

    /// As a predecessor has described it, this number of nanoseconds ago.
    pub(super) fn resume(&mut self, described: &record::Trial, elapsed: u64) {
        let elapsed = Duration::from_nanos(elapsed);
        self.trial = Trial::resume(described, elapsed, Instant::now());
    }

    /// When a reload under way is given up, if nothing else happens.
    fn loading_until(&self) -> Option<Instant> {
        Some(self.current.as_ref()?.loading.poll_timeout())
    }

    /// The reload whose configuration is loaded, or has not been in time.
    fn take_loaded(&mut self, now: Instant) -> Option<(Current, Outcome)> {
        let outcome = self.current.as_ref()?.loading.poll(now)?;
        Some((self.current.take()?, outcome))
    }
}

impl Daemon {
    /// Takes note that a reload is wanted; [`Self::continue_reloads`] begins it.
    pub(super) fn request_reload(&mut self, request: Request) {
        self.reloads.queue.add(request);
    }

    /// When [`Self::continue_reloads`] has something to do, if nothing else happens.
    pub(super) fn next_reload_step(&self) -> Option<Instant> {
        let expiry = self.reloads.confirm_until();
        let expiry = expiry.filter(|_| self.may_roll_back());
        let loading = self.reloads.loading_until();
        [expiry, loading].into_iter().flatten().min()
    }

    /// Whether a rollback may begin. A successor has the time that is left, and would apply again what
    /// was rolled back while it was asked whether it can take over.
    fn may_roll_back(&self) -> bool {
        self.handover.is_none() && !self.is_stopping()
    }

    /// Rolls back what was not confirmed in time, finishes a reload whose configuration is loaded, and
    /// begins the next.
    pub(super) fn continue_reloads(&mut self, now: Instant) {
        if self.reloads.trial.has_expired(now) && self.may_roll_back() {
            self.roll_back(&Request::EXPIRED);
        }
        if let Some((current, outcome)) = self.reloads.take_loaded(now) {
            self.finish_reload(&current.request, current.begun, outcome);
        }
        while !self.reloads.is_loading()
            && !self.is_settling()
            && let Some(request) = self.next_reload()
        {
            match request.wanted {
                _ if self.is_stopping() => self.refuse_reload(&request, STOPPING),
                Wanted::OnDisk { .. } => self.begin_reload(request),
                Wanted::Before => self.roll_back(&request),
            }
        }
    }

    /// The next request in order, unless it is one for a rollback, which can't begin now.
    fn next_reload(&mut self) -> Option<Request> {
        let may_roll_back = self.may_roll_back() || self.is_stopping();
        let queue = &mut self.reloads.queue;
        queue.next_if(|request| may_roll_back || request.wanted != Wanted::Before)
    }

    fn begin_reload(&mut self, request: Request) {
        let begun = Instant::now();
        if !request.dry_run {
            self.tell_manager(Manager::reloading);
        }
        let control = self.workers.control().clone();
        let in_force = InForce::new(&self.config, self.socket.as_deref());
        match Loading::start(&self.origin, &self.files.names, in_force, control, begun) {
            Ok(loading) => {
                self.reloads.current = Some(Current {
                    request,
                    begun,
                    loading,
                });
            }
            Err(error) => self.finish_reload(&request, begun, Err(no_thread(&error))),
        }
    }

    /// Answers the callers whose reload has not begun when the workers stop: their connections may
    /// not continue in a successor. A signal waits: a successor reads the configuration anyway, and
    /// if there is none the reload begins here.
    pub(super) fn refuse_waiting_reloads(&mut self) {
        for request in self.reloads.queue.take_called() {
            let reason = match request.wanted {
                Wanted::OnDisk { .. } => {
                    "an upgrade is under way, and the new program reads the configuration: \
                     reload again for its result"
                }
                Wanted::Before => "an upgrade is under way: try again when it is done",
            };
            self.refuse_reload(&request, reason);
        }
    }

    /// Whatever the configuration is, it is not read, or not applied.
    fn refuse_reload(&mut self, request: &Request, reason: &str) {
        log::warn!("no reload: {reason}");
        let refusal = protocol::reload_refused(reason.to_owned());
        self.reply_to(request, format_args!("refused: {reason}"), refusal);
    }

    /// Answers the caller, if there is one; the log has the outcome in its words.
    fn reply_to(&mut self, request: &Request, outcome: impl Display, reply: wire::Reply) {
        let Some(Asker { id, audit }) = &request.caller else {
            return;
        };
        if let Some(audit) = audit {
            audit.record(outcome);
        }
        if let Some(server) = &mut self.server {
            server.reply(*id, Reply::One(reply), Instant::now());
        }
    }

    /// Applies what a successor has read, before it answers clients.
    pub(super) fn reload_at_start(&mut self, read: Outcome) {
        let begun = Instant::now();
        self.tell_manager(Manager::reloading);
        self.finish_reload(&Request::START, begun, read);
    }

    /// Applies what was loaded, and reports what came of it.
    fn finish_reload(&mut self, request: &Request, begun: Instant, outcome: Outcome) {
        if self.is_stopping() {
            self.refuse_reload(request, STOPPING);
            if !request.dry_run {
                self.supervise(|supervision, summary| supervision.ready(summary, Instant::now()));
            }
            return;
        }
        let mut result = self.result_of(request);
        let applied = outcome.and_then(|(texts, mut loaded, roles)| {
            result.warnings = std::mem::take(&mut loaded.warnings);
            let config = std::mem::take(&mut loaded.config);
            let version = Version::read(&texts, config, roles);
            let applied = self.apply(version, request, &mut result);
            applied.map_err(|errors| Rejection {
                errors: check::located(errors, &loaded, &self.origin, &texts),
                fingerprint: Some(texts.fingerprint()),
            })
        });
        self.report(request, begun, result, applied);
    }

    /// Puts the previous configuration in force, and reports what came of it.
    fn roll_back(&mut self, request: &Request) {
        let begun = Instant::now();
        let Some(before) = self.reloads.trial.before().cloned() else {
            let reason = "there is no previous configuration";
            log::warn!("no rollback: {reason}");
            let refusal = protocol::nothing_to_roll_back();
            return self.reply_to(request, format_args!("refused: {reason}"), refusal);
        };
        if let Some(id) = self.expired(request) {
            log::warn!(reload_id = id; "reload {id} was not confirmed in time: rolling back");
        }
        if !request.dry_run {
            self.tell_manager(Manager::reloading);
        }
        let mut result = self.result_of(request);
        let applied = self.apply(before, request, &mut result);
        self.report(request, begun, result, applied.map_err(Rejection::from));
    }

    /// The reload that was not confirmed in time, if that is why there is a rollback. It is tried once.
    fn expired(&mut self, request: &Request) -> Option<u64> {
        let has_expired = request.trigger == Trigger::ConfirmExpired;
        has_expired.then(|| self.reloads.trial.confirm()).flatten()
    }

    /// Keeps the configuration that would be rolled back otherwise.
    pub(super) fn confirm(&mut self, audit: Option<&Audit>, now: Instant) -> wire::Reply {
        let record = |outcome: &dyn Display| {
            if let Some(audit) = audit {
                audit.record(outcome);
            }
        };
        let Some(id) = self.reloads.trial.confirm() else {
            record(&"refused: no reload waits to be confirmed");
            return protocol::nothing_to_confirm();
        };
        record(&format_args!("reload {id}"));
        self.supervise(|supervision, summary| supervision.status(summary, now));
        protocol::reply(&protocol::schema::ConfirmReply { id })
    }

    /// The result of a reload of which nothing is known yet.
    fn result_of(&self, request: &Request) -> ReloadResult {
        ReloadResult {
            id: self.history.last.id + u64::from(!request.dry_run),
            generation: self.history.generation,
            trigger: request.trigger,
            outcome: ReloadOutcome::Rejected,
            at: timestamp(),
            duration_us: 0,
            errors: Vec::new(),
            warnings: Vec::new(),
            changes: Vec::new(),
            kept: 0,
            changes_omitted: 0,
            summary: String::new(),
            rollback: request.wanted == Wanted::Before,
            confirm_within_ms: None,
            confirmed: None,
        }
    }

    /// Reports to everyone what came of a reload.
    fn report(
        &mut self,
        request: &Request,
        begun: Instant,
        mut result: ReloadResult,
        applied: Result<ReloadOutcome, Rejection>,
    ) {
        let before = result.generation;
        let mut rejected = None;
        match applied {
            Ok(outcome) => result.outcome = outcome,
            Err(rejection) => {
                (result.errors, rejected) = (rejection.errors, rejection.fingerprint);
                // Nothing became of any.
                result.summary.clear();
            }
        }
        // Whatever became of the configuration: without it echoctl could not say.
        if let Some(server) = &mut self.server {
            let restored = server.restore_file(request.dry_run);
            result
                .warnings
                .extend(Diagnostic::list(restored, "warning"));
        }
        // It may be the next one now.
        result.generation = self.history.generation;
        result.duration_us = begun.elapsed().as_micros() as u64;
        if !request.dry_run {
            self.files.rejected = rejected;
            log_result(&result);
            self.history.last = result.clone().abridged();
            self.supervise(|supervision, summary| supervision.ready(summary, Instant::now()));
        }
        let words = outcome_words(&result, before);
        self.reply_to(request, words, protocol::reloaded(result));
    }

    /// Plans and prepares, and commits unless it is a dry run.
    fn apply(
        &mut self,
        mut version: Version,
        request: &Request,
        result: &mut ReloadResult,
    ) -> Result<ReloadOutcome, Vec<Diagnostic>> {
        // A successor continues with what was overridden at run time; a reload ends that.
        if request.trigger == Trigger::Start {
            self.keep_overrides(&mut version);
        }
        let config = &version.config;
        let mood = Mood::of_dry_run(request.dry_run);
        let in_force = self.listeners.complete(&self.config);
        let plan = plan(&in_force, config, &self.listeners.connections(), mood);
        let is_empty = plan.is_empty();
        result.warnings.extend(restart_warnings(&plan));
        result.changes.clone_from(&plan.changes);
        result.summary = plan.summary(mood);

        self.refuse_shared_files(config)?;
        let passed = passed::Sockets::sort(self.duplicate_passed()?, config);
        let workers = self.workers.count();
        let errors = |failures: Vec<String>| -> Vec<_> {
            failures.into_iter().map(Diagnostic::general).collect()
        };
        let mut prepared = self
            .listeners
            .prepare(config, &plan.changes, workers, passed, mood)
            .map_err(errors)?;
        let mut warnings = std::mem::take(&mut prepared.warnings);
        let left_over = std::mem::take(&mut prepared.left_over);
        // Dropped, what is prepared leaves nothing behind.
        if !request.dry_run {
            let now = Instant::now();
            let before = (!is_empty).then(|| self.version_in_force(in_force));
            let committed =
                self.listeners
                    .commit(prepared, config, &plan.changes, &self.workers, now);
            warnings.extend(committed.map_err(errors)?);
            self.passed = left_over;
            self.put_in_force(version);
            self.history.generation += u64::from(!is_empty);
            self.note_applied(request, before, result, now);
        }
        result
            .warnings
            .extend(Diagnostic::list(warnings, "warning"));
        Ok(match request.wanted {
            Wanted::Before => ReloadOutcome::RolledBack,
            Wanted::OnDisk { .. } if is_empty => ReloadOutcome::Unchanged,
            Wanted::OnDisk { .. } => ReloadOutcome::Applied,
        })
    }

    /// Notes what can be rolled back from now on, and what has to be confirmed.
    fn note_applied(
        &mut self,
        request: &Request,
        before: Option<Version>,
        result: &mut ReloadResult,
        now: Instant,
    ) {
        let trial = &mut self.reloads.trial;
        match request.wanted {
            Wanted::Before => trial.handle_rollback(),
            Wanted::OnDisk { .. } if request.trigger == Trigger::Start => {
                trial.handle_start(before);
            }
            Wanted::OnDisk { confirm_within } => {
                result.confirmed = trial.handle_reload(result.id, before, confirm_within, now);
                // What has changed nothing has nothing to be confirmed.
                let within = confirm_within.filter(|_| trial.unconfirmed().is_some());
                result.confirm_within_ms = within.map(|within| within.as_millis() as u64);
            }
        }
    }

    fn refuse_shared_files(&self, config: &Config) -> Result<(), Vec<Diagnostic>> {
        let control = self.server.as_ref().map(Server::path);
        let shared = check::shared_files(config, control);
        match shared.is_empty() {
            true => Ok(()),
            false => Err(shared),
        }
    }

    /// What the service manager has passed and no listener has taken yet. A reload that is rejected, or
    /// a dry run, drops only duplicates: nothing else can be bound to these addresses.
    fn duplicate_passed(&self) -> Result<Vec<Passed>, Vec<Diagnostic>> {
        let duplicates: io::Result<_> = self.passed.iter().map(Passed::try_clone).collect();
        duplicates.map_err(|error| {
            let message = format!("sockets of the service manager: {}", cause(&error));
            vec![Diagnostic::general(message)]
        })
    }
}

fn restart_warnings(plan: &Plan) -> impl Iterator<Item = Diagnostic> {
    plan.restart.iter().map(|key| {
        let (table, name) = (key.section.name(), key.name);
        Diagnostic::general(format!(
            "[{table}] {name}: takes effect when the daemon is next started"
        ))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;
    use crate::driver::Waker;

    /// No reload was possible any more until the file system answered, and its caller waited.
    #[test]
    fn a_reload_that_hangs_is_rejected_after_30_seconds_and_the_next_one_works() {
        let now = Instant::now();
        let (answers, file_system) = channel::<Outcome>();
        let hung = move || file_system.recv().expect("the test ends it");
        let mut reloads = Reloads::none();
        let begin = |reloads: &mut Reloads, loading| {
            reloads.current = Some(Current {
                request: Request::SIGNAL,
                begun: now,
                loading,
            });
        };
        let control = Waker::new().unwrap();
        begin(
            &mut reloads,
            Loading::run(hung, control.clone(), now).unwrap(),
        );
        let late = now + Duration::from_secs(30);
        assert!(
            reloads
                .take_loaded(late - Duration::from_millis(1))
                .is_none()
        );
        assert_eq!(reloads.loading_until(), Some(late));
        let (_, outcome) = reloads.take_loaded(late).expect("it is given up");
        let errors = outcome.expect_err("nothing was read").errors;
        let message = &errors[0].message;
        assert!(message.contains("not read within 30s"), "{message}");
        assert!(!reloads.is_loading() && reloads.loading_until().is_none());

        let (done, is_done) = channel();
        let next = move || {
            done.send(()).expect("the test waits");
            Err(vec![Diagnostic::general("as a test")].into())
        };
        begin(&mut reloads, Loading::run(next, control, late).unwrap());
        is_done.recv().expect("it has a thread of its own");
        let outcome = std::iter::repeat_with(|| reloads.take_loaded(late)).find_map(|taken| taken);
        let errors = outcome.expect("it has ended").1.unwrap_err().errors;
        assert_eq!(errors[0].message, "as a test");
        // The first one finds that nothing waits for it.
        answers
            .send(Err(Vec::new().into()))
            .expect("it still hangs");
    }
}
