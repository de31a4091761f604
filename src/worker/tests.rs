//! Whole workers over the simulated driver: virtual time, seeded faults, no sockets.
//!
//! A failure names its seed, and one seed is one history.

mod datagrams;
mod handover;
mod listening;
mod mixture;
mod relaying;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::driver::sim::{Client, End, Faults, Network, Peer as RemotePeer, Sim};
use crate::driver::{Driver, Permits, Waker};
use crate::echo::Reply;
use crate::policy::limits::{LINGER, Timeouts, WhenFull};
use crate::policy::{Access, Refusal, SourcePorts};
use crate::stats::{Counters, Totals};

use super::Worker;
use super::mailbox::{
    Command, Gate, ListenerId, Mailbox, Order, Rank, Report, Selection, Settings, SocketId,
    SocketKind,
};
use super::timers::TICK;

const SECOND: Duration = Duration::from_secs(1);
const LISTENER: ListenerId = ListenerId(1);
const STREAM: SocketId = SocketId(1);
const DATAGRAM: SocketId = SocketId(2);

/// One worker in a simulated world.
struct Rig {
    network: Network,
    worker: Worker<Sim>,
    commands: Sender<Command<<Sim as Driver>::Socket>>,
    reports: Receiver<Report<<Sim as Driver>::Socket>>,
    waker: Waker,
    counters: Arc<Counters>,
    gate: Arc<Gate>,
    ports: u16,
    // All bound sockets: a successor serves them, too.
    sockets: Vec<(ListenerId, SocketId, SocketKind, <Sim as Driver>::Socket)>,
}

fn settings() -> Settings {
    Settings {
        name: "test".into(),
        reply: Reply::Echo,
        one_shot: false,
        timeouts: Timeouts::default(),
        when_full: WhenFull::Wait,
        max_per_source: None,
        access: Access::default(),
        source_ports: SourcePorts::default(),
    }
}

fn server() -> SocketAddr {
    "192.0.2.1:7".parse().unwrap()
}

impl Rig {
    /// A worker with a listener and a datagram socket that share their settings.
    fn new(seed: u64, faults: Faults, max_connections: u32, settings: Settings) -> Self {
        Self::with_busy_poll(Duration::ZERO, seed, faults, max_connections, settings)
    }

    fn with_busy_poll(
        busy_poll: Duration,
        seed: u64,
        faults: Faults,
        max_connections: u32,
        settings: Settings,
    ) -> Self {
        let network = Network::new(seed);
        network.set_faults(faults);
        let driver = Sim::new(&network);
        let waker = driver.waker();
        let (commands, command_receiver) = channel();
        let (report_sender, reports) = channel();
        let mailbox = Mailbox {
            commands: command_receiver,
            reports: report_sender,
            control: Waker::new().unwrap(),
        };
        let mut rig = Self {
            worker: Worker::new(0, 1, busy_poll, driver, mailbox),
            commands,
            reports,
            gate: Arc::new(Gate::new(Permits::new(
                max_connections,
                vec![waker.clone()],
            ))),
            waker,
            counters: Arc::default(),
            network,
            ports: 1024,
            sockets: Vec::new(),
        };
        rig.configure(settings);
        for (id, kind) in [
            (STREAM, SocketKind::Stream),
            (DATAGRAM, SocketKind::Datagram),
        ] {
            let address = match kind {
                SocketKind::Stream => server(),
                SocketKind::Datagram => udp_server(),
            };
            rig.serve(LISTENER, id, kind, address);
        }
        rig.run();
        rig
    }

    fn configure(&mut self, settings: Settings) {
        let (gate, counters) = (Arc::clone(&self.gate), Arc::clone(&self.counters));
        self.command(Command::Configure {
            listener: LISTENER,
            settings,
            gate,
            counters,
        });
    }

    fn command(&self, command: Command<<Sim as Driver>::Socket>) {
        self.commands.send(command).unwrap();
        self.waker.wake();
    }

    fn turn(&mut self) {
        self.worker.turn().unwrap();
    }

    /// Turns until nothing more can happen at this time.
    fn run(&mut self) {
        self.network.stop_clock();
        for _ in 0..20 {
            self.turn();
        }
    }

    /// Advances the clock by one tick in each turn, so that no timer is late.
    fn pass(&mut self, time: Duration) {
        let mut left = time;
        while left > Duration::ZERO {
            let step = left.min(TICK);
            self.network.advance(step);
            self.turn();
            left -= step;
        }
        self.run();
    }

    fn connect_from(&mut self, host: &str) -> RemotePeer {
        self.ports += 1;
        let from = SocketAddr::new(host.parse().unwrap(), self.ports);
        let peer = self.network.connect(from, server());
        self.run();
        peer
    }

    fn connect(&mut self) -> RemotePeer {
        self.connect_from("198.51.100.1")
    }

    fn exchange(&mut self, peer: RemotePeer, message: &[u8]) -> Vec<u8> {
        self.network.write(peer, message);
        self.run();
        self.network.read(peer, usize::MAX)
    }

    fn totals(&self) -> Totals {
        Totals::of([&*self.counters])
    }

    fn refused(&self, reason: Refusal) -> u64 {
        self.totals().refused[reason as usize]
    }

    /// All peers have left: no connection, buffer or permit may be left of them.
    fn assert_nothing_left(&mut self, max_connections: u32) {
        self.worker.driver.assert_all_returned();
        assert_eq!(
            self.totals().connections(),
            0,
            "connections are counted out as they are counted in"
        );
        assert_eq!(
            self.network.open_connections(),
            0,
            "every connection is closed"
        );
        for _ in 0..max_connections {
            assert!(self.gate.permits.try_take(), "every permit was returned");
        }
        assert!(
            !self.gate.permits.try_take(),
            "no permit was returned twice"
        );
    }
}

fn udp_server() -> SocketAddr {
    "192.0.2.1:9".parse().unwrap()
}

#[test]
fn an_idle_peer_is_small() {
    assert!(
        size_of::<super::Slot>() <= 160,
        "{} bytes",
        size_of::<super::Slot>()
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
    let mut rig = Rig::new(
        1,
        Faults::default(),
        2,
        Settings {
            timeouts,
            ..settings()
        },
    );
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
    rig.configure(Settings {
        timeouts,
        ..settings()
    });
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
    let mut rig = Rig::new(
        1,
        Faults::default(),
        1,
        Settings {
            timeouts,
            ..settings()
        },
    );
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
    let mut rig = Rig::new(
        1,
        Faults::default(),
        2,
        Settings {
            timeouts,
            ..settings()
        },
    );
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
    let settings = Settings {
        timeouts,
        ..settings()
    };
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

/// A search of the worker, and what it reports.
fn search(
    rig: &mut Rig,
    command: Command<<Sim as Driver>::Socket>,
) -> Report<<Sim as Driver>::Socket> {
    rig.command(command);
    rig.run();
    rig.reports.try_recv().expect("a search is reported")
}

fn list(order: Order, after: Option<Rank>, max: usize) -> Command<<Sim as Driver>::Socket> {
    Command::ListPeers {
        query: 9,
        selection: Selection::default(),
        order,
        after,
        max,
    }
}

/// All peers in this order, and the sizes of the parts in which they were reported.
fn listed(rig: &mut Rig, order: Order, max: usize) -> (Vec<super::mailbox::Peer>, Vec<usize>) {
    let (mut all, mut sizes) = (Vec::new(), Vec::new());
    let mut after = None;
    let mut total = None;
    loop {
        let Report::Peers {
            query: 9,
            peers,
            matched,
            more_after,
        } = search(rig, list(order, after, max))
        else {
            panic!("another report");
        };
        assert_eq!(*total.get_or_insert(matched), matched);
        sizes.push(peers.len());
        all.extend(peers);
        after = more_after;
        if after.is_none() {
            assert_eq!(all.len() as u64, matched);
            return (all, sizes);
        }
    }
}

#[test]
fn peers_are_listed_in_parts_in_every_order_and_closed_by_id() {
    let mut rig = Rig::new(1, Faults::default(), 1000, settings());
    let peers: Vec<RemotePeer> = (0..600).map(|_| rig.connect()).collect();
    rig.exchange(peers[0], b"12345");
    let client = rig.network.client("198.51.100.1:5000".parse().unwrap());
    rig.network.send_datagram(client, udp_server(), b"123");
    rig.pass(SECOND);
    let orders = [
        Order::Id,
        Order::Listener,
        Order::Address,
        Order::Age,
        Order::Idle,
        Order::Received,
        Order::Sent,
        Order::Rtt,
    ];
    for order in orders {
        let (found, sizes) = listed(&mut rig, order, 256);
        assert_eq!(sizes, [256, 256, 89], "{order:?}");
        let in_order = found.windows(2).all(|pair| pair[0].rank < pair[1].rank);
        assert!(in_order, "{order:?}");
        let mut ids: Vec<u64> = found.iter().map(|peer| peer.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 601, "each is listed once: {order:?}");
    }
    let (found, _) = listed(&mut rig, Order::Received, 1000);
    let busy = &found[0];
    assert!(busy.bytes_received == 5 && busy.bytes_sent == 5);
    assert!(busy.age >= SECOND && busy.idle >= SECOND);
    assert_eq!(found[1].kind, SocketKind::Datagram);
    assert_eq!(found[1].bytes_sent, 3);

    let close = |dry_run| Command::ClosePeers {
        query: 3,
        selection: Selection {
            id: Some(busy.id),
            ..Selection::default()
        },
        dry_run,
    };
    for (dry_run, expected) in [(true, 0), (false, 1)] {
        let report = search(&mut rig, close(dry_run));
        let Report::PeersClosed {
            query: 3,
            matched: 1,
            closed,
        } = report
        else {
            panic!("{report:?}");
        };
        assert_eq!(closed, expected);
    }
    assert_eq!(rig.network.end(peers[0]), Some(End::Fin));
    assert_eq!(listed(&mut rig, Order::Id, 256).0.len(), 600);
}

#[test]
fn a_search_reports_no_more_peers_than_asked_for_and_counts_them_all() {
    let mut rig = Rig::new(1, Faults::default(), 1000, settings());
    let peers: Vec<RemotePeer> = (0..600).map(|_| rig.connect()).collect();
    rig.exchange(peers[599], b"the last");
    for max in [0, 1, 3] {
        let report = search(&mut rig, list(Order::Received, None, max));
        let Report::Peers { peers, matched, .. } = report else {
            panic!("{report:?}");
        };
        assert_eq!((peers.len(), matched), (max, 600));
        assert!(peers.first().is_none_or(|peer| peer.bytes_received == 8));
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

fn talk(seed: u64, faults: Faults) {
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

#[test]
fn with_busy_poll_a_worker_looks_for_a_while_before_it_sleeps() {
    let busy_poll = Duration::from_micros(50);
    let settings = Settings {
        timeouts: Timeouts {
            idle: Some(10_000 * SECOND),
            ..Timeouts::default()
        },
        ..settings()
    };
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
    let settings = Settings {
        timeouts: Timeouts {
            idle: Some(10_000 * SECOND),
            ..Timeouts::default()
        },
        ..settings()
    };
    let mut rig = Rig::new(1, Faults::default(), 1, settings);
    let peer = rig.connect();
    assert_eq!(rig.exchange(peer, b"hello"), b"hello");
    rig.network.let_clock_run();
    let start = rig.worker.driver.now();
    rig.turn();
    assert!(rig.worker.driver.now() > start);
}
