//! Tools of others, which know nothing of echod, see and steer it: the Python module `varlink` and
//! the program `varlink` of the crate `varlink-cli`.
//!
//! They are not part of a Rust installation, so these tests are run by `.ci/run`. `VARLINK_PYTHON`
//! names a Python that has the module, else `python3`; `VARLINK_CLI` names the program, else
//! `varlink`. A tool that is missing is a failure.

use std::net::TcpStream;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::harness::{Daemon, STREAM_AND_DATAGRAMS, connect, exchange, repository, text};

const INTERFACE: &str = "io.echod.Control";

/// More than fit into one reply.
const PEERS: usize = 300;

fn start() -> (Daemon, Vec<TcpStream>) {
    let daemon = Daemon::start(STREAM_AND_DATAGRAMS);
    let address = daemon.address("main");
    let mut peers: Vec<TcpStream> = (0..PEERS).map(|_| connect(address)).collect();
    for peer in &mut peers {
        exchange(peer, b"here");
    }
    (daemon, peers)
}

fn address(daemon: &Daemon) -> String {
    format!("unix:{}", daemon.path("control.sock").display())
}

fn python() -> Command {
    Command::new(std::env::var("VARLINK_PYTHON").unwrap_or_else(|_| "python3".into()))
}

fn python_cli() -> Command {
    let mut command = python();
    command.args(["-m", "varlink.cli"]);
    command
}

fn varlink_cli() -> Command {
    let program = std::env::var("VARLINK_CLI").unwrap_or_else(|_| "varlink".into());
    let mut command = Command::new(program);
    command.args(["--color", "off"]);
    command
}

fn run(mut command: Command, arguments: &[&str]) -> Output {
    command.args(arguments).output().unwrap_or_else(|error| {
        panic!("{command:?}: {error}; see the head of tests/varlink/mod.rs")
    })
}

fn printed(command: Command, arguments: &[&str]) -> String {
    let output = run(command, arguments);
    let stdout = text(&output.stdout);
    assert!(
        output.status.success(),
        "{arguments:?}: {stdout}{}",
        text(&output.stderr)
    );
    stdout
}

/// The JSON documents in a text, one after the other.
fn documents(text: &str) -> Vec<Value> {
    serde_json::Deserializer::from_str(text)
        .into_iter()
        .map(|document| document.expect("JSON"))
        .collect()
}

/// The interface as its file has it, without what is only layout: a tool may print it anew.
fn words(text: &str) -> Vec<&str> {
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.starts_with('#'))
        .flat_map(|line| line.split(|sign: char| sign.is_whitespace() || ",()".contains(sign)))
        .filter(|word| !word.is_empty())
        .collect()
}

fn file() -> String {
    let path = repository("src/protocol/io.echod.Control.varlink");
    std::fs::read_to_string(path).expect("the interface")
}

/// What both command lines can do, in the same words.
fn check_command_line(cli: fn() -> Command) {
    let (daemon, _peers) = start();
    let address = address(&daemon);
    let of = |method: &str| format!("{address}/{INTERFACE}.{method}");

    let info = printed(cli(), &["info", &address]);
    for expected in ["echod", env!("CARGO_PKG_VERSION"), INTERFACE] {
        assert!(info.contains(expected), "{expected} in {info}");
    }
    let help = printed(cli(), &["help", &format!("{address}/{INTERFACE}")]);
    assert_eq!(words(&help), words(&file()));

    let status = printed(cli(), &["call", &of("GetStatus")]);
    assert_eq!(documents(&status)[0]["status"]["pid"], daemon.pid());
    let one = printed(
        cli(),
        &["call", &of("ListListeners"), r#"{"name": "main"}"#],
    );
    assert_eq!(documents(&one)[0]["listeners"][0]["connections"], PEERS);

    let first = printed(cli(), &["call", &of("ListPeers"), "{}"]);
    assert_eq!(sizes(&documents(&first)), [256]);
    let all = printed(cli(), &["call", "-m", &of("ListPeers"), "{}"]);
    assert_eq!(sizes(&documents(&all)), [256, PEERS - 256]);

    let set = printed(
        cli(),
        &[
            "call",
            &of("SetBacklog"),
            r#"{"listener": "main", "backlog": 99}"#,
        ],
    );
    assert_eq!(documents(&set)[0]["after"]["requested"], 99);
    for (parameters, error, value) in [
        (
            r#"{"listener": "main", "backlog": 0}"#,
            "io.echod.Control.InvalidBacklog",
            "0",
        ),
        (
            r#"{"listener": "nobody", "backlog": 5}"#,
            "io.echod.Control.ListenerNotFound",
            "nobody",
        ),
    ] {
        let output = run(cli(), &["call", &of("SetBacklog"), parameters]);
        let told = text(&output.stdout) + &text(&output.stderr);
        assert!(told.contains(error) && told.contains(value), "{told}");
    }
}

fn sizes(pages: &[Value]) -> Vec<usize> {
    let size = |page: &Value| {
        assert_eq!(page["total"], PEERS);
        page["peers"].as_array().expect("a list").len()
    };
    pages.iter().map(size).collect()
}

#[test]
#[ignore = "needs the Python varlink module and varlink-cli: run by .ci/run"]
fn the_python_command_line_sees_and_steers_the_daemon() {
    check_command_line(python_cli);
}

#[test]
#[ignore = "needs the Python varlink module and varlink-cli: run by .ci/run"]
fn varlink_cli_sees_and_steers_the_daemon() {
    check_command_line(varlink_cli);
    // This one tells a refusal by its exit status, too.
    let daemon = Daemon::start(STREAM_AND_DATAGRAMS);
    let method = format!("{}/{INTERFACE}.SetBacklog", address(&daemon));
    let output = run(
        varlink_cli(),
        &["call", &method, r#"{"listener": "main", "backlog": 0}"#],
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
#[ignore = "needs the Python varlink module and varlink-cli: run by .ci/run"]
fn a_python_program_sees_and_steers_the_daemon() {
    let (daemon, _peers) = start();
    let script = repository("tests/varlink/objects.py");
    let told = printed(
        python(),
        &[
            &script.display().to_string(),
            &address(&daemon),
            &PEERS.to_string(),
        ],
    );
    assert_eq!(told, "the object API: fine\n");
}

#[test]
fn the_interface_that_is_served_is_the_file() {
    let daemon = Daemon::start(STREAM_AND_DATAGRAMS);
    let parameters = json!({ "interface": INTERFACE }).to_string();
    let reply = daemon.ctl_json(&[
        "call",
        "org.varlink.service.GetInterfaceDescription",
        &parameters,
    ]);
    assert_eq!(reply["description"], file());
}
