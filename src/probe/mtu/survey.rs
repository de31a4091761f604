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
        let are_silent = is_silent(&self.there) && is_silent(&self.back);
        are_silent && self.there.passes == self.back.passes
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

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    /// A simulated network; sizes are of IP packets.
    #[derive(Clone, Copy, Debug)]
    struct Network {
        family: Family,
        own: usize,
        there: usize,
        back: usize,
        /// What the router reports that it passes; none: it reports nothing.
        tells: Option<u32>,
        /// It passes fragments.
        passes_pieces: bool,
        /// Whether answers that are too large are fragmented, else they are lost.
        answers_in_pieces: bool,
        /// The service cuts payloads to this size.
        cuts_off: usize,
        /// This number of a hundred are lost, by this seed.
        loss: u64,
        seed: u64,
    }

    /// As wide as possible.
    const WIDE: Network = Network {
        family: V4,
        own: usize::MAX,
        there: usize::MAX,
        back: usize::MAX,
        tells: None,
        passes_pieces: true,
        answers_in_pieces: true,
        cuts_off: usize::MAX,
        loss: 0,
        seed: 1,
    };

    /// Ethernet at our end, and a narrower link without a report behind it.
    const ETHERNET: Network = Network { own: 1500, ..WIDE };
    const HOLE: Network = Network {
        there: 1300,
        ..ETHERNET
    };

    impl Network {
        fn is_lost(&mut self) -> bool {
            // xorshift64
            self.seed ^= self.seed << 13;
            self.seed ^= self.seed >> 7;
            self.seed ^= self.seed << 17;
            self.seed % 100 < self.loss
        }

        fn fate(&mut self, probe: Probe) -> Fate {
            let packet = probe.size + self.family.header;
            let too_large = |mtu, reporter| Fate::TooLarge {
                mtu: Some(mtu),
                reporter,
            };
            let len = probe.size.min(self.cuts_off);
            let is_whole = len + self.family.header <= self.back;
            let goes_in_pieces = packet > self.own.min(self.there);
            match (probe.in_pieces, self.tells) {
                (false, _) if packet > self.own => too_large(self.own as u32, None),
                _ if self.is_lost() => Fate::Silence,
                (false, Some(mtu)) if packet > self.there => too_large(mtu, Some(ROUTER)),
                (false, None) if packet > self.there => Fate::Silence,
                _ if goes_in_pieces && !self.passes_pieces => Fate::Silence,
                _ if self.is_lost() || !(is_whole || self.answers_in_pieces) => Fate::Silence,
                _ => Fate::Answered {
                    len,
                    fragment: (!is_whole).then_some(self.back as u32),
                },
            }
        }

        /// Surveys it with no more datagrams than this.
        fn survey(mut self, tries: u32, most: u32) -> Survey {
            let mut survey = Survey::new(self.family, tries);
            for _ in 0..most {
                let Some(probe) = survey.next() else {
                    return survey;
                };
                survey.handle_fate(self.fate(probe));
            }
            panic!("it goes on: {survey:?}: {self:?}");
        }

        fn check(self, there: (usize, Option<Limit>), back: (usize, Option<Limit>)) -> Survey {
            let survey = self.survey(3, 101);
            let found = survey
                .findings()
                .map(|found| (found.payload, found.known_by));
            assert_eq!(found, [there, back], "{self:?}");
            survey
        }
    }

    const INTERFACE: Option<Limit> = Some(Limit::Interface);
    const ICMP: Option<Limit> = Some(Limit::Icmp);
    const FRAGMENTS: Option<Limit> = Some(Limit::Fragments);
    const SILENCE: Option<Limit> = Some(Limit::Silence);

    #[test]
    fn nothing_is_narrower_than_the_largest_datagram_on_loopback() {
        WIDE.check((65_507, None), (65_507, None));
        let loopback = Network {
            family: V6,
            own: 65_536,
            ..WIDE
        };
        loopback.check((65_488, INTERFACE), (65_488, INTERFACE));
        loopback.survey(3, 5);
    }

    #[test]
    fn each_way_has_its_own_limit_and_reason() {
        ETHERNET.check((1472, INTERFACE), (1472, INTERFACE));
        for (there, back, found) in [
            (1400, 1400, [(1372, ICMP), (1372, FRAGMENTS)]),
            (1500, 1300, [(1472, INTERFACE), (1272, FRAGMENTS)]),
            (1300, 1500, [(1272, ICMP), (1472, INTERFACE)]),
        ] {
            let network = Network {
                there,
                back,
                tells: Some(there as u32),
                ..ETHERNET
            };
            network.check(found[0], found[1]);
        }
    }

    #[test]
    fn a_black_hole_is_placed_by_what_passes_in_fragments() {
        HOLE.check((1272, SILENCE), (1472, INTERFACE));
        let both = Network { back: 1400, ..HOLE };
        both.check((1272, SILENCE), (1372, FRAGMENTS));
        let silent = Network {
            answers_in_pieces: false,
            ..both
        };
        let survey = silent.check((1272, SILENCE), (1372, SILENCE));
        assert!(!survey.is_doubtful());
        // Where either way may be narrower, that is doubtful.
        let back = Network {
            there: 1500,
            back: 1300,
            ..silent
        };
        let no_pieces = Network {
            passes_pieces: false,
            ..HOLE
        };
        for network in [back, no_pieces] {
            let survey = network.check((1272, SILENCE), (1272, SILENCE));
            assert!(survey.is_doubtful());
        }
    }

    #[test]
    fn a_service_that_cuts_off_is_no_limit_of_the_path() {
        let service = Network {
            cuts_off: 2048,
            ..WIDE
        };
        assert!(service.check((65_507, None), (2048, None)).is_cut_off);
        let and_narrow = Network {
            back: 1300,
            ..service
        };
        and_narrow.check((65_507, None), (1272, FRAGMENTS));
    }

    #[test]
    fn a_silent_service_is_tried_as_often_as_was_asked_for() {
        let silent = Network { loss: 100, ..WIDE };
        assert!(!silent.survey(3, 4).is_reached);
    }

    #[test]
    fn any_two_widths_are_found_each() {
        let widths = [68, 576, 1280, 1287, 1400, 1499, 1500, 1501, 9000, 65_535];
        for there in widths {
            for back in widths {
                for tells in [None, Some(there as u32)] {
                    let network = Network {
                        there,
                        back,
                        tells,
                        ..WIDE
                    };
                    let survey = network.survey(2, 81);
                    let found = survey.findings().map(|found| found.mtu);
                    assert_eq!(found, [there, back], "{network:?}");
                    assert!(!survey.is_doubtful(), "{network:?}");
                }
            }
        }
    }

    #[test]
    fn a_false_report_of_a_router_changes_nothing() {
        for tells in [1, 68, 1299, 1301, 1400, 1472, 1499, 1500, 9000, u32::MAX] {
            let liar = Network {
                tells: Some(tells),
                ..HOLE
            };
            let found = liar.survey(2, 51).findings().map(|found| found.payload);
            assert_eq!(found, [1272, 1472], "{tells}");
        }
    }

    #[test]
    fn on_a_path_that_loses_more_tries_find_the_limit() {
        for seed in 1..500 {
            let lossy = Network {
                there: 1400,
                tells: Some(1400),
                back: 1300,
                loss: 10,
                seed: 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed),
                ..ETHERNET
            };
            let found = lossy.survey(10, 500).findings().map(|found| found.payload);
            assert_eq!(found, [1372, 1272], "{seed}");
        }
    }

    #[test]
    fn an_interrupted_survey_knows_the_bounds() {
        let mut survey = Survey::new(V4, 1);
        survey.handle_fate(Fate::Answered {
            len: SMALL_BYTES,
            fragment: None,
        });
        survey.handle_fate(Fate::Silence);
        let found = survey.findings().map(|found| found.at_most);
        assert_eq!(found, [Some(65_506), Some(65_507)]);
    }
}
