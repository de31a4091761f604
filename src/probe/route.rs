//! The way to a service: names become addresses, addresses become sockets that are prepared as the
//! command line asks.
//!
//! Never decides what is sent on them.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{setsockopt, sockopt};
use proxy_header::{ProxiedAddress, ProxyHeader};
use socket2::{SockAddr, Socket, Type};

use super::args::{Path, ProxyVersion};
use super::cause::{Cause, Trouble};
use super::interrupt::{Interrupt, LOOK_INTERVAL};
use super::link::{self, Address, Flow, RETRY_INTERVAL, Stream};
use super::target::{Place, Target};
use crate::sys::measure::{self, Fragmenting, ReceiveFailure};
use crate::sys::socket::{Inherited, set_inherited};

/// The room for what waits to be read, where the kernel allows it: what does not fit is lost by this
/// host.
const RECEIVE_BUFFER_BYTES: u32 = 8 << 20;

/// The way to a service.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    target: Target,
    addresses: Vec<Address>,
    path: Path,
}

impl Route {
    /// Finds the addresses of a service. What the command line asks for has to make sense for it:
    /// see [`check`].
    ///
    /// # Errors
    /// When there is no suitable address, or the command is ended first.
    pub(crate) fn resolve(
        target: &Target,
        path: &Path,
        interrupt: &Interrupt,
    ) -> Result<Self, Trouble> {
        let addresses = match &target.place {
            Place::Unix(path) => vec![Address::Unix(path.clone())],
            Place::Inet(host, port) => {
                let unknown = |hint: String| Trouble::new(target, Cause::NameUnknown).hint(hint);
                // A name is one of this protocol.
                let number = port.parse().ok().or_else(|| service_port(port, target));
                let port = number.ok_or_else(|| {
                    unknown(format!("no service {port:?}: write the number of its port"))
                })?;
                let found = look_up(host, port, interrupt).map_err(|error| match error.kind() {
                    ErrorKind::Interrupted => Trouble::new(target, Cause::Interrupted),
                    _ => unknown(error.to_string()),
                })?;
                let family = path.family();
                let suits = |address: &SocketAddr| {
                    family.is_none_or(|is_ipv4| is_ipv4 == address.is_ipv4())
                };
                let wanted = found.into_iter().filter(suits).map(Address::Inet);
                let mut wanted: Vec<Address> = wanted.collect();
                // It has an address of either family (RFC 6761, section 6.3), whatever files say.
                if wanted.is_empty() && host.eq_ignore_ascii_case("localhost") {
                    let own = match family {
                        Some(true) => Ipv4Addr::LOCALHOST.into(),
                        _ => Ipv6Addr::LOCALHOST.into(),
                    };
                    wanted.push(Address::Inet(SocketAddr::new(own, port)));
                }
                if wanted.is_empty() {
                    let family = if family == Some(true) { "IPv4" } else { "IPv6" };
                    return Err(unknown(format!("it has no {family} address")));
                }
                wanted
            }
        };
        Ok(Self {
            target: target.clone(),
            addresses,
            path: path.clone(),
        })
    }

    /// The same from another port of this host.
    pub(crate) fn at_port(&self, port: u16) -> Self {
        let mut route = self.clone();
        route.path.source.get_or_insert_default().port = port;
        route
    }

    /// The port of this host that the command line names, if it does.
    pub(crate) fn source_port(&self) -> Option<u16> {
        let port = self.path.source.map_or(0, |source| source.port);
        (port > 0).then_some(port)
    }

    /// The same to another address of the service.
    pub(crate) fn to(&self, address: Address) -> Self {
        let mut route = self.clone();
        route.addresses = vec![address];
        route
    }

    /// The service, as typed.
    pub(crate) fn target(&self) -> &Target {
        &self.target
    }

    /// Where it is: the first address.
    pub(crate) fn address(&self) -> &Address {
        &self.addresses[0]
    }

    /// Something went wrong on the way to the first address.
    pub(crate) fn trouble(&self, error: &io::Error) -> Trouble {
        self.trouble_at(self.address(), error)
    }

    /// A datagram to the first address was not delivered: why, and which host reports it, if that is not
    /// the service itself.
    pub(crate) fn undelivered(&self, failure: &ReceiveFailure) -> Trouble {
        let mut trouble = self.trouble(&failure.error);
        trouble.cause = Cause::of_failure(failure);
        let service = match self.address() {
            Address::Inet(service) => Some(service.ip()),
            Address::Unix(_) => None,
        };
        let reporter = failure.reporter;
        match reporter.filter(|reporter| service != Some(*reporter)) {
            Some(reporter) => trouble.hint(format!("reported by {reporter}")),
            None => trouble,
        }
    }

    fn trouble_at(&self, address: &Address, error: &io::Error) -> Trouble {
        let trouble = Trouble::new(self.place(address), Cause::of(error));
        trouble.hint(self.hint(error).unwrap_or_default())
    }

    /// What the error establishes, together with what the command line asked for.
    fn hint(&self, error: &io::Error) -> Option<&'static str> {
        let source = self.path.source.unwrap_or_default();
        Some(match error.kind() {
            ErrorKind::ConnectionRefused if self.target.is_inet() => "no service at that port",
            ErrorKind::ConnectionRefused if self.target.to_string().contains("://@") => {
                "no process has that abstract name; a file is written ./@NAME"
            }
            ErrorKind::ConnectionRefused => "no process listens at that path",
            ErrorKind::NotFound => "is the service running?",
            ErrorKind::PermissionDenied if (1..1024).contains(&source.port) => {
                "--source: ports below 1024 need privileges"
            }
            ErrorKind::AddrNotAvailable if source.address.is_some() && source.port == 0 => {
                "--source: not an address of this host, or it has no free port left"
            }
            ErrorKind::AddrNotAvailable if source.address.is_some() => {
                "--source: not an address of this host, or the port is in use"
            }
            ErrorKind::AddrInUse if source.port != 0 => "--source: that port is in use",
            // bind(2) and connect(2) name the same cause differently.
            ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable => {
                "no local port is free: see net.ipv4.ip_local_port_range"
            }
            _ if error.raw_os_error() == Some(Errno::EPROTOTYPE as i32) => {
                match self.target.is_stream() {
                    true => "that is a datagram socket: write unixgram://PATH",
                    false => "that is a stream socket: write unix://PATH",
                }
            }
            _ => return None,
        })
    }

    /// `tcp://localhost:7`, with the address where that says more.
    pub(crate) fn place(&self, address: &Address) -> String {
        match (&self.target.place, address) {
            (Place::Inet(host, _), Address::Inet(address)) if host.parse() != Ok(address.ip()) => {
                format!("{} ({address})", self.target)
            }
            _ => self.target.to_string(),
        }
    }

    /// Connects a stream to the first address that can be reached, and sends the PROXY header that
    /// the command line asks for.
    ///
    /// # Errors
    /// Those of the last address; [`Cause::Interrupted`] if the command is ended first.
    pub(crate) fn connect(
        &self,
        timeout: Duration,
        interrupt: &Interrupt,
    ) -> Result<Stream, Trouble> {
        let mut last = None;
        for address in &self.addresses {
            match self.connect_to(address, timeout, interrupt) {
                Ok(stream) => return Ok(stream),
                Err(error) if error.kind() == ErrorKind::Interrupted => {
                    return Err(self.trouble_at(address, &error));
                }
                Err(error) => last = Some(self.trouble_at(address, &error)),
            }
        }
        Err(last.expect("there is an address"))
    }

    fn connect_to(
        &self,
        address: &Address,
        timeout: Duration,
        interrupt: &Interrupt,
    ) -> io::Result<Stream> {
        let socket = self.socket(Type::STREAM, address)?;
        if self.target.is_inet() {
            socket.set_tcp_nodelay(true)?;
        }
        let until = Instant::now() + timeout;
        connect(&socket, &address.encode()?, until, interrupt)?;
        let mut stream = Stream::new(socket, address.clone());
        if let Some(version) = self.path.proxy {
            stream.push(&proxy_header(version, &stream.socket)?);
            // A new connection has room for a header.
            stream.flush()?;
        }
        Ok(stream)
    }

    /// Opens a socket for datagrams to the first address, with all details that the kernel has.
    ///
    /// # Errors
    /// As `socket(2)`, `bind(2)` and `setsockopt(2)`.
    pub(crate) fn open(&self) -> Result<Flow, Trouble> {
        let flow = self.datagrams();
        let flow = flow.and_then(|socket| Flow::new(socket, self.address().clone()));
        flow.map_err(|error| self.trouble(&error))
    }

    /// Opens a socket for many datagrams, connected, so that answers from elsewhere are not
    /// delivered.
    ///
    /// # Errors
    /// As `socket(2)`, `bind(2)`, `connect(2)` and `setsockopt(2)`.
    pub(crate) fn connect_datagrams(&self) -> Result<OwnedFd, Trouble> {
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
        let socket = self.socket(Type::DGRAM, self.address())?;
        let options = Inherited {
            no_delay: None,
            keepalive: None,
            receive_buffer: Some(RECEIVE_BUFFER_BYTES),
            send_buffer: None,
        };
        set_inherited(socket.as_fd(), &options)?;
        Ok(socket)
    }

    /// A nonblocking socket with what the command line asks for.
    fn socket(&self, kind: Type, address: &Address) -> io::Result<Socket> {
        let socket = Socket::new(address.domain(), kind.nonblocking().cloexec(), None)?;
        self.bind(&socket, address)?;
        self.prepare(&socket, address)?;
        Ok(socket)
    }

    /// Gives the socket a local address: the one asked for; a datagram socket any, for the answers.
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

    /// Sets the options that the command line asks for.
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

/// The addresses of a name. `getaddrinfo(3)` cannot be interrupted, so a thread calls it, which is
/// abandoned if the command is ended first.
fn look_up(host: &str, port: u16, interrupt: &Interrupt) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (found, result) = channel();
    let name = host.to_owned();
    thread::spawn(move || {
        let addresses = (name.as_str(), port).to_socket_addrs();
        let _ = found.send(addresses.map(Iterator::collect));
    });
    loop {
        interrupt.look_at_output();
        match result.recv_timeout(interrupt.longest_wait(Instant::now()).min(LOOK_INTERVAL)) {
            Ok(addresses) => return addresses,
            Err(RecvTimeoutError::Timeout) if !interrupt.is_requested() => {}
            Err(_) => return Err(ErrorKind::Interrupted.into()),
        }
    }
}

/// The port of a service by its name (services(5)).
fn service_port(name: &str, target: &Target) -> Option<u16> {
    let protocol = if target.is_stream() { "tcp" } else { "udp" };
    let text = fs::read_to_string("/etc/services").unwrap_or_default();
    let listed = text
        .lines()
        .find_map(|line| listed_port(line, name, protocol));
    // A system without that file knows echo all the same.
    listed.or_else(|| (name == "echo").then_some(7))
}

/// The port of a service, if this is its line: `echo  7/tcp  alias # comment`.
fn listed_port(line: &str, name: &str, protocol: &str) -> Option<u16> {
    let mut words = line.split('#').next()?.split_whitespace();
    let first = words.next()?;
    let (port, of) = words.next()?.split_once('/')?;
    let is_it = of == protocol && (first == name || words.any(|alias| alias == name));
    is_it.then(|| port.parse().ok())?
}

/// Connects a nonblocking socket, until this time or until the command is ended.
fn connect(
    socket: &Socket,
    address: &SockAddr,
    until: Instant,
    interrupt: &Interrupt,
) -> io::Result<()> {
    loop {
        let pause = match socket.connect(address) {
            Ok(()) => return Ok(()),
            Err(error) if error.raw_os_error() == Some(Errno::EISCONN as i32) => return Ok(()),
            // The backlog of a Unix socket is full, and its room is not reported.
            Err(error) if error.kind() == ErrorKind::WouldBlock => Some(RETRY_INTERVAL),
            Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                Errno::EINPROGRESS | Errno::EALREADY => None,
                _ => return Err(error),
            },
        };
        match pause {
            Some(pause) => link::wait(&mut [], Instant::now() + pause, interrupt)?,
            None => {
                let mut polled = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                link::wait(&mut polled, until, interrupt)?;
                if polled[0].any() == Some(true) {
                    return socket.take_error()?.map_or(Ok(()), Err);
                }
            }
        }
        if interrupt.is_requested() {
            return Err(ErrorKind::Interrupted.into());
        }
        if Instant::now() >= until {
            return Err(ErrorKind::TimedOut.into());
        }
    }
}

/// A PROXY header that names this client and the service; on a Unix socket, which has no such
/// addresses, one that says so.
fn proxy_header(version: ProxyVersion, socket: &Socket) -> io::Result<Vec<u8>> {
    let address = |of: io::Result<SockAddr>| of.ok()?.as_socket();
    let ends = address(socket.local_addr()).zip(address(socket.peer_addr()));
    let header = match ends {
        Some((own, peer)) => ProxyHeader::with_address(ProxiedAddress::stream(own, peer)),
        None => ProxyHeader::with_local(),
    };
    let mut bytes = Vec::new();
    let encoded = match version {
        ProxyVersion::V1 => header.encode_v1(&mut bytes),
        ProxyVersion::V2 => header.encode_v2(&mut bytes),
    };
    encoded.map_err(|error| io::Error::other(error.to_string()))?;
    Ok(bytes)
}

/// Whether the path options make sense for this service.
///
/// # Errors
/// What does not, and what to write.
pub(crate) fn check(target: &Target, path: &Path) -> Result<(), String> {
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
        return Err(format!(
            "{option}: only for tcp:// and udp://: leave it out"
        ));
    }
    if path.proxy.is_some() && !target.is_stream() {
        return Err("--proxy: only streams begin with such a header".into());
    }
    // The source alone chooses the family; an option or the service may contradict it.
    let source = path.source.and_then(|source| source.address);
    let host = match &target.place {
        Place::Inet(host, _) => host.parse::<IpAddr>().ok(),
        Place::Unix(_) => None,
    };
    let mut families = path
        .family()
        .into_iter()
        .chain(host.map(|host| host.is_ipv4()));
    match source.is_some_and(|address| families.any(|is_ipv4| is_ipv4 != address.is_ipv4())) {
        true => Err("--source: the service, -4 or -6 is of the other family of addresses".into()),
        false => Ok(()),
    }
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
        let address = service.local_addr().expect("an address");
        let route = Route {
            target: format!("udp://{address}").parse().expect("a target"),
            addresses: vec![Address::Inet(address)],
            path: Path::default(),
        };
        let flow = route.open().expect("a socket");
        flow.refuse_answers().expect("another peer");
        assert!(flow.send(b"hello").expect("sent"));
        let (_, from) = service.recv_from(&mut [0; 16]).expect("a datagram");
        service.send_to(b"hello", from).expect("sent");
        let error = service.recv_from(&mut [0; 16]).expect_err("a refusal");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert!(flow.receive(&mut [0; 16]).expect("no error").is_none());
    }

    #[test]
    fn a_service_is_known_by_its_name_and_its_aliases() {
        let line = "discard\t\t9/tcp\t\tsink null # thrown away";
        assert_eq!(listed_port(line, "discard", "tcp"), Some(9));
        assert_eq!(listed_port(line, "null", "tcp"), Some(9));
        assert_eq!(listed_port(line, "null", "udp"), None);
        assert_eq!(listed_port(line, "thrown", "tcp"), None);
        assert_eq!(listed_port("# echo 7/tcp", "echo", "tcp"), None);
        assert_eq!(listed_port("", "echo", "tcp"), None);
    }
}
