//! A running echod and its successor: same process, another program; nobody notices.

use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;

use crate::harness::{Daemon, exchange, text, udp};

const CONFIG: &str = r#"
[listener.main]
protocol = "tcp"
address = "127.0.0.1:0"

[listener.udp]
protocol = "udp"
address = "127.0.0.1:0"

[listener.local]
protocol = "unix-stream"
address = "{dir}/echo.sock"
"#;

fn upgrade(daemon: &mut Daemon) {
    let output = daemon.ctl(&["upgrade"]);
    assert!(
        output.status.success(),
        "{}{}{}",
        text(&output.stdout),
        text(&output.stderr),
        daemon.log()
    );
}

#[test]
fn an_upgrade_keeps_the_process_and_everybody_in_it() {
    let mut daemon = Daemon::start(CONFIG);
    let pid = daemon.pid();
    let mut tcp: Vec<TcpStream> = (0..20).map(|_| daemon.connect("main")).collect();
    let mut local = UnixStream::connect(daemon.path("echo.sock")).unwrap();
    let client = udp("127.0.0.1:0");
    client.connect(daemon.address("udp")).unwrap();
    for round in 0..5u8 {
        for peer in &mut tcp {
            assert_eq!(exchange(peer, &[round; 100]), [round; 100]);
        }
        assert_eq!(exchange(&mut local, &[round; 100]), [round; 100]);
        client.send(&[round; 10]).unwrap();
        assert_eq!(client.recv(&mut [0; 20]).unwrap(), 10);
        upgrade(&mut daemon);
    }
    let status = daemon.ctl_json(&["status"]);
    assert_eq!(status["status"]["pid"], pid);
    assert_eq!(status["status"]["connections"], 21);
    let peers = daemon.ctl_json(&["peers"]);
    assert_eq!(peers["total"], 22);
    assert!(
        daemon.log().contains("took over from echod"),
        "{}",
        daemon.log()
    );
    daemon.signal(Signal::SIGTERM);
    drop(tcp);
    drop(local);
    assert!(daemon.wait().success());
    assert!(!daemon.path("echo.sock").exists());
    assert!(!daemon.path("control.sock").exists());
}
