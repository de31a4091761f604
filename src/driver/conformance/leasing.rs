//! Promise 20: a user leases a buffer and sends bytes of its own from it, on a stream or as
//! datagrams. Also here: sends that do not answer bytes just received.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use super::driver_test::{Answer, DriverTest, Event, pattern};
use super::harness::{Harness, SocketKind};
use super::loopback::{Loopback, SocketDriver, socket_promises};
use crate::driver::buffers::{BUFFER_BYTES, BUFFER_COUNT};
use crate::driver::{Buffer, Closing, Driver, Envelope, Op, Source, UnixName};

/// While a connection is paused the driver does not notice that its peer has closed. The send does,
/// with EPIPE, and must report it.
fn a_send_on_a_paused_connection_to_a_closed_peer_fails<D: SocketDriver>() {
    let mut test = DriverTest::<Loopback<D>>::new(Answer::Keep);
    let address = test.listener_at(SocketKind::Unix);
    let (mut peer, connection) = test.connection(&address);
    let buffer = test.buffer(&mut peer, b"hello?");
    test.pause(connection);
    test.until_quiet();
    drop(peer);
    test.until_quiet();
    test.send(connection, buffer);
    test.until_event(&Event::Failed(connection));
    test.until_quiet();
    assert_eq!(test.events.last(), Some(&Event::Failed(connection)));
}

// 20. Leased buffers.

/// Leases a buffer with these bytes, as soon as one is free.
fn lease<H: Harness>(test: &mut DriverTest<H>, bytes: &[u8]) -> Buffer {
    let mut leased = None;
    test.until("a buffer can be leased", |test| {
        leased = test.driver.lease(bytes.len());
        leased.is_some()
    });
    let buffer = leased.expect("a buffer was leased");
    test.driver.bytes(&buffer).copy_from_slice(bytes);
    buffer
}

pub(super) fn leased_buffers_are_sent_on_a_stream<H: Harness>() {
    for kind in [
        SocketKind::Ipv4,
        SocketKind::SmallSendBuffer,
        SocketKind::Unix,
    ] {
        let mut test = DriverTest::<H>::new(Answer::Discard);
        let address = test.listener_at(kind);
        let (mut peer, connection) = test.connection(&address);
        for size in [1, 1000, BUFFER_BYTES, 3] {
            let bytes = pattern(size, size);
            let buffer = lease(&mut test, &bytes);
            test.send(connection, buffer);
            assert!(test.read(&mut peer, size) == bytes);
            test.until("the send completes", |test| test.unsent[&connection] == 0);
        }
        test.assert_all_returned();
    }
}

/// Two endpoints that both send before they read must not wait for each other.
pub(super) fn receiving_continues_while_a_send_is_stalled<H: Harness>() {
    for kind in [SocketKind::SmallSendBuffer, SocketKind::Unix] {
        let mut test = DriverTest::<H>::new(Answer::Discard);
        let address = test.listener_at(kind);
        let (mut peer, connection) = test.connection(&address);
        test.pauses = false;
        test.pause(connection);
        test.driver.submit(Op::ReceiveAlways { connection });
        // More than is held of answers to a peer that does not read.
        let piece = pattern(0, BUFFER_BYTES);
        let much = 3 * piece.len() as u32;
        let mut pieces = 0;
        test.until("much is unsent", |test| {
            let buffer = lease(test, &piece);
            test.send(connection, buffer);
            pieces += 1;
            test.until_quiet();
            test.has(&Event::Stalled(connection)) && test.unsent[&connection] > much
        });
        test.write_all(&mut peer, &pattern(0, 200_000));
        test.until("all bytes are received", |test| {
            test.received(connection).len() == 200_000
        });
        assert!(test.received(connection) == pattern(0, 200_000));
        let bytes = test.read(&mut peer, pieces * piece.len());
        assert!(bytes.chunks(piece.len()).all(|bytes| bytes == piece));
        test.until("every send completes", |test| test.unsent[&connection] == 0);
        test.assert_all_returned();
    }
}

/// The envelope of datagrams of this size to this destination.
fn envelope_to(source: Source, size: usize) -> Envelope {
    Envelope {
        source,
        size,
        ..Envelope::EMPTY
    }
}

/// Leases a buffer of datagrams, as soon as one is free.
fn lease_datagrams<H: Harness>(
    test: &mut DriverTest<H>,
    envelope: &Envelope,
    bytes: &[u8],
) -> Buffer {
    let buffer = lease(test, bytes);
    test.driver.set_envelope(&buffer, envelope);
    buffer
}

/// The envelope of a datagram from this client, which has the client's address as its source.
fn envelope_of<H: Harness>(
    test: &mut DriverTest<H>,
    client: &mut H::Client,
    address: &H::Address,
) -> Envelope {
    let answer = std::mem::replace(&mut test.answer, Answer::Keep);
    test.network.send(client, address, None, b"hello");
    test.until("the datagram is received", |test| !test.kept.is_empty());
    test.answer = answer;
    let (_, buffer) = test.kept.pop_front().expect("a buffer is kept");
    let envelope = *test.driver.envelope(&buffer);
    test.driver.recycle(buffer);
    envelope
}

pub(super) fn a_leased_buffer_is_sent_as_datagrams_of_the_envelopes_size<H: Harness>() {
    for kind in [
        SocketKind::Ipv4,
        SocketKind::Ipv6,
        SocketKind::NoChecksum,
        SocketKind::Unix,
    ] {
        let mut test = DriverTest::<H>::new(Answer::Discard);
        let Some((socket, address)) = test.datagrams(kind) else {
            continue;
        };
        let mut client = test.network.client(&address);
        let known = envelope_of(&mut test, &mut client, &address);
        // A Unix socket queues few datagrams (unix(7)).
        let several = if kind == SocketKind::Unix {
            [(1000, 5001), (7, 8)]
        } else {
            [(100, 4037), (1472, 58_880)]
        };
        // An empty datagram, the largest one, and one that is shorter than the size.
        let others = [(7, 0), (65_507, 65_507), (9, 3)];
        let mut count = 0;
        for (size, len) in several.into_iter().chain(others) {
            // With a source address of the user's choice, and with one that the kernel chooses.
            for local in [known.local, None] {
                let bytes = pattern(len, len);
                let envelope = Envelope {
                    local,
                    ..envelope_to(known.source, size)
                };
                let buffer = lease_datagrams(&mut test, &envelope, &bytes);
                assert_eq!(test.driver.envelope(&buffer).size, size);
                test.driver.submit(Op::SendTo { socket, buffer });
                let empty = bytes.is_empty().then_some(&bytes[..]);
                for datagram in empty.into_iter().chain(bytes.chunks(size)) {
                    let (from, arrived) = test.reply_to(&mut client);
                    assert!(
                        arrived == datagram,
                        "{kind:?}: {} of {} bytes were received, or they differ",
                        arrived.len(),
                        datagram.len()
                    );
                    assert_eq!(from, H::inet(&address));
                    count += 1;
                }
            }
        }
        test.until("every datagram is reported as done", |test| {
            test.datagrams_done() == (count, count)
        });
        test.until_quiet();
        assert!(
            test.network.receive(&mut client).is_none(),
            "a datagram was sent twice"
        );
        test.assert_all_returned();
    }
}

pub(super) fn leasing_leaves_enough_buffers_for_receiving<H: Harness>() {
    let mut test = DriverTest::<H>::new(Answer::Echo);
    let (_, address) = test.listener(None);
    let (mut peer, connection) = test.connection(&address);
    let (_, datagram_address) = test.datagrams(SocketKind::Ipv4).expect("IPv4 is available");
    let mut client = test.network.client(&datagram_address);
    let mut leased_before = 0;
    for _ in 0..2 {
        let mut leased = vec![];
        // One refusal may be temporary, so try more often than there are buffers.
        for _ in 0..4 * BUFFER_COUNT {
            leased.extend(test.driver.lease(BUFFER_BYTES));
        }
        assert!((1..usize::from(BUFFER_COUNT)).contains(&leased.len()));
        assert!(
            leased.len() >= leased_before,
            "buffers of the first round were not returned"
        );
        leased_before = leased.len();
        // With every leasable buffer leased, datagrams and streams can still be received.
        for size in 1..=20 {
            let bytes = pattern(0, size);
            test.network
                .send(&mut client, &datagram_address, None, &bytes);
            assert_eq!(test.reply_to(&mut client).1, bytes);
        }
        test.echo(&mut peer, &pattern(0, 200_000));
        test.until("every send completes", |test| test.unsent[&connection] == 0);
        for buffer in leased {
            test.driver.recycle(buffer);
        }
    }
    test.assert_all_returned();
}

/// A client's datagram socket: connected, and without the options that a server's socket has.
enum Connected {
    Inet(UdpSocket),
    Unix(UnixDatagram),
}

impl Connected {
    /// A socket, its peer, and the address of that peer.
    fn pair(kind: SocketKind, folder: &Path) -> Option<(Self, Self, Source)> {
        let host: IpAddr = match kind {
            SocketKind::Unix => {
                let [ours, peers] = ["ours", "peers"].map(|name| folder.join(name));
                let peer = UnixDatagram::bind(&peers).expect("the path is free");
                let socket = UnixDatagram::bind(ours).expect("the path is free");
                socket.connect(&peers).expect("the socket is bound");
                let name = UnixName::from_bytes(peers.as_os_str().as_bytes());
                let source = Source::Unix(name.expect("the path is short enough"));
                return Some((Self::Unix(socket), Self::Unix(peer), source));
            }
            SocketKind::Ipv6 => Ipv6Addr::LOCALHOST.into(),
            _ => Ipv4Addr::LOCALHOST.into(),
        };
        let peer = UdpSocket::bind((host, 0)).ok()?;
        let socket = UdpSocket::bind((host, 0)).expect("a port is free");
        let address = peer.local_addr().expect("the socket is bound");
        socket.connect(address).expect("the peer is bound");
        Some((Self::Inet(socket), Self::Inet(peer), Source::Inet(address)))
    }

    fn into_descriptor(self) -> OwnedFd {
        let socket: socket2::Socket = match self {
            Self::Inet(socket) => socket.into(),
            Self::Unix(socket) => OwnedFd::from(socket).into(),
        };
        socket.set_nonblocking(true).expect("the socket is open");
        socket.into()
    }

    /// Receives a datagram, blocking, and sends it back.
    fn echo(&self) -> Vec<u8> {
        let mut memory = vec![0; BUFFER_BYTES];
        let len = match self {
            Self::Inet(socket) => {
                let (len, from) = socket.recv_from(&mut memory).expect("a datagram was sent");
                socket
                    .send_to(&memory[..len], from)
                    .expect("the receive queue has room");
                len
            }
            Self::Unix(socket) => {
                let (len, from) = socket.recv_from(&mut memory).expect("a datagram was sent");
                let path = from.as_pathname().expect("the socket is bound");
                socket
                    .send_to(&memory[..len], path)
                    .expect("the receive queue has room");
                len
            }
        };
        memory.truncate(len);
        memory
    }
}

fn a_connected_socket_sends_leased_buffers<D: SocketDriver>() {
    for kind in [SocketKind::Ipv4, SocketKind::Ipv6, SocketKind::Unix] {
        let folder = tempfile::tempdir().expect("a temporary directory can be created");
        let Some((socket, peer, source)) = Connected::pair(kind, folder.path()) else {
            continue;
        };
        let mut test = DriverTest::<Loopback<D>>::new(Answer::Discard);
        let socket = test.driver.add_datagram_socket(socket.into_descriptor());
        test.driver.submit(Op::ReceiveFrom { socket });
        let bytes = pattern(0, 801);
        let buffer = lease_datagrams(&mut test, &envelope_to(source, 100), &bytes);
        test.driver.submit(Op::SendTo { socket, buffer });
        test.until("every datagram is reported as done", |test| {
            test.datagrams_done() == (9, 9)
        });
        let is_datagram = |event: &Event| matches!(event, Event::Datagram(..));
        for (number, datagram) in bytes.chunks(100).enumerate() {
            assert_eq!(peer.echo(), datagram);
            test.until("the echo is received", |test| {
                test.count(is_datagram) > number
            });
            let echo = Event::Datagram(socket, datagram.to_vec(), datagram.len());
            assert!(test.has(&echo), "{kind:?}: {}", test.recent_events());
        }

        // Once the peer is closed, sends fail, and the connected socket also reports ICMP errors
        // (ECONNREFUSED) when it receives. Neither may end the socket or lose a buffer.
        drop(peer);
        for round in 1..=3 {
            let buffer = lease_datagrams(&mut test, &envelope_to(source, 100), &bytes);
            test.driver.submit(Op::SendTo { socket, buffer });
            test.until("every datagram is reported as done", |test| {
                test.datagrams_done().0 == 9 * (round + 1)
            });
            test.until_quiet();
        }
        test.close(socket, Closing::Now);
        test.assert_all_returned();
    }
}

socket_promises![
    a_send_on_a_paused_connection_to_a_closed_peer_fails,
    a_connected_socket_sends_leased_buffers,
];
