//! What a new configuration needs beside what is in service: which sockets stay or pass to another
//! listener, and which are bound now.
//!
//! Binds addresses that no socket of ours has, and touches no socket in service: a [`Prepared`] that
//! is dropped leaves everything as it was. What can only be bound beside sockets in service waits
//! for the commit.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::{self, Address, Change, ChangeAction, Config};
use crate::worker::mailbox::{SocketId, SocketKind};

use crate::daemon::socket_file;

use super::bind::{self, Bound, Circumstances};
use super::prepared::{Kept, Pending, Planned, Prepared};
use super::{Listeners, Socket, passed};

/// How long a start waits for the addresses of a process that was killed.
const DYING: Duration = Duration::from_millis(500);

impl Listeners {
    /// Finds out what `changes` need, and binds what the service manager has not passed.
    ///
    /// # Errors
    /// All that is wrong.
    pub(in crate::daemon) fn prepare(
        &self,
        new: &Config,
        changes: &[Change],
        workers: usize,
        passed: passed::Sockets,
    ) -> Result<Prepared, Vec<String>> {
        let retired_ports = self.retired_ports();
        let mut preparation = Preparation {
            listeners: self,
            available: self.available(changes),
            taken: BTreeSet::new(),
            circumstances: Circumstances {
                workers,
                retired_ports: &retired_ports,
                landlock: self.landlock.as_ref(),
                patience: self.in_service.is_empty().then(|| Instant::now() + DYING),
                lock_wait: socket_file::LockWait::default(),
            },
            passed,
            prepared: Prepared::default(),
            failures: Vec::new(),
        };
        for change in changes {
            let listener = change.listener.as_ref();
            let Some(listener) = listener.and_then(|name| new.listeners.get(name)) else {
                continue;
            };
            match change.action {
                // A listener that changes nothing may still have lost a file.
                ChangeAction::Add | ChangeAction::Rebind => preparation.plan(listener, change),
                ChangeAction::Keep | ChangeAction::Update => preparation.restore_files(listener),
                ChangeAction::Remove => {}
            }
        }
        preparation.finish(new)
    }

    /// The sockets of listeners that are removed or bound anew, each with the name of its listener,
    /// in the order in which they were bound. Those that a `.socket` unit has defined by name are of
    /// no other listener: the next process gets them by that name again.
    fn available(&self, changes: &[Change]) -> Vec<(&str, &Socket)> {
        let changed = changes
            .iter()
            .filter(|change| matches!(change.action, ChangeAction::Rebind | ChangeAction::Remove));
        let names = changed.filter_map(|change| change.listener.as_deref());
        let old = names.filter_map(|name| self.in_service.get(name));
        let sockets = old.flat_map(|old| {
            let name = old.config.name.as_str();
            let sockets = old.sockets.iter().filter(|socket| !socket.is_by_name());
            sockets.map(move |socket| (name, socket))
        });
        let mut available: Vec<_> = sockets.collect();
        available.sort_by_key(|(_, socket)| socket.id);
        available
    }
}

/// A preparation under way.
struct Preparation<'a> {
    listeners: &'a Listeners,
    /// Sockets in service that new listeners may take; all others of them will be retired.
    available: Vec<(&'a str, &'a Socket)>,
    taken: BTreeSet<SocketId>,
    circumstances: Circumstances<'a>,
    passed: passed::Sockets,
    prepared: Prepared,
    failures: Vec<String>,
}

impl<'a> Preparation<'a> {
    /// Plans the sockets of a listener that is new or bound anew.
    fn plan(&mut self, listener: &config::Listener, change: &Change) {
        let name = &listener.name;
        if let Some(old) = self.listeners.in_service.get(name)
            && old.has_sockets_by_name()
        {
            match passed::rebind_named(&old.config, listener, change) {
                Ok(warning) => self.prepared.warnings.push(warning),
                Err(failure) => self.failures.push(failure),
            }
            return;
        }
        let planned = match self.passed.take_named(listener, self.circumstances.workers) {
            Ok(named) if !named.is_empty() => named.into_iter().map(Planned::New).collect(),
            Ok(_) => self.plan_addresses(listener),
            Err(wrong) => {
                self.failures.extend(wrong);
                Vec::new()
            }
        };
        self.prepared.sockets.insert(name.clone(), planned);
    }

    fn plan_addresses(&mut self, listener: &config::Listener) -> Vec<Planned> {
        let mut all = Vec::new();
        let mut last_port = None;
        for address in &listener.addresses {
            let planned = match address {
                Address::Unix(path) => self.plan_path(listener, address, path),
                Address::Inet {
                    address: inet,
                    optional,
                } => {
                    let mut inet = *inet;
                    // The two halves of `*:0` get the same port.
                    if let Some(port) = last_port.filter(|_| *optional && inet.port() == 0) {
                        inet.set_port(port);
                    }
                    self.plan_inet(listener, address, inet, *optional)
                }
            };
            match planned {
                Ok(planned) => {
                    last_port = planned.first().and_then(|first| self.port(first));
                    all.extend(planned);
                }
                Err(failure) => self.failures.push(failure),
            }
        }
        all
    }

    fn port(&self, planned: &Planned) -> Option<u16> {
        let local = match planned {
            Planned::New(bound) => bound.local(),
            Planned::Kept(kept) => {
                let socket = self
                    .available
                    .iter()
                    .find(|(_, socket)| socket.id == kept.id);
                socket.and_then(|(_, socket)| socket.bound.local())
            }
            Planned::Pending(_) => None,
        };
        local.map(|local| local.port())
    }

    fn plan_inet(
        &mut self,
        listener: &config::Listener,
        address: &Address,
        inet: SocketAddr,
        optional: bool,
    ) -> Result<Vec<Planned>, String> {
        let (kind, _) = bind::kinds(listener.protocol);
        let count = bind::sockets_per_address(listener, self.circumstances.workers);
        let kept = self.keep_inet(listener, address, inet, count)?;
        if !kept.is_empty() {
            return Ok(kept);
        }
        let passed = self.take_passed(listener, address)?;
        if !passed.is_empty() {
            return Ok(passed);
        }
        match bind::bind_inet(listener, address, inet, &self.circumstances) {
            Ok(bound) => Ok(bound.into_iter().map(Planned::New).collect()),
            // In use perhaps only by a socket of ours, which must not be touched yet.
            Err(error) if bind::is_in_use(&error) && self.overlaps(kind, inet) => {
                Ok(vec![Planned::Pending(Pending::Beside {
                    address: address.clone(),
                    inet,
                    indexes: 0..count,
                })])
            }
            Err(error) if optional && bind::is_missing_family(&error) => {
                self.prepared
                    .warnings
                    .push(bind::left_out(listener, address));
                Ok(Vec::new())
            }
            Err(error) => Err(bind::refused_inet(listener, address, inet, &error)),
        }
    }

    /// Plans the sockets in service that have the very address: they stay as they are, so that no
    /// client notices, and more are bound beside them where that is not enough.
    fn keep_inet(
        &mut self,
        listener: &config::Listener,
        address: &Address,
        inet: SocketAddr,
        count: usize,
    ) -> Result<Vec<Planned>, String> {
        let (kind, _) = bind::kinds(listener.protocol);
        // A port 0 stands for the port that the same listener has got, and for no other.
        let is_same = |owner: &str, socket: &Socket| {
            owner == listener.name && socket.bound.address == *address
                || socket
                    .bound
                    .local()
                    .is_some_and(|local| is_same_inet(local, inet))
        };
        let kept = self.take(count, |owner, socket| {
            socket.bound.kind == kind && is_same(owner, socket)
        });
        let Some(first) = kept.first() else {
            return Ok(Vec::new());
        };
        let inet = first.bound.local().unwrap_or(inet);
        // The service manager says how many sockets of its own there are.
        let is_passed = kept.iter().any(|socket| socket.bound.passed.is_some());
        let count = if is_passed { kept.len() } else { count };
        let missing = kept.len()..count;
        let mut planned = self.keep(listener, address, kept, count)?;
        if !missing.is_empty() {
            planned.push(Planned::Pending(Pending::Beside {
                address: address.clone(),
                inet,
                indexes: missing,
            }));
        }
        Ok(planned)
    }

    /// Whether a socket that will be retired may be why this address is in use: a wildcard address
    /// and one that is part of it exclude each other.
    fn overlaps(&self, kind: SocketKind, inet: SocketAddr) -> bool {
        self.available.iter().any(|(_, socket)| {
            let local = socket.bound.local();
            socket.bound.kind == kind && local.is_some_and(|local| local.port() == inet.port())
        })
    }

    fn plan_path(
        &mut self,
        listener: &config::Listener,
        address: &Address,
        path: &Path,
    ) -> Result<Vec<Planned>, String> {
        let (kind, _) = bind::kinds(listener.protocol);
        let found = socket_file::identity(path);
        let is_same = |socket: &Socket| match &socket.bound.file {
            // By whatever path: it may lead through a symbolic link.
            Some(file) => found == Some(file.identity()),
            None => socket.bound.address == *address,
        };
        if let Some(socket) = self.take(1, |_, socket| is_same(socket)).pop() {
            if socket.bound.kind == kind {
                return self.keep(listener, address, vec![socket], 1);
            }
            return Ok(vec![Planned::Pending(Pending::Replacing {
                path: path.into(),
                id: socket.id,
            })]);
        }
        let passed = self.take_passed(listener, address)?;
        if !passed.is_empty() {
            return Ok(passed);
        }
        let bound = self.bind_path(listener, path)?;
        Ok(vec![Planned::New(bound)])
    }

    fn bind_path(&self, listener: &config::Listener, path: &Path) -> Result<Bound, String> {
        let landlock = self.circumstances.landlock;
        bind::bind_path(listener, path, &self.circumstances)
            .map_err(|error| bind::refused_path(listener, path, &error, landlock))
    }

    /// Takes at most `count` of the available sockets that match.
    fn take(&mut self, count: usize, matches: impl Fn(&str, &Socket) -> bool) -> Vec<&'a Socket> {
        let free = self
            .available
            .iter()
            .filter(|(owner, socket)| !self.taken.contains(&socket.id) && matches(owner, socket));
        let found: Vec<&'a Socket> = free.map(|(_, socket)| *socket).take(count).collect();
        self.taken.extend(found.iter().map(|socket| socket.id));
        found
    }

    /// Plans sockets in service for an address that is to have `count` of them.
    fn keep(
        &self,
        listener: &config::Listener,
        address: &Address,
        sockets: Vec<&Socket>,
        count: usize,
    ) -> Result<Vec<Planned>, String> {
        let keep = |(index, socket): (usize, &Socket)| {
            // Two workers would answer the datagrams of one sender in another order than they came:
            // so the worker stays, too.
            let servers = match socket.bound.kind {
                SocketKind::Datagram => socket.workers.clone(),
                SocketKind::Stream => {
                    bind::servers(listener, index, count, self.circumstances.workers)
                }
            };
            let is_new = |worker: &usize| !socket.workers.contains(worker);
            let new = servers.iter().copied().filter(is_new);
            let handles = bind::handles(&socket.bound.fd, new)
                .map_err(|error| format!("listener \"{}\": {address}: {error}", listener.name))?;
            let leaving = socket.workers.iter().copied();
            Ok(Planned::Kept(Kept {
                id: socket.id,
                address: address.clone(),
                handles,
                leaving: leaving.filter(|worker| !servers.contains(worker)).collect(),
            }))
        };
        sockets.into_iter().enumerate().map(keep).collect()
    }

    /// What the service manager has passed for this address.
    fn take_passed(
        &mut self,
        listener: &config::Listener,
        address: &Address,
    ) -> Result<Vec<Planned>, String> {
        let workers = self.circumstances.workers;
        let passed = self.passed.take_at(listener, address, workers)?;
        Ok(passed.into_iter().map(Planned::New).collect())
    }

    /// Binds the paths of a listener again whose files are gone, so that clients find it again. One
    /// that can't be bound is only a warning: the configuration is not to blame.
    fn restore_files(&mut self, listener: &config::Listener) {
        let name = &listener.name;
        let Some(old) = self.listeners.in_service.get(name) else {
            return;
        };
        let is_lost = |socket: &Socket| {
            let file = socket.bound.file.as_ref();
            file.is_some_and(|file| !file.is_in_place())
        };
        if !old.sockets.iter().any(is_lost) {
            return;
        }
        let mut planned = Vec::new();
        // A plan has all sockets of a listener, those that are not lost included.
        for socket in old.sockets.iter().filter(|socket| !socket.is_by_name()) {
            let address = &socket.bound.address;
            if let (Address::Unix(path), true) = (address, is_lost(socket)) {
                match self.bind_path(listener, path) {
                    Ok(bound) => {
                        self.prepared.warnings.push(format!(
                            "listener \"{name}\": {address}: the socket's file was gone and is made anew"
                        ));
                        planned.push(Planned::New(bound));
                        continue;
                    }
                    Err(failure) => self.prepared.warnings.push(format!(
                        "{failure}; no client reaches the listener there any more"
                    )),
                }
            }
            planned.push(Planned::Kept(Kept {
                id: socket.id,
                address: address.clone(),
                handles: Vec::new(),
                leaving: Vec::new(),
            }));
        }
        self.prepared.sockets.insert(name.clone(), planned);
    }

    /// Listens on all new sockets, once all are bound.
    fn finish(mut self, new: &Config) -> Result<Prepared, Vec<String>> {
        self.prepared.warnings.extend(self.passed.left_over());
        self.prepared.lock_wait = self.circumstances.lock_wait;
        if self.failures.is_empty() {
            for (name, planned) in &self.prepared.sockets {
                let listener = &new.listeners[name];
                for planned in planned {
                    // A passed one listens: its backlog is set at the commit.
                    if let Planned::New(bound) = planned
                        && bound.passed.is_none()
                        && let Err(error) = bound.listen(listener)
                    {
                        self.failures.push(format!(
                            "listener \"{name}\": listen on {}: {error}",
                            bound.address
                        ));
                    }
                }
            }
        }
        if self.failures.is_empty() {
            Ok(self.prepared)
        } else {
            Err(self.failures)
        }
    }
}

/// Whether both are the same address of the same interface. A port 0 is no address yet.
fn is_same_inet(one: SocketAddr, other: SocketAddr) -> bool {
    other.port() != 0 && one == other
}
