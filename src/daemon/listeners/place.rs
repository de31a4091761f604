//! Where a socket that another process has bound is, in the words of the configuration.
//!
//! Asks the kernel about a descriptor, once for each, so that thousands are found by their addresses.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use crate::config::{Address, Protocol};
use crate::sys::socket;

use super::bind;

/// What a listener has if it is served by a socket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct BoundAddress {
    protocol: Protocol,
    bound_to: BoundTo,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum BoundTo {
    Inet(SocketAddr),
    Path(PathBuf),
}

impl BoundAddress {
    /// That of a configured address.
    pub(super) fn new(protocol: Protocol, address: &Address) -> Self {
        let bound_to = match address {
            Address::Inet { address, .. } => BoundTo::Inet(*address),
            Address::Unix(path) => BoundTo::Path(path.clone()),
        };
        Self { protocol, bound_to }
    }

    /// That of a socket; none if it can't be a listener's.
    pub(super) fn of(fd: &OwnedFd) -> Option<Self> {
        Some(Self::new(protocol(fd)?, &address(fd)))
    }
}

/// Where a socket is bound.
pub(super) fn address(fd: &OwnedFd) -> Address {
    match socket::local_address(fd.as_fd()) {
        Some(address) => Address::Inet {
            address,
            optional: false,
        },
        None => Address::Unix(socket::local_path(fd.as_fd()).unwrap_or_default()),
    }
}

/// What a listener on this socket would have as its protocol.
pub(super) fn protocol(fd: &OwnedFd) -> Option<Protocol> {
    let fd = fd.as_fd();
    let is_unix = socket::is_unix(fd);
    if !is_unix && !socket::is_inet(fd) {
        return None;
    }
    let kind = socket::kind(fd);
    let of_its_type = |protocol: &Protocol| {
        protocol.is_unix() == is_unix && kind == Some(bind::kinds(*protocol).1)
    };
    Protocol::ALL.into_iter().find(of_its_type)
}
