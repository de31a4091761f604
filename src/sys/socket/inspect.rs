//! What the kernel knows about a socket: its type and addresses, and the progress of a connection.
//!
//! Knows how to query each. Never changes a socket, except that [`take_error`] clears the error that
//! it returns. The queue of a listening socket is in `listening`.

use std::ffi::OsStr;
use std::io;
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::SocketAddr as UnixAddress;
use std::path::PathBuf;

use nix::sys::socket::{getsockopt, sockopt};
use socket2::{Domain, SockRef, Type};

use crate::sys::check;

/// The type of the socket; none if the descriptor is not a socket.
#[must_use]
pub fn kind(fd: BorrowedFd<'_>) -> Option<Type> {
    SockRef::from(&fd).r#type().ok()
}

/// Whether it is an IPv4 or IPv6 socket.
#[must_use]
pub fn is_inet(fd: BorrowedFd<'_>) -> bool {
    let domain = SockRef::from(&fd).domain();
    domain.is_ok_and(|domain| domain == Domain::IPV4 || domain == Domain::IPV6)
}

/// Whether it is a Unix socket.
#[must_use]
pub fn is_unix(fd: BorrowedFd<'_>) -> bool {
    let domain = SockRef::from(&fd).domain();
    domain.is_ok_and(|domain| domain == Domain::UNIX)
}

/// Whether it is a listening socket (`SO_ACCEPTCONN`).
#[must_use]
pub fn is_listening(fd: BorrowedFd<'_>) -> bool {
    SockRef::from(&fd).is_listener().unwrap_or(false)
}

/// Whether further sockets of the same user may be bound to its address (`SO_REUSEPORT`).
#[must_use]
pub fn is_shared(fd: BorrowedFd<'_>) -> bool {
    SockRef::from(&fd).reuse_port().unwrap_or(false)
}

/// Whether clients can reach the socket: it listens, or receives datagrams at an address.
#[must_use]
pub fn is_bound(fd: BorrowedFd<'_>) -> bool {
    match kind(fd) {
        Some(Type::STREAM) => is_listening(fd),
        Some(_) => {
            local_address(fd).is_some_and(|local| local.port() != 0) || local_path(fd).is_some()
        }
        None => false,
    }
}

/// Device and inode of a socket: two descriptors that have the same refer to the same socket.
#[must_use]
pub fn identity(fd: BorrowedFd<'_>) -> Option<(u64, u64)> {
    let stat = nix::sys::stat::fstat(fd).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

/// The IP address and port that the socket is bound to; none for a Unix socket.
#[must_use]
pub fn local_address(fd: BorrowedFd<'_>) -> Option<SocketAddr> {
    SockRef::from(&fd).local_addr().ok()?.as_socket()
}

/// The path that a Unix socket is bound to, or its abstract name with `@` in front; none for any
/// other socket and an unbound one.
#[must_use]
pub fn local_path(fd: BorrowedFd<'_>) -> Option<PathBuf> {
    let address: UnixAddress = SockRef::from(&fd).local_addr().ok()?.as_unix()?;
    if let Some(name) = address.as_abstract_name() {
        return Some(OsStr::from_bytes(&[b"@".as_slice(), name].concat()).into());
    }
    Some(address.as_pathname()?.into())
}

/// The effective `SO_RCVBUF` in bytes, comparable with what was asked for.
#[must_use]
pub fn receive_buffer(fd: BorrowedFd<'_>) -> Option<u32> {
    // The kernel doubles the value that is set, to make room for its overhead (socket(7)).
    let bytes = SockRef::from(&fd).recv_buffer_size().ok()? / 2;
    u32::try_from(bytes).ok()
}

/// Returns the pending error of a socket and clears it (`SO_ERROR`, socket(7)).
#[must_use]
pub fn take_error(fd: BorrowedFd<'_>) -> Option<io::Error> {
    SockRef::from(&fd).take_error().ok().flatten()
}

/// What the kernel knows about one connection; each field is none where it does not apply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// The local IP address and port.
    pub local: Option<SocketAddr>,
    /// The smoothed round-trip time in microseconds (RFC 6298).
    pub rtt_us: Option<u32>,
    /// Segments retransmitted since the connection was established.
    pub retransmits: Option<u32>,
    /// Bytes in the send queue that the peer has not acknowledged. Over a Unix socket the memory of
    /// what it has not read: each message with the kernel's overhead.
    pub send_queue: Option<u32>,
    /// The process that has connected a Unix socket (`SO_PEERCRED`, unix(7)).
    pub pid: Option<i32>,
    /// The user id of that process when it connected.
    pub uid: Option<u32>,
}

/// Queries the details of a stream connection. What cannot be queried is none.
#[must_use]
pub fn details(fd: BorrowedFd<'_>) -> Details {
    if !is_inet(fd) {
        let peer = getsockopt(&fd, sockopt::PeerCredentials).ok();
        let (pid, uid) = (peer.map(|peer| peer.pid()), peer.map(|peer| peer.uid()));
        return Details {
            send_queue: send_queue(fd),
            pid,
            uid,
            ..Details::default()
        };
    }
    let tcp = tcp_info(fd);
    Details {
        local: local_address(fd),
        rtt_us: tcp.map(|tcp| tcp.tcpi_rtt),
        retransmits: tcp.map(|tcp| tcp.tcpi_total_retrans),
        send_queue: send_queue(fd),
        ..Details::default()
    }
}

/// The supplementary groups of the process that has connected a Unix socket, as they were then; the
/// kernel allows at most 65536 (`SO_PEERGROUPS`, `sock_getsockopt()`, net/core/sock.c).
///
/// # Errors
/// As `getsockopt(2)`; ENOPROTOOPT before Linux 4.13.
pub fn peer_groups(fd: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    const GROUPS_MAX: usize = 65_536;
    let mut groups = vec![0; 32];
    loop {
        let mut len = size_of_val(groups.as_slice()) as libc::socklen_t;
        let (raw, to) = (fd.as_raw_fd(), groups.as_mut_ptr().cast());
        let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERGROUPS);
        // SAFETY: the kernel writes at most `len` bytes to a live vector that has as many.
        let queried = unsafe { libc::getsockopt(raw, level, option, to, &raw mut len) };
        let count = len as usize / size_of::<libc::gid_t>();
        match check(queried) {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            // There are more, and `len` says how many.
            Err(error) if error.raw_os_error() == Some(libc::ERANGE) => {
                if count <= groups.len() || count > GROUPS_MAX {
                    return Err(error);
                }
                groups.resize(count, 0);
            }
            Err(error) => return Err(error),
        }
    }
}

/// A number that changes when the peer takes bytes: over TCP the bytes acknowledged in all, over a
/// Unix socket the memory of what it has not read.
#[must_use]
pub fn progress(fd: BorrowedFd<'_>) -> u64 {
    match tcp_bytes_acked(fd) {
        Some(acked) => acked,
        None => send_queue(fd).unwrap_or(0).into(),
    }
}

/// The send queue in bytes (`SIOCOUTQ`): over TCP what is not acknowledged (tcp(7)), over a Unix
/// socket the memory of what is not read, which exceeds the data (`unix_outq_len()`,
/// net/unix/af_unix.c).
fn send_queue(fd: BorrowedFd<'_>) -> Option<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: this ioctl writes one int to a live local.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) }).ok()?;
    u32::try_from(bytes).ok()
}

/// Queries `TCP_INFO` (tcp(7)); none on a socket that is not TCP.
pub(super) fn tcp_info(fd: BorrowedFd<'_>) -> Option<libc::tcp_info> {
    // SAFETY: all fields of `tcp_info` are integers, for which zero is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    let (raw, to) = (fd.as_raw_fd(), (&raw mut info).cast());
    // SAFETY: the kernel writes at most `len` bytes to a live local of that size.
    check(unsafe { libc::getsockopt(raw, libc::IPPROTO_TCP, libc::TCP_INFO, to, &raw mut len) })
        .ok()?;
    Some(info)
}

/// The bytes that the peer has acknowledged since the connection was established. The field is
/// missing in `libc` (`tcpi_bytes_acked`, at byte 120 of `struct tcp_info`, linux/tcp.h).
fn tcp_bytes_acked(fd: BorrowedFd<'_>) -> Option<u64> {
    let mut words = [0u64; 16];
    let mut len = size_of_val(&words) as libc::socklen_t;
    let (raw, to) = (fd.as_raw_fd(), words.as_mut_ptr().cast());
    // SAFETY: the kernel writes at most `len` bytes to a live local of that size.
    check(unsafe { libc::getsockopt(raw, libc::IPPROTO_TCP, libc::TCP_INFO, to, &raw mut len) })
        .ok()?;
    (len >= 128).then_some(words[15])
}
