//! The survey of a path in both directions: which datagram to send next, and what its fate says of
//! the way there and of the way back. One bisection each way.
//!
//! An answer proves that its datagram has arrived, and shows itself how it came back. Silence does
//! not tell where a datagram was lost: so the way back is searched with datagrams that may be
//! fragmented.
//!
//! Knows sizes and fates; no socket, no clock.

use std::net::IpAddr;

/// A size that every service can receive: IPv4 passes 68 bytes anywhere (RFC 791).
pub(super) const SMALL_BYTES: usize = 32;

/// The largest length that an IP header can express.
const LENGTH_MAX: usize = 65_535;

/// UDP's own header.
const UDP_HEADER_BYTES: usize = 8;

/// The family of IP of a path: what it puts before each payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    /// IP's header and UDP's.
    fn header_bytes(self) -> usize {
        match self {
            Self::V4 => 20 + UDP_HEADER_BYTES,
            Self::V6 => 40 + UDP_HEADER_BYTES,
        }
    }

    /// The largest payload there is. IPv6 does not count its own header.
    fn payload_bytes_max(self) -> usize {
        match self {
            Self::V4 => LENGTH_MAX - self.header_bytes(),
            Self::V6 => LENGTH_MAX - UDP_HEADER_BYTES,
        }
    }
}

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    /// The interface of this host takes no more.
    Interface,
    /// A router reports so.
    Router(IpAddr),
    /// Larger answers come in fragments.
    Fragments,
    /// Larger ones get no answer.
    Silence,
}

/// What is known of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// The largest payload that passed whole.
    pub(super) payload: usize,
    /// The largest that may, where the search is not over.
    pub(super) at_most: Option<usize>,
    /// Why not more; none: nothing larger was there to be tried.
    pub(super) limit: Option<Limit>,
}

/// The search in one direction.
#[derive(Clone, Copy, Debug)]
struct Search {
    /// The largest that passes.
    passes: usize,
    /// The least that does not, and why.
    fails: usize,
    limit: Option<Limit>,
    /// Whether the largest is still to be tried: nothing is in the way of it on most paths.
    tries_largest: bool,
}

impl Search {
    fn new(most: usize) -> Self {
        Self {
            passes: SMALL_BYTES,
            fails: most + 1,
            limit: None,
            tries_largest: true,
        }
    }

    /// The size to try next; none: the limit is known.
    fn next(&self) -> Option<usize> {
        let (low, high) = (self.passes + 1, self.fails - 1);
        (low <= high).then(|| match self.tries_largest {
            true => high,
            false => low + (high - low) / 2,
        })
    }

    /// This size passes; an earlier failure of it was a loss.
    fn pass(&mut self, size: usize) {
        self.passes = self.passes.max(size);
        self.fails = self.fails.max(self.passes + 1);
    }

    /// This size does not pass.
    fn fail(&mut self, size: usize, limit: Option<Limit>) {
        if size > self.passes && size < self.fails {
            self.fails = size;
            self.limit = limit;
            self.tries_largest = false;
        }
    }

    /// No more than this can be tried.
    fn bound(&mut self, most: usize, limit: Option<Limit>) {
        self.fail(most.max(self.passes) + 1, limit);
        self.tries_largest = true;
    }

    fn finding(&self) -> Finding {
        let open = self.next().map(|_| self.fails - 1);
        Finding {
            payload: self.passes,
            at_most: open,
            limit: self.limit,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Whether anything comes back.
    Reach,
    /// What passes on the way there, by datagrams that must not be fragmented.
    There,
    /// What passes on the way back.
    Back,
    Over,
}

/// The state of the survey.
#[derive(Clone, Debug)]
pub(super) struct Survey {
    family: Family,
    tries: u32,
    tries_left: u32,
    stage: Stage,
    is_reached: bool,
    /// The service answers less than was sent.
    is_cut_off: bool,
    there: Search,
    back: Search,
    /// The last payload that a router has reported as its largest.
    told: Option<(usize, IpAddr)>,
}

impl Survey {
    /// Of a path of this family; a size without an answer is tried this number of times.
    pub(super) fn new(family: Family, tries: u32) -> Self {
        let search = Search::new(family.payload_bytes_max());
        Self {
            family,
            tries,
            tries_left: tries,
            stage: Stage::Reach,
            is_reached: false,
            is_cut_off: false,
            there: search,
            back: search,
            told: None,
        }
    }

    /// Whether anything came back.
    pub(super) fn is_reached(&self) -> bool {
        self.is_reached
    }

    /// Whether the service answers less than was sent.
    pub(super) fn is_cut_off(&self) -> bool {
        self.is_cut_off
    }

    /// Whether it is unknown which way loses larger ones: nothing above the same size is answered,
    /// fragmented or not.
    pub(super) fn is_doubtful(&self) -> bool {
        let (there, back) = (self.there(), self.back());
        let is_silent = |finding: Finding| finding.limit == Some(Limit::Silence);
        is_silent(there) && is_silent(back) && there.payload == back.payload
    }

    /// What to send next; none: it is over.
    pub(super) fn next(&self) -> Option<Probe> {
        let (size, in_pieces) = match self.stage {
            Stage::Reach => (SMALL_BYTES, false),
            Stage::There => (self.there.next()?, false),
            Stage::Back => {
                let size = self.back.next()?;
                (size, size > self.there.passes)
            }
            Stage::Over => return None,
        };
        Some(Probe { size, in_pieces })
    }

    /// This became of the datagram that was to be sent next.
    pub(super) fn handle_fate(&mut self, fate: Fate) {
        let Some(probe) = self.next() else {
            return;
        };
        let is_settled = match fate {
            Fate::Answered { len, fragment } => {
                self.handle_answer(probe, len, fragment);
                true
            }
            Fate::TooLarge { mtu, reporter } => {
                self.handle_refusal(probe, mtu, reporter) || self.handle_silence(probe)
            }
            Fate::Silence => self.handle_silence(probe),
        };
        if is_settled {
            self.tries_left = self.tries;
            self.advance();
        }
    }

    fn handle_answer(&mut self, probe: Probe, len: usize, fragment: Option<u32>) {
        self.is_reached = true;
        if !probe.in_pieces {
            self.there.pass(probe.size);
        }
        let len = len.min(probe.size);
        match fragment {
            None => self.back.pass(len),
            Some(_) => self.back.fail(len, Some(Limit::Fragments)),
        }
        if len < probe.size {
            self.is_cut_off = true;
            self.back.bound(len, self.back.limit);
        }
    }

    /// It is reported as too large. Whether that makes sense: a router that would pass it by its own
    /// report has not refused this one.
    fn handle_refusal(&mut self, probe: Probe, mtu: Option<u32>, by: Option<IpAddr>) -> bool {
        let told = mtu.filter(|mtu| *mtu > 0);
        let told = told.map(|mtu| (mtu as usize).saturating_sub(self.family.header_bytes()));
        if self.stage != Stage::There || told.is_some_and(|told| told >= probe.size) {
            return false;
        }
        match (by, told) {
            (Some(router), _) => {
                self.there.fail(probe.size, Some(Limit::Router(router)));
                self.told = told.map(|told| (told, router)).or(self.told);
            }
            // This host knows its interface, which takes no more on the way back, either.
            (None, Some(told)) => {
                self.there.bound(told, Some(Limit::Interface));
                self.back.bound(told, Some(Limit::Interface));
            }
            (None, None) => self.there.fail(probe.size, Some(Limit::Interface)),
        }
        true
    }

    /// It is lost. Whether it was as often as to be taken for too large.
    fn handle_silence(&mut self, probe: Probe) -> bool {
        self.tries_left -= 1;
        if self.tries_left > 0 {
            return false;
        }
        match self.stage {
            Stage::Reach => self.stage = Stage::Over,
            Stage::There => self.there.fail(probe.size, Some(Limit::Silence)),
            Stage::Back => self.back.fail(probe.size, Some(Limit::Silence)),
            Stage::Over => {}
        }
        true
    }

    /// Continues with the next stage where this one is over.
    fn advance(&mut self) {
        if self.stage == Stage::Reach && self.is_reached {
            self.stage = Stage::There;
        }
        if self.stage == Stage::There && self.there.next().is_none() {
            // A router that reports not every time has the same limit.
            if let Some((told, router)) = self.told
                && told == self.there.passes
            {
                self.there.limit = Some(Limit::Router(router));
            }
            self.stage = Stage::Back;
        }
        if self.stage == Stage::Back && self.back.next().is_none() {
            self.stage = Stage::Over;
        }
    }

    /// What is known of the way there.
    pub(super) fn there(&self) -> Finding {
        self.there.finding()
    }

    /// What is known of the way back.
    pub(super) fn back(&self) -> Finding {
        self.back.finding()
    }

    /// The IP packet with this payload.
    pub(super) fn packet(&self, payload: usize) -> usize {
        payload + self.family.header_bytes()
    }

    /// What is being done.
    pub(super) fn progress(&self) -> String {
        let (what, search) = match self.stage {
            Stage::Reach => return "does anything come back?".into(),
            Stage::There => ("there", &self.there),
            Stage::Back | Stage::Over => ("back", &self.back),
        };
        let (low, high) = (search.passes, search.fails - 1);
        let size = self.next().map_or(0, |probe| probe.size);
        let attempt = self.tries - self.tries_left + 1;
        format!(
            "{what}: {low} to {high} bytes; trying {size} ({attempt} of {})",
            self.tries
        )
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
        /// The service cuts payloads to this size, or ignores those that are larger than this.
        cuts_off: usize,
        ignores: usize,
        /// This number of a hundred are lost, by this seed.
        loss: u64,
        seed: u64,
    }

    /// As wide as possible.
    const WIDE: Network = Network {
        family: Family::V4,
        own: usize::MAX,
        there: usize::MAX,
        back: usize::MAX,
        tells: None,
        passes_pieces: true,
        answers_in_pieces: true,
        cuts_off: usize::MAX,
        ignores: usize::MAX,
        loss: 0,
        seed: 1,
    };

    /// Ethernet at our end.
    const ETHERNET: Network = Network { own: 1500, ..WIDE };

    impl Network {
        fn is_lost(&mut self) -> bool {
            // xorshift64
            self.seed ^= self.seed << 13;
            self.seed ^= self.seed >> 7;
            self.seed ^= self.seed << 17;
            self.seed % 100 < self.loss
        }

        fn fate(&mut self, probe: Probe) -> Fate {
            let header = self.family.header_bytes();
            let packet = probe.size + header;
            let too_large = |mtu: usize, reporter| Fate::TooLarge {
                mtu: Some(mtu as u32),
                reporter,
            };
            if !probe.in_pieces && packet > self.own {
                return too_large(self.own, None);
            }
            if self.is_lost() {
                return Fate::Silence;
            }
            if !probe.in_pieces && packet > self.there {
                return match self.tells {
                    Some(mtu) => too_large(mtu as usize, Some(ROUTER)),
                    None => Fate::Silence,
                };
            }
            let goes_in_pieces = packet > self.own.min(self.there);
            let is_dropped = goes_in_pieces && !self.passes_pieces;
            if is_dropped || probe.size > self.ignores || self.is_lost() {
                return Fate::Silence;
            }
            let len = probe.size.min(self.cuts_off);
            let is_whole = len + header <= self.back;
            if !is_whole && !self.answers_in_pieces {
                return Fate::Silence;
            }
            let fragment = (!is_whole).then_some(self.back as u32);
            Fate::Answered { len, fragment }
        }

        /// Surveys it; returns the survey and the number of datagrams that took.
        fn survey(mut self, tries: u32) -> (Survey, u32) {
            let mut survey = Survey::new(self.family, tries);
            let mut count = 0;
            while let Some(probe) = survey.next() {
                count += 1;
                assert!(count < 1000, "it ends: {survey:?}");
                survey.handle_fate(self.fate(probe));
            }
            (survey, count)
        }

        fn check(self, there: (usize, Option<Limit>), back: (usize, Option<Limit>)) {
            let (survey, count) = self.survey(3);
            let finding = |(payload, limit)| Finding {
                payload,
                at_most: None,
                limit,
            };
            assert_eq!(survey.there(), finding(there), "there: {self:?}");
            assert_eq!(survey.back(), finding(back), "back: {self:?}");
            assert!(count <= 100, "{count} datagrams: {self:?}");
        }
    }

    const INTERFACE: Option<Limit> = Some(Limit::Interface);
    const BY_ROUTER: Option<Limit> = Some(Limit::Router(ROUTER));
    const FRAGMENTS: Option<Limit> = Some(Limit::Fragments);
    const SILENCE: Option<Limit> = Some(Limit::Silence);

    #[test]
    fn nothing_is_narrower_than_the_largest_datagram_on_loopback() {
        WIDE.check((65_507, None), (65_507, None));
        let loopback = Network {
            family: Family::V6,
            own: 65_536,
            ..WIDE
        };
        loopback.check((65_488, INTERFACE), (65_488, INTERFACE));
        assert!(loopback.survey(3).1 <= 4, "the interface is known at once");
    }

    #[test]
    fn each_way_has_its_own_limit_and_reason() {
        ETHERNET.check((1472, INTERFACE), (1472, INTERFACE));
        let router = Network {
            there: 1400,
            back: 1400,
            tells: Some(1400),
            ..ETHERNET
        };
        router.check((1372, BY_ROUTER), (1372, FRAGMENTS));
        let back = Network {
            back: 1300,
            ..ETHERNET
        };
        back.check((1472, INTERFACE), (1272, FRAGMENTS));
        let there = Network {
            there: 1300,
            tells: Some(1300),
            ..ETHERNET
        };
        there.check((1272, BY_ROUTER), (1472, INTERFACE));
    }

    #[test]
    fn a_black_hole_is_placed_by_what_passes_in_fragments() {
        let hole = Network {
            there: 1300,
            ..ETHERNET
        };
        hole.check((1272, SILENCE), (1472, INTERFACE));
        let both = Network { back: 1400, ..hole };
        both.check((1272, SILENCE), (1372, FRAGMENTS));
        let silent = Network {
            answers_in_pieces: false,
            ..both
        };
        silent.check((1272, SILENCE), (1372, SILENCE));
        assert!(!silent.survey(3).0.is_doubtful());
    }

    #[test]
    fn where_either_way_may_be_narrower_that_is_doubtful() {
        let back = Network {
            back: 1300,
            answers_in_pieces: false,
            ..ETHERNET
        };
        let no_pieces = Network {
            there: 1300,
            passes_pieces: false,
            ..ETHERNET
        };
        for network in [back, no_pieces] {
            network.check((1272, SILENCE), (1272, SILENCE));
            assert!(network.survey(3).0.is_doubtful());
        }
    }

    #[test]
    fn a_service_that_cuts_off_is_no_limit_of_the_path() {
        let service = Network {
            cuts_off: 2048,
            ..WIDE
        };
        service.check((65_507, None), (2048, None));
        assert!(service.survey(3).0.is_cut_off());
        let and_narrow = Network {
            back: 1300,
            ..service
        };
        and_narrow.check((65_507, None), (1272, FRAGMENTS));
    }

    #[test]
    fn a_silent_service_is_tried_as_often_as_was_asked_for() {
        let (survey, count) = Network { ignores: 0, ..WIDE }.survey(3);
        assert!(!survey.is_reached() && survey.next().is_none());
        assert_eq!(count, 3);
    }

    #[test]
    fn any_two_widths_are_found_each() {
        let widths = [
            68, 576, 1280, 1281, 1287, 1400, 1499, 1500, 1501, 9000, 65_535,
        ];
        let payload = |packet: usize| packet - Family::V4.header_bytes();
        for there in widths {
            for (back, tells) in widths
                .map(|back| (back, None))
                .into_iter()
                .chain(widths.map(|back| (back, Some(there as u32))))
            {
                let network = Network {
                    there,
                    back,
                    tells,
                    ..WIDE
                };
                let (survey, count) = network.survey(2);
                assert_eq!(survey.there().payload, payload(there), "{network:?}");
                assert_eq!(survey.back().payload, payload(back), "{network:?}");
                assert!(!survey.is_doubtful(), "{network:?}");
                assert!(count <= 80, "{count}: {network:?}");
            }
        }
    }

    #[test]
    fn a_false_report_of_a_router_changes_nothing() {
        for tells in [1, 68, 1299, 1301, 1400, 1472, 1499, 1500, 9000, u32::MAX] {
            let liar = Network {
                there: 1300,
                tells: Some(tells),
                ..ETHERNET
            };
            let (survey, count) = liar.survey(2);
            assert_eq!(survey.there().payload, 1272, "{tells}");
            assert_eq!(survey.back().payload, 1472, "{tells}");
            assert!(count <= 50, "{count}: {tells}");
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
            let (survey, _) = lossy.survey(10);
            assert_eq!(survey.there().payload, 1372, "{seed}");
            assert_eq!(survey.back().payload, 1272, "{seed}");
        }
    }

    #[test]
    fn an_interrupted_survey_knows_the_bounds() {
        let mut survey = Survey::new(Family::V4, 1);
        survey.handle_fate(Fate::Answered {
            len: SMALL_BYTES,
            fragment: None,
        });
        survey.handle_fate(Fate::Silence);
        assert_eq!(survey.there().at_most, Some(65_506));
        assert_eq!(survey.back().at_most, Some(65_507));
        let progress = "there: 32 to 65506 bytes; trying 32769 (1 of 1)";
        assert_eq!(survey.progress(), progress);
    }
}
