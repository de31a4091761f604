//! Connections that stay, with a number of messages under way on each.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::pattern::Pattern;
use super::stream::Stream;
use super::{Load, Request, Run, Sample, TICK};

/// The most that is read at once.
const READ_BYTES: usize = 256 * 1024;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

struct Connection {
    socket: TcpStream,
    stream: Stream,
    message_bytes: u64,
    // Counted from the start of the stream.
    may_send: u64,
}

pub(super) fn run(request: &Request) -> Result<Sample> {
    let Load::Tcp {
        connections,
        bytes,
        depth,
        spins,
    } = request.load
    else {
        unreachable!("the caller chose by it");
    };
    let pattern = Pattern::new();
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut all = Vec::with_capacity(connections);
    for index in 0..connections {
        all.push(Connection::open(request.address, index, bytes, depth)?);
    }
    let mut run = Run::start(request)?;
    for (index, connection) in all.iter_mut().enumerate() {
        // Edges: the client makes no more system calls than it must, for it has to keep ahead.
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        connection.stream = Stream::new(index, bytes, depth);
        epoll.add(&connection.socket, EpollEvent::new(flags, index as u64))?;
    }
    let timeout = if spins {
        EpollTimeout::ZERO
    } else {
        EpollTimeout::try_from(TICK)?
    };
    let mut events = vec![EpollEvent::empty(); 512];
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let count = epoll.wait(&mut events, timeout)?;
        for event in &events[..count] {
            let connection = &mut all[event.data() as usize];
            let served = connection
                .receive(&mut buffer, &pattern, &mut run)
                .and_then(|()| connection.send(&pattern));
            if served.is_err() {
                run.sample.errors += 1;
                epoll.delete(&connection.socket)?;
            }
        }
        if run.is_over(Instant::now()) {
            return Ok(run.finish());
        }
    }
}

pub(super) fn connect(address: SocketAddr, index: usize) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)
        .with_context(|| format!("connection {index} to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

impl Connection {
    fn open(address: SocketAddr, index: usize, bytes: usize, depth: usize) -> Result<Self> {
        Ok(Self {
            socket: connect(address, index)?,
            stream: Stream::new(index, bytes, depth),
            message_bytes: bytes as u64,
            may_send: (bytes * depth) as u64,
        })
    }

    /// Takes what has arrived and checks it; each whole message allows another one.
    fn receive(
        &mut self,
        buffer: &mut [u8],
        pattern: &Pattern,
        run: &mut Run<'_>,
    ) -> std::io::Result<()> {
        loop {
            let len = match self.socket.read(buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            let completed = self.stream.handle_received(&buffer[..len], pattern, run);
            self.may_send += completed * self.message_bytes;
            // A short read has emptied the socket.
            if len < buffer.len() {
                return Ok(());
            }
        }
    }

    /// Sends as much as may be and can be; the next edge brings us back for the rest.
    fn send(&mut self, pattern: &Pattern) -> std::io::Result<()> {
        while self.stream.sent() < self.may_send {
            let left = (self.may_send - self.stream.sent()) as usize;
            match self.socket.write(self.stream.next(pattern, left)) {
                Ok(len) => self.stream.handle_sent(len),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
