//! Datagrams in and out with all that `recvmsg(2)` and `sendmsg(2)` can tell: the sender, the true
//! size, and the address that was hit, so that the answer leaves from there.
//!
//! [`Incoming`] receives, and [`Outgoing`] sends, many with one system call.

mod batch;
mod control;

use std::ffi::OsStr;
use std::fmt;
use std::mem::{offset_of, size_of};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt;

pub use batch::{BATCH_MAX, Incoming, Message, Outgoing};

/// What stands on the datagrams of one buffer: from whom they are, which of our addresses they were
/// sent to, and how long each is.
#[derive(Clone, Copy, Debug)]
pub struct Envelope {
    /// The sender.
    pub source: Source,
    /// Our address that was hit, where the socket tells (`IP_PKTINFO`, `IPV6_RECVPKTINFO`).
    pub local: Option<Local>,
    /// Whether it was sent to one host; a broadcast or multicast deserves no answer.
    pub unicast: bool,
    /// The size of each datagram as it was sent, in bytes; the last may be shorter. More than was
    /// stored: it is one that did not fit.
    pub size: usize,
}

impl Envelope {
    /// Nobody's.
    pub const EMPTY: Self = Self {
        source: Source::Unix(UnixName::NONE),
        local: None,
        unicast: true,
        size: 0,
    };

    /// How many datagrams so many bytes in the buffer are.
    #[must_use]
    pub fn count(&self, len: usize) -> usize {
        if self.size == 0 {
            1
        } else {
            len.div_ceil(self.size).max(1)
        }
    }
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

    /// A name of these bytes, as [`Self::as_bytes`] gave them; none if there are too many.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut name = Self::NONE;
        name.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        name.len = bytes.len() as u8;
        Some(name)
    }

    /// The name in an address of which the kernel wrote so many bytes.
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

    /// The name as the kernel has it: a path, perhaps with its NUL; or a NUL and an abstract name.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Display for UnixName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.as_bytes() {
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
