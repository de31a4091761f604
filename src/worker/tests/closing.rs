//! Why connections were closed: each reason is counted once, and the first one that applied.

use super::*;

/// The counts of closed connections that are not 0, by reason.
fn closed(rig: &Rig) -> Vec<(CloseReason, u64)> {
    let totals = rig.totals();
    let counts = CloseReason::ALL.map(|reason| (reason, totals.closed_by[reason as usize]));
    counts.into_iter().filter(|(_, count)| *count > 0).collect()
}

fn check(rig: &mut Rig, reason: CloseReason, faults: u64) {
    assert_eq!(closed(rig), [(reason, 1)]);
    assert_eq!(rig.totals().faults, faults, "{reason:?}");
    rig.assert_nothing_left(1);
}

/// A worker that may have one connection, with these timeouts.
fn rig(timeouts: Timeouts) -> Rig {
    Rig::new(1, Faults::default(), 1, with(timeouts))
}

#[test]
fn a_peer_that_half_closes_has_finished() {
    let mut rig = rig(Timeouts::default());
    let peer = rig.connect();
    assert_eq!(rig.exchange(peer, b"x"), b"x");
    assert_eq!(closed(&rig), []);
    rig.network.half_close(peer);
    rig.run();
    check(&mut rig, CloseReason::Finished, 0);
}

#[test]
fn a_one_shot_connection_has_finished_whether_the_peer_sends_its_fin_or_not() {
    for half_closes in [true, false] {
        let one_shot = Settings {
            one_shot: true,
            ..settings()
        };
        let mut rig = Rig::new(1, Faults::default(), 1, one_shot);
        let peer = rig.connect();
        assert_eq!(rig.exchange(peer, b"x"), b"x");
        if half_closes {
            rig.network.half_close(peer);
        }
        rig.pass(LINGER + TICK);
        check(&mut rig, CloseReason::Finished, 0);
    }
}

#[test]
fn a_peer_that_resets_is_counted_as_that_also_with_pending_output() {
    for bytes in [1, 300_000] {
        let mut rig = rig(Timeouts::default());
        let peer = rig.connect();
        let mut written = 0;
        while written < bytes {
            let some = rig.network.write(peer, &vec![7; bytes - written]);
            rig.run();
            written += some;
            if some == 0 {
                break;
            }
        }
        rig.network.reset(peer);
        rig.run();
        check(&mut rig, CloseReason::Reset, 1);
    }
}

#[test]
fn a_connection_that_times_out_has_failed() {
    let mut rig = rig(Timeouts::default());
    let peer = rig.connect();
    rig.network.time_out(peer);
    rig.run();
    check(&mut rig, CloseReason::Failed, 1);
}

#[test]
fn an_idle_connection_is_counted_as_that_however_its_peer_answers_our_fin() {
    for answer in [Network::half_close, Network::reset, Network::time_out] {
        let mut rig = rig(Timeouts {
            idle: Some(10 * SECOND),
            ..Timeouts::default()
        });
        let peer = rig.connect();
        rig.pass(10 * SECOND + TICK);
        assert_eq!(rig.network.end(peer), Some(End::Fin));
        assert_eq!(closed(&rig), [], "it waits for the peer's FIN");
        answer(&rig.network, peer);
        rig.run();
        assert_eq!(closed(&rig), [(CloseReason::Idle, 1)]);
        rig.assert_nothing_left(1);
    }
}

#[test]
fn an_idle_connection_whose_peer_never_answers_is_counted_after_a_while() {
    let mut rig = rig(Timeouts {
        idle: Some(10 * SECOND),
        ..Timeouts::default()
    });
    rig.connect();
    rig.pass(10 * SECOND + LINGER + 2 * TICK);
    check(&mut rig, CloseReason::Idle, 0);
}

#[test]
fn a_connection_that_has_reached_its_lifetime_is_counted_as_that() {
    let mut rig = rig(Timeouts {
        lifetime: Some(10 * SECOND),
        ..Timeouts::default()
    });
    let peer = rig.connect();
    rig.pass(10 * SECOND + TICK);
    rig.network.half_close(peer);
    rig.run();
    check(&mut rig, CloseReason::Lifetime, 0);
}

#[test]
fn a_peer_that_reads_nothing_has_stalled() {
    let mut rig = rig(Timeouts {
        write_stall: Some(10 * SECOND),
        ..Timeouts::default()
    });
    let peer = rig.connect();
    while rig.network.write(peer, &vec![7; 60_000]) > 0 {
        rig.run();
    }
    rig.pass(10 * SECOND + 2 * TICK);
    check(&mut rig, CloseReason::Stalled, 1);
}

#[test]
fn a_connection_that_an_operator_closes_is_counted_as_kicked() {
    let mut rig = rig(Timeouts::default());
    rig.connect();
    rig.command(Command::ClosePeers {
        query: 1,
        selection: Selection {
            id: Some(1),
            ..Selection::default()
        },
        dry_run: false,
        max: 0,
    });
    rig.run();
    check(&mut rig, CloseReason::Kicked, 0);
}

#[test]
fn a_stop_drains_what_is_open_and_what_finishes_by_itself_has_finished() {
    let mut rig = Rig::new(1, Faults::default(), 2, settings());
    let (open, finishes) = (rig.connect(), rig.connect());
    rig.network.half_close(finishes);
    rig.run();
    rig.command(Command::Finish);
    rig.run();
    rig.network.half_close(open);
    rig.run();
    let expected = [(CloseReason::Finished, 1), (CloseReason::Drained, 1)];
    assert_eq!(closed(&rig), expected);
    rig.assert_nothing_left(2);
}

#[test]
fn a_refused_client_is_not_closed_and_raises_no_peak() {
    let full = Settings {
        when_full: WhenFull::Reset,
        ..settings()
    };
    let mut rig = Rig::new(1, Faults::default(), 1, full);
    rig.connect();
    for _ in 0..3 {
        let refused = rig.connect();
        assert_eq!(rig.network.end(refused), Some(End::Reset));
    }
    assert_eq!((closed(&rig).len(), rig.gate.peak()), (0, 1));
}

#[test]
fn the_reason_is_kept_by_a_successor() {
    let settings = || Settings {
        timeouts: Timeouts {
            idle: Some(10 * SECOND),
            ..Timeouts::default()
        },
        ..settings()
    };
    let mut rig = Rig::new(1, Faults::default(), 1, settings());
    let peer = rig.connect();
    rig.pass(10 * SECOND + TICK);
    assert_eq!(rig.network.end(peer), Some(End::Fin));
    rig.hand_over(1, settings());
    assert_eq!(closed(&rig), []);
    rig.network.half_close(peer);
    rig.run();
    check(&mut rig, CloseReason::Idle, 0);
}
