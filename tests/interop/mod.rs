//! Other people's programs as peers: netcat, ncat, socat, haproxy, sockperf and curl.
//!
//! These tests need those programs, so that `cargo test` leaves them out; the gate runs them with
//! `cargo test -- --ignored`, and there a missing program is a failure.

pub(crate) mod servers;

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};

use crate::harness::{Daemon, LISTENERS, connect, eventually, exchange, noise, text};

/// Runs a program with this as its input, to its end.
fn pipe<A: AsRef<OsStr>>(program: &str, arguments: &[A], input: &[u8]) -> Output {
    let mut child = Command::new("timeout")
        .args(["20", program])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("timeout(1) runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    std::thread::scope(|scope| {
        // A program that does not read all of it prints less than is expected.
        scope.spawn(move || _ = stdin.write_all(input));
        child.wait_with_output().expect("a child of ours")
    })
}

/// The same; it must succeed and print exactly this.
fn assert_prints<A: AsRef<OsStr>>(program: &str, arguments: &[A], input: &[u8], expected: &[u8]) {
    let output = pipe(program, arguments, input);
    let said = text(&output.stderr);
    assert!(
        output.status.success(),
        "{program}: {}: {said}",
        output.status
    );
    assert_eq!(output.stdout.len(), expected.len(), "{program}: {said}");
    assert!(output.stdout == expected, "{program}: other bytes");
}

/// Runs a program that ends with its input, also before the answer: says hello, waits for as many
/// bytes, and only then ends the input.
fn converse<A: AsRef<OsStr>>(program: &str, arguments: &[A]) -> String {
    let mut child = Command::new("timeout")
        .args(["20", program])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("timeout(1) runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"hello\n").expect("written");
    let mut answer = [0; 6];
    let mut stdout = child.stdout.take().expect("a pipe");
    stdout.read_exact(&mut answer).expect("answered");
    drop(stdin);
    assert!(child.wait().expect("a child of ours").success());
    text(&answer)
}

fn port(daemon: &Daemon, listener: &str) -> String {
    daemon.address(listener).port().to_string()
}

fn path(daemon: &Daemon, name: &str) -> String {
    daemon.path(name).display().to_string()
}

#[test]
#[ignore = "needs nc, ncat, socat, haproxy and sockperf: run by .ci/run"]
fn netcat_talks_over_tcp_udp_and_unix() {
    let daemon = Daemon::start(LISTENERS);
    let tcp = port(&daemon, "tcp");
    assert_prints("nc", &["-N", "127.0.0.1", &tcp], b"hello\n", b"hello\n");
    let much = noise(1_000_000, 1);
    assert_prints("nc", &["-N", "127.0.0.1", &tcp], &much, &much);
    assert_prints("nc", &["-N", "-U", &path(&daemon, "stream")], &much, &much);
    // UDP has no end of a stream: -w ends it a second after the answer.
    let udp = port(&daemon, "udp");
    assert_prints(
        "nc",
        &["-u", "-w", "1", "127.0.0.1", &udp],
        b"hello\n",
        b"hello\n",
    );
    assert_prints(
        "nc",
        &[
            "-u",
            "-U",
            "-w",
            "1",
            "-s",
            &path(&daemon, "nc"),
            &path(&daemon, "datagram"),
        ],
        b"hello\n",
        b"hello\n",
    );
}

#[test]
#[ignore = "needs nc, ncat, socat, haproxy and sockperf: run by .ci/run"]
fn ncat_talks_over_tcp_udp_and_unix() {
    let daemon = Daemon::start(LISTENERS);
    let tcp = port(&daemon, "tcp");
    let much = noise(1_000_000, 2);
    assert_prints("ncat", &["127.0.0.1", &tcp], &much, &much);
    assert_prints(
        "ncat",
        &["--unixsock", &path(&daemon, "stream")],
        &much,
        &much,
    );
    let udp = port(&daemon, "udp");
    assert_eq!(converse("ncat", &["--udp", "127.0.0.1", &udp]), "hello\n");
}

#[test]
#[ignore = "needs nc, ncat, socat, haproxy and sockperf: run by .ci/run"]
fn socat_sends_a_megabyte_half_closes_and_gets_it_back() {
    let daemon = Daemon::start(LISTENERS);
    let tcp = port(&daemon, "tcp");
    let stream = path(&daemon, "stream");
    let much = noise(1_048_576, 3);
    // It waits for the other side's end after its own.
    let wait = ["-t", "10"];
    for address in [
        format!("TCP:127.0.0.1:{tcp}"),
        format!("UNIX-CONNECT:{stream}"),
    ] {
        assert_prints("socat", &[wait[0], wait[1], "-", &address], &much, &much);
    }
    // Datagrams have no end: it waits for answers for a second.
    let udp = port(&daemon, "udp");
    let datagram = path(&daemon, "datagram");
    let local = path(&daemon, "socat");
    for address in [
        format!("UDP:127.0.0.1:{udp}"),
        format!("UNIX-SENDTO:{datagram},bind={local}"),
    ] {
        let block = noise(8000, 4);
        assert_prints("socat", &["-t", "1", "-", &address], &block, &block);
    }
}

#[test]
#[ignore = "needs nc, ncat, socat, haproxy and sockperf: run by .ci/run"]
fn curl_talks_to_it_as_to_a_telnet_server() {
    let daemon = Daemon::start(&format!("[defaults]\nidle-timeout = \"5s\"\n{LISTENERS}"));
    let url = format!("telnet://127.0.0.1:{}", port(&daemon, "tcp"));
    // It never half-closes: our idle timeout ends it, with a FIN, so that it succeeds.
    let output = pipe("curl", &["--silent", "--show-error", &url], b"hello\n");
    let said = text(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    assert_eq!(text(&output.stdout), "hello\n", "{said}");
}

#[test]
#[ignore = "needs nc, ncat, socat, haproxy and sockperf: run by .ci/run"]
fn sockperf_measures_throughput_against_a_listener_that_discards() {
    // Not ping-pong: it takes its own bytes, unchanged, for those of another program (its
    // server would clear one bit of each message).
    let daemon = Daemon::start(&format!("[defaults]\nreply = \"discard\"\n{LISTENERS}"));
    for (listener, option) in [("tcp", Some("--tcp")), ("udp", None)] {
        let port = port(&daemon, listener);
        let mut arguments = vec!["throughput", "-i", "127.0.0.1", "-p", &port];
        arguments.extend(["-m", "100", "-t", "1"]);
        arguments.extend(option);
        let output = pipe("sockperf", &arguments, b"");
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.success(), "{}: {said}", output.status);
        let sent = said
            .split("Total of ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        let sent: u64 = sent.and_then(|sent| sent.parse().ok()).expect(&said);
        assert!(sent > 100, "{said}");
        let seen = daemon.listener(listener);
        assert_eq!(seen["bytes_sent"], 0);
        let received = seen["bytes_received"].as_u64().expect("a number");
        // UDP may lose some when the machine is busy; TCP may not. It also sends without counting
        // before and after the time it measures.
        let least = if listener == "tcp" {
            sent * 100
        } else {
            100 * 100
        };
        assert!(
            received >= least,
            "{received} bytes of {sent} messages: {said}"
        );
    }
}

/// A haproxy with this configuration, where `{dir}` is its folder. Ended with the test.
pub(crate) struct Haproxy {
    child: Child,
    folder: tempfile::TempDir,
}

impl Haproxy {
    pub(crate) fn start(config: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("haproxy.cfg");
        let dir = folder.path().display().to_string();
        let global = "global\n  stats socket {dir}/stats level admin\n\
                      defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n";
        let config = format!("{global}{config}\n").replace("{dir}", &dir);
        fs::write(&file, config).expect("a configuration");
        let log = fs::File::create(folder.path().join("log")).expect("a log file");
        let child = Command::new("haproxy")
            .arg("-db")
            .arg("-f")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("haproxy runs");
        let haproxy = Self { child, folder };
        let stats = haproxy.folder.path().join("stats");
        eventually("haproxy is up", || {
            std::os::unix::net::UnixStream::connect(&stats).is_ok()
        });
        haproxy
    }

    /// What it says to a command of its runtime interface.
    fn ask(&self, command: &str) -> String {
        let socket = self.folder.path().join("stats");
        let mut stream = std::os::unix::net::UnixStream::connect(socket).expect("connected");
        stream
            .write_all(format!("{command}\n").as_bytes())
            .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        answer
    }

    /// The result of its health check of this server, e.g. `L4OK`.
    fn check_status(&self, backend: &str, server: &str) -> String {
        let table = self.ask("show stat");
        let mut lines = table.lines();
        let heads = lines.next().unwrap_or_default().trim_start_matches("# ");
        let column = heads.split(',').position(|head| head == "check_status");
        let line = lines.find(|line| line.starts_with(&format!("{backend},{server},")));
        let cell = line
            .zip(column)
            .and_then(|(line, column)| line.split(',').nth(column));
        cell.unwrap_or_default().into()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of haproxy ---\n{}", self.log());
        }
    }
}

/// A socket that haproxy listens on in the end: haproxy can't be asked for a free port.
pub(crate) fn free_address() -> SocketAddr {
    let socket = TcpListener::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("an address")
}

#[test]
#[ignore = "needs nc, ncat, socat, haproxy and sockperf: run by .ci/run"]
fn haproxy_passes_everything_on_and_back() {
    let daemon = Daemon::start(LISTENERS);
    let front = free_address();
    let server = daemon.address("tcp");
    let stream = path(&daemon, "stream");
    let _haproxy = Haproxy::start(&format!(
        "listen echo\n  bind {front}\n  server one {server}\n  server two unix@{stream}\n"
    ));
    // Two servers in turn: one over TCP, one over a Unix socket.
    for round in 0..20 {
        let message = noise(300_000, round);
        let client = connect(front);
        let answer = std::thread::scope(|scope| {
            scope.spawn(|| {
                (&client).write_all(&message).expect("sent");
                client
                    .shutdown(std::net::Shutdown::Write)
                    .expect("half-closed");
            });
            let mut answer = Vec::new();
            (&client)
                .read_to_end(&mut answer)
                .expect("a FIN, and no reset");
            answer
        });
        assert!(answer == message, "round {round}: {} bytes", answer.len());
    }
    for listener in ["tcp", "stream"] {
        assert_eq!(daemon.listener(listener)["accepted"], 10, "{listener}");
    }
}

#[test]
#[ignore = "needs nc, ncat, socat, haproxy and sockperf: run by .ci/run"]
fn haproxy_finds_it_healthy_until_it_stops() {
    let mut daemon = Daemon::start(&format!("[log]\ntarget = \"stderr\"\n{LISTENERS}"));
    let front = free_address();
    let server = daemon.address("tcp");
    let haproxy = Haproxy::start(&format!(
        "listen plain\n  bind {front}\n  server echod {server} check inter 100ms\n\
         backend talking\n  option tcp-check\n  tcp-check connect\n  tcp-check send ping\\r\\n\n  \
         tcp-check expect string ping\n  server echod {server} check inter 100ms\n"
    ));
    // A bare connect, which it resets as soon as it stands, and a conversation.
    eventually("both checks succeed", || {
        haproxy.check_status("plain", "echod") == "L4OK"
            && haproxy.check_status("talking", "echod") == "L7OK"
    });
    let before = daemon.listener("tcp")["accepted"]
        .as_u64()
        .expect("a number");
    eventually("they continue", || {
        daemon.listener("tcp")["accepted"]
            .as_u64()
            .expect("a number")
            >= before + 20
    });
    let mut client: TcpStream = connect(front);
    assert_eq!(exchange(&mut client, b"through"), b"through");
    drop(client);
    // Checks leave no connection open, and nothing in the log.
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(daemon.wait().success());
    eventually("both checks fail", || {
        haproxy.check_status("plain", "echod") == "L4CON"
            && haproxy.check_status("talking", "echod") != "L7OK"
    });
    let log = daemon.log();
    assert!(log.contains("echod: stopped after"), "{log}");
    assert!(!log.contains("reset") && !log.contains("error"), "{log}");
}
