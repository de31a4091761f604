//! The listeners in service and their sockets, and how one set of them becomes another.
//!
//! Three steps. [`Listeners::prepare`] binds what is new and touches nothing in service.
//! [`Listeners::commit`] binds what has to be beside sockets in service, the last thing that can
//! fail, and tells the workers. What is no longer wanted is then retired in the background: no new
//! client, every queued one served, closed. The tables of `sockets` (in service) and `retiring` find
//! each by id, address and file, so that no step takes time for what does not change.
//!
//! Continue in `prepare`, `pending`, `commit` and `retire`, in `standing` and `states` for whether new
//! clients are taken, in `bind` for how a socket is bound and
//! `failures` for why it is not, in `passed` and `survivors` for sockets that others have bound.

mod addresses;
pub(super) mod bind;
mod commit;
pub(super) mod descriptors;
mod failures;
mod handover;
mod own_ports;
pub(super) mod passed;
mod pending;
mod place;
mod prepare;
mod prepared;
mod report;
mod retire;
mod retiring;
mod shortfall;
mod sockets;
mod standing;
mod states;
pub(super) mod survivors;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use crate::config::{self, Address, Config};
use crate::policy::SourcePorts;
use crate::protocol::schema;
use crate::stats::{Counters, Totals};
use crate::sys::socket;
use crate::worker::mailbox::{Command, Destination, Gate, ListenerId, Settings, SocketId};

use super::privileges::Landlock;
use super::workers::Workers;

use bind::Bound;
use own_ports::OwnPorts;
pub(super) use own_ports::udp_port;
pub(super) use prepared::Prepared;
use report::Queues;
pub(super) use report::{closed, refused};
use retire::Waiting;
use retiring::RetiringSockets;
use sockets::{Socket, Sockets};
pub(super) use standing::Standing;
pub(super) use states::Standings;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    in_service: BTreeMap<String, Listener>,
    // The names of those in service.
    names: BTreeMap<ListenerId, String>,
    // No longer configured; here as long as they have connections.
    retired: BTreeMap<ListenerId, Listener>,
    // Those of them about which the workers are to be asked, and for each of the others the number of
    // workers that have not yet confirmed that it gets no more connections.
    unasked: Vec<ListenerId>,
    unconfirmed: BTreeMap<ListenerId, usize>,
    // Those that are drained until no connection of them is left.
    drains: BTreeSet<ListenerId>,
    // When to check next whether they still have any; none is at once.
    next_check: Option<Instant>,
    // Those of listeners in service.
    sockets: Sockets,
    retiring: RetiringSockets,
    // By the address for which they wait.
    waiting: BTreeMap<SocketAddr, Vec<Waiting>>,
    // What listeners have counted that are forgotten.
    departed: Totals,
    next_listener: u32,
    next_socket: u32,
    // UDP ports: see [`Self::refuse_own_ports`].
    own_ports: OwnPorts,
    /// What may keep new sockets from being bound.
    pub landlock: Option<Landlock>,
}

#[derive(Debug)]
struct Listener {
    id: ListenerId,
    // With what was overridden at run time: the only place where it is kept.
    config: config::Listener,
    // What `refuse-source-ports` comes to with the ports in service; the workers have the same.
    source_ports: SourcePorts,
    gate: Arc<Gate>,
    // One set for each worker.
    counters: Vec<Arc<Counters>>,
    // In the order of its addresses.
    sockets: Vec<SocketId>,
    overridden: Vec<&'static str>,
    standing: Standing,
}

impl Listeners {
    /// The sockets in service that are ours alone.
    pub(super) fn own_sockets(&mut self) -> impl Iterator<Item = &mut Bound> {
        let sockets = self.sockets.bound_mut();
        sockets.filter(|bound| bound.passed.is_none())
    }

    /// Connections of each listener, by name.
    pub(super) fn connections(&self) -> BTreeMap<String, u64> {
        self.in_service
            .iter()
            .map(|(name, listener)| (name.clone(), listener.totals().connections()))
            .collect()
    }

    /// The sum over all listeners, those that are forgotten included.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = self.departed;
        self.all()
            .for_each(|listener| totals.add(&listener.totals()));
        totals
    }

    /// The configuration in force: that of the daemon, with the listeners in service.
    pub(super) fn complete(&self, daemon: &Config) -> Config {
        let listeners = self.in_service.values().map(|listener| &listener.config);
        let listeners = listeners.map(|config| (config.name.clone(), config.clone()));
        Config {
            listeners: listeners.collect(),
            ..daemon.clone()
        }
    }

    /// How many are in service.
    pub(super) fn count(&self) -> usize {
        self.in_service.len()
    }

    /// First those in service, by name.
    fn all(&self) -> impl Iterator<Item = &Listener> {
        self.in_service.values().chain(self.retired.values())
    }

    /// The listener with this id, in service or not.
    fn listener(&self, id: ListenerId) -> Option<&Listener> {
        match self.names.get(&id) {
            Some(name) => self.in_service.get(name),
            None => self.retired.get(&id),
        }
    }

    fn put_into_service(&mut self, listener: Listener) {
        let name = listener.config.name.clone();
        self.names.insert(listener.id, name.clone());
        self.in_service.insert(name, listener);
    }

    /// The sockets of a listener in service.
    fn sockets_of(&self, listener: &Listener) -> impl Iterator<Item = &Socket> + Clone {
        let ids = listener.sockets.iter();
        ids.filter_map(|id| self.sockets.get(*id))
    }

    /// Whether a `.socket` unit has defined the listener's sockets by its name.
    fn has_sockets_by_name(&self, listener: &Listener) -> bool {
        self.sockets_of(listener).any(Socket::is_by_name)
    }

    /// The name and the protocol of a listener, in service or not.
    pub(super) fn describe(&self, id: ListenerId) -> Option<(&str, config::Protocol)> {
        let config = &self.listener(id)?.config;
        Some((&config.name, config.protocol))
    }

    /// Where a datagram came in: the address with the port, or the path.
    pub(super) fn describe_destination(&self, destination: Destination) -> Option<String> {
        let bound = &self.sockets.get(destination.socket)?.bound;
        let Some(mut local) = bound.local else {
            return Some(bound.address.to_string());
        };
        if let Some(address) = destination.address {
            local.set_ip(address);
        }
        Some(local.to_string())
    }

    /// The path of a Unix listener.
    pub(super) fn local_path(&self, id: ListenerId) -> Option<String> {
        let listener = self.listener(id)?;
        // Of sockets by name the configuration does not say where they are.
        let served = self.sockets_of(listener).next();
        let served = served.map(|socket| &socket.bound.address);
        let address = served.or(listener.config.addresses.first())?;
        matches!(address, Address::Unix(_)).then(|| address.to_string())
    }

    /// Gives all sockets of a listener this backlog; how it was before, and how it is now.
    ///
    /// # Errors
    /// As `listen(2)`; all sockets then have what they had.
    pub(super) fn set_backlog(
        &mut self,
        name: &str,
        backlog: u32,
    ) -> std::io::Result<(schema::Backlog, schema::Backlog)> {
        let Some(listener) = self.in_service.get(name) else {
            return Ok(Default::default());
        };
        let queues = Queues::default();
        let before = self.backlog(listener, &queues).unwrap_or_default();
        // Those that wait to listen get it then.
        let waits = |socket: &&Socket| socket.bound.waits_at().is_some();
        let mut changed = Vec::new();
        for Socket { bound, .. } in self.sockets_of(listener).filter(|socket| !waits(socket)) {
            let fd = bound.fd.as_fd();
            let effective = socket::queue(fd).map(|queue| queue.effective);
            if let Err(error) = socket::listen(fd, backlog) {
                for (fd, backlog) in changed {
                    // It listened with this backlog a moment ago.
                    let _ = socket::listen(fd, backlog);
                }
                return Err(error);
            }
            let had = effective.or_else(|| bound.backlog(&listener.config));
            changed.extend(had.map(|had| (fd, had)));
        }
        let Some(listener) = self.in_service.get_mut(name) else {
            return Ok(Default::default());
        };
        listener.config.backlog = backlog;
        listener.config.backlog_is_set = true;
        if !listener.overridden.contains(&"backlog") {
            listener.overridden.push("backlog");
        }
        let after = self.in_service.get(name);
        let after = after.and_then(|listener| self.backlog(listener, &queues));
        Ok((before, after.unwrap_or_default()))
    }
}

impl Listener {
    fn configure(&self, workers: &Workers) {
        workers.command_all(|worker| Command::Configure {
            listener: self.id,
            settings: settings(&self.config, self.source_ports.clone(), self.standing),
            gate: Arc::clone(&self.gate),
            counters: Arc::clone(&self.counters[worker]),
        });
    }

    fn totals(&self) -> Totals {
        Totals::of(self.counters.iter().map(|counters| &**counters))
    }
}

/// Has workers serve a socket, each by its own descriptor.
fn add_to_workers(socket: &Socket, handles: Vec<(usize, OwnedFd)>, workers: &Workers) {
    let (id, kind, listener) = (socket.id, socket.bound.kind, socket.listener);
    for (worker, socket) in handles {
        let command = Command::AddSocket {
            listener,
            id,
            kind,
            socket,
        };
        workers.command(worker, command);
    }
}

fn settings(
    listener: &config::Listener,
    source_ports: SourcePorts,
    standing: Standing,
) -> Settings {
    Settings {
        name: listener.name.clone(),
        reply: listener.reply,
        one_shot: listener.one_shot,
        timeouts: listener.timeouts,
        when_full: listener.when_full,
        max_per_source: listener.max_per_source,
        access: listener.access.clone(),
        refuse_source_ports: source_ports,
        intake: standing.intake(),
    }
}

#[cfg(test)]
mod tests;
