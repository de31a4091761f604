//! Connections through a whole worker: every byte comes back in order, then our FIN.

use super::*;

#[test]
fn an_idle_peer_is_small() {
    assert!(
        size_of::<crate::worker::Slot>() <= 160,
        "{} bytes",
        size_of::<crate::worker::Slot>()
    );
}

#[test]
fn echoes_to_several_peers_at_once() {
    let mut rig = Rig::new(1, Faults::default(), 10, settings());
    let (one, two) = (rig.connect(), rig.connect());
    assert_eq!(rig.exchange(one, b"one"), b"one");
    assert_eq!(rig.exchange(two, b"two"), b"two");
    assert_eq!((rig.totals().accepted, rig.totals().bytes_sent), (2, 6));
}

#[test]
fn a_peer_that_half_closes_gets_every_byte_and_then_our_fin() {
    let mut rig = Rig::new(1, Faults::default(), 1, settings());
    let peer = rig.connect();
    rig.network.write(peer, b"the last words");
    rig.network.half_close(peer);
    rig.run();
    assert_eq!(rig.network.read(peer, 100), b"the last words");
    assert_eq!(rig.network.end(peer), Some(End::Fin));
    rig.assert_nothing_left(1);
}

#[test]
fn one_shot_answers_once_and_does_not_reset_a_peer_that_sends_more() {
    let mut rig = Rig::new(
        1,
        Faults::default(),
        1,
        Settings {
            one_shot: true,
            reply: Reply::Upper,
            ..settings()
        },
    );
    let peer = rig.connect();
    assert_eq!(rig.exchange(peer, b"first"), b"FIRST");
    assert_eq!(rig.exchange(peer, b"second"), b"");
    assert_eq!(rig.network.end(peer), Some(End::Fin));
    rig.network.half_close(peer);
    rig.run();
    rig.assert_nothing_left(1);
}

#[test]
fn a_peer_that_does_not_read_is_not_read_although_the_driver_would() {
    for relay in [0.0, 1.0] {
        let faults = Faults {
            relay,
            ..Faults::default()
        };
        let mut rig = Rig::new(1, faults, 1, settings());
        let peer = rig.connect();
        let mut written = 0;
        loop {
            let some = rig.network.write(peer, &[7; 1000]);
            rig.run();
            written += some;
            if some == 0 {
                break;
            }
        }
        // One message stalled, and a few were taken before the pause reached the driver.
        let totals = rig.totals();
        let held = totals.bytes_received - totals.bytes_sent;
        assert!((1..=8000).contains(&held), "{held} bytes are held");
        let mut read = 0;
        while read < written {
            let some = rig.network.read(peer, usize::MAX).len();
            assert!(some > 0, "it stopped after {read} of {written} bytes");
            read += some;
            rig.run();
        }
        assert_eq!(rig.exchange(peer, b"again"), b"again");
    }
}

#[test]
fn finishing_sends_pending_output_and_then_our_fin() {
    let mut rig = Rig::new(1, Faults::default(), 10, settings());
    let (idle, slow) = (rig.connect(), rig.connect());
    for _ in 0..10 {
        rig.network.write(slow, &vec![1; 60_000]);
        rig.run();
    }
    rig.command(Command::Finish);
    rig.run();
    assert_eq!(rig.network.end(idle), Some(End::Fin));
    let mut read = 0;
    while rig.network.end(slow).is_none() {
        let some = rig.network.read(slow, 50_000).len();
        assert!(some > 0 || read > 0, "it gets its bytes");
        read += some;
        rig.run();
    }
    assert_eq!(rig.network.end(slow), Some(End::Fin));
    assert_eq!(rig.totals().bytes_sent, read as u64);
}

/// A client that writes `total` bytes of a pattern, reads at its own pace, and checks every byte.
struct Talker {
    peer: RemotePeer,
    key: u8,
    written: usize,
    read: usize,
    total: usize,
    finished: bool,
    // It resets the connection when it has read this number of bytes.
    resets_at: Option<usize>,
}

impl Talker {
    fn byte(&self, index: usize) -> u8 {
        self.key.wrapping_mul(31).wrapping_add((index % 251) as u8)
    }

    fn step(&mut self, rig: &Rig) {
        let network = &rig.network;
        if self.written < self.total {
            let end = (self.written + 1 + network.below(30_000)).min(self.total);
            let bytes: Vec<u8> = (self.written..end).map(|index| self.byte(index)).collect();
            self.written += network.write(self.peer, &bytes);
        } else if !self.finished {
            self.finished = true;
            network.half_close(self.peer);
        }
        if network.below(3) > 0 {
            for byte in network.read(self.peer, 1 + network.below(40_000)) {
                assert_eq!(
                    byte,
                    self.byte(self.read),
                    "byte {} of {}",
                    self.read,
                    self.total
                );
                self.read += 1;
            }
        }
        if self.resets_at.is_some_and(|at| self.read >= at) && !self.finished {
            self.finished = true;
            network.reset(self.peer);
        }
    }

    fn is_done(&self, rig: &Rig) -> bool {
        rig.network.end(self.peer).is_some()
    }
}

pub(super) fn talk(seed: u64, faults: Faults) {
    let is_lossless = faults.reset == 0.0;
    let mut rig = Rig::new(seed, faults, 8, settings());
    let mut talkers: Vec<Talker> = Vec::new();
    let mut done = 0;
    for number in 0..24u8 {
        rig.ports += 1;
        let from = SocketAddr::new("198.51.100.7".parse().unwrap(), rig.ports);
        let peer = rig.network.connect(from, server());
        let total = [0, 1, 100, 5_000, 70_000, 200_000][rig.network.below(6)];
        let resets_at = (rig.network.below(6) == 0).then_some(total / 2);
        talkers.push(Talker {
            peer,
            key: number,
            written: 0,
            read: 0,
            total,
            finished: false,
            resets_at,
        });
    }
    for round in 0.. {
        assert!(
            round < 200_000,
            "{} of 24 talkers are never served",
            talkers.len()
        );
        rig.network
            .advance(Duration::from_millis(rig.network.below(3) as u64));
        rig.turn();
        for talker in &mut talkers {
            talker.step(&rig);
        }
        talkers.retain(|talker| {
            let is_done = talker.is_done(&rig);
            if is_done && is_lossless && talker.resets_at.is_none() {
                assert_eq!(rig.network.end(talker.peer), Some(End::Fin));
                assert_eq!(
                    talker.read, talker.total,
                    "every byte comes back before our FIN"
                );
            }
            done += usize::from(is_done);
            !is_done
        });
        if talkers.is_empty() {
            break;
        }
    }
    assert_eq!(done, 24);
    rig.network.set_faults(Faults::default());
    rig.pass(2 * SECOND);
    rig.assert_nothing_left(8);
}

#[test]
fn whatever_the_network_does_every_byte_comes_back_in_order() {
    for seed in 0..60 {
        talk(seed, Faults::rough());
    }
}

#[test]
fn whatever_the_peers_do_none_gets_a_byte_of_another_and_nothing_is_left_behind() {
    for seed in 1000..1060 {
        talk(seed, Faults::hostile());
    }
}
