//! `echoctl check`: the check of `echod` itself, so that both always agree.

use std::path::Path;
use std::process::{Command, ExitStatus, Output};

use crate::cli::exit::{self, Exit, Failure};
use crate::cli::text::cause;

/// Runs `echod --check`, which prints what it finds itself.
pub(super) fn check(file: Option<&Path>) -> Result<(), Failure> {
    let mut command = command(file);
    let status = command.status().map_err(|error| failed(&command, &error))?;
    match exit_of(status) {
        Some(Exit::Done) => Ok(()),
        // It has printed the reasons.
        Some(exit) => Err(Failure::quiet(exit)),
        None => Err(ended(&command, status)),
    }
}

/// The same, and returns the lines that it prints.
pub(super) fn check_quietly(file: Option<&Path>) -> Result<Vec<String>, Failure> {
    let mut command = command(file);
    let output = command.output().map_err(|error| failed(&command, &error))?;
    let Output {
        status,
        stdout,
        stderr,
    } = output;
    let lines = |bytes: &[u8]| -> Vec<String> {
        let text = String::from_utf8_lossy(bytes);
        let lines = text.lines();
        let lines = lines.map(|line| line.strip_prefix("echod: ").unwrap_or(line).to_owned());
        lines.collect()
    };
    match exit_of(status) {
        Some(Exit::Done) => Ok([lines(&stderr), lines(&stdout)].concat()),
        Some(exit) => Err(Failure {
            exit,
            messages: lines(&stderr),
        }),
        None => Err(ended(&command, status)),
    }
}

/// The echod beside us, else the one in PATH.
fn command(file: Option<&Path>) -> Command {
    let beside = std::env::current_exe()
        .ok()
        .map(|path| path.with_file_name("echod"));
    let program = beside
        .filter(|path| path.is_file())
        .unwrap_or_else(|| "echod".into());
    let mut command = Command::new(program);
    command.arg("--check");
    if let Some(file) = file {
        command.arg("--config").arg(file);
    }
    command
}

fn exit_of(status: ExitStatus) -> Option<Exit> {
    let mut exits = exit::ECHOD.iter();
    let exit = exits.find(|exit| status.code() == Some(**exit as i32));
    exit.copied()
}

fn failed(command: &Command, error: &std::io::Error) -> Failure {
    let program = command.get_program().display();
    Failure::new(format!("{program}: {}", cause(error)))
}

fn ended(command: &Command, status: ExitStatus) -> Failure {
    let program = command.get_program().display();
    Failure::new(format!("{program} --check: {status}"))
}
