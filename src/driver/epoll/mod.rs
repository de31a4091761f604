//! The driver over `epoll(7)`: readiness, presented as completions.
//!
//! One read and one send per event, bulk by splice. Operations are carried out at the start of the
//! next `wait`; a send that the kernel takes at once costs one system call and nothing more. The
//! kernel is brought up to date once a turn, so that a connection which is opened and closed costs
//! one `epoll_ctl(2)`.
//!
//! Never decides anything about an echo; never blocks except in [`Driver::wait`]. What is done when
//! an endpoint is ready is in `endpoints`.
//!
//! [`Driver::wait`]: super::Driver::wait

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll as Kernel, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::alarm::Alarm;
use super::buffers::Buffers;
use super::connection::Reception;
use super::endpoints::{Endpoints as AllEndpoints, Kind, Registration};
use super::lifecycle::Lifecycle;
use super::region::ensure_room;
use super::sockets::{Backend, Sockets};
use super::{Completion, Token, Waker};
use crate::sys::socket;

/// How many events are taken from the kernel at once.
const EVENTS_MAX: usize = 256;

/// After a read there may be more, however short it was: an end, an error, urgent data (tcp(7)).
const WARNINGS: EpollFlags = EpollFlags::EPOLLRDHUP.union(EpollFlags::EPOLLPRI);

/// How soon a socket that the kernel could not watch is tried again.
const WATCH_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What is reported whether asked for or not.
const BROKEN: EpollFlags = EpollFlags::EPOLLERR.union(EpollFlags::EPOLLHUP);

/// Marks the waker's event; no token looks like it, because generations have 24 bits.
const WAKER: u64 = u64::MAX;

/// Marks the alarm's event.
const ALARM: u64 = u64::MAX - 1;

/// The driver over `epoll(7)`.
pub type Epoll = Sockets<Readiness>;

type Endpoints = AllEndpoints<Registered, Buffers>;
type Endpoint = super::endpoints::Endpoint<Registered>;

/// The kernel's part of [`Epoll`].
#[derive(Debug)]
pub struct Readiness {
    kernel: Kernel,
    waker: Waker,
    alarm: Alarm,
    // Events from the kernel, and those of them that are yet to be handled.
    events: Box<[EpollEvent]>,
    ready: Range<usize>,
    /// The kernel could not watch a datagram socket, which is tried again.
    has_unwatched: bool,
    unwatched_logged: bool,
}

/// What the kernel reports of one endpoint.
#[derive(Debug, Default)]
pub struct Registered {
    watch: Watch,
    /// One event when bytes come, and one read that takes them all (`EPOLLET`): so it is over TCP,
    /// until a read may have left some.
    edge: bool,
    /// Both sides have finished while nothing was asked of the connection: `EPOLLHUP` would be
    /// reported for ever.
    hung_up: bool,
}

impl Registration for Registered {
    fn of_connection(is_tcp: bool) -> Self {
        // On a Unix socket a read ends where the peer has passed descriptors, and says nothing of
        // what is behind them.
        Self {
            edge: is_tcp,
            ..Self::default()
        }
    }
}

/// What the kernel is asked to report of a descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Watch {
    /// It is not registered.
    #[default]
    Nothing,
    /// Errors and hang-ups, which are always reported.
    Errors,
    /// Bytes or datagrams, as long as there are any.
    Input,
    /// Bytes when they come, and no second time: the kernel need not look again whether there are
    /// more. With what a read might stop before, so that its reader is warned.
    InputEdge,
    /// Clients. Where several workers wait on one socket, one of them is woken.
    Clients,
    /// Room to send.
    Output,
    /// Bytes and room to send.
    Both,
}

impl Watch {
    fn flags(self) -> EpollFlags {
        match self {
            Self::Nothing | Self::Errors => EpollFlags::empty(),
            Self::Input => EpollFlags::EPOLLIN,
            Self::InputEdge => EpollFlags::EPOLLIN | EpollFlags::EPOLLET | WARNINGS,
            Self::Clients => EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE,
            Self::Output => EpollFlags::EPOLLOUT,
            Self::Both => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT,
        }
    }

    /// What an endpoint needs now.
    fn of(endpoint: &Endpoint) -> Self {
        let interest = endpoint.interest();
        let connection = match &endpoint.kind {
            Kind::Listener(_) if interest.input => return Self::Clients,
            Kind::Listener(_) => return Self::Nothing,
            Kind::Datagrams(_) => None,
            Kind::Connection(connection) => Some(connection),
        };
        match (interest.input, interest.output) {
            (true, true) => Self::Both,
            (false, true) => Self::Output,
            (true, false) if endpoint.registration.edge => Self::InputEdge,
            (true, false) => Self::Input,
            // A paused connection is watched for a reset. One that lacks a buffer is not: a hang-up
            // would be reported until there is one. Nor is one after the peer's end, when there is
            // nothing to report except a hang-up, once both sides have finished.
            (false, false) => {
                let is_paused = endpoint.lifecycle == Lifecycle::Open
                    && !endpoint.wanted
                    && !endpoint.registration.hung_up
                    && connection.is_some_and(|connection| !connection.has_ended());
                if is_paused {
                    Self::Errors
                } else {
                    Self::Nothing
                }
            }
        }
    }
}

impl Epoll {
    /// A driver with nothing to do. Make it in the thread that will use it.
    ///
    /// # Errors
    /// When no descriptor or no memory is left.
    pub fn new() -> io::Result<Self> {
        ensure_room(Buffers::REGION_BYTES)?;
        let waker = Waker::new()?;
        let backend = Readiness::new(waker.clone())?;
        Ok(Self::of(backend, Buffers::new()?, waker))
    }
}

impl Backend for Readiness {
    type Registration = Registered;
    type Memory = Buffers;

    // Few, so that what was received is sent while it is still in the cache, and the first peer of a
    // batch need not wait for the last one's bytes: measured, 16 is 1 to 3 percent cheaper than 64.
    const COMPLETIONS_MAX: usize = 16;

    fn update(&mut self, token: Token, endpoints: &mut Endpoints, done: &mut Vec<Completion>) {
        endpoints.carry_out(token, done);
        if endpoints.get(token).is_some_and(Endpoint::may_send) {
            endpoints.flush(token, done);
        }
        let Some(endpoint) = endpoints.get_mut(token) else {
            return;
        };
        match endpoint.lifecycle {
            Lifecycle::Closing(how) => {
                // Another worker may hold the same listening or datagram socket, and then closing
                // ours would not end its registration (epoll(7), question 6).
                if endpoint.connection().is_none() && endpoint.registration.watch != Watch::Nothing
                {
                    // It is registered, as just seen, so this cannot fail.
                    let _ = self.kernel.delete(&endpoint.fd);
                }
                return endpoints.close(token, how, done);
            }
            // Everything that was received has been delivered by an earlier wait.
            Lifecycle::Detaching => {
                endpoint.lifecycle.enter(Lifecycle::Detached);
                done.push(Completion::Detached { connection: token });
            }
            Lifecycle::Failed => endpoints.discard(token),
            Lifecycle::Open | Lifecycle::Draining | Lifecycle::Detached => {}
        }
        self.register(token, endpoints, done);
    }

    fn fetch(
        &mut self,
        endpoints: &mut Endpoints,
        has_completions: bool,
        until: Option<Instant>,
    ) -> io::Result<bool> {
        if !self.ready.is_empty() {
            return Ok(true);
        }
        // A message was sent at once, and the user has to know. A drain, however, may report
        // something at every turn, and must not keep other endpoints from theirs.
        let drains = endpoints.is_draining();
        // Nothing tells when the kernel has room for one more.
        let until = match std::mem::take(&mut self.has_unwatched) {
            true => {
                let retry = Instant::now() + WATCH_AGAIN_AFTER;
                Some(until.map_or(retry, |until| until.min(retry)))
            }
            false => until,
        };
        if has_completions && !drains {
            return Ok(false);
        }
        let timeout = self.timeout(drains, until)?;
        self.ready = match self.kernel.wait(&mut self.events, timeout) {
            Ok(count) => 0..count,
            Err(Errno::EINTR) => 0..0,
            Err(errno) => return Err(errno.into()),
        };
        Ok(true)
    }

    fn handle_next(&mut self, endpoints: &mut Endpoints, done: &mut Vec<Completion>) -> bool {
        let Some(index) = self.ready.next() else {
            return false;
        };
        self.handle(self.events[index], endpoints, done);
        true
    }
}

impl Readiness {
    fn new(waker: Waker) -> io::Result<Self> {
        let kernel = Kernel::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let alarm = Alarm::new()?;
        kernel.add(waker.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, WAKER))?;
        kernel.add(alarm.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, ALARM))?;
        Ok(Self {
            kernel,
            waker,
            alarm,
            events: vec![EpollEvent::empty(); EVENTS_MAX].into_boxed_slice(),
            ready: 0..0,
            has_unwatched: false,
            unwatched_logged: false,
        })
    }

    /// How long to sleep: not at all, or until an event, of which the alarm's is one.
    fn timeout(&mut self, has_work: bool, until: Option<Instant>) -> io::Result<EpollTimeout> {
        if has_work {
            return Ok(EpollTimeout::ZERO);
        }
        match until {
            Some(until) if !self.alarm.set(until)? => Ok(EpollTimeout::ZERO),
            _ => Ok(EpollTimeout::NONE),
        }
    }

    /// Tells the kernel what an endpoint waits for, if it does not know yet.
    fn register(&mut self, token: Token, endpoints: &mut Endpoints, done: &mut Vec<Completion>) {
        let Some(endpoint) = endpoints.get_mut(token) else {
            return;
        };
        endpoint.registration.hung_up &= !endpoint.wanted;
        let (before, watch) = (endpoint.registration.watch, Watch::of(endpoint));
        if watch == before {
            return;
        }
        let data = u64::from(token.generation) << 32 | u64::from(token.slot);
        let mut event = EpollEvent::new(watch.flags(), data);
        let result = match (before, watch) {
            (_, Watch::Nothing) => self.kernel.delete(&endpoint.fd),
            (Watch::Nothing, _) => self.kernel.add(&endpoint.fd, event),
            _ => self.kernel.modify(&endpoint.fd, &mut event),
        };
        match (result, &endpoint.kind) {
            (Ok(()), _) => endpoint.registration.watch = watch,
            // ENOSPC or ENOMEM (epoll_ctl(2)): what cannot be watched cannot be served.
            (Err(errno), Kind::Connection(_)) => endpoints.fail(token, errno, done),
            (Err(errno), Kind::Listener(_)) => {
                endpoint.wanted = false;
                done.push(Completion::AcceptPaused {
                    listener: token,
                    error: Some(errno.into()),
                });
            }
            // There is no peer to turn away: tried again at the next turn that has buffers.
            (Err(errno), Kind::Datagrams(_)) => {
                self.has_unwatched = true;
                if !std::mem::replace(&mut self.unwatched_logged, true) {
                    log::warn!(
                        "a datagram socket waits to be watched: epoll_ctl: {errno}; it is tried \
                         again (sysctl fs.epoll.max_user_watches)"
                    );
                }
                endpoints.starve(token, super::buffers::Need::Datagram);
            }
        }
    }

    fn handle(&mut self, event: EpollEvent, endpoints: &mut Endpoints, done: &mut Vec<Completion>) {
        match event.data() {
            WAKER => {
                self.waker.drain();
                return done.push(Completion::Woken);
            }
            ALARM => return self.alarm.handle_expired(),
            _ => {}
        }
        let token = Token {
            slot: event.data() as u32,
            generation: (event.data() >> 32) as u32,
        };
        let flags = event.events();
        let Some(endpoint) = endpoints.get(token) else {
            return;
        };
        let interest = endpoint.interest();
        if interest.output && flags.intersects(EpollFlags::EPOLLOUT | BROKEN) {
            endpoints.handle_output(token, done);
        }
        if interest.input && flags.intersects(EpollFlags::EPOLLIN | WARNINGS | BROKEN) {
            // A failure above has ended its interest, which is asked for again.
            let reception = endpoints.handle_input(token, done);
            leave_edge(token, endpoints, reception, flags.intersects(WARNINGS));
        } else if !interest.output && flags.intersects(BROKEN) {
            hang_up(token, endpoints, done);
        }
    }
}

/// Goes back to level-triggered events where a read may have left something in the socket.
fn leave_edge(token: Token, endpoints: &mut Endpoints, reception: Option<Reception>, warned: bool) {
    let filled = match reception {
        Some(Reception::Received { filled, .. }) => filled || warned,
        Some(Reception::Relayed(_) | Reception::Starved) => true,
        _ => return,
    };
    if let Some(endpoint) = endpoints.get_mut(token)
        && endpoint.registration.edge
        && let Kind::Connection(connection) = &endpoint.kind
        && (filled || connection.relay.is_due())
    {
        endpoint.registration.edge = false;
        endpoints.mark_changed(token);
    }
}

/// An error or hang-up on a connection of which nothing was asked.
fn hang_up(token: Token, endpoints: &mut Endpoints, done: &mut Vec<Completion>) {
    let Some(endpoint) = endpoints.get_mut(token) else {
        return;
    };
    if endpoint.lifecycle != Lifecycle::Open || endpoint.connection().is_none() {
        return;
    }
    if let Some(error) = socket::take_error(endpoint.fd.as_fd()) {
        let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
        endpoints.fail(token, errno, done);
    } else {
        // Both sides have finished, and there may be bytes left to read: later, when asked.
        endpoint.registration.hung_up = true;
        endpoints.mark_changed(token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::{Driver, Op};

    /// The kernel watches no file (EPERM); of a socket it is short of room or memory.
    #[test]
    fn a_datagram_socket_that_cannot_be_watched_is_tried_again_without_any_event() {
        let mut driver = Epoll::new().expect("epoll is available");
        let file = std::fs::File::open("/proc/self/exe").expect("every process has a program");
        let socket = driver.add_datagram_socket(file.into());
        driver.submit(Op::ReceiveFrom { socket });
        let until = Instant::now() + Duration::from_secs(3600);
        let mut done = vec![];
        for _ in 0..2 {
            driver.wait(Some(until), &mut done).expect("it continues");
        }
        assert!(done.is_empty() && driver.now() < until, "{done:?}");
    }

    #[test]
    fn an_idle_connection_is_small() {
        let size = size_of::<Endpoint>();
        assert!(size <= 64, "{size} bytes");
    }
}
