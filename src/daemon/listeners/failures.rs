//! What went wrong with addresses, and what to do.
//!
//! Knows the errors of socket(2), bind(2) and their like. Never binds anything.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use crate::cli::text::cause;
use crate::config::{self, Address, Protocol};
use crate::daemon::privileges::Landlock;
use crate::daemon::socket_file;

/// What to do where there are too few descriptors.
pub(super) const MORE_DESCRIPTORS: &str = "raise LimitNOFILE= in the unit, or \"ulimit -n\"";

/// Why something can't be bound.
#[derive(Debug)]
pub(super) struct BindFailure {
    message: String,
    /// The process has no descriptor left, so that nothing else can be bound either.
    is_exhausted: bool,
}

/// All that is wrong: a list that ends where nothing more can be bound.
#[derive(Debug, Default)]
pub(super) struct Failures {
    messages: Vec<String>,
    is_exhausted: bool,
}

impl BindFailure {
    pub(super) fn new(message: String, cause: &io::Error) -> Self {
        Self {
            message,
            is_exhausted: is_exhausted(cause),
        }
    }

    /// A listener's IP address and port can't be bound.
    pub(super) fn of_inet(
        listener: &config::Listener,
        address: &Address,
        inet: SocketAddr,
        error: &io::Error,
    ) -> Self {
        let (name, reason) = (&listener.name, explain_inet(error, inet, listener.protocol));
        let message = format!("listener \"{name}\": bind {address}: {reason}");
        Self::new(message, error)
    }

    /// A listener's socket is bound and can't listen.
    pub(super) fn of_listening(
        listener: &config::Listener,
        address: &Address,
        error: &io::Error,
    ) -> Self {
        let name = &listener.name;
        let message = format!("listener \"{name}\": listen on {address}: {}", cause(error));
        Self::new(message, error)
    }

    /// A listener's path can't be bound.
    pub(super) fn of_path(
        listener: &config::Listener,
        path: &Path,
        error: &socket_file::Error,
        landlock: Option<&Landlock>,
    ) -> Self {
        let reason = explain_path(error, path, landlock);
        Self {
            message: format!(
                "listener \"{}\": bind {}: {reason}",
                listener.name,
                path.display()
            ),
            is_exhausted: match error {
                socket_file::Error::Failed { cause, .. } => is_exhausted(cause),
                socket_file::Error::InUse | socket_file::Error::NotASocket => false,
            },
        }
    }
}

impl fmt::Display for BindFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.message.fmt(f)
    }
}

impl From<String> for BindFailure {
    fn from(message: String) -> Self {
        Self {
            message,
            is_exhausted: false,
        }
    }
}

impl Failures {
    pub(super) fn add(&mut self, failure: impl Into<BindFailure>) {
        let failure = failure.into();
        self.messages.push(failure.message);
        self.is_exhausted |= failure.is_exhausted;
    }

    /// Whether nothing more can be bound: each further attempt would fail for the same reason.
    pub(super) fn are_final(&self) -> bool {
        self.is_exhausted
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Nothing, or all that is wrong.
    pub(super) fn into_result(self) -> Result<(), Vec<String>> {
        if self.messages.is_empty() {
            Ok(())
        } else {
            Err(self.messages)
        }
    }
}

fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// An error of an IP address and port.
fn explain_inet(error: &io::Error, inet: SocketAddr, protocol: Protocol) -> String {
    let port = inet.port();
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            let flag = if protocol == Protocol::Tcp {
                "-ltnp"
            } else {
                "-lunp"
            };
            format!("address already in use; ask who has it: ss {flag} 'sport = :{port}'")
        }
        Some(libc::EACCES) if port < 1024 => {
            "permission denied; ports below 1024 need CAP_NET_BIND_SERVICE".into()
        }
        Some(libc::EADDRNOTAVAIL) => "this host does not have that address; see: ip address".into(),
        Some(libc::EAFNOSUPPORT) => {
            "not possible on this host, or forbidden to this service (RestrictAddressFamilies=): \
             let a .socket unit pass the socket, see echod(8)"
                .into()
        }
        _ => explain(error),
    }
}

/// An error of a path.
fn explain_path(error: &socket_file::Error, path: &Path, landlock: Option<&Landlock>) -> String {
    let socket_file::Error::Failed { cause, .. } = error else {
        return error.to_string();
    };
    match cause.raw_os_error() {
        Some(libc::EACCES) => match landlock.filter(|landlock| landlock.forbids(path)) {
            Some(landlock) => format!(
                "permission denied: as [daemon] user is set, Landlock lets it make files only in the folders \
                 that had its sockets at the start ({}): use one of them, or restart it",
                landlock.places()
            ),
            None => {
                "permission denied; the daemon's user must be able to write to the folder".into()
            }
        },
        Some(libc::ENOENT) => {
            "the folder does not exist; make it, or use RuntimeDirectory= in the unit".into()
        }
        _ => explain(cause),
    }
}

/// An error that any address may have.
pub(super) fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EMFILE) => {
            format!("no descriptor is left for it and all that follows: {MORE_DESCRIPTORS}")
        }
        Some(libc::ENFILE) => {
            "this machine has no descriptor left, for it and all that follows: raise fs.file-max"
                .into()
        }
        _ => cause(error),
    }
}
