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

use io_uring::types::{CancelBuilder, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};

use crate::driver::Token;
use crate::driver::connection::send_flags;

/// Requests that can be queued between two system calls; more wait in our own memory.
const SUBMISSIONS: u32 = 1024;

/// Results that the kernel can put down without our help; more wait in the kernel's memory.
const COMPLETIONS: u32 = 8192;

/// How long to wait where the kernel has no memory for a request.
const NO_MEMORY_PAUSE: Duration = Duration::from_millis(1);

/// How many results are taken out at once.
const RESULTS_MAX: usize = 128;

/// What a request is for. With its token it is the request's name (`user_data`), so that a result
/// which outlives its connection is recognized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Request {
    /// To report clients, datagrams, or bytes of a peer that is read in large pieces.
    Readable,
    /// To report room to send.
    Writable,
    Receive,
    Send,
    Cancel,
    /// To report that the waker was used.
    Waker,
    /// To report that the alarm has gone off.
    Alarm,
}

impl Request {
    const ALL: [Self; 7] = [
        Self::Readable,
        Self::Writable,
        Self::Receive,
        Self::Send,
        Self::Cancel,
        Self::Waker,
        Self::Alarm,
    ];
}

/// The name of a request.
fn name(request: Request, token: Token) -> u64 {
    (request as u64) << 56 | u64::from(token.generation) << 32 | u64::from(token.slot)
}

/// What a name stands for.
pub(super) fn read_name(name: u64) -> (Request, Token) {
    let token = Token {
        slot: name as u32,
        generation: (name >> 32) as u32 & 0x00ff_ffff,
    };
    (Request::ALL[(name >> 56) as usize], token)
}

/// See the module.
pub(super) struct Ring {
    uring: IoUring,
    // What did not fit into the submission queue.
    waiting: VecDeque<squeue::Entry>,
    // Results that were taken out of the completion queue, and how many of them were returned.
    batch: Vec<cqueue::Entry>,
    returned: usize,
    // Whether the kernel knows a limit of the bytes that a repeated receive brings.
    limits_receives: bool,
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
        let mut ring = Self {
            uring,
            waiting: VecDeque::new(),
            batch: Vec::with_capacity(RESULTS_MAX),
            returned: 0,
            limits_receives: false,
        };
        ring.prove()?;
        Ok(ring)
    }

    /// One round trip. A filter of system calls may permit `io_uring_setup(2)` and refuse
    /// `io_uring_enter(2)`, which is better known now than at the first wait. It also tells whether
    /// the kernel knows a limit of repeated receives: Linux does from 6.18 on.
    fn prove(&mut self) -> io::Result<()> {
        let mut receive = opcode::RecvMulti::new(Fd(-1), 0).build();
        set_total(&mut receive, 1);
        // SAFETY: it points nowhere, and no descriptor has this number.
        unsafe { self.push(receive) };
        let result = loop {
            match self.next() {
                Some(result) => break result.result(),
                None => match self.uring.submit_and_wait(1) {
                    Ok(_) => {}
                    // A signal came first.
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                },
            }
        };
        // EINVAL says that the field is not known, EBADF that only the descriptor is wrong.
        self.limits_receives = result == -libc::EBADF;
        Ok(())
    }

    /// From now on, no limit is set: so it is where the kernel knows none.
    #[cfg(test)]
    pub(super) fn ignore_receive_limits(&mut self) {
        self.limits_receives = false;
    }

    pub(super) fn submitter(&self) -> io_uring::Submitter<'_> {
        self.uring.submitter()
    }

    /// Asks to report input.
    pub(super) fn poll_input(&mut self, fd: BorrowedFd<'_>, request: Request, token: Token) {
        self.poll(fd, libc::POLLIN as u32, request, token);
    }

    /// Asks to report clients. Of the workers that wait on one socket, one is woken.
    pub(super) fn poll_clients(&mut self, fd: BorrowedFd<'_>, token: Token) {
        let events = libc::POLLIN as u32 | libc::EPOLLEXCLUSIVE as u32;
        self.poll(fd, events, Request::Readable, token);
    }

    /// Asks to report room to send.
    pub(super) fn poll_output(&mut self, fd: BorrowedFd<'_>, token: Token) {
        self.poll(fd, libc::POLLOUT as u32, Request::Writable, token);
    }

    fn poll(&mut self, fd: BorrowedFd<'_>, events: u32, request: Request, token: Token) {
        let poll = opcode::PollAdd::new(Fd(fd.as_raw_fd()), events);
        // SAFETY: it points nowhere.
        unsafe { self.push(poll.build().user_data(name(request, token))) };
    }

    /// Asks for bytes as they arrive, in buffers of the group, `bytes_max` of them altogether: again
    /// and again, or, where the kernel knows no such limit, once, for one buffer.
    pub(super) fn receive(&mut self, fd: BorrowedFd<'_>, group: u16, bytes_max: u32, token: Token) {
        let fd = Fd(fd.as_raw_fd());
        let receive = if self.limits_receives {
            let mut receive = opcode::RecvMulti::new(fd, group).build();
            set_total(&mut receive, bytes_max);
            receive
        } else {
            let receive = opcode::Recv::new(fd, std::ptr::null_mut(), 0).buf_group(group);
            receive.build().flags(squeue::Flags::BUFFER_SELECT)
        };
        // SAFETY: it points nowhere; the group's buffers are its owner's promise.
        unsafe { self.push(receive.user_data(name(Request::Receive, token))) };
    }

    /// Asks to send, never blocking: the result is there when the request is submitted.
    ///
    /// # Safety
    /// The bytes stay where they are, untouched, until the result arrives.
    pub(super) unsafe fn send(&mut self, fd: BorrowedFd<'_>, bytes: &[u8], token: Token) {
        let len = u32::try_from(bytes.len()).expect("a buffer is far below 4 GiB");
        let send = opcode::Send::new(Fd(fd.as_raw_fd()), bytes.as_ptr(), len);
        let send = send.flags(send_flags().bits()).build();
        // SAFETY: the caller's promise.
        unsafe { self.push(send.user_data(name(Request::Send, token))) };
    }

    /// Tells a request to end; its own result reports that it has.
    pub(super) fn cancel(&mut self, request: Request, token: Token) {
        let cancel = opcode::AsyncCancel::new(name(request, token)).build();
        // SAFETY: it points nowhere.
        unsafe { self.push(cancel.user_data(name(Request::Cancel, token))) };
    }

    /// Queues a request.
    ///
    /// # Safety
    /// What the request points to stays where it is, and untouched by others, until its result
    /// arrives.
    unsafe fn push(&mut self, request: squeue::Entry) {
        if self.waiting.is_empty() {
            // SAFETY: the caller's promise.
            if unsafe { self.uring.submission().push(&request) }.is_ok() {
                return;
            }
        }
        self.waiting.push_back(request);
    }

    /// Whether requests wait for the next system call.
    pub(super) fn has_requests(&mut self) -> bool {
        !self.waiting.is_empty() || !self.uring.submission().is_empty()
    }

    /// Whether results are available without a system call.
    pub(super) fn has_results(&mut self) -> bool {
        self.returned < self.batch.len() || !self.uring.completion().is_empty()
    }

    /// Hands the requests to the kernel, lets it do what it has put off, and waits for a result.
    pub(super) fn submit_and_wait(&mut self) -> io::Result<()> {
        if self.flush_waiting()? {
            self.enter(|ring| ring.submit_and_wait(1))
        } else {
            // Results have to be taken first, so there are some.
            Ok(())
        }
    }

    /// The same without waiting, and without a system call where there is nothing to do.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        if !self.flush_waiting()? {
            return Ok(());
        }
        let queue = self.uring.submission();
        let idle = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
        drop(queue);
        if idle {
            return Ok(());
        }
        self.enter(IoUring::submit)
    }

    /// Moves what waits in our own memory into the submission queue. Whether all of it is there;
    /// if not, the kernel takes nothing more before results are taken out.
    fn flush_waiting(&mut self) -> io::Result<bool> {
        let mut is_refused = false;
        while let Some(request) = self.waiting.front() {
            // SAFETY: promised when it was pushed.
            if unsafe { self.uring.submission().push(request) }.is_ok() {
                self.waiting.pop_front();
                is_refused = false;
            } else if is_refused {
                return Ok(false);
            } else {
                self.enter(IoUring::submit)?;
                is_refused = true;
            }
        }
        Ok(true)
    }

    fn enter(&mut self, call: impl Fn(&IoUring) -> io::Result<usize>) -> io::Result<()> {
        let Err(error) = call(&self.uring) else {
            return Ok(());
        };
        match error.raw_os_error() {
            // A signal came first; or the kernel has more results than it may keep, and some must be
            // taken first (io_uring_enter(2)).
            Some(libc::EINTR | libc::EBUSY) => Ok(()),
            // It has no memory for a request. Nothing tells when it has, and where there is no result
            // to make room with, to try again at once would only take the processor from others.
            Some(libc::EAGAIN) => {
                if !self.has_results() {
                    std::thread::sleep(NO_MEMORY_PAUSE);
                }
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// The next result.
    pub(super) fn next(&mut self) -> Option<cqueue::Entry> {
        if self.returned == self.batch.len() {
            self.batch.clear();
            self.returned = 0;
            self.batch.extend(self.uring.completion().take(RESULTS_MAX));
        }
        let result = self.batch.get(self.returned).cloned();
        self.returned += usize::from(result.is_some());
        result
    }

    /// Ends all requests that the kernel has, so that it no longer touches our memory nor keeps our
    /// sockets. The result is whether it did.
    pub(super) fn cancel_all(&mut self) -> bool {
        let all = CancelBuilder::any();
        let cancelled = match self.uring.submitter().register_sync_cancel(None, all) {
            Ok(()) => true,
            // There was no request.
            Err(error) => error.raw_os_error() == Some(libc::ENOENT),
        };
        // What is cancelled keeps its socket until the kernel has reported it.
        // What was never submitted stays so.
        while self.uring.submission().taskrun() {
            const GETEVENTS: u32 = 1;
            let submitter = self.uring.submitter();
            // SAFETY: nothing is submitted, and there is no signal mask.
            if unsafe { submitter.enter::<libc::sigset_t>(0, 0, GETEVENTS, None) }.is_err() {
                return false;
            }
        }
        cancelled
    }
}

/// Sets the field `optlen` of a repeated receive: how many bytes it brings altogether before it ends
/// (Linux 6.18, `io_uring/net.c`), which the library does not know.
fn set_total(receive: &mut squeue::Entry, bytes: u32) {
    const OPTLEN: usize = 44 / size_of::<u32>();
    const {
        assert!(
            size_of::<squeue::Entry>() == 64,
            "one submission queue entry"
        )
    };
    const { assert!(align_of::<squeue::Entry>() >= align_of::<u32>()) };
    // SAFETY: the entry is a C structure of 64 bytes without padding, aligned for words.
    let words = unsafe { &mut *(&raw mut *receive).cast::<[u32; 16]>() };
    words[OPTLEN] = bytes;
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use nix::sys::resource::{UsageWho, getrusage};
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

    use super::*;

    #[test]
    fn a_name_is_read_as_it_was_written() {
        let token = Token {
            slot: u32::MAX,
            generation: 0x00ff_ffff,
        };
        for request in Request::ALL {
            assert_eq!(read_name(name(request, token)), (request, token));
        }
    }

    /// Has every later `io_uring_enter(2)` of this thread fail like this, for good.
    fn refuse_to_enter(errno: Errno) {
        let rules = std::collections::BTreeMap::from([(libc::SYS_io_uring_enter, vec![])]);
        let fails = SeccompAction::Errno(errno as u32);
        let architecture = std::env::consts::ARCH.try_into().expect("a known one");
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, fails, architecture)
            .expect("a filter without conflicts");
        let program: BpfProgram = filter.try_into().expect("a short program");
        seccompiler::apply_filter(&program).expect("any process may restrict itself");
    }

    #[test]
    fn a_kernel_without_memory_is_asked_again_after_a_pause_and_not_at_once() {
        let asks = || {
            let Ok(mut ring) = Ring::new() else {
                return eprintln!("not tested: io_uring is not available");
            };
            refuse_to_enter(Errno::EAGAIN);
            // The thread has left the processor by itself, which it does only to wait.
            let waits = || {
                let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("every thread has one");
                usage.voluntary_context_switches()
            };
            let before = waits();
            for _ in 0..10 {
                ring.submit_and_wait().expect("it may have memory later");
            }
            assert!(waits() - before >= 10, "{} waits", waits() - before);
        };
        std::thread::spawn(asks).join().expect("it has ended well");
    }
}
