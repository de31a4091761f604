//! How long a NAT or firewall keeps a silent flow.

mod search;

use super::Console;
use super::args::{IdleArgs, Path};
use super::interrupt::Interrupt;
use super::report::Verdict;
use crate::exit::Failure;

/// Does what the command line says.
///
/// # Errors
/// When the command line makes no sense for this service, or results can't be printed.
pub(super) fn run(
    args: &IdleArgs,
    path: &Path,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Verdict, Failure> {
    let _ = (args, path, console, interrupt);
    Err(Failure::new("not written yet"))
}
