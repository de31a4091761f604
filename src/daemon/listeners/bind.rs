//! New sockets for listeners: created, configured and bound, but not yet served.
//!
//! Knows how each kind of address is bound without taking it from another process. Which addresses need
//! new sockets is decided in `prepare`, and what is reported when that fails is in `failures`.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use socket2::Type;

use crate::config::{Address, Listener, Mood, Protocol};
use crate::sys::socket::{self, Binding, Inherited};
use crate::worker::mailbox::SocketKind;

use crate::daemon::privileges::Landlock;
use crate::daemon::record::Adopted;
use crate::daemon::socket_file::{self, LockWait, SocketFile};

use super::failures::BindFailure;
use super::retiring::RetiringSockets;

/// The buffer of a datagram socket where the configuration says "auto". Over UDP that for receiving:
/// room for 20,000 small datagrams, since nothing holds a sender back; the kernel's own default has
/// room for 277. Over Unix that for sending, to which all is charged that clients have not read yet
/// (unix(7)): the kernel's own default has room for three large answers.
const DATAGRAM_BUFFER_BYTES: u32 = 8 * 1024 * 1024;

/// A socket bound to one address of a listener.
#[derive(Debug)]
pub(crate) struct Bound {
    /// The address as it was configured.
    pub address: Address,
    pub kind: SocketKind,
    /// The IP address and port that the kernel has bound it to, which never change; none of a Unix
    /// socket.
    pub local: Option<SocketAddr>,
    pub fd: OwnedFd,
    /// One descriptor for each worker that is to serve it.
    pub handles: Vec<(usize, OwnedFd)>,
    /// The socket's file, of a Unix socket that we have bound.
    pub file: Option<SocketFile>,
    /// The name under which the service manager keeps it for our successor.
    pub stored: Option<String>,
    /// The service manager has bound it, and keeps it.
    pub passed: Option<Adopted>,
}

/// What has to be known to bind the sockets of a listener.
#[derive(Debug)]
pub(super) struct Circumstances<'a> {
    pub workers: usize,
    pub mood: Mood,
    /// Sockets of ours that were retired by an earlier reload and share their address until they are
    /// closed.
    pub retiring: &'a RetiringSockets,
    pub landlock: Option<&'a Landlock>,
    /// Until when an address that is in use may become free: where our predecessor was killed, the
    /// kernel ends its operations (io_uring(7)) in its own time.
    pub patience: Option<Instant>,
    pub lock_wait: LockWait,
}

impl Bound {
    /// A socket with these workers, bound by this process.
    fn new(
        address: Address,
        listener: &Listener,
        fd: OwnedFd,
        servers: Vec<usize>,
    ) -> io::Result<Self> {
        Ok(Self {
            address,
            kind: kinds(listener.protocol).0,
            local: socket::local_address(fd.as_fd()),
            handles: handles(&fd, servers)?,
            fd,
            file: None,
            stored: None,
            passed: None,
        })
    }

    /// The port of a UDP socket.
    pub(super) fn udp_port(&self) -> Option<u16> {
        let local = self.local.filter(|_| self.kind == SocketKind::Datagram)?;
        Some(local.port())
    }

    /// The address of a new socket that does not listen yet, though it is one for streams.
    pub(super) fn waits_at(&self) -> Option<SocketAddr> {
        let local = self.local.filter(|_| self.kind == SocketKind::Stream)?;
        (!socket::is_listening(self.fd.as_fd())).then_some(local)
    }

    /// The backlog that it is to have; none where it keeps the one that it has, which is not known.
    pub(super) fn backlog(&self, listener: &Listener) -> Option<u32> {
        match self.passed {
            Some(adopted) if !listener.backlog_is_set => adopted.backlog,
            _ => Some(listener.backlog),
        }
    }

    /// Listens with the backlog that it is to have, unless it does already.
    pub(super) fn listen(&self, listener: &Listener) -> io::Result<()> {
        let has = self.passed.and_then(|adopted| adopted.backlog);
        match self.backlog(listener) {
            Some(backlog) if self.kind == SocketKind::Stream && has != Some(backlog) => {
                socket::listen(self.fd.as_fd(), backlog)
            }
            _ => Ok(()),
        }
    }
}

/// The options that a listener's sockets hand down.
pub(crate) fn inherited(listener: &Listener) -> Inherited {
    let auto_on = |protocol| (listener.protocol == protocol).then_some(DATAGRAM_BUFFER_BYTES);
    Inherited {
        no_delay: (listener.protocol == Protocol::Tcp).then_some(listener.no_delay),
        keepalive: listener.keepalive,
        receive_buffer: listener.receive_buffer.or(auto_on(Protocol::Udp)),
        send_buffer: listener.send_buffer.or(auto_on(Protocol::UnixDatagram)),
    }
}

/// How many sockets each address of the listener gets.
pub(super) fn sockets_per_address(listener: &Listener, workers: usize) -> usize {
    if listener.protocol.is_unix() {
        1
    } else {
        listener.sockets.map_or(workers, usize::from)
    }
}

/// The workers that serve one of the sockets of an address. Of streams, each worker serves one, and
/// each is served: a client is accepted by any worker of its socket. Of datagrams, each has one
/// worker: two would answer those of one sender in another order than they came.
pub(crate) fn servers(
    listener: &Listener,
    index: usize,
    count: usize,
    workers: usize,
) -> Vec<usize> {
    if !listener.protocol.is_stream() {
        // Not all listeners begin with the same worker.
        let first: usize = listener.name.bytes().map(usize::from).sum();
        return vec![(first + index) % workers];
    }
    let pairs = (0..count.max(workers)).filter(|pair| pair % count == index % count);
    let mut servers: Vec<usize> = pairs.map(|pair| pair % workers).collect();
    servers.dedup();
    servers
}

/// A socket that a predecessor had bound, one of `count` of its address.
pub(crate) fn restore(
    listener: &Listener,
    address: Address,
    fd: OwnedFd,
    (index, count): (usize, usize),
    workers: usize,
) -> io::Result<Bound> {
    // The service manager makes a socket block again that it passes again.
    socket::adopt(fd.as_fd())?;
    let servers = servers(listener, index, count, workers);
    Bound::new(address, listener, fd, servers)
}

/// A descriptor of the socket for each of these workers.
pub(crate) fn handles(
    fd: &OwnedFd,
    workers: impl IntoIterator<Item = usize>,
) -> io::Result<Vec<(usize, OwnedFd)>> {
    workers
        .into_iter()
        .map(|worker| Ok((worker, fd.try_clone()?)))
        .collect()
}

/// The socket kind of a protocol, for the workers and for the kernel.
pub(crate) fn kinds(protocol: Protocol) -> (SocketKind, Type) {
    if protocol.is_stream() {
        (SocketKind::Stream, Type::STREAM)
    } else {
        (SocketKind::Datagram, Type::DGRAM)
    }
}

/// Binds all sockets of an IP address and port that no socket in service has. Those of streams do
/// not listen yet.
pub(super) fn bind_inet(
    listener: &Listener,
    address: &Address,
    inet: SocketAddr,
    circumstances: &Circumstances<'_>,
) -> io::Result<Vec<Bound>> {
    let (kind, socket_type) = kinds(listener.protocol);
    let (workers, count) = (
        circumstances.workers,
        sockets_per_address(listener, circumstances.workers),
    );
    // The first one is bound alone, so that it fails when any other process has the address; also
    // another echod of the same user, which could otherwise share it unnoticed.
    let alone = patiently(circumstances.patience, is_in_use, || {
        socket::bind_inet(socket_type, inet, Binding::Exclusive)
    });
    let first = match alone {
        Err(error) if is_in_use(&error) && circumstances.retiring.exclude(kind, inet) => {
            socket::bind_inet(socket_type, inet, Binding::Shared)
        }
        alone => alone,
    }?;
    socket::set_inherited(first.as_fd(), &inherited(listener))?;
    if count > 1 {
        socket::set_shared(first.as_fd(), true)?;
    }
    let inet = socket::local_address(first.as_fd()).unwrap_or(inet);
    let servers = servers(listener, 0, count, workers);
    let mut bound = vec![Bound::new(address.clone(), listener, first, servers)?];
    bound.extend(bind_beside(listener, address, inet, 1..count, workers)?);
    Ok(bound)
}

/// Binds further sockets to an IP address and port: those with these indexes. The sockets that have
/// it permit that already.
pub(super) fn bind_beside(
    listener: &Listener,
    address: &Address,
    inet: SocketAddr,
    indexes: Range<usize>,
    workers: usize,
) -> io::Result<Vec<Bound>> {
    let (_, socket_type) = kinds(listener.protocol);
    let count = indexes.end;
    let bind = |index| {
        let fd = socket::bind_inet(socket_type, inet, Binding::Shared)?;
        socket::set_inherited(fd.as_fd(), &inherited(listener))?;
        let servers = servers(listener, index, count, workers);
        Bound::new(address.clone(), listener, fd, servers)
    };
    indexes.map(bind).collect()
}

/// Binds the socket of a path. Streams listen, for our own user alone as yet, unless it is only tried.
pub(super) fn bind_path(
    listener: &Listener,
    path: &Path,
    circumstances: &Circumstances<'_>,
) -> Result<Bound, socket_file::Error> {
    let (_, socket_type) = kinds(listener.protocol);
    let backlog = (circumstances.mood == Mood::Real).then_some(listener.backlog);
    let is_in_use = |error: &socket_file::Error| matches!(error, socket_file::Error::InUse);
    let (fd, file) = patiently(circumstances.patience, is_in_use, || {
        socket_file::bind(socket_type, path, backlog, &circumstances.lock_wait)
    })?;
    of_path(listener, path, (fd, file), circumstances.workers)
}

/// The socket of a listener that was bound to a path.
pub(super) fn of_path(
    listener: &Listener,
    path: &Path,
    (fd, file): (OwnedFd, SocketFile),
    workers: usize,
) -> Result<Bound, socket_file::Error> {
    let servers = servers(listener, 0, 1, workers);
    let bound = socket::set_inherited(fd.as_fd(), &inherited(listener))
        .and_then(|()| Bound::new(Address::Unix(path.into()), listener, fd, servers))
        .map_err(|cause| socket_file::Error::Failed {
            what: "configure it",
            cause,
        })?;
    Ok(Bound {
        file: Some(file),
        ..bound
    })
}

/// Tries again as long as the address is in use and there is patience.
fn patiently<T, E>(
    patience: Option<Instant>,
    is_in_use: impl Fn(&E) -> bool,
    attempt: impl Fn() -> Result<T, E>,
) -> Result<T, E> {
    loop {
        match attempt() {
            Err(error)
                if is_in_use(&error) && patience.is_some_and(|until| Instant::now() < until) =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

pub(super) fn is_in_use(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

/// Whether this kernel does not have the address family, or not on any interface.
pub(super) fn is_missing_family(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

/// Finds out why root could not bind this address on this machine, whatever processes do, and with a
/// missing folder that is about to be made. Opens no socket at the address and touches no file. Returns
/// a warning where the address would be left out.
///
/// # Errors
/// What is wrong, as of a start.
pub(crate) fn check(
    listener: &Listener,
    address: &Address,
    made: Option<&Path>,
) -> Result<Option<String>, String> {
    match address {
        Address::Unix(path) => match socket_file::check(path, made) {
            Ok(()) => Ok(None),
            Err(error) => Err(BindFailure::of_path(listener, path, &error, None).to_string()),
        },
        Address::Inet {
            address: inet,
            optional,
        } => {
            let mut any_port = *inet;
            any_port.set_port(0);
            let (_, socket_type) = kinds(listener.protocol);
            match socket::bind_inet(socket_type, any_port, Binding::Exclusive) {
                Ok(_) => Ok(None),
                // No port is free in this moment, which has nothing to do with the address.
                Err(error) if is_in_use(&error) => Ok(None),
                Err(error) if *optional && is_missing_family(&error) => {
                    Ok(Some(left_out(listener, address)))
                }
                Err(error) => {
                    Err(BindFailure::of_inet(listener, address, *inet, &error).to_string())
                }
            }
        }
    }
}

/// That the IPv6 half of an address is not bound.
pub(super) fn left_out(listener: &Listener, address: &Address) -> String {
    let name = &listener.name;
    format!("listener \"{name}\": {address} is left out: this host has no IPv6")
}
