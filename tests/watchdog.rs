//! Notifications to a service manager with a watchdog: signs of life, the status, and more time.

use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::harness::{Daemon, eventually, exchange};

const TCP: &str =
    "[daemon]\nworkers = 2\n[listener.main]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n";

/// Starts echod for a manager with this watchdog interval.
fn start_watched(patience: Duration) -> Daemon {
    Daemon::start_with(TCP, |command| {
        command.env("WATCHDOG_USEC", patience.as_micros().to_string());
    })
}

/// A thread of another process that is stopped, alone, until this is dropped.
pub(crate) struct Stopped(Pid);

impl Stopped {
    pub(crate) fn thread(daemon: &Daemon, name: &str) -> Self {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("it runs");
        let is_it = |task: &std::path::PathBuf| {
            std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name)
        };
        let mut paths = tasks.map(|task| task.expect("a thread").path());
        let task = paths.find(is_it).expect("a thread of this name");
        let id = task.file_name().expect("a number").to_string_lossy();
        let thread = Pid::from_raw(id.parse().expect("a number"));
        ptrace::seize(thread, ptrace::Options::empty()).expect("it may be traced");
        ptrace::interrupt(thread).expect("it is traced");
        waitpid(thread, Some(WaitPidFlag::__WALL)).expect("it has stopped");
        Self(thread)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have ended with its process.
        let _ = ptrace::detach(self.0, None);
    }
}

#[test]
fn keep_alives_are_sent_to_the_watchdog_again_and_again() {
    let mut daemon = start_watched(Duration::from_millis(400));
    for _ in 0..5 {
        daemon.wait_for_notification("WATCHDOG=1");
    }
    // Also while it stops.
    let mut peer = daemon.connect("main");
    assert_eq!(exchange(&mut peer, b"hello"), b"hello");
    daemon.signal(Signal::SIGTERM);
    daemon.wait_for_notification("STOPPING=1");
    daemon.wait_for_notification("WATCHDOG=1");
    drop(peer);
    assert!(daemon.wait().success());
}

#[test]
fn one_worker_that_hangs_is_a_dead_service() {
    let patience = Duration::from_millis(400);
    let mut daemon = start_watched(patience);
    daemon.wait_for_notification("WATCHDOG=1");
    let stopped = Stopped::thread(&daemon, "worker-0");
    eventually("the worker that hangs is named", || {
        daemon.log().contains("worker 0: no answer for")
    });
    daemon.forget_notifications();
    let waited = Instant::now();
    while waited.elapsed() < patience * 3 {
        // The control plane is as well as ever, and must not speak for all.
        assert_eq!(daemon.ctl_json(&["status"])["status"]["state"], "serving");
        let told = daemon.take_notifications();
        assert!(!told.contains("WATCHDOG=1"), "{told}");
    }
    drop(stopped);
    daemon.wait_for_notification("WATCHDOG=1");
    let mut peer = daemon.connect("main");
    assert_eq!(exchange(&mut peer, b"hello"), b"hello");
}

#[test]
fn a_daemon_without_a_watchdog_sends_no_keep_alives() {
    let mut daemon = Daemon::start_with(TCP, |command| {
        command
            .env("WATCHDOG_USEC", "1000")
            .env("WATCHDOG_PID", "1");
    });
    daemon.ctl_json(&["status"]);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    let told = daemon.take_notifications();
    assert!(told.contains("STOPPING=1"), "{told}");
    assert!(!told.contains("WATCHDOG=1"), "{told}");
}

#[test]
fn the_status_follows_the_connections() {
    let mut daemon = start_watched(Duration::from_secs(4));
    let mut peer = daemon.connect("main");
    assert_eq!(exchange(&mut peer, b"hello"), b"hello");
    daemon.wait_for_notification("STATUS=1 listener, 1 connection");
    drop(peer);
    daemon.wait_for_notification("STATUS=1 listener, 0 connections");
}

#[test]
fn the_status_says_why_a_reload_was_rejected() {
    let mut daemon = Daemon::start(TCP);
    daemon.write_config(&format!("{TCP}backlock = 5\nreplay = \"no\"\n"));
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_notification("RELOADING=1");
    let told = daemon.wait_for_notification("READY=1");
    let path = daemon.path("echod.toml");
    let start = format!(
        "STATUS=1 listener, 0 connections; reload 2 rejected: {}:6:1: ",
        path.display()
    );
    let status = told.lines().find(|line| line.starts_with(&start));
    assert!(
        status.is_some_and(|status| status.ends_with(" (and 1 more)")),
        "{told}"
    );
}

/// A drain-timeout longer than the unit's TimeoutStopSec= ended in SIGKILL. And a daemon that hung
/// while it stopped was waited for as long as the drain might have taken.
#[test]
fn while_it_stops_it_asks_for_a_little_time_again_and_again() {
    let mut daemon = Daemon::start(&format!(
        "[daemon]\nshutdown-delay = \"1500ms\"\ndrain-timeout = \"5m\"\n{}",
        TCP.replace("[daemon]\n", "")
    ));
    let mut peer = daemon.connect("main");
    assert_eq!(exchange(&mut peer, b"hello"), b"hello");
    daemon.signal(Signal::SIGTERM);
    seconds_in_status(&mut daemon, "stopping: 1 connection, serving on for ", " s");
    let told: Vec<u64> = (0..3)
        .map(|_| seconds_in_status(&mut daemon, "draining: 1 connection, at most ", " s left"))
        .collect();
    assert!(told[0] <= 300, "{told:?}");
    assert!(
        told.is_sorted_by(|earlier, later| earlier > later),
        "{told:?}"
    );
    drop(peer);
    assert!(daemon.wait().success());
}

/// Waits for a status of this kind that comes with a request for more time; the seconds in it.
fn seconds_in_status(daemon: &mut Daemon, before: &str, after: &str) -> u64 {
    let number = |line: &str| {
        let number = line.strip_prefix("STATUS=")?.strip_prefix(before)?;
        number.strip_suffix(after)?.parse().ok()
    };
    let told = daemon.wait_for_notification_with(before, |line| number(line).is_some());
    assert!(
        told.lines()
            .any(|line| line == "EXTEND_TIMEOUT_USEC=10000000"),
        "{told}"
    );
    told.lines().find_map(number).expect("it was just found")
}
