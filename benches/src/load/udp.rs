//! Datagrams from many sockets, a number of them under way on each, one by one or in batches.
//!
//! A datagram carries its number, so that one which is lost or late is distinguished from a wrong
//! one. A flow that hears nothing for a while gives up what is under way as lost.

use std::io::{IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, recvmmsg, recvmsg, sendmmsg,
    sendmsg, setsockopt, sockopt,
};

use super::pattern::{self, Pattern};
use super::{Load, Request, Run, Sample, TICK};

/// Enough for everything that can be under way.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;

/// A flow that receives nothing for this long has lost what is under way.
const LOST_AFTER: Duration = Duration::from_millis(100);

/// Where a datagram's number ends.
const NUMBER_BYTES: usize = 8;

/// A batch that is received as one is no larger.
const BATCH_BYTES: usize = 64 * 1024;

struct Flow {
    socket: UdpSocket,
    // Where in the pattern it starts.
    start: u64,
    // The number of the next datagram.
    next: u64,
    under_way: usize,
    heard: Instant,
    // By number, in a ring: which datagram, and when it was sent; none when its echo has arrived.
    sent: Vec<Option<(u64, Instant)>>,
}

pub(super) fn run(request: &Request) -> Result<Sample> {
    let Load::Udp {
        flows,
        bytes,
        depth,
        batches,
    } = request.load
    else {
        unreachable!("the caller chose by it");
    };
    ensure!(bytes >= NUMBER_BYTES, "a datagram carries its number");
    ensure!(
        bytes * depth < BATCH_BYTES,
        "a batch is one datagram's size"
    );
    let pattern = Pattern::new();
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut all = Vec::with_capacity(flows);
    for index in 0..flows {
        let flow = Flow::open(request, index, depth, batches)?;
        epoll.add(
            &flow.socket,
            EpollEvent::new(EpollFlags::EPOLLIN, index as u64),
        )?;
        all.push(flow);
    }
    let mut wire = Wire::new(bytes, depth, batches);
    let mut run = Run::start(request)?;
    for flow in &mut all {
        wire.send(flow, &pattern)?;
    }
    let mut events = vec![EpollEvent::empty(); 256];
    let mut looked = Instant::now();
    loop {
        let count = epoll.wait(&mut events, EpollTimeout::try_from(TICK)?)?;
        for event in &events[..count] {
            let flow = &mut all[event.data() as usize];
            wire.receive(flow, &pattern, &mut run)?;
            wire.send(flow, &pattern)?;
        }
        let now = Instant::now();
        if now >= looked + TICK {
            looked = now;
            for flow in &mut all {
                flow.give_up(now, &mut run.sample);
                wire.send(flow, &pattern)?;
            }
        }
        if run.is_over(now) {
            return Ok(run.finish());
        }
    }
}

impl Flow {
    fn open(request: &Request, index: usize, depth: usize, batches: bool) -> Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        // Beyond the system's limit where we may, else as far as it goes.
        if setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER_BYTES).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &SOCKET_BUFFER_BYTES)?;
        }
        if batches {
            setsockopt(&socket, sockopt::UdpGroSegment, &true)?;
        }
        socket.connect(request.address)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            start: pattern::start_of(index),
            next: 0,
            under_way: 0,
            heard: Instant::now(),
            // Room for those that come after they were given up.
            sent: vec![None; (depth * 8).next_power_of_two()],
        })
    }

    fn slot(&mut self, number: u64) -> &mut Option<(u64, Instant)> {
        let index = number % self.sent.len() as u64;
        &mut self.sent[index as usize]
    }

    fn give_up(&mut self, now: Instant, sample: &mut Sample) {
        if self.under_way > 0 && now >= self.heard + LOST_AFTER {
            sample.lost += self.under_way as u64;
            self.under_way = 0;
            self.heard = now;
            self.sent.fill(None);
        }
    }

    fn receive(&mut self, datagram: &[u8], now: Instant, pattern: &Pattern, run: &mut Run<'_>) {
        let Some((number, rest)) = datagram.split_first_chunk::<NUMBER_BYTES>() else {
            run.sample.wrong += 1;
            return;
        };
        let number = u64::from_le_bytes(*number);
        if !pattern.matches(self.start + number, rest) {
            run.sample.wrong += 1;
            return;
        }
        let Some((_, sent)) = self.slot(number).take_if(|(sent, _)| *sent == number) else {
            // It comes late, and was counted as lost.
            return;
        };
        self.under_way -= 1;
        self.heard = now;
        run.message(datagram.len(), now - sent);
    }
}

/// How datagrams go out and come in, with the memory for it.
struct Wire {
    datagram_bytes: usize,
    depth: usize,
    batches: bool,
    outgoing: Vec<u8>,
    incoming: Vec<u8>,
    headers: MultiHeaders<()>,
    control: Vec<u8>,
}

impl Wire {
    fn new(datagram_bytes: usize, depth: usize, batches: bool) -> Self {
        Self {
            datagram_bytes,
            depth,
            batches,
            outgoing: vec![0; depth * datagram_bytes],
            // One byte more for each shows an echo that is too long.
            incoming: vec![0; BATCH_BYTES.max(depth * (datagram_bytes + 1))],
            headers: MultiHeaders::preallocate(depth, None),
            control: cmsg_space!(i32),
        }
    }

    /// Sends as many datagrams as may be under way.
    fn send(&mut self, flow: &mut Flow, pattern: &Pattern) -> Result<()> {
        while flow.under_way < self.depth {
            let count = self.depth - flow.under_way;
            let bytes = &mut self.outgoing[..count * self.datagram_bytes];
            for (number, datagram) in (flow.next..).zip(bytes.chunks_exact_mut(self.datagram_bytes))
            {
                let (head, rest) = datagram.split_at_mut(NUMBER_BYTES);
                head.copy_from_slice(&number.to_le_bytes());
                rest.copy_from_slice(pattern.at(flow.start + number, rest.len()));
            }
            let now = Instant::now();
            let fd = flow.socket.as_raw_fd();
            let sent = if self.batches {
                let size = self.datagram_bytes as u16;
                let control = [ControlMessage::UdpGsoSegments(&size)];
                let slices = [IoSlice::new(bytes)];
                sendmsg::<()>(fd, &slices, &control, MsgFlags::empty(), None).map(|_| count)
            } else {
                let slices: Vec<[IoSlice<'_>; 1]> = bytes
                    .chunks_exact(self.datagram_bytes)
                    .map(|datagram| [IoSlice::new(datagram)])
                    .collect();
                let addresses = vec![None; count];
                let none: [ControlMessage<'_>; 0] = [];
                let headers = &mut self.headers;
                sendmmsg(fd, headers, &slices, addresses, none, MsgFlags::empty())
                    .map(|results| results.count())
            };
            let sent = match sent {
                Ok(sent) => sent,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            };
            for number in flow.next..flow.next + sent as u64 {
                *flow.slot(number) = Some((number, now));
            }
            flow.next += sent as u64;
            flow.under_way += sent;
        }
        Ok(())
    }

    /// Takes and checks what has arrived; what is left wakes us again.
    fn receive(&mut self, flow: &mut Flow, pattern: &Pattern, run: &mut Run<'_>) -> Result<()> {
        let fd = flow.socket.as_raw_fd();
        if self.batches {
            let mut slices = [IoSliceMut::new(&mut self.incoming)];
            let control = Some(self.control.as_mut_slice());
            let received = recvmsg::<()>(fd, &mut slices, control, MsgFlags::MSG_DONTWAIT);
            let (len, segment_bytes) = match received {
                Ok(message) => (message.bytes, segment_bytes(message.cmsgs()?)),
                Err(Errno::EAGAIN) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            };
            let now = Instant::now();
            for datagram in self.incoming[..len].chunks(segment_bytes.unwrap_or(len).max(1)) {
                self.check(flow, datagram, now, pattern, run);
            }
            return Ok(());
        }
        let room = self.datagram_bytes + 1;
        let mut slices: Vec<[IoSliceMut<'_>; 1]> = self
            .incoming
            .chunks_exact_mut(room)
            .take(self.depth)
            .map(|datagram| [IoSliceMut::new(datagram)])
            .collect();
        let headers = &mut self.headers;
        let received = recvmmsg(fd, headers, &mut slices, MsgFlags::MSG_DONTWAIT, None);
        let lens: Vec<usize> = match received {
            Ok(messages) => messages.map(|message| message.bytes).collect(),
            Err(Errno::EAGAIN) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let now = Instant::now();
        for (datagram, len) in self.incoming.chunks_exact(room).zip(lens) {
            self.check(flow, &datagram[..len], now, pattern, run);
        }
        Ok(())
    }

    fn check(
        &self,
        flow: &mut Flow,
        datagram: &[u8],
        now: Instant,
        pattern: &Pattern,
        run: &mut Run<'_>,
    ) {
        if datagram.len() == self.datagram_bytes {
            flow.receive(datagram, now, pattern, run);
        } else {
            run.sample.wrong += 1;
        }
    }
}

/// The size of the datagrams in a batch; none when it is a single one.
fn segment_bytes(control: impl Iterator<Item = ControlMessageOwned>) -> Option<usize> {
    control
        .filter_map(|message| match message {
            ControlMessageOwned::UdpGroSegments(bytes) => usize::try_from(bytes).ok(),
            _ => None,
        })
        .next()
}
