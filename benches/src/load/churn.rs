//! Connections for one message each: connect, send, receive, close, again and again.
//!
//! Source addresses go round in 127.0.0.0/8, so that connections in TIME_WAIT, which are the
//! client's here, do not use up the ports.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::time::Instant;

use anyhow::{Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};

use super::pattern::Pattern;
use super::{Request, Run, Sample, TICK};

/// The number of source addresses, from 127.0.0.2 on.
const SOURCES: u64 = 250;

/// When more connections than this have failed, it is no longer a measurement.
const ERRORS_MAX: u64 = 1000;

struct Client {
    stream: TcpStream,
    since: Instant,
    sent: usize,
    received: usize,
}

pub(super) fn run(request: &Request, clients: usize, bytes: usize) -> Result<Sample> {
    let pattern = Pattern::new();
    let message = pattern.at(0, bytes);
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut run = Run::start(request)?;
    let mut serial = 0;
    let mut all = Vec::with_capacity(clients);
    for index in 0..clients {
        all.push(open(request.address, index, &epoll, &mut serial)?);
    }
    let mut events = vec![EpollEvent::empty(); 512];
    let mut buffer = vec![0; bytes + 1];
    loop {
        let count = epoll.wait(&mut events, EpollTimeout::try_from(TICK)?)?;
        for event in &events[..count] {
            let index = event.data() as usize;
            let client = &mut all[index];
            match client.advance(message, &mut buffer) {
                Ok(Progress::Waits) => continue,
                Ok(Progress::Done) => run.message(bytes, client.since.elapsed()),
                Ok(Progress::Wrong) => run.sample.wrong += 1,
                Err(_) => run.sample.errors += 1,
            }
            if run.sample.errors > ERRORS_MAX {
                bail!("more than {ERRORS_MAX} connections have failed");
            }
            *client = open(request.address, index, &epoll, &mut serial)?;
        }
        if run.is_over(Instant::now()) {
            return Ok(run.finish());
        }
    }
}

fn open(address: SocketAddr, index: usize, epoll: &Epoll, serial: &mut u64) -> Result<Client> {
    let since = Instant::now();
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), None)?;
    *serial += 1;
    let source = Ipv4Addr::new(127, 0, 0, 2 + (*serial % SOURCES) as u8);
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(&SocketAddr::from(SocketAddrV4::new(source, 0)).into())?;
    if let Err(error) = socket.connect(&address.into())
        && error.raw_os_error() != Some(nix::errno::Errno::EINPROGRESS as i32)
    {
        return Err(error.into());
    }
    let stream = TcpStream::from(socket);
    let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
    epoll.add(&stream, EpollEvent::new(flags, index as u64))?;
    Ok(Client {
        stream,
        since,
        sent: 0,
        received: 0,
    })
}

enum Progress {
    Waits,
    Done,
    Wrong,
}

impl Client {
    fn advance(&mut self, message: &[u8], buffer: &mut [u8]) -> std::io::Result<Progress> {
        if self.sent < message.len() {
            match self.stream.write(&message[self.sent..]) {
                Ok(len) => self.sent += len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Progress::Waits),
                Err(error) => return Err(error),
            }
        }
        let len = match self.stream.read(buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Progress::Waits),
            Err(error) => return Err(error),
        };
        let expected = message.get(self.received..self.received + len);
        self.received += len;
        Ok(if expected != Some(&buffer[..len]) {
            Progress::Wrong
        } else if self.received < message.len() {
            Progress::Waits
        } else {
            Progress::Done
        })
    }
}
