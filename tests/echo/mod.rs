//! What comes back (RFC 862): every byte of a stream in order, every datagram whole.
//!
//! `streams` has the ordinary life of a connection, `misbehaving_peers` what peers do to it that they
//! should not, `datagrams` the other half.

mod datagrams;
mod misbehaving_peers;
mod streams;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::harness::{Daemon, PATIENCE};

/// A listener for each kind of stream.
pub(crate) const STREAMS: &str = r#"
[listener.tcp]
protocol = "tcp"
address = "127.0.0.1:0"

[listener.unix]
protocol = "unix-stream"
address = "{dir}/stream"
"#;

/// The names of the listeners in [`STREAMS`].
pub(crate) const KINDS: [&str; 2] = ["tcp", "unix"];

/// The configuration of both kinds of stream with these keys for both.
pub(crate) fn streams_with(keys: &str) -> String {
    format!("[defaults]\n{keys}\n{STREAMS}")
}

/// Where a listener is, in whichever family.
pub(crate) fn address_of(daemon: &Daemon, listener: &str) -> SockAddr {
    let listener = daemon.listener(listener);
    let address = listener["addresses"][0].as_str().expect("an address");
    match address.parse::<std::net::SocketAddr>() {
        Ok(inet) => inet.into(),
        Err(_) => SockAddr::unix(address).expect("a path"),
    }
}

/// A stream to this address with a timeout on everything.
pub(crate) fn connect(address: &SockAddr) -> Socket {
    connect_with(address, |_| {})
}

/// The same, with changes to the socket before it is connected.
pub(crate) fn connect_with(address: &SockAddr, change: impl FnOnce(&Socket)) -> Socket {
    let socket = Socket::new(address.domain(), Type::STREAM, None).expect("a socket");
    if address.domain() != Domain::UNIX {
        socket.set_tcp_nodelay(true).expect("an option");
    }
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    change(&socket);
    socket.connect(address).expect("a connection");
    socket
}

/// Writes it all and then half-closes, while reading until the end; returns what came.
fn talk(socket: &Socket, message: &[u8]) -> Vec<u8> {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = socket;
            writer.write_all(message).expect("sent");
            socket.shutdown(Shutdown::Write).expect("half-closed");
        });
        read_to_end(socket)
    })
}

/// Reads until the FIN; anything else at the end is a failure, and so is no end.
pub(crate) fn read_to_end(socket: &Socket) -> Vec<u8> {
    const MOST: u64 = 20_000_000;
    let mut answer = Vec::new();
    let len = socket
        .take(MOST)
        .read_to_end(&mut answer)
        .expect("a FIN, and no reset");
    assert!((len as u64) < MOST, "more comes than was ever sent");
    let error = socket.take_error().expect("a socket's error");
    assert!(error.is_none(), "after the end: {error:?}");
    answer
}

/// Writes to each of them without reading until it takes no more, or has got all of `bytes`.
/// `sent` counts what each has got, before and after.
fn stuff(sockets: &[Socket], sent: &mut [usize], bytes: &[u8]) {
    loop {
        for (socket, sent) in sockets.iter().zip(&mut *sent) {
            socket.set_nonblocking(true).expect("an option");
            while *sent < bytes.len() {
                let mut writer = socket;
                match writer.write(&bytes[*sent..]) {
                    Ok(len) => *sent += len,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("while stuffing: {error}"),
                }
            }
            socket.set_nonblocking(false).expect("an option");
        }
        // No socket takes more bytes for this long: they stall, or the machine is busy. The tests
        // hold in either case, but prove less in the second one.
        let open = sockets.iter().zip(&*sent);
        let mut fds: Vec<_> = open
            .filter(|(_, sent)| **sent < bytes.len())
            .map(|(socket, _)| PollFd::new(socket.as_fd(), PollFlags::POLLOUT))
            .collect();
        if fds.is_empty() || poll(&mut fds, PollTimeout::from(100_u8)).expect("poll") == 0 {
            return;
        }
    }
}
