//! A conversation, line by line, as the tutorial's clients have it.

use std::time::Duration;

use super::Console;
use super::args::Path;
use super::interrupt::Interrupt;
use super::report::Verdict;
use super::target::Target;
use crate::exit::Failure;

/// Does what the command line says.
///
/// # Errors
/// When the command line makes no sense for this service, or results can't be printed.
pub(super) fn run(
    url: &Target,
    timeout: Duration,
    path: &Path,
    console: &Console,
    interrupt: &Interrupt,
) -> Result<Verdict, Failure> {
    let _ = (url, timeout, path, console, interrupt);
    Err(Failure::new("not written yet"))
}
