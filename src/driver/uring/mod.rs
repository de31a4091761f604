//! The driver over `io_uring(7)`: completion as the kernel itself has it.
//!
//! One ring, made in the thread that uses it. Bytes are received by requests that repeat, into
//! buffers that the kernel takes from a ring of ours when bytes arrive; they are sent from the same
//! buffers. What is submitted in a turn goes to the kernel in one system call, which also brings
//! the next results, so that many messages share it; a message that is alone in its turn is sent
//! by `send(2)`, which is cheaper. Where the ring would not help (datagrams, stalled peers, and
//! peers that send much at a time) it only reports readiness, and the calls are those of the epoll
//! driver.
//!
//! An endpoint has at most one request for input and one for output. What they should be follows
//! from its interest, and [`Backend::update`] brings the two together.
//!
//! Never decides anything about an echo; never blocks except in [`Driver::wait`]. Read on in `ring`
//! for the ring, and in `memory` for the buffers. What is done when an endpoint is ready is in
//! `endpoints`.
//!
//! [`Driver::wait`]: super::Driver::wait

pub(crate) mod memory;
pub(crate) mod requests;
mod ring;

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use io_uring::cqueue;
use nix::errno::Errno;

use super::alarm::Alarm;
use super::buffers::{Memory, Need};
use super::connection::Reception;
use super::endpoints::Kind;
use super::lifecycle::Lifecycle;
use super::region::ensure_room;
use super::sockets::{Backend, Sockets};
use super::{Completion, Token, Waker};

use memory::{RingMemory, SMALL_BYTES};
use requests::{Endpoints, Receiving, Requests, Sending, update_receiving, update_sending};
use ring::{Request, Ring, read_name};

/// After this many small reads in a row a peer is no longer read in large pieces.
const LARGE_READS: u8 = 16;

/// Names the requests of the driver itself; no endpoint has it.
const DRIVER: Token = Token {
    slot: u32::MAX,
    generation: 0,
};

/// The driver over `io_uring(7)`.
pub type Uring = Sockets<Completions>;

/// The kernel's part of [`Uring`].
#[derive(Debug)]
pub struct Completions {
    ring: Ring,
    waker: Waker,
    alarm: Alarm,
    /// The last wait made no system call because it had completions of its own.
    has_skipped: bool,
}

impl Uring {
    /// A driver with nothing to do. Make it in the thread that will use it: the ring belongs to
    /// that thread.
    ///
    /// # Errors
    /// When the kernel is too old (6.1 is needed) or does not allow it, or no descriptor or memory
    /// is left.
    pub fn new() -> io::Result<Self> {
        ensure_room(RingMemory::REGION_BYTES)?;
        Self::on(Ring::new()?)
    }

    /// A driver as on kernels before 6.18, where a repeated receive has no limit, and is not used.
    #[cfg(test)]
    pub(crate) fn without_receive_limits() -> io::Result<Self> {
        let mut ring = Ring::new()?;
        ring.ignore_receive_limits();
        Self::on(ring)
    }

    fn on(ring: Ring) -> io::Result<Self> {
        let memory = RingMemory::new()?;
        memory.register(&ring.submitter())?;
        let waker = Waker::new()?;
        let mut backend = Completions {
            ring,
            waker: waker.clone(),
            alarm: Alarm::new()?,
            has_skipped: false,
        };
        backend.poll_waker();
        backend.poll_alarm();
        Ok(Self::of(backend, memory, waker))
    }
}

impl Backend for Completions {
    type Registration = Requests;
    type Memory = RingMemory;

    // Enough for many messages to share a system call, and few enough that what was received is sent
    // while it is still in the cache.
    const COMPLETIONS_MAX: usize = 128;

    fn update(&mut self, token: Token, endpoints: &mut Endpoints, done: &mut Vec<Completion>) {
        // No other endpoint has anything to do in this turn.
        let is_alone = endpoints.changed_count() == 0 && !self.ring.has_requests();
        endpoints.carry_out(token, done);
        if is_alone
            && let Some(endpoint) = endpoints.get(token)
            && endpoint.registration.sending == Sending::No
            && endpoint.may_send()
        {
            endpoints.flush(token, done);
        }
        let Some(endpoint) = endpoints.get_mut(token) else {
            return;
        };
        update_receiving(&mut self.ring, token, endpoint);
        update_sending(&mut self.ring, token, endpoints);

        let Some(endpoint) = endpoints.get_mut(token) else {
            return;
        };
        let is_idle = endpoint.registration.is_idle();
        match endpoint.lifecycle {
            Lifecycle::Closing(how) if is_idle => endpoints.close(token, how, done),
            // What the requests have brought was delivered by an earlier wait, and its answers are
            // unsent like the rest.
            Lifecycle::Detaching if is_idle => {
                endpoint.lifecycle.enter(Lifecycle::Detached);
                done.push(Completion::Detached { connection: token });
            }
            // The kernel may still read the piece that a request sends.
            Lifecycle::Failed if endpoint.registration.sending != Sending::Sends => {
                endpoints.discard(token);
            }
            _ => {}
        }
    }

    fn fetch(
        &mut self,
        endpoints: &mut Endpoints,
        has_completions: bool,
        until: Option<Instant>,
    ) -> io::Result<bool> {
        endpoints.memory.publish();
        self.enter(has_completions, endpoints.is_draining(), until)
    }

    fn handle_next(&mut self, endpoints: &mut Endpoints, done: &mut Vec<Completion>) -> bool {
        let Some(result) = self.ring.next() else {
            return false;
        };
        self.handle(&result, endpoints, done);
        true
    }
}

impl Completions {
    fn poll_waker(&mut self) {
        self.ring
            .poll_input(self.waker.as_fd(), Request::Waker, DRIVER);
    }

    fn poll_alarm(&mut self) {
        self.ring
            .poll_input(self.alarm.as_fd(), Request::Alarm, DRIVER);
    }

    /// Hands the requests to the kernel, and sleeps if there is nothing else to do. The result is
    /// whether it did either.
    fn enter(
        &mut self,
        has_completions: bool,
        has_work: bool,
        until: Option<Instant>,
    ) -> io::Result<bool> {
        // A lone message was sent at once, and the user has to know. The requests go with the next
        // wait, which follows immediately; but not later than that.
        if has_completions && !has_work && !self.has_skipped {
            self.has_skipped = true;
            return Ok(false);
        }
        self.has_skipped = false;
        if has_completions || has_work || self.ring.has_results() {
            self.ring.submit()?;
            return Ok(true);
        }
        match until {
            Some(until) if !self.alarm.set(until)? => self.ring.submit()?,
            _ => self.ring.submit_and_wait()?,
        }
        Ok(true)
    }

    fn handle(
        &mut self,
        result: &cqueue::Entry,
        endpoints: &mut Endpoints,
        done: &mut Vec<Completion>,
    ) {
        let (request, token) = read_name(result.user_data());
        // A result may outlive its endpoint: then its token is found no more.
        match request {
            Request::Receive => self.received(token, result, endpoints, done),
            Request::Send => sent(token, result.result(), endpoints, done),
            Request::Readable => readable(token, endpoints, done),
            Request::Writable => {
                if let Some(endpoint) = endpoints.get_mut(token) {
                    endpoint.registration.sending = Sending::No;
                    endpoints.mark_changed(token);
                    endpoints.handle_output(token, done);
                }
            }
            Request::Waker => {
                self.waker.drain();
                self.poll_waker();
                done.push(Completion::Woken);
            }
            Request::Alarm => {
                self.alarm.handle_expired();
                self.poll_alarm();
            }
            Request::Cancel => self.cancelled(token, result.result(), endpoints),
        }
    }

    /// A request was cancelled. The kernel does not find one that it is about to try again at that
    /// moment (ENOENT, EALREADY): a receive is cancelled again until it has ended. A poll that is not
    /// found has a result on its way.
    fn cancelled(&mut self, token: Token, result: i32, endpoints: &Endpoints) {
        let is_missed = [libc::ENOENT, libc::EALREADY].contains(&-result);
        if let Some(endpoint) = endpoints.get(token)
            && is_missed
            && endpoint.registration.receiving == Receiving::Cancelled
        {
            self.ring.cancel(Request::Receive, token);
        }
    }

    /// A result of a request to receive in small buffers.
    fn received(
        &mut self,
        token: Token,
        result: &cqueue::Entry,
        endpoints: &mut Endpoints,
        done: &mut Vec<Completion>,
    ) {
        let len = result.result();
        let buffer = cqueue::buffer_select(result.flags())
            .map(|index| endpoints.memory.taken(index, len.max(0) as u32));
        // Bytes that arrive for an endpoint that is over, or no longer exists, have no receiver.
        let is_over = endpoints
            .get(token)
            .is_none_or(|endpoint| endpoint.lifecycle.is_over());
        if let Some(buffer) = buffer {
            if len > 0 && !is_over {
                done.push(Completion::Received {
                    connection: token,
                    buffer,
                });
            } else {
                endpoints.memory.recycle(buffer);
            }
        }
        let Some(endpoint) = endpoints.get_mut(token) else {
            return;
        };
        let mut has_changed = false;
        if !cqueue::more(result.flags()) {
            endpoint.registration.receiving = Receiving::No;
            has_changed = true;
        }
        // A peer that fills a small buffer sends much at a time.
        if len as usize == SMALL_BYTES {
            endpoint.registration.large_reads_left = LARGE_READS;
            has_changed = true;
        }
        if has_changed {
            endpoints.mark_changed(token);
        }
        if len <= 0 && !is_over {
            self.receive_ended(token, -len, endpoints, done);
        }
    }

    /// A request to receive has ended with this error, or with the peer's half-close.
    fn receive_ended(
        &mut self,
        token: Token,
        errno: i32,
        endpoints: &mut Endpoints,
        done: &mut Vec<Completion>,
    ) {
        match errno {
            0 => {
                if let Some(endpoint) = endpoints.get_mut(token)
                    && let Kind::Connection(connection) = &mut endpoint.kind
                {
                    connection.handle_end(token, done);
                }
            }
            libc::ENOBUFS => endpoints.starve(token, Need::Small),
            // It was cancelled, or could not continue for now.
            libc::ECANCELED | libc::EAGAIN | libc::EINTR => {}
            errno => endpoints.fail(token, Errno::from_raw(errno), done),
        }
    }
}

/// There is input, or the poll for it was cancelled.
fn readable(token: Token, endpoints: &mut Endpoints, done: &mut Vec<Completion>) {
    let Some(endpoint) = endpoints.get_mut(token) else {
        return;
    };
    endpoint.registration.receiving = Receiving::No;
    endpoints.mark_changed(token);
    let reception = endpoints.handle_input(token, done);
    if let Some(Reception::Received { len, .. }) = reception
        && let Some(endpoint) = endpoints.get_mut(token)
    {
        let left = &mut endpoint.registration.large_reads_left;
        *left = if len >= SMALL_BYTES {
            LARGE_READS
        } else {
            left.saturating_sub(1)
        };
    }
}

/// The result of a request to send.
fn sent(token: Token, result: i32, endpoints: &mut Endpoints, done: &mut Vec<Completion>) {
    let Some((endpoint, memory)) = endpoints.with_memory(token) else {
        return;
    };
    endpoint.registration.sending = Sending::No;
    let Kind::Connection(connection) = &mut endpoint.kind else {
        return;
    };
    let is_open = endpoint.lifecycle == Lifecycle::Open;
    match result {
        // Of a connection that is over nothing is reported any more, not even an error; it may have
        // waited for this result to be closed.
        _ if endpoint.lifecycle.is_over() => {}
        0.. => {
            let unsent = connection.unsent.front(memory).map_or(0, <[u8]>::len);
            connection.handle_sent(memory, result as u32, token, done);
            if (result as usize) < unsent && is_open {
                connection.stall(memory, token, done);
            }
        }
        // There is no room, or it could not be tried without waiting.
        _ if [libc::EAGAIN, libc::EINTR, libc::ECANCELED].contains(&-result) => {
            if is_open {
                connection.stall(memory, token, done);
            }
        }
        _ => return endpoints.fail(token, Errno::from_raw(-result), done),
    }
    // Most often that was all, and the kernel receives on by itself.
    let is_done = is_open
        && !connection.has_unsent()
        && !connection.shut_down_is_due()
        && endpoint.registration.receiving == Receiving::Repeatedly;
    if !is_done {
        endpoints.mark_changed(token);
    }
}

impl Drop for Completions {
    /// The kernel must neither touch our memory nor keep our sockets when they are gone: their
    /// addresses can be bound again at once.
    fn drop(&mut self) {
        if !self.ring.cancel_all() {
            log::error!("io_uring: requests could not be cancelled");
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::driver::Closing;
    use crate::driver::endpoints::Endpoint;

    /// A send may fail after its connection has, and after the close was requested: the close waits
    /// for this result, whatever it is.
    #[test]
    fn every_result_of_a_send_lets_a_close_continue() {
        for result in [5, 2, -libc::EPIPE, -libc::EAGAIN, -libc::ECANCELED] {
            let mut endpoints = Endpoints::new(RingMemory::new().expect("there is memory"));
            let (ours, _peer) = UnixStream::pair().expect("descriptors are left");
            let token = endpoints.add_connection(ours.into(), b"hello".to_vec());
            while endpoints.next_changed().is_some() {}
            let endpoint = endpoints.get_mut(token).expect("it was just added");
            endpoint.lifecycle = Lifecycle::Closing(Closing::Now);
            endpoint.registration.sending = Sending::Sends;
            let mut done = vec![];
            sent(token, result, &mut endpoints, &mut done);
            assert_eq!(endpoints.next_changed(), Some(token), "after {result}");
            assert!(done.is_empty(), "nothing but Closed is reported: {done:?}");
        }
    }

    #[test]
    fn a_connection_resumes_when_there_are_buffers_of_the_size_that_it_lacked() {
        for (lacked, other) in [(Need::Small, Need::Large), (Need::Large, Need::Small)] {
            let mut endpoints = Endpoints::new(RingMemory::new().expect("there is memory"));
            let mut starve = |need| {
                let (ours, _peer) = UnixStream::pair().expect("descriptors are left");
                let token = endpoints.add_connection(ours.into(), Vec::new());
                endpoints.starve(token, need);
                token
            };
            let (waits, resumes) = (starve(lacked), starve(other));
            while endpoints.next_changed().is_some() {}
            let leases = endpoints.memory.lease_all(lacked);
            endpoints.resume_starved();
            assert_eq!(endpoints.next_changed(), Some(resumes), "{lacked:?}");
            assert_eq!(endpoints.next_changed(), None, "{lacked:?}");
            for buffer in leases {
                endpoints.memory.recycle(buffer);
            }
            endpoints.resume_starved();
            assert_eq!(endpoints.next_changed(), Some(waits), "{lacked:?}");
        }
    }

    #[test]
    fn an_idle_connection_is_small() {
        let size = size_of::<Endpoint<Requests>>();
        assert!(size <= 64, "{size} bytes");
    }
}
