//! Promises 9, 10 and 17: draining a listener, accepting with and without permits or descriptors,
//! and dropping a driver.

use std::sync::Arc;
use std::time::Instant;

use super::driver_test::{Answer, DEADLINE, DriverTest, Event};
use super::harness::{Harness, SocketKind};
use crate::driver::sim::End;
use crate::driver::{Closing, Driver, Op, Permits};

// 9. Draining.

pub(super) fn a_draining_listener_accepts_every_queued_client_even_without_permits<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let permits = Arc::new(Permits::new(1, vec![test.driver.waker()]));
    let (listener, address) = test.listener(Some(Arc::clone(&permits)));
    let mut peers = vec![test.connection(&address).0];
    peers.extend((0..70).map(|_| test.connect(&address)));
    test.until("the listener pauses because no permit is left", |test| {
        test.has(&Event::AcceptPaused(listener, None))
    });
    assert_eq!(test.accepted().len(), 1);
    test.close(listener, Closing::WhenDrained);
    assert_eq!(
        test.accepted().len(),
        71,
        "not all clients were accepted before Closed"
    );
    for connection in test.accepted().split_off(1) {
        test.driver.submit(Op::Receive { connection });
    }
    for peer in &mut peers {
        test.echo(peer, b"served");
    }
    assert!(
        test.network.connect(&address).is_err(),
        "a closed listener still accepts connections"
    );
    // Each has taken a permit, beyond the maximum, so that each may return one.
    assert!(!permits.try_take());
    (0..71).for_each(|_| permits.give_back());
    assert!(permits.try_take() && !permits.try_take());
}

/// Clients connect as fast as they are accepted.
pub(super) fn a_flood_of_clients_does_not_keep_a_drain_from_ending<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Discard);
    let (listener, address) = test.listener(None);
    test.driver.submit(Op::Close {
        token: listener,
        how: Closing::WhenDrained,
    });
    let mut peers = vec![];
    test.until("the listener is closed", |test| {
        let is_closed = test.events.last() == Some(&Event::Closed(listener));
        if !is_closed {
            peers.extend((0..16).map(|_| test.connect(&address)));
        }
        is_closed
    });
}

// 10. Accepting.

pub(super) fn without_a_permit_a_listener_pauses_and_resumes_when_one_is_returned<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let permits = Arc::new(Permits::new(2, vec![test.driver.waker()]));
    let (listener, address) = test.listener(Some(Arc::clone(&permits)));
    let mut peers: Vec<_> = (0..5).map(|_| test.connect(&address)).collect();
    for accepted in 2..=5 {
        test.until(
            "one more client is accepted, then the listener pauses",
            |test| {
                let pauses = test.count(|event| matches!(event, Event::AcceptPaused(..)));
                // After the last client the queue is empty: the listener need not notice that no
                // permit is left.
                test.accepted().len() == accepted && (pauses == accepted - 1 || accepted == 5)
            },
        );
        test.until_quiet();
        assert_eq!(test.accepted().len(), accepted);
        // A returned permit wakes the driver once, and the next `Accept` resumes the listener.
        let woken = test.count(|event| matches!(event, Event::Woken));
        if accepted < 5 {
            permits.give_back();
            test.until("the driver is woken", |test| {
                test.count(|event| matches!(event, Event::Woken)) > woken
            });
            test.driver.submit(Op::Accept { listener });
        }
    }
    let permit_pauses = test.count(|event| matches!(event, Event::AcceptPaused(_, None)));
    assert_eq!(
        permit_pauses,
        test.count(|event| matches!(event, Event::AcceptPaused(..))),
        "the listener paused with an error"
    );
    for connection in test.accepted() {
        test.driver.submit(Op::Receive { connection });
    }
    for peer in &mut peers {
        test.echo(peer, b"served");
    }
}

pub(super) fn new_permits_apply_from_the_next_accept<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let (listener, address) = test.listener(Some(Arc::new(Permits::new(0, vec![]))));
    let peers: Vec<_> = (0..3).map(|_| test.connect(&address)).collect();
    test.until_event(&Event::AcceptPaused(listener, None));
    test.driver.set_permits(listener, None);
    test.driver.submit(Op::Accept { listener });
    test.until("all clients are accepted", |test| {
        test.accepted().len() == peers.len()
    });
}

pub(super) fn without_descriptors_accept_reports_one_error_and_does_not_spin<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    if !test
        .network
        .in_own_process("without_descriptors_accept_reports_one_error_and_does_not_spin")
    {
        return;
    }
    // As many permits as clients: an accept that fails must return the permit that it took.
    let permits = Arc::new(Permits::new(3, vec![]));
    let (socket, address) = test
        .network
        .listen(SocketKind::Ipv4)
        .expect("IPv4 is available");
    let listener = test.driver.add_listener(socket, Some(Arc::clone(&permits)));
    let mut peers: Vec<_> = (0..3).map(|_| test.connect(&address)).collect();
    test.network.exhaust_descriptors(true);
    for attempt in 1..=3 {
        test.driver.submit(Op::Accept { listener });
        test.until("the accept fails", |test| test.events.len() == attempt);
        assert_eq!(
            test.events[attempt - 1],
            Event::AcceptPaused(listener, Some(libc::EMFILE))
        );
        test.until_quiet();
        assert_eq!(
            test.events.len(),
            attempt,
            "the error was reported more than once for one Accept"
        );
    }
    test.network.exhaust_descriptors(false);
    test.driver.submit(Op::Accept { listener });
    test.until("all clients are accepted", |test| {
        test.accepted().len() == 3
    });
    for connection in test.accepted() {
        test.driver.submit(Op::Receive { connection });
    }
    for peer in &mut peers {
        test.echo(peer, b"served");
    }
    (0..3).for_each(|_| permits.give_back());
}

pub(super) fn a_client_that_was_reset_in_the_queue_does_not_block_the_next<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let (socket, address) = test
        .network
        .listen(SocketKind::Ipv4)
        .expect("IPv4 is available");
    let aborted = test.connect(&address);
    let mut peer = test.connect(&address);
    test.network.reset(aborted);
    let listener = test.driver.add_listener(socket, None);
    test.driver.submit(Op::Accept { listener });
    let expected = test.network.address(&peer);
    let is_peer =
        |event: &&Event| matches!(event, Event::Accepted(_, _, address) if *address == expected);
    test.until("the second client is accepted", |test| {
        test.events.iter().any(|event| is_peer(&event))
    });
    for connection in test.accepted() {
        test.driver.submit(Op::Receive { connection });
    }
    test.echo(&mut peer, b"accepted");
    assert_eq!(
        test.count(|event| matches!(event, Event::AcceptPaused(..))),
        0
    );
}

// 17. Dropping.

pub(super) fn a_dropped_driver_closes_its_sockets<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let (_, address) = test.listener(None);
    let (mut peer, _) = test.connection(&address);
    test.echo(&mut peer, b"hello");
    let DriverTest {
        mut network,
        driver,
        ..
    } = test;
    drop(driver);
    assert!(
        network.connect(&address).is_err(),
        "a closed listener still accepts connections"
    );
    let deadline = Instant::now() + DEADLINE;
    let end = loop {
        if let Some(end) = network.read(&mut peer, 1, &mut vec![]) {
            break end;
        }
        assert!(
            Instant::now() < deadline,
            "the connections of a dropped driver are still open"
        );
    };
    assert_eq!(end, End::Fin);
}
