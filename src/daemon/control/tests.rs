//! The control socket with real clients and a simulated clock.
//!
//! Most tests drive the server from the same thread as the client, so that each turn is visible.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde_json::json;

use super::connection::{REPLY_TIME_MAX, REQUEST_TIME_MAX};
use super::spare::SPARE_DESCRIPTORS;
use super::*;
use crate::driver::Details;
use crate::worker::mailbox::{ListenerId, Order, SocketKind};
use crate::worker::selection::Candidate;

struct Fixture {
    server: Server,
    path: PathBuf,
    now: Instant,
    _directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let server = Server::bind(&path, 0o600, None).unwrap();
        let now = server.now;
        Self {
            server,
            path,
            now,
            _directory: directory,
        }
    }

    fn client(&self) -> UnixStream {
        let client = UnixStream::connect(&self.path).unwrap();
        let limit = Some(Duration::from_secs(10));
        client.set_read_timeout(limit).unwrap();
        client
    }

    fn turn(&mut self) -> Vec<Call> {
        self.server.turn(self.now)
    }

    /// Turns until nothing more happens, and answers each request with its own parameters.
    fn serve(&mut self) -> usize {
        let mut answered = 0;
        for _ in 0..1000 {
            let calls = self.turn();
            if calls.is_empty() && !self.busy() {
                return answered;
            }
            answered += calls.len();
            for call in calls {
                let reply = wire::Reply::done(call.request.parameters);
                self.server.reply(call.id, Reply::One(reply), self.now);
            }
        }
        panic!("the server spins");
    }

    /// Whether there is something to do without any time passing.
    fn busy(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut fds = [PollFd::new(self.server.as_fd(), PollFlags::POLLIN)];
        let due = self.server.poll_timeout();
        poll(&mut fds, PollTimeout::ZERO).unwrap() > 0 || due.is_some_and(|due| due <= self.now)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }
}

fn request(number: u64) -> Vec<u8> {
    let parameters = json!({ "number": number });
    let parameters = parameters.as_object().unwrap().clone();
    Request {
        method: "a.B".to_owned(),
        parameters,
        ..Request::default()
    }
    .encode()
}

fn read_reply(client: &mut UnixStream) -> Option<wire::Reply> {
    let mut message = Vec::new();
    let mut byte = [0];
    loop {
        match client.read(&mut byte) {
            Ok(0) => return None,
            Err(cause) if cause.kind() == ErrorKind::ConnectionReset => return None,
            Err(cause) => panic!("{cause}"),
            Ok(_) if byte[0] == 0 => return Some(wire::Reply::decode(&message).unwrap()),
            Ok(_) => message.push(byte[0]),
        }
    }
}

/// A peer with this id, as a worker finds it.
pub(super) fn peer(id: u64) -> mailbox::Peer {
    let now = Instant::now();
    let candidate = Candidate {
        id,
        listener: "main",
        source: None,
        opened: now,
        active: now,
        bytes_received: 0,
        bytes_sent: 0,
    };
    mailbox::Peer {
        id,
        rank: Order::Id.rank(&candidate, || None),
        listener: ListenerId(0),
        kind: SocketKind::Stream,
        source: None,
        destination: None,
        age: Duration::ZERO,
        idle: Duration::ZERO,
        bytes_received: 0,
        bytes_sent: 0,
        details: Details::default(),
    }
}

#[test]
fn a_request_is_answered_and_its_caller_known() {
    let mut fixture = Fixture::new();
    let mut client = fixture.client();
    client.write_all(&request(7)).unwrap();
    let mut calls = fixture.turn();
    calls.append(&mut fixture.turn());
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].caller.pid, nix::unistd::getpid().as_raw());
    assert_eq!(calls[0].caller.uid, nix::unistd::getuid().as_raw());
    let reply = Reply::One(wire::Reply::done(calls[0].request.parameters.clone()));
    fixture.server.reply(calls[0].id, reply, fixture.now);
    assert_eq!(read_reply(&mut client).unwrap().parameters["number"], 7);
}

#[test]
fn a_request_in_pieces_is_one_request() {
    let mut fixture = Fixture::new();
    let mut client = fixture.client();
    for byte in request(7) {
        assert_eq!(fixture.serve(), 0);
        client.write_all(&[byte]).unwrap();
    }
    assert_eq!(fixture.serve(), 1);
}

#[test]
fn the_next_request_waits_for_the_reply_to_the_one_before() {
    let mut fixture = Fixture::new();
    let mut client = fixture.client();
    client
        .write_all(&[request(1), request(2)].concat())
        .unwrap();
    fixture.turn();
    let first = fixture.turn();
    assert_eq!(first.len(), 1);
    assert!(!fixture.busy() && fixture.turn().is_empty());
    let reply = Reply::One(wire::Reply::default());
    fixture.server.reply(first[0].id, reply, fixture.now);
    assert!(fixture.busy(), "the next one is here already");
    assert_eq!(fixture.serve(), 1);
    read_reply(&mut client).unwrap();
    assert_eq!(read_reply(&mut client).unwrap().parameters["number"], 2);
}

#[test]
fn a_request_that_wants_no_reply_gets_none() {
    let mut fixture = Fixture::new();
    let mut client = fixture.client();
    let oneway = Request {
        method: "a.B".to_owned(),
        oneway: true,
        ..Request::default()
    };
    client.write_all(&oneway.encode()).unwrap();
    client.write_all(&request(2)).unwrap();
    assert_eq!(fixture.serve(), 2);
    assert_eq!(read_reply(&mut client).unwrap().parameters["number"], 2);
}

#[test]
fn a_client_that_half_closes_gets_its_answers() {
    let mut fixture = Fixture::new();
    let mut client = fixture.client();
    client
        .write_all(&[request(1), request(2)].concat())
        .unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(fixture.serve(), 2);
    assert_eq!(read_reply(&mut client).unwrap().parameters["number"], 1);
    assert_eq!(read_reply(&mut client).unwrap().parameters["number"], 2);
    assert_eq!(read_reply(&mut client), None);
    assert!(fixture.server.connections.is_empty());
}

#[test]
fn a_client_that_is_gone_before_the_answer_is_no_mistake_and_no_spin() {
    let mut fixture = Fixture::new();
    let mut client = fixture.client();
    client.write_all(&request(1)).unwrap();
    fixture.turn();
    let calls = fixture.turn();
    drop(client);
    assert!(!fixture.busy());
    let reply = Reply::One(wire::Reply::default());
    fixture.server.reply(calls[0].id, reply, fixture.now);
    assert!(fixture.server.connections.is_empty());
}

#[test]
fn rubbish_ends_its_own_connection_and_no_other() {
    let mut fixture = Fixture::new();
    let mut good = fixture.client();
    for rubbish in [
        &b"GET / HTTP/1.1\r\n\r\n\0"[..],
        b"\0",
        b"{}\0",
        b"\xff\xfe\0",
    ] {
        let mut bad = fixture.client();
        bad.write_all(rubbish).unwrap();
        fixture.serve();
        assert_eq!(read_reply(&mut bad), None);
    }
    good.write_all(&request(1)).unwrap();
    assert_eq!(fixture.serve(), 1);
    assert!(read_reply(&mut good).is_some());
}

#[test]
fn a_flood_without_end_is_cut_off_at_64_kib() {
    let mut fixture = Fixture::new();
    let mut client = fixture.client();
    client.set_nonblocking(true).unwrap();
    let mut sent = 0;
    loop {
        match client.write(&[b'x'; 4096]) {
            Ok(len) => sent += len,
            Err(cause) if cause.kind() == ErrorKind::WouldBlock => {
                fixture.turn();
            }
            Err(_) => break,
        }
        assert!(sent < 1 << 20, "it is cut off");
    }
    assert!(fixture.server.connections.is_empty());
}

#[test]
fn the_ninth_connection_of_a_user_is_refused() {
    let mut fixture = Fixture::new();
    let mut clients: Vec<UnixStream> = (0..9).map(|_| fixture.client()).collect();
    fixture.serve();
    assert_eq!(fixture.server.connections.len(), 8);
    assert_eq!(read_reply(&mut clients[8]), None);
    clients[0].write_all(&request(1)).unwrap();
    fixture.serve();
    assert!(read_reply(&mut clients[0]).is_some());
    drop(clients);
    fixture.serve();
    let mut late = fixture.client();
    late.write_all(&request(2)).unwrap();
    assert_eq!(fixture.serve(), 1);
}

/// The new connection was accepted before the end of the other one was seen.
#[test]
fn a_client_that_closes_its_connection_can_open_another_at_once() {
    let mut fixture = Fixture::new();
    let mut clients: Vec<UnixStream> = (0..8).map(|_| fixture.client()).collect();
    fixture.serve();
    clients[0].write_all(&request(1)).unwrap();
    let calls = fixture.turn();
    let reply = Reply::One(wire::Reply::default());
    fixture.server.reply(calls[0].id, reply, fixture.now);
    drop(clients.remove(0));
    let mut next = fixture.client();
    next.write_all(&request(2)).unwrap();
    assert_eq!(fixture.serve(), 1);
    assert!(read_reply(&mut next).is_some());
}

/// All were accepted in one turn, whose events were of the time before the others were closed.
#[test]
fn clients_that_close_their_connections_can_open_as_many_at_once() {
    let mut fixture = Fixture::new();
    let clients: Vec<UnixStream> = (0..8).map(|_| fixture.client()).collect();
    fixture.serve();
    drop(clients);
    let mut next: Vec<UnixStream> = (0..8).map(|_| fixture.client()).collect();
    fixture.server.accept();
    for client in &mut next {
        client.write_all(&request(1)).unwrap();
    }
    fixture.serve();
    assert!(next.iter_mut().all(|client| read_reply(client).is_some()));
}

#[test]
fn idle_clients_beyond_the_limit_are_refused_and_the_others_are_served() {
    let mut fixture = Fixture::new();
    fixture.server.per_user_max = usize::MAX;
    let mut clients: Vec<UnixStream> = (0..40).map(|_| fixture.client()).collect();
    fixture.serve();
    assert_eq!(fixture.server.connections.len(), CONNECTIONS_MAX);
    clients[31].write_all(&request(1)).unwrap();
    fixture.serve();
    assert!(read_reply(&mut clients[31]).is_some());
    assert_eq!(read_reply(&mut clients[32]), None);
}

#[test]
fn silence_ends_after_30_seconds_and_a_trickle_too() {
    let mut fixture = Fixture::new();
    let mut silent = fixture.client();
    let mut trickling = fixture.client();
    fixture.serve();
    fixture.pass(REQUEST_TIME_MAX - Duration::from_millis(1));
    trickling.write_all(b"{").unwrap();
    fixture.serve();
    assert_eq!(fixture.server.connections.len(), 2);
    fixture.pass(Duration::from_millis(1));
    assert!(fixture.busy());
    fixture.serve();
    assert!(fixture.server.connections.is_empty());
    assert_eq!(read_reply(&mut silent), None);
    assert_eq!(read_reply(&mut trickling), None);
}

#[test]
fn a_request_may_be_worked_on_for_longer_than_a_client_may_be_silent() {
    let mut fixture = Fixture::new();
    let mut client = fixture.client();
    client.write_all(&request(1)).unwrap();
    fixture.turn();
    let calls = fixture.turn();
    assert_eq!(fixture.server.poll_timeout(), None);
    fixture.pass(REQUEST_TIME_MAX * 3);
    assert!(fixture.turn().is_empty());
    let reply = Reply::One(wire::Reply::default());
    fixture.server.reply(calls[0].id, reply, fixture.now);
    assert!(read_reply(&mut client).is_some());
}

#[test]
fn a_client_that_does_not_take_its_reply_is_closed_after_2_seconds() {
    let mut fixture = Fixture::new();
    let mut stalled = fixture.client();
    let mut other = fixture.client();
    stalled.write_all(&request(0)).unwrap();
    fixture.turn();
    let calls = fixture.turn();
    let large = "x".repeat(1024 * 1024);
    let reply = protocol::reply(&json!({ "filling": large }));
    fixture
        .server
        .reply(calls[0].id, Reply::One(reply), fixture.now);
    for _ in 0..100 {
        fixture.turn();
    }
    assert!(!fixture.busy(), "it waits for the client");
    fixture.pass(REPLY_TIME_MAX - Duration::from_millis(1));
    other.write_all(&request(1)).unwrap();
    assert_eq!(fixture.serve(), 1, "the other one notices nothing");
    assert_eq!(fixture.server.connections.len(), 2);
    fixture.pass(Duration::from_millis(1));
    fixture.serve();
    assert_eq!(fixture.server.connections.len(), 1);
}

#[test]
fn a_request_that_is_too_large_is_told_so_before_its_connection_is_closed() {
    let mut fixture = Fixture::new();
    for len in [wire::REQUEST_BYTES_MAX + 1, 2 * wire::REQUEST_BYTES_MAX] {
        let mut client = fixture.client();
        let mut request = vec![b'x'; len];
        request.push(0);
        client.write_all(&request).unwrap();
        assert_eq!(fixture.serve(), 0);
        let reply = read_reply(&mut client).expect("a reply");
        assert_eq!(reply.error.as_deref(), Some(protocol::REQUEST_TOO_LARGE));
        assert_eq!(reply.parameters["bytes_max"], 65_536);
        assert_eq!(read_reply(&mut client), None);
        assert!(fixture.server.connections.is_empty());
    }
}

/// A client's call of `ListPeers`, with `more` or without.
fn ask_for_peers(fixture: &mut Fixture, client: &mut UnixStream, more: bool) {
    let request = Request {
        method: "a.B".to_owned(),
        more,
        ..Request::default()
    };
    client.write_all(&request.encode()).unwrap();
    let mut calls = fixture.turn();
    calls.extend(fixture.turn());
    assert_eq!(calls.len(), 1);
    fixture
        .server
        .list_peers(&calls[0], PeerQuery::default(), SortKey::Id, None);
}

impl Fixture {
    fn search(&mut self) -> Option<Search> {
        let listeners = Listeners::default();
        self.server.search(&listeners, 1, self.now)
    }

    /// The only worker reports what it has found, of 1000 peers.
    fn report(&mut self, query: u64, ids: std::ops::Range<u64>, is_last: bool) {
        let peers: Vec<mailbox::Peer> = ids.map(peer).collect();
        let last = peers.last().map(|peer| peer.rank.clone());
        let more_after = last.filter(|_| !is_last);
        let listeners = Listeners::default();
        self.server
            .handle_peers(query, peers, 1000, more_after, &listeners, self.now);
    }
}

#[test]
fn lists_take_turns_page_by_page_and_one_search_runs_at_a_time() {
    let mut fixture = Fixture::new();
    let (mut one, mut two) = (fixture.client(), fixture.client());
    fixture.serve();
    ask_for_peers(&mut fixture, &mut one, true);
    ask_for_peers(&mut fixture, &mut two, false);
    assert!(fixture.busy(), "a search can begin");
    assert!(fixture.search().is_some());
    assert!(fixture.search().is_none(), "one runs at a time");
    assert!(!fixture.busy() && !fixture.server.is_search_idle());
    fixture.report(1, 0..256, false);
    let page = read_reply(&mut one).unwrap();
    assert!(page.continues && page.parameters["total"] == 1000);

    // The page was taken at once, and the other client comes first nevertheless.
    assert!(fixture.search().is_some());
    fixture.report(2, 0..256, false);
    let page = read_reply(&mut two).unwrap();
    assert!(!page.continues && page.parameters["total"] == 1000);
    assert!(fixture.search().is_some());
    fixture.report(3, 256..300, true);
    assert!(!read_reply(&mut one).unwrap().continues);
    assert!(fixture.search().is_none() && fixture.server.is_search_idle());
    one.write_all(&request(1)).unwrap();
    assert_eq!(fixture.serve(), 1, "both can ask again");
}

/// Seven clients that listed thousands of peers made `GetStatus` take 287 ms.
#[test]
fn a_call_beside_clients_that_list_in_loops_is_handed_out_in_the_next_turn() {
    let mut fixture = Fixture::new();
    let mut readers: Vec<UnixStream> = (0..7).map(|_| fixture.client()).collect();
    let mut other = fixture.client();
    fixture.serve();
    for reader in &mut readers {
        ask_for_peers(&mut fixture, reader, true);
    }
    for (search, reader) in (1..50).zip((0..7).cycle()) {
        other.write_all(&request(search)).unwrap();
        let calls = fixture.turn();
        assert_eq!(calls.len(), 1, "it does not wait for a list");
        let reply = Reply::One(wire::Reply::default());
        fixture.server.reply(calls[0].id, reply, fixture.now);
        assert!(read_reply(&mut other).is_some());
        // In each turn one search makes one page; all lists are as far as each other.
        assert!(fixture.search().is_some());
        fixture.report(search, 0..256, false);
        let page = read_reply(&mut readers[reader]).unwrap();
        assert!(page.continues);
    }
}

#[test]
fn searches_that_have_not_begun_are_left_to_a_successor() {
    let mut fixture = Fixture::new();
    let (mut running, mut waiting) = (fixture.client(), fixture.client());
    fixture.serve();
    ask_for_peers(&mut fixture, &mut running, true);
    assert!(fixture.search().is_some());
    ask_for_peers(&mut fixture, &mut waiting, true);
    waiting.write_all(b"{\"method\":").unwrap();
    fixture.serve();
    fixture.server.hold_searches(true);
    fixture.report(1, 0..256, false);
    assert!(fixture.search().is_none() && fixture.server.is_search_idle());
    assert!(!fixture.busy(), "what is held is not tried again and again");

    let mut descriptors = Vec::new();
    let control = fixture.server.describe(None, &mut descriptors);
    let requests: Vec<String> = control
        .clients
        .iter()
        .map(|client| String::from_utf8(client.unread.clone()).unwrap())
        .collect();
    assert_eq!(
        requests,
        ["{\"method\":\"a.B\",\"parameters\":{},\"more\":true}\0"]
    );
    fixture.server.hold_searches(false);
    assert!(
        fixture.busy() && fixture.search().is_some(),
        "it was given up"
    );
}

#[test]
fn nothing_is_searched_for_a_client_that_is_gone() {
    let mut fixture = Fixture::new();
    let mut client = fixture.client();
    fixture.serve();
    ask_for_peers(&mut fixture, &mut client, true);
    let id = *fixture.server.connections.keys().next().unwrap();
    fixture.server.end(id, &End::Closed);
    assert!(fixture.search().is_none() && !fixture.busy());
}

#[test]
fn spare_descriptors_are_given_up_and_taken_back() {
    let mut spare = Spare::new();
    assert_eq!(spare.files.len(), SPARE_DESCRIPTORS);
    for _ in 0..SPARE_DESCRIPTORS {
        assert!(spare.give_up());
    }
    assert!(!spare.give_up());
    spare.refill();
    assert_eq!(spare.files.len(), SPARE_DESCRIPTORS);
}

/// While the descriptor of a connection was free for a moment, a client of a worker could get it;
/// after four of them a daemon without descriptors gave no answer any more.
#[test]
fn a_descriptor_that_becomes_a_spare_one_is_never_free() {
    let mut spare = Spare::new();
    assert!(spare.give_up());
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let number = ours.as_raw_fd();
    spare.take(ours.into());
    assert_eq!(peer.read(&mut [0]).unwrap(), 0, "it is closed");
    let last = spare.files.last().unwrap();
    assert_eq!(last.as_raw_fd(), number);
    let flags = fcntl(last, FcntlArg::F_GETFD).unwrap();
    assert_eq!(
        flags,
        FdFlag::FD_CLOEXEC.bits(),
        "a successor does not get it"
    );
}
