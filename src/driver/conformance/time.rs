//! The deadline of `wait`, the waker, and what a driver can be asked about a connection.

use std::time::Duration;

use super::WAITS_MAX;
use super::driver_test::{Answer, DriverTest, Event};
use super::harness::Harness;
use crate::driver::{Closing, Driver};

// Deadlines, the waker, progress and details.

pub(super) fn a_waker_wakes_from_another_thread_and_once_per_wait<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Discard);
    for _ in 0..3 {
        test.events.clear();
        let waker = test.driver.waker();
        let thread = std::thread::spawn(move || (0..5).for_each(|_| waker.wake()));
        test.until("the driver is woken", |test| test.has(&Event::Woken));
        thread.join().expect("the thread has not panicked");
        test.until_quiet();
        // The five calls may be spread over several waits.
        let woken = test.events.len();
        assert!((1..=5).contains(&woken), "{}", test.recent_events());
        let waker = test.driver.waker();
        (0..5).for_each(|_| waker.wake());
        test.until_quiet();
        assert_eq!(
            test.events.len(),
            woken + 1,
            "several wakes before one wait were not reported as one Woken"
        );
    }
}

pub(super) fn a_wait_ends_at_its_deadline_and_not_before<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Discard);
    let (_, address) = test.listener(None);
    let (_peer, connection) = test.connection(&address);
    test.until_quiet();
    for time in [
        Duration::from_micros(100),
        Duration::from_millis(3),
        Duration::from_millis(60),
    ] {
        let before = test.driver.now();
        let mut done = vec![];
        test.driver
            .wait(Some(before + time), &mut done)
            .expect("the driver can continue");
        let waited = test.driver.now() - before;
        assert!(
            done.is_empty(),
            "completions on idle {connection:?}: {done:?}"
        );
        assert!(
            waited >= time && waited < time + Duration::from_secs(5),
            "waited for {waited:?} instead of {time:?}"
        );
    }
}

pub(super) fn a_wait_past_its_deadline_still_reports_ready_completions<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Discard);
    let (_, address) = test.listener(None);
    let (mut peer, connection) = test.connection(&address);
    test.until_quiet();
    // The clock has reached it, and is never set back.
    let passed = test.driver.now();
    test.write_all(&mut peer, b"now");
    test.network.until_arrived(&mut peer);
    for _ in 0..WAITS_MAX {
        let mut done = vec![];
        test.driver
            .wait(Some(passed), &mut done)
            .expect("the driver can continue");
        done.into_iter()
            .for_each(|completion| test.handle(completion));
        if test.received(connection) == b"now" {
            return;
        }
    }
    panic!(
        "not received in {WAITS_MAX} waits: {}",
        test.recent_events()
    );
}

pub(super) fn progress_changes_when_the_peer_reads<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let (_, address) = test.listener(None);
    let (mut peer, connection, _) = test.stalled(&address);
    let mut before = 0;
    test.until("progress stops because the peer does not read", |test| {
        before = test.driver.peer_progress(connection);
        test.until_quiet();
        test.driver.peer_progress(connection) == before
    });
    let mut bytes = vec![];
    test.until("progress changes", |test| {
        test.network.read(&mut peer, usize::MAX, &mut bytes);
        test.driver.peer_progress(connection) != before
    });
    assert!(!bytes.is_empty());
}

pub(super) fn accepted_and_details_report_the_addresses<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let (listener, address) = test.listener(None);
    let (peer, connection) = test.connection(&address);
    let expected = test.network.address(&peer);
    assert!(
        test.has(&Event::Accepted(listener, connection, expected)),
        "{}",
        test.recent_events()
    );
    assert_eq!(test.driver.details(connection).local, H::inet(&address));
    test.close(connection, Closing::Now);
    assert_eq!(test.driver.details(connection).local, None);
}
