//! Every size of a message, above all around those where a driver moves bytes in another way.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::Socket;

use super::pattern::{self, Random};
use super::{KINDS, address_of, connect, streams_with};
use crate::harness::{Daemon, PATIENCE};

const LARGEST: usize = 200_000;

/// All small ones, and those around each page's end, where buffers, pipes and borders end as well.
fn telling_sizes() -> Vec<usize> {
    let around = |edge: usize| edge - 3..=edge + 3;
    let pages = (4096..LARGEST).step_by(4096).flat_map(around);
    let all = (1..=300).chain(pages).chain(LARGEST - 3..=LARGEST);
    all.collect()
}

/// One connection, and what it has sent and got back.
struct Line {
    socket: Socket,
    line_name: String,
    stream: u32,
    upper: bool,
    sent: u64,
    received: u64,
    // The message that is being sent, and where it begins.
    outgoing: Vec<u8>,
    begun: u64,
    incoming: Vec<u8>,
    expected: Vec<u8>,
}

impl Line {
    fn new(socket: Socket, line_name: String, stream: u32, upper: bool) -> Self {
        socket.set_nonblocking(true).expect("an option");
        Self {
            socket,
            line_name,
            stream,
            upper,
            sent: 0,
            received: 0,
            outgoing: vec![0; LARGEST],
            begun: 0,
            incoming: vec![0; LARGEST],
            expected: Vec::new(),
        }
    }

    /// Sends a message of this size and receives until no more than `unanswered` bytes are missing.
    fn send(&mut self, size: usize, unanswered: u64) {
        pattern::fill(self.stream, self.sent, &mut self.outgoing[..size]);
        self.begun = self.sent;
        let mut written = 0;
        while written < size || self.sent - self.received > unanswered {
            let wrote = if written < size {
                self.taken("write", |line| {
                    (&line.socket).write(&line.outgoing[written..size])
                })
            } else {
                0
            };
            written += wrote;
            self.sent += wrote as u64;
            let read = self.taken("read", |line| (&line.socket).read(&mut line.incoming));
            self.check(read, size);
            if wrote == 0 && read == 0 {
                let mut wish = PollFlags::POLLIN;
                wish.set(PollFlags::POLLOUT, written < size);
                let mut fds = [PollFd::new(self.socket.as_fd(), wish)];
                let patience = PollTimeout::try_from(PATIENCE).expect("a timeout");
                let ready = poll(&mut fds, patience).expect("poll");
                let (sent, received) = (self.sent, self.received);
                assert!(
                    ready > 0,
                    "{}: size {size}: {received} of {sent} bytes came",
                    self.line_name
                );
            }
        }
    }

    /// The bytes taken by a call that may have to wait, in which case it takes none.
    fn taken(
        &mut self,
        what: &str,
        call: impl FnOnce(&mut Self) -> std::io::Result<usize>,
    ) -> usize {
        match call(self) {
            Ok(0) => panic!("{}: the end, too early", self.line_name),
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("{}: {what}: {error}", self.line_name),
        }
    }

    fn check(&mut self, len: usize, size: usize) {
        let got = &self.incoming[..len];
        // What was sent last is at hand; it need not be made again to be compared.
        let sent = self.received.checked_sub(self.begun).and_then(|from| {
            let from = usize::try_from(from).ok()?;
            self.outgoing.get(from..from + len)
        });
        let right = if sent == Some(got) && !self.upper {
            Ok(())
        } else {
            pattern::compare(
                self.stream,
                self.received,
                self.upper,
                got,
                &mut self.expected,
            )
        };
        if let Err(wrong) = right {
            panic!("{}: size {size}: {wrong}", self.line_name);
        }
        self.received += len as u64;
        assert!(
            self.received <= self.sent,
            "{}: size {size}: more comes than was sent",
            self.line_name
        );
    }

    /// Half-closes; exactly the bytes that were sent must have arrived, and then the end.
    fn end(mut self) {
        self.send(1, 0);
        self.socket.shutdown(Shutdown::Write).expect("half-closed");
        self.socket.set_nonblocking(false).expect("an option");
        assert_eq!(
            super::read_to_end(&self.socket),
            b"",
            "{}: nothing more",
            self.line_name
        );
    }
}

#[test]
fn every_size_comes_back_exact_across_the_border_of_bulk() {
    let seed = pattern::seed();
    let mut random = Random::new(seed);
    for reply in ["echo", "upper"] {
        let daemon = Daemon::start(&streams_with(&format!("reply = \"{reply}\"")));
        // In the order of their sizes, both ways, each size crosses a border once; in disorder,
        // most do. Without waiting for answers, the size of what is under way crosses it as well.
        let mut lines = Vec::new();
        for kind in KINDS {
            let ascending = telling_sizes();
            let descending: Vec<usize> = ascending.iter().rev().copied().collect();
            let mut shuffled = ascending.clone();
            random.shuffle(&mut shuffled);
            lines.push((kind, shuffled.clone(), 200_000));
            lines.push((kind, shuffled, 0));
            lines.push((kind, ascending, 0));
            lines.push((kind, descending, 0));
        }
        std::thread::scope(|scope| {
            for (number, (kind, sizes, unanswered)) in lines.into_iter().enumerate() {
                let line_name = format!("seed {seed}: {kind}, {reply}, line {number}");
                let socket = connect(&address_of(&daemon, kind));
                scope.spawn(move || {
                    let mut line = Line::new(socket, line_name, number as u32, reply == "upper");
                    for size in sizes {
                        line.send(size, unanswered);
                    }
                    line.end();
                });
            }
        });
    }
}

#[test]
#[ignore = "takes half a minute: 20 gigabytes there and back; .ci/run runs it"]
fn each_of_200_000_sizes_comes_back_exact() {
    const LINES: usize = 4;
    let seed = pattern::seed();
    let daemon = Daemon::start(&streams_with(""));
    std::thread::scope(|scope| {
        for number in 0..LINES {
            let kind = KINDS[number % KINDS.len()];
            let line_name = format!("seed {seed}: {kind}, line {number}");
            let socket = connect(&address_of(&daemon, kind));
            // Two of the lines in the order of sizes, two in disorder; together they have them all.
            let mut sizes: Vec<usize> = (1 + number..=LARGEST).step_by(LINES).collect();
            if number >= LINES / 2 {
                Random::new(seed + number as u64).shuffle(&mut sizes);
            }
            scope.spawn(move || {
                let mut line = Line::new(socket, line_name, number as u32, false);
                for size in sizes {
                    line.send(size, 0);
                }
                line.end();
            });
        }
    });
}
