//! Internet addresses as the kernel reads and writes them (`struct sockaddr`, ip(7), ipv6(7)).
//!
//! Knows the layout of an IPv4 and an IPv6 address. Never makes a system call; names of Unix sockets
//! are in [`message`](crate::sys::message).

use std::mem::size_of;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};

/// Reads an IPv4 or IPv6 address that the kernel wrote; none for any other family, and if it is
/// incomplete.
///
/// # Safety
/// `name` must be valid for reads, and its first `len` bytes initialized.
pub(in crate::sys) unsafe fn decode_inet(
    name: *const libc::sockaddr_storage,
    len: libc::socklen_t,
) -> Option<SocketAddr> {
    if (len as usize) < size_of::<libc::sa_family_t>() {
        return None;
    }
    // SAFETY: the family is the first field, and it is initialized, as just checked.
    let family = libc::c_int::from(unsafe { (&raw const (*name).ss_family).read() });
    let len = len as usize;
    // A port is a number in network byte order. An IPv4 address is four bytes, which are in `s_addr`
    // in the order in which they are written, whatever the byte order of the host.
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
pub(in crate::sys) fn encode_inet(
    address: &SocketAddr,
    name: &mut libc::sockaddr_storage,
) -> libc::socklen_t {
    // Byte orders are as in `decode_inet`. Bytes behind the address stay as they are: the kernel is
    // given the length and does not read them.
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
