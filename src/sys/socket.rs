//! Sockets: creating, configuring and querying them. Of listening sockets in particular the queue,
//! its overflows, and how to retire one without losing a client that is queued.

use std::ffi::OsStr;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::SocketAddr as UnixAddress;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::check;

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

/// The type of the socket; none if the descriptor is not a socket.
#[must_use]
pub fn kind(fd: BorrowedFd<'_>) -> Option<Type> {
    SockRef::from(&fd).r#type().ok()
}

/// Creates a nonblocking Unix socket and binds it to a path, which must not exist.
///
/// # Errors
/// As `socket(2)` and `bind(2)`; `InvalidInput` if the path is longer than 107 bytes.
pub fn bind_unix(kind: Type, path: &Path) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::UNIX, kind.nonblocking().cloexec(), None)?;
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

/// Permits further sockets of the same user to bind the address (`SO_REUSEPORT`), also if this one
/// is bound already.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn share_address(fd: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&fd).set_reuse_port(true)
}

/// Listens, or changes the backlog of a listening socket. The kernel caps it silently at
/// `net.core.somaxconn` (listen(2)); [`queue`] returns the effective backlog.
///
/// # Errors
/// As `listen(2)`.
pub fn listen(fd: BorrowedFd<'_>, backlog: u32) -> io::Result<()> {
    SockRef::from(&fd).listen(i32::try_from(backlog).unwrap_or(i32::MAX))
}

/// The IP address and port that the socket is bound to; none for a Unix socket.
#[must_use]
pub fn local_address(fd: BorrowedFd<'_>) -> Option<SocketAddr> {
    SockRef::from(&fd).local_addr().ok()?.as_socket()
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

/// Whether two descriptors refer to the same socket.
#[must_use]
pub fn is_same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    let inode = |fd| nix::sys::stat::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    inode(one).is_ok_and(|one| inode(other) == Ok(one))
}

/// Whether [`drop_new_connections`] or [`turn_away_datagrams`] was called on it. Also a socket that
/// is bound to an existing interface (`BindToDevice=`, systemd.socket(5)) or connected is reported
/// so.
#[must_use]
pub fn is_turned_away(fd: BorrowedFd<'_>) -> bool {
    // SO_BINDTODEVICE fails with ENODEV if the interface does not exist, and is empty for a socket
    // that is not bound to one.
    let is_bound_to_one =
        getsockopt(&fd, sockopt::BindToDevice).map_or(true, |name| !name.is_empty());
    is_bound_to_one || SockRef::from(&fd).peer_addr().is_ok()
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

/// The effective `SO_RCVBUF` in bytes, comparable with what was asked for.
#[must_use]
pub fn receive_buffer(fd: BorrowedFd<'_>) -> Option<u32> {
    // The kernel doubles the value that is set, to make room for its overhead (socket(7)).
    let bytes = SockRef::from(&fd).recv_buffer_size().ok()? / 2;
    u32::try_from(bytes).ok()
}

/// Accepts a connection, nonblocking, with the peer's IP address; a Unix peer has none.
///
/// # Errors
/// `WouldBlock` if the queue is empty; others as `accept4(2)`.
pub fn accept(fd: BorrowedFd<'_>) -> io::Result<(OwnedFd, Option<SocketAddr>)> {
    let mut name = MaybeUninit::<libc::sockaddr_storage>::uninit();
    let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: both pointers are to live locals, and `len` is the size of what the first points to.
    let accepted = check(unsafe {
        libc::accept4(
            fd.as_raw_fd(),
            name.as_mut_ptr().cast(),
            &raw mut len,
            flags,
        )
    })?;
    // SAFETY: `accept4(2)` has just created this descriptor, so no other code owns it.
    let connection = unsafe { OwnedFd::from_raw_fd(accepted) };
    // SAFETY: the kernel wrote `len` bytes of address.
    Ok((connection, unsafe { decode_inet(name.as_ptr(), len) }))
}

/// Has `close(2)` send an RST instead of a FIN (`SO_LINGER` with a timeout of zero, socket(7)).
pub fn reset_on_close(fd: BorrowedFd<'_>) {
    // Fails only on a descriptor that is not a socket; then there is no connection to reset.
    let _ = SockRef::from(&fd).set_linger(Some(Duration::ZERO));
}

/// Returns the pending error of a socket and clears it (`SO_ERROR`, socket(7)).
#[must_use]
pub fn take_error(fd: BorrowedFd<'_>) -> Option<io::Error> {
    SockRef::from(&fd).take_error().ok().flatten()
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
fn tcp_info(fd: BorrowedFd<'_>) -> Option<libc::tcp_info> {
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

/// The queue of a listening socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// The effective backlog in connections.
    pub effective: u32,
    /// Connections in it now.
    pub queued: u32,
    /// Connection attempts dropped because it was full, since the socket was created.
    pub overflows: u32,
}

/// Queries the queue of a listening TCP socket; none on a socket that is not TCP.
///
/// On a listening socket `TCP_INFO` has the queue's length in `tcpi_unacked` and its limit in
/// `tcpi_sacked` (`tcp_get_info()`, net/ipv4/tcp.c).
#[must_use]
pub fn queue(fd: BorrowedFd<'_>) -> Option<Queue> {
    let info = tcp_info(fd)?;
    Some(Queue {
        effective: info.tcpi_sacked,
        queued: info.tcpi_unacked,
        overflows: drops(fd),
    })
}

/// Counts the connections in the queue of the listening Unix socket at this path. The kernel lists
/// each under the path, in the state of a socket that no process has accepted: 2, connecting
/// (proc(5), `/proc/net/unix`).
///
/// # Errors
/// If `/proc` cannot be read.
pub fn queued_at_path(path: &Path) -> io::Result<u32> {
    let table = std::fs::read("/proc/self/net/unix")?;
    let end = [b" ", path.as_os_str().as_bytes()].concat();
    let waits = |line: &&[u8]| {
        // Num RefCount Protocol Flags Type St Inode Path
        let mut fields = line
            .split(|&byte| byte == b' ')
            .filter(|field| !field.is_empty());
        fields.nth(5) == Some(b"02") && line.ends_with(&end)
    };
    Ok(table.split(|&byte| byte == b'\n').filter(waits).count() as u32)
}

/// The number of packets that this socket has dropped (`SK_MEMINFO_DROPS` of `SO_MEMINFO`): connection
/// attempts because the backlog was full, or datagrams because the receive buffer was. 0 if the kernel,
/// before Linux 4.12, does not say.
#[must_use]
pub fn drops(fd: BorrowedFd<'_>) -> u32 {
    const SO_MEMINFO: libc::c_int = 55;
    const SK_MEMINFO_DROPS: usize = 8;
    let mut values = [0u32; SK_MEMINFO_DROPS + 1];
    let mut len = size_of_val(&values) as libc::socklen_t;
    let (raw, to) = (fd.as_raw_fd(), values.as_mut_ptr().cast());
    // SAFETY: the kernel writes at most `len` bytes to a live local of that size.
    match check(unsafe { libc::getsockopt(raw, libc::SOL_SOCKET, SO_MEMINFO, to, &raw mut len) }) {
        Ok(_) => values[SK_MEMINFO_DROPS],
        Err(_) => 0,
    }
}

/// Stops a listening TCP socket from receiving SYNs, so that its queue can be emptied for good.
///
/// A new client reaches another listening socket that matches, or is refused. Handshakes in progress
/// complete. Only if another socket is bound to the very same address may a SYN be lost; the client
/// retransmits it after a second (RFC 6298, section 2).
///
/// # Errors
/// As `setsockopt(2)`.
pub fn drop_new_connections(fd: BorrowedFd<'_>) -> io::Result<()> {
    // Bound to an interface that does not exist, the socket matches no packet. That needs no
    // privilege from Linux 5.7 on, unless it is bound to an interface already; before, CAP_NET_RAW.
    let nowhere = libc::c_int::MAX;
    let (raw, from) = (fd.as_raw_fd(), (&raw const nowhere).cast());
    let len = size_of_val(&nowhere) as libc::socklen_t;
    // SAFETY: the kernel reads one int from a live local.
    let bound = check(unsafe {
        libc::setsockopt(raw, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, from, len)
    });
    match bound {
        Ok(_) => Ok(()),
        Err(_) => filter_syns(fd),
    }
}

/// Attaches a filter that drops SYN segments and accepts all others.
fn filter_syns(fd: BorrowedFd<'_>) -> io::Result<()> {
    const SYN_ACK: u32 = 0x12;
    const SYN: u32 = 0x02;
    let statement = |code, k| libc::sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    };
    // A classic BPF program: it is given the TCP header, whose byte 13 holds the flags (RFC 9293,
    // section 3.1), and returns how many bytes of the segment to keep.
    let mut program = [
        statement((libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16, 13),
        statement(
            (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16,
            SYN_ACK,
        ),
        libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            jt: 0,
            jf: 1,
            k: SYN,
        },
        statement((libc::BPF_RET | libc::BPF_K) as u16, 0),
        statement((libc::BPF_RET | libc::BPF_K) as u16, u32::MAX),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    let (raw, from) = (fd.as_raw_fd(), (&raw const filter).cast());
    let len = size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: the kernel copies the program, which is live and of the length beside its pointer.
    check(unsafe { libc::setsockopt(raw, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, from, len) })?;
    Ok(())
}

/// Stops a UDP socket from receiving new datagrams, so that its queue can be emptied for good. They
/// go to another socket of the same address if there is one.
///
/// The socket is connected to its own address, so that it matches no datagram but its own. It can
/// still send to any address.
///
/// # Errors
/// As `connect(2)`.
pub fn turn_away_datagrams(fd: BorrowedFd<'_>) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    socket.connect(&socket.local_addr()?)
}

/// Reads an IPv4 or IPv6 address that the kernel wrote; none for any other family, and if it is
/// incomplete.
///
/// # Safety
/// `name` must be valid for reads, and its first `len` bytes initialized.
pub(super) unsafe fn decode_inet(
    name: *const libc::sockaddr_storage,
    len: libc::socklen_t,
) -> Option<SocketAddr> {
    if (len as usize) < size_of::<libc::sa_family_t>() {
        return None;
    }
    // SAFETY: the family is the first field, and it is initialized, as just checked.
    let family = libc::c_int::from(unsafe { (&raw const (*name).ss_family).read() });
    let len = len as usize;
    if family == libc::AF_INET && len >= size_of::<libc::sockaddr_in>() {
        // SAFETY: the address is of this family and completely initialized.
        let address = unsafe { name.cast::<libc::sockaddr_in>().read() };
        let ip = address.sin_addr.s_addr.to_ne_bytes();
        Some(SocketAddrV4::new(ip.into(), u16::from_be(address.sin_port)).into())
    } else if family == libc::AF_INET6 && len >= size_of::<libc::sockaddr_in6>() {
        // SAFETY: as above.
        let address = unsafe { name.cast::<libc::sockaddr_in6>().read() };
        let (ip, port) = (address.sin6_addr.s6_addr, u16::from_be(address.sin6_port));
        Some(
            SocketAddrV6::new(
                ip.into(),
                port,
                address.sin6_flowinfo,
                address.sin6_scope_id,
            )
            .into(),
        )
    } else {
        None
    }
}

/// Writes an address for the kernel to read; returns its length.
pub(super) fn encode_inet(
    address: &SocketAddr,
    name: &mut libc::sockaddr_storage,
) -> libc::socklen_t {
    let name: *mut libc::sockaddr_storage = name;
    match address {
        SocketAddr::V4(address) => {
            let encoded = libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(address.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: a `sockaddr_storage` is large enough and aligned for every kind of address.
            unsafe { name.cast::<libc::sockaddr_in>().write(encoded) };
            size_of::<libc::sockaddr_in>() as libc::socklen_t
        }
        SocketAddr::V6(address) => {
            let encoded = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr {
                    s6_addr: address.ip().octets(),
                },
                sin6_scope_id: address.scope_id(),
            };
            // SAFETY: as above.
            unsafe { name.cast::<libc::sockaddr_in6>().write(encoded) };
            size_of::<libc::sockaddr_in6>() as libc::socklen_t
        }
    }
}
