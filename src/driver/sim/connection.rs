//! One connection of the simulated driver: its sends, its pipe, its receives.

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
    /// What arrives may be returned unseen.
    pub(super) relays: bool,
    pub(super) outgoing: VecDeque<Outgoing>,
    /// The user has been told of it.
    pub(super) announced: bool,
    pub(super) shut_down: bool,
    pub(super) ended: bool,
    pub(super) failed: bool,
    /// It is to leave this driver: nothing more is received or sent.
    pub(super) detaching: bool,
}

/// A `Send` under way, or what a pipe holds.
pub(super) struct Outgoing {
    bytes: Bytes,
    len: usize,
    written: usize,
    stall_told: bool,
}

enum Bytes {
    Leased(Buffer),
    /// Relayed: in a pipe.
    Piped(Vec<u8>),
    /// Copied, so that the buffer could go home.
    Copied(Vec<u8>),
}

impl Connection {
    pub(super) fn new(peer: Peer) -> Self {
        Self {
            peer,
            relays: false,
            outgoing: VecDeque::new(),
            announced: false,
            shut_down: false,
            ended: false,
            failed: false,
            detaching: false,
        }
    }

    /// The peer is owed these bytes from an earlier driver.
    pub(super) fn owe(&mut self, unsent: Vec<u8>) {
        if !unsent.is_empty() {
            self.outgoing.push_back(Outgoing {
                len: unsent.len(),
                bytes: Bytes::Copied(unsent),
                written: 0,
                stall_told: true,
            });
        }
    }

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
            if piped && taken > 0 {
                ready.push_back(Completion::Relayed {
                    connection: token,
                    received: 0,
                    sent: taken as u32,
                });
            }
            if send.written < send.len {
                if !send.stall_told {
                    send.stall_told = true;
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
                .expect("it has just been sent")
                .go_home(buffers);
        }
        if buffers.is_scarce() {
            self.outgoing
                .iter_mut()
                .for_each(|send| send.copy_out(buffers));
        }
        if self.shut_down && self.outgoing.is_empty() {
            world.finish(self.peer);
        }
    }

    /// Bytes that are submitted and not sent.
    fn unsent(&self) -> usize {
        self.outgoing.iter().map(|send| send.len - send.written).sum()
    }

    fn pipe_holds(&self) -> bool {
        let front = self.outgoing.front();
        front.is_some_and(|send| matches!(send.bytes, Bytes::Piped(_)))
    }

    pub(super) fn receive(
        &mut self,
        token: Token,
        ready: &mut VecDeque<Completion>,
        world: &mut World,
        buffers: &mut Buffers,
    ) {
        if self.unsent() > RECEIVE_BELOW || self.pipe_holds() {
            return;
        }
        let room = UNSENT_BYTES_MAX - self.unsent();
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
        if len == 0 || world.withholds(|faults| faults.famine) {
            return;
        }
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

    /// Nothing may be overtaken: neither what waits to be sent, nor what has yet to be answered.
    fn may_relay(&self, ready: &VecDeque<Completion>) -> bool {
        let is_shown = |completion: &Completion| matches!(completion, Completion::Received { .. });
        self.relays && self.outgoing.is_empty() && !ready.iter().any(is_shown)
    }

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
                stall_told: true,
            });
        }
    }

    /// Takes all that is yet to be sent, in its order.
    pub(super) fn take_outgoing(&mut self, buffers: &mut Buffers) -> Vec<u8> {
        let mut unsent = vec![];
        for send in self.outgoing.drain(..) {
            unsent.extend(&send.bytes(buffers)[send.written..]);
            send.go_home(buffers);
        }
        unsent
    }

    pub(super) fn drop_outgoing(&mut self, buffers: &mut Buffers) {
        self.outgoing
            .drain(..)
            .for_each(|send| send.go_home(buffers));
    }
}

impl Outgoing {
    pub(super) fn new(buffer: Buffer) -> Self {
        let len = buffer.len as usize;
        Self {
            bytes: Bytes::Leased(buffer),
            len,
            written: 0,
            stall_told: false,
        }
    }

    fn bytes<'a>(&'a self, buffers: &'a mut Buffers) -> &'a [u8] {
        match &self.bytes {
            Bytes::Leased(buffer) => buffers.bytes(buffer),
            Bytes::Copied(bytes) | Bytes::Piped(bytes) => bytes,
        }
    }

    fn copy_out(&mut self, buffers: &mut Buffers) {
        if let Bytes::Leased(buffer) = &self.bytes {
            let copy = Bytes::Copied(buffers.bytes(buffer).to_vec());
            if let Bytes::Leased(buffer) = std::mem::replace(&mut self.bytes, copy) {
                buffers.recycle(buffer);
            }
        }
    }

    fn go_home(self, buffers: &mut Buffers) {
        if let Bytes::Leased(buffer) = self.bytes {
            buffers.recycle(buffer);
        }
    }
}
