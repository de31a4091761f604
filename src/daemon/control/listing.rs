//! A list of peers on its way to a client: a page at a time, with a bounded part of it in memory.
//!
//! Knows what was listed until now, and where the next search has to begin. Each search brings the
//! next peers of every worker, 256 of each at most, so that a list costs the same memory however many
//! peers there are. Never asks a worker itself; `searches` does.

use std::collections::VecDeque;

use crate::worker::mailbox::{Order, Peer, Rank, Selection};

/// The most peers in one reply: about 100 KiB, which a client takes at once, and which the main
/// loop encodes in well under a millisecond.
pub(crate) const PAGE_PEERS_MAX: usize = 256;

/// See the module.
#[derive(Debug)]
pub(crate) struct Listing {
    selection: Selection,
    order: Order,
    /// How many may still be listed.
    left: u64,
    /// How many are meant altogether, as the first search has counted them.
    total: Option<u64>,
    /// The next ones, in order.
    found: VecDeque<Peer>,
    /// Where the next search has to begin; none when there is no further one.
    more_after: Option<Rank>,
}

/// What the workers have found in one search.
#[derive(Debug, Default)]
pub(super) struct Found {
    peers: Vec<Peer>,
    matched: u64,
    more_after: Option<Rank>,
}

impl Found {
    /// Adds what a worker has found. Behind `more_after` it has others.
    pub(super) fn add(&mut self, peers: Vec<Peer>, matched: u64, more_after: Option<Rank>) {
        self.peers.extend(peers);
        self.matched += matched;
        // Behind this, what one worker has may belong before what another has found.
        self.more_after = match (self.more_after.take(), more_after) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
}

/// A page of a list.
#[derive(Debug)]
pub(super) struct Page {
    pub peers: Vec<Peer>,
    pub total: u64,
    /// Another one follows.
    pub continues: bool,
}

impl Listing {
    pub(super) fn new(selection: Selection, order: Order, limit: Option<u64>) -> Self {
        Self {
            selection,
            order,
            left: limit.unwrap_or(u64::MAX),
            total: None,
            found: VecDeque::new(),
            more_after: None,
        }
    }

    pub(super) fn selection(&self) -> &Selection {
        &self.selection
    }

    pub(super) fn order(&self) -> Order {
        self.order
    }

    /// Where the next search begins, and how many peers of each worker it is for.
    pub(super) fn next_search(&self) -> (Option<Rank>, usize) {
        let max = self.page_len_max().saturating_sub(self.found.len());
        (self.more_after.clone(), max)
    }

    /// Whether the next page can be made without another search.
    pub(super) fn has_page(&self) -> bool {
        let is_complete = self.more_after.is_none();
        self.total.is_some() && (is_complete || self.found.len() >= self.page_len_max())
    }

    /// The length of the next page, unless it is the last.
    fn page_len_max(&self) -> usize {
        let left = usize::try_from(self.left).unwrap_or(usize::MAX);
        left.min(PAGE_PEERS_MAX)
    }

    /// All workers have searched.
    pub(super) fn handle_found(&mut self, found: Found) {
        let Found {
            mut peers,
            matched,
            more_after,
        } = found;
        peers.sort_unstable_by(|one, other| one.rank.cmp(&other.rank));
        if let Some(more_after) = &more_after {
            // Those behind it are found again by the next search, with what comes between them.
            peers.truncate(peers.partition_point(|peer| peer.rank <= *more_after));
        }
        self.found.extend(peers);
        self.more_after = more_after;
        // Later searches may count others; the replies to one call have one total.
        self.total.get_or_insert(matched);
    }

    /// The next page. Without `more` it is the last.
    pub(super) fn next_page(&mut self, more: bool) -> Page {
        let count = self.found.len().min(self.page_len_max());
        let peers: Vec<Peer> = self.found.drain(..count).collect();
        self.left -= count as u64;
        let has_more = !self.found.is_empty() || self.more_after.is_some();
        Page {
            peers,
            total: self.total.unwrap_or(0),
            continues: more && has_more && self.left > 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::control::tests::peer;

    /// Searches the workers, of which each has peers with these ids, as they would.
    fn search(listing: &mut Listing, workers: &[Vec<u64>]) {
        let (after, max) = listing.next_search();
        let mut found = Found::default();
        for ids in workers {
            let all = ids.iter().copied().map(peer);
            let behind = all.filter(|peer| after.as_ref().is_none_or(|after| peer.rank > *after));
            let mut peers: Vec<Peer> = behind.collect();
            let has_more = peers.len() > max;
            peers.truncate(max);
            let last = peers.last().map(|peer| peer.rank.clone());
            found.add(peers, ids.len() as u64, last.filter(|_| has_more));
        }
        listing.handle_found(found);
    }

    /// The sizes of all pages, and the ids in them. No more is held than a page, and another for
    /// each worker.
    fn list(workers: &[Vec<u64>], limit: Option<u64>, more: bool) -> (Vec<usize>, Vec<u64>, u64) {
        let mut listing = Listing::new(Selection::default(), Order::Id, limit);
        let (mut sizes, mut ids) = (Vec::new(), Vec::new());
        loop {
            while !listing.has_page() {
                search(&mut listing, workers);
                assert!(listing.found.len() < (workers.len() + 1) * PAGE_PEERS_MAX);
            }
            let page = listing.next_page(more);
            sizes.push(page.peers.len());
            ids.extend(page.peers.iter().map(|peer| peer.id));
            if !page.continues {
                return (sizes, ids, page.total);
            }
        }
    }

    #[test]
    fn a_list_is_all_peers_in_order_in_pages_of_256_however_they_are_spread() {
        let even = |count: u64, of: u64| -> Vec<Vec<u64>> {
            let ids = |worker| (0..count).filter(|id| id % of == worker).collect();
            (0..of).map(ids).collect()
        };
        let one_has_all = vec![(0..1000).collect(), Vec::new(), Vec::new()];
        let one_behind_the_other = vec![(500..1000).collect(), (0..500).collect()];
        for workers in [
            even(1000, 1),
            even(1000, 7),
            one_has_all,
            one_behind_the_other,
        ] {
            let (sizes, ids, total) = list(&workers, None, true);
            assert_eq!(ids, (0..1000).collect::<Vec<u64>>());
            assert_eq!(total, 1000);
            assert_eq!(sizes, [256, 256, 256, 232]);
        }
        let (sizes, ..) = list(&even(600, 1), None, true);
        assert_eq!(sizes, [256, 256, 88]);
    }

    #[test]
    fn a_limit_shortens_the_list_and_not_the_total() {
        let workers = [(0..500).collect(), (500..1000).collect()];
        let (sizes, ids, total) = list(&workers, Some(300), true);
        assert_eq!((sizes, total), (vec![256, 44], 1000));
        assert_eq!(ids, (0..300).collect::<Vec<u64>>());
        assert_eq!(list(&workers, Some(0), true), (vec![0], vec![], 1000));
    }

    #[test]
    fn without_more_there_is_one_page_and_for_no_peers_an_empty_one() {
        let workers = [(0..300).collect()];
        let (sizes, _, total) = list(&workers, None, false);
        assert_eq!((sizes, total), (vec![256], 300));
        assert_eq!(list(&[vec![]], None, true), (vec![0], vec![], 0));
    }
}
