//! The control socket for a successor: its connections stay, with what has arrived of their next
//! requests, and the searches that have not begun. A connection whose reply is being written is closed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::{BindError, ClientId, Connection, Server, Socket, State};
use crate::daemon::record;
use crate::protocol::wire::{Frames, REQUEST_BYTES_MAX};

impl Server {
    /// Describes the socket and its clients, and adds their descriptors to the list. The successor
    /// answers `caller`.
    pub(in crate::daemon) fn describe<'a>(
        &'a self,
        caller: Option<ClientId>,
        descriptors: &mut Vec<BorrowedFd<'a>>,
    ) -> record::Control {
        let mut add = |descriptor| {
            descriptors.push(descriptor);
            descriptors.len() - 1
        };
        let (path, file) = self.socket.place();
        let (path, descriptor) = (path.to_owned(), add(self.socket.listener.as_fd()));
        let mut client = |(id, connection): (&ClientId, &'a Connection)| {
            let mut unread = connection.frames.held().to_vec();
            let waits = match connection.state {
                State::Waiting { .. } => None,
                State::Working { more, oneway } if Some(*id) == caller => Some((more, oneway)),
                State::Working { .. } | State::Writing { .. } => {
                    // A search that has not begun is asked for again.
                    let request = self.searches.waiting_request(*id)?;
                    unread.splice(..0, request.encode());
                    None
                }
            };
            Some(record::Client {
                descriptor: add(connection.stream.as_fd()),
                unread,
                waits,
            })
        };
        record::Control {
            descriptor,
            path,
            file,
            clients: self.connections.iter().filter_map(&mut client).collect(),
        }
    }

    /// Continues with the socket of a predecessor; none if its file is no longer at its path.
    ///
    /// # Errors
    ///
    /// [`BindError`], which says what to do about it.
    pub(in crate::daemon) fn adopt(
        control: &record::Control,
        mut descriptor: impl FnMut(usize) -> Option<OwnedFd>,
        mode: u32,
        group: Option<u32>,
    ) -> Result<Option<Self>, BindError> {
        let listener = descriptor(control.descriptor);
        let adopt = |listener| Socket::adopt(listener, &control.path, control.file);
        let Some(socket) = listener.and_then(adopt) else {
            return Ok(None);
        };
        if let Err(error) = socket.open_up(mode, group) {
            // Clients that could connect before still can.
            log::error!("control socket: {error}");
        }
        Self::new(socket).map(Some)
    }

    /// Continues with the clients of a predecessor. Returns the one that waits for the outcome of
    /// the upgrade.
    pub(in crate::daemon) fn adopt_clients(
        &mut self,
        clients: &[record::Client],
        mut descriptor: impl FnMut(usize) -> Option<OwnedFd>,
    ) -> Option<ClientId> {
        let mut caller = None;
        for client in clients {
            let Some(stream) = descriptor(client.descriptor) else {
                continue;
            };
            // The limits hold for them as for new ones: an earlier version may have had others.
            let id = match self.admit(UnixStream::from(stream)) {
                Ok(id) => id,
                Err((_, end)) => {
                    log::debug!("control connection of the predecessor: {end}");
                    continue;
                }
            };
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            connection.frames = Frames::resume(REQUEST_BYTES_MAX, client.unread.clone());
            match client.waits {
                Some((more, oneway)) => {
                    connection.state = State::Working { more, oneway };
                    caller = Some(id);
                }
                None => self.pending.push(id),
            }
        }
        caller
    }

    /// Closes the socket of a predecessor that was at another path, and removes its file. Clients
    /// that are queued there become clients of this server.
    pub(in crate::daemon) fn replace(
        &mut self,
        control: &record::Control,
        mut descriptor: impl FnMut(usize) -> Option<OwnedFd>,
    ) {
        let listener = descriptor(control.descriptor);
        let adopt = |listener| Socket::adopt(listener, &control.path, control.file);
        let Some(replaced) = listener.and_then(adopt) else {
            // The file is gone, or another daemon's.
            return;
        };
        while let Ok((stream, _)) = replaced.listener.accept() {
            if let Err((_, end)) = self.admit(stream) {
                log::debug!("control connection of the predecessor: {end}");
            }
        }
    }
}
