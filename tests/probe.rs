//! `echoprobe` as a process: what it reports of services that behave, and of those that don't.

mod check;
mod fault;
mod flows;
mod full;
mod interop;
mod load;
mod mtu;
mod ping;
mod send;
mod talk;
mod terminal;

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

pub(crate) use crate::harness::LISTENERS;
use crate::harness::{Daemon, ECHOPROBE, PATIENCE, run, text};

/// Listeners that do not echo, or only once.
pub(crate) const OTHER_REPLIES: &str = r#"
[listener.upper]
protocol = "tcp"
address = "127.0.0.1:0"
reply = "upper"

[listener.once]
protocol = "tcp"
address = "127.0.0.1:0"
one-shot = true

[listener.silent]
protocol = "tcp"
address = "127.0.0.1:0"
reply = "discard"

[listener.silent-udp]
protocol = "udp"
address = "127.0.0.1:0"
reply = "discard"
"#;

/// The URL of a listener.
pub(crate) fn url(daemon: &Daemon, listener: &str) -> String {
    match listener {
        "stream" => format!("unix://{}", daemon.path("stream").display()),
        "datagram" => format!("unixgram://{}", daemon.path("datagram").display()),
        udp if udp.ends_with("udp") => format!("udp://{}", daemon.address(udp)),
        tcp => format!("tcp://{}", daemon.address(tcp)),
    }
}

/// Runs echoprobe to its end, without any input.
pub(crate) fn probe(arguments: &[&str]) -> Output {
    run(Command::new(ECHOPROBE).args(arguments))
}

/// The same with `--json`: its exit status and what it prints.
pub(crate) fn probe_json(arguments: &[&str]) -> (i32, Value) {
    let output = probe(&[arguments, &["--json"]].concat());
    let said = text(&output.stdout) + &text(&output.stderr);
    let status = output.status.code().expect("it ended by itself");
    let json = serde_json::from_slice(&output.stdout);
    (
        status,
        json.unwrap_or_else(|error| panic!("{error}: {said}")),
    )
}

/// The same of a whole line.
pub(crate) fn output_of(line: &str) -> Output {
    probe(&line.split(' ').collect::<Vec<_>>())
}

/// The same with `--json`.
pub(crate) fn json_of(line: &str) -> (i32, Value) {
    probe_json(&line.split(' ').collect::<Vec<_>>())
}

/// These arguments, with more time for each answer where they have none: a busy machine is no
/// finding.
pub(crate) fn patiently(arguments: &[&str]) -> Vec<String> {
    let mut all: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    if !arguments.contains(&"--timeout") {
        all.extend(["--timeout".into(), format!("{}s", PATIENCE.as_secs())]);
    }
    all
}

/// Runs echoprobe to its end with this as its input.
pub(crate) fn probe_with(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(ECHOPROBE)
        .args(patiently(arguments))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("echoprobe runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    thread::scope(|scope| {
        // A program that does not read all of it reports so in its output.
        scope.spawn(move || _ = stdin.write_all(input));
        child.wait_with_output().expect("a child of ours")
    })
}

/// A server that serves one client by this function, and its URL.
pub(crate) fn server(
    speak: impl FnOnce(TcpStream) + Send + 'static,
) -> (String, thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("tcp://{}", listener.local_addr().expect("an address"));
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a client");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        speak(stream);
    });
    (url, server)
}

/// Cuts a connection off with an RST.
pub(crate) fn reset(stream: TcpStream) {
    let socket = socket2::Socket::from(stream);
    socket.set_linger(Some(Duration::ZERO)).expect("an option");
}
