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

mod echo;

mod policy;

mod stats;

mod config;

mod protocol;

// Touches the kernel.

mod sys;

mod driver;

// Runs.

mod worker;

mod daemon;

mod ctl;

mod probe;

mod cli;

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

/// What the tests and benchmarks of this repository need of the library. It is no interface: it
/// changes as they do.
#[doc(hidden)]
pub mod internals {
    pub use crate::cli::exit;
    pub use crate::config::{Source as ConfigSource, load as load_config};
    pub use crate::driver::buffers::BUFFER_BYTES;
    pub use crate::driver::epoll::Epoll;
    pub use crate::driver::uring::Uring;
    pub use crate::driver::{Completion, Driver, Envelope, Op, Permits, Source, Waker};
    pub use crate::echo::{Reply, Stream};
    pub use crate::policy::limits::{Activity, Timeouts, WhenFull};
    pub use crate::policy::{Access, CloseReason, Intake, Refusal, SourcePorts};
    pub use crate::protocol::METHODS;
    pub use crate::protocol::schema::{ChangeAction, ListenerState};
    pub use crate::stats::{Counters, Totals};
    pub use crate::sys::handover::{put_into_carriers, store};
    pub use crate::sys::process::raise_descriptor_limit;
    pub use crate::sys::{measure, socket};
    pub use crate::worker::Worker;
    pub use crate::worker::mailbox::{
        Command, Destination, Gate, ListenerId, Mailbox, Settings, SocketId, SocketKind,
        SourceEntry,
    };
    pub use crate::worker::sources::SourceTable;
    pub use crate::worker::timers::Timers;
}
