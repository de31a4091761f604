//! Timeouts of connections in a whole worker: idle, lifetime, write stall, and the time for a peer's
//! FIN.

use super::*;

#[test]
fn a_peer_that_never_sends_its_fin_is_closed_after_a_while() {
    let mut rig = Rig::new(
        1,
        Faults::default(),
        1,
        Settings {
            one_shot: true,
            ..settings()
        },
    );
    let peer = rig.connect();
    assert_eq!(rig.exchange(peer, b"x"), b"x");
    rig.pass(LINGER - SECOND);
    assert_eq!(rig.totals().connections(), 1);
    rig.pass(SECOND + TICK);
    rig.assert_nothing_left(1);
}

#[test]
fn an_idle_peer_gets_our_fin_and_a_busy_one_stays() {
    let timeouts = Timeouts {
        idle: Some(10 * SECOND),
        ..Timeouts::default()
    };
    let mut rig = Rig::new(1, Faults::default(), 2, with(timeouts));
    let (idle, busy) = (rig.connect(), rig.connect());
    for _ in 0..4 {
        rig.pass(4 * SECOND);
        assert_eq!(rig.exchange(busy, b"x"), b"x");
    }
    assert_eq!(rig.network.end(idle), Some(End::Fin));
    assert_eq!(rig.network.end(busy), None);
}

#[test]
fn a_timeout_that_is_configured_later_applies_to_existing_connections() {
    let mut rig = Rig::new(1, Faults::default(), 2, settings());
    let peer = rig.connect();
    rig.pass(20 * SECOND);
    assert_eq!(rig.network.end(peer), None);
    let timeouts = Timeouts {
        idle: Some(10 * SECOND),
        ..Timeouts::default()
    };
    rig.configure(with(timeouts));
    rig.run();
    rig.pass(TICK);
    assert_eq!(rig.network.end(peer), Some(End::Fin));
}

#[test]
fn a_lifetime_ends_a_busy_connection_too() {
    let timeouts = Timeouts {
        lifetime: Some(10 * SECOND),
        ..Timeouts::default()
    };
    let mut rig = Rig::new(1, Faults::default(), 1, with(timeouts));
    let peer = rig.connect();
    for _ in 0..9 {
        rig.pass(SECOND);
        assert_eq!(rig.exchange(peer, b"x"), b"x");
    }
    rig.pass(SECOND + TICK);
    assert_eq!(rig.network.end(peer), Some(End::Fin));
}

#[test]
fn a_peer_that_reads_nothing_is_reset_and_a_slow_one_is_not() {
    let timeouts = Timeouts {
        write_stall: Some(8 * SECOND),
        ..Timeouts::default()
    };
    let mut rig = Rig::new(1, Faults::default(), 2, with(timeouts));
    let (stuck, slow) = (rig.connect(), rig.connect());
    for _ in 0..20 {
        // Neither of them reads as fast as it writes, so in the end the sends stall.
        for peer in [stuck, slow] {
            rig.network.write(peer, &vec![7; 60_000]);
        }
        rig.run();
    }
    for _ in 0..20 {
        rig.pass(SECOND);
        rig.network.read(slow, 10);
    }
    rig.network.read(stuck, usize::MAX);
    assert_eq!(rig.network.end(stuck), Some(End::Reset));
    assert_eq!(rig.network.end(slow), None);
    assert_eq!(rig.totals().faults, 1);
}

#[test]
fn a_peer_that_stalled_for_long_and_then_reads_can_still_become_idle() {
    let timeouts = Timeouts {
        idle: Some(10 * SECOND),
        ..Timeouts::default()
    };
    let settings = with(timeouts);
    let mut rig = Rig::new(1, Faults::default(), 1, settings);
    let peer = rig.connect();
    while rig.network.write(peer, &vec![7; 60_000]) > 0 {
        rig.run();
    }
    rig.pass(15 * SECOND);
    assert_eq!(rig.network.end(peer), None, "a stall is not idleness");
    while !rig.network.read(peer, usize::MAX).is_empty() {
        rig.run();
    }
    rig.pass(20 * SECOND + 2 * TICK);
    assert_eq!(rig.network.end(peer), Some(End::Fin));
}
