//! Surveys of simulated networks: what is found of each, as people and programs read it.

use std::net::IpAddr;

use super::lines;
use super::survey::{Fate, Finding, Limit, Probe, Survey, V4, V6};
use crate::probe::report;

const ROUTER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

/// A simulated network; sizes are of IP packets.
#[derive(Clone, Copy, Debug)]
struct Network {
    is_ipv6: bool,
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
    is_ipv6: false,
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

/// With links of these widths behind it, of which the router reports the first.
fn links(there: usize, back: usize) -> Network {
    Network {
        there,
        back,
        tells: Some(there as u32),
        ..ETHERNET
    }
}

impl Network {
    fn is_lost(&mut self) -> bool {
        // xorshift64
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed % 100 < self.loss
    }

    fn fate(&mut self, probe: Probe) -> Fate {
        let header = if self.is_ipv6 { 48 } else { 28 };
        let packet = probe.size + header;
        let too_large = |mtu, reporter| Fate::TooLarge {
            mtu: Some(mtu),
            reporter,
        };
        let len = probe.size.min(self.cuts_off);
        let is_whole = len + header <= self.back;
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
        let family = if self.is_ipv6 { V6 } else { V4 };
        let mut survey = Survey::new(family, tries);
        for _ in 0..most {
            let Some(probe) = survey.next() else {
                return survey;
            };
            survey.handle_fate(self.fate(probe));
        }
        panic!("it goes on: {survey:?}: {self:?}");
    }

    /// People read these two lines of it.
    #[track_caller]
    fn check(self, there: &str, back: &str) -> Survey {
        let survey = self.survey(3, 101);
        let meant = format!("there: {there}\nback:  {back}\n");
        assert_eq!(lines(&survey), meant, "{self:?}");
        survey
    }
}

const OPEN: &str = "at least 65507 bytes: nothing on the way is smaller";
const INTERFACE: &str = "1472 bytes (MTU 1500): the interface of this host takes no more";
const HOLE_1300: &str = "1272 bytes (MTU 1300): larger ones vanish without a report, a black hole";
const HOLE_1400: &str = "1372 bytes (MTU 1400): larger ones vanish without a report, a black hole";
const PIECES_1300: &str = "1272 bytes (MTU 1300): larger answers come in fragments";
const PIECES_1400: &str = "1372 bytes (MTU 1400): larger answers come in fragments";
const ICMP_1300: &str = "1272 bytes (MTU 1300): 192.0.2.1 reports that it takes no more";
const ICMP_1400: &str = "1372 bytes (MTU 1400): 192.0.2.1 reports that it takes no more";
const DOUBT: &str = "1272 bytes (MTU 1300): larger ones get no answer";

#[test]
fn nothing_is_narrower_than_the_largest_datagram_on_loopback() {
    WIDE.check(OPEN, OPEN);
    let loopback = Network {
        is_ipv6: true,
        own: 65_536,
        ..WIDE
    };
    let words = "65488 bytes (MTU 65536): the interface of this host takes no more";
    loopback.check(words, words);
    loopback.survey(3, 5);
}

#[test]
fn each_way_has_its_own_limit_and_reason() {
    ETHERNET.check(INTERFACE, INTERFACE);
    for (there, back, found) in [
        (1400, 1400, [ICMP_1400, PIECES_1400]),
        (1500, 1300, [INTERFACE, PIECES_1300]),
        (1300, 1500, [ICMP_1300, INTERFACE]),
    ] {
        links(there, back).check(found[0], found[1]);
    }
}

#[test]
fn programs_get_what_applies_to_each_way() {
    let findings = links(1400, 1300).survey(3, 101).findings();
    let json = report::object(&findings).expect("numbers").to_string();
    let there =
        r#"{"payload":1372,"mtu":1400,"at_least":false,"known_by":"icmp","told_by":"192.0.2.1"}"#;
    let back = r#"{"payload":1272,"mtu":1300,"at_least":false,"known_by":"fragments"}"#;
    assert_eq!(json, format!("[{there},{back}]"));
}

#[test]
fn a_black_hole_is_placed_by_what_passes_in_fragments() {
    HOLE.check(HOLE_1300, INTERFACE);
    let both = Network { back: 1400, ..HOLE };
    both.check(HOLE_1300, PIECES_1400);
    let silent = Network {
        answers_in_pieces: false,
        ..both
    };
    silent.check(HOLE_1300, HOLE_1400);
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
        let survey = network.check(DOUBT, DOUBT);
        let is_doubt = |found: &Finding| found.known_by == Some(Limit::Silence) && found.at_least;
        assert!(survey.findings().iter().all(is_doubt));
    }
}

#[test]
fn a_service_that_cuts_off_is_no_limit_of_the_path() {
    let service = Network {
        cuts_off: 2048,
        ..WIDE
    };
    let words = "at least 2048 bytes: the service cuts off what is longer";
    service.check(OPEN, words);
    let and_narrow = Network {
        back: 1300,
        ..service
    };
    and_narrow.check(OPEN, PIECES_1300);
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
            loss: 10,
            seed: 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed),
            ..links(1400, 1300)
        };
        let found = lossy.survey(10, 500).findings().map(|found| found.payload);
        assert_eq!(found, [1372, 1272], "{seed}");
    }
}
