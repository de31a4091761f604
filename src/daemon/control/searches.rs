//! Searches among the peers, which only the workers can make: lists, and closing some.
//!
//! They wait in a queue and run one at a time, and a list waits again for each of its pages, so that
//! any number of clients that list in loops cost the workers no more than one. Knows which client
//! waits for what; never asks a worker itself: [`Search`] is the effect, for the daemon to carry out.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use crate::protocol::wire::Request;
use crate::worker::mailbox::{ClosedPeers, Command, Order, Peer, Rank, Selection};

use super::ClientId;
use super::audit::Audit;
use super::listing::{Found, Listing, PAGE_PEERS_MAX};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Searches {
    waiting: VecDeque<Waiting>,
    running: Option<Running>,
    last_id: u64,
    /// None is begun.
    held: bool,
}

#[derive(Debug)]
struct Waiting {
    client: ClientId,
    /// Until the first part of it is answered, the request can be left to a successor.
    request: Option<Request>,
    task: Task,
}

#[derive(Debug)]
pub(super) enum Task {
    List(Box<Listing>),
    Close(Closure),
}

/// Connections to close.
#[derive(Debug)]
pub(super) struct Closure {
    pub(super) selection: Selection,
    /// They are only counted.
    pub(super) dry_run: bool,
    /// They are described.
    pub(super) list: bool,
    /// The caller that has them closed.
    pub(super) audit: Option<Audit>,
}

impl Closure {
    /// How many of them are described.
    fn max(&self) -> usize {
        if self.list { PAGE_PEERS_MAX } else { 0 }
    }
}

#[derive(Debug)]
struct Running {
    id: u64,
    client: ClientId,
    /// Workers that have not yet reported.
    waits_for: usize,
    result: Results,
}

#[derive(Debug)]
enum Results {
    List {
        listing: Box<Listing>,
        found: Found,
    },
    Close {
        closed: ClosedPeers,
        list: bool,
        audit: Option<Audit>,
    },
}

/// A search for all workers to make.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    id: u64,
    selection: Selection,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    List {
        order: Order,
        after: Option<Rank>,
        max: usize,
    },
    Close {
        dry_run: bool,
        max: usize,
    },
}

impl Search {
    /// The command for a worker.
    pub(crate) fn command(&self) -> Command<OwnedFd> {
        let (query, selection) = (self.id, self.selection.clone());
        match self.kind.clone() {
            Kind::List { order, after, max } => Command::ListPeers {
                query,
                selection,
                order,
                after,
                max,
            },
            Kind::Close { dry_run, max } => Command::ClosePeers {
                query,
                selection,
                dry_run,
                max,
            },
        }
    }
}

impl Searches {
    /// Adds the search that a client has asked for to the queue.
    pub(super) fn add(&mut self, client: ClientId, request: Request, task: Task) {
        self.waiting.push_back(Waiting {
            client,
            request: Some(request),
            task,
        });
    }

    /// Adds a list to the queue again, of which the client has taken a page.
    pub(super) fn add_listing(&mut self, client: ClientId, listing: Box<Listing>) {
        self.waiting.push_back(Waiting {
            client,
            request: None,
            task: Task::List(listing),
        });
    }

    /// Forgets what a client has asked for that is gone.
    pub(super) fn forget(&mut self, client: ClientId) {
        self.waiting.retain(|waiting| waiting.client != client);
    }

    /// From now on none is begun, or again.
    pub(super) fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// Whether no worker is searching.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_none()
    }

    /// Whether something can be done at once: a page made, or a search begun.
    pub(super) fn is_ready(&self) -> bool {
        let can_begin = self.running.is_none() && !self.waiting.is_empty();
        !self.held && (can_begin || self.waiting.iter().any(Waiting::has_page))
    }

    /// The request of a client, if the search that it asks for has not begun.
    pub(super) fn waiting_request(&self, client: ClientId) -> Option<&Request> {
        let mut waiting = self.waiting.iter();
        let waiting = waiting.find(|waiting| waiting.client == client)?;
        waiting.request.as_ref()
    }

    /// Takes the lists out of the queue whose next page needs no search.
    pub(super) fn take_ready(&mut self) -> Vec<(ClientId, Box<Listing>)> {
        if self.held {
            return Vec::new();
        }
        let all = std::mem::take(&mut self.waiting);
        let mut ready = Vec::new();
        for waiting in all {
            match waiting.task {
                Task::List(listing) if listing.has_page() => ready.push((waiting.client, listing)),
                _ => self.waiting.push_back(waiting),
            }
        }
        ready
    }

    /// Begins the next search, if none is running.
    pub(super) fn begin_next(&mut self, workers: usize) -> Option<Search> {
        if self.held || self.running.is_some() {
            return None;
        }
        // The longest waiting comes first; a list waits again after each of its pages.
        let Waiting { client, task, .. } = self.waiting.pop_front()?;
        self.last_id += 1;
        let id = self.last_id;
        let (selection, kind, result) = match task {
            Task::List(listing) => {
                let (after, max) = listing.next_search();
                let order = listing.order();
                let found = Found::default();
                (
                    listing.selection().clone(),
                    Kind::List { order, after, max },
                    Results::List { listing, found },
                )
            }
            Task::Close(closure) => {
                let (dry_run, max, list) = (closure.dry_run, closure.max(), closure.list);
                let closed = ClosedPeers::default();
                (
                    closure.selection,
                    Kind::Close { dry_run, max },
                    Results::Close {
                        closed,
                        list,
                        audit: closure.audit,
                    },
                )
            }
        };
        self.running = Some(Running {
            id,
            client,
            waits_for: workers,
            result,
        });
        Some(Search {
            id,
            selection,
            kind,
        })
    }

    /// A worker has found these. Returns the list when it was the last.
    pub(super) fn handle_peers(
        &mut self,
        id: u64,
        peers: Vec<Peer>,
        matched: u64,
        more_after: Option<Rank>,
    ) -> Option<(ClientId, Box<Listing>)> {
        let running = self.running.as_mut().filter(|running| running.id == id)?;
        if let Results::List { found, .. } = &mut running.result {
            found.add(peers, matched, more_after);
        }
        let (client, result) = self.finish_if_last()?;
        let Results::List { mut listing, found } = result else {
            return None;
        };
        listing.handle_found(found);
        Some((client, listing))
    }

    /// A worker has closed these. Returns all when it was the last, and whether they are to be listed.
    pub(super) fn handle_closed(
        &mut self,
        id: u64,
        more: ClosedPeers,
    ) -> Option<(ClientId, ClosedPeers, bool)> {
        let running = self.running.as_mut().filter(|running| running.id == id)?;
        if let Results::Close { closed, .. } = &mut running.result {
            closed.add(more);
        }
        match self.finish_if_last()? {
            (
                client,
                Results::Close {
                    mut closed,
                    list,
                    audit,
                },
            ) => {
                if let Some(audit) = audit {
                    audit.record(format_args!("{} closed", closed.closed));
                }
                closed.peers.sort_unstable_by_key(|peer| peer.id);
                closed.peers.truncate(PAGE_PEERS_MAX);
                Some((client, closed, list))
            }
            (_, Results::List { .. }) => None,
        }
    }

    /// A worker has reported.
    fn finish_if_last(&mut self) -> Option<(ClientId, Results)> {
        let running = self.running.as_mut()?;
        running.waits_for -= 1;
        if running.waits_for > 0 {
            return None;
        }
        let Running { client, result, .. } = self.running.take()?;
        Some((client, result))
    }
}

impl Waiting {
    fn has_page(&self) -> bool {
        matches!(&self.task, Task::List(listing) if listing.has_page())
    }
}
