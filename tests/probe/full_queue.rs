//! A service whose queue is full, of datagrams or connections of other clients: echoprobe waits for
//! room, as long as for an answer. And one on a Unix socket that attaches descriptors.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::Child;
use std::thread;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use socket2::{Domain, Socket, Type};

use super::{fault, interrupt, spawn, spawn_typing};
use crate::harness::{PATIENCE, eventually, text};

/// A service that has stopped taking anything.
struct Full {
    _folder: tempfile::TempDir,
    socket: UnixDatagram,
    url: String,
    /// The datagrams of other clients.
    count: usize,
}

impl Full {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("service");
        let (socket, url) = fault::bind(Type::DGRAM, Some(&path));
        let socket = UnixDatagram::from(OwnedFd::from(socket));
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let other = UnixDatagram::unbound().expect("a socket");
        other.set_nonblocking(true).expect("an option");
        let is_taken = |_: &usize| other.send_to(b"of others", &path).is_ok();
        let count = (0..).take_while(is_taken).count();
        Self {
            _folder: folder,
            socket,
            url,
            count,
        }
    }

    /// Takes what is there, and answers this number of datagrams behind it.
    fn recover(&self, answers: usize) {
        let mut bytes = [0; 1000];
        for _ in 0..self.count {
            self.socket.recv(&mut bytes).expect("of others");
        }
        for _ in 0..answers {
            let (len, client) = self.socket.recv_from(&mut bytes).expect("a message");
            self.socket
                .send_to_addr(&bytes[..len], &client)
                .expect("sent");
        }
    }
}

/// Whether it sleeps and has a socket: it has found out by then, most likely.
fn waits(child: &Child) -> bool {
    let process = format!("/proc/{}", child.id());
    let state = std::fs::read_to_string(format!("{process}/stat")).expect("a child of ours");
    let open = std::fs::read_dir(format!("{process}/fd")).expect("a child of ours");
    let mut links = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let has_socket = links.any(|link| link.to_string_lossy().starts_with("socket:"));
    state.contains(") S ") && has_socket
}

/// A queue of connections that is full: the kernel answers no SYN.
#[test]
fn an_interrupt_and_a_deadline_end_a_client_that_connects() {
    let (listener, url) = fault::bind(Type::STREAM, None);
    listener.listen(0).expect("a listener");
    let address = listener.local_addr().expect("an address");
    let others = [(); 4].map(|()| {
        let other = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).expect("a socket");
        // It is connected, or is not.
        let _ = other.connect(&address);
        other
    });
    for command in [&[][..], &["send"], &["ping"], &["load"], &["check"]] {
        let deadline = ["--deadline", "10ms"];
        let start =
            |options: &[&str]| spawn(&[command, &[&url, "--timeout", "1h"], options].concat());
        let (child, late) = (start(&[]), start(&deadline));
        eventually("it connects", || waits(&child));
        let late = late.wait_with_output().expect("a child of ours");
        for (output, word) in [(interrupt(child), "interrupted"), (late, "deadline passed")] {
            assert_eq!(output.status.code(), Some(1), "{command:?}");
            let said = text(&output.stdout) + &text(&output.stderr);
            // The summary of ping has no word for it.
            let is_said = said.contains(word) || command == ["ping"];
            assert!(is_said, "{command:?}: {said}");
        }
    }
    drop(others);
}

/// Descriptors that a service attaches were kept, until no more could be opened.
#[test]
fn descriptors_that_a_service_attaches_are_not_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let (socket, url) = fault::bind(Type::DGRAM, Some(&folder.path().join("service")));
    let (sender, sent) = std::sync::mpsc::channel();
    fault::serve_datagrams(socket, move |socket, bytes, peer| {
        let attached = [ControlMessage::ScmRights(&[0; 20])];
        let data = [IoSlice::new(&bytes)];
        let flags = MsgFlags::empty();
        sendmsg(socket.as_raw_fd(), &data, &attached, flags, Some(&peer)).is_ok()
            && sender.send(()).is_ok()
    });
    let child = spawn(&["ping", &url, "-i", "1ms", "-q"]);
    sent.iter().take(50).for_each(drop);
    let open = std::fs::read_dir(format!("/proc/{}/fd", child.id()));
    let count = open.expect("a child of ours").count();
    assert!(count < 50, "{count} open");
    interrupt(child);
}

/// `ping` and the conversation said "timed out" at once.
#[test]
fn a_client_that_finds_the_queue_of_a_service_full_waits_for_room() {
    for (command, answers) in [
        (&["ping", "-c", "2", "-i", "1ms"][..], 2),
        (&["send"], 1),
        (&[], 1),
    ] {
        let full = Full::new();
        let (child, input) = spawn_typing(&[command, &[&full.url]].concat(), b"hello\n");
        drop(input);
        eventually("it waits", || waits(&child));
        thread::scope(|scope| {
            scope.spawn(|| full.recover(answers));
            let output = child.wait_with_output().expect("a child of ours");
            let said = text(&output.stdout) + &text(&output.stderr);
            assert!(output.status.success(), "{command:?}: {said}");
        });
    }
}
