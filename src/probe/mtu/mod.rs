//! The largest datagram that passes each way unfragmented.
//!
//! Sends what [`survey`] says and reports to it what became of that. Never sends more than one at a
//! time, so that a full path is not taken for a narrow one.

mod survey;

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::args::MtuArgs;
use super::cause::{Cause, Trouble};
use super::compare::Expect;
use super::console::{Console, Stop};
use super::figures;
use super::interrupt::Interrupt;
use super::ledger::Ledger;
use super::link::{self, Address, DATAGRAM_MEMORY, Flow, News};
use super::payload::{Payload, Recognized, nonce};
use super::report::{Report, Verdict, milliseconds};
use super::route::Route;
use crate::sys::measure::{self, Arrival, Failure, Fragmenting};
use crate::sys::message::Source;
use survey::{Family, Fate, Finding, Limit, Probe, Survey};

/// Whether the command line makes sense.
pub(super) fn check(args: &MtuArgs) -> Result<(), String> {
    match !args.url.is_stream() && args.url.is_inet() {
        true => Ok(()),
        false => Err(format!(
            "{}: only datagrams over IP have a largest size: write mtu udp://HOST:PORT",
            args.url
        )),
    }
}

/// Does what the command line says.
pub(super) fn run(
    route: &Route,
    args: &MtuArgs,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Verdict, Stop> {
    let began = Instant::now();
    let flow = route.open()?;
    let family = match &flow.peer {
        Address::Inet(address) if address.is_ipv6() => Family::V6,
        _ => Family::V4,
    };
    let mut survey = Survey::new(family, args.tries);
    let mut prober = Prober {
        flow,
        timeout: args.timeout,
        interrupt,
        nonce: nonce(),
        ledger: Ledger::new(args.timeout, None),
        memory: vec![0; DATAGRAM_MEMORY],
        elsewhere: None,
        has_changes: false,
    };
    let ended = prober.run(&mut survey, args.tries, console);
    let is_cut_short = interrupt.is_requested();
    if !survey.is_reached() {
        return Err(match ended {
            Err(error) => route.trouble(&error).into(),
            Ok(()) => prober.why_unreached(route).into(),
        });
    }
    // What is still on the way has no fate.
    prober.ledger.handle_interrupt();
    let mut report = prober.ledger.tally().report();
    report.duration_ms = Some(milliseconds(began.elapsed()));
    console.report(&findings(&survey, report))?;
    console.say(&lines(&survey))?;
    if let Err(error) = &ended {
        console.warn(&format!("{}; the search ends here", route.trouble(error)));
    }
    prober.warn(&survey, console);
    let is_known = ended.is_ok() && !is_cut_short && !survey.is_doubtful();
    Ok(match is_known {
        true => Verdict::Good,
        false => Verdict::Flawed,
    })
}

/// Sends one datagram after the other and waits for what becomes of each.
struct Prober<'a> {
    flow: Flow,
    timeout: Duration,
    interrupt: &'a Interrupt,
    nonce: u64,
    ledger: Ledger,
    memory: Vec<u8>,
    /// The sender of an answer that did not come from the service.
    elsewhere: Option<Source>,
    /// Whether an answer had other bytes.
    has_changes: bool,
}

impl Prober<'_> {
    fn run(&mut self, survey: &mut Survey, tries: u32, console: &Console) -> io::Result<()> {
        let line = figures::spinner(console);
        while let Some(probe) = survey.next()
            && !self.interrupt.is_requested()
        {
            line.set_message(survey.progress());
            line.tick();
            // A silent service is known after one timeout, in which it is tried several times.
            let time = match survey.is_reached() {
                true => self.timeout,
                false => self.timeout / tries,
            };
            if let Some(fate) = self.probe(probe, time)? {
                survey.handle_fate(fate);
            }
        }
        Ok(())
    }

    /// Sends a datagram and waits for what becomes of it; none: the command is ended.
    fn probe(&mut self, probe: Probe, time: Duration) -> io::Result<Option<Fate>> {
        let fragmenting = match probe.in_pieces {
            true => Fragmenting::Allowed,
            false => Fragmenting::Probing,
        };
        measure::set_fragmenting(self.flow.socket.as_fd(), fragmenting)?;
        // What was received before would be taken for the fate of this one.
        while self.flow.receive(&mut self.memory)?.is_some() {}
        let payload = Payload::fixed(probe.size, self.nonce, Expect::Echo);
        let number = self.ledger.next_sent();
        match self.flow.send(&payload.bytes(number)) {
            Ok(_) => {}
            Err(error) if Cause::of(&error) == Cause::TooLarge => return self.own_limit(),
            Err(error) => return Err(error),
        }
        let sent = Instant::now();
        self.ledger.handle_due(sent, 1);
        self.ledger.handle_sent(sent);
        loop {
            while let Some(news) = self.flow.receive(&mut self.memory)? {
                let fate = match news {
                    News::Arrival(arrival) => self.handle_arrival(probe, payload, number, arrival),
                    News::Failure(failure) => {
                        self.handle_failure(probe, payload, number, failure)?
                    }
                };
                if fate.is_some() {
                    return Ok(fate);
                }
            }
            if self.interrupt.is_requested() {
                return Ok(None);
            }
            if Instant::now() >= sent + time {
                while self.ledger.handle_timeout(Instant::now()).is_some() {}
                return Ok(Some(Fate::Silence));
            }
            let fd = self.flow.socket.as_fd();
            link::wait_for(fd, sent + time, self.interrupt)?;
        }
    }

    /// It did not leave this host; the kernel reports how large it might have been.
    fn own_limit(&mut self) -> io::Result<Option<Fate>> {
        let mut mtu = None;
        while let Some(news) = self.flow.receive(&mut self.memory)? {
            if let News::Failure(failure) = news {
                mtu = failure.mtu;
            }
        }
        let reporter = None;
        Ok(Some(Fate::TooLarge { mtu, reporter }))
    }

    /// A report of a router, or of the service's host.
    fn handle_failure(
        &mut self,
        probe: Probe,
        payload: Payload,
        number: u64,
        failure: Failure,
    ) -> io::Result<Option<Fate>> {
        let quoted = &self.memory[..failure.len];
        // Some quote only the headers: then it is about the last datagram, or true of it, too.
        let about = payload.claimed(quoted, number + 1).unwrap_or(number);
        let cause = Cause::of_failure(&failure);
        match cause {
            Cause::Refused => Err(failure.error),
            _ if about != number => Ok(None),
            Cause::TooLarge if probe.in_pieces => Ok(None),
            _ => {
                self.ledger.handle_failure(number, &cause);
                Ok((cause == Cause::TooLarge).then_some(Fate::TooLarge {
                    mtu: failure.mtu,
                    reporter: failure.reporter,
                }))
            }
        }
    }

    /// An answer; one in upper case is as good, for it has the same size.
    fn handle_arrival(
        &mut self,
        probe: Probe,
        payload: Payload,
        number: u64,
        arrival: Arrival,
    ) -> Option<Fate> {
        let bytes = &self.memory[..arrival.len.min(self.memory.len())];
        let answered = match payload.recognize(bytes, arrival.len, number + 1) {
            Recognized::Whole(number) | Recognized::Changed(number) => number,
            Recognized::Empty | Recognized::Unknown => return None,
        };
        // An answer from elsewhere shows that the service is there, and nothing about the way back.
        let from_service = self.flow.is_peer(&arrival.source);
        if !from_service {
            self.elsewhere = Some(arrival.source);
        }
        let what = Recognized::Whole(answered);
        let now = Instant::now() - arrival.age.unwrap_or_default();
        self.ledger
            .handle_answer(now, what, arrival.len, from_service);
        if !from_service || (answered != number && probe.size > survey::SMALL_BYTES) {
            return None;
        }
        let message = payload.bytes(answered);
        let len = bytes.len().min(message.len());
        self.has_changes |= !message[..len].eq_ignore_ascii_case(&bytes[..len]);
        Some(Fate::Answered {
            len: arrival.len,
            fragment: arrival.fragment,
        })
    }

    fn why_unreached(&self, route: &Route) -> Trouble {
        let tally = self.ledger.tally();
        let cause = match self.interrupt.is_requested() {
            true => Cause::Interrupted,
            false => tally.errors.chief().cloned().unwrap_or(Cause::TimedOut),
        };
        let trouble = Trouble::new(route.target(), cause);
        match self.elsewhere {
            Some(address) => trouble.hint(format!("the answer came from {address}")),
            None => trouble,
        }
    }

    /// What makes the result doubtful.
    fn warn(&self, survey: &Survey, console: &Console) {
        let is_silent = |finding: Finding| finding.limit == Some(Limit::Silence);
        if self.ledger.tally().late > 0 && (is_silent(survey.there()) || is_silent(survey.back())) {
            console.warn(
                "some answers came later than --timeout: a size may have been taken for too large; \
                 give it more",
            );
        }
        if self.has_changes || self.elsewhere.is_some() {
            console.warn(
                "some answers had other bytes than were sent, or came from another address: \
                 see echoprobe check",
            );
        }
        if survey.is_doubtful() {
            console.warn(
                "it is unknown which way loses larger ones: either way may be narrower, fragments \
                 may be dropped, or the service answers none of that size; look at what arrives at \
                 the service",
            );
        }
    }
}

/// The result for programs.
#[derive(Debug, Serialize)]
struct Findings {
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
    /// The most that may pass, where the search was not over.
    #[serde(skip_serializing_if = "Option::is_none")]
    at_most: Option<usize>,
    /// Why not more passes.
    #[serde(skip_serializing_if = "Option::is_none")]
    known_by: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    told_by: Option<String>,
}

fn findings(survey: &Survey, report: Report) -> Findings {
    let direction = |finding: Finding| Direction {
        payload: finding.payload,
        mtu: survey.packet(finding.payload),
        at_least: finding.limit.is_none() || survey.is_doubtful(),
        at_most: finding.at_most,
        known_by: finding.limit.map(|limit| match limit {
            Limit::Interface => "interface",
            Limit::Router(_) => "icmp",
            Limit::Fragments => "fragments",
            Limit::Silence => "silence",
        }),
        told_by: match finding.limit {
            Some(Limit::Router(router)) => Some(router.to_string()),
            _ => None,
        },
    };
    Findings {
        there: direction(survey.there()),
        back: direction(survey.back()),
        report,
    }
}

/// The result for people: a line for each direction.
fn lines(survey: &Survey) -> String {
    let line = |way: &str, finding: Finding, open: &str| {
        let Finding {
            payload,
            at_most,
            limit,
        } = finding;
        // An open limit has no MTU.
        let mtu = survey.packet(payload);
        let size = match (at_most, limit) {
            (Some(at_most), _) => format!("{payload} to {at_most} bytes"),
            (None, None) => format!("at least {payload} bytes"),
            (None, Some(_)) => format!("{payload} bytes (MTU {mtu})"),
        };
        let reason = match limit {
            _ if at_most.is_some() => "the search was not over".into(),
            None => open.into(),
            Some(Limit::Interface) => "the interface of this host takes no more".into(),
            Some(Limit::Router(router)) => format!("{router} reports that it takes no more"),
            Some(Limit::Fragments) => "larger answers come in fragments".into(),
            Some(Limit::Silence) if survey.is_doubtful() => "larger ones get no answer".into(),
            Some(Limit::Silence) => "larger ones vanish without a report, a black hole".into(),
        };
        format!("{way} {size}: {reason}\n")
    };
    let open_back = match survey.is_cut_off() {
        true => "the service cuts off what is longer",
        false => "nothing on the way is smaller",
    };
    let open_there = "nothing on the way is smaller";
    line("there:", survey.there(), open_there) + &line("back: ", survey.back(), open_back)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use expect_test::expect;

    use super::*;

    const ROUTER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    /// What is reported of a network in which this becomes of each datagram.
    fn check(fate: impl Fn(usize, bool) -> Fate, said: &expect_test::Expect) {
        let mut survey = Survey::new(Family::V4, 1);
        while let Some(probe) = survey.next() {
            survey.handle_fate(fate(probe.size, probe.in_pieces));
        }
        let json = serde_json::to_string(&findings(&survey, Report::default())).expect("numbers");
        said.assert_eq(&format!("{}{json}\n", lines(&survey)));
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
                {"there":{"payload":65507,"mtu":65535,"at_least":true},"back":{"payload":65507,"mtu":65535,"at_least":true},"errors":{}}
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
                there: 1372 bytes (MTU 1400): 192.0.2.1 reports that it takes no more
                back:  1272 bytes (MTU 1300): larger answers come in fragments
                {"there":{"payload":1372,"mtu":1400,"at_least":false,"known_by":"icmp","told_by":"192.0.2.1"},"back":{"payload":1272,"mtu":1300,"at_least":false,"known_by":"fragments"},"errors":{}}
            "#]],
        );
        check(
            |size, _| match size {
                0..=1272 => answered(size, None),
                _ => Fate::Silence,
            },
            &expect![[r#"
                there: 1272 bytes (MTU 1300): larger ones get no answer
                back:  1272 bytes (MTU 1300): larger ones get no answer
                {"there":{"payload":1272,"mtu":1300,"at_least":true,"known_by":"silence"},"back":{"payload":1272,"mtu":1300,"at_least":true,"known_by":"silence"},"errors":{}}
            "#]],
        );
    }
}
