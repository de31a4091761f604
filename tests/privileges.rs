//! Started as root: what the daemon may do once it has become another user, as the kernel sees
//! it and as an operator meets it.

use std::collections::BTreeSet;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, MetadataExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use nix::unistd::{User, geteuid};

use crate::harness::{
    Daemon, ECHOD, after_shell_line, close_socket, connect, exchange, free_port, install,
    not_tested, run, text,
};

/// The user that the tests become: it exists everywhere, and owns nothing.
const USER: &str = "nobody";

/// Whether these tests can run; if not, reports it.
fn is_root() -> bool {
    let is_root = geteuid().is_root();
    if !is_root {
        not_tested("only root can start a daemon that changes its user");
    }
    is_root
}

fn nobody() -> User {
    User::from_name(USER)
        .expect("users")
        .expect("there is the user nobody")
}

/// A folder of that user's, with a configuration for one more listener.
fn folder_of_nobody() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    give_to_nobody(folder.path());
    let file = folder.path().join("more.toml");
    fs::write(&file, tcp("more", 0)).expect("a drop-in");
    give_to_nobody(&file);
    folder
}

fn give_to_nobody(path: &Path) {
    let user = nobody();
    chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("root may");
}

fn tcp(name: &str, port: u16) -> String {
    format!("[listener.{name}]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:{port}\"\n")
}

fn unix(name: &str, path: &str) -> String {
    format!("[listener.{name}]\nprotocol = \"unix-stream\"\naddress = \"{path}\"\n")
}

/// The configuration, with the user if it is to be dropped to.
fn config(user: &str, listeners: &str) -> String {
    format!("[daemon]\nworkers = 2\nuser = \"{user}\"\n{listeners}")
}

/// Starts it in a folder that the user may use as well, as a service manager would.
fn start(config: &str, change: impl FnOnce(&mut Command)) -> Daemon {
    Daemon::start_with(config, |command| {
        open_folder(command);
        change(command);
    })
}

fn open_folder(command: &Command) {
    let file = command.get_args().nth(1).expect("--config FILE");
    let folder = Path::new(file).parent().expect("a folder");
    give_to_nobody(folder);
    give_to_nobody(&folder.join("notify"));
}

/// Starts it as that user, with nothing to give up: what the user alone may do.
fn as_nobody(command: &mut Command) {
    open_folder(command);
    let file = command.get_args().nth(1).expect("--config FILE");
    // Where this user can run it, wherever it was built.
    let copy = Path::new(file).with_file_name("echod");
    install(ECHOD, &copy);
    let (uid, gid) = (nobody().uid, nobody().gid);
    let copy = copy.display();
    let line = format!("exec setpriv --reuid {uid} --regid {gid} --clear-groups {copy} \"$@\"");
    after_shell_line(command, &line);
}

/// Free ports below 1024.
fn low_ports() -> impl Iterator<Item = u16> {
    // Every process begins elsewhere, so that two runs keep out of each other's way.
    let first = (std::process::id() % 300) as u16;
    (0..300)
        .map(move |at| 700 + (first + at) % 300)
        .filter(|&port| {
            TcpListener::bind(("127.0.0.1", port))
                .map(close_socket)
                .is_ok()
        })
}

/// A field of every thread's status, without doubles.
fn of_all_threads(daemon: &Daemon, field: &str) -> BTreeSet<String> {
    let threads = fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("it runs");
    let values: Vec<String> = threads
        .filter_map(|thread| {
            let file = thread.expect("a thread").path().join("status");
            // None of one that has ended since.
            let status = fs::read_to_string(file).ok()?;
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(&format!("{field}:")));
            let words = line.expect("the field").split_ascii_whitespace();
            Some(words.collect::<Vec<_>>().join(" "))
        })
        .collect();
    // The main one, the workers, and the one that speaks to the service manager.
    assert!(values.len() >= 4, "{values:?}");
    values.into_iter().collect()
}

fn first_error(result: &serde_json::Value) -> String {
    assert_eq!(result["outcome"], "rejected", "{result}");
    let message = result["errors"][0]["message"].as_str();
    message.expect("a message").into()
}

#[test]
fn every_thread_is_the_user_with_one_capability_and_no_way_back() {
    if !is_root() {
        return;
    }
    let daemon = start(&config(USER, &tcp("main", 0)), |_| {});
    let user = nobody();
    let ids = |id: String| BTreeSet::from([[id.as_str(); 4].join(" ")]);
    assert_eq!(of_all_threads(&daemon, "Uid"), ids(user.uid.to_string()));
    assert_eq!(of_all_threads(&daemon, "Gid"), ids(user.gid.to_string()));
    let one = |value: &str| BTreeSet::from([value.to_owned()]);
    let groups = one(&user.gid.to_string());
    assert_eq!(of_all_threads(&daemon, "Groups"), groups);
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        // CAP_NET_BIND_SERVICE is the capability of number 10.
        assert_eq!(of_all_threads(&daemon, set), one("0000000000000400"));
    }
    assert_eq!(of_all_threads(&daemon, "NoNewPrivs"), one("1"));
    let line = format!("in force: user {USER} (uid {})", user.uid);
    let log = daemon.log();
    assert!(log.contains(&line), "{log}");
    assert!(
        log.contains("capabilities: net_bind_service; no new privileges: yes"),
        "{log}"
    );
    assert!(!log.contains("running as root"), "{log}");
    assert_eq!(exchange(&mut daemon.connect("main"), b"hello"), b"hello");
}

#[test]
fn io_uring_is_there_for_the_user_too() {
    if !is_root() {
        return;
    }
    let as_root = start(&config("", &tcp("main", 0)), |_| {});
    let dropped = start(&config(USER, &tcp("main", 0)), |_| {});
    let driver = |daemon: &Daemon| daemon.ctl_json(&["status"])["status"]["driver"].clone();
    assert_eq!(driver(&dropped), driver(&as_root));
}

#[test]
fn a_daemon_that_stays_root_logs_that_there_is_another_way() {
    if !is_root() {
        return;
    }
    let daemon = start(&config("", &tcp("main", 0)), |_| {});
    let log = daemon.log();
    assert!(log.contains("in force: user root (uid 0)"), "{log}");
    assert!(
        log.contains("running as root: [daemon] user would"),
        "{log}"
    );
}

#[test]
fn ports_below_1024_are_bound_at_the_start_and_by_a_reload() {
    if !is_root() {
        return;
    }
    let ports: Vec<u16> = low_ports().take(2).collect();
    let main = tcp("main", ports[0]);
    let daemon = start(&config(USER, &main), |_| {});
    let mut peer = connect(([127, 0, 0, 1], ports[0]).into());
    let both = config(USER, &format!("{main}{}", tcp("other", ports[1])));
    assert_eq!(daemon.reload_with(&both)["outcome"], "applied");
    let mut other = connect(([127, 0, 0, 1], ports[1]).into());
    assert_eq!(exchange(&mut other, b"new"), b"new");
    assert_eq!(exchange(&mut peer, b"old"), b"old");
}

#[test]
fn the_user_owns_the_socket_files_adds_others_and_removes_them_at_the_end() {
    if !is_root() {
        return;
    }
    let first = unix("first", "{dir}/first.sock");
    let mut daemon = start(&config(USER, &first), |_| {});
    let user = nobody();
    for name in ["control.sock", "first.sock"] {
        let metadata = fs::metadata(daemon.path(name)).expect("it is there");
        assert!(metadata.file_type().is_socket());
        let owner = (metadata.uid(), metadata.gid());
        assert_eq!(owner, (user.uid.as_raw(), user.gid.as_raw()), "{name}");
    }
    let both = config(
        USER,
        &format!("{first}{}", unix("other", "{dir}/other.sock")),
    );
    assert_eq!(daemon.reload_with(&both)["outcome"], "applied");
    let mut peer = UnixStream::connect(daemon.path("other.sock")).expect("it listens");
    assert_eq!(exchange(&mut peer, b"hello"), b"hello");
    drop(peer);
    let second = config(USER, &unix("other", "{dir}/other.sock"));
    assert_eq!(daemon.reload_with(&second)["outcome"], "applied");
    assert!(!daemon.path("first.sock").exists());
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success(), "{}", daemon.log());
    for name in ["control.sock", "other.sock"] {
        assert!(!daemon.path(name).exists(), "{name}: {}", daemon.log());
    }
}

#[test]
fn a_folder_that_was_made_for_the_control_socket_is_the_users_and_the_one_above_it_is_not() {
    if !is_root() {
        return;
    }
    let outside = folder_of_nobody();
    let socket = outside.path().join("made/control.sock");
    let mut daemon = start(&config(USER, &tcp("main", 0)), |command| {
        let line = format!("exec \"$0\" \"$1\" \"$2\" --socket {}", socket.display());
        after_shell_line(command, &line);
    });
    let folder = fs::metadata(outside.path().join("made")).expect("it was made");
    assert_eq!(folder.uid(), nobody().uid.as_raw());
    UnixStream::connect(&socket).expect("it listens");
    let above = outside.path().join("sock").display().to_string();
    daemon.write_config(&config(USER, &unix("main", &above)));
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_notification("READY=1");
    if has_landlock(&daemon) {
        let log = daemon.log();
        assert!(log.contains("Landlock lets it make files only"), "{log}");
    }
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    assert!(!socket.exists());
}

#[test]
fn a_configuration_outside_of_its_folder_is_not_read_though_the_user_may() {
    if !is_root() {
        return;
    }
    let outside = folder_of_nobody();
    let reload = |daemon: &Daemon| {
        let drop_ins = daemon.path("echod.d");
        fs::create_dir_all(&drop_ins).expect("a folder");
        symlink(outside.path().join("more.toml"), drop_ins.join("50.toml")).expect("a link");
        daemon.reload()
    };
    let free = Daemon::start_with(&config("", &tcp("main", 0)), as_nobody);
    assert_eq!(reload(&free)["outcome"], "applied");
    let daemon = start(&config(USER, &tcp("main", 0)), |_| {});
    if !has_landlock(&daemon) {
        return;
    }
    let error = first_error(&reload(&daemon));
    assert!(error.contains("a link to another folder needs"), "{error}");
    // Nothing has changed, and without the link everything is fine.
    fs::remove_file(daemon.path("echod.d/50.toml")).expect("it is ours");
    assert_eq!(daemon.reload()["outcome"], "unchanged");
}

#[test]
fn a_socket_outside_of_the_folders_of_the_start_is_not_made_though_the_user_may() {
    if !is_root() {
        return;
    }
    let outside = folder_of_nobody();
    let path = outside.path().join("sock").display().to_string();
    let mut free = Daemon::start_with(&config("", &tcp("main", 0)), as_nobody);
    let with_it = |user| config(user, &unix("main", &path));
    assert_eq!(free.reload_with(&with_it(""))["outcome"], "applied");
    // Not killed: the kernel takes its time to free the sockets of a killed process.
    free.signal(Signal::SIGTERM);
    assert!(free.wait().success());
    let daemon = start(&config(USER, &tcp("main", 0)), |_| {});
    if !has_landlock(&daemon) {
        return;
    }
    let error = first_error(&daemon.reload_with(&with_it(USER)));
    let folder = daemon.folder.path().display();
    assert!(
        error.contains(&format!(
            "at the start ({folder}): use one of them, or restart it"
        )),
        "{error}"
    );
}

/// Landlock has 16 layers at most, and capabilities are lost with a careless exec.
#[test]
fn a_daemon_that_has_become_the_user_is_upgraded_several_times() {
    if !is_root() {
        return;
    }
    let ports: Vec<u16> = low_ports().skip(20).take(2).collect();
    let first = format!(
        "{}{}",
        tcp("main", ports[0]),
        unix("local", "{dir}/echo.sock")
    );
    let mut daemon = start(&config(USER, &first), |command| {
        let file = command.get_args().nth(1).expect("--config FILE");
        // A successor is executed by the user.
        let copy = Path::new(file).with_file_name("echod");
        install(ECHOD, &copy);
        let line = format!("exec {} \"$@\"", copy.display());
        after_shell_line(command, &line);
    });
    let mut peer = connect(([127, 0, 0, 1], ports[0]).into());
    for round in 0..20u8 {
        daemon.ctl_text(&["upgrade"]);
        assert_eq!(exchange(&mut peer, &[round; 9]), [round; 9]);
    }
    let user = nobody().uid.to_string();
    let ids = BTreeSet::from([[user.as_str(); 4].join(" ")]);
    assert_eq!(of_all_threads(&daemon, "Uid"), ids);
    let both = config(USER, &format!("{first}{}", tcp("other", ports[1])));
    assert_eq!(daemon.reload_with(&both)["outcome"], "applied");
    let mut other = connect(([127, 0, 0, 1], ports[1]).into());
    assert_eq!(exchange(&mut other, b"new"), b"new");

    // Another user is for a start as root; here it is an error in the log, and costs no connection.
    daemon.write_config(&both.replace(USER, "daemon"));
    daemon.ctl_text(&["upgrade"]);
    assert_eq!(exchange(&mut peer, b"still here"), b"still here");
    assert!(daemon.log().contains("only root can take another user"));
    drop((peer, other));
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    for name in ["control.sock", "echo.sock"] {
        assert!(!daemon.path(name).exists(), "{name}: {}", daemon.log());
    }
}

fn has_landlock(daemon: &Daemon) -> bool {
    let has = !daemon.log().contains("this kernel has no Landlock");
    if !has {
        not_tested("this kernel has no Landlock");
    }
    has
}

#[test]
fn a_reload_with_another_user_says_that_this_takes_a_restart() {
    if !is_root() {
        return;
    }
    let daemon = start(&config(USER, &tcp("main", 0)), |_| {});
    for _ in 0..2 {
        let result = daemon.reload_with(&config("", &tcp("main", 0)));
        let warning = result["warnings"][0]["message"].as_str();
        assert!(
            warning.is_some_and(|warning| warning.starts_with("[daemon] user: takes effect when")),
            "{result}"
        );
    }
}

/// What a start that fails says, and its exit code.
fn failed_start(config: &str, change: impl FnOnce(&mut Command)) -> (Option<i32>, String) {
    let mut daemon = Daemon::spawn(config, change);
    (daemon.wait().code(), daemon.log())
}

#[test]
fn a_user_or_group_that_does_not_exist_ends_the_start_with_78_and_nothing_bound() {
    let port = free_port();
    let user = config("no-such-user", &tcp("main", port));
    let (code, log) = failed_start(&user, |_| {});
    assert_eq!(code, Some(78), "{log}");
    let end = "echod.toml:3:8: [daemon] user \"no-such-user\": there is no such user: \
               useradd --system --user-group no-such-user\n";
    assert!(log.ends_with(end) && log.lines().count() == 1, "{log}");
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    let group = user.replace(
        "user = \"no-such-user\"",
        "user = \"nobody\"\ngroup = \"no-such-group\"",
    );
    let (code, log) = failed_start(&group, |_| {});
    assert_eq!(code, Some(78), "{log}");
    let end = "echod.toml:4:9: [daemon] group \"no-such-group\": there is no such group: \
               groupadd --system no-such-group\n";
    assert!(log.ends_with(end) && log.lines().count() == 1, "{log}");
    // It is known before.
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("echod.toml");
    fs::write(&file, group).expect("a configuration");
    let checked = run(Command::new(ECHOD).args(["--check", "--config"]).arg(&file));
    assert_eq!(checked.status.code(), Some(78));
    assert!(text(&checked.stderr).ends_with(end));
    assert!(checked.stdout.is_empty());
}

#[test]
fn only_root_becomes_another_user_and_the_user_itself_needs_no_root() {
    if !is_root() {
        return;
    }
    let (code, log) = failed_start(&config("root", &tcp("main", 0)), as_nobody);
    assert_eq!(code, Some(78), "{log}");
    let end = "echod.toml:3:8: [daemon] user \"root\": only root can take another user: \
               start it as root, or leave user and group empty\n";
    assert!(log.ends_with(end) && log.lines().count() == 1, "{log}");
    let same = Daemon::start_with(&config(USER, &tcp("main", 0)), as_nobody);
    assert_eq!(exchange(&mut same.connect("main"), b"hello"), b"hello");
    let nothing = BTreeSet::from(["0".into()]);
    assert_eq!(of_all_threads(&same, "NoNewPrivs"), nothing);
}

#[test]
fn a_group_of_its_own_comes_with_the_user() {
    if !is_root() {
        return;
    }
    let group = nix::unistd::Group::from_name("daemon").expect("groups");
    let group = group.expect("a group that Debian always has");
    let config = config(USER, &tcp("main", 0)).replace("user", "group = \"daemon\"\nuser");
    let daemon = start(&config, |_| {});
    let ids = [group.gid.to_string().as_str(); 4].join(" ");
    assert_eq!(of_all_threads(&daemon, "Gid"), BTreeSet::from([ids]));
}
