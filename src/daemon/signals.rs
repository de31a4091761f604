//! Signals as something to wait for: a descriptor that is readable when one has come.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use nix::sys::signal::{SigSet, SigmaskHow, Signal as Number, pthread_sigmask};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

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
}

/// From now on signals that we know wait until [`unblock_all`], also over an exec. Threads that are
/// begun meanwhile never get one.
pub(super) fn block_all() -> io::Result<()> {
    let ours = [
        Number::SIGHUP,
        Number::SIGINT,
        Number::SIGTERM,
        Number::SIGUSR2,
    ];
    let set: SigSet = ours.into_iter().collect();
    Ok(pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), None)?)
}

/// Lets them come to this thread.
pub(super) fn unblock_all() {
    // It fails only for a mistake in its arguments.
    let _ = pthread_sigmask(SigmaskHow::SIG_UNBLOCK, Some(&SigSet::all()), None);
}

impl Signals {
    /// From now on signals wait here instead of ending the process.
    pub(super) fn new() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        Ok(Self(SignalDelivery::with_pipe(
            read,
            write,
            SignalOnly,
            [SIGHUP, SIGINT, SIGTERM, SIGUSR2],
        )?))
    }

    /// Those that have come. Several of one kind may have become one.
    pub(super) fn take(&mut self) -> Vec<Signal> {
        let of = |signal| match signal {
            SIGHUP => Signal::Reload,
            SIGUSR2 => Signal::Upgrade,
            _ => Signal::Stop,
        };
        self.0.pending().map(of).collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_read().as_fd()
    }
}
