//! A worker's end with everybody still there: each connection goes, with all that it is owed, to
//! whoever goes on with it; and a worker's beginning with connections that another has had.
//!
//! Doors and datagram sockets are closed here and nowhere else: the control plane has a descriptor
//! of each, so who knocks meanwhile waits in the kernel.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::driver::{Closing, Detached, Driver, Op, Token};
use crate::echo::Stream;
use crate::echo::stream::Progress;
use crate::policy::limits::Phase;

use super::mailbox::{ListenerId, Report};
use super::sources::Entry;
use super::streams::Connection;
use super::{Ids, Tenant, Worker};

/// A connection between two workers: its socket, the bytes that it is owed, and what is known of it.
#[derive(Debug)]
pub struct Carried<S> {
    /// Whose it is.
    pub listener: ListenerId,
    /// Its descriptor.
    pub socket: S,
    /// What is yet to be sent, before all else.
    pub unsent: Vec<u8>,
    /// The rest.
    pub state: State,
}

/// What is known of a connection besides its bytes. Times are in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct State {
    pub id: u64,
    pub peer: Option<SocketAddr>,
    pub age: u64,
    /// Since it was opened, as all that follows.
    pub active: u64,
    pub waits: Option<NonZeroU64>,
    /// Written for earlier programs, which require it, and never read: it follows from `progress`
    /// and from whether anything is unsent.
    #[serde(default, skip_deserializing)]
    pub phase: Phase,
    pub progress: Progress,
    pub bytes_received: u64,
    pub bytes_sent: u64,
}

/// What a worker has given away so far.
#[derive(Debug)]
pub(super) struct HandingOver<S> {
    connections: Vec<Carried<S>>,
}

/// What of its listener's gate a connection holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// One of the permits.
    pub has_permit: bool,
    /// A place among its source's connections.
    pub has_place: bool,
}

impl<D: Driver> Worker<D> {
    /// Begins to give everything away: [`Report::HandedOver`] when it is done.
    pub(super) fn hand_over(&mut self) {
        self.handing_over = Some(HandingOver {
            connections: Vec::new(),
        });
        for place in &self.places {
            match &place.tenant {
                Tenant::Nobody => {}
                Tenant::Connection(client) if client.is_closing() => {}
                Tenant::Door(_) | Tenant::Datagrams(_) => self.driver.submit(Op::Close {
                    token: place.token,
                    how: Closing::Now,
                }),
                Tenant::Connection(_) => self.driver.submit(Op::Detach {
                    connection: place.token,
                }),
            }
        }
    }

    /// The driver has let go of a connection.
    pub(super) fn detached(&mut self, now: Instant, token: Token) {
        let Some((place, listener, driver)) = self.place(token) else {
            return;
        };
        let Some(Detached { socket, unsent }) = driver.take(token) else {
            return;
        };
        let Tenant::Connection(mut client) = std::mem::replace(&mut place.tenant, Tenant::Nobody)
        else {
            return;
        };
        // What is sent of a message is counted when all of it is: now is the last opportunity.
        client.settle(listener, unsent.len() as u32);
        let carried = Carried {
            listener: listener.id,
            socket,
            unsent,
            state: client.state(now),
        };
        client.release(listener);
        self.vacate(token);
        if let Some(handing_over) = &mut self.handing_over {
            handing_over.connections.push(carried);
        }
    }

    /// Reports when nobody is left.
    pub(super) fn go_on_handing_over(&mut self) {
        let is_empty = || {
            self.places
                .iter()
                .all(|place| matches!(place.tenant, Tenant::Nobody))
        };
        if self.handing_over.is_none() || !is_empty() {
            return;
        }
        let Some(HandingOver { connections }) = self.handing_over.take() else {
            return;
        };
        let sources = self.listeners.iter().flatten().flat_map(|listener| {
            let entries = listener.sources.iter();
            entries.map(|entry| (listener.id, entry.clone()))
        });
        self.mailbox.report(Report::HandedOver {
            worker: self.index,
            connections,
            sources: sources.collect(),
            last_id: self.ids.next,
        });
    }

    /// Goes on with a connection that another worker has had.
    pub(super) fn take_over(
        &mut self,
        now: Instant,
        carried: Carried<D::Socket>,
        admission: Admission,
    ) {
        let index = self
            .index_of(carried.listener)
            .expect("a listener is configured before it gets connections");
        let owed = carried.unsent.len() as u32;
        let stream = Stream::resume(carried.state.progress, owed);
        let is_shut_down = stream.is_shut_down();
        let token = self.driver.add_connection(carried.socket, carried.unsent);
        let mut client = Connection::resume(now, &carried.state, stream, admission);
        client.look(self.driver.progress(token));
        self.move_in(token, index, Tenant::Connection(client));
        self.timers.clear(token.slot);
        if is_shut_down {
            self.driver.submit(Op::ShutDown { connection: token });
        }
        self.judge(now, token);
        self.advance(now, token);
    }

    /// Remembers a source of datagrams that another worker has seen.
    pub(super) fn remember(&mut self, listener: ListenerId, entry: Entry) {
        let index = self.index_of(listener);
        if let Some(listener) = index.and_then(|index| self.listeners[index as usize].as_mut()) {
            let source = entry.source;
            listener.sources.entry(&source, || entry);
        }
    }

    /// The numbers up to this one have been given to peers.
    pub(super) fn number_from(&mut self, last: u64) {
        self.ids = Ids {
            next: last + self.index as u64 + 1,
            step: self.ids.step,
        };
    }
}

/// The moment that was so long ago; now, where the clock does not go back so far.
#[must_use]
pub fn ago(now: Instant, nanos: u64) -> Instant {
    now.checked_sub(Duration::from_nanos(nanos)).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &str = r#"{"id":7,"peer":"192.0.2.1:5000","age":5,"active":3,"waits":4,"phase":"Lingering",
        "progress":{"reply":"Echo","one_shot":true,"input":"Ignored","shut_down":true},
        "bytes_received":1,"bytes_sent":0}"#;

    #[test]
    fn what_an_earlier_program_wrote_is_read_with_its_phase_and_with_fields_that_are_unknown() {
        let state: State = serde_json::from_str(STATE).unwrap();
        assert_eq!((state.id, state.waits), (7, NonZeroU64::new(4)));
        assert!(state.progress.shut_down);
        for changed in [
            STATE.replace(r#""phase":"Lingering","#, ""),
            STATE.replace("Lingering", "Unknown"),
            STATE.replace(r#""phase":"#, r#""later":[1],"phase":"#),
        ] {
            assert_eq!(serde_json::from_str::<State>(&changed).unwrap(), state);
        }
    }

    #[test]
    fn an_earlier_program_finds_the_phase_that_it_requires() {
        let state = State {
            phase: Phase::Lingering,
            ..serde_json::from_str(STATE).unwrap()
        };
        let written = serde_json::to_value(state).unwrap();
        assert_eq!(
            written,
            serde_json::from_str::<serde_json::Value>(STATE).unwrap()
        );
    }
}
