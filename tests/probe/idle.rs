//! `echoprobe idle`: what it finds out, and how it says so.
//!
//! A NAT is a thread here. It forgets by its own clock, and keeps book of it: what echoprobe says
//! is compared with that and not with what should have been, so that a busy machine changes nothing.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{LISTENERS, probe, probe_json};
use crate::harness::{Daemon, ECHOPROBE, PATIENCE, let_go, text, udp};

/// What a NAT does to who speaks on a flow that it has forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// Nothing.
    Drop,
    /// It resets the connection.
    Reset,
}

/// How long flows were silent before they were spoken on again, and whether they were still known.
type Book = Arc<Mutex<Vec<(Duration, bool)>>>;

/// How long a NAT knows a flow on which nothing is said.
const LIMIT: Duration = Duration::from_millis(700);

/// One flow through a NAT.
struct Flow {
    spoken: Mutex<Instant>,
    is_forgotten: Mutex<bool>,
    /// What the client has said last.
    message: Mutex<Vec<u8>>,
    book: Book,
}

impl Flow {
    fn new(book: &Book) -> Self {
        Self {
            spoken: Mutex::new(Instant::now()),
            is_forgotten: Mutex::new(false),
            message: Mutex::default(),
            book: Arc::clone(book),
        }
    }

    /// The server has spoken: it is known for so long from now on.
    fn refresh(&self) {
        *self.spoken.lock().expect("nobody panicked") = Instant::now();
    }

    /// The client speaks: whether the flow is known. What is said again, as datagrams are, does
    /// not go into the book again.
    fn admits(&self, message: &[u8]) -> bool {
        let mut is_forgotten = self.is_forgotten.lock().expect("nobody panicked");
        let mut last = self.message.lock().expect("nobody panicked");
        if *is_forgotten || *last == message {
            return !*is_forgotten;
        }
        *last = message.to_vec();
        let silence = self.spoken.lock().expect("nobody panicked").elapsed();
        *is_forgotten = silence > LIMIT;
        self.refresh();
        let mut book = self.book.lock().expect("nobody panicked");
        book.push((silence, !*is_forgotten));
        !*is_forgotten
    }
}

/// A NAT for TCP before this server. Returns where it is and its book.
fn tcp_nat(server: SocketAddr, manner: Manner) -> (SocketAddr, Book) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("an address");
    let book = Book::default();
    let ours = Arc::clone(&book);
    thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.expect("a client");
            let server = TcpStream::connect(server).expect("the server is there");
            let flow = Arc::new(Flow::new(&ours));
            let (from, to) = (server.try_clone(), client.try_clone());
            let (from, to) = (from.expect("a descriptor"), to.expect("a descriptor"));
            let back = Arc::clone(&flow);
            thread::spawn(move || pass_back(&from, &to, &back));
            thread::spawn(move || pass_there(&client, &server, &flow, manner));
        }
    });
    (address, book)
}

fn pass_back(mut from: &TcpStream, mut to: &TcpStream, flow: &Flow) {
    let mut memory = [0; 4096];
    while let Ok(len @ 1..) = from.read(&mut memory) {
        flow.refresh();
        if to.write_all(&memory[..len]).is_err() {
            return;
        }
    }
}

fn pass_there(mut from: &TcpStream, mut to: &TcpStream, flow: &Flow, manner: Manner) {
    let mut memory = [0; 4096];
    while let Ok(len @ 1..) = from.read(&mut memory) {
        if flow.admits(&memory[..len]) {
            to.write_all(&memory[..len]).expect("the server is there");
        } else if manner == Manner::Reset {
            let from = socket2::SockRef::from(from);
            from.set_linger(Some(Duration::ZERO)).expect("an option");
            // So that no other descriptor of it keeps it open.
            let _ = to.shutdown(std::net::Shutdown::Both);
            return;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

/// The same for UDP; what was forgotten stays so.
fn udp_nat(server: SocketAddr) -> (SocketAddr, Book) {
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").expect("a UDP socket"));
    let address = socket.local_addr().expect("an address");
    let book = Book::default();
    let ours = Arc::clone(&book);
    thread::spawn(move || {
        let mut flows = HashMap::new();
        let mut memory = [0; 4096];
        loop {
            let Ok((len, client)) = socket.recv_from(&mut memory) else {
                // It is about an answer to somebody who has gone.
                continue;
            };
            let (flow, outside) = flows.entry(client).or_insert_with(|| {
                let outside = Arc::new(udp("127.0.0.1:0"));
                let flow = Arc::new(Flow::new(&ours));
                let (inside, from) = (Arc::clone(&socket), Arc::clone(&outside));
                let back = Arc::clone(&flow);
                thread::spawn(move || {
                    let mut memory = [0; 4096];
                    while let Ok(len) = from.recv(&mut memory) {
                        back.refresh();
                        // Who has asked may have gone.
                        let _ = inside.send_to(&memory[..len], client);
                    }
                });
                (flow, outside)
            });
            if flow.admits(&memory[..len]) {
                outside.send_to(&memory[..len], server).expect("sent");
            }
        }
    });
    (address, book)
}

const RANGE: [&str; 6] = ["--from", "100ms", "--to", "3s", "--resolution", "50ms"];

/// What it has found has to be what the NAT did.
fn assert_is_of(json: &Value, book: &Book, cause: &str) {
    let book = book.lock().expect("nobody panicked");
    // On each flow it speaks at once, too, and on the last one only so.
    let silences: Vec<&(Duration, bool)> = book.iter().skip(1).step_by(2).collect();
    let probes = json["probes"].as_array().expect("a list");
    assert_eq!(silences.len(), probes.len(), "{book:?}: {json}");
    for ((silence, survived), probe) in silences.iter().zip(probes) {
        assert_eq!(probe["survived"], *survived, "{silence:?}: {json}");
        let expected = if *survived { Value::Null } else { json!(cause) };
        assert_eq!(probe["cause"], expected);
    }
    let milliseconds = |key: &str| json[key].as_f64().expect("it is known");
    let (survived, failed) = (milliseconds("survived_ms"), milliseconds("failed_ms"));
    let gap = failed - survived;
    assert!(gap > 0.0 && gap <= 50.0, "{json}");
    // What lies between us and the NAT is longer for the NAT.
    assert!(survived <= LIMIT.as_secs_f64() * 1e3, "{json}");
    let forgotten = silences.iter().filter(|(_, survived)| !survived);
    let shortest = forgotten.map(|(silence, _)| *silence).min();
    let shortest = shortest.expect("one was forgotten").as_secs_f64() * 1e3;
    assert!(failed <= shortest, "{shortest}: {json}");
    assert_eq!(json["ended_by"], cause);
    assert_eq!(json["finished"], true);
}

fn idle(scheme: &str, address: SocketAddr, more: &[&str]) -> (i32, Value) {
    let url = format!("{scheme}://{address}");
    probe_json(&[&["idle", &url], &RANGE[..], more].concat())
}

#[test]
fn a_nat_that_forgets_without_a_word_is_found() {
    let daemon = Daemon::start(LISTENERS);
    let (nat, book) = tcp_nat(daemon.address("tcp"), Manner::Drop);
    let (status, json) = idle("tcp", nat, &["--timeout", "1s"]);
    assert_eq!(status, 0, "{json}");
    assert_is_of(&json, &book, "timed out");
}

#[test]
fn a_nat_that_resets_what_it_has_forgotten_is_found() {
    let daemon = Daemon::start(LISTENERS);
    let (nat, book) = tcp_nat(daemon.address("tcp"), Manner::Reset);
    let (status, json) = idle("tcp", nat, &[]);
    assert_eq!(status, 0, "{json}");
    assert_is_of(&json, &book, "reset");
}

#[test]
fn a_nat_that_forgets_flows_of_datagrams_is_found() {
    let daemon = Daemon::start(LISTENERS);
    let (nat, book) = udp_nat(daemon.address("udp"));
    let (status, json) = idle("udp", nat, &["--timeout", "1500ms"]);
    assert_eq!(status, 0, "{json}");
    assert_is_of(&json, &book, "timed out");
}

#[test]
fn a_service_that_closes_is_not_taken_for_a_nat() {
    let daemon = Daemon::start(&format!("[defaults]\nidle-timeout = \"1s\"\n{LISTENERS}"));
    let url = format!("tcp://{}", daemon.address("tcp"));
    let (status, json) = probe_json(&[&["idle", &url], &RANGE[..]].concat());
    assert_eq!(status, 0, "{json}");
    assert_eq!(json["ended_by"], "closed");
    let output = probe(&["idle", &url, "--from", "900ms", "--to", "3s"]);
    let said = text(&output.stdout);
    assert!(said.contains("the service ends it"), "{said}");
    assert!(said.contains("the path keeps it as long"), "{said}");
}

fn said(output: &Output) -> String {
    text(&output.stdout) + &text(&output.stderr)
}

#[test]
fn what_survives_the_longest_silence_has_no_limit_up_to_there() {
    let daemon = Daemon::start(LISTENERS);
    let path = |name| daemon.path(name).display().to_string();
    let urls = [
        (format!("tcp://{}", daemon.address("tcp")), ""),
        (format!("unix://{}", path("stream")), ""),
        (format!("udp://{}", daemon.address("udp")), "over UDP a NAT"),
        (
            format!("unixgram://{}", path("datagram")),
            "datagrams on one host",
        ),
    ];
    for (url, caveat) in &urls {
        let arguments = ["idle", url, "--from", "50ms", "--to", "120ms"];
        let output = probe(&arguments);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(0), "{said}");
        assert!(said.contains("a silence of 120ms is survived"), "{said}");
        assert!(said.contains("this may take up to"), "{said}");
        assert!(said.contains("silent for 100ms: survived"), "{said}");
        assert!(said.contains(caveat), "{said}");
        let (status, json) = probe_json(&arguments);
        assert_eq!((status, &json["survived_ms"]), (0, &json!(120.0)));
        assert_eq!((json.get("failed_ms"), json.get("ended_by")), (None, None));
        assert_eq!(json["probes"].as_array().map(Vec::len), Some(3));
    }
}

#[test]
fn keepalives_of_the_service_are_noticed() {
    let daemon = Daemon::start(&format!("[defaults]\nkeepalive = \"1s\"\n{LISTENERS}"));
    let url = format!("tcp://{}", daemon.address("tcp"));
    let arguments = ["idle", &url, "--from", "2500ms", "--to", "2500ms"];
    let (status, json) = probe_json(&arguments);
    assert_eq!((status, &json["kept_alive"]), (0, &json!(true)), "{json}");
}

#[test]
fn a_service_that_goes_away_meanwhile_is_no_limit_of_the_path() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let url = format!("tcp://{}", listener.local_addr().expect("an address"));
    let service = thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a client");
        let mut message = [0; 32];
        client.read_exact(&mut message).expect("it speaks");
        let_go(listener);
        client.write_all(&message).expect("it listens");
        // It speaks again, and in the end closes.
        client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        client.read_to_end(&mut Vec::new()).expect("it closes");
    });
    let arguments = [&["idle", &url], &RANGE[..], &["--timeout", "5s"]].concat();
    let (status, json) = probe_json(&arguments);
    service.join().expect("it did not panic");
    assert_eq!((status, json.get("failed_ms")), (1, None), "{json}");
    assert_eq!(json["errors"], json!({"refused": 1}));
    assert_eq!(json["finished"], false);
}

#[test]
fn where_nobody_answers_there_is_no_flow() {
    let nobody = udp("127.0.0.1:0");
    let url = format!("udp://{}", nobody.local_addr().expect("an address"));
    let (status, json) = probe_json(&["idle", &url, "--timeout", "30ms"]);
    assert_eq!((status, &json["errors"]), (3, &json!({"timed out": 1})));
    let_go(nobody);
    for url in [&url, &url.replace("udp", "tcp")] {
        let (status, json) = probe_json(&["idle", url]);
        assert_eq!((status, &json["errors"]), (3, &json!({"refused": 1})));
    }
}

#[test]
fn silences_that_make_no_sense_are_refused() {
    for (arguments, reason) in [
        (["--from", "3h"], "--from: is longer than --to"),
        (["--from", "0s"], "--from: no silence at all"),
        (
            ["--source", ":5000"],
            "each silence needs a flow of its own",
        ),
    ] {
        let output = probe(&[&["idle", "tcp://127.0.0.1:7"], &arguments[..]].concat());
        assert_eq!(output.status.code(), Some(2));
        let said = text(&output.stderr);
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn who_interrupts_it_is_told_what_is_known_by_then() {
    let daemon = Daemon::start(LISTENERS);
    let url = format!("tcp://{}", daemon.address("tcp"));
    let mut child = Command::new(ECHOPROBE)
        .args(["idle", &url, "--from", "50ms", "--to", "24h", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("echoprobe runs");
    let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let survived = lines.any(|line| line.expect("text").contains("survived"));
    assert!(survived, "it tells each step");
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    kill(pid, Signal::SIGINT).expect("it is there");
    let output = child.wait_with_output().expect("a child of ours");
    assert_eq!(output.status.code(), Some(1));
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["finished"], false);
    assert!(json["survived_ms"].as_f64() >= Some(50.0), "{json}");
}
