//! Datagrams over epoll: a burst in, each answer out, and the wait for the socket's own buffer.

use std::io;
use std::os::fd::AsFd;

use super::{BURST_MAX, Endpoint, Epoll, Kind};
use crate::driver::{Buffer, Completion, Token};
use crate::sys::message;

impl Epoll {
    pub(super) fn send_to(&mut self, token: Token, buffer: Buffer, done: &mut Vec<Completion>) {
        let Self {
            endpoints,
            buffers,
            envelopes,
            ..
        } = self;
        let Some(Endpoint {
            fd,
            kind: Kind::Datagrams { inet, unsent },
            ..
        }) = endpoints.get_mut(token)
        else {
            buffers.recycle(buffer);
            return;
        };
        if !unsent.is_empty() {
            buffers.push(unsent, buffer);
            return;
        }
        let envelope = &envelopes[usize::from(buffer.index)];
        let result = message::send(fd.as_fd(), buffers.bytes(&buffer), envelope);
        if *inet && would_block(&result) {
            buffers.push(unsent, buffer);
            self.changed.push(token);
            return;
        }
        buffers.recycle(buffer);
        done.push(Completion::DatagramSent {
            socket: token,
            result: result.map(|sent| sent as u32),
        });
    }

    /// Sends the datagrams that had to wait for the socket's own send buffer.
    pub(super) fn flush_datagrams(&mut self, token: Token, done: &mut Vec<Completion>) {
        let Self {
            endpoints,
            buffers,
            envelopes,
            ..
        } = self;
        let Some(Endpoint {
            fd,
            kind: Kind::Datagrams { unsent, .. },
            ..
        }) = endpoints.get_mut(token)
        else {
            return;
        };
        while let Some((index, bytes)) = buffers.front(unsent) {
            let result = message::send(fd.as_fd(), bytes, &envelopes[usize::from(index)]);
            if would_block(&result) {
                return;
            }
            let buffer = buffers.pop(unsent).expect("it was just at the front");
            buffers.recycle(buffer);
            done.push(Completion::DatagramSent {
                socket: token,
                result: result.map(|sent| sent as u32),
            });
        }
        self.changed.push(token);
    }

    /// Whether the socket stays: it has more, or the answers to what it had are still to be sent.
    pub(super) fn drain_datagrams(&mut self, token: Token, done: &mut Vec<Completion>) -> bool {
        let before = done.len();
        let emptied = self.receive_from(token, done);
        let Some(Endpoint {
            kind: Kind::Datagrams { unsent, .. },
            ..
        }) = self.endpoints.get_mut(token)
        else {
            return false;
        };
        // What this turn received is answered in the next one.
        let gone = emptied && done.len() == before && unsent.is_empty();
        if gone {
            self.let_go(token, done);
        }
        !gone
    }

    /// Receives a burst of datagrams. Whether the socket has been emptied.
    pub(super) fn receive_from(&mut self, token: Token, done: &mut Vec<Completion>) -> bool {
        for _ in 0..BURST_MAX {
            let Self {
                endpoints,
                buffers,
                envelopes,
                ..
            } = self;
            let Some(Endpoint {
                fd,
                kind: Kind::Datagrams { inet, .. },
                ..
            }) = endpoints.get_mut(token)
            else {
                return true;
            };
            let Some((index, memory)) = buffers.peek() else {
                self.starve(token);
                return false;
            };
            let room = memory.len();
            match message::receive(
                fd.as_fd(),
                *inet,
                memory,
                &mut envelopes[usize::from(index)],
            ) {
                Ok(len) => {
                    let buffer = buffers.lease(len.min(room));
                    self.received_bytes += len.min(room);
                    done.push(Completion::Datagram {
                        socket: token,
                        buffer,
                        len,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                // An error of an earlier answer, which the kernel reports when it can (udp(7)).
                Err(_) => {}
            }
        }
        false
    }
}

fn would_block(result: &io::Result<usize>) -> bool {
    result
        .as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}
