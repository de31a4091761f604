//! A rejected reload changes nothing, and says all that is wrong.

use std::net::TcpListener;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{at, listening_inodes, local, refuses, still_echoes, tcp};
use crate::harness::{Daemon, close_socket, connect, exchange, free_port, text};

const THREE_ERRORS: &str = "[listener.main]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:99999\"\nbacklgo = 5\n\n[daemon]\ndrain-timeout = \"soon\"\n";

#[test]
fn a_rejected_reload_changes_nothing_and_says_all_that_is_wrong() {
    let port = free_port();
    let mut daemon = Daemon::start(&tcp("main", &local(port), "backlog = 50"));
    let mut peer = connect(at(port));
    exchange(&mut peer, b"before");
    let inodes = listening_inodes(at(port));
    daemon.write_config(THREE_ERRORS);
    let file = daemon.path("echod.toml").display().to_string();

    let output = daemon.ctl(&["reload"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    let stderr = text(&output.stderr);
    for place in ["3:11", "4:1", "7:17"] {
        let place = format!("echoctl: {file}:{place}: ");
        assert!(stderr.contains(&place), "{place} in {stderr}");
    }
    assert!(
        stderr.contains("configuration rejected: 3 errors; nothing has changed"),
        "{stderr}"
    );
    // A program gets the same as JSON.
    let output = daemon.ctl(&["--json", "reload"]);
    assert_eq!(output.status.code(), Some(78));
    let reply: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let errors = reply["result"]["errors"].as_array().expect("a list");
    assert_eq!(errors.len(), 3, "{reply}");
    let places: Vec<_> = errors
        .iter()
        .map(|error| {
            assert_eq!(error["file"], *file);
            (error["line"].as_u64(), error["column"].as_u64())
        })
        .collect();
    assert_eq!(
        places,
        [(3, 11), (4, 1), (7, 17)].map(|(line, column)| (Some(line), Some(column)))
    );

    // After a signal it is in the status, and the service manager is not left waiting.
    daemon.forget_notifications();
    daemon.signal(Signal::SIGHUP);
    let reloading = daemon.wait_for_notification("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    let ready = daemon.wait_for_notification("READY=1");
    assert!(
        ready.contains(&format!("rejected: {file}:3:11: ")),
        "{ready}"
    );
    let status = daemon.ctl_json(&["status"])["status"].clone();
    assert_eq!(status["generation"], 1);
    let last = &status["last_reload"];
    assert_eq!(last["trigger"], "signal");
    assert_eq!(last["outcome"], "rejected");
    assert_eq!(last["id"], 4);
    assert_eq!(last["errors"].as_array().map(Vec::len), Some(3));
    let shown = daemon.ctl_text(&["status"]);
    assert!(shown.contains(&format!("{file}:4:1: ")), "{shown}");
    assert_eq!(daemon.ctl(&["reload", "--last"]).status.code(), Some(78));

    // Each is a line of the log, as an error.
    let log = daemon.log();
    for id in 2..=4 {
        assert!(
            log.contains(&format!("reload {id}: {file}:7:17: ")),
            "{log}"
        );
        assert!(
            log.contains(&format!("reload {id} rejected with 3 errors;")),
            "{log}"
        );
    }
    // And nothing has changed.
    assert_eq!(daemon.listener("main")["backlog"]["requested"], 50);
    assert_eq!(listening_inodes(at(port)), inodes);
    assert_eq!(exchange(&mut peer, b"after"), b"after");
    exchange(&mut connect(at(port)), b"new");
    assert!(
        daemon
            .ctl_text(&["config", "show"])
            .contains("backlog = 50")
    );
    // What is right again is applied again, here: the same as before.
    let result = daemon.reload_with(&tcp("main", &local(port), "backlog = 50"));
    assert_eq!(result["outcome"], "unchanged");
}

#[test]
fn a_configuration_that_is_gone_is_a_rejected_one() {
    let port = free_port();
    let daemon = Daemon::start(&tcp("main", &local(port), ""));
    std::fs::remove_file(daemon.path("echod.toml")).expect("removed");
    let output = daemon.ctl(&["reload"]);
    assert_eq!(output.status.code(), Some(78));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("echod.toml: no such file"), "{stderr}");
    exchange(&mut connect(at(port)), b"still here");
}

#[test]
fn a_reload_that_can_not_bind_one_address_binds_none() {
    let [kept, grown, fresh] = [(); 3].map(|()| free_port());
    // Not one that a client anywhere could get while it is free for a moment.
    let taken = free_port();
    let other_process = TcpListener::bind(at(taken)).expect("a listener of another process");
    let before = [
        tcp("grown", &local(grown), "sockets = 1"),
        tcp("kept", &local(kept), "backlog = 10"),
    ]
    .concat();
    let daemon = Daemon::start(&before);
    let mut peers = [kept, grown].map(|port| connect(at(port)));
    still_echoes(&mut peers, b"before");
    let inodes = || [kept, grown, fresh].map(|port| listening_inodes(at(port)));
    let untouched = inodes();

    daemon.write_config(
        &[
            tcp("fresh", &local(fresh), ""),
            tcp("grown", &local(grown), "sockets = 2"),
            tcp("kept", &local(kept), "backlog = 20"),
            tcp("taken", &local(taken), ""),
            "[listener.local]\nprotocol = \"unix-stream\"\naddress = \"{dir}/local.sock\"\n".into(),
            "[listener.nowhere]\nprotocol = \"unix-stream\"\naddress = \"{dir}/no/such.sock\"\n"
                .into(),
        ]
        .concat(),
    );
    let output = daemon.ctl(&["reload"]);
    assert_eq!(output.status.code(), Some(78));
    let stderr = text(&output.stderr);
    for told in [
        &*format!(
            "listener \"taken\": bind 127.0.0.1:{taken}: address already in use; ask who has it: ss -ltnp 'sport = :{taken}'"
        ),
        "the folder does not exist",
        "configuration rejected: 2 errors; nothing has changed",
    ] {
        assert!(stderr.contains(told), "{told:?} in {stderr}");
    }
    assert!(
        !stderr.contains("echoctl: :"),
        "an error without a file begins with what it is about: {stderr}"
    );
    assert_eq!(inodes(), untouched);
    assert!(refuses(at(fresh)));
    assert!(!daemon.path("local.sock").exists());
    assert_eq!(daemon.listener("kept")["backlog"]["effective"], 10);
    assert_eq!(daemon.listener("grown")["sockets"], 1);
    assert_eq!(daemon.ctl_json(&["status"])["status"]["generation"], 1);
    still_echoes(&mut peers, b"after");
    still_echoes(&mut [kept, grown].map(|port| connect(at(port))), b"new");

    // A port that another process had first must not be shared either.
    close_socket(other_process);
    let shared = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let shared = shared.expect("a socket");
    shared.set_reuse_port(true).expect("set");
    shared.set_reuse_address(true).expect("set");
    shared.bind(&at(taken).into()).expect("bound");
    shared.listen(1).expect("listening");
    let result = daemon.reload();
    assert_eq!(result["outcome"], "rejected", "{result}");
}
