//! The UDP ports of this daemon, which its own UDP listeners refuse as source ports.
//!
//! Gathers the ports that are bound; which of them a listener refuses is decided by
//! [`crate::policy::RefusedPorts`].

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};

use socket2::Type;

use crate::config::{self, Protocol};
use crate::policy::SourcePorts;
use crate::sys::socket;

use super::{Listeners, Prepared};
use crate::daemon::workers::Workers;

impl Prepared {
    /// The ports of new UDP sockets.
    pub(super) fn udp_ports(&self) -> impl Iterator<Item = u16> {
        self.bound().filter_map(|bound| udp_port(bound.fd.as_fd()))
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
        let sockets = self.in_service.values().flat_map(|known| &known.sockets);
        let ports = sockets.filter_map(|socket| udp_port(socket.bound.fd.as_fd()));
        self.own_ports = ports.chain(more).collect();
        for listener in self.in_service.values_mut() {
            let source_ports = source_ports(&listener.config, &self.own_ports);
            if listener.source_ports != source_ports {
                listener.source_ports = source_ports;
                listener.configure(workers);
            }
        }
    }
}

/// The source ports that a listener refuses while these UDP ports are served. Other protocols have
/// no use for the set, so theirs does not change with it.
pub(super) fn source_ports(listener: &config::Listener, own: &BTreeSet<u16>) -> SourcePorts {
    if listener.protocol == Protocol::Udp {
        listener.source_ports.with_own(own.iter().copied())
    } else {
        SourcePorts::none()
    }
}

/// The port of a UDP socket, as the kernel has bound it.
pub(in crate::daemon) fn udp_port(fd: BorrowedFd<'_>) -> Option<u16> {
    let local = socket::local_address(fd)?;
    (socket::kind(fd) == Some(Type::DGRAM)).then(|| local.port())
}
