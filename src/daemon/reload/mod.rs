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

mod history;
mod loading;
mod queue;

use std::io;
use std::time::Instant;

use crate::cli::text::cause;
use crate::config::{Config, Loaded, Mood, Plan, plan};
use crate::protocol;
use crate::protocol::schema::{Diagnostic, ReloadOutcome, ReloadResult, Trigger};
use crate::sys::process::Passed;

use super::Daemon;
use super::check::{self, InForce};
use super::control::{Audit, ClientId, Reply, Server};
use super::listeners::passed;
use super::origin::Texts;
use super::roles::Roles;
use super::systemd::notify::Manager;
use history::{log_result, outcome_words, timestamp};
use loading::{Loading, Rejection, no_thread};
use queue::Queue;

pub(super) use history::{History, START_ID};
pub(super) use loading::{Outcome, load_in_time, load_texts};

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

/// The reload under way, and requests for others.
#[derive(Debug)]
pub(super) struct Reloads {
    current: Option<Current>,
    queue: Queue<Asker>,
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
        }
    }

    /// Whether a reload is under way. One that waits for its turn is not.
    pub(super) fn is_loading(&self) -> bool {
        self.current.is_some()
    }

    /// When [`Daemon::continue_reloads`] has something to do, if nothing else happens.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
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

    /// Finishes a reload whose configuration is loaded, and begins the next.
    pub(super) fn continue_reloads(&mut self, now: Instant) {
        if let Some((current, outcome)) = self.reloads.take_loaded(now) {
            self.finish_reload(current.request, current.begun, outcome);
        }
        // A successor reads the configuration anyway; to begin here would delay it.
        while !self.reloads.is_loading()
            && !self.is_settling()
            && let Some(request) = self.reloads.queue.next()
        {
            if self.is_stopping() {
                self.refuse_reload(&request, STOPPING);
            } else {
                self.begin_reload(request);
            }
        }
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
            Err(error) => self.finish_reload(request, begun, Err(no_thread(&error))),
        }
    }

    /// Answers the callers whose reload has not begun when the workers stop: their connections may
    /// not continue in a successor. A signal waits: a successor reads the configuration anyway, and
    /// if there is none the reload begins here.
    pub(super) fn refuse_waiting_reloads(&mut self) {
        for request in self.reloads.queue.take_called() {
            let reason = "an upgrade is under way, and the new program reads the configuration: \
                          reload again for its result";
            self.refuse_reload(&request, reason);
        }
    }

    /// Whatever the configuration is, it is not read, or not applied.
    fn refuse_reload(&mut self, request: &Request, reason: &str) {
        log::warn!("no reload: {reason}");
        let Some(Asker { id, audit }) = &request.caller else {
            return;
        };
        if let Some(audit) = audit {
            audit.record(format_args!("refused: {reason}"));
        }
        if let Some(server) = &mut self.server {
            let refusal = protocol::reload_refused(reason.to_owned());
            server.reply(*id, Reply::One(refusal), Instant::now());
        }
    }

    /// Applies what a successor has read, before it answers clients.
    pub(super) fn reload_at_start(&mut self, read: Outcome) {
        let begun = Instant::now();
        self.tell_manager(Manager::reloading);
        let request = Request {
            trigger: Trigger::Start,
            dry_run: false,
            caller: None,
        };
        self.finish_reload(request, begun, read);
    }

    /// Applies what was loaded, and reports what came of it.
    fn finish_reload(&mut self, request: Request, begun: Instant, outcome: Outcome) {
        if self.is_stopping() {
            self.refuse_reload(&request, STOPPING);
            if !request.dry_run {
                self.supervise(|supervision, summary| supervision.ready(summary, Instant::now()));
            }
            return;
        }
        let Request {
            trigger,
            dry_run,
            caller,
        } = request;
        let before = self.history.generation;
        let mut result = ReloadResult {
            id: self.history.last.id + u64::from(!dry_run),
            generation: before,
            trigger,
            outcome: ReloadOutcome::Rejected,
            at: timestamp(),
            duration_us: 0,
            errors: Vec::new(),
            warnings: Vec::new(),
            changes: Vec::new(),
            kept: 0,
            changes_omitted: 0,
        };
        let applied = outcome.and_then(|(texts, mut loaded, roles)| {
            let applied = self.apply(&texts, &mut loaded, roles, dry_run, &mut result);
            applied.map_err(|errors| Rejection {
                errors: check::located(errors, &loaded, &self.origin, &texts),
                fingerprint: Some(texts.fingerprint()),
            })
        });
        let mut rejected = None;
        match applied {
            Ok(outcome) => result.outcome = outcome,
            Err(rejection) => (result.errors, rejected) = (rejection.errors, rejection.fingerprint),
        }
        // Whatever became of the configuration: without it echoctl could not say.
        if let Some(server) = &mut self.server {
            let restored = server.restore_file(dry_run);
            result
                .warnings
                .extend(Diagnostic::list(restored, "warning"));
        }
        // It may be the next one now.
        result.generation = self.history.generation;
        result.duration_us = begun.elapsed().as_micros() as u64;
        if !dry_run {
            self.files.rejected = rejected;
            log_result(&result);
            self.history.last = result.clone().abridged();
            self.supervise(|supervision, summary| supervision.ready(summary, Instant::now()));
        }
        if let Some(caller) = caller {
            self.answer_reload(caller, result, before);
        }
    }

    /// Answers the caller of a reload that has begun, from the generation `before`.
    fn answer_reload(&mut self, caller: Asker, result: ReloadResult, before: u64) {
        if let Some(audit) = caller.audit {
            audit.record(outcome_words(&result, before));
        }
        if let Some(server) = &mut self.server {
            let reply = Reply::One(protocol::reloaded(result));
            server.reply(caller.id, reply, Instant::now());
        }
    }

    /// Plans and prepares, and commits unless it is a dry run.
    fn apply(
        &mut self,
        texts: &Texts,
        loaded: &mut Loaded,
        roles: Roles,
        dry_run: bool,
        result: &mut ReloadResult,
    ) -> Result<ReloadOutcome, Vec<Diagnostic>> {
        let mut config = std::mem::take(&mut loaded.config);
        // A successor continues with what was overridden at run time; a reload ends that.
        let succeeds = result.trigger == Trigger::Start;
        let overridden = succeeds.then(|| self.keep_overrides(&mut config));
        let mood = Mood::of_dry_run(dry_run);
        let in_force = self.listeners.complete(&self.config);
        let plan = plan(&in_force, &config, &self.listeners.connections(), mood);
        let is_empty = plan.is_empty();
        result.warnings = std::mem::take(&mut loaded.warnings);
        result.warnings.extend(restart_warnings(&plan));
        result.changes.clone_from(&plan.changes);

        self.refuse_shared_files(&config)?;
        let passed = passed::Sockets::sort(self.duplicate_passed()?, &config);
        let workers = self.workers.count();
        let errors = |failures: Vec<String>| -> Vec<_> {
            failures.into_iter().map(Diagnostic::general).collect()
        };
        let mut prepared = self
            .listeners
            .prepare(&config, &plan.changes, workers, passed, mood)
            .map_err(errors)?;
        let mut warnings = std::mem::take(&mut prepared.warnings);
        let left_over = std::mem::take(&mut prepared.left_over);
        // Dropped, what is prepared leaves nothing behind.
        if !dry_run {
            let now = Instant::now();
            let committed =
                self.listeners
                    .commit(prepared, &config, &plan.changes, &self.workers, now);
            warnings.extend(committed.map_err(errors)?);
            self.passed = left_over;
            if let Some(overridden) = overridden {
                self.listeners.mark_overridden(overridden);
            }
            self.log_level_overridden &= succeeds;
            self.roles = roles;
            self.put_in_force(config, texts);
            self.history.generation += u64::from(!is_empty);
        }
        result
            .warnings
            .extend(Diagnostic::list(warnings, "warning"));
        Ok(if is_empty {
            ReloadOutcome::Unchanged
        } else {
            ReloadOutcome::Applied
        })
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

    /// Writes what was overridden at run time into a configuration; returns which keys of listeners
    /// that are.
    fn keep_overrides(&self, config: &mut Config) -> Vec<(String, Vec<&'static str>)> {
        if self.log_level_overridden {
            config.log.level = self.config.log.level;
        }
        self.listeners.keep_overrides(config)
    }

    /// All but the listeners, which are committed already.
    fn put_in_force(&mut self, mut config: Config, texts: &Texts) {
        config.listeners.clear();
        self.update_store();
        self.files.put_in_force(texts);
        super::log::set_level(config.log.level);
        let running = std::mem::replace(&mut self.config, config);
        self.config.keep_restart_keys_of(&running);
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
        assert_eq!(reloads.poll_timeout(), Some(late));
        let (_, outcome) = reloads.take_loaded(late).expect("it is given up");
        let errors = outcome.expect_err("nothing was read").errors;
        let message = &errors[0].message;
        assert!(message.contains("not read within 30s"), "{message}");
        assert!(!reloads.is_loading() && reloads.poll_timeout().is_none());

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
