//! A client on a stream: sends, takes what comes back, and notes how that ends.
//!
//! Never judges. Never waits for a service that is silent for longer than it may be, nor for one
//! that lets a little come now and then for longer than ten times that.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::Service;
use super::judgement::{End, Finding, Stop, bytes, judge_stream, shown};
use super::material::{Material, Receipt};
use crate::probe::Trouble;
use crate::probe::cause::Cause;
use crate::probe::interrupt::LOOK_INTERVAL;
use crate::probe::route;

/// How much is read and written at once.
pub(super) const PIECE_BYTES: usize = 64 * 1024;

/// A connection with what is to be sent on it.
pub(super) struct Client<'a> {
    service: &'a Service<'a>,
    socket: Socket,
    material: Material,
    sent: usize,
    receipt: Receipt,
    /// Whether the socket still takes something.
    can_send: bool,
    /// Why not, where that says more than what is read.
    broken: Option<Cause>,
    clock: Clock,
}

/// How a conversation ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// All has come back.
    Whole,
    /// We have said that there is no more, and the service, too.
    End,
}

impl<'a> Client<'a> {
    pub(super) fn connect(service: &'a Service<'a>, material: Material) -> Result<Self, Trouble> {
        let connection = service.route.connect(service.timeout)?;
        let prepared = connection.socket.set_nonblocking(true);
        prepared.map_err(|error| service.route.trouble(&error))?;
        Ok(Self {
            service,
            socket: connection.socket,
            material,
            sent: 0,
            receipt: Receipt::default(),
            can_send: true,
            broken: None,
            clock: Clock::start(service.timeout),
        })
    }

    /// Sends what is to be sent, so much of it in each write at most, and takes what comes back.
    pub(super) fn exchange(&mut self, most: usize, until: Until) -> Finding {
        let end = self.converse(most, until)?;
        judge_stream(self.material.len(), &self.receipt, &end)
    }

    fn converse(&mut self, most: usize, until: Until) -> Result<End, Stop> {
        self.clock = Clock::start(self.service.timeout);
        let mut is_half_closed = false;
        loop {
            while self.send(most) {}
            if until == Until::End && !is_half_closed && self.unsent() == 0 {
                // If the connection is gone, reading tells.
                let _ = self.socket.shutdown(Shutdown::Write);
                is_half_closed = true;
            }
            if let Some(end) = self.receive() {
                return Ok(end);
            }
            if until == Until::Whole && self.receipt.came == self.material.len() {
                return Ok(End::Open);
            }
            if !self.wait()? {
                return Ok(End::Silent(self.service.timeout));
            }
        }
    }

    /// Sends a piece, of so many bytes at most; says whether any of it was taken.
    pub(super) fn send(&mut self, most: usize) -> bool {
        let piece = self.material.sent_from(self.sent);
        let piece = &piece[..piece.len().min(most)];
        if piece.is_empty() || !self.can_send {
            return false;
        }
        match (&self.socket).write(piece) {
            Ok(len) => {
                self.sent += len;
                self.clock.restart();
                return len > 0;
            }
            Err(error) if is_to_be_awaited(&error) => {}
            Err(error) => {
                self.can_send = false;
                // The end came before, and is still to be read.
                if error.kind() != ErrorKind::BrokenPipe {
                    self.broken = Some(Cause::of(&error));
                }
            }
        }
        false
    }

    fn unsent(&self) -> usize {
        self.material.len() - self.sent
    }

    /// Takes what has come back; says how it ended, if it did, or if the rest does not matter.
    fn receive(&mut self) -> Option<End> {
        let mut memory = vec![0; PIECE_BYTES];
        loop {
            match (&self.socket).read(&mut memory) {
                Ok(0) => return Some(self.broken.clone().map_or(End::Closed, End::Broken)),
                Ok(len) => {
                    self.receipt.handle_received(&self.material, &memory[..len]);
                    self.clock.restart();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_to_be_awaited(&error) => return None,
                Err(error) => {
                    // The kernel tells it once.
                    let cause = Cause::of(&error);
                    self.broken = Some(cause.clone());
                    return Some(End::Broken(cause));
                }
            }
            if self.receipt.difference.is_some() {
                return Some(End::Open);
            }
        }
    }

    /// Takes what has come back so far.
    pub(super) fn take(&mut self) {
        // An end is found again.
        let _ = self.receive();
    }

    /// How many bytes have come back.
    pub(super) fn came(&self) -> usize {
        self.receipt.came
    }

    /// Waits until something can be done; not if it is too long ago that anything could.
    fn wait(&self) -> Result<bool, Stop> {
        let left = self.clock.left();
        let wants_room = self.can_send && self.unsent() > 0;
        self.service.look()?;
        route::wait(self.socket.as_fd(), wants_room, left.min(LOOK_INTERVAL))?;
        Ok(!left.is_zero())
    }

    /// Waits until something has come, and says so, or so long; takes nothing.
    pub(super) fn wait_for_answer(&self, time: Duration) -> Result<bool, Stop> {
        let deadline = Instant::now() + time;
        loop {
            self.service.look()?;
            let left = deadline.saturating_duration_since(Instant::now());
            let ready = route::wait(self.socket.as_fd(), false, left.min(LOOK_INTERVAL))?;
            if ready.input || left.is_zero() {
                return Ok(ready.input);
            }
        }
    }

    /// Sends without reading, until for so long nothing was taken, or all was. What was not is not
    /// sent any more. Says how much was.
    pub(super) fn stuff(&mut self, stall: Duration) -> Result<usize, Stop> {
        let began = Instant::now();
        let mut last = began;
        while self.unsent() > 0 {
            self.service.look()?;
            if self.send(PIECE_BYTES) {
                last = Instant::now();
            } else if !self.can_send {
                let seen = format!("the connection ended after {}", bytes(self.sent));
                return Err(Stop::failed(seen, Cause::Closed));
            } else if last.elapsed() >= stall {
                break;
            } else {
                let left = stall.saturating_sub(last.elapsed());
                route::wait_for_room(self.socket.as_fd(), left.min(LOOK_INTERVAL))?;
            }
            if began.elapsed() >= self.service.timeout * PATIENCE {
                return Err(Stop::NotApplicable(format!(
                    "the way there is slow: {} in {}",
                    bytes(self.sent),
                    shown(began.elapsed())
                )));
            }
        }
        self.material.truncate(self.sent);
        Ok(self.sent)
    }

    /// Ends the connection with an RST; on a Unix socket, where there is none, by leaving what has
    /// come unread, which the service sees as one.
    pub(super) fn reset(self) -> io::Result<()> {
        if self.service.route.target().is_inet() {
            self.socket.set_linger(Some(Duration::ZERO))?;
        }
        Ok(())
    }
}

fn is_to_be_awaited(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// A check ends after so many times the timeout, however much is still coming.
const PATIENCE: u32 = 10;

/// How long nothing has come or gone.
struct Clock {
    began: Instant,
    last: Instant,
    timeout: Duration,
}

impl Clock {
    fn start(timeout: Duration) -> Self {
        let now = Instant::now();
        Self {
            began: now,
            last: now,
            timeout,
        }
    }

    fn restart(&mut self) {
        self.last = Instant::now();
    }

    fn left(&self) -> Duration {
        let silence = self.timeout.saturating_sub(self.last.elapsed());
        let all = (self.timeout * PATIENCE).saturating_sub(self.began.elapsed());
        silence.min(all)
    }
}
