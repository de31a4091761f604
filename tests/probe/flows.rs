//! `echoprobe ping --flows`: the source ports that a bad path carries are found, and no others.

use std::time::Duration;

use serde_json::Value;

use super::fault::{self, Fate, Peer};
use super::{LISTENERS, ended, number, numbers, output_of, report_of, url};
use crate::harness::{Daemon, free_port, text};

fn ports_of(report: &Value) -> Vec<(u64, u64)> {
    let rows = report["flows"].as_array().expect("a list").iter();
    rows.map(|row| (number(row, "source_port"), number(row, "lost")))
        .collect()
}

#[test]
fn a_service_of_ours_answers_every_port() {
    let daemon = Daemon::start(LISTENERS);
    for listener in ["tcp", "udp"] {
        let url = url(&daemon, listener);
        let line = format!("ping {url} --flows 8 -c 5 -i 2ms --timeout 10s");
        let report = report_of(&line, 0);
        assert_eq!(numbers(&report, ["sent", "received"]), [40, 40]);
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
    let fate = move |source: &Peer| match is_bad(fault::port(source).into()) {
        true => Fate::Lose,
        false => Fate::Echo,
    };
    let url = fault::by_source(None, fate, Duration::ZERO);
    let line = format!("ping {url} --flows 40 -c 3 -i 2ms --timeout 3s");
    let report = report_of(&line, 1);
    let ports = ports_of(&report);
    for (port, lost) in &ports {
        let meant = if is_bad(*port) { 3 } else { 0 };
        assert_eq!(*lost, meant, "{port}: {report}");
    }
    let bad = ports.iter().filter(|(port, _)| is_bad(*port)).count();
    assert_eq!(report["lost"], 3 * bad);
    let said = text(&output_of(&line).stdout);
    let mut lines = said.lines();
    let named = lines.find_map(|line| line.split_once(" of 40 ports lose: "));
    let (count, listed) = named.expect("they are named");
    let listed = listed.split(", ").map(|port| port.parse().expect("a port"));
    let listed: Vec<u64> = listed.collect();
    assert_eq!(listed.len().to_string(), count);
    assert!(listed.into_iter().all(is_bad), "{said}");
}

#[test]
fn the_ports_begin_with_the_one_of_the_source() {
    // One that loses everything: the next port may be of another program.
    let url = fault::udp(|_, _, _| {});
    let first = free_port();
    let line = format!("ping {url} --flows 2 --source :{first} -c 1 --timeout 50ms");
    let output = output_of(&format!("{line} --json"));
    let said = text(&output.stderr);
    if said.contains("in use") {
        return crate::harness::not_tested(said);
    }
    let (_, report) = ended(&output);
    let first = u64::from(first);
    assert_eq!(ports_of(&report), [(first, 1), (first + 1, 1)], "{report}");
}
