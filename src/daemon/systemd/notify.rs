//! Telling the service manager how we are (`sd_notify(3)`). Without one, nothing is told.
//!
//! From a thread of its own: a manager that does not read its queue, which is short, must not stop
//! the control plane.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sd_notify::NotifyState;

/// How many messages may wait for the manager: one for each socket of a large service. Beyond that
/// it is not listening, and they are lost.
const WAITING_MAX: usize = 16 * 1024;

/// How long the manager may take to have read all that it was told, in milliseconds.
const READ_TIME_MAX: u16 = 5_000;

/// How long the end waits for the last message to be taken.
const LAST_WORDS: Duration = Duration::from_secs(1);

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

impl Message {
    fn send(&self) -> io::Result<()> {
        let text = [NotifyState::Custom(&self.text)];
        let descriptors: Vec<BorrowedFd<'_>> = self.descriptors.iter().map(AsFd::as_fd).collect();
        if descriptors.is_empty() {
            sd_notify::notify(&text)
        } else {
            sd_notify::notify_with_fds(&text, &descriptors)
        }
    }
}

impl Manager {
    /// The service manager, if there is one.
    pub(crate) fn find() -> io::Result<Option<Self>> {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Ok(None);
        }
        let (messages, receiver) = sync_channel::<Message>(WAITING_MAX);
        let (all_sent, done) = channel();
        let send = move || {
            for message in receiver {
                if let Err(error) = message.send() {
                    log::debug!("sd_notify: {error}");
                }
            }
            drop::<std::sync::mpsc::Sender<()>>(all_sent);
        };
        std::thread::Builder::new()
            .name("notify".into())
            .spawn(send)?;
        Ok(Some(Self { messages, done }))
    }

    /// For how long it waits for a sign of life before it ends the service, where it is told to
    /// (`WatchdogSec=`).
    pub(crate) fn watchdog_patience(&self) -> Option<Duration> {
        sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero())
    }

    /// All is bound and served.
    pub(crate) fn ready(&self, status: &str) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// A reload has begun. Must be followed by [`Self::ready`], also when it fails: the manager
    /// waits.
    pub(crate) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(_) => self.tell(&[NotifyState::Reloading]),
        }
    }

    /// How things are, in words.
    pub(crate) fn status(&self, status: &str) {
        self.tell(&[NotifyState::Status(status)]);
    }

    /// All of us are alive, for the watchdog.
    pub(crate) fn alive(&self) {
        self.tell(&[NotifyState::Watchdog]);
    }

    /// The end has begun.
    pub(crate) fn stopping(&self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// How things are; and the manager is to wait for the end for so long from now, if it would
    /// have waited less.
    pub(crate) fn needs_time(&self, status: &str, time: Duration) {
        let usec = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        self.tell(&[
            NotifyState::Status(status),
            NotifyState::ExtendTimeoutUsec(usec),
        ]);
    }

    /// Whether it keeps descriptors for a successor: systemd says so in `$FDSTORE` (from 254 on;
    /// before that the unit does).
    pub(crate) fn keeps(&self) -> bool {
        std::env::var("FDSTORE").is_ok_and(|room| room != "0")
    }

    /// Keep these descriptors for our successor, under this name. Whatever becomes of them: a
    /// carrier has nobody at its other end, and a datagram socket has an error now and then.
    pub(crate) fn keep(&self, name: &str, descriptors: Vec<OwnedFd>) {
        let states = [
            NotifyState::FdStore,
            NotifyState::FdName(name),
            NotifyState::Custom("FDPOLL=0"),
        ];
        self.tell_with(&states, descriptors);
    }

    /// Keep what has this name no longer.
    pub(crate) fn let_go(&self, name: &str) {
        self.tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
    }

    /// Waits until the manager has read all that it was told, a few seconds at most
    /// (`sd_notify_barrier(3)`).
    ///
    /// # Errors
    /// When it has not, or no descriptor is left.
    pub(crate) fn wait_until_read(&self) -> io::Result<()> {
        let (ours, managers) = nix::unistd::pipe()?;
        self.tell_with(&[NotifyState::Custom("BARRIER=1")], vec![managers]);
        // It closes its end when it comes to it.
        let mut closed = [PollFd::new(ours.as_fd(), PollFlags::empty())];
        match poll(&mut closed, PollTimeout::from(READ_TIME_MAX))? {
            0 => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the service manager does not listen",
            )),
            _ => Ok(()),
        }
    }

    /// Nothing more is to be said: waits a moment until all has been sent.
    pub(crate) fn end(self) {
        drop(self.messages);
        // Either all is sent, or the manager does not listen.
        let _ = self.done.recv_timeout(LAST_WORDS);
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        self.tell_with(states, Vec::new());
    }

    fn tell_with(&self, states: &[NotifyState<'_>], descriptors: Vec<OwnedFd>) {
        let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
        let message = Message {
            text: lines.join("\n"),
            descriptors,
        };
        if self.messages.try_send(message).is_err() {
            log::debug!("sd_notify: the service manager does not listen");
        }
    }
}
