//! Listeners over epoll: a permit, an accept, and what an error of it is about.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use super::connection::Connection;
use super::{BURST_MAX, Endpoint, Epoll, Kind};
use crate::driver::{Completion, Token};
use crate::sys::socket;

impl Epoll {
    /// Accepts a burst. Whether there may be more, for one that is being drained.
    pub(super) fn accept(&mut self, token: Token, done: &mut Vec<Completion>) -> bool {
        for _ in 0..BURST_MAX {
            let Some(Endpoint {
                fd,
                kind: Kind::Listener(permits),
                takes,
                draining,
                ..
            }) = self.endpoints.get_mut(token)
            else {
                return false;
            };
            if let Some(permits) = &permits {
                if *draining {
                    permits.take_regardless();
                } else if !permits.take_or_be_woken() {
                    *takes = false;
                    self.changed.push(token);
                    done.push(Completion::AcceptRested {
                        listener: token,
                        error: None,
                    });
                    return false;
                }
            }
            let error = match socket::accept(fd.as_fd()) {
                Ok((fd, peer)) => {
                    self.accepted(token, fd, peer, done);
                    continue;
                }
                Err(error) => error,
            };
            if let Some(permits) = permits {
                permits.give_back();
            }
            if error.kind() == io::ErrorKind::WouldBlock {
                if *draining {
                    self.let_go(token, done);
                }
                return false;
            }
            if is_out_of_descriptors(&error) && self.pipes.release() {
                continue;
            }
            if !concerns_one_peer(&error) {
                *takes = false;
                self.changed.push(token);
                done.push(Completion::AcceptRested {
                    listener: token,
                    error: Some(error),
                });
                return false;
            }
        }
        true
    }

    pub(super) fn accepted(
        &mut self,
        listener: Token,
        fd: OwnedFd,
        peer: Option<SocketAddr>,
        done: &mut Vec<Completion>,
    ) {
        let connection = self.insert(fd, Kind::Connection(Connection::new()));
        done.push(Completion::Accepted {
            listener,
            connection,
            peer,
        });
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
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
