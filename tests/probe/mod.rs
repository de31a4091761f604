//! `echoprobe` as a process: what it reports of services that behave, and of those that don't.

mod check;
mod fault;
mod faults;
mod flows;
mod full_queue;
mod interop;
mod load;
mod mtu;
mod ping;
mod send;
mod talk;
mod terminal;
mod unreached;

use std::io::{Seek, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

pub(crate) use crate::harness::LISTENERS;
use crate::harness::{Daemon, ECHOPROBE, PATIENCE, eventually, run_within, text};

/// Listeners that do not echo, or only once.
const OTHERS: [(&str, &str, &str); 4] = [
    ("upper", "tcp", r#"reply = "upper""#),
    ("once", "tcp", "one-shot = true"),
    ("silent", "tcp", r#"reply = "discard""#),
    ("silent-udp", "udp", r#"reply = "discard""#),
];

/// The URL of a listener.
pub(crate) fn url(daemon: &Daemon, listener: &str) -> String {
    match listener {
        "stream" => format!("unix://{}", daemon.path("stream").display()),
        "datagram" => format!("unixgram://{}", daemon.path("datagram").display()),
        udp if udp.ends_with("udp") => format!("udp://{}", daemon.address(udp)),
        tcp => format!("tcp://{}", daemon.address(tcp)),
    }
}

/// The listeners of every kind, and those.
pub(crate) fn start() -> Daemon {
    let others = OTHERS.map(|(name, protocol, line)| {
        format!("[listener.{name}]\nprotocol = \"{protocol}\"\naddress = \"127.0.0.1:0\"\n{line}\n")
    });
    Daemon::start(&(LISTENERS.to_owned() + &others.concat()))
}

/// The listeners of every kind, with a key for all of them.
pub(crate) fn start_with_default(line: &str) -> Daemon {
    Daemon::start(&format!("[defaults]\n{line}\n{LISTENERS}"))
}

/// Runs echoprobe with this line to its end, without any input. Many a command waits for answers that
/// never come, and one step of a check may take as long as ten of its timeouts.
pub(crate) fn output_of(line: &str) -> Output {
    run_within(PATIENCE * 3, Command::new(ECHOPROBE).args(line.split(' ')))
}

/// What it prints, if all is as it should be.
#[track_caller]
pub(crate) fn printed_by(line: &str) -> String {
    let output = output_of(line);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    said
}

/// The same with `--json`: its exit status and what it prints.
pub(crate) fn json_of(line: &str) -> (i32, Value) {
    ended(&output_of(&format!("{line} --json")))
}

/// What it prints then; it has to end with this status.
#[track_caller]
pub(crate) fn report_of(line: &str, status: i32) -> Value {
    let (ended, report) = json_of(line);
    assert_eq!(ended, status, "{line}: {report:#}");
    report
}

/// It ends with this status, and these words are in what it prints and says.
#[track_caller]
pub(crate) fn assert_prints(line: &str, status: i32, words: &str) {
    let output = output_of(line);
    let said = text(&output.stdout) + &text(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{line}: {said}");
    assert!(said.contains(words), "{line}: {said}");
}

/// The exit status of what has ended by itself, and its JSON.
pub(crate) fn ended(output: &Output) -> (i32, Value) {
    let said = text(&output.stdout) + &text(&output.stderr);
    let status = output.status.code().expect("it ended by itself");
    let json = serde_json::from_slice(&output.stdout);
    let json = json.unwrap_or_else(|error| panic!("{error}: {said}"));
    (status, json)
}

/// A number of a report.
pub(crate) fn number(report: &Value, field: &str) -> u64 {
    let value = report[field].as_u64();
    value.unwrap_or_else(|| panic!("{field} of {report}"))
}

/// Several of them.
pub(crate) fn numbers<const N: usize>(report: &Value, fields: [&str; N]) -> [u64; N] {
    fields.map(|field| number(report, field))
}

/// Each message ends as one of these: they add up.
#[track_caller]
pub(crate) fn assert_adds_up(report: &Value) {
    // Nothing of a stream is late.
    let count = |field| report[field].as_u64().unwrap_or(0);
    let ends = ["received", "late", "lost", "corrupt"].map(count);
    assert_eq!(ends.iter().sum::<u64>(), number(report, "sent"), "{report}");
}

/// Starts echoprobe, with a pipe for each of its streams. There is more time for each answer where
/// the arguments say none: a busy machine is no finding.
pub(crate) fn spawn(arguments: &[&str]) -> Child {
    spawn_reading(arguments, Stdio::piped())
}

fn spawn_reading(arguments: &[&str], input: impl Into<Stdio>) -> Child {
    Command::new(ECHOPROBE)
        .args(patiently(arguments))
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("echoprobe runs")
}

/// The same of a whole line.
pub(crate) fn spawn_line(line: &str) -> Child {
    spawn(&line.split(' ').collect::<Vec<_>>())
}

/// Starts echoprobe with the beginning of an input, which stays open.
pub(crate) fn spawn_typing(arguments: &[&str], typed: &[u8]) -> (Child, ChildStdin) {
    let mut child = spawn(arguments);
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(typed).expect("written");
    (child, input)
}

fn patiently(arguments: &[&str]) -> Vec<String> {
    let mut all: Vec<String> = arguments.iter().map(ToString::to_string).collect();
    if !arguments.contains(&"--timeout") {
        all.extend(["--timeout".into(), format!("{}s", PATIENCE.as_secs())]);
    }
    all
}

/// Sends it this signal.
pub(crate) fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    kill(pid, signal).expect("it is there");
}

/// Waits for the end of echoprobe; fails with this when it never ends.
pub(crate) fn end_of(child: &mut Child, what: &str) -> ExitStatus {
    let mut status = None;
    eventually(what, || {
        status = child.try_wait().expect("a child of ours");
        status.is_some()
    });
    status.expect("it has ended")
}

/// What it prints until its end, after a ^C.
pub(crate) fn interrupt(child: Child) -> Output {
    signal(&child, Signal::SIGINT);
    child.wait_with_output().expect("a child of ours")
}

/// Runs echoprobe to its end with this as its input. All of it is there from the beginning: a
/// service may answer and close before a thread of ours runs again.
pub(crate) fn probe_with(arguments: &[&str], input: &[u8]) -> Output {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(input).expect("written");
    file.rewind().expect("a file");
    let child = spawn_reading(arguments, file);
    child.wait_with_output().expect("a child of ours")
}

/// With this input it prints exactly this, and no diagnostic.
#[track_caller]
pub(crate) fn assert_returns(arguments: &[&str], input: &[u8], meant: &[u8]) {
    let output = probe_with(arguments, input);
    let (said, status) = (text(&output.stderr), output.status);
    assert!(status.success(), "{arguments:?}: {status}: {said}");
    assert_eq!(said, "", "{arguments:?}");
    let count = output.stdout.len();
    assert!(output.stdout == meant, "{arguments:?}: {count} bytes");
}

/// A thread that has ended when this is dropped, without a panic.
pub(crate) struct Served(Option<thread::JoinHandle<()>>);

impl Drop for Served {
    fn drop(&mut self) {
        // A test that has failed may never have been its client.
        if !thread::panicking() {
            let ended = self.0.take().map(thread::JoinHandle::join);
            ended.expect("it was started").expect("a server");
        }
    }
}

/// A server that serves one client by this function, and its URL.
pub(crate) fn server(speak: impl FnOnce(TcpStream) + Send + 'static) -> (String, Served) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("tcp://{}", listener.local_addr().expect("an address"));
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a client");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        speak(stream);
    });
    (url, Served(Some(server)))
}

/// Cuts a connection off with an RST.
pub(crate) fn reset(stream: TcpStream) {
    let socket = socket2::Socket::from(stream);
    socket.set_linger(Some(Duration::ZERO)).expect("an option");
}
