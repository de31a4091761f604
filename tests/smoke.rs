//! The whole path once: start, echo, ask, reload, stop.

use nix::sys::signal::Signal;

use crate::harness::{Daemon, eventually, exchange};

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
