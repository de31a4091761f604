//! Correctness under load: many peers at once, and each byte that comes back is compared with the
//! one that belongs there.
//!
//! `pattern` makes bytes that tell whose they are, `crowd` is many streams at once, `flows` many
//! senders of datagrams. What is tested with them: `sizes` every size of a message, `many_connections` many
//! connections and their sudden ends, `mixture` all at once.
//!
//! All that is random comes from one seed, which a failure names; `ECHOD_TEST_SEED` gives it again.

mod crowd;
mod flows;
mod many_connections;
mod mixture;
mod pattern;
mod sizes;

use crate::echo::{KINDS, STREAMS, address_of, connect, connect_with, read_to_end, streams_with};
