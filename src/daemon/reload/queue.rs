//! Requests for a reload, in the order in which they came: one is carried out at a time.
//!
//! Decides, and does nothing. A reload reads what is there when it begins, so one that waits serves
//! every signal that comes before that; each caller gets a result of its own. Callers are bounded by
//! the connections of the control socket.

use std::collections::VecDeque;
use std::time::Duration;

use crate::protocol::schema::Trigger;

/// Why a reload is wanted, and which client `C` of the control socket waits for the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::daemon) struct Request<C> {
    pub trigger: Trigger,
    pub wanted: Wanted,
    /// Only to find out what it would do.
    pub dry_run: bool,
    pub caller: Option<C>,
}

/// Which configuration is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::daemon) enum Wanted {
    /// The one on disk.
    OnDisk {
        /// Rolled back after this time unless it is confirmed.
        confirm_within: Option<Duration>,
    },
    /// The one before.
    Before,
}

impl<C> Request<C> {
    /// SIGHUP.
    pub(in crate::daemon) const SIGNAL: Self = Self {
        trigger: Trigger::Signal,
        wanted: Wanted::OnDisk {
            confirm_within: None,
        },
        dry_run: false,
        caller: None,
    };

    /// A reload was not confirmed in time.
    pub(in crate::daemon) const EXPIRED: Self = Self {
        trigger: Trigger::ConfirmExpired,
        wanted: Wanted::Before,
        dry_run: false,
        caller: None,
    };

    /// A successor begins.
    pub(in crate::daemon) const START: Self = Self {
        trigger: Trigger::Start,
        ..Self::SIGNAL
    };

    /// The method `Reload` or `Rollback`.
    pub(in crate::daemon) fn of_caller(caller: C, wanted: Wanted, dry_run: bool) -> Self {
        Self {
            trigger: Trigger::Control,
            wanted,
            dry_run,
            caller: Some(caller),
        }
    }
}

/// Requests that have not begun.
#[derive(Debug)]
pub(super) struct Queue<C>(VecDeque<Request<C>>);

impl<C: PartialEq> Queue<C> {
    pub(super) fn new() -> Self {
        Self(VecDeque::new())
    }

    pub(super) fn add(&mut self, request: Request<C>) {
        if request.caller.is_some() || !self.0.contains(&request) {
            self.0.push_back(request);
        }
    }

    /// The next one in order, if it may begin now.
    pub(super) fn next_if(
        &mut self,
        may_begin: impl Fn(&Request<C>) -> bool,
    ) -> Option<Request<C>> {
        self.0
            .front()
            .is_some_and(may_begin)
            .then(|| self.0.pop_front())?
    }

    /// Takes out the requests of callers; signals stay.
    pub(super) fn take_called(&mut self) -> Vec<Request<C>> {
        let all = std::mem::take(&mut self.0).into_iter();
        let (called, signals) = all.partition(|request| request.caller.is_some());
        self.0 = signals;
        Vec::from(called)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_become_one_and_callers_keep_their_turns() {
        let caller = |id| Request::of_caller(id, Wanted::Before, id == 2);
        let mut queue = Queue::new();
        for request in [
            Request::SIGNAL,
            caller(1),
            Request::SIGNAL,
            caller(2),
            Request::SIGNAL,
        ] {
            queue.add(request);
        }
        let order: Vec<Request<u64>> = std::iter::from_fn(|| queue.next_if(|_| true)).collect();
        assert_eq!(order, [Request::SIGNAL, caller(1), caller(2)]);
        queue.add(Request::SIGNAL);
        queue.add(caller(3));
        assert_eq!(queue.take_called(), [caller(3)]);
        let signal = queue.next_if(|_| true);
        assert_eq!(signal, Some(Request::SIGNAL), "a signal is not lost");
    }
}
