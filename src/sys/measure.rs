//! Datagrams received one at a time with all details that the kernel has about each, for
//! measurements; and the errors of datagrams that were not delivered (`MSG_ERRQUEUE`, recv(2)).
//!
//! A service receives with [`super::message`], which is faster and knows less.

use std::io;
use std::mem::{size_of, zeroed};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};

use super::ancillary::{self, ControlMemory, ControlMessage};
use super::check;
use super::message::{Source, UnixName};
use super::socket::{self, decode_inet};

/// Missing in `libc` (`linux/in.h`, `linux/in6.h`).
const IP_RECVFRAGSIZE: libc::c_int = 25;
const IPV6_RECVFRAGSIZE: libc::c_int = 77;

/// The types of ICMP messages about an expired TTL or hop limit (RFC 792, RFC 4443).
const ICMP_TIME_EXCEEDED: u8 = 11;
const ICMPV6_TIME_EXCEEDED: u8 = 3;

/// Whether datagrams that are sent may be fragmented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragmenting {
    /// This host fragments what exceeds an interface's MTU, and so may routers over IPv4. Routers
    /// never fragment IPv6 (RFC 8200, section 4.5).
    Allowed,
    /// No fragments. A send that exceeds the known path MTU fails with EMSGSIZE.
    Forbidden,
    /// No fragments, and the known path MTU is ignored: only a send that exceeds the MTU of the
    /// outgoing interface fails, with EMSGSIZE.
    Probing,
}

/// Sets whether datagrams that are sent may be fragmented (`IP_MTU_DISCOVER`, ip(7);
/// `IPV6_MTU_DISCOVER`, ipv6(7)).
///
/// # Errors
/// As `setsockopt(2)`.
pub fn set_fragmenting(fd: BorrowedFd<'_>, fragmenting: Fragmenting) -> io::Result<()> {
    let value = match fragmenting {
        Fragmenting::Allowed => libc::IP_PMTUDISC_DONT,
        Fragmenting::Forbidden => libc::IP_PMTUDISC_DO,
        Fragmenting::Probing => libc::IP_PMTUDISC_PROBE,
    };
    // The values of `IPV6_PMTUDISC_*` are the same (linux/in6.h).
    if is_ipv6(fd) {
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, value)
    } else {
        set(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, value)
    }
}

/// Has the kernel deliver all details that [`receive`] and [`receive_failure`] return: the time at
/// which a datagram reached this host, its TTL and traffic class, the size of its fragments, and the
/// errors of datagrams that were not delivered. Unix sockets have none of these.
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

/// A datagram that was received, and what the kernel knows about it.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// The size in bytes as it was sent, which exceeds the memory offered if it was truncated.
    pub len: usize,
    /// The sender's address.
    pub source: Source,
    /// The time since it reached this host; none without a timestamp of the kernel, or if the clock
    /// was set in between.
    pub age: Option<Duration>,
    /// The TTL, or hop limit, with which it arrived.
    pub ttl: Option<u8>,
    /// The traffic class, DSCP and ECN (RFC 2474, RFC 3168).
    pub class: Option<u8>,
    /// The size in bytes of the largest fragment, an IP packet; none if it was not fragmented.
    pub fragment: Option<u32>,
}

/// A datagram that was sent and not delivered, as reported by ICMP or by this host.
#[derive(Debug)]
pub struct ReceiveFailure {
    /// The number of its payload bytes that were returned, by which it can be recognized.
    pub len: usize,
    /// The reason, as an errno.
    pub error: io::Error,
    /// The router or host that has reported it by ICMP; none if it was this host.
    pub reporter: Option<IpAddr>,
    /// The MTU in bytes that it exceeded, if the reason is EMSGSIZE.
    pub mtu: Option<u32>,
    /// Its TTL or hop limit was used up on the way (ICMP time exceeded).
    pub expired: bool,
}

/// Where only the error is known.
impl From<io::Error> for ReceiveFailure {
    fn from(error: io::Error) -> Self {
        Self {
            len: 0,
            error,
            reporter: None,
            mtu: None,
            expired: false,
        }
    }
}

/// Room for the control messages of one datagram: all that [`ask_for_all`] asks for.
type Control = ControlMemory<256>;

/// Receives one datagram, without waiting. Descriptors that a Unix peer has attached (`SCM_RIGHTS`)
/// are closed.
///
/// # Errors
/// `WouldBlock` if there is none; others as recvmsg(2), which may belong to a datagram sent earlier.
pub fn receive(fd: BorrowedFd<'_>, memory: &mut [u8]) -> io::Result<Arrival> {
    let mut control = Control::new();
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    let message = ancillary::receive(fd, memory, &mut control, flags)?;
    // SAFETY: the kernel wrote `name_len` bytes of an address.
    let source = match unsafe { decode_inet(&raw const message.name, message.name_len) } {
        Some(address) => Source::Inet(address),
        None => Source::Unix(UnixName::decode(&message.name, message.name_len)),
    };
    let mut arrival = Arrival {
        len: message.len,
        source,
        age: None,
        ttl: None,
        class: None,
        fragment: None,
    };
    for detail in message.control_messages() {
        match (detail.level, detail.kind) {
            (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS) => {
                arrival.age = detail.read::<libc::timespec>().and_then(age);
            }
            (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                arrival.ttl = detail.number();
            }
            // The traffic class is a byte over IPv4 and an int over IPv6.
            (libc::IPPROTO_IP, libc::IP_TOS) => arrival.class = detail.read(),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => arrival.class = detail.number(),
            (libc::IPPROTO_IP, IP_RECVFRAGSIZE) | (libc::IPPROTO_IPV6, IPV6_RECVFRAGSIZE) => {
                arrival.fragment = detail.number();
            }
            // Without an owner they would stay open, and the peer could exhaust RLIMIT_NOFILE.
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                // SAFETY: each control message is visited once.
                unsafe { detail.take_descriptors() }.for_each(drop);
            }
            _ => {}
        }
    }
    Ok(arrival)
}

/// Takes the next error from the socket's error queue, without waiting (`MSG_ERRQUEUE`, recv(2)).
///
/// # Errors
/// `WouldBlock` if there is none; others as recvmsg(2).
pub fn receive_failure(fd: BorrowedFd<'_>, memory: &mut [u8]) -> io::Result<ReceiveFailure> {
    let mut control = Control::new();
    let flags = libc::MSG_DONTWAIT | libc::MSG_ERRQUEUE;
    let message = ancillary::receive(fd, memory, &mut control, flags)?;
    let mut failure = ReceiveFailure::from(io::Error::other("the kernel gives no reason"));
    failure.len = message.len;
    for detail in message.control_messages() {
        let ((libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)) =
            (detail.level, detail.kind)
        else {
            continue;
        };
        let Some(error) = detail.read::<libc::sock_extended_err>() else {
            continue;
        };
        let errno = error.ee_errno.cast_signed();
        failure.error = io::Error::from_raw_os_error(errno);
        if errno == libc::EMSGSIZE {
            failure.mtu = Some(error.ee_info);
        }
        failure.expired = matches!(
            (error.ee_origin, error.ee_type),
            (libc::SO_EE_ORIGIN_ICMP, ICMP_TIME_EXCEEDED)
                | (libc::SO_EE_ORIGIN_ICMP6, ICMPV6_TIME_EXCEEDED)
        );
        // The address of the ICMP message's sender follows (SO_EE_OFFENDER, ip(7)).
        if error.ee_origin != libc::SO_EE_ORIGIN_LOCAL {
            failure.reporter = address_behind(&detail);
        }
    }
    Ok(failure)
}

/// The time since a timestamp of `SO_TIMESTAMPNS`, which is of the clock that can be set.
fn age(stamp: libc::timespec) -> Option<Duration> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).ok()?;
    let age = now.num_nanoseconds() - (stamp.tv_sec * 1_000_000_000 + stamp.tv_nsec);
    // Negative, or implausibly long: the clock was set in between.
    let age = Duration::from_nanos(u64::try_from(age).ok()?);
    (age < Duration::from_secs(60)).then_some(age)
}

/// The IP address behind the structure of an error; none if it is unspecified.
fn address_behind(detail: &ControlMessage<'_>) -> Option<IpAddr> {
    let bytes = detail.behind::<libc::sock_extended_err>()?;
    // SAFETY: all fields are integers, for which zero is a value.
    let mut name: libc::sockaddr_storage = unsafe { zeroed() };
    let len = bytes.len().min(size_of_val(&name));
    // SAFETY: `len` bytes are readable in the one and writable in the other, and the two do not
    // overlap. The copy is aligned, which control messages need not be.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut name).cast::<u8>(), len);
    }
    // SAFETY: these bytes have just been written.
    let address = unsafe { decode_inet(&raw const name, len as libc::socklen_t) };
    address.map(|address| address.ip())
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read};
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

    use super::*;

    /// Loopback delivers datagrams, and ICMP errors about them, before the send returns.
    fn pair() -> (UdpSocket, UdpSocket) {
        let socket = || UdpSocket::bind("127.0.0.1:0").expect("a UDP socket");
        let (one, other) = (socket(), socket());
        ask_for_all(one.as_fd()).expect("the options");
        (one, other)
    }

    #[test]
    fn a_datagram_has_a_sender_an_age_and_a_ttl() {
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

    /// The MTU of loopback is 65,536 bytes; the largest datagram of IPv6 with its headers exceeds it.
    #[test]
    fn a_fragmented_datagram_has_the_size_of_its_largest_fragment() {
        let Ok(one) = UdpSocket::bind("[::1]:0") else {
            eprintln!("NOT TESTED: this machine has no ::1");
            return;
        };
        ask_for_all(one.as_fd()).expect("the options");
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
    fn an_undelivered_datagram_is_reported_with_the_reason() {
        let (one, other) = pair();
        let to = other.local_addr().expect("an address");
        drop(other);
        one.send_to(b"hello?", to).expect("sent");
        let mut memory = [0; 64];
        let failure = receive_failure(one.as_fd(), &mut memory).expect("it is reported");
        assert_eq!(failure.error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(failure.reporter, Some(to.ip()));
        assert_eq!(&memory[..failure.len], b"hello?");
        let none = receive_failure(one.as_fd(), &mut memory).expect_err("there is no other");
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_datagram_that_would_be_fragmented_is_refused_if_that_is_forbidden() {
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
    fn a_unix_datagram_has_no_details_but_its_sender() {
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

    /// Each answer of a Unix service had left the descriptors attached to it open.
    #[test]
    fn descriptors_attached_to_a_unix_datagram_are_closed() {
        let (one, other) = UnixDatagram::pair().expect("a pair");
        let (mut kept, sent) = UnixStream::pair().expect("a pair");
        let rights = [ControlMessage::ScmRights(&[sent.as_raw_fd(); 20])];
        let text = [IoSlice::new(b"gift")];
        sendmsg::<()>(other.as_raw_fd(), &text, &rights, MsgFlags::empty(), None).expect("sent");
        drop(sent);
        let arrival = receive(one.as_fd(), &mut [0; 8]).expect("it is there");
        assert_eq!(arrival.len, 4);
        kept.set_nonblocking(true).expect("an option");
        let read = kept
            .read(&mut [0])
            .expect("none of the descriptors is open");
        assert_eq!(read, 0);
    }
}
