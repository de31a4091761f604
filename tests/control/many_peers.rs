//! Lists of thousands of peers, and what they cost others: the daemon's memory, its other clients and
//! an upgrade.
//!
//! What is measured in time is printed and not judged. That a call beside lists waits for one turn of
//! the control plane at most is shown beside the code, in `daemon::control`.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::{Value, json};

use super::{resident_kilobytes, under_load::measure_answers};
use crate::harness::{Control, Daemon, StopAtEnd, allow_many_descriptors, eventually, text};

const CONFIG: &str = r#"
[log]
target = "stderr"

[listener.main]
protocol = "unix-stream"
address = "{dir}/echo.sock"
max-connections = 10000
backlog = 4096
"#;

/// A client may have as many connections; one is left for other commands.
const READERS: usize = 7;

/// A daemon with many peers, as many as the limit of descriptors allows.
fn start(wanted: usize) -> (Daemon, Vec<UnixStream>) {
    let allowed = allow_many_descriptors() as usize;
    let daemon = Daemon::start(CONFIG);
    let path = daemon.path("echo.sock");
    let count = wanted.min(allowed / 2);
    let peers = (0..count)
        .map(|_| UnixStream::connect(&path).expect("a connection"))
        .collect();
    eventually("all are accepted", || {
        daemon.listener("main")["connections"] == count
    });
    (daemon, peers)
}

/// Lists all peers in a loop, until it is to stop or the connection ends. Each list has to be whole.
fn list_in_a_loop(mut control: Control, count: usize, stop: &AtomicBool, lists: &AtomicU64) {
    let request = json!({
        "method": "io.echod.Control.ListPeers", "parameters": {"sort": "age"}, "more": true,
    });
    let request = format!("{request}\0");
    while !stop.load(Ordering::Relaxed) {
        if control.stream.write_all(request.as_bytes()).is_err() {
            return;
        }
        let mut listed = 0;
        loop {
            let Some(reply) = control.reply() else {
                return;
            };
            let page = &reply["parameters"];
            assert_eq!(page["total"], count, "{}", reply["error"]);
            listed += page["peers"].as_array().expect("a list").len();
            if reply.get("continues").is_none() {
                break;
            }
        }
        assert_eq!(listed, count);
        lists.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn the_control_plane_answers_while_seven_clients_list_thousands_of_peers() {
    // Sixteen pages, and for each the control plane, a worker and a client wait for a processor.
    let (daemon, peers) = start(8000);
    let memory = resident_kilobytes(daemon.pid());
    let (stop, lists) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let ends = StopAtEnd(&stop);
        for _ in 0..READERS {
            let control = daemon.control();
            scope.spawn(|| list_in_a_loop(control, peers.len(), &stop, &lists));
        }
        eventually("they list", || lists.load(Ordering::Relaxed) > 0);
        let what = format!("beside {READERS} clients that list {} peers", peers.len());
        measure_answers(&daemon, &what);
        let before = lists.load(Ordering::Relaxed);
        eventually("they still list", || lists.load(Ordering::Relaxed) > before);
        drop(ends);
    });
    let grown = resident_kilobytes(daemon.pid()).saturating_sub(memory);
    println!("the lists cost {grown} KiB");
    // Lists of all peers for all clients would be 10 MiB and more.
    assert!(grown < 8 * 1024, "{grown} KiB more");
}

/// Asks for the number of peers again and again without waiting for a reply, until the connection
/// ends.
fn ask_without_waiting(control: &Control) {
    let request = json!({
        "method": "io.echod.Control.ListPeers", "parameters": {"limit": 0},
    });
    let requests = format!("{request}\0").repeat(50);
    let mut stream = &control.stream;
    while stream.write_all(requests.as_bytes()).is_ok() {}
}

/// Takes the replies, until the connection ends.
fn discard_replies(control: &Control) {
    let mut stream = &control.stream;
    while stream.read(&mut [0; 16 * 1024]).is_ok_and(|len| len > 0) {}
}

/// An upgrade waited until no client was asking for peers, and with several that ask again and again
/// that was never.
#[test]
fn clients_that_ask_for_peers_in_loops_do_not_keep_an_upgrade_from_happening() {
    let (daemon, peers) = start(4000);
    let readers: Vec<Control> = (0..READERS).map(|_| daemon.control()).collect();
    std::thread::scope(|scope| {
        for control in &readers {
            scope.spawn(|| ask_without_waiting(control));
            scope.spawn(|| discard_replies(control));
        }
        // Some requests wait and others are being worked on, at whatever time it is.
        let outputs: Vec<_> = (0..3).map(|_| daemon.ctl(&["upgrade"])).collect();
        for control in &readers {
            // Those that were being answered are closed already.
            let _ = control.stream.shutdown(Shutdown::Both);
        }
        for output in outputs {
            assert!(output.status.success(), "{}", text(&output.stderr));
        }
    });
    let status = daemon.ctl_json(&["status"])["status"].clone();
    assert_eq!(status["connections"], peers.len());
}

#[test]
fn all_peers_of_a_page_and_more_are_closed_by_one_call() {
    let (daemon, mut peers) = start(600);
    let kicked = daemon.ctl_json(&["kick", "main", "--dry-run"]);
    assert_eq!(kicked, json!({ "matched": peers.len(), "closed": 0 }));
    let kicked = daemon.ctl_json(&["kick", "main"]);
    assert_eq!(
        kicked,
        json!({ "matched": peers.len(), "closed": peers.len() })
    );
    for peer in &mut peers {
        assert_eq!(peer.read(&mut [0]).expect("its end"), 0);
    }
    let reply: Value = daemon.ctl_json(&["peers"]);
    assert_eq!(reply, json!({ "peers": [], "total": 0 }));
}
