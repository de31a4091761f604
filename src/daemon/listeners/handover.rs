//! Listeners as a record for a successor, restored from one, and served again where an upgrade fails:
//! their sockets, counters and connections.
//!
//! Knows the record of a listener. Never knows how a record reaches the successor.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crate::cli::text::cause;
use crate::config::{self, Address, Config};
use crate::driver::Permits;
use crate::stats::{Counters, Totals};
use crate::sys::process::Passed;
use crate::sys::socket;
use crate::worker::mailbox::{
    Admission, Command, Gate, ListenerId, SocketId, TransferredConnection,
};

use super::bind::{self, Bound};
use super::sockets::Socket;
use super::{Listener, Listeners, Standing, add_to_workers, states};
use crate::daemon::record;
use crate::daemon::socket_file::SocketFile;
use crate::daemon::workers::Workers;

impl Listeners {
    /// Describes all of them, in the order of [`Self::places`], and adds the descriptors of their
    /// sockets to the list. Those on their way out are not among them: there should be none.
    pub(in crate::daemon) fn describe_all<'a>(
        &'a self,
        descriptors: &mut Vec<BorrowedFd<'a>>,
        retired_config: impl Fn(&config::Listener) -> String,
    ) -> Vec<record::Listener> {
        let mut describe_socket = |socket: &'a Socket| {
            descriptors.push(socket.bound.fd.as_fd());
            record::Socket {
                id: socket.id.0,
                descriptor: descriptors.len() - 1,
                address: socket.bound.address.to_string(),
                file: socket.bound.file.as_ref().map(SocketFile::identity),
                stored: socket.bound.stored.clone(),
                passed: socket.bound.passed,
            }
        };
        // First those in service, then those that only have connections left.
        let in_service = self.in_service.len();
        let describe = |(place, listener): (usize, &'a Listener)| record::Listener {
            name: listener.config.name.clone(),
            retired: (place >= in_service).then(|| retired_config(&listener.config)),
            overridden: listener
                .overridden
                .iter()
                .map(|key| (*key).into())
                .collect(),
            totals: listener.totals(),
            peak: listener.gate.peak(),
            standing: states::describe(listener.standing),
            sockets: self
                .sockets_of(listener)
                .map(&mut describe_socket)
                .collect(),
        };
        self.all().enumerate().map(describe).collect()
    }

    /// Drops what is the same as one of the sockets in service.
    pub(in crate::daemon) fn drop_known(&self, passed: &mut Vec<Passed>) {
        let sockets = self.sockets.iter().map(|socket| &socket.bound.fd);
        let known: BTreeSet<_> = sockets
            .filter_map(|fd| socket::identity(fd.as_fd()))
            .collect();
        passed.retain(|passed| {
            let identity = socket::identity(passed.fd.as_fd());
            identity.is_none_or(|identity| !known.contains(&identity))
        });
    }

    /// The place of each listener among all.
    pub(in crate::daemon) fn places(&self) -> BTreeMap<ListenerId, usize> {
        let places = self.all().enumerate();
        places
            .map(|(place, listener)| (listener.id, place))
            .collect()
    }

    /// The sum over listeners that are forgotten.
    pub(in crate::daemon) fn departed(&self) -> Totals {
        self.departed
    }

    /// Adds the sum over listeners that the predecessor had forgotten.
    pub(in crate::daemon) fn restore_departed(&mut self, totals: &Totals) {
        self.departed.add(totals);
    }

    /// Takes all listeners of a predecessor into service, or those that are still configured, `elapsed`
    /// after they were described: everything but their connections, so that new ones are counted after those. Returns
    /// their ids in the order of the record.
    pub(in crate::daemon) fn restore(
        &mut self,
        listeners: &[record::Listener],
        config: &Config,
        retired_config: impl Fn(&str) -> Option<config::Listener>,
        elapsed: Duration,
        workers: &Workers,
    ) -> Vec<Option<ListenerId>> {
        let mut ids = Vec::new();
        for listener in listeners {
            let config = match &listener.retired {
                None => config.listeners.get(&listener.name).cloned(),
                Some(text) => retired_config(text),
            };
            let Some(config) = config else {
                log::error!(
                    "listener \"{}\" of the predecessor: its configuration can't be read; \
                     its connections are closed",
                    listener.name
                );
                ids.push(None);
                continue;
            };
            let known = config::KEYS.iter().map(|key| key.name);
            let restored = Listener {
                id: ListenerId(self.next_listener),
                gate: Arc::new(
                    Gate::new(Permits::new(config.max_connections, workers.wakers()))
                        .with_peak(listener.peak),
                ),
                // One worker continues where the counters of all of them had stopped.
                counters: (0..workers.count())
                    .map(|worker| match worker {
                        0 => Arc::new(Counters::from_totals(&listener.totals)),
                        _ => Arc::default(),
                    })
                    .collect(),
                sockets: Vec::new(),
                overridden: known
                    .filter(|key| listener.overridden.iter().any(|name| name == key))
                    .collect(),
                source_ports: self.own_ports.source_ports(&config),
                standing: Standing::default(),
                config,
            };
            self.next_listener += 1;
            let id = restored.id;
            ids.push(Some(id));
            if listener.retired.is_some() {
                self.retired.insert(id, restored);
            } else {
                self.put_into_service(restored);
            }
            self.restore_standing(id, listener.standing, elapsed);
            if let Some(restored) = self.listener(id) {
                restored.configure(workers);
            }
        }
        ids
    }

    /// Serves the sockets of a predecessor's listener.
    pub(in crate::daemon) fn restore_sockets(
        &mut self,
        listener: &record::Listener,
        mut descriptor: impl FnMut(usize) -> Option<OwnedFd>,
        workers: &Workers,
    ) {
        let Some(known) = self.in_service.get(&listener.name) else {
            return;
        };
        let config = &known.config;
        let configured = config.addresses.iter();
        let configured: HashMap<String, &Address> = configured
            .map(|address| (address.to_string(), address))
            .collect();
        // Which workers serve a socket follows from its place among those of its address.
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for socket in listener
            .sockets
            .iter()
            .filter(|socket| socket.passed.is_none())
        {
            *counts.entry(&socket.address).or_default() += 1;
        }
        let mut indexes: HashMap<&str, usize> = HashMap::new();
        let mut restored = Vec::new();
        for socket in &listener.sockets {
            let count = counts.get(&*socket.address).copied().unwrap_or(1);
            let next = indexes.entry(&socket.address).or_default();
            let index = (*next).min(count - 1);
            *next += usize::from(socket.passed.is_none());
            let Some(fd) = descriptor(socket.descriptor) else {
                log::error!(
                    "listener \"{}\": {}: a socket of the predecessor is missing",
                    listener.name,
                    socket.address
                );
                continue;
            };
            let address = configured
                .get(&socket.address)
                .map(|address| (*address).clone());
            let address = address.unwrap_or_else(|| address_of(&fd, &socket.address));
            match bind::restore(config, address, fd, (index, count), workers.count()) {
                Ok(bound) => restored.push((SocketId(socket.id), finish(bound, socket))),
                Err(error) => log::error!(
                    "listener \"{}\": {}: {}",
                    listener.name,
                    socket.address,
                    cause(&error)
                ),
            }
        }
        for (id, bound) in restored {
            self.next_socket = self.next_socket.max(id.0 + 1);
            self.serve_as(&listener.name, id, bound, workers);
        }
    }

    /// Counts a connection of a predecessor in the gate of its listener; none if there is no such
    /// listener.
    pub(in crate::daemon) fn readmit(
        &self,
        id: ListenerId,
        source: Option<IpAddr>,
    ) -> Option<Admission> {
        let listener = self.listener(id)?;
        let max_per_source = listener.config.max_per_source;
        Some(listener.gate.readmit(source, max_per_source))
    }

    /// Hands a connection to a worker.
    pub(in crate::daemon) fn take_over(
        &self,
        worker: usize,
        connection: TransferredConnection<OwnedFd>,
        workers: &Workers,
    ) {
        workers.command(worker % workers.count(), Command::TakeOver { connection });
    }

    /// Has these workers serve all sockets again that they had handed over to a successor which did
    /// not start.
    pub(in crate::daemon) fn serve_again(&self, meant: &[usize], workers: &Workers) {
        // Those that wait to listen are served then.
        let sockets = self.sockets.iter();
        for socket in sockets.filter(|socket| socket.bound.waits_at().is_none()) {
            let again = socket.workers.iter().copied();
            let again = again.filter(|worker| meant.contains(worker));
            match bind::handles(&socket.bound.fd, again) {
                Ok(handles) => add_to_workers(socket, handles, workers),
                Err(error) => {
                    let name = self.describe(socket.listener).map_or("", |(name, _)| name);
                    let (address, cause) = (&socket.bound.address, cause(&error));
                    log::error!("listener \"{name}\": {address}: {cause}");
                }
            }
        }
    }

    /// What was overridden at run time is so in this configuration, too, where it still has a meaning.
    /// Returns which keys of listeners that are.
    pub(in crate::daemon) fn keep_overrides(
        &self,
        config: &mut Config,
    ) -> Vec<(String, Vec<&'static str>)> {
        let mut kept = Vec::new();
        for (name, listener) in &self.in_service {
            if let Some(new) = config.listeners.get_mut(name)
                && listener.overridden.contains(&"backlog")
                && new.protocol.is_stream()
            {
                new.backlog = listener.config.backlog;
                new.backlog_is_set = true;
                kept.push((name.clone(), listener.overridden.clone()));
            }
        }
        kept
    }

    /// Which keys of listeners are overridden.
    pub(in crate::daemon) fn overridden(&self) -> Vec<(String, Vec<&'static str>)> {
        let all = self.in_service.iter();
        let overridden = all.filter(|(_, listener)| !listener.overridden.is_empty());
        overridden
            .map(|(name, listener)| (name.clone(), listener.overridden.clone()))
            .collect()
    }

    /// Notes which keys are overridden, after a commit that took them over.
    pub(in crate::daemon) fn mark_overridden(&mut self, keys: Vec<(String, Vec<&'static str>)>) {
        for (name, keys) in keys {
            if let Some(listener) = self.in_service.get_mut(&name) {
                listener.overridden = keys;
            }
        }
    }
}

/// The address that a socket has, of one that the configuration does not have.
fn address_of(fd: &OwnedFd, text: &str) -> Address {
    match socket::local_address(fd.as_fd()) {
        Some(address) => Address::Inet {
            address,
            optional: false,
        },
        None => Address::Unix(text.into()),
    }
}

fn finish(bound: Bound, socket: &record::Socket) -> Bound {
    let file = match (&bound.address, socket.file) {
        (Address::Unix(path), Some(inode)) => Some(SocketFile::adopt(path.clone(), inode)),
        _ => None,
    };
    Bound {
        file,
        stored: socket.stored.clone(),
        passed: socket.passed,
        ..bound
    }
}
