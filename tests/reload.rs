//! One configuration becomes another under clients that must not notice.
//!
//! Listeners have ports found free just before, so that they can be handed around; the proof under
//! churn ([`a_hundred_reloads_under_churn_lose_no_client_and_no_byte`]) counts and prints.

#[path = "reload/files.rs"]
mod files;
#[path = "reload/while_loading.rs"]
mod while_loading;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{
    Daemon, PATIENCE, close_socket, connect, eventually, exchange, free_port, text, udp,
};

/// A listener's table.
fn tcp(name: &str, address: &str, more: &str) -> String {
    format!("[listener.{name}]\nprotocol = \"tcp\"\naddress = {address}\n{more}\n")
}

/// One loopback address as TOML.
fn local(port: u16) -> String {
    format!("\"127.0.0.1:{port}\"")
}

fn at(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// The change of one listener in a result.
fn change<'a>(result: &'a Value, listener: &str) -> &'a Value {
    let changes = result["changes"].as_array().expect("a list");
    let found = changes.iter().find(|change| change["listener"] == listener);
    found.unwrap_or_else(|| panic!("no change of {listener}: {result}"))
}

fn assert_applied(result: &Value) {
    assert_eq!(result["outcome"], "applied", "{result}");
    assert_eq!(result["errors"], json!([]), "{result}");
}

/// No socket listens there. One that is being retired drops what comes, so that a client of
/// it waits for a second before it is refused; here it waits for as long as it takes.
fn refuses(address: SocketAddr) -> bool {
    match TcpStream::connect_timeout(&address, PATIENCE) {
        Ok(_) => false,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => true,
        Err(error) => panic!("{address}: {error}"),
    }
}

/// Whether a client is accepted only to be reset, which it may notice before `connect` returns.
fn is_reset(address: SocketAddr) -> bool {
    let end = TcpStream::connect_timeout(&address, PATIENCE).and_then(|mut stream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read(&mut [0])
    });
    match end {
        Ok(_) => false,
        Err(error) if error.kind() == ErrorKind::ConnectionReset => true,
        Err(error) => panic!("{address}: {error}"),
    }
}

fn still_echoes(peers: &mut [TcpStream], message: &[u8]) {
    for peer in peers {
        assert_eq!(exchange(peer, message), message);
    }
}

#[test]
fn a_signal_reloads_and_the_service_manager_is_notified() {
    let port = free_port();
    let mut daemon = Daemon::start(&tcp("main", &local(port), ""));
    daemon.write_config(&tcp("main", &local(port), "backlog = 7"));
    daemon.signal(Signal::SIGHUP);
    let reloading = daemon.wait_for_notification("RELOADING=1");
    let time = reloading
        .lines()
        .find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    assert!(
        time.is_some_and(|time| time.parse::<u64>().is_ok()),
        "{reloading}"
    );
    let ready = daemon.wait_for_notification("READY=1");
    assert!(
        ready
            .lines()
            .any(|line| line == "STATUS=1 listener, 0 connections"),
        "{ready}"
    );
    let status = daemon.ctl_json(&["status"])["status"].clone();
    assert_eq!(status["generation"], 2);
    assert_eq!(status["last_reload"]["trigger"], "signal");
    assert_eq!(status["last_reload"]["id"], 2);
    assert_eq!(daemon.listener("main")["backlog"]["requested"], 7);
}

#[test]
fn echoctl_reloads_and_says_what_has_changed() {
    let [kept, changed, gone, new] = [(); 4].map(|()| free_port());
    let before = [
        tcp("changed", &local(changed), "backlog = 100"),
        tcp("gone", &local(gone), ""),
        tcp("kept", &local(kept), ""),
    ]
    .concat();
    let daemon = Daemon::start(&before);
    let mut peers = [kept, changed, gone].map(|port| connect(at(port)));
    still_echoes(&mut peers, b"before");

    daemon.write_config(
        &[
            tcp("changed", &local(changed), "backlog = 200"),
            tcp("kept", &local(kept), ""),
            tcp("new", &local(new), ""),
        ]
        .concat(),
    );
    let plan = daemon.ctl_text(&["reload", "--dry-run"]);
    let outcome = "dry run, nothing has changed: the configuration would be applied\n";
    assert!(plan.starts_with(outcome), "{plan}");
    assert_eq!(daemon.listener("changed")["backlog"]["requested"], 100);
    assert!(refuses(at(new)));
    assert_eq!(daemon.ctl_json(&["status"])["status"]["generation"], 1);
    assert_eq!(
        daemon.ctl_json(&["status"])["status"]["last_reload"]["trigger"],
        "start"
    );

    let told = daemon.ctl_text(&["reload"]);
    assert!(!told.contains('\x1b'), "{told:?}");
    for (text, row) in [
        (
            &plan,
            "update  changed             1  changed: would change: backlog 100 → 200 (live); 1 connection would stay",
        ),
        (&plan, "add     new"),
        (&plan, "remove  gone"),
        (
            &told,
            "update  changed             1  changed: backlog 100 → 200 (live); 1 connection stays",
        ),
        (&told, "add     new"),
        (&told, "remove  gone"),
        (&told, "3 changes, 1 kept as is"),
    ] {
        assert!(text.contains(row), "{row:?} in {text}");
    }
    // The connections of all of them continue; the two that are there and the new one take more.
    still_echoes(&mut peers, b"after");
    still_echoes(
        &mut [kept, changed, new].map(|port| connect(at(port))),
        b"new",
    );
    assert!(refuses(at(gone)));
    assert_eq!(daemon.listener("gone")["state"], "retired");
    assert_eq!(daemon.listener("gone")["connections"], 1);
    let log = daemon.log();
    assert!(log.contains("reload 2 applied in "), "{log}");
    assert!(log.contains("backlog 100 → 200 (live)"), "{log}");
    let last = daemon.ctl_text(&["reload", "--last"]);
    assert!(last.contains("3 changes, 1 kept as is"), "{last}");

    // With its last connection the removed one is forgotten.
    let [_, _, gone_peer] = peers;
    drop(gone_peer);
    eventually("the removed one is forgotten", || {
        daemon.ctl(&["listeners", "gone"]).status.code() == Some(1)
    });
}

#[test]
fn every_live_key_takes_effect_without_a_new_socket() {
    let port = free_port();
    let daemon = Daemon::start(&tcp("main", &local(port), "sockets = 1"));
    let address = at(port);
    let mut peer = connect(address);
    exchange(&mut peer, b"hello");
    let update = |more: &str, keys: &[&str]| {
        let result =
            daemon.reload_with(&tcp("main", &local(port), &format!("sockets = 1\n{more}")));
        assert_applied(&result);
        let change = change(&result, "main").clone();
        assert_eq!(change["action"], "update", "{change}");
        assert_eq!(change["keys"], json!(keys), "{change}");
    };
    // Being full.
    update("max-connections = 1", &["max-connections"]);
    let mut second = connect(address);
    second.write_all(b"queued").expect("sent");
    eventually("it is queued", || {
        daemon.listener("main")["backlog"]["queued"] == 1
    });
    update("max-connections = 2", &["max-connections"]);
    let mut answer = [0; 6];
    second.read_exact(&mut answer).expect("accepted");
    update("max-connections = 2\nwhen-full = \"reset\"", &["when-full"]);
    assert!(is_reset(address));
    assert_eq!(daemon.listener("main")["refused"]["full"], 1);
    // Address rules.
    update(
        "deny = [\"127.0.0.0/8\"]",
        &["max-connections", "when-full", "deny"],
    );
    assert!(is_reset(address));
    assert_eq!(daemon.listener("main")["refused"]["denied"], 1);
    update("allow = [\"10.0.0.0/8\"]", &["allow", "deny"]);
    assert!(is_reset(address));
    update("max-per-source = 1", &["max-per-source", "allow"]);
    let mut allowed = connect(address);
    assert_eq!(exchange(&mut allowed, b"one of us"), b"one of us");
    assert!(is_reset(address));
    assert_eq!(daemon.listener("main")["refused"]["per-source"], 1);
    // The queue.
    update("backlog = 33", &["backlog", "max-per-source"]);
    assert_eq!(daemon.listener("main")["backlog"]["effective"], 33);
    // What comes back: the old connections have their old reply.
    update("reply = \"upper\"", &["reply", "backlog"]);
    assert_eq!(exchange(&mut connect(address), b"new"), b"NEW");
    for old in [&mut peer, &mut second, &mut allowed] {
        assert_eq!(exchange(old, b"still echo"), b"still echo");
    }
    // Timeouts count for established connections.
    update("idle-timeout = \"100ms\"", &["reply", "idle-timeout"]);
    for old in [&mut peer, &mut second, &mut allowed] {
        assert_eq!(old.read(&mut [0]).expect("its end"), 0);
    }
    update(
        "max-lifetime = \"100ms\"",
        &["idle-timeout", "max-lifetime"],
    );
    assert_eq!(connect(address).read(&mut [0]).expect("its end"), 0);
}

#[test]
fn the_mode_of_a_unix_socket_is_changed_on_the_same_file() {
    let config = |mode| {
        format!(
            "[listener.local]\nprotocol = \"unix-stream\"\naddress = \"{{dir}}/local.sock\"\nmode = \"{mode}\"\n"
        )
    };
    let daemon = Daemon::start(&config("0600"));
    let path = daemon.path("local.sock");
    let look = || {
        let metadata = std::fs::metadata(&path).expect("it is there");
        (metadata.ino(), metadata.permissions().mode() & 0o7777)
    };
    let (inode, mode) = look();
    assert_eq!(mode, 0o600);
    assert_applied(&daemon.reload_with(&config("0666")));
    assert_eq!(look(), (inode, 0o666));
}

#[test]
fn addresses_come_and_go_and_those_that_stay_are_not_touched() {
    let [first, second, third] = [(); 3].map(|()| free_port());
    let list = |ports: &[u16]| {
        let addresses: Vec<String> = ports.iter().map(|port| local(*port)).collect();
        tcp(
            "main",
            &format!("[{}]", addresses.join(", ")),
            "sockets = 1",
        )
    };
    let daemon = Daemon::start(&list(&[first]));
    let mut peers = vec![connect(at(first))];
    still_echoes(&mut peers, b"start");
    let inode = |port| listening_inodes(at(port));
    let of_first = inode(first);
    assert_eq!(of_first.len(), 1);

    let result = daemon.reload_with(&list(&[first, second]));
    assert_applied(&result);
    assert_eq!(change(&result, "main")["action"], "rebind");
    assert_eq!(change(&result, "main")["keys"], json!(["address"]));
    assert_eq!(
        inode(first),
        of_first,
        "the socket of an address that stays"
    );
    peers.push(connect(at(second)));
    still_echoes(&mut peers, b"grown");

    // The order has no meaning.
    assert_eq!(
        daemon.reload_with(&list(&[second, first]))["outcome"],
        "unchanged"
    );

    assert_applied(&daemon.reload_with(&list(&[first, third])));
    assert_eq!(inode(first), of_first);
    assert!(refuses(at(second)));
    peers.push(connect(at(third)));
    still_echoes(&mut peers, b"moved");

    assert_applied(&daemon.reload_with(&list(&[third])));
    assert!(refuses(at(first)));
    still_echoes(&mut peers, b"shrunk");
    assert_eq!(daemon.listener("main")["connections"], 3);
    assert_eq!(
        daemon.listener("main")["addresses"],
        json!([at(third).to_string()])
    );
}

/// The inodes of the sockets that listen on an IPv4 address (`proc(5)`, `/proc/net/tcp`).
fn listening_inodes(address: SocketAddr) -> Vec<u64> {
    let SocketAddr::V4(address) = address else {
        panic!("IPv4 only");
    };
    let ip = u32::from_ne_bytes(address.ip().octets());
    let local = format!("{ip:08X}:{:04X}", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").expect("a table");
    let rows = table.lines().map(|line| line.split_whitespace().collect());
    rows.filter(|row: &Vec<&str>| row.get(1) == Some(&&*local) && row.get(3) == Some(&"0A"))
        .map(|row| row[9].parse().expect("an inode"))
        .collect()
}

#[test]
fn sockets_of_an_address_are_multiplied_and_reduced() {
    let port = free_port();
    let config = |sockets: &str| tcp("main", &local(port), &format!("sockets = {sockets}"));
    let daemon = Daemon::start(&config("1"));
    let mut peers = vec![connect(at(port))];
    let count = || listening_inodes(at(port)).len();
    assert_eq!(count(), 1);
    let workers = daemon.ctl_json(&["status"])["status"]["workers"].clone();
    let workers = workers.as_u64().expect("a number") as usize;
    for (sockets, expected) in [("2", 2), ("\"auto\"", workers), ("3", 3), ("1", 1)] {
        let result = daemon.reload_with(&config(sockets));
        if expected
            == daemon.listener("main")["sockets"]
                .as_u64()
                .expect("a number") as usize
            && result["outcome"] == "unchanged"
        {
            continue;
        }
        assert_applied(&result);
        assert_eq!(daemon.listener("main")["sockets"], expected as u64);
        eventually("the old ones are gone", || count() == expected);
        peers.push(connect(at(port)));
        still_echoes(&mut peers, sockets.as_bytes());
    }
}

#[test]
fn a_wildcard_and_a_specific_address_of_one_port_take_over_from_each_other() {
    let port = free_port();
    let any = format!("\"0.0.0.0:{port}\"");
    let daemon = Daemon::start(&tcp("main", &any, ""));
    let mut peers = vec![connect(at(port)), connect(([127, 0, 0, 5], port).into())];
    still_echoes(&mut peers, b"any");
    assert_applied(&daemon.reload_with(&tcp("main", &local(port), "")));
    still_echoes(&mut peers, b"specific");
    peers.push(connect(at(port)));
    still_echoes(&mut peers, b"specific");
    assert!(refuses(([127, 0, 0, 5], port).into()));
    assert_applied(&daemon.reload_with(&tcp("main", &any, "")));
    peers.push(connect(at(port)));
    peers.push(connect(([127, 0, 0, 5], port).into()));
    still_echoes(&mut peers, b"any again");

    // The same of datagrams.
    let port = free_port();
    let config = |address: &str| {
        format!("[listener.main]\nprotocol = \"udp\"\naddress = \"{address}:{port}\"\n")
    };
    let daemon = Daemon::start(&config("0.0.0.0"));
    let socket = udp("127.0.0.1:0");
    let ask = |message: &[u8]| {
        socket.send_to(message, at(port)).expect("sent");
        let mut answer = [0; 64];
        let (len, from) = socket.recv_from(&mut answer).expect("answered");
        assert_eq!((&answer[..len], from), (message, at(port)));
    };
    ask(b"any");
    assert_applied(&daemon.reload_with(&config("127.0.0.1")));
    ask(b"specific");
    assert_applied(&daemon.reload_with(&config("0.0.0.0")));
    ask(b"any again");
}

#[test]
fn a_listener_changes_its_protocol_under_its_name() {
    let port = free_port();
    let config = |protocol: &str, address: &str| {
        format!("[listener.main]\nprotocol = \"{protocol}\"\naddress = \"{address}\"\n")
    };
    let address = at(port).to_string();
    let daemon = Daemon::start(&config("tcp", &address));
    let mut peer = connect(at(port));
    exchange(&mut peer, b"tcp");
    let result = daemon.reload_with(&config("udp", &address));
    assert_applied(&result);
    assert_eq!(change(&result, "main")["action"], "rebind");
    assert!(refuses(at(port)));
    let socket = udp("127.0.0.1:0");
    socket.send_to(b"udp", at(port)).expect("sent");
    assert_eq!(socket.recv(&mut [0; 16]).expect("answered"), 3);
    assert_eq!(exchange(&mut peer, b"still tcp"), b"still tcp");

    assert_applied(&daemon.reload_with(&config("unix-stream", "{dir}/main.sock")));
    let mut local = UnixStream::connect(daemon.path("main.sock")).expect("a connection");
    assert_eq!(exchange(&mut local, b"unix"), b"unix");
    // One path, another kind.
    assert_applied(&daemon.reload_with(&config("unix-datagram", "{dir}/main.sock")));
    let client = std::os::unix::net::UnixDatagram::bind(daemon.path("peer.sock")).expect("bound");
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    client
        .send_to(b"gram", daemon.path("main.sock"))
        .expect("sent");
    assert_eq!(client.recv(&mut [0; 16]).expect("answered"), 4);
    assert_applied(&daemon.reload_with(&config("tcp", &address)));
    assert!(!daemon.path("main.sock").exists());
    exchange(&mut connect(at(port)), b"tcp again");
    assert_eq!(exchange(&mut local, b"still unix"), b"still unix");
    assert_eq!(exchange(&mut peer, b"still tcp"), b"still tcp");
}

#[test]
fn a_unix_path_that_stays_is_not_touched_while_others_change() {
    let port = free_port();
    let unix = "[listener.local]\nprotocol = \"unix-stream\"\naddress = \"{dir}/local.sock\"\n";
    let daemon = Daemon::start(&format!("{unix}{}", tcp("main", &local(port), "")));
    let inode = || {
        let metadata = std::fs::metadata(daemon.path("local.sock")).expect("it is there");
        metadata.ino()
    };
    let before = inode();
    let mut peer = UnixStream::connect(daemon.path("local.sock")).expect("a connection");
    exchange(&mut peer, b"before");
    for sockets in ["sockets = 1", "sockets = 2", "backlog = 9"] {
        assert_applied(
            &daemon.reload_with(&format!("{unix}{}", tcp("main", &local(port), sockets))),
        );
        assert_eq!(inode(), before);
        assert_eq!(exchange(&mut peer, b"after"), b"after");
    }
    assert_applied(&daemon.reload_with(unix));
    assert_eq!(inode(), before);
}

#[test]
fn an_address_is_handed_from_one_listener_to_another() {
    // In both orders of their names, which is the order of the changes.
    for (from, to) in [("a", "b"), ("b", "a")] {
        let [handed, other] = [(); 2].map(|()| free_port());
        let daemon = Daemon::start(&tcp(from, &local(handed), "reply = \"echo\""));
        let mut old = connect(at(handed));
        exchange(&mut old, b"x");
        assert_applied(&daemon.reload_with(&format!(
            "{}{}",
            tcp(from, &local(other), ""),
            tcp(to, &local(handed), "reply = \"upper\"")
        )));
        assert_eq!(exchange(&mut connect(at(handed)), b"new"), b"NEW");
        assert_eq!(exchange(&mut connect(at(other)), b"moved"), b"moved");
        assert_eq!(exchange(&mut old, b"old"), b"old");
        // And both of them change places.
        assert_applied(&daemon.reload_with(&format!(
            "{}{}",
            tcp(from, &local(handed), ""),
            tcp(to, &local(other), "reply = \"upper\"")
        )));
        assert_eq!(exchange(&mut connect(at(handed)), b"back"), b"back");
        assert_eq!(exchange(&mut connect(at(other)), b"back"), b"BACK");

        let unix = |name: &str, path: &str, reply: &str| {
            format!(
                "[listener.{name}]\nprotocol = \"unix-stream\"\naddress = \"{{dir}}/{path}.sock\"\nreply = \"{reply}\"\n"
            )
        };
        let ask = |path: &str, message: &[u8]| {
            let path = daemon.path(&format!("{path}.sock"));
            exchange(
                &mut UnixStream::connect(path).expect("a connection"),
                message,
            )
        };
        let pair = |one: &str, other: &str| {
            format!("{}{}", unix(from, one, "echo"), unix(to, other, "upper"))
        };
        assert_applied(&daemon.reload_with(&unix(from, "one", "echo")));
        assert_applied(&daemon.reload_with(&unix(to, "one", "upper")));
        assert_eq!(ask("one", b"handed"), b"HANDED");
        assert_applied(&daemon.reload_with(&pair("one", "two")));
        assert_eq!(
            (ask("one", b"x"), ask("two", b"x")),
            (b"x".into(), b"X".into())
        );
        assert_applied(&daemon.reload_with(&pair("two", "one")));
        assert_eq!(
            (ask("one", b"x"), ask("two", b"x")),
            (b"X".into(), b"x".into())
        );
        let left: Vec<_> = std::fs::read_dir(daemon.path("."))
            .expect("a folder")
            .map(|entry| text(entry.expect("an entry").file_name().as_encoded_bytes()))
            .filter(|name| name.ends_with('~'))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_datagram_that_arrives_while_its_address_changes_hands_is_answered() {
    let port = free_port();
    let config = |address: &str, sockets: &str| {
        format!(
            "[listener.main]\nprotocol = \"udp\"\naddress = \"{address}:{port}\"\nsockets = {sockets}\n"
        )
    };
    let daemon = Daemon::start(&config("0.0.0.0", "1"));
    let stop = AtomicBool::new(false);
    let answered = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let ends = StopAtEnd(&stop);
        for _ in 0..2 {
            scope.spawn(|| {
                let socket = udp("127.0.0.1:0");
                let mut number = 0u64;
                while !stop.load(Relaxed) {
                    number += 1;
                    socket
                        .send_to(&number.to_be_bytes(), at(port))
                        .expect("sent");
                    let mut answer = [0; 16];
                    let (len, from) = socket.recv_from(&mut answer).expect("answered");
                    assert_eq!(from, at(port));
                    assert_eq!(answer[..len], number.to_be_bytes());
                    answered.fetch_add(1, Relaxed);
                }
            });
        }
        for (address, sockets) in [
            ("127.0.0.1", "1"),
            ("127.0.0.1", "2"),
            ("0.0.0.0", "2"),
            ("0.0.0.0", "1"),
        ]
        .repeat(25)
        {
            let before = answered.load(Relaxed);
            assert_applied(&daemon.reload_with(&config(address, sockets)));
            eventually("a client is answered", || answered.load(Relaxed) > before);
        }
        drop(ends);
    });
    println!(
        "{} datagrams in turn through 100 reloads, each answered",
        answered.load(Relaxed)
    );
}

/// Ends the threads of a scope also when the test fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

const THREE_ERRORS: &str = "[listener.main]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:99999\"\nbacklgo = 5\n\n[daemon]\ndrain-timeout = \"soon\"\n";

#[test]
fn a_rejected_reload_changes_nothing_and_says_all_that_is_wrong() {
    let port = free_port();
    let mut daemon = Daemon::start(&tcp("main", &local(port), "backlog = 50"));
    let mut peer = connect(at(port));
    exchange(&mut peer, b"before");
    let inodes = listening_inodes(at(port));
    daemon.write_config(THREE_ERRORS);
    let file = daemon.path("echod.toml").display().to_string();

    let output = daemon.ctl(&["reload"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    let stderr = text(&output.stderr);
    for place in ["3:11", "4:1", "7:17"] {
        let place = format!("echoctl: {file}:{place}: ");
        assert!(stderr.contains(&place), "{place} in {stderr}");
    }
    assert!(
        stderr.contains("configuration rejected: 3 errors; nothing has changed"),
        "{stderr}"
    );
    // A program gets the same as JSON.
    let output = daemon.ctl(&["--json", "reload"]);
    assert_eq!(output.status.code(), Some(78));
    let reply: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let errors = reply["result"]["errors"].as_array().expect("a list");
    assert_eq!(errors.len(), 3, "{reply}");
    let places: Vec<_> = errors
        .iter()
        .map(|error| {
            assert_eq!(error["file"], *file);
            (error["line"].as_u64(), error["column"].as_u64())
        })
        .collect();
    assert_eq!(
        places,
        [(3, 11), (4, 1), (7, 17)].map(|(line, column)| (Some(line), Some(column)))
    );

    // After a signal it is in the status, and the service manager is not left waiting.
    daemon.forget_notifications();
    daemon.signal(Signal::SIGHUP);
    let reloading = daemon.wait_for_notification("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    let ready = daemon.wait_for_notification("READY=1");
    assert!(
        ready.contains(&format!("rejected: {file}:3:11: ")),
        "{ready}"
    );
    let status = daemon.ctl_json(&["status"])["status"].clone();
    assert_eq!(status["generation"], 1);
    let last = &status["last_reload"];
    assert_eq!(last["trigger"], "signal");
    assert_eq!(last["outcome"], "rejected");
    assert_eq!(last["id"], 4);
    assert_eq!(last["errors"].as_array().map(Vec::len), Some(3));
    let shown = daemon.ctl_text(&["status"]);
    assert!(shown.contains(&format!("{file}:4:1: ")), "{shown}");
    assert_eq!(daemon.ctl(&["reload", "--last"]).status.code(), Some(78));

    // Each is a line of the log, as an error.
    let log = daemon.log();
    for id in 2..=4 {
        assert!(
            log.contains(&format!("reload {id}: {file}:7:17: ")),
            "{log}"
        );
        assert!(
            log.contains(&format!("reload {id} rejected with 3 errors;")),
            "{log}"
        );
    }
    // And nothing has changed.
    assert_eq!(daemon.listener("main")["backlog"]["requested"], 50);
    assert_eq!(listening_inodes(at(port)), inodes);
    assert_eq!(exchange(&mut peer, b"after"), b"after");
    exchange(&mut connect(at(port)), b"new");
    assert!(
        daemon
            .ctl_text(&["config", "show"])
            .contains("backlog = 50")
    );
    // What is right again is applied again, here: the same as before.
    let result = daemon.reload_with(&tcp("main", &local(port), "backlog = 50"));
    assert_eq!(result["outcome"], "unchanged");
}

#[test]
fn a_configuration_that_is_gone_is_a_rejected_one() {
    let port = free_port();
    let daemon = Daemon::start(&tcp("main", &local(port), ""));
    std::fs::remove_file(daemon.path("echod.toml")).expect("removed");
    let output = daemon.ctl(&["reload"]);
    assert_eq!(output.status.code(), Some(78));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("echod.toml: no such file"), "{stderr}");
    exchange(&mut connect(at(port)), b"still here");
}

#[test]
fn a_reload_that_can_not_bind_one_address_binds_none() {
    let [kept, grown, fresh] = [(); 3].map(|()| free_port());
    // Not one that a client anywhere could get while it is free for a moment.
    let taken = free_port();
    let other_process = TcpListener::bind(at(taken)).expect("a listener of another process");
    let before = [
        tcp("grown", &local(grown), "sockets = 1"),
        tcp("kept", &local(kept), "backlog = 10"),
    ]
    .concat();
    let daemon = Daemon::start(&before);
    let mut peers = [kept, grown].map(|port| connect(at(port)));
    still_echoes(&mut peers, b"before");
    let inodes = || [kept, grown, fresh].map(|port| listening_inodes(at(port)));
    let untouched = inodes();

    daemon.write_config(
        &[
            tcp("fresh", &local(fresh), ""),
            tcp("grown", &local(grown), "sockets = 2"),
            tcp("kept", &local(kept), "backlog = 20"),
            tcp("taken", &local(taken), ""),
            "[listener.local]\nprotocol = \"unix-stream\"\naddress = \"{dir}/local.sock\"\n".into(),
            "[listener.nowhere]\nprotocol = \"unix-stream\"\naddress = \"{dir}/no/such.sock\"\n"
                .into(),
        ]
        .concat(),
    );
    let output = daemon.ctl(&["reload"]);
    assert_eq!(output.status.code(), Some(78));
    let stderr = text(&output.stderr);
    for told in [
        &*format!(
            "listener \"taken\": bind 127.0.0.1:{taken}: address already in use; ask who has it: ss -ltnp 'sport = :{taken}'"
        ),
        "the folder does not exist",
        "configuration rejected: 2 errors; nothing has changed",
    ] {
        assert!(stderr.contains(told), "{told:?} in {stderr}");
    }
    assert!(
        !stderr.contains("echoctl: :"),
        "an error without a file begins with what it is about: {stderr}"
    );
    assert_eq!(inodes(), untouched);
    assert!(refuses(at(fresh)));
    assert!(!daemon.path("local.sock").exists());
    assert_eq!(daemon.listener("kept")["backlog"]["effective"], 10);
    assert_eq!(daemon.listener("grown")["sockets"], 1);
    assert_eq!(daemon.ctl_json(&["status"])["status"]["generation"], 1);
    still_echoes(&mut peers, b"after");
    still_echoes(&mut [kept, grown].map(|port| connect(at(port))), b"new");

    // A port that another process had first must not be shared either.
    close_socket(other_process);
    let shared = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let shared = shared.expect("a socket");
    shared.set_reuse_port(true).expect("set");
    shared.set_reuse_address(true).expect("set");
    shared.bind(&at(taken).into()).expect("bound");
    shared.listen(1).expect("listening");
    let result = daemon.reload();
    assert_eq!(result["outcome"], "rejected", "{result}");
}

#[test]
fn a_reload_without_a_change_says_so() {
    let port = free_port();
    let daemon = Daemon::start(&tcp("main", &local(port), ""));
    for attempt in 2..5 {
        let result = daemon.reload();
        assert_eq!(result["outcome"], "unchanged");
        assert_eq!(result["generation"], 1);
        assert_eq!(result["id"], attempt);
        assert_eq!(change(&result, "main")["action"], "keep");
    }
    // A default that is written out is no change either, nor is a comment.
    let spelled = tcp("main", &local(port), "backlog = 1024 # as ever");
    assert_eq!(daemon.reload_with(&spelled)["outcome"], "unchanged");
    let told = daemon.ctl_text(&["reload"]);
    assert!(
        told.contains("unchanged") || told.contains("nothing"),
        "{told}"
    );
    assert!(told.contains("0 changes, 1 kept as is"), "{told}");
}

#[test]
fn an_override_is_shown_and_the_next_reload_resets_and_lists_it() {
    let port = free_port();
    let config = tcp("main", &local(port), "backlog = 40");
    let daemon = Daemon::start(&config);
    daemon.ctl_text(&["backlog", "main", "80"]);
    assert_eq!(daemon.listener("main")["overridden"], json!(["backlog"]));
    let one = daemon.ctl_text(&["listeners", "main"]);
    assert!(one.contains("overridden     backlog"), "{one}");
    assert!(
        daemon
            .ctl_text(&["config", "show"])
            .contains("backlog = 80")
    );

    let plan = daemon.ctl_text(&["reload", "--dry-run"]);
    assert!(plan.contains("backlog 80 → 40 (live)"), "{plan}");
    assert_eq!(daemon.listener("main")["backlog"]["effective"], 80);
    let result = daemon.reload();
    assert_applied(&result);
    let text = change(&result, "main")["text"].as_str().expect("a text");
    assert!(text.contains("backlog 80 → 40 (live)"), "{text}");
    let listener = daemon.listener("main");
    assert_eq!(listener["backlog"]["effective"], 40);
    assert_eq!(listener["overridden"], json!([]));

    // One that the file has since come to say is no override any more.
    daemon.ctl_text(&["backlog", "main", "60"]);
    let result = daemon.reload_with(&tcp("main", &local(port), "backlog = 60"));
    assert_eq!(result["outcome"], "unchanged");
    assert_eq!(daemon.listener("main")["overridden"], json!([]));
    assert_eq!(daemon.listener("main")["backlog"]["effective"], 60);
}

#[test]
fn keys_that_need_a_restart_warn_at_every_reload_until_then() {
    let port = free_port();
    let main = tcp("main", &local(port), "");
    let daemon = Daemon::start(&format!("[daemon]\nworkers = 1\n{main}"));
    daemon.write_config(&format!(
        "[daemon]\nworkers = 2\n[control]\nmode = \"0600\"\n[log]\nlevel = \"debug\"\n{main}"
    ));
    for _ in 0..3 {
        daemon.forget_notifications();
        let output = daemon.ctl(&["--json", "reload"]);
        assert_eq!(output.status.code(), Some(0));
        let reply: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let warnings: Vec<_> = reply["result"]["warnings"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|warning| warning["message"].as_str().expect("a text").to_owned())
            .collect();
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        for (warning, key) in warnings.iter().zip(["[daemon] workers", "[control] mode"]) {
            assert!(warning.contains(key), "{warning}");
            assert!(
                warning.ends_with("takes effect when the daemon is next started"),
                "{warning}"
            );
        }
    }
    // What can be applied is: the log level, once.
    assert_eq!(daemon.ctl_json(&["status"])["status"]["generation"], 2);
    assert_eq!(daemon.ctl_json(&["status"])["status"]["workers"], 1);
    assert!(daemon.ctl_text(&["config", "show"]).contains("workers = 1"));
    let told = daemon.ctl_text(&["reload"]);
    assert!(
        told.contains("\nwarning: [daemon] workers: takes effect"),
        "{told}"
    );
    // It would be wrong to say that nothing is different.
    assert!(
        told.starts_with("unchanged before the next start, generation 2"),
        "{told}"
    );
    let told = daemon.ctl_text(&["reload", "--dry-run"]);
    assert!(
        told.contains("nothing would change before the next start"),
        "{told}"
    );
    let line = "nothing has changed before the next start; still generation 2";
    eventually("it is logged", || daemon.log().contains(line));
}

#[test]
fn drop_ins_are_read_in_the_order_of_their_names() {
    let [first, second] = [(); 2].map(|()| free_port());
    let daemon = Daemon::start(&tcp("main", &local(first), "backlog = 10"));
    let folder = daemon.path("echod.d");
    std::fs::create_dir_all(&folder).expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("written");
    write("20-later.toml", "[listener.main]\nbacklog = 30\n");
    write(
        "10-more.toml",
        &format!(
            "[listener.main]\nbacklog = 20\n{}",
            tcp("more", &local(second), "")
        ),
    );
    write("README", "not TOML at all");
    assert_applied(&daemon.reload());
    assert_eq!(daemon.listener("main")["backlog"]["effective"], 30);
    exchange(&mut connect(at(second)), b"more");
    let file = |name: &str| folder.join(name).display().to_string();
    assert_eq!(
        daemon.ctl_json(&["status"])["status"]["config"],
        json!(daemon.config_files(&["10-more.toml", "20-later.toml"]))
    );
    // An error is in the file that it is in.
    write("20-later.toml", "[listener.main]\nbacklog = \"many\"\n");
    let result = daemon.reload();
    assert_eq!(result["outcome"], "rejected");
    assert_eq!(result["errors"][0]["file"], file("20-later.toml"));
    assert_eq!(result["errors"][0]["line"], 2);
    // Without the folder it is as it was.
    std::fs::remove_dir_all(&folder).expect("removed");
    assert_applied(&daemon.reload());
    assert_eq!(daemon.listener("main")["backlog"]["effective"], 10);
    assert!(refuses(at(second)));
}

#[test]
fn a_listener_that_was_removed_can_come_back_at_once() {
    // Its old sockets are still being emptied then: for a fifth of a second.
    let port = free_port();
    let other = tcp("other", &local(free_port()), "");
    let udp = format!(
        "[listener.datagrams]\nprotocol = \"udp\"\naddress = {}\n",
        local(port)
    );
    let both = format!("{other}{udp}{}", tcp("main", &local(port), ""));
    let daemon = Daemon::start(&both);
    for _ in 0..5 {
        assert_applied(&daemon.reload_with(&other));
        assert_applied(&daemon.reload_with(&both));
        // By another name, too.
        let renamed = format!("{other}{}", tcp("renamed", &local(port), ""));
        assert_applied(&daemon.reload_with(&renamed));
        assert_applied(&daemon.reload_with(&both));
    }
    assert_eq!(exchange(&mut connect(at(port)), b"back"), b"back");
}

#[test]
fn a_dry_run_never_touches_a_socket() {
    let [here, there] = [(); 2].map(|()| free_port());
    let daemon = Daemon::start(&tcp("main", &local(here), ""));
    let inodes = listening_inodes(at(here));
    daemon.write_config(&tcp("main", &local(there), "sockets = 1"));
    let reply = daemon.ctl_json(&["reload", "--dry-run"]);
    assert_eq!(reply["result"]["outcome"], "applied");
    assert_eq!(reply["result"]["generation"], 1);
    assert_eq!(change(&reply["result"], "main")["action"], "rebind");
    assert_eq!(
        change(&reply["result"], "main")["keys"],
        json!(["address", "sockets"])
    );
    assert_eq!(listening_inodes(at(here)), inodes);
    assert!(refuses(at(there)));
    assert!(!daemon.log().contains("reload"), "{}", daemon.log());
}

#[test]
fn a_dry_run_reports_what_can_not_be_bound() {
    let [here, taken] = [(); 2].map(|()| free_port());
    let _other = TcpListener::bind(at(taken)).expect("a listener of another process");
    let main = tcp("main", &local(here), "");
    let daemon = Daemon::start(&main);
    daemon.write_config(&format!("{main}{}", tcp("taken", &local(taken), "")));
    let output = daemon.ctl(&["--json", "reload", "--dry-run"]);
    assert!(!output.status.success());
    let reply: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let result = &reply["result"];
    assert_eq!(result["outcome"], "rejected", "{result}");
    let error = result["errors"][0]["message"].as_str().expect("a text");
    assert!(error.contains("address already in use"), "{error}");
    assert_eq!(
        change(result, "taken")["text"],
        format!("taken: would be added on 127.0.0.1:{taken} (tcp)")
    );
    // It is no reload, and leaves nothing behind.
    let status = daemon.ctl_json(&["status"])["status"].clone();
    assert_eq!(status["last_reload"]["trigger"], "start");
    assert_eq!(status["listeners"], 1);
    exchange(&mut connect(at(here)), b"still here");
}

#[test]
fn clients_in_the_queue_of_a_removed_listener_are_served() {
    // No worker has accepted them yet, and none resets them.
    let [kept, gone] = [(); 2].map(|()| free_port());
    let kept = tcp("kept", &local(kept), "");
    let full = "max-connections = 1\nsockets = 1";
    let unix = "[listener.local]\nprotocol = \"unix-stream\"\naddress = \"{dir}/local.sock\"\nmax-connections = 1\n";
    let daemon = Daemon::start(&format!("{kept}{}{unix}", tcp("gone", &local(gone), full)));
    let mut inside = connect(at(gone));
    exchange(&mut inside, b"inside");
    let mut queued: Vec<TcpStream> = (0..50).map(|_| connect(at(gone))).collect();
    for client in &mut queued {
        client.write_all(b"queued").expect("sent");
    }
    let path = daemon.path("local.sock");
    let mut local: Vec<UnixStream> = (0..10)
        .map(|_| UnixStream::connect(&path).expect("a connection"))
        .collect();
    for client in &mut local {
        client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        client.write_all(b"queued").expect("sent");
    }
    eventually("they are queued", || {
        daemon.listener("gone")["backlog"]["queued"] == 50
    });

    assert_applied(&daemon.reload_with(&kept));
    let served = |client: &mut dyn Read| {
        let mut answer = [0; 6];
        client.read_exact(&mut answer).expect("served, not reset");
        assert_eq!(&answer, b"queued");
    };
    for client in &mut queued {
        served(client);
    }
    for client in &mut local {
        served(client);
    }
    still_echoes(&mut queued, b"and continues");
    assert_eq!(exchange(&mut inside, b"inside"), b"inside");
    assert!(refuses(at(gone)));
    println!("50 TCP and 10 Unix clients in the queues of removed listeners, each served");
}

/// What became of many short exchanges.
#[derive(Debug, Default)]
struct Tally {
    served: AtomicU64,
    refused: AtomicU64,
    reset: AtomicU64,
    wrong: AtomicU64,
    other: AtomicU64,
}

impl Tally {
    fn failed(&self) -> u64 {
        [&self.refused, &self.reset, &self.wrong, &self.other]
            .map(|count| count.load(Relaxed))
            .iter()
            .sum()
    }
}

/// Longer than any chain of SYN retransmissions that a hundred rebinds can cause.
const CHURN_PATIENCE: Duration = Duration::from_secs(100);

/// One connection, one message, its echo, the end.
fn one_exchange(address: SocketAddr, number: u64, tally: &Tally) {
    let exchanged = TcpStream::connect_timeout(&address, CHURN_PATIENCE).and_then(|mut stream| {
        stream.set_read_timeout(Some(CHURN_PATIENCE))?;
        tally_bytes(&mut stream, number, tally)
    });
    tally_end(exchanged, tally);
}

fn one_local_exchange(path: &std::path::Path, number: u64, tally: &Tally) {
    let exchanged = UnixStream::connect(path).and_then(|mut stream| {
        stream.set_read_timeout(Some(CHURN_PATIENCE))?;
        tally_bytes(&mut stream, number, tally)
    });
    tally_end(exchanged, tally);
}

fn tally_bytes(
    stream: &mut (impl Read + Write),
    number: u64,
    tally: &Tally,
) -> std::io::Result<()> {
    let message = number.to_be_bytes();
    stream.write_all(&message)?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    let count = if answer == message {
        &tally.served
    } else {
        &tally.wrong
    };
    count.fetch_add(1, Relaxed);
    Ok(())
}

fn tally_end(exchanged: std::io::Result<()>, tally: &Tally) {
    let Err(error) = exchanged else {
        return;
    };
    let count = match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::NotFound => &tally.refused,
        ErrorKind::ConnectionReset => &tally.reset,
        _ => &tally.other,
    };
    count.fetch_add(1, Relaxed);
}

#[test]
fn a_hundred_reloads_under_churn_lose_no_client_and_no_byte() {
    const RELOADS: u64 = 100;
    const REBOUND: usize = 1;
    let [kept, rebound, always, sometimes, changed, passing] = [(); 6].map(|()| free_port());
    let config =
        |round: u64| {
            let odd = round % 2 == 1;
            let list = if odd {
                format!("[{}, {}]", local(always), local(sometimes))
            } else {
                local(always)
            };
            let mut parts =
                vec![
            tcp("kept", &local(kept), ""),
            "[listener.local]\nprotocol = \"unix-stream\"\naddress = \"{dir}/local.sock\"\n".into(),
            tcp("rebound", &local(rebound), if odd { "sockets = 2" } else { "sockets = 1" }),
            tcp("list", &list, ""),
            tcp("changed", &local(changed), &format!("backlog = {}", 100 + round)),
        ];
            if odd {
                parts.push(tcp("passing", &local(passing), ""));
            }
            // One path that goes from one listener to another and back.
            let holder = if odd { "a-holder" } else { "z-holder" };
            parts.push(format!(
            "[listener.{holder}]\nprotocol = \"unix-stream\"\naddress = \"{{dir}}/handed.sock\"\n"
        ));
            parts.concat()
        };
    let daemon = Daemon::start(&config(0));
    let paths = [daemon.path("local.sock"), daemon.path("handed.sock")];
    let stop = AtomicBool::new(false);
    let [
        of_kept,
        of_rebound,
        of_always,
        of_changed,
        of_local,
        of_handed,
    ] = [(); 6].map(|()| Tally::default());
    let talked = AtomicU64::new(0);
    let mut waited = Duration::ZERO;
    std::thread::scope(|scope| {
        let ends = StopAtEnd(&stop);
        for (port, tally) in [
            (kept, &of_kept),
            (rebound, &of_rebound),
            (rebound, &of_rebound),
            (always, &of_always),
            (changed, &of_changed),
        ] {
            let stop = &stop;
            scope.spawn(move || {
                let mut number = 0;
                while !stop.load(Relaxed) {
                    number += 1;
                    one_exchange(at(port), number, tally);
                }
            });
        }
        for (path, tally) in paths.iter().zip([&of_local, &of_handed]) {
            let stop = &stop;
            scope.spawn(move || {
                let mut number = 0;
                while !stop.load(Relaxed) {
                    number += 1;
                    one_local_exchange(path, number, tally);
                }
            });
        }
        // Established connections of every listener talk all the time.
        for port in [kept, rebound, always, changed] {
            let (stop, talked) = (&stop, &talked);
            let mut stream = connect(at(port));
            scope.spawn(move || {
                let mut number = 0u64;
                while !stop.load(Relaxed) {
                    number += 1;
                    let message = number.to_be_bytes().repeat(64);
                    assert_eq!(exchange(&mut stream, &message), message);
                    talked.fetch_add(message.len() as u64, Relaxed);
                }
            });
        }
        let served = || {
            [
                &of_kept,
                &of_rebound,
                &of_always,
                &of_changed,
                &of_local,
                &of_handed,
            ]
            .map(|tally| tally.served.load(Relaxed))
        };
        for round in 1..=RELOADS {
            let before = served();
            let result = daemon.reload_with(&config(round));
            assert_applied(&result);
            // The next round begins when all clients have been served. One that meets a socket being
            // retired tries again after a second, or several: that is waited for only sometimes.
            let patient = round % 20 == 0;
            let begun = std::time::Instant::now();
            while served()
                .iter()
                .zip(before)
                .enumerate()
                .any(|(index, (now, before))| *now == before && (index != REBOUND || patient))
            {
                assert!(
                    begun.elapsed() < CHURN_PATIENCE,
                    "{before:?}, {:?}",
                    served()
                );
                std::thread::sleep(Duration::from_millis(1));
            }
            if patient {
                waited = waited.max(begun.elapsed());
            }
        }
        drop(ends);
    });
    for (name, tally) in [
        ("unchanged", &of_kept),
        ("rebound with 1 and 2 sockets in turn", &of_rebound),
        ("of a changing list", &of_always),
        ("with a changing backlog", &of_changed),
        ("of an unchanged Unix path", &of_local),
        ("of a Unix path that changes hands", &of_handed),
    ] {
        println!(
            "{RELOADS} reloads, {name}: {} served, {} failed",
            tally.served.load(Relaxed),
            tally.failed()
        );
    }
    println!(
        "{} bytes over established connections, none wrong or missing; the longest wait for a client of the rebound listener {waited:?}",
        talked.load(Relaxed)
    );
    for tally in [
        &of_kept,
        &of_rebound,
        &of_always,
        &of_changed,
        &of_local,
        &of_handed,
    ] {
        assert_eq!(tally.failed(), 0, "{tally:?}");
    }
    assert_eq!(
        daemon.ctl_json(&["status"])["status"]["generation"],
        RELOADS + 1
    );
}

#[test]
fn removing_a_listener_under_connect_churn_resets_no_client() {
    const REMOVALS: u64 = 25;
    let [kept, gone] = [(); 2].map(|()| free_port());
    let kept = tcp("kept", &local(kept), "");
    let both = format!(
        "{kept}{}[listener.local]\nprotocol = \"unix-stream\"\naddress = \"{{dir}}/gone.sock\"\n",
        tcp("gone", &local(gone), "")
    );
    let daemon = Daemon::start(&both);
    let path = daemon.path("gone.sock");
    let stop = AtomicBool::new(false);
    let (of_tcp, of_unix) = (Tally::default(), Tally::default());
    std::thread::scope(|scope| {
        let ends = StopAtEnd(&stop);
        for _ in 0..3 {
            scope.spawn(|| {
                let mut number = 0;
                while !stop.load(Relaxed) {
                    number += 1;
                    quietly(
                        || {
                            let mut stream = TcpStream::connect_timeout(&at(gone), CHURN_PATIENCE)?;
                            stream.set_read_timeout(Some(CHURN_PATIENCE))?;
                            tally_bytes(&mut stream, number, &of_tcp)
                        },
                        &of_tcp,
                    );
                }
            });
        }
        scope.spawn(|| {
            let mut number = 0;
            while !stop.load(Relaxed) {
                number += 1;
                quietly(
                    || {
                        let mut stream = UnixStream::connect(&path)?;
                        stream.set_read_timeout(Some(CHURN_PATIENCE))?;
                        tally_bytes(&mut stream, number, &of_unix)
                    },
                    &of_unix,
                );
            }
        });
        let counts = |tally: &Tally| (tally.served.load(Relaxed), tally.refused.load(Relaxed));
        for _ in 0..REMOVALS {
            let before = [counts(&of_tcp), counts(&of_unix)];
            eventually("clients are served", || {
                counts(&of_tcp).0 > before[0].0 && counts(&of_unix).0 > before[1].0
            });
            assert_applied(&daemon.reload_with(&kept));
            eventually("clients are refused", || {
                counts(&of_tcp).1 > before[0].1 && counts(&of_unix).1 > before[1].1
            });
            assert_applied(&daemon.reload_with(&both));
        }
        drop(ends);
    });
    for (name, tally) in [("TCP", &of_tcp), ("Unix", &of_unix)] {
        println!(
            "{REMOVALS} removals, {name}: {} served, {} refused, {} reset",
            tally.served.load(Relaxed),
            tally.refused.load(Relaxed),
            tally.reset.load(Relaxed)
        );
        assert_eq!(tally.reset.load(Relaxed), 0, "{tally:?}");
        assert_eq!(tally.wrong.load(Relaxed), 0, "{tally:?}");
        assert_eq!(tally.other.load(Relaxed), 0, "{tally:?}");
    }
}

/// As [`tally_end`], without a word: being refused is expected.
fn quietly(exchange: impl FnOnce() -> std::io::Result<()>, tally: &Tally) {
    if let Err(error) = exchange() {
        let count = match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::NotFound => &tally.refused,
            ErrorKind::ConnectionReset => &tally.reset,
            _ => &tally.other,
        };
        count.fetch_add(1, Relaxed);
    }
}
