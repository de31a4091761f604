//! The largest datagram that passes each way unfragmented.

mod search;
mod survey;

use super::Console;
use super::args::{MtuArgs, Path};
use super::interrupt::Interrupt;
use super::report::Verdict;
use crate::exit::Failure;

/// Does what the command line says.
///
/// # Errors
/// When the command line makes no sense for this service, or results can't be printed.
pub(super) fn run(
    args: &MtuArgs,
    path: &Path,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Verdict, Failure> {
    let _ = (args, path, console, interrupt);
    Err(Failure::new("not written yet"))
}
