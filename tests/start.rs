//! How echod starts, and how it says that it can't.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use nix::sys::signal::Signal;

use crate::harness::{
    Daemon, ECHOD, after_shell_line, close_unix, connect, exchange, has_ipv6, not_tested,
    repository, run, text, udp,
};

/// Runs echod, which is to end by itself, with this configuration and these arguments.
fn echod(config: &str, arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    echod_in(folder.path(), config, arguments)
}

fn echod_in(folder: &Path, config: &str, arguments: &[&str]) -> Output {
    run(&mut command_in(folder, config, arguments))
}

/// `{dir}` in the configuration becomes the folder.
fn command_in(folder: &Path, config: &str, arguments: &[&str]) -> Command {
    let path = folder.join("echod.toml");
    let config = config.replace("{dir}", &folder.display().to_string());
    fs::write(&path, config).expect("a configuration");
    let mut command = Command::new(ECHOD);
    command.arg("--config").arg(&path).args(arguments);
    without_surroundings(&mut command, folder);
    command
}

/// Nothing that the test's own surroundings say, and a control socket of its own.
fn without_surroundings(command: &mut Command, folder: &Path) {
    command
        .arg("--socket")
        .arg(folder.join("control.sock"))
        .env_remove("NOTIFY_SOCKET")
        .env_remove("JOURNAL_STREAM");
}

/// Runs echod without a file, with these arguments.
fn echod_without_file(arguments: &[&str]) -> Output {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(ECHOD);
    command.args(arguments);
    without_surroundings(&mut command, folder.path());
    run(&mut command)
}

/// It must have failed with this code; returns what it said.
fn failure(output: &Output, code: i32) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(text(&output.stdout), "");
    said
}

fn success(output: &Output) -> String {
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    text(&output.stdout)
}

fn tcp(address: &str) -> String {
    format!("[listener.main]\nprotocol = \"tcp\"\naddress = \"{address}\"\n")
}

#[test]
fn a_good_configuration_is_called_fine_and_nothing_is_bound() {
    // Another process has the address: that is no mistake in the file.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let said = success(&echod(&tcp(&address), &["--check"]));
    assert!(said.contains("echod.toml: fine"), "{said}");

    let folder = tempfile::tempdir().expect("a folder");
    let config = "[listener.main]\nprotocol = \"unix-stream\"\naddress = \"{dir}/stream\"\n";
    success(&echod_in(folder.path(), config, &["--check"]));
    assert_eq!(names_in(folder.path()), ["echod.toml"]);
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let names: BTreeSet<String> = entries
        .map(|entry| entry.expect("a file").file_name().display().to_string())
        .collect();
    names.into_iter().collect()
}

#[test]
fn all_mistakes_are_reported_at_once_each_with_its_place() {
    let config = r#"[daemon]
workers = 0

[listener.good]
protocol = "unix-stream"
address = "{dir}/stream"

[listener.main]
protocol = "tpc"
address = "127.0.0.1:0"
baclog = 5
idle-timeout = "soon"
"#;
    for arguments in [&["--check"][..], &[], &["--print-config"]] {
        let folder = tempfile::tempdir().expect("a folder");
        let said = failure(&echod_in(folder.path(), config, arguments), 78);
        let lines: Vec<&str> = said.lines().collect();
        let file = folder.path().join("echod.toml").display().to_string();
        for (place, word) in [
            ("2:11", "workers"),
            ("9:12", "tpc"),
            ("11:1", "backlog"),
            ("12:16", "soon"),
        ] {
            let start = format!("echod: {file}:{place}: ");
            let line = lines.iter().find(|line| line.starts_with(&start));
            let line = line.unwrap_or_else(|| panic!("nothing at {place}: {said}"));
            assert!(line.contains(word), "{line}");
        }
        assert_eq!(lines.len(), 4, "{said}");
        // Not the good listener either.
        assert_eq!(names_in(folder.path()), ["echod.toml"]);
    }
}

#[test]
fn what_is_not_toml_at_all_is_reported_with_its_place() {
    let said = failure(&echod("[listener.main\n", &["--check"]), 78);
    assert!(said.contains("echod.toml:1:"), "{said}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = folder.path().join("missing.toml").display().to_string();
    let said = failure(&echod_without_file(&["--config", &missing]), 78);
    assert!(
        said.contains(&missing) && said.contains("no such file"),
        "{said}"
    );
}

#[test]
fn a_printed_configuration_is_the_same_when_it_is_read_again() {
    let mut configs: Vec<String> = vec![
        fs::read_to_string(repository("etc/echod.toml")).expect("a file"),
        "[daemon]\nworkers = 3\n[defaults]\nbacklog = 7\nreply = \"upper\"\n\
         [listener.a]\nprotocol = \"tcp\"\naddress = [\"127.0.0.1:0\", \"[::1]:0\"]\n\
         idle-timeout = \"1m 30s\"\nallow = [\"10.0.0.0/8\"]\nreceive-buffer = \"64KiB\"\n\
         [listener.\"a.b_c-1\"]\nprotocol = \"unix-datagram\"\naddress = \"/tmp/a \\\"b\\\"\"\n"
            .into(),
    ];
    for entry in fs::read_dir(repository("etc/examples")).expect("a folder") {
        let path = entry.expect("a file").path();
        configs.push(fs::read_to_string(path).expect("a file"));
    }
    for config in configs {
        let printed = success(&echod(&config, &["--print-config"]));
        let again = success(&echod(&printed, &["--print-config"]));
        assert_eq!(printed, again);
        assert!(printed.contains("[daemon]\nworkers = "), "{printed}");
    }
}

#[test]
fn drop_ins_beside_the_file_are_read_in_the_order_of_their_names() {
    let folder = tempfile::tempdir().expect("a folder");
    let drop_ins = folder.path().join("echod.d");
    fs::create_dir(&drop_ins).expect("a folder");
    fs::write(drop_ins.join("20.toml"), "[listener.main]\nbacklog = 20\n").expect("a file");
    fs::write(drop_ins.join("10.toml"), "[listener.main]\nbacklog = 10\n").expect("a file");
    fs::write(drop_ins.join("30.toml~"), "[listener.main]\nbacklog = 30\n").expect("a file");
    let config = tcp("127.0.0.1:0");
    let printed = success(&echod_in(folder.path(), &config, &["--print-config"]));
    assert!(printed.contains("\nbacklog = 20\n"), "{printed}");
    fs::write(drop_ins.join("15.toml"), "oops = 1\n").expect("a file");
    let said = failure(&echod_in(folder.path(), &config, &["--check"]), 78);
    assert!(said.contains("echod.d/15.toml:1:1: oops: "), "{said}");
}

#[test]
fn an_address_in_use_is_reported_with_its_listener_and_how_to_find_the_process() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let said = failure(&echod(&tcp(&address.to_string()), &[]), 1);
    for part in [
        "listener \"main\"".to_owned(),
        address.to_string(),
        "address already in use".into(),
        format!("ss -ltnp 'sport = :{}'", address.port()),
    ] {
        assert!(said.contains(&part), "{part} is missing: {said}");
    }

    let taken = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let config = format!("[listener.dns]\nprotocol = \"udp\"\naddress = \"{address}\"\n");
    let said = failure(&echod(&config, &[]), 1);
    let advice = format!("ss -lunp 'sport = :{}'", address.port());
    assert!(
        said.contains("listener \"dns\"") && said.contains(&advice),
        "{said}"
    );
}

#[test]
fn everything_that_cannot_be_bound_is_reported_at_once_and_nothing_stays_bound() {
    let taken: Vec<TcpListener> = (0..2)
        .map(|_| TcpListener::bind("127.0.0.1:0").expect("a port"))
        .collect();
    let mut config =
        "[listener.good]\nprotocol = \"unix-stream\"\naddress = \"{dir}/stream\"\n".to_owned();
    for (index, socket) in taken.iter().enumerate() {
        let address = socket.local_addr().expect("an address");
        config += &format!("[listener.l{index}]\nprotocol = \"tcp\"\naddress = \"{address}\"\n");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let said = failure(&echod_in(folder.path(), &config, &[]), 1);
    assert!(
        said.contains("listener \"l0\"") && said.contains("listener \"l1\""),
        "{said}"
    );
    assert_eq!(names_in(folder.path()), ["echod.toml"]);

    // The control socket was reported alone.
    fs::write(folder.path().join("control.sock"), "data").expect("a file");
    let said = failure(&echod_in(folder.path(), &config, &[]), 1);
    for part in ["control socket: ", "listener \"l0\"", "listener \"l1\""] {
        assert!(said.contains(part), "{part} is missing: {said}");
    }
    assert!(!said.contains("os error"), "{said}");
    assert!(!folder.path().join("stream").exists());
}

#[test]
fn a_second_echod_on_the_same_port_says_so_and_leaves_the_first_alone() {
    for protocol in ["tcp", "udp"] {
        let config = |address: &str| {
            format!("[listener.main]\nprotocol = \"{protocol}\"\naddress = \"{address}\"\n")
        };
        let first = Daemon::start(&config("127.0.0.1:0"));
        let address = first.address("main");
        let said = failure(&echod(&config(&address.to_string()), &[]), 1);
        assert!(said.contains("address already in use"), "{said}");
        let said = failure(&echod(&config(&format!("*:{}", address.port())), &[]), 1);
        assert!(said.contains("address already in use"), "{said}");
        for _ in 0..20 {
            if protocol == "tcp" {
                assert_eq!(exchange(&mut connect(address), b"first"), b"first");
            } else {
                let client = udp("127.0.0.1:0");
                client.send_to(b"first", address).expect("sent");
                client.recv(&mut [0; 5]).expect("answered by the first");
            }
        }
    }
}

/// Runs the program as an ordinary user, also if we are root.
fn as_ordinary_user(command: &mut Command) {
    const NOBODY: u32 = 65_534;
    if nix::unistd::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
}

#[test]
fn a_port_or_a_folder_that_is_not_permitted_is_reported_with_what_to_do() {
    let mut version = Command::new(ECHOD);
    as_ordinary_user(version.arg("--version"));
    if let Err(error) = version.output() {
        not_tested(format_args!(
            "an ordinary user may not run {ECHOD}: {error}"
        ));
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let closed = folder.path().join("closed");
    fs::create_dir(&closed).expect("a folder");
    // The control socket needs a place to be.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("a mode");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).expect("a mode");
    let check = |config: &str, parts: &[&str]| {
        let mut command = command_in(folder.path(), config, &[]);
        fs::set_permissions(
            folder.path().join("echod.toml"),
            fs::Permissions::from_mode(0o644),
        )
        .expect("a mode");
        as_ordinary_user(&mut command);
        let said = failure(&run(&mut command), 1);
        for part in parts {
            assert!(said.contains(part), "{part} is missing: {said}");
        }
    };
    check(
        "[listener.main]\nprotocol = \"unix-stream\"\naddress = \"{dir}/closed/stream\"\n",
        &[
            "listener \"main\"",
            "closed/stream",
            "permission denied",
            "write to the folder",
        ],
    );
    let first_free = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    if first_free.is_ok_and(|port| port.trim().parse::<u32>().is_ok_and(|port| port <= 7)) {
        not_tested("every user may bind port 7 here");
        return;
    }
    check(
        &tcp("127.0.0.1:7"),
        &[
            "listener \"main\"",
            "127.0.0.1:7",
            "permission denied",
            "CAP_NET_BIND_SERVICE",
        ],
    );
}

#[test]
fn a_receive_buffer_that_the_kernel_caps_is_reported_once() {
    let limit = fs::read_to_string("/proc/sys/net/core/rmem_max").expect("a limit");
    let mut version = Command::new(ECHOD);
    as_ordinary_user(version.arg("--version"));
    if limit.trim().parse::<u32>().expect("a number") >= 1 << 20 << 9 || version.output().is_err() {
        not_tested("this user may allocate as much as there is");
        return;
    }
    let config = "[listener.main]\nprotocol = \"udp\"\naddress = \"127.0.0.1:0\"\n\
                  receive-buffer = \"512MiB\"\nsockets = 3\n";
    let mut daemon = Daemon::start_with(config, |command| {
        open_to_all(command);
        as_ordinary_user(command);
    });
    let told = format!(
        "listener \"main\": receive-buffer 536870912 is capped to {} by net.core.rmem_max",
        limit.trim()
    );
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_notification("READY=1");
    let log = daemon.log();
    assert_eq!(log.matches(&told).count(), 1, "{told}: {log}");
}

/// The first start of every user began with it.
#[test]
fn a_receive_buffer_that_nobody_has_set_is_reported_to_debuggers_only() {
    let limit = fs::read_to_string("/proc/sys/net/core/rmem_max").expect("a limit");
    let is_root = nix::unistd::geteuid().is_root();
    let log_at = |level: &str| {
        let config = format!(
            "[log]\nlevel = \"{level}\"\n\
             [listener.main]\nprotocol = \"udp\"\naddress = \"127.0.0.1:0\"\n"
        );
        let daemon = Daemon::start_with(&config, |command| {
            if is_root {
                open_to_all(command);
                as_ordinary_user(command);
            }
        });
        daemon.log()
    };
    let mut version = Command::new(ECHOD);
    if is_root {
        as_ordinary_user(&mut version);
    }
    let version = version.arg("--version").output();
    if limit.trim().parse::<u32>().expect("a number") >= 8 << 20 || version.is_err() {
        not_tested("this user may allocate as much as the default");
        return;
    }
    let told = format!("receive-buffer 8388608 is capped to {}", limit.trim());
    let log = log_at("debug");
    assert_eq!(log.matches(&told).count(), 1, "{told}: {log}");
    let log = log_at("info");
    assert!(!log.contains("receive-buffer"), "{log}");
}

/// The configuration of a daemon, its folder and its socket for notifications.
fn open_to_all(command: &Command) {
    let config = command.get_args().nth(1).expect("a configuration");
    let config = Path::new(config).to_owned();
    let folder = config.parent().expect("the test's folder");
    for path in [folder, &config, &folder.join("notify")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).expect("a mode");
    }
}

#[test]
fn a_folder_that_does_not_exist_is_reported_with_what_to_do() {
    let config = "[listener.main]\nprotocol = \"unix-stream\"\naddress = \"{dir}/no/stream\"\n";
    let said = failure(&echod(config, &[]), 1);
    assert!(
        said.contains("/no/stream") && said.contains("does not exist"),
        "{said}"
    );
}

#[test]
fn an_address_of_another_host_is_reported() {
    // TEST-NET-1 (RFC 5737): no host has it.
    let said = failure(&echod(&tcp("192.0.2.1:0"), &[]), 1);
    assert!(
        said.contains("this host does not have that address"),
        "{said}"
    );
}

#[test]
fn listeners_on_the_command_line_need_no_file() {
    let daemon = Daemon::start_without_file(&[
        "--listen",
        "tcp://127.0.0.1:0",
        "--listen",
        "udp://127.0.0.1:0",
        "--listen",
        "unix://{dir}/stream",
        "--listen",
        "unixgram://{dir}/datagram",
        "--listen",
        "tcp://127.0.0.1:0",
        "--reply",
        "upper",
    ]);
    assert_eq!(exchange(&mut daemon.connect("tcp"), b"tcp"), b"TCP");
    assert_eq!(exchange(&mut daemon.connect("tcp-2"), b"tcp 2"), b"TCP 2");
    let mut unix = UnixStream::connect(daemon.path("stream")).expect("connected");
    assert_eq!(exchange(&mut unix, b"unix"), b"UNIX");
    let client = udp("127.0.0.1:0");
    client.send_to(b"udp", daemon.address("udp")).expect("sent");
    let mut answer = [0; 10];
    let len = client.recv(&mut answer).expect("answered");
    assert_eq!(&answer[..len], b"UDP");
    let client = UnixDatagram::bind(daemon.path("client")).expect("a socket");
    client
        .send_to(b"gram", daemon.path("datagram"))
        .expect("sent");
    let len = client.recv(&mut answer).expect("answered");
    assert_eq!(&answer[..len], b"GRAM");
}

#[test]
fn a_wildcard_on_the_command_line_is_both_families() {
    let daemon = Daemon::start_without_file(&["--listen", "tcp://*:0"]);
    let addresses = daemon.listener("tcp")["addresses"].clone();
    let count = addresses.as_array().expect("a list").len();
    // A machine may know IPv6 and have no address of it, not even ::1.
    let knows_ipv6 = UdpSocket::bind("[::]:0").is_ok();
    assert_eq!(count, if knows_ipv6 { 2 } else { 1 }, "{addresses}");
}

#[test]
fn a_url_that_is_none_is_a_usage_error() {
    for url in ["http://127.0.0.1:0", "127.0.0.1:7", "tcp:127.0.0.1:0", ""] {
        let said = failure(&echod_without_file(&["--listen", url]), 2);
        assert!(
            said.contains(url) && said.contains("tcp://HOST:PORT"),
            "{said}"
        );
    }
}

#[test]
fn an_address_that_is_none_is_reported_with_its_url() {
    for url in [
        "tcp://",
        "tcp://127.0.0.1",
        "udp://127.0.0.1:99999",
        "unix://",
    ] {
        let output = echod_without_file(&["--listen", url]);
        let said = failure(&output, 2);
        // It has no line and no column that its user would know.
        let start = format!("echod: --listen {url}: listener \"");
        assert!(said.starts_with(&start), "{said}");
    }
    let twice = ["--listen", "tcp://127.0.0.1:7007"].repeat(2);
    let said = failure(&echod_without_file(&twice), 2);
    let end = "already used by listener \"tcp\" (--listen tcp://127.0.0.1:7007)\n";
    assert!(said.ends_with(end), "{said}");
    let said = failure(
        &echod_without_file(&["--listen", "tcp://127.0.0.1:0", "--reply", "lower"]),
        2,
    );
    assert!(
        said.contains("'lower' for '--reply") && said.contains("upper"),
        "{said}"
    );
}

#[test]
fn an_option_that_is_none_is_a_usage_error() {
    let said = failure(&echod_without_file(&["--lisen", "tcp://127.0.0.1:0"]), 2);
    assert!(said.contains("--listen"), "{said}");
    let said = failure(&echod("", &["--listen", "tcp://127.0.0.1:0"]), 2);
    assert!(said.contains("--config"), "{said}");
}

#[test]
fn help_shows_how_to_start_it() {
    let said = success(&echod_without_file(&["--help"]));
    for part in [
        "Examples:",
        "echod --listen tcp://127.0.0.1:7007",
        "echod --check --config",
        "SIGHUP",
        "78",
    ] {
        assert!(said.contains(part), "{part} is missing: {said}");
    }
}

#[test]
fn without_a_file_the_built_in_configuration_is_on_loopback() {
    if Path::new("/etc/echod").exists() {
        not_tested("this machine has /etc/echod");
        return;
    }
    // Not started: another process may have port 7007.
    let printed = success(&echod_without_file(&["--print-config"]));
    let mut addresses = printed
        .lines()
        .filter(|line| line.starts_with("address = "));
    assert!(
        addresses.clone().count() > 0 && addresses.all(|line| line.contains("localhost:7007")),
        "{printed}"
    );
    for protocol in ["tcp", "udp"] {
        assert!(
            printed.contains(&format!("protocol = \"{protocol}\"")),
            "{printed}"
        );
    }
    let printed = success(&echod_without_file(&["--print-config", "--reply", "upper"]));
    assert!(printed.contains("reply = \"upper\""), "{printed}");
    let said = success(&echod_without_file(&["--check"]));
    assert!(said.contains("built-in: fine; 2 listeners"), "{said}");
}

const UNIX: &str = "[listener.stream]\nprotocol = \"unix-stream\"\naddress = \"{dir}/stream\"\nmode = \"0604\"\n\
                    [listener.datagram]\nprotocol = \"unix-datagram\"\naddress = \"{dir}/datagram\"\nmode = \"0620\"\n";

#[test]
fn unix_sockets_have_the_mode_of_the_configuration_and_are_removed_at_the_end() {
    let mut daemon = Daemon::start(UNIX);
    for (name, mode) in [("stream", 0o604), ("datagram", 0o620)] {
        let metadata = fs::metadata(daemon.path(name)).expect("a socket");
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.mode() & 0o7777, mode, "{name}");
    }
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    for name in ["stream", "datagram", "control.sock"] {
        assert!(!daemon.path(name).exists(), "{name} is still there");
    }
}

#[test]
fn a_socket_file_that_no_process_serves_any_more_is_replaced() {
    let daemon = Daemon::start_with(UNIX, |command| {
        let config = command.get_args().nth(1).expect("--config FILE");
        let folder = Path::new(config).parent().expect("a folder").to_owned();
        // As after a crash: the files stay.
        let (stream, datagrams) = (folder.join("stream"), folder.join("datagram"));
        close_unix(UnixListener::bind(&stream).expect("a socket"), &stream);
        close_unix(
            UnixDatagram::bind(&datagrams).expect("a socket"),
            &datagrams,
        );
    });
    let mut client = UnixStream::connect(daemon.path("stream")).expect("connected");
    assert_eq!(exchange(&mut client, b"new"), b"new");
    let client = UnixDatagram::bind(daemon.path("client")).expect("a socket");
    client
        .send_to(b"new", daemon.path("datagram"))
        .expect("sent");
    client.recv(&mut [0; 3]).expect("answered");
}

#[test]
fn a_socket_that_another_process_serves_is_never_stolen() {
    let folder = tempfile::tempdir().expect("a folder");
    let stream = UnixListener::bind(folder.path().join("stream")).expect("a socket");
    let said = failure(&echod_in(folder.path(), UNIX, &[]), 1);
    assert!(
        said.contains("/stream") && said.contains("a running process serves it"),
        "{said}"
    );
    drop(stream);
    fs::remove_file(folder.path().join("stream")).expect("it is there");
    let datagram = UnixDatagram::bind(folder.path().join("datagram")).expect("a socket");
    let said = failure(&echod_in(folder.path(), UNIX, &[]), 1);
    assert!(
        said.contains("/datagram") && said.contains("a running process serves it"),
        "{said}"
    );

    let client = UnixDatagram::unbound().expect("a socket");
    client
        .send_to(b"still mine", folder.path().join("datagram"))
        .expect("it still leads to its owner");
    let mut message = [0; 100];
    datagram.set_nonblocking(true).expect("an option");
    // What was sent to find out whether it lives, if anything, is not data.
    let mut last = Vec::new();
    while let Ok(len) = datagram.recv(&mut message) {
        last = message[..len].to_vec();
    }
    assert_eq!(last, b"still mine");
    // The stream's socket, which had been bound by then, has gone with the failure.
    assert_eq!(names_in(folder.path()), ["datagram", "echod.toml"]);
}

#[test]
fn a_file_that_is_not_a_socket_is_never_removed() {
    for name in ["stream", "datagram", "control.sock"] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(name);
        let mut file = fs::File::create(&path).expect("a file");
        file.write_all(b"precious").expect("written");
        let said = failure(&echod_in(folder.path(), UNIX, &[]), 1);
        assert!(said.contains(&path.display().to_string()), "{said}");
        assert!(said.contains("not a socket"), "{said}");
        assert_eq!(fs::read(&path).expect("it is still there"), b"precious");
    }
}

#[test]
fn a_socket_file_that_was_replaced_is_not_removed_at_the_end() {
    let mut daemon = Daemon::start(UNIX);
    fs::remove_file(daemon.path("stream")).expect("it is there");
    let _other = UnixListener::bind(daemon.path("stream")).expect("a socket");
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    UnixStream::connect(daemon.path("stream")).expect("it is the other's");
}

#[test]
fn without_ipv6_a_wildcard_is_served_and_an_ipv6_address_is_refused() {
    if has_ipv6() {
        not_tested("this machine has IPv6");
        return;
    }
    let daemon = Daemon::start(&tcp("*:0"));
    let port = daemon.address("main").port();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    assert_eq!(exchange(&mut connect(address), b"four"), b"four");
    let said = failure(&echod(&tcp("[::1]:0"), &[]), 1);
    assert!(said.contains("listener \"main\": bind [::1]:0: "), "{said}");
}

#[test]
fn a_start_without_memory_for_its_workers_ends_with_a_message_and_without_an_abort() {
    let config =
        "[daemon]\nworkers = 4\n[listener.t]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n";
    for kib in [20 * 1024, 40 * 1024] {
        let limit = format!("ulimit -v {kib}");
        let mut daemon = Daemon::spawn(config, |command| after_shell_line(command, &limit));
        let status = daemon.wait();
        let log = daemon.log();
        assert_eq!(status.code(), Some(1), "{kib} KiB: {log}");
        // What there is no memory for depends on the limit, and on the driver.
        let says_what_to_do = log.contains("no memory ") && log.contains("LimitAS=");
        assert!(says_what_to_do, "{log}");
    }
}

#[test]
fn a_start_shows_the_first_hundred_addresses_that_can_not_be_bound_and_counts_the_others() {
    let listener = |number| {
        format!(
            "[listener.l{number}]\nprotocol = \"unix-stream\"\naddress = \"{{dir}}/missing/{number}\"\n"
        )
    };
    let config: String = (0..150).map(listener).collect();
    let said = failure(&echod(&config, &[]), 1);
    let shown = said.lines().filter(|line| line.contains("bind")).count();
    assert_eq!((shown, said.lines().count()), (100, 101), "{said}");
    assert!(
        said.ends_with("echod: 50 more errors not shown\n"),
        "{said}"
    );
}
