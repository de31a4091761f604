//! The ordinary life of a connection, over TCP and Unix sockets alike.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::{KINDS, STREAMS, address_of, connect, read_to_end, streams_with, talk};
use crate::harness::{Daemon, eventually, has_ipv6, noise};

#[test]
fn a_message_of_any_size_comes_back_byte_for_byte() {
    let daemon = Daemon::start(STREAMS);
    let edges = [64, 1460, 4096, 16_384, 32_768, 65_536, 131_072]
        .into_iter()
        .flat_map(|edge| [edge - 1, edge, edge + 1]);
    let sizes: Vec<usize> = (1..10)
        .chain(edges)
        .chain((1..200_000).step_by(17_389))
        .chain([199_999, 200_000])
        .collect();
    for kind in KINDS {
        let address = address_of(&daemon, kind);
        let socket = connect(&address);
        for &size in &sizes {
            let message = noise(size, size as u64);
            let mut answer = vec![0; size];
            std::thread::scope(|scope| {
                scope.spawn(|| (&socket).write_all(&message).expect("sent"));
                (&socket).read_exact(&mut answer).expect("answered");
            });
            assert!(answer == message, "{kind}: {size} bytes are not the same");
        }
        socket.shutdown(Shutdown::Write).expect("half-closed");
        assert_eq!(read_to_end(&socket), b"", "{kind}: nothing more");
    }
}

#[test]
fn megabytes_come_back_while_they_are_still_being_sent() {
    let daemon = Daemon::start(STREAMS);
    for kind in KINDS {
        let message = noise(5_000_000, 5);
        let answer = talk(&connect(&address_of(&daemon, kind)), &message);
        assert_eq!(answer.len(), message.len(), "{kind}");
        assert!(answer == message, "{kind}: other bytes");
    }
}

#[test]
fn messages_sent_without_waiting_for_answers_are_answered_in_order() {
    let daemon = Daemon::start(STREAMS);
    for kind in KINDS {
        let socket = connect(&address_of(&daemon, kind));
        let messages: Vec<Vec<u8>> = (0..2000).map(|n| noise(1 + n % 90, n as u64)).collect();
        let answer = std::thread::scope(|scope| {
            scope.spawn(|| {
                for message in &messages {
                    (&socket).write_all(message).expect("sent");
                }
                socket.shutdown(Shutdown::Write).expect("half-closed");
            });
            read_to_end(&socket)
        });
        assert!(answer == messages.concat(), "{kind}: other bytes");
    }
}

#[test]
fn a_peer_that_half_closes_gets_all_unsent_bytes_and_then_the_end() {
    let daemon = Daemon::start(STREAMS);
    for kind in KINDS {
        let address = address_of(&daemon, kind);
        for size in [0, 1, 60_000] {
            let message = noise(size, 3);
            let socket = connect(&address);
            (&socket).write_all(&message).expect("sent");
            socket.shutdown(Shutdown::Write).expect("half-closed");
            assert!(read_to_end(&socket) == message, "{kind}: {size} bytes");
        }
        eventually("no connection is left", || daemon.connections(kind) == 0);
    }
}

#[test]
fn one_shot_answers_the_first_read_and_ends_with_a_fin_although_more_comes() {
    let daemon = Daemon::start(&streams_with("one-shot = true"));
    for kind in KINDS {
        let address = address_of(&daemon, kind);
        for round in 0..50 {
            let message = noise(1_000_000, round);
            let socket = connect(&address);
            // All of it is written although only the beginning is answered: the rest is read and
            // thrown away, or the FIN would become an RST and take the answer with it. That lasts
            // for two seconds, which may be too short on a busy machine.
            let begun = Instant::now();
            let talked = (|| {
                (&socket).write_all(&message)?;
                let mut answer = Vec::new();
                (&socket).read_to_end(&mut answer)?;
                socket.take_error()?.map_or(Ok(answer), Err)
            })();
            let answer = match talked {
                Err(_) if begun.elapsed() >= Duration::from_secs(2) => continue,
                talked => talked.expect("sent, and not reset"),
            };
            assert!(!answer.is_empty(), "{kind}: an answer");
            assert!(message.starts_with(&answer), "{kind}: other bytes");
            assert!(answer.len() < message.len(), "{kind}: only the first read");
        }
        eventually("no connection is left", || daemon.connections(kind) == 0);
    }
}

#[test]
fn one_shot_answers_one_message_and_closes() {
    let daemon = Daemon::start(&streams_with("one-shot = true\nreply = \"upper\""));
    for kind in KINDS {
        let socket = connect(&address_of(&daemon, kind));
        (&socket).write_all(b"one message").expect("sent");
        assert_eq!(read_to_end(&socket), b"ONE MESSAGE", "{kind}");
    }
}

#[test]
fn upper_changes_a_to_z_and_no_other_byte() {
    let daemon = Daemon::start(&streams_with("reply = \"upper\""));
    let all: Vec<u8> = (0..=255).collect();
    let message = [all.as_slice(), "grüße, мир".as_bytes(), b"Az[`{"].concat();
    for kind in KINDS {
        let answer = talk(&connect(&address_of(&daemon, kind)), &message);
        assert_eq!(answer, message.to_ascii_uppercase(), "{kind}");
    }
}

#[test]
fn discard_takes_everything_and_answers_nothing() {
    let daemon = Daemon::start(&streams_with("reply = \"discard\""));
    for kind in KINDS {
        let message = noise(3_000_000, 1);
        let answer = talk(&connect(&address_of(&daemon, kind)), &message);
        assert_eq!(answer, b"", "{kind}");
        let listener = daemon.listener(kind);
        assert_eq!(listener["bytes_received"], 3_000_000, "{kind}");
        assert_eq!(listener["bytes_sent"], 0, "{kind}");
    }
}

/// Sends these bytes with an urgent one between them, and whatever else is to be done, while all of
/// the answer is read.
fn exchange_urgent(socket: &Socket, before: &[u8], after: &[u8], then: impl FnOnce() + Send) {
    let expected = [before, b"!", after].concat();
    let mut answer = vec![0; expected.len()];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = socket;
            writer.write_all(before).expect("sent");
            socket.send_out_of_band(b"!").expect("sent");
            writer.write_all(after).expect("sent");
            then();
        });
        let mut reader = socket;
        reader.read_exact(&mut answer).expect("answered");
    });
    let (before, after) = (before.len(), after.len());
    assert!(answer == expected, "{before} bytes, an urgent one, {after}");
}

/// A few bytes are copied, and many are relayed.
const AROUND_AN_URGENT_BYTE: [(usize, usize); 6] = [
    (0, 0),
    (6, 5),
    (6, 0),
    (0, 1_000_000),
    (1_000_000, 0),
    (1_000_000, 1_000_000),
];

#[test]
fn an_urgent_byte_comes_back_in_its_place_and_what_follows_too() {
    let daemon = Daemon::start(STREAMS);
    for (before, after) in AROUND_AN_URGENT_BYTE {
        let socket = connect(&address_of(&daemon, "tcp"));
        // Three times, since what is relayed is learned from what came before.
        for round in 0..3 {
            exchange_urgent(&socket, &noise(before, round), &noise(after, 9), || {});
        }
        assert_eq!(talk(&socket, b"goodbye"), b"goodbye");
    }
}

#[test]
fn an_urgent_byte_comes_back_in_its_place_before_a_half_close() {
    let daemon = Daemon::start(STREAMS);
    for (before, after) in AROUND_AN_URGENT_BYTE {
        let socket = connect(&address_of(&daemon, "tcp"));
        let half_close = || socket.shutdown(Shutdown::Write).expect("half-closed");
        exchange_urgent(&socket, &noise(before, 1), &noise(after, 2), half_close);
        assert_eq!(read_to_end(&socket), b"", "nothing more");
    }
}

#[test]
fn an_urgent_byte_comes_back_in_its_place_after_an_upgrade() {
    let daemon = Daemon::start(STREAMS);
    let sockets = AROUND_AN_URGENT_BYTE.map(|(before, after)| {
        let socket = connect(&address_of(&daemon, "tcp"));
        exchange_urgent(&socket, &noise(before, 1), &noise(after, 2), || {});
        (socket, before, after)
    });
    daemon.forget_notifications();
    let upgrade = daemon.ctl(&["upgrade"]);
    assert!(upgrade.status.success(), "{upgrade:?}");
    for (socket, before, after) in sockets {
        exchange_urgent(&socket, &noise(before, 3), &noise(after, 4), || {});
        assert_eq!(talk(&socket, b"goodbye"), b"goodbye");
    }
}

#[test]
fn streams_are_served_over_ipv6() {
    if !has_ipv6() {
        return;
    }
    let daemon = Daemon::start("[listener.tcp]\nprotocol = \"tcp\"\naddress = \"[::1]:0\"\n");
    let message = noise(100_000, 6);
    assert!(talk(&connect(&address_of(&daemon, "tcp")), &message) == message);
}

#[test]
fn a_wildcard_listens_on_both_families_with_one_port() {
    let daemon = Daemon::start("[listener.tcp]\nprotocol = \"tcp\"\naddress = \"*:0\"\n");
    let port = daemon.address("tcp").port();
    let mut hosts = vec!["127.0.0.1", "127.0.0.2"];
    if has_ipv6() {
        hosts.push("[::1]");
    }
    for host in hosts {
        let address: std::net::SocketAddr = format!("{host}:{port}").parse().expect("an address");
        assert_eq!(
            talk(&connect(&address.into()), b"hello"),
            b"hello",
            "{host}"
        );
    }
}

#[test]
fn counters_tell_what_came_and_went() {
    let daemon = Daemon::start(STREAMS);
    for kind in KINDS {
        let address = address_of(&daemon, kind);
        for round in 1..=10 {
            talk(&connect(&address), &noise(1000 * round, 0));
        }
        eventually("no connection is left", || daemon.connections(kind) == 0);
        let listener = daemon.listener(kind);
        assert_eq!(listener["accepted"], 10, "{kind}");
        assert_eq!(listener["bytes_received"], 55_000, "{kind}");
        assert_eq!(listener["bytes_sent"], 55_000, "{kind}");
    }
}
