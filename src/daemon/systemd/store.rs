//! Listening sockets that the service manager keeps for our successor, also after a crash
//! (`sd_pid_notify_with_fds(3)`, `FileDescriptorStoreMax=`).
//!
//! The manager's list follows ours: what is bound is kept, what a reload removes is dropped, so
//! that it never comes back. Each socket has a name of its own there, for the manager drops by name.

use std::collections::BTreeSet;

use crate::daemon::Daemon;
use crate::daemon::listeners::bind::Bound;
use crate::daemon::listeners::survivors::{stored_name, stored_number};
use crate::daemon::systemd::notify::Manager;

/// What the manager keeps.
#[derive(Debug, Default)]
pub(crate) struct Store {
    kept: BTreeSet<String>,
    last: u64,
}

impl Store {
    /// The manager keeps what has these names.
    pub(crate) fn know(&mut self, names: impl IntoIterator<Item = String>) {
        for name in names {
            self.last = self.last.max(stored_number(&name).unwrap_or(0));
            self.kept.insert(name);
        }
    }

    /// Has it keep these sockets, and nothing else.
    pub(crate) fn update<'a>(
        &mut self,
        sockets: impl Iterator<Item = &'a mut Bound>,
        manager: &Manager,
    ) {
        let mut wanted = BTreeSet::new();
        for socket in sockets {
            let name = socket.stored.get_or_insert_with(|| {
                self.last += 1;
                stored_name(self.last)
            });
            if !self.kept.contains(name) {
                match socket.fd.try_clone() {
                    Ok(fd) => manager.keep(name, vec![fd]),
                    Err(error) => {
                        log::warn!("{}: not kept over a crash: {error}", socket.address);
                    }
                }
            }
            wanted.insert(name.clone());
        }
        for name in self.kept.difference(&wanted) {
            manager.let_go(name);
        }
        self.kept = wanted;
    }
}

impl Daemon {
    /// Has the service manager keep what is bound, if it keeps anything.
    pub(crate) fn update_store(&mut self) {
        if let Some(manager) = self.manager.as_ref().filter(|manager| manager.keeps()) {
            self.store.update(self.listeners.own_sockets(), manager);
        }
    }

    /// Has it keep nothing any more: there is no successor.
    pub(crate) fn empty_store(&mut self) {
        if let Some(manager) = &self.manager {
            self.store.update(std::iter::empty(), manager);
        }
    }
}
