//! How long a worker sleeps, with busy-poll and without.

use super::peers::list;
use super::*;

#[test]
fn with_busy_poll_a_worker_looks_for_a_while_before_it_sleeps() {
    let busy_poll = Duration::from_micros(50);
    let settings = with(Timeouts {
        idle: Some(10_000 * SECOND),
        ..Timeouts::default()
    });
    let mut rig = Rig::with_busy_poll(busy_poll, 1, Faults::default(), 1, settings);
    let peer = rig.connect();
    assert_eq!(rig.exchange(peer, b"hello"), b"hello");
    let start = rig.worker.driver.now();
    // From now on the clock advances while the worker sleeps, and only then.
    rig.network.let_clock_run();
    rig.network.advance(busy_poll - Duration::from_nanos(1));
    for _ in 0..3 {
        rig.turn();
    }
    assert_eq!(
        rig.worker.driver.now(),
        start + busy_poll - Duration::from_nanos(1)
    );
    // Commands are handled while it spins.
    rig.command(list(Order::Id, None, 10));
    rig.turn();
    assert!(matches!(
        rig.reports.try_iter().last(),
        Some(Report::Peers { query: 9, .. })
    ));
    rig.network.advance(Duration::from_nanos(1));
    rig.turn();
    assert_eq!(rig.worker.driver.now(), start + busy_poll);
    // From now on it sleeps; timers alone do not keep it awake.
    for _ in 0..3 {
        let before = rig.worker.driver.now();
        rig.turn();
        assert!(rig.worker.driver.now() > before, "it slept");
    }
    // An event does.
    rig.network.write(peer, b"again");
    for _ in 0..3 {
        rig.turn();
    }
    assert_eq!(rig.totals().bytes_sent, 10);
    let now = rig.worker.driver.now();
    rig.turn();
    assert_eq!(rig.worker.driver.now(), now);
}

#[test]
fn without_busy_poll_a_worker_sleeps_after_each_event() {
    let settings = with(Timeouts {
        idle: Some(10_000 * SECOND),
        ..Timeouts::default()
    });
    let mut rig = Rig::new(1, Faults::default(), 1, settings);
    let peer = rig.connect();
    assert_eq!(rig.exchange(peer, b"hello"), b"hello");
    rig.network.let_clock_run();
    let start = rig.worker.driver.now();
    rig.turn();
    assert!(rig.worker.driver.now() > start);
}
