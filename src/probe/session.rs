//! What every command works with: the way to the service, where results go, what ends it early.
//!
//! Decides nothing.

use std::io;
use std::time::{Duration, Instant};

use nix::poll::PollFd;

use super::cause::Trouble;
use super::console::{Console, Stop};
use super::interrupt::Interrupt;
use super::link::{self, Stream};
use super::route::Route;

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) route: Route,
    pub(super) console: Console,
    pub(super) interrupt: Interrupt,
}

impl Session {
    /// Whether the user or the deadline has ended the command.
    pub(super) fn is_interrupted(&self) -> bool {
        self.interrupt.is_requested()
    }

    /// Ends a command whose output is not read any more: there is no reader of its result.
    pub(super) fn check_output(&self) -> Result<(), Stop> {
        match self.interrupt.is_unread() {
            true => Err(Stop::Unread),
            false => Ok(()),
        }
    }

    /// Waits until one of these descriptors is ready, until this time, or until the command is to
    /// end.
    pub(super) fn wait(&self, polled: &mut [PollFd<'_>], until: Instant) -> io::Result<()> {
        link::wait(polled, until, &self.interrupt)
    }

    /// Connects a stream to the service.
    pub(super) fn connect(&self, timeout: Duration) -> Result<Stream, Trouble> {
        self.route.connect(timeout, &self.interrupt)
    }
}
