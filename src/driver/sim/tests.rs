//! The simulator keeps its own rules, and sees when its user breaks the seam's.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::*;

fn here(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

/// A driver, a peer, and its connection.
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

/// Echoes until the peer has all of it back; says what happened when.
fn history(seed: u64, faults: Faults) -> String {
    let network = Network::new(seed);
    let mut sim = Sim::with_buffers(&network, 3);
    let start = sim.now();
    network.set_faults(faults);
    let (peer, connection) = connected(&network, &mut sim);
    sim.submit(Op::Receive { connection });
    let (mut written, mut back, mut text) = (0, vec![], String::new());
    while back.len() < 100_000 {
        written += network.write(peer, &vec![7; (100_000 - written).min(10_000)]);
        back.extend(network.read(peer, 5000));
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
    sim.assert_all_home();
    assert_eq!(network.open_connections(), 0);
    text
}

#[test]
fn one_seed_is_one_history() {
    assert_eq!(history(1, Faults::rough()), history(1, Faults::rough()));
    assert_ne!(history(1, Faults::rough()), history(2, Faults::rough()));
}

#[test]
fn hostile_faults_end_connections_and_lose_no_buffer() {
    let network = Network::new(3);
    let mut sim = Sim::with_buffers(&network, 5);
    network.set_faults(Faults::hostile());
    let listener = sim.add_listener(network.listen(here(7)), None);
    sim.submit(Op::Accept { listener });
    let peers: Vec<Peer> = (0..50)
        .map(|port| network.connect(here(1000 + port), here(7)))
        .collect();
    let (mut failures, mut rests) = (0, 0);
    for _ in 0..3000 {
        network.write(peers[network.below(peers.len())], b"hello");
        network.read(peers[network.below(peers.len())], 3);
        for completion in turn(&mut sim) {
            match completion {
                Completion::Accepted { connection, .. } => sim.submit(Op::Receive { connection }),
                Completion::AcceptPaused { listener, .. } => {
                    rests += 1;
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
        failures > 10 && rests > 1,
        "{failures} failures, {rests} rests"
    );
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
    sim.assert_all_home();
}

#[test]
fn the_clock_moves_by_itself_or_by_hand() {
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
fn a_peer_that_has_closed_answers_with_a_reset() {
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
#[should_panic(expected = "Receive asked for twice")]
fn receiving_twice_is_the_users_mistake() {
    let network = Network::new(0);
    let mut sim = Sim::new(&network);
    let (_, connection) = connected(&network, &mut sim);
    sim.submit(Op::Receive { connection });
    sim.submit(Op::Receive { connection });
}

#[test]
#[should_panic(expected = "which was closed in an earlier turn")]
fn a_dead_token_is_the_users_mistake() {
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
fn a_dropped_buffer_is_the_users_mistake() {
    let network = Network::new(0);
    let mut sim = Sim::new(&network);
    let (peer, connection) = connected(&network, &mut sim);
    sim.submit(Op::Receive { connection });
    network.write(peer, b"lost");
    drop(turn(&mut sim));
    sim.assert_all_home();
}

#[test]
#[should_panic(expected = "which the user has not got")]
fn a_buffer_given_back_twice_is_the_users_mistake() {
    let network = Network::new(0);
    let mut sim = Sim::new(&network);
    let (peer, connection) = connected(&network, &mut sim);
    sim.submit(Op::Receive { connection });
    network.write(peer, b"once");
    let Some(Completion::Received { buffer, .. }) = turn(&mut sim).pop() else {
        panic!("bytes are there")
    };
    let forged = Buffer {
        index: buffer.index,
        len: buffer.len,
    };
    sim.recycle(buffer);
    sim.recycle(forged);
}
