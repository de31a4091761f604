//! `echoprobe ping`: the fates of messages are distinguished, and the numbers are exact.

use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::time::Duration;

use echod::internals::{Source, measure};
use serde_json::json;

use super::fault::{self, Fate};
use super::{LISTENERS, assert_adds_up, assert_prints, ended, interrupt, number, numbers};
use super::{output_of, printed_by, report_of, spawn_line, start_with_default, url};
use crate::harness::{Daemon, eventually, free_port, has_ipv6, text};

#[test]
fn every_kind_of_service_of_ours_answers_all() {
    let daemon = Daemon::start(LISTENERS);
    for listener in ["tcp", "udp", "stream", "datagram"] {
        let url = url(&daemon, listener);
        for size in ["1", "64", "3000", "60000"] {
            let line = format!("ping {url} -c 5 -i 1ms -s {size} --timeout 10s");
            let report = report_of(&line, 0);
            assert_eq!(numbers(&report, ["sent", "received"]), [5, 5], "{line}");
            assert!(report["rtt_us"]["p50"].as_f64() > Some(0.0), "{report}");
            assert!(report["jitter_us"].is_number(), "{report}");
        }
    }
    let url = url(&daemon, "udp");
    let report = report_of(&format!("ping {url} -c 5 -i 1ms -s 0 --timeout 10s"), 0);
    assert_eq!(report["received"], 5, "empty datagrams");
}

#[test]
fn a_service_that_answers_in_upper_case_passes_when_that_is_expected() {
    let daemon = start_with_default(r#"reply = "upper""#);
    for listener in ["tcp", "udp"] {
        let url = url(&daemon, listener);
        let ping = format!("ping {url} -c 5 -i 1ms -s 500 --timeout 10s");
        let load = format!("load {url} -s 200 -t 200ms --warm-up 0s --timeout 10s");
        for line in [&ping, &load] {
            let report = report_of(&format!("{line} --expect upper"), 0);
            assert!(number(&report, "received") >= 1, "{line}: {report}");
        }
        let report = report_of(&ping, 1);
        assert!(number(&report, "corrupt") >= 1, "{report}");
    }
    // The path is as wide, whatever the answers are.
    let report = report_of(&format!("mtu {} --timeout 10s", url(&daemon, "udp")), 0);
    assert_eq!(report["errors"], json!({}), "{report}");
}

/// Also of localhost where the files of this host list one family only: it reported "name unknown".
#[test]
fn the_address_of_a_name_is_one_of_the_family_of_the_source() {
    for (own, source) in [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1")] {
        if own.starts_with('[') && !has_ipv6() {
            continue;
        }
        let daemon = Daemon::start(&LISTENERS.replace("127.0.0.1", own));
        let only = if own == source { "-4" } else { "-6" };
        for option in [&format!("--source {source}"), only] {
            for scheme in ["UDP", "tcp"] {
                let port = daemon.address(&scheme.to_lowercase()).port();
                let url = format!("{scheme}://localhost:{port}");
                let said = printed_by(&format!("ping {url} {option} -c 1 --timeout 10s"));
                let words = format!("localhost:{port} ({own}:{port}): ");
                assert!(said.contains(&words), "{said}");
            }
        }
    }
}

#[test]
fn a_socket_of_the_other_kind_is_reported_with_its_scheme() {
    let daemon = Daemon::start(LISTENERS);
    let path = daemon.path("datagram");
    for command in ["send", "ping -c 1"] {
        let words = "; that is a datagram socket: write unixgram://PATH\n";
        assert_prints(&format!("{command} unix://{}", path.display()), 3, words);
    }
}

#[test]
fn an_interrupt_ends_with_the_summary_and_what_is_on_the_way_is_not_lost() {
    let (sent, arrived) = std::sync::mpsc::channel();
    // The test may be over.
    let url = fault::udp(move |_, _, _| _ = sent.send(()));
    let child = spawn_line(&format!("ping {url} -i 1ms --timeout 1h --json"));
    arrived.recv().expect("a message");
    let (status, report) = ended(&interrupt(child));
    assert_eq!(report["lost"], 0, "{report}");
    assert!(number(&report, "in_flight") >= 1, "{report}");
    assert_eq!(status, 1, "no result");
    assert_adds_up(&report);
}

#[test]
fn a_deadline_ends_it_whatever_is_still_to_come() {
    let daemon = Daemon::start(LISTENERS);
    let url = url(&daemon, "udp");
    let report = report_of(&format!("ping {url} -i 5ms --deadline 2s"), 0);
    assert_adds_up(&report);
    // It counts from the start of the process, which is before the first message.
    assert!(number(&report, "received") > 1, "{report}");
}

#[test]
fn a_stream_that_ends_is_connected_anew_and_what_was_on_it_is_lost() {
    // The third message of a connection ends it, with whatever is on it: on a busy machine that may
    // be a fourth one.
    let plan = [Fate::Echo, Fate::Echo, Fate::Cut].repeat(3);
    let (url, _) = fault::planned_streams(None, plan, 64, Duration::ZERO);
    let report = report_of(&format!("ping {url} -c 9 -i 20ms -s 64 --timeout 10s"), 1);
    let [received, lost] = numbers(&report, ["received", "lost"]);
    assert!((2..=6).contains(&received), "{report}");
    assert_eq!(received + lost, 9, "{report}");
    assert_eq!(report["errors"], json!({"closed": lost}));
}

#[test]
fn wrong_bytes_of_a_stream_are_corrupt() {
    let plan = vec![Fate::Echo, Fate::Echo, Fate::Corrupt];
    let (url, _) = fault::planned_streams(None, plan, 64, Duration::ZERO);
    let output = output_of(&format!("ping {url} -c 5 -i 1ms -s 64 --timeout 10s"));
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let third = said.lines().find(|line| line.starts_with("3: "));
    let words = "(corrupt: byte 32 came back as ";
    assert!(third.expect("a line").contains(words), "{said}");
    let sum = "5 sent, 4 received, 0 lost (0 %), 1 corrupt";
    assert!(said.contains(sum), "{said}");
}

#[test]
fn it_sends_to_and_from_the_addresses_of_its_options() {
    let daemon = Daemon::start(&LISTENERS.replace("\"127.0.0.1:0\"", "\"*:0\""));
    let port = daemon.address("udp").port();
    let own = free_port();
    let source = format!("127.0.0.5:{own}");
    let url = format!("udp://127.0.0.3:{port}");
    let options = format!("--source {source} --ttl 9 --dscp 46 --dont-fragment --timeout 10s");
    let said = printed_by(&format!("ping {url} -c 2 -i 1ms {options}"));
    assert!(said.contains(&format!("from 127.0.0.3:{port}")), "{said}");
    let peers = daemon.ctl_json(&["peers", "--listener", "udp"]);
    assert_eq!(peers["peers"][0]["address"], source, "{peers}");
}

/// What the command line asks for is what arrives.
#[test]
fn packets_are_marked_as_the_options_say() {
    for own in ["127.0.0.1:0", "[::1]:0"] {
        if own.starts_with('[') && !has_ipv6() {
            continue;
        }
        let server = UdpSocket::bind(own).expect("a UDP socket");
        measure::ask_for_all(server.as_fd()).expect("a kernel that tells");
        let url = format!("udp://{}", server.local_addr().expect("an address"));
        let child = spawn_line(&format!("ping {url} -c 1 -q --ttl 9 --dscp 46"));
        let mut memory = [0; 100];
        let mut arrival = None;
        eventually("it arrives", || {
            arrival = measure::receive(server.as_fd(), &mut memory).ok();
            arrival.is_some()
        });
        let arrival = arrival.expect("it has arrived");
        let marks = (arrival.ttl, arrival.class);
        assert_eq!(marks, (Some(9), Some(46 << 2)), "{own}");
        let Source::Inet(client) = arrival.source else {
            panic!("of the Internet: {arrival:?}");
        };
        let answer = &memory[..arrival.len];
        server.send_to(answer, client).expect("sent");
        let output = child.wait_with_output().expect("a child of ours");
        assert!(output.status.success(), "{}", text(&output.stdout));
    }
}

/// Loopback takes packets of 65,536 bytes: over IPv6, whose header is longer, the largest datagram
/// needs two.
#[test]
fn what_must_not_be_fragmented_and_does_not_fit_is_too_large() {
    if !has_ipv6() {
        return;
    }
    let daemon = Daemon::start("[listener.udp]\nprotocol = \"udp\"\naddress = \"[::1]:0\"\n");
    let url = format!("udp://{}", daemon.address("udp"));
    let ping = format!("ping {url} -c 2 -i 1ms -s 65507 --timeout 10s");
    assert_eq!(report_of(&ping, 0)["received"], 2);
    let report = report_of(&format!("{ping} --dont-fragment"), 3);
    assert_eq!(report["errors"]["too large"], 2, "{report}");
}
