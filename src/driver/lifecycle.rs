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
    pub(super) fn enter(&mut self, next: Self) -> bool {
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

    const CLOSINGS: [Closing; 3] = [Closing::Now, Closing::Reset, Closing::WhenDrained];

    const ALL: [Lifecycle; 8] = [
        Lifecycle::Open,
        Lifecycle::Draining,
        Lifecycle::Detaching,
        Lifecycle::Detached,
        Lifecycle::Failed,
        Lifecycle::Closing(CLOSINGS[0]),
        Lifecycle::Closing(CLOSINGS[1]),
        Lifecycle::Closing(CLOSINGS[2]),
    ];

    /// The drawing above as a table: from the stage of the row to that of the column.
    #[rustfmt::skip]
    const LEGAL: [[bool; 6]; 6] = {
        const YES: bool = true;
        const NO: bool = false;
        [
            // Open, Draining, Detaching, Detached, Failed, Closing
            [NO,     YES,      YES,       NO,       YES,    YES], // Open
            [NO,     NO,       NO,        NO,       NO,     YES], // Draining
            [NO,     NO,       NO,        YES,      YES,    YES], // Detaching
            [NO,     NO,       NO,        NO,       NO,     YES], // Detached
            [NO,     NO,       NO,        NO,       NO,     YES], // Failed
            [NO,     NO,       NO,        NO,       NO,     NO ], // Closing
        ]
    };

    /// The row and column of a stage.
    fn number(lifecycle: Lifecycle) -> usize {
        match lifecycle {
            Lifecycle::Open => 0,
            Lifecycle::Draining => 1,
            Lifecycle::Detaching => 2,
            Lifecycle::Detached => 3,
            Lifecycle::Failed => 4,
            Lifecycle::Closing(_) => 5,
        }
    }

    #[test]
    fn from_every_stage_exactly_the_steps_of_the_table_are_taken() {
        for (before, next) in ALL
            .iter()
            .flat_map(|before| ALL.map(|next| (*before, next)))
        {
            let mut lifecycle = before;
            let is_legal = LEGAL[number(before)][number(next)];
            assert_eq!(lifecycle.enter(next), is_legal, "{before:?} to {next:?}");
            assert_eq!(lifecycle, if is_legal { next } else { before });
        }
    }

    proptest! {
        /// Whatever is asked for in whatever order: one end at most is reported (detached or failed),
        /// and every endpoint can be closed, once.
        #[test]
        fn every_history_reports_one_end_and_can_be_closed(
            steps in proptest::collection::vec(0..ALL.len(), 0..20),
        ) {
            let mut lifecycle = Lifecycle::Open;
            let mut ends = 0;
            for step in steps {
                if lifecycle.enter(ALL[step]) {
                    ends += u8::from(matches!(ALL[step], Lifecycle::Detached | Lifecycle::Failed));
                }
            }
            prop_assert!(ends <= 1);
            let is_closing = matches!(lifecycle, Lifecycle::Closing(_));
            prop_assert_eq!(lifecycle.enter(Lifecycle::Closing(Closing::Now)), !is_closing);
        }
    }
}
