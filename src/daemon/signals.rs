//! Signals as something to wait for: a descriptor that is readable when one has come.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
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
}

impl Signals {
    /// From now on signals wait here instead of ending the process.
    pub(super) fn new() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        Ok(Self(SignalDelivery::with_pipe(
            read,
            write,
            SignalOnly,
            [SIGHUP, SIGINT, SIGTERM],
        )?))
    }

    /// Those that have come. Several of one kind may have become one.
    pub(super) fn take(&mut self) -> Vec<Signal> {
        let of = |signal| {
            if signal == SIGHUP {
                Signal::Reload
            } else {
                Signal::Stop
            }
        };
        self.0.pending().map(of).collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_read().as_fd()
    }
}
