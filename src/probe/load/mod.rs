//! As much as a service takes, or so much each second.

mod axis;
mod curve;
mod doubts;
mod figures;
mod hdr;
mod header;
mod histogram;
mod json;
mod measured;
mod picture;
#[cfg(test)]
mod sample;
mod show;

use super::Console;
use super::args::{LoadArgs, Path};
use super::interrupt::Interrupt;
use super::report::Verdict;
use crate::exit::Failure;

/// Does what the command line says.
///
/// # Errors
/// When the command line makes no sense for this service, or results can't be printed.
pub(super) fn run(
    args: &LoadArgs,
    path: &Path,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Verdict, Failure> {
    let _ = (args, path, console, interrupt);
    Err(Failure::new("not written yet"))
}
