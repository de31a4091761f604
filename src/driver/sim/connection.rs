//! One connection of the simulated driver: its sends, its pipe, its receives.
//!
//! It moves bytes between the driver's buffers and the simulated network, and appends completions.
//! Which connection is served, and when, is decided in `sim`.

use std::collections::VecDeque;

use super::network::{Peer, World};
use crate::driver::buffers::{Buffers, Memory};
use crate::driver::pipes::PIPE_BYTES;
use crate::driver::unsent;
use crate::driver::{Buffer, Completion, Token};

const RECEIVE_BELOW: usize = unsent::RECEIVE_BELOW as usize;
const UNSENT_BYTES_MAX: usize = unsent::UNSENT_BYTES_MAX as usize;

pub(super) struct Connection {
    pub(super) peer: Peer,
    /// The user has allowed relaying (`Op::Relay`).
    pub(super) relay_allowed: bool,
    /// However much is unsent (`Op::ReceiveAlways`).
    pub(super) receives_always: bool,
    pub(super) outgoing: VecDeque<Outgoing>,
    /// `Accepted` has been reported, so that other completions may follow.
    pub(super) accept_reported: bool,
    pub(super) shut_down: bool,
    pub(super) ended: bool,
    pub(super) failed: bool,
    /// `Detach` was submitted: nothing more is received or sent.
    pub(super) detaching: bool,
}

/// A `Send` in progress, or the contents of a pipe.
pub(super) struct Outgoing {
    bytes: Bytes,
    len: usize,
    written: usize,
    stall_reported: bool,
}

enum Bytes {
    Leased(Buffer),
    /// Relayed bytes that are in a pipe.
    Piped(Vec<u8>),
    /// Copied out of a buffer, which was returned to the pool.
    Copied(Vec<u8>),
}

impl Connection {
    pub(super) fn new(peer: Peer) -> Self {
        Self {
            peer,
            relay_allowed: false,
            receives_always: false,
            outgoing: VecDeque::new(),
            accept_reported: false,
            shut_down: false,
            ended: false,
            failed: false,
            detaching: false,
        }
    }

    /// Queues bytes that an earlier driver left unsent. Their stall was reported there (promise
    /// 19).
    pub(super) fn add_unsent(&mut self, unsent: Vec<u8>) {
        if !unsent.is_empty() {
            self.outgoing.push_back(Outgoing {
                len: unsent.len(),
                bytes: Bytes::Copied(unsent),
                written: 0,
                stall_reported: true,
            });
        }
    }

    /// Sends queued bytes in order until the peer's window is full, and reports what was sent.
    pub(super) fn send(
        &mut self,
        token: Token,
        ready: &mut VecDeque<Completion>,
        world: &mut World,
        buffers: &mut Buffers,
    ) {
        while let Some(send) = self.outgoing.front_mut() {
            let bytes = send.bytes(buffers);
            let taken = world.send(self.peer, &bytes[send.written..]);
            send.written += taken;
            let piped = matches!(send.bytes, Bytes::Piped(_));
            // Relayed bytes are reported as they are sent, a `Send` only when all of it is.
            if piped && taken > 0 {
                ready.push_back(Completion::Relayed {
                    connection: token,
                    received: 0,
                    sent: taken as u32,
                });
            }
            if send.written < send.len {
                if !send.stall_reported {
                    send.stall_reported = true;
                    ready.push_back(Completion::Stalled { connection: token });
                }
                break;
            }
            if !piped {
                ready.push_back(Completion::Sent {
                    connection: token,
                    len: send.len as u32,
                });
            }
            self.outgoing
                .pop_front()
                .expect("the send just completed is at the front")
                .return_buffer(buffers);
        }
        // A stalled connection must not keep buffers that others need to receive into.
        if buffers.is_scarce() {
            self.outgoing
                .iter_mut()
                .for_each(|send| send.copy_out(buffers));
        }
        // A `ShutDown` waits for the sends before it.
        if self.shut_down && self.outgoing.is_empty() {
            world.send_fin(self.peer);
        }
    }

    /// The number of bytes that are queued and not yet sent.
    fn unsent(&self) -> usize {
        self.outgoing
            .iter()
            .map(|send| send.len - send.written)
            .sum()
    }

    fn pipe_holds(&self) -> bool {
        let front = self.outgoing.front();
        front.is_some_and(|send| matches!(send.bytes, Bytes::Piped(_)))
    }

    /// Receives once, unless too much is unsent: reports bytes, relayed bytes, or the peer's end.
    pub(super) fn receive(
        &mut self,
        token: Token,
        ready: &mut VecDeque<Completion>,
        world: &mut World,
        buffers: &mut Buffers,
    ) {
        let is_full = self.unsent() > RECEIVE_BELOW && !self.receives_always;
        if is_full || self.pipe_holds() {
            return;
        }
        let room = match self.receives_always {
            true => usize::MAX,
            false => UNSENT_BYTES_MAX - self.unsent(),
        };
        if world.end_is_due(self.peer) {
            self.ended = true;
            ready.push_back(Completion::Ended { connection: token });
            return;
        }
        let len = world.bytes_due(self.peer);
        if len > 0 && self.may_relay(ready) && world.chance(|faults| faults.relay) {
            self.relay(token, len, ready, world);
            return;
        }
        if len == 0 || world.delays(|faults| faults.famine) {
            return;
        }
        // Without a free buffer the bytes stay on the network until one is returned.
        let Some((_, memory)) = buffers.peek() else {
            return;
        };
        let mut len = len.min(memory.len()).min(room);
        if world.chance(|faults| faults.split_read) {
            len = 1 + world.random.below(len);
        }
        world.wires[self.peer.0].take_bytes(&mut memory[..len]);
        let buffer = buffers.lease(len);
        ready.push_back(Completion::Received {
            connection: token,
            buffer,
        });
    }

    /// Relayed bytes would overtake sends that are queued, and the answers to bytes that were
    /// delivered in this turn: there must be neither.
    fn may_relay(&self, ready: &VecDeque<Completion>) -> bool {
        let is_received =
            |completion: &Completion| matches!(completion, Completion::Received { .. });
        self.relay_allowed && self.outgoing.is_empty() && !ready.iter().any(is_received)
    }

    /// Sends arrived bytes back; what the window does not take stays in a pipe.
    fn relay(
        &mut self,
        token: Token,
        due: usize,
        ready: &mut VecDeque<Completion>,
        world: &mut World,
    ) {
        let mut bytes = vec![0; due.min(PIPE_BYTES)];
        if world.chance(|faults| faults.split_read) {
            bytes.truncate(1 + world.random.below(bytes.len()));
        }
        world.wires[self.peer.0].take_bytes(&mut bytes);
        let written = world.send(self.peer, &bytes);
        ready.push_back(Completion::Relayed {
            connection: token,
            received: bytes.len() as u32,
            sent: written as u32,
        });
        if written < bytes.len() {
            ready.push_back(Completion::Stalled { connection: token });
            self.outgoing.push_back(Outgoing {
                len: bytes.len(),
                bytes: Bytes::Piped(bytes),
                written,
                stall_reported: true,
            });
        }
    }

    /// Takes all unsent bytes, in order, and returns the buffers to the pool.
    pub(super) fn take_outgoing(&mut self, buffers: &mut Buffers) -> Vec<u8> {
        let mut unsent = vec![];
        for send in self.outgoing.drain(..) {
            unsent.extend(&send.bytes(buffers)[send.written..]);
            send.return_buffer(buffers);
        }
        unsent
    }

    pub(super) fn drop_outgoing(&mut self, buffers: &mut Buffers) {
        self.outgoing
            .drain(..)
            .for_each(|send| send.return_buffer(buffers));
    }
}

impl Outgoing {
    pub(super) fn new(buffer: Buffer) -> Self {
        let len = buffer.len as usize;
        Self {
            bytes: Bytes::Leased(buffer),
            len,
            written: 0,
            stall_reported: false,
        }
    }

    fn bytes<'a>(&'a self, buffers: &'a mut Buffers) -> &'a [u8] {
        match &self.bytes {
            Bytes::Leased(buffer) => buffers.bytes(buffer),
            Bytes::Copied(bytes) | Bytes::Piped(bytes) => bytes,
        }
    }

    /// Moves the bytes out of a leased buffer and returns it to the pool.
    fn copy_out(&mut self, buffers: &mut Buffers) {
        if let Bytes::Leased(buffer) = &self.bytes {
            let copy = Bytes::Copied(buffers.bytes(buffer).to_vec());
            if let Bytes::Leased(buffer) = std::mem::replace(&mut self.bytes, copy) {
                buffers.recycle(buffer);
            }
        }
    }

    fn return_buffer(self, buffers: &mut Buffers) {
        if let Bytes::Leased(buffer) = self.bytes {
            buffers.recycle(buffer);
        }
    }
}
