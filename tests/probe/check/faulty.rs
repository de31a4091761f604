//! Echo servers with one fault each.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{SockRef, Socket, Type};

use crate::probe::fault::{self, Fate, Peer, echo, receive, send};

/// How long to wait for more of what is sent at once: on a busy machine that takes its time.
const MOMENT: Duration = Duration::from_millis(100);

/// Answers each datagram by itself with what this makes of it.
fn answering(make: impl Fn(Vec<u8>, &Peer) -> Option<Vec<u8>> + Send + 'static) -> String {
    fault::udp(move |socket, bytes, from| {
        if let Some(answer) = make(bytes, &from) {
            send(socket, &answer, &from);
        }
    })
}

pub(super) fn cutting(len: usize) -> String {
    answering(move |bytes, _| Some(bytes[..bytes.len().min(len)].to_vec()))
}

pub(super) fn ignoring_empty_ones() -> String {
    answering(|bytes, _| (!bytes.is_empty()).then_some(bytes))
}

pub(super) fn guarded() -> String {
    answering(|bytes, from| (fault::port(from) >= 1024).then_some(bytes))
}

pub(super) fn answering_from_elsewhere() -> String {
    fault::by_source(None, |_| Fate::Misaddress, Duration::ZERO)
}

/// Has all addresses, and leaves it to the kernel which one an answer comes from.
pub(super) fn on_every_address() -> String {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a UDP socket");
    let port = socket.local_addr().expect("an address").port();
    fault::serve_datagrams(socket.into(), |socket, bytes, from| {
        send(socket, &bytes, &from);
        true
    });
    format!("udp://127.0.0.1:{port}")
}

pub(super) fn merging() -> String {
    gathering(|messages| vec![messages.concat()])
}

pub(super) fn reordering() -> String {
    gathering(|mut messages| {
        messages.reverse();
        messages
    })
}

/// Waits a moment for what else one client sends, and answers it together.
fn gathering(make: impl Fn(Vec<Vec<u8>>) -> Vec<Vec<u8>> + Send + 'static) -> String {
    let wait = |socket: &Socket, time| socket.set_read_timeout(time).expect("a timeout");
    fault::udp(move |socket, bytes, from| {
        let mut all = vec![(bytes, from)];
        wait(socket, Some(MOMENT));
        while let Ok(message) = receive(socket) {
            all.push(message);
        }
        wait(socket, None);
        while let Some((_, from)) = all.first().cloned() {
            let (own, others) = all.into_iter().partition(|(_, other)| *other == from);
            let own: Vec<(Vec<u8>, Peer)> = own;
            for answer in make(own.into_iter().map(|(bytes, _)| bytes).collect()) {
                send(socket, &answer, &from);
            }
            all = others;
        }
    })
}

/// Asks the kernel to report answers that were refused, and takes a report for its own end.
pub(super) fn dying_of_refusals() -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a UDP socket");
    setsockopt(&socket.as_fd(), sockopt::Ipv4RecvErr, &true).expect("an option");
    let url = format!("udp://{}", socket.local_addr().expect("an address"));
    fault::serve_datagrams(socket.into(), |socket, bytes, from| {
        send(socket, &bytes, &from)
    });
    url
}

/// Serves each client so.
fn serving(
    serve: impl Fn(usize, TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
) -> String {
    // What a client does is no fault of the server.
    fault::streams(None, move |number, client| _ = serve(number, client))
}

pub(super) fn faultless() -> String {
    serving(|_, client| echo(&client, usize::MAX, |_, _| {}))
}

pub(super) fn one_at_a_time() -> String {
    let (listener, url) = fault::bind(Type::STREAM, None);
    listener.listen(128).expect("a listener");
    thread::spawn(move || {
        while let Ok((client, _)) = listener.accept() {
            let _ = echo(&client.into(), usize::MAX, |_, _| {});
        }
    });
    url
}

/// Holds back what came last until more comes, or for a moment; at the half-close it is lost.
pub(super) fn not_flushing() -> String {
    serving(|_, mut client| {
        client.set_read_timeout(Some(MOMENT))?;
        let mut held = Vec::new();
        let mut memory = vec![0; 1 << 16];
        loop {
            let len = match client.read(&mut memory) {
                Ok(0) => return Ok(()),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            };
            client.write_all(&held)?;
            held = memory[..len].to_vec();
        }
    })
}

pub(super) fn resetting() -> String {
    serving(|_, client| {
        SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
        echo(&client, usize::MAX, |_, _| {})
    })
}

/// Reads on, whether what it sends is read or not.
pub(super) fn hoarding() -> String {
    serving(|_, client| {
        let (more, hoard) = mpsc::channel::<Vec<u8>>();
        let mut writer = client.try_clone()?;
        let writing = thread::spawn(move || {
            let written = hoard.iter().try_for_each(|bytes| writer.write_all(&bytes));
            written.and_then(|()| writer.shutdown(Shutdown::Write))
        });
        let mut memory = vec![0; 1 << 16];
        while let Ok(len @ 1..) = (&client).read(&mut memory) {
            if more.send(memory[..len].to_vec()).is_err() {
                break;
            }
        }
        drop(more);
        writing.join().expect("it does not panic")
    })
}

/// Takes a reset for its own end.
pub(super) fn dying_of_resets() -> String {
    let (listener, url) = fault::bind(Type::STREAM, None);
    listener.listen(128).expect("a listener");
    let listener = Arc::new(listener);
    thread::spawn(move || {
        while let Ok((client, _)) = listener.accept() {
            let listener = Arc::clone(&listener);
            thread::spawn(move || {
                if echo(&client.into(), usize::MAX, |_, _| {}).is_err() {
                    // Ends it; another client may have done so.
                    let _ = listener.shutdown(Shutdown::Both);
                }
            });
        }
    });
    url
}

/// Answers the first read, ends the connection, and resets it amid what comes behind that.
pub(super) fn answering_once() -> String {
    serving(|_, mut client| {
        let mut memory = vec![0; 1 << 16];
        let len = client.read(&mut memory)?;
        client.write_all(&memory[..len])?;
        client.shutdown(Shutdown::Write)?;
        std::io::copy(&mut client.take(8 << 20), &mut std::io::sink()).map(drop)
    })
}

pub(super) fn answering_at_the_end() -> String {
    serving(|_, mut client| {
        let mut all = Vec::new();
        client.read_to_end(&mut all)?;
        client.write_all(&all)
    })
}

/// Echoes to the first client, and says nothing to others.
pub(super) fn answering_one_client() -> String {
    serving(|number, mut client| match number {
        0 => echo(&client, usize::MAX, |_, _| {}),
        _ => client.read_to_end(&mut Vec::new()).map(drop),
    })
}
