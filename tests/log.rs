//! What is in the log, and what nobody can bring into it.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};

use nix::sys::signal::Signal;

use crate::harness::{Daemon, eventually};

const DEBUG: &str = "[log]\ntarget = \"stderr\"\nlevel = \"debug\"\n";

/// A listener that refuses everybody.
fn closed(name: &str) -> String {
    format!(
        "[listener.{name}]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\ndeny = [\"127.0.0.0/8\"]\n"
    )
}

/// So many connections, one after the other, each until it is refused.
fn knock(address: SocketAddr, count: usize) {
    for _ in 0..count {
        // Refused at once, it may be reset before it is known to be there.
        if let Ok(mut stream) = TcpStream::connect(address) {
            let _ = stream.read(&mut [0]);
        }
    }
}

/// How many refusals at this listener are told, and how many are counted as suppressed.
fn refusals(daemon: &Daemon, name: &str) -> (usize, usize) {
    let head = format!("listener \"{name}\": 127.0.0.1:");
    let (mut told, mut suppressed) = (0, 0);
    for line in daemon.log().lines() {
        let line = line.strip_prefix("echod: ").expect("a line of ours");
        if !line.ends_with(": refused: denied") {
            continue;
        }
        match line.split_once(" suppressed, the first: ") {
            Some((count, first)) if first.starts_with(&head) => {
                suppressed += count.parse::<usize>().expect("a number");
            }
            None if line.starts_with(&head) => told += 1,
            _ => {}
        }
    }
    (told, suppressed)
}

#[test]
fn a_flood_is_cut_short_and_counted_also_when_nothing_comes_after_it() {
    let config = closed("main") + &closed("other") + DEBUG;
    let daemon = Daemon::start(&config);
    knock(daemon.address("main"), 250);
    knock(daemon.address("other"), 1);
    // The end of the window of time is noticed by itself.
    eventually("all are told or counted", || {
        let (told, suppressed) = refusals(&daemon, "main");
        told + suppressed == 250 && suppressed > 0
    });
    let (told, _) = refusals(&daemon, "main");
    assert!((100..250).contains(&told), "{told}");
    assert_eq!(refusals(&daemon, "other"), (1, 0));
}

#[test]
fn what_was_suppressed_is_told_at_the_end() {
    let mut daemon = Daemon::start(&(closed("main") + DEBUG));
    knock(daemon.address("main"), 250);
    eventually("all are refused", || {
        daemon.listener("main")["refused"]["denied"] == 250
    });
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    let (told, suppressed) = refusals(&daemon, "main");
    assert_eq!(told + suppressed, 250, "{told}");
    assert!(suppressed > 0);
}

#[test]
fn a_rejected_reload_tells_each_of_the_first_hundred_errors() {
    let daemon = Daemon::start(&(closed("main") + DEBUG));
    let wrong = |n| format!("[listener.l{n}]\nprotocol = \"tpc\"\naddress = \"127.0.0.1:0\"\n");
    let config: String = (0..150).map(wrong).collect();
    daemon.write_config(&config);
    assert_eq!(daemon.reload()["outcome"], "rejected");
    let log = daemon.log();
    let errors = log.lines().filter(|line| line.contains("\"tpc\"")).count();
    assert_eq!(errors, 100, "{log}");
    assert!(
        log.contains("reload 2: 50 more errors not shown\n"),
        "{log}"
    );
    assert!(!log.contains("suppressed"), "{log}");
}

#[test]
fn the_name_of_a_file_forges_no_line_and_steers_no_terminal() {
    let daemon = Daemon::start(&(closed("main") + DEBUG));
    let folder = daemon.path("echod.d");
    std::fs::create_dir_all(&folder).expect("a folder");
    let name = "50-a\nechod: forged\x1b[2J\u{202e}.toml";
    std::fs::write(folder.join(name), "[listener.main]\nbacklog = -1\n").expect("a drop-in");
    assert_eq!(daemon.reload()["outcome"], "rejected");
    let log = daemon.log();
    assert!(
        log.contains("50-a\\x0aechod: forged\\x1b[2J\\u{202e}.toml:2:"),
        "{log}"
    );
    assert!(!log.contains("\nechod: forged"), "{log}");
    assert!(!log.contains(['\x1b', '\u{202e}']), "{log}");
}
