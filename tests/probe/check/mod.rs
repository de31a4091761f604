//! `echoprobe check`: what it finds out, and how it says so.
//!
//! Servers that have exactly one fault fail exactly the checks that are about it.

mod faulty;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU8, Ordering};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{assert_prints, output_of, report_of, signal, spawn, start_with_default, url};
use crate::harness::{Daemon, has_ipv6, not_tested, text};

/// All checks that are not passed, and their verdicts.
fn flaws(json: &Value) -> BTreeMap<&str, &str> {
    let checks = json["checks"].as_array().expect("a list").iter();
    let verdicts = checks.map(|check| (word(&check["name"]), word(&check["verdict"])));
    verdicts.filter(|(_, verdict)| *verdict != "pass").collect()
}

fn word(value: &Value) -> &str {
    value.as_str().expect("a word")
}

/// What is to be failed, and what is not applicable.
fn expected<'a>(failed: &[&'a str], not_applicable: &[&'a str]) -> BTreeMap<&'a str, &'a str> {
    let failed = failed.iter().map(|name| (*name, "fail"));
    let others = not_applicable.iter().map(|name| (*name, "not_applicable"));
    failed.chain(others).collect()
}

/// What was seen of one check.
fn seen<'a>(json: &'a Value, name: &str) -> &'a str {
    let checks = json["checks"].as_array().expect("a list");
    let check = checks.iter().find(|check| check["name"] == name);
    word(&check.expect("it was made")["seen"])
}

/// An address of this host that no other test speaks from, so that their ports 7 are not ours.
fn own_address() -> String {
    static NUMBER: AtomicU8 = AtomicU8::new(1);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    format!("127.{}.{low}.{number}", high.max(1))
}

/// Whether the check of loops can be made from this address.
fn may_loop_from(address: &str) -> bool {
    let may = |port| UdpSocket::bind((address, port)).is_ok();
    may(7) || may(19)
}

/// Exactly these checks fail, and these words are in what was seen at the first of them.
fn check_datagrams(server: &str, failed: &[&str], not_applicable: &[&str], words: &str) {
    let own = own_address();
    let json = report_of(&format!("check {server} --source {own}"), 1);
    let mut expected = expected(failed, not_applicable);
    // It answers whatever port asks.
    let of_loops = match may_loop_from(&own) {
        true => "fail",
        false => "not_applicable",
    };
    expected.entry("loop-guard").or_insert(of_loops);
    assert_eq!(flaws(&json), expected, "{json:#}");
    assert!(seen(&json, failed[0]).contains(words), "{json:#}");
}

/// The same of streams.
fn check_streams(server: &str, failed: &[&str], words: &str) {
    let json = report_of(&format!("check {server}"), 1);
    assert_eq!(flaws(&json), expected(failed, &[]), "{json:#}");
    assert!(seen(&json, failed[0]).contains(words), "{json:#}");
}

#[test]
fn our_daemon_passes_everything_on_all_kinds_of_sockets() {
    for reply in ["echo", "upper"] {
        let daemon = Daemon::start(&format!(
            "[defaults]\nreply = \"{reply}\"\n{}",
            super::LISTENERS.replace("127.0.0.1:0", "*:0")
        ));
        let urls = ["tcp", "udp", "stream", "datagram"].map(|name| url(&daemon, name));
        let mut urls = urls.map(|url| url.replace("0.0.0.0", "127.0.0.1")).to_vec();
        if has_ipv6() && reply == "echo" {
            let address = daemon.listener("udp")["addresses"][1].clone();
            let address: SocketAddr = address.as_str().unwrap_or("").parse().expect("of IPv6");
            urls.push(format!("udp://[::1]:{}", address.port()));
        }
        for url in urls {
            let own = own_address();
            let mut line = format!("check {url} --expect {reply}");
            if url.starts_with("udp://1") {
                line += &format!(" --source {own}");
            }
            let json = report_of(&line, 0);
            let mut flaws = flaws(&json);
            // This user may not speak from ports 7 and 19, or another process has those of [::1].
            if url.starts_with("udp:") && (url.contains('[') || !may_loop_from(&own)) {
                let of_loops = flaws.remove("loop-guard");
                let meant = [None, Some("not_applicable")];
                assert!(meant.contains(&of_loops), "{url}: {json:#}");
            }
            let inapplicable: &[&str] = match url.starts_with("unixgram:") {
                true => &["loop-guard", "reply-address"],
                false => &[],
            };
            assert_eq!(flaws, expected(&[], inapplicable), "{url}: {json:#}");
            if url.starts_with("udp://127") {
                let seen = seen(&json, "reply-address");
                assert!(seen.contains("127.0.0.2"), "{seen}");
            }
        }
    }
}

/// Ten checks of a service in upper case failed for reasons that were not so.
#[test]
fn a_service_in_upper_case_fails_one_check_with_what_to_write() {
    let daemon = start_with_default(r#"reply = "upper""#);
    for name in ["tcp", "udp"] {
        let url = url(&daemon, name);
        let json = report_of(&format!("check {url}"), 1);
        let words = "it answers in upper case: write --expect upper";
        assert_eq!(seen(&json, "echo"), words);
        let mut flaws = flaws(&json);
        assert_eq!(flaws.remove("echo"), Some("fail"));
        let are_not_run = flaws.values().all(|verdict| *verdict == "not_run");
        assert!(are_not_run, "{json:#}");
        assert_eq!(json["not_run"], flaws.len());
    }
}

#[test]
fn one_that_cuts_datagrams_is_found_out() {
    let words = "up to 2048 bytes came back; 2049: cut to 2048 bytes";
    let server = faulty::cutting(2048);
    check_datagrams(&server, &["sizes"], &["reply-address"], words);
}

#[test]
fn one_that_ignores_empty_datagrams_is_found_out() {
    let server = faulty::ignoring_empty_ones();
    let words = "no answer: nothing within 2s";
    check_datagrams(&server, &["empty-datagram"], &["reply-address"], words);
}

#[test]
fn one_that_answers_from_another_socket_is_found_out() {
    let server = faulty::answering_from_elsewhere();
    let words = " was asked, 127.0.0.1:";
    // Nor are its answers to the port of another service taken for its own.
    check_datagrams(&server, &["reply-address"], &["loop-guard"], words);
}

#[test]
fn one_that_answers_from_the_address_that_the_kernel_likes_is_found_out() {
    let server = faulty::on_every_address();
    let (_, port) = server.rsplit_once(':').expect("a port");
    let words = format!("127.0.0.2:{port} was asked, 127.0.0.1:{port} answered");
    check_datagrams(&server, &["reply-address"], &[], &words);
}

#[test]
fn one_that_merges_datagrams_is_found_out() {
    let other = ["order", "reply-address"];
    check_datagrams(&faulty::merging(), &["burst"], &other, "came back");
}

#[test]
fn one_that_reorders_datagrams_is_found_out() {
    let words = "in another order, 3 times";
    check_datagrams(&faulty::reordering(), &["order"], &["reply-address"], words);
}

#[test]
fn one_that_ends_when_a_client_is_gone_is_found_out() {
    let server = faulty::dying_of_refusals();
    let own = own_address();
    let json = report_of(&format!("check {server} --source {own}"), 1);
    let mut flaws = flaws(&json);
    // Nothing is concluded from the silence of a service that has ended.
    assert_eq!(flaws.remove("loop-guard"), Some("not_run"));
    assert_eq!(flaws, expected(&["gone-client"], &["reply-address"]));
    assert_eq!(seen(&json, "gone-client"), "the next client: refused");
}

#[test]
fn one_that_guards_against_loops_passes() {
    let own = own_address();
    if !may_loop_from(&own) {
        return not_tested("this user may not bind ports 7 and 19");
    }
    let server = faulty::guarded();
    let json = report_of(&format!("check {server} --source {own}"), 0);
    assert_eq!(flaws(&json), expected(&[], &["reply-address"]), "{json:#}");
    let seen = seen(&json, "loop-guard");
    assert_eq!(seen, "no answer to port 7: nothing within 2s");
}

#[test]
fn a_server_without_a_fault_has_none() {
    let json = report_of(&format!("check {}", faulty::faultless()), 0);
    assert_eq!(flaws(&json), expected(&[], &[]), "{json:#}");
}

#[test]
fn one_that_does_not_flush_at_the_half_close_is_found_out() {
    let words = "0 of 21 bytes, then the end of the connection";
    check_streams(&faulty::not_flushing(), &["half-close", "megabyte"], words);
}

#[test]
fn one_that_serves_one_client_at_a_time_is_found_out() {
    let words = "beside a silent client: 0 of 1000 bytes, then nothing within 2s";
    let failed = ["several-clients", "beside-a-slow-reader"];
    check_streams(&faulty::one_at_a_time(), &failed, words);
}

#[test]
fn one_that_ends_connections_with_a_reset_is_found_out() {
    let words = "0 bytes, then a reset instead of the end of the connection";
    let failed = ["empty-half-close", "half-close", "megabyte"];
    check_streams(&faulty::resetting(), &failed, words);
}

#[test]
fn one_that_takes_whatever_it_gets_is_found_out() {
    let words = "it took all of 64.0 MiB from a client that read nothing";
    // Where it sends nothing for a quarter of that, it seems to have stopped.
    let server = format!("{} --timeout 8s", faulty::hoarding());
    check_streams(&server, &["slow-reader"], words);
}

#[test]
fn one_that_ends_with_a_client_that_resets_is_found_out() {
    check_streams(&faulty::dying_of_resets(), &["reset"], "re");
    let line = format!("check {}", faulty::dying_of_resets());
    assert_prints(&line, 1, "it stopped answering at reset\n");
}

#[test]
fn one_that_answers_once_and_closes_fails_what_takes_longer_and_hangs_nowhere() {
    let daemon = start_with_default("one-shot = true");
    let failed = ["split-message", "megabyte", "pipelining", "slow-reader"];
    let words = "1 of 21 bytes, then the end of the connection";
    check_streams(&url(&daemon, "tcp"), &failed, words);
}

/// Where 64 MiB took longer than the daemon reads on behind its FIN, others were not asked at all.
#[test]
fn other_clients_are_served_also_where_the_connection_of_a_slow_reader_ends() {
    let failed = ["split-message", "megabyte", "pipelining", "slow-reader"];
    let words = "1 of 21 bytes, then the end of the connection";
    check_streams(&faulty::answering_once(), &failed, words);
}

#[test]
fn one_that_answers_only_at_the_end_differs_from_one_that_never_does() {
    let server = faulty::answering_at_the_end();
    let json = report_of(&format!("check {server}"), 1);
    assert_eq!(seen(&json, "echo"), "nothing before the half-close");
    assert_eq!(json["not_run"], 10, "{json:#}");
}

#[test]
fn where_nothing_comes_back_there_is_nothing_to_check() {
    let daemon = start_with_default(r#"reply = "discard""#);
    for (name, hint) in [
        ("tcp", "it takes connections, but nothing comes back"),
        ("udp", "nothing comes back"),
    ] {
        let url = url(&daemon, name);
        let line = format!("check {url} --timeout 200ms");
        let output = output_of(&line);
        assert_eq!(output.status.code(), Some(3), "{url}");
        let said = text(&output.stderr);
        let words = format!("echoprobe: {url}: timed out; {hint}: is it an echo service?\n");
        assert_eq!(said, words);
        assert_eq!(text(&output.stdout), "");
        assert_eq!(report_of(&line, 3)["errors"]["timed out"], 1);
    }
}

#[test]
fn an_interruption_ends_it_with_what_was_found_until_then() {
    let server = faulty::answering_one_client();
    let mut child = spawn(&["check", &server, "--timeout", "60s"]);
    let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("a line");
    assert!(line.starts_with("echo                  pass"), "{line}");
    signal(&child, Signal::SIGINT);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("the rest");
    assert_eq!(rest, "1 check: 1 passed; interrupted\n");
    assert_eq!(child.wait().expect("a child of ours").code(), Some(1));
}
