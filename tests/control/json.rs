//! `echoctl --json`: one object on standard output, whatever the command and however it ends.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::process::Command;

use serde_json::Value;

use super::{ALL_KINDS, code};
use crate::harness::{Daemon, ECHOCTL, run, text};

/// Its arguments, and a field of the reply that the manual page names for it.
type Sample = (&'static [&'static str], &'static str);

/// Of each command what succeeds.
const SUCCEEDS: &[Sample] = &[
    (&["status"], "status"),
    (&["listeners"], "listeners"),
    (&["listeners", "main"], "listeners"),
    (&["peers"], "peers"),
    (&["backlog", "main"], "listeners"),
    (&["backlog", "main", "16"], "after"),
    (&["pause", "main", "--hold"], "listeners"),
    (&["drain", "main", "--deadline", "0s"], "connections"),
    (&["resume", "main"], "listeners"),
    (&["kick", "main"], "matched"),
    (&["kick", "main", "--dry-run", "--verbose"], "matched"),
    (&["reload", "--dry-run"], "result"),
    (&["reload"], "result"),
    (&["reload", "--quiet"], "result"),
    (&["reload", "--last"], "status"),
    // The backlog that was set above is what changes, and changes back.
    (&["backlog", "main", "32"], "after"),
    (&["reload", "--confirm", "1h"], "result"),
    (&["confirm"], "id"),
    (&["rollback", "--dry-run"], "result"),
    (&["rollback"], "result"),
    (&["check", "{dir}/echod.toml"], "messages"),
    (&["config", "show"], "toml"),
    (&["log-level"], "status"),
    (&["log-level", "debug"], "after"),
    (&["call", "GetStatus"], "status"),
    (&["upgrade"], "result"),
    // A unit to which nothing is about to happen.
    (
        &["hand-over", "--if-restarting", "echod.service"],
        "messages",
    ),
];

/// Of each command what fails with a running daemon, and with which status. Those that can't are
/// asked where there is no daemon.
const FAILS: &[(&[&str], i32)] = &[
    (&["status", "main"], 2),
    (&["listeners", "nobody"], 1),
    (&["listeners", "--interval", "1s"], 2),
    (&["peers", "--listener", "nobody"], 1),
    (&["peers", "--address", "10.0.0.0/33"], 2),
    (&["backlog", "nobody", "16"], 1),
    (&["backlog", "datagrams"], 1),
    (&["backlog", "main", "0"], 2),
    (&["pause"], 2),
    (&["resume", "nobody"], 1),
    (&["drain", "main", "--deadline", "soon"], 2),
    (&["kick", "nobody"], 1),
    (&["kick", "10.0.0.256"], 2),
    (&["reload", "--last", "--dry-run"], 2),
    (&["reload", "--confirm", "0s"], 2),
    (&["confirm"], 1),
    (&["rollback", "now"], 2),
    (&["check", "{dir}/missing.toml"], 78),
    (&["config"], 2),
    (&["config", "hide"], 2),
    (&["log-level", "loud"], 2),
    (&["upgrade", "now"], 2),
    (&["hand-over", "now"], 2),
    (&["call", "Fly"], 1),
    (&["call", "GetStatus", "[]"], 2),
    (&["completions", "csh"], 2),
    (&["completions", "bash", "sh"], 2),
    (&["fly"], 2),
    (&[], 2),
];

/// Runs echoctl, which must print one object and nothing else.
fn object(daemon: &Daemon, arguments: &[&str]) -> (Value, Option<i32>) {
    let folder = daemon.folder.path().display().to_string();
    let mut command = Command::new(ECHOCTL);
    command.env("ECHOCTL_SOCKET", daemon.path("control.sock"));
    // A systemd that is about to do nothing.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{folder}:{path}"));
    command.arg("--json");
    command.args(arguments.iter().map(|one| one.replace("{dir}", &folder)));
    let output = run(&mut command);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(stderr, "", "{arguments:?}");
    assert!(stdout.ends_with("}\n"), "{arguments:?}: {stdout}");
    assert_eq!(stdout.lines().count(), 1, "{arguments:?}: {stdout}");
    let object = serde_json::from_str(&stdout);
    (
        object.unwrap_or_else(|_| panic!("{arguments:?}: {stdout}")),
        code(&output),
    )
}

/// An error as the manual page has it.
fn assert_is_error(object: &Value, status: i32) {
    assert!(object["error"].is_string(), "{object}");
    assert_eq!(object["exit_status"], status, "{object}");
    let messages = object["messages"].as_array().expect("a list");
    assert!(
        !messages.is_empty() && messages.iter().all(Value::is_string),
        "{object}"
    );
}

/// The commands that the help lists.
fn commands() -> BTreeSet<String> {
    let help = text(&run(Command::new(ECHOCTL).arg("--help")).stdout);
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = lines.take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    // An indented line continues the one above.
    let names = names.filter(|name| !name.is_empty());
    names.map(String::from).collect()
}

/// `reload --quiet` printed nothing.
#[test]
fn every_command_prints_one_object_when_it_succeeds_and_when_it_fails() {
    let daemon = Daemon::start(ALL_KINDS);
    symlink("/bin/true", daemon.path("systemctl")).expect("a link");
    let mut named = BTreeSet::from(["help"]);
    for (arguments, status) in FAILS {
        let (object, found) = object(&daemon, arguments);
        assert_eq!(found, Some(*status), "{arguments:?}: {object}");
        assert_is_error(&object, *status);
        named.extend(arguments.first());
    }
    assert!(named.remove("fly"), "no such command");
    let known = commands();
    assert_eq!(
        named,
        known.iter().map(String::as_str).collect(),
        "each fails once"
    );
    for (arguments, field) in SUCCEEDS {
        let (object, found) = object(&daemon, arguments);
        assert_eq!(found, Some(0), "{arguments:?}: {object}");
        assert!(!object[*field].is_null(), "{arguments:?}: {object}");
        assert!(object["error"].is_null(), "{arguments:?}: {object}");
        named.remove(arguments[0]);
    }
    // Its script and its help are for a shell and for people.
    assert_eq!(
        named,
        BTreeSet::from(["completions", "help"]),
        "each succeeds once"
    );
}

#[test]
fn every_command_prints_one_object_when_no_daemon_is_running() {
    let daemon = Daemon::start(ALL_KINDS);
    let missing = daemon.path("missing.sock").display().to_string();
    let calls = SUCCEEDS.iter().filter(|(_, field)| *field != "messages");
    for (arguments, _) in calls {
        let arguments = [&["--socket", &missing], *arguments].concat();
        let (object, found) = object(&daemon, &arguments);
        assert_eq!(found, Some(69), "{arguments:?}: {object}");
        assert_eq!(object["error"], "echoctl.NotRunning", "{object}");
        assert_is_error(&object, 69);
    }
}
