//! `echoctl status`, `listeners` and `peers`: what they show, select, sort and limit.

use std::net::TcpStream;
use std::os::unix::net::{UnixDatagram, UnixStream};

use serde_json::{Value, json};

use super::{ALL_KINDS, assert_plain, connect_from, only, peer_count};
use crate::harness::{Daemon, connect, eventually, exchange, udp};

/// Waits until the listener has counted what it has sent: an answer may be there before that.
fn is_counted(daemon: &Daemon, bytes: u64) {
    eventually("the answer is counted", || {
        daemon.listener("main")["bytes_sent"] == bytes
    });
}

#[test]
fn status_tells_people_and_programs_the_same() {
    let daemon = Daemon::start(ALL_KINDS);
    let mut peer = daemon.connect("main");
    exchange(&mut peer, b"twelve bytes");
    is_counted(&daemon, 12);

    let status = daemon.ctl_json(&["status"])["status"].clone();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["pid"], daemon.pid());
    assert_eq!(status["state"], "serving");
    assert_eq!(status["generation"], 1);
    assert_eq!(status["listeners"], 4);
    assert_eq!(status["connections"], 1);
    assert_eq!(status["bytes_received"], 12);
    assert_eq!(status["bytes_sent"], 12);
    assert_eq!(status["config"], json!(daemon.config_files(&[])));
    assert_eq!(status["last_reload"]["trigger"], "start");
    assert_eq!(status["last_reload"]["outcome"], "applied");
    let actions: Vec<_> = status["last_reload"]["changes"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|change| change["action"].as_str().expect("a word"))
        .collect();
    assert_eq!(actions, ["add"; 4]);

    let shown = daemon.ctl_text(&["status"]);
    assert_plain(&shown);
    assert!(
        shown.starts_with(concat!(
            "echod ",
            env!("CARGO_PKG_VERSION"),
            ", serving, up "
        )),
        "{shown}"
    );
    for expected in [
        format!("pid {}, ", daemon.pid()),
        format!("generation 1: {}", daemon.path("echod.toml").display()),
        "listeners      4\n".into(),
        "connections    1 of ".into(),
        "traffic        12 B received, 12 B sent\n".into(),
    ] {
        assert!(shown.contains(&expected), "{expected:?} in {shown}");
    }
}

#[test]
fn listeners_are_a_table_with_a_header_and_totals() {
    let daemon = Daemon::start(ALL_KINDS);
    let mut peer = daemon.connect("main");
    exchange(&mut peer, b"hello");
    is_counted(&daemon, 5);
    let shown = daemon.ctl_text(&["listeners"]);
    assert_plain(&shown);
    let lines: Vec<_> = shown.lines().collect();
    assert!(
        lines[0].starts_with("NAME ") && lines[0].ends_with(" SENT"),
        "{shown}"
    );
    assert_eq!(lines.len(), 6, "{shown}");
    assert_eq!(
        lines[5],
        "4 listeners, 1 connection, 5 B received, 5 B sent"
    );
    let address = daemon.address("main").to_string();
    let row = lines[1..5]
        .iter()
        .find(|line| line.starts_with("main "))
        .expect("a row");
    for expected in ["tcp", &address, "echo", "listening", "1024"] {
        assert!(row.split_whitespace().any(|cell| cell == expected), "{row}");
    }

    let listener = daemon.listener("main");
    assert_eq!(listener["protocol"], "tcp");
    assert_eq!(listener["sockets"], 1);
    assert_eq!(listener["accepted"], 1);
    assert_eq!(listener["backlog"]["requested"], 1024);
    assert_eq!(listener["overridden"], json!([]));
    assert!(daemon.listener("datagrams").get("backlog").is_none());
    let local = daemon.path("local.sock").display().to_string();
    assert_eq!(daemon.listener("local")["addresses"], json!([local]));

    let one = daemon.ctl_text(&["listeners", "main"]);
    assert_plain(&one);
    assert!(one.starts_with("main, tcp, listening\n"), "{one}");
    assert!(one.contains("1024 requested → 1024 effective"), "{one}");
}

#[test]
fn peers_of_every_kind_are_listed_with_what_the_kernel_knows() {
    let daemon = Daemon::start(ALL_KINDS);
    let mut tcp = daemon.connect("main");
    exchange(&mut tcp, b"four");
    let udp = udp("127.0.0.1:0");
    udp.connect(daemon.address("datagrams")).expect("connected");
    udp.send(b"sixsix").expect("sent");
    udp.recv(&mut [0; 16]).expect("answered");
    let mut unix = UnixStream::connect(daemon.path("local.sock")).expect("a connection");
    exchange(&mut unix, b"eight by");
    let local = UnixDatagram::bind(daemon.path("peer.sock")).expect("a socket");
    local
        .send_to(b"2!", daemon.path("datagrams.sock"))
        .expect("sent");
    local.recv(&mut [0; 16]).expect("answered");

    let of = |listener| only(&daemon.ctl_json(&["peers", "--listener", listener])).clone();
    let check = |peer: &Value, protocol: &str, address: String, local: String, bytes: u64| {
        assert_eq!(peer["protocol"], protocol);
        assert_eq!(peer["address"], address);
        assert_eq!(peer["local_address"], local);
        assert_eq!(peer["bytes_received"], bytes);
        assert_eq!(peer["bytes_sent"], bytes);
        assert!(peer["id"].as_u64() > Some(0), "{peer}");
        let (age, idle) = (peer["age_ms"].as_u64(), peer["idle_ms"].as_u64());
        assert!(age.is_some() && idle.is_some() && age >= idle, "{peer}");
        assert!(peer.get("via").is_none(), "{peer}");
    };
    let at = |stream: &TcpStream| stream.local_addr().expect("an address").to_string();
    let peer = of("main");
    check(
        &peer,
        "tcp",
        at(&tcp),
        daemon.address("main").to_string(),
        4,
    );
    assert!(peer["rtt_us"].as_u64() > Some(0), "{peer}");
    assert_eq!(peer["retransmits"], 0);
    assert_eq!(peer["send_queue"], 0);
    assert!(peer.get("pid").is_none() && peer.get("uid").is_none());

    let peer = of("datagrams");
    let address = udp.local_addr().expect("an address").to_string();
    check(
        &peer,
        "udp",
        address,
        daemon.address("datagrams").to_string(),
        6,
    );
    assert!(peer.get("rtt_us").is_none());

    let peer = of("local");
    let path = |name| daemon.path(name).display().to_string();
    check(&peer, "unix-stream", "unix".into(), path("local.sock"), 8);
    assert_eq!(peer["pid"], std::process::id());
    assert_eq!(peer["uid"], nix::unistd::getuid().as_raw());

    let peer = of("local-datagrams");
    check(
        &peer,
        "unix-datagram",
        path("peer.sock"),
        path("datagrams.sock"),
        2,
    );

    let shown = daemon.ctl_text(&["peers"]);
    assert_plain(&shown);
    let lines: Vec<_> = shown.lines().collect();
    assert!(lines[0].trim_start().starts_with("ID "), "{shown}");
    assert_eq!(lines.len(), 6, "{shown}");
    assert_eq!(lines[5], "4 peers");
    assert!(shown.contains(&at(&tcp)), "{shown}");
}

#[test]
fn peers_can_be_filtered_sorted_and_limited() {
    let daemon = Daemon::start(ALL_KINDS);
    let address = daemon.address("main");
    let mut peers: Vec<TcpStream> = (1..=4u8)
        .map(|last| connect_from([127, 0, 7, last], address))
        .collect();
    for (index, peer) in peers.iter_mut().enumerate() {
        exchange(peer, &vec![b'x'; 10 * (index + 1)]);
    }
    let mut other = UnixStream::connect(daemon.path("local.sock")).expect("a connection");
    exchange(&mut other, b"other listener");

    assert_eq!(peer_count(&daemon, &[]), 5);
    assert_eq!(peer_count(&daemon, &["--listener", "main"]), 4);
    assert_eq!(peer_count(&daemon, &["--listener", "datagrams"]), 0);
    assert_eq!(peer_count(&daemon, &["--address", "127.0.7.0/24"]), 4);
    assert_eq!(peer_count(&daemon, &["--address", "127.0.7.2/31"]), 2);
    assert_eq!(peer_count(&daemon, &["--address", "127.0.7.3"]), 1);
    assert_eq!(peer_count(&daemon, &["--address", "10.0.0.0/8"]), 0);
    assert_eq!(peer_count(&daemon, &["--older", "1h"]), 0);
    eventually("all are older than 50 ms", || {
        peer_count(&daemon, &["--older", "50ms"]) == 5
    });

    let received = |arguments: &[&str]| -> Vec<u64> {
        let reply = daemon.ctl_json(arguments);
        let peers = reply["peers"].as_array().expect("a list");
        peers
            .iter()
            .map(|peer| peer["bytes_received"].as_u64().expect("a number"))
            .collect()
    };
    assert_eq!(
        received(&["peers", "--listener", "main", "--sort", "received"]),
        [40, 30, 20, 10]
    );
    assert_eq!(
        received(&["peers", "--listener", "main", "--sort", "address"]),
        [10, 20, 30, 40]
    );
    let limited = daemon.ctl_json(&["peers", "--sort", "received", "--limit", "2"]);
    assert_eq!(limited["peers"].as_array().map(Vec::len), Some(2));
    assert_eq!(limited["total"], 5);
    let shown = daemon.ctl_text(&["peers", "--limit", "2"]);
    assert!(shown.ends_with("\n2 of 5 peers\n"), "{shown}");
    assert_eq!(daemon.ctl_text(&["peers", "--older", "1h"]), "0 peers\n");

    // The one that has just sent something is the least idle, whatever the time.
    eventually("silent for a while", || {
        peer_count(&daemon, &["--idle", "100ms"]) == 5
    });
    exchange(&mut peers[2], b"y");
    let by_idle = daemon.ctl_json(&["peers", "--sort", "idle"]);
    let last = by_idle["peers"].as_array().expect("a list").last();
    assert_eq!(last.expect("peers")["bytes_received"], 31);
}

#[test]
fn a_mapped_network_means_the_ipv4_network() {
    let daemon = Daemon::start(ALL_KINDS);
    let mut peer = daemon.connect("main");
    exchange(&mut peer, b"x");
    for network in [
        "127.0.0.1",
        "127.0.0.0/8",
        "::ffff:127.0.0.1",
        "::ffff:127.0.0.0/104",
    ] {
        assert_eq!(peer_count(&daemon, &["--address", network]), 1, "{network}");
        let found = daemon.ctl_json(&["kick", "--address", network, "--dry-run"]);
        assert_eq!(found["matched"], 1, "{network}");
    }
    for network in ["::ffff:10.0.0.0/104", "::/0", "10.0.0.0/8"] {
        assert_eq!(peer_count(&daemon, &["--address", network]), 0, "{network}");
    }
}

#[test]
fn more_peers_than_fit_into_a_page_are_all_listed() {
    let daemon = Daemon::start(ALL_KINDS);
    let address = daemon.address("main");
    let mut peers: Vec<TcpStream> = (0..300).map(|_| connect(address)).collect();
    // Echoed, so accepted.
    for peer in &mut peers {
        exchange(peer, b"x");
    }
    assert_eq!(peer_count(&daemon, &[]), 300);
    let one_reply = daemon.ctl_json(&["call", "ListPeers"]);
    assert_eq!(one_reply["peers"].as_array().map(Vec::len), Some(256));
    assert_eq!(one_reply["total"], 300);
    let pages = daemon.ctl_text(&["--json", "call", "ListPeers", "--more"]);
    let sizes: Vec<_> = pages
        .lines()
        .map(|line| {
            let page: Value = serde_json::from_str(line).expect("JSON");
            assert_eq!(page["total"], 300);
            page["peers"].as_array().map(Vec::len)
        })
        .collect();
    assert_eq!(sizes, [Some(256), Some(44)]);
}
