//! The promises of 20 and 21: what nobody has sent us is sent, over streams from memory that lives
//! as long as the program, and as datagrams from a buffer that is leased for them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::LazyLock;

use super::handover::{detach, take_in, until_detached};
use super::harness::{Harness, Loopback, Opens, Place};
use super::stage::{Answer, Event, Stage, pattern};
use super::starve;
use crate::driver::buffers::{BUFFER_BYTES, BUFFER_COUNT};
use crate::driver::epoll::Epoll;
use crate::driver::sim::End;
use crate::driver::uring::Uring;
use crate::driver::{Buffer, Closing, Driver, Envelope, Op, Source, Token, UnixName};

/// More than any socket takes at once.
const LONG: usize = 600 * 1024;

static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| pattern(0, LONG));

/// A connection that has static bytes to send, more than there is room for.
fn stalled<H: Harness>(stage: &mut Stage<H>, place: Place) -> (H::Peer, Token) {
    let address = stage.listener_at(place);
    let (peer, connection) = stage.connection(&address);
    stage.send_static(connection, &BYTES);
    stage.until_event(&Event::Stalled(connection));
    stage.until_quiet();
    (peer, connection)
}

fn sent<H: Harness>(stage: &Stage<H>, connection: Token) -> Vec<u32> {
    let events = stage.events.iter().filter_map(|event| match event {
        Event::Sent(about, len) if *about == connection => Some(*len),
        _ => None,
    });
    events.collect()
}

fn stalls<H: Harness>(stage: &Stage<H>, connection: Token) -> usize {
    stage.count(|event| *event == Event::Stalled(connection))
}

// 20. Static bytes.

pub(super) fn static_bytes_arrive_whole_each_with_one_completion<H: Harness>() {
    for place in [Place::V4, Place::Narrow, Place::Unix] {
        let mut stage = Stage::<H>::new(Answer::Discard);
        let address = stage.listener_at(place);
        let (mut peer, connection) = stage.connection(&address);
        for (round, len) in [1, 1000, 300_000, 2].into_iter().enumerate() {
            let before = stalls(&stage, connection);
            stage.send_static(connection, &BYTES[..len]);
            assert!(stage.read(&mut peer, len) == BYTES[..len]);
            stage.until("it is Sent", |stage| {
                sent(stage, connection).len() == round + 1
            });
            assert!(stalls(&stage, connection) <= before + 1);
        }
        stage.until_quiet();
        assert_eq!(sent(&stage, connection), [1, 1000, 300_000, 2]);
        assert_eq!(stage.net.read(&mut peer, 1, &mut vec![]), None);
        stage.close(connection, Closing::Now);
        assert_eq!(stage.read_end(&mut peer), (vec![], End::Fin));
    }
}

pub(super) fn static_bytes_take_no_buffer<H: Harness>() {
    let mut stage = Stage::<H>::new(Answer::Keep);
    let (_, address) = stage.listener(None);
    let (mut peer, connection) = stage.connection(&address);
    starve(&mut stage, &mut peer);
    stage.send_static(connection, &BYTES);
    assert!(stage.read(&mut peer, LONG) == *BYTES);
    stage.until_event(&Event::Sent(connection, LONG as u32));
    for (_, buffer) in std::mem::take(&mut stage.kept) {
        stage.driver.recycle(buffer);
    }
}

pub(super) fn static_bytes_that_wait_stall_once_and_go_on<H: Harness>() {
    for place in [Place::Narrow, Place::Unix] {
        let mut stage = Stage::<H>::new(Answer::Discard);
        let (mut peer, connection) = stalled(&mut stage, place);
        assert_eq!(sent(&stage, connection), [0; 0]);
        assert!(stage.read(&mut peer, LONG) == *BYTES);
        stage.until_event(&Event::Sent(connection, LONG as u32));
        stage.until_quiet();
        assert_eq!(sent(&stage, connection).len(), 1);
        assert_eq!(stalls(&stage, connection), 1);
        // All is as before.
        stage.answer = Answer::Echo;
        stage.echo(&mut peer, &pattern(0, 100_000));
        stage.until("it is Sent", |stage| stage.owed[&connection] == 0);
        stage.send_static(connection, b"again");
        assert_eq!(stage.read(&mut peer, 5), b"again");
        stage.assert_all_home();
    }
}

pub(super) fn what_is_behind_static_bytes_waits_its_turn<H: Harness>() {
    for place in [Place::Narrow, Place::Unix] {
        let mut stage = Stage::<H>::new(Answer::Discard);
        let address = stage.listener_at(place);
        let (mut peer, connection) = stage.connection(&address);
        let buffers = [b"1", b"2"].map(|text| stage.buffer(&mut peer, text));
        stage.send_static(connection, &BYTES);
        stage.until_event(&Event::Stalled(connection));
        for buffer in buffers {
            stage.send(connection, buffer);
        }
        stage.driver.submit(Op::ShutDown { connection });
        stage.until_quiet();
        let (bytes, end) = stage.read_end(&mut peer);
        assert!(bytes == [&BYTES, &b"12"[..]].concat());
        assert_eq!(end, End::Fin);
        stage.until("all is Sent", |stage| stage.owed[&connection] == 0);
        assert_eq!(sent(&stage, connection), [LONG as u32, 1, 1]);
        stage.assert_all_home();
    }
}

/// Two who send and do not read would wait for each other.
pub(super) fn a_connection_is_read_while_static_bytes_wait<H: Harness>() {
    for place in [Place::Narrow, Place::Unix] {
        let mut stage = Stage::<H>::new(Answer::Discard);
        let (mut peer, connection) = stalled(&mut stage, place);
        stage.write_all(&mut peer, &pattern(0, 200_000));
        stage.until("all is received", |stage| {
            stage.received(connection).len() == 200_000
        });
        assert!(stage.received(connection) == pattern(0, 200_000));
        stage.rest(connection);
        stage.until_quiet();
        stage.net.write(&mut peer, b"later");
        stage.until_quiet();
        assert_eq!(stage.received(connection).len(), 200_000);
        stage.receive(connection);
        stage.until("the rest is received", |stage| {
            stage.received(connection).len() == 200_005
        });
        if place != Place::Unix {
            stage.net.half_close(&mut peer);
            stage.until_event(&Event::Ended(connection));
        }
        assert_eq!(sent(&stage, connection), [0; 0], "they still wait");
        assert!(stage.read(&mut peer, LONG) == *BYTES);
        stage.until_event(&Event::Sent(connection, LONG as u32));
        stage.assert_all_home();
    }
}

pub(super) fn a_close_or_a_failure_discards_static_bytes<H: Harness>() {
    for how in [Closing::Now, Closing::Reset] {
        let mut stage = Stage::<H>::new(Answer::Discard);
        let (_peer, connection) = stalled(&mut stage, Place::Narrow);
        stage.close(connection, how);
        stage.until_quiet();
        assert_eq!(stage.events.last(), Some(&Event::Closed(connection)));
    }
    let mut stage = Stage::<H>::new(Answer::Discard);
    let (peer, connection) = stalled(&mut stage, Place::Narrow);
    stage.net.reset(peer);
    stage.until_event(&Event::Failed(connection));
    // Nothing comes of what the user sends before it has heard of that.
    stage.driver.submit(Op::SendStatic {
        connection,
        bytes: b"in vain",
    });
    stage.until_quiet();
    assert_eq!(stage.events.last(), Some(&Event::Failed(connection)));
    assert_eq!(sent(&stage, connection), [0; 0]);
    stage.close(connection, Closing::Now);
}

pub(super) fn static_bytes_that_wait_leave_with_their_connection<H: Harness>() {
    for place in [Place::Narrow, Place::Unix] {
        let mut from = Stage::<H>::new(Answer::Discard);
        let mut to = from.beside();
        let (mut peer, connection) = stalled(&mut from, place);
        let mut bytes = from.read(&mut peer, 50_000);
        let detached = detach(&mut from, connection);
        assert!((1..LONG).contains(&detached.unsent.len()));
        let connection = take_in(&mut to, detached);
        bytes.extend(to.read(&mut peer, LONG - bytes.len()));
        assert!(bytes == *BYTES);
        to.until("all is Sent", |stage| stage.owed[&connection] == 0);

        to.receive(connection);
        let buffer = to.buffer(&mut peer, b"!");
        to.driver.submit(Op::Detach { connection });
        until_detached(&mut to, connection);
        to.send_static(connection, b"owed");
        to.send(connection, buffer);
        let detached = to.driver.take(connection).expect("it is detached");
        assert_eq!(detached.unsent, b"owed!");
        to.assert_all_home();
    }
}

/// Of who is not received from it is not heard that its peer has left: so the send has to say it.
fn what_is_sent_to_who_has_left_unheard_fails<D: Opens>() {
    for is_static in [true, false] {
        let mut stage = Stage::<Loopback<D>>::new(Answer::Keep);
        let address = stage.listener_at(Place::Unix);
        let (mut peer, connection) = stage.connection(&address);
        let buffer = stage.buffer(&mut peer, b"anybody?");
        stage.rest(connection);
        stage.until_quiet();
        drop(peer);
        stage.until_quiet();
        if is_static {
            stage.driver.recycle(buffer);
            stage.send_static(connection, b"anybody?");
        } else {
            stage.send(connection, buffer);
        }
        stage.until_event(&Event::Failed(connection));
        stage.until_quiet();
        assert_eq!(stage.events.last(), Some(&Event::Failed(connection)));
    }
}

// 21. Datagrams of our own.

/// What stands on datagrams of this size to there.
fn to(source: Source, size: usize) -> Envelope {
    Envelope {
        source,
        size,
        ..Envelope::EMPTY
    }
}

/// A buffer for such datagrams, as soon as there is one.
fn lease<H: Harness>(stage: &mut Stage<H>, envelope: &Envelope, bytes: &[u8]) -> Buffer {
    let mut leased = None;
    stage.until("a buffer can be leased", |stage| {
        leased = stage.driver.lease(envelope, bytes.len());
        leased.is_some()
    });
    let buffer = leased.expect("one is leased");
    stage.driver.bytes(&buffer).copy_from_slice(bytes);
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
                let buffer = lease(&mut stage, &envelope, &bytes);
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
    let envelope = envelope_of(&mut stage, &mut client, &place);
    let mut most = 0;
    for _ in 0..2 {
        let mut leased = vec![];
        // That there is none may be for once.
        for _ in 0..4 * BUFFER_COUNT {
            leased.extend(stage.driver.lease(&envelope, BUFFER_BYTES));
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
        let buffer = lease(&mut stage, &to(source, 100), &bytes);
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
            let buffer = lease(&mut stage, &to(source, 100), &bytes);
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
    fn what_is_sent_to_who_has_left_unheard_fails() {
        super::what_is_sent_to_who_has_left_unheard_fails::<Epoll>();
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
    fn what_is_sent_to_who_has_left_unheard_fails() {
        where_there_is_one(super::what_is_sent_to_who_has_left_unheard_fails::<Uring>);
    }

    #[test]
    fn a_connected_socket_sends_what_is_leased() {
        where_there_is_one(super::a_connected_socket_sends_what_is_leased::<Uring>);
    }
}
