//! Where the control socket is.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The path of the daemon's socket: without an option, where the daemon itself would put it.
pub(super) fn socket_path(
    option: Option<PathBuf>,
    variable: impl Fn(&str) -> Option<OsString>,
    root: bool,
    exists: impl Fn(&Path) -> bool,
) -> PathBuf {
    let variable = |name| variable(name).filter(|value| !value.is_empty());
    let system = PathBuf::from("/run/echod/control.sock");
    if let Some(path) = option {
        return path;
    }
    if let Some(path) = variable("ECHOCTL_SOCKET") {
        return path.into();
    }
    if let Some(directories) = variable("RUNTIME_DIRECTORY") {
        // systemd puts a colon between several (systemd.exec(5)).
        let first = std::env::split_paths(&directories)
            .next()
            .unwrap_or_default();
        return first.join("control.sock");
    }
    match variable("XDG_RUNTIME_DIR") {
        Some(directory) if !root => {
            let own = Path::new(&directory).join("echod/control.sock");
            // A user without a daemon of their own means that of the system.
            if exists(&own) || !exists(&system) {
                own
            } else {
                system
            }
        }
        _ => system,
    }
}
