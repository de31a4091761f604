//! Datagrams: what a worker does when some have come, or gone back.
//!
//! A buffer holds one, or several of one sender: they are treated as one and counted one by one.

use std::io;
use std::time::Instant;

use crate::driver::{Buffer, Details, Driver, Envelope, Op, Source, Token};
use crate::echo::datagram::{Arrival, Unanswerable};
use crate::echo::{self, Answer};
use crate::policy::Refusal;

use super::mailbox::{Hit, Kind, ListenerId, Peer};
use super::sources::Entry;
use super::{Listener, Place, Tenant, Worker};

impl<D: Driver> Worker<D> {
    pub(super) fn datagrams(&mut self, now: Instant, socket: Token, buffer: Buffer) {
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
        let envelope = *self.driver.envelope(&buffer);
        let stored = buffer.len() as usize;
        let count = envelope.count(stored) as u64;
        // One that did not fit was received all the same.
        let bytes = envelope.size.max(stored) as u64;
        listener.counters.datagrams_received.add(count);
        listener.counters.bytes_received.add(bytes);
        if let Err(reason) = admit(listener, &envelope) {
            listener.refuse_all(reason, count);
            self.driver.recycle(buffer);
            return;
        }
        let arrival = Arrival {
            size: envelope.size,
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
        source.bytes_received += bytes;

        match answer {
            Ok(Answer::Send) => {
                source.bytes_sent += bytes;
                self.driver.submit(Op::SendTo { socket, buffer });
                return;
            }
            Ok(Answer::Drop) => {}
            Err(Unanswerable::Oversize) => listener.refuse_all(Refusal::Oversize, count),
            Err(Unanswerable::NoAddress) => listener.refuse_all(Refusal::NoAddress, count),
        }
        self.driver.recycle(buffer);
    }

    /// No send error is fatal: the peer may be gone, or slow, or behind a firewall.
    pub(super) fn datagram_sent(&mut self, socket: Token, count: u32, result: &io::Result<u32>) {
        let Some((_, listener, _)) = self.place(socket) else {
            return;
        };
        match result {
            Ok(bytes) => {
                listener.counters.datagrams_sent.add(count.into());
                listener.counters.bytes_sent.add((*bytes).into());
            }
            Err(error) => {
                listener.counters.unsent.add(count.into());
                log::debug!(
                    listener = &*listener.settings.name;
                    "listener \"{}\": {count} answers not sent: {error}",
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
    let Source::Inet(source) = &envelope.source else {
        return Ok(());
    };
    if !listener.settings.access.permits(source.ip()) {
        return Err(Refusal::Denied);
    }
    // Were it answered, two daemons like this one on such a port would go on for ever after one
    // datagram to the first that seems to come from the second.
    if listener.settings.source_ports.refuses(source.port()) {
        return Err(Refusal::SourcePort);
    }
    Ok(())
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
