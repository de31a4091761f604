//! Tests of the simulator itself: its history depends on the seed only, and it panics when its user
//! breaks the rules of the seam.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::*;

fn here(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

/// A peer and its connection, accepted by the driver.
fn connected(network: &Network, sim: &mut Sim) -> (Peer, Token) {
    let listener = sim.add_listener(network.listen(here(7)), None);
    sim.submit(Op::Accept { listener });
    let peer = network.connect(here(1000), here(7));
    let connection = loop {
        if let [Completion::Accepted { connection, .. }] = turn(sim)[..] {
            break connection;
        }
    };
    (peer, connection)
}

fn turn(sim: &mut Sim) -> Vec<Completion> {
    let mut done = vec![];
    sim.wait(None, &mut done).unwrap();
    done
}

/// Echoes 100,000 bytes with three buffers, and returns every completion with its time.
fn history(seed: u64, faults: Faults) -> String {
    let network = Network::new(seed);
    let mut sim = Sim::with_buffers(&network, 3);
    let start = sim.now();
    network.set_faults(faults);
    let (peer, connection) = connected(&network, &mut sim);
    sim.submit(Op::Receive { connection });
    let (mut written, mut echoed, mut text) = (0, vec![], String::new());
    while echoed.len() < 100_000 {
        written += network.write(peer, &vec![7; (100_000 - written).min(10_000)]);
        echoed.extend(network.read(peer, 5000));
        for completion in turn(&mut sim) {
            text += &format!("{:?} {completion:?}\n", sim.now() - start);
            if let Completion::Received { connection, buffer } = completion {
                sim.submit(Op::Send { connection, buffer });
            }
        }
    }
    sim.submit(Op::Close {
        token: connection,
        how: Closing::Now,
    });
    while !matches!(turn(&mut sim)[..], [.., Completion::Closed { .. }]) {}
    sim.assert_all_returned();
    assert_eq!(network.open_connections(), 0);
    text
}

#[test]
fn the_same_seed_gives_the_same_history() {
    assert_eq!(history(1, Faults::rough()), history(1, Faults::rough()));
    assert_ne!(history(1, Faults::rough()), history(2, Faults::rough()));
}

#[test]
fn hostile_faults_break_connections_and_lose_no_buffer() {
    let network = Network::new(3);
    let mut sim = Sim::with_buffers(&network, 5);
    network.set_faults(Faults::hostile());
    let listener = sim.add_listener(network.listen(here(7)), None);
    sim.submit(Op::Accept { listener });
    let peers: Vec<Peer> = (0..50)
        .map(|port| network.connect(here(1000 + port), here(7)))
        .collect();
    let (mut failures, mut pauses) = (0, 0);
    // Echo at random, closing what fails.
    for _ in 0..3000 {
        network.write(peers[network.below(peers.len())], b"hello");
        network.read(peers[network.below(peers.len())], 3);
        for completion in turn(&mut sim) {
            match completion {
                Completion::Accepted { connection, .. } => sim.submit(Op::Receive { connection }),
                Completion::AcceptPaused { listener, .. } => {
                    pauses += 1;
                    sim.submit(Op::Accept { listener });
                }
                Completion::Received { connection, buffer } => {
                    sim.submit(Op::Send { connection, buffer })
                }
                Completion::Failed { connection, .. } => {
                    failures += 1;
                    sim.submit(Op::Close {
                        token: connection,
                        how: Closing::Now,
                    });
                }
                _ => {}
            }
        }
    }
    assert!(
        failures > 10 && pauses > 1,
        "too few faults: {failures} failures, {pauses} pauses"
    );
    // Reset the remaining connections, so that each one is reported as failed and closed.
    while network.open_connections() > 0 {
        network.set_faults(Faults {
            reset: 1.0,
            ..Faults::default()
        });
        for completion in turn(&mut sim) {
            match completion {
                Completion::Received { buffer, .. } => sim.recycle(buffer),
                Completion::Failed { connection, .. } => {
                    sim.submit(Op::Close {
                        token: connection,
                        how: Closing::Now,
                    });
                }
                _ => {}
            }
        }
    }
    sim.assert_all_returned();
}

#[test]
fn the_clock_is_advanced_by_waiting_or_by_the_test() {
    let network = Network::new(0);
    let mut sim = Sim::new(&network);
    let hour = Duration::from_secs(3600);
    let start = sim.now();
    sim.wait(Some(start + hour), &mut vec![]).unwrap();
    assert_eq!(sim.now(), start + hour);
    network.stop_clock();
    sim.wait(Some(start + 2 * hour), &mut vec![]).unwrap();
    assert_eq!(sim.now(), start + hour);
    network.advance(hour);
    assert_eq!(sim.now(), start + 2 * hour);
}

#[test]
fn a_closed_peer_answers_bytes_with_a_reset() {
    let network = Network::new(0);
    let mut sim = Sim::new(&network);
    let (peer, connection) = connected(&network, &mut sim);
    sim.submit(Op::Receive { connection });
    network.write(peer, b"bye");
    network.close(peer);
    let mut failed = false;
    while !failed {
        for completion in turn(&mut sim) {
            match completion {
                Completion::Received { connection, buffer } => {
                    sim.submit(Op::Send { connection, buffer })
                }
                Completion::Failed { .. } => failed = true,
                _ => {}
            }
        }
    }
}

#[test]
#[should_panic(expected = "Receive requested twice")]
fn requesting_receive_twice_panics() {
    let network = Network::new(0);
    let mut sim = Sim::new(&network);
    let (_, connection) = connected(&network, &mut sim);
    sim.submit(Op::Receive { connection });
    sim.submit(Op::Receive { connection });
}

#[test]
#[should_panic(expected = "which was closed in an earlier turn")]
fn using_a_closed_token_in_a_later_turn_panics() {
    let network = Network::new(0);
    let mut sim = Sim::new(&network);
    let (_, connection) = connected(&network, &mut sim);
    sim.submit(Op::Close {
        token: connection,
        how: Closing::Now,
    });
    sim.submit(Op::Pause { connection });
    turn(&mut sim);
    sim.submit(Op::Pause { connection });
}

#[test]
#[should_panic(expected = "still held by the user, or were dropped")]
fn dropping_a_buffer_panics() {
    let network = Network::new(0);
    let mut sim = Sim::new(&network);
    let (peer, connection) = connected(&network, &mut sim);
    sim.submit(Op::Receive { connection });
    network.write(peer, b"lost");
    drop(turn(&mut sim));
    sim.assert_all_returned();
}

#[test]
#[should_panic(expected = "which the user does not hold")]
fn returning_a_buffer_twice_panics() {
    let network = Network::new(0);
    let mut sim = Sim::new(&network);
    let (peer, connection) = connected(&network, &mut sim);
    sim.submit(Op::Receive { connection });
    network.write(peer, b"once");
    let Some(Completion::Received { buffer, .. }) = turn(&mut sim).pop() else {
        panic!("no bytes were received")
    };
    let forged = Buffer {
        index: buffer.index,
        len: buffer.len,
    };
    sim.recycle(buffer);
    sim.recycle(forged);
}
