//! The largest datagram that passes each way unfragmented.
//!
//! Sends what [`survey`] says and tells it what became of that. Never sends more than one at a time,
//! so that a path is not taken for narrow because it is full.

mod search;
mod survey;
mod words;

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::args::{MtuArgs, Path};
use super::cause::{Cause, Causes};
use super::interrupt::{Interrupt, LOOK_INTERVAL};
use super::mark::{self, Mark};
use super::report::{Report, Verdict, milliseconds};
use super::route::{self, Address, Flow, Route};
use super::{Console, Trouble, progress};
use crate::cli::exit::Failure;
use crate::sys::measure::{self, Fragmenting};
use crate::sys::message::Source;
use survey::{Family, Fate, Finding, KnownBy, Probe, Survey};

/// Does what the command line says.
///
/// # Errors
/// When the command line makes no sense for this service, or results can't be printed.
pub(super) fn run(
    args: &MtuArgs,
    path: &Path,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Verdict, Failure> {
    if args.url.is_stream() || !args.url.is_inet() {
        return Err(route::usage(format!(
            "{}: only datagrams over IP have a largest size: write mtu udp://HOST:PORT",
            args.url
        )));
    }
    let opened = Route::resolve(&args.url, path).and_then(|route| Ok((route.open()?, route)));
    let (flow, route) = match opened {
        Ok(opened) => opened,
        Err(trouble) => return console.unreached(&trouble),
    };
    let mut survey = Survey::new(family(&flow), args.tries);
    let mut prober = Prober::new(flow, args.timeout, interrupt);
    let began = Instant::now();
    let stopped = prober.survey(&mut survey, console).err();
    if !survey.is_reached() && !matches!(stopped, Some(Stop::Interrupted)) {
        return console.unreached(&prober.why_unreached(&route, stopped));
    }
    let report = prober.tally.report(began.elapsed());
    console.report(&words::findings(&survey, report))?;
    console.say(&words::lines(&survey))?;
    prober.tally.warn(&survey, console);
    if let Some(Stop::Failed(error)) = stopped {
        console.warn(&format!("{}; the search ends here", route.trouble(&error)));
    } else if let Some(doubt) = words::doubt(&survey) {
        console.warn(doubt);
    }
    let is_found = ![survey.there(), survey.back()]
        .iter()
        .any(|finding| finding.known_by.is_doubtful());
    Ok(if is_found {
        Verdict::Good
    } else {
        Verdict::Flawed
    })
}

fn family(flow: &Flow) -> Family {
    match &flow.peer {
        Address::Inet(address) if address.is_ipv6() => Family::V6,
        _ => Family::V4,
    }
}

/// Why a survey ends before its end.
#[derive(Debug)]
enum Stop {
    /// The user has asked for it.
    Interrupted,
    /// The network or the service has.
    Failed(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Sends one datagram after the other and waits for what becomes of each.
struct Prober<'a> {
    flow: Flow,
    timeout: Duration,
    interrupt: &'a Interrupt,
    mark: Mark,
    memory: Vec<u8>,
    tally: Tally,
}

/// What became of all.
#[derive(Debug, Default)]
struct Tally {
    sent: u64,
    received: u64,
    /// Those that came back when the next was already on its way.
    late: u64,
    /// Those that were waited for in vain, and may still come back.
    unanswered: Vec<Vec<u8>>,
    /// Who answered instead of the service.
    elsewhere: Option<Source>,
    errors: Causes,
}

impl<'a> Prober<'a> {
    fn new(flow: Flow, timeout: Duration, interrupt: &'a Interrupt) -> Self {
        Self {
            flow,
            timeout,
            interrupt,
            mark: Mark::new(),
            memory: vec![0; 1 << 16],
            tally: Tally::default(),
        }
    }

    fn survey(&mut self, survey: &mut Survey, console: &Console) -> Result<(), Stop> {
        let line = progress::spinner(console);
        while let Some(probe) = survey.next() {
            line.set_message(words::progress(survey));
            line.tick();
            survey.handle_fate(self.probe(probe)?);
        }
        Ok(())
    }

    /// Sends a datagram and waits for what becomes of it.
    fn probe(&mut self, probe: Probe) -> Result<Fate, Stop> {
        let fragmenting = match probe.in_pieces {
            true => Fragmenting::Allowed,
            false => Fragmenting::Probing,
        };
        measure::set_fragmenting(self.flow.socket.as_fd(), fragmenting)?;
        // News of an earlier one would be taken for an error of this one's sending.
        while self.flow.receive_failure(&mut self.memory)?.is_some() {}
        let message = self.mark.next_message(probe.size);
        match self.flow.send(&message) {
            Ok(()) => self.tally.sent += 1,
            Err(error) if Cause::of(&error) == Cause::TooLarge => return self.hear_own_limit(),
            Err(error) => return Err(error.into()),
        }
        let deadline = Instant::now() + self.timeout;
        loop {
            if let Some(fate) = self.hear_news(probe, &message)? {
                return Ok(fate);
            }
            if let Some(fate) = self.take_answer(&message)? {
                return Ok(fate);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.tally.errors.count(Cause::TimedOut);
                self.tally.unanswered.push(message);
                return Ok(Fate::Silence);
            }
            if self.interrupt.is_requested() {
                return Err(Stop::Interrupted);
            }
            let fd = self.flow.socket.as_fd();
            route::wait(fd, false, left.min(LOOK_INTERVAL))?;
        }
    }

    /// It did not leave this host; the kernel has told how large it might have been.
    fn hear_own_limit(&mut self) -> Result<Fate, Stop> {
        let (mut mtu, mut reporter) = (None, None);
        while let Some(failure) = self.flow.receive_failure(&mut self.memory)? {
            (mtu, reporter) = (failure.mtu, failure.reporter);
        }
        Ok(Fate::TooLarge { mtu, reporter })
    }

    /// What routers, or the service's host, say of it.
    fn hear_news(&mut self, probe: Probe, message: &[u8]) -> Result<Option<Fate>, Stop> {
        while let Some(failure) = self.flow.receive_failure(&mut self.memory)? {
            let quoted = &self.memory[..failure.len];
            // Some quote only the headers: it is of the last one then, or true of it, too.
            let is_of_another =
                quoted.len() >= mark::MARK_BYTES && !mark::is_answer(quoted, message);
            match Cause::of(&failure.error) {
                Cause::Refused => return Err(failure.error.into()),
                _ if is_of_another => {}
                Cause::TooLarge if probe.in_pieces => {}
                Cause::TooLarge => {
                    self.tally.errors.count(Cause::TooLarge);
                    return Ok(Some(Fate::TooLarge {
                        mtu: failure.mtu,
                        reporter: failure.reporter,
                    }));
                }
                cause => self.tally.errors.count(cause),
            }
        }
        Ok(None)
    }

    fn take_answer(&mut self, message: &[u8]) -> Result<Option<Fate>, Stop> {
        while let Some(arrival) = self.flow.receive(&mut self.memory)? {
            let answer = &self.memory[..arrival.len.min(self.memory.len())];
            if !mark::is_answer(answer, message) {
                let late = |message: &Vec<u8>| mark::is_answer(answer, message);
                if let Some(index) = self.tally.unanswered.iter().position(late) {
                    self.tally.unanswered.swap_remove(index);
                    self.tally.late += 1;
                }
                continue;
            }
            if !self.flow.is_peer(&arrival.source) {
                self.tally.elsewhere = Some(arrival.source);
                self.tally.errors.count(Cause::Mismatch);
                continue;
            }
            if !message.starts_with(answer) {
                self.tally.errors.count(Cause::Mismatch);
            }
            self.tally.received += 1;
            return Ok(Some(Fate::Answered {
                len: arrival.len,
                fragment: arrival.fragment,
            }));
        }
        Ok(None)
    }

    fn why_unreached(&self, route: &Route, stopped: Option<Stop>) -> Trouble {
        if let Some(Stop::Failed(error)) = stopped {
            return route.trouble(&error);
        }
        let told = [Cause::Unreachable, Cause::Mismatch]
            .into_iter()
            .find(|cause| self.tally.errors.of(cause) > 0);
        let trouble = Trouble::new(route.target().to_string(), told.unwrap_or(Cause::TimedOut));
        match self.tally.elsewhere {
            Some(Source::Inet(address)) => trouble.hint(format!(
                "the answer came from {address}: the service has to answer from the address \
                 that was asked"
            )),
            _ if self.tally.late > 0 => {
                trouble.hint("answers come later than --timeout: give it more")
            }
            _ => trouble,
        }
    }
}

impl Tally {
    fn report(&self, duration: Duration) -> Report {
        Report {
            sent: Some(self.sent),
            received: Some(self.received),
            lost: Some(self.sent - self.received - self.late),
            late: Some(self.late),
            duration_ms: Some(milliseconds(duration)),
            errors: self.errors.clone(),
            ..Report::default()
        }
    }

    /// What makes the result doubtful.
    fn warn(&self, survey: &Survey, console: &Console) {
        let by_silence =
            |finding: Finding| matches!(finding.known_by, KnownBy::Silence | KnownBy::Unclear);
        if self.late > 0 && (by_silence(survey.there()) || by_silence(survey.back())) {
            console.warn(
                "some answers came later than --timeout: a size may have been taken for too large; \
                 give it more",
            );
        }
        if self.errors.of(&Cause::Mismatch) > 0 {
            console.warn(
                "some answers had other bytes than were sent, or came from another address: \
                 see echoprobe check",
            );
        }
    }
}
