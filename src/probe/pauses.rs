//! The times that this process itself did not run, though it wanted to: they look like latency.
//!
//! A thread sleeps a little, again and again; what it oversleeps, the others may have waited as
//! well: for a processor, or for whoever has stopped us all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::latency::Latencies;
use crate::cli::text::microseconds;

/// Nobody is woken to the moment: less than this is no pause.
const LEAST: Duration = Duration::from_millis(1);

/// Watches until it is told to end.
#[derive(Debug)]
pub(super) struct Pauses {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    over: AtomicBool,
    longest_nanos: AtomicU64,
}

impl Pauses {
    /// Begins to watch, looking once in this interval.
    pub(super) fn watch(interval: Duration) -> Self {
        let shared = Arc::new(Shared::default());
        let watched = Arc::clone(&shared);
        let watch = move || {
            let mut slept = Instant::now();
            while !watched.over.load(Ordering::Relaxed) {
                thread::sleep(interval);
                let woken = Instant::now();
                let pause = (woken - slept).saturating_sub(interval);
                let pause = u64::try_from(pause.as_nanos()).unwrap_or(u64::MAX);
                watched.longest_nanos.fetch_max(pause, Ordering::Relaxed);
                slept = woken;
            }
        };
        // Who can't have a thread goes on without.
        let thread = thread::Builder::new().name("pauses".into()).spawn(watch);
        Self {
            shared,
            thread: thread.ok(),
        }
    }

    /// The longest so far, and begins anew.
    pub(super) fn take_longest(&self) -> Duration {
        let longest = self.shared.longest_nanos.swap(0, Ordering::Relaxed);
        Some(Duration::from_nanos(longest))
            .filter(|longest| *longest >= LEAST)
            .unwrap_or_default()
    }
}

impl Drop for Pauses {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It can't have panicked.
            let _ = thread.join();
        }
    }
}

/// What a pause means for these times, if it may have spoiled them.
pub(super) fn remark(longest: Duration, latencies: &Latencies) -> Option<String> {
    let spoils = longest >= LEAST && longest * 2 >= latencies.max() && !latencies.is_empty();
    let micros = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
    spoils.then(|| {
        format!(
            "this process itself was kept from running for {} at a time: \
             latencies up to that may be its own",
            microseconds(micros)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_worth_a_remark_when_it_may_explain_the_longest_latency() {
        let mut latencies = Latencies::default();
        let millis = Duration::from_millis;
        assert_eq!(remark(millis(5), &latencies), None, "nothing to spoil");
        latencies.record(millis(8));
        assert!(remark(millis(5), &latencies).is_some_and(|said| said.contains("5.00 ms")));
        assert_eq!(remark(millis(3), &latencies), None);
        latencies.record(Duration::from_micros(500));
        assert_eq!(remark(Duration::from_micros(900), &latencies), None);
    }
}
