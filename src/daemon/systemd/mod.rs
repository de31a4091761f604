//! What a service manager receives and what it passes: notifications, the watchdog, the status line,
//! the store of descriptors, and sockets that it has bound for us.
//!
//! Knows the protocol of `sd_notify(3)` and `sd_listen_fds(3)`; nothing here is needed where no
//! manager is.

pub(super) mod notify;
pub(super) mod passed;
pub(super) mod status;
pub(super) mod store;
pub(super) mod watchdog;
