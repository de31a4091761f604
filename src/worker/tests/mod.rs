//! Whole workers over the simulated driver: virtual time, seeded faults, no sockets.
//!
//! A failure names its seed, and one seed is one history.

mod closing;
mod datagrams;
mod handover;
mod intake;
mod listening;
mod mixture;
mod pace;
mod peers;
mod relaying;
mod streams;
mod timeouts;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::driver::sim::{Client, End, Faults, Network, Peer as RemotePeer, Sim};
use crate::driver::{Driver, Permits, Waker};
use crate::echo::Reply;
use crate::policy::limits::{LINGER, Timeouts, WhenFull};
use crate::policy::{Access, CloseReason, Intake, Refusal, SourcePorts};
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
    commands: Sender<SimCommand>,
    reports: Receiver<SimReport>,
    waker: Waker,
    counters: Arc<Counters>,
    gate: Arc<Gate>,
    ports: u16,
    // All bound sockets: a successor serves them, too.
    sockets: Vec<(ListenerId, SocketId, SocketKind, <Sim as Driver>::Socket)>,
}

type SimCommand = Command<<Sim as Driver>::Socket>;
type SimReport = Report<<Sim as Driver>::Socket>;

/// A worker on a driver of its own, and the control plane's ends of its mailbox.
fn worker(
    busy_poll: Duration,
    network: &Network,
) -> (Worker<Sim>, Sender<SimCommand>, Receiver<SimReport>) {
    let (commands, command_receiver) = channel();
    let (report_sender, reports) = channel();
    let mailbox = Mailbox {
        commands: command_receiver,
        reports: report_sender,
        control: Waker::new().unwrap(),
    };
    let worker = Worker::new(0, 1, busy_poll, Sim::new(network), mailbox);
    (worker, commands, reports)
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
        refuse_source_ports: SourcePorts::default(),
        intake: Intake::default(),
    }
}

fn with(timeouts: Timeouts) -> Settings {
    Settings {
        timeouts,
        ..settings()
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
        let (worker, commands, reports) = worker(busy_poll, &network);
        let waker = worker.driver.waker();
        let mut rig = Self {
            worker,
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

    /// Serves a new socket, which stays open when the worker closes its handle.
    fn serve(&mut self, listener: ListenerId, id: SocketId, kind: SocketKind, address: SocketAddr) {
        let socket = self.network.bind(address);
        self.network.hold(socket, true);
        self.sockets.push((listener, id, kind, socket));
        self.add_socket(self.sockets.len() - 1);
    }

    fn add_socket(&self, index: usize) {
        let (listener, id, kind, socket) = self.sockets[index];
        self.command(Command::AddSocket {
            listener,
            id,
            kind,
            socket,
        });
    }

    fn serve_again(&self) {
        (0..self.sockets.len()).for_each(|index| self.add_socket(index));
    }

    /// Retires a socket: no successor serves it.
    fn retire(&mut self, id: SocketId) {
        for (.., socket) in self.sockets.extract_if(.., |(_, known, ..)| *known == id) {
            self.network.hold(socket, false);
        }
        self.command(Command::RetireSocket { id });
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

    fn command(&self, command: SimCommand) {
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
        let totals = self.totals();
        assert_eq!(totals.closed_by.iter().sum::<u64>(), totals.closed);
        assert_eq!(
            totals.connections(),
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
