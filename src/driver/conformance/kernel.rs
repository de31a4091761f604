//! The promises that only a real kernel can break: which of several drivers a client wakes (10), and
//! what the path to one peer changes for others (13).

use std::io::IoSlice;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt};
use nix::unistd::Uid;

use super::harness::{Harness, Loopback, Opens, Place};
use super::stage::{Answer, Event, Stage, pattern};
use crate::driver::epoll::Epoll;
use crate::driver::uring::Uring;
use crate::driver::{Op, Permits};

// 10. Accepting.

/// Of io_uring only: of drivers over epoll the kernel wakes one only if they sleep at that moment
/// (`EPOLLEXCLUSIVE`, epoll_ctl(2)), which a test cannot arrange.
fn a_client_wakes_one_of_the_drivers_that_share_a_socket<D: Opens>() {
    for _ in 0..5 {
        let mut one = Stage::<Loopback<D>>::new(Answer::Echo);
        let mut other = one.beside();
        let (socket, address) = one.net.listen(Place::V4).expect("every machine has IPv4");
        let copy = socket.try_clone().expect("a descriptor is left");
        for (stage, socket) in [(&mut one, socket), (&mut other, copy)] {
            // Without a permit, a driver that is woken reports that it pauses.
            let permits = Permits::new(0, vec![]);
            let listener = stage.driver.add_listener(socket, Some(permits.into()));
            stage.driver.submit(Op::Accept { listener });
            stage.until_quiet();
        }
        let _peer = one.connect(&address);
        one.until_quiet();
        other.until_quiet();
        let pauses = |event: &Event| matches!(event, Event::AcceptPaused(_, None));
        assert_eq!(one.count(pauses) + other.count(pauses), 1);
    }
}

// 13. Datagrams.

/// Set in a process that has a network of its own.
const OWN_NETWORK: &str = "ECHOD_CONFORMANCE_NETWORK";

/// Whether this process has a network of its own. If not, the promise of that name is run in one
/// that has.
fn has_own_network(driver: &str, promise: &str) -> bool {
    if std::env::var_os(OWN_NETWORK).is_some() {
        return true;
    }
    let namespaces: &[&str] = if Uid::effective().is_root() {
        &["--net"]
    } else {
        &["--user", "--map-root-user", "--net"]
    };
    let name = format!("driver::conformance::kernel::{driver}::{promise}");
    let output = Command::new("unshare")
        .args(namespaces)
        .arg(std::env::current_exe().expect("this test's program is known"))
        .args(["--exact", &name, "--nocapture"])
        .env(OWN_NETWORK, "1")
        .output();
    match output {
        Ok(output) => {
            let texts = [output.stdout, output.stderr];
            let [text, errors] = texts.map(|text| String::from_utf8_lossy(&text).into_owned());
            if text.is_empty() {
                eprintln!("NOT TESTED: no network of its own on this machine: {errors}");
            } else {
                assert!(text.contains("1 passed"), "{text}{errors}");
            }
        }
        Err(error) => eprintln!("NOT TESTED: unshare(1): {error}"),
    }
    false
}

/// A client at this address that receives merged answers as they arrive.
fn client(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind((address, 0)).expect("it is an address of this host");
    setsockopt(&socket, sockopt::UdpGroSegment, &true).expect("every kernel of ours has it");
    socket
        .set_read_timeout(Some(Duration::from_millis(1)))
        .expect("a time");
    socket
}

/// Sends datagrams as one message. Says how many came back at once, at most.
fn exchange<D: Opens>(
    stage: &mut Stage<Loopback<D>>,
    client: &UdpSocket,
    to: &SockaddrStorage,
) -> usize {
    const SIZE: u16 = 1300;
    let bytes = pattern(0, 20 * usize::from(SIZE));
    let (parts, size) = ([IoSlice::new(&bytes)], [ControlMessage::UdpGsoSegments(&SIZE)]);
    let raw = client.as_raw_fd();
    let sent = sendmsg(raw, &parts, &size, MsgFlags::empty(), Some(to));
    assert_eq!(sent, Ok(bytes.len()));
    let mut back: Vec<u8> = vec![];
    let mut most = 0;
    let mut memory = vec![0; 1 << 16];
    stage.until("all came back", |_| {
        if let Ok(len) = client.recv(&mut memory) {
            back.extend(&memory[..len]);
            most = most.max(len / usize::from(SIZE));
        }
        back.len() >= bytes.len()
    });
    assert!(back == bytes);
    most
}

fn a_narrow_path_changes_nothing_for_other_peers<D: Opens>() {
    if !has_own_network(D::NAME, "a_narrow_path_changes_nothing_for_other_peers") {
        return;
    }
    for command in [
        "link set lo up",
        "route replace local 127.0.0.9/32 dev lo table local mtu lock 1280",
    ] {
        let status = Command::new("ip").args(command.split(' ')).status();
        assert!(status.is_ok_and(|status| status.success()), "ip {command}");
    }
    let mut stage = Stage::<Loopback<D>>::new(Answer::Echo);
    let (_, address) = stage.datagrams(Place::V4).expect("every machine has IPv4");
    let address = Loopback::<D>::inet(&address).expect("it is an Internet address");
    let address = SockaddrStorage::from(address);
    let [wide, narrow] = ["127.0.0.1", "127.0.0.9"].map(client);
    assert!(exchange(&mut stage, &wide, &address) > 1, "answers are merged");
    assert_eq!(exchange(&mut stage, &narrow, &address), 1);
    assert!(exchange(&mut stage, &wide, &address) > 1, "and still are");
    assert_eq!(exchange(&mut stage, &narrow, &address), 1);
    stage.until("all is reported", |stage| stage.datagrams_done() == (80, 80));
}

mod epoll {
    use super::*;

    #[test]
    fn a_narrow_path_changes_nothing_for_other_peers() {
        super::a_narrow_path_changes_nothing_for_other_peers::<Epoll>();
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
    fn a_client_wakes_one_of_the_drivers_that_share_a_socket() {
        where_there_is_one(super::a_client_wakes_one_of_the_drivers_that_share_a_socket::<Uring>);
    }

    #[test]
    fn a_narrow_path_changes_nothing_for_other_peers() {
        where_there_is_one(super::a_narrow_path_changes_nothing_for_other_peers::<Uring>);
    }
}
