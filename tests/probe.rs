//! `echoprobe` as a process: what it says of services that behave, and of those that don't.

mod check;
mod fault;
mod idle;
mod load;
mod mtu;
mod ping;
mod ports;
mod send;
mod talk;

use std::process::{Command, Output};

use serde_json::Value;

use crate::harness::{ECHOPROBE, run, text};

/// Listeners of every kind, to speak to.
pub(crate) const LISTENERS: &str = r#"
[listener.tcp]
protocol = "tcp"
address = ["127.0.0.1:0"]

[listener.udp]
protocol = "udp"
address = "127.0.0.1:0"

[listener.stream]
protocol = "unix-stream"
address = "{dir}/stream"

[listener.datagram]
protocol = "unix-datagram"
address = "{dir}/datagram"
"#;

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
