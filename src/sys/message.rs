//! Datagrams in and out with all that `recvmsg(2)` and `sendmsg(2)` can tell: the sender, the true
//! size, and the address that was hit, so that the answer leaves from there.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::mem::{MaybeUninit, offset_of, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use super::check_size;
use super::socket::{decode_inet, encode_inet};

/// What stands on a datagram: from whom it is and which of our addresses it was sent to.
#[derive(Clone, Copy, Debug)]
pub struct Envelope {
    /// The sender.
    pub source: Source,
    /// Our address that was hit, where the socket tells (`IP_PKTINFO`, `IPV6_RECVPKTINFO`).
    pub local: Option<Local>,
    /// Whether it was sent to one host; a broadcast or multicast deserves no answer.
    pub unicast: bool,
}

impl Envelope {
    /// Nobody's.
    pub const EMPTY: Self = Self {
        source: Source::Unix(UnixName::NONE),
        local: None,
        unicast: true,
    };
}

/// An address of this host, and the interface where the address alone would not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// The address.
    pub address: IpAddr,
    /// The interface's index for link-local addresses, else 0.
    pub interface: u32,
}

/// The sender of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// An IPv4 or IPv6 address and port.
    Inet(SocketAddr),
    /// The path or abstract name of a Unix socket; none if it was not bound.
    Unix(UnixName),
}

impl Source {
    /// Whether an answer can be addressed to it.
    #[must_use]
    pub fn has_address(&self) -> bool {
        match self {
            Self::Inet(address) => address.port() != 0,
            Self::Unix(name) => name.len > 0,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Unix(name) => name.fmt(f),
        }
    }
}

const NAME_BYTES_MAX: usize =
    size_of::<libc::sockaddr_un>() - offset_of!(libc::sockaddr_un, sun_path);

/// The name of a Unix socket (`unix(7)`), as the kernel gave it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct UnixName {
    len: u8,
    bytes: [u8; NAME_BYTES_MAX],
}

impl UnixName {
    /// The name of a socket that has none.
    pub const NONE: Self = Self {
        len: 0,
        bytes: [0; NAME_BYTES_MAX],
    };
}

impl fmt::Display for UnixName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.bytes[..usize::from(self.len)] {
            [] => f.write_str("unnamed"),
            [0, name @ ..] => write!(f, "@{}", OsStr::from_bytes(name).display()),
            path => {
                let end = path
                    .iter()
                    .position(|&byte| byte == 0)
                    .unwrap_or(path.len());
                OsStr::from_bytes(&path[..end]).display().fmt(f)
            }
        }
    }
}

impl fmt::Debug for UnixName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

/// Room for one `in_pktinfo` or `in6_pktinfo`, aligned for their headers.
#[repr(C, align(8))]
struct Control([u8; 64]);

const _: () = {
    // SAFETY: `CMSG_SPACE` only computes.
    let space = unsafe { libc::CMSG_SPACE(size_of::<libc::in6_pktinfo>() as u32) };
    assert!(space as usize <= size_of::<Control>());
};

/// Receives one datagram without waiting: fills `bytes` and `envelope`, and returns the size that
/// the datagram had on the wire, which can be more than was stored (`MSG_TRUNC`, `recv(2)`).
///
/// With `inet` false no control messages are taken: whatever descriptors a Unix peer attaches
/// (`SCM_RIGHTS`) are dropped by the kernel.
///
/// # Errors
/// `WouldBlock` when there is none; others as `recvmsg(2)`.
pub fn receive(
    fd: BorrowedFd<'_>,
    inet: bool,
    bytes: &mut [u8],
    envelope: &mut Envelope,
) -> io::Result<usize> {
    let mut name = MaybeUninit::<libc::sockaddr_storage>::uninit();
    let mut control = Control([0; 64]);
    let mut parts = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all fields of `msghdr` are integers and pointers, for which zero is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = name.as_mut_ptr().cast();
    header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
    header.msg_iov = &raw mut parts;
    header.msg_iovlen = 1;
    if inet {
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = control.0.len();
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: every pointer in the header is to a live local of the length beside it.
    let len = check_size(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags) })?;

    envelope.local = None;
    envelope.unicast = true;
    if inet {
        // SAFETY: the kernel wrote an address of the socket's family, or none and `msg_namelen` 0.
        envelope.source = match unsafe { decode_inet(name.as_ptr(), header.msg_namelen) } {
            Some(address) => Source::Inet(address),
            None => Source::Unix(UnixName::NONE),
        };
        read_packet_info(&header, envelope);
    } else {
        let path_offset = offset_of!(libc::sockaddr_un, sun_path);
        let name_len = (header.msg_namelen as usize)
            .saturating_sub(path_offset)
            .min(NAME_BYTES_MAX);
        let mut unix = UnixName {
            len: name_len as u8,
            ..UnixName::NONE
        };
        // SAFETY: the kernel has written `msg_namelen` bytes, of which these are the last.
        let path = unsafe {
            std::slice::from_raw_parts(name.as_ptr().cast::<u8>().add(path_offset), name_len)
        };
        unix.bytes[..name_len].copy_from_slice(path);
        envelope.source = Source::Unix(unix);
    }
    Ok(len)
}

/// Reads which address was hit out of the control messages (`ip(7)`, `ipv6(7)`).
fn read_packet_info(header: &libc::msghdr, envelope: &mut Envelope) {
    // SAFETY: the header is as `recvmsg(2)` left it, over live memory.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: the macro's result is null or a header within the control memory.
    while let Some(message) = unsafe { next.as_ref() } {
        // SAFETY: as above; the data follow the header.
        let data = unsafe { libc::CMSG_DATA(message) };
        match (message.cmsg_level, message.cmsg_type) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                // SAFETY: that is what such a message holds; it need not be aligned.
                let info: libc::in_pktinfo =
                    unsafe { data.cast::<libc::in_pktinfo>().read_unaligned() };
                // The kernel gives the header's destination and, beside it, the local address to
                // answer from. They differ for a broadcast or multicast.
                envelope.unicast = info.ipi_addr.s_addr == info.ipi_spec_dst.s_addr;
                let address = Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes());
                envelope.local = Some(Local {
                    address: address.into(),
                    interface: 0,
                });
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                // SAFETY: as above.
                let info: libc::in6_pktinfo =
                    unsafe { data.cast::<libc::in6_pktinfo>().read_unaligned() };
                let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                envelope.unicast = !address.is_multicast();
                let interface = if address.is_unicast_link_local() {
                    info.ipi6_ifindex
                } else {
                    0
                };
                envelope.local = Some(Local {
                    address: address.into(),
                    interface,
                });
            }
            _ => {}
        }
        // SAFETY: `message` is a header of this very buffer.
        next = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
}

/// Sends one datagram without waiting, to where the envelope came from and from where it went.
///
/// # Errors
/// `WouldBlock` when a queue is full; others as `sendmsg(2)`.
pub fn send(fd: BorrowedFd<'_>, bytes: &[u8], envelope: &Envelope) -> io::Result<usize> {
    let mut name = MaybeUninit::<libc::sockaddr_storage>::zeroed();
    let mut control = Control([0; 64]);
    let mut parts = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: as in `receive`.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_namelen = match &envelope.source {
        Source::Inet(address) => encode_inet(address, &mut name),
        Source::Unix(unix) => encode_unix(unix, &mut name),
    };
    header.msg_name = name.as_mut_ptr().cast();
    header.msg_iov = &raw mut parts;
    header.msg_iovlen = 1;
    if let Some(local) = &envelope.local {
        write_packet_info(&mut header, &mut control, local);
    }
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: every pointer in the header is to a live local of the length beside it.
    check_size(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const header, flags) })
}

fn encode_unix(unix: &UnixName, name: &mut MaybeUninit<libc::sockaddr_storage>) -> libc::socklen_t {
    let mut address = libc::sockaddr_un {
        sun_family: libc::AF_UNIX as u16,
        sun_path: [0; NAME_BYTES_MAX],
    };
    for (to, from) in address.sun_path.iter_mut().zip(unix.bytes) {
        *to = from.cast_signed();
    }
    // SAFETY: a `sockaddr_storage` is made to hold any address, `sockaddr_un` included.
    unsafe { name.as_mut_ptr().cast::<libc::sockaddr_un>().write(address) };
    (offset_of!(libc::sockaddr_un, sun_path) + usize::from(unix.len)) as libc::socklen_t
}

/// Writes which address to answer from as the one control message of the header.
fn write_packet_info(header: &mut libc::msghdr, control: &mut Control, local: &Local) {
    let (level, kind, size) = match local.address {
        IpAddr::V4(_) => (
            libc::IPPROTO_IP,
            libc::IP_PKTINFO,
            size_of::<libc::in_pktinfo>(),
        ),
        IpAddr::V6(_) => (
            libc::IPPROTO_IPV6,
            libc::IPV6_PKTINFO,
            size_of::<libc::in6_pktinfo>(),
        ),
    };
    header.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: `CMSG_SPACE` only computes; that it fits is checked above at compile time.
    header.msg_controllen = unsafe { libc::CMSG_SPACE(size as u32) } as usize;
    // SAFETY: the control memory is live, aligned, zeroed and long enough for one message.
    let message = unsafe { &mut *libc::CMSG_FIRSTHDR(header) };
    message.cmsg_level = level;
    message.cmsg_type = kind;
    // SAFETY: `CMSG_LEN` only computes.
    message.cmsg_len = unsafe { libc::CMSG_LEN(size as u32) } as usize;
    // SAFETY: the data follow the header, within the control memory.
    let data = unsafe { libc::CMSG_DATA(message) };
    match local.address {
        IpAddr::V4(address) => {
            let source = libc::in_addr {
                s_addr: u32::from_ne_bytes(address.octets()),
            };
            let any = libc::in_addr { s_addr: 0 };
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: source,
                ipi_addr: any,
            };
            // SAFETY: there is room for it, as computed; it need not be aligned.
            unsafe { data.cast::<libc::in_pktinfo>().write_unaligned(info) };
        }
        IpAddr::V6(address) => {
            let source = libc::in6_addr {
                s6_addr: address.octets(),
            };
            let info = libc::in6_pktinfo {
                ipi6_addr: source,
                ipi6_ifindex: local.interface,
            };
            // SAFETY: as above.
            unsafe { data.cast::<libc::in6_pktinfo>().write_unaligned(info) };
        }
    }
}
