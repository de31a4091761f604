//! Addresses that come, go, stay, and pass from one listener to another.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use serde_json::json;

use super::{assert_applied, at, change, listening_inodes, local, refuses, still_echoes, tcp};
use crate::harness::{Daemon, PATIENCE, connect, eventually, exchange, free_port, text, udp};

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

#[test]
fn sockets_of_an_address_are_multiplied_and_reduced() {
    let port = free_port();
    let config = |sockets: &str| tcp("main", &local(port), &format!("sockets = {sockets}"));
    let daemon = Daemon::start(&config("1"));
    let mut peers = vec![connect(at(port))];
    let inodes = || BTreeSet::from_iter(listening_inodes(at(port)));
    let count = || inodes().len();
    assert_eq!(count(), 1);
    let workers = daemon.ctl_json(&["status"])["status"]["workers"].clone();
    let workers = workers.as_u64().expect("a number") as usize;
    for (sockets, expected) in [("2", 2), ("\"auto\"", workers), ("3", 3), ("1", 1)] {
        let before = inodes();
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
        // As many as can stay are the same.
        let stay = before.intersection(&inodes()).count();
        assert_eq!(stay, expected.min(before.len()), "{sockets}");
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
