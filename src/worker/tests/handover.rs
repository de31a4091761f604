//! One worker hands everything over and another takes it over, in virtual time, so that timeouts are
//! exact to the tick.

use super::super::mailbox::TransferredConnection;
use super::*;
use crate::echo::stream::Input;

impl Rig {
    /// Replaces the worker, which has handed everything over, by a new one on a driver of its own.
    pub(super) fn replace_worker(&mut self) {
        self.worker.driver.assert_all_returned();
        (self.worker, self.commands, self.reports) = worker(Duration::ZERO, &self.network);
        self.waker = self.worker.driver.waker();
    }

    /// Hands everything over to another worker.
    pub(super) fn hand_over(&mut self, max_connections: u32, settings: Settings) {
        self.hand_over_changed(max_connections, settings, |_| {});
    }

    /// The same, with `change` applied to each connection on the way.
    fn hand_over_changed(
        &mut self,
        max_connections: u32,
        settings: Settings,
        change: impl Fn(&mut TransferredConnection<<Sim as Driver>::Socket>),
    ) {
        self.command(Command::HandOver);
        self.run();
        let report = self.reports.try_iter().last();
        let Some(Report::HandedOver {
            connections,
            sources,
            last_id,
            ..
        }) = report
        else {
            panic!("everything is handed over, not {report:?}");
        };
        self.replace_worker();
        let permits = Permits::new(max_connections, vec![self.waker.clone()]);
        self.gate = Arc::new(Gate::new(permits));
        let max_per_source = settings.max_per_source;
        self.configure(settings);
        self.command(Command::ContinueIdsAfter { last: last_id });
        for mut connection in connections {
            change(&mut connection);
            let source = connection.state.peer.map(|peer| peer.ip());
            connection.admission = self.gate.readmit(source, max_per_source);
            self.command(Command::TakeOver { connection });
        }
        for (listener, source) in sources {
            self.command(Command::AddSource { listener, source });
        }
        self.serve_again();
        self.run();
    }
}

#[test]
fn timeouts_continue_in_the_successor() {
    let kinds = [
        Timeouts {
            idle: Some(10 * SECOND),
            ..Timeouts::default()
        },
        Timeouts {
            lifetime: Some(10 * SECOND),
            ..Timeouts::default()
        },
        Timeouts {
            write_stall: Some(10 * SECOND),
            ..Timeouts::default()
        },
    ];
    for timeouts in kinds {
        let mut rig = Rig::new(1, Faults::default(), 1, with(timeouts));
        let peer = rig.connect();
        if timeouts.write_stall.is_some() {
            for _ in 0..20 {
                rig.network.write(peer, &vec![7; 60_000]);
                rig.run();
            }
        }
        for _ in 0..3 {
            rig.pass(3 * SECOND);
            rig.hand_over(1, with(timeouts));
        }
        assert_eq!(rig.network.end(peer), None, "{timeouts:?}: too early");
        rig.pass(SECOND + 2 * TICK);
        rig.network.read(peer, usize::MAX);
        assert!(rig.network.end(peer).is_some(), "{timeouts:?}: too late");
    }
}

#[test]
fn a_lingering_connection_is_closed_in_time_by_the_successor() {
    let one_shot = || Settings {
        one_shot: true,
        ..settings()
    };
    let mut rig = Rig::new(1, Faults::default(), 1, one_shot());
    let peer = rig.connect();
    assert_eq!(rig.exchange(peer, b"x"), b"x");
    rig.pass(LINGER / 2);
    rig.hand_over(1, one_shot());
    assert_eq!(rig.exchange(peer, b"more"), b"");
    rig.pass(LINGER / 2 - TICK);
    assert_eq!(rig.totals().connections(), 1);
    rig.pass(3 * TICK);
    rig.assert_nothing_left(1);
}

#[test]
fn a_connection_whose_last_bytes_were_unsent_after_our_fin_is_closed_in_time_by_the_successor() {
    for writes_stall in [None, Some(8 * SECOND)] {
        let timeouts = Timeouts {
            write_stall: writes_stall,
            ..Timeouts::default()
        };
        let mut rig = Rig::new(1, Faults::default(), 1, with(timeouts));
        let peer = rig.connect();
        rig.hand_over_changed(1, with(timeouts), |connection| {
            connection.unsent = b"relayed after the FIN was asked for".into();
            connection.state.progress.input = Input::Ignored;
            connection.state.progress.shut_down = true;
        });
        assert_eq!(rig.network.read(peer, 7), b"relayed");
        assert_eq!(rig.network.end(peer), None);
        rig.network.read(peer, usize::MAX);
        assert_eq!(rig.network.end(peer), Some(End::Fin));
        rig.pass(LINGER - TICK);
        assert_eq!(rig.totals().connections(), 1);
        rig.pass(3 * TICK);
        rig.assert_nothing_left(1);
    }
}

#[test]
fn a_datagram_that_arrives_together_with_the_request_to_hand_over_is_answered_once() {
    for seed in 0..50 {
        let mut rig = Rig::new(seed, Faults::default(), 1, settings());
        let client = rig.network.client("198.51.100.1:5000".parse().unwrap());
        rig.network.send_datagram(client, udp_server(), b"hello");
        rig.hand_over(1, settings());
        let answer = rig.network.receive_datagram(client);
        assert_eq!(answer, Some((udp_server(), b"hello".to_vec())), "{seed}");
        assert_eq!(rig.network.receive_datagram(client), None, "{seed}: twice");
    }
}

#[test]
fn a_connection_that_is_accepted_together_with_the_request_to_hand_over_is_handed_over() {
    for seed in 0..50 {
        let mut rig = Rig::new(seed, Faults::default(), 2, settings());
        let from = "198.51.100.1:5000".parse().unwrap();
        let peer = rig.network.connect(from, server());
        rig.network.write(peer, b"hello");
        rig.hand_over(2, settings());
        assert_eq!(rig.network.read(peer, 10), b"hello", "{seed}");
        rig.network.half_close(peer);
        rig.run();
        rig.assert_nothing_left(2);
    }
}

#[test]
fn a_connection_keeps_the_reply_mode_with_which_it_was_accepted() {
    let mut rig = Rig::new(1, Faults::default(), 2, settings());
    let old = rig.connect();
    let upper = || Settings {
        reply: Reply::Upper,
        one_shot: true,
        ..settings()
    };
    rig.configure(upper());
    rig.hand_over(2, upper());
    assert_eq!(rig.exchange(old, b"abc"), b"abc");
    assert_eq!(rig.exchange(old, b"def"), b"def");
    let new = rig.connect();
    assert_eq!(rig.exchange(new, b"abc"), b"ABC");
}

#[test]
fn a_second_request_to_hand_over_continues_the_first_and_loses_nothing() {
    for seed in 0..10 {
        let mut rig = Rig::new(seed, Faults::default(), 200, settings());
        let peers: Vec<RemotePeer> = (0..200).map(|_| rig.connect()).collect();
        rig.command(Command::HandOver);
        // Few completions are reported in a turn.
        while rig.worker.slots.occupied > 150 {
            rig.turn();
        }
        assert!(rig.worker.slots.occupied > 0, "the first is not answered");
        rig.hand_over(200, settings());
        for &peer in &peers {
            rig.network.write(peer, b"hello");
        }
        rig.run();
        for &peer in &peers {
            assert_eq!(rig.network.read(peer, 10), b"hello", "{seed}");
            rig.network.half_close(peer);
        }
        rig.run();
        rig.assert_nothing_left(200);
    }
}

/// It was never handed over, so that the worker never continued after an upgrade that was given up.
#[test]
fn a_socket_that_is_added_to_a_late_worker_keeps_it_from_no_hand_over() {
    const LATE: SocketId = SocketId(3);
    for seed in 0..10 {
        let mut rig = Rig::new(seed, Faults::default(), 200, settings());
        let peers: Vec<RemotePeer> = (0..200).map(|_| rig.connect()).collect();
        rig.command(Command::HandOver);
        // Few completions are reported in a turn.
        while rig.worker.slots.occupied > 150 {
            rig.turn();
        }
        let address = "192.0.2.1:11".parse().unwrap();
        rig.serve(LISTENER, LATE, SocketKind::Datagram, address);
        // What is retired during the hand-over is reported at once.
        rig.retire(STREAM);
        rig.run();
        let reports: Vec<_> = rig.reports.try_iter().collect();
        let [
            Report::Retired { id: STREAM, .. },
            Report::HandedOver { connections, .. },
        ] = reports.as_slice()
        else {
            panic!("seed {seed}: {reports:?}");
        };
        assert_eq!(connections.len(), peers.len());
        // It continues, with the socket.
        rig.serve_again();
        let client = rig.network.client("198.51.100.1:5000".parse().unwrap());
        rig.network.send_datagram(client, address, b"hello");
        rig.run();
        let answer = rig.network.receive_datagram(client);
        assert_eq!(answer, Some((address, b"hello".to_vec())), "seed {seed}");
    }
}
