//! Opens the connections or flows of a load: all at the beginning, and again those that have ended.
//!
//! Decides nothing about messages.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::driver::Waker;
use crate::probe::args::LoadArgs;
use crate::probe::cause::{Cause, Trouble};
use crate::probe::console::Console;
use crate::probe::figures;
use crate::probe::interrupt::Interrupt;
use crate::probe::link;
use crate::probe::route::Route;

/// This number is connected at a time, where connecting takes its time.
const CONNECTING_MAX: usize = 32;

/// After a failed attempt the next one waits this long.
const PAUSE: Duration = Duration::from_millis(100);

/// Opens all connections or flows, several at a time.
pub(super) fn open_all(
    route: &Route,
    args: &LoadArgs,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Vec<OwnedFd>, Trouble> {
    let count = args.connections as usize;
    let bar = figures::bar(console, count as u64, "connecting {bar:30} {pos}/{len}");
    let next = AtomicUsize::new(0);
    let work = || {
        let mut sockets = Vec::new();
        while next.fetch_add(1, Ordering::Relaxed) < count {
            if interrupt.is_requested() {
                return Err(Trouble::new(route.target(), Cause::Interrupted));
            }
            sockets.push(open(route, args.timeout, interrupt)?);
            bar.inc(1);
        }
        Ok(sockets)
    };
    // The first failure of each thread ends it; one is enough to report.
    let opened: Vec<Result<Vec<OwnedFd>, Trouble>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTING_MAX.min(count))
            .map(|_| scope.spawn(work))
            .collect();
        let ended = threads.into_iter();
        ended
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    let sockets: Vec<Vec<OwnedFd>> = opened.into_iter().collect::<Result<_, _>>()?;
    Ok(sockets.into_iter().flatten().collect())
}

fn open(route: &Route, timeout: Duration, interrupt: &Interrupt) -> Result<OwnedFd, Trouble> {
    match route.target().is_stream() {
        true => Ok(route.connect(timeout, interrupt)?.socket.into()),
        false => route.connect_datagrams(),
    }
}

/// A thread that connects again what has ended, until its requests do.
pub(super) struct Connector {
    requests: Sender<usize>,
    results: Receiver<(usize, Result<OwnedFd, Cause>)>,
}

impl Connector {
    /// Starts it; it wakes the driver when there is a result.
    pub(super) fn start(
        route: &Route,
        timeout: Duration,
        interrupt: &Interrupt,
        waker: Waker,
    ) -> Self {
        let (requests, requested) = channel::<usize>();
        let (found, results) = channel();
        let (route, interrupt) = (route.clone(), interrupt.clone());
        thread::spawn(move || {
            while let Ok(lane) = requested.recv() {
                let result = open(&route, timeout, &interrupt);
                if result.is_err() {
                    // An attempt to wait that fails costs only the pause.
                    let _ = link::wait(&mut [], Instant::now() + PAUSE, &interrupt);
                }
                if found
                    .send((lane, result.map_err(|trouble| trouble.cause)))
                    .is_err()
                {
                    return;
                }
                waker.wake();
            }
        });
        Self { requests, results }
    }

    /// Asks for a connection for this lane.
    pub(super) fn request(&self, lane: usize) {
        // Its thread ends only after its results are of no more use.
        let _ = self.requests.send(lane);
    }

    /// A connection that is made, or why it is not.
    pub(super) fn take(&self) -> Option<(usize, Result<OwnedFd, Cause>)> {
        self.results.try_recv().ok()
    }
}
