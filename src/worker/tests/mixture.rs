//! All at once over the simulated driver: streams of every reply mode and datagrams, limits that
//! come and go, lists, kicks, retired sockets, the end of the service, and peers that vanish.

use std::collections::VecDeque;

use super::super::handover::Carried;
use super::super::sources::Entry;
use super::*;

/// Peers of streams in one history, of whom some come when others have gone.
const TALKERS: u32 = 40;

/// Connections that each listener may have.
const PLACES: u32 = 5;

/// The networks that peers come from. The last one is denied where some are.
const HOSTS: [&str; 3] = ["198.51.100.1", "203.0.113.1", "203.0.113.77"];

/// What the listeners answer: the first is the rig's, and has datagrams too.
const REPLIES: [(Reply, bool); 4] = [
    (Reply::Echo, false),
    (Reply::Upper, false),
    (Reply::Discard, false),
    (Reply::Echo, true),
];

/// Which histories: in calm ones nobody may lose anything but by their own doing.
struct Weather {
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
struct Guest {
    far: Far,
    number: u32,
    service: usize,
    total: usize,
    written: usize,
    read: usize,
    half_closed: bool,
    // Nothing but its own doing can cost it a byte.
    safe: bool,
    // It vanishes when it has come so far.
    vanishes_at: Option<usize>,
}

/// Somebody who sends datagrams.
struct Sender {
    client: Client,
    number: u32,
    sent: u32,
    waiting: VecDeque<Vec<u8>>,
    gone: bool,
}

/// A byte that tells whose it is, and where it belongs.
fn byte(number: u32, index: usize) -> u8 {
    let word = ((u64::from(number) << 40) | (index as u64 / 8)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (word ^ (word >> 32)).to_le_bytes()[index % 8]
}

fn bytes(number: u32, places: std::ops::Range<usize>) -> Vec<u8> {
    places.map(|index| byte(number, index)).collect()
}

struct Mixture {
    rig: Rig,
    weather: Weather,
    services: Vec<Service>,
    guests: Vec<Guest>,
    senders: Vec<Sender>,
    come: u32,
    finishing: bool,
    peer_ids: Vec<u64>,
    // Sockets on their way out, and how often a successor has taken over.
    retiring: usize,
    handing_over: bool,
    successors: u32,
}

impl Mixture {
    fn new(seed: u64) -> Self {
        let delay = Duration::from_millis(3);
        let weather = Weather {
            faults: match seed % 4 {
                0 => Faults {
                    delay,
                    ..Faults::default()
                },
                1 | 2 => Faults::rough(),
                _ => Faults::hostile(),
            },
            strict: seed / 4 % 2 == 1,
        };
        // In half of the histories only the worker's pauses keep a driver from reading a connection
        // that stalls.
        let weather = Weather {
            faults: match seed / 8 % 2 {
                0 => reading_on(weather.faults),
                _ => weather.faults,
            },
            ..weather
        };
        let rig = Rig::new(seed, weather.faults.clone(), PLACES, settings());
        let mut mixture = Self {
            rig,
            weather,
            services: Vec::new(),
            guests: Vec::new(),
            senders: Vec::new(),
            come: 0,
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
            mixture.senders.push(Sender {
                client: mixture.rig.network.client(address),
                number: 1000 + number,
                sent: 0,
                waiting: VecDeque::new(),
                gone: false,
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
                gate: Arc::new(Gate::new(Permits::new(PLACES, vec![rig.waker.clone()]))),
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
            self.rig.serve(id, SocketId(id.0), Kind::Stream, address);
        }
    }

    fn below(&self, bound: usize) -> usize {
        self.rig.network.below(bound)
    }

    fn one_in(&self, count: usize) -> bool {
        self.below(count) == 0
    }

    /// Gives a service other limits, if there are any in this history.
    fn configure(&mut self, index: usize) {
        if self.weather.strict {
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

    fn guest_comes(&mut self) {
        self.come += 1;
        let index = self.below(self.services.len());
        let service = &self.services[index];
        let host = HOSTS[self.below(HOSTS.len())].parse().unwrap();
        let from = SocketAddr::new(host, 10_000 + self.come as u16);
        let total = [0, 1, 100, 4096, 20_000, 70_000, 200_000][self.below(7)];
        let calm = !self.weather.strict && self.weather.faults.reset == 0.0;
        self.guests.push(Guest {
            far: self.rig.network.connect(from, service.address),
            number: self.come,
            service: index,
            total,
            written: 0,
            read: 0,
            half_closed: false,
            safe: calm && !service.retired && !self.finishing,
            vanishes_at: self.one_in(4).then(|| self.below(total + 1)),
        });
    }

    /// What is done to the service from above.
    fn control(&mut self) {
        match self.below(400) {
            // While everybody rests nothing else is asked for.
            _ if self.handing_over => {}
            18..21 if self.retiring == 0 && !self.finishing => {
                self.handing_over = true;
                self.rig.command(Command::HandOver);
            }
            0..10 => self.configure(self.below(self.services.len())),
            10..14 => self.rig.command(Command::ListPeers { query: 1 }),
            14..16 if self.weather.strict && !self.peer_ids.is_empty() => {
                let id = self.peer_ids[self.below(self.peer_ids.len())];
                self.rig.command(Command::ClosePeers {
                    query: 2,
                    ids: Arc::from([id]),
                });
            }
            16 if self.come > TALKERS / 2 && !self.services[3].retired => {
                self.services[3].retired = true;
                self.retiring = 1;
                self.rig.retire(SocketId(self.services[3].id.0));
            }
            17 if self.weather.strict && self.come > TALKERS / 2 => {
                self.finishing = true;
                self.rig.command(Command::Finish);
            }
            _ => {}
        }
        self.hear();
    }

    /// What the worker reports.
    fn hear(&mut self) {
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
                } => self.succeed(connections, sources, last_id),
                _ => {}
            }
        }
    }

    /// Another worker, on a driver of its own, goes on with everything.
    fn succeed(
        &mut self,
        connections: Vec<Carried<<Sim as Driver>::Socket>>,
        sources: Vec<(ListenerId, Entry)>,
        last: u64,
    ) {
        self.handing_over = false;
        self.successors += 1;
        for service in &self.services {
            assert_gate_is_even(&service.gate);
        }
        self.rig.replace_worker();
        for service in &mut self.services {
            let permits = Permits::new(PLACES, vec![self.rig.waker.clone()]);
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
        self.rig.command(Command::NumberFrom { last });
        for connection in connections {
            let of_it = |service: &&Service| service.id == connection.listener;
            let service = self.services.iter().find(of_it).expect("it is known");
            let source = connection.state.peer.map(|peer| peer.ip());
            let admission = service
                .gate
                .readmit(source, service.settings.max_per_source);
            self.rig.command(Command::TakeOver {
                connection,
                admission,
            });
        }
        for (listener, source) in sources {
            self.rig.command(Command::Remember { listener, source });
        }
        self.rig.serve_again();
    }

    fn guest_acts(&self, guest: &mut Guest) {
        let network = &self.rig.network;
        if guest.written < guest.total {
            let end = (guest.written + 1 + self.below(30_000)).min(guest.total);
            let message = bytes(guest.number, guest.written..end);
            guest.written += network.write(guest.far, &message);
        } else if !guest.half_closed {
            guest.half_closed = true;
            network.half_close(guest.far);
        }
        if self.one_in(3) {
            return;
        }
        let (reply, one_shot) = REPLIES[guest.service];
        let got = network.read(guest.far, 1 + self.below(40_000));
        let mut expected = bytes(guest.number, guest.read..guest.read + got.len());
        if reply == Reply::Upper {
            expected.make_ascii_uppercase();
        }
        assert!(
            got == expected,
            "guest {} of {reply:?}, one-shot {one_shot}: wrong bytes after {}",
            guest.number,
            guest.read
        );
        guest.read += got.len();
        let most = if reply == Reply::Discard {
            0
        } else {
            guest.written
        };
        assert!(
            guest.read <= most,
            "guest {}: more comes than was sent",
            guest.number
        );
    }

    /// Whether the guest has gone, as it should.
    fn guest_goes(&self, guest: &mut Guest) -> bool {
        let network = &self.rig.network;
        if guest
            .vanishes_at
            .is_some_and(|at| guest.written >= at && !guest.half_closed)
        {
            if self.one_in(2) {
                network.reset(guest.far);
            } else {
                network.close(guest.far);
            }
            return true;
        }
        let Some(end) = network.end(guest.far) else {
            return false;
        };
        if guest.safe {
            assert_eq!(end, End::Fin, "guest {}", guest.number);
            let (reply, one_shot) = REPLIES[guest.service];
            match reply {
                Reply::Discard => assert_eq!(guest.read, 0),
                _ if one_shot => assert_eq!(guest.read > 0, guest.total > 0),
                _ => assert_eq!(guest.read, guest.total, "guest {}", guest.number),
            }
        }
        if !guest.half_closed {
            network.half_close(guest.far);
        }
        true
    }

    fn sender_acts(&self, sender: &mut Sender) {
        let network = &self.rig.network;
        if !sender.gone && sender.sent < 200 && sender.waiting.len() < 20 && self.one_in(2) {
            let size = match self.below(20) {
                0 => 65_507,
                1 => 0,
                // Some of one size, which may come in one buffer.
                2..10 => 700,
                _ => self.below(1500),
            };
            let from = sender.sent as usize * 70_000;
            let message = bytes(sender.number, from..from + size);
            network.send_datagram(sender.client, udp_server(), &message);
            sender.sent += 1;
            sender.waiting.push_back(message);
        }
        self.sender_receives(sender);
        if self.one_in(2000) {
            sender.gone = true;
            network.leave(sender.client);
        }
    }

    fn sender_receives(&self, sender: &mut Sender) {
        while let Some((from, got)) = self.rig.network.receive_datagram(sender.client) {
            assert_eq!(from, udp_server());
            let place = sender.waiting.iter().position(|waiting| *waiting == got);
            let place = place.expect("an answer to something that was asked, for the first time");
            // An empty one looks like any other of them.
            if self.loses_no_datagrams() && !got.is_empty() {
                assert_eq!(place, 0, "sender {}: lost or out of order", sender.number);
            }
            sender.waiting.drain(..=place);
        }
    }

    fn loses_no_datagrams(&self) -> bool {
        !self.weather.strict && self.weather.faults.send_error == 0.0
    }

    fn run(mut self) -> u32 {
        for round in 0.. {
            assert!(
                round < 200_000,
                "{} guests are never served",
                self.guests.len()
            );
            let pause = if self.one_in(100) { 200 } else { self.below(3) };
            self.rig
                .network
                .advance(Duration::from_millis(pause as u64));
            self.rig.turn();
            if self.come < TALKERS && self.guests.len() < 15 && self.one_in(4) {
                self.guest_comes();
            }
            self.control();
            let mut guests = std::mem::take(&mut self.guests);
            guests.retain_mut(|guest| {
                self.guest_acts(guest);
                !self.guest_goes(guest)
            });
            self.guests = guests;
            let mut senders = std::mem::take(&mut self.senders);
            senders
                .iter_mut()
                .for_each(|sender| self.sender_acts(sender));
            self.senders = senders;
            if self.come == TALKERS && self.guests.is_empty() {
                break;
            }
        }
        self.end()
    }

    /// Everybody has gone: nothing may be left of them, and everything adds up.
    fn end(mut self) -> u32 {
        self.rig.network.set_faults(Faults::default());
        self.rig.run();
        self.hear();
        assert!(!self.handing_over, "who is asked to rest does");
        self.rig.pass(LINGER + 2 * SECOND);
        let lossless = self.loses_no_datagrams();
        let mut senders = std::mem::take(&mut self.senders);
        for sender in &mut senders {
            self.sender_acts(sender);
            self.rig.run();
            self.sender_receives(sender);
            let all = sender.waiting.is_empty() || sender.gone || !lossless;
            assert!(all, "sender {}: not all is answered", sender.number);
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
                (0..PLACES).all(|_| permits.try_take()),
                "every permit has come back"
            );
            assert!(!permits.try_take(), "no permit has come back twice");
        }
        self.rig.assert_nothing_left(PLACES);
        self.successors
    }
}

/// All that was taken of a gate has come back, and nothing twice.
fn assert_gate_is_even(gate: &Gate) {
    assert!(
        (0..PLACES).all(|_| gate.permits.try_take()),
        "every permit has come back"
    );
    assert!(!gate.permits.try_take(), "no permit has come back twice");
    for host in HOSTS {
        let first = gate.admit(host.parse().unwrap(), 1);
        assert_eq!(first, Ok(()), "every place of a source has come back");
    }
}

/// So many histories: `ECHOD_TEST_SEEDS`, or a part of them.
#[test]
fn whatever_is_mixed_everybody_gets_their_own_and_nothing_is_left_behind() {
    let seeds = std::env::var("ECHOD_TEST_SEEDS");
    let seeds: u64 = seeds.map_or(100, |seeds| seeds.parse().expect("a number of seeds"));
    let start = std::time::Instant::now();
    let successors: u32 = (0..seeds).map(|seed| Mixture::new(seed).run()).sum();
    assert!(successors > 0 || seeds < 10, "nobody was succeeded");
    println!(
        "{seeds} mixtures with {successors} successors took {:?}",
        start.elapsed()
    );
}

#[test]
fn a_client_on_the_way_in_while_when_full_changes_costs_no_permit_and_brings_none() {
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
