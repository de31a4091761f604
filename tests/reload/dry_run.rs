//! A dry run says what a reload would do, and does nothing.

use std::net::TcpListener;

use serde_json::{Value, json};

use super::{at, change, listening_inodes, local, refuses, tcp};
use crate::harness::{Daemon, connect, exchange, free_port};

#[test]
fn a_dry_run_never_touches_a_socket() {
    let [here, there] = [(); 2].map(|()| free_port());
    let daemon = Daemon::start(&tcp("main", &local(here), ""));
    let inodes = listening_inodes(at(here));
    daemon.write_config(&tcp("main", &local(there), "sockets = 1"));
    let reply = daemon.ctl_json(&["reload", "--dry-run"]);
    assert_eq!(reply["result"]["outcome"], "applied");
    assert_eq!(reply["result"]["generation"], 1);
    assert_eq!(change(&reply["result"], "main")["action"], "rebind");
    assert_eq!(
        change(&reply["result"], "main")["keys"],
        json!(["address", "sockets"])
    );
    assert_eq!(listening_inodes(at(here)), inodes);
    assert!(refuses(at(there)));
    assert!(!daemon.log().contains("reload"), "{}", daemon.log());
}

#[test]
fn a_dry_run_reports_what_can_not_be_bound() {
    let [here, taken] = [(); 2].map(|()| free_port());
    let _other = TcpListener::bind(at(taken)).expect("a listener of another process");
    let main = tcp("main", &local(here), "");
    let daemon = Daemon::start(&main);
    daemon.write_config(&format!("{main}{}", tcp("taken", &local(taken), "")));
    let output = daemon.ctl(&["--json", "reload", "--dry-run"]);
    assert!(!output.status.success());
    let reply: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let result = &reply["result"];
    assert_eq!(result["outcome"], "rejected", "{result}");
    let error = result["errors"][0]["message"].as_str().expect("a text");
    assert!(error.contains("address already in use"), "{error}");
    let error = &result["errors"][0];
    let file = error["file"].as_str().expect("a path");
    assert!(file.ends_with("/echod.toml"), "{error}");
    let place = [&error["line"], &error["column"], &error["key"]];
    assert_eq!(
        place,
        [&json!(7), &json!(11), &json!("listener.taken.address")]
    );
    assert_eq!(
        change(result, "taken")["text"],
        format!("taken: would be added on 127.0.0.1:{taken} (tcp)")
    );
    // It is no reload, and leaves nothing behind.
    let status = daemon.ctl_json(&["status"])["status"].clone();
    assert_eq!(status["last_reload"]["trigger"], "start");
    assert_eq!(status["listeners"], 1);
    exchange(&mut connect(at(here)), b"still here");
}
