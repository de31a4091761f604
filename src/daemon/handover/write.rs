//! The predecessor's side: the service is written down, and everything that it has open is put into
//! carriers.
//!
//! Reads what the workers have transferred and what the control plane knows, and changes neither.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::config::{self, Config, render};
use crate::daemon::control::{ClientId, Server};
use crate::daemon::listeners::Listeners;
use crate::daemon::record::{self, Name, Record};
use crate::protocol::schema::ReloadResult;
use crate::sys::handover as carriers;
use crate::sys::message::Source as Peer;
use crate::sys::process::Passed;
use crate::worker::mailbox::{ListenerId, SourceEntry, TransferredConnection};

use super::{STORED, clock};

/// Everything that the workers with these numbers have transferred.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Transferred {
    pub workers: Vec<usize>,
    pub connections: Vec<(usize, TransferredConnection<OwnedFd>)>,
    pub sources: Vec<(usize, ListenerId, SourceEntry)>,
    pub last_peer: u64,
}

impl Transferred {
    pub(super) fn append(&mut self, mut more: Self) {
        more.workers.retain(|worker| !self.workers.contains(worker));
        self.workers.append(&mut more.workers);
        self.connections.append(&mut more.connections);
        self.sources.append(&mut more.sources);
        self.last_peer = self.last_peer.max(more.last_peer);
    }
}

/// What the control plane knows of the service.
#[derive(Debug)]
pub(in crate::daemon) struct Service<'a> {
    /// Without the listeners.
    pub config: &'a Config,
    pub log_level_overridden: bool,
    pub files: &'a [String],
    pub fingerprint: Option<u64>,
    pub generation: u64,
    pub last_reload: &'a ReloadResult,
    pub trial: record::Trial,
    pub started: Instant,
    pub listeners: &'a Listeners,
    pub server: Option<&'a Server>,
    pub passed: &'a [Passed],
}

impl Service<'_> {
    /// Writes the service down as it is since `stopped`, on [`clock`], and returns the carriers of the
    /// record and of all descriptors. `caller` waits for the outcome.
    pub(in crate::daemon) fn write(
        self,
        transferred: &Transferred,
        stopped: u64,
        caller: Option<ClientId>,
    ) -> std::io::Result<Vec<OwnedFd>> {
        let mut descriptors: Vec<BorrowedFd<'_>> = Vec::new();
        let retired_config = |listener: &config::Listener| self.config_of_one(listener);
        let listeners = self
            .listeners
            .describe_all(&mut descriptors, retired_config);
        let places = self.listeners.places();
        let (connections, unsent) = connections(transferred, &places, &mut descriptors);
        let control = self
            .server
            .map(|server| server.describe(caller, &mut descriptors));
        let passed = self.passed.iter().map(|passed| {
            descriptors.push(passed.fd.as_fd());
            record::Passed {
                name: passed.name.clone(),
                descriptor: descriptors.len() - 1,
            }
        });
        let passed = passed.collect();
        let record = Record {
            program: env!("CARGO_PKG_VERSION").into(),
            written: clock(),
            stopped,
            uptime: nanos(self.started.elapsed()),
            config: render(&self.listeners.complete(self.config)),
            log_level_overridden: self.log_level_overridden,
            files: self.files.to_vec(),
            fingerprint: self.fingerprint,
            generation: self.generation,
            last_reload: self.last_reload.clone(),
            trial: self.trial,
            departed: self.listeners.departed(),
            last_peer: transferred.last_peer,
            listeners,
            connections,
            sources: sources(transferred, &places),
            control,
            passed,
            landlock: self.listeners.landlock.clone(),
        };
        let encoded = record.encode();
        let parts: Vec<&[u8]> = std::iter::once(encoded.as_slice()).chain(unsent).collect();
        let file = carriers::store(STORED, &parts)?;
        // The record is the first that a successor takes out.
        descriptors.insert(0, file.as_fd());
        carriers::put_into_carriers(&descriptors)
    }

    /// A listener that is no longer configured is described by a configuration of its own.
    fn config_of_one(&self, listener: &config::Listener) -> String {
        let alone = [(listener.name.clone(), listener.clone())];
        render(&Config {
            listeners: alone.into(),
            ..self.config.clone()
        })
    }
}

/// The place of each listener in the record.
type Places = BTreeMap<ListenerId, usize>;

/// The connections, and the unsent bytes of each.
fn connections<'a>(
    transferred: &'a Transferred,
    places: &Places,
    descriptors: &mut Vec<BorrowedFd<'a>>,
) -> (Vec<record::Connection>, Vec<&'a [u8]>) {
    let describe = |(worker, connection): &'a (usize, TransferredConnection<OwnedFd>)| {
        let listener = *places.get(&connection.listener)?;
        descriptors.push(connection.socket.as_fd());
        let described = record::Connection {
            listener,
            worker: *worker,
            descriptor: descriptors.len() - 1,
            unsent: connection.unsent.len(),
            state: connection.state.clone(),
        };
        Some((described, connection.unsent.as_slice()))
    };
    transferred.connections.iter().filter_map(describe).unzip()
}

fn sources(transferred: &Transferred, places: &Places) -> Vec<record::Source> {
    let now = Instant::now();
    let describe = |(worker, listener, entry): &(usize, ListenerId, SourceEntry)| {
        Some(record::Source {
            listener: *places.get(listener)?,
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
    transferred.sources.iter().filter_map(describe).collect()
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
