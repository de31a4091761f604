//! Listening sockets that the service manager keeps for whoever comes after us, also after a crash
//! (`sd_pid_notify_with_fds(3)`, `FileDescriptorStoreMax=`).
//!
//! The manager's list follows ours: what is bound is kept, what a reload removes is let go, so that
//! it never comes back. Each socket has a name of its own there, for the manager drops by name.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

use crate::config::{self, Address, Config};
use crate::sys::process::Passed;
use crate::sys::socket;

use crate::daemon::Daemon;
use crate::daemon::listeners::bind::{self, Bound, SocketFile};
use crate::daemon::systemd::notify::Manager;

/// Names of sockets in the store begin so, and end with a number.
const PREFIX: &str = "echod-socket-";

/// The name of sockets that the manager does not keep: they were in a legacy that can't be read.
const LEFT: &str = "echod-left";

/// What the manager keeps.
#[derive(Debug, Default)]
pub(crate) struct Store {
    kept: BTreeSet<String>,
    last: u64,
}

/// Sockets of a predecessor that has left nothing else.
#[derive(Debug, Default)]
pub(crate) struct Survivors(Vec<Passed>);

/// The names of those that the manager keeps, out of all that it has passed.
pub(crate) fn names(passed: &[Passed]) -> impl Iterator<Item = String> {
    let names = passed.iter().map(|passed| &passed.name);
    names.filter(|name| is_ours(name)).cloned()
}

fn is_ours(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .is_some_and(|number| number.parse::<u64>().is_ok())
}

/// Those that serve an address of this configuration. The others are closed: our own control socket
/// would be taken for that of a running daemon.
pub(crate) fn left_behind(descriptors: Vec<OwnedFd>, config: &Config) -> Vec<Passed> {
    let is_wanted = |fd: &OwnedFd| {
        config.listeners.values().any(|listener| {
            let mut addresses = listener.addresses.iter();
            addresses.any(|address| serves(fd, listener, address))
        })
    };
    let wanted = descriptors.into_iter().filter(is_wanted);
    let named = wanted.map(|fd| Passed {
        name: LEFT.into(),
        fd,
    });
    named.collect()
}

impl Store {
    /// The manager keeps what has these names.
    pub(crate) fn know(&mut self, names: impl IntoIterator<Item = String>) {
        for name in names {
            let number = name.strip_prefix(PREFIX).and_then(|text| text.parse().ok());
            self.last = self.last.max(number.unwrap_or(0));
            self.kept.insert(name);
        }
    }

    /// Has it keep these sockets, and nothing else.
    pub(crate) fn update<'a>(
        &mut self,
        sockets: impl Iterator<Item = &'a mut Bound>,
        manager: &Manager,
    ) {
        let mut wanted = BTreeSet::new();
        for socket in sockets {
            let name = socket.stored.get_or_insert_with(|| {
                self.last += 1;
                format!("{PREFIX}{}", self.last)
            });
            if !self.kept.contains(name) {
                match socket.fd.try_clone() {
                    Ok(fd) => manager.keep(name, vec![fd]),
                    Err(error) => {
                        log::warn!("{}: not kept over a crash: {error}", socket.address);
                    }
                }
            }
            wanted.insert(name.clone());
        }
        for name in self.kept.difference(&wanted) {
            manager.let_go(name);
        }
        self.kept = wanted;
    }
}

impl Survivors {
    /// Takes them out of what was passed.
    pub(crate) fn take(passed: &mut Vec<Passed>) -> Self {
        Self(
            passed
                .extract_if(.., |passed| is_ours(&passed.name) || passed.name == LEFT)
                .collect(),
        )
    }

    /// Those that serve this address of a listener.
    pub(crate) fn take_at(
        &mut self,
        listener: &config::Listener,
        address: &Address,
        workers: usize,
    ) -> Vec<Bound> {
        let found: Vec<Passed> = self
            .0
            .extract_if(.., |passed| serves(&passed.fd, listener, address))
            .collect();
        let count = found.len();
        let mut bound = Vec::new();
        for (index, passed) in found.into_iter().enumerate() {
            let inherited = bind::inherited(listener);
            let set = socket::set_inherited(passed.fd.as_fd(), &inherited);
            let restored = set.and_then(|()| {
                let place = (index, count);
                bind::restore(listener, address.clone(), passed.fd, place, workers)
            });
            match restored {
                Ok(restored) => bound.push(Bound {
                    file: file(address),
                    stored: Some(passed.name).filter(|name| is_ours(name)),
                    ..restored
                }),
                Err(error) => log::error!(
                    listener = listener.name.as_str();
                    "listener \"{}\": {address}: the predecessor's socket: {error}",
                    listener.name
                ),
            }
        }
        bound
    }
}

/// Whether clients of this address find the socket.
fn serves(fd: &OwnedFd, listener: &config::Listener, address: &Address) -> bool {
    let fd = fd.as_fd();
    let is_there = match address {
        Address::Inet { address, .. } => socket::local_address(fd) == Some(*address),
        Address::Unix(path) => socket::local_path(fd).as_ref() == Some(path) && path.exists(),
    };
    is_there
        && socket::kind(fd) == Some(bind::kinds(listener.protocol).1)
        && socket::is_bound(fd)
        && !socket::drops_all_new(fd)
}

fn file(address: &Address) -> Option<SocketFile> {
    match address {
        Address::Inet { .. } => None,
        Address::Unix(path) => SocketFile::at(path),
    }
}

impl Daemon {
    /// Has the service manager keep what is bound, if it keeps anything.
    pub(crate) fn update_store(&mut self) {
        if let Some(manager) = self.manager.as_ref().filter(|manager| manager.keeps()) {
            self.store.update(self.listeners.own_sockets(), manager);
        }
    }

    /// Has it keep nothing any more: nobody comes after us.
    pub(crate) fn empty_store(&mut self) {
        if let Some(manager) = &self.manager {
            self.store.update(std::iter::empty(), manager);
        }
    }
}
