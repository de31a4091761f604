//! Sockets of a predecessor that has left nothing else: those that the service manager has kept over
//! a crash, and those of a record that can't be read.
//!
//! Knows by which names the manager keeps sockets; [`crate::daemon::systemd::store`] has it keep
//! them. Never binds anything.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};

use crate::cli::text::cause;
use crate::config::{self, Address, Config};
use crate::sys::process::Passed;
use crate::sys::socket;

use crate::daemon::socket_file::SocketFile;

use super::bind::{self, Bound};
use super::place::BoundAddress;

/// Names of sockets in the store begin so, and end with a number.
const PREFIX: &str = "echod-socket-";

/// The name of sockets that the manager does not keep: they were in a record that can't be read.
const LEFT: &str = "echod-left";

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Survivors(BTreeMap<BoundAddress, Vec<Passed>>);

/// The name by which the manager keeps the socket with this number.
pub(crate) fn stored_name(number: u64) -> String {
    format!("{PREFIX}{number}")
}

/// The number of the socket that is kept by this name; none if it is no such name.
pub(crate) fn stored_number(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// The names of those that the manager keeps, out of all that it has passed.
pub(crate) fn stored_names(passed: &[Passed]) -> impl Iterator<Item = String> {
    let names = passed.iter().map(|passed| &passed.name);
    names.filter(|name| stored_number(name).is_some()).cloned()
}

/// Those of a record that can't be read which serve an address of this configuration. The others are
/// closed: our own control socket would be taken for that of a running daemon.
pub(crate) fn left_behind(descriptors: Vec<OwnedFd>, config: &Config) -> Vec<Passed> {
    let listeners = config.listeners.values();
    let places = listeners.flat_map(|listener| {
        let addresses = listener.addresses.iter();
        addresses.map(|address| BoundAddress::new(listener.protocol, address))
    });
    let places: BTreeSet<BoundAddress> = places.collect();
    let is_wanted = |fd: &OwnedFd| {
        let place = BoundAddress::of(fd).filter(|_| is_served(fd));
        place.is_some_and(|place| places.contains(&place))
    };
    let wanted = descriptors.into_iter().filter(is_wanted);
    let named = wanted.map(|fd| Passed {
        name: LEFT.into(),
        fd,
    });
    named.collect()
}

impl Survivors {
    /// Takes them out of what was passed.
    pub(super) fn take(passed: &mut Vec<Passed>) -> Self {
        let is_one =
            |passed: &mut Passed| stored_number(&passed.name).is_some() || passed.name == LEFT;
        let mut survivors: Vec<Passed> = passed.extract_if(.., is_one).collect();
        // The order in which they were bound: sockets of one address are retired from the last on.
        survivors.sort_by_key(|passed| stored_number(&passed.name));
        let mut by_place: BTreeMap<BoundAddress, Vec<Passed>> = BTreeMap::new();
        for passed in survivors {
            if let Some(place) = BoundAddress::of(&passed.fd).filter(|_| is_served(&passed.fd)) {
                by_place.entry(place).or_default().push(passed);
            }
        }
        Self(by_place)
    }

    /// Those that serve this address of a listener.
    pub(super) fn take_at(
        &mut self,
        listener: &config::Listener,
        address: &Address,
        workers: usize,
    ) -> Vec<Bound> {
        let place = BoundAddress::new(listener.protocol, address);
        let found = self.0.remove(&place).unwrap_or_default();
        let count = found.len();
        let mut bound = Vec::new();
        for (index, passed) in found.into_iter().enumerate() {
            // The configuration may have changed since it was bound.
            let inherited = bind::inherited(listener);
            let set = socket::set_inherited(passed.fd.as_fd(), &inherited);
            let restored = set.and_then(|()| {
                let place = (index, count);
                bind::restore(listener, address.clone(), passed.fd, place, workers)
            });
            match restored {
                Ok(restored) => bound.push(Bound {
                    file: file(address),
                    stored: Some(passed.name).filter(|name| stored_number(name).is_some()),
                    ..restored
                }),
                Err(error) => log::error!(
                    listener = listener.name.as_str();
                    "listener \"{}\": {address}: the predecessor's socket: {}",
                    listener.name,
                    cause(&error)
                ),
            }
        }
        bound
    }
}

/// Whether clients reach the socket.
fn is_served(fd: &OwnedFd) -> bool {
    let fd = fd.as_fd();
    socket::is_bound(fd)
        && !socket::drops_all_new(fd)
        && socket::local_path(fd).is_none_or(|path| path.exists())
}

fn file(address: &Address) -> Option<SocketFile> {
    match address {
        Address::Inet { .. } => None,
        Address::Unix(path) => SocketFile::at(path),
    }
}
