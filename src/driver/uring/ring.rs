//! The ring itself: requests in, results out, and the one system call between them.
//!
//! Knows `io_uring(7)`, which requests there are and how each is named; never decides on one.

#![expect(
    unsafe_code,
    reason = "the kernel reads requests, and what they point to, from our memory"
)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use crate::driver::Token;

/// Requests that can be queued between two system calls; more wait in our own memory.
const SUBMISSIONS: u32 = 1024;

/// Results that the kernel can put down without our help; more wait in the kernel's memory.
const COMPLETIONS: u32 = 8192;

/// So many results are taken out at once.
const BATCH_MAX: usize = 128;

/// What a request is for. With its token it is the request's name (`user_data`), so that a result
/// which outlives its connection is recognized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// Clients wait, or datagrams, or bytes for who is read in large pieces.
    Readable,
    /// There is room to send.
    Writable,
    Receive,
    Send,
    Cancel,
    Woken,
}

impl Kind {
    const ALL: [Self; 6] = [
        Self::Readable,
        Self::Writable,
        Self::Receive,
        Self::Send,
        Self::Cancel,
        Self::Woken,
    ];
}

/// The name of a request.
fn name(kind: Kind, token: Token) -> u64 {
    (kind as u64) << 56 | u64::from(token.generation) << 32 | u64::from(token.slot)
}

/// What a name stands for.
pub(super) fn read_name(name: u64) -> (Kind, Token) {
    let token = Token {
        slot: name as u32,
        generation: (name >> 32) as u32 & 0x00ff_ffff,
    };
    (Kind::ALL[(name >> 56) as usize], token)
}

/// See the module.
pub(super) struct Ring {
    uring: IoUring,
    // What did not fit into the submission queue.
    waiting: VecDeque<squeue::Entry>,
    // Results that were taken out of the completion queue, and how many of them were handed on.
    batch: Vec<cqueue::Entry>,
    handed_on: usize,
}

impl Ring {
    /// A ring that belongs to the calling thread.
    ///
    /// `DEFER_TASKRUN` is where the speed is: the kernel's part of receiving runs when we ask for
    /// results, in a batch, instead of interrupting us. `TASKRUN_FLAG` tells without a system call
    /// whether there is such work.
    pub(super) fn new() -> io::Result<Self> {
        let uring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        Ok(Self {
            uring,
            waiting: VecDeque::new(),
            batch: Vec::with_capacity(BATCH_MAX),
            handed_on: 0,
        })
    }

    pub(super) fn submitter(&self) -> io_uring::Submitter<'_> {
        self.uring.submitter()
    }

    /// Asks to be told when there is input.
    pub(super) fn poll_input(&mut self, fd: BorrowedFd<'_>, kind: Kind, token: Token) {
        self.poll(fd, libc::POLLIN, kind, token);
    }

    /// Asks to be told when there is room to send.
    pub(super) fn poll_output(&mut self, fd: BorrowedFd<'_>, kind: Kind, token: Token) {
        self.poll(fd, libc::POLLOUT, kind, token);
    }

    fn poll(&mut self, fd: BorrowedFd<'_>, events: libc::c_short, kind: Kind, token: Token) {
        let poll = opcode::PollAdd::new(Fd(fd.as_raw_fd()), events as u32);
        // SAFETY: it points nowhere.
        unsafe { self.push(poll.build().user_data(name(kind, token))) };
    }

    /// Asks for bytes as they come, in buffers of the group.
    pub(super) fn receive(&mut self, fd: BorrowedFd<'_>, group: u16, token: Token) {
        let receive = opcode::RecvMulti::new(Fd(fd.as_raw_fd()), group);
        // SAFETY: it points nowhere; the group's buffers are its owner's promise.
        unsafe { self.push(receive.build().user_data(name(Kind::Receive, token))) };
    }

    /// Asks to send.
    ///
    /// # Safety
    /// The bytes stay where they are, untouched, until the result has come.
    pub(super) unsafe fn send(
        &mut self,
        fd: BorrowedFd<'_>,
        bytes: &[u8],
        flags: libc::c_int,
        token: Token,
    ) {
        let len = u32::try_from(bytes.len()).expect("a buffer is far below 4 GiB");
        let send = opcode::Send::new(Fd(fd.as_raw_fd()), bytes.as_ptr(), len);
        let send = send.flags(flags | libc::MSG_NOSIGNAL).build();
        // SAFETY: the caller's promise.
        unsafe { self.push(send.user_data(name(Kind::Send, token))) };
    }

    /// Tells a request to end; its result says that it has.
    pub(super) fn cancel(&mut self, kind: Kind, token: Token) {
        let cancel = opcode::AsyncCancel::new(name(kind, token)).build();
        // SAFETY: it points nowhere.
        unsafe { self.push(cancel.user_data(name(Kind::Cancel, token))) };
    }

    /// Queues a request.
    ///
    /// # Safety
    /// What the request points to stays where it is, and untouched by others, until its result
    /// has come.
    unsafe fn push(&mut self, request: squeue::Entry) {
        if self.waiting.is_empty() {
            // SAFETY: the caller's promise.
            if unsafe { self.uring.submission().push(&request) }.is_ok() {
                return;
            }
        }
        self.waiting.push_back(request);
    }

    /// Whether results can be had without the kernel's help.
    pub(super) fn has_results(&mut self) -> bool {
        self.handed_on < self.batch.len() || !self.uring.completion().is_empty()
    }

    /// Hands the requests to the kernel and lets it do what it has put off; waits for the first
    /// result at most so long, or for ever.
    pub(super) fn submit_and_wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.flush_waiting()?;
        match timeout {
            None => self.enter(|ring| ring.submit_and_wait(1)),
            Some(timeout) => {
                let timeout = Timespec::from(timeout);
                let args = SubmitArgs::new().timespec(&timeout);
                self.enter(|ring| ring.submitter().submit_with_args(1, &args))
            }
        }
    }

    /// The same without waiting, and without a system call where there is nothing to do.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        self.flush_waiting()?;
        let queue = self.uring.submission();
        let idle = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
        drop(queue);
        if idle {
            return Ok(());
        }
        self.enter(IoUring::submit)
    }

    fn flush_waiting(&mut self) -> io::Result<()> {
        while let Some(request) = self.waiting.front() {
            // SAFETY: promised when it was pushed.
            if unsafe { self.uring.submission().push(request) }.is_ok() {
                self.waiting.pop_front();
            } else {
                self.enter(IoUring::submit)?;
            }
        }
        Ok(())
    }

    fn enter(&self, call: impl Fn(&IoUring) -> io::Result<usize>) -> io::Result<()> {
        match call(&self.uring) {
            Ok(_) => Ok(()),
            // Nothing came in time; a signal came first; or the kernel has so many results that we
            // must take some first (io_uring_enter(2)).
            Err(error)
                if [libc::ETIME, libc::EINTR, libc::EBUSY, libc::EAGAIN]
                    .map(Some)
                    .contains(&error.raw_os_error()) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// The next result.
    pub(super) fn next(&mut self) -> Option<cqueue::Entry> {
        if self.handed_on == self.batch.len() {
            self.batch.clear();
            self.handed_on = 0;
            self.batch.extend(self.uring.completion().take(BATCH_MAX));
        }
        let result = self.batch.get(self.handed_on).cloned();
        self.handed_on += usize::from(result.is_some());
        result
    }

    /// Ends all requests that the kernel has, so that it no longer touches our memory nor keeps our
    /// sockets. Says whether it did.
    pub(super) fn cancel_all(&mut self) -> bool {
        let all = CancelBuilder::any();
        let cancelled = match self.uring.submitter().register_sync_cancel(None, all) {
            Ok(()) => true,
            // There was none.
            Err(error) => error.raw_os_error() == Some(libc::ENOENT),
        };
        // What is cancelled keeps its socket until the kernel has said so.
        while self.uring.submission().taskrun() {
            if self.uring.submit().is_err() {
                return false;
            }
        }
        cancelled
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_it_was_written() {
        let token = Token {
            slot: u32::MAX,
            generation: 0x00ff_ffff,
        };
        for kind in Kind::ALL {
            assert_eq!(read_name(name(kind, token)), (kind, token));
        }
    }
}
