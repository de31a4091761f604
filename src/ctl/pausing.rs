//! `echoctl pause`, `resume` and `drain`: what became of each listener, and how far a drain is.
//!
//! A drain continues in the daemon whether or not it is watched.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use signal_hook::consts::SIGINT;
use terminal_size::{Width, terminal_size};

use crate::cli::exit::Failure;
use crate::cli::table::{COMMA, shortened};
use crate::cli::text::{counted, escape};
use crate::protocol::schema::{
    self, DrainListenerReply, ListenerState, PauseListenerReply, ResumeListenerReply, StateChange,
};
use crate::protocol::wire::Parameters;

use super::Session;
use super::args::{DrainArgs, OneOrAll};
use super::calls::{decode, full_name};
use super::refusal::Complaint;
use super::selection::milliseconds;

/// How many listeners are named in one line.
const NAMES_MAX: usize = 3;

impl Session {
    pub(super) fn pause(&self, which: OneOrAll, hold: bool) -> Result<(), Complaint> {
        let (listener, all) = which.parameters();
        let asked = schema::PauseListener {
            listener,
            all,
            hold: hold.then_some(true),
        };
        let reply = self.call("PauseListener", &asked)?;
        self.answer(reply, |reply: PauseListenerReply| {
            lines(&reply.listeners, |change| {
                let not_held = hold && change.after == ListenerState::Paused;
                not_held.then_some("datagrams can't be held, and are discarded")
            })
        })
    }

    pub(super) fn resume(&self, which: OneOrAll) -> Result<(), Complaint> {
        let (listener, all) = which.parameters();
        let reply = self.call("ResumeListener", &schema::ResumeListener { listener, all })?;
        self.answer(reply, |reply: ResumeListenerReply| {
            lines(&reply.listeners, |_| None)
        })
    }

    /// Begins a drain and watches it to its end.
    pub(super) fn drain(&self, args: DrainArgs) -> Result<(), Complaint> {
        let (listener, all) = args.which.parameters();
        let asked = schema::DrainListener {
            listener,
            all,
            deadline_ms: args.deadline.map(|time| milliseconds(time) as i64),
        };
        let interrupted = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(SIGINT, Arc::clone(&interrupted))
            .map_err(|error| Failure::new(format!("signals: {error}")))?;
        let mut client = self.connect()?;
        client.send(
            &full_name("DrainListener"),
            schema::parameters(&asked),
            true,
        )?;
        let mut last: Option<DrainListenerReply> = None;
        let draws = self.terminal && !self.json;
        loop {
            let reply = match client.next_reply() {
                Ok(reply) => reply,
                Err(error) => {
                    let Some(last) = last else {
                        return Err(self.explain(error));
                    };
                    // The successor in an upgrade, say, does not have the connection.
                    let mut complaint = Complaint::from(error);
                    self.clear_progress(draws)?;
                    let goes_on = goes_on(&last);
                    complaint.failure.messages.push(goes_on);
                    return Err(complaint);
                }
            };
            if !reply.continues {
                self.clear_progress(draws)?;
                return self.drained(reply.parameters);
            }
            let progress: DrainListenerReply = decode(reply.parameters)?;
            if interrupted.load(Relaxed) {
                self.clear_progress(draws)?;
                return Err(Failure::new(goes_on(&progress)).into());
            }
            if draws {
                draw(&progress)?;
            }
            last = Some(progress);
        }
    }

    fn drained(&self, reply: Parameters) -> Result<(), Complaint> {
        self.answer(reply, |reply: DrainListenerReply| {
            lines(&reply.listeners, |change| match change.after {
                ListenerState::Draining => Some("no connection is left"),
                ListenerState::Retired => Some("it was removed meanwhile"),
                _ => Some("the drain was ended by another command"),
            })
        })
    }

    fn clear_progress(&self, draws: bool) -> Result<(), Failure> {
        if draws { write("\r\x1b[K") } else { Ok(()) }
    }
}

/// A line for each listener, with what there is to add.
fn lines(changes: &[StateChange], remark: impl Fn(&StateChange) -> Option<&'static str>) -> String {
    let lines = changes.iter().map(|change| {
        let StateChange {
            listener,
            before,
            after,
            ..
        } = change;
        let states = match before == after {
            true => format!("{}, as before", after.name()),
            false => format!("{} → {}", before.name(), after.name()),
        };
        let remark = remark(change).map_or(String::new(), |remark| format!("; {remark}"));
        format!("{}: {states}{remark}\n", escape(listener))
    });
    lines.collect()
}

/// How far a drain is, in the place of what was there before.
fn draw(progress: &DrainListenerReply) -> Result<(), Failure> {
    let width = terminal_size().map_or(80, |(Width(width), _)| width.into());
    write(&format!(
        "\r\x1b[K{}",
        shortened(&progress_line(progress), width)
    ))
}

fn write(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::new(format!("standard output: {error}")))
}

/// `draining main: 12 connections left, 25 s to go`
fn progress_line(progress: &DrainListenerReply) -> String {
    let connections = counted(progress.connections, "connection");
    let time = match progress.left_ms.div_ceil(1000) {
        0 => "closing them".to_owned(),
        seconds => format!("{seconds} s to go"),
    };
    let names = names(progress);
    format!("draining {names}: {connections} left, {time}")
}

/// What an operator has to know that does not watch it any more.
fn goes_on(progress: &DrainListenerReply) -> String {
    let connections = counted(progress.connections, "connection");
    let names = names(progress);
    format!("the drain of {names} goes on, {connections} left; echoctl resume ends it")
}

fn names(progress: &DrainListenerReply) -> String {
    // There may be thousands.
    if progress.listeners.len() > NAMES_MAX {
        return counted(progress.listeners.len() as u64, "listener");
    }
    let names = progress.listeners.iter().map(|one| escape(&one.listener));
    names.collect::<Vec<_>>().join(COMMA)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(listener: &str, before: ListenerState, after: ListenerState) -> StateChange {
        StateChange {
            listener: listener.to_owned(),
            before,
            after,
            connections: 2,
        }
    }

    #[test]
    fn each_listener_has_a_line_that_says_what_has_changed() {
        use ListenerState::{Holding, Listening, Paused};
        let changes = [
            change("main", Listening, Holding),
            change("esc\x1b", Paused, Paused),
        ];
        let text = lines(&changes, |change| {
            (change.after == Paused).then_some("a remark")
        });
        assert_eq!(
            text,
            "main: listening → holding\nesc\\u{1b}: paused, as before; a remark\n"
        );
    }

    #[test]
    fn the_progress_of_a_drain_counts_connections_and_seconds() {
        let reply = |listeners, left_ms| DrainListenerReply {
            listeners,
            connections: 4,
            left_ms,
        };
        let drained = |name| change(name, ListenerState::Listening, ListenerState::Draining);
        let many = |count| reply(vec![drained("a"); count], 0);
        assert_eq!(
            progress_line(&many(3)),
            "draining a, a, a: 4 connections left, closing them"
        );
        assert_eq!(
            progress_line(&many(4)),
            "draining 4 listeners: 4 connections left, closing them"
        );
        let paused = change("b", ListenerState::Paused, ListenerState::Draining);
        let progress = |left_ms| reply(vec![drained("a"), paused.clone()], left_ms);
        assert_eq!(
            progress_line(&progress(24_100)),
            "draining a, b: 4 connections left, 25 s to go"
        );
        assert_eq!(
            progress_line(&progress(0)),
            "draining a, b: 4 connections left, closing them"
        );
        assert_eq!(
            goes_on(&progress(0)),
            "the drain of a, b goes on, 4 connections left; echoctl resume ends it"
        );
    }
}
