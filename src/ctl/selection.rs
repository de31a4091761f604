//! Which peers a command is about.

use std::time::Duration;

use crate::cli::exit::{Exit, Failure};
use crate::protocol::schema;

use super::args::{KickArgs, PeersArgs, Selector};

/// The peers that are to be listed.
pub(super) fn listed(args: &PeersArgs) -> schema::ListPeers {
    schema::ListPeers {
        listener: args.which.listener.clone(),
        address: args.which.address.clone(),
        older_ms: args.which.older.map(milliseconds),
        idle_ms: args.which.idle.map(milliseconds),
        sort: args.sort.clone(),
        limit: args.limit,
    }
}

/// The connections that `kick` is to close.
pub(super) fn closed(args: KickArgs) -> Result<schema::ClosePeers, Failure> {
    let mut asked = schema::ClosePeers {
        id: None,
        listener: args.which.listener,
        address: args.which.address,
        older_ms: args.which.older.map(milliseconds),
        idle_ms: args.which.idle.map(milliseconds),
        dry_run: args.dry_run.then_some(true),
        // A daemon of an earlier version refuses what it does not know.
        list: args.verbose.then_some(true),
    };
    let twice = |option| {
        let message = format!("SELECTOR and {option} mean the same: give one of them");
        Failure::with(Exit::Usage, message)
    };
    match args.selector {
        None => Ok(asked),
        Some(Selector::Id(id)) => {
            asked.id = Some(id);
            Ok(asked)
        }
        Some(Selector::Network(network)) => match asked.address.replace(network) {
            Some(_) => Err(twice("--address")),
            None => Ok(asked),
        },
        Some(Selector::Listener(name)) => match asked.listener.replace(name) {
            Some(_) => Err(twice("--listener")),
            None => Ok(asked),
        },
    }
}

pub(super) fn milliseconds(time: Duration) -> u64 {
    // What is more than Varlink's integers hold is longer than anything has lasted.
    u64::try_from(time.as_millis()).map_or(i64::MAX as u64, |time| time.min(i64::MAX as u64))
}
