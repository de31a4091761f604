//! How many connections a listener may have: a semaphore shared by the workers that accept for it.
//!
//! It is touched when a connection is opened and when it is closed, never on the path of a message.
//! It never blocks: a worker that finds no permit pauses its listener, and is woken when one is
//! returned.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use super::Waker;

/// The permits of one listener.
#[derive(Debug)]
pub struct Permits {
    taken: AtomicU32,
    max: AtomicU32,
    // A worker has paused because there was none. SeqCst throughout: either the taker sees what was
    // returned, or the returner sees that a worker waits.
    missed: AtomicBool,
    wakers: Vec<Waker>,
}

impl Permits {
    /// `max` permits; `wakers` are those of all workers that may pause for want of one.
    #[must_use]
    pub fn new(max: u32, wakers: Vec<Waker>) -> Self {
        Self {
            taken: AtomicU32::new(0),
            max: AtomicU32::new(max),
            missed: AtomicBool::new(false),
            wakers,
        }
    }

    /// Takes one, if there is one.
    pub fn try_take(&self) -> bool {
        let more = |taken| (taken < self.max.load(SeqCst)).then_some(taken + 1);
        self.taken.fetch_update(SeqCst, SeqCst, more).is_ok()
    }

    /// Takes one, or makes sure that the caller is woken when there may be one.
    pub fn take_or_be_woken(&self) -> bool {
        self.try_take() || {
            self.missed.store(true, SeqCst);
            self.try_take()
        }
    }

    /// Whether there is one; if not, the caller is woken when there may be.
    ///
    /// For a caller that learns late that its driver found none: it may have been woken before.
    pub fn is_free_or_be_woken(&self) -> bool {
        self.missed.store(true, SeqCst);
        self.taken.load(SeqCst) < self.max.load(SeqCst)
    }

    /// Takes one more than there are, if need be: for a client that was promised service.
    pub fn take_regardless(&self) {
        self.taken.fetch_add(1, SeqCst);
    }

    /// Gives one back.
    pub fn give_back(&self) {
        let before = self.taken.fetch_sub(1, SeqCst);
        debug_assert!(before > 0, "only what was taken is given back");
        self.wake_workers_that_missed();
    }

    /// Changes how many there are. Those taken stay taken.
    pub fn set_max(&self, max: u32) {
        self.max.store(max, SeqCst);
        self.wake_workers_that_missed();
    }

    fn wake_workers_that_missed(&self) {
        if self.missed.swap(false, SeqCst) {
            self.wakers.iter().for_each(Waker::wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_taken_than_there_are() {
        let permits = Permits::new(2, vec![]);
        assert!(permits.try_take() && permits.try_take());
        assert!(!permits.try_take());
        permits.give_back();
        assert!(permits.try_take());
    }

    #[test]
    fn a_worker_that_missed_one_is_woken_when_it_is_returned() {
        let waker = Waker::new().unwrap();
        let permits = Permits::new(1, vec![waker.clone()]);
        assert!(permits.take_or_be_woken());
        assert!(!permits.take_or_be_woken());
        assert!(!waker.drain());
        permits.give_back();
        assert!(waker.drain());
    }

    #[test]
    fn a_worker_that_learns_late_that_there_was_none_finds_it_or_is_woken() {
        let waker = Waker::new().unwrap();
        let permits = Permits::new(1, vec![waker.clone()]);
        assert!(permits.try_take());
        assert!(!permits.is_free_or_be_woken());
        permits.give_back();
        assert!(waker.drain());
        assert!(permits.is_free_or_be_woken());
    }

    #[test]
    fn no_worker_is_woken_when_none_missed_one() {
        let waker = Waker::new().unwrap();
        let permits = Permits::new(1, vec![waker.clone()]);
        assert!(permits.take_or_be_woken());
        permits.give_back();
        assert!(!waker.drain());
    }

    #[test]
    fn more_permits_wake_and_fewer_take_none_away() {
        let waker = Waker::new().unwrap();
        let permits = Permits::new(1, vec![waker.clone()]);
        assert!(permits.try_take() && !permits.take_or_be_woken());
        permits.set_max(2);
        assert!(waker.drain());
        assert!(permits.try_take());
        permits.set_max(1);
        permits.give_back();
        assert!(!permits.try_take());
    }
}
