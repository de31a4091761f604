//! Sockets: made, changed and asked. Listening sockets in particular: what waits in their queue,
//! what fell off its end, and how to retire one without losing anybody.

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

/// How an address is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// By this socket alone: an address that anybody else has is an error.
    Exclusive,
    /// With `SO_REUSEPORT`, beside other sockets of ours.
    Shared,
}

/// Binds a nonblocking TCP or UDP socket. An IPv6 socket takes IPv6 alone.
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
        // Connections of a predecessor in TIME_WAIT do not keep the port. On a datagram socket the
        // option would mean something else: that others may take the address over.
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

/// Makes a datagram socket tell which address each datagram was sent to (`ip(7)`, `ipv6(7)`), and
/// lets the kernel deliver several of one sender at once (`UDP_GRO`, `udp(7)`).
fn prepare_datagrams(socket: &impl AsFd, address: SocketAddr) -> io::Result<()> {
    // A kernel before Linux 5.0 delivers them one by one.
    let _ = setsockopt(socket, sockopt::UdpGroSegment, &true);
    if address.is_ipv6() {
        setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?;
    }
    Ok(())
}

/// Makes a socket that somebody else has bound as one of ours would be.
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

/// Whether it is a stream or a datagram socket.
#[must_use]
pub fn kind(fd: BorrowedFd<'_>) -> Option<Type> {
    SockRef::from(&fd).r#type().ok()
}

/// Binds a nonblocking Unix socket to a path that does not exist.
///
/// # Errors
/// As `socket(2)` and `bind(2)`.
pub fn bind_unix(kind: Type, path: &Path) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::UNIX, kind.nonblocking().cloexec(), None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    Ok(socket.into())
}

/// Whether somebody listens on, or has bound, this Unix socket path.
///
/// # Errors
/// When it can't be told: the path is no socket, or may not be asked.
pub fn unix_is_alive(kind: Type, path: &Path) -> io::Result<bool> {
    let socket = Socket::new(Domain::UNIX, kind.nonblocking().cloexec(), None)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(true),
        // A full backlog is a sign of life.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        // A socket of the other kind has it.
        Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(false),
        Err(error) => Err(error),
    }
}

/// Lets further sockets of ours bind the same address (`SO_REUSEPORT`), also if this one already
/// listens.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn share_address(fd: BorrowedFd<'_>) -> io::Result<()> {
    SockRef::from(&fd).set_reuse_port(true)
}

/// Listens, or changes the backlog of a socket that does. The kernel caps it silently at
/// `net.core.somaxconn`: ask [`queue`] what became of it.
///
/// # Errors
/// As `listen(2)`.
pub fn listen(fd: BorrowedFd<'_>, backlog: u32) -> io::Result<()> {
    SockRef::from(&fd).listen(i32::try_from(backlog).unwrap_or(i32::MAX))
}

/// The address that the socket is bound to; none for a Unix socket.
#[must_use]
pub fn local_address(fd: BorrowedFd<'_>) -> Option<SocketAddr> {
    SockRef::from(&fd).local_addr().ok()?.as_socket()
}

/// Whether it is a socket that clients can find: it listens, or takes datagrams at an address.
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

/// Whether two descriptors are of one socket.
#[must_use]
pub fn is_same(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    let inode = |fd| nix::sys::stat::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    inode(one).is_ok_and(|one| inode(other) == Ok(one))
}

/// Whether [`drop_new_connections`] or [`turn_away_datagrams`] was called on it.
#[must_use]
pub fn is_turned_away(fd: BorrowedFd<'_>) -> bool {
    // An interface that is not there has no name.
    let is_bound_to_one =
        getsockopt(&fd, sockopt::BindToDevice).map_or(true, |name| !name.is_empty());
    is_bound_to_one || SockRef::from(&fd).peer_addr().is_ok()
}

/// The path that the socket is bound to; an abstract name begins with `@`.
#[must_use]
pub fn local_path(fd: BorrowedFd<'_>) -> Option<PathBuf> {
    let address: UnixAddress = SockRef::from(&fd).local_addr().ok()?.as_unix()?;
    if let Some(name) = address.as_abstract_name() {
        return Some(OsStr::from_bytes(&[b"@".as_slice(), name].concat()).into());
    }
    Some(address.as_pathname()?.into())
}

/// Options that connections inherit from the socket which they were accepted from, so that none
/// costs a system call per connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inherited {
    /// `TCP_NODELAY`; none on sockets that are not TCP.
    pub no_delay: Option<bool>,
    /// Probes after so long a silence; none: no probes.
    pub keepalive: Option<Duration>,
    /// `SO_RCVBUF` in bytes, beyond `net.core.rmem_max` where we may; none: as the kernel sees fit.
    pub receive_buffer: Option<u32>,
    /// `SO_SNDBUF` in bytes; none: as the kernel sees fit.
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
                // After that silence a probe each sixth of it; six without an answer are the end.
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
        // Only CAP_NET_ADMIN may go beyond the limit. The kernel caps this one, silently.
        socket.set_recv_buffer_size(bytes as usize)?;
    }
    if let Some(bytes) = options.send_buffer {
        socket.set_send_buffer_size(bytes as usize)?;
    }
    Ok(())
}

/// What became of the `SO_RCVBUF` that was asked for, in bytes.
#[must_use]
pub fn receive_buffer(fd: BorrowedFd<'_>) -> Option<u32> {
    // The kernel doubles what it is asked for, for what it needs itself (socket(7)).
    let bytes = SockRef::from(&fd).recv_buffer_size().ok()? / 2;
    u32::try_from(bytes).ok()
}

/// Accepts a connection, nonblocking, with its address where it has one.
///
/// # Errors
/// `WouldBlock` when nobody waits; others as `accept4(2)`.
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
    // SAFETY: `accept4(2)` has just made this descriptor for us alone.
    let connection = unsafe { OwnedFd::from_raw_fd(accepted) };
    // SAFETY: the kernel wrote `len` bytes of address.
    Ok((connection, unsafe { decode_inet(name.as_ptr(), len) }))
}

/// Makes the coming `close(2)` an RST (`SO_LINGER` of zero, `socket(7)`).
pub fn reset_on_close(fd: BorrowedFd<'_>) {
    // Can fail only on a socket that is broken already: then there is nobody to tell.
    let _ = SockRef::from(&fd).set_linger(Some(Duration::ZERO));
}

/// The pending error of a socket, which is thereby taken from it (`SO_ERROR`).
#[must_use]
pub fn take_error(fd: BorrowedFd<'_>) -> Option<io::Error> {
    SockRef::from(&fd).take_error().ok().flatten()
}

/// Whether the socket is of the Internet, not Unix.
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

/// Whether clients are taken in on it (`SO_ACCEPTCONN`).
#[must_use]
pub fn is_listening(fd: BorrowedFd<'_>) -> bool {
    SockRef::from(&fd).is_listener().unwrap_or(false)
}

/// What the kernel knows about one connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Our side of it.
    pub local: Option<SocketAddr>,
    /// The smoothed round trip, in microseconds.
    pub rtt_us: Option<u32>,
    /// Segments sent again, over the connection's life.
    pub retransmits: Option<u32>,
    /// Bytes in the kernel that the peer has not acknowledged (Unix: not read).
    pub send_queue: Option<u32>,
    /// The process at the other end of a Unix socket, as it was when it connected.
    pub pid: Option<i32>,
    /// Its user.
    pub uid: Option<u32>,
}

/// Asks for the details of a stream connection.
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

/// A number that changes whenever the peer has taken bytes: those acknowledged on TCP, those not
/// yet read on a Unix socket.
#[must_use]
pub fn progress(fd: BorrowedFd<'_>) -> u64 {
    match tcp_bytes_acked(fd) {
        Some(acked) => acked,
        None => send_queue(fd).unwrap_or(0).into(),
    }
}

/// Bytes written and not yet taken by the peer (`SIOCOUTQ`, `tcp(7)`, `unix(7)`).
fn send_queue(fd: BorrowedFd<'_>) -> Option<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: this ioctl writes one int to a live local.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) }).ok()?;
    u32::try_from(bytes).ok()
}

/// `TCP_INFO` (`tcp(7)`); none on a socket that is not TCP.
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

/// The bytes that the peer has acknowledged, over the connection's life. The kernel's structure
/// goes on where `libc`'s ends (`linux/tcp.h`: `tcpi_bytes_acked`, at byte 120).
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
    /// How many it may hold: what became of the backlog that was asked for.
    pub effective: u32,
    /// How many wait in it now.
    pub queued: u32,
    /// How many clients found it full, over the socket's life.
    pub overflows: u32,
}

/// Asks a listening TCP socket for its queue: `TCP_INFO` gives its length and limit in the fields
/// that count segments on a connection, `SO_MEMINFO` the drops.
#[must_use]
pub fn queue(fd: BorrowedFd<'_>) -> Option<Queue> {
    let info = tcp_info(fd)?;
    Some(Queue {
        effective: info.tcpi_sacked,
        queued: info.tcpi_unacked,
        overflows: drops(fd),
    })
}

/// How many clients wait on a listening Unix socket, by its path. The kernel lists them under that
/// path as connections that no process has yet (`proc_net_unix(5)`: state 2, connecting).
///
/// # Errors
/// When `/proc` is not to be read.
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

/// How many packets this socket has dropped (`SO_MEMINFO`, `SK_MEMINFO_DROPS`): clients that found
/// the backlog full, or datagrams that found the receive buffer full.
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

/// From now on the listening TCP socket takes no SYN, so that its queue can be emptied for good.
/// Such a client reaches another socket that fits, or is refused; only where the other socket has
/// the very same address may it have to try again, in a second. Clients whose handshake is under
/// way are not touched.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn drop_new_connections(fd: BorrowedFd<'_>) -> io::Result<()> {
    // It is bound to an interface that does not exist. Anybody may, from Linux 5.7 on; a filter
    // takes privileges on some kernels.
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

fn filter_syns(fd: BorrowedFd<'_>) -> io::Result<()> {
    const SYN_ACK: u32 = 0x12;
    const SYN: u32 = 0x02;
    let statement = |code, k| libc::sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    };
    // A classic BPF program on the TCP header, whose byte 13 holds the flags (RFC 9293).
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

/// From now on the UDP socket gets no new datagrams, so that its queue can be emptied for good: they
/// go to another socket of the address, if there is one. It is connected to itself, which leaves
/// it one possible sender; what it sends may still go to anybody.
///
/// # Errors
/// As `connect(2)`.
pub fn turn_away_datagrams(fd: BorrowedFd<'_>) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    socket.connect(&socket.local_addr()?)
}

/// Reads an IPv4 or IPv6 address as the kernel wrote it; none if it is neither.
///
/// # Safety
/// The first `len` bytes at `name` must have been written.
pub(super) unsafe fn decode_inet(
    name: *const libc::sockaddr_storage,
    len: libc::socklen_t,
) -> Option<SocketAddr> {
    if (len as usize) < size_of::<libc::sa_family_t>() {
        return None;
    }
    // SAFETY: the family comes first and has been written, as just checked.
    let family = libc::c_int::from(unsafe { (&raw const (*name).ss_family).read() });
    let len = len as usize;
    if family == libc::AF_INET && len >= size_of::<libc::sockaddr_in>() {
        // SAFETY: of this family and written in whole.
        let address = unsafe { name.cast::<libc::sockaddr_in>().read() };
        let ip = address.sin_addr.s_addr.to_ne_bytes();
        Some(SocketAddrV4::new(ip.into(), u16::from_be(address.sin_port)).into())
    } else if family == libc::AF_INET6 && len >= size_of::<libc::sockaddr_in6>() {
        // SAFETY: of this family and written in whole.
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
            // SAFETY: a `sockaddr_storage` is made to hold any address.
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
