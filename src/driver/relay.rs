//! One connection's relaying: bytes go from its socket through a pipe back to its socket with
//! `splice(2)`, and never through user space.
//!
//! Knows when a connection is in bulk, and what its pipe holds. Knows no readiness: the connection
//! calls [`Relay::take`] when the socket has bytes and [`Relay::give`] when it has room. The caller
//! keeps the order: takes only while nothing is unsent, and sends only while [`Relay::holds`] is
//! false.
//!
//! A splice never passes TCP's urgent mark: in front of it there seems to be nothing, or, after the
//! peer's FIN, an end. So whatever a splice says except bytes is left to `recv(2)` to decide.
//!
//! A broken connection raises SIGPIPE here, which no flag of `splice(2)` prevents; a Rust program
//! ignores that signal from its start.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::unistd::read;

use super::pipes::{PIPE_BYTES, Pipe, Pipes};

/// A connection that brings this many bytes at once is in bulk. Measured, a splice of that size is
/// cheaper than its copy by a third, and a message of a whole buffer often arrives in two pieces.
const BULK_BYTES: usize = 32 * 1024;

/// A splice of fewer bytes is small: copying them costs no more.
const SMALL_SPLICE_BYTES: usize = 16 * 1024;

/// After this many small splices in a row the connection is no longer in bulk. One large receive
/// is all it takes to return, so that a peer with messages of mixed sizes loses little by it.
const SMALL_SPLICES_MAX: u8 = 4;

/// The state of one connection's relaying. Small: an idle connection has one, too.
#[derive(Debug)]
pub(super) struct Relay {
    pipe: Option<Pipe>,
    held: u32,
    allowed: bool,
    /// How many more small splices it takes to leave bulk; 0 when not in bulk.
    small_splices_left: u8,
}

impl Relay {
    pub(super) const fn new() -> Self {
        Self {
            pipe: None,
            held: 0,
            allowed: false,
            small_splices_left: 0,
        }
    }

    /// Whether bytes may go back unseen from now on. What is held goes out in any case.
    pub(super) fn allow(&mut self, allowed: bool) {
        self.allowed = allowed;
    }

    /// Whether what arrives next should be taken instead of received.
    pub(super) fn is_due(&self) -> bool {
        self.allowed && self.small_splices_left > 0
    }

    /// Whether the pipe holds bytes, which nothing may overtake.
    pub(super) fn holds(&self) -> bool {
        self.held > 0
    }

    /// `len` bytes were received by a copy.
    pub(super) fn handle_received(&mut self, len: usize) {
        if len >= BULK_BYTES {
            self.small_splices_left = SMALL_SPLICES_MAX;
        }
    }

    /// Takes bytes from the socket into a pipe, which is leased for it, and says how many. None:
    /// ask `recv(2)`, which knows whether there are none, the end is reached, or the urgent mark;
    /// or no pipe is available.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(super) fn take(
        &mut self,
        fd: BorrowedFd<'_>,
        pipes: &mut Pipes,
    ) -> Result<Option<u32>, Errno> {
        debug_assert!(!self.holds(), "what is held goes out first");
        let Some(pipe) = pipes.lease() else {
            return Ok(None);
        };
        let taken = splice(fd, None, &pipe.input, None, PIPE_BYTES, flags());
        if let Ok(len @ 1..) = taken {
            self.small_splices_left = if len < SMALL_SPLICE_BYTES {
                self.small_splices_left - 1
            } else {
                SMALL_SPLICES_MAX
            };
            self.held = len as u32;
            self.pipe = Some(pipe);
            return Ok(Some(self.held));
        }
        pipes.give_back(pipe);
        match taken {
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            // A kind of socket, a kernel or a filter of system calls that cannot splice.
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EPERM) => {
                self.allowed = false;
                Ok(None)
            }
            Err(errno) => Err(errno),
        }
    }

    /// Gives what is held back to the socket, and says how much of it the kernel took. The pipe is
    /// returned to the pool once it is empty.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(super) fn give(&mut self, fd: BorrowedFd<'_>, pipes: &mut Pipes) -> Result<u32, Errno> {
        let Some(pipe) = self.pipe.take() else {
            return Ok(0);
        };
        // No more is asked for than the pipe holds: some kernels take a larger number for a promise
        // of more (MSG_MORE), and hold back the last segment.
        let given = match splice(&pipe.output, None, fd, None, self.held as usize, flags()) {
            Ok(len) => Ok(len as u32),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
            Err(errno) => Err(errno),
        };
        self.held -= given.unwrap_or(0);
        if self.holds() {
            self.pipe = Some(pipe);
        } else {
            pipes.give_back(pipe);
        }
        given
    }

    /// Reads what is held out of the pipe, which is returned to the pool.
    pub(super) fn read(&mut self, pipes: &mut Pipes) -> Vec<u8> {
        let mut bytes = vec![0; self.held as usize];
        let Some(pipe) = self.pipe.take() else {
            return bytes;
        };
        let mut len = 0;
        while len < bytes.len() {
            len +=
                read(&pipe.output, &mut bytes[len..]).expect("a pipe gives what was put into it");
        }
        self.held = 0;
        pipes.give_back(pipe);
        bytes
    }

    /// Forgets what is held.
    pub(super) fn discard(&mut self, pipes: &mut Pipes) {
        self.held = 0;
        self.allowed = false;
        if let Some(pipe) = self.pipe.take() {
            pipes.discard(pipe);
        }
    }
}

fn flags() -> SpliceFFlags {
    SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::super::pipes::PIPE_COUNT_MAX;
    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, peers) = UnixStream::pair().expect("descriptors are left");
        ours.set_nonblocking(true).expect("it is open");
        peers.set_nonblocking(true).expect("it is open");
        (ours, peers)
    }

    fn in_bulk() -> Relay {
        let mut relay = Relay::new();
        relay.allow(true);
        relay.handle_received(BULK_BYTES);
        relay
    }

    #[test]
    fn only_an_allowed_connection_in_bulk_is_relayed() {
        let mut relay = Relay::new();
        relay.handle_received(BULK_BYTES);
        assert!(!relay.is_due());
        relay.allow(true);
        assert!(relay.is_due());
        relay.allow(false);
        assert!(!relay.is_due());
    }

    #[test]
    fn small_bytes_in_a_row_end_bulk_and_large_ones_between_them_do_not() {
        let (mut pipes, mut relay, (ours, mut peer)) = (Pipes::new(), in_bulk(), pair());
        let mut echo = |relay: &mut Relay, len: usize| {
            peer.write_all(&vec![7; len]).expect("the socket has room");
            assert_eq!(relay.take(ours.as_fd(), &mut pipes), Ok(Some(len as u32)));
            assert_eq!(relay.give(ours.as_fd(), &mut pipes), Ok(len as u32));
            peer.read_exact(&mut vec![0; len]).expect("they came back");
            relay.is_due()
        };
        for _ in 0..SMALL_SPLICES_MAX - 1 {
            assert!(echo(&mut relay, 1));
        }
        assert!(echo(&mut relay, SMALL_SPLICE_BYTES));
        for _ in 0..SMALL_SPLICES_MAX - 1 {
            assert!(echo(&mut relay, SMALL_SPLICE_BYTES - 1));
        }
        assert!(!echo(&mut relay, 1));
    }

    #[test]
    fn what_the_peer_has_no_room_for_is_held_and_sent_later() {
        let (mut pipes, mut relay, (mut ours, mut peer)) = (Pipes::new(), in_bulk(), pair());
        let mut before = 0;
        while let Ok(len) = ours.write(&[0; 4096]) {
            before += len;
        }
        peer.write_all(&vec![1; 30_000])
            .expect("the socket has room");
        let taken = relay.take(ours.as_fd(), &mut pipes);
        assert_eq!(taken, Ok(Some(30_000)));
        assert_eq!(relay.give(ours.as_fd(), &mut pipes), Ok(0));
        assert!(relay.holds());
        let mut bytes: Vec<u8> = vec![];
        while bytes.len() < before + 30_000 {
            let mut memory = [0; 4096];
            let len = peer.read(&mut memory).expect("there are bytes");
            bytes.extend(&memory[..len]);
            relay.give(ours.as_fd(), &mut pipes).expect("it is open");
        }
        assert!(!relay.holds());
        assert!(bytes[before..].iter().all(|&byte| byte == 1));
    }

    #[test]
    fn what_is_held_can_be_read_and_the_pipe_is_empty_then() {
        let (mut pipes, mut relay, (mut ours, mut peer)) = (Pipes::new(), in_bulk(), pair());
        assert!(relay.read(&mut pipes).is_empty());
        while ours.write(&[0; 4096]).is_ok() {}
        let bytes: Vec<u8> = (0..60_000).map(|place| (place % 251) as u8).collect();
        peer.write_all(&bytes).expect("the socket has room");
        assert_eq!(relay.take(ours.as_fd(), &mut pipes), Ok(Some(60_000)));
        assert_eq!(relay.give(ours.as_fd(), &mut pipes), Ok(0));
        assert!(relay.read(&mut pipes) == bytes);
        assert!(!relay.holds());
        let pipe = pipes.lease().expect("it is idle");
        assert_eq!(read(&pipe.output, &mut [0]), Err(Errno::EAGAIN));
    }

    #[test]
    fn nothing_and_an_end_are_left_to_recv() {
        let (mut pipes, mut relay, (ours, peer)) = (Pipes::new(), in_bulk(), pair());
        assert_eq!(relay.take(ours.as_fd(), &mut pipes), Ok(None));
        drop(peer);
        assert_eq!(relay.take(ours.as_fd(), &mut pipes), Ok(None));
        assert!(relay.is_due() && !relay.holds());
    }

    #[test]
    fn a_peer_that_is_gone_breaks_the_relaying_and_the_pipe_is_not_used_again() {
        let (mut pipes, mut relay, (ours, mut peer)) = (Pipes::new(), in_bulk(), pair());
        peer.write_all(&[1; 100]).expect("the socket has room");
        drop(peer);
        assert_eq!(relay.take(ours.as_fd(), &mut pipes), Ok(Some(100)));
        assert_eq!(relay.give(ours.as_fd(), &mut pipes), Err(Errno::EPIPE));
        relay.discard(&mut pipes);
        assert!(!pipes.release(), "none is idle");
    }

    #[test]
    fn without_a_pipe_bytes_are_copied() {
        let (mut pipes, mut relay, (ours, _peer)) = (Pipes::new(), in_bulk(), pair());
        let leased: Vec<_> = (0..PIPE_COUNT_MAX).map(|_| pipes.lease()).collect();
        assert_eq!(relay.take(ours.as_fd(), &mut pipes), Ok(None));
        assert!(relay.is_due(), "the next time there may be one");
        drop(leased);
    }

    #[test]
    fn what_cannot_be_spliced_is_copied_from_then_on() {
        let (mut pipes, mut relay) = (Pipes::new(), in_bulk());
        let epoll = nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::empty())
            .expect("descriptors are left");
        assert_eq!(relay.take(epoll.0.as_fd(), &mut pipes), Ok(None));
        assert!(!relay.is_due());
    }
}
