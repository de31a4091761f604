//! The loop of a load: its connections, its driver, and what goes between them.
//!
//! Decides nothing: the schedule says when messages are due, a lane which bytes are sent, the ledger
//! what became of each message. As in the daemon, nothing on the path of a message allocates, locks
//! or logs.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use super::Course;
use super::connector::Connector;
use super::lane::{Kind, Lane};
use super::schedule::{Schedule, Times};
use crate::driver::buffers::BUFFER_BYTES;
use crate::driver::{Buffer, Closing, Completion, Driver, Op, Token};
use crate::probe::cause::Cause;
use crate::probe::interrupt::{Interrupt, LOOK_INTERVAL};

/// How often lost datagrams are looked for, and replaced in a closed loop.
const SCAN_INTERVAL: Duration = Duration::from_millis(10);

/// A Unix socket whose queue was full is tried again after this time.
const RETRY_INTERVAL: Duration = Duration::from_micros(200);

/// The most datagrams that are sent with one buffer: the kernel cuts one message into no more.
const DATAGRAMS_MAX: usize = 64;

/// What is to be done.
pub(super) struct Task {
    pub(super) times: Times,
    /// Open loop; none: each message follows the one before.
    pub(super) schedule: Option<Schedule>,
    /// Messages on the way on each lane, without a schedule.
    pub(super) depth: u64,
    pub(super) interrupt: Interrupt,
}

/// See the module.
pub(super) struct Engine<D: Driver> {
    driver: D,
    task: Task,
    lanes: Vec<Lane>,
    /// The lane of each slot of the driver.
    by_slot: Vec<u32>,
    /// Lanes that are connected.
    living: usize,
    /// The lane that gets the next message that is due.
    turn: usize,
    /// Lanes that could not send for want of a buffer, or of room.
    waiting: Vec<u32>,
    connector: Option<Connector>,
    course: Course,
}

impl<D: Driver<Socket = OwnedFd>> Engine<D> {
    /// Gives the sockets to the driver.
    pub(super) fn new(driver: D, lanes: Vec<(OwnedFd, Kind)>, task: Task) -> Self {
        let mut engine = Self {
            driver,
            task,
            by_slot: Vec::new(),
            living: 0,
            turn: 0,
            waiting: Vec::with_capacity(lanes.len()),
            lanes: Vec::with_capacity(lanes.len()),
            connector: None,
            course: Course::default(),
        };
        for (socket, kind) in lanes {
            engine.lanes.push(Lane { token: None, kind });
            engine.attach(engine.lanes.len() - 1, socket);
        }
        engine
    }

    /// Lets this thread connect again what ends.
    pub(super) fn reconnect_by(&mut self, start: impl FnOnce(crate::driver::Waker) -> Connector) {
        self.connector = Some(start(self.driver.waker()));
    }

    /// Gives the socket of a lane to the driver.
    fn attach(&mut self, index: usize, socket: OwnedFd) {
        let lane = &mut self.lanes[index];
        let token = match &lane.kind {
            Kind::Stream(_) => {
                let connection = self.driver.add_connection(socket, Vec::new());
                self.driver.submit(Op::ReceiveAlways { connection });
                connection
            }
            Kind::Flow(_) => {
                let socket = self.driver.add_datagram_socket(socket);
                self.driver.submit(Op::ReceiveFrom { socket });
                socket
            }
        };
        lane.token = Some(token);
        self.living += 1;
        let slot = token.slot as usize;
        if self.by_slot.len() <= slot {
            self.by_slot.resize(slot + 1, u32::MAX);
        }
        self.by_slot[slot] = index as u32;
    }

    /// Sends and receives from when the time begins until it is over; `observe` is called now and
    /// then. Returns how it went.
    ///
    /// # Errors
    /// When the driver cannot continue.
    pub(super) fn run(mut self, mut observe: impl FnMut(Instant)) -> io::Result<Course> {
        let begin = self.task.times.begin;
        thread::sleep(begin.saturating_duration_since(Instant::now()));
        let mut done = Vec::with_capacity(1024);
        let (mut scanned, mut observed) = (Instant::now(), Instant::now());
        self.fill(Instant::now());
        loop {
            let now = Instant::now();
            // Also those that were due just before the end.
            self.begin_due(now);
            let sends = now < self.task.times.window.end;
            self.course.has_run |= self.task.times.window.contains(&now);
            let is_over = !sends && (!self.is_waiting(now) || now >= self.task.times.end);
            if is_over || self.task.interrupt.is_requested() {
                break;
            }
            if now >= scanned + SCAN_INTERVAL {
                scanned = now;
                self.scan(now);
            }
            if now >= observed + LOOK_INTERVAL {
                observed = now;
                self.task.interrupt.look_at_output();
                observe(now);
                // Datagrams were answered before.
                let times = &self.task.times;
                let is_silent = self.is_stream() && !self.course.has_news;
                if is_silent && now >= times.begin + times.timeout() {
                    break;
                }
            }
            self.retry(now);
            let until = self.wait_until(now, sends, scanned + SCAN_INTERVAL);
            self.driver.wait(Some(until), &mut done)?;
            let now = self.driver.now();
            for completion in done.drain(..) {
                self.handle(completion, now);
            }
            if self.living < self.lanes.len() {
                self.take_connections(now);
            }
        }
        self.give_up();
        Ok(self.course)
    }

    /// Whether each message is followed by another one.
    fn is_closed_loop(&self, now: Instant) -> bool {
        self.task.schedule.is_none() && now < self.task.times.window.end
    }

    /// In a closed loop, as many messages as may be on the way on each lane.
    fn fill(&mut self, now: Instant) {
        if !self.is_closed_loop(now) {
            return;
        }
        for index in 0..self.lanes.len() {
            if self.lanes[index].token.is_some() {
                let outstanding = self.lanes[index].ledger().outstanding();
                let count = self.task.depth.saturating_sub(outstanding);
                self.begin(index, now, now, count);
            }
        }
    }

    /// Messages of an open loop that are due by now.
    fn begin_due(&mut self, now: Instant) {
        let end = self.task.times.window.end;
        while let Some(schedule) = &mut self.task.schedule
            && let Some(due) = schedule.handle_timeout(now)
        {
            if due >= end {
                return;
            }
            // In turn, among the lanes that are connected. If none is, the message is lost for the
            // reason for which the last connection has ended.
            let count = self.lanes.len();
            let next = (0..count).map(|step| (self.turn + step) % count);
            let living = next
                .clone()
                .find(|index| self.lanes[*index].token.is_some());
            let index = living.unwrap_or(self.turn);
            self.turn = (index + 1) % count;
            self.begin(index, due, now, 1);
            if living.is_none() {
                let cause = self.course.ends.chief().cloned().unwrap_or(Cause::Closed);
                self.lose(index, &cause);
            }
        }
    }

    /// More messages are due on this lane.
    fn begin(&mut self, index: usize, due: Instant, now: Instant, count: u64) {
        if count == 0 {
            return;
        }
        match &mut self.lanes[index].kind {
            Kind::Stream(stream) => stream.handle_due(due, now, count),
            Kind::Flow(flow) => flow.ledger.handle_due(due, count),
        }
        self.send(index, now);
    }

    /// Sends what is to be sent on this lane, if it can be now.
    fn send(&mut self, index: usize, now: Instant) {
        let lane = &mut self.lanes[index];
        let Some(token) = lane.token.filter(|_| !lane.is_early(now)) else {
            return;
        };
        match &mut lane.kind {
            Kind::Stream(stream) => {
                while let Some(bytes) = stream.next_send() {
                    let Some(buffer) = self.driver.lease(bytes.len()) else {
                        return self.waiting.push(index as u32);
                    };
                    self.driver.bytes(&buffer).copy_from_slice(bytes);
                    stream.handle_given(bytes.len());
                    let connection = token;
                    self.driver.submit(Op::Send { connection, buffer });
                }
            }
            Kind::Flow(flow) => {
                // One buffer at a time: so it is known which datagrams could not be sent.
                if flow.sending > 0 || flow.ledger.unsent() == 0 {
                    return;
                }
                let size = flow.payload.size;
                let most = match flow.is_single {
                    true => 1,
                    false => DATAGRAMS_MAX.min((BUFFER_BYTES / size).max(1)),
                };
                let count = most.min(flow.ledger.unsent() as usize);
                flow.envelope.size = size;
                let Some(buffer) = self.driver.lease(size * count) else {
                    return self.waiting.push(index as u32);
                };
                self.driver.set_envelope(&buffer, &flow.envelope);
                flow.retry = None;
                flow.sending = count;
                for bytes in self.driver.bytes(&buffer).chunks_mut(size) {
                    let number = flow.ledger.handle_sent(now);
                    flow.payload.write(number, bytes);
                }
                let socket = token;
                self.driver.submit(Op::SendTo { socket, buffer });
            }
        }
    }

    /// Lets lanes try again that could not send.
    fn retry(&mut self, now: Instant) {
        if self.waiting.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|index| {
            let index = *index as usize;
            let is_early = self.lanes[index].is_early(now);
            if !is_early {
                self.send(index, now);
            }
            is_early
        });
        // The list keeps its memory.
        waiting.append(&mut self.waiting);
        self.waiting = waiting;
    }

    /// Gives up datagrams that have not come back in time; in a closed loop others follow them.
    fn scan(&mut self, now: Instant) {
        for lane in &mut self.lanes {
            if let Kind::Flow(flow) = &mut lane.kind {
                while flow.ledger.handle_timeout(now).is_some() {}
            }
        }
        if !self.is_stream() {
            self.fill(now);
        }
    }

    fn is_stream(&self) -> bool {
        matches!(self.lanes[0].kind, Kind::Stream(_))
    }

    /// Whether anything may still come back, in time or late.
    fn is_waiting(&mut self, now: Instant) -> bool {
        self.lanes.iter_mut().any(|lane| {
            let ledger = lane.ledger();
            ledger.outstanding() > 0 || ledger.poll_patience().is_some_and(|until| now < until)
        })
    }

    /// Until when the driver may wait.
    fn wait_until(&self, now: Instant, sends: bool, scan: Instant) -> Instant {
        let Times { window, end, .. } = &self.task.times;
        let mut until = now + self.task.interrupt.longest_wait(now);
        until = until.min(if sends { window.end } else { *end });
        if !self.is_stream() || !sends {
            until = until.min(scan);
        }
        if !self.waiting.is_empty() {
            until = until.min(now + RETRY_INTERVAL);
        }
        match &self.task.schedule {
            Some(schedule) if sends => until.min(schedule.poll_timeout()),
            _ => until,
        }
    }

    fn lane_of(&self, token: Token) -> Option<usize> {
        let index = *self.by_slot.get(token.slot as usize)? as usize;
        (self.lanes.get(index)?.token == Some(token)).then_some(index)
    }

    fn handle(&mut self, completion: Completion, now: Instant) {
        match completion {
            Completion::Received {
                connection: token,
                buffer,
            }
            | Completion::Datagrams {
                socket: token,
                buffer,
            } => self.handle_received(token, buffer, now),
            Completion::Sent { connection, .. } => {
                if let Some(index) = self.lane_of(connection)
                    && let Kind::Stream(stream) = &mut self.lanes[index].kind
                {
                    stream.handle_sent();
                    self.send(index, now);
                }
            }
            Completion::DatagramSent {
                socket,
                count,
                result,
            } => self.handle_datagrams_sent(socket, count as usize, result, now),
            Completion::Ended { connection } => self.end(connection, &Cause::Closed, now),
            Completion::Failed { connection, error } => {
                self.end(connection, &Cause::of(&error), now);
            }
            // There is no listener, no relay and no hand-over; a stall ends by itself; a close was
            // asked for; and connections that were made again are taken behind all completions.
            Completion::Accepted { .. }
            | Completion::AcceptPaused { .. }
            | Completion::Relayed { .. }
            | Completion::Detached { .. }
            | Completion::Stalled { .. }
            | Completion::Closed { .. }
            | Completion::Woken => {}
        }
    }

    /// Takes what has returned on a lane; in a closed loop others follow what was answered.
    fn handle_received(&mut self, token: Token, buffer: Buffer, now: Instant) {
        let Some(index) = self.lane_of(token) else {
            return self.driver.recycle(buffer);
        };
        self.course.has_news = true;
        let lane = &mut self.lanes[index];
        let before = lane.ledger().outstanding();
        let is_right = match &mut lane.kind {
            Kind::Stream(stream) => {
                let bytes = self.driver.bytes(&buffer);
                stream.handle_received(now, bytes).is_ok()
            }
            Kind::Flow(flow) => {
                let size = self.driver.envelope(&buffer).size;
                flow.handle_received(now, self.driver.bytes(&buffer), size);
                true
            }
        };
        let answered = before - lane.ledger().outstanding();
        self.driver.recycle(buffer);
        if !is_right {
            self.end(token, &Cause::Mismatch, now);
        } else if self.is_closed_loop(now) {
            self.begin(index, now, now, answered);
        }
    }

    fn handle_datagrams_sent(
        &mut self,
        token: Token,
        count: usize,
        result: io::Result<u32>,
        now: Instant,
    ) {
        let Some(index) = self.lane_of(token) else {
            return;
        };
        let Kind::Flow(flow) = &mut self.lanes[index].kind else {
            return;
        };
        let count = count.min(flow.sending);
        let first = flow.ledger.next_sent() - flow.sending as u64;
        flow.sending -= count;
        match result {
            Ok(_) => {}
            Err(error) if flow.is_single && error.kind() == ErrorKind::WouldBlock => {
                flow.ledger.handle_unsent(count as u64);
                flow.retry = Some(now + RETRY_INTERVAL);
                return self.waiting.push(index as u32);
            }
            // In a closed loop others follow with the next scan, and not at once: they would fail,
            // too.
            Err(error) => {
                let cause = Cause::of(&error);
                for number in first..first + count as u64 {
                    flow.ledger.handle_failure(number, &cause);
                }
            }
        }
        self.send(index, now);
    }

    /// A connection is over: what was on the way on it is lost for the same reason, and another one
    /// is connected.
    fn end(&mut self, token: Token, cause: &Cause, now: Instant) {
        let Some(index) = self.lane_of(token) else {
            return;
        };
        self.course.has_news = true;
        let how = Closing::Now;
        self.driver.submit(Op::Close { token, how });
        self.lanes[index].token = None;
        self.living -= 1;
        self.lose(index, cause);
        if self.task.times.window.contains(&now) {
            self.course.ends.count(cause.clone());
        }
        self.reconnect(index, now);
    }

    /// Asks for another connection for this lane, if there is still something to send.
    fn reconnect(&self, index: usize, now: Instant) {
        if let Some(connector) = &self.connector
            && now < self.task.times.window.end
        {
            connector.request(index);
        }
    }

    /// Takes connections that were made again.
    fn take_connections(&mut self, now: Instant) {
        while let Some((index, result)) = self.connector.as_ref().and_then(Connector::take) {
            match result {
                Ok(socket) => {
                    self.attach(index, socket);
                    if self.is_closed_loop(now) {
                        self.begin(index, now, now, self.task.depth);
                    }
                }
                Err(trouble) => {
                    if self.task.times.window.contains(&now) && trouble.cause != Cause::Interrupted
                    {
                        self.course.ends.count(trouble.cause);
                    }
                    self.reconnect(index, now);
                }
            }
        }
    }

    /// What is outstanding on this lane is lost.
    fn lose(&mut self, index: usize, cause: &Cause) {
        match &mut self.lanes[index].kind {
            Kind::Stream(stream) => stream.handle_end(cause),
            Kind::Flow(flow) => flow.ledger.handle_end(cause),
        };
    }

    /// What has not come back by the end is lost, unless the user did not want to wait for it.
    fn give_up(&mut self) {
        for index in 0..self.lanes.len() {
            match self.task.interrupt.is_requested() {
                true => self.lanes[index].ledger().handle_interrupt(),
                false => self.lose(index, &Cause::TimedOut),
            }
        }
    }
}
