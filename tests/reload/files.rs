//! The files that a configuration is read from: what is no file, what is not meant, what is gone.

use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;

use super::{assert_applied, tcp};
use crate::harness::{Daemon, ECHOD, exchange, text};

fn daemon_with_drop_ins() -> Daemon {
    let daemon = Daemon::start(&tcp("main", "\"127.0.0.1:0\"", ""));
    std::fs::create_dir_all(daemon.path("echod.d")).expect("a folder");
    daemon
}

#[test]
fn a_fifo_among_the_drop_ins_is_an_error_and_stops_nothing() {
    let mut daemon = daemon_with_drop_ins();
    let fifo = daemon.path("echod.d").join("x.toml");
    mkfifo(&fifo, Mode::S_IRWXU).expect("a FIFO");
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_notification("RELOADING=1");
    daemon.wait_for_notification("READY=1");
    let last = daemon.ctl_json(&["status"])["status"]["last_reload"].clone();
    assert_eq!(last["outcome"], "rejected");
    assert_eq!(
        last["errors"],
        json!([{
            "file": fifo.display().to_string(),
            "message": "a FIFO, not a file: remove it, or give it another name",
        }])
    );
    assert_eq!(exchange(&mut daemon.connect("main"), b"here"), b"here");

    // A check and a start of the same configuration say so too, and end.
    for arguments in [&["--check"][..], &[]] {
        let output = Command::new(ECHOD)
            .arg("--config")
            .arg(daemon.path("echod.toml"))
            .arg("--socket")
            .arg(daemon.path("other.sock"))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("echod runs");
        assert_eq!(output.status.code(), Some(78), "{arguments:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.contains("x.toml: a FIFO"), "{stderr}");
    }
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
}

#[test]
fn what_an_editor_leaves_beside_a_drop_in_does_no_harm() {
    let daemon = daemon_with_drop_ins();
    let folder = daemon.path("echod.d");
    std::fs::write(
        folder.join("10-a.toml"),
        "[listener.main]\nmax-connections = 77\n",
    )
    .expect("written");
    symlink("user@host.1234:1700000000", folder.join(".#10-a.toml")).expect("a lock");
    std::fs::write(folder.join(".10-a.toml"), "not TOML at all").expect("written");
    assert_applied(&daemon.reload());
    let shown = daemon.ctl_text(&["config", "show"]);
    assert!(shown.contains("max-connections = 77"), "{shown}");
}
