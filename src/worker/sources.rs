//! The sources of datagrams seen recently: a table of fixed size, for operators to look at.
//!
//! The hash of a source selects a set of four entries. A new source takes the entry that has been
//! silent for the longest time in its set, so a flood of sources costs no memory, and no time either.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::Instant;

use crate::driver::Source;

use super::ids::SocketId;

/// The number of entries, for each listener and worker.
pub(crate) const SOURCES_MAX: usize = 1024;

/// The number of entries in a set.
const WAYS: usize = 4;

/// See the module.
#[derive(Debug, Default)]
pub struct SourceTable {
    // Allocated when the first datagram arrives.
    entries: Box<[Option<SourceEntry>]>,
    hasher: RandomState,
}

/// One source.
#[derive(Clone, Debug)]
pub struct SourceEntry {
    pub id: u64,
    pub source: Source,
    /// Where the last datagram was sent to.
    pub destination: Destination,
    pub first: Instant,
    pub last: Instant,
    pub bytes_received: u64,
    pub bytes_sent: u64,
}

impl SourceEntry {
    /// A source whose first datagram has just arrived, and is not counted yet.
    #[must_use]
    pub(super) fn new(id: u64, source: Source, destination: Destination, now: Instant) -> Self {
        Self {
            id,
            source,
            destination,
            first: now,
            last: now,
            bytes_received: 0,
            bytes_sent: 0,
        }
    }
}

/// Where a datagram was sent to.
#[derive(Clone, Copy, Debug)]
pub struct Destination {
    /// The socket at which it arrived.
    pub socket: SocketId,
    /// The address, where the socket has several.
    pub address: Option<IpAddr>,
}

impl SourceTable {
    /// The entry of this source, which is made with `new` if there is none.
    pub fn entry(
        &mut self,
        source: &Source,
        new: impl FnOnce() -> SourceEntry,
    ) -> &mut SourceEntry {
        if self.entries.is_empty() {
            self.entries = vec![None; SOURCES_MAX].into_boxed_slice();
        }
        let set = self.hasher.hash_one(source) as usize % (SOURCES_MAX / WAYS) * WAYS;
        let set = &mut self.entries[set..][..WAYS];
        let known = set
            .iter()
            .position(|entry| entry.as_ref().is_some_and(|entry| entry.source == *source));
        let way = known.unwrap_or_else(|| {
            // An unused entry is `None`, which is less than any time.
            let last = |way: &usize| set[*way].as_ref().map(|entry| entry.last);
            let way = (0..WAYS).min_by_key(last).expect("a set has entries");
            set[way] = Some(new());
            way
        });
        set[way].as_mut().expect("it was found or made")
    }

    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = &SourceEntry> {
        self.entries.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;

    fn entry(source: Source, now: Instant) -> SourceEntry {
        let destination = Destination {
            socket: SocketId(0),
            address: None,
        };
        SourceEntry::new(0, source, destination, now)
    }

    fn source(number: u16) -> Source {
        Source::Inet(SocketAddr::from((
            [10, 0, (number >> 8) as u8, number as u8],
            7,
        )))
    }

    #[test]
    fn a_source_is_found_again() {
        let mut table = SourceTable::default();
        let now = Instant::now();
        table
            .entry(&source(1), || entry(source(1), now))
            .bytes_received += 5;
        table
            .entry(&source(1), || unreachable!("the source has an entry"))
            .bytes_received += 5;
        assert_eq!(
            table
                .iter()
                .map(|entry| entry.bytes_received)
                .collect::<Vec<_>>(),
            [10]
        );
    }

    #[test]
    fn a_flood_of_sources_is_bounded_and_replaces_the_silent_ones() {
        let mut table = SourceTable::default();
        let start = Instant::now();
        for number in 0..u16::MAX {
            let now = start + Duration::from_millis(number.into());
            table.entry(&source(number), || entry(source(number), now));
        }
        assert_eq!(table.iter().count(), SOURCES_MAX);
        let last = source(u16::MAX - 1);
        assert!(
            table.iter().any(|entry| entry.source == last),
            "the newest has an entry"
        );
    }
}
