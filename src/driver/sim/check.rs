//! The rules of the seam for the user of a driver, which the simulated driver checks: which tokens
//! and buffers may be used, what may be requested when, and what has to be done before the next
//! `wait`.
//!
//! A broken rule is a panic. An end, a failure or a `Detached` counts from the turn in which it is
//! reported, because the user cannot know of it before.

use super::{Resource, Sim, Slot};
use crate::driver::{Buffer, Closing, Op, Token};

impl Sim {
    /// The slot of a token that the user may use, or none for a token that was closed in this turn:
    /// one batch of completions may hold both the reason to close and bytes that are still
    /// answered.
    fn slot_for_user(&mut self, token: Token, what: &str) -> Option<&mut Slot> {
        let slot = self
            .slots
            .get_mut(token.slot as usize)
            .filter(|slot| slot.token == token);
        // A draining socket still sends answers, a draining listener is resumed by `Accept` after a
        // failure, and either may be closed before its end.
        let drains = slot.as_ref().is_some_and(|slot| slot.drain_requested)
            && matches!(what, "SendTo" | "Accept" | "Close");
        if let Some(slot) = slot
            && (!slot.close_requested || drains)
        {
            return Some(slot);
        }
        let excused = self.closed_tokens_allowed || self.closed_this_turn.contains(&token);
        assert!(
            excused,
            "{what} on {token:?}, which was closed in an earlier turn"
        );
        None
    }

    /// Records that the user has returned a buffer.
    pub(super) fn take_from_user(&mut self, buffer: &Buffer, what: &str) {
        let held_by_user = &mut self.held_by_user[usize::from(buffer.index)];
        assert!(
            held_by_user.take().is_some(),
            "{what} of buffer {}, which the user does not hold",
            buffer.index
        );
    }

    /// Panics if bytes of a relaying connection are unanswered: relayed bytes could overtake the
    /// answer.
    pub(super) fn check_answered(&self) {
        for token in self.held_by_user.iter().flatten().flatten() {
            let slot = &self.slots[token.slot as usize];
            assert!(
                slot.token != *token || slot.close_requested || !slot.relay_requested,
                "{token:?} is relaying, and its bytes were not answered before the next wait"
            );
        }
    }

    /// Panics if a connection was neither taken nor closed in the turn that reported `Detached`.
    pub(super) fn check_taken(&self) {
        for slot in &self.slots {
            assert!(
                !slot.detached || slot.close_requested,
                "{:?} is detached, and was not taken before the next wait",
                slot.token
            );
        }
    }

    /// Checks and records a request to accept or receive; false if the token was closed in this
    /// turn.
    fn request(&mut self, token: Token, what: &str) -> bool {
        let turn = self.turn;
        let Some(slot) = self.slot_for_user(token, what) else {
            return false;
        };
        let ends_relaying = what == "Receive" && std::mem::take(&mut slot.relay_requested);
        assert!(
            !slot.requested || ends_relaying,
            "{what} requested twice on {token:?}"
        );
        // In the turn that reports the end it is allowed: an earlier completion of the same batch
        // may have made the user resume.
        assert!(
            slot.end_reported_in.is_none_or(|reported| reported == turn),
            "{what} on {token:?} after the peer's end"
        );
        slot.requested = slot.end_reported_in.is_none();
        slot.relay_requested = what == "Relay";
        true
    }

    /// Checks that the user may submit this operation; false if it is to be ignored.
    pub(super) fn check_user(&mut self, op: &Op) -> bool {
        match op {
            Op::Accept { listener } => self.request(*listener, "Accept"),
            Op::Receive { connection } | Op::ReceiveAlways { connection } => {
                self.request(*connection, "Receive")
            }
            Op::Relay { connection } => self.request(*connection, "Relay"),
            Op::ReceiveFrom { socket } => self.request(*socket, "ReceiveFrom"),
            // A `Pause` without a `Receive` is allowed.
            Op::Pause { connection } => self
                .slot_for_user(*connection, "Pause")
                .map(|slot| (slot.requested, slot.relay_requested) = (false, false))
                .is_some(),
            // The buffer is returned even if the connection was closed in this turn.
            Op::Send { connection, buffer } => {
                self.take_from_user(buffer, "Send");
                self.slot_for_user(*connection, "Send")
                    .map(|slot| slot.sends += 1)
                    .is_some()
            }
            Op::SendTo { socket, buffer } => {
                self.take_from_user(buffer, "SendTo");
                self.slot_for_user(*socket, "SendTo").is_some()
            }
            Op::ShutDown { connection } => self.slot_for_user(*connection, "ShutDown").is_some(),
            Op::Detach { connection } => self.slot_for_user(*connection, "Detach").is_some(),
            Op::Close { token, how } => {
                let Some(slot) = self.slot_for_user(*token, "Close") else {
                    return false;
                };
                let connection = matches!(slot.resource, Resource::Connection(_));
                assert!(
                    !(connection && *how == Closing::WhenDrained),
                    "Close of a connection with WhenDrained: it has no queue to drain"
                );
                slot.close_requested = true;
                slot.drain_requested = *how == Closing::WhenDrained;
                self.closed_this_turn.push(*token);
                true
            }
        }
    }
}
