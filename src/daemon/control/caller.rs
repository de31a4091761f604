//! The caller at the other end of a control connection: its process, user and groups, and its name in
//! the log.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;

use crate::sys::socket;

/// The kernel gives a program's name up to 15 bytes (proc(5), `/proc/PID/comm`).
const PROGRAM_BYTES_MAX: u64 = 64;

/// The process at the other end (`SO_PEERCRED`), as it was when the connection was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The process; 0 if it is in another PID namespace.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its groups.
    pub gids: Arc<[u32]>,
}

impl Caller {
    /// The process that has made this connection.
    pub(super) fn of(stream: &UnixStream) -> io::Result<Self> {
        let credentials = getsockopt(stream, sockopt::PeerCredentials)?;
        // A kernel that does not know them knows one group.
        let others = socket::peer_groups(stream.as_fd()).unwrap_or_default();
        Ok(Self {
            pid: credentials.pid(),
            uid: credentials.uid(),
            gids: std::iter::once(credentials.gid()).chain(others).collect(),
        })
    }

    /// Whether it could stop the daemon without asking: root and the daemon's own user.
    #[must_use]
    pub(crate) fn is_own(&self) -> bool {
        self.uid == 0 || self.uid == geteuid().as_raw()
    }

    /// The subject of a line of the log: `uid 0 (pid 4711, program "echoctl")`.
    #[must_use]
    pub(crate) fn describe(&self) -> String {
        let Self { uid, pid, .. } = self;
        match program(*pid) {
            // Any process can choose its name, so it is quoted.
            Some(program) => format!("uid {uid} (pid {pid}, program {program:?})"),
            None => format!("uid {uid} (pid {pid})"),
        }
    }
}

/// The name of a process's program; none if the process has ended, or `/proc` hides it.
fn program(pid: i32) -> Option<String> {
    let mut name = Vec::new();
    let file = File::open(format!("/proc/{pid}/comm")).ok()?;
    file.take(PROGRAM_BYTES_MAX).read_to_end(&mut name).ok()?;
    Some(
        String::from_utf8_lossy(&name)
            .trim_end_matches('\n')
            .to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_named_with_its_program_where_that_is_known() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let caller = Caller::of(&ours).unwrap();
        let uid = nix::unistd::getuid();
        let pid = std::process::id();
        let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
        let expected = format!("uid {uid} (pid {pid}, program {:?})", comm.trim_end());
        assert_eq!(caller.describe(), expected);
        let foreign = Caller {
            pid: 0,
            uid: 5,
            gids: [5].into(),
        };
        assert_eq!(foreign.describe(), "uid 5 (pid 0)");
    }
}
