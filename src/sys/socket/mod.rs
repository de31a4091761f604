//! Sockets: creating, binding and configuring them.
//!
//! Knows the options that a socket needs before it is used. Never listens, sends or receives:
//! `listening` accepts connections and retires a socket, `inspect` queries one, `buffers` leaves
//! their sizes to the kernel again, and `address` converts IP addresses for the kernel.

mod address;
mod buffers;
mod inspect;
mod listening;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::stat::{Mode, fchmod};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

pub(in crate::sys) use address::{decode_inet, encode_inet};
pub use buffers::leave_buffers_to_kernel;
pub use inspect::{
    Details, details, identity, is_bound, is_inet, is_listening, is_shared, is_unix, kind,
    local_address, local_path, peer_groups, progress, receive_buffer, take_error,
};
pub use listening::{
    Queue, accept, bound_paths, direct_to_all, direct_to_first, drop_new_connections,
    drop_new_datagrams, drops, drops_all_new, listen, queue, queued_at_paths, queued_max,
};

/// Whether other sockets may be bound to the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// No other socket; binding an address that is in use fails with EADDRINUSE.
    Exclusive,
    /// Other sockets of the same user that are bound so, too (`SO_REUSEPORT`, socket(7)).
    Shared,
}

/// Creates and binds a nonblocking TCP or UDP socket. An IPv6 socket does not receive IPv4
/// (`IPV6_V6ONLY`).
///
/// # Errors
/// As `socket(2)` and `bind(2)`.
pub fn bind_inet(kind: Type, address: SocketAddr, binding: Binding) -> io::Result<OwnedFd> {
    let socket = Socket::new(
        Domain::for_address(address),
        kind.nonblocking().cloexec(),
        None,
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if kind == Type::STREAM {
        // Connections of a predecessor in TIME_WAIT must not keep the port. On a UDP socket the
        // option would let another process bind the address and receive in our place.
        socket.set_reuse_address(true)?;
        // TCP's urgent data stays in its place in the stream (tcp(7)); connections inherit this.
        socket.set_out_of_band_inline(true)?;
    } else {
        prepare_datagrams(&socket, address)?;
    }
    if binding == Binding::Shared {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Has a UDP socket deliver the local address that each datagram was sent to (ip(7), ipv6(7)), and
/// several datagrams of one sender as one message (`UDP_GRO`, udp(7)).
fn prepare_datagrams(socket: &impl AsFd, address: SocketAddr) -> io::Result<()> {
    // Linux before 5.0 has no UDP_GRO and delivers them one by one.
    let _ = setsockopt(socket, sockopt::UdpGroSegment, &true);
    if address.is_ipv6() {
        setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?;
    }
    Ok(())
}

/// Creates a nonblocking Unix socket and binds it to a path, which must not exist. The file has mode
/// 0600, less the umask: no other user can connect as long as that is not changed.
///
/// # Errors
/// As `socket(2)` and `bind(2)`; `InvalidInput` if the path is longer than 107 bytes.
pub fn bind_unix(kind: Type, path: &Path) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::UNIX, kind.nonblocking().cloexec(), None)?;
    // The file gets the mode that the socket itself has (`unix_bind_bsd()`, net/unix/af_unix.c).
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(&SockAddr::unix(path)?)?;
    Ok(socket.into())
}

/// Whether a process has a socket at this path that it listens on or, of datagrams, has bound.
///
/// # Errors
/// If that cannot be determined: the path does not exist or is not accessible. ECONNREFUSED, which
/// also a file that is not a socket gives, is no error, but false.
pub fn unix_is_alive(kind: Type, path: &Path) -> io::Result<bool> {
    let socket = Socket::new(Domain::UNIX, kind.nonblocking().cloexec(), None)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(true),
        // EAGAIN: the backlog is full.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        // The socket is of the other type.
        Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        Err(error) => Err(error),
    }
}

/// Configures a socket that another process has bound as [`bind_inet`] and [`bind_unix`] would
/// have. An IPv6 socket that receives IPv4 continues to.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn adopt(fd: BorrowedFd<'_>) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    socket.set_nonblocking(true)?;
    match local_address(fd) {
        Some(address) if socket.r#type()? == Type::DGRAM => prepare_datagrams(&fd, address),
        Some(_) => socket.set_out_of_band_inline(true),
        None => Ok(()),
    }
}

/// Sets whether further sockets of the same user may be bound to the address (`SO_REUSEPORT`), also
/// if this one is bound already.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn set_shared(fd: BorrowedFd<'_>, shared: bool) -> io::Result<()> {
    SockRef::from(&fd).set_reuse_port(shared)
}

/// Has the address of a socket be its own again, after others could be bound there
/// ([`Binding::Shared`], [`set_shared`]). Of a TCP socket only once it listens: `listen(2)` asks the
/// kernel for the address again, and others may still have it. `neighbors` are the process's own TCP
/// sockets at the same port, whatever their address.
///
/// # Errors
/// As `setsockopt(2)`; EADDRINUSE if the kernel still lets others be bound to the address.
pub fn end_sharing<'a>(
    fd: BorrowedFd<'a>,
    neighbors: impl Iterator<Item = BorrowedFd<'a>>,
) -> io::Result<()> {
    set_shared(fd, false)?;
    let local = local_address(fd).filter(|_| kind(fd) == Some(Type::STREAM) && is_listening(fd));
    let Some(local) = local else {
        return Ok(());
    };
    // The kernel remembers of a TCP port that its sockets can be shared, and then asks none of those
    // that conflict with the address that it remembers (`inet_csk_get_port()`,
    // net/ipv4/inet_connection_sock.c). A socket that can't be shared ends that, at any address that
    // does not conflict: one of a family that has no wildcard at this port.
    let bind_at_unused =
        |binding| unused_addresses(local.port()).map(|at| bind_unused(at, binding));
    if bind_at_unused(Binding::Exclusive).iter().any(Result::is_ok) {
        return Ok(());
    }
    // Beside both wildcards there is none. A shared socket can be bound there while they are shared as
    // well, and then the kernel remembers its address instead, unless it has that of a wildcard of
    // the same family. Of the second socket it never has: by then it has an IPv6 address.
    let exclusive: Vec<BorrowedFd<'_>> = neighbors
        .filter(|neighbor| !is_shared(*neighbor))
        .chain([fd])
        .collect();
    let set_all = |shared| {
        let results = exclusive.iter().map(|fd| set_shared(*fd, shared));
        results.fold(Ok(()), Result::and)
    };
    let moved = set_all(true).map(|()| bind_at_unused(Binding::Shared));
    set_all(false)?;
    drop(moved?);
    match bind_inet(Type::STREAM, local, Binding::Shared) {
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
        Err(_) => Ok(()),
    }
}

/// Addresses that no client connects to: the discard prefix (RFC 6666), and the limited broadcast
/// address, which TCP does not use.
fn unused_addresses(port: u16) -> [SocketAddr; 2] {
    let discard = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1);
    [(discard, port).into(), (Ipv4Addr::BROADCAST, port).into()]
}

/// Binds a TCP socket to an address that this host does not have (`IP_FREEBIND`, ip(7)).
fn bind_unused(address: SocketAddr, binding: Binding) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(binding == Binding::Shared)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Options that connections inherit from the listening socket, so that they cost no system call for
/// each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// `TCP_NODELAY`; none on a socket that is not TCP, which has no keepalive either.
    pub no_delay: Option<bool>,
    /// The silence after which a peer is probed (`TCP_KEEPIDLE`), at least a second; none to send no
    /// probes.
    pub keepalive: Option<Duration>,
    /// `SO_RCVBUF` in bytes, above `net.core.rmem_max` with CAP_NET_ADMIN; none for the kernel's
    /// default.
    pub receive_buffer: Option<u32>,
    /// `SO_SNDBUF` in bytes, at most `net.core.wmem_max`; none for the kernel's default.
    pub send_buffer: Option<u32>,
}

/// Sets the options on a listening or datagram socket.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn set_inherited(fd: BorrowedFd<'_>, options: &Inherited) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    if let Some(no_delay) = options.no_delay {
        socket.set_tcp_nodelay(no_delay)?;
        match options.keepalive {
            None => socket.set_keepalive(false)?,
            Some(silence) => {
                // Six probes, a sixth of the time apart, so that a dead peer is detected after twice
                // the time.
                let interval = (silence / 6).max(Duration::from_secs(1));
                let probes =
                    socket2::TcpKeepalive::new().with_time(silence.max(Duration::from_secs(1)));
                socket.set_tcp_keepalive(&probes.with_interval(interval).with_retries(6))?;
            }
        }
    }
    if let Some(bytes) = options.receive_buffer
        && setsockopt(&fd, sockopt::RcvBufForce, &(bytes as usize)).is_err()
    {
        // SO_RCVBUFFORCE needs CAP_NET_ADMIN. Without, the kernel caps the size silently.
        socket.set_recv_buffer_size(bytes as usize)?;
    }
    if let Some(bytes) = options.send_buffer {
        socket.set_send_buffer_size(bytes as usize)?;
    }
    Ok(())
}

/// Has `close(2)` send an RST instead of a FIN (`SO_LINGER` with a timeout of zero, socket(7)).
pub fn reset_on_close(fd: BorrowedFd<'_>) {
    // Fails only on a descriptor that is not a socket; then there is no connection to reset.
    let _ = SockRef::from(&fd).set_linger(Some(Duration::ZERO));
}
