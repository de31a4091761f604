//! Datagrams: what a worker does when one has come, or gone back.

use std::io;
use std::time::Instant;

use crate::driver::{self, Buffer, Details, Driver, Envelope, Op, Token};
use crate::echo::datagram::{Arrival, Unanswerable};
use crate::echo::{self, Answer};
use crate::policy::Refusal;

use super::mailbox::{Hit, Kind, ListenerId, Peer};
use super::sources::Entry;
use super::{Listener, Place, Tenant, Worker};

impl<D: Driver> Worker<D> {
    pub(super) fn datagram(&mut self, now: Instant, socket: Token, buffer: Buffer, len: usize) {
        let place = self.places.get(socket.slot as usize);
        let Some(&Place {
            listener,
            tenant: Tenant::Datagrams(id),
            ..
        }) = place.filter(|place| place.token == socket)
        else {
            self.driver.recycle(buffer);
            return;
        };
        let Some(listener) = self.listeners[listener as usize].as_mut() else {
            self.driver.recycle(buffer);
            return;
        };
        listener.counters.datagrams_received.add(1);
        listener.counters.bytes_received.add(len as u64);
        let envelope = *self.driver.envelope(&buffer);
        if let Err(reason) = admit(listener, &envelope) {
            listener.refuse(reason);
            self.driver.recycle(buffer);
            return;
        }
        let arrival = Arrival {
            len,
            has_address: envelope.source.has_address(),
        };
        let answer =
            echo::datagram::answer(listener.settings.reply, arrival, self.driver.bytes(&buffer));

        let hit = Hit {
            socket: id,
            address: envelope.local.map(|local| local.address),
        };
        let ids = &mut self.ids;
        let source = listener.sources.entry(&envelope.source, || Entry {
            id: ids.take(),
            source: envelope.source,
            hit,
            first: now,
            last: now,
            bytes_received: 0,
            bytes_sent: 0,
        });
        source.last = now;
        source.hit = hit;
        source.bytes_received += len as u64;

        match answer {
            Ok(Answer::Send) => {
                source.bytes_sent += len as u64;
                self.driver.submit(Op::SendTo { socket, buffer });
                return;
            }
            Ok(Answer::Drop) => {}
            Err(Unanswerable::Oversize) => listener.refuse(Refusal::Oversize),
            Err(Unanswerable::NoAddress) => listener.refuse(Refusal::NoAddress),
        }
        self.driver.recycle(buffer);
    }

    /// No send error is fatal: the peer may be gone, or slow, or behind a firewall.
    pub(super) fn datagram_sent(&mut self, socket: Token, result: &io::Result<u32>) {
        let Some((_, listener, _)) = self.place(socket) else {
            return;
        };
        match result {
            Ok(len) => {
                listener.counters.datagrams_sent.add(1);
                listener.counters.bytes_sent.add((*len).into());
            }
            Err(error) => {
                listener.counters.unsent.add(1);
                log::debug!(
                    "listener \"{}\": answer not sent: {error}",
                    listener.settings.name
                );
            }
        }
    }
}

fn admit(listener: &Listener, envelope: &Envelope) -> Result<(), Refusal> {
    if !envelope.unicast {
        return Err(Refusal::NotUnicast);
    }
    match driver::ip_of(&envelope.source) {
        Some(source) if !listener.settings.access.permits(source) => Err(Refusal::Denied),
        _ => Ok(()),
    }
}

pub(super) fn peer(now: Instant, listener: ListenerId, entry: &Entry) -> Peer {
    Peer {
        id: entry.id,
        listener,
        kind: Kind::Datagram,
        source: Some(entry.source),
        hit: Some(entry.hit),
        age: now - entry.first,
        idle: now - entry.last,
        bytes_received: entry.bytes_received,
        bytes_sent: entry.bytes_sent,
        details: Details::default(),
    }
}
