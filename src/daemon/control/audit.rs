//! Audit lines: for each change that a control client has made, one line of the log names the caller,
//! and what there was before and is now.

use std::fmt::{self, Display};

use crate::protocol::Effect;

use super::caller::Caller;

/// A change that is asked for, and its caller, which may be gone when the change is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::daemon) struct Audit {
    uid: u32,
    sentence: String,
    listener: Option<String>,
}

impl Audit {
    /// Of a call; none if it changes nothing.
    pub(in crate::daemon) fn of(caller: &Caller, effect: &Effect) -> Option<Self> {
        effect.changes_something().then(|| Self {
            uid: caller.uid,
            sentence: format!("control: {} {effect}", caller.describe()),
            listener: effect.listener().map(str::to_owned),
        })
    }

    /// The change is made: what became of it ends the line.
    pub(in crate::daemon) fn record(&self, outcome: impl Display) {
        self.log(format_args!(": {outcome}"));
    }

    /// The change ends this process, or what follows says what became of it.
    pub(in crate::daemon) fn record_beginning(&self) {
        self.log(format_args!(""));
    }

    /// The key `caller` keeps the line from being suppressed, whatever else its caller does.
    fn log(&self, end: fmt::Arguments<'_>) {
        let (caller, listener) = (self.uid, self.listener.as_deref());
        log::info!(caller = caller, listener = listener; "{}{end}", self.sentence);
    }
}
