//! Many connections: all open at once, and those that end suddenly with everything under way.

use std::io::{Read, Write};

use socket2::Socket;

use super::crowd::{Answer, Crowd, Ending, Plan, Service, Sizes, wait_until_all_are_gone};
use super::pattern::{self, Random};
use super::{KINDS, STREAMS, address_of, connect, streams_with};
use crate::harness::{Daemon, allow_many_descriptors, eventually, not_tested};

const WORKERS: usize = 2;

/// Descriptors that a daemon of `WORKERS` may keep for later: pipes, two for each.
const POOLED_DESCRIPTORS: usize = WORKERS * 2 * 64;

#[test]
fn killed_clients_leave_nothing_to_those_on_their_slots() {
    allow_many_descriptors();
    let seed = pattern::seed();
    for (number, kind) in KINDS.into_iter().enumerate() {
        // The daemon's receive buffers may grow. A full one drops segments, and with them what they
        // acknowledge, while the daemon waits for room to send: two kernels then wait for each other,
        // for minutes.
        let daemon = Daemon::start(&format!(
            "[daemon]\nworkers = {WORKERS}\n{}",
            streams_with("write-stall-timeout = \"off\"\nsend-buffer = \"64KiB\"")
        ));
        let descriptors = daemon.descriptors();
        let service = Service::of(&daemon, kind, Answer::Echo);
        let mut crowd = Crowd::new(seed, &[service], (number as u32) << 20);
        for round in 0..12 {
            let stalls = round % 4 == 3;
            for _ in 0..200 {
                let victim = Plan {
                    total: 4_000_000,
                    deaf: stalls || crowd.random.one_in(2),
                    ending: Ending::Stay,
                    ..Plan::random(&mut crowd.random)
                };
                crowd.add(0, victim);
            }
            if stalls {
                crowd.stall();
            } else {
                for _ in 0..crowd.random.below(12) {
                    crowd.turn(std::time::Duration::ZERO);
                }
            }
            // The remaining clients get all of their bytes, beside the new ones.
            crowd.kill_one_in(1 + round % 2, 0);
            crowd.come_to_an_end();
            for _ in 0..200 {
                let heir = Plan {
                    total: crowd.random.below(40_000),
                    sizes: Sizes::Mixed,
                    ..Plan::random(&mut crowd.random)
                };
                crowd.add(0, heir);
            }
            crowd.finish();
        }
        wait_until_all_are_gone(&daemon, kind);
        let connected = crowd.tallies()[0].connected;
        assert_eq!(
            daemon.listener(kind)["accepted"],
            connected,
            "seed {seed}: {kind}"
        );
        eventually("all descriptors are given back", || {
            daemon.descriptors() <= descriptors + POOLED_DESCRIPTORS
        });
    }
}

/// A connection that is held, and its progress.
struct Held {
    socket: Socket,
    stream: u32,
    sent: u64,
    received: u64,
}

impl Held {
    fn send(&mut self, size: usize) {
        let mut message = vec![0; size];
        pattern::fill(self.stream, self.sent, &mut message);
        self.socket.write_all(&message).expect("sent");
        self.sent += size as u64;
    }

    fn receive(&mut self, seed: u64) {
        let mut answer = vec![0; (self.sent - self.received) as usize];
        self.socket.read_exact(&mut answer).expect("answered");
        let right = pattern::compare(self.stream, self.received, false, &answer, &mut Vec::new());
        right.unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        self.received = self.sent;
    }
}

#[test]
fn ten_thousand_connections_open_and_close() {
    // Each has an end here, and one in the daemon, which has as many descriptors as we; other tests
    // run beside this one.
    let room = allow_many_descriptors().saturating_sub(6000);
    let count = usize::try_from(room).map_or(10_000, |room| room.min(10_000));
    if count < 10_000 {
        not_tested(format_args!(
            "more than {count} connections need more descriptors (ulimit -Hn)"
        ));
    }
    let seed = pattern::seed();
    let mut random = Random::new(seed);
    let daemon = Daemon::start(&format!(
        "[daemon]\nworkers = {WORKERS}\n[defaults]\nmax-connections = 20000\n{STREAMS}"
    ));
    let descriptors = daemon.descriptors();
    for kind in KINDS {
        let address = address_of(&daemon, kind);
        let mut first = Held {
            socket: connect(&address),
            stream: 0,
            sent: 0,
            received: 0,
        };
        first.send(100_000);
        first.receive(seed);
        let memory = daemon.memory_kib();
        let mut held: Vec<Held> = (1..=count as u32)
            .map(|stream| Held {
                socket: connect(&address),
                stream,
                sent: 0,
                received: 0,
            })
            .collect();
        held.iter_mut().for_each(|held| held.send(32));
        held.iter_mut().for_each(|held| held.receive(seed));
        assert_eq!(daemon.connections(kind), count as u64 + 1, "{kind}");

        random.shuffle(&mut held);
        let (busy, idle) = held.split_at_mut(count / 2);
        for round in 0..4 {
            for some in busy.chunks_mut(500) {
                for held in &mut *some {
                    // What is under way fits into the kernel's buffers, so that we need not read yet.
                    let size = 1 + random.below(if round == 3 { 20_000 } else { 200 });
                    held.send(size as usize);
                    held.send(1 + random.below(size) as usize);
                }
                some.iter_mut().for_each(|held| held.receive(seed));
            }
        }
        for held in idle {
            held.send(1);
            held.receive(seed);
        }
        // Half a KiB for each, whatever the buffers: those are there for all, and were not all
        // touched by one connection.
        let allowed = memory + WORKERS as u64 * 16 * 1024 + count as u64 / 2;
        let now = daemon.memory_kib();
        assert!(
            now < allowed,
            "{kind}: {memory} KiB became {now} KiB, {allowed} are allowed"
        );

        drop(held);
        drop(first);
        wait_until_all_are_gone(&daemon, kind);
        eventually("all descriptors are given back", || {
            daemon.descriptors() <= descriptors + POOLED_DESCRIPTORS
        });
        let mut last = Held {
            socket: connect(&address),
            stream: 0,
            sent: 0,
            received: 0,
        };
        last.send(100_000);
        last.receive(seed);
        drop(last);
        wait_until_all_are_gone(&daemon, kind);
    }
}
