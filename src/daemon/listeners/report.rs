//! Listeners as others see them: addresses, counters, the backlog, and what the kernel has cut.
//!
//! Reads the kernel's and the workers' figures. Changes nothing but a backlog.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use crate::config::{self, Address};
use crate::policy::Refusal;
use crate::protocol::schema;
use crate::sys::socket;

use super::bind::{self, Bound};
use super::{Listener, Listeners};

impl Listeners {
    /// All listeners, for people and programs.
    pub(in crate::daemon) fn report(&self) -> Vec<schema::Listener> {
        let limit = somaxconn();
        let in_service = self
            .in_service
            .values()
            .map(|listener| listener.report(schema::ListenerState::Listening, limit));
        let retired = self
            .retired
            .iter()
            .map(|listener| listener.report(schema::ListenerState::Retired, limit));
        in_service.chain(retired).collect()
    }

    /// The backlog of a stream listener.
    pub(in crate::daemon) fn backlog(&self, name: &str) -> Option<schema::Backlog> {
        self.in_service.get(name)?.backlog(somaxconn())
    }
}

impl Listener {
    fn backlog(&self, limit: u32) -> Option<schema::Backlog> {
        if !self.config.protocol.is_stream() {
            return None;
        }
        let sockets = self.sockets.iter().map(|socket| &socket.bound);
        let mut known = sockets.map(|socket| socket.backlog(&self.config));
        // Of a retired listener, what it was to be.
        let known = known.next_back().unwrap_or(Some(self.config.backlog));
        let requested = known.unwrap_or(0);
        let mut sum = schema::Backlog {
            requested,
            effective: requested.min(limit),
            limit,
            queued: 0,
            overflows: 0,
        };
        for queue in self
            .sockets
            .iter()
            .filter(|socket| socket.bound.waits_at().is_none())
            .filter_map(|socket| socket::queue(socket.bound.fd.as_fd()))
        {
            sum.effective = queue.effective;
            sum.queued += u64::from(queue.queued);
            sum.overflows += u64::from(queue.overflows);
        }
        for path in self
            .sockets
            .iter()
            .filter_map(|socket| path(&socket.bound.address))
        {
            // Without /proc it is not known. A full queue loses no client: connect(2) waits.
            sum.queued += u64::from(socket::queued_at_path(path).unwrap_or(0));
        }
        Some(sum)
    }

    fn report(&self, state: schema::ListenerState, limit: u32) -> schema::Listener {
        let totals = self.totals();
        let mut addresses: Vec<String> = Vec::new();
        for socket in &self.sockets {
            let local = socket::local_address(socket.bound.fd.as_fd());
            let address = local.map_or_else(
                || socket.bound.address.to_string(),
                |local| local.to_string(),
            );
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        let refused =
            Refusal::ALL.map(|reason| (reason.name().to_owned(), totals.refused[reason as usize]));
        schema::Listener {
            name: self.config.name.clone(),
            protocol: self.config.protocol.name().into(),
            addresses,
            reply: self.config.reply.name().into(),
            state,
            sockets: self.sockets.len() as u32,
            backlog: self.backlog(limit),
            connections: totals.connections(),
            accepted: totals.accepted,
            refused: refused.into_iter().collect(),
            datagrams_received: totals.datagrams_received,
            datagrams_sent: totals.datagrams_sent,
            bytes_received: totals.bytes_received,
            bytes_sent: totals.bytes_sent,
            overridden: self.overridden.iter().map(|key| (*key).into()).collect(),
        }
    }
}

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
    // A size that was asked for is worth a warning; one that was left to us may be of interest.
    let (warning, note) = match listener.receive_buffer {
        Some(_) => (short, None),
        None => (None, short),
    };
    let name = &listener.name;
    if let Some(note) = note {
        log::info!(listener = name.as_str(); "listener \"{name}\": {note}");
    }
    let warnings = capped.into_iter().chain(warning);
    warnings
        .map(|warning| format!("listener \"{name}\": {warning}"))
        .collect()
}

fn path(address: &Address) -> Option<&Path> {
    match address {
        Address::Unix(path) => Some(path),
        Address::Inet { .. } => None,
    }
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

/// The kernel's cap on every backlog (`listen(2)`). Under `ProcSubset=pid` the file can't be read;
/// then a socket that asks for the largest one has the cap.
fn somaxconn() -> u32 {
    let text = fs::read_to_string("/proc/sys/net/core/somaxconn");
    text.ok()
        .and_then(|text| text.trim().parse().ok())
        .or_else(probe_somaxconn)
        .unwrap_or(0)
}

fn probe_somaxconn() -> Option<u32> {
    let loopback = ([127, 0, 0, 1], 0).into();
    let probe =
        socket::bind_inet(socket2::Type::STREAM, loopback, socket::Binding::Exclusive).ok()?;
    // So that no client connects meanwhile. Where that is not permitted, one that found the port in
    // that moment is reset.
    let _ = socket::drop_new_connections(probe.as_fd());
    socket::listen(probe.as_fd(), u32::MAX).ok()?;
    Some(socket::queue(probe.as_fd())?.effective)
}
