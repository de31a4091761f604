//! The lanes of a load: its connections, or flows of datagrams.
//!
//! Knows what is on the way on each; never when to send.

use std::time::Instant;

use super::stream;
use crate::driver::{Envelope, Token};
use crate::probe::compare::Expect;
use crate::probe::ledger::Ledger;
use crate::probe::payload::{Messages, Payload, nonce};

/// What a lane is, before it has a socket.
pub(super) enum Kind {
    Stream(stream::Lane),
    Flow(Flow),
}

/// The messages of a flow of datagrams.
pub(super) struct Flow {
    pub(super) payload: Payload,
    pub(super) ledger: Ledger,
    pub(super) envelope: Box<Envelope>,
    /// A Unix socket takes one at a time: so it is known which one it does not take.
    pub(super) is_single: bool,
    /// The number of datagrams that are being sent.
    pub(super) sending: usize,
    /// When to try again what found no room.
    pub(super) retry: Option<Instant>,
}

impl Flow {
    pub(super) fn new(size: usize, expect: Expect, ledger: Ledger, envelope: Envelope) -> Self {
        Self {
            payload: Payload::new(size, nonce(), expect),
            ledger,
            is_single: crate::driver::ip_of(&envelope.source).is_none(),
            envelope: Box::new(envelope),
            sending: 0,
            retry: None,
        }
    }

    /// Datagrams of this size have returned, the last of which may be shorter.
    pub(super) fn handle_received(&mut self, now: Instant, bytes: &[u8], size: usize) {
        let mut handle = |datagram: &[u8]| {
            let (len, next) = (datagram.len(), self.ledger.next_sent());
            let what = self.payload.recognize(datagram, len, next);
            self.ledger.handle_answer(now, what, len, true);
        };
        match bytes {
            // No bytes are one empty datagram.
            [] => handle(bytes),
            _ => bytes.chunks(size.max(1)).for_each(handle),
        }
    }
}

/// A connection or flow with its driver.
pub(super) struct Lane {
    /// None while it is connected again.
    pub(super) token: Option<Token>,
    pub(super) kind: Kind,
}

impl Lane {
    /// Whether there was no room a moment ago.
    pub(super) fn is_early(&self, now: Instant) -> bool {
        let is_early = |flow: &Flow| flow.retry.is_some_and(|retry| now < retry);
        matches!(&self.kind, Kind::Flow(flow) if is_early(flow))
    }

    pub(super) fn ledger(&mut self) -> &mut Ledger {
        match &mut self.kind {
            Kind::Stream(stream) => &mut stream.ledger,
            Kind::Flow(flow) => &mut flow.ledger,
        }
    }
}
