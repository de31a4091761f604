//! Sockets that are no longer wanted: no client reaches them any more, all that is queued on them is
//! served, then they are closed.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::cli::text::cause;
use crate::config;
use crate::sys::socket;
use crate::worker::mailbox::{Command, ListenerId, SocketId, SocketKind};

use crate::daemon::workers::Workers;

use super::bind::Bound;
use super::retiring::Retiring;
use super::sockets::Socket;
use super::{Listeners, add_to_workers};

/// Between the last SYN that a socket takes and the sweep that empties its queue, so that
/// handshakes which are under way arrive there: a long round trip.
const HANDSHAKE: Duration = Duration::from_millis(200);

/// How often to check whether retired listeners still have connections, which end at any time.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A listening socket for an address at which others are being retired: it joins the kernel's group
/// of them when they are closed. The kernel moves its last socket to the place of one that is
/// closed, and directing connections relies on the order.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) id: SocketId,
    /// For the workers that are to serve it.
    pub(super) handles: Vec<(usize, OwnedFd)>,
}

impl Listeners {
    /// Takes everything out of service.
    pub(in crate::daemon) fn retire_all(&mut self, workers: &Workers, now: Instant) {
        self.retire(|_| true, workers, now);
    }

    /// Takes all listeners of streams out of service.
    pub(in crate::daemon) fn retire_streams(&mut self, workers: &Workers, now: Instant) {
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

    /// Takes a listener out of service; its sockets are to be retired.
    pub(super) fn take_out(&mut self, name: &str) -> Vec<Socket> {
        let Some(mut listener) = self.in_service.remove(name) else {
            return Vec::new();
        };
        self.names.remove(&listener.id);
        let ids = std::mem::take(&mut listener.sockets);
        self.unasked.push(listener.id);
        self.retired.insert(listener.id, listener);
        ids.into_iter()
            .filter_map(|id| self.sockets.remove(id))
            .collect()
    }

    /// Retires these sockets, which are in service no more.
    pub(super) fn retire_sockets(&mut self, sockets: Vec<Socket>, now: Instant) {
        for socket in sockets {
            self.take_waiting(&socket);
            let Socket {
                id, workers, bound, ..
            } = socket;
            let mut retiring = Retiring {
                workers,
                ..Retiring::default()
            };
            let mut due = now;
            // What the service manager passed it will pass again, so it must stay as it is; clients
            // that are queued there then are served then.
            if bound.passed.is_none()
                && let Some(local) = bound.local
            {
                retiring.address = Some((bound.kind, local));
                if bound.kind == SocketKind::Stream {
                    due = now + HANDSHAKE;
                }
                match self.turn_clients_away(&bound, local) {
                    Ok(true) => {
                        retiring.is_directed = true;
                        retiring.directed = bound.fd.try_clone().ok();
                    }
                    Ok(false) => {}
                    Err(error) => {
                        log::warn!("{}: clients may be lost: {}", bound.address, cause(&error))
                    }
                }
            }
            // With it goes the file of a Unix socket, so that no new client finds it. That of a
            // successor is not touched.
            drop(bound);
            self.retiring.add(id, retiring, due);
        }
    }

    /// Has no new client reach this socket; other sockets of its address get them. Returns whether
    /// connections were directed to these, so that the socket itself need not be changed.
    fn turn_clients_away(&self, bound: &Bound, local: SocketAddr) -> io::Result<bool> {
        let fd = bound.fd.as_fd();
        // The address may be wanted again before this one is gone.
        let shared = socket::set_shared(fd, true);
        if bound.kind == SocketKind::Datagram {
            return shared.and(socket::drop_new_datagrams(fd)).map(|()| false);
        }
        let others = self.listening_at(local).count();
        if others > 0 && socket::direct_to_first(fd, others as u32).is_ok() {
            return shared.map(|()| true);
        }
        // It is the last one: what was directed to it must not return to those before.
        for directed in self.retiring.directed_at(local) {
            socket::drop_new_connections(directed.as_fd())?;
        }
        shared.and(socket::drop_new_connections(fd)).map(|()| false)
    }

    /// The sockets in service that listen at this address.
    fn listening_at(&self, local: SocketAddr) -> impl Iterator<Item = &Bound> {
        let streams = self.sockets.at(SocketKind::Stream, local);
        let streams = streams.map(|socket| &socket.bound);
        streams.filter(|bound| socket::is_listening(bound.fd.as_fd()))
    }

    /// Whether a new socket has to wait before it listens at this address: see [`Waiting`]. Without one
    /// that listens there, clients would be refused until then.
    pub(super) fn has_to_wait_at(&self, local: SocketAddr) -> bool {
        self.retiring.are_directed_at(local) && self.listening_at(local).next().is_some()
    }

    /// What is known of a socket that waits to listen.
    pub(super) fn waiting_mut(&mut self, socket: &Socket) -> Option<&mut Waiting> {
        let mut waiting = self.waiting.get_mut(&socket.bound.local?)?.iter_mut();
        waiting.find(|waiting| waiting.id == socket.id)
    }

    /// Has a socket wait no more.
    fn take_waiting(&mut self, socket: &Socket) {
        if let Some(local) = socket.bound.local
            && let Some(waiting) = self.waiting.get_mut(&local)
        {
            waiting.retain(|waiting| waiting.id != socket.id);
            if waiting.is_empty() {
                self.waiting.remove(&local);
            }
        }
    }

    /// Has some of its workers serve a socket no more that stays in service.
    pub(super) fn leave_socket(&mut self, id: SocketId, workers: Vec<usize>, now: Instant) {
        let retiring = Retiring {
            workers,
            ..Retiring::default()
        };
        self.retiring.add(id, retiring, now);
    }

    /// Has workers empty and close the sockets that are due.
    pub(in crate::daemon) fn sweep(&mut self, workers: &Workers, now: Instant) {
        while let Some((id, servers, directed)) = self.retiring.take_due(now) {
            if let Some(directed) = directed {
                // In case the others are removed before it is closed.
                let _ = socket::drop_new_connections(directed.as_fd());
            }
            for worker in servers {
                workers.command(worker, Command::RetireSocket { id });
            }
        }
        // A socket that is served to its end may still bring connections.
        if !self.retiring.is_empty() {
            return;
        }
        // So may one that passes to another listener, until its workers have the command.
        for id in std::mem::take(&mut self.unasked) {
            self.unconfirmed.insert(id, workers.count());
            workers.command_all(|_| Command::ConfirmRetired { listener: id });
        }
        if self.next_check.is_none_or(|at| at <= now) {
            self.forget_retired(workers);
            self.next_check = Some(now + CHECK_INTERVAL);
        }
    }

    /// A worker has no socket of a listener any more.
    pub(in crate::daemon) fn handle_listener_retired(&mut self, id: ListenerId) {
        if let Some(waits_for) = self.unconfirmed.get_mut(&id) {
            *waits_for -= 1;
            if *waits_for == 0 {
                self.unconfirmed.remove(&id);
                self.next_check = None;
            }
        }
    }

    /// Forgets the retired listeners that have no connections any more.
    fn forget_retired(&mut self, workers: &Workers) {
        self.retired.retain(|id, listener| {
            let totals = listener.totals();
            // One that a worker has not confirmed may get a connection in this moment.
            let has_connections = self.unconfirmed.contains_key(id) || totals.connections() > 0;
            if !has_connections {
                self.departed.add(&totals);
                workers.command_all(|_| Command::RemoveListener { listener: *id });
            }
            has_connections
        });
    }

    /// When [`Self::sweep`] is next due.
    pub(in crate::daemon) fn next_sweep(&self, now: Instant) -> Option<Instant> {
        let has_retired = !self.retired.is_empty() && self.retiring.is_empty();
        let check = has_retired.then(|| self.next_check.unwrap_or(now));
        [self.retiring.next_due(), check]
            .into_iter()
            .flatten()
            .min()
    }

    /// A worker has closed its descriptor of a socket.
    pub(in crate::daemon) fn handle_retired(&mut self, id: SocketId, workers: &Workers) {
        let Some((kind, local)) = self.retiring.handle_closed(id) else {
            return;
        };
        if kind == SocketKind::Stream && !self.has_to_wait_at(local) {
            self.complete_group(local, workers);
        }
        if !self.retiring.exclude(kind, local) {
            let left = self.sockets.excluding(kind, local);
            for warning in self.end_sharing(left.map(|socket| socket.id)) {
                log::warn!("{warning}");
            }
        }
    }

    /// No other process can bind the addresses of these sockets any more and get a part of their
    /// clients, unless they have several sockets: those share them for good. Returns a warning for
    /// each that stays open.
    pub(super) fn end_sharing(&self, ids: impl Iterator<Item = SocketId>) -> Vec<String> {
        let sockets = ids.filter_map(|id| self.sockets.get(id));
        let own = sockets.filter(|Socket { bound, .. }| {
            let at = |local| self.sockets.at(bound.kind, local).count();
            let is_alone = bound.local.is_some_and(|local| at(local) == 1);
            is_alone && bound.passed.is_none() && bound.waits_at().is_none()
        });
        own.filter_map(|socket| self.end_sharing_of(socket))
            .collect()
    }

    /// The same of one socket.
    pub(super) fn end_sharing_of(&self, socket: &Socket) -> Option<String> {
        let Socket { bound, .. } = socket;
        let port = bound.local?.port();
        let neighbors = self.sockets.at_port(bound.kind, port);
        let neighbors = neighbors.map(|neighbor| neighbor.bound.fd.as_fd());
        let error = socket::end_sharing(bound.fd.as_fd(), neighbors).err()?;
        let name = &self.listener(socket.listener)?.config.name;
        Some(format!(
            "listener \"{name}\": {}: other processes of the daemon's user can still bind this \
             address and take clients, until a restart: {}",
            bound.address,
            cause(&error)
        ))
    }

    /// All sockets at this address that were retired beside others are closed: all that are left
    /// receive connections again, and those that have waited listen.
    fn complete_group(&mut self, local: SocketAddr, workers: &Workers) {
        if let Some(bound) = self.listening_at(local).next() {
            socket::direct_to_all(bound.fd.as_fd());
        }
        for waiting in self.waiting.remove(&local).into_iter().flatten() {
            let socket = self.sockets.get(waiting.id);
            let listener = socket.and_then(|socket| self.listener(socket.listener));
            let Some((socket, listener)) = socket.zip(listener) else {
                continue;
            };
            match socket.bound.listen(&listener.config) {
                Ok(()) => add_to_workers(socket, waiting.handles, workers),
                Err(error) => {
                    let name = &listener.config.name;
                    log::error!("listener \"{name}\": listen on {local}: {}", cause(&error));
                }
            }
        }
    }

    /// Whether no socket is being retired any more.
    pub(in crate::daemon) fn all_retired(&self) -> bool {
        self.retiring.is_empty()
    }
}
