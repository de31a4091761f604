//! The harness on real sockets: loopback addresses and Unix sockets, and the descriptor limit of
//! the process.
//!
//! Another driver on real sockets only has to implement [`SocketDriver`].

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt};
use socket2::{Domain, SockRef, Socket, Type};

use super::driver_test::DEADLINE;
use super::harness::{Harness, SocketKind, inet_address};
use crate::driver::Driver;
use crate::driver::buffers::BUFFER_COUNT;
use crate::driver::epoll::Epoll;
use crate::driver::sim::End;
use crate::driver::uring::Uring;
use crate::driver::uring::memory::SMALL_COUNT;
use crate::sys::socket::{self, Binding, Inherited};

/// A driver on real sockets, or one in a certain state.
pub(super) trait SocketDriver {
    type Driver: Driver<Socket = OwnedFd>;
    /// The name of its module in the list of tests.
    const NAME: &str;
    /// As in [`Harness`].
    const BUFFERS: usize;
    fn open() -> io::Result<Self::Driver>;
}

impl SocketDriver for Epoll {
    type Driver = Self;
    const NAME: &str = "epoll";
    const BUFFERS: usize = BUFFER_COUNT as usize;
    fn open() -> io::Result<Self> {
        Self::new()
    }
}

impl SocketDriver for Uring {
    type Driver = Self;
    const NAME: &str = "uring";
    const BUFFERS: usize = SMALL_COUNT as usize;
    fn open() -> io::Result<Self> {
        Self::new()
    }
}

/// io_uring as on Linux before 6.18, where a repeated receive has no limit, and is not used.
pub(super) enum UringWithoutLimits {}

impl SocketDriver for UringWithoutLimits {
    type Driver = Uring;
    const NAME: &str = "uring_without_limits";
    const BUFFERS: usize = Uring::BUFFERS;
    fn open() -> io::Result<Uring> {
        Uring::without_receive_limits()
    }
}

/// The peers of a driver on loopback addresses and Unix sockets.
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

/// Small, so that sends to a peer that does not read soon stall.
const SOCKET_BUFFER_BYTES: u32 = 32 * 1024;

/// Larger than a driver's buffer, and within the default `net.core.rmem_max`.
const LARGE_BUFFER_BYTES: u32 = 200 * 1024;

/// The listen backlog, large enough for `CLIENT_COUNT` clients at once.
const BACKLOG: u32 = 1024;

/// The environment variable that is set in a process which runs a single test.
const OWN_PROCESS: &str = "ECHOD_CONFORMANCE_ALONE";

impl<D> Loopback<D> {
    fn path(&mut self) -> PathBuf {
        self.sockets += 1;
        self.folder.path().join(self.sockets.to_string())
    }
}

#[expect(unsafe_code, reason = "no library has this option")]
fn send_without_checksums(socket: &OwnedFd) {
    let yes: libc::c_int = 1;
    let (raw, value) = (socket.as_raw_fd(), (&raw const yes).cast());
    let len = size_of_val(&yes) as libc::socklen_t;
    // SAFETY: the kernel reads one int from a live local.
    let set = unsafe { libc::setsockopt(raw, libc::SOL_SOCKET, libc::SO_NO_CHECK, value, len) };
    assert_eq!(set, 0, "SO_NO_CHECK could not be set");
}

impl<D: SocketDriver> Harness for Loopback<D> {
    type Driver = D::Driver;
    type Address = Address;
    type Peer = RealPeer;
    type Client = RealClient;

    const BUFFERS: usize = D::BUFFERS;

    fn unavailable() -> Option<io::Error> {
        // ENOSYS: the kernel lacks the system call. EPERM: a sandbox or sysctl forbids it.
        D::open()
            .err()
            .filter(|error| matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)))
    }

    fn new() -> (Self, D::Driver) {
        // The tests run in parallel and need more descriptors than the default soft limit allows.
        let descriptors =
            getrlimit(Resource::RLIMIT_NOFILE).expect("the descriptor limit can be read");
        if std::env::var_os(OWN_PROCESS).is_none() {
            setrlimit(Resource::RLIMIT_NOFILE, descriptors.1, descriptors.1)
                .expect("the soft limit can be raised to the hard limit");
        }
        let folder = tempfile::tempdir().expect("a temporary directory can be created");
        (
            Self {
                folder,
                sockets: 0,
                descriptors,
                driver: PhantomData,
            },
            D::open().expect("the driver can be created"),
        )
    }

    fn another(&self) -> (Self, D::Driver) {
        Self::new()
    }

    fn listen(&mut self, kind: SocketKind) -> Option<(OwnedFd, Address)> {
        let (socket, address) = if let Some(address) = inet_address(kind, true) {
            let socket = socket::bind_inet(Type::STREAM, address, Binding::Exclusive).ok()?;
            let bound = socket::local_address(socket.as_fd()).expect("the socket is bound");
            (socket, Address::Inet(bound))
        } else {
            let path = self.path();
            (
                socket::bind_unix(Type::STREAM, &path).expect("the path is free"),
                Address::Unix(path),
            )
        };
        // Accepted sockets inherit these options. Small buffers make a send stall after few bytes.
        let no_delay = (kind != SocketKind::Unix).then_some(true);
        let small = Some(SOCKET_BUFFER_BYTES);
        let options = Inherited {
            no_delay,
            keepalive: None,
            receive_buffer: if kind == SocketKind::LargeReceiveBuffer {
                Some(LARGE_BUFFER_BYTES)
            } else {
                small
            },
            send_buffer: if kind == SocketKind::SmallSendBuffer {
                Some(1)
            } else {
                small
            },
        };
        socket::set_inherited(socket.as_fd(), &options).expect("buffer sizes can be set");
        socket::listen(socket.as_fd(), BACKLOG).expect("the socket is bound");
        Some((socket, address))
    }

    fn bind(&mut self, kind: SocketKind) -> Option<(OwnedFd, Address)> {
        let Some(wildcard) = inet_address(kind, false) else {
            let path = self.path();
            return Some((
                socket::bind_unix(Type::DGRAM, &path).expect("the path is free"),
                Address::Unix(path),
            ));
        };
        let socket = socket::bind_inet(Type::DGRAM, wildcard, Binding::Exclusive).ok()?;
        match kind {
            SocketKind::NoChecksum => send_without_checksums(&socket),
            SocketKind::ErrorQueue => {
                setsockopt(&socket, sockopt::Ipv4RecvErr, &true).expect("IP_RECVERR can be set")
            }
            _ => {}
        }
        let mut bound = socket::local_address(socket.as_fd()).expect("the socket is bound");
        let local = inet_address(kind, true).expect("not a Unix socket");
        // A machine may support IPv6 without having the address ::1.
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
        // An error such as ECONNRESET is seen by the next read.
        written.unwrap_or(0)
    }

    fn write_urgent(&mut self, peer: &mut RealPeer) {
        let RealPeer::Tcp(stream) = peer else {
            return;
        };
        SockRef::from(&*stream)
            .send_out_of_band(b"!")
            .expect("the socket is connected");
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
                Err(error) => panic!("a peer could not read: {error}"),
            }
            if max < usize::MAX {
                return None;
            }
        }
    }

    fn until_arrived(&mut self, peer: &mut RealPeer) {
        let RealPeer::Tcp(stream) = peer else {
            return;
        };
        // What is acknowledged is in the other side's receive queue.
        let deadline = Instant::now() + DEADLINE;
        while socket::details(stream.as_fd()).send_queue != Some(0) {
            assert!(Instant::now() < deadline, "the bytes never arrive");
            std::thread::yield_now();
        }
    }

    fn half_close(&mut self, peer: &mut RealPeer) {
        let (RealPeer::Tcp(stream), how) = (peer, std::net::Shutdown::Write) else {
            panic!("half_close is for TCP peers only");
        };
        stream.shutdown(how).expect("the socket is connected");
    }

    fn reset(&mut self, peer: RealPeer) {
        let RealPeer::Tcp(stream) = peer else {
            panic!("reset is for TCP peers only")
        };
        SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .expect("the socket is open");
    }

    fn client(&mut self, to: &Address) -> RealClient {
        match to {
            Address::Inet(address) => {
                let local = inet_address(
                    if address.is_ipv4() {
                        SocketKind::Ipv4
                    } else {
                        SocketKind::Ipv6
                    },
                    true,
                );
                let socket =
                    UdpSocket::bind(local.expect("not a Unix socket")).expect("a port is free");
                socket.set_nonblocking(true).expect("the socket is open");
                RealClient::Udp(socket)
            }
            Address::Unix(_) => {
                let socket = UnixDatagram::bind(self.path()).expect("the path is free");
                socket.set_nonblocking(true).expect("the socket is open");
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
            _ => panic!("the client and the address are of different kinds"),
        };
        assert_eq!(sent.expect("the receive queue has room"), bytes.len());
    }

    fn send_several(&mut self, client: &mut RealClient, to: &Address, size: u16, bytes: &[u8]) {
        let (RealClient::Udp(socket), Address::Inet(address)) = (client, to) else {
            panic!("send_several is for UDP clients only")
        };
        let sent = sendmsg(
            socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            &[ControlMessage::UdpGsoSegments(&size)],
            MsgFlags::empty(),
            Some(&SockaddrStorage::from(*address)),
        );
        assert_eq!(sent.expect("the receive queue has room"), bytes.len());
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

    fn close_client(&mut self, client: RealClient) {
        drop(client);
    }

    fn in_own_process(&mut self, promise: &str) -> bool {
        if std::env::var_os(OWN_PROCESS).is_some() {
            return true;
        }
        // The limit applies to the whole process, in which other tests are running.
        let name = format!("driver::conformance::{}::{promise}", D::NAME);
        let program = std::env::current_exe().expect("the path of the test program is known");
        let output = Command::new(program)
            .args(["--exact", &name, "--nocapture"])
            .env(OWN_PROCESS, "1")
            .output();
        let output = output.expect("the test program can be run");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            text.contains("1 passed"),
            "the test failed in its own process: {text}{}",
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
        .expect("the soft limit can be changed");
    }

    fn descriptors(&self) -> usize {
        let entries = std::fs::read_dir("/proc/self/fd").expect("/proc is mounted");
        entries.count()
    }

    fn limit_descriptors_to_those_open(&mut self) {
        let free = UnixDatagram::unbound().expect("a descriptor is available");
        // open(2) and socket(2) return the lowest free number, so all lower ones are in use.
        let limit = u64::try_from(free.as_raw_fd()).expect("the socket is open");
        let (_, hard) = self.descriptors;
        setrlimit(Resource::RLIMIT_NOFILE, limit, hard).expect("the soft limit can be changed");
    }
}

/// Runs a test of io_uring alone, where this machine allows it.
pub(super) fn where_uring_is_available(test: fn()) {
    match Loopback::<Uring>::unavailable() {
        None => test(),
        Some(error) => {
            eprintln!("NOT TESTED: the driver is unavailable on this machine: {error}");
        }
    }
}

/// Defines one test for each pair of a function that is generic over a [`SocketDriver`], and a driver
/// on real sockets: for what the simulated network cannot test.
macro_rules! socket_promises {
    ($($promise:ident),+ $(,)?) => {
        mod epoll {
            $(#[test]
            fn $promise() {
                super::$promise::<crate::driver::epoll::Epoll>();
            })+
        }

        mod uring {
            $(#[test]
            fn $promise() {
                crate::driver::conformance::loopback::where_uring_is_available(
                    super::$promise::<crate::driver::uring::Uring>,
                );
            })+
        }
    };
}
pub(super) use socket_promises;
