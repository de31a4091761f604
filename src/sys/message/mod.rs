//! Datagrams with what the service needs to know about them: the sender, the size as sent, and the
//! local address that was hit, so that the answer leaves from there.
//!
//! [`Incoming`] receives, and [`Outgoing`] sends, many messages with one system call.

mod batch;
mod control;

use std::ffi::OsStr;
use std::fmt;
use std::mem::{offset_of, size_of};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt;

pub(crate) use batch::{BATCH_MAX, Incoming, Message, Outgoing};

/// The addresses and the size of the datagrams in one buffer.
///
/// A buffer holds one datagram, or several of one sender to one local address that the kernel has
/// merged (`UDP_GRO`, udp(7)).
#[derive(Clone, Copy, Debug)]
pub struct Envelope {
    /// The sender's address, to which an answer goes.
    pub source: Source,
    /// The local address that was hit, from which an answer leaves; none on a Unix socket, or
    /// without `IP_PKTINFO` (ip(7)) or `IPV6_RECVPKTINFO` (ipv6(7)).
    pub local: Option<Local>,
    /// Whether it was sent to a unicast address. A broadcast or multicast reaches many hosts, all of
    /// which would answer.
    pub unicast: bool,
    /// The size in bytes of each datagram as it was sent; the last one may be shorter. If it exceeds
    /// what is in the buffer, there is one datagram, which was truncated.
    pub size: usize,
}

impl Envelope {
    /// An initial value, without addresses.
    pub const EMPTY: Self = Self {
        source: Source::Unix(UnixName::NONE),
        local: None,
        unicast: true,
        size: 0,
    };

    /// The number of datagrams that `len` bytes in the buffer consist of. An empty datagram is one.
    #[must_use]
    pub fn count(&self, len: usize) -> usize {
        if self.size == 0 {
            1
        } else {
            len.div_ceil(self.size).max(1)
        }
    }
}

/// An address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// The address.
    pub address: IpAddr,
    /// The index of the interface for a link-local address, which is ambiguous without it; else 0.
    pub interface: u32,
}

/// The sender of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// An IPv4 or IPv6 address and port.
    Inet(SocketAddr),
    /// The path or abstract name of a Unix socket, or [`UnixName::NONE`] if it is not bound.
    Unix(UnixName),
}

impl Source {
    /// Whether an answer can be addressed to it: neither UDP port 0 nor an unbound Unix socket.
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

/// The name of a Unix socket as the kernel has it (unix(7)).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct UnixName {
    len: u8,
    bytes: [u8; NAME_BYTES_MAX],
}

impl UnixName {
    /// The name of an unbound socket.
    pub const NONE: Self = Self {
        len: 0,
        bytes: [0; NAME_BYTES_MAX],
    };

    /// The name that [`Self::as_bytes`] has returned these bytes of; none if they are too many.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut name = Self::NONE;
        name.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        name.len = bytes.len() as u8;
        Some(name)
    }

    /// Reads the name in an address of which the kernel wrote `len` bytes.
    pub(super) fn decode(name: &libc::sockaddr_storage, len: libc::socklen_t) -> Self {
        let path_offset = offset_of!(libc::sockaddr_un, sun_path);
        let len = (len as usize)
            .saturating_sub(path_offset)
            .min(NAME_BYTES_MAX);
        let mut unix = Self {
            len: len as u8,
            ..Self::NONE
        };
        // SAFETY: a `sockaddr_storage` holds any address, and all of its bytes are initialized.
        let path = unsafe {
            let from: *const libc::sockaddr_storage = name;
            std::slice::from_raw_parts(from.cast::<u8>().add(path_offset), len)
        };
        unix.bytes[..len].copy_from_slice(path);
        unix
    }

    /// The bytes of the name: a path, possibly with a NUL behind it; or a NUL and an abstract name.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Display for UnixName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_bytes() {
            [] => f.write_str("unnamed"),
            // Abstract names are shown with @, as ss(8) does.
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
