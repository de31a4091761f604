//! Conversations with `echoprobe URL`, typed on a terminal and from a pipe, with services of every
//! kind and with some that behave badly.

use std::io::{Read, Write};
use std::net::TcpStream;

use nix::sys::signal::Signal;

use super::terminal::Terminal;
use super::{assert_returns, fault, probe_with, reset, server, spawn_typing, start, url};
use crate::harness::{free_port, noise, text, udp};
use crate::terminal::{CONTROL_C, CONTROL_D};

/// What a conversation from a pipe prints, says, and ends with.
fn talk(arguments: &[&str], input: &[u8]) -> (String, String, i32) {
    let output = probe_with(arguments, input);
    let status = output.status.code().expect("it ended by itself");
    (text(&output.stdout), text(&output.stderr), status)
}

fn read(mut stream: &TcpStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).expect("a line");
    bytes
}

#[test]
fn lines_go_out_without_their_end_and_come_back_from_every_kind_of_service() {
    let daemon = start();
    for listener in ["tcp", "stream", "udp", "datagram"] {
        let lines = b"hello\nw\xf6rld\nlast";
        let meant = [&lines[..], b"\n"].concat();
        assert_returns(&[&url(&daemon, listener)], lines, &meant);
    }
    let (line, meant) = ("größe\n", "GRößE\n");
    assert_returns(&[&url(&daemon, "upper")], line.as_bytes(), meant.as_bytes());
    assert_eq!(daemon.listener("tcp")["bytes_received"], 14);
}

#[test]
fn an_empty_line_is_an_empty_datagram_and_on_a_stream_nothing() {
    let daemon = start();
    for (listener, printed) in [
        ("tcp", "a\nb\n"),
        ("stream", "a\nb\n"),
        ("udp", "\na\n\nb\n"),
        ("datagram", "\na\n\nb\n"),
    ] {
        let printed = printed.as_bytes();
        assert_returns(&[&url(&daemon, listener)], b"\na\n\nb\n", printed);
    }
}

#[test]
fn a_line_may_be_larger_than_all_buffers() {
    let daemon = start();
    let line: Vec<u8> = noise(3_000_000, 5).iter().map(|byte| byte | 0x80).collect();
    let output = probe_with(&[&url(&daemon, "tcp")], &line);
    assert!(output.status.success(), "{}", text(&output.stderr));
    // It was sent in pieces, and each answer is on a line of its own.
    let mut back = output.stdout;
    back.retain(|byte| *byte != b'\n');
    assert!(back == line, "{} bytes", back.len());
}

#[test]
fn what_is_not_answered_in_time_is_reported() {
    let daemon = start();
    let arguments = [&url(&daemon, "silent"), "--timeout", "50ms"];
    let (printed, said, status) = talk(&arguments, b"hello\nworld\n");
    assert_eq!((printed.as_str(), status), ("", 3));
    assert_eq!(said.matches("no answer within 50ms\n").count(), 2, "{said}");
}

#[test]
fn a_server_that_answers_once_is_a_conversation_as_well() {
    let daemon = start();
    let url = url(&daemon, "once");
    let (printed, said, status) = talk(&[&url], b"hello\n");
    assert_eq!((printed.as_str(), status), ("hello\n", 0), "{said}");
    // But not if there was more to say.
    let (printed, said, status) = talk(&[&url], b"hello\nworld\n");
    assert_eq!((printed.as_str(), status), ("hello\n", 1), "{said}");
    assert!(said.contains("connection"), "{said}");
}

#[test]
fn the_end_of_the_connection_ends_it_while_the_input_stays_open() {
    let (url, _server) = server(|mut stream| {
        let line = read(&stream, 5);
        stream.write_all(&line).expect("answered");
    });
    let (child, _input) = spawn_typing(&[&url], b"hello\n");
    let output = child.wait_with_output().expect("a child of ours");
    assert_eq!(text(&output.stdout), "hello\n");
    let said = format!("echoprobe: connection closed by {url}\n");
    assert_eq!(text(&output.stderr), said);
    assert!(output.status.success());
}

#[test]
fn a_reset_is_reported_and_is_a_failure_where_something_was_not_answered() {
    let (url, _server) = server(|mut stream| {
        let line = read(&stream, 5);
        stream.write_all(&line[..2]).expect("answered");
        // What is in the pipe comes before the reset.
        let _ = read(&stream, 0);
        reset(stream);
    });
    let (printed, said, status) = talk(&[&url], b"hello\n");
    let words = format!("connection reset by {url}: ");
    assert!(said.contains(&words), "{said}");
    assert!(said.contains(" bytes of the answer missing"), "{said}");
    // The reset may overtake the rest: then nothing is received.
    let meant = [("", 3), ("he\n", 1)];
    assert!(meant.contains(&(&printed, status)), "{printed} {status}");
}

/// A line end was inserted behind "500 w".
#[test]
fn an_answer_that_is_longer_than_its_line_stays_one_line() {
    let (url, _server) = server(|mut stream| {
        let _ = read(&stream, 5);
        stream.write_all(b"500 what").expect("answered");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    assert_returns(&[&url], b"hello\n", b"500 what\n");
}

#[test]
fn the_rest_is_waited_for_when_the_input_has_ended() {
    let (url, _server) = server(|mut stream| {
        let line = read(&stream, 5);
        stream.write_all(&line).expect("answered");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("half-closed");
        assert_eq!(rest, b"");
        stream.write_all(b"good bye\x07").expect("said");
    });
    assert_returns(&[&url], b"hello\n", b"hello\ngood bye\x07\n");
}

#[test]
fn an_answer_from_elsewhere_is_a_mismatch() {
    let elsewhere = udp("127.0.0.1:0");
    let other = elsewhere.local_addr().expect("an address");
    let url = fault::udp(move |service, bytes, client| {
        fault::send(&elsewhere, &bytes, &client);
        fault::send(service, &bytes, &client);
    });
    let (printed, said, status) = talk(&[&url], b"hello\n");
    let address = url.trim_start_matches("udp://");
    assert_eq!((printed.as_str(), status), ("hello\n", 1));
    let words = format!("mismatch: 5 bytes came from {other}, and not from {address}\n");
    assert!(said.ends_with(&words), "{said}");
}

#[test]
fn a_proxy_header_with_this_client_and_the_service_comes_first() {
    for version in ["v1", "v2"] {
        let (url, _server) = server(move |mut stream| {
            let own = stream.local_addr().expect("an address").port();
            let peer = stream.peer_addr().expect("an address").port();
            let header = match version {
                "v1" => format!("PROXY TCP4 127.0.0.1 127.0.0.1 {peer} {own}\r\n").into_bytes(),
                _ => {
                    let head = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01";
                    [&head[..], &peer.to_be_bytes(), &own.to_be_bytes()].concat()
                }
            };
            assert_eq!(read(&stream, header.len()), header);
            stream.write_all(&read(&stream, 5)).expect("answered");
        });
        let said = talk(&[&url, "--proxy", version], b"hello");
        assert_eq!(said.0, "hello\n", "{version}");
    }
}

#[test]
fn a_terminal_has_a_prompt_and_q() {
    let daemon = start();
    let mut terminal = Terminal::start(&[&url(&daemon, "upper")]);
    for (line, answer) in [("hello", "HELLO"), ("world", "WORLD")] {
        terminal.answer_prompt(&format!("{line}\r"));
        terminal.read_to(&format!("\r\n{answer}\r\n"));
    }
    terminal.answer_prompt("q\r");
    assert_eq!(terminal.wait().code(), Some(0));
}

#[test]
fn lines_that_are_pasted_are_answered_one_by_one() {
    let daemon = start();
    for listener in ["upper", "udp"] {
        let mut terminal = Terminal::start(&[&url(&daemon, listener)]);
        terminal.answer_prompt("one\rtwo\rthree\r");
        let answers = match listener {
            "upper" => ["ONE", "TWO", "THREE"],
            _ => ["one", "two", "three"],
        };
        for answer in answers {
            terminal.read_to(&format!("{answer}\r\n"));
        }
        terminal.type_in(CONTROL_D);
        assert_eq!(terminal.wait().code(), Some(0), "{listener}");
    }
}

#[test]
fn the_end_of_the_connection_is_reported_at_the_prompt_and_leaves_the_terminal_as_it_was() {
    for end in ["closed", "reset"] {
        let (close, closing) = std::sync::mpsc::channel();
        let (url, _server) = server(move |mut stream| {
            stream.write_all(&read(&stream, 5)).expect("answered");
            closing.recv().expect("told to");
            match end {
                "closed" => stream.write_all(b"last words").expect("said"),
                _ => reset(stream),
            }
        });
        let mut terminal = Terminal::start(&[&url]);
        terminal.answer_prompt("hello\r");
        terminal.read_to("\r\nhello\r\n");
        terminal.answer_prompt("half a li");
        terminal.read_to("half a li");
        close.send(()).expect("a server");
        if end == "closed" {
            terminal.read_to("last words");
        }
        terminal.read_to(&format!("\r\n(connection {end} by {url})\r\n"));
        assert_eq!(terminal.wait().code(), Some(0), "nothing was unanswered");
    }
}

#[test]
fn what_comes_late_is_shown_while_a_line_is_typed() {
    let service = udp("127.0.0.1:0");
    let url = format!("udp://{}", service.local_addr().expect("an address"));
    let mut terminal = Terminal::start(&[&url, "--timeout", "50ms"]);
    terminal.answer_prompt("one\r");
    let mut memory = [0; 64];
    let (_, client) = service.recv_from(&mut memory).expect("a datagram");
    terminal.read_to("(no answer within 50ms)\r\n");
    terminal.answer_prompt("tw");
    terminal.read_to("tw");
    service.send_to(b"one", client).expect("sent");
    terminal.read_to("one\r\n");
    terminal.answer_prompt("o\r");
    let (len, _) = service.recv_from(&mut memory).expect("a datagram");
    assert_eq!(&memory[..len], b"two");
    service.send_to(b"two", client).expect("sent");
    terminal.read_to("\r\ntwo\r\n");
    terminal.answer_prompt("q\r");
    assert_eq!(terminal.wait().code(), Some(1), "one was late");
}

#[test]
fn nothing_that_comes_back_steers_the_terminal() {
    let (url, _server) = server(move |mut stream| {
        let line = read(&stream, 5);
        assert_eq!(line, b"hello");
        stream.write_all(b"\x1b[2J\xff").expect("answered");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("half-closed");
    });
    let mut terminal = Terminal::start(&[&url]);
    terminal.answer_prompt("hello\r");
    terminal.read_to("\r\n\\u{1b}[2J\\xff\r\n");
    terminal.answer_prompt(CONTROL_D);
    assert_eq!(terminal.wait().code(), Some(0));
}

#[test]
fn control_c_ends_it_at_the_prompt_and_while_it_waits() {
    let daemon = start();
    for is_typed in [true, false] {
        let mut terminal = Terminal::start(&[&url(&daemon, "tcp")]);
        terminal.answer_prompt("never sent");
        terminal.read_to("never sent");
        match is_typed {
            true => terminal.type_in(CONTROL_C),
            false => terminal.signal(Signal::SIGTERM),
        }
        assert_eq!(terminal.wait().code(), Some(0));
    }
    let (took, taken) = std::sync::mpsc::channel();
    let (url, _server) = server(move |mut stream| {
        assert_eq!(read(&stream, 5), b"hello");
        took.send(()).expect("a test");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let mut terminal = Terminal::start(&[&url, "--timeout", "1h"]);
    terminal.answer_prompt("hello\r");
    taken.recv().expect("a server");
    terminal.type_in(CONTROL_C);
    assert_eq!(terminal.wait().code(), Some(1), "it was on the way");
}

#[test]
fn a_refusal_is_reported_at_once_and_the_service_may_start_later() {
    let address = format!("127.0.0.1:{}", free_port());
    let url = format!("udp://{address}");
    let mut terminal = Terminal::start(&[&url, "--timeout", "1h"]);
    terminal.answer_prompt("one\r");
    terminal.read_to(&format!("({url}: refused; no service at that port)\r\n"));
    terminal.read_to("> ");
    let service = udp(&address);
    terminal.type_in("two\r");
    let mut memory = [0; 64];
    let (len, client) = service.recv_from(&mut memory).expect("a datagram");
    service.send_to(&memory[..len], client).expect("sent");
    terminal.read_to("\r\ntwo\r\n");
    terminal.answer_prompt(CONTROL_D);
    assert_eq!(terminal.wait().code(), Some(1));
}
