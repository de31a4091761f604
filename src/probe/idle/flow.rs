//! A flow that is spoken on, and listened to while all is silent.
//!
//! A connection or a pair of addresses, of which nothing on our side keeps it alive.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::super::Trouble;
use super::super::cause::Cause;
use super::super::interrupt::{Interrupt, LOOK_INTERVAL};
use super::super::mark::{self, Mark};
use super::super::route::{self, Connection, Route};
use crate::sys::measure;

/// How large a message is: enough to be known by.
const MESSAGE_BYTES: usize = 32;

/// How often a datagram is said before it is taken for unanswered: one that is lost is no flow that
/// is forgotten.
const DATAGRAM_TRIES: u32 = 3;

/// A flow.
pub(super) struct Flow {
    socket: Socket,
    mark: Mark,
    /// Segments that had come when the silence had begun, and when it was over.
    segments: [Option<u32>; 2],
}

enum Socket {
    Stream(Connection),
    Datagrams(route::Flow),
}

/// What came of speaking.
pub(super) enum Spoken {
    /// All came back.
    Answered,
    /// It did not.
    Failed(Cause),
    /// The user did not want to wait.
    Interrupted,
}

/// What came of listening.
pub(super) enum Heard {
    /// Nothing, all the time.
    Nothing,
    /// That the flow has ended.
    End(Cause),
    /// The user did not want to wait.
    Interrupted,
}

impl Flow {
    /// Opens one.
    pub(super) fn open(route: &Route, timeout: Duration) -> Result<Self, Trouble> {
        let socket = if route.target().is_stream() {
            let connection = route.connect(timeout)?;
            let prepare = || {
                // Ours would keep the flow alive; that is off unless somebody turns it on.
                if route.target().is_inet() {
                    connection.socket.set_keepalive(false)?;
                }
                connection.socket.set_nonblocking(true)
            };
            prepare().map_err(|error| route.trouble(&error))?;
            Socket::Stream(connection)
        } else {
            Socket::Datagrams(route.open()?)
        };
        Ok(Self {
            socket,
            mark: Mark::new(),
            segments: [None; 2],
        })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Stream(connection) => connection.socket.as_fd(),
            Socket::Datagrams(flow) => flow.socket.as_fd(),
        }
    }

    /// Says something and waits until it comes back.
    pub(super) fn speak(&mut self, timeout: Duration, interrupt: &Interrupt) -> Spoken {
        let message = self.mark.next_message(MESSAGE_BYTES);
        let spoken = match &self.socket {
            Socket::Stream(connection) => speak_stream(connection, &message, timeout, interrupt),
            Socket::Datagrams(flow) => speak_datagram(flow, &message, timeout, interrupt),
        };
        match spoken {
            Ok(true) => Spoken::Answered,
            Ok(false) => Spoken::Interrupted,
            Err(error) => Spoken::Failed(cause_of(&error)),
        }
    }

    /// Says nothing for so long. Tells from time to time how long it still will.
    pub(super) fn listen(
        &mut self,
        silence: Duration,
        interrupt: &Interrupt,
        show: impl Fn(Duration),
    ) -> Heard {
        let began = Instant::now();
        loop {
            let past = began.elapsed();
            let left = silence.saturating_sub(past);
            // What the last words still cause has come by then.
            if past >= silence / 4 {
                let segments = measure::segments_received(self.fd());
                self.segments = [self.segments[0].or(segments), segments];
            }
            if left.is_zero() {
                return Heard::Nothing;
            }
            if interrupt.is_requested() {
                return Heard::Interrupted;
            }
            show(left);
            let heard = route::wait(self.fd(), false, left.min(LOOK_INTERVAL))
                .and_then(|ready| if ready.input { self.hear() } else { Ok(()) });
            if let Err(error) = heard {
                return Heard::End(cause_of(&error));
            }
        }
    }

    /// Takes what has come though nothing was said.
    fn hear(&self) -> io::Result<()> {
        let mut memory = [0; 2048];
        match &self.socket {
            Socket::Stream(connection) => match (&connection.socket).read(&mut memory) {
                Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => Err(ErrorKind::InvalidData.into()),
                Err(error) if is_to_be_awaited(&error) => Ok(()),
                Err(error) => Err(error),
            },
            Socket::Datagrams(flow) => {
                // Further answers to what was said several times, and news of it.
                while flow.receive(&mut memory)?.is_some() {}
                while flow.receive_failure(&mut memory)?.is_some() {}
                Ok(())
            }
        }
    }

    /// Whether the other side has sent something during the silence, which can't have been data.
    pub(super) fn is_kept_alive(&self) -> bool {
        self.segments[0] != self.segments[1]
    }
}

/// Whether all came back; not if the user did not want to wait.
fn speak_stream(
    connection: &Connection,
    message: &[u8],
    timeout: Duration,
    interrupt: &Interrupt,
) -> io::Result<bool> {
    let mut socket = &connection.socket;
    // So little always has room.
    socket.write_all(message)?;
    let deadline = Instant::now() + timeout;
    let mut answer = Vec::new();
    loop {
        let mut memory = [0; MESSAGE_BYTES];
        match socket.read(&mut memory[..message.len() - answer.len()]) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => answer.extend(&memory[..len]),
            Err(error) if is_to_be_awaited(&error) => {}
            Err(error) => return Err(error),
        }
        if !message.starts_with(&answer) {
            return Err(ErrorKind::InvalidData.into());
        }
        if answer.len() == message.len() {
            return Ok(true);
        }
        if !wait(socket.as_fd(), deadline, interrupt)? {
            return Ok(false);
        }
    }
}

/// The same of a datagram, which is said several times before it is taken for unanswered.
fn speak_datagram(
    flow: &route::Flow,
    message: &[u8],
    timeout: Duration,
    interrupt: &Interrupt,
) -> io::Result<bool> {
    let began = Instant::now();
    let mut memory = [0; 2048];
    for attempt in 1..=DATAGRAM_TRIES {
        flow.send(message)?;
        let deadline = began + timeout * attempt / DATAGRAM_TRIES;
        loop {
            if let Some(failure) = flow.receive_failure(&mut memory)? {
                return Err(failure.error);
            }
            if let Some(arrival) = flow.receive(&mut memory)? {
                let answer = &memory[..arrival.len.min(memory.len())];
                if flow.is_peer(&arrival.source) && mark::is_answer(answer, message) {
                    return Ok(true);
                }
                continue;
            }
            match wait(flow.socket.as_fd(), deadline, interrupt) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) if error.kind() == ErrorKind::TimedOut => break,
                Err(error) => return Err(error),
            }
        }
    }
    Err(ErrorKind::TimedOut.into())
}

/// Waits until there may be something to be read; not if the user does not want to.
fn wait(fd: BorrowedFd<'_>, deadline: Instant, interrupt: &Interrupt) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        if interrupt.is_requested() {
            return Ok(false);
        }
        if route::wait(fd, false, left.min(LOOK_INTERVAL))?.input {
            return Ok(true);
        }
    }
}

fn is_to_be_awaited(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

fn cause_of(error: &io::Error) -> Cause {
    match error.kind() {
        ErrorKind::InvalidData => Cause::Mismatch,
        _ => Cause::of(error),
    }
}
