//! The servers that are compared, by names that documents and scripts rely on.

use std::path::{Path, PathBuf};

use crate::peers::Peer;
use crate::scenario::Scenario;

/// All ratios are to this one.
pub(crate) const BASE: &str = "tokio";

/// A server that takes part.
#[derive(Debug)]
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    /// One line for people.
    pub(crate) about: &'static str,
    pub(crate) program: Program,
    pub(crate) serves_udp: bool,
    /// It does not sleep, and is therefore started for each sample, in quiet scenarios only.
    pub(crate) spins: bool,
}

/// What is run.
#[derive(Debug)]
pub(crate) enum Program {
    /// The daemon, with this driver.
    Echod { driver: &'static str },
    /// A subcommand of this program.
    Peer(Peer),
    /// A program of the system, if it is there.
    Foreign(Foreign),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Foreign {
    Xinetd,
    Socat,
    Ncat,
}

impl Foreign {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Xinetd => "xinetd",
            Self::Socat => "socat",
            Self::Ncat => "ncat",
        }
    }

    /// What makes it say its version.
    pub(crate) fn version_option(self) -> &'static str {
        match self {
            Self::Xinetd => "-version",
            Self::Socat => "-V",
            Self::Ncat => "--version",
        }
    }
}

impl Contender {
    pub(crate) fn takes_part(&self, scenario: &Scenario) -> bool {
        (self.serves_udp || !scenario.load.is_udp())
            && (!self.spins || scenario.is_quiet())
            && (scenario.gentle || !matches!(self.program, Program::Foreign(_)))
    }

    pub(crate) fn is_ours(&self) -> bool {
        matches!(self.program, Program::Echod { .. })
    }
}

/// A program of this name in one of the folders where programs are.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Daemons are often not on a user's path.
    std::env::split_paths(&path)
        .chain([Path::new("/usr/sbin").into()])
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// A peer of ours that serves TCP alone, or UDP too.
const fn peer(name: &'static str, about: &'static str, peer: Peer, serves_udp: bool) -> Contender {
    Contender {
        name,
        about,
        program: Program::Peer(peer),
        serves_udp,
        spins: false,
    }
}

const fn foreign(name: &'static str, about: &'static str, program: Foreign) -> Contender {
    Contender {
        name,
        about,
        program: Program::Foreign(program),
        serves_udp: false,
        spins: false,
    }
}

const fn echod(
    name: &'static str,
    about: &'static str,
    driver: &'static str,
    spins: bool,
) -> Contender {
    Contender {
        name,
        about,
        program: Program::Echod { driver },
        serves_udp: true,
        spins,
    }
}

/// All there are, in the order in which they are shown.
pub(crate) const CONTENDERS: &[Contender] = &[
    echod(
        "echod-io_uring",
        "echod, driver io_uring",
        "io_uring",
        false,
    ),
    echod("echod-epoll", "echod, driver epoll", "epoll", false),
    echod(
        "echod-io_uring-busy",
        "echod, driver io_uring, busy-poll",
        "io_uring",
        true,
    ),
    echod(
        "echod-epoll-busy",
        "echod, driver epoll, busy-poll",
        "epoll",
        true,
    ),
    peer(
        "tokio",
        "tokio, a task for each connection, one thread",
        Peer::Tokio,
        true,
    ),
    peer(
        "monoio",
        "monoio, a task for each connection, io_uring",
        Peer::Monoio,
        false,
    ),
    peer(
        "compio",
        "compio, a task for each connection, io_uring",
        Peer::Compio,
        false,
    ),
    peer(
        "epoll",
        "a loop around epoll_wait, one read and one write for each event",
        Peer::Epoll,
        false,
    ),
    peer(
        "threads",
        "a thread for each connection, blocking",
        Peer::Threads,
        true,
    ),
    foreign(
        "xinetd",
        "xinetd, its internal echo service, a process for each connection",
        Foreign::Xinetd,
    ),
    foreign(
        "socat",
        "socat, a process for each connection, through a pipe",
        Foreign::Socat,
    ),
    foreign("ncat", "ncat, a cat for each connection", Foreign::Ncat),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_given_once_and_the_base_is_there() {
        for (index, contender) in CONTENDERS.iter().enumerate() {
            let found = CONTENDERS.iter().position(|one| one.name == contender.name);
            assert_eq!(found, Some(index));
        }
        let base = CONTENDERS.iter().find(|contender| contender.name == BASE);
        assert!(base.is_some_and(|base| base.serves_udp));
    }
}
