//! One configuration becomes another under clients who must not notice.
//!
//! Listeners have ports found free just before, so that they can be handed around; the proof under
//! churn ([`a_hundred_reloads_under_churn_lose_nobody_and_nothing`]) counts and prints.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Daemon, PATIENCE, connect, eventually, exchange, free_port, text, udp};

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

/// Nobody listens there (any more). A socket on its way out drops what comes, so that a client of
/// it waits for a second before it is refused; here it waits for as long as it takes.
fn refuses(address: SocketAddr) -> bool {
    match TcpStream::connect_timeout(&address, PATIENCE) {
        Ok(_) => false,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => true,
        Err(error) => panic!("{address}: {error}"),
    }
}

/// Whether a client is let in only to be reset, which it may learn of before `connect` returns.
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
fn a_signal_reloads_and_the_service_manager_is_told() {
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
    assert!(ready.contains("generation 2"), "{ready}");
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
    assert!(plan.starts_with("dry run, nothing has changed: "), "{plan}");
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
            "update  changed             1  changed: backlog 100 → 200 (live); 1 connection stays",
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
    // The connections of all of them go on; the two that are there and the new one take more.
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
    second.read_exact(&mut answer).expect("let in");
    update("max-connections = 2\nwhen-full = \"reset\"", &["when-full"]);
    assert!(is_reset(address));
    assert_eq!(daemon.listener("main")["refused"]["full"], 1);
    // Who may come.
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
    // Timeouts count for those who are here already.
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
            eventually("somebody is answered", || answered.load(Relaxed) > before);
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
