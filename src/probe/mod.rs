//! echoprobe: a client for any echo service. In this version a placeholder that says so.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use crate::exit::{self, Failure};

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let asked = std::env::args().nth(1).unwrap_or_default();
    if asked == "--version" || asked == "-V" {
        println!("echoprobe {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    exit::end("echoprobe", Err(Failure::new(NOT_YET)))
}

const NOT_YET: &str = "not in this version: it comes with a later one. Until then nc speaks to an echo service: \
                       printf 'hello\\n' | nc -N 127.0.0.1 7007";
