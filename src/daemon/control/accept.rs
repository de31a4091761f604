//! New control connections: how many there may be, and what happens where no descriptor is left.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::socket::{MsgFlags, recv};

use super::caller::Caller;
use super::connection::{Connection, End};
use super::{CONNECTIONS_MAX, CONNECTIONS_RESERVED, ClientId, LISTENING, Server};

/// How long accepting pauses when there is not even a spare descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections accepted in one turn; the rest waits for the next.
const ACCEPTS_PER_TURN: usize = 16;

impl Server {
    /// Accepts the connections that are queued.
    pub(super) fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            let cause = match self.socket.listener.accept() {
                Ok((stream, _)) => {
                    if let Err((stream, end)) = self.admit(stream) {
                        log::debug!("control connection refused: {end}");
                        self.spare.close(stream.into());
                    }
                    continue;
                }
                Err(cause) => cause,
            };
            match cause.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EAGAIN) => return,
                // The client has given up (accept(2)).
                Some(Errno::ECONNABORTED | Errno::EINTR | Errno::EPROTO) => {}
                // The kernel takes a descriptor before it looks at the queue (accept(2)): a spare one
                // that is given up for an empty queue stays free, and a worker's client gets it.
                Some(Errno::EMFILE | Errno::ENFILE) if !self.is_connection_queued() => return,
                Some(Errno::EMFILE | Errno::ENFILE) if self.spare.give_up() => {}
                _ => {
                    log::debug!("control socket: accept: {cause}");
                    self.pause_until = Some(self.now + ACCEPT_PAUSE);
                    return self.listen_for(EpollFlags::empty());
                }
            }
        }
    }

    /// Accepts again, after a pause.
    pub(super) fn end_pause(&mut self) {
        if self.pause_until.is_some_and(|until| until <= self.now) {
            self.pause_until = None;
            self.listen_for(EpollFlags::EPOLLIN);
        }
    }

    /// Whether a client waits to be accepted.
    fn is_connection_queued(&self) -> bool {
        let mut listener = [PollFd::new(self.socket.listener.as_fd(), PollFlags::POLLIN)];
        poll(&mut listener, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Adds a connection, or gives it back with the reason.
    pub(super) fn admit(&mut self, stream: UnixStream) -> Result<ClientId, (UnixStream, End)> {
        let caller = match self.watch(&stream) {
            Ok(caller) => caller,
            Err(end) => return Err((stream, end)),
        };
        let id = ClientId(self.last_id);
        let connection = Connection::new(stream, caller, self.now);
        self.connections.insert(id, connection);
        Ok(id)
    }

    /// Watches a connection as the next one, if there may be one more of its user.
    fn watch(&mut self, stream: &UnixStream) -> Result<Caller, End> {
        let caller = Caller::of(stream)?;
        if self.check_room(&caller).is_err() {
            // A client that closes a connection and opens another may be accepted in the turn before
            // the one that reports the end of the first.
            self.end_closed();
            self.check_room(&caller)?;
        }
        stream.set_nonblocking(true)?;
        self.last_id += 1;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
        let event = EpollEvent::new(flags, self.last_id);
        self.epoll.add(stream, event).map_err(io::Error::from)?;
        Ok(caller)
    }

    fn check_room(&self, caller: &Caller) -> Result<(), End> {
        let connections = self.connections.values();
        let callers = connections.map(|connection| &connection.caller);
        check_room(caller, callers, self.per_user_max)
    }

    /// Ends connections that their clients have closed, and on which no request is left.
    fn end_closed(&mut self) {
        let closed = self.connections.iter().filter(|(_, connection)| {
            let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
            connection.is_waiting() && recv(connection.stream.as_raw_fd(), &mut [0], flags) == Ok(0)
        });
        let closed: Vec<ClientId> = closed.map(|(id, _)| *id).collect();
        for id in closed {
            self.end(id, &End::Closed);
        }
    }

    fn listen_for(&self, flags: EpollFlags) {
        let mut event = EpollEvent::new(flags, LISTENING);
        // It was added at the start, and changing it needs no memory.
        let changed = self.epoll.modify(&self.socket.listener, &mut event);
        debug_assert_eq!(changed, Ok(()), "the listening socket is watched");
    }
}

/// Whether a caller may have a connection beside those of these callers.
fn check_room<'a>(
    caller: &Caller,
    connected: impl Iterator<Item = &'a Caller>,
    per_user_max: usize,
) -> Result<(), End> {
    let (mut all, mut of_user) = (0, 0);
    for other in connected {
        all += 1;
        of_user += usize::from(other.uid == caller.uid);
    }
    if all >= CONNECTIONS_MAX {
        Err(End::TooMany)
    } else if of_user >= per_user_max {
        Err(End::TooManyOfUser(caller.uid))
    } else if all >= CONNECTIONS_MAX - CONNECTIONS_RESERVED && !caller.is_own() {
        Err(End::Reserved)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::geteuid;

    use super::*;
    use crate::daemon::control::CONNECTIONS_PER_USER_MAX;

    fn of_user(uid: u32) -> Caller {
        Caller {
            pid: 1,
            uid,
            gids: [uid].into(),
        }
    }

    /// Each of these users connects as often as it is allowed to, in turn.
    fn fill(connected: &mut Vec<Caller>, uids: &[u32]) {
        for &uid in uids {
            while check(connected, uid).is_ok() {
                connected.push(of_user(uid));
            }
        }
    }

    fn check(connected: &[Caller], uid: u32) -> Result<(), End> {
        check_room(&of_user(uid), connected.iter(), CONNECTIONS_PER_USER_MAX)
    }

    /// Four users with eight idle connections each did.
    #[test]
    fn other_users_together_do_not_shut_out_root_and_the_daemons_own_user() {
        let mut connected = Vec::new();
        fill(
            &mut connected,
            &[4_000_001, 4_000_002, 4_000_003, 4_000_004],
        );
        assert_eq!(connected.len(), 28);
        assert!(matches!(check(&connected, 4_000_005), Err(End::Reserved)));
        for admin in [0, geteuid().as_raw()] {
            assert!(check(&connected, admin).is_ok());
        }
        fill(&mut connected, &[0]);
        assert_eq!(connected.len(), CONNECTIONS_MAX);
        assert!(matches!(check(&connected, 0), Err(End::TooMany)));
    }

    #[test]
    fn connections_of_root_leave_as_many_places_reserved() {
        let mut connected = Vec::new();
        fill(&mut connected, &[0]);
        assert_eq!(connected.len(), CONNECTIONS_PER_USER_MAX);
        assert!(matches!(check(&connected, 0), Err(End::TooManyOfUser(0))));
        fill(&mut connected, &[4_000_001, 4_000_002, 4_000_003]);
        assert!(matches!(check(&connected, 4_000_004), Err(End::Reserved)));
        assert_eq!(CONNECTIONS_MAX - connected.len(), CONNECTIONS_RESERVED);
    }
}
