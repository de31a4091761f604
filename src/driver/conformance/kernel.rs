//! Parts of promises 10 and 13 that depend on the kernel, so that the simulated network cannot test
//! them: a client wakes one of several drivers, and a small path MTU affects one peer only.

use std::io::IoSlice;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt};
use nix::unistd::Uid;

use super::driver_test::{Answer, DriverTest, Event, pattern};
use super::harness::{Harness, SocketKind};
use super::loopback::{Loopback, SocketDriver, socket_promises, where_uring_is_available};
use crate::driver::uring::Uring;
use crate::driver::{Closing, Driver, Op, Permits, Source};

// 10. Accepting.

/// For io_uring only. With epoll the kernel wakes one driver only if all of them are waiting at
/// that moment (`EPOLLEXCLUSIVE`, epoll_ctl(2)), which a test cannot arrange.
#[test]
fn a_client_wakes_one_of_the_uring_drivers_that_share_a_listening_socket() {
    where_uring_is_available(check_that_a_client_wakes_one_driver);
}

fn check_that_a_client_wakes_one_driver() {
    for _ in 0..5 {
        let mut first = DriverTest::<Loopback<Uring>>::new(Answer::Echo);
        let mut second = first.another();
        let (socket, address) = first
            .network
            .listen(SocketKind::Ipv4)
            .expect("IPv4 is available");
        let copy = socket.try_clone().expect("a descriptor is available");
        for (test, socket) in [(&mut first, socket), (&mut second, copy)] {
            // There are no permits, so each driver that is woken reports `AcceptPaused`.
            let permits = Permits::new(0, vec![]);
            let listener = test.driver.add_listener(socket, Some(permits.into()));
            test.driver.submit(Op::Accept { listener });
            test.until_quiet();
        }
        let _peer = first.connect(&address);
        first.until_quiet();
        second.until_quiet();
        let pauses = |event: &Event| matches!(event, Event::AcceptPaused(_, None));
        assert_eq!(
            first.count(pauses) + second.count(pauses),
            1,
            "not exactly one driver was woken"
        );
    }
}

// 11. Bounded work.

/// Draining sockets have long queues, and datagrams arrive as fast as they are answered. Simulated
/// time would stand still during that.
fn a_flood_on_draining_sockets_does_not_delay_other_connections<D: SocketDriver>() {
    let mut test = DriverTest::<Loopback<D>>::new(Answer::Echo);
    let (_, address) = test.listener(None);
    let (mut peer, connection) = test.connection(&address);
    let mut flooded: Vec<_> = (0..4)
        .map(|_| {
            let (socket, address) = test.datagrams(SocketKind::Ipv4).expect("IPv4 is available");
            let client = test.network.client(&address);
            (socket, address, client)
        })
        .collect();
    let sockets: Vec<_> = flooded.iter().map(|(socket, ..)| *socket).collect();
    let mut send = |test: &mut DriverTest<Loopback<D>>, count: usize| {
        for (_, address, client) in &mut flooded {
            while test.network.receive(client).is_some() {}
            for _ in 0..count {
                test.network.send(client, address, None, b"flood");
            }
        }
    };
    // Large batches have to become usual first.
    for _ in 0..40 {
        send(&mut test, 64);
        test.turn();
    }
    // More than a few waits can serve.
    send(&mut test, 250);
    for &token in &sockets {
        test.driver.submit(Op::Close {
            token,
            how: Closing::WhenDrained,
        });
    }
    assert_eq!(test.network.write(&mut peer, b"x"), 1);
    let woken = test.count(|event| matches!(event, Event::Woken));
    test.driver.waker().wake();
    let is_served = |test: &DriverTest<Loopback<D>>| {
        test.received(connection) == b"x"
            && test.count(|event| matches!(event, Event::Woken)) > woken
    };
    while !is_served(&test) {
        let closed = test.count(|event| matches!(event, Event::Closed(_)));
        assert!(closed < sockets.len(), "served only behind the drains");
        send(&mut test, 64);
        test.turn();
    }
}

// 6. Exhaustion.

/// The answers go to a neighbor that is never found, so that the kernel keeps them and soon has no
/// room for more.
fn answers_that_the_network_does_not_take_keep_no_socket_from_receiving<D: SocketDriver>() {
    let name = "answers_that_the_network_does_not_take_keep_no_socket_from_receiving";
    if !has_own_network(D::NAME, name) {
        return;
    }
    ip("link set lo up");
    ip("link add near type veth peer name far");
    ip("address add 10.9.0.1/24 dev near");
    ip("link set near up");
    ip("link set far up");
    let mut test = DriverTest::<Loopback<D>>::new(Answer::Keep);
    let mut answered = 0;
    for _ in 0..8 {
        let socket = UdpSocket::bind("10.9.0.1:0").expect("the address belongs to this host");
        setsockopt(&socket, sockopt::SndBuf, &4096).expect("SO_SNDBUF can be set");
        socket.set_nonblocking(true).expect("it is a socket");
        let address = socket.local_addr().expect("it is bound");
        let socket = test.driver.add_datagram_socket(socket.into());
        test.driver.submit(Op::ReceiveFrom { socket });
        // Of two clients in turn: those of one might share a buffer.
        let clients = ["127.0.0.1", "10.9.0.1"].map(client);
        for index in 0..60 {
            let sent = clients[index % 2].send_to(&[0; 1200], address);
            assert_eq!(sent.ok(), Some(1200));
        }
        test.until_quiet();
        while let Some((socket, buffer)) = test.kept.pop_front() {
            let mut envelope = *test.driver.envelope(&buffer);
            // Answers to one port could leave as one message, however long it is.
            let port = 1000 + answered as u16;
            envelope.source = Source::Inet((Ipv4Addr::new(10, 9, 0, 2), port).into());
            test.driver.set_envelope(&buffer, &envelope);
            test.driver.submit(Op::SendTo { socket, buffer });
            answered += 1;
            if test.kept.is_empty() {
                test.until_quiet();
            }
        }
    }
    test.answer = Answer::Echo;
    let (_, address) = test.datagrams(SocketKind::Ipv4).expect("IPv4 is available");
    let mut client = test.network.client(&address);
    for _ in 0..3 {
        test.network.send(&mut client, &address, None, b"hello");
        assert_eq!(test.reply_to(&mut client).1, b"hello");
        answered += 1;
    }
    assert_eq!(answered, 8 * 60 + 3);
    // Now it is found, and what had not been dropped leaves.
    ip("neighbor replace 10.9.0.2 lladdr 02:00:00:00:00:02 dev near nud permanent");
    test.until("every answer is accounted for", |test| {
        test.datagrams_done().0 == answered
    });
    let (done, sent) = test.datagrams_done();
    assert!(sent > 100 && sent < done, "{sent} of {done} were sent");
    test.assert_all_returned();
}

// 17. Dropping a driver.

/// Also of a driver that has requests which it has not yet submitted.
fn a_driver_dropped_between_waits_keeps_no_address<D: SocketDriver>() {
    // Elsewhere a test beside this one may get the port as soon as it is free.
    if !has_own_network(D::NAME, "a_driver_dropped_between_waits_keeps_no_address") {
        return;
    }
    ip("link set lo up");
    for _ in 0..30 {
        let mut test = DriverTest::<Loopback<D>>::new(Answer::Echo);
        let (_, address) = test.listener(None);
        test.until_quiet();
        let peer = test.connect(&address);
        test.until("the client is accepted", |test| test.accepted().len() == 1);
        test.driver.submit(Op::Close {
            token: test.accepted()[0],
            how: Closing::Now,
        });
        test.driver
            .wait(None, &mut vec![])
            .expect("the driver can continue");
        drop((test, peer));
        let address = Loopback::<D>::inet(&address).expect("it is an Internet address");
        std::net::TcpListener::bind(address).expect("the address is free again");
    }
}

// 13. Datagrams.

/// The environment variable that is set in a process with its own network namespace.
const OWN_NETWORK: &str = "ECHOD_CONFORMANCE_NETWORK";

/// Whether this process has its own network namespace, so that the caller may change routes. If
/// not, the test of that name has just been run in a process that has one, and the caller returns.
fn has_own_network(driver: &str, promise: &str) -> bool {
    if std::env::var_os(OWN_NETWORK).is_some() {
        return true;
    }
    if Command::new("ip").arg("-V").output().is_err() {
        eprintln!("NOT TESTED: this machine has no ip(8)");
        return false;
    }
    // Without privileges, a network namespace needs a user namespace around it.
    let namespaces: &[&str] = if Uid::effective().is_root() {
        &["--net"]
    } else {
        &["--user", "--map-root-user", "--net"]
    };
    let name = format!("driver::conformance::kernel::{driver}::{promise}");
    let output = Command::new("unshare")
        .args(namespaces)
        .arg(std::env::current_exe().expect("the path of the test program is known"))
        .args(["--exact", &name, "--nocapture"])
        .env(OWN_NETWORK, "1")
        .output();
    match output {
        Ok(output) => {
            let texts = [output.stdout, output.stderr];
            let [text, errors] = texts.map(|text| String::from_utf8_lossy(&text).into_owned());
            // The test program did not start: unshare(1) was refused.
            if text.is_empty() {
                eprintln!(
                    "NOT TESTED: no network namespace can be created on this machine: {errors}"
                );
            } else {
                assert!(
                    text.contains("1 passed"),
                    "the test failed in its own process: {text}{errors}"
                );
            }
        }
        Err(error) => eprintln!("NOT TESTED: unshare(1): {error}"),
    }
    false
}

/// Changes the network namespace by ip(8).
fn ip(command: &str) {
    let status = Command::new("ip").args(command.split(' ')).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "ip {command} failed"
    );
}

/// A client at this address with `UDP_GRO`: replies that were sent as one message are received as
/// one.
fn client(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind((address, 0)).expect("the address belongs to this host");
    setsockopt(&socket, sockopt::UdpGroSegment, &true).expect("UDP_GRO can be set");
    socket
        .set_read_timeout(Some(Duration::from_millis(1)))
        .expect("the timeout is not zero");
    socket
}

/// Sends 20 datagrams as one message. Returns the most replies that were received as one message.
fn exchange<D: SocketDriver>(
    test: &mut DriverTest<Loopback<D>>,
    client: &UdpSocket,
    to: &SockaddrStorage,
) -> usize {
    const SIZE: u16 = 1300;
    let bytes = pattern(0, 20 * usize::from(SIZE));
    let (parts, size) = (
        [IoSlice::new(&bytes)],
        [ControlMessage::UdpGsoSegments(&SIZE)],
    );
    let raw = client.as_raw_fd();
    let sent = sendmsg(raw, &parts, &size, MsgFlags::empty(), Some(to));
    assert_eq!(sent, Ok(bytes.len()));
    let mut echoed: Vec<u8> = vec![];
    let mut merged_max = 0;
    let mut memory = vec![0; 1 << 16];
    test.until("all bytes are echoed", |_| {
        if let Ok(len) = client.recv(&mut memory) {
            echoed.extend(&memory[..len]);
            merged_max = merged_max.max(len / usize::from(SIZE));
        }
        echoed.len() >= bytes.len()
    });
    assert!(echoed == bytes, "the echoed bytes differ from those sent");
    merged_max
}

fn a_small_path_mtu_does_not_affect_other_peers<D: SocketDriver>() {
    if !has_own_network(D::NAME, "a_small_path_mtu_does_not_affect_other_peers") {
        return;
    }
    // The kernel segments a message only if each datagram fits the path MTU (udp(7)). The route to
    // 127.0.0.9 has a smaller one than 1300 bytes need: replies there are sent one by one.
    ip("link set lo up");
    ip("route replace local 127.0.0.9/32 dev lo table local mtu lock 1280");
    let mut test = DriverTest::<Loopback<D>>::new(Answer::Echo);
    let (_, address) = test.datagrams(SocketKind::Ipv4).expect("IPv4 is available");
    let address = Loopback::<D>::inet(&address).expect("an IP address");
    let address = SockaddrStorage::from(address);
    let [default_mtu, small_mtu] = ["127.0.0.1", "127.0.0.9"].map(client);
    assert!(
        exchange(&mut test, &default_mtu, &address) > 1,
        "no replies were merged"
    );
    assert_eq!(exchange(&mut test, &small_mtu, &address), 1);
    assert!(
        exchange(&mut test, &default_mtu, &address) > 1,
        "no replies were merged after those with the small MTU"
    );
    assert_eq!(exchange(&mut test, &small_mtu, &address), 1);
    test.until("every reply is done", |test| {
        test.datagrams_done() == (80, 80)
    });
}

socket_promises![
    a_flood_on_draining_sockets_does_not_delay_other_connections,
    a_driver_dropped_between_waits_keeps_no_address,
    answers_that_the_network_does_not_take_keep_no_socket_from_receiving,
    a_small_path_mtu_does_not_affect_other_peers,
];
