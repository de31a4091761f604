//! Reloads at random: whatever came before, the last file decides; and clients notice none of it.
//!
//! Addresses and paths pass from one listener to another, go from a wildcard to a specific address and
//! back, get more sockets and fewer. Each of them is served all the time by some listener, so that a
//! client that is refused or reset has found a defect.

use std::collections::BTreeSet;
use std::net::{TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::churn::{CHURN_PATIENCE, Tally, one_exchange, one_local_exchange};
use super::sockets::{open_addresses, options};
use super::{at, kernel_sockets};
use crate::harness::{Daemon, StopAtEnd, connect, eventually, exchange, free_port, udp};

/// The same numbers in each run (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }

    fn pick<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }

    /// This number of different names.
    fn names(&mut self, prefix: &str, count: usize) -> Vec<String> {
        let mut names: Vec<String> = (0..count + 2).map(|n| format!("{prefix}{n}")).collect();
        for index in 0..count {
            let other = index + self.below(names.len() - index);
            names.swap(index, other);
        }
        names.truncate(count);
        names
    }
}

/// What is served all the time, and a port that comes and goes.
struct Places {
    tcp: Vec<u16>,
    udp: Vec<u16>,
    paths: Vec<&'static str>,
    passing: u16,
}

impl Places {
    fn new() -> Self {
        Self {
            tcp: (0..4).map(|_| free_port()).collect(),
            udp: (0..2).map(|_| free_port()).collect(),
            paths: vec!["one.sock", "two.sock"],
            passing: free_port(),
        }
    }

    fn ports(&self) -> Vec<u16> {
        [&self.tcp[..], &self.udp[..], &[self.passing]].concat()
    }

    /// A configuration that serves all of them.
    fn config(&self, random: &mut Random) -> String {
        let mut text = String::new();
        for (name, port) in random.names("t", self.tcp.len()).iter().zip(&self.tcp) {
            let address = match random.below(3) {
                0 => format!("\"0.0.0.0:{port}\""),
                1 => format!("\"127.0.0.1:{port}\""),
                _ => format!("[\"127.0.0.1:{port}\", \"127.0.0.2:{port}\"]"),
            };
            let (sockets, backlog) = (1 + random.below(3), 50 + random.below(3));
            let more = random.pick(&["", "keepalive = \"30s\"", "receive-buffer = \"32KiB\""]);
            text += &format!(
                "[listener.{name}]\nprotocol = \"tcp\"\naddress = {address}\nsockets = {sockets}\n\
                 backlog = {backlog}\n{more}\n"
            );
        }
        for (name, port) in random.names("u", self.udp.len()).iter().zip(&self.udp) {
            let (ip, sockets) = (random.pick(&["0.0.0.0", "127.0.0.1"]), 1 + random.below(2));
            text += &format!(
                "[listener.{name}]\nprotocol = \"udp\"\naddress = \"{ip}:{port}\"\nsockets = {sockets}\n"
            );
        }
        for (name, path) in random.names("x", self.paths.len()).iter().zip(&self.paths) {
            let (mode, backlog) = (random.pick(&["0600", "0660", "0666"]), 50 + random.below(3));
            text += &format!(
                "[listener.{name}]\nprotocol = \"unix-stream\"\naddress = \"{{dir}}/{path}\"\n\
                 mode = \"{mode}\"\nbacklog = {backlog}\n"
            );
        }
        if random.below(2) == 0 {
            let (name, port) = (random.pick(&["p", "q"]), self.passing);
            text +=
                &format!("[listener.{name}]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:{port}\"\n");
        }
        text
    }
}

/// How many sockets of ports the daemon says that it has.
fn socket_count(daemon: &Daemon) -> u64 {
    let listeners = daemon.ctl_json(&["listeners"]);
    let listeners = listeners["listeners"].as_array().expect("a list");
    let of_ports = listeners
        .iter()
        .filter(|listener| listener["protocol"] != "unix-stream");
    of_ports
        .map(|listener| listener["sockets"].as_u64().expect("a number"))
        .sum()
}

/// Everything that the kernel and the daemon show of what is served.
fn state(daemon: &Daemon, places: &Places) -> Vec<String> {
    let ports = places.ports();
    let mut sockets = Vec::new();
    eventually("the sockets of earlier reloads are closed", || {
        sockets = kernel_sockets(&ports);
        sockets.len() as u64 == socket_count(daemon)
    });
    // Their inodes differ from one daemon to the next.
    let sockets = sockets.iter();
    let sockets = sockets.map(|socket| format!("{} {}", socket.table, socket.local));
    let mut state: Vec<String> = sockets.collect();
    state.extend(options(&ports));
    for path in &places.paths {
        let file = std::fs::metadata(daemon.path(path)).expect("it is there");
        state.push(format!("{path} {:o}", file.mode()));
    }
    for port in &ports {
        let open: BTreeSet<_> = open_addresses(*port).into_iter().collect();
        state.push(format!("{port} can be shared at {open:?}"));
    }
    let listeners = daemon.ctl_json(&["listeners"]);
    let folder = daemon.folder.path().display().to_string();
    for listener in listeners["listeners"].as_array().expect("a list") {
        let parts = ["name", "addresses", "sockets", "state", "max_connections"];
        let mut shown: Vec<Value> = parts.map(|part| listener[part].clone()).into();
        shown.push(listener["backlog"]["requested"].clone());
        shown.push(listener["backlog"]["effective"].clone());
        state.push(json!(shown).to_string().replace(&folder, ""));
    }
    let config = daemon.ctl_text(&["config", "show"]);
    state.extend(config.replace(&folder, "").lines().map(str::to_owned));
    state
}

fn assert_in_force(result: &Value, config: &str) {
    let outcome = result["outcome"].as_str();
    let in_force = ["applied", "unchanged"].map(Some).contains(&outcome);
    assert!(in_force, "{result} of {config}");
    assert_eq!(result["warnings"], json!([]), "{result} of {config}");
}

#[test]
fn a_history_of_reloads_ends_in_the_same_as_a_start_with_the_last_file() {
    for seed in 1..=5u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let places = Places::new();
        let mut history = vec![places.config(&mut random)];
        let mut daemon = Daemon::start(&history[0]);
        for _ in 0..6 {
            let config = places.config(&mut random);
            assert_in_force(&daemon.reload_with(&config), &config);
            history.push(config);
        }
        let reached = state(&daemon, &places);
        daemon.signal(Signal::SIGTERM);
        assert!(daemon.wait().success());
        let last = history.last().expect("there is a first");
        let fresh = Daemon::start(last);
        let expected = state(&fresh, &places);
        assert_eq!(
            reached,
            expected,
            "seed {seed}: {}",
            history.join("\n---\n")
        );
    }
}

/// Clients of one port or path, and the bytes that went over the connection that stays.
#[derive(Default)]
struct Load {
    tally: Tally,
    talked: AtomicU64,
    broken: AtomicU64,
}

impl Load {
    /// Talks over one connection until it has to stop, and checks each byte.
    fn talk(&self, mut stream: TcpStream, stop: &AtomicBool) {
        let mut number = 0u64;
        while !stop.load(Relaxed) {
            number += 1;
            let message = number.to_be_bytes().repeat(64);
            assert_eq!(exchange(&mut stream, &message), message);
            self.talked.fetch_add(message.len() as u64, Relaxed);
        }
    }

    fn ask(&self, client: &UdpSocket, stop: &AtomicBool) {
        let mut number = 0u64;
        while !stop.load(Relaxed) {
            number += 1;
            let mut answer = [0; 16];
            client.send(&number.to_be_bytes()).expect("sent");
            match client.recv(&mut answer) {
                Ok(8) if answer[..8] == number.to_be_bytes() => {
                    self.talked.fetch_add(8, Relaxed);
                }
                _ => {
                    self.broken.fetch_add(1, Relaxed);
                }
            }
        }
    }
}

/// Reloads at random this many times while clients come, go and stay at each place.
fn reload_at_random_under_load(rounds: u64, seed: u64) {
    let mut random = Random(seed);
    let places = Places::new();
    let daemon = Daemon::start(&places.config(&mut random));
    let stop = AtomicBool::new(false);
    let loads: Vec<Load> = (0..8).map(|_| Load::default()).collect();
    let (tcp, others) = loads.split_at(places.tcp.len());
    let (datagrams, unix) = others.split_at(places.udp.len());
    std::thread::scope(|scope| {
        let ends = StopAtEnd(&stop);
        let stop = &stop;
        for (port, load) in places.tcp.iter().zip(tcp) {
            let stays = connect(at(*port));
            scope.spawn(move || load.talk(stays, stop));
            scope.spawn(move || {
                let mut numbers = (1u64..).take_while(|_| !stop.load(Relaxed));
                numbers
                    .by_ref()
                    .for_each(|number| one_exchange(at(*port), number, &load.tally));
            });
        }
        for (port, load) in places.udp.iter().zip(datagrams) {
            let client = udp("127.0.0.1:0");
            client.connect(at(*port)).expect("connected");
            scope.spawn(move || load.ask(&client, stop));
        }
        for (path, load) in places.paths.iter().zip(unix) {
            let path = daemon.path(path);
            let mut stays = UnixStream::connect(&path).expect("connected");
            stays.set_read_timeout(Some(CHURN_PATIENCE)).expect("set");
            scope.spawn(move || {
                let mut number = 0u64;
                while !stop.load(Relaxed) {
                    number += 1;
                    one_local_exchange(&path, number, &load.tally);
                    assert_eq!(exchange(&mut stays, b"stays"), b"stays");
                    load.talked.fetch_add(5, Relaxed);
                }
            });
        }
        for _ in 0..rounds {
            let config = places.config(&mut random);
            assert_in_force(&daemon.reload_with(&config), &config);
        }
        drop(ends);
    });
    let sum = |of: fn(&Load) -> u64| loads.iter().map(of).sum::<u64>();
    let [served, failed] = [
        sum(|load| load.tally.served.load(Relaxed)),
        sum(|load| load.tally.failed() - load.tally.wrong.load(Relaxed)),
    ];
    let [wrong, lost, bytes] = [
        sum(|load| load.tally.wrong.load(Relaxed)),
        sum(|load| load.broken.load(Relaxed)),
        sum(|load| load.talked.load(Relaxed)),
    ];
    println!(
        "{rounds} random reloads: {served} clients came and went, failed connects {failed}, \
         broken connections 0, datagrams lost {lost}, wrong bytes {wrong}; {bytes} bytes over what stayed"
    );
    assert_eq!([failed, wrong, lost], [0; 3]);
    assert!(served > 0 && bytes > 0);
}

#[test]
fn random_reloads_under_load_lose_no_client_and_no_byte() {
    reload_at_random_under_load(30, 0x2545_f491_4f6c_dd1d);
}

#[test]
#[ignore = "takes a minute: run by .ci/run"]
fn a_thousand_random_reloads_under_load_lose_no_client_and_no_byte() {
    reload_at_random_under_load(1000, 0x9e37_79b9_7f4a_7c15);
}
