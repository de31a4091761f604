//! `echoprobe check`: what it finds out, and how it says so.
//!
//! Servers that have exactly one fault fail exactly the checks that are about it.

mod faulty;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{json_of, output_of, probe, probe_json};
use crate::harness::{Daemon, ECHOPROBE, has_ipv6, not_tested, text};
use faulty::{Datagrams, Streams};

/// All checks that are not passed, and their verdicts.
fn flaws(json: &Value) -> BTreeMap<String, String> {
    let checks = json["checks"].as_array().expect("a list");
    let word = |check: &Value, name: &str| check[name].as_str().expect("a word").to_owned();
    checks
        .iter()
        .map(|check| (word(check, "name"), word(check, "verdict")))
        .filter(|(_, verdict)| verdict != "pass")
        .collect()
}

/// What is to be failed, and what is not applicable.
fn expected(failed: &[&str], not_applicable: &[&str]) -> BTreeMap<String, String> {
    let all = |names: &[&str], verdict: &str| -> Vec<(String, String)> {
        let pair = |name: &&str| ((*name).into(), verdict.into());
        names.iter().map(pair).collect()
    };
    let mut pairs = all(failed, "fail");
    pairs.extend(all(not_applicable, "not_applicable"));
    pairs.into_iter().collect()
}

/// What was seen of one check.
fn seen(json: &Value, name: &str) -> String {
    let checks = json["checks"].as_array().expect("a list");
    let check = checks.iter().find(|check| check["name"] == name);
    check.expect("it was made")["seen"]
        .as_str()
        .expect("a word")
        .into()
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

fn check_datagrams(server: &Datagrams, failed: &[&str], not_applicable: &[&str]) -> Value {
    let own = own_address();
    let (status, json) = json_of(&format!("check {} --source {own}", server.url()));
    let mut expected = expected(failed, not_applicable);
    let answers_all = if may_loop_from(&own) {
        "fail"
    } else {
        "not_applicable"
    };
    expected.insert("loop-guard".into(), answers_all.into());
    assert_eq!(flaws(&json), expected, "{json:#}");
    let has_failed = expected.values().any(|verdict| verdict == "fail");
    assert_eq!(status, i32::from(has_failed), "{json:#}");
    json
}

fn check_streams(server: &Streams, failed: &[&str]) -> Value {
    let (status, json) = probe_json(&["check", &server.url()]);
    assert_eq!(flaws(&json), expected(failed, &[]), "{json:#}");
    assert_eq!(status, i32::from(!failed.is_empty()), "{json:#}");
    json
}

#[test]
fn our_daemon_passes_everything_on_all_kinds_of_sockets() {
    for reply in ["echo", "upper"] {
        let daemon = Daemon::start(&format!(
            "[defaults]\nreply = \"{reply}\"\n{}",
            super::LISTENERS.replace("127.0.0.1:0", "*:0")
        ));
        let port = |name| daemon.address(name).port();
        let path = |name| daemon.path(name).display().to_string();
        let (tcp, udp) = (port("tcp"), port("udp"));
        let mut urls = vec![
            format!("tcp://127.0.0.1:{tcp}"),
            format!("udp://127.0.0.1:{udp}"),
            format!("unix://{}", path("stream")),
            format!("unixgram://{}", path("datagram")),
        ];
        if has_ipv6() && reply == "echo" {
            let address = daemon.listener("udp")["addresses"][1].clone();
            let address: SocketAddr = address.as_str().unwrap_or("").parse().expect("of IPv6");
            urls.push(format!("udp://[::1]:{}", address.port()));
        }
        for url in urls {
            let mut arguments = vec!["check", &url, "--expect", reply];
            let own = own_address();
            if url.starts_with("udp://1") {
                arguments.extend(["--source", &own]);
            }
            let (status, json) = probe_json(&arguments);
            let mut flaws = flaws(&json);
            // This user may not speak from ports 7 and 19, or another process has those of [::1].
            if url.starts_with("udp:") && (url.contains('[') || !may_loop_from(&own)) {
                let of_loops = flaws.remove("loop-guard");
                let is_made = of_loops.as_deref() != Some("not_applicable");
                assert!(of_loops.is_none() || !is_made, "{url}: {json:#}");
            }
            let inapplicable: &[&str] = match url.starts_with("unixgram:") {
                true => &["loop-guard", "reply-address"],
                false => &[],
            };
            assert_eq!(flaws, expected(&[], inapplicable), "{url}: {json:#}");
            assert_eq!(status, 0, "{url}");
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
    let daemon = Daemon::start(&format!(
        "[defaults]\nreply = \"upper\"\n{}",
        super::LISTENERS
    ));
    for name in ["tcp", "udp"] {
        let url = format!("{name}://{}", daemon.address(name));
        let (status, json) = probe_json(&["check", &url]);
        assert_eq!(status, 1, "{json:#}");
        let words = "it answers in upper case: write --expect upper";
        assert_eq!(seen(&json, "echo"), words);
        let mut flaws = flaws(&json);
        assert_eq!(flaws.remove("echo").as_deref(), Some("fail"));
        assert!(
            flaws.values().all(|verdict| verdict == "not_run"),
            "{json:#}"
        );
        assert_eq!(json["not_run"], flaws.len());
    }
}

#[test]
fn one_that_cuts_datagrams_is_found_out() {
    let server = Datagrams::cutting(2048);
    let json = check_datagrams(&server, &["sizes"], &["reply-address"]);
    let words = "up to 2048 bytes came back; 2049: cut to 2048 bytes";
    assert_eq!(seen(&json, "sizes"), words);
}

#[test]
fn one_that_ignores_empty_datagrams_is_found_out() {
    let server = Datagrams::ignoring_empty_ones();
    let json = check_datagrams(&server, &["empty-datagram"], &["reply-address"]);
    assert_eq!(
        seen(&json, "empty-datagram"),
        "no answer: nothing within 2s"
    );
    assert_eq!(json["errors"]["timed out"], 1);
}

#[test]
fn one_that_answers_from_another_socket_is_found_out() {
    let server = Datagrams::answering_from_elsewhere();
    let json = check_datagrams(&server, &["reply-address"], &[]);
    let seen = seen(&json, "reply-address");
    assert!(seen.contains(" was asked, 127.0.0.1:"), "{seen}");
}

#[test]
fn one_that_answers_from_the_address_that_the_kernel_likes_is_found_out() {
    let server = Datagrams::on_every_address();
    let json = check_datagrams(&server, &["reply-address"], &[]);
    let port = server.port();
    let words = format!("127.0.0.2:{port} was asked, 127.0.0.1:{port} answered");
    assert_eq!(seen(&json, "reply-address"), words);
}

#[test]
fn one_that_merges_datagrams_is_found_out() {
    let server = Datagrams::merging();
    let json = check_datagrams(&server, &["burst"], &["order", "reply-address"]);
    let seen = seen(&json, "burst");
    assert!(seen.contains("came back"), "{seen}");
}

#[test]
fn one_that_reorders_datagrams_is_found_out() {
    let server = Datagrams::reordering();
    let json = check_datagrams(&server, &["order"], &["reply-address"]);
    assert_eq!(seen(&json, "order"), "in another order, 3 times");
}

#[test]
fn one_that_ends_when_a_client_is_gone_is_found_out() {
    let server = Datagrams::dying_of_refusals();
    let own = own_address();
    let (status, json) = json_of(&format!("check {} --source {own}", server.url()));
    let mut flaws = flaws(&json);
    // Nothing is concluded from the silence of a service that has ended.
    assert_eq!(flaws.remove("loop-guard").as_deref(), Some("not_run"));
    assert_eq!(flaws, expected(&["gone-client"], &["reply-address"]));
    assert_eq!(status, 1);
    assert_eq!(seen(&json, "gone-client"), "the next client: refused");
}

#[test]
fn one_that_guards_against_loops_passes() {
    let own = own_address();
    if !may_loop_from(&own) {
        not_tested("this user may not bind ports 7 and 19");
        return;
    }
    let server = Datagrams::guarded();
    let (status, json) = json_of(&format!("check {} --source {own}", server.url()));
    assert_eq!(flaws(&json), expected(&[], &["reply-address"]), "{json:#}");
    assert_eq!(status, 0);
    let seen = seen(&json, "loop-guard");
    assert_eq!(seen, "no answer to port 7 within 2s");
}

#[test]
fn a_server_without_a_fault_has_none() {
    check_streams(&Streams::faultless(), &[]);
}

#[test]
fn one_that_does_not_flush_at_the_half_close_is_found_out() {
    let server = Streams::not_flushing();
    let json = check_streams(&server, &["half-close", "megabyte"]);
    let words = "0 of 21 bytes, then the end of the connection";
    assert_eq!(seen(&json, "half-close"), words);
}

#[test]
fn one_that_serves_one_client_at_a_time_is_found_out() {
    let server = Streams::one_at_a_time();
    let json = check_streams(&server, &["several-clients", "beside-a-slow-reader"]);
    let words = "beside a silent client: 0 of 1000 bytes, then nothing within 2s";
    assert_eq!(seen(&json, "several-clients"), words);
}

#[test]
fn one_that_ends_connections_with_a_reset_is_found_out() {
    let server = Streams::resetting();
    let json = check_streams(&server, &["half-close", "empty-half-close", "megabyte"]);
    let seen = seen(&json, "empty-half-close");
    assert_eq!(
        seen,
        "0 bytes, then a reset instead of the end of the connection"
    );
}

#[test]
fn one_that_takes_whatever_it_gets_is_found_out() {
    let server = Streams::hoarding();
    let json = check_streams(&server, &["slow-reader"]);
    let words = "it took all of 32.0 MiB from a client that read nothing";
    assert_eq!(seen(&json, "slow-reader"), words);
}

#[test]
fn one_that_ends_with_a_client_that_resets_is_found_out() {
    let server = Streams::dying_of_resets();
    let json = check_streams(&server, &["reset"]);
    let seen = seen(&json, "reset");
    assert!(seen.contains("refused") || seen.contains("reset"), "{seen}");
    let server = Streams::dying_of_resets();
    let said = text(&probe(&["check", &server.url()]).stderr);
    assert!(said.ends_with("it stopped answering at reset\n"), "{said}");
}

#[test]
fn one_that_answers_once_and_closes_fails_what_takes_longer_and_hangs_nowhere() {
    let daemon = Daemon::start(&format!(
        "[defaults]\none-shot = true\n{}",
        super::LISTENERS
    ));
    let url = format!("tcp://{}", daemon.address("tcp"));
    let (status, json) = probe_json(&["check", &url]);
    let failed = ["megabyte", "pipelining", "slow-reader", "split-message"];
    assert_eq!(flaws(&json), expected(&failed, &[]), "{json:#}");
    assert_eq!(status, 1);
    let words = "1 of 21 bytes, then the end of the connection";
    assert_eq!(seen(&json, "split-message"), words);
}

#[test]
fn one_that_answers_only_at_the_end_differs_from_one_that_never_does() {
    let server = Streams::answering_at_the_end();
    let (status, json) = json_of(&format!("check {} --timeout 400ms", server.url()));
    assert_eq!(status, 1, "{json:#}");
    assert_eq!(seen(&json, "echo"), "nothing before the half-close");
    assert_eq!(json["not_run"], 10, "{json:#}");
}

#[test]
fn where_nothing_comes_back_there_is_nothing_to_check() {
    let daemon = Daemon::start(&format!(
        "[defaults]\nreply = \"discard\"\n{}",
        super::LISTENERS
    ));
    for (name, scheme, hint) in [
        ("tcp", "tcp", "it takes connections, but nothing comes back"),
        ("udp", "udp", "nothing comes back"),
    ] {
        let url = format!("{scheme}://{}", daemon.address(name));
        let arguments = ["check", &url, "--timeout", "200ms"];
        let output = probe(&arguments);
        assert_eq!(output.status.code(), Some(3), "{url}");
        let said = text(&output.stderr);
        let line = format!("echoprobe: {url}: timed out; {hint}: is it an echo service?\n");
        assert_eq!(said, line);
        assert_eq!(text(&output.stdout), "");
        let (status, json) = probe_json(&arguments);
        assert_eq!((status, &json["errors"]["timed out"]), (3, &Value::from(1)));
    }
}

#[test]
fn without_a_service_there_is_nothing_to_check() {
    let port = crate::harness::free_port();
    for (url, line) in [
        (
            format!("tcp://127.0.0.1:{port}"),
            "refused; no service at that port",
        ),
        (
            format!("udp://127.0.0.1:{port}"),
            "refused; no service at that port",
        ),
        (
            "unix:///nowhere/echo".into(),
            "no such file or directory; is the service running?",
        ),
        (
            "unixgram:///nowhere/echo".into(),
            "no such file or directory; is the service running?",
        ),
    ] {
        let output = probe(&["check", &url]);
        assert_eq!(output.status.code(), Some(3), "{url}");
        let said = text(&output.stderr);
        assert_eq!(said, format!("echoprobe: {url}: {line}\n"));
    }
}

#[test]
fn what_can_not_be_checked_is_reported_with_what_to_do() {
    for (option, value, words) in [
        ("--expect", "any", "write echo or upper"),
        ("--source", ":5000", "write an address alone"),
    ] {
        let output = output_of(&format!("check tcp://127.0.0.1:7 {option} {value}"));
        assert_eq!(output.status.code(), Some(2));
        let said = text(&output.stderr);
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn people_read_lines_and_why_what_has_failed_matters() {
    let server = Streams::resetting();
    let output = probe(&["check", &server.url()]);
    let said = text(&output.stdout);
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines[0].starts_with("echo                  pass     21 bytes in "),
        "{said}"
    );
    assert_eq!(lines[1], "binary                pass     256 bytes");
    assert!(
        lines[2].starts_with("half-close            fail     "),
        "{said}"
    );
    assert!(
        lines[3].starts_with("                               clients read to the end"),
        "{said}"
    );
    let sum = "11 checks: 8 passed, 3 failed";
    assert_eq!(lines.last(), Some(&sum), "{said}");
    assert_eq!(text(&output.stderr), "");
    let colored = output_of(&format!("check {} --color always", server.url()));
    let said = text(&colored.stdout);
    assert!(said.contains("\x1b[32mpass   \x1b[0m  "), "{said}");
    assert!(said.contains("\x1b[31mfail   \x1b[0m  "), "{said}");
}

#[test]
fn an_interruption_ends_it_with_what_was_found_until_then() {
    let server = Streams::answering_one_client();
    let mut child = Command::new(ECHOPROBE)
        .args(["check", &server.url(), "--timeout", "60s"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("echoprobe runs");
    let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("a line");
    assert!(line.starts_with("echo                  pass"), "{line}");
    let pid = Pid::from_raw(child.id().try_into().expect("a process id"));
    kill(pid, Signal::SIGINT).expect("it is there");
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("the rest");
    assert_eq!(rest, "1 check: 1 passed; interrupted\n");
    assert_eq!(child.wait().expect("a child of ours").code(), Some(1));
}
