//! echod: the echo service a network can rely on.
//!
//! This is the map; the modules are in the order in which they are best read. The first five decide
//! and can be read without knowing what a socket is; then comes what touches the kernel, and last
//! what runs.
//!
//! What holds everywhere:
//!
//! - Deciding code takes bytes and the time as arguments and returns what to do. It knows no
//!   socket, clock, thread or file.
//! - Workers share only the gates of their listeners, which are touched when a connection is
//!   accepted and when it is closed. Nothing on the path of a message allocates, locks or logs.
//! - The control plane never waits for a worker, nor a worker for it.
//! - `unsafe` is in [`sys`] and [`driver`] alone.

// Decides.

pub mod echo;

pub mod policy;

pub mod stats;

pub mod config;

pub mod protocol;

// Touches the kernel.

pub mod sys;

pub mod driver;

// Runs.

pub mod worker;

pub mod daemon;

pub mod ctl;

pub mod probe;

pub mod cli;

use std::process::ExitCode;

use clap::CommandFactory;

/// The program `echod`.
#[must_use]
pub fn echod_main() -> ExitCode {
    daemon::main()
}

/// The program `echoctl`.
#[must_use]
pub fn echoctl_main() -> ExitCode {
    let others = || vec![daemon::args::Args::command(), probe::args::Cli::command()];
    ctl::main(others)
}

/// The program `echoprobe`.
#[must_use]
pub fn echoprobe_main() -> ExitCode {
    probe::main()
}
