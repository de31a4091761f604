//! One stream connection, as far as it is the same for every driver over real sockets: what is
//! unsent, what is relayed, and what follows from that.
//!
//! Makes the calls that move bytes (`send(2)`, `recv(2)`, `splice(2)`) and reports what they did;
//! never waits. [`Connection::may_receive`] and [`Connection::is_stalled`] say which readiness it
//! needs next; how that is learned is the driver's part.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};

use super::buffers::{BUFFER_BYTES, Buffers, Memory};
use super::pipes::Pipes;
use super::relay::Relay;
use super::unsent::{RECEIVE_BELOW, Unsent};
use super::{Buffer, Completion, Token};

/// See the module. Small: most connections are idle.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) relay: Relay,
    pub(super) unsent: Unsent,
    /// The kernel has no room, and `Stalled` was reported; what is unsent waits for room.
    stalled: bool,
    /// `Ended` was reported.
    ended: bool,
    /// How much is unsent does not matter: what is sent answers nothing that is received.
    receives_always: bool,
    write_side: WriteSide,
}

/// The side of the connection that sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteSide {
    Open,
    /// To be shut down once nothing is unsent.
    ToShutDown,
    ShutDown,
}

/// What an attempt to receive has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reception {
    /// `len` bytes in a buffer. When `filled`, the socket may have more.
    Received { len: usize, filled: bool },
    /// Bytes that were relayed.
    Relayed(usize),
    /// Nothing is there yet.
    Nothing,
    /// The peer has half-closed.
    Ended,
    /// No buffer is free.
    Starved,
}

impl Connection {
    /// A connection on which these bytes are unsent since an earlier driver, which has reported
    /// that they are stalled.
    pub(super) fn new(unsent: Vec<u8>) -> Self {
        let unsent = Unsent::of(unsent);
        Self {
            relay: Relay::new(),
            stalled: !unsent.is_empty(),
            unsent,
            ended: false,
            receives_always: false,
            write_side: WriteSide::Open,
        }
    }

    /// Whether there is something to send, or to relay.
    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty() || self.relay.holds()
    }

    /// Whether what is unsent waits for room in the socket.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// From now on it may be received from however much is unsent.
    pub(super) fn receive_always(&mut self) {
        self.receives_always = true;
    }

    /// Whether it is received from however much is unsent.
    pub(super) fn receives_always(&self) -> bool {
        self.receives_always
    }

    /// Whether there is room for what a receive would bring. What was delivered goes back before
    /// anything is relayed.
    pub(super) fn may_receive(&self) -> bool {
        !self.ended
            && !self.relay.holds()
            && (self.receives_always || self.unsent.bytes() <= RECEIVE_BELOW)
            && (self.unsent.is_empty() || !self.relay.is_due())
    }

    /// Takes a buffer to be sent.
    pub(super) fn queue(&mut self, memory: &mut impl Memory, buffer: Buffer) {
        self.unsent.push(memory, buffer);
        // Behind a send that waits, it would keep its buffer for as long as the peer likes.
        if self.stalled && memory.is_scarce() {
            self.unsent.spill(memory);
        }
    }

    /// Sends what is unsent, as far as there is room, and reports it.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(super) fn flush(
        &mut self,
        fd: BorrowedFd<'_>,
        memory: &mut impl Memory,
        pipes: &mut Pipes,
        token: Token,
        done: &mut Vec<Completion>,
    ) -> Result<(), Errno> {
        // Nothing is received while anything is unsent, so what the pipe holds came before all
        // that is queued.
        if self.relay.holds() {
            let sent = self.relay.give(fd, pipes)?;
            if sent > 0 {
                done.push(Completion::Relayed {
                    connection: token,
                    received: 0,
                    sent,
                });
            }
            if self.relay.holds() {
                return Ok(());
            }
        }
        while let Some(bytes) = self.unsent.front(memory) {
            let len = bytes.len();
            match send(fd.as_raw_fd(), bytes, send_flags()) {
                Ok(sent) => {
                    self.handle_sent(memory, sent as u32, token, done);
                    if sent < len {
                        self.stall(memory, token, done);
                        return Ok(());
                    }
                }
                Err(Errno::EAGAIN) => {
                    self.stall(memory, token, done);
                    return Ok(());
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        self.stalled = false;
        Ok(())
    }

    /// The kernel has taken `len` bytes of the first piece.
    pub(super) fn handle_sent(
        &mut self,
        memory: &mut impl Memory,
        len: u32,
        token: Token,
        done: &mut Vec<Completion>,
    ) {
        if let Some(len) = self.unsent.handle_sent(memory, len) {
            done.push(Completion::Sent {
                connection: token,
                len,
            });
        }
    }

    /// The kernel has no room for what is unsent.
    pub(super) fn stall(
        &mut self,
        memory: &mut impl Memory,
        token: Token,
        done: &mut Vec<Completion>,
    ) {
        if !std::mem::replace(&mut self.stalled, true) {
            done.push(Completion::Stalled { connection: token });
        }
        if memory.is_scarce() {
            self.unsent.spill(memory);
        }
    }

    /// Takes what has arrived, relays it or leases a buffer for it, and reports it.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(super) fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        buffers: &mut Buffers,
        pipes: &mut Pipes,
        token: Token,
        done: &mut Vec<Completion>,
    ) -> Result<Reception, Errno> {
        // A splice that brings nothing decides nothing: it also stops in front of urgent data.
        if self.relay.is_due()
            && let Some(received) = self.relay.take(fd, pipes)?
        {
            let given = self.relay.give(fd, pipes);
            done.push(Completion::Relayed {
                connection: token,
                received,
                sent: given.unwrap_or(0),
            });
            given?;
            if self.relay.holds() {
                self.stalled = true;
                done.push(Completion::Stalled { connection: token });
            }
            return Ok(Reception::Relayed(received as usize));
        }
        // What is received is likely to be sent back, and no more than the maximum may be unsent.
        let room = match self.receives_always {
            true => BUFFER_BYTES,
            false => self.unsent.room(),
        };
        let Some((_, memory)) = buffers.peek() else {
            return Ok(Reception::Starved);
        };
        let most = memory.len().min(room);
        match recv(fd.as_raw_fd(), &mut memory[..most], MsgFlags::MSG_DONTWAIT) {
            Ok(0) => {
                self.handle_end(token, done);
                Ok(Reception::Ended)
            }
            Ok(len) => {
                self.relay.handle_received(len);
                done.push(Completion::Received {
                    connection: token,
                    buffer: buffers.lease(len),
                });
                let filled = len == most;
                Ok(Reception::Received { len, filled })
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Reception::Nothing),
            Err(errno) => Err(errno),
        }
    }

    /// The peer has half-closed.
    pub(super) fn handle_end(&mut self, token: Token, done: &mut Vec<Completion>) {
        self.ended = true;
        done.push(Completion::Ended { connection: token });
    }

    /// The write side is to be shut down behind what is unsent.
    pub(super) fn request_shut_down(&mut self) {
        if self.write_side == WriteSide::Open {
            self.write_side = WriteSide::ToShutDown;
        }
    }

    /// Whether the write side is to be shut down now.
    pub(super) fn shut_down_is_due(&self) -> bool {
        self.write_side == WriteSide::ToShutDown && !self.has_unsent()
    }

    /// Shuts the write side down, if that is due.
    pub(super) fn shut_down_if_due(&mut self, fd: BorrowedFd<'_>) {
        if self.shut_down_is_due() {
            self.write_side = WriteSide::ShutDown;
            // It fails only when the peer is gone already, which the next receive reports.
            let _ = shutdown(fd.as_raw_fd(), Shutdown::Write);
        }
    }

    /// Returns buffers and pipe to their pools. Not while the kernel has a request to send.
    pub(super) fn discard(&mut self, memory: &mut impl Memory, pipes: &mut Pipes) {
        self.relay.discard(pipes);
        self.unsent.clear(memory);
        self.stalled = false;
    }

    /// Takes everything unsent out, in order.
    pub(super) fn take_unsent(&mut self, memory: &mut impl Memory, pipes: &mut Pipes) -> Vec<u8> {
        let mut unsent = self.relay.read(pipes);
        unsent.extend(self.unsent.take(memory));
        unsent
    }
}

/// A send never blocks and never raises SIGPIPE.
pub(super) fn send_flags() -> MsgFlags {
    MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL
}
