//! Drains: how long connections may continue, and what the caller learns of it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Stdio;

use serde_json::{Value, json};

use super::{is_turned_away, state};
use crate::harness::{Control, Daemon, ECHOCTL, connect, eventually, exchange, text};
use crate::terminal::{CONTROL_C, Screen};

const TWO: &str = r#"
[daemon]
drain-timeout = "1000d"

[listener.main]
protocol = "tcp"
address = "127.0.0.1:0"

[listener.other]
protocol = "tcp"
address = "127.0.0.1:0"
"#;

/// A connection that is established on both sides.
fn established(daemon: &Daemon, name: &str) -> TcpStream {
    let mut peer = daemon.connect(name);
    assert_eq!(exchange(&mut peer, b"hello"), b"hello");
    peer
}

/// Waits for our FIN, and sends the peer's.
fn finish(mut peer: TcpStream) {
    assert_eq!(peer.read(&mut [0; 1]).expect("a FIN and no reset"), 0);
    peer.shutdown(Shutdown::Write).expect("our FIN");
}

/// Begins a drain of a listener and watches it.
fn watch(daemon: &Daemon, parameters: &Value) -> Control {
    let mut control = daemon.control();
    let request = json!({
        "method": "io.echod.Control.DrainListener", "parameters": parameters, "more": true
    });
    let sent = control.stream.write_all(format!("{request}\0").as_bytes());
    sent.expect("sent");
    control
}

#[test]
fn a_drain_leaves_connections_their_time_and_then_sends_a_fin_and_no_other_listener_notices() {
    let daemon = Daemon::start(TWO);
    let address = daemon.address("main");
    let peers: Vec<TcpStream> = (0..3).map(|_| established(&daemon, "main")).collect();
    let mut other = established(&daemon, "other");
    let mut control = watch(&daemon, &json!({ "listener": "main" }));
    let begun = control.reply().expect("a reply");
    assert_eq!(begun["continues"], true, "{begun}");
    let parameters = &begun["parameters"];
    assert_eq!(parameters["connections"], 3);
    assert!(parameters["left_ms"].as_u64() > Some(80_000_000_000));
    let [change] = parameters["listeners"].as_array().unwrap().as_slice() else {
        panic!("{begun}");
    };
    assert_eq!(change["before"], "listening");
    assert_eq!(change["after"], "draining");
    assert!(is_turned_away(address));
    for mut peer in peers {
        assert_eq!(exchange(&mut peer, b"goes on"), b"goes on");
        let before = daemon.connections("main");
        drop(peer);
        // Replies come also while nothing changes.
        loop {
            let reply = control.reply().expect("a reply");
            let left = reply["parameters"]["connections"].as_u64().unwrap();
            assert_eq!(reply["continues"].as_bool().unwrap_or(false), left > 0);
            if left < before {
                break;
            }
        }
    }
    assert_eq!(state(&daemon, "main"), "draining");
    assert!(is_turned_away(address));
    assert_eq!(exchange(&mut other, b"other"), b"other");
    // The connection can be used on.
    let resumed = control.ask("ResumeListener", &json!({ "listener": "main" }));
    let resumed = resumed.expect("a reply");
    let change = &resumed["parameters"]["listeners"][0];
    assert_eq!(
        (&change["before"], &change["after"]),
        (&json!("draining"), &json!("listening"))
    );
    assert_eq!(exchange(&mut connect(address), b"new"), b"new");
    assert!(daemon.log().contains("listener \"main\": drained"));
}

#[test]
fn at_the_deadline_connections_get_what_is_pending_and_then_our_fin() {
    let daemon = Daemon::start(TWO);
    let mut peers: Vec<TcpStream> = (0..3).map(|_| established(&daemon, "main")).collect();
    let mut other = established(&daemon, "other");
    // More than the kernel takes: it is pending when the deadline is there.
    let bulk = vec![7; 20 << 20];
    let mut slow = established(&daemon, "main");
    let mut writer = slow.try_clone().unwrap();
    let (stalled, is_stalled) = std::sync::mpsc::channel();
    let sending = std::thread::spawn(move || {
        writer.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while let Ok(len) = writer.write(&bulk[sent..]) {
            sent += len;
        }
        writer.set_nonblocking(false).unwrap();
        stalled.send(sent).unwrap();
    });
    let sent = is_stalled.recv().unwrap();
    sending.join().unwrap();
    let begun = daemon.control().ask(
        "DrainListener",
        &json!({ "listener": "main", "deadline_ms": 0 }),
    );
    let begun = begun.expect("one reply");
    assert_eq!(begun["parameters"]["left_ms"], 0, "{begun}");
    assert_eq!(begun.get("continues"), None);
    assert_eq!(begun["parameters"]["connections"], 4);
    for peer in peers.drain(..) {
        finish(peer);
    }
    let mut echoed = Vec::new();
    // It reads as fast as it can, and gets to the FIN; what the daemon had not read is reset with it.
    let read = slow.read_to_end(&mut echoed);
    assert!(echoed.len() <= sent && echoed.iter().all(|byte| *byte == 7));
    assert!(!echoed.is_empty(), "{read:?}");
    drop(slow);
    eventually("no connection is left", || daemon.connections("main") == 0);
    assert_eq!(state(&daemon, "main"), "draining");
    assert!(daemon.listener("main")["closed"]["drained"].as_u64() >= Some(3));
    assert_eq!(exchange(&mut other, b"other"), b"other");
    assert_eq!(daemon.connections("other"), 1);
}

/// A peer that reads nothing would be drained for ever where `write-stall-timeout` is off.
#[test]
fn a_peer_that_does_not_take_our_fin_does_not_keep_a_drain_from_its_end() {
    let config = TWO.replace(
        "[listener.main]",
        "[listener.main]\nwrite-stall-timeout = \"off\"",
    );
    let daemon = Daemon::start(&config);
    let stalled = established(&daemon, "main");
    stalled.set_nonblocking(true).unwrap();
    while (&stalled).write(&[7; 1 << 14]).is_ok() {}
    let mut control = watch(&daemon, &json!({ "all": true, "deadline_ms": 0 }));
    loop {
        let reply = control.reply().expect("a reply");
        if reply.get("continues").is_none() {
            assert_eq!(reply["parameters"]["connections"], 0);
            break;
        }
    }
    assert_eq!(daemon.connections("main"), 0);
}

#[test]
fn a_drain_ends_when_the_listener_is_resumed_or_paused_and_a_second_one_has_another_deadline() {
    let daemon = Daemon::start(TWO);
    let mut peer = established(&daemon, "main");
    for (end, after) in [("ResumeListener", "listening"), ("PauseListener", "paused")] {
        let mut control = watch(&daemon, &json!({ "listener": "main" }));
        assert_eq!(control.reply().expect("a reply")["continues"], true);
        let ended = daemon.control().ask(end, &json!({ "listener": "main" }));
        assert_eq!(
            ended.expect("a reply")["parameters"]["listeners"][0]["before"],
            "draining"
        );
        loop {
            let reply = control.reply().expect("a reply");
            if reply.get("continues").is_none() {
                assert_eq!(reply["parameters"]["listeners"][0]["after"], after);
                break;
            }
        }
        assert_eq!(exchange(&mut peer, b"stays"), b"stays");
    }
    for deadline in [json!(60_000), json!(0)] {
        let parameters = json!({ "listener": "main", "deadline_ms": deadline });
        let reply = daemon.control().ask("DrainListener", &parameters);
        assert_eq!(reply.expect("a reply")["parameters"]["connections"], 1);
    }
    finish(peer);
    eventually("no connection is left", || daemon.connections("main") == 0);
}

#[test]
fn a_watched_drain_ends_with_a_line_in_a_pipe_and_with_json_with_an_object() {
    let daemon = Daemon::start(TWO);
    let peer = established(&daemon, "main");
    let arguments = ["drain", "main", "--deadline", "0s"];
    let closing = std::thread::spawn(|| finish(peer));
    assert_eq!(
        daemon.ctl_text(&arguments),
        "main: listening → draining; no connection is left\n"
    );
    closing.join().unwrap();
    let last = daemon.ctl_json(&arguments);
    assert_eq!(last["connections"], 0);
    assert_eq!(last["listeners"][0]["before"], "draining");
}

#[test]
fn on_a_terminal_progress_is_drawn_and_control_c_ends_the_watching_and_not_the_drain() {
    let daemon = Daemon::start(TWO);
    let mut peers = vec![established(&daemon, "main"), established(&daemon, "main")];
    let screen = Screen::new();
    let mut command = screen.command(ECHOCTL);
    command
        .env("ECHOCTL_SOCKET", daemon.path("control.sock"))
        .args(["drain", "main", "--deadline", "1h"]);
    let mut watching = command.spawn().expect("echoctl runs");
    let shows = |what: &str| eventually(what, || screen.text().contains(what));
    shows("\r\x1b[Kdraining main: 2 connections left, ");
    drop(peers.pop());
    shows("\r\x1b[Kdraining main: 1 connection left, ");
    assert!(!screen.text().contains('\n'), "it is drawn in one place");
    screen.type_in(CONTROL_C);
    let status = watching.wait().expect("it ends");
    assert_eq!(status.code(), Some(1));
    shows("the drain of main goes on, 1 connection left; echoctl resume ends it");
    assert_eq!(state(&daemon, "main"), "draining");
    assert_eq!(exchange(&mut peers[0], b"goes on"), b"goes on");
}

/// An upgrade closes the connection over which it is watched.
#[test]
fn a_drain_that_is_watched_continues_after_an_upgrade_and_its_caller_is_told_so() {
    let daemon = Daemon::start(TWO);
    let mut peer = established(&daemon, "main");
    let mut command = std::process::Command::new(ECHOCTL);
    command
        .env("ECHOCTL_SOCKET", daemon.path("control.sock"))
        .args(["drain", "main"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let watching = command.spawn().expect("echoctl runs");
    eventually("it is drained", || state(&daemon, "main") == "draining");
    daemon.forget_notifications();
    daemon.ctl_text(&["upgrade"]);
    let output = watching.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(
        told.contains("the drain of main goes on, 1 connection left"),
        "{told}"
    );
    assert_eq!(state(&daemon, "main"), "draining");
    assert_eq!(exchange(&mut peer, b"goes on"), b"goes on");
}
