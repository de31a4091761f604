//! A call over the control socket, and why it did not work.
//!
//! Knows how to connect, ask and wait; never what is asked. Nothing here waits for longer than
//! the timeout of the caller.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use nix::unistd::{Gid, Group, Uid, User, geteuid};

use crate::cli::text;
use crate::protocol::wire::{Frames, Parameters, REPLY_BYTES_MAX, Reply, Request};

/// Why there is no answer, or an error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Nothing listens there.
    #[error("{}: {what}; is echod running? (systemctl status echod)", path.display())]
    NotRunning {
        /// Of the socket.
        path: PathBuf,
        /// What was found instead.
        what: &'static str,
    },
    /// The file system does not permit it.
    #[error("{}: permission denied: {why}", path.display())]
    NotPermitted {
        /// Of the socket.
        path: PathBuf,
        /// Our user id, and the owner and mode of what does not permit it.
        why: String,
    },
    /// The daemon takes too long.
    #[error("{}: no answer within {}; see --timeout", path.display(), humantime::format_duration(*timeout))]
    TimedOut {
        /// Of the socket.
        path: PathBuf,
        /// How long we waited.
        timeout: Duration,
    },
    /// The connection failed.
    #[error("{}: {what}", path.display())]
    Broken {
        /// Of the socket.
        path: PathBuf,
        /// How.
        what: String,
    },
    /// The daemon answered with an error.
    #[error("{name} {}", serde_json::Value::Object(parameters.clone()))]
    Refused {
        /// What was asked.
        method: String,
        /// The error's full name.
        name: String,
        /// What belongs to it.
        parameters: Parameters,
    },
}

/// A connection to the daemon.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    frames: Frames,
    path: PathBuf,
    /// What was asked last.
    method: String,
    /// For connecting, and for each reply.
    timeout: Duration,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    ///
    /// [`Error`], with what to do about it.
    pub(crate) fn connect(path: &Path, timeout: Duration) -> Result<Self, Error> {
        let stream =
            connect_within(path, timeout).map_err(|cause| explain(path, timeout, cause))?;
        Ok(Self {
            stream,
            frames: Frames::new(REPLY_BYTES_MAX),
            path: path.to_owned(),
            method: String::new(),
            timeout,
        })
    }

    /// Asks for something. The answer is [`Self::next_reply`], with `more` perhaps several.
    ///
    /// # Errors
    ///
    /// [`Error`], when it cannot be sent.
    pub(crate) fn send(
        &mut self,
        method: &str,
        parameters: Parameters,
        more: bool,
    ) -> Result<(), Error> {
        method.clone_into(&mut self.method);
        let request = Request {
            method: method.to_owned(),
            parameters,
            more,
            ..Request::default()
        };
        self.stream.write_all(&request.encode()).map_err(|cause| {
            // A daemon that closes the connection before it has all may have said why.
            match self.next_reply() {
                Err(refused @ Error::Refused { .. }) => refused,
                _ => self.broken(&cause),
            }
        })
    }

    /// Waits for the next reply.
    ///
    /// # Errors
    ///
    /// [`Error`]; an error reply is one too.
    pub(crate) fn next_reply(&mut self) -> Result<Reply, Error> {
        let deadline = Instant::now() + self.timeout;
        let frame = loop {
            match self.frames.next_frame() {
                Ok(Some(frame)) => break frame,
                Ok(None) => self.read(deadline)?,
                Err(cause) => return Err(self.not_understood(&cause)),
            }
        };
        let reply = Reply::decode(&frame).map_err(|cause| self.not_understood(&cause))?;
        match reply.error {
            Some(name) => Err(Error::Refused {
                method: self.method.clone(),
                name,
                parameters: reply.parameters,
            }),
            None => Ok(reply),
        }
    }

    /// The whole answer to a request that has one reply.
    ///
    /// # Errors
    ///
    /// As [`Self::next_reply`].
    pub(crate) fn call(
        &mut self,
        method: &str,
        parameters: Parameters,
    ) -> Result<Parameters, Error> {
        self.send(method, parameters, false)?;
        Ok(self.next_reply()?.parameters)
    }

    fn read(&mut self, deadline: Instant) -> Result<(), Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.timed_out());
        }
        let mut buffer = [0; 8 * 1024];
        let len = self.frames.room().min(buffer.len());
        let read = self
            .stream
            .set_read_timeout(Some(left))
            .and_then(|()| self.stream.read(&mut buffer[..len]));
        match read {
            Ok(0) => Err(self.broken(&ErrorKind::UnexpectedEof.into())),
            Ok(len) => {
                self.frames.push(&buffer[..len]);
                Ok(())
            }
            Err(cause) if cause.kind() == ErrorKind::Interrupted => Ok(()),
            Err(cause) => Err(self.broken(&cause)),
        }
    }

    fn broken(&self, cause: &io::Error) -> Error {
        let what = match cause.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => return self.timed_out(),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => {
                "echod closed the connection: it is stopping, or has as many control connections \
                 as it takes (32, 4 of them for root and its own user; 8 of one user)"
                    .to_owned()
            }
            _ => text::cause(cause),
        };
        let path = self.path.clone();
        Error::Broken { path, what }
    }

    fn not_understood(&self, cause: &dyn std::fmt::Display) -> Error {
        let path = self.path.clone();
        let what = format!("the answer is not echod's: {cause}");
        Error::Broken { path, what }
    }

    fn timed_out(&self) -> Error {
        Error::TimedOut {
            path: self.path.clone(),
            timeout: self.timeout,
        }
    }
}

fn connect_within(path: &Path, timeout: Duration) -> Result<UnixStream, Errno> {
    let kind = SockType::Stream;
    let fd = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
    // It bounds connect(2) too, which waits while the daemon's queue is full (socket(7)). Zero
    // would mean forever.
    let timeout = timeout.clamp(Duration::from_millis(1), Duration::from_secs(1 << 30));
    let seconds = i64::try_from(timeout.as_secs()).expect("it was clamped");
    let time = TimeVal::new(seconds, i64::from(timeout.subsec_micros()));
    setsockopt(&fd, sockopt::SendTimeout, &time)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd.into())
}

fn explain(path: &Path, timeout: Duration, cause: Errno) -> Error {
    let not_running = |what| Error::NotRunning {
        path: path.to_owned(),
        what,
    };
    match cause {
        Errno::ENOENT | Errno::ENOTDIR => not_running("no such file"),
        Errno::ECONNREFUSED if !is_socket(path) => not_running("not a socket"),
        Errno::ECONNREFUSED => not_running("connection refused"),
        Errno::EACCES | Errno::EPERM => Error::NotPermitted {
            path: path.to_owned(),
            why: permissions(path),
        },
        Errno::EAGAIN | Errno::ETIMEDOUT => Error::TimedOut {
            path: path.to_owned(),
            timeout,
        },
        cause => Error::Broken {
            path: path.to_owned(),
            what: cause.desc().to_lowercase(),
        },
    }
}

fn is_socket(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// Our user id, and the owner and mode of the socket or of the folder that it is in.
fn permissions(path: &Path) -> String {
    let user = format!("you are uid {}", geteuid());
    let folder = path.parent().unwrap_or(path);
    let (what, metadata) = match (fs::metadata(path), fs::metadata(folder)) {
        (Ok(metadata), _) => ("the socket".to_owned(), metadata),
        (Err(_), Ok(metadata)) => (format!("the directory {}", folder.display()), metadata),
        (Err(_), Err(_)) => return user,
    };
    let mode = metadata.mode() & 0o7777;
    let owner = user_name(metadata.uid());
    let group = group_name(metadata.gid());
    let advice = if mode & 0o060 != 0 && metadata.gid() != 0 {
        format!("join the group {group}")
    } else {
        format!("ask as {owner}")
    };
    format!("{user}, {what} is {owner}:{group} {mode:04o}; {advice}")
}

fn user_name(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}

fn group_name(gid: u32) -> String {
    let group = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
    group.map_or_else(|| gid.to_string(), |group| group.name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(50);

    /// What comes of asking a daemon that answers with these bytes.
    fn ask(answer: &[u8]) -> Result<Parameters, Error> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let mut client = Client::connect(&path, TIMEOUT)?;
        let (mut daemon, _) = listener.accept().unwrap();
        daemon.write_all(answer).unwrap();
        client.call("a.B", Parameters::new())
    }

    #[test]
    fn an_answer_is_its_parameters() {
        assert_eq!(ask(b"{\"parameters\":{\"a\":1}}\0").unwrap()["a"], 1);
    }

    #[test]
    fn an_error_reply_is_a_refusal() {
        let error = ask(b"{\"error\":\"a.Bad\"}\0").unwrap_err();
        assert!(matches!(error, Error::Refused { name, .. } if name == "a.Bad"));
    }

    #[test]
    fn a_daemon_that_does_not_answer_is_a_timeout() {
        assert!(matches!(ask(b"{").unwrap_err(), Error::TimedOut { .. }));
    }

    #[test]
    fn rubbish_is_not_understood() {
        let error = ask(b"hello\0").unwrap_err().to_string();
        assert!(error.contains("the answer is not echod's"), "{error}");
    }

    #[test]
    fn a_full_queue_is_a_timeout() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            match Client::connect(&path, TIMEOUT) {
                Ok(client) => waiting.push(client),
                Err(error) => break error,
            }
            assert!(waiting.len() < 10_000, "the queue is full some time");
        };
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    }

    #[test]
    fn a_missing_socket_and_a_dead_one_differ() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let check = |expected: &str| {
            let error = Client::connect(&path, TIMEOUT).unwrap_err();
            assert!(matches!(error, Error::NotRunning { .. }));
            assert!(error.to_string().contains(expected), "{error}");
        };
        check("control.sock: no such file; is echod running? (systemctl status echod)");
        drop(UnixListener::bind(&path).unwrap());
        check("connection refused");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        check("not a socket");
    }
}
