//! Clients that come and go all the time while listeners are changed and removed: none is lost.
//!
//! The proof ([`a_hundred_reloads_under_churn_lose_no_client_and_no_byte`]) counts and prints.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::{assert_applied, at, local, refuses, still_echoes, tcp};
use crate::harness::{Daemon, PATIENCE, StopAtEnd, connect, eventually, exchange, free_port, udp};

#[test]
fn a_datagram_that_arrives_while_its_address_changes_hands_is_answered() {
    let port = free_port();
    let config = |address: &str, sockets: &str| {
        format!(
            "[listener.main]\nprotocol = \"udp\"\naddress = \"{address}:{port}\"\nsockets = {sockets}\n"
        )
    };
    let daemon = Daemon::start(&config("0.0.0.0", "1"));
    let stop = AtomicBool::new(false);
    let answered = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let ends = StopAtEnd(&stop);
        for _ in 0..2 {
            scope.spawn(|| {
                let socket = udp("127.0.0.1:0");
                let mut number = 0u64;
                while !stop.load(Relaxed) {
                    number += 1;
                    socket
                        .send_to(&number.to_be_bytes(), at(port))
                        .expect("sent");
                    let mut answer = [0; 16];
                    let (len, from) = socket.recv_from(&mut answer).expect("answered");
                    assert_eq!(from, at(port));
                    assert_eq!(answer[..len], number.to_be_bytes());
                    answered.fetch_add(1, Relaxed);
                }
            });
        }
        for (address, sockets) in [
            ("127.0.0.1", "1"),
            ("127.0.0.1", "2"),
            ("0.0.0.0", "2"),
            ("0.0.0.0", "1"),
        ]
        .repeat(25)
        {
            let before = answered.load(Relaxed);
            assert_applied(&daemon.reload_with(&config(address, sockets)));
            eventually("a client is answered", || answered.load(Relaxed) > before);
        }
        drop(ends);
    });
    println!(
        "{} datagrams in turn through 100 reloads, each answered",
        answered.load(Relaxed)
    );
}

#[test]
fn clients_in_the_queue_of_a_removed_listener_are_served() {
    // No worker has accepted them yet, and none resets them.
    let [kept, gone] = [(); 2].map(|()| free_port());
    let kept = tcp("kept", &local(kept), "");
    let full = "max-connections = 1\nsockets = 1";
    let unix = "[listener.local]\nprotocol = \"unix-stream\"\naddress = \"{dir}/local.sock\"\nmax-connections = 1\n";
    let daemon = Daemon::start(&format!("{kept}{}{unix}", tcp("gone", &local(gone), full)));
    let mut inside = connect(at(gone));
    exchange(&mut inside, b"inside");
    let mut queued: Vec<TcpStream> = (0..50).map(|_| connect(at(gone))).collect();
    for client in &mut queued {
        client.write_all(b"queued").expect("sent");
    }
    let path = daemon.path("local.sock");
    let mut local: Vec<UnixStream> = (0..10)
        .map(|_| UnixStream::connect(&path).expect("a connection"))
        .collect();
    for client in &mut local {
        client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        client.write_all(b"queued").expect("sent");
    }
    eventually("they are queued", || {
        daemon.listener("gone")["backlog"]["queued"] == 50
    });

    assert_applied(&daemon.reload_with(&kept));
    let served = |client: &mut dyn Read| {
        let mut answer = [0; 6];
        client.read_exact(&mut answer).expect("served, not reset");
        assert_eq!(&answer, b"queued");
    };
    for client in &mut queued {
        served(client);
    }
    for client in &mut local {
        served(client);
    }
    still_echoes(&mut queued, b"and continues");
    assert_eq!(exchange(&mut inside, b"inside"), b"inside");
    assert!(refuses(at(gone)));
    println!("50 TCP and 10 Unix clients in the queues of removed listeners, each served");
}

/// What became of many short exchanges.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) served: AtomicU64,
    refused: AtomicU64,
    reset: AtomicU64,
    pub(super) wrong: AtomicU64,
    other: AtomicU64,
}

impl Tally {
    pub(super) fn failed(&self) -> u64 {
        [&self.refused, &self.reset, &self.wrong, &self.other]
            .map(|count| count.load(Relaxed))
            .iter()
            .sum()
    }
}

/// Longer than any chain of SYN retransmissions that a hundred rebinds can cause.
pub(super) const CHURN_PATIENCE: Duration = Duration::from_secs(100);

/// One connection, one message, its echo, the end.
pub(super) fn one_exchange(address: SocketAddr, number: u64, tally: &Tally) {
    let exchanged = TcpStream::connect_timeout(&address, CHURN_PATIENCE).and_then(|mut stream| {
        stream.set_read_timeout(Some(CHURN_PATIENCE))?;
        tally_bytes(&mut stream, number, tally)
    });
    tally_end(exchanged, tally);
}

pub(super) fn one_local_exchange(path: &std::path::Path, number: u64, tally: &Tally) {
    let exchanged = UnixStream::connect(path).and_then(|mut stream| {
        stream.set_read_timeout(Some(CHURN_PATIENCE))?;
        tally_bytes(&mut stream, number, tally)
    });
    tally_end(exchanged, tally);
}

fn tally_bytes(
    stream: &mut (impl Read + Write),
    number: u64,
    tally: &Tally,
) -> std::io::Result<()> {
    let message = number.to_be_bytes();
    stream.write_all(&message)?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    let count = if answer == message {
        &tally.served
    } else {
        &tally.wrong
    };
    count.fetch_add(1, Relaxed);
    Ok(())
}

fn tally_end(exchanged: std::io::Result<()>, tally: &Tally) {
    let Err(error) = exchanged else {
        return;
    };
    let count = match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::NotFound => &tally.refused,
        ErrorKind::ConnectionReset => &tally.reset,
        _ => &tally.other,
    };
    count.fetch_add(1, Relaxed);
}

#[test]
fn a_hundred_reloads_under_churn_lose_no_client_and_no_byte() {
    const RELOADS: u64 = 100;
    const REBOUND: usize = 1;
    let [kept, rebound, always, sometimes, changed, passing] = [(); 6].map(|()| free_port());
    let config =
        |round: u64| {
            let odd = round % 2 == 1;
            let list = if odd {
                format!("[{}, {}]", local(always), local(sometimes))
            } else {
                local(always)
            };
            let mut parts =
                vec![
            tcp("kept", &local(kept), ""),
            "[listener.local]\nprotocol = \"unix-stream\"\naddress = \"{dir}/local.sock\"\n".into(),
            tcp("rebound", &local(rebound), if odd { "sockets = 2" } else { "sockets = 1" }),
            tcp("list", &list, ""),
            tcp("changed", &local(changed), &format!("backlog = {}", 100 + round)),
        ];
            if odd {
                parts.push(tcp("passing", &local(passing), ""));
            }
            // One path that goes from one listener to another and back.
            let holder = if odd { "a-holder" } else { "z-holder" };
            parts.push(format!(
            "[listener.{holder}]\nprotocol = \"unix-stream\"\naddress = \"{{dir}}/handed.sock\"\n"
        ));
            parts.concat()
        };
    let daemon = Daemon::start(&config(0));
    let paths = [daemon.path("local.sock"), daemon.path("handed.sock")];
    let stop = AtomicBool::new(false);
    let [
        of_kept,
        of_rebound,
        of_always,
        of_changed,
        of_local,
        of_handed,
    ] = [(); 6].map(|()| Tally::default());
    let talked = AtomicU64::new(0);
    let mut waited = Duration::ZERO;
    std::thread::scope(|scope| {
        let ends = StopAtEnd(&stop);
        for (port, tally) in [
            (kept, &of_kept),
            (rebound, &of_rebound),
            (rebound, &of_rebound),
            (always, &of_always),
            (changed, &of_changed),
        ] {
            let stop = &stop;
            scope.spawn(move || {
                let mut number = 0;
                while !stop.load(Relaxed) {
                    number += 1;
                    one_exchange(at(port), number, tally);
                }
            });
        }
        for (path, tally) in paths.iter().zip([&of_local, &of_handed]) {
            let stop = &stop;
            scope.spawn(move || {
                let mut number = 0;
                while !stop.load(Relaxed) {
                    number += 1;
                    one_local_exchange(path, number, tally);
                }
            });
        }
        // Established connections of every listener talk all the time.
        for port in [kept, rebound, always, changed] {
            let (stop, talked) = (&stop, &talked);
            let mut stream = connect(at(port));
            scope.spawn(move || {
                let mut number = 0u64;
                while !stop.load(Relaxed) {
                    number += 1;
                    let message = number.to_be_bytes().repeat(64);
                    assert_eq!(exchange(&mut stream, &message), message);
                    talked.fetch_add(message.len() as u64, Relaxed);
                }
            });
        }
        let served = || {
            [
                &of_kept,
                &of_rebound,
                &of_always,
                &of_changed,
                &of_local,
                &of_handed,
            ]
            .map(|tally| tally.served.load(Relaxed))
        };
        for round in 1..=RELOADS {
            let before = served();
            let result = daemon.reload_with(&config(round));
            assert_applied(&result);
            // The next round begins when all clients have been served. One that meets a socket being
            // retired tries again after a second, or several: that is waited for only sometimes.
            let patient = round % 20 == 0;
            let begun = std::time::Instant::now();
            while served()
                .iter()
                .zip(before)
                .enumerate()
                .any(|(index, (now, before))| *now == before && (index != REBOUND || patient))
            {
                assert!(
                    begun.elapsed() < CHURN_PATIENCE,
                    "{before:?}, {:?}",
                    served()
                );
                std::thread::sleep(Duration::from_millis(1));
            }
            if patient {
                waited = waited.max(begun.elapsed());
            }
        }
        drop(ends);
    });
    for (name, tally) in [
        ("unchanged", &of_kept),
        ("rebound with 1 and 2 sockets in turn", &of_rebound),
        ("of a changing list", &of_always),
        ("with a changing backlog", &of_changed),
        ("of an unchanged Unix path", &of_local),
        ("of a Unix path that changes hands", &of_handed),
    ] {
        println!(
            "{RELOADS} reloads, {name}: {} served, {} failed",
            tally.served.load(Relaxed),
            tally.failed()
        );
    }
    println!(
        "{} bytes over established connections, none wrong or missing; the longest wait for a client of the rebound listener {waited:?}",
        talked.load(Relaxed)
    );
    for tally in [
        &of_kept,
        &of_rebound,
        &of_always,
        &of_changed,
        &of_local,
        &of_handed,
    ] {
        assert_eq!(tally.failed(), 0, "{tally:?}");
    }
    assert_eq!(
        daemon.ctl_json(&["status"])["status"]["generation"],
        RELOADS + 1
    );
}

#[test]
fn removing_a_listener_under_connect_churn_resets_no_client() {
    const REMOVALS: u64 = 25;
    let [kept, gone] = [(); 2].map(|()| free_port());
    let kept = tcp("kept", &local(kept), "");
    let both = format!(
        "{kept}{}[listener.local]\nprotocol = \"unix-stream\"\naddress = \"{{dir}}/gone.sock\"\n",
        tcp("gone", &local(gone), "")
    );
    let daemon = Daemon::start(&both);
    let path = daemon.path("gone.sock");
    let stop = AtomicBool::new(false);
    let (of_tcp, of_unix) = (Tally::default(), Tally::default());
    std::thread::scope(|scope| {
        let ends = StopAtEnd(&stop);
        for _ in 0..3 {
            scope.spawn(|| {
                let mut number = 0;
                while !stop.load(Relaxed) {
                    number += 1;
                    quietly(
                        || {
                            let mut stream = TcpStream::connect_timeout(&at(gone), CHURN_PATIENCE)?;
                            stream.set_read_timeout(Some(CHURN_PATIENCE))?;
                            tally_bytes(&mut stream, number, &of_tcp)
                        },
                        &of_tcp,
                    );
                }
            });
        }
        scope.spawn(|| {
            let mut number = 0;
            while !stop.load(Relaxed) {
                number += 1;
                quietly(
                    || {
                        let mut stream = UnixStream::connect(&path)?;
                        stream.set_read_timeout(Some(CHURN_PATIENCE))?;
                        tally_bytes(&mut stream, number, &of_unix)
                    },
                    &of_unix,
                );
            }
        });
        let counts = |tally: &Tally| (tally.served.load(Relaxed), tally.refused.load(Relaxed));
        for _ in 0..REMOVALS {
            let before = [counts(&of_tcp), counts(&of_unix)];
            eventually("clients are served", || {
                counts(&of_tcp).0 > before[0].0 && counts(&of_unix).0 > before[1].0
            });
            assert_applied(&daemon.reload_with(&kept));
            eventually("clients are refused", || {
                counts(&of_tcp).1 > before[0].1 && counts(&of_unix).1 > before[1].1
            });
            assert_applied(&daemon.reload_with(&both));
        }
        drop(ends);
    });
    for (name, tally) in [("TCP", &of_tcp), ("Unix", &of_unix)] {
        println!(
            "{REMOVALS} removals, {name}: {} served, {} refused, {} reset",
            tally.served.load(Relaxed),
            tally.refused.load(Relaxed),
            tally.reset.load(Relaxed)
        );
        assert_eq!(tally.reset.load(Relaxed), 0, "{tally:?}");
        assert_eq!(tally.wrong.load(Relaxed), 0, "{tally:?}");
        assert_eq!(tally.other.load(Relaxed), 0, "{tally:?}");
    }
}

/// As [`tally_end`], without a word: being refused is expected.
fn quietly(exchange: impl FnOnce() -> std::io::Result<()>, tally: &Tally) {
    if let Err(error) = exchange() {
        let count = match error.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::NotFound => &tally.refused,
            ErrorKind::ConnectionReset => &tally.reset,
            _ => &tally.other,
        };
        count.fetch_add(1, Relaxed);
    }
}
