//! `echoprobe load`: what it measures is what the service did.

use std::io::Read;
use std::process::{Child, Command, Output};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use serde_json::json;

use super::fault::{self, Fate};
use super::{LISTENERS, assert_adds_up, assert_prints, ended, interrupt, number, numbers};
use super::{output_of, printed_by, report_of, signal, spawn_line, url};
use crate::harness::{Daemon, ECHOPROBE, eventually, text};
use crate::terminal::Screen;

#[test]
fn services_of_ours_answer_every_message_on_both_drivers() {
    let daemon = Daemon::start(LISTENERS);
    let runs = [
        ("tcp", "-c 20 -d 4 -s 64"),
        ("tcp", "-c 3 -d 2 -s 100000"),
        ("udp", "-c 4 -d 8 -s 64"),
        ("udp", "-c 4 -d 2 -s 1"),
        ("udp", "-c 2 -s 60000"),
        ("stream", "-c 5 -d 3"),
        ("datagram", "-c 20 -d 2"),
    ];
    let run = || {
        for (listener, options) in runs {
            let url = url(&daemon, listener);
            // Without a warm-up the first messages count, however late they are answered. After one
            // only those would that follow an answer within the 200 ms.
            let line = format!("load {url} {options} -t 200ms --warm-up 0s --timeout 10s");
            let report = report_of(&line, 0);
            let messages = number(&report, "messages");
            assert!(messages > 0, "{line}: {report}");
            assert_eq!(number(&report, "sent"), messages, "{line}: {report}");
            assert_eq!(numbers(&report, ["lost", "corrupt"]), [0, 0], "{line}");
            assert!(number(&report, "bytes") >= messages);
            assert!(report["rtt_us"]["p999"].as_f64() > Some(0.0), "{report}");
        }
    };
    run();
    crate::drivers::where_io_uring_fails(Errno::ENOSYS, run);
}

#[test]
fn a_rate_is_kept() {
    let daemon = Daemon::start(LISTENERS);
    for listener in ["tcp", "udp"] {
        let url = url(&daemon, listener);
        let line = format!("load {url} -c 5 --rate 1k -t 500ms --warm-up 100ms --timeout 10s");
        let report = report_of(&line, 0);
        assert_eq!(report["rate"], 1000);
        // All that were due are sent, however busy this machine is.
        assert!((499..=501).contains(&number(&report, "sent")), "{report}");
        assert_eq!(report["sent"], report["messages"], "{report}");
    }
}

/// A daemon, and a load of it that has begun.
fn begun(options: &str) -> (Daemon, Child) {
    let daemon = Daemon::start(LISTENERS);
    let child = spawn_line(&format!("load {} {options}", url(&daemon, "tcp")));
    eventually("the load has begun", || {
        daemon.listener("tcp")["bytes_received"].as_u64() > Some(64 * 100)
    });
    (daemon, child)
}

/// What a load at a rate says in which something stands still for a second.
fn load_with_a_stop(stop: impl Fn(&Daemon, &Child, Signal)) -> Output {
    let rate = "-c 4 --rate 1000 -t 4s --warm-up 0s";
    let (daemon, child) = begun(&format!("{rate} --timeout 20s --json"));
    stop(&daemon, &child, Signal::SIGSTOP);
    thread::sleep(Duration::from_secs(1));
    stop(&daemon, &child, Signal::SIGCONT);
    child.wait_with_output().expect("a child of ours")
}

/// The second for which the service stood still is in the latencies of all that were due in it:
/// a client that waits for each answer would have seen one slow message.
#[test]
fn a_second_in_which_the_service_stood_still_is_seen_in_the_percentiles() {
    let output = load_with_a_stop(|daemon, _, signal| daemon.signal(signal));
    let (status, report) = ended(&output);
    assert_eq!(status, 0, "{report}");
    let rtt = |name: &str| report["rtt_us"][name].as_f64().expect("a time");
    assert!(rtt("p999") > 900_000.0, "{report}");
    // A quarter of all were due in that second, and half of these waited for half of it.
    assert!(rtt("p90") > 400_000.0, "{report}");
    assert_eq!(report["messages"], report["sent"], "{report}");
    assert!((3999..=4001).contains(&number(&report, "sent")), "{report}");
}

#[test]
fn a_second_in_which_the_client_stood_still_is_not_blamed_on_the_service() {
    let output = load_with_a_stop(|_, child, stop| signal(child, stop));
    let said = text(&output.stderr);
    let (_, report) = ended(&output);
    assert!(number(&report, "delayed") > 900, "{report}");
    let words = "their latencies are mostly its own";
    assert!(said.contains(words), "{said}");
}

#[test]
fn one_wrong_byte_of_a_stream_is_found() {
    let plan = [&[Fate::Echo; 39][..], &[Fate::Corrupt]].concat();
    let (url, _) = fault::planned_streams(None, plan, 500, Duration::ZERO);
    let line = format!("load {url} -c 1 -d 10 -s 500 -t 2s --warm-up 0s --timeout 10s");
    let report = report_of(&line, 1);
    assert_eq!(number(&report, "corrupt"), 1, "{report}");
    assert!(number(&report, "messages") >= 20, "{report}");
    assert_adds_up(&report);
    // It, and what was behind it.
    let mismatches = number(&report, "lost") + 1;
    assert_eq!(report["errors"], json!({ "mismatch": mismatches }));
    assert_eq!(report["ends"], json!({"mismatch": 1}));
}

/// It was loaded to the end, and then the report was "0 sent, 0 lost" and nothing more.
#[test]
fn a_stream_that_never_answers_is_reported_after_one_timeout() {
    let url = fault::streams(None, |_, stream| {
        let _ = fault::echo(&stream, usize::MAX, |_, piece| piece.clear());
    });
    let output = output_of(&format!("load {url} --warm-up 1h --timeout 50ms"));
    let words = format!("{url}: timed out; nothing comes back: is it an echo service?\n");
    assert_eq!(text(&output.stderr), format!("echoprobe: {words}"));
    assert_eq!(output.status.code(), Some(3));
}

/// The load ended with the connections, without a report.
#[test]
fn a_connection_that_the_service_closes_is_reported_and_connected_again() {
    let url = fault::streams(None, |_, stream| _ = fault::echo(&stream, 320, |_, _| {}));
    let line = format!("load {url} -c 2 -s 64 -t 2s --warm-up 0s --timeout 10s");
    let report = report_of(&line, 1);
    // More than two connections.
    assert!(number(&report, "messages") > 10, "{report}");
    let closed = report["ends"].as_object().expect("causes").values();
    let closed: u64 = closed.map(|count| count.as_u64().expect("a number")).sum();
    assert!(closed >= 2, "{report}");
    assert_adds_up(&report);
    assert_prints(&line, 1, "connections have ended");
}

/// The connection was counted as reset, and what was lost with it as closed.
#[test]
fn what_is_lost_with_a_connection_is_lost_for_the_same_reason() {
    let url = fault::streams(None, |_, mut stream| {
        if stream.read_exact(&mut [0; 64]).is_ok() {
            super::reset(stream);
        }
    });
    let line = format!("load {url} -c 2 -d 3 -s 64 -t 300ms --warm-up 0s --timeout 10s");
    let report = report_of(&line, 3);
    assert_eq!(report["errors"]["reset"], report["lost"], "{report}");
    assert_adds_up(&report);
}

#[test]
fn an_interrupt_before_the_first_answer_is_no_timeout() {
    let silent = crate::harness::udp("127.0.0.1:0");
    let url = format!("udp://{}", silent.local_addr().expect("an address"));
    let child = spawn_line(&format!("load {url} --timeout 1h --json"));
    silent.recv(&mut [0; 64]).expect("a question");
    let (status, report) = ended(&interrupt(child));
    assert_eq!(report["errors"], json!({"interrupted": 1}));
    assert_eq!(status, 1);
}

/// It said "0 messages in 0 ns" and nothing more.
#[test]
fn an_interrupt_in_the_warm_up_says_that_nothing_was_measured() {
    let (_daemon, child) = begun("--warm-up 1h");
    let output = interrupt(child);
    let said = text(&output.stderr);
    assert!(said.contains("interrupted; nothing was measured"), "{said}");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn a_picture_is_written_where_that_is_asked() {
    let daemon = Daemon::start(LISTENERS);
    let url = url(&daemon, "tcp");
    let svg = daemon.path("load.svg");
    let options = "-t 200ms --warm-up 0s --timeout 10s --svg";
    let said = printed_by(&format!("load {url} {options} {}", svg.display()));
    for words in ["p99.9", "messages/s"] {
        assert!(said.contains(words), "{said}");
    }
    let picture = std::fs::read_to_string(&svg).expect("a picture");
    assert!(picture.starts_with("<svg "), "{picture}");
    assert!(picture.contains("<polyline"), "{picture}");
    let line = format!("load {url} --svg /nonexistent/load.svg -t 1h");
    let words = "/nonexistent/load.svg: can't be written: no such file or directory\n";
    assert_prints(&line, 1, words);
}

#[test]
fn a_person_sees_how_it_goes_and_a_file_gets_no_more_than_the_result() {
    let daemon = Daemon::start(LISTENERS);
    let url = url(&daemon, "tcp");
    let screen = Screen::new();
    let line = format!("load {url} -t 600ms --warm-up 0s --timeout 10s");
    let mut command = Command::new(ECHOPROBE);
    let command = command.args(line.split(' ')).stderr(screen.line());
    let output = command.output().expect("echoprobe runs");
    assert!(output.status.success());
    eventually("a bar with the rate was shown", || {
        let shown = screen.text();
        shown.contains("closed loop, depth 1: ") && shown.contains(" messages/s")
    });
    let said = text(&output.stdout);
    assert!(said.contains(" messages/s"), "{said}");
    assert!(!said.contains('\x1b'), "{said}");
}

#[test]
fn an_interrupt_ends_with_what_was_measured() {
    let (_daemon, child) = begun("-t 1h --warm-up 0s --json");
    let (status, report) = ended(&interrupt(child));
    assert_eq!(status, 1, "it was cut short");
    assert!(number(&report, "messages") > 0, "{report}");
    assert_adds_up(&report);
    assert_eq!(number(&report, "lost"), 0, "{report}");
    // The time that it took, not the hour.
    assert!(report["duration_ms"].as_f64() < Some(60_000.0), "{report}");
}
