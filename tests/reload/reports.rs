//! What a reload reports: to its caller, the log and the service manager, of what has changed, of
//! what has not, and of what waits for the next start.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{assert_applied, at, change, local, refuses, still_echoes, tcp};
use crate::harness::{Daemon, connect, eventually, exchange, free_port};

#[test]
fn a_signal_reloads_and_the_service_manager_is_notified() {
    let port = free_port();
    let mut daemon = Daemon::start(&tcp("main", &local(port), ""));
    daemon.write_config(&tcp("main", &local(port), "backlog = 7"));
    daemon.signal(Signal::SIGHUP);
    let reloading = daemon.wait_for_notification("RELOADING=1");
    let time = reloading
        .lines()
        .find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    assert!(
        time.is_some_and(|time| time.parse::<u64>().is_ok()),
        "{reloading}"
    );
    let ready = daemon.wait_for_notification("READY=1");
    assert!(
        ready
            .lines()
            .any(|line| line == "STATUS=1 listener, 0 connections"),
        "{ready}"
    );
    let status = daemon.ctl_json(&["status"])["status"].clone();
    assert_eq!(status["generation"], 2);
    assert_eq!(status["last_reload"]["trigger"], "signal");
    assert_eq!(status["last_reload"]["id"], 2);
    assert_eq!(daemon.listener("main")["backlog"]["requested"], 7);
}

#[test]
fn echoctl_reloads_and_says_what_has_changed() {
    let [kept, changed, gone, new] = [(); 4].map(|()| free_port());
    let before = [
        tcp("changed", &local(changed), "backlog = 100"),
        tcp("gone", &local(gone), ""),
        tcp("kept", &local(kept), ""),
    ]
    .concat();
    let daemon = Daemon::start(&before);
    let mut peers = [kept, changed, gone].map(|port| connect(at(port)));
    still_echoes(&mut peers, b"before");

    daemon.write_config(
        &[
            tcp("changed", &local(changed), "backlog = 200"),
            tcp("kept", &local(kept), ""),
            tcp("new", &local(new), ""),
        ]
        .concat(),
    );
    let plan = daemon.ctl_text(&["reload", "--dry-run"]);
    let outcome = "dry run, nothing has changed: the configuration would be applied\n";
    assert!(plan.starts_with(outcome), "{plan}");
    assert_eq!(daemon.listener("changed")["backlog"]["requested"], 100);
    assert!(refuses(at(new)));
    assert_eq!(daemon.ctl_json(&["status"])["status"]["generation"], 1);
    assert_eq!(
        daemon.ctl_json(&["status"])["status"]["last_reload"]["trigger"],
        "start"
    );

    let told = daemon.ctl_text(&["reload"]);
    assert!(!told.contains('\x1b'), "{told:?}");
    for (text, row) in [
        (
            &plan,
            "update  changed             1  would change: backlog 100 → 200 (live); 1 connection would stay",
        ),
        (&plan, "add     new"),
        (&plan, "remove  gone"),
        (
            &told,
            "update  changed             1  backlog 100 → 200 (live); 1 connection stays",
        ),
        (&told, "add     new"),
        (&told, "remove  gone"),
        (
            &plan,
            "1 listener would stay unchanged (1 connection kept), changed would be updated (1 kept), \
             gone would be removed (1 kept), new would be added\n",
        ),
        (
            &told,
            "1 listener unchanged (1 connection kept), changed updated (1 kept), \
             gone removed (1 kept), new added\n",
        ),
    ] {
        assert!(text.contains(row), "{row:?} in {text}");
    }
    // The connections of all of them continue; the two that are there and the new one take more.
    still_echoes(&mut peers, b"after");
    still_echoes(
        &mut [kept, changed, new].map(|port| connect(at(port))),
        b"new",
    );
    assert!(refuses(at(gone)));
    assert_eq!(daemon.listener("gone")["state"], "retired");
    assert_eq!(daemon.listener("gone")["connections"], 1);
    // Its name still finds its connections; nothing else of it can be changed.
    assert_eq!(
        daemon.ctl_json(&["peers", "--listener", "gone"])["total"],
        1
    );
    let found = daemon.ctl_json(&["kick", "--dry-run", "gone"]);
    assert_eq!(found["matched"], 1, "{found}");
    let refused = daemon.ctl(&["backlog", "gone", "5"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("gone (removed)"), "{said}");
    let log = daemon.log();
    assert!(log.contains("reload 2 applied in "), "{log}");
    let summary = "now generation 2: 1 listener unchanged (1 connection kept), changed updated";
    assert!(log.contains(summary), "{log}");
    assert!(log.contains("backlog 100 → 200 (live)"), "{log}");
    let last = daemon.ctl_text(&["reload", "--last"]);
    assert!(
        last.contains("gone removed (1 kept), new added\n"),
        "{last}"
    );

    // With its last connection the removed one is forgotten.
    let [_, _, gone_peer] = peers;
    drop(gone_peer);
    eventually("the removed one is forgotten", || {
        daemon.ctl(&["listeners", "gone"]).status.code() == Some(1)
    });
}

#[test]
fn a_reload_without_a_change_says_so() {
    let port = free_port();
    let daemon = Daemon::start(&tcp("main", &local(port), ""));
    for attempt in 2..5 {
        let result = daemon.reload();
        assert_eq!(result["outcome"], "unchanged");
        assert_eq!(result["generation"], 1);
        assert_eq!(result["id"], attempt);
        assert_eq!(change(&result, "main")["action"], "keep");
    }
    // A default that is written out is no change either, nor is a comment.
    let spelled = tcp("main", &local(port), "backlog = 1024 # as ever");
    assert_eq!(daemon.reload_with(&spelled)["outcome"], "unchanged");
    let told = daemon.ctl_text(&["reload"]);
    assert!(
        told.contains("unchanged") || told.contains("nothing"),
        "{told}"
    );
    assert!(told.ends_with("\n1 listener unchanged\n"), "{told}");
}

#[test]
fn an_override_is_shown_and_the_next_reload_resets_and_lists_it() {
    let port = free_port();
    let config = tcp("main", &local(port), "backlog = 40");
    let daemon = Daemon::start(&config);
    daemon.ctl_text(&["backlog", "main", "80"]);
    assert_eq!(daemon.listener("main")["overridden"], json!(["backlog"]));
    let one = daemon.ctl_text(&["listeners", "main"]);
    assert!(one.contains("overridden     backlog"), "{one}");
    assert!(
        daemon
            .ctl_text(&["config", "show"])
            .contains("backlog = 80")
    );

    let plan = daemon.ctl_text(&["reload", "--dry-run"]);
    assert!(plan.contains("backlog 80 → 40 (live)"), "{plan}");
    assert_eq!(daemon.listener("main")["backlog"]["effective"], 80);
    let result = daemon.reload();
    assert_applied(&result);
    let text = change(&result, "main")["text"].as_str().expect("a text");
    assert!(text.contains("backlog 80 → 40 (live)"), "{text}");
    let listener = daemon.listener("main");
    assert_eq!(listener["backlog"]["effective"], 40);
    assert_eq!(listener["overridden"], json!([]));

    // One that the file has since come to say is no override any more.
    daemon.ctl_text(&["backlog", "main", "60"]);
    let result = daemon.reload_with(&tcp("main", &local(port), "backlog = 60"));
    assert_eq!(result["outcome"], "unchanged");
    assert_eq!(daemon.listener("main")["overridden"], json!([]));
    assert_eq!(daemon.listener("main")["backlog"]["effective"], 60);
}

#[test]
fn keys_that_need_a_restart_warn_at_every_reload_until_then() {
    let port = free_port();
    let main = tcp("main", &local(port), "");
    let daemon = Daemon::start(&format!("[daemon]\nworkers = 1\n{main}"));
    daemon.write_config(&format!(
        "[daemon]\nworkers = 2\n[control]\nmode = \"0600\"\n[log]\nlevel = \"debug\"\n{main}"
    ));
    for _ in 0..3 {
        daemon.forget_notifications();
        let output = daemon.ctl(&["--json", "reload"]);
        assert_eq!(output.status.code(), Some(0));
        let reply: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let warnings: Vec<_> = reply["result"]["warnings"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|warning| warning["message"].as_str().expect("a text").to_owned())
            .collect();
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        for (warning, key) in warnings.iter().zip(["[daemon] workers", "[control] mode"]) {
            assert!(warning.contains(key), "{warning}");
            assert!(
                warning.ends_with("takes effect when the daemon is next started"),
                "{warning}"
            );
        }
    }
    let required = || daemon.ctl_json(&["status"])["status"]["restart_required"].clone();
    assert_eq!(required(), json!(["daemon.workers", "control.mode"]));
    let shown = daemon.ctl_text(&["status"]);
    assert!(
        shown.contains("  restart        needed for daemon.workers, control.mode\n"),
        "{shown}"
    );
    // What can be applied is: the log level, once.
    assert_eq!(daemon.ctl_json(&["status"])["status"]["generation"], 2);
    assert_eq!(daemon.ctl_json(&["status"])["status"]["workers"], 1);
    assert!(daemon.ctl_text(&["config", "show"]).contains("workers = 1"));
    let told = daemon.ctl_text(&["reload"]);
    assert!(
        told.contains("\nwarning: [daemon] workers: takes effect"),
        "{told}"
    );
    // It would be wrong to say that nothing is different.
    assert!(
        told.starts_with("unchanged before the next start, generation 2"),
        "{told}"
    );
    let told = daemon.ctl_text(&["reload", "--dry-run"]);
    assert!(
        told.contains("nothing would change before the next start"),
        "{told}"
    );
    let line = "nothing has changed before the next start; still generation 2";
    eventually("it is logged", || daemon.log().contains(line));
    // An upgrade is a start, too, and needs none any more.
    daemon.ctl_text(&["upgrade"]);
    assert_eq!(required(), json!([]));
    // One that is taken back needs none either.
    let mode = |mode: &str| format!("[control]\nmode = \"{mode}\"\n{main}");
    daemon.reload_with(&mode("0640"));
    assert_eq!(required(), json!(["daemon.workers", "control.mode"]));
    daemon.reload_with(&format!("[daemon]\nworkers = 2\n{}", mode("0600")));
    assert_eq!(required(), json!([]));
}

/// The totals went down when a listener went, and the last line of the log said that there had
/// been no connections.
#[test]
fn what_a_removed_listener_has_counted_stays_in_the_totals() {
    const ONE: &str = "[listener.one]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n";
    const TWO: &str = "[listener.two]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n";
    let mut daemon = Daemon::start(&[ONE, TWO].concat());
    assert_eq!(exchange(&mut daemon.connect("two"), b"hello"), b"hello");
    daemon.write_config(ONE);
    assert!(daemon.ctl(&["reload"]).status.success());
    eventually("the listener is forgotten", || {
        let listeners = daemon.ctl_json(&["listeners"]);
        listeners["listeners"].as_array().expect("a list").len() == 1
    });
    assert_eq!(daemon.ctl_json(&["status"])["status"]["bytes_received"], 5);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    let log = daemon.log();
    assert!(log.contains("stopped after 1 connection,"), "{log}");
}
