//! A reload that has to be confirmed, and the way back to the previous configuration.
//!
//! Where a test waits for a time to be over, that is a millisecond; where one must not be over, it is
//! an hour.

use std::fs;
use std::net::TcpListener;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{assert_applied, at, listening_inodes, local, refuses, still_echoes, tcp};
use crate::harness::{Daemon, close_socket, connect, eventually, free_port, text};

fn status(daemon: &Daemon) -> Value {
    daemon.ctl_json(&["status"])["status"].clone()
}

/// Reloads on trial, for this time.
fn reload_on_trial(daemon: &Daemon, config: &str, time: &str) -> Value {
    daemon.write_config(config);
    daemon.ctl_json(&["reload", "--confirm", time])["result"].clone()
}

fn roll_back(daemon: &Daemon) -> Value {
    daemon.ctl_json(&["rollback"])["result"].clone()
}

fn backlog(daemon: &Daemon) -> u64 {
    let backlog = daemon.listener("main")["backlog"]["effective"].clone();
    backlog.as_u64().expect("a number")
}

/// How a command is refused.
fn refusal(daemon: &Daemon, arguments: &[&str]) -> (Option<i32>, String) {
    let output = daemon.ctl(arguments);
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    (output.status.code(), text(&output.stderr))
}

const NOTHING_TO_CONFIRM: &str = "echoctl: nothing to confirm: ";
const NOTHING_TO_ROLL_BACK: &str = "echoctl: nothing to roll back to: ";

#[test]
fn a_reload_that_nobody_confirms_is_rolled_back_by_the_daemon_itself() {
    let [main, moved, gone, new] = [(); 4].map(|()| free_port());
    let before = [
        tcp("gone", &local(gone), ""),
        tcp("main", &local(main), "backlog = 100"),
    ]
    .concat();
    let mut daemon = Daemon::start(&before);
    let mut peers = [main, gone].map(|port| connect(at(port)));
    still_echoes(&mut peers, b"before");
    daemon.forget_notifications();

    let after = [
        tcp("main", &local(moved), "backlog = 200"),
        tcp("new", &local(new), ""),
    ]
    .concat();
    let result = reload_on_trial(&daemon, &after, "1ms");
    assert_applied(&result);
    assert_eq!(result["confirm_within_ms"], 1);
    eventually("it is rolled back", || {
        status(&daemon)["last_reload"]["trigger"] == "confirm_expired"
    });
    let status = status(&daemon);
    assert_eq!(status["last_reload"]["outcome"], "rolled_back", "{status}");
    assert_eq!(status["last_reload"]["rollback"], true);
    assert_eq!(status["last_reload"]["id"], 3);
    assert_eq!(status["generation"], 3);
    assert_eq!(status.get("confirm_in_ms"), None, "{status}");
    // The files are as they were written, and that is not what is in force.
    assert_eq!(status["config_on_disk"], "changed");
    assert_eq!(backlog(&daemon), 100);
    assert!(refuses(at(moved)) && refuses(at(new)));
    still_echoes(&mut peers, b"after");
    still_echoes(&mut [main, gone].map(|port| connect(at(port))), b"new");
    // The manager learns of both.
    for _ in 0..2 {
        daemon.wait_for_notification("RELOADING=1");
        daemon.wait_for_notification("READY=1");
    }
    let last = daemon.ctl_text(&["reload", "--last"]);
    assert!(
        last.starts_with("rolled back, generation 3, in ")
            && last.contains("after no confirmation"),
        "{last}"
    );
    let log = daemon.log();
    for line in [
        "reload 2 is rolled back in 1ms unless it is confirmed",
        "reload 2 was not confirmed in time: rolling back",
        "rollback 3 applied in ",
    ] {
        assert!(log.contains(line), "{line:?} in {log}");
    }
    let (code, said) = refusal(&daemon, &["confirm"]);
    assert_eq!(code, Some(1));
    assert!(said.starts_with(NOTHING_TO_CONFIRM), "{said}");
}

#[test]
fn what_is_confirmed_stays_and_until_then_everyone_is_told() {
    let port = free_port();
    let mut daemon = Daemon::start(&tcp("main", &local(port), "backlog = 100"));
    daemon.forget_notifications();
    let changed = tcp("main", &local(port), "backlog = 200");
    daemon.write_config(&changed);
    let told = daemon.ctl_text(&["reload", "--confirm", "1h"]);
    assert!(
        told.contains("\nrolled back in 1h unless confirmed: echoctl confirm\n"),
        "{told}"
    );
    let left = status(&daemon)["confirm_in_ms"].as_u64().expect("a time");
    assert!((1..=3_600_000).contains(&left), "{left}");
    let shown = daemon.ctl_text(&["status"]);
    let (first, _) = shown.split_once('\n').expect("lines");
    assert!(
        first.contains("; rolled back in ") && first.ends_with(" unless confirmed"),
        "{shown}"
    );
    let is_told = |line: &str| line.ends_with(" s unless confirmed");
    daemon.wait_for_notification_with("a time to confirm", is_told);

    assert_eq!(daemon.ctl_text(&["confirm"]), "reload 2 is confirmed\n");
    daemon.wait_for_notification("STATUS=1 listener, 0 connections");
    assert_eq!(status(&daemon).get("confirm_in_ms"), None);
    let log = daemon.log();
    let line = " confirms the configuration: reload 2\n";
    assert!(log.contains(line), "{log}");
    let (code, said) = refusal(&daemon, &["confirm"]);
    assert_eq!(code, Some(1));
    assert!(said.starts_with(NOTHING_TO_CONFIRM), "{said}");
    assert_eq!(backlog(&daemon), 200);
    // It can still be undone, by hand.
    assert_eq!(roll_back(&daemon)["outcome"], "rolled_back");
    assert_eq!(backlog(&daemon), 100);
}

#[test]
fn another_reload_confirms_and_another_one_on_trial_keeps_what_a_rollback_restores() {
    let port = free_port();
    let config = |backlog: u64| tcp("main", &local(port), &format!("backlog = {backlog}"));
    let daemon = Daemon::start(&config(100));
    reload_on_trial(&daemon, &config(200), "1h");
    // A rejected one and a dry run confirm nothing.
    daemon.write_config("nonsense");
    assert_eq!(daemon.ctl(&["reload"]).status.code(), Some(78));
    daemon.write_config(&config(200));
    daemon.ctl_text(&["reload", "--dry-run"]);
    assert!(status(&daemon)["confirm_in_ms"].is_u64());
    // Nor does another one on trial, which starts the time again, also if it changes nothing.
    for (next, outcome) in [(200, "unchanged"), (300, "applied")] {
        let result = reload_on_trial(&daemon, &config(next), "2h");
        assert_eq!(result["outcome"], outcome, "{result}");
        assert_eq!(result["confirm_within_ms"], 7_200_000, "{result}");
        assert_eq!(result.get("confirmed"), None, "{result}");
    }
    let left = status(&daemon)["confirm_in_ms"].as_u64().expect("a time");
    assert!(left > 3_600_000, "{left}");
    let result = roll_back(&daemon);
    assert_eq!(result["outcome"], "rolled_back", "{result}");
    assert_eq!(backlog(&daemon), 100);

    // A signal confirms as well as a caller, and says so.
    let on_trial = reload_on_trial(&daemon, &config(400), "1h")["id"].clone();
    daemon.signal(Signal::SIGHUP);
    eventually("the signal has reloaded", || {
        status(&daemon)["last_reload"]["trigger"] == "signal"
    });
    let last = status(&daemon)["last_reload"].clone();
    assert_eq!(last["outcome"], "unchanged");
    assert_eq!(last["confirmed"], on_trial, "{last}");
    assert_eq!(status(&daemon).get("confirm_in_ms"), None);
    assert!(
        daemon
            .log()
            .contains(&format!(" confirms reload {on_trial}\n"))
    );
    reload_on_trial(&daemon, &config(500), "1h");
    daemon.write_config(&config(600));
    let told = daemon.ctl_text(&["reload"]);
    assert!(told.contains("\nconfirms reload "), "{told}");
    // What a rollback restores now is what was confirmed.
    assert_eq!(roll_back(&daemon)["outcome"], "rolled_back");
    assert_eq!(backlog(&daemon), 500);
}

#[test]
fn a_rollback_restores_the_configuration_before_also_when_its_file_is_gone() {
    let port = free_port();
    let daemon = Daemon::start(&tcp("main", &local(port), "backlog = 100"));
    let (code, said) = refusal(&daemon, &["rollback"]);
    assert_eq!(code, Some(1));
    assert!(said.starts_with(NOTHING_TO_ROLL_BACK), "{said}");
    assert!(
        daemon
            .log()
            .contains("no rollback: there is no previous configuration\n")
    );
    // What was set at run time comes back with it, as set at run time.
    daemon.ctl_text(&["backlog", "main", "150"]);
    daemon.ctl_text(&["log-level", "debug"]);
    let changed = tcp("main", &local(port), "backlog = 200\nreply = \"upper\"");
    assert_applied(&daemon.reload_with(&changed));
    assert_eq!(daemon.reload()["outcome"], "unchanged");
    fs::remove_file(daemon.path("echod.toml")).expect("removed");

    let plan = daemon.ctl_text(&["rollback", "--dry-run"]);
    let heading =
        "dry run, nothing has changed: the previous configuration would be in force again\n";
    assert!(plan.starts_with(heading), "{plan}");
    let summary = "\nmain would be updated, daemon would be updated\n";
    assert!(plan.ends_with(summary), "{plan}");
    assert_eq!(backlog(&daemon), 200);
    let told = daemon.ctl_text(&["rollback"]);
    assert!(told.starts_with("rolled back, generation 3, in "), "{told}");
    assert!(told.contains("backlog 200 → 150 (live)"), "{told}");
    let main = daemon.listener("main");
    assert_eq!(main["backlog"]["effective"], 150);
    assert_eq!(main["overridden"], json!(["backlog"]));
    assert_eq!(main["reply"], "echo");
    let status = status(&daemon);
    assert_eq!(status["log_level"], "debug");
    assert_eq!(status["config_on_disk"], "missing");
    let log = daemon.log();
    assert!(
        log.contains("rolls back to the previous configuration: generation 2 → 3\n"),
        "{log}"
    );

    // A second one does not bring back what the first has removed.
    let (code, said) = refusal(&daemon, &["rollback"]);
    assert_eq!(code, Some(1));
    assert!(said.starts_with(NOTHING_TO_ROLL_BACK), "{said}");
    assert_eq!(backlog(&daemon), 150);
}

#[test]
fn a_rollback_that_can_not_be_bound_is_rejected_and_shown_and_can_be_tried_again() {
    let [main, other, moved] = [(); 3].map(|()| free_port());
    let before = [
        tcp("main", &local(main), ""),
        tcp("other", &local(other), ""),
    ]
    .concat();
    let mut daemon = Daemon::start(&before);
    let result = reload_on_trial(&daemon, &tcp("other", &local(moved), ""), "1h");
    assert_applied(&result);
    let mut taken = None;
    eventually("the port is free again", || {
        taken = TcpListener::bind(at(main)).ok();
        taken.is_some()
    });
    let taken = taken.expect("it is bound");
    let inodes = listening_inodes(at(moved));
    let (code, said) = refusal(&daemon, &["rollback"]);
    assert_eq!(code, Some(78));
    assert!(said.contains("address already in use"), "{said}");
    let end = "echoctl: rollback rejected: 1 error; nothing has changed\n";
    assert!(said.ends_with(end), "{said}");
    // It is still on trial.
    assert!(status(&daemon)["confirm_in_ms"].is_u64());

    // The daemon itself has no more success, and says so until the next reload.
    daemon.forget_notifications();
    let result = reload_on_trial(&daemon, &tcp("other", &local(moved), ""), "1ms");
    assert_eq!(result["outcome"], "unchanged");
    daemon.wait_for_notification_with("the reason", |line| {
        line.contains("; rollback 5 rejected: listener \"main\": bind ")
    });
    let shown = daemon.ctl_text(&["status"]);
    let heading = "rollback rejected: 1 error; generation 2 stays in force\n";
    assert!(shown.starts_with(heading), "{shown}");
    assert!(shown.contains("same as in force"), "{shown}");
    assert_eq!(status(&daemon)["last_reload"]["summary"], "");
    let log = daemon.log();
    let line = "rollback 5 rejected with 1 error; still running generation 2";
    assert!(log.contains(line), "{log}");
    assert_eq!(daemon.ctl(&["confirm"]).status.code(), Some(1));
    assert_eq!(listening_inodes(at(moved)), inodes);
    assert!(refuses(at(other)));
    still_echoes(&mut [connect(at(moved))], b"as before");

    close_socket(taken);
    assert_eq!(roll_back(&daemon)["outcome"], "rolled_back");
    still_echoes(&mut [main, other].map(|port| connect(at(port))), b"again");
    assert!(refuses(at(moved)));
}

#[test]
fn what_changes_nothing_waits_for_no_confirmation() {
    let port = free_port();
    let config = tcp("main", &local(port), "");
    let daemon = Daemon::start(&config);
    let result = reload_on_trial(&daemon, &config, "1h");
    assert_eq!(result["outcome"], "unchanged");
    assert_eq!(result.get("confirm_within_ms"), None, "{result}");
    assert_eq!(daemon.ctl(&["confirm"]).status.code(), Some(1));
}

#[test]
fn a_time_of_nonsense_is_a_usage_error_and_reloads_nothing() {
    let port = free_port();
    let daemon = Daemon::start(&tcp("main", &local(port), "backlog = 100"));
    daemon.write_config(&tcp("main", &local(port), "backlog = 200"));
    for wrong in ["0s", "soon", "60", "25h", "1us"] {
        let (code, said) = refusal(&daemon, &["reload", "--confirm", wrong]);
        assert_eq!(code, Some(2), "{wrong}: {said}");
        assert!(said.contains(&format!("'{wrong}'")), "{said}");
    }
    for also in ["--dry-run", "--last"] {
        let (code, said) = refusal(&daemon, &["reload", "--confirm", "60s", also]);
        assert_eq!(code, Some(2), "{also}: {said}");
    }
    assert_eq!(status(&daemon)["last_reload"]["trigger"], "start");
    assert_eq!(backlog(&daemon), 100);
}
