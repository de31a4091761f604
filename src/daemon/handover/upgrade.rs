//! When a successor continues: the steps of an upgrade, or of leaving everything to the next process.
//!
//! ```text
//!   asking ──it can──▶ settling ──no socket retires──▶ flushing ──the log is written──┐
//!     └──it can't──▶ refused                                                          │
//!                        the successor ◀──all workers── transferring ◀────────────────┘
//!                                                            └──one does not──▶ as before
//! ```
//!
//! Decides with the time and the facts that it is given; the main loop carries out what
//! [`Handover::advance`] returns. Until the last step nothing is lost: whatever fails, the workers
//! get everything back, and the caller gets the reason.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use crate::daemon::control::ClientId;

use super::clock;
use super::program::ANSWER_TIME_MAX;
use super::write::Transferred;

/// How long sockets of an earlier reload may take to be closed, and after that the workers to
/// transfer what they have.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(3);

/// How often to look whether they have.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// What continues the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::daemon) enum Successor {
    /// The program that is now where this one was started from, in this process.
    Program,
    /// The process that the service manager starts next.
    Process,
}

/// The answer of the program that was asked: its file, or why it can't continue.
pub(in crate::daemon) type Answer = Result<PathBuf, String>;

/// A handover in progress.
#[derive(Debug)]
pub(in crate::daemon) struct Handover {
    pub successor: Successor,
    /// The control client that waits for the outcome.
    pub caller: Option<ClientId>,
    step: Step,
    until: Instant,
}

#[derive(Debug)]
enum Step {
    /// The program is asked.
    Asking(Receiver<Answer>),
    /// Sockets are retiring, listings are being answered.
    Settling { program: PathBuf },
    /// The lines of the log are written, since this time: what a slow output takes is not added to
    /// the time that the workers are stopped.
    Flushing { program: PathBuf, begun: Instant },
    /// The workers transfer what they have.
    Transferring {
        program: PathBuf,
        workers: usize,
        // On `clock`.
        stopped: u64,
        transferred: Transferred,
    },
}

/// What the rest of the daemon is doing.
#[derive(Clone, Copy, Debug)]
pub(in crate::daemon) struct Facts {
    /// What has to end before the workers may stop, as a clause; none if nothing has to.
    pub unsettled: Option<&'static str>,
    /// Whether the flush of the log is over that began at [`Handover::flushing_since`].
    pub is_log_flushed: bool,
    /// The number of workers.
    pub workers: usize,
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::daemon) enum Action {
    /// Wait for the next event.
    Wait,
    /// Begin to flush the log.
    FlushLog,
    /// Have the workers transfer everything.
    StopWorkers,
    /// Let the successor continue.
    HandOver,
    /// Continue as before, for this reason.
    GiveUp(String),
}

/// Everything that the successor needs, besides the service itself.
#[derive(Debug)]
pub(in crate::daemon) struct Outgoing {
    pub program: PathBuf,
    pub stopped: u64,
    pub transferred: Transferred,
}

impl Handover {
    /// Begins with the question, whose answer will be received.
    pub(in crate::daemon) fn begin(
        successor: Successor,
        caller: Option<ClientId>,
        answer: Receiver<Answer>,
        now: Instant,
    ) -> Self {
        Self {
            successor,
            caller,
            step: Step::Asking(answer),
            until: now + ANSWER_TIME_MAX * 3,
        }
    }

    /// Whether the new program has not answered yet.
    pub(in crate::daemon) fn is_asking(&self) -> bool {
        matches!(self.step, Step::Asking(_))
    }

    /// Whether the workers have stopped, or are about to.
    pub(in crate::daemon) fn is_transferring(&self) -> bool {
        matches!(self.step, Step::Transferring { .. })
    }

    /// Since when the log is flushed, if it is.
    pub(in crate::daemon) fn flushing_since(&self) -> Option<Instant> {
        match self.step {
            Step::Flushing { begun, .. } => Some(begun),
            Step::Asking(_) | Step::Settling { .. } | Step::Transferring { .. } => None,
        }
    }

    /// When to call [`Self::advance`] although nothing has happened.
    pub(in crate::daemon) fn poll_timeout(&self, now: Instant) -> Instant {
        match self.step {
            Step::Asking(_) => self.until,
            Step::Settling { .. } | Step::Flushing { .. } | Step::Transferring { .. } => {
                now + POLL_INTERVAL
            }
        }
    }

    /// A worker has transferred all that it had. Returns it if that is too late.
    pub(in crate::daemon) fn handle_transferred(
        &mut self,
        more: Transferred,
    ) -> Result<(), Transferred> {
        match &mut self.step {
            Step::Transferring { transferred, .. } => {
                transferred.append(more);
                Ok(())
            }
            Step::Asking(_) | Step::Settling { .. } | Step::Flushing { .. } => Err(more),
        }
    }

    /// Takes the next step if it can be taken. One step a call: between two of them the main loop
    /// handles the signals that have arrived.
    pub(in crate::daemon) fn advance(&mut self, facts: Facts, now: Instant) -> Action {
        let is_late = now >= self.until;
        match &mut self.step {
            Step::Asking(answer) => match answer.try_recv() {
                Ok(Ok(program)) => {
                    self.step = Step::Settling { program };
                    self.until = now + SETTLE_TIME_MAX;
                    Action::Wait
                }
                Ok(Err(reason)) => Action::GiveUp(reason),
                Err(TryRecvError::Disconnected) => {
                    Action::GiveUp("the new program could not be asked".into())
                }
                Err(TryRecvError::Empty) if is_late => {
                    Action::GiveUp("no answer from the new program".into())
                }
                Err(TryRecvError::Empty) => Action::Wait,
            },
            Step::Settling { program } if facts.unsettled.is_none() => {
                self.step = Step::Flushing {
                    program: std::mem::take(program),
                    begun: now,
                };
                Action::FlushLog
            }
            // Nothing else begins until then; a flush has a time limit of its own.
            Step::Flushing { program, .. } if facts.is_log_flushed => {
                self.step = Step::Transferring {
                    program: std::mem::take(program),
                    workers: facts.workers,
                    stopped: clock(),
                    transferred: Transferred::default(),
                };
                self.until = now + SETTLE_TIME_MAX;
                Action::StopWorkers
            }
            Step::Settling { .. } if is_late => {
                let unsettled = facts.unsettled.unwrap_or_default();
                Action::GiveUp(format!("{unsettled}; try again later"))
            }
            // Each worker counts once: one that answered an earlier request late answers twice.
            Step::Transferring {
                workers,
                transferred,
                ..
            } if transferred.workers.len() == *workers => Action::HandOver,
            Step::Transferring { .. } if is_late => {
                Action::GiveUp("a worker did not stop in time".into())
            }
            Step::Settling { .. } | Step::Flushing { .. } | Step::Transferring { .. } => {
                Action::Wait
            }
        }
    }

    /// Ends the handover. Returns what the workers have transferred, if they have been asked to.
    pub(in crate::daemon) fn end(self) -> Option<Outgoing> {
        match self.step {
            Step::Asking(_) | Step::Settling { .. } | Step::Flushing { .. } => None,
            Step::Transferring {
                program,
                stopped,
                transferred,
                ..
            } => Some(Outgoing {
                program,
                stopped,
                transferred,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    const BUSY: Facts = Facts {
        unsettled: Some("a list of peers is being read"),
        is_log_flushed: true,
        workers: 2,
    };
    const SETTLED: Facts = Facts {
        unsettled: None,
        is_log_flushed: true,
        workers: 2,
    };
    const FLUSHING: Facts = Facts {
        unsettled: None,
        is_log_flushed: false,
        workers: 2,
    };

    fn begin() -> (Handover, Sender<Answer>, Instant) {
        let (sender, answer) = channel();
        let now = Instant::now();
        let handover = Handover::begin(Successor::Program, None, answer, now);
        (handover, sender, now)
    }

    /// One that has been accepted by the program.
    fn settling() -> (Handover, Instant) {
        let (mut handover, sender, now) = begin();
        sender.send(Ok("/sbin/echod".into())).unwrap();
        assert_eq!(handover.advance(SETTLED, now), Action::Wait);
        (handover, now)
    }

    fn reason(action: Action) -> String {
        match action {
            Action::GiveUp(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    fn of_worker(worker: usize, last_peer: u64) -> Transferred {
        Transferred {
            workers: vec![worker],
            last_peer,
            ..Transferred::default()
        }
    }

    #[test]
    fn every_step_comes_after_the_one_before_and_in_a_call_of_its_own() {
        let (mut handover, now) = settling();
        assert_eq!(handover.advance(BUSY, now), Action::Wait);
        assert_eq!(handover.advance(SETTLED, now), Action::FlushLog);
        assert!(!handover.is_transferring());
        assert_eq!(handover.advance(SETTLED, now), Action::StopWorkers);
        assert!(handover.is_transferring());
        assert_eq!(handover.advance(SETTLED, now), Action::Wait);
        assert!(handover.handle_transferred(of_worker(1, 7)).is_ok());
        assert_eq!(handover.advance(SETTLED, now), Action::Wait);
        assert!(handover.handle_transferred(of_worker(0, 5)).is_ok());
        assert_eq!(handover.advance(SETTLED, now), Action::HandOver);
        let outgoing = handover.end().unwrap();
        assert_eq!(outgoing.program, PathBuf::from("/sbin/echod"));
        assert_eq!(outgoing.transferred.workers, [1, 0]);
        assert_eq!(outgoing.transferred.last_peer, 7);
    }

    #[test]
    fn a_worker_that_answers_twice_does_not_count_for_another() {
        let (mut handover, now) = settling();
        assert_eq!(handover.advance(SETTLED, now), Action::FlushLog);
        assert_eq!(handover.advance(SETTLED, now), Action::StopWorkers);
        for _ in 0..2 {
            assert!(handover.handle_transferred(of_worker(1, 7)).is_ok());
            assert_eq!(handover.advance(SETTLED, now), Action::Wait);
        }
        assert!(handover.handle_transferred(of_worker(0, 5)).is_ok());
        assert_eq!(handover.advance(SETTLED, now), Action::HandOver);
    }

    /// An upgrade was refused because a worker did not stop in time, though none had been asked to:
    /// the log had taken that time.
    #[test]
    fn the_time_of_the_workers_begins_when_the_log_is_flushed() {
        let (mut handover, now) = settling();
        assert_eq!(handover.flushing_since(), None);
        assert_eq!(handover.advance(FLUSHING, now), Action::FlushLog);
        assert_eq!(handover.flushing_since(), Some(now));
        // For as long as that takes, nothing is stopped and nothing is given up.
        let later = now + SETTLE_TIME_MAX * 2;
        assert_eq!(handover.advance(FLUSHING, later), Action::Wait);
        assert!(!handover.is_transferring());
        let before = clock();
        assert_eq!(handover.advance(SETTLED, later), Action::StopWorkers);
        let last = later + SETTLE_TIME_MAX - Duration::from_nanos(1);
        assert_eq!(handover.advance(SETTLED, last), Action::Wait);
        let outgoing = handover.end().expect("the workers have been asked");
        assert!(outgoing.stopped >= before);
    }

    #[test]
    fn a_program_that_refuses_gives_the_reason() {
        let (mut handover, sender, now) = begin();
        assert_eq!(handover.advance(SETTLED, now), Action::Wait);
        sender.send(Err("it is not echod".into())).unwrap();
        assert_eq!(reason(handover.advance(SETTLED, now)), "it is not echod");
        assert!(handover.end().is_none());
    }

    #[test]
    fn each_step_has_a_time_limit_and_a_reason_of_its_own() {
        let (mut handover, _sender, now) = begin();
        let late = handover.poll_timeout(now);
        assert_eq!(
            reason(handover.advance(SETTLED, late)),
            "no answer from the new program"
        );
        let (mut handover, now) = settling();
        let late = now + SETTLE_TIME_MAX;
        let said = reason(handover.advance(BUSY, late));
        assert_eq!(said, "a list of peers is being read; try again later");
        let (mut handover, now) = settling();
        // Settled in the last moment: the workers have a limit of their own.
        assert_eq!(handover.advance(SETTLED, late), Action::FlushLog);
        assert_eq!(handover.advance(SETTLED, late), Action::StopWorkers);
        assert_eq!(handover.advance(SETTLED, late), Action::Wait);
        let later = now.max(late) + SETTLE_TIME_MAX;
        let said = reason(handover.advance(SETTLED, later));
        assert_eq!(said, "a worker did not stop in time");
        assert!(handover.end().is_some(), "what the others had");
    }

    #[test]
    fn a_question_that_can_not_be_asked_is_no_answer() {
        let (mut handover, sender, now) = begin();
        drop(sender);
        assert_eq!(
            reason(handover.advance(SETTLED, now)),
            "the new program could not be asked"
        );
    }

    #[test]
    fn what_a_worker_transfers_unasked_is_returned() {
        let (mut handover, _) = settling();
        let late = handover.handle_transferred(of_worker(1, 7)).unwrap_err();
        assert_eq!(late.workers, [1]);
    }
}
