//! What a flow of datagrams has to tell, one thing at a time: a datagram from the service, one from
//! somebody else, or that one of ours was sent in vain.

use std::io;

use super::Trouble;
use super::route::{Address, Flow, Route};
use crate::sys::measure;
use crate::sys::message::Source;

/// The largest datagram over IP; one of a Unix socket that is larger is known by its length.
pub(super) const DATAGRAM_MEMORY: usize = 65_536;

/// What has happened.
#[derive(Debug)]
pub(super) enum News {
    /// The service has sent so many bytes; what there was room for is in the memory.
    Answer(usize),
    /// Somebody else has.
    Stranger(usize, Source),
    /// One of ours did not arrive.
    Failure(measure::Failure),
}

/// The next of it; none if there is none yet.
///
/// # Errors
/// As `recvmsg(2)`.
pub(super) fn next(flow: &Flow, memory: &mut [u8]) -> io::Result<Option<News>> {
    if let Some(arrival) = flow.receive(memory)? {
        return Ok(Some(match flow.is_peer(&arrival.source) {
            true => News::Answer(arrival.len),
            false => News::Stranger(arrival.len, arrival.source),
        }));
    }
    // A Unix socket tells in the call itself, and would give a datagram for a failure here.
    if let Address::Unix(_) = flow.peer {
        return Ok(None);
    }
    Ok(flow.receive_failure(memory)?.map(News::Failure))
}

/// Why one did not arrive, and who says so where that is not the service itself.
pub(super) fn trouble(route: &Route, failure: &measure::Failure) -> Trouble {
    let mut trouble = route.trouble(&failure.error);
    let reporter = failure.reporter.filter(|reporter| match route.address() {
        Address::Inet(service) => service.ip() != *reporter,
        Address::Unix(_) => true,
    });
    if let Some(reporter) = reporter {
        let comma = if trouble.hint.is_empty() { "" } else { ", " };
        trouble.hint += &format!("{comma}says {reporter}");
    }
    trouble
}
