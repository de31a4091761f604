//! What readers, operators and admins may do over the control socket.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::{ALL_KINDS, code};
use crate::harness::{
    Daemon, ECHOCTL, ECHOD, ECHOPROBE, folder_of, install, not_tested, run, text,
};

/// Users and groups without names.
const STRANGER: u32 = 4_000_003;
const OPERATOR: u32 = 4_000_001;
const ADMIN: u32 = 4_000_002;
const OPERATORS: u32 = 4_000_011;
const ADMINS: u32 = 4_000_012;

/// Whether callers can be other users; if not, reports it.
fn can_be_others() -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        not_tested("only root can call as other users");
    }
    is_root
}

/// A socket to which all users may connect, and the lists of those that may do more.
fn config(operators: &str, admins: &str) -> String {
    format!(
        "{ALL_KINDS}[control]\nmode = \"0666\"\noperators = [{operators}]\nadmins = [{admins}]\n"
    )
}

/// Starts it where other users find its socket and the programs.
fn start(config: &str) -> Daemon {
    Daemon::start_with(config, |command| {
        use std::os::unix::fs::PermissionsExt;
        let folder = folder_of(command);
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&folder, mode).expect("set");
        install(ECHOCTL, &folder.join("echoctl"));
        install(ECHOPROBE, &folder.join("echoprobe"));
    })
}

/// One of these programs, run by this user with these groups beside its own.
fn program_of(daemon: &Daemon, uid: u32, groups: &[u32], program: &str) -> Command {
    let mut command = Command::new("setpriv");
    let (uid, groups) = (uid.to_string(), groups.iter().map(u32::to_string));
    command.args(["--reuid", &uid, "--regid", &uid]);
    match groups.collect::<Vec<_>>().join(",") {
        none if none.is_empty() => command.arg("--clear-groups"),
        groups => command.args(["--groups", &groups]),
    };
    command
        .arg(daemon.path(program))
        .env("ECHOCTL_SOCKET", daemon.path("control.sock"))
        .current_dir("/");
    command
}

/// Whether this is refused to the user, and the message says what to do.
fn is_denied(daemon: &Daemon, uid: u32, groups: &[u32], arguments: &[&str]) -> bool {
    let output = run(program_of(daemon, uid, groups, "echoctl").args(arguments));
    let said = text(&output.stderr);
    let denied = code(&output) == Some(77);
    assert_eq!(denied, said.contains("have [control] "), "{said}");
    denied
}

/// A connection of another user that stays open: one program's standard input and output.
struct Connection {
    child: Child,
}

impl Connection {
    fn open(daemon: &Daemon, uid: u32) -> Self {
        let url = format!("unix://{}", daemon.path("control.sock").display());
        let mut command = program_of(daemon, uid, &[], "echoprobe");
        command.args(["send", "--expect", "any", &url]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command.stderr(Stdio::null()).spawn();
        Self {
            child: child.expect("echoprobe runs"),
        }
    }

    fn send(&mut self, method: &str, parameters: &Value) {
        let method = format!("io.echod.Control.{method}");
        let request = json!({ "method": method, "parameters": parameters });
        let input = self.child.stdin.as_mut().expect("it is piped");
        input
            .write_all(format!("{request}\0").as_bytes())
            .expect("sent");
    }

    fn reply(&mut self) -> Value {
        let output = self.child.stdout.as_mut().expect("it is piped");
        let mut reply = Vec::new();
        // Nothing follows it before the next request.
        let read = BufReader::new(output).read_until(0, &mut reply);
        read.expect("a reply");
        serde_json::from_slice(reply.strip_suffix(&[0]).expect("the whole reply")).expect("JSON")
    }

    /// Whether it may set a backlog.
    fn is_operator(&mut self) -> bool {
        let parameters = json!({ "listener": "main", "backlog": 7 });
        self.send("SetBacklog", &parameters);
        let reply = self.reply();
        match reply["error"].as_str() {
            Some(error) => {
                assert_eq!(error, "org.varlink.service.PermissionDenied");
                false
            }
            None => true,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn readers_look_operators_change_listeners_and_peers_and_admins_the_daemon() {
    if !can_be_others() {
        return;
    }
    let operators = format!("\"{OPERATOR}\", \"@{OPERATORS}\"");
    let admins = format!("\"{ADMIN}\", \"@{ADMINS}\"");
    let daemon = start(&config(&operators, &admins));
    let for_readers: &[&[&str]] = &[&["status"], &["listeners"], &["peers"], &["config", "show"]];
    let for_operators: &[&[&str]] = &[&["backlog", "main", "7"], &["kick", "--older", "1h"]];
    let for_admins: &[&[&str]] = &[
        &["reload"],
        &["log-level", "info"],
        &["hand-over"],
        &["upgrade"],
    ];
    let many: Vec<u32> = (5_000_000..5_000_100).chain([OPERATORS]).collect();
    let callers: [(u32, &[u32], usize); 6] = [
        (STRANGER, &[], 1),
        (OPERATOR, &[], 2),
        (STRANGER, &[OPERATORS], 2),
        (STRANGER, &many, 2),
        (ADMIN, &[], 3),
        (STRANGER, &[ADMINS, OPERATORS], 3),
    ];
    for (uid, groups, may) in callers {
        for (rank, calls) in [for_readers, for_operators, for_admins].iter().enumerate() {
            for call in *calls {
                let denied = is_denied(&daemon, uid, groups, call);
                assert_eq!(denied, rank >= may, "{uid} {groups:?}: {call:?}");
            }
        }
    }
}

#[test]
fn a_denied_attempt_is_logged_with_uid_pid_program_and_method() {
    if !can_be_others() {
        return;
    }
    let daemon = start(&config("", ""));
    assert!(is_denied(&daemon, STRANGER, &[], &["reload"]));
    let log = daemon.log();
    let is_it = |line: &&str| {
        let begin = format!("control: uid {STRANGER} (pid ");
        line.contains(&begin)
            && line.ends_with(", program \"echoctl\") may not call \"io.echod.Control.Reload\"")
    };
    assert_eq!(log.lines().filter(is_it).count(), 1, "{log}");
}

#[test]
fn denied_attempts_do_not_flood_the_log() {
    if !can_be_others() {
        return;
    }
    let daemon = start(&config("", ""));
    let mut connection = Connection::open(&daemon, STRANGER);
    for _ in 0..300 {
        assert!(!connection.is_operator());
    }
    let log = daemon.log();
    let lines = log.lines().filter(|line| line.contains("may not call"));
    // A machine that is slow enough begins a second window.
    assert!((100..=200).contains(&lines.count()), "{log}");
}

#[test]
fn a_reload_changes_what_an_open_connection_may_do() {
    if !can_be_others() {
        return;
    }
    let daemon = start(&config("", ""));
    let mut connection = Connection::open(&daemon, STRANGER);
    assert!(!connection.is_operator());
    let result = daemon.reload_with(&config(&format!("\"@{STRANGER}\""), ""));
    let change = format!("daemon: control operators [] → [\"@{STRANGER}\"] (live)");
    let texts = result["changes"].to_string();
    assert!(texts.contains(&change.replace('"', "\\\"")), "{texts}");
    assert!(connection.is_operator());
    assert_eq!(daemon.reload_with(&config("", ""))["outcome"], "applied");
    assert!(!connection.is_operator());
}

#[test]
fn a_successor_knows_the_roles_also_of_connections_that_it_takes_over() {
    if !can_be_others() {
        return;
    }
    let daemon = start(&config(&format!("\"{OPERATOR}\""), ""));
    let mut operator = Connection::open(&daemon, OPERATOR);
    let mut stranger = Connection::open(&daemon, STRANGER);
    let mut check = || {
        assert!(operator.is_operator());
        assert!(!stranger.is_operator());
        assert!(!is_denied(
            &daemon,
            OPERATOR,
            &[],
            &["backlog", "main", "7"]
        ));
        assert!(is_denied(&daemon, OPERATOR, &[], &["log-level", "info"]));
    };
    check();
    daemon.ctl_text(&["upgrade"]);
    check();
}

#[test]
fn an_unknown_user_or_group_is_an_error_at_its_place_and_changes_nothing() {
    let good = config("\"root\"", "");
    let bad = config("\"root\", \"@no-such-group\"", "\"no-such-user\"");
    let place = |what: &str| {
        let before = bad.split(what).next().expect("the text before it");
        let column = before.lines().last().map_or(0, str::len) + 1;
        (before.lines().count(), column)
    };
    let expected = [
        (
            "\"@no-such-group",
            "[control] operators: @no-such-group: there is no such group: groupadd --system no-such-group",
        ),
        (
            "\"no-such-user",
            "[control] admins: no-such-user: there is no such user: useradd --system --user-group no-such-user",
        ),
    ];
    let lines = expected.map(|(what, message)| {
        let (line, column) = place(what);
        format!("echod.toml:{line}:{column}: {message}\n")
    });
    let daemon = Daemon::start(&good);
    let before = daemon.ctl_text(&["config", "show"]);
    let result = daemon.reload_with(&bad);
    assert_eq!(result["outcome"], "rejected", "{result}");
    for (error, (what, message)) in result["errors"]
        .as_array()
        .expect("a list")
        .iter()
        .zip(expected)
    {
        let (line, column) = place(what);
        assert_eq!(error["message"], message);
        assert_eq!(
            (&error["line"], &error["column"]),
            (&json!(line), &json!(column))
        );
    }
    assert_eq!(daemon.ctl_text(&["config", "show"]), before);
    let file = daemon.path("echod.toml");
    let checked = run(Command::new(ECHOD).args(["--check", "--config"]).arg(&file));
    assert_eq!(code(&checked), Some(78));
    let mut started = Daemon::spawn(&bad, |_| {});
    assert_eq!(started.wait().code(), Some(78));
    for said in [text(&checked.stderr), started.log()] {
        let found: Vec<&str> = said.lines().collect();
        assert_eq!(found.len(), lines.len(), "{said}");
        for line in &lines {
            assert!(said.contains(line), "{line} in {said}");
        }
    }
}
