//! The files of Unix sockets: those of listeners, and that of the control socket.
//!
//! A file is created for its owner alone and opened to others once its socket is served. It is never
//! taken from a process that has it, also not from one that is just starting; its group and mode are
//! changed through a descriptor, so never through a symbolic link; it is removed only if it is still
//! the one that was created. Knows nothing of what a socket is for.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag};
use nix::sys::statfs::statfs;
use nix::unistd::{self, AccessFlags, Gid, Uid, access};
use socket2::Type;

use crate::cli::text;
use crate::sys::socket;

use super::aside::Aside;

/// How long to wait for other processes to unlock folders. A daemon that binds a socket there holds
/// the lock for a few system calls.
const LOCK_WAIT: Duration = Duration::from_millis(500);

/// Device and inode: what a file is recognized by, whatever its path.
pub(crate) type Identity = (u64, u64);

/// The file of a bound Unix socket. Dropping it removes the file, unless another one has taken its
/// place.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: Identity,
    /// Dropping it leaves the file alone.
    stays: bool,
    /// The stale socket that was at the path. Until [`SocketFile::keep`] it returns when this is
    /// dropped.
    stale: Option<Aside>,
}

/// Why a socket could not be bound to a path.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Another process, or another socket of this one, is bound to the file.
    #[error("a running process serves it: stop that first")]
    InUse,
    /// The file is of another kind, and is not ours to remove.
    #[error("there is a file that is not a socket")]
    NotASocket,
    /// A system call failed.
    #[error("{}", text::cause(cause))]
    Failed {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        cause: io::Error,
    },
}

/// What is at a path where a socket can be bound, or could without its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occupant {
    Nothing,
    /// A socket that no process has any more.
    Stale,
    Live,
}

/// How long several sockets may wait for the locks of their folders, all together: with permission to
/// read a folder, any process can lock it for any time.
#[derive(Debug, Default)]
pub(crate) struct LockWait(Cell<Waited>);

#[derive(Clone, Copy, Debug, Default)]
enum Waited {
    /// Every folder was free.
    #[default]
    NotYet,
    /// Until then.
    Until(Instant),
    /// For all of the time; the warning is logged.
    Enough,
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |cause| Error::Failed { what, cause }
}

/// Binds a socket to a path; one for streams listens at once, with this backlog if there is one. Only
/// its owner can connect until [`SocketFile::set_mode`] permits others. Dropped before
/// [`SocketFile::keep`], the file leaves the path as it was.
///
/// # Errors
/// [`Error`]. The path is then as it was.
pub(crate) fn bind(
    kind: Type,
    path: &Path,
    backlog: Option<u32>,
    wait: &LockWait,
) -> Result<(OwnedFd, SocketFile), Error> {
    // Held until the socket listens: before that, connecting to it fails in the same way as
    // connecting to one that a killed process has left.
    let lock = wait.lock_folder(path);
    let stale = match occupant(kind, path)? {
        Occupant::Nothing => None,
        // Without the lock it may be one that another daemon has bound in this moment.
        Occupant::Stale if lock.is_none() && has_socket(path) => return Err(Error::InUse),
        Occupant::Stale => Some(Aside::rename(path).map_err(failed("remove the stale socket"))?),
        Occupant::Live => return Err(Error::InUse),
    };
    let (fd, identity) = match bind_free(kind, path) {
        Ok(bound) => bound,
        Err(error) => {
            stale.into_iter().for_each(Aside::put_back);
            return Err(error);
        }
    };
    let file = SocketFile {
        path: path.into(),
        identity,
        stays: false,
        stale,
    };
    if let Some(backlog) = backlog.filter(|_| kind == Type::STREAM) {
        socket::listen(fd.as_fd(), backlog).map_err(failed("listen"))?;
    }
    Ok((fd, file))
}

/// Binds a socket to a path where nothing is.
fn bind_free(kind: Type, path: &Path) -> Result<(OwnedFd, Identity), Error> {
    let fd = socket::bind_unix(kind, path).map_err(|cause| match cause.kind() {
        // Created in this moment by a process that does not lock.
        io::ErrorKind::AddrInUse => Error::InUse,
        _ => failed("bind")(cause),
    })?;
    let metadata = fs::symlink_metadata(path).map_err(failed("look at it"))?;
    Ok((fd, identity_of(&metadata)))
}

/// Finds out why [`bind`] would fail on this path whatever processes do, for root, and where the folder
/// `made` is made before if it is missing: without touching anything, so that a socket that is there is
/// no reason, whether it is in use or not.
///
/// # Errors
/// [`Error`], as [`bind`].
pub(crate) fn check(path: &Path, made: Option<&Path>) -> Result<(), Error> {
    if let Some((made, name)) = made.map(real_folder).zip(path.file_name()) {
        let (folder, is_complete) = follow(folder(path), |part| part == made || part.exists());
        // What is made is empty.
        return match is_complete {
            true if folder == made => Ok(()),
            true => check(&folder.join(name), None),
            false => check(path, None),
        };
    }
    match existing(path) {
        Ok(true) => Ok(()),
        Ok(false) => check_folder(path).map_err(failed("bind")),
        Err(Error::Failed { cause, .. })
            if cause.kind() == io::ErrorKind::PermissionDenied && is_known_at_start() =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Whether EACCES says nothing about the process that is to bind a socket, which may be root. What is
/// refused to root, as below `/proc/PID/root`, is refused to any.
fn is_known_at_start() -> bool {
    !unistd::geteuid().is_root()
}

/// Finds out whether a process has the socket at this path, by connecting to it.
///
/// # Errors
/// [`Error::InUse`] if one has.
pub(crate) fn check_unused(kind: Type, path: &Path) -> Result<(), Error> {
    match occupant(kind, path)? {
        Occupant::Live => Err(Error::InUse),
        Occupant::Nothing | Occupant::Stale => Ok(()),
    }
}

/// Finds out why root could create nothing at this path, where nothing is.
///
/// # Errors
/// As creating it.
pub(crate) fn check_folder(path: &Path) -> io::Result<()> {
    // With the dot it is an error if it is not a folder.
    let folder = folder(path).join(".");
    // The kernel's own file systems, where even root makes no file, and others have not the right.
    match statfs(&folder).map(|file_system| file_system.filesystem_type().0) {
        Ok(libc::PROC_SUPER_MAGIC) => return Err(Errno::ENOENT.into()),
        Ok(
            libc::SYSFS_MAGIC
            | libc::DEVPTS_SUPER_MAGIC
            | libc::CGROUP_SUPER_MAGIC
            | libc::CGROUP2_SUPER_MAGIC,
        ) => {
            return Err(access(&folder, AccessFlags::W_OK)
                .err()
                .unwrap_or(Errno::EPERM)
                .into());
        }
        _ => {}
    }
    match access(&folder, AccessFlags::W_OK) {
        Ok(()) => Ok(()),
        Err(Errno::EACCES) if is_known_at_start() => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Where a path leads, so that two paths of one file are the same, also in a folder that is missing. A
/// file that is a symbolic link is not followed, since no socket is bound there.
pub(crate) fn real(path: &Path) -> PathBuf {
    let name = path.file_name();
    name.map_or_else(|| path.into(), |name| real_folder(folder(path)).join(name))
}

/// The same of a folder.
fn real_folder(folder: &Path) -> PathBuf {
    follow(folder, |_| true).0
}

/// Where the path of a folder leads, part by part, and whether each part `is_there`.
fn follow(folder: &Path, is_there: impl Fn(&Path) -> bool) -> (PathBuf, bool) {
    // As many as the kernel follows (path_resolution(7)).
    const LINKS_MAX: usize = 40;
    let mut left = std::path::absolute(folder).unwrap_or_else(|_| folder.into());
    let (mut real, mut is_complete, mut links) = (PathBuf::new(), true, 0);
    loop {
        let mut parts = left.components();
        let Some(part) = parts.next() else {
            return (real, is_complete);
        };
        let rest = parts.as_path().to_owned();
        if part == Component::ParentDir {
            real.pop();
        } else {
            let next = real.join(part);
            match fs::read_link(&next) {
                Ok(target) if links < LINKS_MAX => {
                    links += 1;
                    left = target.join(rest);
                    continue;
                }
                _ => real = next,
            }
            is_complete &= is_there(&real);
        }
        left = rest;
    }
}

/// Device and inode of what is at this path, which is not followed if it is a symbolic link.
pub(crate) fn identity(path: &Path) -> Option<Identity> {
    fs::symlink_metadata(path).ok().as_ref().map(identity_of)
}

fn identity_of(metadata: &fs::Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

/// Whether there is a socket at this path, or nothing.
fn existing(path: &Path) -> Result<bool, Error> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => Ok(true),
        Ok(_) => Err(Error::NotASocket),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("look at it")(error)),
    }
}

fn occupant(kind: Type, path: &Path) -> Result<Occupant, Error> {
    if !existing(path)? {
        return Ok(Occupant::Nothing);
    }
    match socket::unix_is_alive(kind, path) {
        Ok(true) => Ok(Occupant::Live),
        Ok(false) => Ok(Occupant::Stale),
        // Its owner has just removed it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Occupant::Nothing),
        Err(error) => Err(failed("connect")(error)),
    }
}

/// Whether a socket of any process is bound to the file, also one that does not listen yet, as far
/// as the kernel lists it: it does not list those of other network namespaces.
fn has_socket(path: &Path) -> bool {
    let Some(file) = identity(path) else {
        return false;
    };
    let listed = socket::bound_paths().unwrap_or_default();
    // By whatever path it was bound, which may lead through a symbolic link to the folder.
    let mut namesakes = listed
        .iter()
        .filter(|bound| bound.file_name() == path.file_name());
    namesakes.any(|bound| identity(bound) == Some(file))
}

impl LockWait {
    /// Locks the folder of a path, as every echod does while it binds there (`flock(2)`). None where
    /// that is not possible: the folder may not be read, its file system has no locks, or another
    /// process keeps it locked. That must not end a start, and so the lock is no condition.
    fn lock_folder(&self, path: &Path) -> Option<Flock<File>> {
        let folder = folder(path);
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut opened = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits())
            .open(folder)
            // What is wrong with the folder, binding reports.
            .ok()?;
        loop {
            match Flock::lock(opened, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Some(lock),
                Err((unlocked, Errno::EWOULDBLOCK)) if self.may_wait(folder) => opened = unlocked,
                Err(_) => return None,
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether to try again to lock this folder. When the time is over, that is reported once.
    fn may_wait(&self, folder: &Path) -> bool {
        let now = Instant::now();
        let waited = match self.0.get() {
            Waited::NotYet => Waited::Until(now + LOCK_WAIT),
            Waited::Until(until) if now >= until => {
                log::warn!(
                    "{}: another process keeps the folder locked: sockets are bound there without \
                     the lock; see which: lslocks",
                    folder.display()
                );
                Waited::Enough
            }
            waited => waited,
        };
        self.0.set(waited);
        matches!(waited, Waited::Until(_))
    }
}

/// Opens a file of any kind by name only, and not through a symbolic link, so that what is found out
/// about it and what is changed is about the same file.
///
/// # Errors
/// As `open(2)`.
pub(crate) fn open_by_name(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits())
        .open(path)
}

/// Changes the owner and the group of such a file; none stays.
///
/// # Errors
/// As `chown(2)`.
pub(crate) fn change_owner(file: &File, user: Option<Uid>, group: Option<Gid>) -> io::Result<()> {
    let at = AtFlags::AT_EMPTY_PATH;
    Ok(unistd::fchownat(file, "", user, group, at)?)
}

/// The folder that a file is in.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

impl SocketFile {
    /// The file that a predecessor had bound a socket to.
    pub(crate) fn adopt(path: PathBuf, identity: Identity) -> Self {
        Self {
            path,
            identity,
            stays: false,
            stale: None,
        }
    }

    /// The socket's file that is at this path now. It stays when this is dropped, until
    /// [`Self::keep`].
    pub(crate) fn at(path: &Path) -> Option<Self> {
        let metadata = fs::symlink_metadata(path).ok()?;
        metadata.file_type().is_socket().then(|| Self {
            path: path.into(),
            identity: identity_of(&metadata),
            stays: true,
            stale: None,
        })
    }

    /// From now on the file is one of ours, for good: a stale socket that was at its path is removed.
    pub(crate) fn keep(&mut self) {
        self.stays = false;
        self.stale = None;
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode.
    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether the path still leads to it.
    pub(crate) fn is_in_place(&self) -> bool {
        identity(&self.path) == Some(self.identity)
    }

    /// The same file by another path, as through a symbolic link to its folder.
    pub(crate) fn set_path(&mut self, path: PathBuf) {
        self.path = path;
    }

    /// Changes its mode: write permission permits to connect (unix(7)).
    ///
    /// # Errors
    /// If another file is at its path by now; others as `chmod(2)`.
    pub(crate) fn set_mode(&self, mode: u32) -> io::Result<()> {
        let file = self.open()?;
        // A descriptor that only names a file can't be given to fchmod(2) (open(2), O_PATH).
        let name = format!("/proc/self/fd/{}", file.as_raw_fd());
        fs::set_permissions(name, Permissions::from_mode(mode))
    }

    /// Changes its group. One that it has anyway is not set again: a service manager's system call
    /// filter may forbid that, and the service has this group for that very reason.
    ///
    /// # Errors
    /// If another file is at its path by now; others as `chown(2)`.
    pub(crate) fn set_group(&self, group: u32) -> io::Result<()> {
        let file = self.open()?;
        if file.metadata()?.gid() == group {
            return Ok(());
        }
        change_owner(&file, None, Some(group.into()))
    }

    /// Opens the file by name only, and checks that it is this one.
    fn open(&self) -> io::Result<File> {
        let file = open_by_name(&self.path)?;
        if identity_of(&file.metadata()?) == self.identity {
            Ok(file)
        } else {
            Err(io::Error::other("another file has taken its place"))
        }
    }

    /// Makes room for another socket at the path.
    ///
    /// # Errors
    /// As `rename(2)`.
    pub(crate) fn set_aside(&self) -> io::Result<Aside> {
        Aside::rename(&self.path)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.stays || !self.is_in_place() {
            return;
        }
        match self.stale.take() {
            Some(stale) => stale.put_back(),
            // If that fails, the next start takes it for stale.
            None => _ = fs::remove_file(&self.path),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;

    fn in_folder(check: impl FnOnce(&Path)) {
        let folder = tempfile::tempdir().unwrap();
        check(&folder.path().join("s"));
    }

    fn bind(kind: Type, path: &Path, backlog: u32) -> Result<(OwnedFd, SocketFile), Error> {
        super::bind(kind, path, Some(backlog), &LockWait::default())
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_socket_listens_at_once_and_only_its_owner_can_connect_at_first() {
        in_folder(|path| {
            let (_fd, file) = bind(Type::STREAM, path, 1).unwrap();
            assert_eq!(mode(path), 0o600);
            UnixStream::connect(path).unwrap();
            file.set_mode(0o666).unwrap();
            assert_eq!(mode(path), 0o666);
        });
    }

    #[test]
    fn what_is_at_the_path_decides_whether_it_is_bound() {
        let check = |put: &dyn Fn(&Path), expected: Result<(), &str>| {
            in_folder(|path| {
                put(path);
                let before = identity(path);
                let bound = bind(Type::STREAM, path, 1);
                let found = bound.as_ref().map(|_| ()).map_err(ToString::to_string);
                assert_eq!(found.as_ref().map(|_| ()).map_err(String::as_str), expected);
                if expected.is_err() {
                    assert_eq!(identity(path), before, "it is left alone");
                }
            });
        };
        let leak = |socket: OwnedFd| std::mem::forget(socket);
        let in_use = Err("a running process serves it: stop that first");
        let no_socket = Err("there is a file that is not a socket");
        check(&|_| {}, Ok(()));
        check(&|path| drop(UnixListener::bind(path).unwrap()), Ok(()));
        check(&|path| drop(UnixDatagram::bind(path).unwrap()), Ok(()));
        check(
            &|path| leak(UnixListener::bind(path).unwrap().into()),
            in_use,
        );
        check(
            &|path| leak(UnixDatagram::bind(path).unwrap().into()),
            in_use,
        );
        check(&|path| fs::write(path, "data").unwrap(), no_socket);
        check(&|path| fs::create_dir(path).unwrap(), no_socket);
        check(&|path| symlink("nowhere", path).unwrap(), no_socket);
        check(
            &|path| {
                let other = path.with_file_name("other");
                leak(UnixListener::bind(&other).unwrap().into());
                symlink("other", path).unwrap();
            },
            no_socket,
        );
    }

    #[test]
    fn a_file_that_has_taken_its_place_is_neither_changed_nor_removed() {
        in_folder(|path| {
            let (_fd, file) = bind(Type::STREAM, path, 1).unwrap();
            let target = path.with_file_name("target");
            fs::write(&target, "data").unwrap();
            fs::set_permissions(&target, Permissions::from_mode(0o600)).unwrap();
            fs::remove_file(path).unwrap();
            symlink(&target, path).unwrap();
            assert!(!file.is_in_place());
            assert!(file.set_mode(0o666).is_err());
            let group = unistd::getegid().as_raw();
            assert!(file.set_group(group).is_err());
            drop(file);
            assert_eq!(mode(&target), 0o600);
            assert_eq!(fs::read_link(path).unwrap(), target);
        });
    }

    #[test]
    fn a_file_that_was_set_aside_is_put_back_or_removed() {
        in_folder(|path| {
            let (_fd, file) = bind(Type::STREAM, path, 1).unwrap();
            let taken = path.with_file_name(format!(".echod-{}-0", std::process::id()));
            fs::write(&taken, "of another listener").unwrap();
            let aside = file.set_aside().unwrap();
            assert_eq!(identity(path), None);
            let (_new, other) = bind(Type::DGRAM, path, 0).unwrap();
            aside.put_back();
            drop(other);
            assert!(file.is_in_place());
            UnixStream::connect(path).unwrap();
            let aside = file.set_aside().unwrap();
            let (_new, _other) = bind(Type::DGRAM, path, 0).unwrap();
            drop(aside);
            drop(file);
            let names = fs::read_dir(path.parent().unwrap()).unwrap();
            let mut names: Vec<_> = names.map(|entry| entry.unwrap().path()).collect();
            names.sort();
            assert_eq!(names, [taken, path.to_owned()]);
        });
    }

    #[test]
    fn a_folder_that_is_locked_by_another_process_ends_neither_the_first_bind_nor_the_next() {
        in_folder(|path| {
            let folder = File::open(path.parent().unwrap()).unwrap();
            let locked = Flock::lock(folder, FlockArg::LockExclusiveNonblock);
            let locked = locked.map_err(|(_, errno)| errno).unwrap();
            drop(UnixListener::bind(path).unwrap());
            let wait = LockWait::default();
            let first = super::bind(Type::STREAM, path, Some(1), &wait).unwrap();
            assert!(matches!(wait.0.get(), Waited::Enough));
            let more = path.with_file_name("more");
            super::bind(Type::STREAM, &more, Some(1), &wait).unwrap();
            drop((first, locked));
            assert!(wait.lock_folder(path).is_some());
        });
    }

    #[test]
    fn the_waits_of_all_paths_end_at_one_time() {
        let wait = LockWait::default();
        let folder = Path::new("/");
        assert!(wait.may_wait(folder));
        let Waited::Until(first) = wait.0.get() else {
            panic!("it has a deadline");
        };
        assert!(first <= Instant::now() + LOCK_WAIT);
        wait.0.set(Waited::Until(Instant::now()));
        assert!(!wait.may_wait(folder) && !wait.may_wait(folder));
    }

    #[test]
    fn a_socket_that_does_not_listen_yet_keeps_its_path_also_where_the_folder_is_locked() {
        in_folder(|path| {
            let link = path.with_file_name("link");
            symlink(".", &link).unwrap();
            let starting = socket::bind_unix(Type::STREAM, &link.join("s")).unwrap();
            let before = identity(path);
            let wait = LockWait(Cell::new(Waited::Enough));
            let folder = File::open(path.parent().unwrap()).unwrap();
            let locked = Flock::lock(folder, FlockArg::LockExclusiveNonblock);
            let locked = locked.map_err(|(_, errno)| errno).unwrap();
            let refused = super::bind(Type::STREAM, path, Some(1), &wait);
            assert!(matches!(refused, Err(Error::InUse)));
            assert_eq!(identity(path), before);
            drop(starting);
            super::bind(Type::STREAM, path, Some(1), &wait).unwrap();
            drop(locked);
        });
    }

    /// It was removed at once, also by a reload that was then rejected, and by a dry run.
    #[test]
    fn a_stale_socket_returns_to_its_path_unless_the_new_one_is_kept() {
        in_folder(|path| {
            drop(UnixListener::bind(path).unwrap());
            let before = identity(path);
            let (_fd, file) = bind(Type::STREAM, path, 1).unwrap();
            UnixStream::connect(path).unwrap();
            drop(file);
            assert_eq!(identity(path), before);
            let (_fd, mut file) = bind(Type::STREAM, path, 1).unwrap();
            file.keep();
            drop(file);
            let left = fs::read_dir(path.parent().unwrap()).unwrap();
            assert_eq!(left.count(), 0);
        });
    }

    #[test]
    fn a_stale_socket_does_not_return_in_place_of_another_file() {
        in_folder(|path| {
            drop(UnixListener::bind(path).unwrap());
            let (_fd, file) = bind(Type::STREAM, path, 1).unwrap();
            fs::remove_file(path).unwrap();
            fs::write(path, "of another process").unwrap();
            drop(file);
            assert_eq!(fs::read(path).unwrap(), b"of another process");
            let left = fs::read_dir(path.parent().unwrap()).unwrap();
            assert_eq!(left.count(), 1);
        });
    }

    #[test]
    fn a_file_that_was_found_stays_until_it_is_one_of_ours() {
        in_folder(|path| {
            drop(UnixListener::bind(path).unwrap());
            drop(SocketFile::at(path).unwrap());
            assert!(path.exists());
            let mut file = SocketFile::at(path).unwrap();
            file.keep();
            drop(file);
            assert!(!path.exists());
        });
    }
}
