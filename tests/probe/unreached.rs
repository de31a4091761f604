//! Services that are not there, and command lines that make no sense: every command says so alike.

use std::io::{self, Read};
use std::time::Duration;

use super::fault::{self, Fate};
use super::{LISTENERS, assert_prints, end_of, ended, probe_with, reset, spawn, url};
use crate::harness::{Daemon, free_port, text};

/// The exit status, and all that is printed.
fn said(arguments: &[&str]) -> (i32, String) {
    let output = probe_with(arguments, b"hello");
    let status = output.status.code().expect("it ended by itself");
    (status, text(&output.stdout) + &text(&output.stderr))
}

#[test]
fn without_a_service_every_command_ends_at_once_with_the_cause_and_leaves_no_file() {
    let port = free_port();
    let folder = tempfile::tempdir().expect("a folder");
    let svg = folder.path().join("load.svg");
    let load = format!("load -t 1h --svg {}", svg.display());
    let refused = ("refused", "no service at that port");
    let missing = ("no such file or directory", "is the service running?");
    for (url, (cause, hint)) in [
        (format!("tcp://127.0.0.1:{port}"), refused),
        (format!("udp://127.0.0.1:{port}"), refused),
        ("unix:///nowhere/at/all".into(), missing),
        ("unixgram:///nowhere/at/all".into(), missing),
    ] {
        let diagnostic = format!("echoprobe: {url}: {cause}; {hint}\n");
        // Without a command it is a conversation, which has no JSON.
        assert_eq!(said(&[&url]), (3, diagnostic.clone()));
        for command in ["send", "ping -c 1", &load, "check", "mtu"] {
            if command == "mtu" && !url.starts_with("udp:") {
                continue;
            }
            let line = format!("{command} {url}");
            let words: Vec<&str> = line.split(' ').collect();
            let (status, report) =
                ended(&probe_with(&[&words[..], &["--json"]].concat(), b"hello"));
            assert_eq!((status, &report["errors"][cause]), (3, &1.into()), "{line}");
            let (_, said) = said(&words);
            match command {
                "ping -c 1" => {
                    let sum = "1 sent, 0 received, 1 lost (100 %)";
                    assert!(said.contains(sum), "{said}");
                    let errors = format!("errors: 1 {cause}; {hint}\n");
                    assert!(said.ends_with(&errors), "{said}");
                }
                _ => assert_eq!(said, diagnostic),
            }
        }
    }
    assert!(!svg.exists());
}

/// A close was a failure to one command and an unreached service to another.
#[test]
fn the_exit_status_means_the_same_in_every_command() {
    let silent = fault::streams(None, |_, mut stream| {
        _ = io::copy(&mut stream, &mut io::sink());
    });
    let closing = fault::streams(None, |_, mut stream| _ = stream.read(&mut [0; 5]));
    let resetting = fault::streams(None, |_, mut stream| {
        let _ = stream.read(&mut [0]);
        reset(stream);
    });
    let wrong = fault::streams(None, |_, stream| {
        let invert = |_, piece: &mut Vec<u8>| piece.iter_mut().for_each(|byte| *byte ^= 1);
        let _ = fault::echo(&stream, usize::MAX, invert);
    });
    let inverted = fault::by_source(None, |_| Fate::Invert, Duration::ZERO);
    for (service, url, meant) in [
        ("silent", silent, 3),
        ("closing", closing, 3),
        ("resetting", resetting, 3),
        ("wrong", wrong, 1),
        ("silent", fault::udp(|_, _, _| {}), 3),
        ("wrong", inverted, 1),
    ] {
        let load = "load -t 1s --warm-up 0s";
        for command in ["", "send", "ping -c 2 -i 1ms", load, "check", "mtu"] {
            if command == "mtu" && !url.starts_with("udp:") {
                continue;
            }
            let meant = match (command, service) {
                // A conversation does not judge answers.
                ("", "wrong") => 0,
                _ => meant,
            };
            let words = command.split_whitespace();
            // What comes is waited for, however busy the machine is.
            let timeout = if service == "wrong" { "5s" } else { "300ms" };
            let words = words.chain([&url[..], "--timeout", timeout]);
            let (status, said) = said(&words.collect::<Vec<_>>());
            assert_eq!(status, meant, "{command} {service} {url}: {said}");
        }
    }
}

/// A command that printed nothing until its end continued for ever.
#[test]
fn a_closed_output_ends_every_command() {
    let daemon = Daemon::start(LISTENERS);
    let [tcp, udp] = ["tcp", "udp"].map(|listener| url(&daemon, listener));
    let silent = fault::udp(|_, _, _| {});
    for (line, url) in [
        ("", &tcp),
        ("", &udp),
        ("send", &tcp),
        ("send", &udp),
        ("ping -i 1ms", &udp),
        ("ping -i 1ms -q", &tcp),
        ("ping -i 1ms --flows 2", &udp),
        ("ping -i 1ms --json", &udp),
        ("load -t 1h", &tcp),
        ("load -t 1h --rate 9 --json", &udp),
        ("load", &silent),
        ("check", &silent),
        ("mtu", &silent),
    ] {
        let words = line.split_whitespace().chain([&url[..], "--timeout", "1h"]);
        let mut child = spawn(&words.collect::<Vec<_>>());
        drop(child.stdout.take());
        let status = end_of(&mut child, &format!("{line} {url} ends")).code();
        // That the reader of an echo has enough is no failure.
        assert_eq!(status, Some(i32::from(line != "send")), "{line} {url}");
        let mut said = String::new();
        let mut errors = child.stderr.take().expect("a pipe");
        errors.read_to_string(&mut said).expect("text");
        assert_eq!(said, "", "{line} {url}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_what_to_write() {
    for (line, what) in [
        ("ping unix:///x -s 0", "an empty message has no bytes"),
        ("ping udp://127.0.0.1:1 -s 65528", "65527 bytes at most"),
        ("ping unix:///x --ttl 3", "only for tcp:// and udp://"),
        ("ping udp://127.0.0.1:1 --proxy v1", "only streams"),
        ("ping 127.0.0.1:1", "write tcp://HOST:PORT"),
        ("ping unix:///x --flows 2", "a Unix socket has no ports"),
        ("ping udp://a:1 --flows 9 --source :65530", "below 65536"),
        ("load udp://127.0.0.1:1 -s 0", "write 1 or more"),
        ("check tcp://127.0.0.1:7 --expect any", "echo, upper"),
        ("ping udp://127.0.0.1:1 --source ::1", "the other family"),
        ("ping udp://[::1]:1 --source 127.0.0.1", "the other family"),
        ("-6 ping udp://a:1 --source 127.0.0.1", "the other family"),
        ("load tcp://127.0.0.1:1 --source :5000 -c 2", "or -c 1"),
        ("ping udp://127.0.0.1:1 --dscp 64", "number from 0 to 63"),
        ("ping udp://127.0.0.1:1 -c 0", "whole number from 1 on"),
        ("load udp://127.0.0.1:1 -c x", "whole number from 1 on"),
        ("load udp://127.0.0.1:1 -d 65537", "from 1 to 65536"),
        ("ping udp://127.0.0.1:1 --timeout 0", "no time at all"),
        ("load udp://127.0.0.1:1 -t 0s", "no time at all"),
        ("ping udp://127.0.0.1:1 --deadline 0", "no time at all"),
        ("check tcp://a:7 --source :5000", "write an address alone"),
        ("mtu tcp://127.0.0.1:7", "write mtu udp://HOST:PORT"),
        ("mtu unixgram:///s", "write mtu udp://HOST:PORT"),
        ("tcp://127.0.0.1:1 --json", "write a command"),
    ] {
        assert_prints(line, 2, what);
    }
    assert_prints("ping tcp://no-such-host.invalid:7 -c 1", 3, "name unknown");
}
