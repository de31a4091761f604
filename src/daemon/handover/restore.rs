//! The successor's side: listeners, connections and sources of datagrams continue in its workers.
//!
//! Connections come first and listening sockets last, so that a client that connects now finds the
//! limits as they were.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::cli::text::counted;
use crate::config::{self, Config};
use crate::daemon::listeners::{Listeners, udp_port};
use crate::daemon::record::{self, Name};
use crate::daemon::workers::Workers;
use crate::policy::CloseReason;
use crate::protocol::schema::UpgradeResult;
use crate::sys::message::{Source as Peer, UnixName};
use crate::worker::mailbox::{
    Command, Destination, ListenerId, SocketId, SourceEntry, TransferredConnection,
};
use crate::worker::transfer::instant_before;

use super::clock;
use super::predecessor::{Predecessor, load};

impl Predecessor {
    /// Continues everything except the control socket. Returns the configuration that was in force,
    /// and the result for the caller of the upgrade.
    pub(in crate::daemon) fn restore(
        mut self,
        listeners: &mut Listeners,
        workers: &Workers,
    ) -> (Config, UpgradeResult) {
        let config = self
            .config()
            .unwrap_or_else(|| load("nothing", config::EMBEDDED).expect("it is built in"));
        let retired = |text: &str| {
            let config = load("a retired listener's configuration", text)?;
            config.listeners.into_values().next()
        };
        workers.command_all(|_| Command::ContinueIdsAfter {
            last: self.record.last_peer,
        });
        let mut described = std::mem::take(&mut self.record.listeners);
        self.count_missing(&mut described);
        let elapsed = Duration::from_nanos(self.elapsed());
        let ids = listeners.restore(&described, &config, retired, elapsed, workers);
        listeners.restore_departed(&self.record.departed);
        let (kept, lost) = self.restore_connections(&ids, listeners, workers);
        self.restore_sources(&ids, workers);
        self.restore_sockets(&described, listeners, workers);
        let result = self.result(listeners.count() as u64, kept, lost);
        self.log(&result);
        (config, result)
    }

    /// A connection whose descriptor is missing is counted as closed.
    fn count_missing(&self, listeners: &mut [record::Listener]) {
        for connection in &self.record.connections {
            if self.descriptors.get(connection.descriptor).is_none()
                && let Some(listener) = listeners.get_mut(connection.listener)
            {
                listener.totals.closed += 1;
                listener.totals.closed_by[CloseReason::Failed as usize] += 1;
            }
        }
    }

    /// Returns how many connections continue, and how many do not.
    fn restore_connections(
        &mut self,
        ids: &[Option<ListenerId>],
        listeners: &Listeners,
        workers: &Workers,
    ) -> (u64, u64) {
        let elapsed = self.elapsed();
        let (mut kept, mut lost) = (0, 0);
        // The unsent bytes of all connections, one behind the other.
        let mut unsent = std::mem::take(&mut self.unsent).into_iter();
        for mut connection in std::mem::take(&mut self.record.connections) {
            let unsent: Vec<u8> = unsent.by_ref().take(connection.unsent).collect();
            let listener = ids.get(connection.listener).copied().flatten();
            let socket = self.descriptor(connection.descriptor);
            let Some((listener, socket)) = listener.zip(socket) else {
                lost += 1;
                continue;
            };
            connection.state.age += elapsed;
            let source = connection.state.peer.map(|peer| peer.ip());
            let Some(admission) = listeners.readmit(listener, source) else {
                lost += 1;
                continue;
            };
            let transferred = TransferredConnection {
                listener,
                socket,
                unsent,
                state: connection.state,
                admission,
            };
            kept += 1;
            listeners.take_over(connection.worker, transferred, workers);
        }
        (kept, lost)
    }

    fn restore_sources(&mut self, ids: &[Option<ListenerId>], workers: &Workers) {
        let (now, elapsed) = (Instant::now(), self.elapsed());
        for source in std::mem::take(&mut self.record.sources) {
            let listener = ids.get(source.listener).copied().flatten();
            let name = match source.source {
                Name::Inet(address) => Some(Peer::Inet(address)),
                Name::Unix(ref bytes) => UnixName::from_bytes(bytes).map(Peer::Unix),
            };
            let Some((listener, name)) = listener.zip(name) else {
                // Its listener is not there any more, or its name is none on this kernel.
                continue;
            };
            let entry = SourceEntry {
                id: source.id,
                source: name,
                destination: Destination {
                    socket: SocketId(source.socket),
                    address: source.address,
                },
                first: instant_before(now, source.age + elapsed),
                last: instant_before(now, source.idle + elapsed),
                bytes_received: source.bytes_received,
                bytes_sent: source.bytes_sent,
            };
            workers.command(
                source.worker % workers.count(),
                Command::AddSource {
                    listener,
                    source: entry,
                },
            );
        }
    }

    fn restore_sockets(
        &mut self,
        described: &[record::Listener],
        listeners: &mut Listeners,
        workers: &Workers,
    ) {
        // All ports are known before the first socket is served, so that no datagram from one of
        // them is answered.
        let sockets = described.iter().flat_map(|listener| &listener.sockets);
        let ports = sockets.filter_map(|socket| {
            udp_port(self.descriptors.get(socket.descriptor)?.as_ref()?.as_fd())
        });
        let ports: Vec<u16> = ports.collect();
        listeners.refuse_own_ports(ports, workers);
        for listener in described {
            let descriptor = |place: usize| self.descriptors.get_mut(place)?.take();
            listeners.restore_sockets(listener, descriptor, workers);
        }
    }

    fn descriptor(&mut self, place: usize) -> Option<std::os::fd::OwnedFd> {
        self.descriptors.get_mut(place)?.take()
    }

    fn result(&self, listeners: u64, connections: u64, lost: u64) -> UpgradeResult {
        let pause = Duration::from_nanos(clock().saturating_sub(self.record.stopped));
        UpgradeResult {
            from: self.record.program.clone(),
            to: env!("CARGO_PKG_VERSION").into(),
            listeners,
            connections,
            lost,
            pause_us: pause.as_micros() as u64,
            warnings: Vec::new(),
        }
    }

    fn log(&self, result: &UpgradeResult) {
        let way = if self.executed { "exec" } else { "restart" };
        let UpgradeResult {
            from,
            listeners,
            connections,
            lost,
            ..
        } = result;
        let pause = Duration::from_micros(result.pause_us);
        log::info!(
            "took over from echod {from} by {way}: {}, {}; the pause was {pause:.1?}",
            counted(*listeners, "listener"),
            counted(*connections, "connection")
        );
        if *lost > 0 {
            let lost = counted(*lost, "connection");
            log::error!("{lost} of the predecessor could not be kept");
        }
    }
}
