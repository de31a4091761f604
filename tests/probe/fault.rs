//! Echo services with faults, over datagrams and streams, and one that loses, delays, duplicates,
//! reorders, corrupts, misaddresses, stalls and cuts by a seeded plan: what a client reports has to
//! equal that.
//!
//! They are threads of the test that end with the process.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, SockaddrStorage, recvfrom, sendto};
use socket2::{SockAddr, Socket, Type};

use crate::harness::noise;

/// What is done to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fate {
    Echo,
    /// One bit is turned.
    Corrupt,
    /// Every byte is another one.
    Invert,
    /// Answered after a delay; on a stream, so is what comes behind it.
    Delay,
    // Of datagrams.
    Lose,
    Duplicate,
    /// Answered behind the one that comes after it.
    Swap,
    /// One bit is turned, and the result is sent twice.
    CorruptTwice,
    /// The last byte is cut off.
    Shorten,
    /// Answered from another port.
    Misaddress,
    // Of streams.
    /// The connection ends with this message.
    Cut,
    /// It is not answered, nor is anything behind it on this connection.
    Stall,
}

/// The fates of this number of messages, in the order in which they come: each of these is that of
/// as many of a hundred, all others are echoed.
pub(crate) fn plan(seed: u64, count: usize, shares: &[(Fate, usize)]) -> Vec<Fate> {
    let mut hundred: Vec<Fate> = shares
        .iter()
        .flat_map(|(fate, share)| vec![*fate; *share])
        .collect();
    hundred.resize(100, Fate::Echo);
    let mut plan: Vec<Fate> = Vec::with_capacity(count);
    for chance in noise(count, seed) {
        let drawn = hundred[usize::from(chance) % 100];
        // A swapped one comes behind the next, which has to be answered at once. The first is
        // answered, so that the service is known; the last once, so that no copy comes behind the
        // end.
        let after_swap = plan.last() == Some(&Fate::Swap);
        let is_end = plan.is_empty() || plan.len() + 1 == count;
        plan.push(match after_swap || is_end {
            true => Fate::Echo,
            false => drawn,
        });
    }
    plan
}

/// How often one of these fates is in a plan.
pub(crate) fn count(plan: &[Fate], fates: &[Fate]) -> u64 {
    plan.iter().filter(|fate| fates.contains(fate)).count() as u64
}

/// The answers that come behind one to a later datagram, if a delay is longer than the rest takes.
pub(crate) fn reordered(plan: &[Fate]) -> u64 {
    let at_once = [Fate::Echo, Fate::Duplicate, Fate::Swap];
    let is_behind = |(index, fate): &(usize, &Fate)| match fate {
        Fate::Swap => true,
        Fate::Delay => count(&plan[index + 1..], &at_once) > 0,
        _ => false,
    };
    plan.iter().enumerate().filter(is_behind).count() as u64
}

/// A socket on loopback, or at this path, and its URL.
pub(crate) fn bind(kind: Type, path: Option<&Path>) -> (Socket, String) {
    let scheme = match (kind, path) {
        (Type::DGRAM, None) => "udp",
        (Type::DGRAM, Some(_)) => "unixgram",
        (_, None) => "tcp",
        (_, Some(_)) => "unix",
    };
    let address: SockAddr = match path {
        Some(path) => SockAddr::unix(path).expect("a path"),
        None => SocketAddr::from(([127, 0, 0, 1], 0)).into(),
    };
    let socket = Socket::new(address.domain(), kind, None).expect("a socket");
    if scheme == "tcp" {
        // The kernel's buffer could otherwise grow until it has all that a client sends.
        let _ = socket.set_recv_buffer_size(256 * 1024);
    }
    socket.bind(&address).expect("an address");
    let place = match socket.local_addr().expect("an address").as_socket() {
        Some(address) => address.to_string(),
        None => path.expect("of Unix").display().to_string(),
    };
    (socket, format!("{scheme}://{place}"))
}

/// The sender of a datagram.
pub(crate) type Peer = SockaddrStorage;

/// The port of a sender on IP.
pub(crate) fn port(peer: &Peer) -> u16 {
    peer.as_sockaddr_in().expect("of IPv4").port()
}

/// The next datagram.
pub(crate) fn receive(socket: &impl AsRawFd) -> io::Result<(Vec<u8>, Peer)> {
    let mut memory = vec![0; 65_536];
    let (len, peer) = recvfrom::<Peer>(socket.as_raw_fd(), &mut memory)?;
    memory.truncate(len);
    Ok((memory, peer.expect("datagrams have a sender")))
}

/// Sends a datagram. The client may have closed.
pub(crate) fn send(socket: &impl AsRawFd, bytes: &[u8], to: &Peer) -> bool {
    sendto(socket.as_raw_fd(), bytes, to, MsgFlags::empty()).is_ok()
}

/// A service that hands each datagram on this socket to this function, until it returns false.
pub(crate) fn serve_datagrams(
    socket: Socket,
    mut serve: impl FnMut(&Socket, Vec<u8>, Peer) -> bool + Send + 'static,
) {
    thread::spawn(move || {
        while let Ok((bytes, peer)) = receive(&socket)
            && serve(&socket, bytes, peer)
        {}
    });
}

/// The same on a UDP socket of its own; its URL.
pub(crate) fn udp(mut serve: impl FnMut(&Socket, Vec<u8>, Peer) + Send + 'static) -> String {
    let (socket, url) = bind(Type::DGRAM, None);
    serve_datagrams(socket, move |socket, bytes, peer| {
        serve(socket, bytes, peer);
        true
    });
    url
}

/// A service that hands each connection, and its number, to this function in a thread of its own;
/// its URL. At a path it is one of Unix, whose sockets are read and written like any others.
pub(crate) fn streams(
    path: Option<&Path>,
    serve: impl Fn(usize, TcpStream) + Send + Sync + 'static,
) -> String {
    let (listener, url) = bind(Type::STREAM, path);
    listener.listen(1024).expect("a listener");
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for number in 0.. {
            let (stream, _) = listener.accept().expect("a client");
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(number, stream.into()));
        }
    });
    url
}

/// Echoes this number of bytes, or until the end, with a change to what goes back.
pub(crate) fn echo(
    mut stream: &TcpStream,
    limit: usize,
    mut change: impl FnMut(usize, &mut Vec<u8>),
) -> io::Result<()> {
    let mut memory = vec![0; 65_536];
    let mut count = 0;
    while count < limit {
        let room = memory.len().min(limit - count);
        let len = stream.read(&mut memory[..room])?;
        let mut piece = memory[..len].to_vec();
        change(count, &mut piece);
        stream.write_all(&piece)?;
        if len == 0 {
            break;
        }
        count += len;
    }
    Ok(())
}

/// Over UDP, or at this path: each datagram has the next fate of the plan, and those beyond it are
/// echoed.
pub(crate) fn planned_datagrams(path: Option<&Path>, plan: Vec<Fate>, delay: Duration) -> String {
    let mut fates = plan.into_iter();
    by_source(path, move |_| fates.next().unwrap_or(Fate::Echo), delay)
}

/// The same with a fate that depends on the sender.
pub(crate) fn by_source(
    path: Option<&Path>,
    mut fate: impl FnMut(&Peer) -> Fate + Send + 'static,
    delay: Duration,
) -> String {
    let (socket, url) = bind(Type::DGRAM, path);
    let elsewhere = UdpSocket::bind("127.0.0.1:0").expect("a UDP socket");
    let mut held: HashMap<Peer, Vec<u8>> = HashMap::new();
    serve_datagrams(socket, move |socket, mut bytes, peer| {
        let fate = fate(&peer);
        let middle = bytes.len() / 2;
        match fate {
            Fate::Corrupt | Fate::CorruptTwice => bytes[middle] ^= 0x10,
            Fate::Invert => bytes.iter_mut().for_each(|byte| *byte ^= 1),
            _ => {}
        }
        match fate {
            Fate::Lose | Fate::Cut | Fate::Stall => {}
            Fate::Delay => {
                let socket = socket.try_clone().expect("a descriptor");
                thread::spawn(move || {
                    thread::sleep(delay);
                    send(&socket, &bytes, &peer);
                });
            }
            Fate::Swap => {
                held.insert(peer, bytes);
                return true;
            }
            Fate::Shorten => _ = send(socket, &bytes[..bytes.len() - 1], &peer),
            Fate::Misaddress => _ = send(&elsewhere, &bytes, &peer),
            Fate::Echo | Fate::Corrupt | Fate::Invert => _ = send(socket, &bytes, &peer),
            Fate::Duplicate | Fate::CorruptTwice => {
                send(socket, &bytes, &peer);
                send(socket, &bytes, &peer);
            }
        }
        if let Some(held) = held.remove(&peer) {
            send(socket, &held, &peer);
        }
        true
    });
    url
}

/// How many messages have met each fate.
pub(crate) type Met = Arc<Mutex<HashMap<Fate, u64>>>;

/// A service of streams, TCP or at this path: each message of this size has the next fate of the
/// plan, on whatever connection it comes, and those beyond it are echoed. Its URL, and what
/// it has done.
pub(crate) fn planned_streams(
    path: Option<&Path>,
    plan: Vec<Fate>,
    size: usize,
    delay: Duration,
) -> (String, Met) {
    let met = Met::default();
    let (fates, counts) = (Mutex::new(plan.into_iter()), Arc::clone(&met));
    let url = streams(path, move |_, mut stream| {
        let mut message = vec![0; size];
        // The last piece of the input may be shorter; it is echoed.
        while let Ok(()) = stream.read_exact(&mut message) {
            let fate = fates.lock().expect("a plan").next().unwrap_or(Fate::Echo);
            *counts.lock().expect("counts").entry(fate).or_default() += 1;
            match fate {
                Fate::Corrupt => message[size / 2] ^= 0x10,
                Fate::Invert => message.iter_mut().for_each(|byte| *byte ^= 1),
                Fate::Delay => thread::sleep(delay),
                // Without an RST, which would take back what was answered.
                Fate::Cut => _ = stream.shutdown(Shutdown::Write),
                _ => {}
            }
            if matches!(fate, Fate::Cut | Fate::Stall) {
                _ = io::copy(&mut stream, &mut io::sink());
                return;
            }
            if stream.write_all(&message).is_err() {
                return;
            }
        }
    });
    (url, met)
}
