//! A stream of bytes through a service and back, compared, and how that ended.
//!
//! Never waits: what is sent and for how long belongs to the command.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};

use super::cause::{Cause, Trouble};
use super::compare::{Comparison, Expect};
use super::figures;
use super::link::Stream;
use super::session::Session;
use crate::cli::text::counted;

/// How what comes back on a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It did not have to: the rest does not matter.
    Open,
    /// With a FIN.
    Closed,
    /// With an error.
    Broken(Cause),
    /// It did not, and nothing more came within this time.
    Silent(Duration),
    /// The user or the deadline has ended it.
    Interrupted(Cause),
}

impl End {
    fn cause(&self) -> Cause {
        match self {
            Self::Open => Cause::Mismatch,
            Self::Closed => Cause::Closed,
            Self::Broken(cause) => cause.clone(),
            Self::Silent(_) => Cause::TimedOut,
            Self::Interrupted(cause) => cause.clone(),
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Open => "no end".into(),
            Self::Closed => "the end of the connection".into(),
            Self::Broken(Cause::Reset) => "a reset".into(),
            Self::Broken(cause) => cause.to_string(),
            Self::Silent(time) => format!("nothing within {}", figures::setting(*time)),
            Self::Interrupted(Cause::Deadline) => "the deadline".into(),
            Self::Interrupted(_) => "an interrupt".into(),
        }
    }
}

/// See the module.
pub(super) struct Transfer {
    pub(super) stream: Stream,
    pub(super) comparison: Comparison,
    /// Whether the socket still takes something, and why not, where that says more than what is
    /// read.
    pub(super) can_send: bool,
    broken: Option<Cause>,
    /// When something last came or went.
    pub(super) last: Instant,
}

impl Transfer {
    pub(super) fn connect(
        session: &Session,
        expect: Expect,
        timeout: Duration,
    ) -> Result<Self, Trouble> {
        Ok(Self {
            stream: session.connect(timeout)?,
            comparison: Comparison::new(expect),
            can_send: true,
            broken: None,
            last: Instant::now(),
        })
    }

    /// Sends as much of these bytes as the kernel takes; returns how many those are.
    pub(super) fn send(&mut self, bytes: &[u8]) -> usize {
        if bytes.is_empty() || !self.can_send {
            return 0;
        }
        match self.stream.send_some(bytes) {
            Ok(len) => {
                self.comparison.handle_sent(&bytes[..len]);
                if len > 0 {
                    self.last = Instant::now();
                }
                len
            }
            Err(error) => {
                self.can_send = false;
                // After EPIPE the end came before, and is still to be read.
                if error.kind() != ErrorKind::BrokenPipe {
                    self.broken = Some(Cause::of(&error));
                }
                0
            }
        }
    }

    /// Takes a piece of what has returned, an empty one if nothing has; or how it ended.
    pub(super) fn receive<'m>(&mut self, memory: &'m mut [u8]) -> Result<&'m [u8], End> {
        match self.stream.receive(memory) {
            Ok(None) => Ok(&[]),
            Ok(Some(0)) => Err(self.broken.clone().map_or(End::Closed, End::Broken)),
            Ok(Some(len)) => {
                let bytes = &memory[..len];
                self.comparison.handle_received(bytes);
                self.last = Instant::now();
                Ok(bytes)
            }
            Err(error) => {
                // The kernel reports it once.
                let cause = Cause::of(&error);
                self.broken = Some(cause.clone());
                Err(End::Broken(cause))
            }
        }
    }

    /// What to wait for: input, and room where more is to be sent.
    pub(super) fn polled(&self, has_more: bool) -> PollFd<'_> {
        let mut wanted = PollFlags::POLLIN;
        wanted.set(PollFlags::POLLOUT, self.can_send && has_more);
        PollFd::new(self.stream.socket.as_fd(), wanted)
    }

    /// Room alone: what comes back is left unread.
    pub(super) fn room(&self) -> PollFd<'_> {
        PollFd::new(self.stream.socket.as_fd(), PollFlags::POLLOUT)
    }
}

/// Whether as many bytes as this came back, and then the end where it was due; what was seen, or
/// what is wrong, with its cause.
pub(super) fn judge(
    len: u64,
    comparison: &Comparison,
    end: &End,
) -> Result<String, (String, Cause)> {
    let came = comparison.came;
    let all = counted(len, "byte");
    let seen = match end {
        _ if comparison.is_exact() && came < len => {
            format!("{came} of {all}, then {}", end.words())
        }
        End::Open => return Ok(all),
        End::Closed => return Ok(format!("{all}, then the end of the connection")),
        End::Silent(time) => {
            let time = figures::setting(*time);
            format!("{all}, but no end of the connection within {time}")
        }
        End::Broken(_) | End::Interrupted(_) => format!(
            "{all}, then {} instead of the end of the connection",
            end.words()
        ),
    };
    Err((seen, end.cause()))
}
