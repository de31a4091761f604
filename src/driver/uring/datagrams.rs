//! Datagrams over io_uring: the ring says when there are some, the calls are made as ever.

use std::io;
use std::os::fd::AsFd;

use super::{BURST_MAX, Endpoint, Kind, Uring};
use crate::driver::{Buffer, Completion, Token};
use crate::sys::message;

impl Uring {
    pub(super) fn send_to(&mut self, token: Token, buffer: Buffer) {
        let Some(Endpoint {
            kind: Kind::Datagrams { unsent, .. },
            closing: false,
            ..
        }) = self.endpoints.get_mut(token)
        else {
            self.memory.recycle(buffer);
            return;
        };
        if unsent.is_empty() {
            self.chores.push(token);
        }
        self.memory.large.push(unsent, buffer);
    }

    pub(super) fn flush_datagrams(&mut self, token: Token, done: &mut Vec<Completion>) {
        let Some(Endpoint {
            fd,
            kind: Kind::Datagrams { unsent, .. },
            ..
        }) = self.endpoints.get_mut(token)
        else {
            return;
        };
        let buffers = &mut self.memory.large;
        while let Some((index, bytes)) = buffers.front(unsent) {
            let result = message::send(fd.as_fd(), bytes, &self.envelopes[usize::from(index)]);
            let buffer = buffers.pop(unsent).expect("it was just at the front");
            buffers.recycle(buffer);
            done.push(Completion::DatagramSent {
                socket: token,
                result: result.map(|sent| sent as u32),
            });
        }
    }

    pub(super) fn serve_datagrams(&mut self, token: Token, done: &mut Vec<Completion>) {
        self.receive_from(token, done);
    }

    pub(super) fn drain_datagrams(&mut self, token: Token, done: &mut Vec<Completion>) -> bool {
        let before = done.len();
        let emptied = self.receive_from(token, done);
        let gone = emptied && done.len() == before;
        if gone {
            self.close_socket(token, done);
        }
        !gone
    }

    fn receive_from(&mut self, token: Token, done: &mut Vec<Completion>) -> bool {
        for _ in 0..BURST_MAX {
            let Some(Endpoint {
                fd,
                kind: Kind::Datagrams { inet, .. },
                ..
            }) = self.endpoints.get_mut(token)
            else {
                return true;
            };
            let Some((index, memory)) = self.memory.large.peek() else {
                self.starved.push(token);
                return false;
            };
            let room = memory.len();
            let envelope = &mut self.envelopes[usize::from(index)];
            match message::receive(fd.as_fd(), *inet, memory, envelope) {
                Ok(len) => done.push(Completion::Datagram {
                    socket: token,
                    buffer: self.memory.large.lease(len.min(room)),
                    len,
                }),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(_) => {}
            }
        }
        false
    }
}
