//! A Unix datagram service whose queue is full of datagrams of other clients: echoprobe waits for room,
//! as long as for an answer.

use std::os::unix::net::UnixDatagram;
use std::process::Child;
use std::thread;

use super::spawn_typing;
use crate::harness::{PATIENCE, eventually, text};

/// A service that has stopped taking anything.
struct Full {
    folder: tempfile::TempDir,
    socket: UnixDatagram,
    /// The datagrams of other clients.
    count: usize,
}

impl Full {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("service");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let other = UnixDatagram::unbound().expect("a socket");
        other.set_nonblocking(true).expect("an option");
        let is_taken = |_: &usize| other.send_to(b"of others", &path).is_ok();
        let count = (0..).take_while(is_taken).count();
        Self {
            folder,
            socket,
            count,
        }
    }

    fn url(&self) -> String {
        format!(
            "unixgram://{}",
            self.folder.path().join("service").display()
        )
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

/// `ping` and the conversation said "timed out" at once.
#[test]
fn a_client_that_finds_the_queue_of_a_service_full_waits_for_room() {
    for (command, answers) in [
        (&["ping", "-c", "2", "-i", "1ms"][..], 2),
        (&["send"], 1),
        (&[], 1),
    ] {
        let full = Full::new();
        let url = full.url();
        let (child, input) = spawn_typing(&[command, &[&url]].concat(), b"hello\n");
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
