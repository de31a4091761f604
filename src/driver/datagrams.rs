//! Datagram sockets, for the drivers over real sockets: many in, and many out, with one system call.
//!
//! Knows how answers are merged: those of one sender and one address of ours, in their order, if
//! they are of one size; the kernel cuts them apart again (`UDP_SEGMENT`, `udp(7)`). Never waits:
//! the driver says when a socket can be read or written, and [`Received`] and [`Flushed`] say what
//! to wait for. Nothing here allocates once a driver has its [`Workspace`].

mod plan;

use std::io;
use std::os::fd::BorrowedFd;

use self::plan::Plan;
use super::buffers::{BUFFER_COUNT, Buffers, Queue};
use super::{Buffer, Completion, Envelope, Token};
use crate::sys::message::{BATCH_MAX, Incoming, Outgoing};
use crate::sys::socket;

/// About so many bytes are received at once, so that others have their turn, and that they are sent
/// while the cache has them.
const BATCH_BYTES: usize = 512 * 1024;

/// So many buffers are offered to who sends one at a time: each costs something, also unused.
const BATCH_MIN: usize = 4;

/// A receive goes on behind so many errors of earlier answers.
const ERRORS_MAX: usize = 32;

/// A datagram socket: what is still to be sent on it, and what was learned about it.
#[derive(Debug)]
pub(super) struct Datagrams {
    inet: bool,
    unsent: Queue,
    // Bytes of the first buffer in `unsent`.
    sent: u32,
    // Datagrams of this size or more are not merged.
    merged_below: usize,
    // How many buffers to receive into: fewer where they come full.
    batch: usize,
}

/// What a driver needs for all of its datagram sockets, allocated once.
#[derive(Debug)]
pub(super) struct Workspace {
    envelopes: Box<[Envelope]>,
    incoming: Incoming,
    outgoing: Outgoing,
    plan: Plan,
}

/// What a receive has brought.
#[derive(Debug)]
pub(super) struct Received {
    /// So many bytes.
    pub(super) bytes: usize,
    /// And so it goes on.
    pub(super) rest: Rest,
}

/// What is left after a receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Nothing: the socket will be readable when there is more.
    Emptied,
    /// More, perhaps: others have their turn first.
    More,
    /// There may be more, and there is no buffer.
    Starved,
}

/// What is left after a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flushed {
    /// Nothing.
    All,
    /// Answers that wait until the socket can be written.
    Stalled,
}

/// What became of a plan.
enum Outcome {
    Done,
    Stalled,
    /// The kernel would not cut a message into datagrams of this size.
    NotCut(usize),
}

/// What a flush has sent, to be said at its end.
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

    /// Leases a buffer for datagrams that are no answer, if enough are left for those who receive.
    pub(super) fn lease(
        &mut self,
        buffers: &mut Buffers,
        envelope: &Envelope,
        len: usize,
    ) -> Option<Buffer> {
        debug_assert!(len == 0 || envelope.size > 0, "bytes are cut into some");
        if buffers.scarce() {
            return None;
        }
        let buffer = buffers.lease(len);
        self.envelopes[usize::from(buffer.index)] = *envelope;
        Some(buffer)
    }
}

impl Datagrams {
    pub(super) fn new(fd: BorrowedFd<'_>) -> Self {
        let inet = socket::is_inet(fd);
        Self {
            inet,
            unsent: Queue::new(),
            sent: 0,
            // Unix sockets know nothing of merging.
            merged_below: if inet { usize::MAX } else { 0 },
            batch: BATCH_MIN,
        }
    }

    /// Whether there is something to flush.
    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Takes an answer, for the next [`Self::flush`].
    pub(super) fn queue(&mut self, buffers: &mut Buffers, buffer: Buffer) {
        buffers.push(&mut self.unsent, buffer);
    }

    /// Forgets what is unsent.
    pub(super) fn clear(&mut self, buffers: &mut Buffers) {
        buffers.clear(&mut self.unsent);
        self.sent = 0;
    }

    /// Receives a batch of datagrams.
    pub(super) fn receive(
        &mut self,
        fd: BorrowedFd<'_>,
        workspace: &mut Workspace,
        buffers: &mut Buffers,
        token: Token,
        done: &mut Vec<Completion>,
    ) -> Received {
        let mut bytes = 0;
        for _ in 0..ERRORS_MAX {
            let asked = buffers.free().min(self.batch);
            if asked == 0 {
                let rest = Rest::Starved;
                return Received { bytes, rest };
            }
            let memory = buffers.peek_all().take(asked);
            let received = match workspace.incoming.receive(fd, self.inet, memory) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let rest = Rest::Emptied;
                    return Received { bytes, rest };
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
            let (rest, next) = if received < asked {
                (Rest::Emptied, received * 2)
            } else {
                (Rest::More, asked * 4)
            };
            let most = (BATCH_BYTES / largest).min(BATCH_MAX);
            self.batch = next.clamp(BATCH_MIN.min(most), most);
            return Received { bytes, rest };
        }
        let rest = Rest::More;
        Received { bytes, rest }
    }

    /// Sends what is unsent.
    pub(super) fn flush(
        &mut self,
        fd: BorrowedFd<'_>,
        workspace: &mut Workspace,
        buffers: &mut Buffers,
        token: Token,
        done: &mut Vec<Completion>,
    ) -> Flushed {
        let mut tally = Tally::default();
        // The size of datagrams that the kernel would not cut; now one is tried alone.
        let mut on_trial = None;
        let flushed = loop {
            if self.unsent.is_empty() {
                break Flushed::All;
            }
            let before = tally.count;
            let (most, merged_below) = match on_trial {
                None => (BATCH_MAX, self.merged_below),
                Some(_) => (1, 0),
            };
            while let Some(room) = workspace.plan.room(most)
                && let Some(buffer) = buffers.pop(&mut self.unsent)
            {
                let sent = std::mem::take(&mut self.sent);
                let envelopes = &workspace.envelopes;
                workspace
                    .plan
                    .add(buffer, sent, envelopes, merged_below, room);
            }
            let outcome = self.carry_out(fd, workspace, buffers, token, &mut tally, done);
            match (outcome, on_trial.take()) {
                (Outcome::Stalled, _) => break Flushed::Stalled,
                (Outcome::NotCut(size), _) => on_trial = Some(size),
                // It was the cutting that failed, and not the address or the network.
                (Outcome::Done, Some(size)) if tally.count > before => self.merged_below = size,
                (Outcome::Done, _) => {}
            }
        };
        if tally.count > 0 {
            done.push(Completion::DatagramSent {
                socket: token,
                count: tally.count,
                result: Ok(tally.bytes),
            });
        }
        flushed
    }

    /// Sends what is planned; what can't be sent now is unsent again.
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
                .map(|message| plan.message(message, buffers, envelopes));
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
                // A Unix socket says so of one peer's queue, and others' are not to wait for that.
                Err(error) if self.inet && error.kind() == io::ErrorKind::WouldBlock => {
                    break Outcome::Stalled;
                }
                // The error may be of an earlier answer (udp(7)), and is then gone.
                Err(_) if self.inet && !has_failed => has_failed = true,
                Err(error) if first.count > 1 && is_about_cutting(&error) => {
                    break Outcome::NotCut(first.size);
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
        self.sent = plan.settle(next, &mut self.unsent, buffers);
        outcome
    }
}

/// Whether the kernel may only have been unable to cut the message into datagrams: they are longer
/// than the path's MTU allows, or nobody would write their checksums.
fn is_about_cutting(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EMSGSIZE | libc::EIO | libc::EOPNOTSUPP)
    )
}
