//! The control socket on its way to a successor: its connections stay, with what has come of their
//! next requests. Whose reply is on its way is let go.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::{BindError, ClientId, Connection, Server, Socket, State};
use crate::daemon::handover::record;

impl Server {
    /// Describes the socket and its clients, and adds their descriptors to the list. `caller` waits
    /// to hear what comes of this.
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
            let waits = match connection.state {
                State::Waiting { .. } => None,
                State::Working { more, oneway } if Some(*id) == caller => Some((more, oneway)),
                State::Working { .. } | State::Writing { .. } => return None,
            };
            Some(record::Client {
                descriptor: add(connection.stream.as_fd()),
                unread: connection.frames.held().to_vec(),
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

    /// Goes on with the socket of a predecessor, if its file is still the one at its path. Returns also the client that waits to hear what came of it.
    ///
    /// # Errors
    ///
    /// [`BindError`], which says what to do about it.
    pub(in crate::daemon) fn adopt(
        control: &record::Control,
        mut descriptor: impl FnMut(usize) -> Option<OwnedFd>,
        mode: u32,
        group: Option<u32>,
    ) -> Result<Option<(Self, Option<ClientId>)>, BindError> {
        let listener = descriptor(control.descriptor);
        let adopt = |listener| Socket::adopt(listener, &control.path, control.file);
        let Some(socket) = listener.and_then(adopt) else {
            return Ok(None);
        };
        if let Err(error) = socket.open_up(mode, group) {
            // Who could connect before still can.
            log::error!("control socket: {error}");
        }
        let mut server = Self::new(socket)?;
        let mut caller = None;
        for client in &control.clients {
            let Some(stream) = descriptor(client.descriptor) else {
                continue;
            };
            let id = match server.admit(UnixStream::from(stream)) {
                Ok(id) => id,
                Err((_, end)) => {
                    log::debug!("control connection of the predecessor: {end}");
                    continue;
                }
            };
            let Some(connection) = server.connections.get_mut(&id) else {
                continue;
            };
            connection.frames.push(&client.unread);
            match client.waits {
                Some((more, oneway)) => {
                    connection.state = State::Working { more, oneway };
                    caller = Some(id);
                }
                None => server.pending.push(id),
            }
        }
        Ok(Some((server, caller)))
    }
}
