//! What a daemon leaves to its successor, and how that takes it up: a record, the descriptors, and
//! the bytes that connections are owed.
//!
//! A successor is the program that this process executes ([`super::handover::upgrade`]), or the process that
//! the service manager starts after us. It goes on from the configuration that was in force and then
//! reloads, so that whatever has changed meanwhile comes about as it does at any reload: what stays
//! is not touched, what goes is served to its end, what is wrong is said and changes nothing.

pub(super) mod program;
pub(super) mod record;
pub(super) mod upgrade;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

use crate::config::{self, Config, Loaded, Source, render};
use crate::policy::CloseReason;
use crate::protocol::schema::UpgradeResult;
use crate::sys::handover as carriers;
use crate::sys::message::{Source as Peer, UnixName};
use crate::sys::process::Passed;
use crate::worker::mailbox::{
    Command, Destination, ListenerId, SocketId, SourceEntry, TransferredConnection,
};
use crate::worker::transfer::instant_before;

use super::Daemon;
use super::control::{BindError, ClientId, Server};
use super::listeners::{Listeners, udp_port};
use super::origin::Texts;
use super::privileges::{Landlock, Made};
use super::workers::Workers;

use record::{Name, Record};

/// The environment variable that tells an executed successor where the carriers are.
pub(super) const VARIABLE: &str = "ECHOD_HANDOVER";

/// The name under which the service manager keeps the carriers.
pub(super) const STORED: &str = "echod-handover";

/// All that these workers had.
#[derive(Debug, Default)]
pub(super) struct Belongings {
    pub workers: Vec<usize>,
    pub connections: Vec<(usize, TransferredConnection<OwnedFd>)>,
    pub sources: Vec<(usize, ListenerId, SourceEntry)>,
    pub last_peer: u64,
}

/// What was taken up of a predecessor.
#[derive(Debug)]
pub(super) struct Predecessor {
    record: Record,
    descriptors: Vec<Option<OwnedFd>>,
    unsent: Vec<u8>,
    executed: bool,
}

/// What a start finds.
#[derive(Debug)]
pub(super) enum Legacy {
    /// Nobody was here before.
    Nothing,
    /// Everything.
    Whole(Box<Predecessor>),
    /// The record can't be read: these are the descriptors.
    Pieces {
        descriptors: Vec<OwnedFd>,
        error: String,
        executed: bool,
    },
}

/// `CLOCK_MONOTONIC` in nanoseconds: it goes on over an exec and over processes.
pub(super) fn clock() -> u64 {
    // It is always there (clock_gettime(2)).
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

impl Legacy {
    /// Takes up what the program before us has left in this process. Call it before anything is
    /// opened.
    pub(super) fn of_this_process() -> Self {
        let Some(numbers) = std::env::var_os(VARIABLE) else {
            return Self::Nothing;
        };
        let inherit = |numbers: BTreeSet<RawFd>| -> Result<Vec<OwnedFd>, String> {
            let carriers = numbers.into_iter().map(carriers::inherit);
            let carriers: std::io::Result<Vec<OwnedFd>> = carriers.collect();
            carriers.map_err(|error| error.to_string())
        };
        // A set: what is named twice is there once.
        let text = numbers.to_string_lossy();
        let parsed: Result<BTreeSet<RawFd>, _> = text.split(' ').map(str::parse).collect();
        let inherited = parsed.map_err(|error| error.to_string()).and_then(inherit);
        match inherited {
            Ok(carriers) => Self::take(&carriers, true),
            Err(error) => Self::Pieces {
                descriptors: Vec::new(),
                error: format!("${VARIABLE} {numbers:?}: {error}"),
                executed: true,
            },
        }
    }

    /// Whether the service manager has kept it, and may let it go now.
    pub(super) fn was_kept(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Whole(predecessor) => !predecessor.executed,
            Self::Pieces { executed, .. } => !executed,
        }
    }

    /// Takes up what the process before us has left with the service manager.
    pub(super) fn of_manager(passed: &mut Vec<Passed>) -> Self {
        let carriers: Vec<OwnedFd> = passed
            .extract_if(.., |passed| passed.name == STORED)
            .map(|passed| passed.fd)
            .collect();
        if carriers.is_empty() {
            Self::Nothing
        } else {
            Self::take(&carriers, false)
        }
    }

    fn take(carriers: &[OwnedFd], executed: bool) -> Self {
        let mut descriptors = match carriers::unload(carriers) {
            Ok(descriptors) => descriptors.into_iter(),
            Err(error) => {
                return Self::Pieces {
                    descriptors: Vec::new(),
                    error: error.to_string(),
                    executed,
                };
            }
        };
        let read = || -> Result<(Record, Vec<u8>), String> {
            let file = descriptors.next().ok_or("it is missing")?;
            let bytes = carriers::fetch(file).map_err(|error| error.to_string())?;
            let (record, unsent) = Record::decode(&bytes)?;
            Ok((record, unsent.to_vec()))
        };
        match { read }() {
            Ok((record, unsent)) => Self::Whole(Box::new(Predecessor {
                record,
                descriptors: descriptors.map(Some).collect(),
                unsent,
                executed,
            })),
            Err(error) => Self::Pieces {
                descriptors: descriptors.collect(),
                error,
                executed,
            },
        }
    }
}

impl Predecessor {
    /// The configuration that was in force, for want of one that can be read.
    pub(super) fn loaded(&self) -> Option<(Texts, Loaded)> {
        let config = load("the predecessor's configuration", &self.record.config)?;
        let source = |name: &String| Source {
            name: name.clone(),
            text: String::new(),
        };
        let texts = Texts {
            sources: self.record.files.iter().map(source).collect(),
            built_in: false,
        };
        Some((
            texts,
            Loaded {
                config,
                warnings: Vec::new(),
            },
        ))
    }

    /// What holds this process since then.
    pub(super) fn inherited_landlock(&self) -> Option<Landlock> {
        let landlock = self.record.landlock.clone();
        landlock.filter(|_| self.executed)
    }

    /// Where its control socket was.
    pub(super) fn control_path(&self) -> Option<PathBuf> {
        Some(self.record.control.as_ref()?.path.clone())
    }

    /// The names of what the service manager keeps.
    pub(super) fn stored(&self) -> Vec<String> {
        let sockets = self
            .record
            .listeners
            .iter()
            .flat_map(|listener| &listener.sockets);
        sockets.filter_map(|socket| socket.stored.clone()).collect()
    }

    /// When the service began.
    pub(super) fn started(&self, now: Instant) -> Instant {
        instant_before(now, self.record.uptime + self.elapsed())
    }

    fn elapsed(&self) -> u64 {
        clock().saturating_sub(self.record.written)
    }

    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    /// The files of its Unix sockets, and their folders, are where others may be made.
    pub(super) fn made(&self) -> Vec<Made> {
        let sockets = self
            .record
            .listeners
            .iter()
            .flat_map(|listener| &listener.sockets);
        let files = sockets.filter(|socket| socket.file.is_some());
        files
            .map(|socket| Made {
                path: PathBuf::from(&socket.address),
                keeps_group: false,
                is_folder: false,
            })
            .collect()
    }

    /// The descriptor at this place, once.
    pub(super) fn descriptor(&mut self, place: usize) -> Option<OwnedFd> {
        self.descriptors.get_mut(place)?.take()
    }

    /// The control socket at this path: the predecessor's if it was there, else a new one. Its
    /// clients come along in both cases; the one that waits for the outcome of the upgrade is
    /// returned.
    ///
    /// # Errors
    /// [`BindError`]. The predecessor's socket is then still there for another call.
    pub(super) fn control_socket(
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

    /// Goes on with everything but the control socket. First with who is there, then with the
    /// sockets, so that who comes in has to wait his turn. Returns the configuration that was in
    /// force, and what is to be told.
    pub(super) fn restore(
        mut self,
        listeners: &mut Listeners,
        workers: &Workers,
    ) -> (Config, UpgradeResult) {
        let elapsed = self.elapsed();
        let config = load("the predecessor's configuration", &self.record.config)
            .unwrap_or_else(|| load("nothing", config::EMBEDDED).expect("it is built in"));
        let retired = |text: &str| {
            let config = load("a retired listener's configuration", text)?;
            config.listeners.into_values().next()
        };
        workers.command_all(|_| Command::ContinueIdsAfter {
            last: self.record.last_peer,
        });
        let mut described = std::mem::take(&mut self.record.listeners);
        for connection in &self.record.connections {
            // Who can't be gone on with is counted among those that have ended.
            if self.descriptors.get(connection.descriptor).is_none()
                && let Some(listener) = described.get_mut(connection.listener)
            {
                listener.totals.closed += 1;
                listener.totals.closed_by[CloseReason::Failed as usize] += 1;
            }
        }
        let ids = listeners.restore(&described, &config, retired, workers);
        listeners.restore_departed(&self.record.departed);

        let (mut kept, mut lost) = (0, 0);
        let mut unsent = std::mem::take(&mut self.unsent).into_iter();
        for mut connection in std::mem::take(&mut self.record.connections) {
            let unsent: Vec<u8> = unsent.by_ref().take(connection.unsent).collect();
            let listener = ids.get(connection.listener).copied().flatten();
            let socket = self.descriptor(connection.descriptor);
            let Some((listener, socket)) = listener.zip(socket) else {
                lost += 1;
                continue;
            };
            kept += 1;
            connection.state.age += elapsed;
            let carried = TransferredConnection {
                listener,
                socket,
                unsent,
                state: connection.state,
            };
            listeners.take_over(connection.worker, carried, workers);
        }
        let now = Instant::now();
        for source in std::mem::take(&mut self.record.sources) {
            let listener = ids.get(source.listener).copied().flatten();
            let name = match source.source {
                Name::Inet(address) => Some(Peer::Inet(address)),
                Name::Unix(ref bytes) => UnixName::from_bytes(bytes).map(Peer::Unix),
            };
            let Some((listener, name)) = listener.zip(name) else {
                continue;
            };
            let entry = SourceEntry {
                id: source.id,
                source: name,
                destination: Destination {
                    socket: SocketId(source.socket),
                    address: source.address,
                },
                first: instant_before(now, source.age + elapsed),
                last: instant_before(now, source.idle + elapsed),
                bytes_received: source.bytes_received,
                bytes_sent: source.bytes_sent,
            };
            workers.command(
                source.worker % workers.count(),
                Command::AddSource {
                    listener,
                    source: entry,
                },
            );
        }
        // All ports are known before the first socket is served, so that none of them is answered.
        let sockets = described.iter().flat_map(|listener| &listener.sockets);
        let ports = sockets.filter_map(|socket| {
            udp_port(self.descriptors.get(socket.descriptor)?.as_ref()?.as_fd())
        });
        let ports: Vec<u16> = ports.collect();
        listeners.refuse_own_ports(ports, workers);
        for listener in &described {
            let descriptor = |place: usize| self.descriptors.get_mut(place)?.take();
            listeners.restore_sockets(listener, descriptor, workers);
        }
        let pause = Duration::from_nanos(clock().saturating_sub(self.record.rested));
        let result = UpgradeResult {
            from: self.record.program,
            to: env!("CARGO_PKG_VERSION").into(),
            listeners: listeners.count() as u64,
            connections: kept,
            lost,
            pause_us: pause.as_micros() as u64,
        };
        let way = if self.executed {
            "by exec"
        } else {
            "by restart"
        };
        log::info!(
            "took over from echod {} {way}: {} listener(s), {kept} connection(s); \
             nobody was served for {pause:.1?}",
            result.from,
            result.listeners
        );
        if lost > 0 {
            log::error!("{lost} connection(s) of the predecessor could not be kept");
        }
        (config, result)
    }
}

fn load(name: &str, text: &str) -> Option<Config> {
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

impl Daemon {
    /// Writes everything down and puts it into carriers, the record first.
    pub(super) fn leave_behind(
        &self,
        belongings: &Belongings,
        rested: u64,
        caller: Option<ClientId>,
    ) -> std::io::Result<Vec<OwnedFd>> {
        let mut descriptors: Vec<BorrowedFd<'_>> = Vec::new();
        let now = Instant::now();
        let retired_config = |listener: &config::Listener| {
            let alone = [(listener.name.clone(), listener.clone())];
            render(&Config {
                listeners: alone.into(),
                ..self.config.clone()
            })
        };
        let listeners = self
            .listeners
            .describe_all(&mut descriptors, retired_config);
        let mut connections = Vec::with_capacity(belongings.connections.len());
        for (worker, carried) in &belongings.connections {
            let Some(listener) = self.listeners.place(carried.listener) else {
                continue;
            };
            descriptors.push(carried.socket.as_fd());
            connections.push(record::Connection {
                listener,
                worker: *worker,
                descriptor: descriptors.len() - 1,
                unsent: carried.unsent.len(),
                state: carried.state.clone(),
            });
        }
        let nanos = |duration: Duration| duration.as_nanos() as u64;
        let source = |(worker, listener, entry): &(usize, ListenerId, SourceEntry)| {
            Some(record::Source {
                listener: self.listeners.place(*listener)?,
                worker: *worker,
                id: entry.id,
                source: match &entry.source {
                    Peer::Inet(address) => Name::Inet(*address),
                    Peer::Unix(name) => Name::Unix(name.as_bytes().to_vec()),
                },
                socket: entry.destination.socket.0,
                address: entry.destination.address,
                age: nanos(now - entry.first),
                idle: nanos(now - entry.last),
                bytes_received: entry.bytes_received,
                bytes_sent: entry.bytes_sent,
            })
        };
        let control = self
            .server
            .as_ref()
            .map(|server| server.describe(caller, &mut descriptors));
        let record = Record {
            program: env!("CARGO_PKG_VERSION").into(),
            written: clock(),
            rested,
            uptime: nanos(self.started.elapsed()),
            config: render(&self.config),
            log_level_overridden: self.log_level_overridden,
            files: self.files.clone(),
            generation: self.history.generation,
            last_reload: self.history.last.clone(),
            departed: self.listeners.departed(),
            last_peer: belongings.last_peer,
            listeners,
            connections,
            sources: belongings.sources.iter().filter_map(source).collect(),
            control,
            landlock: self.listeners.landlock.clone(),
        };
        let encoded = record.encode();
        let mut parts = vec![encoded.as_slice()];
        let of_known = belongings
            .connections
            .iter()
            .filter(|(_, carried)| self.listeners.place(carried.listener).is_some());
        parts.extend(of_known.map(|(_, carried)| carried.unsent.as_slice()));
        let file = carriers::store("echod-handover", &parts)?;
        descriptors.insert(0, file.as_fd());
        carriers::load(&descriptors)
    }

    /// Gives the workers everything back: there is no successor.
    pub(super) fn take_back(&mut self, belongings: Belongings) {
        for (worker, connection) in belongings.connections {
            self.listeners.take_over(worker, connection, &self.workers);
        }
        self.listeners
            .serve_again(&belongings.workers, &self.workers);
    }
}

/// The environment of an executed successor: ours, with the carriers, and without the sockets that
/// the service manager has passed to us.
pub(super) fn environment(carriers: &[OwnedFd]) -> Vec<OsString> {
    let numbers: Vec<String> = carriers
        .iter()
        .map(|carrier| carrier.as_raw_fd().to_string())
        .collect();
    let mut environment: Vec<OsString> = std::env::vars_os()
        .filter(|(name, _)| !is_ours(name.as_encoded_bytes()))
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            name
        })
        .collect();
    environment.push(format!("{VARIABLE}={}", numbers.join(" ")).into());
    environment
}

/// Whether a variable is meant for one program and not for the next.
pub(super) fn is_ours(name: &[u8]) -> bool {
    name == VARIABLE.as_bytes() || name.starts_with(b"LISTEN_")
}
