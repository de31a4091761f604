//! `echoprobe ports`: the source ports that a bad path carries are found, and no others.

use serde_json::Value;

use super::fault::{Fate, FaultyServer};
use super::{LISTENERS, probe, probe_json};
use crate::harness::{Daemon, free_port, text};

fn ports_of(report: &Value) -> Vec<(u64, u64)> {
    let rows = report["ports"].as_array().expect("a list").iter();
    let number = |row: &Value, field: &str| row[field].as_u64().expect("a number");
    rows.map(|row| (number(row, "source_port"), number(row, "lost")))
        .collect()
}

#[test]
fn a_service_of_ours_answers_every_port() {
    let daemon = Daemon::start(LISTENERS);
    for listener in ["tcp", "udp"] {
        let url = format!("{listener}://{}", daemon.address(listener));
        let (status, report) = probe_json(&[
            "ports",
            &url,
            "-n",
            "8",
            "-c",
            "5",
            "-i",
            "2ms",
            "--timeout",
            "10s",
        ]);
        assert_eq!(status, 0, "{report}");
        assert_eq!(
            (&report["sent"], &report["received"]),
            (&40.into(), &40.into())
        );
        let mut ports = ports_of(&report);
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 8, "each port once: {report}");
    }
}

/// A path that loses everything carries every third port.
#[test]
fn the_ports_that_lose_are_named() {
    let is_bad = |port: u64| port.is_multiple_of(3);
    let server = FaultyServer::by_source(move |source| match is_bad(source.port().into()) {
        true => Fate::Lose,
        false => Fate::Echo,
    });
    let arguments = [
        "ports",
        &server.url(),
        "-n",
        "40",
        "-c",
        "3",
        "-i",
        "2ms",
        "--timeout",
        "1s",
    ];
    let (status, report) = probe_json(&arguments);
    assert_eq!(status, 1, "{report}");
    let ports = ports_of(&report);
    for (port, lost) in &ports {
        assert_eq!(*lost, if is_bad(*port) { 3 } else { 0 }, "{port}: {report}");
    }
    let bad = ports.iter().filter(|(port, _)| is_bad(*port)).count();
    assert_eq!(report["lost"], 3 * bad);
    let output = probe(&arguments);
    let said = text(&output.stdout);
    let line = said
        .lines()
        .find_map(|line| line.split_once(" of 40 ports lose: "));
    let (count, listed) = line.expect("they are named");
    let listed: Vec<u64> = listed
        .split(", ")
        .map(|port| port.parse().expect("a port"))
        .collect();
    assert_eq!(listed.len().to_string(), count);
    assert!(listed.into_iter().all(is_bad), "{said}");
}

#[test]
fn the_ports_are_those_that_it_is_told() {
    let daemon = Daemon::start(LISTENERS);
    let first = free_port();
    for listener in ["tcp", "udp"] {
        let url = format!("{listener}://{}", daemon.address(listener));
        let (status, report) = probe_json(&[
            "ports",
            &url,
            "-n",
            "1",
            "--first",
            &first.to_string(),
            "-c",
            "2",
            "-i",
            "1ms",
            "--timeout",
            "10s",
        ]);
        assert_eq!(status, 0, "{report}");
        assert_eq!(ports_of(&report), [(first.into(), 0)]);
    }
}

#[test]
fn ports_that_are_none_are_refused() {
    for (arguments, what) in [
        (vec!["ports", "unix:///x"], "a Unix socket has none"),
        (
            vec!["ports", "udp://127.0.0.1:1", "--first", "65530"],
            "not all below 65536",
        ),
        (
            vec!["ports", "udp://127.0.0.1:1", "--source", ":5"],
            "an address alone",
        ),
    ] {
        let output = probe(&arguments);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(what), "{said}");
    }
}
