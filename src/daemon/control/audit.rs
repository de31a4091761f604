//! Audit lines: for each change that a control client has made, one line of the log names the caller,
//! and what there was before and is now.

use std::fmt::Display;

use crate::protocol::Effect;

use super::caller::Caller;

/// A change that is asked for, and its caller, which may be gone when the change is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::daemon) struct Audit {
    sentence: String,
    listener: Option<String>,
}

impl Audit {
    /// Of a call; none if it changes nothing.
    pub(in crate::daemon) fn of(caller: &Caller, effect: &Effect) -> Option<Self> {
        effect.changes_something().then(|| Self {
            sentence: format!("control: {} {effect}", caller.describe()),
            listener: effect.listener().map(str::to_owned),
        })
    }

    /// The change is made: what became of it ends the line.
    pub(in crate::daemon) fn record(&self, outcome: impl Display) {
        let Self { sentence, listener } = self;
        log::info!(listener = listener.as_deref(); "{sentence}: {outcome}");
    }

    /// The change ends this process, or what follows says what became of it.
    pub(in crate::daemon) fn record_beginning(&self) {
        let Self { sentence, listener } = self;
        log::info!(listener = listener.as_deref(); "{sentence}");
    }
}
