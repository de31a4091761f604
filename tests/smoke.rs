//! The whole path once: start, echo, ask, reload, stop.

use nix::sys::signal::Signal;

use crate::harness::{Daemon, exchange};

#[test]
fn a_daemon_starts_echoes_answers_reloads_and_stops() {
    let mut daemon =
        Daemon::start("[listener.main]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n");
    let mut peer = daemon.connect("main");
    assert_eq!(exchange(&mut peer, b"hello"), b"hello");
    let status = daemon.ctl_json(&["status"]);
    assert_eq!(status["status"]["connections"], 1);
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_notification("RELOADING=1");
    daemon.wait_for_notification("READY=1");
    assert_eq!(exchange(&mut peer, b"still here"), b"still here");
    drop(peer);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
}
