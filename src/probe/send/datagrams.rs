//! Standard input in datagrams and back, each when the one before has returned or is lost. None is
//! sent twice: a loss is to be seen.
//!
//! [`Sent`] recognizes the answers, the ledger accounts for them; the loop reads, sends and waits.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::output::Output;
use crate::probe::args::SendArgs;
use crate::probe::cause::{Cause, Trouble};
use crate::probe::compare::{Expect, difference};
use crate::probe::console::Stop;
use crate::probe::figures;
use crate::probe::interrupt::Interrupt;
use crate::probe::ledger::{AnswerKind, Ledger};
use crate::probe::link::{self, DATAGRAM_MEMORY, Flow, News, RETRY_INTERVAL, is_transient};
use crate::probe::payload::Recognized;
use crate::probe::report::{Report, Verdict, milliseconds};
use crate::probe::route::Route;
use crate::sys::measure::{Arrival, Failure};

/// A datagram that has not come back after this time is lost.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The last datagrams, which are remembered to know them when they come late or twice.
const REMEMBERED: usize = 16;

/// The last datagrams, as they are to come back.
#[derive(Debug, Default)]
struct Sent {
    expected: VecDeque<Vec<u8>>,
    /// The number of the first of them.
    first: u64,
}

/// See the module.
struct Sender<'a> {
    route: &'a Route,
    flow: Flow,
    args: &'a SendArgs,
    timeout: Duration,
    output: Output,
    interrupt: &'a Interrupt,
    sent: Sent,
    ledger: Ledger,
    memory: Vec<u8>,
}

pub(super) fn run(
    route: &Route,
    args: &SendArgs,
    input: &File,
    output: Output,
    interrupt: &Interrupt,
) -> Result<Verdict, Stop> {
    let timeout = args.timeout.unwrap_or(TIMEOUT);
    let began = Instant::now();
    let mut sender = Sender {
        route,
        flow: route.open()?,
        args,
        timeout,
        output,
        interrupt,
        sent: Sent::default(),
        ledger: Ledger::new(timeout, None),
        memory: vec![0; DATAGRAM_MEMORY],
    };
    sender.send_all(input)?;
    // The input has not ended.
    let is_cut_short = interrupt.is_requested();
    if is_cut_short {
        sender.ledger.handle_interrupt();
        sender.output.warn(&format!("{}: interrupted", args.url));
    }
    let tally = sender.ledger.into_tally();
    sender.output.close(&Report {
        duration_ms: Some(milliseconds(began.elapsed())),
        ..tally.report()
    })?;
    Ok(match is_cut_short {
        true => Verdict::Flawed,
        false => tally.verdict(),
    })
}

impl Sender<'_> {
    fn send_all(&mut self, input: &File) -> Result<(), Stop> {
        let mut piece = vec![0; self.args.size];
        loop {
            let len = fill(input, &mut piece, self.interrupt)?;
            let is_last = len < piece.len();
            // Empty input is an empty datagram.
            let is_empty = len == 0 && self.ledger.next_sent() > 0;
            if is_empty || self.interrupt.is_requested() {
                return Ok(());
            }
            self.exchange(&piece[..len])?;
            if is_last || self.interrupt.is_requested() {
                return Ok(());
            }
        }
    }

    /// Sends one, and waits until it is back or lost.
    fn exchange(&mut self, piece: &[u8]) -> Result<(), Stop> {
        let began = Instant::now();
        let number = self.sent.push(self.args.expect.of(piece));
        self.ledger.handle_due(began, 1);
        while self.ledger.outstanding() > 0 && !self.interrupt.is_requested() {
            if self.ledger.unsent() > 0 {
                self.ledger.handle_sent(Instant::now());
                match self.flow.send(piece) {
                    Ok(true) => {}
                    Ok(false) => self.ledger.handle_unsent(1),
                    Err(error) => return self.fail(number, self.route.trouble(&error)),
                }
            }
            self.receive()?;
            let now = Instant::now();
            // A queue may have had no room in all its time.
            let is_over = now >= began + self.timeout && self.ledger.unsent() > 0;
            if self.ledger.handle_timeout(now).is_some()
                || (is_over && self.ledger.handle_failure(number, &Cause::TimedOut))
            {
                return self.lose(number);
            }
            if self.ledger.outstanding() > 0 {
                let until = match self.ledger.unsent() {
                    0 => self.ledger.poll_timeout().unwrap_or(now),
                    _ => now + RETRY_INTERVAL,
                };
                link::wait_for(self.flow.socket.as_fd(), until, self.interrupt)?;
            }
        }
        Ok(())
    }

    /// Takes all that is there.
    fn receive(&mut self) -> Result<(), Stop> {
        loop {
            match self.flow.receive(&mut self.memory)? {
                None => return Ok(()),
                Some(News::Arrival(arrival)) => self.take(&arrival)?,
                Some(News::Failure(failure)) => {
                    let number = self.ledger.next_sent().saturating_sub(1);
                    self.fail(number, self.why(&failure))?;
                }
            }
        }
    }

    fn take(&mut self, arrival: &Arrival) -> Result<(), Stop> {
        let bytes = self.memory[..arrival.len.min(self.memory.len())].to_vec();
        let from_service = self.flow.is_peer(&arrival.source);
        let is_waiting = self.ledger.outstanding() > 0;
        let what = self
            .sent
            .recognize(&bytes, arrival.len, is_waiting, self.args.expect);
        let now = Instant::now() - arrival.age.unwrap_or_default();
        let answer = self
            .ledger
            .handle_answer(now, what, arrival.len, from_service);
        let number = answer.number.map_or(0, |number| number + 1);
        match answer.kind {
            AnswerKind::Received => {}
            AnswerKind::Late => self.warn(&format!("datagram {number}: came back late")),
            AnswerKind::Duplicate => self.warn(&format!("datagram {number}: came back once more")),
            AnswerKind::Corrupt => {
                let expected = self.sent.get(number - 1).unwrap_or_default();
                let words = difference(expected, &bytes, arrival.len);
                let words = words.map_or(String::new(), |found| found.to_string());
                self.warn(&format!("datagram {number}: {words}"));
            }
            AnswerKind::Misaddressed => self.warn(&format!(
                "datagram {number}: came back from {} instead of {}",
                arrival.source, self.flow.peer
            )),
            AnswerKind::Stray => self.warn(&format!(
                "{} bytes came from {} that were not sent",
                arrival.len, arrival.source
            )),
        }
        // A late one, or a copy, would be in the way of the others.
        if matches!(answer.kind, AnswerKind::Received | AnswerKind::Corrupt) {
            self.output.print(&bytes)?;
        }
        self.output.show_progress(self.ledger.tally().bytes);
        Ok(())
    }

    /// Why one was not delivered, with the reporter, if that is not the service itself.
    fn why(&self, failure: &Failure) -> Trouble {
        let mut trouble = self.route.trouble(&failure.error);
        trouble.cause = Cause::of_failure(failure);
        let is_service = |reporter| match self.route.address() {
            link::Address::Inet(service) => service.ip() == reporter,
            link::Address::Unix(_) => false,
        };
        match failure.reporter.filter(|reporter| !is_service(*reporter)) {
            Some(reporter) => trouble.hint(format!("reported by {reporter}")),
            None => trouble,
        }
    }

    /// One was sent in vain, for a reason that is known.
    fn fail(&mut self, number: u64, mut trouble: Trouble) -> Result<(), Stop> {
        if !self.ledger.handle_failure(number, &trouble.cause) {
            return Ok(());
        }
        if !self.ledger.tally().has_answers() {
            return Err(trouble.into());
        }
        trouble.place += &format!(": datagram {}", number + 1);
        self.output.warn(&trouble.to_string());
        Ok(())
    }

    /// One has not come back in time. If it is the first, no service is there.
    fn lose(&mut self, number: u64) -> Result<(), Stop> {
        let time = figures::setting(self.timeout);
        if !self.ledger.tally().has_answers() {
            let trouble = Trouble::new(self.route.target(), Cause::TimedOut);
            return Err(trouble
                .hint(format!("nothing came back within {time}"))
                .into());
        }
        self.warn(&format!(
            "datagram {}: lost: nothing came back within {time}",
            number + 1
        ));
        Ok(())
    }

    fn warn(&self, text: &str) {
        self.output
            .warn(&format!("{}: {text}", self.route.target()));
    }
}

impl Sent {
    /// Remembers a datagram; returns its number.
    fn push(&mut self, expected: Vec<u8>) -> u64 {
        if self.expected.len() == REMEMBERED {
            self.expected.pop_front();
            self.first += 1;
        }
        self.expected.push_back(expected);
        self.first + self.expected.len() as u64 - 1
    }

    fn get(&self, number: u64) -> Option<&[u8]> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.expected.get(index).map(Vec::as_slice)
    }

    /// Which datagram an answer is. The input has no numbers: the last that is the same, else the
    /// last that resembles it, else the one that is waited for.
    fn recognize(&self, bytes: &[u8], len: usize, is_waiting: bool, expect: Expect) -> Recognized {
        let last = self.first + self.expected.len() as u64 - 1;
        if expect == Expect::Any && is_waiting {
            return Recognized::Whole(last);
        }
        let find = |is_it: &dyn Fn(&Vec<u8>) -> bool| {
            let index = self.expected.iter().rposition(is_it);
            index.map(|index| self.first + index as u64)
        };
        if let Some(number) = find(&|expected| len == bytes.len() && expected == bytes) {
            return Recognized::Whole(number);
        }
        let resembles = |expected: &Vec<u8>| {
            let pairs = expected.iter().zip(bytes);
            pairs.filter(|(own, came)| own == came).count() * 2 > bytes.len()
        };
        match find(&resembles).or(is_waiting.then_some(last)) {
            Some(number) => Recognized::Changed(number),
            None => Recognized::Unknown,
        }
    }
}

/// Fills a piece from the input, unless that ends or the command does.
fn fill(mut input: &File, piece: &mut [u8], interrupt: &Interrupt) -> Result<usize, Stop> {
    let failed = |error| Stop::of("standard input", &error);
    let mut len = 0;
    while len < piece.len() && !interrupt.is_requested() {
        // A read is not ended by a signal.
        let far = Instant::now() + Duration::from_secs(3600);
        if !link::wait_for(input.as_fd(), far, interrupt).map_err(failed)? {
            continue;
        }
        match input.read(&mut piece[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(texts: &[&str]) -> Sent {
        let mut sent = Sent::default();
        for text in texts {
            sent.push(text.as_bytes().to_vec());
        }
        sent
    }

    #[test]
    fn an_answer_is_recognized_among_the_last_datagrams() {
        let all = sent(&["first", "second", "third"]);
        let check = |text: &str, is_waiting, meant| {
            let found = all.recognize(text.as_bytes(), text.len(), is_waiting, Expect::Echo);
            assert_eq!(found, meant, "{text}");
        };
        check("third", true, Recognized::Whole(2));
        check("first", true, Recognized::Whole(0));
        check("sEcond", true, Recognized::Changed(1));
        check("THIRD", true, Recognized::Changed(2));
        check("THIRD", false, Recognized::Unknown);
        check("", false, Recognized::Unknown);
        let any = all.recognize(b"what", 4, true, Expect::Any);
        assert_eq!(any, Recognized::Whole(2));
    }

    #[test]
    fn only_the_last_datagrams_are_remembered() {
        let texts: Vec<String> = (0..100).map(|number| format!("text {number}")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let all = sent(&texts);
        assert_eq!(all.expected.len(), REMEMBERED);
        assert_eq!((all.get(99), all.get(0)), (Some(&b"text 99"[..]), None));
        let found = all.recognize(b"text 90", 7, false, Expect::Echo);
        assert_eq!(found, Recognized::Whole(90));
    }
}
