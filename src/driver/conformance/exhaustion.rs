//! Promise 6: what happens when no buffer is free, and that neither datagrams nor peers that do not
//! read can use up the buffers of other connections.

use super::CLIENT_COUNT;
use super::driver_test::{Answer, DriverTest, Event, TURN, pattern};
use super::harness::{Harness, SocketKind};
use crate::driver::buffers::{BUFFER_BYTES, BUFFER_COUNT};
use crate::driver::{Closing, Driver, Op, Token};

// 6. Exhausted buffers.

/// Keeps every buffer of the driver, with one byte of this peer in each.
fn exhaust_buffers<H: Harness>(test: &mut DriverTest<H>, peer: &mut H::Peer) {
    test.answer = Answer::Keep;
    for count in 1..=H::BUFFERS {
        test.write_all(peer, b".");
        test.until("one more buffer is used", |test| test.kept.len() == count);
    }
}

/// Each of several waits lasts until its deadline and reports nothing: the driver does not spin.
fn assert_waits_without_completions<H: Harness>(test: &mut DriverTest<H>) {
    let mut done = vec![];
    for _ in 0..5 {
        let until = test.driver.now() + TURN;
        test.driver
            .wait(Some(until), &mut done)
            .expect("waiting without free buffers is not an error");
        assert!(
            test.driver.now() >= until,
            "wait returned before its deadline without a completion"
        );
    }
    assert!(
        done.is_empty(),
        "completions without a free buffer: {done:?}"
    );
}

pub(super) fn without_buffers_receiving_waits_and_no_connection_fails<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Keep);
    let (_, address) = test.listener(None);
    let (mut filler, _) = test.connection(&address);
    let mut others: Vec<_> = (0..3).map(|_| test.connection(&address)).collect();
    exhaust_buffers(&mut test, &mut filler);
    let before = test.events.len();
    for (peer, _) in &mut others {
        test.write_all(peer, b"waiting");
    }
    // Finding no free buffer may end a wait early, without a completion, but only a few times:
    // after that each wait must last until its deadline.
    test.until_quiet();
    assert_waits_without_completions(&mut test);
    assert_eq!(test.events.len(), before, "{}", test.recent_events());
    // Receiving resumes when buffers are returned.
    test.answer = Answer::Discard;
    for (_, buffer) in std::mem::take(&mut test.kept) {
        test.driver.recycle(buffer);
    }
    for (_, connection) in others {
        test.until("the bytes are received", |test| {
            test.received(connection) == b"waiting"
        });
    }
    assert_eq!(
        test.count(|event| matches!(event, Event::Failed(_) | Event::Ended(_))),
        0
    );
    test.assert_all_returned();
}

pub(super) fn without_buffers_a_connection_can_still_be_closed<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Keep);
    let (_, address) = test.listener(None);
    let (mut filler, filler_connection) = test.connection(&address);
    let (mut peer, connection) = test.connection(&address);
    exhaust_buffers(&mut test, &mut filler);
    test.write_all(&mut peer, b"never received");
    test.until_quiet();
    test.close(connection, Closing::Now);
    // Sending needs no further buffer either.
    let (_, buffer) = test.kept.pop_front().expect("all buffers are kept");
    test.send(filler_connection, buffer);
    assert_eq!(test.read(&mut filler, 1), b".");
    for (_, buffer) in std::mem::take(&mut test.kept) {
        test.driver.recycle(buffer);
    }
    test.until_quiet();
    assert!(test.received(connection).is_empty());
    test.assert_all_returned();
}

pub(super) fn datagrams_leave_enough_buffers_for_streams<H: Harness>() {
    for kind in [SocketKind::Ipv4, SocketKind::Unix] {
        let mut test = DriverTest::<H>::new(Answer::Keep);
        let (_, address) = test.listener(None);
        let (mut peer, connection) = test.connection(&address);
        let (_, datagram_address) = test
            .datagrams(kind)
            .expect("IPv4 and Unix sockets are available");
        // Two clients in turn: datagrams of one client could share a buffer.
        let mut clients = [(); 2].map(|()| test.network.client(&datagram_address));
        // Keep every buffer, as happens when the network takes no replies, until datagrams are no
        // longer received.
        let mut sent = 0;
        let is_datagram = |event: &Event| matches!(event, Event::Datagram(..));
        while test.count(is_datagram) == sent && sent < usize::from(BUFFER_COUNT) {
            test.network
                .send(&mut clients[sent % 2], &datagram_address, None, b"kept");
            sent += 1;
            test.turn();
            if test.count(is_datagram) < sent {
                test.until_quiet();
            }
        }
        assert!(
            test.count(is_datagram) < sent,
            "datagrams were received into the last buffers"
        );
        assert_waits_without_completions(&mut test);
        // Streams still find buffers, also for messages larger than one.
        let kept = std::mem::take(&mut test.kept);
        test.answer = Answer::Echo;
        for size in [1, 300_000] {
            test.echo(&mut peer, &pattern(0, size));
        }
        test.until("every send completes", |test| test.unsent[&connection] == 0);
        for (_, buffer) in kept {
            test.driver.recycle(buffer);
        }
        test.until("the remaining datagrams are received", |test| {
            test.count(is_datagram) == sent
        });
        test.assert_all_returned();
    }
}

/// Connects more clients than there are buffers, none of which reads, and has each write until its
/// connection has unsent bytes and takes no more.
fn stall_crowd<H: Harness>(
    test: &mut DriverTest<H>,
    address: &H::Address,
) -> Vec<(H::Peer, Token)> {
    let mut clients: Vec<_> = (0..CLIENT_COUNT)
        .map(|_| test.connection(address))
        .collect();
    let bytes = pattern(0, BUFFER_BYTES);
    test.until("no client can write any more", |test| {
        let written: usize = clients
            .iter_mut()
            .map(|(peer, _)| test.network.write(peer, &bytes))
            .sum();
        written == 0 && {
            test.until_quiet();
            clients.iter().all(|(_, connection)| {
                test.unsent
                    .get(connection)
                    .is_some_and(|&unsent| unsent > 0)
            })
        }
    });
    clients
}

pub(super) fn peers_that_do_not_read_do_not_starve_others<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let (_, address) = test.listener(None);
    let clients = stall_crowd(&mut test, &address);
    // One more connection still finds buffers.
    let (mut peer, connection) = test.connection(&address);
    test.echo(&mut peer, &pattern(0, 200_000));
    assert_eq!(test.unsent[&connection], 0);
    for (peer, connection) in clients {
        drop(peer);
        test.driver.submit(Op::Close {
            token: connection,
            how: Closing::Now,
        });
    }
    test.until("all connections are closed", |test| {
        test.count(|event| matches!(event, Event::Closed(_))) == CLIENT_COUNT
    });
    test.assert_all_returned();
}

pub(super) fn buffers_returned_right_after_they_ran_out_are_received_into<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Keep);
    let (_, address) = test.listener(None);
    let (mut filler, _) = test.connection(&address);
    let (mut peer, connection) = test.connection(&address);
    test.until_quiet();
    exhaust_buffers(&mut test, &mut filler);
    test.until_quiet();
    test.write_all(&mut peer, b"waiting");
    // There is no wait between the one that found no buffer and the one that may receive again.
    test.turn();
    for (_, buffer) in std::mem::take(&mut test.kept) {
        test.driver.recycle(buffer);
    }
    test.answer = Answer::Discard;
    test.until("the bytes are received", |test| {
        test.received(connection) == b"waiting"
    });
    test.assert_all_returned();
}

pub(super) fn a_hang_up_without_buffers_does_not_spin<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Keep);
    let (_, address) = test.listener(None);
    let (mut filler, _) = test.connection(&address);
    let (mut peer, connection) = test.connection(&address);
    test.driver.submit(Op::ShutDown { connection });
    test.until_quiet();
    exhaust_buffers(&mut test, &mut filler);
    // Both sides have finished, and bytes are left that cannot be received.
    test.network.write(&mut peer, b"rest");
    test.network.half_close(&mut peer);
    test.until_quiet();
    assert_waits_without_completions(&mut test);
    test.answer = Answer::Discard;
    for (_, buffer) in std::mem::take(&mut test.kept) {
        test.driver.recycle(buffer);
    }
    test.until_event(&Event::Ended(connection));
    assert_eq!(test.received(connection), b"rest");
}

pub(super) fn peers_that_do_not_read_leave_buffers_to_datagrams<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let (_, address) = test.listener(None);
    let (_, datagram_address) = test.datagrams(SocketKind::Ipv4).expect("IPv4 is available");
    let _crowd = stall_crowd(&mut test, &address);
    let mut client = test.network.client(&datagram_address);
    test.network
        .send(&mut client, &datagram_address, None, b"hello");
    assert_eq!(test.reply_to(&mut client).1, b"hello");
}
