//! What a new configuration needs beside what is in service: which sockets stay or pass to another
//! listener, and which are bound now.
//!
//! Binds addresses that no socket of ours has, and touches no socket in service: a [`Prepared`] that
//! is dropped leaves everything as it was. What can only be bound beside sockets in service waits
//! for the commit.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::config::{self, Address, Change, ChangeAction, Config, Mood};
use crate::sys::socket;
use crate::worker::mailbox::{SocketId, SocketKind};

use crate::daemon::socket_file;

use super::bind::{self, Bound, Circumstances};
use super::failures::{self, BindFailure, Failures};
use super::prepared::{Kept, Pending, Planned, Prepared};
use super::sockets::Socket;
use super::{Listeners, descriptors, passed};

/// How long a start waits for the addresses of a process that was killed.
const KILLED_PREDECESSOR_WAIT: Duration = Duration::from_millis(500);

impl Listeners {
    /// Finds out what `changes` need, and binds what the service manager has not passed. What is only
    /// tried does not listen, so that no client reaches it.
    ///
    /// # Errors
    /// All that is wrong.
    pub(in crate::daemon) fn prepare(
        &self,
        new: &Config,
        changes: &[Change],
        workers: usize,
        passed: passed::Sockets,
        mood: Mood,
    ) -> Result<Prepared, Vec<String>> {
        let is_start = self.in_service.is_empty();
        let mut preparation = Preparation {
            listeners: self,
            available: self.available(changes),
            circumstances: Circumstances {
                workers,
                mood,
                retiring: &self.retiring,
                landlock: self.landlock.as_ref(),
                patience: is_start.then(|| Instant::now() + KILLED_PREDECESSOR_WAIT),
                lock_wait: socket_file::LockWait::default(),
            },
            passed,
            prepared: Prepared::default(),
            failures: Failures::default(),
        };
        preparation.check_descriptors(new)?;
        for change in changes {
            let listener = change.listener.as_ref();
            let Some(listener) = listener.and_then(|name| new.listeners.get(name)) else {
                continue;
            };
            match change.action {
                // A listener that changes nothing may still have lost a file.
                ChangeAction::Add | ChangeAction::Rebind => preparation.plan(listener, change),
                ChangeAction::Keep | ChangeAction::Update => {
                    preparation.restore_files(listener);
                }
                ChangeAction::Remove => {}
            }
            if preparation.failures.are_final() {
                break;
            }
        }
        preparation.finish(new)
    }

    /// The sockets of listeners that are removed or bound anew. Those that a `.socket` unit has defined
    /// by name are of no other listener: the next process gets them by that name again.
    fn available(&self, changes: &[Change]) -> BTreeSet<SocketId> {
        let changed = changes
            .iter()
            .filter(|change| matches!(change.action, ChangeAction::Rebind | ChangeAction::Remove));
        let names = changed.filter_map(|change| change.listener.as_deref());
        let old = names.filter_map(|name| self.in_service.get(name));
        let sockets = old.flat_map(|old| self.sockets_of(old));
        let sockets = sockets.filter(|socket| !socket.is_by_name());
        sockets.map(|socket| socket.id).collect()
    }
}

/// A preparation under way.
struct Preparation<'a> {
    listeners: &'a Listeners,
    /// Sockets in service that new listeners may take; all that are left will be retired.
    available: BTreeSet<SocketId>,
    circumstances: Circumstances<'a>,
    passed: passed::Sockets,
    prepared: Prepared,
    failures: Failures,
}

/// The sockets that a listener has, by their addresses as they were configured.
type Own<'a> = BTreeMap<&'a Address, Vec<&'a Socket>>;

impl<'a> Preparation<'a> {
    /// Refuses a configuration that needs more descriptors than there are.
    fn check_descriptors(&self, new: &Config) -> Result<(), Vec<String>> {
        // Of passed sockets a `.socket` unit says how many there are.
        if !self.passed.is_empty() {
            return Ok(());
        }
        let by_name = |listener: &config::Listener| {
            let old = self.listeners.in_service.get(&listener.name);
            self.passed.has_named(listener)
                || old.is_some_and(|old| self.listeners.has_sockets_by_name(old))
        };
        let ours = new.listeners.values().filter(|listener| !by_name(listener));
        descriptors::check(ours, self.circumstances.workers).map_err(|excess| vec![excess])
    }

    /// Plans the sockets of a listener that is new or bound anew.
    fn plan(&mut self, listener: &config::Listener, change: &Change) {
        let name = &listener.name;
        if let Some(old) = self.listeners.in_service.get(name)
            && self.listeners.has_sockets_by_name(old)
        {
            match passed::rebind_named(&old.config, listener, change) {
                Ok(warning) => self.prepared.warnings.push(warning),
                Err(failure) => self.failures.add(failure),
            }
            return;
        }
        let planned = match self.passed.take_named(listener, self.circumstances.workers) {
            Ok(named) if !named.is_empty() => named.into_iter().map(Planned::New).collect(),
            Ok(_) => self.plan_addresses(listener),
            Err(wrong) => {
                wrong.into_iter().for_each(|wrong| self.failures.add(wrong));
                Vec::new()
            }
        };
        self.prepared.sockets.insert(name.clone(), planned);
    }

    fn plan_addresses(&mut self, listener: &config::Listener) -> Vec<Planned> {
        let mut all = Vec::new();
        let mut last_port = None;
        let own = self.own(&listener.name);
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
                    self.plan_inet(listener, address, inet, *optional, &own)
                }
            };
            match planned {
                Ok(planned) => {
                    last_port = planned.first().and_then(|first| self.port(first));
                    all.extend(planned);
                }
                Err(failure) => self.failures.add(failure),
            }
            if self.failures.are_final() {
                break;
            }
        }
        all
    }

    fn own(&self, name: &str) -> Own<'a> {
        let mut own = Own::new();
        let old = self.listeners.in_service.get(name);
        for socket in old
            .into_iter()
            .flat_map(|old| self.listeners.sockets_of(old))
        {
            own.entry(&socket.bound.address).or_default().push(socket);
        }
        own
    }

    fn port(&self, planned: &Planned) -> Option<u16> {
        let local = match planned {
            Planned::New(bound) => bound.local,
            Planned::Kept(kept) => self.listeners.sockets.get(kept.id)?.bound.local,
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
        own: &Own<'a>,
    ) -> Result<Vec<Planned>, BindFailure> {
        let (kind, _) = bind::kinds(listener.protocol);
        let count = bind::sockets_per_address(listener, self.circumstances.workers);
        let kept = self.keep_inet(listener, address, inet, count, own)?;
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
                self.try_beside(listener, address, inet)?;
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
            Err(error) => Err(BindFailure::of_inet(listener, address, inet, &error)),
        }
    }

    /// A dry run finds out what the commit would find out about an address that sockets in service
    /// have a part of: it binds a socket beside them, where that changes nothing. If they do not permit
    /// that, they would have to be changed; a datagram socket would receive at once.
    fn try_beside(
        &mut self,
        listener: &config::Listener,
        address: &Address,
        inet: SocketAddr,
    ) -> Result<(), BindFailure> {
        if self.circumstances.mood == Mood::Real {
            return Ok(());
        }
        let (kind, _) = bind::kinds(listener.protocol);
        let mut beside = self.listeners.sockets.excluding(kind, inet);
        let is_harmless = kind == SocketKind::Stream
            && beside.all(|socket| socket::is_shared(socket.bound.fd.as_fd()));
        if is_harmless {
            let workers = self.circumstances.workers;
            return bind::bind_beside(listener, address, inet, 0..1, workers)
                .map(drop)
                .map_err(|error| BindFailure::of_inet(listener, address, inet, &error));
        }
        self.prepared.warnings.push(format!(
            "listener \"{}\": bind {address}: not tried, for a socket in service has a part of it: \
             the reload is rejected if another process has another part",
            listener.name
        ));
        Ok(())
    }

    /// Plans the sockets in service that have the very address: they stay as they are, so that no
    /// client notices, and more are bound beside them where that is not enough.
    fn keep_inet(
        &mut self,
        listener: &config::Listener,
        address: &Address,
        inet: SocketAddr,
        count: usize,
        own: &Own<'a>,
    ) -> Result<Vec<Planned>, BindFailure> {
        let (kind, _) = bind::kinds(listener.protocol);
        // A port 0 stands for the port that the same listener has got, and for no other.
        let same = (inet.port() != 0).then(|| self.listeners.sockets.at(kind, inet));
        let own = own.get(address).into_iter().flatten().copied();
        let own = own.filter(|socket| socket.bound.kind == kind);
        let found = own.chain(same.into_iter().flatten());
        // In the order in which they were bound: sockets of one address are retired from the last on.
        let found: BTreeMap<SocketId, &Socket> = found.map(|socket| (socket.id, socket)).collect();
        let found = found.into_values();
        let kept: Vec<&Socket> = found
            .filter(|socket| self.available.contains(&socket.id))
            .take(count)
            .collect();
        let Some(first) = kept.first() else {
            return Ok(Vec::new());
        };
        for socket in &kept {
            self.available.remove(&socket.id);
        }
        let inet = first.bound.local.unwrap_or(inet);
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

    /// Whether a socket that will be retired may be why this address is in use.
    fn overlaps(&self, kind: SocketKind, inet: SocketAddr) -> bool {
        let mut excluding = self.listeners.sockets.excluding(kind, inet);
        excluding.any(|socket| self.available.contains(&socket.id))
    }

    fn plan_path(
        &mut self,
        listener: &config::Listener,
        address: &Address,
        path: &Path,
    ) -> Result<Vec<Planned>, BindFailure> {
        let (kind, _) = bind::kinds(listener.protocol);
        let found = socket_file::identity(path);
        let sockets = &self.listeners.sockets;
        // By whatever path: it may lead through a symbolic link.
        let ours = found.and_then(|found| sockets.with_file(found));
        let same = ours.or_else(|| sockets.passed_at(path));
        if let Some(socket) = same.filter(|same| self.available.remove(&same.id)) {
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

    fn bind_path(&self, listener: &config::Listener, path: &Path) -> Result<Bound, BindFailure> {
        bind::bind_path(listener, path, &self.circumstances).map_err(|error| {
            BindFailure::of_path(listener, path, &error, self.circumstances.landlock)
        })
    }

    /// Plans sockets in service for an address that is to have `count` of them.
    fn keep(
        &self,
        listener: &config::Listener,
        address: &Address,
        sockets: Vec<&Socket>,
        count: usize,
    ) -> Result<Vec<Planned>, BindFailure> {
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
            let handles = bind::handles(&socket.bound.fd, new).map_err(|error| {
                let reason = failures::explain(&error);
                let message = format!("listener \"{}\": {address}: {reason}", listener.name);
                BindFailure::new(message, &error)
            })?;
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
    ) -> Result<Vec<Planned>, BindFailure> {
        let workers = self.circumstances.workers;
        let passed = self.passed.take_at(listener, address, workers)?;
        Ok(passed.into_iter().map(Planned::New).collect())
    }

    /// Binds the paths of a listener again whose files are gone, so that clients find it again. One
    /// that can't be bound is only a warning: the configuration is not to blame.
    fn restore_files(&mut self, listener: &config::Listener) {
        let name = &listener.name;
        let is_made = match self.circumstances.mood {
            Mood::Real => "is made",
            Mood::Conditional => "would be made",
        };
        let Some(old) = self.listeners.in_service.get(name) else {
            return;
        };
        let is_lost = |socket: &Socket| {
            let file = socket.bound.file.as_ref();
            file.is_some_and(|file| !file.is_in_place())
        };
        if !self.listeners.sockets_of(old).any(is_lost) {
            return;
        }
        let mut planned = Vec::new();
        // A plan has all sockets of a listener, those that are not lost included.
        let sockets = self.listeners.sockets_of(old);
        for socket in sockets.filter(|socket| !socket.is_by_name()) {
            let address = &socket.bound.address;
            if let (Address::Unix(path), true) = (address, is_lost(socket)) {
                match self.bind_path(listener, path) {
                    Ok(bound) => {
                        self.prepared.warnings.push(format!(
                            "listener \"{name}\": {address}: the socket's file was gone and {is_made} anew"
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

    /// Listens on all new sockets, once all are bound and if that is not only tried.
    fn finish(mut self, new: &Config) -> Result<Prepared, Vec<String>> {
        self.prepared.warnings.extend(self.passed.warnings());
        self.prepared.left_over = self.passed.into_left_over();
        self.prepared.lock_wait = self.circumstances.lock_wait;
        if self.failures.is_empty() && self.circumstances.mood == Mood::Real {
            for (name, planned) in &self.prepared.sockets {
                let listener = &new.listeners[name];
                // It listens at the commit: see `listen` in `pending`.
                if planned.iter().any(Planned::is_beside) {
                    continue;
                }
                for planned in planned {
                    // A passed one listens: its backlog is set at the commit.
                    if let Planned::New(bound) = planned
                        && bound.passed.is_none()
                        && let Err(error) = bound.listen(listener)
                    {
                        self.failures.add(BindFailure::of_listening(
                            listener,
                            &bound.address,
                            &error,
                        ));
                    }
                }
            }
        }
        self.failures.into_result().map(|()| self.prepared)
    }
}
