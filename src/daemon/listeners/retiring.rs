//! Sockets that are being retired, found by their ids, by their addresses and by when they are due.
//!
//! Does nothing about them: that is `retire`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use crate::worker::mailbox::{SocketId, SocketKind};

use super::addresses::AddressIndex;

/// A socket that is served to its end.
#[derive(Debug, Default)]
pub(super) struct Retiring {
    /// Those that are to empty and close it, and have no command to do so yet.
    pub(super) workers: Vec<usize>,
    /// Of an Internet socket: a successor may have it already.
    pub(super) address: Option<(SocketKind, SocketAddr)>,
    /// New connections are directed to other sockets of the address.
    pub(super) is_directed: bool,
    /// Our descriptor, until the sweep, of one from which they are directed. All others are closed at
    /// once: the last descriptor is to be closed by a worker that has just emptied the queue.
    pub(super) directed: Option<OwnedFd>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct RetiringSockets {
    /// Each with the number of workers that have not yet reported it closed.
    by_id: BTreeMap<SocketId, (Retiring, usize)>,
    addresses: AddressIndex,
    due: BTreeSet<(Instant, SocketId)>,
}

impl RetiringSockets {
    /// Adds a socket that its workers are to empty and close then. One that some workers have left
    /// before is the same socket, and is closed when all of them have closed it.
    pub(super) fn add(&mut self, id: SocketId, retiring: Retiring, due: Instant) {
        if retiring.workers.is_empty() {
            return;
        }
        let (known, waits_for) = self.by_id.entry(id).or_default();
        *waits_for += retiring.workers.len();
        known.workers.extend(retiring.workers);
        if let Some((kind, local)) = retiring.address {
            self.addresses.insert(kind, local, id);
            known.address = retiring.address;
            known.is_directed = retiring.is_directed;
            known.directed = retiring.directed;
        }
        self.due.insert((due, id));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// When [`Self::take_due`] next returns one.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// A socket that is due, with the workers that are to empty it and our descriptor.
    pub(super) fn take_due(
        &mut self,
        now: Instant,
    ) -> Option<(SocketId, Vec<usize>, Option<OwnedFd>)> {
        self.due.first().filter(|(at, _)| *at <= now)?;
        let (_, id) = self.due.pop_first()?;
        let (known, _) = self.by_id.get_mut(&id)?;
        let workers = std::mem::take(&mut known.workers);
        Some((id, workers, known.directed.take()))
    }

    /// A worker has closed a socket. Returns its address if it was the last.
    pub(super) fn handle_closed(&mut self, id: SocketId) -> Option<(SocketKind, SocketAddr)> {
        let (_, waits_for) = self.by_id.get_mut(&id)?;
        *waits_for -= 1;
        if *waits_for > 0 {
            return None;
        }
        let (closed, _) = self.by_id.remove(&id)?;
        let (kind, local) = closed.address?;
        self.addresses.remove(kind, local, id);
        Some((kind, local))
    }

    /// Whether one of them is why the kernel refuses this address to another socket.
    pub(super) fn exclude(&self, kind: SocketKind, address: SocketAddr) -> bool {
        self.addresses.excluding(kind, address).next().is_some()
    }

    /// Whether new connections to this address are directed past one of them.
    pub(super) fn are_directed_at(&self, local: SocketAddr) -> bool {
        self.streams_at(local).any(|retiring| retiring.is_directed)
    }

    /// Our descriptors of those past which new connections to this address are directed.
    pub(super) fn directed_at(&self, local: SocketAddr) -> impl Iterator<Item = &OwnedFd> {
        let streams = self.streams_at(local);
        streams.filter_map(|retiring| retiring.directed.as_ref())
    }

    fn streams_at(&self, local: SocketAddr) -> impl Iterator<Item = &Retiring> {
        let ids = self.addresses.at(SocketKind::Stream, local);
        ids.filter_map(|id| self.by_id.get(&id))
            .map(|(retiring, _)| retiring)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ID: SocketId = SocketId(1);

    fn at(address: &str, workers: &[usize]) -> Retiring {
        Retiring {
            workers: workers.to_vec(),
            address: Some((SocketKind::Stream, address.parse().unwrap())),
            ..Retiring::default()
        }
    }

    #[test]
    fn a_socket_that_was_left_and_then_retired_is_closed_when_all_workers_have_closed_it() {
        let mut retiring = RetiringSockets::default();
        let now = Instant::now();
        let left = Retiring {
            workers: vec![1],
            ..Retiring::default()
        };
        retiring.add(ID, left, now);
        assert_eq!(retiring.take_due(now).unwrap().1, [1]);
        let later = now + Duration::from_millis(200);
        retiring.add(ID, at("127.0.0.1:7", &[0, 2]), later);
        assert!(retiring.take_due(now).is_none());
        assert_eq!(retiring.next_due(), Some(later));
        assert_eq!(retiring.take_due(later).unwrap().1, [0, 2]);
        assert_eq!(retiring.handle_closed(ID), None);
        assert_eq!(retiring.handle_closed(ID), None);
        assert!(!retiring.is_empty());
        let local = "127.0.0.1:7".parse().unwrap();
        let closed = retiring.handle_closed(ID);
        assert_eq!(closed, Some((SocketKind::Stream, local)));
        assert!(retiring.is_empty() && !retiring.exclude(SocketKind::Stream, local));
    }

    /// Sharing was permitted for the port alone: also with a socket of another address.
    #[test]
    fn a_socket_excludes_addresses_of_its_own_kind_that_it_has_or_overlaps() {
        let mut retiring = RetiringSockets::default();
        retiring.add(ID, at("127.0.0.1:7", &[0]), Instant::now());
        for (kind, address, is_excluded) in [
            (SocketKind::Stream, "127.0.0.1:7", true),
            (SocketKind::Stream, "0.0.0.0:7", true),
            (SocketKind::Stream, "127.0.0.2:7", false),
            (SocketKind::Stream, "[::]:7", false),
            (SocketKind::Datagram, "127.0.0.1:7", false),
        ] {
            let found = retiring.exclude(kind, address.parse().unwrap());
            assert_eq!(found, is_excluded, "{kind:?} {address}");
        }
    }
}
