//! The control socket: connections of `echoctl` and its like, served from the main loop.
//!
//! Knows sockets, who is at the other end, and how long to wait for whom. Never knows what a
//! request means, and never blocks: the main loop polls one descriptor ([`Server::as_fd`]), calls
//! [`Server::turn`], answers what that hands out with [`Server::reply`], and sleeps until
//! [`Server::poll_timeout`] at most. Whatever a client does, it costs that client its connection
//! and nobody else anything: what is held for one is bounded, in bytes and in time. Read on in
//! `control` for what is asked and answered, and in `socket` for the file in the file system.
//!
//! ```text
//!   waiting ──a whole request──▶ working ──reply()──▶ writing ──all taken──▶ waiting
//!      30 s                      no limit             2 s a page
//! ```
//!
//! While a request is worked on or its reply is written, nothing is read from that client: its
//! next request waits in the kernel, and in the end in the client.

#![forbid(unsafe_code)]

mod handover;
pub(super) mod queries;
mod socket;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::dup3;

use crate::protocol::wire::{self, Frames, Request};
use crate::protocol::{Pages, wire::REQUEST_BYTES_MAX};

use super::privileges::Made;
pub use socket::BindError;
use socket::Socket;

/// Connections at one time. People and monitoring need a handful; the rest bounds what all of
/// them can make us hold, 2 MiB of requests.
pub const CONNECTIONS_MAX: usize = 32;

/// Connections of one user at one time, so that four users have to conspire to shut out a fifth.
pub const CONNECTIONS_PER_USER_MAX: usize = 8;

/// How long a client may take for a request, from the reply before it on. A person at a prompt
/// opens a new connection for each command; nobody needs to hold one.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);

/// How long a client may take to read a reply, or a page of one. It is on the same machine.
pub const REPLY_TIME_MAX: Duration = Duration::from_secs(2);

/// Descriptors held back, so that an operator can still ask why there are no more.
const SPARE_DESCRIPTORS: usize = 4;

/// What spare descriptors are of.
const NULL: &str = "/dev/null";

/// How long accepting rests when there is not even a spare descriptor.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Connections accepted in one turn; the rest waits for the next.
const ACCEPTS_PER_TURN: usize = 16;

/// The listening socket among the epoll events; connections count from 1.
const LISTENING: u64 = 0;

/// A connection, for as long as it lives and never again after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientId(u64);

/// Who is at the other end (`SO_PEERCRED`), as it was when the connection was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The process; 0 if it is of another namespace.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its group, of which it can have more.
    pub gid: u32,
}

/// A request to be answered with [`Server::reply`], sooner or later, also when it is `oneway`.
#[derive(Debug)]
pub struct Call {
    /// Whose it is.
    pub id: ClientId,
    /// Who that is.
    pub client: Client,
    /// What is asked.
    pub request: Request,
}

/// What is answered.
#[derive(Debug)]
pub enum Reply {
    /// One message.
    One(wire::Reply),
    /// As many as the client asked for, each made when the one before was taken.
    Pages(Pages),
}

/// The control socket and all its connections.
#[derive(Debug)]
pub struct Server {
    epoll: Epoll,
    socket: Socket,
    connections: BTreeMap<ClientId, Connection>,
    last_id: u64,
    /// Those that may have sent their next request together with the one before.
    pending: Vec<ClientId>,
    spare: Spare,
    /// Accepting rests until then.
    rest_until: Option<Instant>,
    per_user_max: usize,
    /// The time of the last call.
    now: Instant,
}

impl Server {
    /// Makes the socket at this path, for the owner and, if one is given, this group.
    ///
    /// # Errors
    ///
    /// [`BindError`], which says what to do about it; nothing is left behind.
    pub fn bind(path: &Path, mode: u32, group: Option<u32>) -> Result<Self, BindError> {
        Self::new(Socket::bind(path, mode, group)?)
    }

    fn new(socket: Socket) -> Result<Self, BindError> {
        let failed = |cause| BindError::failed(socket.place().0, "epoll", cause);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(failed)?;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, LISTENING);
        epoll.add(&socket.listener, event).map_err(failed)?;
        Ok(Self {
            epoll,
            socket,
            connections: BTreeMap::new(),
            last_id: LISTENING,
            pending: Vec::new(),
            spare: Spare::new(),
            rest_until: None,
            per_user_max: CONNECTIONS_PER_USER_MAX,
            now: Instant::now(),
        })
    }

    /// The files that were made for it.
    pub(super) fn made(&self) -> Vec<Made> {
        self.socket.made()
    }

    /// When [`Self::turn`] has to be called although the descriptor is not readable.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.pending.is_empty() {
            return Some(self.now);
        }
        let deadlines = self.connections.values().filter_map(Connection::deadline);
        deadlines.chain(self.rest_until).min()
    }

    /// Accepts, reads and writes what can be without waiting, ends who has used up his time, and
    /// returns the requests that are complete, one of each client at most.
    pub fn turn(&mut self, now: Instant) -> Vec<Call> {
        self.now = now;
        self.end_overdue();
        if self.rest_until.is_some_and(|until| until <= now) {
            self.rest_until = None;
            self.listen_for(EpollFlags::EPOLLIN);
        }

        let mut calls = Vec::new();
        for id in std::mem::take(&mut self.pending) {
            self.take_request(id, &mut calls);
        }
        let mut events = [EpollEvent::empty(); CONNECTIONS_MAX + 1];
        // An interrupted wait is as good as none: what is there stays there.
        let count = self
            .epoll
            .wait(&mut events, EpollTimeout::ZERO)
            .unwrap_or(0);
        for event in &events[..count] {
            match event.data() {
                LISTENING => self.accept(),
                id => self.handle_event(ClientId(id), &mut calls),
            }
        }
        calls
    }

    /// Answers a request. A client that is gone by now is no mistake, and one that wants no reply
    /// gets none.
    pub fn reply(&mut self, id: ClientId, reply: Reply, now: Instant) {
        self.now = now;
        if let Some(connection) = self.connections.get_mut(&id) {
            let next = connection.handle_reply(reply, now);
            self.settle(id, next);
        }
    }

    fn end_overdue(&mut self) {
        let overdue = |connection: &Connection| {
            let deadline = connection.deadline();
            deadline.is_some_and(|deadline| deadline <= self.now)
        };
        let ids: Vec<ClientId> = self
            .connections
            .iter()
            .filter_map(|(id, connection)| overdue(connection).then_some(*id))
            .collect();
        for id in ids {
            self.settle(id, Err(End::TooSlow));
        }
    }

    fn handle_event(&mut self, id: ClientId, calls: &mut Vec<Call>) {
        // An earlier event of this turn may have ended it.
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        match &connection.state {
            State::Waiting { .. } => match connection.read() {
                Ok(()) => self.take_request(id, calls),
                Err(end) => self.settle(id, Err(end)),
            },
            State::Writing { .. } => {
                let next = connection.write(self.now);
                self.settle(id, next);
            }
            State::Working { .. } => {}
        }
    }

    /// Hands out the client's next request if it is complete.
    fn take_request(&mut self, id: ClientId, calls: &mut Vec<Call>) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        match connection.next_request() {
            Ok(Some(request)) => calls.push(Call {
                id,
                client: connection.client,
                request,
            }),
            Ok(None) => self.settle(id, Ok(Next::Read)),
            Err(end) => self.settle(id, Err(end)),
        }
    }

    /// Arranges for what a connection needs next, or ends it.
    fn settle(&mut self, id: ClientId, next: Result<Next, End>) {
        let flags = match next {
            Ok(Next::Read) => EpollFlags::EPOLLIN,
            Ok(Next::Write) => EpollFlags::EPOLLOUT,
            Ok(Next::Take) => return self.pending.push(id),
            Err(end) => return self.end(id, &end),
        };
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        // One shot: a client that hangs up while it is not its turn would be reported over and
        // over.
        let mut event = EpollEvent::new(flags | EpollFlags::EPOLLONESHOT, id.0);
        if let Err(cause) = self.epoll.modify(&connection.stream, &mut event) {
            self.end(id, &End::Failed(cause.into()));
        }
    }

    fn end(&mut self, id: ClientId, end: &End) {
        if let Some(connection) = self.connections.remove(&id) {
            let Client { pid, uid, .. } = connection.client;
            log::debug!("control connection of pid {pid}, uid {uid}: {end}");
            self.spare.close(connection.stream.into());
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            let cause = match self.socket.listener.accept() {
                Ok((stream, _)) => {
                    if let Err((stream, end)) = self.admit(stream) {
                        log::debug!("control connection refused: {end}");
                        self.spare.close(stream.into());
                    }
                    continue;
                }
                Err(cause) => cause,
            };
            match cause.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EAGAIN) => return,
                // The client has given up meanwhile (accept(2)).
                Some(Errno::ECONNABORTED | Errno::EINTR | Errno::EPROTO) => {}
                // The kernel takes a descriptor before it looks at the queue (accept(2)): a spare one
                // that is given up for an empty queue stays free, and a worker's client gets it.
                Some(Errno::EMFILE | Errno::ENFILE) if !self.is_connection_queued() => return,
                Some(Errno::EMFILE | Errno::ENFILE) if self.spare.give_up() => {}
                _ => {
                    log::debug!("control socket: accept: {cause}");
                    self.rest_until = Some(self.now + ACCEPT_REST);
                    return self.listen_for(EpollFlags::empty());
                }
            }
        }
    }

    /// Whether a client waits to be accepted.
    fn is_connection_queued(&self) -> bool {
        let mut listener = [PollFd::new(self.socket.listener.as_fd(), PollFlags::POLLIN)];
        poll(&mut listener, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Takes a connection in, or gives it back with the reason.
    fn admit(&mut self, stream: UnixStream) -> Result<ClientId, (UnixStream, End)> {
        let client = match self.watch(&stream) {
            Ok(client) => client,
            Err(end) => return Err((stream, end)),
        };
        let id = ClientId(self.last_id);
        let connection = Connection::new(stream, client, self.now);
        self.connections.insert(id, connection);
        Ok(id)
    }

    /// Watches a connection as the next one, if there may be one more of its user.
    fn watch(&mut self, stream: &UnixStream) -> Result<Client, End> {
        let credentials = getsockopt(stream, sockopt::PeerCredentials).map_err(io::Error::from)?;
        let client = Client {
            pid: credentials.pid(),
            uid: credentials.uid(),
            gid: credentials.gid(),
        };
        let of_user = |connection: &&Connection| connection.client.uid == client.uid;
        if self.connections.len() >= CONNECTIONS_MAX {
            return Err(End::TooMany);
        }
        if self.connections.values().filter(of_user).count() >= self.per_user_max {
            return Err(End::TooManyOfUser(client.uid));
        }
        stream.set_nonblocking(true)?;
        self.last_id += 1;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
        let event = EpollEvent::new(flags, self.last_id);
        self.epoll.add(stream, event).map_err(io::Error::from)?;
        Ok(client)
    }

    fn listen_for(&self, flags: EpollFlags) {
        let mut event = EpollEvent::new(flags, LISTENING);
        // It was added at the start, and changing it needs no memory.
        let changed = self.epoll.modify(&self.socket.listener, &mut event);
        debug_assert_eq!(changed, Ok(()), "the listening socket is watched");
    }
}

impl AsFd for Server {
    /// Readable when there is something to do: an epoll instance of its own.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("closed by the client")]
    Closed,
    #[error("out of time")]
    TooSlow,
    #[error("{CONNECTIONS_MAX} are there already")]
    TooMany,
    #[error("uid {0} has as many as one user may have")]
    TooManyOfUser(u32),
    #[error(transparent)]
    TooLong(#[from] wire::TooLong),
    #[error(transparent)]
    Malformed(#[from] wire::Malformed),
    #[error(transparent)]
    Failed(#[from] io::Error),
}

/// What a connection needs next.
enum Next {
    /// Tell when there is something to read.
    Read,
    /// Tell when something can be written.
    Write,
    /// Look whether its next request is here already.
    Take,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    client: Client,
    frames: Frames,
    /// The client has shut down its side: what it has sent is answered, then we close too.
    finished: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    /// For a request to be complete.
    Waiting { until: Instant },
    /// A request is handed out.
    Working { more: bool, oneway: bool },
    /// A reply is on its way.
    Writing {
        message: Vec<u8>,
        written: usize,
        rest: Option<Pages>,
        until: Instant,
    },
}

impl Connection {
    fn new(stream: UnixStream, client: Client, now: Instant) -> Self {
        Self {
            stream,
            client,
            frames: Frames::new(REQUEST_BYTES_MAX),
            finished: false,
            state: State::Waiting {
                until: now + REQUEST_TIME_MAX,
            },
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until } | State::Writing { until, .. } => Some(until),
            State::Working { .. } => None,
        }
    }

    /// Reads what is there, no more than one request can have.
    fn read(&mut self) -> Result<(), End> {
        let mut buffer = [0; 8 * 1024];
        while !self.finished && self.frames.room() > 0 {
            let len = self.frames.room().min(buffer.len());
            match self.stream.read(&mut buffer[..len]) {
                Ok(0) => self.finished = true,
                Ok(len) => {
                    self.frames.push(&buffer[..len]);
                }
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => break,
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause.into()),
            }
        }
        Ok(())
    }

    fn next_request(&mut self) -> Result<Option<Request>, End> {
        match self.frames.next_frame()? {
            Some(frame) => {
                let request = Request::decode(&frame)?;
                self.state = State::Working {
                    more: request.more,
                    oneway: request.oneway,
                };
                Ok(Some(request))
            }
            None if self.finished => Err(End::Closed),
            None => Ok(None),
        }
    }

    fn handle_reply(&mut self, reply: Reply, now: Instant) -> Result<Next, End> {
        let State::Working { more, oneway } = self.state else {
            debug_assert!(false, "a request is answered once");
            return Ok(Next::Take);
        };
        if oneway {
            return Ok(self.wait(now));
        }
        let (reply, rest) = match reply {
            Reply::One(reply) => (reply, None),
            Reply::Pages(mut pages) => (pages.next_page(more), Some(pages)),
        };
        self.begin(&reply, rest, now);
        self.write(now)
    }

    /// Begins to write a message; `rest` is what follows it.
    fn begin(&mut self, reply: &wire::Reply, rest: Option<Pages>, now: Instant) {
        self.state = State::Writing {
            message: reply.encode(),
            written: 0,
            rest: rest.filter(|_| reply.continues),
            until: now + REPLY_TIME_MAX,
        };
    }

    /// Writes what the client's socket takes, one message at most.
    fn write(&mut self, now: Instant) -> Result<Next, End> {
        let State::Writing {
            message,
            written,
            rest,
            ..
        } = &mut self.state
        else {
            return Ok(Next::Take);
        };
        while *written < message.len() {
            match self.stream.write(&message[*written..]) {
                Ok(len) => *written += len,
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => return Ok(Next::Write),
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(cause) => return Err(cause.into()),
            }
        }
        let Some(mut pages) = rest.take() else {
            return Ok(self.wait(now));
        };
        // The next page has to wait for its turn: a client that reads as fast as we write must
        // not keep all others waiting.
        let reply = pages.next_page(true);
        self.begin(&reply, Some(pages), now);
        Ok(Next::Write)
    }

    /// Goes back to waiting for a request.
    fn wait(&mut self, now: Instant) -> Next {
        self.state = State::Waiting {
            until: now + REQUEST_TIME_MAX,
        };
        Next::Take
    }
}

/// Descriptors that are good for nothing but to be given up when there are no others.
#[derive(Debug)]
struct Spare {
    files: Vec<File>,
    /// What a descriptor is made into that is to be a spare one; none if it could not be opened.
    null: Option<File>,
}

impl Spare {
    fn new() -> Self {
        let mut spare = Self {
            files: Vec::new(),
            null: File::open(NULL).ok(),
        };
        spare.refill();
        spare
    }

    /// Makes room for a descriptor, if it can.
    fn give_up(&mut self) -> bool {
        self.files.pop().is_some()
    }

    /// Closes a connection, and takes its descriptor where there is no other.
    fn close(&mut self, connection: OwnedFd) {
        if self.files.len() < SPARE_DESCRIPTORS {
            match File::open(NULL) {
                Ok(file) => self.files.push(file),
                Err(cause) if cause.raw_os_error() == Some(Errno::EMFILE as i32) => {
                    return self.take(connection);
                }
                Err(_) => {}
            }
        }
        drop(connection);
        self.refill();
    }

    /// Makes a descriptor a spare one in a single step (`dup(2)`): were it free for a moment, a
    /// worker whose clients wait for one would have it.
    fn take(&mut self, mut descriptor: OwnedFd) {
        if let Some(null) = &self.null
            && dup3(null, &mut descriptor, OFlag::O_CLOEXEC).is_ok()
        {
            self.files.push(descriptor.into());
        }
    }

    /// Takes back what there is, up to its size.
    fn refill(&mut self) {
        while self.files.len() < SPARE_DESCRIPTORS {
            // Opened anew and not duplicated: the system's table (ENFILE) counts files.
            match File::open(NULL) {
                Ok(file) => self.files.push(file),
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests;
