//! A client on a stream: sends its bytes in pieces, takes what comes back, and judges it.
//!
//! Never waits for a service that is silent for longer than the timeout, nor for one that sends a
//! little now and then for longer than ten times that.

use std::io;
use std::time::{Duration, Instant};

use nix::poll::PollFd;

use super::Service;
use super::finding::{Finding, Halt, bytes};
use crate::probe::cause::{Cause, Trouble};
use crate::probe::figures;
use crate::probe::link::is_readable;
use crate::probe::transfer::{End, Transfer, judge};

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

/// A connection, and the bytes that are to be sent on it.
pub(super) struct Client<'a> {
    service: &'a Service<'a>,
    transfer: Transfer,
    bytes: Vec<u8>,
    sent: usize,
}

impl<'a> Client<'a> {
    pub(super) fn connect(service: &'a Service<'a>, bytes: Vec<u8>) -> Result<Self, Trouble> {
        let transfer = Transfer::connect(service.session, service.expect, service.timeout)?;
        Ok(Self {
            service,
            transfer,
            bytes,
            sent: 0,
        })
    }

    /// Sends the bytes, at most this many in each write, and takes what comes back.
    pub(super) fn exchange(&mut self, most: usize, until: Until) -> Finding {
        let end = self.converse(most, until)?;
        let comparison = &self.transfer.comparison;
        match comparison.difference {
            Some(difference) => Err(Halt::failed(difference.to_string(), Cause::Mismatch)),
            None => judge(self.bytes.len() as u64, comparison, &end)
                .map_err(|(seen, cause)| Halt::failed(seen, cause)),
        }
    }

    fn converse(&mut self, most: usize, until: Until) -> Result<End, Halt> {
        let began = Instant::now();
        self.transfer.last = began;
        let mut is_half_closed = false;
        loop {
            while self.send(most) {}
            if until == Until::End && !is_half_closed && self.unsent() == 0 {
                self.transfer.stream.half_close();
                is_half_closed = true;
            }
            if let Err(end) = self.receive() {
                return Ok(end);
            }
            if until == Until::Whole && self.came() == self.bytes.len() {
                return Ok(End::Open);
            }
            let patience = began + self.service.timeout * PATIENCE;
            let deadline = patience.min(self.transfer.last + self.service.timeout);
            self.poll(self.transfer.polled(self.unsent() > 0), deadline)?;
            if Instant::now() >= deadline {
                return Ok(End::Silent(self.service.timeout));
            }
        }
    }

    /// Sends a piece, of this many bytes at most; whether any of it was taken.
    pub(super) fn send(&mut self, most: usize) -> bool {
        let piece = &self.bytes[self.sent..];
        let len = self.transfer.send(&piece[..piece.len().min(most)]);
        self.sent += len;
        len > 0
    }

    fn unsent(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Takes what has returned; how it ended, if it did, or if the rest does not matter.
    fn receive(&mut self) -> Result<(), End> {
        let mut memory = vec![0; PIECE_BYTES];
        while !self.transfer.receive(&mut memory)?.is_empty() {
            if self.transfer.comparison.difference.is_some() {
                return Err(End::Open);
            }
        }
        Ok(())
    }

    /// Takes what has returned until now. An end is found again.
    pub(super) fn take(&mut self) {
        let _ = self.receive();
    }

    /// Bytes that have returned.
    pub(super) fn came(&self) -> usize {
        self.transfer.comparison.came as usize
    }

    /// Waits until there is what is polled for, or until then; whether something has arrived.
    fn poll(&self, polled: PollFd<'_>, until: Instant) -> Result<bool, Halt> {
        self.service.look()?;
        let mut polled = [polled];
        self.service.session.wait(&mut polled, until)?;
        Ok(is_readable(&polled[0]))
    }

    /// Waits until something has arrived, and reports that, or until this time has passed.
    pub(super) fn wait_for_answer(&self, time: Duration) -> Result<bool, Halt> {
        let until = Instant::now() + time;
        loop {
            let is_there = self.poll(self.transfer.polled(false), until)?;
            if is_there || Instant::now() >= until {
                return Ok(is_there);
            }
        }
    }

    /// Sends without reading, until nothing was taken for this time, or everything was. The rest is
    /// not sent any more. Returns the number of bytes that were taken.
    pub(super) fn stuff(&mut self, stall: Duration) -> Result<usize, Halt> {
        let began = Instant::now();
        self.transfer.last = began;
        // Or our own kernel takes very much of what comes back.
        let socket = &self.transfer.stream.socket;
        let _ = socket.set_recv_buffer_size(PIECE_BYTES);
        while self.unsent() > 0 {
            if self.send(PIECE_BYTES) {
                self.service.look()?;
            } else if !self.transfer.can_send {
                let seen = format!("the connection ended after {}", bytes(self.sent));
                return Err(Halt::failed(seen, Cause::Closed));
            } else if self.transfer.last.elapsed() >= stall {
                break;
            } else {
                self.poll(self.transfer.room(), self.transfer.last + stall)?;
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
        if self.service.session.route.target().is_inet() {
            let socket = &self.transfer.stream.socket;
            socket.set_linger(Some(Duration::ZERO))?;
        }
        Ok(())
    }
}
