//! ^C: asks for the end, and a second one for the end at once.
//!
//! A signal also ends the `poll(2)` that the main thread is in, so that the question is looked at.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// The longest that whoever may be interrupted waits at a time: the signal may come to another
/// thread, or between the look and the wait.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Whether the user, or whoever started us, has asked for the end.
#[derive(Clone, Debug)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// From now on SIGINT and SIGTERM ask for the end; once that is asked, another one is the end.
    ///
    /// # Errors
    /// As `sigaction(2)`.
    pub fn new() -> io::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal finds the flag down and raises it.
            flag::register_conditional_default(signal, Arc::clone(&asked))?;
            flag::register(signal, Arc::clone(&asked))?;
        }
        Ok(Self(asked))
    }

    /// Whether the end is asked for.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
