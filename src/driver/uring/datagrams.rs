//! Datagrams over io_uring: the ring says when a socket can be read or written. What is then done
//! is in [`crate::driver::datagrams`].

use std::os::fd::AsFd;

use super::ring::Kind as Request;
use super::{Endpoint, Kind, Leaving, Uring};
use crate::driver::datagrams::{Flushed, Received, Rest};
use crate::driver::{Buffer, Completion, Token};

impl Uring {
    /// Takes an answer; those of a turn are sent together.
    pub(super) fn send_to(&mut self, token: Token, buffer: Buffer) {
        let Some(Endpoint {
            kind: Kind::Datagrams(datagrams),
            leaving: Leaving::No | Leaving::WhenDrained,
            ..
        }) = self.endpoints.get_mut(token)
        else {
            self.memory.recycle(buffer);
            return;
        };
        // One that has unsent answers already is to be flushed, or waits until it can be written.
        if !datagrams.has_unsent() {
            self.chores.push(token);
        }
        datagrams.queue(&mut self.memory.large, buffer);
    }

    /// Sends the answers that wait on a socket.
    pub(super) fn flush_datagrams(&mut self, token: Token, done: &mut Vec<Completion>) {
        let Some(Endpoint {
            fd,
            polled_output,
            kind: Kind::Datagrams(datagrams),
            ..
        }) = self.endpoints.get_mut(token)
        else {
            return;
        };
        if *polled_output {
            return;
        }
        let buffers = &mut self.memory.large;
        let flushed = datagrams.flush(fd.as_fd(), &mut self.workspace, buffers, token, done);
        if flushed == Flushed::Stalled {
            *polled_output = true;
            self.ring.poll_output(fd.as_fd(), Request::Writable, token);
        } else {
            self.poll(token);
        }
    }

    /// Whether the socket stays: it has more, or the answers to what it had are still to be sent.
    pub(super) fn drain_datagrams(&mut self, token: Token, done: &mut Vec<Completion>) -> bool {
        let before = done.len();
        let rest = self.receive_from(token, done);
        let Some(Endpoint {
            kind: Kind::Datagrams(datagrams),
            ..
        }) = self.endpoints.get_mut(token)
        else {
            return false;
        };
        // What this turn received is answered in the next one.
        let gone = rest == Rest::Emptied && done.len() == before && !datagrams.has_unsent();
        if gone {
            self.close_socket(token, done);
        }
        !gone
    }

    /// Receives a batch of datagrams.
    pub(super) fn receive_from(&mut self, token: Token, done: &mut Vec<Completion>) -> Rest {
        let Some(Endpoint {
            fd,
            kind: Kind::Datagrams(datagrams),
            ..
        }) = self.endpoints.get_mut(token)
        else {
            return Rest::Emptied;
        };
        let buffers = &mut self.memory.large;
        let Received { bytes, rest } =
            datagrams.receive(fd.as_fd(), &mut self.workspace, buffers, token, done);
        self.received_bytes += bytes;
        if rest == Rest::Starved {
            self.starved.push(token);
        }
        rest
    }
}
