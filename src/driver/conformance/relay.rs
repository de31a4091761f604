//! Promises 14 to 16: bytes that the driver sends back itself, without delivering them.
//!
//! A driver that delivers every byte keeps these promises as well. That the epoll driver does relay
//! bulk traffic is tested separately, at the end.

use super::driver_test::{Answer, DriverTest, Event, pattern};
use super::harness::{Harness, SocketKind};
use super::loopback::Loopback;
use crate::driver::buffers::BUFFER_BYTES;
use crate::driver::epoll::Epoll;
use crate::driver::pipes::PIPE_COUNT_MAX;
use crate::driver::sim::End;
use crate::driver::{Closing, Driver, Op, Token};

/// A pseudorandom number, from a sequence that is the same in each run.
pub(super) fn random_below(state: &mut u64, below: usize) -> usize {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1);
    (*state >> 33) as usize % below
}

/// How many bytes of a connection were reported as relayed: received, and sent.
fn relayed<H: Harness>(test: &DriverTest<H>, connection: Token) -> (usize, usize) {
    let relayed = test.events.iter().filter_map(|event| match event {
        Event::Relayed(about, received, sent) if *about == connection => {
            Some((*received as usize, *sent as usize))
        }
        _ => None,
    });
    relayed.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
}

/// How many bytes of a connection were received, delivered and relayed together.
pub(super) fn arrived<H: Harness>(test: &DriverTest<H>, connection: Token) -> usize {
    test.received(connection).len() + relayed(test, connection).0
}

/// Makes a driver that relays bulk traffic treat a connection as such.
pub(super) fn start_bulk_traffic<H: Harness>(
    test: &mut DriverTest<H>,
    peer: &mut H::Peer,
    connection: Token,
) {
    let bytes = pattern(0, 4 * BUFFER_BYTES);
    let before = arrived(test, connection);
    test.write_all(peer, &bytes[..1]);
    test.until("the first byte is received", |test| {
        arrived(test, connection) > before
    });
    // Fill the receive buffer while paused: a driver that finds that much queued starts to relay.
    test.driver.submit(Op::Pause { connection });
    test.until_quiet();
    let written = 1 + test.network.write(peer, &bytes[1..]);
    test.receive(connection);
    let mut echoed = test.read(peer, written);
    test.until("every send completes", |test| test.unsent[&connection] == 0);
    test.echo(peer, &bytes[written..]);
    echoed.extend(&bytes[written..]);
    assert!(echoed == bytes, "the echoed bytes differ from those sent");
    test.until("every send completes", |test| test.unsent[&connection] == 0);
}

/// Writes as each peer, without reading, until every connection is stalled. Returns how many bytes
/// each peer wrote.
fn fill<H: Harness>(test: &mut DriverTest<H>, peers: &mut [(H::Peer, Token)]) -> Vec<usize> {
    let mut written = vec![0; peers.len()];
    // TCP may move bytes from one socket buffer to the other and make room again, so stop only
    // after three rounds in which nothing could be written.
    let mut rounds = 0;
    test.until("no more bytes can be written", |test| {
        rounds += 1;
        for ((peer, _), written) in peers.iter_mut().zip(&mut written) {
            let len = test
                .network
                .write(peer, &pattern(*written, 4 * BUFFER_BYTES));
            *written += len;
            rounds = if len == 0 { rounds } else { 0 };
        }
        test.until_quiet();
        rounds == 3
    });
    for (_, connection) in peers {
        assert!(
            test.has(&Event::Stalled(*connection)),
            "{}",
            test.recent_events()
        );
    }
    written
}

/// A connection with bulk traffic whose peer wrote without reading until it stalled, so that its
/// pipe holds bytes. Also returns how many bytes the peer wrote after `start_bulk_traffic`.
pub(super) fn with_full_pipe<H: Harness>(
    test: &mut DriverTest<H>,
    kind: SocketKind,
) -> (H::Peer, Token, usize) {
    let address = test.listener_at(kind);
    let (mut peer, connection) = test.connection(&address);
    start_bulk_traffic(test, &mut peer, connection);
    let mut peers = [(peer, connection)];
    let written = fill(test, &mut peers)[0];
    let [(peer, connection)] = peers;
    (peer, connection, written)
}

pub(super) fn relayed_streams_are_echoed_intact<H: Harness>() {
    for kind in [
        SocketKind::Ipv4,
        SocketKind::LargeReceiveBuffer,
        SocketKind::SmallSendBuffer,
        SocketKind::Unix,
    ] {
        let mut test = DriverTest::<H>::new(Answer::Relay);
        let address = test.listener_at(kind);
        let mut random = 7;
        for size in [1, 2, 1000, 65_535, 65_536, 65_537, 200_000, 5_000_000] {
            if kind != SocketKind::LargeReceiveBuffer && size > 1_000_000 {
                continue;
            }
            let (mut peer, connection) = test.connection(&address);
            let bytes = pattern(size, size);
            let (mut written, mut echoed) = (0, vec![]);
            test.until("all bytes are echoed", |test| {
                // Small and large writes, so that relaying starts and stops.
                let len_max = [10, 5_000, 300_000][random_below(&mut random, 3)];
                let end = (written + 1 + random_below(&mut random, len_max)).min(size);
                written += test.network.write(&mut peer, &bytes[written..end]);
                if random_below(&mut random, 4) > 0 {
                    let max = 1 + random_below(&mut random, 300_000);
                    let seen_end = test.network.read(&mut peer, max, &mut echoed);
                    assert_eq!(seen_end, None, "after {} of {size} bytes", echoed.len());
                }
                echoed.len() >= size
            });
            assert!(
                echoed == bytes,
                "the echo of {size} bytes at {kind:?} differs"
            );
            test.until("every send completes", |test| test.unsent[&connection] == 0);
            let (received, sent) = relayed(&test, connection);
            assert_eq!(
                received, sent,
                "relayed bytes are not reported once as received and once as sent"
            );
            assert_eq!(arrived(&test, connection), size);
            test.close(connection, Closing::Now);
            test.events.clear();
        }
        test.assert_all_returned();
    }
}

pub(super) fn relayed_messages_of_every_size_are_echoed_intact<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Relay);
    let address = test.listener_at(SocketKind::LargeReceiveBuffer);
    let (mut peer, connection) = test.connection(&address);
    start_bulk_traffic(&mut test, &mut peer, connection);
    let around = (65_500..65_600).step_by(9);
    let sizes = (1..200_000).step_by(9_973).chain(around);
    for (index, size) in sizes.enumerate() {
        test.echo(&mut peer, &pattern(index, size));
        // Small messages in between, so that relaying stops and starts again.
        for small in 0..index % 7 {
            test.echo(&mut peer, &pattern(small, 1 + small * 100));
        }
    }
    test.until("every send completes", |test| test.unsent[&connection] == 0);
    test.assert_all_returned();
}

pub(super) fn the_end_is_reported_once_after_all_relayed_bytes<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Relay);
    let address = test.listener_at(SocketKind::LargeReceiveBuffer);
    for size in [0, 1, 70_000, 1_000_000] {
        let (mut peer, connection) = test.connection(&address);
        test.echo(&mut peer, &pattern(0, size));
        let rest = pattern(0, 50_000);
        test.write_all(&mut peer, &rest);
        test.network.half_close(&mut peer);
        let mut echoed = vec![];
        test.until("the end is reported", |test| {
            test.network.read(&mut peer, BUFFER_BYTES, &mut echoed);
            test.has(&Event::Ended(connection))
        });
        // Every byte is received before the end, and the end is reported once.
        assert_eq!(arrived(&test, connection), size + rest.len());
        echoed.extend(test.read(&mut peer, rest.len() - echoed.len()));
        assert!(echoed == rest);
        test.until("every send completes", |test| test.unsent[&connection] == 0);
        test.until_quiet();
        let arrivals = test.events.iter().rposition(|event| match event {
            Event::Received(about, _) => *about == connection,
            Event::Relayed(about, received, _) => *about == connection && *received > 0,
            _ => false,
        });
        let ended = |event: &Event| *event == Event::Ended(connection);
        assert!(arrivals < test.events.iter().position(ended));
        assert_eq!(test.count(ended), 1);
        test.close(connection, Closing::Now);
        assert_eq!(test.read_end(&mut peer), (vec![], End::Fin));
    }
    test.assert_all_returned();
}

pub(super) fn a_half_close_behind_a_full_pipe_loses_no_bytes<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Relay);
    let (mut peer, connection, written) = with_full_pipe(&mut test, SocketKind::LargeReceiveBuffer);
    test.network.half_close(&mut peer);
    test.until_quiet();
    assert!(
        !test.has(&Event::Ended(connection)),
        "Ended before all bytes were received"
    );
    assert!(test.read(&mut peer, written) == pattern(0, written));
    test.until_event(&Event::Ended(connection));
    test.until("every send completes", |test| test.unsent[&connection] == 0);
    test.close(connection, Closing::Now);
    test.assert_all_returned();
}

pub(super) fn a_relayed_peer_that_does_not_read_stalls_and_does_not_delay_others<H: Harness>() {
    for kind in [SocketKind::LargeReceiveBuffer, SocketKind::Unix] {
        let mut test = DriverTest::<H>::new(Answer::Relay);
        let (mut peer, connection, written) = with_full_pipe(&mut test, kind);
        let stalled = |event: &Event| *event == Event::Stalled(connection);
        let stalls = test.count(stalled);
        assert!(test.unsent[&connection] <= BUFFER_BYTES as u32);
        let address = test.listener_at(kind);
        let (mut other, _) = test.connection(&address);
        test.echo(&mut other, &pattern(3, 400_000));
        // TCP may move further bytes to the peer at any time, and the rest stalls again.
        if kind == SocketKind::Unix {
            assert_eq!(
                test.count(stalled),
                stalls,
                "one stall was reported more than once"
            );
        }
        assert!(test.read(&mut peer, written) == pattern(0, written));
        test.until("every send completes", |test| test.unsent[&connection] == 0);
        test.assert_all_returned();
    }
}

pub(super) fn receive_ends_relaying_and_held_bytes_are_still_sent<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Relay);
    let (mut peer, connection, written) = with_full_pipe(&mut test, SocketKind::LargeReceiveBuffer);
    test.stop_relaying(connection);
    // Bytes that were taken before may still be reported.
    test.until_quiet();
    let before = relayed(&test, connection).0;
    assert!(test.read(&mut peer, written) == pattern(0, written));
    for size in [1, 100_000, 3, 200_000] {
        test.echo(&mut peer, &pattern(size, size));
    }
    test.until("every send completes", |test| test.unsent[&connection] == 0);
    assert_eq!(
        relayed(&test, connection).0,
        before,
        "bytes were relayed after Receive"
    );
    test.assert_all_returned();
}

pub(super) fn pause_ends_relaying_until_it_is_requested_again<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Relay);
    let address = test.listener_at(SocketKind::LargeReceiveBuffer);
    let (mut peer, connection) = test.connection(&address);
    start_bulk_traffic(&mut test, &mut peer, connection);
    test.driver.submit(Op::Pause { connection });
    test.until_quiet();
    let before = arrived(&test, connection);
    test.write_all(&mut peer, b"a request");
    test.until_quiet();
    assert_eq!(
        arrived(&test, connection),
        before,
        "bytes were received after Pause"
    );
    test.driver.submit(Op::Relay { connection });
    assert_eq!(test.read(&mut peer, 9), b"a request");
}

pub(super) fn a_shut_down_waits_until_the_pipe_is_empty<H: Harness>() {
    for kind in [SocketKind::LargeReceiveBuffer, SocketKind::Unix] {
        let mut test = DriverTest::<H>::new(Answer::Relay);
        let (mut peer, connection, written) = with_full_pipe(&mut test, kind);
        // Paused, because bytes delivered from now on would have to be answered after the FIN.
        test.pause(connection);
        test.until_quiet();
        let arrived = arrived(&test, connection);
        test.driver.submit(Op::ShutDown { connection });
        let (bytes, end) = test.read_end(&mut peer);
        let before = arrived - 4 * BUFFER_BYTES;
        assert_eq!((bytes.len(), end), (before, End::Fin));
        assert!(before <= written && bytes == pattern(0, before));
    }
}

pub(super) fn close_discards_the_bytes_in_the_pipe<H: Harness>() {
    for how in [Closing::Now, Closing::Reset] {
        let mut test = DriverTest::<H>::new(Answer::Relay);
        let (_peer, connection, _) = with_full_pipe(&mut test, SocketKind::LargeReceiveBuffer);
        // A send that is queued behind the pipe is discarded as well.
        test.answer = Answer::Keep;
        let (_, other) = test.listener(None);
        let (mut other, _) = test.connection(&other);
        let buffer = test.buffer(&mut other, b"never sent");
        test.answer = Answer::Relay;
        test.send(connection, buffer);
        test.until_quiet();
        test.close(connection, how);
        test.until_quiet();
        assert_eq!(test.events.last(), Some(&Event::Closed(connection)));
        // The next connection, which may lease the same pipe, gets none of those bytes.
        let address = test.listener_at(SocketKind::LargeReceiveBuffer);
        let (mut peer, connection) = test.connection(&address);
        start_bulk_traffic(&mut test, &mut peer, connection);
        test.assert_all_returned();
    }
}

pub(super) fn a_reset_during_relaying_is_reported_as_one_failed<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Relay);
    let (peer, connection, _) = with_full_pipe(&mut test, SocketKind::LargeReceiveBuffer);
    test.network.reset(peer);
    test.until_event(&Event::Failed(connection));
    test.until_quiet();
    let about = |event: &Event| matches!(event, Event::Failed(_) | Event::Ended(_));
    assert_eq!(test.count(about), 1);
    test.close(connection, Closing::Now);
    // The same for a connection whose pipe is empty.
    let address = test.listener_at(SocketKind::LargeReceiveBuffer);
    let (mut peer, connection) = test.connection(&address);
    start_bulk_traffic(&mut test, &mut peer, connection);
    test.network.reset(peer);
    test.until_event(&Event::Failed(connection));
    test.close(connection, Closing::Reset);
    test.assert_all_returned();
}

pub(super) fn without_free_pipes_bytes_are_delivered<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Relay);
    let address = test.listener_at(SocketKind::Unix);
    // More stalled connections than there are pipes: each pipe holds bytes.
    let mut stalled: Vec<_> = (0..PIPE_COUNT_MAX + 6)
        .map(|_| test.connection(&address))
        .collect();
    for (peer, connection) in &mut stalled {
        start_bulk_traffic(&mut test, peer, *connection);
    }
    let written = fill(&mut test, &mut stalled);
    let (mut peer, connection) = test.connection(&address);
    start_bulk_traffic(&mut test, &mut peer, connection);
    test.echo(&mut peer, &pattern(5, 1_000_000));
    for ((peer, connection), written) in stalled.iter_mut().zip(written) {
        assert!(test.read(peer, written) == pattern(0, written));
        test.until("every send completes", |test| test.unsent[connection] == 0);
    }
    test.assert_all_returned();
}

pub(super) fn without_descriptors_for_pipes_bytes_are_delivered<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Relay);
    if !test
        .network
        .in_own_process("without_descriptors_for_pipes_bytes_are_delivered")
    {
        return;
    }
    let address = test.listener_at(SocketKind::LargeReceiveBuffer);
    let (mut peer, connection) = test.connection(&address);
    test.network.exhaust_descriptors(true);
    start_bulk_traffic(&mut test, &mut peer, connection);
    test.echo(&mut peer, &pattern(0, 1_000_000));
    test.network.exhaust_descriptors(false);
    test.assert_all_returned();
}

pub(super) fn unused_pipes_are_closed_to_accept_a_client<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Relay);
    if !test
        .network
        .in_own_process("unused_pipes_are_closed_to_accept_a_client")
    {
        return;
    }
    let address = test.listener_at(SocketKind::LargeReceiveBuffer);
    let (mut peer, connection) = test.connection(&address);
    start_bulk_traffic(&mut test, &mut peer, connection);
    let relays = relayed(&test, connection).0 > 0;
    let _client = test.connect(&address);
    // The client can be accepted only if the driver closes a pipe that holds no bytes.
    test.network.limit_descriptors_to_those_open();
    test.until_quiet();
    test.network.exhaust_descriptors(false);
    if relays {
        assert_eq!(test.accepted().len(), 2, "{}", test.recent_events());
    }
}

pub(super) fn closing_relayed_connections_leaks_no_descriptors<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Relay);
    if !test
        .network
        .in_own_process("closing_relayed_connections_leaks_no_descriptors")
    {
        return;
    }
    let address = test.listener_at(SocketKind::LargeReceiveBuffer);
    let mut counts = vec![];
    for how in [Closing::Now, Closing::Reset, Closing::Now] {
        let (mut peer, connection) = test.connection(&address);
        start_bulk_traffic(&mut test, &mut peer, connection);
        fill(&mut test, &mut [(peer, connection)]);
        test.close(connection, how);
        counts.push(test.network.descriptors());
    }
    assert!(
        counts.iter().all(|&count| count == counts[0]),
        "open descriptors after each close: {counts:?}"
    );
}

/// Relaying is optional, so no promise covers whether it happens.
#[test]
fn epoll_relays_bulk_traffic_and_delivers_small_messages() {
    for kind in [SocketKind::LargeReceiveBuffer, SocketKind::Unix] {
        let mut test = DriverTest::<Loopback<Epoll>>::new(Answer::Relay);
        let address = test.listener_at(kind);
        let (mut peer, connection) = test.connection(&address);
        for size in [1, 1000, 10_000] {
            test.echo(&mut peer, &pattern(0, size));
        }
        assert_eq!(relayed(&test, connection), (0, 0));
        start_bulk_traffic(&mut test, &mut peer, connection);
        test.echo(&mut peer, &pattern(0, 1_000_000));
        test.until("every send completes", |test| test.unsent[&connection] == 0);
        let (received, sent) = relayed(&test, connection);
        assert!(
            received > 500_000 && received == sent,
            "{received} bytes relayed as received, {sent} as sent"
        );
        // After several small messages the connection no longer counts as bulk.
        for _ in 0..10 {
            test.echo(&mut peer, b"small");
        }
        let before = relayed(&test, connection).0;
        test.echo(&mut peer, b"small");
        assert_eq!(relayed(&test, connection).0, before);
        test.assert_all_returned();
    }
}
