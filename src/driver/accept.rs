//! A listening socket: how many clients are accepted in one turn, and what each error of
//! `accept4(2)` means. Knows nothing of how a driver learns that clients are queued.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::Permits;
use super::pipes::Pipes;
use crate::sys::socket;

/// The most clients that are accepted from one listener before other endpoints have their turn.
const BURST_MAX: u8 = 32;

/// After this many clients that came one at a time, two calls are tried.
const SINGLES_MAX: u8 = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) permits: Option<Arc<Permits>>,
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

    /// Accepts a burst of clients. With `drains` every client is promised service, and gets a
    /// permit whether one is left or not.
    pub(super) fn accept(
        &mut self,
        fd: BorrowedFd<'_>,
        drains: bool,
        pipes: &mut Pipes,
        clients: &mut Vec<Client>,
    ) -> Queued {
        let calls = if drains { BURST_MAX } else { self.burst.calls() };
        for _ in 0..calls {
            match self.next(fd, drains) {
                Next::Client(client) => clients.push(client),
                Next::Aborted => {}
                Next::Nothing => {
                    self.burst.handle_empty(clients.len());
                    return Queued::Nothing;
                }
                Next::NoPermit => return Queued::Paused(None),
                // Idle pipes hold descriptors that a client needs more.
                Next::Failed(error) if is_for_want_of_descriptors(&error) && pipes.release() => {}
                Next::Failed(error) => return Queued::Paused(Some(error)),
            }
        }
        self.burst.handle_full();
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

/// How many calls a burst has. Clients that come one at a time cost one call each: a second one
/// would find the queue empty. Where the queue is longer, bursts double.
#[derive(Debug)]
struct Burst {
    calls: u8,
    // Bursts of one call in a row that have brought a client.
    singles: u8,
}

impl Burst {
    fn new() -> Self {
        Self {
            calls: BURST_MAX,
            singles: 0,
        }
    }

    fn calls(&self) -> u8 {
        self.calls
    }

    /// The queue was empty after this many clients.
    fn handle_empty(&mut self, accepted: usize) {
        self.calls = accepted.clamp(1, usize::from(BURST_MAX)) as u8;
        self.singles = 0;
    }

    /// There may be more clients than the burst had calls.
    fn handle_full(&mut self) {
        if self.calls == 1 {
            self.singles += 1;
            if self.singles < SINGLES_MAX {
                return;
            }
            self.singles = 0;
        }
        self.calls = (self.calls * 2).min(BURST_MAX);
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
    use super::*;

    /// Serves bursts until `queue` clients are accepted; says how many calls that took.
    fn serve(burst: &mut Burst, queue: usize) -> usize {
        let (mut left, mut calls) = (queue, 0);
        loop {
            let most = usize::from(burst.calls());
            let accepted = left.min(most);
            left -= accepted;
            if accepted < most {
                burst.handle_empty(accepted);
                return calls + accepted + 1;
            }
            calls += accepted;
            burst.handle_full();
            // A queue that is empty now is not looked at again before the next client.
            if left == 0 {
                return calls;
            }
        }
    }

    #[test]
    fn clients_that_come_one_at_a_time_cost_hardly_more_than_a_call_each() {
        let mut burst = Burst::new();
        let calls: usize = (0..1000).map(|_| serve(&mut burst, 1)).sum();
        assert!(calls < 1100, "{calls} calls for 1000 clients");
    }

    #[test]
    fn a_long_queue_is_served_in_long_bursts() {
        let mut burst = Burst::new();
        for _ in 0..10 {
            serve(&mut burst, 1);
        }
        let mut bursts = 0;
        let mut left: usize = 1000;
        while left > 0 {
            left = left.saturating_sub(burst.calls().into());
            burst.handle_full();
            bursts += 1;
        }
        assert!(bursts < 60, "{bursts} bursts for 1000 clients");
    }
}
