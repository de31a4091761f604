//! How many datagrams to receive, or clients to accept, at once: about as many as there have lately
//! been.
//!
//! To ask for one more than there is costs an attempt that finds none; to ask for fewer costs
//! another turn. So a socket that has a single one each time is asked for one, and a longer queue is
//! met with more, up to a maximum.

/// After this many single ones in a row, more than one is asked for: there may be a queue.
const SINGLES_MAX: u8 = 16;

/// By how much a burst grows that was filled.
const GROWTH: usize = 4;

/// See the module.
#[derive(Debug)]
pub(super) struct Burst {
    size: usize,
    // Bursts of one in a row that were filled.
    singles: u8,
}

impl Burst {
    pub(super) fn new() -> Self {
        Self {
            size: 1,
            singles: 0,
        }
    }

    /// How many to ask for.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// There were `count` of them, and then no more.
    pub(super) fn handle_emptied(&mut self, count: usize, max: usize) {
        // A queue of several is likely to have as many again, and some more.
        let size = if count > 1 { count * 2 } else { 1 };
        self.size = size.min(max);
        self.singles = 0;
    }

    /// There were as many as were asked for, and may be more.
    pub(super) fn handle_filled(&mut self, max: usize) {
        if self.size == 1 {
            self.singles += 1;
            if self.singles < SINGLES_MAX {
                return;
            }
            self.singles = 0;
        }
        self.size = (self.size * GROWTH).min(max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 32;

    #[test]
    fn single_datagrams_cost_hardly_more_than_one_attempt_each() {
        let mut burst = Burst::new();
        let mut asked = 0;
        for _ in 0..1000 {
            asked += burst.size();
            if burst.size() == 1 {
                burst.handle_filled(MAX);
            } else {
                burst.handle_emptied(1, MAX);
            }
        }
        assert!(asked < 1300, "{asked} attempts for 1000 datagrams");
    }

    #[test]
    fn a_long_queue_is_soon_met_with_large_bursts() {
        let mut burst = Burst::new();
        let (mut left, mut bursts) = (1000_usize, 0);
        while left > 0 {
            left = left.saturating_sub(burst.size());
            burst.handle_filled(MAX);
            bursts += 1;
        }
        assert!(bursts < 60, "{bursts} bursts for 1000 datagrams");
    }

    #[test]
    fn a_queue_of_several_is_met_with_room_for_more() {
        let mut burst = Burst::new();
        burst.handle_emptied(3, MAX);
        assert_eq!(burst.size(), 6);
        burst.handle_emptied(0, MAX);
        assert_eq!(burst.size(), 1);
    }
}
