//! One endpoint: its descriptor, its state, and what follows from that about what it waits for.
//!
//! Never makes a system call.

use std::os::fd::OwnedFd;

use crate::driver::accept::Listener;
use crate::driver::connection::Connection;
use crate::driver::datagrams::Datagrams;
use crate::driver::lifecycle::Lifecycle;

/// What the kernel knows of an endpoint, in the terms of one driver.
pub trait Registration: Default {
    /// Of a connection over TCP, or over a Unix socket.
    fn of_connection(is_tcp: bool) -> Self;
}

/// A descriptor of the driver.
#[derive(Debug)]
pub(in crate::driver) struct Endpoint<R> {
    pub(in crate::driver) fd: OwnedFd,
    /// The user asks for connections, bytes or datagrams.
    pub(in crate::driver) wanted: bool,
    /// It is in a list of those that lack a buffer.
    pub(super) starved: bool,
    /// It is in the list of changed ones.
    pub(super) changed: bool,
    pub(in crate::driver) lifecycle: Lifecycle,
    pub(in crate::driver) registration: R,
    pub(in crate::driver) kind: Kind,
}

#[derive(Debug)]
pub(in crate::driver) enum Kind {
    // Boxed: there are few of these, and many connections.
    Listener(Box<Listener>),
    Connection(Connection),
    Datagrams(Box<Datagrams>),
}

/// What an endpoint waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::driver) struct Interest {
    /// Clients, bytes or datagrams.
    pub(in crate::driver) input: bool,
    /// Room to send.
    pub(in crate::driver) output: bool,
}

impl<R> Endpoint<R> {
    /// What the kernel is to report of it.
    pub(in crate::driver) fn interest(&self) -> Interest {
        let is_open = self.lifecycle == Lifecycle::Open;
        let input = is_open && self.wanted && !self.starved;
        match &self.kind {
            Kind::Listener(_) => Interest {
                input,
                output: false,
            },
            Kind::Connection(connection) => Interest {
                input: input && connection.may_receive(),
                output: is_open && connection.is_stalled(),
            },
            // What is unsent goes first: a socket that received on would lease buffer after buffer
            // for answers that the network does not take. Draining ones are read every turn.
            Kind::Datagrams(datagrams) => {
                let output = datagrams.is_stalled()
                    && matches!(self.lifecycle, Lifecycle::Open | Lifecycle::Draining);
                Interest {
                    input: input && !output,
                    output,
                }
            }
        }
    }

    /// Whether it is a connection with something to send that does not wait for room.
    pub(in crate::driver) fn may_send(&self) -> bool {
        self.lifecycle == Lifecycle::Open
            && self
                .connection()
                .is_some_and(|connection| connection.has_unsent() && !connection.is_stalled())
    }

    /// Whether it is a datagram socket with answers that are yet to be sent.
    pub(super) fn has_unsent_datagrams(&self) -> bool {
        matches!(&self.kind, Kind::Datagrams(datagrams) if datagrams.has_unsent())
    }

    /// The connection, if it is one.
    pub(in crate::driver) fn connection(&self) -> Option<&Connection> {
        match &self.kind {
            Kind::Connection(connection) => Some(connection),
            _ => None,
        }
    }
}
