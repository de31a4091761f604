//! What a service manager receives and stores: notifications, the watchdog, the status line and the
//! store of descriptors. Sockets that it has bound for us are in [`super::listeners`].
//!
//! Knows the protocol of `sd_notify(3)`; the state of the service is an argument. Without a manager
//! nothing here is called, nothing is counted, and no thread is woken for it. Read on in
//! `notify` for what is sent, in `status` for the line, in `store` for the sockets, in `watchdog` for
//! when the service is alive.

pub(super) mod notify;
pub(super) mod status;
pub(super) mod store;
mod watchdog;

use std::time::{Duration, Instant};

use super::listeners::bind::Bound;
use super::stage::Stage;
use notify::Manager;
use status::{Status, Summary};
use store::Store;
use watchdog::{Task, Watchdog};

/// While stopping, the manager is to wait for this time from each message on: longer than the time
/// between two messages, and short enough for a daemon that hangs to be ended soon.
const MORE_TIME: Duration = Duration::from_secs(10);

/// The service manager, and what it knows of the service.
#[derive(Debug)]
pub(super) struct Supervision {
    pub manager: Manager,
    status: Status,
    store: Store,
    // None where the manager waits for no sign of life.
    watchdog: Option<Watchdog>,
}

impl Supervision {
    /// The manager has been sent nothing yet, except for what is stored.
    pub(super) fn new(manager: Manager, store: Store, workers: usize, now: Instant) -> Self {
        let patience = manager.watchdog_patience();
        Self {
            manager,
            status: Status::new(now),
            store,
            watchdog: patience.map(|patience| Watchdog::new(patience, workers, now)),
        }
    }

    /// All is bound and served, or as before, after a reload.
    pub(super) fn ready(&mut self, summary: &Summary<'_>, now: Instant) {
        let line = summary.line(now);
        self.manager.ready(&line);
        self.status.renew(&line, now);
    }

    /// Sends the state, and while stopping asks for time.
    pub(super) fn status(&mut self, summary: &Summary<'_>, now: Instant) {
        let line = summary.line(now);
        let is_news = self.status.renew(&line, now);
        if summary.stage.is_stopping() {
            self.manager.needs_time(&line, MORE_TIME);
        } else if is_news {
            self.manager.status(&line);
        }
    }

    /// When [`Self::turn`] has something to do, if nothing else happens.
    pub(super) fn poll_timeout(&self, stage: Stage) -> Instant {
        let watchdog = self.watchdog.as_ref().and_then(Watchdog::poll_timeout);
        let status = self.status.poll_timeout(stage);
        watchdog.map_or(status, |watchdog| watchdog.min(status))
    }

    /// Sends the manager what is due. Returns whether every worker is to be asked for a sign of life.
    #[must_use]
    pub(super) fn turn(&mut self, summary: &Summary<'_>, now: Instant) -> bool {
        let task = self
            .watchdog
            .as_mut()
            .and_then(|watchdog| watchdog.turn(now));
        if let Some(Task::Accuse { workers, silent }) = &task {
            for worker in workers {
                log::error!(
                    "worker {worker}: no answer for {silent:.1?}: unless it comes soon, the service manager \
                     ends the service (WatchdogSec=)"
                );
            }
        }
        if now >= self.status.poll_timeout(summary.stage) {
            self.status(summary, now);
        }
        task == Some(Task::Ask)
    }

    /// A worker has answered.
    pub(super) fn handle_alive(&mut self, worker: usize, summary: &Summary<'_>, now: Instant) {
        let watchdog = self.watchdog.as_mut();
        if watchdog.is_some_and(|watchdog| watchdog.handle_alive(worker)) {
            self.manager.alive();
            if self.status.may_be_renewed(now) {
                self.status(summary, now);
            }
        }
    }

    /// Has the manager store these sockets and nothing else, if it stores anything.
    pub(super) fn store<'a>(&mut self, sockets: impl Iterator<Item = &'a mut Bound>) {
        if self.manager.keeps() {
            self.store.update(sockets, &self.manager);
        }
    }

    /// Has it store nothing any more.
    pub(super) fn empty_store(&mut self) {
        self.store.update(std::iter::empty(), &self.manager);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::daemon::listeners::Listeners;
    use crate::daemon::reload::History;

    const SECOND: Duration = Duration::from_secs(1);

    /// A manager that was sent nothing yet, and what it receives.
    fn supervision(now: Instant) -> (Supervision, UnixDatagram, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(20 * SECOND)).unwrap();
        let supervision = Supervision::new(Manager::at(&path), Store::default(), 2, now);
        (supervision, socket, folder)
    }

    fn receive(socket: &UnixDatagram) -> String {
        let mut message = [0; 1000];
        let len = socket.recv(&mut message).expect("a message");
        String::from_utf8_lossy(&message[..len]).into_owned()
    }

    #[test]
    fn a_state_is_sent_when_it_is_news_and_while_stopping_time_is_asked_for_again_and_again() {
        let now = Instant::now();
        let (mut supervision, socket, _folder) = supervision(now);
        let listeners = Listeners::default();
        let history = History::none();
        let mut summary = Summary {
            stage: Stage::Serving,
            listeners: &listeners,
            last_reload: &history.last,
            confirm_until: None,
        };
        supervision.ready(&summary, now);
        let ready = "READY=1\nSTATUS=0 listeners, 0 connections";
        assert_eq!(receive(&socket), ready);
        assert_eq!(supervision.poll_timeout(summary.stage), now + 10 * SECOND);
        // It has not changed: nothing is sent.
        assert!(!supervision.turn(&summary, now + 10 * SECOND));
        summary.stage = Stage::Ended;
        for second in [11, 12] {
            let now = now + second * SECOND;
            assert_eq!(supervision.poll_timeout(summary.stage), now);
            assert!(!supervision.turn(&summary, now));
            let stopping = "STATUS=stopping: closing 0 connections\nEXTEND_TIMEOUT_USEC=10000000";
            assert_eq!(receive(&socket), stopping);
        }
    }

    #[test]
    fn the_watchdog_is_fed_when_every_worker_has_answered() {
        let now = Instant::now();
        let (mut supervision, socket, _folder) = supervision(now);
        supervision.watchdog = Some(Watchdog::new(8 * SECOND, 2, now));
        let listeners = Listeners::default();
        let history = History::none();
        let summary = Summary {
            stage: Stage::Serving,
            listeners: &listeners,
            last_reload: &history.last,
            confirm_until: None,
        };
        assert_eq!(supervision.poll_timeout(summary.stage), now);
        assert!(supervision.turn(&summary, now), "the workers are asked");
        supervision.handle_alive(1, &summary, now);
        supervision.handle_alive(0, &summary, now);
        assert_eq!(receive(&socket), "WATCHDOG=1");
        assert_eq!(supervision.poll_timeout(summary.stage), now + 2 * SECOND);
    }
}
