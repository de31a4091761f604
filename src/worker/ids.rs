//! The numbers of listeners, sockets and peers.
//!
//! The control plane numbers listeners and sockets. Each worker numbers its own peers, in such a way
//! that no two workers give the same number.

/// A listener, in all workers and over all reloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId(pub u32);

/// One of a listener's sockets, in all workers that serve it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketId(pub u32);

/// The numbers that one worker gives to its peers: unique in the process, and small enough to be
/// typed.
#[derive(Debug)]
pub(super) struct PeerIds {
    next: u64,
    step: u64,
}

impl PeerIds {
    /// Worker 1 of 4 gives the numbers 2, 6, 10 and so on.
    pub(super) fn new(worker: usize, workers: usize) -> Self {
        Self {
            next: worker as u64 + 1,
            step: workers as u64,
        }
    }

    pub(super) fn take(&mut self) -> u64 {
        let id = self.next;
        self.next += self.step;
        id
    }

    /// Continues after `last`, the largest number that any worker of an earlier process gave.
    pub(super) fn continue_after(&mut self, last: u64, worker: usize) {
        self.next = last + worker as u64 + 1;
    }

    /// No smaller than any number that this worker gave.
    pub(super) fn last(&self) -> u64 {
        self.next
    }
}
