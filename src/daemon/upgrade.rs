//! A successor, step by step: it is asked whether it can, the workers come to rest, everything is
//! written down, and it goes on.
//!
//! ```text
//!   asking ──it can──▶ settling ──nothing on its way out──▶ resting ──all rest──▶ the successor
//!     └──it can't──▶ refused                                   └──one does not──▶ as before
//! ```
//!
//! Until the last step nothing is lost: whatever fails, the workers get everything back, and who
//! asked is told why.

use std::convert::Infallible;
use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::{Child, Command as Program, Stdio};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use nix::unistd::execve;

use crate::control;
use crate::driver::Waker;
use crate::sys::handover as carriers;
use crate::worker::mailbox::Command;

use super::Daemon;
use super::control::{ClientId, Reply};
use super::handover::{self, Belongings, record};

/// How long the new program may take to say whether it can.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// How long sockets of an earlier reload may take to be closed, and after that the workers to rest.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(3);

/// How often to look whether they are.
const LOOK: Duration = Duration::from_millis(2);

/// Where this program was started from, and how.
#[derive(Clone, Debug)]
pub(super) struct Invocation {
    path: PathBuf,
    arguments: Vec<OsString>,
}

/// An upgrade on its way.
#[derive(Debug)]
pub(super) struct Handover {
    step: Step,
    caller: Option<ClientId>,
    until: Instant,
}

#[derive(Debug)]
enum Step {
    /// The new program is asked.
    Asking(Receiver<Result<(), String>>),
    /// Sockets are on their way out, questions are being answered.
    Settling,
    /// The workers give everything away.
    Resting {
        waits_for: usize,
        rested: u64,
        belongings: Belongings,
    },
}

impl Invocation {
    /// As this process was started. A name without a folder was found by the caller's PATH.
    pub(super) fn of_this_process() -> io::Result<Self> {
        let mut arguments = std::env::args_os();
        let name = PathBuf::from(arguments.next().unwrap_or_default());
        let path = if name.components().count() > 1 {
            std::path::absolute(name)?
        } else {
            std::env::current_exe()?
        };
        Ok(Self {
            path,
            arguments: arguments.collect(),
        })
    }

    /// Becomes the program that is there now, which finds what it needs in this environment. Returns
    /// only if that fails.
    fn execute(&self, environment: Vec<OsString>) -> io::Result<Infallible> {
        let c_string = |text: OsString| CString::new(text.into_vec()).map_err(io::Error::other);
        let path = c_string(self.path.clone().into())?;
        let mut arguments = vec![path.clone()];
        for argument in &self.arguments {
            arguments.push(c_string(argument.clone())?);
        }
        let environment: io::Result<Vec<CString>> = environment.into_iter().map(c_string).collect();
        Ok(execve(&path, &arguments, &environment?)?)
    }

    /// Asks the program that is there now whether it can go on, with the configuration that is there
    /// now.
    fn ask(&self) -> Result<(), String> {
        let version = record::VERSION.to_string();
        let can: [OsString; 2] = ["--can-take-over".into(), version.into()];
        self.run(&can)
            .map_err(|said| format!("{} can't take over: {said}", self.path.display()))?;
        let check = [self.arguments.as_slice(), &["--check".into()]].concat();
        self.run(&check)
            .map_err(|said| format!("{} --check: {said}", self.path.display()))
    }

    fn run(&self, arguments: &[OsString]) -> Result<(), String> {
        let mut program = Program::new(&self.path);
        program
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        // What the service manager tells us is not for a program that only answers.
        for (name, _) in std::env::vars_os() {
            let bytes = name.as_encoded_bytes();
            if handover::is_ours(bytes) || bytes == b"NOTIFY_SOCKET" || bytes == b"WATCHDOG_USEC" {
                program.env_remove(name);
            }
        }
        let child = program.spawn().map_err(|error| error.to_string())?;
        finish(child)
    }
}

/// Waits for the end of a program; what it said, if that was not a success.
fn finish(mut child: Child) -> Result<(), String> {
    let until = Instant::now() + ANSWER_TIME_MAX;
    while child
        .try_wait()
        .map_err(|error| error.to_string())?
        .is_none()
    {
        if Instant::now() >= until {
            // It may end in this very moment.
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!("no answer within {} s", ANSWER_TIME_MAX.as_secs()));
        }
        std::thread::sleep(LOOK);
    }
    let output = child
        .wait_with_output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: Vec<&str> = said
        .lines()
        .map(|line| line.trim_start_matches("<3>").trim_start_matches("echod: "))
        .filter(|line| !line.is_empty())
        .collect();
    Err(match said.as_slice() {
        [] => output.status.to_string(),
        said => said.join("; "),
    })
}

impl Daemon {
    /// Begins an upgrade, if there can be one.
    pub(super) fn upgrade(&mut self, caller: Option<ClientId>, now: Instant) {
        if self.is_stopping() || self.handover.is_some() {
            let reason = if self.is_stopping() {
                "the daemon is stopping"
            } else {
                "another upgrade is on its way"
            };
            return self.refuse_upgrade(caller, reason.into(), now);
        }
        match ask_in_background(self.invocation.clone(), self.workers.control().clone()) {
            Ok(answer) => {
                self.handover = Some(Handover {
                    step: Step::Asking(answer),
                    caller,
                    until: now + 3 * ANSWER_TIME_MAX,
                });
            }
            Err(error) => self.refuse_upgrade(caller, error.to_string(), now),
        }
    }

    fn refuse_upgrade(&mut self, caller: Option<ClientId>, reason: String, now: Instant) {
        ::log::error!("no upgrade: {reason}");
        if let Some((server, caller)) = self.server.as_mut().zip(caller) {
            let refusal = control::upgrade_refused(reason);
            server.reply(caller, Reply::One(refusal), now);
        }
    }

    /// Whether the workers rest, and nobody is to be answered.
    pub(super) fn is_resting(&self) -> bool {
        matches!(
            self.handover,
            Some(Handover {
                step: Step::Resting { .. },
                ..
            })
        )
    }

    /// When [`Self::go_on_handing_over`] is next due.
    pub(super) fn next_handover_step(&self, now: Instant) -> Option<Instant> {
        let handover = self.handover.as_ref()?;
        Some(match handover.step {
            Step::Asking(_) => handover.until,
            Step::Settling | Step::Resting { .. } => now + LOOK,
        })
    }

    /// A worker has given away all that it had.
    pub(super) fn collect(&mut self, mut more: Belongings) {
        let Some(Handover {
            step:
                Step::Resting {
                    waits_for,
                    belongings,
                    ..
                },
            ..
        }) = &mut self.handover
        else {
            // It comes too late: the upgrade was given up, and this worker is still wanted.
            return self.take_back(more);
        };
        *waits_for -= 1;
        belongings.workers.append(&mut more.workers);
        belongings.connections.append(&mut more.connections);
        belongings.sources.append(&mut more.sources);
        belongings.last_peer = belongings.last_peer.max(more.last_peer);
    }

    /// Does what is due.
    pub(super) fn go_on_handing_over(&mut self, now: Instant) {
        let Some(handover) = &mut self.handover else {
            return;
        };
        let is_late = now >= handover.until;
        let failure = match &mut handover.step {
            Step::Asking(answer) => match answer.try_recv() {
                Ok(Ok(())) => {
                    handover.step = Step::Settling;
                    handover.until = now + SETTLE_TIME_MAX;
                    return self.go_on_handing_over(now);
                }
                Ok(Err(reason)) => reason,
                Err(TryRecvError::Disconnected) => "nobody could be asked".into(),
                Err(TryRecvError::Empty) if is_late => "no answer from the new program".into(),
                Err(TryRecvError::Empty) => return,
            },
            Step::Settling if self.listeners.all_retired() && self.queries.is_empty() => {
                handover.step = Step::Resting {
                    waits_for: self.workers.count(),
                    rested: handover::clock(),
                    belongings: Belongings::default(),
                };
                handover.until = now + SETTLE_TIME_MAX;
                self.workers.command_all(|_| Command::HandOver);
                return;
            }
            Step::Settling if is_late => {
                "sockets of an earlier reload are still being served; try again later".into()
            }
            Step::Resting { waits_for: 0, .. } => return self.hand_over(now),
            Step::Resting { .. } if is_late => "a worker does not come to rest".into(),
            Step::Settling | Step::Resting { .. } => return,
        };
        self.give_up(failure, now);
    }

    /// Writes everything down and lets the successor begin. Returns only if that fails.
    fn hand_over(&mut self, now: Instant) {
        let Some(Handover {
            step: Step::Resting {
                rested, belongings, ..
            },
            caller,
            ..
        }) = &self.handover
        else {
            return;
        };
        let result = self
            .leave_behind(belongings, *rested, *caller)
            .and_then(|carriers| {
                for carrier in &carriers {
                    carriers::survive_exec(carrier.as_fd(), true)?;
                }
                // A signal that comes between the programs waits for the next.
                super::signals::block_all()?;
                let environment = handover::environment(&carriers);
                self.invocation.execute(environment)
            });
        let Err(error) = result;
        super::signals::unblock_all();
        self.give_up(format!("{}: {error}", self.invocation.path.display()), now);
    }

    /// Goes on as before.
    fn give_up(&mut self, reason: String, now: Instant) {
        let Some(handover) = self.handover.take() else {
            return;
        };
        if let Step::Resting { belongings, .. } = handover.step {
            self.take_back(belongings);
        }
        self.refuse_upgrade(handover.caller, reason, now);
    }
}

fn ask_in_background(
    invocation: Invocation,
    control: Waker,
) -> io::Result<Receiver<Result<(), String>>> {
    let (sender, answer) = channel();
    std::thread::Builder::new()
        .name("upgrade".into())
        .spawn(move || {
            // It may have been given up meanwhile.
            let _ = sender.send(invocation.ask());
            control.wake();
        })?;
    Ok(answer)
}
