//! The interface of the conformance tests to a driver and the peers that it talks to.
//!
//! The peers are on real sockets in `loopback`, and on the simulated network in `simulated`. What
//! the tests do with a harness is in `driver_test`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::driver::Driver;
use crate::driver::sim::End;

/// The most bytes that are held for a peer that does not read (promise 7). A number of its own, so
/// that a driver with another limit is noticed.
pub(super) const HELD_BYTES_MAX: usize = 64 * 1024;

/// The address family of a socket, and its options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SocketKind {
    Ipv4,
    /// IPv4 with the smallest send buffer: one send needs many writes.
    SmallSendBuffer,
    /// IPv4 with a receive buffer that is larger than a driver's buffers.
    LargeReceiveBuffer,
    Ipv6,
    /// IPv4 without checksums: the kernel then refuses `UDP_SEGMENT`, which needs them.
    NoChecksum,
    /// IPv4 with `IP_RECVERR`: an ICMP error for an earlier datagram is returned by the next call
    /// on the socket (ip(7)).
    ErrorQueue,
    Unix,
}

/// A driver and the peers' side of its network.
pub(super) trait Harness: Sized {
    type Driver: Driver;
    type Address: Clone;
    type Peer;
    type Client;

    /// How many buffers there are for small messages.
    const BUFFERS: usize;

    /// Why the driver is unavailable on this machine, if it is.
    fn unavailable() -> Option<io::Error> {
        None
    }
    fn new() -> (Self, Self::Driver);
    /// Another driver on the same network.
    fn another(&self) -> (Self, Self::Driver);
    /// A listening socket; none if the machine lacks this kind.
    fn listen(&mut self, kind: SocketKind) -> Option<(SocketOf<Self>, Self::Address)>;
    /// A datagram socket on the wildcard address; none if the machine lacks this kind.
    fn bind(&mut self, kind: SocketKind) -> Option<(SocketOf<Self>, Self::Address)>;
    /// The IP address and port of a listener or socket, if it has them.
    fn inet(address: &Self::Address) -> Option<SocketAddr>;

    fn connect(&mut self, to: &Self::Address) -> io::Result<Self::Peer>;
    fn address(&mut self, peer: &Self::Peer) -> Option<SocketAddr>;
    /// Writes as many bytes as the connection takes now, and returns how many that is.
    fn write(&mut self, peer: &mut Self::Peer, bytes: &[u8]) -> usize;
    /// Writes the byte `!`, as urgent data where the network has it (tcp(7)).
    fn write_urgent(&mut self, peer: &mut Self::Peer);
    /// Reads what has arrived; returns how the connection ended once that is reached.
    fn read(&mut self, peer: &mut Self::Peer, max: usize, bytes: &mut Vec<u8>) -> Option<End>;
    /// Returns once the driver can receive all that the peer has written.
    fn until_arrived(&mut self, peer: &mut Self::Peer);
    fn half_close(&mut self, peer: &mut Self::Peer);
    fn reset(&mut self, peer: Self::Peer);

    /// A peer that can send datagrams to this address.
    fn client(&mut self, to: &Self::Address) -> Self::Client;
    /// Sends a datagram to the address, or to the same port at another address `at` of this host.
    fn send(
        &mut self,
        client: &mut Self::Client,
        to: &Self::Address,
        at: Option<IpAddr>,
        bytes: &[u8],
    );
    /// Sends datagrams of one size, of which the last may be shorter; on real sockets in one
    /// `sendmsg`.
    fn send_several(
        &mut self,
        client: &mut Self::Client,
        to: &Self::Address,
        size: u16,
        bytes: &[u8],
    ) {
        for datagram in bytes.chunks(size.into()) {
            self.send(client, to, None, datagram);
        }
    }
    /// The next reply, and the address that it was sent from.
    fn receive(&mut self, client: &mut Self::Client) -> Option<(Option<SocketAddr>, Vec<u8>)>;
    fn close_client(&mut self, client: Self::Client);

    /// Whether the caller may change the process's descriptor limit. If not, the test of that name
    /// has just passed in a process of its own, and the caller returns.
    fn in_own_process(&mut self, promise: &str) -> bool;
    fn exhaust_descriptors(&mut self, exhausted: bool);
    /// Lowers the descriptor limit to those in use: to open one, another has to be closed first.
    fn limit_descriptors_to_those_open(&mut self) {}
    /// How many descriptors the process has open; 0 on the simulated network.
    fn descriptors(&self) -> usize {
        0
    }
    /// Allows operations on closed tokens, against which a driver may otherwise assert.
    fn allow_closed_tokens(_driver: &mut Self::Driver) {}
}

pub(super) type SocketOf<H> = <<H as Harness>::Driver as Driver>::Socket;

/// The loopback or wildcard address of a socket kind, with port 0.
pub(super) fn inet_address(kind: SocketKind, local: bool) -> Option<SocketAddr> {
    let ip: IpAddr = match kind {
        SocketKind::Unix => return None,
        SocketKind::Ipv6 if local => Ipv6Addr::LOCALHOST.into(),
        SocketKind::Ipv6 => Ipv6Addr::UNSPECIFIED.into(),
        _ if local => Ipv4Addr::LOCALHOST.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    };
    Some(SocketAddr::new(ip, 0))
}
