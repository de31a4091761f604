//! The exit statuses of echoctl, and the reasons that it prints with them. Those of echod are in
//! [`crate::exit`].

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use super::{ALL_KINDS, as_nobody, code};
use crate::harness::{Daemon, close_unix, text};

#[test]
fn every_exit_status_means_one_thing() {
    let daemon = Daemon::start(ALL_KINDS);
    let check = |arguments: &[&str], status: i32, told: &str| {
        let output = daemon.ctl(arguments);
        let stderr = text(&output.stderr);
        assert_eq!(code(&output), Some(status), "{arguments:?}: {stderr}");
        assert!(stderr.contains(told), "{arguments:?}: {stderr}");
        if status == 0 {
            assert_eq!(stderr, "", "{arguments:?}");
        }
    };
    check(&["status"], 0, "");
    check(&["listeners", "nobody"], 1, "\"nobody\": there is none");
    check(&["peers", "--listener", "nobody"], 1, "there are: ");
    check(&["peers", "--sort", "beauty"], 2, "possible values: id");
    check(&["peers", "--address", "main"], 2, "write e.g. 192.0.2.1");
    check(&["kick", "nobody"], 1, "there is none of this name");
    check(&["kick", "10.0.0.0/33"], 2, "0 to 32 bits");
    check(&["no-such-command"], 2, "unrecognized");
    check(&["kick"], 2, "required");
    check(&["peers", "--limit", "many"], 2, "invalid value");
    check(&["reload", "--dry-run", "--last"], 2, "cannot be used");

    let missing = daemon.path("missing.sock").display().to_string();
    check(
        &["--socket", &missing, "status"],
        69,
        "no such file; is echod running?",
    );
    let stale = daemon.path("stale.sock");
    close_unix(UnixListener::bind(&stale).expect("a socket"), &stale);
    check(
        &["--socket", &stale.display().to_string(), "status"],
        69,
        "connection refused",
    );

    let wrong = daemon.path("wrong.toml");
    std::fs::write(&wrong, "[listener.main]\nprotocol = \"tpc\"\n").expect("written");
    let wrong = wrong.display().to_string();
    check(&["check", &wrong], 78, &format!("{wrong}:2:12: "));
    let right = daemon.path("echod.toml").display().to_string();
    assert_eq!(code(&daemon.ctl(&["check", &right])), Some(0));
    daemon.write_config("[listener.main]\nprotocol = \"tpc\"\n");
    check(&["reload"], 78, "echod.toml:2:12: ");
    check(&["reload", "--dry-run"], 78, "echod.toml:2:12: ");
    check(&["reload", "--last"], 78, "echod.toml:2:12: ");

    // A process that listens and never answers.
    let mute = daemon.path("mute.sock");
    let _mute = UnixListener::bind(&mute).expect("a socket");
    check(
        &[
            "--socket",
            &mute.display().to_string(),
            "--timeout",
            "50ms",
            "status",
        ],
        75,
        "no answer within 50ms",
    );
}

#[test]
fn a_user_that_may_not_connect_gets_the_reason() {
    let daemon = Daemon::start(&format!("[control]\nmode = \"0600\"\n{ALL_KINDS}"));
    let socket = daemon.path("control.sock");
    let mode = |path| {
        std::fs::metadata(path)
            .expect("it is there")
            .permissions()
            .mode()
            & 0o7777
    };
    assert_eq!(mode(&socket), 0o600);
    let output = if nix::unistd::geteuid().is_root() {
        as_nobody(&daemon, &["status"])
    } else {
        // There is no other user: then the file's owner is not permitted.
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o000)).expect("set");
        daemon.ctl(&["status"])
    };
    let stderr = text(&output.stderr);
    assert_eq!(code(&output), Some(77), "{stderr}");
    assert!(
        stderr.contains("permission denied: you are uid"),
        "{stderr}"
    );
    assert!(stderr.contains("the socket is"), "{stderr}");
}
