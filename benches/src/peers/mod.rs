//! The peers: echo servers as one writes them from the front page of each library, and what threads
//! and `epoll(7)` do by themselves.
//!
//! Each serves TCP, those that say so UDP too, on one address, on one thread (except the one that
//! is about threads), with a buffer of the same size and without delay for small answers.

mod compio;
mod epoll;
mod monoio;
mod threads;
mod tokio;

use std::net::SocketAddr;

use anyhow::Result;
use clap::ValueEnum;

/// What each connection reads into.
const BUFFER_BYTES: usize = 64 * 1024;

/// A peer that is part of this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    Tokio,
    Monoio,
    Compio,
    Epoll,
    Threads,
}

/// Serves until killed.
pub(crate) fn serve(peer: Peer, address: SocketAddr) -> Result<()> {
    match peer {
        Peer::Tokio => tokio::serve(address),
        Peer::Monoio => monoio::serve(address),
        Peer::Compio => compio::serve(address),
        Peer::Epoll => epoll::serve(address),
        Peer::Threads => threads::serve(address),
    }
}
