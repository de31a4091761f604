//! Promises 18 and 19: a connection is detached from one driver together with its unsent bytes, and
//! another driver continues with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::driver_test::{Answer, DriverTest, Event, pattern};
use super::harness::{Harness, SocketKind, SocketOf};
use super::loopback::Loopback;
use super::relay::{arrived, random_below, start_bulk_traffic, with_full_pipe};
use crate::driver::buffers::BUFFER_BYTES;
use crate::driver::epoll::Epoll;
use crate::driver::sim::End;
use crate::driver::uring::Uring;
use crate::driver::{Closing, Detached, Driver, Op, Token};

/// More bytes than a driver's buffer, or the send buffer of any socket here, can hold.
const UNSENT_BYTES: usize = 600 * 1024;

/// More connections than are served in one wait.
const CLIENT_COUNT: usize = 200;

/// How many times a connection is handed over.
const HANDOVER_COUNT: usize = 50;

/// Detaches and takes a connection with its unsent bytes.
pub(super) fn detach<H: Harness>(
    test: &mut DriverTest<H>,
    connection: Token,
) -> Detached<SocketOf<H>> {
    test.driver.submit(Op::Detach { connection });
    until_detached(test, connection);
    let detached = test
        .driver
        .take(connection)
        .expect("the connection is detached");
    let unsent = test.unsent.remove(&connection).unwrap_or(0);
    assert!(
        detached.unsent.len() <= unsent as usize,
        "{} bytes are unsent, but only {unsent} were submitted and not reported as sent",
        detached.unsent.len()
    );
    detached
}

/// Waits for `Detached`, which must be the last event of the connection. Bytes that were taken
/// before must be reported in an earlier wait, so that their answers are among the unsent bytes.
pub(super) fn until_detached<H: Harness>(test: &mut DriverTest<H>, connection: Token) {
    let detached = Event::Detached(connection);
    let mut before = test.events.len();
    test.until("the connection is detached", |test| {
        let turn = &test.events[before..];
        before = test.events.len();
        let is_reported = turn.contains(&detached);
        let is_received =
            |event: &Event| matches!(event, Event::Received(about, _) if *about == connection);
        assert!(
            !(is_reported && turn.iter().any(is_received)),
            "bytes were reported in the same wait as Detached: {}",
            test.recent_events()
        );
        is_reported
    });
    assert_eq!(events_about(test, connection).last(), Some(&&detached));
}

/// All events of a listener, connection or socket.
fn events_about<H: Harness>(test: &DriverTest<H>, token: Token) -> Vec<&Event> {
    let events = test.events.iter();
    events.filter(|event| event.is_about(token)).collect()
}

/// Adds a detached connection to a driver, without receiving from it.
pub(super) fn add_detached<H: Harness>(
    test: &mut DriverTest<H>,
    detached: Detached<SocketOf<H>>,
) -> Token {
    let len = detached.unsent.len() as u32;
    let connection = test.driver.add_connection(detached.socket, detached.unsent);
    test.unsent.insert(connection, len);
    connection
}

/// Moves a connection to another driver and starts receiving there. Also returns how many bytes
/// were unsent.
fn hand_over<A: Harness, B: Harness>(
    from: &mut DriverTest<A>,
    to: &mut DriverTest<B>,
    connection: Token,
) -> (Token, usize)
where
    B::Driver: Driver<Socket = SocketOf<A>>,
{
    let detached = detach(from, connection);
    let unsent = detached.unsent.len();
    let connection = add_detached(to, detached);
    to.receive(connection);
    (connection, unsent)
}

/// Random writes and reads of a peer, independent of which driver has its connection.
struct Traffic {
    written: usize,
    echoed: Vec<u8>,
    random: u64,
}

impl Traffic {
    fn new(written: usize) -> Self {
        Self {
            written,
            echoed: vec![],
            random: 18,
        }
    }

    /// Writes and reads during several turns. The last write comes after them, so that its bytes
    /// are not yet received when the connection is detached.
    fn run<H: Harness>(&mut self, test: &mut DriverTest<H>, peer: &mut H::Peer) {
        let reads = random_below(&mut self.random, 3) > 0;
        for _ in 0..random_below(&mut self.random, 6) {
            self.write(test, peer);
            if reads {
                let max = 1 + random_below(&mut self.random, 100_000);
                let end = test.network.read(peer, max, &mut self.echoed);
                assert_eq!(end, None, "after {} bytes", self.echoed.len());
            }
            test.turn();
        }
        self.write(test, peer);
    }

    fn write<H: Harness>(&mut self, test: &mut DriverTest<H>, peer: &mut H::Peer) {
        let len_max = [10, 5_000, 300_000][random_below(&mut self.random, 3)];
        let bytes = pattern(self.written, 1 + random_below(&mut self.random, len_max));
        self.written += test.network.write(peer, &bytes);
    }

    /// Reads the bytes that are not yet echoed, and compares all of them.
    fn finish<H: Harness>(
        mut self,
        test: &mut DriverTest<H>,
        peer: &mut H::Peer,
        connection: Token,
    ) {
        let missing = self.written - self.echoed.len();
        self.echoed.extend(test.read(peer, missing));
        assert!(
            self.echoed == pattern(0, self.written),
            "the echoed bytes differ from those sent"
        );
        test.until("every send completes", |test| test.unsent[&connection] == 0);
        test.until_quiet();
        let mut more = vec![];
        assert_eq!(test.network.read(peer, usize::MAX, &mut more), None);
        assert!(more.is_empty(), "bytes were sent twice");
        test.close(connection, Closing::Now);
        test.assert_all_returned();
    }
}

// 18. Detaching, and 19. adding.

pub(super) fn an_idle_connection_continues_in_another_driver<H: Harness>() {
    for kind in [SocketKind::Ipv4, SocketKind::Unix] {
        let mut from = DriverTest::<H>::new(Answer::Echo);
        let mut to = from.another();
        let address = from.listener_at(kind);
        let (mut peer, first) = from.connection(&address);
        from.echo(&mut peer, b"before");
        from.until("every send completes", |test| test.unsent[&first] == 0);
        let (connection, unsent) = hand_over(&mut from, &mut to, first);
        assert_eq!(unsent, 0, "unsent bytes of an idle connection");
        to.echo(&mut peer, b"after");
        to.echo(&mut peer, &pattern(0, 200_000));
        // The first driver reports nothing more of it, and reuses its slot.
        from.until_quiet();
        assert_eq!(
            events_about(&from, first).last(),
            Some(&&Event::Detached(first)),
            "a completion after Detached"
        );
        let (_other, second) = from.connection(&address);
        assert_eq!(
            second,
            first.next(),
            "the slot was not freed for the next connection"
        );
        to.close(connection, Closing::Now);
        assert_eq!(to.read_end(&mut peer), (vec![], End::Fin));
        from.close(second, Closing::Now);
        from.assert_all_returned();
        to.assert_all_returned();
    }
}

pub(super) fn traffic_during_many_handovers_is_echoed_intact<H: Harness>() {
    for kind in [
        SocketKind::Ipv4,
        SocketKind::SmallSendBuffer,
        SocketKind::Unix,
    ] {
        let mut current = DriverTest::<H>::new(Answer::Echo);
        let mut next = current.another();
        let address = current.listener_at(kind);
        let (mut peer, mut connection) = current.connection(&address);
        let mut traffic = Traffic::new(0);
        let mut handed_over = 0;
        for _ in 0..HANDOVER_COUNT {
            traffic.run(&mut current, &mut peer);
            let (moved, unsent) = hand_over(&mut current, &mut next, connection);
            (connection, handed_over) = (moved, handed_over + unsent);
            std::mem::swap(&mut current, &mut next);
        }
        assert!(handed_over > 0, "no handover had unsent bytes");
        traffic.finish(&mut current, &mut peer, connection);
        next.assert_all_returned();
    }
}

pub(super) fn many_connections_are_handed_over_during_traffic<H: Harness>() {
    let mut from = DriverTest::<H>::new(Answer::Echo);
    let mut to = from.another();
    let (_, address) = from.listener(None);
    let mut clients: Vec<_> = (0..CLIENT_COUNT)
        .map(|_| from.connection(&address))
        .collect();
    for (index, (peer, _)) in clients.iter_mut().enumerate() {
        assert_eq!(from.network.write(peer, &pattern(index, 100)), 100);
    }
    // More bytes are ready than one wait reports, so some connections are detached before their
    // bytes are reported.
    from.turn();
    from.events.clear();
    let mut attached: Vec<Token> = clients.iter().map(|(_, connection)| *connection).collect();
    let mut detached = HashMap::new();
    from.until("all connections are detached", |test| {
        let turn = std::mem::take(&mut test.events);
        for (index, event) in turn.iter().enumerate() {
            if let Event::Detached(connection) = *event {
                let is_received =
                    |event: &Event| matches!(event, Event::Received(about, _) if *about == connection);
                assert!(
                    !turn.iter().any(is_received),
                    "bytes were reported in the same wait as Detached"
                );
                let mut later = turn[index + 1..].iter();
                assert!(
                    !later.any(|event| event.is_about(connection)),
                    "a completion after Detached"
                );
                let taken = test
                    .driver
                    .take(connection)
                    .expect("the connection is detached");
                detached.insert(connection, taken);
            }
        }
        // A few more in each turn, while the others are receiving and sending.
        for connection in attached.split_off(attached.len().saturating_sub(5)) {
            test.driver.submit(Op::Detach { connection });
        }
        detached.len() == clients.len()
    });
    from.until_quiet();
    assert_eq!(from.events, [], "a completion after Detached");
    for (_, connection) in &mut clients {
        let taken = detached
            .remove(connection)
            .expect("all connections are detached");
        *connection = add_detached(&mut to, taken);
        to.receive(*connection);
    }
    // Each peer gets its echo, from whichever driver sent it.
    for (index, (peer, connection)) in clients.iter_mut().enumerate() {
        assert!(to.read(peer, 100) == pattern(index, 100));
        to.until("every send completes", |test| test.unsent[connection] == 0);
        to.close(*connection, Closing::Now);
        assert_eq!(to.read_end(peer), (vec![], End::Fin));
    }
    from.assert_all_returned();
    to.assert_all_returned();
}

pub(super) fn bulk_traffic_during_many_handovers_is_echoed_intact<H: Harness>() {
    for kind in [SocketKind::LargeReceiveBuffer, SocketKind::Unix] {
        let mut current = DriverTest::<H>::new(Answer::Relay);
        let mut next = current.another();
        let (mut peer, mut connection, written) = with_full_pipe(&mut current, kind);
        let mut traffic = Traffic::new(written);
        for _ in 0..HANDOVER_COUNT {
            let moved = hand_over(&mut current, &mut next, connection);
            connection = moved.0;
            std::mem::swap(&mut current, &mut next);
            // Read a random number of bytes, which makes room for relaying to start again.
            let len = random_below(
                &mut traffic.random,
                1 + traffic.written - traffic.echoed.len(),
            );
            traffic.echoed.extend(current.read(&mut peer, len));
            traffic.run(&mut current, &mut peer);
        }
        traffic.finish(&mut current, &mut peer, connection);
        next.assert_all_returned();
    }
}

pub(super) fn a_handover_keeps_bytes_in_a_pipe_ahead_of_queued_sends<H: Harness>() {
    for kind in [SocketKind::LargeReceiveBuffer, SocketKind::Unix] {
        let mut from = DriverTest::<H>::new(Answer::Relay);
        let mut to = from.another();
        let (mut peer, connection, written) = with_full_pipe(&mut from, kind);
        // Paused, so that no bytes are received and echoed behind the two sends below.
        from.pause(connection);
        from.until_quiet();
        let before = arrived(&from, connection) - 4 * BUFFER_BYTES;
        from.answer = Answer::Keep;
        let (_, other) = from.listener(None);
        let (mut other, _) = from.connection(&other);
        for text in [b"1", b"2"] {
            let buffer = from.buffer(&mut other, text);
            from.send(connection, buffer);
        }
        from.answer = Answer::Relay;
        from.until_quiet();
        let (connection, _) = hand_over(&mut from, &mut to, connection);
        let mut expected = pattern(0, before);
        expected.extend(b"12");
        expected.extend(pattern(before, written - before));
        assert!(to.read(&mut peer, expected.len()) == expected);
        to.until("every send completes", |test| test.unsent[&connection] == 0);
        start_bulk_traffic(&mut to, &mut peer, connection);
        from.assert_all_returned();
        to.assert_all_returned();
    }
}

pub(super) fn after_a_handover_unsent_bytes_are_sent_first_and_once<H: Harness>() {
    for kind in [
        SocketKind::Ipv4,
        SocketKind::SmallSendBuffer,
        SocketKind::Unix,
    ] {
        let mut from = DriverTest::<H>::new(Answer::Echo);
        let mut to = from.another();
        let address = from.listener_at(kind);
        let (mut peer, connection, written) = from.stalled(&address);
        let detached = detach(&mut from, connection);
        let unsent = detached.unsent.len();
        assert!(unsent > 0);
        let arrived = from.received(connection).len();
        let connection = add_detached(&mut to, detached);
        to.until_quiet();
        // The peer has not read, so nothing can be sent yet; except over TCP, which may move bytes
        // to the peer at any time.
        assert!(
            to.events.is_empty() || kind != SocketKind::Unix,
            "{}",
            to.recent_events()
        );
        assert!(to.read(&mut peer, arrived) == pattern(0, arrived));
        let sent = Event::Sent(connection, unsent as u32);
        to.until_event(&sent);
        to.until_quiet();
        assert_eq!(
            events_about(&to, connection),
            [&sent],
            "the unsent bytes completed with more than one Sent"
        );
        // Bytes that the first driver did not receive are received and echoed now.
        to.receive(connection);
        let rest = pattern(arrived, written - arrived);
        assert!(to.read(&mut peer, rest.len()) == rest);
        to.echo(&mut peer, &pattern(0, 100_000));
        from.assert_all_returned();
        to.assert_all_returned();
    }
}

pub(super) fn after_a_handover_received_bytes_are_sent_behind_unsent_ones<H: Harness>() {
    let mut from = DriverTest::<H>::new(Answer::Echo);
    let mut to = from.another();
    let address = from.listener_at(SocketKind::Unix);
    let (mut peer, old, mut written) = from.stalled(&address);
    let detached = detach(&mut from, old);
    let new = add_detached(&mut to, detached);
    to.receive(new);
    written += to.network.write(&mut peer, &pattern(written, BUFFER_BYTES));
    assert!(
        from.received(old).len() < written,
        "nothing is left for the other driver to receive"
    );
    to.until_quiet();
    assert!(to.read(&mut peer, written) == pattern(0, written));
}

pub(super) fn unsent_bytes_larger_than_a_buffer_are_handed_over_repeatedly<H: Harness>() {
    for kind in [SocketKind::SmallSendBuffer, SocketKind::Unix] {
        let mut current = DriverTest::<H>::new(Answer::Echo);
        let mut next = current.another();
        let address = current.listener_at(kind);
        let (mut peer, connection) = current.connection(&address);
        let mut detached = detach(&mut current, connection);
        assert!(detached.unsent.is_empty());
        detached.unsent = pattern(0, UNSENT_BYTES);
        let mut echoed = vec![];
        let mut handed_over = vec![];
        let connection = loop {
            std::mem::swap(&mut current, &mut next);
            handed_over.push(detached.unsent.len());
            let connection = add_detached(&mut current, detached);
            current.receive(connection);
            echoed.extend(current.read(&mut peer, 50_000));
            // Hand it over again after every 50,000 bytes, in the middle of its unsent bytes.
            if echoed.len() == 400_000 {
                break connection;
            }
            detached = detach(&mut current, connection);
            let sent = UNSENT_BYTES - detached.unsent.len();
            assert!(
                sent >= echoed.len(),
                "{sent} bytes count as sent, but the peer has read {}",
                echoed.len()
            );
        };
        let is_partly_sent = |len: &usize| (1..UNSENT_BYTES).contains(len);
        assert!(
            handed_over.iter().any(is_partly_sent),
            "{kind:?}: no handover with only some bytes unsent: {handed_over:?}"
        );
        echoed.extend(current.read(&mut peer, UNSENT_BYTES - echoed.len()));
        assert!(echoed == pattern(0, UNSENT_BYTES));
        current.until("every send completes", |test| test.unsent[&connection] == 0);
        current.echo(&mut peer, b"more");
        current.assert_all_returned();
        next.assert_all_returned();
    }
}

pub(super) fn sends_submitted_before_take_are_handed_over<H: Harness>() {
    let mut from = DriverTest::<H>::new(Answer::Keep);
    let mut to = from.another();
    let (_, address) = from.listener(None);
    let (mut peer, connection) = from.connection(&address);
    let mut buffers = vec![];
    for text in [b"1", b"2"] {
        buffers.push(from.buffer(&mut peer, text));
    }
    from.driver.submit(Op::Detach { connection });
    until_detached(&mut from, connection);
    for buffer in buffers {
        from.send(connection, buffer);
    }
    let detached = from
        .driver
        .take(connection)
        .expect("the connection is detached");
    assert_eq!(detached.unsent, b"12");
    let connection = add_detached(&mut to, detached);
    assert_eq!(to.read(&mut peer, 2), b"12");
    to.until_event(&Event::Sent(connection, 2));
    from.assert_all_returned();
}

pub(super) fn after_a_handover_the_end_of_a_half_closed_peer_is_reported<H: Harness>() {
    // If not stalled, the first driver has reported the end, and the second one reports it again.
    // If stalled, the FIN is not yet received, because too many bytes are unsent.
    for stalled in [false, true] {
        let mut from = DriverTest::<H>::new(Answer::Echo);
        let mut to = from.another();
        let (_, address) = from.listener(None);
        let (mut peer, connection, written) = if stalled {
            from.stalled(&address)
        } else {
            let (peer, connection) = from.connection(&address);
            (peer, connection, 0)
        };
        from.network.half_close(&mut peer);
        if !stalled {
            from.until_event(&Event::Ended(connection));
        }
        let (connection, _) = hand_over(&mut from, &mut to, connection);
        assert!(to.read(&mut peer, written) == pattern(0, written));
        let ended = Event::Ended(connection);
        to.until_event(&ended);
        to.until("every send completes", |test| test.unsent[&connection] == 0);
        to.until_quiet();
        assert_eq!(to.count(|event| *event == ended), 1);
        to.driver.submit(Op::ShutDown { connection });
        assert_eq!(to.read_end(&mut peer), (vec![], End::Fin));
        to.close(connection, Closing::Now);
        from.assert_all_returned();
        to.assert_all_returned();
    }
}

pub(super) fn close_after_detach_reports_only_closed<H: Harness>() {
    for answer in [Answer::Echo, Answer::Relay] {
        // The `Close` comes before or after `Detached` is reported.
        for is_reported in [false, true] {
            let mut test = DriverTest::<H>::new(answer);
            let (_peer, connection) = if answer == Answer::Relay {
                let (peer, connection, _) =
                    with_full_pipe(&mut test, SocketKind::LargeReceiveBuffer);
                (peer, connection)
            } else {
                let (_, address) = test.listener(None);
                let (peer, connection, _) = test.stalled(&address);
                (peer, connection)
            };
            test.until_quiet();
            test.driver.submit(Op::Detach { connection });
            if is_reported {
                until_detached(&mut test, connection);
            }
            test.events.clear();
            test.driver.submit(Op::Close {
                token: connection,
                how: Closing::Now,
            });
            test.until_event(&Event::Closed(connection));
            test.until_quiet();
            assert_eq!(test.events, [Event::Closed(connection)]);
            assert!(test.driver.take(connection).is_none());
            test.assert_all_returned();
        }
    }
}

pub(super) fn a_failed_connection_is_not_detached<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let (_, address) = test.listener(None);
    let (peer, connection, _) = test.stalled(&address);
    test.network.reset(peer);
    test.until_event(&Event::Failed(connection));
    test.driver.submit(Op::Detach { connection });
    test.until_quiet();
    assert_eq!(
        events_about(&test, connection).last(),
        Some(&&Event::Failed(connection))
    );
    assert!(test.driver.take(connection).is_none());
    test.close(connection, Closing::Now);
    test.assert_all_returned();
}

pub(super) fn only_a_detached_connection_can_be_taken<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let (listener, address) = test.listener(None);
    let (mut peer, connection) = test.connection(&address);
    assert!(test.driver.take(connection).is_none());
    // A `Detach` of a listener is ignored.
    test.driver.submit(Op::Detach {
        connection: listener,
    });
    test.until_quiet();
    assert!(test.driver.take(listener).is_none());
    test.echo(&mut peer, b"still served");
    test.driver.submit(Op::Detach { connection });
    until_detached(&mut test, connection);
    assert!(test.driver.take(connection).is_some());
    assert!(test.driver.take(connection).is_none());

    // Nor can a connection be taken after it was taken or closed.
    H::allow_closed_tokens(&mut test.driver);
    let (_peer, closed) = test.connection(&address);
    test.close(closed, Closing::Now);
    test.events.clear();
    for token in [connection, closed] {
        test.driver.submit(Op::Detach { connection: token });
        test.until_quiet();
        assert!(test.driver.take(token).is_none());
    }
    assert_eq!(test.events, []);
}

/// A process that takes over connections may use another driver than the process before it.
#[test]
fn a_connection_is_handed_over_between_epoll_and_io_uring() {
    if let Some(error) = Loopback::<Uring>::unavailable() {
        eprintln!("NOT TESTED: the driver is unavailable on this machine: {error}");
        return;
    }
    for answer in [Answer::Echo, Answer::Relay] {
        for kind in [
            SocketKind::Ipv4,
            SocketKind::LargeReceiveBuffer,
            SocketKind::Unix,
        ] {
            let mut epoll = DriverTest::<Loopback<Epoll>>::new(answer);
            let mut uring = DriverTest::<Loopback<Uring>>::new(answer);
            let address = epoll.listener_at(kind);
            let (mut peer, mut connection) = epoll.connection(&address);
            let mut traffic = Traffic::new(0);
            for _ in 0..HANDOVER_COUNT / 2 {
                traffic.run(&mut epoll, &mut peer);
                connection = hand_over(&mut epoll, &mut uring, connection).0;
                traffic.run(&mut uring, &mut peer);
                connection = hand_over(&mut uring, &mut epoll, connection).0;
            }
            traffic.finish(&mut epoll, &mut peer, connection);
            uring.assert_all_returned();
        }
    }
}

/// A race: the socket may become writable just as the driver cancels its request to send. The bytes
/// of a request that completes after all are sent, and may not be handed over as unsent.
#[test]
fn a_stalled_send_that_becomes_writable_during_detach_loses_no_bytes() {
    if let Some(error) = Loopback::<Uring>::unavailable() {
        eprintln!("NOT TESTED: the driver is unavailable on this machine: {error}");
        return;
    }
    let mut current = DriverTest::<Loopback<Uring>>::new(Answer::Echo);
    let mut next = current.another();
    // Over TCP, where room can appear at any time, also just after a send found none.
    let address = current.listener_at(SocketKind::SmallSendBuffer);
    let (mut peer, connection) = current.connection(&address);
    let mut detached = detach(&mut current, connection);
    let mut unsent = HANDOVER_COUNT * BUFFER_BYTES;
    detached.unsent = pattern(0, unsent);

    // The peer reads in a thread, except while the gate is locked.
    let gate = Arc::new(Mutex::new(()));
    let reader_gate = Arc::clone(&gate);
    let reader = std::thread::spawn(move || {
        let (mut network, _) = Loopback::<Uring>::new();
        let (mut echoed, mut end) = (vec![], None);
        while end.is_none() {
            let turn = reader_gate
                .lock()
                .expect("the other thread has not panicked");
            end = network.read(&mut peer, BUFFER_BYTES, &mut echoed);
            drop(turn);
            std::thread::yield_now();
        }
        echoed
    });
    for _ in 0..HANDOVER_COUNT * 4 {
        let connection = add_detached(&mut current, detached);
        current.turn();
        current.driver.submit(Op::Detach { connection });
        current.turn();
        // Block the reader, so that the peer makes no more room until the cancellation has
        // completed.
        let blocked_reader = gate.lock().expect("the other thread has not panicked");
        current.until_event(&Event::Detached(connection));
        drop(blocked_reader);
        detached = current
            .driver
            .take(connection)
            .expect("the connection is detached");
        // Keep enough bytes unsent, however fast the peer reads.
        if detached.unsent.len() < HANDOVER_COUNT / 2 * BUFFER_BYTES {
            detached
                .unsent
                .extend(pattern(unsent, HANDOVER_COUNT * BUFFER_BYTES));
            unsent += HANDOVER_COUNT * BUFFER_BYTES;
        }
        std::mem::swap(&mut current, &mut next);
    }
    drop(detached.socket);
    let echoed = reader.join().expect("the reader has not panicked");
    let sent = unsent - detached.unsent.len();
    assert!(sent > 0 && !detached.unsent.is_empty());
    assert!(echoed == pattern(0, sent));
}
