//! What ends a command early: ^C, SIGTERM and `--deadline`. A second signal ends the process at once.
//!
//! Knows a flag and a time; never what they end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// The longest wait between two looks at the flag. A signal ends the `ppoll(2)` of the main thread,
/// unless it is delivered to another thread, or between the look and the wait.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Whether the command is to end.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt {
    asked: Arc<AtomicBool>,
    deadline: Option<Instant>,
}

impl Interrupt {
    /// From now on SIGINT and SIGTERM ask for the end, and the deadline does.
    ///
    /// # Errors
    /// As `sigaction(2)`.
    pub(crate) fn new(deadline: Option<Duration>) -> io::Result<Self> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal finds the flag down and raises it.
            flag::register_conditional_default(signal, Arc::clone(&asked))?;
            flag::register(signal, Arc::clone(&asked))?;
        }
        Ok(Self {
            asked,
            deadline: deadline.map(|deadline| Instant::now() + deadline),
        })
    }

    /// Whether the end is asked for, by a signal or the deadline.
    pub(crate) fn is_requested(&self) -> bool {
        let is_over = |deadline| Instant::now() >= deadline;
        self.asked.load(Ordering::Relaxed) || self.deadline.is_some_and(is_over)
    }

    /// The longest that a wait which begins now may last.
    pub(crate) fn longest_wait(&self, now: Instant) -> Duration {
        let left = |deadline: Instant| deadline.saturating_duration_since(now);
        self.deadline
            .map_or(LOOK_INTERVAL, |at| left(at).min(LOOK_INTERVAL))
    }
}
