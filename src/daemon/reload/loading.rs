//! A configuration that is read and checked in a thread of its own.
//!
//! A file system may be slow and a file may be long: the control thread answers its clients and
//! the watchdog all the same. The thread knows no more than where the configuration comes from. One
//! that hangs, as on a file system whose server is gone, is left alone after a time: nothing can end it,
//! and the next reload has a thread of its own.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::cli::text::cause;
use crate::config::{self, Loaded};
use crate::daemon::check::{self, InForce};
use crate::daemon::origin::{self, Origin, Texts};
use crate::daemon::roles::Roles;
use crate::driver::Waker;
use crate::protocol::schema::Diagnostic;
use crate::sys::process;

/// The texts, what they mean, and the roles of callers with it; or all that is wrong.
pub(in crate::daemon) type Outcome = Result<(Texts, Loaded, Roles), Rejection>;

/// A configuration that can't be applied.
#[derive(Clone, Debug)]
pub(in crate::daemon) struct Rejection {
    /// All that is wrong with it.
    pub errors: Vec<Diagnostic>,
    /// Of what was read ([`origin::fingerprint`]); none where nothing was.
    pub fingerprint: Option<u64>,
}

impl From<Vec<Diagnostic>> for Rejection {
    fn from(errors: Vec<Diagnostic>) -> Self {
        Self {
            errors,
            fingerprint: None,
        }
    }
}

/// Its recursion is as deep as TOML may be nested, tables in lists in tables, which takes more than
/// the 2 MiB that threads have. Only what is used counts as memory.
const STACK_BYTES: usize = 16 * 1024 * 1024;

/// How long it may take to read the configuration. To check it takes a second at most.
const LOADING_TIME_MAX: Duration = Duration::from_secs(30);

/// Reads and checks the texts of the configuration; `in_force` has the names of those of the present
/// one.
///
/// # Errors
/// All that is wrong with them.
pub(in crate::daemon) fn load_texts(
    origin: &Origin,
    in_force: &[String],
) -> Result<(Texts, Loaded), Rejection> {
    let read = origin.read(in_force);
    let fingerprint = Some(origin::fingerprint(&read));
    let rejection = |errors| Rejection {
        errors,
        fingerprint,
    };
    let texts = read.map_err(rejection)?;
    let loaded = config::load(&texts.sources).map_err(rejection)?;
    Ok((texts, loaded))
}

/// The same with the users and groups that it names.
fn load(origin: &Origin, in_force: &[String]) -> Outcome {
    let (texts, loaded) = load_texts(origin, in_force)?;
    let (roles, unknown) = Roles::resolve(&loaded.config.control);
    if unknown.is_empty() {
        return Ok((texts, loaded, roles));
    }
    Err(Rejection {
        errors: check::located(unknown, &loaded, origin, &texts),
        fingerprint: Some(texts.fingerprint()),
    })
}

/// The same in a bounded time, for a start that others wait for.
///
/// # Errors
/// All that is wrong with it, or that it can't be read.
pub(in crate::daemon) fn load_in_time(origin: &Origin, in_force: &[String]) -> Outcome {
    let (origin, in_force) = (origin.clone(), in_force.to_vec());
    let load = move || load(&origin, &in_force);
    // Nothing else is in progress, so that nothing has to be woken.
    let loading = Waker::new().and_then(|waker| Loading::run(load, waker, Instant::now()));
    loading.map_err(|error| no_thread(&error))?.wait()
}

/// That a configuration is not read at all.
pub(super) fn no_thread(error: &io::Error) -> Rejection {
    let message = format!("no thread to read the configuration: {}", cause(error));
    vec![Diagnostic::general(message)].into()
}

/// See the module.
#[derive(Debug)]
pub(super) struct Loading {
    outcome: Receiver<Outcome>,
    until: Instant,
}

/// Wakes the control thread when the loading thread ends, in whatever way.
struct WakeAtEnd(Waker);

impl Drop for WakeAtEnd {
    fn drop(&mut self) {
        self.0.wake();
    }
}

impl Loading {
    /// Begins; `files` has the names of the texts in force. What is loaded is compared with what is
    /// in force, for warnings of the next start. `control` is woken at the end.
    pub(super) fn start(
        origin: &Origin,
        files: &[String],
        in_force: InForce,
        control: Waker,
        now: Instant,
    ) -> io::Result<Self> {
        let (origin, files) = (origin.clone(), files.to_vec());
        let load = move || {
            let (texts, mut loaded, roles) = load(&origin, &files)?;
            // Looking up a group may take long as well.
            let warnings = in_force.warnings(&loaded.config);
            let warnings = check::located(warnings, &loaded, &origin, &texts);
            loaded.warnings.extend(warnings);
            Ok((texts, loaded, roles))
        };
        Self::run(load, control, now)
    }

    pub(super) fn run(
        load: impl FnOnce() -> Outcome + Send + 'static,
        control: Waker,
        now: Instant,
    ) -> io::Result<Self> {
        let (sender, outcome) = channel();
        std::thread::Builder::new()
            .name("reload".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                // Dropped after the sender, so that the outcome is there when the control thread wakes.
                let _wake = WakeAtEnd(control);
                let sender = sender;
                let outcome = load();
                // A wrong file of 1 MiB takes a hundred times that while it is judged.
                process::return_free_memory();
                // The receiver is gone if this took too long.
                let _ = sender.send(outcome);
            })?;
        Ok(Self {
            outcome,
            until: now + LOADING_TIME_MAX,
        })
    }

    /// When [`Self::poll`] has an outcome at the latest.
    pub(super) fn poll_timeout(&self) -> Instant {
        self.until
    }

    /// What came of it, once it is known, or has taken too long.
    pub(super) fn poll(&self, now: Instant) -> Option<Outcome> {
        let is_late = now >= self.until;
        self.receive(Duration::ZERO)
            .or_else(|| is_late.then(|| Err(too_late())))
    }

    /// The same, with nothing else to do until then.
    fn wait(&self) -> Outcome {
        let left = self.until.saturating_duration_since(Instant::now());
        self.receive(left).unwrap_or_else(|| Err(too_late()))
    }

    /// What came of it within this time.
    fn receive(&self, time: Duration) -> Option<Outcome> {
        match self.outcome.recv_timeout(time) {
            Ok(outcome) => Some(outcome),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Err(defect())),
        }
    }
}

fn too_late() -> Rejection {
    let message = format!(
        "the configuration was not read within {}: its file system does not answer: reload again \
         when it does",
        humantime::format_duration(LOADING_TIME_MAX)
    );
    vec![Diagnostic::general(message)].into()
}

fn defect() -> Rejection {
    let message =
        "the check of the configuration did not come to its end, which is a defect of echod";
    vec![Diagnostic::general(message)].into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Source};

    fn load_beside(text: String) -> Vec<Diagnostic> {
        let source = Source {
            name: "a.toml".into(),
            text,
        };
        let origin = Origin::Arguments(vec![source]);
        let control = Waker::new().unwrap();
        let in_force = InForce::new(&Config::embedded(), None);
        let loading = Loading::start(&origin, &[], in_force, control, Instant::now()).unwrap();
        loading.outcome.recv().unwrap().unwrap_err().errors
    }

    #[test]
    fn nested_as_deep_as_toml_may_be_it_has_stack_enough() {
        // Each limit is 80 for itself: of tables in tables, and of names in a key.
        let open = format!("{{{}a = ", "a.".repeat(78));
        let nested = format!("x = {}1{}", open.repeat(78), "}".repeat(78));
        let errors = load_beside(nested);
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(
            errors[0].message.starts_with("x: unknown table"),
            "{errors:?}"
        );
    }

    /// A start after an upgrade waited for a file system that was gone, and with it every connection.
    #[test]
    fn a_successor_does_not_wait_for_a_file_system_for_longer_than_a_reload() {
        let (answers, file_system) = channel::<Outcome>();
        let hung = move || file_system.recv().expect("the test ends it");
        let begun = Instant::now().checked_sub(LOADING_TIME_MAX).unwrap();
        let loading = Loading::run(hung, Waker::new().unwrap(), begun).unwrap();
        let errors = loading.wait().unwrap_err().errors;
        let message = &errors[0].message;
        assert!(message.contains("not read within 30s"), "{message}");
        answers
            .send(Err(Vec::new().into()))
            .expect("it still hangs");
    }
}
