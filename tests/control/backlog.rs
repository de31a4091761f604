//! `echoctl backlog`, and the counters of the queues.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use serde_json::json;

use super::{ALL_KINDS, ONE_AT_A_TIME, assert_plain, code};
use crate::harness::{Daemon, PATIENCE, connect, eventually, exchange, text};

#[test]
fn a_backlog_is_raised_and_lowered_and_no_queued_client_is_lost() {
    let daemon = Daemon::start(ONE_AT_A_TIME);
    let address = daemon.address("main");
    let mut first = connect(address);
    exchange(&mut first, b"in");
    let mut queued: Vec<TcpStream> = (0..5).map(|_| connect(address)).collect();
    for client in &mut queued {
        client.write_all(b"waiting").expect("sent");
    }
    eventually("five are counted in the queue", || {
        daemon.listener("main")["backlog"]["queued"] == 5
    });
    assert_eq!(daemon.listener("main")["connections"], 1);

    let raised = daemon.ctl_json(&["backlog", "main", "64"]);
    assert_eq!(raised["before"]["requested"], 16);
    assert_eq!(raised["before"]["effective"], 16);
    assert_eq!(raised["after"]["requested"], 64);
    assert_eq!(raised["after"]["effective"], 64);
    assert_eq!(raised["after"]["queued"], 5);
    let lowered = daemon.ctl_text(&["backlog", "main", "2"]);
    assert_plain(&lowered);
    assert!(
        lowered.starts_with("main: backlog 2 requested → 2 effective\n"),
        "{lowered}"
    );
    assert!(lowered.contains("5 queued now"), "{lowered}");
    assert!(
        lowered.contains("before: 64 requested → 64 effective"),
        "{lowered}"
    );
    assert_eq!(daemon.listener("main")["overridden"], json!(["backlog"]));
    let shown = daemon.ctl_text(&["backlog", "main"]);
    assert!(shown.contains("2 requested → 2 effective"), "{shown}");

    // One after the other they come in, as those before them go.
    drop(first);
    for mut client in queued {
        let mut answer = [0; 7];
        client.read_exact(&mut answer).expect("served");
        assert_eq!(&answer, b"waiting");
    }
}

#[test]
fn a_backlog_above_the_kernels_limit_is_reported_as_capped() {
    let limit: u64 = std::fs::read_to_string("/proc/sys/net/core/somaxconn")
        .expect("the kernel's limit")
        .trim()
        .parse()
        .expect("a number");
    let daemon = Daemon::start(ALL_KINDS);
    let requested = (limit + 1000).to_string();
    let shown = daemon.ctl_text(&["backlog", "main", &requested]);
    assert!(
        shown.contains(&format!("{requested} requested → {limit} effective")),
        "{shown}"
    );
    assert!(shown.contains(&format!("capped at {limit}; ")), "{shown}");
    let backlog = &daemon.listener("main")["backlog"];
    assert_eq!(backlog["effective"], limit);
    assert_eq!(backlog["limit"], limit);

    // Each way not to have a backlog has its words.
    for (arguments, status, told) in [
        (
            ["backlog", "datagrams", "5"],
            1,
            "datagrams have no backlog",
        ),
        (["backlog", "main", "0"], 2, "from 1 to 2147483647"),
        (["backlog", "main", "-3"], 2, "from 1 to 2147483647"),
        (["backlog", "nobody", "5"], 1, "there are: datagrams, local"),
    ] {
        let output = daemon.ctl(&arguments);
        assert_eq!(code(&output), Some(status), "{arguments:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.contains(told), "{told:?} in {stderr}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn clients_that_find_the_queue_full_are_counted() {
    let daemon = Daemon::start(&ONE_AT_A_TIME.replace("backlog = 16", "backlog = 1"));
    let address = daemon.address("main");
    let mut first = connect(address);
    exchange(&mut first, b"in");
    assert_eq!(daemon.listener("main")["backlog"]["overflows"], 0);
    let clients: Vec<socket2::Socket> = (0..10)
        .map(|_| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
                .expect("a socket");
            socket.set_nonblocking(true).expect("set");
            // EINPROGRESS: the answer to its SYN is what never comes.
            let _ = socket.connect(&address.into());
            socket
        })
        .collect();
    eventually("some were turned away", || {
        daemon.listener("main")["backlog"]["overflows"].as_u64() > Some(0)
    });
    drop(clients);
}

#[test]
fn the_queue_of_each_unix_listener_is_counted() {
    let daemon = Daemon::start(
        "[listener.local]\nprotocol = \"unix-stream\"\naddress = \"{dir}/echo.sock\"\nmax-connections = 1\n\
         [listener.other]\nprotocol = \"unix-stream\"\naddress = \"{dir}/echo.sock.2\"\nmax-connections = 1\n",
    );
    let connect = || UnixStream::connect(daemon.path("echo.sock")).unwrap();
    let mut served = connect();
    served.set_read_timeout(Some(PATIENCE)).unwrap();
    exchange(&mut served, b"x");
    let waiting = [connect(), connect()];
    let backlog = daemon.listener("local")["backlog"].clone();
    assert_eq!(
        (&backlog["queued"], &backlog["effective"]),
        (&2.into(), &1024.into())
    );
    assert_eq!(daemon.listener("other")["backlog"]["queued"], 0);
    drop(waiting);
}
