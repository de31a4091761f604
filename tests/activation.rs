//! Sockets that the service manager has bound and passes (`sd_listen_fds(3)`).

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::Command;

use nix::sys::signal::Signal;
use nix::sys::socket::Backlog;

use crate::harness::{Daemon, PATIENCE, after_shell_line, connect, eventually, exchange, udp};

/// Starts echod with this socket as its descriptor 3, as systemd would.
fn start_with_socket(config: &str, socket: OwnedFd) -> Daemon {
    Daemon::start_with(config, |command| pass(command, "", [socket]))
}

/// The same with one or two sockets, each with a name.
fn start_with_names<const COUNT: usize>(
    config: &str,
    names: [&str; COUNT],
    sockets: [OwnedFd; COUNT],
) -> Daemon {
    Daemon::start_with(config, |command| pass_names(command, names, sockets))
}

/// The same, which must fail; what it says.
fn refused_with_name(config: &str, name: &str, socket: OwnedFd) -> String {
    let mut daemon = Daemon::spawn(config, |command| pass_names(command, [name], [socket]));
    assert_eq!(daemon.wait().code(), Some(1), "{}", daemon.log());
    daemon.log()
}

fn pass_names<const COUNT: usize>(
    command: &mut Command,
    names: [&str; COUNT],
    sockets: [OwnedFd; COUNT],
) {
    let names = format!("LISTEN_FDNAMES={}", names.join(":"));
    pass(command, &names, sockets);
}

/// They come to a shell as its standard input and output, so that no other process gets them.
fn pass<const COUNT: usize>(command: &mut Command, names: &str, sockets: [OwnedFd; COUNT]) {
    const { assert!(COUNT <= 2, "a process has two of those") }
    let moved = if COUNT == 1 { "3<&0" } else { "3<&0 4>&1" };
    let line = format!(
        "export LISTEN_PID=$$ LISTEN_FDS={COUNT} {names}; exec {moved} </dev/null >/dev/null"
    );
    after_shell_line(command, &line);
    let mut sockets = sockets.into_iter();
    if let Some(socket) = sockets.next() {
        command.stdin(socket);
    }
    if let Some(socket) = sockets.next() {
        command.stdout(socket);
    }
}

fn listening(address: &str, backlog: i32) -> (OwnedFd, SocketAddr) {
    let socket = TcpListener::bind(address).unwrap();
    nix::sys::socket::listen(&socket, Backlog::new(backlog).unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket.into(), address)
}

/// A listener whose configured address is not the one of its sockets.
fn elsewhere(protocol: &str, more: &str) -> String {
    format!("[listener.main]\nprotocol = \"{protocol}\"\naddress = \"127.0.0.1:0\"\n{more}")
}

fn addresses(daemon: &Daemon) -> Vec<String> {
    let listener = daemon.listener("main");
    let list = listener["addresses"].as_array().expect("a list");
    list.iter()
        .map(|address| address.as_str().expect("a text").to_owned())
        .collect()
}

fn backlog(daemon: &Daemon) -> (u64, u64) {
    let backlog = &daemon.listener("main")["backlog"];
    let number = |key: &str| backlog[key].as_u64().expect("a number");
    (number("requested"), number("effective"))
}

#[test]
fn a_passed_tcp_socket_is_served_and_keeps_its_backlog() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    nix::sys::socket::listen(&socket, Backlog::new(7).unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let ours = socket.try_clone().unwrap();
    let config = format!("[listener.main]\nprotocol = \"tcp\"\naddress = \"{address}\"\n");
    let mut daemon = start_with_socket(&config, socket.into());
    let mut peer = connect(address);
    assert_eq!(exchange(&mut peer, b"hello"), b"hello");
    let listener = daemon.listener("main");
    assert_eq!(
        (&listener["sockets"], &listener["backlog"]["effective"]),
        (&1.into(), &7.into())
    );

    // The manager keeps the socket: a client that connects while there is no daemon waits for the next one.
    drop(peer);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    let mut waits = connect(address);
    let successor = start_with_socket(&config, ours.into());
    assert_eq!(exchange(&mut waits, b"patience"), b"patience");
    drop(waits);
    drop(successor);
}

#[test]
fn a_passed_udp_socket_answers_from_the_address_that_was_hit() {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let config = format!("[listener.main]\nprotocol = \"udp\"\naddress = \"0.0.0.0:{port}\"\n");
    let _daemon = start_with_socket(&config, socket.into());
    let client = udp("127.0.0.1:0");
    client.send_to(b"hello", ("127.0.0.2", port)).unwrap();
    let mut answer = [0; 100];
    let (len, from) = client.recv_from(&mut answer).unwrap();
    assert_eq!(
        (&answer[..len], from),
        (b"hello".as_slice(), ([127, 0, 0, 2], port).into())
    );
}

/// Another service of the same port, on another host, is not answered without end.
#[test]
fn the_port_of_a_passed_udp_socket_is_refused_as_a_source() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let config = "[listener.main]\nprotocol = \"udp\"\naddress = \"127.0.0.1:7\"\n";
    let daemon = start_with_names(config, ["main"], [socket.into()]);
    let client = udp(&format!("127.0.0.3:{port}"));
    client.send_to(b"hello", ("127.0.0.1", port)).unwrap();
    eventually("it is refused", || {
        daemon.refused("main", "source-port") == 1
    });
    assert_eq!(daemon.listener("main")["datagrams_sent"], 0);
}

#[test]
fn a_passed_socket_that_no_listener_has_is_logged_and_kept_for_a_later_configuration() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let config = "[listener.main]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n";
    let daemon = start_with_socket(config, socket.into());
    let note = format!("bound to {address}, which no listener has");
    assert!(daemon.log().contains(&note), "{}", daemon.log());
    // The service manager has bound it: nothing else could be.
    let mut waits = std::net::TcpStream::connect(address).unwrap();
    daemon.ctl_text(&["reload", "--dry-run"]);
    let result = daemon.reload();
    assert!(result["warnings"].to_string().contains(&note), "{result}");
    let late = format!("[listener.late]\nprotocol = \"tcp\"\naddress = \"{address}\"\n");
    let result = daemon.reload_with(&format!("{config}{late}"));
    assert_eq!(result["outcome"], "applied", "{result}");
    assert_eq!(exchange(&mut waits, b"patience"), b"patience");
}

#[test]
fn sockets_of_a_listeners_name_are_its_wherever_they_are_bound() {
    let (one, at_one) = listening("127.0.0.1:0", 7);
    let (two, at_two) = listening("127.0.0.2:0", 7);
    let daemon = start_with_names(&elsewhere("tcp", ""), ["main", "main"], [one, two]);
    for address in [at_one, at_two] {
        assert_eq!(exchange(&mut connect(address), b"hello"), b"hello");
    }
    // It binds nothing itself.
    assert_eq!(addresses(&daemon), [at_one.to_string(), at_two.to_string()]);
    let log = daemon.log();
    assert!(
        log.contains("the configured 127.0.0.1:0 is not used"),
        "{log}"
    );
}

#[test]
fn a_name_decides_before_an_address_does() {
    let (socket, address) = listening("127.0.0.1:0", 7);
    let config = format!(
        "[listener.main]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\nreply = \"upper\"\n\
         [listener.other]\nprotocol = \"udp\"\naddress = \"{address}\"\n"
    );
    let daemon = start_with_names(&config, ["main"], [socket]);
    assert_eq!(exchange(&mut connect(address), b"hello"), b"HELLO");
    assert_eq!(daemon.address("other"), address);
}

#[test]
fn datagram_sockets_of_a_listeners_name_are_answered_each_from_its_address() {
    let sockets = ["127.0.0.1:0", "0.0.0.0:0"].map(|address| UdpSocket::bind(address).unwrap());
    let ports = [0, 1].map(|index| sockets[index].local_addr().unwrap().port());
    let _daemon = start_with_names(
        &elsewhere("udp", ""),
        ["main", "main"],
        sockets.map(OwnedFd::from),
    );
    for (host, port) in [([127, 0, 0, 1], ports[0]), ([127, 0, 0, 9], ports[1])] {
        let client = udp("127.0.0.1:0");
        let hit = SocketAddr::from((host, port));
        client.send_to(b"hello", hit).unwrap();
        let mut answer = [0; 100];
        let (len, from) = client.recv_from(&mut answer).unwrap();
        assert_eq!((&answer[..len], from), (b"hello".as_slice(), hit));
    }
}

#[test]
fn unix_sockets_are_passed_by_name_too_and_stay_when_the_daemon_goes() {
    let folder = tempfile::tempdir().unwrap();
    let [stream, datagram] = ["stream", "datagram"].map(|name| folder.path().join(name));
    let sockets = [
        UnixListener::bind(&stream).unwrap().into(),
        UnixDatagram::bind(&datagram).unwrap().into(),
    ];
    let config = "[listener.main]\nprotocol = \"unix-stream\"\naddress = \"{dir}/unused\"\n\
                  [listener.messages]\nprotocol = \"unix-datagram\"\naddress = \"{dir}/unused-too\"\n";
    let mut daemon = start_with_names(config, ["main", "messages"], sockets);
    let mut peer = UnixStream::connect(&stream).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(exchange(&mut peer, b"hello"), b"hello");
    let client = UnixDatagram::bind(folder.path().join("client")).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"hello", &datagram).unwrap();
    let mut answer = [0; 100];
    let len = client.recv(&mut answer).unwrap();
    assert_eq!(&answer[..len], b"hello");

    assert_eq!(addresses(&daemon), [stream.display().to_string()]);
    let peers = daemon.ctl_json(&["peers", "--listener", "main"]);
    assert_eq!(
        peers["peers"][0]["local_address"],
        stream.display().to_string()
    );
    assert!(!daemon.path("unused").exists());
    // The kernel does not say what the manager has set, and none is guessed.
    assert_eq!(backlog(&daemon), (0, 0));
    let told = daemon.ctl_text(&["backlog", "main"]);
    assert!(told.contains("as the service manager has set it"), "{told}");
    daemon.ctl_text(&["backlog", "main", "9"]);
    assert_eq!(backlog(&daemon), (9, 9));
    drop(peer);
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    assert!(stream.exists() && datagram.exists());
}

#[test]
fn a_socket_of_a_listeners_name_and_another_kind_ends_the_start() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let log = refused_with_name(&elsewhere("tcp", ""), "main", socket.into());
    assert!(
        log.contains(&format!(
            "listener \"main\": the service manager passes a udp socket of this name, bound to {address}, but \
             protocol is \"tcp\": use ListenStream=PORT in the .socket unit, or protocol = \"udp\""
        )),
        "{log}"
    );
}

#[test]
fn a_connection_is_no_listeners_socket() {
    let (listener, address) = listening("127.0.0.1:0", 7);
    let connection = connect(address);
    let log = refused_with_name(&elsewhere("tcp", ""), "main", connection.into());
    assert!(log.contains("use Accept=no in the .socket unit"), "{log}");
    drop(listener);
}

#[test]
fn names_for_another_process_are_none_of_ours() {
    let daemon = Daemon::start_with(&elsewhere("tcp", ""), |command| {
        command
            .env("LISTEN_PID", "1")
            .env("LISTEN_FDS", "2")
            .env("LISTEN_FDNAMES", "main:main");
    });
    assert_eq!(exchange(&mut daemon.connect("main"), b"hello"), b"hello");
}

#[test]
fn the_backlog_is_that_of_the_socket_unit_unless_one_is_written() {
    for (more, expected) in [
        ("", 7),
        ("backlog = 5\n", 5),
        ("[defaults]\nbacklog = 9\n", 9),
    ] {
        let (socket, _) = listening("127.0.0.1:0", 7);
        let daemon = start_with_names(&elsewhere("tcp", more), ["main"], [socket]);
        assert_eq!(backlog(&daemon), (expected, expected), "{more}");
    }
}

#[test]
fn a_reload_gives_the_socket_units_backlog_back() {
    let (socket, _) = listening("127.0.0.1:0", 7);
    let bare = elsewhere("tcp", "");
    let daemon = start_with_names(&bare, ["main"], [socket]);
    // The default, written out: no other value, but it is meant.
    daemon.reload_with(&elsewhere("tcp", "backlog = 1024\n"));
    assert_eq!(backlog(&daemon), (1024, 1024));
    daemon.reload_with(&bare);
    assert_eq!(backlog(&daemon), (7, 7));
    daemon.ctl_text(&["backlog", "main", "11"]);
    assert_eq!(backlog(&daemon), (11, 11));
    daemon.reload_with(&bare);
    assert_eq!(backlog(&daemon), (7, 7));
}

#[test]
fn a_reload_keeps_the_sockets_of_a_listeners_name_whatever_its_address() {
    let (socket, address) = listening("127.0.0.1:0", 7);
    let daemon = start_with_names(&elsewhere("tcp", ""), ["main"], [socket]);
    let mut peer = connect(address);
    assert_eq!(exchange(&mut peer, b"before"), b"before");
    let moved = elsewhere("tcp", "sockets = 1\nreply = \"upper\"\n").replace("0.1:0", "0.3:0");
    let result = daemon.reload_with(&moved);
    assert_eq!(result["outcome"], "applied", "{result}");
    let warning = result["warnings"][0]["message"]
        .as_str()
        .expect("a warning");
    assert!(
        warning.starts_with("listener \"main\": address, sockets: not used")
            && warning.contains("those of a .socket unit"),
        "{warning}"
    );
    assert_eq!(addresses(&daemon), [address.to_string()]);
    assert_eq!(exchange(&mut peer, b"after"), b"after");
    assert_eq!(exchange(&mut connect(address), b"new"), b"NEW");

    // What can't serve it any more is refused, and nothing changes.
    let result = daemon.reload_with(&elsewhere("udp", ""));
    assert_eq!(result["outcome"], "rejected", "{result}");
    assert_eq!(exchange(&mut connect(address), b"still"), b"STILL");
}
