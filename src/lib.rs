//! echod: the echo service a network can rely on.
#![allow(missing_docs)]

pub mod echo;
pub mod policy;
pub mod stats;
pub mod sys;
pub mod driver;
pub mod worker;
