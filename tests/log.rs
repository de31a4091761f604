//! What is in the log, what cannot be smuggled into it, and that the service does not wait for it.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

use crate::control::under_load::measure_answers;
use crate::harness::{
    Daemon, STREAM_AND_DATAGRAMS, after_shell_line, connect, eventually, exchange, folder_of,
    free_port, text,
};

const INFO: &str = "[log]\ntarget = \"stderr\"\n";

const DEBUG: &str = "[log]\ntarget = \"stderr\"\nlevel = \"debug\"\n";

/// A listener that refuses every peer.
fn closed(name: &str) -> String {
    format!(
        "[listener.{name}]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\ndeny = [\"127.0.0.0/8\"]\n"
    )
}

/// Makes this number of connections, one after the other, each until it is refused.
fn knock(address: SocketAddr, count: usize) {
    for _ in 0..count {
        // Refused at once, it may be reset before it is known to be there.
        if let Ok(mut stream) = TcpStream::connect(address) {
            let _ = stream.read(&mut [0]);
        }
    }
}

/// How many refusals at this listener are written, and how many are counted as suppressed.
fn refusals(daemon: &Daemon, name: &str) -> (usize, usize) {
    let head = format!("listener \"{name}\": 127.0.0.1:");
    let (mut written, mut suppressed) = (0, 0);
    for line in daemon.log().lines() {
        let line = line.strip_prefix("echod: ").expect("a line of ours");
        if !line.ends_with(": refused: denied") {
            continue;
        }
        match line.split_once(" suppressed, the first: ") {
            Some((count, first)) if first.starts_with(&head) => {
                suppressed += count.parse::<usize>().expect("a number");
            }
            None if line.starts_with(&head) => written += 1,
            _ => {}
        }
    }
    (written, suppressed)
}

#[test]
fn a_flood_is_cut_short_and_counted_also_when_nothing_comes_after_it() {
    let config = closed("main") + &closed("other") + DEBUG;
    let daemon = Daemon::start(&config);
    knock(daemon.address("main"), 250);
    knock(daemon.address("other"), 1);
    // The end of the window of time is noticed by itself.
    eventually("all are written or counted", || {
        let (written, suppressed) = refusals(&daemon, "main");
        written + suppressed == 250 && suppressed > 0
    });
    let (written, _) = refusals(&daemon, "main");
    assert!((100..250).contains(&written), "{written}");
    assert_eq!(refusals(&daemon, "other"), (1, 0));
}

#[test]
fn what_was_suppressed_is_counted_at_the_end() {
    let mut daemon = Daemon::start(&(closed("main") + DEBUG));
    knock(daemon.address("main"), 250);
    eventually("all are refused", || {
        daemon.listener("main")["refused"]["denied"] == 250
    });
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    let (written, suppressed) = refusals(&daemon, "main");
    assert_eq!(written + suppressed, 250, "{written}");
    assert!(suppressed > 0);
}

#[test]
fn a_rejected_reload_logs_each_of_the_first_hundred_errors() {
    let daemon = Daemon::start(&(closed("main") + DEBUG));
    let wrong = |n| format!("[listener.l{n}]\nprotocol = \"tpc\"\naddress = \"127.0.0.1:0\"\n");
    let config: String = (0..150).map(wrong).collect();
    daemon.write_config(&config);
    assert_eq!(daemon.reload()["outcome"], "rejected");
    let log = daemon.log();
    let errors = log.lines().filter(|line| line.contains("\"tpc\"")).count();
    assert_eq!(errors, 100, "{log}");
    assert!(
        log.contains("reload 2: 50 more errors not shown\n"),
        "{log}"
    );
    assert!(!log.contains("suppressed"), "{log}");
}

#[test]
fn the_name_of_a_file_forges_no_line_and_steers_no_terminal() {
    let daemon = Daemon::start(&(closed("main") + DEBUG));
    let folder = daemon.path("echod.d");
    std::fs::create_dir_all(&folder).expect("a folder");
    let name = "50-a\nechod: forged\x1b[2J\u{202e}.toml";
    std::fs::write(folder.join(name), "[listener.main]\nbacklog = -1\n").expect("a drop-in");
    assert_eq!(daemon.reload()["outcome"], "rejected");
    let log = daemon.log();
    assert!(
        log.contains("50-a\\x0aechod: forged\\x1b[2J\\u{202e}.toml:2:"),
        "{log}"
    );
    assert!(!log.contains("\nechod: forged"), "{log}");
    assert!(!log.contains(['\x1b', '\u{202e}']), "{log}");
}

/// A pipe that is the standard error of a daemon, and is read when the test says so.
struct Pipe {
    path: PathBuf,
    reader: File,
}

impl Pipe {
    /// Starts a daemon with such a pipe, after this line of a shell.
    fn start(config: &str, line: &str) -> (Daemon, Self) {
        let mut pipe = None;
        let daemon = Daemon::start_with(config, |command| {
            pipe = Some(Self::give(command, line));
        });
        (daemon, pipe.expect("it was made"))
    }

    /// Has the command run with such a pipe, after this line of a shell.
    fn give(command: &mut Command, line: &str) -> Self {
        let path = folder_of(command).join("pipe");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).expect("a pipe");
        let mut options = File::options();
        options.read(true).custom_flags(libc::O_NONBLOCK);
        let reader = options.open(&path).expect("a pipe");
        let line = format!("{line}; exec 2>'{}'", path.display());
        after_shell_line(command, &line);
        Self { path, reader }
    }

    /// Fills it to the last byte. The daemon's end of it stays as it is, blocking.
    fn fill(&self) {
        let mut options = File::options();
        options.write(true).custom_flags(libc::O_NONBLOCK);
        let mut writer = options.open(&self.path).expect("a pipe");
        for len in [4096, 1] {
            while writer.write(&vec![b'\n'; len]).is_ok() {}
        }
    }

    /// Reads until the daemon has nothing left to write; the lines of it.
    fn drain(&mut self, daemon: &Daemon) -> Vec<String> {
        let mut bytes = Vec::new();
        eventually("the log is written", || {
            let is_written = daemon.log_is_written();
            match self.reader.read_to_end(&mut bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => is_written,
                read => panic!("{read:?}"),
            }
        });
        let lines = text(&bytes);
        let lines = lines.lines().filter(|line| !line.is_empty());
        lines.map(Into::into).collect()
    }
}

/// How many errors [`with_unknown_keys`] has.
const UNKNOWN_KEYS: usize = 90;

/// A configuration that is rejected with many long lines.
fn with_unknown_keys(config: &str) -> String {
    let unknown = (0..UNKNOWN_KEYS).map(|n| format!("key{n}{} = 1\n", "x".repeat(60)));
    config.to_owned() + &unknown.collect::<String>()
}

fn echo(name: &str) -> String {
    format!("[listener.{name}]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n")
}

#[test]
fn a_standard_error_that_is_not_read_delays_no_reload_no_upgrade_and_no_stop() {
    let (mut daemon, pipe) = Pipe::start(&(echo("main") + DEBUG), ":");
    pipe.fill();
    daemon.write_config(&(echo("main") + &echo("other") + DEBUG));
    assert_eq!(daemon.reload()["outcome"], "applied");
    let mut peer = daemon.connect("other");
    daemon.ctl_text(&["upgrade"]);
    assert_eq!(exchange(&mut peer, b"hello"), b"hello");
    drop(peer);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
}

#[test]
fn lines_that_wait_before_an_upgrade_are_written_all_the_same() {
    let config = echo("main") + INFO;
    let (daemon, mut pipe) = Pipe::start(&config, ":");
    // It takes everything, at its own pace.
    fcntl(&pipe.reader, FcntlArg::F_SETPIPE_SZ(1 << 20)).expect("a larger pipe");
    daemon.write_config(&with_unknown_keys(&config));
    for _ in 0..10 {
        assert_eq!(daemon.reload()["outcome"], "rejected");
    }
    daemon.write_config(&config);
    daemon.ctl_text(&["upgrade"]);
    let lines = pipe.drain(&daemon);
    let is_error = |line: &&String| line.contains("unknown key");
    assert_eq!(lines.iter().filter(is_error).count(), 10 * UNKNOWN_KEYS);
}

#[test]
fn a_failed_start_ends_also_when_standard_error_is_not_read() {
    let port = free_port();
    let taken = echo("main").replace(":0", &format!(":{port}"));
    let _first = Daemon::start(&taken);
    let mut pipe = None;
    let mut second = Daemon::spawn(&(taken + DEBUG), |command| {
        let full = Pipe::give(command, ":");
        full.fill();
        pipe = Some(full);
    });
    assert_eq!(second.wait().code(), Some(1));
}

#[test]
fn lines_that_standard_error_does_not_take_are_lost_and_counted() {
    let (daemon, mut pipe) = Pipe::start(&(echo("main") + INFO), ":");
    daemon.write_config(&with_unknown_keys(&echo("main")));
    pipe.drain(&daemon);
    // What one rejected reload logs.
    assert_eq!(daemon.reload()["outcome"], "rejected");
    let lines = pipe.drain(&daemon);
    assert!(lines.len() > UNKNOWN_KEYS, "{lines:?}");
    pipe.fill();
    // More than what may wait.
    const RELOADS: usize = 60;
    for _ in 0..RELOADS {
        assert_eq!(daemon.reload()["outcome"], "rejected");
    }
    let (mut written, mut lost) = (0, 0);
    for line in pipe.drain(&daemon) {
        match line.split_once(" lines of the log are lost: ") {
            Some((count, _)) => {
                let count = count.strip_prefix("echod: ").expect("a line of echod");
                lost += count.parse::<usize>().expect("a number");
            }
            None => written += 1,
        }
    }
    assert!(
        written >= lines.len() && lost >= lines.len(),
        "{written}, {lost}"
    );
    assert_eq!(written + lost, RELOADS * lines.len());
    // From now on nothing is lost.
    assert_eq!(daemon.reload()["outcome"], "rejected");
    assert_eq!(pipe.drain(&daemon).len(), lines.len());
}

#[test]
fn a_worker_with_something_to_log_serves_while_standard_error_is_not_read() {
    for driver in ["epoll", "io_uring"] {
        let config = format!("[daemon]\ndriver = \"{driver}\"\nworkers = 1\n");
        let (daemon, mut pipe) = Pipe::start(&(config + &echo("main") + DEBUG), "ulimit -n 64");
        let address = daemon.address("main");
        let mut first = connect(address);
        exchange(&mut first, b"one");
        pipe.fill();
        // More than there are descriptors: the worker logs that it has none left.
        let _others: Vec<TcpStream> = (0..80).map(|_| connect(address)).collect();
        eventually("clients wait in the backlog", || {
            daemon.listener("main")["backlog"]["queued"] != 0
        });
        assert_eq!(exchange(&mut first, b"two"), b"two", "{driver}");
        let lines = pipe.drain(&daemon);
        let is_full = |line: &String| line.contains("clients wait in the backlog");
        assert!(lines.iter().any(is_full), "{lines:?}");
    }
}

#[test]
fn the_control_plane_answers_while_standard_error_is_not_read() {
    let (daemon, pipe) = Pipe::start(&(echo("main") + DEBUG), ":");
    pipe.fill();
    daemon.write_config(&with_unknown_keys(&echo("main")));
    for _ in 0..3 {
        // Each logs more than an output takes that is full.
        assert_eq!(daemon.reload()["outcome"], "rejected");
    }
    measure_answers(&daemon, "while the log can not be written");
}

#[test]
fn a_start_with_a_wrong_configuration_ends_also_when_standard_error_is_not_read() {
    let mut pipe = None;
    let mut daemon = Daemon::spawn("unknown = 1\n", |command| {
        let full = Pipe::give(command, ":");
        full.fill();
        pipe = Some(full);
    });
    assert_eq!(daemon.wait().code(), Some(78));
}

#[test]
fn a_rejected_reload_logs_each_error_once_and_one_line_with_the_result() {
    let daemon = Daemon::start(&(echo("main") + INFO));
    let before = daemon.log().lines().count();
    daemon.write_config(&(echo("main").replace("tcp", "tpc") + "backlog = -1\n"));
    daemon.signal(Signal::SIGHUP);
    eventually("it is rejected", || {
        daemon.log().contains("reload 2 rejected")
    });
    assert_eq!(daemon.ctl(&["reload"]).status.code(), Some(78));
    let log = daemon.log();
    let lines: Vec<&str> = log.lines().skip(before).collect();
    for id in [2, 3] {
        let count = |words: &str| {
            let of_reload = lines
                .iter()
                .filter(|line| line.contains(&format!("reload {id}")));
            of_reload.filter(|line| line.contains(words)).count()
        };
        assert_eq!(
            [
                count("protocol"),
                count("backlog"),
                count("rejected with 2 errors")
            ],
            [1; 3]
        );
        assert_eq!(count(""), 3, "{log}");
    }
    let audit = lines
        .iter()
        .filter(|line| line.contains("reloads the configuration"));
    assert_eq!((audit.count(), lines.len()), (1, 7), "{log}");
}

/// With the unit's `ExecReload=` each error was in the journal twice.
#[test]
fn a_quiet_reload_prints_nothing_that_the_log_has() {
    let mut daemon = Daemon::start(&(echo("main") + INFO));
    let quiet = |status: i32| {
        let output = daemon.ctl(&["reload", "--quiet"]);
        assert_eq!(output.status.code(), Some(status));
        text(&output.stdout) + &text(&output.stderr)
    };
    assert_eq!(quiet(0), "");
    daemon.write_config("unknown = 1\n");
    assert_eq!(quiet(78), "");
    std::fs::remove_file(daemon.path("control.sock")).expect("it is there");
    assert_ne!(quiet(69), "", "no log has this");
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
}

/// The lines about connections that were closed, at the level of the file.
fn closed_lines(daemon: &Daemon) -> Vec<String> {
    let log = daemon.log();
    let lines = log.lines().filter(|line| line.contains(": closed after "));
    lines.map(str::to_owned).collect()
}

/// A limit of repeated lines would hide most of them.
#[test]
fn each_connection_that_is_closed_has_a_line_where_that_is_asked_for() {
    let asked = format!("{INFO}connections = true\n{STREAM_AND_DATAGRAMS}");
    let daemon = Daemon::start(&asked);
    for _ in 0..150 {
        let mut peer = daemon.connect("main");
        assert_eq!(exchange(&mut peer, b"hello"), b"hello");
    }
    eventually("each has a line", || closed_lines(&daemon).len() == 150);
    let mut peer = daemon.connect("main");
    let name = peer.local_addr().expect("bound");
    assert_eq!(exchange(&mut peer, b"hello"), b"hello");
    // It is open already when it ceases to be asked for.
    let result = daemon.reload_with(&format!("{INFO}{STREAM_AND_DATAGRAMS}"));
    assert_eq!(result["outcome"], "applied", "{result}");
    drop(peer);
    eventually("it is closed", || daemon.connections("main") == 0);
    let result = daemon.reload_with(&asked);
    assert_eq!(result["outcome"], "applied", "{result}");
    let mut last = daemon.connect("main");
    assert_eq!(exchange(&mut last, b"last"), b"last");
    let begin = format!(
        "echod: listener \"main\": {}: closed after ",
        last.local_addr().expect("bound")
    );
    drop(last);
    eventually("the last one has a line", || {
        closed_lines(&daemon).len() == 151
    });
    let lines = closed_lines(&daemon);
    let end = " because the conversation was finished; 4 bytes received, 4 bytes sent";
    assert!(
        lines[150].starts_with(&begin) && lines[150].ends_with(end),
        "{lines:?}"
    );
    assert!(
        !daemon.log().contains(&name.to_string()),
        "not while it was off"
    );
    assert!(!daemon.log().contains("suppressed"));
}

#[test]
fn the_lines_of_connections_are_asked_for_in_a_successor_too() {
    let daemon = Daemon::start(&format!("{INFO}connections = true\n{STREAM_AND_DATAGRAMS}"));
    let mut peer = daemon.connect("main");
    assert_eq!(exchange(&mut peer, b"before"), b"before");
    daemon.ctl_text(&["upgrade"]);
    assert_eq!(exchange(&mut peer, b"after"), b"after");
    drop(peer);
    eventually("it has a line", || closed_lines(&daemon).len() == 1);
}
