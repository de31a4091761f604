//! A hand-over through the descriptor store of a service manager that does not take it.

use crate::harness::{Daemon, exchange, text};

use super::CONFIG;

/// The process ended, although nothing was stored, and all connections were lost.
#[test]
fn connections_continue_when_the_manager_can_not_be_reached() {
    let daemon = Daemon::start_with(CONFIG, |command| {
        command.env("FDSTORE", "100");
    });
    let mut peer = daemon.connect("main");
    assert_eq!(exchange(&mut peer, b"before"), b"before");
    std::fs::remove_file(daemon.path("notify")).expect("the manager's socket");
    let output = daemon.ctl(&["hand-over"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    let reason = text(&output.stderr);
    // "no successor: no such file or directory" was all of it.
    let expected = "no successor: the service manager's $NOTIFY_SOCKET: no such file or directory";
    assert!(reason.contains(expected), "{reason}");
    assert_eq!(exchange(&mut peer, b"after"), b"after");
    assert_eq!(exchange(&mut daemon.connect("main"), b"new"), b"new");
}
