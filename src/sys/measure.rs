//! Datagrams one at a time, with all that the kernel tells about each: for who measures, not for
//! who serves. What became of those that did not arrive is told, too (`MSG_ERRQUEUE`, `ip(7)`).

use std::io;
use std::mem::{size_of, zeroed};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};

use super::check;
use super::message::{Source, UnixName};
use super::socket::{self, decode_inet};

/// Not in `libc` (`linux/in.h`, `linux/in6.h`).
const IP_RECVFRAGSIZE: libc::c_int = 25;
const IPV6_RECVFRAGSIZE: libc::c_int = 77;

/// Whether what is sent may be fragmented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragmenting {
    /// By us and by routers; over IPv6 routers never do.
    Allowed,
    /// By nobody; a send that is known to be too large for the path fails with `EMSGSIZE`.
    Forbidden,
    /// By nobody; only what is too large for our own interface fails, whatever is known of the path.
    Probing,
}

/// Says whether what is sent may be fragmented (`IP_MTU_DISCOVER`, `IPV6_MTU_DISCOVER`).
///
/// # Errors
/// As `setsockopt(2)`.
pub fn set_fragmenting(fd: BorrowedFd<'_>, fragmenting: Fragmenting) -> io::Result<()> {
    let value = match fragmenting {
        Fragmenting::Allowed => libc::IP_PMTUDISC_DONT,
        Fragmenting::Forbidden => libc::IP_PMTUDISC_DO,
        Fragmenting::Probing => libc::IP_PMTUDISC_PROBE,
    };
    // Those of IPv6 have the same values.
    if is_ipv6(fd) {
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, value)
    } else {
        set(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, value)
    }
}

/// What the kernel is asked to tell, it tells from now on: when each datagram reached this host,
/// its TTL and traffic class, whether it was fragmented, and what became of those sent in vain.
///
/// # Errors
/// As `setsockopt(2)`.
pub fn ask_for_all(fd: BorrowedFd<'_>) -> io::Result<()> {
    if !socket::is_inet(fd) {
        return Ok(());
    }
    set(fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
    let (level, options) = if is_ipv6(fd) {
        let options = [
            libc::IPV6_RECVERR,
            libc::IPV6_RECVHOPLIMIT,
            libc::IPV6_RECVTCLASS,
            IPV6_RECVFRAGSIZE,
        ];
        (libc::IPPROTO_IPV6, options)
    } else {
        let options = [
            libc::IP_RECVERR,
            libc::IP_RECVTTL,
            libc::IP_RECVTOS,
            IP_RECVFRAGSIZE,
        ];
        (libc::IPPROTO_IP, options)
    };
    options
        .into_iter()
        .try_for_each(|option| set(fd, level, option, 1))
}

fn is_ipv6(fd: BorrowedFd<'_>) -> bool {
    socket::local_address(fd).is_some_and(|address| address.is_ipv6())
}

fn set(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let (raw, from) = (fd.as_raw_fd(), (&raw const value).cast());
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the kernel reads one int from a live local.
    check(unsafe { libc::setsockopt(raw, level, option, from, len) })?;
    Ok(())
}

/// How many segments a TCP connection has received, those without data too, such as keepalives
/// (`linux/tcp.h`: `tcpi_segs_in`, at byte 140); none on another socket.
#[must_use]
pub fn segments_received(fd: BorrowedFd<'_>) -> Option<u32> {
    let mut words = [0u32; 36];
    let mut len = size_of_val(&words) as libc::socklen_t;
    let (raw, to) = (fd.as_raw_fd(), words.as_mut_ptr().cast());
    // SAFETY: the kernel writes at most `len` bytes to a live local of that size.
    check(unsafe { libc::getsockopt(raw, libc::IPPROTO_TCP, libc::TCP_INFO, to, &raw mut len) })
        .ok()?;
    (len as usize == size_of_val(&words)).then_some(words[35])
}

/// A datagram that has arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// How many bytes it has; more than there was room for if it did not fit.
    pub len: usize,
    /// Who sent it.
    pub source: Source,
    /// How long ago it reached this host, where the kernel tells.
    pub age: Option<Duration>,
    /// Its TTL, or hop limit.
    pub ttl: Option<u8>,
    /// Its traffic class: DSCP and ECN.
    pub class: Option<u8>,
    /// It came in fragments, the largest of them an IP packet of so many bytes.
    pub fragment: Option<u32>,
}

/// A datagram that was sent in vain.
#[derive(Debug)]
pub struct Failure {
    /// How many of its bytes are there to recognize it by.
    pub len: usize,
    /// Why.
    pub error: io::Error,
    /// Who says so; none: this host.
    pub reporter: Option<IpAddr>,
    /// The largest packet that could have passed, where that is the reason.
    pub mtu: Option<u32>,
}

/// Receives one datagram, without waiting.
///
/// # Errors
/// `WouldBlock` when there is none; others as `recvmsg(2)`, which may be about one sent earlier.
pub fn receive(fd: BorrowedFd<'_>, memory: &mut [u8]) -> io::Result<Arrival> {
    let mut arrival = Arrival {
        len: 0,
        source: Source::Unix(UnixName::NONE),
        age: None,
        ttl: None,
        class: None,
        fragment: None,
    };
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    let (len, source) =
        receive_message(fd, memory, flags, |level, kind, data| match (level, kind) {
            (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS) => {
                arrival.age = data.read::<libc::timespec>().and_then(age);
            }
            (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                arrival.ttl = data.number();
            }
            (libc::IPPROTO_IP, libc::IP_TOS) => arrival.class = data.read(),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => arrival.class = data.number(),
            (libc::IPPROTO_IP, IP_RECVFRAGSIZE) | (libc::IPPROTO_IPV6, IPV6_RECVFRAGSIZE) => {
                arrival.fragment = data.number();
            }
            _ => {}
        })?;
    arrival.len = len;
    arrival.source = source;
    Ok(arrival)
}

/// Takes the next of those that were sent in vain, without waiting.
///
/// # Errors
/// `WouldBlock` when there is none; others as `recvmsg(2)`.
pub fn receive_failure(fd: BorrowedFd<'_>, memory: &mut [u8]) -> io::Result<Failure> {
    let mut failure = Failure {
        len: 0,
        error: io::Error::other("the kernel does not say"),
        reporter: None,
        mtu: None,
    };
    let flags = libc::MSG_DONTWAIT | libc::MSG_ERRQUEUE;
    let (len, _) = receive_message(fd, memory, flags, |level, kind, data| {
        let told = [
            (libc::IPPROTO_IP, libc::IP_RECVERR),
            (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
        ];
        if !told.contains(&(level, kind)) {
            return;
        }
        let Some(error) = data.read::<libc::sock_extended_err>() else {
            return;
        };
        failure.error = io::Error::from_raw_os_error(error.ee_errno.cast_signed());
        if error.ee_errno.cast_signed() == libc::EMSGSIZE {
            failure.mtu = Some(error.ee_info);
        }
        if error.ee_origin != libc::SO_EE_ORIGIN_LOCAL {
            failure.reporter = data.address_behind::<libc::sock_extended_err>();
        }
    })?;
    failure.len = len.min(memory.len());
    Ok(failure)
}

/// How long ago that was by the clock that stamps datagrams.
fn age(stamp: libc::timespec) -> Option<Duration> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).ok()?;
    let age = now.num_nanoseconds() - (stamp.tv_sec * 1_000_000_000 + stamp.tv_nsec);
    // If somebody has set the clock meanwhile, it is anything.
    let age = Duration::from_nanos(u64::try_from(age).ok()?);
    (age < Duration::from_secs(60)).then_some(age)
}

/// What a control message says (`cmsg(3)`).
struct Data {
    start: *const u8,
    len: usize,
}

impl Data {
    /// A structure of the kernel's at its beginning.
    fn read<T: Copy>(&self) -> Option<T> {
        // SAFETY: so many bytes were written there by the kernel, and each `T` that is asked for
        // consists of integers.
        (self.len >= size_of::<T>()).then(|| unsafe { self.start.cast::<T>().read_unaligned() })
    }

    /// An int.
    fn number<T: TryFrom<libc::c_int>>(&self) -> Option<T> {
        T::try_from(self.read::<libc::c_int>()?).ok()
    }

    /// The IP address that stands behind a structure.
    fn address_behind<T>(&self) -> Option<IpAddr> {
        let len = self.len.checked_sub(size_of::<T>())?;
        // SAFETY: the kernel wrote so many bytes of an address there, or zeros. They need not be
        // aligned: so they are copied to where they are.
        let name = unsafe {
            let mut name: libc::sockaddr_storage = zeroed();
            let from = self.start.add(size_of::<T>());
            let len = len.min(size_of::<libc::sockaddr_storage>());
            std::ptr::copy_nonoverlapping(from, (&raw mut name).cast(), len);
            name
        };
        // SAFETY: just written.
        let address = unsafe { decode_inet(&raw const name, len as libc::socklen_t) };
        address.map(|address| address.ip())
    }
}

/// Room for the control messages of one datagram, aligned for their headers.
#[repr(C, align(8))]
struct Control([u8; 256]);

fn receive_message(
    fd: BorrowedFd<'_>,
    memory: &mut [u8],
    flags: libc::c_int,
    mut tell: impl FnMut(libc::c_int, libc::c_int, Data),
) -> io::Result<(usize, Source)> {
    // SAFETY: all fields are integers and pointers, for which zero is a value.
    let (mut name, mut header): (libc::sockaddr_storage, libc::msghdr) =
        unsafe { (zeroed(), zeroed()) };
    let mut control = Control([0; 256]);
    let mut part = libc::iovec {
        iov_base: memory.as_mut_ptr().cast(),
        iov_len: memory.len(),
    };
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len();
    // SAFETY: the header points to live memory of ours, each piece of the length beside it.
    let received = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags) };
    let len = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel left the header so, over memory that is still live.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !next.is_null() {
        // SAFETY: `CMSG_FIRSTHDR` and `CMSG_NXTHDR` return whole headers within the control memory.
        let message = unsafe { &*next };
        // SAFETY: `CMSG_LEN` only computes.
        let before = unsafe { libc::CMSG_LEN(0) } as usize;
        let data = Data {
            // SAFETY: what a header says lies behind it, within the control memory.
            start: unsafe { libc::CMSG_DATA(next) },
            len: message.cmsg_len.saturating_sub(before),
        };
        tell(message.cmsg_level, message.cmsg_type, data);
        // SAFETY: `next` is a header of this very message.
        next = unsafe { libc::CMSG_NXTHDR(&raw const header, next) };
    }
    // SAFETY: the kernel wrote so many bytes of an address.
    let source = match unsafe { decode_inet(&raw const name, header.msg_namelen) } {
        Some(address) => Source::Inet(address),
        None => Source::Unix(UnixName::decode(&name, header.msg_namelen)),
    };
    Ok((len, source))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// Loopback delivers before a send returns, and its ICMP as well.
    fn pair() -> (UdpSocket, UdpSocket) {
        let socket = || UdpSocket::bind("127.0.0.1:0").expect("a UDP socket");
        let (one, other) = (socket(), socket());
        ask_for_all(one.as_fd()).expect("a kernel that tells");
        (one, other)
    }

    #[test]
    fn a_datagram_comes_with_its_sender_its_age_and_its_ttl() {
        let (one, other) = pair();
        let to = one.local_addr().expect("an address");
        other.set_ttl(17).expect("a TTL");
        assert_eq!(other.send_to(b"hello", to).expect("sent"), 5);
        let mut memory = [0; 3];
        let arrival = receive(one.as_fd(), &mut memory).expect("it is there");
        assert_eq!((arrival.len, &memory), (5, b"hel"), "its true length");
        assert_eq!(
            arrival.source,
            Source::Inet(other.local_addr().expect("an address"))
        );
        assert_eq!(
            (arrival.ttl, arrival.class, arrival.fragment),
            (Some(17), Some(0), None)
        );
        assert!(arrival.age.is_some(), "the kernel stamps it");
        let none = receive(one.as_fd(), &mut memory).expect_err("there is no other");
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
    }

    /// Loopback takes packets of 65,536 bytes: what fills one over IPv4 is a little too large over
    /// IPv6, whose header is longer.
    #[test]
    fn one_that_came_in_fragments_says_how_large_they_were() {
        let Ok(one) = UdpSocket::bind("[::1]:0") else {
            eprintln!("NOT TESTED: this machine has no ::1");
            return;
        };
        ask_for_all(one.as_fd()).expect("a kernel that tells");
        let other = UdpSocket::bind("[::1]:0").expect("a UDP socket");
        let to = one.local_addr().expect("an address");
        let mut memory = vec![0; 65_536];
        for (size, whole) in [(60_000, true), (65_527, false)] {
            assert_eq!(other.send_to(&vec![7; size], to).expect("sent"), size);
            let arrival = receive(one.as_fd(), &mut memory).expect("it is there");
            assert_eq!(arrival.len, size);
            assert_eq!(arrival.fragment.is_none(), whole, "{arrival:?}");
            assert!(arrival.fragment.is_none_or(|fragment| fragment <= 65_536));
        }
    }

    #[test]
    fn one_sent_in_vain_comes_back_with_the_reason() {
        let (one, other) = pair();
        let to = other.local_addr().expect("an address");
        drop(other);
        one.send_to(b"hello?", to).expect("sent");
        let mut memory = [0; 64];
        let failure = receive_failure(one.as_fd(), &mut memory).expect("it is told");
        assert_eq!(failure.error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(failure.reporter, Some(to.ip()));
        assert_eq!(&memory[..failure.len], b"hello?");
        let none = receive_failure(one.as_fd(), &mut memory).expect_err("there is no other");
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn what_is_too_large_to_go_whole_is_refused() {
        let (one, other) = pair();
        set_fragmenting(one.as_fd(), Fragmenting::Probing).expect("an option");
        let too_large = one.send_to(&vec![0; 65_530], other.local_addr().expect("an address"));
        assert_eq!(
            too_large
                .expect_err("no datagram is so large")
                .raw_os_error(),
            Some(libc::EMSGSIZE)
        );
    }

    #[test]
    fn segments_of_a_tcp_connection_are_counted() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let to = listener.local_addr().expect("an address");
        let mut stream = std::net::TcpStream::connect(to).expect("a connection");
        let (mut peer, _) = listener.accept().expect("it");
        let before = segments_received(stream.as_fd()).expect("it is TCP");
        peer.write_all(b"hello").expect("sent");
        stream.read_exact(&mut [0; 5]).expect("received");
        assert!(segments_received(stream.as_fd()) > Some(before));
        let (other, _) = pair();
        assert_eq!(segments_received(other.as_fd()), None);
    }

    #[test]
    fn a_unix_datagram_has_no_more_than_a_sender() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("one");
        let (one, other) = (UnixDatagram::bind(&path), UnixDatagram::unbound());
        let (one, other) = (one.expect("a socket"), other.expect("a socket"));
        ask_for_all(one.as_fd()).expect("nothing to ask for");
        other.send_to(b"", &path).expect("sent");
        let arrival = receive(one.as_fd(), &mut [0; 8]).expect("it is there");
        assert_eq!((arrival.len, arrival.ttl), (0, None));
        assert!(!arrival.source.has_address());
    }
}
