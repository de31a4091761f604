//! What peers do to a connection that they should not, and that it costs nobody else anything.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use socket2::Socket;

use super::{
    KINDS, STREAMS, address_of, connect, connect_with, read_to_end, streams_with, stuff, talk,
};
use crate::harness::{Daemon, PATIENCE, allow_many_descriptors, eventually, exchange, noise};

/// Small buffers in the kernel, so that a peer that does not read is noticed after little.
const SMALL_BUFFERS: &str = "receive-buffer = \"64KiB\"\nsend-buffer = \"64KiB\"\n";

/// More than all buffers between a peer and itself can hold.
const TOO_MUCH: usize = 8_000_000;

/// What the daemon may take for itself while nobody reads: all buffers of its workers, and for
/// each of so many peers what is held for one, twice.
fn memory_allowed_kib(workers: u64, peers: u64) -> u64 {
    workers * 16 * 1024 + peers * 2 * 64 + 4 * 1024
}

#[test]
fn peers_that_do_not_read_are_bounded_hurt_nobody_and_lose_nothing() {
    allow_many_descriptors();
    let bytes = noise(TOO_MUCH, 9);
    for kind in KINDS {
        let daemon = Daemon::start(&format!(
            "[daemon]\nworkers = 2\n{}",
            streams_with(&format!("write-stall-timeout = \"off\"\n{SMALL_BUFFERS}"))
        ));
        let address = address_of(&daemon, kind);
        let mut witness = connect(&address);
        exchange(&mut witness, b"before");
        let before = daemon.memory_kib();

        let peers: Vec<Socket> = (0..200).map(|_| small(&address)).collect();
        let mut sent = vec![0; peers.len()];
        stuff(&peers, &mut sent, &bytes);
        for round in 0..3 {
            assert_eq!(
                exchange(&mut witness, &noise(5000, round)),
                noise(5000, round)
            );
            let mut newcomer = connect(&address);
            assert_eq!(exchange(&mut newcomer, b"new"), b"new");
            stuff(&peers, &mut sent, &bytes);
        }
        assert!(
            sent.iter().all(|sent| *sent < TOO_MUCH),
            "{kind}: reading never stopped"
        );
        let after = daemon.memory_kib();
        let allowed = memory_allowed_kib(2, 200);
        assert!(
            after < before + allowed,
            "{kind}: {before} KiB became {after} KiB, {allowed} more are allowed"
        );

        // Now they read, and everything is there, each byte in its place.
        for (peer, sent) in peers.iter().zip(&sent) {
            peer.shutdown(Shutdown::Write).expect("half-closed");
            let answer = read_to_end(peer);
            assert_eq!(answer.len(), *sent, "{kind}");
            assert!(answer == bytes[..*sent], "{kind}: other bytes");
        }
        drop(witness);
        eventually("nobody is left", || daemon.connections(kind) == 0);
    }
}

fn small(address: &socket2::SockAddr) -> Socket {
    connect_with(address, |socket| {
        socket.set_recv_buffer_size(64 * 1024).expect("an option");
        socket.set_send_buffer_size(64 * 1024).expect("an option");
    })
}

#[test]
fn a_peer_that_reads_nothing_for_too_long_is_reset() {
    let daemon = Daemon::start(&streams_with(&format!(
        "write-stall-timeout = \"1s\"\n{SMALL_BUFFERS}"
    )));
    for kind in KINDS {
        let address = address_of(&daemon, kind);
        let mut patient = connect(&address);
        let peer = small(&address);
        stuff(slice::from_ref(&peer), &mut [0], &noise(TOO_MUCH, 1));
        let mut fds = [PollFd::new(peer.as_fd(), PollFlags::empty())];
        let patience = PollTimeout::try_from(PATIENCE).expect("a timeout");
        let happened = poll(&mut fds, patience).expect("poll");
        assert_eq!(happened, 1, "{kind}: it is still connected");
        let error = peer.take_error().expect("a socket's error");
        let kind_of_error = error.map(|error| error.kind());
        assert_eq!(kind_of_error, Some(ErrorKind::ConnectionReset), "{kind}");
        // Who owes nobody a read may be silent for as long.
        assert_eq!(exchange(&mut patient, b"here"), b"here", "{kind}");
    }
}

#[test]
fn a_slow_reader_is_not_reset_and_gets_everything() {
    let daemon = Daemon::start(&streams_with(&format!(
        "write-stall-timeout = \"3s\"\n{SMALL_BUFFERS}"
    )));
    let bytes = noise(TOO_MUCH, 2);
    std::thread::scope(|scope| {
        for kind in KINDS {
            let (daemon, bytes) = (&daemon, &bytes);
            scope.spawn(move || {
                let peer = small(&address_of(daemon, kind));
                let mut sent = [0];
                stuff(slice::from_ref(&peer), &mut sent, bytes);
                let mut answer = vec![0; 5_000_000];
                let mut read = 0;
                // Ten times as slow as it could be, and for longer than the timeout.
                for _ in 0..16 {
                    std::thread::sleep(Duration::from_millis(300));
                    (&peer)
                        .read_exact(&mut answer[read..read + 100_000])
                        .expect("not reset");
                    read += 100_000;
                    stuff(slice::from_ref(&peer), &mut sent, bytes);
                }
                peer.shutdown(Shutdown::Write).expect("half-closed");
                answer.truncate(read);
                answer.extend(read_to_end(&peer));
                assert_eq!(answer.len(), sent[0], "{kind}");
                assert!(answer == bytes[..sent[0]], "{kind}: other bytes");
            });
        }
    });
}

#[test]
fn a_half_close_behind_a_full_pipe_is_answered_in_full() {
    let daemon = Daemon::start(&streams_with(SMALL_BUFFERS));
    let bytes = noise(TOO_MUCH, 4);
    for kind in KINDS {
        let peer = small(&address_of(&daemon, kind));
        let mut sent = [0];
        stuff(slice::from_ref(&peer), &mut sent, &bytes);
        let [sent] = sent;
        peer.shutdown(Shutdown::Write).expect("half-closed");
        assert_eq!(daemon.connections(kind), 1, "{kind}: owed, so not closed");
        let answer = read_to_end(&peer);
        assert_eq!(answer.len(), sent, "{kind}");
        assert!(answer == bytes[..sent], "{kind}: other bytes");
    }
}

#[test]
fn nothing_is_lost_where_every_answer_goes_out_in_many_pieces() {
    let daemon = Daemon::start(&streams_with("send-buffer = \"4KiB\""));
    for kind in KINDS {
        let bytes = noise(1_500_000, 11);
        let answer = talk(&connect(&address_of(&daemon, kind)), &bytes);
        assert_eq!(answer.len(), bytes.len(), "{kind}");
        assert!(answer == bytes, "{kind}: other bytes");
    }
}

#[test]
fn an_idle_connection_is_closed_with_a_fin() {
    let daemon = Daemon::start(&streams_with("idle-timeout = \"500ms\""));
    for kind in KINDS {
        let address = address_of(&daemon, kind);
        let silent = connect(&address);
        let mut once = connect(&address);
        assert_eq!(exchange(&mut once, b"once"), b"once");
        assert_eq!(read_to_end(&silent), b"", "{kind}");
        assert_eq!(read_to_end(&once), b"", "{kind}");
        drop((silent, once));
        eventually("nobody is left", || daemon.connections(kind) == 0);
    }
}

#[test]
fn a_connection_in_the_middle_of_a_conversation_that_has_lasted_long_enough_gets_a_fin() {
    let daemon = Daemon::start(&streams_with("max-lifetime = \"700ms\""));
    for kind in KINDS {
        let mut socket = connect(&address_of(&daemon, kind));
        let mut answer = [0; 100];
        // It talks without a pause, so that it is not its silence that ends it.
        let ended = loop {
            if let Err(error) = socket.write_all(&[7; 100]) {
                break Err(error);
            }
            match socket.read_exact(&mut answer) {
                Ok(()) => assert_eq!(answer, [7; 100]),
                Err(error) => break Err(error),
            }
        };
        let ended: std::io::Result<()> = ended;
        // The end comes at a message boundary here, or where nothing more is answered.
        assert_eq!(
            ended.map_err(|error| error.kind()),
            Err(ErrorKind::UnexpectedEof),
            "{kind}"
        );
    }
}

#[test]
fn a_connection_in_full_flood_that_has_lasted_long_enough_gets_a_fin_and_no_reset() {
    let daemon = Daemon::start(&streams_with("max-lifetime = \"500ms\""));
    for kind in KINDS {
        let socket = connect(&address_of(&daemon, kind));
        let bytes = noise(1_000_000, 8);
        let ended = AtomicBool::new(false);
        let answer = std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut writer = &socket;
                // Until the other side has said its last word, which it must be able to say
                // although there is always something unread before it.
                while !ended.load(Ordering::Relaxed) {
                    writer.write_all(&bytes).expect("sent");
                }
            });
            let answer = read_lengths(&socket, &bytes);
            ended.store(true, Ordering::Relaxed);
            answer
        });
        assert!(answer > 0, "{kind}");
    }
}

/// Reads until the FIN what should be `bytes` over and over; returns how many came.
fn read_lengths(mut socket: &Socket, bytes: &[u8]) -> usize {
    let mut place = 0;
    let mut piece = vec![0; 100_000];
    loop {
        let len = socket.read(&mut piece).expect("a FIN, and no reset");
        if len == 0 {
            return place;
        }
        let start = place % bytes.len();
        let (head, tail) = piece[..len].split_at(len.min(bytes.len() - start));
        assert!(head == &bytes[start..start + head.len()], "other bytes");
        assert!(tail == &bytes[..tail.len()], "other bytes");
        place += len;
    }
}

#[test]
fn clients_killed_in_mid_message_leave_nothing_to_those_who_come_after_them() {
    let daemon = Daemon::start(STREAMS);
    for kind in KINDS {
        let address = address_of(&daemon, kind);
        for round in 0..300_u64 {
            let killed: Vec<Socket> = (0..4).map(|_| connect(&address)).collect();
            for (index, socket) in killed.iter().enumerate() {
                // What is under way when they die differs from round to round.
                let size = 1 + (round as usize * 7919 + index * 104_729) % 60_000;
                (&*socket)
                    .write_all(&noise(size, u64::MAX - round))
                    .expect("sent");
                socket.set_linger(Some(Duration::ZERO)).expect("an option");
            }
            drop(killed);
            let heirs: Vec<Socket> = (0..4).map(|_| connect(&address)).collect();
            for (index, socket) in heirs.iter().enumerate() {
                (&*socket)
                    .write_all(&noise(3000, round * 4 + index as u64))
                    .expect("sent");
            }
            for (index, socket) in heirs.iter().enumerate() {
                socket.shutdown(Shutdown::Write).expect("half-closed");
                let answer = read_to_end(socket);
                let own = noise(3000, round * 4 + index as u64);
                assert!(answer == own, "{kind}: round {round}, client {index}");
            }
        }
        eventually("nobody is left", || daemon.connections(kind) == 0);
        assert_eq!(daemon.listener(kind)["accepted"], 2400, "{kind}");
    }
}

#[test]
fn descriptors_that_a_client_passes_do_not_stay_in_the_daemon() {
    let daemon = Daemon::start(STREAMS);
    let socket = connect(&address_of(&daemon, "unix"));
    exchange(&mut &socket, b"before");
    let before = daemon.descriptors();
    let gift = std::fs::File::open("/dev/null").expect("a file");
    for round in 0..200_u8 {
        let gifts = [gift.as_raw_fd(); 5];
        sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(&[round])],
            &[ControlMessage::ScmRights(&gifts)],
            MsgFlags::empty(),
            None,
        )
        .expect("sent");
        let mut answer = [0];
        (&socket).read_exact(&mut answer).expect("answered");
        assert_eq!(answer, [round]);
    }
    eventually("none of them stays", || daemon.descriptors() <= before);
}
