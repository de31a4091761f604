//! The time until which a driver sleeps, kept by the kernel from one wait to the next.
//!
//! A worker with `idle-timeout` has a deadline at every sleep, and to arm a timer for each sleep
//! costs 4 to 6 % of a quiet connection's message. So one `timerfd_create(2)` lives as long as the
//! driver, and is set only when the deadline comes nearer. One that has moved away makes it go off
//! early, once: a wait may return with nothing.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// See the module.
#[derive(Debug)]
pub(super) struct Alarm {
    timer: TimerFd,
    /// When it goes off, if it is set.
    due: Option<Instant>,
}

impl Alarm {
    /// One that is not set.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub(super) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        Ok(Self {
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?,
            due: None,
        })
    }

    /// Sees to it that it goes off at `until` or earlier, to the kernel's precision. Whether it
    /// will: not if that time has been reached.
    ///
    /// # Errors
    /// As `timerfd_settime(2)`.
    pub(super) fn set(&mut self, until: Instant) -> io::Result<bool> {
        // Most often, and then the clock need not be read.
        if self.due.is_some_and(|due| due <= until) {
            return Ok(true);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        self.timer
            .set(Expiration::OneShot(left.into()), TimerSetTimeFlags::empty())?;
        self.due = Some(until);
        Ok(true)
    }

    /// It has gone off.
    pub(super) fn handle_expired(&mut self) {
        self.due = None;
        // Reading it makes the descriptor wait for the next time; it fails only when another
        // `set` came first.
        let _ = self.timer.wait();
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn goes_off(alarm: &Alarm, timeout: PollTimeout) -> bool {
        let mut descriptors = [PollFd::new(alarm.as_fd(), PollFlags::POLLIN)];
        poll(&mut descriptors, timeout).expect("it is open") > 0
    }

    #[test]
    fn it_goes_off_at_the_nearest_time_that_was_set_and_not_before() {
        let mut alarm = Alarm::new().expect("descriptors are left");
        let near = Instant::now() + Duration::from_millis(5);
        let far = near + Duration::from_secs(3600);
        assert!(alarm.set(far).expect("a time"));
        assert!(!goes_off(&alarm, PollTimeout::ZERO));
        assert!(alarm.set(near).expect("a time"));
        assert!(alarm.set(far).expect("a time"));
        assert!(goes_off(&alarm, PollTimeout::NONE) && Instant::now() >= near);
        alarm.handle_expired();
        assert!(!goes_off(&alarm, PollTimeout::ZERO));
        assert!(!alarm.set(near).expect("a time"), "it has been reached");
    }
}
