//! The survey of a path in both directions: which datagram to send next, what its fate says of the
//! way there and of the way back, and how sure that is.
//!
//! An answer proves that its datagram has arrived, and says itself how it came back. Silence says
//! nothing of where it was lost: so what is not answered whole is sent once more in pieces.
//!
//! Knows sizes and fates; no socket, no clock.

use std::net::IpAddr;

use super::search::Search;

/// What reaches every service that is there at all: IPv4 takes 68 bytes anywhere (RFC 791).
pub(super) const SMALL_BYTES: usize = 32;

/// The largest length that an IP header can say.
const LENGTH_MAX: usize = 65_535;

/// UDP's own.
const UDP_HEADER_BYTES: usize = 8;

/// The family of IP that a path is of: what it puts before each payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    /// IP's header and UDP's.
    pub(super) fn header_bytes(self) -> usize {
        match self {
            Self::V4 => 20 + UDP_HEADER_BYTES,
            Self::V6 => 40 + UDP_HEADER_BYTES,
        }
    }

    /// The largest payload there is. IPv6 does not count its own header.
    pub(super) fn payload_bytes_max(self) -> usize {
        match self {
            Self::V4 => LENGTH_MAX - self.header_bytes(),
            Self::V6 => LENGTH_MAX - UDP_HEADER_BYTES,
        }
    }
}

/// A datagram to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    /// How many bytes it has.
    pub(super) size: usize,
    /// Whether it may go in pieces.
    pub(super) in_pieces: bool,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// So many bytes came back, whole or in fragments, the largest of which was a packet of so many.
    Answered { len: usize, fragment: Option<u32> },
    /// Somebody says that it is too large: a router, or our own interface, which is nobody else.
    TooLarge {
        mtu: Option<u32>,
        reporter: Option<IpAddr>,
    },
    /// Nothing came.
    Silence,
}

/// Why more than was found does not pass, or is not known to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KnownBy {
    /// Our own interface takes no more.
    Interface,
    /// A router says so.
    Icmp(IpAddr),
    /// Larger answers come in fragments.
    Fragments,
    /// Larger ones vanish.
    Silence,
    /// There is nothing larger: it is at least so much.
    Maximum,
    /// The service cuts off what is longer: it is at least so much.
    Service,
    /// Larger ones vanish, and perhaps not on this way: it is at least so much.
    Unclear,
    /// The search was not over: it is at least so much.
    Unfinished,
}

impl KnownBy {
    /// Whether more may pass.
    pub(super) fn is_at_least(self) -> bool {
        match self {
            Self::Interface | Self::Icmp(_) | Self::Fragments | Self::Silence => false,
            Self::Maximum | Self::Service | Self::Unclear | Self::Unfinished => true,
        }
    }

    /// Whether something keeps us from knowing more.
    pub(super) fn is_doubtful(self) -> bool {
        matches!(self, Self::Unclear | Self::Unfinished)
    }
}

/// What is known of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    /// The largest payload that passed whole.
    pub(super) payload: usize,
    /// The largest that may, where that is still open.
    pub(super) at_most: Option<usize>,
    /// Why not more.
    pub(super) known_by: KnownBy,
}

/// What is being looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Whether anything comes back.
    Reach,
    /// What passes on the way there, by datagrams that must not be fragmented.
    There,
    /// Whether the least that was lost is answered when it may be fragmented.
    Doubt,
    /// What passes on the way back.
    Back,
    /// Nothing more: all that can be known is.
    Over,
}

/// The state of the survey.
#[derive(Clone, Debug)]
pub(super) struct Survey {
    family: Family,
    tries: u32,
    tries_left: u32,
    stage: Stage,
    reached: bool,
    there: Search,
    back: Search,
    /// Why the least that fails does; and what our own interface or the service say of the most.
    there_by: KnownBy,
    back_by: KnownBy,
    back_most_by: KnownBy,
    /// The narrowest that a router has told, as a payload.
    told: Option<(usize, IpAddr)>,
    /// Fragments of ours have arrived.
    pieces_arrive: bool,
}

impl Survey {
    /// Of a path of this family; what is not answered is tried so many times in all.
    pub(super) fn new(family: Family, tries: u32) -> Self {
        let search = Search::new(SMALL_BYTES, family.payload_bytes_max());
        Self {
            family,
            tries,
            tries_left: tries,
            stage: Stage::Reach,
            reached: false,
            there: search.clone(),
            back: search,
            there_by: KnownBy::Maximum,
            back_by: KnownBy::Maximum,
            back_most_by: KnownBy::Maximum,
            told: None,
            pieces_arrive: false,
        }
    }

    /// The family of the path.
    pub(super) fn family(&self) -> Family {
        self.family
    }

    /// What is being looked for.
    pub(super) fn stage(&self) -> Stage {
        self.stage
    }

    /// Which try of the next probe it is, of how many.
    pub(super) fn attempt(&self) -> (u32, u32) {
        (self.tries - self.tries_left + 1, self.tries)
    }

    /// Between which sizes the limit of the direction in question is.
    pub(super) fn open(&self) -> Option<(usize, usize)> {
        let (low, high) = match self.stage {
            Stage::There => self.there.open()?,
            Stage::Back => self.back.open()?,
            Stage::Reach | Stage::Doubt | Stage::Over => return None,
        };
        Some((low - 1, high))
    }

    /// Whether anything came back.
    pub(super) fn is_reached(&self) -> bool {
        self.reached
    }

    /// What to send next; none: it is over.
    pub(super) fn next(&self) -> Option<Probe> {
        let (size, in_pieces) = match self.stage {
            Stage::Reach => (SMALL_BYTES, false),
            Stage::There => (self.there.next()?, false),
            Stage::Doubt => (self.there.fails()?, true),
            Stage::Back => {
                let size = self.back.next()?;
                (size, size > self.there.passes())
            }
            Stage::Over => return None,
        };
        Some(Probe { size, in_pieces })
    }

    /// This is what became of what was to be sent next.
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
        self.reached = true;
        if !probe.in_pieces {
            self.there.passed(probe.size);
        } else if probe.size > self.there.passes() {
            self.pieces_arrive = true;
        }
        let len = len.min(probe.size);
        match fragment {
            None => self.back.passed(len),
            Some(packet) => {
                let told = self.payload(packet);
                self.fail_back(len, Some(told), KnownBy::Fragments);
            }
        }
        if len < probe.size {
            self.back.limit(len);
            self.back_most_by = KnownBy::Service;
        }
    }

    /// Somebody has refused it. Whether that makes sense: who would have let it pass by their own
    /// words has not refused this one.
    fn handle_refusal(&mut self, probe: Probe, mtu: Option<u32>, by: Option<IpAddr>) -> bool {
        let told = mtu.filter(|mtu| *mtu > 0).map(|mtu| self.payload(mtu));
        let makes_sense = told.is_none_or(|told| told < probe.size);
        if self.stage != Stage::There || !makes_sense {
            return false;
        }
        self.there.failed(probe.size, told);
        self.there_by = by.map_or(KnownBy::Interface, KnownBy::Icmp);
        match (told, by) {
            (Some(told), Some(by)) => self.told = Some((told, by)),
            (Some(told), None) if self.back.fails().is_none() => {
                // Nor does it take more when it comes to us.
                self.back.limit(told);
                self.back_most_by = KnownBy::Interface;
            }
            _ => {}
        }
        true
    }

    /// It is lost. Whether it was so often that it is taken for too large.
    fn handle_silence(&mut self, probe: Probe) -> bool {
        self.tries_left -= 1;
        if self.tries_left > 0 {
            return false;
        }
        match self.stage {
            Stage::Reach => self.stage = Stage::Over,
            Stage::There => {
                self.there.failed(probe.size, None);
                self.there_by = KnownBy::Silence;
            }
            // It may be there or back.
            Stage::Doubt => {
                self.there_by = KnownBy::Unclear;
                self.fail_back(probe.size, None, KnownBy::Unclear);
            }
            Stage::Back if self.pieces_arrive || !probe.in_pieces => {
                self.fail_back(probe.size, None, KnownBy::Silence);
            }
            // If no piece arrives, the next size that has to go in pieces shows it.
            Stage::Back => {
                let least = self.there.passes() + 1;
                self.fail_back(probe.size, Some(least), KnownBy::Unclear);
            }
            Stage::Over => {}
        }
        true
    }

    fn fail_back(&mut self, size: usize, told: Option<usize>, by: KnownBy) {
        // One that had come whole before: the path has changed, or there are two.
        if self.back.is_news(size) {
            self.back.failed(size, told);
            self.back_by = by;
        }
    }

    /// Goes on to what is to be looked for next.
    fn advance(&mut self) {
        if self.stage == Stage::Reach && self.reached {
            self.stage = Stage::There;
        }
        if self.stage == Stage::There && self.there.next().is_none() {
            // What a router has said, and what was found without a word, are one.
            if let Some((told, by)) = self.told
                && told == self.there.passes()
            {
                self.there_by = KnownBy::Icmp(by);
            }
            // An answer that is too large would have come in fragments, if smaller ones do.
            let answers_in_fragments =
                self.back.fails().is_some() && self.back_by == KnownBy::Fragments;
            self.stage = match self.there_by {
                KnownBy::Silence if !answers_in_fragments => Stage::Doubt,
                _ => Stage::Back,
            };
        } else if self.stage == Stage::Doubt {
            self.stage = Stage::Back;
        }
        if self.stage == Stage::Back && self.back.next().is_none() {
            self.stage = Stage::Over;
        }
    }

    /// What is known of the way there.
    pub(super) fn there(&self) -> Finding {
        let known_by = match self.stage {
            Stage::Reach | Stage::There | Stage::Doubt => KnownBy::Unfinished,
            Stage::Back | Stage::Over => self.there_by,
        };
        finding(&self.there, known_by)
    }

    /// What is known of the way back.
    pub(super) fn back(&self) -> Finding {
        let known_by = match self.back.fails() {
            _ if self.back.open().is_some() => KnownBy::Unfinished,
            Some(_) => self.back_by,
            None => self.back_most_by,
        };
        finding(&self.back, known_by)
    }

    /// The largest IP packet with this payload.
    pub(super) fn packet(&self, payload: usize) -> usize {
        payload + self.family.header_bytes()
    }

    /// The largest payload in such a packet.
    fn payload(&self, packet: u32) -> usize {
        (packet as usize).saturating_sub(self.family.header_bytes())
    }
}

fn finding(search: &Search, known_by: KnownBy) -> Finding {
    Finding {
        payload: search.passes(),
        at_most: search.open().map(|(_, high)| high),
        known_by,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    /// A made-up network; sizes are of IP packets.
    #[derive(Clone, Copy, Debug)]
    struct Network {
        family: Family,
        own: usize,
        there: usize,
        back: usize,
        /// What the router says that it lets pass; none: it says nothing.
        tells: Option<u32>,
        /// It lets pieces pass.
        passes_pieces: bool,
        /// Whether answers that are too large go in pieces, else they are lost.
        answers_in_pieces: bool,
        /// What the service does to payloads that are longer.
        cuts_off: usize,
        ignores: usize,
        /// So many of a hundred are lost, by this seed.
        loss: u64,
        seed: u64,
    }

    /// As wide as can be.
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
            if !probe.in_pieces && packet > self.own {
                return Fate::TooLarge {
                    mtu: Some(self.own as u32),
                    reporter: None,
                };
            }
            if self.is_lost() {
                return Fate::Silence;
            }
            if !probe.in_pieces && packet > self.there {
                return match self.tells {
                    Some(mtu) => Fate::TooLarge {
                        mtu: Some(mtu),
                        reporter: Some(ROUTER),
                    },
                    None => Fate::Silence,
                };
            }
            let goes_in_pieces = packet > self.own.min(self.there);
            if goes_in_pieces && !self.passes_pieces || probe.size > self.ignores || self.is_lost()
            {
                return Fate::Silence;
            }
            let len = probe.size.min(self.cuts_off);
            if len + header <= self.back {
                return Fate::Answered {
                    len,
                    fragment: None,
                };
            }
            if !self.answers_in_pieces {
                return Fate::Silence;
            }
            // A fragment's payload is a multiple of 8 (RFC 791).
            let ip_header = header - UDP_HEADER_BYTES;
            let fragment = (self.back - ip_header) / 8 * 8 + ip_header;
            Fate::Answered {
                len,
                fragment: Some(fragment as u32),
            }
        }

        /// Surveys it; returns the survey and how many datagrams it took.
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

        /// The payload that such a packet has.
        fn payload(&self, packet: usize) -> usize {
            let most = self.family.payload_bytes_max();
            packet.saturating_sub(self.family.header_bytes()).min(most)
        }

        fn check(self, there: (usize, KnownBy), back: (usize, KnownBy), count_max: u32) {
            let (survey, count) = self.survey(3);
            let finding = |(payload, known_by)| Finding {
                payload,
                at_most: None,
                known_by,
            };
            assert_eq!(survey.there(), finding(there), "there: {self:?}");
            assert_eq!(survey.back(), finding(back), "back: {self:?}");
            assert!(count <= count_max, "{count} datagrams: {self:?}");
        }
    }

    #[test]
    fn nothing_is_narrower_than_the_largest_datagram_on_loopback() {
        let most = (65_507, KnownBy::Maximum);
        WIDE.check(most, most, 2);
        let loopback = Network {
            family: Family::V6,
            own: 65_536,
            ..WIDE
        };
        let most = (65_488, KnownBy::Interface);
        loopback.check(most, most, 4);
    }

    #[test]
    fn our_own_interface_is_known_at_once() {
        let most = (1472, KnownBy::Interface);
        ETHERNET.check(most, most, 4);
    }

    #[test]
    fn a_router_that_says_so_is_heard() {
        let narrow = Network {
            there: 1400,
            back: 1400,
            tells: Some(1400),
            ..ETHERNET
        };
        narrow.check((1372, KnownBy::Icmp(ROUTER)), (1372, KnownBy::Fragments), 8);
    }

    #[test]
    fn the_way_back_may_be_narrower_or_wider() {
        let narrow_back = Network {
            back: 1300,
            ..ETHERNET
        };
        narrow_back.check((1472, KnownBy::Interface), (1272, KnownBy::Fragments), 8);
        let narrow_there = Network {
            there: 1300,
            tells: Some(1300),
            ..ETHERNET
        };
        narrow_there.check((1272, KnownBy::Icmp(ROUTER)), (1472, KnownBy::Interface), 6);
    }

    #[test]
    fn a_black_hole_is_placed_by_what_passes_in_pieces() {
        let hole_there = Network {
            there: 1300,
            ..ETHERNET
        };
        let found = (1272, KnownBy::Silence);
        hole_there.check(found, (1472, KnownBy::Interface), 35);
        let both = Network {
            back: 1400,
            ..hole_there
        };
        both.check(found, (1372, KnownBy::Fragments), 45);
        let both = Network {
            answers_in_pieces: false,
            ..both
        };
        both.check(found, (1372, KnownBy::Silence), 60);
    }

    #[test]
    fn answers_in_fragments_are_not_what_is_lost() {
        let both = Network {
            there: 1404,
            back: 1400,
            passes_pieces: false,
            ..ETHERNET
        };
        both.check((1376, KnownBy::Silence), (1372, KnownBy::Fragments), 40);
    }

    #[test]
    fn what_nobody_can_tell_is_not_told() {
        let unclear = (1272, KnownBy::Unclear);
        let hole_back = Network {
            back: 1300,
            answers_in_pieces: false,
            ..ETHERNET
        };
        hole_back.check(unclear, unclear, 40);
        let hole_there_and_no_pieces = Network {
            there: 1300,
            passes_pieces: false,
            ..ETHERNET
        };
        hole_there_and_no_pieces.check(unclear, unclear, 40);
        let service = Network {
            ignores: 2048,
            ..WIDE
        };
        let unclear = (2048, KnownBy::Unclear);
        service.check(unclear, unclear, 60);
        let told_and_no_pieces = Network {
            tells: Some(1300),
            ..hole_there_and_no_pieces
        };
        let back = (1272, KnownBy::Unclear);
        told_and_no_pieces.check((1272, KnownBy::Icmp(ROUTER)), back, 12);
    }

    #[test]
    fn a_service_that_cuts_off_is_no_limit_of_the_path() {
        let service = Network {
            cuts_off: 2048,
            ..WIDE
        };
        service.check((65_507, KnownBy::Maximum), (2048, KnownBy::Service), 2);
        let and_narrow = Network {
            back: 1300,
            ..service
        };
        and_narrow.check((65_507, KnownBy::Maximum), (1272, KnownBy::Fragments), 12);
    }

    #[test]
    fn a_service_that_is_not_there_is_tried_as_often_as_was_said() {
        let (survey, count) = Network { ignores: 0, ..WIDE }.survey(3);
        assert!(!survey.is_reached() && survey.stage() == Stage::Over);
        assert_eq!(count, 3);
    }

    #[test]
    fn any_two_widths_are_found_each() {
        let widths = [
            68, 576, 1280, 1281, 1287, 1400, 1499, 1500, 1501, 9000, 65_535,
        ];
        let pairs = widths
            .iter()
            .flat_map(|there| widths.map(|back| (*there, back)));
        for (there, back) in pairs {
            for tells in [None, Some(there as u32)] {
                let network = Network {
                    there,
                    back,
                    tells,
                    ..WIDE
                };
                let (survey, count) = network.survey(2);
                assert_eq!(
                    survey.there().payload,
                    network.payload(there),
                    "{network:?}"
                );
                assert_eq!(survey.back().payload, network.payload(back), "{network:?}");
                assert!(!survey.there().known_by.is_doubtful(), "{network:?}");
                assert!(!survey.back().known_by.is_doubtful(), "{network:?}");
                assert!(count <= 80, "{count}: {network:?}");
            }
        }
    }

    #[test]
    fn a_router_that_lies_is_not_believed() {
        for tells in [1, 68, 1299, 1301, 1400, 1472, 1499, 1500, 9000, u32::MAX] {
            let liar = Network {
                there: 1300,
                tells: Some(tells),
                ..ETHERNET
            };
            let (survey, count) = liar.survey(2);
            assert_eq!(survey.there().payload, 1272, "{tells}");
            assert_eq!(survey.back().payload, 1472, "{tells}");
            assert!(count <= 40, "{count}: {tells}");
        }
        let silent_about_it = Network {
            there: 1300,
            tells: Some(0),
            ..ETHERNET
        };
        let found = (1272, KnownBy::Icmp(ROUTER));
        silent_about_it.check(found, (1472, KnownBy::Interface), 20);
    }

    #[test]
    fn on_a_path_that_loses_it_is_a_matter_of_tries() {
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
    fn whoever_is_interrupted_knows_the_bounds() {
        let mut survey = Survey::new(Family::V4, 1);
        survey.handle_fate(Fate::Answered {
            len: SMALL_BYTES,
            fragment: None,
        });
        survey.handle_fate(Fate::Silence);
        assert_eq!(survey.open(), Some((SMALL_BYTES, 65_506)));
        let unfinished = |at_most| Finding {
            payload: SMALL_BYTES,
            at_most: Some(at_most),
            known_by: KnownBy::Unfinished,
        };
        assert_eq!(survey.there(), unfinished(65_506));
        assert_eq!(survey.back(), unfinished(65_507));
    }
}
