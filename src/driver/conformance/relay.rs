//! The promises of 14 to 16: what is sent back unseen.
//!
//! A driver that shows everything keeps them as well. That a driver does relay what is in bulk is a
//! test of its own, at the end.

use super::harness::{Harness, Loopback, Place};
use super::stage::{Answer, Event, Stage, pattern};
use crate::driver::buffers::BUFFER_BYTES;
use crate::driver::epoll::Epoll;
use crate::driver::pipes::PIPE_COUNT_MAX;
use crate::driver::sim::End;
use crate::driver::{Closing, Driver, Op, Token};

/// Numbers that look random and are the same each time.
pub(super) fn scatter(state: &mut u64, below: usize) -> usize {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1);
    (*state >> 33) as usize % below
}

/// Bytes of this connection that were relayed, as received and as sent.
fn relayed<H: Harness>(stage: &Stage<H>, connection: Token) -> (usize, usize) {
    let relayed = stage.events.iter().filter_map(|event| match event {
        Event::Relayed(about, received, sent) if *about == connection => {
            Some((*received as usize, *sent as usize))
        }
        _ => None,
    });
    relayed.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
}

/// All bytes of this connection that arrived, in one way or the other.
pub(super) fn arrived<H: Harness>(stage: &Stage<H>, connection: Token) -> usize {
    stage.received(connection).len() + relayed(stage, connection).0
}

/// Gets a connection into bulk, where the driver knows such a thing.
pub(super) fn get_into_bulk<H: Harness>(
    stage: &mut Stage<H>,
    peer: &mut H::Peer,
    connection: Token,
) {
    let bytes = pattern(0, 4 * BUFFER_BYTES);
    let before = arrived(stage, connection);
    stage.write_all(peer, &bytes[..1]);
    stage.until("it arrives", |stage| arrived(stage, connection) > before);
    // Much is there before the first byte is looked at.
    stage.driver.submit(Op::Pause { connection });
    stage.until_quiet();
    let written = 1 + stage.net.write(peer, &bytes[1..]);
    stage.receive(connection);
    let mut back = stage.read(peer, written);
    stage.until("all is Sent", |stage| stage.owed[&connection] == 0);
    stage.echo(peer, &bytes[written..]);
    back.extend(&bytes[written..]);
    assert!(
        back == bytes,
        "the bytes that came back are those that were sent"
    );
    stage.until("all is Sent", |stage| stage.owed[&connection] == 0);
}

/// Writes for peers that do not read, until all has come to rest. Says how much each wrote.
fn fill<H: Harness>(stage: &mut Stage<H>, peers: &mut [(H::Peer, Token)]) -> Vec<usize> {
    let mut written = vec![0; peers.len()];
    let mut rounds = 0;
    stage.until("nothing can be written any more", |stage| {
        rounds += 1;
        for ((peer, _), written) in peers.iter_mut().zip(&mut written) {
            let some = stage.net.write(peer, &pattern(*written, 4 * BUFFER_BYTES));
            *written += some;
            rounds = if some == 0 { rounds } else { 0 };
        }
        stage.until_quiet();
        rounds == 3
    });
    for (_, connection) in peers {
        assert!(stage.has(&Event::Stalled(*connection)), "{}", stage.seen());
    }
    written
}

/// A connection in bulk whose peer wrote and did not read until all came to rest.
pub(super) fn full<H: Harness>(stage: &mut Stage<H>, place: Place) -> (H::Peer, Token, usize) {
    let address = stage.listener_at(place);
    let (mut peer, connection) = stage.connection(&address);
    get_into_bulk(stage, &mut peer, connection);
    let mut peers = [(peer, connection)];
    let written = fill(stage, &mut peers)[0];
    let [(peer, connection)] = peers;
    (peer, connection, written)
}

pub(super) fn relayed_streams_come_back_whole<H: Harness>() {
    for place in [Place::V4, Place::Wide, Place::Narrow, Place::Unix] {
        let mut stage = Stage::<H>::new(Answer::Relay);
        let address = stage.listener_at(place);
        let mut random = 7;
        for size in [1, 2, 1000, 65_535, 65_536, 65_537, 200_000, 5_000_000] {
            if place != Place::Wide && size > 1_000_000 {
                continue;
            }
            let (mut peer, connection) = stage.connection(&address);
            let bytes = pattern(size, size);
            let (mut written, mut back) = (0, vec![]);
            stage.until("all came back", |stage| {
                // Now a little, now much: in bulk and out of it.
                let most = [10, 5_000, 300_000][scatter(&mut random, 3)];
                let end = (written + 1 + scatter(&mut random, most)).min(size);
                written += stage.net.write(&mut peer, &bytes[written..end]);
                if scatter(&mut random, 4) > 0 {
                    let max = 1 + scatter(&mut random, 300_000);
                    let seen = stage.net.read(&mut peer, max, &mut back);
                    assert_eq!(seen, None, "after {} of {size} bytes", back.len());
                }
                back.len() >= size
            });
            assert!(back == bytes, "{size} bytes at {place:?}");
            stage.until("all is Sent", |stage| stage.owed[&connection] == 0);
            let (received, sent) = relayed(&stage, connection);
            assert_eq!(received, sent, "each relayed byte is accounted for");
            assert_eq!(arrived(&stage, connection), size);
            stage.close(connection, Closing::Now);
            stage.events.clear();
        }
        stage.assert_all_home();
    }
}

pub(super) fn relayed_messages_of_every_size_come_back_exact<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Relay);
    let address = stage.listener_at(Place::Wide);
    let (mut peer, connection) = stage.connection(&address);
    get_into_bulk(&mut stage, &mut peer, connection);
    let around = (65_500..65_600).step_by(9);
    let sizes = (1..200_000).step_by(9_973).chain(around);
    for (index, size) in sizes.enumerate() {
        stage.echo(&mut peer, &pattern(index, size));
        // Some small ones between them, so that the border is crossed both ways.
        for small in 0..index % 7 {
            stage.echo(&mut peer, &pattern(small, 1 + small * 100));
        }
    }
    stage.until("all is Sent", |stage| stage.owed[&connection] == 0);
    stage.assert_all_home();
}

pub(super) fn the_end_comes_once_and_after_all_relayed_bytes<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Relay);
    let address = stage.listener_at(Place::Wide);
    for size in [0, 1, 70_000, 1_000_000] {
        let (mut peer, connection) = stage.connection(&address);
        stage.echo(&mut peer, &pattern(0, size));
        let rest = pattern(0, 50_000);
        stage.write_all(&mut peer, &rest);
        stage.net.half_close(&mut peer);
        let mut back = vec![];
        stage.until("the end is reported", |stage| {
            stage.net.read(&mut peer, BUFFER_BYTES, &mut back);
            stage.has(&Event::Ended(connection))
        });
        assert_eq!(arrived(&stage, connection), size + rest.len());
        back.extend(stage.read(&mut peer, rest.len() - back.len()));
        assert!(back == rest);
        stage.until("all is Sent", |stage| stage.owed[&connection] == 0);
        stage.until_quiet();
        let arrivals = stage.events.iter().rposition(|event| match event {
            Event::Received(about, _) => *about == connection,
            Event::Relayed(about, received, _) => *about == connection && *received > 0,
            _ => false,
        });
        let ended = |event: &Event| *event == Event::Ended(connection);
        assert!(arrivals < stage.events.iter().position(ended));
        assert_eq!(stage.count(ended), 1);
        stage.close(connection, Closing::Now);
        assert_eq!(stage.read_end(&mut peer), (vec![], End::Fin));
    }
    stage.assert_all_home();
}

pub(super) fn a_half_close_behind_a_full_pipe_loses_nothing<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Relay);
    let (mut peer, connection, written) = full(&mut stage, Place::Wide);
    stage.net.half_close(&mut peer);
    stage.until_quiet();
    assert!(
        !stage.has(&Event::Ended(connection)),
        "there are bytes before the end"
    );
    assert!(stage.read(&mut peer, written) == pattern(0, written));
    stage.until_event(&Event::Ended(connection));
    stage.until("all is Sent", |stage| stage.owed[&connection] == 0);
    stage.close(connection, Closing::Now);
    stage.assert_all_home();
}

pub(super) fn a_relayed_peer_that_does_not_read_is_not_read_and_others_go_on<H: Harness>() {
    for place in [Place::Wide, Place::Unix] {
        let mut stage = Stage::<H>::new(Answer::Relay);
        let (mut peer, connection, written) = full(&mut stage, place);
        let stalled = |event: &Event| *event == Event::Stalled(connection);
        let stalls = stage.count(stalled);
        assert!(stage.owed[&connection] <= BUFFER_BYTES as u32);
        let address = stage.listener_at(place);
        let (mut other, _) = stage.connection(&address);
        stage.echo(&mut other, &pattern(3, 400_000));
        // TCP may yet move some bytes to the peer, in its own time.
        if place == Place::Unix {
            assert_eq!(stage.count(stalled), stalls, "a stall is said once");
        }
        assert!(stage.read(&mut peer, written) == pattern(0, written));
        stage.until("all is Sent", |stage| stage.owed[&connection] == 0);
        stage.assert_all_home();
    }
}

pub(super) fn receive_ends_relaying_and_what_is_held_still_goes_out<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Relay);
    let (mut peer, connection, written) = full(&mut stage, Place::Wide);
    stage.show(connection);
    // What was taken before that may still be said.
    stage.until_quiet();
    let before = relayed(&stage, connection).0;
    assert!(stage.read(&mut peer, written) == pattern(0, written));
    for size in [1, 100_000, 3, 200_000] {
        stage.echo(&mut peer, &pattern(size, size));
    }
    stage.until("all is Sent", |stage| stage.owed[&connection] == 0);
    assert_eq!(
        relayed(&stage, connection).0,
        before,
        "after Receive every byte is shown"
    );
    stage.assert_all_home();
}

pub(super) fn rest_ends_relaying_until_it_is_asked_for_again<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Relay);
    let address = stage.listener_at(Place::Wide);
    let (mut peer, connection) = stage.connection(&address);
    get_into_bulk(&mut stage, &mut peer, connection);
    stage.driver.submit(Op::Pause { connection });
    stage.until_quiet();
    let before = arrived(&stage, connection);
    stage.write_all(&mut peer, b"patience");
    stage.until_quiet();
    assert_eq!(arrived(&stage, connection), before);
    stage.driver.submit(Op::Relay { connection });
    assert_eq!(stage.read(&mut peer, 8), b"patience");
}

pub(super) fn a_shut_down_waits_until_the_pipe_is_empty<H: Harness>() {
    for place in [Place::Wide, Place::Unix] {
        let mut stage = Stage::<H>::new(Answer::Relay);
        let (mut peer, connection, written) = full(&mut stage, place);
        // Nothing more may be shown, or it would have to be answered after the last word.
        stage.rest(connection);
        stage.until_quiet();
        let arrived = arrived(&stage, connection);
        stage.driver.submit(Op::ShutDown { connection });
        let (bytes, end) = stage.read_end(&mut peer);
        let before = arrived - 4 * BUFFER_BYTES;
        assert_eq!((bytes.len(), end), (before, End::Fin));
        assert!(before <= written && bytes == pattern(0, before));
    }
}

pub(super) fn a_close_discards_what_the_pipe_holds<H: Harness>() {
    for how in [Closing::Now, Closing::Reset] {
        let mut stage = Stage::<H>::new(Answer::Relay);
        let (_peer, connection, _) = full(&mut stage, Place::Wide);
        // And what was to be sent behind it.
        stage.answer = Answer::Keep;
        let (_, other) = stage.listener(None);
        let (mut other, _) = stage.connection(&other);
        let buffer = stage.buffer(&mut other, b"never sent");
        stage.answer = Answer::Relay;
        stage.send(connection, buffer);
        stage.until_quiet();
        stage.close(connection, how);
        stage.until_quiet();
        assert_eq!(stage.events.last(), Some(&Event::Closed(connection)));
        // Who comes next finds none of it.
        let address = stage.listener_at(Place::Wide);
        let (mut peer, connection) = stage.connection(&address);
        get_into_bulk(&mut stage, &mut peer, connection);
        stage.assert_all_home();
    }
}

pub(super) fn a_reset_amid_relaying_is_one_failed<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Relay);
    let (peer, connection, _) = full(&mut stage, Place::Wide);
    stage.net.reset(peer);
    stage.until_event(&Event::Failed(connection));
    stage.until_quiet();
    let about = |event: &Event| matches!(event, Event::Failed(_) | Event::Ended(_));
    assert_eq!(stage.count(about), 1);
    stage.close(connection, Closing::Now);
    let address = stage.listener_at(Place::Wide);
    let (mut peer, connection) = stage.connection(&address);
    get_into_bulk(&mut stage, &mut peer, connection);
    stage.net.reset(peer);
    stage.until_event(&Event::Failed(connection));
    stage.close(connection, Closing::Reset);
    stage.assert_all_home();
}

pub(super) fn when_pipes_run_out_bytes_are_shown<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Relay);
    let address = stage.listener_at(Place::Unix);
    let mut stuck: Vec<_> = (0..PIPE_COUNT_MAX + 6)
        .map(|_| stage.connection(&address))
        .collect();
    for (peer, connection) in &mut stuck {
        get_into_bulk(&mut stage, peer, *connection);
    }
    let written = fill(&mut stage, &mut stuck);
    let (mut peer, connection) = stage.connection(&address);
    get_into_bulk(&mut stage, &mut peer, connection);
    stage.echo(&mut peer, &pattern(5, 1_000_000));
    for ((peer, connection), written) in stuck.iter_mut().zip(written) {
        assert!(stage.read(peer, written) == pattern(0, written));
        stage.until("all is Sent", |stage| stage.owed[connection] == 0);
    }
    stage.assert_all_home();
}

pub(super) fn without_descriptors_bytes_are_shown<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Relay);
    if !stage.net.alone("without_descriptors_bytes_are_shown") {
        return;
    }
    let address = stage.listener_at(Place::Wide);
    let (mut peer, connection) = stage.connection(&address);
    stage.net.exhaust_descriptors(true);
    get_into_bulk(&mut stage, &mut peer, connection);
    stage.echo(&mut peer, &pattern(0, 1_000_000));
    stage.net.exhaust_descriptors(false);
    stage.assert_all_home();
}

pub(super) fn pipes_at_home_make_room_for_a_client<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Relay);
    if !stage.net.alone("pipes_at_home_make_room_for_a_client") {
        return;
    }
    let address = stage.listener_at(Place::Wide);
    let (mut peer, connection) = stage.connection(&address);
    get_into_bulk(&mut stage, &mut peer, connection);
    let relays = relayed(&stage, connection).0 > 0;
    let _client = stage.connect(&address);
    stage.net.freeze_descriptors();
    stage.until_quiet();
    stage.net.exhaust_descriptors(false);
    if relays {
        assert_eq!(stage.accepted().len(), 2, "{}", stage.seen());
    }
}

pub(super) fn descriptors_of_pipes_come_home<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Relay);
    if !stage.net.alone("descriptors_of_pipes_come_home") {
        return;
    }
    let address = stage.listener_at(Place::Wide);
    let mut counts = vec![];
    for how in [Closing::Now, Closing::Reset, Closing::Now] {
        let (mut peer, connection) = stage.connection(&address);
        get_into_bulk(&mut stage, &mut peer, connection);
        fill(&mut stage, &mut [(peer, connection)]);
        stage.close(connection, how);
        counts.push(stage.net.descriptors());
    }
    assert!(counts.iter().all(|&count| count == counts[0]), "{counts:?}");
}

/// Relaying is an allowance, so no promise tells whether it is used.
#[test]
fn epoll_relays_what_is_in_bulk_and_shows_what_is_small() {
    for place in [Place::Wide, Place::Unix] {
        let mut stage = Stage::<Loopback<Epoll>>::new(Answer::Relay);
        let address = stage.listener_at(place);
        let (mut peer, connection) = stage.connection(&address);
        for size in [1, 1000, 10_000] {
            stage.echo(&mut peer, &pattern(0, size));
        }
        assert_eq!(relayed(&stage, connection), (0, 0));
        get_into_bulk(&mut stage, &mut peer, connection);
        stage.echo(&mut peer, &pattern(0, 1_000_000));
        stage.until("all is Sent", |stage| stage.owed[&connection] == 0);
        let (received, sent) = relayed(&stage, connection);
        assert!(received > 500_000 && received == sent, "{received} {sent}");
        for _ in 0..10 {
            stage.echo(&mut peer, b"small");
        }
        let before = relayed(&stage, connection).0;
        stage.echo(&mut peer, b"small");
        assert_eq!(relayed(&stage, connection).0, before);
        stage.assert_all_home();
    }
}
