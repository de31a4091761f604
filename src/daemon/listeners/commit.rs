//! The commit of a reload: what was prepared is put into service.
//!
//! Up to [`Listeners::bind_pending`](super::pending) nothing has changed; from then on nothing is
//! given up, and what can't be done, as a mode that can't be set, is a warning.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use crate::cli::text::cause;
use crate::config::{self, Change, ChangeAction, Config};
use crate::driver::Permits;
use crate::sys::socket;
use crate::worker::mailbox::{Command, Gate, ListenerId, SocketId, SocketKind};

use crate::daemon::workers::Workers;

use super::bind::{self, Bound};
use super::prepared::{Kept, Planned, Prepared};
use super::retire::Waiting;
use super::sockets::Socket;
use super::states::standing_for;
use super::{Listener, Listeners, Standing, Standings, add_to_workers, shortfall};

/// Sockets that are in service no more, until a listener takes them.
type Free = BTreeMap<SocketId, Socket>;

impl Listeners {
    /// Puts the new configuration into service. Returns warnings.
    ///
    /// # Errors
    /// All that is wrong; everything is then as it was.
    pub(in crate::daemon) fn commit(
        &mut self,
        mut prepared: Prepared,
        new: &Config,
        changes: &[Change],
        workers: &Workers,
        now: Instant,
    ) -> Result<Vec<String>, Vec<String>> {
        self.bind_pending(&mut prepared, new, workers.count())?;
        let mut warnings = Vec::new();
        // Before new sockets are served, so that no datagram from one of their ports is answered.
        self.refuse_own_ports(prepared.udp_ports(), workers);
        let standings = self.standings();
        let mut free = self.free_sockets(&prepared, new, changes);
        let first_new = self.next_socket;
        for change in changes {
            let listener = change.listener.as_ref();
            if let Some(listener) = listener.and_then(|name| new.listeners.get(name)) {
                let planned = prepared.sockets.remove(&listener.name);
                self.change(listener, change, &standings, workers, &mut warnings);
                for planned in planned.into_iter().flatten() {
                    self.serve_planned(listener, planned, &mut free, workers, now, &mut warnings);
                }
                warnings.extend(self.shortfalls(listener, change));
            }
        }
        warnings.extend(self.standing_warnings());
        self.refuse_own_ports([], workers);
        let new = (first_new..self.next_socket).map(SocketId);
        let is_shared = |socket: Option<&Socket>| {
            socket.is_some_and(|socket| socket::is_shared(socket.bound.fd.as_fd()))
        };
        warnings.extend(self.end_sharing(new.filter(|id| is_shared(self.sockets.get(*id)))));
        // They go when all that is new is there, so that an address which changes hands is never
        // without a socket.
        self.retire_sockets(free.into_values().collect(), now);
        self.sweep(workers, now);
        Ok(warnings)
    }

    /// Takes listeners out of service that are removed or change their protocol, and from all others
    /// the sockets that were planned anew.
    fn free_sockets(&mut self, prepared: &Prepared, new: &Config, changes: &[Change]) -> Free {
        let mut free = Vec::new();
        for name in changes.iter().filter_map(|change| change.listener.as_ref()) {
            let Some(old) = self.in_service.get_mut(name) else {
                continue;
            };
            let wanted = new.listeners.get(name).map(|new| new.protocol);
            if wanted != Some(old.config.protocol) {
                free.extend(self.take_out(name));
            } else if prepared.sockets.contains_key(name) {
                let is_by_name =
                    |id: &SocketId| self.sockets.get(*id).is_some_and(Socket::is_by_name);
                let freed = old.sockets.extract_if(.., |id| !is_by_name(id));
                let freed: Vec<SocketId> = freed.collect();
                free.extend(freed.into_iter().filter_map(|id| self.sockets.remove(id)));
            }
        }
        free.into_iter().map(|socket| (socket.id, socket)).collect()
    }

    /// Brings a listener into being, or its settings up to date, and those of the sockets that it
    /// keeps without a plan.
    fn change(
        &mut self,
        new: &config::Listener,
        change: &Change,
        standings: &Standings,
        workers: &Workers,
        warnings: &mut Vec<String>,
    ) {
        if !self.in_service.contains_key(&new.name) {
            // One that changes its protocol keeps its name, and with it its state.
            let standing = standings.get(&new.name).copied().unwrap_or_default();
            self.add(new, standing, workers);
            return;
        }
        let (own_ports, sockets) = (&self.own_ports, &self.sockets);
        let Some(known) = self.in_service.get_mut(&new.name) else {
            return;
        };
        // What was overridden at run time is as configured again, also where that is no change.
        known.overridden.clear();
        for socket in known.sockets.iter().filter_map(|id| sockets.get(*id)) {
            set_options(&socket.bound, Some(&known.config), new, warnings);
        }
        // Also of one that stays as it is: what it does not say may be written now.
        known.config = new.clone();
        if change.action != ChangeAction::Keep {
            known.source_ports = own_ports.source_ports(new);
            known.gate.permits.set_max(new.max_connections);
            known.configure(workers);
        }
    }

    fn add(&mut self, listener: &config::Listener, standing: Standing, workers: &Workers) {
        let id = ListenerId(self.next_listener);
        self.next_listener += 1;
        let permits = Permits::new(listener.max_connections, workers.wakers());
        let new = Listener {
            id,
            config: listener.clone(),
            source_ports: self.own_ports.source_ports(listener),
            gate: Arc::new(Gate::new(permits)),
            counters: (0..workers.count()).map(|_| Arc::default()).collect(),
            sockets: Vec::new(),
            overridden: Vec::new(),
            standing: standing_for(listener, standing),
        };
        new.configure(workers);
        self.put_into_service(new);
    }

    fn serve_planned(
        &mut self,
        listener: &config::Listener,
        planned: Planned,
        free: &mut Free,
        workers: &Workers,
        now: Instant,
        warnings: &mut Vec<String>,
    ) {
        match planned {
            Planned::New(mut bound) => {
                take_ownership(&mut bound, listener, warnings);
                let id = SocketId(self.next_socket);
                self.next_socket += 1;
                set_mode(&bound, listener, warnings);
                self.serve_as(&listener.name, id, bound, workers);
            }
            Planned::Kept(kept) => {
                if let Some(socket) = free.remove(&kept.id) {
                    set_options(&socket.bound, None, listener, warnings);
                    self.serve_kept(&listener.name, socket, kept, workers, now);
                }
            }
            Planned::Pending(_) => unreachable!("it was bound at the beginning of the commit"),
        }
    }

    /// Hands a new socket to its workers.
    pub(super) fn serve_as(
        &mut self,
        name: &str,
        id: SocketId,
        mut bound: Bound,
        workers: &Workers,
    ) {
        let Some(listener) = self.in_service.get_mut(name) else {
            return;
        };
        let handles = std::mem::take(&mut bound.handles);
        let socket = Socket {
            id,
            listener: listener.id,
            workers: handles.iter().map(|(worker, _)| *worker).collect(),
            bound,
        };
        listener.sockets.push(id);
        match socket.bound.waits_at() {
            None => add_to_workers(&socket, handles, workers),
            Some(local) => {
                let waiting = self.waiting.entry(local).or_default();
                waiting.push(Waiting { id, handles });
            }
        }
        self.sockets.insert(socket);
    }

    /// Makes a socket in service one of this listener, with other workers where that is planned.
    fn serve_kept(
        &mut self,
        name: &str,
        mut socket: Socket,
        kept: Kept,
        workers: &Workers,
        now: Instant,
    ) {
        let Some(listener) = self.in_service.get_mut(name) else {
            return;
        };
        listener.sockets.push(socket.id);
        socket.listener = listener.id;
        if let Some(file) = &mut socket.bound.file
            && let config::Address::Unix(path) = &kept.address
        {
            file.set_path(path.clone());
        }
        socket.bound.address = kept.address;
        // What the workers that leave it still accept counts for the listener before: the queue is
        // emptied as that of a retired socket.
        socket
            .workers
            .retain(|worker| !kept.leaving.contains(worker));
        for worker in &socket.workers {
            let (id, listener) = (socket.id, socket.listener);
            workers.command(*worker, Command::MoveSocket { id, listener });
        }
        let new = kept.handles.iter().map(|(worker, _)| *worker);
        socket.workers.extend(new);
        match self.waiting_mut(&socket) {
            None => add_to_workers(&socket, kept.handles, workers),
            Some(waiting) => {
                let leaves = |handle: &mut (usize, _)| kept.leaving.contains(&handle.0);
                waiting.handles.extract_if(.., leaves).for_each(drop);
                waiting.handles.extend(kept.handles);
            }
        }
        let id = socket.id;
        self.sockets.insert(socket);
        self.leave_socket(id, kept.leaving, now);
    }

    /// What the kernel does not give in full of what the listener asks for anew.
    fn shortfalls(&self, listener: &config::Listener, change: &Change) -> Vec<String> {
        let asks = |key: &&str| matches!(*key, "backlog" | "receive-buffer");
        let is_asked = match change.action {
            ChangeAction::Add | ChangeAction::Rebind => true,
            ChangeAction::Update => change.keys.iter().any(|key| asks(&&**key)),
            ChangeAction::Keep | ChangeAction::Remove => false,
        };
        let known = self.in_service.get(&listener.name).filter(|_| is_asked);
        known.map_or_else(Vec::new, |known| {
            let bound = self.sockets_of(known).map(|socket| &socket.bound);
            shortfall::shortfalls(listener, bound)
        })
    }
}

/// Gives a socket in service the options of its listener that differ from its old ones; all of them
/// where those are not known.
fn set_options(
    socket: &Bound,
    old: Option<&config::Listener>,
    new: &config::Listener,
    warnings: &mut Vec<String>,
) {
    let mut warn = |what: &str, error: std::io::Error| {
        let (name, address) = (&new.name, &socket.address);
        let cause = cause(&error);
        warnings.push(format!("listener \"{name}\": {address}: {what}: {cause}"));
    };
    let options = bind::inherited(new);
    // Those of a socket that the service manager has passed may have been set by its unit.
    let leaves = |before: Option<Option<u32>>, now: Option<u32>| {
        now.is_none() && before.map_or(socket.passed.is_none(), |before| before.is_some())
    };
    let before = old.map(bind::inherited);
    let receive = leaves(before.map(|old| old.receive_buffer), options.receive_buffer);
    let send = leaves(before.map(|old| old.send_buffer), options.send_buffer);
    if let Err(error) = socket::leave_buffers_to_kernel(socket.fd.as_fd(), receive, send) {
        warn("buffers are not left to the kernel", error);
    }
    if old.is_none_or(|old| bind::inherited(old) != options)
        && let Err(error) = socket::set_inherited(socket.fd.as_fd(), &options)
    {
        warn("socket options are not set", error);
    }
    let backlog = socket.backlog(new);
    // One that waits to listen gets it then.
    if socket.kind == SocketKind::Stream
        && let Some(requested) =
            backlog.filter(|_| old.map(|old| socket.backlog(old)) != Some(backlog))
        && socket::is_listening(socket.fd.as_fd())
        && let Err(error) = socket::listen(socket.fd.as_fd(), requested)
    {
        warn("backlog is not set", error);
    }
    if old.is_none_or(|old| old.mode != new.mode) {
        set_mode(socket, new, warnings);
    }
}

/// Changes what a rejected reload must leave as it was: the file of a predecessor's socket, a stale one
/// in place of which a socket was bound, and the backlog of a passed one.
fn take_ownership(new: &mut Bound, listener: &config::Listener, warnings: &mut Vec<String>) {
    if let Some(file) = &mut new.file {
        file.keep();
    }
    if new.passed.is_some()
        && let Err(error) = new.listen(listener)
    {
        let (name, address) = (&listener.name, &new.address);
        warnings.push(format!(
            "listener \"{name}\": {address}: backlog is not set: {}",
            cause(&error)
        ));
    }
}

/// Permits others to connect to a Unix socket, as configured. That its file is gone was reported when
/// it was not made anew.
fn set_mode(socket: &Bound, listener: &config::Listener, warnings: &mut Vec<String>) {
    if let Some(file) = socket.file.as_ref().filter(|file| file.is_in_place())
        && let Err(error) = file.set_mode(listener.mode)
    {
        let (name, address, mode) = (&listener.name, &socket.address, listener.mode);
        warnings.push(format!(
            "listener \"{name}\": {address}: mode {mode:04o} is not set: {}",
            cause(&error)
        ));
    }
}
