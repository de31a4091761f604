//! Commands that change something or show how it is configured, and raw calls.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use super::{ALL_KINDS, code, connect_from, only};
use crate::harness::{Daemon, connect, eventually, exchange, text, udp};

#[test]
fn the_log_says_which_caller_changed_what() {
    let daemon = Daemon::start(ALL_KINDS);
    let mut peer = connect(daemon.address("main"));
    exchange(&mut peer, b"hello");
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
        "sets the backlog of listener \"main\" to 99: 1024 → 99, effective 99",
    );
    check(
        &["kick", "--listener", "main", "--idle", "0s"],
        "closes the connections of listener \"main\", idle for at least 0s: 1 closed",
    );
    check(&["reload"], "reloads the configuration: generation 1 → 2");
    check(
        &["reload"],
        "reloads the configuration: nothing has changed, still generation 2",
    );
    check(
        &["log-level", "debug"],
        "sets the log level to debug: info → debug",
    );
    check(
        &["log-level", "off"],
        "sets the log level to off: debug → off",
    );
    check(
        &["log-level", "info"],
        "sets the log level to info: off → info",
    );
    check(&["upgrade"], "upgrades the daemon");
    assert_eq!(said("control: uid"), 8);
    // What changes nothing is not logged.
    daemon.ctl_text(&["status"]);
    daemon.ctl_text(&["peers"]);
    daemon.ctl_text(&["kick", "main", "--dry-run"]);
    daemon.ctl_text(&["reload", "--dry-run"]);
    daemon.write_config("unknown = 1\n");
    let rejected = daemon.ctl(&["reload"]);
    assert_eq!(code(&rejected), Some(78));
    assert_eq!(said("control: uid"), 9, "{}", daemon.log());
    let line = "reloads the configuration: rejected, still generation 2";
    assert_eq!(said(line), 1, "{}", daemon.log());
}

/// After a hundred lines the others of ten seconds were suppressed, also those of other callers.
#[test]
fn each_change_has_its_line_however_many_there_are() {
    let daemon = Daemon::start(ALL_KINDS);
    let mut control = daemon.control();
    for backlog in 1..=150 {
        let parameters = json!({ "listener": "main", "backlog": backlog });
        let reply = control.ask("SetBacklog", &parameters).expect("a reply");
        assert!(reply["error"].is_null(), "{reply}");
    }
    let log = daemon.log();
    let lines = log.matches("sets the backlog of listener \"main\" to ");
    assert_eq!(lines.count(), 150, "{log}");
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

    assert_eq!(daemon.ctl_text(&["kick", "main"]), "closed 1 connection\n");
    assert!(is_closed(&mut peers[3]));
    assert_eq!(exchange(&mut other, b"nor I"), b"nor I");
    assert_eq!(
        daemon.ctl_text(&["kick", "--older", "0s"]),
        "closed 1 connection; 1 source has nothing to close: datagrams have no connection\n"
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
    assert_eq!(code(&daemon.ctl(&["log-level", "loud"])), Some(2));
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
