//! This process: the CPUs it may use, its limits, and what it was started with: signal dispositions,
//! children and descriptors.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::Pid;

/// The CPUs that the calling thread may run on, by number; empty if that cannot be determined, as
/// on a machine with more than 1,024 CPUs (`sched_getaffinity(2)`).
#[must_use]
pub(crate) fn allowed_cpus() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else {
        return Vec::new();
    };
    (0..CpuSet::count())
        .filter(|&cpu| set.is_set(cpu).unwrap_or(false))
        .collect()
}

/// Keeps the calling thread on one CPU.
///
/// # Errors
/// As `sched_setaffinity(2)`; a service manager's system call filter may forbid it.
pub(crate) fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Returns memory that was freed to the kernel, which the C library otherwise keeps for later
/// (`malloc_trim(3)`).
pub(crate) fn return_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and touches only memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Raises the soft limit of open descriptors to the hard limit, which is returned.
///
/// # Errors
/// As `getrlimit(2)` and `setrlimit(2)`.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// How many descriptors this process may have; none if that cannot be determined.
#[must_use]
pub(crate) fn descriptor_limit() -> Option<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    Some(soft)
}

/// Descriptors are counted one by one up to this number only.
const DESCRIPTORS_COUNTED_MAX: usize = 4096;

/// How many descriptors this process has open; none where that takes long to find out: many, before
/// Linux 6.2.
#[must_use]
pub(crate) fn open_descriptors() -> Option<u64> {
    let folder = "/proc/self/fd";
    // Since Linux 6.2 this is their number (proc_pid_fd(5)).
    let count = std::fs::metadata(folder).ok()?.len();
    if count > 0 {
        return Some(count);
    }
    let counted = std::fs::read_dir(folder)
        .ok()?
        .take(DESCRIPTORS_COUNTED_MAX);
    // One of them reads the folder.
    let counted = counted.count().checked_sub(1)?;
    (counted + 1 < DESCRIPTORS_COUNTED_MAX).then_some(counted as u64)
}

/// Signals that keep their action: the first two have no other, the others are the standard
/// library's, which ignores SIGPIPE and reports a stack overflow.
const ACTIONS_KEPT: [Signal; 5] = [
    Signal::SIGKILL,
    Signal::SIGSTOP,
    Signal::SIGPIPE,
    Signal::SIGSEGV,
    Signal::SIGBUS,
];

/// Gives each signal its default action. A program inherits from its parent which ones are ignored
/// (`execve(2)`), and with SIGCHLD ignored, for example, no child can be waited for.
///
/// To be called once, before the first handler is installed.
pub(crate) fn restore_default_actions() {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator().filter(|signal| !ACTIONS_KEPT.contains(signal)) {
        // SAFETY: the default action runs no code of this process.
        let restored = unsafe { sigaction(signal, &default) };
        debug_assert!(restored.is_ok(), "{signal} has actions");
    }
}

/// Reaps the children of the calling thread that have ended.
///
/// On the main thread these are the children that this process was started with, and as process 1
/// of a container the orphans of all others (`pid_namespaces(7)`). A child that another thread has
/// started is left to that thread.
pub(crate) fn reap_children_of_this_thread() {
    let flags = libc::WNOHANG | libc::__WNOTHREAD;
    // SAFETY: without a place for the status, waitpid(2) writes to no memory.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), flags) } > 0 {}
}

/// A descriptor that the service manager has passed.
#[derive(Debug)]
pub(crate) struct Passed {
    /// Its `FileDescriptorName=`: the name of the `.socket` unit unless that sets another.
    pub name: String,
    /// The descriptor, with close-on-exec.
    pub fd: OwnedFd,
}

impl Passed {
    /// The same socket by another descriptor.
    ///
    /// # Errors
    /// As `fcntl(2)` (`F_DUPFD_CLOEXEC`).
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            name: self.name.clone(),
            fd: self.fd.try_clone()?,
        })
    }
}

/// Takes the descriptors that the service manager has passed (`sd_listen_fds_with_names(3)`). To be
/// called once, before any other descriptor is opened.
///
/// # Errors
/// If `$LISTEN_PID` or `$LISTEN_FDS` is not a number, a descriptor is not open, or the number of
/// names in `$LISTEN_FDNAMES` is not that of the descriptors.
pub(crate) fn take_passed_sockets() -> io::Result<Vec<Passed>> {
    // `$LISTEN_FDNAMES` of another process (`$LISTEN_PID`) would be rejected for its number of
    // names, so it is not looked at.
    if sd_notify::listen_fds()?.len() == 0 {
        return Ok(Vec::new());
    }
    let passed = sd_notify::listen_fds_with_names()?;
    Ok(passed
        .map(|(fd, name)| Passed {
            name,
            // SAFETY: the manager has opened it for this process, and no other code here owns it.
            fd: unsafe { OwnedFd::from_raw_fd(fd) },
        })
        .collect())
}
