//! Echo servers with one fault each. They end with the test.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::SockRef;

/// How long to wait for more of what is sent at once.
const MOMENT: Duration = Duration::from_millis(30);

/// How often a server looks whether its test is over.
const LOOK: Duration = Duration::from_millis(50);

/// One of datagrams.
pub(super) struct Datagrams {
    port: u16,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A datagram that came.
type Message = (Vec<u8>, SocketAddr);

impl Datagrams {
    /// Answers as this says, on this address.
    fn start(
        local: &str,
        mut serve: impl FnMut(&UdpSocket, Message) -> bool + Send + 'static,
    ) -> Self {
        let socket = UdpSocket::bind(local).expect("a UDP socket");
        let port = socket.local_addr().expect("an address").port();
        let is_over = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let is_over = Arc::clone(&is_over);
            move || {
                while !is_over.load(Ordering::Relaxed) {
                    let goes_on = match receive(&socket, LOOK) {
                        Ok(Some(message)) => serve(&socket, message),
                        Ok(None) => true,
                        Err(_) => false,
                    };
                    if !goes_on {
                        return;
                    }
                }
            }
        });
        Self {
            port,
            is_over,
            thread: Some(thread),
        }
    }

    /// Answers each datagram by itself with what this makes of it.
    fn answering(make: impl Fn(&[u8], SocketAddr) -> Option<Vec<u8>> + Send + 'static) -> Self {
        Self::start("127.0.0.1:0", move |socket, (bytes, from)| {
            if let Some(answer) = make(&bytes, from) {
                answer_to(socket, &answer, from);
            }
            true
        })
    }

    pub(super) fn cutting(len: usize) -> Self {
        Self::answering(move |bytes, _| Some(bytes[..bytes.len().min(len)].to_vec()))
    }

    pub(super) fn ignoring_empty_ones() -> Self {
        Self::answering(|bytes, _| (!bytes.is_empty()).then(|| bytes.to_vec()))
    }

    pub(super) fn guarded() -> Self {
        Self::answering(|bytes, from| (from.port() >= 1024).then(|| bytes.to_vec()))
    }

    pub(super) fn answering_from_elsewhere() -> Self {
        let other = UdpSocket::bind("127.0.0.1:0").expect("a UDP socket");
        Self::start("127.0.0.1:0", move |_, (bytes, from)| {
            answer_to(&other, &bytes, from);
            true
        })
    }

    /// Has all addresses, and leaves it to the kernel which one an answer comes from.
    pub(super) fn on_every_address() -> Self {
        Self::start("0.0.0.0:0", |socket, (bytes, from)| {
            answer_to(socket, &bytes, from);
            true
        })
    }

    pub(super) fn merging() -> Self {
        Self::gathering(|messages| vec![messages.concat()])
    }

    pub(super) fn reordering() -> Self {
        Self::gathering(|mut messages| {
            messages.reverse();
            messages
        })
    }

    /// Waits a moment for what else one client sends, and answers it together.
    fn gathering(make: impl Fn(Vec<Vec<u8>>) -> Vec<Vec<u8>> + Send + 'static) -> Self {
        Self::start("127.0.0.1:0", move |socket, first| {
            let mut all = vec![first];
            while let Ok(Some(message)) = receive(socket, MOMENT) {
                all.push(message);
            }
            while let Some((_, from)) = all.first().cloned() {
                let (own, others) = all.into_iter().partition(|(_, other)| *other == from);
                let own: Vec<Message> = own;
                for answer in make(own.into_iter().map(|(bytes, _)| bytes).collect()) {
                    answer_to(socket, &answer, from);
                }
                all = others;
            }
            true
        })
    }

    /// Asks the kernel to report answers that were refused, and takes a report for its own end.
    pub(super) fn dying_of_refusals() -> Self {
        let mut is_prepared = false;
        Self::start("127.0.0.1:0", move |socket, (bytes, from)| {
            if !is_prepared {
                setsockopt(socket, sockopt::Ipv4RecvErr, &true).expect("an option");
                is_prepared = true;
            }
            socket.send_to(&bytes, from).is_ok()
        })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn url(&self) -> String {
        format!("udp://127.0.0.1:{}", self.port)
    }
}

/// The next datagram within this time.
fn receive(socket: &UdpSocket, time: Duration) -> std::io::Result<Option<Message>> {
    socket.set_read_timeout(Some(time))?;
    let mut memory = vec![0; 1 << 16];
    match socket.recv_from(&mut memory) {
        Ok((len, from)) => Ok(Some((memory[..len].to_vec(), from))),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// The client may have closed.
fn answer_to(socket: &UdpSocket, bytes: &[u8], to: SocketAddr) {
    let _ = socket.send_to(bytes, to);
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("it is dropped once");
        // If it has failed, the test has, too.
        let _ = thread.join();
    }
}

/// One of streams.
pub(super) struct Streams {
    address: SocketAddr,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Streams {
    /// Serves each client so: in a thread of its own, or one after the other.
    fn start(
        in_threads: bool,
        serve: impl Fn(TcpStream, &AtomicBool) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("an address");
        let is_over = Arc::new(AtomicBool::new(false));
        let serve = Arc::new(serve);
        let thread = thread::spawn({
            let is_over = Arc::clone(&is_over);
            move || {
                for client in listener.incoming() {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    let (serve, is_over) = (Arc::clone(&serve), Arc::clone(&is_over));
                    // What a client does is no fault of the server.
                    let talk = move || _ = serve(client.expect("a client"), &is_over);
                    match in_threads {
                        true => _ = thread::spawn(talk),
                        false => talk(),
                    }
                }
            }
        });
        Self {
            address,
            is_over,
            thread: Some(thread),
        }
    }

    pub(super) fn faultless() -> Self {
        Self::start(true, |client, _| echo(&client))
    }

    pub(super) fn one_at_a_time() -> Self {
        Self::start(false, |client, _| echo(&client))
    }

    /// Holds back what came last until more comes, or for a moment; at the half-close it is lost.
    pub(super) fn not_flushing() -> Self {
        Self::start(true, |mut client, _| {
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

    pub(super) fn resetting() -> Self {
        Self::start(true, |client, _| {
            SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
            echo(&client)
        })
    }

    /// Reads on, whether what it sends is read or not.
    pub(super) fn hoarding() -> Self {
        Self::start(true, |client, _| {
            let (more, hoard) = std::sync::mpsc::channel::<Vec<u8>>();
            let mut writer = client.try_clone()?;
            let writing = thread::spawn(move || {
                for bytes in hoard {
                    if writer.write_all(&bytes).is_err() {
                        return;
                    }
                }
                // The client may be gone.
                let _ = writer.shutdown(Shutdown::Write);
            });
            let mut memory = vec![0; 1 << 16];
            while let Ok(len @ 1..) = (&client).read(&mut memory) {
                if more.send(memory[..len].to_vec()).is_err() {
                    break;
                }
            }
            drop(more);
            writing.join().expect("it does not panic");
            Ok(())
        })
    }

    /// Takes a reset for its own end.
    pub(super) fn dying_of_resets() -> Self {
        Self::start(true, |client, is_over| {
            let address = client.local_addr()?;
            let result = echo(&client);
            // A client that has sent all that it wanted, and closes unread, is no such one.
            if result.is_err() && !is_over.swap(true, Ordering::Relaxed) {
                // Has it look.
                TcpStream::connect(address)?;
            }
            result
        })
    }

    pub(super) fn answering_at_the_end() -> Self {
        Self::start(true, |mut client, _| {
            let mut all = Vec::new();
            client.read_to_end(&mut all)?;
            client.write_all(&all)
        })
    }

    /// Echoes to the first client, and says nothing to others.
    pub(super) fn answering_one_client() -> Self {
        let has_answered = AtomicBool::new(false);
        Self::start(true, move |mut client, _| {
            match has_answered.swap(true, Ordering::Relaxed) {
                false => echo(&client),
                true => client.read_to_end(&mut Vec::new()).map(drop),
            }
        })
    }

    pub(super) fn url(&self) -> String {
        format!("tcp://{}", self.address)
    }
}

fn echo(mut client: &TcpStream) -> std::io::Result<()> {
    let mut memory = vec![0; 1 << 16];
    loop {
        let len = client.read(&mut memory)?;
        if len == 0 {
            return Ok(());
        }
        client.write_all(&memory[..len])?;
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // Has it look; it may have ended by itself.
        let _ = TcpStream::connect(self.address);
        let thread = self.thread.take().expect("it is dropped once");
        // If it has failed, the test has, too.
        let _ = thread.join();
    }
}
