//! A driver at work under the eyes of a test: turns it until something holds, keeps what it said,
//! and answers as a worker would.

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::harness::{Harness, Place};
use crate::driver::buffers::BUFFER_BYTES;
use crate::driver::sim::End;
use crate::driver::{Buffer, Closing, Completion, Driver, Op, Permits, Token};

/// A promise that is not kept by then is broken.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

/// How long one turn waits.
pub(super) const TURN: Duration = Duration::from_millis(5);

/// A [`Completion`] to look at: bytes instead of a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Accepted(Token, Token, Option<SocketAddr>),
    AcceptPaused(Token, Option<i32>),
    Received(Token, Vec<u8>),
    /// So many bytes received and so many sent, unseen.
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

/// What becomes of what arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Sent back; a connection that is owed much rests until it is owed little.
    Echo,
    /// The same, and the driver may send it back by itself.
    Relay,
    Discard,
    /// Held in `kept`.
    Keep,
}

/// A harness at work, and all that its driver has said.
pub(super) struct Stage<H: Harness> {
    pub(super) net: H,
    pub(super) driver: H::Driver,
    pub(super) answer: Answer,
    pub(super) kept: VecDeque<(Token, Buffer)>,
    pub(super) events: Vec<Event>,
    pub(super) owed: HashMap<Token, u32>,
    /// Whether a connection is paused that does not read.
    pub(super) pauses: bool,
    resting: Vec<Token>,
}

impl<H: Harness> Stage<H> {
    pub(super) fn new(answer: Answer) -> Self {
        Self::over(H::new(), answer)
    }

    /// Another driver in the same world.
    pub(super) fn beside(&self) -> Self {
        Self::over(self.net.beside(), self.answer)
    }

    fn over((net, driver): (H, H::Driver), answer: Answer) -> Self {
        Self {
            net,
            driver,
            answer,
            kept: VecDeque::new(),
            events: vec![],
            owed: HashMap::new(),
            pauses: true,
            resting: vec![],
        }
    }

    /// One wait, as a worker does it. Says how much happened.
    pub(super) fn turn(&mut self) -> usize {
        let mut done = vec![];
        let until = self.driver.now() + TURN;
        self.driver
            .wait(Some(until), &mut done)
            .expect("the driver goes on");
        let count = done.len();
        done.into_iter()
            .for_each(|completion| self.handle(completion));
        count
    }

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
                assert!(!bytes.is_empty(), "bytes are received, or the end is said");
                self.answer_with(connection, buffer);
                Event::Received(connection, bytes)
            }
            Completion::Relayed {
                connection,
                received,
                sent,
            } => {
                self.owe(connection, received.saturating_sub(sent));
                self.settle(connection, sent.saturating_sub(received));
                Event::Relayed(connection, received, sent)
            }
            Completion::Ended { connection } => Event::Ended(connection),
            Completion::Sent { connection, len } => {
                self.settle(connection, len);
                Event::Sent(connection, len)
            }
            Completion::Stalled { connection } => Event::Stalled(connection),
            Completion::Failed { connection, .. } => Event::Failed(connection),
            Completion::Datagrams { socket, buffer } => {
                self.note_datagrams(socket, &buffer);
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

    /// One event for each datagram of a buffer.
    fn note_datagrams(&mut self, socket: Token, buffer: &Buffer) {
        let size = self.driver.envelope(buffer).size;
        let count = self.driver.envelope(buffer).count(buffer.len() as usize);
        let mut rest = &*self.driver.bytes(buffer);
        for _ in 0..count {
            let (datagram, others) = rest.split_at(size.min(rest.len()));
            let sent = if count == 1 { size } else { datagram.len() };
            self.events
                .push(Event::Datagram(socket, datagram.to_vec(), sent));
            rest = others;
        }
        assert!(rest.is_empty(), "the envelope counts all bytes");
    }

    /// How many datagrams are done, and how many of them were sent.
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
        self.owe(connection, buffer.len());
        self.driver.submit(Op::Send { connection, buffer });
    }

    fn owe(&mut self, connection: Token, len: u32) {
        let owed = self.owed.entry(connection).or_default();
        *owed += len;
        let is_much = *owed >= BUFFER_BYTES as u32;
        if self.pauses && is_much && !self.resting.contains(&connection) {
            self.resting.push(connection);
            self.driver.submit(Op::Pause { connection });
        }
    }

    /// Asks for what arrives, in the way in which it is answered.
    pub(super) fn receive(&mut self, connection: Token) {
        self.driver.submit(if self.answer == Answer::Relay {
            Op::Relay { connection }
        } else {
            Op::Receive { connection }
        });
    }

    /// Receives nothing more, until told otherwise by the test itself.
    pub(super) fn rest(&mut self, connection: Token) {
        self.resting.retain(|&resting| resting != connection);
        self.driver.submit(Op::Pause { connection });
    }

    /// Relays no more, but echoes what is shown.
    pub(super) fn show(&mut self, connection: Token) {
        self.resting.retain(|&resting| resting != connection);
        self.answer = Answer::Echo;
        self.receive(connection);
    }

    pub(super) fn settle(&mut self, connection: Token, len: u32) {
        let owed = self
            .owed
            .get_mut(&connection)
            .expect("only what was sent is Sent");
        *owed = owed
            .checked_sub(len)
            .expect("no more is Sent than was sent");
        if *owed == 0
            && let Some(place) = self
                .resting
                .iter()
                .position(|&resting| resting == connection)
        {
            self.resting.swap_remove(place);
            self.receive(connection);
        }
    }

    /// Turns until something holds.
    pub(super) fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !holds(self) {
            assert!(
                Instant::now() < deadline,
                "not within {DEADLINE:?}: {what}; {}",
                self.seen()
            );
            self.turn();
        }
    }

    /// Turns until nothing has happened for a while. A wait that brings nothing before its time is
    /// no rest: a driver that spins never comes to it.
    pub(super) fn until_quiet(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        let mut quiet = 0;
        while quiet < 4 {
            assert!(
                Instant::now() < deadline,
                "no rest within {DEADLINE:?}; {}",
                self.seen()
            );
            let until = self.driver.now() + TURN;
            match self.turn() {
                0 if self.driver.now() >= until => quiet += 1,
                0 => {}
                _ => quiet = 0,
            }
        }
    }

    pub(super) fn seen(&self) -> String {
        let last = &self.events[self.events.len().saturating_sub(20)..];
        let texts: Vec<String> = last
            .iter()
            .map(|event| format!("{event:?}").chars().take(120).collect())
            .collect();
        format!("seen {} events, at last {texts:#?}", self.events.len())
    }

    pub(super) fn count(&self, is: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|event| is(event)).count()
    }

    pub(super) fn has(&self, event: &Event) -> bool {
        self.events.contains(event)
    }

    pub(super) fn until_event(&mut self, event: &Event) {
        self.until(&format!("{event:?}"), |stage| stage.has(event));
    }

    pub(super) fn received(&self, connection: Token) -> Vec<u8> {
        let bytes = self.events.iter().filter_map(|event| match event {
            Event::Received(about, bytes) if *about == connection => Some(&bytes[..]),
            _ => None,
        });
        bytes.collect::<Vec<_>>().concat()
    }

    /// The connections accepted so far, in order.
    pub(super) fn accepted(&self) -> Vec<Token> {
        let accepted = self.events.iter().filter_map(|event| match event {
            Event::Accepted(_, connection, _) => Some(*connection),
            _ => None,
        });
        accepted.collect()
    }

    /// A listener that accepts.
    pub(super) fn listener(&mut self, permits: Option<Arc<Permits>>) -> (Token, H::Address) {
        let (socket, address) = self.net.listen(Place::V4).expect("every machine has IPv4");
        let listener = self.driver.add_listener(socket, permits);
        self.driver.submit(Op::Accept { listener });
        (listener, address)
    }

    pub(super) fn listener_at(&mut self, place: Place) -> H::Address {
        let (socket, address) = self
            .net
            .listen(place)
            .expect("every machine has such a place");
        let listener = self.driver.add_listener(socket, None);
        self.driver.submit(Op::Accept { listener });
        address
    }

    pub(super) fn connect(&mut self, to: &H::Address) -> H::Peer {
        self.net.connect(to).expect("the listener has room")
    }

    /// One more connection, accepted, and received from.
    pub(super) fn connection(&mut self, to: &H::Address) -> (H::Peer, Token) {
        let before = self.accepted().len();
        let peer = self.connect(to);
        self.until("the peer is accepted", |stage| {
            stage.accepted().len() > before
        });
        let connection = self.accepted()[before];
        self.receive(connection);
        (peer, connection)
    }

    /// Bytes that were received on the connection and kept, as a buffer to send.
    pub(super) fn buffer(&mut self, peer: &mut H::Peer, bytes: &[u8]) -> Buffer {
        let answer = std::mem::replace(&mut self.answer, Answer::Keep);
        let before = self.kept.len();
        self.write_all(peer, bytes);
        self.until("the bytes are received", |stage| stage.kept.len() > before);
        self.answer = answer;
        self.kept.pop_back().expect("one more is kept").1
    }

    pub(super) fn write_all(&mut self, peer: &mut H::Peer, bytes: &[u8]) {
        let mut written = 0;
        self.until("the peer could write", |stage| {
            written += stage.net.write(peer, &bytes[written..]);
            written == bytes.len()
        });
    }

    /// What the peer reads until there are so many bytes.
    pub(super) fn read(&mut self, peer: &mut H::Peer, len: usize) -> Vec<u8> {
        let mut bytes = vec![];
        self.until("the peer could read", |stage| {
            let end = stage.net.read(peer, len - bytes.len(), &mut bytes);
            assert!(
                end.is_none() || bytes.len() >= len,
                "{end:?} after {} of {len} bytes",
                bytes.len()
            );
            bytes.len() >= len
        });
        bytes
    }

    pub(super) fn read_end(&mut self, peer: &mut H::Peer) -> (Vec<u8>, End) {
        let (mut bytes, mut end) = (vec![], None);
        self.until("the peer sees the end", |stage| {
            end = stage.net.read(peer, usize::MAX, &mut bytes);
            end.is_some()
        });
        (bytes, end.expect("the end was seen"))
    }

    /// Writes and reads at the same time, and compares.
    pub(super) fn echo(&mut self, peer: &mut H::Peer, bytes: &[u8]) {
        let (mut written, mut back) = (0, vec![]);
        self.until("all came back", |stage| {
            written += stage.net.write(peer, &bytes[written..]);
            let end = stage.net.read(peer, usize::MAX, &mut back);
            assert!(
                end.is_none(),
                "{end:?} after {} of {} bytes",
                back.len(),
                bytes.len()
            );
            back.len() >= bytes.len()
        });
        assert!(
            back == bytes,
            "the bytes that came back are those that were sent"
        );
    }

    /// A connection whose peer wrote, in echo, until a send stalled and all came to rest.
    pub(super) fn stalled(&mut self, to: &H::Address) -> (H::Peer, Token, usize) {
        let (mut peer, connection) = self.connection(to);
        let mut written = 0;
        self.until("a send stalls for good", |stage| {
            written += stage.net.write(&mut peer, &pattern(written, BUFFER_BYTES));
            stage.until_quiet();
            stage.owed.get(&connection).is_some_and(|&owed| owed > 0)
                && stage.has(&Event::Stalled(connection))
        });
        (peer, connection, written)
    }

    pub(super) fn close(&mut self, token: Token, how: Closing) {
        self.driver.submit(Op::Close { token, how });
        self.until_event(&Event::Closed(token));
    }

    /// Every buffer can be leased at the same time, so every buffer is at home.
    pub(super) fn assert_all_home(&mut self) {
        assert!(self.kept.is_empty(), "the test itself holds buffers");
        self.answer = Answer::Keep;
        let (listener, address) = self.listener(None);
        let (mut peer, connection) = self.connection(&address);
        for count in 1..=H::BUFFERS {
            self.write_all(&mut peer, b".");
            self.until("one more buffer is at home", |stage| {
                stage.kept.len() == count
            });
        }
        for (_, buffer) in std::mem::take(&mut self.kept) {
            self.driver.recycle(buffer);
        }
        self.close(connection, Closing::Now);
        self.close(listener, Closing::Now);
    }

    /// A datagram socket that receives.
    pub(super) fn datagrams(&mut self, place: Place) -> Option<(Token, H::Address)> {
        let (socket, address) = self.net.bind(place)?;
        let socket = self.driver.add_datagram_socket(socket);
        self.driver.submit(Op::ReceiveFrom { socket });
        Some((socket, address))
    }

    pub(super) fn answer_to(&mut self, client: &mut H::Client) -> (Option<SocketAddr>, Vec<u8>) {
        let mut answer = None;
        self.until("an answer came", |stage| {
            answer = stage.net.receive(client);
            answer.is_some()
        });
        answer.expect("an answer came")
    }
}

/// Bytes of which any piece tells where in the stream it belongs.
pub(super) fn pattern(start: usize, len: usize) -> Vec<u8> {
    (start..start + len)
        .map(|place| (place % 251) as u8 ^ (place / 251) as u8)
        .collect()
}
