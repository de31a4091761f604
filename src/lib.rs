//! echod: the echo service a network can rely on.
#![allow(missing_docs)]

pub mod config;
pub mod echo;
pub mod policy;
pub mod stats;
