//! One timer for each slot, thousands of them: a hashed wheel.
//!
//! Setting, clearing and firing take the same time with any number of timers. A timer never fires
//! before the time that it was set to, and at most [`TICK`] after it.
//!
//! A timer that is set can only be moved nearer. So a message that puts a deadline off does not touch
//! the timer: it fires at the earlier time, which may be too soon for the deadline by then, and its
//! owner sets it again.
//!
//! Never reads a clock.

use std::time::{Duration, Instant};

/// The resolution: a timer fires no later than this after its time.
pub(crate) const TICK: Duration = Duration::from_millis(16);

/// One turn of the wheel is about half a minute. A timer that is due later is visited once a turn.
const BUCKETS: usize = 2048;

/// The end of a list.
const NONE: u32 = u32::MAX;

/// The timers of one worker.
#[derive(Debug)]
pub struct Timers {
    start: Instant,
    // All ticks up to this one have fired.
    fired: u64,
    // The first slot of each bucket. A bucket is a doubly linked list through `entries`.
    heads: Box<[u32]>,
    // One bit for each bucket: whether its list has any slots.
    occupied: [u64; BUCKETS / 64],
    // Before this there is nothing to fire.
    next: Option<Instant>,
    entries: Vec<TimerEntry>,
}

#[derive(Clone, Copy, Debug)]
struct TimerEntry {
    due: u64,
    next: u32,
    previous: u32,
    bucket: u16,
    set: bool,
}

const TICK_NANOS: u64 = TICK.as_nanos() as u64;

const UNSET: TimerEntry = TimerEntry {
    due: 0,
    next: NONE,
    previous: NONE,
    bucket: 0,
    set: false,
};

impl Timers {
    /// No timers.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            start: now,
            fired: 0,
            heads: vec![NONE; BUCKETS].into_boxed_slice(),
            occupied: [0; BUCKETS / 64],
            next: None,
            entries: Vec::new(),
        }
    }

    /// Sets the slot's timer to `due`, unless it fires sooner already. A time in the past is that of
    /// the next tick.
    pub fn set(&mut self, slot: u32, due: Instant) {
        let tick = self.nanos(due).div_ceil(TICK_NANOS).max(self.fired + 1);
        if self.entries.len() <= slot as usize {
            self.entries.resize(slot as usize + 1, UNSET);
        }
        let entry = self.entries[slot as usize];
        if entry.set && entry.due <= tick {
            return;
        }
        self.clear(slot);
        self.link(slot, tick);
    }

    /// Stops the slot's timer, if it is set.
    pub fn clear(&mut self, slot: u32) {
        let Some(&TimerEntry {
            next,
            previous,
            bucket,
            set: true,
            ..
        }) = self.entries.get(slot as usize)
        else {
            return;
        };
        self.entries[slot as usize].set = false;
        if previous == NONE {
            self.heads[usize::from(bucket)] = next;
            if next == NONE {
                self.occupied[usize::from(bucket) / 64] &= !(1 << (bucket % 64));
            }
        } else {
            self.entries[previous as usize].next = next;
        }
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
    }

    fn link(&mut self, slot: u32, due: u64) {
        // A timer beyond this turn of the wheel waits in the bucket that is visited last, and is
        // linked again from there.
        let tick = due.min(self.fired + BUCKETS as u64);
        let time = self.time_of(tick);
        self.next = Some(self.next.map_or(time, |next| next.min(time)));
        let bucket = tick as usize % BUCKETS;
        let head = std::mem::replace(&mut self.heads[bucket], slot);
        self.occupied[bucket / 64] |= 1 << (bucket % 64);
        self.entries[slot as usize] = TimerEntry {
            due,
            next: head,
            previous: NONE,
            bucket: bucket as u16,
            set: true,
        };
        if head != NONE {
            self.entries[head as usize].previous = slot;
        }
    }

    /// When to call [`Self::fire`] next, or `None` if no timer is set. It may be too soon for any
    /// timer to fire, because one that is due later is visited once a turn of the wheel, and one that
    /// was stopped may have been the next.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.next
    }

    /// When the first bucket in use is due.
    fn first_occupied(&self) -> Option<Instant> {
        let first = (self.fired + 1) as usize % BUCKETS;
        // The search begins within a word and wraps around. The word in which it begins is looked at
        // twice: first its upper bits, at the end the others.
        let ahead = (0..=BUCKETS / 64).find_map(|step| {
            let word = (first / 64 + step) % (BUCKETS / 64);
            let mut bits = self.occupied[word];
            if step == 0 {
                bits &= u64::MAX << (first % 64);
            } else if step == BUCKETS / 64 {
                bits &= !(u64::MAX << (first % 64));
            }
            let bit = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
            Some((word * 64 + bit + BUCKETS - first) % BUCKETS)
        })?;
        Some(self.time_of(self.fired + 1 + ahead as u64))
    }

    fn time_of(&self, tick: u64) -> Instant {
        self.start + Duration::from_nanos((tick * TICK_NANOS).max(1))
    }

    /// Nanoseconds since the start: 64 bits of them are centuries.
    fn nanos(&self, time: Instant) -> u64 {
        time.saturating_duration_since(self.start).as_nanos() as u64
    }

    /// Appends the slots whose timers are due at `now`. Their timers are no longer set.
    pub fn fire(&mut self, now: Instant, due: &mut Vec<u32>) {
        // So it is at nearly every message.
        if self.next.is_none_or(|next| now < next) {
            return;
        }
        let reached = self.nanos(now) / TICK_NANOS;
        // After a long sleep each bucket is visited once, not once for each turn that was missed.
        let from = (self.fired + 1).max((reached + 1).saturating_sub(BUCKETS as u64));
        for tick in from..=reached {
            let bucket = tick as usize % BUCKETS;
            if self.occupied[bucket / 64] & 1 << (bucket % 64) == 0 {
                continue;
            }
            let mut slot = std::mem::replace(&mut self.heads[bucket], NONE);
            self.occupied[bucket / 64] &= !(1 << (bucket % 64));
            self.fired = tick;
            while slot != NONE {
                let TimerEntry {
                    due: when, next, ..
                } = self.entries[slot as usize];
                self.entries[slot as usize].set = false;
                if when <= reached {
                    due.push(slot);
                } else {
                    self.link(slot, when);
                }
                slot = next;
            }
        }
        self.fired = self.fired.max(reached);
        self.next = self.first_occupied();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fire(timers: &mut Timers, now: Instant) -> Vec<u32> {
        let mut due = Vec::new();
        timers.fire(now, &mut due);
        due.sort_unstable();
        due
    }

    #[test]
    fn a_timer_fires_at_its_time_and_once() {
        let start = Instant::now();
        let mut timers = Timers::new(start);
        timers.set(3, start + Duration::from_millis(100));
        assert!(fire(&mut timers, start + Duration::from_millis(99)).is_empty());
        let next = timers.next().unwrap();
        assert!(
            next >= start + Duration::from_millis(100)
                && next <= start + Duration::from_millis(100) + TICK
        );
        assert_eq!(fire(&mut timers, next), [3]);
        assert!(fire(&mut timers, next + TICK).is_empty());
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn a_timer_can_be_moved_nearer_but_not_away() {
        let start = Instant::now();
        let mut timers = Timers::new(start);
        timers.set(1, start + Duration::from_secs(10));
        timers.set(1, start + Duration::from_secs(20));
        timers.set(1, start + Duration::from_secs(5));
        assert_eq!(
            fire(&mut timers, start + Duration::from_secs(5) + TICK),
            [1]
        );
    }

    #[test]
    fn a_timer_that_is_far_away_survives_many_turns_of_the_wheel() {
        let start = Instant::now();
        let mut timers = Timers::new(start);
        let due = start + Duration::from_secs(600);
        timers.set(7, due);
        let mut fired_at = None;
        while let Some(next) = timers.next() {
            if fire(&mut timers, next) == [7] {
                fired_at = Some(next);
            }
        }
        let fired_at = fired_at.unwrap();
        assert!(fired_at >= due && fired_at <= due + TICK);
    }

    #[test]
    fn all_timers_that_became_due_in_a_long_sleep_fire_at_once() {
        let start = Instant::now();
        let mut timers = Timers::new(start);
        timers.set(1, start + Duration::from_secs(1));
        timers.set(2, start + Duration::from_secs(100_000));
        assert_eq!(fire(&mut timers, start + Duration::from_secs(90_000)), [1]);
        assert_eq!(fire(&mut timers, start + Duration::from_secs(100_001)), [2]);
    }

    proptest! {
        /// Compared with the obvious implementation, a list that is searched.
        #[test]
        fn fires_what_a_plain_list_would(steps in proptest::collection::vec((0..3u8, 0..50u32, 0..100_000u64), 1..300)) {
            let start = Instant::now();
            let mut timers = Timers::new(start);
            let mut plain = std::collections::BTreeMap::new();
            let mut now = start;
            for (kind, slot, millis) in steps {
                let time = now + Duration::from_millis(millis);
                match kind {
                    0 => {
                        timers.set(slot, time);
                        let due = plain.entry(slot).or_insert(time);
                        *due = time.min(*due);
                    }
                    1 => { timers.clear(slot); plain.remove(&slot); }
                    _ => {
                        now += Duration::from_millis(millis % 5000);
                        for slot in fire(&mut timers, now) {
                            let due = plain.remove(&slot);
                            prop_assert!(due.is_some_and(|due| due <= now), "never early");
                        }
                        for due in plain.values() {
                            prop_assert!(*due + 2 * TICK > now, "never later than a tick");
                        }
                    }
                }
                match (timers.next(), plain.values().min()) {
                    (Some(next), Some(first)) => prop_assert!(next <= *first + 2 * TICK),
                    (None, Some(first)) => prop_assert!(false, "{first:?} is never fired"),
                    // One that was stopped may have been the next.
                    (_, None) => {}
                }
            }
            // A worker without timers is woken a few times at most.
            for slot in 0..50 {
                timers.clear(slot);
            }
            for _ in 0..2 {
                now = timers.next().unwrap_or(now);
                prop_assert!(fire(&mut timers, now).is_empty());
            }
            prop_assert_eq!(timers.next(), None);
        }
    }
}
