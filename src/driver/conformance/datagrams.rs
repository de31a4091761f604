//! Promise 13: datagrams are answered one by one, with their size, order and addresses; and no
//! peer's error affects another. Draining a datagram socket (9) is here, too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::driver_test::{Answer, DriverTest, Event, pattern};
use super::harness::{Harness, SocketKind};
use super::loopback::{Loopback, SocketDriver, socket_promises};
use crate::driver::buffers::BUFFER_BYTES;
use crate::driver::{Closing, Driver, Op, Source};

// 13. Datagrams.

pub(super) fn datagrams_of_every_size_are_echoed_intact<H: Harness>() {
    for kind in [SocketKind::Ipv4, SocketKind::Ipv6, SocketKind::Unix] {
        let mut test = DriverTest::<H>::new(Answer::Echo);
        let Some((socket, address)) = test.datagrams(kind) else {
            continue;
        };
        let mut client = test.network.client(&address);
        for size in [0, 1, 1472, 1473, 65_507, 0, 2] {
            test.network
                .send(&mut client, &address, None, &pattern(size, size));
            assert!(
                test.reply_to(&mut client).1 == pattern(size, size),
                "the echo of {size} bytes at {kind:?} differs"
            );
            test.until("the reply is reported as sent", |test| {
                test.has(&Event::DatagramSent(socket, 1, Ok(size as u32)))
            });
        }
        // Datagrams that are queued together stay separate. A Unix socket queues no more (unix(7)).
        (1..=8).for_each(|size| {
            test.network
                .send(&mut client, &address, None, &pattern(0, size))
        });
        for size in 1..=8 {
            assert_eq!(test.reply_to(&mut client).1, pattern(0, size));
        }
        test.until_quiet();
        assert_eq!(test.datagrams_done(), (15, 15));
        test.close(socket, Closing::Now);
        test.assert_all_returned();
    }
}

pub(super) fn a_truncated_datagram_is_reported_with_its_original_size<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Discard);
    let (_, address) = test
        .datagrams(SocketKind::Unix)
        .expect("Unix sockets are available");
    let mut client = test.network.client(&address);
    test.network
        .send(&mut client, &address, None, &pattern(0, 100_000));
    test.network.send(&mut client, &address, None, b"next");
    test.until("both datagrams are received", |test| test.events.len() == 2);
    let Event::Datagram(_, bytes, len) = &test.events[0] else {
        panic!("{}", test.recent_events())
    };
    assert_eq!(*len, 100_000);
    assert!(*bytes == pattern(0, bytes.len()) && bytes.len() <= BUFFER_BYTES);
    assert!(matches!(&test.events[1], Event::Datagram(_, bytes, 4) if bytes == b"next"));
}

/// Sends to each of these addresses of this host, and checks that the reply comes from the same
/// one.
fn check_reply_source<H: Harness>(kind: SocketKind, hosts: &[IpAddr]) {
    let mut test = DriverTest::<H>::new(Answer::Keep);
    let Some((_, address)) = test.datagrams(kind) else {
        return;
    };
    let mut client = test.network.client(&address);
    let port = H::inet(&address).expect("an IP address").port();
    for &host in hosts {
        test.network
            .send(&mut client, &address, Some(host), b"hello");
        test.until("the datagram is received", |test| !test.kept.is_empty());
        let (socket, buffer) = test.kept.pop_front().expect("a buffer is kept");
        let envelope = test.driver.envelope(&buffer);
        assert_eq!(envelope.local.map(|local| local.address), Some(host));
        assert!(envelope.unicast && matches!(envelope.source, Source::Inet(_)));
        test.driver.submit(Op::SendTo { socket, buffer });
        assert_eq!(
            test.reply_to(&mut client),
            (Some(SocketAddr::new(host, port)), b"hello".to_vec())
        );
    }
}

pub(super) fn a_reply_is_sent_from_the_address_that_received_the_datagram<H: Harness>() {
    let hosts = [1, 2, 77].map(|last| Ipv4Addr::new(127, 0, 0, last).into());
    check_reply_source::<H>(SocketKind::Ipv4, &hosts);
}

pub(super) fn an_ipv6_reply_is_sent_from_the_address_that_received_the_datagram<H: Harness>() {
    check_reply_source::<H>(SocketKind::Ipv6, &[Ipv6Addr::LOCALHOST.into()]);
}

pub(super) fn a_reply_to_a_closed_peer_does_not_end_the_datagram_socket<H: Harness>() {
    for kind in [SocketKind::Ipv4, SocketKind::Unix] {
        let mut test = DriverTest::<H>::new(Answer::Keep);
        let (_, address) = test
            .datagrams(kind)
            .expect("IPv4 and Unix sockets are available");
        let mut other = test.network.client(&address);
        for round in 1..=3 {
            let mut client = test.network.client(&address);
            test.network.send(&mut client, &address, None, b"no reader");
            test.until("the datagram is received", |test| !test.kept.is_empty());
            test.network.close_client(client);
            let (socket, buffer) = test.kept.pop_front().expect("a buffer is kept");
            // ECONNREFUSED, at once on a Unix socket and by ICMP on UDP.
            test.driver.submit(Op::SendTo { socket, buffer });
            test.answer = Answer::Echo;
            test.network
                .send(&mut other, &address, None, b"still served");
            assert_eq!(test.reply_to(&mut other).1, b"still served");
            test.answer = Answer::Keep;
            test.until("both replies are done", |test| {
                test.datagrams_done().0 == 2 * round
            });
        }
        test.assert_all_returned();
    }
}

pub(super) fn a_datagram_peer_that_does_not_read_does_not_delay_others<H: Harness>() {
    for kind in [SocketKind::Ipv4, SocketKind::Unix] {
        let mut test = DriverTest::<H>::new(Answer::Echo);
        let (_, address) = test
            .datagrams(kind)
            .expect("IPv4 and Unix sockets are available");
        let (mut idle_reader, mut other) =
            (test.network.client(&address), test.network.client(&address));
        // More replies than the receive queue of the client holds.
        for count in 1..=600 {
            test.network
                .send(&mut idle_reader, &address, None, &pattern(0, 1000));
            test.until("each reply is done", |test| {
                test.datagrams_done().0 == count
            });
        }
        test.network
            .send(&mut other, &address, None, b"another peer");
        assert_eq!(test.reply_to(&mut other).1, b"another peer");
        test.assert_all_returned();
    }
}

pub(super) fn a_draining_datagram_socket_answers_every_queued_datagram<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let (socket, address) = test
        .network
        .bind(SocketKind::Ipv4)
        .expect("IPv4 is available");
    let socket = test.driver.add_datagram_socket(socket);
    let mut clients: Vec<_> = (0..40).map(|_| test.network.client(&address)).collect();
    for client in &mut clients {
        test.network.send(client, &address, None, b"queued");
    }
    test.close(socket, Closing::WhenDrained);
    for client in &mut clients {
        assert_eq!(test.reply_to(client).1, b"queued");
    }
    assert_eq!(test.datagrams_done(), (40, 40));
    assert_eq!(test.events.last(), Some(&Event::Closed(socket)));
    test.assert_all_returned();
}

/// Datagrams arrive as fast as they are answered: those that were queued before are answered, and the
/// socket is closed all the same.
pub(super) fn a_flood_of_datagrams_does_not_keep_a_drain_from_ending<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let (socket, address) = test.datagrams(SocketKind::Ipv4).expect("IPv4 is available");
    let mut queued: Vec<_> = (0..20).map(|_| test.network.client(&address)).collect();
    for client in &mut queued {
        test.network.send(client, &address, None, b"queued");
    }
    test.driver.submit(Op::Close {
        token: socket,
        how: Closing::WhenDrained,
    });
    let mut flooding = test.network.client(&address);
    test.until("the socket is closed", |test| {
        let is_closed = test.events.last() == Some(&Event::Closed(socket));
        if !is_closed {
            while test.network.receive(&mut flooding).is_some() {}
            (0..64).for_each(|_| {
                test.network.send(&mut flooding, &address, None, b"flood");
            });
        }
        is_closed
    });
    for client in &mut queued {
        assert_eq!(test.reply_to(client).1, b"queued");
    }
    test.assert_all_returned();
}

/// The sizes that each of several clients sends, in order: runs of one size, followed by a shorter
/// or a longer datagram, and empty ones in between. Each is a case for the code that batches
/// replies.
const MIXED_SIZES: [usize; 16] = [
    100, 100, 100, 60, 60, 0, 0, 60, 1, 1, 1472, 1472, 9, 100, 100, 101,
];

pub(super) fn a_mixed_batch_of_datagrams_is_echoed_one_by_one_and_in_order<H: Harness>() {
    for kind in [SocketKind::Ipv4, SocketKind::Ipv6, SocketKind::NoChecksum] {
        let mut test = DriverTest::<H>::new(Answer::Echo);
        let Some((_, address)) = test.datagrams(kind) else {
            continue;
        };
        let mut clients: Vec<_> = (0..7).map(|_| test.network.client(&address)).collect();
        let mut largest = test.network.client(&address);
        // The clients take turns, and one datagram of the largest size is sent among the others.
        for (turn, size) in MIXED_SIZES.into_iter().enumerate() {
            for (number, client) in clients.iter_mut().enumerate() {
                let bytes = pattern(100 * number + turn, size);
                test.network.send(client, &address, None, &bytes);
            }
            if turn == 8 {
                let bytes = pattern(0, 65_507);
                test.network.send(&mut largest, &address, None, &bytes);
            }
        }
        for (number, client) in clients.iter_mut().enumerate() {
            for (turn, size) in MIXED_SIZES.into_iter().enumerate() {
                let reply = test.reply_to(client).1;
                assert!(
                    reply == pattern(100 * number + turn, size),
                    "{kind:?}: client {number}, datagram {turn}: {size} bytes sent, {} echoed",
                    reply.len()
                );
            }
        }
        assert!(test.reply_to(&mut largest).1 == pattern(0, 65_507));
        let count = (MIXED_SIZES.len() * clients.len() + 1) as u32;
        test.until("every reply is done", |test| {
            test.datagrams_done() == (count, count)
        });
        assert!(
            clients
                .iter_mut()
                .all(|client| test.network.receive(client).is_none())
        );
        test.assert_all_returned();
    }
}

/// The same for datagrams that are received and answered in batches.
fn check_batch_reply_sources<H: Harness>(kind: SocketKind, hosts: &[IpAddr]) {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let Some((_, address)) = test.datagrams(kind) else {
        return;
    };
    let port = H::inet(&address).expect("an IP address").port();
    let mut clients: Vec<_> = (0..4).map(|_| test.network.client(&address)).collect();
    // Each client sends pairs of datagrams to each address, all of them queued before the next
    // wait.
    for round in 0..6 {
        for client in &mut clients {
            for (number, &host) in hosts.iter().enumerate() {
                let bytes = [round, number as u8];
                test.network.send(client, &address, Some(host), &bytes);
                test.network.send(client, &address, Some(host), &bytes);
            }
        }
    }
    // Replies from different addresses may arrive in any order, those from one address may not.
    for client in &mut clients {
        let mut rounds = vec![0; hosts.len()];
        for _ in 0..12 * hosts.len() {
            let (from, bytes) = test.reply_to(client);
            let [round, number] = bytes[..] else {
                panic!("two bytes were sent, {} were echoed", bytes.len())
            };
            let number = usize::from(number);
            assert_eq!(from, Some(SocketAddr::new(hosts[number], port)));
            assert_eq!(
                round,
                rounds[number] / 2,
                "replies from one address are out of order"
            );
            rounds[number] += 1;
        }
    }
    test.assert_all_returned();
}

pub(super) fn each_reply_of_a_batch_is_sent_from_the_address_that_received_its_datagram<
    H: Harness,
>() {
    let hosts = [1, 2, 77].map(|last| Ipv4Addr::new(127, 0, 0, last).into());
    check_batch_reply_sources::<H>(SocketKind::Ipv4, &hosts);
    let hosts = [Ipv6Addr::LOCALHOST.into()];
    check_batch_reply_sources::<H>(SocketKind::Ipv6, &hosts);
}

/// The replies are separate datagrams, also where the kernel refuses to segment them.
pub(super) fn datagrams_sent_as_one_message_are_echoed_one_by_one<H: Harness>() {
    for kind in [SocketKind::Ipv4, SocketKind::Ipv6, SocketKind::NoChecksum] {
        let mut test = DriverTest::<H>::new(Answer::Echo);
        let Some((_, address)) = test.datagrams(kind) else {
            continue;
        };
        let mut client = test.network.client(&address);
        // The driver remembers in the second round that a socket cannot use `UDP_SEGMENT`.
        for _ in 0..2 {
            for (size, len) in [(100, 4037), (1, 64), (1472, 58_880), (30_000, 60_001)] {
                let bytes = pattern(len, len);
                test.network
                    .send_several(&mut client, &address, size, &bytes);
                for (number, datagram) in bytes.chunks(size.into()).enumerate() {
                    let reply = test.reply_to(&mut client).1;
                    assert!(
                        reply == datagram,
                        "{kind:?}: datagram {number} of {size} bytes: {} echoed",
                        reply.len()
                    );
                }
            }
        }
        test.until("every reply is done", |test| {
            test.datagrams_done() == (2 * (41 + 64 + 40 + 3), 2 * (41 + 64 + 40 + 3))
        });
        test.assert_all_returned();
    }
}

pub(super) fn closed_datagram_peers_cost_no_other_peer_its_reply<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Keep);
    let (_, address) = test
        .datagrams(SocketKind::ErrorQueue)
        .expect("IPv4 is available");
    let mut clients: Vec<_> = (0..130).map(|_| test.network.client(&address)).collect();
    for client in &mut clients {
        let count = test.kept.len();
        test.network.send(client, &address, None, b"hello");
        test.until("the datagram is received", |test| test.kept.len() > count);
    }
    // Close most clients. The others are spread so that, whatever the batch size, some reply
    // follows one to a closed client, whose ICMP error may then be pending on the socket.
    let mut remaining = vec![];
    for (number, client) in clients.into_iter().enumerate() {
        if number % 13 == 12 || number == 64 {
            remaining.push(client);
        } else {
            test.network.close_client(client);
        }
    }
    for (socket, buffer) in std::mem::take(&mut test.kept) {
        test.driver.submit(Op::SendTo { socket, buffer });
    }
    for client in &mut remaining {
        assert_eq!(test.reply_to(client).1, b"hello");
    }
    test.until("every reply is done", |test| test.datagrams_done().0 == 130);
}

/// A defect of the io_uring driver: it executed the Close first, and the reply was lost.
fn a_reply_submitted_before_the_close_is_sent<D: SocketDriver>() {
    for kind in [SocketKind::Ipv4, SocketKind::Unix] {
        let mut test = DriverTest::<Loopback<D>>::new(Answer::Keep);
        let (socket, address) = test
            .datagrams(kind)
            .expect("IPv4 and Unix sockets are available");
        let mut client = test.network.client(&address);
        test.network.send(&mut client, &address, None, b"queued");
        test.until("the datagram is received", |test| !test.kept.is_empty());
        let (_, buffer) = test.kept.pop_front().expect("a buffer is kept");
        test.driver.submit(Op::SendTo { socket, buffer });
        test.close(socket, Closing::Now);
        assert_eq!(test.reply_to(&mut client).1, b"queued");
        test.assert_all_returned();
    }
}

socket_promises![a_reply_submitted_before_the_close_is_sent];
