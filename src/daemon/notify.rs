//! Telling the service manager how we are (`sd_notify(3)`). Without one, nothing is told.

use std::time::Duration;

use sd_notify::NotifyState;

/// All is bound and served.
pub(super) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A reload has begun. Must be followed by [`ready`], also when it fails: the manager waits.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// How things are, in words.
pub(super) fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The end has begun.
pub(super) fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// The service manager is to wait for the end for so long from now, if it would have waited less.
pub(super) fn needs_time_to_stop(time: Duration) {
    let usec = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    tell(&[NotifyState::Custom(&format!("EXTEND_TIMEOUT_USEC={usec}"))]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::debug!("sd_notify: {error}");
    }
}
