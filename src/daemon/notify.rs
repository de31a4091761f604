//! Telling the service manager how we are (`sd_notify(3)`). Without one, nothing is told.
//!
//! From a thread of its own: a manager that does not read its queue, which is short, must not stop
//! the control plane.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::time::Duration;

use sd_notify::NotifyState;

/// How many messages may wait for the manager. Beyond that it is not listening, and they are lost.
const WAITING_MAX: usize = 64;

/// How long the end waits for the last message to be taken.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Manager {
    messages: SyncSender<String>,
    // Closed when all messages have been sent.
    done: Receiver<()>,
}

impl Manager {
    /// The service manager, if there is one.
    pub(super) fn find() -> io::Result<Option<Self>> {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return Ok(None);
        }
        let (messages, receiver) = sync_channel::<String>(WAITING_MAX);
        let (all_sent, done) = channel();
        let send = move || {
            for message in receiver {
                if let Err(error) = sd_notify::notify(&[NotifyState::Custom(&message)]) {
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
    pub(super) fn watchdog_patience(&self) -> Option<Duration> {
        sd_notify::watchdog_enabled().filter(|patience| !patience.is_zero())
    }

    /// All is bound and served.
    pub(super) fn ready(&self, status: &str) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(status)]);
    }

    /// A reload has begun. Must be followed by [`Self::ready`], also when it fails: the manager
    /// waits.
    pub(super) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(_) => self.tell(&[NotifyState::Reloading]),
        }
    }

    /// How things are, in words.
    pub(super) fn status(&self, status: &str) {
        self.tell(&[NotifyState::Status(status)]);
    }

    /// All of us are alive, for the watchdog.
    pub(super) fn alive(&self) {
        self.tell(&[NotifyState::Watchdog]);
    }

    /// The end has begun.
    pub(super) fn stopping(&self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// How things are; and the manager is to wait for the end for so long from now, if it would
    /// have waited less.
    pub(super) fn needs_time(&self, status: &str, time: Duration) {
        let usec = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        self.tell(&[
            NotifyState::Status(status),
            NotifyState::ExtendTimeoutUsec(usec),
        ]);
    }

    /// Nothing more is to be said: waits a moment until all has been sent.
    pub(super) fn end(self) {
        drop(self.messages);
        // Either all is sent, or the manager does not listen.
        let _ = self.done.recv_timeout(LAST_WORDS);
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        let lines: Vec<String> = states.iter().map(ToString::to_string).collect();
        if self.messages.try_send(lines.join("\n")).is_err() {
            log::debug!("sd_notify: the service manager does not listen");
        }
    }
}
