//! What a reload has prepared: the sockets that each listener is to have.
//!
//! Knows which of them are new, which are in service, and which can't be bound yet. Does nothing;
//! new sockets are closed, and their files removed, when a [`Prepared`] is dropped.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::config::Address;
use crate::sys::process::Passed;
use crate::worker::mailbox::SocketId;

use crate::daemon::privileges::CreatedPath;
use crate::daemon::socket_file::LockWait;

use super::bind::Bound;

/// All that is needed for a configuration, bound and listening, except for what is [`Pending`].
#[derive(Debug, Default)]
pub(in crate::daemon) struct Prepared {
    /// The sockets that each of these listeners is to have. All others keep what they have.
    pub(super) sockets: BTreeMap<String, Vec<Planned>>,
    pub warnings: Vec<String>,
    /// What the service manager has passed and no listener has taken.
    pub left_over: Vec<Passed>,
    /// For what is bound at the commit: it has no time of its own to wait.
    pub(super) lock_wait: LockWait,
}

/// A socket that a listener is to have.
#[derive(Debug)]
pub(super) enum Planned {
    /// A new one.
    New(Bound),
    /// One in service.
    Kept(Kept),
    /// One or several that can't be bound before the commit.
    Pending(Pending),
}

impl Planned {
    /// Whether it will be bound beside sockets in service.
    pub(super) fn is_beside(&self) -> bool {
        matches!(self, Self::Pending(Pending::Beside { .. }))
    }
}

/// A socket in service that its listener keeps, or gets from another one.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) id: SocketId,
    /// As the listener's configuration has it.
    pub(super) address: Address,
    /// For workers that are to serve it and do not yet.
    pub(super) handles: Vec<(usize, OwnedFd)>,
    /// Workers that are to serve it no more.
    pub(super) leaving: Vec<usize>,
}

/// What is bound at the beginning of the commit, when nothing else can fail any more.
#[derive(Debug)]
pub(super) enum Pending {
    /// Sockets beside ones in service, at the same address or at one of which the other is a part:
    /// they would take clients and datagrams from those in service.
    Beside {
        address: Address,
        inet: SocketAddr,
        indexes: Range<usize>,
    },
    /// A socket at the path of one in service that is of the other kind.
    Replacing { path: PathBuf, id: SocketId },
}

impl Pending {
    /// Whether another socket of ours leaves its path for it.
    pub(super) fn replaces(&self) -> bool {
        matches!(self, Self::Replacing { .. })
    }
}

impl Prepared {
    /// New sockets.
    pub(super) fn bound(&self) -> impl Iterator<Item = &Bound> {
        let planned = self.sockets.values().flatten();
        planned.filter_map(|planned| match planned {
            Planned::New(bound) => Some(bound),
            Planned::Kept(_) | Planned::Pending(_) => None,
        })
    }

    /// The files of Unix sockets.
    pub(in crate::daemon) fn created_paths(&self) -> impl Iterator<Item = CreatedPath> {
        let files = self.bound().filter_map(|bound| bound.file.as_ref());
        files.map(|file| CreatedPath {
            path: file.path().into(),
            is_folder: false,
            keeps_group: false,
        })
    }
}
