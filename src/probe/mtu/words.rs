//! What was found of a path, in words for people and fields for programs.
//!
//! Knows findings, and never how they came about.

use serde::Serialize;

use super::super::report::Report;
use super::survey::{Family, Finding, KnownBy, Stage, Survey};

/// The result for programs.
#[derive(Debug, Serialize)]
pub(super) struct Findings {
    there: Direction,
    back: Direction,
    #[serde(flatten)]
    report: Report,
}

/// One direction of it.
#[derive(Debug, Serialize)]
struct Direction {
    payload: usize,
    mtu: usize,
    /// More may pass, too.
    at_least: bool,
    /// And this is the most that may, where that is still open.
    #[serde(skip_serializing_if = "Option::is_none")]
    at_most: Option<usize>,
    known_by: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    told_by: Option<String>,
}

/// What was found, for programs.
pub(super) fn findings(survey: &Survey, report: Report) -> Findings {
    let direction = |finding: Finding| Direction {
        payload: finding.payload,
        mtu: survey.packet(finding.payload),
        at_least: finding.known_by.is_at_least(),
        at_most: finding.at_most,
        known_by: key(finding.known_by),
        told_by: match finding.known_by {
            KnownBy::Icmp(router) => Some(router.to_string()),
            _ => None,
        },
    };
    Findings {
        there: direction(survey.there()),
        back: direction(survey.back()),
        report,
    }
}

fn key(known_by: KnownBy) -> &'static str {
    match known_by {
        KnownBy::Interface => "interface",
        KnownBy::Icmp(_) => "icmp",
        KnownBy::Fragments => "fragments",
        KnownBy::Silence => "silence",
        KnownBy::Maximum => "maximum",
        KnownBy::Service => "service",
        KnownBy::Unclear => "unclear",
        KnownBy::Unfinished => "unfinished",
    }
}

/// What was found, for people: a line for each direction.
pub(super) fn lines(survey: &Survey) -> String {
    let line = |way, finding: Finding, reason: String| {
        let size = size(survey, finding);
        format!("{way} {size}: {reason}\n")
    };
    let (there, back) = (survey.there(), survey.back());
    let reason_back = match (there.known_by, back.known_by) {
        // One and the same.
        (KnownBy::Unclear, KnownBy::Unclear) => reason_there(there.known_by),
        _ => reason_back(back.known_by),
    };
    line("there:", there, reason_there(there.known_by)) + &line("back: ", back, reason_back)
}

/// `1472 bytes (MTU 1500)`.
fn size(survey: &Survey, finding: Finding) -> String {
    let Finding {
        payload,
        at_most,
        known_by,
    } = finding;
    match (known_by, at_most) {
        (KnownBy::Maximum | KnownBy::Service, _) => format!("at least {payload} bytes"),
        (_, Some(at_most)) => format!("{payload} to {at_most} bytes"),
        _ => {
            let at_least = if known_by.is_at_least() {
                "at least "
            } else {
                ""
            };
            let mtu = survey.packet(payload);
            format!("{at_least}{payload} bytes (MTU {mtu})")
        }
    }
}

fn reason_there(known_by: KnownBy) -> String {
    match known_by {
        KnownBy::Icmp(router) => format!("{router} says that it takes no more"),
        KnownBy::Silence => "larger ones vanish without a word, a black hole".into(),
        KnownBy::Unclear => "larger ones get no answer, fragmented or not".into(),
        KnownBy::Interface
        | KnownBy::Fragments
        | KnownBy::Maximum
        | KnownBy::Service
        | KnownBy::Unfinished => reason(known_by).into(),
    }
}

fn reason_back(known_by: KnownBy) -> String {
    match known_by {
        KnownBy::Silence => {
            "larger answers vanish without a word, or the service sends none so large".into()
        }
        KnownBy::Unclear => "larger ones would have to be fragmented on the way there, \
            and get no answer then"
            .into(),
        _ => reason(known_by).into(),
    }
}

fn reason(known_by: KnownBy) -> &'static str {
    match known_by {
        KnownBy::Interface => "our own interface takes no more",
        KnownBy::Fragments => "larger answers come in fragments",
        KnownBy::Maximum => "nothing on the way is smaller",
        KnownBy::Service => "the service cuts off what is longer; the path would take more",
        KnownBy::Unfinished => "the search was not over",
        KnownBy::Icmp(_) | KnownBy::Silence | KnownBy::Unclear => "larger ones vanish",
    }
}

/// What can't be known, and what would help.
pub(super) fn doubt(survey: &Survey) -> Option<&'static str> {
    match (survey.there().known_by, survey.back().known_by) {
        (KnownBy::Unclear, _) if survey.family() == Family::V6 => Some(
            "it can't be told which way loses larger ones, as over IPv6 no router fragments: \
             either way may be narrower, or the service answers none so large; \
             look at what arrives at the service",
        ),
        (KnownBy::Unclear, _) => Some(
            "it can't be told which way loses larger ones: the way back may be narrower, \
             fragments may be dropped on the way there, or the service answers none so large; \
             look at what arrives at the service",
        ),
        (_, KnownBy::Unclear) => Some(
            "the way back may take more: what is larger has to go there in fragments, \
             and somebody drops those",
        ),
        _ => None,
    }
}

/// What is going on.
pub(super) fn progress(survey: &Survey) -> String {
    let what = match survey.stage() {
        Stage::Reach => "is anybody there?",
        Stage::There => "there",
        Stage::Doubt => "there or back?",
        Stage::Back | Stage::Over => "back",
    };
    let bounds = match survey.open() {
        Some((low, high)) => format!(" {low} to {high} bytes;"),
        None => String::new(),
    };
    let (attempt, tries) = survey.attempt();
    let attempt = match attempt {
        1 => String::new(),
        _ => format!(" ({attempt} of {tries})"),
    };
    let size = survey.next().map_or(0, |probe| probe.size);
    format!("{what}{bounds} trying {size}{attempt}")
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use expect_test::{Expect, expect};

    use super::super::survey::Fate;
    use super::*;

    const ROUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    /// What is said of a network that has each of these in store for whatever is too large for it.
    fn check(fate: impl Fn(usize, bool) -> Fate, said: &Expect) {
        let mut survey = Survey::new(Family::V4, 1);
        while let Some(probe) = survey.next() {
            survey.handle_fate(fate(probe.size, probe.in_pieces));
        }
        let json = serde_json::to_string(&findings(&survey, Report::default())).expect("numbers");
        let doubt = doubt(&survey).unwrap_or("no doubt");
        said.assert_eq(&format!("{}{doubt}\n{json}\n", lines(&survey)));
    }

    fn answered(len: usize, fragment: Option<u32>) -> Fate {
        Fate::Answered { len, fragment }
    }

    #[test]
    fn a_path_is_described_in_two_lines() {
        check(
            |size, _| answered(size, None),
            &expect![[r#"
            there: at least 65507 bytes: nothing on the way is smaller
            back:  at least 65507 bytes: nothing on the way is smaller
            no doubt
            {"there":{"payload":65507,"mtu":65535,"at_least":true,"known_by":"maximum"},"back":{"payload":65507,"mtu":65535,"at_least":true,"known_by":"maximum"},"errors":{}}
        "#]],
        );
        check(
            |size, in_pieces| match size {
                0..=1372 => answered(size, (size > 1272).then_some(1300)),
                _ if in_pieces => answered(size, Some(1300)),
                _ => Fate::TooLarge {
                    mtu: Some(1400),
                    reporter: Some(ROUTER),
                },
            },
            &expect![[r#"
                there: 1372 bytes (MTU 1400): 192.0.2.1 says that it takes no more
                back:  1272 bytes (MTU 1300): larger answers come in fragments
                no doubt
                {"there":{"payload":1372,"mtu":1400,"at_least":false,"known_by":"icmp","told_by":"192.0.2.1"},"back":{"payload":1272,"mtu":1300,"at_least":false,"known_by":"fragments"},"errors":{}}
            "#]],
        );
    }

    #[test]
    fn what_is_in_doubt_is_said() {
        check(
            |size, _| match size {
                0..=1272 => answered(size, None),
                _ => Fate::Silence,
            },
            &expect![[r#"
                there: at least 1272 bytes (MTU 1300): larger ones get no answer, fragmented or not
                back:  at least 1272 bytes (MTU 1300): larger ones get no answer, fragmented or not
                it can't be told which way loses larger ones: the way back may be narrower, fragments may be dropped on the way there, or the service answers none so large; look at what arrives at the service
                {"there":{"payload":1272,"mtu":1300,"at_least":true,"known_by":"unclear"},"back":{"payload":1272,"mtu":1300,"at_least":true,"known_by":"unclear"},"errors":{}}
            "#]],
        );
    }

    #[test]
    fn what_goes_on_is_said_while_it_does() {
        let mut survey = Survey::new(Family::V4, 3);
        let mut said = progress(&survey) + "\n";
        survey.handle_fate(answered(32, None));
        for _ in 0..4 {
            said += &(progress(&survey) + "\n");
            survey.handle_fate(Fate::Silence);
        }
        said += &lines(&survey);
        expect![[r#"
            is anybody there? trying 32
            there 32 to 65507 bytes; trying 65507
            there 32 to 65507 bytes; trying 65507 (2 of 3)
            there 32 to 65507 bytes; trying 65507 (3 of 3)
            there 32 to 65506 bytes; trying 32769
            there: 32 to 65506 bytes: the search was not over
            back:  32 to 65507 bytes: the search was not over
        "#]]
        .assert_eq(&said);
    }
}
