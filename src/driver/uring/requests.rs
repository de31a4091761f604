//! Which requests the kernel should have of an endpoint: at most one for input and one for output.
//!
//! What they should be follows from the endpoint's interest, and the functions here bring the two
//! together. Never looks at a result.

#![expect(
    unsafe_code,
    reason = "the kernel reads what is sent while we continue"
)]

use std::os::fd::AsFd;

use super::memory::{GROUP, RingMemory};
use super::ring::{Request, Ring};
use crate::driver::Token;
use crate::driver::endpoints::{Endpoint, Endpoints as AllEndpoints, Kind, Registration};
use crate::driver::lifecycle::Lifecycle;
use crate::driver::unsent::RECEIVE_BELOW;

/// The endpoints of this driver.
pub(super) type Endpoints = AllEndpoints<Requests, RingMemory>;

/// The requests that the kernel has of one endpoint.
#[derive(Debug, Default)]
pub struct Requests {
    pub(super) receiving: Receiving,
    pub(super) sending: Sending,
    /// How many more times a connection is read in large pieces, however little it brings.
    pub(super) large_reads_left: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Receiving {
    #[default]
    No,
    /// Bytes as they arrive, in small buffers.
    Repeatedly,
    /// To report input.
    Polled,
    /// It was cancelled, and its result is pending.
    Cancelled,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sending {
    #[default]
    No,
    /// The first unsent piece, as much of it as there is room for.
    Sends,
    /// To report room to send.
    Polled,
    /// It was cancelled, and its result is pending.
    Cancelled,
}

impl Registration for Requests {
    fn of_connection(_is_tcp: bool) -> Self {
        Self::default()
    }
}

impl Requests {
    pub(super) fn is_idle(&self) -> bool {
        self.receiving == Receiving::No && self.sending == Sending::No
    }
}

pub(super) fn update_receiving(ring: &mut Ring, token: Token, endpoint: &mut Endpoint<Requests>) {
    let is_wanted = endpoint.interest().input;
    let requests = &mut endpoint.registration;
    let is_polled = match &endpoint.kind {
        Kind::Connection(connection) => requests.large_reads_left > 0 || connection.relay.is_due(),
        Kind::Listener(_) | Kind::Datagrams(_) => true,
    };
    let fd = endpoint.fd.as_fd();
    match requests.receiving {
        Receiving::No if is_wanted && is_polled => {
            if matches!(endpoint.kind, Kind::Listener(_)) {
                ring.poll_clients(fd, token);
            } else {
                ring.poll_input(fd, Request::Readable, token);
            }
            requests.receiving = Receiving::Polled;
        }
        // Together with what is unsent it brings no more than may be held for a peer that does not
        // read; the kernel goes through many buffers in one go.
        Receiving::No if is_wanted => {
            ring.receive(fd, GROUP, RECEIVE_BELOW, token);
            requests.receiving = Receiving::Repeatedly;
        }
        Receiving::Repeatedly if !is_wanted || is_polled => {
            ring.cancel(Request::Receive, token);
            requests.receiving = Receiving::Cancelled;
        }
        // A poll that is no longer needed may stay, and its result is ignored, unless the endpoint
        // is to leave.
        Receiving::Polled if endpoint.lifecycle != Lifecycle::Open => {
            ring.cancel(Request::Readable, token);
            requests.receiving = Receiving::Cancelled;
        }
        _ => {}
    }
}

pub(super) fn update_sending(ring: &mut Ring, token: Token, endpoints: &mut Endpoints) {
    let Some((endpoint, memory)) = endpoints.with_memory(token) else {
        return;
    };
    let interest = endpoint.interest();
    let may_send = endpoint.may_send();
    let fd = endpoint.fd.as_fd();
    match (endpoint.registration.sending, &endpoint.kind) {
        (Sending::No, _) if interest.output => {
            ring.poll_output(fd, token);
            endpoint.registration.sending = Sending::Polled;
        }
        (Sending::No, Kind::Connection(connection)) if may_send => {
            let Some(bytes) = connection.unsent.front(memory) else {
                return;
            };
            // SAFETY: until its result arrives, the first piece stays what it is: nothing is
            // spilled before a stall, and nothing discarded while `sending` is `Sends`.
            unsafe { ring.send(fd, bytes, token) };
            endpoint.registration.sending = Sending::Sends;
        }
        (Sending::Polled, _) if !interest.output => {
            ring.cancel(Request::Writable, token);
            endpoint.registration.sending = Sending::Cancelled;
        }
        _ => {}
    }
}
