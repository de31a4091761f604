//! Where the figures are from: the machine, the kernel, the versions of everything, the day.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use crate::contender::{Contender, Program, find_program};

/// The exact versions of the libraries that the peers are made of.
const LOCK: &str = include_str!("../Cargo.lock");

/// One line for each fact: what, and its value.
pub(crate) fn facts(echod: &Path, contenders: &[&Contender]) -> Vec<(String, String)> {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let day = now.split('T').next().unwrap_or_default().to_owned();
    let mut facts = vec![
        ("date".into(), day),
        ("processor".into(), processor()),
        ("memory".into(), memory()),
        ("kernel".into(), kernel()),
        ("rustc".into(), first_line("rustc", "--version")),
        (
            "echod".into(),
            first_line(&echod.to_string_lossy(), "--version"),
        ),
    ];
    for contender in contenders {
        let version = match contender.program {
            Program::Echod { .. } => continue,
            Program::Peer(_) => match locked_version(contender.name) {
                Some(version) => version,
                None => continue,
            },
            Program::Foreign(foreign) => match find_program(foreign.name()) {
                Some(path) => first_line(&path.to_string_lossy(), foreign.version_option()),
                None => continue,
            },
        };
        facts.push((contender.name.into(), version));
    }
    facts
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {count} CPUs", name.unwrap_or_else(|| "unknown".into()))
}

fn memory() -> String {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| {
        let kib = line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?;
        kib.trim().parse::<f64>().ok()
    });
    kib.map_or_else(
        || "unknown".into(),
        |kib| format!("{:.1} GiB", kib / 1024.0 / 1024.0),
    )
}

fn kernel() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("Linux {}", text.trim())
}

/// The first line with a figure in it that a program says of itself.
fn first_line(program: &str, option: &str) -> String {
    let Ok(output) = Command::new(program).arg(option).output() else {
        return "unknown".into();
    };
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let line = said
        .lines()
        .find(|line| line.chars().any(|character| character.is_ascii_digit()));
    line.unwrap_or("unknown").trim().into()
}

fn locked_version(name: &str) -> Option<String> {
    let package = format!("[[package]]\nname = \"{name}\"\nversion = \"");
    let (_, rest) = LOCK.split_once(&package)?;
    Some(rest.split('"').next()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_a_peer_is_that_of_its_library() {
        let version = locked_version("tokio").expect("it is locked");
        assert!(version.starts_with("1."), "{version}");
        assert_eq!(locked_version("threads"), None);
    }
}
