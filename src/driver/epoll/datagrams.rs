//! Datagrams over epoll: when a socket is read and written. What is then done is in
//! [`crate::driver::datagrams`].

use std::os::fd::AsFd;

use super::{Endpoint, Epoll, Kind, Wish};
use crate::driver::datagrams::{Flushed, Received, Rest};
use crate::driver::{Buffer, Completion, Token};

impl Epoll {
    /// Takes an answer; those of a turn are sent together.
    pub(super) fn send_to(&mut self, token: Token, buffer: Buffer) {
        let Self {
            endpoints, buffers, ..
        } = self;
        let Some(Endpoint {
            kind: Kind::Datagrams(datagrams),
            ..
        }) = endpoints.get_mut(token)
        else {
            buffers.recycle(buffer);
            return;
        };
        // One that has unsent answers already is to be flushed, or waits until it can be written.
        if !datagrams.has_unsent() {
            self.answering.push(token);
        }
        datagrams.queue(buffers, buffer);
    }

    /// Sends the answers of this turn.
    pub(super) fn send_answers(&mut self, done: &mut Vec<Completion>) {
        while let Some(token) = self.answering.pop() {
            self.flush_datagrams(token, done);
        }
    }

    /// Sends the answers that wait on a socket.
    pub(super) fn flush_datagrams(&mut self, token: Token, done: &mut Vec<Completion>) {
        let Self {
            endpoints,
            buffers,
            workspace,
            ..
        } = self;
        let Some(Endpoint {
            fd,
            kind: Kind::Datagrams(datagrams),
            told,
            ..
        }) = endpoints.get_mut(token)
        else {
            return;
        };
        let flushed = datagrams.flush(fd.as_fd(), workspace, buffers, token, done);
        if flushed == Flushed::Stalled || *told == Wish::Output {
            self.changed.push(token);
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
            self.let_go(token, done);
        }
        !gone
    }

    /// Receives a batch of datagrams.
    pub(super) fn receive_from(&mut self, token: Token, done: &mut Vec<Completion>) -> Rest {
        let Self {
            endpoints,
            buffers,
            workspace,
            ..
        } = self;
        let Some(Endpoint {
            fd,
            kind: Kind::Datagrams(datagrams),
            ..
        }) = endpoints.get_mut(token)
        else {
            return Rest::Emptied;
        };
        let Received { bytes, rest } =
            datagrams.receive(fd.as_fd(), workspace, buffers, token, done);
        self.received_bytes += bytes;
        if rest == Rest::Starved {
            self.starve(token);
        }
        rest
    }
}
