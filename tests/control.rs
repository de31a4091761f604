//! Every command of echoctl as its users run it, and control clients that misbehave.
//!
//! The daemon has a listener of each kind. What is measured in time is printed and not judged; what
//! never comes is a failure ([`crate::harness::PATIENCE`]).

mod peers;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    Control, Daemon, ECHOCTL, ECHOPROBE, PATIENCE, after_shell_line, connect, eventually, exchange,
    install, not_tested, text, udp,
};

const ALL_KINDS: &str = r#"
[log]
target = "stderr"

[defaults]
sockets = 1

[listener.main]
protocol = "tcp"
address = "127.0.0.1:0"

[listener.datagrams]
protocol = "udp"
address = "127.0.0.1:0"

[listener.local]
protocol = "unix-stream"
address = "{dir}/local.sock"

[listener.local-datagrams]
protocol = "unix-datagram"
address = "{dir}/datagrams.sock"
"#;

const ONE_AT_A_TIME: &str = r#"
[log]
target = "stderr"

[listener.main]
protocol = "tcp"
address = "127.0.0.1:0"
sockets = 1
max-connections = 1
backlog = 16
"#;

/// The only entry of a list of peers.
fn only(reply: &Value) -> &Value {
    let peers = reply["peers"].as_array().expect("a list");
    assert_eq!(peers.len(), 1, "{reply}");
    &peers[0]
}

fn peer_count(daemon: &Daemon, selection: &[&str]) -> u64 {
    let arguments = [&["peers"], selection].concat();
    let reply = daemon.ctl_json(&arguments);
    let total = reply["total"].as_u64().expect("a number");
    assert_eq!(
        reply["peers"].as_array().map(Vec::len),
        Some(total as usize)
    );
    total
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

/// A connection from another loopback address.
fn connect_from(local: [u8; 4], address: SocketAddr) -> TcpStream {
    let socket =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket
        .bind(&SocketAddr::from((local, 0)).into())
        .expect("an address");
    socket.connect(&address.into()).expect("a connection");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// What piped output must be: whole lines without a trace of a terminal.
fn assert_plain(text: &str) {
    assert!(!text.contains('\x1b'), "escape codes in a pipe: {text:?}");
    assert!(text.ends_with('\n'), "{text:?}");
    assert!(
        text.lines().all(|line| line == line.trim_end()),
        "blanks at the end of a line: {text:?}"
    );
}

#[test]
fn status_tells_people_and_programs_the_same() {
    let daemon = Daemon::start(ALL_KINDS);
    let mut peer = daemon.connect("main");
    exchange(&mut peer, b"twelve bytes");

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
        "connections    1\n".into(),
        "received       12 B\n".into(),
    ] {
        assert!(shown.contains(&expected), "{expected:?} in {shown}");
    }
}

#[test]
fn listeners_are_a_table_with_a_header_and_totals() {
    let daemon = Daemon::start(ALL_KINDS);
    let mut peer = daemon.connect("main");
    exchange(&mut peer, b"hello");
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
fn the_log_says_which_caller_changed_what() {
    let daemon = Daemon::start(ALL_KINDS);
    let uid = nix::unistd::getuid();
    let said = |line: &str| daemon.log().lines().filter(|l| l.contains(line)).count();
    let check = |arguments: &[&str], what: &str| {
        daemon.ctl_text(arguments);
        let log = daemon.log();
        let line = log.lines().find(|line| line.ends_with(what));
        let line = line.unwrap_or_else(|| panic!("{what:?} in {log}"));
        assert!(
            line.contains(&format!("control: uid {uid} (pid ")),
            "{line}"
        );
        assert!(line.contains("program \"echoctl\") "), "{line}");
    };
    check(
        &["backlog", "main", "99"],
        "sets the backlog of listener \"main\" to 99",
    );
    check(
        &["kick", "--listener", "main", "--idle", "90s"],
        "closes the connections of listener \"main\", idle for at least 1m 30s",
    );
    check(&["reload"], "reloads the configuration");
    check(&["log-level", "debug"], "sets the log level to debug");
    check(&["upgrade"], "upgrades the daemon");
    assert_eq!(said("control: uid"), 5);
    // What changes nothing is not logged.
    daemon.ctl_text(&["status"]);
    daemon.ctl_text(&["peers"]);
    daemon.ctl_text(&["kick", "main", "--dry-run"]);
    daemon.ctl_text(&["reload", "--dry-run"]);
    assert_eq!(said("control: uid"), 5, "{}", daemon.log());
}

#[test]
fn a_request_that_is_too_large_is_refused_for_that_reason() {
    let daemon = Daemon::start(ALL_KINDS);
    // One that fits into the socket's buffer, and one of which the daemon reads only the beginning.
    for len in [70_000, 120_000] {
        let parameters = json!({ "listener": "a".repeat(len) }).to_string();
        let output = daemon.ctl(&["call", "ListPeers", &parameters]);
        assert_eq!(code(&output), Some(1));
        let stderr = text(&output.stderr);
        let told = "the request is too large: echod takes 65536 bytes at most";
        assert!(stderr.contains(told), "{stderr}");
    }
    let mut control = daemon.control();
    // The daemon may close before all is sent.
    let _ = control.stream.write_all(&vec![b'x'; 4 * 1024 * 1024]);
    let reply = control.reply().expect("the reason");
    assert_eq!(reply["error"], "io.echod.Control.RequestTooLarge");
    assert_eq!(control.reply(), None);
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

#[test]
fn a_backlog_is_raised_and_lowered_and_no_queued_client_is_lost() {
    let daemon = Daemon::start(ONE_AT_A_TIME);
    let address = daemon.address("main");
    let mut first = connect(address);
    exchange(&mut first, b"in");
    let mut queued: Vec<TcpStream> = (0..5).map(|_| connect(address)).collect();
    for client in &mut queued {
        client.write_all(b"waiting").expect("sent");
    }
    eventually("five are counted in the queue", || {
        daemon.listener("main")["backlog"]["queued"] == 5
    });
    assert_eq!(daemon.listener("main")["connections"], 1);

    let raised = daemon.ctl_json(&["backlog", "main", "64"]);
    assert_eq!(raised["before"]["requested"], 16);
    assert_eq!(raised["before"]["effective"], 16);
    assert_eq!(raised["after"]["requested"], 64);
    assert_eq!(raised["after"]["effective"], 64);
    assert_eq!(raised["after"]["queued"], 5);
    let lowered = daemon.ctl_text(&["backlog", "main", "2"]);
    assert_plain(&lowered);
    assert!(
        lowered.starts_with("main: backlog 2 requested → 2 effective\n"),
        "{lowered}"
    );
    assert!(lowered.contains("5 queued now"), "{lowered}");
    assert!(
        lowered.contains("before: 64 requested → 64 effective"),
        "{lowered}"
    );
    assert_eq!(daemon.listener("main")["overridden"], json!(["backlog"]));
    let shown = daemon.ctl_text(&["backlog", "main"]);
    assert!(shown.contains("2 requested → 2 effective"), "{shown}");

    // One after the other they come in, as those before them go.
    drop(first);
    for mut client in queued {
        let mut answer = [0; 7];
        client.read_exact(&mut answer).expect("served");
        assert_eq!(&answer, b"waiting");
    }
}

#[test]
fn a_backlog_above_the_kernels_limit_is_reported_as_capped() {
    let limit: u64 = std::fs::read_to_string("/proc/sys/net/core/somaxconn")
        .expect("the kernel's limit")
        .trim()
        .parse()
        .expect("a number");
    let daemon = Daemon::start(ALL_KINDS);
    let requested = (limit + 1000).to_string();
    let shown = daemon.ctl_text(&["backlog", "main", &requested]);
    assert!(
        shown.contains(&format!("{requested} requested → {limit} effective")),
        "{shown}"
    );
    assert!(
        shown.contains(&format!("capped by net.core.somaxconn = {limit}")),
        "{shown}"
    );
    let backlog = &daemon.listener("main")["backlog"];
    assert_eq!(backlog["effective"], limit);
    assert_eq!(backlog["limit"], limit);

    // Each way not to have a backlog has its words.
    for (arguments, told) in [
        (["backlog", "datagrams", "5"], "datagrams have no backlog"),
        (["backlog", "main", "0"], "backlog 0: not possible"),
        (["backlog", "main", "-3"], "backlog -3: not possible"),
        (["backlog", "nobody", "5"], "there are: datagrams, local"),
    ] {
        let output = daemon.ctl(&arguments);
        assert_eq!(code(&output), Some(1), "{arguments:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.contains(told), "{told:?} in {stderr}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn clients_that_find_the_queue_full_are_counted() {
    let daemon = Daemon::start(&ONE_AT_A_TIME.replace("backlog = 16", "backlog = 1"));
    let address = daemon.address("main");
    let mut first = connect(address);
    exchange(&mut first, b"in");
    assert_eq!(daemon.listener("main")["backlog"]["overflows"], 0);
    let clients: Vec<socket2::Socket> = (0..10)
        .map(|_| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
                .expect("a socket");
            socket.set_nonblocking(true).expect("set");
            // EINPROGRESS: the answer to its SYN is what never comes.
            let _ = socket.connect(&address.into());
            socket
        })
        .collect();
    eventually("some were turned away", || {
        daemon.listener("main")["backlog"]["overflows"].as_u64() > Some(0)
    });
    drop(clients);
}

#[test]
fn a_kick_closes_the_selected_connections_and_no_others() {
    let daemon = Daemon::start(ALL_KINDS);
    let address = daemon.address("main");
    let mut peers: Vec<TcpStream> = (1..=4u8)
        .map(|last| connect_from([127, 0, 7, last], address))
        .collect();
    for peer in &mut peers {
        exchange(peer, b"hello");
    }
    let mut other = UnixStream::connect(daemon.path("local.sock")).expect("a connection");
    exchange(&mut other, b"hello");
    let udp = udp("127.0.0.1:0");
    udp.send_to(b"x", daemon.address("datagrams"))
        .expect("sent");
    udp.recv(&mut [0; 16]).expect("answered");

    let is_closed = |peer: &mut TcpStream| match peer.read(&mut [0]) {
        Ok(0) => true,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => true,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        daemon.ctl_text(&["kick", "127.0.7.0/24", "--dry-run"]),
        "would close 4 connections\n"
    );
    for peer in &mut peers {
        assert_eq!(exchange(peer, b"still here"), b"still here");
    }

    let reply = daemon.ctl_json(&["peers", "--address", "127.0.7.1"]);
    let id = only(&reply)["id"].to_string();
    let kicked = daemon.ctl_json(&["kick", &id]);
    assert_eq!(kicked, json!({ "matched": 1, "closed": 1 }));
    assert!(is_closed(&mut peers[0]));
    assert_eq!(daemon.ctl_text(&["kick", &id]), "no connection matches\n");

    assert_eq!(
        daemon.ctl_text(&["kick", "127.0.7.2/31"]),
        "closed 2 connections\n"
    );
    assert!(is_closed(&mut peers[1]) && is_closed(&mut peers[2]));
    assert_eq!(exchange(&mut peers[3], b"not I"), b"not I");

    // Sources of datagrams have nothing to close.
    assert_eq!(
        daemon.ctl_text(&["kick", "datagrams"]),
        "no connection matches\n"
    );
    assert_eq!(daemon.ctl_text(&["kick", "main"]), "closed 1 connection\n");
    assert!(is_closed(&mut peers[3]));
    assert_eq!(exchange(&mut other, b"nor I"), b"nor I");
    assert_eq!(
        daemon.ctl_text(&["kick", "--older", "0s"]),
        "closed 1 connection\n"
    );
    assert_eq!(other.read(&mut [0]).expect("its end"), 0);
    eventually("they are gone", || {
        daemon.ctl_json(&["status"])["status"]["connections"] == 0
    });
}

#[test]
fn the_configuration_that_is_shown_starts_another_daemon() {
    let daemon = Daemon::start(ALL_KINDS);
    daemon.ctl_text(&["backlog", "main", "77"]);
    let shown = daemon.ctl_text(&["config", "show"]);
    assert!(shown.contains("backlog = 77"), "{shown}");
    let file = daemon.path("shown.toml");
    std::fs::write(&file, &shown).expect("written");
    assert_eq!(
        code(&daemon.ctl(&["check", &file.display().to_string()])),
        Some(0)
    );

    // Where the first one was: its paths are in the text.
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    let mut daemon = daemon;
    assert!(daemon.wait().success());
    let second = Daemon::start(&shown);
    assert_eq!(second.ctl_text(&["config", "show"]), shown);
    assert_eq!(second.listener("main")["backlog"]["requested"], 77);
    assert_eq!(second.listener("main")["overridden"], json!([]));
}

#[test]
fn the_log_level_takes_effect_at_once_and_until_the_next_reload() {
    let daemon = Daemon::start(ALL_KINDS);
    let address = daemon.address("main");
    // A reset by the peer is a debug line.
    let reset = || {
        let stream = connect(address);
        socket2::SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .expect("set");
    };
    let lines = || daemon.log().matches("the peer reset it").count();
    reset();
    eventually("the first is gone", || {
        let listener = daemon.listener("main");
        listener["accepted"] == 1 && listener["connections"] == 0
    });
    assert_eq!(lines(), 0);
    assert_eq!(daemon.ctl_text(&["log-level", "debug"]), "info → debug\n");
    reset();
    eventually("the second is a line", || lines() == 1);
    assert_eq!(
        daemon.ctl_json(&["log-level", "error"]),
        json!({ "before": "debug", "after": "error" })
    );
    reset();
    eventually("the third is gone", || {
        let listener = daemon.listener("main");
        listener["accepted"] == 3 && listener["connections"] == 0
    });
    assert_eq!(lines(), 1);
    daemon.reload();
    assert_eq!(daemon.ctl_json(&["log-level", "warn"])["before"], "info");
    assert_eq!(code(&daemon.ctl(&["log-level", "loud"])), Some(1));
}

#[test]
fn any_method_can_be_called() {
    let daemon = Daemon::start(ALL_KINDS);
    let status = daemon.ctl_json(&["call", "GetStatus"]);
    assert_eq!(status["status"]["pid"], daemon.pid());
    let info = daemon.ctl_json(&["call", "org.varlink.service.GetInfo"]);
    assert_eq!(
        info["interfaces"],
        json!(["org.varlink.service", "io.echod.Control"])
    );
    let one = daemon.ctl_json(&["call", "ListListeners", r#"{"name": "main"}"#]);
    assert_eq!(one["listeners"][0]["name"], "main");
    // A raw call has no text of its own: what it prints is JSON either way.
    let plain = daemon.ctl_text(&["call", "GetStatus"]);
    assert!(serde_json::from_str::<Value>(&plain).is_ok(), "{plain}");

    for (arguments, status, told) in [
        (&["call", "Fly"][..], 1, "this echod has no such method"),
        (
            &["call", "GetStatus", "{\"x\": 1}"],
            1,
            "x: missing, unknown",
        ),
        (&["call", "GetStatus", "[]"], 2, "not an object"),
        (&["call", "GetStatus", "{"], 2, "JSON: "),
    ] {
        let output = daemon.ctl(arguments);
        assert_eq!(code(&output), Some(status), "{arguments:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.contains(told), "{told:?} in {stderr}");
    }
}

#[test]
fn completions_are_scripts_that_the_shells_take_and_know_the_command_lines() {
    for (program, words) in [
        ("echoctl", &["status", "peers", "kick", "dry-run"][..]),
        ("echod", &["config", "print-config", "listen"][..]),
        ("echoprobe", &["ping", "load", "proxy", "flows"][..]),
    ] {
        for shell in ["bash", "zsh", "fish"] {
            let output = Command::new(ECHOCTL)
                .args(["completions", shell, program])
                .output()
                .expect("echoctl runs");
            assert!(output.status.success());
            let script = text(&output.stdout);
            for word in words {
                assert!(script.contains(word), "{word} for {shell}");
            }
            // Where there is no such shell, they are of no use.
            let Ok(mut reader) = Command::new(shell)
                .args(["-n", "/dev/stdin"])
                .stdin(Stdio::piped())
                .spawn()
            else {
                continue;
            };
            let mut stdin = reader.stdin.take().expect("a pipe");
            stdin.write_all(script.as_bytes()).expect("written");
            drop(stdin);
            let status = reader.wait().expect("it ends");
            assert!(status.success(), "{program} for {shell}");
        }
    }
}

#[test]
fn completions_of_a_program_that_is_not_ours_are_refused() {
    let output = Command::new(ECHOCTL)
        .args(["completions", "bash", "cat"])
        .output()
        .expect("echoctl runs");
    assert_eq!(code(&output), Some(2));
    let stderr = text(&output.stderr);
    assert!(
        stderr.contains("use echod, echoprobe or echoctl"),
        "{stderr}"
    );
}

#[test]
fn every_exit_status_means_one_thing() {
    let daemon = Daemon::start(ALL_KINDS);
    let check = |arguments: &[&str], status: i32, told: &str| {
        let output = daemon.ctl(arguments);
        let stderr = text(&output.stderr);
        assert_eq!(code(&output), Some(status), "{arguments:?}: {stderr}");
        assert!(stderr.contains(told), "{arguments:?}: {stderr}");
        if status == 0 {
            assert_eq!(stderr, "", "{arguments:?}");
        }
    };
    check(&["status"], 0, "");
    check(&["listeners", "nobody"], 1, "\"nobody\": there is none");
    check(&["peers", "--listener", "nobody"], 1, "there are: ");
    check(
        &["peers", "--sort", "beauty"],
        1,
        "sort: not a key: use one",
    );
    check(
        &["peers", "--address", "main"],
        1,
        "address: not one: write",
    );
    check(&["kick", "nobody"], 1, "there is none of this name");
    check(&["no-such-command"], 2, "unrecognized");
    check(&["kick"], 2, "required");
    check(&["peers", "--limit", "many"], 2, "invalid value");
    check(&["reload", "--dry-run", "--last"], 2, "cannot be used");

    let missing = daemon.path("missing.sock").display().to_string();
    check(
        &["--socket", &missing, "status"],
        69,
        "no such file; is echod running?",
    );
    let stale = daemon.path("stale.sock");
    drop(UnixListener::bind(&stale).expect("a socket"));
    check(
        &["--socket", &stale.display().to_string(), "status"],
        69,
        "connection refused",
    );

    let wrong = daemon.path("wrong.toml");
    std::fs::write(&wrong, "[listener.main]\nprotocol = \"tpc\"\n").expect("written");
    let wrong = wrong.display().to_string();
    check(&["check", &wrong], 78, &format!("{wrong}:2:12: "));
    let right = daemon.path("echod.toml").display().to_string();
    assert_eq!(code(&daemon.ctl(&["check", &right])), Some(0));
    daemon.write_config("[listener.main]\nprotocol = \"tpc\"\n");
    check(&["reload"], 78, "echod.toml:2:12: ");
    check(&["reload", "--dry-run"], 78, "echod.toml:2:12: ");
    check(&["reload", "--last"], 78, "echod.toml:2:12: ");

    // A process that listens and never answers.
    let mute = daemon.path("mute.sock");
    let _mute = UnixListener::bind(&mute).expect("a socket");
    check(
        &[
            "--socket",
            &mute.display().to_string(),
            "--timeout",
            "50ms",
            "status",
        ],
        75,
        "no answer within 50ms",
    );
}

#[test]
fn a_user_that_may_not_connect_gets_the_reason() {
    let daemon = Daemon::start(&format!("[control]\nmode = \"0600\"\n{ALL_KINDS}"));
    let socket = daemon.path("control.sock");
    let mode = |path| {
        std::fs::metadata(path)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o7777
    };
    assert_eq!(mode(&socket), 0o600);
    let output = if nix::unistd::geteuid().is_root() {
        as_nobody(&daemon, &["status"])
    } else {
        // There is no other user: then the file's owner is not permitted.
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o000)).expect("set");
        daemon.ctl(&["status"])
    };
    let stderr = text(&output.stderr);
    assert_eq!(code(&output), Some(77), "{stderr}");
    assert!(
        stderr.contains("permission denied: you are uid"),
        "{stderr}"
    );
    assert!(stderr.contains("the socket is"), "{stderr}");
}

/// Runs echoctl as a user other than root, to which it and the folder must be accessible.
fn as_nobody(daemon: &Daemon, arguments: &[&str]) -> Output {
    let program = daemon.path("echoctl");
    if !program.exists() {
        install(ECHOCTL, &program);
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(daemon.path("."), mode).expect("set");
    }
    Command::new(&program)
        .env("ECHOCTL_SOCKET", daemon.path("control.sock"))
        .current_dir("/")
        .uid(65_534)
        .gid(65_534)
        .args(arguments)
        .output()
        .expect("echoctl runs")
}

/// Whether the daemon has closed this connection, or does so now.
fn is_ended(stream: &mut UnixStream) -> bool {
    loop {
        match stream.read(&mut [0; 4096]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_control_client_that_misbehaves_harms_only_itself() {
    let daemon = Daemon::start(ALL_KINDS);
    let mut peer = daemon.connect("main");
    let mut all_is_well = || {
        assert_eq!(exchange(&mut peer, b"echo continues"), b"echo continues");
        assert_eq!(daemon.ctl_json(&["status"])["status"]["state"], "serving");
    };
    let memory = resident_kilobytes(daemon.pid());

    let mut rubbish = daemon.control();
    rubbish
        .stream
        .write_all(b"GET / HTTP/1.1\r\n\r\n\0")
        .expect("sent");
    assert!(is_ended(&mut rubbish.stream));
    all_is_well();

    // A megabyte without an end. The daemon hangs up long before it has it all.
    let mut endless = daemon.control();
    let sent = endless.stream.write_all(&vec![b'x'; 1024 * 1024]);
    assert!(sent.is_err() || is_ended(&mut endless.stream));
    all_is_well();

    // Nothing, and half a request: they wait, and may continue at any time.
    let mut silent = daemon.control();
    let mut half = daemon.control();
    half.stream
        .write_all(b"{\"method\":\"io.echod.Con")
        .expect("sent");
    all_is_well();
    half.stream.write_all(b"trol.GetStatus\"}\0").expect("sent");
    let reply = half.reply().expect("an answer");
    assert_eq!(reply["parameters"]["status"]["pid"], daemon.pid());
    assert!(silent.ask("GetStatus", &json!({})).is_some());

    // One that asks and asks and reads no reply: after a while it can write no more, and then it
    // is hung up on.
    let mut greedy = daemon.control();
    let timeout = Duration::from_millis(500);
    greedy.stream.set_write_timeout(Some(timeout)).expect("set");
    let request = b"{\"method\":\"io.echod.Control.GetStatus\"}\0".repeat(100);
    let mut sent = 0;
    while greedy.stream.write_all(&request).is_ok() {
        sent += request.len();
        assert!(sent < 64 * 1024 * 1024, "it takes whatever comes");
    }
    all_is_well();
    eventually(
        "it is hung up on",
        || matches!(greedy.stream.write_all(b"x"), Err(error) if error.kind() == ErrorKind::BrokenPipe),
    );
    all_is_well();

    let grown = resident_kilobytes(daemon.pid()).saturating_sub(memory);
    println!("misbehaving control clients cost {grown} KiB");
    assert!(grown < 8 * 1024, "{grown} KiB more");
    let log = daemon.log();
    assert!(!log.contains("panic") && !log.contains("error"), "{log}");
}

fn resident_kilobytes(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .expect("a number")
}

#[test]
fn idle_control_clients_shut_out_only_their_own_user() {
    let daemon = Daemon::start(&format!("[control]\nmode = \"0666\"\n{ALL_KINDS}"));
    let clients: Vec<Control> = (0..40).map(|_| daemon.control()).collect();
    // Each one is either held or turned away at once.
    let mut held = Vec::new();
    let mut turned_away = 0;
    for client in clients {
        let mut stream = client.stream;
        let timeout = Duration::from_millis(300);
        // The first eight are those that stay: the order of accepting is that of connecting.
        if held.len() < 8 {
            held.push(stream);
            continue;
        }
        stream
            .set_read_timeout(Some(PATIENCE.max(timeout)))
            .expect("set");
        assert!(is_ended(&mut stream));
        turned_away += 1;
    }
    assert_eq!(turned_away, 32);
    for stream in &mut held {
        stream.set_nonblocking(true).expect("set");
        assert!(!is_ended(stream));
    }
    let output = daemon.ctl(&["status"]);
    assert_eq!(code(&output), Some(1));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("8 of one user"), "{stderr}");
    if nix::unistd::geteuid().is_root() {
        let output = as_nobody(&daemon, &["status"]);
        assert_eq!(code(&output), Some(0), "{}", text(&output.stderr));
    } else {
        not_tested("only root can connect as another user, too");
    }
    // One goes, one comes.
    held.pop();
    eventually("there is room again", || {
        code(&daemon.ctl(&["status"])) == Some(0)
    });
}

/// Four users with eight connections each had all that there were.
#[test]
fn idle_control_clients_of_other_users_together_do_not_shut_out_root() {
    if !nix::unistd::geteuid().is_root() {
        return not_tested("only root can connect as other users");
    }
    let daemon = Daemon::start(&format!("[control]\nmode = \"0666\"\n{ALL_KINDS}"));
    // Makes the folder accessible to them.
    assert_eq!(code(&as_nobody(&daemon, &["status"])), Some(0));
    let program = daemon.path("echoprobe");
    install(ECHOPROBE, &program);
    let url = format!("unix://{}", daemon.path("control.sock").display());
    // A conversation connects, and says nothing before its user does.
    let connect = |uid: u32| {
        let child = Command::new(&program)
            .arg(&url)
            .current_dir("/")
            .uid(uid)
            .gid(uid)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        EndedAtEnd(child.expect("echoprobe runs"))
    };
    let clients = (0..32).map(|number| connect(60_001 + number / 8));
    let _clients: Vec<EndedAtEnd> = clients.collect();
    eventually("there is no place for another user", || {
        code(&as_nobody(&daemon, &["status"])) == Some(1)
    });
    let output = daemon.ctl(&["status"]);
    assert_eq!(code(&output), Some(0), "{}", text(&output.stderr));
}

/// A process that ends with the test.
struct EndedAtEnd(Child);

impl Drop for EndedAtEnd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks often, each time anew, and prints how long that took.
fn measure_answers(daemon: &Daemon, what: &str) {
    let mut times: Vec<Duration> = (0..50)
        .map(|_| {
            let begun = Instant::now();
            let reply = daemon.control().ask("ListListeners", &json!({}));
            assert!(reply.is_some(), "no answer {what}");
            begun.elapsed()
        })
        .collect();
    times.sort();
    println!(
        "control answers {what}: median {:?}, worst {:?}",
        times[25], times[49]
    );
}

#[test]
fn the_control_plane_answers_while_the_data_plane_is_flooded() {
    let daemon = Daemon::start(ALL_KINDS);
    let address = daemon.address("main");
    let stop = AtomicBool::new(false);
    let echoed = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut stream = connect(address);
                let message = vec![b'f'; 16 * 1024];
                while !stop.load(Ordering::Relaxed) {
                    let answer = exchange(&mut stream, &message);
                    assert!(answer == message, "wrong bytes");
                    echoed.fetch_add(message.len() as u64, Ordering::Relaxed);
                }
            });
        }
        let ends = StopAtEnd(&stop);
        eventually("the flood flows", || {
            echoed.load(Ordering::Relaxed) > 1024 * 1024
        });
        let before = echoed.load(Ordering::Relaxed);
        measure_answers(&daemon, "under a flood");
        assert!(echoed.load(Ordering::Relaxed) > before, "the flood stopped");
        drop(ends);
    });
}

/// Ends the threads of a scope also when the test fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn the_control_plane_answers_while_other_control_clients_stall() {
    let daemon = Daemon::start(ALL_KINDS);
    // Not nearly as many as one user may have: a connection that has ended here stays open in what
    // other tests are about to start, for a moment.
    let stalling: Vec<Control> = (0..4)
        .map(|index| {
            let mut control = daemon.control();
            let half: &[u8] = if index % 2 == 0 {
                b"{\"method\":"
            } else {
                // More than its socket takes of answers.
                &b"{\"method\":\"io.echod.Control.GetConfig\"}\0".repeat(200)
            };
            control.stream.write_all(half).expect("sent");
            control
        })
        .collect();
    measure_answers(&daemon, "beside four that stall");
    drop(stalling);
}

#[test]
fn without_descriptors_the_control_plane_answers_and_clients_wait() {
    let daemon = Daemon::start_with(ALL_KINDS, |command| {
        after_shell_line(command, "ulimit -n 64");
    });
    let address = daemon.address("main");
    let mut clients: Vec<TcpStream> = (0..80).map(|_| connect(address)).collect();
    for client in &mut clients {
        client.write_all(b"hello").expect("sent");
    }
    eventually("it runs out of descriptors", || {
        daemon
            .log()
            .contains("clients wait in the backlog until there is room")
    });
    measure_answers(&daemon, "out of descriptors");
    // Not one number: whenever a control connection ends, its descriptor may serve a client.
    let connections = daemon.listener("main")["connections"].clone();
    let peers = daemon.ctl_json(&["peers"])["total"].clone();
    for count in [connections, peers] {
        let count = count.as_u64().expect("a number");
        assert!((10..64).contains(&count), "{count}");
    }
    // A reload that needs descriptors says so and changes nothing.
    let more = "\n[listener.more]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n";
    let result = daemon.reload_with(&format!("{ALL_KINDS}{more}"));
    assert_eq!(result["outcome"], "rejected", "{result}");
    // All of them are served in the end: each that was served makes room for another.
    for client in &mut clients {
        let mut answer = [0; 5];
        client.read_exact(&mut answer).expect("served");
        assert_eq!(&answer, b"hello");
        client.shutdown(std::net::Shutdown::Both).expect("closed");
    }
    eventually("all have gone", || {
        daemon.listener("main")["connections"] == 0
    });
    assert_eq!(daemon.listener("main")["accepted"], 80);
    let result = daemon.reload();
    assert_eq!(result["outcome"], "applied", "{result}");
    exchange(&mut daemon.connect("more"), b"and on it goes");
}

/// The kernel has no descriptor for an `accept4(2)` also when no connection is queued. A spare one
/// was given up for that each time, and a client of a worker had it before it was taken back: after
/// some control connections there was no answer any more.
#[test]
fn a_control_connection_takes_one_spare_descriptor_and_no_more() {
    let daemon = Daemon::start_with(ALL_KINDS, |command| {
        after_shell_line(command, "ulimit -n 64");
    });
    let address = daemon.address("main");
    let clients: Vec<TcpStream> = (0..80).map(|_| connect(address)).collect();
    eventually("it has no more descriptors", || {
        daemon
            .log()
            .contains("clients wait in the backlog until there is room")
    });
    let spare = || {
        let all = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("it runs");
        let targets = all.map(|fd| std::fs::read_link(fd.expect("a link").path()));
        // A descriptor that is closed between the two calls has no target.
        let targets = targets.flatten();
        targets
            .filter(|target| target == Path::new("/dev/null"))
            .count()
    };
    let before = spare();
    for _ in 0..10 {
        let mut control = daemon.control();
        let reply = control.ask("GetStatus", &json!({}));
        assert!(reply.is_some(), "no answer");
        // None, where a worker has left a descriptor free.
        let now = spare();
        assert!(now + 1 >= before, "{before} became {now}");
        drop(control);
        eventually("it is a spare one again", || spare() >= before);
    }
    drop(clients);
}

#[test]
fn the_queue_of_each_unix_listener_is_counted() {
    let daemon = Daemon::start(
        "[listener.local]\nprotocol = \"unix-stream\"\naddress = \"{dir}/echo.sock\"\nmax-connections = 1\n\
         [listener.other]\nprotocol = \"unix-stream\"\naddress = \"{dir}/echo.sock.2\"\nmax-connections = 1\n",
    );
    let connect = || UnixStream::connect(daemon.path("echo.sock")).unwrap();
    let mut served = connect();
    served.set_read_timeout(Some(PATIENCE)).unwrap();
    exchange(&mut served, b"x");
    let waiting = [connect(), connect()];
    let backlog = daemon.listener("local")["backlog"].clone();
    assert_eq!(
        (&backlog["queued"], &backlog["effective"]),
        (&2.into(), &1024.into())
    );
    assert_eq!(daemon.listener("other")["backlog"]["queued"], 0);
    drop(waiting);
}
