//! Every command of echoctl as its users run it, and control clients that misbehave.
//!
//! The daemon has a listener of each kind.

mod backlog;
mod commands;
mod completions;
mod exit_statuses;
mod json;
mod lists;
mod many_peers;
mod misbehaving_clients;
mod roles;
pub(crate) mod under_load;
mod watch;

use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use serde_json::Value;

use crate::harness::{Daemon, ECHOCTL, PATIENCE, install};

const ALL_KINDS: &str = r#"
[log]
target = "stderr"

[defaults]
sockets = 1

[listener.main]
protocol = "tcp"
address = "127.0.0.1:0"

[listener.datagrams]
protocol = "udp"
address = "127.0.0.1:0"

[listener.local]
protocol = "unix-stream"
address = "{dir}/local.sock"

[listener.local-datagrams]
protocol = "unix-datagram"
address = "{dir}/datagrams.sock"
"#;

const ONE_AT_A_TIME: &str = r#"
[log]
target = "stderr"

[listener.main]
protocol = "tcp"
address = "127.0.0.1:0"
sockets = 1
max-connections = 1
backlog = 16
"#;

/// The only entry of a list of peers.
fn only(reply: &Value) -> &Value {
    let peers = reply["peers"].as_array().expect("a list");
    assert_eq!(peers.len(), 1, "{reply}");
    &peers[0]
}

fn peer_count(daemon: &Daemon, selection: &[&str]) -> u64 {
    let arguments = [&["peers"], selection].concat();
    let reply = daemon.ctl_json(&arguments);
    let total = reply["total"].as_u64().expect("a number");
    assert_eq!(
        reply["peers"].as_array().map(Vec::len),
        Some(total as usize)
    );
    total
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

/// A connection from another loopback address.
fn connect_from(local: [u8; 4], address: SocketAddr) -> TcpStream {
    let socket =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket
        .bind(&SocketAddr::from((local, 0)).into())
        .expect("an address");
    socket.connect(&address.into()).expect("a connection");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// What piped output must be: whole lines without a trace of a terminal.
fn assert_plain(text: &str) {
    assert!(!text.contains('\x1b'), "escape codes in a pipe: {text:?}");
    assert!(text.ends_with('\n'), "{text:?}");
    assert!(
        text.lines().all(|line| line == line.trim_end()),
        "blanks at the end of a line: {text:?}"
    );
}

/// Runs echoctl as a user other than root, to which it and the folder must be accessible.
fn as_nobody(daemon: &Daemon, arguments: &[&str]) -> Output {
    let program = daemon.path("echoctl");
    if !program.exists() {
        install(ECHOCTL, &program);
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(daemon.path("."), mode).expect("set");
    }
    Command::new(&program)
        .env("ECHOCTL_SOCKET", daemon.path("control.sock"))
        .current_dir("/")
        .uid(65_534)
        .gid(65_534)
        .args(arguments)
        .output()
        .expect("echoctl runs")
}

fn resident_kilobytes(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it is there");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .expect("a number")
}
