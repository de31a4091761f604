//! Promises 1 to 5 and 7: submitting, completions, stalls, order, idle connections and pausing.

use super::CLIENT_COUNT;
use super::driver_test::{Answer, DriverTest, Event, pattern};
use super::handover::detach;
use super::harness::{HELD_BYTES_MAX, Harness, SocketKind};
use crate::driver::buffers::BUFFER_BYTES;
use crate::driver::sim::End;
use crate::driver::{Closing, Driver, Op};

// 1. Submitting.

pub(super) fn submit_has_no_effect_before_the_next_wait<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Keep);
    let (_, address) = test.listener(None);
    let (mut peer, connection) = test.connection(&address);
    let buffer = test.buffer(&mut peer, b"later");
    test.until_quiet();
    test.send(connection, buffer);
    test.driver.submit(Op::Close {
        token: connection,
        how: Closing::Now,
    });
    let mut bytes = vec![];
    for _ in 0..100 {
        assert_eq!(test.network.read(&mut peer, usize::MAX, &mut bytes), None);
    }
    assert!(bytes.is_empty(), "bytes were sent before the next wait");
    test.until_event(&Event::Closed(connection));
}

// 2. Completions.

/// Their bytes have arrived before the driver first receives, and are more than the small buffers of
/// a ring hold.
pub(super) fn the_first_bytes_of_several_clients_all_arrive<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Discard);
    let (_, address) = test.listener(None);
    let mut peers: Vec<_> = (0..50).map(|_| test.connect(&address)).collect();
    let mut written = vec![];
    for (number, peer) in peers.iter_mut().enumerate() {
        let bytes = pattern(number, 60_000);
        let mut len = 0;
        // As many as the connection takes while nothing is received.
        while let some @ 1.. = test.network.write(peer, &bytes[len..]) {
            len += some;
        }
        written.push(len);
    }
    test.until("every client is accepted", |test| {
        test.accepted().len() == peers.len()
    });
    let connections = test.accepted();
    for &connection in &connections {
        test.driver.submit(Op::Receive { connection });
    }
    let total: usize = written.iter().sum();
    test.until("all bytes are received", |test| {
        let received = test.events.iter().map(|event| match event {
            Event::Received(_, bytes) => bytes.len(),
            _ => 0,
        });
        received.sum::<usize>() >= total
    });
    for (number, (connection, len)) in connections.into_iter().zip(written).enumerate() {
        assert!(test.received(connection) == pattern(number, len));
    }
    test.assert_all_returned();
}

pub(super) fn one_accept_and_one_receive_repeat_until_they_are_ended<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Discard);
    let (_, address) = test.listener(None);
    let mut connections: Vec<_> = (0..5).map(|_| test.connection(&address)).collect();
    for round in 1..=5 {
        for (peer, connection) in &mut connections {
            test.write_all(peer, b"hello");
            test.until("the bytes are received", |test| {
                test.received(*connection).len() == 5 * round
            });
        }
    }
    assert_eq!(test.accepted().len(), 5);
}

pub(super) fn each_send_has_exactly_one_completion<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let (_, address) = test.listener(None);
    let (mut peer, connection) = test.connection(&address);
    for size in [1, 10, 1000, 50_000, 3] {
        test.echo(&mut peer, &pattern(0, size));
    }
    test.until("every send completes", |test| test.unsent[&connection] == 0);
    test.until_quiet();
    let received = test.count(|event| matches!(event, Event::Received(..)));
    let sent = test.count(|event| matches!(event, Event::Sent(..)));
    assert_eq!(sent, received, "not one Sent for each Send");
}

pub(super) fn all_sends_of_a_failed_connection_complete_with_one_failed<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let (_, address) = test.listener(None);
    let (peer, connection, _) = test.stalled(&address);
    let sent = test.count(|event| matches!(event, Event::Sent(..)));
    test.network.reset(peer);
    test.until_event(&Event::Failed(connection));
    test.until_quiet();
    assert_eq!(test.count(|event| matches!(event, Event::Failed(_))), 1);
    assert_eq!(
        test.count(|event| matches!(event, Event::Sent(..))),
        sent,
        "a Sent for bytes that were never sent"
    );
    test.close(connection, Closing::Now);
    test.assert_all_returned();
}

// 3. Stalls.

pub(super) fn a_stalled_send_is_reported_once_and_completes_when_all_bytes_are_sent<H: Harness>() {
    // Over a Unix socket, where nothing more is sent until the peer reads. TCP would move further
    // bytes from the send buffer to the peer, at any time.
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let address = test.listener_at(SocketKind::Unix);
    let (mut peer, connection, written) = test.stalled(&address);
    let unsent = test.unsent[&connection];
    let stalls = test.count(|event| matches!(event, Event::Stalled(_)));
    test.until_quiet();
    assert_eq!(
        test.unsent[&connection], unsent,
        "a Sent although the peer has not read"
    );
    assert_eq!(
        test.count(|event| matches!(event, Event::Stalled(_))),
        stalls,
        "one stall was reported more than once"
    );
    let echoed = test.read(&mut peer, written);
    assert!(
        echoed == pattern(0, written),
        "the echoed bytes differ from those sent"
    );
    test.until("every send completes", |test| test.unsent[&connection] == 0);
    let stalls = test.count(|event| matches!(event, Event::Stalled(_)));
    assert!(
        stalls <= test.count(|event| matches!(event, Event::Sent(..))),
        "more stalls than sends"
    );
}

pub(super) fn a_peer_that_reads_slowly_receives_every_byte<H: Harness>() {
    // One send needs many writes to a small send buffer.
    for kind in [SocketKind::SmallSendBuffer, SocketKind::Unix] {
        let mut test = DriverTest::<H>::new(Answer::Echo);
        let address = test.listener_at(kind);
        let (mut peer, connection) = test.connection(&address);
        let bytes = pattern(0, 300_000);
        let (mut written, mut echoed) = (0, vec![]);
        test.until("all bytes are echoed", |test| {
            written += test.network.write(&mut peer, &bytes[written..]);
            test.network.read(&mut peer, 1000, &mut echoed);
            echoed.len() >= bytes.len()
        });
        assert!(echoed == bytes, "the echoed bytes differ from those sent");
        test.until("every send completes", |test| test.unsent[&connection] == 0);
        let stalls = test.count(|event| matches!(event, Event::Stalled(_)));
        let sends = test.count(|event| matches!(event, Event::Sent(..)));
        assert!(
            (1..=sends).contains(&stalls),
            "{stalls} stalls of {sends} sends"
        );
    }
}

// 4. Order.

pub(super) fn queued_sends_keep_their_order<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Keep);
    let (_, address) = test.listener(None);
    let (mut peer, connection) = test.connection(&address);
    let mut expected = vec![];
    for number in 0..40 {
        // The first messages fill the send buffer, so that the later ones are queued behind them.
        let message = pattern(number * 7, if number < 20 { 60_000 } else { number });
        let before = test.received(connection).len();
        test.write_all(&mut peer, &message);
        test.until("the bytes are received", |test| {
            test.received(connection).len() == before + message.len()
        });
        expected.extend(message);
    }
    // Submit all of them at once, and a FIN behind them.
    for (_, buffer) in std::mem::take(&mut test.kept) {
        *test.unsent.entry(connection).or_default() += buffer.len();
        test.driver.submit(Op::Send { connection, buffer });
    }
    test.driver.submit(Op::ShutDown { connection });
    test.until_quiet();
    let (bytes, end) = test.read_end(&mut peer);
    assert!(
        bytes == expected,
        "{} of {} bytes were read, or out of order",
        bytes.len(),
        expected.len()
    );
    assert_eq!(end, End::Fin);
    test.until("every send completes", |test| test.unsent[&connection] == 0);
}

pub(super) fn long_streams_are_echoed_intact<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let (_, address) = test.listener(None);
    for _ in 0..3 {
        let (mut peer, _) = test.connection(&address);
        test.echo(&mut peer, &pattern(0, 200_000));
    }
}

pub(super) fn unix_streams_are_echoed_intact<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let address = test.listener_at(SocketKind::Unix);
    let (mut peer, connection) = test.connection(&address);
    test.echo(&mut peer, &pattern(0, 200_000));
    test.close(connection, Closing::Now);
    assert_eq!(test.read_end(&mut peer).1, End::Fin);
}

// 5. Idle connections.

pub(super) fn idle_connections_hold_no_buffer<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Discard);
    let (_, address) = test.listener(None);
    let mut clients: Vec<_> = (0..CLIENT_COUNT)
        .map(|_| test.connection(&address))
        .collect();
    for (peer, connection) in clients.iter_mut().take(20) {
        test.write_all(peer, b"busy once");
        test.until("the bytes are received", |test| {
            !test.received(*connection).is_empty()
        });
    }
    test.assert_all_returned();
}

// 7. Pausing.

pub(super) fn after_pause_nothing_new_is_received_until_receive<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Discard);
    let (_, address) = test.listener(None);
    let (mut peer, connection) = test.connection(&address);
    test.write_all(&mut peer, b"one ");
    test.until("the bytes are received", |test| {
        test.received(connection) == b"one "
    });
    test.driver.submit(Op::Pause { connection });
    test.until_quiet();
    test.write_all(&mut peer, b"two");
    test.until_quiet();
    assert_eq!(test.received(connection), b"one ");
    test.driver.submit(Op::Receive { connection });
    test.until("the bytes are received", |test| {
        test.received(connection) == b"one two"
    });
}

pub(super) fn at_most_64_kib_are_held_for_a_peer_that_does_not_read<H: Harness>() {
    for answer in [Answer::Echo, Answer::Relay] {
        for kind in [
            SocketKind::Ipv4,
            SocketKind::LargeReceiveBuffer,
            SocketKind::Unix,
        ] {
            for size in [1000, 3000, 5000, BUFFER_BYTES, 4 * BUFFER_BYTES] {
                let mut test = DriverTest::<H>::new(answer);
                // A worker would pause the connection. Here the driver's own limit is tested.
                test.pauses = false;
                let address = test.listener_at(kind);
                let (mut peer, connection) = test.connection(&address);
                let mut quiet = 0;
                test.until("no more bytes can be written", |test| {
                    // Many writes in one turn, so that many pieces of this size are queued at once.
                    let bytes = pattern(0, size);
                    let written: usize =
                        (0..64).map(|_| test.network.write(&mut peer, &bytes)).sum();
                    quiet = if written > 0 { 0 } else { quiet + 1 };
                    test.until_quiet();
                    quiet == 2
                });
                let held = detach(&mut test, connection).unsent.len();
                assert!(
                    (1..=HELD_BYTES_MAX).contains(&held),
                    "{answer:?}, {kind:?}, {size} bytes per write: {held} bytes are held"
                );
            }
        }
    }
}
