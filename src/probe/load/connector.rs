//! Opens the connections or flows of a load: all at the beginning, and again those that have ended.
//!
//! Decides nothing about messages.

use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::probe::args::LoadArgs;
use crate::probe::cause::{Cause, Trouble};
use crate::probe::figures;
use crate::probe::session::Session;

/// This number is connected at a time, where connecting takes its time.
const CONNECTING_MAX: usize = 32;

/// After a failed attempt the next one waits this long.
const PAUSE: Duration = Duration::from_millis(100);

/// Opens all connections or flows; connections several at a time.
pub(super) fn open_all(session: &Session, args: &LoadArgs) -> Result<Vec<OwnedFd>, Trouble> {
    let count = args.connections as usize;
    if !args.url.is_stream() {
        // No answer is waited for.
        return (0..count).map(|_| open(session, args.timeout)).collect();
    }
    let template = "connecting {bar:30} {pos}/{len}";
    let bar = figures::bar(&session.console, count as u64, template);
    let connector = Connector::start(session, args.timeout, CONNECTING_MAX.min(count), || {});
    (0..count).for_each(|lane| connector.request(lane));
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count {
        let (_, result) = connector.results.recv().expect("one for each request");
        sockets.push(result?);
        bar.inc(1);
    }
    Ok(sockets)
}

fn open(session: &Session, timeout: Duration) -> Result<OwnedFd, Trouble> {
    match session.route.target().is_stream() {
        _ if session.is_interrupted() => {
            Err(Trouble::new(session.route.target(), Cause::Interrupted))
        }
        true => Ok(session.connect(timeout)?.socket.into()),
        false => session.route.connect_datagrams(),
    }
}

/// A lane, and its connection or why there is none.
type Opened = (usize, Result<OwnedFd, Trouble>);

/// Threads that connect what is asked for, until there will be no more requests.
pub(super) struct Connector {
    requests: Sender<usize>,
    results: Receiver<Opened>,
}

impl Connector {
    /// Starts this number of them; they report that there is a result.
    pub(super) fn start(
        session: &Session,
        timeout: Duration,
        threads: usize,
        report: impl Fn() + Clone + Send + 'static,
    ) -> Self {
        let (requests, requested) = channel::<usize>();
        let (found, results) = channel();
        let requested = Arc::new(Mutex::new(requested));
        for _ in 0..threads {
            let (session, report) = (session.clone(), report.clone());
            let (requested, found) = (Arc::clone(&requested), found.clone());
            let next = move || requested.lock().expect("no panic").recv();
            thread::spawn(move || {
                while let Ok(lane) = next() {
                    let result = open(&session, timeout);
                    if result.is_err() {
                        // An attempt to wait that fails costs only the pause.
                        let _ = session.wait(&mut [], Instant::now() + PAUSE);
                    }
                    if found.send((lane, result)).is_err() {
                        return;
                    }
                    report();
                }
            });
        }
        Self { requests, results }
    }

    /// Asks for a connection for this lane.
    pub(super) fn request(&self, lane: usize) {
        // A thread ends only after its results are of no more use.
        let _ = self.requests.send(lane);
    }

    /// A connection that is made, or why it is not.
    pub(super) fn take(&self) -> Option<Opened> {
        self.results.try_recv().ok()
    }
}
