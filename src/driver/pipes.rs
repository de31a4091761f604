//! The pipes of one driver, through which `splice(2)` moves bytes from a socket to a socket.
//!
//! Made when first needed, leased only while bytes are in one, at most [`PIPE_COUNT_MAX`]. A pipe
//! costs two descriptors, which clients need more: none is made near the process's limit, and
//! [`Pipes::release`] closes the idle ones when an accept has found no descriptor.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::pipe2;

/// What one pipe holds at most, in bytes: the kernel's default (pipe(7)). Measured, larger ones cost
/// more, because what is in them has left the cache.
pub(super) const PIPE_BYTES: usize = 64 * 1024;

/// How many pipes a driver has at most.
pub(super) const PIPE_COUNT_MAX: usize = 64;

/// When no pipe could be made, this many leases are refused before it is tried again: trying costs
/// more than the copy that a pipe saves.
const REFUSALS: u32 = 1024;

/// Both ends of a pipe, nonblocking.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) output: OwnedFd,
    pub(super) input: OwnedFd,
}

/// All pipes of a driver. Last in, first out: its pages are those in the cache.
#[derive(Debug)]
pub(super) struct Pipes {
    idle: Vec<Pipe>,
    // Idle and leased ones.
    made: usize,
    // No pipe is made whose descriptors reach this number.
    descriptor_max: RawFd,
    refusals: u32,
}

impl Pipes {
    pub(super) fn new() -> Self {
        // It fails for want of a valid pointer only; then there would be no pipes.
        let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default();
        Self::below(RawFd::try_from(limit - limit / 8).unwrap_or(RawFd::MAX))
    }

    fn below(descriptor_max: RawFd) -> Self {
        Self {
            idle: Vec::new(),
            made: 0,
            descriptor_max,
            refusals: 0,
        }
    }

    /// An empty pipe, if there may be one more.
    pub(super) fn lease(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.idle.pop() {
            return Some(pipe);
        }
        if self.made == PIPE_COUNT_MAX {
            return None;
        }
        if self.refusals > 0 {
            self.refusals -= 1;
            return None;
        }
        let made = self.make();
        match made {
            Ok(_) => self.made += 1,
            Err(_) => self.refusals = REFUSALS,
        }
        made.ok()
    }

    fn make(&self) -> nix::Result<Pipe> {
        let (output, input) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // A new descriptor is the lowest that is free (open(2)), so its number tells how many there
        // are.
        if output.as_raw_fd().max(input.as_raw_fd()) >= self.descriptor_max {
            return Err(Errno::EMFILE);
        }
        Ok(Pipe { output, input })
    }

    /// Takes back a pipe that is empty again.
    pub(super) fn give_back(&mut self, pipe: Pipe) {
        self.idle.push(pipe);
    }

    /// Closes a pipe with what is in it.
    pub(super) fn discard(&mut self, pipe: Pipe) {
        drop(pipe);
        self.made -= 1;
    }

    /// Closes the idle ones, for a client that needs their descriptors; says whether there were any.
    pub(super) fn release(&mut self) -> bool {
        self.made -= self.idle.len();
        self.refusals = REFUSALS;
        let any = !self.idle.is_empty();
        self.idle.clear();
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipes_are_made_when_needed_and_used_again_last_in_first_out() {
        let mut pipes = Pipes::new();
        let one = pipes.lease().expect("descriptors are left");
        let two = pipes.lease().expect("descriptors are left");
        let number = two.output.as_raw_fd();
        pipes.give_back(one);
        pipes.give_back(two);
        let again = pipes.lease().expect("two are idle");
        assert_eq!((again.output.as_raw_fd(), pipes.made), (number, 2));
    }

    #[test]
    fn there_are_no_more_than_their_bound() {
        let mut pipes = Pipes::new();
        let mut leased: Vec<Pipe> = (0..PIPE_COUNT_MAX)
            .map(|_| pipes.lease().expect("descriptors are left"))
            .collect();
        assert!(pipes.lease().is_none());
        pipes.discard(leased.pop().expect("many are leased"));
        assert!(pipes.lease().is_some(), "one that was closed makes room");
    }

    #[test]
    fn the_last_descriptors_are_left_to_clients() {
        let mut pipes = Pipes::below(3);
        assert!(pipes.lease().is_none() && pipes.made == 0);
        pipes.descriptor_max = RawFd::MAX;
        for _ in 0..REFUSALS {
            assert!(pipes.lease().is_none(), "it is not tried again at once");
        }
        assert!(pipes.lease().is_some());
    }

    #[test]
    fn idle_pipes_are_closed_when_their_descriptors_are_needed() {
        let mut pipes = Pipes::new();
        assert!(!pipes.release());
        let mut pipes = Pipes::new();
        let pipe = pipes.lease().expect("descriptors are left");
        pipes.give_back(pipe);
        assert!(pipes.release());
        assert_eq!(pipes.made, 0);
        assert!(pipes.lease().is_none(), "and not made again at once");
    }
}
