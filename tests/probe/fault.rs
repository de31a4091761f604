//! A server that loses, delays, duplicates, reorders, corrupts and misaddresses by a seeded plan: what a
//! client reports has to equal that.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// What is done to a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fate {
    Echo,
    Lose,
    /// Answered after a delay.
    Delay,
    Duplicate,
    /// Answered behind the one that comes after it.
    Swap,
    /// One bit is turned.
    Corrupt,
    /// One bit is turned, and the result is sent twice.
    CorruptTwice,
    /// The last byte is cut off.
    Cut,
    /// Answered from another port.
    Misaddress,
}

/// One number from another, as if by chance (xorshift64).
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// The fates of this number of datagrams, in the order in which they come.
pub(crate) fn plan(seed: u64, count: usize) -> Vec<Fate> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut plan: Vec<Fate> = Vec::with_capacity(count);
    while plan.len() < count {
        // A swapped one comes behind the next, which has to be answered at once.
        let after_swap = plan.last() == Some(&Fate::Swap);
        let is_last = plan.len() + 1 == count;
        plan.push(match next(&mut state) % 100 {
            // The last one is answered once and at once, so that no copy comes behind the end.
            _ if after_swap || is_last => Fate::Echo,
            0..10 => Fate::Lose,
            10..18 => Fate::Delay,
            18..26 => Fate::Duplicate,
            26..34 => Fate::Swap,
            34..39 => Fate::Corrupt,
            39..42 => Fate::CorruptTwice,
            42..46 => Fate::Cut,
            46..50 => Fate::Misaddress,
            _ => Fate::Echo,
        });
    }
    plan
}

/// How often each fate is in a plan.
pub(crate) fn count(plan: &[Fate], fate: Fate) -> u64 {
    plan.iter().filter(|other| **other == fate).count() as u64
}

/// The answers that come behind one to a later datagram, if a delay is longer than the rest takes.
pub(crate) fn reordered(plan: &[Fate]) -> u64 {
    let at_once = [Fate::Echo, Fate::Duplicate, Fate::Swap];
    let is_behind = |(index, fate): &(usize, &Fate)| match fate {
        Fate::Swap => true,
        Fate::Delay => plan[index + 1..].iter().any(|fate| at_once.contains(fate)),
        _ => false,
    };
    plan.iter().enumerate().filter(is_behind).count() as u64
}

/// The server; it ends with the test.
pub(crate) struct FaultyServer {
    pub(crate) address: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FaultyServer {
    /// Over UDP: each datagram has the next fate of the plan, and those beyond it are echoed.
    pub(crate) fn udp(plan: Vec<Fate>, delay: Duration) -> Self {
        let mut fates = plan.into_iter();
        Self::serve(move |_| fates.next().unwrap_or(Fate::Echo), delay)
    }

    /// Over UDP: the fate depends on the sender.
    pub(crate) fn by_source(fate: impl Fn(SocketAddr) -> Fate + Send + 'static) -> Self {
        Self::serve(fate, Duration::ZERO)
    }

    fn serve(mut fate: impl FnMut(SocketAddr) -> Fate + Send + 'static, delay: Duration) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a UDP socket");
        let elsewhere = UdpSocket::bind("127.0.0.1:0").expect("a UDP socket");
        let address = socket.local_addr().expect("an address");
        socket
            .set_read_timeout(Some(Duration::from_millis(5)))
            .expect("a timeout");
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let thread = thread::spawn(move || {
            let mut memory = vec![0; 65_536];
            let mut held: HashMap<SocketAddr, Vec<u8>> = HashMap::new();
            let mut delayed: Vec<(Instant, SocketAddr, Vec<u8>)> = Vec::new();
            let send = |bytes: &[u8], to| {
                // A client that has ended is no reason to end.
                let _ = socket.send_to(bytes, to);
            };
            while !until.load(Ordering::Relaxed) {
                delayed.retain(|(due, to, bytes)| {
                    let waits = Instant::now() < *due;
                    if !waits {
                        send(bytes, *to);
                    }
                    waits
                });
                let Ok((len, client)) = socket.recv_from(&mut memory) else {
                    continue;
                };
                let bytes = &mut memory[..len];
                match fate(client) {
                    Fate::Echo => send(bytes, client),
                    Fate::Lose => {}
                    Fate::Delay => delayed.push((Instant::now() + delay, client, bytes.to_vec())),
                    Fate::Duplicate => {
                        send(bytes, client);
                        send(bytes, client);
                    }
                    Fate::Swap => {
                        held.insert(client, bytes.to_vec());
                        continue;
                    }
                    Fate::Corrupt => {
                        bytes[len / 2] ^= 0x10;
                        send(bytes, client);
                    }
                    Fate::CorruptTwice => {
                        bytes[len / 2] ^= 0x10;
                        send(bytes, client);
                        send(bytes, client);
                    }
                    Fate::Cut => send(&bytes[..len - 1], client),
                    Fate::Misaddress => _ = elsewhere.send_to(bytes, client),
                }
                if let Some(held) = held.remove(&client) {
                    send(&held, client);
                }
            }
        });
        Self {
            address,
            over,
            thread: Some(thread),
        }
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        format!("udp://{}", self.address)
    }
}

impl Drop for FaultyServer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed.
            let _ = thread.join();
        }
    }
}

/// A TCP server that hands each connection, and its number, to this function, one after the other.
/// It ends with the process.
pub(crate) fn tcp(serve: impl Fn(usize, std::net::TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            serve(number, stream);
        }
    });
    format!("tcp://{address}")
}

/// Echoes this number of bytes, or until the end; returns how many it was.
pub(crate) fn echo(mut stream: &std::net::TcpStream, limit: usize) -> usize {
    let mut memory = [0; 4096];
    let mut count = 0;
    while count < limit {
        let room = memory.len().min(limit - count);
        match stream.read(&mut memory[..room]) {
            Ok(len @ 1..) if stream.write_all(&memory[..len]).is_ok() => count += len,
            _ => break,
        }
    }
    count
}
