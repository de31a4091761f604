//! A predecessor, as its successor finds it: the record, read, and its descriptors.
//!
//! Knows where they are found and what can be asked about them before the service begins. Never
//! changes anything that serves: that is [`super::restore`].

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::cli::text::cause;
use crate::config::{self, Config, Loaded, Source};
use crate::daemon::control::{BindError, ClientId, Server};
use crate::daemon::origin::Texts;
use crate::daemon::privileges::{CreatedPath, Landlock};
use crate::daemon::record::{Record, Socket};
use crate::sys::handover as carriers;
use crate::sys::process::Passed;
use crate::worker::transfer::instant_before;

use super::{STORED, clock, environment};

/// A predecessor whose record could be read.
#[derive(Debug)]
pub(in crate::daemon) struct Predecessor {
    pub(super) record: Record,
    // Each is taken once.
    pub(super) descriptors: Vec<Option<OwnedFd>>,
    pub(super) unsent: Vec<u8>,
    // It was a program in this very process.
    pub(super) executed: bool,
}

/// What a start inherits.
#[derive(Debug)]
pub(in crate::daemon) enum Inherited {
    /// There was no predecessor.
    Nothing,
    /// Everything.
    State(Box<Predecessor>),
    /// The record can't be read: descriptors without a description.
    Descriptors {
        descriptors: Vec<OwnedFd>,
        error: String,
        executed: bool,
    },
}

impl Inherited {
    /// From the program that was executed in this process before, else from the process before, by
    /// way of the service manager. To be called before anything is opened.
    pub(in crate::daemon) fn find(passed: &mut Vec<Passed>) -> Self {
        match environment::inherited_carriers() {
            Some(Ok(carriers)) => Self::open(&carriers, true),
            Some(Err(error)) => Self::Descriptors {
                descriptors: Vec::new(),
                error,
                executed: true,
            },
            None => {
                let stored = passed.extract_if(.., |passed| passed.name == STORED);
                let carriers: Vec<OwnedFd> = stored.map(|passed| passed.fd).collect();
                if carriers.is_empty() {
                    Self::Nothing
                } else {
                    Self::open(&carriers, false)
                }
            }
        }
    }

    /// The predecessor whose record could be read.
    pub(in crate::daemon) fn predecessor(&self) -> Option<&Predecessor> {
        match self {
            Self::State(predecessor) => Some(predecessor),
            Self::Nothing | Self::Descriptors { .. } => None,
        }
    }

    /// Whether the service manager has stored it, and can remove it now.
    pub(in crate::daemon) fn was_stored(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::State(predecessor) => !predecessor.executed,
            Self::Descriptors { executed, .. } => !executed,
        }
    }

    fn open(carriers: &[OwnedFd], executed: bool) -> Self {
        let mut descriptors = match carriers::take_out_of_carriers(carriers) {
            Ok(descriptors) => descriptors.into_iter(),
            Err(error) => {
                return Self::Descriptors {
                    descriptors: Vec::new(),
                    error: cause(&error),
                    executed,
                };
            }
        };
        let read = || -> Result<(Record, Vec<u8>), String> {
            let file = descriptors.next().ok_or("it is missing")?;
            let bytes = carriers::fetch(file).map_err(|error| cause(&error))?;
            let (record, unsent) = Record::decode(&bytes)?;
            Ok((record, unsent.to_vec()))
        };
        // Without a record the sockets are still worth something: those that are configured are served.
        match { read }() {
            Ok((record, unsent)) => Self::State(Box::new(Predecessor {
                record,
                descriptors: descriptors.map(Some).collect(),
                unsent,
                executed,
            })),
            Err(error) => Self::Descriptors {
                descriptors: descriptors.collect(),
                error,
                executed,
            },
        }
    }
}

impl Predecessor {
    /// The configuration that was in force, for a start that can't read another one.
    pub(in crate::daemon) fn loaded(&self) -> Option<(Texts, Loaded)> {
        let config = self.config()?;
        let source = |name: &String| Source {
            name: name.clone(),
            text: String::new(),
        };
        let texts = Texts {
            sources: self.record.files.iter().map(source).collect(),
            built_in: false,
        };
        Some((texts, config.into()))
    }

    pub(super) fn config(&self) -> Option<Config> {
        load("the predecessor's configuration", &self.record.config)
    }

    /// The Landlock rules that this process inherits.
    pub(in crate::daemon) fn inherited_landlock(&self) -> Option<Landlock> {
        let landlock = self.record.landlock.clone();
        landlock.filter(|_| self.executed)
    }

    /// Where its control socket was.
    pub(in crate::daemon) fn control_path(&self) -> Option<PathBuf> {
        Some(self.record.control.as_ref()?.path.clone())
    }

    /// Whether its control socket was where its configuration said, and not at a default.
    pub(in crate::daemon) fn configures_its_control(&self) -> bool {
        let configured = self.config().and_then(|config| config.control.socket);
        configured.is_some() && configured == self.control_path()
    }

    /// The names under which the service manager stores its sockets.
    pub(in crate::daemon) fn stored(&self) -> Vec<String> {
        let names = self.sockets().filter_map(|socket| socket.stored.clone());
        names.collect()
    }

    /// When the service began.
    pub(in crate::daemon) fn started(&self, now: Instant) -> Instant {
        instant_before(now, self.record.uptime + self.elapsed())
    }

    /// Nanoseconds since the record was written.
    pub(in crate::daemon) fn elapsed(&self) -> u64 {
        clock().saturating_sub(self.record.written)
    }

    pub(in crate::daemon) fn record(&self) -> &Record {
        &self.record
    }

    /// What the service manager has passed to this process and no listener has taken. To another process
    /// it passes the same again.
    pub(in crate::daemon) fn take_passed(&mut self) -> Vec<Passed> {
        let passed = std::mem::take(&mut self.record.passed);
        let passed = passed.into_iter().filter(|_| self.executed);
        let descriptors = &mut self.descriptors;
        passed
            .filter_map(|passed| {
                let fd = descriptors.get_mut(passed.descriptor)?.take()?;
                let name = passed.name;
                Some(Passed { name, fd })
            })
            .collect()
    }

    /// The files of its Unix sockets; others may be created in their folders.
    pub(in crate::daemon) fn created_paths(&self) -> Vec<CreatedPath> {
        let made = |socket: &Socket| CreatedPath {
            path: PathBuf::from(&socket.address),
            keeps_group: false,
            is_folder: false,
        };
        let files = self.sockets().filter(|socket| socket.file.is_some());
        files.map(made).collect()
    }

    fn sockets(&self) -> impl Iterator<Item = &Socket> {
        let listeners = self.record.listeners.iter();
        listeners.flat_map(|listener| &listener.sockets)
    }

    /// The control socket at this path: the predecessor's if it was there, else a new one. Its
    /// clients come along in both cases; the one that waits for the outcome of the upgrade is
    /// returned.
    ///
    /// # Errors
    /// [`BindError`]. The predecessor's socket is then still there for another call.
    pub(in crate::daemon) fn control_socket(
        &mut self,
        path: &Path,
        mode: u32,
        group: Option<u32>,
    ) -> Result<(Server, Option<ClientId>), BindError> {
        let Some(control) = self.record.control.as_ref() else {
            return Ok((Server::bind(path, mode, group)?, None));
        };
        let descriptors = &mut self.descriptors;
        let mut descriptor = |place: usize| descriptors.get_mut(place)?.take();
        let adopted = if control.path == path {
            Server::adopt(control, &mut descriptor, mode, group)?
        } else {
            None
        };
        let mut server = match adopted {
            Some(server) => server,
            None => {
                let mut server = Server::bind(path, mode, group)?;
                server.replace(control, &mut descriptor);
                server
            }
        };
        let caller = server.adopt_clients(&control.clients, &mut descriptor);
        Ok((server, caller))
    }
}

/// A text of the record as a configuration; errors are logged.
pub(super) fn load(name: &str, text: &str) -> Option<Config> {
    let source = Source {
        name: name.into(),
        text: text.into(),
    };
    match config::load(&[source]) {
        Ok(loaded) => Some(loaded.config),
        Err(errors) => {
            for error in errors {
                log::error!("{error}");
            }
            None
        }
    }
}
