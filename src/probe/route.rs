//! The way to a service: names become addresses, addresses become sockets that are prepared as the
//! command line asks.
//!
//! Never says what is sent on them.

use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use socket2::{Domain, SockAddr, Socket, Type};

use super::Trouble;
use super::args::Path;
use super::cause::Cause;
use super::proxy;
use super::target::Target;
use crate::cli::exit::{Exit, Failure};
use crate::sys::measure::{self, Arrival, Fragmenting};
use crate::sys::message::Source;
use crate::sys::socket::{Inherited, drops, set_inherited};

/// So much may wait to be read, where the kernel allows it: what does not fit is lost, and nobody
/// but us to blame.
const RECEIVE_BUFFER_BYTES: u32 = 8 << 20;

/// Where a service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// On IP.
    Inet(SocketAddr),
    /// At a path; an abstract name begins with `@`.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

impl Address {
    fn encode(&self) -> io::Result<SockAddr> {
        match self {
            Self::Inet(address) => Ok((*address).into()),
            Self::Unix(path) => {
                let text = path.to_string_lossy();
                match text.strip_prefix('@') {
                    Some(name) => SockAddr::unix(format!("\0{name}")),
                    None => SockAddr::unix(path),
                }
            }
        }
    }

    fn domain(&self) -> Domain {
        match self {
            Self::Inet(address) => Domain::for_address(*address),
            Self::Unix(_) => Domain::UNIX,
        }
    }
}

/// The way to a service.
#[derive(Clone, Debug)]
pub struct Route {
    target: Target,
    addresses: Vec<Address>,
    path: Path,
}

/// A connected stream; blocking.
#[derive(Debug)]
pub struct Connection {
    /// Reads and writes, by reference too.
    pub socket: Socket,
    /// The other side.
    pub peer: Address,
    /// How long connecting took.
    pub took: Duration,
}

/// After so long it is tried again to send to a Unix socket whose queue was full: nobody tells when
/// it has room.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_millis(1);

/// A socket for datagrams to and from one service; nonblocking. It is not connected, so that
/// answers from elsewhere are seen, too.
#[derive(Debug)]
pub struct Flow {
    /// The socket.
    pub socket: Socket,
    /// The other side.
    pub peer: Address,
    encoded: SockAddr,
}

impl Route {
    /// Finds the addresses of a service. What the command line asks for has to make sense for it:
    /// see [`check`].
    ///
    /// # Errors
    /// When the name has none that will do.
    pub fn resolve(target: &Target, path: &Path) -> Result<Self, Trouble> {
        let addresses = match target {
            Target::Unix { path, .. } => vec![Address::Unix(path.clone())],
            Target::Inet { host, port, .. } => {
                let unknown =
                    |hint: String| Trouble::new(target.to_string(), Cause::NameUnknown).hint(hint);
                let found = (host.as_str(), *port).to_socket_addrs();
                let found = found.map_err(|error| unknown(error.to_string()))?;
                let wanted: Vec<SocketAddr> = found
                    .filter(|address| {
                        if address.is_ipv4() {
                            !path.ipv6
                        } else {
                            !path.ipv4
                        }
                    })
                    .collect();
                if wanted.is_empty() {
                    let family = if path.ipv6 { "IPv6" } else { "IPv4" };
                    return Err(unknown(format!("it has no {family} address")));
                }
                wanted.into_iter().map(Address::Inet).collect()
            }
        };
        Ok(Self {
            target: target.clone(),
            addresses,
            path: path.clone(),
        })
    }

    /// The same from another port of ours.
    #[must_use]
    pub fn from_port(&self, port: u16) -> Self {
        let mut route = self.clone();
        route.path.source.get_or_insert_default().port = port;
        route
    }

    /// The same to another address of the service.
    #[must_use]
    pub fn to(&self, address: SocketAddr) -> Self {
        let mut route = self.clone();
        route.addresses = vec![Address::Inet(address)];
        route
    }

    /// The service, as typed.
    #[must_use]
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Where it is: the first address.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.addresses[0]
    }

    /// Something went wrong on this way.
    #[must_use]
    pub fn trouble(&self, error: &io::Error) -> Trouble {
        let trouble = Trouble::new(self.place(), Cause::of(error));
        match error.kind() {
            ErrorKind::ConnectionRefused => trouble.hint("nobody listens there"),
            ErrorKind::NotFound => trouble.hint("is the service running?"),
            ErrorKind::PermissionDenied if self.path.source.is_some_and(|own| own.port < 1024) => {
                trouble.hint("ports below 1024 need privileges")
            }
            ErrorKind::AddrNotAvailable => trouble.hint("--source: no address of this host"),
            ErrorKind::AddrInUse => trouble.hint("--source: somebody else has that port"),
            _ => trouble,
        }
    }

    /// `tcp://localhost:7`, with the address where that says more.
    fn place(&self) -> String {
        match (&self.target, self.address()) {
            (Target::Inet { host, .. }, Address::Inet(address))
                if host.parse() != Ok(address.ip()) =>
            {
                format!("{} ({})", self.target, address.ip())
            }
            _ => self.target.to_string(),
        }
    }

    /// Connects a stream: to the first address that can be reached. Says its PROXY header, if it is
    /// to have one.
    ///
    /// # Errors
    /// Those of the last address.
    pub fn connect(&self, timeout: Duration) -> Result<Connection, Trouble> {
        let mut last = None;
        for address in &self.addresses {
            match self.connect_to(address, timeout) {
                Ok(connection) => return Ok(connection),
                Err(error) => last = Some(error),
            }
        }
        Err(self.trouble(&last.expect("there is an address")))
    }

    fn connect_to(&self, address: &Address, timeout: Duration) -> io::Result<Connection> {
        let socket = Socket::new(address.domain(), Type::STREAM.cloexec(), None)?;
        self.bind(&socket, address)?;
        self.prepare(&socket, address)?;
        let began = Instant::now();
        match address {
            Address::Inet(_) => {
                socket.set_tcp_nodelay(true)?;
                socket.connect_timeout(&address.encode()?, timeout)?;
            }
            Address::Unix(_) => {
                // Waits for room in the backlog so long at most (socket(7)).
                socket.set_write_timeout(Some(timeout))?;
                socket.connect(&address.encode()?)?;
                socket.set_write_timeout(None)?;
            }
        }
        let took = began.elapsed();
        if let Some(version) = self.path.proxy {
            (&socket).write_all(&proxy::header(version, self.proxied(&socket)))?;
        }
        let peer = address.clone();
        Ok(Connection { socket, peer, took })
    }

    /// Whom a PROXY header names; none on a Unix socket, unless we were told.
    fn proxied(&self, socket: &Socket) -> Option<(SocketAddr, SocketAddr)> {
        let local = || socket.local_addr().ok()?.as_socket();
        let peer = || socket.peer_addr().ok()?.as_socket();
        Some((
            self.path.proxy_source.or_else(local)?,
            self.path.proxy_destination.or_else(peer)?,
        ))
    }

    /// Opens a socket for datagrams to the first address, of which the kernel tells all.
    ///
    /// # Errors
    /// As `socket(2)`, `bind(2)` and `setsockopt(2)`.
    pub fn open(&self) -> Result<Flow, Trouble> {
        let open = || {
            let socket = self.datagrams()?;
            measure::ask_for_all(socket.as_fd())?;
            Ok(Flow {
                socket,
                peer: self.address().clone(),
                encoded: self.address().encode()?,
            })
        };
        open().map_err(|error: io::Error| self.trouble(&error))
    }

    /// Opens a socket for many datagrams, connected, so that answers from elsewhere don't come.
    ///
    /// # Errors
    /// As `socket(2)`, `bind(2)`, `connect(2)` and `setsockopt(2)`.
    pub fn connect_datagrams(&self) -> Result<OwnedFd, Trouble> {
        let open = || {
            let socket = self.datagrams()?;
            socket.connect(&self.address().encode()?)?;
            if self.target.is_inet() {
                // A kernel before Linux 5.0 delivers them one by one.
                let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
            }
            Ok(socket.into())
        };
        open().map_err(|error: io::Error| self.trouble(&error))
    }

    fn datagrams(&self) -> io::Result<Socket> {
        let address = self.address();
        let kind = Type::DGRAM.nonblocking().cloexec();
        let socket = Socket::new(address.domain(), kind, None)?;
        self.bind(&socket, address)?;
        self.prepare(&socket, address)?;
        let options = Inherited {
            no_delay: None,
            keepalive: None,
            receive_buffer: Some(RECEIVE_BUFFER_BYTES),
            send_buffer: None,
        };
        set_inherited(socket.as_fd(), &options)?;
        Ok(socket)
    }

    /// Gives the socket an address of ours: the one asked for, or for datagrams any, so that answers
    /// find us.
    fn bind(&self, socket: &Socket, address: &Address) -> io::Result<()> {
        let Address::Inet(peer) = address else {
            // The kernel chooses a name (unix(7), autobind).
            return match self.target.is_stream() {
                true => Ok(()),
                false => socket.bind(&SockAddr::unix("")?),
            };
        };
        let any: IpAddr = match peer {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        match self.path.source {
            None if self.target.is_stream() => Ok(()),
            source => {
                let source = source.unwrap_or_default();
                if self.target.is_stream() && source.port != 0 {
                    // An earlier connection from this port may be in TIME_WAIT.
                    socket.set_reuse_address(true)?;
                }
                let local = SocketAddr::new(source.address.unwrap_or(any), source.port);
                socket.bind(&local.into())
            }
        }
    }

    /// Sets what the command line asks for.
    fn prepare(&self, socket: &Socket, address: &Address) -> io::Result<()> {
        let Address::Inet(peer) = address else {
            return Ok(());
        };
        if let Some(dscp) = self.path.dscp {
            let class = u32::from(dscp) << 2;
            match peer {
                SocketAddr::V4(_) => socket.set_tos_v4(class)?,
                SocketAddr::V6(_) => socket.set_tclass_v6(class)?,
            }
        }
        if let Some(ttl) = self.path.ttl {
            match peer {
                SocketAddr::V4(_) => socket.set_ttl_v4(ttl.into())?,
                SocketAddr::V6(_) => socket.set_unicast_hops_v6(ttl.into())?,
            }
        }
        if self.path.dont_fragment {
            measure::set_fragmenting(socket.as_fd(), Fragmenting::Forbidden)?;
        }
        Ok(())
    }
}

impl Connection {
    /// For a driver: nonblocking.
    ///
    /// # Errors
    /// As `fcntl(2)`.
    pub fn into_nonblocking(self) -> io::Result<OwnedFd> {
        self.socket.set_nonblocking(true)?;
        Ok(self.socket.into())
    }
}

impl Flow {
    /// Sends a datagram to the service.
    ///
    /// # Errors
    /// `WouldBlock` when a Unix socket's queue is full, which is no loss: it can be sent later. Else
    /// as `sendto(2)`.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        match self.socket.send_to(bytes, &self.encoded) {
            // The error is of an earlier one, and is thereby gone (udp(7)).
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                self.socket.send_to(bytes, &self.encoded).map(drop)
            }
            sent => sent.map(drop),
        }
    }

    /// From now on the kernel refuses what the service sends here with an ICMP error, as it would if
    /// this socket were closed; sending still works.
    ///
    /// A connected socket receives from its peer only, and still sends to any address that is named
    /// (`udp(7)`). It is connected to another port of the same host, so that the local address stays
    /// the one that leads to the service. A Unix socket has no such state: nothing changes for it.
    ///
    /// # Errors
    /// As `connect(2)`.
    pub fn refuse_answers(&self) -> io::Result<()> {
        let Address::Inet(mut other) = self.peer else {
            return Ok(());
        };
        other.set_port(match other.port() {
            u16::MAX => u16::MAX - 1,
            port => port + 1,
        });
        self.socket.connect(&other.into())
    }

    /// Takes a datagram that has arrived; none if none has.
    ///
    /// # Errors
    /// As `recvmsg(2)`.
    pub fn receive(&self, memory: &mut [u8]) -> io::Result<Option<Arrival>> {
        loop {
            match measure::receive(self.socket.as_fd(), memory) {
                Ok(arrival) => return Ok(Some(arrival)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // What became of one sent is told by `receive_failure`, with more.
                Err(error) if is_about_one_sent(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes the news of a datagram that was sent in vain; none if there is none.
    ///
    /// # Errors
    /// As `recvmsg(2)`.
    pub fn receive_failure(&self, memory: &mut [u8]) -> io::Result<Option<measure::Failure>> {
        // A Unix socket has no such queue, and would hand out a datagram instead.
        if matches!(self.peer, Address::Unix(_)) {
            return Ok(None);
        }
        match measure::receive_failure(self.socket.as_fd(), memory) {
            Ok(failure) => Ok(Some(failure)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How many datagrams have reached this host and found no room in our receive buffer.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        drops(self.socket.as_fd()).into()
    }

    /// Whether this sender is the service. The name of a Unix socket is as its owner wrote it, and
    /// may not be comparable to ours: nobody else knows our name.
    #[must_use]
    pub fn is_peer(&self, source: &Source) -> bool {
        match (&self.peer, source) {
            (Address::Inet(peer), Source::Inet(source)) => {
                (peer.ip(), peer.port()) == (source.ip(), source.port())
            }
            (Address::Unix(_), Source::Unix(_)) => true,
            _ => false,
        }
    }
}

/// Errors that the kernel reports with the next call on the socket, whatever that is (udp(7)).
fn is_about_one_sent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable
    ) || error.raw_os_error() == Some(Errno::EMSGSIZE as i32)
}

/// Whether what the command line asks for makes sense for this service.
///
/// # Errors
/// What doesn't.
pub fn check(target: &Target, path: &Path) -> Result<(), Failure> {
    let of_ip = [
        (path.ipv4, "--ipv4"),
        (path.ipv6, "--ipv6"),
        (path.source.is_some(), "--source"),
        (path.dscp.is_some(), "--dscp"),
        (path.ttl.is_some(), "--ttl"),
        (path.dont_fragment, "--dont-fragment"),
    ];
    let unfit = of_ip.into_iter().find(|(given, _)| *given);
    if let Some((_, option)) = unfit.filter(|_| !target.is_inet()) {
        return Err(usage(format!("{option}: a Unix socket has no such thing")));
    }
    if path.proxy.is_some() && !target.is_stream() {
        return Err(usage("--proxy: only streams begin with such a header"));
    }
    if let Some(address) = path.source.and_then(|source| source.address) {
        let other = if address.is_ipv4() {
            path.ipv6
        } else {
            path.ipv4
        };
        if other {
            return Err(usage("--source: an address of the other family"));
        }
    }
    Ok(())
}

/// A command line that makes no sense.
#[must_use]
pub fn usage(message: impl Into<String>) -> Failure {
    Failure::with(Exit::Usage, message)
}

/// What may be done with a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// It can be read, or has an end or error to be read.
    pub input: bool,
    /// It can be written.
    pub output: bool,
}

/// Waits until the socket can be read, or written where that is wanted, or until so much time has
/// passed; a signal ends it, too.
///
/// # Errors
/// As `ppoll(2)`.
pub fn wait(fd: BorrowedFd<'_>, output: bool, timeout: Duration) -> io::Result<Ready> {
    let mut wanted = PollFlags::POLLIN;
    wanted.set(PollFlags::POLLOUT, output);
    wait_for(fd, wanted, timeout)
}

/// The same until it can be written, whatever there is to be read.
///
/// # Errors
/// As `ppoll(2)`.
pub fn wait_for_room(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<Ready> {
    wait_for(fd, PollFlags::POLLOUT, timeout)
}

fn wait_for(fd: BorrowedFd<'_>, wanted: PollFlags, timeout: Duration) -> io::Result<Ready> {
    let mut polled = [PollFd::new(fd, wanted)];
    match ppoll(&mut polled, Some(TimeSpec::from_duration(timeout)), None) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(Ready::default()),
        Err(errno) => return Err(errno.into()),
    }
    let events = polled[0].revents().unwrap_or(PollFlags::empty());
    Ok(Ready {
        input: events.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR),
        output: events.contains(PollFlags::POLLOUT),
    })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    /// A client that closed its socket behind its last datagram could still be there when a quick
    /// service answered: nothing was refused, and the check of such clients passed for nothing.
    #[test]
    fn a_client_that_has_left_is_refused_even_if_the_answer_is_quicker_than_its_close() {
        let service = UdpSocket::bind("127.0.0.1:0").expect("a UDP socket");
        setsockopt(&service, sockopt::Ipv4RecvErr, &true).expect("an option");
        let url = format!("udp://{}", service.local_addr().expect("an address"));
        let target: Target = url.parse().expect("a target");
        let route = Route::resolve(&target, &Path::default()).expect("an address");
        let flow = route.open().expect("a socket");
        flow.refuse_answers().expect("another peer");
        flow.send(b"hello").expect("sent");
        let (_, from) = service.recv_from(&mut [0; 16]).expect("a datagram");
        service.send_to(b"hello", from).expect("sent");
        let error = service.recv_from(&mut [0; 16]).expect_err("a refusal");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert!(flow.receive(&mut [0; 16]).expect("no error").is_none());
    }
}
