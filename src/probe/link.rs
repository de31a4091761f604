//! A socket to a service: send, wait, and receive, with a deadline and until interrupted.
//!
//! Never blocks outside of [`wait`], and never judges what comes.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use socket2::{Domain, SockAddr, Socket};

use super::interrupt::Interrupt;
use crate::sys::measure::{self, Arrival, ReceiveFailure};
use crate::sys::message::Source;

/// Room for the largest datagram over IP; one of a Unix socket that is larger is known by its
/// length.
pub(super) const DATAGRAM_MEMORY: usize = 65_536;

/// A Unix socket whose queue was full is tried again after this time: its room is not reported.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_millis(1);

/// Until when a wait lasts that something else ends: a deadline would be too far to compute with.
pub(super) fn never() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// Where a service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// On IP.
    Inet(SocketAddr),
    /// At a path; an abstract name begins with `@`.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

impl Address {
    pub(super) fn encode(&self) -> io::Result<SockAddr> {
        match self {
            Self::Inet(address) => Ok((*address).into()),
            Self::Unix(path) => SockAddr::unix(OsStr::from_bytes(&unix_name(path))),
        }
    }

    pub(super) fn domain(&self) -> Domain {
        match self {
            Self::Inet(address) => Domain::for_address(*address),
            Self::Unix(_) => Domain::UNIX,
        }
    }
}

/// The name of a Unix socket as the kernel has it: an abstract one begins with a NUL (unix(7)).
pub(super) fn unix_name(path: &Path) -> Vec<u8> {
    let mut bytes = path.as_os_str().as_bytes().to_vec();
    if let Some(first @ b'@') = bytes.first_mut() {
        *first = 0;
    }
    bytes
}

/// Waits until one of these descriptors is ready, until this time, or until the command is to end;
/// a signal ends it, too.
///
/// # Errors
/// As `ppoll(2)`.
pub(crate) fn wait(
    polled: &mut [PollFd<'_>],
    until: Instant,
    interrupt: &Interrupt,
) -> io::Result<()> {
    interrupt.look_at_output();
    let now = Instant::now();
    let left = until.saturating_duration_since(now);
    let left = left.min(interrupt.longest_wait(now));
    match ppoll(polled, Some(TimeSpec::from_duration(left)), None) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether a descriptor can be read, or has an end or an error to be read.
pub(crate) fn is_readable(polled: &PollFd<'_>) -> bool {
    let wanted = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
    polled
        .revents()
        .is_some_and(|events| events.intersects(wanted))
}

/// A connected stream; nonblocking.
#[derive(Debug)]
pub(crate) struct Stream {
    /// The socket.
    pub socket: Socket,
    /// The service.
    pub peer: Address,
    unsent: Vec<u8>,
    /// How many of these bytes the kernel has taken.
    taken: usize,
}

impl Stream {
    pub(super) fn new(socket: Socket, peer: Address) -> Self {
        Self {
            socket,
            peer,
            unsent: Vec::new(),
            taken: 0,
        }
    }

    /// Queues bytes to be sent by [`Stream::flush`].
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.unsent.drain(..self.taken);
        self.taken = 0;
        self.unsent.extend_from_slice(bytes);
    }

    /// Bytes that the kernel has not taken yet.
    pub(crate) fn unsent(&self) -> usize {
        self.unsent.len() - self.taken
    }

    /// Sends as much as the kernel takes.
    ///
    /// # Errors
    /// As `send(2)`.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.unsent() > 0 {
            match self.send_some(&self.unsent[self.taken..])? {
                0 => break,
                len => self.taken += len,
            }
        }
        Ok(())
    }

    /// Sends what fits at once, without queueing the rest; returns how many bytes were taken.
    ///
    /// # Errors
    /// As `send(2)`.
    pub(crate) fn send_some(&self, bytes: &[u8]) -> io::Result<usize> {
        match (&self.socket).write(bytes) {
            Err(error) if is_transient(&error) => Ok(0),
            other => other,
        }
    }

    /// Receives what is there: none if nothing is, 0 at the end of the stream.
    ///
    /// # Errors
    /// As `recv(2)`.
    pub(crate) fn receive(&self, memory: &mut [u8]) -> io::Result<Option<usize>> {
        match (&self.socket).read(memory) {
            Ok(len) => Ok(Some(len)),
            Err(error) if is_transient(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends FIN behind what was sent. An error is found by the next [`Stream::receive`].
    pub(crate) fn half_close(&self) {
        let _ = self.socket.shutdown(Shutdown::Write);
    }

    /// What to wait for: input, and room while something is unsent.
    pub(crate) fn polled(&self) -> PollFd<'_> {
        let mut wanted = PollFlags::POLLIN;
        wanted.set(PollFlags::POLLOUT, self.unsent() > 0);
        PollFd::new(self.socket.as_fd(), wanted)
    }
}

/// Whether a call has to be made again, later or at once.
pub(super) fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// A socket for datagrams to and from one service; nonblocking. It is not connected, so that
/// answers from elsewhere are seen, too.
#[derive(Debug)]
pub(crate) struct Flow {
    /// The socket.
    pub socket: Socket,
    /// The service.
    pub peer: Address,
    encoded: SockAddr,
}

/// What a flow of datagrams has received.
#[derive(Debug)]
pub(crate) enum News {
    /// A datagram; its bytes are in the memory.
    Arrival(Arrival),
    /// A datagram of ours was not delivered; as many of its bytes as were returned are in the
    /// memory.
    Failure(ReceiveFailure),
}

impl Flow {
    pub(super) fn new(socket: Socket, peer: Address) -> io::Result<Self> {
        measure::ask_for_all(socket.as_fd())?;
        let encoded = peer.encode()?;
        Ok(Self {
            socket,
            peer,
            encoded,
        })
    }

    /// Sends a datagram to the service. False if the queue of a Unix socket is full, which is no
    /// loss: it can be sent later.
    ///
    /// # Errors
    /// As `sendto(2)`.
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<bool> {
        let sent = match self.socket.send_to(bytes, &self.encoded) {
            // The error belongs to an earlier datagram, and is cleared by being returned (udp(7)).
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                self.socket.send_to(bytes, &self.encoded)
            }
            other => other,
        };
        match sent {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// From now on the kernel refuses what the service sends here with an ICMP error, as it would if
    /// this socket were closed; sending still works.
    ///
    /// A connected socket receives from its peer only, and still sends to any address that is named
    /// (`udp(7)`). It is connected to another port of the same host, so that the local address stays
    /// the one that leads to the service. A Unix socket has no such state: nothing changes for it.
    ///
    /// # Errors
    /// As `connect(2)`.
    pub(crate) fn refuse_answers(&self) -> io::Result<()> {
        let Address::Inet(mut other) = self.peer else {
            return Ok(());
        };
        other.set_port(match other.port() {
            u16::MAX => u16::MAX - 1,
            port => port + 1,
        });
        self.socket.connect(&other.into())
    }

    /// The next of what was received; none if nothing was. Reports of datagrams that were not
    /// delivered come behind the datagrams.
    ///
    /// # Errors
    /// As `recvmsg(2)`.
    pub(crate) fn receive(&self, memory: &mut [u8]) -> io::Result<Option<News>> {
        loop {
            match measure::receive(self.socket.as_fd(), memory) {
                Ok(arrival) => return Ok(Some(News::Arrival(arrival))),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The error queue has the same with more details.
                Err(error) if belongs_to_one_sent(&error) => {}
                Err(error) => return Err(error),
            }
        }
        // A Unix socket has no such queue, and would return a datagram instead.
        if matches!(self.peer, Address::Unix(_)) {
            return Ok(None);
        }
        match measure::receive_failure(self.socket.as_fd(), memory) {
            Ok(failure) => Ok(Some(News::Failure(failure))),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether this sender is the service. The name of a Unix socket is as its owner wrote it, and
    /// may not be comparable to ours; no other process knows our name.
    pub(crate) fn is_peer(&self, source: &Source) -> bool {
        match (&self.peer, source) {
            (Address::Inet(peer), Source::Inet(source)) => {
                (peer.ip(), peer.port()) == (source.ip(), source.port())
            }
            (Address::Unix(_), Source::Unix(_)) => true,
            _ => false,
        }
    }

    /// What to wait for.
    pub(crate) fn polled(&self) -> PollFd<'_> {
        PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)
    }
}

/// Waits for input on one descriptor.
///
/// # Errors
/// As `ppoll(2)`.
pub(crate) fn wait_for(
    fd: BorrowedFd<'_>,
    until: Instant,
    interrupt: &Interrupt,
) -> io::Result<bool> {
    let mut polled = [PollFd::new(fd, PollFlags::POLLIN)];
    wait(&mut polled, until, interrupt)?;
    Ok(is_readable(&polled[0]))
}

/// Errors that the kernel reports with the next call on the socket, whatever that is (udp(7)).
fn belongs_to_one_sent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
    ) || error.raw_os_error() == Some(Errno::EMSGSIZE as i32)
}
