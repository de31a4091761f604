//! What an operator learns of echoctl and of echod's command line: what is in force, what is wrong, and
//! what would be right; people in words and programs in JSON.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::harness::{
    Daemon, ECHOCTL, ECHOD, STREAM_AND_DATAGRAMS, eventually, exchange, run, text, udp,
};

fn status(daemon: &Daemon) -> Value {
    daemon.ctl_json(&["status"])["status"].clone()
}

/// A source of datagrams that the daemon has seen.
fn send_datagram(daemon: &Daemon) -> std::net::UdpSocket {
    let socket = udp("127.0.0.1:0");
    let to = daemon.address("datagrams");
    socket.send_to(b"x", to).expect("sent");
    socket.recv(&mut [0; 16]).expect("answered");
    socket
}

/// The only thing that it prints, which is JSON.
fn only_json(output: &Output) -> Value {
    assert_eq!(text(&output.stderr), "");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn the_status_says_whether_what_is_on_disk_is_in_force() {
    let daemon = Daemon::start(STREAM_AND_DATAGRAMS);
    // The disk answers at once, but on a busy machine perhaps not within the time that it has.
    let is_seen = |state: &str| {
        eventually(state, || status(&daemon)["config_on_disk"] == state);
    };
    is_seen("same");
    // The same content is no change, whenever it was written.
    daemon.write_config(STREAM_AND_DATAGRAMS);
    is_seen("same");
    daemon.write_config(&format!("{STREAM_AND_DATAGRAMS}# a change\n"));
    is_seen("changed");
    let shown = daemon.ctl_text(&["status"]);
    assert!(shown.contains("\n  on disk        "), "{shown}");
    assert_eq!(daemon.reload()["outcome"], "unchanged");
    is_seen("same");
    let drop_ins = daemon.path("echod.d");
    fs::create_dir_all(&drop_ins).expect("a folder");
    fs::write(drop_ins.join("99.toml"), "[log]\nlevel = \"debug\"\n").expect("a drop-in");
    is_seen("changed");
    fs::remove_file(drop_ins.join("99.toml")).expect("removed");
    is_seen("same");
    fs::remove_file(daemon.path("echod.toml")).expect("removed");
    is_seen("missing");
    fs::create_dir(daemon.path("echod.toml")).expect("a folder");
    is_seen("unreadable");
}

#[test]
fn what_was_read_is_known_after_an_upgrade() {
    let daemon = Daemon::start(STREAM_AND_DATAGRAMS);
    daemon.ctl_text(&["upgrade"]);
    eventually("the same", || status(&daemon)["config_on_disk"] == "same");
}

/// It stood below ten other lines.
#[test]
fn a_rejected_configuration_is_the_first_thing_that_the_status_shows() {
    let daemon = Daemon::start(STREAM_AND_DATAGRAMS);
    daemon.write_config("[listener.main]\nprotocol = \"tpc\"\n");
    assert_eq!(daemon.reload()["outcome"], "rejected");
    let shown = daemon.ctl_text(&["status"]);
    let first = "configuration rejected: 2 errors; generation 1 stays in force\n";
    assert!(shown.starts_with(first), "{shown}");
    daemon.write_config(STREAM_AND_DATAGRAMS);
    eventually("it is as good as never broken", || {
        daemon.ctl_text(&["status"]).starts_with("echod ")
    });
}

#[test]
fn the_status_has_paths_limits_and_sums() {
    let daemon = Daemon::start(STREAM_AND_DATAGRAMS);
    let mut peer = daemon.connect("main");
    exchange(&mut peer, b"hello");
    daemon.ctl_text(&["kick", "main"]);
    eventually("it is closed", || status(&daemon)["closed"]["kicked"] == 1);
    let status = status(&daemon);
    let socket = daemon.path("control.sock").display().to_string();
    assert_eq!(status["control_socket"], socket);
    assert_eq!(status["log_level"], "info");
    assert_eq!(status["max_connections"], 10_000);
    assert_eq!(status["refused"]["denied"], 0);
    assert_eq!(status["faults"], 0);
    let (open, max) = (&status["descriptors"], &status["max_descriptors"]);
    let (open, max) = (
        open.as_u64().expect("a number"),
        max.as_u64().expect("a number"),
    );
    assert!(open > 0 && open < max, "{status}");
    // The look itself may have had one open.
    assert!(open.abs_diff(daemon.descriptors() as u64) <= 4, "{status}");
}

/// The errors of a text that was repaired since stood there as those of the present one.
#[test]
fn the_status_shows_errors_only_of_the_texts_that_are_on_disk() {
    let daemon = Daemon::start(STREAM_AND_DATAGRAMS);
    let wait = |is_current: bool| {
        eventually("the files are compared", || {
            let status = status(&daemon);
            status["rejected_on_disk"] == is_current && !status["config_on_disk"].is_null()
        });
        let shown = daemon.ctl_text(&["status"]);
        let is_first = shown.starts_with("configuration rejected: ");
        assert_eq!(is_first, is_current, "{shown}");
    };
    assert!(status(&daemon)["rejected_on_disk"].is_null());
    let wrong = format!("zz = 1\n{STREAM_AND_DATAGRAMS}");
    daemon.write_config(&wrong);
    assert_eq!(daemon.reload()["outcome"], "rejected");
    wait(true);
    daemon.write_config(&format!(
        "{STREAM_AND_DATAGRAMS}# repaired, with a change\n"
    ));
    wait(false);
    daemon.write_config(&wrong);
    wait(true);
    let file = daemon.path("echod.toml");
    fs::remove_file(&file).expect("removed");
    wait(false);
    // What could not be read is the same as long as it can't be read for the same reason.
    assert_eq!(daemon.reload()["outcome"], "rejected");
    wait(true);
    fs::create_dir(&file).expect("a folder");
    wait(false);
    fs::remove_dir(&file).expect("removed");
    daemon.write_config(STREAM_AND_DATAGRAMS);
    assert_eq!(daemon.reload()["outcome"], "unchanged");
    assert!(status(&daemon)["rejected_on_disk"].is_null());
}

/// It was the relative path of another process's folder.
#[test]
fn the_status_has_absolute_paths_whatever_was_typed() {
    let daemon = Daemon::start_with(STREAM_AND_DATAGRAMS, |command| {
        let folder = crate::harness::folder_of(command);
        let arguments = ["--config", "echod.toml", "--socket", "control.sock"];
        let arguments = arguments.map(Into::into).to_vec();
        *command = crate::harness::instead(command, ECHOD, arguments);
        command.current_dir(folder);
    });
    let status = status(&daemon);
    let files = daemon.config_files(&[]);
    assert_eq!(status["config"], json!(files));
    let socket = daemon.path("control.sock").display().to_string();
    assert_eq!(status["control_socket"], socket);
}

#[test]
fn the_log_level_is_read_without_an_argument() {
    let daemon = Daemon::start(STREAM_AND_DATAGRAMS);
    assert_eq!(daemon.ctl_text(&["log-level"]), "info\n");
    daemon.ctl_text(&["log-level", "debug"]);
    assert_eq!(daemon.ctl_text(&["log-level"]), "debug\n");
    let reply = daemon.ctl_json(&["log-level"]);
    assert_eq!(reply["status"]["log_level"], "debug");
}

/// It said "no connection matches", and ended with 0.
#[test]
fn a_kick_of_a_datagram_source_says_that_there_is_nothing_to_close() {
    let daemon = Daemon::start(STREAM_AND_DATAGRAMS);
    let _source = send_datagram(&daemon);
    let id = daemon.ctl_json(&["peers"])["peers"][0]["id"].to_string();
    for selector in ["datagrams", &id] {
        let output = daemon.ctl(&["kick", selector]);
        assert_eq!(output.status.code(), Some(1));
        let told = "echoctl: 1 source has nothing to close: datagrams have no connection\n";
        assert_eq!(text(&output.stderr), told);
        let output = daemon.ctl(&["--json", "kick", selector]);
        assert_eq!(output.status.code(), Some(1));
        let reply = json!({"matched": 0, "closed": 0, "sources": 1});
        assert_eq!(only_json(&output), reply);
    }
    assert_eq!(
        daemon.ctl_text(&["kick", "999999"]),
        "no connection matches\n"
    );
}

#[test]
fn a_verbose_kick_lists_what_it_closes_or_would() {
    let daemon = Daemon::start(STREAM_AND_DATAGRAMS);
    let mut peers: Vec<_> = (0..2).map(|_| daemon.connect("main")).collect();
    for peer in &mut peers {
        exchange(peer, b"hello");
    }
    let addresses = peers
        .iter()
        .map(|peer| peer.local_addr().expect("an address"));
    let addresses: Vec<String> = addresses.map(|address| address.to_string()).collect();
    for (arguments, end) in [
        (
            &["kick", "main", "--verbose", "--dry-run"][..],
            "would close 2 connections\n",
        ),
        (&["kick", "main", "--verbose"], "closed 2 connections\n"),
        (&["kick", "main", "--verbose"], "no connection matches\n"),
    ] {
        let shown = daemon.ctl_text(arguments);
        assert!(shown.ends_with(end), "{shown}");
        let is_listed = |address: &String| shown.contains(address.as_str());
        assert_eq!(
            addresses.iter().all(is_listed),
            !end.starts_with("no"),
            "{shown}"
        );
        eventually("they are gone", || {
            arguments.len() == 4 || status(&daemon)["connections"] == 0
        });
    }
}

#[test]
fn what_a_unix_peer_has_not_read_is_shown() {
    let daemon = Daemon::start(
        "[listener.local]\nprotocol = \"unix-stream\"\naddress = \"{dir}/local.sock\"\n",
    );
    let mut peer = UnixStream::connect(daemon.path("local.sock")).expect("a connection");
    peer.write_all(&[b'x'; 4000]).expect("sent");
    let unsent = || daemon.ctl_json(&["peers"])["peers"][0]["send_queue"].clone();
    eventually("it waits to be read", || unsent().as_u64() >= Some(4000));
    let shown = daemon.ctl_text(&["peers"]);
    assert!(
        shown
            .lines()
            .next()
            .expect("a header")
            .contains("  UNSENT  "),
        "{shown}"
    );
}

#[test]
fn a_reload_names_each_listener_once() {
    let daemon = Daemon::start(STREAM_AND_DATAGRAMS);
    daemon.write_config(
        &STREAM_AND_DATAGRAMS.replace("[listener.main]", "[listener.main]\nbacklog = 77"),
    );
    for (arguments, expected) in [
        (
            &["reload", "--dry-run"][..],
            "would change: backlog 1024 → 77 (live)",
        ),
        (&["reload"], "backlog 1024 → 77 (live)"),
    ] {
        let shown = daemon.ctl_text(arguments);
        let row = shown.lines().find(|line| line.starts_with("update "));
        let row = row.expect("a row").to_owned();
        assert!(row.ends_with(expected), "{shown}");
        assert_eq!(row.matches("main").count(), 1, "{shown}");
    }
}

#[test]
fn every_error_is_one_object_for_programs() {
    let daemon = Daemon::start(STREAM_AND_DATAGRAMS);
    let missing = daemon.path("missing.sock").display().to_string();
    let check = |arguments: &[&str], error: &str, exit: i32| {
        let output = daemon.ctl(&[&["--json"], arguments].concat());
        let object = only_json(&output);
        assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {object}");
        assert_eq!(object["error"], error, "{arguments:?}: {object}");
        assert_eq!(object["exit_status"], exit, "{arguments:?}: {object}");
        let messages = object["messages"].as_array().expect("a list");
        assert!(
            !messages.is_empty() && messages.iter().all(Value::is_string),
            "{object}"
        );
        object
    };
    let not_found = check(&["listeners", "x"], "io.echod.Control.ListenerNotFound", 1);
    assert_eq!(not_found["name"], "x");
    check(&["call", "Fly"], "org.varlink.service.MethodNotFound", 1);
    check(&["call", "GetStatus", "{"], "echoctl.Usage", 2);
    check(&["backlog", "datagrams"], "echoctl.Failed", 1);
    check(&["kick"], "echoctl.Usage", 2);
    check(&["kick", "main", "--listener", "main"], "echoctl.Usage", 2);
    check(&["peers", "--sort", "size"], "echoctl.Usage", 2);
    check(&["upgrade", "main"], "echoctl.Usage", 2);
    let output = daemon.ctl(&["--json=1", "status"]);
    assert_eq!(only_json(&output)["error"], "echoctl.Usage");
    daemon.write_config("[listener.main]\nprotocol = \"tpc\"\n");
    // --quiet is for text that the log repeats; a program has only this object.
    for arguments in [
        &["reload"][..],
        &["reload", "--dry-run"],
        &["reload", "--quiet"],
    ] {
        let rejected = check(arguments, "io.echod.Control.ConfigRejected", 78);
        assert_eq!(rejected["result"]["outcome"], "rejected");
    }
    let file = daemon.path("echod.toml").display().to_string();
    check(&["check", &file], "echoctl.ConfigRejected", 78);
    // The reply is the status, which has all of it.
    let output = daemon.ctl(&["--json", "reload", "--last"]);
    assert_eq!(output.status.code(), Some(78));
    let last = &only_json(&output)["status"]["last_reload"];
    assert_eq!(last["outcome"], "rejected");
    for command in [
        &["status"][..],
        &["listeners"],
        &["peers"],
        &["backlog", "main"],
        &["kick", "main"],
        &["reload"],
        &["config", "show"],
        &["log-level"],
        &["upgrade"],
        &["hand-over"],
        &["call", "GetStatus"],
    ] {
        let arguments = [&["--socket", &missing], command].concat();
        check(&arguments, "echoctl.NotRunning", 69);
    }
}

/// Only systemd's variable, or a drop-in, told it of one that is not at its usual place.
#[test]
fn an_error_says_which_socket_was_tried_and_why() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("c.sock").display().to_string();
    let said = |change: &dyn Fn(&mut Command)| {
        let mut command = Command::new(ECHOCTL);
        for variable in ["ECHOCTL_SOCKET", "RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"] {
            command.env_remove(variable);
        }
        command.arg("status");
        change(&mut command);
        let output = run(&mut command);
        assert_eq!(output.status.code(), Some(69));
        text(&output.stderr)
    };
    let expected = |reason: &str| {
        let advice = "no such file; is echod running? (systemctl status echod)";
        format!("echoctl: {path}: {advice}; the path is that of {reason}\n")
    };
    let option = |command: &mut Command| _ = command.args(["--socket", &path]);
    assert_eq!(said(&option), expected("--socket"));
    let variable = |command: &mut Command| _ = command.env("ECHOCTL_SOCKET", &path);
    assert_eq!(said(&variable), expected("$ECHOCTL_SOCKET"));
}

#[test]
fn a_check_names_what_it_checked_and_gives_advice_that_can_be_followed() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("right.toml");
    fs::write(&file, STREAM_AND_DATAGRAMS).expect("a configuration");
    let checked = |arguments: &[&str]| {
        let mut command = Command::new(ECHOD);
        command.arg("--check").args(arguments);
        // Where nothing is in the way of a control socket.
        command.arg("--socket").arg(folder.path().join("c.sock"));
        run(&mut command)
    };
    let output = checked(&["--config", &file.display().to_string()]);
    let start = format!("{}: fine; 2 listeners, driver ", file.display());
    assert!(
        text(&output.stdout).starts_with(&start),
        "{}",
        text(&output.stdout)
    );
    // "Remove it, or give it another name" was the advice.
    let output = checked(&["--config", "/dev/null"]);
    assert_eq!(output.status.code(), Some(78));
    let expected = "echod: /dev/null: a device, not a file: name another with --config\n";
    assert_eq!(text(&output.stderr), expected);
    let output = run(Command::new(ECHOD).args(["--check", "--print-config"]));
    assert_eq!(output.status.code(), Some(2));
}

/// What a person meets in a table is explained in the page.
#[test]
fn every_state_refusal_reason_and_change_is_in_the_manual_page() {
    use echod::internals::{ChangeAction, CloseReason, ListenerState, Refusal};

    let page = include_str!("../docs/man/echoctl.1");
    let has = |line: &str| {
        page.lines()
            .any(|known| known.trim_end_matches([' ', ';', ':', '.']) == line)
    };
    for reason in Refusal::ALL.map(Refusal::name) {
        assert!(has(&format!(".It Cm {reason}")), "{reason}");
    }
    for reason in CloseReason::ALL.map(CloseReason::name) {
        assert!(has(&format!(".It Cm {reason}")), "{reason}");
    }
    use ListenerState::{Draining, Holding, Listening, Paused, Retired};
    for state in [Listening, Paused, Holding, Draining, Retired] {
        assert!(has(&format!(".Cm {}", state.name())), "{state:?}");
    }
    use ChangeAction::{Add, Rebind, Remove, Update};
    for action in [Add, Update, Rebind, Remove] {
        let name = action.name();
        let listed = page.contains(&format!(".Cm {name} ,")) || has(&format!(".Cm {name}"));
        assert!(listed, "{name}");
    }
    for state in ["serving", "leaving", "draining", "stopping"] {
        assert!(has(&format!(".Cm {state}")), "{state}");
    }
    for column in ["ACTION", "LISTENER", "CONNECTIONS", "CHANGE"] {
        assert!(has(&format!(".It {column}")), "{column}");
    }
}

/// A moved socket broke `systemctl reload`, with a hint that was false.
#[test]
fn a_socket_that_the_default_configuration_moves_is_found() {
    if !nix::unistd::geteuid().is_root() {
        return crate::harness::not_tested("another user can't have an /etc of its own");
    }
    let daemon = Daemon::start(STREAM_AND_DATAGRAMS);
    let socket = daemon.path("control.sock").display().to_string();
    let file = daemon.path("default.toml");
    let ask_with = |socket: &str, default: &str| {
        fs::write(&file, format!("[control]\nsocket = \"{socket}\"\n")).expect("written");
        // An /etc that nothing else sees, with this configuration in it.
        let own = "mount -t tmpfs tmpfs /etc && mkdir /etc/echod && \
                   cp \"$0\" /etc/echod/echod.toml && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", own]);
        command.arg(&file).args([ECHOCTL, "status"]);
        command.env_remove("ECHOCTL_SOCKET");
        command.env("RUNTIME_DIRECTORY", default);
        run(&mut command)
    };
    let ask = |socket: &str| ask_with(socket, "/nowhere/default");
    let output = ask(&socket);
    let stderr = text(&output.stderr);
    if stderr.starts_with("unshare: ") || stderr.starts_with("mount: ") {
        return crate::harness::not_tested(stderr);
    }
    assert!(output.status.success(), "{stderr}");
    assert!(text(&output.stdout).contains(&socket));
    let output = ask("/nowhere/c.sock");
    assert_eq!(output.status.code(), Some(69));
    let stderr = text(&output.stderr);
    let reason = "the path is that of [control] socket in the default configuration";
    assert!(
        stderr.starts_with("echoctl: /nowhere/c.sock: no such file;"),
        "{stderr}"
    );
    assert!(stderr.contains(reason), "{stderr}");
    let default = "\nechoctl: /nowhere/default/control.sock: no such file;";
    assert!(stderr.contains(default), "{stderr}");
    // The daemon that runs does not know yet that its socket is to be elsewhere.
    let folder = daemon.path("");
    let output = ask_with("/nowhere/c.sock", &folder.display().to_string());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains(&socket));
}
