//! The promises of 20: bytes that the user has not received are sent, on a stream or as datagrams,
//! from a buffer that is leased for them. And what becomes of a send that nobody asked for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use super::harness::{Harness, Loopback, Opens, Place};
use super::stage::{Answer, Event, Stage, pattern};
use crate::driver::buffers::{BUFFER_BYTES, BUFFER_COUNT};
use crate::driver::epoll::Epoll;
use crate::driver::unsent::RECEIVE_BELOW;
use crate::driver::uring::Uring;
use crate::driver::{Buffer, Closing, Driver, Envelope, Op, Source, UnixName};

/// A send fails where the connection is paused, and so did not report that its peer has left.
fn a_send_to_a_peer_that_left_unnoticed_fails<D: Opens>() {
    let mut stage = Stage::<Loopback<D>>::new(Answer::Keep);
    let address = stage.listener_at(Place::Unix);
    let (mut peer, connection) = stage.connection(&address);
    let buffer = stage.buffer(&mut peer, b"hello?");
    stage.rest(connection);
    stage.until_quiet();
    drop(peer);
    stage.until_quiet();
    stage.send(connection, buffer);
    stage.until_event(&Event::Failed(connection));
    stage.until_quiet();
    assert_eq!(stage.events.last(), Some(&Event::Failed(connection)));
}

// 20. Bytes of the user's own.

/// A buffer with these bytes, as soon as there is one.
fn lease<H: Harness>(stage: &mut Stage<H>, bytes: &[u8]) -> Buffer {
    let mut leased = None;
    stage.until("a buffer can be leased", |stage| {
        leased = stage.driver.lease(bytes.len());
        leased.is_some()
    });
    let buffer = leased.expect("one is leased");
    stage.driver.bytes(&buffer).copy_from_slice(bytes);
    buffer
}

pub(super) fn what_is_leased_is_sent_on_a_stream<H: Harness>() {
    for place in [Place::V4, Place::Narrow, Place::Unix] {
        let mut stage = Stage::<H>::new(Answer::Discard);
        let address = stage.listener_at(place);
        let (mut peer, connection) = stage.connection(&address);
        for size in [1, 1000, BUFFER_BYTES, 3] {
            let bytes = pattern(size, size);
            let buffer = lease(&mut stage, &bytes);
            stage.send(connection, buffer);
            assert!(stage.read(&mut peer, size) == bytes);
            stage.until("it is Sent", |stage| stage.owed[&connection] == 0);
        }
        stage.assert_all_home();
    }
}

/// Neither of two peers that send before they read waits for the other.
pub(super) fn a_connection_is_received_from_while_a_send_waits<H: Harness>() {
    for place in [Place::Narrow, Place::Unix] {
        let mut stage = Stage::<H>::new(Answer::Discard);
        let address = stage.listener_at(place);
        let (mut peer, connection) = stage.connection(&address);
        let piece = pattern(0, RECEIVE_BELOW as usize);
        let mut pieces = 0;
        stage.until("a send stalls for good", |stage| {
            if stage.owed.get(&connection).is_none_or(|&owed| owed == 0) {
                let buffer = lease(stage, &piece);
                stage.send(connection, buffer);
                pieces += 1;
            }
            stage.until_quiet();
            stage.has(&Event::Stalled(connection)) && stage.owed[&connection] > 0
        });
        stage.write_all(&mut peer, &pattern(0, 200_000));
        stage.until("all is received", |stage| {
            stage.received(connection).len() == 200_000
        });
        assert!(stage.received(connection) == pattern(0, 200_000));
        let back = stage.read(&mut peer, pieces * piece.len());
        assert!(back.chunks(piece.len()).all(|back| back == piece));
        stage.until("all is Sent", |stage| stage.owed[&connection] == 0);
        stage.assert_all_home();
    }
}

/// What stands on datagrams of this size to there.
fn to(source: Source, size: usize) -> Envelope {
    Envelope {
        source,
        size,
        ..Envelope::EMPTY
    }
}

/// A buffer of such datagrams, as soon as there is one.
fn lease_datagrams<H: Harness>(stage: &mut Stage<H>, envelope: &Envelope, bytes: &[u8]) -> Buffer {
    let buffer = lease(stage, bytes);
    stage.driver.set_envelope(&buffer, envelope);
    buffer
}

/// How the driver's socket at this address is to address a client.
fn envelope_of<H: Harness>(
    stage: &mut Stage<H>,
    client: &mut H::Client,
    address: &H::Address,
) -> Envelope {
    let answer = std::mem::replace(&mut stage.answer, Answer::Keep);
    stage.net.send(client, address, None, b"here I am");
    stage.until("it is received", |stage| !stage.kept.is_empty());
    stage.answer = answer;
    let (_, buffer) = stage.kept.pop_front().expect("one is kept");
    let envelope = *stage.driver.envelope(&buffer);
    stage.driver.recycle(buffer);
    envelope
}

pub(super) fn what_is_leased_leaves_as_datagrams_of_the_envelopes_size<H: Harness>() {
    for place in [Place::V4, Place::V6, Place::Uncut, Place::Unix] {
        let mut stage = Stage::<H>::new(Answer::Discard);
        let Some((socket, address)) = stage.datagrams(place) else {
            continue;
        };
        let mut client = stage.net.client(&address);
        let known = envelope_of(&mut stage, &mut client, &address);
        // As many as a Unix socket queues (unix(7)).
        let several = if place == Place::Unix {
            [(1000, 5001), (7, 8)]
        } else {
            [(100, 4037), (1472, 58_880)]
        };
        let others = [(7, 0), (65_507, 65_507), (9, 3)];
        let mut count = 0;
        for (size, len) in several.into_iter().chain(others) {
            for local in [known.local, None] {
                let bytes = pattern(len, len);
                let envelope = Envelope {
                    local,
                    ..to(known.source, size)
                };
                let buffer = lease_datagrams(&mut stage, &envelope, &bytes);
                assert_eq!(stage.driver.envelope(&buffer).size, size);
                stage.driver.submit(Op::SendTo { socket, buffer });
                let empty = bytes.is_empty().then_some(&bytes[..]);
                for datagram in empty.into_iter().chain(bytes.chunks(size)) {
                    let (from, arrived) = stage.answer_to(&mut client);
                    assert!(
                        arrived == datagram,
                        "{place:?}: {} of {} bytes came",
                        arrived.len(),
                        datagram.len()
                    );
                    assert_eq!(from, H::inet(&address));
                    count += 1;
                }
            }
        }
        stage.until("all is said", |stage| {
            stage.datagrams_done() == (count, count)
        });
        stage.until_quiet();
        assert!(stage.net.receive(&mut client).is_none(), "none comes twice");
        stage.assert_all_home();
    }
}

pub(super) fn leasing_leaves_buffers_to_those_who_receive<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Echo);
    let (_, address) = stage.listener(None);
    let (mut peer, connection) = stage.connection(&address);
    let (_, place) = stage.datagrams(Place::V4).expect("every machine has IPv4");
    let mut client = stage.net.client(&place);
    let mut most = 0;
    for _ in 0..2 {
        let mut leased = vec![];
        // That there is none may be for once.
        for _ in 0..4 * BUFFER_COUNT {
            leased.extend(stage.driver.lease(BUFFER_BYTES));
        }
        assert!((1..usize::from(BUFFER_COUNT)).contains(&leased.len()));
        assert!(leased.len() >= most, "all of them came home");
        most = leased.len();
        for size in 1..=20 {
            let bytes = pattern(0, size);
            stage.net.send(&mut client, &place, None, &bytes);
            assert_eq!(stage.answer_to(&mut client).1, bytes);
        }
        stage.echo(&mut peer, &pattern(0, 200_000));
        stage.until("all is Sent", |stage| stage.owed[&connection] == 0);
        for buffer in leased {
            stage.driver.recycle(buffer);
        }
    }
    stage.assert_all_home();
}

/// A client's socket: connected, and nobody has prepared it for what a server needs.
enum Connected {
    Inet(UdpSocket),
    Unix(UnixDatagram),
}

impl Connected {
    /// To a peer that nobody else knows, and how that one is addressed.
    fn pair(place: Place, folder: &Path) -> Option<(Self, Self, Source)> {
        let host: IpAddr = match place {
            Place::Unix => {
                let [ours, peers] = ["ours", "peers"].map(|name| folder.join(name));
                let peer = UnixDatagram::bind(&peers).expect("the path is free");
                let socket = UnixDatagram::bind(ours).expect("the path is free");
                socket.connect(&peers).expect("it is bound");
                let name = UnixName::from_bytes(peers.as_os_str().as_bytes());
                let source = Source::Unix(name.expect("a short path"));
                return Some((Self::Unix(socket), Self::Unix(peer), source));
            }
            Place::V6 => Ipv6Addr::LOCALHOST.into(),
            _ => Ipv4Addr::LOCALHOST.into(),
        };
        let peer = UdpSocket::bind((host, 0)).ok()?;
        let socket = UdpSocket::bind((host, 0)).expect("a port is free");
        let address = peer.local_addr().expect("it is bound");
        socket.connect(address).expect("it is an address");
        Some((Self::Inet(socket), Self::Inet(peer), Source::Inet(address)))
    }

    fn into_descriptor(self) -> OwnedFd {
        let socket: socket2::Socket = match self {
            Self::Inet(socket) => socket.into(),
            Self::Unix(socket) => OwnedFd::from(socket).into(),
        };
        socket.set_nonblocking(true).expect("it is open");
        socket.into()
    }

    /// Receives a datagram and sends it back.
    fn echo(&self) -> Vec<u8> {
        let mut memory = vec![0; BUFFER_BYTES];
        let len = match self {
            Self::Inet(socket) => {
                let (len, from) = socket.recv_from(&mut memory).expect("one was sent");
                socket.send_to(&memory[..len], from).expect("it has room");
                len
            }
            Self::Unix(socket) => {
                let (len, from) = socket.recv_from(&mut memory).expect("one was sent");
                let path = from.as_pathname().expect("it is bound");
                socket.send_to(&memory[..len], path).expect("it has room");
                len
            }
        };
        memory.truncate(len);
        memory
    }
}

fn a_connected_socket_sends_what_is_leased<D: Opens>() {
    for place in [Place::V4, Place::V6, Place::Unix] {
        let folder = tempfile::tempdir().expect("a folder for sockets");
        let Some((socket, peer, source)) = Connected::pair(place, folder.path()) else {
            continue;
        };
        let mut stage = Stage::<Loopback<D>>::new(Answer::Discard);
        let socket = stage.driver.add_datagram_socket(socket.into_descriptor());
        stage.driver.submit(Op::ReceiveFrom { socket });
        let bytes = pattern(0, 801);
        let buffer = lease_datagrams(&mut stage, &to(source, 100), &bytes);
        stage.driver.submit(Op::SendTo { socket, buffer });
        stage.until("all is said", |stage| stage.datagrams_done() == (9, 9));
        let size_of = |event: &Event| matches!(event, Event::Datagram(..));
        for (number, datagram) in bytes.chunks(100).enumerate() {
            assert_eq!(peer.echo(), datagram);
            stage.until("the echo arrives", |stage| stage.count(size_of) > number);
            let echo = Event::Datagram(socket, datagram.to_vec(), datagram.len());
            assert!(stage.has(&echo), "{place:?}: {}", stage.seen());
        }

        // Once nobody is there, the kernel says so again and again, and nothing comes of it.
        drop(peer);
        for round in 1..=3 {
            let buffer = lease_datagrams(&mut stage, &to(source, 100), &bytes);
            stage.driver.submit(Op::SendTo { socket, buffer });
            stage.until("all is said", |stage| {
                stage.datagrams_done().0 == 9 * (round + 1)
            });
            stage.until_quiet();
        }
        stage.close(socket, Closing::Now);
        stage.assert_all_home();
    }
}

mod epoll {
    use super::*;

    #[test]
    fn a_send_to_a_peer_that_left_unnoticed_fails() {
        super::a_send_to_a_peer_that_left_unnoticed_fails::<Epoll>();
    }

    #[test]
    fn a_connected_socket_sends_what_is_leased() {
        super::a_connected_socket_sends_what_is_leased::<Epoll>();
    }
}

mod uring {
    use super::*;

    fn where_there_is_one(promise: fn()) {
        match Loopback::<Uring>::refusal() {
            None => promise(),
            Some(error) => eprintln!("NOT TESTED: this machine has no such driver: {error}"),
        }
    }

    #[test]
    fn a_send_to_a_peer_that_left_unnoticed_fails() {
        where_there_is_one(super::a_send_to_a_peer_that_left_unnoticed_fails::<Uring>);
    }

    #[test]
    fn a_connected_socket_sends_what_is_leased() {
        where_there_is_one(super::a_connected_socket_sends_what_is_leased::<Uring>);
    }
}
