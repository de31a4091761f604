//! The examples that come with echod, each with the client that its first lines describe.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};

use crate::harness::{
    Daemon, PATIENCE, allow_many_descriptors, eventually, exchange, has_ipv6, not_tested,
    repository, text, udp,
};

/// Runs an example, with another address in the place of each of its own.
fn start(example: &str, addresses: &[&str]) -> Daemon {
    let path = repository("etc/examples").join(example);
    let written = std::fs::read_to_string(path).expect("an example");
    let mut addresses = addresses.iter();
    let mut config = String::new();
    for line in written.lines() {
        if line.starts_with("address = ") {
            let address = addresses.next().expect("as many as there are listeners");
            config += &format!("address = \"{address}\"\n");
        } else {
            config += &format!("{line}\n");
        }
    }
    assert!(addresses.next().is_none(), "{example} has fewer listeners");
    Daemon::start(&config)
}

fn read_to_end(stream: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("a FIN, and no reset");
    bytes
}

#[test]
fn every_example_is_run_here() {
    let this = std::fs::read_to_string(repository("tests/examples.rs")).expect("this file");
    for entry in std::fs::read_dir(repository("etc/examples")).expect("a folder") {
        let name = entry.expect("a file").file_name();
        let name = name.to_str().expect("a name");
        assert!(this.contains(&format!("start(\"{name}\"")), "{name}");
    }
}

#[test]
fn one_message_is_answered_in_capitals_and_then_the_server_closes() {
    let daemon = start("one-message.toml", &["127.0.0.1:0"]);
    assert_eq!(daemon.listener("one-message")["backlog"]["requested"], 3);
    for _ in 0..10 {
        let mut client = daemon.connect("one-message");
        client.write_all(b"hello, server").expect("sent");
        // The client reads until the end without having said anything of its own end.
        assert_eq!(read_to_end(&mut client), b"HELLO, SERVER");
    }
}

#[test]
fn a_loop_answers_line_after_line_until_the_client_ends() {
    let daemon = start("loop.toml", &["127.0.0.1:0"]);
    for _ in 0..3 {
        let mut client = daemon.connect("loop");
        for line in ["one\n", "Two\n", "q\n", "drei, vier\n"] {
            let answer = exchange(&mut client, line.as_bytes());
            assert_eq!(text(&answer), line.to_ascii_uppercase());
        }
        client.shutdown(Shutdown::Write).expect("half-closed");
        assert_eq!(read_to_end(&mut client), b"");
    }
}

#[test]
fn one_client_at_a_time_is_served_in_the_order_in_which_they_came() {
    let daemon = start("one-at-a-time.toml", &["127.0.0.1:0"]);
    assert_eq!(daemon.listener("one-at-a-time")["backlog"]["requested"], 5);
    // All of them connect and say something; that succeeds although only one is served.
    let mut clients: Vec<TcpStream> = (0..6)
        .map(|number| {
            let mut client = daemon.connect("one-at-a-time");
            client.write_all(&[number; 10]).expect("sent");
            client
        })
        .collect();
    for number in 0..6 {
        let waiting = 5 - number;
        let mut served = clients.remove(0);
        let mut answer = [0; 10];
        served.read_exact(&mut answer).expect("it is its turn");
        assert_eq!(answer, [number; 10]);
        assert_eq!(exchange(&mut served, b"and more"), b"and more");
        // `echoctl listeners` shows the clients that are served and those that wait.
        let listener = daemon.listener("one-at-a-time");
        assert_eq!(listener["connections"], 1);
        assert_eq!(listener["accepted"], number + 1);
        assert_eq!(listener["backlog"]["queued"], waiting);
        for client in &clients {
            assert_not_answered(client);
        }
        served.shutdown(Shutdown::Write).expect("half-closed");
        assert_eq!(read_to_end(&mut served), b"");
    }
    eventually("no connection is left", || {
        daemon.connections("one-at-a-time") == 0
    });
}

fn assert_not_answered(client: &TcpStream) {
    client.set_nonblocking(true).expect("an option");
    let peeked = client.peek(&mut [0]).map_err(|error| error.kind());
    assert_eq!(peeked, Err(ErrorKind::WouldBlock));
    client.set_nonblocking(false).expect("an option");
}

#[test]
fn people_see_one_served_and_the_others_waiting() {
    let daemon = start("one-at-a-time.toml", &["127.0.0.1:0"]);
    let mut clients: Vec<TcpStream> = (0..4).map(|_| daemon.connect("one-at-a-time")).collect();
    exchange(&mut clients[0], b"served");
    let output = daemon.ctl(&["listeners"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    let mut lines = table.lines();
    let heads = lines.next().expect("a head");
    let line = lines.find(|line| line.contains("one-at-a-time"));
    let line = line.expect("a line");
    // Numbers end where their header ends.
    let cell = |head: &str| {
        let start = heads.find(head);
        let end = start.unwrap_or_else(|| panic!("no {head} in {table}")) + head.len();
        line[..end].rsplit("  ").next().unwrap_or_default().trim()
    };
    assert_eq!(cell("CONNECTIONS"), "1/1 full", "{table}");
    assert_eq!(cell("QUEUED"), "3", "{table}");
}

#[test]
fn datagrams_come_back_in_capitals_the_empty_one_too() {
    let daemon = start("udp-upper.toml", &["127.0.0.1:0"]);
    let client = udp("127.0.0.1:0");
    let server = daemon.address("udp-upper");
    for message in ["hello", "", "q", "Only letters: 1 2 3 é"] {
        client.send_to(message.as_bytes(), server).expect("sent");
        let mut answer = [0; 100];
        let (len, from) = client.recv_from(&mut answer).expect("answered");
        assert_eq!(text(&answer[..len]), message.to_ascii_uppercase());
        assert_eq!(from, server);
    }
}

#[test]
fn hundreds_are_served_at_once_and_one_address_does_not_get_it_all() {
    if allow_many_descriptors() < 2000 {
        not_tested("hundreds of clients need more descriptors (ulimit -Hn)");
        return;
    }
    let daemon = start("hundreds.toml", &["127.0.0.1:0"]);
    let server = daemon.address("hundreds");
    let mut clients: Vec<TcpStream> = (0..500).map(|_| crate::harness::connect(server)).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        let message = format!("client {number}");
        assert_eq!(text(&exchange(client, message.as_bytes())), message);
    }
    assert_eq!(daemon.connections("hundreds"), 500);
    // max-per-source is 500.
    let end = TcpStream::connect(server).and_then(|mut one_more| {
        one_more.set_read_timeout(Some(PATIENCE))?;
        one_more.read(&mut [0])
    });
    let end = end.map_err(|error| error.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
    assert_eq!(daemon.refused("hundreds", "per-source"), 1);
    drop(clients);
    eventually("all have gone", || daemon.connections("hundreds") == 0);
    assert_eq!(exchange(&mut daemon.connect("hundreds"), b"me"), b"me");
}

#[test]
fn clients_are_served_over_ipv6() {
    if !has_ipv6() {
        return;
    }
    let daemon = start("ipv6.toml", &["[::1]:0"]);
    let mut client = daemon.connect("ipv6");
    assert!(client.peer_addr().expect("an address").is_ipv6());
    assert_eq!(exchange(&mut client, b"six"), b"six");
    client.shutdown(Shutdown::Write).expect("half-closed");
    assert_eq!(read_to_end(&mut client), b"");
}

#[test]
fn clients_on_this_machine_are_served_over_unix_sockets() {
    let daemon = start("unix.toml", &["{dir}/stream", "{dir}/datagram"]);

    let mut stream = UnixStream::connect(daemon.path("stream")).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    for line in ["one", "two"] {
        assert_eq!(text(&exchange(&mut stream, line.as_bytes())), line);
    }
    stream.shutdown(Shutdown::Write).expect("half-closed");
    assert_eq!(read_to_end(&mut stream), b"");

    let datagram = UnixDatagram::bind(daemon.path("client")).expect("a socket");
    datagram
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout");
    for message in ["one", "", "two"] {
        datagram
            .send_to(message.as_bytes(), daemon.path("datagram"))
            .expect("sent");
        let mut answer = [0; 100];
        let (len, from) = datagram.recv_from(&mut answer).expect("answered");
        assert_eq!(text(&answer[..len]), message);
        assert_eq!(from.as_pathname(), Some(&*daemon.path("datagram")));
    }
}
