//! The files that a configuration is read from: in which order, and what is no file or is not meant.

use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;

use super::{assert_applied, at, local, refuses, tcp};
use crate::harness::{Daemon, ECHOD, connect, exchange, free_port, text};

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

#[test]
fn drop_ins_are_read_in_the_order_of_their_names() {
    let [first, second] = [(); 2].map(|()| free_port());
    let daemon = Daemon::start(&tcp("main", &local(first), "backlog = 10"));
    let folder = daemon.path("echod.d");
    std::fs::create_dir_all(&folder).expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("written");
    write("20-later.toml", "[listener.main]\nbacklog = 30\n");
    write(
        "10-more.toml",
        &format!(
            "[listener.main]\nbacklog = 20\n{}",
            tcp("more", &local(second), "")
        ),
    );
    write("README", "not TOML at all");
    assert_applied(&daemon.reload());
    assert_eq!(daemon.listener("main")["backlog"]["effective"], 30);
    exchange(&mut connect(at(second)), b"more");
    let file = |name: &str| folder.join(name).display().to_string();
    assert_eq!(
        daemon.ctl_json(&["status"])["status"]["config"],
        json!(daemon.config_files(&["10-more.toml", "20-later.toml"]))
    );
    // An error is in the file that it is in.
    write("20-later.toml", "[listener.main]\nbacklog = \"many\"\n");
    let result = daemon.reload();
    assert_eq!(result["outcome"], "rejected");
    assert_eq!(result["errors"][0]["file"], file("20-later.toml"));
    assert_eq!(result["errors"][0]["line"], 2);
    // Without the folder it is as it was.
    std::fs::remove_dir_all(&folder).expect("removed");
    assert_applied(&daemon.reload());
    assert_eq!(daemon.listener("main")["backlog"]["effective"], 10);
    assert!(refuses(at(second)));
}
