//! Peers that talk all the time, and check every byte that comes back.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crate::harness::{Daemon, PATIENCE, connect, noise, udp};

/// The length of the noise that streams repeat: a prime, so that no size of a buffer divides it.
const PERIOD: usize = 65_521;

/// How many bytes a sender may be ahead of its slow reader.
const BULK: usize = 8 * 1024 * 1024;

/// A stream of either kind.
pub(super) trait Talker: Read + Write + Send + Sized + 'static {
    fn another(&self) -> Self;
    fn half_close(&self);
}

impl Talker for TcpStream {
    fn another(&self) -> Self {
        self.try_clone().unwrap()
    }

    fn half_close(&self) {
        self.shutdown(Shutdown::Write).unwrap();
    }
}

impl Talker for UnixStream {
    fn another(&self) -> Self {
        self.try_clone().unwrap()
    }

    fn half_close(&self) {
        self.shutdown(Shutdown::Write).unwrap();
    }
}

pub(super) fn unix_stream(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// One of them: what it is, how many messages it has sent, and the thread.
struct Talking {
    kind: &'static str,
    said: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

/// All clients that talk.
pub(super) struct Crowd {
    stop: Arc<AtomicBool>,
    talkers: Vec<Talking>,
}

impl Crowd {
    pub(super) fn new() -> Self {
        Self {
            stop: Arc::default(),
            talkers: Vec::new(),
        }
    }

    /// Does this again and again.
    fn talk(&mut self, kind: &'static str, mut once: impl FnMut() + Send + 'static) {
        self.add(kind, move |stop, said| {
            while !stop.load(Ordering::Relaxed) {
                once();
                said.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    fn add(
        &mut self,
        kind: &'static str,
        talk: impl FnOnce(&AtomicBool, &AtomicU64) + Send + 'static,
    ) {
        let stop = Arc::clone(&self.stop);
        let said = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&said);
        let thread = std::thread::spawn(move || talk(&stop, &counter));
        self.talkers.push(Talking { kind, said, thread });
    }

    /// Small messages, one after the other.
    pub(super) fn ping_pong(&mut self, mut stream: impl Talker) {
        let mut round = self.talkers.len() as u64;
        self.talk("ping-pong", move || {
            round += 1;
            let message = noise(1 + round as usize * 7 % 300, round);
            stream.write_all(&message).expect("sent");
            let mut answer = vec![0; message.len()];
            stream.read_exact(&mut answer).expect("answered");
            assert_eq!(answer, message);
        });
    }

    /// A stream of messages of all sizes that are not waited for. A slow reader lets the bytes pile
    /// up, where they are pending.
    pub(super) fn stream(&mut self, stream: impl Talker, slow: bool) {
        let seed = self.talkers.len() as u64;
        let written = Arc::new(AtomicU64::new(0));
        let sent = Arc::clone(&written);
        let mut writer = stream.another();
        self.add("writer", move |stop, _| {
            let noise = Arc::new(noise(PERIOD, seed));
            let mut place = 0;
            while !stop.load(Ordering::Relaxed) {
                let len = match place % 5 {
                    0 => 1 + place * 31 % 50,
                    1 => 1 + place * 17 % 5_000,
                    _ => 1 + place * 13 % 60_000,
                };
                let from = place % PERIOD;
                let len = len.min(PERIOD - from);
                writer.write_all(&noise[from..][..len]).expect("sent");
                place += len;
                sent.store(place as u64, Ordering::Relaxed);
            }
            writer.half_close();
        });
        let mut reader = stream;
        self.add(
            if slow { "slow reader" } else { "reader" },
            move |_, read| {
                let noise = noise(PERIOD, seed);
                let mut place = 0;
                let mut buffer = vec![0; if slow { 20_000 } else { 70_000 }];
                loop {
                    let len = reader.read(&mut buffer).expect("answered");
                    if len == 0 {
                        break;
                    }
                    for chunk in buffer[..len].chunks(1000) {
                        let from = place % PERIOD;
                        let first = chunk.len().min(PERIOD - from);
                        assert!(
                            chunk[..first] == noise[from..][..first]
                                && chunk[first..] == noise[..chunk.len() - first],
                            "wrong bytes after {place}"
                        );
                        place += chunk.len();
                    }
                    read.store(place as u64, Ordering::Relaxed);
                    // What is behind it grows, but not for ever: the end is waited for.
                    let behind = written.load(Ordering::Relaxed).saturating_sub(place as u64);
                    if slow && behind < BULK as u64 {
                        std::thread::yield_now();
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                }
                assert_eq!(
                    place as u64,
                    written.load(Ordering::Relaxed),
                    "not all came"
                );
            },
        );
    }

    /// Datagrams, a few on their way at a time, none of which may be lost or overtaken.
    fn datagrams(
        &mut self,
        kind: &'static str,
        send: impl Fn(&[u8]) -> std::io::Result<usize> + Send + 'static,
        receive: impl Fn(&mut [u8]) -> std::io::Result<usize> + Send + 'static,
    ) {
        let mut round = self.talkers.len() as u64;
        self.talk(kind, move || {
            let messages: Vec<Vec<u8>> = (0..8)
                .map(|index| {
                    noise(
                        (round as usize * 13 + index * 97) % 1200,
                        round + index as u64,
                    )
                })
                .collect();
            round += 8;
            for message in &messages {
                assert_eq!(send(message).expect("sent"), message.len());
            }
            let mut answer = [0; 2000];
            for message in &messages {
                let len = receive(&mut answer).expect("a datagram is lost");
                assert!(answer[..len] == **message, "lost, doubled or overtaken");
            }
        });
    }

    pub(super) fn udp(&mut self, address: SocketAddr) {
        let socket = Arc::new(udp("127.0.0.1:0"));
        socket.connect(address).unwrap();
        let sender = Arc::clone(&socket);
        self.datagrams(
            "UDP",
            move |message| sender.send(message),
            move |answer| socket.recv(answer),
        );
    }

    pub(super) fn unix_datagrams(&mut self, path: &Path, ours: PathBuf) {
        let socket = UnixDatagram::bind(ours).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket.connect(path).unwrap();
        let socket = Arc::new(socket);
        let sender = Arc::clone(&socket);
        self.datagrams(
            "Unix datagrams",
            move |message| sender.send(message),
            move |answer| socket.recv(answer),
        );
    }

    /// Each connects, sends one message and disconnects.
    pub(super) fn visitors<S: Talker>(&mut self, come: impl Fn() -> S + Send + 'static) {
        let mut round = self.talkers.len() as u64;
        self.talk("visitor", move || {
            round += 1;
            let message = noise(1 + round as usize * 11 % 2000, round);
            let mut stream = come();
            stream.write_all(&message).expect("sent");
            stream.half_close();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).expect("answered");
            assert!(
                answer == message,
                "{} of {} bytes",
                answer.len(),
                message.len()
            );
        });
    }

    /// One of each, to leave some processor time to others.
    pub(super) fn some(&mut self, daemon: &Daemon) {
        let (tcp, udp, folder) = places(daemon);
        let stream = folder.join("echo.sock");
        self.ping_pong(connect(tcp));
        self.ping_pong(unix_stream(&stream));
        self.udp(udp);
        self.unix_datagrams(&folder.join("datagram.sock"), folder.join("client.sock"));
        self.stream(connect(tcp), true);
        self.visitors(move || connect(tcp));
    }

    /// All kinds of all of them, and some as fast as they can.
    pub(super) fn all(&mut self, daemon: &Daemon) {
        let (tcp, udp, folder) = places(daemon);
        let stream = folder.join("echo.sock");
        let datagram = folder.join("datagram.sock");
        for _ in 0..3 {
            self.ping_pong(connect(tcp));
            self.ping_pong(unix_stream(&stream));
            self.udp(udp);
        }
        for slow in [false, true] {
            self.stream(connect(tcp), slow);
            self.stream(unix_stream(&stream), slow);
        }
        self.unix_datagrams(&datagram, folder.join("client.sock"));
        for _ in 0..2 {
            self.visitors(move || connect(tcp));
        }
        self.visitors(move || unix_stream(&stream));
    }

    /// Waits until each of them has sent something since.
    pub(super) fn wait_for_all(&self) {
        for talking in &self.talkers {
            let before = talking.said.load(Ordering::Relaxed);
            crate::harness::eventually(&format!("a {} continues", talking.kind), || {
                assert!(
                    !talking.thread.is_finished(),
                    "a {} is cut off",
                    talking.kind
                );
                talking.kind == "writer" || talking.said.load(Ordering::Relaxed) > before
            });
        }
    }

    /// Every client ends what it has begun; whatever went wrong for one fails the test.
    pub(super) fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = 0;
        for Talking { said, thread, .. } in self.talkers {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
            total += said.load(Ordering::Relaxed);
        }
        total
    }
}

/// Where a daemon with the configuration of these tests listens.
fn places(daemon: &Daemon) -> (SocketAddr, SocketAddr, &Path) {
    let (tcp, udp) = (daemon.address("main"), daemon.address("udp"));
    (tcp, udp, daemon.folder.path())
}
