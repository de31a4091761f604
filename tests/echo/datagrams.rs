//! Datagrams: one in, one out, same size, from the address that was hit.

use std::io::IoSlice;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
use socket2::SockRef;

use crate::harness::{Daemon, PATIENCE, eventually, has_ipv6, noise, udp};

const DATAGRAMS: &str = r#"
[listener.udp]
protocol = "udp"
address = "127.0.0.1:0"

[listener.unix]
protocol = "unix-datagram"
address = "{dir}/datagram"
"#;

/// What a datagram can hold, and one that is larger than every buffer.
const SIZES: [usize; 8] = [0, 1, 2, 512, 1472, 8193, 65_506, 65_507];

/// A UDP client of a listener.
fn udp_client(daemon: &Daemon, listener: &str) -> UdpSocket {
    let client = udp("127.0.0.1:0");
    client.connect(daemon.address(listener)).expect("connected");
    client
}

/// A Unix client with a name of its own, connected to `unix`.
fn unix_client(daemon: &Daemon, name: &str) -> UnixDatagram {
    let client = UnixDatagram::bind(daemon.path(name)).expect("a socket");
    client.connect(daemon.path("datagram")).expect("connected");
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    client.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    client
}

/// Both kinds of client as one, for what holds for both.
enum Client {
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

impl Client {
    fn all(daemon: &Daemon) -> [Self; 2] {
        [
            Self::Udp(udp_client(daemon, "udp")),
            Self::Unix(unix_client(daemon, "client")),
        ]
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Udp(_) => "udp",
            Self::Unix(_) => "unix",
        }
    }

    fn send(&self, message: &[u8]) {
        let sent = match self {
            Self::Udp(socket) => socket.send(message),
            Self::Unix(socket) => socket.send(message),
        };
        assert_eq!(sent.expect("sent"), message.len());
    }

    /// One datagram, whole.
    fn receive(&self) -> Vec<u8> {
        let mut bytes = vec![0; 70_000];
        let len = match self {
            Self::Udp(socket) => socket.recv(&mut bytes),
            Self::Unix(socket) => socket.recv(&mut bytes),
        };
        bytes.truncate(len.expect("answered"));
        bytes
    }

    /// Fails if something is there to be received.
    fn has_nothing(&self) {
        let mut byte = [0];
        let received = match self {
            Self::Udp(socket) => {
                socket.set_nonblocking(true).expect("an option");
                let received = socket.recv(&mut byte);
                socket.set_nonblocking(false).expect("an option");
                received
            }
            Self::Unix(socket) => {
                socket.set_nonblocking(true).expect("an option");
                let received = socket.recv(&mut byte);
                socket.set_nonblocking(false).expect("an option");
                received
            }
        };
        let kind = received.map_err(|error| error.kind());
        assert_eq!(kind, Err(std::io::ErrorKind::WouldBlock));
    }
}

#[test]
fn a_datagram_of_any_size_comes_back_whole() {
    let daemon = Daemon::start(DATAGRAMS);
    for client in Client::all(&daemon) {
        for size in SIZES {
            let message = noise(size, size as u64);
            client.send(&message);
            let answer = client.receive();
            assert_eq!(answer.len(), size, "{}", client.name());
            assert!(answer == message, "{}: {size} bytes", client.name());
        }
        eventually("all answers are counted", || {
            daemon.listener(client.name())["datagrams_sent"] == SIZES.len()
        });
        let listener = daemon.listener(client.name());
        assert_eq!(listener["datagrams_received"], SIZES.len());
        let bytes: usize = SIZES.iter().sum();
        assert_eq!(listener["bytes_received"], bytes);
        assert_eq!(listener["bytes_sent"], bytes);
    }
}

/// The length field of UDP counts its header of 8 bytes (RFC 768), and over IPv6 that of IP does not
/// count IP's header (RFC 8200, section 3): 20 bytes more than over IPv4 fit.
#[test]
fn the_largest_datagrams_of_ipv6_come_back_whole() {
    if !has_ipv6() {
        eprintln!("NOT TESTED: this machine has no IPv6");
        return;
    }
    let daemon = Daemon::start("[listener.udp]\nprotocol = \"udp\"\naddress = \"[::1]:0\"\n");
    let client = udp("[::1]:0");
    client.connect(daemon.address("udp")).expect("connected");
    let client = Client::Udp(client);
    let sizes = [65_507, 65_508, 65_526, 65_527];
    for size in sizes {
        // Large ones are neither merged nor overtaken. Two are as many as the client has room for.
        let messages = [size, 1472, size, 0].map(|size| noise(size, size as u64));
        for message in &messages {
            client.send(message);
        }
        for message in &messages {
            let answer = client.receive();
            assert!(answer == *message, "{size} bytes: {}", answer.len());
        }
    }
    eventually("all answers are counted", || {
        daemon.listener("udp")["datagrams_sent"] == 4 * sizes.len()
    });
    assert_eq!(daemon.refused("udp", "oversize"), 0);
}

/// A Unix socket takes datagrams of any size; what is answered does not depend on the kind.
#[test]
fn a_unix_datagram_is_answered_up_to_the_largest_size_of_udp() {
    let daemon = Daemon::start(DATAGRAMS);
    let client = Client::Unix(unix_client(&daemon, "client"));
    for size in [65_508, 65_527] {
        client.send(&noise(size, size as u64));
        assert!(client.receive() == noise(size, size as u64), "{size} bytes");
    }
}

#[test]
fn datagrams_sent_at_once_are_answered_one_by_one() {
    let daemon = Daemon::start(DATAGRAMS);
    for client in Client::all(&daemon) {
        for round in 0..50 {
            // Few enough for the queue of a Unix socket (net.unix.max_dgram_qlen is 10).
            let messages: Vec<Vec<u8>> = (0..8).map(|n| noise(n * 100, round * 8)).collect();
            for message in &messages {
                client.send(message);
            }
            let mut answers: Vec<Vec<u8>> = messages.iter().map(|_| client.receive()).collect();
            answers.sort_by_key(Vec::len);
            assert!(answers == messages, "{}: round {round}", client.name());
        }
        client.has_nothing();
    }
}

/// A client has room for 277 small datagrams that it has not read, and so had we.
#[test]
fn a_burst_that_comes_while_the_daemon_is_busy_is_not_lost() {
    // One that may not have as much as it needs reports how much it has, at the level debug.
    let daemon = Daemon::start(&format!("[log]\nlevel = \"debug\"\n{DATAGRAMS}"));
    let log = daemon.log();
    let capped = log
        .split_once("is capped to ")
        .map_or("8388608", |(_, rest)| rest);
    let bytes: usize = capped
        .split(' ')
        .next()
        .and_then(|bytes| bytes.parse().ok())
        .expect("a number of bytes");
    // A small datagram takes 768 bytes, and the kernel doubles the room.
    let each = (bytes / 10 / 512).min(100);
    let clients: Vec<_> = (0..10).map(|_| udp_client(&daemon, "udp")).collect();
    daemon.signal(Signal::SIGSTOP);
    for round in 0..each {
        for (number, client) in clients.iter().enumerate() {
            client
                .send(&noise(64, (number * 1000 + round) as u64))
                .expect("sent");
        }
    }
    daemon.signal(Signal::SIGCONT);
    for (number, client) in clients.iter().enumerate() {
        for round in 0..each {
            let mut answer = [0; 128];
            let len = client.recv(&mut answer).expect("none is lost");
            assert!(
                answer[..len] == noise(64, (number * 1000 + round) as u64),
                "{round}"
            );
        }
    }
    eventually("all are counted, one by one", || {
        let listener = daemon.listener("udp");
        listener["datagrams_received"] == 10 * each && listener["datagrams_sent"] == 10 * each
    });
}

#[test]
fn the_reply_leaves_from_the_address_that_was_hit() {
    let daemon = Daemon::start("[listener.udp]\nprotocol = \"udp\"\naddress = \"*:0\"\n");
    let port = daemon.address("udp").port();
    let mut hosts = vec!["127.0.0.1", "127.0.0.2", "127.3.2.1"];
    if has_ipv6() {
        hosts.push("::1");
    }
    for host in hosts {
        let local = if host.contains(':') {
            "[::]:0"
        } else {
            "0.0.0.0:0"
        };
        // Not connected, so that it would take an answer from anywhere.
        let client = udp(local);
        let target = SocketAddr::new(host.parse().expect("an address"), port);
        client.send_to(host.as_bytes(), target).expect("sent");
        let mut answer = [0; 100];
        let (len, from) = client.recv_from(&mut answer).expect("answered");
        assert_eq!((&answer[..len], from), (host.as_bytes(), target));
    }
}

#[test]
fn a_broadcast_is_not_answered_but_counted() {
    let daemon =
        Daemon::start("[listener.udp]\nprotocol = \"udp\"\naddress = \"0.0.0.0:0\"\nsockets = 1\n");
    let port = daemon.address("udp").port();
    let client = udp("127.0.0.1:0");
    client.set_broadcast(true).expect("an option");
    client
        .send_to(b"everybody", ("127.255.255.255", port))
        .expect("sent");
    eventually("it is counted", || {
        daemon.refused("udp", "not-unicast") == 1
    });
    client.send_to(b"you", ("127.0.0.1", port)).expect("sent");
    let mut answer = [0; 100];
    let len = client.recv(&mut answer).expect("answered");
    assert_eq!(&answer[..len], b"you", "the first answer is to the second");
    eventually("one answer is counted", || {
        daemon.listener("udp")["datagrams_sent"] == 1
    });
    assert_eq!(daemon.listener("udp")["datagrams_received"], 2);
}

#[test]
fn a_multicast_is_not_answered_but_counted() {
    let daemon =
        Daemon::start("[listener.udp]\nprotocol = \"udp\"\naddress = \"0.0.0.0:0\"\nsockets = 1\n");
    let port = daemon.address("udp").port();
    let client = udp("127.0.0.1:0");
    SockRef::from(&client)
        .set_multicast_if_v4(&Ipv4Addr::LOCALHOST)
        .expect("an option");
    // All hosts (RFC 1112), of which every interface is one, the loopback interface too.
    client
        .send_to(b"everybody", ("224.0.0.1", port))
        .expect("sent");
    eventually("it is counted", || {
        daemon.refused("udp", "not-unicast") == 1
    });
    client.send_to(b"you", ("127.0.0.1", port)).expect("sent");
    let mut answer = [0; 100];
    let len = client.recv(&mut answer).expect("answered");
    assert_eq!(&answer[..len], b"you", "the first answer is to the second");
}

#[test]
fn a_unix_client_without_a_name_is_not_answered_but_counted() {
    let daemon = Daemon::start(DATAGRAMS);
    let nameless = UnixDatagram::unbound().expect("a socket");
    for count in 1..=20 {
        nameless
            .send_to(b"who am I?", daemon.path("datagram"))
            .expect("sent");
        eventually("it is counted", || {
            daemon.refused("unix", "no-address") == count
        });
    }
    let client = Client::Unix(unix_client(&daemon, "client"));
    client.send(b"I have a name");
    assert_eq!(client.receive(), b"I have a name");
    eventually("one answer is counted", || {
        daemon.listener("unix")["datagrams_sent"] == 1
    });
}

#[test]
fn a_unix_client_with_an_abstract_name_is_answered() {
    use std::os::linux::net::SocketAddrExt;

    let daemon = Daemon::start(DATAGRAMS);
    let name = daemon.path("abstract");
    let name =
        std::os::unix::net::SocketAddr::from_abstract_name(name.as_os_str().as_encoded_bytes())
            .expect("a name");
    let client = UnixDatagram::bind_addr(&name).expect("a socket");
    client.connect(daemon.path("datagram")).expect("connected");
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let client = Client::Unix(client);
    client.send(b"no file");
    assert_eq!(client.receive(), b"no file");
}

/// Of five large answers that a client did not read in the same millisecond, two were lost: all that
/// is unread is charged to the daemon's send buffer, and the kernel's default has room for three.
#[test]
fn large_answers_to_a_unix_client_that_reads_a_little_later_are_not_lost() {
    const COUNT: usize = 5;
    let daemon = Daemon::start(DATAGRAMS);
    let client = Client::Unix(unix_client(&daemon, "client"));
    for round in 0..COUNT {
        client.send(&noise(60_000, round as u64));
    }
    eventually("all have arrived", || {
        daemon.listener("unix")["datagrams_received"] == COUNT
    });
    for round in 0..COUNT {
        assert_eq!(client.receive(), noise(60_000, round as u64), "{round}");
    }
}

#[test]
fn a_unix_client_that_does_not_read_does_not_delay_others() {
    let daemon = Daemon::start(DATAGRAMS);
    let deaf = UnixDatagram::bind(daemon.path("deaf")).expect("a socket");
    deaf.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    let client = Client::Unix(unix_client(&daemon, "client"));
    for round in 0..500_u16 {
        // Blocks, and fails in the end, should the daemon wait for its own answer to fit.
        deaf.send_to(&round.to_be_bytes(), daemon.path("datagram"))
            .expect("sent");
        if round % 10 == 0 {
            let message = noise(100, round.into());
            client.send(&message);
            assert_eq!(client.receive(), message, "round {round}");
        }
    }
    // What did fit into its queue (net.unix.max_dgram_qlen) is whole and comes once.
    deaf.set_nonblocking(true).expect("an option");
    let mut answer = [0; 10];
    let mut heard = Vec::new();
    eventually("all that is counted as sent has arrived", || {
        while let Ok(len) = deaf.recv(&mut answer) {
            heard.push(u16::from_be_bytes(
                answer[..len].try_into().expect("2 bytes"),
            ));
        }
        let listener = daemon.listener("unix");
        listener["datagrams_received"] == 550 && listener["datagrams_sent"] == 50 + heard.len()
    });
    heard.sort_unstable();
    assert!(heard.windows(2).all(|pair| pair[0] < pair[1]), "{heard:?}");
}

#[test]
fn a_unix_datagram_larger_than_can_be_answered_whole_is_counted_and_dropped() {
    let daemon = Daemon::start(DATAGRAMS);
    let client = Client::Unix(unix_client(&daemon, "client"));
    for size in [65_528, 65_536, 65_537, 100_000] {
        client.send(&noise(size, 0));
    }
    client.send(b"small");
    assert_eq!(
        client.receive(),
        b"small",
        "the first answer is to the last"
    );
    // Another worker may have one of them in hand still.
    eventually("they are counted", || {
        daemon.refused("unix", "oversize") == 4
    });
    eventually("one answer is counted", || {
        daemon.listener("unix")["datagrams_sent"] == 1
    });
}

#[test]
fn datagrams_to_a_client_that_has_gone_do_not_disturb_others() {
    let daemon = Daemon::start(DATAGRAMS);
    for client in Client::all(&daemon) {
        for round in 0..100 {
            // It is gone before the answer, or about to go: an error for the daemon either way.
            let gone = match client {
                Client::Udp(_) => Client::Udp(udp_client(&daemon, "udp")),
                Client::Unix(_) => Client::Unix(unix_client(&daemon, &format!("gone-{round}"))),
            };
            gone.send(b"gone");
            drop(gone);
            let message = noise(200, round);
            client.send(&message);
            assert_eq!(client.receive(), message, "{}", client.name());
        }
        // Another worker may still have the last of those that were gone.
        eventually("all are counted", || {
            daemon.listener(client.name())["datagrams_received"] == 200
        });
    }
}

#[test]
fn upper_and_discard_hold_for_datagrams_too() {
    let upper = Daemon::start(&format!("[defaults]\nreply = \"upper\"\n{DATAGRAMS}"));
    for client in Client::all(&upper) {
        for message in [&b""[..], b"a", b"Grey \xe9 z{`"] {
            client.send(message);
            assert_eq!(client.receive(), message.to_ascii_uppercase());
        }
    }
    let discard = Daemon::start(&format!("[defaults]\nreply = \"discard\"\n{DATAGRAMS}"));
    for client in Client::all(&discard) {
        client.send(b"");
        client.send(b"nothing");
        eventually("both have arrived", || {
            discard.listener(client.name())["datagrams_received"] == 2
        });
        assert_eq!(discard.listener(client.name())["datagrams_sent"], 0);
        client.has_nothing();
    }
}

#[test]
fn descriptors_that_come_with_a_datagram_do_not_stay_in_the_daemon() {
    let daemon = Daemon::start(DATAGRAMS);
    let client = unix_client(&daemon, "client");
    let before = daemon.descriptors();
    let gift = std::fs::File::open("/dev/null").expect("a file");
    let target = UnixAddr::new(&daemon.path("datagram")).expect("a path");
    for round in 0..200_u8 {
        sendmsg(
            client.as_raw_fd(),
            &[IoSlice::new(&[round])],
            &[ControlMessage::ScmRights(&[gift.as_raw_fd(); 5])],
            MsgFlags::empty(),
            Some(&target),
        )
        .expect("sent");
        let mut answer = [0; 10];
        let len = client.recv(&mut answer).expect("answered");
        assert_eq!(&answer[..len], [round]);
    }
    eventually("none of them stays", || daemon.descriptors() <= before);
    assert!(Path::new(&daemon.path("datagram")).exists());
}

#[test]
fn one_socket_with_several_workers_answers_one_sender_in_order() {
    let daemon = Daemon::start(&format!(
        "[daemon]\nworkers = 4\n[defaults]\nsockets = 1\n{DATAGRAMS}"
    ));
    for client in Client::all(&daemon) {
        let mut next_sent = 0_u32;
        for next in 0..20_000_u32 {
            // Some are under way all the time, and no queue on the way is too short for them.
            while next_sent < next + 8 {
                client.send(&next_sent.to_le_bytes());
                next_sent += 1;
            }
            assert_eq!(client.receive(), next.to_le_bytes(), "{}", client.name());
        }
    }
}
