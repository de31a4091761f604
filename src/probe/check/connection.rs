//! A client on a stream: sends, takes what comes back, compares it, and notes how that ends.
//!
//! Never waits for a service that is silent for longer than the timeout, nor for one that sends a
//! little now and then for longer than ten times that.

use std::io;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};
use std::os::fd::AsFd;

use super::Service;
use super::finding::{Finding, Halt, bytes, silence};
use crate::probe::cause::{Cause, Trouble};
use crate::probe::compare::Comparison;
use crate::probe::figures;
use crate::probe::link::{self, Stream, is_readable};

/// The bytes that are read and written at once.
pub(super) const PIECE_BYTES: usize = 64 * 1024;

/// A check ends after this many timeouts, whatever is still coming.
const PATIENCE: u32 = 10;

/// How an exchange ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// Everything has returned.
    Whole,
    /// Both sides have closed.
    End,
}

/// How what comes back on a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    /// It did not have to: everything was there.
    Open,
    /// With a FIN.
    Closed,
    /// With an error.
    Broken(Cause),
    /// It did not, and nothing more came within this time.
    Silent(Duration),
}

impl End {
    fn cause(&self) -> Cause {
        match self {
            Self::Open => Cause::Mismatch,
            Self::Closed => Cause::Closed,
            Self::Broken(cause) => cause.clone(),
            Self::Silent(_) => Cause::TimedOut,
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Open => "no end".into(),
            Self::Closed => "the end of the connection".into(),
            Self::Broken(Cause::Reset) => "a reset".into(),
            Self::Broken(cause) => cause.to_string(),
            Self::Silent(time) => silence(*time),
        }
    }
}

/// A connection, and the bytes that are to be sent on it.
pub(super) struct Client<'a> {
    service: &'a Service<'a>,
    stream: Stream,
    bytes: Vec<u8>,
    sent: usize,
    comparison: Comparison,
    /// What has returned, as far as it is kept.
    head: Vec<u8>,
    /// Whether the socket still takes something.
    can_send: bool,
    /// Why not, where that says more than what is read.
    broken: Option<Cause>,
    began: Instant,
    /// When something last came or went.
    last: Instant,
}

impl<'a> Client<'a> {
    pub(super) fn connect(service: &'a Service<'a>, bytes: Vec<u8>) -> Result<Self, Trouble> {
        let stream = service.route.connect(service.timeout, service.interrupt)?;
        let now = Instant::now();
        Ok(Self {
            service,
            stream,
            bytes,
            sent: 0,
            comparison: Comparison::new(service.expect),
            head: Vec::new(),
            can_send: true,
            broken: None,
            began: now,
            last: now,
        })
    }

    /// Sends the bytes, at most this many in each write, and takes what comes back.
    pub(super) fn exchange(&mut self, most: usize, until: Until) -> Finding {
        let end = self.converse(most, until)?;
        judge(self.bytes.len(), &self.comparison, &end)
    }

    fn converse(&mut self, most: usize, until: Until) -> Result<End, Halt> {
        (self.began, self.last) = (Instant::now(), Instant::now());
        let mut is_half_closed = false;
        loop {
            while self.send(most) {}
            if until == Until::End && !is_half_closed && self.unsent() == 0 {
                self.stream.half_close();
                is_half_closed = true;
            }
            if let Some(end) = self.receive() {
                return Ok(end);
            }
            if until == Until::Whole && self.came() == self.bytes.len() {
                return Ok(End::Open);
            }
            if !self.wait()? {
                return Ok(End::Silent(self.service.timeout));
            }
        }
    }

    /// Sends a piece, of this many bytes at most; whether any of it was taken.
    pub(super) fn send(&mut self, most: usize) -> bool {
        let piece = &self.bytes[self.sent..];
        let piece = &piece[..piece.len().min(most)];
        if piece.is_empty() || !self.can_send {
            return false;
        }
        match self.stream.send_some(piece) {
            Ok(len) => {
                self.comparison.handle_sent(&piece[..len]);
                self.sent += len;
                if len > 0 {
                    self.last = Instant::now();
                }
                len > 0
            }
            Err(error) => {
                self.can_send = false;
                // After EPIPE the end came before, and is still to be read.
                if error.kind() != io::ErrorKind::BrokenPipe {
                    self.broken = Some(Cause::of(&error));
                }
                false
            }
        }
    }

    fn unsent(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Takes what has returned; how it ended, if it did, or if the rest does not matter.
    fn receive(&mut self) -> Option<End> {
        let mut memory = vec![0; PIECE_BYTES];
        loop {
            match self.stream.receive(&mut memory) {
                Ok(None) => return None,
                Ok(Some(0)) => return Some(self.broken.clone().map_or(End::Closed, End::Broken)),
                Ok(Some(len)) => {
                    self.comparison.handle_received(&memory[..len]);
                    let room = PIECE_BYTES - self.head.len();
                    self.head.extend(&memory[..len.min(room)]);
                    self.last = Instant::now();
                }
                Err(error) => {
                    // The kernel reports it once.
                    let cause = Cause::of(&error);
                    self.broken = Some(cause.clone());
                    return Some(End::Broken(cause));
                }
            }
            if self.comparison.difference().is_some() {
                return Some(End::Open);
            }
        }
    }

    /// Takes what has returned until now. An end is found again.
    pub(super) fn take(&mut self) {
        let _ = self.receive();
    }

    /// Bytes that have returned.
    pub(super) fn came(&self) -> usize {
        self.comparison.came() as usize
    }

    /// Whether the service answers in upper case what should come back as it is.
    pub(super) fn is_upper(&self) -> bool {
        let sent = &self.bytes[..self.head.len().min(self.bytes.len())];
        !self.head.is_empty() && self.head == sent.to_ascii_uppercase() && self.head != sent
    }

    /// Waits until something can be done; not if nothing could for too long.
    fn wait(&self) -> Result<bool, Halt> {
        let until = self.last + self.service.timeout;
        let until = until.min(self.began + self.service.timeout * PATIENCE);
        let mut wanted = PollFlags::POLLIN;
        wanted.set(PollFlags::POLLOUT, self.can_send && self.unsent() > 0);
        self.poll(wanted, until)?;
        Ok(Instant::now() < until)
    }

    fn poll(&self, wanted: PollFlags, until: Instant) -> Result<bool, Halt> {
        self.service.look()?;
        let mut polled = [PollFd::new(self.stream.socket.as_fd(), wanted)];
        link::wait(&mut polled, until, self.service.interrupt)?;
        Ok(is_readable(&polled[0]))
    }

    /// Waits until something has arrived, and reports that, or until this time has passed.
    pub(super) fn wait_for_answer(&self, time: Duration) -> Result<bool, Halt> {
        let until = Instant::now() + time;
        loop {
            let is_there = self.poll(PollFlags::POLLIN, until)?;
            if is_there || Instant::now() >= until {
                return Ok(is_there);
            }
        }
    }

    /// Sends without reading, until nothing was taken for this time, or everything was. The rest is
    /// not sent any more. Returns the number of bytes that were taken.
    pub(super) fn stuff(&mut self, stall: Duration) -> Result<usize, Halt> {
        let began = Instant::now();
        let mut last = began;
        while self.unsent() > 0 {
            self.service.look()?;
            if self.send(PIECE_BYTES) {
                last = Instant::now();
            } else if !self.can_send {
                let seen = format!("the connection ended after {}", bytes(self.sent));
                return Err(Halt::failed(seen, Cause::Closed));
            } else if last.elapsed() >= stall {
                break;
            } else {
                self.poll(PollFlags::POLLOUT, last + stall)?;
            }
            if began.elapsed() >= self.service.timeout * PATIENCE {
                let time = figures::duration(began.elapsed());
                let seen = format!("the path is slow: {} in {time}", bytes(self.sent));
                return Err(Halt::NotApplicable(seen));
            }
        }
        self.bytes.truncate(self.sent);
        Ok(self.sent)
    }

    /// Ends the connection with an RST; on a Unix socket, which has none, by leaving what has arrived
    /// unread, which the service sees as one.
    pub(super) fn reset(self) -> io::Result<()> {
        if self.service.route.target().is_inet() {
            self.stream.socket.set_linger(Some(Duration::ZERO))?;
        }
        Ok(())
    }
}

/// Whether this many bytes came back, no other ones, and then the end where it was due.
fn judge(len: usize, comparison: &Comparison, end: &End) -> Finding {
    if let Some(difference) = comparison.difference() {
        return Err(Halt::failed(difference.to_string(), Cause::Mismatch));
    }
    let came = comparison.came() as usize;
    let all = bytes(len);
    let seen = match end {
        _ if came < len => format!("{came} of {all}, then {}", end.words()),
        End::Open => return Ok(all),
        End::Closed => return Ok(format!("{all}, then the end of the connection")),
        End::Silent(time) => {
            let time = figures::setting(*time);
            format!("{all}, but no end of the connection within {time}")
        }
        End::Broken(_) => format!(
            "{all}, then {} instead of the end of the connection",
            end.words()
        ),
    };
    Err(Halt::failed(seen, end.cause()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::compare::Expect;

    const SECONDS: Duration = Duration::from_secs(2);

    fn check(sent: &str, came: &str, end: &End, said: Result<&str, (&str, Cause)>) {
        let mut comparison = Comparison::new(Expect::Echo);
        comparison.handle_sent(sent.as_bytes());
        comparison.handle_received(came.as_bytes());
        let meant = said
            .map(ToString::to_string)
            .map_err(|(seen, cause)| Halt::failed(seen, cause));
        assert_eq!(judge(sent.len(), &comparison, end), meant);
    }

    #[test]
    fn a_stream_that_came_back_whole_is_all_right() {
        check("hello", "hello", &End::Open, Ok("5 bytes"));
        let words = "1 byte, then the end of the connection";
        check("h", "h", &End::Closed, Ok(words));
    }

    #[test]
    fn what_is_missing_is_reported_with_how_it_ended() {
        let check = |end: &End, words, cause| check("hello", "he", end, Err((words, cause)));
        let words = "2 of 5 bytes, then nothing within 2s";
        check(&End::Silent(SECONDS), words, Cause::TimedOut);
        let words = "2 of 5 bytes, then the end of the connection";
        check(&End::Closed, words, Cause::Closed);
        let words = "2 of 5 bytes, then a reset";
        check(&End::Broken(Cause::Reset), words, Cause::Reset);
    }

    #[test]
    fn a_missing_or_wrong_end_is_reported() {
        let check = |end: &End, words, cause| check("hello", "hello", end, Err((words, cause)));
        let words = "5 bytes, but no end of the connection within 2s";
        check(&End::Silent(SECONDS), words, Cause::TimedOut);
        let words = "5 bytes, then a reset instead of the end of the connection";
        check(&End::Broken(Cause::Reset), words, Cause::Reset);
    }

    #[test]
    fn other_bytes_come_before_everything_else() {
        let words = "byte 1 came back as 0x61 'a' instead of 0x65 'e'";
        check(
            "hello",
            "hallo",
            &End::Closed,
            Err((words, Cause::Mismatch)),
        );
    }
}
