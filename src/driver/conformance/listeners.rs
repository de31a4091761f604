//! The promises about listeners: draining and accepting.

use std::sync::Arc;
use std::time::Instant;

use super::harness::{Harness, Place};
use super::stage::{Answer, DEADLINE, Event, Stage};
use crate::driver::sim::End;
use crate::driver::{Closing, Driver, Op, Permits};

// 9. Draining.

pub(super) fn a_listener_that_drains_accepts_all_who_are_queued_without_permits<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let permits = Arc::new(Permits::new(1, vec![stage.driver.waker()]));
    let (listener, address) = stage.listener(Some(Arc::clone(&permits)));
    let mut peers = vec![stage.connection(&address).0];
    peers.extend((0..70).map(|_| stage.connect(&address)));
    stage.until("it rests for want of a permit", |stage| {
        stage.has(&Event::AcceptPaused(listener, None))
    });
    assert_eq!(stage.accepted().len(), 1);
    stage.close(listener, Closing::WhenDrained);
    assert_eq!(stage.accepted().len(), 71, "all are accepted before Closed");
    for connection in stage.accepted().split_off(1) {
        stage.driver.submit(Op::Receive { connection });
    }
    for peer in &mut peers {
        stage.echo(peer, b"served");
    }
    assert!(
        stage.net.connect(&address).is_err(),
        "nobody listens any more"
    );
    // Each holds a permit all the same, so that each may give one back.
    assert!(!permits.try_take());
    (0..71).for_each(|_| permits.give_back());
    assert!(permits.try_take() && !permits.try_take());
}

// 10. Accepting.

pub(super) fn without_a_permit_a_listener_rests_and_goes_on_when_one_comes_back<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let permits = Arc::new(Permits::new(2, vec![stage.driver.waker()]));
    let (listener, address) = stage.listener(Some(Arc::clone(&permits)));
    let mut peers: Vec<_> = (0..5).map(|_| stage.connect(&address)).collect();
    for accepted in 2..=5 {
        stage.until("it accepts, then rests", |stage| {
            let rests = stage.count(|event| matches!(event, Event::AcceptPaused(..)));
            // With the last client gone nobody need be missed.
            stage.accepted().len() == accepted && (rests == accepted - 1 || accepted == 5)
        });
        stage.until_quiet();
        assert_eq!(stage.accepted().len(), accepted);
        let woken = stage.count(|event| matches!(event, Event::Woken));
        if accepted < 5 {
            permits.give_back();
            stage.until("it is woken", |stage| {
                stage.count(|event| matches!(event, Event::Woken)) > woken
            });
            stage.driver.submit(Op::Accept { listener });
        }
    }
    let rested = stage.count(|event| matches!(event, Event::AcceptPaused(_, None)));
    assert_eq!(
        rested,
        stage.count(|event| matches!(event, Event::AcceptPaused(..)))
    );
    for connection in stage.accepted() {
        stage.driver.submit(Op::Receive { connection });
    }
    for peer in &mut peers {
        stage.echo(peer, b"nobody was lost");
    }
}

pub(super) fn new_permits_count_from_the_next_accept_on<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let (listener, address) = stage.listener(Some(Arc::new(Permits::new(0, vec![]))));
    let peers: Vec<_> = (0..3).map(|_| stage.connect(&address)).collect();
    stage.until_event(&Event::AcceptPaused(listener, None));
    stage.driver.set_permits(listener, None);
    stage.driver.submit(Op::Accept { listener });
    stage.until("all are accepted", |stage| {
        stage.accepted().len() == peers.len()
    });
}

pub(super) fn out_of_descriptors_is_a_result_and_not_a_spin<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    if !stage
        .net
        .alone("out_of_descriptors_is_a_result_and_not_a_spin")
    {
        return;
    }
    let permits = Arc::new(Permits::new(3, vec![]));
    let (socket, address) = stage.net.listen(Place::V4).expect("every machine has IPv4");
    let listener = stage
        .driver
        .add_listener(socket, Some(Arc::clone(&permits)));
    let mut peers: Vec<_> = (0..3).map(|_| stage.connect(&address)).collect();
    stage.net.exhaust_descriptors(true);
    for tries in 1..=3 {
        stage.driver.submit(Op::Accept { listener });
        stage.until("the accept fails", |stage| stage.events.len() == tries);
        assert_eq!(
            stage.events[tries - 1],
            Event::AcceptPaused(listener, Some(libc::EMFILE))
        );
        stage.until_quiet();
        assert_eq!(stage.events.len(), tries, "it is reported once");
    }
    stage.net.exhaust_descriptors(false);
    stage.driver.submit(Op::Accept { listener });
    stage.until("all are accepted", |stage| stage.accepted().len() == 3);
    for connection in stage.accepted() {
        stage.driver.submit(Op::Receive { connection });
    }
    for peer in &mut peers {
        stage.echo(peer, b"nobody was lost");
    }
    (0..3).for_each(|_| permits.give_back());
}

pub(super) fn a_peer_that_gave_up_in_the_queue_is_in_nobodys_way<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let (socket, address) = stage.net.listen(Place::V4).expect("every machine has IPv4");
    let quitter = stage.connect(&address);
    let mut peer = stage.connect(&address);
    stage.net.reset(quitter);
    let listener = stage.driver.add_listener(socket, None);
    stage.driver.submit(Op::Accept { listener });
    let expected = stage.net.address(&peer);
    let is_peer =
        |event: &&Event| matches!(event, Event::Accepted(_, _, address) if *address == expected);
    stage.until("the other is accepted", |stage| {
        stage.events.iter().any(|event| is_peer(&event))
    });
    for connection in stage.accepted() {
        stage.driver.submit(Op::Receive { connection });
    }
    stage.echo(&mut peer, b"all is well");
    assert_eq!(
        stage.count(|event| matches!(event, Event::AcceptPaused(..))),
        0
    );
}

// 17. The end.

pub(super) fn a_driver_that_is_dropped_leaves_nothing_behind<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let (_, address) = stage.listener(None);
    let (mut peer, _) = stage.connection(&address);
    stage.echo(&mut peer, b"hello");
    let Stage {
        mut net, driver, ..
    } = stage;
    drop(driver);
    assert!(net.connect(&address).is_err(), "nobody listens any more");
    let deadline = Instant::now() + DEADLINE;
    let end = loop {
        if let Some(end) = net.read(&mut peer, 1, &mut vec![]) {
            break end;
        }
        assert!(Instant::now() < deadline, "its connections are closed");
    };
    assert_eq!(end, End::Fin);
}
