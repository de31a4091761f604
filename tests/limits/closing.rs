//! Why connections were closed, as operators see it: counts by reason, the peak, and a line of the log.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};
use socket2::SockRef;

use crate::harness::{Daemon, eventually, exchange};

const LISTENERS: &str = "
[log]
target = \"stderr\"
level = \"debug\"

[listener.main]
protocol = \"tcp\"
address = \"127.0.0.1:0\"
max-connections = 100

[listener.idle]
protocol = \"tcp\"
address = \"127.0.0.1:0\"
idle-timeout = \"100ms\"

[listener.stalled]
protocol = \"tcp\"
address = \"127.0.0.1:0\"
write-stall-timeout = \"100ms\"
";

/// The counts of closed connections that are not 0, by reason.
fn closed(daemon: &Daemon, listener: &str) -> Value {
    let mut closed = daemon.listener(listener)["closed"].clone();
    let counts = closed.as_object_mut().expect("counts by reason");
    counts.retain(|_, count| *count != 0);
    closed
}

/// A connection to the listener that has been answered five bytes.
fn talking(daemon: &Daemon, listener: &str) -> TcpStream {
    let mut peer = daemon.connect(listener);
    assert_eq!(exchange(&mut peer, b"hello"), b"hello");
    peer
}

#[test]
fn each_end_of_a_connection_is_counted_by_its_reason_and_logged() {
    let daemon = Daemon::start(LISTENERS);
    let [mut finishes, resets, kicked] = [(); 3].map(|()| talking(&daemon, "main"));
    let names = [&finishes, &resets, &kicked].map(|peer| peer.local_addr().expect("bound"));
    finishes.shutdown(Shutdown::Write).expect("connected");
    assert_eq!(finishes.read(&mut [0]).expect("a FIN"), 0);
    SockRef::from(&resets)
        .set_linger(Some(Duration::ZERO))
        .expect("an option");
    drop(resets);
    eventually("one is left", || daemon.connections("main") == 1);
    daemon.ctl_text(&["kick", "--address", "127.0.0.1"]);
    eventually("none is left", || daemon.connections("main") == 0);

    let expected = json!({"finished": 1, "reset": 1, "kicked": 1});
    assert_eq!(closed(&daemon, "main"), expected);
    let main = daemon.listener("main");
    assert_eq!(main["closed"].as_object().expect("counts").len(), 8);
    assert_eq!(
        (&main["max_connections"], &main["peak"], &main["faults"]),
        (&json!(100), &json!(3), &json!(1))
    );
    let text = daemon.ctl_text(&["listeners", "main"]);
    for line in [
        "  connections    0 of 100, 3 at the peak\n",
        "  closed         3: 1 finished, 1 kicked, 1 reset\n",
        "  faults         1\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
    let clauses = [
        "the conversation was finished",
        "the peer reset it",
        "an operator closed it",
    ];
    for (name, clause) in names.iter().zip(clauses) {
        let begin = format!("listener \"main\": {name}: closed after ");
        let end = format!(" because {clause}; 5 bytes received, 5 bytes sent");
        let is_it = |line: &str| line.contains(&begin) && line.ends_with(&end);
        eventually("it is logged", || daemon.log().lines().any(is_it));
    }
}

#[test]
fn a_connection_that_reaches_a_timeout_is_counted_by_that() {
    let daemon = Daemon::start(LISTENERS);
    // It sends nothing: on a slow machine the timeout may be over before an answer arrives.
    let mut idle = daemon.connect("idle");
    assert_eq!(idle.read(&mut [0]).expect("a FIN"), 0);
    drop(idle);
    eventually("it is closed", || daemon.connections("idle") == 0);
    assert_eq!(closed(&daemon, "idle"), json!({"idle": 1}));

    // It never reads, and in the end is reset.
    let mut stalled = daemon.connect("stalled");
    while stalled.write(&vec![7; 60_000]).is_ok() {}
    eventually("it is closed", || daemon.connections("stalled") == 0);
    assert_eq!(closed(&daemon, "stalled"), json!({"stalled": 1}));
    assert_eq!(daemon.listener("stalled")["faults"], 1);
}
