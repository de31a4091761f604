//! Sockets that the service manager has bound and passes (`sd_listen_fds(3)`), and which listener
//! each is for.
//!
//! By its name (`FileDescriptorName=`) first: a listener serves all sockets of its own name, the
//! `.socket` unit alone defines where they are bound, and the listener binds nothing itself. Every
//! other socket is for the listener that has its address. What the manager passed it will pass
//! again, so such a socket is left as it is; only a backlog in the configuration changes it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::cli::text::cause;
use crate::config::{self, Address, Change, Config, Protocol};
use crate::daemon::record::Adopted;
use crate::sys::process::Passed;
use crate::sys::socket;

use super::bind::{self, Bound};
use super::place::{BoundAddress, address, protocol};
use super::survivors::Survivors;

/// Names that begin so are ours: no listener's sockets are called so.
const OURS: &str = "echod-";

/// Sockets that wait for their listeners.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    by_name: BTreeMap<String, Vec<OwnedFd>>,
    survivors: Survivors,
    // None in place of those that a listener has taken.
    others: Vec<Option<Passed>>,
    // Where they are, from the last on.
    places: BTreeMap<BoundAddress, Vec<usize>>,
}

impl Sockets {
    /// Whether no unit has passed any.
    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty() && self.others.is_empty()
    }

    /// The one place where it is seen what each name means.
    pub(crate) fn sort(mut passed: Vec<Passed>, config: &Config) -> Self {
        let mut sockets = Self {
            survivors: Survivors::take(&mut passed),
            ..Self::default()
        };
        for passed in passed {
            if config.listeners.contains_key(&passed.name) && !passed.name.starts_with(OURS) {
                let named = sockets.by_name.entry(passed.name).or_default();
                named.push(passed.fd);
            } else {
                sockets.others.push(Some(passed));
            }
        }
        for (index, passed) in sockets.others.iter().enumerate().rev() {
            let fd = passed.as_ref().map(|passed| &passed.fd);
            if let Some(place) = fd.filter(|fd| is_ready(fd)).and_then(BoundAddress::of) {
                sockets.places.entry(place).or_default().push(index);
            }
        }
        sockets
    }

    /// Whether there are sockets that have the listener's name.
    pub(crate) fn has_named(&self, listener: &config::Listener) -> bool {
        self.by_name.contains_key(&listener.name)
    }

    /// The sockets that have the listener's name. All workers serve each of streams; those of
    /// datagrams are spread.
    ///
    /// # Errors
    /// What is wrong with each that can't be served.
    pub(crate) fn take_named(
        &mut self,
        listener: &config::Listener,
        workers: usize,
    ) -> Result<Vec<Bound>, Vec<String>> {
        let name = &listener.name;
        let mut sockets = Vec::new();
        let mut failures = Vec::new();
        let named = self.by_name.remove(name).unwrap_or_default();
        for (index, fd) in named.into_iter().enumerate() {
            let place = describe(&fd);
            let socket = match misfit(&fd, listener.protocol) {
                Some(misfit) => Err(misfit),
                None => adopt(listener, fd, true, index, workers)
                    .map_err(|error| format!("passed socket {place}: {}", cause(&error))),
            };
            match socket {
                Ok(socket) => sockets.push(socket),
                Err(reason) => failures.push(format!("listener \"{name}\": {reason}")),
            }
        }
        if !failures.is_empty() {
            return Err(failures);
        }
        if let Some(note) = note_of_address(listener, &sockets) {
            log::info!("{note}");
        }
        Ok(sockets)
    }

    /// The sockets that are bound to this address of the listener: one, or those that a predecessor
    /// had bound and the manager has kept.
    ///
    /// # Errors
    /// Why it can't be served.
    pub(crate) fn take_at(
        &mut self,
        listener: &config::Listener,
        address: &Address,
        workers: usize,
    ) -> Result<Vec<Bound>, String> {
        let survivors = self.survivors.take_at(listener, address, workers);
        if !survivors.is_empty() {
            return Ok(survivors);
        }
        let place = BoundAddress::new(listener.protocol, address);
        let index = self.places.get_mut(&place).and_then(Vec::pop);
        let Some(Passed { fd, .. }) = index.and_then(|index| self.others[index].take()) else {
            return Ok(Vec::new());
        };
        let adopted = adopt(listener, fd, false, 0, workers);
        let name = &listener.name;
        adopted
            .map(|bound| {
                let address = address.clone();
                vec![Bound { address, ..bound }]
            })
            .map_err(|error| {
                let cause = cause(&error);
                format!("listener \"{name}\": passed socket {address}: {cause}")
            })
    }

    /// A warning for each socket that no listener has taken.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = String> {
        self.others.iter().flatten().map(|passed| {
            format!(
                "the service manager passed a socket named \"{}\", bound to {}, which no listener has as its address \
                 or name: it is not served",
                passed.name,
                describe(&passed.fd)
            )
        })
    }

    /// The sockets that no listener has taken. They stay open: the manager has bound them, so that
    /// nothing else can be bound there when a later configuration has a listener for one.
    pub(crate) fn into_left_over(self) -> Vec<Passed> {
        let named = self.by_name.into_iter().flat_map(|(name, sockets)| {
            let named = move |fd| Passed {
                name: name.clone(),
                fd,
            };
            sockets.into_iter().map(named)
        });
        self.others.into_iter().flatten().chain(named).collect()
    }
}

/// What comes of a reload that would bind a listener elsewhere, whose sockets were passed by its
/// name: they stay, and the operator gets a warning.
///
/// # Errors
/// When they can't serve it any more.
pub(crate) fn rebind_named(
    old: &config::Listener,
    new: &config::Listener,
    change: &Change,
) -> Result<String, String> {
    let name = &new.name;
    if old.protocol != new.protocol {
        return Err(format!(
            "listener \"{name}\": protocol \"{}\": its {} sockets are those of a .socket unit: change that too, and \
             start both again",
            new.protocol.name(),
            old.protocol.name()
        ));
    }
    let unused = change.keys.iter().map(String::as_str);
    let unused: Vec<&str> = unused
        .filter(|key| matches!(*key, "address" | "sockets"))
        .collect();
    Ok(format!(
        "listener \"{name}\": {}: not used, since its sockets are those of a .socket unit, which says where they are \
         and how many: change that, and start both again",
        unused.join(", ")
    ))
}

fn adopt(
    listener: &config::Listener,
    fd: OwnedFd,
    by_name: bool,
    index: usize,
    workers: usize,
) -> io::Result<Bound> {
    let (kind, _) = bind::kinds(listener.protocol);
    socket::adopt(fd.as_fd())?;
    socket::set_inherited(fd.as_fd(), &bind::inherited(listener))?;
    let serving = bind::servers(listener, index, 1, workers);
    Ok(Bound {
        address: address(&fd),
        kind,
        local: socket::local_address(fd.as_fd()),
        handles: bind::handles(&fd, serving)?,
        passed: Some(Adopted {
            by_name,
            backlog: socket::queue(fd.as_fd()).map(|queue| queue.effective),
        }),
        fd,
        file: None,
        stored: None,
    })
}

fn describe(fd: &OwnedFd) -> String {
    let place = address(fd).to_string();
    if place.is_empty() {
        "nowhere".into()
    } else {
        place
    }
}

/// Whether clients can reach it, as they can't a connection that the manager has accepted.
fn is_ready(fd: &OwnedFd) -> bool {
    protocol(fd).is_some_and(|protocol| !protocol.is_stream()) || socket::is_listening(fd.as_fd())
}

/// Why a socket can't serve a listener of its name, and what to do.
fn misfit(fd: &OwnedFd, wanted: Protocol) -> Option<String> {
    let place = describe(fd);
    let Some(found) = protocol(fd) else {
        return Some(format!(
            "the service manager passes something of this name that is neither a stream nor a datagram socket: use \
             {} in the .socket unit",
            directive(wanted)
        ));
    };
    if found != wanted {
        let (found, wanted, directive) = (found.name(), wanted.name(), directive(wanted));
        return Some(format!(
            "the service manager passes a {found} socket of this name, bound to {place}, but protocol is \"{wanted}\": \
             use {directive} in the .socket unit, or protocol = \"{found}\""
        ));
    }
    (!is_ready(fd)).then(|| {
        format!(
            "the service manager passes a connection of this name, at {place}: use Accept=no in the .socket unit"
        )
    })
}

fn directive(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "ListenStream=PORT",
        Protocol::Udp => "ListenDatagram=PORT",
        Protocol::UnixStream => "ListenStream=/PATH",
        Protocol::UnixDatagram => "ListenDatagram=/PATH",
    }
}

fn note_of_address(listener: &config::Listener, sockets: &[Bound]) -> Option<String> {
    let sorted = |addresses: &mut dyn Iterator<Item = String>| {
        let mut sorted: Vec<String> = addresses.collect();
        sorted.sort();
        sorted.dedup();
        sorted
    };
    let real = sorted(&mut sockets.iter().map(|socket| socket.address.to_string()));
    let configured = sorted(&mut listener.addresses.iter().map(ToString::to_string));
    (!real.is_empty() && real != configured).then(|| {
        format!(
            "listener \"{}\": {} is where the .socket unit has bound it; the configured {} is not used",
            listener.name,
            real.join(", "),
            configured.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn names_of_our_own_are_no_listeners() {
        let mut config = Config::embedded();
        let udp = config.listeners["udp"].clone();
        config.listeners.insert("echod-udp".into(), udp);
        let passed = ["udp", "echod-udp", "echod.socket", "unknown", "udp"].map(|name| Passed {
            name: name.into(),
            fd: UdpSocket::bind("127.0.0.1:0").unwrap().into(),
        });
        let sockets = Sockets::sort(passed.into(), &config);
        let named: Vec<_> = sockets.by_name.iter().collect();
        assert_eq!(
            (named.len(), named[0].0.as_str(), named[0].1.len()),
            (1, "udp", 2)
        );
        let others = sockets.others.iter().flatten();
        let others: Vec<_> = others.map(|other| &other.name).collect();
        assert_eq!(others, ["echod-udp", "echod.socket", "unknown"]);
    }
}
