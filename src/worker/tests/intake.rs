//! New clients of a listener that is paused, holds them or is drained.

use super::super::mailbox::Ending;
use super::*;

fn intake(intake: Intake) -> Settings {
    settings_of(intake, settings().when_full)
}

fn settings_of(intake: Intake, when_full: WhenFull) -> Settings {
    Settings {
        intake,
        when_full,
        ..settings()
    }
}

#[test]
fn a_paused_listener_resets_each_client_counts_it_and_keeps_those_that_were_there() {
    for when_full in [WhenFull::Wait, WhenFull::Reset] {
        let with = |intake| settings_of(intake, when_full);
        let mut rig = Rig::new(1, Faults::default(), 2, with(Intake::Serve));
        let before = rig.connect();
        rig.configure(with(Intake::Refuse));
        rig.run();
        for count in 1..=5 {
            let client = rig.connect();
            assert_eq!(rig.network.end(client), Some(End::Reset));
            assert_eq!(rig.refused(Refusal::Paused), count);
        }
        assert_eq!(rig.exchange(before, b"still"), b"still");
        rig.configure(with(Intake::Serve));
        rig.run();
        let after = rig.connect();
        for peer in [before, after] {
            assert_eq!(rig.exchange(peer, b"x"), b"x");
            rig.network.half_close(peer);
        }
        rig.run();
        assert_eq!(rig.totals().accepted, 2);
        rig.assert_nothing_left(2);
    }
}

#[test]
fn the_queue_of_a_full_listener_that_is_paused_is_reset_and_not_forgotten() {
    let mut rig = Rig::new(1, Faults::default(), 1, settings());
    let (first, queued) = (rig.connect(), rig.connect());
    assert_eq!(rig.network.end(queued), None);
    rig.configure(intake(Intake::Refuse));
    rig.run();
    assert_eq!(rig.network.end(queued), Some(End::Reset));
    assert_eq!(rig.refused(Refusal::Paused), 1);
    rig.network.half_close(first);
    rig.run();
    rig.assert_nothing_left(1);
}

#[test]
fn clients_that_are_held_wait_and_are_served_when_the_listener_resumes() {
    for when_full in [WhenFull::Wait, WhenFull::Reset] {
        let with = |intake| settings_of(intake, when_full);
        let mut rig = Rig::new(1, Faults::default(), 3, with(Intake::Serve));
        let before = rig.connect();
        rig.configure(with(Intake::Hold));
        rig.run();
        let held = [rig.connect(), rig.connect()];
        for peer in held {
            assert_eq!(rig.exchange(peer, b"held"), b"");
            assert_eq!(rig.network.end(peer), None);
        }
        // A permit that is returned is not for them.
        rig.network.half_close(before);
        rig.run();
        assert_eq!(rig.totals().accepted, 1);
        rig.configure(with(Intake::Serve));
        rig.run();
        for peer in held {
            assert_eq!(rig.network.read(peer, 10), b"held");
            rig.network.half_close(peer);
        }
        rig.run();
        rig.assert_nothing_left(3);
    }
}

#[test]
fn a_client_that_comes_in_the_moment_of_a_change_costs_and_returns_one_permit_at_most() {
    const ALL: [Intake; 3] = [Intake::Serve, Intake::Refuse, Intake::Hold];
    for seed in 0..90 {
        let [before, after] = [ALL[seed % 3], ALL[seed / 3 % 3]];
        let mut rig = Rig::new(seed as u64, Faults::default(), 2, intake(before));
        let from = "198.51.100.1:5000".parse().unwrap();
        let peer = rig.network.connect(from, server());
        rig.configure(intake(after));
        rig.run();
        rig.configure(settings());
        rig.run();
        match rig.network.end(peer) {
            None => assert_eq!(rig.exchange(peer, b"x"), b"x", "seed {seed}"),
            end => assert_eq!(end, Some(End::Reset), "seed {seed}"),
        }
        rig.network.half_close(peer);
        rig.run();
        rig.assert_nothing_left(2);
    }
}

#[test]
fn clients_that_are_held_are_served_when_their_socket_is_retired_also_if_more_changes_meanwhile() {
    for changes_again in [false, true] {
        let mut rig = Rig::new(1, Faults::default(), 1, intake(Intake::Hold));
        let held = [rig.connect(), rig.connect()];
        rig.retire(STREAM);
        if changes_again {
            for other in [Intake::Serve, Intake::Hold] {
                rig.configure(intake(other));
            }
        }
        rig.run();
        for peer in held {
            assert_eq!(rig.exchange(peer, b"held"), b"held");
            rig.network.half_close(peer);
        }
        rig.run();
        rig.assert_nothing_left(1);
    }
}

#[test]
fn a_socket_that_is_added_to_a_listener_follows_its_state() {
    let mut rig = Rig::new(1, Faults::default(), 5, intake(Intake::Hold));
    let address: SocketAddr = "192.0.2.1:70".parse().unwrap();
    rig.serve(LISTENER, SocketId(9), SocketKind::Stream, address);
    rig.run();
    let from = "198.51.100.1:5000".parse().unwrap();
    let held = rig.network.connect(from, address);
    assert_eq!(rig.exchange(held, b"held"), b"");
    rig.configure(intake(Intake::Refuse));
    rig.run();
    assert_eq!(rig.network.end(held), Some(End::Reset));
    assert_eq!(rig.refused(Refusal::Paused), 1);
    rig.assert_nothing_left(5);
}

#[test]
fn datagrams_to_a_paused_listener_are_discarded_and_counted() {
    let mut rig = Rig::new(1, Faults::default(), 1, intake(Intake::Refuse));
    let client = rig.network.client("198.51.100.1:5000".parse().unwrap());
    rig.network.send_datagram(client, udp_server(), b"lost");
    rig.run();
    assert_eq!(rig.network.receive_datagram(client), None);
    let totals = rig.totals();
    assert_eq!((totals.datagrams_received, totals.datagrams_sent), (1, 0));
    assert_eq!(rig.refused(Refusal::Paused), 1);
    rig.configure(settings());
    rig.network.send_datagram(client, udp_server(), b"found");
    rig.run();
    assert!(rig.network.receive_datagram(client).is_some());
}

#[test]
fn a_drain_finishes_the_connections_of_its_listener_and_of_no_other() {
    const OTHER: ListenerId = ListenerId(2);
    let mut rig = Rig::new(1, Faults::default(), 10, settings());
    let counters: Arc<Counters> = Arc::default();
    rig.command(Command::Configure {
        listener: OTHER,
        settings: settings(),
        gate: Arc::new(Gate::new(Permits::new(2, vec![]))),
        counters: Arc::clone(&counters),
    });
    let address: SocketAddr = "192.0.2.1:70".parse().unwrap();
    rig.serve(OTHER, SocketId(9), SocketKind::Stream, address);
    rig.run();
    let from = "198.51.100.9:5000".parse().unwrap();
    let other = rig.network.connect(from, address);
    assert_eq!(rig.exchange(other, b"other"), b"other");
    let drained: Vec<_> = (0..3).map(|_| rig.connect()).collect();
    for peer in &drained {
        rig.network.write(*peer, b"pending");
    }
    let listener = LISTENER;
    rig.run();
    rig.command(Command::EndConnections {
        listener,
        how: Ending::Finish,
    });
    rig.run();
    for peer in drained {
        assert_eq!(rig.network.read(peer, 10), b"pending");
        assert_eq!(rig.network.end(peer), Some(End::Fin));
        rig.network.half_close(peer);
    }
    rig.run();
    let totals = rig.totals();
    assert_eq!(totals.closed_by[CloseReason::Drained as usize], 3);
    assert_eq!(rig.exchange(other, b"other"), b"other");
    rig.command(Command::EndConnections {
        listener: OTHER,
        how: Ending::Reset,
    });
    rig.run();
    assert_eq!(rig.network.end(other), Some(End::Reset));
    let totals = Totals::of([&*counters]);
    assert_eq!(totals.closed_by[CloseReason::Drained as usize], 1);
    rig.assert_nothing_left(10);
}
