//! One thread of a load: its connections, its driver, and the loop between them.
//!
//! Decides nothing: what is sent and what an answer is worth, [`Stream`], [`Flow`] and [`Sheet`]
//! say. As in the daemon, nothing on the path of a message allocates, locks or logs.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};

use super::flow::{self, Flow};
use super::schedule::Schedule;
use super::sheet::{Sheet, Times};
use super::stream::{self, Stream};
use crate::driver::buffers::BUFFER_BYTES;
use crate::driver::{Buffer, Closing, Completion, Driver, Envelope, Op, Token};
use crate::probe::cause::Cause;
use crate::probe::interrupt::{Interrupt, LOOK_INTERVAL};
use crate::stats::Counter;

/// How often it is looked for datagrams that are lost, and those that found no room tried again.
const SCAN_INTERVAL: Duration = Duration::from_millis(10);

/// After so long it is tried again to send to a Unix socket whose queue was full.
const RETRY_INTERVAL: Duration = Duration::from_micros(200);

/// So many datagrams are sent with one buffer: what the kernel cuts one message into at most.
const DATAGRAMS_MAX: usize = 64;

/// What a thread is to do.
pub(super) struct Task {
    pub(super) times: Times,
    /// Open loop; none: each message follows the one before.
    pub(super) schedule: Option<Schedule>,
    /// Messages on the way on each lane, without a schedule.
    pub(super) depth: u32,
    pub(super) interrupt: Interrupt,
    /// Messages that came back, for whoever shows progress.
    pub(super) progress: Arc<Counter>,
}

/// A connection or flow before it is given to a driver.
pub(super) enum Socket {
    Stream(OwnedFd, Stream),
    Flow(OwnedFd, Flow, Box<Envelope>),
}

/// The same with its driver.
struct Lane {
    token: Token,
    living: bool,
    kind: Kind,
}

enum Kind {
    Stream(Stream),
    Flow {
        flow: Flow,
        envelope: Box<Envelope>,
        // A Unix socket takes one at a time: so it is known which one it would not take.
        single: bool,
        // So many are being sent.
        sending: usize,
        // When to try again what found no room.
        retry: Option<Instant>,
    },
}

/// One thread of a load.
pub(super) struct Engine<D: Driver> {
    driver: D,
    task: Task,
    lanes: Vec<Lane>,
    // The lane of each slot of the driver.
    by_slot: Vec<u32>,
    living: usize,
    // Whose turn it is to get the next message that is due.
    turn: usize,
    // Messages that are due and have not come back.
    outstanding: u64,
    // Who could not send for want of a buffer, or of room.
    waiting: Vec<u32>,
    sheet: Sheet,
    answered: u64,
}

impl<D: Driver<Socket = OwnedFd>> Engine<D> {
    /// Gives the sockets to the driver. Only then asks for the task, whose time may begin at once.
    pub(super) fn new(mut driver: D, sockets: Vec<Socket>, task: impl FnOnce() -> Task) -> Self {
        let mut lanes = Vec::with_capacity(sockets.len());
        let mut by_slot = Vec::new();
        for (socket, index) in sockets.into_iter().zip(0..) {
            let (token, kind) = match socket {
                Socket::Stream(fd, stream) => {
                    let connection = driver.add_connection(fd, Vec::new());
                    driver.submit(Op::Receive { connection });
                    (connection, Kind::Stream(stream))
                }
                Socket::Flow(fd, flow, envelope) => {
                    let socket = driver.add_datagram_socket(fd);
                    driver.submit(Op::ReceiveFrom { socket });
                    let single = crate::driver::ip_of(&envelope.source).is_none();
                    let kind = Kind::Flow {
                        flow,
                        envelope,
                        single,
                        sending: 0,
                        retry: None,
                    };
                    (socket, kind)
                }
            };
            let slot = token.slot as usize;
            if by_slot.len() <= slot {
                by_slot.resize(slot + 1, u32::MAX);
            }
            by_slot[slot] = index;
            lanes.push(Lane {
                token,
                living: true,
                kind,
            });
        }
        let task = task();
        Self {
            sheet: Sheet::new(task.times.window.clone()),
            waiting: Vec::with_capacity(lanes.len()),
            living: lanes.len(),
            driver,
            task,
            lanes,
            by_slot,
            turn: 0,
            outstanding: 0,
            answered: 0,
        }
    }

    /// Sends and receives from when the time begins until it is over.
    ///
    /// # Errors
    /// When the driver can't go on.
    pub(super) fn run(mut self) -> io::Result<Sheet> {
        let begin = self.task.times.begin;
        thread::sleep(begin.saturating_duration_since(Instant::now()));
        let mut done = Vec::with_capacity(1024);
        let mut scanned = Instant::now();
        let mut busy = Busy::default();
        if self.task.schedule.is_none() {
            self.begin_closed_loop();
        }
        loop {
            let now = Instant::now();
            // Also those that were due just before the end.
            self.begin_due(now);
            let Times { window, end, .. } = &self.task.times;
            let sends = now < window.end;
            busy.look(now, window);
            let over = !sends && (self.outstanding == 0 || now >= *end);
            if over || self.living == 0 || self.task.interrupt.is_requested() {
                break;
            }
            if now >= scanned + SCAN_INTERVAL {
                scanned = now;
                self.scan(now);
            }
            self.retry(now);
            let until = self.rest_until(now, sends, scanned + SCAN_INTERVAL);
            self.driver.wait(Some(until), &mut done)?;
            let now = self.driver.now();
            let goes_on = self.task.schedule.is_none() && now < self.task.times.window.end;
            for completion in done.drain(..) {
                self.handle(completion, now, goes_on);
            }
            if self.answered > 0 {
                self.task.progress.add(std::mem::take(&mut self.answered));
            }
        }
        self.sheet.end(Instant::now());
        self.sheet.measured.busy = busy.share();
        self.give_up();
        Ok(self.sheet)
    }

    /// The first messages of a closed loop; later ones follow answers.
    fn begin_closed_loop(&mut self) {
        let now = Instant::now();
        for index in 0..self.lanes.len() {
            self.begin(index, now, self.task.depth.into());
            self.send(index, now);
        }
    }

    /// Messages of an open loop that are due by now.
    fn begin_due(&mut self, now: Instant) {
        let end = self.task.times.window.end;
        if self.living == 0 {
            return;
        }
        while let Some(schedule) = &mut self.task.schedule
            && let Some(due) = schedule.handle_timeout(now)
        {
            if due >= end {
                return;
            }
            // In turn, among those that there still are.
            while !self.lanes[self.turn].living {
                self.turn = (self.turn + 1) % self.lanes.len();
            }
            let index = self.turn;
            self.turn = (self.turn + 1) % self.lanes.len();
            self.begin(index, due, 1);
            self.send(index, now);
        }
    }

    /// So many messages are due on this lane.
    fn begin(&mut self, index: usize, due: Instant, count: u64) {
        match &mut self.lanes[index].kind {
            Kind::Stream(stream) => stream.handle_due(due, count),
            Kind::Flow { flow, .. } => flow.handle_due(due, count),
        }
        self.outstanding += count;
        self.sheet.handle_due(due, count);
    }

    /// Sends what is to be sent on this lane, if it can be now.
    fn send(&mut self, index: usize, now: Instant) {
        let lane = &mut self.lanes[index];
        if !lane.living {
            return;
        }
        match &mut lane.kind {
            Kind::Stream(stream) => {
                let Some(bytes) = stream.next_send() else {
                    return;
                };
                let Some(buffer) = self.driver.lease(bytes.len()) else {
                    self.waiting.push(index as u32);
                    return;
                };
                self.driver.bytes(&buffer).copy_from_slice(bytes);
                stream.handle_given(bytes.len());
                self.driver.submit(Op::Send {
                    connection: lane.token,
                    buffer,
                });
            }
            Kind::Flow {
                flow,
                envelope,
                single,
                sending,
                retry,
            } => {
                if *sending > 0 || retry.is_some_and(|retry| now < retry) {
                    return;
                }
                let Some((size, count)) = flow.poll_send() else {
                    return;
                };
                let most = if *single { 1 } else { DATAGRAMS_MAX };
                let count = count.min(most).min((BUFFER_BYTES / size.max(1)).max(1));
                envelope.size = size;
                let Some(buffer) = self.driver.lease(size * count) else {
                    self.waiting.push(index as u32);
                    return;
                };
                self.driver.set_envelope(&buffer, envelope);
                *retry = None;
                *sending = count;
                for bytes in self.driver.bytes(&buffer).chunks_mut(size) {
                    flow.write(now, bytes);
                }
                self.driver.submit(Op::SendTo {
                    socket: lane.token,
                    buffer,
                });
            }
        }
    }

    /// Lets those try again who could not send.
    fn retry(&mut self, now: Instant) {
        if self.waiting.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|index| {
            let index = *index as usize;
            let is_early = match &self.lanes[index].kind {
                Kind::Flow { retry, .. } => retry.is_some_and(|retry| now < retry),
                Kind::Stream(_) => false,
            };
            if !is_early {
                self.send(index, now);
            }
            is_early
        });
        // The list keeps its memory.
        waiting.append(&mut self.waiting);
        self.waiting = waiting;
    }

    /// Gives up datagrams that have not come back in time.
    fn scan(&mut self, now: Instant) {
        let goes_on = self.task.schedule.is_none() && now < self.task.times.window.end;
        for index in 0..self.lanes.len() {
            let Kind::Flow { flow, .. } = &mut self.lanes[index].kind else {
                continue;
            };
            let mut lost = 0;
            flow.handle_timeout(now, |due| {
                lost += 1;
                self.sheet.handle_loss(due, 1, Cause::TimedOut);
            });
            self.outstanding -= lost;
            if goes_on && lost > 0 {
                self.begin(index, now, lost);
                self.send(index, now);
            }
        }
    }

    /// Until when the driver may wait.
    fn rest_until(&self, now: Instant, sends: bool, scan: Instant) -> Instant {
        let Times { window, end, .. } = &self.task.times;
        let mut until = (now + LOOK_INTERVAL).min(if sends { window.end } else { *end });
        if now < window.start {
            until = until.min(window.start);
        }
        if !matches!(self.lanes[0].kind, Kind::Stream(_)) {
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
        (self.lanes.get(index)?.token == token).then_some(index)
    }

    fn handle(&mut self, completion: Completion, now: Instant, goes_on: bool) {
        match completion {
            Completion::Received { connection, buffer } => {
                self.received(connection, buffer, now, goes_on);
            }
            Completion::Sent { connection, .. } => {
                if let Some(index) = self.lane_of(connection)
                    && let Kind::Stream(stream) = &mut self.lanes[index].kind
                {
                    stream.handle_sent();
                    self.send(index, now);
                }
            }
            Completion::Datagrams { socket, buffer } => self.arrived(socket, buffer, now, goes_on),
            Completion::DatagramSent {
                socket,
                count,
                result,
            } => self.datagrams_sent(socket, count as usize, result, now),
            Completion::Ended { connection } => self.end(connection, &Cause::Closed),
            Completion::Failed { connection, error } => self.end(connection, &Cause::of(&error)),
            // Nobody comes here, nothing is relayed, handed over or woken; a stall goes on by itself.
            Completion::Accepted { .. }
            | Completion::AcceptPaused { .. }
            | Completion::Relayed { .. }
            | Completion::Detached { .. }
            | Completion::Stalled { .. }
            | Completion::Closed { .. }
            | Completion::Woken => {}
        }
    }

    fn received(&mut self, token: Token, buffer: Buffer, now: Instant, goes_on: bool) {
        let Some(index) = self.lane_of(token) else {
            return self.driver.recycle(buffer);
        };
        let Kind::Stream(stream) = &mut self.lanes[index].kind else {
            return self.driver.recycle(buffer);
        };
        let sheet = &mut self.sheet;
        let mut all = 0;
        let right = stream.handle_received(self.driver.bytes(&buffer), |answered| {
            let stream::Answered { due, count, bytes } = answered;
            all += count;
            sheet.handle_answers(due, now, count, bytes);
        });
        self.driver.recycle(buffer);
        self.outstanding -= all;
        self.answered += all;
        if right.is_err() {
            self.sheet.measured.corrupt += 1;
            self.close(index, &Cause::Mismatch);
            return;
        }
        if goes_on && all > 0 {
            self.begin(index, now, all);
            self.send(index, now);
        }
    }

    fn arrived(&mut self, token: Token, buffer: Buffer, now: Instant, goes_on: bool) {
        let Some(index) = self.lane_of(token) else {
            return self.driver.recycle(buffer);
        };
        let Kind::Flow { flow, .. } = &mut self.lanes[index].kind else {
            return self.driver.recycle(buffer);
        };
        let size = self.driver.envelope(&buffer).size;
        let bytes = self.driver.bytes(&buffer);
        let mut together = Together::default();
        let mut count = 0;
        let mut handle = |datagram: &[u8]| match flow.handle_arrival(datagram) {
            flow::Arrival::Answered { due } => {
                count += 1;
                if together.due != Some(due) {
                    std::mem::take(&mut together).tell(&mut self.sheet, now);
                }
                together.add(due, datagram.len());
            }
            flow::Arrival::Late { due } => {
                self.sheet.handle_late(due, now, datagram.len() as u64);
            }
            flow::Arrival::Duplicate => self.sheet.measured.duplicates += 1,
            flow::Arrival::Corrupt { due } => {
                count += 1;
                self.sheet.handle_corrupt(due);
            }
            flow::Arrival::Wrong => self.sheet.handle_wrong(),
        };
        if bytes.is_empty() {
            handle(bytes);
        } else {
            bytes.chunks(size.max(1)).for_each(handle);
        }
        together.tell(&mut self.sheet, now);
        self.driver.recycle(buffer);
        self.outstanding -= count;
        self.answered += count;
        if goes_on && count > 0 {
            self.begin(index, now, count);
            self.send(index, now);
        }
    }

    fn datagrams_sent(
        &mut self,
        token: Token,
        count: usize,
        result: io::Result<u32>,
        now: Instant,
    ) {
        let Some(index) = self.lane_of(token) else {
            return;
        };
        let Kind::Flow {
            flow,
            single,
            sending,
            retry,
            ..
        } = &mut self.lanes[index].kind
        else {
            return;
        };
        *sending -= count.min(*sending);
        match result {
            Ok(_) => {}
            Err(error) if *single && error.kind() == ErrorKind::WouldBlock => {
                flow.unsend(count);
                *retry = Some(now + RETRY_INTERVAL);
                self.waiting.push(index as u32);
                return;
            }
            Err(error) => {
                for _ in 0..count {
                    self.sheet.handle_end(Cause::of(&error));
                }
            }
        }
        self.send(index, now);
    }

    /// The peer has ended a connection.
    fn end(&mut self, token: Token, cause: &Cause) {
        if let Some(index) = self.lane_of(token)
            && self.lanes[index].living
        {
            self.close(index, cause);
        }
    }

    /// A connection is over, and what was on the way on it is lost for the same reason; where
    /// nothing was, the reason is told all the same.
    fn close(&mut self, index: usize, cause: &Cause) {
        let lane = &mut self.lanes[index];
        lane.living = false;
        self.living -= 1;
        self.driver.submit(Op::Close {
            token: lane.token,
            how: Closing::Now,
        });
        let before = self.sheet.measured.lost;
        self.lose(index, cause);
        if self.sheet.measured.lost == before {
            self.sheet.handle_end(cause.clone());
        }
    }

    /// What is on the way on this lane is lost.
    fn lose(&mut self, index: usize, cause: &Cause) {
        let sheet = &mut self.sheet;
        let mut count = 0;
        let mut lose = |due, lost| {
            count += lost;
            sheet.handle_loss(due, lost, cause.clone());
        };
        match &mut self.lanes[index].kind {
            Kind::Stream(stream) => stream.give_up(lose),
            Kind::Flow { flow, .. } => flow.give_up(|due| lose(due, 1)),
        }
        self.outstanding -= count;
    }

    /// What has not come back by the end is lost, unless the user did not want to wait for it.
    fn give_up(&mut self) {
        if self.task.interrupt.is_requested() {
            return;
        }
        for index in 0..self.lanes.len() {
            self.lose(index, &Cause::TimedOut);
        }
    }
}

/// Datagrams that were due at once and have come back at once.
#[derive(Default)]
struct Together {
    due: Option<Instant>,
    count: u64,
    bytes: u64,
}

impl Together {
    fn add(&mut self, due: Instant, bytes: usize) {
        self.due = Some(due);
        self.count += 1;
        self.bytes += bytes as u64;
    }

    fn tell(self, sheet: &mut Sheet, now: Instant) {
        if let Some(due) = self.due {
            sheet.handle_answers(due, now, self.count, self.bytes);
        }
    }
}

/// How much of the measured time the thread used its processor.
#[derive(Debug, Default)]
struct Busy {
    begun: Option<(Instant, Duration)>,
    ended: Option<(Instant, Duration)>,
}

impl Busy {
    fn look(&mut self, now: Instant, window: &std::ops::Range<Instant>) {
        if self.begun.is_none() && now >= window.start {
            self.begun = Some((now, processor_time()));
        }
        if self.ended.is_none() && now >= window.end {
            self.ended = Some((now, processor_time()));
        }
    }

    fn share(&self) -> f64 {
        let Some((begun, before)) = self.begun else {
            return 0.0;
        };
        let (ended, after) = self
            .ended
            .unwrap_or_else(|| (Instant::now(), processor_time()));
        let time = (ended - begun).as_secs_f64();
        (after.saturating_sub(before)).as_secs_f64() / time.max(1e-9)
    }
}

/// The processor time that this thread has used.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    let nanoseconds = time.map_or(0, |time| time.num_nanoseconds());
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(0))
}
