//! What stands beside a message in its control messages (`cmsg(3)`): which address was hit, and how
//! long each of several datagrams is.

use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Envelope, Local};

/// Room for all that comes, aligned for its headers: the address (40 bytes), the size (24), and
/// timestamps and drop counts (56) that somebody else may have asked for on a socket which he
/// passed to us. Without room for the size, several datagrams would look like one.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub(super) struct Control([u8; 128]);

const _: () = assert!(
    space::<libc::in6_pktinfo>() + space::<libc::c_int>() + 56 <= size_of::<Control>(),
    "there is room for all that is read and written here"
);

/// The room that one control message takes.
const fn space<T>() -> usize {
    // SAFETY: `CMSG_SPACE` only computes.
    unsafe { libc::CMSG_SPACE(size_of::<T>() as u32) as usize }
}

impl Control {
    pub(super) const EMPTY: Self = Self([0; 128]);

    /// Offers all of the room to the kernel.
    pub(super) fn offer(&mut self, header: &mut libc::msghdr) {
        header.msg_control = self.0.as_mut_ptr().cast();
        header.msg_controllen = self.0.len();
    }

    /// Writes which address to answer from, and how long each of several datagrams is.
    pub(super) fn write(
        &mut self,
        header: &mut libc::msghdr,
        local: Option<&Local>,
        size: Option<u16>,
    ) {
        let mut end = 0;
        match local {
            None => {}
            Some(Local {
                address: IpAddr::V4(address),
                ..
            }) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from_ne_bytes(address.octets()),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                self.append(&mut end, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            Some(Local {
                address: IpAddr::V6(address),
                interface,
            }) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: address.octets(),
                    },
                    ipi6_ifindex: *interface,
                };
                self.append(&mut end, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
        }
        if let Some(size) = size {
            self.append(&mut end, libc::SOL_UDP, libc::UDP_SEGMENT, size);
        }
        header.msg_control = self.0.as_mut_ptr().cast();
        header.msg_controllen = end;
    }

    /// Appends one control message behind those that end at `end`.
    fn append<T>(&mut self, end: &mut usize, level: libc::c_int, kind: libc::c_int, data: T) {
        let room = &mut self.0[*end..][..space::<T>()];
        *end += room.len();
        let message = room.as_mut_ptr().cast::<libc::cmsghdr>();
        // SAFETY: all fields of `cmsghdr` are integers, for which zero is a value.
        let mut header: libc::cmsghdr = unsafe { std::mem::zeroed() };
        header.cmsg_level = level;
        header.cmsg_type = kind;
        // SAFETY: `CMSG_LEN` only computes.
        header.cmsg_len = unsafe { libc::CMSG_LEN(size_of::<T>() as u32) } as usize;
        // SAFETY: the room begins with the header, and is aligned for it as `CMSG_SPACE` ensures.
        unsafe { message.write(header) };
        // SAFETY: the data follow the header, within the room.
        let to = unsafe { libc::CMSG_DATA(message) };
        // SAFETY: there is room for them, as computed; they need not be aligned.
        unsafe { to.cast::<T>().write_unaligned(data) };
    }
}

/// Reads all that is told beside a message, into its envelope.
///
/// # Safety
/// The header must be as `recvmsg(2)` left it, over memory that lives.
pub(super) unsafe fn read(header: &libc::msghdr, envelope: &mut Envelope) {
    // SAFETY: as the caller promises.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(header) };
    // SAFETY: the macro's result is null or a header within the control memory.
    while let Some(message) = unsafe { next.as_ref() } {
        // SAFETY: as above; the data follow the header.
        let data = unsafe { libc::CMSG_DATA(message) };
        match (message.cmsg_level, message.cmsg_type) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                // SAFETY: that is what such a message holds; it need not be aligned.
                let info = unsafe { data.cast::<libc::in_pktinfo>().read_unaligned() };
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
                let info = unsafe { data.cast::<libc::in6_pktinfo>().read_unaligned() };
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
            (libc::SOL_UDP, libc::UDP_GRO) => {
                // SAFETY: as above.
                let size = unsafe { data.cast::<libc::c_int>().read_unaligned() };
                envelope.size = usize::try_from(size).unwrap_or(envelope.size);
            }
            _ => {}
        }
        // SAFETY: `message` is a header of this very buffer.
        next = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
}
