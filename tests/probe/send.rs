//! `echoprobe send`: what goes through a service and comes back, whole or not.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Child, Output};

use serde_json::{Value, json};

use super::fault;
use super::{assert_returns, ended, interrupt, numbers, probe_with, reset, server};
use super::{spawn_reading, spawn_typing, start, url};
use crate::harness::{eventually, noise, text, udp};

/// Sends this; what came back, the diagnostics, and the exit status.
fn send(url: &str, options: &[&str], input: &[u8]) -> (Vec<u8>, String, i32) {
    parts(probe_with(&[&["send", url], options].concat(), input))
}

fn parts(output: Output) -> (Vec<u8>, String, i32) {
    let status = output.status.code().expect("it ended by itself");
    (output.stdout, text(&output.stderr), status)
}

fn end(child: Child) -> (Vec<u8>, String, i32) {
    parts(child.wait_with_output().expect("a child of ours"))
}

/// The same with `--json`.
fn send_json(url: &str, options: &[&str], input: &[u8]) -> (Value, i32) {
    let arguments = [&["send", url, "--json"], options].concat();
    let (status, json) = ended(&probe_with(&arguments, input));
    (json, status)
}

/// It failed with only this diagnostic, after the URL, and printed this many bytes.
#[track_caller]
fn assert_says(url: &str, went: &(Vec<u8>, String, i32), words: &str, printed: usize) {
    let (stdout, said, status) = went;
    assert_eq!(said, &format!("echoprobe: {url}: {words}\n"));
    // Without a byte nothing was reached.
    let meant = if words.starts_with("0 of ") { 3 } else { 1 };
    assert_eq!((stdout.len(), *status), (printed, meant));
}

/// Echoes until the peer's end, with a change to what goes back.
fn echo(stream: &TcpStream, change: impl FnMut(usize, &mut Vec<u8>)) {
    let _ = fault::echo(stream, usize::MAX, change);
}

#[test]
fn any_amount_comes_back_from_every_kind_of_service() {
    let daemon = start();
    for listener in ["tcp", "stream", "udp", "datagram"] {
        let url = url(&daemon, listener);
        let defaults = [0, 1, 1200, 1201, 100_000, 3_000_000].map(|len| (len, &[][..]));
        let largest = (3 * 65_507, &["--size", "65507"][..]);
        for (len, options) in defaults.into_iter().chain([largest]) {
            let input = noise(len, 7);
            assert_returns(&[&["send", &url], options].concat(), &input, &input);
        }
    }
    let datagrams = daemon.listener("udp");
    let sent: u64 = [1, 1, 1, 2, 84, 2500, 3].iter().sum();
    assert_eq!(datagrams["datagrams_received"], sent);
}

#[test]
fn what_is_expected_may_be_capitals_or_anything() {
    let daemon = start();
    let upper = url(&daemon, "upper");
    let input = b"hello\xe4 World\n".repeat(20_000);
    let capitals = input.to_ascii_uppercase();
    assert_returns(&["send", &upper, "--expect", "upper"], &input, &capitals);
    let words = "byte 0 came back as 0x48 'H' instead of 0x68 'h'";
    assert_says(&upper, &send(&upper, &[], &input), words, input.len());
    let silent = url(&daemon, "silent");
    for (url, meant) in [(&upper, &capitals[..]), (&silent, b"")] {
        assert_returns(&["send", url, "--expect", "any"], &input, meant);
    }
    let words = "0 of 5 bytes, then the end of the connection";
    assert_says(&silent, &send(&silent, &[], b"hello"), words, 0);
}

#[test]
fn a_server_that_answers_once_is_enough_for_a_short_input() {
    let daemon = start();
    let url = url(&daemon, "once");
    assert_returns(&["send", &url], b"hello", b"hello");
    let (output, said, status) = send(&url, &[], &noise(3_000_000, 8));
    assert_eq!(status, 1, "{said}");
    assert!(output.len() < 3_000_000);
    // Of what was sent; that may be all of it.
    assert!(said.contains(&format!(": {} ", output.len())), "{said}");
}

#[test]
fn one_wrong_byte_is_found_wherever_it_is() {
    for at in [0_usize, 65_536, 999_999] {
        let (url, _server) = server(move |stream| {
            echo(&stream, |offset, piece| {
                if let Some(byte) = at.checked_sub(offset).and_then(|at| piece.get_mut(at)) {
                    *byte = b'?';
                }
            });
        });
        let words = format!("byte {at} came back as 0x3f '?' instead of 0x00");
        let went = send(&url, &[], &vec![0; 1_000_000]);
        assert_says(&url, &went, &words, 1_000_000);
    }
}

#[test]
fn too_little_and_too_much_are_counted() {
    let (url, _too_little) = server(|stream| {
        echo(&stream, |offset, piece| {
            piece.truncate(1000_usize.saturating_sub(offset));
            piece.iter_mut().for_each(|byte| *byte = b'?');
        });
    });
    let words = format!(
        "byte 0 came back as 0x3f '?' instead of 0x07\n\
         echoprobe: {url}: 1000 of 5000 bytes, then the end of the connection"
    );
    assert_says(&url, &send(&url, &[], &[7; 5000]), &words, 1000);
    let (url, _too_much) = server(|stream| {
        echo(&stream, |_, piece| {
            if piece.is_empty() {
                piece.extend(b"more");
            }
        });
    });
    let words = "more came back than the 5000 bytes sent";
    assert_says(&url, &send(&url, &[], &[7; 5000]), words, 5004);
}

#[test]
fn a_server_that_never_stops_is_stopped() {
    let (url, _server) = server(|mut stream| {
        let flood = noise(100_000, 9);
        while stream.write_all(&flood).is_ok() {}
    });
    let (_, said, status) = send(&url, &["--json"], b"");
    assert_eq!(status, 1);
    let words = ": more came back than the 0 bytes sent\n";
    assert!(said.ends_with(words), "{said}");
}

#[test]
fn a_server_that_closes_early_is_not_waited_for() {
    let (url, _server) = server(|stream| {
        fault::echo(&stream, 1000, |_, _| {}).expect("answered");
    });
    let (child, _input) = spawn_typing(&["send", &url], &[7; 1000]);
    let words = "1000 bytes, then the end of the connection before that of the input";
    assert_says(&url, &end(child), words, 1000);
}

#[test]
fn a_reset_is_reported_with_the_bytes_that_had_come_back() {
    let (url, _server) = server(|stream| {
        fault::echo(&stream, 1000, |_, _| {}).expect("answered");
        // What was answered is not to be thrown away by the reset.
        (&stream).read_exact(&mut [0]).expect("it has arrived");
        reset(stream);
    });
    let (mut child, mut input) = spawn_typing(&["send", &url], &[7; 1000]);
    let mut stdout = child.stdout.take().expect("a pipe");
    stdout.read_exact(&mut [0; 1000]).expect("it came back");
    input.write_all(&[7; 1]).expect("written");
    assert_says(&url, &end(child), "1000 of 1001 bytes, then a reset", 0);
}

/// Nothing was sent and nothing came: that was taken for "everything came back".
#[test]
fn after_silence_in_all_the_timeout_nothing_was_reached_whatever_was_sent() {
    // One that takes everything, up to what may be on the way, and two that take nothing.
    let (greedy, _greedy_server) = server(|mut stream| {
        let taken = std::io::copy(&mut stream, &mut std::io::sink());
        assert_eq!(taken.expect("to its end"), 16 << 20);
    });
    let input = vec![7; 20 << 20];
    let (_, said, status) = send(&greedy, &["--timeout", "2s"], &input);
    let words = "0 of 16777216 bytes, then nothing within 2s";
    assert!(said.contains(words) && status == 3, "{status}: {said}");
    // The kernel accepts, and no process does.
    let lazy = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("tcp://{}", lazy.local_addr().expect("an address"));
    let none = ": 0 bytes, but no end of the connection within 200ms";
    for (input, words) in [(&input[..], " then nothing within 200ms"), (b"", none)] {
        let (_, said, status) = send(&url, &["--timeout", "200ms"], input);
        assert!(said.contains(words) && status == 3, "{status}: {said}");
    }
}

#[test]
fn a_connection_that_stays_open_is_reported_beside_the_complete_answer() {
    let (over, is_over) = std::sync::mpsc::channel::<()>();
    let (url, _server) = server(move |stream| {
        echo(&stream, |_, _| {});
        is_over.recv().expect_err("the test lets go");
    });
    let (output, said, status) = send(&url, &["--timeout", "2s"], b"hello");
    assert_eq!((output.as_slice(), status), (&b"hello"[..], 0));
    let words = "everything came back, and the connection is open after 2s\n";
    assert!(said.ends_with(words), "{said}");
    drop(over);
}

#[test]
fn programs_get_one_object() {
    let daemon = start();
    let input = noise(10_000, 10);
    let (report, status) = send_json(&url(&daemon, "tcp"), &[], &input);
    assert!(report["duration_ms"].as_f64().expect("a time") > 0.0);
    for key in ["sent", "received", "bytes"] {
        assert_eq!(report[key], 10_000, "{report}");
    }
    assert_eq!((&report["errors"], status), (&json!({}), 0));
    let (report, status) = send_json(&url(&daemon, "upper"), &[], b"ABCd");
    let fates = ["sent", "received", "lost", "corrupt"];
    assert_eq!(numbers(&report, fates), [4, 3, 0, 1]);
    assert_eq!((&report["errors"], status), (&json!({"mismatch": 1}), 1));
}

#[test]
fn a_reader_of_its_output_may_have_seen_enough() {
    let daemon = start();
    for listener in ["tcp", "udp"] {
        let endless = File::open("/dev/zero").expect("an input without an end");
        let mut child = spawn_reading(&["send", &url(&daemon, listener)], endless);
        let mut stdout = child.stdout.take().expect("a pipe");
        stdout.read_exact(&mut [0; 10]).expect("it comes back");
        drop(stdout);
        let output = child.wait_with_output().expect("a child of ours");
        assert_eq!(text(&output.stderr), "", "{listener}");
        assert_eq!(output.status.code(), Some(0), "{listener}");
    }
}

#[test]
fn a_signal_ends_it_and_says_how_far_it_was() {
    let daemon = start();
    for listener in ["tcp", "udp"] {
        let arguments = ["send", &url(&daemon, listener), "--size", "5"];
        let (mut child, _input) = spawn_typing(&arguments, b"hello");
        let mut answer = [0; 5];
        let output = child.stdout.as_mut().expect("a pipe");
        output.read_exact(&mut answer).expect("it comes back");
        let output = interrupt(child);
        let said = text(&output.stderr);
        let words = match listener {
            "tcp" => "5 bytes, then an interrupt instead of the end of the connection\n",
            _ => ": interrupted\n",
        };
        assert!(said.ends_with(words), "{said}");
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn what_happens_to_a_datagram_is_reported_with_its_number() {
    let elsewhere = udp("127.0.0.1:0");
    let other = elsewhere.local_addr().expect("an address");
    let mut kept = Vec::new();
    let url = fault::udp(move |service, bytes, client| {
        let answer = |bytes: &[u8]| _ = fault::send(service, bytes, &client);
        match bytes[0] {
            // Late, lost, wrong, misaddressed, twice.
            b'2' => kept = bytes,
            b'4' => {}
            b'5' => answer(b"?five"),
            b'7' => _ = fault::send(&elsewhere, &bytes, &client),
            b'8' => [&kept, &bytes, &bytes]
                .into_iter()
                .for_each(|bytes| answer(bytes)),
            _ => answer(&bytes),
        }
    });
    let input = b"1 one2 two3 thr4 fou5 fiv6 six7 sev8 eig9 end";
    let options = ["--size", "5", "--timeout", "2s", "--json"];
    let (printed, said, status) = send(&url, &options, input);
    let head = format!("echoprobe: {url}: datagram ");
    let wrong = " (corrupt: byte 0 came back as 0x3f '?' instead of 0x35 '5')";
    let misaddressed = format!(" (from another address than it was sent to) from {other}, ");
    let mut lines = said.lines();
    for (number, words) in [
        (2, ": no answer within 2s"),
        (4, ": no answer within 2s"),
        (5, wrong),
        (7, &misaddressed),
        (2, " (late)"),
        (8, ": duplicate from "),
    ] {
        let line = lines.next().expect("a line").strip_prefix(&head);
        let line = line.expect("of the service");
        let is_its_number = line.starts_with(&number.to_string());
        assert!(is_its_number && line.contains(words), "{line}");
    }
    assert_eq!(lines.next(), None);
    assert_eq!(status, 1);
    let report: Value = serde_json::from_slice(&printed).expect("JSON");
    let fates = ["sent", "received", "lost", "late", "corrupt"];
    assert_eq!(numbers(&report, fates), [9, 5, 2, 1, 1], "{report}");
    let others = ["duplicates", "misaddressed", "bytes"];
    assert_eq!(numbers(&report, others), [1, 1, 30], "{report}");
    assert_eq!(report["errors"], json!({"timed out": 1, "mismatch": 2}));
}

/// Three timeouts had to pass.
#[test]
fn a_silent_service_is_reported_after_one_timeout() {
    let daemon = start();
    let url = url(&daemon, "silent-udp");
    let (output, said, status) = send(&url, &["--timeout", "50ms"], &vec![7; 100_000]);
    assert_eq!((output.len(), status), (0, 3));
    let words = format!("echoprobe: {url}: timed out; nothing came back within 50ms\n");
    assert_eq!(said, words);
    let (report, status) = send_json(&url, &["--timeout", "50ms"], b"hello");
    assert_eq!((&report["errors"], status), (&json!({"timed out": 1}), 3));
    // echoprobe did not wait for the daemon to read the last one.
    eventually("all are counted", || {
        daemon.listener("silent-udp")["datagrams_received"] == 2
    });
}

#[test]
fn a_half_closed_peer_is_flushed_to_its_end() {
    // The server answers only when it has everything.
    let (url, _server) = server(|mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("half-closed");
        stream.write_all(&all).expect("answered");
        stream.shutdown(Shutdown::Both).expect("closed");
    });
    let input = noise(10_000_000, 12);
    assert_returns(&["send", &url], &input, &input);
}
