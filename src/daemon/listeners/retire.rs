//! Sockets that are no longer wanted: no client reaches them any more, all that is queued on them is
//! served, then they are closed.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::config;
use crate::sys::socket;
use crate::worker::mailbox::{Command, SocketId, SocketKind};

use crate::daemon::workers::Workers;

use super::bind::Bound;
use super::{Listeners, Socket, add_to_workers};

/// Between the last SYN that a socket takes and the sweep that empties its queue, so that
/// handshakes which are under way arrive there: a long round trip.
const HANDSHAKE: Duration = Duration::from_millis(200);

/// A socket that is served to its end.
#[derive(Debug)]
pub(super) struct Retiring {
    id: SocketId,
    workers: Vec<usize>,
    // Of an Internet socket: a successor may have it already.
    local: Option<SocketAddr>,
    // New connections are directed to other sockets of the address.
    is_directed: bool,
    // Our descriptor, until the sweep, of one from which they are directed. All others are closed at
    // once: the last descriptor is to be closed by a worker that has just emptied the queue.
    directed: Option<OwnedFd>,
    // When its workers are to empty it; none once they have the command.
    sweep_at: Option<Instant>,
    // Workers that have not yet reported it closed.
    waits_for: usize,
}

/// A listening socket for an address at which others are being retired: it joins the kernel's group
/// of them when they are closed. The kernel moves its last socket to the place of one that is
/// closed, and directing connections relies on the order.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) id: SocketId,
    pub(super) local: SocketAddr,
    /// For the workers that are to serve it.
    pub(super) handles: Vec<(usize, OwnedFd)>,
}

impl Retiring {
    fn new(id: SocketId, workers: Vec<usize>, sweep_at: Instant) -> Self {
        Self {
            id,
            waits_for: workers.len(),
            workers,
            local: None,
            is_directed: false,
            directed: None,
            sweep_at: Some(sweep_at),
        }
    }
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
        let sockets = std::mem::take(&mut listener.sockets);
        self.retired.push(listener);
        sockets
    }

    /// Retires these sockets, which are in service no more.
    pub(super) fn retire_sockets(&mut self, sockets: Vec<Socket>, now: Instant) {
        for Socket { id, workers, bound } in sockets {
            self.waiting.retain(|waiting| waiting.id != id);
            let mut retiring = Retiring::new(id, workers, now);
            // What the service manager passed it will pass again, so it must stay as it is; clients
            // that are queued there then are served then.
            if bound.passed.is_none()
                && let Some(local) = bound.local()
            {
                retiring.local = Some(local);
                if bound.kind == SocketKind::Stream {
                    retiring.sweep_at = Some(now + HANDSHAKE);
                }
                match self.turn_clients_away(&bound, local) {
                    Ok(true) => {
                        retiring.is_directed = true;
                        retiring.directed = bound.fd.try_clone().ok();
                    }
                    Ok(false) => {}
                    Err(error) => log::warn!("{}: clients may be lost: {error}", bound.address),
                }
            }
            // With it goes the file of a Unix socket, so that no new client finds it. That of a
            // successor is not touched.
            drop(bound);
            self.retiring.push(retiring);
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
        let before = self
            .retiring
            .iter()
            .filter(|retiring| retiring.local == Some(local));
        for directed in before.filter_map(|retiring| retiring.directed.as_ref()) {
            socket::drop_new_connections(directed.as_fd())?;
        }
        shared.and(socket::drop_new_connections(fd)).map(|()| false)
    }

    /// The sockets in service that listen at this address.
    fn listening_at(&self, local: SocketAddr) -> impl Iterator<Item = &Bound> {
        let streams = self.sockets().map(|socket| &socket.bound);
        let streams = streams.filter(|bound| bound.kind == SocketKind::Stream);
        streams.filter(move |bound| {
            bound.local() == Some(local) && socket::is_listening(bound.fd.as_fd())
        })
    }

    /// Whether a new socket has to wait before it listens at this address: see [`Waiting`].
    pub(super) fn has_to_wait_at(&self, local: SocketAddr) -> bool {
        let mut retiring = self.retiring.iter();
        retiring.any(|retiring| retiring.local == Some(local) && retiring.is_directed)
    }

    /// Has some of its workers serve a socket no more that stays in service.
    pub(super) fn leave_socket(&mut self, id: SocketId, workers: Vec<usize>, now: Instant) {
        if !workers.is_empty() {
            self.retiring.push(Retiring::new(id, workers, now));
        }
    }

    /// Has workers empty and close the sockets that are due.
    pub(in crate::daemon) fn sweep(&mut self, workers: &Workers, now: Instant) {
        for retiring in &mut self.retiring {
            if retiring.sweep_at.is_some_and(|at| at <= now) {
                retiring.sweep_at = None;
                if let Some(directed) = retiring.directed.take() {
                    // In case the others are removed before it is closed.
                    let _ = socket::drop_new_connections(directed.as_fd());
                }
                for worker in &retiring.workers {
                    workers.command(*worker, Command::RetireSocket { id: retiring.id });
                }
            }
        }
        // A socket that is served to its end may still bring connections.
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
    pub(in crate::daemon) fn next_sweep(&self, now: Instant) -> Option<Instant> {
        let sweep = self
            .retiring
            .iter()
            .filter_map(|retiring| retiring.sweep_at)
            .min();
        // Connections of retired listeners end at any time; it is enough to notice soon.
        let forget = (!self.retired.is_empty()).then(|| now + Duration::from_secs(1));
        [sweep, forget].into_iter().flatten().min()
    }

    /// A worker has closed its descriptor of a socket.
    pub(in crate::daemon) fn handle_retired(&mut self, id: SocketId, workers: &Workers) {
        if let Some(retiring) = self.retiring.iter_mut().find(|retiring| retiring.id == id) {
            retiring.waits_for -= 1;
        }
        let closed: Vec<Retiring> = self
            .retiring
            .extract_if(.., |retiring| retiring.waits_for == 0)
            .collect();
        for local in closed.into_iter().filter_map(|closed| closed.local) {
            if !self.has_to_wait_at(local) {
                self.complete_group(local, workers);
            }
        }
    }

    /// All sockets at this address that were retired beside others are closed: all that are left
    /// receive connections again, and those that have waited listen.
    fn complete_group(&mut self, local: SocketAddr, workers: &Workers) {
        if let Some(bound) = self.listening_at(local).next() {
            socket::direct_to_all(bound.fd.as_fd());
        }
        for waiting in self
            .waiting
            .extract_if(.., |waiting| waiting.local == local)
        {
            for listener in self.in_service.values() {
                let mut sockets = listener.sockets.iter();
                let Some(socket) = sockets.find(|socket| socket.id == waiting.id) else {
                    continue;
                };
                match socket.bound.listen(&listener.config) {
                    Ok(()) => {
                        add_to_workers(listener.id, socket, waiting.handles, workers);
                    }
                    Err(error) => {
                        let name = &listener.config.name;
                        log::error!("listener \"{name}\": listen on {local}: {error}");
                    }
                }
                break;
            }
        }
    }

    /// Whether no socket is being retired any more.
    pub(in crate::daemon) fn all_retired(&self) -> bool {
        self.retiring.is_empty()
    }

    /// The ports that sockets which are being retired still have.
    pub(super) fn retired_ports(&self) -> Vec<u16> {
        let local = self.retiring.iter().filter_map(|retiring| retiring.local);
        local.map(|local| local.port()).collect()
    }
}
