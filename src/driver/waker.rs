//! Wakes a thread that waits in `io_uring_enter(2)`, `epoll_wait(2)` or `ppoll(2)`, from any other.
//!
//! Carries nothing: what there is to do is found elsewhere.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Wakes a driver, or the control plane, out of its wait: an `eventfd(2)`.
#[derive(Clone, Debug)]
pub struct Waker(Arc<EventFd>);

impl Waker {
    /// # Errors
    /// When no descriptor is left.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self(Arc::new(EventFd::from_value_and_flags(0, flags)?)))
    }

    /// Wakes it now, or at its next wait. Any number of calls before that are one.
    pub fn wake(&self) {
        // It can fail only when 2^64 - 2 calls are pending: then it is awake.
        let _ = self.0.write(1);
    }

    /// Forgets all calls until now; says whether there was any.
    pub fn drain(&self) -> bool {
        self.0.read().is_ok()
    }

    /// For waiting: readable while a call is pending.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
