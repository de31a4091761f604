//! What a start refuses, known before: by `--check`, and by a reload that the next start would not
//! survive.

use std::fs;
use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use nix::errno::Errno;
use nix::unistd::geteuid;
use serde_json::Value;

use crate::drivers::where_io_uring_fails;
use crate::harness::{
    Daemon, ECHOD, LISTENERS, close_socket, folder_of, instead, not_tested, run, text,
};

const TCP: &str = "[listener.main]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n";

/// Runs echod to its end with this configuration in this folder, and without what the test's own
/// surroundings say. `{dir}` becomes the folder.
fn echod(folder: &Path, config: &str, arguments: &[&str]) -> Output {
    let here = |text: &str| text.replace("{dir}", &folder.display().to_string());
    let file = folder.join("echod.toml");
    fs::write(&file, here(config)).expect("a configuration");
    let mut command = Command::new(ECHOD);
    command.arg("--config").arg(&file);
    command.args(arguments.iter().map(|argument| here(argument)));
    for variable in ["NOTIFY_SOCKET", "JOURNAL_STREAM", "RUNTIME_DIRECTORY"] {
        command.env_remove(variable);
    }
    run(&mut command)
}

/// Everything in a folder, with inode and mode.
fn content(folder: &Path) -> Vec<(String, u64, u32)> {
    let entry = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.expect("an entry");
        let metadata = entry.metadata().expect("it is there");
        let name = entry.file_name().display().to_string();
        (name, metadata.ino(), metadata.mode())
    };
    let mut all: Vec<_> = fs::read_dir(folder).expect("a folder").map(entry).collect();
    all.sort();
    all
}

/// A check and a start must refuse it in the same words, with these among them.
fn refused(config: &str, arguments: &[&str], words: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    symlink(".", path("here")).expect("a link");
    symlink("nowhere", path("dangling")).expect("a link");
    fs::create_dir(path("below")).expect("a folder");
    fs::write(path("file"), "data").expect("a file");
    fs::write(path("echod.toml"), "").expect("a file");
    let before = content(folder.path());

    let checked = echod(folder.path(), config, &[arguments, &["--check"]].concat());
    let said = text(&checked.stderr);
    assert_eq!(checked.status.code(), Some(78), "{config}{said}");
    assert!(said.contains(words), "{words}: {said}");
    assert_eq!(content(folder.path()), before);
    let started = echod(folder.path(), config, arguments);
    assert_eq!(text(&started.stderr), said);
    assert_ne!(started.status.code(), Some(0), "{config}");
    assert_eq!(content(folder.path()), before);
}

fn unix(name: &str, path: &str) -> String {
    format!("[listener.{name}]\nprotocol = \"unix-stream\"\naddress = \"{path}\"\n")
}

const HERE: &[&str] = &["--socket", "{dir}/control.sock"];

#[test]
fn a_check_refuses_a_listener_where_a_start_could_bind_no_socket() {
    let a = "listener \"a\": bind ";
    for (path, words) in [
        ("{dir}/missing/s", "the folder does not exist; make it"),
        ("{dir}/dangling/s", "the folder does not exist; make it"),
        ("{dir}/file", "there is a file that is not a socket"),
        ("{dir}/below", "there is a file that is not a socket"),
        ("{dir}/dangling", "there is a file that is not a socket"),
        ("{dir}/file/s", "not a directory"),
    ] {
        refused(&unix("a", path), HERE, words);
        let datagram = unix("a", path).replace("unix-stream", "unix-datagram");
        refused(&datagram, HERE, a);
    }
}

#[test]
fn a_check_refuses_two_sockets_of_one_file() {
    let (a, control) = (
        "listener \"b\": bind {dir}/here/s: listener \"a\" has this file",
        "listener \"a\": bind {dir}/here/control.sock: the control socket has this file",
    );
    let words = |words: &str| words.split_once("}/").expect("a folder").1.to_owned();
    let two = unix("a", "{dir}/s") + &unix("b", "{dir}/here/s");
    refused(&two, HERE, &words(a));
    let two = unix("a", "{dir}/below/../s") + &unix("b", "{dir}/here/s");
    refused(&two, HERE, &words(a));
    refused(&unix("a", "{dir}/here/control.sock"), HERE, &words(control));
    refused(
        &unix("a", "{dir}/control.sock"),
        HERE,
        "the control socket has this file",
    );
}

#[test]
fn a_check_refuses_a_control_socket_that_a_start_could_not_bind() {
    let long = format!("{{dir}}/{}", "x".repeat(108));
    for (path, words) in [
        (
            "{dir}/missing/deep/c",
            "missing/deep: no such directory: make it",
        ),
        ("{dir}/dangling/c", "dangling: make the directory: "),
        ("{dir}/file", "file: not a socket: remove the file"),
        ("{dir}/dangling", "dangling: not a socket: remove the file"),
        ("{dir}/file/c", "not a directory"),
        ("{dir}/file/deep/c", "not a directory"),
        ("{dir}/below/x/", "not the path of a file"),
        (&long, "a socket's has at most 107"),
    ] {
        refused(TCP, &["--socket", path], words);
        if path != long && !path.ends_with('/') {
            let config = format!("[control]\nsocket = \"{path}\"\n{TCP}");
            refused(&config, &[], words);
        }
    }
}

#[test]
fn an_abstract_name_is_refused_wherever_it_is_written() {
    let words = "abstract sockets are not supported: write a path";
    refused(TCP, &["--socket", "@echod"], words);
    refused(&unix("a", "@echo"), HERE, words);
    refused(
        &format!("[control]\nsocket = \"@echod\"\n{TCP}"),
        HERE,
        words,
    );
}

#[test]
fn a_check_refuses_an_address_that_this_host_does_not_have() {
    for protocol in ["tcp", "udp"] {
        // Of documentation (RFC 5737, RFC 3849).
        for address in ["203.0.113.7:7007", "[2001:db8::7]:7007"] {
            let config =
                format!("[listener.a]\nprotocol = \"{protocol}\"\naddress = \"{address}\"\n");
            refused(&config, HERE, &format!("listener \"a\": bind {address}: "));
        }
    }
}

#[test]
fn a_check_refuses_the_system_log_where_there_is_none() {
    if Path::new("/dev/log").exists() {
        not_tested("this machine has /dev/log");
        return;
    }
    let config = format!("[log]\ntarget = \"syslog\"\n{TCP}");
    refused(&config, HERE, "log: /dev/log: ");
}

/// An unknown user ended a start alone, and was not said at all beside a mistake in the text.
#[test]
fn an_unknown_user_is_reported_with_its_place_among_all_other_errors() {
    let daemon = "[daemon]\nuser = \"root\"\ngroup = \"no-such-group\"\n";
    let control = "[control]\ngroup = \"no-such-group\"\nsocket = \"{dir}/no/such/c\"\n";
    let listener = unix("a", "{dir}/missing/s");
    let config = format!("{daemon}{control}{listener}");
    for place in [
        "echod.toml:3:9: [daemon] group \"no-such-group\": ",
        "echod.toml:5:9: [control] group \"no-such-group\": ",
        "echod.toml:6:10: control socket: ",
        "echod.toml:9:11: listener \"a\": bind ",
    ] {
        refused(&config, &[], place);
    }
    let user = config.replace("\"root\"", "\"no-such-user\"");
    refused(
        &user,
        &[],
        "echod.toml:2:8: [daemon] user \"no-such-user\": ",
    );

    let folder = tempfile::tempdir().expect("a folder");
    let config = format!("{user}replay = \"echo\"\n").replacen("[daemon]", "[damon]\n[daemon]", 1);
    for arguments in [&[][..], &["--check"]] {
        let output = echod(folder.path(), &config, arguments);
        assert_eq!(output.status.code(), Some(78));
        let file = format!("echod: {}/echod.toml:", folder.path().display());
        let said = text(&output.stderr);
        let said = said.lines().map(|line| line.replace(&file, ""));
        let places: Vec<String> = said.map(|line| line.chars().take(20).collect()).collect();
        assert_eq!(
            places,
            [
                "1:2: damon: unknown ",
                "3:8: [daemon] user \"",
                "6:9: [control] group",
                "11:1: listener \"a\": ",
            ]
        );
    }
}

#[test]
fn a_check_names_all_that_it_refuses() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = unix("a", "{dir}/missing/s")
        + "[control]\ngroup = \"no-such-group\"\nsocket = \"{dir}/no/such/c\"\n"
        + &TCP.replace("127.0.0.1:0", "203.0.113.7:7007");
    let checked = echod(folder.path(), &config, &["--check"]);
    assert_eq!(checked.status.code(), Some(78));
    let said = text(&checked.stderr);
    for words in [
        "no-such-group",
        "control socket: ",
        "listener \"a\"",
        "listener \"main\"",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(said.lines().count(), 4, "{said}");
}

#[test]
fn a_check_refuses_nothing_that_a_running_daemon_or_another_process_has() {
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
    let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let ports = [tcp.local_addr(), udp.local_addr()].map(|local| local.expect("an address").port());
    let config = LISTENERS
        .replacen(":0", &format!(":{}", ports[0]), 1)
        .replacen(":0", &format!(":{}", ports[1]), 1);
    close_socket(tcp);
    close_socket(udp);
    let daemon = Daemon::start(&config);
    let before = content(daemon.folder.path());
    let checked = echod(
        daemon.folder.path(),
        &config,
        &[HERE, &["--check"]].concat(),
    );
    assert_eq!(text(&checked.stderr), "");
    assert_eq!(checked.status.code(), Some(0));
    assert_eq!(content(daemon.folder.path()), before);
}

#[test]
fn a_check_expects_the_folder_that_a_start_makes_for_the_control_socket() {
    let config = unix("a", "{dir}/run/s");
    let arguments = ["--socket", "{dir}/run/control.sock"];
    let folder = tempfile::tempdir().expect("a folder");
    let checked = echod(
        folder.path(),
        &config,
        &[&arguments[..], &["--check"]].concat(),
    );
    assert_eq!(text(&checked.stderr), "");
    assert_eq!(checked.status.code(), Some(0));
    assert!(!folder.path().join("run").exists());
    let daemon = Daemon::start_with(&config, |command| {
        let folder = folder_of(command);
        let socket = folder.join("run/control.sock").into();
        let file = folder.join("echod.toml").into();
        let arguments = vec!["--config".into(), file, "--socket".into(), socket];
        *command = instead(command, ECHOD, arguments);
    });
    assert!(daemon.path("run/s").exists());
}

/// A daemon whose control socket is where the configuration says.
fn without_option(config: &str) -> Daemon {
    Daemon::start_with(config, |command| {
        let file = folder_of(command).join("echod.toml").into();
        *command = instead(command, ECHOD, vec!["--config".into(), file]);
    })
}

fn warnings(result: &Value) -> String {
    let warnings = result["warnings"].as_array().expect("a list").iter();
    let lines = warnings.map(|warning| warning["message"].as_str().expect("a text"));
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_reload_warns_of_what_only_the_next_start_refuses() {
    let control = "[control]\nsocket = \"{dir}/control.sock\"\n";
    let daemon = without_option(&format!("{control}{TCP}"));
    let refused = "; the next start will be refused\n";
    let mut cases = vec![
        (
            "[daemon]\nuser = \"no-such-user\"\n",
            "[daemon] user \"no-such-user\": there is no such user",
        ),
        (
            "[daemon]\nuser = \"root\"\ngroup = \"no-such-group\"\n",
            "[daemon] group \"no-such-group\": there is no such group",
        ),
        (
            "group = \"no-such-group\"\n",
            "[control] group \"no-such-group\": there is no such group",
        ),
    ];
    if !Path::new("/dev/log").exists() {
        cases.push(("[log]\ntarget = \"syslog\"\n", "log: /dev/log: "));
    }
    for (more, words) in cases {
        daemon.write_config(&format!("{control}{more}{TCP}"));
        for result in [
            daemon.ctl_json(&["reload", "--dry-run"])["result"].clone(),
            daemon.reload(),
        ] {
            assert_eq!(result["outcome"], "unchanged", "{result}");
            let warnings = warnings(&result);
            let line = warnings
                .split_inclusive('\n')
                .find(|line| line.contains(words));
            let line = line.unwrap_or_else(|| panic!("{words}: {warnings}"));
            assert!(line.ends_with(refused), "{line}");
            assert_eq!(warnings.matches(refused).count(), 1, "{warnings}");
        }
    }
    let result = daemon.reload_with(&format!(
        "[control]\nsocket = \"{{dir}}/echod.toml\"\n{TCP}"
    ));
    let said = warnings(&result);
    assert!(
        said.contains("echod.toml: not a socket: remove the file"),
        "{said}"
    );
    assert!(said.contains(refused), "{said}");
    let result = daemon.reload_with(
        &(unix("a", "{dir}/s") + TCP + "[control]\nsocket = \"{dir}/../{name}/s\"\n").replace(
            "{name}",
            &daemon
                .folder
                .path()
                .file_name()
                .expect("a name")
                .display()
                .to_string(),
        ),
    );
    let said = warnings(&result);
    let shared = format!("the control socket has this file, by the same or another path{refused}");
    assert!(said.contains(&shared), "{said}");
    // What a start takes is not warned of, nor what has not changed.
    let result = daemon.reload_with(&format!("{control}group = \"root\"\n{TCP}"));
    assert_eq!(warnings(&result).matches(refused).count(), 0, "{result}");
    let result = daemon.reload_with(&format!("{control}{TCP}"));
    assert_eq!(warnings(&result), "", "{result}");
}

#[test]
fn a_reload_warns_of_no_control_socket_that_the_command_line_overrides() {
    let daemon = Daemon::start(TCP);
    let result = daemon.reload_with(&format!(
        "[control]\nsocket = \"{{dir}}/echod.toml\"\n{TCP}"
    ));
    let said = warnings(&result);
    assert_eq!(
        said,
        "[control] socket: takes effect when the daemon is next started\n"
    );
}

#[test]
fn a_reload_warns_of_a_driver_that_the_kernel_refuses() {
    let config = |driver: &str| format!("[daemon]\ndriver = \"{driver}\"\n{TCP}");
    let daemon = where_io_uring_fails(Errno::EPERM, || Daemon::start(&config("epoll")));
    let said = warnings(&daemon.reload_with(&config("io_uring")));
    assert!(said.contains("[daemon] driver \"io_uring\": "), "{said}");
    assert!(
        said.contains("; the next start will be refused\n"),
        "{said}"
    );
    let said = warnings(&daemon.reload_with(&config("auto")));
    assert!(!said.contains("refused"), "{said}");
}

/// The folder that a start makes for the control socket is there when the listeners are bound, whatever
/// their paths look like before.
#[test]
fn a_check_knows_a_file_by_any_path_also_in_a_folder_that_a_start_makes() {
    // `dangling` leads there.
    let made = &["--socket", "{dir}/nowhere/control.sock"][..];
    let refused = |config: &str, words: &str| {
        refused(config, made, "echod.toml:3:11: listener \"a\": bind ");
        refused(config, made, words);
    };
    refused(
        &unix("a", "{dir}/nowhere"),
        "the folder of the control socket has this file",
    );
    for path in [
        "{dir}/nowhere/../nowhere/control.sock",
        "{dir}/here/nowhere/control.sock",
        "{dir}/dangling/control.sock",
    ] {
        refused(&unix("a", path), "the control socket has this file");
    }
    for path in ["{dir}/nowhere/../nowhere/s", "{dir}/dangling/s"] {
        let two = unix("a", path) + &unix("0", "{dir}/nowhere/s");
        refused(&two, "listener \"0\" has this file");
    }
    for path in ["{dir}/missing/../nowhere/s", "{dir}/nowhere/missing/s"] {
        let folder = tempfile::tempdir().expect("a folder");
        let run = |more| echod(folder.path(), &unix("a", path), &[made, more].concat());
        let said = text(&run(&["--check"]).stderr);
        assert!(
            said.contains("the folder does not exist; make it"),
            "{said}"
        );
        assert_eq!(text(&run(&[]).stderr), said);
    }

    let config = unix("a", "{dir}/dangling/s") + &unix("b", "{dir}/nowhere/../t");
    let folder = tempfile::tempdir().expect("a folder");
    symlink("nowhere", folder.path().join("dangling")).expect("a link");
    let checked = echod(folder.path(), &config, &[made, &["--check"]].concat());
    assert_eq!(text(&checked.stderr), "");
    let daemon = Daemon::start_with(&config, |command| {
        let folder = folder_of(command);
        symlink("nowhere", folder.join("dangling")).expect("a link");
        let socket = folder.join("nowhere/control.sock").into();
        let file = folder.join("echod.toml").into();
        let arguments = vec!["--config".into(), file, "--socket".into(), socket];
        *command = instead(command, ECHOD, arguments);
    });
    assert!(daemon.path("nowhere/s").exists() && daemon.path("t").exists());
}

#[test]
fn a_check_refuses_a_path_where_the_kernel_makes_all_files_itself() {
    let mut paths = vec!["/proc/s", "/proc/self/s", "/sys/s", "/dev/pts/s"];
    // Refused even to root, unless it may trace the first process.
    let first = fs::metadata("/proc/1/root/.").map_err(|error| error.kind());
    if geteuid().is_root() && first.is_err_and(|kind| kind == ErrorKind::PermissionDenied) {
        paths.push("/proc/1/root/tmp/s");
    }
    for path in paths {
        refused(
            &unix("a", path),
            HERE,
            "echod.toml:3:11: listener \"a\": bind ",
        );
        refused(TCP, &["--socket", path], "control socket: /");
    }
}

#[test]
fn what_a_start_can_not_bind_has_its_place_in_the_file_also_in_a_list() {
    let config = "[listener.a]\nprotocol = \"unix-stream\"\naddress = [\n  \"{dir}/s\",\n  \"{dir}/missing/s\",\n]\n";
    refused(config, HERE, "echod.toml:5:3: listener \"a\": bind ");
}
