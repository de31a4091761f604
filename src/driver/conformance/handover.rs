//! The promises of 18 and 19: a connection leaves one driver with all that its peer is owed, and
//! another goes on with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::harness::{Harness, Loopback, Place, SocketOf};
use super::relay::{arrived, full, get_into_bulk, scatter};
use super::stage::{Answer, Event, Stage, pattern};
use crate::driver::buffers::BUFFER_BYTES;
use crate::driver::epoll::Epoll;
use crate::driver::sim::End;
use crate::driver::uring::Uring;
use crate::driver::{Closing, Detached, Driver, Op, Token};

/// More than a buffer holds, and more than any socket takes at once.
const OWED_BYTES: usize = 600 * 1024;

/// More connections than have their turn in one wait.
const CROWD: usize = 200;

/// How often a connection changes its driver.
const MOVES: usize = 50;

/// Lets a connection go, with all that its peer is owed.
pub(super) fn detach<H: Harness>(stage: &mut Stage<H>, connection: Token) -> Detached<SocketOf<H>> {
    stage.driver.submit(Op::Detach { connection });
    until_detached(stage, connection);
    let detached = stage.driver.take(connection).expect("it is detached");
    let owed = stage.owed.remove(&connection).unwrap_or(0);
    assert!(
        detached.unsent.len() <= owed as usize,
        "{} of {owed} bytes are owed",
        detached.unsent.len()
    );
    detached
}

/// What is taken is shown in an earlier wait than the one that says `Detached`, and that is the last
/// that is heard.
pub(super) fn until_detached<H: Harness>(stage: &mut Stage<H>, connection: Token) {
    let detached = Event::Detached(connection);
    let mut before = stage.events.len();
    stage.until("it is detached", |stage| {
        let turn = &stage.events[before..];
        before = stage.events.len();
        let said = turn.contains(&detached);
        let shown =
            |event: &Event| matches!(event, Event::Received(about, _) if *about == connection);
        assert!(
            !(said && turn.iter().any(shown)),
            "what was shown in this wait is not yet answered: {}",
            stage.seen()
        );
        said
    });
    assert_eq!(about(stage, connection).last(), Some(&&detached));
}

fn about<H: Harness>(stage: &Stage<H>, token: Token) -> Vec<&Event> {
    let events = stage.events.iter();
    events.filter(|event| event.is_about(token)).collect()
}

/// Goes on with a connection, but does not yet receive.
pub(super) fn take_in<H: Harness>(stage: &mut Stage<H>, detached: Detached<SocketOf<H>>) -> Token {
    let len = detached.unsent.len() as u32;
    let connection = stage
        .driver
        .add_connection(detached.socket, detached.unsent);
    stage.owed.insert(connection, len);
    connection
}

/// Moves a connection from a driver to another, where it is received from; and how much is owed.
fn hand_over<A: Harness, B: Harness>(
    from: &mut Stage<A>,
    to: &mut Stage<B>,
    connection: Token,
) -> (Token, usize)
where
    B::Driver: Driver<Socket = SocketOf<A>>,
{
    let detached = detach(from, connection);
    let owed = detached.unsent.len();
    let connection = take_in(to, detached);
    to.receive(connection);
    (connection, owed)
}

/// A peer that writes and reads by chance, whoever serves it.
struct Talk {
    written: usize,
    back: Vec<u8>,
    random: u64,
}

impl Talk {
    fn new(written: usize) -> Self {
        Self {
            written,
            back: vec![],
            random: 18,
        }
    }

    /// Some turns; what is written last is there when they are over, and nobody has looked at it.
    fn go_on<H: Harness>(&mut self, stage: &mut Stage<H>, peer: &mut H::Peer) {
        let reads = scatter(&mut self.random, 3) > 0;
        for _ in 0..scatter(&mut self.random, 6) {
            self.write(stage, peer);
            if reads {
                let max = 1 + scatter(&mut self.random, 100_000);
                let seen = stage.net.read(peer, max, &mut self.back);
                assert_eq!(seen, None, "after {} bytes", self.back.len());
            }
            stage.turn();
        }
        self.write(stage, peer);
    }

    fn write<H: Harness>(&mut self, stage: &mut Stage<H>, peer: &mut H::Peer) {
        let most = [10, 5_000, 300_000][scatter(&mut self.random, 3)];
        let bytes = pattern(self.written, 1 + scatter(&mut self.random, most));
        self.written += stage.net.write(peer, &bytes);
    }

    /// Reads what is missing, and compares.
    fn finish<H: Harness>(mut self, stage: &mut Stage<H>, peer: &mut H::Peer, connection: Token) {
        let missing = self.written - self.back.len();
        self.back.extend(stage.read(peer, missing));
        assert!(
            self.back == pattern(0, self.written),
            "the bytes that came back are those that were sent"
        );
        stage.until("all is Sent", |stage| stage.owed[&connection] == 0);
        stage.until_quiet();
        let mut more = vec![];
        assert_eq!(stage.net.read(peer, usize::MAX, &mut more), None);
        assert!(more.is_empty(), "nothing comes twice");
        stage.close(connection, Closing::Now);
        stage.assert_all_home();
    }
}

// 18. Leaving, and 19. going on.

pub(super) fn an_idle_connection_goes_on_in_another_driver<H: Harness>() {
    for place in [Place::V4, Place::Unix] {
        let mut from = Stage::<H>::new(Answer::Echo);
        let mut to = from.beside();
        let address = from.listener_at(place);
        let (mut peer, first) = from.connection(&address);
        from.echo(&mut peer, b"before");
        from.until("all is Sent", |stage| stage.owed[&first] == 0);
        let (connection, owed) = hand_over(&mut from, &mut to, first);
        assert_eq!(owed, 0);
        to.echo(&mut peer, b"after");
        to.echo(&mut peer, &pattern(0, 200_000));
        from.until_quiet();
        assert_eq!(
            about(&from, first).last(),
            Some(&&Event::Detached(first)),
            "nothing is heard of who has left"
        );
        let (_other, second) = from.connection(&address);
        assert_eq!(second, first.next(), "the slot is free again");
        to.close(connection, Closing::Now);
        assert_eq!(to.read_end(&mut peer), (vec![], End::Fin));
        from.close(second, Closing::Now);
        from.assert_all_home();
        to.assert_all_home();
    }
}

pub(super) fn traffic_amid_many_hand_overs_comes_back_whole<H: Harness>() {
    for place in [Place::V4, Place::Narrow, Place::Unix] {
        let mut here = Stage::<H>::new(Answer::Echo);
        let mut there = here.beside();
        let address = here.listener_at(place);
        let (mut peer, mut connection) = here.connection(&address);
        let mut talk = Talk::new(0);
        let mut carried = 0;
        for _ in 0..MOVES {
            talk.go_on(&mut here, &mut peer);
            let (moved, owed) = hand_over(&mut here, &mut there, connection);
            (connection, carried) = (moved, carried + owed);
            std::mem::swap(&mut here, &mut there);
        }
        assert!(carried > 0, "something was owed");
        talk.finish(&mut here, &mut peer, connection);
        there.assert_all_home();
    }
}

pub(super) fn a_crowd_leaves_amid_its_traffic<H: Harness>() {
    let mut from = Stage::<H>::new(Answer::Echo);
    let mut to = from.beside();
    let (_, address) = from.listener(None);
    let mut crowd: Vec<_> = (0..CROWD).map(|_| from.connection(&address)).collect();
    for (index, (peer, _)) in crowd.iter_mut().enumerate() {
        assert_eq!(from.net.write(peer, &pattern(index, 100)), 100);
    }
    // More is ready than one wait says; some leave while theirs is.
    from.turn();
    from.events.clear();
    let mut staying: Vec<Token> = crowd.iter().map(|(_, connection)| *connection).collect();
    let mut detached = HashMap::new();
    from.until("all are detached", |stage| {
        let turn = std::mem::take(&mut stage.events);
        for (index, event) in turn.iter().enumerate() {
            if let Event::Detached(connection) = *event {
                let is_shown = |event: &Event| matches!(event, Event::Received(about, _) if *about == connection);
                assert!(!turn.iter().any(is_shown), "it is not yet answered");
                let mut behind = turn[index + 1..].iter();
                assert!(!behind.any(|event| event.is_about(connection)));
                let taken = stage.driver.take(connection).expect("it is detached");
                detached.insert(connection, taken);
            }
        }
        for connection in staying.split_off(staying.len().saturating_sub(5)) {
            stage.driver.submit(Op::Detach { connection });
        }
        detached.len() == crowd.len()
    });
    from.until_quiet();
    assert_eq!(from.events, [], "nothing is heard of who has left");
    for (_, connection) in &mut crowd {
        let left = detached.remove(connection).expect("all have left");
        *connection = take_in(&mut to, left);
        to.receive(*connection);
    }
    for (index, (peer, connection)) in crowd.iter_mut().enumerate() {
        assert!(to.read(peer, 100) == pattern(index, 100));
        to.until("all is Sent", |stage| stage.owed[connection] == 0);
        to.close(*connection, Closing::Now);
        assert_eq!(to.read_end(peer), (vec![], End::Fin));
    }
    from.assert_all_home();
    to.assert_all_home();
}

pub(super) fn bulk_amid_many_hand_overs_comes_back_whole<H: Harness>() {
    for place in [Place::Wide, Place::Unix] {
        let mut here = Stage::<H>::new(Answer::Relay);
        let mut there = here.beside();
        let (mut peer, mut connection, written) = full(&mut here, place);
        let mut talk = Talk::new(written);
        for _ in 0..MOVES {
            let moved = hand_over(&mut here, &mut there, connection);
            connection = moved.0;
            std::mem::swap(&mut here, &mut there);
            // So that there is room, and it gets into bulk again.
            let len = scatter(&mut talk.random, 1 + talk.written - talk.back.len());
            talk.back.extend(here.read(&mut peer, len));
            talk.go_on(&mut here, &mut peer);
        }
        talk.finish(&mut here, &mut peer, connection);
        there.assert_all_home();
    }
}

pub(super) fn what_a_pipe_holds_leaves_before_what_waits_behind_it<H: Harness>() {
    for place in [Place::Wide, Place::Unix] {
        let mut from = Stage::<H>::new(Answer::Relay);
        let mut to = from.beside();
        let (mut peer, connection, written) = full(&mut from, place);
        // What arrives from now on would come behind what is sent now.
        from.rest(connection);
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
        to.until("all is Sent", |stage| stage.owed[&connection] == 0);
        get_into_bulk(&mut to, &mut peer, connection);
        from.assert_all_home();
        to.assert_all_home();
    }
}

pub(super) fn what_a_stalled_peer_is_owed_is_sent_first_and_once<H: Harness>() {
    for place in [Place::V4, Place::Narrow, Place::Unix] {
        let mut from = Stage::<H>::new(Answer::Echo);
        let mut to = from.beside();
        let address = from.listener_at(place);
        let (mut peer, connection, written) = from.stalled(&address);
        let detached = detach(&mut from, connection);
        let owed = detached.unsent.len();
        assert!(owed > 0);
        let arrived = from.received(connection).len();
        let connection = take_in(&mut to, detached);
        to.until_quiet();
        // It was Sent what is Sent here, and what TCP may yet take in its own time.
        assert!(
            to.events.is_empty() || place != Place::Unix,
            "{}",
            to.seen()
        );
        assert!(to.read(&mut peer, arrived) == pattern(0, arrived));
        let sent = Event::Sent(connection, owed as u32);
        to.until_event(&sent);
        to.until_quiet();
        assert_eq!(about(&to, connection), [&sent], "and no Stalled");
        to.receive(connection);
        let rest = pattern(arrived, written - arrived);
        assert!(to.read(&mut peer, rest.len()) == rest);
        to.echo(&mut peer, &pattern(0, 100_000));
        from.assert_all_home();
        to.assert_all_home();
    }
}

pub(super) fn what_is_received_later_is_sent_behind_what_is_owed<H: Harness>() {
    let mut from = Stage::<H>::new(Answer::Echo);
    let mut to = from.beside();
    let address = from.listener_at(Place::Unix);
    let (mut peer, connection, mut written) = from.stalled(&address);
    let detached = detach(&mut from, connection);
    let connection = take_in(&mut to, detached);
    to.receive(connection);
    written += to.net.write(&mut peer, &pattern(written, BUFFER_BYTES));
    assert!(from.received(connection).len() < written);
    to.until_quiet();
    assert!(to.read(&mut peer, written) == pattern(0, written));
}

pub(super) fn what_is_larger_than_a_buffer_is_handed_over_again_in_its_midst<H: Harness>() {
    for place in [Place::Narrow, Place::Unix] {
        let mut here = Stage::<H>::new(Answer::Echo);
        let mut there = here.beside();
        let address = here.listener_at(place);
        let (mut peer, connection) = here.connection(&address);
        let mut detached = detach(&mut here, connection);
        assert!(detached.unsent.is_empty());
        detached.unsent = pattern(0, OWED_BYTES);
        let mut back = vec![];
        let mut carried = vec![];
        let connection = loop {
            std::mem::swap(&mut here, &mut there);
            carried.push(detached.unsent.len());
            let connection = take_in(&mut here, detached);
            here.receive(connection);
            back.extend(here.read(&mut peer, 50_000));
            if back.len() == 400_000 {
                break connection;
            }
            detached = detach(&mut here, connection);
            let sent = OWED_BYTES - detached.unsent.len();
            assert!(sent >= back.len(), "{sent} sent, {} read", back.len());
        };
        let in_midst = |len: &usize| (1..OWED_BYTES).contains(len);
        assert!(carried.iter().any(in_midst), "{place:?}: {carried:?}");
        back.extend(here.read(&mut peer, OWED_BYTES - back.len()));
        assert!(back == pattern(0, OWED_BYTES));
        here.until("all is Sent", |stage| stage.owed[&connection] == 0);
        here.echo(&mut peer, b"and on");
        here.assert_all_home();
        there.assert_all_home();
    }
}

pub(super) fn what_is_submitted_until_it_is_taken_is_owed<H: Harness>() {
    let mut from = Stage::<H>::new(Answer::Keep);
    let mut to = from.beside();
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
    let detached = from.driver.take(connection).expect("it is detached");
    assert_eq!(detached.unsent, b"12");
    let connection = take_in(&mut to, detached);
    assert_eq!(to.read(&mut peer, 2), b"12");
    to.until_event(&Event::Sent(connection, 2));
    from.assert_all_home();
}

pub(super) fn the_end_of_a_half_closed_peer_is_said_by_who_goes_on<H: Harness>() {
    // The end has been said; it waits behind what is owed.
    for stalled in [false, true] {
        let mut from = Stage::<H>::new(Answer::Echo);
        let mut to = from.beside();
        let (_, address) = from.listener(None);
        let (mut peer, connection, written) = if stalled {
            from.stalled(&address)
        } else {
            let (peer, connection) = from.connection(&address);
            (peer, connection, 0)
        };
        from.net.half_close(&mut peer);
        if !stalled {
            from.until_event(&Event::Ended(connection));
        }
        let (connection, _) = hand_over(&mut from, &mut to, connection);
        assert!(to.read(&mut peer, written) == pattern(0, written));
        let ended = Event::Ended(connection);
        to.until_event(&ended);
        to.until("all is Sent", |stage| stage.owed[&connection] == 0);
        to.until_quiet();
        assert_eq!(to.count(|event| *event == ended), 1);
        to.driver.submit(Op::ShutDown { connection });
        assert_eq!(to.read_end(&mut peer), (vec![], End::Fin));
        to.close(connection, Closing::Now);
        from.assert_all_home();
        to.assert_all_home();
    }
}

pub(super) fn a_close_after_detach_is_heard_alone<H: Harness>() {
    for answer in [Answer::Echo, Answer::Relay] {
        for said in [false, true] {
            let mut stage = Stage::<H>::new(answer);
            let (_peer, connection) = if answer == Answer::Relay {
                let (peer, connection, _) = full(&mut stage, Place::Wide);
                (peer, connection)
            } else {
                let (_, address) = stage.listener(None);
                let (peer, connection, _) = stage.stalled(&address);
                (peer, connection)
            };
            stage.until_quiet();
            stage.driver.submit(Op::Detach { connection });
            if said {
                until_detached(&mut stage, connection);
            }
            stage.events.clear();
            stage.driver.submit(Op::Close {
                token: connection,
                how: Closing::Now,
            });
            stage.until_event(&Event::Closed(connection));
            stage.until_quiet();
            assert_eq!(stage.events, [Event::Closed(connection)]);
            assert!(stage.driver.take(connection).is_none());
            stage.assert_all_home();
        }
    }
}

pub(super) fn who_fails_first_is_not_detached<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let (_, address) = stage.listener(None);
    let (peer, connection, _) = stage.stalled(&address);
    stage.net.reset(peer);
    stage.until_event(&Event::Failed(connection));
    stage.driver.submit(Op::Detach { connection });
    stage.until_quiet();
    assert_eq!(
        about(&stage, connection).last(),
        Some(&&Event::Failed(connection))
    );
    assert!(stage.driver.take(connection).is_none());
    stage.close(connection, Closing::Now);
    stage.assert_all_home();
}

pub(super) fn nobody_is_taken_who_is_not_detached<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let (listener, address) = stage.listener(None);
    let (mut peer, connection) = stage.connection(&address);
    assert!(stage.driver.take(connection).is_none());
    stage.driver.submit(Op::Detach {
        connection: listener,
    });
    stage.until_quiet();
    assert!(stage.driver.take(listener).is_none());
    stage.echo(&mut peer, b"all goes on");
    stage.driver.submit(Op::Detach { connection });
    until_detached(&mut stage, connection);
    assert!(stage.driver.take(connection).is_some());
    assert!(stage.driver.take(connection).is_none());

    H::forgive(&mut stage.driver);
    let (_peer, closed) = stage.connection(&address);
    stage.close(closed, Closing::Now);
    stage.events.clear();
    for gone in [connection, closed] {
        stage.driver.submit(Op::Detach { connection: gone });
        stage.until_quiet();
        assert!(stage.driver.take(gone).is_none());
    }
    assert_eq!(stage.events, []);
}

/// A successor may have another kind of driver than who was there before.
#[test]
fn a_connection_goes_from_epoll_to_uring_and_back() {
    if let Some(error) = Loopback::<Uring>::refusal() {
        eprintln!("NOT TESTED: this machine has no such driver: {error}");
        return;
    }
    for answer in [Answer::Echo, Answer::Relay] {
        for place in [Place::V4, Place::Wide, Place::Unix] {
            let mut epoll = Stage::<Loopback<Epoll>>::new(answer);
            let mut uring = Stage::<Loopback<Uring>>::new(answer);
            let address = epoll.listener_at(place);
            let (mut peer, mut connection) = epoll.connection(&address);
            let mut talk = Talk::new(0);
            for _ in 0..MOVES / 2 {
                talk.go_on(&mut epoll, &mut peer);
                connection = hand_over(&mut epoll, &mut uring, connection).0;
                talk.go_on(&mut uring, &mut peer);
                connection = hand_over(&mut uring, &mut epoll, connection).0;
            }
            talk.finish(&mut epoll, &mut peer, connection);
            uring.assert_all_home();
        }
    }
}

/// There may be room at the very moment at which the wait for it is cancelled.
#[test]
fn a_stalled_send_that_gets_room_while_it_is_detached_loses_nothing() {
    if let Some(error) = Loopback::<Uring>::refusal() {
        eprintln!("NOT TESTED: this machine has no such driver: {error}");
        return;
    }
    let mut here = Stage::<Loopback<Uring>>::new(Answer::Echo);
    let mut there = here.beside();
    // Over TCP, where there is room again at any time, also just after a send has found none.
    let address = here.listener_at(Place::Narrow);
    let (mut peer, connection) = here.connection(&address);
    let mut detached = detach(&mut here, connection);
    let mut owed = MOVES * BUFFER_BYTES;
    detached.unsent = pattern(0, owed);

    // Reads until it has seen the end, but not while somebody holds this.
    let gate = Arc::new(Mutex::new(()));
    let readers = Arc::clone(&gate);
    let reader = std::thread::spawn(move || {
        let (mut net, _) = Loopback::<Uring>::new();
        let (mut back, mut end) = (vec![], None);
        while end.is_none() {
            let turn = readers.lock().expect("nobody has panicked");
            end = net.read(&mut peer, BUFFER_BYTES, &mut back);
            drop(turn);
            std::thread::yield_now();
        }
        back
    });
    for _ in 0..MOVES * 4 {
        let connection = take_in(&mut here, detached);
        here.turn();
        here.driver.submit(Op::Detach { connection });
        here.turn();
        let pause = gate.lock().expect("nobody has panicked");
        here.until_event(&Event::Detached(connection));
        drop(pause);
        detached = here.driver.take(connection).expect("it is detached");
        // However fast the reader is, there is always something to send.
        if detached.unsent.len() < MOVES / 2 * BUFFER_BYTES {
            detached.unsent.extend(pattern(owed, MOVES * BUFFER_BYTES));
            owed += MOVES * BUFFER_BYTES;
        }
        std::mem::swap(&mut here, &mut there);
    }
    drop(detached.socket);
    let back = reader.join().expect("it saw the end");
    let sent = owed - detached.unsent.len();
    assert!(sent > 0 && !detached.unsent.is_empty());
    assert!(back == pattern(0, sent));
}
