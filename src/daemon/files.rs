//! The files that the configuration in force came from, and what became of them since then, for
//! `GetStatus`.
//!
//! A disk may be slow or gone, and the control thread waits for neither: a thread looks, one at a
//! time, and the callers are answered when it has, or without it after a second. One that hangs is
//! left alone, and nothing looks again until it has ended.

use std::io;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use crate::driver::Waker;
use crate::protocol;
use crate::protocol::schema::GetStatusReply;

use super::Daemon;
use super::control::{ClientId, Reply};
use super::origin::{Comparison, Texts};

/// How long a caller waits for the disk.
const LOOK_TIME_MAX: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(super) struct Files {
    /// Of the texts in force.
    pub(super) names: Vec<String>,
    /// What tells these texts from others; none where a predecessor has not written it down.
    pub(super) fingerprint: Option<u64>,
    /// The same of what the last reload has rejected.
    pub(super) rejected: Option<u64>,
    looks: Looks,
}

impl Files {
    pub(super) fn of(texts: &Texts) -> Self {
        Self {
            names: texts.names(),
            fingerprint: Some(texts.fingerprint()),
            rejected: None,
            looks: Looks::default(),
        }
    }

    /// Others are in force now.
    pub(super) fn put_in_force(&mut self, names: Vec<String>, fingerprint: Option<u64>) {
        self.names = names;
        self.fingerprint = fingerprint;
    }

    /// Takes note of a caller; [`Daemon::continue_looks`] begins to look.
    pub(super) fn ask(&mut self, caller: ClientId) {
        self.looks.waiting.push(caller);
    }

    /// When a caller has waited long enough.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.looks.poll_timeout()
    }
}

/// The callers that wait, and the look under way.
#[derive(Debug, Default)]
struct Looks {
    /// For the next look: what one under way finds may be older than their question.
    waiting: Vec<ClientId>,
    current: Option<Look>,
}

#[derive(Debug)]
struct Look {
    callers: Vec<ClientId>,
    found: Receiver<Option<Comparison>>,
    until: Instant,
}

/// The callers to be answered, and what was found.
type Answer = (Vec<ClientId>, Option<Comparison>);

impl Looks {
    fn poll_timeout(&self) -> Option<Instant> {
        let look = self.current.as_ref()?;
        (!look.callers.is_empty()).then_some(look.until)
    }

    /// Ends the look under way, if it is over or has taken too long, and begins the next.
    fn advance(
        &mut self,
        now: Instant,
        begin: impl FnOnce() -> io::Result<Receiver<Option<Comparison>>>,
    ) -> Vec<Answer> {
        let mut answers = Vec::new();
        if let Some(look) = &mut self.current {
            match look.found.try_recv() {
                Ok(found) => {
                    answers.push((std::mem::take(&mut look.callers), found));
                    self.current = None;
                }
                Err(TryRecvError::Disconnected) => {
                    answers.push((std::mem::take(&mut look.callers), None));
                    self.current = None;
                }
                Err(TryRecvError::Empty) if now >= look.until => {
                    look.callers.append(&mut self.waiting);
                    answers.push((std::mem::take(&mut look.callers), None));
                }
                Err(TryRecvError::Empty) => {}
            }
        }
        if self.current.is_none() && !self.waiting.is_empty() {
            let callers = std::mem::take(&mut self.waiting);
            match begin() {
                Ok(found) => {
                    self.current = Some(Look {
                        callers,
                        found,
                        until: now + LOOK_TIME_MAX,
                    });
                }
                // No thread: memory or the limit of processes is used up.
                Err(_) => answers.push((callers, None)),
            }
        }
        answers
    }

    /// All callers, which are not to wait any longer.
    fn take_callers(&mut self) -> Vec<ClientId> {
        let mut callers = std::mem::take(&mut self.waiting);
        if let Some(look) = &mut self.current {
            callers.append(&mut look.callers);
        }
        callers
    }
}

impl Daemon {
    /// Answers those that wait for a look at the files, and begins the next one.
    pub(super) fn continue_looks(&mut self, now: Instant) {
        let (origin, names) = (&self.origin, &self.files.names);
        let (in_force, rejected) = (self.files.fingerprint, self.files.rejected);
        let control = self.workers.control();
        let begin = || {
            let (origin, names) = (origin.clone(), names.clone());
            look(control.clone(), move || {
                origin.compare(&names, in_force, rejected)
            })
        };
        for answer in self.files.looks.advance(now, begin) {
            self.answer_status(answer, now);
        }
    }

    /// Answers them without a look: the workers stop, and these connections may not continue.
    pub(super) fn end_looks(&mut self, now: Instant) {
        let callers = self.files.looks.take_callers();
        self.answer_status((callers, None), now);
    }

    fn answer_status(&mut self, (callers, found): Answer, now: Instant) {
        for caller in callers {
            let status = self.status(found);
            if let Some(server) = &mut self.server {
                let reply = protocol::reply(&GetStatusReply { status });
                server.reply(caller, Reply::One(reply), now);
            }
        }
    }
}

/// Looks in a thread of its own, and wakes the control thread afterwards.
fn look(
    control: Waker,
    compare: impl FnOnce() -> Option<Comparison> + Send + 'static,
) -> io::Result<Receiver<Option<Comparison>>> {
    let (sender, found) = channel();
    std::thread::Builder::new()
        .name("look".into())
        .spawn(move || {
            // The control thread may have ended.
            let _ = sender.send(compare());
            control.wake();
        })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::schema::OnDisk;

    fn found(on_disk: OnDisk) -> Option<Comparison> {
        Some(Comparison {
            on_disk,
            is_rejected: None,
        })
    }

    #[test]
    fn a_disk_that_hangs_delays_an_answer_by_a_second_once() {
        let now = Instant::now();
        let (first, second, third) = (ClientId::of(1), ClientId::of(2), ClientId::of(3));
        let (disk, hung) = channel();
        let mut looks = Looks::default();
        looks.waiting.push(first);
        assert_eq!(looks.advance(now, || Ok(hung)), []);
        looks.waiting.push(second);
        let unused = || panic!("one looks already");
        assert_eq!(looks.advance(now, unused), []);
        let late = looks.poll_timeout().expect("there are callers");
        assert_eq!(late, now + LOOK_TIME_MAX);
        let unused = || panic!("one looks still");
        assert_eq!(looks.advance(late, unused), [(vec![first, second], None)]);
        assert_eq!(looks.poll_timeout(), None);
        // Until the disk answers, no caller waits for it again.
        looks.waiting.push(third);
        let unused = || panic!("one looks still");
        assert_eq!(looks.advance(late, unused), [(vec![third], None)]);

        disk.send(found(OnDisk::Same)).unwrap();
        looks.waiting.push(third);
        let (disk, next) = channel();
        assert_eq!(
            looks.advance(late, || Ok(next)),
            [(vec![], found(OnDisk::Same))]
        );
        disk.send(found(OnDisk::Changed)).unwrap();
        let unused = || panic!("no caller waits");
        assert_eq!(
            looks.advance(late, unused),
            [(vec![third], found(OnDisk::Changed))]
        );
    }

    #[test]
    fn without_a_thread_there_is_an_answer() {
        let mut looks = Looks::default();
        let caller = ClientId::of(1);
        looks.waiting.push(caller);
        let none = || Err(io::ErrorKind::WouldBlock.into());
        assert_eq!(looks.advance(Instant::now(), none), [(vec![caller], None)]);
    }
}
