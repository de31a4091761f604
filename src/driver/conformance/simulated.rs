//! The harness on the simulated network.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::harness::{Harness, SocketKind, inet_address};
use crate::driver::buffers::BUFFER_COUNT;
use crate::driver::sim::{self, End, Faults, Network, Sim};

/// The simulated driver and network, without faults or with those that only delay.
pub(super) struct Simulated<const FAULTS: bool> {
    network: Network,
    socket_count: u16,
}

impl<const FAULTS: bool> Simulated<FAULTS> {
    /// An unused address: each has a port of its own.
    fn unused_address(&mut self, kind: SocketKind, local: bool) -> SocketAddr {
        self.socket_count += 1;
        let mut address =
            inet_address(kind, local).unwrap_or(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0));
        address.set_port(self.socket_count);
        address
    }
}

impl<const FAULTS: bool> Harness for Simulated<FAULTS> {
    type Driver = Sim;
    type Address = SocketAddr;
    type Peer = sim::Peer;
    type Client = sim::Client;

    const BUFFERS: usize = BUFFER_COUNT as usize;

    fn new() -> (Self, Sim) {
        let network = Network::new(862);
        if FAULTS {
            network.set_faults(Faults::rough());
        }
        let sim = Sim::new(&network);
        (
            Self {
                network,
                socket_count: 0,
            },
            sim,
        )
    }

    fn another(&self) -> (Self, Sim) {
        let network = self.network.clone();
        let sim = Sim::new(&network);
        // Apart from the ports that the first harness hands out.
        let socket_count = self.socket_count + 10_000;
        (
            Self {
                network,
                socket_count,
            },
            sim,
        )
    }

    fn listen(&mut self, kind: SocketKind) -> Option<(sim::Socket, SocketAddr)> {
        let address = self.unused_address(kind, true);
        Some((self.network.listen(address), address))
    }

    fn bind(&mut self, kind: SocketKind) -> Option<(sim::Socket, SocketAddr)> {
        let bound = self.unused_address(kind, false);
        let local = inet_address(kind, true).map_or(bound.ip(), |local| local.ip());
        Some((
            self.network.bind(bound),
            SocketAddr::new(local, bound.port()),
        ))
    }

    fn inet(address: &SocketAddr) -> Option<SocketAddr> {
        Some(*address)
    }

    fn connect(&mut self, to: &SocketAddr) -> io::Result<sim::Peer> {
        let from = self.unused_address(SocketKind::Ipv4, true);
        let peer = self.network.connect(from, *to);
        if self.network.end(peer).is_some() {
            Err(ErrorKind::ConnectionRefused.into())
        } else {
            Ok(peer)
        }
    }

    fn address(&mut self, peer: &sim::Peer) -> Option<SocketAddr> {
        Some(self.network.address(*peer))
    }

    fn write(&mut self, peer: &mut sim::Peer, bytes: &[u8]) -> usize {
        self.network.write(*peer, bytes)
    }

    fn write_urgent(&mut self, peer: &mut sim::Peer) {
        self.network.write(*peer, b"!");
    }

    fn read(&mut self, peer: &mut sim::Peer, max: usize, bytes: &mut Vec<u8>) -> Option<End> {
        bytes.extend(self.network.read(*peer, max));
        self.network.end(*peer)
    }

    fn until_arrived(&mut self, _peer: &mut sim::Peer) {
        // Nothing is under way for longer.
        self.network.advance(Faults::rough().delay);
    }

    fn half_close(&mut self, peer: &mut sim::Peer) {
        self.network.half_close(*peer);
    }

    fn reset(&mut self, peer: sim::Peer) {
        self.network.reset(peer);
    }

    fn client(&mut self, to: &SocketAddr) -> sim::Client {
        let address = self.unused_address(
            if to.is_ipv4() {
                SocketKind::Ipv4
            } else {
                SocketKind::Ipv6
            },
            true,
        );
        self.network.client(address)
    }

    fn send(
        &mut self,
        client: &mut sim::Client,
        to: &SocketAddr,
        at: Option<IpAddr>,
        bytes: &[u8],
    ) {
        self.network.send_datagram(
            *client,
            SocketAddr::new(at.unwrap_or(to.ip()), to.port()),
            bytes,
        );
    }

    fn receive(&mut self, client: &mut sim::Client) -> Option<(Option<SocketAddr>, Vec<u8>)> {
        let (from, bytes) = self.network.receive_datagram(*client)?;
        Some((Some(from), bytes))
    }

    fn close_client(&mut self, client: sim::Client) {
        self.network.leave(client);
    }

    fn in_own_process(&mut self, _promise: &str) -> bool {
        true
    }

    fn exhaust_descriptors(&mut self, exhausted: bool) {
        let faults = if FAULTS {
            Faults::rough()
        } else {
            Faults::default()
        };
        let accept_error = if exhausted { 1.0 } else { 0.0 };
        self.network.set_faults(Faults {
            accept_error,
            ..faults
        });
    }

    fn allow_closed_tokens(driver: &mut Sim) {
        driver.allow_closed_tokens();
    }
}
