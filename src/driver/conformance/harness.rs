//! The harnesses of the conformance list: a driver and the peers at its other side, simulated or
//! real. A driver over real sockets needs no more than [`Opens`].

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt};
use socket2::{Domain, SockRef, Socket, Type};

use crate::driver::Driver;
use crate::driver::buffers::BUFFER_COUNT;
use crate::driver::epoll::Epoll;
use crate::driver::sim::{self, End, Faults, Network, Sim};
use crate::driver::uring::Uring;
use crate::driver::unsent::UNSENT_BYTES_MAX;
use crate::driver::uring::memory::{SMALL_BYTES, SMALL_COUNT};
use crate::sys::socket::{self, Binding, Inherited};

/// Where a socket is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    V4,
    /// The same with the smallest send buffer: one send needs many pieces.
    Narrow,
    /// The same with a receive buffer that holds more than a driver's.
    Wide,
    V6,
    /// IPv4, and the kernel cuts no message into datagrams.
    Uncut,
    /// IPv4, and the socket is told that an earlier peer is gone when it next does anything.
    Reporting,
    Unix,
}

/// A driver and the peers' side of its world.
pub(super) trait Harness: Sized {
    type Driver: Driver;
    type Address: Clone;
    type Peer;
    type Client;

    /// How many buffers there are for small messages.
    const BUFFERS: usize;

    /// Why the driver can't be had on this machine, if it can't.
    fn refusal() -> Option<io::Error> {
        None
    }
    /// How many bytes are held for a peer that does not read, at most.
    fn held_bytes_max() -> usize {
        UNSENT_BYTES_MAX as usize
    }
    fn new() -> (Self, Self::Driver);
    /// Another driver in the same world.
    fn beside(&self) -> (Self, Self::Driver);
    /// A listening socket; none where this machine has no such place.
    fn listen(&mut self, place: Place) -> Option<(SocketOf<Self>, Self::Address)>;
    /// A datagram socket on the wildcard address of the place.
    fn bind(&mut self, place: Place) -> Option<(SocketOf<Self>, Self::Address)>;
    /// Where a listener or socket is found, for those who see IP addresses.
    fn inet(address: &Self::Address) -> Option<SocketAddr>;

    fn connect(&mut self, to: &Self::Address) -> io::Result<Self::Peer>;
    fn address(&mut self, peer: &Self::Peer) -> Option<SocketAddr>;
    /// Writes what the connection takes now.
    fn write(&mut self, peer: &mut Self::Peer, bytes: &[u8]) -> usize;
    /// Writes the byte `!`, as urgent data where there is such a thing (tcp(7)).
    fn write_urgent(&mut self, peer: &mut Self::Peer);
    /// Reads what is there now; says when the end has been seen.
    fn read(&mut self, peer: &mut Self::Peer, max: usize, bytes: &mut Vec<u8>) -> Option<End>;
    fn half_close(&mut self, peer: &mut Self::Peer);
    fn reset(&mut self, peer: Self::Peer);

    /// Somebody who sends datagrams to there.
    fn client(&mut self, to: &Self::Address) -> Self::Client;
    /// Sends to the address, or to its port at another address of this host.
    fn send(
        &mut self,
        client: &mut Self::Client,
        to: &Self::Address,
        at: Option<IpAddr>,
        bytes: &[u8],
    );
    /// Sends datagrams of one size, the last may be shorter, as one message if that can be.
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
    /// The next answer and where it came from.
    fn receive(&mut self, client: &mut Self::Client) -> Option<(Option<SocketAddr>, Vec<u8>)>;
    fn leave(&mut self, client: Self::Client);

    /// Whether this process may run out of descriptors; if not, the promise of that name has been
    /// kept in a process of its own.
    fn alone(&mut self, promise: &str) -> bool;
    fn exhaust_descriptors(&mut self, exhausted: bool);
    /// There are as many descriptors as there may be; who needs one has to close another.
    fn freeze_descriptors(&mut self) {}
    /// How many this process has; a driver without any says 0.
    fn descriptors(&self) -> usize {
        0
    }
    /// Dead tokens are about to be used on purpose.
    fn forgive(_driver: &mut Self::Driver) {}
}

pub(super) type SocketOf<H> = <<H as Harness>::Driver as Driver>::Socket;

/// A driver over real sockets.
pub(super) trait Opens: Driver<Socket = OwnedFd> {
    /// Its module in the list.
    const NAME: &str;
    /// As in [`Harness`].
    const BUFFERS: usize;
    /// What the driver may hold beyond the limit, in bytes.
    fn held_excess() -> usize {
        0
    }
    fn open() -> io::Result<Self>
    where
        Self: Sized;
}

impl Opens for Epoll {
    const NAME: &str = "epoll";
    const BUFFERS: usize = BUFFER_COUNT as usize;
    fn open() -> io::Result<Self> {
        Self::new()
    }
}

impl Opens for Uring {
    const NAME: &str = "uring";
    const BUFFERS: usize = SMALL_COUNT as usize;
    fn held_excess() -> usize {
        // Before Linux 6.18 one request may bring as much as there are buffers for.
        let release = nix::sys::utsname::uname().expect("a kernel has a name");
        let release = release.release().to_string_lossy().into_owned();
        let mut numbers = release.split(|digit: char| !digit.is_ascii_digit());
        let mut number = || numbers.next()?.parse::<u32>().ok();
        if number().zip(number()) < Some((6, 18)) { 256 * SMALL_BYTES } else { 0 }
    }
    fn open() -> io::Result<Self> {
        Self::new()
    }
}

/// A driver and real peers, over loopback and Unix sockets.
pub(super) struct Loopback<D> {
    folder: tempfile::TempDir,
    sockets: usize,
    descriptors: (u64, u64),
    driver: PhantomData<D>,
}

#[derive(Clone, Debug)]
pub(super) enum Address {
    Inet(SocketAddr),
    Unix(PathBuf),
}

pub(super) enum RealPeer {
    Tcp(TcpStream),
    Unix(UnixStream),
}

pub(super) enum RealClient {
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

/// Small, so that a peer which does not read is soon noticed.
const SOCKET_BUFFER_BYTES: u32 = 32 * 1024;

/// As much as every system allows: more than a driver's buffer.
const LARGE_BUFFER_BYTES: u32 = 200 * 1024;

/// What a connection queues, for a crowd.
const BACKLOG: u32 = 1024;

/// Set in a process that a test runs in alone.
const ALONE: &str = "ECHOD_CONFORMANCE_ALONE";

impl<D> Loopback<D> {
    fn path(&mut self) -> PathBuf {
        self.sockets += 1;
        self.folder.path().join(self.sockets.to_string())
    }
}

fn any(place: Place, local: bool) -> Option<SocketAddr> {
    let ip: IpAddr = match place {
        Place::Unix => return None,
        Place::V6 if local => Ipv6Addr::LOCALHOST.into(),
        Place::V6 => Ipv6Addr::UNSPECIFIED.into(),
        _ if local => Ipv4Addr::LOCALHOST.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    };
    Some(SocketAddr::new(ip, 0))
}

#[expect(unsafe_code, reason = "no library knows this option")]
fn send_without_checksums(socket: &OwnedFd) {
    let yes: libc::c_int = 1;
    let (raw, value) = (socket.as_raw_fd(), (&raw const yes).cast());
    let len = size_of_val(&yes) as libc::socklen_t;
    // SAFETY: the kernel reads one int from a live local.
    let set = unsafe { libc::setsockopt(raw, libc::SOL_SOCKET, libc::SO_NO_CHECK, value, len) };
    assert_eq!(set, 0, "checksums can be left out");
}

impl<D: Opens> Harness for Loopback<D> {
    type Driver = D;
    type Address = Address;
    type Peer = RealPeer;
    type Client = RealClient;

    const BUFFERS: usize = D::BUFFERS;

    fn refusal() -> Option<io::Error> {
        // A kernel without it, or a sandbox around us.
        D::open()
            .err()
            .filter(|error| matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)))
    }

    fn held_bytes_max() -> usize {
        UNSENT_BYTES_MAX as usize + D::held_excess()
    }

    fn new() -> (Self, D) {
        // Crowds need more descriptors than a shell's default, in all tests at once.
        let descriptors = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit can be asked");
        if std::env::var_os(ALONE).is_none() {
            setrlimit(Resource::RLIMIT_NOFILE, descriptors.1, descriptors.1)
                .expect("up to the hard limit");
        }
        let folder = tempfile::tempdir().expect("a folder for Unix sockets");
        (
            Self {
                folder,
                sockets: 0,
                descriptors,
                driver: PhantomData,
            },
            D::open().expect("the driver opens"),
        )
    }

    fn beside(&self) -> (Self, D) {
        Self::new()
    }

    fn listen(&mut self, place: Place) -> Option<(OwnedFd, Address)> {
        let (socket, address) = if let Some(address) = any(place, true) {
            let socket = socket::bind_inet(Type::STREAM, address, Binding::Exclusive).ok()?;
            let bound = socket::local_address(socket.as_fd()).expect("it is bound");
            (socket, Address::Inet(bound))
        } else {
            let path = self.path();
            (
                socket::bind_unix(Type::STREAM, &path).expect("the path is free"),
                Address::Unix(path),
            )
        };
        let no_delay = (place != Place::Unix).then_some(true);
        let small = Some(SOCKET_BUFFER_BYTES);
        let options = Inherited {
            no_delay,
            keepalive: None,
            receive_buffer: if place == Place::Wide {
                Some(LARGE_BUFFER_BYTES)
            } else {
                small
            },
            send_buffer: if place == Place::Narrow {
                Some(1)
            } else {
                small
            },
        };
        socket::set_inherited(socket.as_fd(), &options).expect("sizes can be set");
        socket::listen(socket.as_fd(), BACKLOG).expect("it is bound");
        Some((socket, address))
    }

    fn bind(&mut self, place: Place) -> Option<(OwnedFd, Address)> {
        let Some(wildcard) = any(place, false) else {
            let path = self.path();
            return Some((
                socket::bind_unix(Type::DGRAM, &path).expect("the path is free"),
                Address::Unix(path),
            ));
        };
        let socket = socket::bind_inet(Type::DGRAM, wildcard, Binding::Exclusive).ok()?;
        match place {
            // Without checksums there is no cutting.
            Place::Uncut => send_without_checksums(&socket),
            Place::Reporting => {
                setsockopt(&socket, sockopt::Ipv4RecvErr, &true).expect("errors can be asked for")
            }
            _ => {}
        }
        let mut bound = socket::local_address(socket.as_fd()).expect("it is bound");
        let local = any(place, true).expect("it is not Unix");
        // Some machines have the family and not the address.
        UdpSocket::bind(local).ok()?;
        bound.set_ip(local.ip());
        Some((socket, Address::Inet(bound)))
    }

    fn inet(address: &Address) -> Option<SocketAddr> {
        if let Address::Inet(address) = address {
            Some(*address)
        } else {
            None
        }
    }

    fn connect(&mut self, to: &Address) -> io::Result<RealPeer> {
        match to {
            Address::Inet(address) => {
                let socket =
                    Socket::new(Domain::for_address(*address), Type::STREAM.cloexec(), None)?;
                socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES as usize)?;
                socket.set_tcp_nodelay(true)?;
                socket.connect(&(*address).into())?;
                socket.set_nonblocking(true)?;
                Ok(RealPeer::Tcp(socket.into()))
            }
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_nonblocking(true)?;
                Ok(RealPeer::Unix(stream))
            }
        }
    }

    fn address(&mut self, peer: &RealPeer) -> Option<SocketAddr> {
        if let RealPeer::Tcp(stream) = peer {
            stream.local_addr().ok()
        } else {
            None
        }
    }

    fn write(&mut self, peer: &mut RealPeer, bytes: &[u8]) -> usize {
        let written = match peer {
            RealPeer::Tcp(stream) => stream.write(bytes),
            RealPeer::Unix(stream) => stream.write(bytes),
        };
        // A peer that was reset will read that.
        written.unwrap_or(0)
    }

    fn write_urgent(&mut self, peer: &mut RealPeer) {
        let RealPeer::Tcp(stream) = peer else {
            return;
        };
        SockRef::from(&*stream)
            .send_out_of_band(b"!")
            .expect("it is connected");
    }

    fn read(&mut self, peer: &mut RealPeer, max: usize, bytes: &mut Vec<u8>) -> Option<End> {
        let mut memory = vec![0; max.min(64 * 1024)];
        if max == 0 {
            return None;
        }
        loop {
            let read = match peer {
                RealPeer::Tcp(stream) => stream.read(&mut memory),
                RealPeer::Unix(stream) => stream.read(&mut memory),
            };
            match read {
                Ok(0) => return Some(End::Fin),
                Ok(len) => bytes.extend(&memory[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return Some(End::Reset);
                }
                Err(error) => panic!("a peer can read: {error}"),
            }
            if max < usize::MAX {
                return None;
            }
        }
    }

    fn half_close(&mut self, peer: &mut RealPeer) {
        let (RealPeer::Tcp(stream), how) = (peer, std::net::Shutdown::Write) else {
            panic!("only TCP peers half-close in these tests");
        };
        stream.shutdown(how).expect("it is connected");
    }

    fn reset(&mut self, peer: RealPeer) {
        let RealPeer::Tcp(stream) = peer else {
            panic!("only TCP has a reset")
        };
        SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .expect("it is open");
    }

    fn client(&mut self, to: &Address) -> RealClient {
        match to {
            Address::Inet(address) => {
                let local = any(
                    if address.is_ipv4() {
                        Place::V4
                    } else {
                        Place::V6
                    },
                    true,
                );
                let socket =
                    UdpSocket::bind(local.expect("it is not Unix")).expect("a port is free");
                socket.set_nonblocking(true).expect("it is open");
                RealClient::Udp(socket)
            }
            Address::Unix(_) => {
                let socket = UnixDatagram::bind(self.path()).expect("the path is free");
                socket.set_nonblocking(true).expect("it is open");
                RealClient::Unix(socket)
            }
        }
    }

    fn send(&mut self, client: &mut RealClient, to: &Address, at: Option<IpAddr>, bytes: &[u8]) {
        let sent = match (client, to) {
            (RealClient::Udp(socket), Address::Inet(address)) => socket.send_to(
                bytes,
                SocketAddr::new(at.unwrap_or(address.ip()), address.port()),
            ),
            (RealClient::Unix(socket), Address::Unix(path)) => socket.send_to(bytes, path),
            _ => panic!("a client and a socket are of one kind"),
        };
        assert_eq!(sent.expect("the queue has room"), bytes.len());
    }

    fn send_several(&mut self, client: &mut RealClient, to: &Address, size: u16, bytes: &[u8]) {
        let (RealClient::Udp(socket), Address::Inet(address)) = (client, to) else {
            panic!("only UDP clients send several at once")
        };
        let sent = sendmsg(
            socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            &[ControlMessage::UdpGsoSegments(&size)],
            MsgFlags::empty(),
            Some(&SockaddrStorage::from(*address)),
        );
        assert_eq!(sent.expect("the queue has room"), bytes.len());
    }

    fn receive(&mut self, client: &mut RealClient) -> Option<(Option<SocketAddr>, Vec<u8>)> {
        let mut memory = vec![0; 256 * 1024];
        let received = match client {
            RealClient::Udp(socket) => socket
                .recv_from(&mut memory)
                .map(|(len, from)| (len, Some(from))),
            RealClient::Unix(socket) => socket.recv(&mut memory).map(|len| (len, None)),
        };
        let (len, from) = received.ok()?;
        memory.truncate(len);
        Some((from, memory))
    }

    fn leave(&mut self, client: RealClient) {
        drop(client);
    }

    fn alone(&mut self, promise: &str) -> bool {
        if std::env::var_os(ALONE).is_some() {
            return true;
        }
        // The limit is the process's, and other tests run in this one.
        let name = format!("driver::conformance::{}::{promise}", D::NAME);
        let program = std::env::current_exe().expect("this test's program is known");
        let output = Command::new(program)
            .args(["--exact", &name, "--nocapture"])
            .env(ALONE, "1")
            .output();
        let output = output.expect("a test can be run alone");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.contains("1 passed"),
            "alone: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        false
    }

    fn exhaust_descriptors(&mut self, exhausted: bool) {
        let (soft, hard) = self.descriptors;
        setrlimit(
            Resource::RLIMIT_NOFILE,
            if exhausted { 0 } else { soft },
            hard,
        )
        .expect("the soft limit is ours");
    }

    fn descriptors(&self) -> usize {
        let entries = std::fs::read_dir("/proc/self/fd").expect("proc is mounted");
        entries.count()
    }

    fn freeze_descriptors(&mut self) {
        let free = UnixDatagram::unbound().expect("one is left");
        // The lowest number that is free (open(2)); all below it are in use.
        let limit = u64::try_from(free.as_raw_fd()).expect("it is open");
        let (_, hard) = self.descriptors;
        setrlimit(Resource::RLIMIT_NOFILE, limit, hard).expect("the soft limit is ours");
    }
}

/// The simulated driver and network, without faults or with all that nobody may notice.
pub(super) struct Simulated<const ROUGH: bool> {
    network: Network,
    places: u16,
}

impl<const ROUGH: bool> Simulated<ROUGH> {
    /// A fresh address. Ports tell places apart.
    fn place(&mut self, place: Place, local: bool) -> SocketAddr {
        self.places += 1;
        let mut address =
            any(place, local).unwrap_or(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0));
        address.set_port(self.places);
        address
    }
}

impl<const ROUGH: bool> Harness for Simulated<ROUGH> {
    type Driver = Sim;
    type Address = SocketAddr;
    type Peer = sim::Peer;
    type Client = sim::Client;

    const BUFFERS: usize = BUFFER_COUNT as usize;

    fn new() -> (Self, Sim) {
        let network = Network::new(862);
        if ROUGH {
            network.set_faults(Faults::rough());
        }
        let sim = Sim::new(&network);
        (Self { network, places: 0 }, sim)
    }

    fn beside(&self) -> (Self, Sim) {
        let network = self.network.clone();
        let sim = Sim::new(&network);
        // Far from the addresses that the first one gives out.
        let places = self.places + 10_000;
        (Self { network, places }, sim)
    }

    fn listen(&mut self, place: Place) -> Option<(sim::Socket, SocketAddr)> {
        let address = self.place(place, true);
        Some((self.network.listen(address), address))
    }

    fn bind(&mut self, place: Place) -> Option<(sim::Socket, SocketAddr)> {
        let bound = self.place(place, false);
        let local = any(place, true).map_or(bound.ip(), |local| local.ip());
        Some((
            self.network.bind(bound),
            SocketAddr::new(local, bound.port()),
        ))
    }

    fn inet(address: &SocketAddr) -> Option<SocketAddr> {
        Some(*address)
    }

    fn connect(&mut self, to: &SocketAddr) -> io::Result<sim::Peer> {
        let from = self.place(Place::V4, true);
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

    fn half_close(&mut self, peer: &mut sim::Peer) {
        self.network.half_close(*peer);
    }

    fn reset(&mut self, peer: sim::Peer) {
        self.network.reset(peer);
    }

    fn client(&mut self, to: &SocketAddr) -> sim::Client {
        let address = self.place(if to.is_ipv4() { Place::V4 } else { Place::V6 }, true);
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

    fn leave(&mut self, client: sim::Client) {
        self.network.leave(client);
    }

    fn alone(&mut self, _promise: &str) -> bool {
        true
    }

    fn exhaust_descriptors(&mut self, exhausted: bool) {
        let faults = if ROUGH {
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

    fn forgive(driver: &mut Sim) {
        driver.forgive();
    }
}
