//! Reports on the listeners for control clients: addresses, queues and counters.
//!
//! Knows how to ask the kernel, and asks once for a whole report; never changes anything.

use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use crate::config::Address;
use crate::policy::{CloseReason, Refusal};
use crate::protocol::schema;
use crate::stats::Totals;
use crate::sys::socket;

use super::{Listener, Listeners};

impl Listeners {
    /// All listeners, for people and programs.
    pub(in crate::daemon) fn report(&self) -> Vec<schema::Listener> {
        let queues = Queues::default();
        let all = self.with_state();
        all.map(|(listener, state)| self.report_of(listener, state, &queues))
            .collect()
    }

    /// The listener of this name, for people and programs.
    pub(in crate::daemon) fn report_one(&self, name: &str) -> Option<schema::Listener> {
        let in_service = self.in_service.get(name);
        let in_service = in_service.map(|listener| (listener, listener.standing.state()));
        // A retired one is found only where none in service has its name.
        let retired = || {
            let mut retired = self.with_state();
            retired.find(|(listener, _)| listener.config.name == name)
        };
        let (listener, state) = in_service.or_else(retired)?;
        Some(self.report_of(listener, state, &Queues::default()))
    }

    /// How many connections all listeners in service may have together.
    pub(in crate::daemon) fn max_connections(&self) -> u64 {
        let streams = self.in_service.values().map(|listener| &listener.config);
        let streams = streams.filter(|config| config.protocol.is_stream());
        streams
            .map(|config| u64::from(config.max_connections))
            .sum()
    }

    /// Whether a listener has this name, in service or not.
    pub(in crate::daemon) fn has(&self, name: &str) -> bool {
        self.all().any(|listener| listener.config.name == name)
    }

    /// Whether the listener of this name has a backlog; none if there is no such listener in service.
    pub(in crate::daemon) fn has_backlog(&self, name: &str) -> Option<bool> {
        let listener = self.in_service.get(name)?;
        Some(listener.config.protocol.is_stream())
    }

    fn with_state(&self) -> impl Iterator<Item = (&Listener, schema::ListenerState)> {
        let in_service = self.in_service.values();
        let retired = self.retired.values();
        in_service
            .map(|listener| (listener, listener.standing.state()))
            .chain(retired.map(|listener| (listener, schema::ListenerState::Retired)))
    }
}

/// What the kernel has about the queues of all listening sockets, read when it is first needed and
/// once for a whole report.
#[derive(Default)]
pub(super) struct Queues {
    limit: OnceCell<u32>,
    unix: OnceCell<HashMap<PathBuf, u32>>,
}

impl Queues {
    fn limit(&self) -> u32 {
        *self.limit.get_or_init(somaxconn)
    }

    /// Without `/proc` it is not known. A full queue loses no client: connect(2) waits.
    fn queued_at(&self, path: &Path) -> u32 {
        let read = || socket::queued_at_paths().unwrap_or_default();
        let queued = self.unix.get_or_init(read).get(path);
        queued.copied().unwrap_or(0)
    }
}

impl Listeners {
    pub(super) fn backlog(&self, listener: &Listener, queues: &Queues) -> Option<schema::Backlog> {
        let config = &listener.config;
        if !config.protocol.is_stream() {
            return None;
        }
        let limit = queues.limit();
        let sockets = self.sockets_of(listener).map(|socket| &socket.bound);
        let known = sockets.clone().last().map(|socket| socket.backlog(config));
        // Of a retired listener, what it was to be.
        let known = known.unwrap_or(Some(config.backlog));
        let requested = known.unwrap_or(0);
        let mut sum = schema::Backlog {
            requested,
            effective: requested.min(limit),
            limit,
            queued: 0,
            overflows: 0,
        };
        let listening = sockets.clone().filter(|socket| socket.waits_at().is_none());
        for queue in listening.filter_map(|socket| socket::queue(socket.fd.as_fd())) {
            sum.effective = queue.effective;
            sum.queued += u64::from(queue.queued);
            sum.overflows += u64::from(queue.overflows);
        }
        for socket in sockets {
            if let Address::Unix(path) = &socket.address {
                sum.queued += u64::from(queues.queued_at(path));
            }
        }
        Some(sum)
    }

    fn report_of(
        &self,
        listener: &Listener,
        state: schema::ListenerState,
        queues: &Queues,
    ) -> schema::Listener {
        let (config, totals) = (&listener.config, listener.totals());
        // Sockets that share an address have it once.
        let mut addresses: Vec<String> = Vec::new();
        let mut known = HashSet::new();
        for socket in self.sockets_of(listener) {
            let address = socket.bound.local.map_or_else(
                || socket.bound.address.to_string(),
                |local| local.to_string(),
            );
            if known.insert(address.clone()) {
                addresses.push(address);
            }
        }
        let is_stream = config.protocol.is_stream();
        schema::Listener {
            name: config.name.clone(),
            protocol: config.protocol.name().into(),
            addresses,
            reply: config.reply.name().into(),
            state,
            sockets: listener.sockets.len() as u32,
            backlog: self.backlog(listener, queues),
            connections: totals.connections(),
            max_connections: if is_stream { config.max_connections } else { 0 },
            peak: listener.gate.peak(),
            accepted: totals.accepted,
            refused: refused(&totals),
            closed: closed(&totals),
            faults: totals.faults,
            datagrams_received: totals.datagrams_received,
            datagrams_sent: totals.datagrams_sent,
            bytes_received: totals.bytes_received,
            bytes_sent: totals.bytes_sent,
            overridden: listener
                .overridden
                .iter()
                .map(|key| (*key).into())
                .collect(),
        }
    }
}

/// The refusals by reason.
pub(in crate::daemon) fn refused(totals: &Totals) -> BTreeMap<String, u64> {
    by_name(Refusal::ALL.map(|reason| (reason.name(), totals.refused[reason as usize])))
}

/// The connections closed, by reason.
pub(in crate::daemon) fn closed(totals: &Totals) -> BTreeMap<String, u64> {
    by_name(CloseReason::ALL.map(|reason| (reason.name(), totals.closed_by[reason as usize])))
}

fn by_name<const N: usize>(counts: [(&str, u64); N]) -> BTreeMap<String, u64> {
    counts.map(|(name, count)| (name.to_owned(), count)).into()
}

/// The kernel's cap on every backlog (`listen(2)`). Under `ProcSubset=pid` the file can't be
/// read; then a socket that asks for the largest one has the cap.
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
    // So that no client connects to it. A daemon without privileges may not on some kernels, and
    // then a client that found the port in that moment is reset.
    let _ = socket::drop_new_connections(probe.as_fd());
    socket::listen(probe.as_fd(), u32::MAX).ok()?;
    Some(socket::queue(probe.as_fd())?.effective)
}
