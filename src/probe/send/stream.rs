//! Standard input through a stream and back.
//!
//! One thread reads the input and writes to the socket, one reads the socket, compares and prints.
//! They share what is on the way, behind a lock; neither holds it while it waits for a descriptor.
//! Only the one that reads decides when it is over; the other may then still be in a read of the
//! input, where nobody can reach it, and is left to the end of the process.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use socket2::Socket;

use super::comparison::Comparison;
use super::outcome::{End, Outcome};
use super::output::Output;
use crate::cli::exit::Failure;
use crate::probe::args::{Expect, SendArgs};
use crate::probe::cause::Cause;
use crate::probe::interrupt::{Interrupt, LOOK_INTERVAL};

/// How much is read and written at once.
const PIECE_BYTES: usize = 256 * 1024;

/// How long the end of the input may take to be seen when the peer's end is there. It takes
/// microseconds; if it takes longer, the input has not ended.
const INPUT_END_TIME_MAX: Duration = Duration::from_secs(1);

/// So much more than was sent is enough.
const TOO_MUCH: u64 = 16 << 20;

/// Give up when for so long nothing comes back.
pub(super) const TIMEOUT: Duration = Duration::from_secs(10);

/// What both threads know.
struct Shared {
    state: Mutex<State>,
    /// There is more room, or the input has come to an end, or all has.
    changed: Condvar,
}

struct State {
    comparison: Comparison,
    input: Input,
    /// Whether a piece is being written.
    is_writing: bool,
    /// Since when what is owed is waited for.
    since: Instant,
    is_over: bool,
}

/// How far the input is.
#[derive(Debug, PartialEq, Eq)]
enum Input {
    Flowing,
    Ended,
    /// The socket takes no more of it.
    Stopped,
    Failed(String),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics")
    }

    fn end_input(&self, how: Input) {
        let mut state = self.lock();
        state.input = how;
        state.since = Instant::now();
        self.changed.notify_all();
    }
}

impl State {
    /// Whether it is the peer's turn.
    fn is_waiting(&self) -> bool {
        self.comparison.owed() > 0 || self.is_writing || self.input != Input::Flowing
    }
}

/// Sends all of the standard input, and takes all that comes back.
pub(super) fn send(
    socket: Socket,
    args: &SendArgs,
    output: &mut Output,
    interrupt: &Interrupt,
) -> Result<Outcome, Failure> {
    let began = Instant::now();
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            comparison: Comparison::new(args.expect),
            input: Input::Flowing,
            is_writing: false,
            since: began,
            is_over: false,
        }),
        changed: Condvar::new(),
    });
    let socket = Arc::new(socket);
    thread::spawn({
        let (shared, socket) = (Arc::clone(&shared), Arc::clone(&socket));
        move || feed(&shared, &socket)
    });
    let timeout = args.timeout.unwrap_or(TIMEOUT);
    let end = take(&shared, &socket, timeout, output, interrupt);
    let mut state = shared.lock();
    state.is_over = true;
    shared.changed.notify_all();
    let comparison = std::mem::replace(&mut state.comparison, Comparison::new(Expect::Any));
    drop(state);
    // Ends a write that the other thread may be in.
    let _ = socket.shutdown(Shutdown::Both);
    Ok(Outcome {
        comparison,
        end: end?,
        took: began.elapsed(),
    })
}

/// The input, to the socket.
fn feed(shared: &Shared, socket: &Socket) {
    let mut input = io::stdin().lock();
    let mut piece = vec![0; PIECE_BYTES];
    let how = loop {
        match input.read(&mut piece) {
            Ok(0) => break Input::Ended,
            Ok(len) if !send_piece(shared, socket, &piece[..len]) => break Input::Stopped,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => break Input::Failed(error.to_string()),
        }
    };
    let has_ended = how == Input::Ended;
    // In this order: who sees the peer's answer to our end knows of it.
    shared.end_input(how);
    if has_ended {
        // If the connection is gone, whoever reads it is told.
        let _ = socket.shutdown(Shutdown::Write);
    }
}

/// Sends a piece as room is made for it; says whether that went well.
fn send_piece(shared: &Shared, mut socket: &Socket, mut piece: &[u8]) -> bool {
    while !piece.is_empty() {
        let Some(len) = enter(shared, piece) else {
            return false;
        };
        let (mut unsent, rest) = piece.split_at(len);
        while !unsent.is_empty() {
            match socket.write(unsent) {
                Ok(len) => unsent = &unsent[len..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let mut state = shared.lock();
        state.is_writing = false;
        // Once it is over, what was sent has been counted.
        if state.is_over {
            return false;
        }
        if !unsent.is_empty() {
            state.comparison.handle_unsent(unsent.len());
            return false;
        }
        piece = rest;
    }
    true
}

/// Enters what there is room for as sent; it has to be known before it can come back. None: it is
/// over.
fn enter(shared: &Shared, piece: &[u8]) -> Option<usize> {
    let mut state = shared.lock();
    while state.comparison.room() == 0 && !state.is_over {
        state = shared.changed.wait(state).expect("no thread panics");
    }
    if state.is_over {
        return None;
    }
    // A peer that takes more has not gone silent; that ends when no more may be on the way.
    state.since = Instant::now();
    let len = piece.len().min(state.comparison.room());
    state.comparison.handle_sent(&piece[..len]);
    state.is_writing = true;
    Some(len)
}

/// What comes back, to the output.
fn take(
    shared: &Shared,
    mut socket: &Socket,
    timeout: Duration,
    output: &mut Output,
    interrupt: &Interrupt,
) -> Result<End, Failure> {
    let look_interval = timeout.clamp(Duration::from_millis(1), LOOK_INTERVAL);
    let set = socket.set_read_timeout(Some(look_interval));
    set.map_err(|error| Failure::new(format!("socket: {error}")))?;
    let mut memory = vec![0; PIECE_BYTES];
    loop {
        if interrupt.is_requested() {
            return Ok(End::Interrupted);
        }
        let len = match socket.read(&mut memory) {
            Ok(0) => return last_of_input(shared),
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let state = shared.lock();
                if let Input::Failed(error) = &state.input {
                    return Err(Failure::new(format!("standard input: {error}")));
                }
                if state.is_waiting() && state.since.elapsed() >= timeout {
                    return Ok(End::TimedOut(timeout));
                }
                continue;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Ok(End::Broken(Cause::of(&error))),
        };
        let came = receive(shared, &memory[..len]);
        if !output.print(&memory[..len])? {
            return Ok(End::Unread);
        }
        let mut state = shared.lock();
        // Printing may have taken its time, and that was not the peer's.
        state.since = Instant::now();
        if state.comparison.is_exact() && came > state.comparison.sent() + TOO_MUCH {
            return Ok(End::Flooded);
        }
        drop(state);
        output.show_progress(came);
    }
}

/// Compares what has come back; says how much it is in all.
fn receive(shared: &Shared, bytes: &[u8]) -> u64 {
    let mut state = shared.lock();
    state.comparison.handle_received(bytes);
    shared.changed.notify_all();
    state.comparison.came()
}

/// The peer has ended; was it before the input?
fn last_of_input(shared: &Shared) -> Result<End, Failure> {
    let is_flowing = |state: &mut State| state.input == Input::Flowing;
    let (state, _) = shared
        .changed
        .wait_timeout_while(shared.lock(), INPUT_END_TIME_MAX, is_flowing)
        .expect("no thread panics");
    match &state.input {
        Input::Ended => Ok(End::Whole),
        Input::Flowing | Input::Stopped => Ok(End::Closed),
        Input::Failed(error) => Err(Failure::new(format!("standard input: {error}"))),
    }
}
