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
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::process::{Child, Command as Program, Stdio};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use nix::unistd::execve;

use crate::protocol::{self, schema};
use crate::sys::handover as carriers;
use crate::worker::mailbox::Command;

use crate::daemon::control::{ClientId, Reply};
use crate::daemon::handover::{self, Belongings, record};
use crate::daemon::signals::{self, Signal};
use crate::daemon::systemd::notify::Manager;
use crate::daemon::{Daemon, Stage};

/// How long the new program may take to say whether it can.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

/// How much of what it says is heard, in bytes, how long that may take once it has ended, and how
/// many lines of it are passed on.
const WORDS_BYTES_MAX: u64 = 64 * 1024;
const LAST_WORDS: Duration = Duration::from_secs(1);
const COMPLAINTS_MAX: usize = 20;

/// How long sockets of an earlier reload may take to be closed, and after that the workers to rest.
const SETTLE_TIME_MAX: Duration = Duration::from_secs(3);

/// How often to look whether they are.
const LOOK: Duration = Duration::from_millis(2);

/// Where this program was started from, and how.
#[derive(Clone, Debug)]
pub(crate) struct Invocation {
    path: PathBuf,
    arguments: Vec<OsString>,
}

/// Who goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Successor {
    /// The program that is now where this one was started from, in this process.
    Program,
    /// The process that the service manager starts next.
    Process,
}

/// A successor on its way.
#[derive(Debug)]
pub(crate) struct Handover {
    successor: Successor,
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
    pub(crate) fn of_this_process() -> io::Result<Self> {
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

    /// Asks the program that is there now whether it can go on, and for this process, whether with
    /// the configuration that is there now.
    fn ask(&self, successor: Successor) -> Result<(), String> {
        let path = self.path.display();
        let version = record::VERSION.to_string();
        let can: [OsString; 2] = ["--can-take-over".into(), version.into()];
        let answer = self
            .run(&can)
            .map_err(|said| format!("{path} can't take over: {said}"))?;
        // There are programs that are pleased with whatever they are told.
        if answer.trim_end() != record::YES {
            return Err(format!("{path} can't take over: it is not echod"));
        }
        if successor == Successor::Process {
            // What is wrong there shows when it starts, and is no reason to let peers go.
            return Ok(());
        }
        let check = [self.arguments.as_slice(), &["--check".into()]].concat();
        self.run(&check)
            .map_err(|said| format!("{path} --check: {said}"))?;
        Ok(())
    }

    /// What it prints.
    fn run(&self, arguments: &[OsString]) -> Result<String, String> {
        let mut program = Program::new(&self.path);
        program
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
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

/// Waits for the end of a program; what it said, or what it complained of if that was no success.
fn finish(mut child: Child) -> Result<String, String> {
    let (said, complained) = (listen(child.stdout.take()), listen(child.stderr.take()));
    let until = Instant::now() + ANSWER_TIME_MAX;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < until => std::thread::sleep(LOOK),
            Ok(None) => {
                // It may end in this very moment.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("no answer within {} s", ANSWER_TIME_MAX.as_secs()));
            }
            Err(error) => return Err(error.to_string()),
        }
    };
    // Somebody whom it has left behind may still have the other end.
    let text = |heard: &Receiver<String>| heard.recv_timeout(LAST_WORDS).unwrap_or_default();
    if status.success() {
        return Ok(text(&said));
    }
    let complained = text(&complained);
    let lines: Vec<&str> = complained
        .lines()
        .map(|line| line.trim_start_matches("<3>").trim_start_matches("echod: "))
        .filter(|line| !line.is_empty())
        .take(COMPLAINTS_MAX)
        .collect();
    Err(match lines.as_slice() {
        [] => status.to_string(),
        lines => lines.join("; "),
    })
}

/// Hears somebody out, but not for ever.
fn listen(stream: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, heard) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(stream) = stream {
            // What came before an error is worth as much.
            let _ = stream.take(WORDS_BYTES_MAX).read_to_end(&mut bytes);
        }
        // Whoever asked may have lost patience.
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    heard
}

impl Daemon {
    /// Begins an upgrade, if there can be one.
    pub(crate) fn upgrade(&mut self, caller: Option<ClientId>, now: Instant) {
        self.look_for_successor(Successor::Program, caller, now);
    }

    fn look_for_successor(&mut self, successor: Successor, caller: Option<ClientId>, now: Instant) {
        let step = match self.why_no_successor() {
            Some(reason) => Err(reason.to_owned()),
            None => self
                .ask_in_background(successor)
                .map(Step::Asking)
                .map_err(|error| error.to_string()),
        };
        match step {
            Ok(step) => {
                self.handover = Some(Handover {
                    successor,
                    step,
                    caller,
                    until: now + 3 * ANSWER_TIME_MAX,
                });
            }
            Err(reason) => self.refuse_successor(caller, &reason, now),
        }
    }

    fn ask_in_background(&self, successor: Successor) -> io::Result<Receiver<Result<(), String>>> {
        let (sender, answer) = channel();
        let (invocation, control) = (self.invocation.clone(), self.workers.control().clone());
        std::thread::Builder::new()
            .name("upgrade".into())
            .spawn(move || {
                // It fails only for a mistake in its arguments. Signals are for the main thread, which
                // sees to it that none comes between two programs.
                let _ = signals::block_all();
                // It may have been given up meanwhile.
                let _ = sender.send(invocation.ask(successor));
                control.wake();
            })?;
        Ok(answer)
    }

    /// Begins to leave everything to the process that the service manager starts next.
    pub(crate) fn hand_over_to_process(&mut self, caller: ClientId, now: Instant) {
        if self.manager.as_ref().is_some_and(Manager::keeps) {
            return self.look_for_successor(Successor::Process, Some(caller), now);
        }
        let reason = "no service manager keeps anything: $FDSTORE is not set \
                      (FileDescriptorStoreMax= in the unit; before systemd 254 also Environment=FDSTORE=1)";
        self.refuse_successor(Some(caller), reason, now);
    }

    fn why_no_successor(&self) -> Option<&'static str> {
        if self.is_stopping() {
            Some("the daemon is stopping")
        } else if self.handover.is_some() {
            Some("another one is on its way")
        } else {
            None
        }
    }

    /// Goes on as before, for the daemon is to stop.
    pub(crate) fn give_up_handover(&mut self, now: Instant) {
        self.give_up("the daemon is stopping", now);
    }

    fn refuse_successor(&mut self, caller: Option<ClientId>, reason: &str, now: Instant) {
        ::log::error!("no successor: {reason}");
        if let Some((server, caller)) = self.server.as_mut().zip(caller) {
            let refusal = protocol::upgrade_refused(reason.to_owned());
            server.reply(caller, Reply::One(refusal), now);
        }
    }

    /// Whether the workers rest, and nobody is to be answered.
    pub(crate) fn is_resting(&self) -> bool {
        matches!(
            self.handover,
            Some(Handover {
                step: Step::Resting { .. },
                ..
            })
        )
    }

    /// Whether the workers stop soon, so that no reload is begun.
    pub(crate) fn is_settling(&self) -> bool {
        let step = self.handover.as_ref().map(|handover| &handover.step);
        matches!(step, Some(Step::Settling | Step::Resting { .. }))
    }

    /// When [`Self::go_on_handing_over`] is next due.
    pub(crate) fn next_handover_step(&self, now: Instant) -> Option<Instant> {
        let handover = self.handover.as_ref()?;
        Some(match handover.step {
            Step::Asking(_) => handover.until,
            Step::Settling | Step::Resting { .. } => now + LOOK,
        })
    }

    /// A worker has given away all that it had.
    pub(crate) fn collect(&mut self, mut more: Belongings) {
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
    pub(crate) fn go_on_handing_over(&mut self, now: Instant) {
        let Some(handover) = &mut self.handover else {
            return;
        };
        let is_late = now >= handover.until;
        let is_loading = self.reloads.is_loading();
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
            Step::Settling
                if self.listeners.all_retired() && self.queries.is_empty() && !is_loading =>
            {
                handover.step = Step::Resting {
                    waits_for: self.workers.count(),
                    rested: handover::clock(),
                    belongings: Belongings::default(),
                };
                handover.until = now + SETTLE_TIME_MAX;
                self.workers.command_all(|_| Command::HandOver);
                return;
            }
            Step::Settling if is_late && is_loading => {
                "a reload is under way; try again later".into()
            }
            Step::Settling if is_late => {
                "sockets of an earlier reload are still being served; try again later".into()
            }
            Step::Resting { waits_for: 0, .. } => return self.hand_over(now),
            Step::Resting { .. } if is_late => "a worker does not come to rest".into(),
            Step::Settling | Step::Resting { .. } => return,
        };
        self.give_up(&failure, now);
    }

    /// Writes everything down and lets the successor begin.
    fn hand_over(&mut self, now: Instant) {
        let Some(Handover {
            successor,
            step: Step::Resting {
                rested, belongings, ..
            },
            caller,
            ..
        }) = &self.handover
        else {
            return;
        };
        let (successor, caller) = (*successor, *caller);
        let connections = belongings.connections.len() as u64;
        // Who wants a process to come is told here and now; that one would answer something else.
        let waiting = caller.filter(|_| successor == Successor::Program);
        let carriers = self.leave_behind(belongings, *rested, waiting);
        let handed_over = carriers.and_then(|carriers| match successor {
            Successor::Program => self.execute(&carriers).map(|never| match never {}),
            Successor::Process => self.leave_to_manager(carriers),
        });
        match handed_over {
            Ok(()) => self.make_way(caller, connections, now),
            Err(error) => self.give_up(&error.to_string(), now),
        }
    }

    /// Becomes the successor. Returns only if that fails.
    fn execute(&mut self, carriers: &[OwnedFd]) -> io::Result<Infallible> {
        for carrier in carriers {
            carriers::survive_exec(carrier.as_fd(), true)?;
        }
        // A signal that comes between the programs waits for the next. One that came before is for
        // us; the successor reads the configuration anyway.
        signals::block_all()?;
        if self.signals.take().contains(&Signal::Stop) {
            self.stop(Instant::now());
            signals::unblock_all();
            return Err(io::Error::other("the daemon is stopping"));
        }
        // What it has not yet said it can't say later.
        ::log::logger().flush();
        let path = self.invocation.path.display().to_string();
        let result = self.invocation.execute(handover::environment(carriers));
        signals::unblock_all();
        result.map_err(|error| io::Error::other(format!("{path}: {error}")))
    }

    /// Has the service manager keep everything for the next process.
    fn leave_to_manager(&self, carriers: Vec<OwnedFd>) -> io::Result<()> {
        let Some(manager) = &self.manager else {
            return Ok(());
        };
        manager.keep(handover::STORED, carriers);
        // A message of a process that has ended is nobody's.
        manager.wait_until_read().inspect_err(|_| {
            // It must not come back after we have gone on.
            manager.let_go(handover::STORED);
        })
    }

    /// Everything is somebody else's now.
    fn make_way(&mut self, caller: Option<ClientId>, connections: u64, now: Instant) {
        let listeners = self.listeners.count() as u64;
        ::log::info!(
            "{listeners} listener(s) and {connections} connection(s) wait for the next process"
        );
        if let Some((server, caller)) = self.server.as_mut().zip(caller) {
            let reply = protocol::reply(&schema::HandOverReply {
                listeners,
                connections,
            });
            server.reply(caller, Reply::One(reply), now);
        }
        self.stage = Stage::HandedOver;
    }

    /// Goes on as before.
    fn give_up(&mut self, reason: &str, now: Instant) {
        let Some(handover) = self.handover.take() else {
            return;
        };
        if let Step::Resting { belongings, .. } = handover.step {
            self.take_back(belongings);
        }
        self.refuse_successor(handover.caller, reason, now);
    }
}
