//! Listeners over epoll: a burst of clients whenever somebody waits.

use std::os::fd::AsFd;

use super::connection::Connection;
use super::{BURST_MAX, Endpoint, Epoll, Kind};
use crate::driver::accept::{self, Next};
use crate::driver::{Completion, Token};

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
            let error = match accept::next(fd.as_fd(), permits.as_deref(), *draining) {
                Next::Client(fd, peer) => {
                    let has_permit = permits.is_some();
                    let connection =
                        self.insert(fd, Kind::Connection(Connection::new(peer.is_some())));
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
                    if *draining {
                        self.let_go(token, done);
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
            self.changed.push(token);
            done.push(Completion::AcceptPaused {
                listener: token,
                error,
            });
            return false;
        }
        true
    }
}
