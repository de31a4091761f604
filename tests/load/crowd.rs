//! Many streams at once, driven by one thread: each sends its own pattern in messages of random
//! sizes, and compares what comes back byte for byte.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{SockAddr, Socket};

use super::pattern::{self, Random};
use crate::harness::{Daemon, text};

/// The longest time without progress. Longer than the kernel ever waits before it tries again
/// (120 s, `TCP_RTO_MAX`): where small socket buffers are full on both sides it drops segments, and
/// tries them again after 0.2, 0.4, 0.8 ... seconds (`backoff` in ss(8)); a peer that did not read
/// for a minute may have to wait for a minute, though all peers read by then.
const BACK_OFF: Duration = Duration::from_secs(150);

/// How long the daemon reads on behind its FIN (`LINGER` in `src/policy/limits.rs`). A client of a
/// one-shot listener that still sends after that is reset, at the earliest this long after it began
/// to connect.
const LINGER: Duration = Duration::from_secs(2);

/// The largest message.
const MESSAGE_MAX: u64 = 300_000;

/// Where a driver may change the way in which it moves bytes, so that sizes around are worth more.
const BORDERS: [u64; 6] = [4096, 8192, 16_384, 32_768, 65_536, 131_072];

/// The reads or writes of one peer before it is the next one's turn.
const BURST: usize = 4;

/// A listener as its clients know it.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) address: SockAddr,
    pub(super) answer: Answer,
}

impl Service {
    pub(super) fn of(daemon: &Daemon, name: &str, answer: Answer) -> Self {
        Self {
            name: name.into(),
            address: super::address_of(daemon, name),
            answer,
        }
    }
}

/// What comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The same bytes.
    Echo,
    /// The same in upper case.
    Upper,
    /// Nothing.
    Nothing,
    /// What the first read of the daemon brought, then the end.
    First,
}

/// What a peer is going to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// The number of bytes that it sends.
    pub(super) total: u64,
    /// How large its messages are.
    pub(super) sizes: Sizes,
    /// It begins another message when no more than this is unanswered, in bytes: 0 is one at a time.
    pub(super) ahead: u64,
    /// It now and then does not read for a while.
    pub(super) pauses: bool,
    /// It never reads.
    pub(super) deaf: bool,
    pub(super) ending: Ending,
}

/// How large messages are.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sizes {
    Small,
    Bulk,
    /// Small ones and bulk, and those at the border between them.
    Mixed,
}

/// How a peer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// It half-closes when it has sent everything, and everything must come back.
    HalfClose,
    /// It resets the connection when it has sent everything, whatever is still owed.
    Reset,
    /// It closes without a word, likewise.
    Close,
    /// It stays until the crowd is killed.
    Stay,
}

impl Plan {
    /// Whatever a peer may do that reads in the end.
    pub(super) fn random(random: &mut Random) -> Self {
        Self {
            total: match random.below(8) {
                0 => random.below(2),
                1..=3 => random.below(5000),
                4..=6 => random.below(500_000),
                _ => random.below(3_000_000),
            },
            sizes: *random.one_of(&[Sizes::Small, Sizes::Bulk, Sizes::Mixed, Sizes::Mixed]),
            ahead: *random.one_of(&[0, 100, 5000, 70_000, 1_000_000]),
            pauses: random.one_in(3),
            deaf: false,
            ending: Ending::HalfClose,
        }
    }
}

impl Sizes {
    fn next(self, random: &mut Random) -> u64 {
        let size = match self {
            Self::Small => random.below(600),
            Self::Bulk => 70_000 + random.below(MESSAGE_MAX - 70_000),
            Self::Mixed => match random.below(6) {
                0 | 1 => random.below(300),
                2 => random.below(20_000),
                3 | 4 => random.one_of(&BORDERS) - 4 + random.below(8),
                _ => random.below(MESSAGE_MAX),
            },
        };
        size.max(1)
    }
}

/// What the peers of one service have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) connected: u64,
    pub(super) sent: u64,
    pub(super) received: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, more: Self) {
        self.connected += more.connected;
        self.sent += more.sent;
        self.received += more.received;
    }
}

#[derive(Debug)]
struct Talker {
    socket: Socket,
    service: usize,
    stream: u32,
    plan: Plan,
    sent: u64,
    received: u64,
    // Where the message ends that is being written.
    message_end: u64,
    half_closed: bool,
    // It does not read before this turn.
    silent_until: u64,
    told: EpollFlags,
    begun: Instant,
}

impl Talker {
    /// Whether the daemon may have stopped reading: it does so only of a one-shot connection.
    fn may_be_cut(&self, answer: Answer) -> bool {
        answer == Answer::First && self.begun.elapsed() >= LINGER
    }

    /// Whether it has bytes to write now.
    fn writes(&self) -> bool {
        let in_message = self.sent < self.message_end;
        in_message || self.may_begin() || self.may_end()
    }

    fn may_begin(&self) -> bool {
        // A peer that does not read can't know what is unanswered.
        let unanswered = self.sent - self.received.min(self.sent);
        self.sent < self.plan.total && (self.plan.deaf || unanswered <= self.plan.ahead)
    }

    fn may_end(&self) -> bool {
        self.sent >= self.plan.total && !self.half_closed && self.plan.ending != Ending::Stay
    }

    fn reads(&self, turn: u64) -> bool {
        !self.plan.deaf && turn >= self.silent_until
    }

    fn wish(&self, turn: u64) -> EpollFlags {
        let mut wish = EpollFlags::empty();
        wish.set(EpollFlags::EPOLLOUT, self.writes());
        wish.set(EpollFlags::EPOLLIN, self.reads(turn));
        wish
    }
}

/// What became of a peer in its turn.
#[derive(PartialEq, Eq)]
enum Turn {
    Nothing,
    Progress,
    Over,
}

/// See the file.
pub(super) struct Crowd {
    seed: u64,
    pub(super) random: Random,
    services: Vec<Service>,
    kernel: Epoll,
    talkers: Vec<Option<Talker>>,
    vacant: Vec<usize>,
    count: usize,
    next_stream: u32,
    tallies: Vec<Tally>,
    turn: u64,
    silent: Vec<usize>,
    progressed: Instant,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    expected: Vec<u8>,
}

impl Crowd {
    /// An empty crowd. Streams are numbered from `first_stream` on: no two crowds of one test may
    /// have the same, or a byte of one would be right for the other.
    pub(super) fn new(seed: u64, services: &[Service], first_stream: u32) -> Self {
        Self {
            seed,
            random: Random::new(seed ^ u64::from(first_stream) << 32),
            services: services.into(),
            kernel: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("an epoll"),
            talkers: Vec::new(),
            vacant: Vec::new(),
            count: 0,
            next_stream: first_stream,
            tallies: vec![Tally::default(); services.len()],
            turn: 0,
            silent: Vec::new(),
            progressed: Instant::now(),
            outgoing: vec![0; 64 * 1024],
            incoming: vec![0; 64 * 1024],
            expected: Vec::new(),
        }
    }

    /// How many are there.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// What the peers of each service have done until now.
    pub(super) fn tallies(&self) -> &[Tally] {
        &self.tallies
    }

    /// Connects another peer to a service.
    pub(super) fn add(&mut self, service: usize, mut plan: Plan) {
        if matches!(
            self.services[service].answer,
            Answer::Nothing | Answer::First
        ) {
            // Otherwise it would wait forever for answers before it sends more.
            plan.ahead = u64::MAX;
        }
        let begun = Instant::now();
        let socket = super::connect_with(&self.services[service].address, |socket| {
            // Little fills the kernel's buffers, and then those of the daemon. Without a bound thousands
            // of clients take all that TCP may have on this machine (`tcp_mem`, tcp(7)): then the kernel
            // drops what has arrived, again and again, and backs off for minutes.
            let bytes = if plan.deaf { 64 * 1024 } else { 256 * 1024 };
            socket.set_recv_buffer_size(bytes).expect("an option");
            socket.set_send_buffer_size(bytes).expect("an option");
        });
        socket.set_nonblocking(true).expect("an option");
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.talkers.push(None);
            self.talkers.len() - 1
        });
        let told = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT;
        let event = EpollEvent::new(told, index as u64);
        self.kernel.add(&socket, event).expect("it is new");
        self.talkers[index] = Some(Talker {
            socket,
            service,
            stream: self.next_stream,
            plan,
            sent: 0,
            received: 0,
            message_end: 0,
            half_closed: false,
            silent_until: 0,
            told,
            begun,
        });
        self.next_stream += 1;
        self.count += 1;
        self.tallies[service].connected += 1;
        self.progressed = Instant::now();
    }

    /// Lets each peer continue as far as it can; waits until one can, for `wait` at most. Returns
    /// whether one could.
    ///
    /// # Panics
    /// When a wrong byte arrives, or no peer makes progress for too long.
    pub(super) fn turn(&mut self, wait: Duration) -> bool {
        self.turn += 1;
        self.end_silences();
        // Silences are counted in turns.
        let wait = if self.silent.is_empty() {
            wait
        } else {
            wait.min(Duration::from_millis(1))
        };
        let mut events = [EpollEvent::empty(); 256];
        let timeout = EpollTimeout::try_from(wait).expect("a timeout");
        let count = match self.kernel.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => panic!("epoll: {error}"),
        };
        let mut progress = false;
        for event in &events[..count] {
            let index = event.data() as usize;
            let hangs_up = event
                .events()
                .intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
            match self.drive(index, hangs_up) {
                Turn::Nothing => {}
                Turn::Progress => progress = true,
                Turn::Over => {
                    progress = true;
                    self.remove(index);
                }
            }
        }
        if progress || self.count == 0 || !self.silent.is_empty() {
            self.progressed = Instant::now();
        }
        assert!(
            self.progressed.elapsed() < BACK_OFF,
            "seed {}: no peer makes progress: {:?}\n{}",
            self.seed,
            self.talkers.iter().flatten().collect::<Vec<_>>(),
            self.both_ends()
        );
        progress
    }

    /// What the kernel knows of some of the connections: the queues, timers and windows of both ends.
    fn both_ends(&self) -> String {
        let mut ports = self.talkers.iter().flatten().filter_map(|talker| {
            let local = talker.socket.local_addr().ok()?;
            Some(local.as_socket()?.port())
        });
        let first = ports.next().unwrap_or(0);
        let filter = ports
            .take(5)
            .fold(format!("sport = :{first}"), |filter, port| {
                format!("{filter} or sport = :{port}")
            });
        let filter = format!("{filter} or {}", filter.replace("sport", "dport"));
        let shown = std::process::Command::new("ss")
            .args(["-tnoemi", &filter])
            .output()
            .map(|output| text(&output.stdout));
        let memory = std::fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
        format!("{}\n{memory}", shown.unwrap_or_default())
    }

    /// Turns until each peer has done all of its plan.
    pub(super) fn finish(&mut self) {
        while self.count > 0 {
            self.turn(Duration::from_millis(100));
        }
    }

    /// Turns until no peer makes progress for a while.
    pub(super) fn stall(&mut self) {
        while self.turn(Duration::from_millis(100)) {}
    }

    /// Resets or closes all connections to a service, at once and whatever is under way.
    pub(super) fn kill(&mut self, service: usize) {
        self.kill_one_in(1, service);
    }

    /// The same for one in `count` of them.
    pub(super) fn kill_one_in(&mut self, count: u64, service: usize) {
        for index in 0..self.talkers.len() {
            let found = self.talkers[index].as_ref();
            if found.is_some_and(|talker| talker.service == service) && self.random.one_in(count) {
                self.kill_talker(index);
            }
        }
    }

    /// From now on the remaining peers read, and end as they should.
    pub(super) fn come_to_an_end(&mut self) {
        for index in 0..self.talkers.len() {
            if let Some(talker) = &mut self.talkers[index] {
                talker.plan.deaf = false;
                talker.plan.ending = Ending::HalfClose;
                talker.plan.total = talker.message_end.max(talker.sent);
                self.tell_kernel(index);
            }
        }
    }

    fn kill_talker(&mut self, index: usize) {
        let talker = self.talkers[index].as_ref().expect("it is there");
        if self.random.one_in(2) {
            let linger = Some(Duration::ZERO);
            talker.socket.set_linger(linger).expect("an option");
        }
        self.remove(index);
    }

    fn remove(&mut self, index: usize) {
        let talker = self.talkers[index].take().expect("it is there");
        // Closing is not enough: a child that another test has just started may hold a copy for a
        // moment (epoll(7), question 6).
        self.kernel.delete(&talker.socket).expect("it is known");
        self.silent.retain(|silent| *silent != index);
        self.vacant.push(index);
        self.count -= 1;
    }

    fn end_silences(&mut self) {
        for place in (0..self.silent.len()).rev() {
            let index = self.silent[place];
            let talker = self.talkers[index].as_ref().expect("it is there");
            if self.turn >= talker.silent_until {
                self.silent.swap_remove(place);
                self.tell_kernel(index);
            }
        }
    }

    fn tell_kernel(&mut self, index: usize) {
        let talker = self.talkers[index].as_mut().expect("it is there");
        let wish = talker.wish(self.turn);
        if wish != talker.told {
            talker.told = wish;
            let mut event = EpollEvent::new(wish, index as u64);
            self.kernel
                .modify(&talker.socket, &mut event)
                .expect("it is known");
        }
    }

    fn drive(&mut self, index: usize, hangs_up: bool) -> Turn {
        let wrote = self.write(index);
        if wrote == Turn::Over {
            return wrote;
        }
        let talker = self.talkers[index].as_mut().expect("it is there");
        let read = if talker.reads(self.turn) || hangs_up {
            self.read(index)
        } else {
            Turn::Nothing
        };
        if read == Turn::Over {
            return read;
        }
        self.tell_kernel(index);
        if read == Turn::Nothing { wrote } else { read }
    }

    fn write(&mut self, index: usize) -> Turn {
        let talker = self.talkers[index].as_mut().expect("it is there");
        let answer = self.services[talker.service].answer;
        let mut turn = Turn::Nothing;
        for _ in 0..BURST {
            if talker.sent == talker.message_end && talker.may_begin() {
                let size = talker.plan.sizes.next(&mut self.random);
                talker.message_end = (talker.sent + size).min(talker.plan.total);
            }
            let len = (talker.message_end - talker.sent).min(self.outgoing.len() as u64);
            if len == 0 {
                break;
            }
            let bytes = &mut self.outgoing[..len as usize];
            pattern::fill(talker.stream, talker.sent, bytes);
            match (&talker.socket).write(bytes) {
                Ok(len) => {
                    talker.sent += len as u64;
                    self.tallies[talker.service].sent += len as u64;
                    turn = Turn::Progress;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // The answer and the FIN are still to be read.
                Err(_) if talker.may_be_cut(answer) => {
                    talker.plan.total = talker.sent;
                    talker.message_end = talker.sent;
                    talker.half_closed = true;
                    return Turn::Progress;
                }
                Err(error) => panic!("seed {}: while writing: {error}: {talker:?}", self.seed),
            }
        }
        if !talker.may_end() {
            return turn;
        }
        match talker.plan.ending {
            Ending::HalfClose => {
                talker.half_closed = true;
                if let Err(error) = talker.socket.shutdown(Shutdown::Write) {
                    let is_cut = talker.may_be_cut(answer);
                    assert!(is_cut, "seed {}: {error}: {talker:?}", self.seed);
                }
                Turn::Progress
            }
            Ending::Reset => {
                let linger = Some(Duration::ZERO);
                talker.socket.set_linger(linger).expect("an option");
                Turn::Over
            }
            Ending::Close => Turn::Over,
            Ending::Stay => unreachable!("it stays"),
        }
    }

    fn read(&mut self, index: usize) -> Turn {
        let talker = self.talkers[index].as_mut().expect("it is there");
        let mut turn = Turn::Nothing;
        for _ in 0..BURST {
            // Small reads make the daemon's sends stall at odd places.
            let most = match self.random.below(4) {
                0 => 1 + self.random.below(1000),
                _ => self.incoming.len() as u64,
            };
            let piece = &mut self.incoming[..most as usize];
            let len = match (&talker.socket).read(piece) {
                Ok(0) => {
                    assert_ended(self.seed, &self.services[talker.service], talker);
                    return Turn::Over;
                }
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("seed {}: while reading: {error}: {talker:?}", self.seed),
            };
            let service = &self.services[talker.service];
            let right = pattern::compare(
                talker.stream,
                talker.received,
                service.answer == Answer::Upper,
                &piece[..len],
                &mut self.expected,
            );
            if let Err(wrong) = right {
                panic!("seed {}: {}: {wrong}: {talker:?}", self.seed, service.name);
            }
            talker.received += len as u64;
            self.tallies[talker.service].received += len as u64;
            let most = if service.answer == Answer::Nothing {
                0
            } else {
                talker.sent
            };
            assert!(
                talker.received <= most,
                "seed {}: {}: more comes than was sent: {talker:?}",
                self.seed,
                service.name
            );
            turn = Turn::Progress;
            if talker.plan.pauses && self.random.one_in(30) {
                talker.silent_until = self.turn + 1 + self.random.below(20);
                self.silent.push(index);
                break;
            }
        }
        turn
    }
}

/// Waits until a listener has no connections left.
///
/// The kernel ignores a reset that is not within the receive window (RFC 9293, section 3.10.7.4), and
/// the window of a client that never reads gets that small. Then a client that was killed is noticed
/// when the daemon's kernel next probes for room, after a back-off as above.
pub(super) fn wait_until_all_are_gone(daemon: &Daemon, listener: &str) {
    let deadline = Instant::now() + BACK_OFF;
    while daemon.connections(listener) > 0 {
        if Instant::now() >= deadline {
            let table = std::fs::read_to_string("/proc/net/tcp").expect("a table of sockets");
            let peers = daemon.ctl_text(&["peers"]);
            panic!("{listener} still has connections:\n{peers}{table}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The daemon's FIN has arrived: it must have been time for it.
fn assert_ended(seed: u64, service: &Service, talker: &Talker) {
    let right = match service.answer {
        Answer::Echo | Answer::Upper => talker.half_closed && talker.received == talker.sent,
        Answer::Nothing => talker.half_closed && talker.received == 0,
        Answer::First => (talker.received > 0) == (talker.sent > 0),
    };
    assert!(
        right,
        "seed {seed}: {}: an early end: {talker:?}",
        service.name
    );
    let error = talker.socket.take_error().expect("a socket's error");
    assert!(
        error.is_none() || talker.may_be_cut(service.answer),
        "seed {seed}: after the end: {error:?}"
    );
}
