//! Notifications to the service manager (`sd_notify(3)`). Without one, nothing is sent.
//!
//! They are sent by a thread of their own: a manager that does not read its queue, which is short,
//! must not stop the control plane. Whatever fails here is a warning, and the service continues.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use sd_notify::NotifyState;

/// The environment variable with the manager's address.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// How many messages may be queued for the manager: one for each socket of a large service. Beyond
/// that they are dropped.
const QUEUE_MESSAGES_MAX: usize = 16 * 1024;

/// How long the manager may take to read everything that was sent, in milliseconds.
const READ_TIME_MAX: u16 = 5_000;

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
}

/// Where messages go.
struct Destination {
    socket: UnixDatagram,
    address: UnixAddr,
}

impl Destination {
    fn named(name: &OsStr) -> io::Result<Self> {
        Ok(Self {
            socket: UnixDatagram::unbound()?,
            address: address(name)?,
        })
    }

    fn send(&self, message: &Message) -> io::Result<()> {
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
        let mut is_working = true;
        for message in messages {
            match self.send(&message) {
                Ok(()) => is_working = true,
                Err(error) if is_working => {
                    log::warn!("the service manager can't be notified: {VARIABLE}: {error}");
                    is_working = false;
                }
                Err(error) => log::debug!("{VARIABLE}: {error}"),
            }
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
                "the service manager can't be notified: {VARIABLE}={}: {error}",
                name.display()
            );
        };
        started.inspect_err(warn).ok()
    }

    fn start(destination: Destination) -> io::Result<Self> {
        let (messages, receiver) = sync_channel::<Message>(QUEUE_MESSAGES_MAX);
        let (all_sent, done) = channel();
        let send = move || {
            destination.send_all(receiver);
            drop::<std::sync::mpsc::Sender<()>>(all_sent);
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
    /// other end of a carrier is closed, and a datagram socket has an error now and then.
    pub(crate) fn keep(&self, name: &str, descriptors: Vec<OwnedFd>) {
        let text = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
        self.send_with(text, descriptors);
    }

    /// Removes what is stored under this name.
    pub(crate) fn let_go(&self, name: &str) {
        self.send_with(format!("FDSTOREREMOVE=1\nFDNAME={name}"), Vec::new());
    }

    /// Waits until the manager has read everything that was sent, for a few seconds at most
    /// (`sd_notify_barrier(3)`).
    ///
    /// # Errors
    /// When it has not, or no descriptor is left.
    pub(crate) fn wait_until_read(&self) -> io::Result<()> {
        let (ours, managers) = nix::unistd::pipe()?;
        self.send_with("BARRIER=1".into(), vec![managers]);
        // It closes its end when it comes to it.
        let mut closed = [PollFd::new(ours.as_fd(), PollFlags::empty())];
        match poll(&mut closed, PollTimeout::from(READ_TIME_MAX))? {
            0 => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the service manager does not read its messages",
            )),
            _ => Ok(()),
        }
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

    fn send_with(&self, text: String, descriptors: Vec<OwnedFd>) {
        let message = Message { text, descriptors };
        if self.messages.try_send(message).is_err() {
            log::warn!("the service manager does not read its messages: one is lost");
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
}
