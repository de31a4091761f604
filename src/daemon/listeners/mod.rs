//! The listeners in service: what is bound, what is being retired, and how one set becomes another.
//!
//! Two steps. [`Listeners::prepare`] binds all that is new and can fail, leaving everything as it
//! was. [`Listeners::commit`] tells the workers and can't fail. What is no longer wanted is then
//! retired in the background: no new client, everybody in the queue served, closed.

pub(super) mod bind;
mod handover;
mod own_ports;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::{self, Action, Address, Change, Config};
use crate::driver::Permits;
use crate::policy::SourcePorts;
use crate::protocol::schema;
use crate::stats::{Counters, Totals};
use crate::sys::socket::{self, Inherited};
use crate::worker::mailbox::{
    Command, Destination, Gate, ListenerId, Settings, SocketId, SocketKind,
};

use self::bind::{Bound, Site};
use super::privileges::{Landlock, Made};
use super::systemd::passed;
use super::workers::Workers;

use own_ports::source_ports;
pub(super) use own_ports::udp_port;
use report::Queues;

/// Between the last SYN that a socket takes and the sweep that empties its queue, so that
/// handshakes which are under way arrive there: a long round trip.
const HANDSHAKE: Duration = Duration::from_millis(200);

/// How long a start waits for the addresses of a process that was killed.
const DYING: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    in_service: BTreeMap<String, Listener>,
    // No longer configured; here as long as they have connections.
    retired: Vec<Listener>,
    retiring: Vec<Retiring>,
    // What those counted that are no more.
    departed: Totals,
    next_listener: u32,
    next_socket: u32,
    // UDP ports that are served, or are about to be: see [`Self::refuse_own_ports`].
    own_ports: BTreeSet<u16>,
    /// What may keep new sockets from being bound.
    pub landlock: Option<Landlock>,
}

#[derive(Debug)]
struct Listener {
    id: ListenerId,
    config: config::Listener,
    // What `refuse-source-ports` comes to with the ports in service; the workers have the same.
    source_ports: SourcePorts,
    gate: Arc<Gate>,
    // One set for each worker.
    counters: Vec<Arc<Counters>>,
    sockets: Vec<Serving>,
    overridden: Vec<&'static str>,
}

#[derive(Debug)]
struct Serving {
    id: SocketId,
    workers: Vec<usize>,
    bound: Bound,
}

/// A socket on its way out.
#[derive(Debug)]
struct Retiring {
    id: SocketId,
    workers: Vec<usize>,
    // Of an Internet socket: a successor may have it already.
    port: Option<u16>,
    // When its workers are to be told, until they are.
    sweep_at: Option<Instant>,
    // Workers that have not yet reported it closed.
    waits_for: usize,
}

/// All that is new of a configuration, bound and listening.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    sockets: BTreeMap<String, Vec<Bound>>,
    pub warnings: Vec<String>,
}

impl Prepared {
    /// The files of Unix sockets.
    pub(super) fn made(&self) -> impl Iterator<Item = Made> {
        let bound = self.sockets.values().flatten();
        let files = bound.filter_map(|bound| bound.file.as_ref());
        files.map(|file| Made {
            path: file.path().into(),
            is_folder: false,
            keeps_group: false,
        })
    }
}

impl Listeners {
    /// Binds what `changes` need, but for what the service manager has bound and passed. On failure
    /// nothing has changed.
    pub(super) fn prepare(
        &self,
        new: &Config,
        changes: &[Change],
        workers: usize,
        mut passed: passed::Sockets,
    ) -> Result<Prepared, Vec<String>> {
        let leaving: Vec<&Serving> = self.leaving(new, changes, workers);
        let retiring: Vec<BorrowedFd<'_>> = leaving
            .iter()
            .map(|socket| socket.bound.fd.as_fd())
            .collect();
        let retiring_paths: Vec<PathBuf> = leaving
            .iter()
            .filter_map(|socket| path(&socket.bound))
            .collect();
        let retired_ports: Vec<u16> = self
            .retiring
            .iter()
            .filter_map(|retiring| retiring.port)
            .collect();
        let site = Site {
            workers,
            retiring: &retiring,
            retired_ports: &retired_ports,
            retiring_paths: &retiring_paths,
            landlock: self.landlock.as_ref(),
            patience: self.in_service.is_empty().then(|| Instant::now() + DYING),
        };

        let mut prepared = Prepared::default();
        let mut failures = Vec::new();
        for (listener, change) in changed_listeners(new, changes) {
            let sockets = prepared.sockets.entry(listener.name.clone()).or_default();
            if let Some(old) = self.in_service.get(&listener.name)
                && old.has_sockets_by_name()
            {
                match passed::rebind_named(&old.config, listener, change) {
                    Ok(warning) => prepared.warnings.push(warning),
                    Err(failure) => failures.push(failure),
                }
                continue;
            }
            match passed.take_named(listener, workers) {
                Ok(named) if named.is_empty() => {}
                Ok(named) => {
                    sockets.extend(named);
                    continue;
                }
                Err(wrong) => {
                    failures.extend(wrong);
                    continue;
                }
            }
            let mut last_port = None;
            for address in &listener.addresses {
                if change.action == Action::Rebind && self.keeps(listener, address, workers) {
                    continue;
                }
                match passed.take_at(listener, address, workers) {
                    Ok(bound) if bound.is_empty() => {}
                    Ok(bound) => {
                        sockets.extend(bound);
                        continue;
                    }
                    Err(failure) => {
                        failures.push(failure);
                        continue;
                    }
                }
                // The two halves of `*:0` get the same port.
                let port =
                    last_port.filter(|_| matches!(address, Address::Inet { optional: true, .. }));
                match bind::bind(listener, address, port, &site, &mut prepared.warnings) {
                    Ok(bound) => {
                        last_port = bound.first().and_then(|bound| {
                            Some(socket::local_address(bound.fd.as_fd())?.port())
                        });
                        sockets.extend(bound);
                    }
                    Err(failure) => failures.push(failure),
                }
            }
        }
        prepared.warnings.extend(passed.left_over());
        if failures.is_empty() {
            self.listen(new, &mut prepared, &mut failures);
        }
        if failures.is_empty() {
            Ok(prepared)
        } else {
            Err(failures)
        }
    }

    fn listen(&self, new: &Config, prepared: &mut Prepared, failures: &mut Vec<String>) {
        for (name, sockets) in &prepared.sockets {
            let listener = &new.listeners[name];
            for socket in sockets {
                if let Err(error) = listen(socket, listener) {
                    failures.push(format!(
                        "listener \"{name}\": listen on {}: {error}",
                        socket.address
                    ));
                }
            }
            let capped = sockets
                .iter()
                .filter(|socket| socket.passed.is_none() || listener.backlog_is_set)
                .find_map(|socket| capped(&socket.fd, listener.backlog));
            let short = short_receive_buffer(&bind::inherited(listener), sockets.iter());
            // Who asked for a size is warned; who left it to us may want to know.
            let (warning, note) = match listener.receive_buffer {
                Some(_) => (short, None),
                None => (None, short),
            };
            if let Some(note) = note {
                log::info!(listener = name.as_str(); "listener \"{name}\": {note}");
            }
            let warnings = capped.into_iter().chain(warning);
            prepared
                .warnings
                .extend(warnings.map(|warning| format!("listener \"{name}\": {warning}")));
        }
    }

    /// The sockets in service that the new configuration does not keep.
    fn leaving(&self, new: &Config, changes: &[Change], workers: usize) -> Vec<&Serving> {
        let affected = changes
            .iter()
            .filter(|change| matches!(change.action, Action::Rebind | Action::Remove));
        let old = affected.filter_map(|change| self.in_service.get(change.listener.as_deref()?));
        old.flat_map(|old| {
            let stays = |socket: &&Serving| {
                let listener = new.listeners.get(&old.config.name);
                listener.is_some_and(|new| {
                    socket.is_by_name()
                        || new.addresses.contains(&socket.bound.address)
                            && self.keeps(new, &socket.bound.address, workers)
                })
            };
            old.sockets.iter().filter(move |socket| !stays(socket))
        })
        .collect()
    }

    /// Whether the sockets that serve this address now will do for the new listener of their name.
    fn keeps(&self, new: &config::Listener, address: &Address, workers: usize) -> bool {
        self.in_service.get(&new.name).is_some_and(|old| {
            old.config.protocol == new.protocol
                && bind::sockets_per_address(&old.config, workers)
                    == bind::sockets_per_address(new, workers)
                && old
                    .sockets
                    .iter()
                    .any(|socket| socket.bound.address == *address)
        })
    }

    /// Puts the new configuration into service.
    pub(super) fn commit(
        &mut self,
        mut prepared: Prepared,
        new: &Config,
        changes: &[Change],
        workers: &Workers,
        now: Instant,
    ) {
        // Before new sockets are served, so that no datagram from one of their ports is answered.
        self.refuse_own_ports(prepared.udp_ports(), workers);
        // They go when all that is new is there, so that a path which changes hands never lacks a
        // file.
        let mut leave = Vec::new();
        for change in changes {
            let Some(name) = &change.listener else {
                continue;
            };
            let listener = new.listeners.get(name);
            let bound = prepared.sockets.remove(name).unwrap_or_default();
            match (change.action, listener) {
                (Action::Remove, _) => leave.extend(self.take_out(name)),
                (Action::Add, Some(listener)) => self.add(listener, bound, workers),
                (Action::Rebind, Some(listener))
                    if self.in_service[name].config.protocol != listener.protocol =>
                {
                    leave.extend(self.take_out(name));
                    self.add(listener, bound, workers);
                }
                (Action::Rebind, Some(listener)) => {
                    leave.extend(self.rebind(listener, bound, workers));
                    self.update(listener, workers);
                }
                // What was overridden at run time is as configured again.
                (Action::Update | Action::Keep, Some(listener)) => {
                    if change.action == Action::Update {
                        self.update(listener, workers);
                    }
                    if let Some(known) = self.in_service.get_mut(name) {
                        known.set_backlog(listener);
                        known.overridden.clear();
                    }
                }
                (_, None) => {}
            }
        }
        self.refuse_own_ports([], workers);
        self.retire_sockets(leave, now);
        self.sweep(workers, now);
    }

    fn add(&mut self, listener: &config::Listener, bound: Vec<Bound>, workers: &Workers) {
        let id = ListenerId(self.next_listener);
        self.next_listener += 1;
        let new = Listener {
            id,
            config: listener.clone(),
            source_ports: source_ports(listener, &self.own_ports),
            gate: Arc::new(Gate::new(Permits::new(
                listener.max_connections,
                workers.wakers(),
            ))),
            counters: (0..workers.count()).map(|_| Arc::default()).collect(),
            sockets: Vec::new(),
            overridden: Vec::new(),
        };
        new.configure(workers);
        self.in_service.insert(listener.name.clone(), new);
        self.serve(&listener.name, bound, workers);
    }

    /// Hands new sockets to the workers.
    fn serve(&mut self, name: &str, bound: Vec<Bound>, workers: &Workers) {
        for mut bound in bound {
            let id = SocketId(self.next_socket);
            self.next_socket += 1;
            if let Some(file) = &mut bound.file
                && let Err(error) = file.settle()
            {
                log::error!(
                    listener = name;
                    "listener \"{name}\": {}: {error}", bound.address
                );
            }
            self.serve_as(name, id, bound, workers);
        }
    }

    fn serve_as(&mut self, name: &str, id: SocketId, mut bound: Bound, workers: &Workers) {
        let Some(listener) = self.in_service.get_mut(name) else {
            return;
        };
        let kind = bound.kind;
        let handles = std::mem::take(&mut bound.handles);
        let serving = handles.iter().map(|(worker, _)| *worker).collect();
        for (worker, socket) in handles {
            workers.command(
                worker,
                Command::AddSocket {
                    listener: listener.id,
                    id,
                    kind,
                    socket,
                },
            );
        }
        listener.sockets.push(Serving {
            id,
            workers: serving,
            bound,
        });
    }

    /// Serves what is new and returns what is no longer wanted.
    fn rebind(
        &mut self,
        new: &config::Listener,
        bound: Vec<Bound>,
        workers: &Workers,
    ) -> Vec<Serving> {
        let keeps: Vec<Address> = new
            .addresses
            .iter()
            .filter(|address| self.keeps(new, address, workers.count()))
            .cloned()
            .collect();
        let Some(listener) = self.in_service.get_mut(&new.name) else {
            return Vec::new();
        };
        let (stay, leave) = std::mem::take(&mut listener.sockets)
            .into_iter()
            .partition(|socket| socket.is_by_name() || keeps.contains(&socket.bound.address));
        listener.sockets = stay;
        self.serve(&new.name, bound, workers);
        leave
    }

    fn update(&mut self, new: &config::Listener, workers: &Workers) {
        let Some(listener) = self.in_service.get_mut(&new.name) else {
            return;
        };
        let options = bind::inherited(new);
        let has_other_options = options != bind::inherited(&listener.config);
        for socket in &listener.sockets {
            let fd = socket.bound.fd.as_fd();
            if has_other_options && let Err(error) = socket::set_inherited(fd, &options) {
                log::error!(
                    listener = new.name.as_str();
                    "listener \"{}\": socket options: {error}", new.name
                );
            }
            if new.mode != listener.config.mode
                && let Some(file) = &socket.bound.file
                && let Err(error) = file.set_mode(new.mode)
            {
                log::error!(
                    listener = new.name.as_str();
                    "listener \"{}\": {}: mode: {error}",
                    new.name,
                    socket.bound.address
                );
            }
        }
        let bound = listener.sockets.iter().map(|socket| &socket.bound);
        if has_other_options
            && new.receive_buffer.is_some()
            && let Some(warning) = short_receive_buffer(&options, bound)
        {
            log::warn!(listener = new.name.as_str(); "listener \"{}\": {warning}", new.name);
        }
        listener.set_backlog(new);
        listener.config = new.clone();
        listener.source_ports = source_ports(new, &self.own_ports);
        listener.overridden.clear();
        listener.gate.permits.set_max(new.max_connections);
        listener.configure(workers);
    }

    /// Takes a listener out of service; its sockets are to be retired.
    fn take_out(&mut self, name: &str) -> Vec<Serving> {
        let Some(mut listener) = self.in_service.remove(name) else {
            return Vec::new();
        };
        let sockets = std::mem::take(&mut listener.sockets);
        self.retired.push(listener);
        sockets
    }

    /// Takes everything out of service.
    pub(super) fn retire_all(&mut self, workers: &Workers, now: Instant) {
        self.retire(|_| true, workers, now);
    }

    /// Takes all listeners of streams out of service.
    pub(super) fn retire_streams(&mut self, workers: &Workers, now: Instant) {
        self.retire(|listener| listener.protocol.is_stream(), workers, now);
    }

    fn retire(
        &mut self,
        is_meant: impl Fn(&config::Listener) -> bool,
        workers: &Workers,
        now: Instant,
    ) {
        let meant = self.in_service.values().map(|listener| &listener.config);
        let meant = meant.filter(|listener| is_meant(listener));
        let names: Vec<String> = meant.map(|listener| listener.name.clone()).collect();
        let leave = names.iter().flat_map(|name| self.take_out(name)).collect();
        self.retire_sockets(leave, now);
        self.sweep(workers, now);
    }

    fn retire_sockets(&mut self, sockets: Vec<Serving>, now: Instant) {
        for Serving { id, workers, bound } in sockets {
            let Bound {
                address,
                kind,
                fd,
                file,
                passed,
                ..
            } = bound;
            // The path goes first: nobody new finds the way. A successor's file is not touched.
            drop(file);
            let mut sweep_at = now;
            let mut port = None;
            // What the service manager passed it will pass again, so it must stay as it is; who is
            // queued there then is served then.
            if matches!(address, Address::Inet { .. }) && passed.is_none() {
                port = socket::local_address(fd.as_fd()).map(|local| local.port());
                // The address may be wanted again before this one is gone.
                let shared = socket::share_address(fd.as_fd());
                let turned = match kind {
                    SocketKind::Stream => {
                        sweep_at += HANDSHAKE;
                        socket::drop_new_connections(fd.as_fd())
                    }
                    SocketKind::Datagram => socket::turn_away_datagrams(fd.as_fd()),
                };
                if let Err(error) = shared.and(turned) {
                    log::warn!("{address}: clients may be lost: {error}");
                }
            }
            // Ours goes now: the last descriptor is to be closed by a worker that has just emptied
            // the queue, with nobody in it.
            drop(fd);
            self.retiring.push(Retiring {
                id,
                waits_for: workers.len(),
                workers,
                port,
                sweep_at: Some(sweep_at),
            });
        }
    }

    /// Tells workers to empty and close the sockets whose time has come.
    pub(super) fn sweep(&mut self, workers: &Workers, now: Instant) {
        for retiring in &mut self.retiring {
            if retiring.sweep_at.is_some_and(|at| at <= now) {
                retiring.sweep_at = None;
                for worker in &retiring.workers {
                    workers.command(*worker, Command::RetireSocket { id: retiring.id });
                }
            }
        }
        // A socket on its way out may still bring connections.
        if self.retiring.is_empty() {
            self.retired.retain(|listener| {
                let totals = listener.totals();
                let has_connections = totals.connections() > 0;
                if !has_connections {
                    self.departed.add(&totals);
                    workers.command_all(|_| Command::RemoveListener {
                        listener: listener.id,
                    });
                }
                has_connections
            });
        }
    }

    /// When [`Self::sweep`] is next due.
    pub(super) fn next_sweep(&self, now: Instant) -> Option<Instant> {
        let sweep = self
            .retiring
            .iter()
            .filter_map(|retiring| retiring.sweep_at)
            .min();
        // Connections of retired listeners end whenever they like; it is enough to notice soon.
        let forget = (!self.retired.is_empty()).then(|| now + Duration::from_secs(1));
        [sweep, forget].into_iter().flatten().min()
    }

    /// A worker has closed its descriptor of a socket.
    pub(super) fn handle_retired(&mut self, id: SocketId) {
        if let Some(retiring) = self.retiring.iter_mut().find(|retiring| retiring.id == id) {
            retiring.waits_for -= 1;
        }
        self.retiring.retain(|retiring| retiring.waits_for > 0);
    }

    /// The sockets in service that are ours alone.
    pub(super) fn own_sockets(&mut self) -> impl Iterator<Item = &mut Bound> {
        let listeners = self.in_service.values_mut();
        let sockets = listeners.flat_map(|listener| &mut listener.sockets);
        sockets
            .map(|socket| &mut socket.bound)
            .filter(|bound| bound.passed.is_none())
    }

    /// Whether no socket is on its way out any more.
    pub(super) fn all_retired(&self) -> bool {
        self.retiring.is_empty()
    }

    /// Connections of each listener, by name.
    pub(super) fn connections(&self) -> BTreeMap<String, u64> {
        self.in_service
            .iter()
            .map(|(name, listener)| (name.clone(), listener.totals().connections()))
            .collect()
    }

    /// The sum over all listeners that there are and were.
    pub(super) fn totals(&self) -> Totals {
        let mut totals = self.departed;
        self.all()
            .for_each(|listener| totals.add(&listener.totals()));
        totals
    }

    /// How many are in service.
    pub(super) fn count(&self) -> usize {
        self.in_service.len()
    }

    fn all(&self) -> impl Iterator<Item = &Listener> {
        self.in_service.values().chain(&self.retired)
    }

    /// The name and the protocol of a listener, in service or not.
    pub(super) fn describe(&self, id: ListenerId) -> Option<(&str, config::Protocol)> {
        let listener = self.all().find(|listener| listener.id == id)?;
        Some((&listener.config.name, listener.config.protocol))
    }

    /// Where a datagram came in: the address with the port, or the path.
    pub(super) fn describe_destination(&self, destination: Destination) -> Option<String> {
        let mut sockets = self.all().flat_map(|listener| &listener.sockets);
        let bound = &sockets
            .find(|socket| socket.id == destination.socket)?
            .bound;
        let Some(mut local) = socket::local_address(bound.fd.as_fd()) else {
            return Some(bound.address.to_string());
        };
        if let Some(address) = destination.address {
            local.set_ip(address);
        }
        Some(local.to_string())
    }

    /// The path of a Unix listener.
    pub(super) fn local_path(&self, id: ListenerId) -> Option<String> {
        let listener = self.all().find(|listener| listener.id == id)?;
        // Of sockets by name the configuration does not say where they are.
        let served = listener.sockets.first().map(|socket| &socket.bound.address);
        let address = served.or(listener.config.addresses.first())?;
        matches!(address, Address::Unix(_)).then(|| address.to_string())
    }

    /// Gives all sockets of a listener this backlog; how it was before, and how it is now.
    pub(super) fn set_backlog(
        &mut self,
        name: &str,
        backlog: u32,
    ) -> std::io::Result<(schema::Backlog, schema::Backlog)> {
        let Some(listener) = self.in_service.get_mut(name) else {
            return Ok(Default::default());
        };
        let queues = Queues::default();
        let before = listener.backlog(&queues).unwrap_or_default();
        for socket in &listener.sockets {
            socket::listen(socket.bound.fd.as_fd(), backlog)?;
        }
        listener.config.backlog = backlog;
        listener.config.backlog_is_set = true;
        if !listener.overridden.contains(&"backlog") {
            listener.overridden.push("backlog");
        }
        Ok((before, listener.backlog(&queues).unwrap_or_default()))
    }
}

fn changed_listeners<'a>(
    new: &'a Config,
    changes: &'a [Change],
) -> impl Iterator<Item = (&'a config::Listener, &'a Change)> {
    changes.iter().filter_map(|change| {
        let listener = new.listeners.get(change.listener.as_ref()?)?;
        matches!(change.action, Action::Add | Action::Rebind).then_some((listener, change))
    })
}

fn path(bound: &Bound) -> Option<PathBuf> {
    match &bound.address {
        Address::Unix(path) => Some(path.clone()),
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
    options: &Inherited,
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

/// Gives a listening socket the backlog that it is to have. One that was passed listens already.
fn listen(socket: &Bound, listener: &config::Listener) -> std::io::Result<()> {
    let has = socket.passed.and_then(|adopted| adopted.backlog);
    match passed::backlog(socket, listener) {
        Some(backlog) if socket.kind == SocketKind::Stream && has != Some(backlog) => {
            socket::listen(socket.fd.as_fd(), backlog)
        }
        _ => Ok(()),
    }
}

impl Serving {
    fn is_by_name(&self) -> bool {
        self.bound.passed.is_some_and(|adopted| adopted.by_name)
    }
}

impl Listener {
    fn has_sockets_by_name(&self) -> bool {
        self.sockets.iter().any(Serving::is_by_name)
    }

    /// The backlog of another configuration, where that is another one.
    fn set_backlog(&mut self, new: &config::Listener) {
        for socket in self.sockets.iter().map(|socket| &socket.bound) {
            let (before, after) = (
                passed::backlog(socket, &self.config),
                passed::backlog(socket, new),
            );
            if socket.kind == SocketKind::Stream
                && let Some(backlog) = after.filter(|_| after != before)
                && let Err(error) = socket::listen(socket.fd.as_fd(), backlog)
            {
                log::error!("listener \"{}\": backlog: {error}", new.name);
            }
        }
        self.config.backlog = new.backlog;
        self.config.backlog_is_set = new.backlog_is_set;
    }

    fn configure(&self, workers: &Workers) {
        workers.command_all(|worker| Command::Configure {
            listener: self.id,
            settings: settings(&self.config, self.source_ports.clone()),
            gate: Arc::clone(&self.gate),
            counters: Arc::clone(&self.counters[worker]),
        });
    }

    fn totals(&self) -> Totals {
        Totals::of(self.counters.iter().map(|counters| &**counters))
    }
}

fn settings(listener: &config::Listener, source_ports: SourcePorts) -> Settings {
    Settings {
        name: listener.name.clone(),
        reply: listener.reply,
        one_shot: listener.one_shot,
        timeouts: listener.timeouts,
        when_full: listener.when_full,
        max_per_source: listener.max_per_source,
        access: listener.access.clone(),
        source_ports,
    }
}
