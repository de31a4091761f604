//! Sockets that the service manager has bound and passes (`sd_listen_fds(3)`).

use std::io::Read;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use nix::sys::signal::Signal;

use crate::harness::{Daemon, after_shell_line, connect, exchange, udp};

/// Starts echod with this socket as its descriptor 3, as systemd would.
fn start_with_socket(config: &str, socket: OwnedFd) -> Daemon {
    Daemon::start_with(config, |command| {
        let pass = "export LISTEN_PID=$$ LISTEN_FDS=1; exec 3<&0 </dev/null";
        after_shell_line(command, pass);
        command.stdin(Stdio::from(socket));
    })
}

#[test]
fn a_passed_tcp_socket_is_served_and_keeps_its_backlog() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::new(7).unwrap()).unwrap();
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

    // The manager keeps the socket: who comes while the daemon is gone waits for the next one.
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

#[test]
fn a_passed_socket_that_no_listener_has_is_said() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let config = "[listener.main]\nprotocol = \"tcp\"\naddress = \"127.0.0.1:0\"\n";
    let daemon = start_with_socket(config, socket.into());
    assert!(
        daemon
            .log()
            .contains(&format!("bound to {address}, which no listener has")),
        "{}",
        daemon.log()
    );
    let mut refused = std::net::TcpStream::connect(address);
    assert!(
        refused
            .as_mut()
            .map_or(true, |peer| peer.read(&mut [0; 1]).is_err()),
        "nobody serves it"
    );
}
