//! Senders of datagrams: each has some under way at a time, of random sizes, and each answer must
//! be the next of them, whole.
//!
//! So little is under way that the kernel has room for all of it: what is lost, the daemon lost.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockAddr, Socket, Type};

use super::crowd::Tally;
use super::pattern::{self, Random};
use crate::harness::PATIENCE;

/// The largest datagram.
const DATAGRAM_MAX: usize = 65_507;

/// Of this size are all but a few.
const USUAL_MAX: usize = 1472;

/// The most datagrams that a flow has under way. A Unix socket's queue holds about ten of all
/// clients.
const DEPTH: usize = 8;

struct Flow {
    socket: Socket,
    stream: u32,
    // How many bytes it has sent, which is where the next datagram's pattern begins.
    sent: u64,
    // What is under way: where the pattern of each begins, and its size.
    waiting: VecDeque<(u64, usize)>,
    answered: Instant,
}

/// Flows to one listener, driven by one thread.
pub(super) struct Flows {
    name: &'static str,
    seed: u64,
    random: Random,
    flows: Vec<Flow>,
    // Only one large datagram at a time, of all flows.
    large: Option<u32>,
    pub(super) tally: Tally,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    expected: Vec<u8>,
}

impl Flows {
    /// `count` flows to an address, numbered from `first_stream` on. Unix clients get names of
    /// their own in `folder`.
    pub(super) fn new(
        name: &'static str,
        seed: u64,
        address: &SockAddr,
        folder: &Path,
        first_stream: u32,
        count: u32,
    ) -> Self {
        let flow = |stream: u32| {
            let socket = Socket::new(address.domain(), Type::DGRAM, None).expect("a socket");
            if address.domain() == Domain::UNIX {
                let own = SockAddr::unix(folder.join(format!("flow{stream}"))).expect("a path");
                socket.bind(&own).expect("a name of its own");
            }
            socket.connect(address).expect("connected");
            socket.set_nonblocking(true).expect("an option");
            Flow {
                socket,
                stream,
                sent: 0,
                waiting: VecDeque::new(),
                answered: Instant::now(),
            }
        };
        Self {
            name,
            seed,
            random: Random::new(seed ^ u64::from(first_stream) << 32),
            flows: (first_stream..first_stream + count).map(flow).collect(),
            large: None,
            tally: Tally::default(),
            incoming: vec![0; DATAGRAM_MAX + 1],
            outgoing: vec![0; DATAGRAM_MAX],
            expected: Vec::new(),
        }
    }

    /// How many datagrams are under way.
    pub(super) fn under_way(&self) -> usize {
        self.flows.iter().map(|flow| flow.waiting.len()).sum()
    }

    /// Sends some, if asked to, and takes what has arrived; waits a moment for it.
    ///
    /// # Panics
    /// When an answer is wrong, out of order, or never comes.
    pub(super) fn turn(&mut self, sends: bool) {
        for index in 0..self.flows.len() {
            while sends && self.send(index) {}
        }
        let mut fds: Vec<_> = self
            .flows
            .iter()
            .map(|flow| PollFd::new(flow.socket.as_fd(), PollFlags::POLLIN))
            .collect();
        poll(&mut fds, PollTimeout::from(10_u8)).expect("poll");
        for index in 0..self.flows.len() {
            while self.receive(index) {}
            let flow = &self.flows[index];
            assert!(
                flow.waiting.is_empty() || flow.answered.elapsed() < PATIENCE,
                "seed {}: {}: flow {}: no answer to {:?}",
                self.seed,
                self.name,
                flow.stream,
                flow.waiting
            );
        }
    }

    fn send(&mut self, index: usize) -> bool {
        let flow = &mut self.flows[index];
        // How many it has under way differs from time to time, so that some come in one batch.
        if flow.waiting.len() >= DEPTH || (flow.waiting.len() > 1 && self.random.one_in(5)) {
            return false;
        }
        let size = match self.random.below(10) {
            0 => self.random.below(2) as usize,
            1 if self.large.is_none() => {
                USUAL_MAX + self.random.below((DATAGRAM_MAX - USUAL_MAX) as u64) as usize + 1
            }
            // Some of one size, as a sender of segments has them.
            2..=6 => 600,
            _ => self.random.below(USUAL_MAX as u64 + 1) as usize,
        };
        let bytes = &mut self.outgoing[..size];
        pattern::fill(flow.stream, flow.sent, bytes);
        match flow.socket.send(bytes) {
            Ok(sent) => assert_eq!(sent, size, "a datagram goes whole"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) => panic!("seed {}: {}: while sending: {error}", self.seed, self.name),
        }
        if flow.waiting.is_empty() {
            flow.answered = Instant::now();
        }
        if size > USUAL_MAX {
            self.large = Some(flow.stream);
        }
        flow.waiting.push_back((flow.sent, size));
        flow.sent += size as u64;
        self.tally.connected += 1;
        self.tally.sent += size as u64;
        true
    }

    fn receive(&mut self, index: usize) -> bool {
        let flow = &mut self.flows[index];
        let len = match std::io::Read::read(&mut &flow.socket, &mut self.incoming) {
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(error) => panic!(
                "seed {}: {}: while receiving: {error}",
                self.seed, self.name
            ),
        };
        let place = format!("seed {}: {}: flow {}", self.seed, self.name, flow.stream);
        let Some((from, size)) = flow.waiting.pop_front() else {
            panic!("{place}: {len} bytes more than were asked for");
        };
        let got = &self.incoming[..len];
        if let Err(wrong) = pattern::compare(flow.stream, from, false, got, &mut self.expected) {
            panic!("{place}: {wrong}; {size} bytes from offset {from} were expected");
        }
        assert_eq!(
            len, size,
            "{place}: bytes of the datagram from offset {from}"
        );
        if size > USUAL_MAX {
            self.large = None;
        }
        flow.answered = Instant::now();
        self.tally.received += len as u64;
        true
    }
}
