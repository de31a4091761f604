//! Sockets that are no longer wanted: no client reaches them any more, all that is queued on them is
//! served, then they are closed.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::config;
use crate::sys::socket;
use crate::worker::mailbox::{Command, SocketId, SocketKind};

use crate::daemon::workers::Workers;

use super::bind::Bound;
use super::{Listeners, Socket};

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
    // New connections go to this many other sockets of the address, the oldest ones.
    directed_to: Option<usize>,
    // When its workers are to empty it; none once they were told.
    sweep_at: Option<Instant>,
    // Workers that have not yet reported it closed.
    waits_for: usize,
}

impl Retiring {
    fn new(id: SocketId, workers: Vec<usize>, sweep_at: Instant) -> Self {
        Self {
            id,
            waits_for: workers.len(),
            workers,
            local: None,
            directed_to: None,
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
            let mut retiring = Retiring::new(id, workers, now);
            // What the service manager passed it will pass again, so it must stay as it is; clients
            // that are queued there then are served then.
            if bound.passed.is_none()
                && let Some(local) = bound.local()
            {
                retiring.local = Some(local);
                retiring.directed_to = self.turn_clients_away(&bound, local);
                if bound.kind == SocketKind::Stream {
                    retiring.sweep_at = Some(now + HANDSHAKE);
                }
            }
            // Two things end here. A Unix socket loses its file, so no new client finds it; that of
            // a successor is not touched. And our descriptor is closed: the last one is to be
            // closed by a worker that has just emptied the queue.
            drop(bound);
            self.retiring.push(retiring);
        }
    }

    /// Has no new client reach this socket; other sockets of its address get them. Returns to how
    /// many of these they were directed.
    fn turn_clients_away(&self, bound: &Bound, local: SocketAddr) -> Option<usize> {
        let fd = bound.fd.as_fd();
        let mut directed_to = None;
        // The address may be wanted again before this one is gone.
        let mut result = socket::set_shared(fd, true);
        match bound.kind {
            SocketKind::Datagram => result = result.and(socket::turn_away_datagrams(fd)),
            SocketKind::Stream => {
                let count = self.count_at(local);
                if count > 0 {
                    // Another reload may have directed them to fewer.
                    let before = self
                        .retiring
                        .iter()
                        .filter(|other| other.local == Some(local));
                    let before = before.filter_map(|other| other.directed_to).min();
                    let count = before.map_or(count, |before| before.min(count));
                    directed_to = Some(count);
                    result = result.and(socket::direct_to_first(fd, count as u32));
                }
                result = result.and(socket::drop_new_connections(fd));
            }
        }
        if let Err(error) = result {
            log::warn!("{}: clients may be lost: {error}", bound.address);
        }
        directed_to
    }

    /// How many listening sockets in service have this address.
    fn count_at(&self, local: SocketAddr) -> usize {
        let streams = self.sockets().map(|socket| &socket.bound);
        let streams = streams.filter(|bound| bound.kind == SocketKind::Stream);
        streams.filter(|bound| bound.local() == Some(local)).count()
    }

    /// Has some of its workers serve a socket no more that stays in service.
    pub(super) fn leave_socket(&mut self, id: SocketId, workers: Vec<usize>, now: Instant) {
        if !workers.is_empty() {
            self.retiring.push(Retiring::new(id, workers, now));
        }
    }

    /// Tells workers to empty and close the sockets whose time has come.
    pub(in crate::daemon) fn sweep(&mut self, workers: &Workers, now: Instant) {
        for retiring in &mut self.retiring {
            if retiring.sweep_at.is_some_and(|at| at <= now) {
                retiring.sweep_at = None;
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
    pub(in crate::daemon) fn handle_retired(&mut self, id: SocketId) {
        if let Some(retiring) = self.retiring.iter_mut().find(|retiring| retiring.id == id) {
            retiring.waits_for -= 1;
        }
        let closed: Vec<Retiring> = self
            .retiring
            .extract_if(.., |retiring| retiring.waits_for == 0)
            .collect();
        for local in closed.iter().filter(|closed| closed.directed_to.is_some()) {
            // All sockets that are left at the address take clients again, also new ones.
            let is_there = |other: &Retiring| other.local == local.local;
            if !self.retiring.iter().any(is_there)
                && let Some(socket) = self.sockets().find(|socket| {
                    socket.bound.kind == SocketKind::Stream && socket.bound.local() == local.local
                })
            {
                socket::direct_to_all(socket.bound.fd.as_fd());
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
