//! Which driver there will be, and why io_uring is unavailable: the cause, and what an operator can
//! change about it.
//!
//! [`explain`] knows errors and facts and makes no system call; [`Facts::gather`] asks the system.

use std::fmt;
use std::io;

use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::sys::utsname::uname;

use crate::cli::exit::Exit;
use crate::cli::text::cause;
use crate::config::DriverChoice;
use crate::driver::uring::Uring;
use crate::protocol::schema::Diagnostic;

/// The first kernel with all that the driver needs: `IORING_SETUP_DEFER_TASKRUN`
/// (`io_uring_setup(2)`).
const RELEASE_NEEDED: (u32, u32) = (6, 1);

/// The first kernel with `io_uring(7)`.
const RELEASE_FIRST: (u32, u32) = (5, 1);

const FILTER: &str = "a filter of system calls refuses io_uring_setup(2), io_uring_enter(2) or io_uring_register(2): \
                      permit all three in SystemCallFilter= of the unit, or in the container runtime's \
                      seccomp profile";
const SYSCTL: &str = "\"sysctl kernel.io_uring_disabled=0\" permits it";

/// The driver that workers would get here, and what its user should know about that.
///
/// # Errors
/// Why there would be none.
pub(super) fn foresee(choice: DriverChoice) -> Result<(Kind, Option<String>), Diagnostic> {
    if choice == DriverChoice::Epoll {
        return Ok((Kind::Epoll, None));
    }
    match (choice, Uring::new()) {
        (_, Ok(_)) => Ok((Kind::IoUring, None)),
        (DriverChoice::Auto, Err(error)) => Ok((Kind::Epoll, Some(replaced(&error)))),
        (_, Err(error)) => Err(refusal(&error)),
    }
}

fn refusal(error: &io::Error) -> Diagnostic {
    let reason = explain(error, &Facts::gather());
    let message = format!("[daemon] driver \"io_uring\": {reason}; driver = \"auto\" does without");
    Diagnostic::about("daemon.driver", message)
}

/// io_uring was asked for and is unavailable. A start that is tried again finds it as it is now,
/// except where something was used up.
pub(super) fn refused(error: &io::Error) -> (Exit, Diagnostic) {
    let exit = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE) => Exit::Failed,
        _ => Exit::Configuration,
    };
    (exit, refusal(error))
}

/// io_uring would have been better and is unavailable.
pub(super) fn replaced(error: &io::Error) -> String {
    let reason = explain(error, &Facts::gather());
    format!("driver epoll instead of io_uring: {reason}")
}

/// A way to the kernel that all workers take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    IoUring,
    Epoll,
}

impl Kind {
    /// Its name in the configuration and in `GetStatus`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What may explain a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Facts {
    /// The running kernel's, e.g. `6.1.0-18-amd64`.
    release: String,
    /// The sysctl `kernel.io_uring_disabled`; none where it is hidden or the kernel has none.
    disabled: Option<u32>,
    /// The sysctl `kernel.io_uring_group`, likewise; -1 is no group.
    group: Option<i64>,
    /// The limit of locked memory in bytes; none where there is no limit.
    locked_memory: Option<u64>,
}

impl Facts {
    /// Asks the system.
    fn gather() -> Self {
        let release = uname().map_or_else(
            |_| "of an unknown release".into(),
            |names| names.release().to_string_lossy().into_owned(),
        );
        let (locked_memory, _) =
            getrlimit(Resource::RLIMIT_MEMLOCK).unwrap_or((RLIM_INFINITY, RLIM_INFINITY));
        Self {
            release,
            disabled: sysctl("io_uring_disabled"),
            group: sysctl("io_uring_group"),
            locked_memory: (locked_memory != RLIM_INFINITY).then_some(locked_memory),
        }
    }

    /// Whether the kernel is older than this; not if its release is not two numbers.
    fn is_before(&self, version: (u32, u32)) -> bool {
        let mut numbers = self.release.split(|digit: char| !digit.is_ascii_digit());
        let mut number = || numbers.next()?.parse::<u32>().ok();
        number()
            .zip(number())
            .is_some_and(|release| release < version)
    }
}

fn sysctl<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?;
    text.trim().parse().ok()
}

/// What the error of making a driver over io_uring means here: the likely cause, and the cure. Making
/// one includes a round trip through the ring, so that the error may be of any of the three system
/// calls.
fn explain(error: &io::Error, facts: &Facts) -> String {
    let release = &facts.release;
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOSYS) if facts.is_before(RELEASE_FIRST) => {
            format!("Linux {release} has no io_uring: Linux 6.1 or later is needed")
        }
        Some(Errno::ENOSYS) => {
            format!("Linux {release} was built without io_uring, or {FILTER}")
        }
        Some(Errno::EPERM) => explain_refusal(facts),
        // It takes no flag that it does not know.
        Some(Errno::EINVAL) if facts.is_before(RELEASE_NEEDED) => {
            format!(
                "Linux {release} is too old for this driver: Linux 6.1 or later is needed \
                 (IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_DEFER_TASKRUN)"
            )
        }
        Some(Errno::EINVAL) => {
            format!("Linux {release} does not take the settings of this driver ({})", cause(error))
        }
        Some(Errno::ENOMEM) => match facts.locked_memory {
            Some(bytes) => format!(
                "no memory for the rings and buffers: the limit of locked memory (RLIMIT_MEMLOCK) is {} KiB: raise \
                 it with LimitMEMLOCK= in the unit, or \"ulimit -l\"; or the system or the unit (MemoryMax=, \
                 LimitAS=) has none left",
                bytes / 1024
            ),
            None => "no memory for the rings and buffers: the system or the unit (MemoryMax=, LimitAS=) has none left"
                .to_owned(),
        },
        Some(Errno::EMFILE) => {
            "no descriptor is left for a ring: raise LimitNOFILE= in the unit, or \"ulimit -n\""
                .into()
        }
        Some(Errno::ENFILE) => {
            "no descriptor is left in the whole system: raise the sysctl fs.file-max".into()
        }
        _ => format!("io_uring: {}", cause(error)),
    }
}

/// What EPERM means: a filter of system calls, or the sysctl that limits io_uring.
fn explain_refusal(facts: &Facts) -> String {
    match (facts.disabled, facts.group) {
        (Some(0), _) => FILTER.into(),
        (Some(1), group) => {
            let group = group.unwrap_or(-1);
            let cure = match group {
                0.. => "run echod in that group, or ",
                _ => "",
            };
            format!(
                "kernel.io_uring_disabled = 1 leaves io_uring to CAP_SYS_ADMIN and to members of \
                 kernel.io_uring_group = {group}: {cure}{SYSCTL}"
            )
        }
        (Some(value), _) => {
            format!("kernel.io_uring_disabled = {value} forbids io_uring to all: {SYSCTL}")
        }
        (None, _) => format!(
            "either {FILTER}; or the sysctl kernel.io_uring_disabled, which can't be read here, forbids it: {SYSCTL}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const KERNEL: &str = "6.1.0-18-amd64";

    fn facts(release: &str, disabled: Option<u32>) -> Facts {
        Facts {
            release: release.into(),
            disabled,
            group: Some(-1),
            locked_memory: Some(8 << 20),
        }
    }

    fn check(errno: Errno, facts: &Facts, expect: &Expect) {
        let error = io::Error::from(errno);
        expect.assert_eq(&(explain(&error, facts) + "\n"));
    }

    #[test]
    fn a_missing_call_is_explained_by_the_kernels_age_or_a_filter() {
        check(
            Errno::ENOSYS,
            &facts("4.19.0", None),
            &expect![[r#"
            Linux 4.19.0 has no io_uring: Linux 6.1 or later is needed
        "#]],
        );
        check(
            Errno::ENOSYS,
            &facts(KERNEL, Some(0)),
            &expect![[r#"
            Linux 6.1.0-18-amd64 was built without io_uring, or a filter of system calls refuses io_uring_setup(2), io_uring_enter(2) or io_uring_register(2): permit all three in SystemCallFilter= of the unit, or in the container runtime's seccomp profile
        "#]],
        );
    }

    #[test]
    fn a_refused_call_is_explained_by_the_sysctl_or_a_filter() {
        check(
            Errno::EPERM,
            &facts(KERNEL, Some(0)),
            &expect![[r#"
            a filter of system calls refuses io_uring_setup(2), io_uring_enter(2) or io_uring_register(2): permit all three in SystemCallFilter= of the unit, or in the container runtime's seccomp profile
        "#]],
        );
        check(
            Errno::EPERM,
            &facts(KERNEL, Some(1)),
            &expect![[r#"
            kernel.io_uring_disabled = 1 leaves io_uring to CAP_SYS_ADMIN and to members of kernel.io_uring_group = -1: "sysctl kernel.io_uring_disabled=0" permits it
        "#]],
        );
        let group = Facts {
            group: Some(990),
            ..facts(KERNEL, Some(1))
        };
        check(
            Errno::EPERM,
            &group,
            &expect![[r#"
            kernel.io_uring_disabled = 1 leaves io_uring to CAP_SYS_ADMIN and to members of kernel.io_uring_group = 990: run echod in that group, or "sysctl kernel.io_uring_disabled=0" permits it
        "#]],
        );
        check(
            Errno::EPERM,
            &facts(KERNEL, Some(2)),
            &expect![[r#"
            kernel.io_uring_disabled = 2 forbids io_uring to all: "sysctl kernel.io_uring_disabled=0" permits it
        "#]],
        );
        check(
            Errno::EPERM,
            &facts(KERNEL, None),
            &expect![[r#"
            either a filter of system calls refuses io_uring_setup(2), io_uring_enter(2) or io_uring_register(2): permit all three in SystemCallFilter= of the unit, or in the container runtime's seccomp profile; or the sysctl kernel.io_uring_disabled, which can't be read here, forbids it: "sysctl kernel.io_uring_disabled=0" permits it
        "#]],
        );
    }

    #[test]
    fn settings_that_are_not_known_are_the_kernels_age() {
        check(
            Errno::EINVAL,
            &facts("5.15.0-91-generic", None),
            &expect![[r#"
            Linux 5.15.0-91-generic is too old for this driver: Linux 6.1 or later is needed (IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_DEFER_TASKRUN)
        "#]],
        );
        check(
            Errno::EINVAL,
            &facts("6.0", None),
            &expect![[r#"
            Linux 6.0 is too old for this driver: Linux 6.1 or later is needed (IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_DEFER_TASKRUN)
        "#]],
        );
        check(
            Errno::EINVAL,
            &facts("6.18.44", None),
            &expect![[r#"
            Linux 6.18.44 does not take the settings of this driver (invalid argument)
        "#]],
        );
        check(
            Errno::EINVAL,
            &facts("of an unknown release", None),
            &expect![[r#"
                Linux of an unknown release does not take the settings of this driver (invalid argument)
            "#]],
        );
    }

    #[test]
    fn what_is_used_up_is_named_with_its_limit() {
        check(
            Errno::ENOMEM,
            &facts(KERNEL, None),
            &expect![[r#"
            no memory for the rings and buffers: the limit of locked memory (RLIMIT_MEMLOCK) is 8192 KiB: raise it with LimitMEMLOCK= in the unit, or "ulimit -l"; or the system or the unit (MemoryMax=, LimitAS=) has none left
        "#]],
        );
        let unlimited = Facts {
            locked_memory: None,
            ..facts(KERNEL, None)
        };
        check(
            Errno::ENOMEM,
            &unlimited,
            &expect![[r#"
            no memory for the rings and buffers: the system or the unit (MemoryMax=, LimitAS=) has none left
        "#]],
        );
        check(
            Errno::EMFILE,
            &unlimited,
            &expect![[r#"
            no descriptor is left for a ring: raise LimitNOFILE= in the unit, or "ulimit -n"
        "#]],
        );
        check(
            Errno::ENFILE,
            &unlimited,
            &expect![[r#"
            no descriptor is left in the whole system: raise the sysctl fs.file-max
        "#]],
        );
    }

    #[test]
    fn any_other_error_speaks_for_itself() {
        check(
            Errno::EFAULT,
            &facts(KERNEL, None),
            &expect![[r#"
            io_uring: bad address
        "#]],
        );
    }
}
