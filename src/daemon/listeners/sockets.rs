//! The sockets in service, found by their ids, by their addresses and by their files.
//!
//! A lookup takes time in proportion to what it finds, not to the number of sockets: there may be
//! thousands, and a reload looks up each.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::config::Address;
use crate::daemon::socket_file::Identity;
use crate::worker::mailbox::{ListenerId, SocketId, SocketKind};

use super::addresses::AddressIndex;
use super::bind::Bound;

/// A socket in service.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) id: SocketId,
    pub(super) listener: ListenerId,
    /// The workers that serve it.
    pub(super) workers: Vec<usize>,
    pub(super) bound: Bound,
}

impl Socket {
    /// Whether a `.socket` unit has defined it by the listener's name.
    pub(super) fn is_by_name(&self) -> bool {
        self.bound.passed.is_some_and(|adopted| adopted.by_name)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    by_id: BTreeMap<SocketId, Socket>,
    addresses: AddressIndex,
    files: BTreeMap<Identity, SocketId>,
    /// Unix sockets whose files are not ours.
    paths: BTreeMap<PathBuf, SocketId>,
    /// The number of sockets that were looked at.
    #[cfg(test)]
    pub(super) visited: std::cell::Cell<usize>,
}

impl Sockets {
    pub(super) fn insert(&mut self, socket: Socket) {
        let (id, bound) = (socket.id, &socket.bound);
        if let Some(local) = bound.local {
            self.addresses.insert(bound.kind, local, id);
        }
        match (&bound.file, &bound.address) {
            (Some(file), _) => _ = self.files.insert(file.identity(), id),
            (None, Address::Unix(path)) => _ = self.paths.insert(path.clone(), id),
            (None, Address::Inet { .. }) => {}
        }
        self.by_id.insert(id, socket);
    }

    pub(super) fn remove(&mut self, id: SocketId) -> Option<Socket> {
        let socket = self.by_id.remove(&id)?;
        let bound = &socket.bound;
        if let Some(local) = bound.local {
            self.addresses.remove(bound.kind, local, id);
        }
        match (&bound.file, &bound.address) {
            (Some(file), _) => _ = self.files.remove(&file.identity()),
            (None, Address::Unix(path)) => _ = self.paths.remove(path),
            (None, Address::Inet { .. }) => {}
        }
        Some(socket)
    }

    pub(super) fn get(&self, id: SocketId) -> Option<&Socket> {
        self.by_id.get(&id).inspect(|_| self.count_visit())
    }

    #[cfg(test)]
    fn count_visit(&self) {
        self.visited.set(self.visited.get() + 1);
    }

    #[cfg(not(test))]
    fn count_visit(&self) {}

    /// All of them, in the order in which they were bound.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Socket> {
        self.by_id.values().inspect(|_| self.count_visit())
    }

    /// The same, for what is in no index.
    pub(super) fn bound_mut(&mut self) -> impl Iterator<Item = &mut Bound> {
        self.by_id.values_mut().map(|socket| &mut socket.bound)
    }

    /// Those that have this very address.
    pub(super) fn at(
        &self,
        kind: SocketKind,
        address: SocketAddr,
    ) -> impl Iterator<Item = &Socket> {
        self.of(self.addresses.at(kind, address))
    }

    /// Those for which the kernel refuses this address to another one.
    pub(super) fn excluding(
        &self,
        kind: SocketKind,
        address: SocketAddr,
    ) -> impl Iterator<Item = &Socket> {
        self.of(self.addresses.excluding(kind, address))
    }

    /// Those that have this port, at any address.
    pub(super) fn at_port(&self, kind: SocketKind, port: u16) -> impl Iterator<Item = &Socket> {
        self.of(self.addresses.at_port(kind, port))
    }

    fn of(&self, ids: impl Iterator<Item = SocketId>) -> impl Iterator<Item = &Socket> {
        ids.filter_map(|id| self.get(id))
    }

    /// The one that is bound to this file, by whatever path.
    pub(super) fn with_file(&self, file: Identity) -> Option<&Socket> {
        self.get(*self.files.get(&file)?)
    }

    /// The one that was bound to this path by another process.
    pub(super) fn passed_at(&self, path: &Path) -> Option<&Socket> {
        self.get(*self.paths.get(path)?)
    }
}
