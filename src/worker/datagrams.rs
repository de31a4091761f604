//! Datagrams: what a worker does when some arrive, and when their answers were sent.
//!
//! A buffer holds one datagram, or several from one source to one destination. They are admitted and
//! answered together, and counted one by one.

use std::io;
use std::time::Instant;

use crate::driver::{Buffer, Driver, Envelope, Op, Source, Token};
use crate::echo::datagram::Unanswerable;
use crate::echo::{self, Answer};
use crate::policy::{Intake, Refusal};

use super::sources::{Destination, SourceEntry};
use super::{Listener, SlotKind, Worker};

impl<D: Driver> Worker<D> {
    pub(super) fn handle_datagrams(&mut self, now: Instant, socket: Token, buffer: Buffer) {
        if let Some(buffer) = self.answer_datagrams(now, socket, buffer) {
            self.driver.recycle(buffer);
        }
    }

    /// Answers the datagrams, or returns the buffer if there is no answer.
    fn answer_datagrams(&mut self, now: Instant, token: Token, buffer: Buffer) -> Option<Buffer> {
        let Some(slot) = self.slots.get_mut(token) else {
            return Some(buffer);
        };
        let SlotKind::Datagrams(socket) = slot.kind else {
            return Some(buffer);
        };
        let Some(listener) = self.listeners[slot.listener as usize].as_mut() else {
            return Some(buffer);
        };
        let envelope = *self.driver.envelope(&buffer);
        let stored = buffer.len() as usize;
        let count = envelope.count(stored) as u64;
        // A datagram that did not fit into the buffer is counted with its whole size.
        let bytes = envelope.size.max(stored) as u64;
        listener.counters.datagrams_received.add(count);
        listener.counters.bytes_received.add(bytes);
        if let Err(reason) = admit(listener, &envelope) {
            listener.count_refused(reason, count);
            return Some(buffer);
        }
        // Only an admitted source enters the table, whether or not it can be answered: so a flood
        // from denied addresses does not push out the others.
        let ids = &mut self.ids;
        let destination = Destination {
            socket,
            address: envelope.local.map(|local| local.address),
        };
        let source = listener.sources.entry(&envelope.source, || {
            SourceEntry::new(ids.take(), envelope.source, destination, now)
        });
        source.last = now;
        source.destination = destination;
        source.bytes_received += bytes;

        let reply = listener.settings.reply;
        let has_address = envelope.source.has_address();
        let stored_bytes = self.driver.bytes(&buffer);
        match echo::datagram::answer(reply, envelope.size, has_address, stored_bytes) {
            Ok(Answer::Send) => {
                source.bytes_sent += bytes;
                self.driver.submit(Op::SendTo {
                    socket: token,
                    buffer,
                });
                return None;
            }
            Ok(Answer::Drop) => {}
            Err(Unanswerable::Oversize) => listener.count_refused(Refusal::Oversize, count),
            Err(Unanswerable::NoAddress) => listener.count_refused(Refusal::NoAddress, count),
        }
        Some(buffer)
    }

    /// No error ends the socket: this peer may be gone, or its answers blocked by a firewall, while
    /// all others can be reached.
    pub(super) fn handle_datagrams_sent(
        &mut self,
        socket: Token,
        count: u32,
        result: &io::Result<u32>,
    ) {
        let Some((_, listener, _)) = self.slot(socket) else {
            return;
        };
        match result {
            Ok(bytes) => {
                listener.counters.datagrams_sent.add(count.into());
                listener.counters.bytes_sent.add((*bytes).into());
            }
            Err(error) => {
                listener.counters.unsent.add(count.into());
                let name = &*listener.settings.name;
                log::debug!(listener = name; "listener \"{name}\": {count} answers not sent: {error}");
            }
        }
    }
}

fn admit(listener: &Listener, envelope: &Envelope) -> Result<(), Refusal> {
    // They are received all the same: what the kernel kept would be answered late, and old, and what
    // it dropped would not be counted.
    if listener.settings.intake != Intake::Serve {
        return Err(Refusal::Paused);
    }
    if !envelope.unicast {
        return Err(Refusal::NotUnicast);
    }
    let Source::Inet(source) = &envelope.source else {
        return Ok(());
    };
    if !listener.settings.access.permits(source.ip()) {
        return Err(Refusal::Denied);
    }
    // If it were answered, one forged datagram would be enough to make two services on such ports
    // answer each other for ever.
    if listener.settings.refuse_source_ports.refuses(source.port()) {
        return Err(Refusal::SourcePort);
    }
    Ok(())
}
