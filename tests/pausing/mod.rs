//! `echoctl pause`, `resume` and `drain`: what clients see, and what operators do.

mod drain;
mod survival;

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};

use serde_json::{Value, json};

use crate::harness::{Daemon, LISTENERS, PATIENCE, connect, eventually, exchange, text, udp};

/// Whether a client that connects there is turned away: at once, and not by silence.
fn is_turned_away(address: SocketAddr) -> bool {
    let ended = |error: std::io::Error| {
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        true
    };
    match TcpStream::connect_timeout(&address, PATIENCE) {
        // The reset may be there before the call returns.
        Err(error) => ended(error),
        Ok(mut client) => {
            client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            client.read(&mut [0; 1]).map_or_else(ended, |_| false)
        }
    }
}

fn state(daemon: &Daemon, name: &str) -> String {
    let listener = daemon.listener(name);
    listener["state"].as_str().expect("a state").to_owned()
}

#[test]
fn a_paused_listener_turns_new_clients_away_keeps_the_others_and_has_the_same_port_when_it_resumes()
{
    let daemon = Daemon::start(LISTENERS);
    let address = daemon.address("tcp");
    let mut before = connect(address);
    assert_eq!(exchange(&mut before, b"before"), b"before");
    assert_eq!(
        daemon.ctl_text(&["pause", "tcp"]),
        "tcp: listening → paused\n"
    );
    assert_eq!(
        daemon.ctl_text(&["pause", "tcp"]),
        "tcp: paused, as before\n"
    );
    for count in 1..=3 {
        // The state that a caller has read holds: no client that comes later gets in.
        assert!(is_turned_away(address));
        assert_eq!(daemon.refused("tcp", "paused"), count);
    }
    let taken = TcpListener::bind(address).map(|_| ()).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AddrInUse);
    assert_eq!(exchange(&mut before, b"during"), b"during");
    assert_eq!(
        daemon.ctl_text(&["resume", "tcp"]),
        "tcp: paused → listening\n"
    );
    assert_eq!(daemon.address("tcp"), address);
    assert_eq!(exchange(&mut connect(address), b"new"), b"new");
    assert_eq!(exchange(&mut before, b"after"), b"after");
}

#[test]
fn every_kind_of_listener_can_be_paused_and_resumed() {
    let daemon = Daemon::start(LISTENERS);
    let client = udp("127.0.0.1:0");
    client.connect(daemon.address("udp")).unwrap();
    let mut local = UnixStream::connect(daemon.path("stream")).unwrap();
    local.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(exchange(&mut local, b"before"), b"before");
    let datagrams = UnixDatagram::bind(daemon.path("client")).unwrap();
    datagrams.connect(daemon.path("datagram")).unwrap();
    datagrams.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(
        daemon.ctl_text(&["pause", "--all"]),
        "datagram: listening → paused\nstream: listening → paused\n\
         tcp: listening → paused\nudp: listening → paused\n"
    );
    client.send(b"lost").unwrap();
    datagrams.send(b"lost").unwrap();
    for name in ["udp", "datagram"] {
        eventually("a datagram is counted", || {
            daemon.refused(name, "paused") == 1
        });
        assert_eq!(daemon.listener(name)["datagrams_sent"], 0);
    }
    let mut new = UnixStream::connect(daemon.path("stream")).unwrap();
    new.set_read_timeout(Some(PATIENCE)).unwrap();
    match new.read(&mut [0; 1]) {
        Ok(len) => assert_eq!(len, 0),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    assert_eq!(daemon.refused("stream", "paused"), 1);
    assert_eq!(exchange(&mut local, b"during"), b"during");
    daemon.ctl_text(&["resume", "--all"]);
    eventually("datagrams are answered again", || {
        client.send(b"back").unwrap();
        datagrams.send(b"back").unwrap();
        daemon.listener("udp")["datagrams_sent"].as_u64() > Some(0)
            && daemon.listener("datagram")["datagrams_sent"].as_u64() > Some(0)
    });
    // What was discarded is not answered late.
    for answer in [client.recv(&mut [0; 4]), datagrams.recv(&mut [0; 4])] {
        assert_eq!(answer.unwrap(), 4);
    }
}

#[test]
fn clients_that_are_held_wait_in_the_backlog_and_are_served_when_the_listener_resumes() {
    use std::io::Write;
    let daemon = Daemon::start(LISTENERS);
    assert_eq!(
        daemon.ctl_text(&["pause", "tcp", "--hold"]),
        "tcp: listening → holding\n"
    );
    assert_eq!(
        daemon.ctl_text(&["pause", "stream", "--hold"]),
        "stream: listening → holding\n"
    );
    // A worker that has not heard of it yet may serve one, which then is no longer queued.
    let mut tcp = Vec::new();
    eventually("five clients are held", || {
        tcp.push(daemon.connect("tcp"));
        daemon.listener("tcp")["backlog"]["queued"].as_u64() >= Some(5)
    });
    for client in &mut tcp {
        client.write_all(b"held").unwrap();
    }
    let mut local = UnixStream::connect(daemon.path("stream")).unwrap();
    local.set_read_timeout(Some(PATIENCE)).unwrap();
    local.write_all(b"held").unwrap();
    assert_eq!(daemon.ctl_text(&["resume", "--all"]).lines().count(), 4);
    for client in &mut tcp {
        let mut answer = [0; 4];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"held");
    }
    let mut answer = [0; 4];
    local.read_exact(&mut answer).unwrap();
    assert_eq!(daemon.refused("tcp", "paused"), 0);
}

#[test]
fn held_clients_of_a_listener_that_is_paused_then_are_reset() {
    let daemon = Daemon::start(LISTENERS);
    daemon.ctl_text(&["pause", "tcp", "--hold"]);
    let mut held = Vec::new();
    eventually("a client is held", || {
        held.push(daemon.connect("tcp"));
        daemon.listener("tcp")["backlog"]["queued"].as_u64() > Some(0)
    });
    assert_eq!(
        daemon.ctl_text(&["pause", "tcp"]),
        "tcp: holding → paused\n"
    );
    eventually("they are counted", || daemon.refused("tcp", "paused") > 0);
    let mut last = held.pop().unwrap();
    let error = last.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn datagrams_are_not_held_and_with_all_their_listeners_are_paused() {
    let daemon = Daemon::start(LISTENERS);
    let output = daemon.ctl(&["pause", "udp", "--hold"]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(
        told.contains("\"udp\": datagrams can't be held") && told.contains("without --hold"),
        "{told}"
    );
    assert_eq!(state(&daemon, "udp"), "listening");
    assert_eq!(
        daemon.ctl_text(&["pause", "--all", "--hold"]),
        "datagram: listening → paused; datagrams can't be held, and are discarded\n\
         stream: listening → holding\ntcp: listening → holding\n\
         udp: listening → paused; datagrams can't be held, and are discarded\n"
    );
}

#[test]
fn nothing_happens_where_it_is_not_clear_which_listeners_are_meant() {
    let daemon = Daemon::start(LISTENERS);
    for command in ["pause", "resume", "drain"] {
        for (arguments, status, told) in [
            (&[][..], 2, "--all"),
            (&["tcp", "--all"], 2, "cannot be used with"),
            (&["nobody"], 1, "there are: datagram, stream, tcp, udp"),
        ] {
            let output = daemon.ctl(&[&[command], arguments].concat());
            assert_eq!(
                output.status.code(),
                Some(status),
                "{command} {arguments:?}"
            );
            let stderr = text(&output.stderr);
            assert!(stderr.contains(told), "{told:?} in {stderr}");
        }
    }
    for (deadline, told) in [
        ("-1s", "not a time"),
        ("30", "write e.g. 30s"),
        ("1001d", "at most 1000d"),
    ] {
        let output = daemon.ctl(&["drain", "tcp", "--deadline", deadline]);
        assert_eq!(output.status.code(), Some(2), "{deadline}");
        let stderr = text(&output.stderr);
        assert!(
            stderr.contains(told) && stderr.contains(deadline),
            "{told:?} in {stderr}"
        );
    }
    let reply = daemon.control().ask(
        "DrainListener",
        &json!({ "listener": "tcp", "deadline_ms": -5 }),
    );
    let reply = reply.expect("a reply");
    assert_eq!(reply["error"], "io.echod.Control.InvalidDeadline");
    assert_eq!(reply["parameters"]["deadline_ms"], -5);
    let listeners = daemon.ctl_json(&["listeners"]);
    for listener in listeners["listeners"].as_array().unwrap() {
        assert_eq!(listener["state"], "listening");
    }
    assert!(!daemon.log().contains("pauses"));
}

#[test]
fn the_state_is_shown_in_each_place_and_each_change_is_logged_with_its_caller() {
    let mut daemon = Daemon::start(LISTENERS);
    daemon.ctl_text(&["pause", "tcp"]);
    daemon.wait_for_notification_with("the state", |line| {
        line == "STATUS=4 listeners, 1 paused, 0 connections"
    });
    daemon.ctl_text(&["pause", "stream", "--hold"]);
    daemon.ctl_text(&["drain", "udp"]);
    let reply = daemon.ctl_json(&["pause", "datagram"]);
    let change: Value = json!({
        "listener": "datagram", "before": "listening", "after": "paused", "connections": 0
    });
    assert_eq!(reply, json!({ "listeners": [change] }));

    for (name, expected) in [
        ("tcp", "paused"),
        ("stream", "holding"),
        ("udp", "draining"),
        ("datagram", "paused"),
    ] {
        assert_eq!(state(&daemon, name), expected);
        let shown = daemon.ctl_text(&["listeners", name]);
        assert!(
            shown.starts_with(name) && shown.contains(expected),
            "{shown}"
        );
        let table = daemon.ctl_text(&["listeners"]);
        let row = table
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")));
        assert!(row.is_some_and(|row| row.contains(expected)), "{table}");
    }
    let status = daemon.ctl_text(&["status"]);
    let line = "  listeners      4, 1 draining, 1 holding, 2 paused\n";
    assert!(status.contains(line), "{status}");
    let states = &daemon.ctl_json(&["status"])["status"]["listener_states"];
    assert_eq!(states, &json!({ "draining": 1, "holding": 1, "paused": 2 }));

    let log = daemon.log();
    let pid = nix::unistd::getuid();
    for line in [
        format!("control: uid {pid} (pid "),
        "program \"echoctl\") pauses listener \"tcp\": listening → paused".to_owned(),
        "pauses and holds listener \"stream\": listening → holding".to_owned(),
        "drains listener \"udp\" within drain-timeout: listening → draining".to_owned(),
    ] {
        assert!(log.contains(&line), "{line:?} in {log}");
    }
}
