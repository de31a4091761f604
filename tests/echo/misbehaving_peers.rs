//! What peers do to a connection that they should not, and that no other peer
//! notices.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
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

/// What the daemon may allocate while no peer reads: all buffers of its workers, and for each of
/// `peers` twice the bytes that are held for one.
fn memory_allowed_kib(workers: u64, peers: u64) -> u64 {
    workers * 16 * 1024 + peers * 2 * 64 + 4 * 1024
}

/// How many do not read.
const PEERS: usize = 300;

/// Descriptors that two workers may keep for later: 64 pipes each, two for each pipe.
const POOLED_DESCRIPTORS: usize = 2 * 2 * 64;

#[test]
fn peers_that_do_not_read_are_bounded_delay_no_others_and_lose_nothing() {
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

        let descriptors = daemon.descriptors();
        let peers: Vec<Socket> = (0..PEERS).map(|_| small(&address)).collect();
        // A driver may know them as peers of small messages, or of bulk, when they stop reading.
        let mut sent = vec![0; PEERS];
        for (index, (peer, sent)) in peers.iter().zip(&mut sent).enumerate() {
            *sent = [0, 100, 30_000, 70_000][index % 4];
            let before = &bytes[..*sent];
            assert!(exchange(&mut &*peer, before) == before, "{kind}");
        }
        let read = sent.clone();
        stuff(&peers, &mut sent, &bytes);
        for round in 0..3 {
            assert_eq!(
                exchange(&mut witness, &noise(5000, round)),
                noise(5000, round)
            );
            let mut new_client = connect(&address);
            assert_eq!(exchange(&mut new_client, b"new"), b"new");
            stuff(&peers, &mut sent, &bytes);
        }
        assert!(
            sent.iter().all(|sent| *sent < TOO_MUCH),
            "{kind}: reading never stopped"
        );
        let after = daemon.memory_kib();
        let allowed = memory_allowed_kib(2, PEERS as u64);
        assert!(
            after < before + allowed,
            "{kind}: {before} KiB became {after} KiB, {allowed} more are allowed"
        );

        let allowed = descriptors + PEERS + POOLED_DESCRIPTORS;
        // The new clients may be counted still.
        eventually("descriptors are bounded", || {
            daemon.descriptors() <= allowed
        });

        // Now they read, and everything is there, each byte in its place.
        for ((peer, sent), from) in peers.iter().zip(&sent).zip(&read) {
            peer.shutdown(Shutdown::Write).expect("half-closed");
            let answer = read_to_end(peer);
            assert_eq!(answer.len(), *sent - *from, "{kind}");
            assert!(answer == bytes[*from..*sent], "{kind}: other bytes");
        }
        drop(witness);
        eventually("no connection is left", || daemon.connections(kind) == 0);
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
        "write-stall-timeout = \"3s\"\n{SMALL_BUFFERS}"
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
        // A peer that has read everything may be silent for as long.
        assert_eq!(exchange(&mut patient, b"here"), b"here", "{kind}");
    }
}

#[test]
fn a_slow_reader_is_not_reset_and_gets_everything() {
    let daemon = Daemon::start(&streams_with(&format!(
        "write-stall-timeout = \"6s\"\n{SMALL_BUFFERS}"
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
                for _ in 0..24 {
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
        // On a busy machine it may not be accepted yet; with unsent bytes it is not closed.
        eventually("it is connected", || daemon.connections(kind) == 1);
        let answer = read_to_end(&peer);
        assert_eq!(answer.len(), sent, "{kind}");
        assert!(answer == bytes[..sent], "{kind}: other bytes");
    }
}

#[test]
fn nothing_is_lost_where_every_answer_goes_out_in_many_pieces() {
    let daemon = Daemon::start(&streams_with("send-buffer = \"4KiB\""));
    // A small window makes for small pieces in the daemon's small buffer.
    let socket = connect_with(&address_of(&daemon, "tcp"), |socket| {
        socket.set_recv_buffer_size(4096).expect("an option");
    });
    let bytes = noise(200_000, 11);
    let answer = talk(&socket, &bytes);
    assert_eq!(answer.len(), bytes.len());
    assert!(answer == bytes, "other bytes");
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
        eventually("no connection is left", || daemon.connections(kind) == 0);
    }
}

#[test]
fn a_connection_in_the_middle_of_a_conversation_that_has_lasted_long_enough_gets_a_fin() {
    let daemon = Daemon::start(&streams_with("max-lifetime = \"700ms\""));
    for kind in KINDS {
        let mut socket = connect(&address_of(&daemon, kind));
        let mut answer = [0; 100];
        // It talks without a pause, so that it is not its silence that ends it.
        let deadline = Instant::now() + PATIENCE;
        let ended = loop {
            assert!(Instant::now() < deadline, "{kind}: it lasts");
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
                // Until the daemon's FIN has arrived, which it must be able to send although
                // there is always something unread before it.
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
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "it lasts");
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

#[test]
fn what_comes_behind_passed_descriptors_comes_back() {
    // A read stops before them, so that its being short does not mean that it took all.
    let daemon = Daemon::start(STREAMS);
    let gift = std::fs::File::open("/dev/null").expect("a file");
    let socket = connect(&address_of(&daemon, "unix"));
    exchange(&mut &socket, b"before");
    daemon.signal(Signal::SIGSTOP);
    (&socket).write_all(b"one").expect("sent");
    let gifts = [gift.as_raw_fd()];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(b"-")],
        &[ControlMessage::ScmRights(&gifts)],
        MsgFlags::empty(),
        None,
    )
    .expect("sent");
    (&socket).write_all(b"two").expect("sent");
    daemon.signal(Signal::SIGCONT);
    let mut answer = [0; 7];
    (&socket).read_exact(&mut answer).expect("answered");
    assert_eq!(&answer, b"one-two");
}
