//! One control connection: its requests, one after the other, and their replies.
//!
//! Knows the bytes of one client and how long it may take; never knows what a request means, and
//! never blocks.
//!
//! ```text
//!   waiting ──a whole request──▶ working ──handle_reply()──▶ writing ──all taken──▶ waiting
//!      30 s                       no limit ◀──next page────  2 s a page
//!                                          ◀──next reply───
//! ```

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::protocol;
use crate::protocol::wire::{self, Frames, REQUEST_BYTES_MAX, Request};

use super::caller::Caller;
use super::listing::Listing;
use super::{CONNECTIONS_MAX, CONNECTIONS_RESERVED, Reply};

/// How long a client may take for a request, from the reply before it on. A person at a prompt
/// opens a new connection for each command, so that none has to be held for long.
pub(super) const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);

/// How long a client may take to read a reply, or a page of one. It is on the same machine.
pub(super) const REPLY_TIME_MAX: Duration = Duration::from_secs(2);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("closed by the client")]
    Closed,
    #[error("out of time")]
    TooSlow,
    #[error("{CONNECTIONS_MAX} are there already")]
    TooMany,
    #[error("the last {CONNECTIONS_RESERVED} are for root and the daemon's own user")]
    Reserved,
    #[error("uid {0} has as many as one user may have")]
    TooManyOfUser(u32),
    #[error("a request of {0}")]
    TooLong(#[from] wire::TooLong),
    #[error(transparent)]
    Malformed(#[from] wire::Malformed),
    #[error(transparent)]
    Failed(#[from] io::Error),
}

/// What a connection needs next.
#[derive(Debug)]
pub(super) enum Next {
    /// Tell when there is something to read.
    Read,
    /// Tell when something can be written.
    Write,
    /// Look whether its next request is here already.
    Take,
    /// Make the next page of this list.
    Page(Box<Listing>),
    /// Work on this request.
    Work(Request),
    /// Work on, for its other replies.
    Continue,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    pub(super) caller: Caller,
    pub(super) frames: Frames,
    /// The client has shut down its side: what it has sent is answered, then we close too.
    finished: bool,
    pub(super) state: State,
}

#[derive(Debug)]
pub(super) enum State {
    /// For a request to be complete.
    Waiting { until: Instant },
    /// A request is handed out.
    Working { more: bool, oneway: bool },
    /// A reply is being written.
    Writing {
        message: Vec<u8>,
        written: usize,
        then: AfterReply,
        until: Instant,
    },
}

/// What follows a reply.
#[derive(Debug)]
pub(super) enum AfterReply {
    NextRequest,
    NextReply,
    NextPage(Box<Listing>),
    Close(wire::TooLong),
}

impl Connection {
    /// Whether its next request is awaited.
    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting { .. })
    }

    pub(super) fn new(stream: UnixStream, caller: Caller, now: Instant) -> Self {
        Self {
            stream,
            caller,
            frames: Frames::new(REQUEST_BYTES_MAX),
            finished: false,
            state: State::Waiting {
                until: now + REQUEST_TIME_MAX,
            },
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until } | State::Writing { until, .. } => Some(until),
            State::Working { .. } => None,
        }
    }

    /// Whether the request that is worked on may have several replies.
    pub(super) fn takes_more(&self) -> bool {
        matches!(self.state, State::Working { more: true, .. })
    }

    /// Reads what is there, no more than one request can have.
    pub(super) fn read(&mut self) -> Result<(), End> {
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

    /// Takes the next request, if it is complete.
    pub(super) fn take_request(&mut self, now: Instant) -> Result<Next, End> {
        let frame = match self.frames.next_frame() {
            Ok(Some(frame)) => frame,
            Ok(None) if self.finished => return Err(End::Closed),
            Ok(None) => return Ok(Next::Read),
            Err(too_long) => {
                // Nothing after it can be understood, but the client gets the reason.
                let reply = protocol::request_too_large();
                self.begin(&reply, AfterReply::Close(too_long), now);
                return self.write(now);
            }
        };
        let request = Request::decode(&frame)?;
        self.state = State::Working {
            more: request.more,
            oneway: request.oneway,
        };
        Ok(Next::Work(request))
    }

    /// The request that is worked on is answered.
    pub(super) fn handle_reply(&mut self, reply: Reply, now: Instant) -> Result<Next, End> {
        let State::Working { oneway, .. } = self.state else {
            debug_assert!(false, "a request is answered once");
            return Ok(Next::Take);
        };
        if oneway {
            return Ok(self.wait(now));
        }
        match reply {
            Reply::One(reply) => self.begin(&reply, AfterReply::NextRequest, now),
            Reply::Continued(reply) => self.begin(&reply, AfterReply::NextReply, now),
            Reply::Page(reply, listing) => self.begin(&reply, AfterReply::NextPage(listing), now),
        }
        self.write(now)
    }

    fn begin(&mut self, reply: &wire::Reply, then: AfterReply, now: Instant) {
        self.state = State::Writing {
            message: reply.encode(),
            written: 0,
            then,
            until: now + REPLY_TIME_MAX,
        };
    }

    /// Writes what the client's socket takes, one message at most.
    pub(super) fn write(&mut self, now: Instant) -> Result<Next, End> {
        let State::Writing {
            message,
            written,
            then,
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
        match std::mem::replace(then, AfterReply::NextRequest) {
            AfterReply::NextRequest => Ok(self.wait(now)),
            AfterReply::NextReply => {
                let (more, oneway) = (true, false);
                self.state = State::Working { more, oneway };
                Ok(Next::Continue)
            }
            // It has to wait for its turn: a client that reads as fast as we write must not keep
            // all others waiting.
            AfterReply::NextPage(listing) => {
                let (more, oneway) = (true, false);
                self.state = State::Working { more, oneway };
                Ok(Next::Page(listing))
            }
            AfterReply::Close(too_long) => Err(too_long.into()),
        }
    }

    /// Goes back to waiting for a request.
    fn wait(&mut self, now: Instant) -> Next {
        self.state = State::Waiting {
            until: now + REQUEST_TIME_MAX,
        };
        Next::Take
    }
}
