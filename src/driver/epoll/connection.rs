//! Streams over epoll: one receive, one send, and what happens when the peer is slow or gone.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};

use super::{Endpoint, Epoll, Kind, Wish};
use crate::driver::buffers::{BUFFER_BYTES, Buffers, Queue};
use crate::driver::pipes::Pipes;
use crate::driver::relay::{Relay, Taken};
use crate::driver::{Buffer, Completion, Detached, Op, Token};
use crate::sys::socket;

#[derive(Debug)]
pub(super) struct Connection {
    relay: Relay,
    unsent: Queue,
    // Of the first buffer in `unsent`, or of what was spilled.
    sent: u32,
    // The bytes of a stalled send, moved out when buffers are scarce.
    // Boxed twice: hardly anybody has it, and everybody has room for it.
    spilled: Option<Box<Box<[u8]>>>,
    shut_down: bool,
    // The kernel says once when bytes come, and one read takes them all: so it is over TCP, until a
    // read may have left some.
    pub(super) once: bool,
    pub(super) ended: bool,
    // Broken, or hung up while nothing was asked of it: the kernel need not say so again.
    pub(super) silent: bool,
    failed: bool,
    // Nothing more is done for it: it leaves this driver.
    pub(super) detached: bool,
}

impl Connection {
    /// Over TCP, or a Unix socket, where a read ends where a peer has passed descriptors.
    pub(super) fn new(tcp: bool) -> Self {
        Self {
            relay: Relay::new(),
            unsent: Queue::new(),
            sent: 0,
            spilled: None,
            shut_down: false,
            once: tcp,
            ended: false,
            silent: false,
            failed: false,
            detached: false,
        }
    }

    /// The peer is owed these bytes from an earlier driver.
    pub(super) fn owe(&mut self, unsent: Vec<u8>) {
        if !unsent.is_empty() {
            self.spilled = Some(Box::new(unsent.into()));
        }
    }

    pub(super) fn stalled(&self) -> bool {
        self.relay.holds() || !self.unsent.is_empty() || self.spilled.is_some()
    }

    /// Forgets all that is yet to be sent.
    pub(super) fn discard(&mut self, buffers: &mut Buffers, pipes: &mut Pipes) {
        self.relay.discard(pipes);
        buffers.clear(&mut self.unsent);
        self.spilled = None;
    }

    /// Takes all that is yet to be sent, in its order.
    fn take_unsent(&mut self, buffers: &mut Buffers, pipes: &mut Pipes) -> Vec<u8> {
        let mut unsent = self.relay.read(pipes);
        // Of the first piece, whichever it is, a part is sent.
        let mut sent = std::mem::take(&mut self.sent) as usize;
        if let Some(spilled) = self.spilled.take() {
            unsent.extend(&spilled[std::mem::take(&mut sent)..]);
        }
        while let Some(buffer) = buffers.pop(&mut self.unsent) {
            unsent.extend(&buffers.bytes(&buffer)[std::mem::take(&mut sent)..]);
            buffers.recycle(buffer);
        }
        unsent
    }
}

/// What became of an attempt to send.
enum Flushed {
    All,
    Stalled,
    Failed(io::Error),
}

impl Epoll {
    pub(super) fn send(&mut self, token: Token, buffer: Buffer, done: &mut Vec<Completion>) {
        let Self {
            endpoints, buffers, ..
        } = self;
        let Some(Endpoint {
            fd,
            kind: Kind::Connection(connection),
            ..
        }) = endpoints.get_mut(token)
        else {
            buffers.recycle(buffer);
            return;
        };
        if connection.silent {
            // It has failed, and that has been said.
            buffers.recycle(buffer);
            return;
        }
        if connection.stalled() || connection.detached {
            buffers.push(&mut connection.unsent, buffer);
            return;
        }
        match send(
            fd.as_raw_fd(),
            buffers.bytes(&buffer),
            MsgFlags::MSG_NOSIGNAL,
        ) {
            Ok(sent) if sent == buffer.len as usize => {
                done.push(Completion::Sent {
                    connection: token,
                    len: buffer.len,
                });
                buffers.recycle(buffer);
            }
            Err(errno) if errno != Errno::EAGAIN => {
                buffers.recycle(buffer);
                self.fail(token, errno.into(), done);
            }
            partly => {
                connection.sent = partly.unwrap_or(0) as u32;
                buffers.push(&mut connection.unsent, buffer);
                spill_if_scarce(buffers, connection);
                done.push(Completion::Stalled { connection: token });
                self.changed.push(token);
            }
        }
    }

    /// Goes on with a stalled send.
    pub(super) fn flush(&mut self, token: Token, done: &mut Vec<Completion>) {
        let Self {
            endpoints,
            buffers,
            pipes,
            ..
        } = self;
        let Some(Endpoint {
            fd,
            kind: Kind::Connection(connection),
            ..
        }) = endpoints.get_mut(token)
        else {
            return;
        };
        // Nothing is received while anything waits, so what is in the pipe came before all sends.
        if connection.relay.holds() {
            match connection.relay.give(fd.as_fd(), pipes) {
                Ok(0) => return,
                Ok(sent) => done.push(Completion::Relayed {
                    connection: token,
                    received: 0,
                    sent,
                }),
                Err(errno) => return self.fail(token, errno.into(), done),
            }
            if connection.relay.holds() {
                return;
            }
        }
        let raw = fd.as_raw_fd();
        let flushed = loop {
            let spilled = connection.spilled.as_ref().map(|spilled| &***spilled);
            let Some(bytes) = spilled.or_else(|| Some(&*buffers.front(&connection.unsent)?.1))
            else {
                break Flushed::All;
            };
            let len = bytes.len();
            match send(
                raw,
                &bytes[connection.sent as usize..],
                MsgFlags::MSG_NOSIGNAL,
            ) {
                Ok(sent) if connection.sent as usize + sent == len => {
                    connection.sent = 0;
                    if connection.spilled.take().is_none() {
                        let buffer = buffers
                            .pop(&mut connection.unsent)
                            .expect("its bytes were just sent");
                        buffers.recycle(buffer);
                    }
                    done.push(Completion::Sent {
                        connection: token,
                        len: len as u32,
                    });
                }
                Ok(sent) => {
                    connection.sent += sent as u32;
                    break Flushed::Stalled;
                }
                Err(Errno::EAGAIN) => break Flushed::Stalled,
                Err(errno) => break Flushed::Failed(errno.into()),
            }
        };
        match flushed {
            Flushed::All => {
                if connection.shut_down {
                    finish_writing(fd.as_fd());
                }
                self.changed.push(token);
            }
            Flushed::Stalled => spill_if_scarce(buffers, connection),
            Flushed::Failed(error) => self.fail(token, error, done),
        }
    }

    pub(super) fn shut_down(&mut self, token: Token) {
        let Some(Endpoint {
            fd,
            kind: Kind::Connection(connection),
            ..
        }) = self.endpoints.get_mut(token)
        else {
            return;
        };
        connection.shut_down = true;
        if !connection.stalled() {
            finish_writing(fd.as_fd());
        }
    }

    /// From now on nothing is taken from the connection, and nothing sent. Whether that is new.
    pub(super) fn detach(&mut self, token: Token) -> bool {
        let Some(Endpoint {
            kind: Kind::Connection(connection),
            ..
        }) = self.endpoints.get_mut(token)
        else {
            return false;
        };
        self.changed.push(token);
        !std::mem::replace(&mut connection.detached, true)
    }

    /// All that was received has been shown in an earlier wait, and its answers are carried out.
    pub(super) fn say_detached(&mut self, token: Token, done: &mut Vec<Completion>) {
        if let Some(Endpoint {
            kind: Kind::Connection(connection),
            ..
        }) = self.endpoints.get(token)
            && !connection.failed
        {
            done.push(Completion::Detached { connection: token });
        }
    }

    /// Takes a connection that is detached out of the table, with all that its peer is owed.
    pub(super) fn take_out(&mut self, token: Token) -> Option<Detached<OwnedFd>> {
        let Some(Endpoint {
            kind: Kind::Connection(connection),
            ..
        }) = self.endpoints.get_mut(token)
        else {
            return None;
        };
        if !connection.detached || connection.failed {
            return None;
        }
        // What was submitted since it was said is owed like the rest.
        for op in self.ops.extract_if(.., |op| op.is_send_on(token)) {
            if let Op::Send { buffer, .. } = op {
                self.buffers.push(&mut connection.unsent, buffer);
            }
        }
        let unsent = connection.take_unsent(&mut self.buffers, &mut self.pipes);
        let Endpoint { fd, told, .. } = self.endpoints.remove(token)?;
        debug_assert_eq!(
            told,
            Wish::Nothing,
            "the kernel was told with the same wait"
        );
        Some(Detached { socket: fd, unsent })
    }

    pub(super) fn fail(&mut self, token: Token, error: io::Error, done: &mut Vec<Completion>) {
        let Some(Endpoint {
            kind: Kind::Connection(connection),
            takes,
            ..
        }) = self.endpoints.get_mut(token)
        else {
            return;
        };
        connection.discard(&mut self.buffers, &mut self.pipes);
        connection.silent = true;
        connection.failed = true;
        *takes = false;
        self.changed.push(token);
        done.push(Completion::Failed {
            connection: token,
            error,
        });
    }

    pub(super) fn allow_relaying(&mut self, token: Token, allowed: bool) {
        if let Some(Endpoint {
            kind: Kind::Connection(connection),
            ..
        }) = self.endpoints.get_mut(token)
        {
            connection.relay.allow(allowed);
        }
    }

    /// Takes bytes and gives them back, unseen. Whether that is all for now; if not, they are to be
    /// received.
    fn relay(&mut self, token: Token, done: &mut Vec<Completion>) -> bool {
        let Some(Endpoint {
            fd,
            kind: Kind::Connection(connection),
            ..
        }) = self.endpoints.get_mut(token)
        else {
            return true;
        };
        if !connection.relay.is_due() {
            return false;
        }
        let received = match connection.relay.take(fd.as_fd(), &mut self.pipes) {
            Taken::Bytes(received) => received,
            Taken::Nothing => return true,
            Taken::End => {
                self.end(token, done);
                return true;
            }
            Taken::Copy => return false,
            Taken::Failed(errno) => {
                self.fail(token, errno.into(), done);
                return true;
            }
        };
        self.received_bytes += received as usize;
        let given = connection.relay.give(fd.as_fd(), &mut self.pipes);
        done.push(Completion::Relayed {
            connection: token,
            received,
            sent: given.unwrap_or(0),
        });
        if let Err(errno) = given {
            self.fail(token, errno.into(), done);
        } else if connection.relay.holds() {
            done.push(Completion::Stalled { connection: token });
            self.changed.push(token);
        }
        true
    }

    fn end(&mut self, token: Token, done: &mut Vec<Completion>) {
        if let Some(Endpoint {
            takes,
            kind: Kind::Connection(connection),
            ..
        }) = self.endpoints.get_mut(token)
        {
            *takes = false;
            connection.ended = true;
            self.changed.push(token);
            done.push(Completion::Ended { connection: token });
        }
    }

    /// Receives what is there, as far as it fits; with a warning there may be more in any case.
    pub(super) fn receive(&mut self, token: Token, warned: bool, done: &mut Vec<Completion>) {
        if self.relay(token, done) {
            return;
        }
        let Self {
            endpoints, buffers, ..
        } = self;
        let Some(Endpoint {
            fd,
            kind: Kind::Connection(connection),
            ..
        }) = endpoints.get_mut(token)
        else {
            return;
        };
        let Some((_, memory)) = buffers.peek() else {
            self.starve(token);
            return;
        };
        match recv(fd.as_raw_fd(), memory, MsgFlags::empty()) {
            Ok(0) => self.end(token, done),
            Ok(len) => {
                connection.relay.handle_received(len);
                let may_have_more = warned || len == BUFFER_BYTES || connection.relay.is_due();
                if connection.once && may_have_more {
                    connection.once = false;
                    self.changed.push(token);
                }
                self.received_bytes += len;
                let buffer = self.buffers.lease(len);
                done.push(Completion::Received {
                    connection: token,
                    buffer,
                });
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(errno) => self.fail(token, errno.into(), done),
        }
    }

    /// An error or hang-up on a connection of which nothing was asked.
    pub(super) fn hang_up(&mut self, token: Token, done: &mut Vec<Completion>) {
        let Some(Endpoint {
            fd,
            kind: Kind::Connection(connection),
            ..
        }) = self.endpoints.get_mut(token)
        else {
            return;
        };
        if let Some(error) = socket::take_error(fd.as_fd()) {
            self.fail(token, error, done);
        } else {
            // Both sides have finished, and there may be bytes left to read: later, when asked.
            connection.silent = true;
            self.changed.push(token);
        }
    }
}

/// Moves the rest of a stalled send into memory of its own, of just its size, when buffers are
/// scarce: peers that do not read must not starve those that do.
fn spill_if_scarce(buffers: &mut Buffers, connection: &mut Connection) {
    if connection.spilled.is_some() || !buffers.scarce() || !connection.unsent.holds_one() {
        return;
    }
    let buffer = buffers
        .pop(&mut connection.unsent)
        .expect("the queue holds one");
    connection.spilled = Some(Box::new(buffers.bytes(&buffer).into()));
    buffers.recycle(buffer);
}

fn finish_writing(fd: BorrowedFd<'_>) {
    // Fails only when the peer is gone already, which the next receive will say.
    let _ = shutdown(fd.as_raw_fd(), Shutdown::Write);
}
