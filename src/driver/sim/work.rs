//! What the simulated kernel does for each endpoint in a turn: it accepts, sends and receives, a
//! bounded number of times, and queues completions.
//!
//! Never reports a completion; when each is reported is decided in [`Sim::deliver`].

use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use super::connection::Connection;
use super::{Resource, Sim};
use crate::driver::buffers::Memory;
use crate::driver::{Completion, Envelope, Source};
use crate::sys::message::Local;

/// How many clients or buffers one listener, connection or socket is served in one turn.
const ROUNDS_PER_TURN: usize = 4;

impl Sim {
    /// Accepts, sends and receives on every slot, a bounded number of times each.
    pub(super) fn work(&mut self) {
        let count = self.slots.len();
        // Start at a random slot: when buffers are scarce, the first ones served get them.
        let first = self.world.borrow_mut().random.below(count.max(1));
        for index in (first..count).chain(0..first) {
            match self.slots[index].resource {
                Resource::None => {}
                Resource::Listener { .. } => self.accept(index),
                Resource::Connection(_) => self.move_bytes(index),
                Resource::Datagrams { .. } => self.move_datagrams(index),
            }
        }
    }

    /// Accepts a listener's queued clients. A permit is taken before a client leaves the queue, so
    /// that no client is lost when there is none.
    fn accept(&mut self, index: usize) {
        let slot = &self.slots[index];
        let Resource::Listener { socket, permits } = &slot.resource else {
            return;
        };
        let (listener, draining, socket, permits) =
            (slot.token, slot.draining, *socket, permits.clone());
        let shared = Rc::clone(&self.world);
        let mut world = shared.borrow_mut();
        for _ in 0..ROUNDS_PER_TURN {
            if !self.slots[index].active {
                return;
            }
            if self.slots[index].draining == Some(0) {
                break;
            }
            let Some(peer) = world.next_in_queue(socket) else {
                break;
            };
            let failure = match &permits {
                _ if world.chance(|faults| faults.accept_error) => {
                    Some(Some(io::Error::from_raw_os_error(libc::EMFILE)))
                }
                // A draining listener accepts its queue with or without permits (promise 9).
                Some(permits) if draining.is_some() => {
                    permits.take_regardless();
                    None
                }
                Some(permits) => (!permits.take_or_be_woken()).then_some(None),
                None => None,
            };
            if let Some(error) = failure {
                let slot = &mut self.slots[index];
                slot.active = false;
                slot.ready
                    .push_back(Completion::AcceptPaused { listener, error });
                return;
            }
            world.pop_queue(socket);
            self.slots[index].count_drained(1);
            let connection = self.allocate(Resource::Connection(Connection::new(peer)));
            let peer = Some(world.wires[peer.0].address);
            self.slots[index].ready.push_back(Completion::Accepted {
                listener,
                connection,
                peer,
                has_permit: permits.is_some(),
            });
        }
        if is_drained(self.slots[index].draining, &world.sockets[socket.0].queue) {
            world.close_socket(socket);
            let slot = &mut self.slots[index];
            slot.resource = Resource::None;
            slot.ready.push_back(Completion::Closed { token: listener });
        }
    }

    /// Serves one connection: detaches it, reports its failure, or sends and then receives.
    fn move_bytes(&mut self, index: usize) {
        let shared = Rc::clone(&self.world);
        let mut world = shared.borrow_mut();
        let slot = &mut self.slots[index];
        let Resource::Connection(connection) = &mut slot.resource else {
            return;
        };
        if connection.failed || !connection.accept_reported {
            return;
        }
        if connection.detaching {
            // `Detached` may not share a wait with bytes that were taken before it (promise 18). No
            // completion is pending, so they were all reported in an earlier wait.
            if slot.ready.is_empty() && !slot.detached {
                slot.ready.push_back(Completion::Detached {
                    connection: slot.token,
                });
            }
            return;
        }
        // The sends of a failed connection complete with this one `Failed` (promise 2).
        if let Some(errno) = world.failure_seen(connection.peer) {
            connection.failed = true;
            connection.drop_outgoing(&mut self.buffers);
            slot.active = false;
            let error = io::Error::from_raw_os_error(errno);
            slot.ready.push_back(Completion::Failed {
                connection: slot.token,
                error,
            });
            return;
        }
        connection.send(slot.token, &mut slot.ready, &mut world, &mut self.buffers);
        for _ in 0..ROUNDS_PER_TURN {
            if slot.active && !connection.ended {
                connection.receive(slot.token, &mut slot.ready, &mut world, &mut self.buffers);
            }
        }
    }

    /// Sends the datagrams of every submitted buffer. Those that were sent are reported together,
    /// each one that failed by itself.
    pub(super) fn send_answers(&mut self, index: usize) {
        let mut world = self.world.borrow_mut();
        let slot = &mut self.slots[index];
        let Resource::Datagrams {
            socket: id,
            outgoing,
        } = &mut slot.resource
        else {
            return;
        };
        let (socket, id) = (slot.token, *id);
        while let Some(buffer) = outgoing.pop_front() {
            // An error concerns one datagram: those behind it in the buffer are still sent.
            let envelope = &self.envelopes[usize::from(buffer.index)];
            let bytes = self.buffers.bytes(&buffer);
            let (mut count, mut sent) = (0, 0);
            for datagram in datagrams(bytes, envelope.size) {
                match world.deliver_reply(id, envelope, datagram) {
                    Ok(()) => {
                        count += 1;
                        sent += datagram.len() as u32;
                    }
                    Err(error) => slot.ready.push_back(Completion::DatagramSent {
                        socket,
                        count: 1,
                        result: Err(error),
                    }),
                }
            }
            self.buffers.recycle(buffer);
            if count > 0 {
                slot.ready.push_back(Completion::DatagramSent {
                    socket,
                    count,
                    result: Ok(sent),
                });
            }
        }
    }

    /// Serves one datagram socket: closes it when it is drained, or sends and then receives.
    fn move_datagrams(&mut self, index: usize) {
        let shared = Rc::clone(&self.world);
        let mut world = shared.borrow_mut();
        let slot = &mut self.slots[index];
        let Resource::Datagrams {
            socket: id,
            outgoing,
        } = &mut slot.resource
        else {
            return;
        };
        let (socket, id) = (slot.token, *id);
        // Nothing is unreported, so datagrams that were received were reported in an earlier wait
        // and the user has had a turn to answer them.
        if outgoing.is_empty()
            && slot.ready.is_empty()
            && is_drained(slot.draining, &world.sockets[id.0].inbox)
        {
            world.close_socket(id);
            slot.resource = Resource::None;
            slot.ready.push_back(Completion::Closed { token: socket });
            return;
        }
        drop(world);
        self.send_answers(index);
        let mut world = shared.borrow_mut();
        let slot = &mut self.slots[index];
        for _ in 0..ROUNDS_PER_TURN {
            if !slot.active
                || slot.draining == Some(0)
                || !world.datagram_is_due(id)
                || world.delays(|faults| faults.famine)
            {
                return;
            }
            // Some buffers are reserved for streams (promise 6).
            if self.buffers.free_for_datagrams() == 0 {
                return;
            }
            let Some((index, memory)) = self.buffers.peek() else {
                return;
            };
            let before = world.queued(id);
            let mut batch = world.take_datagrams(id, memory.len());
            slot.count_drained(before - world.queued(id));
            let size = batch.size;
            batch.bytes.truncate(memory.len());
            memory[..batch.bytes.len()].copy_from_slice(&batch.bytes);
            let local = Some(Local {
                address: batch.to,
                interface: 0,
            });
            self.envelopes[usize::from(index)] = Envelope {
                source: Source::Inet(batch.from),
                local,
                unicast: true,
                size,
            };
            let buffer = self.buffers.lease(batch.bytes.len());
            slot.ready
                .push_back(Completion::Datagrams { socket, buffer });
        }
    }
}

/// Whether a socket that drains has served what was queued when the drain began.
fn is_drained<T>(draining: Option<usize>, queue: &VecDeque<T>) -> bool {
    draining.is_some_and(|left| left == 0 || queue.is_empty())
}

/// Cuts the bytes of a buffer into datagrams. No bytes are one empty datagram.
fn datagrams(bytes: &[u8], size: usize) -> impl Iterator<Item = &[u8]> {
    let empty = bytes.is_empty().then_some(bytes);
    empty.into_iter().chain(bytes.chunks(size.max(1)))
}
