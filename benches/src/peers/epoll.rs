//! A loop around `epoll_wait(2)`: one read and one write for each event. TCP alone.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use anyhow::Result;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::BUFFER_BYTES;

/// Marks the listener's event.
const LISTENER: u64 = u64::MAX;

struct Connection {
    stream: TcpStream,
    // What its peer has not taken yet; it is not read until then.
    owed: Vec<u8>,
}

pub(super) fn serve(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut connections = HashMap::new();
    let mut next = 0;
    let mut events = vec![EpollEvent::empty(); 1024];
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
            // A tracer was attached.
            Err(Errno::EINTR) => continue,
            count => count?,
        };
        for event in &events[..count] {
            if event.data() == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, next))?;
                    let owed = Vec::new();
                    connections.insert(next, Connection { stream, owed });
                    next += 1;
                }
                continue;
            }
            let Some(connection) = connections.get_mut(&event.data()) else {
                continue;
            };
            let owed = !connection.owed.is_empty();
            let served = if owed {
                connection.flush()
            } else {
                connection.echo(&mut buffer)
            };
            if served.is_err() {
                connections.remove(&event.data());
            } else if owed == connection.owed.is_empty() {
                let wish = if owed {
                    EpollFlags::EPOLLIN
                } else {
                    EpollFlags::EPOLLOUT
                };
                epoll.modify(&connection.stream, &mut EpollEvent::new(wish, event.data()))?;
            }
        }
    }
}

impl Connection {
    fn echo(&mut self, buffer: &mut [u8]) -> std::io::Result<()> {
        let len = match self.stream.read(buffer)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            len => len,
        };
        let written = self.write(&buffer[..len])?;
        self.owed.extend_from_slice(&buffer[written..len]);
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        let owed = std::mem::take(&mut self.owed);
        let written = self.write(&owed)?;
        self.owed.extend_from_slice(&owed[written..]);
        Ok(())
    }

    fn write(&self, bytes: &[u8]) -> std::io::Result<usize> {
        match (&self.stream).write(bytes) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            result => result,
        }
    }
}
