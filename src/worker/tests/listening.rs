//! Listening sockets of a whole worker: which clients are admitted, what happens when the listener is
//! full, and when accepting pauses and resumes.

use super::super::listening::ACCEPT_PAUSE_MAX;
use super::*;

#[test]
fn a_client_of_a_full_listener_waits_in_the_backlog_until_a_connection_ends() {
    let mut rig = Rig::new(1, Faults::default(), 1, settings());
    let (first, second) = (rig.connect(), rig.connect());
    assert_eq!(rig.exchange(first, b"1"), b"1");
    assert_eq!(rig.exchange(second, b"2"), b"");
    assert_eq!(rig.totals().accepted, 1);
    rig.network.half_close(first);
    rig.run();
    assert_eq!(rig.network.read(second, 10), b"2");
}

#[test]
fn a_client_of_a_full_listener_is_reset_where_that_is_configured() {
    let full = Settings {
        when_full: WhenFull::Reset,
        ..settings()
    };
    let mut rig = Rig::new(1, Faults::default(), 1, full);
    let (first, second) = (rig.connect(), rig.connect());
    assert_eq!(rig.exchange(first, b"1"), b"1");
    assert_eq!(rig.network.end(second), Some(End::Reset));
    assert_eq!((rig.refused(Refusal::Full), rig.totals().accepted), (1, 1));
    rig.network.half_close(first);
    rig.run();
    let third = rig.connect();
    assert_eq!(rig.exchange(third, b"3"), b"3");
    rig.network.half_close(third);
    rig.run();
    rig.assert_nothing_left(1);
}

#[test]
fn changing_when_full_loses_no_permit() {
    let mut rig = Rig::new(1, Faults::default(), 2, settings());
    let first = rig.connect();
    rig.configure(Settings {
        when_full: WhenFull::Reset,
        ..settings()
    });
    rig.run();
    let (second, third) = (rig.connect(), rig.connect());
    assert_eq!(rig.network.end(third), Some(End::Reset));
    rig.configure(settings());
    rig.run();
    for peer in [first, second] {
        assert_eq!(rig.exchange(peer, b"x"), b"x");
        rig.network.half_close(peer);
    }
    rig.run();
    rig.assert_nothing_left(2);
}

#[test]
fn a_client_that_is_accepted_while_when_full_changes_costs_and_returns_one_permit() {
    for seed in 0..50 {
        let [before, after] = match seed % 2 {
            0 => [WhenFull::Wait, WhenFull::Reset],
            _ => [WhenFull::Reset, WhenFull::Wait],
        };
        let with = |when_full| Settings {
            when_full,
            ..settings()
        };
        let mut rig = Rig::new(seed, Faults::default(), 2, with(before));
        let from = "198.51.100.1:5000".parse().unwrap();
        let peer = rig.network.connect(from, server());
        rig.configure(with(after));
        rig.run();
        assert_eq!(rig.exchange(peer, b"x"), b"x");
        rig.network.half_close(peer);
        rig.run();
        rig.assert_nothing_left(2);
    }
}

#[test]
fn a_socket_that_passes_to_another_listener_brings_its_queue_and_costs_no_permit() {
    const OTHER: ListenerId = ListenerId(2);
    for seed in 0..50 {
        let mut rig = Rig::new(seed, Faults::default(), 1, settings());
        let (gate, counters) = (Arc::new(Gate::new(Permits::new(2, vec![]))), Arc::default());
        rig.command(Command::Configure {
            listener: OTHER,
            settings: Settings {
                reply: Reply::Upper,
                ..settings()
            },
            gate: Arc::clone(&gate),
            counters: Arc::clone(&counters),
        });
        // The listener is full, and a second client is in the queue.
        let first = rig.connect();
        assert_eq!(rig.exchange(first, b"first"), b"first");
        let second = (seed % 2 == 0).then(|| rig.connect());
        // Another one comes in the same turn as the command.
        let from = "198.51.100.3:5000".parse().unwrap();
        let third = rig.network.connect(from, server());
        rig.command(Command::MoveSocket {
            id: STREAM,
            listener: OTHER,
        });
        rig.run();
        let moved: Vec<_> = second.into_iter().chain([third]).collect();
        for peer in &moved {
            assert_eq!(rig.exchange(*peer, b"moved"), b"MOVED", "seed {seed}");
        }
        assert_eq!(rig.exchange(first, b"first"), b"first");
        assert_eq!(Totals::of([&*counters]).accepted, moved.len() as u64);
        for peer in moved.into_iter().chain([first]) {
            rig.network.half_close(peer);
        }
        rig.run();
        rig.assert_nothing_left(1);
        let free = (0..3).filter(|_| gate.permits.try_take()).count();
        assert_eq!(free, 2, "every permit was returned once, seed {seed}");
    }
}

#[test]
fn a_client_that_is_accepted_while_its_socket_passes_to_another_listener_costs_one_permit() {
    const OTHER: ListenerId = ListenerId(2);
    for seed in 0..50 {
        let mut rig = Rig::new(seed, Faults::default(), 2, settings());
        let (gate, counters) = (Arc::new(Gate::new(Permits::new(2, vec![]))), Arc::default());
        rig.command(Command::Configure {
            listener: OTHER,
            settings: settings(),
            gate: Arc::clone(&gate),
            counters: Arc::clone(&counters),
        });
        rig.run();
        let from = "198.51.100.3:5000".parse().unwrap();
        let peer = rig.network.connect(from, server());
        rig.command(Command::MoveSocket {
            id: STREAM,
            listener: OTHER,
        });
        rig.run();
        assert_eq!(rig.exchange(peer, b"x"), b"x");
        rig.network.half_close(peer);
        rig.run();
        rig.assert_nothing_left(2);
        let free = (0..3).filter(|_| gate.permits.try_take()).count();
        assert_eq!(free, 2, "every permit was returned once, seed {seed}");
    }
}

#[test]
fn one_source_cannot_take_all_connections() {
    let mut rig = Rig::new(
        1,
        Faults::default(),
        10,
        Settings {
            max_per_source: Some(2),
            ..settings()
        },
    );
    let ours: Vec<RemotePeer> = (0..3).map(|_| rig.connect()).collect();
    let other = rig.connect_from("198.51.100.2");
    assert_eq!(rig.network.end(ours[2]), Some(End::Reset));
    assert_eq!(rig.exchange(other, b"x"), b"x");
    assert_eq!(rig.refused(Refusal::PerSource), 1);
    for peer in [ours[0], ours[1], other] {
        rig.network.half_close(peer);
    }
    rig.run();
    let again = rig.connect();
    assert_eq!(rig.exchange(again, b"x"), b"x");
}

#[test]
fn a_denied_client_is_reset_and_counted() {
    let access = Access {
        allow: [].into(),
        deny: ["198.51.100.0/24".parse().unwrap()].into(),
    };
    let mut rig = Rig::new(
        1,
        Faults::default(),
        1,
        Settings {
            access,
            ..settings()
        },
    );
    let denied = rig.connect();
    assert_eq!(rig.network.end(denied), Some(End::Reset));
    assert_eq!(
        (rig.refused(Refusal::Denied), rig.totals().accepted),
        (1, 0)
    );
    let welcome = rig.connect_from("203.0.113.1");
    assert_eq!(rig.exchange(welcome, b"x"), b"x");
}

#[test]
fn without_descriptors_accepting_pauses_and_resumes_by_itself() {
    let mut rig = Rig::new(
        1,
        Faults {
            accept_error: 1.0,
            ..Faults::default()
        },
        10,
        settings(),
    );
    let peer = rig.connect();
    rig.network.write(peer, b"patience");
    rig.pass(5 * SECOND);
    assert_eq!(rig.network.read(peer, 10), b"");
    rig.network.set_faults(Faults::default());
    rig.pass(ACCEPT_PAUSE_MAX + TICK);
    assert_eq!(rig.network.read(peer, 10), b"patience");
}

#[test]
fn a_retired_socket_serves_its_queue_although_the_listener_is_full() {
    let mut rig = Rig::new(1, Faults::default(), 1, settings());
    let (first, queued) = (rig.connect(), rig.connect());
    rig.retire(STREAM);
    rig.run();
    assert!(matches!(
        rig.reports.try_recv(),
        Ok(Report::Retired {
            worker: 0,
            id: STREAM
        })
    ));
    let late = rig.connect();
    assert_eq!(rig.network.end(late), Some(End::Reset));
    for peer in [first, queued] {
        assert_eq!(rig.exchange(peer, b"x"), b"x");
        rig.network.half_close(peer);
    }
    rig.run();
    rig.assert_nothing_left(1);
}

#[test]
fn a_socket_that_is_retired_while_accepting_is_paused_is_not_asked_to_accept_twice() {
    let faults = Faults {
        accept_error: 1.0,
        ..Faults::default()
    };
    let mut rig = Rig::new(1, faults, 100, settings());
    let peers: Vec<_> = (0..40).map(|_| rig.connect()).collect();
    rig.run();
    rig.network.set_faults(Faults::default());
    rig.retire(STREAM);
    // It is still draining when the pause would have ended.
    (0..2).for_each(|_| rig.turn());
    rig.network.advance(ACCEPT_PAUSE_MAX + TICK);
    rig.run();
    for peer in peers {
        assert_eq!(rig.exchange(peer, b"x"), b"x");
    }
}

#[test]
fn a_returned_permit_costs_no_time_for_idle_connections() {
    const CONNECTIONS: u16 = 10_000;
    let max_connections = u32::from(CONNECTIONS);
    let mut rig = Rig::new(1, Faults::default(), max_connections, settings());
    let peers: Vec<RemotePeer> = (0..CONNECTIONS)
        .map(|number| {
            let from = SocketAddr::from(([198, 51, 100, 1], 10_000 + number));
            rig.network.connect(from, server())
        })
        .collect();
    while rig.totals().accepted < u64::from(CONNECTIONS) {
        rig.turn();
    }
    let waiting = rig.connect();
    assert_eq!(rig.worker.without_permit.len(), 1);
    let visited = rig.worker.slots.visited.get();
    rig.network.half_close(peers[7]);
    rig.run();
    assert_eq!(rig.exchange(waiting, b"x"), b"x", "it was accepted");
    let visited = rig.worker.slots.visited.get() - visited;
    assert_eq!(visited, 0, "slots were visited beside the listening socket");
}

#[test]
fn a_listening_socket_that_waits_for_a_permit_is_in_the_list_once_and_only_while_it_waits() {
    let full = || {
        let mut rig = Rig::new(1, Faults::default(), 1, settings());
        let peers = [rig.connect(), rig.connect()];
        assert_eq!(rig.worker.without_permit.len(), 1);
        // A command wakes the worker like a permit, and the socket is paused again.
        rig.command(Command::Ping);
        rig.run();
        assert_eq!(rig.worker.without_permit.len(), 1);
        (rig, peers)
    };
    let (mut rig, [_, waiting]) = full();
    rig.configure(Settings {
        when_full: WhenFull::Reset,
        ..settings()
    });
    rig.run();
    assert!(rig.worker.without_permit.is_empty(), "no permit is needed");
    assert_eq!(rig.network.end(waiting), Some(End::Reset));

    let (mut rig, [_, waiting]) = full();
    rig.retire(STREAM);
    rig.turn();
    assert!(rig.worker.without_permit.is_empty(), "it is drained");
    rig.run();
    assert_eq!(rig.exchange(waiting, b"x"), b"x");

    let (mut rig, _) = full();
    rig.command(Command::HandOver);
    rig.turn();
    assert!(rig.worker.without_permit.is_empty(), "it is handed over");
    rig.run();
    assert!(rig.worker.slots.is_empty());
}

#[test]
fn a_client_that_finds_no_permit_while_when_full_becomes_reset_is_reset() {
    for seed in 0..50 {
        let mut rig = Rig::new(seed, Faults::default(), 1, settings());
        let first = rig.connect();
        let from = "198.51.100.1:5000".parse().unwrap();
        let second = rig.network.connect(from, server());
        // Either this or the driver's report that accepting is paused is handled first.
        rig.configure(Settings {
            when_full: WhenFull::Reset,
            ..settings()
        });
        rig.run();
        assert_eq!(rig.network.end(second), Some(End::Reset), "seed {seed}");
        assert_eq!(rig.exchange(first, b"x"), b"x");
    }
}

#[test]
fn a_command_about_one_socket_or_listener_visits_no_slot_of_another() {
    const OTHER: ListenerId = ListenerId(2);
    let mut rig = Rig::new(1, Faults::default(), 100, settings());
    let peers: Vec<RemotePeer> = (0..100).map(|_| rig.connect()).collect();
    let visited = rig.worker.slots.visited.get();
    for id in 3..50 {
        rig.serve(LISTENER, SocketId(id), SocketKind::Datagram, udp_server());
    }
    rig.command(Command::Configure {
        listener: OTHER,
        settings: settings(),
        gate: Arc::clone(&rig.gate),
        counters: Arc::default(),
    });
    rig.command(Command::MoveSocket {
        id: STREAM,
        listener: OTHER,
    });
    rig.retire(SocketId(7));
    // Another answer changes nothing for what is in the slots.
    rig.configure(Settings {
        reply: Reply::Upper,
        ..settings()
    });
    rig.run();
    assert_eq!(rig.worker.slots.visited.get(), visited);
    assert!(matches!(rig.reports.try_recv(), Ok(Report::Retired { id, .. }) if id == SocketId(7)));
    drop(peers);
}

#[test]
fn many_listeners_that_change_at_once_are_applied_in_one_visit_of_the_slots() {
    let mut rig = Rig::new(1, Faults::default(), 100, settings());
    let peer = rig.connect();
    let visited = rig.worker.slots.visited.get();
    for seconds in (1..=100).rev() {
        rig.configure(with(Timeouts {
            idle: Some(seconds * SECOND),
            ..Timeouts::default()
        }));
    }
    rig.run();
    let visited = rig.worker.slots.visited.get() - visited;
    assert_eq!(visited, rig.worker.slots.len());
    rig.pass(SECOND + 2 * TICK);
    assert!(rig.network.end(peer).is_some(), "the last one applies");
}
