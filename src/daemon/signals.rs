//! Signals as events: a descriptor that is readable when one has arrived.
//!
//! All threads have the handled signals blocked, the main one except while it waits for events. So
//! no system call is interrupted, and a signal that arrives while an upgrade has the workers stopped
//! stays pending in the kernel, for the successor or for this program: `execve(2)` preserves both
//! the mask and what is pending.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::sys::signal::{SigSet, SigmaskHow, Signal as Number, pthread_sigmask};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use crate::sys::process;

/// The handled signals, and what each asks for.
const HANDLED: [(Number, Signal); 5] = [
    (Number::SIGHUP, Signal::Reload),
    (Number::SIGINT, Signal::Stop),
    (Number::SIGTERM, Signal::Stop),
    (Number::SIGUSR2, Signal::Upgrade),
    (Number::SIGCHLD, Signal::ChildEnded),
];

/// See the module.
#[derive(Debug)]
pub(super) struct Signals(SignalDelivery<UnixStream, SignalOnly>);

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// SIGHUP.
    Reload,
    /// SIGTERM or SIGINT.
    Stop,
    /// SIGUSR2.
    Upgrade,
    /// SIGCHLD.
    ChildEnded,
}

/// The mask that all threads have: the handled signals.
pub(super) fn blocked() -> SigSet {
    HANDLED.into_iter().map(|(number, _)| number).collect()
}

/// Makes this process independent of the signal dispositions and of the mask that it was started
/// with. To be called before the first thread is started.
pub(super) fn inherit_nothing() -> io::Result<()> {
    process::restore_default_actions();
    // In one step: a signal that a predecessor left pending would end a process that unblocks it
    // before it has a handler.
    set_mask(&blocked())
}

/// Starts a program, which inherits the mask: no signal is blocked in it.
pub(super) fn start_unblocked<T>(start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    set_mask(&SigSet::empty())?;
    let started = start();
    set_mask(&blocked())?;
    started
}

fn set_mask(mask: &SigSet) -> io::Result<()> {
    Ok(pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(mask), None)?)
}

impl Signals {
    /// Installs the handlers.
    pub(super) fn new() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        let numbers = HANDLED.map(|(number, _)| number as i32);
        let delivery = SignalDelivery::with_pipe(read, write, SignalOnly, numbers)?;
        Ok(Self(delivery))
    }

    /// The signals that have arrived. Several of one kind may have become one.
    pub(super) fn take(&mut self) -> Vec<Signal> {
        let asks = |number| {
            let row = HANDLED.iter().find(|(known, _)| *known as i32 == number)?;
            Some(row.1)
        };
        self.0.pending().filter_map(asks).collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_read().as_fd()
    }
}
