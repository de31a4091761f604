//! A driver under test: calls `wait` until a condition holds, records the completions, and answers
//! them as a worker would.
//!
//! It knows no promise itself, except that every completion must make sense: bytes are not empty,
//! and no more is reported as sent than was submitted.

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::harness::{Harness, SocketKind};
use crate::driver::buffers::BUFFER_BYTES;
use crate::driver::sim::End;
use crate::driver::{Buffer, Closing, Completion, Driver, Op, Permits, Token};

/// A test fails when a condition does not hold after this time. Generous: the machine may be busy.
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// How long one turn waits at most.
pub(super) const TURN: Duration = Duration::from_millis(5);

/// A [`Completion`] that can be compared: bytes instead of a buffer, an error code instead of an
/// error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Accepted(Token, Token, Option<SocketAddr>),
    AcceptPaused(Token, Option<i32>),
    Received(Token, Vec<u8>),
    /// The numbers of bytes received and sent.
    Relayed(Token, u32, u32),
    Ended(Token),
    Sent(Token, u32),
    Stalled(Token),
    Failed(Token),
    Datagram(Token, Vec<u8>, usize),
    DatagramSent(Token, u32, Result<u32, ErrorKind>),
    Closed(Token),
    Detached(Token),
    Woken,
}

impl Event {
    pub(super) fn is_about(&self, token: Token) -> bool {
        match self {
            Self::Accepted(listener, connection, _) => *listener == token || *connection == token,
            Self::AcceptPaused(about, _) | Self::Received(about, _) | Self::Ended(about) => {
                *about == token
            }
            Self::Relayed(about, ..) => *about == token,
            Self::Sent(about, _) | Self::Stalled(about) | Self::Failed(about) => *about == token,
            Self::Datagram(about, ..) | Self::DatagramSent(about, ..) => *about == token,
            Self::Closed(about) | Self::Detached(about) => *about == token,
            Self::Woken => false,
        }
    }
}

/// What a test does with the bytes and datagrams that it receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Send them back. A connection with many unsent bytes is paused until they are sent.
    Echo,
    /// The same, and allow the driver to relay.
    Relay,
    /// Return the buffer at once.
    Discard,
    /// Keep the buffer in `kept`.
    Keep,
}

/// A driver, its network, and every event that the driver has reported.
pub(super) struct DriverTest<H: Harness> {
    pub(super) network: H,
    pub(super) driver: H::Driver,
    pub(super) answer: Answer,
    pub(super) kept: VecDeque<(Token, Buffer)>,
    pub(super) events: Vec<Event>,
    /// For each connection, how many bytes were submitted and not yet reported as sent.
    pub(super) unsent: HashMap<Token, u32>,
    /// Whether to pause a connection whose peer does not read.
    pub(super) pauses: bool,
    paused: Vec<Token>,
}

impl<H: Harness> DriverTest<H> {
    pub(super) fn new(answer: Answer) -> Self {
        Self::from_parts(H::new(), answer)
    }

    /// Another driver on the same network.
    pub(super) fn another(&self) -> Self {
        Self::from_parts(self.network.another(), self.answer)
    }

    fn from_parts((network, driver): (H, H::Driver), answer: Answer) -> Self {
        Self {
            network,
            driver,
            answer,
            kept: VecDeque::new(),
            events: vec![],
            unsent: HashMap::new(),
            pauses: true,
            paused: vec![],
        }
    }

    /// Waits once and handles the completions, as a worker does. Returns how many there were.
    pub(super) fn turn(&mut self) -> usize {
        let mut done = vec![];
        let until = self.driver.now() + TURN;
        self.driver
            .wait(Some(until), &mut done)
            .expect("the driver can continue");
        let count = done.len();
        done.into_iter()
            .for_each(|completion| self.handle(completion));
        count
    }

    /// Answers one completion and records it.
    pub(super) fn handle(&mut self, completion: Completion) {
        let event = match completion {
            Completion::Accepted {
                listener,
                connection,
                peer,
                ..
            } => Event::Accepted(listener, connection, peer),
            Completion::AcceptPaused { listener, error } => Event::AcceptPaused(
                listener,
                error.map(|error| error.raw_os_error().unwrap_or(0)),
            ),
            Completion::Received { connection, buffer } => {
                let bytes = self.driver.bytes(&buffer).to_vec();
                assert!(!bytes.is_empty(), "Received without bytes instead of Ended");
                self.answer_with(connection, buffer);
                Event::Received(connection, bytes)
            }
            Completion::Relayed {
                connection,
                received,
                sent,
            } => {
                // Bytes received and not sent are held by the driver until they are sent.
                self.add_unsent(connection, received.saturating_sub(sent));
                self.subtract_unsent(connection, sent.saturating_sub(received));
                Event::Relayed(connection, received, sent)
            }
            Completion::Ended { connection } => Event::Ended(connection),
            Completion::Sent { connection, len } => {
                self.subtract_unsent(connection, len);
                Event::Sent(connection, len)
            }
            Completion::Stalled { connection } => Event::Stalled(connection),
            Completion::Failed { connection, .. } => Event::Failed(connection),
            Completion::Datagrams { socket, buffer } => {
                self.record_datagrams(socket, &buffer);
                match self.answer {
                    Answer::Echo | Answer::Relay => {
                        self.driver.submit(Op::SendTo { socket, buffer })
                    }
                    Answer::Discard => self.driver.recycle(buffer),
                    Answer::Keep => self.kept.push_back((socket, buffer)),
                }
                return;
            }
            Completion::DatagramSent {
                socket,
                count,
                result,
            } => Event::DatagramSent(socket, count, result.map_err(|error| error.kind())),
            Completion::Closed { token } => Event::Closed(token),
            Completion::Detached { connection } => Event::Detached(connection),
            Completion::Woken => Event::Woken,
        };
        self.events.push(event);
    }

    /// Records one event for each datagram of a buffer.
    fn record_datagrams(&mut self, socket: Token, buffer: &Buffer) {
        let size = self.driver.envelope(buffer).size;
        let count = self.driver.envelope(buffer).count(buffer.len() as usize);
        let mut rest = &*self.driver.bytes(buffer);
        for _ in 0..count {
            let (datagram, others) = rest.split_at(size.min(rest.len()));
            // A single datagram may have been truncated: the envelope has its original size.
            let sent = if count == 1 { size } else { datagram.len() };
            self.events
                .push(Event::Datagram(socket, datagram.to_vec(), sent));
            rest = others;
        }
        assert!(
            rest.is_empty(),
            "the envelope counts fewer bytes than the buffer holds"
        );
    }

    /// How many datagrams are reported as done, and how many of those were sent without an error.
    pub(super) fn datagrams_done(&self) -> (u32, u32) {
        let counts = self.events.iter().filter_map(|event| match event {
            Event::DatagramSent(_, count, result) => Some((*count, result.is_ok())),
            _ => None,
        });
        counts.fold((0, 0), |(done, sent), (count, ok)| {
            (done + count, sent + if ok { count } else { 0 })
        })
    }

    pub(super) fn answer_with(&mut self, connection: Token, buffer: Buffer) {
        match self.answer {
            Answer::Echo | Answer::Relay => self.send(connection, buffer),
            Answer::Discard => self.driver.recycle(buffer),
            Answer::Keep => self.kept.push_back((connection, buffer)),
        }
    }

    pub(super) fn send(&mut self, connection: Token, buffer: Buffer) {
        self.add_unsent(connection, buffer.len());
        self.driver.submit(Op::Send { connection, buffer });
    }

    /// Adds unsent bytes, and pauses a connection that has many.
    fn add_unsent(&mut self, connection: Token, len: u32) {
        let unsent = self.unsent.entry(connection).or_default();
        *unsent += len;
        let is_much = *unsent >= BUFFER_BYTES as u32;
        if self.pauses && is_much && !self.paused.contains(&connection) {
            self.paused.push(connection);
            self.driver.submit(Op::Pause { connection });
        }
    }

    /// Submits `Relay` or `Receive`, whichever fits the answer.
    pub(super) fn receive(&mut self, connection: Token) {
        self.driver.submit(if self.answer == Answer::Relay {
            Op::Relay { connection }
        } else {
            Op::Receive { connection }
        });
    }

    /// Pauses a connection until the test itself resumes it.
    pub(super) fn pause(&mut self, connection: Token) {
        self.paused.retain(|&paused| paused != connection);
        self.driver.submit(Op::Pause { connection });
    }

    /// Ends relaying, and echoes what is delivered.
    pub(super) fn stop_relaying(&mut self, connection: Token) {
        self.paused.retain(|&paused| paused != connection);
        self.answer = Answer::Echo;
        self.receive(connection);
    }

    /// Subtracts sent bytes, and resumes a paused connection when none are unsent.
    pub(super) fn subtract_unsent(&mut self, connection: Token, len: u32) {
        let unsent = self
            .unsent
            .get_mut(&connection)
            .expect("Sent follows a Send");
        *unsent = unsent
            .checked_sub(len)
            .expect("no more bytes are Sent than were submitted");
        if *unsent == 0
            && let Some(index) = self.paused.iter().position(|&paused| paused == connection)
        {
            self.paused.swap_remove(index);
            self.receive(connection);
        }
    }

    /// Waits until a condition holds; panics after `DEADLINE`.
    pub(super) fn until(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !condition(self) {
            assert!(
                Instant::now() < deadline,
                "not within {DEADLINE:?}: {what}; {}",
                self.recent_events()
            );
            self.turn();
        }
    }

    /// Waits until several waits have reported nothing. A wait that returns early and empty does
    /// not count, so a driver that spins is not quiet.
    pub(super) fn until_quiet(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        let mut quiet = 0;
        while quiet < 4 {
            assert!(
                Instant::now() < deadline,
                "not quiet within {DEADLINE:?}; {}",
                self.recent_events()
            );
            let until = self.driver.now() + TURN;
            match self.turn() {
                0 if self.driver.now() >= until => quiet += 1,
                0 => {}
                _ => quiet = 0,
            }
        }
    }

    /// The last events, for a panic message.
    pub(super) fn recent_events(&self) -> String {
        let last = &self.events[self.events.len().saturating_sub(20)..];
        let texts: Vec<String> = last
            .iter()
            .map(|event| format!("{event:?}").chars().take(120).collect())
            .collect();
        format!("{} events, the last ones are {texts:#?}", self.events.len())
    }

    pub(super) fn count(&self, is: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|event| is(event)).count()
    }

    pub(super) fn has(&self, event: &Event) -> bool {
        self.events.contains(event)
    }

    pub(super) fn until_event(&mut self, event: &Event) {
        self.until(&format!("{event:?} is reported"), |test| test.has(event));
    }

    /// All bytes received on a connection.
    pub(super) fn received(&self, connection: Token) -> Vec<u8> {
        let bytes = self.events.iter().filter_map(|event| match event {
            Event::Received(about, bytes) if *about == connection => Some(&bytes[..]),
            _ => None,
        });
        bytes.collect::<Vec<_>>().concat()
    }

    /// All connections accepted, in order.
    pub(super) fn accepted(&self) -> Vec<Token> {
        let accepted = self.events.iter().filter_map(|event| match event {
            Event::Accepted(_, connection, _) => Some(*connection),
            _ => None,
        });
        accepted.collect()
    }

    /// Adds an IPv4 listener and starts accepting.
    pub(super) fn listener(&mut self, permits: Option<Arc<Permits>>) -> (Token, H::Address) {
        let (socket, address) = self
            .network
            .listen(SocketKind::Ipv4)
            .expect("IPv4 is available");
        let listener = self.driver.add_listener(socket, permits);
        self.driver.submit(Op::Accept { listener });
        (listener, address)
    }

    /// Adds a listener of this kind and starts accepting.
    pub(super) fn listener_at(&mut self, kind: SocketKind) -> H::Address {
        let (socket, address) = self
            .network
            .listen(kind)
            .expect("this kind of socket is available");
        let listener = self.driver.add_listener(socket, None);
        self.driver.submit(Op::Accept { listener });
        address
    }

    pub(super) fn connect(&mut self, to: &H::Address) -> H::Peer {
        self.network.connect(to).expect("the listen queue has room")
    }

    /// Connects a peer, and starts receiving once it is accepted.
    pub(super) fn connection(&mut self, to: &H::Address) -> (H::Peer, Token) {
        let before = self.accepted().len();
        let peer = self.connect(to);
        self.until("the client is accepted", |test| {
            test.accepted().len() > before
        });
        let connection = self.accepted()[before];
        self.receive(connection);
        (peer, connection)
    }

    /// Has the peer write these bytes, and returns the buffer in which they were received.
    pub(super) fn buffer(&mut self, peer: &mut H::Peer, bytes: &[u8]) -> Buffer {
        let answer = std::mem::replace(&mut self.answer, Answer::Keep);
        let before = self.kept.len();
        self.write_all(peer, bytes);
        self.until("the bytes are received", |test| test.kept.len() > before);
        self.answer = answer;
        self.kept.pop_back().expect("the buffer is kept").1
    }

    pub(super) fn write_all(&mut self, peer: &mut H::Peer, bytes: &[u8]) {
        let mut written = 0;
        self.until("the peer has written all bytes", |test| {
            written += test.network.write(peer, &bytes[written..]);
            written == bytes.len()
        });
    }

    /// Reads `len` bytes as the peer.
    pub(super) fn read(&mut self, peer: &mut H::Peer, len: usize) -> Vec<u8> {
        let mut bytes = vec![];
        self.until("the peer has read all bytes", |test| {
            let end = test.network.read(peer, len - bytes.len(), &mut bytes);
            assert!(
                end.is_none() || bytes.len() >= len,
                "{end:?} after {} of {len} bytes",
                bytes.len()
            );
            bytes.len() >= len
        });
        bytes
    }

    /// Reads as the peer until the connection ends.
    pub(super) fn read_end(&mut self, peer: &mut H::Peer) -> (Vec<u8>, End) {
        let (mut bytes, mut end) = (vec![], None);
        self.until("the peer sees the end", |test| {
            end = test.network.read(peer, usize::MAX, &mut bytes);
            end.is_some()
        });
        (bytes, end.expect("the peer has seen the end"))
    }

    /// Writes as the peer, reading at the same time, and compares what is echoed.
    pub(super) fn echo(&mut self, peer: &mut H::Peer, bytes: &[u8]) {
        let (mut written, mut echoed) = (0, vec![]);
        self.until("all bytes are echoed", |test| {
            written += test.network.write(peer, &bytes[written..]);
            let end = test.network.read(peer, usize::MAX, &mut echoed);
            assert!(
                end.is_none(),
                "{end:?} after {} of {} bytes",
                echoed.len(),
                bytes.len()
            );
            echoed.len() >= bytes.len()
        });
        assert!(echoed == bytes, "the echoed bytes differ from those sent");
    }

    /// A connection whose peer wrote without reading until the echo stalled. Also returns how many
    /// bytes it wrote.
    pub(super) fn stalled(&mut self, to: &H::Address) -> (H::Peer, Token, usize) {
        let (mut peer, connection) = self.connection(to);
        let mut written = 0;
        self.until("a send stays stalled", |test| {
            written += test
                .network
                .write(&mut peer, &pattern(written, BUFFER_BYTES));
            test.until_quiet();
            test.unsent
                .get(&connection)
                .is_some_and(|&unsent| unsent > 0)
                && test.has(&Event::Stalled(connection))
        });
        (peer, connection, written)
    }

    pub(super) fn close(&mut self, token: Token, how: Closing) {
        self.driver.submit(Op::Close { token, how });
        self.until_event(&Event::Closed(token));
    }

    /// Panics unless every buffer can be used at the same time, so that none was lost.
    pub(super) fn assert_all_returned(&mut self) {
        assert!(self.kept.is_empty(), "the test itself holds buffers");
        self.answer = Answer::Keep;
        let (listener, address) = self.listener(None);
        let (mut peer, connection) = self.connection(&address);
        for count in 1..=H::BUFFERS {
            self.write_all(&mut peer, b".");
            self.until("one more buffer is available", |test| {
                test.kept.len() == count
            });
        }
        for (_, buffer) in std::mem::take(&mut self.kept) {
            self.driver.recycle(buffer);
        }
        self.close(connection, Closing::Now);
        self.close(listener, Closing::Now);
    }

    /// Adds a datagram socket and starts receiving; none if the machine lacks this kind.
    pub(super) fn datagrams(&mut self, kind: SocketKind) -> Option<(Token, H::Address)> {
        let (socket, address) = self.network.bind(kind)?;
        let socket = self.driver.add_datagram_socket(socket);
        self.driver.submit(Op::ReceiveFrom { socket });
        Some((socket, address))
    }

    pub(super) fn reply_to(&mut self, client: &mut H::Client) -> (Option<SocketAddr>, Vec<u8>) {
        let mut answer = None;
        self.until("a reply is received", |test| {
            answer = test.network.receive(client);
            answer.is_some()
        });
        answer.expect("a reply is received")
    }
}

/// Bytes that depend on their position in the stream, so that lost, repeated and reordered bytes
/// are found.
pub(super) fn pattern(start: usize, len: usize) -> Vec<u8> {
    (start..start + len)
        .map(|position| (position % 251) as u8 ^ (position / 251) as u8)
        .collect()
}
