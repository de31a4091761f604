//! The control plane answers while the daemon has much to do, or too little of what it needs.
//!
//! What is measured in time is printed and not judged; what never comes is a failure
//! ([`crate::harness::PATIENCE`]).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::ALL_KINDS;
use crate::harness::{Control, Daemon, StopAtEnd, after_shell_line, connect, eventually, exchange};

/// Asks for the status again and again over one connection, and prints how long that took.
pub(crate) fn measure_answers(daemon: &Daemon, what: &str) {
    let mut control = daemon.control();
    let mut times: Vec<Duration> = (0..100)
        .map(|_| {
            let begun = Instant::now();
            let reply = control.ask("GetStatus", &json!({}));
            assert!(reply.is_some(), "no answer {what}");
            begun.elapsed()
        })
        .collect();
    times.sort();
    println!(
        "GetStatus {what}: median {:?}, worst {:?}",
        times[50], times[99]
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
fn the_control_plane_answers_while_a_mebibyte_of_mistakes_is_rejected() {
    let daemon = Daemon::start(ALL_KINDS);
    let mistakes = "wrong = 1\n".repeat(1024 * 1024 / 10);
    daemon.write_config(&format!("{ALL_KINDS}\n[daemon]\n{mistakes}"));
    let stop = AtomicBool::new(false);
    let rejected = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let ends = StopAtEnd(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let result = daemon.reload();
                assert_eq!(result["outcome"], "rejected", "{result}");
                rejected.fetch_add(1, Ordering::Relaxed);
            }
        });
        measure_answers(&daemon, "beside reloads that are rejected");
        let before = rejected.load(Ordering::Relaxed);
        eventually("they are still rejected", || {
            rejected.load(Ordering::Relaxed) > before
        });
        drop(ends);
    });
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
