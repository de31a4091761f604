//! Receiving what is new: the connections in the queue of a listening socket, what is dropped because a
//! queue is full, and how to close a socket without losing what is queued.
//!
//! Knows the queue, never what is done with a connection after it is accepted. Never closes a socket.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use nix::sys::socket::{getsockopt, sockopt};
use socket2::SockRef;

use super::address::decode_inet;
use super::inspect::{is_inet, tcp_info};
use crate::sys::check;

/// These two are missing in `libc` (asm-generic/socket.h).
const SO_ATTACH_REUSEPORT_CBPF: libc::c_int = 51;
const SO_DETACH_REUSEPORT_BPF: libc::c_int = 68;

/// Listens, or changes the backlog of a listening socket. The kernel caps it silently at
/// `net.core.somaxconn` (listen(2)); [`queue`] returns the effective backlog.
///
/// # Errors
/// As `listen(2)`.
pub fn listen(fd: BorrowedFd<'_>, backlog: u32) -> io::Result<()> {
    SockRef::from(&fd).listen(i32::try_from(backlog).unwrap_or(i32::MAX))
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

/// Counts the connections in the queues of all listening Unix sockets, by path. The kernel lists each
/// under the path, in the state of a socket that no process has accepted: 2, connecting (proc(5),
/// `/proc/net/unix`). The table has all Unix sockets of the machine: read it once for many listeners.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn queued_at_paths() -> io::Result<HashMap<PathBuf, u32>> {
    let mut queued = HashMap::new();
    for path in unix_paths(|state| state == b"02")? {
        *queued.entry(path).or_default() += 1;
    }
    Ok(queued)
}

/// The paths of Unix sockets in this network namespace that are bound and not connected, as they were
/// bound: those that listen, those that do not yet, and those of datagrams. An accepted connection,
/// which has the path of the socket that it came from, is in another state.
///
/// # Errors
/// If `/proc` cannot be read.
pub fn bound_paths() -> io::Result<Vec<PathBuf>> {
    unix_paths(|state| state == b"01")
}

fn unix_paths(is_wanted: impl Fn(&[u8]) -> bool) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/net/unix")?;
    let lines = table.split(|&byte| byte == b'\n');
    let paths = lines.filter_map(|line| path_in_state(line, &is_wanted));
    Ok(paths.map(|path| OsStr::from_bytes(path).into()).collect())
}

/// The path of the socket in this line of the table, if it has one and its state is wanted.
fn path_in_state(line: &[u8], is_wanted: impl Fn(&[u8]) -> bool) -> Option<&[u8]> {
    // Num RefCount Protocol Flags Type St Inode Path
    let mut rest = line;
    for column in 0..7 {
        let start = rest.iter().position(|&byte| byte != b' ')?;
        let end = start + rest[start..].iter().position(|&byte| byte == b' ')?;
        if column == 5 && !is_wanted(&rest[start..end]) {
            return None;
        }
        rest = &rest[end..];
    }
    rest.strip_prefix(b" ")
}

/// The number of packets that this socket has dropped (`SK_MEMINFO_DROPS` of `SO_MEMINFO`): connection
/// attempts because the backlog was full, or datagrams because the receive buffer was. 0 if the kernel,
/// before Linux 4.12, does not say.
#[must_use]
pub fn drops(fd: BorrowedFd<'_>) -> u32 {
    memory_info(fd).map_or(0, |values| values[SK_MEMINFO_DROPS])
}

/// An upper bound of how many connections or messages are queued on a listening or datagram socket
/// now. Datagrams that the kernel delivers as one message (`UDP_GRO`, udp(7)) are one.
#[must_use]
pub fn queued_max(fd: BorrowedFd<'_>) -> u32 {
    // A packet takes more memory than this, however short it is: `struct sk_buff` and `struct
    // skb_shared_info` together (`SKB_TRUESIZE`, linux/skbuff.h).
    const PACKET_BYTES_MIN: u32 = 256;
    // The kernel does not tell the length of a Unix socket's queue. It is limited by the backlog, or by
    // net.unix.max_dgram_qlen, which are far smaller.
    const UNIX_QUEUE_MAX: u32 = 65_536;
    if let Some(queue) = queue(fd) {
        // It is full when one more than the backlog is in it (`sk_acceptq_is_full()`, net/sock.h).
        queue.queued.max(queue.effective) + 1
    } else if is_inet(fd) {
        // Linux before 4.12 does not tell.
        memory_info(fd).map_or(u32::MAX, |values| {
            values[SK_MEMINFO_RMEM_ALLOC] / PACKET_BYTES_MIN
        })
    } else {
        UNIX_QUEUE_MAX
    }
}

const SK_MEMINFO_RMEM_ALLOC: usize = 0;
const SK_MEMINFO_DROPS: usize = 8;

/// Queries `SO_MEMINFO` (linux/sock_diag.h), which Linux has since 4.12.
fn memory_info(fd: BorrowedFd<'_>) -> Option<[u32; SK_MEMINFO_DROPS + 1]> {
    const SO_MEMINFO: libc::c_int = 55;
    let mut values = [0; SK_MEMINFO_DROPS + 1];
    let mut len = size_of_val(&values) as libc::socklen_t;
    let (raw, to) = (fd.as_raw_fd(), values.as_mut_ptr().cast());
    // SAFETY: the kernel writes at most `len` bytes to a live local of that size.
    check(unsafe { libc::getsockopt(raw, libc::SOL_SOCKET, SO_MEMINFO, to, &raw mut len) }).ok()?;
    Some(values)
}

/// Stops a listening TCP socket from receiving SYNs, so that its queue can be emptied for good.
///
/// A new client reaches another listening socket that matches, or is refused. Handshakes in progress
/// complete. Where other sockets share the address, call [`direct_to_first`] before: the kernel
/// would still choose this one for some SYNs, which are then lost and retransmitted after a second
/// (RFC 6298, section 2).
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

/// Of all sockets that listen on the address of this one (`SO_REUSEPORT`), lets only the `count`
/// that have done so for longest receive new connections.
///
/// Must be undone with [`direct_to_all`] when the others are closed, before any of the first is.
///
/// # Errors
/// As `setsockopt(2)`; `EINVAL` if the socket does not share its address.
pub fn direct_to_first(fd: BorrowedFd<'_>, count: u32) -> io::Result<()> {
    let statement = |code, k| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    // A classic BPF program that returns the index of a socket in the group, which has them in the
    // order in which they began to listen (socket(7), SO_ATTACH_REUSEPORT_CBPF). Any will do for a
    // SYN.
    let random = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM) as u32;
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, random),
        statement(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, count.max(1)),
        statement(libc::BPF_RET | libc::BPF_A, 0),
    ];
    attach(fd, SO_ATTACH_REUSEPORT_CBPF, &mut program)
}

/// Ends [`direct_to_first`].
pub fn direct_to_all(fd: BorrowedFd<'_>) {
    let unused: libc::c_int = 0;
    let (raw, from) = (fd.as_raw_fd(), (&raw const unused).cast());
    let (option, len) = (
        SO_DETACH_REUSEPORT_BPF,
        size_of_val(&unused) as libc::socklen_t,
    );
    // SAFETY: the kernel reads at most one int from a live local.
    let detached = check(unsafe { libc::setsockopt(raw, libc::SOL_SOCKET, option, from, len) });
    // Fails where no program is attached; and before Linux 5.3, where the first sockets continue alone.
    let _ = detached;
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
    attach(fd, libc::SO_ATTACH_FILTER, &mut program)
}

/// Attaches a classic BPF program to a socket.
fn attach(
    fd: BorrowedFd<'_>,
    option: libc::c_int,
    program: &mut [libc::sock_filter],
) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    let (raw, from) = (fd.as_raw_fd(), (&raw const program).cast());
    let len = size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: the kernel copies the program, which is live and of the length beside its pointer.
    check(unsafe { libc::setsockopt(raw, libc::SOL_SOCKET, option, from, len) })?;
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
pub fn drop_new_datagrams(fd: BorrowedFd<'_>) -> io::Result<()> {
    let socket = SockRef::from(&fd);
    socket.connect(&socket.local_addr()?)
}

/// Whether [`drop_new_connections`] or [`drop_new_datagrams`] was called on it. Also a socket that
/// is bound to an existing interface (`BindToDevice=`, systemd.socket(5)) or connected is reported
/// so.
#[must_use]
pub fn drops_all_new(fd: BorrowedFd<'_>) -> bool {
    // SO_BINDTODEVICE fails with ENODEV if the interface does not exist, and is empty for a socket
    // that is not bound to one.
    let is_bound_to_one =
        getsockopt(&fd, sockopt::BindToDevice).map_or(true, |name| !name.is_empty());
    is_bound_to_one || SockRef::from(&fd).peer_addr().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table_is_a_connection_in_a_queue_or_not() {
        let check = |line: &str, expected: Option<&str>| {
            let found = path_in_state(line.as_bytes(), |state| state == b"02");
            assert_eq!(found, expected.map(str::as_bytes));
        };
        check(
            "0000000000000000: 00000002 00000000 00000000 0001 02 123456 /run/a b.sock",
            Some("/run/a b.sock"),
        );
        check(
            "0000000000000000: 00000002 00000000 00000000 0001 02   56 /run/a.sock",
            Some("/run/a.sock"),
        );
        // The listening socket itself, a connection that was accepted, and one without a name.
        check("0: 00000002 00000000 00010000 0001 01 6 /run/a.sock", None);
        check("0: 00000003 00000000 00000000 0001 03 6 /run/a.sock", None);
        check("0: 00000002 00000000 00000000 0001 02 6", None);
        check(
            "Num       RefCount Protocol Flags    Type St Inode Path",
            None,
        );
        check("", None);
    }
}
