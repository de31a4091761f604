//! The stages in which a listener, a connection or a datagram socket leaves its driver.
//!
//! ```text
//! listener, datagram socket:  Open ──▶ Draining ──▶ Closing
//!                               └───────────────────▶┘
//!
//! connection:                 Open ──▶ Detaching ──▶ Detached ──▶ (taken out)
//!                               ├──────────┴──▶ Failed  │
//!                               └──────┴──────────┴─────┴──▶ Closing
//! ```
//!
//! Nothing is received or sent on behalf of the user once it is not `Open`, except that a
//! `Draining` one serves its queue. `Closing` ends when the kernel has no request of the endpoint.

use super::Closing;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lifecycle {
    Open,
    /// To be closed when its queue is empty.
    Draining,
    /// To leave for another driver: the kernel's requests are to end, and what they bring is
    /// delivered.
    Detaching,
    /// `Detached` was reported; the user takes it out, or closes it.
    Detached,
    /// `Failed` was reported; the user closes it.
    Failed,
    /// To be closed, in this way.
    Closing(Closing),
}

impl Lifecycle {
    /// Goes to `next` if that is a legal step, which is the result. Every other request is too late
    /// and is ignored, as the seam says.
    pub(super) fn advance(&mut self, next: Self) -> bool {
        let legal = match (*self, next) {
            (Self::Closing(_), _) => false,
            (_, Self::Closing(_)) => true,
            (Self::Open, Self::Draining | Self::Detaching | Self::Failed) => true,
            (Self::Detaching, Self::Detached | Self::Failed) => true,
            _ => false,
        };
        if legal {
            *self = next;
        }
        legal
    }

    /// Whether nothing is to be delivered any more except `Closed`.
    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Failed | Self::Detached | Self::Closing(_))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Lifecycle; 7] = [
        Lifecycle::Open,
        Lifecycle::Draining,
        Lifecycle::Detaching,
        Lifecycle::Detached,
        Lifecycle::Failed,
        Lifecycle::Closing(Closing::Now),
        Lifecycle::Closing(Closing::Reset),
    ];

    /// How far along the drawing above; a legal step never goes back.
    fn rank(lifecycle: Lifecycle) -> u8 {
        match lifecycle {
            Lifecycle::Open => 0,
            Lifecycle::Draining | Lifecycle::Detaching => 1,
            Lifecycle::Detached | Lifecycle::Failed => 2,
            Lifecycle::Closing(_) => 3,
        }
    }

    proptest! {
        /// Whatever is asked for in whatever order: it never goes back, reports one end at most
        /// (detached or failed), and once closing stays as it is.
        #[test]
        fn every_history_follows_the_drawing(steps in proptest::collection::vec(0..ALL.len(), 0..20)) {
            let mut lifecycle = Lifecycle::Open;
            let mut ends = 0;
            for step in steps {
                let before = lifecycle;
                if lifecycle.advance(ALL[step]) {
                    prop_assert_eq!(lifecycle, ALL[step]);
                    prop_assert!(rank(lifecycle) > rank(before));
                    ends += u8::from(rank(lifecycle) == 2);
                } else {
                    prop_assert_eq!(lifecycle, before);
                }
            }
            prop_assert!(ends <= 1);
            let closed = lifecycle.advance(Lifecycle::Closing(Closing::Now));
            prop_assert!(closed || matches!(lifecycle, Lifecycle::Closing(_)));
        }
    }

    #[test]
    fn only_an_open_connection_is_detached() {
        for mut lifecycle in ALL {
            let is_open = lifecycle == Lifecycle::Open;
            assert_eq!(lifecycle.advance(Lifecycle::Detaching), is_open);
        }
    }
}
