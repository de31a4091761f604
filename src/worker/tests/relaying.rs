//! Connections whose bytes the driver relays: whatever holds for others holds for them.

use super::peers::listed;
use super::streams::talk;
use super::timeouts::assert_only_the_first_is_reset;
use super::*;

/// The driver relays whatever it may.
fn relaying() -> Faults {
    Faults {
        relay: 1.0,
        ..Faults::default()
    }
}

fn rig(max_connections: u32, timeouts: Timeouts) -> Rig {
    let settings = Settings {
        timeouts,
        ..settings()
    };
    Rig::new(1, relaying(), max_connections, settings)
}

/// Writes until nothing more is taken, and reads nothing. Returns the number of bytes written.
fn write_until_full(rig: &mut Rig, peer: RemotePeer) -> usize {
    let mut written = 0;
    loop {
        let some = rig.network.write(peer, &vec![7; 60_000]);
        rig.run();
        written += some;
        if some == 0 {
            return written;
        }
    }
}

/// Reads until our FIN. Returns the number of bytes read.
fn read_to_the_end(rig: &mut Rig, peer: RemotePeer) -> usize {
    let mut read = 0;
    for _ in 0..1000 {
        read += rig.network.read(peer, 10_000).len();
        rig.run();
        if let Some(end) = rig.network.end(peer) {
            assert_eq!(end, End::Fin);
            return read;
        }
    }
    panic!("no end after {read} bytes");
}

#[test]
fn relayed_bytes_are_counted_and_listed() {
    let mut rig = rig(1, Timeouts::default());
    let peer = rig.connect();
    assert_eq!(rig.exchange(peer, b"12345"), b"12345");
    rig.pass(SECOND);
    let totals = rig.totals();
    assert_eq!((totals.bytes_received, totals.bytes_sent), (5, 5));
    let found = &listed(&mut rig, Order::Id, 10).0[0];
    assert_eq!((found.bytes_received, found.bytes_sent), (5, 5));
    assert!(found.idle >= SECOND);
    rig.command(Command::ClosePeers {
        query: 1,
        selection: Selection {
            id: Some(found.id),
            ..Selection::default()
        },
        dry_run: false,
        max: 0,
    });
    rig.run();
    assert_eq!(rig.network.end(peer), Some(End::Fin));
    rig.assert_nothing_left(1);
}

#[test]
fn a_relayed_peer_is_not_idle_and_a_silent_one_is() {
    let timeouts = Timeouts {
        idle: Some(10 * SECOND),
        ..Timeouts::default()
    };
    let mut rig = rig(2, timeouts);
    let (idle, busy) = (rig.connect(), rig.connect());
    for _ in 0..4 {
        rig.pass(4 * SECOND);
        assert_eq!(rig.exchange(busy, b"x"), b"x");
    }
    assert_eq!(rig.network.end(idle), Some(End::Fin));
    assert_eq!(rig.network.end(busy), None);
    rig.pass(10 * SECOND + TICK);
    assert_eq!(rig.network.end(busy), Some(End::Fin));
}

#[test]
fn a_lifetime_ends_relaying() {
    let timeouts = Timeouts {
        lifetime: Some(10 * SECOND),
        ..Timeouts::default()
    };
    let mut rig = rig(1, timeouts);
    let peer = rig.connect();
    for _ in 0..9 {
        rig.pass(SECOND);
        assert_eq!(rig.exchange(peer, b"x"), b"x");
    }
    rig.pass(SECOND + TICK);
    assert_eq!(rig.exchange(peer, b"too late"), b"");
    assert_eq!(rig.network.end(peer), Some(End::Fin));
    rig.pass(LINGER + TICK);
    rig.assert_nothing_left(1);
}

#[test]
fn a_relayed_peer_that_reads_nothing_is_reset_and_a_slow_one_is_not() {
    let timeouts = Timeouts {
        write_stall: Some(8 * SECOND),
        idle: Some(10 * SECOND),
        ..Timeouts::default()
    };
    let mut rig = rig(2, timeouts);
    let (stuck, slow) = (rig.connect(), rig.connect());
    for peer in [stuck, slow] {
        write_until_full(&mut rig, peer);
    }
    assert_only_the_first_is_reset(&mut rig, stuck, slow);
}

#[test]
fn a_relayed_peer_that_does_not_read_is_not_read() {
    let mut rig = rig(1, Timeouts::default());
    let peer = rig.connect();
    let written = write_until_full(&mut rig, peer);
    let totals = rig.totals();
    let held = totals.bytes_received - totals.bytes_sent;
    assert!((1..=64 * 1024).contains(&held), "{held} bytes are held");
    rig.network.half_close(peer);
    assert_eq!(read_to_the_end(&mut rig, peer), written);
    rig.assert_nothing_left(1);
}

#[test]
fn finishing_sends_pending_relayed_bytes_and_stops_relaying() {
    let mut rig = rig(2, Timeouts::default());
    let (idle, slow) = (rig.connect(), rig.connect());
    write_until_full(&mut rig, slow);
    let received = rig.totals().bytes_received;
    rig.command(Command::Finish);
    rig.run();
    assert_eq!(rig.exchange(idle, b"too late"), b"");
    assert_eq!(rig.network.end(idle), Some(End::Fin));
    assert_eq!(read_to_the_end(&mut rig, slow) as u64, received);
    assert_eq!(rig.totals().bytes_sent, received);
    rig.pass(LINGER + TICK);
    rig.assert_nothing_left(2);
}

#[test]
fn bytes_that_are_relayed_while_the_fin_is_requested_are_not_lost() {
    let mut met = 0;
    for seed in 0..60 {
        let mut rig = Rig::new(seed, relaying(), 20, settings());
        let peers: Vec<RemotePeer> = (0..20).map(|_| rig.connect()).collect();
        for &peer in &peers {
            rig.network.write(peer, &vec![7; 40_000]);
        }
        rig.run();
        for &peer in &peers {
            rig.network.write(peer, &vec![7; 40_000]);
        }
        // The seed decides whether the command or the bytes are handled first.
        rig.command(Command::Finish);
        for _ in 0..rig.network.below(4) {
            rig.turn();
        }
        let before = rig.totals().bytes_received;
        // No peer reads anything for longer than a lingering connection lasts.
        rig.pass(LINGER * 2);
        met += u32::from(rig.totals().bytes_received > before);
        for peer in peers {
            let read = read_to_the_end(&mut rig, peer);
            assert!(read == 40_000 || read == 80_000, "{read} bytes");
        }
        let totals = rig.totals();
        assert!(totals.bytes_sent <= totals.bytes_received);
        rig.pass(LINGER + TICK);
        rig.assert_nothing_left(20);
    }
    assert!(met > 5, "{met} of 60 histories meet the case");
}

#[test]
fn whatever_the_network_does_every_relayed_byte_comes_back_in_order() {
    for seed in 2000..2020 {
        let relay = 1.0;
        talk(
            seed,
            Faults {
                relay,
                ..Faults::rough()
            },
        );
        talk(
            seed,
            Faults {
                relay,
                ..Faults::hostile()
            },
        );
    }
}
