//! Which configuration a rollback restores, and until when the one in force has to be confirmed.
//!
//! Decides, and does nothing; time is an argument. There is one level: a rollback leaves nothing to
//! roll back to, so that one that is tried twice does not bring back what it has removed.

use std::time::{Duration, Instant};

/// A reload that is rolled back unless it is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::daemon) struct Unconfirmed {
    /// Of the latest one, where several were applied on trial.
    pub id: u64,
    /// Until when it may be confirmed.
    pub until: Instant,
}

/// See the module; `C` is a configuration.
#[derive(Debug)]
pub(in crate::daemon) struct Trial<C> {
    before: Option<C>,
    // Never without the previous configuration.
    unconfirmed: Option<Unconfirmed>,
}

impl<C> Trial<C> {
    /// Of a start.
    pub(super) fn none() -> Self {
        Self {
            before: None,
            unconfirmed: None,
        }
    }

    /// As a predecessor had it. Without a previous configuration nothing can be rolled back.
    pub(super) fn restore(before: Option<C>, unconfirmed: Option<Unconfirmed>) -> Self {
        Self {
            unconfirmed: unconfirmed.filter(|_| before.is_some()),
            before,
        }
    }

    /// What a rollback restores.
    pub(super) fn before(&self) -> Option<&C> {
        self.before.as_ref()
    }

    /// The reload that has to be confirmed.
    pub(super) fn unconfirmed(&self) -> Option<Unconfirmed> {
        self.unconfirmed
    }

    /// Whether a reload was not confirmed in time.
    pub(super) fn has_expired(&self, now: Instant) -> bool {
        self.unconfirmed
            .is_some_and(|unconfirmed| now >= unconfirmed.until)
    }

    /// A reload was carried out; `before` is what was in force, if anything has changed. It is to be
    /// confirmed within this time, or else confirms the one before, whose id is returned.
    pub(super) fn handle_reload(
        &mut self,
        id: u64,
        before: Option<C>,
        within: Option<Duration>,
        now: Instant,
    ) -> Option<u64> {
        let next = within.map(|within| Unconfirmed {
            id,
            until: now + within,
        });
        let earlier = self.unconfirmed.take();
        if earlier.is_some() && next.is_some() {
            // What is restored is what was in force before the first of them.
            self.unconfirmed = next;
            return None;
        }
        if before.is_some() {
            self.before = before;
            self.unconfirmed = next;
        }
        earlier.map(|earlier| earlier.id)
    }

    /// A successor has applied what is on disk. No caller has confirmed anything by that.
    pub(super) fn handle_start(&mut self, before: Option<C>) {
        if self.unconfirmed.is_none() && before.is_some() {
            self.before = before;
        }
    }

    /// The configuration in force stays. Returns the id of its reload, if that had to be confirmed.
    pub(super) fn confirm(&mut self) -> Option<u64> {
        Some(self.unconfirmed.take()?.id)
    }

    /// The previous configuration is in force again.
    pub(super) fn handle_rollback(&mut self) {
        *self = Self::none();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// Configuration "b" in force, which reload 2 has put there on trial; "a" before.
    fn on_trial(now: Instant) -> Trial<&'static str> {
        let mut trial = Trial::none();
        assert_eq!(trial.handle_reload(2, Some("a"), Some(MINUTE), now), None);
        trial
    }

    #[test]
    fn a_reload_that_is_not_confirmed_expires_at_its_time_and_not_before() {
        let now = Instant::now();
        let trial = on_trial(now);
        assert_eq!(trial.before(), Some(&"a"));
        let unconfirmed = trial.unconfirmed().expect("it is on trial");
        assert_eq!((unconfirmed.id, unconfirmed.until), (2, now + MINUTE));
        assert!(!trial.has_expired(now + MINUTE - Duration::from_nanos(1)));
        assert!(trial.has_expired(now + MINUTE));
    }

    #[test]
    fn one_that_is_confirmed_stays_and_can_still_be_rolled_back() {
        let now = Instant::now();
        let mut trial = on_trial(now);
        assert_eq!(trial.confirm(), Some(2));
        assert!(!trial.has_expired(now + MINUTE));
        assert_eq!(
            trial.confirm(),
            None,
            "there is nothing to confirm any more"
        );
        assert_eq!(trial.before(), Some(&"a"));
    }

    #[test]
    fn another_reload_confirms_whether_or_not_it_changes_something() {
        let now = Instant::now();
        let mut trial = on_trial(now);
        assert_eq!(trial.handle_reload(3, None, None, now), Some(2));
        assert_eq!(trial.unconfirmed(), None);
        assert_eq!(trial.before(), Some(&"a"));
        let mut trial = on_trial(now);
        assert_eq!(trial.handle_reload(3, Some("b"), None, now), Some(2));
        assert_eq!(trial.unconfirmed(), None);
        assert_eq!(trial.before(), Some(&"b"));
    }

    #[test]
    fn another_one_on_trial_starts_the_time_again_and_keeps_what_is_restored() {
        let now = Instant::now();
        let later = now + MINUTE / 2;
        for before in [None, Some("b")] {
            let mut trial = on_trial(now);
            assert_eq!(trial.handle_reload(3, before, Some(MINUTE), later), None);
            assert_eq!(trial.before(), Some(&"a"));
            assert!(!trial.has_expired(now + MINUTE));
            assert!(trial.has_expired(later + MINUTE));
            assert_eq!(trial.confirm(), Some(3));
        }
    }

    #[test]
    fn what_changes_nothing_is_not_on_trial_and_leaves_what_a_rollback_restores() {
        let now = Instant::now();
        let mut trial = Trial::<&str>::none();
        assert_eq!(trial.handle_reload(2, None, Some(MINUTE), now), None);
        assert_eq!(trial.unconfirmed(), None);
        let mut trial = on_trial(now);
        trial.confirm();
        assert_eq!(trial.handle_reload(3, None, Some(MINUTE), now), None);
        assert_eq!(trial.unconfirmed(), None);
        assert_eq!(trial.before(), Some(&"a"));
    }

    #[test]
    fn a_successor_confirms_nothing_and_starts_no_time_again() {
        let now = Instant::now();
        let mut trial = on_trial(now);
        let unconfirmed = trial.unconfirmed();
        trial.handle_start(Some("b"));
        assert_eq!(trial.unconfirmed(), unconfirmed);
        assert_eq!(trial.before(), Some(&"a"));
        trial.confirm();
        trial.handle_start(Some("b"));
        assert_eq!(trial.before(), Some(&"b"));
    }

    #[test]
    fn a_rollback_leaves_nothing_to_roll_back_to() {
        let mut trial = on_trial(Instant::now());
        trial.handle_rollback();
        assert_eq!((trial.before(), trial.unconfirmed()), (None, None));
    }

    #[test]
    fn without_a_configuration_before_a_successor_waits_for_no_confirmation() {
        let until = Instant::now();
        let unconfirmed = Some(Unconfirmed { id: 2, until });
        let trial = Trial::<&str>::restore(None, unconfirmed);
        assert_eq!(trial.unconfirmed(), None);
        let trial = Trial::restore(Some("a"), unconfirmed);
        assert_eq!(trial.unconfirmed(), unconfirmed);
    }
}
