//! Notifications to the service manager (`sd_notify(3)`). Without one, nothing is sent.
//!
//! They are sent by a thread of their own: a manager that does not read its queue, which is short,
//! must not stop the control plane. Whatever fails here is a warning, and the service continues; the
//! caller that stores descriptors also gets the result.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TrySendError, channel, sync_channel};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use nix::sys::time::TimeSpec;
use sd_notify::NotifyState;

use crate::cli::text::cause;

/// The environment variable with the manager's address.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// How many messages may be queued for the manager: one for each socket of a large service. Beyond
/// that they are dropped.
const QUEUE_MESSAGES_MAX: usize = 16 * 1024;

/// How long the manager may take to read everything that was sent.
const READ_TIME_MAX: Duration = Duration::from_secs(5);

/// How long the manager's queue may be full before that is logged.
const SEND_TIME_MAX: Duration = Duration::from_secs(1);

/// How long the end waits for the last message to be sent.
const LAST_MESSAGE_TIME_MAX: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Manager {
    messages: SyncSender<Message>,
    // Closed when all messages have been sent.
    done: Receiver<()>,
}

#[derive(Debug)]
struct Message {
    text: String,
    descriptors: Vec<OwnedFd>,
    receipt: Option<Receipt>,
}

/// Where the result of sending a message is reported, exactly once, also when it is dropped.
#[derive(Debug)]
struct Receipt {
    name: String,
    results: Sender<SendResult>,
}

/// Whether the message that stores descriptors under this name was sent.
#[derive(Debug)]
pub(crate) struct SendResult {
    pub name: String,
    pub result: io::Result<()>,
}

impl Message {
    fn report(self, result: io::Result<()>) {
        if let Some(Receipt { name, results }) = self.receipt {
            // The caller may have stopped waiting.
            let _ = results.send(SendResult { name, result });
        }
    }
}

/// Where messages go.
struct Destination {
    socket: UnixDatagram,
    address: UnixAddr,
}

impl Destination {
    fn named(name: &OsStr) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_TIME_MAX))?;
        Ok(Self {
            socket,
            address: address(name)?,
        })
    }

    /// Sends a message, for as long as that takes. That the manager does not read is logged once.
    fn send(&self, message: &Message, is_logged: &mut bool) -> io::Result<()> {
        loop {
            match self.try_send(message) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !std::mem::replace(is_logged, true) {
                        log::warn!(
                            "{VARIABLE}: the service manager does not read its messages: it does not \
                             know the state of the service until it does"
                        );
                    }
                }
                result => return result,
            }
        }
    }

    /// # Errors
    /// `WouldBlock` if its queue was full for [`SEND_TIME_MAX`]; others as `sendmsg(2)`.
    fn try_send(&self, message: &Message) -> io::Result<()> {
        let text = [IoSlice::new(message.text.as_bytes())];
        let descriptors: Vec<RawFd> = message.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let rights = if descriptors.is_empty() {
            &[]
        } else {
            rights.as_slice()
        };
        let (socket, flags) = (self.socket.as_raw_fd(), MsgFlags::MSG_NOSIGNAL);
        sendmsg(socket, &text, rights, flags, Some(&self.address))?;
        Ok(())
    }

    /// Sends all of them. Of failures in a row, the first is a warning.
    fn send_all(&self, messages: impl IntoIterator<Item = Message>) {
        let (mut is_working, mut is_logged) = (true, false);
        for message in messages {
            let result = self.send(&message, &mut is_logged);
            match &result {
                Ok(()) => is_working = true,
                Err(error) if is_working => {
                    log::warn!(
                        "the service manager can't be notified: {VARIABLE}: {}",
                        cause(error)
                    );
                    is_working = false;
                }
                Err(error) => log::debug!("{VARIABLE}: {}", cause(error)),
            }
            message.report(result);
        }
    }
}

/// A path, or an abstract name after an `@`. Others, such as `vsock:`, are for virtual machines.
fn address(name: &OsStr) -> io::Result<UnixAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => Ok(UnixAddr::new_abstract(name)?),
        [b'/', ..] => Ok(UnixAddr::new(name)?),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "neither a path nor an abstract name (\"@name\")",
        )),
    }
}

impl Manager {
    /// The service manager, if there is one that can be notified.
    pub(crate) fn find() -> Option<Self> {
        let name = std::env::var_os(VARIABLE).filter(|name| !name.is_empty())?;
        let started = Destination::named(&name).and_then(Self::start);
        let warn = |error: &io::Error| {
            log::warn!(
                "the service manager can't be notified: {VARIABLE}={}: {}",
                name.display(),
                cause(error)
            );
        };
        started.inspect_err(warn).ok()
    }

    /// The one at this address.
    #[cfg(test)]
    pub(crate) fn at(address: &std::path::Path) -> Self {
        let destination = Destination::named(address.as_os_str()).expect("an address");
        Self::start(destination).expect("a thread")
    }

    fn start(destination: Destination) -> io::Result<Self> {
        let (messages, receiver) = sync_channel::<Message>(QUEUE_MESSAGES_MAX);
        let (all_sent, done) = channel();
        let send = move || {
            destination.send_all(receiver);
            drop::<Sender<()>>(all_sent);
        };
        std::thread::Builder::new()
            .name("notify".into())
            .spawn(send)?;
        Ok(Self { messages, done })
    }

    /// How long it waits for a sign of life before it ends the service, where it does
    /// (`WatchdogSec=`).
    pub(crate) fn watchdog_patience(&self) -> Option<Duration> {
        sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero())
    }

    /// Everything is bound and served.
    pub(crate) fn ready(&self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// A reload has begun. Must be followed by [`Self::ready`], also when it fails: the manager
    /// waits.
    pub(crate) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(_) => self.send(&[NotifyState::Reloading]),
        }
    }

    /// The state of the service, in words.
    pub(crate) fn status(&self, status: &str) {
        self.send(&[NotifyState::Status(status)]);
    }

    /// All threads are alive, for the watchdog.
    pub(crate) fn alive(&self) {
        self.send(&[NotifyState::Watchdog]);
    }

    /// The end has begun.
    pub(crate) fn stopping(&self) {
        self.send(&[NotifyState::Stopping]);
    }

    /// The state of the service; and the manager is to wait for the end for this time from now, if
    /// it would have waited for less.
    pub(crate) fn needs_time(&self, status: &str, time: Duration) {
        let usec = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        self.send(&[
            NotifyState::Status(status),
            NotifyState::ExtendTimeoutUsec(usec),
        ]);
    }

    /// Whether it stores descriptors for a successor: systemd says so in `$FDSTORE` (from 254 on;
    /// before that the unit does).
    pub(crate) fn keeps(&self) -> bool {
        std::env::var("FDSTORE").is_ok_and(|room| room != "0")
    }

    /// Stores these descriptors for the successor, under this name, and does not poll them: the
    /// other end of a carrier is closed, and a datagram socket has an error now and then. Whether
    /// the message was sent is reported to `results`.
    pub(crate) fn keep(&self, name: &str, descriptors: Vec<OwnedFd>, results: &Sender<SendResult>) {
        let text = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
        self.send_with_receipt(name, text, descriptors, results);
    }

    /// Removes what is stored under this name. False if the request was dropped.
    pub(crate) fn remove_stored(&self, name: &str) -> bool {
        self.send_with(format!("FDSTOREREMOVE=1\nFDNAME={name}"), Vec::new())
    }

    /// Stores these descriptors and waits until the manager has read everything that was sent, for
    /// a few seconds at most (`sd_notify_barrier(3)`).
    ///
    /// # Errors
    /// When a message was not sent, the manager has not read them in time, or no descriptor is left.
    pub(crate) fn keep_and_wait(&self, name: &str, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let until = Instant::now() + READ_TIME_MAX;
        let (ours, managers) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        let (sender, results) = channel();
        self.keep(name, descriptors, &sender);
        self.send_with_receipt(name, "BARRIER=1".into(), vec![managers], &sender);
        // The pipe of a message that is not sent is closed as well: only after both results its end
        // means that the manager has read them.
        for _ in 0..2 {
            let left = until.saturating_duration_since(Instant::now());
            results.recv_timeout(left).map_err(|_| unread())?.result?;
        }
        wait_until_closed(&ours, until)
    }

    /// Waits a moment until everything has been sent. The last call.
    pub(crate) fn end(self) {
        drop(self.messages);
        // Either everything is sent, or the manager does not read.
        let _ = self.done.recv_timeout(LAST_MESSAGE_TIME_MAX);
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
        self.send_with(lines.join("\n"), Vec::new());
    }

    /// False if the message was dropped.
    fn send_with(&self, text: String, descriptors: Vec<OwnedFd>) -> bool {
        self.queue(Message {
            text,
            descriptors,
            receipt: None,
        })
    }

    fn send_with_receipt(
        &self,
        name: &str,
        text: String,
        descriptors: Vec<OwnedFd>,
        results: &Sender<SendResult>,
    ) {
        self.queue(Message {
            text,
            descriptors,
            receipt: Some(Receipt {
                name: name.to_owned(),
                results: results.clone(),
            }),
        });
    }

    fn queue(&self, message: Message) -> bool {
        let Err(TrySendError::Full(message) | TrySendError::Disconnected(message)) =
            self.messages.try_send(message)
        else {
            return true;
        };
        log::warn!("the service manager does not read its messages: one is lost");
        message.report(Err(unread()));
        false
    }
}

fn unread() -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        "the service manager does not read its messages",
    )
}

/// Waits until the other end of a pipe is closed.
fn wait_until_closed(pipe: &OwnedFd, until: Instant) -> io::Result<()> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut closed = [PollFd::new(pipe.as_fd(), PollFlags::empty())];
        match ppoll(&mut closed, Some(TimeSpec::from_duration(left)), None) {
            Ok(0) => return Err(unread()),
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_path_or_an_abstract_name() {
        let address = |name: &str| address(name.as_ref());
        let path = address("/run/systemd/notify").unwrap();
        assert_eq!(path.path(), Some("/run/systemd/notify".as_ref()));
        let name = address("@echod/notify").unwrap();
        assert_eq!(name.as_abstract(), Some(b"echod/notify".as_slice()));
        for other in ["vsock:2:1234", "notify", ""] {
            assert!(address(other).is_err(), "{other:?}");
        }
        assert!(address(&format!("/{}", "x".repeat(120))).is_err());
    }

    /// The process ended, and all connections with it, although the manager stored nothing.
    #[test]
    fn descriptors_are_not_kept_by_a_manager_that_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        drop(UnixDatagram::bind(&path).unwrap());
        let error = Manager::at(&path).keep_and_wait("state", vec![]);
        let error = error.expect_err("the socket is closed");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn descriptors_are_not_kept_when_the_queue_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let _unread = UnixDatagram::bind(&path).unwrap();
        let manager = Manager::at(&path);
        while manager.remove_stored("other") {}
        assert!(manager.keep_and_wait("state", vec![]).is_err());
    }

    #[test]
    fn descriptors_are_kept_once_the_manager_has_read_the_barrier() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        // Without room for them in its message the descriptor of the barrier is closed.
        let reading = std::thread::spawn(move || {
            let mut message = [0; 100];
            [(); 2].map(|()| {
                let len = socket.recv(&mut message).expect("a message");
                String::from_utf8_lossy(&message[..len]).into_owned()
            })
        });
        Manager::at(&path).keep_and_wait("state", vec![]).unwrap();
        assert_eq!(
            reading.join().unwrap(),
            ["FDSTORE=1\nFDNAME=state\nFDPOLL=0", "BARRIER=1"]
        );
    }
}
