//! The promises about datagram sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::harness::{Harness, Loopback, Place};
use super::stage::{Answer, Event, Stage, pattern};
use crate::driver::buffers::BUFFER_BYTES;
use crate::driver::epoll::Epoll;
use crate::driver::uring::Uring;
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

/// What each of several clients sends, one after the other: runs of equal sizes, with a shorter one
/// behind them or a longer, and empty ones between.
const MIXED: [usize; 16] = [
    100, 100, 100, 60, 60, 0, 0, 60, 1, 1, 1472, 1472, 9, 100, 100, 101,
];

pub(super) fn a_mixed_batch_comes_back_one_by_one_and_in_order<H: Harness>() {
    for place in [Place::V4, Place::V6, Place::Uncut] {
        let mut stage = Stage::<H>::new(Answer::Echo);
        let Some((_, address)) = stage.datagrams(place) else {
            continue;
        };
        let mut clients: Vec<_> = (0..7).map(|_| stage.net.client(&address)).collect();
        let mut largest = stage.net.client(&address);
        for (turn, size) in MIXED.into_iter().enumerate() {
            for (number, client) in clients.iter_mut().enumerate() {
                let bytes = pattern(100 * number + turn, size);
                stage.net.send(client, &address, None, &bytes);
            }
            if turn == 8 {
                let bytes = pattern(0, 65_507);
                stage.net.send(&mut largest, &address, None, &bytes);
            }
        }
        for (number, client) in clients.iter_mut().enumerate() {
            for (turn, size) in MIXED.into_iter().enumerate() {
                let answer = stage.answer_to(client).1;
                assert!(
                    answer == pattern(100 * number + turn, size),
                    "{place:?}: client {number}, datagram {turn}: {size} bytes were sent, {} came back",
                    answer.len()
                );
            }
        }
        assert!(stage.answer_to(&mut largest).1 == pattern(0, 65_507));
        let count = (MIXED.len() * clients.len() + 1) as u32;
        stage.until("all is said", |stage| {
            stage.datagrams_done() == (count, count)
        });
        assert!(
            clients
                .iter_mut()
                .all(|client| stage.net.receive(client).is_none())
        );
        stage.assert_all_home();
    }
}

pub(super) fn answers_of_a_batch_each_leave_from_where_they_were_sent_to<H: Harness>(
    place: Place,
    hosts: &[IpAddr],
) {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let Some((_, address)) = stage.datagrams(place) else {
        return;
    };
    let port = H::inet(&address).expect("it is of the Internet").port();
    let mut clients: Vec<_> = (0..4).map(|_| stage.net.client(&address)).collect();
    for round in 0..6 {
        for client in &mut clients {
            for (number, &host) in hosts.iter().enumerate() {
                let bytes = [round, number as u8];
                stage.net.send(client, &address, Some(host), &bytes);
                stage.net.send(client, &address, Some(host), &bytes);
            }
        }
    }
    for client in &mut clients {
        let mut rounds = vec![0; hosts.len()];
        for _ in 0..12 * hosts.len() {
            let (from, bytes) = stage.answer_to(client);
            let [round, number] = bytes[..] else {
                panic!("two bytes were sent, {} came back", bytes.len())
            };
            let number = usize::from(number);
            assert_eq!(from, Some(SocketAddr::new(hosts[number], port)));
            assert_eq!(round, rounds[number] / 2, "in order from each address");
            rounds[number] += 1;
        }
    }
    stage.assert_all_home();
}

pub(super) fn answers_of_a_batch_each_leave_from_the_address_that_was_hit<H: Harness>() {
    let hosts = [1, 2, 77].map(|last| Ipv4Addr::new(127, 0, 0, last).into());
    answers_of_a_batch_each_leave_from_where_they_were_sent_to::<H>(Place::V4, &hosts);
    let hosts = [Ipv6Addr::LOCALHOST.into()];
    answers_of_a_batch_each_leave_from_where_they_were_sent_to::<H>(Place::V6, &hosts);
}

/// Several that were sent as one message come back, also where answers can't be sent so.
pub(super) fn datagrams_that_were_sent_as_one_message_come_back_one_by_one<H: Harness>() {
    for place in [Place::V4, Place::V6, Place::Uncut] {
        let mut stage = Stage::<H>::new(Answer::Echo);
        let Some((_, address)) = stage.datagrams(place) else {
            continue;
        };
        let mut client = stage.net.client(&address);
        // The second round knows what the first has learned.
        for _ in 0..2 {
            for (size, len) in [(100, 4037), (1, 64), (1472, 58_880), (30_000, 60_001)] {
                let bytes = pattern(len, len);
                stage.net.send_several(&mut client, &address, size, &bytes);
                for (number, datagram) in bytes.chunks(size.into()).enumerate() {
                    let answer = stage.answer_to(&mut client).1;
                    assert!(
                        answer == datagram,
                        "{place:?}: datagram {number} of {size} bytes: {} came back",
                        answer.len()
                    );
                }
            }
        }
        stage.until("all is said", |stage| {
            stage.datagrams_done() == (2 * (41 + 64 + 40 + 3), 2 * (41 + 64 + 40 + 3))
        });
        stage.assert_all_home();
    }
}

pub(super) fn datagram_peers_that_are_gone_cost_nobody_an_answer<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Keep);
    let (_, address) = stage
        .datagrams(Place::Reporting)
        .expect("every machine has IPv4");
    let mut clients: Vec<_> = (0..130).map(|_| stage.net.client(&address)).collect();
    for client in &mut clients {
        let count = stage.kept.len();
        stage.net.send(client, &address, None, b"hello?");
        stage.until("it is received", |stage| stage.kept.len() > count);
    }
    // However many are sent at once, some who are there come right behind one who is gone.
    let mut there = vec![];
    for (number, client) in clients.into_iter().enumerate() {
        if number % 13 == 12 || number == 64 {
            there.push(client);
        } else {
            stage.net.leave(client);
        }
    }
    for (socket, buffer) in std::mem::take(&mut stage.kept) {
        stage.driver.submit(Op::SendTo { socket, buffer });
    }
    for client in &mut there {
        assert_eq!(stage.answer_to(client).1, b"hello?");
    }
    stage.until("all is said", |stage| stage.datagrams_done().0 == 130);
}

/// The order of the two was turned round over io_uring, and the answer lost.
fn an_answer_that_was_submitted_before_the_close_is_sent<H: Harness>() {
    for place in [Place::V4, Place::Unix] {
        let mut stage = Stage::<H>::new(Answer::Keep);
        let (socket, address) = stage.datagrams(place).expect("they are everywhere");
        let mut client = stage.net.client(&address);
        stage.net.send(&mut client, &address, None, b"last words");
        stage.until("it is received", |stage| !stage.kept.is_empty());
        let (_, buffer) = stage.kept.pop_front().expect("one is kept");
        stage.driver.submit(Op::SendTo { socket, buffer });
        stage.close(socket, Closing::Now);
        assert_eq!(stage.answer_to(&mut client).1, b"last words");
        stage.assert_all_home();
    }
}

#[test]
fn an_answer_that_was_submitted_before_the_close_is_sent_over_epoll() {
    an_answer_that_was_submitted_before_the_close_is_sent::<Loopback<Epoll>>();
}

#[test]
fn an_answer_that_was_submitted_before_the_close_is_sent_over_io_uring() {
    match Loopback::<Uring>::refusal() {
        None => an_answer_that_was_submitted_before_the_close_is_sent::<Loopback<Uring>>(),
        Some(error) => eprintln!("NOT TESTED: this machine has no such driver: {error}"),
    }
}
