//! Datagram sockets, for the drivers over real sockets: many in, and many out, with one system call.
//!
//! Knows how answers are merged: those of one sender and one address of ours, in their order, if
//! they are of one size; the kernel cuts them apart again (`UDP_SEGMENT`, udp(7)). Never waits: the
//! driver says when a socket can be read or written, and [`Remaining`] and [`Datagrams::is_stalled`]
//! say what to wait for. Nothing here allocates once a driver has its [`Workspace`].

mod paths;
mod plan;

use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use self::paths::Paths;
use self::plan::Plan;
use super::buffers::{BUFFER_COUNT, Buffers, Memory, Queue};
use super::burst::Burst;
use super::{Buffer, Completion, Envelope, Source, Token};
use crate::sys::message::{BATCH_MAX, Incoming, Outgoing};
use crate::sys::socket;

/// About the most bytes that are received at once, so that other sockets have their turn, and the
/// answers are sent while the cache has them.
const BATCH_BYTES: usize = 512 * 1024;

/// A receive is tried again behind at most this many errors of earlier answers.
const ERRORS_MAX: usize = 32;

/// A datagram socket: what is still to be sent on it, and what was learned about it.
#[derive(Debug)]
pub(super) struct Datagrams {
    inet: bool,
    // The address that it is bound to, unless that is a wildcard.
    bound: Option<IpAddr>,
    unsent: Queue,
    // How many bytes of the first buffer in `unsent` are sent.
    sent: u32,
    // What is unsent waits until the socket can be written.
    stalled: bool,
    paths: Paths,
    // How many datagrams to receive at once.
    burst: Burst,
}

/// What a driver needs for all of its datagram sockets, allocated once.
#[derive(Debug)]
pub(super) struct Workspace {
    envelopes: Box<[Envelope]>,
    incoming: Incoming,
    outgoing: Outgoing,
    plan: Plan,
}

/// What is left in the queue of a socket after datagrams were received or clients accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remaining {
    /// Nothing: the socket will be readable when there is more.
    Nothing,
    /// More, perhaps; other endpoints have their turn first.
    More,
    /// More, perhaps, and no buffer, permit or descriptor is free for it.
    Starved,
}

/// What became of a plan.
enum Outcome {
    Done,
    Stalled,
    /// The kernel would not cut a message to this destination into datagrams of this size.
    NotCut(Source, usize),
}

/// What a flush has sent, reported at its end.
#[derive(Default)]
struct Tally {
    count: u32,
    bytes: u32,
}

impl Workspace {
    pub(super) fn new() -> Self {
        Self {
            envelopes: vec![Envelope::EMPTY; usize::from(BUFFER_COUNT)].into_boxed_slice(),
            incoming: Incoming::default(),
            outgoing: Outgoing::default(),
            plan: Plan::new(),
        }
    }

    pub(super) fn envelope(&self, buffer: &Buffer) -> &Envelope {
        &self.envelopes[usize::from(buffer.index)]
    }

    /// Says where a leased buffer's datagrams go, from which address, and how long each is.
    pub(super) fn set_envelope(&mut self, buffer: &Buffer, envelope: &Envelope) {
        debug_assert!(
            buffer.len == 0 || envelope.size > 0,
            "bytes are cut into datagrams of some size"
        );
        self.envelopes[usize::from(buffer.index)] = *envelope;
    }
}

impl Datagrams {
    pub(super) fn new(fd: BorrowedFd<'_>) -> Self {
        let inet = socket::is_inet(fd);
        let bound = socket::local_address(fd).map(|local| local.ip());
        Self {
            inet,
            bound: bound.filter(|address| !address.is_unspecified()),
            unsent: Queue::new(),
            sent: 0,
            stalled: false,
            paths: Paths::new(),
            burst: Burst::new(),
        }
    }

    /// Whether there is something to flush.
    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Whether what is unsent waits until the socket can be written.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Takes an answer, for the next [`Self::flush`].
    pub(super) fn queue(&mut self, buffers: &mut Buffers, buffer: Buffer) {
        buffers.push(&mut self.unsent, buffer);
    }

    /// Forgets what is unsent.
    pub(super) fn clear(&mut self, buffers: &mut Buffers) {
        buffers.clear(&mut self.unsent);
        self.sent = 0;
        self.stalled = false;
    }

    /// Receives a batch of datagrams; says how many bytes they are and what is left.
    pub(super) fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        workspace: &mut Workspace,
        buffers: &mut Buffers,
        token: Token,
        done: &mut Vec<Completion>,
    ) -> (usize, Remaining) {
        let mut bytes = 0;
        for _ in 0..ERRORS_MAX {
            let asked = buffers.free_for_datagrams().min(self.burst.size());
            if asked == 0 {
                return (bytes, Remaining::Starved);
            }
            let memory = buffers.peek_all().take(asked);
            let received = match workspace.incoming.receive(fd, self.inet, memory) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return (bytes, Remaining::Nothing);
                }
                // An error of an earlier answer, which the kernel reports when it can (udp(7)).
                Err(_) => continue,
            };
            let mut largest = 1;
            for index in 0..received {
                let (buffer, memory) = buffers.peek().expect("as many are free as were asked for");
                let envelope = &mut workspace.envelopes[usize::from(buffer)];
                let len = workspace.incoming.read(index, envelope).min(memory.len());
                let buffer = buffers.lease(len);
                done.push(Completion::Datagrams {
                    socket: token,
                    buffer,
                });
                bytes += len;
                largest = largest.max(len);
            }
            // Fewer where they fill their buffers.
            let most = (BATCH_BYTES / largest).clamp(1, BATCH_MAX);
            let remaining = if received < asked {
                self.burst.handle_emptied(received, most);
                Remaining::Nothing
            } else {
                self.burst.handle_filled(most);
                Remaining::More
            };
            return (bytes, remaining);
        }
        (bytes, Remaining::More)
    }

    /// Sends what is unsent, as far as the kernel takes it, and reports it.
    pub(super) fn flush(
        &mut self,
        fd: BorrowedFd<'_>,
        workspace: &mut Workspace,
        buffers: &mut Buffers,
        token: Token,
        done: &mut Vec<Completion>,
    ) {
        let mut tally = Tally::default();
        // What the kernel would not cut. Its first datagram is then tried alone, to tell a path that
        // is too narrow for cutting from one that takes nothing.
        let mut on_trial = None;
        self.stalled = false;
        while !self.unsent.is_empty() {
            let before = tally.count;
            let most = if on_trial.is_some() { 1 } else { BATCH_MAX };
            while let Some(room) = workspace.plan.room(most)
                && let Some(buffer) = buffers.pop(&mut self.unsent)
            {
                let sent = std::mem::take(&mut self.sent);
                let envelopes = &workspace.envelopes;
                let destination = &envelopes[usize::from(buffer.index)].source;
                // Unix sockets do not merge.
                let merged_below = if self.inet && on_trial.is_none() {
                    self.paths.merged_below(destination)
                } else {
                    0
                };
                workspace
                    .plan
                    .add(buffer, sent, envelopes, merged_below, room);
            }
            let outcome = self.carry_out(fd, workspace, buffers, token, &mut tally, done);
            match (outcome, on_trial.take()) {
                (Outcome::Stalled, _) => {
                    self.stalled = true;
                    break;
                }
                (Outcome::NotCut(destination, size), _) => on_trial = Some((destination, size)),
                // It was the cutting that failed, and not the address or the network.
                (Outcome::Done, Some((destination, size))) if tally.count > before => {
                    self.paths.handle_not_cut(&destination, size);
                }
                (Outcome::Done, _) => {}
            }
        }
        if tally.count > 0 {
            done.push(Completion::DatagramSent {
                socket: token,
                count: tally.count,
                result: Ok(tally.bytes),
            });
        }
        self.drop_while_scarce(workspace, buffers, token, done);
    }

    /// Drops what waits, the oldest first, while buffers are scarce, and reports it as not sent: what
    /// the network does not take on some sockets must not keep the other ones from receiving. The
    /// kernel drops datagrams for which it has no room, too.
    pub(super) fn drop_while_scarce(
        &mut self,
        workspace: &Workspace,
        buffers: &mut Buffers,
        token: Token,
        done: &mut Vec<Completion>,
    ) {
        let mut count = 0;
        while self.stalled
            && buffers.is_scarce()
            && let Some(buffer) = buffers.pop(&mut self.unsent)
        {
            let unsent = buffer.len - std::mem::take(&mut self.sent);
            let size = workspace.envelope(&buffer).size.max(1) as u32;
            count += unsent.div_ceil(size).max(1);
            buffers.recycle(buffer);
        }
        if count > 0 {
            self.stalled = self.has_unsent();
            done.push(Completion::DatagramSent {
                socket: token,
                count,
                result: Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
            });
        }
    }

    /// Sends what is planned; what cannot be sent now is unsent again.
    fn carry_out(
        &mut self,
        fd: BorrowedFd<'_>,
        workspace: &mut Workspace,
        buffers: &mut Buffers,
        token: Token,
        tally: &mut Tally,
        done: &mut Vec<Completion>,
    ) -> Outcome {
        let Workspace {
            envelopes,
            outgoing,
            plan,
            ..
        } = workspace;
        let mut next = 0;
        let mut has_failed = false;
        let outcome = loop {
            let unsent = &plan.messages()[next..];
            let Some(first) = unsent.first() else {
                break Outcome::Done;
            };
            let messages = unsent
                .iter()
                .map(|message| plan.message(message, buffers, envelopes, self.bound));
            match outgoing.send(fd, messages) {
                Ok(sent) => {
                    for message in &unsent[..sent] {
                        tally.count += message.count;
                        tally.bytes += message.bytes;
                    }
                    // It stops before the first that fails (sendmmsg(2)).
                    has_failed = sent < unsent.len();
                    next += sent;
                }
                // Over Unix sockets EAGAIN is about the queue of one peer, and answers to other
                // peers must not wait for that: it is a failure like any other, below.
                Err(error) if self.inet && error.kind() == io::ErrorKind::WouldBlock => {
                    break Outcome::Stalled;
                }
                // The error may be of an earlier answer (udp(7)), and is then cleared: try again.
                Err(_) if self.inet && !has_failed => has_failed = true,
                Err(error) if first.count > 1 && is_about_cutting(&error) => {
                    break Outcome::NotCut(plan.destination(first, envelopes), first.size);
                }
                Err(error) => {
                    done.push(Completion::DatagramSent {
                        socket: token,
                        count: first.count,
                        result: Err(error),
                    });
                    has_failed = false;
                    next += 1;
                }
            }
        };
        self.sent = plan.finish(next, &mut self.unsent, buffers);
        outcome
    }
}

/// Whether the kernel may only have been unable to cut the message into datagrams: they are longer
/// than the path's MTU allows (EINVAL, EMSGSIZE), or neither the device nor the kernel would write
/// their checksums (EIO, EOPNOTSUPP).
fn is_about_cutting(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EMSGSIZE | libc::EIO | libc::EOPNOTSUPP)
    )
}
