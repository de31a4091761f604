//! The survey of a path in both directions: which datagram to send next, and what its fate says of
//! the way there and of the way back. One bisection each way.
//!
//! An answer proves that its datagram has arrived, and shows itself how it came back. Silence does
//! not tell where a datagram was lost: so the way back is searched with datagrams that may be
//! fragmented.
//!
//! Knows sizes and fates; no socket, no clock.

use std::net::IpAddr;

use serde::Serialize;

/// A size that every service can receive: IPv4 passes 68 bytes anywhere (RFC 791).
pub(super) const SMALL_BYTES: usize = 32;

/// What IP and UDP put before each payload, and the largest payload, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Family {
    header: usize,
    payload_max: usize,
}

pub(super) const V4: Family = Family {
    header: 20 + 8,
    payload_max: 65_507,
};

/// IPv6 does not count its own header.
pub(super) const V6: Family = Family {
    header: 40 + 8,
    payload_max: 65_527,
};

/// A datagram to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    /// Its size in bytes.
    pub(super) size: usize,
    /// Whether it may be fragmented.
    pub(super) in_pieces: bool,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// This many bytes came back, whole or in fragments, the largest of which was a packet of this
    /// size.
    Answered { len: usize, fragment: Option<u32> },
    /// It is reported as too large: by a router, or by this host, which has no reporter.
    TooLarge {
        mtu: Option<u32>,
        reporter: Option<IpAddr>,
    },
    /// Nothing came.
    Silence,
}

/// Why more does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Limit {
    /// The interface of this host takes no more.
    Interface,
    /// A router reports so.
    Icmp,
    /// Larger answers come in fragments.
    Fragments,
    /// Larger ones get no answer.
    Silence,
}

/// What is known of one direction. The names are those for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// The largest payload that passed whole, and its packet.
    pub(super) payload: usize,
    pub(super) mtu: usize,
    /// More may pass, too.
    pub(super) at_least: bool,
    /// The most that may pass, where the search is not over.
    pub(super) at_most: Option<usize>,
    /// Why not more; none: nothing larger was there to be tried.
    pub(super) known_by: Option<Limit>,
    /// The router that reports so.
    pub(super) told_by: Option<IpAddr>,
}

/// The search in one direction.
#[derive(Clone, Debug)]
struct Search {
    /// The largest that passes.
    passes: usize,
    /// The least that does not, and why.
    fails: usize,
    limit: Option<Limit>,
    told_by: Option<IpAddr>,
    /// What is tried before the middle: the largest, and what a router reports.
    likely: Vec<usize>,
}

impl Search {
    /// The size to try next; none: the limit is known.
    fn next(&self) -> Option<usize> {
        let open = self.passes + 1..self.fails;
        let mut likely = self.likely.iter().copied();
        let middle = open.start + open.len().saturating_sub(1) / 2;
        let next = likely.find(|size| open.contains(size)).unwrap_or(middle);
        (!open.is_empty()).then_some(next)
    }

    /// This size passes; an earlier failure of it was a loss.
    fn pass(&mut self, size: usize) {
        self.passes = self.passes.max(size);
        self.fails = self.fails.max(self.passes + 1);
    }

    /// This size does not pass.
    fn fail(&mut self, size: usize, limit: Option<Limit>, told_by: Option<IpAddr>) {
        if size > self.passes && size < self.fails {
            self.fails = size;
            (self.limit, self.told_by) = (limit, told_by);
        }
    }

    /// No more than this can be tried.
    fn bound(&mut self, most: usize, limit: Option<Limit>) {
        self.fail(most.max(self.passes) + 1, limit, None);
        self.likely = vec![most];
    }
}

/// The state of the survey.
#[derive(Clone, Debug)]
pub(super) struct Survey {
    family: Family,
    tries: u32,
    tries_left: u32,
    /// Whether anything came back.
    pub(super) is_reached: bool,
    /// Whether the service answers less than was sent.
    pub(super) is_cut_off: bool,
    there: Search,
    back: Search,
}

impl Survey {
    /// Of a path of this family; a size without an answer is tried this number of times.
    pub(super) fn new(family: Family, tries: u32) -> Self {
        let search = Search {
            passes: SMALL_BYTES,
            fails: family.payload_max + 1,
            limit: None,
            told_by: None,
            likely: vec![family.payload_max],
        };
        Self {
            family,
            tries,
            tries_left: tries,
            is_reached: false,
            is_cut_off: false,
            there: search.clone(),
            back: search,
        }
    }

    /// Whether it is unknown which way loses larger ones: nothing above the same size is answered,
    /// fragmented or not.
    pub(super) fn is_doubtful(&self) -> bool {
        let is_silent = |search: &Search| search.limit == Some(Limit::Silence);
        is_silent(&self.there) && is_silent(&self.back) && self.there.passes == self.back.passes
    }

    /// What to send next; none: it is over. First whether anything comes back; then what passes on
    /// the way there, by datagrams that must not be fragmented; then what passes on the way back.
    pub(super) fn next(&self) -> Option<Probe> {
        let whole = |size| Probe {
            size,
            in_pieces: false,
        };
        if !self.is_reached {
            return (self.tries_left > 0).then_some(whole(SMALL_BYTES));
        }
        let back = || {
            let size = self.back.next()?;
            let in_pieces = size > self.there.passes;
            Some(Probe { size, in_pieces })
        };
        self.there.next().map(whole).or_else(back)
    }

    /// This became of the datagram that was to be sent next.
    pub(super) fn handle_fate(&mut self, fate: Fate) {
        let Some(probe) = self.next() else {
            return;
        };
        let is_there = self.is_reached && self.there.next().is_some();
        let is_lost = match fate {
            Fate::Answered { len, fragment } => {
                self.handle_answer(probe, len, fragment);
                false
            }
            Fate::TooLarge { mtu, reporter } => {
                !is_there || !self.handle_refusal(probe.size, mtu, reporter)
            }
            Fate::Silence => true,
        };
        if is_lost {
            self.tries_left -= 1;
            // It is taken for too large only when it was lost each time.
            match () {
                () if self.tries_left > 0 || !self.is_reached => return,
                () if is_there => self.there.fail(probe.size, Some(Limit::Silence), None),
                () => self.back.fail(probe.size, Some(Limit::Silence), None),
            }
        }
        self.tries_left = self.tries;
    }

    fn handle_answer(&mut self, probe: Probe, len: usize, fragment: Option<u32>) {
        self.is_reached = true;
        if !probe.in_pieces {
            self.there.pass(probe.size);
        }
        let len = len.min(probe.size);
        match fragment {
            None => self.back.pass(len),
            Some(_) => self.back.fail(len, Some(Limit::Fragments), None),
        }
        if len < probe.size {
            self.is_cut_off = true;
            self.back.bound(len, self.back.limit);
        }
    }

    /// It is reported as too large. Whether that makes sense: a router that would pass it by its own
    /// report has not refused this one.
    fn handle_refusal(&mut self, size: usize, mtu: Option<u32>, by: Option<IpAddr>) -> bool {
        let told = mtu.filter(|mtu| *mtu > 0);
        let told = told.map(|mtu| (mtu as usize).saturating_sub(self.family.header));
        let there = &mut self.there;
        match (by, told) {
            (_, Some(told)) if told >= size => return false,
            (Some(_), _) => {
                // Only the first report is followed: what routers say may lead anywhere.
                if there.told_by.is_none() {
                    there.likely = told.map_or(Vec::new(), |told| vec![told, told + 1]);
                }
                there.fail(size, Some(Limit::Icmp), by);
            }
            // This host knows its interface, which takes no more on the way back, either.
            (None, Some(told)) => {
                there.bound(told, Some(Limit::Interface));
                self.back.bound(told, Some(Limit::Interface));
            }
            (None, None) => there.fail(size, Some(Limit::Interface), None),
        }
        true
    }

    /// What is known of the way there, and of the way back.
    pub(super) fn findings(&self) -> [Finding; 2] {
        [&self.there, &self.back].map(|search| Finding {
            payload: search.passes,
            mtu: search.passes + self.family.header,
            at_least: search.limit.is_none() || self.is_doubtful(),
            at_most: search.next().map(|_| search.fails - 1),
            known_by: search.limit,
            told_by: search.told_by,
        })
    }
}
