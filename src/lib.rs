//! echod: the echo service a network can rely on.
#![allow(missing_docs)]

pub mod control;
pub mod ctl;
pub mod daemon;
pub mod echo;
pub mod policy;
pub mod stats;

pub use ctl::main as echoctl_main;
