//! `echoctl listeners --watch` and `peers --watch` on a terminal.

use std::sync::atomic::{AtomicBool, Ordering};

use super::{ALL_KINDS, code};
use crate::harness::{Daemon, ECHOCTL, StopAtEnd, eventually, exchange, text};
use crate::terminal::{CONTROL_C, Screen};

/// More than there are rows.
const PEERS: usize = 50;

/// What was drawn at each look, as lines, and whether the screen was cleared first. The last one may
/// not be complete yet.
fn looks(shown: &str) -> Vec<Vec<String>> {
    let mut looks: Vec<&str> = shown.split("\x1b[J").collect();
    looks.pop();
    let lines = |(index, look): (usize, &str)| {
        let look = match index {
            0 => look.strip_prefix("\x1b[2J"),
            _ => Some(look),
        };
        let look = look.and_then(|look| look.strip_prefix("\x1b[H"));
        let look = look.expect("from the top, and the screen is cleared once");
        let lines = look
            .strip_suffix("\r\n")
            .expect("a last line")
            .split("\r\n");
        let lines = lines.map(|line| {
            line.strip_prefix("\x1b[K")
                .expect("it is cleared")
                .to_owned()
        });
        lines.collect()
    };
    looks.into_iter().enumerate().map(lines).collect()
}

/// The cell below a right-aligned header, in each row of the table.
fn column(look: &[String], header: &str) -> Vec<String> {
    let heads: Vec<char> = look[0].chars().collect();
    let start = look[0].find(header);
    let start = start.unwrap_or_else(|| panic!("no {header} in {look:?}"));
    let end = start + header.len();
    assert_eq!(heads.len(), look[0].len(), "headers are ASCII");
    let rows = look.iter().skip(1).take_while(|line| line.contains("  "));
    let cells = rows.map(|row| {
        let row: String = row.chars().take(end).collect();
        let cell = row.rsplit("  ").next().expect("a cell");
        cell.trim().to_owned()
    });
    cells.collect()
}

/// Watches until there is traffic to see, and looks at all that was drawn until then.
fn watch(daemon: &Daemon, (columns, rows): (u16, u16), arguments: &[&str]) -> Vec<String> {
    let screen = Screen::of_size(columns, rows);
    let mut command = screen.command(ECHOCTL);
    command
        .env("ECHOCTL_SOCKET", daemon.path("control.sock"))
        .args(arguments)
        .args(["--watch", "--interval", "100ms"]);
    let mut child = command.spawn().expect("setsid(1) runs");
    let has_rate = |look: &Vec<String>, header: &str| {
        let cells = column(look, header);
        cells.iter().any(|cell| cell != "-" && cell != "0 B")
    };
    eventually("rates are shown", || {
        let looks = looks(&screen.text());
        let mut later = looks.iter().skip(1);
        later.any(|look| has_rate(look, "IN/S") && has_rate(look, "OUT/S"))
    });
    screen.type_in(CONTROL_C);
    eventually("it ends", || {
        child.try_wait().expect("a child of ours").is_some()
    });
    let mut looks = looks(&screen.text());
    assert!(
        !has_rate(&looks[0], "IN/S"),
        "there is nothing to compare with"
    );
    for look in &looks {
        // The last row is for the cursor, or all would be scrolled.
        assert!(look.len() < usize::from(rows), "{look:?}");
        for line in look {
            assert!(line.chars().count() <= usize::from(columns), "{line:?}");
            assert!(!line.contains('\x1b'), "{line:?}");
        }
    }
    looks.pop().expect("there were looks")
}

#[test]
fn what_is_watched_is_drawn_in_place_within_the_screen_and_has_rates() {
    let daemon = Daemon::start(ALL_KINDS);
    let mut peers: Vec<_> = (0..PEERS).map(|_| daemon.connect("main")).collect();
    for peer in &mut peers {
        exchange(peer, b"here");
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ends = StopAtEnd(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                exchange(&mut peers[0], &[b'x'; 4096]);
            }
        });
        for size in [(80, 24), (120, 40)] {
            let look = watch(&daemon, size, &["listeners"]);
            let names = ["datagrams ", "local ", "local-datagrams  ", "main "];
            for (row, name) in names.into_iter().enumerate() {
                assert!(look[row + 1].starts_with(name), "{look:?}");
            }
            assert!(
                look[5].starts_with("4 listeners, 50 connections, "),
                "{look:?}"
            );
            assert!(look[0].contains("  PROTOCOL  "), "{look:?}");

            let look = watch(&daemon, size, &["peers"]);
            let rows = usize::from(size.1);
            assert_eq!(
                look.len(),
                rows - 1,
                "as many as there is room for: {look:?}"
            );
            let shown = look.iter().filter(|line| line.contains("  main  ")).count();
            let rest = format!("… {} more", PEERS - shown);
            assert!(look.contains(&rest), "{rest}: {look:?}");
            assert!(look.contains(&format!("{PEERS} peers")), "{look:?}");
            assert!(look[0].contains("  PROTOCOL  "), "{look:?}");
        }
        drop(ends);
    });
}

/// It had no rates, unlike the table.
#[test]
fn a_single_listener_is_watched_with_rates_too() {
    let daemon = Daemon::start(ALL_KINDS);
    let mut peer = daemon.connect("main");
    let screen = Screen::new();
    let mut command = screen.command(ECHOCTL);
    command
        .env("ECHOCTL_SOCKET", daemon.path("control.sock"))
        .args(["listeners", "main", "--watch", "--interval", "100ms"]);
    let mut child = command.spawn().expect("setsid(1) runs");
    eventually("rates are shown", || {
        exchange(&mut peer, &[b'x'; 4096]);
        let looks = looks(&screen.text());
        let mut lines = looks.iter().flatten();
        lines.any(|line| line.starts_with("  received ") && line.ends_with(" per second"))
    });
    screen.type_in(CONTROL_C);
    eventually("it ends", || {
        child.try_wait().expect("a child of ours").is_some()
    });
    let first = &looks(&screen.text())[0];
    assert!(
        first.iter().any(|line| line.starts_with("  sent ")),
        "{first:?}"
    );
    assert!(
        !first.iter().any(|line| line.contains("per second")),
        "{first:?}"
    );
}

/// The terminal broke them anywhere.
#[test]
fn what_is_wrong_with_a_configuration_is_broken_at_blanks_to_the_width_of_the_terminal() {
    let daemon = Daemon::start(ALL_KINDS);
    let config = daemon.path("echod.toml");
    std::fs::write(&config, "[listener.main]\nbacklock = 5\n").expect("a file");
    let file = config.to_str().expect("text");
    for arguments in [&["reload"][..], &["check", file], &["reload", "--last"]] {
        let screen = Screen::of_size(60, 24);
        let mut command = screen.command(ECHOCTL);
        command
            .env("ECHOCTL_SOCKET", daemon.path("control.sock"))
            .args(arguments);
        let mut child = command.spawn().expect("setsid(1) runs");
        eventually("it ends, and its last error is shown", || {
            let text = screen.text();
            let words: Vec<&str> = text.split_whitespace().collect();
            let has_ended = child.try_wait().expect("a child of ours").is_some();
            has_ended && words.join(" ").contains("did you mean backlog?")
        });
        let text = screen.text();
        let mut lines = text.lines().map(|line| line.trim_end_matches('\r'));
        assert!(lines.clone().any(|line| line.starts_with("  ")), "{text}");
        // What has no blank can't be broken, such as the path of the file.
        let is_broken = |line: &str| line.chars().count() <= 60 || !line.trim().contains(' ');
        assert!(lines.all(is_broken), "{text}");
    }
}

/// For a program it is an object for each look, a line each, without a terminal's sequences.
#[test]
fn what_a_program_watches_is_an_object_a_line() {
    let daemon = Daemon::start(ALL_KINDS);
    let mut command = std::process::Command::new(ECHOCTL);
    command
        .env("ECHOCTL_SOCKET", daemon.path("control.sock"))
        .args(["--json", "peers", "--watch", "--interval", "100ms"])
        .stdout(std::process::Stdio::piped());
    let mut child = command.spawn().expect("echoctl runs");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(
        child.stdout.take().expect("its output"),
    ));
    for _ in 0..2 {
        let line = lines.next().expect("a line").expect("read");
        let object: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(object["total"], 0);
    }
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    let output = child.wait_with_output().expect("a child of ours");
    // It is gone, or was stopping when it was asked.
    let status = code(&output);
    assert!(
        [Some(69), Some(1)].contains(&status),
        "{status:?}: {}",
        text(&output.stderr)
    );
    let last = lines.last().expect("a line").expect("read");
    let error: serde_json::Value = serde_json::from_str(&last).expect("JSON");
    assert!(error["error"].is_string(), "{error}");
}
