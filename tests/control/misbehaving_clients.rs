//! Control clients that misbehave, or only wait, harm only themselves.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::{ALL_KINDS, as_nobody, code, resident_kilobytes};
use crate::harness::{
    Control, Daemon, ECHOPROBE, PATIENCE, eventually, exchange, install, not_tested, text,
};

#[test]
fn a_request_that_is_too_large_is_refused_for_that_reason() {
    let daemon = Daemon::start(ALL_KINDS);
    // One that fits into the socket's buffer, and one of which the daemon reads only the beginning.
    for len in [70_000, 120_000] {
        let parameters = json!({ "listener": "a".repeat(len) }).to_string();
        let output = daemon.ctl(&["call", "ListPeers", &parameters]);
        assert_eq!(code(&output), Some(1));
        let stderr = text(&output.stderr);
        let told = "the request is too large: echod takes 65536 bytes at most";
        assert!(stderr.contains(told), "{stderr}");
    }
    let mut control = daemon.control();
    // The daemon may close before all is sent.
    let _ = control.stream.write_all(&vec![b'x'; 4 * 1024 * 1024]);
    let reply = control.reply().expect("the reason");
    assert_eq!(reply["error"], "io.echod.Control.RequestTooLarge");
    assert_eq!(control.reply(), None);
}

/// Whether the daemon has closed this connection, or does so now.
fn is_ended(stream: &mut UnixStream) -> bool {
    loop {
        match stream.read(&mut [0; 4096]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_control_client_that_misbehaves_harms_only_itself() {
    let daemon = Daemon::start(ALL_KINDS);
    let mut peer = daemon.connect("main");
    let mut all_is_well = || {
        assert_eq!(exchange(&mut peer, b"echo continues"), b"echo continues");
        assert_eq!(daemon.ctl_json(&["status"])["status"]["state"], "serving");
    };
    let memory = resident_kilobytes(daemon.pid());

    let mut rubbish = daemon.control();
    rubbish
        .stream
        .write_all(b"GET / HTTP/1.1\r\n\r\n\0")
        .expect("sent");
    assert!(is_ended(&mut rubbish.stream));
    all_is_well();

    // A megabyte without an end. The daemon hangs up long before it has it all.
    let mut endless = daemon.control();
    let sent = endless.stream.write_all(&vec![b'x'; 1024 * 1024]);
    assert!(sent.is_err() || is_ended(&mut endless.stream));
    all_is_well();

    // Nothing, and half a request: they wait, and may continue at any time.
    let mut silent = daemon.control();
    let mut half = daemon.control();
    half.stream
        .write_all(b"{\"method\":\"io.echod.Con")
        .expect("sent");
    all_is_well();
    half.stream.write_all(b"trol.GetStatus\"}\0").expect("sent");
    let reply = half.reply().expect("an answer");
    assert_eq!(reply["parameters"]["status"]["pid"], daemon.pid());
    assert!(silent.ask("GetStatus", &json!({})).is_some());

    // One that asks and asks and reads no reply: after a while it can write no more, and then it
    // is hung up on.
    let mut greedy = daemon.control();
    let timeout = Duration::from_millis(500);
    greedy.stream.set_write_timeout(Some(timeout)).expect("set");
    let request = b"{\"method\":\"io.echod.Control.GetStatus\"}\0".repeat(100);
    let mut sent = 0;
    while greedy.stream.write_all(&request).is_ok() {
        sent += request.len();
        assert!(sent < 64 * 1024 * 1024, "it takes whatever comes");
    }
    all_is_well();
    eventually(
        "it is hung up on",
        || matches!(greedy.stream.write_all(b"x"), Err(error) if error.kind() == ErrorKind::BrokenPipe),
    );
    all_is_well();

    let grown = resident_kilobytes(daemon.pid()).saturating_sub(memory);
    println!("misbehaving control clients cost {grown} KiB");
    assert!(grown < 8 * 1024, "{grown} KiB more");
    let log = daemon.log();
    assert!(!log.contains("panic") && !log.contains("error"), "{log}");
}

#[test]
fn idle_control_clients_shut_out_only_their_own_user() {
    let daemon = Daemon::start(&format!("[control]\nmode = \"0666\"\n{ALL_KINDS}"));
    let clients: Vec<Control> = (0..40).map(|_| daemon.control()).collect();
    // Each one is either held or turned away at once.
    let mut held = Vec::new();
    let mut turned_away = 0;
    for client in clients {
        let mut stream = client.stream;
        let timeout = Duration::from_millis(300);
        // The first eight are those that stay: the order of accepting is that of connecting.
        if held.len() < 8 {
            held.push(stream);
            continue;
        }
        stream
            .set_read_timeout(Some(PATIENCE.max(timeout)))
            .expect("set");
        assert!(is_ended(&mut stream));
        turned_away += 1;
    }
    assert_eq!(turned_away, 32);
    for stream in &mut held {
        stream.set_nonblocking(true).expect("set");
        assert!(!is_ended(stream));
    }
    let output = daemon.ctl(&["status"]);
    assert_eq!(code(&output), Some(1));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("8 of one user"), "{stderr}");
    if nix::unistd::geteuid().is_root() {
        let output = as_nobody(&daemon, &["status"]);
        assert_eq!(code(&output), Some(0), "{}", text(&output.stderr));
    } else {
        not_tested("only root can connect as another user, too");
    }
    // One goes, one comes.
    held.pop();
    eventually("there is room again", || {
        code(&daemon.ctl(&["status"])) == Some(0)
    });
}

/// Four users with eight connections each had all that there were.
#[test]
fn idle_control_clients_of_other_users_together_do_not_shut_out_root() {
    if !nix::unistd::geteuid().is_root() {
        return not_tested("only root can connect as other users");
    }
    let daemon = Daemon::start(&format!("[control]\nmode = \"0666\"\n{ALL_KINDS}"));
    // Makes the folder accessible to them.
    assert_eq!(code(&as_nobody(&daemon, &["status"])), Some(0));
    let program = daemon.path("echoprobe");
    install(ECHOPROBE, &program);
    let url = format!("unix://{}", daemon.path("control.sock").display());
    // A conversation connects, and says nothing before its user does.
    let connect = |uid: u32| {
        let child = Command::new(&program)
            .arg(&url)
            .current_dir("/")
            .uid(uid)
            .gid(uid)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        EndedAtEnd(child.expect("echoprobe runs"))
    };
    let clients = (0..32).map(|number| connect(60_001 + number / 8));
    let _clients: Vec<EndedAtEnd> = clients.collect();
    eventually("there is no place for another user", || {
        code(&as_nobody(&daemon, &["status"])) == Some(1)
    });
    let output = daemon.ctl(&["status"]);
    assert_eq!(code(&output), Some(0), "{}", text(&output.stderr));
}

/// A process that ends with the test.
struct EndedAtEnd(Child);

impl Drop for EndedAtEnd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
