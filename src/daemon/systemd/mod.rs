//! What a service manager is told and what it gives: notifications, the watchdog, the status line
//! and the store of descriptors. Sockets that it has bound for us are in [`super::listeners`].
//!
//! Knows the protocol of `sd_notify(3)`; nothing here is needed where no manager is.

pub(super) mod notify;
pub(super) mod status;
pub(super) mod store;
pub(super) mod watchdog;
