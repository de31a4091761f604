//! Everything at once over the simulated driver: streams of every reply mode and datagrams, changing
//! limits, lists, kicks, retired sockets, hand-overs, the end of the service, and peers that vanish.

use std::collections::VecDeque;

use super::super::mailbox::{SourceEntry, TransferredConnection};
use super::peers::list;
use super::*;

/// Peers of streams in one history. Some connect when others have left.
const STREAM_PEERS: u32 = 40;

/// The limit of connections of each listener.
const CONNECTIONS_MAX: u32 = 5;

/// The addresses of peers. The last one is denied in histories with address rules.
const HOSTS: [&str; 3] = ["198.51.100.1", "203.0.113.1", "203.0.113.77"];

/// The reply modes of the listeners. The first listener is the rig's, and serves datagrams as well.
const REPLIES: [(Reply, bool); 4] = [
    (Reply::Echo, false),
    (Reply::Upper, false),
    (Reply::Discard, false),
    (Reply::Echo, true),
];

/// The kind of a history. Without faults that reset, and not strict, no peer may lose a byte unless it
/// vanishes.
struct Conditions {
    faults: Faults,
    // Limits that end connections, and commands that do.
    strict: bool,
}

struct Service {
    id: ListenerId,
    address: SocketAddr,
    gate: Arc<Gate>,
    counters: Arc<Counters>,
    settings: Settings,
    retired: bool,
}

/// A peer of a stream.
struct StreamPeer {
    remote: RemotePeer,
    number: u32,
    service: usize,
    total: usize,
    written: usize,
    read: usize,
    half_closed: bool,
    // It gets every byte unless it vanishes.
    safe: bool,
    // It vanishes when it has written this number of bytes.
    vanishes_at: Option<usize>,
}

/// A source of datagrams.
struct DatagramPeer {
    client: Client,
    number: u32,
    sent: u32,
    waiting: VecDeque<Vec<u8>>,
    left: bool,
}

/// A byte that identifies its peer and its place in the stream.
fn byte(number: u32, index: usize) -> u8 {
    let word = ((u64::from(number) << 40) | (index as u64 / 8)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (word ^ (word >> 32)).to_le_bytes()[index % 8]
}

fn bytes(number: u32, indices: std::ops::Range<usize>) -> Vec<u8> {
    indices.map(|index| byte(number, index)).collect()
}

struct Mixture {
    rig: Rig,
    conditions: Conditions,
    services: Vec<Service>,
    peers: Vec<StreamPeer>,
    senders: Vec<DatagramPeer>,
    connected: u32,
    finishing: bool,
    peer_ids: Vec<u64>,
    // Sockets that are being retired, and the number of successors until now.
    retiring: usize,
    handing_over: bool,
    successors: u32,
}

impl Mixture {
    fn new(seed: u64) -> Self {
        let delay = Duration::from_millis(3);
        let faults = match seed % 4 {
            0 => Faults {
                delay,
                ..Faults::default()
            },
            1 | 2 => Faults::rough(),
            _ => Faults::hostile(),
        };
        let conditions = Conditions {
            faults,
            strict: seed / 4 % 2 == 1,
        };
        let rig = Rig::new(seed, conditions.faults.clone(), CONNECTIONS_MAX, settings());
        let mut mixture = Self {
            rig,
            conditions,
            services: Vec::new(),
            peers: Vec::new(),
            senders: Vec::new(),
            connected: 0,
            finishing: false,
            peer_ids: Vec::new(),
            retiring: 0,
            handing_over: false,
            successors: 0,
        };
        for (index, (reply, one_shot)) in REPLIES.into_iter().enumerate() {
            mixture.open(index, reply, one_shot);
        }
        for number in 0..HOSTS.len() as u32 {
            let address = SocketAddr::new(HOSTS[number as usize].parse().unwrap(), 5000);
            mixture.senders.push(DatagramPeer {
                client: mixture.rig.network.client(address),
                number: 1000 + number,
                sent: 0,
                waiting: VecDeque::new(),
                left: false,
            });
        }
        mixture
    }

    fn open(&mut self, index: usize, reply: Reply, one_shot: bool) {
        let rig = &self.rig;
        let settings = Settings {
            reply,
            one_shot,
            ..settings()
        };
        let service = if index == 0 {
            Service {
                id: LISTENER,
                address: server(),
                gate: Arc::clone(&rig.gate),
                counters: Arc::clone(&rig.counters),
                settings,
                retired: false,
            }
        } else {
            Service {
                id: ListenerId(100 + index as u32),
                address: SocketAddr::new(server().ip(), 100 + index as u16),
                gate: Arc::new(Gate::new(Permits::new(
                    CONNECTIONS_MAX,
                    vec![rig.waker.clone()],
                ))),
                counters: Arc::default(),
                settings,
                retired: false,
            }
        };
        self.services.push(service);
        self.configure(index);
        if index > 0 {
            let service = &self.services[index];
            let (id, address) = (service.id, service.address);
            self.rig
                .serve(id, SocketId(id.0), SocketKind::Stream, address);
        }
    }

    fn below(&self, bound: usize) -> usize {
        self.rig.network.below(bound)
    }

    fn one_in(&self, count: usize) -> bool {
        self.below(count) == 0
    }

    /// Gives a service other limits, if the history is strict.
    fn configure(&mut self, index: usize) {
        if self.conditions.strict {
            let some = |time: usize| self.one_in(2).then(|| SECOND * time as u32 / 4);
            let timeouts = Timeouts {
                idle: some(2 + self.below(8)),
                lifetime: some(2 + self.below(20)),
                write_stall: some(2 + self.below(8)),
            };
            let denied = HOSTS[HOSTS.len() - 1];
            let deny = self
                .one_in(2)
                .then(|| format!("{denied}/32").parse().unwrap());
            let per_source = self.one_in(2).then(|| 1 + self.below(4) as u32);
            let when_full = if self.one_in(2) {
                WhenFull::Wait
            } else {
                WhenFull::Reset
            };
            let settings = &mut self.services[index].settings;
            settings.timeouts = timeouts;
            settings.access.deny = deny.into_iter().collect();
            settings.max_per_source = per_source;
            settings.when_full = when_full;
        }
        let service = &self.services[index];
        self.rig.command(Command::Configure {
            listener: service.id,
            settings: service.settings.clone(),
            gate: Arc::clone(&service.gate),
            counters: Arc::clone(&service.counters),
        });
    }

    fn connect_peer(&mut self) {
        self.connected += 1;
        let index = self.below(self.services.len());
        let service = &self.services[index];
        let host = HOSTS[self.below(HOSTS.len())].parse().unwrap();
        let from = SocketAddr::new(host, 10_000 + self.connected as u16);
        let total = [0, 1, 100, 4096, 20_000, 70_000, 200_000][self.below(7)];
        let is_calm = !self.conditions.strict && self.conditions.faults.reset == 0.0;
        self.peers.push(StreamPeer {
            remote: self.rig.network.connect(from, service.address),
            number: self.connected,
            service: index,
            total,
            written: 0,
            read: 0,
            half_closed: false,
            safe: is_calm && !service.retired && !self.finishing,
            vanishes_at: self.one_in(4).then(|| self.below(total + 1)),
        });
    }

    /// What the control plane does.
    fn control(&mut self) {
        match self.below(400) {
            // During a hand-over the control plane asks for nothing else.
            _ if self.handing_over => {}
            18..21 if self.retiring == 0 && !self.finishing => {
                self.handing_over = true;
                self.rig.command(Command::HandOver);
            }
            0..10 => self.configure(self.below(self.services.len())),
            10..14 => self.rig.command(list(Order::Idle, None, 100)),
            14..16 if self.conditions.strict && !self.peer_ids.is_empty() => {
                let id = self.peer_ids[self.below(self.peer_ids.len())];
                self.rig.command(Command::ClosePeers {
                    query: 2,
                    selection: Selection {
                        id: Some(id),
                        ..Selection::default()
                    },
                    dry_run: false,
                    max: 0,
                });
            }
            16 if self.connected > STREAM_PEERS / 2 && !self.services[3].retired => {
                self.services[3].retired = true;
                self.retiring = 1;
                self.rig.retire(SocketId(self.services[3].id.0));
            }
            17 if self.conditions.strict && self.connected > STREAM_PEERS / 2 => {
                self.finishing = true;
                self.rig.command(Command::Finish);
            }
            _ => {}
        }
        self.handle_reports();
    }

    /// Handles what the worker has reported.
    fn handle_reports(&mut self) {
        while let Ok(report) = self.rig.reports.try_recv() {
            match report {
                Report::Peers { peers, .. } => {
                    self.peer_ids.extend(peers.iter().map(|peer| peer.id));
                }
                Report::Retired { .. } => self.retiring = 0,
                Report::HandedOver {
                    connections,
                    sources,
                    last_id,
                    ..
                } => self.replace_by_successor(connections, sources, last_id),
                _ => {}
            }
        }
    }

    /// Another worker, on a driver of its own, takes everything over.
    fn replace_by_successor(
        &mut self,
        connections: Vec<TransferredConnection<<Sim as Driver>::Socket>>,
        sources: Vec<(ListenerId, SourceEntry)>,
        last: u64,
    ) {
        self.handing_over = false;
        self.successors += 1;
        for connection in &connections {
            let source = connection.state.peer.map(|peer| peer.ip());
            let gate = &self.service(connection.listener).gate;
            gate.release(connection.admission, source);
        }
        for service in &self.services {
            assert_gate_is_even(&service.gate);
        }
        self.rig.replace_worker();
        for service in &mut self.services {
            let permits = Permits::new(CONNECTIONS_MAX, vec![self.rig.waker.clone()]);
            service.gate = Arc::new(Gate::new(permits));
            if service.id == LISTENER {
                self.rig.gate = Arc::clone(&service.gate);
            }
            self.rig.command(Command::Configure {
                listener: service.id,
                settings: service.settings.clone(),
                gate: Arc::clone(&service.gate),
                counters: Arc::clone(&service.counters),
            });
        }
        self.rig.command(Command::ContinueIdsAfter { last });
        for mut connection in connections {
            let service = self.service(connection.listener);
            let source = connection.state.peer.map(|peer| peer.ip());
            let max_per_source = service.settings.max_per_source;
            connection.admission = service.gate.readmit(source, max_per_source);
            self.rig.command(Command::TakeOver { connection });
        }
        for (listener, source) in sources {
            self.rig.command(Command::AddSource { listener, source });
        }
        self.rig.serve_again();
    }

    fn service(&self, id: ListenerId) -> &Service {
        let mut services = self.services.iter();
        let service = services.find(|service| service.id == id);
        service.expect("it is known")
    }

    fn act_as_peer(&self, peer: &mut StreamPeer) {
        let network = &self.rig.network;
        if peer.written < peer.total {
            let end = (peer.written + 1 + self.below(30_000)).min(peer.total);
            let message = bytes(peer.number, peer.written..end);
            peer.written += network.write(peer.remote, &message);
        } else if !peer.half_closed {
            peer.half_closed = true;
            network.half_close(peer.remote);
        }
        if self.one_in(3) {
            return;
        }
        let (reply, one_shot) = REPLIES[peer.service];
        let got = network.read(peer.remote, 1 + self.below(40_000));
        let mut expected = bytes(peer.number, peer.read..peer.read + got.len());
        if reply == Reply::Upper {
            expected.make_ascii_uppercase();
        }
        assert!(
            got == expected,
            "peer {} of {reply:?}, one-shot {one_shot}: wrong bytes after {}",
            peer.number,
            peer.read
        );
        peer.read += got.len();
        let most = if reply == Reply::Discard {
            0
        } else {
            peer.written
        };
        assert!(
            peer.read <= most,
            "peer {}: more bytes arrive than were sent",
            peer.number
        );
    }

    /// Whether the peer has left. If the worker has closed the connection, checks that it might.
    fn has_left(&self, peer: &mut StreamPeer) -> bool {
        let network = &self.rig.network;
        if peer
            .vanishes_at
            .is_some_and(|at| peer.written >= at && !peer.half_closed)
        {
            if self.one_in(2) {
                network.reset(peer.remote);
            } else {
                network.close(peer.remote);
            }
            return true;
        }
        let Some(end) = network.end(peer.remote) else {
            return false;
        };
        if peer.safe {
            assert_eq!(end, End::Fin, "peer {}", peer.number);
            let (reply, one_shot) = REPLIES[peer.service];
            match reply {
                Reply::Discard => assert_eq!(peer.read, 0),
                _ if one_shot => assert_eq!(peer.read > 0, peer.total > 0),
                _ => assert_eq!(peer.read, peer.total, "peer {}", peer.number),
            }
        }
        if !peer.half_closed {
            network.half_close(peer.remote);
        }
        true
    }

    fn act_as_source(&self, sender: &mut DatagramPeer) {
        let network = &self.rig.network;
        if !sender.left && sender.sent < 200 && sender.waiting.len() < 20 && self.one_in(2) {
            let size = match self.below(20) {
                0 => 65_507,
                1 => 0,
                // Several of one size, which may arrive in one buffer.
                2..10 => 700,
                _ => self.below(1500),
            };
            let from = sender.sent as usize * 70_000;
            let message = bytes(sender.number, from..from + size);
            network.send_datagram(sender.client, udp_server(), &message);
            sender.sent += 1;
            sender.waiting.push_back(message);
        }
        self.receive_answers(sender);
        if self.one_in(2000) {
            sender.left = true;
            network.leave(sender.client);
        }
    }

    fn receive_answers(&self, sender: &mut DatagramPeer) {
        while let Some((from, got)) = self.rig.network.receive_datagram(sender.client) {
            assert_eq!(from, udp_server());
            let position = sender.waiting.iter().position(|waiting| *waiting == got);
            let position = position
                .expect("each answer is to a datagram that was sent, and the first one to it");
            // All empty datagrams are alike.
            if self.loses_no_datagrams() && !got.is_empty() {
                assert_eq!(
                    position, 0,
                    "sender {}: lost or out of order",
                    sender.number
                );
            }
            sender.waiting.drain(..=position);
        }
    }

    fn loses_no_datagrams(&self) -> bool {
        !self.conditions.strict && self.conditions.faults.send_error == 0.0
    }

    fn run(mut self) -> u32 {
        for round in 0.. {
            assert!(
                round < 200_000,
                "{} peers are never served",
                self.peers.len()
            );
            let pause = if self.one_in(100) { 200 } else { self.below(3) };
            self.rig
                .network
                .advance(Duration::from_millis(pause as u64));
            self.rig.turn();
            if self.connected < STREAM_PEERS && self.peers.len() < 15 && self.one_in(4) {
                self.connect_peer();
            }
            self.control();
            let mut peers = std::mem::take(&mut self.peers);
            peers.retain_mut(|peer| {
                self.act_as_peer(peer);
                !self.has_left(peer)
            });
            self.peers = peers;
            let mut senders = std::mem::take(&mut self.senders);
            senders
                .iter_mut()
                .for_each(|sender| self.act_as_source(sender));
            self.senders = senders;
            if self.connected == STREAM_PEERS && self.peers.is_empty() {
                break;
            }
        }
        self.end()
    }

    /// All peers have left: nothing may be left of them, and the counters add up.
    fn end(mut self) -> u32 {
        self.rig.network.set_faults(Faults::default());
        self.rig.run();
        self.handle_reports();
        assert!(!self.handing_over, "a hand-over comes to its end");
        self.rig.pass(LINGER + 2 * SECOND);
        let lossless = self.loses_no_datagrams();
        let mut senders = std::mem::take(&mut self.senders);
        for sender in &mut senders {
            self.act_as_source(sender);
            self.rig.run();
            self.receive_answers(sender);
            let all = sender.waiting.is_empty() || sender.left || !lossless;
            assert!(
                all,
                "sender {}: not every datagram is answered",
                sender.number
            );
        }
        for (service, (reply, _)) in self.services.iter().zip(REPLIES) {
            let totals = Totals::of([&*service.counters]);
            assert_eq!(
                totals.connections(),
                0,
                "{reply:?}: connections are counted out"
            );
            assert!(
                totals.bytes_sent <= totals.bytes_received,
                "{reply:?}: {totals:?}"
            );
            assert!(
                reply != Reply::Discard || totals.bytes_sent == 0,
                "{totals:?}"
            );
        }
        for service in &self.services[1..] {
            let permits = &service.gate.permits;
            assert!(
                (0..CONNECTIONS_MAX).all(|_| permits.try_take()),
                "every permit was returned"
            );
            assert!(!permits.try_take(), "no permit was returned twice");
        }
        self.rig.assert_nothing_left(CONNECTIONS_MAX);
        self.successors
    }
}

/// Everything that was taken from a gate was returned, and nothing twice.
fn assert_gate_is_even(gate: &Gate) {
    assert!(
        (0..CONNECTIONS_MAX).all(|_| gate.permits.try_take()),
        "every permit was returned"
    );
    assert!(!gate.permits.try_take(), "no permit was returned twice");
    for host in HOSTS {
        let first = gate.admit(host.parse().unwrap(), 1);
        assert_eq!(
            first,
            Ok(()),
            "every connection of a source was counted out"
        );
    }
}

/// The number of histories is in `ECHOD_TEST_SEEDS`.
#[test]
fn whatever_is_mixed_every_peer_gets_its_own_bytes_and_nothing_is_left_behind() {
    let seeds = std::env::var("ECHOD_TEST_SEEDS");
    let seeds: u64 = seeds.map_or(100, |seeds| seeds.parse().expect("a number of seeds"));
    let start = std::time::Instant::now();
    let successors: u32 = (0..seeds).map(|seed| Mixture::new(seed).run()).sum();
    assert!(
        successors > 0 || seeds < 10,
        "some histories have a hand-over"
    );
    println!(
        "{seeds} mixtures with {successors} successors took {:?}",
        start.elapsed()
    );
}
