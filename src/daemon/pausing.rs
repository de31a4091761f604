//! Listeners are paused, resumed and drained for callers, and the clients that watch a drain get a
//! reply whenever it advances.
//!
//! Which listener is in which state, and what is due in a drain, is known to `listeners`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::cli::text::counted;
use crate::protocol;
use crate::protocol::schema::{
    DrainListenerReply, ListenerState, PauseListenerReply, ResumeListenerReply, StateChange,
};
use crate::worker::mailbox::{Command, ListenerId};

use super::Daemon;
use super::control::{Audit, Call, ClientId, Reply};
use super::listeners::{Listeners, Standing};

/// How often to look whether there is something to report.
const LOOK: Duration = Duration::from_millis(100);

/// How often a watching client gets a reply also when nothing has changed: one that has closed its
/// connection is noticed only then.
const REPLY_INTERVAL: Duration = Duration::from_secs(1);

/// The clients that wait for what they have asked for.
#[derive(Debug, Default)]
pub(super) struct Pausing {
    last_query: u64,
    /// Until all workers have the new state: then no client is served that connects later.
    unconfirmed: BTreeMap<u64, Unconfirmed>,
    watchers: Vec<Watcher>,
}

/// A change that not all workers have yet.
#[derive(Debug)]
struct Unconfirmed {
    client: ClientId,
    /// It takes several replies.
    more: bool,
    standing: Standing,
    listeners: Vec<(ListenerId, StateChange)>,
    /// Workers that have not confirmed it.
    waits_for: usize,
}

/// A client that watches a drain.
#[derive(Debug)]
struct Watcher {
    client: ClientId,
    drain: Drain,
    /// The connections left in the last reply, and when that was.
    reported: u64,
    replied_at: Instant,
}

/// A drain as its caller sees it.
#[derive(Debug)]
struct Drain {
    listeners: Vec<(ListenerId, StateChange)>,
    until: Instant,
}

impl Drain {
    /// How far it is, and whether that is the end.
    fn look(&mut self, listeners: &Listeners, now: Instant) -> (DrainListenerReply, bool) {
        for (id, change) in &mut self.listeners {
            listeners.update(*id, change);
        }
        let changes = self.listeners.iter().map(|(_, change)| change);
        // Those of a listener that was resumed during the drain may stay; one that was removed is drained.
        let drained = changes.clone().filter(|change| {
            matches!(
                change.after,
                ListenerState::Draining | ListenerState::Retired
            )
        });
        let connections = drained.map(|change| change.connections).sum();
        let left = self.until.saturating_duration_since(now);
        let reply = DrainListenerReply {
            listeners: changes.cloned().collect(),
            connections,
            left_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        };
        (reply, connections == 0)
    }
}

impl Daemon {
    /// Puts the listener of this name, or all, into this state. The call is answered when all workers
    /// have it.
    pub(super) fn set_standing(
        &mut self,
        call: &Call,
        name: Option<&str>,
        standing: Standing,
        audit: Option<&Audit>,
        now: Instant,
    ) {
        let listeners = self.listeners.set_standing(name, standing, &self.workers);
        // Another deadline is a change, too. With a name the caller's line has the states; with all
        // listeners it has their number, and each has a line.
        let is_drain = matches!(standing, Standing::Draining(_));
        let is_change = |change: &StateChange| is_drain || change.before != change.after;
        let changed = || listeners.iter().filter(|(_, change)| is_change(change));
        for (_, change) in changed() {
            let (before, after) = (change.before.name(), change.after.name());
            match (name, audit) {
                (Some(_), Some(audit)) => audit.record(format_args!("{before} → {after}")),
                _ => {
                    let name = &*change.listener;
                    log::info!(listener = name; "listener \"{name}\": {before} → {after}");
                }
            }
        }
        if let (None, Some(audit), 1..) = (name, audit, changed().count()) {
            audit.record(counted(changed().count() as u64, "listener"));
        }
        self.supervise(|supervision, summary| supervision.status(summary, now));
        // Until the workers confirm it, a client that connects may still be served.
        self.pausing.last_query += 1;
        let query = self.pausing.last_query;
        let unconfirmed = Unconfirmed {
            client: call.id,
            more: call.request.more && !call.request.oneway,
            standing,
            listeners,
            waits_for: self.workers.count(),
        };
        self.pausing.unconfirmed.insert(query, unconfirmed);
        self.workers.command_all(|_| Command::Confirm { query });
    }

    /// A worker has a new state. When it is the last one, the caller is answered: once, or in a drain
    /// again and again to its end.
    pub(super) fn handle_confirmed(&mut self, query: u64, now: Instant) {
        let Some(known) = self.pausing.unconfirmed.get_mut(&query) else {
            return;
        };
        known.waits_for -= 1;
        if known.waits_for == 0
            && let Some(confirmed) = self.pausing.unconfirmed.remove(&query)
        {
            self.answer_confirmed(confirmed, now);
        }
    }

    fn answer_confirmed(&mut self, confirmed: Unconfirmed, now: Instant) {
        let Unconfirmed {
            client,
            more,
            standing,
            mut listeners,
            ..
        } = confirmed;
        // From here on no listener that is drained gets another connection.
        for (id, change) in &mut listeners {
            self.listeners.begin_drain(*id);
            self.listeners.update(*id, change);
        }
        let Some(server) = &mut self.server else {
            return;
        };
        let changes = || listeners.iter().map(|(_, change)| change.clone()).collect();
        let reply = match standing {
            Standing::Listening => protocol::reply(&ResumeListenerReply {
                listeners: changes(),
            }),
            Standing::Paused | Standing::Holding => protocol::reply(&PauseListenerReply {
                listeners: changes(),
            }),
            Standing::Draining(drain) => {
                let until = drain.until;
                let mut drain = Drain { listeners, until };
                let (reply, is_over) = drain.look(&self.listeners, now);
                if more && !is_over {
                    server.reply(client, Reply::Continued(protocol::continued(&reply)), now);
                    self.pausing.watchers.push(Watcher {
                        client,
                        drain,
                        reported: reply.connections,
                        replied_at: now,
                    });
                    return;
                }
                protocol::reply(&reply)
            }
        };
        server.reply(client, Reply::One(reply), now);
    }

    /// Takes the steps of drains that are due, and replies to the clients that watch.
    pub(super) fn continue_drains(&mut self, now: Instant) {
        // A successor continues with them.
        if self.workers_are_stopped() {
            return;
        }
        self.listeners.continue_drains(&self.workers, now);
        let Some(server) = &mut self.server else {
            return;
        };
        self.pausing.watchers.retain_mut(|watcher| {
            match server.takes_next(watcher.client) {
                None => return false,
                Some(false) => return true,
                Some(true) => {}
            }
            let (reply, is_over) = watcher.drain.look(&self.listeners, now);
            if is_over {
                server.reply(watcher.client, Reply::One(protocol::reply(&reply)), now);
                return false;
            }
            if reply.connections != watcher.reported || now >= watcher.replied_at + REPLY_INTERVAL {
                (watcher.reported, watcher.replied_at) = (reply.connections, now);
                let reply = Reply::Continued(protocol::continued(&reply));
                server.reply(watcher.client, reply, now);
            }
            true
        });
    }

    /// When [`Self::continue_drains`] is next due.
    pub(super) fn next_drain_step(&self, now: Instant) -> Option<Instant> {
        if self.workers_are_stopped() {
            return None;
        }
        let look = (!self.pausing.watchers.is_empty()).then(|| now + LOOK);
        let step = self.listeners.next_drain_step(now);
        [look, step].into_iter().flatten().min()
    }
}
