//! The promises about datagram sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::harness::{Harness, Place};
use super::stage::{Answer, Event, Stage, pattern};
use crate::driver::buffers::BUFFER_BYTES;
use crate::driver::{Closing, Driver, Op, Source};

// 13. Datagrams.

pub(super) fn datagrams_of_every_size_come_back_whole<H: Harness>() {
    for place in [Place::V4, Place::V6, Place::Unix] {
        let mut stage = Stage::<H>::new(Answer::Echo);
        let Some((socket, address)) = stage.datagrams(place) else {
            continue;
        };
        let mut client = stage.net.client(&address);
        for size in [0, 1, 1472, 1473, 65_507, 0, 2] {
            stage
                .net
                .send(&mut client, &address, None, &pattern(size, size));
            assert!(
                stage.answer_to(&mut client).1 == pattern(size, size),
                "{size} bytes at {place:?}"
            );
            stage.until("it is said", |stage| {
                stage.has(&Event::DatagramSent(socket, 1, Ok(size as u32)))
            });
        }
        // Several at once are several still: as many as a Unix socket queues (unix(7)).
        (1..=8).for_each(|size| {
            stage
                .net
                .send(&mut client, &address, None, &pattern(0, size))
        });
        for size in 1..=8 {
            assert_eq!(stage.answer_to(&mut client).1, pattern(0, size));
        }
        stage.until_quiet();
        assert_eq!(stage.datagrams_done(), (15, 15));
        stage.close(socket, Closing::Now);
        stage.assert_all_home();
    }
}

pub(super) fn a_datagram_that_does_not_fit_says_how_long_it_was<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Discard);
    let (_, address) = stage
        .datagrams(Place::Unix)
        .expect("Unix sockets are everywhere");
    let mut client = stage.net.client(&address);
    stage
        .net
        .send(&mut client, &address, None, &pattern(0, 100_000));
    stage.net.send(&mut client, &address, None, b"next");
    stage.until("both arrive", |stage| stage.events.len() == 2);
    let Event::Datagram(_, bytes, len) = &stage.events[0] else {
        panic!("{}", stage.seen())
    };
    assert_eq!(*len, 100_000);
    assert!(*bytes == pattern(0, bytes.len()) && bytes.len() <= BUFFER_BYTES);
    assert!(matches!(&stage.events[1], Event::Datagram(_, bytes, 4) if bytes == b"next"));
}

pub(super) fn answers_leave_from_where_they_were_sent_to<H: Harness>(
    place: Place,
    hosts: &[IpAddr],
) {
    let mut stage = Stage::<H>::new(Answer::Keep);
    let Some((_, address)) = stage.datagrams(place) else {
        return;
    };
    let mut client = stage.net.client(&address);
    let port = H::inet(&address).expect("it is of the Internet").port();
    for &host in hosts {
        stage.net.send(&mut client, &address, Some(host), b"where?");
        stage.until("it is received", |stage| !stage.kept.is_empty());
        let (socket, buffer) = stage.kept.pop_front().expect("one is kept");
        let envelope = stage.driver.envelope(&buffer);
        assert_eq!(envelope.local.map(|local| local.address), Some(host));
        assert!(envelope.unicast && matches!(envelope.source, Source::Inet(_)));
        stage.driver.submit(Op::SendTo { socket, buffer });
        assert_eq!(
            stage.answer_to(&mut client),
            (Some(SocketAddr::new(host, port)), b"where?".to_vec())
        );
    }
}

pub(super) fn an_answer_leaves_from_the_address_that_was_hit<H: Harness>() {
    let hosts = [1, 2, 77].map(|last| Ipv4Addr::new(127, 0, 0, last).into());
    answers_leave_from_where_they_were_sent_to::<H>(Place::V4, &hosts);
}

pub(super) fn ipv6_answers_leave_from_the_address_that_was_hit<H: Harness>() {
    answers_leave_from_where_they_were_sent_to::<H>(Place::V6, &[Ipv6Addr::LOCALHOST.into()]);
}

pub(super) fn a_datagram_peer_that_is_gone_ends_nothing<H: Harness>() {
    for place in [Place::V4, Place::Unix] {
        let mut stage = Stage::<H>::new(Answer::Keep);
        let (_, address) = stage.datagrams(place).expect("every machine has both");
        let mut other = stage.net.client(&address);
        for round in 1..=3 {
            let mut client = stage.net.client(&address);
            stage.net.send(&mut client, &address, None, b"too late");
            stage.until("it is received", |stage| !stage.kept.is_empty());
            stage.net.leave(client);
            let (socket, buffer) = stage.kept.pop_front().expect("one is kept");
            stage.driver.submit(Op::SendTo { socket, buffer });
            stage.answer = Answer::Echo;
            stage.net.send(&mut other, &address, None, b"still here?");
            assert_eq!(stage.answer_to(&mut other).1, b"still here?");
            stage.answer = Answer::Keep;
            stage.until("both are done", |stage| {
                stage.datagrams_done().0 == 2 * round
            });
        }
        stage.assert_all_home();
    }
}

pub(super) fn a_datagram_peer_that_does_not_read_holds_nobody_up<H: Harness>() {
    for place in [Place::V4, Place::Unix] {
        let mut stage = Stage::<H>::new(Answer::Echo);
        let (_, address) = stage.datagrams(place).expect("every machine has both");
        let (mut deaf, mut other) = (stage.net.client(&address), stage.net.client(&address));
        for count in 1..=600 {
            stage.net.send(&mut deaf, &address, None, &pattern(0, 1000));
            stage.until("each answer is done", |stage| {
                stage.datagrams_done().0 == count
            });
        }
        stage.net.send(&mut other, &address, None, b"and I?");
        assert_eq!(stage.answer_to(&mut other).1, b"and I?");
        stage.assert_all_home();
    }
}

pub(super) fn a_datagram_socket_that_drains_receives_and_answers_who_is_queued<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let (socket, address) = stage.net.bind(Place::V4).expect("every machine has IPv4");
    let socket = stage.driver.add_datagram_socket(socket);
    let mut clients: Vec<_> = (0..40).map(|_| stage.net.client(&address)).collect();
    for client in &mut clients {
        stage.net.send(client, &address, None, b"last words");
    }
    stage.close(socket, Closing::WhenDrained);
    for client in &mut clients {
        assert_eq!(stage.answer_to(client).1, b"last words");
    }
    assert_eq!(stage.datagrams_done(), (40, 40));
    assert_eq!(stage.events.last(), Some(&Event::Closed(socket)));
    stage.assert_all_home();
}
