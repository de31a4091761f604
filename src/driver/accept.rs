//! A listening socket: how many clients are accepted in one turn, and what each error of
//! `accept4(2)` means. Knows nothing of how a driver learns that clients are queued.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::Permits;
use super::burst::Burst;
use super::pipes::Pipes;
use crate::sys::socket;

/// The most clients that are accepted from one listener before other endpoints have their turn.
const BURST_MAX: usize = 32;

/// See the module.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) permits: Option<Arc<Permits>>,
    // How many clients to accept at once.
    burst: Burst,
}

/// A client that was accepted.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) fd: OwnedFd,
    /// None for a Unix socket.
    pub(super) peer: Option<SocketAddr>,
    pub(super) has_permit: bool,
}

/// What is left after a burst.
#[derive(Debug)]
pub(super) enum Queued {
    /// Perhaps more clients.
    More,
    /// No client.
    Nothing,
    /// Perhaps more; the listener pauses until the next `Accept`. The error is one of the process
    /// or the system; none: no permit is left, and the worker is woken when one is returned.
    Paused(Option<io::Error>),
}

/// What one call has brought.
enum Next {
    Client(Client),
    Aborted,
    Nothing,
    NoPermit,
    Failed(io::Error),
}

impl Listener {
    pub(super) fn new(permits: Option<Arc<Permits>>) -> Self {
        Self {
            permits,
            burst: Burst::new(),
        }
    }

    /// Accepts a burst of clients. Where they come one at a time it is a single one: another attempt
    /// would find none, and readiness tells of the next. With `drains` every client is promised
    /// service, and gets a permit whether one is left or not.
    pub(super) fn accept(
        &mut self,
        fd: BorrowedFd<'_>,
        drains: bool,
        pipes: &mut Pipes,
        clients: &mut Vec<Client>,
    ) -> Queued {
        let attempts = if drains { BURST_MAX } else { self.burst.size() };
        for _ in 0..attempts {
            match self.next(fd, drains) {
                Next::Client(client) => clients.push(client),
                Next::Aborted => {}
                Next::Nothing => {
                    self.burst.handle_emptied(clients.len(), BURST_MAX);
                    return Queued::Nothing;
                }
                Next::NoPermit => return Queued::Paused(None),
                // Idle pipes hold descriptors that a client needs more.
                Next::Failed(error) if is_for_want_of_descriptors(&error) && pipes.release() => {}
                Next::Failed(error) => return Queued::Paused(Some(error)),
            }
        }
        self.burst.handle_filled(BURST_MAX);
        Queued::More
    }

    fn next(&self, fd: BorrowedFd<'_>, drains: bool) -> Next {
        if let Some(permits) = &self.permits {
            if drains {
                permits.take_regardless();
            } else if !permits.take_or_be_woken() {
                return Next::NoPermit;
            }
        }
        let error = match socket::accept(fd) {
            Ok((fd, peer)) => {
                return Next::Client(Client {
                    fd,
                    peer,
                    has_permit: self.permits.is_some(),
                });
            }
            Err(error) => error,
        };
        if let Some(permits) = &self.permits {
            permits.give_back();
        }
        if error.kind() == io::ErrorKind::WouldBlock {
            Next::Nothing
        } else if concerns_one_client(&error) {
            Next::Aborted
        } else {
            Next::Failed(error)
        }
    }
}

/// Whether an error of `accept4(2)` is about the client at the head of the queue only, so that the
/// next one may be fine. (accept(2), "Error handling": network errors that were pending on the new
/// connection are returned from accept; EPERM is a firewall's refusal.)
fn concerns_one_client(error: &io::Error) -> bool {
    const OF_ONE_CLIENT: [i32; 12] = [
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
        .is_some_and(|errno| OF_ONE_CLIENT.contains(&errno))
}

/// Whether one descriptor less in use would have helped.
fn is_for_want_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    struct Rig {
        socket: TcpListener,
        listener: Listener,
        pipes: Pipes,
        clients: Vec<Client>,
    }

    impl Rig {
        fn new() -> Self {
            let socket = TcpListener::bind("127.0.0.1:0").expect("loopback");
            socket.set_nonblocking(true).expect("an option");
            Self {
                socket,
                listener: Listener::new(None),
                pipes: Pipes::new(),
                clients: Vec::new(),
            }
        }

        fn connect(&self) -> TcpStream {
            TcpStream::connect(self.socket.local_addr().expect("bound")).expect("it listens")
        }

        /// One burst: how many it has brought, and whether it found the queue empty.
        fn accept(&mut self) -> (usize, bool) {
            let fd = self.socket.as_fd();
            let queued = self
                .listener
                .accept(fd, false, &mut self.pipes, &mut self.clients);
            let count = self.clients.drain(..).count();
            (count, matches!(queued, Queued::Nothing))
        }
    }

    #[test]
    fn clients_that_come_one_at_a_time_cost_hardly_more_than_one_attempt_each() {
        let mut rig = Rig::new();
        let mut missed = 0;
        for _ in 0..200 {
            let _client = rig.connect();
            let (count, found_none) = rig.accept();
            assert_eq!(count, 1);
            missed += usize::from(found_none);
        }
        assert!(missed <= 200 / 10, "{missed} attempts found no client");
    }

    #[test]
    fn clients_that_come_together_are_accepted_in_a_few_bursts() {
        let mut rig = Rig::new();
        let _clients: Vec<_> = (0..100).map(|_| rig.connect()).collect();
        let (mut accepted, mut bursts) = (0, 0);
        while accepted < 100 {
            accepted += rig.accept().0;
            bursts += 1;
        }
        assert!(bursts <= 25, "{bursts} bursts");
    }
}
