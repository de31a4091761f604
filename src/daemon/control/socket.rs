//! The control socket and its directory: created, opened to those that may connect, adopted from a
//! predecessor.
//!
//! How its file is created and removed is in [`crate::daemon::socket_file`]. Knows nothing of
//! connections.

use std::fs::{self, DirBuilder};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, lchown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use socket2::Type;

use crate::config;
use crate::daemon::privileges::CreatedPath;
use crate::daemon::socket_file::{self, Identity, LockWait, SocketFile};

/// Connections that wait to be accepted. The main loop takes them within milliseconds.
const BACKLOG: u32 = 64;

/// The mode of the directory, when it has to be made.
const DIRECTORY_MODE: u32 = 0o750;

/// Why there is no control socket: where, what, and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    /// A process is bound to it.
    #[error("{}: already running: a daemon listens there; stop it, or use another --socket", .0.display())]
    AlreadyRunning(PathBuf),
    /// Another kind of file has this name, and it is not ours to remove.
    #[error("{}: not a socket: remove the file, or use another --socket", .0.display())]
    NotASocket(PathBuf),
    /// The name is not one that a configuration may have.
    #[error("{}: {reason}", path.display())]
    Unfit {
        /// Where.
        path: PathBuf,
        /// Why not, and what to write.
        reason: String,
    },
    /// The name is not a text.
    #[error("{}: this is not UTF-8: choose another path", .0.display())]
    NotText(PathBuf),
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

    fn of_file(path: &Path, error: socket_file::Error) -> Self {
        match error {
            socket_file::Error::InUse => Self::AlreadyRunning(path.to_owned()),
            socket_file::Error::NotASocket => Self::NotASocket(path.to_owned()),
            socket_file::Error::Failed { what, cause } => Self::failed(path, what, errno(&cause)),
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

/// Where the control socket is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SocketPath {
    /// The path.
    pub path: PathBuf,
    /// What says so.
    pub said_by: SaidBy,
}

/// What says where the control socket is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SaidBy {
    /// The option `--socket`.
    CommandLine,
    /// `[control] socket`.
    Configuration,
    /// Neither of them, so that it is where it always is.
    Default,
}

impl SocketPath {
    /// The path of the option `--socket`, else of the configuration, else the default for root or
    /// another user; none if that is not known.
    pub(crate) fn find(
        option: Option<&Path>,
        config: &config::Control,
        as_root: bool,
    ) -> Option<Self> {
        let (path, said_by) = match (option, config.socket.as_deref()) {
            (Some(path), _) => (path.to_owned(), SaidBy::CommandLine),
            (None, Some(path)) => (path.to_owned(), SaidBy::Configuration),
            (None, None) => (default_path(as_root)?, SaidBy::Default),
        };
        Some(Self { path, said_by })
    }

    /// Finds out why root could not bind the socket, whatever processes do. Touches nothing.
    ///
    /// # Errors
    /// [`BindError`], as of a start.
    pub(crate) fn check(&self) -> Result<(), BindError> {
        let path = &self.path;
        must_fit(path)?;
        match missing_directory(path) {
            Some(link) if link.is_symlink() => Err(cannot_make(link, &Errno::EEXIST.into())),
            Some(directory) => {
                socket_file::check_folder(directory).map_err(|cause| cannot_make(directory, &cause))
            }
            None => socket_file::check(path, None).map_err(|error| BindError::of_file(path, error)),
        }
    }

    /// Whether there is no start without it: a daemon that was started for a moment, without a
    /// configuration file, does without one where the default path is unavailable.
    pub(crate) fn is_needed(&self, has_file: bool) -> bool {
        has_file || self.said_by != SaidBy::Default
    }
}

fn default_path(as_root: bool) -> Option<PathBuf> {
    let folder = |variable| {
        let value = std::env::var(variable)
            .ok()
            .filter(|value| !value.is_empty())?;
        // Where several are configured, systemd separates them by colons.
        Some(PathBuf::from(value.split(':').next()?))
    };
    let runtime = folder("RUNTIME_DIRECTORY").map(|folder| folder.join("control.sock"));
    runtime.or_else(|| {
        if as_root {
            return Some("/run/echod/control.sock".into());
        }
        Some(folder("XDG_RUNTIME_DIR")?.join("echod/control.sock"))
    })
}

/// The listening socket, and its file.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) listener: UnixListener,
    file: SocketFile,
    /// The directory was made for it, too.
    made_directory: bool,
    permissions: Permissions,
    /// A predecessor had bound it.
    is_adopted: bool,
}

/// Which users may connect.
#[derive(Clone, Copy, Debug)]
pub(super) struct Permissions {
    pub(super) mode: u32,
    /// None where that is the group of the process.
    pub(super) group: Option<u32>,
}

impl Socket {
    pub(super) fn bind(path: &Path, permissions: Permissions) -> Result<Self, BindError> {
        let socket = Self::bind_private(path, permissions)?;
        socket.open_up()?;
        Ok(socket)
    }

    /// Only its owner can connect before [`Self::open_up`].
    fn bind_private(path: &Path, permissions: Permissions) -> Result<Self, BindError> {
        must_fit(path)?;
        let made_directory = make_directory(path, permissions.group)?;
        let (listener, mut file) =
            socket_file::bind(Type::STREAM, path, Some(BACKLOG), &LockWait::default())
                .map_err(|error| BindError::of_file(path, error))?;
        file.keep();
        Ok(Self {
            listener: listener.into(),
            file,
            made_directory,
            permissions,
            is_adopted: false,
        })
    }

    /// The socket that a predecessor had made with this file at this path.
    pub(super) fn adopt(
        listener: OwnedFd,
        path: &Path,
        identity: Identity,
        permissions: Permissions,
    ) -> Self {
        Self {
            listener: listener.into(),
            file: SocketFile::adopt(path.to_owned(), identity),
            made_directory: false,
            permissions,
            is_adopted: true,
        }
    }

    /// Another socket in the place of this one, if its file is gone, with what can't be done for
    /// others to connect to it.
    pub(super) fn bind_again(&self) -> Result<(Self, Option<BindError>), BindError> {
        let socket = Self::bind_private(self.file.path(), self.permissions)?;
        let closed = socket.open_up().err();
        Ok((socket, closed))
    }

    pub(super) fn permissions(&self) -> Permissions {
        self.permissions
    }

    /// Finds out why [`Self::bind_again`] would fail.
    pub(super) fn check_again(&self) -> Result<(), BindError> {
        let path = self.file.path();
        SocketPath {
            path: path.to_owned(),
            said_by: SaidBy::CommandLine,
        }
        .check()?;
        socket_file::check_unused(Type::STREAM, path)
            .map_err(|error| BindError::of_file(path, error))
    }

    /// Whether its file is at its path.
    pub(super) fn is_in_place(&self) -> bool {
        self.file.is_in_place()
    }

    /// Where it is, and device and inode of its file.
    pub(super) fn place(&self) -> (&Path, Option<Identity>) {
        (self.file.path(), Some(self.file.identity()))
    }

    /// The file, and the directory if that was missing.
    pub(super) fn created_paths(&self) -> Vec<CreatedPath> {
        if !self.is_in_place() {
            return Vec::new();
        }
        let made = |path: &Path, is_folder| CreatedPath {
            path: path.to_owned(),
            is_folder,
            keeps_group: self.is_adopted || self.permissions.group.is_some(),
        };
        let directory = self.file.path().parent();
        let directory = directory.filter(|_| self.made_directory);
        let directory = directory.map(|directory| made(directory, true));
        directory
            .into_iter()
            .chain([made(self.file.path(), false)])
            .collect()
    }

    /// Permits others to connect: first its group is set, then what the group may do.
    pub(super) fn open_up(&self) -> Result<(), BindError> {
        let Permissions { mode, group } = self.permissions;
        let failed = |what| {
            move |cause: std::io::Error| BindError::failed(self.file.path(), what, errno(&cause))
        };
        if let Some(group) = group {
            self.file
                .set_group(group)
                .map_err(failed("change its group"))?;
        }
        self.file.set_mode(mode).map_err(failed("change its mode"))
    }
}

fn must_fit(path: &Path) -> Result<(), BindError> {
    // It is recorded for a successor, as a text.
    let Some(text) = path.to_str() else {
        return Err(BindError::NotText(path.to_owned()));
    };
    let unfit = |reason| BindError::Unfit {
        path: path.to_owned(),
        reason,
    };
    config::parse_path(text).map(drop).map_err(unfit)
}

/// The directory of the socket where there is none, so that it is made together with the socket.
pub(in crate::daemon) fn missing_directory(path: &Path) -> Option<&Path> {
    let directory = path.parent().filter(|name| !name.as_os_str().is_empty())?;
    (!directory.exists()).then_some(directory)
}

fn cannot_make(directory: &Path, cause: &std::io::Error) -> BindError {
    match errno(cause) {
        Errno::ENOENT => BindError::NoDirectory(directory.to_owned()),
        cause => BindError::failed(directory, "make the directory", cause),
    }
}

/// Makes the directory if it alone is missing; whether it was.
fn make_directory(path: &Path, group: Option<u32>) -> Result<bool, BindError> {
    let Some(directory) = missing_directory(path) else {
        return Ok(false);
    };
    let failed = |cause: &std::io::Error| cannot_make(directory, cause);
    let made = DirBuilder::new().mode(DIRECTORY_MODE).create(directory);
    made.map_err(|cause| failed(&cause))?;
    if group.is_some() {
        // Users that may connect have to get there.
        lchown(directory, None, group).map_err(|cause| failed(&cause))?;
    }
    // The umask may have taken something away.
    let permissions = fs::Permissions::from_mode(DIRECTORY_MODE);
    fs::set_permissions(directory, permissions).map_err(|cause| failed(&cause))?;
    Ok(true)
}

fn errno(cause: &std::io::Error) -> Errno {
    // Without a number, it is another file than the one that was created.
    Errno::from_raw(cause.raw_os_error().unwrap_or(libc::ESTALE))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

    fn bind(path: &Path, mode: u32, group: Option<u32>) -> Result<Socket, BindError> {
        Socket::bind(path, Permissions { mode, group })
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn the_socket_has_its_mode_and_the_directory_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("echod/control.sock");
        let gid = nix::unistd::getegid().as_raw();
        let _socket = bind(&path, 0o660, Some(gid)).unwrap();
        assert_eq!(mode(&path), 0o660);
        assert_eq!(mode(path.parent().unwrap()), 0o750);
    }

    #[test]
    fn a_directory_without_a_parent_is_not_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/control.sock");
        let error = bind(&path, 0o660, None).unwrap_err();
        assert!(matches!(error, BindError::NoDirectory(_)), "{error}");
        assert!(!directory.path().join("a").exists());
    }

    #[test]
    fn the_file_is_removed_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        drop(bind(&path, 0o600, None).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn the_file_of_another_daemon_is_left_alone_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let ours = bind(&path, 0o600, None).unwrap();
        fs::rename(&path, directory.path().join("kept.sock")).unwrap();
        let theirs = bind(&path, 0o600, None).unwrap();
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
        let _socket = bind(&path, 0o600, None).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_running_daemon_keeps_its_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let _running = bind(&path, 0o600, None).unwrap();
        let error = bind(&path, 0o600, None).unwrap_err();
        assert!(matches!(error, BindError::AlreadyRunning(_)), "{error}");
        let datagrams = directory.path().join("log");
        let _other = UnixDatagram::bind(&datagrams).unwrap();
        let error = bind(&datagrams, 0o600, None).unwrap_err();
        assert!(matches!(error, BindError::AlreadyRunning(_)), "{error}");
        assert!(datagrams.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_never_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        fs::write(&path, "data").unwrap();
        let error = bind(&path, 0o600, None).unwrap_err();
        assert!(matches!(error, BindError::NotASocket(_)), "{error}");
        let dangling = directory.path().join("link");
        std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
        let error = bind(&dangling, 0o600, None).unwrap_err();
        assert!(matches!(error, BindError::NotASocket(_)), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"data");
    }

    #[test]
    fn a_path_that_is_too_long_is_said_to_be() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(120)));
        let error = bind(&path, 0o600, None).unwrap_err().to_string();
        assert!(error.contains("at most 107"), "{error}");
    }
}
