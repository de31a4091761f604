//! A driver over real sockets: its endpoints, and the way in which the kernel reports readiness.
//!
//! Everything that is the same for `epoll(7)` and `io_uring(7)` is here and in `endpoints`; a
//! [`Backend`] is what differs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use super::accept::Listener;
use super::buffers::Memory;
use super::endpoints::{Endpoints, Kind, RECEIVED_BYTES_MAX, Registration};
use super::lifecycle::Lifecycle;
use super::{Buffer, Completion, Detached, Details, Driver, Envelope, Op, Permits, Token, Waker};
use crate::sys::socket;

/// How a driver learns that an endpoint is ready. [`Sockets::wait`] calls these functions in their
/// order here.
pub trait Backend {
    /// What the kernel knows of an endpoint.
    type Registration: Registration;
    /// The memory that bytes are received into.
    type Memory: Memory;

    /// A `wait` ends after this many completions of events.
    const COMPLETIONS_MAX: usize;

    /// Carries out what was asked of an endpoint, and brings the kernel up to date with it.
    fn update(
        &mut self,
        token: Token,
        endpoints: &mut Endpoints<Self::Registration, Self::Memory>,
        done: &mut Vec<Completion>,
    );

    /// Has events ready, if there are any; sleeps for the first one until `until` unless there are
    /// completions or an endpoint drains. The result is whether time may have passed.
    ///
    /// # Errors
    /// Only when the driver itself cannot continue.
    fn fetch(
        &mut self,
        endpoints: &mut Endpoints<Self::Registration, Self::Memory>,
        has_completions: bool,
        until: Option<Instant>,
    ) -> io::Result<bool>;

    /// Handles the next event that is ready; false if there is none.
    fn handle_next(
        &mut self,
        endpoints: &mut Endpoints<Self::Registration, Self::Memory>,
        done: &mut Vec<Completion>,
    ) -> bool;
}

/// See the module.
#[derive(Debug)]
pub struct Sockets<B: Backend> {
    // Before the endpoints, because fields are dropped in order: a backend ends the kernel's
    // requests, which are for the endpoints' memory.
    backend: B,
    endpoints: Endpoints<B::Registration, B::Memory>,
    waker: Waker,
    // When the last wait ended that asked the kernel.
    now: Instant,
}

impl<B: Backend> Sockets<B> {
    pub(super) fn of(backend: B, memory: B::Memory, waker: Waker) -> Self {
        Self {
            backend,
            endpoints: Endpoints::new(memory),
            waker,
            now: Instant::now(),
        }
    }
}

impl<B: Backend> Driver for Sockets<B> {
    type Socket = OwnedFd;

    fn add_listener(&mut self, socket: OwnedFd, permits: Option<Arc<Permits>>) -> Token {
        self.endpoints.add_listener(socket, Listener::new(permits))
    }

    fn set_permits(&mut self, listener: Token, permits: Option<Arc<Permits>>) {
        if let Some(endpoint) = self.endpoints.get_mut(listener)
            && let Kind::Listener(listener) = &mut endpoint.kind
        {
            listener.permits = permits;
        }
    }

    fn add_datagram_socket(&mut self, socket: OwnedFd) -> Token {
        self.endpoints.add_datagram_socket(socket)
    }

    fn add_connection(&mut self, socket: OwnedFd, unsent: Vec<u8>) -> Token {
        self.endpoints.add_connection(socket, unsent)
    }

    fn take(&mut self, connection: Token) -> Option<Detached<OwnedFd>> {
        self.endpoints.take_detached(connection)
    }

    fn submit(&mut self, op: Op) {
        self.endpoints.submit(op);
    }

    fn wait(&mut self, until: Option<Instant>, done: &mut Vec<Completion>) -> io::Result<()> {
        self.endpoints.resume_starved();
        self.update_changed(done);
        if self.endpoints.is_draining() {
            self.endpoints.drain(done);
            self.update_changed(done);
        }
        let Self {
            backend, endpoints, ..
        } = self;
        let may_have_slept = backend.fetch(endpoints, !done.is_empty(), until)?;
        endpoints.received_bytes = 0;
        let completions_max = done.len() + B::COMPLETIONS_MAX;
        while done.len() < completions_max
            && endpoints.received_bytes < RECEIVED_BYTES_MAX
            && backend.handle_next(endpoints, done)
        {}
        if may_have_slept {
            self.now = Instant::now();
        }
        Ok(())
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn bytes(&mut self, buffer: &Buffer) -> &mut [u8] {
        self.endpoints.memory.bytes(buffer)
    }

    fn envelope(&self, buffer: &Buffer) -> &Envelope {
        self.endpoints.workspace.envelope(buffer)
    }

    fn set_envelope(&mut self, buffer: &Buffer, envelope: &Envelope) {
        self.endpoints.workspace.set_envelope(buffer, envelope);
    }

    fn lease(&mut self, len: usize) -> Option<Buffer> {
        self.endpoints.memory.large().lease_for_user(len)
    }

    fn recycle(&mut self, buffer: Buffer) {
        self.endpoints.memory.recycle(buffer);
    }

    fn peer_progress(&self, connection: Token) -> u64 {
        self.descriptor(connection).map_or(0, socket::progress)
    }

    fn details(&self, connection: Token) -> Details {
        self.descriptor(connection)
            .map(socket::details)
            .unwrap_or_default()
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

impl<B: Backend> Sockets<B> {
    fn update_changed(&mut self, done: &mut Vec<Completion>) {
        while let Some(token) = self.endpoints.next_changed() {
            self.backend.update(token, &mut self.endpoints, done);
        }
    }

    /// The descriptor of an endpoint that is not being closed.
    fn descriptor(&self, token: Token) -> Option<BorrowedFd<'_>> {
        let endpoint = self.endpoints.get(token)?;
        (!matches!(endpoint.lifecycle, Lifecycle::Closing(_))).then(|| endpoint.fd.as_fd())
    }
}
