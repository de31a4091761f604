//! `echoctl check`: the check of `echod` itself, so that both always agree.

use std::path::Path;
use std::process::Command;

use crate::cli::exit::{self, Exit, Failure};

/// Runs `echod --check`: the one beside us, else the one in PATH.
pub(super) fn check(file: Option<&Path>) -> Result<(), Failure> {
    let beside = std::env::current_exe()
        .ok()
        .map(|path| path.with_file_name("echod"));
    let program = beside
        .filter(|path| path.is_file())
        .unwrap_or_else(|| "echod".into());
    let mut command = Command::new(&program);
    command.arg("--check");
    if let Some(file) = file {
        command.arg("--config").arg(file);
    }
    let status = command
        .status()
        .map_err(|cause| Failure::new(format!("{}: {cause}", program.display())))?;
    let mut exits = exit::ECHOD.iter();
    match exits.find(|exit| status.code() == Some(**exit as i32)) {
        Some(Exit::Done) => Ok(()),
        // It has printed the reasons.
        Some(exit) => Err(Failure::quiet(*exit)),
        None => Err(Failure::new(format!(
            "{} --check: {status}",
            program.display()
        ))),
    }
}
