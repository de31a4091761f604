//! About ourselves: processors, and descriptors that we were given.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

/// The processors that this thread may run on.
#[must_use]
pub fn allowed_cpus() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else {
        return Vec::new();
    };
    (0..CpuSet::count())
        .filter(|&cpu| set.is_set(cpu).unwrap_or(false))
        .collect()
}

/// Keeps the calling thread on one processor.
///
/// # Errors
/// As `sched_setaffinity(2)`; a service manager's system call filter may forbid it.
pub fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Raises the soft limit of descriptors to the hard one and returns it.
///
/// # Errors
/// As `setrlimit(2)`.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// A descriptor that the service manager has passed.
#[derive(Debug)]
pub struct Passed {
    /// Its `FileDescriptorName=`: the name of the `.socket` unit where that says none.
    pub name: String,
    /// The descriptor.
    pub fd: OwnedFd,
}

/// Takes what the service manager has passed (`sd_listen_fds_with_names(3)`). Call it once, before
/// anything is opened.
///
/// # Errors
/// When `$LISTEN_PID` or `$LISTEN_FDS` is not a number, or `$LISTEN_FDNAMES` has other than one name
/// for each.
pub fn take_passed_sockets() -> io::Result<Vec<Passed>> {
    // Names that were meant for another process are none of ours, however many there are.
    if sd_notify::listen_fds()?.len() == 0 {
        return Ok(Vec::new());
    }
    let passed = sd_notify::listen_fds_with_names()?;
    Ok(passed
        .map(|(fd, name)| Passed {
            name,
            // SAFETY: the manager has opened it for this process, and nobody else here knows of it.
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
        })
        .collect())
}
