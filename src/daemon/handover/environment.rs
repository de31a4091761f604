//! The environment variable by which a program that this process executes finds what it inherits:
//! the numbers of the carriers.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::cli::text::cause;
use crate::sys::handover as carriers;

/// Its name.
const VARIABLE: &str = "ECHOD_HANDOVER";

/// The environment of a successor: ours, with these carriers, and without the sockets that the
/// service manager has passed to us.
pub(in crate::daemon) fn of_successor(carriers: &[OwnedFd]) -> Vec<OsString> {
    let numbers: Vec<String> = carriers
        .iter()
        .map(|carrier| carrier.as_raw_fd().to_string())
        .collect();
    let mut environment: Vec<OsString> = std::env::vars_os()
        .filter(|(name, _)| !is_for_one_program(name.as_encoded_bytes()))
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            name
        })
        .collect();
    environment.push(format!("{VARIABLE}={}", numbers.join(" ")).into());
    environment
}

/// Whether a variable is meant for one program and not for the next.
pub(super) fn is_for_one_program(name: &[u8]) -> bool {
    name == VARIABLE.as_bytes() || name.starts_with(b"LISTEN_")
}

/// The carriers that the program before us has left in this process; none if there was no program.
/// To be called before anything is opened.
pub(super) fn inherited_carriers() -> Option<Result<Vec<OwnedFd>, String>> {
    let numbers = std::env::var_os(VARIABLE)?;
    let inherit = |numbers: BTreeSet<RawFd>| -> Result<Vec<OwnedFd>, String> {
        let carriers = numbers.into_iter().map(carriers::inherit);
        let carriers: io::Result<Vec<OwnedFd>> = carriers.collect();
        carriers.map_err(|error| cause(&error))
    };
    let text = numbers.to_string_lossy();
    // A set: a number that appears twice is one descriptor.
    let parsed: Result<BTreeSet<RawFd>, _> = text.split(' ').map(str::parse).collect();
    let inherited = parsed.map_err(|error| error.to_string()).and_then(inherit);
    Some(inherited.map_err(|error| format!("${VARIABLE} {numbers:?}: {error}")))
}
