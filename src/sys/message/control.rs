//! The control messages of datagrams (cmsg(3)): the local address, and the size of each of several
//! datagrams that are received or sent as one.

use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Envelope, Local};
use crate::sys::ancillary::ControlMessages;

/// Memory for the control messages of one message, aligned for their headers.
///
/// It has room for the address (40 bytes) and the size (24), and for a timestamp and a drop counter
/// (56), which the process that passed a socket may have enabled (`Timestamping=`,
/// systemd.socket(5); `SO_RXQ_OVFL`, socket(7)). Without room for the size, merged datagrams would
/// look like one.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub(super) struct Control([u8; 128]);

const _: () = assert!(
    space::<libc::in6_pktinfo>() + space::<libc::c_int>() + 56 <= size_of::<Control>(),
    "there is room for the address, the size, a timestamp and a drop counter"
);

/// The size in bytes of a control message with its header and padding.
const fn space<T>() -> usize {
    // SAFETY: `CMSG_SPACE` only computes.
    unsafe { libc::CMSG_SPACE(size_of::<T>() as u32) as usize }
}

impl Control {
    pub(super) const EMPTY: Self = Self([0; 128]);

    /// Offers all of the memory to the kernel, for a receive.
    pub(super) fn offer(&mut self, header: &mut libc::msghdr) {
        header.msg_control = self.0.as_mut_ptr().cast();
        header.msg_controllen = self.0.len();
    }

    /// Writes the control messages of a message to be sent: the address to send from, and the size
    /// of the datagrams to cut it into. Both are optional.
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
                // `ipi_spec_dst` is the source address (ip(7)); the others are not used on sending.
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

    /// Appends one control message to those that end at `end`, and moves `end`.
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
        // SAFETY: the room is large enough for the header, and aligned for it: the memory is, and
        // `CMSG_SPACE` is a multiple of the alignment.
        unsafe { message.write(header) };
        // SAFETY: the data follow the header, within the room.
        let to = unsafe { libc::CMSG_DATA(message) };
        // SAFETY: `CMSG_SPACE` counts the data, too. They need not be aligned.
        unsafe { to.cast::<T>().write_unaligned(data) };
    }
}

/// Reads the control messages of a received message into its envelope.
///
/// # Safety
/// The header must be as recvmsg(2) or recvmmsg(2) left it, over control memory that is live and
/// initialized.
pub(super) unsafe fn read(header: &libc::msghdr, envelope: &mut Envelope) {
    // SAFETY: as the caller promises.
    for message in unsafe { ControlMessages::new(header) } {
        match (message.level, message.kind) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                let Some(info) = message.read::<libc::in_pktinfo>() else {
                    continue;
                };
                // `ipi_addr` is the destination in the header, `ipi_spec_dst` the local address to
                // answer from (ip(7)). They differ for a broadcast or multicast.
                envelope.unicast = info.ipi_addr.s_addr == info.ipi_spec_dst.s_addr;
                let address = Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes());
                envelope.local = Some(Local {
                    address: address.into(),
                    interface: 0,
                });
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let Some(info) = message.read::<libc::in6_pktinfo>() else {
                    continue;
                };
                let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                envelope.unicast = is_unicast(address);
                // An answer to a link-local address leaves by the interface that was hit. Any other
                // is routed, for it may have arrived on another interface than the route's.
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
            // Several datagrams were merged: the size of each (udp(7)).
            (libc::SOL_UDP, libc::UDP_GRO) => {
                let size = message.number();
                envelope.size = size.unwrap_or(envelope.size);
            }
            _ => {}
        }
    }
}

/// Whether the destination of a datagram on an IPv6 socket is unicast, as far as the address shows.
///
/// IPv6 has no broadcast. A socket that the service manager has passed may receive IPv4 as well,
/// with mapped addresses (RFC 3493, section 3.7), and there is no `ipi_spec_dst` to compare with
/// then: the broadcast address of a subnet is taken for a unicast address. That one is not answered
/// either, because the kernel does not send from it (ENETUNREACH).
fn is_unicast(destination: Ipv6Addr) -> bool {
    match destination.to_ipv4_mapped() {
        Some(mapped) => !mapped.is_multicast() && !mapped.is_broadcast(),
        None => !destination.is_multicast(),
    }
}

#[cfg(test)]
mod tests {
    use std::mem::zeroed;

    use super::*;

    /// What is read of a datagram that was sent to this address.
    fn read_back(address: IpAddr) -> Envelope {
        let local = Local {
            address,
            interface: 3,
        };
        // SAFETY: all fields are integers and pointers, for which zero is a value.
        let mut header: libc::msghdr = unsafe { zeroed() };
        let mut control = Control::EMPTY;
        control.write(&mut header, Some(&local), Some(1200));
        let mut envelope = Envelope::EMPTY;
        // SAFETY: the header was made for `control`, which is live.
        unsafe { read(&header, &mut envelope) };
        envelope
    }

    #[test]
    fn the_local_address_is_read_as_it_is_written() {
        for (address, interface) in [("2001:db8::1", 0), ("fe80::1", 3), ("::ffff:192.0.2.1", 0)] {
            let address: IpAddr = address.parse().unwrap();
            let envelope = read_back(address);
            assert_eq!(envelope.local, Some(Local { address, interface }));
            assert!(envelope.unicast, "{address}");
        }
    }

    #[test]
    fn multicast_and_broadcast_are_not_unicast() {
        for address in ["ff02::1", "::ffff:224.0.0.1", "::ffff:255.255.255.255"] {
            let envelope = read_back(address.parse().unwrap());
            assert!(!envelope.unicast, "{address}");
        }
    }

    #[test]
    fn truncated_control_messages_are_not_read() {
        // SAFETY: all fields are integers and pointers, for which zero is a value.
        let mut header: libc::msghdr = unsafe { zeroed() };
        let mut control = Control::EMPTY;
        let local = Local {
            address: Ipv6Addr::LOCALHOST.into(),
            interface: 0,
        };
        control.write(&mut header, Some(&local), None);
        // SAFETY: `CMSG_LEN` only computes.
        let truncated = unsafe { libc::CMSG_LEN(4) } as usize;
        // SAFETY: the memory begins with the header that was just written.
        unsafe { (*header.msg_control.cast::<libc::cmsghdr>()).cmsg_len = truncated };
        header.msg_controllen = truncated;
        let mut envelope = Envelope::EMPTY;
        // SAFETY: the header was made for `control`, which is live.
        unsafe { read(&header, &mut envelope) };
        assert_eq!(envelope.local, None);
    }
}
