//! How far the service has come in its life. The steps are taken in `stop` and `succession`.

use std::time::Instant;

/// How far the service has come in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Serving,
    /// Told to stop, and serving on as not ready, for load balancers (`shutdown-delay`).
    Leaving {
        until: Instant,
    },
    /// Nobody new comes in; those there are go on (`drain-timeout`).
    Draining {
        until: Instant,
    },
    /// Those still there got our FIN.
    Finishing {
        until: Instant,
    },
    /// The connections are over; the datagrams that have come are answered.
    Emptying {
        until: Instant,
    },
    /// Everything is kept for the next process.
    HandedOver,
    Ended,
}

impl Stage {
    /// Whether the end has begun, or this process's part has ended.
    pub(super) fn is_stopping(self) -> bool {
        self != Self::Serving
    }

    /// The name in the control protocol.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Leaving { .. } => "leaving",
            Self::Draining { .. } => "draining",
            Self::Finishing { .. } | Self::Emptying { .. } | Self::HandedOver | Self::Ended => {
                "stopping"
            }
        }
    }
}
