//! The control socket for a successor: its connections stay, with what has arrived of their next
//! requests, and the searches that have not begun. A connection whose reply is being written is closed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::{BindError, ClientId, Connection, LISTENING, Permissions, Server, Socket, State};
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

    /// Continues with the socket of a predecessor, also if its file is gone; none if there is none.
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
        let Some((listener, file)) = listener.zip(control.file) else {
            return Ok(None);
        };
        let permissions = Permissions { mode, group };
        let socket = Socket::adopt(listener, &control.path, file, permissions);
        if socket.is_in_place()
            && let Err(error) = socket.open_up()
        {
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
        if let Some((listener, file)) = listener.zip(control.file) {
            // Its permissions do not matter any more.
            let permissions = self.socket.permissions();
            let replaced = Socket::adopt(listener, &control.path, file, permissions);
            self.admit_queued(&replaced);
        }
    }

    /// Makes the socket's file anew if it is gone, so that clients find it again; or, in a dry run,
    /// finds out whether that would be possible. Returns what there is to say about it.
    pub(in crate::daemon) fn restore_file(&mut self, dry_run: bool) -> Vec<String> {
        if self.socket.is_in_place() {
            return Vec::new();
        }
        let path = self.path().to_owned();
        let lost = |error: &BindError| {
            format!("control socket: {error}; echoctl can't reach this daemon any more")
        };
        let gone = format!(
            "control socket: {}: the socket's file was gone and",
            path.display()
        );
        if dry_run {
            let checked = self.socket.check_again();
            let checked = checked.map(|()| format!("{gone} would be made anew"));
            return vec![checked.unwrap_or_else(|error| lost(&error))];
        }
        // The old one is dropped last: clients that are queued at it are still accepted.
        let replaced = self.socket.bind_again().and_then(|(socket, closed)| {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, LISTENING);
            let added = self.epoll.add(&socket.listener, event);
            added.map_err(|cause| BindError::failed(&path, "epoll", cause))?;
            Ok((std::mem::replace(&mut self.socket, socket), closed))
        });
        match replaced {
            Err(error) => vec![lost(&error)],
            Ok((old, closed)) => {
                self.admit_queued(&old);
                let closed = closed.map(|error| format!("control socket: {error}"));
                let anew = format!("{gone} is made anew");
                std::iter::once(anew).chain(closed).collect()
            }
        }
    }

    /// Clients that are queued at a socket that goes become clients of this server.
    fn admit_queued(&mut self, old: &Socket) {
        while let Ok((stream, _)) = old.listener.accept() {
            if let Err((_, end)) = self.admit(stream) {
                log::debug!("control connection of a socket that was replaced: {end}");
            }
        }
    }
}
