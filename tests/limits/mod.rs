//! How many clients may connect, and from where: what happens to those that may not.

mod closing;
mod loops;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::harness::{
    Daemon, PATIENCE, after_shell_line, connect, eventually, exchange, not_tested, udp,
};

fn tcp(keys: &str) -> String {
    format!(
        "[daemon]\nworkers = 2\n[listener.tcp]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n{keys}\n"
    )
}

/// A client that has sent a message and does not know whether it is served.
struct Client {
    stream: TcpStream,
    answered: bool,
}

impl Client {
    fn new(server: SocketAddr) -> Self {
        let mut stream = connect(server);
        stream.write_all(b"hello").expect("sent");
        stream.set_nonblocking(true).expect("an option");
        Self {
            stream,
            answered: false,
        }
    }

    /// Whether its answer has arrived.
    fn is_served(&mut self) -> bool {
        let mut answer = [0; 10];
        match self.stream.read(&mut answer) {
            Ok(len) => {
                assert_eq!(&answer[..len], b"hello");
                self.answered = true;
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        self.answered
    }
}

fn count_served(clients: &mut [Client]) -> usize {
    clients
        .iter_mut()
        .filter_map(|c| c.is_served().then_some(()))
        .count()
}

/// A connection from a certain address of this host.
fn connect_from(local: &str, server: SocketAddr) -> TcpStream {
    try_from(local, server).expect("a connection")
}

fn try_from(local: &str, server: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let local: SocketAddr = format!("{local}:0").parse().expect("an address");
    socket.bind(&local.into()).expect("bound");
    socket.connect_timeout(&server.into(), PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    Ok(socket.into())
}

/// The listener is full, or denies the address: it resets the connection, which may be noticed
/// while still connecting.
fn assert_reset(local: &str, server: SocketAddr) {
    let end = try_from(local, server).and_then(|mut stream| stream.read(&mut [0]));
    assert_eq!(
        end.map_err(|error| error.kind()),
        Err(ErrorKind::ConnectionReset)
    );
}

#[test]
fn exactly_the_maximum_is_served_and_the_next_one_when_one_leaves() {
    for sockets in ["\"auto\"", "1", "2"] {
        let daemon = Daemon::start(&tcp(&format!("max-connections = 5\nsockets = {sockets}")));
        let server = daemon.address("tcp");
        let mut waiting: Vec<Client> = (0..12).map(|_| Client::new(server)).collect();
        let mut served = Vec::new();
        for gone in 0..=7 {
            // One of the waiting clients gets the place: which one, the kernel decides.
            eventually("the free places are taken", || {
                count_served(&mut waiting) + served.len() == 5
            });
            let (now_served, still_waiting) = waiting.into_iter().partition(|c| c.answered);
            waiting = still_waiting;
            served.extend::<Vec<Client>>(now_served);
            let listener = daemon.listener("tcp");
            assert_eq!(listener["connections"], 5, "sockets = {sockets}");
            // The kernel may queue a client after its connect has returned.
            eventually("all others are queued", || {
                daemon.listener("tcp")["backlog"]["queued"] == 7 - gone
            });
            assert_eq!(count_served(&mut waiting), 0, "sockets = {sockets}");
            served.remove(0);
        }
        assert_eq!(daemon.refused("tcp", "full"), 0);
        drop(served);
        eventually("no connection is left", || daemon.connections("tcp") == 0);
        assert_eq!(daemon.listener("tcp")["accepted"], 12);
    }
}

#[test]
fn a_full_listener_may_reset_new_connections_and_counts_them() {
    for sockets in ["\"auto\"", "1"] {
        let daemon = Daemon::start(&tcp(&format!(
            "max-connections = 3\nwhen-full = \"reset\"\nsockets = {sockets}"
        )));
        let server = daemon.address("tcp");
        let mut inside: Vec<TcpStream> = (0..3).map(|_| daemon.connect("tcp")).collect();
        for stream in &mut inside {
            exchange(stream, b"in");
        }
        for count in 1..=10 {
            assert_reset("127.0.0.1", server);
            eventually("it is counted", || daemon.refused("tcp", "full") == count);
        }
        assert_eq!(daemon.listener("tcp")["accepted"], 3);
        inside.pop();
        eventually("there is room", || daemon.connections("tcp") == 2);
        inside.push(daemon.connect("tcp"));
        for stream in &mut inside {
            assert_eq!(exchange(stream, b"still in"), b"still in");
        }
        assert_reset("127.0.0.1", server);
    }
}

#[test]
fn a_source_gets_its_maximum_of_connections_and_others_get_theirs() {
    let daemon = Daemon::start(&tcp("max-per-source = 2"));
    let server = daemon.address("tcp");
    let mut first: Vec<TcpStream> = (0..2).map(|_| connect_from("127.0.0.1", server)).collect();
    for stream in &mut first {
        exchange(stream, b"one of two");
    }
    for count in 1..=5 {
        assert_reset("127.0.0.1", server);
        assert_eq!(daemon.refused("tcp", "per-source"), count);
    }
    let mut other = connect_from("127.0.0.2", server);
    assert_eq!(exchange(&mut other, b"another"), b"another");
    first.pop();
    eventually("a place is free", || daemon.connections("tcp") == 2);
    let mut again = connect_from("127.0.0.1", server);
    assert_eq!(exchange(&mut again, b"again"), b"again");
    assert_reset("127.0.0.1", server);
}

#[test]
fn a_source_that_is_not_allowed_is_reset_and_counted() {
    let daemon = Daemon::start(&tcp("allow = [\"127.0.0.2/32\"]"));
    let server = daemon.address("tcp");
    for count in 1..=5 {
        assert_reset("127.0.0.1", server);
        assert_eq!(daemon.refused("tcp", "denied"), count);
    }
    let mut allowed = connect_from("127.0.0.2", server);
    assert_eq!(exchange(&mut allowed, b"welcome"), b"welcome");
    assert_eq!(daemon.listener("tcp")["accepted"], 1);
}

#[test]
fn the_most_specific_rule_decides() {
    let daemon = Daemon::start(&tcp(
        "allow = [\"127.0.0.0/8\", \"127.9.0.1/32\"]\ndeny = [\"127.9.0.0/16\"]",
    ));
    let server = daemon.address("tcp");
    for welcome in ["127.0.0.1", "127.8.0.1", "127.9.0.1"] {
        let mut stream = connect_from(welcome, server);
        assert_eq!(exchange(&mut stream, b"hi"), b"hi", "{welcome}");
    }
    assert_reset("127.9.0.2", server);
}

#[test]
fn a_datagram_from_a_denied_source_is_counted_and_not_answered() {
    let daemon = Daemon::start(
        "[listener.udp]\nprotocol = \"udp\"\naddress = \"127.0.0.1:0\"\ndeny = [\"127.0.0.2/32\"]\n",
    );
    let server = daemon.address("udp");
    let denied = udp("127.0.0.2:0");
    for count in 1..=5 {
        denied.send_to(b"please", server).expect("sent");
        eventually("it is counted", || daemon.refused("udp", "denied") == count);
    }
    denied.set_nonblocking(true).expect("an option");
    let answer = denied.recv(&mut [0; 10]).map_err(|error| error.kind());
    assert_eq!(answer, Err(ErrorKind::WouldBlock));
    let welcome = udp("127.0.0.1:0");
    welcome.send_to(b"hello", server).expect("sent");
    let mut answer = [0; 10];
    let len = welcome.recv(&mut answer).expect("answered");
    assert_eq!(&answer[..len], b"hello");
}

#[test]
fn out_of_descriptors_it_pauses_answers_operators_and_serves_the_others_later() {
    let daemon = Daemon::start_with(&tcp(""), |command| {
        after_shell_line(command, "ulimit -n 64");
    });
    let server = daemon.address("tcp");
    let mut clients: Vec<Client> = (0..100).map(|_| Client::new(server)).collect();
    let mut served = 0;
    // Those that it has accepted are not all answered yet.
    eventually("it has run out of descriptors, and serves", || {
        served = count_served(&mut clients);
        daemon.descriptors() >= 60 && served > 0
    });
    assert!(served < 64, "{served} of 64 descriptors");

    // It does not spin: what it uses of a processor is far below what there is.
    let (before, begun) = (daemon.processor_time(), Instant::now());
    while begun.elapsed() < Duration::from_secs(2) {
        // Operators are answered all the while, and connected clients are served.
        let status = daemon.ctl_json(&["status"]);
        let connections = status["status"]["connections"].as_u64().expect("a number");
        assert!(connections < 64);
        std::thread::sleep(Duration::from_millis(100));
    }
    let used = daemon.processor_time() - before;
    assert!(
        used < begun.elapsed() / 2,
        "{used:?} of {:?}",
        begun.elapsed()
    );
    let inside = clients.iter_mut().find(|client| client.answered);
    let inside = &mut inside.expect("a client is served").stream;
    inside.set_nonblocking(false).expect("an option");
    assert_eq!(exchange(inside, b"still here"), b"still here");
    inside.set_nonblocking(true).expect("an option");

    // As served clients leave, waiting ones are accepted, until all have been served.
    let mut done = 0;
    eventually("all clients are served", || {
        count_served(&mut clients);
        let before = clients.len();
        clients.retain(|client| !client.answered);
        done += before - clients.len();
        done == 100
    });
    eventually("no connection is left", || daemon.connections("tcp") == 0);
    assert_eq!(daemon.listener("tcp")["accepted"], 100);
}

/// A socket at this port of an address that no other test has: they may want the port, too.
fn at_port(port: u16) -> std::io::Result<UdpSocket> {
    let [high, low] = (std::process::id() as u16).to_be_bytes();
    let address = format!("127.{}.{low}.77:{port}", high.max(1));
    let socket = UdpSocket::bind(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

fn assert_answered(client: &UdpSocket, server: SocketAddr) {
    client.send_to(b"hello", server).expect("sent");
    let mut answer = [0; 10];
    let (len, from) = client.recv_from(&mut answer).expect("answered");
    assert_eq!((&answer[..len], from), (&b"hello"[..], server));
}

/// No answer was on its way when the datagram was counted, so none comes later.
fn assert_source_port_refused(client: &UdpSocket, daemon: &Daemon) {
    let before = daemon.refused("udp", "source-port");
    client
        .send_to(b"hello", daemon.address("udp"))
        .expect("sent");
    eventually("it is counted", || {
        daemon.refused("udp", "source-port") == before + 1
    });
    client.set_nonblocking(true).expect("an option");
    let received = client.recv(&mut [0; 10]).map_err(|error| error.kind());
    assert_eq!(received, Err(ErrorKind::WouldBlock));
    client.set_nonblocking(false).expect("an option");
}

const UDP: &str = "[listener.udp]\nprotocol = \"udp\"\naddress = \"127.0.0.1:0\"\n";

#[test]
fn a_datagram_from_the_port_of_a_service_is_not_answered_but_counted() {
    let daemon = Daemon::start(UDP);
    let server = daemon.address("udp");
    let memcached = at_port(11211).expect("a socket");
    let mut services = vec![memcached];
    match at_port(719) {
        Ok(privileged) => services.push(privileged),
        Err(error) => not_tested(format_args!("ports below 1024: {error}")),
    }
    for service in &services {
        assert_source_port_refused(service, &daemon);
        assert_answered(&udp("127.0.0.1:0"), server);
    }
    let listener = daemon.listener("udp");
    assert_eq!(listener["datagrams_received"], 2 * services.len());

    daemon.reload_with(&format!("{UDP}refuse-source-ports = \"none\"\n"));
    for service in &services {
        assert_answered(service, server);
    }
    let log = daemon.log();
    assert!(
        log.contains("refuse-source-ports \"none\": one forged datagram"),
        "{log}"
    );
}

#[test]
fn a_reload_says_anew_which_source_ports_are_refused() {
    let daemon = Daemon::start(UDP);
    let server = daemon.address("udp");
    let (one, other) = (udp("127.0.0.1:0"), udp("127.0.0.1:0"));
    let port = |client: &UdpSocket| client.local_addr().expect("an address").port();
    assert_answered(&one, server);
    assert_answered(&other, server);
    for (refused, answered) in [(&one, &other), (&other, &one)] {
        let list = format!("refuse-source-ports = [7, {}]\n", port(refused));
        let result = daemon.reload_with(&format!("{UDP}{list}"));
        let change = &result["changes"][0];
        assert_eq!(change["action"], "update", "{result:#}");
        assert_eq!(change["keys"][0], "refuse-source-ports", "{result:#}");
        assert_eq!(daemon.address("udp"), server);
        assert_source_port_refused(refused, &daemon);
        assert_answered(answered, server);
    }
    daemon.reload_with(UDP);
    assert_answered(&one, server);
    assert_answered(&other, server);
    assert_eq!(daemon.refused("udp", "source-port"), 2);
}
