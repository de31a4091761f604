//! Keys that take effect on the sockets that are there.

use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use serde_json::json;

use super::{assert_applied, at, change, is_reset, local, tcp};
use crate::harness::{Daemon, connect, eventually, exchange, free_port};

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
