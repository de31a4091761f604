//! The last step of a reload that can fail: what is bound beside sockets in service, or in their place.
//!
//! Changes options of sockets in service and the names of their files, and changes them back where
//! not all can be bound.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;

use crate::config::{self, Address, Config};
use crate::sys::socket;
use crate::worker::mailbox::SocketId;

use crate::daemon::aside::Aside;
use crate::daemon::socket_file;

use super::Listeners;
use super::bind::{self, Bound};
use super::failures::{BindFailure, Failures};
use super::prepared::{Pending, Planned, Prepared};
use super::sockets::Socket;

impl Listeners {
    /// Binds what is pending, in place or beside of what is in service. This is the last step that
    /// can fail.
    ///
    /// # Errors
    /// All that is wrong; everything is then as it was.
    pub(super) fn bind_pending(
        &self,
        prepared: &mut Prepared,
        new: &Config,
        workers: usize,
    ) -> Result<(), Vec<String>> {
        let mut undo = Undo {
            lock_wait: std::mem::take(&mut prepared.lock_wait),
            ..Undo::default()
        };
        let mut failures = Failures::default();
        // Those that take a file from its path come last, and only if nothing else has failed: their
        // clients would notice.
        for replaces in [false, true] {
            for (name, planned) in &mut prepared.sockets {
                let listener = &new.listeners[name];
                for entry in std::mem::take(planned) {
                    let pending = match entry {
                        Planned::Pending(pending)
                            if pending.replaces() == replaces
                                && !(failures.are_final() || replaces && !failures.is_empty()) =>
                        {
                            pending
                        }
                        entry => {
                            planned.push(entry);
                            continue;
                        }
                    };
                    match self.bind_one_pending(listener, pending, workers, &mut undo) {
                        Ok(bound) => planned.extend(bound.into_iter().map(Planned::New)),
                        Err(failure) => failures.add(failure),
                    }
                }
            }
        }
        if failures.is_empty() {
            self.listen(prepared, new, &mut failures);
        }
        if failures.is_empty() {
            return Ok(());
        }
        // First the new sockets go, then the old ones are again as they were.
        prepared.sockets.clear();
        undo.carry_out(self);
        failures.into_result()
    }

    /// Listens on the other sockets of listeners that had to be bound beside sockets in service: what
    /// listens last at a port decides whether the kernel remembers it as shared (see
    /// [`socket::end_sharing`]).
    fn listen(&self, prepared: &Prepared, new: &Config, failures: &mut Failures) {
        for (name, planned) in &prepared.sockets {
            let listener = &new.listeners[name];
            for planned in planned {
                if let Planned::New(bound) = planned
                    && let Some(local) = bound.waits_at()
                    && !self.has_to_wait_at(local)
                    && let Err(error) = bound.listen(listener)
                {
                    failures.add(BindFailure::of_listening(listener, &bound.address, &error));
                }
            }
        }
    }

    fn bind_one_pending<'a>(
        &'a self,
        listener: &config::Listener,
        pending: Pending,
        workers: usize,
        undo: &mut Undo<'a>,
    ) -> Result<Vec<Bound>, BindFailure> {
        match pending {
            Pending::Replacing { path, id } => {
                let bound = self.bind_replacing(listener, &path, id, workers, undo);
                bound.map(|bound| vec![bound]).map_err(|error| {
                    BindFailure::of_path(listener, &path, &error, self.landlock.as_ref())
                })
            }
            Pending::Beside {
                address,
                inet,
                indexes,
            } => {
                let bound = self.bind_beside(listener, &address, (inet, indexes), workers, undo);
                bound.map_err(|error| BindFailure::of_inet(listener, &address, inet, &error))
            }
        }
    }

    /// Binds a path at which there is a socket of the other kind. No client loses anything while
    /// the path has no file: those of the one kind can't connect to the other.
    fn bind_replacing(
        &self,
        listener: &config::Listener,
        path: &Path,
        id: SocketId,
        workers: usize,
        undo: &mut Undo<'_>,
    ) -> Result<Bound, socket_file::Error> {
        let (_, socket_type) = bind::kinds(listener.protocol);
        let old = self.sockets.get(id);
        if let Some(file) = old.and_then(|old| old.bound.file.as_ref()) {
            let aside = file.set_aside();
            undo.asides
                .push(aside.map_err(|cause| socket_file::Error::Failed {
                    what: "rename",
                    cause,
                })?);
        }
        let backlog = Some(listener.backlog);
        let bound = socket_file::bind(socket_type, path, backlog, &undo.lock_wait)?;
        bind::of_path(listener, path, bound, workers)
    }

    /// Binds sockets to an address that sockets in service have, or a part of it.
    fn bind_beside<'a>(
        &'a self,
        listener: &config::Listener,
        address: &Address,
        (inet, indexes): (SocketAddr, Range<usize>),
        workers: usize,
        undo: &mut Undo<'a>,
    ) -> io::Result<Vec<Bound>> {
        let (kind, _) = bind::kinds(listener.protocol);
        for socket in self.sockets.excluding(kind, inet) {
            let fd = socket.bound.fd.as_fd();
            if !socket::is_shared(fd) {
                socket::set_shared(fd, true)?;
                undo.shared.push(socket);
            }
        }
        let bound = bind::bind_beside(listener, address, inet, indexes, workers)?;
        // Those that have to wait listen when the retired sockets of this address are closed.
        if !self.has_to_wait_at(inet) {
            bound.iter().try_for_each(|bound| bound.listen(listener))?;
        }
        Ok(bound)
    }
}

/// What was done to sockets in service so that others could be bound.
#[derive(Default)]
struct Undo<'a> {
    shared: Vec<&'a Socket>,
    asides: Vec<Aside>,
    lock_wait: socket_file::LockWait,
}

impl Undo<'_> {
    fn carry_out(self, listeners: &Listeners) {
        for socket in self.shared {
            if let Some(warning) = listeners.end_sharing_of(socket) {
                log::warn!("{warning}");
            }
        }
        self.asides.into_iter().for_each(Aside::put_back);
    }
}
