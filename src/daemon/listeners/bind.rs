//! Sockets for listeners: made and bound, but not yet served.
//!
//! Knows how each kind of address is taken without stealing it from anybody, and what to tell the
//! operator when that fails.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::stat::{Mode, umask};
use socket2::Type;

use crate::config::{Address, Listener, Protocol};
use crate::sys::socket::{self, Binding, Inherited};
use crate::worker::mailbox::SocketKind;

use crate::daemon::privileges::Landlock;
use crate::daemon::systemd::passed::Adopted;

/// The buffer of a datagram socket where the configuration says "auto". Over UDP that for receiving:
/// room for 20,000 small datagrams, since nobody holds a sender back; the kernel's own default has
/// room for 277. Over Unix that for sending, to which all is charged that clients have not read yet
/// (unix(7)): the kernel's own default has room for three large answers.
const DATAGRAM_BUFFER_BYTES: u32 = 8 * 1024 * 1024;

/// A socket bound to one address of a listener.
#[derive(Debug)]
pub(crate) struct Bound {
    /// The address as it was configured.
    pub address: Address,
    pub kind: SocketKind,
    pub fd: OwnedFd,
    /// One descriptor for each worker that will serve it.
    pub handles: Vec<(usize, OwnedFd)>,
    /// The socket's file, of a Unix socket that we have bound.
    pub file: Option<SocketFile>,
    /// The name under which the service manager keeps it for our successor.
    pub stored: Option<String>,
    /// The service manager has bound it, and keeps it.
    pub passed: Option<Adopted>,
}

/// A Unix socket's file: removed in the end, if it is still ours.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    // Where it was bound, when another socket of ours still has the path.
    bound_at: Option<PathBuf>,
    inode: (u64, u64),
}

/// What has to be known to bind the sockets of a listener.
pub(crate) struct Site<'a> {
    pub workers: usize,
    /// Sockets of ours that are about to be retired and may have an address that is wanted.
    pub retiring: &'a [BorrowedFd<'a>],
    /// Ports of sockets of ours that were retired by an earlier reload and share their address
    /// until they are closed.
    pub retired_ports: &'a [u16],
    /// Paths of Unix sockets that are about to be retired.
    pub retiring_paths: &'a [PathBuf],
    pub landlock: Option<&'a Landlock>,
    /// Until when an address that somebody has may become free: where the one before us was killed,
    /// the kernel ends what it was doing for that one (io_uring(7)) in its own time.
    pub patience: Option<Instant>,
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
pub(crate) fn sockets_per_address(listener: &Listener, workers: usize) -> usize {
    if listener.protocol.is_unix() {
        1
    } else {
        listener.sockets.map_or(workers, usize::from)
    }
}

/// Binds one address of a listener. Streams do not listen yet. Nothing, with a warning, for an
/// optional address that this kernel does not have.
pub(crate) fn bind(
    listener: &Listener,
    address: &Address,
    port: Option<u16>,
    site: &Site<'_>,
    warnings: &mut Vec<String>,
) -> Result<Vec<Bound>, String> {
    let name = &listener.name;
    let fail = |error: &io::Error| {
        format!(
            "listener \"{name}\": bind {address}: {}",
            explain(error, address, listener, site.landlock)
        )
    };
    match address {
        Address::Unix(path) => {
            let bound = bind_path(listener, path, site).map_err(|error| fail(&error))?;
            Ok(vec![bound])
        }
        Address::Inet {
            address: inet,
            optional,
        } => {
            let mut inet = *inet;
            if let Some(port) = port.filter(|_| inet.port() == 0) {
                inet.set_port(port);
            }
            match bind_inet(listener, address, inet, site) {
                Ok(bound) => Ok(bound),
                Err(error) if *optional && is_missing_family(&error) => {
                    warnings.push(format!(
                        "listener \"{name}\": {address} is left out: this host has no IPv6"
                    ));
                    Ok(Vec::new())
                }
                Err(error) => Err(fail(&error)),
            }
        }
    }
}

fn bind_inet(
    listener: &Listener,
    address: &Address,
    inet: SocketAddr,
    site: &Site<'_>,
) -> io::Result<Vec<Bound>> {
    let (kind, socket_type) = kinds(listener.protocol);
    let count = sockets_per_address(listener, site.workers);
    let options = inherited(listener);
    let mut inet = inet;
    let mut sockets: Vec<OwnedFd> = Vec::with_capacity(count);
    for index in 0..count {
        let fd = if index == 0 {
            bind_first(socket_type, inet, site)?
        } else {
            bind_beside(socket_type, inet)?
        };
        if index == 0 {
            inet = socket::local_address(fd.as_fd()).unwrap_or(inet);
            if count > 1 {
                socket::share_address(fd.as_fd())?;
            }
        }
        socket::set_inherited(fd.as_fd(), &options)?;
        sockets.push(fd);
    }
    let bound = sockets.into_iter().enumerate().map(|(index, fd)| {
        let handles = handles(&fd, servers(listener, index, count, site.workers))?;
        Ok(Bound {
            address: address.clone(),
            kind,
            handles,
            fd,
            file: None,
            stored: None,
            passed: None,
        })
    });
    bound.collect()
}

/// Who serves one of the sockets of an address. Of streams, each worker serves one, and each is
/// served: clients go to whoever takes them. Of datagrams, each has one worker: two would answer
/// those of one sender in another order than they came.
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

/// A socket that a predecessor had bound, one of so many of its address.
pub(crate) fn restore(
    listener: &Listener,
    address: Address,
    fd: OwnedFd,
    (index, count): (usize, usize),
    workers: usize,
) -> io::Result<Bound> {
    // The service manager makes a socket block again that it passes again.
    socket::adopt(fd.as_fd())?;
    Ok(Bound {
        address,
        kind: kinds(listener.protocol).0,
        handles: handles(&fd, servers(listener, index, count, workers))?,
        fd,
        file: None,
        stored: None,
        passed: None,
    })
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

/// The first socket of an address is bound alone, so that it is noticed when somebody else has it;
/// also another echod of the same user, who could otherwise share it unnoticed. If it is we
/// ourselves who have it, with a socket that is about to go, they share it for the moment.
fn bind_first(socket_type: Type, inet: SocketAddr, site: &Site<'_>) -> io::Result<OwnedFd> {
    let alone = patiently(site, || {
        socket::bind_inet(socket_type, inet, Binding::Exclusive)
    });
    match alone {
        Err(ref error) if error.kind() == io::ErrorKind::AddrInUse => {}
        other => return other,
    }
    let same_port = |fd: &&BorrowedFd<'_>| {
        socket::local_address(**fd).is_some_and(|local| local.port() == inet.port())
    };
    let ours: Vec<_> = site.retiring.iter().filter(same_port).collect();
    if ours.is_empty() && !site.retired_ports.contains(&inet.port()) {
        return alone;
    }
    for fd in ours {
        socket::share_address(*fd)?;
    }
    bind_beside(socket_type, inet)
}

/// Tries until an address is free, as long as the site has patience.
fn patiently<T>(site: &Site<'_>, attempt: impl Fn() -> io::Result<T>) -> io::Result<T> {
    loop {
        match attempt() {
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse
                    && site.patience.is_some_and(|until| Instant::now() < until) =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

fn bind_beside(socket_type: Type, inet: SocketAddr) -> io::Result<OwnedFd> {
    socket::bind_inet(socket_type, inet, Binding::Shared)
}

fn bind_path(listener: &Listener, path: &Path, site: &Site<'_>) -> io::Result<Bound> {
    let (kind, socket_type) = kinds(listener.protocol);
    let ours = site.retiring_paths.iter().any(|retiring| retiring == path);
    let beside = path.with_file_name(format!(
        "{}~",
        path.file_name().unwrap_or_default().display()
    ));
    let bind_at = if ours { beside.as_path() } else { path };
    patiently(site, || remove_stale(socket_type, bind_at))?;
    // No moment in which others than the owner could connect: the mode comes before the listening.
    let before = umask(Mode::from_bits_truncate(0o177));
    let fd = socket::bind_unix(socket_type, bind_at);
    umask(before);
    let fd = fd?;
    let metadata = fs::symlink_metadata(bind_at)?;
    let inode = (metadata.dev(), metadata.ino());
    let bound_at = ours.then_some(beside.clone());
    let file = SocketFile {
        path: path.into(),
        bound_at,
        inode,
    };
    fs::set_permissions(bind_at, fs::Permissions::from_mode(listener.mode))?;
    socket::set_inherited(fd.as_fd(), &inherited(listener))?;
    let handles = handles(&fd, servers(listener, 0, 1, site.workers))?;
    Ok(Bound {
        address: Address::Unix(path.into()),
        kind,
        fd,
        handles,
        file: Some(file),
        stored: None,
        passed: None,
    })
}

/// Removes the file of a socket that nobody has any more; never one that somebody has, or another
/// kind of file.
fn remove_stale(socket_type: Type, path: &Path) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "there is a file that is not a socket",
        ));
    }
    if socket::unix_is_alive(socket_type, path)? {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    fs::remove_file(path)
}

/// What the workers make of a protocol, and the kernel.
pub(crate) fn kinds(protocol: Protocol) -> (SocketKind, Type) {
    if protocol.is_stream() {
        (SocketKind::Stream, Type::STREAM)
    } else {
        (SocketKind::Datagram, Type::DGRAM)
    }
}

fn is_missing_family(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

/// What went wrong and what to do, for who has to do it.
fn explain(
    error: &io::Error,
    address: &Address,
    listener: &Listener,
    landlock: Option<&Landlock>,
) -> String {
    let port = match address {
        Address::Inet { address, .. } => Some(address.port()),
        Address::Unix(path) => {
            if let Some(landlock) = landlock
                && error.raw_os_error() == Some(libc::EACCES)
                && landlock.forbids(path)
            {
                return format!(
                    "permission denied: as [daemon] user is set, Landlock lets it make files only in the folders \
                     that had its sockets at the start ({}): use one of them, or restart it",
                    landlock.places()
                );
            }
            None
        }
    };
    match (error.raw_os_error(), port) {
        (Some(libc::EADDRINUSE), Some(port)) => {
            let flag = if listener.protocol == Protocol::Tcp {
                "-ltnp"
            } else {
                "-lunp"
            };
            format!("address already in use; ask who has it: ss {flag} 'sport = :{port}'")
        }
        (Some(libc::EACCES), Some(port)) if port < 1024 => {
            "permission denied; ports below 1024 need CAP_NET_BIND_SERVICE".into()
        }
        (Some(libc::EADDRNOTAVAIL), _) => {
            "this host does not have that address; see: ip address".into()
        }
        (Some(libc::EAFNOSUPPORT), Some(_)) => {
            "not possible on this host, or forbidden to this service (RestrictAddressFamilies=): \
             let a .socket unit pass the socket, see echod(8)"
                .into()
        }
        (Some(libc::EACCES), None) => {
            "permission denied; the daemon's user must be able to write to the folder".into()
        }
        (Some(libc::ENOENT), None) => {
            "the folder does not exist; make it, or use RuntimeDirectory= in the unit".into()
        }
        (_, None) if error.kind() == io::ErrorKind::AddrInUse => {
            "a running process serves it: stop that first".into()
        }
        _ => error.to_string(),
    }
}

impl SocketFile {
    /// Where it is to be in the end.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the file at its path, atomically in place of the one that is there.
    pub(crate) fn settle(&mut self) -> io::Result<()> {
        match self.bound_at.take() {
            Some(bound_at) => fs::rename(bound_at, &self.path),
            None => Ok(()),
        }
    }

    /// Changes who may connect.
    pub(crate) fn set_mode(&self, mode: u32) -> io::Result<()> {
        fs::set_permissions(&self.path, fs::Permissions::from_mode(mode))
    }

    /// The socket's file that is at this path now.
    pub(crate) fn at(path: &Path) -> Option<Self> {
        let metadata = fs::symlink_metadata(path).ok()?;
        let inode = (metadata.dev(), metadata.ino());
        metadata
            .file_type()
            .is_socket()
            .then(|| Self::of_predecessor(path.into(), inode))
    }

    /// The file that a predecessor had bound its socket to.
    pub(crate) fn of_predecessor(path: PathBuf, inode: (u64, u64)) -> Self {
        Self {
            path,
            bound_at: None,
            inode,
        }
    }

    /// Device and inode.
    pub(crate) fn inode(&self) -> (u64, u64) {
        self.inode
    }

    fn remove_if_ours(&self) {
        let path = self.bound_at.as_ref().unwrap_or(&self.path);
        let ours = fs::symlink_metadata(path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.inode);
        if ours {
            // Somebody may have been faster: then it is gone as well.
            let _ = fs::remove_file(path);
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove_if_ours();
    }
}
