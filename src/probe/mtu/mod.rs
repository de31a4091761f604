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
use super::console::Stop;
use super::event::Event;
use super::exchange::Exchange;
use super::figures;
use super::link::Address;
use super::payload::{Payload, nonce};
use super::report::{Report, Verdict, milliseconds};
use super::session::Session;
use crate::sys::measure::{self, Arrival, Fragmenting};
use survey::{Fate, Finding, Limit, Probe, Survey, V4, V6};

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
pub(super) fn run(session: &Session, args: &MtuArgs) -> Result<Verdict, Stop> {
    let began = Instant::now();
    let (route, console) = (&session.route, &session.console);
    let family = match route.address() {
        Address::Inet(address) if address.is_ipv6() => V6,
        _ => V4,
    };
    let mut survey = Survey::new(family, args.tries);
    // An answer with other bytes, or not as many, is as good: it shows what passes.
    let payload = Payload::new(0, nonce(), Expect::Any);
    let mut prober = Prober {
        exchange: Exchange::open(session, route, payload, args.timeout)?,
        timeout: args.timeout,
        elsewhere: None,
    };
    let ended = prober.run(&mut survey, args.tries);
    let is_cut_short = session.is_interrupted();
    if !survey.is_reached {
        return Err(match ended {
            Err(error) => route.trouble(&error).into(),
            Ok(()) => prober.why_unreached().into(),
        });
    }
    // What is still on the way has no fate.
    let ledger = &mut prober.exchange.account.ledger;
    ledger.handle_interrupt();
    let mut report = ledger.tally().report();
    report.duration_ms = Some(milliseconds(began.elapsed()));
    let [there, back] = survey.findings();
    console.report(&MtuReport {
        there,
        back,
        report,
    })?;
    console.say(&lines(&survey))?;
    if let Err(error) = &ended {
        console.warn(&format!("{}; the search ends here", route.trouble(error)));
    }
    let is_silent = |finding: Finding| finding.known_by == Some(Limit::Silence);
    if ledger.tally().late > 0 && (is_silent(there) || is_silent(back)) {
        console.warn(
            "some answers came later than --timeout: a size may have been taken for too large; \
             give it more",
        );
    }
    if survey.is_doubtful() {
        console.warn(
            "it is unknown which way loses larger ones: either way may be narrower, fragments may \
             be dropped, or the service answers none of that size; look at what arrives at the \
             service",
        );
    }
    let is_known = ended.is_ok() && !is_cut_short && !survey.is_doubtful();
    Ok(match is_known {
        true => Verdict::Good,
        false => Verdict::Flawed,
    })
}

/// Sends one datagram after the other and waits for what becomes of each.
struct Prober<'a> {
    exchange: Exchange<'a, Payload>,
    timeout: Duration,
    /// The sender of an answer that did not come from the service.
    elsewhere: Option<String>,
}

impl Prober<'_> {
    fn run(&mut self, survey: &mut Survey, tries: u32) -> io::Result<()> {
        let line = figures::spinner(&self.exchange.session.console);
        while let Some(probe) = survey.next()
            && !self.exchange.session.is_interrupted()
        {
            line.set_message(format!("trying {} bytes", probe.size));
            line.tick();
            // A silent service is known after one timeout, in which it is tried several times.
            let time = match survey.is_reached {
                true => self.timeout,
                false => self.timeout / tries,
            };
            if let Some(fate) = self.probe(probe, time)? {
                survey.handle_fate(fate);
            }
        }
        Ok(())
    }

    fn why_unreached(&self) -> Trouble {
        let session = self.exchange.session;
        let cause = match session.is_interrupted() {
            true => Some(Cause::Interrupted),
            false => self.exchange.account.ledger.tally().errors.chief().cloned(),
        };
        let trouble = Trouble::new(session.route.target(), cause.unwrap_or(Cause::TimedOut));
        let elsewhere = self.elsewhere.as_ref();
        let hint = elsewhere.map(|source| format!("the answer came from {source}"));
        trouble.hint(hint.unwrap_or_default())
    }

    /// Sends a datagram and waits for what becomes of it; none: the command is ended.
    fn probe(&mut self, probe: Probe, time: Duration) -> io::Result<Option<Fate>> {
        let fragmenting = match probe.in_pieces {
            true => Fragmenting::Allowed,
            false => Fragmenting::Probing,
        };
        let Exchange {
            account, datagrams, ..
        } = &mut self.exchange;
        measure::set_fragmenting(datagrams.flow.socket.as_fd(), fragmenting)?;
        // What was received before would be taken for the fate of this one.
        datagrams.receive(account)?;
        account.events.clear();
        account.messages.size = probe.size;
        let (number, sent) = (account.ledger.next_sent(), Instant::now());
        self.exchange.send()?;
        while let Some(event) = self.exchange.next_event(sent + time)? {
            let fate = self.fate(probe, number, event)?;
            if fate.is_some() {
                return Ok(fate);
            }
        }
        Ok((!self.exchange.session.is_interrupted()).then_some(Fate::Silence))
    }

    /// What an event says of the datagram of this number.
    fn fate(&mut self, probe: Probe, number: u64, event: Event) -> io::Result<Option<Fate>> {
        match event {
            // Any answer to a small one shows that the service is there.
            Event::Answered(came) if !self.exchange.is_from_service(&came) => {
                self.elsewhere = Some(came.source());
                Ok(None)
            }
            Event::Answered(came) => {
                let is_small = came.answer.number.is_some() && probe.size == survey::SMALL_BYTES;
                let is_it = is_small || came.answer.number == Some(number);
                let arrival = came.arrival.filter(|_| is_it);
                Ok(arrival.map(|Arrival { len, fragment, .. }| Fate::Answered { len, fragment }))
            }
            Event::Failed(_, Cause::TooLarge, Some(failure)) => Ok(Some(Fate::TooLarge {
                mtu: failure.mtu,
                reporter: failure.reporter,
            })),
            Event::Failed(_, Cause::Refused, Some(failure)) => Err(failure.error),
            _ => Ok(None),
        }
    }
}

/// The result for programs.
#[derive(Debug, Serialize)]
struct MtuReport {
    there: Finding,
    back: Finding,
    #[serde(flatten)]
    report: Report,
}

/// The result for people: a line for each direction.
fn lines(survey: &Survey) -> String {
    let [there, back] = survey.findings();
    let open = "nothing on the way is smaller";
    let open_back = match survey.is_cut_off {
        true => "the service cuts off what is longer",
        false => open,
    };
    let line = |way: &str, finding: Finding, open: &str| {
        let Finding { payload, mtu, .. } = finding;
        // An open limit has no MTU.
        let size = match (finding.at_most, finding.known_by) {
            (Some(at_most), _) => format!("{payload} to {at_most} bytes"),
            (None, None) => format!("at least {payload} bytes"),
            (None, Some(_)) => format!("{payload} bytes (MTU {mtu})"),
        };
        let told_by = finding
            .told_by
            .map(|router| format!("{router} reports that it"));
        let reason = match finding.known_by {
            _ if finding.at_most.is_some() => "the search was not over".into(),
            None => open.into(),
            Some(Limit::Interface) => "the interface of this host takes no more".into(),
            Some(Limit::Icmp) => told_by.unwrap_or_default() + " takes no more",
            Some(Limit::Fragments) => "larger answers come in fragments".into(),
            Some(Limit::Silence) if survey.is_doubtful() => "larger ones get no answer".into(),
            Some(Limit::Silence) => "larger ones vanish without a report, a black hole".into(),
        };
        format!("{way} {size}: {reason}\n")
    };
    line("there:", there, open) + &line("back: ", back, open_back)
}

#[cfg(test)]
mod tests;
