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

/// A dry run said that it would be applied, and the reload was rejected.
#[test]
fn a_dry_run_tries_an_address_that_a_socket_in_service_has_a_part_of() {
    for sockets in [1, 2] {
        // Another one each time: the kernel takes its time to free those of a killed process.
        let port = free_port();
        let config = |ip: &str, sockets: usize| {
            let more = format!("sockets = {sockets}");
            tcp("main", &format!("\"{ip}:{port}\""), &more)
        };
        let daemon = Daemon::start(&config("127.0.0.1", sockets));
        daemon.write_config(&config("0.0.0.0", sockets));
        let dry_run = || {
            let output = daemon.ctl(&["--json", "reload", "--dry-run"]);
            let reply: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            reply["result"].clone()
        };
        let not_tried = |result: &Value| {
            let warnings = result["warnings"].to_string();
            warnings.contains(&format!("bind 0.0.0.0:{port}: not tried"))
        };
        // As long as no other process has the port it works, whether it was tried or not.
        let result = dry_run();
        assert_eq!(result["outcome"], "applied", "{result}");
        assert_eq!(not_tried(&result), sockets == 1, "{result}");
        let other = TcpListener::bind(("127.0.0.2", port)).expect("another process");
        let inodes = listening_inodes(at(port));
        let result = dry_run();
        match sockets {
            // A socket that shares its address with none would have to be changed.
            1 => assert!(not_tried(&result), "{result}"),
            _ => assert_eq!(result["outcome"], "rejected", "{result}"),
        }
        let refused = daemon.reload();
        assert_eq!(refused["outcome"], "rejected", "{refused}");
        if sockets > 1 {
            assert_eq!(refused["errors"], result["errors"]);
        }
        assert_eq!(listening_inodes(at(port)), inodes);
        drop(other);
    }
}
