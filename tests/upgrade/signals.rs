//! Signals and upgrades: what was inherited from a parent, and what arrives in between.

use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::json;

use crate::harness::{Daemon, after_shell_line, eventually, exchange, run};
use crate::watchdog::Stopped;

use super::{CONFIG, upgrade, upgrade_by_signal};

#[test]
fn what_the_parent_ignored_and_blocked_does_not_matter() {
    let mut daemon = Daemon::start_with(CONFIG, |command| {
        let line = "exec env --ignore-signal --block-signal \"$0\" \"$@\"";
        after_shell_line(command, line);
    });
    upgrade(&daemon);
    upgrade_by_signal(&daemon);
    let generation = |daemon: &Daemon| daemon.ctl_json(&["status"])["status"]["generation"].clone();
    daemon.write_config(&format!("{CONFIG}[defaults]\nreply = \"upper\"\n"));
    daemon.signal(Signal::SIGHUP);
    eventually("it has reloaded", || generation(&daemon) == 2);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
}

/// The program that is asked inherits the mask of the thread that asks.
#[test]
fn a_program_that_is_asked_has_no_signal_blocked() {
    let daemon = super::start_copy(CONFIG);
    let script = "grep SigBlk /proc/self/status >{dir}/mask; exec {echod} \"$@\"";
    super::replace_by_script(&daemon, script);
    upgrade(&daemon);
    let mask = std::fs::read_to_string(daemon.path("mask")).unwrap();
    assert_eq!(mask, "SigBlk:\t0000000000000000\n");
}

#[test]
fn a_reload_that_is_requested_while_the_workers_are_stopped_takes_place() {
    use std::io::Write;

    let daemon = Daemon::start(&format!("[daemon]\nworkers = 2\n{CONFIG}"));
    let mut peer = daemon.connect("main");
    assert_eq!(exchange(&mut peer, b"x"), b"x");
    let mut control = daemon.control();
    assert!(control.ask("GetStatus", &json!({})).is_some());
    // The one that does not answer keeps the upgrade from its end; the other closes its sockets.
    let stopped = Stopped::thread(&daemon, "worker-0");
    let before = daemon.descriptors();
    control
        .stream
        .write_all(b"{\"method\":\"io.echod.Control.Upgrade\"}\0")
        .unwrap();
    eventually("a worker has closed its sockets", || {
        daemon.descriptors() < before
    });
    daemon.signal(Signal::SIGHUP);
    drop(stopped);
    // Whether there is an upgrade depends on how long this took.
    control.reply().expect("an answer");
    eventually("one of them reloads", || {
        daemon.ctl_json(&["status"])["status"]["last_reload"]["trigger"] == "signal"
    });
    assert_eq!(exchange(&mut peer, b"y"), b"y");
}

/// Processes whose parent is the daemon, ended ones included.
fn children(pid: i32) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let children = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default()
    };
    tasks.map(children).collect()
}

#[test]
fn children_that_it_was_started_with_leave_no_zombies() {
    let daemon = Daemon::start_with(CONFIG, |command| {
        after_shell_line(command, "true & sleep 1000 & :");
    });
    eventually("the one that has ended is reaped", || {
        children(daemon.pid()).split_whitespace().count() == 1
    });
    upgrade(&daemon);
    let sleeps = children(daemon.pid());
    let sleeps = Pid::from_raw(sleeps.trim().parse().expect("one child"));
    nix::sys::signal::kill(sleeps, Signal::SIGKILL).expect("it runs");
    eventually("the other one is reaped", || {
        children(daemon.pid()).is_empty()
    });
}

#[test]
fn process_1_of_a_container_leaves_no_zombies_and_upgrades() {
    let new_namespace = ["--pid", "--fork", "--kill-child"];
    let can = run(Command::new("unshare").args(new_namespace).arg("true"));
    if !can.status.success() {
        crate::harness::not_tested("it takes root to make a namespace of processes");
        return;
    }
    let daemon = Daemon::start_with(CONFIG, |command| {
        let line = "exec unshare --pid --fork --kill-child \"$0\" \"$@\"";
        after_shell_line(command, line);
    });
    let first = children(daemon.pid());
    let first: i32 = first.trim().parse().expect("one child");
    // As a probe of a container's engine, which leaves a process behind.
    for _ in 0..3 {
        let target = first.to_string();
        let probe = ["-t", &target, "-p", "sh", "-c", "true & true & exit 0"];
        assert!(run(Command::new("nsenter").args(probe)).status.success());
        daemon.ctl_text(&["upgrade"]);
        daemon.forget_notifications();
    }
    eventually("none is left", || children(first).is_empty());
}
