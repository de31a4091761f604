//! Standard input through a stream and back: one loop that waits for the input and the socket.
//!
//! [`Transfer`] decides, over bytes and times; the loop reads, writes and waits.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};

use super::output::Output;
use crate::cli::text::{bytes, counted};
use crate::probe::args::SendArgs;
use crate::probe::cause::Cause;
use crate::probe::compare::{Comparison, Difference, Expect, WINDOW_BYTES_MAX};
use crate::probe::console::Stop;
use crate::probe::figures;
use crate::probe::interrupt::Interrupt;
use crate::probe::link::{self, Stream, is_transient};
use crate::probe::report::{Report, Verdict, milliseconds};
use crate::probe::route::Route;

/// The bytes that are read and written at once.
const PIECE_BYTES: usize = 256 * 1024;

/// The excess at which a service that sends without end is stopped.
const EXCESS_MAX: u64 = 16 << 20;

/// Give up when nothing was returned for this time.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What ended it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    /// The input, and then the peer.
    Whole,
    /// The peer, before the input.
    Closed,
    /// The connection, for this reason.
    Broken(Cause),
    /// Nothing has arrived for this time.
    TimedOut(Duration),
    /// Much more came than was sent.
    Flooded,
    /// The user or the deadline.
    Interrupted,
}

/// A stream that is being sent.
#[derive(Debug)]
struct Transfer {
    comparison: Comparison,
    /// The input has ended.
    is_fed: bool,
    /// The connection takes nothing more.
    is_broken: bool,
    timeout: Duration,
    /// The last progress: something was sent, or came back.
    since: Instant,
}

pub(super) fn run(
    route: &Route,
    args: &SendArgs,
    input: &File,
    mut output: Output,
    interrupt: &Interrupt,
) -> Result<Verdict, Stop> {
    let timeout = args.timeout.unwrap_or(TIMEOUT);
    let stream = route.connect(timeout, interrupt)?;
    let began = Instant::now();
    let mut transfer = Transfer::new(args.expect, timeout, began);
    let end = transfer.run(stream, input, &mut output, interrupt)?;
    let complaints = transfer.complaints(&end);
    for (_, words) in &complaints {
        output.warn(&format!("{}: {words}", args.url));
    }
    let mut report = transfer.report();
    report.duration_ms = Some(milliseconds(began.elapsed()));
    for cause in complaints.into_iter().filter_map(|(cause, _)| cause) {
        report.errors.count(cause);
    }
    output.close(&report)?;
    Ok(transfer.verdict(&end))
}

impl Transfer {
    fn new(expect: Expect, timeout: Duration, now: Instant) -> Self {
        Self {
            comparison: Comparison::new(expect),
            is_fed: false,
            is_broken: false,
            timeout,
            since: now,
        }
    }

    /// Sends all of the input, and takes all that comes back.
    fn run(
        &mut self,
        mut stream: Stream,
        input: &File,
        output: &mut Output,
        interrupt: &Interrupt,
    ) -> Result<End, Stop> {
        let mut memory = vec![0; PIECE_BYTES];
        let mut is_ready = true;
        loop {
            if interrupt.is_requested() {
                self.comparison.handle_unsent(stream.discard());
                return Ok(End::Interrupted);
            }
            // What has returned is taken first: it makes room for more.
            if let Some(end) = self.receive(&mut stream, &mut memory, output)? {
                self.comparison.handle_unsent(stream.discard());
                return Ok(end);
            }
            if is_ready && self.wants_input(&stream) {
                self.feed(input, &mut stream, &mut memory)?;
            }
            self.flush(&mut stream);
            let now = Instant::now();
            let deadline = self.deadline(&stream);
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Ok(End::TimedOut(self.timeout));
            }
            let until = deadline.unwrap_or(now + self.timeout);
            let mut polled = vec![stream.polled()];
            if self.wants_input(&stream) {
                polled.push(PollFd::new(input.as_fd(), PollFlags::POLLIN));
            }
            link::wait(&mut polled, until, interrupt)?;
            is_ready = polled.get(1).is_some_and(link::is_readable);
        }
    }

    /// Whether there is room for more input.
    fn wants_input(&self, stream: &Stream) -> bool {
        !self.is_fed && !self.is_broken && stream.unsent() == 0 && self.comparison.room() > 0
    }

    /// When the service has been silent for too long; none while the input is waited for.
    fn deadline(&self, stream: &Stream) -> Option<Instant> {
        let is_waiting = self.comparison.missing() > 0 || stream.unsent() > 0;
        (is_waiting || self.is_fed || self.is_broken).then(|| self.since + self.timeout)
    }

    /// Takes a piece of the input.
    fn feed(
        &mut self,
        mut input: &File,
        stream: &mut Stream,
        memory: &mut [u8],
    ) -> Result<(), Stop> {
        let room = self.comparison.room().min(memory.len());
        match input.read(&mut memory[..room]) {
            Ok(0) => {
                self.is_fed = true;
                self.since = Instant::now();
                stream.half_close();
            }
            Ok(len) => {
                // It has to be known before it can come back.
                self.comparison.handle_sent(&memory[..len]);
                stream.push(&memory[..len]);
                self.since = Instant::now();
            }
            Err(error) if is_transient(&error) => {}
            Err(error) => return Err(Stop::of("standard input", &error)),
        }
        Ok(())
    }

    fn flush(&mut self, stream: &mut Stream) {
        match stream.flush() {
            Ok(0) => {}
            Ok(_) => self.since = Instant::now(),
            Err(_) => {
                // What the peer sent before the end can still be read, and why it ended.
                self.is_broken = true;
                self.comparison.handle_unsent(stream.discard());
            }
        }
    }

    /// Takes what has returned; returns how it ended, if it did.
    fn receive(
        &mut self,
        stream: &mut Stream,
        memory: &mut [u8],
        output: &mut Output,
    ) -> Result<Option<End>, Stop> {
        let received = stream.receive(memory);
        let len = match received {
            Ok(None) => return Ok(None),
            Ok(Some(0)) if self.is_fed && stream.unsent() == 0 => return Ok(Some(End::Whole)),
            Ok(Some(0)) => return Ok(Some(End::Closed)),
            Ok(Some(len)) => len,
            Err(error) => return Ok(Some(End::Broken(Cause::of(&error)))),
        };
        self.comparison.handle_received(&memory[..len]);
        output.print(&memory[..len])?;
        output.show_progress(self.comparison.came());
        // Printing may have taken its time, and that was not the peer's.
        self.since = Instant::now();
        let excess = self
            .comparison
            .came()
            .saturating_sub(self.comparison.sent());
        Ok((self.comparison.is_exact() && excess > EXCESS_MAX).then_some(End::Flooded))
    }

    /// Everything that is not as it should be: words, and the cause for programs, if it counts.
    fn complaints(&self, end: &End) -> Vec<(Option<Cause>, String)> {
        let changed = self.comparison.difference();
        let changed = changed.filter(|found| !matches!(found, Difference::Excess { .. }));
        let difference = changed.map(|found| (Some(Cause::Mismatch), found.to_string()));
        difference.into_iter().chain(self.complaint(end)).collect()
    }

    /// What is wrong with the end.
    fn complaint(&self, end: &End) -> Option<(Option<Cause>, String)> {
        let (sent, came) = (self.comparison.sent(), self.comparison.came());
        let progress = format!("{came} of {} had come back", counted(sent, "byte"));
        let excess = came.saturating_sub(sent);
        let (cause, words) = match end {
            End::Whole if !self.comparison.is_exact() || came == sent => return None,
            End::Whole if came < sent => {
                let missing = counted(sent - came, "byte");
                let words = format!("closed when {progress}: {missing} too few");
                (Some(Cause::Closed), words)
            }
            End::Whole => {
                let words = format!("{came} bytes came back of {sent}: {excess} too many");
                (Some(Cause::Mismatch), words)
            }
            End::Flooded => {
                let words = format!("more than {excess} bytes came back that were not sent");
                (Some(Cause::Mismatch), words)
            }
            End::Closed => {
                let words = format!("closed before the end of the input, when {progress}");
                (Some(Cause::Closed), words)
            }
            End::Broken(cause) => (Some(cause.clone()), format!("{cause} when {progress}")),
            End::Interrupted => (None, format!("interrupted when {progress}")),
            End::TimedOut(time) => self.silence(*time, &progress),
        };
        Some((cause, words))
    }

    fn silence(&self, time: Duration, progress: &str) -> (Option<Cause>, String) {
        let time = figures::setting(time);
        if self.is_right() {
            let words = format!("everything came back, and the connection is open after {time}");
            return (None, words);
        }
        let full = match self.comparison.room() {
            0 => format!("; {} are on the way", bytes(WINDOW_BYTES_MAX as u64)),
            _ => String::new(),
        };
        let words = format!("timed out: {progress}, and nothing more within {time}{full}");
        (Some(Cause::TimedOut), words)
    }

    /// Whether all that was sent came back, as it should.
    fn is_right(&self) -> bool {
        let comparison = &self.comparison;
        let is_all = comparison.came() == comparison.sent() && self.is_fed;
        comparison.difference().is_none() && comparison.is_exact() && is_all
    }

    fn verdict(&self, end: &End) -> Verdict {
        let is_good = match end {
            End::Whole => self.is_right() || !self.comparison.is_exact(),
            End::TimedOut(_) => self.is_right(),
            End::Closed | End::Broken(_) | End::Flooded | End::Interrupted => false,
        };
        match is_good {
            true => Verdict::Good,
            false => Verdict::Flawed,
        }
    }

    fn report(&self) -> Report {
        let comparison = &self.comparison;
        let is_exact = comparison.is_exact();
        Report {
            sent: Some(comparison.sent()),
            received: Some(comparison.right()),
            lost: is_exact.then(|| comparison.missing()),
            corrupt: is_exact.then(|| {
                let came = comparison.came().min(comparison.sent());
                came.saturating_sub(comparison.right())
            }),
            bytes: Some(comparison.right()),
            ..Report::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn transfer(expect: Expect, sent: &str, came: &str) -> Transfer {
        let mut transfer = Transfer::new(expect, SECOND, Instant::now());
        transfer.comparison.handle_sent(sent.as_bytes());
        transfer.comparison.handle_received(came.as_bytes());
        transfer.is_fed = true;
        transfer
    }

    fn check(sent: &str, came: &str, end: &End, verdict: Verdict, words: &[&str]) {
        let transfer = transfer(Expect::Echo, sent, came);
        let complaints = transfer.complaints(end);
        let said: Vec<&str> = complaints.iter().map(|(_, words)| words.as_str()).collect();
        assert_eq!(said, words);
        assert_eq!(transfer.verdict(end), verdict, "{said:?}");
    }

    #[test]
    fn what_is_as_it_should_be_needs_no_words() {
        check("hello", "hello", &End::Whole, Verdict::Good, &[]);
        check("", "", &End::Whole, Verdict::Good, &[]);
        for came in ["", "anything"] {
            let any = transfer(Expect::Any, "hello", came);
            assert_eq!(any.complaints(&End::Whole), []);
            assert_eq!(any.verdict(&End::Whole), Verdict::Good);
        }
    }

    #[test]
    fn too_little_and_too_much_are_reported_with_counts() {
        let words = "closed when 4 of 5 bytes had come back: 1 byte too few";
        check("hello", "hell", &End::Whole, Verdict::Flawed, &[words]);
        let words = "7 bytes came back of 5: 2 too many";
        check("hello", "hello!!", &End::Whole, Verdict::Flawed, &[words]);
        let words = "more than 2 bytes came back that were not sent";
        check("hello", "hello!!", &End::Flooded, Verdict::Flawed, &[words]);
    }

    #[test]
    fn a_difference_is_reported_and_the_count_as_well() {
        let difference = "byte 1 came back as 0x61 'a' instead of 0x65 'e'";
        check(
            "hello",
            "hallo",
            &End::Whole,
            Verdict::Flawed,
            &[difference],
        );
        let few = "closed when 4 of 5 bytes had come back: 1 byte too few";
        check(
            "hello",
            "hall",
            &End::Whole,
            Verdict::Flawed,
            &[difference, few],
        );
    }

    #[test]
    fn an_early_end_is_reported_with_how_much_had_come_back() {
        let words = "closed before the end of the input, when 5 of 5 bytes had come back";
        check("hello", "hello", &End::Closed, Verdict::Flawed, &[words]);
        let words = "reset when 0 of 5 bytes had come back";
        let reset = End::Broken(Cause::Reset);
        check("hello", "", &reset, Verdict::Flawed, &[words]);
        let words = "interrupted when 2 of 5 bytes had come back";
        check("hello", "he", &End::Interrupted, Verdict::Flawed, &[words]);
    }

    #[test]
    fn silence_is_told_from_a_connection_that_stays_open() {
        let silent = End::TimedOut(SECOND);
        let words = "timed out: 2 of 5 bytes had come back, and nothing more within 1s";
        check("hello", "he", &silent, Verdict::Flawed, &[words]);
        let words = "everything came back, and the connection is open after 1s";
        check("hello", "hello", &silent, Verdict::Good, &[words]);
        let much = "x".repeat(WINDOW_BYTES_MAX);
        let words = "timed out: 0 of 16777216 bytes had come back, and nothing more within 1s; \
                     16.0 MiB are on the way";
        check(&much, "", &silent, Verdict::Flawed, &[words]);
    }

    #[test]
    fn the_bytes_of_a_stream_add_up() {
        for (came, numbers) in [
            ("hello", [5, 0, 0]),
            ("hal", [1, 2, 2]),
            ("hello!", [5, 0, 0]),
        ] {
            let report = transfer(Expect::Echo, "hello", came).report();
            let found = [report.received, report.lost, report.corrupt].map(Option::unwrap);
            assert_eq!(found, numbers, "{came}");
            assert_eq!(found.iter().sum::<u64>(), 5, "{came}");
        }
    }
}
