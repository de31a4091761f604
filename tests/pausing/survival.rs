//! What outlasts a pause: reloads, upgrades; and stops, which end it.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};

use nix::sys::signal::Signal;
use serde_json::json;

use super::{is_turned_away, state};
use crate::harness::{Daemon, connect, eventually, exchange, free_port, text};

const MAIN: &str = "[listener.main]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n";
const OTHER: &str = "[listener.other]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n";

/// How to get into each state.
const STATES: [(&str, &[&str]); 3] = [
    ("paused", &["pause", "main"]),
    ("holding", &["pause", "main", "--hold"]),
    ("draining", &["drain", "main", "--deadline", "1h"]),
];

/// A daemon with this state, and a connection that was there before.
fn start_with(arguments: &[&str]) -> (Daemon, TcpStream) {
    let daemon = Daemon::start(MAIN);
    let mut peer = daemon.connect("main");
    assert_eq!(exchange(&mut peer, b"before"), b"before");
    let method = match arguments[0] {
        "pause" => "PauseListener",
        _ => "DrainListener",
    };
    let mut parameters = json!({ "listener": "main" });
    match method {
        "PauseListener" => parameters["hold"] = json!(arguments.contains(&"--hold")),
        _ => parameters["deadline_ms"] = json!(3_600_000),
    }
    let reply = daemon.control().ask(method, &parameters);
    assert_eq!(reply.expect("a reply").get("error"), None);
    (daemon, peer)
}

#[test]
fn a_reload_that_keeps_changes_or_rebinds_a_listener_leaves_its_state_and_says_so() {
    for (expected, arguments) in STATES {
        let (daemon, mut peer) = start_with(arguments);
        let port = free_port();
        let rebound = MAIN.replace("127.0.0.1:0", &format!("127.0.0.1:{port}"));
        let changed = format!("{MAIN}idle-timeout = \"1h\"\n");
        let shrunk = format!("{MAIN}sockets = 1\n");
        for config in [MAIN, &changed, &shrunk, &rebound] {
            let result = daemon.reload_with(config);
            assert_ne!(result["outcome"], "rejected", "{result}");
            let warning = format!("listener \"main\" is still {expected}: echoctl resume main");
            assert!(
                result["warnings"]
                    .to_string()
                    .contains(&warning.replace('"', "\\\"")),
                "{result}"
            );
            assert_eq!(state(&daemon, "main"), expected, "{config}");
            assert_eq!(exchange(&mut peer, b"stays"), b"stays");
            if expected != "holding" {
                assert!(is_turned_away(daemon.address("main")), "{config}");
            }
        }
        // With another protocol it is another listener of this name, and takes no new clients either.
        let result = daemon.reload_with(&MAIN.replace("\"tcp\"", "\"udp\""));
        assert_eq!(result["outcome"], "applied", "{result}");
        let listener = daemon.ctl_json(&["listeners", "main"]);
        let of_datagrams = if expected == "holding" {
            "paused"
        } else {
            expected
        };
        assert_eq!(listener["listeners"][0]["state"], of_datagrams);
    }
}

#[test]
fn a_listener_that_is_removed_and_added_again_listens() {
    for (expected, arguments) in STATES {
        let (daemon, mut peer) = start_with(arguments);
        daemon.reload_with(OTHER);
        // Its connection may continue.
        assert_eq!(state(&daemon, "main"), "retired", "{expected}");
        assert_eq!(exchange(&mut peer, b"stays"), b"stays");
        let result = daemon.reload_with(&format!("{MAIN}{OTHER}"));
        assert_eq!(result["warnings"], json!([]), "{result}");
        assert_eq!(state(&daemon, "main"), "listening");
        let mut new = daemon.connect("main");
        assert_eq!(exchange(&mut new, b"new"), b"new");
    }
}

#[test]
fn a_removed_listener_serves_those_that_it_held_and_turns_nobody_away_in_silence() {
    let (daemon, _peer) = start_with(&["pause", "main", "--hold"]);
    let mut held = Vec::new();
    eventually("a client is held", || {
        held.push(daemon.connect("main"));
        daemon.listener("main")["backlog"]["queued"].as_u64() > Some(0)
    });
    daemon.reload_with(OTHER);
    for client in &mut held {
        assert_eq!(exchange(client, b"at last"), b"at last");
    }
}

#[test]
fn the_time_of_a_drain_goes_on_for_the_connections_of_a_listener_that_is_removed_meanwhile() {
    let (daemon, mut peer) = start_with(&["drain"]);
    let reply = daemon.control().ask(
        "DrainListener",
        &json!({ "listener": "main", "deadline_ms": 300 }),
    );
    assert_eq!(reply.expect("a reply").get("error"), None);
    daemon.reload_with(OTHER);
    assert_eq!(peer.read(&mut [0; 1]).expect("a FIN"), 0);
}

#[test]
fn every_state_survives_an_upgrade_and_what_was_held_is_served_in_the_end() {
    for (expected, arguments) in STATES {
        let (daemon, mut peer) = start_with(arguments);
        let address = daemon.address("main");
        let mut held = Vec::new();
        if expected == "holding" {
            eventually("a client is held", || {
                held.push(connect(address));
                daemon.listener("main")["backlog"]["queued"].as_u64() > Some(0)
            });
        }
        for _ in 0..2 {
            daemon.forget_notifications();
            let output = daemon.ctl(&["upgrade"]);
            assert!(output.status.success(), "{}", text(&output.stderr));
            let told = text(&output.stdout);
            assert!(told.contains("is still"), "{told}");
            assert_eq!(state(&daemon, "main"), expected);
            assert_eq!(exchange(&mut peer, b"stays"), b"stays");
            if expected != "holding" {
                assert!(is_turned_away(address));
            }
        }
        daemon.ctl_text(&["resume", "main"]);
        for client in &mut held {
            assert_eq!(exchange(client, b"at last"), b"at last");
        }
        assert_eq!(exchange(&mut connect(address), b"new"), b"new");
    }
}

#[test]
fn the_deadline_of_a_drain_holds_in_a_successor() {
    let (daemon, mut peer) = start_with(&["drain"]);
    let parameters = json!({ "listener": "main", "deadline_ms": 1000 });
    let reply = daemon.control().ask("DrainListener", &parameters);
    assert_eq!(reply.expect("a reply").get("error"), None);
    daemon.forget_notifications();
    let output = daemon.ctl(&["upgrade"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(peer.read(&mut [0; 1]).expect("a FIN"), 0);
    peer.shutdown(Shutdown::Write).expect("our FIN");
    eventually("no connection is left", || daemon.connections("main") == 0);
    assert_eq!(state(&daemon, "main"), "draining");
    assert_eq!(daemon.listener("main")["closed"]["drained"], 1);
}

#[test]
fn a_stop_ends_a_daemon_in_every_state_and_serves_those_that_were_held() {
    for (expected, arguments) in STATES {
        let (mut daemon, mut peer) = start_with(arguments);
        let mut held = Vec::new();
        if expected == "holding" {
            eventually("a client is held", || {
                let mut client = daemon.connect("main");
                client.write_all(b"held").unwrap();
                held.push(client);
                daemon.listener("main")["backlog"]["queued"].as_u64() > Some(0)
            });
        }
        daemon.signal(Signal::SIGTERM);
        for client in &mut held {
            let mut answer = [0; 4];
            client.read_exact(&mut answer).expect("served");
        }
        drop(held);
        assert_eq!(exchange(&mut peer, b"stays"), b"stays");
        drop(peer);
        assert!(daemon.wait().success(), "{expected}");
    }
}

#[test]
fn a_paused_listener_answers_every_client_also_while_the_daemon_stops() {
    let (mut daemon, peer) = start_with(&["pause", "main"]);
    let address = daemon.address("main");
    daemon.signal(Signal::SIGTERM);
    while let Ok(mut client) = TcpStream::connect(address) {
        let error = client.read(&mut [0; 1]).expect_err("it is not served");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    drop(peer);
    assert!(daemon.wait().success());
}
