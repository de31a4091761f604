//! What the kernel gives less of than a listener asks for: its backlog and its receive buffer, both
//! cut without an error.
//!
//! The warnings are the same when a socket is bound and when a key changes while it is in service.

use std::os::fd::AsFd;

use crate::config;
use crate::sys::socket;

use super::bind::{self, Bound};

/// What the kernel gives these sockets of a listener less of than it was asked for, as warnings.
pub(super) fn shortfalls<'a>(
    listener: &config::Listener,
    sockets: impl Iterator<Item = &'a Bound> + Clone,
) -> Vec<String> {
    let own = |bound: &&Bound| {
        let is_ours = bound.passed.is_none() || listener.backlog_is_set;
        is_ours && bound.waits_at().is_none()
    };
    let mut with_backlog = sockets.clone().filter(own);
    let capped = with_backlog.find_map(|bound| capped(&bound.fd, listener.backlog));
    let short = short_receive_buffer(&bind::inherited(listener), sockets);
    // A size that was asked for is worth a warning; the default was not asked for.
    let (warning, note) = match listener.receive_buffer {
        Some(_) => (short, None),
        None => (None, short),
    };
    let name = &listener.name;
    if let Some(note) = note {
        log::debug!(listener = name.as_str(); "listener \"{name}\": {note}");
    }
    let warnings = capped.into_iter().chain(warning);
    warnings
        .map(|warning| format!("listener \"{name}\": {warning}"))
        .collect()
}

/// What to tell an operator whose backlog the kernel has cut, silently.
fn capped(fd: impl AsFd, requested: u32) -> Option<String> {
    let effective = socket::queue(fd.as_fd())?.effective;
    (effective < requested).then(|| {
        format!(
            "backlog {requested} is capped to {effective} by net.core.somaxconn: \
             raise it with sysctl -w net.core.somaxconn={requested}"
        )
    })
}

/// The same for a receive buffer.
fn short_receive_buffer<'a>(
    options: &socket::Inherited,
    mut sockets: impl Iterator<Item = &'a Bound>,
) -> Option<String> {
    // The kernel doubles it, and has no words for more.
    let requested = options.receive_buffer?.min(i32::MAX as u32 / 2);
    let effective = sockets.find_map(|socket| {
        socket::receive_buffer(socket.fd.as_fd()).filter(|effective| *effective < requested)
    })?;
    Some(format!(
        "receive-buffer {requested} is capped to {effective} by net.core.rmem_max, so bursts may be lost: \
         raise it with sysctl -w net.core.rmem_max={requested}"
    ))
}
