//! The sources of datagrams seen lately: a table of fixed size, for people to look at.
//!
//! A source's place is one of four, by its hash; a newcomer takes that of the one which has been
//! silent longest. So a flood of sources costs no memory and no time.

use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use crate::driver::Source;

use super::mailbox::Hit;

/// How many sources are remembered, per listener and worker.
pub const SOURCES_MAX: usize = 1024;

const WAYS: usize = 4;

/// See the module.
#[derive(Debug, Default)]
pub struct SourceTable {
    // Made when the first datagram comes.
    entries: Box<[Option<Entry>]>,
    hasher: RandomState,
}

/// What is remembered of one source.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Entry {
    pub id: u64,
    pub source: Source,
    pub hit: Hit,
    pub first: Instant,
    pub last: Instant,
    pub bytes_received: u64,
    pub bytes_sent: u64,
}

impl SourceTable {
    /// The entry of this source, made with `new` if there is none.
    pub fn entry(&mut self, source: &Source, new: impl FnOnce() -> Entry) -> &mut Entry {
        if self.entries.is_empty() {
            self.entries = vec![None; SOURCES_MAX].into_boxed_slice();
        }
        let set = self.hasher.hash_one(source) as usize % (SOURCES_MAX / WAYS) * WAYS;
        let set = &mut self.entries[set..][..WAYS];
        let known = set
            .iter()
            .position(|entry| entry.as_ref().is_some_and(|entry| entry.source == *source));
        let way = known.unwrap_or_else(|| {
            let silent_longest = |way: &usize| set[*way].as_ref().map(|entry| entry.last);
            let way = (0..WAYS)
                .min_by_key(silent_longest)
                .expect("there are four");
            set[way] = Some(new());
            way
        });
        set[way].as_mut().expect("it is there now")
    }

    /// All that are remembered.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::super::mailbox::SocketId;
    use super::*;

    fn entry(source: Source, now: Instant) -> Entry {
        Entry {
            id: 0,
            source,
            hit: Hit {
                socket: SocketId(0),
                address: None,
            },
            first: now,
            last: now,
            bytes_received: 0,
            bytes_sent: 0,
        }
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
            .entry(&source(1), || unreachable!("it is known"))
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
    fn a_flood_of_sources_is_bounded_and_drives_out_the_silent_ones() {
        let mut table = SourceTable::default();
        let start = Instant::now();
        for number in 0..u16::MAX {
            let now = start + Duration::from_millis(number.into());
            table.entry(&source(number), || entry(source(number), now));
        }
        assert_eq!(table.iter().count(), SOURCES_MAX);
        let last = Source::clone(&source(u16::MAX - 1));
        assert!(
            table.iter().any(|entry| entry.source == last),
            "the newest is there"
        );
    }
}
