//! The UDP ports of this daemon, which its own UDP listeners refuse as source ports.
//!
//! Gathers the ports that are bound; which of them a listener refuses is decided by
//! [`crate::policy::RefusedPorts`].

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;

use socket2::Type;

use crate::config::{self, Protocol};
use crate::policy::SourcePorts;
use crate::sys::socket;

use super::bind::Bound;
use super::{Listeners, Prepared};
use crate::daemon::workers::Workers;

/// The ports that are served, or are about to be.
#[derive(Debug, Default)]
pub(super) struct OwnPorts {
    ports: BTreeSet<u16>,
    /// What `refuse-source-ports = "default"` is with them.
    default: SourcePorts,
}

impl OwnPorts {
    /// The source ports that a listener refuses while these ports are served. Other protocols have no
    /// use for the set, so theirs does not change with it.
    pub(super) fn source_ports(&self, listener: &config::Listener) -> SourcePorts {
        if listener.protocol == Protocol::Udp {
            listener.source_ports.or_default(&self.default)
        } else {
            SourcePorts::none()
        }
    }
}

impl Prepared {
    /// The ports of new UDP sockets.
    pub(super) fn udp_ports(&self) -> impl Iterator<Item = u16> {
        self.bound().filter_map(Bound::udp_port)
    }
}

impl Listeners {
    /// Makes listeners with `refuse-source-ports = "default"` refuse datagrams from each UDP port in
    /// service, and from these. Two daemons that serve the same port would answer each other without
    /// end otherwise.
    ///
    /// A listener that did not change has to follow, too: to be called whenever sockets are added or
    /// taken out of service. Only listeners whose set differs are configured anew.
    pub(in crate::daemon) fn refuse_own_ports(
        &mut self,
        more: impl IntoIterator<Item = u16>,
        workers: &Workers,
    ) {
        let sockets = self.sockets.iter().map(|socket| &socket.bound);
        let ports = sockets.filter_map(Bound::udp_port).chain(more).collect();
        // Listeners that are new or change get the present set by themselves.
        if self.own_ports.ports == ports {
            return;
        }
        let default = SourcePorts::of_services_and(ports.iter().copied());
        self.own_ports = OwnPorts { ports, default };
        for listener in self.in_service.values_mut() {
            let source_ports = self.own_ports.source_ports(&listener.config);
            if listener.source_ports != source_ports {
                listener.source_ports = source_ports;
                listener.configure(workers);
            }
        }
    }
}

/// The port of a UDP socket, as the kernel has bound it.
pub(in crate::daemon) fn udp_port(fd: BorrowedFd<'_>) -> Option<u16> {
    let local = socket::local_address(fd)?;
    (socket::kind(fd) == Some(Type::DGRAM)).then(|| local.port())
}
