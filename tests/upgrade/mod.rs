//! A running echod and its successor: same process, another program; no client notices.

mod descriptor_store;
mod predecessor;
mod programs;
mod signals;
mod state;
mod traffic;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{
    Daemon, allow_many_descriptors, eventually, exchange, folder_of, instead, noise, not_tested,
    text, udp,
};

use traffic::Crowd;

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

[listener.datagram]
protocol = "unix-datagram"
address = "{dir}/datagram.sock"
"#;

/// Has the successor continue.
fn upgrade(daemon: &Daemon) {
    daemon.forget_notifications();
    let output = daemon.ctl(&["upgrade"]);
    assert!(
        output.status.success(),
        "{}{}{}",
        text(&output.stdout),
        text(&output.stderr),
        daemon.log()
    );
}

/// The same, asked for with a signal.
fn upgrade_by_signal(daemon: &Daemon) {
    let before = upgrades(daemon);
    daemon.forget_notifications();
    daemon.signal(Signal::SIGUSR2);
    eventually("the successor is there", || upgrades(daemon) > before);
}

/// Why there is no upgrade, as the caller gets it.
fn refusal(daemon: &Daemon) -> String {
    let output = daemon.ctl(&["upgrade"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    text(&output.stderr)
}

/// How many there have been.
fn upgrades(daemon: &Daemon) -> usize {
    daemon.log().matches("took over from echod").count()
}

/// A daemon whose program is in the test's folder, to be replaced there.
fn start_copy(config: &str) -> Daemon {
    Daemon::start_with(config, use_copy)
}

/// Has the daemon started by a link in the test's folder.
fn use_copy(command: &mut std::process::Command) {
    let copy = folder_of(command).join("echod");
    std::os::unix::fs::symlink(command.get_program(), &copy).expect("a link");
    let arguments = command.get_args().map(Into::into).collect();
    *command = instead(command, copy.to_str().expect("UTF-8"), arguments);
}

/// A program that accepts every configuration before it takes over.
const UNCHECKED: &str = "case \"$*\" in *--check*) exit 0;; esac\nexec {echod} \"$@\"";

/// Puts a script in the place of the daemon's program. `{dir}` in it becomes the test's folder, and
/// `{echod}` the program.
fn replace_by_script(daemon: &Daemon, script: &str) -> PathBuf {
    let script = script
        .replace("{dir}", daemon.folder.path().to_str().expect("UTF-8"))
        .replace("{echod}", crate::harness::ECHOD);
    let beside = daemon.path("echod~");
    // Written by a process of its own: while ours has it open, it can't be executed, and it may stay
    // open in what other tests are about to start.
    let mut writer = std::process::Command::new("sh")
        .args(["-c", "cat >\"$0\" && chmod 755 \"$0\""])
        .arg(&beside)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = writer.stdin.take().unwrap();
    stdin
        .write_all(format!("#!/bin/sh\n{script}\n").as_bytes())
        .unwrap();
    drop(stdin);
    assert!(writer.wait().unwrap().success());
    let path = daemon.path("echod");
    std::fs::rename(&beside, &path).unwrap();
    path
}

#[test]
fn an_upgrade_keeps_the_process_and_every_connection() {
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
        upgrade(&daemon);
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

#[test]
fn no_client_that_talks_all_the_time_notices_twenty_upgrades() {
    let daemon = Daemon::start(CONFIG);
    let mut crowd = Crowd::new();
    crowd.all(&daemon);
    for round in 0..20 {
        crowd.wait_for_all();
        if round % 2 == 0 {
            upgrade(&daemon);
        } else {
            upgrade_by_signal(&daemon);
        }
    }
    crowd.wait_for_all();
    assert!(crowd.end() > 0);
    assert_eq!(upgrades(&daemon), 20);
    let log = daemon.log();
    assert!(!log.contains("could not be kept"), "{log}");
    // The last answers may be with the clients before they are counted.
    eventually("all that was received is counted as sent", || {
        let listeners = daemon.ctl_json(&["listeners"])["listeners"].clone();
        let listeners = listeners.as_array().expect("a list");
        listeners.iter().all(|listener| {
            listener["bytes_received"] == listener["bytes_sent"]
                && listener["datagrams_received"] == listener["datagrams_sent"]
        })
    });
}

/// Writes until the connection takes no more, since its peer does not read.
fn write_until_full(stream: &TcpStream, seed: u64) -> Vec<u8> {
    let noise = noise(65_521, seed);
    let mut written = Vec::new();
    stream.set_nonblocking(true).unwrap();
    let mut quiet = 0;
    // The daemon takes some more when it has seen that it may.
    while quiet < 20 {
        let from = written.len() % noise.len();
        match (&mut &*stream).write(&noise[from..]) {
            Ok(len) => {
                written.extend_from_slice(&noise[from..][..len]);
                quiet = 0;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                quiet += 1;
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Err(error) => panic!("{error}"),
        }
    }
    stream.set_nonblocking(false).unwrap();
    written
}

fn read_to_end(stream: &mut impl Read) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("a FIN, and no reset");
    all
}

#[test]
fn a_client_that_does_not_read_gets_all_unsent_bytes_after_the_upgrade() {
    let daemon = Daemon::start(
        r#"
[listener.main]
protocol = "tcp"
address = "127.0.0.1:0"
send-buffer = "64KiB"
receive-buffer = "64KiB"

[listener.upper]
protocol = "tcp"
address = "127.0.0.1:0"
reply = "upper"
send-buffer = "64KiB"

[listener.discard]
protocol = "tcp"
address = "127.0.0.1:0"
reply = "discard"
"#,
    );
    let deaf = |listener, seed| {
        let stream = daemon.connect(listener);
        let written = write_until_full(&stream, seed);
        (stream, written)
    };
    let (mut open, mut of_open) = deaf("main", 1);
    let (mut closed, of_closed) = deaf("main", 2);
    closed.shutdown(std::net::Shutdown::Write).unwrap();
    let (mut upper, mut of_upper) = deaf("upper", 3);
    upper.shutdown(std::net::Shutdown::Write).unwrap();
    let mut discard = daemon.connect("discard");
    discard.write_all(&vec![1; 100_000]).unwrap();

    for _ in 0..3 {
        upgrade(&daemon);
    }
    assert!(read_to_end(&mut closed) == of_closed);
    of_upper.make_ascii_uppercase();
    assert!(read_to_end(&mut upper) == of_upper);
    let mut back = vec![0; of_open.len()];
    open.read_exact(&mut back).unwrap();
    assert!(back == of_open);
    of_open = noise(100_000, 4);
    assert!(exchange(&mut open, &of_open) == of_open);
    discard.write_all(&vec![2; 100_000]).unwrap();
    discard.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(read_to_end(&mut discard).is_empty());
    let count = daemon.listener("discard")["bytes_received"].clone();
    assert_eq!(count, 200_000);
    // The last answer may be there before it is counted.
    eventually("all that was received is counted as sent", || {
        let main = daemon.listener("main");
        main["bytes_received"] == main["bytes_sent"]
    });
}

#[test]
fn a_one_shot_listener_answers_no_client_twice_because_of_an_upgrade() {
    let daemon = Daemon::start(
        "[listener.main]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\none-shot = true\n",
    );
    let mut lingers = daemon.connect("main");
    assert_eq!(exchange(&mut lingers, b"first"), b"first");
    let mut silent = daemon.connect("main");
    eventually("both are there", || daemon.connections("main") == 2);
    upgrade(&daemon);
    lingers.write_all(b"second").unwrap();
    lingers.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(read_to_end(&mut lingers).is_empty());
    assert_eq!(exchange(&mut silent, b"first"), b"first");
    silent.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(read_to_end(&mut silent).is_empty());
}

/// As after a restart by a service manager, which does not ask first.
#[test]
fn a_successor_that_finds_no_system_log_serves_and_says_so_elsewhere() {
    if std::path::Path::new("/dev/log").exists() {
        not_tested("this machine has a system log");
        return;
    }
    let daemon = start_copy(CONFIG);
    let mut peer = daemon.connect("main");
    daemon.write_config(&format!("[log]\ntarget = \"syslog\"\n{CONFIG}"));
    replace_by_script(&daemon, UNCHECKED);
    let result = daemon.ctl_json(&["upgrade"])["result"].clone();
    let warnings = result["warnings"].to_string();
    assert!(warnings.contains("is a system log running?"), "{result}");
    assert_eq!(exchange(&mut peer, b"still here"), b"still here");
    let log = daemon.log();
    assert!(log.contains("is a system log running?"), "{log}");
    assert!(log.contains("meanwhile it goes to standard error"), "{log}");
}

#[test]
fn a_storm_of_signals_ends_nothing() {
    let daemon = Daemon::start(CONFIG);
    let mut crowd = Crowd::new();
    crowd.some(&daemon);
    crowd.wait_for_all();
    for _ in 0..500 {
        daemon.signal(Signal::SIGHUP);
        std::thread::sleep(std::time::Duration::from_millis(1));
        daemon.signal(Signal::SIGUSR2);
        std::thread::sleep(std::time::Duration::from_millis(1));
        daemon.forget_notifications();
    }
    eventually("there was an upgrade", || upgrades(&daemon) > 0);
    crowd.wait_for_all();
    crowd.end();
    assert!(!daemon.log().contains("could not be kept"));
}

/// A program that says yes when the file `go` is there.
const SLOW: &str = "case \"$*\" in *--can-take-over*) \
    touch {dir}/asked; while [ ! -e {dir}/go ]; do sleep 0.01; done;; esac\nexec {echod} \"$@\"";

/// Asks for an upgrade and waits until the new program is being asked.
fn begin_slow_upgrade(daemon: &Daemon) -> crate::harness::Control {
    replace_by_script(daemon, SLOW);
    let mut control = daemon.control();
    let request = json!({ "method": "io.echod.Control.Upgrade" });
    control
        .stream
        .write_all(format!("{request}\0").as_bytes())
        .unwrap();
    eventually("it is asked", || daemon.path("asked").exists());
    control
}

#[test]
fn a_second_upgrade_is_refused_while_one_is_on_its_way() {
    let daemon = start_copy(CONFIG);
    let mut first = begin_slow_upgrade(&daemon);
    let second = refusal(&daemon);
    assert!(second.contains("another one is on its way"), "{second}");
    std::fs::write(daemon.path("go"), "").unwrap();
    let reply = first.reply().expect("the successor answers");
    assert_eq!(reply["parameters"]["result"]["listeners"], 4, "{reply}");
}

#[test]
fn a_daemon_that_gets_a_stop_signal_during_an_upgrade_stops() {
    let mut daemon = start_copy(CONFIG);
    let mut peer = daemon.connect("main");
    assert_eq!(exchange(&mut peer, b"x"), b"x");
    let mut caller = begin_slow_upgrade(&daemon);
    daemon.signal(Signal::SIGTERM);
    eventually("it stops", || daemon.log().contains("may continue for 30s"));
    std::fs::write(daemon.path("go"), "").unwrap();
    let reply = caller.reply().expect("an answer");
    assert_eq!(reply["error"], "io.echod.Control.UpgradeRefused", "{reply}");
    let refused = refusal(&daemon);
    assert!(refused.contains("the daemon is stopping"), "{refused}");
    assert_eq!(exchange(&mut peer, b"still"), b"still");
    drop(peer);
    assert!(daemon.wait().success());
    assert_eq!(upgrades(&daemon), 0, "{}", daemon.log());
}

#[test]
fn an_upgrade_right_after_a_reload_that_retired_sockets_waits_for_them() {
    let daemon = Daemon::start(CONFIG);
    let mut peer = daemon.connect("main");
    assert_eq!(exchange(&mut peer, b"x"), b"x");
    let without = CONFIG.replace("[listener.main]", "[listener.other]");
    let result = daemon.reload_with(&without);
    assert_eq!(result["outcome"], "applied", "{result}");
    upgrade(&daemon);
    assert_eq!(exchange(&mut peer, b"y"), b"y");
    let listeners = daemon.ctl_json(&["listeners"]);
    let retired: Vec<&Value> = listeners["listeners"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|listener| listener["state"] == "retired")
        .collect();
    assert_eq!(retired.len(), 1, "{listeners}");
    assert_eq!(retired[0]["name"], "main");
    drop(peer);
    eventually("the retired one is gone", || {
        daemon.ctl_json(&["listeners"])["listeners"]
            .as_array()
            .unwrap()
            .len()
            == 4
    });
}

#[test]
fn a_client_with_half_a_request_sends_the_rest_to_the_successor() {
    let daemon = Daemon::start(CONFIG);
    let mut half = daemon.control();
    let mut idle = daemon.control();
    let first = json!({ "method": "io.echod.Control.GetStatus" }).to_string();
    half.stream.write_all(&first.as_bytes()[..10]).unwrap();
    // It is read before the question of the other, which comes later.
    assert!(idle.ask("GetStatus", &json!({})).is_some());
    upgrade(&daemon);
    half.stream.write_all(&first.as_bytes()[10..]).unwrap();
    half.stream.write_all(b"\0").unwrap();
    let reply = half.reply().expect("answered");
    assert_eq!(reply["parameters"]["status"]["pid"], daemon.pid());
    let reply = idle.ask("GetStatus", &json!({})).expect("answered");
    assert_eq!(reply["parameters"]["status"]["pid"], daemon.pid());
}

#[test]
fn the_successor_says_what_it_has_taken_over() {
    let daemon = Daemon::start(CONFIG);
    let mut peers: Vec<TcpStream> = (0..3).map(|_| daemon.connect("main")).collect();
    peers
        .iter_mut()
        .for_each(|peer| assert_eq!(exchange(peer, b"x"), b"x"));
    let result = &daemon.ctl_json(&["upgrade"])["result"];
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(result["from"], version);
    assert_eq!(result["to"], version);
    assert_eq!(result["listeners"], 4);
    assert_eq!(result["connections"], 3);
    assert_eq!(result["lost"], 0);
    assert!(result["pause_us"].as_u64().unwrap() > 0);
    // Requests that are sent together are answered in order.
    let mut control = daemon.control();
    let upgrade = json!({ "method": "io.echod.Control.Upgrade" });
    let status = json!({ "method": "io.echod.Control.GetStatus" });
    control
        .stream
        .write_all(format!("{upgrade}\0{status}\0").as_bytes())
        .unwrap();
    let first = control.reply().expect("an answer");
    assert_eq!(first["parameters"]["result"]["connections"], 3, "{first}");
    let second = control.reply().expect("another");
    assert_eq!(second["parameters"]["status"]["connections"], 3, "{second}");
}

/// Processes whose parent it is.
fn children(daemon: &Daemon) -> String {
    let pid = daemon.pid();
    let mut all = String::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let path = task.unwrap().path().join("children");
        all += &std::fs::read_to_string(path).unwrap_or_default();
    }
    all
}

#[test]
fn upgrades_leave_no_descriptor_no_child_and_no_memory_behind() {
    let daemon = Daemon::start(CONFIG);
    let mut peers: Vec<TcpStream> = (0..50).map(|_| daemon.connect("main")).collect();
    let mut talk = |daemon: &Daemon| {
        peers
            .iter_mut()
            .for_each(|peer| assert_eq!(exchange(peer, &[7; 1000]), [7; 1000]));
        upgrade(daemon);
    };
    for _ in 0..3 {
        talk(&daemon);
    }
    // echoctl's connection may not have been closed yet.
    let (descriptors, memory) = (daemon.descriptors(), daemon.memory_kib());
    for _ in 0..20 {
        talk(&daemon);
    }
    eventually("no more descriptors than before", || {
        daemon.descriptors() <= descriptors
    });
    let memory_after = daemon.memory_kib();
    assert!(
        memory_after < memory + 4096,
        "{memory} KiB became {memory_after}"
    );
    assert_eq!(children(&daemon), "");
}

#[test]
fn five_thousand_idle_connections_come_along() {
    const COUNT: usize = 5000;
    if allow_many_descriptors() < COUNT as u64 + 2000 {
        not_tested("it needs more descriptors (ulimit -Hn)");
        return;
    }
    let daemon = Daemon::start(CONFIG);
    let address = daemon.address("main");
    let mut peers: Vec<TcpStream> = (0..COUNT)
        .map(|_| crate::harness::connect(address))
        .collect();
    eventually("all are there", || {
        daemon.connections("main") == COUNT as u64
    });
    for _ in 0..3 {
        let result = daemon.ctl_json(&["upgrade"])["result"].clone();
        assert_eq!(result["connections"], COUNT);
        println!("{COUNT} connections: {} us", result["pause_us"]);
    }
    for peer in &mut peers {
        assert_eq!(exchange(peer, b"hello"), b"hello");
    }
    assert_eq!(daemon.listener("main")["accepted"], COUNT);
}
