//! Accepting one client: a permit first, then `accept4(2)`, and what an error of it is about.
//! Shared by the drivers over real sockets; knows nothing of how they learn that somebody waits.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::Permits;
use crate::sys::socket;

/// Who came out of the queue.
#[derive(Debug)]
pub(super) enum Next {
    /// A client, who holds a permit now if there are permits.
    Client(OwnedFd, Option<SocketAddr>),
    /// One who had given up; the next may be fine.
    Quitter,
    /// Nobody waits.
    Nobody,
    /// Somebody may wait, and no permit is left; the caller is woken when there may be one.
    NoPermit,
    /// The process or the system is short of something.
    Failed(io::Error),
}

/// Takes the next client out of the queue. Who is promised service (`draining`) gets a permit
/// whether there is one or not.
pub(super) fn next(fd: BorrowedFd<'_>, permits: Option<&Permits>, draining: bool) -> Next {
    if let Some(permits) = permits {
        if draining {
            permits.take_regardless();
        } else if !permits.take_or_be_woken() {
            return Next::NoPermit;
        }
    }
    let error = match socket::accept(fd) {
        Ok((fd, peer)) => return Next::Client(fd, peer),
        Err(error) => error,
    };
    if let Some(permits) = permits {
        permits.give_back();
    }
    if error.kind() == io::ErrorKind::WouldBlock {
        Next::Nobody
    } else if concerns_one_peer(&error) {
        Next::Quitter
    } else {
        Next::Failed(error)
    }
}

/// Whether an error of `accept4(2)` is about the client at the head of the queue only, so that the
/// next one may be fine. (accept(2), "Error handling": network errors that were pending on the new
/// connection are returned from accept; EPERM is a firewall's no.)
fn concerns_one_peer(error: &io::Error) -> bool {
    const OF_ONE_PEER: [i32; 12] = [
        libc::ECONNABORTED,
        libc::EINTR,
        libc::EPERM,
        libc::EPROTO,
        libc::ENETDOWN,
        libc::ENOPROTOOPT,
        libc::EHOSTDOWN,
        libc::ENONET,
        libc::EHOSTUNREACH,
        libc::EOPNOTSUPP,
        libc::ENETUNREACH,
        libc::ETIMEDOUT,
    ];
    error
        .raw_os_error()
        .is_some_and(|errno| OF_ONE_PEER.contains(&errno))
}

/// Whether one descriptor less in use would have helped.
pub(super) fn is_for_want_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}
