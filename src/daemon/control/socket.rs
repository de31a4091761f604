//! The control socket's file: made so that nobody who may not can ever connect, and taken away
//! again if it is still ours.

use std::fs::{self, DirBuilder, Permissions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};

use crate::daemon::privileges::Made;

/// Connections that wait to be accepted. The main loop takes them within milliseconds.
const BACKLOG: i32 = 64;

/// The mode of the directory, when it has to be made.
const DIRECTORY_MODE: u32 = 0o750;

/// The longest path that a Unix socket can have, in bytes (unix(7)).
const PATH_BYTES_MAX: usize = 107;

/// Why there is no control socket: where, what, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers there.
    #[error("{}: already running: a daemon listens there; stop it, or use another --socket", .0.display())]
    AlreadyRunning(PathBuf),
    /// Something else has this name, and we do not remove what is not ours.
    #[error("{}: not a socket: remove the file, or use another --socket", .0.display())]
    NotASocket(PathBuf),
    /// The name does not fit into an address.
    #[error("{}: {} bytes are too long for a socket's path: it has at most {PATH_BYTES_MAX}", .0.display(), .0.as_os_str().len())]
    TooLong(PathBuf),
    /// There is no place for the directory.
    #[error("{}: no such directory: make it, or use another --socket", .0.display())]
    NoDirectory(PathBuf),
    /// The kernel refused.
    #[error("{}: {what}: {}{}", path.display(), lower(*cause), hint(*cause))]
    Failed {
        /// Where.
        path: PathBuf,
        /// What we were about to do.
        what: &'static str,
        /// Why not.
        cause: Errno,
    },
}

impl BindError {
    pub(super) fn failed(path: &Path, what: &'static str, cause: Errno) -> Self {
        Self::Failed {
            path: path.to_owned(),
            what,
            cause,
        }
    }
}

fn lower(cause: Errno) -> String {
    cause.desc().to_lowercase()
}

fn hint(cause: Errno) -> &'static str {
    match cause {
        Errno::EACCES | Errno::EPERM => "; use another --socket, or start as another user",
        _ => "",
    }
}

/// The listening socket, and its file.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// We have made the directory, too.
    made_directory: bool,
    /// It has the group that was configured.
    has_group: bool,
    /// Device and inode: another daemon may have put its own socket there meanwhile.
    identity: Option<(u64, u64)>,
}

impl Socket {
    pub(super) fn bind(path: &Path, mode: u32, group: Option<u32>) -> Result<Self, BindError> {
        if path.as_os_str().len() > PATH_BYTES_MAX {
            return Err(BindError::TooLong(path.to_owned()));
        }
        let made_directory = make_directory(path, group)?;
        remove_stale(path)?;
        let listener = bind_private(path)?;
        let identity = identity(path);
        // From here on, leaving removes the file.
        let socket = Self {
            listener,
            path: path.to_owned(),
            made_directory,
            has_group: group.is_some(),
            identity,
        };
        socket.listen()?;
        socket.open_up(mode, group)?;
        Ok(socket)
    }

    /// The socket that a predecessor had made, if its file is still at this path.
    pub(super) fn adopt(
        listener: OwnedFd,
        path: &Path,
        identity: Option<(u64, u64)>,
    ) -> Option<Self> {
        let is_there = identity.is_some() && self::identity(path) == identity;
        is_there.then(|| Self {
            listener: listener.into(),
            path: path.to_owned(),
            identity,
            has_group: true,
            made_directory: false,
        })
    }

    /// Where it is, and device and inode of its file.
    pub(super) fn place(&self) -> (&Path, Option<(u64, u64)>) {
        (&self.path, self.identity)
    }

    /// The file, and the directory if that was missing.
    pub(super) fn made(&self) -> Vec<Made> {
        let made = |path: &Path, is_folder| Made {
            path: path.to_owned(),
            is_folder,
            keeps_group: self.has_group,
        };
        let directory = self.path.parent().filter(|_| self.made_directory);
        let directory = directory.map(|directory| made(directory, true));
        directory
            .into_iter()
            .chain([made(&self.path, false)])
            .collect()
    }

    /// Listens, for its owner alone as yet.
    fn listen(&self) -> Result<(), BindError> {
        let backlog = Backlog::new(BACKLOG).expect("64 is allowed");
        socket::listen(&self.listener, backlog)
            .map_err(|cause| BindError::failed(&self.path, "listen", cause))
    }

    /// Lets those in who may connect: first whose it is, then what they may.
    pub(super) fn open_up(&self, mode: u32, group: Option<u32>) -> Result<(), BindError> {
        let path = &self.path;
        // One that it has anyway is not set again: a service manager's system call filter may forbid
        // that, and the service runs with this group for that very reason.
        let present = fs::symlink_metadata(path)
            .ok()
            .map(|metadata| metadata.gid());
        if group.is_some() && group != present {
            lchown(path, None, group)
                .map_err(|cause| BindError::failed(path, "change its group", errno(&cause)))?;
        }
        fs::set_permissions(path, Permissions::from_mode(mode))
            .map_err(|cause| BindError::failed(path, "change its mode", errno(&cause)))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // There is nobody left to tell that it stays; the next start takes it for stale.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Makes the directory if it alone is missing; whether it was.
fn make_directory(path: &Path, group: Option<u32>) -> Result<bool, BindError> {
    let Some(directory) = path.parent().filter(|name| !name.as_os_str().is_empty()) else {
        return Ok(false);
    };
    if directory.exists() {
        return Ok(false);
    }
    let failed = |cause: &std::io::Error| match errno(cause) {
        Errno::ENOENT => BindError::NoDirectory(directory.to_owned()),
        cause => BindError::failed(directory, "make the directory", cause),
    };
    let made = DirBuilder::new().mode(DIRECTORY_MODE).create(directory);
    made.map_err(|cause| failed(&cause))?;
    if group.is_some() {
        // Who may connect has to get there.
        lchown(directory, None, group).map_err(|cause| failed(&cause))?;
    }
    // The umask may have taken something away.
    let permissions = Permissions::from_mode(DIRECTORY_MODE);
    fs::set_permissions(directory, permissions).map_err(|cause| failed(&cause))?;
    Ok(true)
}

/// Removes a socket that nobody listens to any more, and nothing else.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(cause) if errno(&cause) == Errno::ENOENT => return Ok(()),
        Err(cause) => return Err(BindError::failed(path, "look at it", errno(&cause))),
    };
    if !metadata.file_type().is_socket() {
        return Err(BindError::NotASocket(path.to_owned()));
    }
    let probe = new_socket(path)?;
    match socket::connect(probe.as_raw_fd(), &address(path)?) {
        // A full queue (EAGAIN) and another kind of socket (EPROTOTYPE) are signs of life too.
        Ok(()) | Err(Errno::EAGAIN | Errno::EPROTOTYPE) => {
            Err(BindError::AlreadyRunning(path.to_owned()))
        }
        Err(Errno::ECONNREFUSED) => fs::remove_file(path)
            .map_err(|cause| BindError::failed(path, "remove the stale socket", errno(&cause))),
        Err(Errno::ENOENT) => Ok(()),
        Err(cause) => Err(BindError::failed(path, "connect", cause)),
    }
}

/// Binds a socket that nobody but its owner can connect to.
///
/// Linux gives the file the mode that the socket itself has (less the umask), so that there is no
/// moment at which it is open, and no need to change the umask of the whole process.
fn bind_private(path: &Path) -> Result<UnixListener, BindError> {
    let fd = new_socket(path)?;
    fchmod(&fd, Mode::S_IRUSR | Mode::S_IWUSR)
        .map_err(|cause| BindError::failed(path, "change its mode", cause))?;
    match socket::bind(fd.as_raw_fd(), &address(path)?) {
        Ok(()) => Ok(fd.into()),
        Err(Errno::EADDRINUSE) => Err(BindError::AlreadyRunning(path.to_owned())),
        Err(cause) => Err(BindError::failed(path, "bind", cause)),
    }
}

fn new_socket(path: &Path) -> Result<OwnedFd, BindError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|cause| BindError::failed(path, "make a socket", cause))
}

fn address(path: &Path) -> Result<UnixAddr, BindError> {
    UnixAddr::new(path).map_err(|cause| BindError::failed(path, "use it as an address", cause))
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn errno(cause: &std::io::Error) -> Errno {
    Errno::from_raw(cause.raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn until_it_is_opened_up_only_its_owner_can_connect() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("private.sock");
        let _listener = bind_private(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn the_socket_has_its_mode_and_the_directory_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("echod/control.sock");
        let gid = nix::unistd::getegid().as_raw();
        let _socket = Socket::bind(&path, 0o660, Some(gid)).unwrap();
        assert_eq!(mode(&path), 0o660);
        assert_eq!(mode(path.parent().unwrap()), 0o750);
    }

    #[test]
    fn a_directory_without_a_parent_is_not_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/control.sock");
        let error = Socket::bind(&path, 0o660, None).unwrap_err();
        assert!(matches!(error, BindError::NoDirectory(_)), "{error}");
        assert!(!directory.path().join("a").exists());
    }

    #[test]
    fn the_file_is_removed_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        drop(Socket::bind(&path, 0o600, None).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn the_file_of_another_daemon_is_left_alone_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let ours = Socket::bind(&path, 0o600, None).unwrap();
        fs::rename(&path, directory.path().join("kept.sock")).unwrap();
        let theirs = Socket::bind(&path, 0o600, None).unwrap();
        drop(ours);
        assert!(path.exists());
        drop(theirs);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file behind");
        let _socket = Socket::bind(&path, 0o600, None).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_running_daemon_keeps_its_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let _running = Socket::bind(&path, 0o600, None).unwrap();
        let error = Socket::bind(&path, 0o600, None).unwrap_err();
        assert!(matches!(error, BindError::AlreadyRunning(_)), "{error}");
        let datagrams = directory.path().join("log");
        let _other = UnixDatagram::bind(&datagrams).unwrap();
        let error = Socket::bind(&datagrams, 0o600, None).unwrap_err();
        assert!(matches!(error, BindError::AlreadyRunning(_)), "{error}");
        assert!(datagrams.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_never_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        fs::write(&path, "data").unwrap();
        let error = Socket::bind(&path, 0o600, None).unwrap_err();
        assert!(matches!(error, BindError::NotASocket(_)), "{error}");
        let dangling = directory.path().join("link");
        std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
        let error = Socket::bind(&dangling, 0o600, None).unwrap_err();
        assert!(matches!(error, BindError::NotASocket(_)), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn a_path_that_is_too_long_is_said_to_be() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
        let error = Socket::bind(&path, 0o600, None).unwrap_err().to_string();
        assert!(error.ends_with("at most 107"), "{error}");
    }
}
