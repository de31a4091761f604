//! Where the control socket is, and why there.

use std::ffi::OsString;
use std::fmt::{self, Display};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{self, DEFAULT_FILE, Source};

use super::client::{self, Client};
use super::refusal::Complaint;

/// The default configuration of echod is never larger; what is not it may be.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A path, and what says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) path: PathBuf,
    pub(super) reason: Reason,
    /// Where a daemon may be that does not answer here: one that runs has its socket where the
    /// configuration said when it started.
    pub(super) otherwise: Option<Box<Self>>,
}

impl Location {
    /// Connects to the daemon that answers there, or else at the default.
    ///
    /// # Errors
    /// Each path that was tried, why that one, and why not.
    pub(super) fn connect(&self, timeout: Duration) -> Result<Client, Complaint> {
        let error = match Client::connect(&self.path, timeout) {
            Ok(client) => return Ok(client),
            Err(error) => error,
        };
        let is_absent = matches!(error, client::Error::NotRunning { .. });
        let mut complaint = Complaint::from(error);
        for message in &mut complaint.failure.messages {
            *message += &format!("; the path is {}", self.reason);
        }
        match &self.otherwise {
            Some(default) if is_absent => default.connect(timeout).map_err(|mut other| {
                other
                    .failure
                    .messages
                    .splice(0..0, complaint.failure.messages);
                other
            }),
            _ => Err(complaint),
        }
    }
}

/// What says where the socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// `--socket`.
    Option,
    /// `$ECHOCTL_SOCKET`.
    Variable,
    /// `[control] socket` of the default configuration.
    Configuration,
    /// `$RUNTIME_DIRECTORY`.
    RuntimeDirectory,
    /// The default of root, and of users that have no daemon of their own.
    System,
    /// The default of other users.
    User,
}

/// The rest of a sentence that begins with "the path is".
impl Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Option => "that of --socket",
            Self::Variable => "that of $ECHOCTL_SOCKET",
            Self::Configuration => {
                "that of [control] socket in the default configuration, /etc/echod/echod.toml and echod.d"
            }
            Self::RuntimeDirectory => "that of $RUNTIME_DIRECTORY",
            Self::System => "the default; --socket names another",
            Self::User => "the default for users other than root; --socket names another",
        })
    }
}

/// The path of the daemon's socket: without an option, where the daemon itself would put it.
/// `configured` is what the default configuration says, and is asked only where it counts.
pub(super) fn socket_path(
    option: Option<PathBuf>,
    variable: impl Fn(&str) -> Option<OsString>,
    configured: impl FnOnce() -> Option<PathBuf>,
    root: bool,
    exists: impl Fn(&Path) -> bool,
) -> Location {
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    if let Some(path) = option {
        return at(path, Reason::Option);
    }
    if let Some(path) = variable("ECHOCTL_SOCKET") {
        return at(path.into(), Reason::Variable);
    }
    let default = default_path(variable, root, exists);
    match configured() {
        Some(path) => Location {
            otherwise: (path != default.path).then(|| Box::new(default)),
            ..at(path, Reason::Configuration)
        },
        None => default,
    }
}

/// Where the socket is that nothing names.
fn default_path(
    variable: impl Fn(&str) -> Option<OsString>,
    root: bool,
    exists: impl Fn(&Path) -> bool,
) -> Location {
    let system = PathBuf::from("/run/echod/control.sock");
    if let Some(directories) = variable("RUNTIME_DIRECTORY") {
        // systemd puts a colon between several (systemd.exec(5)).
        let first = std::env::split_paths(&directories)
            .next()
            .unwrap_or_default();
        return at(first.join("control.sock"), Reason::RuntimeDirectory);
    }
    match variable("XDG_RUNTIME_DIR") {
        Some(directory) if !root => {
            let own = Path::new(&directory).join("echod/control.sock");
            // A user without a daemon of their own means that of the system.
            if exists(&own) || !exists(&system) {
                at(own, Reason::User)
            } else {
                at(system, Reason::System)
            }
        }
        _ => at(system, Reason::System),
    }
}

fn at(path: PathBuf, reason: Reason) -> Location {
    Location {
        path,
        reason,
        otherwise: None,
    }
}

/// That of this process. Of the command line, `option`.
pub(super) fn of_this_process(option: Option<PathBuf>) -> Location {
    socket_path(
        option,
        |name| std::env::var_os(name),
        || configured(Path::new(DEFAULT_FILE)),
        nix::unistd::geteuid().is_root(),
        // A folder that may not be searched may well have it.
        |path| path.try_exists().unwrap_or(true),
    )
}

/// What a configuration file and its drop-ins say. One that can't be read says nothing, and mistakes
/// elsewhere in them do not matter: the daemon that runs has read them when they were right.
pub(super) fn configured(file: &Path) -> Option<PathBuf> {
    let folder = file.with_file_name("echod.d");
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let drop_ins = entries.filter(|entry| config::is_drop_in(&entry.file_name()));
    let mut paths: Vec<PathBuf> = drop_ins.map(|entry| entry.path()).collect();
    paths.sort();
    paths.insert(0, file.into());
    let sources: Vec<Source> = paths.iter().filter_map(|path| read(path)).collect();
    config::control_socket(&sources)
}

fn read(path: &Path) -> Option<Source> {
    let metadata = fs::metadata(path).ok()?;
    // To read a FIFO would wait for its writer.
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        return None;
    }
    let text = fs::read_to_string(path).ok()?;
    let name = path.display().to_string();
    Some(Source { name, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configured_socket_is_found_also_where_the_rest_of_the_configuration_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("echod.toml");
        assert_eq!(configured(&file), None);
        let text = "[control]\nsocket = \"/run/a.sock\"\n[listener.main]\nprotocol = \"tpc\"\n";
        fs::write(&file, text).unwrap();
        assert_eq!(configured(&file), Some("/run/a.sock".into()));
        let drop_ins = folder.path().join("echod.d");
        fs::create_dir(&drop_ins).unwrap();
        fs::write(
            drop_ins.join("10-b.toml"),
            "[control]\nsocket = \"/run/b.sock\"\n",
        )
        .unwrap();
        fs::write(
            drop_ins.join(".c.toml"),
            "[control]\nsocket = \"/run/c.sock\"\n",
        )
        .unwrap();
        assert_eq!(configured(&file), Some("/run/b.sock".into()));
    }
}
