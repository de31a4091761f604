//! Listeners over io_uring: the ring says that somebody waits, then a burst is accepted.

use std::os::fd::AsFd;

use super::connection::Connection;
use super::ring::Kind as Request;
use super::{BURST_MAX, Endpoint, Kind, Leaving, Uring};
use crate::driver::accept::{self, Next};
use crate::driver::{Completion, Token};

impl Uring {
    /// Asks the kernel to say when there is something for a listener or a datagram socket.
    pub(super) fn poll(&mut self, token: Token) {
        let Some(endpoint) = self.endpoints.get_mut(token) else {
            return;
        };
        if endpoint.polled || !endpoint.takes {
            return;
        }
        endpoint.polled = true;
        let fd = endpoint.fd.as_fd();
        self.ring.poll_input(fd, Request::Readable, token);
    }

    /// Accepts a burst. Whether there may be more, for one that is being drained.
    pub(super) fn accept(&mut self, token: Token, done: &mut Vec<Completion>) -> bool {
        for _ in 0..BURST_MAX {
            let Some(Endpoint {
                fd,
                takes,
                leaving,
                kind: Kind::Listener(permits),
                ..
            }) = self.endpoints.get_mut(token)
            else {
                return false;
            };
            let draining = *leaving == Leaving::WhenDrained;
            let error = match accept::next(fd.as_fd(), permits.as_deref(), draining) {
                Next::Client(fd, peer) => {
                    let has_permit = permits.is_some();
                    let connection = self.insert(fd, Kind::Connection(Connection::new()));
                    done.push(Completion::Accepted {
                        listener: token,
                        connection,
                        peer,
                        has_permit,
                    });
                    continue;
                }
                Next::Quitter => continue,
                Next::Nobody => {
                    if draining {
                        self.close_socket(token, done);
                    }
                    return false;
                }
                Next::NoPermit => None,
                Next::Failed(error)
                    if accept::is_for_want_of_descriptors(&error) && self.pipes.release() =>
                {
                    continue;
                }
                Next::Failed(error) => Some(error),
            };
            *takes = false;
            done.push(Completion::AcceptPaused {
                listener: token,
                error,
            });
            return false;
        }
        true
    }
}
