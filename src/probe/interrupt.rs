//! What ends a command early: ^C, SIGTERM, `--deadline`, and a standard output that is closed. A
//! second signal ends the process at once.
//!
//! Knows flags and a time; never what they end.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use super::cause::Cause;

/// The longest wait between two looks at the flag. A signal ends the `ppoll(2)` of the main thread,
/// unless it is delivered to another thread, or between the look and the wait.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Whether the command is to end.
#[derive(Clone, Debug)]
pub(crate) struct Interrupt {
    asked: Arc<AtomicBool>,
    unread: Arc<AtomicBool>,
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
            unread: Arc::default(),
            deadline: deadline.map(|deadline| Instant::now() + deadline),
        })
    }

    /// Whether the end is asked for, by a signal, the deadline or the reader of the output.
    pub(crate) fn is_requested(&self) -> bool {
        self.asked.load(Ordering::Relaxed) || self.is_unread() || self.has_expired()
    }

    /// Which of these it was.
    pub(crate) fn cause(&self) -> Cause {
        match self.has_expired() && !self.asked.load(Ordering::Relaxed) {
            true => Cause::Deadline,
            false => Cause::Interrupted,
        }
    }

    /// Whether the deadline has passed.
    fn has_expired(&self) -> bool {
        let has_passed = |deadline| Instant::now() >= deadline;
        self.deadline.is_some_and(has_passed)
    }

    /// Whether the reader of standard output has closed it.
    pub(crate) fn is_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }

    /// Looks whether it has. Whatever waits does so: a command that prints nothing finds out by no
    /// error.
    pub(crate) fn look_at_output(&self) {
        let output = io::stdout();
        // No event is asked for: an error and a hang-up are always reported (poll(2)).
        let mut polled = [PollFd::new(output.as_fd(), PollFlags::empty())];
        if poll(&mut polled, PollTimeout::ZERO) == Ok(1) {
            self.unread.store(true, Ordering::Relaxed);
        }
    }

    /// The longest that a wait which begins now may last.
    pub(crate) fn longest_wait(&self, now: Instant) -> Duration {
        let left = |deadline: Instant| deadline.saturating_duration_since(now);
        self.deadline
            .map_or(LOOK_INTERVAL, |at| left(at).min(LOOK_INTERVAL))
    }
}
