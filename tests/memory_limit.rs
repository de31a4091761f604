//! Starts under limits of the address space (RLIMIT_AS): each serves, or ends with a message and a
//! status, and never by a signal.

use std::process::Command;

use crate::drivers::has_io_uring;
use crate::harness::{Daemon, ECHOD, after_shell_line, exchange};

/// No program of ours needs more than this to be loaded, and none serves with it.
const LOAD_KIB_MAX: usize = 64 * 1024;

/// Enough for any start here.
const SERVE_KIB_MAX: usize = 1024 * 1024;

/// From one limit to the next. A worker allocates more than this beside what it maps.
const STEP_KIB: usize = 96;

fn limit(command: &mut Command, kib: usize) {
    // The allocator of each thread reserves memory of its own where it can get it, or not, as it
    // happens to be placed; with one for all, equal limits have equal outcomes.
    command.env("MALLOC_ARENA_MAX", "1");
    after_shell_line(command, &format!("ulimit -v {kib}"));
}

/// The lowest limit, to a step, at which this succeeds; it is assumed to fail below that.
fn lowest(mut fails: usize, mut succeeds: usize, succeeds_at: impl Fn(usize) -> bool) -> usize {
    while succeeds - fails > STEP_KIB {
        let middle = fails.midpoint(succeeds);
        if succeeds_at(middle) {
            succeeds = middle;
        } else {
            fails = middle;
        }
    }
    succeeds
}

/// Starts a daemon under this limit; says whether it serves. If it does not, it has said why.
fn serves(driver: &str, workers: usize, kib: usize) -> bool {
    let config = format!(
        "[daemon]\ndriver = \"{driver}\"\nworkers = {workers}\n\
         [listener.tcp]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n\
         [listener.udp]\nprotocol = \"udp\"\naddress = \"127.0.0.1:0\"\n"
    );
    let mut daemon = Daemon::spawn(&config, |command| limit(command, kib));
    let Some(status) = daemon.wait_until_ready_or_ended() else {
        return true;
    };
    let log = daemon.log();
    let at = format!("{driver}, {workers} workers, {kib} KiB: {status}: {log}");
    assert_eq!(status.code(), Some(1), "{at}");
    assert_eq!(log.lines().count(), 1, "{at}");
    assert!(log.contains("LimitAS="), "{at}");
    false
}

/// The lowest limit at which the program is loaded at all: below it, the dynamic linker or the
/// kernel ends it.
fn load_limit() -> usize {
    lowest(0, LOAD_KIB_MAX, |kib| {
        let mut command = Command::new(ECHOD);
        command.arg("--print-config");
        limit(&mut command, kib);
        // From its first line on it reports in its own words that there is no memory.
        let output = command.output().expect("a shell runs");
        matches!(output.status.code(), Some(0 | 1))
    })
}

/// What is allocated beside the mappings of a worker is small, and comes after them: where the limit
/// is a little too low for the last of these, there is nothing left for the first of those.
#[test]
fn a_start_without_memory_for_its_workers_ends_with_a_message_and_never_by_a_signal() {
    let loads_at = load_limit();
    let mut drivers = vec!["epoll"];
    if has_io_uring() {
        drivers.push("io_uring");
    }
    for driver in drivers {
        let workers = 3;
        let serves_at = lowest(loads_at, SERVE_KIB_MAX, |kib| serves(driver, workers, kib));
        // Closely where the last worker is the one that has too little, coarsely below that.
        let close = serves_at.saturating_sub(6 * 1024)..=serves_at;
        let coarse = loads_at + STEP_KIB..=serves_at;
        for kib in close.step_by(STEP_KIB).chain(coarse.step_by(20 * STEP_KIB)) {
            serves(driver, workers, kib);
        }
    }
}

#[test]
fn a_start_with_hardly_more_memory_than_the_program_itself_ends_with_a_message() {
    let loads_at = load_limit();
    for kib in (loads_at + STEP_KIB..loads_at + 6 * 1024).step_by(2 * STEP_KIB) {
        assert!(
            !serves("auto", 1, kib),
            "{kib} KiB are too few for a worker"
        );
    }
}

#[test]
fn a_start_with_enough_memory_serves() {
    let mut daemon = Daemon::spawn(
        "[listener.tcp]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n",
        |command| {
            limit(command, SERVE_KIB_MAX);
        },
    );
    daemon.wait_for_notification("READY=1");
    assert_eq!(exchange(&mut daemon.connect("tcp"), b"hello"), b"hello");
}
