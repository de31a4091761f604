//! What a request has the daemon do, and how the log says it.
//!
//! Knows values that are checked: a listener that is named is there, and has a backlog if one is to be
//! set. Never carries anything out; `daemon::calls` does.

use std::fmt::{self, Display};
use std::time::Duration;

use humantime::format_duration;

use super::peers::{PeerQuery, SortKey};

/// Something for the daemon to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Look at the configuration files, and report on the daemon as a whole; the answer is a
    /// [`super::schema::GetStatusReply`].
    GetStatus,
    /// List these peers; the answer is a [`super::page`] or several.
    ListPeers {
        /// Which.
        query: PeerQuery,
        /// In which order.
        sort: SortKey,
        /// How many at most.
        limit: Option<u64>,
    },
    /// Close these connections; the answer is a [`super::schema::ClosePeersReply`].
    ClosePeers {
        /// Which.
        query: PeerQuery,
        /// Only count them.
        dry_run: bool,
        /// Report which ones those are.
        list: bool,
    },
    /// Give the listener's sockets this backlog; the answer is a [`super::schema::SetBacklogReply`].
    SetBacklog {
        /// The listener's name.
        listener: String,
        /// From 1 to `i32::MAX`.
        backlog: u32,
    },
    /// Turn new clients away, or have them wait; the answer is a
    /// [`super::schema::PauseListenerReply`].
    PauseListener {
        /// The listener's name; none is all listeners.
        listener: Option<String>,
        /// Have them wait. The listener has a backlog, if it is named.
        hold: bool,
    },
    /// Serve new clients again; the answer is a [`super::schema::ResumeListenerReply`].
    ResumeListener {
        /// The listener's name; none is all listeners.
        listener: Option<String>,
    },
    /// Turn new clients away and end the connections; the answer is a
    /// [`super::schema::DrainListenerReply`], or several of them.
    DrainListener {
        /// The listener's name; none is all listeners.
        listener: Option<String>,
        /// How long connections may continue; none is the configured time.
        deadline: Option<Duration>,
    },
    /// Read the configuration and apply it; the answer is [`super::reloaded`].
    Reload {
        /// Only plan.
        dry_run: bool,
        /// Roll it back after this time unless it is confirmed.
        confirm_within: Option<Duration>,
    },
    /// Keep the configuration that is not confirmed; the answer is a [`super::schema::ConfirmReply`]
    /// or [`super::nothing_to_confirm`].
    Confirm,
    /// Put the previous configuration in force; the answer is [`super::reloaded`] or
    /// [`super::nothing_to_roll_back`].
    RollBack {
        /// Only plan.
        dry_run: bool,
    },
    /// Execute the program that is installed now; the answer is [`super::upgraded`] or
    /// [`super::upgrade_refused`].
    Upgrade,
    /// Leave everything to the next process; the answer is a [`super::schema::HandOverReply`] or
    /// [`super::upgrade_refused`].
    HandOver,
    /// Log from this level on; the answer is a [`super::schema::SetLogLevelReply`].
    SetLogLevel {
        /// The level.
        level: log::LevelFilter,
    },
}

impl Effect {
    /// Whether something is different afterwards: the log then says which caller it was.
    #[must_use]
    pub(crate) fn changes_something(&self) -> bool {
        match self {
            Self::GetStatus | Self::ListPeers { .. } => false,
            Self::ClosePeers { dry_run, .. }
            | Self::Reload { dry_run, .. }
            | Self::RollBack { dry_run } => !dry_run,
            Self::SetBacklog { .. }
            | Self::PauseListener { .. }
            | Self::ResumeListener { .. }
            | Self::DrainListener { .. }
            | Self::Confirm
            | Self::Upgrade
            | Self::HandOver
            | Self::SetLogLevel { .. } => true,
        }
    }

    /// The listener that it is about.
    #[must_use]
    pub(crate) fn listener(&self) -> Option<&str> {
        match self {
            Self::ListPeers { query, .. } | Self::ClosePeers { query, .. } => {
                query.listener.as_deref()
            }
            Self::SetBacklog { listener, .. } => Some(listener),
            Self::PauseListener { listener, .. }
            | Self::ResumeListener { listener }
            | Self::DrainListener { listener, .. } => listener.as_deref(),
            Self::GetStatus
            | Self::Reload { .. }
            | Self::Confirm
            | Self::RollBack { .. }
            | Self::Upgrade
            | Self::HandOver
            | Self::SetLogLevel { .. } => None,
        }
    }
}

/// What the caller does, as the rest of a sentence that begins with the caller.
impl Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A dry run is named as one, so that no reader of the log looks for its changes.
        let verb = |dry_run, real, tried| if dry_run { tried } else { real };
        match self {
            Self::GetStatus => f.write_str("asks for the status"),
            Self::ListPeers { query, .. } => write!(f, "lists the peers{query}"),
            Self::ClosePeers { query, dry_run, .. } => {
                let verb = verb(*dry_run, "closes", "counts");
                write!(f, "{verb} the connections{query}")
            }
            Self::SetBacklog { listener, backlog } => {
                write!(
                    f,
                    "sets the backlog of listener \"{listener}\" to {backlog}"
                )
            }
            // With `hold` new clients are not turned away.
            Self::PauseListener { listener, hold } => {
                let verb = if *hold { "pauses and holds" } else { "pauses" };
                write!(f, "{verb} {}", Meant(listener))
            }
            Self::ResumeListener { listener } => write!(f, "resumes {}", Meant(listener)),
            Self::DrainListener { listener, deadline } => {
                write!(f, "drains {}", Meant(listener))?;
                match deadline {
                    Some(deadline) => {
                        write!(f, " within {}", format_duration(*deadline))
                    }
                    None => f.write_str(" within drain-timeout"),
                }
            }
            Self::Reload {
                dry_run,
                confirm_within,
            } => {
                let verb = verb(*dry_run, "reloads", "checks");
                write!(f, "{verb} the configuration")?;
                match confirm_within {
                    Some(time) => write!(f, ", to be confirmed within {}", format_duration(*time)),
                    None => Ok(()),
                }
            }
            Self::Confirm => f.write_str("confirms the configuration"),
            Self::RollBack { dry_run } => {
                let verb = verb(*dry_run, "rolls back to", "looks at");
                write!(f, "{verb} the previous configuration")
            }
            Self::Upgrade => f.write_str("upgrades the daemon"),
            Self::HandOver => f.write_str("leaves everything to the next process"),
            Self::SetLogLevel { level } => {
                let level = level.as_str().to_ascii_lowercase();
                write!(f, "sets the log level to {level}")
            }
        }
    }
}

/// One listener, or all.
struct Meant<'a>(&'a Option<String>);

impl Display for Meant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => write!(f, "listener \"{name}\""),
            None => f.write_str("all listeners"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_says_what_changes_in_a_sentence() {
        let check = |effect: Effect, expected: Option<&str>| {
            let said = effect.changes_something().then(|| effect.to_string());
            assert_eq!(said.as_deref(), expected);
        };
        let query = PeerQuery {
            id: Some(7),
            listener: Some("main".to_owned()),
            address: "10.0.0.0/8".parse().ok(),
            older_ms: Some(90_000),
            idle_ms: Some(1500),
        };
        let close = |query: &PeerQuery, dry_run| Effect::ClosePeers {
            query: query.clone(),
            dry_run,
            list: false,
        };
        check(
            close(&query, false),
            Some(
                "closes the connections with id 7, of listener \"main\", from 10.0.0.0/8, \
                 open for at least 1m 30s, idle for at least 1s 500ms",
            ),
        );
        check(close(&query, true), None);
        let one = PeerQuery {
            idle_ms: Some(0),
            ..PeerQuery::default()
        };
        check(
            close(&one, false),
            Some("closes the connections idle for at least 0s"),
        );
        check(
            Effect::SetBacklog {
                listener: "main".to_owned(),
                backlog: 64,
            },
            Some("sets the backlog of listener \"main\" to 64"),
        );
        let main = || Some("main".to_owned());
        let pause = |listener, hold| Effect::PauseListener { listener, hold };
        check(pause(main(), false), Some("pauses listener \"main\""));
        check(pause(None, true), Some("pauses and holds all listeners"));
        let resume = Effect::ResumeListener { listener: None };
        check(resume, Some("resumes all listeners"));
        let drain = |deadline| Effect::DrainListener {
            listener: main(),
            deadline,
        };
        check(
            drain(Some(Duration::from_secs(30))),
            Some("drains listener \"main\" within 30s"),
        );
        check(
            drain(None),
            Some("drains listener \"main\" within drain-timeout"),
        );
        let level = log::LevelFilter::Debug;
        check(
            Effect::SetLogLevel { level },
            Some("sets the log level to debug"),
        );
        let reload = |dry_run, seconds: Option<u64>| Effect::Reload {
            dry_run,
            confirm_within: seconds.map(Duration::from_secs),
        };
        check(reload(false, None), Some("reloads the configuration"));
        check(
            reload(false, Some(90)),
            Some("reloads the configuration, to be confirmed within 1m 30s"),
        );
        check(reload(true, None), None);
        check(Effect::Confirm, Some("confirms the configuration"));
        check(
            Effect::RollBack { dry_run: false },
            Some("rolls back to the previous configuration"),
        );
        check(Effect::RollBack { dry_run: true }, None);
    }
}
