//! Streams over epoll: one receive, one send, and what happens when the peer is slow or gone.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::epoll::EpollFlags;
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
    // Of what is apart, or else of the first buffer in `unsent`.
    sent: u32,
    // What goes before `unsent` and is in no buffer.
    // Boxed: hardly anybody has it, and everybody has room for it.
    apart: Option<Box<Apart>>,
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

/// Bytes of a stalled send that are in no buffer.
#[derive(Debug)]
enum Apart {
    /// They were moved out of it when buffers were scarce, or an earlier driver owed them.
    Spilled(Box<[u8]>),
    /// They never were in one. None: the box is kept for the next of them, for to make one for each
    /// would be to allocate on the path of a message.
    Static(&'static [u8]),
}

impl Apart {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Spilled(bytes) => bytes,
            Self::Static(bytes) => bytes,
        }
    }
}

impl Connection {
    /// Over TCP, or a Unix socket, where a read ends where a peer has passed descriptors.
    pub(super) fn new(tcp: bool) -> Self {
        Self {
            relay: Relay::new(),
            unsent: Queue::new(),
            sent: 0,
            apart: None,
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
            self.apart = Some(Box::new(Apart::Spilled(unsent.into())));
        }
    }

    pub(super) fn stalled(&self) -> bool {
        self.relay.holds() || !self.unsent.is_empty() || self.has_apart()
    }

    /// Whether it is read although something waits to be sent: that is no answer.
    pub(super) fn reads_on(&self) -> bool {
        let is_static = matches!(self.apart.as_deref(), Some(Apart::Static(_)));
        is_static && self.has_apart() && !self.relay.holds() && !self.relay.is_due()
    }

    fn has_apart(&self) -> bool {
        let apart = self.apart.as_deref();
        apart.is_some_and(|apart| !apart.bytes().is_empty())
    }

    /// These bytes wait to be sent, and nothing else does.
    fn put_apart(&mut self, bytes: &'static [u8]) {
        let is_alone = self.unsent.is_empty() && !self.has_apart();
        assert!(is_alone, "static bytes are sent when nothing else waits");
        match &mut self.apart {
            Some(apart) => **apart = Apart::Static(bytes),
            None => self.apart = Some(Box::new(Apart::Static(bytes))),
        }
    }

    /// What is apart no longer waits. Whether there was anything.
    fn clear_apart(&mut self) -> bool {
        if let Some(Apart::Static(bytes)) = self.apart.as_deref_mut() {
            return !std::mem::take(bytes).is_empty();
        }
        self.apart.take().is_some()
    }

    /// Forgets all that is yet to be sent.
    pub(super) fn discard(&mut self, buffers: &mut Buffers, pipes: &mut Pipes) {
        self.relay.discard(pipes);
        buffers.clear(&mut self.unsent);
        self.apart = None;
    }

    /// Takes all that is yet to be sent, in its order.
    fn take_unsent(&mut self, buffers: &mut Buffers, pipes: &mut Pipes) -> Vec<u8> {
        let mut unsent = self.relay.read(pipes);
        // Of the first piece, whichever it is, a part is sent.
        let mut sent = std::mem::take(&mut self.sent) as usize;
        if self.has_apart()
            && let Some(apart) = self.apart.take()
        {
            unsent.extend(&apart.bytes()[std::mem::take(&mut sent)..]);
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
        // One that is only silent may have lost its peer unheard; then the send says so.
        if connection.failed {
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

    /// Sends bytes that need no buffer.
    pub(super) fn send_static(
        &mut self,
        token: Token,
        bytes: &'static [u8],
        done: &mut Vec<Completion>,
    ) {
        debug_assert!(!bytes.is_empty(), "something is to be sent");
        let Some(Endpoint {
            fd,
            kind: Kind::Connection(connection),
            ..
        }) = self.endpoints.get_mut(token)
        else {
            return;
        };
        if connection.failed {
            return;
        }
        if connection.stalled() || connection.detached {
            connection.put_apart(bytes);
            return;
        }
        match send(fd.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
            Ok(sent) if sent == bytes.len() => done.push(Completion::Sent {
                connection: token,
                len: sent as u32,
            }),
            Err(errno) if errno != Errno::EAGAIN => self.fail(token, errno.into(), done),
            partly => {
                connection.sent = partly.unwrap_or(0) as u32;
                connection.put_apart(bytes);
                done.push(Completion::Stalled { connection: token });
                self.changed.push(token);
            }
        }
    }

    /// Goes on in both directions, where what is sent is no answer to what is received.
    pub(super) fn receive_and_flush(
        &mut self,
        token: Token,
        events: EpollFlags,
        done: &mut Vec<Completion>,
    ) {
        let broken = EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
        if events.intersects(EpollFlags::EPOLLIN | broken) {
            self.receive(token, false, done);
        }
        // A failure has discarded what was to be sent.
        if events.intersects(EpollFlags::EPOLLOUT | broken)
            && let Some(Endpoint {
                kind: Kind::Connection(connection),
                ..
            }) = self.endpoints.get(token)
            && connection.stalled()
        {
            self.flush(token, done);
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
            let apart = connection.apart.as_deref().map(Apart::bytes);
            let apart = apart.filter(|bytes| !bytes.is_empty());
            let Some(bytes) = apart.or_else(|| Some(&*buffers.front(&connection.unsent)?.1)) else {
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
                    if !connection.clear_apart() {
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
            match op {
                Op::Send { buffer, .. } => self.buffers.push(&mut connection.unsent, buffer),
                Op::SendStatic { bytes, .. } => connection.put_apart(bytes),
                _ => {}
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
    if connection.has_apart() || !buffers.scarce() || !connection.unsent.holds_one() {
        return;
    }
    let buffer = buffers
        .pop(&mut connection.unsent)
        .expect("the queue holds one");
    let bytes = buffers.bytes(&buffer).into();
    connection.apart = Some(Box::new(Apart::Spilled(bytes)));
    buffers.recycle(buffer);
}

fn finish_writing(fd: BorrowedFd<'_>) {
    // Fails only when the peer is gone already, which the next receive will say.
    let _ = shutdown(fd.as_raw_fd(), Shutdown::Write);
}
